//! Opening: what the segments say, and which of two bad ends a bad end is.
//!
//! A batch is written when the one before is synced, so a crash can spoil only the last batch of the last segment, and
//! only by leaving some of its sectors unwritten, which are zero. Everything else that is wrong was done by something
//! else than a crash of ours, and cutting it off could forget what this manager has promised to the others.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Options;
use super::catalog::{Catalog, Effect};
use super::error::{Doing, WalError};
use super::format::{BATCH_HEADER, BatchHeader, HardState, Record, Records, SECTOR, SECTOR_BYTES};
use super::newest;
use super::reserve::with_reserve;
use super::segment::{self, Segment};
use crate::pki::Keyring;
use crate::sys::faults::{Fault, planted};
use crate::sys::files::{self, Disk};
use crate::types::{Index, Position, Term};

/// An unfinished write at the end of the log that was cut off. Nothing of it had been acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The segment's name.
    pub segment: String,
    /// Where the log ends now.
    pub offset: u64,
    /// How many bytes were cut.
    pub bytes: u64,
    /// The file that keeps them, sealed as they were.
    pub kept: PathBuf,
}

/// What the segments add up to.
pub(super) struct State {
    pub(super) next_number: u64,
    pub(super) previous: u32,
    pub(super) hard_state: HardState,
    pub(super) catalog: Catalog,
    /// The entry before the first, then the first of every term.
    pub(super) terms: Vec<Position>,
    /// The newest segment's sequence; zero for none.
    pub(super) sequence: u64,
    /// The newest segment holds no batch and is to be replaced.
    pub(super) is_empty: bool,
    pub(super) cut: Option<Cut>,
}

/// Directory for what was cut off.
pub(super) const LOST: &str = "lost+found";

pub(super) fn recover(disk: &dyn Disk, dir: &Path, keys: &Keyring, options: &Options) -> Result<State, WalError> {
    let names = disk.list(dir).doing("list", dir)?;
    let sequences = segment::sequences(&names);
    if let Some(error) = newest::missing(newest::read(disk, dir)?, sequences.last().copied().unwrap_or(0)) {
        return Err(error);
    }
    let mut state = State {
        next_number: 1,
        previous: 0,
        hard_state: HardState::default(),
        catalog: Catalog::new(Position::default(), Position::default()),
        terms: vec![Position::default()],
        sequence: 0,
        is_empty: false,
        cut: None,
    };
    for (at, sequence) in sequences.iter().enumerate() {
        if at > 0 && *sequence != state.sequence + 1 {
            return Err(WalError::damaged(&segment::name(state.sequence + 1), 0, "the segment is missing"));
        }
        let segment = Arc::new(Segment::open(disk, dir, *sequence, keys, options.lineage)?);
        if at == 0 {
            state.begin(&segment);
        }
        state.replay(disk, dir, segment, at + 1 == sequences.len())?;
    }
    state.finish(sequences.first().copied().unwrap_or_default())?;
    disk.sync_dir(dir).doing("sync", dir)?;
    Ok(state)
}

impl State {
    /// Starts from the oldest segment that is left: its header says what came before.
    fn begin(&mut self, segment: &Segment) {
        let header = &segment.header;
        (self.next_number, self.previous, self.hard_state) = (header.first_number, header.previous, header.hard_state);
        self.catalog = Catalog::new(header.snapshot, header.last);
        self.terms = vec![header.last];
    }

