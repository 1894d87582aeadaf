//! A disk in memory that loses what was not synced, sector by sector.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::sys::entropy::SeededEntropy;
use crate::sys::files::{Disk, File};

const SECTOR: usize = 512;

/// A disk whose clones are the same disk.
#[derive(Clone, Debug)]
pub(crate) struct TestDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    live: Names,
    /// The names as of the last directory sync.
    durable: Names,
    /// Name changes since then, in order.
    pending: Vec<Rename>,
    /// Operations until the power fails; every one after that is an error.
    budget: u64,
    /// The next sync fails as Linux does it: the error is reported once, the page cache keeps what the disk never got.
    fail_sync: bool,
    /// Space runs out.
    is_full: bool,
    /// Bytes that all files may have together.
    capacity: u64,
    syncs: u64,
    operations: u64,
}

type Names = BTreeMap<PathBuf, Arc<Mutex<Contents>>>;

#[derive(Clone, Debug)]
enum Rename {
    Put(PathBuf, Arc<Mutex<Contents>>),
    Move(PathBuf, PathBuf),
    Drop(PathBuf),
}

#[derive(Debug, Default)]
struct Contents {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors written since the last sync.
    dirty: BTreeSet<usize>,
}

#[derive(Debug)]
struct TestFile {
    disk: TestDisk,
    contents: Arc<Mutex<Contents>>,
}

impl TestDisk {
    pub(crate) fn new() -> Self {
        Self::from_names(Names::new())
    }

