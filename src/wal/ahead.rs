//! Makes the next segment before it is needed, and removes old ones, off the path of writes.
//!
//! A segment is reserved and filled with zeros, and both synced, before anything is written to it: a write then changes
//! blocks that exist, and its sync has no file system journal to wait for. A full disk shows here, one segment early: to
//! make one ahead is tried once and may fail; when it is needed, the reserve is there, and then a wait for space.
//!
//! A file named [`SPARE`] is complete; one that is being made has another name. So a start takes over the spare of the
//! run before, after a look at whether it still is all zeros, and need not wait for a new one to be filled.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::error::{Doing, WalError};
use super::format::SECTOR_BYTES;
use super::{reserve, segment};
use crate::sys::files::{Disk, File};
use crate::sys::metrics::Gauge;
use crate::sys::queue::{self, Receiver, Sender};
use crate::sys::thread::{self, Thread};

/// The name of a segment that is not in use yet.
pub(super) const SPARE: &str = "spare";
/// The name of one that is being made.
pub(super) const UNFINISHED: &str = "spare.part";

/// Zeros that are written between two syncs.
const SYNC_BYTES: u64 = 1 << 20;

/// Where the next segment comes from.
#[derive(Debug)]
pub(super) struct Ahead {
    maker: Maker,
    /// The spare of an earlier run.
    left: Option<Arc<dyn File>>,
    /// None makes segments when they are asked for, for simulations, which have one thread.
    worker: Option<Worker>,
    when_full: WhenFull,
}

/// Asked when there is no room for the next segment, not even with the reserve; true to try again. Whoever is asked
/// waits.
struct WhenFull(Option<Box<dyn FnMut() -> bool + Send>>);

impl std::fmt::Debug for WhenFull {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WhenFull")
    }
}

#[derive(Debug)]
struct Worker {
    jobs: Option<Sender<Job>>,
    made: Receiver<io::Result<Arc<dyn File>>>,
    /// A segment was ordered and not yet taken.
    ordered: bool,
    thread: Option<Thread>,
}

#[derive(Debug)]
enum Job {
    Make,
    RemoveOld,
}

#[derive(Clone, Debug)]
struct Maker {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    bytes: u64,
    /// Nobody waits for the segment that is being made any more.
    stop: Arc<AtomicBool>,
    /// Segments before this one are to be removed; zero for none.
    old: Arc<AtomicU64>,
}

impl Ahead {
    /// Takes over the spare segment that an earlier run left, or removes what is left of one.
    pub(super) fn new(disk: Arc<dyn Disk>, dir: &Path, bytes: u64, threaded: bool) -> Result<Self, WalError> {
        let maker = Maker { disk, dir: dir.to_owned(), bytes, stop: Arc::default(), old: Arc::default() };
        let left = maker.left_over().doing("look at", &maker.spare())?;
        let worker = if threaded { Some(Worker::start(maker.clone()).doing("start a thread for", dir)?) } else { None };
        Ok(Self { maker, left, worker, when_full: WhenFull(None) })
    }

    /// Whom to ask when the disk is full; without anybody the call fails.
    pub(super) fn when_full(&mut self, ask: Box<dyn FnMut() -> bool + Send>) {
        self.when_full = WhenFull(Some(ask));
    }

    /// Orders the next segment. The spare one must have been taken and renamed.
    pub(super) fn order(&mut self) {
        if let Some(worker) = &mut self.worker {
            worker.ordered = worker.send(Job::Make).is_ok();
        }
    }

    /// A file of the right length, all zeros and synced, under the name [`SPARE`]. Waits until it is made. On a full disk
    /// the reserve is given up for it: what has to go into the log goes into the log.
    pub(super) fn take(&mut self) -> Result<Arc<dyn File>, WalError> {
        if let Some(file) = self.left.take() {
            return Ok(file);
        }
        if let Some(worker) = self.worker.as_mut().filter(|worker| worker.ordered) {
            worker.ordered = false;
            match worker.made.recv() {
                Some(Ok(file)) => return Ok(file),
                Some(Err(error)) => log::warn!("the next log segment could not be made ahead: {error}"),
                None => {}
            }
        }
        if self.worker.is_none()
            && let Some(file) = self.maker.left_over().doing("look at", &self.maker.spare())?
        {
            return Ok(file);
        }
        let Self { maker, when_full, .. } = self;
        loop {
            match reserve::with_reserve(maker.disk.as_ref(), &maker.dir, || maker.make()) {
                // Nothing was written of what is to go there, so that this is a pause and not a failure.
                Err(error) if reserve::is_full(&error) && when_full.0.as_mut().is_some_and(|ask| ask()) => {}
                result => return result.doing("make", &maker.spare()),
            }
        }
    }

