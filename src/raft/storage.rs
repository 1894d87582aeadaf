//! What raft-rs reads of the log: the recent entries in memory, and the terms of all of it.
//!
//! Everything unapplied or unsynced stays in memory, because raft-rs reads those entries synchronously. Older ones are
//! kept up to a budget, a larger one for those that a member lacks; beyond it a read for a lagging follower is recorded
//! as a [`Fetch`] and answered later. Terms are kept as runs (the first position of each term), so that `term()` never
//! reads the disk.

use std::cell::RefCell;
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

use crate::sys::faults::{Fault, planted};
use crate::types::log::Configuration;
use crate::types::{Index, Position, Term};

/// Bytes of applied and synced entries kept in memory for members that lack them.
const LACKED_BYTES: u64 = 8 << 20;
/// Of those that every member has; a follower, which does not know, keeps no more either. What a new leader may have to
/// send of them is the end; what it lacks of them it reads from the disk, and from then on it keeps [`LACKED_BYTES`].
const RECENT_BYTES: u64 = 256 << 10;
/// What an entry costs besides its payload.
const ENTRY_OVERHEAD: u64 = 48;

/// A snapshot file as raft needs to know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotMark {
    /// Its place in the log; zero when there is none.
    pub position: Position,
    /// Voters and learners there.
    pub configuration: Configuration,
    /// Size of the file.
    pub bytes: u64,
}

/// A read of old entries that the log thread must answer.
#[derive(Debug)]
pub struct Fetch {
    /// First index wanted.
    pub low: Index,
    /// First index not wanted.
    pub high: Index,
    /// Enough bytes; at least one entry whatever its size.
    pub max_bytes: u64,
    context: GetEntriesContext,
}

#[derive(Debug, Default)]
struct Asked {
    fetches: Vec<Fetch>,
    /// Where the reads begin that were asked for and did not come back yet.
    outstanding: Vec<u64>,
    /// Entries that came back, until raft has taken them.
    fetched: Option<(u64, Vec<Entry>)>,
    /// A follower needs a newer snapshot than the last.
    snapshot_wanted: Option<(u64, u64)>,
}

/// The log as raft-rs sees it.
#[derive(Debug)]
pub struct LogView {
    hard_state: HardState,
    /// The entry before the first in the log; its term is answered for ever.
    base: Position,
    /// First position of each term run after `base`.
    runs: VecDeque<Position>,
    /// Entries in memory, contiguous, ending at `last`.
    tail: VecDeque<Entry>,
    tail_bytes: u64,
    last: Position,
    snapshot: SnapshotMark,
    configuration: ConfState,
    asked: RefCell<Asked>,
}

/// Payload and overhead of an entry in memory or in flight.
pub fn entry_bytes(entry: &Entry) -> u64 {
    entry.data.len() as u64 + entry.context.len() as u64 + ENTRY_OVERHEAD
}

fn conf_state(configuration: &Configuration) -> ConfState {
    let mut state = ConfState::default();
    state.voters = configuration.voters.iter().map(|id| id.0).collect();
    state.learners = configuration.learners.iter().map(|id| id.0).collect();
    state
}

impl LogView {
    /// A log that begins after `base`, has the given term runs, ends at `last`, and whose entries from
    /// `tail[0].index` on are in memory.
    pub fn new(
        base: Position,
        runs: Vec<Position>,
        last: Position,
        tail: Vec<Entry>,
        snapshot: SnapshotMark,
        configuration: &Configuration,
        hard_state: HardState,
    ) -> Self {
        let tail_bytes = tail.iter().map(entry_bytes).sum();
        Self {
            hard_state,
            base,
            runs: runs.into(),
            tail: tail.into(),
            tail_bytes,
            last,
            snapshot,
            configuration: conf_state(configuration),
            asked: RefCell::default(),
        }
    }

    /// The first entry that is in memory; the one after the last if there is none.
    pub fn first_in_memory(&self) -> Index {
        self.tail.front().map_or(self.last.index.next(), |entry| Index(entry.index))
    }

    /// Whether a member that has the entries up to `matched` can have what it lacks from memory: now, or soon if what is
    /// there is kept for it, because what it lacks is about as much as is kept.
    pub fn reaches(&self, matched: Index) -> bool {
        let lacked = self.last.index.0.saturating_sub(matched.0);
        // By the size of the recent ones.
        let bytes = self.tail_bytes.checked_div(self.tail.len() as u64).map(|each| each.saturating_mul(lacked));
        matched.next() >= self.first_in_memory() || bytes.is_some_and(|bytes| bytes <= LACKED_BYTES)
    }

