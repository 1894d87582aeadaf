//! The seam between the socket loop and whoever decides.
//!
//! The loop owns sockets, TLS, frames and flow control; a [`Handler`] owns requests. The loop calls the handler on its
//! own thread with what arrived, and carries out the [`Command`]s it leaves in the [`Outbox`]. Neither blocks.

use bytes::Bytes;

use crate::sys::time::Instant;
use crate::types::api::{Call, Forwarded, Hello};
use crate::types::{Caller, NodeId, Standing, Status};

/// A connection; never used again within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Where an answer goes: a stream of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    /// The connection.
    pub connection: ConnectionId,
    /// The stream's number on it.
    pub stream: u32,
}

/// A request that arrived whole and passed the route table: this caller may make it here. Its `Debug` form shows the
/// length of the body, which may be secret.
#[derive(Clone)]
pub struct Incoming {
    /// Where the answer goes.
    pub stream: StreamId,
    /// Who asks; for a forwarded call, the original caller.
    pub caller: Caller,
    /// Where the caller connected from, `host:port`; empty for the local socket.
    pub addr: String,
    /// A manager passed this on: it must not be passed on again.
    pub forwarded: bool,
    /// What is asked.
    pub call: Call,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// The call's envelope.
    pub body: Bytes,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming")
            .field("stream", &self.stream)
            .field("caller", &self.caller)
            .field("addr", &self.addr)
            .field("forwarded", &self.forwarded)
            .field("call", &self.call)
            .field("deadline", &self.deadline)
            .field("body_bytes", &self.body.len())
            .finish()
    }
}

/// What became of a call that the handler made with [`Command::Call`]. Its `Debug` form shows the length of the answer.
#[derive(Clone)]
pub enum Reply {
    /// An answer, or a part of a stream of answers; `end` on the last.
    Answer {
        /// The envelope (or raw bytes, for a snapshot).
        body: Bytes,
        /// Nothing follows.
        end: bool,
    },
    /// Refused by the other side.
    Refused(Status),
    /// The connection broke, or none is up: the call may or may not have been carried out. `sent` tells whether it left.
    Lost {
        /// It was written to a connection.
        sent: bool,
    },
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Answer { body, end } => {
                f.debug_struct("Answer").field("body_bytes", &body.len()).field("end", end).finish()
            }
            Self::Refused(status) => f.debug_tuple("Refused").field(status).finish(),
            Self::Lost { sent } => f.debug_struct("Lost").field("sent", sent).finish(),
        }
    }
}

/// Decides about what arrives. Called on the net thread only; must not block.
pub trait Handler: Send {
    /// What other threads send to the net thread.
    type Completion: Send + 'static;

