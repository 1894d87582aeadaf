//! The bytes of a segment: its header, the headers of its batches, and the records inside a batch.
//!
//! ```text
//! segment  = header (one sector) batch* zeros
//! batch    = header (64 bytes) sealed-records tag filler-to-the-next-sector
//! records  = (install | truncate)? created? entry* hard-state
//! ```
//!
//! All numbers are little-endian. Nothing a batch consists of is a sector of zeros: headers have a magic, sealed bytes are
//! indistinguishable from random ones, and the filler is not zero. So a sector of zeros was never written.

use ::raft::eraftpb::{Entry, EntryType};
use bytes::Bytes;

use super::error::WalError;
use crate::pki::seal::{SALT_BYTES, TAG_BYTES};
use crate::types::{Index, Lineage, Position, RaftId, Term};

/// What a disk writes at once or not at all.
pub(super) const SECTOR: u64 = 512;
pub(super) const SECTOR_BYTES: usize = 512;
/// A batch's header.
pub(super) const BATCH_HEADER: usize = 64;
/// The part of it that is the seal's associated data; behind it stand the two checksums.
pub(super) const BATCH_AAD: usize = 56;
/// Fills a batch up to the next sector.
pub(super) const FILLER: u8 = 0xA5;
/// An entry record before its data and context.
pub(super) const ENTRY_HEADER: usize = 26;
/// The records that a batch may hold beside its entries, at their largest: two positions and the hard state.
pub(super) const OTHER_RECORDS: usize = 17 + 17 + 25;
/// The format that this program writes.
pub(super) const VERSION: u16 = 1;
/// The oldest reader that understands what this program writes.
pub(super) const MIN_READER: u16 = 1;

/// No counter gets here in the life of a machine, so that whoever adds one to it needs no care.
const COUNTER_LIMIT: u64 = 1 << 62;

pub(super) const SEGMENT_MAGIC: [u8; 8] = *b"SKEPWAL\n";
const BATCH_MAGIC: [u8; 4] = *b"SKB\n";
const BATCH_RECORDS: u8 = 1;

const ENTRY: u8 = 1;
const HARD_STATE: u8 = 2;
const TRUNCATE: u8 = 3;
const CREATED: u8 = 4;
const INSTALLED: u8 = 5;

/// What Raft must not forget beside its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The newest term seen.
    pub term: Term,
    /// Who got this member's vote in that term; zero for nobody.
    pub vote: RaftId,
    /// How far the log is known to be committed.
    pub commit: Index,
}

/// The first sector of a segment: everything a reader needs when older segments are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The history it belongs to.
    pub lineage: Lineage,
    /// The key it is sealed with.
    pub key_id: u64,
    /// What its own key is derived with.
    pub salt: [u8; SALT_BYTES],
    /// Its place among the segments, from 1, without gaps; also its name.
    pub sequence: u64,
    /// A random number that stands in every batch header of this segment and no other.
    pub epoch: u64,
    /// The file's length in bytes.
    pub bytes: u64,
    /// The number of its first batch.
    pub first_number: u64,
    /// The checksum of the batch before it, whichever segment that is in; zero for none.
    pub previous: u32,
    /// The hard state when it began.
    pub hard_state: HardState,
    /// The newest durable snapshot when it began.
    pub snapshot: Position,
    /// The last entry when it began.
    pub last: Position,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> [u8; SECTOR_BYTES] {
        let mut bytes = Vec::with_capacity(SECTOR_BYTES);
        bytes.extend_from_slice(&SEGMENT_MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&MIN_READER.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.lineage.0.to_le_bytes());
        bytes.extend_from_slice(&self.key_id.to_le_bytes());
        bytes.extend_from_slice(&self.salt);
        for number in [self.sequence, self.epoch, self.bytes, self.first_number, u64::from(self.previous)] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        put_hard_state(&mut bytes, self.hard_state);
        put_position(&mut bytes, self.snapshot);
        put_position(&mut bytes, self.last);
        bytes.resize(SECTOR_BYTES - 4, 0);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes.try_into().expect("the header was filled up to a sector")
    }

    /// Reads the first sector of `file`. The place of magic, versions and checksum is the same in every format, past
    /// and future.
    pub(super) fn decode(file: &str, sector: &[u8; SECTOR_BYTES]) -> Result<Self, WalError> {
        let damaged = |what: &str| WalError::damaged(file, 0, what);
        let (body, crc) = sector.split_at(SECTOR_BYTES - 4);
        if crc32fast::hash(body).to_le_bytes() != crc {
            return Err(damaged("the segment's header does not match its checksum"));
        }
        let mut cursor = Cursor(body);
        check_versions(file, SEGMENT_MAGIC, VERSION, &mut cursor)?;
        let mut read = || -> Option<Self> {
            cursor.take(4)?;
            Some(Self {
                lineage: Lineage(cursor.u128()?),
                key_id: cursor.u64()?,
                salt: cursor.take(SALT_BYTES)?.try_into().ok()?,
                sequence: cursor.u64()?,
                epoch: cursor.u64()?,
                bytes: cursor.u64()?,
                first_number: cursor.u64()?,
                previous: u32::try_from(cursor.u64()?).ok()?,
                hard_state: cursor.hard_state()?,
                snapshot: cursor.position()?,
                last: cursor.position()?,
            })
        };
        let makes_sense = |header: &Self| {
            let counters = [header.sequence, header.first_number, header.snapshot.index.0, header.last.index.0];
            counters.iter().all(|counter| *counter < COUNTER_LIMIT)
                && header.bytes >= SECTOR
                && header.bytes.is_multiple_of(SECTOR)
                && header.bytes / SECTOR < u64::from(u32::MAX)
        };
        read().filter(makes_sense).ok_or_else(|| damaged("the segment's header makes no sense"))
    }
}

