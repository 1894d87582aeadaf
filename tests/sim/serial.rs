//! What the log says, carried out by a second, simpler store: every answer and every read must agree with it.
//!
//! Revisions are dense, so that the order of committed changes is known and nothing has to be searched: the entries of the
//! log are judged once, in order, against plain maps, by rules written again from the product's promises. Managers'
//! outcomes, clients' answers and whatever a read saw at a revision are compared with that, wherever they come from.
//! Together with the order in time (an answer's revision is above everything known before its call) that is strict
//! serializability of everything at once, changes of several objects included.
//!
//! Beside it stands one store of the product's own that no fault touches: it gives the events that watchers should have
//! seen, each compared with what the plain maps say was written.

use std::collections::{BTreeMap, BTreeSet};

use raft::eraftpb::{Entry, EntryType};
use skep::apply;
use skep::store::watch::check::History;
use skep::store::{ERA, State};
use skep::types::api::Action;
use skep::types::log::Command;
use skep::types::object::Meta;
use skep::types::{
    Change, ChangeId, Expect, Index, Kind, NodeId, Object, ObjectId, Operation, Outcome, Refusal, Revision, Selector,
    Term,
};

use crate::failure::{ensure, fail};
use crate::node::LINEAGE;

type Place = (Kind, ObjectId);

/// The second store, and what the managers were seen to have in common.
pub struct Serial {
    /// Where this history begins.
    begins: Revision,
    revision: Revision,
    objects: BTreeMap<Place, Object>,
    /// What each object was, from each revision that wrote it on.
    past: BTreeMap<Place, Vec<(Revision, Option<u64>)>>,
    answers: BTreeMap<ChangeId, Outcome>,
    /// By log index.
    judged: BTreeMap<u64, Outcome>,
    /// The changes that were judged, by log index.
    changes: BTreeMap<u64, ChangeId>,
    /// Terms and checksums of entries, by index.
    log: BTreeMap<u64, (u64, u32)>,
    hashes: BTreeMap<u64, u128>,
    leaders: BTreeMap<u64, NodeId>,
    /// A store that no fault touches, and what happened in it.
    sound: State,
    happened: History,
}

/// What a recovery does to the revisions that its manager did not know to be committed: they are raised by an era, because
/// the managers that are lost may have given them to other changes.
#[derive(Clone, Copy, Debug)]
pub struct Raise {
    /// The newest revision that stays.
    pub after: Revision,
}

impl Raise {
    pub fn revision(self, revision: Revision) -> Revision {
        if revision > self.after { Revision(revision.0 + ERA) } else { revision }
    }

    pub fn outcome(self, outcome: &Outcome) -> Outcome {
        match outcome.clone() {
            Outcome::Committed(revision) => Outcome::Committed(self.revision(revision)),
            Outcome::Refused(Refusal::OutOfSequence { kind, id, found }) => {
                let found = found.map(|revision| self.revision(revision));
                Outcome::Refused(Refusal::OutOfSequence { kind, id, found })
            }
            other => other,
        }
    }
}

impl Serial {
    /// Before the first change.
    pub fn new() -> Self {
        let sound = State::new(LINEAGE);
        Self {
            begins: Revision(0),
            revision: Revision(0),
            objects: BTreeMap::new(),
            past: BTreeMap::new(),
            answers: BTreeMap::new(),
            judged: BTreeMap::new(),
            changes: BTreeMap::new(),
            log: BTreeMap::new(),
            hashes: BTreeMap::new(),
            leaders: BTreeMap::new(),
            happened: History::new(&sound),
            sound,
        }
    }

