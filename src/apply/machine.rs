//! One committed entry at a time, in log order, into the store.

use std::sync::Arc;

use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeType, Entry, EntryType};

use crate::codec::{DecodeError, envelope};
use crate::store::{Event, EventBatch, State, Store};
use crate::sys::memory;
use crate::types::api::Action;
use crate::types::limits::MAX_FRAME_BYTES;
use crate::types::log::{Command, StateHash};
use crate::types::{Index, MemberChange, NodeId, Object, Outcome, Position, Role, Term};

/// Applies entries to the store. There is one per node: it is the only writer.
#[derive(Debug)]
pub struct Applier {
    store: Arc<Store>,
    departed: Vec<NodeId>,
    /// During a replay the first entry whose events are kept: of the ones before it hardly any would stay in the ring.
    watched_from: Index,
}

/// What an entry did.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Nothing: the first entry of a leader's term, or a mark in a replay.
    None,
    /// A change was judged.
    Outcome(Outcome),
    /// A membership change was judged. Raft takes up the configuration only if it was accepted.
    Member {
        /// What was asked.
        change: MemberChange,
        /// Whether it was made.
        accepted: bool,
    },
    /// A member's address was noted, or refused because no such member exists.
    Address,
    /// The state's hash at a mark. A replay computes none.
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
        Self { store, departed: Vec::new(), watched_from: Index(0) }
    }

    /// Nodes that were removed, or are managers no more, since this was asked last: whatever they hold open must be looked at.
    pub fn take_departed(&mut self) -> Vec<NodeId> {
        std::mem::take(&mut self.departed)
    }

    /// The store it writes.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Lets `feed` apply the entries of a log up to `last` at a start. Until it returns nobody may read the store; for a
    /// million entries it takes two thirds of the time. May be called again with what follows, and whatever `feed` returns,
    /// the store can be read then. `last` decides which events are kept, and nothing else.
    pub fn replay<E>(&mut self, last: Index, feed: impl FnOnce(&mut Self) -> Result<(), E>) -> Result<(), E> {
        self.watched_from = Index(last.0.saturating_sub(self.store.most_watched()));
        self.store.write(|state| (state.stage(), None));
        let result = feed(self);
        self.store.write(|state| (state.settle(), None));
        self.watched_from = Index(0);
        result
    }

    /// Applies the entry that follows the last one applied.
    ///
    /// # Panics
    ///
    /// When the entry is not the next one: raft and the store disagree on where they are.
    pub fn apply(&mut self, entry: &Entry) -> Result<Effect, ApplyError> {
        let position = Position { term: Term(entry.term), index: Index(entry.index) };
        match entry.entry_type {
            EntryType::EntryNormal if entry.data.is_empty() => Ok(self.write(position, |state| {
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

    fn apply_command(&mut self, position: Position, payload: &[u8]) -> Result<Effect, ApplyError> {
        // At most; of what is written over as much is given back.
        memory::grown(payload.len());
        let command =
            super::decode(payload).map_err(|source| ApplyError::Undecodable { index: position.index, source })?;
        let mut departed = Vec::new();
        let effect = self.write(position, |state| {
            state.advance(position);
            match command {
                Command::Change(change) => {
                    let (outcome, events) = state.apply_change(change, position.term);
                    departed.extend(events.iter().flat_map(|batch| &*batch.events).filter_map(gone));
                    (Effect::Outcome(outcome), events)
                }
                Command::SetAddress { raft_id, node_id, addr } => {
                    state.set_address(raft_id, node_id, &addr);
                    (Effect::Address, None)
                }
                Command::Mark { floors } => (state.mark(&floors).map_or(Effect::None, Effect::Mark), None),
            }
        });
        self.departed.append(&mut departed);
        Ok(effect)
    }

    fn write<T>(&self, position: Position, write: impl FnOnce(&mut State) -> (T, Option<EventBatch>)) -> T {
        if position.index >= self.watched_from { self.store.write(write) } else { self.store.write_unwatched(write) }
    }

    fn apply_member_change(&self, position: Position, payload: &[u8]) -> Result<Effect, ApplyError> {
        let index = position.index;
        let mut outer = ConfChange::default();
        if outer.merge_from_bytes(payload).is_err() {
            return Err(ApplyError::Undecodable { index, source: DecodeError::Malformed });
        }
        let change: MemberChange = envelope::decode(&outer.context, MAX_FRAME_BYTES)
            .map_err(|source| ApplyError::Undecodable { index, source })?;
        Ok(self.write(position, |state| {
            state.advance(position);
            // Raft reads the outer account and the store the inner one: they must say the same.
            if !agree(&outer, &change) {
                return (Effect::Member { change, accepted: false }, None);
            }
            let leaves = match change {
                MemberChange::Leave { raft_id } => state.members().get(&raft_id).map(|member| member.node_id),
                _ => None,
            };
            let accepted = state.apply_member_change(&change);
            let events = leaves.filter(|_| accepted).and_then(|node| state.mark_leaving(node, position));
            (Effect::Member { change, accepted }, events)
        }))
    }
}

/// The node that an event took away something from.
fn gone(event: &Event) -> Option<NodeId> {
    let Object::Node(node) = &event.object.object else { return None };
    let was_manager =
        || matches!(event.old.as_ref().map(|old| &old.object), Some(Object::Node(old)) if old.role == Role::Manager);
    let is_gone = match event.action {
        Action::Create => false,
        Action::Update => node.role == Role::Worker && was_manager(),
        Action::Remove => true,
    };
    is_gone.then_some(node.id)
}

/// Whether raft's own account of a membership change says what ours says.
fn agree(outer: &ConfChange, change: &MemberChange) -> bool {
    let (kind, raft_id) = match change {
        MemberChange::AddLearner { raft_id, .. } => (ConfChangeType::AddLearnerNode, raft_id),
        MemberChange::Promote { raft_id } => (ConfChangeType::AddNode, raft_id),
        MemberChange::Remove { raft_id } | MemberChange::Leave { raft_id } => (ConfChangeType::RemoveNode, raft_id),
    };
    outer.change_type == kind && outer.node_id == raft_id.0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;
    use crate::types::object::{Config, MembershipState, Node};
    use crate::types::{
        Change, ChangeId, Kind, Lineage, NodeId, ObjectId, Operation, RaftId, Refusal, Revision, Timestamp,
    };

    pub fn applier() -> Applier {
        Applier::new(Arc::new(Store::new(State::bootstrap(Lineage(1), NodeId(1), "a:1"), 1 << 20)))
    }

    pub fn entry(index: u64, payload: Vec<u8>) -> Entry {
        Entry { index, term: 1, data: payload.into(), ..Entry::default() }
    }

    /// An entry that makes a config; the id of change and config is the entry's index.
    pub fn create(index: u64, name: &str) -> Entry {
        let mut config = Config { id: ObjectId(u128::from(index)), ..Config::default() };
        config.spec.annotations.name = name.to_owned();
        let change = Change {
            id: ChangeId(u128::from(index)),
            after: Revision(0),
            time: Timestamp(5),
            term: None,
            operations: vec![Operation::Create(config.into())],
        };
        entry(index, super::super::encode(&Command::Change(change)))
    }

    /// A membership entry as raft proposes it, with an outer account of its own.
    pub fn member(index: u64, kind: ConfChangeType, raft_id: u64, change: &MemberChange) -> Entry {
        let outer = ConfChange {
            change_type: kind,
            node_id: raft_id,
            context: envelope::encode(change).into(),
            ..ConfChange::default()
        };
        let payload = outer.write_to_bytes().unwrap();
        Entry { entry_type: EntryType::EntryConfChange, ..entry(index, payload) }
    }

    pub fn learner(raft_id: u64) -> MemberChange {
        MemberChange::AddLearner { raft_id: RaftId(raft_id), node_id: NodeId(9), addr: "b:1".into() }
    }

    /// Applies the entries, each with the effect it must have.
    fn check(script: &[(Entry, Effect)]) -> Applier {
        let mut applier = applier();
        for (entry, expected) in script {
            assert_eq!(applier.apply(entry).as_ref(), Ok(expected), "{entry:?}");
            let applied = applier.store().view(State::applied);
            assert_eq!((applied.index.0, applied.term.0), (entry.index, entry.term));
            applier.store().view(|state| assert_eq!(state.hash(), state.recompute_hash()));
        }
        applier
    }

    #[test]
    fn every_kind_of_entry_has_its_effect() {
        let promote = MemberChange::Promote { raft_id: RaftId(2) };
        let remove = MemberChange::Remove { raft_id: RaftId(2) };
        let judged = |change: &MemberChange, accepted| Effect::Member { change: change.clone(), accepted };
        let address = Command::SetAddress { raft_id: RaftId(2), node_id: NodeId(9), addr: "c:1".into() };
        let applier = check(&[
            (entry(2, Vec::new()), Effect::None),
            (create(3, "one"), Effect::Outcome(Outcome::Committed(Revision(1)))),
            (
                create(4, "ONE"),
                Effect::Outcome(Outcome::Refused(Refusal::NameConflict { kind: Kind::Config, holder: ObjectId(3) })),
            ),
            (member(5, ConfChangeType::AddLearnerNode, 2, &learner(2)), judged(&learner(2), true)),
            (member(6, ConfChangeType::AddLearnerNode, 2, &learner(2)), judged(&learner(2), false)),
            (entry(7, super::super::encode(&address)), Effect::Address),
            (member(8, ConfChangeType::AddNode, 2, &promote), judged(&promote, true)),
        ]);
        applier.store().view(|state| {
            assert_eq!(state.members()[&RaftId(2)].addr, "c:1");
            assert_eq!(state.configuration().voters, [RaftId(1), RaftId(2)]);
        });
        let mut applier = applier;
        let mark = entry(9, super::super::encode(&Command::Mark { floors: vec![(RaftId(2), Index(8))] }));
        let effect = applier.apply(&mark).unwrap();
        let sum = applier.store().view(State::hash);
        assert_eq!(effect, Effect::Mark(StateHash { index: Index(9), revision: Revision(1), sum }));
        assert_eq!(applier.apply(&member(10, ConfChangeType::RemoveNode, 2, &remove)), Ok(judged(&remove, true)));
        assert!(applier.store().view(|state| state.floors().is_empty() && state.is_removed_raft_id(RaftId(2))));
    }

    #[test]
    fn a_member_that_leaves_marks_its_node_in_the_same_entry_and_one_that_is_taken_out_does_not() {
        let node = |index: u64, id: u128| {
            let object = Node::new(NodeId(id), Role::Manager);
            let operations = vec![Operation::Create(object.into())];
            let (id, after, time) = (ChangeId(id), Revision(0), Timestamp(70));
            entry(index, super::super::encode(&Command::Change(Change { id, after, time, term: None, operations })))
        };
        let add = |raft_id: u64, id: u128| {
            let (raft_id, node_id, addr) = (RaftId(raft_id), NodeId(id), format!("{id}:1"));
            MemberChange::AddLearner { raft_id, node_id, addr }
        };
        let (leave, remove) =
            (|id| MemberChange::Leave { raft_id: RaftId(id) }, MemberChange::Remove { raft_id: RaftId(3) });
        let committed = |revision| Effect::Outcome(Outcome::Committed(Revision(revision)));
        let judged = |change: &MemberChange, accepted| Effect::Member { change: change.clone(), accepted };
        let applier = check(&[
            (node(2, 20), committed(1)),
            (node(3, 30), committed(2)),
            (member(4, ConfChangeType::AddLearnerNode, 2, &add(2, 20)), judged(&add(2, 20), true)),
            (member(5, ConfChangeType::AddLearnerNode, 3, &add(3, 30)), judged(&add(3, 30), true)),
            (member(6, ConfChangeType::AddLearnerNode, 4, &add(4, 40)), judged(&add(4, 40), true)),
            // A member without an object goes as well; the last voter does not, and is not marked.
            (member(7, ConfChangeType::RemoveNode, 4, &leave(4)), judged(&leave(4), true)),
            (member(8, ConfChangeType::RemoveNode, 1, &leave(1)), judged(&leave(1), false)),
            (member(9, ConfChangeType::RemoveNode, 3, &remove), judged(&remove, true)),
            (member(10, ConfChangeType::RemoveNode, 2, &leave(2)), judged(&leave(2), true)),
            (member(11, ConfChangeType::RemoveNode, 2, &leave(2)), judged(&leave(2), false)),
        ]);
        applier.store().view(|state| {
            assert_eq!((state.members().len(), state.revision()), (1, Revision(3)));
            let node = |id: u128| match &state.get(Kind::Node, ObjectId(id)).unwrap().object {
                Object::Node(node) => (node.spec.membership, node.meta.updated_at),
                other => panic!("{other:?}"),
            };
            assert_eq!(node(20), (MembershipState::Leaving, Timestamp(70)));
            assert_ne!(node(30).0, MembershipState::Leaving);
        });
    }

    #[test]
    fn a_membership_entry_whose_two_accounts_disagree_is_refused() {
        let change = learner(2);
        let refused = Effect::Member { change: change.clone(), accepted: false };
        let applier = check(&[
            (member(2, ConfChangeType::AddNode, 2, &change), refused.clone()),
            (member(3, ConfChangeType::RemoveNode, 2, &change), refused.clone()),
            (member(4, ConfChangeType::AddLearnerNode, 3, &change), refused),
        ]);
        assert_eq!(applier.store().view(|state| state.members().len()), 1);
    }

    #[test]
    fn an_entry_that_is_not_understood_is_an_error_and_changes_nothing() {
        let mut newer = create(2, "one");
        newer.data = [&[envelope::VERSION + 1][..], &newer.data[1..]].concat().into();
        let mut cut = create(2, "one");
        cut.data = cut.data.slice(..cut.data.len() - 1);
        let conf = |payload: &[u8]| Entry { entry_type: EntryType::EntryConfChange, ..entry(2, payload.to_vec()) };
        let without_context = ConfChange { node_id: 2, ..ConfChange::default() }.write_to_bytes().unwrap();
        let joint = Entry { entry_type: EntryType::EntryConfChangeV2, ..entry(2, Vec::new()) };
        for bad in [newer, cut, conf(b"\xff\xff"), conf(b""), conf(&without_context), joint] {
            let mut applier = applier();
            let before = applier.store().view(State::hash);
            let error = applier.apply(&bad).unwrap_err();
            assert!(error.to_string().contains("log entry 2"), "{error}");
            assert_eq!(applier.store().view(State::hash), before);
        }
    }

    #[test]
    fn flipped_bits_never_panic_and_never_corrupt_the_state() {
        let good = [create(2, "one"), member(2, ConfChangeType::AddLearnerNode, 2, &learner(2))];
        for entry in good {
            for (place, bit) in (0..entry.data.len()).flat_map(|place| (0..8).map(move |bit| (place, bit))) {
                let mut payload = entry.data.to_vec();
                payload[place] ^= 1 << bit;
                let mut applier = applier();
                let result = applier.apply(&Entry { data: payload.into(), ..entry.clone() });
                let applied = applier.store().view(|state| {
                    assert_eq!(state.hash(), state.recompute_hash(), "bit {bit} of byte {place}");
                    state.applied().index.0
                });
                assert_eq!(applied, if result.is_ok() { 2 } else { 1 }, "bit {bit} of byte {place}");
            }
        }
    }

    #[test]
    fn two_replicas_that_applied_the_same_entries_are_equal() {
        let entries: Vec<Entry> = (2..50).map(|index| create(index, &format!("c{}", index % 13))).collect();
        let (mut one, mut two) = (applier(), applier());
        for entry in &entries {
            assert_eq!(one.apply(entry), two.apply(entry));
        }
        assert_eq!(one.store().view(State::hash), two.store().view(State::hash));
        two.apply(&entry(50, Vec::new())).unwrap();
        assert_ne!(one.store().view(State::hash), two.store().view(State::hash));
    }

    #[test]
    fn a_replay_leads_to_the_same_state_and_to_the_newest_events() {
        let entries: Vec<Entry> = (2..400).map(|index| create(index, &format!("c{}", index % 301))).collect();
        let mut applied = Applier::new(Arc::new(Store::new(State::bootstrap(Lineage(1), NodeId(1), "a:1"), 20 << 10)));
        let mut replayed = Applier::new(Arc::new(Store::new(State::bootstrap(Lineage(1), NodeId(1), "a:1"), 20 << 10)));
        entries.iter().for_each(|entry| drop(applied.apply(entry).unwrap()));
        replayed
            .replay(Index(399), |applier| entries.iter().try_for_each(|entry| applier.apply(entry).map(drop)))
            .unwrap();
        for applier in [&mut applied, &mut replayed] {
            assert_eq!(applier.apply(&entry(400, Vec::new())), Ok(Effect::None));
            assert_eq!(applier.store().view(State::recompute_hash), applier.store().view(State::hash));
        }
        let (applied, replayed) = (applied.store(), replayed.store());
        assert_eq!(applied.view(State::hash), replayed.view(State::hash));
        let oldest = |store: &Store| match store.watch_from(Lineage(1), Revision(1)) {
            Err(crate::store::WatchError::TooOld { oldest }) => oldest,
            found => panic!("{found:?}"),
        };
        assert_eq!(oldest(applied), oldest(replayed));
        let events = |store: &Store| {
            let mut cursor = store.watch_from(Lineage(1), oldest(store)).unwrap();
            store.poll(&mut cursor, 1000).unwrap().iter().map(|batch| batch.revision).collect::<Vec<_>>()
        };
        assert_eq!(events(applied), events(replayed));
        // A replay that ends early leaves a state that can be read.
        let mut cut = applier();
        let fails = cut.replay(Index(9), |applier| {
            applier.apply(&entries[0]).unwrap();
            Err("cut")
        });
        assert_eq!(fails, Err("cut"));
        assert_eq!(cut.store().view(|state| (state.hash(), state.count(Kind::Config))).1, 1);
    }

    #[test]
    fn a_replay_takes_every_kind_of_entry_and_goes_on_where_another_one_ended() {
        let node = |index: u64, id: u128| {
            let operations = vec![Operation::Create(Node::new(NodeId(id), Role::Manager).into())];
            let (id, after, time) = (ChangeId(id), Revision(0), Timestamp(70));
            entry(index, super::super::encode(&Command::Change(Change { id, after, time, term: None, operations })))
        };
        let (promote, leave) =
            (MemberChange::Promote { raft_id: RaftId(2) }, MemberChange::Leave { raft_id: RaftId(2) });
        let mark = Command::Mark { floors: vec![(RaftId(1), Index(3))] };
        let address = Command::SetAddress { raft_id: RaftId(2), node_id: NodeId(9), addr: "c:1".into() };
        let entries = [
            create(2, "one"),
            node(3, 9),
            member(4, ConfChangeType::AddLearnerNode, 2, &learner(2)),
            member(5, ConfChangeType::AddNode, 2, &promote),
            entry(6, super::super::encode(&mark)),
            // Has an event, and others follow.
            member(7, ConfChangeType::RemoveNode, 2, &leave),
            entry(8, super::super::encode(&address)),
            create(9, "two"),
            entry(10, Vec::new()),
            create(11, "TWO"),
            create(12, "three"),
        ];
        // A ring for everything, for the last entries, for the newest event alone, and each with a second replay after any entry.
        for ring in [1 << 20, 400, 0] {
            let new = || Applier::new(Arc::new(Store::new(State::bootstrap(Lineage(1), NodeId(1), "a:1"), ring)));
            let mut applied = new();
            entries.iter().for_each(|entry| drop(applied.apply(entry).unwrap()));
            for split in 0..entries.len() {
                let mut replayed = new();
                for part in [&entries[..split], &entries[split..]] {
                    let last = Index(part.last().map_or(0, |entry| entry.index));
                    let feed =
                        |applier: &mut Applier| part.iter().try_for_each(|entry| applier.apply(entry).map(|_| ()));
                    replayed.replay(last, feed).unwrap();
                }
                assert_eq!(replayed.take_departed(), applied.departed, "{split}");
                let (one, other) = (applied.store(), replayed.store());
                assert_eq!(one.view(State::hash), other.view(State::hash), "{split}");
                assert_eq!(other.view(State::hash), other.view(State::recompute_hash), "{split}");
                let revision = one.revision();
                assert!(other.watch_from(Lineage(1), revision).is_ok());
                let newest =
                    other.watch_from(Lineage(1), Revision(revision.0 - 1)).map(|mut cursor| other.poll(&mut cursor, 9));
                assert_eq!(newest.map(|batches| batches.unwrap().len()), Ok(1), "{split}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "does not follow")]
    fn a_gap_is_a_broken_invariant() {
        let _ = applier().apply(&entry(3, Vec::new()));
    }

    #[test]
    #[should_panic(expected = "does not follow")]
    fn a_repeated_entry_is_a_broken_invariant() {
        let mut applier = applier();
        applier.apply(&entry(2, Vec::new())).unwrap();
        let _ = applier.apply(&entry(2, Vec::new()));
    }
}
