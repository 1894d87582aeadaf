//! `skep recover`: a swarm of one manager from the directory of one that lost its majority.
//!
//! Offline: the directory's lock is held, and nobody is asked. All of the log is taken, also what lies behind the last
//! entry known to be committed, because the members that are gone may have acknowledged it: an entry too many is one that
//! a caller was not told of, an entry too few is one that a caller relied on.
//!
//! When the log is damaged so that no part of it stands by itself, the newest snapshot that is whole may still be
//! ([`Basis::Snapshot`]). That leaves out what the log has after it, and so is done only on request.
//!
//! The old log is read without changing it and stays beside the new one. Until `rebuild::replace_log` has decided, the
//! directory is what it was.
//!
//! Managers of the former history are kept out by its lineage: none of their messages is looked at. One that
//! meets this one says so and goes on, and stops only when it has had no leader for minutes, because a recovery on the wrong
//! side of a cut must not end a healthy swarm. Join tokens, the root certificate and the swarm's id stay.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::dir::{DataDir, NodeFile, Phase};
use super::found::Keys;
use super::rebuild::{self, Heir, NEXT_LOG, ReplaceError};
use super::{StartError, StartFailure, open, start};
use crate::ca;
use crate::pki::UnlockKey;
use crate::raft::recover::Snapshots;
use crate::store::State;
use crate::sys::entropy::{Entropy, OsEntropy};
use crate::sys::files::{Disk, RealDisk};
use crate::sys::time::wall_ms;
use crate::types::object::Node;
use crate::types::{
    ClusterId, Index, Kind, Lineage, Member, NodeId, Object, Position, RaftId, Revision, Status, Term, Timestamp,
};
use crate::wal::{self, WalError};

/// What a recovery begins from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// Snapshot and log, all of it.
    Log,
    /// The newest snapshot that is whole, and nothing of the log.
    Snapshot,
}

/// A directory that can be recovered, locked and read. Nothing of it has been changed.
#[derive(Debug)]
pub struct Recovery {
    dir: DataDir,
    file: NodeFile,
    keys: Keys,
    state: State,
    voted: Term,
    known: Revision,
    found: Found,
}

/// What the directory holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The manager.
    pub node_id: NodeId,
    /// The swarm.
    pub cluster_id: ClusterId,
    /// Its history.
    pub lineage: Lineage,
    /// The last entry of the log.
    pub last: Position,
    /// Entries after the last one that this manager knew to be committed; they are taken too.
    pub uncommitted: u64,
    /// An unfinished last write, of which nothing was acknowledged, is left out.
    pub unfinished: bool,
    /// Only a snapshot is taken, and `last` is the entry that it was made at.
    pub from_snapshot: bool,
    /// The log has entries up to this one, or more, which are left out.
    pub left_out: Option<Index>,
    /// The revision of the state with all of the log applied.
    pub revision: Revision,
    /// The members, with their names; this one among them, if it was one.
    pub members: Vec<(Member, String)>,
    /// How many objects there are of each kind that has any.
    pub objects: Vec<(Kind, u64)>,
    /// Where this manager listened.
    pub addr: String,
}

/// The new swarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Its history.
    pub lineage: Lineage,
    /// The history before.
    pub parent: Lineage,
    /// The manager's new place.
    pub raft_id: RaftId,
    /// Where it says it listens.
    pub addr: String,
    /// The revision that the new history begins with.
    pub revision: Revision,
    /// Where the old log is now.
    pub aside: PathBuf,
}

impl Recovery {
    /// Locks the directory, finishes a recovery that was interrupted after it had been decided, and reads everything.
    /// `unlock` opens a key file that is locked. Whether the certificate is in force does not matter.
    pub fn open(path: &Path, basis: Basis, unlock: Option<&UnlockKey>) -> Result<Self, StartError> {
        Self::open_on(Arc::new(RealDisk), path, basis, unlock)
    }

