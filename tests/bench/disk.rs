//! Measures ways of making small records durable on the disk at hand, and the log that was built from the answer.
//!
//! ```text
//! cargo bench --bench disk [-- [--dir DIR] [--syncs N]]
//! ```
//!
//! Prints for 1, 16 and 128 records of 256 bytes per sync: median and 99th percentile in microseconds, syncs per second,
//! and KiB that reached the device per sync (of everything on it, so on a quiet machine). DIR must lie on the disk in
//! question; a file system in memory syncs nothing. Stores through a writable map are left out: they need `unsafe`, and
//! were measured at 2 to 3 times the time and up to 1 MiB on the device for a sync of 256 bytes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use raft::eraftpb::Entry;
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::ReadWriteFlags;
use skep::pki::seal::DataKey;
use skep::sys::files::RealDisk;
use skep::types::{Index, Lineage};
use skep::wal::{Options, Persist, SEGMENT_BYTES, Wal};

const RECORD: usize = 256;
const FILE_BYTES: u64 = 64 << 20;

fn main() {
    let mut dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let mut syncs = 2000;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--dir" => dir = arguments.next().expect("--dir takes a directory").into(),
            "--syncs" => {
                syncs = arguments.next().and_then(|number| number.parse().ok()).expect("--syncs takes a number")
            }
            "--bench" => {}
            other => panic!("unknown argument {other}"),
        }
    }
    let dir = tempfile::tempdir_in(dir).unwrap();
    println!("| variant | records | p50 us | p99 us | syncs/s | records/s | KiB/sync |");
    println!("|---|---|---|---|---|---|---|");
    for (name, kind) in KINDS {
        for records in [1, 16, 128] {
            let measured = measure(kind, dir.path(), 0, records, syncs, &Barrier::new(1));
            print(name, records, measured);
        }
    }
    for (name, kind) in KINDS.iter().filter(|(_, kind)| matches!(kind, Kind::Zeroed | Kind::Log)) {
        for records in [1, 16, 128] {
            let barrier = Arc::new(Barrier::new(3));
            let writers = (0..3).map(|writer| {
                let (kind, dir, barrier) = (*kind, dir.path().to_owned(), barrier.clone());
                std::thread::spawn(move || measure(kind, &dir, writer, records, syncs, &barrier))
            });
            let writers: Vec<_> = writers.collect();
            let mut all = Measured { times: Vec::new(), took: Duration::ZERO, device_bytes: None };
            for writer in writers {
                let mut measured = writer.join().unwrap();
                all.times.append(&mut measured.times);
                all.took = all.took.max(measured.took);
            }
            print(&format!("three at once: {name}"), records, all);
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    /// write and fdatasync at the end of a file that grows.
    Growing,
    /// pwrite and fdatasync into space that was only reserved.
    Reserved,
    /// pwrite and fdatasync into space that was filled with zeros and synced.
    Zeroed,
    /// As `Zeroed`, into a file opened with O_DSYNC.
    Dsync,
    /// As `Zeroed`, with pwritev2 and RWF_DSYNC.
    RwfDsync,
    /// The product's log: framing, checksums, sealing, segments.
    Log,
}

const KINDS: [(&str, Kind); 6] = [
    ("growing file, write + fdatasync", Kind::Growing),
    ("reserved file, pwrite + fdatasync", Kind::Reserved),
    ("zero-filled file, pwrite + fdatasync", Kind::Zeroed),
    ("zero-filled file, O_DSYNC pwrite", Kind::Dsync),
    ("zero-filled file, pwritev2 RWF_DSYNC", Kind::RwfDsync),
    ("skep's log", Kind::Log),
];

struct Measured {
    /// Of every sync.
    times: Vec<Duration>,
    /// Of all.
    took: Duration,
    /// What everybody wrote to the device meanwhile.
    device_bytes: Option<u64>,
}

fn measure(kind: Kind, dir: &Path, writer: usize, records: u64, syncs: u64, start: &Barrier) -> Measured {
    let path = dir.join(format!("{writer}"));
    let mut act: Box<dyn FnMut(u64)> = match kind {
        Kind::Log => log(&path, records),
        _ => file(kind, &path, records),
    };
    for sync in 0..50 {
        act(sync);
    }
    start.wait();
    let device = Device::of(dir);
    let before = device.bytes();
    let began = Instant::now();
    let times = (50..50 + syncs).map(|sync| {
        let began = Instant::now();
        act(sync);
        began.elapsed()
    });
    let times = times.collect();
    let took = began.elapsed();
    let device_bytes = device.bytes().zip(before).map(|(after, before)| after - before);
    drop(act);
    let _ = std::fs::remove_file(&path);
    let _ = std::fs::remove_dir_all(&path);
    Measured { times, took, device_bytes }
}

fn file(kind: Kind, path: &Path, records: u64) -> Box<dyn FnMut(u64)> {
    let flags = if matches!(kind, Kind::Dsync) { OFlags::DSYNC.bits() as i32 } else { 0 };
    let prepare = OpenOptions::new().create(true).truncate(true).write(true).open(path).unwrap();
    if !matches!(kind, Kind::Growing) {
        rustix::fs::fallocate(&prepare, FallocateFlags::empty(), 0, FILE_BYTES).unwrap();
    }
    if !matches!(kind, Kind::Growing | Kind::Reserved) {
        let zeros = vec![0; 1 << 20];
        for offset in (0..FILE_BYTES).step_by(zeros.len()) {
            prepare.write_all_at(&zeros, offset).unwrap();
        }
    }
    prepare.sync_all().unwrap();
    let file: File = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap();
    let bytes = vec![0x5A; RECORD * records as usize];
    let len = bytes.len() as u64;
    // Starts again at the front when the file is full, as a log does in its next segment.
    let place =
        move |sync: u64| if matches!(kind, Kind::Growing) { sync * len } else { sync % (FILE_BYTES / len) * len };
    Box::new(move |sync| match kind {
        Kind::RwfDsync => {
            let slices = [IoSlice::new(&bytes)];
            let written = rustix::io::pwritev2(&file, &slices, place(sync), ReadWriteFlags::DSYNC).unwrap();
            assert_eq!(written as u64, len);
        }
        Kind::Dsync => file.write_all_at(&bytes, place(sync)).unwrap(),
        _ => {
            file.write_all_at(&bytes, place(sync)).unwrap();
            file.sync_data().unwrap();
        }
    })
}

fn log(path: &Path, records: u64) -> Box<dyn FnMut(u64)> {
    let options = Options { segment_bytes: SEGMENT_BYTES, lineage: Lineage(1) };
    let key = DataKey::from_bytes([7; 32]);
    let (mut wal, _) = Wal::open(Arc::new(RealDisk), path, &key, options).unwrap();
    let data = bytes::Bytes::from(vec![0x5A; RECORD]);
    Box::new(move |sync| {
        let first = sync * records + 1;
        let entries =
            (first..first + records).map(|index| Entry { term: 1, index, data: data.clone(), ..Entry::default() });
        let persist = Persist { number: sync, entries: entries.collect(), must_sync: true, ..Persist::default() };
        wal.write(&[persist]).unwrap();
        assert_eq!(wal.reader().last().index, Index(first + records - 1));
    })
}

fn print(name: &str, records: u64, measured: Measured) {
    let Measured { mut times, took, device_bytes } = measured;
    times.sort_unstable();
    let at = |fraction: f64| times[((times.len() - 1) as f64 * fraction) as usize].as_micros();
    let syncs = times.len() as f64;
    let rate = syncs / took.as_secs_f64();
    let device = device_bytes.map_or_else(String::new, |bytes| format!("{:.1}", bytes as f64 / syncs / 1024.0));
    println!(
        "| {name} | {records} | {} | {} | {rate:.0} | {:.0} | {device} |",
        at(0.5),
        at(0.99),
        rate * records as f64
    );
}

/// The block device below a directory, if the kernel shows its counters.
struct Device(PathBuf);

impl Device {
    fn of(dir: &Path) -> Self {
        let device = std::fs::metadata(dir).unwrap().dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        Self(format!("/sys/dev/block/{major}:{minor}/stat").into())
    }

    /// Bytes written since the system started: field 7 is in sectors of 512 bytes (Documentation/block/stat.rst).
    fn bytes(&self) -> Option<u64> {
        let stat = std::fs::read_to_string(&self.0).ok()?;
        Some(stat.split_whitespace().nth(6)?.parse::<u64>().ok()? * 512)
    }
}
