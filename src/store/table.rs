//! One table: objects by id, and the indexes that answer every selector without a scan.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::Stored;
use super::by_age::{ByAge, Place, twice};
use crate::sys::faults::{Fault, planted};
use crate::types::object::{MembershipState, TaskState};
use crate::types::{Object, ObjectId, Role, Selector};

/// The objects of one kind. A clone shares everything until one side writes.
#[derive(Clone, Default)]
pub(super) struct Table {
    objects: OrdMap<ObjectId, Arc<Stored>>,
    bytes: u64,
    /// Of every name who has it; of several the one of the lowest id.
    names: OrdMap<NameKey, ObjectId>,
    /// Everyone who has a name that several have, in order of id. Few: of most kinds the names are unique, and their keys
    /// nearly so.
    shared_names: OrdMap<NameKey, Arc<[ObjectId]>>,
    /// Lower-case kinds of resources, and the resources of each.
    kinds: OrdMap<Arc<[u8]>, ByAge>,
    /// Custom indices: for each the values, and who has them.
    custom: OrdMap<Arc<str>, OrdSet<(Arc<str>, ObjectId)>>,
    relations: OrdSet<(Relation, ObjectId)>,
}

/// What an object is found by besides text: of fixed size, so that an index entry costs no allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Relation {
    Role(Role),
    Membership(MembershipState),
    Service(ObjectId),
    Node(ObjectId),
    Slot(ObjectId, u64),
    DesiredState(TaskState),
    TaskState(TaskState),
    Network(ObjectId),
    Secret(ObjectId),
    Config(ObjectId),
}

/// A name as the index orders it: its first bytes, then a hash of all of it. Unlike the name itself this has a fixed size:
/// a comparison follows no pointer, and copying a node of the tree counts no references. Whoever finds a key compares the
/// object's name, which is exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct NameKey {
    /// The first twelve bytes in lower case, padded with zeros, as big-endian numbers: in the order of the names.
    head: u64,
    then: u32,
    /// Of the whole name in lower case.
    hash: u32,
}

impl NameKey {
    fn new(name: &[u8]) -> Self {
        // Names that collide on purpose share an entry: a comparison for each of them, and a copy of their ids.
        let hash = name.chunks(8).fold(name.len() as u64, |hash, chunk| mix(hash, word(chunk, 0)));
        Self::of(name, 0, (mix(hash, 0) >> 32) as u32)
    }

    fn of(name: &[u8], padding: u8, hash: u32) -> Self {
        let (first, second) = name.split_at(name.len().min(8));
        Self { head: word(first, padding), then: (word(second, padding) >> 32) as u32, hash }
    }

    /// The keys of every name that begins with `prefix`, and of some that do not.
    fn with_prefix(prefix: &[u8]) -> RangeInclusive<Self> {
        Self::of(prefix, 0, 0)..=Self::of(prefix, 0xff, u32::MAX)
    }
}

