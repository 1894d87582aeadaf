//! The state directory: its lock, `node.json`, and the key files.
//!
//! ```text
//! LOCK                     held while a process uses the directory
//! node.json                who this node is and how far its start has come
//! peers.json               the newest start seen of each peer
//! managers.json            where the managers are, for a node that has no log to tell it
//! pki/root.crt node.crt    the swarm's root and this node's chain (`node.crt.next` while it is replaced)
//! pki/node.key             this node's key, and the keys that seal what is on disk (`keys`)
//! raft/                    log and snapshots (`wal`)
//! raft.next/               a log that is to take its place (`rebuild`)
//! ```
//!
//! `node.json` is written before anything else of a new node and again when it has become a member: a start that a crash
//! cut off is begun again, and a directory whose log is there but whose `node.json` is not is never taken for a new one.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::keys::{self, KEY_FILE, KeyStore};
use super::{StartError, StartFailure};
use crate::agent;
use crate::pki::{KeyFile, NodeIdentity, UnlockKey};
use crate::sys::files::{self, Disk, RealDisk};
use crate::types::object::Profile;
use crate::types::{ChangeId, ClusterId, Lineage, NodeId, RaftId, Revision};
use crate::wal;

/// Who this node is and how far its start has come.
pub const NODE_FILE: &str = "node.json";
/// The format of `node.json`.
const FORMAT: u32 = 1;

/// How far a node's start has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// A new swarm is being made; nothing is worth keeping yet.
    Founding,
    /// A certificate is being asked for, or is there, and the swarm has not taken the node in yet.
    Joining,
    /// A backup is being restored; nothing is worth keeping yet.
    Restoring,
    /// A member.
    Member,
    /// A worker: part of the swarm, and not of the Raft group.
    Worker,
}

/// `node.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFile {
    /// The format of this file.
    pub format: u32,
    /// The oldest format a reader must understand.
    pub min_reader: u32,
    /// How far the start has come.
    pub phase: Phase,
    /// The node.
    pub node_id: Option<NodeId>,
    /// The swarm.
    pub cluster_id: Option<ClusterId>,
    /// Its place in the Raft group.
    pub raft_id: Option<RaftId>,
    /// Its history.
    pub lineage: Option<Lineage>,
    /// The history before, after a recovery.
    pub parent_lineage: Option<Lineage>,
    /// Raised and synced at each start.
    pub boot: u64,
    /// Timing.
    pub profile: Profile,
    /// The request for a certificate: the same one is sent again after a crash, and gives the same node.
    pub request: Option<(ChangeId, Revision)>,
    /// Where the swarm was to be joined.
    pub join: Option<String>,
    /// What was cut off when the log was repaired. It may have been acknowledged, so that a member with this mark must
    /// not take part in the group again: it would vote without what it had promised to remember.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repaired: Option<String>,
    /// The log in `raft.next/` is the one that the rest of this file is about: it is to take the place of `raft/`, which is
    /// kept under this name. Set from the moment that decides until all is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced_log: Option<String>,
    /// A person took the node out of the group here: it does not ask whether it is a worker now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left: bool,
}

impl NodeFile {
    /// A node that begins.
    pub fn new(phase: Phase, profile: Profile) -> Self {
        Self {
            format: FORMAT,
            min_reader: FORMAT,
            phase,
            node_id: None,
            cluster_id: None,
            raft_id: None,
            lineage: None,
            parent_lineage: None,
            boot: 0,
            profile,
            request: None,
            join: None,
            repaired: None,
            replaced_log: None,
            left: false,
        }
    }
}

/// What stands in a new state directory besides ours without meaning that it is somebody else's.
const HARMLESS: [&str; 4] = ["lost+found", "LOCK", "skep.sock", ".node.json.new"];
/// After a file could not be read or written.
const MEND: &str =
    "look at the disk (`df`, `dmesg`) and at who may read and write there, and give the same command again";
const OURS: [&str; 5] = [NODE_FILE, "peers.json", "managers.json", "pki", "raft"];
/// What the log of a node that is no longer a member is called from then on.
const RETIRED: &str = "raft.removed-";

/// An open state directory, which no other process can open.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// What is kept is written through it, so that a test can let any system call fail.
    disk: Arc<dyn Disk>,
    /// Holds the lock.
    _lock: File,
}

