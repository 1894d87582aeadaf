//! Shows what the files of a log hold, whole or not, without changing them.
//!
//! What opening the log would refuse is a [`Found::Problem`] here, at the same place. Without the key two things cannot
//! be known: what a batch says, and so which snapshot the newest segment rests on if that was recorded in it.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{Doing, WalError};
use super::format::{BATCH_HEADER, BatchHeader, Record, Records, SECTOR, SECTOR_BYTES, SegmentHeader};
use super::newest::{self, NEWEST};
use super::segment::{self, Segment};
use super::snapshot::{self, SnapshotReader};
use crate::pki::Keyring;
use crate::pki::seal::DataKey;
use crate::sys::files::Disk;
use crate::types::{Index, Lineage};

/// One thing found in a log's directory.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// A segment begins.
    Segment {
        /// Its file's name.
        file: String,
        /// Its first sector.
        header: SegmentHeader,
    },
    /// A batch with a valid header.
    Batch {
        /// The segment's name.
        file: String,
        /// Where it begins.
        offset: u64,
        /// Its header.
        header: BatchHeader,
        /// What it says; `None` without the key.
        records: Option<Vec<Record>>,
    },
    /// The segment's last batch ends here, and nothing but zeros follows.
    End {
        /// The segment's name.
        file: String,
        /// Where its last batch ends.
        offset: u64,
    },
    /// A finished snapshot, read to its end if the key is known.
    Snapshot {
        /// Its file's name.
        file: String,
        /// What it is of.
        meta: snapshot::SnapshotMeta,
        /// The history it belongs to.
        lineage: Lineage,
        /// The key it is sealed with.
        key_id: u64,
    },
    /// Something that should not be so.
    Problem {
        /// The file's name.
        file: String,
        /// Where.
        offset: u64,
        /// What is wrong.
        what: String,
        /// A crash may have left it: opening the log cuts it off or passes over it, and nothing acknowledged is in it.
        harmless: bool,
    },
}

/// Walks through the segments and snapshots in `dir`, in order. Headers are shown in any case, contents with their keys
/// only.
/// After damage it goes on with the next valid batch. A file that is removed meanwhile is passed over.
pub fn inspect<'a>(disk: &'a dyn Disk, dir: &Path, keys: Option<&'a Keyring>) -> Result<Inspect<'a>, WalError> {
    // Read first: a log that is in use may begin another segment before they are listed.
    let newest = newest::read(disk, dir);
    let sequences: VecDeque<u64> = segment::sequences(&disk.list(dir).doing("list", dir)?).into();
    let snapshots: VecDeque<Index> = snapshot::list_snapshots(disk, dir)?.into();
    let newest_snapshot = snapshots.back().copied().unwrap_or_default();
    let dir = dir.to_owned();
    let mut inspect = Inspect {
        disk,
        dir,
        keys,
        first: sequences.front().copied().unwrap_or(0),
        last: sequences.back().copied().unwrap_or(0),
        sequences,
        snapshots,
        newest_snapshot,
        begins_after: None,
        rests_on: Index(0),
        current: None,
        expected: None,
        at_end: false,
        ready: VecDeque::new(),
    };
    match newest {
        Ok(newest) => {
            if let Some(error) = newest::missing(newest, inspect.last) {
                let file = segment::name(inspect.last.saturating_add(1));
                inspect.problem(file, 0, &error);
            }
        }
        Err(error) => inspect.problem(NEWEST.to_owned(), 0, &error),
    }
    Ok(inspect)
}

/// What [`inspect`] returns.
#[derive(Debug)]
pub struct Inspect<'a> {
    disk: &'a dyn Disk,
    dir: PathBuf,
    keys: Option<&'a Keyring>,
    sequences: VecDeque<u64>,
    snapshots: VecDeque<Index>,
    /// The first and the last segment's sequence.
    first: u64,
    last: u64,
    newest_snapshot: Index,
    /// The oldest segment's sequence and the entry before its first, until a batch with entries was seen.
    begins_after: Option<(u64, Index)>,
    /// The newest snapshot that the log is known to have recorded.
    rests_on: Index,
    /// The segment at hand, and where in it.
    current: Option<(Segment, u64)>,
    /// Sequence of the last segment, and the number and previous checksum that its next batch would have.
    expected: Option<(u64, u64, u32)>,
    /// The segments are done and what they miss was told.
    at_end: bool,
    ready: VecDeque<Found>,
}

