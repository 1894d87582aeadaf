//! The replicated state as a value: cheap to clone, equal on every replica after the same entries.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::membership::Membership;
use super::ring::{Limits, Record, Ring};
use super::table::{Search, Table, Taken};
use super::watch::EventBatch;
use crate::codec::{digest128, envelope};
use crate::sys::faults::{Fault, planted};
use crate::types::log::{Configuration, StateHash};
use crate::types::object::{Cluster, MembershipState};
use crate::types::{
    Change, ChangeId, Index, Kind, Lineage, Member, MemberChange, NodeId, Object, ObjectId, Operation, Outcome,
    Position, RaftId, Refusal, Revision, Role, Selector, Standing, Term, Timestamp,
};

/// An object as the store keeps it. Packed for the digest's sake, which would align all of it to 16 bytes.
#[repr(Rust, packed(8))]
pub struct Stored {
    /// The object.
    pub object: Object,
    /// The digest of its encoding: its share of the state hash.
    pub hash: u128,
    /// The length of its encoding.
    pub bytes: u32,
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.object.fmt(f)
    }
}

impl Stored {
    /// Encodes the object once, for its digest and size.
    pub fn new(object: Object) -> Self {
        let encoded = envelope::encode(&object);
        Self::of_encoding(object, &encoded)
    }

    pub(super) fn of_encoding(object: Object, encoded: &[u8]) -> Self {
        let bytes = u32::try_from(encoded.len()).expect("an object comes in a change, which is at most 1.5 MiB");
        Self { object, hash: digest128(&[b"object", encoded]), bytes }
    }

    /// Whether it has this name, ignoring case.
    pub(super) fn has_name(&self, name: &[u8]) -> bool {
        self.object.name_bytes().is_some_and(|own| own.eq_ignore_ascii_case(name))
    }
}

/// Objects that an ambiguous reference is found to mean. One letter is the beginning of every thirtieth id, and a reference is
/// resolved while the writer waits.
pub const MAX_CANDIDATES: usize = 100;

/// Objects of a state that is worth a thread to drop it.
const LARGE: usize = 20_000;

/// A reference that names no one object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Nothing has this name, id or id prefix.
    #[error("not found")]
    NotFound,
    /// Several objects have this name or id prefix: these, or so many that they were not all looked for
    /// ([`MAX_CANDIDATES`]).
    #[error("ambiguous: several objects match")]
    Ambiguous(Vec<ObjectId>),
}

/// Everything that is replicated: objects, members, counters, remembered changes. A persistent value: a clone copies
/// nothing, and neither side sees what is written to the other.
#[derive(Clone)]
pub struct State {
    pub(super) lineage: Lineage,
    pub(super) applied: Position,
    pub(super) revision: Revision,
    /// Boxed, so that a state is small to move and to queue.
    pub(super) tables: Box<[Table; Kind::ALL.len()]>,
    pub(super) membership: Arc<Membership>,
    pub(super) ring: Ring,
    /// The wrapping sum of the objects' digests.
    pub(super) objects_hash: u128,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("lineage", &self.lineage)
            .field("applied", &self.applied)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

impl State {
    /// The state before the first entry: no objects, no members. What a joining manager has until it gets a snapshot.
    pub fn new(lineage: Lineage) -> Self {
        Self::with_limits(lineage, Limits::PRODUCT)
    }

    pub(super) fn with_limits(lineage: Lineage, limits: Limits) -> Self {
        Self {
            lineage,
            applied: Position::default(),
            revision: Revision(0),
            tables: Default::default(),
            membership: Arc::default(),
            ring: Ring::new(limits),
            objects_hash: 0,
        }
    }

    /// The state a new swarm begins with on its first manager: one voter, no objects, as if the log had one entry.
    pub fn bootstrap(lineage: Lineage, node_id: NodeId, addr: impl Into<String>) -> Self {
        Self {
            applied: Position { term: Term(1), index: Index(1) },
            membership: Arc::new(Membership::bootstrap(node_id, addr.into())),
            ..Self::new(lineage)
        }
    }

    /// The object of this id.
    pub fn get(&self, kind: Kind, id: ObjectId) -> Option<&Arc<Stored>> {
        self.table(kind).get(id)
    }

    /// The object of this name, ignoring the case of ASCII letters. Where names may repeat (nodes, tasks), the one of
    /// the lowest id.
    pub fn by_name(&self, kind: Kind, name: &str) -> Option<&Arc<Stored>> {
        self.table(kind).first_named(name.as_bytes())
    }

