//! One committed entry at a time, in log order, into the store.

use std::sync::Arc;

use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeType, Entry, EntryType};

use crate::codec::{DecodeError, envelope};
use crate::store::Store;
use crate::types::limits::MAX_FRAME_BYTES;
use crate::types::log::{Command, StateHash};
use crate::types::{Index, MemberChange, Outcome, Position, Term};

/// Applies entries to the store. There is one per node: it is the only writer.
#[derive(Debug)]
pub struct Applier {
    store: Arc<Store>,
}

/// What an entry did.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Nothing: the first entry of a leader's term.
    None,
    /// A change was judged.
    Outcome(Outcome),
    /// A membership change was judged. Raft takes up the configuration only if it was accepted.
    Member {
        /// What was asked; `None` when the entry's two accounts of it disagree.
        change: MemberChange,
        /// Whether it was made.
        accepted: bool,
    },
    /// A member's address was noted, or refused because no such member exists.
    Address,
    /// The state's hash at a mark.
    Mark(StateHash),
}

/// An entry that this build cannot apply. The node must stop: skipping it would make this replica differ from the others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The bytes are not what any build writes, or a newer build's.
    #[error("log entry {index} cannot be read: {source}")]
    Undecodable {
        /// The entry.
        index: Index,
        /// Why.
        source: DecodeError,
    },
    /// The entry is of a kind that this build does not know.
    #[error("log entry {index} is {what}, which this version of skep does not understand")]
    NotUnderstood {
        /// The entry.
        index: Index,
        /// What it is.
        what: &'static str,
    },
}

impl Applier {
    /// The writer of `store`.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    /// The store it writes.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Applies the entry that follows the last one applied.
    ///
    /// # Panics
    ///
    /// When the entry is not the next one: raft and the store disagree on where they are.
    pub fn apply(&mut self, entry: &Entry) -> Result<Effect, ApplyError> {
        let position = Position { term: Term(entry.term), index: Index(entry.index) };
        match entry.entry_type {
            EntryType::EntryNormal if entry.data.is_empty() => Ok(self.store.write(|state| {
                state.advance(position);
                (Effect::None, None)
            })),
            EntryType::EntryNormal => self.apply_command(position, &entry.data),
            EntryType::EntryConfChange => self.apply_member_change(position, &entry.data),
            EntryType::EntryConfChangeV2 => {
                Err(ApplyError::NotUnderstood { index: position.index, what: "a joint membership change" })
            }
        }
    }

    fn apply_command(&self, position: Position, payload: &[u8]) -> Result<Effect, ApplyError> {
        let command =
            super::decode(payload).map_err(|source| ApplyError::Undecodable { index: position.index, source })?;
        Ok(self.store.write(|state| {
            state.advance(position);
            match &command {
                Command::Change(change) => {
                    let (outcome, events) = state.apply_change(change, position.term);
                    (Effect::Outcome(outcome), events)
                }
                Command::SetAddress { raft_id, node_id, addr } => {
                    state.set_address(*raft_id, *node_id, addr);
                    (Effect::Address, None)
                }
                Command::Mark { floors } => (Effect::Mark(state.mark(floors)), None),
            }
        }))
    }

    fn apply_member_change(&self, position: Position, payload: &[u8]) -> Result<Effect, ApplyError> {
        let index = position.index;
        let mut outer = ConfChange::default();
        if outer.merge_from_bytes(payload).is_err() {
            return Err(ApplyError::Undecodable { index, source: DecodeError::Malformed });
        }
        let change: MemberChange = envelope::decode(&outer.context, MAX_FRAME_BYTES)
            .map_err(|source| ApplyError::Undecodable { index, source })?;
        Ok(self.store.write(|state| {
            state.advance(position);
            // Raft reads the outer account and the store the inner one: they must say the same.
            let accepted = agree(&outer, &change) && state.apply_member_change(&change);
            (Effect::Member { change, accepted }, None)
        }))
    }
}

/// Whether raft's own account of a membership change says what ours says.
fn agree(outer: &ConfChange, change: &MemberChange) -> bool {
    let (kind, raft_id) = match change {
        MemberChange::AddLearner { raft_id, .. } => (ConfChangeType::AddLearnerNode, raft_id),
        MemberChange::Promote { raft_id } => (ConfChangeType::AddNode, raft_id),
        MemberChange::Remove { raft_id } => (ConfChangeType::RemoveNode, raft_id),
    };
    outer.change_type == kind && outer.node_id == raft_id.0
}
