#![allow(clippy::unwrap_used)]

mod crash;
mod damage;
pub(crate) mod disk;
mod every_byte;
pub(crate) mod faults;
mod golden;
mod inspect;
mod keys;
mod log;
mod repair;
mod shuffled;
mod snapshots;
mod space;
mod thread;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::raft::eraftpb::{Entry, EntryType};

use self::disk::TestDisk;
use super::{HardState, Options, Persist, Recovered, SnapshotMark, SnapshotWriter, Wal, WalError, Written};
use crate::pki::seal::DataKey;
use crate::sys::entropy::SeededEntropy;
use crate::types::log::Configuration;
use crate::types::{Index, Lineage, Position, RaftId, Term};

const LINEAGE: Lineage = Lineage(0x5ee9);

fn dir() -> &'static Path {
    Path::new("raft")
}

fn key() -> DataKey {
    DataKey::from_bytes([0x42; 32])
}

fn position(term: u64, index: u64) -> Position {
    Position { term: Term(term), index: Index(index) }
}

fn hard_state(term: u64, vote: u64, commit: u64) -> HardState {
    HardState { term: Term(term), vote: RaftId(vote), commit: Index(commit) }
}

fn members() -> Configuration {
    Configuration { voters: vec![RaftId(1), RaftId(2)], learners: vec![RaftId(7)] }
}

/// An entry whose contents tell its place and term, `len` bytes long.
fn entry(term: u64, index: u64, len: usize) -> Entry {
    let mut data = format!("entry {index} of term {term} ").into_bytes();
    data.resize(len, b'.');
    Entry { term, index, data: data.into(), ..Entry::default() }
}

fn entries(term: u64, range: std::ops::Range<u64>, len: usize) -> Vec<Entry> {
    range.map(|index| entry(term, index, len)).collect()
}

fn persist(entries: Vec<Entry>, hard_state: Option<HardState>) -> Persist {
    Persist { number: 1, entries, hard_state, snapshot: None, must_sync: true }
}

fn open(disk: &TestDisk, segment_bytes: u64, seed: u64) -> Result<(Wal, Recovered), WalError> {
    let options = Options { segment_bytes, lineage: LINEAGE };
    Wal::open_with(Arc::new(disk.clone()), dir(), key(), options, Box::new(SeededEntropy::new(seed)), false)
}

/// A log beside the plainest thing that does the same.
struct Pair {
    disk: TestDisk,
    wal: Option<Wal>,
    segment_bytes: u64,
    opened: u64,
    number: u64,
    model: Model,
}

/// What a log should hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    /// Entries after the snapshot, and some that it covers.
    entries: Vec<Entry>,
    /// The entry before the first of them.
    before: Position,
    snapshot: Position,
    hard_state: HardState,
}

impl Model {
    fn last(&self) -> Position {
        self.entries.last().map_or(self.before, |entry| position(entry.term, entry.index))
    }

    fn apply(&mut self, persist: &Persist) {
        match persist.snapshot {
            Some(SnapshotMark::Installed(position)) => {
                self.entries.clear();
                (self.before, self.snapshot) = (position, position);
            }
            Some(SnapshotMark::Created(position)) => self.snapshot = position,
            None => {}
        }
        if let Some(first) = persist.entries.first() {
            self.entries.retain(|entry| entry.index < first.index);
            self.entries.extend_from_slice(&persist.entries);
        }
        self.hard_state = persist.hard_state.unwrap_or(self.hard_state);
        self.hard_state.commit = self.hard_state.commit.max(self.snapshot.index);
    }

    fn compact(&mut self, keep_from: Index) {
        let keep_from = keep_from.min(self.snapshot.index.next());
        while self.entries.first().is_some_and(|entry| entry.index < keep_from.0) {
            let entry = self.entries.remove(0);
            self.before = position(entry.term, entry.index);
        }
    }
}

impl Pair {
    fn new(segment_bytes: u64) -> Self {
        let disk = TestDisk::new();
        let wal = Some(open(&disk, segment_bytes, 0).unwrap().0);
        Self { disk, wal, segment_bytes, opened: 0, number: 0, model: Model::default() }
    }

    fn wal(&mut self) -> &mut Wal {
        self.wal.as_mut().unwrap()
    }

    /// Writes one group to both and compares them.
    fn write(&mut self, batch: Vec<Persist>) -> Written {
        let mut batch = batch;
        for persist in &mut batch {
            self.number += 1;
            persist.number = self.number;
            if let Some(SnapshotMark::Created(position) | SnapshotMark::Installed(position)) = persist.snapshot {
                snapshot(&self.disk, position);
            }
            self.model.apply(persist);
        }
        let written = self.wal().write(&batch).unwrap();
        assert_eq!(written.number, self.number);
        self.check();
        written
    }