impl Iterator for Inspect<'_> {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        while self.ready.is_empty() {
            if let Some((segment, offset)) = self.current.take() {
                let place = (segment.name.clone(), offset);
                if let Err(error) = self.batch(segment, offset) {
                    self.problem(place.0, place.1, &error);
                }
            } else if let Some(sequence) = self.sequences.pop_front() {
                if let Err(error) = self.segment(sequence) {
                    self.expected = None;
                    self.problem(segment::name(sequence), 0, &error);
                }
            } else if !self.at_end {
                self.at_end = true;
                self.check_begin(None);
                if self.rests_on > self.newest_snapshot {
                    let error = WalError::damaged("", 0, "the snapshot that the log rests on is missing");
                    self.problem(snapshot::name(self.rests_on), 0, &error);
                }
            } else {
                let index = self.snapshots.pop_front()?;
                if let Err(error) = self.snapshot(index) {
                    self.problem(snapshot::name(index), 0, &error);
                }
            }
        }
        self.ready.pop_front()
    }
}

impl Inspect<'_> {
    fn segment(&mut self, sequence: u64) -> Result<(), WalError> {
        let name = segment::name(sequence);
        let path = self.dir.join(&name);
        let file = self.disk.open(&path).doing("open", &path)?;
        let header = segment::read_header(&name, &path, file.as_ref())?;
        self.ready.push_back(Found::Segment { file: name.clone(), header: header.clone() });
        if header.sequence != sequence {
            let what = format!("its header says that it is {}", segment::name(header.sequence));
            return Err(WalError::damaged(&name, 0, what));
        }
        let begins = (sequence, header.first_number, header.previous);
        match self.expected {
            Some((last, _, _)) if sequence != last.wrapping_add(1) => {
                let error = WalError::damaged("", 0, "the segment is missing");
                self.problem(segment::name(last.wrapping_add(1)), 0, &error);
            }
            Some((last, number, previous)) if begins != (last.wrapping_add(1), number, previous) => {
                let what = "it does not continue the segment before it, the end of which is missing or was changed";
                self.problem(name, 0, &WalError::damaged("", 0, what));
            }
            Some(_) => {}
            None if sequence == self.first => self.begins_after = Some((sequence, header.last.index)),
            None => {}
        }
        self.rests_on = self.rests_on.max(header.snapshot.index);
        self.expected = Some(begins);
        // Without the key nothing is opened, and any key will do.
        let key = self.keys.and_then(|keys| keys.of(header.key_id));
        let key = key.unwrap_or_else(|| Arc::new(DataKey::from_bytes([0; 32])));
        self.current = Some((Segment::new(&self.dir, header, file, &key)?, SECTOR));
        Ok(())
    }

    fn batch(&mut self, segment: Segment, offset: u64) -> Result<(), WalError> {
        let file = segment.name.clone();
        if offset >= segment.header.bytes {
            self.ready.push_back(Found::End { file, offset });
            return Ok(());
        }
        let sector = segment.sector(offset)?;
        let header = BatchHeader::decode(&sector).filter(|(header, _)| header.epoch == segment.header.epoch);
        let Some((header, crc)) = header else {
            return self.no_batch(segment, offset, segment::is_zero(&sector));
        };
        let mut is_new = false;
        if let Some((sequence, number, previous)) = self.expected {
            if (header.number, header.previous) != (number, previous) {
                let what = "the batch does not continue the one before it";
                self.problem(file.clone(), offset, &WalError::damaged("", offset, what));
            }
            is_new = true;
            self.expected = Some((sequence, header.number.wrapping_add(1), crc));
        }
        if is_new && header.entries > 0 {
            self.check_begin(Some(Index(header.first)));
        }
        let records = match self.records(&segment, offset) {
            Ok(records) => records,
            Err(error) => {
                let harmless = self.is_torn(&segment, offset, &header)?;
                self.ready.push_back(problem(file.clone(), offset, &error, harmless));
                None
            }
        };
        for record in records.iter().flatten() {
            if let Record::Created(position) | Record::Installed(position) = record {
                self.rests_on = self.rests_on.max(position.index);
            }
        }
        self.ready.push_back(Found::Batch { file, offset, header, records });
        self.current = Some((segment, offset + header.on_disk()));
        Ok(())
    }

    /// Says why no batch begins at `offset`, and goes on with the next one.
    fn no_batch(&mut self, segment: Segment, offset: u64, is_zero: bool) -> Result<(), WalError> {
        let file = segment.name.clone();
        let used = segment.last_used(offset)?;
        if used == offset {
            self.ready.push_back(Found::End { file, offset });
            return Ok(());
        }
        let next = segment.next_header(offset + SECTOR)?;
        let what = match next {
            Some(next) => format!("no batch begins here; the next one begins at byte {next}"),
            None if is_zero => format!("the log ends here, and up to byte {used} stands what is no batch"),
            None => "no batch begins here, and no batch follows".to_owned(),
        };
        let error = WalError::damaged("", offset, what);
        self.ready.push_back(problem(file, offset, &error, is_zero && next.is_none()));
        if next.is_some() {
            self.expected = None;
        }
        self.current = next.map(|next| (segment, next));
        Ok(())
    }

    /// Whether a batch whose contents do not match may be the unfinished last write, as opening the log judges it.
    fn is_torn(&self, segment: &Segment, offset: u64, header: &BatchHeader) -> Result<bool, WalError> {
        if segment.header.sequence != self.last || segment.next_header(offset + SECTOR)?.is_some() {
            return Ok(false);
        }
        let Ok(payload) = segment.payload(offset, header) else { return Ok(false) };
        let (_, sectors) = payload.split_at(SECTOR_BYTES - BATCH_HEADER);
        Ok(crc32fast::hash(&payload) != header.payload_crc && sectors.chunks(SECTOR_BYTES).any(segment::is_zero))
    }

    /// Looks once whether a snapshot covers what comes before the oldest segment, whose first entry this is.
    fn check_begin(&mut self, first: Option<Index>) {
        let Some((oldest, last)) = self.begins_after.take() else { return };
        // Its first batch may replace entries of segments that were removed.
        let before = first.map_or(last, |first| last.min(Index(first.0.saturating_sub(1))));
        if before > self.newest_snapshot {
            let what = format!(
                "the segment is missing: the log begins after entry {before}, and the newest snapshot is of entry {}",
                self.newest_snapshot
            );
            let file = segment::name(oldest.saturating_sub(1));
            self.problem(file, 0, &WalError::damaged("", 0, what));
        }
    }

    fn records(&self, segment: &Segment, offset: u64) -> Result<Option<Vec<Record>>, WalError> {
        if self.keys.is_none_or(|keys| keys.of(segment.header.key_id).is_none()) {
            segment.checked(offset)?;
            return Ok(None);
        }
        let records: Result<Vec<_>, _> = Records::new(segment.batch(offset)?.2).collect();
        records.map(Some).map_err(|_| WalError::damaged("", offset, "the records of the batch make no sense"))
    }

    fn snapshot(&mut self, index: Index) -> Result<(), WalError> {
        let file = snapshot::name(index);
        let (meta, lineage, key_id) = snapshot::describe(self.disk, &self.dir, index)?;
        if let Some(keys) = self.keys.filter(|keys| keys.of(key_id).is_some()) {
            let mut reader = SnapshotReader::open(self.disk, &self.dir, keys, lineage, index)?;
            while reader.next_chunk()?.is_some() {}
        }
        self.ready.push_back(Found::Snapshot { file, meta, lineage, key_id });
        Ok(())
    }

    fn problem(&mut self, file: String, offset: u64, error: &WalError) {
        if matches!(error, WalError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound) {
            return;
        }
        self.ready.push_back(problem(file, offset, error, false));
    }
}

fn problem(file: String, offset: u64, error: &WalError, harmless: bool) -> Found {
    let (offset, what) = match error {
        WalError::Damaged { offset, what, .. } => (*offset, what.clone()),
        other => (offset, other.to_string()),
    };
    Found::Problem { file, offset, what, harmless }
}