    /// What goes on after a recovery from `state`, which manager `heir` had all that is committed up to `held` for, and
    /// perhaps more: the log of a manager may hold what nobody knows to be committed.
    ///
    /// Nothing that was said of what the heir held may have changed, but for the revisions that `raise` moves. All else is
    /// what the state says.
    pub fn succeed(&self, heir: NodeId, state: &State, held: Index, raise: Raise, issued: &BTreeSet<ChangeId>) -> Self {
        let node = heir.0;
        let era = self.revision.0 / ERA;
        let revision = state.revision();
        ensure!(
            "history",
            revision.0 / ERA == era + 1,
            "the history of node {node} begins at {revision}, and the one before came to {}",
            self.revision
        );
        let begun: Vec<&Object> =
            Kind::ALL.into_iter().flat_map(|kind| state.iter(kind)).map(|stored| &stored.object).collect();
        for object in &begun {
            let version = object.meta().version;
            ensure!(
                "history",
                version <= raise.after || version.0 / ERA == era + 1,
                "{} {} of node {node} has version {version}, which the lost managers may have given to something else",
                object.kind(),
                object.id()
            );
        }
        let mut known = self.begins;
        for (index, outcome) in self.judged.range(..=held.0) {
            if let Outcome::Committed(revision) = outcome {
                known = known.max(*revision);
            }
            let change = self.changes[index];
            let found = state.remembered(change);
            // Where a change was repeated the first answer stands.
            let first = self.answers.get(&change).map(|outcome| raise.outcome(outcome));
            ensure!("lost write", found == first, "node {node} held change {change} at {index}: {found:?}");
        }
        // What the state says of objects that nothing behind `held` can have touched.
        let (all_known, before) = (revision.0 - ERA == known.0, Revision(revision.0 - ERA));
        ensure!("lost write", before >= known, "node {node} held {known}, and its history goes on after {before}");
        for ((kind, id), past) in &self.past {
            let expected = past.iter().rev().find(|(revision, _)| *revision <= known);
            let expected = expected.and_then(|(revision, value)| value.map(|value| (value, raise.revision(*revision))));
            let found = state.get(*kind, *id).map(|stored| (value_of(&stored.object), stored.object.meta().version));
            let later = !all_known && found.is_none_or(|(_, version)| version > raise.revision(known));
            ensure!(
                "lost write",
                found == expected || later,
                "node {node} held {kind} {id} as {expected:?}, and it is {found:?}"
            );
        }
        ensure!("state hash", state.hash() == state.recompute_hash(), "the history of node {node} has a wrong sum");
        let objects: BTreeMap<Place, Object> =
            begun.into_iter().map(|object| ((object.kind(), object.id()), object.clone())).collect();
        let past =
            objects.iter().map(|(place, object)| (*place, vec![(object.meta().version, Some(value_of(object)))]));
        let position = state.applied();
        Self {
            begins: revision,
            revision,
            past: past.collect(),
            objects,
            answers: issued.iter().filter_map(|id| Some((*id, state.remembered(*id)?))).collect(),
            judged: BTreeMap::new(),
            changes: BTreeMap::new(),
            // No entry: it stands for all before it.
            log: BTreeMap::from([(position.index.0, (position.term.0, 0))]),
            hashes: BTreeMap::from([(position.index.0, state.hash())]),
            leaders: BTreeMap::new(),
            happened: History::new(state),
            sound: state.clone(),
        }
    }

    /// The last committed entry at or before `index` that was made in `term` or before.
    pub fn committed_in(&self, index: Index, term: u64) -> Index {
        let found = self.log.range(..=index.0).rev().find(|(_, (made, _))| *made <= term);
        Index(found.map_or(0, |(index, _)| *index))
    }

    /// What watchers should have seen.
    pub fn happened(&self) -> &History {
        &self.happened
    }

    /// A node leads in a term.
    pub fn leads(&mut self, term: u64, node: NodeId) {
        let first = *self.leaders.entry(term).or_insert(node);
        ensure!("one leader per term", first == node, "{} and {} lead in term {term}", first.0, node.0);
    }

    /// A node has an entry as committed.
    pub fn committed(&mut self, node: NodeId, entry: &Entry) {
        let found = (entry.term, crc32fast::hash(&entry.data));
        let last = self.log.last_key_value().map(|(index, _)| *index);
        if let Some(first) = self.log.get(&entry.index) {
            ensure!("log prefix", *first == found, "node {} applied another entry at {}", node.0, entry.index);
            return;
        }
        let follows = last.is_none_or(|last| entry.index == last + 1);
        ensure!("log prefix", follows, "node {} applied entry {} after {last:?}", node.0, entry.index);
        self.log.insert(entry.index, found);
        if entry.entry_type == EntryType::EntryNormal
            && !entry.data.is_empty()
            && let Command::Change(change) = apply::decode(&entry.data).expect("what is committed can be read")
        {
            let outcome = self.judge(&change, Term(entry.term));
            self.judged.insert(entry.index, outcome);
            self.changes.insert(entry.index, change.id);
        }
    }

    /// The index of the next entry that nobody has shown.
    pub fn next_index(&self) -> Option<u64> {
        self.log.last_key_value().map(|(index, _)| index + 1)
    }

    /// A node judged the change of an entry.
    pub fn outcome(&self, node: NodeId, index: u64, outcome: Option<&Outcome>) {
        let expected = self.judged.get(&index);
        ensure!(
            "serial order",
            expected == outcome,
            "node {} answers {outcome:?} to entry {index}, and the log says {expected:?}",
            node.0
        );
    }

    /// A node has a state.
    pub fn state(&mut self, node: NodeId, index: u64, hash: u128) {
        let first = *self.hashes.entry(index).or_insert(hash);
        ensure!("state hash", first == hash, "the state of node {} differs at {index}", node.0);
    }

    /// A client was answered.
    pub fn answered(&self, id: ChangeId, outcome: &Outcome) {
        let expected = self.answers.get(&id);
        ensure!(
            "serial order",
            expected == Some(outcome),
            "a client was answered {outcome:?} for change {id}, and the log says {expected:?}"
        );
    }

