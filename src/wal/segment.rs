//! One segment: an open file, its map, and its key.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::error::{Doing, WalError};
use super::format::{BATCH_AAD, BATCH_HEADER, BatchHeader, SECTOR, SECTOR_BYTES, SegmentHeader};
use super::map::Map;
use crate::pki::Keyring;
use crate::pki::seal::{DataKey, SegmentKey};
use crate::sys::files::{Disk, File};
use crate::types::Lineage;

/// A segment's file, open. Its readers keep it alive when the log has removed it.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) header: SegmentHeader,
    pub(super) file: Arc<dyn File>,
    key: SegmentKey,
    /// None on a simulated disk, which is read through its file.
    map: Option<Map>,
}

impl Segment {
    /// Takes over a file that already holds this header.
    pub(super) fn new(dir: &Path, header: SegmentHeader, file: Arc<dyn File>, key: &DataKey) -> Result<Self, WalError> {
        let name = name(header.sequence);
        let path = dir.join(&name);
        let map = file.os_file().map(|os_file| Map::new(os_file, header.sequence)).transpose().doing("map", &path)?;
        let key = SegmentKey::derive(key, &header.salt);
        Ok(Self { name, path, header, file, key, map })
    }

    /// Opens an existing segment and checks that it is whole and ours.
    pub(super) fn open(
        disk: &dyn Disk,
        dir: &Path,
        sequence: u64,
        keys: &Keyring,
        lineage: Lineage,
    ) -> Result<Self, WalError> {
        let name = name(sequence);
        let path = dir.join(&name);
        let file = disk.open(&path).doing("open", &path)?;
        let header = read_header(&name, &path, file.as_ref())?;
        if header.sequence != sequence {
            let what = format!("its header says that it is {}", self::name(header.sequence));
            return Err(WalError::damaged(&name, 0, what));
        }
        if header.lineage != lineage {
            return Err(WalError::ForeignLineage { file: name, found: header.lineage, expected: lineage });
        }
        let Some(key) = keys.of(header.key_id) else {
            return Err(WalError::WrongKey { file: name, found: header.key_id, expected: keys.newest().id() });
        };
        Self::new(dir, header, file, &key)
    }

    /// Copies bytes of the segment. They must not be written at the same time.
    pub(super) fn copy(&self, offset: u64, bytes: &mut [u8]) -> Result<(), WalError> {
        match &self.map {
            Some(map) => map.copy(offset, bytes),
            None => self.file.read_at(offset, bytes),
        }
        .doing("read", &self.path)
    }

    /// Lets go of the memory that reading has mapped in; the page cache keeps the contents as long as it likes.
    pub(super) fn release(&self) {
        if let Some(map) = &self.map {
            map.release();
        }
    }

    /// The sector at `offset`.
    pub(super) fn sector(&self, offset: u64) -> Result<[u8; SECTOR_BYTES], WalError> {
        let mut sector = [0; SECTOR_BYTES];
        self.copy(offset, &mut sector)?;
        Ok(sector)
    }

    /// The batch at `offset`: its header, its checksum and its opened records. Anything but a whole batch is an error:
    /// this is for batches that were synced.
    pub(super) fn batch(&self, offset: u64) -> Result<(BatchHeader, u32, Bytes), WalError> {
        let (header, crc, payload) = self.checked(offset)?;
        Ok((header, crc, self.unseal(offset, &header, payload)?))
    }

    /// The batch at `offset`, still sealed, when its checksums are right.
    pub(super) fn checked(&self, offset: u64) -> Result<(BatchHeader, u32, Vec<u8>), WalError> {
        let (header, crc) = BatchHeader::decode(&self.sector(offset)?)
            .filter(|(header, _)| header.epoch == self.header.epoch)
            .ok_or_else(|| self.damaged(offset, "no batch begins here"))?;
        let payload = self.payload(offset, &header)?;
        if crc32fast::hash(&payload) != header.payload_crc {
            return Err(self.damaged(offset, "the batch does not match its checksum"));
        }
        Ok((header, crc, payload))
    }

    /// What stands between a batch's header and the next batch, as it is on the disk.
    pub(super) fn payload(&self, offset: u64, header: &BatchHeader) -> Result<Vec<u8>, WalError> {
        let end = offset + header.on_disk();
        if end > self.header.bytes {
            return Err(self.damaged(offset, "the batch is longer than the rest of the segment"));
        }
        let len = usize::try_from(end - offset).map_err(io::Error::other).doing("read", &self.path)? - BATCH_HEADER;
        let mut payload = vec![0; len];
        self.copy(offset + BATCH_HEADER as u64, &mut payload)?;
        Ok(payload)
    }

