//! On the operating system's files and threads.

use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::sys::files::RealDisk;
use crate::sys::metrics::Metrics;
use crate::sys::queue;
use crate::wal::run::{self, Request};

const PATIENCE: Duration = Duration::from_secs(20);

fn open_real(dir: &Path, segment_bytes: u64) -> (Wal, Recovered) {
    let options = Options { segment_bytes, lineage: LINEAGE };
    Wal::open(Arc::new(RealDisk), dir, key(), options).unwrap()
}

#[test]
fn the_thread_releases_in_order_what_its_syncs_made_durable() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = Metrics::default();
    let (wal, _) = open_real(dir.path(), 64 << 10);
    let pulse = wal.pulse();
    let reader = wal.reader();
    let (sender, inbox) = queue::bounded(2000, metrics.queue("wal"));
    for number in 1..=1000 {
        let batch = Persist { number, ..persist(entries(1, number..number + 1, 300), None) };
        sender.try_send(Request::Persist { batch, release: number }).unwrap();
    }
    let (released, releases) = mpsc::channel();
    let seen = pulse.clone();
    let thread = run::spawn(wal, inbox, &metrics, move |durable, numbers| {
        assert!(seen.oldest_unsynced().is_some());
        released.send((durable, numbers)).unwrap();
    })
    .unwrap();
    let mut next = 1;
    let mut bytes = 0;
    while next <= 1000 {
        let (durable, numbers) = releases.recv_timeout(PATIENCE).unwrap();
        // What was released can be read, by any thread.
        let last = *numbers.last().unwrap();
        assert_eq!(durable.number, last);
        assert_eq!(reader.read(Index(last), Index(last + 1), 0).unwrap(), [entry(1, last, 300)]);
        for number in numbers {
            assert_eq!(number, next);
            next += 1;
        }
        bytes += durable.bytes;
    }
    sender.try_send(Request::Compact { keep_from: Index(1) }).unwrap();
    let lazy = Persist { number: 1001, must_sync: false, ..persist(vec![], Some(hard_state(0, 0, 1000))) };
    sender.try_send(Request::Persist { batch: lazy, release: 1001 }).unwrap();
    let (durable, numbers) = releases.recv_timeout(PATIENCE).unwrap();
    assert_eq!((durable.number, durable.bytes, numbers), (1001, 0, vec![1001]));
    drop(sender);
    assert!(thread.join(PATIENCE));
    assert_eq!(pulse.oldest_unsynced(), None);
    assert!(pulse.progress() > 1);
    // A thousand queued requests are a handful of syncs: one a turn, and one for each of the five segments.
    let syncs = metrics.counter("skep_wal_syncs_total").get();
    assert!((5..20).contains(&syncs), "{syncs}");
    assert_eq!(metrics.counter("skep_wal_batches_total").get(), syncs);
    assert_eq!(metrics.counter("skep_wal_bytes_total").get(), bytes);
    assert!(metrics.histogram("skep_wal_sync_seconds").count() > 0);

    // The commit index that waited was written at the end.
    let (wal, recovered) = open_real(dir.path(), 64 << 10);
    assert_eq!((recovered.last, recovered.hard_state), (position(1, 1000), hard_state(0, 0, 1000)));
    let all = wal.reader().read(Index(1), Index(1001), u64::MAX).unwrap();
    assert_eq!(all, entries(1, 1..1001, 300));
}

#[test]
fn readers_on_other_threads_see_whole_entries_while_the_log_is_written_and_compacted() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open_real(dir.path(), 16 << 10);
    wal.write(&[persist(entries(1, 1..2, 1), None)]).unwrap();
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|seed| {
            let (reader, done) = (wal.reader(), done.clone());
            std::thread::spawn(move || {
                let mut random = SeededEntropy::new(seed);
                let mut reads = 0_u64;
                while !done.load(std::sync::atomic::Ordering::Relaxed) || reads == 0 {
                    let (first, last) = (reader.first().0, reader.last().index.0);
                    let low = first + random.below(last - first + 1);
                    match reader.read(Index(low), Index(last + 1), 3000) {
                        Ok(read) => {
                            for (index, found) in (low..).zip(&read) {
                                assert_eq!(*found, entry(1, index, index as usize % 700));
                            }
                            reads += 1;
                        }
                        Err(crate::wal::ReadError::Compacted) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        })
        .collect();
    for index in 2..600 {
        wal.write(&[persist(vec![entry(1, index, index as usize % 700)], None)]).unwrap();
        if index % 100 == 0 {
            let created = position(1, index);
            let shared = Arc::new(RealDisk);
            SnapshotWriter::create(shared, dir.path(), key(), LINEAGE, created, &members()).unwrap().finish().unwrap();
            let snapshot = Some(SnapshotMark::Created(created));
            wal.write(&[Persist { snapshot, ..persist(vec![], None) }]).unwrap();
            wal.compact(Index(index - 50)).unwrap();
        }
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap();
    }
    drop(wal);
    let (_, recovered) = open_real(dir.path(), 16 << 10);
    assert_eq!((recovered.last, recovered.snapshot.unwrap().position), (position(1, 599), position(1, 500)));
    let segments = crate::wal::segment::sequences(&crate::sys::files::Disk::list(&RealDisk, dir.path()).unwrap());
    assert!(segments.len() < 15, "{segments:?}");
}

#[test]
fn files_are_readable_by_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let raft = dir.path().join("raft");
    let (mut wal, _) = open_real(&raft, 16 << 10);
    wal.write(&[persist(entries(1, 1..2, 10), None)]).unwrap();
    drop(wal);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&raft), mode(&raft.join("wal-00000001"))), (0o700, 0o600));
}