    /// The hello this node sends on a connection that begins now.
    fn hello(&mut self) -> Hello;
    /// A manager's hello arrived; its protocol number, swarm and node id were checked against this node's and the
    /// certificate. Refusing closes the connection after the status was sent; nothing else of the connection is looked at
    /// before this returns. The side that was dialled sends its own hello only after this one was accepted.
    fn greeted(&mut self, caller: &Caller, hello: &Hello) -> Result<(), Status>;
    /// A peer refused this node's hello, or ended the connection with a reason.
    fn turned_away(&mut self, peer: Option<NodeId>, status: &Status, out: &mut Outbox);
    /// A request.
    fn request(&mut self, now: Instant, request: Incoming, out: &mut Outbox);
    /// The caller of a stream lost interest, or its connection closed.
    fn cancelled(&mut self, stream: StreamId, out: &mut Outbox);
    /// The receiver of a stream takes more; `available` is what it takes in all now. At first it takes
    /// `codec::frame::INITIAL_CREDIT`.
    fn credit(&mut self, stream: StreamId, available: u32, out: &mut Outbox);
    /// The reply to a call made with this token.
    fn replied(&mut self, now: Instant, token: u64, reply: Reply, out: &mut Outbox);
    /// A frame of Raft messages from a greeted manager.
    fn raft(&mut self, from: NodeId, body: Bytes, out: &mut Outbox);
    /// Appends for a manager were dropped: no connection was up, or too much waited to be sent on it. Called for each
    /// frame, which may be thousands of times in a turn.
    fn raft_dropped(&mut self, peer: NodeId);
    /// The first usable connection to a manager came up, whoever dialled.
    fn connected(&mut self, peer: NodeId, out: &mut Outbox);
    /// The last usable connection to a manager closed. `refused`: its address refused the redial too (its process is
    /// gone), which is known within milliseconds; that it did not is told 300 ms after the loss. A redial that succeeds
    /// within this time means that nothing is told.
    fn disconnected(&mut self, peer: NodeId, refused: bool, out: &mut Outbox);
    /// A pong: round trip and the peer's clock minus ours, and what the peer reports of itself.
    fn measured(&mut self, peer: NodeId, rtt_us: u64, clock_offset_ms: i64, ping: crate::codec::request::Ping);
    /// What this node reports of itself in its pings and pongs (`sent_ns` and `wall_ms` are filled in by the loop).
    fn ping(&mut self) -> crate::codec::request::Ping;
    /// Other threads sent these, in order.
    fn completed(&mut self, now: Instant, completions: Vec<Self::Completion>, out: &mut Outbox);
    /// Called after every turn of the loop, when all that arrived has been handed over: the place to act once for many.
    fn turn_ended(&mut self, now: Instant, out: &mut Outbox);
    /// Called when everything of a turn is written and the loop is about to wait: what was queued for other threads since
    /// [`Handler::turn_ended`] must be known to them by the end of this.
    fn turn_written(&mut self) {}
    /// When to call [`Handler::turn_ended`] at the latest though nothing arrives; `None` when nothing is pending.
    fn next_deadline(&self) -> Option<Instant>;
    /// An HTTP GET on the `--http` listener: status code, content type, body.
    fn http(&mut self, path: &str) -> (u16, &'static str, String);
    /// What the store says of a node now. Asked for every connection that is made and every request; when it changes for
    /// the worse, [`Command::Judge`] has it asked for the connections that are open.
    fn standing(&self, node: NodeId) -> Standing;
    /// Whether a manager whose certificate has expired may be a peer all the same, for as long as a link of such a one lives:
    /// managers that were all off past the end of their certificates find no leader, who alone can renew them, unless they
    /// take each other as they are. It may ask for nothing but a certificate.
    fn admits_expired(&self, node: NodeId) -> bool;
}

/// Something for the loop to do. Its `Debug` form shows lengths where bodies are.
#[derive(Clone)]
pub enum Command {
    /// Send an answer, or a part of one; `end` closes the stream. The parts of a call that is a stream must stay within
    /// its credit; any other answer is one part, with `end`.
    Answer {
        /// Where to.
        stream: StreamId,
        /// The body.
        body: Bytes,
        /// Nothing follows.
        end: bool,
    },
    /// Refuse a request.
    Refuse {
        /// Where to.
        stream: StreamId,
        /// Why.
        status: Status,
    },
    /// Call another manager over any live connection; replies come back under `token`, never before the next turn. With
    /// [`Target::Address`] a connection is made for this call alone, and one that cannot be made is a
    /// [`Reply::Refused`] with `Unavailable`, or with what the other side said.
    Call {
        /// Chosen by the handler.
        token: u64,
        /// Whom.
        to: Target,
        /// What.
        call: Call,
        /// How long the other side may take, milliseconds: for the answer, or from one part of a stream to the next.
        /// After that the reply is [`Reply::Lost`].
        deadline_ms: u32,
        /// On whose behalf.
        forwarded: Option<Forwarded>,
        /// The call's envelope.
        body: Bytes,
    },
    /// Take more of a stream of replies.
    Grant {
        /// The call's token.
        token: u64,
        /// Bytes more.
        bytes: u32,
    },
    /// Drop a call made before.
    Abandon {
        /// The call's token.
        token: u64,
    },
    /// Send Raft messages over any live connection; dropped when none is up, which [`Handler::disconnected`] has told,
    /// or when too much waits to be sent on it. `urgent` ones overtake appends. Other threads use `NetHandle::send_raft`.
    Raft {
        /// To whom.
        to: NodeId,
        /// Messages as `codec::raft_message` encodes them.
        body: Vec<u8>,
        /// Votes, heartbeats and their answers.
        urgent: bool,
    },
    /// Keep a connection to each of these, and to nobody else.
    Peers(Vec<(NodeId, String)>),
    /// Dial those at once whose turn has not come yet: why they turned this node away is over.
    Redial,
    /// Close every connection of a node.
    Disconnect(NodeId),
    /// These nodes were removed, or are managers no more: end the connections that they may not have, in both directions,
    /// with the reason. `None`: it is not known of whom that is true.
    Judge(Option<Vec<NodeId>>),
    /// Accept and make no connections any more, refuse requests, and end the loop once what is queued is written, or
    /// after a second.
    Shutdown,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Answer { stream, body, end } => f
                .debug_struct("Answer")
                .field("stream", stream)
                .field("body_bytes", &body.len())
                .field("end", end)
                .finish(),
            Self::Refuse { stream, status } => {
                f.debug_struct("Refuse").field("stream", stream).field("status", status).finish()
            }
            Self::Call { token, to, call, deadline_ms, forwarded, body } => f
                .debug_struct("Call")
                .field("token", token)
                .field("to", to)
                .field("call", call)
                .field("deadline_ms", deadline_ms)
                .field("forwarded", forwarded)
                .field("body_bytes", &body.len())
                .finish(),
            Self::Grant { token, bytes } => {
                f.debug_struct("Grant").field("token", token).field("bytes", bytes).finish()
            }
            Self::Abandon { token } => f.debug_struct("Abandon").field("token", token).finish(),
            Self::Raft { to, body, urgent } => {
                f.debug_struct("Raft").field("to", to).field("body_bytes", &body.len()).field("urgent", urgent).finish()
            }
            Self::Peers(peers) => f.debug_tuple("Peers").field(peers).finish(),
            Self::Redial => f.write_str("Redial"),
            Self::Disconnect(node) => f.debug_tuple("Disconnect").field(node).finish(),
            Self::Judge(nodes) => f.debug_tuple("Judge").field(nodes).finish(),
            Self::Shutdown => f.write_str("Shutdown"),
        }
    }
}