    /// The last entry.
    pub const fn last(&self) -> Position {
        self.last
    }

    /// The first entry still in the log.
    pub const fn first(&self) -> Index {
        Index(self.base.index.0 + 1)
    }

    /// The last snapshot.
    pub const fn snapshot_mark(&self) -> &SnapshotMark {
        &self.snapshot
    }

    /// Takes new entries, which may replace a suffix.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index > self.base.index.0 && first.index <= self.last.index.0 + 1,
            "raft hands over entries that continue the log or replace its end"
        );
        self.truncate(first.index);
        for entry in entries {
            if entry.term != self.last.term.0 || self.runs.is_empty() {
                self.runs.push_back(Position { term: Term(entry.term), index: Index(entry.index) });
            }
            self.last = Position { term: Term(entry.term), index: Index(entry.index) };
            self.tail_bytes += entry_bytes(entry);
            self.tail.push_back(entry.clone());
        }
    }

    fn truncate(&mut self, from: u64) {
        while self.tail.back().is_some_and(|entry| entry.index >= from) {
            let entry = self.tail.pop_back().expect("back() was there");
            self.tail_bytes -= entry_bytes(&entry);
        }
        while self.runs.back().is_some_and(|run| run.index.0 >= from) {
            self.runs.pop_back();
        }
        if from <= self.last.index.0 {
            let index = Index(from - 1);
            let term = self.runs.back().map_or(self.base.term, |run| run.term);
            self.last = Position { term, index };
        }
    }

    /// The log restarts after a snapshot that was installed.
    pub fn install(&mut self, snapshot: SnapshotMark) {
        self.base = snapshot.position;
        self.last = snapshot.position;
        self.runs.clear();
        self.tail.clear();
        self.tail_bytes = 0;
        self.configuration = conf_state(&snapshot.configuration);
        self.snapshot = snapshot;
        self.asked.get_mut().fetched = None;
    }

    /// A snapshot of our own state is on disk.
    pub fn snapshot_created(&mut self, snapshot: SnapshotMark) {
        if snapshot.position > self.snapshot.position {
            self.snapshot = snapshot;
        }
    }

    /// Voters and learners as of what is applied, for the next start of a `RawNode`.
    pub fn set_configuration(&mut self, configuration: &Configuration) {
        self.configuration = conf_state(configuration);
    }

    /// Drops what stands before `keep_from`.
    pub fn compact(&mut self, keep_from: Index) {
        let index = Index(keep_from.0.saturating_sub(1)).min(self.last.index);
        if index <= self.base.index {
            return;
        }
        let term = self.term_at(index.0).expect("the index lies between base and last");
        while self.runs.get(1).is_some_and(|next| next.index.0 <= index.0 + 1) {
            self.runs.pop_front();
        }
        if let Some(run) = self.runs.front_mut()
            && run.index <= index
        {
            run.index = Index(index.0 + 1);
        }
        self.base = Position { term, index };
        if self.last == self.base {
            self.runs.clear();
        }
        while self.tail.front().is_some_and(|entry| entry.index <= index.0) {
            let entry = self.tail.pop_front().expect("front() was there");
            self.tail_bytes -= entry_bytes(&entry);
        }
    }

    /// Lets go of entries at or before `done` (applied and synced) beyond the memory budget, which is larger for those
    /// after `everywhere`.
    pub fn evict(&mut self, done: Index, everywhere: Index) {
        let budget = |entry: &Entry| if entry.index <= everywhere.0 { RECENT_BYTES } else { LACKED_BYTES };
        while self.tail.front().is_some_and(|entry| entry.index <= done.0 && self.tail_bytes > budget(entry)) {
            let entry = self.tail.pop_front().expect("front() was there");
            self.tail_bytes -= entry_bytes(&entry);
        }
    }

    /// The term of an index from `base` to `last`.
    pub fn term_at(&self, index: u64) -> Option<Term> {
        if index == self.base.index.0 {
            return Some(self.base.term);
        }
        if index == self.snapshot.position.index.0 && index != 0 {
            return Some(self.snapshot.position.term);
        }
        if index < self.base.index.0 || index > self.last.index.0 {
            return None;
        }
        let run = self.runs.partition_point(|run| run.index.0 <= index);
        Some(self.runs.get(run.checked_sub(1)?)?.term)
    }

    /// Reads asked for since the last call.
    pub fn take_fetches(&mut self) -> Vec<Fetch> {
        std::mem::take(&mut self.asked.get_mut().fetches)
    }

    /// A read came back. The caller passes the context on to raft, which then asks for the entries again.
    pub fn fetched(&mut self, fetch: Fetch, entries: Vec<Entry>) -> GetEntriesContext {
        let asked = self.asked.get_mut();
        asked.outstanding.retain(|low| *low != fetch.low.0);
        asked.fetched = Some((fetch.low.0, entries));
        fetch.context
    }

    /// Forgets a read's result that raft did not take.
    pub fn drop_fetched(&mut self) {
        self.asked.get_mut().fetched = None;
    }

    /// A follower (second) needs a snapshot at or after an index (first), which the last one is not.
    pub fn take_snapshot_wanted(&mut self) -> Option<(u64, u64)> {
        self.asked.get_mut().snapshot_wanted.take()
    }

    fn tail_range(&self, low: u64, high: u64, max_bytes: Option<u64>) -> Vec<Entry> {
        let first = self.first_in_memory().0;
        limit(self.tail.range((low - first) as usize..(high - first) as usize).cloned(), max_bytes)
    }
}

