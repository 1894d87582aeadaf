//! The index of names.

use std::ops::RangeInclusive;
use std::sync::Arc;

use imbl::OrdMap;

use super::by_age::take_twice;
use super::{Objects, Stored};
use crate::types::ObjectId;

/// Who has which name. A clone shares everything until one side writes.
#[derive(Clone, Default)]
pub(super) struct Names {
    /// Of every name the object that has it; of several the one of the lowest id. The object itself and not its id: found
    /// without a way through another tree, and half as large. So an object that takes another's place must come here too.
    first: OrdMap<NameKey, Arc<Stored>>,
    /// Everyone who has a name that several have, in order of id. Few: of most kinds the names are unique, and their keys
    /// nearly so. Ids, so that one of many that is written over costs nothing here.
    shared: OrdMap<NameKey, Arc<[ObjectId]>>,
}

/// A name as the index orders it: its first bytes, then a hash of all of it. Unlike the name itself this has a fixed size:
/// a comparison follows no pointer. Whoever finds a key that is not [exact](Self::is_exact) compares the object's name.
///
/// The upper twelve bytes are the name's first in lower case, padded with zeros: in the order of the names. The lower four
/// are a hash of the whole name in lower case, odd; zero for a name that is in the bytes above as a whole. One number, which
/// is compared faster than three, and aligned as its halves, so that an entry takes 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(Rust, packed(8))]
pub(super) struct NameKey(u128);

impl NameKey {
    pub fn new(name: &[u8]) -> Self {
        // A zero at the end would be taken for padding.
        if name.len() <= 12 && name.last() != Some(&0) {
            return Self::of(name, 0);
        }
        // Names that collide on purpose share an entry: a comparison for each of them, and a copy of their ids.
        let hash = name.chunks(8).fold(name.len() as u64, |hash, chunk| mix(hash, word(chunk)));
        Self::of(name, (mix(hash, 0) >> 32) as u32 | 1)
    }

    /// Whether no other name has this key, but for the case of its letters.
    pub const fn is_exact(self) -> bool {
        self.0 as u32 == 0
    }

    fn of(name: &[u8], hash: u32) -> Self {
        let (first, second) = name.split_at(name.len().min(8));
        let head = u128::from(word(first)) << 64 | u128::from(word(second));
        Self(head >> 32 << 32 | u128::from(hash))
    }

    /// Half as long, and as different for names that begin alike.
    pub const fn digest(self) -> u64 {
        mix(mix(0, (self.0 >> 64) as u64), self.0 as u64)
    }

    /// The keys of every name that begins with `prefix`, and of some that do not.
    fn with_prefix(prefix: &[u8]) -> RangeInclusive<Self> {
        let first = Self::of(prefix, 0);
        first..=Self(first.0 | u128::MAX >> (8 * prefix.len().min(12)))
    }
}

impl Names {
    /// Of those whose name has this key the one of the lowest id.
    pub fn first(&self, key: NameKey) -> Option<&Arc<Stored>> {
        self.first.get(&key)
    }

    /// Everyone whose name has this key, in order of id.
    pub fn holders<'a>(&'a self, key: NameKey, objects: &'a Objects) -> impl Iterator<Item = &'a Arc<Stored>> {
        self.first.get(&key).into_iter().flat_map(move |first| self.all(key, first, objects))
    }

    /// Everyone whose name may begin with `prefix`.
    pub fn with_prefix<'a>(&'a self, prefix: &[u8], objects: &'a Objects) -> impl Iterator<Item = &'a Arc<Stored>> {
        let keys = self.first.range(NameKey::with_prefix(prefix));
        keys.flat_map(move |(key, first)| self.all(*key, first, objects))
    }