    fn open_on(disk: Arc<dyn Disk>, path: &Path, basis: Basis, unlock: Option<&UnlockKey>) -> Result<Self, StartError> {
        let what = || format!("cannot recover {}", path.display());
        let nothing =
            |why: &str| StartError::refused(what(), why, "name the data directory of a manager with --data-dir");
        // A directory that is missing is not made.
        if !path.is_dir() {
            return Err(nothing("there is no such directory"));
        }
        let dir = DataDir::open_on(disk.clone(), path)?;
        let Some(file) = dir.read()? else { return Err(nothing("no manager has kept anything there")) };
        if file.phase != Phase::Member {
            let hint = match file.phase {
                Phase::Restoring => "finish the restore that was begun there: `skep backup restore FILE`",
                _ => "start it with `skep run`, or remove the directory",
            };
            return Err(StartError::refused(what(), "its manager never became a member of a swarm", hint));
        }
        let attempted = |error| StartError { what: what(), ..error };
        let keys = open::member_keys(&dir, &file, unlock).map_err(attempted)?;
        let lineage = open::lineage(&dir, &file).map_err(attempted)?;
        let snapshots = Snapshots { disk, dir: dir.raft(), keys: keys.store.keyring(), lineage };
        let read = match basis {
            Basis::Log => read_log(&dir, &snapshots, open::segment_bytes(file.profile))?,
            Basis::Snapshot => read_snapshot(&dir, &snapshots)?,
        };
        let Read { state, known, voted, last, uncommitted, unfinished, left_out } = read;
        let certificate = *keys.identity.identity();
        if state.cluster().is_none() {
            let hint = "move the whole directory aside and join again with --join and a token";
            let why = "the swarm's data has not reached this manager yet: there is nothing to recover";
            return Err(StartError::refused(what(), why, hint));
        }
        let named = |member: &Member| (member.clone(), name(&state, member.node_id));
        let own = state.member_of(certificate.node_id);
        let found = Found {
            node_id: certificate.node_id,
            cluster_id: certificate.cluster_id,
            lineage,
            last,
            uncommitted,
            unfinished,
            from_snapshot: basis == Basis::Snapshot,
            left_out,
            revision: state.revision(),
            members: state.members().values().map(named).collect(),
            objects: objects(&state),
            addr: own.map(|member| member.addr.clone()).unwrap_or_default(),
        };
        Ok(Self { dir, file, keys, state, voted, known, found })
    }

    /// What the directory holds.
    pub const fn found(&self) -> &Found {
        &self.found
    }

    #[cfg(test)]
    pub(super) fn into_state(self) -> State {
        self.state
    }

    /// Makes the new swarm. `advertise` is where its manager listens from now on; without it, where it did before.
    pub fn carry_out(self, advertise: Option<String>) -> Result<Recovered, StartError> {
        let segment_bytes = open::segment_bytes(self.file.profile);
        self.carry_out_with(segment_bytes, advertise)
    }

