//! One call after the other fails, or has half its effect, or all of it and says that it failed.

use std::io;
use std::sync::Mutex;

use super::crash::{history, matches, shared};
use super::*;
use crate::sys::files::{self, Disk, File};

/// How a call fails.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Nothing happens, and the error is this one.
    Refused(io::ErrorKind),
    /// The first half of a write is there, of anything else nothing.
    Half,
    /// It is done, and reported as failed.
    Done,
}

pub(crate) const FAULTS: [Fault; 4] =
    [Fault::Refused(io::ErrorKind::StorageFull), Fault::Refused(io::ErrorKind::Other), Fault::Half, Fault::Done];

/// A disk of which one call fails. Clones are the same disk.
#[derive(Clone, Debug)]
pub(crate) struct FaultyDisk<D = TestDisk> {
    disk: D,
    plan: Arc<Mutex<Plan>>,
}

#[derive(Debug)]
struct Plan {
    calls: u64,
    fault: Option<(u64, Fault)>,
}

impl<D: Disk + Clone + 'static> FaultyDisk<D> {
    pub(crate) fn new(disk: D, fault: Option<(u64, Fault)>) -> Self {
        Self { disk, plan: Arc::new(Mutex::new(Plan { calls: 0, fault })) }
    }

    fn shared(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    /// So many calls there were.
    pub(crate) fn calls(&self) -> u64 {
        self.plan.lock().unwrap().calls
    }

    fn call<T>(&self, half: impl FnOnce(), act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let fault = {
            let mut plan = self.plan.lock().unwrap();
            plan.calls += 1;
            plan.fault.filter(|(at, _)| *at == plan.calls).map(|(_, fault)| fault)
        };
        match fault {
            None => return act(),
            Some(Fault::Refused(kind)) => return Err(kind.into()),
            Some(Fault::Half) => half(),
            Some(Fault::Done) => drop(act()?),
        }
        Err(io::Error::other("input/output error"))
    }

    fn file(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(FaultyFile { disk: self.clone(), file })
    }
}

impl<D: Disk + Clone + 'static> Disk for FaultyDisk<D> {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.call(|| {}, || self.disk.create(path)).map(|file| self.file(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.call(|| {}, || self.disk.open(path)).map(|file| self.file(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(|| {}, || self.disk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call(|| {}, || self.disk.remove(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.call(|| {}, || self.disk.list(dir))
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.call(|| {}, || self.disk.create_dir(dir))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.call(|| {}, || self.disk.sync_dir(dir))
    }
}

#[derive(Debug)]
struct FaultyFile<D> {
    disk: FaultyDisk<D>,
    file: Arc<dyn File>,
}

impl<D: Disk + Clone + 'static> File for FaultyFile<D> {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // Whole sectors of a log write: what a disk does in one piece is one piece here too.
        let half = bytes.len() / 2 / 512 * 512;
        let half = || self.file.write_at(offset, &bytes[..half]).unwrap();
        self.disk.call(half, || self.file.write_at(offset, bytes))
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.disk.call(|| {}, || self.file.read_at(offset, bytes))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.call(|| {}, || self.file.sync_data())
    }

    fn len(&self) -> io::Result<u64> {
        self.disk.call(|| {}, || self.file.len())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.disk.call(|| {}, || self.file.allocate(len))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.call(|| {}, || self.file.set_len(len))
    }
}

fn open_faulty(disk: &FaultyDisk, seed: u64) -> Result<(Wal, Recovered), WalError> {
    let options = Options { segment_bytes: 4096, lineage: LINEAGE };
    Wal::open_with(Arc::new(disk.clone()), dir(), key(), options, Box::new(SeededEntropy::new(seed)), false)
}

/// What the next process finds is what was acknowledged, with or without what was being written: when it starts at once,
/// and when the power failed before.
#[track_caller]
fn check_next(disk: &TestDisk, acknowledged: &Model, possible: &Model, random: &mut SeededEntropy, what: &str) {
    let at_once = disk.duplicate();
    let after_power_cut = disk.crash_at_random(random);
    for disk in [at_once, after_power_cut] {
        let (mut wal, recovered) = open(&disk, 4096, 77).unwrap_or_else(|error| panic!("{what}: {error}"));
        let found = [possible, acknowledged].into_iter().find(|model| matches(&wal, &recovered, model));
        let mut model = found.unwrap_or_else(|| panic!("{what}: {recovered:?}")).clone();
        // And it works.
        history(&shared(&disk), &mut wal, &mut model)
            .unwrap_or_else(|_| panic!("{what}: the next process cannot write"));
    }
}

