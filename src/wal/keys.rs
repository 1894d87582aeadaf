//! Which data keys the files of a log still need.

use std::collections::BTreeSet;
use std::path::Path;

use super::error::{Doing, WalError};
use super::format::SEGMENT_MAGIC;
use super::segment;
use super::snapshot;
use crate::sys::files::Disk;
use crate::types::Index;

/// What [`named_keys`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedKeys {
    /// The ids of the keys that segments and snapshots, finished or not, are sealed with.
    pub ids: BTreeSet<u64>,
    /// A file whose key cannot be known, because its beginning is not written yet or damaged: nothing may be forgotten on
    /// its account.
    pub unknown: Option<String>,
    /// The key of the newest finished snapshot, and its index.
    pub newest_snapshot: Option<(Index, u64)>,
}

/// Looks at the beginnings of all segments and snapshots in `dir`. Needs no key. What is renamed or removed meanwhile may
/// be missed; whoever forgets a key on this account has made sure that nobody begins a file with it any more.
pub fn named_keys(disk: &dyn Disk, dir: &Path) -> Result<NamedKeys, WalError> {
    let mut found = NamedKeys::default();
    for name in disk.list(dir).doing("list", dir)? {
        let is_spare = name == super::ahead::SPARE;
        let is_segment = !segment::sequences(std::slice::from_ref(&name)).is_empty();
        let index = snapshot::index_of(&name);
        if !is_spare && !is_segment && index.is_none() {
            continue;
        }
        let path = dir.join(&name);
        let file = match disk.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).doing("open", &path),
        };
        let key = if is_spare {
            // Zeros, or a header that was written right before the file is renamed.
            let mut magic = [0; SEGMENT_MAGIC.len()];
            let read = file.read_at(0, &mut magic);
            if read.is_err() || magic != SEGMENT_MAGIC {
                continue;
            }
            segment::read_header(&name, &path, file.as_ref()).map(|header| header.key_id)
        } else if is_segment {
            segment::read_header(&name, &path, file.as_ref()).map(|header| header.key_id)
        } else {
            snapshot::key_id(file, &name, &path)
        };
        match key {
            Ok(key) => {
                found.ids.insert(key);
                if let Some((index, true)) = index {
                    found.newest_snapshot = found.newest_snapshot.max(Some((index, key)));
                }
            }
            Err(_) => found.unknown = Some(name),
        }
    }
    Ok(found)
}
