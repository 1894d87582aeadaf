//! A disk in memory that forgets what was not synced.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use skep::sys::entropy::SeededEntropy;
use skep::sys::files::{Disk, File};

const SECTOR: usize = 512;

/// One manager's disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct SimDisk(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// What programs see.
    names: BTreeMap<PathBuf, SimFile>,
    /// What a power cut leaves, apart from `unsynced`.
    durable: BTreeMap<PathBuf, SimFile>,
    /// Changes of names since the last sync of a directory, in order.
    unsynced: Vec<NameChange>,
    /// So many syncs are still carried out; then the power is gone and nothing has an effect any more.
    syncs_left: Option<u64>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Put(PathBuf, SimFile),
    Rename(PathBuf, PathBuf, SimFile),
    Remove(PathBuf),
}

/// A file. Clones are the same file.
#[derive(Clone, Debug)]
struct SimFile {
    disk: SimDisk,
    bytes: Arc<Mutex<Bytes>>,
}

#[derive(Debug, Default)]
struct Bytes {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors written since the last sync.
    dirty: BTreeSet<usize>,
}

impl SimDisk {
    /// The power will go at a sync, after `syncs` more of them.
    pub fn begin_to_die(&self, syncs: u64) {
        self.lock().syncs_left = Some(syncs);
    }

    fn is_dead(&self) -> bool {
        self.lock().syncs_left.is_some_and(|left| left == u64::MAX)
    }

    /// Whether a sync is carried out.
    fn may_sync(&self) -> bool {
        let mut inner = self.lock();
        match &mut inner.syncs_left {
            None => true,
            Some(left @ (0 | u64::MAX)) => {
                *left = u64::MAX;
                false
            }
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }

    /// The power goes: any subset of what was not synced stays. Names are kept in order, as a journal keeps them.
    pub fn lose_power(&self, entropy: &mut SeededEntropy) {
        let mut inner = self.lock();
        inner.syncs_left = None;
        let kept = entropy.below(inner.unsynced.len() as u64 + 1) as usize;
        let changes: Vec<NameChange> = std::mem::take(&mut inner.unsynced).drain(..kept).collect();
        for change in changes {
            apply(&mut inner.durable, change);
        }
        inner.names = inner.durable.clone();
        for file in inner.names.values() {
            file.lock().lose_power(entropy);
        }
    }

    /// A disk without files.
    pub fn wipe(&self) {
        *self.lock() = Inner::default();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    fn change(&self, change: NameChange) {
        if self.is_dead() {
            return;
        }
        let mut inner = self.lock();
        apply(&mut inner.names, change.clone());
        inner.unsynced.push(change);
    }

    fn find(&self, path: &Path) -> io::Result<SimFile> {
        self.lock().names.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn apply(names: &mut BTreeMap<PathBuf, SimFile>, change: NameChange) {
    match change {
        NameChange::Put(path, file) => drop(names.insert(path, file)),
        NameChange::Rename(from, to, file) => {
            names.remove(&from);
            names.insert(to, file);
        }
        NameChange::Remove(path) => drop(names.remove(&path)),
    }
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        if self.find(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = SimFile { disk: self.clone(), bytes: Arc::default() };
        self.change(NameChange::Put(path.to_owned(), file.clone()));
        Ok(Arc::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(self.find(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.is_dead() {
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
        let inner = self.lock();
        let inside = inner.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        if self.may_sync() {
            let mut inner = self.lock();
            inner.unsynced.clear();
            inner.durable = inner.names.clone();
        }
        Ok(())
    }
}

impl SimFile {
    fn lock(&self) -> MutexGuard<'_, Bytes> {
        self.bytes.lock().unwrap()
    }
}

impl Bytes {
    fn resize(&mut self, len: u64) {
        let (old, len) = (self.live.len(), len as usize);
        self.live.resize(len, 0);
        self.dirty.extend(old.min(len) / SECTOR..=old.max(len) / SECTOR);
    }

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
        for sector in std::mem::take(&mut self.dirty) {
            let (start, end) = (sector * SECTOR, ((sector + 1) * SECTOR).min(len).min(self.live.len()));
            if start < end && keeps() {
                self.durable[start..end].copy_from_slice(&self.live[start..end]);
            }
        }
        self.live = self.durable.clone();
    }
}

impl File for SimFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() || self.disk.is_dead() {
            return Ok(());
        }
        let mut file = self.lock();
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        if end > file.live.len() {
            file.resize(end as u64);
        }
        file.live[start..end].copy_from_slice(bytes);
        file.dirty.extend(start / SECTOR..=(end - 1) / SECTOR);
        Ok(())
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let file = self.lock();
        let found = file.live.get(offset as usize..offset as usize + bytes.len());
        bytes.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if !self.disk.may_sync() {
            return Ok(());
        }
        let mut file = self.lock();
        let Bytes { live, durable, dirty } = &mut *file;
        durable.resize(live.len(), 0);
        for sector in std::mem::take(dirty) {
            let (start, end) = (sector * SECTOR, ((sector + 1) * SECTOR).min(live.len()));
            if start < end {
                durable[start..end].copy_from_slice(&live[start..end]);
            }
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().live.len() as u64)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.lock().resize(len);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.lock().resize(len);
        Ok(())
    }
}

mod tests {
    use super::*;

    #[test]
    fn a_power_cut_keeps_what_was_synced_and_any_part_of_the_rest() {
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let (disk, path) = (SimDisk::default(), Path::new("d/f"));
            let file = disk.create(path).unwrap();
            file.write_at(0, &[1; 3 * SECTOR]).unwrap();
            file.sync_data().unwrap();
            disk.sync_dir(Path::new("d")).unwrap();
            file.write_at(SECTOR as u64, &[2; 2 * SECTOR]).unwrap();
            disk.lose_power(&mut SeededEntropy::new(seed));
            let mut bytes = vec![0; 3 * SECTOR];
            disk.open(path).unwrap().read_at(0, &mut bytes).unwrap();
            seen.insert([bytes[0], bytes[SECTOR], bytes[2 * SECTOR]]);
        }
        assert_eq!(seen, BTreeSet::from([[1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 2, 2]]));
    }
}
