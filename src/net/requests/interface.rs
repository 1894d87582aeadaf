//! What the requests machine takes in and gives out, and the service it asks: plain data and one trait.

use bytes::Bytes;

use crate::net::handler::{Incoming, Reply, StreamId};
use crate::raft::Order;
use crate::sys::metrics::Metrics;
use crate::sys::time::Instant;
use crate::types::api::{Call, Forwarded};
use crate::types::error::Status;
use crate::types::{Change, NodeId, ObjectId, Outcome};

/// Names one thing that this machine asked for; never used again. Below 2^62, so that the leader's services and the node
/// itself can ask under tokens above.
pub type Token = u64;

/// Decides what requests mean, from the store as it is when asked.
pub trait Service: Send {
    /// The state of a stream between two parts.
    type Stream: Send;

    /// Decides what to do with `request`. `attempt` counts the rebuilds of one write after conflicts; `confirmed`: a
    /// ReadIndex round that began after the request arrived has been applied here.
    fn decide(&mut self, request: &Incoming, attempt: u32, confirmed: bool) -> Step<Self::Stream>;

    /// Whether to decide takes milliseconds, of which a turn of the loop has few.
    fn takes_long(&self, request: &Incoming, confirmed: bool) -> bool {
        let _ = (request, confirmed);
        false
    }

    /// The change proposed by this attempt ended so, by the log's own word. `object`: the one that it writes, unless it
    /// writes several.
    fn ended(
        &mut self,
        request: &Incoming,
        attempt: u32,
        object: Option<ObjectId>,
        outcome: &Outcome,
    ) -> Step<Self::Stream>;

    /// The next part of a stream, of at most `room` bytes.
    fn pull(&mut self, now: Instant, stream: &mut Self::Stream, room: usize) -> Pull;

    /// The store has moved, and the stream has a time at which it will be pulled anyway: whether to pull it now.
    fn has_news(&mut self, stream: &mut Self::Stream) -> bool {
        let _ = stream;
        true
    }

    /// Whether a stream holds on to something that costs memory until it has gone on.
    fn holds(&self, stream: &Self::Stream) -> bool;

    /// Whether the leader's `Unavailable` is what any leader says for now, because something outside the group of managers
    /// is waited for. It is passed back to the caller, who may have other things to do.
    fn is_word_of_every_leader(&self, status: &Status) -> bool {
        let _ = status;
        false
    }
}

/// What a service decided.
#[derive(Debug)]
pub enum Step<W> {
    /// The answer.
    Answer(Bytes),
    /// Wrong whatever the state says, or definite by the log's word.
    Refuse(Status),
    /// Drawn from the store: sent only after a ReadIndex round that began after the request arrived.
    RefuseIfConfirmed(Status),
    /// A linearizable read: decide again after a round.
    Barrier,
    /// Propose this.
    Propose(Change),
    /// Build the change again, as the next attempt.
    Rebuild,
    /// Something only raft can do.
    Raft(Order),
    /// A stream of answers, pulled as far as its receiver's credit goes.
    Stream(W),
    /// The node answers this call itself, and this machine forgets it.
    Elsewhere,
}

/// The next part of a stream.
#[derive(Debug)]
pub enum Pull {
    /// A part.
    Part(Bytes),
    /// The next part is larger than the room.
    Full,
    /// Nothing yet after a search that took its time: asked again in the next turn.
    Searching,
    /// Nothing until the store moves, or until the moment named.
    Idle(Option<Instant>),
    /// Everything has been sent.
    Done,
    /// The stream ends, because of this.
    End(Status),
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A request arrived that the route table admits.
    Request(Incoming),
    /// Its caller is gone or lost interest.
    Cancelled(StreamId),
    /// The receiver of a stream takes so many bytes in all now.
    Credit(StreamId, u32),
    /// A call made with [`Effect::Forward`] or [`Effect::BackDial`] ended.
    Replied {
        /// The call's.
        token: Token,
        /// How.
        reply: Reply,
    },
    /// What became of a proposal.
    Outcome {
        /// The proposal's.
        token: Token,
        /// How it ended.
        result: ProposalResult,
    },
    /// The store holds everything that was committed when the round began.
    ReadReady {
        /// The round's.
        token: Token,
    },
    /// The round came to nothing: leadership moved, or time ran out.
    ReadFailed {
        /// The round's.
        token: Token,
    },
    /// An order was carried out or refused. `Unavailable` promises that nothing was done, `Unknown` promises nothing.
    RaftResult {
        /// The order's.
        token: Token,
        /// The answer's envelope, or why not.
        result: Result<Bytes, Status>,
    },
    /// Who leads, as this manager knows it now.
    Leadership(Leadership),
    /// The store has moved on.
    StoreMoved,
    /// All that arrived in this turn of the loop has been delivered, or [`super::Requests::next_deadline`] has come.
    TurnEnded,
}

/// Who leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The leader, if one is known.
    pub leader: Option<NodeId>,
    /// This manager leads and has applied its own term's first entry.
    pub serving: bool,
    /// Set while no leader is known and this manager sees no reachable majority: what to tell callers, at once.
    pub no_majority: Option<Status>,
}

