//! A disk in memory that forgets what was not synced, fills up, fails, and rots.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use skep::sys::entropy::SeededEntropy;
use skep::sys::files::{Disk, File};

const SECTOR: usize = 512;

/// One manager's disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct SimDisk {
    names: Arc<Mutex<Names>>,
    /// Shared with the files, which do not hold the disk: it holds them.
    fate: Arc<Mutex<Fate>>,
}

#[derive(Debug, Default)]
struct Names {
    /// What programs see.
    live: BTreeMap<PathBuf, SimFile>,
    /// What a power cut leaves, apart from `unsynced`.
    durable: BTreeMap<PathBuf, SimFile>,
    /// Changes of names since the last sync of a directory, in order.
    unsynced: Vec<NameChange>,
    /// Directories that were made, with files in them or not. They count as durable at once.
    dirs: BTreeSet<PathBuf>,
}

/// What the disk does next.
#[derive(Debug, Default)]
struct Fate {
    /// The power goes at a sync, after so many more of them.
    syncs_left: Option<u64>,
    /// The power is gone: nothing has an effect any more.
    dead: bool,
    /// Syncs fail.
    broken: bool,
    /// Bytes that can still be taken; `None` is no limit.
    free: Option<u64>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Put(PathBuf, SimFile),
    Rename(PathBuf, PathBuf, SimFile),
    RenameDir(PathBuf, PathBuf),
    Remove(PathBuf),
}

/// A file. Clones are the same file.
#[derive(Clone, Debug)]
struct SimFile {
    fate: Arc<Mutex<Fate>>,
    bytes: Arc<Mutex<Bytes>>,
}

#[derive(Debug, Default)]
struct Bytes {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors written since the last sync, some more than once.
    dirty: Vec<usize>,
    /// Sectors whose sync failed: the cache shows them and takes them for clean, and the device does not have them.
    poisoned: Vec<usize>,
}

/// What rots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rot {
    /// One bit of a file changes.
    Flip,
    /// A file loses its end.
    Truncate,
}

impl SimDisk {
    /// The power will go at a sync, after `syncs` more of them.
    pub fn begin_to_die(&self, syncs: u64) {
        self.fate().syncs_left = Some(syncs);
    }

    /// The power goes: any subset of what was not synced stays. Names are kept in order, as a journal keeps them.
    pub fn lose_power(&self, entropy: &mut SeededEntropy) {
        let mut names = self.names();
        let kept = entropy.below(names.unsynced.len() as u64 + 1) as usize;
        let changes: Vec<NameChange> = std::mem::take(&mut names.unsynced).drain(..kept).collect();
        for change in changes {
            apply(&mut names.durable, change);
        }
        names.live = names.durable.clone();
        for file in names.live.values() {
            file.bytes().lose_power(entropy);
        }
        let mut fate = self.fate();
        (fate.syncs_left, fate.dead, fate.broken) = (None, false, false);
    }

    /// From now on every sync fails, until the process that uses the disk is gone: see [`Self::evict`].
    pub fn fail_syncs(&self) {
        self.fate().broken = true;
    }

    /// The process is gone and syncs work again. Of what a failed sync left in the cache any part is read from the device
    /// from now on, which never got it.
    pub fn evict(&self, entropy: &mut SeededEntropy) {
        if !std::mem::take(&mut self.fate().broken) {
            return;
        }
        for file in self.names().live.values() {
            let mut bytes = file.bytes();
            for sector in std::mem::take(&mut bytes.poisoned) {
                if entropy.below(2) == 0 {
                    bytes.forget(sector);
                }
            }
        }
    }

    /// Syncs work again, for a process that has not met one that failed.
    pub fn repair(&self) {
        let poisoned = self.names().live.values().any(|file| !file.bytes().poisoned.is_empty());
        self.fate().broken &= poisoned;
    }

    /// Only so many bytes can be taken from now on; `None` is no limit.
    pub fn limit(&self, free: Option<u64>) {
        self.fate().free = free;
    }

