//! What managers said to each other, held against what their disks hold: then, and after every restart.
//!
//! The other checkers see harm that was done. A promise that was given too early does harm only when a crash, an election
//! and the right messages meet, so that it is looked at by itself as well.

use std::collections::BTreeMap;

use raft::eraftpb::{Message, MessageType};
use skep::types::{Index, NodeId, Position};
use skep::wal::HardState;

use crate::failure::ensure;

/// What a member has said and must not forget.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    term: u64,
    /// The newest term it voted in, and for whom.
    vote: (u64, u64),
    /// The newest term it acknowledged entries in, and up to where.
    acknowledged: (u64, u64),
    /// The newest membership entry it applied.
    member: Index,
    /// How far it has applied the log.
    applied: Index,
}

/// The promises of the whole swarm.
#[derive(Debug, Default)]
pub struct Promises {
    said: BTreeMap<NodeId, Said>,
    /// How far each log has ever been durable.
    durable: BTreeMap<NodeId, Index>,
}

impl Promises {
    /// A message leaves a member whose disk holds `written` and the log up to `last`.
    pub fn said(&mut self, from: NodeId, message: &Message, written: HardState, last: Index) {
        if matches!(message.msg_type, MessageType::MsgRequestPreVote | MessageType::MsgRequestPreVoteResponse) {
            return;
        }
        let (kind, term, node) = (message.msg_type, message.term, from.0);
        ensure!("promises", term <= written.term.0, "node {node} says a {kind:?} of term {term}, and has {written:?}");
        let said = self.said.entry(from).or_default();
        said.term = said.term.max(term);
        let vote = match kind {
            MessageType::MsgRequestVote => Some((term, message.from)),
            MessageType::MsgRequestVoteResponse if !message.reject => Some((term, message.to)),
            _ => None,
        };
        if let Some(vote) = vote {
            ensure!(
                "promises",
                said.vote.0 != term || said.vote == vote,
                "node {node} votes {vote:?} and {:?}",
                said.vote
            );
            let kept = written.term.0 != term || written.vote.0 == vote.1;
            ensure!("promises", kept, "node {node} votes {vote:?}, and has {written:?}");
            said.vote = said.vote.max(vote);
        }
        if kind == MessageType::MsgAppendResponse && !message.reject {
            let index = message.index;
            // What it acknowledged in an older term may have been replaced since.
            let kept = written.term.0 != term || index <= last.0;
            ensure!("promises", kept, "node {node} acknowledges {index}, and its log ends at {last}");
            said.acknowledged = said.acknowledged.max((term, index));
        }
    }

    /// A member's log is durable up to `last`.
    pub fn wrote(&mut self, node: NodeId, last: Index) {
        let durable = self.durable.entry(node).or_default();
        *durable = last.max(*durable);
    }

    /// A member applied an entry, which `voters` at least vote about.
    pub fn applied(&mut self, node: NodeId, index: Index, voters: usize) {
        self.shows(node, index);
        // The configuration that it was committed under may have been smaller by one.
        let needed = voters.saturating_sub(1).max(1) / 2 + 1;
        let holders = self.durable.values().filter(|durable| **durable >= index).count();
        let node = node.0;
        ensure!("majority", holders >= needed, "node {node} applied {index}: {holders} of {voters} have it on disk");
    }

    /// A member's state has come to `index`.
    pub fn shows(&mut self, node: NodeId, index: Index) {
        let said = self.said.entry(node).or_default();
        said.applied = said.applied.max(index);
    }

    /// How far a member has shown that it holds the log: by what it applied, and by the newest term it acknowledged
    /// entries in and up to where.
    pub fn held(&self, node: NodeId) -> (Index, u64, Index) {
        let said = self.said.get(&node).copied().unwrap_or_default();
        (said.applied, said.acknowledged.0, Index(said.acknowledged.1))
    }

    /// A recovery: only the heir's words and disk count from now on.
    pub fn succeed(&mut self, heir: NodeId) {
        self.said.retain(|node, _| *node == heir);
        self.durable.retain(|node, _| *node == heir);
    }

    /// A member applied a membership change.
    pub fn applied_member(&mut self, node: NodeId, index: Index) {
        self.said.entry(node).or_default().member = index;
    }

    /// A member starts from what its disk holds, which is applied up to `applied`.
    pub fn restarted(&mut self, node: NodeId, found: HardState, last: Position, applied: Index) {
        self.wrote(node, last.index);
        let Some(said) = self.said.get(&node) else { return };
        let term = found.term.0;
        ensure!("promises", term >= said.term, "node {} said term {} and starts in {term}", node.0, said.term);
        let voted = said.vote.0 != term || found.vote.0 == said.vote.1;
        ensure!("promises", voted, "node {} voted {:?} and starts with {found:?}", node.0, said.vote);
        let kept = said.acknowledged.0 != term || last.index.0 >= said.acknowledged.1;
        ensure!("promises", kept, "node {} acknowledged {:?} and its log ends at {last:?}", node.0, said.acknowledged);
        let member = said.member;
        ensure!("promises", applied >= member, "node {} had applied member entry {member}, not {applied}", node.0);
    }

    /// A member's directory was lost: it may have forgotten everything.
    pub fn forget(&mut self, node: NodeId) {
        self.said.remove(&node);
    }
}