    /// Opens a payload whose checksum was right.
    pub(super) fn unseal(&self, offset: u64, header: &BatchHeader, mut payload: Vec<u8>) -> Result<Bytes, WalError> {
        payload.truncate(header.length as usize);
        self.key
            .open_in_place(header.number, &header.encode()[..BATCH_AAD], &mut payload)
            .map_err(|error| self.damaged(offset, error.to_string()))?;
        Ok(Bytes::from(payload))
    }

    /// Seals a batch's records, which stand behind its header in `batch`, and completes it up to the next sector.
    /// Returns the batch's checksum. `header.number` must never have been sealed in this segment before.
    pub(super) fn seal(&self, header: &mut BatchHeader, batch: &mut Vec<u8>) -> u32 {
        let (place, records) = batch.split_at_mut(BATCH_HEADER);
        let tag = self.key.seal_slice(header.number, &header.encode()[..BATCH_AAD], records);
        place.fill(0);
        batch.extend_from_slice(&tag);
        batch.resize(batch.len().next_multiple_of(SECTOR_BYTES), super::format::FILLER);
        header.payload_crc = crc32fast::hash(&batch[BATCH_HEADER..]);
        let encoded = header.encode();
        let crc = crc32fast::hash(&encoded);
        batch[..BATCH_HEADER - 4].copy_from_slice(&encoded);
        batch[BATCH_HEADER - 4..BATCH_HEADER].copy_from_slice(&crc.to_le_bytes());
        crc
    }

    /// Where the next valid header of this segment stands, from `offset` on.
    pub(super) fn next_header(&self, offset: u64) -> Result<Option<u64>, WalError> {
        let mut found = None;
        self.sectors(offset, |at, sector| {
            let header = BatchHeader::decode(sector).filter(|(header, _)| header.epoch == self.header.epoch);
            found = header.map(|_| at);
            found.is_none()
        })?;
        Ok(found)
    }

    /// The end of the last sector that is not zero, from `offset` on; `offset` when all are.
    pub(super) fn last_used(&self, offset: u64) -> Result<u64, WalError> {
        let mut end = offset;
        self.sectors(offset, |at, sector| {
            if !is_zero(sector) {
                end = at + SECTOR;
            }
            true
        })?;
        Ok(end)
    }

    /// Shows the sectors from `offset` to the end of the segment until one is answered with false.
    fn sectors(&self, mut offset: u64, mut each: impl FnMut(u64, &[u8]) -> bool) -> Result<(), WalError> {
        let mut chunk = vec![0; 64 << 10];
        while offset < self.header.bytes {
            let len = (self.header.bytes - offset).min(chunk.len() as u64) as usize;
            self.copy(offset, &mut chunk[..len])?;
            for sector in chunk[..len].chunks(SECTOR_BYTES) {
                if !each(offset, sector) {
                    return Ok(());
                }
                offset += SECTOR;
            }
        }
        Ok(())
    }

    pub(super) fn damaged(&self, offset: u64, what: impl Into<String>) -> WalError {
        WalError::damaged(&self.name, offset, what)
    }
}

/// Reads a segment's header and checks that the file is as long as it says. Needs no key.
pub(super) fn read_header(name: &str, path: &Path, file: &dyn File) -> Result<SegmentHeader, WalError> {
    let len = file.len().doing("read the length of", path)?;
    if len < SECTOR {
        return Err(WalError::damaged(name, len, "the file ends within its header"));
    }
    let mut sector = [0; SECTOR_BYTES];
    file.read_at(0, &mut sector).doing("read", path)?;
    let header = SegmentHeader::decode(name, &sector)?;
    if len < header.bytes {
        return Err(WalError::damaged(
            name,
            len,
            format!("the file ends here, its header says {} bytes", header.bytes),
        ));
    }
    Ok(header)
}

/// Whether a sector, or a part of one, is all zeros. By comparison with zeros, which is as fast as memory.
pub(super) fn is_zero(sector: &[u8]) -> bool {
    sector == &[0; SECTOR_BYTES][..sector.len()]
}

/// The file name of a segment.
pub(super) fn name(sequence: u64) -> String {
    format!("wal-{sequence:08}")
}

/// The segments among these file names, in order.
pub(super) fn sequences(names: &[String]) -> Vec<u64> {
    let mut sequences: Vec<u64> = names
        .iter()
        .filter_map(|file| file.strip_prefix("wal-")?.parse().ok().filter(|sequence| name(*sequence) == *file))
        .collect();
    sequences.sort_unstable();
    sequences
}
