//! Shows what the files of a log hold, whole or not, without changing them.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use super::error::{Doing, WalError};
use super::format::{BatchHeader, Record, Records, SECTOR, SegmentHeader};
use super::segment::{self, Segment};
use super::snapshot::{self, SnapshotReader};
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
    /// Something that should not be so. If it is in the last batch, a crash may have left it, and opening the log cuts it.
    Problem {
        /// The file's name.
        file: String,
        /// Where.
        offset: u64,
        /// What is wrong.
        what: String,
    },
}

/// Walks through the segments and snapshots in `dir`, in order. Headers are shown in any case, contents with the `key` only.
/// After damage it goes on with the next valid batch.
pub fn inspect<'a>(disk: &'a dyn Disk, dir: &Path, key: Option<&'a DataKey>) -> Result<Inspect<'a>, WalError> {
    let sequences = segment::sequences(&disk.list(dir).doing("list", dir)?).into();
    let snapshots = snapshot::list_snapshots(disk, dir)?.into();
    let dir = dir.to_owned();
    Ok(Inspect { disk, dir, key, sequences, snapshots, current: None, expected: None, ready: VecDeque::new() })
}

/// What [`inspect`] returns.
#[derive(Debug)]
pub struct Inspect<'a> {
    disk: &'a dyn Disk,
    dir: PathBuf,
    key: Option<&'a DataKey>,
    sequences: VecDeque<u64>,
    snapshots: VecDeque<Index>,
    /// The segment at hand, and where in it.
    current: Option<(Segment, u64)>,
    /// Sequence of the last segment, and the number and previous checksum that its next batch would have.
    expected: Option<(u64, u64, u32)>,
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
        let begins = (sequence, header.first_number, header.previous);
        if self.expected.is_some_and(|(last, number, previous)| begins != (last.wrapping_add(1), number, previous)) {
            let what = "it does not continue the segment before it";
            self.problem(name, 0, &WalError::damaged("", 0, what));
        }
        self.expected = Some(begins);
        // Without the key nothing is opened, and any key will do.
        let key = self.key.cloned().unwrap_or_else(|| DataKey::from_bytes([0; 32]));
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
            if segment::is_zero(&sector) && segment.last_used(offset)? == offset {
                self.ready.push_back(Found::End { file, offset });
                return Ok(());
            }
            let next = segment.next_header(offset + SECTOR)?;
            let what = next.map_or_else(
                || "no batch begins here, and no batch follows".to_owned(),
                |next| format!("no batch begins here; the next one begins at byte {next}"),
            );
            self.problem(file, offset, &WalError::damaged("", offset, what));
            self.expected = None;
            self.current = next.map(|next| (segment, next));
            return Ok(());
        };
        if let Some((sequence, number, previous)) = self.expected {
            if (header.number, header.previous) != (number, previous) {
                let what = "the batch does not continue the one before it";
                self.problem(file.clone(), offset, &WalError::damaged("", offset, what));
            }
            self.expected = Some((sequence, header.number.wrapping_add(1), crc));
        }
        let records = self.records(&segment, offset);
        let records = records.unwrap_or_else(|error| {
            self.problem(file.clone(), offset, &error);
            None
        });
        self.ready.push_back(Found::Batch { file, offset, header, records });
        self.current = Some((segment, offset + header.on_disk()));
        Ok(())
    }

    fn records(&self, segment: &Segment, offset: u64) -> Result<Option<Vec<Record>>, WalError> {
        if self.key.is_none_or(|key| key.id() != segment.header.key_id) {
            segment.checked(offset)?;
            return Ok(None);
        }
        let records: Result<Vec<_>, _> = Records::new(segment.batch(offset)?.2).collect();
        records.map(Some).map_err(|_| WalError::damaged("", offset, "the records of the batch make no sense"))
    }

    fn snapshot(&mut self, index: Index) -> Result<(), WalError> {
        let file = snapshot::name(index);
        let (meta, lineage, key_id) = snapshot::describe(self.disk, &self.dir, index)?;
        if let Some(key) = self.key.filter(|key| key.id() == key_id) {
            let mut reader = SnapshotReader::open(self.disk, &self.dir, key, lineage, index)?;
            while reader.next_chunk()?.is_some() {}
        }
        self.ready.push_back(Found::Snapshot { file, meta, lineage, key_id });
        Ok(())
    }

    fn problem(&mut self, file: String, offset: u64, error: &WalError) {
        let (offset, what) = match error {
            WalError::Damaged { offset, what, .. } => (*offset, what.clone()),
            other => (offset, other.to_string()),
        };
        self.ready.push_back(Found::Problem { file, offset, what });
    }
}
