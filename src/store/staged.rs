//! Objects that a replay created and that have no place in the trees yet.
//!
//! Ids and names come in random order: each is a cache miss or two to look up and to put into a tree, for a million of them
//! a third of the time of a start. Here they cost a place in a hash map each, and when the replay is over the trees are
//! filled in order (`Table::settle`).

use std::collections::HashMap;
use std::collections::hash_map::Entry::Vacant;
use std::sync::Arc;

use super::Stored;
use super::names::NameKey;
use crate::types::ObjectId;

/// Objects by id and by name, of a kind whose names are unique. Not persistent: a clone copies all of it.
#[derive(Clone, Default)]
pub(super) struct Staged {
    /// In order of age, but for those that took the place of one that went.
    objects: Vec<Option<Arc<Stored>>>,
    free: Vec<u32>,
    /// Where the objects stand, by a half of their ids; an object whose half is taken is not staged.
    ids: HashMap<u64, u32>,
    /// The same by a digest of the name.
    names: HashMap<u64, u32>,
}

impl Staged {
    pub fn get(&self, id: ObjectId) -> Option<&Arc<Stored>> {
        self.at(self.ids.get(&half(id))).filter(|stored| stored.object.id() == id)
    }

    /// The object with this name, ignoring case.
    pub fn named(&self, name: &[u8]) -> Option<&Arc<Stored>> {
        self.at(self.names.get(&NameKey::new(name).digest())).filter(|stored| stored.has_name(name))
    }

    fn at(&self, place: Option<&u32>) -> Option<&Arc<Stored>> {
        self.objects.get(*place? as usize)?.as_ref()
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Takes an object in, or gives it back when it has no name or another one stands where it would.
    pub fn put(&mut self, stored: Arc<Stored>) -> Result<(), Arc<Stored>> {
        let name = stored.object.name_bytes().map(|name| NameKey::new(name).digest());
        let place = self.free.last().copied().unwrap_or(self.objects.len() as u32);
        match (self.ids.entry(half(stored.object.id())), name.map(|name| self.names.entry(name))) {
            (Vacant(id), Some(Vacant(name))) if place < u32::MAX => {
                id.insert(place);
                name.insert(place);
            }
            _ => return Err(stored),
        }
        if self.free.pop().is_some() {
            self.objects[place as usize] = Some(stored);
        } else {
            self.objects.push(Some(stored));
        }
        Ok(())
    }

    /// Takes an object out.
    pub fn take(&mut self, id: ObjectId) -> Option<Arc<Stored>> {
        let name = NameKey::new(self.get(id)?.object.name_bytes()?).digest();
        let place = self.ids.remove(&half(id))?;
        self.names.remove(&name);
        self.free.push(place);
        self.objects[place as usize].take()
    }

    /// All of them, in about the order in which they were made, which is the order in which they lie in memory.
    pub fn into_objects(self) -> Vec<Arc<Stored>> {
        self.objects.into_iter().flatten().collect()
    }
}

/// Ids are random: a half of one is nearly always another's.
const fn half(id: ObjectId) -> u64 {
    id.0 as u64
}