/// How a proposal ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProposalResult {
    /// It was committed and judged.
    Applied(Outcome),
    /// It never entered the log.
    NotProposed(NotProposed),
    /// Raft does not take it; nothing entered the log.
    Refused(Status),
    /// Another entry was committed in its place: certainly not applied.
    Lost,
    /// Leadership ended while it was in the log: it may still be committed.
    Uncertain,
}

/// Why a proposal never entered the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotProposed {
    /// This manager does not lead.
    NotLeader,
    /// Too much is under way already.
    Overloaded,
}

/// Something to do. Its `Debug` form shows the length of what requests and changes carry, which may be secret.
#[derive(Clone)]
pub enum Effect {
    /// Send an answer, or a part of a stream of them.
    Answer {
        /// Where to.
        stream: StreamId,
        /// The body.
        body: Bytes,
        /// Nothing follows.
        end: bool,
    },
    /// Refuse a request, or end a stream.
    Refuse {
        /// Where to.
        stream: StreamId,
        /// Why.
        status: Status,
    },
    /// Propose an entry; ends in [`Event::Outcome`].
    Propose {
        /// Comes back with the outcome.
        token: Token,
        /// The envelope of [`crate::types::log::Command::Change`].
        command: Vec<u8>,
    },
    /// Begin a ReadIndex round now; ends in [`Event::ReadReady`] or [`Event::ReadFailed`].
    Read {
        /// Comes back with the result.
        token: Token,
    },
    /// Order something of raft; ends in [`Event::RaftResult`].
    Raft {
        /// Comes back with the result.
        token: Token,
        /// What.
        order: Order,
    },
    /// Pass a call on; ends in [`Event::Replied`].
    Forward {
        /// Comes back with the reply.
        token: Token,
        /// The leader.
        to: NodeId,
        /// What is asked.
        call: Call,
        /// What is left of its time, milliseconds.
        deadline_ms: u32,
        /// On whose behalf.
        forwarded: Forwarded,
        /// The call's envelope.
        body: Bytes,
    },
    /// Drop a call made before: its reply is no longer wanted.
    Abandon {
        /// The call's.
        token: Token,
    },
    /// Call [`Call::Health`] on the address that a joiner gave, where it must prove to be `node`; ends in
    /// [`Event::Replied`]. A manager that cannot be reached would cost the swarm a vote.
    BackDial {
        /// Comes back with the reply.
        token: Token,
        /// Who must answer.
        node: NodeId,
        /// Where.
        addr: String,
    },
    /// The node answers this request itself.
    Elsewhere(Incoming),
}

impl std::fmt::Debug for Effect {
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
            Self::Propose { token, command } => {
                f.debug_struct("Propose").field("token", token).field("command_bytes", &command.len()).finish()
            }
            Self::Read { token } => f.debug_struct("Read").field("token", token).finish(),
            Self::Raft { token, order } => f.debug_struct("Raft").field("token", token).field("order", order).finish(),
            Self::Forward { token, to, call, deadline_ms, forwarded, body } => f
                .debug_struct("Forward")
                .field("token", token)
                .field("to", to)
                .field("call", call)
                .field("deadline_ms", deadline_ms)
                .field("forwarded", forwarded)
                .field("body_bytes", &body.len())
                .finish(),
            Self::Abandon { token } => f.debug_struct("Abandon").field("token", token).finish(),
            Self::BackDial { token, node, addr } => {
                f.debug_struct("BackDial").field("token", token).field("node", node).field("addr", addr).finish()
            }
            Self::Elsewhere(incoming) => f.debug_tuple("Elsewhere").field(incoming).finish(),
        }
    }
}

/// How much may wait here.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests that wait for a leader.
    pub held: usize,
    /// Those of them whose callers show no certificate in force. They cannot take the places of members.
    pub held_of_strangers: usize,
    /// Bytes of their bodies.
    pub held_bytes: usize,
    /// Bytes of the bodies that wait because another request changes the same object.
    pub queued_bytes: usize,
    /// Requests under way in all.
    pub requests: usize,
    /// Open streams but for nodes' sessions.
    pub streams: usize,
    /// Nodes' sessions.
    pub sessions: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            held: 4096,
            held_of_strangers: 256,
            held_bytes: 64 << 20,
            queued_bytes: 64 << 20,
            requests: 32_768,
            streams: 1024,
            sessions: 16_384,
        }
    }
}

/// How much is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Load {
    /// Requests that wait for a leader.
    pub held: usize,
    /// Requests without an answer yet, those included.
    pub requests: usize,
    /// Open streams.
    pub streams: usize,
}

impl Load {
    /// Sets the gauges `skep_requests_held`, `skep_requests` and `skep_streams`.
    pub fn show(self, metrics: &Metrics) {
        for (name, value) in
            [("skep_requests_held", self.held), ("skep_requests", self.requests), ("skep_streams", self.streams)]
        {
            metrics.gauge(name).set(value as u64);
        }
    }
}