impl DataDir {
    /// Opens the directory, making it if it is missing, and locks it.
    pub fn open(path: &Path) -> Result<Self, StartError> {
        Self::open_on(Arc::new(RealDisk), path)
    }

    /// As [`Self::open`], on a disk that works on real paths.
    pub fn open_on(disk: Arc<dyn Disk>, path: &Path) -> Result<Self, StartError> {
        let what = || format!("cannot use the data directory {}", path.display());
        let fail = |error: io::Error| match error.kind() {
            io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
                let why = "it, or something above it, is a file and not a directory";
                StartError::refused(what(), why, "choose another directory with --data-dir")
            }
            io::ErrorKind::PermissionDenied => StartError::new(
                StartFailure::Internal,
                what(),
                "permission denied",
                "run as its owner, or choose another directory with --data-dir",
            ),
            _ => StartError::new(StartFailure::Internal, what(), error, "choose another directory with --data-dir"),
        };
        create(disk.as_ref(), path).map_err(fail)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path.join("LOCK"))
            .map_err(fail)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let why = "another skep process is using it";
                let hint = "talk to that one (`skep status --data-dir ...`), or stop it first";
                return Err(StartError::refused(what(), why, hint));
            }
            Err(error) => return Err(fail(error.into())),
        }
        let dir = Self { path: path.to_owned(), disk, _lock: lock };
        dir.refuse_foreign(&what())?;
        dir.finish_replacement()?;
        Ok(dir)
    }

    fn refuse_foreign(&self, what: &str) -> Result<(), StartError> {
        let internal = |error: io::Error| StartError::new(StartFailure::Internal, what, error, MEND);
        if self.path.join(NODE_FILE).exists() {
            return Ok(());
        }
        for entry in std::fs::read_dir(&self.path).map_err(internal)? {
            let name = entry.map_err(internal)?.file_name().to_string_lossy().into_owned();
            if OURS.contains(&name.as_str()) {
                return Err(StartError::new(
                    StartFailure::Damaged,
                    what,
                    format!("it holds {name} but no node.json: somebody removed a part of it"),
                    "put node.json back from a backup, or move the whole directory aside and join again",
                ));
            }
            if !HARMLESS.contains(&name.as_str()) {
                let why = format!("it holds {name}, which is not skep's");
                return Err(StartError::refused(what, why, "choose an empty directory with --data-dir"));
            }
        }
        Ok(())
    }

    /// A crash within a recovery, after it was decided: does the rest.
    fn finish_replacement(&self) -> Result<(), StartError> {
        let Some(file) = self.read()? else { return Ok(()) };
        let finished = super::rebuild::finish(self.disk.as_ref(), &self.path, &file).map_err(|error| {
            let what = format!("cannot finish the recovery of {}", self.path.display());
            StartError::new(StartFailure::Internal, what, error, MEND)
        })?;
        if finished.is_some() {
            log::warn!("a recovery of {} had been interrupted; it is finished now", self.path.display());
        }
        Ok(())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the directory lies on.
    pub fn disk(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }

    /// Log and snapshots.
    pub fn raft(&self) -> PathBuf {
        self.path.join("raft")
    }

    /// Who this node is; `None` in an empty directory.
    pub fn read(&self) -> Result<Option<NodeFile>, StartError> {
        let path = self.path.join(NODE_FILE);
        let what = || format!("cannot read {}", path.display());
        let bytes = match files::read(self.disk.as_ref(), &path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StartError::new(StartFailure::Internal, what(), error, MEND)),
        };
        let damaged = |why: String| {
            let hint = "put it back from a backup, or move the whole directory aside and join again";
            StartError::new(StartFailure::Damaged, what(), why, hint)
        };
        let value: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|error| damaged(format!("it is not JSON ({error})")))?;
        let min_reader = value.get("min_reader").and_then(serde_json::Value::as_u64).unwrap_or(0);
        if min_reader > u64::from(FORMAT) {
            let why = format!("it was written by a newer skep (format {min_reader}, this one reads up to {FORMAT})");
            return Err(StartError::refused(what(), why, "install the newer skep again"));
        }
        let file: NodeFile =
            serde_json::from_value(value).map_err(|error| damaged(format!("it is malformed ({error})")))?;
        // The next start counts one further, and peers refuse a count that went back.
        if file.boot == u64::MAX {
            return Err(damaged("it counts more starts than there can have been".to_owned()));
        }
        Ok(Some(file))
    }

    /// Replaces `node.json`, durably.
    pub fn write(&self, file: &NodeFile) -> Result<(), StartError> {
        self.replace(NODE_FILE, &encode(file))
    }

    /// Replaces a file of the directory, durably.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StartError> {
        let path = self.path.join(name);
        // A manager on a full disk must be able to start again, to make room.
        let replace = || files::replace(self.disk.as_ref(), &path, bytes);
        wal::with_reserve(self.disk.as_ref(), &self.raft(), replace).map_err(|error| {
            StartError::new(StartFailure::Internal, format!("cannot write {}", path.display()), error, MEND)
        })
    }

    /// Removes what a start that never finished left behind.
    pub fn wipe_unfinished(&self) -> Result<(), StartError> {
        for name in ["raft", "pki"] {
            match std::fs::remove_dir_all(self.path.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    let what = format!("cannot remove {}/{name} of a start that did not finish", self.path.display());
                    return Err(StartError::new(StartFailure::Internal, what, error, MEND));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes a new key file.
    pub fn create_keys(&self, file: KeyFile) -> Result<KeyStore, StartError> {
        KeyStore::create(self.disk.clone(), &self.path, file).map_err(|error| {
            let what = format!("cannot write {}", self.path.join(KEY_FILE).display());
            StartError::new(StartFailure::Internal, what, error, MEND)
        })
    }

    /// What the key file holds, with the unlock key if it takes one; `None` when there is none.
    pub fn open_keys(&self, key: Option<&UnlockKey>) -> Result<Option<KeyStore>, StartError> {
        Ok(keys::open(&self.path, key)?.map(|file| self.keys(file)))
    }

    /// The key file that was read from here and holds this.
    pub fn keys(&self, file: KeyFile) -> KeyStore {
        KeyStore::new(self.disk.clone(), &self.path, file)
    }

    /// Writes the node's chain and the swarm's root. Their key comes first: a chain without its key is of no use.
    pub fn write_certificate(&self, identity: &NodeIdentity, root_pem: &str) -> Result<(), StartError> {
        self.replace("pki/node.crt", identity.chain_pem().as_bytes())?;
        self.replace("pki/root.crt", root_pem.as_bytes())
    }

    /// Replaces the node's key and its chain, so that a crash leaves either both old ones or both new ones. What else is in
    /// the key file stays.
    pub fn renew_identity(&self, identity: &NodeIdentity, keys: &KeyStore) -> Result<(), StartError> {
        let pki = self.path.join("pki");
        let what = || format!("cannot write {}", pki.join("node.crt").display());
        let internal = |error: io::Error| StartError::new(StartFailure::Internal, what(), error, MEND);
        let write_key = || keys.replace_node_key(identity.key().clone());
        let replace = || agent::files::replace(self.disk.as_ref(), &pki, identity.chain_pem(), write_key);
        wal::with_reserve(self.disk.as_ref(), &self.raft(), replace).map_err(internal)
    }

    /// Finishes or undoes a replacement of key and chain that a crash cut off. `unlock` opens a key file that is locked.
    pub fn recover_identity(&self, unlock: Option<&UnlockKey>) -> Result<(), StartError> {
        let belongs = |chain: &str| -> Result<bool, Unfinished> {
            let file = keys::open(&self.path, unlock).map_err(Unfinished::Key)?;
            Ok(file.is_some_and(|file| NodeIdentity::new(chain, file.node_key).is_ok()))
        };
        match agent::files::recover(self.disk.as_ref(), &self.path.join("pki"), belongs) {
            Ok(true) => log::info!("a new certificate was almost in place when the node ended: it is now"),
            Ok(false) => {}
            Err(Unfinished::Key(error)) => return Err(error),
            Err(Unfinished::Io(error)) => {
                let what = format!("cannot look for a new certificate in {}", self.path.join("pki").display());
                return Err(StartError::new(StartFailure::Internal, what, error, MEND));
            }
        }
        Ok(())
    }

    /// A text file of the directory, if it is there.
    pub fn read_text(&self, name: &str) -> Result<Option<String>, StartError> {
        match std::fs::read_to_string(self.path.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                let what = format!("cannot read {}", self.path.join(name).display());
                Err(StartError::new(StartFailure::Internal, what, error, MEND))
            }
        }
    }

    /// Moves the log of a node that is no longer a member aside, so that the directory cannot take part any more and
    /// nothing is lost; the new place. What was moved aside before goes: the swarm that took the node in again
    /// has all that it held, and a node that is promoted and demoted again and again must not fill its disk.
    pub fn retire(&self, now_ms: u64) -> io::Result<PathBuf> {
        let before = self.all_retired();
        let aside = self.path.join(format!("{RETIRED}{now_ms}"));
        std::fs::rename(self.raft(), &aside)?;
        self.disk.sync_dir(&self.path)?;
        for old in before.map(|name| self.path.join(name)).filter(|old| *old != aside) {
            if let Err(error) = std::fs::remove_dir_all(&old) {
                log::warn!("{} cannot be removed: {error}", old.display());
            }
        }
        Ok(aside)
    }

    /// Where [`Self::retire`] has moved the log of a node that is no longer a member, if it has.
    pub fn retired(&self) -> Option<String> {
        self.all_retired().next()
    }

    fn all_retired(&self) -> impl Iterator<Item = String> + use<> {
        let names = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        let names: Vec<_> = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.into_iter().filter(|name| name.starts_with(RETIRED))
    }
}

/// Why an unfinished replacement could not be judged.
enum Unfinished {
    Key(StartError),
    Io(io::Error),
}

impl From<io::Error> for Unfinished {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// `node.json` as it is written.
pub fn encode(file: &NodeFile) -> Vec<u8> {
    serde_json::to_vec_pretty(file).expect("plain data")
}

/// Whether the directory says that its node has become a part of a swarm, a manager or a worker. False also when it cannot be read: whoever starts from
/// it will be told why.
pub fn is_member(path: &Path) -> bool {
    matches!(phase(path), Some(Phase::Member | Phase::Worker))
}

/// How far the directory says that its node has come; `None` also when it cannot be read.
pub(super) fn phase(path: &Path) -> Option<Phase> {
    #[derive(Deserialize)]
    struct Start {
        phase: Phase,
    }
    let bytes = std::fs::read(path.join(NODE_FILE)).ok()?;
    serde_json::from_slice(&bytes).ok().map(|start: Start| start.phase)
}

/// Whether an empty directory may hold a file of this name.
pub(super) fn is_harmless(name: &str) -> bool {
    HARMLESS.contains(&name)
}

/// Creates a directory and what is missing above it, each with its name durable: what is acknowledged lies below them.
fn create(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    // That of the last one always: whoever made it may have been killed before it was.
    let is_new = |at: &&Path| *at == path || !at.as_os_str().is_empty() && !at.exists();
    let new: Vec<&Path> = path.ancestors().take_while(is_new).collect();
    disk.create_dir(path)?;
    for path in new {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match disk.sync_dir(parent) {
            // One may make a directory where one may not read, and some file systems sync none.
            Err(error) if !matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput) => {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_count_of_starts_that_could_not_be_raised_is_damage() {
        let root = tempfile::tempdir().unwrap();
        let dir = DataDir::open(root.path()).unwrap();
        let file = |boot| NodeFile { boot, ..NodeFile::new(Phase::Member, Profile::Lan) };
        dir.write(&file(u64::MAX - 1)).unwrap();
        assert_eq!(dir.read().unwrap(), Some(file(u64::MAX - 1)));
        dir.write(&file(u64::MAX)).unwrap();
        let error = dir.read().unwrap_err();
        assert_eq!(error.failure, StartFailure::Damaged);
        assert!(error.to_string().contains("counts more starts than there can have been"), "{error}");
    }

    #[test]
    fn of_the_logs_that_are_moved_aside_only_the_newest_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let dir = DataDir::open(root.path()).unwrap();
        assert_eq!(dir.retired(), None);
        // A clock may be set back between two demotions.
        for time in [7, 9, 8] {
            std::fs::create_dir(dir.raft()).unwrap();
            std::fs::write(dir.raft().join("wal-00000001"), time.to_string()).unwrap();
            let aside = dir.retire(time).unwrap();
            assert_eq!(std::fs::read_to_string(aside.join("wal-00000001")).unwrap(), time.to_string());
            assert_eq!(dir.all_retired().collect::<Vec<_>>(), [format!("raft.removed-{time}")]);
            assert!(!dir.raft().exists());
        }
    }
}
