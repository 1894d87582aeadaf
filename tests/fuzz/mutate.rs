//! What turns a good input into a bad one: the changes that break decoders, a few at a time.

use skep::sys::entropy::{Entropy as _, SeededEntropy};

/// No mutated input is longer.
const MAX_BYTES: usize = 64 << 10;

/// Numbers at the edge of something: of types, of limits, of what a sum may overflow.
const INTERESTING: [u64; 20] = [
    0,
    1,
    2,
    7,
    9,
    0x10,
    0x40,
    0x7f,
    0x80,
    0xff,
    0x100,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    4 << 20,
    1 << 50,
    1 << 62,
    i64::MAX as u64,
    u64::MAX,
];

/// One of the corpus, changed; `words` are what the decoder's text consists of.
pub fn input(corpus: &[Vec<u8>], words: &[&str], random: &mut SeededEntropy) -> Vec<u8> {
    let mut bytes = pick(corpus, random).cloned().unwrap_or_default();
    // Most inputs get one to four changes: more, and nothing behind the first check is ever reached.
    let most = if random.below(8) == 0 { 24 } else { 4 };
    let changes = 1 + random.below(most);
    for _ in 0..changes {
        change(&mut bytes, corpus, words, random);
        bytes.truncate(MAX_BYTES);
    }
    bytes
}

fn pick<'a, T>(from: &'a [T], random: &mut SeededEntropy) -> Option<&'a T> {
    if from.is_empty() { None } else { from.get(random.below(from.len() as u64) as usize) }
}

fn place(length: usize, random: &mut SeededEntropy) -> usize {
    // Lengths and tags stand at the start more often than anywhere else.
    let bound = if random.below(4) == 0 { length.min(32) } else { length };
    random.below(bound as u64 + 1) as usize
}

/// A range of at most `limit` bytes, which may be empty.
fn range(length: usize, limit: u64, random: &mut SeededEntropy) -> std::ops::Range<usize> {
    let start = place(length, random);
    start..length.min(start + random.below(limit + 1) as usize)
}

fn change(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[&str], random: &mut SeededEntropy) {
    let at = place(bytes.len(), random);
    match random.below(13) {
        0 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = random.next_u64() as u8;
            }
        }
        // A small step: a count that is off by a little.
        2 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = byte.wrapping_add(random.below(9) as u8).wrapping_sub(4);
            }
        }
        // What may be a length, a count, an index or a tag becomes a number at the edge, in either order of bytes.
        3..=5 => {
            let width = 1 << random.below(4);
            let near = INTERESTING[random.below(INTERESTING.len() as u64) as usize];
            let number = near.wrapping_add(random.below(3)).wrapping_sub(1);
            let mut encoded = number.to_le_bytes();
            if random.below(8) == 0 {
                encoded[..width].reverse();
            }
            for (byte, new) in bytes[at..].iter_mut().zip(&encoded[..width]) {
                *byte = *new;
            }
        }
        6 => drop(bytes.drain(range(bytes.len(), 16, random))),
        7 => {
            let count = 1 + random.below(8);
            let new: Vec<u8> = (0..count).map(|_| random.next_u64() as u8).collect();
            bytes.splice(at..at, new);
        }
        8 => {
            let copied = bytes[range(bytes.len(), 128, random)].to_vec();
            bytes.splice(at..at, copied);
        }
        9 => bytes.truncate(at),
        // The head of this and the tail of another.
        10 => {
            if let Some(other) = pick(corpus, random) {
                let from = place(other.len(), random);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
        // A part of another in the middle of this.
        11 => {
            if let Some(other) = pick(corpus, random) {
                let replaced = range(bytes.len(), 64, random);
                let part = other[range(other.len(), 256, random)].to_vec();
                bytes.splice(replaced, part);
            }
        }
        _ => match pick(words, random) {
            Some(word) => drop(bytes.splice(at..at, word.bytes())),
            None => {
                let range = range(bytes.len(), 32, random);
                bytes[range].fill(if random.below(2) == 0 { 0 } else { 0xff });
            }
        },
    }
}

/// The shortest input found by cutting pieces out that still `fails`. Tries at most `attempts` inputs.
pub fn shrink(input: &[u8], attempts: usize, mut fails: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let (mut best, mut left) = (input.to_vec(), attempts);
    let mut piece = best.len().div_ceil(2);
    while piece > 0 && left > 0 {
        let mut start = 0;
        while start < best.len() && left > 0 {
            let mut shorter = best.clone();
            shorter.drain(start..(start + piece).min(best.len()));
            left -= 1;
            if fails(&shorter) {
                best = shorter;
            } else {
                start += piece;
            }
        }
        piece /= 2;
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_inputs_and_they_differ() {
        let corpus = vec![b"one input".to_vec(), b"and another one".to_vec(), Vec::new()];
        let made = |seed| {
            let mut random = SeededEntropy::new(seed);
            (0..500).map(|_| input(&corpus, &["word"], &mut random)).collect::<Vec<_>>()
        };
        assert_eq!(made(1), made(1));
        let distinct: std::collections::BTreeSet<_> = made(1).into_iter().collect();
        assert!(distinct.len() > 250, "{}", distinct.len());
        assert!(distinct.iter().all(|input| input.len() <= MAX_BYTES));
    }

    #[test]
    fn a_failing_input_is_cut_down_to_what_fails() {
        let input: Vec<u8> = (0..200).collect();
        assert_eq!(shrink(&input, 10_000, |bytes| bytes.contains(&7) && bytes.contains(&150)), [7, 150]);
    }
}
