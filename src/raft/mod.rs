//! Agreement: tikv/raft-rs wrapped in a machine that adds what it leaves out.
//!
//! [`machine::Machine`] takes events (a tick, a peer's message, proposals, "this is synced", "this is applied") and says
//! in [`Effects`] what must be sent, made durable, applied and answered. It has no clock, no I/O and no randomness: a
//! seed and the event sequence determine everything, so that a whole group runs in one thread under simulation.
//! `run` gives it a thread, queues and the clock.
//!
//! What the rest of the program may rely on:
//!
//! - A proposal gets exactly one answer: the outcome from apply, or [`Reply::NotLeader`], [`Reply::Overloaded`], [`Reply::Refused`], [`Reply::Lost`] (certainly not
//!   applied) or [`Reply::Uncertain`] (leadership ended while it was in the log).
//! - No vote and no acknowledgement leaves before what it rests on is synced: such messages travel with the [`Persist`]
//!   that they wait for. A leader's appends leave at once when its term is durable, which a sole voter's is not at first.
//!   Heartbeat and read-index answers leave at once when the term they carry is durable; else a slow disk would silence a
//!   follower and depose a healthy leader.
//! - A membership change is handed to apply only after its commit is synced, apply decides it, and raft-rs learns of it
//!   before anything after it is applied.
//! - Leadership is announced only after the term's own first entry is applied.
//!
//! What raft-rs leaves out and is added here: validation of peers' messages (`validate`), rounds that share many reads
//! and are begun again when lost (`reads`), membership changes one at a time with automatic promotion and a quorum guard
//! (`orders`), failover within milliseconds when the leader's process is gone (`failover`), hand-over when the
//! disk stalls or fills up, snapshots by size with a descriptor in the message and the bytes fetched apart, compaction that
//! spares followers that lag unless the log's key is to go ([`Event::Retire`]) or it cannot be read
//! ([`Event::Unreadable`]), and a comparison of state hashes in which a majority fences a replica that diverged (`fence` in
//! the machine; a leader hands over first). What happened lately is kept in a small ring ([`journal`]).
//!
//! # What a write costs
//!
//! Processor of three managers for one write of 256 bytes, two cores, the client on the same machine; builds of one profile
//! in turn, because the machine's own speed changes by a third from one hour to the next.
//!
//! | what | what it gave |
//! |---|---|
//! | a turn is taken by whoever has queued a little, not by the raft thread (`run`, `sys::stage`); small requests are applied there too | kept: 1 client 690 to 579 µs (p50), 890 to 661 µs of processor; 128 clients 70 to 60 µs |
//! | commits told with the next entries or after 2 ms, not in messages of their own; the log thread woken after the appends are sent | kept: 1 client to 551 µs and 586 µs of processor |
//! | 128, 64 or 32 sockets in a turn of the socket thread instead of all, so that the other stages begin sooner | 512 clients: both processors are at work in 58 % of the time instead of 44, and the rate is the same, because they are two threads of one core: thrown out. On two separate cores it costs: 59,000/s with all, 52,000 with 64, 45,000 with 8 |
//! | sockets asked 4 or 30 times, with a yield between, before the socket thread sleeps | two separate cores, 128 clients: 4 nothing beyond noise, 30 a tenth less: thrown out |
//! | the answer made of what was proposed, not of the request decoded again | kept: a fifth of the socket thread's instructions |
//! | new proposals held until earlier ones are committed, so that batches grow | nothing at 128 clients, 5 % of processor at 16: thrown out |
//!
//! Not here: disk (`wal`), sockets (`net`), what an entry means (`apply`).

pub mod failover;
pub mod journal;
pub mod logger;
pub mod machine;
pub mod orders;
pub mod reads;
pub mod recover;
pub mod run;
pub mod storage;
pub mod validate;

use ::raft::eraftpb::{Entry, Message};
use bytes::Bytes;

pub use reads::Token;
pub use storage::{Fetch, SnapshotMark};

use crate::types::api::{Answer, DiskSpace, RaftReport};
use crate::types::log::StateHash;
use crate::types::object::{Profile, RaftSettings};
use crate::types::{Index, Member, NodeId, Position, RaftId, Status, Term};
use crate::wal::Persist;

/// Timing of a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Milliseconds between ticks.
    pub tick_ms: u64,
    /// A follower waits between this many ticks and twice as many for its leader.
    pub election_ticks: usize,
}

