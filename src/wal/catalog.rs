//! Which batch holds which entry, and reading entries back from any thread.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use ::raft::eraftpb::Entry;

use super::error::{ReadError, WalError};
use super::format::{self, Record, SECTOR};
use super::segment::Segment;
use crate::types::{Index, Position};

/// What a durable batch did to the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effect {
    /// A snapshot replaced the log.
    pub(super) installed: Option<Position>,
    /// A snapshot of this position exists.
    pub(super) created: Option<Position>,
    /// Entries from here on were void before the batch's own.
    pub(super) truncated: Option<Index>,
    /// The batch's first and last entry.
    pub(super) entries: Option<(Index, Position)>,
}

/// The entries that can be read: a contiguous range, each in the last batch that begins at or before it.
#[derive(Debug)]
pub(super) struct Catalog {
    segments: VecDeque<Listed>,
    first: Index,
    last: Position,
    snapshot: Position,
}

#[derive(Debug)]
struct Listed {
    segment: Arc<Segment>,
    /// What the marks count from.
    base: u64,
    /// Batches with entries that still count, in order.
    marks: Vec<Mark>,
    /// Where the last batch ends.
    end: u64,
}

/// A batch that begins at entry `base + first`, at this sector. Small, because a log of small writes has many.
#[derive(Clone, Copy, Debug)]
struct Mark {
    first: u32,
    sector: u32,
}

/// Where a run of entries lies.
struct Place {
    segment: Arc<Segment>,
    offset: u64,
    /// First entry, and the one behind the last.
    range: (u64, u64),
}

impl Catalog {
    /// A log of nothing after `last`.
    pub(super) fn new(snapshot: Position, last: Position) -> Self {
        Self { segments: VecDeque::new(), first: last.index.next(), last, snapshot }
    }

    pub(super) fn push(&mut self, segment: Arc<Segment>) {
        self.segments.push_back(Listed { segment, base: 0, marks: Vec::new(), end: SECTOR });
    }

    /// Forgets the newest segment, which holds nothing.
    pub(super) fn pop(&mut self) {
        self.segments.pop_back();
    }

    pub(super) const fn first(&self) -> Index {
        self.first
    }

    pub(super) fn set_first(&mut self, first: Index) {
        self.first = first;
    }

    pub(super) const fn last(&self) -> Position {
        self.last
    }

    pub(super) const fn snapshot(&self) -> Position {
        self.snapshot
    }

    /// The oldest segment's sequence.
    pub(super) fn oldest(&self) -> u64 {
        self.segments.front().map_or(0, |listed| listed.segment.header.sequence)
    }

    /// The first entry that any batch holds.
    pub(super) fn first_held(&self) -> Option<Index> {
        self.segments.iter().find_map(Listed::first)
    }

    /// A batch of `bytes` bytes at `offset` of the newest segment is durable.
    pub(super) fn append(&mut self, offset: u64, bytes: u64, effect: Effect) {
        if let Some(position) = effect.installed {
            self.segments.iter_mut().for_each(|listed| listed.marks.clear());
            (self.snapshot, self.last, self.first) = (position, position, position.index.next());
        }
        if let Some(position) = effect.created.filter(|position| position.index > self.snapshot.index) {
            self.snapshot = position;
        }
        if let Some(from) = effect.truncated {
            for listed in self.segments.iter_mut().rev() {
                let kept = listed.marks.partition_point(|mark| listed.base + u64::from(mark.first) < from.0);
                listed.marks.truncate(kept);
                if kept > 0 {
                    break;
                }
            }
        }
        let newest = self.segments.back_mut().expect("a batch is in a segment");
        newest.end = offset + bytes;
        if let Some((first, last)) = effect.entries {
            self.last = last;
            if newest.marks.is_empty() {
                newest.base = first.0;
            }
            newest.marks.push(Mark {
                first: u32::try_from(first.0 - newest.base).expect("a segment holds fewer entries than bytes"),
                sector: u32::try_from(offset / SECTOR).expect("a segment has less than 2^32 sectors"),
            });
        }
    }

    /// Bytes of disk that the log after the newest snapshot takes. Of a segment that is not the newest all of it counts: a
    /// manager that restarts again and again leaves most of each empty.
    pub(super) fn bytes_since_snapshot(&self) -> u64 {
        let index = self.snapshot.index.0 + 1;
        let Some(at) = self.segment_of(index).filter(|_| index <= self.last.index.0) else { return 0 };
        let newest = self.segments.len() - 1;
        let end = |at: usize| if at == newest { self.segments[at].end } else { self.segments[at].segment.header.bytes };
        let later: u64 = (at + 1..=newest).map(|at| end(at) - SECTOR).sum();
        end(at) - self.segments[at].offset(self.segments[at].mark_of(index)) + later
    }

    /// Where each segment with entries ends, but the newest: its last entry, and the bytes of disk that the log takes up to
    /// there.
    pub(super) fn ends(&self) -> Vec<(Index, u64)> {
        let mut bytes = 0;
        let closed = self.segments.len().saturating_sub(1);
        let ends = self.segments.iter().enumerate().take(closed).filter_map(|(at, listed)| {
            bytes += listed.segment.header.bytes;
            let next = self.segments.iter().skip(at + 1).find_map(Listed::first).unwrap_or(self.last.index.next());
            listed.first().map(|_| (Index(next.0 - 1), bytes))
        });
        ends.collect()
    }

