//! The write-ahead log and the snapshot files: what this manager must not forget, made durable before anyone acts on it.
//!
//! # What others may rely on
//!
//! [`Wal::write`] takes what Raft asked to be made durable, puts all of it into one batch, writes the batch at its place
//! and syncs. When it returns, a power cut forgets none of it; until then, a crash forgets it as a whole or in part, and
//! the part is a prefix of the entries. A [`Persist`] that only raises the commit index is not worth a sync: it rides
//! along with the next batch, or with [`Wal::close`]. [`run::spawn`] does this on a thread of its own, where everything
//! that queued up during one sync shares the next.
//!
//! [`Wal::open`] finds the log again: it drops an unfinished last write, and refuses a log that is damaged anywhere else,
//! because to cut off what was acknowledged would break the promises that Raft made with it. [`LogReader`] reads old
//! entries from any thread. [`SnapshotWriter`] and [`SnapshotReader`] stream snapshot files; once a snapshot is
//! recorded in the log, [`Wal::compact`] removes the segments it covers. [`inspect`] shows what the files hold, [`look`]
//! reads a log without changing it, and [`repair`] cuts off what is damaged when there is no other copy.
//!
//! Everything is sealed. Segments and snapshots name the key that they are sealed with; what is begun is sealed with the
//! newest of the [`Keyring`], and what is there opens as long as the keyring has its key. After a new key came in, the next
//! write or compaction begins a segment with it; [`named_keys`] says which keys the files in a directory still need.
//!
//! A full disk stops nothing for good: the log waits for space, with a reserve for the snapshot that makes some. [`Reserve`]
//! tells early enough that changes can be refused before it comes to that.
//!
//! # What is deliberately not here
//!
//! What an entry means, which entries are committed, and when a snapshot is due: `raft` and `apply` know. The newest
//! entries are kept in memory by `raft`; this folder caches nothing.
//!
//! # Files
//!
//! `wal-<sequence>` are segments: allocated, filled with zeros and synced before use by a helper thread (see `ahead`), then
//! renamed in with a header that repeats all that a reader needs when older segments are gone. A write is one
//! positioned write and one `fdatasync`; a store through a writable map and `msync` was measured at twice the time, and at
//! 1 MiB on the device for a record of 256 bytes (`tests/bench/disk.rs` measures the other variants). Reads go through
//! a read-only map. `spare` is the next segment, `newest` names the last one that was begun, `snap-<index>` are snapshots,
//! `reserve` holds space for a full disk, `lost+found/` keeps what was cut off. The bytes are described in `format`, `newest` and `snapshot`.
//!
//! # Invariants
//!
//! - One thread writes. A batch begins only after the previous sync returned, so only the last batch can be torn.
//! - No sector of a batch is all zeros, and behind the last batch there is nothing but zeros. So a sector of zeros inside
//!   a batch was never written (a crash did it), and any other mismatch is damage.
//! - Batches are numbered and chained by checksum through all segments: nothing can be missing in between. `newest` is
//!   written before the first batch of a segment: nothing can be missing at the end, as long as that file is there.
//! - Entries stand before the hard state that rests on them, and every batch holds the hard state: its commit index is
//!   never past the entries on the disk.
//! - Nothing is sealed twice under one salt and number: every open starts a new segment, whose salt is new.
//! - After a failed write or sync the log takes nothing more. The process ends, and the next open writes the last batch
//!   again before it believes it.
//! - Segments are removed oldest first, and only when a snapshot recorded in the log covers them. A start that wrote
//!   anything leaves one more, which counts whole for the next snapshot, so that restarts alone bound their number.

mod ahead;
mod catalog;
mod error;
mod format;
#[doc(hidden)]
pub mod fuzz;
mod inspect;
mod keys;
mod look;
mod map;
mod newest;
mod recover;
pub mod repair;
mod reserve;
pub mod run;
mod segment;
mod snapshot;
#[cfg(test)]
pub(crate) mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::raft::eraftpb::Entry;

use self::ahead::{Ahead, SPARE};
use self::catalog::Effect;
pub use self::catalog::LogReader;
use self::error::Doing;
pub use self::error::{ReadError, WalError};
use self::format::{BATCH_HEADER, OTHER_RECORDS, SECTOR};
pub use self::format::{BatchHeader, HardState, Record, SegmentHeader};
pub use self::inspect::{Found, Inspect, inspect};
pub use self::keys::{NamedKeys, named_keys};
pub use self::look::look;
pub use self::map::report_media_errors;
use self::newest::Newest;
pub use self::recover::Cut;
pub use self::reserve::{Reserve, abandon_reserve, is_full, with_reserve};
use self::segment::Segment;
pub use self::snapshot::{
    SnapshotFile, SnapshotMeta, SnapshotReader, SnapshotWriter, list_snapshots, remove_snapshots_before,
    remove_unfinished_snapshots,
};
use crate::pki::Keyring;
use crate::pki::seal::DataKey;
use crate::sys::entropy::{Entropy, OsEntropy};
use crate::sys::faults::{Fault, planted};
use crate::sys::files::Disk;
use crate::types::{Index, Lineage, Position};

