//! Who takes part: roles, members of the Raft group, callers.

use serde::{Deserialize, Serialize};

use super::{NodeId, RaftId};

/// A node's role: the OU of its certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs tasks.
    Worker,
    /// Takes part in the Raft group.
    Manager,
}

impl Role {
    /// The certificate's OU.
    pub const fn organizational_unit(self) -> &'static str {
        match self {
            Self::Worker => "swarm-worker",
            Self::Manager => "swarm-manager",
        }
    }

    /// What a person types: `worker` or `manager`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        }
    }
}

/// What the store says of a node, whatever its certificate says: the certificate tells who it is, the store what it may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is not in the store. Perhaps it joined a moment ago, or while this manager was cut off; perhaps it was removed.
    Unknown,
    /// It acts as a worker: also a former manager whose certificate still names it one.
    Worker,
    /// It acts as a manager, if its certificate names it one.
    Manager,
    /// It was a manager and was removed, and its certificate is not over yet.
    Removed,
}

/// Whether a member votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberRole {
    /// Counts towards quorum.
    Voter,
    /// Receives the log until it has caught up; never votes.
    Learner,
}

/// A member of the Raft group. Part of the replicated state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its Raft id.
    pub raft_id: RaftId,
    /// Its identity.
    pub node_id: NodeId,
    /// Where it listens, `host:port`.
    pub addr: String,
    /// Whether it votes.
    pub role: MemberRole,
}

/// The context of a membership entry in the Raft log. Apply decides; a refused one changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberChange {
    /// Adds a learner. `raft_id` must be the next of the counter.
    AddLearner {
        /// The id reserved for it.
        raft_id: RaftId,
        /// Its identity.
        node_id: NodeId,
        /// Where it listens.
        addr: String,
    },
    /// Makes a learner a voter.
    Promote {
        /// Which.
        raft_id: RaftId,
    },
    /// Removes a member; its raft id is never used again.
    Remove {
        /// Which.
        raft_id: RaftId,
    },
    /// The same for a member that leaves the swarm: its node is marked as leaving with it, and so removed soon.
    Leave {
        /// Which.
        raft_id: RaftId,
    },
}

/// Who makes a call. Travels with a forwarded call; a leader checks it again against its own store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Caller {
    /// Root or the daemon's owner, on the local socket.
    Local,
    /// Someone on TLS without a certificate: a node that wants one.
    Anonymous,
    /// A node with a certificate of this swarm's root.
    Node {
        /// CN.
        node_id: NodeId,
        /// OU.
        role: Role,
        /// O.
        cluster_id: super::ClusterId,
        /// Whether the certificate has expired; such a caller may only ask for a new one.
        expired: bool,
    },
}

impl Caller {
    /// The node id, for a caller that has one.
    pub const fn node_id(&self) -> Option<NodeId> {
        match self {
            Self::Node { node_id, .. } => Some(*node_id),
            Self::Local | Self::Anonymous => None,
        }
    }

    /// The caller as the store knows it: a manager by its certificate that the store has as a worker acts as a worker. No
    /// store makes anyone more than its certificate says.
    #[must_use]
    pub fn acting(self, standing: Standing) -> Self {
        match (self, standing) {
            (Self::Node { node_id, role: Role::Manager, cluster_id, expired }, Standing::Worker) => {
                Self::Node { node_id, role: Role::Worker, cluster_id, expired }
            }
            (caller, _) => caller,
        }
    }

    /// Whether this is a manager with a certificate in force.
    pub const fn is_manager(&self) -> bool {
        matches!(self, Self::Node { role: Role::Manager, expired: false, .. })
    }
}