/// Checks the magic and the two versions that every file begins with.
pub(super) fn check_versions(file: &str, magic: [u8; 8], ours: u16, cursor: &mut Cursor<'_>) -> Result<(), WalError> {
    let damaged = || WalError::damaged(file, 0, "it does not begin as a file of its kind does");
    if cursor.take(8).ok_or_else(damaged)? != magic {
        return Err(damaged());
    }
    let version = cursor.u16().ok_or_else(damaged)?;
    let min_reader = cursor.u16().ok_or_else(damaged)?;
    if min_reader > ours {
        return Err(WalError::Newer { file: file.to_owned(), version, min_reader, ours });
    }
    Ok(())
}

/// A batch's header: it lies in one sector, so it is on the disk as a whole or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Length of the sealed records and their tag.
    pub length: u32,
    /// The segment's.
    pub epoch: u64,
    /// Counts batches through all segments; the seal's nonce.
    pub number: u64,
    /// Index of the first entry; zero when there is none.
    pub first: u64,
    /// How many entries.
    pub entries: u32,
    /// The checksum of the batch before.
    pub previous: u32,
    /// Of the sealed records, the tag and the filler.
    pub payload_crc: u32,
}

impl BatchHeader {
    /// The header without its last four bytes, its own checksum.
    pub(super) fn encode(&self) -> [u8; BATCH_HEADER - 4] {
        let mut bytes = [0; BATCH_HEADER - 4];
        bytes[..4].copy_from_slice(&BATCH_MAGIC);
        bytes[4] = BATCH_RECORDS;
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.number.to_le_bytes());
        bytes[28..36].copy_from_slice(&self.first.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.entries.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.previous.to_le_bytes());
        bytes[BATCH_AAD..].copy_from_slice(&self.payload_crc.to_le_bytes());
        bytes
    }

    /// Reads a header and its checksum, which is also the batch's: it covers the payload's. `None` when these bytes
    /// are not a header.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Self, u32)> {
        let (body, crc) = bytes.get(..BATCH_HEADER)?.split_at(BATCH_HEADER - 4);
        let crc = u32::from_le_bytes(crc.try_into().ok()?);
        let mut cursor = Cursor(body);
        if cursor.take(4)? != BATCH_MAGIC || crc32fast::hash(body) != crc || cursor.u8()? != BATCH_RECORDS {
            return None;
        }
        cursor.take(3)?;
        let length = cursor.u32()?;
        let (epoch, number, first) = (cursor.u64()?, cursor.u64()?, cursor.u64()?);
        let (entries, previous) = (cursor.u32()?, cursor.u32()?);
        cursor.take(BATCH_AAD - 44)?;
        Some((Self { length, epoch, number, first, entries, previous, payload_crc: cursor.u32()? }, crc))
    }

    /// Bytes from the header's first to the next batch's.
    pub(super) fn on_disk(&self) -> u64 {
        (BATCH_HEADER as u64 + u64::from(self.length)).next_multiple_of(SECTOR)
    }
}

/// Bytes on disk of a batch with `plain` bytes of records.
pub(super) const fn batch_bytes(plain: usize) -> u64 {
    ((BATCH_HEADER + plain + TAG_BYTES) as u64).next_multiple_of(SECTOR)
}

/// One thing that a batch says.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// An entry, right after the one before.
    Entry(Entry),
    /// The hard state as of this batch.
    HardState(HardState),
    /// Entries from this index on are void.
    Truncate(Index),
    /// A snapshot of this position was made here.
    Created(Position),
    /// A snapshot from a peer replaces the whole log.
    Installed(Position),
}

