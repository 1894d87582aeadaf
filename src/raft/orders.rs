//! What callers asked that only raft can do, and how far it is: membership changes one at a time, transfers, snapshots.

use std::collections::VecDeque;

use super::{OrderResult, Reply, Token};
use crate::sys::time::Instant;
use crate::types::member::MemberChange;
use crate::types::{Index, NodeId, RaftId, Term};

/// Membership orders held at once; each takes a round of the group.
const MAX_WAITING: usize = 64;

/// A membership change that waits for its turn.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Who asked; `None` for the leader's own promotions.
    pub token: Option<Token>,
    /// Whom it concerns.
    pub node_id: NodeId,
    /// What.
    pub kind: WantedKind,
}

/// What a membership change does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WantedKind {
    /// Adds a learner at this address.
    Join(String),
    /// Makes a learner a voter.
    Promote(RaftId),
    /// Removes a member.
    Remove,
    /// Removes a member, and marks its node.
    Leave,
}

/// A change in the log.
#[derive(Clone, Debug)]
pub struct Proposed {
    /// Who asked.
    pub token: Option<Token>,
    /// Its entry.
    pub index: Index,
    /// Its entry's term.
    pub term: Term,
    /// What was proposed.
    pub change: MemberChange,
    /// Whom it concerns.
    pub node_id: NodeId,
}

/// A transfer under way.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// Who asked; `None` for the leader's own.
    pub token: Option<Token>,
    /// To whom.
    pub to: RaftId,
    /// The term it was begun in.
    pub term: Term,
    /// When this member's leadership ended under it.
    pub ended: Option<Instant>,
}

/// Orders on their way.
#[derive(Debug, Default)]
pub struct Orders {
    /// Membership changes not yet proposed.
    pub waiting: VecDeque<Wanted>,
    /// The one in the log.
    pub proposed: Option<Proposed>,
    /// The transfer under way.
    pub transfer: Option<Transfer>,
    /// Who waits for a snapshot.
    pub snapshots: Vec<Token>,
    /// Address changes in the log.
    pub addresses: Vec<(Index, Term, Token)>,
}

impl Orders {
    /// Takes a membership change, or refuses when too many wait.
    pub fn want(&mut self, wanted: Wanted) -> bool {
        if self.waiting.len() >= MAX_WAITING {
            return false;
        }
        self.waiting.push_back(wanted);
        true
    }

    /// Whether a change for this node is on its way.
    pub fn concerns(&self, node_id: NodeId) -> bool {
        self.waiting.iter().any(|wanted| wanted.node_id == node_id)
            || self.proposed.as_ref().is_some_and(|proposed| proposed.node_id == node_id)
    }

    /// Leadership ended: everybody asks the next leader.
    pub fn leadership_ended(&mut self) -> Vec<Reply> {
        let waiting = std::mem::take(&mut self.waiting).into_iter().filter_map(|wanted| wanted.token);
        let proposed = self.proposed.take().and_then(|proposed| proposed.token);
        let addresses = std::mem::take(&mut self.addresses).into_iter().map(|(_, _, token)| token);
        let again = waiting.map(|token| Reply::Order(token, OrderResult::Again));
        let in_log = proposed.into_iter().chain(addresses);
        again.chain(in_log.map(|token| Reply::Order(token, OrderResult::Uncertain))).collect()
    }
}
