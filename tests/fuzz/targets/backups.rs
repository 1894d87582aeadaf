//! The backup file, which people keep anywhere and hand around.

use ring::digest::{SHA256, digest};
use skep::backup::{BackupError, Reader, load};
use skep::store::State;

use super::{ENVELOPE, Target};

pub(super) fn targets() -> Vec<Target> {
    // A record is at most a chunk, and memory for it is taken as its head says.
    vec![Target { name: "backup", run: backup, seeds, bytes_besides: 6 << 20, runs: 1500, ..ENVELOPE }]
}

/// Bytes before the first record, and of a record's head.
const PREAMBLE: usize = 68;
const HEAD: usize = 24;

const PLAIN: &[u8] = include_bytes!("../../golden/backup-plain");
const SEALED: &[u8] = include_bytes!("../../golden/backup-sealed");

/// A file as it comes, and with all sums put right, so that what they keep out is reached.
fn backup(input: &[u8]) {
    check(input);
    check(&put_right(input));
}

fn check(bytes: &[u8]) {
    match Reader::open(bytes, None).and_then(|mut reader| load(&mut reader)) {
        Ok(state) => assert_eq!(state.hash(), State::recompute_hash(&state)),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            if let BackupError::Damaged { offset, .. } = &error {
                assert!(*offset <= bytes.len() as u64, "{error}");
            }
            // Exactly one thing is to be done about it.
            assert!(error.is_damage() != error.is_refusal(), "{error}");
        }
    }
}

/// The same file with right checksums and a right sum at its end.
fn put_right(input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    if bytes.len() < PREAMBLE {
        return bytes;
    }
    put_sum(&mut bytes, 0, PREAMBLE - 4);
    let (mut at, mut number) = (PREAMBLE, 0_u64);
    while bytes.len() >= at + HEAD {
        let len = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().expect("four bytes")) as usize;
        let Some(end) = at.checked_add(HEAD + len).filter(|end| *end <= bytes.len()) else { break };
        bytes[at + 8..at + 16].copy_from_slice(&number.to_le_bytes());
        if bytes[at] == 3 && len == 32 {
            let sum = digest(&SHA256, &bytes[..at]);
            bytes[at + HEAD..end].copy_from_slice(sum.as_ref());
        }
        let crc = crc32fast::hash(&bytes[at + HEAD..end]);
        bytes[at + 16..at + 20].copy_from_slice(&crc.to_le_bytes());
        put_sum(&mut bytes, at, at + 20);
        (at, number) = (end, number + 1);
    }
    bytes
}

/// The checksum of `from..to`, behind it.
fn put_sum(bytes: &mut [u8], from: usize, to: usize) {
    let crc = crc32fast::hash(&bytes[from..to]);
    bytes[to..to + 4].copy_from_slice(&crc.to_le_bytes());
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    assert!(put_right(PLAIN) == PLAIN, "the sums are put where the product puts them");
    [("plain", PLAIN), ("sealed", SEALED)].map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).to_vec()
}