    /// What became of a change.
    pub fn outcome_of(&self, id: ChangeId) -> Option<&Outcome> {
        self.answers.get(&id)
    }

    /// A read saw an object at a revision.
    pub fn saw(&self, node: NodeId, at: Revision, place: Place, seen: Option<(u64, Revision)>) {
        let past = self.past.get(&place).map_or(&[][..], Vec::as_slice);
        let last = past.iter().rev().find(|(revision, _)| *revision <= at);
        let expected = last.and_then(|(revision, value)| value.map(|value| (value, *revision)));
        ensure!(
            "reads of a prefix",
            at <= self.revision && seen == expected,
            "node {} shows {} {} as {seen:?} at revision {at}, where it was {expected:?} (of {})",
            node.0,
            place.0,
            place.1,
            self.revision
        );
    }

    /// A node that has everything must hold exactly these objects.
    pub fn check_state(&self, node: NodeId, state: &State) {
        ensure!(
            "serial order",
            state.revision() == self.revision,
            "node {} is at revision {}, the log at {}",
            node.0,
            state.revision(),
            self.revision
        );
        let found = Kind::ALL.into_iter().flat_map(|kind| state.iter(kind));
        let same = found.map(|stored| &stored.object).eq(self.objects_in_order());
        ensure!("serial order", same, "node {} holds other objects than the log made", node.0);
    }

    fn objects_in_order(&self) -> impl Iterator<Item = &Object> {
        self.objects.values()
    }

    fn judge(&mut self, change: &Change, term: Term) -> Outcome {
        if let Some(answer) = self.answers.get(&change.id) {
            return answer.clone();
        }
        let outcome = match self.try_change(change, term) {
            Ok(written) => {
                self.revision = self.revision.next();
                self.show_events(change, term, &written);
                for (place, object) in written {
                    let value = object.as_ref().map(value_of);
                    self.past.entry(place).or_default().push((self.revision, value));
                    match object {
                        Some(object) => self.objects.insert(place, object),
                        None => self.objects.remove(&place),
                    };
                }
                Outcome::Committed(self.revision)
            }
            Err(refusal) => Outcome::Refused(refusal),
        };
        self.answers.insert(change.id, outcome.clone());
        outcome
    }

    /// Carries the change out in the product's store as well, and looks whether its events tell what was written.
    fn show_events(&mut self, change: &Change, term: Term, written: &BTreeMap<Place, Option<Object>>) {
        let (_, batch) = self.sound.apply_change(change.clone(), term);
        let Some(batch) = batch else { fail("serial order", format!("the store refuses {change:?}")) };
        for event in batch.events.iter() {
            let object = &event.object.object;
            let place = (object.kind(), object.id());
            let before = self.objects.get(&place);
            let old = event.old.as_ref().map(|old| &old.object);
            let after = written.get(&place).and_then(Option::as_ref);
            let tells = match event.action {
                Action::Create => before.is_none() && after == Some(object) && old.is_none(),
                Action::Update => before.is_some() && after == Some(object) && old == before,
                Action::Remove => after.is_none() && before == Some(object) && old.is_none(),
            };
            ensure!("serial order", tells, "revision {} tells {:?} of {object:?}", self.revision, event.action);
        }
        let count = batch.events.len();
        ensure!("serial order", count == written.len(), "{count} events tell of {} objects", written.len());
        let asked = change.operations.iter().filter_map(|operation| match operation {
            Operation::Create(object) | Operation::Update(object) => Some((object.kind(), object.id())),
            Operation::Remove { kind, id, .. } => Some((*kind, *id)),
            Operation::UseToken(id) => Some((Kind::Token, *id)).filter(|place| written.contains_key(place)),
            Operation::Require { .. } | Operation::RequireNone { .. } | Operation::Revoke { .. } => None,
        });
        let told = batch.events.iter().map(|event| (event.object.object.kind(), event.object.object.id()));
        ensure!("serial order", told.eq(asked), "revision {} tells of its operations in another order", self.revision);
        self.happened.record(&batch);
    }