    fn replay(&mut self, disk: &dyn Disk, dir: &Path, segment: Arc<Segment>, is_last: bool) -> Result<(), WalError> {
        let header = &segment.header;
        let continues = header.first_number == self.next_number
            && header.previous == self.previous
            && header.hard_state == self.hard_state
            && header.snapshot == self.catalog.snapshot()
            && header.last == self.catalog.last();
        if !continues {
            let what = "it does not continue the segment before it, the end of which is missing or was changed";
            return Err(segment.damaged(0, what));
        }
        self.sequence = header.sequence;
        self.catalog.push(segment.clone());
        let mut offset = SECTOR;
        let mut newest = None;
        while offset < header.bytes {
            match self.batch(&segment, offset, is_last)? {
                Step::Batch(bytes) => {
                    newest = Some((offset, bytes));
                    offset += bytes;
                }
                Step::End => break,
                Step::Torn if planted(Fault::TornTailLeft) => break,
                Step::Torn => {
                    let cut = cut(disk, dir, &segment, offset)?;
                    log::warn!(
                        "the last write to {} was not finished when this manager stopped; {} bytes from byte {offset} on \
                         were cut off and kept as {}; nothing of it had been acknowledged",
                        segment.name,
                        cut.bytes,
                        cut.kept.display()
                    );
                    self.cut = Some(cut);
                    break;
                }
            }
        }
        if is_last {
            self.is_empty = newest.is_none();
            settle(disk, dir, &segment, newest)?;
        }
        segment.release();
        Ok(())
    }

    /// Judges what stands at `offset` and takes in a batch.
    fn batch(&mut self, segment: &Segment, offset: u64, is_last: bool) -> Result<Step, WalError> {
        let sector = segment.sector(offset)?;
        if segment::is_zero(&sector) {
            if let Some(follows) = segment.next_header(offset + SECTOR)? {
                let what = format!("a batch is missing: nothing stands here, and the batch at byte {follows} follows");
                return Err(segment.damaged(offset, what));
            }
            let is_torn = is_last && segment.last_used(offset)? > offset;
            return Ok(if is_torn { Step::Torn } else { Step::End });
        }
        let Some((header, crc)) = BatchHeader::decode(&sector) else {
            if planted(Fault::DamageCutOff) {
                return Ok(Step::Torn);
            }
            return Err(segment.damaged(offset, "the header of a batch does not match its checksum"));
        };
        if (header.epoch, header.number, header.previous) != (segment.header.epoch, self.next_number, self.previous) {
            return Err(segment.damaged(offset, "the batch does not continue the one before it"));
        }
        let payload = segment.payload(offset, &header)?;
        if crc32fast::hash(&payload) != header.payload_crc {
            let (_, sectors) = payload.split_at(SECTOR_BYTES - BATCH_HEADER);
            let is_torn = sectors.chunks(SECTOR_BYTES).any(segment::is_zero);
            if planted(Fault::DamageCutOff) || is_last && is_torn && segment.next_header(offset + SECTOR)?.is_none() {
                return Ok(Step::Torn);
            }
            return Err(segment.damaged(offset, "the contents of a batch do not match their checksum"));
        }
        let effect = self
            .take(Records::new(segment.unseal(offset, &header, payload)?))
            .ok_or_else(|| segment.damaged(offset, "the records of a batch make no sense"))?;
        self.catalog.append(offset, header.on_disk(), effect);
        (self.next_number, self.previous) = (header.number + 1, crc);
        Ok(Step::Batch(header.on_disk()))
    }

    /// Takes in a batch's records; `None` when they contradict each other or the log so far.
    fn take(&mut self, records: Records) -> Option<Effect> {
        let mut effect = Effect::default();
        let (mut last, mut snapshot) = (self.catalog.last(), self.catalog.snapshot());
        for (at, record) in records.enumerate() {
            match record.ok()? {
                Record::Installed(position) if at == 0 => {
                    effect.installed = Some(position);
                    self.terms = vec![position];
                    (last, snapshot) = (position, position);
                }
                Record::Truncate(_) if planted(Fault::TruncationForgotten) => {}
                // What a snapshot covers is committed and stays.
                Record::Truncate(from) if at == 0 && from > snapshot.index && from <= last.index => {
                    effect.truncated = Some(from);
                    self.terms.retain(|run| run.index < from);
                    let term = self.terms.last().map_or(Term(0), |run| run.term);
                    last = Position { term, index: Index(from.0 - 1) };
                }
                Record::Created(position) if position.index > snapshot.index && position.index <= last.index => {
                    effect.created = Some(position);
                    snapshot = position;
                }
                Record::Entry(entry) if entry.index == last.index.0 + 1 && entry.term >= last.term.0 => {
                    last = Position { term: Term(entry.term), index: Index(entry.index) };
                    let first = effect.entries.map_or(last.index, |(first, _)| first);
                    effect.entries = Some((first, last));
                    if self.terms.last().is_none_or(|run| run.term != last.term) {
                        self.terms.push(last);
                    }
                }
                Record::HardState(hard_state) if hard_state.commit <= last.index => self.hard_state = hard_state,
                _ => return None,
            }
        }
        Some(effect)
    }

