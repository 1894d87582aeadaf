//! Keeps the key file as the swarm wants it: sealed under the unlock key or not, and with data keys that were never seen in
//! the clear.
//!
//! Every manager follows its own store: the cluster object says whether managers lock, and under which key. What it says is
//! followed when it is newer than what was followed before (`pki::keyfile`), and then the data key and the private key are
//! to be replaced, because a copy of the file as it was may be somewhere.
//!
//! A data key is replaced while the manager works, in steps of which each is durable before the next:
//!
//! 1. the new key is in the key file, before the old ones;
//! 2. from then on everything that is begun is sealed with it: the next segment, the next snapshot;
//! 3. raft writes a snapshot and lets go of the log before it, whoever lags;
//! 4. when no file of the log names an old key and nobody works with one, the old key leaves the key file.
//!
//! Where the replacement stands is written nowhere: the key file and the names of keys in the log's files tell, so that a
//! crash at any point is gone on from. One is under way at a time; what asks for another meanwhile sets a mark in the key
//! file, and is served after it. A log that was kept aside (`raft.before-…`) keeps its key in the key file, too, for as long
//! as it is there; that holds up nothing.
//!
//! [`Keeper`] decides; [`spawn`] gives it a thread, the store and the files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use super::keys::KeyStore;
use super::snapshots::Job;
use crate::pki::keyfile::{Lock, Word};
use crate::pki::seal::DataKey;
use crate::pki::{KeyFile, UnlockKey};
use crate::raft::Event;
use crate::raft::run::{Handle, Input};
use crate::store::Store;
use crate::sys::entropy::OsEntropy;
use crate::sys::files::Disk;
use crate::sys::metrics::Metrics;
use crate::sys::queue::{Received, Sender, bounded};
use crate::sys::thread::{self, Thread};
use crate::sys::time::{Instant, monotonic};
use crate::types::object::Cluster;
use crate::types::{Index, Revision};
use crate::wal::{self, LogReader};

/// Between two looks at the store, and at the files while a key is being replaced.
const LOOK: Duration = Duration::from_millis(500);
/// Between two looks at files when only logs that were kept aside need an old key.
const LOOK_ASIDE: Duration = Duration::from_secs(60);
/// Raft is asked again for what is still there after this, then after twice as long, up to [`ASK_AGAIN_MAX`].
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// See [`ASK_AGAIN`].
const ASK_AGAIN_MAX: Duration = Duration::from_secs(600);

/// What others ask for. The thread ends when all senders are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// A new data key.
    RotateDataKey,
}

/// Who still needs the old data keys, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needed {
    /// The log and the snapshots, or somebody at work in this process.
    pub live: BTreeSet<u64>,
    /// Logs that were kept aside.
    pub aside: BTreeSet<u64>,
    /// There are files that do not say.
    pub unknown: bool,
}

/// What is to be done now; one thing at a time, each seen before the next is decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// Follow the swarm's word about the lock.
    Follow(Lock),
    /// Say that the swarm's word contradicts itself.
    Contradiction(Revision),
    /// Make a new data key.
    NewDataKey,
    /// Ask raft to let go of what is sealed with old keys.
    Retire,
    /// Meanwhile remove the snapshots that nothing rests on any more.
    Tidy,
    /// Forget the old data keys but these.
    Forget(BTreeSet<u64>),
}

/// Decides what the key file needs. Touches nothing.
#[derive(Debug, Default)]
pub struct Keeper {
    /// When raft was asked last, and when it is asked again.
    asked: Option<(Instant, Duration)>,
    /// The last look at the files found that only logs kept aside need old keys.
    rests_until: Option<Instant>,
    /// The contradiction that was told of.
    contradiction: Option<Revision>,
}

impl Keeper {
    /// Whether [`Self::step`] wants to know who needs the old keys.
    pub fn wants_needed(&self, now: Instant, file: &KeyFile) -> bool {
        file.data_keys.len() > 1 && self.rests_until.is_none_or(|until| now >= until || file.rotate)
    }

    /// What to do, given the key file, the swarm's word about the lock, and who needs the old keys if that is known.
    pub fn step(&mut self, now: Instant, file: &KeyFile, word: Option<&Lock>, needed: Option<&Needed>) -> Step {
        match word.map(|word| (word, file.lock.judge(word))) {
            Some((word, Word::New)) => return Step::Follow(word.clone()),
            Some((word, Word::Contradiction)) if self.contradiction != Some(word.version) => {
                self.contradiction = Some(word.version);
                return Step::Contradiction(word.version);
            }
            _ => {}
        }
        let old: BTreeSet<u64> = file.data_keys.iter().skip(1).map(DataKey::id).collect();
        if old.is_empty() {
            self.asked = None;
            return if file.rotate { Step::NewDataKey } else { Step::Rest };
        }
        let Some(needed) = needed else { return Step::Rest };
        if !old.is_disjoint(&needed.live) {
            self.rests_until = None;
            let (at, pause) = self.asked.unwrap_or((now, Duration::ZERO));
            if now < at + pause {
                return Step::Tidy;
            }
            self.asked = Some((now, (pause * 2).clamp(ASK_AGAIN, ASK_AGAIN_MAX)));
            return Step::Retire;
        }
        if needed.unknown {
            return Step::Rest;
        }
        self.asked = None;
        if !old.is_subset(&needed.aside) {
            return Step::Forget(old.intersection(&needed.aside).copied().collect());
        }
        self.rests_until = Some(now + LOOK_ASIDE);
        if file.rotate { Step::NewDataKey } else { Step::Rest }
    }
}

