//! The key file: reading it, and the one function that writes it.
//!
//! `pki/node.key` holds the private key of the node's certificate and the data keys of its disk, in the clear or sealed
//! (`pki::keyfile` has the bytes). It is read once, when the node starts; from then on [`KeyStore`] is what it holds. Two
//! threads change it, `locksmith` (the data keys and the lock) and whoever renews the certificate, each only its own part:
//! [`KeyStore::change`] takes one after the other, and writes the whole file anew, at once or not at all.
//!
//! A new data key is in the file before anything is sealed with it, and an old one leaves it only when no file names it any
//! more: at every moment the file on disk has the keys of all files on disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{StartError, StartFailure};
use crate::pki::keyfile::{self, KeyFileError, Locked, Read};
use crate::pki::{KeyFile, Keyring, PrivateKey, UnlockKey};
use crate::sys::entropy::OsEntropy;
use crate::sys::files::{self, Disk};
use crate::wal;

/// The key file, in the data directory.
pub const KEY_FILE: &str = "pki/node.key";

/// What the key file holds, shared: clones see each other's changes.
#[derive(Clone, Debug)]
pub struct KeyStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    file: Mutex<KeyFile>,
    keyring: Keyring,
}

impl KeyStore {
    /// What was read from the key file of the data directory `dir`.
    pub fn new(disk: Arc<dyn Disk>, dir: &Path, file: KeyFile) -> Self {
        let keyring = Keyring::new(file.data_keys.iter().cloned());
        Self(Arc::new(Inner { disk, dir: dir.to_owned(), file: Mutex::new(file), keyring }))
    }

    /// A new key file.
    pub fn create(disk: Arc<dyn Disk>, dir: &Path, file: KeyFile) -> io::Result<Self> {
        let store = Self::new(disk, dir, file);
        store.change(|_| {})?;
        Ok(store)
    }

    /// What it holds now.
    pub fn file(&self) -> KeyFile {
        self.lock().clone()
    }

    /// Its data keys at work: these follow every change.
    pub fn keyring(&self) -> Keyring {
        self.0.keyring.clone()
    }

    /// Whether the private key was in the clear, or under another unlock key, and is to be replaced with a new certificate.
    /// [`Self::replace_node_key`] ends that.
    pub fn wants_new_certificate(&self) -> bool {
        self.lock().renew
    }

    /// Replaces the private key. When this returns the file is durable, and the key before is nowhere in it.
    pub fn replace_node_key(&self, key: PrivateKey) -> io::Result<()> {
        self.change(|file| {
            file.node_key = key;
            file.renew = false;
        })
    }

    /// Changes what it holds, durably and as a whole. After an error nothing is changed here, and the file holds the one or
    /// the other.
    pub fn change(&self, change: impl FnOnce(&mut KeyFile)) -> io::Result<()> {
        let mut file = self.lock();
        let mut changed = file.clone();
        change(&mut changed);
        let path = self.0.dir.join(KEY_FILE);
        let disk = self.0.disk.as_ref();
        disk.create_dir(&self.0.dir.join("pki"))?;
        let text = changed.encode(&mut OsEntropy);
        // A manager on a full disk must be able to lock itself, and to start again.
        let raft = self.0.dir.join("raft");
        wal::with_reserve(disk, &raft, || files::replace(disk, &path, text.as_bytes()))?;
        let newest = &changed.data_keys[0];
        if self.0.keyring.newest().id() != newest.id() {
            self.0.keyring.add(newest.clone());
        }
        self.0.keyring.retain(|id| changed.data_keys.iter().any(|key| key.id() == id));
        *file = changed;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, KeyFile> {
        self.0.file.lock().expect("no code panics while it holds this lock")
    }
}

/// Reads the key file of the data directory `dir`; `None` when there is none.
pub fn read(dir: &Path) -> Result<Option<Read>, StartError> {
    let path = dir.join(KEY_FILE);
    let what = || format!("cannot use {}", path.display());
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => zeroize::Zeroizing::new(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(damaged(what(), KeyFileError::Damaged("it is not text")));
        }
        Err(error) => {
            let hint = "run as the owner of the data directory";
            return Err(StartError::new(StartFailure::Internal, what(), error, hint));
        }
    };
    keyfile::read(&text).map(Some).map_err(|error| damaged(what(), error))
}

/// Opens the key file of the data directory `dir`, with the unlock key if it takes one; `None` when there is none.
pub fn open(dir: &Path, key: Option<&UnlockKey>) -> Result<Option<KeyFile>, StartError> {
    match (read(dir)?, key) {
        (None, _) => Ok(None),
        (Some(Read::Open(file)), _) => Ok(Some(file)),
        (Some(Read::Locked(locked)), Some(key)) => unlock(dir, &locked, key).map(Some),
        (Some(Read::Locked(_)), None) => {
            let what = format!("cannot use {}", dir.join(KEY_FILE).display());
            let hint = "give the unlock key with --unlock-key-file FILE, or with --unlock-key-file - on standard input; any \
                        manager that runs prints it: `skep unlock-key show`";
            Err(StartError::refused(what, "the keys of this manager are locked", hint))
        }
    }
}

/// Opens a sealed key file.
pub fn unlock(dir: &Path, locked: &Locked, key: &UnlockKey) -> Result<KeyFile, StartError> {
    let what = format!("cannot unlock {}", dir.join(KEY_FILE).display());
    locked.unlock(key).map_err(|error| match error {
        KeyFileError::WrongKey => StartError::refused(what, error, WRONG_KEY_HINT),
        _ => damaged(what, error),
    })
}

/// What to do about a wrong unlock key.
pub const WRONG_KEY_HINT: &str = "`skep unlock-key show` prints the unlock key on a manager that runs; if it was rotated \
                                  while this manager was down, the one from before opens this manager";

fn damaged(what: String, error: KeyFileError) -> StartError {
    let hint = "put the file back from a backup; without it this node's log cannot be read";
    match error {
        KeyFileError::Newer { .. } => StartError::refused(what, error, "install the newer skep again"),
        _ => StartError::new(StartFailure::Damaged, what, error, hint),
    }
}