    /// Finds the first entry whose predecessor's term is known, and checks that nothing is missing before it. The term is
    /// not known when the oldest segment that is left begins by replacing entries of segments that were removed: then
    /// its first entry, which a snapshot covers, stands in for the predecessor of the second.
    fn finish(&mut self, oldest: u64) -> Result<(), WalError> {
        let snapshot = self.catalog.snapshot();
        if let Some(held) = self.catalog.first_held()
            && self.terms.first().is_none_or(|before| before.index >= held)
            && snapshot.index.next() == held
        {
            self.terms.insert(0, snapshot);
        }
        let before = self.terms.first().copied().unwrap_or(snapshot);
        if before.index > snapshot.index {
            let what = format!(
                "the segment is missing: the log begins after entry {}, and the newest snapshot is of entry {}",
                before.index, snapshot.index
            );
            return Err(WalError::damaged(&segment::name(oldest.saturating_sub(1)), 0, what));
        }
        self.catalog.set_first(before.index.next());
        Ok(())
    }
}

/// What recovery found at an offset.
enum Step {
    /// A batch of this many bytes.
    Batch(u64),
    /// Nothing, as after the last batch.
    End,
    /// What a crash left of the last batch.
    Torn,
}

/// Makes durable what was read, before anyone believes it: the process that wrote it may have died before its sync
/// returned, or because it failed. After a failed sync the page cache shows what the disk does not have, and a further
/// sync writes nothing, so the last batch is written again first. Those before it were synced.
fn settle(disk: &dyn Disk, dir: &Path, segment: &Segment, newest: Option<(u64, u64)>) -> Result<(), WalError> {
    if let Some((offset, bytes)) = newest {
        let mut batch = vec![0; usize::try_from(bytes).map_err(io::Error::other).doing("read", &segment.path)?];
        segment.copy(offset, &mut batch)?;
        with_reserve(disk, dir, || segment.file.write_at(offset, &batch)).doing("write", &segment.path)?;
    }
    segment.file.sync_data().doing("sync", &segment.path)
}

/// Moves what stands from `offset` on to where it is kept, and leaves zeros.
pub(super) fn cut(disk: &dyn Disk, dir: &Path, segment: &Segment, offset: u64) -> Result<Cut, WalError> {
    let end = segment.last_used(offset)?;
    let mut bytes = vec![0; usize::try_from(end - offset).map_err(io::Error::other).doing("read", &segment.path)?];
    segment.copy(offset, &mut bytes)?;
    let lost = dir.join(LOST);
    with_reserve(disk, dir, || disk.create_dir(&lost)).doing("create", &lost)?;
    disk.sync_dir(dir).doing("sync", dir)?;
    let kept = lost.join(format!("{}-{:016x}-{offset}", segment.name, segment.header.epoch));
    // Nothing is ever appended to a segment that was cut, so a file of this name is from a cut of the same bytes that a
    // crash interrupted: it is whole, and the bytes here may be zeros by now.
    if disk.open(&kept).is_err() {
        with_reserve(disk, dir, || files::replace(disk, &kept, &bytes)).doing("write", &kept)?;
    }
    // To the very end: what the disk holds behind the last byte that the page cache shows is not known either.
    let zeros = vec![0; 256 << 10];
    let mut at = offset;
    while at < segment.header.bytes {
        let len = (segment.header.bytes - at).min(zeros.len() as u64);
        segment.file.write_at(at, &zeros[..len as usize]).doing("write", &segment.path)?;
        at += len;
    }
    segment.file.sync_data().doing("sync", &segment.path)?;
    Ok(Cut { segment: segment.name.clone(), offset, bytes: end - offset, kept })
}
