//! One table: objects by id, and the indexes that answer every selector without a scan.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::Stored;
use crate::sys::faults::{Fault, planted};
use crate::types::object::{MembershipState, TaskState};
use crate::types::{Object, ObjectId, Role, Selector, Timestamp};

/// The objects of one kind. A clone shares everything until one side writes.
#[derive(Clone, Default)]
pub(super) struct Table {
    objects: OrdMap<ObjectId, Arc<Stored>>,
    bytes: u64,
    names: OrdMap<NameKey, Holders>,
    /// Lower-case kinds of resources, and the resources of each by age: a new one goes to the end, which is in the
    /// processor's cache, where random ids would each touch another leaf.
    kinds: OrdMap<Arc<str>, OrdSet<(Timestamp, ObjectId)>>,
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
    /// The first 16 bytes in lower case, padded with zeros, as a big-endian number in two halves: in the order of the names.
    head: (u64, u64),
    /// Of the whole name in lower case.
    hash: u64,
}

impl NameKey {
    fn new(name: &str) -> Self {
        let head = Self::head(name, 0);
        // Names that collide on purpose share an entry: a comparison for each of them, and a copy of their ids.
        let mut hash = mix(mix(name.len() as u64, head.0), head.1);
        for chunk in name.as_bytes().get(16..).unwrap_or_default().chunks(8) {
            hash = mix(hash, word(chunk, 0));
        }
        Self { head, hash: mix(hash, 0) }
    }

    fn head(name: &str, padding: u8) -> (u64, u64) {
        let (first, second) = name.as_bytes().split_at(name.len().min(8));
        (word(first, padding), word(second, padding))
    }

    /// The keys of every name that begins with `prefix`, and of some that do not.
    fn with_prefix(prefix: &str) -> RangeInclusive<Self> {
        let first = Self { head: Self::head(prefix, 0), hash: 0 };
        let last = Self { head: Self::head(prefix, 0xff), hash: u64::MAX };
        first..=last
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

/// Who has a name, in order of id. Nearly always one, which then needs no memory besides its place in the tree.
#[derive(Clone, Debug)]
enum Holders {
    /// The bytes of its id: an integer of that size would make the entry larger by its alignment.
    One([u8; 16]),
    /// Several of a kind whose names need not be unique, or whose names only have the same key.
    Many(Arc<[ObjectId]>),
}

impl Holders {
    /// `ids` in order, at least one.
    fn new(ids: &[ObjectId]) -> Self {
        match ids {
            [id] => Self::One(id.0.to_ne_bytes()),
            ids => Self::Many(ids.into()),
        }
    }

    fn ids(&self) -> impl Iterator<Item = ObjectId> {
        let (one, many) = match self {
            Self::One(id) => (Some(ObjectId(u128::from_ne_bytes(*id))), &[][..]),
            Self::Many(ids) => (None, &**ids),
        };
        one.into_iter().chain(many.iter().copied())
    }
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
            .filter_map(|stored| Some((NameKey::new(stored.object.name()?), stored.object.id())))
            .collect();
        names.sort_unstable();
        let names: Vec<(NameKey, Holders)> = names
            .chunk_by(|one, other| one.0 == other.0)
            .map(|same| (same[0].0, Holders::new(&same.iter().map(|(_, id)| *id).collect::<Vec<_>>())))
            .collect();
        for (name, holders) in twice(&names) {
            self.names.insert(*name, holders.clone());
        }
        let mut kinds: BTreeMap<Arc<str>, Vec<(Timestamp, ObjectId)>> = BTreeMap::new();
        for (kind, object) in objects.iter().filter_map(|stored| resource_kind(&stored.object)) {
            match kinds.get_mut(kind) {
                Some(members) => members.push(place(object)),
                None => kinds.entry(lower(kind)).or_default().push(place(object)),
            }
        }
        for (kind, mut members) in kinds {
            members.sort_unstable();
            let set = self.kinds.entry(kind).or_default();
            for member in twice(&members) {
                set.insert(*member);
            }
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
    pub fn named<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a Arc<Stored>> + use<'a, 'n> {
        self.holders(NameKey::new(name))
            .filter_map(|id| self.objects.get(&id))
            .filter(move |stored| stored.object.name().is_some_and(|other| other.eq_ignore_ascii_case(name)))
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
            Selector::Name(name) => ids.extend(self.named(name).map(|stored| stored.object.id())),
            Selector::NamePrefix(prefix) => {
                let candidates = self.names.range(NameKey::with_prefix(prefix)).flat_map(|(_, holders)| holders.ids());
                let matching =
                    candidates.filter_map(|id| self.objects.get(&id)).filter(|stored| selector.matches(&stored.object));
                ids.extend(matching.map(|stored| stored.object.id()));
            }
            Selector::Kind(kind) => {
                ids.extend(self.kinds.get(&*lower(kind)).into_iter().flatten().map(|(_, id)| *id));
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
        self.swap_name(id, old.and_then(Object::name), new.and_then(Object::name));
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
            remove_from(&mut self.custom, index, &(Arc::from(value.as_str()), id));
        }
        for (index, value) in after.into_iter().flatten() {
            let values = self.custom.entry(Arc::from(index.as_str())).or_default();
            values.insert((Arc::from(value.as_str()), id));
        }
    }

    fn swap_name(&mut self, id: ObjectId, old: Option<&str>, new: Option<&str>) {
        if old == new || planted(Fault::NameIndexStale) && old.is_some() && new.is_some() {
            return;
        }
        if let Some(old) = old {
            let key = NameKey::new(old);
            let left: Vec<_> = self.holders(key).filter(|holder| *holder != id).collect();
            match left.as_slice() {
                [] => drop(self.names.remove(&key)),
                left => drop(self.names.insert(key, Holders::new(left))),
            }
        }
        if let Some(new) = new {
            let key = NameKey::new(new);
            if let Some(before) = self.names.insert(key, Holders::new(&[id])) {
                let mut ids: Vec<_> = before.ids().filter(|holder| *holder != id).chain([id]).collect();
                ids.sort_unstable();
                self.names.insert(key, Holders::new(&ids));
            }
        }
    }

    fn holders(&self, key: NameKey) -> impl Iterator<Item = ObjectId> {
        self.names.get(&key).into_iter().flat_map(Holders::ids)
    }

    fn swap_kind(&mut self, old: Option<&Object>, new: Option<&Object>) {
        let (old, new) = (old.and_then(resource_kind), new.and_then(resource_kind));
        if old.map(|(kind, object)| (kind, place(object))) == new.map(|(kind, object)| (kind, place(object))) {
            return;
        }
        if let Some((kind, object)) = old {
            remove_from(&mut self.kinds, &lower(kind), &place(object));
        }
        if let Some((kind, object)) = new {
            match self.kinds.get_mut(kind) {
                Some(set) => drop(set.insert(place(object))),
                None => drop(self.kinds.entry(lower(kind)).or_default().insert(place(object))),
            }
        }
    }
}

/// Removes a member of a set, and the set with its last member.
fn remove_from<T: Ord + Clone>(sets: &mut OrdMap<Arc<str>, OrdSet<T>>, key: &str, member: &T) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(member);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}

/// Lower case of ASCII letters only: Unicode's tables change between compilers, and replicas may be built by several.
fn lower(text: &str) -> Arc<str> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Arc::from(text.to_ascii_lowercase())
    } else {
        Arc::from(text)
    }
}