#[test]
fn whichever_call_of_the_log_fails_what_was_acknowledged_is_there() {
    let whole = FaultyDisk::new(TestDisk::new(), None);
    let mut model = Model::default();
    let mut wal = open_faulty(&whole, 0).unwrap().0;
    history(&whole.shared(), &mut wal, &mut model).unwrap();
    let calls = whole.calls();
    assert!(calls > 90, "{calls}");
    let (mut stopped, mut unharmed) = (0, 0);
    for at in 1..=calls {
        for fault in FAULTS {
            let what = format!("call {at} with {fault:?}");
            let mut random = SeededEntropy::new(at);
            let faulty = FaultyDisk::new(TestDisk::new(), Some((at, fault)));
            let (mut acknowledged, mut possible) = (Model::default(), Model::default());
            if let Ok((mut wal, _)) = open_faulty(&faulty, 0) {
                match history(&faulty.shared(), &mut wal, &mut acknowledged) {
                    Ok(()) => {
                        possible = acknowledged.clone();
                        unharmed += 1;
                    }
                    Err(model) => {
                        possible = model;
                        stopped += 1;
                    }
                }
            }
            check_next(&faulty.disk, &acknowledged, &possible, &mut random, &what);
        }
    }
    // Old segments that stay for want of a removal harm nobody; everything else ends the process or refuses a snapshot.
    assert!(stopped > 200 && unharmed > 0 && unharmed < 40, "{stopped} {unharmed}");
}

#[test]
fn whichever_call_of_an_open_fails_the_next_one_finds_everything() {
    // A log with a torn end, so that opening it cuts.
    let disk = TestDisk::new();
    let mut wal = open(&disk, 4096, 0).unwrap().0;
    let mut model = Model::default();
    history(&shared(&disk), &mut wal, &mut model).unwrap();
    drop(wal);
    let segment = disk.paths().into_iter().rfind(|path| path.to_string_lossy().contains("wal-")).unwrap();
    disk.change(&segment, |bytes| bytes[3800] = 7);
    let whole = FaultyDisk::new(disk.duplicate(), None);
    assert!(open_faulty(&whole, 1).unwrap().1.cut.is_some());
    for at in 1..=whole.calls() {
        for fault in FAULTS {
            let faulty = FaultyDisk::new(disk.duplicate(), Some((at, fault)));
            let _ = open_faulty(&faulty, 1);
            let mut random = SeededEntropy::new(at);
            check_next(&faulty.disk, &model, &model, &mut random, &format!("call {at} with {fault:?}"));
        }
    }
}

#[test]
fn whichever_call_of_a_snapshot_fails_it_is_whole_or_not_there() {
    let write = |disk: &FaultyDisk| {
        let shared = Arc::new(disk.clone());
        let mut writer = SnapshotWriter::create(shared, dir(), key(), LINEAGE, position(1, 3), &members())?;
        writer.write_chunk(&[7; 2000])?;
        writer.write_chunk(&[8; 900])?;
        writer.finish()
    };
    let whole = FaultyDisk::new(TestDisk::new(), None);
    write(&whole).unwrap();
    for at in 1..=whole.calls() {
        for fault in FAULTS {
            let faulty = FaultyDisk::new(TestDisk::new(), Some((at, fault)));
            let what = format!("call {at} with {fault:?}");
            let mut random = SeededEntropy::new(at);
            // The first call is the removal of a leftover, which is not there.
            let result = write(&faulty);
            assert!(result.is_err() || at == 1, "{what}");
            for disk in [faulty.disk.duplicate(), faulty.disk.crash_at_random(&mut random)] {
                let listed = crate::wal::list_snapshots(&disk, dir()).unwrap();
                assert!(result.is_err() || listed == [Index(3)], "{what}");
                for index in listed {
                    let mut reader = crate::wal::SnapshotReader::open(&disk, dir(), key(), LINEAGE, index).unwrap();
                    while reader.next_chunk().unwrap().is_some() {}
                }
                // The next attempt does not stumble over what is left.
                write(&FaultyDisk::new(disk, None)).unwrap_or_else(|error| panic!("{what}: {error}"));
            }
        }
    }
}

#[test]
fn whichever_call_of_a_replacement_fails_the_file_is_the_old_or_the_new_one() {
    let path = dir().join("node.json");
    let before = TestDisk::new();
    files::replace(&before, &path, b"the old contents").unwrap();
    let whole = FaultyDisk::new(before.duplicate(), None);
    files::replace(&whole, &path, &[b'n'; 1300]).unwrap();
    for at in 1..=whole.calls() {
        for fault in FAULTS {
            let faulty = FaultyDisk::new(before.duplicate(), Some((at, fault)));
            let result = files::replace(&faulty, &path, &[b'n'; 1300]);
            let mut random = SeededEntropy::new(at);
            for disk in [faulty.disk.duplicate(), faulty.disk.crash_at_random(&mut random)] {
                let now = files::read(&disk, &path).unwrap();
                assert!(now == b"the old contents" && result.is_err() || now == [b'n'; 1300], "{at} {fault:?}");
                files::replace(&disk, &path, b"the next").unwrap();
                assert_eq!(files::read(&disk, &path).unwrap(), b"the next");
            }
        }
    }
}