impl Timing {
    /// The timing of a profile.
    pub const fn of(profile: Profile) -> Self {
        match profile {
            Profile::Lan => Self { tick_ms: 100, election_ticks: 10 },
            Profile::Wan => Self { tick_ms: 500, election_ticks: 10 },
            Profile::Sdcard => Self { tick_ms: 500, election_ticks: 20 },
        }
    }
}

/// What raft reads of the replicated state; handed in whenever it changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replicated {
    /// Members, in order of raft id.
    pub members: Vec<Member>,
    /// The raft id that the next member gets.
    pub next_raft_id: RaftId,
    /// When to write snapshots and how much log to keep.
    pub settings: RaftSettings,
}

/// What apply has done since it last said so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The last entry applied.
    pub position: Position,
    /// Membership entries among them, and whether apply accepted each.
    pub members: Vec<(Index, bool)>,
    /// The state hash at the last mark among them.
    pub mark: Option<StateHash>,
    /// The replicated state that raft reads, if it changed.
    pub replicated: Option<Replicated>,
}

/// Something that only raft can do for a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Hands leadership over.
    Transfer {
        /// To this voter, or to the one that is furthest.
        to: Option<NodeId>,
    },
    /// Writes a snapshot now.
    Snapshot,
    /// Adds a learner, which is promoted by itself once it has caught up.
    Join {
        /// Its identity.
        node_id: NodeId,
        /// Where it listens.
        addr: String,
        /// The newest format it understands.
        feature_level: u32,
    },
    /// Removes a member. With `force` and without a leader to ask, a manager goes without being let go, and the others go
    /// on counting it.
    Leave {
        /// Its identity.
        node_id: NodeId,
        /// Even if quorum would be at risk.
        force: bool,
        /// It leaves the swarm: its node is marked with the same entry, and so removed next. Else its node stays, or somebody
        /// has seen to it.
        for_good: bool,
    },
    /// A member moved.
    SetAddress {
        /// Its identity.
        node_id: NodeId,
        /// Where it listens now.
        addr: String,
    },
}

/// How an [`Order`] ended.
#[derive(Clone, Debug, PartialEq)]
pub enum OrderResult {
    /// Carried out.
    Done(Answer),
    /// Not carried out.
    Refused(Status),
    /// Leadership ended while it was in the log: it may still be carried out.
    Uncertain,
    /// Not carried out because leadership is elsewhere or on its way: ask the leader.
    Again,
}

/// What happens to the machine.
#[derive(Debug)]
pub enum Event {
    /// One tick of the profile's length has passed. After a stall one is delivered, not many.
    Tick,
    /// A manager sent a message. The caller has checked its certificate and its hello.
    Peer {
        /// The sender's certificate.
        from: NodeId,
        /// Not yet validated.
        message: Message,
    },
    /// Propose an encoded command.
    Propose {
        /// Returned with the answer.
        token: Token,
        /// `types::log::Command`, encoded.
        command: Bytes,
    },
    /// Tell when a read that arrives now may be answered from the local store.
    Read {
        /// Returned with the answer.
        token: Token,
    },
    /// Do something only raft can do.
    Order {
        /// Returned with the answer.
        token: Token,
        /// What.
        order: Order,
    },
    /// Everything up to this persist number is durable.
    Persisted {
        /// `wal::Persist::number`.
        number: u64,
    },
    /// Apply got further.
    Applied(Applied),
    /// A log read came back; no entries if they are gone.
    Fetched {
        /// What was asked.
        fetch: Fetch,
        /// What was found.
        entries: Vec<Entry>,
    },
    /// A snapshot of our own state is on disk.
    SnapshotCreated {
        /// It.
        mark: SnapshotMark,
    },
    /// It could not be written.
    SnapshotFailed,
    /// A leader's snapshot was fetched, checked, and is on disk.
    SnapshotFetched {
        /// Its place.
        position: Position,
        /// Size of the file.
        bytes: u64,
    },
    /// It could not be fetched.
    SnapshotNotFetched {
        /// Its place.
        position: Position,
    },
    /// A follower is fetching the snapshot we offered.
    SnapshotServing {
        /// Who.
        node: NodeId,
    },
    /// Connections to a peer came up or are all gone.
    Link {
        /// The peer.
        node: NodeId,
        /// One is up now.
        up: bool,
        /// Its address refused a redial: the process is gone.
        refused: bool,
    },
    /// A message to a peer was dropped.
    Unreachable {
        /// The peer.
        node: NodeId,
    },
    /// A peer's ping came back.
    Measured {
        /// The peer.
        node: NodeId,
        /// Round trip, microseconds.
        rtt_us: u64,
        /// Its median sync, microseconds.
        sync_us: u64,
        /// Its last state hash: log index and sum.
        mark: (Index, u128),
    },
    /// A peer's disk is low, or is not any more.
    PeerDisk {
        /// The peer.
        node: NodeId,
        /// Whether it is.
        low: bool,
    },
    /// What is on disk up to this entry is sealed with a key that is to go: write a snapshot that replaces all of it, and let
    /// go of the log, whoever lags.
    Retire {
        /// The last entry.
        upto: Index,
    },
    /// A follower needs entries up to this one, and the log cannot deliver them: a snapshot is to take their place.
    Unreadable {
        /// The last of those that were asked for.
        upto: Index,
    },
    /// How much room there is on our own disk.
    DiskSpace(DiskSpace),
    /// Our own median sync, microseconds.
    OwnSync {
        /// Microseconds.
        sync_us: u64,
    },
    /// Memory of this process no longer holds what was written to it.
    Rotten {
        /// Where, for people.
        what: String,
    },
    /// The process stops: hand leadership over.
    Stopping,
}

