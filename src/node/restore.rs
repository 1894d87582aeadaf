//! `skep backup restore`: a swarm of one manager in an empty directory, from the state in a backup.
//!
//! The manager is a new one, with a certificate that the restored root signs: the machine that the backup was made on may
//! still run, and one identity must not be at work twice. For the same reason all former members are dropped, and the
//! history is a new one.
//!
//! `node.json` says `restoring` before anything else is written and `member` when all is there: a restore that was cut off
//! is begun again, and `skep run` does not take its remains for a manager.

use std::path::Path;
use std::sync::Arc;

use super::dir::{DataDir, NodeFile, Phase};
use super::rebuild::{self, Heir};
use super::{StartError, StartFailure, dir, open, start};
use crate::ca;
use crate::pki::KeyFile;
use crate::pki::seal::DataKey;
use crate::store::State;
use crate::sys::entropy::{Entropy, OsEntropy};
use crate::sys::files::{Disk, RealDisk};
use crate::sys::time::wall_ms;
use crate::types::object::{NodeState, Profile};
use crate::types::{ClusterId, Lineage, NodeId, RaftId, Revision, Status, Term};

/// The new swarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The new manager.
    pub node_id: NodeId,
    /// Its place.
    pub raft_id: RaftId,
    /// The swarm, as before.
    pub cluster_id: ClusterId,
    /// The new history.
    pub lineage: Lineage,
    /// The revision that it begins with.
    pub revision: Revision,
    /// Where the manager says it listens.
    pub addr: String,
}

fn what(path: &Path) -> String {
    format!("cannot restore to {}", path.display())
}

/// Whether `path` may take a swarm, and whether `state` is one that can be begun again. Touches nothing.
pub fn check(path: &Path, state: &State) -> Result<(), StartError> {
    newcomer(path, state, None)?;
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(StartError::new(StartFailure::Internal, what(path), error, "choose another with --data-dir"));
        }
    };
    let names: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    if dir::phase(path) == Some(Phase::Restoring) {
        return Ok(());
    }
    match names.iter().find(|name| !dir::is_harmless(name)) {
        Some(name) => Err(taken(path, &format!("it is not empty: it holds {name}"))),
        None => Ok(()),
    }
}

fn taken(path: &Path, why: &str) -> StartError {
    StartError::refused(what(path), why, "choose an empty directory with --data-dir, or move this one away")
}

/// Makes the swarm. `name` is the new manager's name, the machine's if there is none.
pub fn restore(path: &Path, state: State, name: Option<String>, addr: &str) -> Result<Restored, StartError> {
    restore_on(Arc::new(RealDisk), path, state, name, addr, open::segment_bytes)
}

