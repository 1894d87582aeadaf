//! One table: objects by id, and the indexes that answer every selector without a scan. Here they are written; how they are
//! read is in `search`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

use imbl::{OrdMap, OrdSet};

use super::Stored;
use super::by_age::{ByAge, Place, take_twice};
use super::names::{NameKey, Names};
use super::staged::Staged;
use crate::sys::faults::{Fault, planted};
use crate::types::{Object, ObjectId};

mod relation;
mod search;

use relation::Relation;
pub use search::Search;

/// Objects by id.
pub(super) type Objects = OrdMap<ObjectId, Arc<Stored>>;

/// The objects of one kind. A clone shares everything until one side writes.
#[derive(Clone, Default)]
pub(super) struct Table {
    objects: Objects,
    bytes: u64,
    names: Names,
    /// Lower-case kinds of resources, and the resources of each.
    kinds: OrdMap<Arc<[u8]>, ByAge>,
    /// Custom indices: for each the values, and who has them.
    custom: OrdMap<Arc<str>, OrdSet<(Arc<str>, ObjectId)>>,
    relations: OrdSet<(Relation, ObjectId)>,
    /// During a replay, objects that are in none of the above yet, see [`Self::stage`].
    staged: Option<Box<Staged>>,
}

/// Why an object was not put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Another one has its id.
    Id,
    /// This one has its name.
    Name(ObjectId),
}

/// Objects that are worth a thread to put them in.
const MANY: usize = 10_000;