/// A message and the node it goes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// The addressee's certificate.
    pub to: NodeId,
    /// For its raft thread.
    pub message: Message,
}

/// An answer to a token.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// This node does not lead; nothing entered the log.
    NotLeader(Token),
    /// A budget is used up; nothing entered the log.
    Overloaded(Token),
    /// Changes are not taken now, for a reason that the caller should read; nothing entered the log.
    Refused(Token, Status),
    /// Another entry was committed in its place: it was not applied and never will be.
    Lost(Token),
    /// Leadership ended while it was in the log: it may still be committed.
    Uncertain(Token),
    /// These reads may be answered from the local store now.
    ReadReady(Vec<Token>),
    /// These reads found no leader in time.
    ReadFailed(Vec<Token>),
    /// An order ended.
    Order(Token, OrderResult),
}

/// Who leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The leader, if known.
    pub leader: Option<NodeId>,
    /// This node leads and has applied its term's first entry.
    pub serving: bool,
    /// The term.
    pub term: Term,
}

/// A snapshot to fetch from a leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchSnapshot {
    /// Who has it.
    pub from: NodeId,
    /// Its place, and voters and learners there.
    pub mark: SnapshotMark,
}

/// Why the node must stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// It is no longer a member.
    #[error("this node is no longer a member")]
    Removed,
    /// Its state or its log cannot be trusted.
    #[error("{0}")]
    Fenced(String),
    /// Its memory cannot be trusted; what is on disk was written before and is checked when it is read.
    #[error("{0}")]
    Rotten(String),
}

/// What must happen, in this order: `messages` leave, `persist` is written (each releases its messages when synced),
/// the rest at leisure.
#[derive(Debug, Default)]
pub struct Effects {
    /// Leave at once.
    pub messages: Vec<Outgoing>,
    /// Make durable, in order; then send what rests on it.
    pub persist: Vec<(Persist, Vec<Outgoing>)>,
    /// The state is replaced by the fetched snapshot of this place, before anything in `apply`.
    pub install: Option<Position>,
    /// Apply, in order; a token gets the outcome.
    pub apply: Vec<(Entry, Option<Token>)>,
    /// Answers.
    pub replies: Vec<Reply>,
    /// Read old entries for a follower.
    pub fetch: Vec<Fetch>,
    /// Write a snapshot of the state.
    pub create_snapshot: bool,
    /// Fetch a snapshot.
    pub fetch_snapshot: Option<FetchSnapshot>,
    /// Drop the log before this.
    pub compact: Option<Index>,
    /// Who leads changed.
    pub leadership: Option<Leadership>,
    /// Members changed: keep connections to these.
    pub peers: Option<Vec<Member>>,
    /// Stop the node.
    pub stop: Option<Stop>,
    /// For the journal.
    pub happened: Vec<journal::Happened>,
}

/// A view of the machine for people.
pub type Report = RaftReport;
