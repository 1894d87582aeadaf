//! The life of a connection after its socket exists: TLS, hello, frames, end. Here bytes become frames, and each frame
//! finds who takes it.

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
use crate::types::{Caller, NodeId, Role, Standing};

mod end;
mod greeting;
mod pings;
mod streams;

use greeting::{demoted, removed, unknown};

/// Reads of one connection in one turn; the rest waits for the next, so that nobody is kept waiting by one who sends
/// without end.
const READS: usize = 16;

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
            self.meters.calls.add(1);
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
            FrameKind::Hello => self.late_hello(id, header, &body),
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
        self.meters.calls.add(sent.calls);
        if connection.stage == Stage::Closing && !sent.blocked && !connection.output_ended {
            connection.output_ended = true;
            connection.link.end_output(&mut self.staging);
        }
        if self.watch_room(id, sent.blocked).is_err() {
            self.close(id);
        }
    }
}
