//! Read-only maps of segments, and what happens when the disk fails underneath one.
//!
//! The only unsafe code of the program. A map is read by copying out of it; no reference into it ever exists, so nobody
//! holds one while the log's writer changes the file through its descriptor.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use memmap2::{MmapOptions, MmapRaw, UncheckedAdvice};

/// A file mapped for reading, from its first byte to the length it had then.
#[derive(Debug)]
pub(super) struct Map {
    raw: MmapRaw,
    slot: Option<&'static Slot>,
}

impl Map {
    /// Maps `file`, which is segment `sequence`. Nobody may shorten the file while the map exists: reads would fault.
    pub(super) fn new(file: &File, sequence: u64) -> io::Result<Self> {
        let raw = MmapOptions::new().map_raw_read_only(file)?;
        let slot = Slot::claim(raw.as_ptr() as usize, raw.len(), sequence);
        Ok(Self { raw, slot })
    }

    /// Copies the file's bytes from `offset` on; an error past its end.
    pub(super) fn copy(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset)
            .ok()
            .filter(|start| start.checked_add(bytes.len()).is_some_and(|end| end <= self.raw.len()));
        let start = start.ok_or(io::ErrorKind::UnexpectedEof)?;
        // SAFETY: `start + bytes.len()` lies within the map, checked above, and the map lives as long as `self`. The
        // target is borrowed mutably and cannot lie in the map, of which no reference is ever made. The file is not
        // shortened while it is mapped: only this folder opens segments, under the data directory's lock, and it only
        // removes them, which leaves mapped pages alone. The log's writer changes the file through its descriptor
        // only above the mark that readers keep below; the copy of a byte that changes nevertheless (recovery alone
        // reads past the mark, and nobody writes then) would give either value, and checksums judge every byte.
        unsafe { std::ptr::copy_nonoverlapping(self.raw.as_ptr().add(start), bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Unmaps the pages that were read so far. They count as this process's memory otherwise, and after replaying a long
    /// log that would be all of it.
    pub(super) fn release(&self) {
        // SAFETY: on a shared map of a file MADV_DONTNEED only drops page table entries: a later access finds the same
        // bytes in the page cache or in the file. Nothing is ever stored through this map that could be lost.
        let released = unsafe { self.raw.unchecked_advise(UncheckedAdvice::DontNeed) };
        if let Err(error) = released {
            log::debug!("a segment stays mapped in: {error}");
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            slot.base.store(0, Ordering::Release);
        }
    }
}

/// Where a segment is mapped, for the signal handler: it may neither lock nor allocate.
#[derive(Debug)]
struct Slot {
    /// The map's first address; zero while the slot is free.
    base: AtomicUsize,
    len: AtomicUsize,
    sequence: AtomicU64,
}

/// More segments than a log of 64 MiB in the smallest size has. A map without a slot is reported without its name.
static SLOTS: [Slot; 128] = [const { Slot::new() }; 128];

impl Slot {
    const fn new() -> Self {
        Self { base: AtomicUsize::new(0), len: AtomicUsize::new(0), sequence: AtomicU64::new(0) }
    }

    fn claim(base: usize, len: usize, sequence: u64) -> Option<&'static Self> {
        let slot = SLOTS
            .iter()
            .find(|slot| slot.base.compare_exchange(0, usize::MAX, Ordering::AcqRel, Ordering::Relaxed).is_ok())?;
        slot.len.store(len, Ordering::Relaxed);
        slot.sequence.store(sequence, Ordering::Relaxed);
        slot.base.store(base, Ordering::Release);
        Some(slot)
    }

    /// Which segment an address lies in, and where.
    fn find(address: usize) -> Option<(u64, u64)> {
        SLOTS.iter().find_map(|slot| {
            let base = slot.base.load(Ordering::Acquire);
            let offset = address.checked_sub(base).filter(|_| base != 0)?;
            (offset < slot.len.load(Ordering::Relaxed)).then(|| (slot.sequence.load(Ordering::Relaxed), offset as u64))
        })
    }
}

/// From now on a media error under a mapped segment (SIGBUS) prints the segment and the offset and ends the process with
/// exit code 5. Any other SIGBUS ends it as it would have without this. For the daemon's `main`; an embedder keeps its
/// own handlers.
pub fn report_media_errors() -> io::Result<()> {
    // SAFETY: the action calls only what is allowed in a signal handler: it reads atomics, formats into an array on the
    // stack, and makes the system calls write and _exit. `si_addr` is set by the kernel for every SIGBUS that a memory
    // access raised; for one sent by a process it is another union member, which at worst names a wrong address.
    unsafe {
        signal_hook_registry::register_sigaction(signal_hook::consts::SIGBUS, |info| {
            let Some((sequence, offset)) = Slot::find(info.si_addr() as usize) else {
                let _ = signal_hook::low_level::emulate_default_handler(signal_hook::consts::SIGBUS);
                return;
            };
            let mut line = Line { bytes: [0; 256], len: 0 };
            line.text("skep: cannot read raft/wal-");
            line.number(sequence, 8);
            line.text(" at byte ");
            line.number(offset, 1);
            line.text(
                ": the disk failed\nhint: replace the disk, and join anew on an empty data directory with \
                       `skep run --join`\n",
            );
            let _ = rustix::io::write(std::io::stderr().as_fd(), &line.bytes[..line.len]);
            signal_hook::low_level::exit(5);
        })
    }
    .map(|_| ())
}

/// Text put together without allocating.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Line {
    fn text(&mut self, text: &str) {
        for byte in text.bytes() {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = byte;
                self.len += 1;
            }
        }
    }

    /// A number with at least `width` digits.
    fn number(&mut self, mut number: u64, width: usize) {
        let mut digits = [b'0'; 20];
        let mut first = digits.len();
        while number > 0 || digits.len() - first < width {
            first -= 1;
            digits[first] += (number % 10) as u8;
            number /= 10;
        }
        self.text(std::str::from_utf8(&digits[first..]).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_read_past_the_end_of_a_map_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 1000], 0).unwrap();
        let map = Map::new(&file, 1).unwrap();
        let check = |offset, len| map.copy(offset, &mut vec![0; len]).is_ok();
        assert!(check(0, 1000) && check(999, 1) && check(1000, 0));
        assert!(!check(0, 1001) && !check(1000, 1) && !check(u64::MAX, 2) && !check(1001, 0));
    }

    /// Runs this test's second half in a process of its own, because it ends that process.
    #[test]
    fn a_media_error_under_a_map_names_the_segment_and_exits_with_5() {
        const CHILD: &str = "SKEP_TEST_SIGBUS";
        if std::env::var_os(CHILD).is_some() {
            report_media_errors().unwrap();
            let file = tempfile::tempfile().unwrap();
            file.set_len(16384).unwrap();
            let map = Map::new(&file, 42).unwrap();
            // The page is gone from under the map, as it is when the disk cannot deliver it.
            file.set_len(0).unwrap();
            let _ = map.copy(8200, &mut [0; 16]);
            unreachable!("the read faults");
        }
        let name = "wal::map::tests::a_media_error_under_a_map_names_the_segment_and_exits_with_5";
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{stderr}");
        assert!(
            stderr.contains("skep: cannot read raft/wal-00000042 at byte 8200: the disk failed\nhint: "),
            "{stderr}"
        );
    }
}
