//! Calls that this side makes, and answers that it gives: streams, credit, budgets.

use std::time::Duration;

use bytes::Bytes;

use super::connection::Purpose;
use super::handler::{ConnectionId, Handler, Reply, StreamId, Target};
use super::run::{Net, Timer};
use super::wire::Serial;
use crate::codec::frame::{END, FrameKind, INITIAL_CREDIT};
use crate::codec::{envelope, request};
use crate::sys::time::Instant;
use crate::types::NodeId;
use crate::types::api::{Call, Forwarded};
use crate::types::error::{Code, Status};
use crate::types::limits::MAX_FRAME_BYTES;

/// Bytes of answers that wait to be sent on a connection that has not authenticated.
const STRANGERS_QUEUE_BYTES: usize = 256 << 10;

/// A call that has no answer yet, or not all of it.
#[derive(Debug)]
pub(super) struct OutgoingCall {
    /// Where it goes; `None` while a connection is made for it.
    place: Option<(ConnectionId, u32, Serial)>,
    /// The request, while a connection is made for it.
    request: Bytes,
    /// What the other side may still send; `None` when the answer is a single frame.
    window: Option<u32>,
    /// The other side's time, for the whole answer or from one part of a stream to the next.
    patience: Duration,
    deadline: Instant,
    /// The connection was made for this call.
    owns_connection: bool,
}

impl<H: Handler> Net<H> {
    /// Makes a call.
    pub(super) fn make_call(
        &mut self,
        token: u64,
        to: Target,
        call: Call,
        deadline_ms: u32,
        forwarded: Option<&Forwarded>,
        body: &Bytes,
    ) {
        let request = Bytes::from(request::encode(call, deadline_ms, forwarded, body));
        let patience = Duration::from_millis(u64::from(deadline_ms));
        let deadline = self.now + patience;
        let mut outgoing = OutgoingCall {
            place: None,
            request: Bytes::new(),
            window: call.is_stream().then_some(INITIAL_CREDIT),
            patience,
            deadline,
            owns_connection: false,
        };
        if request.len() > MAX_FRAME_BYTES {
            let status =
                Status::new(Code::InvalidArgument, format!("a request of {} bytes is too long", request.len()));
            self.deferred.push_back((token, Reply::Refused(status)));
            return;
        }
        match to {
            Target::Node(node) => {
                let budget = self.settings.limits.queue_bytes;
                let link = self.peers.best(node).filter(|id| {
                    self.connections.get(*id).is_some_and(|link| link.link.lanes.bulk_bytes() + request.len() <= budget)
                });
                let Some(id) = link else {
                    self.deferred.push_back((token, Reply::Lost { sent: false }));
                    return;
                };
                outgoing.place = self.place_call(id, token, request);
                self.calls.insert(token, outgoing);
                self.timers.insert((deadline, Timer::Call(token)));
            }
            Target::Address(peer, addr) => {
                outgoing.request = request;
                outgoing.owns_connection = true;
                self.calls.insert(token, outgoing);
                self.timers.insert((deadline, Timer::Call(token)));
                self.dial(peer, addr, Purpose::Call(token), false);
            }
        }
    }

    fn place_call(&mut self, id: ConnectionId, token: u64, request: Bytes) -> Option<(ConnectionId, u32, Serial)> {
        let connection = self.connections.get_mut(id)?;
        let stream = connection.open_stream(token);
        let serial = connection.link.lanes.push(FrameKind::Request, 0, stream, request);
        self.mark_dirty(id);
        Some((id, stream, serial))
    }

    /// The connection that was made for a call is up.
    pub(super) fn send_waiting_call(&mut self, id: ConnectionId, token: u64) {
        let Some(outgoing) = self.calls.get_mut(&token) else { return self.close(id) };
        let request = std::mem::take(&mut outgoing.request);
        let place = self.place_call(id, token, request);
        if let Some(outgoing) = self.calls.get_mut(&token) {
            outgoing.place = place;
        }
    }