    /// Whether there is a limit.
    pub fn is_full(&self) -> bool {
        self.fate().free.is_some()
    }

    /// A disk without files.
    pub fn wipe(&self) {
        *self.names() = Names::default();
        *self.fate() = Fate::default();
    }

    /// A copy of all that programs see, as a backup of the directory is.
    pub fn image(&self) -> Self {
        let copy = Self::default();
        let mut live = BTreeMap::new();
        for (path, file) in &self.names().live {
            let content = file.bytes().live.clone();
            let bytes = Bytes { durable: content.clone(), live: content, ..Bytes::default() };
            live.insert(path.clone(), SimFile { fate: copy.fate.clone(), bytes: Arc::new(Mutex::new(bytes)) });
        }
        let dirs = self.names().dirs.clone();
        *copy.names() = Names { durable: live.clone(), live, unsynced: Vec::new(), dirs };
        copy
    }

    /// Damages one log segment or snapshot somewhere where something was written; says what it did.
    pub fn rot(&self, rot: Rot, entropy: &mut SeededEntropy) -> Option<String> {
        let names = self.names();
        let is_data = |path: &Path| {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            // The log that a recovery put aside is read by nobody.
            let is_aside = path.to_string_lossy().contains("before-recover");
            !is_aside && (name.starts_with("wal-") || name.starts_with("snap-"))
        };
        let files: Vec<(&PathBuf, &SimFile)> = names.live.iter().filter(|(path, _)| is_data(path)).collect();
        if files.is_empty() {
            return None;
        }
        let (path, file) = files[entropy.below(files.len() as u64) as usize];
        let mut bytes = file.bytes();
        let written = bytes.live.iter().rposition(|byte| *byte != 0)?;
        let at = entropy.below(written as u64 + 1) as usize;
        match rot {
            Rot::Flip => bytes.live[at] ^= 1 << entropy.below(8),
            Rot::Truncate => bytes.live.truncate(at),
        }
        bytes.durable = bytes.live.clone();
        bytes.dirty.clear();
        Some(format!("{rot:?} of {} at {at}", path.display()))
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().expect("nothing panics while it holds this lock")
    }

