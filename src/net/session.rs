//! The life of a connection after its socket exists: TLS, hello, frames, end.

use std::time::Duration;

use bytes::Bytes;

use super::connection::{Connection, Dial, Entry, Open, Purpose, Stage};
use super::handler::{ConnectionId, Handler, Incoming, Reply, StreamId};
use super::link::Broken;
use super::meters::{Class, Malformed};
use super::peers::Failure;
use super::routes;
use super::run::{Net, Timer};
use super::wire::Lanes;
use crate::codec::frame::{END, FrameKind, Header};
use crate::codec::request::Ping;
use crate::codec::{DecodeError, envelope, request};
use crate::pki::{self, Identity};
use crate::sys::time::{monotonic, wall_ms};
use crate::types::api::{Hello, PROTOCOL};
use crate::types::error::{Code, Status};
use crate::types::limits::MAX_UNAUTHENTICATED_FRAME_BYTES;
use crate::types::{Caller, NodeId, Role};

/// Reads of one connection in one turn; the rest waits for the next, so that nobody is kept waiting by one who sends
/// without end.
const READS: usize = 16;
/// After the last frame, the other side has so long to close before the socket is closed over its head.
const LINGER: Duration = Duration::from_secs(1);
/// Open requests of a connection that has not authenticated.
const STRANGERS_STREAMS: usize = 16;

impl<H: Handler> Net<H> {
    /// Reads what has arrived on a connection and hands on the frames in it.
    pub(super) fn read(&mut self, id: ConnectionId) {
        let mut raw = std::mem::take(&mut self.raw);
        let mut plain = std::mem::take(&mut self.plain);
        self.read_with(id, &mut raw, &mut plain);
        (self.raw, self.plain) = (raw, plain);
        self.settle();
    }