    fn carry_out_with(self, segment_bytes: u64, advertise: Option<String>) -> Result<Recovered, StartError> {
        let what = format!("cannot recover {}", self.dir.path().display());
        let failed = |why: &dyn std::fmt::Display| {
            let hint = "nothing was lost: make room or mend the disk, and give the same command again";
            StartError::new(StartFailure::Internal, &what, why, hint)
        };
        let Self { dir, file, keys, state, voted, known, found } = self;
        let mut entropy = OsEntropy;
        let node =
            renew(&dir, &keys, &state, &mut entropy).map_err(|error| StartError { what: what.clone(), ..error })?;
        let (lineage, now_ms) = (Lineage(entropy.next_u128()), wall_ms());
        let addr = advertise.unwrap_or(found.addr);
        let heir = Heir { node_id: found.node_id, addr: addr.clone(), node, voted, known };
        let (state, raft_id) = rebuild::succeed(state, lineage, heir, now_ms, &mut entropy);
        let revision = state.revision();
        let disk = dir.disk();
        let random: &dyn Fn() -> Box<dyn Entropy> = &|| Box::new(OsEntropy);
        let next = dir.path().join(NEXT_LOG);
        let give_up = |why: &dyn std::fmt::Display| {
            // What cannot be removed now is removed by the next attempt.
            let _ = std::fs::remove_dir_all(&next);
            failed(why)
        };
        rebuild::write_next(&disk, dir.path(), &keys.store.keyring(), &state, segment_bytes, random)
            .map_err(|error| give_up(&error))?;
        // Nothing else is taken over: whatever kept the former member from starting is about its log.
        let file = NodeFile {
            node_id: Some(found.node_id),
            cluster_id: Some(found.cluster_id),
            raft_id: Some(raft_id),
            lineage: Some(lineage),
            parent_lineage: Some(found.lineage),
            boot: file.boot,
            ..NodeFile::new(Phase::Member, file.profile)
        };
        let aside = aside(now_ms);
        rebuild::replace_log(disk.as_ref(), dir.path(), &file, &aside).map_err(|error| match error {
            ReplaceError::Undecided(error) => give_up(&error),
            ReplaceError::Decided(error) => {
                let what = format!("cannot finish the recovery of {}", dir.path().display());
                let hint = "nothing is lost, and the new swarm is decided on: make room or mend the disk, and start the \
                            manager with `skep run`, which does the rest; do not recover it a second time";
                StartError::new(StartFailure::Internal, what, error, hint)
            }
        })?;
        Ok(Recovered { lineage, parent: found.lineage, raft_id, addr, revision, aside: dir.path().join(aside) })
    }
}

/// What there is to go on from.
struct Read {
    state: State,
    /// The newest revision known to be committed.
    known: Revision,
    /// The newest term that this manager may have voted in.
    voted: Term,
    last: Position,
    uncommitted: u64,
    unfinished: bool,
    left_out: Option<Index>,
}

/// All of the log.
fn read_log(dir: &DataDir, snapshots: &Snapshots, segment_bytes: u64) -> Result<Read, StartError> {
    let options = wal::Options { segment_bytes, lineage: snapshots.lineage };
    let (reader, recovered) = wal::look(snapshots.disk.as_ref(), &dir.raft(), snapshots.keys.clone(), &options)
        .map_err(|error| mendable(open::log_error(dir, &error)))?;
    let (state, known) =
        rebuild::read_all(&reader, &recovered, snapshots).map_err(|error| open::recover_error(dir, &error))?;
    Ok(Read {
        known,
        voted: recovered.hard_state.term,
        last: recovered.last.max(state.applied()),
        uncommitted: recovered.last.index.0.saturating_sub(recovered.hard_state.commit.max(first(&recovered)).0),
        unfinished: recovered.cut.is_some(),
        left_out: None,
        state,
    })
}

/// The newest snapshot that is whole. Of the log only what can still be read of its end and its terms.
fn read_snapshot(dir: &DataDir, snapshots: &Snapshots) -> Result<Read, StartError> {
    let error = |error: &WalError| open::log_error(dir, error);
    let disk = snapshots.disk.as_ref();
    let mut indexes = wal::list_snapshots(disk, &dir.raft()).map_err(|found| error(&found))?.into_iter().rev();
    let Some(state) = indexes.find_map(|index| snapshots.load(index).ok()) else {
        let what = format!("cannot recover {}", dir.path().display());
        let hint = "look at each with `skep snapshot inspect FILE`, and at the other managers with `skep recover \
                    --dry-run`; or begin from a backup with `skep backup restore FILE`";
        return Err(StartError::new(StartFailure::Damaged, what, "it holds no snapshot that is whole", hint));
    };
    let (mut voted, mut end) = (Term(0), Index(0));
    for found in wal::inspect(disk, &dir.raft(), Some(&snapshots.keys)).map_err(|found| error(&found))? {
        match found {
            wal::Found::Segment { header, .. } => {
                voted = voted.max(header.hard_state.term);
                end = end.max(header.last.index);
            }
            wal::Found::Batch { header, records, .. } => {
                if header.entries > 0 {
                    end = end.max(Index(header.first.saturating_add(u64::from(header.entries)).saturating_sub(1)));
                }
                let terms = records.iter().flatten().filter_map(|record| match record {
                    wal::Record::HardState(hard_state) => Some(hard_state.term),
                    _ => None,
                });
                voted = terms.fold(voted, Term::max);
            }
            _ => {}
        }
    }
    Ok(Read {
        known: state.revision(),
        voted,
        last: state.applied(),
        uncommitted: 0,
        unfinished: false,
        left_out: Some(end).filter(|end| *end > state.applied().index),
        state,
    })
}

