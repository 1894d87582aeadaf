//! Replacing a key and its certificate, which are two files, so that a crash between them is no loss.
//!
//! The new chain is written beside the old one and synced; then the key file is replaced; then the new chain takes the old
//! one's name. Whoever reads looks for a new chain first: one that belongs to the key file's key is complete, and takes its
//! name now; any other belongs to a key that was never written, and is removed. So at every moment the key file has a chain
//! that belongs to it, in one of the two places.

use std::io;
use std::path::Path;

use crate::sys::files::{self, Disk};

/// A node's certificate chain, PEM.
pub const CHAIN: &str = "node.crt";
/// A chain that is to take its place.
const NEXT_CHAIN: &str = "node.crt.next";

/// Replaces the chain in the directory `pki`, and the key file by means of `write_key`, which must replace it as a whole
/// and durably.
///
/// # Errors
/// When the disk refuses. Both old files count then, or both new ones, as [`recover`] finds out.
pub fn replace(
    disk: &dyn Disk,
    pki: &Path,
    chain_pem: &str,
    write_key: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    files::replace(disk, &pki.join(NEXT_CHAIN), chain_pem.as_bytes())?;
    write_key()?;
    disk.rename(&pki.join(NEXT_CHAIN), &pki.join(CHAIN))?;
    disk.sync_dir(pki)
}

/// Finishes or undoes a replacement that was cut off. `belongs` tells whether a chain is of the key in the key file. True
/// when it was finished.
///
/// # Errors
/// When the disk refuses, or `belongs` cannot tell.
pub fn recover<E: From<io::Error>>(
    disk: &dyn Disk,
    pki: &Path,
    belongs: impl FnOnce(&str) -> Result<bool, E>,
) -> Result<bool, E> {
    let next = pki.join(NEXT_CHAIN);
    let chain = match files::read(disk, &next) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let finished = match String::from_utf8(chain) {
        Ok(chain) => belongs(&chain)?,
        Err(_) => false,
    };
    if finished {
        disk.rename(&next, &pki.join(CHAIN))?;
    } else {
        disk.remove(&next)?;
    }
    disk.sync_dir(pki)?;
    Ok(finished)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::wal::tests::disk::TestDisk;

    const PKI: &str = "/d/pki";

    /// A disk with the pair 1.
    fn disk() -> TestDisk {
        let disk = TestDisk::new();
        disk.create_dir(Path::new(PKI)).unwrap();
        renew(&disk, 1).unwrap();
        disk
    }

    /// Replaces whatever is there by a pair of this number: the chain `chain N` belongs to the key `key N`.
    fn renew(disk: &TestDisk, number: u32) -> io::Result<()> {
        let pki = Path::new(PKI);
        replace(disk, pki, &format!("chain {number}"), || {
            files::replace(disk, &pki.join("node.key"), format!("key {number}").as_bytes())
        })
    }

    fn text(disk: &TestDisk, name: &str) -> Option<String> {
        match files::read(disk, &Path::new(PKI).join(name)) {
            Ok(bytes) => Some(String::from_utf8(bytes).unwrap()),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::NotFound);
                None
            }
        }
    }

    /// What a start finds: the number of the pair.
    #[track_caller]
    fn check(disk: &TestDisk) -> u32 {
        let key = text(disk, "node.key").unwrap();
        let number = key.strip_prefix("key ").unwrap().to_owned();
        recover(disk, Path::new(PKI), |chain| Ok::<_, io::Error>(chain == format!("chain {number}"))).unwrap();
        assert_eq!(text(disk, CHAIN).unwrap(), format!("chain {number}"), "the chain is of another key");
        assert_eq!(text(disk, NEXT_CHAIN), None);
        number.parse().unwrap()
    }

    #[test]
    fn a_crash_anywhere_leaves_a_key_with_its_chain() {
        let mut found = [0; 3];
        for budget in 0.. {
            let disk = disk();
            disk.set_budget(budget);
            let done = renew(&disk, 2).is_ok();
            disk.set_budget(u64::MAX);
            // The process was killed: everything that it did is there.
            let number = check(&disk.crash(usize::MAX, |_, _| true));
            found[number as usize] += 1;
            assert!(!done || number == 2);
            // The power failed: of what was not synced, nothing, some of the names, all of the bytes.
            for names in 0..4 {
                for keep in [false, true] {
                    let number = check(&disk.crash(names, |_, _| keep));
                    found[number as usize] += 1;
                    assert!(!done || number == 2, "what was replaced durably is gone");
                }
            }
            if done {
                break;
            }
        }
        assert!(found[1] > 20 && found[2] > 20, "{found:?}");
    }

    #[test]
    fn a_crash_while_recovering_is_recovered_too() {
        for first in 0.. {
            let disk = disk();
            disk.set_budget(first);
            let done = renew(&disk, 2).is_ok();
            disk.set_budget(u64::MAX);
            let survived = disk.crash(usize::MAX, |_, _| true);
            for second in 0..6 {
                let again = survived.crash(usize::MAX, |_, _| true);
                again.set_budget(second);
                let key = survived.crash(0, |_, _| false);
                let number = text(&key, "node.key").unwrap().replace("key ", "chain ");
                let _ = recover(&again, Path::new(PKI), |chain| Ok::<_, io::Error>(chain == number));
                again.set_budget(u64::MAX);
                for names in 0..3 {
                    check(&again.crash(names, |_, _| true));
                }
            }
            if done {
                break;
            }
        }
    }

    #[test]
    fn a_renewal_after_one_that_was_cut_off_is_whole() {
        for budget in 0..12 {
            let disk = disk();
            disk.set_budget(budget);
            let _ = renew(&disk, 2);
            disk.set_budget(u64::MAX);
            // The process lived on and tries again, without a look at what is there.
            renew(&disk, 3).unwrap();
            assert_eq!(check(&disk.crash(0, |_, _| false)), 3);
        }
    }

    #[test]
    fn an_unreadable_next_chain_is_removed_and_one_that_cannot_be_judged_stays() {
        let disk = disk();
        let next = Path::new(PKI).join(NEXT_CHAIN);
        files::replace(&disk, &next, &[0xff, 0xfe]).unwrap();
        assert_eq!(check(&disk), 1);
        files::replace(&disk, &next, b"chain 1").unwrap();
        let judged = recover(&disk, Path::new(PKI), |_| Err(io::Error::other("the key is locked")));
        assert!(judged.is_err());
        assert_eq!(text(&disk, NEXT_CHAIN).as_deref(), Some("chain 1"));
    }
}
