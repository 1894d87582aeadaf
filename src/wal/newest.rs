//! Which segment is the newest, written beside them, so that the loss of the last ones is noticed.
//!
//! The chain of checksums shows a segment that is missing before another one. It cannot show that the last is missing:
//! what is left then looks like a log that was closed there, and a manager would start with less than it has
//! acknowledged. One sector, overwritten in place each time a segment has been begun and before anything is written to
//! that, tells the two apart.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::error::{Doing, WalError};
use super::format::{self, Cursor, MIN_READER, SECTOR, SECTOR_BYTES, VERSION};
use super::reserve::with_reserve;
use crate::sys::files::{self, Disk, File};

/// Its file's name.
pub(super) const NEWEST: &str = "newest";
const MAGIC: [u8; 8] = *b"SKEPNEW\n";

/// The file, open. Overwriting it needs no space.
#[derive(Debug)]
pub(super) struct Newest(Arc<dyn File>);

impl Newest {
    /// Writes that `sequence` is the newest segment, which must be durable. Makes the file if it is missing.
    pub(super) fn create(disk: &dyn Disk, dir: &Path, sequence: u64) -> Result<Self, WalError> {
        let path = dir.join(NEWEST);
        match disk.open(&path) {
            Ok(file) if file.len().doing("read the length of", &path)? == SECTOR => {
                let newest = Self(file);
                newest.write(dir, sequence)?;
                return Ok(newest);
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).doing("open", &path),
            _ => {}
        }
        with_reserve(disk, dir, || files::replace(disk, &path, &encode(sequence))).doing("write", &path)?;
        disk.open(&path).doing("open", &path).map(Self)
    }

    /// As [`Self::create`], in the file at hand.
    pub(super) fn write(&self, dir: &Path, sequence: u64) -> Result<(), WalError> {
        let path = dir.join(NEWEST);
        self.0.write_at(0, &encode(sequence)).doing("write", &path)?;
        self.0.sync_data().doing("sync", &path)
    }
}

/// The newest segment that was begun; `None` when nothing says.
pub(super) fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<u64>, WalError> {
    let path = dir.join(NEWEST);
    let file = match disk.open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).doing("open", &path),
    };
    let len = file.len().doing("read the length of", &path)?;
    if len != SECTOR {
        return Err(WalError::damaged(NEWEST, len.min(SECTOR), "the file is not one sector long"));
    }
    let mut sector = [0; SECTOR_BYTES];
    file.read_at(0, &mut sector).doing("read", &path)?;
    let (body, crc) = sector.split_at(SECTOR_BYTES - 4);
    if crc32fast::hash(body).to_le_bytes() != crc {
        return Err(WalError::damaged(NEWEST, 0, "the file does not match its checksum"));
    }
    let mut cursor = Cursor(body);
    format::check_versions(NEWEST, MAGIC, VERSION, &mut cursor)?;
    let sequence = cursor.take(4).and_then(|_| cursor.u64());
    sequence.map(Some).ok_or_else(|| WalError::damaged(NEWEST, 0, "the file makes no sense"))
}

/// What to say when the segments end with `last` (zero for none) and should not.
pub(super) fn missing(newest: Option<u64>, last: u64) -> Option<WalError> {
    let newest = newest.filter(|newest| *newest > last)?;
    let what = format!("the segment is missing: the log went on to {}", super::segment::name(newest));
    Some(WalError::damaged(&super::segment::name(last.saturating_add(1)), 0, what))
}

fn encode(sequence: u64) -> [u8; SECTOR_BYTES] {
    let mut sector = [0; SECTOR_BYTES];
    sector[..8].copy_from_slice(&MAGIC);
    sector[8..10].copy_from_slice(&VERSION.to_le_bytes());
    sector[10..12].copy_from_slice(&MIN_READER.to_le_bytes());
    sector[16..24].copy_from_slice(&sequence.to_le_bytes());
    let crc = crc32fast::hash(&sector[..SECTOR_BYTES - 4]);
    sector[SECTOR_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    sector
}
