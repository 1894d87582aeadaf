//! The end of a connection: by the other side, by the socket, for breaking the rules, for taking too long; and what of it
//! still reaches the other side.

use super::*;

/// After the last frame, the other side has so long to close before the socket is closed over its head.
const LINGER: Duration = Duration::from_secs(1);

impl<H: Handler> Net<H> {
    /// The other side closed.
    pub(super) fn ended(&mut self, id: ConnectionId) {
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
    pub(super) fn broke(&mut self, id: ConnectionId, broken: &Broken) {
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
        let (mut message, hint) = pki::explain(error);
        if pki::concerns_time(error)
            && let Some(words) = self.clock_words(connection.dial.as_ref().map(|dial| dial.peer))
        {
            message = format!("{message}; {words}");
        }
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

    /// The other side breaks the rules of frames.
    pub(super) fn malformed(&mut self, id: ConnectionId, cause: Malformed, message: &str) {
        self.meters.malformed(cause).add(1);
        self.refuse(id, &Status::new(Code::InvalidArgument, message));
    }

    /// Ends a connection with a reason; for a connection that this side made, whoever wanted it hears it too.
    pub(super) fn refuse(&mut self, id: ConnectionId, status: &Status) {
        let Some(connection) = self.connections.get(id) else { return };
        log::debug!("refusing {}: {status}", connection.addr);
        if let Some(dial) = connection.dial.clone() {
            self.refused_dial(id, &dial, status, false);
        } else if (connection.stage == Stage::Greeting || connection.class == Class::Manager)
            && let Some(node) = connection.node()
        {
            self.warn_of_peer(node, &format!("refused: {status}"), &status.hint);
        }
        self.fail(id, status);
    }

    /// Sends a reason as the connection's last frame, and closes it once the other side has had time to read it.
    pub(in crate::net) fn fail(&mut self, id: ConnectionId, status: &Status) {
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
    pub(in crate::net) fn close(&mut self, id: ConnectionId) {
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
    pub(in crate::net) fn connection_expired(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return self.close_http(id) };
        connection.deadline = None;
        let addr = connection.addr.clone();
        match connection.stage {
            Stage::Closing => self.close(id),
            Stage::Open if connection.authenticated => {
                if connection.expires_ms > wall_ms() {
                    return self.watch_expiry(id);
                }
                let level = if connection.is_lent() { log::Level::Debug } else { log::Level::Info };
                log::log!(level, "closing the connection with {addr}: the certificate it was made with has expired");
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
    pub(in crate::net) fn disconnect(&mut self, node: NodeId) {
        let is_its = |connection: &&Connection| {
            connection.node() == Some(node) || connection.dial.as_ref().is_some_and(|dial| dial.peer == node)
        };
        for id in self.connections.iter().filter(is_its).map(|connection| connection.id).collect::<Vec<_>>() {
            self.close(id);
        }
    }

    /// Ends the connections of nodes that were removed, or are managers no more: of those named, or of any.
    pub(in crate::net) fn judge(&mut self, nodes: Option<&[NodeId]>) {
        let open = self.connections.iter().filter(|connection| connection.stage != Stage::Closing);
        let verdicts: Vec<(ConnectionId, Status)> = open
            .filter_map(|connection| {
                let node = connection.node().or(connection.dial.as_ref().map(|dial| dial.peer))?;
                if nodes.is_some_and(|nodes| !nodes.contains(&node)) {
                    return None;
                }
                let status = match self.handler.standing(node) {
                    Standing::Removed => removed(node),
                    // It was there: so much is known of those that are named.
                    Standing::Unknown if nodes.is_some() => removed(node),
                    Standing::Unknown if connection.class == Class::Worker => unknown(node),
                    Standing::Worker if connection.class == Class::Manager => demoted(node),
                    _ => return None,
                };
                Some((connection.id, status))
            })
            .collect();
        for (id, status) in verdicts {
            self.refuse(id, &status);
        }
    }

    /// A socket that takes nothing may still hold the reason why.
    pub(super) fn cannot_write(&mut self, id: ConnectionId, error: &std::io::Error) {
        log::debug!("a connection takes no more: {error}");
        let Some(connection) = self.connections.get_mut(id) else { return };
        (connection.doomed, connection.eager) = (true, true);
        if !connection.readable {
            connection.readable = true;
            self.ready.push(id);
        }
    }
}
