//! The decoders, each behind a function that takes any bytes and panics only when a promise is broken.
//!
//! The first byte or two of many inputs choose among the types, states or ways of feeding that a target has; the rest is
//! what a peer, a person or a disk would hand over. Nothing here needs the test harness: `cargo-fuzz/` builds the same
//! functions.

mod authority;
mod backups;
mod log;
mod people;
mod raft;
mod state;
mod wire;

#[path = "../disk.rs"]
pub mod disk;

use serde::Serialize;
use serde::de::DeserializeOwned;
use skep::codec::envelope;
use skep::types::limits::MAX_FRAME_BYTES;

/// One decoder, or several of a kind.
pub struct Target {
    /// Its folder in the corpus, and its test.
    pub name: &'static str,
    /// Takes any bytes. What it panics at is a bug.
    pub run: fn(&[u8]),
    /// Small real inputs by name, as the product writes them.
    pub seeds: fn() -> Vec<(String, Vec<u8>)>,
    /// What its text consists of, for the mutator.
    pub words: &'static [&'static str],
    /// The most memory it may hold at once: this many bytes for each byte of input...
    pub bytes_per_byte: usize,
    /// ...and this many besides, whatever the input.
    pub bytes_besides: usize,
    /// Mutated inputs in a normal test run.
    pub runs: u64,
}

/// A decoder of plain bytes: it takes what it copies of its input, and little more.
const PLAIN: Target = Target {
    name: "",
    run: |_| (),
    seeds: Vec::new,
    words: &[],
    bytes_per_byte: 16,
    bytes_besides: 64 << 10,
    runs: 2000,
};

/// A decoder of envelopes. serde takes the memory for a claimed number of elements ahead, 1 MiB at most for each sequence
/// that is open; ours are nested three deep at most.
const ENVELOPE: Target = Target { bytes_per_byte: 64, bytes_besides: 4 << 20, ..PLAIN };

/// Every target.
pub fn all() -> Vec<Target> {
    [
        wire::targets(),
        state::targets(),
        raft::targets(),
        log::targets(),
        people::targets(),
        authority::targets(),
        backups::targets(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Names for seeds that have none of their own.
fn numbered(inputs: impl IntoIterator<Item = Vec<u8>>) -> Vec<(String, Vec<u8>)> {
    (1..).zip(inputs).map(|(number, input)| (format!("{number:02}"), input)).collect()
}

/// An input whose first byte chooses.
fn tagged(tag: u8, bytes: &[u8]) -> Vec<u8> {
    [&[tag], bytes].concat()
}

/// Decodes an envelope; what is taken must be written again as the same bytes.
fn canonical<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let value: T = envelope::decode(bytes, MAX_FRAME_BYTES).ok()?;
    let encoded = envelope::encode(&value);
    // Maps may come in another order or with a key twice, so that the first encoding may differ from what came. Values are
    // compared by their bytes: a number that is none differs from itself.
    let again: T = envelope::decode(&encoded, MAX_FRAME_BYTES).expect("what was encoded is decoded");
    assert!(encoded == envelope::encode(&again), "decoded and encoded, it is something else");
    Some(value)
}