/// Whom a [`Command::Call`] reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A known manager, over any live connection.
    Node(NodeId),
    /// A manager at this address, which must prove to be this node.
    Address(NodeId, String),
}

/// Commands collected while the handler runs.
#[derive(Debug, Default)]
pub struct Outbox {
    /// In order.
    pub commands: Vec<Command>,
}

impl Outbox {
    /// Sends the only answer of a stream.
    pub fn answer(&mut self, stream: StreamId, body: impl Into<Bytes>) {
        self.commands.push(Command::Answer { stream, body: body.into(), end: true });
    }

    /// Refuses a request.
    pub fn refuse(&mut self, stream: StreamId, status: Status) {
        self.commands.push(Command::Refuse { stream, status });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_travels_is_shown_by_its_length() {
        const MARKER: &str = "PLANTED-SECRET";
        let stream = StreamId { connection: ConnectionId(1), stream: 1 };
        let body = Bytes::from_static(MARKER.as_bytes());
        let incoming = Incoming {
            stream,
            caller: Caller::Local,
            addr: String::new(),
            forwarded: false,
            call: Call::Write,
            deadline: Instant::from_nanos(0),
            body: body.clone(),
        };
        let call = Command::Call {
            token: 1,
            to: Target::Node(NodeId(1)),
            call: Call::Write,
            deadline_ms: 1,
            forwarded: None,
            body: body.clone(),
        };
        let commands = vec![
            Command::Answer { stream, body: body.clone(), end: true },
            call,
            Command::Raft { to: NodeId(1), body: body.to_vec(), urgent: false },
        ];
        let reply = Reply::Answer { body, end: true };
        // Bytes in a vector are printed as numbers.
        let numbers = format!("{:?}", MARKER.as_bytes());
        for shown in [format!("{incoming:?}"), format!("{:?}", Outbox { commands }), format!("{reply:?}")] {
            assert!(!shown.contains(MARKER) && !shown.contains(&numbers[1..20]), "{shown}");
            assert!(shown.contains("body_bytes: 14"), "{shown}");
        }
    }
}
