//! Space that is kept for a full disk, and how much is left beside it.
//!
//! What needs space: the next segment, which is made ahead; a snapshot, after which old segments go; and small files. A
//! disk that others fill up must not end in a manager that cannot even write the snapshot that would free its log. So a
//! file holds space that nobody else gets: enough for one segment and one snapshot of today's size. Whoever finds the
//! disk full gives it up with [`release`] and tries once more; [`Reserve::check`] takes it back when there is room.
//!
//! The reserve is not for changes. Below the marks of [`Reserve::check`] a leader refuses those, while segment, spare and
//! reserve still have room for what a manager cannot refuse: votes, what is already in the log, and a snapshot.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::ahead::{SPARE, UNFINISHED};
use crate::sys::files::Disk;
use crate::types::api::{DiskLevel, DiskSpace};

/// The reserve's file.
const RESERVE: &str = "reserve";

/// Keeps the reserve and watches how much space is left.
#[derive(Debug)]
pub struct Reserve {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    segment_bytes: u64,
    /// What the file system said to the last attempts to fill the reserve.
    refused: Mutex<Refused>,
}

/// How often the file system had no room though it had said so: a quota, or a thin disk.
#[derive(Debug, Default)]
struct Refused {
    /// Checks in which it is not tried again, and how many there will be the next time.
    skip: u32,
    pause: u32,
}

/// At most so many checks pass between two attempts.
const LONGEST_PAUSE: u32 = 128;

impl Reserve {
    /// For the log in `dir`. Nothing is reserved before the first check.
    pub fn new(disk: Arc<dyn Disk>, dir: &Path, segment_bytes: u64) -> Self {
        Self { disk, dir: dir.to_owned(), segment_bytes, refused: Mutex::default() }
    }

    /// Fills the reserve if there is room, and judges what is left beside it. `before` is the verdict of the last time, so
    /// that a disk at a mark does not flicker; `state_bytes` is the size of what a snapshot would hold.
    pub fn check(&self, before: DiskLevel, state_bytes: u64) -> io::Result<DiskSpace> {
        let Self { disk, dir, segment_bytes, refused } = self;
        let mut refused = refused.lock().expect("nothing panics while it holds this lock");
        let low = segment_bytes / 2;
        // Heads and seals of the records are a small part of a snapshot; what else is in it fits into a segment's length.
        let wanted = segment_bytes + state_bytes.saturating_add(state_bytes / 4);
        // With some to spare, or every change would move it.
        let target = wanted.saturating_add(wanted / 8);
        let has_spare = [SPARE, UNFINISHED].into_iter().any(|name| length(disk.as_ref(), &dir.join(name)) > 0);
        let mut held = length(disk.as_ref(), &dir.join(RESERVE));
        let mut free = disk.free_bytes(dir)?;
        let missing = |held: u64| if held < wanted { target - held } else { 0 };
        let room = missing(held) + low + if has_spare { 0 } else { *segment_bytes };
        // A state that became much smaller gives some back.
        if held < wanted && free >= room && refused.skip > 0 {
            refused.skip -= 1;
        } else if held < wanted && free >= room || held > target.saturating_mul(2) {
            held = self.fill(target)?;
            free = disk.free_bytes(dir)?;
            if held >= wanted {
                *refused = Refused::default();
            } else {
                if refused.pause == 0 {
                    log::warn!(
                        "{target} bytes cannot be kept for a full disk at {}, though {free} bytes are said to be free: is \
                         there a quota?",
                        dir.display()
                    );
                }
                refused.pause = (refused.pause * 2).clamp(1, LONGEST_PAUSE);
                refused.skip = refused.pause;
            }
        }
        // What is said to be free and is not helps nobody.
        let usable = if refused.pause > 0 { 0 } else { free };
        // More entries would need a segment that is not there, or make a state whose snapshot does not fit.
        let level = if free < *segment_bytes && (!has_spare || held < wanted) {
            DiskLevel::Full
        } else if held < wanted || free < low || before != DiskLevel::Ok && free < *segment_bytes {
            DiskLevel::Low
        } else {
            DiskLevel::Ok
        };
        let spare = if has_spare { 0 } else { *segment_bytes };
        let needed = (missing(held) + spare + segment_bytes).saturating_sub(usable);
        let needed_bytes = if level == DiskLevel::Ok { 0 } else { needed };
        let segments = super::segment::sequences(&disk.list(dir)?).len() as u64;
        let dir = dir.display().to_string();
        Ok(DiskSpace { level, free_bytes: free, reserve_bytes: held, segments, needed_bytes, dir })
    }

    /// Makes the reserve so long; how long it is then. That it may be gone after a crash does no harm.
    fn fill(&self, bytes: u64) -> io::Result<u64> {
        let Self { disk, dir, .. } = self;
        let path = dir.join(RESERVE);
        let file = match disk.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => disk.create(&path)?,
            result => result?,
        };
        if file.len()? > bytes {
            file.set_len(bytes)?;
            return Ok(bytes);
        }
        match file.allocate(bytes) {
            Ok(()) => Ok(bytes),
            // Somebody else was faster. Half a reserve is none, and its space may help them.
            Err(error) if is_full(&error) => {
                disk.remove(&path)?;
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }
}

/// Gives the reserve of the log in `dir` up; false when there is none.
pub fn release(disk: &dyn Disk, dir: &Path) -> bool {
    let path = dir.join(RESERVE);
    let bytes = length(disk, &path);
    if disk.remove(&path).is_err() {
        return false;
    }
    // Some file systems give space away only when the removal is on the disk.
    let _ = disk.sync_dir(dir);
    log::warn!("the disk of {} is full: using the {bytes} bytes kept for that", dir.display());
    true
}

/// Gives back what was kept for the log in `dir`, which nobody will write again.
pub fn abandon_reserve(disk: &dyn Disk, dir: &Path) {
    let removed = [RESERVE, SPARE, UNFINISHED].map(|name| disk.remove(&dir.join(name)).is_ok());
    if removed.contains(&true) {
        let _ = disk.sync_dir(dir);
    }
}

/// Whether a call failed for want of space.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Does it, and if the disk is full once more without the reserve of the log in `dir`.
pub fn with_reserve<T>(disk: &dyn Disk, dir: &Path, mut act: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match act() {
        Err(error) if is_full(&error) && release(disk, dir) => act(),
        result => result,
    }
}

fn length(disk: &dyn Disk, path: &Path) -> u64 {
    disk.open(path).and_then(|file| file.len()).unwrap_or(0)
}