    /// Drops the segments whose entries all come before `keep_from`; returns the sequence of the first one kept.
    pub(super) fn compact(&mut self, keep_from: Index) -> u64 {
        self.first = self.first.max(keep_from);
        while self.segments.len() > 1 {
            let next = self.segments.iter().skip(1).find_map(Listed::first).unwrap_or(self.last.index.next());
            if next > self.first && !self.segments[0].marks.is_empty() {
                break;
            }
            self.segments.pop_front();
        }
        self.oldest()
    }

    /// The segment whose batches hold this entry.
    fn segment_of(&self, index: u64) -> Option<usize> {
        self.segments.iter().rposition(|listed| listed.first().is_some_and(|first| first.0 <= index))
    }

    /// The batches that hold `low..high`, in order, at most about `max_bytes` of them but one at least.
    fn places(&self, low: u64, high: u64, max_bytes: u64) -> Vec<Place> {
        let mut places = Vec::new();
        let mut bytes = 0;
        let Some(start) = self.segment_of(low) else { return places };
        let mut mark = self.segments[start].mark_of(low);
        for at in start..self.segments.len() {
            let listed = &self.segments[at];
            let behind = self.segments.iter().skip(at + 1).find_map(Listed::first);
            while mark < listed.marks.len() {
                let first = listed.index(mark);
                if first >= high || (bytes > max_bytes && !places.is_empty()) {
                    return places;
                }
                let next = if mark + 1 < listed.marks.len() {
                    listed.index(mark + 1)
                } else {
                    behind.unwrap_or(self.last.index.next()).0
                };
                let offset = listed.offset(mark);
                let end = if mark + 1 < listed.marks.len() { listed.offset(mark + 1) } else { listed.end };
                // A batch that is asked for in part may hold all that fits in the part not asked for.
                if first >= low {
                    bytes += end - offset;
                }
                let range = (first.max(low), next.min(high));
                places.push(Place { segment: listed.segment.clone(), offset, range });
                mark += 1;
            }
            mark = 0;
        }
        places
    }
}

impl Listed {
    fn first(&self) -> Option<Index> {
        self.marks.first().map(|mark| Index(self.base + u64::from(mark.first)))
    }

    fn index(&self, mark: usize) -> u64 {
        self.base + u64::from(self.marks[mark].first)
    }

    fn offset(&self, mark: usize) -> u64 {
        u64::from(self.marks[mark].sector) * SECTOR
    }

    /// The mark whose batch holds `index`, which is not before the first.
    fn mark_of(&self, index: u64) -> usize {
        self.marks.partition_point(|mark| self.base + u64::from(mark.first) <= index) - 1
    }
}

/// Reads old entries, from any thread and while the log is written. Clones share the log.
#[derive(Clone, Debug)]
pub struct LogReader(Arc<Mutex<Catalog>>);

impl LogReader {
    pub(super) fn new(catalog: Catalog) -> Self {
        Self(Arc::new(Mutex::new(catalog)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Catalog> {
        self.0.lock().expect("no code panics while it holds this lock")
    }

    /// The durable entries `low..high`, in order: all of them, or as many as `max_bytes` of encoded entries allow, but
    /// one at least. Data and contexts are slices of the batches they came in: a kept entry keeps its batch in memory.
    pub fn read(&self, low: Index, high: Index, max_bytes: u64) -> Result<Vec<Entry>, ReadError> {
        let places = {
            let catalog = self.lock();
            if low < catalog.first {
                return Err(ReadError::Compacted);
            }
            if high > catalog.last.index.next() {
                return Err(ReadError::Unavailable);
            }
            if low >= high {
                return Ok(Vec::new());
            }
            catalog.places(low.0, high.0, max_bytes)
        };
        let result = collect(&places, max_bytes);
        let mut mapped = places;
        mapped.dedup_by_key(|place| place.segment.header.sequence);
        mapped.iter().for_each(|place| place.segment.release());
        result
    }

    /// The first entry that can be read; one past [`Self::last`] when there is none.
    pub fn first(&self) -> Index {
        self.lock().first
    }

    /// The last durable entry, or what the newest snapshot ends with.
    pub fn last(&self) -> Position {
        self.lock().last
    }

    /// The newest durable snapshot's position; zero for none.
    pub fn snapshot(&self) -> Position {
        self.lock().snapshot
    }

    /// Bytes of disk that the log after the newest snapshot takes.
    pub fn bytes_since_snapshot(&self) -> u64 {
        self.lock().bytes_since_snapshot()
    }

    /// Where the segments end but the newest: the last entry of each, and the bytes of disk that the log takes up to there.
    pub fn segment_ends(&self) -> Vec<(Index, u64)> {
        self.lock().ends()
    }
}

/// The entries at these places, in order, within the limit.
fn collect(places: &[Place], max_bytes: u64) -> Result<Vec<Entry>, ReadError> {
    let mut entries = Vec::new();
    let mut bytes = 0;
    for place in places {
        let mut wanted = place.range.0;
        for record in format::Records::new(place.segment.batch(place.offset)?.2) {
            let Ok(Record::Entry(entry)) = record else { continue };
            if entry.index != wanted || wanted == place.range.1 {
                continue;
            }
            bytes += format::entry_bytes(&entry) as u64;
            if bytes > max_bytes && !entries.is_empty() {
                return Ok(entries);
            }
            wanted += 1;
            entries.push(entry);
        }
        if wanted != place.range.1 {
            let what = format!("the batch does not hold entry {wanted}");
            return Err(WalError::damaged(&place.segment.name, place.offset, what).into());
        }
    }
    Ok(entries)
}
