//! A node's session with a manager: what the swarm wants of it, as long as the connection lasts.

use std::time::Duration;

use super::{Client, ClientError};
use crate::codec::frame::{END, FrameKind, INITIAL_CREDIT};
use crate::codec::request::Ping;
use crate::codec::{envelope, request};
use crate::sys::time::{Instant, monotonic, wall_ms};
use crate::types::api::{Call, Hello, SessionItem, SessionRequest};
use crate::types::limits::MAX_FRAME_BYTES;
use crate::types::{Code, Status};

/// A stream of [`SessionItem`]s. It ends with its connection: whoever holds it chooses the next manager.
#[derive(Debug)]
pub struct Session {
    client: Client,
    stream: u32,
    /// Bytes consumed and not granted again.
    ungranted: u32,
    /// When the manager last said anything.
    heard: Instant,
    ping_at: Instant,
    clock_offset_ms: Option<i64>,
}

impl Session {
    /// Begins one over the connection of `client`.
    pub fn begin(mut client: Client, request: &SessionRequest, timeout: Duration) -> Result<Self, ClientError> {
        let deadline = monotonic() + timeout;
        let body = request::encode(Call::Session, u32::MAX, None, &envelope::encode(request));
        let stream = client.connection(deadline)?.open(&body, deadline)?;
        let now = monotonic();
        Ok(Self { client, stream, ungranted: 0, heard: now, ping_at: now, clock_offset_ms: None })
    }

    /// What the manager said of itself.
    pub const fn hello(&self) -> &Hello {
        self.client.hello()
    }

    /// The manager's clock minus ours, milliseconds, once it is known.
    pub const fn clock_offset_ms(&self) -> Option<i64> {
        self.clock_offset_ms
    }

    /// The next item, or `None` once the deadline has passed. The manager is pinged meanwhile: one that says nothing for
    /// `SILENCE` is given up.
    pub fn next_until(&mut self, deadline: Instant) -> Result<Option<SessionItem>, ClientError> {
        loop {
            let now = monotonic();
            if now.since(self.heard) > SILENCE {
                return Err(lost("the manager has fallen silent"));
            }
            let stream = self.stream;
            let Some(connection) = self.client.connection.as_mut() else {
                return Err(lost("the connection of the session is gone"));
            };
            if now >= self.ping_at {
                let ping = Ping { sent_ns: now.as_nanos(), wall_ms: wall_ms(), ..Ping::default() };
                connection.send(FrameKind::Ping, 0, &ping.encode(), now + SILENCE)?;
                self.ping_at = now + PING;
            }
            let (header, body) = match connection.receive(Some(deadline.min(self.ping_at))) {
                Ok(frame) => frame,
                Err(ClientError::Lost(status)) if status.code == Code::DeadlineExceeded => {
                    if monotonic() >= deadline {
                        return Ok(None);
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.heard = monotonic();
            match header.kind {
                FrameKind::Pong => {
                    let pong = Ping::decode(&body).map_err(ClientError::undecodable)?;
                    self.clock_offset_ms = Some(offset_ms(&pong));
                }
                _ if header.stream != stream => {}
                FrameKind::Answer if header.flags & END != 0 => return Err(lost("the manager ended the session")),
                FrameKind::Answer => {
                    self.ungranted += header.length;
                    if self.ungranted >= INITIAL_CREDIT / 2 {
                        let credit = self.ungranted.to_le_bytes();
                        connection.send(FrameKind::Credit, stream, &credit, monotonic() + SILENCE)?;
                        self.ungranted = 0;
                    }
                    return envelope::decode(&body, MAX_FRAME_BYTES).map(Some).map_err(ClientError::undecodable);
                }
                FrameKind::Error => return Err(ClientError::refusal(&body)),
                FrameKind::Credit => {}
                _ => return Err(ClientError::garbled("a frame that is no part of a session")),
            }
        }
    }
}

impl Client {
    /// The manager's clock minus ours, milliseconds.
    pub fn clock_offset_ms(&mut self, timeout: Duration) -> Result<i64, ClientError> {
        let deadline = monotonic() + timeout;
        let connection = self.connection(deadline)?;
        let ping = Ping { sent_ns: monotonic().as_nanos(), wall_ms: wall_ms(), ..Ping::default() };
        connection.send(FrameKind::Ping, 0, &ping.encode(), deadline)?;
        loop {
            let (header, body) = connection.receive(Some(deadline))?;
            if header.kind == FrameKind::Pong {
                return Ping::decode(&body).map(|pong| offset_ms(&pong)).map_err(ClientError::undecodable);
            }
        }
    }
}

/// The other side read its clock about half a round trip ago.
fn offset_ms(pong: &Ping) -> i64 {
    let rtt_ms = monotonic().as_nanos().saturating_sub(pong.sent_ns) / 1_000_000;
    let then_ms = wall_ms().saturating_sub(rtt_ms / 2);
    i64::try_from(i128::from(pong.wall_ms) - i128::from(then_ms)).unwrap_or(i64::MAX)
}

fn lost(message: &str) -> ClientError {
    ClientError::Lost(Status::new(Code::Unavailable, message))
}

/// Between two pings; the period of swarmkit's heartbeats.
const PING: Duration = Duration::from_secs(5);
/// A manager that says nothing for three of them is gone.
pub const SILENCE: Duration = Duration::from_secs(15);