    /// The object that a person means: by id, by name, or by the beginning of an id that no other object's has.
    pub fn resolve(&self, kind: Kind, reference: &str) -> Result<Arc<Stored>, ResolveError> {
        if reference.is_empty() {
            return Err(ResolveError::NotFound);
        }
        if let Some(stored) = reference.parse().ok().and_then(|id| self.get(kind, id)) {
            return Ok(stored.clone());
        }
        match one(self.table(kind).named(reference.as_bytes())) {
            Err(ResolveError::NotFound) => one(self.table(kind).with_id_prefix(reference, ObjectId(0))),
            found => found,
        }
    }

    /// The objects that match any of the selectors, from the indexes, in order of id, each once.
    pub fn find(&self, kind: Kind, any_of: &[Selector]) -> Vec<&Arc<Stored>> {
        self.find_some(kind, any_of, usize::MAX)
    }

    /// The first so many of [`Self::find`].
    pub fn find_some(&self, kind: Kind, any_of: &[Selector], at_most: usize) -> Vec<&Arc<Stored>> {
        self.table(kind).find(any_of, at_most)
    }

    /// How to find what [`Self::find`] does and has this id or a later one, for whoever cannot look at all of it in one go.
    /// Takes one millisecond, or a few.
    pub fn search(&self, kind: Kind, any_of: &[Selector], from: ObjectId) -> Search {
        self.table(kind).search(any_of, from)
    }

    /// What a search in this state goes through from this id on, as it is asked for.
    pub fn candidates<'a, 's>(
        &'a self,
        kind: Kind,
        search: &'s Search,
        from: ObjectId,
    ) -> impl Iterator<Item = &'a Arc<Stored>> + use<'a, 's> {
        self.table(kind).candidates(search, from)
    }

    /// Every object of a kind, in order of id.
    pub fn iter(&self, kind: Kind) -> impl Iterator<Item = &Arc<Stored>> {
        self.table(kind).iter()
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        self.table(kind).len()
    }

    /// Whether it takes milliseconds to drop the last clone of this state (`sys::heavy`).
    pub fn is_large(&self) -> bool {
        self.tables.iter().map(Table::len).sum::<usize>() > LARGE
    }

    /// The encoded size of all objects of a kind.
    pub fn bytes(&self, kind: Kind) -> u64 {
        self.table(kind).bytes()
    }

