//! Frames that belong to a call: requests of the other side, and what it answers, grants and cancels.

use super::*;

/// Open requests of a connection that has not authenticated.
const STRANGERS_STREAMS: usize = 16;

impl<H: Handler> Net<H> {
    pub(super) fn request(&mut self, id: ConnectionId, header: Header, body: &Bytes) {
        let limits = self.settings.limits;
        let Some(connection) = self.connections.get_mut(id) else { return };
        if !connection.may_open(header.stream) {
            return self.malformed(id, Malformed::Order, "a request on a stream that is not its caller's to open");
        }
        let Some(by) = connection.caller.clone() else { return };
        let authenticated = connection.authenticated;
        let by = self.acting(by);
        let Some(connection) = self.connections.get_mut(id) else { return };
        let stream = StreamId { connection: id, stream: header.stream };
        let streams = if authenticated { limits.streams } else { limits.streams.min(STRANGERS_STREAMS) };
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
                // The manager that passed it on may know less of the caller than this one.
                match forwarded.caller.node_id().filter(|node| self.handler.standing(*node) == Standing::Removed) {
                    Some(node) => Err(removed(node)),
                    None => routes::check_forwarded(request.call, &by, &self.acting(forwarded.caller.clone())),
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
            Some(forwarded) => (self.acting(forwarded.caller), forwarded.addr, true),
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

    /// The caller as the store knows it now.
    fn acting(&self, caller: Caller) -> Caller {
        match caller.node_id() {
            Some(node) => caller.acting(self.handler.standing(node)),
            None => caller,
        }
    }

    fn turn_down(&mut self, stream: StreamId, status: &Status) {
        self.meters.refused_requests.add(1);
        self.send_refusal(stream, status);
    }

    pub(super) fn reply(&mut self, id: ConnectionId, header: Header, body: Bytes) {
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

    pub(super) fn credit(&mut self, id: ConnectionId, header: Header, body: &Bytes) {
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

    pub(super) fn cancel(&mut self, id: ConnectionId, stream: u32) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        if connection.incoming.remove(&stream).is_some() {
            if !connection.authenticated && connection.incoming.is_empty() {
                self.set_deadline(id, Some(self.now + self.settings.limits.handshake));
            }
            self.handler.cancelled(StreamId { connection: id, stream }, &mut self.out);
        }
    }
}
