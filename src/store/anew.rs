//! The beginning of a new history: what is left of a swarm that lost its majority, or was restored from a backup.

use std::sync::Arc;

use super::ring::{Limits, Ring};
use super::state::{State, Stored};
use crate::sys::faults::{Fault, planted};
use crate::types::{Kind, Lineage, NodeId, Object, Position, Revision, Term};

/// How far a new history raises the revision. No history makes as many changes, so that a revision tells by its upper half
/// which of two histories is the later one, and no revision of the former one is given away again.
pub const ERA: u64 = 1 << 32;

impl State {
    /// This state as the first one of the history `lineage`, of which `node_id` at `addr` is the only member.
    ///
    /// Objects and remembered changes stay as they are: a write that was answered before is not carried out again. The
    /// member has a raft id that nobody had, and every former one is used up: whatever a former member still says is said
    /// under an id that means nothing any more. `voted` is the newest term in which the member may have voted; the new
    /// history begins in a later one, with one entry that stands for everything before.
    ///
    /// `known` is the newest revision known to be committed. What was written after it is kept, and belongs to the new
    /// history: the members that are lost may have given those revisions to other changes, so that a version which they
    /// told somebody must not name what this state holds. Its versions and outcomes are raised as the revision is.
    ///
    /// A watch ring that a store builds on it is empty, and begins at a revision that no watcher has seen.
    #[must_use]
    pub fn begin_anew(
        mut self,
        lineage: Lineage,
        node_id: NodeId,
        addr: impl Into<String>,
        voted: Term,
        known: Revision,
    ) -> Self {
        let Position { term, index } = self.applied;
        let lineage = if planted(Fault::LineageKept) { self.lineage } else { lineage };
        let era = if planted(Fault::RevisionNotRaised) { 0 } else { ERA };
        if !planted(Fault::TailNotRaised) {
            self.raise_after(known, era);
        }
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

    /// Moves every version and outcome after `known` up by `era`.
    fn raise_after(&mut self, known: Revision, era: u64) {
        if self.revision <= known {
            return;
        }
        let raised = |revision: Revision| if revision > known { Revision(revision.0 + era) } else { revision };
        for kind in Kind::ALL {
            let later: Vec<Object> = self
                .iter(kind)
                .filter(|stored| stored.object.meta().version > known)
                .map(|stored| stored.object.clone())
                .collect();
            for mut object in later {
                let meta = object.meta_mut();
                meta.version = raised(meta.version);
                self.replace(kind, object.id(), Some(Arc::new(Stored::new(object))));
            }
        }
        self.ring = self.ring.renumbered(raised);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::store::{Store, WatchError};
    use crate::types::object::Config;
    use crate::types::{
        Change, ChangeId, Index, MemberChange, MemberRole, ObjectId, Operation, Outcome, RaftId, Refusal, Timestamp,
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
        let state = before.clone().begin_anew(Lineage(2), NodeId(12), "b:9", Term(6), Revision(1));
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
        let state = before().begin_anew(Lineage(2), NodeId(12), "b:9", Term(0), Revision(1));
        assert_eq!(state.applied().term, Term(3));
    }

    #[test]
    fn a_change_that_was_answered_before_is_not_carried_out_again_and_new_ones_are() {
        let mut state = before().begin_anew(Lineage(2), NodeId(12), "b:9", Term(6), Revision(1));
        assert_eq!(state.apply_change(create(7, 0), Term(7)).0, Outcome::Committed(Revision(1)));
        // Made after a revision that only the lost members had: it cannot have been carried out here.
        assert_eq!(state.apply_change(create(8, 5), Term(7)).0, Outcome::Committed(Revision(ERA + 2)));
    }

    #[test]
    fn what_is_not_known_to_be_committed_is_kept_under_revisions_that_nobody_was_told() {
        let mut before = before();
        let create = |state: &mut State, id| state.apply_change(create(id, 1), Term(2)).0;
        assert_eq!(create(&mut before, 8), Outcome::Committed(Revision(2)));
        assert_eq!(create(&mut before, 9), Outcome::Committed(Revision(3)));
        // Judged by a version that is raised: written first and updated in the same tail.
        let mut config = Config { id: ObjectId(8), ..Config::default() };
        config.spec.annotations.name = "changed".to_owned();
        config.meta.version = Revision(2);
        let update = |id, operation| Change {
            id: ChangeId(id),
            after: Revision(3),
            time: Timestamp(6),
            term: None,
            operations: vec![operation],
        };
        let changed = before.apply_change(update(20, Operation::Update(config.clone().into())), Term(2)).0;
        assert_eq!(changed, Outcome::Committed(Revision(4)));
        let refused = before.apply_change(update(21, Operation::Update(config.into())), Term(2)).0;
        let late = |found| {
            Outcome::Refused(Refusal::OutOfSequence {
                kind: Kind::Config,
                id: ObjectId(8),
                found: Some(Revision(found)),
            })
        };
        assert_eq!(refused, late(4));
        let state = before.begin_anew(Lineage(2), NodeId(12), "b:9", Term(6), Revision(2));
        let version = |id| state.get(Kind::Config, ObjectId(id)).unwrap().object.meta().version;
        assert_eq!([7, 8, 9].map(version), [1, ERA + 4, ERA + 3].map(Revision));
        let remembered = [7, 8, 9, 20, 21].map(|id| state.remembered(ChangeId(id)).unwrap());
        let committed = [1, 2, ERA + 3, ERA + 4].map(|revision| Outcome::Committed(Revision(revision)));
        assert_eq!(remembered[..4], committed);
        assert_eq!(remembered[4], late(ERA + 4));
        assert_eq!((state.revision(), state.hash()), (Revision(ERA + 4), state.recompute_hash()));
        // And a snapshot of it is read back as it is.
        let chunks = crate::store::SnapshotEncoder::new(state.clone()).map(Result::unwrap);
        let mut decoder = crate::store::SnapshotDecoder::new();
        chunks.for_each(|chunk| decoder.push(&chunk).unwrap());
        assert_eq!(decoder.finish().unwrap().hash(), state.hash());
    }

    #[test]
    fn a_watcher_of_the_former_history_is_told_so() {
        let state = before().begin_anew(Lineage(2), NodeId(12), "b:9", Term(6), Revision(1));
        let store = Store::new(state, 1 << 20);
        assert_eq!(store.watch_from(Lineage(1), Revision(1)).unwrap_err(), WatchError::OtherLineage);
        let oldest = Revision(ERA + 1);
        assert_eq!(store.watch_from(Lineage(2), Revision(1)).unwrap_err(), WatchError::TooOld { oldest });
        assert!(store.watch_from(Lineage(2), oldest).is_ok());
    }
}