    fn append(&mut self, term: u64, range: std::ops::Range<u64>, len: usize) -> Written {
        self.write(vec![persist(entries(term, range, len), None)])
    }

    fn compact(&mut self, keep_from: u64) {
        self.wal().compact(Index(keep_from)).unwrap();
        self.model.compact(Index(keep_from));
        self.check();
    }

    /// Stops and starts, on whatever the disk is now.
    fn reopen(&mut self) -> Recovered {
        self.wal = None;
        self.opened += 1;
        let (wal, recovered) = open(&self.disk, self.segment_bytes, self.opened).unwrap();
        self.wal = Some(wal);
        self.adopt_older(&recovered);
        let model = &self.model;
        assert_eq!((recovered.last, recovered.hard_state), (model.last(), model.hard_state));
        let found = recovered.snapshot.as_ref();
        assert_eq!(found.map_or(Position::default(), |meta| meta.position), model.snapshot);
        assert!(recovered.first <= model.snapshot.index.next());
        let mut terms = vec![model.before];
        for entry in &model.entries {
            if terms.last().unwrap().term.0 != entry.term {
                terms.push(position(entry.term, entry.index));
            }
        }
        assert_eq!(recovered.terms, terms);
        assert_eq!(recovered.bytes_since_snapshot, self.wal().reader().bytes_since_snapshot());
        self.check();
        recovered
    }

    /// Segments are removed as a whole, so an opened log may begin earlier than the closed one did. What it begins with
    /// must still be entries that were written: here, those of the one term that these tests use before compacting.
    fn adopt_older(&mut self, recovered: &Recovered) {
        let before = recovered.terms[0];
        if before.index < self.model.before.index {
            let older = self.wal().reader().read(recovered.first, self.model.before.index.next(), u64::MAX).unwrap();
            for old in &older {
                assert_eq!(old.data, entry(old.term, old.index, old.data.len()).data);
            }
            self.model.entries.splice(0..0, older);
            self.model.before = before;
        }
        // And it may begin one entry later, when what is left does not tell the term before the first entry.
        if before.index > self.model.before.index {
            assert_eq!(before.index, self.model.before.index.next());
            self.model.compact(before.index.next());
        }
        assert_eq!(before, self.model.before);
    }

    /// Reads the log in every way that matters and compares.
    fn check(&mut self) {
        let reader = self.wal().reader();
        let (first, last) = (self.model.before.index.next(), self.model.last());
        assert_eq!((reader.first(), reader.last(), reader.snapshot()), (first, last, self.model.snapshot));
        let all = reader.read(first, last.index.next(), u64::MAX).unwrap();
        assert_eq!(all, self.model.entries);
        let middle = all.len() / 2;
        if let Some(entry) = all.get(middle) {
            let part = reader.read(Index(entry.index), last.index.next(), 0).unwrap();
            assert_eq!(part, std::slice::from_ref(entry));
            let part = reader.read(Index(entry.index), last.index.next(), 1500).unwrap();
            assert_eq!(part, all[middle..middle + part.len()]);
            let part = reader.read(first, Index(entry.index), u64::MAX).unwrap();
            assert_eq!(part, all[..middle]);
        }
        if first.0 > 0 {
            let compacted = reader.read(Index(first.0 - 1), last.index.next(), u64::MAX);
            assert!(matches!(compacted, Err(super::ReadError::Compacted)));
        }
        let unavailable = reader.read(first, Index(last.index.0 + 2), u64::MAX);
        assert!(matches!(unavailable, Err(super::ReadError::Unavailable)));
    }

    fn segments(&self) -> Vec<PathBuf> {
        self.disk.paths().into_iter().filter(|path| path.to_string_lossy().contains("wal-")).collect()
    }
}

/// Puts a snapshot of `position` on the disk, if there is none.
fn snapshot(disk: &TestDisk, position: Position) {
    let mut writer =
        SnapshotWriter::create(Arc::new(disk.clone()), dir(), key(), LINEAGE, position, &members()).unwrap();
    writer.write_chunk(b"the state").unwrap();
    writer.finish().unwrap();
}

fn conf_change(term: u64, index: u64) -> Entry {
    let (data, context) = (b"members"[..].into(), b"why"[..].into());
    Entry { term, index, data, context, entry_type: EntryType::EntryConfChangeV2, ..Entry::default() }
}