fn restore_on(
    disk: Arc<dyn Disk>,
    path: &Path,
    state: State,
    name: Option<String>,
    addr: &str,
    segment_bytes: impl FnOnce(Profile) -> u64,
) -> Result<Restored, StartError> {
    check(path, &state)?;
    let internal = |why: &dyn std::fmt::Display| {
        let hint = "make room or mend the disk, and give the same command again";
        StartError::new(StartFailure::Internal, what(path), why, hint)
    };
    let unwritten = |error: StartError| match error.failure {
        StartFailure::Internal => internal(&format_args!("{}: {}", error.what, error.why)),
        _ => error,
    };
    let dir = DataDir::open_on(disk.clone(), path)?;
    match dir.read().map_err(unwritten)?.map(|file| file.phase) {
        None => {}
        Some(Phase::Restoring) => dir.wipe_unfinished().map_err(unwritten)?,
        Some(_) => return Err(taken(path, "it holds a manager already")),
    }
    let cluster = state.cluster().ok_or_else(|| internal(&"the backup holds no swarm"))?;
    let (cluster_id, profile) = (cluster.id, cluster.spec.raft.profile);
    let root_pem = cluster.root_ca.certificate.clone();
    let mut file = NodeFile::new(Phase::Restoring, profile);
    dir.write(&file).map_err(unwritten)?;

    let mut entropy = OsEntropy;
    let (mut node, identity) = newcomer(path, &state, name)?;
    let node_id = node.id;
    node.status.state = NodeState::Ready;
    addr.clone_into(&mut node.status.addr);
    // In the clear: the manager locks itself when it runs, and then there is somebody to ask for the unlock key.
    let keys =
        dir.create_keys(KeyFile::new(identity.key().clone(), DataKey::generate(&mut entropy))).map_err(unwritten)?;
    dir.write_certificate(&identity, &root_pem).map_err(unwritten)?;
    let lineage = Lineage(entropy.next_u128());
    // A backup is of applied entries, and those are committed.
    let known = state.revision();
    let heir = Heir { node_id, addr: addr.to_owned(), node: Some(node), voted: Term(0), known };
    let (state, raft_id) = rebuild::succeed(state, lineage, heir, wall_ms(), &mut entropy);
    let revision = state.revision();
    let random: &dyn Fn() -> Box<dyn Entropy> = &|| Box::new(OsEntropy);
    rebuild::write_log(disk, &dir.raft(), &keys.keyring(), state, segment_bytes(profile), random)
        .map_err(|error| internal(&error))?;
    file.phase = Phase::Member;
    file.node_id = Some(node_id);
    file.cluster_id = Some(cluster_id);
    file.raft_id = Some(raft_id);
    file.parent_lineage = file.lineage.replace(lineage);
    if let Err(error) = dir.write(&file) {
        // It may be there though it could not be made durable, and then this is a manager.
        let decided = dir.read().is_ok_and(|found| found.is_some_and(|found| found.phase == Phase::Member));
        if !decided {
            return Err(unwritten(error));
        }
        let why = format!("its last write may not last: {}", error.why);
        let hint = "mend the disk and start it with `skep run`; if that says that a restore was not finished, give the \
                    same command again";
        return Err(StartError::new(StartFailure::Internal, what(path), why, hint));
    }
    Ok(Restored { node_id, raft_id, cluster_id, lineage, revision, addr: addr.to_owned() })
}