/// How a log is laid out.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Length of a new segment: a multiple of 512, from 4 KiB. [`SEGMENT_BYTES`] or [`SEGMENT_BYTES_SDCARD`].
    pub segment_bytes: u64,
    /// The history that the log belongs to. Files of another one are refused.
    pub lineage: Lineage,
}

/// A segment's length: 16 MiB.
pub const SEGMENT_BYTES: u64 = 16 << 20;
/// A segment's length in the `sdcard` profile: 4 MiB.
pub const SEGMENT_BYTES_SDCARD: u64 = 4 << 20;

/// Records of one batch, at most, unless a single entry is longer. Reading an entry opens its whole batch.
const BATCH_BYTES: usize = 1 << 20;

/// What one of Raft's Readys asks to be made durable.
#[derive(Clone, Debug, Default)]
pub struct Persist {
    /// The Ready's number. Grows.
    pub number: u64,
    /// Contiguous entries. If the first is not behind the log's last, those from its index on are replaced.
    pub entries: Vec<Entry>,
    /// The hard state, if it changed.
    pub hard_state: Option<HardState>,
    /// A snapshot file that is durable and counts from now on.
    pub snapshot: Option<SnapshotMark>,
    /// False if only the commit index rose, which may be forgotten. Ignored when there is anything else.
    pub must_sync: bool,
}

/// How a snapshot came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotMark {
    /// Made here: the log up to it may be removed from now on.
    Created(Position),
    /// From a peer: it replaces the log, which goes on after it.
    Installed(Position),
}

/// What [`Wal::write`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The highest Ready number among what was asked.
    pub number: u64,
    /// Bytes written to the segments.
    pub bytes: u64,
    /// Batches written, each with a sync of its own.
    pub batches: u64,
}

/// What an opened log holds.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The last hard state; all zero in a new log. Its commit index is not past `last`.
    pub hard_state: HardState,
    /// The newest recorded snapshot, whose file is there with an intact header and end.
    pub snapshot: Option<SnapshotMeta>,
    /// The first entry of the log, at most one past the snapshot; one past `last` when there is none.
    pub first: Index,
    /// The last entry, or what the snapshot ends with.
    pub last: Position,
    /// The position before `first`, and then the first entry of every term that differs from the one before.
    pub terms: Vec<Position>,
    /// Bytes of disk that the log after the snapshot takes.
    pub bytes_since_snapshot: u64,
    /// What a crash had left unfinished.
    pub cut: Option<Cut>,
}

/// What the next segment's header has to repeat.
#[derive(Clone, Copy, Debug)]
struct State {
    hard_state: HardState,
    snapshot: Position,
    last: Position,
}

/// The log's writer. There is one, and the data directory's lock sees to it.
#[derive(Debug)]
pub struct Wal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    keys: Keyring,
    /// What the segment that is written is sealed with. Held, so that it is not forgotten before that segment is done.
    key: Arc<DataKey>,
    options: Options,
    entropy: Source,
    ahead: Ahead,
    newest: Newest,
    reader: LogReader,
    /// The segment that is written, and where its last batch ends.
    segment: Arc<Segment>,
    offset: u64,
    next_number: u64,
    /// Checksum of the last batch.
    previous: u32,
    /// What is on the disk.
    durable: State,
    /// What will be when the open batch is.
    state: State,
    /// The open batch: room for its header, then its records in the clear.
    buffer: Vec<u8>,
    effect: Effect,
    entries: u32,
    pulse: run::Pulse,
    failed: bool,
}

