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
//! [`Locksmith`] decides; [`spawn`] gives it a thread, the store and the files.

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
pub struct Locksmith {
    /// When raft was asked last, and when it is asked again.
    asked: Option<(Instant, Duration)>,
    /// The last look at the files found that only logs kept aside need old keys.
    rests_until: Option<Instant>,
    /// The contradiction that was told of.
    contradiction: Option<Revision>,
}

impl Locksmith {
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

/// Starts the thread `locksmith`. It ends when all senders are gone.
pub fn spawn(surroundings: Surroundings, metrics: &Metrics) -> io::Result<(Sender<Order>, Thread)> {
    let (sender, inbox) = bounded(4, metrics.queue("locksmith"));
    let thread = thread::spawn("locksmith", move || {
        let mut locksmith = Locksmith::default();
        let mut told = None;
        loop {
            match surroundings.look(&mut locksmith) {
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
    fn look(&self, locksmith: &mut Locksmith) -> Result<(), Failed> {
        let word = self.store.view(|state| state.cluster().and_then(word));
        loop {
            let (now, file) = (monotonic(), self.keys.file());
            let needed = locksmith.wants_needed(now, &file).then(|| self.needed(&file)).transpose()?;
            match locksmith.step(now, &file, word.as_ref(), needed.as_ref()) {
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
                    log::info!(
                        "what is written from now on is sealed with data key {id:016x}; the one before goes when it can"
                    );
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::pki::generate_key;
    use crate::sys::entropy::SeededEntropy;
    use crate::types::Lineage;
    use crate::types::log::Configuration;
    use crate::types::{Position, RaftId, Term};
    use crate::wal::tests::disk::TestDisk;
    use crate::wal::{HardState, Options, Persist, SnapshotMark, SnapshotWriter, Wal};

    fn key(byte: u8) -> DataKey {
        DataKey::from_bytes([byte; 32])
    }

    fn file(keys: &[u8], rotate: bool) -> KeyFile {
        let new = KeyFile::new(generate_key(&mut SeededEntropy::new(1)), key(1));
        KeyFile { data_keys: keys.iter().map(|byte| key(*byte)).collect(), rotate, ..new }
    }

    fn needed(live: &[u8], aside: &[u8]) -> Needed {
        let ids = |keys: &[u8]| keys.iter().map(|byte| key(*byte).id()).collect();
        Needed { live: ids(live), aside: ids(aside), unknown: false }
    }

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(1) + Duration::from_millis(ms)
    }

    fn word(byte: Option<u8>, version: u64) -> Lock {
        Lock { key: byte.map(|byte| UnlockKey::from_bytes(&[byte; 32]).unwrap()), version: Revision(version) }
    }

    #[test]
    fn the_swarms_word_is_followed_first_and_a_contradiction_told_once() {
        let mut locksmith = Locksmith::default();
        let mut now = file(&[1], false);
        assert_eq!(locksmith.step(at(0), &now, None, None), Step::Rest);
        assert_eq!(locksmith.step(at(0), &now, Some(&word(None, 9)), None), Step::Rest);
        assert_eq!(locksmith.step(at(0), &now, Some(&word(Some(5), 9)), None), Step::Follow(word(Some(5), 9)));
        now.follow(word(Some(5), 9));
        assert_eq!(locksmith.step(at(0), &now, Some(&word(Some(5), 11)), None), Step::NewDataKey);
        now.rotate = false;
        assert_eq!(locksmith.step(at(0), &now, Some(&word(Some(6), 9)), None), Step::Contradiction(Revision(9)));
        assert_eq!(locksmith.step(at(0), &now, Some(&word(Some(6), 9)), None), Step::Rest);
        assert_eq!(locksmith.step(at(0), &now, Some(&word(Some(6), 8)), None), Step::Rest);
        assert_eq!(locksmith.step(at(0), &now, Some(&word(None, 10)), None), Step::Follow(word(None, 10)));
    }

    #[test]
    fn an_old_key_is_forgotten_when_nothing_needs_it_and_raft_is_asked_until_then() {
        let mut locksmith = Locksmith::default();
        let now = file(&[2, 1], false);
        assert!(locksmith.wants_needed(at(0), &now));
        let step = |locksmith: &mut Locksmith, ms, needed: &Needed| locksmith.step(at(ms), &now, None, Some(needed));
        assert_eq!(step(&mut locksmith, 0, &needed(&[1, 2], &[])), Step::Retire);
        assert_eq!(step(&mut locksmith, 1, &needed(&[1, 2], &[])), Step::Tidy);
        assert_eq!(step(&mut locksmith, 10_000, &needed(&[1], &[])), Step::Retire);
        assert_eq!(step(&mut locksmith, 20_000, &needed(&[1], &[])), Step::Tidy);
        assert_eq!(step(&mut locksmith, 30_000, &needed(&[1], &[])), Step::Retire);
        let unknown = Needed { unknown: true, ..needed(&[2], &[]) };
        assert_eq!(step(&mut locksmith, 31_000, &unknown), Step::Rest);
        assert_eq!(step(&mut locksmith, 31_000, &needed(&[2], &[])), Step::Forget(BTreeSet::new()));
        let mut file = now.clone();
        forget(&mut file, &BTreeSet::new());
        assert_eq!(file.data_keys, [key(2)]);
        assert!(!locksmith.wants_needed(at(0), &file));
    }

    #[test]
    fn one_key_is_replaced_at_a_time_and_a_log_kept_aside_holds_up_nothing() {
        let mut locksmith = Locksmith::default();
        let asked_again = file(&[2, 1], true);
        let mut step = |ms, file: &KeyFile, needed: &Needed| locksmith.step(at(ms), file, None, Some(needed));
        assert_eq!(step(0, &asked_again, &needed(&[1, 2], &[])), Step::Retire);
        assert_eq!(step(1, &asked_again, &needed(&[2], &[1])), Step::NewDataKey);
        let third = file(&[3, 2, 1], false);
        assert_eq!(step(2, &third, &needed(&[2], &[1])), Step::Retire);
        let kept: BTreeSet<u64> = [key(1).id()].into();
        assert_eq!(step(3, &third, &needed(&[3], &[1])), Step::Forget(kept.clone()));
        let mut left = third;
        forget(&mut left, &kept);
        assert_eq!(left.data_keys, [key(3), key(1)]);
        assert_eq!(step(4, &left, &needed(&[3], &[1])), Step::Rest);
        assert!(!locksmith.wants_needed(at(5), &left) && locksmith.wants_needed(at(70_000), &left));
        let mut step = |ms, file: &KeyFile, needed: &Needed| locksmith.step(at(ms), file, None, Some(needed));
        assert_eq!(step(70_000, &left, &needed(&[3], &[])), Step::Forget(BTreeSet::new()));
    }

    const LINEAGE: Lineage = Lineage(0x5ee9);

    fn dir() -> &'static Path {
        Path::new("skep")
    }

    /// The key file on a disk, as the next start reads it.
    fn stored(disk: &TestDisk, unlock: &UnlockKey) -> KeyFile {
        use crate::pki::keyfile::{Read, read};
        let text = crate::sys::files::read(disk, &dir().join(super::super::keys::KEY_FILE)).unwrap();
        match read(std::str::from_utf8(&text).unwrap()).unwrap() {
            Read::Open(file) => file,
            Read::Locked(locked) => locked.unlock(unlock).unwrap(),
        }
    }

    /// A life of a manager that is told to lock: it writes, follows, and replaces its data key, until it is done or the power
    /// fails. How many entries it has acknowledged.
    fn live(disk: &TestDisk, word: &Lock, seed: u64) -> (u64, Result<(), Failed>) {
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let unlock = UnlockKey::from_bytes(&[5; 32]).unwrap();
        let keys = KeyStore::new(shared.clone(), dir(), stored(disk, &unlock));
        let raft = dir().join("raft");
        let options = Options { segment_bytes: 4096, lineage: LINEAGE };
        let entropy = Box::new(SeededEntropy::new(seed));
        let mut acknowledged = 0;
        let run = || -> Result<(), Failed> {
            let (mut wal, recovered) = Wal::open_with(shared.clone(), &raft, keys.keyring(), options, entropy, false)?;
            let mut last = recovered.last.index.0;
            acknowledged = last;
            let mut locksmith = Locksmith::default();
            for turn in 0..60 {
                last += 1;
                let mut entry = ::raft::eraftpb::Entry::default();
                (entry.term, entry.index, entry.data) = (1, last, vec![7; 300].into());
                let hard_state = HardState { term: Term(1), vote: RaftId(1), commit: Index(last) };
                let persist = Persist {
                    number: last,
                    entries: vec![entry],
                    hard_state: Some(hard_state),
                    snapshot: None,
                    must_sync: true,
                };
                wal.write(&[persist])?;
                acknowledged = last;
                let file = keys.file();
                let needed = locksmith
                    .wants_needed(at(turn * 500), &file)
                    .then(|| super::needed(shared.as_ref(), &raft, &[], &keys, &file));
                match locksmith.step(at(turn * 500), &file, Some(word), needed.transpose()?.as_ref()) {
                    Step::Rest if file.data_keys.len() == 1 && !file.rotate => return Ok(()),
                    Step::Rest | Step::Contradiction(_) => {}
                    Step::Follow(word) => keys.change(|file| file.follow(word))?,
                    Step::NewDataKey => keys.change(|file| {
                        file.data_keys.insert(0, key(100 + (seed % 100) as u8));
                        file.rotate = false;
                    })?,
                    Step::Retire | Step::Tidy => {
                        // What raft and the snapshot thread do then.
                        let position = Position { term: Term(1), index: Index(last) };
                        let members = Configuration { voters: vec![RaftId(1)], learners: Vec::new() };
                        let ring = keys.keyring();
                        let mut writer =
                            SnapshotWriter::create(shared.clone(), &raft, &ring, LINEAGE, position, &members)?;
                        writer.write_chunk(b"the state")?;
                        writer.finish()?;
                        let snapshot = Some(SnapshotMark::Created(position));
                        wal.write(&[Persist { number: last, snapshot, must_sync: true, ..Persist::default() }])?;
                        wal.compact(Index(last + 1))?;
                        wal::remove_snapshots_before(shared.as_ref(), &raft, position.index)?;
                    }
                    Step::Forget(kept) => {
                        shared.sync_dir(&raft)?;
                        keys.change(|file| forget(file, &kept))?;
                    }
                }
            }
            Ok(())
        };
        let ended = run();
        (acknowledged, ended)
    }

    #[test]
    fn a_power_cut_at_any_call_of_locking_and_rotation_loses_nothing_and_the_next_start_ends_it() {
        let unlock = UnlockKey::from_bytes(&[5; 32]).unwrap();
        let mut random = SeededEntropy::new(3);
        let mut interrupted = 0;
        for budget in 0.. {
            let mut disk = TestDisk::new();
            let shared: Arc<dyn Disk> = Arc::new(disk.clone());
            shared.create_dir(dir()).unwrap();
            KeyStore::create(shared, dir(), file(&[1], false)).unwrap();
            // A first life in the clear, so that there is something to lose.
            let (before, ended) = live(&disk, &word(None, 0), 1);
            ended.unwrap();
            assert!(before > 0);
            disk.set_budget(budget);
            let (mut acknowledged, ended) = live(&disk, &word(Some(5), 9), 2);
            acknowledged = acknowledged.max(before);
            let done = ended.is_ok();
            interrupted += u64::from(!done);
            disk = disk.crash_at_random(&mut random);
            // And once more within what the next start does.
            if !done {
                disk.set_budget(random.below(40));
                let (again, _) = live(&disk, &word(Some(5), 9), 3);
                acknowledged = acknowledged.max(again);
                disk = disk.crash_at_random(&mut random);
            }
            let (found, ended) = live(&disk, &word(Some(5), 9), 4);
            ended.unwrap_or_else(|error| panic!("after {budget} operations: {error}"));
            assert!(found > acknowledged, "{budget}: {found} of {acknowledged}");
            let last = stored(&disk, &unlock);
            assert_eq!((last.data_keys.len(), last.rotate, &last.lock), (1, false, &word(Some(5), 9)), "{budget}");
            assert!(last.renew && last.data_keys[0] != key(1), "{budget}");
            let named = wal::named_keys(&disk, &dir().join("raft")).unwrap();
            assert_eq!(named.ids, [last.data_keys[0].id()].into(), "{budget}");
            if done {
                break;
            }
        }
        assert!(interrupted > 30, "{interrupted}");
    }
}