    fn read_with(&mut self, id: ConnectionId, raw: &mut [u8], plain: &mut [u8]) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.readable = false;
        }
        for _ in 0..READS {
            let Some(connection) = self.connections.get_mut(id) else { return };
            if connection.stage == Stage::Closing {
                if connection.link.discard(raw) {
                    self.close(id);
                }
                return;
            }
            let handshaking = connection.link.is_handshaking();
            let received = match connection.link.read(raw, plain) {
                Ok(received) => received,
                Err(broken) => return self.broke(id, &broken),
            };
            if received.raw > 0 {
                connection.missed = 0;
                self.meters.received_bytes.add(received.raw as u64);
            }
            let secured = handshaking && !connection.link.is_handshaking();
            let must_send = connection.link.tls().is_some_and(|tls| tls.wants_write());
            let eager = connection.eager;
            if must_send {
                self.mark_dirty(id);
            }
            if secured {
                self.secured(id);
                self.settle();
            }
            if received.plain > 0 {
                self.parse(id, &plain[..received.plain]);
            }
            if received.ended {
                return self.ended(id);
            }
            if received.drained && !(eager && received.raw > 0) {
                if self.connections.get(id).is_some_and(|connection| connection.doomed) {
                    self.close(id);
                }
                return;
            }
        }
        if let Some(connection) = self.connections.get_mut(id)
            && !connection.readable
        {
            connection.readable = true;
            self.ready.push(id);
        }
    }

    fn parse(&mut self, id: ConnectionId, mut input: &[u8]) {
        loop {
            let Some(connection) = self.connections.get_mut(id) else { return };
            if connection.stage == Stage::Closing {
                return;
            }
            let limit = connection.frame_limit();
            match connection.link.parser.next(&mut input, limit) {
                Ok(Some((header, body))) => {
                    self.meters.received_frames.add(1);
                    self.frame(id, header, body);
                    self.settle();
                }
                Ok(None) => return,
                Err(error) => {
                    let cause = if matches!(error, DecodeError::TooLong { .. }) {
                        Malformed::Length
                    } else {
                        Malformed::Header
                    };
                    return self.malformed(id, cause, &format!("malformed frame: {error}"));
                }
            }
        }
    }

    /// The other side closed.
    fn ended(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(id) else { return };
        if connection.link.is_handshaking() {
            self.meters.failed_handshakes.add(1);
        }
        if connection.link.parser.is_inside_a_frame() {
            log::debug!("the connection with {} ended inside a frame", connection.addr);
        }
        self.close(id);
    }

    /// The socket or TLS failed.
    fn broke(&mut self, id: ConnectionId, broken: &Broken) {
        let Some(connection) = self.connections.get(id) else { return };
        let error = match broken {
            Broken::Socket(error) => {
                log::debug!("the connection with {} broke: {error}", connection.addr);
                return self.close(id);
            }
            Broken::Tls(error) => error,
        };
        if connection.link.is_handshaking() || connection.stage == Stage::Greeting {
            self.meters.failed_handshakes.add(1);
        }
        let (message, hint) = pki::explain(error);
        let addr = connection.addr.clone();
        log::debug!("the connection with {addr} broke: {message}");
        let by_them = matches!(error, rustls::Error::AlertReceived(_));
        let status = Status::new(Code::Unauthenticated, message).with_hint(hint);
        match connection.dial.clone() {
            Some(dial) if connection.stage != Stage::Open => {
                self.refused_dial(id, &dial, &status, by_them);
                // What TLS had to say left with the alert; what arrives has no meaning any more.
                self.linger(id);
            }
            _ => self.linger(id),
        }
        if let Some(connection) = self.connections.get_mut(id) {
            connection.link.lanes = Lanes::default();
        }
    }

    /// A dialled peer did not take this node, or this node not the peer.
    fn refused_dial(&mut self, id: ConnectionId, dial: &Dial, status: &Status, by_them: bool) {
        match dial.purpose {
            Purpose::Call(token) => {
                if let Some(connection) = self.connections.get_mut(id) {
                    connection.dial = None;
                }
                let message = format!("{}: {}", dial.addr, status.message);
                let told = Status { message, ..status.clone() };
                self.fail_call(token, Reply::Refused(told));
            }
            Purpose::Peer(_) => {
                self.warn_of_peer(dial.peer, &format!("{}: {}", dial.addr, status.message), &status.hint);
                if by_them {
                    self.handler.turned_away(Some(dial.peer), status, &mut self.out);
                }
            }
        }
    }

    /// TLS is set up: who is it?
    fn secured(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(id) else { return };
        let Some(tls) = connection.link.tls() else { return };
        if let Err(error) = pki::tls::check_protocol(tls.alpn_protocol()) {
            self.meters.failed_handshakes.add(1);
            return self.refuse(id, &error.into());
        }
        let class = pki::classify(tls.peer_certificates(), wall_ms());
        self.meters.handshakes.add(1);
        let dialled = connection.dial.as_ref().map(|dial| dial.peer);
        match (class, dialled) {
            (pki::Class::Valid(identity) | pki::Class::Expired(identity), _)
                if identity.cluster_id != self.settings.cluster_id =>
            {
                self.refuse(id, &pki::PkiError::OtherSwarm.into());
            }
            (pki::Class::Valid(identity), Some(expected)) => {
                if identity.node_id != expected || identity.role != Role::Manager {
                    let message = format!(
                        "another node answers at this address: expected manager {expected}, found {} {}",
                        identity.role.name(),
                        identity.node_id
                    );
                    return self.refuse(id, &Status::new(Code::FailedPrecondition, message));
                }
                self.set_caller(id, &identity, false, Stage::Greeting);
                self.send_hello(id);
            }
            (_, Some(_)) => {
                let message = "the other side shows no certificate in force";
                self.refuse(id, &Status::new(Code::Unauthenticated, message));
            }
            (pki::Class::Valid(identity), None) if identity.role == Role::Manager => {
                // Its hello comes first, and ours answers it: so a hello tells the side that dialled that it was accepted.
                self.set_caller(id, &identity, false, Stage::Greeting);
            }
            (pki::Class::Valid(identity), None) => {
                if self.handler.is_removed(identity.node_id) {
                    return self.refuse(id, &removed(identity.node_id));
                }
                self.set_caller(id, &identity, false, Stage::Open);
                self.authenticated(id, Class::Worker);
                self.send_hello(id);
                self.keep_to_share(identity.node_id);
            }
            (pki::Class::Expired(identity), None) => {
                self.set_caller(id, &identity, true, Stage::Open);
                self.reclassify(id, Class::Anonymous);
                self.send_hello(id);
            }
            (pki::Class::None, None) => {
                if let Some(connection) = self.connections.get_mut(id) {
                    connection.caller = Some(Caller::Anonymous);
                    connection.stage = Stage::Open;
                }
                self.reclassify(id, Class::Anonymous);
                self.send_hello(id);
            }
        }
    }

    fn set_caller(&mut self, id: ConnectionId, identity: &Identity, expired: bool, stage: Stage) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let Identity { node_id, role, cluster_id, not_after_ms, .. } = *identity;
        connection.expires_ms = not_after_ms;
        connection.caller = Some(Caller::Node { node_id, role, cluster_id, expired });
        connection.stage = stage;
    }

    /// From here on the limits of members hold.
    fn authenticated(&mut self, id: ConnectionId, class: Class) {
        self.unauthenticated.remove(&id);
        self.reclassify(id, class);
        if let Some(connection) = self.connections.get_mut(id) {
            connection.authenticated = true;
        }
        self.watch_expiry(id);
    }

    /// Closes a worker's oldest connection when it has more than its share: one worker's key, in the wrong hands, must not
    /// take all descriptors.
    fn keep_to_share(&mut self, worker: NodeId) {
        let its = |connection: &&Connection| connection.class == Class::Worker && connection.node() == Some(worker);
        let ids = || self.connections.iter().filter(its).map(|connection| connection.id);
        if ids().count() > self.settings.limits.per_worker
            && let Some(oldest) = ids().min()
        {
            log::debug!("closing the oldest connection of worker {worker}: it has too many");
            self.meters.evicted.add(1);
            self.close(oldest);
        }
    }

    /// A certificate holds for no longer than it says, also on a connection that was made before its end.
    fn watch_expiry(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(id) else { return };
        let left_ms = connection.expires_ms.saturating_sub(wall_ms());
        // At most a day at a time: the wall clock may be set meanwhile.
        let left = Duration::from_millis(left_ms.saturating_add(1000)).min(Duration::from_secs(86_400));
        self.set_deadline(id, Some(self.now + left));
    }

    /// Sends this node's hello; marked as the last frame that is not an answer, on a connection for one call.
    pub(super) fn send_hello(&mut self, id: ConnectionId) {
        let hello = envelope::encode(&self.handler.hello());
        let Some(connection) = self.connections.get_mut(id) else { return };
        let for_a_call = matches!(connection.dial, Some(Dial { purpose: Purpose::Call(_), .. }));
        connection.link.lanes.push_urgent(FrameKind::Hello, if for_a_call { END } else { 0 }, 0, hello.into());
        self.mark_dirty(id);
    }

    /// A frame arrived.
    fn frame(&mut self, id: ConnectionId, header: Header, body: Bytes) {
        let Some(connection) = self.connections.get(id) else { return };
        let on_connection =
            matches!(header.kind, FrameKind::Hello | FrameKind::Ping | FrameKind::Pong | FrameKind::Raft);
        if on_connection && header.stream != 0 {
            return self.malformed(id, Malformed::Order, "this kind of frame belongs to stream 0");
        }
        let is_greeting = connection.stage == Stage::Greeting;
        let is_manager = connection.class == Class::Manager;
        match header.kind {
            FrameKind::Error if header.stream == 0 => self.turned_away(id, &body),
            FrameKind::Hello if is_greeting => self.hello(id, header, &body),
            _ if is_greeting => self.malformed(id, Malformed::Order, "a manager's first frame must be its hello"),
            FrameKind::Hello => self.unexpected_hello(id),
            FrameKind::Request => self.request(id, header, &body),
            FrameKind::Answer | FrameKind::Error => self.reply(id, header, body),
            FrameKind::Credit => self.credit(id, header, &body),
            FrameKind::Cancel => self.cancel(id, header.stream),
            FrameKind::Ping => self.ping(id, &body),
            FrameKind::Pong if is_manager => self.pong(id, &body),
            FrameKind::Raft if is_manager => {
                if let Some(from) = connection.node() {
                    self.handler.raft(from, body, &mut self.out);
                }
            }
            FrameKind::Pong | FrameKind::Raft => {
                self.malformed(id, Malformed::Order, "this kind of frame is for managers");
            }
        }
    }

    fn hello(&mut self, id: ConnectionId, header: Header, body: &Bytes) {
        let hello: Hello = match envelope::decode(body, MAX_UNAUTHENTICATED_FRAME_BYTES) {
            Ok(hello) => hello,
            Err(error) => return self.malformed(id, Malformed::Body, &format!("malformed hello: {error}")),
        };
        let Some(connection) = self.connections.get(id) else { return };
        let Some(caller) = connection.caller.clone() else { return };
        let Some(node) = caller.node_id() else { return };
        let accepted = self
            .check_hello(node, &hello)
            .and_then(|()| self.handler.greeted(&caller, &hello))
            .and_then(|()| if self.handler.is_removed(node) { Err(removed(node)) } else { Ok(()) });
        if let Err(status) = accepted {
            return self.refuse(id, &status);
        }
        self.authenticated(id, Class::Manager);
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.stage = Stage::Open;
        match connection.dial.as_ref().map(|dial| dial.purpose) {
            Some(Purpose::Call(token)) => return self.send_waiting_call(id, token),
            Some(Purpose::Peer(attempt)) => {
                self.attempts.remove(&attempt);
                self.meters.dials.add(1);
            }
            None => self.send_hello(id),
        }
        // A connection for one call is not for anything else.
        if header.flags & END == 0
            && let Some(connection) = self.connections.get_mut(id)
        {
            connection.is_peer_link = true;
            let dialled = connection.dial.is_some();
            self.send_ping(id);
            self.schedule_ping();
            self.peers.link_up(self.now, node, id, dialled, &mut self.effects);
        }
    }

    fn unexpected_hello(&mut self, id: ConnectionId) {
        if let Some(Caller::Node { node_id, expired: true, .. }) =
            self.connections.get(id).and_then(|connection| connection.caller.as_ref())
        {
            let message = format!("the certificate of node {node_id} has expired");
            return self.refuse(id, &Status::new(Code::Unauthenticated, message).with_hint(routes::EXPIRED_HINT));
        }
        self.malformed(id, Malformed::Order, "a hello is for managers, once, as the first frame");
    }

    fn check_hello(&self, node: NodeId, hello: &Hello) -> Result<(), Status> {
        if hello.protocol != PROTOCOL {
            let message = format!("manager {node} speaks protocol {} and this one {PROTOCOL}", hello.protocol);
            return Err(
                Status::new(Code::FailedPrecondition, message).with_hint("run the same version of skep on both")
            );
        }
        if hello.cluster_id != self.settings.cluster_id {
            return Err(pki::PkiError::OtherSwarm.into());
        }
        if hello.node_id != node {
            let message = format!("a hello in the name of {} on a connection of {node}", hello.node_id);
            return Err(Status::new(Code::PermissionDenied, message));
        }
        Ok(())
    }

    /// The other side ends the connection, with a reason.
    fn turned_away(&mut self, id: ConnectionId, body: &Bytes) {
        let status: Status = match envelope::decode(body, MAX_UNAUTHENTICATED_FRAME_BYTES) {
            Ok(status) => status,
            Err(error) => return self.malformed(id, Malformed::Body, &format!("malformed status: {error}")),
        };
        let Some(connection) = self.connections.get(id) else { return };
        log::debug!("{} ended the connection: {status}", connection.addr);
        match connection.dial.clone() {
            Some(dial) => self.refused_dial(id, &dial, &status, true),
            None => {
                if let Some(node) = connection.node()
                    && connection.class == Class::Manager
                {
                    self.handler.turned_away(Some(node), &status, &mut self.out);
                }
            }
        }
        self.close(id);
    }

    fn request(&mut self, id: ConnectionId, header: Header, body: &Bytes) {
        let limits = self.settings.limits;
        let Some(connection) = self.connections.get_mut(id) else { return };
        if !connection.may_open(header.stream) {
            return self.malformed(id, Malformed::Order, "a request on a stream that is not its caller's to open");
        }
        let Some(by) = connection.caller.clone() else { return };
        let stream = StreamId { connection: id, stream: header.stream };
        let streams = if connection.authenticated { limits.streams } else { limits.streams.min(STRANGERS_STREAMS) };
        let is_full = connection.incoming.len() >= streams;
        let request = match request::decode(body) {
            Ok(request) => request,
            Err(DecodeError::Unknown(what)) => {
                connection.incoming.insert(header.stream, Open::new(false));
                let message = format!("this manager does not know the request: unknown {what}");
                return self.turn_down(stream, &Status::new(Code::Unimplemented, message));
            }
            Err(error) => return self.malformed(id, Malformed::Body, &format!("malformed request: {error}")),
        };
        connection.incoming.insert(header.stream, Open::new(request.call.is_stream()));
        if is_full {
            let message = format!("{streams} requests are open on this connection");
            return self.turn_down(stream, &Status::new(Code::ResourceExhausted, message));
        }
        if self.stopping.is_some() {
            let status =
                Status::new(Code::Unavailable, "this manager is shutting down").with_hint("ask another manager");
            return self.turn_down(stream, &status);
        }
        let allowed = match &request.forwarded {
            None => routes::check(request.call, &by),
            Some(forwarded) => {
                let removed_caller = forwarded.caller.node_id().filter(|node| self.handler.is_removed(*node));
                match removed_caller {
                    Some(node) => Err(removed(node)),
                    None => routes::check_forwarded(request.call, &by, &forwarded.caller),
                }
            }
        };
        let limit = routes::route(request.call).body_limit;
        let allowed = allowed.and_then(|()| {
            if request.body.len() <= limit {
                return Ok(());
            }
            let message = format!("the request has {} bytes, and at most {limit} are allowed", request.body.len());
            Err(Status::new(Code::InvalidArgument, message))
        });
        if let Err(status) = allowed {
            return self.turn_down(stream, &status);
        }
        let Some(connection) = self.connections.get(id) else { return };
        let (caller, addr, forwarded) = match request.forwarded {
            Some(forwarded) => (forwarded.caller, forwarded.addr, true),
            None => (by, connection.addr.clone(), false),
        };
        let deadline = self.now + routes::deadline(request.call, &caller, request.deadline_ms);
        let incoming = Incoming {
            stream,
            caller,
            addr,
            forwarded,
            call: request.call,
            deadline,
            body: body.slice_ref(request.body),
        };
        if !connection.authenticated {
            // It lives as long as it waits for an answer.
            self.set_deadline(id, None);
        }
        self.handler.request(self.now, incoming, &mut self.out);
    }

    fn turn_down(&mut self, stream: StreamId, status: &Status) {
        self.meters.refused_requests.add(1);
        self.send_refusal(stream, status);
    }

    fn reply(&mut self, id: ConnectionId, header: Header, body: Bytes) {
        let Some(connection) = self.connections.get(id) else { return };
        // A stream that is not ours any more was abandoned; its answer crossed our cancellation.
        let Some(token) = connection.outgoing.get(&header.stream).copied() else { return };
        if header.kind == FrameKind::Answer {
            return self.answered(token, body, header.flags & END != 0);
        }
        match envelope::decode(&body, MAX_UNAUTHENTICATED_FRAME_BYTES) {
            Ok(status) => self.fail_call(token, Reply::Refused(status)),
            Err(error) => self.malformed(id, Malformed::Body, &format!("malformed status: {error}")),
        }
    }

    fn credit(&mut self, id: ConnectionId, header: Header, body: &Bytes) {
        let Ok(bytes) = <[u8; 4]>::try_from(&body[..]) else {
            return self.malformed(id, Malformed::Body, "a credit is four bytes");
        };
        let Some(connection) = self.connections.get_mut(id) else { return };
        // A stream that has ended meanwhile needs no credit.
        let open = connection.incoming.get_mut(&header.stream);
        if let Some(Open { credit: Some(credit) }) = open {
            *credit = credit.saturating_add(u32::from_le_bytes(bytes));
            let (stream, available) = (StreamId { connection: id, stream: header.stream }, *credit);
            self.handler.credit(stream, available, &mut self.out);
        }
    }

    fn cancel(&mut self, id: ConnectionId, stream: u32) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        if connection.incoming.remove(&stream).is_some() {
            if !connection.authenticated && connection.incoming.is_empty() {
                self.set_deadline(id, Some(self.now + self.settings.limits.handshake));
            }
            self.handler.cancelled(StreamId { connection: id, stream }, &mut self.out);
        }
    }

    fn ping(&mut self, id: ConnectionId, body: &Bytes) {
        let asked = match Ping::decode(body) {
            Ok(ping) => ping,
            Err(error) => return self.malformed(id, Malformed::Body, &format!("malformed ping: {error}")),
        };
        let Some(connection) = self.connections.get_mut(id) else { return };
        // What this node reports of itself is for managers.
        let report = if connection.class == Class::Manager { self.handler.ping() } else { Ping::default() };
        let pong = Ping { sent_ns: asked.sent_ns, wall_ms: wall_ms(), ..report };
        connection.link.lanes.push_urgent(FrameKind::Pong, 0, 0, pong.encode().into());
        self.answer_queued(id, false);
    }

    fn pong(&mut self, id: ConnectionId, body: &Bytes) {
        let pong = match Ping::decode(body) {
            Ok(pong) => pong,
            Err(error) => return self.malformed(id, Malformed::Body, &format!("malformed pong: {error}")),
        };
        let Some(connection) = self.connections.get(id) else { return };
        let Some(peer) = connection.node() else { return };
        if connection.first_ping_ns.is_none_or(|first| pong.sent_ns < first) {
            return;
        }
        let Some(rtt_ns) = monotonic().as_nanos().checked_sub(pong.sent_ns) else { return };
        // The peer read its clock about half a round trip ago.
        let then_ms = wall_ms().saturating_sub(rtt_ns / 2_000_000);
        let offset_ms = i64::try_from(i128::from(pong.wall_ms) - i128::from(then_ms)).unwrap_or(i64::MAX);
        self.handler.measured(peer, rtt_ns / 1000, offset_ms, pong);
    }

    /// Pings every link, and closes those from which nothing has come for too long.
    pub(super) fn ping_all(&mut self) {
        self.ping_scheduled = false;
        let links: Vec<_> = self.peers.links().collect();
        if !links.is_empty() {
            self.schedule_ping();
        }
        for id in links {
            let Some(connection) = self.connections.get_mut(id) else { continue };
            if connection.missed >= self.settings.limits.missed_pings {
                log::info!("closing the connection with {}: it has been silent for too long", connection.addr);
                self.close(id);
                continue;
            }
            connection.missed += 1;
            self.send_ping(id);
        }
    }

    /// All links are pinged together, so that they cost one wake-up; without links there is none.
    fn schedule_ping(&mut self) {
        if !self.ping_scheduled {
            self.ping_scheduled = true;
            self.timers.insert((self.now + self.settings.limits.ping, Timer::Ping));
        }
    }

    fn send_ping(&mut self, id: ConnectionId) {
        let report = self.handler.ping();
        let ping = Ping { sent_ns: monotonic().as_nanos(), wall_ms: wall_ms(), ..report };
        if let Some(connection) = self.connections.get_mut(id) {
            connection.first_ping_ns.get_or_insert(ping.sent_ns);
            connection.link.lanes.push_urgent(FrameKind::Ping, 0, 0, ping.encode().into());
            self.mark_dirty(id);
        }
    }

    /// The other side breaks the rules of frames.
    fn malformed(&mut self, id: ConnectionId, cause: Malformed, message: &str) {
        self.meters.malformed(cause).add(1);
        self.refuse(id, &Status::new(Code::InvalidArgument, message));
    }

    /// Ends a connection with a reason; for a connection that this side made, whoever wanted it hears it too.
    fn refuse(&mut self, id: ConnectionId, status: &Status) {
        let Some(connection) = self.connections.get(id) else { return };
        log::debug!("refusing {}: {status}", connection.addr);
        if let Some(dial) = connection.dial.clone() {
            self.refused_dial(id, &dial, status, false);
        } else if connection.stage == Stage::Greeting
            && let Some(node) = connection.node()
        {
            self.warn_of_peer(node, &format!("refused: {status}"), &status.hint);
        }
        self.fail(id, status);
    }

    /// Sends a reason as the connection's last frame, and closes it once the other side has had time to read it.
    pub(super) fn fail(&mut self, id: ConnectionId, status: &Status) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.link.lanes.drop_bulk();
        let body = Bytes::from(envelope::encode(status));
        connection.link.lanes.push_urgent(FrameKind::Error, END, 0, body);
        self.linger(id);
    }

    /// Closes a connection after what waits was sent and the other side has closed, or after a while: closing with
    /// unread input makes the kernel send a reset, which can overtake the last frame.
    fn linger(&mut self, id: ConnectionId) {
        self.retire(id);
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.stage = Stage::Closing;
        // What arrived already was perhaps announced for the last time.
        if !connection.readable {
            connection.readable = true;
            self.ready.push(id);
        }
        self.mark_dirty(id);
        self.set_deadline(id, Some(self.now + LINGER));
    }

    /// Closes a connection now.
    pub(super) fn close(&mut self, id: ConnectionId) {
        self.retire(id);
        self.set_deadline(id, None);
        self.unauthenticated.remove(&id);
        if let Some(Entry::Frames(mut connection)) = self.connections.remove(id) {
            connection.link.deregister(self.inbox.poll.registry());
            if !connection.output_ended {
                connection.link.end_output(&mut self.staging);
            }
            self.meters.open(connection.class).sub(1);
        }
    }

    /// Tells everyone who depends on a connection that it is gone.
    fn retire(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        if connection.stage == Stage::Closing {
            return;
        }
        let stage = std::mem::replace(&mut connection.stage, Stage::Closing);
        let incoming: Vec<u32> = std::mem::take(&mut connection.incoming).into_keys().collect();
        let outgoing: Vec<u64> = std::mem::take(&mut connection.outgoing).into_values().collect();
        let dial = connection.dial.take();
        let link = if connection.is_peer_link { connection.node() } else { None };
        for stream in incoming {
            self.handler.cancelled(StreamId { connection: id, stream }, &mut self.out);
        }
        for token in outgoing {
            self.lose_call(id, token);
        }
        if let Some(node) = link {
            self.peers.link_down(self.now, node, id, &mut self.effects);
        }
        if let Some(dial) = dial
            && stage != Stage::Open
        {
            self.dial_failed(&dial, Failure::Other, &format!("{}: the connection was closed", dial.addr), "");
        }
    }

    /// A connection's deadline passed.
    pub(super) fn connection_expired(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return self.close_http(id) };
        connection.deadline = None;
        let addr = connection.addr.clone();
        match connection.stage {
            Stage::Closing => self.close(id),
            Stage::Open if connection.authenticated => {
                if connection.expires_ms > wall_ms() {
                    return self.watch_expiry(id);
                }
                log::info!("closing the connection with {addr}: the certificate it was made with has expired");
                self.close(id);
            }
            Stage::Connecting | Stage::Handshaking => {
                log::debug!("the handshake with {addr} took too long");
                self.meters.failed_handshakes.add(1);
                self.meters.evicted.add(1);
                self.close(id);
            }
            Stage::Greeting => {
                self.meters.evicted.add(1);
                self.refuse(id, &Status::new(Code::DeadlineExceeded, "no hello came in time"));
            }
            Stage::Open => {
                self.meters.evicted.add(1);
                self.refuse(id, &Status::new(Code::DeadlineExceeded, "nothing was asked for too long"));
            }
        }
    }

    /// Closes every connection of a node.
    pub(super) fn disconnect(&mut self, node: NodeId) {
        let is_its = |connection: &&Connection| {
            connection.node() == Some(node) || connection.dial.as_ref().is_some_and(|dial| dial.peer == node)
        };
        for id in self.connections.iter().filter(is_its).map(|connection| connection.id).collect::<Vec<_>>() {
            self.close(id);
        }
    }

    /// Sends what waits on every connection that has something new.
    pub(super) fn flush(&mut self) {
        for id in std::mem::take(&mut self.dirty) {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.dirty = false;
                self.flush_one(id);
            }
        }
    }

    /// Sends what waits on a connection.
    pub(super) fn flush_one(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        if connection.stage == Stage::Connecting || connection.doomed {
            return;
        }
        let sent = match connection.link.flush(&mut self.staging) {
            Ok(sent) => sent,
            Err(error) => return self.cannot_write(id, &error),
        };
        self.meters.sent_bytes.add(sent.raw as u64);
        self.meters.sent_frames.add(sent.frames);
        if connection.stage == Stage::Closing && !sent.blocked && !connection.output_ended {
            connection.output_ended = true;
            connection.link.end_output(&mut self.staging);
        }
        if self.watch_room(id, sent.blocked).is_err() {
            self.close(id);
        }
    }

    /// A socket that takes nothing may still hold the reason why.
    fn cannot_write(&mut self, id: ConnectionId, error: &std::io::Error) {
        log::debug!("a connection takes no more: {error}");
        let Some(connection) = self.connections.get_mut(id) else { return };
        (connection.doomed, connection.eager) = (true, true);
        if !connection.readable {
            connection.readable = true;
            self.ready.push(id);
        }
    }
}

fn removed(node: NodeId) -> Status {
    Status::new(Code::PermissionDenied, format!("node {node} was removed from the swarm"))
        .with_hint("to join again, move its data directory aside and run `skep run --join HOST:PORT --token-file FILE`")
}
