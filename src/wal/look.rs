//! Reading a log that is about to be replaced, without changing anything of it.
//!
//! Opening a log rewrites its last batch, cuts an unfinished one and begins a segment. Who only wants the entries, such as a
//! recovery that writes a new log elsewhere and must be able to stop at any moment, reads it through a disk on which
//! nothing changes.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::catalog::LogReader;
use super::error::WalError;
use super::{Options, Recovered, recover, snapshot};
use crate::pki::Keyring;
use crate::sys::files::{Disk, File};

/// What [`super::Wal::open`] would find in `dir`, by the same rules, and a reader of the entries. Nothing is written: an
/// unfinished last write is passed over and stays where it is. Nobody may write the log meanwhile.
pub fn look(
    disk: &dyn Disk,
    dir: &Path,
    keys: impl Into<Keyring>,
    options: &Options,
) -> Result<(LogReader, Recovered), WalError> {
    let keys = keys.into();
    let mut found = recover::recover(&Frozen(disk), dir, &keys, options)?;
    let position = found.catalog.snapshot();
    let snapshot = match position.index.0 {
        0 => None,
        _ => Some(snapshot::meta(disk, dir, &keys, options.lineage, position)?),
    };
    let recovered = Recovered {
        hard_state: found.hard_state,
        snapshot,
        first: found.catalog.first(),
        last: found.catalog.last(),
        terms: std::mem::take(&mut found.terms),
        bytes_since_snapshot: found.catalog.bytes_since_snapshot(),
        cut: found.cut.take(),
    };
    Ok((LogReader::new(found.catalog), recovered))
}

/// A disk that can be read, and on which every change succeeds and changes nothing.
#[derive(Debug)]
struct Frozen<'a>(&'a dyn Disk);

impl Disk for Frozen<'_> {
    fn create(&self, _: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(FrozenFile(None)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(FrozenFile(Some(self.0.open(path)?))))
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }

    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

/// A file of such a disk; `None` for one that was made there, and so is nowhere.
#[derive(Debug)]
struct FrozenFile(Option<Arc<dyn File>>);

impl File for FrozenFile {
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        match &self.0 {
            Some(file) => file.read_at(offset, bytes),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.0.as_ref().map_or(Ok(0), |file| file.len())
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn os_file(&self) -> Option<&std::fs::File> {
        self.0.as_ref()?.os_file()
    }
}
