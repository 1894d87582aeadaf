//! The store that threads share.

use std::collections::{VecDeque, vec_deque};
use std::iter::Skip;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Release},
};
use std::sync::{Arc, Mutex, MutexGuard};

use super::state::State;
use super::watch::{Cursor, EVENT_OVERHEAD_BYTES, EventBatch, WatchError};
use crate::sys::faults::{Fault, planted};
use crate::sys::heavy::Heavy;
use crate::types::{Lineage, Revision};

/// One state, one writer, any number of readers and watchers. Shared as `Arc<Store>`.
pub struct Store {
    inner: Mutex<Inner>,
    /// The state's revision, for those who only ask whether there is something new.
    revision: AtomicU64,
}

struct Inner {
    state: State,
    ring: WatchRing,
}

/// The last changes, as many as fit the budget.
struct WatchRing {
    batches: VecDeque<Arc<EventBatch>>,
    /// The revision before the first batch: what a watcher must have seen to go on from here.
    base: Revision,
    bytes: u64,
    capacity: u64,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

impl Store {
    /// Shares `state`; the watch ring holds at most `ring_bytes` and begins empty.
    pub fn new(state: State, ring_bytes: usize) -> Self {
        let revision = AtomicU64::new(state.revision().0);
        let ring =
            WatchRing { batches: VecDeque::new(), base: state.revision(), bytes: 0, capacity: ring_bytes as u64 };
        Self { inner: Mutex::new(Inner { state, ring }), revision }
    }

    /// Reads under the lock, which the writer wants too: for short reads. Longer ones take a [`Self::snapshot`].
    pub fn view<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.lock().state)
    }

    /// The state as it is now. Costs a few reference counts; a clone that is held makes the writer copy what it touches.
    pub fn snapshot(&self) -> State {
        self.lock().state.clone()
    }

    /// The state's revision, without the lock.
    pub fn revision(&self) -> Revision {
        Revision(self.revision.load(Acquire))
    }

    /// Lets the one writer change the state, and appends its events to the ring in the same step, so that no watcher can
    /// see one without the other. Locked per entry: a reader never waits for a batch of them.
    pub fn write<T>(&self, write: impl FnOnce(&mut State) -> (T, Option<EventBatch>)) -> T {
        let mut inner = self.lock();
        let (result, batch) = write(&mut inner.state);
        let evicted = batch.map(|batch| inner.ring.push(batch));
        self.revision.store(inner.state.revision().0, Release);
        drop(inner);
        // Old events are freed after the lock.
        drop(evicted);
        result
    }

    /// [`Self::write`] during a replay, when nobody watches yet: the ring begins after it, empty. For what so many entries
    /// follow that its events would be gone from the ring by the end, or nearly.
    pub fn write_unwatched<T>(&self, write: impl FnOnce(&mut State) -> (T, Option<EventBatch>)) -> T {
        let mut inner = self.lock();
        let (result, _) = write(&mut inner.state);
        inner.restart_ring();
        self.revision.store(inner.state.revision().0, Release);
        result
    }

    /// The most entries whose events the ring can hold.
    pub fn most_watched(&self) -> u64 {
        self.lock().ring.capacity / EVENT_OVERHEAD_BYTES
    }

    /// Replaces the state by one from a snapshot. The events between are not known, so the ring starts over: watchers
    /// that have not seen the new state's revision are told [`WatchError::TooOld`].
    ///
    /// # Panics
    ///
    /// When the new state is older than the present one: raft never asks for that, and what was acknowledged would be gone.
    pub fn install(&self, state: State) {
        let mut inner = self.lock();
        let (old, new) = (&inner.state, &state);
        assert!(old.lineage() != new.lineage() || old.applied() <= new.applied(), "{new:?} is older than {old:?}");
        self.revision.store(state.revision().0, Release);
        let old = std::mem::replace(&mut inner.state, state);
        let batches = inner.restart_ring();
        drop(inner);
        let takes_long = old.is_large();
        drop(Heavy::new((old, batches), takes_long));
    }

    /// The state now, and a cursor on the events after it.
    pub fn view_and_watch(&self) -> (State, Cursor) {
        let inner = self.lock();
        let cursor = Cursor::after(inner.state.lineage(), inner.state.revision());
        (inner.state.clone(), cursor)
    }

    /// A cursor on the events after `revision`, which may lie ahead of this manager: then it waits there.
    pub fn watch_from(&self, lineage: Lineage, revision: Revision) -> Result<Cursor, WatchError> {
        let cursor = Cursor::after(lineage, revision);
        self.lock().check(&cursor)?;
        Ok(cursor)
    }

    /// At most `max` of the changes that the cursor has not seen, in order; moves it past them. Never skips one: when the
    /// next is no longer in the ring the cursor stays and the watch is over.
    pub fn poll(&self, cursor: &mut Cursor, max: usize) -> Result<Vec<Arc<EventBatch>>, WatchError> {
        let inner = self.lock();
        inner.check(cursor)?;
        let batches: Vec<_> = inner.ring.after(cursor).take(max).cloned().collect();
        drop(inner);
        if let Some(last) = batches.last() {
            cursor.advance(last.revision);
        }
        Ok(batches)
    }

    /// Moves the cursor past the changes that the watcher does not want, of at most `max`; tells whether there is one that
    /// it wants, or more to look at. Takes nothing out of the ring, which is cheaper than [`Self::poll`] for a watcher of
    /// few changes; `wants` is called under the lock and must be quick.
    pub fn pass(
        &self,
        cursor: &mut Cursor,
        max: usize,
        wants: impl Fn(&EventBatch) -> bool,
    ) -> Result<bool, WatchError> {
        let inner = self.lock();
        inner.check(cursor)?;
        let ahead = inner.ring.after(cursor);
        let mut unseen = ahead.clone();
        while let Some(batch) = unseen.next() {
            if ahead.len() - unseen.len() > max || wants(batch) {
                return Ok(true);
            }
            cursor.advance(batch.revision);
        }
        Ok(false)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("a panic while the store is locked ends the process")
    }
}

