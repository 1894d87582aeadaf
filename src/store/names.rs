//! The index of names.

use std::ops::RangeInclusive;
use std::sync::Arc;

use imbl::OrdMap;

use super::by_age::twice;
use crate::types::ObjectId;

/// Who has which name. A clone shares everything until one side writes.
#[derive(Clone, Default)]
pub(super) struct Names {
    /// Of every name who has it; of several the one of the lowest id.
    first: OrdMap<NameKey, ObjectId>,
    /// Everyone who has a name that several have, in order of id. Few: of most kinds the names are unique, and their keys
    /// nearly so.
    shared: OrdMap<NameKey, Arc<[ObjectId]>>,
}

/// A name as the index orders it: its first bytes, then a hash of all of it. Unlike the name itself this has a fixed size:
/// a comparison follows no pointer, and copying a node of the tree counts no references. Whoever finds a key that is not
/// [exact](Self::is_exact) compares the object's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NameKey {
    /// The first twelve bytes in lower case, padded with zeros, as big-endian numbers: in the order of the names.
    head: u64,
    then: u32,
    /// Of the whole name in lower case; odd. Zero for a name that is in the bytes above as a whole.
    hash: u32,
}

impl NameKey {
    pub fn new(name: &[u8]) -> Self {
        if name.len() <= 12 && !name.contains(&0) {
            return Self::of(name, 0, 0);
        }
        // Names that collide on purpose share an entry: a comparison for each of them, and a copy of their ids.
        let hash = name.chunks(8).fold(name.len() as u64, |hash, chunk| mix(hash, word(chunk, 0)));
        Self::of(name, 0, (mix(hash, 0) >> 32) as u32 | 1)
    }

    /// Whether no other name has this key, but for the case of its letters.
    pub const fn is_exact(self) -> bool {
        self.hash == 0
    }

    fn of(name: &[u8], padding: u8, hash: u32) -> Self {
        let (first, second) = name.split_at(name.len().min(8));
        Self { head: word(first, padding), then: (word(second, padding) >> 32) as u32, hash }
    }

    /// Half as long, and as different for names that begin alike.
    pub const fn digest(self) -> u64 {
        mix(mix(0, self.head), (self.then as u64) << 32 | self.hash as u64)
    }

    /// The keys of every name that begins with `prefix`, and of some that do not.
    fn with_prefix(prefix: &[u8]) -> RangeInclusive<Self> {
        Self::of(prefix, 0, 0)..=Self::of(prefix, 0xff, u32::MAX)
    }
}

impl Names {
    /// Everyone whose name has this key, in order of id.
    pub fn holders(&self, key: NameKey) -> impl Iterator<Item = ObjectId> {
        self.first.get(&key).into_iter().flat_map(move |first| self.all(key, first))
    }

    /// Everyone whose name may begin with `prefix`.
    pub fn with_prefix(&self, prefix: &[u8]) -> impl Iterator<Item = ObjectId> {
        self.first.range(NameKey::with_prefix(prefix)).flat_map(|(key, first)| self.all(*key, first))
    }

    /// Everyone who has a name, of whom `first` is the first.
    fn all<'a>(&'a self, key: NameKey, first: &'a ObjectId) -> impl Iterator<Item = ObjectId> + use<'a> {
        self.shared.get(&key).map_or(std::slice::from_ref(first), |ids| ids).iter().copied()
    }

    /// `holder` has the name, if nobody has one with this key yet; tells whether.
    pub fn claim(&mut self, key: NameKey, holder: ObjectId) -> bool {
        let before = self.first.insert(key, holder);
        if let Some(before) = before {
            self.first.insert(key, before);
        }
        before.is_none()
    }

    /// `holders` have the name besides those who have it already.
    pub fn add(&mut self, key: NameKey, holders: &[ObjectId]) {
        // Nearly always it is one, and nobody had it.
        if !matches!(holders, [only] if self.claim(key, *only)) {
            self.change(key, |ids| ids.extend(holders));
        }
    }

    pub fn remove(&mut self, key: NameKey, holder: ObjectId) {
        self.change(key, |ids| ids.retain(|id| *id != holder));
    }

    fn change(&mut self, key: NameKey, change: impl FnOnce(&mut Vec<ObjectId>)) {
        let mut ids: Vec<_> = self.holders(key).collect();
        change(&mut ids);
        ids.sort_unstable();
        match ids.first() {
            Some(first) => drop(self.first.insert(key, *first)),
            None => drop(self.first.remove(&key)),
        }
        if ids.len() > 1 {
            self.shared.insert(key, ids.into());
        } else {
            self.shared.remove(&key);
        }
    }

    /// Adds many at once, in their order.
    pub fn load(&mut self, mut names: Vec<(NameKey, ObjectId)>) {
        names.sort_unstable();
        let same = |one: &(NameKey, ObjectId), other: &(NameKey, ObjectId)| one.0 == other.0;
        let (alone, shared): (Vec<_>, Vec<_>) = names.chunk_by(same).partition(|holders| holders.len() == 1);
        for (key, id) in twice(&alone).copied().flatten() {
            self.add(*key, &[*id]);
        }
        for holders in shared {
            self.add(holders[0].0, &holders.iter().map(|(_, id)| *id).collect::<Vec<_>>());
        }
    }

    /// How many different names there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.first.len()
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::sys::entropy::{Entropy as _, SeededEntropy};

    /// Two names with one key: the second differs in the two words after its first half, so that what the first of them
    /// changes in the hash the other takes back.
    pub fn colliding() -> (String, String) {
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

    #[test]
    fn a_short_name_is_told_from_any_other_by_its_key() {
        let key = |name: &str| NameKey::new(name.as_bytes());
        let names =
            ["", "a", "b", "a\0", "\0", "twelve-bytes", "twelve-byte", "twelve-bytes\0", "twelve-bytes-", "häuser"];
        for (number, one) in names.into_iter().enumerate() {
            assert_eq!(key(one).is_exact(), one.len() <= 12 && !one.contains('\0'), "{one:?}");
            assert_eq!(key(one), key(&one.to_ascii_uppercase()));
            for other in &names[number + 1..] {
                assert_ne!(key(one), key(other), "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn two_names_have_one_key() {
        let (one, other) = colliding();
        assert!(one != other && NameKey::new(one.as_bytes()) == NameKey::new(other.as_bytes()), "{one} {other}");
    }
}
