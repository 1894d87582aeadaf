//! The log's thread: writes what queued up, syncs once, and says what that released.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use std::{io, mem};

use super::{Persist, Wal, WalError, format};
use crate::sys::metrics::{Counter, Histogram, Metrics};
use crate::sys::queue::Receiver;
use crate::sys::thread::{self, Thread};
use crate::sys::time::{Instant, monotonic};
use crate::types::Index;

/// What the thread is asked to do.
#[derive(Debug)]
pub enum Request<R> {
    /// Make this durable, then let go of what waits for it.
    Persist {
        /// What.
        batch: Persist,
        /// What may leave this manager then, such as acknowledgements to peers.
        release: R,
    },
    /// Remove segments that hold only entries before this one; see [`Wal::compact`].
    Compact {
        /// The first entry to keep.
        keep_from: Index,
    },
}

/// What a sync made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    /// The highest Ready number; all before it are durable too.
    pub number: u64,
    /// Bytes written.
    pub bytes: u64,
    /// How long writing and syncing took.
    pub took: Duration,
}

/// Shows from outside whether the thread is getting on. Clones show the same thread.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<Beat>);

#[derive(Debug, Default)]
struct Beat {
    /// Nanoseconds of the monotonic clock, plus one; zero while nothing is being written.
    busy_since: AtomicU64,
    turns: AtomicU64,
    given_up: AtomicBool,
}

impl Pulse {
    /// When the write that is going on now began; `None` while there is none. Requests queued since then are younger.
    pub fn oldest_unsynced(&self) -> Option<Instant> {
        self.0.busy_since.load(Relaxed).checked_sub(1).map(Instant::from_nanos)
    }

    /// How many groups of requests were finished. A thread that is busy while this stands still makes no progress.
    pub fn progress(&self) -> u64 {
        self.0.turns.load(Relaxed)
    }

    /// The process stops: a write that waits for space on a full disk waits no longer.
    pub fn give_up(&self) {
        self.0.given_up.store(true, Relaxed);
    }

    fn begin(&self, now: Instant) {
        self.0.busy_since.store(now.as_nanos().saturating_add(1), Relaxed);
    }

    fn end(&self) {
        self.0.busy_since.store(0, Relaxed);
        self.0.turns.fetch_add(1, Relaxed);
    }
}

/// Starts the thread `wal`. Each turn takes what is queued, makes it durable with one [`Wal::write`], and calls `on_durable`
/// with what that released, in the order it was asked for. It ends when all senders of `inbox` are gone; if the log
/// fails, the process ends.
pub fn spawn<R: Send + 'static>(
    wal: Wal,
    inbox: Receiver<Request<R>>,
    metrics: &Metrics,
    on_durable: impl FnMut(Durable, Vec<R>) + Send + 'static,
) -> io::Result<Thread> {
    let counts = Counts::new(metrics);
    thread::spawn("wal", move || {
        let pulse = wal.pulse();
        if let Err(error) = run(wal, &inbox, &counts, on_durable) {
            if pulse.0.given_up.load(Relaxed) {
                log::warn!("stopped while the log could not go on, so that its last writes are not in it: {error}");
                return;
            }
            // Nobody knows what the disk holds now, and a second attempt would be answered with a success that means
            // nothing (LWN 752063, "PostgreSQL's fsync() surprise"). The next start reads it from the disk.
            log::error!(
                "the log failed and this manager stops, to find out at its next start what the disk holds: {error}"
            );
            std::process::abort();
        }
    })
}

struct Counts {
    sync_seconds: Histogram,
    syncs: Counter,
    bytes: Counter,
    batches: Counter,
}

impl Counts {
    fn new(metrics: &Metrics) -> Self {
        Self {
            sync_seconds: metrics.histogram("skep_wal_sync_seconds"),
            syncs: metrics.counter("skep_wal_syncs_total"),
            bytes: metrics.counter("skep_wal_bytes_total"),
            batches: metrics.counter("skep_wal_batches_total"),
        }
    }
}

fn run<R>(
    mut wal: Wal,
    inbox: &Receiver<Request<R>>,
    counts: &Counts,
    mut on_durable: impl FnMut(Durable, Vec<R>),
) -> Result<(), WalError> {
    let pulse = wal.pulse();
    wal.when_full(wait_for_space(pulse.clone()));
    let mut group = Group::default();
    while let Some(request) = inbox.recv() {
        let began = monotonic();
        pulse.begin(began);
        group.push(request);
        while group.bytes < GROUP_BYTES {
            let Some(request) = inbox.try_recv() else { break };
            group.push(request);
        }
        if !group.batch.is_empty() {
            let written = wal.write(&group.batch)?;
            let took = monotonic().since(began);
            if written.batches > 0 {
                counts.sync_seconds.record(took);
                counts.syncs.add(written.batches);
                counts.bytes.add(written.bytes);
                counts.batches.add(written.batches);
            }
            let durable = Durable { number: written.number, bytes: written.bytes, took };
            on_durable(durable, mem::take(&mut group.releases));
            group.batch.clear();
        }
        if let Some(keep_from) = group.keep_from.take() {
            wal.compact(keep_from)?;
        }
        group.bytes = 0;
        pulse.end();
    }
    wal.close()
}

/// Waits a little each time there is no room for the next segment, for as long as the process lives: to stop would help
/// nobody, and whoever makes room need not start anything again. A wait is progress as far as a watchdog is concerned.
fn wait_for_space(pulse: Pulse) -> impl FnMut() -> bool + Send + 'static {
    let mut told = None;
    move || {
        let now = monotonic();
        if told.is_none_or(|at| now.since(at) > TELL_AGAIN) {
            told = Some(now);
            log::error!("the disk is full: the log has no room for its next segment and waits until there is some");
        }
        pulse.end();
        pulse.begin(now);
        std::thread::sleep(FULL_PAUSE);
        !pulse.0.given_up.load(Relaxed)
    }
}

/// Between two looks at a full disk.
const FULL_PAUSE: Duration = Duration::from_millis(100);
/// Between two lines about it.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// What one turn writes.
struct Group<R> {
    batch: Vec<Persist>,
    releases: Vec<R>,
    keep_from: Option<Index>,
    bytes: usize,
}

/// A turn takes no more requests once it has this many bytes of entries: what waits for the first of them should not wait
/// for ever.
const GROUP_BYTES: usize = 1 << 20;

impl<R> Default for Group<R> {
    fn default() -> Self {
        Self { batch: Vec::new(), releases: Vec::new(), keep_from: None, bytes: 0 }
    }
}

impl<R> Group<R> {
    fn push(&mut self, request: Request<R>) {
        match request {
            Request::Persist { batch, release } => {
                // Requests without entries count too, so that an endless row of them ends a turn as well.
                self.bytes += 64 + batch.entries.iter().map(format::entry_bytes).sum::<usize>();
                self.batch.push(batch);
                self.releases.push(release);
            }
            Request::Compact { keep_from } => self.keep_from = self.keep_from.max(Some(keep_from)),
        }
    }
}