impl Table {
    pub fn get(&self, id: ObjectId) -> Option<&Arc<Stored>> {
        let staged = self.staged.as_ref().and_then(|staged| staged.get(id));
        staged.or_else(|| self.objects.get(&id))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Stored>> {
        self.all().values()
    }

    /// The objects of this id and the ones after it.
    pub fn since(&self, id: ObjectId) -> impl Iterator<Item = &Arc<Stored>> {
        self.all().range(id..).map(|(_, stored)| stored)
    }

    /// The same with the places they stand in.
    pub fn entries_since(&self, id: ObjectId) -> impl Iterator<Item = (ObjectId, &Arc<Stored>)> {
        self.all().range(id..).map(|(key, stored)| (*key, stored))
    }

    /// The objects, none of which is staged. Whoever asks for many asks here: what is staged has no order and no indexes.
    fn all(&self) -> &Objects {
        assert!(
            self.staged.as_ref().is_none_or(|staged| staged.len() == 0),
            "a replay reads no index before it settles"
        );
        &self.objects
    }

    /// Puts `stored` in a place without a change in any index, as a fault of memory would.
    pub fn spoil(&mut self, id: ObjectId, stored: Arc<Stored>) {
        let old = self.objects.insert(id, stored.clone());
        // Both trees lead to one object, which is what rots.
        if let Some(key) = old.as_ref().and_then(|old| old.object.name_bytes()).map(NameKey::new) {
            self.names.renew(key, &stored);
        }
    }

    pub fn len(&self) -> usize {
        self.objects.len() + self.staged.as_ref().map_or(0, |staged| staged.len())
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// From here to the next [`Self::settle`] new objects are staged: [`Self::get`] and [`Self::named`] find them, and nothing
    /// else may be asked for. Of a kind whose names are unique.
    pub fn stage(&mut self) {
        self.staged.get_or_insert_default();
    }

    /// Puts what is staged into the trees. Nothing is staged any more.
    pub fn settle(&mut self) {
        if let Some(staged) = self.staged.take() {
            self.fill(staged.into_objects());
        }
    }

    /// Whether new objects are staged.
    pub fn is_staging(&self) -> bool {
        self.staged.is_some()
    }

    /// Puts in an object unless its id is taken or, where `unique`, its name.
    pub fn create(&mut self, stored: Arc<Stored>, unique: bool) -> Result<(), Taken> {
        let bytes = u64::from(stored.bytes);
        if self.is_staging() {
            if self.get(stored.object.id()).is_some() {
                return Err(Taken::Id);
            }
            if let Some(holder) = self.holder(&stored.object).filter(|_| unique) {
                return Err(Taken::Name(holder));
            }
            self.put(stored);
        } else {
            self.insert(stored, unique)?;
        }
        self.bytes += bytes;
        Ok(())
    }

    /// [`Self::create`] in the trees: one way down each of them, and back where something is taken, which is rare.
    fn insert(&mut self, stored: Arc<Stored>, unique: bool) -> Result<(), Taken> {
        let id = stored.object.id();
        if let Some(before) = self.objects.insert(id, stored.clone()) {
            self.objects.insert(id, before);
            return Err(Taken::Id);
        }
        if let Some(key) = stored.object.name_bytes().map(NameKey::new)
            && let Err(stored) = self.names.claim(key, stored.clone())
        {
            // It may be another name with this key.
            if let Some(holder) = self.holder(&stored.object).filter(|_| unique) {
                self.objects.remove(&id);
                return Err(Taken::Name(holder));
            }
            self.names.add(key, stored);
        }
        self.reindex(id, None, Some(&stored.object));
        Ok(())
    }

    /// Who has this object's name; the first of several.
    fn holder(&self, object: &Object) -> Option<ObjectId> {
        self.first_named(object.name_bytes()?).map(|holder| holder.object.id())
    }

    /// Puts `stored` in the place of what has its id, or removes what is there; gives back what was.
    pub fn replace(&mut self, id: ObjectId, stored: Option<Arc<Stored>>) -> Option<Arc<Stored>> {
        self.bytes += stored.as_ref().map_or(0, |new| u64::from(new.bytes));
        let old = if let Some(staged) = self.staged.as_mut().and_then(|staged| staged.take(id)) {
            stored.into_iter().for_each(|new| self.put(new));
            Some(staged)
        } else {
            self.exchange(id, stored)
        };
        self.bytes -= old.as_ref().map_or(0, |old| u64::from(old.bytes));
        old
    }

    /// Stages a new object, or puts it into the trees.
    fn put(&mut self, stored: Arc<Stored>) {
        let left = match &mut self.staged {
            Some(staged) => staged.put(stored).err(),
            None => Some(stored),
        };
        if let Some(stored) = left {
            self.exchange(stored.object.id(), Some(stored));
        }
    }

    /// [`Self::replace`] in the trees.
    fn exchange(&mut self, id: ObjectId, stored: Option<Arc<Stored>>) -> Option<Arc<Stored>> {
        let old = match &stored {
            Some(new) => self.objects.insert(id, new.clone()),
            None => self.objects.remove(&id),
        };
        self.swap_name(id, old.as_ref(), stored.as_ref());
        self.reindex(id, old.as_ref().map(|old| &old.object), stored.as_ref().map(|new| &new.object));
        old
    }

    /// Puts in many objects whose ids nothing has, each once.
    pub fn load(&mut self, objects: Vec<Arc<Stored>>) {
        self.bytes += objects.iter().map(|stored| u64::from(stored.bytes)).sum::<u64>();
        self.fill(objects);
    }

    /// Puts objects into the trees that are counted and in none. Every index is filled in its own order, so that each
    /// insertion finds its neighbours in the processor's cache: a million objects take a second instead of ten.
    fn fill(&mut self, objects: Vec<Arc<Stored>>) {
        let mut names: Vec<_> = objects
            .iter()
            .filter_map(|stored| Some((NameKey::new(stored.object.name_bytes()?), Some(stored.clone()))))
            .collect();
        let mut kinds: BTreeMap<Arc<[u8]>, Vec<Place>> = BTreeMap::new();
        for (kind, object) in objects.iter().filter_map(|stored| resource_kind(&stored.object)) {
            match kinds.get_mut(kind) {
                Some(members) => members.push(place(object)),
                None => kinds.entry(lower(kind)).or_default().push(place(object)),
            }
        }
        for stored in &objects {
            let (id, object) = (stored.object.id(), Some(&stored.object));
            self.swap_custom(id, None, object);
            for relation in Relation::of(object) {
                self.relations.insert((relation, id));
            }
        }
        let mut objects: Vec<_> = objects.into_iter().map(|stored| (stored.object.id(), Some(stored))).collect();
        let (by_id, by_name, by_kind) = (&mut self.objects, &mut self.names, &mut self.kinds);
        let many = objects.len() >= MANY;
        let mut load_names = || by_name.load(std::mem::take(&mut names));
        let names_are_loaded = thread::scope(|scope| {
            // Many are worth a thread for a moment, if there is one: the processor waits for memory most of the time.
            let spawned = many && thread::Builder::new().spawn_scoped(scope, &mut load_names).is_ok();
            objects.sort_unstable_by_key(|(id, _)| *id);
            for (id, stored) in take_twice(&mut objects) {
                by_id.insert(id, stored);
            }
            for (kind, mut members) in kinds {
                members.sort_unstable();
                by_kind.entry(kind).or_default().settle(&members);
            }
            spawned
        });
        if !names_are_loaded {
            load_names();
        }
    }

    /// Takes the old object out of every index but that of names and puts the new one in, leaving alone what both have.
    fn reindex(&mut self, id: ObjectId, old: Option<&Object>, new: Option<&Object>) {
        self.swap_kind(old, new);
        self.swap_custom(id, old, new);
        let (before, after) = (Relation::of(old), Relation::of(new));
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

    fn swap_name(&mut self, id: ObjectId, old: Option<&Arc<Stored>>, new: Option<&Arc<Stored>>) {
        let name_of = |stored: &Arc<Stored>| stored.object.name_bytes().map(NameKey::new);
        let keeps_it = |old: &Arc<Stored>, new: &Arc<Stored>| old.object.name_bytes() == new.object.name_bytes();
        match (old, new) {
            (Some(old), Some(new)) if keeps_it(old, new) => {
                name_of(new).into_iter().for_each(|key| self.names.renew(key, new));
            }
            (Some(_), Some(_)) if planted(Fault::NameIndexStale) => {}
            _ => {
                if let Some(key) = old.and_then(name_of) {
                    self.names.remove(key, id, &self.objects);
                }
                if let Some((key, new)) = new.and_then(|new| Some((name_of(new)?, new))) {
                    self.names.add(key, new.clone());
                }
            }
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

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::names::tests::colliding;
    use crate::types::Selector;
    use crate::types::object::Resource;

    fn stored(id: u128, name: &str) -> Arc<Stored> {
        let mut resource = Resource { id: ObjectId(id), kind: "k".to_owned(), ..Resource::default() };
        resource.annotations.name = name.to_owned();
        Arc::new(Stored::new(Object::from(resource)))
    }

    pub fn ids<'a>(found: impl Iterator<Item = &'a Arc<Stored>>) -> Vec<u128> {
        found.map(|stored| stored.object.id().0).collect()
    }

    #[test]
    fn resources_whose_short_places_are_the_same_stay_apart_by_their_kinds() {
        let of_kind = |id: u128, kind: &str, created: u64| {
            let mut resource = Resource { id: ObjectId(id), kind: kind.to_owned(), ..Resource::default() };
            resource.annotations.name = id.to_string();
            resource.meta.created_at = crate::types::Timestamp(created);
            Arc::new(Stored::new(Object::from(resource)))
        };
        let find =
            |table: &Table, kind: &str| ids(table.find(&[Selector::Kind(kind.to_owned())], usize::MAX).into_iter());
        let mut table = Table::default();
        // Of all of these the first 80 bits and the time are the same, and they have settled.
        for id in 0..200 {
            table.create(of_kind(id, if id.is_multiple_of(2) { "even" } else { "odd" }, 7), true).unwrap();
        }
        let of = |rest: u128| (0..200).filter(|id| id % 2 == rest).collect::<Vec<u128>>();
        assert_eq!((find(&table, "even"), find(&table, "odd")), (of(0), of(1)));
        // One changes its kind, one its time, one the case of its kind, and one goes: perhaps the one that has the place.
        for id in [0, 2, 4, 100, 102] {
            table.replace(ObjectId(id), Some(of_kind(id, "odd", 7)));
            table.replace(ObjectId(id + 6), Some(of_kind(id + 6, "even", 8)));
            table.replace(ObjectId(id + 12), Some(of_kind(id + 12, "EVEN", 7)));
            table.replace(ObjectId(id + 18), None);
        }
        let even = |id: &u128| !matches!(id, 0 | 2 | 4 | 18 | 20 | 22 | 100 | 102 | 118 | 120);
        assert_eq!(find(&table, "even"), of(0).into_iter().filter(even).collect::<Vec<_>>());
        assert_eq!(find(&table, "odd").len(), 105);
        for id in 0..200 {
            table.replace(ObjectId(id), None);
        }
        assert!(table.kinds.is_empty() && table.len() == 0);
    }

    #[test]
    fn what_is_staged_is_found_and_goes_into_the_trees() {
        // The second's id has the first's half, and the third has a name with the first's key: both are in the trees at once.
        let (name, same_key) = colliding();
        let half = 1 | 1 << 64;
        let objects = [stored(1, &name), stored(half, "b"), stored(3, &same_key), stored(4, "d"), stored(5, "e")];
        let mut table = Table::default();
        table.stage();
        objects.iter().for_each(|object| table.create(object.clone(), true).unwrap());
        assert_eq!((table.len(), table.objects.len()), (5, 2));
        for object in &objects {
            let (id, name) = (object.object.id(), object.object.name_bytes().unwrap());
            assert_eq!((table.get(id).unwrap().object.id(), ids(table.named(name))), (id, vec![id.0]));
        }
        assert!(table.get(ObjectId(2)).is_none() && table.get(ObjectId(3 | 1 << 64)).is_none());
        // Renamed, removed, and made again in the place of the one removed.
        assert_eq!(table.replace(ObjectId(4), Some(stored(4, "D2"))).unwrap().object.name(), Some("d"));
        assert!(table.replace(ObjectId(5), None).is_some() && table.replace(ObjectId(5), None).is_none());
        table.create(stored(6, "E"), true).unwrap();
        assert_eq!(table.create(stored(6, "other"), true), Err(Taken::Id));
        assert_eq!(table.create(stored(7, "e"), true), Err(Taken::Name(ObjectId(6))));
        assert_eq!(
            (ids(table.named(b"d")), ids(table.named(b"d2")), ids(table.named(b"e"))),
            (vec![], vec![4], vec![6])
        );
        // Takes a name whose key is another's, and so leaves the stage.
        table.replace(ObjectId(6), Some(stored(6, "B")));
        table.replace(ObjectId(half), None);
        table.replace(ObjectId(3), None);
        table.replace(ObjectId(4), Some(stored(4, &same_key)));
        assert_eq!((ids(table.named(same_key.as_bytes())), ids(table.named(name.as_bytes()))), (vec![4], vec![1]));
        let bytes = table.bytes();
        table.settle();
        assert_eq!((ids(table.iter()), table.len(), table.bytes()), (vec![1, 4, 6], 3, bytes));
        assert_eq!(bytes, table.iter().map(|stored| u64::from(stored.bytes)).sum::<u64>());
        assert_eq!((ids(table.named(same_key.as_bytes())), ids(table.named(b"b"))), (vec![4], vec![6]));
        assert_eq!(ids(table.find(&[Selector::Kind("K".to_owned())], usize::MAX).into_iter()), [1, 4, 6]);
    }

    #[test]
    fn many_go_into_the_trees_side_by_side() {
        let mut table = Table::default();
        table.stage();
        let count = MANY as u128 + 1;
        for number in (0..count).rev() {
            table.create(stored(number, &format!("r{number}")), true).unwrap();
        }
        table.settle();
        assert!(table.iter().map(|stored| stored.object.id().0).eq(0..count));
        assert_eq!(
            (table.names.len(), table.find(&[Selector::Kind("k".to_owned())], usize::MAX).len()),
            (MANY + 1, MANY + 1)
        );
        assert_eq!(ids(table.named(b"R77")), [77]);
    }

    #[test]
    fn what_is_staged_is_in_no_index() {
        for selector in [Selector::All, Selector::Kind("k".to_owned()), Selector::NamePrefix("a".to_owned())] {
            let mut table = Table::default();
            table.stage();
            table.create(stored(1, "a"), true).unwrap();
            let found = std::panic::catch_unwind(|| table.find(&[selector], usize::MAX).len());
            assert!(found.unwrap_err().downcast::<&str>().unwrap().contains("before it settles"));
        }
    }

    #[test]
    fn names_that_share_a_key_are_told_apart() {
        let (one, other) = colliding();
        let objects = [stored(1, &other), stored(2, &one), stored(3, &one.to_ascii_uppercase()), stored(4, "else")];
        let (mut built, mut loaded, mut staged) = (Table::default(), Table::default(), Table::default());
        staged.stage();
        for number in [2, 0, 3, 1] {
            let object = objects[number].clone();
            built.create(object.clone(), false).unwrap();
            staged.create(object, false).unwrap();
        }
        staged.settle();
        loaded.load(objects.to_vec());
        for table in [&mut built, &mut loaded, &mut staged] {
            let (bytes, taken) = (table.bytes(), stored(9, &one.to_ascii_uppercase()));
            assert_eq!(table.create(taken, true), Err(Taken::Name(ObjectId(2))));
            assert_eq!(table.create(stored(2, "new"), true), Err(Taken::Id));
            assert_eq!((table.bytes(), table.len(), table.named(b"new").count()), (bytes, 4, 0));
            assert_eq!((ids(table.named(one.as_bytes())), ids(table.named(other.as_bytes()))), (vec![2, 3], vec![1]));
            assert_eq!(ids(table.find(&[Selector::NamePrefix(one[..17].to_owned())], usize::MAX).into_iter()), [2, 3]);
            // Whatever is written over is found as it is now: the first of those with a key, another one, and the next first.
            let check = |table: &Table, name: &str| {
                table.named(name.as_bytes()).all(|it| Arc::ptr_eq(it, table.get(it.object.id()).unwrap()))
            };
            for (id, name) in [(1, &other), (3, &one), (2, &one)] {
                table.replace(ObjectId(id), Some(stored(id, name)));
                assert!(check(table, &one) && check(table, &other), "{id}");
            }
            table.replace(ObjectId(2), None);
            assert_eq!((ids(table.named(one.as_bytes())), ids(table.named(other.as_bytes()))), (vec![3], vec![1]));
            table.replace(ObjectId(3), Some(stored(3, &other)));
            assert_eq!((ids(table.named(one.as_bytes())), ids(table.named(other.as_bytes()))), (vec![], vec![1, 3]));
            table.replace(ObjectId(1), None);
            table.replace(ObjectId(3), Some(stored(3, &other)));
            assert!(check(table, &other), "it has become the first");
            table.replace(ObjectId(3), None);
            assert_eq!(table.names.len(), 1, "only the fourth is left");
        }
    }
}