    /// Removes all segments before this one, some time soon. That they are gone is not durable: those that come back
    /// are removed by the next call.
    pub(super) fn remove_below(&self, sequence: u64) {
        self.maker.old.fetch_max(sequence, Relaxed);
        let sent = self.worker.as_ref().is_some_and(|worker| worker.send(Job::RemoveOld).is_ok());
        if !sent {
            self.maker.remove_old();
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if let Some(worker) = &mut self.worker {
            worker.jobs = None;
            self.maker.stop.store(true, Relaxed);
            if let Some(thread) = worker.thread.take() {
                // Whoever opens the log next must not find a helper at work on the spare.
                thread.join(Duration::from_secs(10));
            }
        }
    }
}

impl Worker {
    fn start(maker: Maker) -> io::Result<Self> {
        // One segment is ordered at a time; removals beyond the rest are done in place.
        let (jobs, inbox) = queue::bounded(8, Gauge::default());
        let (outbox, made) = queue::bounded(1, Gauge::default());
        let thread = thread::spawn("wal-ahead", move || {
            while let Some(job) = inbox.recv() {
                match job {
                    Job::Make => {
                        // Full only if a segment was ordered twice, and then one is enough.
                        let _ = outbox.try_send(maker.make());
                    }
                    Job::RemoveOld => maker.remove_old(),
                }
            }
        })?;
        Ok(Self { jobs: Some(jobs), made, ordered: false, thread: Some(thread) })
    }

    fn send(&self, job: Job) -> Result<(), Job> {
        match &self.jobs {
            Some(jobs) => jobs.try_send(job).map_err(|full| full.0),
            None => Err(job),
        }
    }
}

impl Maker {
    fn spare(&self) -> PathBuf {
        self.dir.join(SPARE)
    }

    fn unfinished(&self) -> PathBuf {
        self.dir.join(UNFINISHED)
    }

    /// The spare, if it is whole. The zeros in it were synced before it got its name.
    fn left_over(&self) -> io::Result<Option<Arc<dyn File>>> {
        self.remove_if_there(&self.unfinished())?;
        let file = match self.disk.open(&self.spare()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_whole = || Ok(file.len()? == self.bytes && self.is_zero(file.as_ref())?);
        if is_whole().unwrap_or_else(|error: io::Error| {
            log::warn!("making another spare segment, this one cannot be read: {error}");
            false
        }) {
            return Ok(Some(file));
        }
        // Of another size, or given a header and not used, or on a part of the disk that fails. It holds nothing.
        self.remove_if_there(&self.spare())?;
        Ok(None)
    }

    fn is_zero(&self, file: &dyn File) -> io::Result<bool> {
        let mut chunk = vec![0; self.bytes.min(256 << 10) as usize];
        let mut offset = 0;
        while offset < self.bytes {
            let len = (self.bytes - offset).min(chunk.len() as u64) as usize;
            file.read_at(offset, &mut chunk[..len])?;
            if !chunk[..len].chunks(SECTOR_BYTES).all(segment::is_zero) {
                return Ok(false);
            }
            offset += len as u64;
        }
        Ok(true)
    }

    fn make(&self) -> io::Result<Arc<dyn File>> {
        let unfinished = self.unfinished();
        self.remove_if_there(&unfinished)?;
        let file = self.disk.create(&unfinished)?;
        match self.fill(file.as_ref()).and_then(|()| self.disk.rename(&unfinished, &self.spare())) {
            Ok(()) => Ok(file),
            Err(error) => {
                let _ = self.disk.remove(&unfinished);
                Err(error)
            }
        }
    }

    fn fill(&self, file: &dyn File) -> io::Result<()> {
        file.allocate(self.bytes)?;
        let zeros = vec![0; self.bytes.min(256 << 10) as usize];
        let mut offset = 0;
        while offset < self.bytes {
            if self.stop.load(Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let len = (self.bytes - offset).min(zeros.len() as u64);
            file.write_at(offset, &zeros[..len as usize])?;
            offset += len;
            // Often, so that a sync of the log, which goes on meanwhile, waits behind a little of this and not behind all.
            if offset.is_multiple_of(SYNC_BYTES) || offset == self.bytes {
                file.sync_data()?;
                // Nor do the old ones wait until this one is made: a process that is killed soon, again and again, would
                // leave one more each time.
                self.remove_old();
            }
        }
        Ok(())
    }

    fn remove_if_there(&self, path: &Path) -> io::Result<()> {
        match self.disk.remove(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn remove_old(&self) {
        let sequence = self.old.swap(0, Relaxed);
        if sequence == 0 {
            return;
        }
        let names = match self.disk.list(&self.dir) {
            Ok(names) => names,
            Err(error) => return log::warn!("old log segments stay: cannot list {}: {error}", self.dir.display()),
        };
        for old in segment::sequences(&names).into_iter().take_while(|old| *old < sequence) {
            let path = self.dir.join(segment::name(old));
            // Another thread may have been asked as well.
            if let Err(error) = self.remove_if_there(&path) {
                // Those after it stay too: the log must not have a hole.
                return log::warn!("old log segments stay: cannot remove {}: {error}", path.display());
            }
        }
    }
}