/// Takes one more word into a hash.
const fn mix(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

/// The first eight bytes in lower case, padded, as a big-endian number.
fn word(bytes: &[u8], padding: u8) -> u64 {
    let mut word = [padding; 8];
    let length = bytes.len().min(8);
    word[..length].copy_from_slice(&bytes[..length]);
    word.make_ascii_lowercase();
    u64::from_be_bytes(word)
}

impl Table {
    pub fn get(&self, id: ObjectId) -> Option<&Arc<Stored>> {
        self.objects.get(&id)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Stored>> {
        self.objects.values()
    }

    /// The objects of this id and the ones after it.
    pub fn since(&self, id: ObjectId) -> impl Iterator<Item = &Arc<Stored>> {
        self.objects.range(id..).map(|(_, stored)| stored)
    }

    /// The same with the places they stand in.
    pub fn entries_since(&self, id: ObjectId) -> impl Iterator<Item = (ObjectId, &Arc<Stored>)> {
        self.objects.range(id..).map(|(key, stored)| (*key, stored))
    }

    /// Puts `stored` in a place without telling the indexes, as a fault of memory would.
    pub fn spoil(&mut self, id: ObjectId, stored: Arc<Stored>) {
        self.objects.insert(id, stored);
    }

    pub fn len(&self) -> usize {
        self.objects.len()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts `stored` in the place of what has its id, or removes what is there; gives back what was.
    pub fn replace(&mut self, id: ObjectId, stored: Option<Arc<Stored>>) -> Option<Arc<Stored>> {
        let old = match &stored {
            Some(new) => self.objects.insert(id, new.clone()),
            None => self.objects.remove(&id),
        };
        self.bytes -= old.as_ref().map_or(0, |old| u64::from(old.bytes));
        self.bytes += stored.as_ref().map_or(0, |new| u64::from(new.bytes));
        self.reindex(id, old.as_deref(), stored.as_deref());
        old
    }

    /// Fills an empty table with objects in order of id, each once. Every index is filled in its own order, so that each
    /// insertion finds its neighbours in the processor's cache: a million objects take a second instead of ten.
    pub fn load(&mut self, objects: &[Arc<Stored>]) {
        debug_assert!(self.objects.is_empty() && objects.is_sorted_by_key(|stored| stored.object.id()));
        self.bytes = objects.iter().map(|stored| u64::from(stored.bytes)).sum();
        for stored in twice(objects) {
            self.objects.insert(stored.object.id(), stored.clone());
        }
        let mut names: Vec<(NameKey, ObjectId)> = objects
            .iter()
            .filter_map(|stored| Some((NameKey::new(stored.object.name_bytes()?), stored.object.id())))
            .collect();
        names.sort_unstable();
        for same in names.chunk_by(|one, other| one.0 == other.0).filter(|same| same.len() > 1) {
            self.shared_names.insert(same[0].0, same.iter().map(|(_, id)| *id).collect());
        }
        names.dedup_by_key(|(name, _)| *name);
        for (name, id) in twice(&names) {
            self.names.insert(*name, *id);
        }
        let mut kinds: BTreeMap<Arc<[u8]>, Vec<Place>> = BTreeMap::new();
        for (kind, object) in objects.iter().filter_map(|stored| resource_kind(&stored.object)) {
            match kinds.get_mut(kind) {
                Some(members) => members.push(place(object)),
                None => kinds.entry(lower(kind)).or_default().push(place(object)),
            }
        }
        for (kind, mut members) in kinds {
            members.sort_unstable();
            self.kinds.entry(kind).or_default().settle(&members);
        }
        for stored in objects {
            let (id, object) = (stored.object.id(), Some(&stored.object));
            self.swap_custom(id, None, object);
            for relation in relations(object) {
                self.relations.insert((relation, id));
            }
        }
    }

    /// The objects with this name, ignoring case, in order of id.
    pub fn named<'a, 'n>(&'a self, name: &'n [u8]) -> impl Iterator<Item = &'a Arc<Stored>> + use<'a, 'n> {
        let key = NameKey::new(name);
        self.names
            .get(&key)
            .into_iter()
            .flat_map(move |id| self.holders(key, id))
            .filter_map(|id| self.objects.get(&id))
            .filter(move |stored| stored.object.name_bytes().is_some_and(|other| other.eq_ignore_ascii_case(name)))
    }

    /// Everything that matches any of the selectors, in order of id, each once.
    pub fn find(&self, any_of: &[Selector]) -> Vec<&Arc<Stored>> {
        if any_of.contains(&Selector::All) {
            return self.objects.values().collect();
        }
        let mut ids = Vec::new();
        for selector in any_of {
            self.collect(selector, &mut ids);
        }
        ids.sort_unstable();
        ids.dedup();
        ids.into_iter().filter_map(|id| self.objects.get(&id)).collect()
    }

    /// Ids whose printed form begins with `prefix`.
    pub fn with_id_prefix(&self, prefix: &str) -> impl Iterator<Item = &Arc<Stored>> {
        let range = crate::types::ids::prefix_range(prefix);
        range.into_iter().flat_map(|(first, last)| self.objects.range(ObjectId(first)..=ObjectId(last))).map(|(_, o)| o)
    }

    fn collect(&self, selector: &Selector, ids: &mut Vec<ObjectId>) {
        match selector {
            Selector::All => ids.extend(self.objects.keys()),
            Selector::IdPrefix(prefix) => ids.extend(self.with_id_prefix(prefix).map(|stored| stored.object.id())),
            Selector::Name(name) => ids.extend(self.named(name.as_bytes()).map(|stored| stored.object.id())),
            Selector::NamePrefix(prefix) => {
                let candidates = self
                    .names
                    .range(NameKey::with_prefix(prefix.as_bytes()))
                    .flat_map(|(key, id)| self.holders(*key, id));
                let matching =
                    candidates.filter_map(|id| self.objects.get(&id)).filter(|stored| selector.matches(&stored.object));
                ids.extend(matching.map(|stored| stored.object.id()));
            }
            Selector::Kind(kind) => {
                ids.extend(self.kinds.get(&*lower(kind.as_bytes())).into_iter().flat_map(ByAge::ids));
            }
            Selector::Custom { index, value } => {
                let from = self.custom_from(index, value);
                ids.extend(from.take_while(|(found, _)| **found == **value).map(|(_, id)| *id));
            }
            Selector::CustomPrefix { index, prefix } => {
                let from = self.custom_from(index, prefix);
                ids.extend(from.take_while(|(found, _)| found.starts_with(&**prefix)).map(|(_, id)| *id));
            }
            Selector::Role(role) => self.related(Relation::Role(*role), ids),
            Selector::Membership(state) => self.related(Relation::Membership(*state), ids),
            Selector::Service(id) => self.related(Relation::Service(*id), ids),
            Selector::Node(id) => self.related(Relation::Node(*id), ids),
            Selector::Slot(id, slot) => self.related(Relation::Slot(*id, *slot), ids),
            Selector::DesiredState(state) => self.related(Relation::DesiredState(*state), ids),
            Selector::TaskState(state) => self.related(Relation::TaskState(*state), ids),
            Selector::ReferencedNetwork(id) => self.related(Relation::Network(*id), ids),
            Selector::ReferencedSecret(id) => self.related(Relation::Secret(*id), ids),
            Selector::ReferencedConfig(id) => self.related(Relation::Config(*id), ids),
        }
    }

    /// The values of a custom index from `value` on, and who has them.
    fn custom_from(&self, index: &str, value: &str) -> impl Iterator<Item = &(Arc<str>, ObjectId)> {
        let first = (Arc::from(value), ObjectId(0));
        self.custom.get(index).into_iter().flat_map(move |values| values.range(first.clone()..))
    }

    fn related(&self, relation: Relation, ids: &mut Vec<ObjectId>) {
        let matching = self.relations.range((relation, ObjectId(0))..=(relation, ObjectId(u128::MAX)));
        ids.extend(matching.map(|(_, id)| *id));
    }

    /// Takes the old object out of every index and puts the new one in, leaving alone what both have.
    fn reindex(&mut self, id: ObjectId, old: Option<&Stored>, new: Option<&Stored>) {
        let (old, new) = (old.map(|stored| &stored.object), new.map(|stored| &stored.object));
        self.swap_name(id, old.and_then(Object::name_bytes), new.and_then(Object::name_bytes));
        self.swap_kind(old, new);
        self.swap_custom(id, old, new);
        let (before, after) = (relations(old), relations(new));
        for relation in before.iter().filter(|relation| !after.contains(relation)) {
            self.relations.remove(&(*relation, id));
        }
        for relation in after.iter().filter(|relation| !before.contains(relation)) {
            self.relations.insert((*relation, id));
        }
    }

    fn swap_custom(&mut self, id: ObjectId, old: Option<&Object>, new: Option<&Object>) {
        let before = old.map(Object::indices);
        let after = new.map(Object::indices);
        if before == after {
            return;
        }
        for (index, value) in before.into_iter().flatten() {
            if let Some(values) = self.custom.get_mut(index.as_str()) {
                values.remove(&(Arc::from(value.as_str()), id));
                if values.is_empty() {
                    self.custom.remove(index.as_str());
                }
            }
        }
        for (index, value) in after.into_iter().flatten() {
            let values = self.custom.entry(Arc::from(index.as_str())).or_default();
            values.insert((Arc::from(value.as_str()), id));
        }
    }

    fn swap_name(&mut self, id: ObjectId, old: Option<&[u8]>, new: Option<&[u8]>) {
        if old == new || planted(Fault::NameIndexStale) && old.is_some() && new.is_some() {
            return;
        }
        if let Some(old) = old {
            let key = NameKey::new(old);
            self.set_holders(key, |ids| ids.retain(|holder| *holder != id));
        }
        if let Some(new) = new {
            let key = NameKey::new(new);
            // Nearly always nobody had it.
            if let Some(before) = self.names.insert(key, id) {
                self.names.insert(key, before);
                self.set_holders(key, |ids| ids.push(id));
            }
        }
    }

    /// Everyone who has a name, of whom `first` is the first.
    fn holders<'a>(&'a self, key: NameKey, first: &'a ObjectId) -> impl Iterator<Item = ObjectId> + use<'a> {
        self.shared_names.get(&key).map_or(std::slice::from_ref(first), |ids| ids).iter().copied()
    }

    fn set_holders(&mut self, key: NameKey, change: impl FnOnce(&mut Vec<ObjectId>)) {
        let mut ids: Vec<_> = self.names.get(&key).into_iter().flat_map(|first| self.holders(key, first)).collect();
        change(&mut ids);
        ids.sort_unstable();
        match ids.first() {
            Some(first) => drop(self.names.insert(key, *first)),
            None => drop(self.names.remove(&key)),
        }
        if ids.len() > 1 {
            self.shared_names.insert(key, ids.into());
        } else {
            self.shared_names.remove(&key);
        }
    }

    fn swap_kind(&mut self, old: Option<&Object>, new: Option<&Object>) {
        let (old, new) = (old.and_then(resource_kind), new.and_then(resource_kind));
        if old.map(|(kind, object)| (kind, place(object))) == new.map(|(kind, object)| (kind, place(object))) {
            return;
        }
        if let Some((kind, object)) = old {
            let kind = lower(kind);
            if let Some(set) = self.kinds.get_mut(&kind) {
                set.remove(place(object));
                if set.is_empty() {
                    self.kinds.remove(&kind);
                }
            }
        }
        if let Some((kind, object)) = new {
            match self.kinds.get_mut(kind) {
                Some(set) => set.insert(place(object)),
                None => self.kinds.entry(lower(kind)).or_default().insert(place(object)),
            }
        }
    }
}

/// Lower case of ASCII letters only: Unicode's tables change between compilers, and replicas may be built by several.
fn lower(text: &[u8]) -> Arc<[u8]> {
    if text.iter().any(u8::is_ascii_uppercase) { text.to_ascii_lowercase().into() } else { text.into() }
}

/// A resource's place among those of its kind.
fn place(object: &Object) -> Place {
    (object.meta().created_at, object.id())
}

fn resource_kind(object: &Object) -> Option<(&[u8], &Object)> {
    match object {
        Object::Resource(resource) => Some((resource.kind_bytes(), object)),
        _ => None,
    }
}

/// What `object` is found by; may repeat. Resources, the many and small, have none and cost no allocation here.
fn relations(object: Option<&Object>) -> Vec<Relation> {
    let Some(object) = object else { return Vec::new() };
    let mut relations = Vec::new();
    match object {
        Object::Resource(_) => return relations,
        Object::Node(node) => {
            relations.extend([Relation::Role(node.spec.desired_role), Relation::Membership(node.spec.membership)]);
        }
        Object::Task(task) => {
            relations.extend([Relation::DesiredState(task.desired_state), Relation::TaskState(task.status.state)]);
            relations.extend(task.node_id.map(|id| Relation::Node(id.into())));
            if let Some(id) = task.service_id {
                relations.extend([Relation::Service(id), Relation::Slot(id, task.slot)]);
            }
        }
        _ => {}
    }
    relations.extend(object.referenced_networks().map(Relation::Network));
    relations.extend(object.referenced_secrets().map(Relation::Secret));
    relations.extend(object.referenced_configs().map(Relation::Config));
    relations
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::sys::entropy::{Entropy as _, SeededEntropy};
    use crate::types::object::Resource;

    /// Two names with one key: the second differs in the two words after its first half, so that what the first of them
    /// changes in the hash the other takes back.
    fn colliding() -> (String, String) {
        const NAME: &str = "sixteen-letters-and-sixteen-more";
        let words = |name: &str| (word(&name.as_bytes()[16..], 0), word(&name.as_bytes()[24..], 0));
        let after = |third: u64| {
            let (first, second) = (word(NAME.as_bytes(), 0), word(&NAME.as_bytes()[8..], 0));
            mix(mix(mix(NAME.len() as u64, first), second), third)
        };
        let (third, fourth) = words(NAME);
        let mut entropy = SeededEntropy::new(1);
        loop {
            let other = entropy.next_u64() & 0x1f1f_1f1f_1f1f_1f1f | 0x2020_2020_2020_2020;
            let back = fourth ^ after(third) ^ after(other);
            let bytes = [other.to_be_bytes(), back.to_be_bytes()].concat();
            if let Ok(text) = String::from_utf8(bytes)
                && text.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase())
            {
                return (NAME.to_owned(), format!("{}{text}", &NAME[..16]));
            }
        }
    }

    fn stored(id: u128, name: &str) -> Arc<Stored> {
        let mut resource = Resource { id: ObjectId(id), kind: "k".to_owned(), ..Resource::default() };
        resource.annotations.name = name.to_owned();
        Arc::new(Stored::new(Object::from(resource)))
    }

    fn ids<'a>(found: impl Iterator<Item = &'a Arc<Stored>>) -> Vec<u128> {
        found.map(|stored| stored.object.id().0).collect()
    }

    #[test]
    fn names_that_share_a_key_are_told_apart() {
        let (one, other) = colliding();
        assert!(one != other && NameKey::new(one.as_bytes()) == NameKey::new(other.as_bytes()), "{one} {other}");
        let objects = [stored(1, &other), stored(2, &one), stored(3, &one.to_ascii_uppercase()), stored(4, "else")];
        let (mut built, mut loaded) = (Table::default(), Table::default());
        for number in [2, 0, 3, 1] {
            let object = objects[number].clone();
            built.replace(object.object.id(), Some(object));
        }
        loaded.load(&objects);
        for table in [&mut built, &mut loaded] {
            assert_eq!((ids(table.named(one.as_bytes())), ids(table.named(other.as_bytes()))), (vec![2, 3], vec![1]));
            assert_eq!(ids(table.find(&[Selector::NamePrefix(one[..17].to_owned())]).into_iter()), [2, 3]);
            table.replace(ObjectId(2), None);
            assert_eq!((ids(table.named(one.as_bytes())), ids(table.named(other.as_bytes()))), (vec![3], vec![1]));
            table.replace(ObjectId(3), Some(stored(3, &other)));
            assert_eq!((ids(table.named(one.as_bytes())), ids(table.named(other.as_bytes()))), (vec![], vec![1, 3]));
            table.replace(ObjectId(1), None);
            table.replace(ObjectId(3), None);
            assert_eq!(table.names.len(), 1, "only the fourth is left");
        }
    }
}