/// A manager that nobody was before, with a certificate of the restored root.
fn newcomer(
    path: &Path,
    state: &State,
    name: Option<String>,
) -> Result<(crate::types::object::Node, crate::pki::NodeIdentity), StartError> {
    let refused = |status: Status| {
        let hint = "the backup cannot be begun again by itself: use one of another time";
        StartError::refused(what(path), &status.message, hint)
    };
    let cluster = state.cluster().ok_or_else(|| {
        StartError::refused(what(path), "the backup holds no swarm", "use a backup of a manager that was ready")
    })?;
    let node_id = NodeId(OsEntropy.next_u128());
    ca::succeed(cluster, node_id, start::describe(name.as_deref()), wall_ms(), &mut OsEntropy).map_err(refused)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::node::{Config, Node};
    use crate::types::Kind;
    use crate::wal::tests::faults::{FAULTS, FaultyDisk};

    /// The state of a swarm with a root that can sign.
    fn state() -> State {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::start(Config::local(dir.path())).unwrap();
        node.stop(std::time::Duration::from_secs(5));
        drop(node);
        let recovery =
            crate::node::recover::Recovery::open(dir.path(), crate::node::recover::Basis::Log, None).unwrap();
        recovery.into_state()
    }

    #[test]
    fn a_restore_that_was_cut_off_is_no_manager_and_is_begun_again() {
        let state = state();
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("new");
        // As a crash right before the end leaves it.
        let restored = restore(&path, state.clone(), None, "a:1").unwrap();
        let opened = DataDir::open(&path).unwrap();
        let file = opened.read().unwrap().unwrap();
        opened.write(&NodeFile::new(Phase::Restoring, Profile::Lan)).unwrap();
        drop(opened);
        let error = Node::start(Config::local(&path)).unwrap_err();
        assert_eq!(error.failure, StartFailure::Refused);
        assert!(error.why.contains("restore") && error.hint.contains("skep backup restore"), "{error:?}");
        // And as one within the writing of the log does.
        std::fs::remove_file(path.join("raft").join("spare")).ok();
        std::fs::write(path.join("raft").join("wal-00000000000000000001"), b"half").unwrap();
        let again = restore(&path, state.clone(), None, "a:1").unwrap();
        assert_ne!(again.node_id, restored.node_id);
        assert_ne!(Some(again.lineage), file.lineage);
        let node = Node::start(Config::local(&path)).unwrap();
        assert_eq!((node.node_id(), node.raft_id()), (again.node_id, again.raft_id));
        node.stop(std::time::Duration::from_secs(5));
        // Now it is one, and is not written over.
        let error = restore(&path, state, None, "a:1").unwrap_err();
        assert!(error.failure == StartFailure::Refused && error.why.contains("not empty"), "{error:?}");
    }

    /// Nothing in this test needs more.
    const SEGMENT_BYTES: u64 = 64 << 10;

    fn small(disk: impl Disk + 'static, path: &Path, state: State) -> Result<Restored, StartError> {
        restore_on(Arc::new(disk), path, state, None, "a:1", |_| SEGMENT_BYTES)
    }

    #[test]
    fn whichever_call_of_a_restore_fails_it_is_done_or_can_be_given_again() {
        let state = state();
        let root = tempfile::tempdir().unwrap();
        let whole = FaultyDisk::new(RealDisk, None);
        small(whole.clone(), &root.path().join("whole"), state.clone()).unwrap();
        let calls = whole.calls();
        assert!(calls > 40, "{calls}");
        let (mut again, mut done) = (0, 0);
        for at in 1..=calls {
            for fault in FAULTS {
                let (what, path) = (format!("call {at} with {fault:?}"), root.path().join("faulty"));
                let result = small(FaultyDisk::new(RealDisk, Some((at, fault))), &path, state.clone());
                // Whatever the command said, this is what the directory says, and what a start goes by.
                if dir::phase(&path) == Some(Phase::Member) {
                    done += 1;
                } else {
                    let error = result.as_ref().unwrap_err();
                    assert!(error.hint.contains("again") || error.hint.contains("--data-dir"), "{what}: {error:?}");
                    small(RealDisk, &path, state.clone()).unwrap_or_else(|error| panic!("{what}: {error:?}"));
                    again += 1;
                }
                let recovery = crate::node::recover::Recovery::open(&path, crate::node::recover::Basis::Log, None)
                    .unwrap_or_else(|error| panic!("{what}: {error:?}"));
                assert_eq!(recovery.found().objects, objects(&state), "{what}");
                drop(recovery);
                std::fs::remove_dir_all(&path).unwrap();
            }
        }
        assert!(again > 100 && done > 0, "{again} {done}");
    }

    /// How many objects there are once the swarm has begun anew: one node more.
    fn objects(state: &State) -> Vec<(Kind, u64)> {
        let count = |kind| state.count(kind) as u64 + u64::from(kind == Kind::Node);
        Kind::ALL.into_iter().map(|kind| (kind, count(kind))).filter(|(_, count)| *count > 0).collect()
    }

    #[test]
    fn a_check_touches_nothing() {
        let state = state();
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("new");
        check(&path, &state).unwrap();
        assert!(!path.exists());
        std::fs::create_dir(&path).unwrap();
        check(&path, &state).unwrap();
        std::fs::create_dir(path.join("lost+found")).unwrap();
        check(&path, &state).unwrap();
        std::fs::write(path.join("holiday.jpg"), b"x").unwrap();
        assert!(check(&path, &state).unwrap_err().why.contains("holiday.jpg"));
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 2);
    }
}