    /// Everyone who has a name, of whom `first` is the first.
    fn all<'a>(
        &'a self,
        key: NameKey,
        first: &'a Arc<Stored>,
        objects: &'a Objects,
    ) -> impl Iterator<Item = &'a Arc<Stored>> + use<'a> {
        let others = self.shared.get(&key).map_or(&[][..], |ids| &ids[1..]);
        std::iter::once(first).chain(others.iter().filter_map(|id| objects.get(id)))
    }

    /// `holder` has the name, or is given back when somebody has one with this key.
    pub fn claim(&mut self, key: NameKey, holder: Arc<Stored>) -> Result<(), Arc<Stored>> {
        match self.first.insert(key, holder) {
            None => Ok(()),
            Some(before) => Err(self.first.insert(key, before).expect("the holder was put there")),
        }
    }

    /// `holder` has the name besides those who have it already.
    pub fn add(&mut self, key: NameKey, holder: Arc<Stored>) {
        // Nearly always nobody had it.
        if let Err(holder) = self.claim(key, holder) {
            self.join(key, &[holder]);
        }
    }

    fn join(&mut self, key: NameKey, holders: &[Arc<Stored>]) {
        let first = self.first.get(&key).into_iter().chain(holders).min_by_key(|stored| stored.object.id()).cloned();
        let mut ids = self.ids(key);
        ids.extend(holders.iter().map(|stored| stored.object.id()));
        ids.sort_unstable();
        self.set(key, first, ids);
    }

    /// `holder` has the name no more; `objects` are those that are left.
    pub fn remove(&mut self, key: NameKey, holder: ObjectId, objects: &Objects) {
        let mut ids = self.ids(key);
        ids.retain(|id| *id != holder);
        let first = ids.first().and_then(|first| objects.get(first)).cloned();
        self.set(key, first, ids);
    }

    /// `stored` has taken the place of an object of its id whose name has this key.
    pub fn renew(&mut self, key: NameKey, stored: &Arc<Stored>) {
        let id = stored.object.id();
        // Asked before the way down the tree is copied for a write: of many with one name it is nearly never the first.
        let may_be_first = self.shared.get(&key).is_none_or(|ids| ids.first() == Some(&id));
        if may_be_first
            && let Some(first) = self.first.get_mut(&key)
            && first.object.id() == id
        {
            *first = stored.clone();
        }
    }

    /// The ids of everyone whose name has this key, in order.
    fn ids(&self, key: NameKey) -> Vec<ObjectId> {
        match self.shared.get(&key) {
            Some(ids) => ids.to_vec(),
            None => self.first.get(&key).map(|first| first.object.id()).into_iter().collect(),
        }
    }

    fn set(&mut self, key: NameKey, first: Option<Arc<Stored>>, ids: Vec<ObjectId>) {
        match first {
            Some(first) => drop(self.first.insert(key, first)),
            None => drop(self.first.remove(&key)),
        }
        if ids.len() > 1 {
            self.shared.insert(key, ids.into());
        } else {
            self.shared.remove(&key);
        }
    }

    /// Adds many at once, in their order. Moves them: to count references would touch each object.
    pub fn load(&mut self, mut names: Vec<(NameKey, Option<Arc<Stored>>)>) {
        names.sort_unstable_by_key(|(key, _)| *key);
        for holders in names.chunk_by_mut(|one, other| one.0 == other.0).filter(|holders| holders.len() > 1) {
            let taken: Vec<_> = holders.iter_mut().filter_map(|(_, holder)| holder.take()).collect();
            self.join(holders[0].0, &taken);
        }
        for (key, holder) in take_twice(&mut names) {
            self.add(key, holder);
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

/// The first eight bytes in lower case, then zeros, as a big-endian number. Without a loop over few bytes, to gather them and
/// to change their case, each of which took a third of the instructions of finding a name.
fn word(bytes: &[u8]) -> u64 {
    let word = match (bytes.first_chunk(), bytes.first_chunk(), bytes.last_chunk(), bytes) {
        (Some(whole), ..) => *whole,
        // Four to seven: two halves that overlap.
        (_, Some(first), Some(last), _) => {
            let last = u64::from(u32::from_be_bytes(*last)) << (8 * (8 - bytes.len()));
            (u64::from(u32::from_be_bytes(*first)) << 32 | last).to_be_bytes()
        }
        (.., &[one, two, three]) => [one, two, three, 0, 0, 0, 0, 0],
        (.., &[one, two]) => [one, two, 0, 0, 0, 0, 0, 0],
        (.., &[one]) => [one, 0, 0, 0, 0, 0, 0, 0],
        _ => [0; 8],
    };
    lower(u64::from_be_bytes(word))
}

/// Eight bytes with their ASCII letters in lower case.
const fn lower(word: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    // Of each byte without its upper bit that bit becomes: whether it is `A` or more, and whether it is more than `Z`.
    let low = word & (0x7f * EACH);
    let from_a = low + (0x80 - b'A' as u64) * EACH;
    let after_z = low + (0x7f - b'Z' as u64) * EACH;
    let upper = from_a & !after_z & !word & (0x80 * EACH);
    word | upper >> 2
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::sys::entropy::{Entropy as _, SeededEntropy};

    #[test]
    fn eight_letters_change_their_case_at_once() {
        let mut entropy = SeededEntropy::new(1);
        for byte in 0..=u8::MAX {
            for place in 0..8 {
                let mut bytes = entropy.next_u64().to_be_bytes();
                bytes[place] = byte;
                assert_eq!(lower(u64::from_be_bytes(bytes)).to_be_bytes(), bytes.map(|byte| byte.to_ascii_lowercase()));
            }
        }
    }

    /// Two names with one key: the second differs in the two words after its first half, so that what the first of them
    /// changes in the hash the other takes back.
    pub fn colliding() -> (String, String) {
        const NAME: &str = "sixteen-letters-and-sixteen-more";
        let words = |name: &str| (word(&name.as_bytes()[16..]), word(&name.as_bytes()[24..]));
        let after = |third: u64| {
            let (first, second) = (word(NAME.as_bytes()), word(&NAME.as_bytes()[8..]));
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
        let names = [
            "",
            "a",
            "b",
            "a\0",
            "\0",
            "a\0b",
            "a\0\0b",
            "ab",
            "abc",
            "abcd",
            "abcdefg",
            "twelve-bytes",
            "twelve-byte",
            "twelve-bytes\0",
            "twelve-bytes-",
            "häuser",
        ];
        for (number, one) in names.into_iter().enumerate() {
            assert_eq!(key(one).is_exact(), one.len() <= 12 && !one.ends_with('\0'), "{one:?}");
            assert_eq!(key(one), key(&one.to_ascii_uppercase()));
            for other in &names[number + 1..] {
                assert_ne!(key(one), key(other), "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn keys_have_the_order_of_the_names_and_a_prefix_is_a_range_of_them() {
        let alphabet = "abcdefghijklmnopqrs";
        let names: Vec<&str> = (0..=alphabet.len()).map(|length| &alphabet[..length]).collect();
        let key = |name: &str| NameKey::new(name.as_bytes());
        for (number, name) in names.iter().enumerate() {
            // The upper twelve bytes, by a loop.
            let head =
                name.bytes().chain(std::iter::repeat(0)).take(12).fold(0, |head, byte| head << 8 | u128::from(byte));
            assert_eq!({ key(name).0 } >> 32, head, "{name:?}");
            let with_prefix = NameKey::with_prefix(name.to_ascii_uppercase().as_bytes());
            for (other_number, other) in names.iter().enumerate() {
                let begins_alike = other.starts_with(&name[..name.len().min(12)]);
                assert_eq!(with_prefix.contains(&key(other)), begins_alike, "{other:?} with {name:?}");
                if number.min(other_number) <= 12 {
                    assert_eq!(key(name).cmp(&key(other)), name.cmp(other), "{name:?} {other:?}");
                }
            }
            assert!(!with_prefix.contains(&key("zebra")) || name.is_empty(), "{name:?}");
        }
    }

    #[test]
    fn two_names_have_one_key() {
        let (one, other) = colliding();
        assert!(one != other && NameKey::new(one.as_bytes()) == NameKey::new(other.as_bytes()), "{one} {other}");
    }
}
