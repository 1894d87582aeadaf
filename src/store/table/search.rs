//! Finding: which way leads to what is asked for, through an index or past every object.

use std::sync::Arc;

use super::relation::Relation;
use super::{Table, lower, place, resource_kind};
use crate::store::Stored;
use crate::store::by_age::ByAge;
use crate::store::names::NameKey;
use crate::types::ids::prefix_range;
use crate::types::{ObjectId, Selector};

/// Selectors that each of many objects may be compared with.
const FEW: usize = 8;
/// Objects that an index may name before whoever looks for them had better look at every object, in order of id: an index is
/// in another order, and all that it names is gone through for each page. One millisecond, and up to ten for resources of a
/// kind that few have, each of which is found by a way of its own.
const CANDIDATES: usize = 10_000;

/// A way through the objects of one kind, in order of id. All that was asked for is on it, and perhaps others: for whoever
/// compares each object anyway, and wants to stop after having looked at so many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Search {
    /// These, in order: the indexes name no others.
    Few(Vec<ObjectId>),
    /// All of them from the one id to the other.
    Range(ObjectId, ObjectId),
}

impl Table {
    /// The objects with this name, ignoring case, in order of id.
    pub fn named<'a, 'n>(&'a self, name: &'n [u8]) -> impl Iterator<Item = &'a Arc<Stored>> + use<'a, 'n> {
        // Where something is staged a name has one holder at most, so that the order is that of ids here as well.
        let staged = self.staged.as_ref().and_then(|staged| staged.named(name));
        let key = NameKey::new(name);
        let has_it = move |stored: &&Arc<Stored>| key.is_exact() || stored.has_name(name);
        let settled = self.names.holders(key, &self.objects).filter(has_it);
        staged.into_iter().chain(settled)
    }

    /// The first of [`Self::named`], without what only several with one name or key need.
    pub fn first_named(&self, name: &[u8]) -> Option<&Arc<Stored>> {
        if self.is_staging() {
            return self.named(name).next();
        }
        let key = NameKey::new(name);
        let first = self.names.first(key)?;
        if key.is_exact() || first.has_name(name) { Some(first) } else { self.named(name).next() }
    }

    /// At most so many of those that match any of the selectors, in order of id, each once.
    pub fn find(&self, any_of: &[Selector], at_most: usize) -> Vec<&Arc<Stored>> {
        let search = self.search(any_of, ObjectId(0));
        let matches = |stored: &&Arc<Stored>| any_of.iter().any(|selector| selector.matches(&stored.object));
        self.candidates(&search, ObjectId(0)).filter(matches).take(at_most).collect()
    }

    /// How to find what matches any of the selectors and has this id or a later one.
    pub fn search(&self, any_of: &[Selector], from: ObjectId) -> Search {
        self.search_with(any_of, from, CANDIDATES)
    }

    fn search_with(&self, any_of: &[Selector], from: ObjectId, few: usize) -> Search {
        let everything = Search::Range(ObjectId(0), ObjectId(u128::MAX));
        match any_of {
            [Selector::IdPrefix(prefix)] => match prefix_range(prefix) {
                Some((first, last)) => Search::Range(ObjectId(first), ObjectId(last)),
                None => Search::Few(Vec::new()),
            },
            _ if any_of.contains(&Selector::All) || self.are_kinds_of_many(any_of) => everything,
            _ => self.few_ids(any_of, from, few).map_or(everything, Search::Few),
        }
    }

    /// What a search goes through, from this id on: all that matches, and perhaps others.
    pub fn candidates<'a, 's>(
        &'a self,
        search: &'s Search,
        from: ObjectId,
    ) -> impl Iterator<Item = &'a Arc<Stored>> + use<'a, 's> {
        let objects = self.all();
        let (few, range) = match search {
            Search::Few(ids) => (&ids[ids.partition_point(|id| *id < from)..], None),
            Search::Range(first, last) => (&[][..], Some(from.max(*first)..=*last)),
        };
        let range = range.filter(|range| !range.is_empty());
        few.iter()
            .filter_map(|id| objects.get(id))
            .chain(range.into_iter().flat_map(|range| objects.range(range)).map(|(_, stored)| stored))
    }

    /// Whether these are a few kinds of so many resources that a page of them is found sooner by looking at each object.
    ///
    /// Of `n` objects of which `m` are of these kinds a page of 1000 takes a look at `1000 n / m`; through the index it takes
    /// the way from each of the `m` to its object, which costs about four looks. They are equal where `m * m = 250 n`.
    fn are_kinds_of_many(&self, any_of: &[Selector]) -> bool {
        let sizes = any_of.iter().map(|selector| match selector {
            Selector::Kind(kind) => Some(self.of_kind(kind).map_or(0, ByAge::len)),
            _ => None,
        });
        any_of.len() <= FEW
            && sizes.sum::<Option<usize>>().is_some_and(|many| many > (250 * self.objects.len()).isqrt())
    }

    /// The ids of everything that may match any of the selectors, from this one on, in order, each once; `None` when the
    /// indexes name more than a few.
    fn few_ids(&self, any_of: &[Selector], from: ObjectId, few: usize) -> Option<Vec<ObjectId>> {
        let mut ids = Vec::new();
        for selector in any_of {
            let room = few - ids.len();
            // Those of a kind are sorted to be found, and how many they are is known without.
            if let Selector::Kind(kind) = selector
                && self.of_kind(kind).map_or(0, ByAge::len) > room
            {
                return None;
            }
            self.collect(selector, from, room + 1, &mut ids);
            if ids.len() > few {
                return None;
            }
        }
        ids.retain(|id| *id >= from);
        ids.sort_unstable();
        ids.dedup();
        Some(ids)
    }

    /// What has this id or a later one, and an id whose printed form begins with `prefix`.
    pub fn with_id_prefix(&self, prefix: &str, from: ObjectId) -> impl Iterator<Item = &Arc<Stored>> + use<'_> {
        let range = prefix_range(prefix).map(|(first, last)| from.max(ObjectId(first))..=ObjectId(last));
        let range = range.filter(|range| !range.is_empty());
        range.into_iter().flat_map(|range| self.all().range(range)).map(|(_, stored)| stored)
    }

    /// Adds the ids of what may match, in no order, no more than there is room for, except those of a kind; some may come more
    /// than once, and some before `from`.
    fn collect(&self, selector: &Selector, from: ObjectId, room: usize, ids: &mut Vec<ObjectId>) {
        let id = |stored: &Arc<Stored>| stored.object.id();
        match selector {
            Selector::All => ids.extend(self.objects.keys().take(room)),
            Selector::IdPrefix(prefix) => ids.extend(self.with_id_prefix(prefix, from).take(room).map(id)),
            Selector::Name(name) => ids.extend(self.named(name.as_bytes()).take(room).map(id)),
            Selector::NamePrefix(prefix) => {
                ids.extend(self.names.with_prefix(prefix.as_bytes(), &self.objects).take(room).map(id));
            }
            Selector::Kind(kind) => {
                let place = |stored: &Stored| {
                    let (of_it, object) = resource_kind(&stored.object)?;
                    of_it.eq_ignore_ascii_case(kind.as_bytes()).then(|| place(object))
                };
                ids.extend(self.of_kind(kind).into_iter().flat_map(|set| set.ids(&self.objects, from, place)));
            }
            Selector::Custom { index, value } => {
                let from = self.custom_from(index, value);
                ids.extend(from.take_while(|(found, _)| **found == **value).take(room).map(|(_, id)| *id));
            }
            Selector::CustomPrefix { index, prefix } => {
                let from = self.custom_from(index, prefix);
                ids.extend(from.take_while(|(found, _)| found.starts_with(&**prefix)).take(room).map(|(_, id)| *id));
            }
            others => {
                let related = Relation::asked_for(others).into_iter().flat_map(|relation| self.related(relation, from));
                ids.extend(related.take(room));
            }
        }
    }

    fn of_kind(&self, kind: &str) -> Option<&ByAge> {
        self.kinds.get(&*lower(kind.as_bytes()))
    }

    /// The values of a custom index from `value` on, and who has them.
    fn custom_from(&self, index: &str, value: &str) -> impl Iterator<Item = &(Arc<str>, ObjectId)> {
        let first = (Arc::from(value), ObjectId(0));
        self.custom.get(index).into_iter().flat_map(move |values| values.range(first.clone()..))
    }

    fn related(&self, relation: Relation, from: ObjectId) -> impl Iterator<Item = ObjectId> {
        self.relations.range((relation, from)..=(relation, ObjectId(u128::MAX))).map(|(_, id)| *id)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::store::table::tests::ids;
    use crate::types::Object;
    use crate::types::object::Resource;

    #[test]
    fn a_page_is_what_a_scan_finds_by_whatever_way() {
        let of_kind = |id: u128, kind: &str| {
            let mut resource = Resource { id: ObjectId(id << 100), kind: kind.to_owned(), ..Resource::default() };
            resource.annotations.name = format!("{kind}-{id}");
            Arc::new(Stored::new(Object::from(resource)))
        };
        let mut table = Table::default();
        for id in 0..4000 {
            // 100 of one kind, 300 of another, and 3600 of a third.
            let kind = ["one", "two", "two", "two"].get(id as usize % 400 / 10).unwrap_or(&"many");
            table.create(of_kind(id * 7 % 4000, kind), true).unwrap();
        }
        let kind = |kind: &str| Selector::Kind(kind.to_owned());
        let prefix = |prefix: &str| Selector::IdPrefix(prefix.to_owned());
        let asked = [
            (vec![kind("ONE")], false),
            (vec![kind("one"), Selector::Name("TWO-70".to_owned()), Selector::NamePrefix("one-".to_owned())], false),
            (vec![kind("two"), kind("one"), kind("none")], false),
            (vec![kind("many")], true),
            (vec![kind("one"), kind("Many")], true),
            (vec![kind("many"), Selector::Name("one-0".to_owned())], false),
            (vec![kind("many"); FEW + 1], false),
            (vec![Selector::NamePrefix("m".to_owned())], false),
            (vec![prefix("0")], false),
            (vec![prefix("00")], false),
            (vec![prefix("00"), kind("one")], false),
            (vec![prefix("NONE")], false),
            (vec![kind("one"), Selector::All], false),
            (vec![], false),
        ];
        for (any_of, are_many) in asked {
            assert_eq!(table.are_kinds_of_many(&any_of), are_many, "{any_of:?}");
            let by_index = !are_many
                && any_of.len() <= FEW
                && !any_of.contains(&Selector::All)
                && any_of != [prefix("0")]
                && any_of != [prefix("00")];
            assert_eq!(matches!(table.search(&any_of, ObjectId(0)), Search::Few(_)), by_index, "{any_of:?}");
            let all = table.iter().filter(|stored| any_of.iter().any(|selector| selector.matches(&stored.object)));
            let all = ids(all);
            assert_eq!(ids(table.find(&any_of, usize::MAX).into_iter()), all, "{any_of:?}");
            for from in [0, 1, 70 << 100, (70 << 100) + 1, 3999 << 100, u128::MAX] {
                let expected: Vec<_> = all.iter().copied().filter(|id| *id >= from).collect();
                // However many an index may name, nothing is missed.
                for few in [0, 1, 99, 100, 4000, CANDIDATES] {
                    let search = table.search_with(&any_of, ObjectId(from), few);
                    let mut found = ids(table.candidates(&search, ObjectId(from)));
                    found.retain(|id| all.contains(id));
                    assert_eq!(found, expected, "{any_of:?} from {from:x} with {few}");
                }
            }
        }
    }
}