    /// An answer, or a part of one.
    pub(super) fn answered(&mut self, token: u64, body: Bytes, end: bool) {
        let now = self.now;
        let Some(outgoing) = self.calls.get_mut(&token) else { return };
        if let Some(window) = &mut outgoing.window {
            let Some(left) = u32::try_from(body.len()).ok().and_then(|length| window.checked_sub(length)) else {
                self.meters.over_credit.add(1);
                let status = Status::new(Code::Internal, "the other side sends more than it was granted");
                self.abandon(token);
                self.handler.replied(now, token, Reply::Refused(status), &mut self.out);
                return;
            };
            *window = left;
        }
        if end {
            self.end_call(token);
        } else {
            // A long answer may take its time as long as it goes on.
            self.timers.remove(&(outgoing.deadline, Timer::Call(token)));
            outgoing.deadline = now + outgoing.patience;
            self.timers.insert((outgoing.deadline, Timer::Call(token)));
        }
        self.handler.replied(now, token, Reply::Answer { body, end }, &mut self.out);
    }

    /// Ends a call with a reply that is not an answer.
    pub(super) fn fail_call(&mut self, token: u64, reply: Reply) {
        if self.end_call(token) {
            self.handler.replied(self.now, token, reply, &mut self.out);
        }
    }

    /// The connection of a call closed.
    pub(super) fn lose_call(&mut self, id: ConnectionId, token: u64) {
        let serial = self.calls.get(&token).and_then(|outgoing| outgoing.place).map(|(_, _, serial)| serial);
        let sent = match (self.connections.get(id), serial) {
            (Some(connection), Some(serial)) => connection.link.lanes.has_left(serial),
            _ => false,
        };
        self.fail_call(token, Reply::Lost { sent });
    }