impl Inner {
    /// Begins the ring anew after the present revision, and gives what was in it.
    fn restart_ring(&mut self) -> VecDeque<Arc<EventBatch>> {
        self.ring.bytes = 0;
        self.ring.base = self.state.revision();
        std::mem::take(&mut self.ring.batches)
    }

    fn check(&self, cursor: &Cursor) -> Result<(), WatchError> {
        if cursor.lineage() != self.state.lineage() {
            return Err(WatchError::OtherLineage);
        }
        if cursor.seen() < self.ring.base && !planted(Fault::WatchGapAtInstall) {
            return Err(WatchError::TooOld { oldest: self.ring.base });
        }
        Ok(())
    }
}

impl WatchRing {
    /// The batches that the cursor has not seen.
    fn after(&self, cursor: &Cursor) -> Skip<vec_deque::Iter<'_, Arc<EventBatch>>> {
        let seen = cursor.seen().0.saturating_sub(self.base.0);
        self.batches.iter().skip(usize::try_from(seen).unwrap_or(usize::MAX))
    }

    /// Appends a batch and gives back those that no longer fit. The newest always stays.
    fn push(&mut self, batch: EventBatch) -> Vec<Arc<EventBatch>> {
        assert_eq!(batch.revision, Revision(self.base.0 + self.batches.len() as u64).next(), "revisions are dense");
        self.bytes += batch.bytes;
        self.batches.push_back(Arc::new(batch));
        let mut evicted = Vec::new();
        while self.bytes > self.capacity && self.batches.len() > 1 {
            let oldest = self.batches.pop_front().expect("there are two");
            self.bytes -= oldest.bytes;
            self.base = oldest.revision;
            evicted.push(oldest);
        }
        evicted
    }
}