    /// The swarm's settings; `None` until the first manager's first change is applied.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.iter(Kind::Cluster).find_map(|stored| match &stored.object {
            Object::Cluster(cluster) => Some(&**cluster),
            _ => None,
        })
    }

    /// How many changes were committed: the version of what the last one wrote.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The last entry that this state includes.
    pub fn applied(&self) -> Position {
        self.applied
    }

    /// The history that this state belongs to.
    pub fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// The Raft group.
    pub fn members(&self) -> &BTreeMap<RaftId, Member> {
        &self.membership.members
    }

    /// The member that this node is.
    pub fn member_of(&self, node_id: NodeId) -> Option<&Member> {
        self.membership.of_node(node_id)
    }

    /// Who votes and who learns.
    pub fn configuration(&self) -> Configuration {
        self.membership.configuration()
    }

    /// The Raft id of the next member.
    pub fn next_raft_id(&self) -> RaftId {
        self.membership.next_raft_id
    }

    /// What a node may act as.
    pub fn standing(&self, node_id: NodeId) -> Standing {
        if self.is_revoked(node_id) {
            return Standing::Removed;
        }
        match self.get(Kind::Node, node_id.into()).map(|stored| &stored.object) {
            Some(Object::Node(node)) if node.role == Role::Manager => Standing::Manager,
            Some(_) => Standing::Worker,
            None => Standing::Unknown,
        }
    }

    /// Whether the node was removed as a manager, and its certificate may still be in force.
    pub fn is_revoked(&self, node_id: NodeId) -> bool {
        self.membership.revoked.contains(node_id)
    }

    /// How many revocations are remembered.
    pub fn revocations(&self) -> usize {
        self.membership.revoked.len()
    }

    pub(super) fn revoke(&mut self, node: NodeId, until: Timestamp, now: Timestamp) {
        Arc::make_mut(&mut self.membership).revoked.revoke(node, until, now);
    }

    /// Whether the Raft id was used and its member removed.
    pub fn is_removed_raft_id(&self, raft_id: RaftId) -> bool {
        self.membership.is_removed(raft_id)
    }

    /// Log indexes that members are known to have had on disk, from the marks: one that comes back with less was rolled
    /// back.
    pub fn floors(&self) -> &BTreeMap<RaftId, Index> {
        &self.membership.floors
    }

    /// What became of a change, while the ring remembers it.
    pub fn remembered(&self, change: ChangeId) -> Option<Outcome> {
        self.ring.get(change)
    }

    /// The newest revision that the ring of remembered changes does not cover: a change made after it or an earlier one
    /// is answered [`Outcome::Forgotten`] unless it is remembered. `None` while nothing that matters was forgotten.
    pub fn horizon(&self) -> Option<Revision> {
        self.ring.horizon(self.revision)
    }

    /// Whether a change made after `after` and not remembered was certainly never applied.
    pub fn covers(&self, after: Revision) -> bool {
        self.ring.covers(after, self.revision)
    }

    /// The state hash: equal on every replica that applied the same entries.
    pub fn hash(&self) -> u128 {
        self.total(self.objects_hash, self.ring.hash())
    }

    /// The state hash from what is stored: differs from [`Self::hash`] when memory changed behind the store's back.
    pub fn recompute_hash(&self) -> u128 {
        let objects = Kind::ALL
            .into_iter()
            .flat_map(|kind| self.iter(kind))
            .fold(0, |sum: u128, stored| sum.wrapping_add(digest128(&[b"object", &envelope::encode(&stored.object)])));
        self.total(objects, self.ring.recompute_hash())
    }

    pub(super) fn total(&self, objects: u128, ring: u128) -> u128 {
        let counters =
            (self.lineage, self.applied, self.revision, &*self.membership, self.ring.forgotten(), self.ring.horizons());
        let rest = digest128(&[b"counters", &envelope::encode(&counters)]);
        rest.wrapping_add(objects).wrapping_add(ring)
    }

    pub(super) fn table(&self, kind: Kind) -> &Table {
        &self.tables[kind as usize]
    }

    /// Moves on to the next entry. Every entry is applied once and in order; anything else means that raft and the store
    /// no longer agree on where they are, and going on would let this replica diverge.
    pub fn advance(&mut self, position: Position) {
        assert!(
            position.index == self.applied.index.next() && position.term >= self.applied.term,
            "entry {position:?} does not follow {:?}",
            self.applied
        );
        self.applied = position;
    }

    /// Judges a change against this state and carries it out if it passes, all of it or nothing. `term` is its entry's.
    ///
    /// A repeated id gets its first answer. Only a committed change has a revision and events. By value, because the
    /// objects of a committed change move into their tables.
    pub fn apply_change(&mut self, change: Change, term: Term) -> (Outcome, Option<EventBatch>) {
        let first = self.ring.claim(change.id);
        if let Err(outcome) = &first
            && !planted(Fault::RepeatedChangeApplied)
        {
            return (outcome.clone(), None);
        }
        if !self.ring.covers(change.after, self.revision) {
            if first.is_ok() {
                self.ring.release(change.id);
            }
            return (Outcome::Forgotten, None);
        }
        let (id, at) = (change.id, self.revision);
        let (outcome, batch) = match self.try_change(change, term) {
            Ok(batch) => (Outcome::Committed(self.revision), Some(batch)),
            Err(refusal) => (Outcome::Refused(refusal), None),
        };
        if planted(Fault::RefusalTakesRevision) && batch.is_none() {
            self.revision = self.revision.next();
        }
        if first.is_ok() {
            self.ring.record(&Record { id, at, outcome: outcome.clone() });
        }
        (outcome, batch)
    }

    /// Puts an object in its table without judging it; gives back what was there. For decoding and roll-back too.
    pub(super) fn replace(&mut self, kind: Kind, id: ObjectId, stored: Option<Arc<Stored>>) -> Option<Arc<Stored>> {
        let added = stored.as_ref().map_or(0, |new| new.hash);
        let old = self.tables[kind as usize].replace(id, stored);
        let removed = old.as_ref().map_or(0, |old| old.hash);
        self.objects_hash = self.objects_hash.wrapping_add(added).wrapping_sub(removed);
        old
    }

    /// Puts objects in their tables that are in none yet, each once.
    pub(super) fn load(&mut self, objects: Vec<Arc<Stored>>) {
        self.objects_hash = objects.iter().fold(self.objects_hash, |sum, stored| sum.wrapping_add(stored.hash));
        let mut of_kinds = [const { Vec::new() }; Kind::ALL.len()];
        for stored in objects {
            of_kinds[stored.object.kind() as usize].push(stored);
        }
        for (table, objects) in self.tables.iter_mut().zip(of_kinds) {
            table.load(objects);
        }
    }

    /// Puts in an object unless its id or its name is taken.
    pub(super) fn create(&mut self, stored: Arc<Stored>) -> Result<(), Taken> {
        let (kind, hash) = (stored.object.kind(), stored.hash);
        let unique = kind.has_unique_names() && !planted(Fault::NameUnchecked);
        self.tables[kind as usize].create(stored, unique)?;
        self.objects_hash = self.objects_hash.wrapping_add(hash);
        Ok(())
    }

    /// Before a replay: what entries create is put into the trees by [`Self::settle`], all at once and in order. Until then
    /// nothing may be asked of this state but what entries ask for.
    pub fn stage(&mut self) {
        for kind in Kind::ALL.into_iter().filter(|kind| kind.has_unique_names()) {
            self.tables[kind as usize].stage();
        }
        self.ring.defer();
    }

    /// Ends what [`Self::stage`] began.
    pub fn settle(&mut self) {
        self.tables.iter_mut().for_each(Table::settle);
        self.ring.settle();
    }

    /// The first of [`Self::find`], for an entry, which may come during a replay.
    pub(super) fn find_for_entry(&mut self, kind: Kind, any_of: &[Selector]) -> Option<&Arc<Stored>> {
        let table = &mut self.tables[kind as usize];
        if table.is_staging() {
            table.settle();
            table.stage();
        }
        self.tables[kind as usize].find(any_of, 1).pop()
    }

    /// Changes an object in memory and neither its digest nor any index or sum, as a bit that flips does; false when there
    /// is none. For tests of what finds it: nothing in the product calls this.
    #[doc(hidden)]
    pub fn rot(&mut self, kind: Kind, id: ObjectId, flip: impl FnOnce(&mut Object)) -> bool {
        let Some(stored) = self.get(kind, id) else { return false };
        let mut object = stored.object.clone();
        flip(&mut object);
        let stored = Stored { object, hash: stored.hash, bytes: stored.bytes };
        self.tables[kind as usize].spoil(id, Arc::new(stored));
        true
    }

    /// Makes a membership change if the rules allow it; tells whether they do. A refused one changes nothing.
    pub fn apply_member_change(&mut self, change: &MemberChange) -> bool {
        let allowed = self.membership.allows(change);
        if allowed {
            Arc::make_mut(&mut self.membership).apply(change);
        }
        allowed
    }

    /// Marks the node of a member that has left the swarm, so that it is removed next. `None` if it has no object.
    pub fn mark_leaving(&mut self, node: NodeId, position: Position) -> Option<EventBatch> {
        let Object::Node(node) = &self.get(Kind::Node, node.into())?.object else { return None };
        let mut node = node.clone();
        (node.spec.desired_role, node.spec.membership) = (Role::Worker, MembershipState::Leaving);
        // The entry carries no time: the newest that this object knows stands for it.
        let (time, after) = (node.meta.updated_at, self.revision);
        let id = ChangeId(digest128(&[b"leave", &position.index.0.to_le_bytes()]));
        let change = Change { id, after, time, term: None, operations: vec![Operation::Update(Object::Node(node))] };
        self.apply_change(change, position.term).1
    }

    /// Notes where a member listens; false, and nothing changes, when no member has both ids.
    pub fn set_address(&mut self, raft_id: RaftId, node_id: NodeId, addr: &str) -> bool {
        Arc::make_mut(&mut self.membership).set_address(raft_id, node_id, addr)
    }

    /// Notes how far each voter's log was, and gives the hash of the state at the mark, whose entry is the one applied
    /// last. In a replay there is none, and nobody who compares it.
    pub fn mark(&mut self, floors: &[(RaftId, Index)]) -> Option<StateHash> {
        Arc::make_mut(&mut self.membership).raise_floors(floors);
        let hash = || StateHash { index: self.applied.index, revision: self.revision, sum: self.hash() };
        (!self.ring.is_deferred()).then(hash)
    }

    fn try_change(&mut self, change: Change, term: Term) -> Result<EventBatch, Refusal> {
        if change.term.is_some_and(|made_in| made_in != term) && !planted(Fault::TermUnchecked) {
            return Err(Refusal::TermChanged);
        }
        super::change::execute(self, change)
    }
}

fn one<'a>(mut found: impl Iterator<Item = &'a Arc<Stored>>) -> Result<Arc<Stored>, ResolveError> {
    match (found.next(), found.next()) {
        (None, _) => Err(ResolveError::NotFound),
        (Some(only), None) => Ok(only.clone()),
        (Some(first), Some(second)) => {
            let ids = [first, second].into_iter().chain(found).map(|stored| stored.object.id());
            Err(ResolveError::Ambiguous(ids.take(MAX_CANDIDATES).collect()))
        }
    }
}