fn limit(entries: impl Iterator<Item = Entry>, max_bytes: Option<u64>) -> Vec<Entry> {
    let max_bytes = max_bytes.unwrap_or(u64::MAX);
    let mut bytes = 0;
    let mut taken = Vec::new();
    for entry in entries {
        bytes += entry_bytes(&entry);
        if bytes > max_bytes && !taken.is_empty() {
            break;
        }
        taken.push(entry);
    }
    taken
}

impl Storage for LogView {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.configuration.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let max_size = max_size.into();
        if low <= self.base.index.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last.index.0 + 1, "raft asks for entries it has handed over");
        if low >= high {
            return Ok(Vec::new());
        }
        if self.tail.front().is_some_and(|entry| entry.index <= low) {
            return Ok(self.tail_range(low, high, max_size));
        }
        let mut asked = self.asked.borrow_mut();
        if let Some((first, entries)) = &asked.fetched
            && *first == low
        {
            let entries = entries.iter().take_while(|entry| entry.index < high).cloned();
            return Ok(limit(entries, max_size));
        }
        assert!(context.can_async(), "entries that raft reads synchronously are unapplied and stay in memory");
        // raft-rs asks again with every append that it would like to send meanwhile. A second follower that needs the same
        // entries asks again after its next heartbeat.
        if !asked.outstanding.contains(&low) {
            asked.outstanding.push(low);
            // The end of the log may not be durable yet; what is in memory need not be read.
            let in_memory = self.first_in_memory().0;
            let (low, high) = (Index(low), Index(high.min(in_memory)));
            asked.fetches.push(Fetch { low, high, max_bytes: max_size.unwrap_or(1 << 20), context });
        }
        Err(Error::Store(StorageError::LogTemporarilyUnavailable))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.term_at(index) {
            Some(term) => Ok(term.0),
            None if index < self.base.index.0 => Err(Error::Store(StorageError::Compacted)),
            None => Err(Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.index.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last.index.0)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let mark = &self.snapshot;
        let configuration = &mark.configuration;
        let contains = configuration.voters.iter().chain(&configuration.learners).any(|id| id.0 == to)
            || planted(Fault::SnapshotWithoutReceiver);
        // A receiver ignores a snapshot that does not name it: one taken before it was added is of no use to it.
        if mark.position.index.0 < request_index.max(1) || !contains || mark.position.index < self.base.index {
            self.asked.borrow_mut().snapshot_wanted = Some((request_index, to));
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = mark.position.index.0;
        metadata.term = mark.position.term.0;
        metadata.set_conf_state(conf_state(configuration));
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(term: u64, index: u64) -> Entry {
        let mut entry = Entry::default();
        (entry.term, entry.index) = (term, index);
        entry
    }

    fn position(term: u64, index: u64) -> Position {
        Position { term: Term(term), index: Index(index) }
    }

    fn view(entries: &[(u64, u64)]) -> LogView {
        let base = position(1, 1);
        let mut view = LogView::new(
            base,
            Vec::new(),
            base,
            Vec::new(),
            SnapshotMark::default(),
            &Configuration::default(),
            HardState::default(),
        );
        let entries: Vec<_> = entries.iter().map(|&(term, index)| entry(term, index)).collect();
        view.append(&entries);
        view
    }

    fn terms(view: &LogView) -> Vec<Option<u64>> {
        (0..=view.last().index.0 + 1).map(|index| view.term_at(index).map(|term| term.0)).collect()
    }

    #[test]
    fn terms_are_answered_from_base_to_last_through_truncation_and_compaction() {
        let mut log = view(&[(1, 2), (1, 3), (2, 4), (5, 5), (5, 6)]);
        assert_eq!(terms(&log), [None, Some(1), Some(1), Some(1), Some(2), Some(5), Some(5), None]);
        log.append(&[entry(6, 5)]);
        assert_eq!(terms(&log), [None, Some(1), Some(1), Some(1), Some(2), Some(6), None]);
        log.compact(Index(4));
        assert_eq!(terms(&log), [None, None, None, Some(1), Some(2), Some(6), None]);
        log.compact(Index(6));
        assert_eq!((terms(&log).pop(), log.last(), log.first()), (Some(None), position(6, 5), Index(6)));
        assert_eq!(log.term_at(5), Some(Term(6)));
        log.append(&[entry(6, 6), entry(7, 7)]);
        assert_eq!((log.term_at(6), log.term_at(7)), (Some(Term(6)), Some(Term(7))));
        log.append(&[entry(8, 6)]);
        assert_eq!((log.term_at(5), log.term_at(6), log.term_at(7)), (Some(Term(6)), Some(Term(8)), None));
    }

    #[test]
    fn entries_let_go_from_memory_are_fetched() {
        let mut log = view(&[]);
        let entries: Vec<_> = (2..202)
            .map(|index| {
                let mut entry = entry(1, index);
                entry.data = vec![0; 100_000].into();
                entry
            })
            .collect();
        log.append(&entries);
        log.evict(Index(150), Index(0));
        assert_eq!(log.tail.len(), 83, "8 MiB, for someone lacks them");
        log.evict(Index(140), Index(170));
        assert_eq!(log.tail.len(), 61, "nothing that is not done");
        log.evict(Index(200), Index(170));
        assert_eq!(log.tail.len(), 31, "those that everyone has");
        assert!(log.reaches(Index(170)) && !log.reaches(Index(60)));
        assert!(log.reaches(Index(130)), "not in memory, and of a size that is kept for one who lacks it");
        assert_eq!(log.entries(180, 202, None, GetEntriesContext::empty(false)).expect("in memory").len(), 22);
        let missing = log.entries(10, 20, Some(1), GetEntriesContext::empty(true));
        assert!(matches!(missing, Err(Error::Store(StorageError::LogTemporarilyUnavailable))));
        let fetch = log.take_fetches().pop().expect("the read is recorded");
        assert_eq!((fetch.low, fetch.high), (Index(10), Index(20)));
        let context = log.fetched(fetch, entries[8..18].to_vec());
        let found = log.entries(10, 20, Some(1), context).expect("fetched");
        assert_eq!(found.len(), 1, "at least one entry, whatever its size");
    }

    #[test]
    fn a_read_is_asked_for_once_and_ends_where_memory_begins() {
        let mut log = view(&[(1, 2), (1, 3), (1, 4), (1, 5)]);
        while log.tail.front().is_some_and(|entry| entry.index < 4) {
            log.tail.pop_front();
        }
        for _ in 0..3 {
            assert!(log.entries(2, 6, None, GetEntriesContext::empty(true)).is_err());
        }
        let fetches = log.take_fetches();
        let ranges: Vec<_> = fetches.iter().map(|fetch| (fetch.low, fetch.high)).collect();
        assert_eq!(ranges, [(Index(2), Index(4))]);
        for fetch in fetches {
            log.fetched(fetch, Vec::new());
        }
        log.drop_fetched();
        assert!(log.entries(2, 6, None, GetEntriesContext::empty(true)).is_err());
        assert_eq!(log.take_fetches().len(), 1, "what came back empty is asked for again");
    }

    #[test]
    fn a_snapshot_taken_before_the_follower_was_added_is_not_sent() {
        let mut log = view(&[(1, 2), (1, 3)]);
        let configuration = Configuration { voters: vec![crate::types::RaftId(1)], learners: Vec::new() };
        log.snapshot_created(SnapshotMark { position: position(1, 3), configuration, bytes: 1 });
        assert!(log.snapshot(2, 1).is_ok());
        assert!(log.take_snapshot_wanted().is_none());
        assert!(log.snapshot(2, 2).is_err());
        assert_eq!(log.take_snapshot_wanted(), Some((2, 2)));
    }
}
