//! The beginning of a new history: what is left of a swarm that lost its majority, or was restored from a backup.

use std::sync::Arc;

use super::ring::{Limits, Ring};
use super::state::State;
use crate::sys::faults::{Fault, planted};
use crate::types::{Lineage, NodeId, Position, Revision, Term};

/// How far a new history raises the revision. No history makes as many changes, so that a revision tells by its upper half
/// which of two histories is the later one, and no version or watch position of the former one is ever met again.
pub const ERA: u64 = 1 << 32;

impl State {
    /// This state as the first one of the history `lineage`, of which `node_id` at `addr` is the only member.
    ///
    /// Objects and remembered changes stay as they are: a write that was answered before is not carried out again. The
    /// member has a raft id that nobody had, and every former one is used up: whatever a former member still says is said
    /// under an id that means nothing any more. `voted` is the newest term in which the member may have voted; the new
    /// history begins in a later one, with one entry that stands for everything before.
    ///
    /// A watch ring that a store builds on it is empty, and begins at a revision that no watcher has seen.
    #[must_use]
    pub fn begin_anew(self, lineage: Lineage, node_id: NodeId, addr: impl Into<String>, voted: Term) -> Self {
        let Position { term, index } = self.applied;
        let lineage = if planted(Fault::LineageKept) { self.lineage } else { lineage };
        let era = if planted(Fault::RevisionNotRaised) { 0 } else { ERA };
        let ring = if planted(Fault::RecoveryForgetsChanges) { Ring::new(Limits::PRODUCT) } else { self.ring };
        Self {
            lineage,
            applied: Position { term: term.max(voted).next(), index: index.next() },
            revision: Revision(self.revision.0 + era),
            membership: Arc::new(self.membership.succeed(node_id, addr.into())),
            ring,
            ..self
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::store::{Store, WatchError};
    use crate::types::object::Config;
    use crate::types::{
        Change, ChangeId, Index, Kind, MemberChange, MemberRole, ObjectId, Operation, Outcome, RaftId, Timestamp,
    };

    fn create(id: u128, after: u64) -> Change {
        let mut config = Config { id: ObjectId(id), ..Config::default() };
        config.spec.annotations.name = format!("c{id}");
        let operations = vec![Operation::Create(config.into())];
        Change { id: ChangeId(id), after: Revision(after), time: Timestamp(5), term: None, operations }
    }

    /// A swarm of three with one config, at index 4 and revision 1.
    fn before() -> State {
        let mut state = State::bootstrap(Lineage(1), NodeId(11), "a:1");
        for (raft_id, node) in [(2, 12), (3, 13)] {
            let change =
                MemberChange::AddLearner { raft_id: RaftId(raft_id), node_id: NodeId(node), addr: "x:1".to_owned() };
            state.advance(Position { term: Term(1), index: Index(raft_id) });
            assert!(state.apply_member_change(&change));
        }
        state.advance(Position { term: Term(2), index: Index(4) });
        state.mark(&[(RaftId(1), Index(3)), (RaftId(2), Index(3))]);
        assert_eq!(state.apply_change(create(7, 0), Term(2)).0, Outcome::Committed(Revision(1)));
        state
    }

    #[test]
    fn a_new_history_has_the_objects_one_member_and_no_id_or_revision_of_the_former_one() {
        let before = before();
        let state = before.clone().begin_anew(Lineage(2), NodeId(12), "b:9", Term(6));
        assert_eq!(state.applied(), Position { term: Term(7), index: Index(5) });
        assert_eq!((state.lineage(), state.revision()), (Lineage(2), Revision(ERA + 1)));
        let members: Vec<_> = state.members().values().cloned().collect();
        assert_eq!(members.len(), 1);
        assert_eq!(
            (members[0].raft_id, members[0].node_id, members[0].role),
            (RaftId(4), NodeId(12), MemberRole::Voter)
        );
        assert_eq!((members[0].addr.as_str(), state.next_raft_id()), ("b:9", RaftId(5)));
        for raft_id in 1..=3 {
            assert!(state.is_removed_raft_id(RaftId(raft_id)), "{raft_id}");
        }
        assert!(state.member_of(NodeId(11)).is_none() && state.member_of(NodeId(13)).is_none());
        assert!(state.floors().is_empty());
        let config = |state: &State| state.get(Kind::Config, ObjectId(7)).unwrap().object.clone();
        assert_eq!(config(&state), config(&before));
        assert_eq!(state.hash(), state.recompute_hash());
        assert_ne!(state.hash(), before.hash());
    }

    #[test]
    fn a_term_that_the_log_reached_is_not_used_again_though_no_vote_was_given_in_it() {
        let state = before().begin_anew(Lineage(2), NodeId(12), "b:9", Term(0));
        assert_eq!(state.applied().term, Term(3));
    }

    #[test]
    fn a_change_that_was_answered_before_is_not_carried_out_again_and_new_ones_are() {
        let mut state = before().begin_anew(Lineage(2), NodeId(12), "b:9", Term(6));
        assert_eq!(state.apply_change(create(7, 0), Term(7)).0, Outcome::Committed(Revision(1)));
        // Made after a revision that only the lost members had: it cannot have been carried out here.
        assert_eq!(state.apply_change(create(8, 5), Term(7)).0, Outcome::Committed(Revision(ERA + 2)));
    }

    #[test]
    fn a_watcher_of_the_former_history_is_told_so() {
        let state = before().begin_anew(Lineage(2), NodeId(12), "b:9", Term(6));
        let store = Store::new(state, 1 << 20);
        assert_eq!(store.watch_from(Lineage(1), Revision(1)).unwrap_err(), WatchError::OtherLineage);
        let oldest = Revision(ERA + 1);
        assert_eq!(store.watch_from(Lineage(2), Revision(1)).unwrap_err(), WatchError::TooOld { oldest });
        assert!(store.watch_from(Lineage(2), oldest).is_ok());
    }
}