/// A certificate in the place of one that is not in force: nobody else is left to ask. Signed for the key that there is, so
/// that one file is replaced; whatever becomes of the recovery, it is this node's and of the same root. The node that has
/// it, if there was need.
fn renew(dir: &DataDir, keys: &Keys, state: &State, entropy: &mut dyn Entropy) -> Result<Option<Node>, StartError> {
    let now_ms = wall_ms();
    if keys.identity.verify(&keys.root_pem, now_ms).is_ok() {
        return Ok(None);
    }
    let Some(cluster) = state.cluster() else { return Ok(None) };
    let node_id = keys.identity.identity().node_id;
    let description = match state.get(Kind::Node, node_id.into()).map(|stored| &stored.object) {
        Some(Object::Node(node)) => node.description.clone(),
        _ => start::describe(None),
    };
    let key = keys.store.file().node_key;
    let (node, identity) =
        ca::succeed_with(cluster, node_id, key, description, now_ms, entropy).map_err(|status: Status| {
            let why = format!("its certificate is not in force, and no other can be made: {}", status.message);
            StartError::refused("", why, "set this machine's clock, or begin from a backup: `skep backup restore FILE`")
        })?;
    dir.write_certificate(&identity, &cluster.root_ca.certificate)?;
    log::warn!("the certificate was not in force: this node has given itself another one");
    Ok(Some(node))
}

/// Damage is no reason to give up here: a log that is cut at it is what is left of the swarm.
fn mendable(error: StartError) -> StartError {
    if error.failure != StartFailure::Damaged {
        return error;
    }
    let hint = "look with `skep wal inspect DIR`; if no backup and no other manager has more, cut the log there with \
                `skep wal repair DIR`, and give this command again; `skep recover --dry-run` on the other managers that \
                are left tells what they have; with a backup: `skep backup restore FILE`";
    StartError { hint: hint.to_owned(), ..error }
}

/// Everything up to a snapshot is committed, whatever the hard state says.
fn first(recovered: &wal::Recovered) -> Index {
    recovered.snapshot.as_ref().map_or(Index(0), |snapshot| snapshot.position.index)
}

/// What the old log is called from then on, such as `raft.before-recover-20260131T235959123Z`.
fn aside(now_ms: u64) -> String {
    let time = Timestamp(now_ms).to_string();
    format!("raft.before-recover-{}", time.replace(['-', ':', '.'], ""))
}

/// A node's name for people.
fn name(state: &State, node_id: NodeId) -> String {
    match state.get(Kind::Node, node_id.into()).map(|stored| &stored.object) {
        Some(Object::Node(node)) => node.description.hostname.clone(),
        _ => String::new(),
    }
}

