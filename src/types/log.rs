//! What the Raft log and the snapshots carry.

use serde::{Deserialize, Serialize};

use super::{Change, Index, NodeId, RaftId, Revision, Term};

/// A log entry's place and term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Its term.
    pub term: Term,
    /// Its index.
    pub index: Index,
}

/// The payload of a normal log entry. An entry with no payload is the first of a leader's term.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// A write.
    Change(Change),
    /// A member moved.
    SetAddress {
        /// Which.
        raft_id: RaftId,
        /// Its identity, which must match the member's.
        node_id: NodeId,
        /// Where it listens now.
        addr: String,
    },
    /// Asks every replica for the hash of its state at this entry, and records how far each voter had the log.
    Mark {
        /// The voters' matched index as the leader saw it: a member that comes back with less was rolled back.
        floors: Vec<(RaftId, Index)>,
    },
}

/// A state hash at a mark, as one replica computed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHash {
    /// The mark's log index.
    pub index: Index,
    /// The revision of the state there.
    pub revision: Revision,
    /// The sum.
    pub sum: u128,
}

/// Which Raft group members vote and which learn, as of a log index. Sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// Voters.
    pub voters: Vec<RaftId>,
    /// Learners.
    pub learners: Vec<RaftId>,
}