/// A resource's place among those of its kind.
fn place(object: &Object) -> (Timestamp, ObjectId) {
    (object.meta().created_at, object.id())
}

/// Every second element, and then the others. A tree that is filled in order splits each leaf that is full and never comes
/// back to its first half; the second round fills those.
fn twice<T>(sorted: &[T]) -> impl Iterator<Item = &T> {
    sorted.iter().step_by(2).chain(sorted.iter().skip(1).step_by(2))
}

fn resource_kind(object: &Object) -> Option<(&str, &Object)> {
    match object {
        Object::Resource(resource) => Some((&resource.kind, object)),
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

    /// Two names with one key: the second differs in the two words after the head, so that what the first of them
    /// changes in the hash the other takes back.
    fn colliding() -> (String, String) {
        const NAME: &str = "sixteen-letters-and-sixteen-more";
        let words = |name: &str| (word(&name.as_bytes()[16..], 0), word(&name.as_bytes()[24..], 0));
        let after = |first: u64| {
            let head = NameKey::head(NAME, 0);
            mix(mix(mix(NAME.len() as u64, head.0), head.1), first)
        };
        let (first, second) = words(NAME);
        let mut entropy = SeededEntropy::new(1);
        loop {
            let other = entropy.next_u64() & 0x1f1f_1f1f_1f1f_1f1f | 0x2020_2020_2020_2020;
            let back = second ^ after(first) ^ after(other);
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
        Arc::new(Stored::new(Object::Resource(resource)))
    }

    fn ids<'a>(found: impl Iterator<Item = &'a Arc<Stored>>) -> Vec<u128> {
        found.map(|stored| stored.object.id().0).collect()
    }

    #[test]
    fn names_that_share_a_key_are_told_apart() {
        let (one, other) = colliding();
        assert!(one != other && NameKey::new(&one) == NameKey::new(&other), "{one} {other}");
        let objects = [stored(1, &other), stored(2, &one), stored(3, &one.to_ascii_uppercase()), stored(4, "else")];
        let (mut built, mut loaded) = (Table::default(), Table::default());
        for number in [2, 0, 3, 1] {
            let object = objects[number].clone();
            built.replace(object.object.id(), Some(object));
        }
        loaded.load(&objects);
        for table in [&mut built, &mut loaded] {
            assert_eq!((ids(table.named(&one)), ids(table.named(&other))), (vec![2, 3], vec![1]));
            assert_eq!(ids(table.find(&[Selector::NamePrefix(one[..17].to_owned())]).into_iter()), [2, 3]);
            table.replace(ObjectId(2), None);
            assert_eq!((ids(table.named(&one)), ids(table.named(&other))), (vec![3], vec![1]));
            table.replace(ObjectId(3), Some(stored(3, &other)));
            assert_eq!((ids(table.named(&one)), ids(table.named(&other))), (vec![], vec![1, 3]));
            table.replace(ObjectId(1), None);
            table.replace(ObjectId(3), None);
            assert_eq!(table.names.len(), 1, "only the fourth is left");
        }
    }
}