    /// What the change leaves of each object that it touches.
    fn try_change(&self, change: &Change, term: Term) -> Result<BTreeMap<Place, Option<Object>>, Refusal> {
        if change.term.is_some_and(|made_in| made_in != term) {
            return Err(Refusal::TermChanged);
        }
        let version = self.revision.next();
        let mut written: BTreeMap<Place, Option<Object>> = BTreeMap::new();
        for operation in &change.operations {
            let now = |place: Place| written.get(&place).map_or_else(|| self.objects.get(&place), Option::as_ref);
            match operation {
                Operation::Create(object) => {
                    let (kind, id) = (object.kind(), object.id());
                    if now((kind, id)).is_some() {
                        return Err(Refusal::Exists { kind, id });
                    }
                    if let Some(holder) = self.holder(&written, object) {
                        return Err(Refusal::NameConflict { kind, holder });
                    }
                    let meta = Meta { version, created_at: change.time, updated_at: change.time };
                    written.insert((kind, id), Some(with(object, meta)));
                }
                Operation::Update(object) => {
                    let (kind, id) = (object.kind(), object.id());
                    let Some(old) = now((kind, id)) else { return Err(Refusal::NotFound { kind, id }) };
                    let found = *old.meta();
                    if found.version != object.meta().version {
                        return Err(Refusal::OutOfSequence { kind, id, found: Some(found.version) });
                    }
                    if let Some(holder) = self.holder(&written, object) {
                        return Err(Refusal::NameConflict { kind, holder });
                    }
                    let meta = Meta { version, created_at: found.created_at, updated_at: change.time };
                    written.insert((kind, id), Some(with(object, meta)));
                }
                Operation::Remove { kind, id, version } => {
                    let (kind, id) = (*kind, *id);
                    let Some(old) = now((kind, id)) else { return Err(Refusal::NotFound { kind, id }) };
                    let found = old.meta().version;
                    if version.is_some_and(|wanted| wanted != found) {
                        return Err(Refusal::OutOfSequence { kind, id, found: Some(found) });
                    }
                    written.insert((kind, id), None);
                }
                Operation::Require { kind, id, expect } => {
                    let (kind, id) = (*kind, *id);
                    let found = now((kind, id)).map(|object| object.meta().version);
                    match (expect, found) {
                        (Expect::Present, None) => return Err(Refusal::NotFound { kind, id }),
                        (Expect::Absent, Some(_)) => return Err(Refusal::Exists { kind, id }),
                        (Expect::Version(wanted), found) if found != Some(*wanted) => {
                            return Err(Refusal::OutOfSequence { kind, id, found });
                        }
                        _ => {}
                    }
                }
                Operation::RequireNone { kind, any_of } => {
                    if let Some(by) = self.first_match(&written, *kind, any_of) {
                        return Err(Refusal::Referenced { kind: *kind, by });
                    }
                }
                Operation::UseToken(id) => {
                    let (kind, id) = (Kind::Token, *id);
                    let Some(Object::Token(token)) = now((kind, id)) else {
                        return Err(Refusal::NotFound { kind, id });
                    };
                    if token.is_spent(change.time).is_some() {
                        return Err(Refusal::TokenSpent { id });
                    }
                    if let Some(left) = token.uses_left {
                        let mut token = token.clone();
                        (token.uses_left, token.meta.version) = (Some(left - 1), version);
                        token.meta.updated_at = change.time;
                        written.insert((kind, id), Some(Object::Token(token)));
                    }
                }
                Operation::Revoke { .. } => {}
            }
        }
        Ok(written)
    }

    fn holder(&self, written: &BTreeMap<Place, Option<Object>>, object: &Object) -> Option<ObjectId> {
        // Nodes may have any name, and need none.
        let name = Some(object.name()?.to_ascii_lowercase());
        self.current(written, object.kind())
            .find(|other| other.id() != object.id() && other.name().map(str::to_ascii_lowercase) == name)
            .map(Object::id)
    }

    fn first_match(
        &self,
        written: &BTreeMap<Place, Option<Object>>,
        kind: Kind,
        any_of: &[Selector],
    ) -> Option<ObjectId> {
        let matching = self.current(written, kind).filter(|object| any_of.iter().any(|one| one.matches(object)));
        matching.map(Object::id).min()
    }

    /// The objects of a kind with what a change has done to them so far.
    fn current<'a>(
        &'a self,
        written: &'a BTreeMap<Place, Option<Object>>,
        kind: Kind,
    ) -> impl Iterator<Item = &'a Object> {
        let range = (kind, ObjectId(0))..=(kind, ObjectId(u128::MAX));
        let untouched = self.objects.range(range.clone()).filter(|(place, _)| !written.contains_key(place));
        untouched.map(|(_, object)| object).chain(written.range(range).filter_map(|(_, object)| object.as_ref()))
    }
}

fn with(object: &Object, meta: Meta) -> Object {
    let mut object = object.clone();
    *object.meta_mut() = meta;
    object
}

/// The number that an object of the workload holds: the first eight bytes of its data. Of others, only whether it is there.
pub fn value_of(object: &Object) -> u64 {
    let data = match object {
        Object::Config(config) => &config.spec.data,
        Object::Secret(secret) => &secret.spec.data.0,
        Object::Resource(resource) => resource.payload(),
        Object::Node(_) | Object::Cluster(_) => return 0,
        other => fail("serial order", format!("nobody wrote a {}", other.kind())),
    };
    data.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