fn objects(state: &State) -> Vec<(Kind, u64)> {
    Kind::ALL.into_iter().map(|kind| (kind, state.count(kind) as u64)).filter(|(_, count)| *count > 0).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use ::raft::eraftpb::Entry;

    use super::*;
    use crate::node::{Config, Node as Manager};
    use crate::types::log::Command;
    use crate::types::object;
    use crate::types::{Change, ChangeId, ObjectId, Operation};
    use crate::wal::tests::faults::{FAULTS, FaultyDisk};
    use crate::wal::{HardState, Persist, Wal};

    /// The directory of a manager that has stopped.
    fn stopped() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let node = Manager::start(Config::local(dir.path())).unwrap();
        let mut client = node.client().unwrap();
        let write = crate::types::api::Write::CreateConfig {
            name: "motd".to_owned(),
            labels: Default::default(),
            data: b"x".to_vec(),
        };
        client.write(write, Duration::from_secs(30)).unwrap();
        node.stop(Duration::from_secs(5));
        dir
    }

    fn config(id: u128) -> Entry {
        let mut config = object::Config { id: ObjectId(id), ..object::Config::default() };
        config.spec.annotations.name = format!("c{id}");
        let operations = vec![Operation::Create(config.into())];
        let change = Change { id: ChangeId(id), after: Revision(0), time: Timestamp(5), term: None, operations };
        Entry { data: crate::apply::encode(&Command::Change(change)).into(), ..Entry::default() }
    }

    /// Appends entries that the manager never learns to be committed, in a later term in which it has voted.
    fn append_uncommitted(dir: &Path, count: u64) {
        let opened = DataDir::open(dir).unwrap();
        let file = opened.read().unwrap().unwrap();
        let key = opened.open_keys(None).unwrap().unwrap().keyring();
        let options = wal::Options { segment_bytes: wal::SEGMENT_BYTES, lineage: file.lineage.unwrap() };
        let (mut wal, recovered) = Wal::open(Arc::new(RealDisk), &opened.raft(), &key, options).unwrap();
        let Position { term, index } = recovered.last;
        let entries = (1..=count).map(|at| Entry { term: term.0, index: index.0 + at, ..config(u128::from(at)) });
        let hard_state = HardState { term: term.next(), vote: RaftId(1), commit: recovered.hard_state.commit };
        wal.write(&[Persist {
            number: 1,
            entries: entries.collect(),
            hard_state: Some(hard_state),
            snapshot: None,
            must_sync: true,
        }])
        .unwrap();
        wal.close().unwrap();
    }

    #[test]
    fn entries_that_were_not_known_to_be_committed_are_kept_and_counted() {
        let dir = stopped();
        let known = Recovery::open(dir.path(), Basis::Log, None).unwrap().found().uncommitted;
        append_uncommitted(dir.path(), 3);
        let recovery = Recovery::open(dir.path(), Basis::Log, None).unwrap();
        let found = recovery.found().clone();
        assert_eq!(found.uncommitted, known + 3);
        let configs = found.objects.iter().find(|(kind, _)| *kind == Kind::Config).unwrap().1;
        assert_eq!(configs, 4);
        let recovered = recovery.carry_out(None).unwrap();
        assert_eq!((recovered.parent, recovered.raft_id), (found.lineage, RaftId(2)));
        let node = Manager::start(Config::local(dir.path())).unwrap();
        assert_eq!(node.raft_id(), RaftId(2));
        let configs = node.client().unwrap().list(
            Kind::Config,
            &crate::types::api::Filter::default(),
            false,
            Duration::from_secs(30),
        );
        assert_eq!(configs.unwrap().len(), 4);
        node.stop(Duration::from_secs(5));
    }

    #[test]
    fn a_look_at_a_directory_leaves_every_byte_of_its_log_as_it_was() {
        let dir = stopped();
        let read = || -> Vec<(String, Vec<u8>)> {
            let mut files: Vec<_> = std::fs::read_dir(dir.path().join("raft"))
                .unwrap()
                .flatten()
                .map(|entry| {
                    (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).unwrap_or_default())
                })
                .collect();
            files.sort();
            files
        };
        let before = read();
        Recovery::open(dir.path(), Basis::Log, None).unwrap();
        assert!(before == read());
    }

    #[test]
    fn a_recovery_that_was_decided_and_interrupted_is_finished_by_the_next_start() {
        let dir = stopped();
        let Recovery { dir: opened, file, keys, state, known, found, .. } =
            Recovery::open(dir.path(), Basis::Log, None).unwrap();
        let heir = Heir { node_id: found.node_id, addr: found.addr, node: None, voted: found.last.term, known };
        let (state, raft_id) = rebuild::succeed(state, Lineage(2), heir, 9, &mut OsEntropy);
        let next = opened.path().join(NEXT_LOG);
        let random: &dyn Fn() -> Box<dyn Entropy> = &|| Box::new(OsEntropy);
        rebuild::write_log(Arc::new(RealDisk), &next, &keys.store.keyring(), state, wal::SEGMENT_BYTES, random)
            .unwrap();
        let file = NodeFile { raft_id: Some(raft_id), lineage: Some(Lineage(2)), ..file };
        let decided = NodeFile { replaced_log: Some("raft.before-recover-x".to_owned()), ..file };
        opened.write(&decided).unwrap();
        drop(opened);
        let node = Manager::start(Config::local(dir.path())).unwrap();
        assert_eq!(node.raft_id(), raft_id);
        assert!(dir.path().join("raft.before-recover-x").is_dir() && !next.exists());
        node.stop(Duration::from_secs(5));
    }

    /// All files of a directory and of those in it.
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap().flatten() {
            let (path, name) = (entry.path(), to.join(entry.file_name()));
            if path.is_dir() {
                copy(&path, &name);
            } else if entry.file_name() != "LOCK" {
                std::fs::copy(&path, &name).unwrap();
            }
        }
    }

    #[test]
    fn whichever_call_of_a_recovery_fails_the_old_swarm_or_the_new_one_is_there_whole() {
        const SEGMENT_BYTES: u64 = 64 << 10;
        // What a manager with a small log leaves, with a certificate that is over.
        let first = stopped();
        Recovery::open(first.path(), Basis::Log, None).unwrap().carry_out_with(SEGMENT_BYTES, None).unwrap();
        expire(first.path(), None);
        std::fs::remove_dir_all(
            std::fs::read_dir(first.path())
                .unwrap()
                .flatten()
                .map(|entry| entry.path())
                .find(|path| path.file_name().unwrap().to_string_lossy().starts_with("raft.before-recover"))
                .unwrap(),
        )
        .unwrap();
        let root = tempfile::tempdir().unwrap();
        let recover = |disk: Arc<dyn Disk>, path: &Path| {
            Recovery::open_on(disk, path, Basis::Log, None).and_then(|found| found.carry_out_with(SEGMENT_BYTES, None))
        };
        let whole = FaultyDisk::new(RealDisk, None);
        copy(first.path(), &root.path().join("whole"));
        recover(Arc::new(whole.clone()), &root.path().join("whole")).unwrap();
        let before = Recovery::open(first.path(), Basis::Log, None).unwrap().found().clone();
        let calls = whole.calls();
        assert!(calls > 60, "{calls}");
        let mut seen = [0, 0];
        for at in 1..=calls {
            for fault in FAULTS {
                let (what, path) = (format!("call {at} with {fault:?}"), root.path().join("faulty"));
                copy(first.path(), &path);
                let result = recover(Arc::new(FaultyDisk::new(RealDisk, Some((at, fault)))), &path);
                if let Err(error) = &result {
                    assert!(!error.hint.is_empty(), "{what}: {error:?}");
                }
                let found = Recovery::open(&path, Basis::Log, None).unwrap_or_else(|error| panic!("{what}: {error:?}"));
                let is_new = found.found().lineage != before.lineage;
                assert!(result.is_err() || is_new, "{what}");
                assert_eq!(found.found().objects, before.objects, "{what}");
                seen[usize::from(is_new)] += 1;
                if !is_new {
                    // Nothing was changed that keeps it from being recovered.
                    assert_eq!(found.found(), &before, "{what}");
                    found.carry_out_with(SEGMENT_BYTES, None).unwrap_or_else(|error| panic!("{what}: {error:?}"));
                }
                std::fs::remove_dir_all(&path).unwrap();
            }
        }
        assert!(seen[0] > 100 && seen[1] > 10, "{seen:?}");
    }

    #[test]
    fn a_repaired_log_is_good_enough_for_a_swarm_of_its_own_and_for_nothing_else() {
        let dir = stopped();
        let opened = DataDir::open(dir.path()).unwrap();
        let file = opened.read().unwrap().unwrap();
        opened.write(&NodeFile { repaired: Some("wal-1 was damaged".to_owned()), ..file }).unwrap();
        drop(opened);
        let error = Manager::start(Config::local(dir.path())).unwrap_err();
        assert!(error.failure == StartFailure::Refused && error.hint.contains("recover --data-dir "), "{error:?}");
        Recovery::open(dir.path(), Basis::Log, None).unwrap().carry_out(None).unwrap();
        let node = Manager::start(Config::local(dir.path())).unwrap();
        node.stop(Duration::from_secs(5));
    }

    #[test]
    fn a_snapshot_that_a_cut_log_no_longer_leads_to_is_recovered_from() {
        let dir = stopped();
        Recovery::open(dir.path(), Basis::Log, None).unwrap().carry_out(None).unwrap();
        let before = Recovery::open(dir.path(), Basis::Log, None).unwrap().found().clone();
        // Its first batch says which snapshot the log begins with.
        let segment = dir.path().join("raft/wal-00000001");
        let mut bytes = std::fs::read(&segment).unwrap();
        bytes[600] ^= 1;
        std::fs::write(&segment, bytes).unwrap();
        assert_eq!(Recovery::open(dir.path(), Basis::Log, None).unwrap_err().failure, StartFailure::Damaged);
        crate::node::repair::Repair::plan(dir.path(), None).unwrap().unwrap().carry_out().unwrap();
        let recovery = Recovery::open(dir.path(), Basis::Log, None).unwrap();
        let found = recovery.found();
        assert_eq!((found.last, found.revision), (before.last, before.revision));
        assert_eq!(found.objects, before.objects);
        recovery.carry_out(None).unwrap();
        Manager::start(Config::local(dir.path())).unwrap().stop(Duration::from_secs(5));
    }

    #[test]
    fn a_snapshot_alone_is_enough_when_nothing_of_the_log_stands() {
        let dir = stopped();
        Recovery::open(dir.path(), Basis::Log, None).unwrap().carry_out(None).unwrap();
        append_uncommitted(dir.path(), 3);
        let before = Recovery::open(dir.path(), Basis::Log, None).unwrap().found().clone();
        let voted = Recovery::open(dir.path(), Basis::Log, None).unwrap().voted;
        let whole = Recovery::open(dir.path(), Basis::Snapshot, None).unwrap();
        assert_eq!((whole.found().left_out, whole.voted), (Some(before.last.index), voted));
        drop(whole);
        // Every segment by its header, so that no part of the log says what it is.
        for segment in ["raft/wal-00000001", "raft/wal-00000002"] {
            let mut bytes = std::fs::read(dir.path().join(segment)).unwrap();
            bytes[3] ^= 1;
            std::fs::write(dir.path().join(segment), bytes).unwrap();
        }
        let error = Recovery::open(dir.path(), Basis::Log, None).unwrap_err();
        assert!(error.hint.contains("skep wal repair"), "{error:?}");
        let error = crate::node::repair::Repair::plan(dir.path(), None).unwrap_err();
        assert!(error.hint.contains("skep recover --from-snapshot"), "{error:?}");
        let recovery = Recovery::open(dir.path(), Basis::Snapshot, None).unwrap();
        let found = recovery.found();
        assert!(found.last < before.last && found.members == before.members, "{found:?}");
        let configs = found.objects.iter().find(|(kind, _)| *kind == Kind::Config).unwrap().1;
        assert_eq!(configs, 1, "the three after the snapshot are left out");
        recovery.carry_out(None).unwrap();
        Manager::start(Config::local(dir.path())).unwrap().stop(Duration::from_secs(5));
        // Without a whole snapshot there is nothing to begin from.
        for entry in std::fs::read_dir(dir.path().join("raft")).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("snap-") {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
        let error = Recovery::open(dir.path(), Basis::Snapshot, None).unwrap_err();
        assert!(error.failure == StartFailure::Damaged && error.why.contains("no snapshot that is whole"), "{error:?}");
    }

    /// Puts a certificate that is over in the place of a manager's.
    fn expire(dir: &Path, unlock: Option<&UnlockKey>) {
        let recovery = Recovery::open(dir, Basis::Log, unlock).unwrap();
        let cluster = recovery.state.cluster().unwrap();
        let (node_id, key) = (recovery.found.node_id, recovery.keys.store.file().node_key);
        let long_ago = wall_ms() - 200 * 86_400_000;
        let (_, identity) =
            ca::succeed_with(cluster, node_id, key, start::describe(None), long_ago, &mut OsEntropy).unwrap();
        assert!(identity.verify(&recovery.keys.root_pem, wall_ms()).is_err());
        recovery.dir.write_certificate(&identity, &recovery.keys.root_pem).unwrap();
    }

    #[test]
    fn a_manager_whose_certificate_is_over_recovers_and_gives_itself_another() {
        let dir = stopped();
        expire(dir.path(), None);
        let recovery = Recovery::open(dir.path(), Basis::Log, None).unwrap();
        let node_id = recovery.found().node_id;
        recovery.carry_out(None).unwrap();
        let node = Manager::start(Config::local(dir.path())).unwrap();
        assert_eq!(node.node_id(), node_id);
        // The swarm knows the certificate that is in use.
        let inspect = crate::types::api::QueryKind::Inspect(Kind::Node, node_id.to_string());
        let answer = node.client().unwrap().query(inspect, false, Duration::from_secs(30)).unwrap();
        let crate::types::api::Answer::Object(object) = answer else { panic!() };
        let Object::Node(object) = *object else { panic!() };
        let chain = std::fs::read_to_string(dir.path().join("pki/node.crt")).unwrap();
        assert_eq!(object.certificate.certificate, chain);
        node.stop(Duration::from_secs(5));
    }

    #[test]
    fn a_locked_directory_is_recovered_with_the_unlock_key_and_stays_locked() {
        let dir = stopped();
        let unlock = UnlockKey::generate(&mut crate::sys::entropy::SeededEntropy::new(1));
        let opened = DataDir::open(dir.path()).unwrap();
        let store = opened.open_keys(None).unwrap().unwrap();
        let lock = crate::pki::keyfile::Lock { key: Some(unlock.clone()), version: Revision(1 << 40) };
        store.change(|file| file.follow(lock)).unwrap();
        drop(opened);
        expire(dir.path(), Some(&unlock));
        let error = Recovery::open(dir.path(), Basis::Log, None).unwrap_err();
        assert!(error.failure == StartFailure::Refused && error.hint.contains("--unlock-key-file"), "{error:?}");
        let wrong = UnlockKey::generate(&mut crate::sys::entropy::SeededEntropy::new(2));
        assert_eq!(Recovery::open(dir.path(), Basis::Log, Some(&wrong)).unwrap_err().failure, StartFailure::Refused);
        Recovery::open(dir.path(), Basis::Log, Some(&unlock)).unwrap().carry_out(None).unwrap();
        assert!(crate::node::is_locked(dir.path()));
        let config = Config { unlock_key: Some(unlock), ..Config::local(dir.path()) };
        Manager::start(config).unwrap().stop(Duration::from_secs(5));
    }

    #[test]
    fn what_is_no_member_is_not_recovered() {
        let refusal = |path: &Path| {
            let error = Recovery::open(path, Basis::Log, None).unwrap_err();
            assert_eq!(error.failure, StartFailure::Refused);
            error.why
        };
        let dir = stopped();
        let opened = DataDir::open(dir.path()).unwrap();
        assert!(refusal(dir.path()).contains("another skep process"));
        let file = opened.read().unwrap().unwrap();
        drop(opened);
        for phase in [Phase::Joining, Phase::Founding, Phase::Restoring] {
            DataDir::open(dir.path()).unwrap().write(&NodeFile { phase, ..file.clone() }).unwrap();
            assert!(refusal(dir.path()).contains("never became a member"), "{phase:?}");
        }
        // One that left.
        let opened = DataDir::open(dir.path()).unwrap();
        opened.write(&file).unwrap();
        opened.retire(7).unwrap();
        drop(opened);
        assert!(refusal(dir.path()).contains("left the swarm or was removed"));
    }
}