pub(super) fn entry_bytes(entry: &Entry) -> usize {
    ENTRY_HEADER + entry.data.len() + entry.context.len()
}

pub(super) fn put_entry(bytes: &mut Vec<u8>, entry: &Entry) {
    let mut head = [0; ENTRY_HEADER];
    head[0] = ENTRY;
    head[1..9].copy_from_slice(&entry.term.to_le_bytes());
    head[9..17].copy_from_slice(&entry.index.to_le_bytes());
    head[17] = entry.entry_type as u8;
    head[18..22].copy_from_slice(&length(&entry.data).to_le_bytes());
    head[22..26].copy_from_slice(&length(&entry.context).to_le_bytes());
    bytes.extend_from_slice(&head);
    bytes.extend_from_slice(&entry.data);
    bytes.extend_from_slice(&entry.context);
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("an entry fits into a segment, whose length is checked")
}

/// Appends a record that is not an entry.
pub(super) fn put_record(bytes: &mut Vec<u8>, record: &Record) {
    match record {
        Record::Entry(entry) => put_entry(bytes, entry),
        Record::HardState(hard_state) => {
            bytes.push(HARD_STATE);
            put_hard_state(bytes, *hard_state);
        }
        Record::Truncate(from) => {
            bytes.push(TRUNCATE);
            bytes.extend_from_slice(&from.0.to_le_bytes());
        }
        Record::Created(position) => {
            bytes.push(CREATED);
            put_position(bytes, *position);
        }
        Record::Installed(position) => {
            bytes.push(INSTALLED);
            put_position(bytes, *position);
        }
    }
}

fn put_hard_state(bytes: &mut Vec<u8>, hard_state: HardState) {
    for number in [hard_state.term.0, hard_state.vote.0, hard_state.commit.0] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
}

pub(super) fn put_position(bytes: &mut Vec<u8>, position: Position) {
    bytes.extend_from_slice(&position.term.0.to_le_bytes());
    bytes.extend_from_slice(&position.index.0.to_le_bytes());
}

/// The records of an opened batch, in order; `None` ends a batch that makes no sense. Data and contexts of entries are
/// slices of the batch, not copies.
pub(super) struct Records {
    batch: Bytes,
    offset: usize,
}

impl Records {
    pub(super) const fn new(batch: Bytes) -> Self {
        Self { batch, offset: 0 }
    }

    fn read(&mut self) -> Option<Record> {
        let mut cursor = Cursor(&self.batch[self.offset..]);
        let record = match cursor.u8()? {
            ENTRY => {
                let (term, index) = (cursor.u64()?, cursor.u64()?);
                let entry_type = match cursor.u8()? {
                    0 => EntryType::EntryNormal,
                    1 => EntryType::EntryConfChange,
                    2 => EntryType::EntryConfChangeV2,
                    _ => return None,
                };
                let (data_len, context_len) = (cursor.u32()? as usize, cursor.u32()? as usize);
                let data = cursor.take(data_len)?;
                let context = cursor.take(context_len)?;
                let (data, context) = (self.batch.slice_ref(data), self.batch.slice_ref(context));
                Record::Entry(Entry { entry_type, term, index, data, context, ..Entry::default() })
            }
            HARD_STATE => Record::HardState(cursor.hard_state()?),
            TRUNCATE => Record::Truncate(Index(cursor.u64()?)),
            CREATED => Record::Created(cursor.position()?),
            INSTALLED => Record::Installed(cursor.position().filter(|position| position.index.0 < COUNTER_LIMIT)?),
            _ => return None,
        };
        self.offset = self.batch.len() - cursor.0.len();
        Some(record)
    }
}

impl Iterator for Records {
    /// A record, or its offset within the batch when there is none to be read there.
    type Item = Result<Record, usize>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset == self.batch.len() {
            return None;
        }
        let offset = self.offset;
        let record = self.read();
        if record.is_none() {
            self.offset = self.batch.len();
        }
        Some(record.ok_or(offset))
    }
}

/// Reads numbers off the front of a slice; `None` past its end.
pub(super) struct Cursor<'a>(pub(super) &'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    pub(super) fn u128(&mut self) -> Option<u128> {
        Some(u128::from_le_bytes(self.take(16)?.try_into().ok()?))
    }

    pub(super) fn position(&mut self) -> Option<Position> {
        Some(Position { term: Term(self.u64()?), index: Index(self.u64()?) })
    }

    fn hard_state(&mut self) -> Option<HardState> {
        Some(HardState { term: Term(self.u64()?), vote: RaftId(self.u64()?), commit: Index(self.u64()?) })
    }
}