/// The swarm's word about the lock. `None` when its key is no key.
pub fn word(cluster: &Cluster) -> Option<Lock> {
    let key = match cluster.unlock_key() {
        Some(key) => Some(UnlockKey::from_bytes(&key.0)?),
        None => None,
    };
    Some(Lock { key, version: cluster.meta.version })
}

/// Where the thread looks and whom it talks to.
#[derive(Debug)]
pub struct Surroundings {
    /// The key file.
    pub keys: KeyStore,
    /// What the swarm wants.
    pub store: Arc<Store>,
    /// The disk that the log is on.
    pub disk: Arc<dyn Disk>,
    /// The data directory.
    pub dir: PathBuf,
    /// How far the log is.
    pub log: LogReader,
    /// Lets go of log.
    pub raft: Handle,
    /// Lets go of snapshots.
    pub snapshots: Sender<Job>,
}

/// Starts the thread `keeper`. It ends when all senders are gone.
pub fn spawn(surroundings: Surroundings, metrics: &Metrics) -> io::Result<(Sender<Order>, Thread)> {
    let (sender, inbox) = bounded(4, metrics.queue("keeper"));
    let thread = thread::spawn("keeper", move || {
        let mut keeper = Keeper::default();
        let mut told = None;
        loop {
            match surroundings.look(&mut keeper) {
                Ok(()) => told = None,
                Err(error) => {
                    // Once for each reason: the next look is soon.
                    let error = error.to_string();
                    if told.as_ref() != Some(&error) {
                        log::error!("the key file cannot be kept as it should be: {error}; trying again");
                        told = Some(error);
                    }
                }
            }
            match inbox.recv_until(monotonic() + LOOK) {
                Received::Item(Order::RotateDataKey) => {
                    if let Err(error) = surroundings.keys.change(|file| file.rotate = true) {
                        log::error!("the data key cannot be replaced: the key file cannot be written: {error}");
                    }
                }
                Received::TimedOut => {}
                Received::Closed => return,
            }
        }
    })?;
    Ok((sender, thread))
}

impl Surroundings {
    /// Does what is to be done, until there is nothing more for now.
    fn look(&self, keeper: &mut Keeper) -> Result<(), Failed> {
        let word = self.store.view(|state| state.cluster().and_then(word));
        loop {
            let (now, file) = (monotonic(), self.keys.file());
            let needed = keeper.wants_needed(now, &file).then(|| self.needed(&file)).transpose()?;
            match keeper.step(now, &file, word.as_ref(), needed.as_ref()) {
                Step::Rest => return Ok(()),
                Step::Follow(word) => {
                    self.keys.change(|file| file.follow(word.clone()))?;
                    match word.key {
                        Some(_) => log::info!("the keys of this manager are locked from its next start on"),
                        None => log::info!("the keys of this manager are not locked any more"),
                    }
                }
                Step::Contradiction(version) => log::error!(
                    "the swarm's settings of version {version} name another unlock key than before: they are not followed"
                ),
                Step::NewDataKey => {
                    let key = DataKey::generate(&mut OsEntropy);
                    let id = key.id();
                    self.keys.change(|file| {
                        file.data_keys.insert(0, key);
                        file.rotate = false;
                    })?;
                    log::info!("what is written from now on is sealed with data key {id:016x}; the one before goes when it can");
                    // What is being written at this moment may still be sealed with the one before: it is seen next time.
                    return Ok(());
                }
                Step::Tidy => {
                    // A full queue means that a snapshot is being written: this is asked again.
                    let _ = self.snapshots.try_send(Job::Tidy);
                    return Ok(());
                }
                Step::Retire => {
                    self.raft.internal(Input::Event(Event::Retire { upto: self.log.last().index.max(Index(1)) }));
                    return Ok(());
                }
                Step::Forget(kept) => {
                    // A file that was removed must not come back after its key is gone.
                    self.disk.sync_dir(&self.dir.join("raft"))?;
                    self.keys.change(|file| forget(file, &kept))?;
                    log::info!("the data keys before are forgotten: nothing is sealed with them any more");
                }
            }
        }
    }

    fn needed(&self, file: &KeyFile) -> Result<Needed, Failed> {
        needed(self.disk.as_ref(), &self.dir.join("raft"), &asides(&self.dir), &self.keys, file)
    }
}

/// Who needs which of the file's old keys.
pub fn needed(
    disk: &dyn Disk,
    raft: &Path,
    asides: &[PathBuf],
    keys: &KeyStore,
    file: &KeyFile,
) -> Result<Needed, Failed> {
    let keyring = keys.keyring();
    // Before the files are looked at: nobody begins to work with an old key, and who has stopped has left a file or none.
    let held = file.data_keys.iter().skip(1).map(DataKey::id).filter(|id| keyring.is_held(*id));
    let mut needed = Needed { live: held.collect(), ..Needed::default() };
    let named = wal::named_keys(disk, raft)?;
    needed.unknown = named.unknown.is_some();
    needed.live.extend(named.ids);
    for aside in asides {
        let named = wal::named_keys(disk, aside)?;
        needed.aside.extend(named.ids);
    }
    Ok(needed)
}

/// Takes all data keys out of the file but the newest and those of these ids.
pub fn forget(file: &mut KeyFile, kept: &BTreeSet<u64>) {
    let newest = file.data_keys[0].id();
    file.data_keys.retain(|key| key.id() == newest || kept.contains(&key.id()));
}

/// Logs that were kept aside in a data directory.
fn asides(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("raft."))
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

/// Why the key file is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// A file could not be written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The log's files could not be looked at.
    #[error(transparent)]
    Log(#[from] wal::WalError),
}