    fn from_names(names: Names) -> Self {
        let state = State {
            live: names.clone(),
            durable: names,
            pending: Vec::new(),
            budget: u64::MAX,
            fail_sync: false,
            is_full: false,
            capacity: u64::MAX,
            syncs: 0,
            operations: 0,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// The disk after the power failed and came back. `keep` decides for each unsynced sector, by path and number,
    /// whether it had been written; as many unsynced name changes as `names` had been, in order.
    pub(crate) fn crash(&self, names: usize, mut keep: impl FnMut(&Path, usize) -> bool) -> Self {
        let state = self.lock();
        let mut kept = state.durable.clone();
        for change in state.pending.iter().take(names) {
            change.apply(&mut kept);
        }
        let names = kept.into_iter().map(|(path, contents)| {
            let contents = contents.lock().unwrap();
            let mut bytes = contents.durable.clone();
            for sector in contents.dirty.iter().filter(|sector| keep(&path, **sector)) {
                let (start, end) = (sector * SECTOR, contents.live.len().min((sector + 1) * SECTOR));
                bytes.resize(bytes.len().max(end), 0);
                bytes[start..end].copy_from_slice(&contents.live[start..end]);
            }
            let survived = Contents { live: bytes.clone(), durable: bytes, dirty: BTreeSet::new() };
            (path, Arc::new(Mutex::new(survived)))
        });
        Self::from_names(names.collect())
    }

    /// The disk after a crash that kept a random part of what was not synced.
    pub(crate) fn crash_at_random(&self, random: &mut SeededEntropy) -> Self {
        let names = random.below(self.lock().pending.len() as u64 + 1) as usize;
        // Now and then all or nothing, which single coins make unlikely.
        let bias = random.below(4);
        self.crash(names, |_, _| match bias {
            0 => false,
            1 => true,
            _ => random.below(2) == 0,
        })
    }

    /// Lets this many more operations succeed.
    pub(crate) fn set_budget(&self, budget: u64) {
        self.lock().budget = budget;
    }

    /// Lets the next sync of a file fail.
    pub(crate) fn fail_next_sync(&self) {
        self.lock().fail_sync = true;
    }

    /// Takes away or gives back the room for new files.
    pub(crate) fn set_full(&self, is_full: bool) {
        self.lock().is_full = is_full;
    }

    /// Gives the disk a size, of which files that are removed give their part back.
    pub(crate) fn set_capacity(&self, bytes: u64) {
        self.lock().capacity = bytes;
    }

    /// Whether `contents` may become `len` bytes long.
    fn make_room(&self, contents: &Mutex<Contents>, len: usize) -> io::Result<()> {
        let now = contents.lock().unwrap().live.len();
        let state = self.lock();
        if (len.saturating_sub(now) as u64) > state.capacity - state.used().min(state.capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    pub(crate) fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// A copy of a file, as a process sees it.
    pub(crate) fn bytes(&self, path: &Path) -> Vec<u8> {
        self.lock().live[path].lock().unwrap().live.clone()
    }

    /// Changes a file behind everybody's back, durably.
    pub(crate) fn change(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let state = self.lock();
        let mut contents = state.live[path].lock().unwrap();
        change(&mut contents.live);
        contents.durable = contents.live.clone();
        contents.dirty.clear();
    }

    /// The paths of all files.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.lock().live.keys().cloned().collect()
    }

    /// A copy that shares nothing, all of it durable.
    pub(crate) fn duplicate(&self) -> Self {
        let state = self.lock();
        let names = state.live.iter().map(|(path, contents)| {
            let bytes = contents.lock().unwrap().live.clone();
            let contents = Contents { live: bytes.clone(), durable: bytes, dirty: BTreeSet::new() };
            (path.clone(), Arc::new(Mutex::new(contents)))
        });
        Self::from_names(names.collect())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn spend(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        state.budget = state.budget.checked_sub(1).ok_or_else(|| io::Error::other("the power failed"))?;
        state.operations += 1;
        Ok(state)
    }

    fn rename_all(&self, change: Rename) -> io::Result<()> {
        let mut state = self.spend()?;
        change.apply(&mut state.live);
        state.pending.push(change);
        Ok(())
    }

    fn find(&self, path: &Path) -> io::Result<Arc<Mutex<Contents>>> {
        self.lock().live.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl State {
    fn used(&self) -> u64 {
        self.live.values().map(|contents| contents.lock().unwrap().live.len() as u64).sum()
    }
}

impl Rename {
    fn apply(&self, names: &mut Names) {
        match self {
            Self::Put(path, contents) => {
                names.insert(path.clone(), contents.clone());
            }
            Self::Move(from, to) => {
                if let Some(contents) = names.remove(from) {
                    names.insert(to.clone(), contents);
                }
            }
            Self::Drop(path) => {
                names.remove(path);
            }
        }
    }
}

impl Disk for TestDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        if self.find(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let contents = Arc::<Mutex<Contents>>::default();
        self.rename_all(Rename::Put(path.to_owned(), contents.clone()))?;
        Ok(Arc::new(TestFile { disk: self.clone(), contents }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(TestFile { disk: self.clone(), contents: self.find(path)? }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.find(from)?;
        self.rename_all(Rename::Move(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.find(path)?;
        self.rename_all(Rename::Drop(path.to_owned()))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let inside = |path: &PathBuf| {
            (path.parent() == Some(dir)).then(|| path.file_name().unwrap().to_string_lossy().into_owned())
        };
        Ok(self.lock().live.keys().filter_map(inside).collect())
    }

    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        let mut state = self.spend()?;
        state.durable = state.live.clone();
        state.pending.clear();
        Ok(())
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        let state = self.lock();
        Ok(state.capacity - state.used().min(state.capacity))
    }
}

impl File for TestFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.make_room(&self.contents, offset as usize + bytes.len())?;
        let _state = self.disk.spend()?;
        let mut contents = self.contents.lock().unwrap();
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        let len = contents.live.len().max(end);
        contents.live.resize(len, 0);
        contents.live[start..end].copy_from_slice(bytes);
        contents.dirty.extend(start / SECTOR..end.div_ceil(SECTOR));
        Ok(())
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let contents = self.contents.lock().unwrap();
        let read = contents.live.get(offset as usize..).and_then(|rest| rest.get(..bytes.len()));
        bytes.copy_from_slice(read.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.spend()?;
        state.syncs += 1;
        let mut contents = self.contents.lock().unwrap();
        let dirty = std::mem::take(&mut contents.dirty);
        if std::mem::take(&mut state.fail_sync) {
            return Err(io::Error::other("the disk failed"));
        }
        let len = contents.live.len();
        contents.durable.resize(len, 0);
        for sector in dirty {
            let (start, end) = (sector * SECTOR, len.min((sector + 1) * SECTOR));
            let Contents { live, durable, .. } = &mut *contents;
            durable[start..end].copy_from_slice(&live[start..end]);
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.contents.lock().unwrap().live.len() as u64)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        if self.disk.lock().is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.set_len(len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.make_room(&self.contents, len as usize)?;
        let _state = self.disk.spend()?;
        let mut contents = self.contents.lock().unwrap();
        contents.live.resize(len as usize, 0);
        contents.dirty.retain(|sector| sector * SECTOR < len as usize);
        Ok(())
    }
}