#[test]
fn nothing_of_an_entry_can_be_read_from_the_disk() {
    let mut pair = Pair::new(8192);
    pair.append(1, 1..10, 300);
    snapshot(&pair.disk, position(1, 5));
    for path in pair.disk.paths() {
        let bytes = pair.disk.bytes(&path);
        for secret in [&b"entry"[..], b"the state", b"....."] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{}", path.display());
        }
    }
}

/// Kilobytes of the files below `dir` that count as this process's memory.
fn mapped_in(dir: &Path) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut is_ours = false;
    let mut sum = 0;
    for line in smaps.lines() {
        if let Some(rss) = line.strip_prefix("Rss:") {
            sum += if is_ours { rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap() } else { 0 };
        } else if line.contains(" r--s ") {
            is_ours = line.contains(dir.to_str().unwrap());
        } else if line.contains('/') || line.contains(" 00:00 ") {
            is_ours = false;
        }
    }
    sum
}

#[test]
fn a_replayed_log_does_not_stay_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open_real(dir.path(), 1 << 20);
    for index in 1..40 {
        wal.write(&[persist(entries(1, index..index + 1, 100_000), None)]).unwrap();
    }
    drop(wal);
    let (wal, recovered) = open_real(dir.path(), 1 << 20);
    assert_eq!((recovered.last, mapped_in(dir.path())), (position(1, 39), 0));
    assert_eq!(wal.reader().read(Index(1), Index(40), u64::MAX).unwrap().len(), 39);
    assert_eq!(mapped_in(dir.path()), 0);
}

/// Runs this test's second half in a process of its own, because it ends that process.
#[test]
fn a_failed_sync_ends_the_process_and_releases_nothing() {
    use std::os::unix::process::ExitStatusExt;

    const CHILD: &str = "SKEP_TEST_FAILED_SYNC";
    if std::env::var_os(CHILD).is_some() {
        let disk = TestDisk::new();
        let (wal, _) = open(&disk, 8192, 0).unwrap();
        let metrics = Metrics::default();
        let (sender, inbox) = queue::bounded(1, metrics.queue("wal"));
        disk.fail_next_sync();
        let batch = persist(entries(1, 1..2, 10), None);
        sender.try_send(Request::Persist { batch, release: () }).unwrap();
        let thread = run::spawn(wal, inbox, &metrics, |_, _| println!("released")).unwrap();
        thread.join(PATIENCE);
        return;
    }
    let name = "wal::tests::thread::a_failed_sync_ends_the_process_and_releases_nothing";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(!stdout.contains("released"), "{stdout}");
    assert_eq!(output.status.signal(), Some(6), "SIGABRT");
}

/// Runs this test's second half in a process of its own, which is killed.
#[test]
fn what_was_acknowledged_before_a_kill_is_there() {
    use std::io::{BufRead, BufReader, Write};

    const CHILD: &str = "SKEP_TEST_KILL_DIR";
    if let Some(dir) = std::env::var_os(CHILD) {
        let (mut wal, recovered) = open_real(Path::new(&dir), 32 << 10);
        for index in recovered.last.index.0 + 1.. {
            wal.write(&[persist(vec![entry(1, index, index as usize % 3000)], None)]).unwrap();
            writeln!(std::io::stdout(), "acknowledged {index}").unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let name = "wal::tests::thread::what_was_acknowledged_before_a_kill_is_there";
    let mut acknowledged = 0;
    for round in 1..=5 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let Some(index) = line.strip_prefix("acknowledged ") else { continue };
            acknowledged = index.parse().unwrap();
            if acknowledged >= round * 37 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let (wal, recovered) = open_real(dir.path(), 32 << 10);
        let last = recovered.last.index.0;
        assert!(last >= acknowledged && acknowledged >= round * 37, "{last} {acknowledged}");
        let held = wal.reader().read(Index(1), Index(last + 1), u64::MAX).unwrap();
        assert!(held.iter().zip(1..).all(|(held, index)| *held == entry(1, index, index as usize % 3000)));
    }
}
