//! The resources of a kind, in a set that they enter in order of age.

use imbl::OrdSet;

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
    settled: OrdSet<Place>,
    /// In no order.
    young: Vec<Place>,
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
            self.settled.insert(*place);
        }
    }

    pub fn remove(&mut self, place: Place) {
        match self.young.iter().position(|young| *young == place) {
            Some(position) => drop(self.young.swap_remove(position)),
            None => drop(self.settled.remove(&place)),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.young.is_empty() && self.settled.is_empty()
    }

    /// The ids, in no order.
    pub fn ids(&self) -> impl Iterator<Item = ObjectId> {
        self.settled.iter().chain(&self.young).map(|(_, id)| *id)
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
    use std::collections::BTreeSet;

    use super::*;
    use crate::sys::entropy::{Entropy as _, SeededEntropy};

    #[test]
    fn what_was_put_in_and_not_taken_out_is_there() {
        let (mut set, mut expected, mut entropy) = (ByAge::default(), BTreeSet::new(), SeededEntropy::new(1));
        for step in 0..2000 {
            // Times repeat and go back now and then, as a leader's clock may.
            let place = (Timestamp(step / 3 + entropy.next_u64() % 5), ObjectId(u128::from(step)));
            set.insert(place);
            expected.insert(place);
            if step % 3 == 0 {
                let number = entropy.next_u64() as usize % expected.len();
                let gone = *expected.iter().nth(number).expect("there are so many");
                set.remove(gone);
                expected.remove(&gone);
            }
            let found: BTreeSet<_> = set.ids().collect();
            assert_eq!(found, expected.iter().map(|(_, id)| *id).collect(), "after {step}");
            assert_eq!(set.ids().count(), expected.len());
        }
        for place in expected {
            assert!(!set.is_empty());
            set.remove(place);
        }
        assert!(set.is_empty());
    }
}