    fn fate(&self) -> MutexGuard<'_, Fate> {
        self.fate.lock().expect("nothing panics while it holds this lock")
    }

    fn change(&self, change: NameChange) {
        if self.fate().dead {
            return;
        }
        let mut names = self.names();
        let gone = apply(&mut names.live, change.clone());
        names.unsynced.push(change);
        if let (Some(free), Some(gone)) = (&mut self.fate().free, gone) {
            *free += gone.bytes().live.len() as u64;
        }
    }

    fn is_dir(&self, path: &Path) -> bool {
        let names = self.names();
        names.dirs.contains(path) || names.live.keys().any(|file| file != path && file.starts_with(path))
    }

    fn find(&self, path: &Path) -> io::Result<SimFile> {
        self.names().live.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Carries out a change of names; gives back a file that has none any more.
fn apply(names: &mut BTreeMap<PathBuf, SimFile>, change: NameChange) -> Option<SimFile> {
    match change {
        NameChange::Put(path, file) => names.insert(path, file),
        NameChange::Rename(from, to, file) => {
            names.remove(&from);
            names.insert(to, file)
        }
        NameChange::RenameDir(from, to) => {
            let inside: Vec<PathBuf> = names.keys().filter(|path| path.starts_with(&from)).cloned().collect();
            for path in inside {
                let below = path.strip_prefix(&from).expect("it was just looked at").to_owned();
                let file = names.remove(&path).expect("it was just found");
                names.insert(to.join(below), file);
            }
            None
        }
        NameChange::Remove(path) => names.remove(&path),
    }
}

impl Fate {
    /// Whether a sync is carried out; an error when it fails.
    fn sync(&mut self) -> io::Result<bool> {
        if self.dead {
            return Ok(false);
        }
        if self.broken {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        match &mut self.syncs_left {
            None => {}
            Some(0) => {
                self.dead = true;
                return Ok(false);
            }
            Some(left) => *left -= 1,
        }
        Ok(true)
    }

    fn take(&mut self, bytes: u64) -> io::Result<()> {
        if let Some(free) = &mut self.free {
            *free = free.checked_sub(bytes).ok_or_else(|| io::Error::from(io::ErrorKind::StorageFull))?;
        }
        Ok(())
    }
}

const EIO: i32 = 5;

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        if self.find(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = SimFile { fate: self.fate.clone(), bytes: Arc::default() };
        self.change(NameChange::Put(path.to_owned(), file.clone()));
        Ok(Arc::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(self.find(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.fate().dead {
            return Ok(());
        }
        if self.is_dir(from) {
            self.change(NameChange::RenameDir(from.to_owned(), to.to_owned()));
            let mut names = self.names();
            names.dirs.remove(from);
            names.dirs.insert(to.to_owned());
            return Ok(());
        }
        let file = self.find(from)?;
        self.change(NameChange::Rename(from.to_owned(), to.to_owned(), file));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.find(path)?;
        self.change(NameChange::Remove(path.to_owned()));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        if !self.is_dir(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let names = self.names();
        let inside = names.live.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.names().dirs.insert(dir.to_owned());
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        if self.fate().sync()? {
            let mut names = self.names();
            names.unsynced.clear();
            names.durable = names.live.clone();
        }
        Ok(())
    }
}

impl SimFile {
    fn bytes(&self) -> MutexGuard<'_, Bytes> {
        self.bytes.lock().expect("nothing panics while it holds this lock")
    }

    fn fate(&self) -> MutexGuard<'_, Fate> {
        self.fate.lock().expect("nothing panics while it holds this lock")
    }

    fn resize(&self, bytes: &mut Bytes, len: u64) -> io::Result<()> {
        let old = bytes.live.len() as u64;
        self.fate().take(len.saturating_sub(old))?;
        if let Some(free) = &mut self.fate().free {
            *free += old.saturating_sub(len);
        }
        bytes.live.resize(len as usize, 0);
        let (old, len) = (old as usize, len as usize);
        bytes.dirty.extend(old.min(len) / SECTOR..=old.max(len) / SECTOR);
        Ok(())
    }
}

impl Bytes {
    fn lose_power(&mut self, entropy: &mut SeededEntropy) {
        // Half of the time everything went one way: the cases that random sectors rarely make.
        let bias = entropy.below(4);
        let mut keeps = || match bias {
            0 => false,
            1 => true,
            _ => entropy.below(2) == 0,
        };
        let len = if self.live.len() == self.durable.len() || keeps() { self.live.len() } else { self.durable.len() };
        self.durable.resize(len, 0);
        for sector in self.take_dirty() {
            let (start, end) = (sector * SECTOR, ((sector + 1) * SECTOR).min(len).min(self.live.len()));
            if start < end && keeps() {
                self.durable[start..end].copy_from_slice(&self.live[start..end]);
            }
        }
        self.poisoned.clear();
        self.live.clone_from(&self.durable);
    }

    fn take_dirty(&mut self) -> Vec<usize> {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        dirty
    }

    fn sync(&mut self) {
        self.durable.resize(self.live.len(), 0);
        for sector in self.take_dirty() {
            let (start, end) = (sector * SECTOR, ((sector + 1) * SECTOR).min(self.live.len()));
            if start < end {
                self.durable[start..end].copy_from_slice(&self.live[start..end]);
            }
        }
    }

    /// The cache drops a sector that it takes for clean.
    fn forget(&mut self, sector: usize) {
        let (start, end) = (sector * SECTOR, ((sector + 1) * SECTOR).min(self.live.len()));
        for at in start..end {
            self.live[at] = self.durable.get(at).copied().unwrap_or(0);
        }
    }
}

impl File for SimFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() || self.fate().dead {
            return Ok(());
        }
        let mut file = self.bytes();
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        if end > file.live.len() {
            self.resize(&mut file, end as u64)?;
        }
        file.live[start..end].copy_from_slice(bytes);
        let sectors = start / SECTOR..=(end - 1) / SECTOR;
        // Written again, they will be synced.
        file.poisoned.retain(|sector| !sectors.contains(sector));
        file.dirty.extend(sectors);
        Ok(())
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let file = self.bytes();
        let found = file.live.get(offset as usize..offset as usize + bytes.len());
        bytes.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let verdict = self.fate().sync();
        let mut file = self.bytes();
        match verdict {
            Ok(true) => file.sync(),
            Ok(false) => {}
            Err(error) => {
                let mut dirty = file.take_dirty();
                file.poisoned.append(&mut dirty);
                return Err(error);
            }
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes().live.len() as u64)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut file = self.bytes();
        self.resize(&mut file, len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut file = self.bytes();
        self.resize(&mut file, len)
    }
}

mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PATH: &str = "d/wal-1";

    fn written(disk: &SimDisk) -> Arc<dyn File> {
        let file = disk.create(Path::new(PATH)).unwrap();
        file.write_at(0, &[1; 3 * SECTOR]).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir(Path::new("d")).unwrap();
        file
    }

    fn sectors(disk: &SimDisk) -> [u8; 3] {
        let mut bytes = vec![0; 3 * SECTOR];
        disk.open(Path::new(PATH)).unwrap().read_at(0, &mut bytes).unwrap();
        [bytes[0], bytes[SECTOR], bytes[2 * SECTOR]]
    }

    #[test]
    fn a_power_cut_keeps_what_was_synced_and_any_part_of_the_rest() {
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let disk = SimDisk::default();
            let file = written(&disk);
            file.write_at(SECTOR as u64, &[2; 2 * SECTOR]).unwrap();
            disk.lose_power(&mut SeededEntropy::new(seed));
            seen.insert(sectors(&disk));
        }
        assert_eq!(seen, BTreeSet::from([[1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 2, 2]]));
    }

    #[test]
    fn a_failed_sync_leaves_a_cache_that_lies_and_a_second_one_does_not_repair_it() {
        let mut seen = BTreeSet::new();
        for seed in 0..100 {
            let (disk, mut entropy) = (SimDisk::default(), SeededEntropy::new(seed));
            let file = written(&disk);
            file.write_at(0, &[2; 2 * SECTOR]).unwrap();
            disk.fail_syncs();
            assert!(file.sync_data().is_err());
            assert_eq!(sectors(&disk), [2, 2, 1]);
            disk.evict(&mut entropy);
            seen.insert(sectors(&disk));
            file.sync_data().unwrap();
            disk.lose_power(&mut entropy);
            assert_eq!(sectors(&disk), [1, 1, 1]);
        }
        assert_eq!(seen, BTreeSet::from([[1, 1, 1], [1, 2, 1], [2, 1, 1], [2, 2, 1]]));
    }

    #[test]
    fn a_full_disk_takes_what_fits_and_no_more() {
        let disk = SimDisk::default();
        let file = written(&disk);
        disk.limit(Some(SECTOR as u64));
        file.write_at(0, &[3; 3 * SECTOR]).unwrap();
        file.allocate(4 * SECTOR as u64).unwrap();
        let refused = file.allocate(5 * SECTOR as u64).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        file.set_len(2 * SECTOR as u64).unwrap();
        disk.create(Path::new("d/x")).unwrap().write_at(0, &[1; 2 * SECTOR]).unwrap();
        disk.remove(Path::new("d/x")).unwrap();
        file.allocate(4 * SECTOR as u64).unwrap();
    }

    #[test]
    fn an_image_is_another_disk_and_rot_is_of_what_was_written() {
        let (disk, mut entropy) = (SimDisk::default(), SeededEntropy::new(1));
        let file = written(&disk);
        let image = disk.image();
        assert!(disk.rot(Rot::Truncate, &mut entropy).is_some());
        assert!(file.len().unwrap() < 3 * SECTOR as u64);
        assert_eq!(sectors(&image), [1, 1, 1]);
        assert!(image.rot(Rot::Flip, &mut entropy).is_some());
    }
}
