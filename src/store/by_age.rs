//! The resources of a kind, in a set that they enter in order of age.

use std::ops::RangeInclusive;

use imbl::OrdSet;

use super::{Objects, Stored};
use crate::types::{ObjectId, Timestamp};

/// When it was created, and its id. The newest belong at the end of the set, which is in the processor's cache, where
/// random ids would each touch another leaf.
pub(super) type Place = (Timestamp, ObjectId);

/// How many wait for their place: enough to fill some of the tree's leaves, which have sixteen, and few to look through.
const YOUNG: usize = 64;

/// Places of resources. A tree that is filled at its end splits each leaf that is full and never comes back to its first
/// half; so new ones wait until there are enough to fill the leaves in two rounds, see [`twice`].
#[derive(Clone, Default)]
pub(super) struct ByAge {
    settled: OrdSet<Short>,
    /// Those that settled when another one had taken their short: next to none, for ids are random. They stay here when that
    /// one goes, and the short is free for the next.
    doubles: OrdSet<Place>,
    /// In no order. None has a short yet.
    young: Vec<Place>,
}

/// A place in two thirds of its room: 48 bits of the time, and the first 80 of the id, which lead to the whole of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Short(u128);

/// Bits of an id that a short leaves out.
const LEFT_OUT: u32 = 48;

impl Short {
    const fn of((time, id): Place) -> Self {
        Self((time.0 as u128) << 80 | id.0 >> LEFT_OUT)
    }

    /// The ids that it may stand for.
    const fn ids(self) -> RangeInclusive<ObjectId> {
        let first = self.0 << LEFT_OUT;
        ObjectId(first)..=ObjectId(first | ((1 << LEFT_OUT) - 1))
    }
}

impl ByAge {
    /// `place` must not be there.
    pub fn insert(&mut self, place: Place) {
        self.young.push(place);
        if self.young.len() == YOUNG {
            let mut young = std::mem::take(&mut self.young);
            young.sort_unstable();
            self.settle(&young);
            young.clear();
            self.young = young;
        }
    }

    /// Takes many at once, in order.
    pub fn settle(&mut self, places: &[Place]) {
        for place in twice(places) {
            if self.settled.insert(Short::of(*place)).is_some() {
                self.doubles.insert(*place);
            }
        }
    }

    /// `place` must be there.
    pub fn remove(&mut self, place: Place) {
        if let Some(position) = self.young.iter().position(|young| *young == place) {
            self.young.swap_remove(position);
        } else if self.doubles.remove(&place).is_none() {
            self.settled.remove(&Short::of(place));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn len(&self) -> usize {
        self.young.len() + self.settled.len() + self.doubles.len()
    }

    /// The ids, in no order, without most of those before `from`; one may come more than once. `place_of` gives the place of
    /// an object that belongs here: others may have an id that begins in the same way.
    pub fn ids(&self, objects: &Objects, from: ObjectId, place_of: impl Fn(&Stored) -> Option<Place>) -> Vec<ObjectId> {
        let mut shorts: Vec<_> = self.settled.iter().copied().filter(|short| *short.ids().end() >= from).collect();
        // In the order of the objects, so that each is found near the one before.
        shorts.sort_unstable_by_key(|short| *short.ids().start());
        let mut ids: Vec<_> = self.doubles.iter().chain(&self.young).map(|(_, id)| *id).collect();
        for short in shorts {
            let begin_so = objects.range(short.ids());
            let has_it = begin_so.filter(|(_, stored)| place_of(stored).map(Short::of) == Some(short));
            ids.extend(has_it.map(|(id, _)| *id));
        }
        ids
    }
}

/// Every second element, and then the others: the second round fills the halves that the first one left.
pub(super) fn twice<T>(sorted: &[T]) -> impl Iterator<Item = &T> {
    sorted.iter().step_by(2).chain(sorted.iter().skip(1).step_by(2))
}

/// [`twice`] for what has not been taken out yet, which it takes.
pub(super) fn take_twice<K: Copy, V>(sorted: &mut [(K, Option<V>)]) -> impl Iterator<Item = (K, V)> {
    let places = (0..sorted.len()).step_by(2).chain((1..sorted.len()).step_by(2));
    places.filter_map(|place| {
        let (key, value) = &mut sorted[place];
        Some((*key, value.take()?))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::sys::entropy::{Entropy as _, SeededEntropy};
    use crate::types::object::Resource;

    fn resource(id: u128, created: u64) -> Arc<Stored> {
        let mut resource = Resource { id: ObjectId(id), kind: "k".to_owned(), ..Resource::default() };
        resource.meta.created_at = Timestamp(created);
        Arc::new(Stored::new(resource.into()))
    }

    fn place(stored: &Stored) -> Option<Place> {
        Some((stored.object.meta().created_at, stored.object.id()))
    }

    #[test]
    fn what_was_put_in_and_not_taken_out_is_there() {
        let (mut set, mut expected, mut entropy) = (ByAge::default(), BTreeSet::new(), SeededEntropy::new(1));
        let (mut objects, mut doubles) = (Objects::new(), 0);
        for step in 0..2000 {
            // Times repeat and go back now and then, as a leader's clock may; and ids begin alike, as random ones do not.
            let created = step / 3 + entropy.next_u64() % 5;
            let id = u128::from(step) | u128::from(entropy.next_u64() % 4) << LEFT_OUT;
            let stored = resource(id, created);
            let of_it = place(&stored).expect("it is one of them");
            objects.insert(ObjectId(id), stored);
            set.insert(of_it);
            expected.insert(of_it);
            if step % 3 == 0 {
                let number = entropy.next_u64() as usize % expected.len();
                let gone = *expected.iter().nth(number).expect("there are so many");
                set.remove(gone);
                objects.remove(&gone.1);
                expected.remove(&gone);
            }
            assert_eq!(set.len(), expected.len());
            doubles = doubles.max(set.doubles.len());
            if step % 20 == 0 {
                let found: BTreeSet<_> = set.ids(&objects, ObjectId(0), place).into_iter().collect();
                assert_eq!(found, expected.iter().map(|(_, id)| *id).collect(), "after {step}");
                // Of another kind nothing is found by what it shares.
                assert!(set.ids(&objects, ObjectId(0), |_| None).len() <= set.doubles.len() + set.young.len());
            }
        }
        assert!(doubles > 50, "{doubles} shared a short");
        for place in expected {
            assert!(!set.is_empty());
            set.remove(place);
        }
        assert!(set.is_empty());
    }

    #[test]
    fn a_place_is_the_first_of_another_only_if_time_and_id_begin_alike() {
        let short = |time, id| Short::of((Timestamp(time), ObjectId(id)));
        let id = 0x0123_4567_89ab_cdef_0011_2233_4455_6677;
        assert_eq!(short(9, id), short(9, id | 0x8888_8888_8888));
        assert!(short(9, id) < short(10, 0) && short(9, id) < short(9, id + (1 << LEFT_OUT)));
        assert!(
            short(9, id).ids().contains(&ObjectId(id)) && !short(9, id).ids().contains(&ObjectId(id + (1 << LEFT_OUT)))
        );
        assert_eq!(*short(u64::MAX, u128::MAX).ids().end(), ObjectId(u128::MAX));
    }
}