    /// Forgets a call; false when there is none.
    fn end_call(&mut self, token: u64) -> bool {
        let Some(outgoing) = self.calls.remove(&token) else { return false };
        self.timers.remove(&(outgoing.deadline, Timer::Call(token)));
        if let Some((id, stream, _)) = outgoing.place {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.outgoing.remove(&stream);
            }
            if outgoing.owns_connection {
                self.close(id);
            }
        }
        true
    }

    /// The other side of a call took too long.
    pub(super) fn call_expired(&mut self, token: u64) {
        let Some(outgoing) = self.calls.get(&token) else { return };
        let sent = outgoing.place.is_some_and(|(id, _, serial)| {
            self.connections.get(id).is_none_or(|connection| connection.link.lanes.has_left(serial))
        });
        self.abandon(token);
        self.handler.replied(self.now, token, Reply::Lost { sent }, &mut self.out);
    }

    /// Drops a call and tells the other side.
    pub(super) fn abandon(&mut self, token: u64) {
        if let Some((id, stream, _)) = self.calls.get(&token).and_then(|outgoing| outgoing.place)
            && let Some(connection) = self.connections.get_mut(id)
        {
            // Not in the urgent lane: it must not overtake its own request.
            connection.link.lanes.push(FrameKind::Cancel, 0, stream, Bytes::new());
            self.mark_dirty(id);
        }
        self.end_call(token);
    }

    /// Lets the other side of a call send more.
    pub(super) fn grant(&mut self, token: u64, bytes: u32) {
        let Some(outgoing) = self.calls.get_mut(&token) else { return };
        let (Some((id, stream, serial)), Some(window)) = (outgoing.place, &mut outgoing.window) else { return };
        *window = window.saturating_add(bytes);
        let Some(connection) = self.connections.get_mut(id) else { return };
        let body = Bytes::copy_from_slice(&bytes.to_le_bytes());
        if connection.link.lanes.has_left(serial) {
            connection.link.lanes.push_urgent(FrameKind::Credit, 0, stream, body);
        } else {
            connection.link.lanes.push(FrameKind::Credit, 0, stream, body);
        }
        self.mark_dirty(id);
    }

    /// Sends an answer, or a part of one.
    pub(super) fn send_answer(&mut self, to: StreamId, body: Bytes, end: bool) {
        let Some(connection) = self.connections.get_mut(to.connection) else { return };
        let Some(open) = connection.incoming.get_mut(&to.stream) else { return };
        if body.len() > MAX_FRAME_BYTES {
            let message = format!("the answer has {} bytes, and at most {MAX_FRAME_BYTES} can be sent", body.len());
            let status = Status::new(Code::ResourceExhausted, message).with_hint("ask for less, with a filter");
            return self.send_refusal(to, &status);
        }
        if let Some(credit) = &mut open.credit {
            let left = u32::try_from(body.len()).ok().and_then(|length| credit.checked_sub(length));
            debug_assert!(left.is_some(), "a part of {} bytes where the reader takes {credit}", body.len());
            let Some(left) = left else {
                self.meters.over_credit.add(1);
                self.send_refusal(to, &Status::new(Code::Internal, "the answer was sent faster than it was read"));
                return self.handler.cancelled(to, &mut self.out);
            };
            *credit = left;
        }
        if end {
            connection.incoming.remove(&to.stream);
        }
        connection.link.lanes.push(FrameKind::Answer, if end { END } else { 0 }, to.stream, body);
        self.answer_queued(to.connection, end);
    }

    /// Refuses a request.
    pub(super) fn send_refusal(&mut self, to: StreamId, status: &Status) {
        let Some(connection) = self.connections.get_mut(to.connection) else { return };
        if connection.incoming.remove(&to.stream).is_none() {
            return;
        }
        let body = Bytes::from(envelope::encode(status));
        connection.link.lanes.push(FrameKind::Error, END, to.stream, body);
        self.answer_queued(to.connection, true);
    }

    /// Something was queued for a caller: it must be sent, and there must not be too much.
    pub(super) fn answer_queued(&mut self, id: ConnectionId, end: bool) {
        self.mark_dirty(id);
        let limits = self.settings.limits;
        let Some(connection) = self.connections.get(id) else { return };
        let budget = if connection.authenticated { limits.queue_bytes } else { STRANGERS_QUEUE_BYTES };
        if connection.link.lanes.bulk_bytes() > budget
            || connection.link.lanes.urgent_bytes() > limits.urgent_queue_bytes
        {
            // Perhaps it was only a busy turn: what the socket takes now does not count.
            self.flush_one(id);
        }
        let Some(connection) = self.connections.get(id) else { return };
        if connection.link.lanes.bulk_bytes() > budget
            || connection.link.lanes.urgent_bytes() > limits.urgent_queue_bytes
        {
            self.meters.slow_readers.add(1);
            log::debug!("closing a connection from {}: it does not read its answers", connection.addr);
            return self.close(id);
        }
        if end && !connection.authenticated && connection.incoming.is_empty() {
            self.set_deadline(id, Some(self.now + limits.handshake));
        }
    }

    /// Sends Raft messages over the best connection, or drops them.
    pub(super) fn send_raft(&mut self, to: NodeId, body: Bytes, urgent: bool) {
        let limits = self.settings.limits;
        let id = self.peers.best(to);
        let Some(connection) = id.and_then(|id| self.connections.get_mut(id)) else {
            return self.drop_raft(to, urgent);
        };
        let lanes = &mut connection.link.lanes;
        let (waiting, budget) = if urgent {
            (lanes.urgent_bytes(), limits.urgent_queue_bytes)
        } else {
            (lanes.bulk_bytes(), limits.queue_bytes)
        };
        debug_assert!(body.len() <= MAX_FRAME_BYTES, "raft messages are cut to fit a frame");
        if waiting + body.len() > budget || body.len() > MAX_FRAME_BYTES {
            return self.drop_raft(to, urgent);
        }
        if urgent {
            lanes.push_urgent(FrameKind::Raft, 0, 0, body);
        } else {
            lanes.push(FrameKind::Raft, 0, 0, body);
        }
        let id = connection.id;
        self.mark_dirty(id);
    }

    /// Raft goes on as if appends had arrived until it is told otherwise, and repeats votes and heartbeats by itself.
    fn drop_raft(&mut self, to: NodeId, urgent: bool) {
        if urgent {
            self.meters.dropped_urgent.add(1);
        } else {
            self.meters.dropped_appends.add(1);
            self.handler.raft_dropped(to);
        }
    }
}