impl Wal {
    /// Opens the log in `dir` (made if it is missing), which nobody else may use. A new segment is begun.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        keys: impl Into<Keyring>,
        options: Options,
    ) -> Result<(Self, Recovered), WalError> {
        Self::open_with(disk, dir, keys, options, Box::new(OsEntropy), true)
    }

    /// As [`Self::open`], with random bytes from `entropy` and, unless `threaded`, without the helper thread: the same
    /// calls then do the same to the disk every time, which is what a simulation needs.
    pub fn open_with(
        disk: Arc<dyn Disk>,
        dir: &Path,
        keys: impl Into<Keyring>,
        options: Options,
        entropy: Box<dyn Entropy>,
        threaded: bool,
    ) -> Result<(Self, Recovered), WalError> {
        let keys = keys.into();
        assert!(
            options.segment_bytes >= 8 * SECTOR && options.segment_bytes.is_multiple_of(SECTOR),
            "a segment is a number of sectors, eight at least"
        );
        disk.create_dir(dir).doing("create", dir)?;
        let mut ahead = Ahead::new(disk.clone(), dir, options.segment_bytes, threaded)?;
        let mut found = recover::recover(disk.as_ref(), dir, &keys, &options)?;
        let state =
            State { hard_state: found.hard_state, snapshot: found.catalog.snapshot(), last: found.catalog.last() };
        let snapshot = if state.snapshot.index.0 > 0 {
            Some(snapshot::meta(disk.as_ref(), dir, &keys, options.lineage, state.snapshot)?)
        } else {
            None
        };
        let mut recovered = Recovered {
            hard_state: state.hard_state,
            snapshot,
            first: found.catalog.first(),
            last: state.last,
            terms: std::mem::take(&mut found.terms),
            bytes_since_snapshot: 0,
            cut: found.cut.take(),
        };
        // A segment without batches is replaced, or a manager that restarts in a loop would fill the disk with them.
        let sequence = if found.is_empty { found.sequence } else { found.sequence + 1 };
        if found.is_empty {
            found.catalog.pop();
        }
        let begin = Begin { sequence, first_number: found.next_number, previous: found.previous, state };
        let mut entropy = Source(entropy);
        let key = keys.newest();
        let segment = begin.segment(disk.as_ref(), dir, &key, &options, &mut entropy, &mut ahead)?;
        let newest = Newest::create(disk.as_ref(), dir, sequence)?;
        found.catalog.push(segment.clone());
        // With those that are not the newest any more.
        recovered.bytes_since_snapshot = found.catalog.bytes_since_snapshot();
        ahead.order();
        let wal = Self {
            disk,
            dir: dir.to_owned(),
            keys,
            key,
            options,
            entropy,
            ahead,
            newest,
            reader: LogReader::new(found.catalog),
            segment,
            offset: SECTOR,
            next_number: found.next_number,
            previous: found.previous,
            durable: state,
            state,
            buffer: vec![0; BATCH_HEADER],
            effect: Effect::default(),
            entries: 0,
            pulse: run::Pulse::default(),
            failed: false,
        };
        Ok((wal, recovered))
    }

    /// Makes all of `batch` durable, in order: one positioned write and one sync, or one of each per MiB of entries and
    /// where a segment ends. Nothing is written when only the commit index rose. After an error nothing may be
    /// assumed about any of it, and the process has to stop.
    ///
    /// # Panics
    ///
    /// When the entries are not contiguous, or a snapshot made here is not of an entry of this log: Raft's state is
    /// broken, and so would be the log.
    pub fn write(&mut self, batch: &[Persist]) -> Result<Written, WalError> {
        let mut written = Written::default();
        self.guarded(|wal| {
            let mut must_sync = false;
            for persist in batch {
                written.number = written.number.max(persist.number);
                must_sync |= wal.gather(persist, &mut written)?;
            }
            if must_sync || wal.is_open() { wal.flush(&mut written) } else { Ok(()) }
        })?;
        Ok(written)
    }

    /// Removes the segments that hold only entries before `keep_from`, or only entries that the newest recorded
    /// snapshot covers, whichever is less. [`LogReader::read`] refuses entries before that from now on; a later open
    /// may find some of them again.
    ///
    /// If the segment that is written is sealed with a key that is not the newest any more, the next one is begun first, so
    /// that this one can go too.
    pub fn compact(&mut self, keep_from: Index) -> Result<(), WalError> {
        if self.failed {
            return Err(WalError::Failed);
        }
        if self.key_is_old() {
            self.guarded(|wal| wal.roll(0))?;
        }
        let covered = self.durable.snapshot.index.next();
        let keep_from = if planted(Fault::SnapshotUnrecorded) { keep_from } else { keep_from.min(covered) };
        let (before, kept) = {
            let mut catalog = self.reader.lock();
            let before = catalog.oldest();
            (before, catalog.compact(keep_from))
        };
        if before < kept {
            self.ahead.remove_below(kept);
        }
        Ok(())
    }

    /// Reads old entries. Clones of the reader may go to other threads.
    pub fn reader(&self) -> LogReader {
        self.reader.clone()
    }

    /// Asks `ask` when there is no room for the next segment, not even with the reserve; while it says true, the write
    /// waits, and nothing is lost. Without this a full disk is an error of [`Self::write`] like others.
    pub fn when_full(&mut self, ask: impl FnMut() -> bool + Send + 'static) {
        self.ahead.when_full(Box::new(ask));
    }

    /// Shows from outside whether the thread that [`run::spawn`] starts is getting on.
    pub fn pulse(&self) -> run::Pulse {
        self.pulse.clone()
    }

    /// Writes a commit index that has been waiting for a batch, for an orderly stop.
    pub fn close(mut self) -> Result<(), WalError> {
        self.guarded(|wal| {
            if wal.state.hard_state == wal.durable.hard_state { Ok(()) } else { wal.flush(&mut Written::default()) }
        })
    }

    fn guarded(&mut self, act: impl FnOnce(&mut Self) -> Result<(), WalError>) -> Result<(), WalError> {
        if self.failed {
            return Err(WalError::Failed);
        }
        // Set before anything is tried, so that a panic counts as well.
        self.failed = true;
        act(self)?;
        self.failed = false;
        Ok(())
    }

    /// Puts one Ready's needs into the open batch; true if it needs a sync.
    fn gather(&mut self, persist: &Persist, written: &mut Written) -> Result<bool, WalError> {
        let before = self.state.hard_state;
        match persist.snapshot {
            Some(SnapshotMark::Installed(position)) => {
                self.begin_anew(written)?;
                format::put_record(&mut self.buffer, &Record::Installed(position));
                self.effect.installed = Some(position);
                if planted(Fault::SnapshotWithoutHardState) {
                    self.state.hard_state = HardState::default();
                }
                (self.state.snapshot, self.state.last) = (position, position);
            }
            Some(SnapshotMark::Created(position)) if position.index > self.state.snapshot.index => {
                assert!(position.index <= self.state.last.index, "a snapshot is made of entries in the log");
                format::put_record(&mut self.buffer, &Record::Created(position));
                self.effect.created = Some(position);
                self.state.snapshot = position;
            }
            _ => {}
        }
        if let Some(first) = persist.entries.first().filter(|first| first.index <= self.state.last.index.0) {
            self.begin_anew(written)?;
            let from = Index(first.index);
            assert!(from > self.state.snapshot.index, "entries that a snapshot covers are committed and stay");
            format::put_record(&mut self.buffer, &Record::Truncate(from));
            self.effect.truncated = Some(from);
            self.state.last.index = Index(from.0 - 1);
        }
        if let Some(hard_state) = persist.hard_state {
            self.state.hard_state = hard_state;
        }
        // A snapshot holds nothing that is not committed, and Raft does not start from a commit index before its log.
        let commit = &mut self.state.hard_state.commit;
        *commit = (*commit).max(self.state.snapshot.index);
        for entry in &persist.entries {
            self.put(entry, written)?;
        }
        if planted(Fault::VoteNotWritten) && persist.entries.is_empty() && persist.snapshot.is_none() {
            return Ok(false);
        }
        let after = self.state.hard_state;
        let is_vote = (before.term, before.vote) != (after.term, after.vote);
        Ok(is_vote || persist.must_sync && after != self.durable.hard_state)
    }

    fn put(&mut self, entry: &Entry, written: &mut Written) -> Result<(), WalError> {
        assert_eq!(entry.index, self.state.last.index.0 + 1, "entries are contiguous");
        let records = self.buffer.len() - BATCH_HEADER + OTHER_RECORDS;
        let longer = records + format::entry_bytes(entry);
        let rest = self.segment.header.bytes - self.offset;
        // A batch that goes to the next segment has all of that.
        let room = if format::batch_bytes(records) > rest { self.options.segment_bytes - SECTOR } else { rest };
        if self.entries > 0 && (longer > BATCH_BYTES || format::batch_bytes(longer) > room) {
            self.flush(written)?;
        }
        format::put_entry(&mut self.buffer, entry);
        self.entries += 1;
        self.state.last = Position { term: crate::types::Term(entry.term), index: Index(entry.index) };
        let first = self.effect.entries.map_or(self.state.last.index, |(first, _)| first);
        self.effect.entries = Some((first, self.state.last));
        Ok(())
    }

    /// A record that changes earlier entries stands first in its batch, so that a batch's entries are contiguous.
    fn begin_anew(&mut self, written: &mut Written) -> Result<(), WalError> {
        if self.is_open() { self.flush(written) } else { Ok(()) }
    }

    fn is_open(&self) -> bool {
        self.buffer.len() > BATCH_HEADER
    }

    /// Writes the open batch and syncs it.
    fn flush(&mut self, written: &mut Written) -> Result<(), WalError> {
        let mut now = self.state;
        // Where a batch ends within a Ready, the Ready's commit index may be ahead of the entries written so far.
        if !planted(Fault::CommitBeyondEntries) {
            now.hard_state.commit = now.hard_state.commit.min(now.last.index);
        }
        format::put_record(&mut self.buffer, &Record::HardState(now.hard_state));
        let bytes = format::batch_bytes(self.buffer.len() - BATCH_HEADER);
        if bytes > self.segment.header.bytes - self.offset || self.key_is_old() {
            self.roll(bytes)?;
        }
        let records = self.buffer.len() - BATCH_HEADER + crate::pki::seal::TAG_BYTES;
        let mut header = BatchHeader {
            length: u32::try_from(records).expect("a batch fits into a segment, which has less than 4 GiB"),
            epoch: self.segment.header.epoch,
            number: self.next_number,
            first: self.effect.entries.map_or(0, |(first, _)| first.0),
            entries: self.entries,
            previous: self.previous,
            payload_crc: 0,
        };
        self.previous = self.segment.seal(&mut header, &mut self.buffer);
        // The place is there already, but on a file system that copies what is written over.
        let write = || self.segment.file.write_at(self.offset, &self.buffer);
        with_reserve(self.disk.as_ref(), &self.dir, write).doing("write", &self.segment.path)?;
        if !planted(Fault::WriteNotSynced) {
            self.segment.file.sync_data().doing("sync", &self.segment.path)?;
        }
        self.reader.lock().append(self.offset, bytes, self.effect);
        self.durable = now;
        self.next_number += 1;
        self.offset += bytes;
        written.bytes += bytes;
        written.batches += 1;
        self.effect = Effect::default();
        self.entries = 0;
        self.buffer.clear();
        self.buffer.shrink_to(2 * BATCH_BYTES);
        self.buffer.resize(BATCH_HEADER, 0);
        Ok(())
    }

    /// Whether the keyring has a newer key than the segment that is written is sealed with.
    fn key_is_old(&self) -> bool {
        !Arc::ptr_eq(&self.key, &self.keys.newest())
    }

    /// Begins the next segment, in which the open batch of `bytes` bytes has to fit.
    fn roll(&mut self, bytes: u64) -> Result<(), WalError> {
        let limit = self.options.segment_bytes - SECTOR;
        if bytes > limit {
            return Err(WalError::EntryTooLarge { bytes, limit });
        }
        let begin = Begin {
            sequence: self.segment.header.sequence + 1,
            first_number: self.next_number,
            previous: self.previous,
            state: self.durable,
        };
        let (disk, dir, key) = (self.disk.as_ref(), self.dir.as_path(), self.keys.newest());
        self.segment = begin.segment(disk, dir, &key, &self.options, &mut self.entropy, &mut self.ahead)?;
        self.key = key;
        self.newest.write(dir, self.segment.header.sequence)?;
        self.offset = SECTOR;
        self.reader.lock().push(self.segment.clone());
        self.ahead.order();
        Ok(())
    }
}

/// A segment to begin.
struct Begin {
    sequence: u64,
    first_number: u64,
    previous: u32,
    state: State,
}

impl Begin {
    /// Takes the spare file, writes the header, and lets it take its place: it is there as a whole or not at all.
    fn segment(
        self,
        disk: &dyn Disk,
        dir: &Path,
        key: &DataKey,
        options: &Options,
        entropy: &mut Source,
        ahead: &mut Ahead,
    ) -> Result<Arc<Segment>, WalError> {
        let mut salt = [0; crate::pki::seal::SALT_BYTES];
        entropy.0.fill(&mut salt);
        let header = SegmentHeader {
            lineage: options.lineage,
            key_id: key.id(),
            salt,
            sequence: self.sequence,
            epoch: entropy.0.next_u64(),
            bytes: options.segment_bytes,
            first_number: self.first_number,
            previous: self.previous,
            hard_state: self.state.hard_state,
            snapshot: self.state.snapshot,
            last: self.state.last,
        };
        let file = ahead.take()?;
        let (spare, path) = (dir.join(SPARE), dir.join(segment::name(self.sequence)));
        file.write_at(0, &header.encode()).doing("write", &spare)?;
        file.sync_data().doing("sync", &spare)?;
        disk.rename(&spare, &path).doing("rename a file to", &path)?;
        if !planted(Fault::SegmentNameNotSynced) {
            disk.sync_dir(dir).doing("sync", dir)?;
        }
        Ok(Arc::new(Segment::new(dir, header, file, key)?))
    }
}

/// Random bytes, of which nothing is shown.
struct Source(Box<dyn Entropy>);

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entropy")
    }
}
