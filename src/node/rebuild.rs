//! From a state to the directory of a swarm of one manager with a new history: what a recovery and a restore share.
//!
//! Everything takes the disk it works on, so that a test can stop it at any system call. Nothing here reads a clock.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::dir::{self, NodeFile};
use crate::pki::Keyring;
use crate::raft::recover::{self, RecoverError, Recovery, Snapshots};
use crate::store::State;
use crate::sys::entropy::Entropy;
use crate::sys::faults::{Fault, planted};
use crate::sys::files::{self, Disk};
use crate::types::object::{Node, NodeState};
use crate::types::{
    Change, ChangeId, Kind, Lineage, Member, NodeId, Object, Operation, Outcome, RaftId, Revision, Term, Timestamp,
};
use crate::wal::{self, LogReader, Options, Recovered, Wal, WalError};

/// The state that all of a log leads to, also what lies behind the last entry known to be committed, and the revision up
/// to which it is known.
///
/// A log that was cut off at damage may end before a snapshot that is whole, and so may one that has fetched a snapshot and
/// not recorded it: that snapshot's state is taken then, all of which is committed.
pub fn read_all(
    reader: &LogReader,
    recovered: &Recovered,
    snapshots: &Snapshots,
) -> Result<(State, Revision), RecoverError> {
    let Recovery { mut applier, applied, .. } = recover::recover(reader, recovered, snapshots, 0)?;
    let known = applier.store().view(State::revision);
    if !planted(Fault::RecoveredToCommit) {
        recover::replay(&mut applier, reader, applied.next(), recovered.last.index)?;
    }
    let state = applier.store().snapshot();
    let beyond = wal::list_snapshots(snapshots.disk.as_ref(), &snapshots.dir)?;
    let mut beyond = beyond.into_iter().rev().take_while(|index| *index > recovered.last.index);
    match beyond.find_map(|index| snapshots.load(index).ok()) {
        Some(state) => Ok((state.clone(), state.revision())),
        None => Ok((state, known)),
    }
}

/// The manager that goes on alone.
#[derive(Debug)]
pub struct Heir {
    /// Who it is.
    pub node_id: NodeId,
    /// Where it listens, `host:port`.
    pub addr: String,
    /// Its node object, if the state has none yet; of one that is there the certificate is replaced.
    pub node: Option<Node>,
    /// The newest term that it may have voted in.
    pub voted: Term,
    /// The newest revision that it knows to be committed.
    pub known: Revision,
}

/// The first state of the history `lineage`: all of `state`, the heir as the only member, and the former members' nodes
/// marked as down, which is what they are to the new swarm. Also the heir's place in it.
pub fn succeed(state: State, lineage: Lineage, heir: Heir, now_ms: u64, entropy: &mut dyn Entropy) -> (State, RaftId) {
    let Heir { node_id, addr, node: heir_node, voted, known } = heir;
    let dropped: Vec<Member> = state.members().values().filter(|member| member.node_id != node_id).cloned().collect();
    let mut state = state.begin_anew(lineage, node_id, addr.as_str(), voted, known);
    let raft_id = state.member_of(node_id).expect("it is the only member").raft_id;
    let mut operations = Vec::new();
    if let Some(mut node) = stored(&state, node_id) {
        node.status.addr.clone_from(&addr);
        node.status.state = NodeState::Ready;
        node.status.message.clear();
        if let Some(Node { certificate, .. }) = heir_node {
            node.certificate = certificate;
        }
        operations.push(Operation::Update(Object::Node(Box::new(node))));
    } else if let Some(node) = heir_node {
        operations.push(Operation::Create(Object::Node(Box::new(node))));
    }
    for mut node in dropped.iter().filter_map(|member| stored(&state, member.node_id)) {
        node.status.state = NodeState::Down;
        node.status.message = format!("it was a manager before the swarm began anew from {node_id}");
        operations.push(Operation::Update(Object::Node(Box::new(node))));
    }
    let change = Change {
        id: ChangeId(entropy.next_u128()),
        after: state.revision(),
        time: Timestamp(now_ms),
        term: None,
        operations,
    };
    if !change.operations.is_empty() {
        let term = state.applied().term;
        let (outcome, _) = state.apply_change(change, term);
        assert!(matches!(outcome, Outcome::Committed(_)), "each object was just read: {outcome:?}");
    }
    (state, raft_id)
}

fn stored(state: &State, node_id: NodeId) -> Option<Node> {
    match &state.get(Kind::Node, node_id.into())?.object {
        Object::Node(node) => Some((**node).clone()),
        _ => None,
    }
}

/// Writes the log that begins with `state` to `dir`, durably. What an earlier attempt left there is removed first.
pub fn write_log(
    disk: Arc<dyn Disk>,
    dir: &Path,
    keys: &Keyring,
    state: State,
    segment_bytes: u64,
    entropy: &dyn Fn() -> Box<dyn Entropy>,
) -> Result<(), WriteError> {
    clear(disk.as_ref(), dir)?;
    let options = Options { segment_bytes, lineage: state.lineage() };
    let snapshots = Snapshots { disk: disk.clone(), dir: dir.to_owned(), keys: keys.clone(), lineage: options.lineage };
    let (mut wal, _) = Wal::open_with(disk, dir, keys, options, entropy(), false).map_err(RecoverError::from)?;
    recover::bootstrap(&mut wal, &snapshots, state, entropy().as_mut())?;
    wal.close().map_err(RecoverError::from)?;
    Ok(())
}

/// As [`write_log`], in [`NEXT_LOG`] in the data directory `path`, whose log is of no further use to itself: on a full disk
/// the space that was kept for that one is taken. When it fails, the files that were begun are removed.
pub fn write_next(
    disk: &Arc<dyn Disk>,
    path: &Path,
    key: &Keyring,
    state: &State,
    segment_bytes: u64,
    entropy: &dyn Fn() -> Box<dyn Entropy>,
) -> Result<(), WriteError> {
    let next = path.join(NEXT_LOG);
    let write = || write_log(disk.clone(), &next, key, state.clone(), segment_bytes, entropy);
    let written = match write() {
        Err(error) if error.is_full() => {
            wal::abandon_reserve(disk.as_ref(), &path.join(LOG));
            write()
        }
        result => result,
    };
    if written.is_err() {
        // Whatever stays is removed by the next attempt.
        let _ = clear(disk.as_ref(), &next);
    }
    written
}

/// Why the new log was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A file could not be removed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The log or its snapshot could not be written.
    #[error(transparent)]
    Log(#[from] RecoverError),
}

impl WriteError {
    fn is_full(&self) -> bool {
        match self {
            Self::Io(error) | Self::Log(RecoverError::Wal(WalError::Io { source: error, .. })) => wal::is_full(error),
            Self::Log(_) => false,
        }
    }
}

/// Where a log is built that will take the place of `raft`.
pub const NEXT_LOG: &str = "raft.next";
const LOG: &str = "raft";

/// Why a log was not put in the place of another one.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// Nothing has changed.
    #[error(transparent)]
    Undecided(io::Error),
    /// The new log counts; the next start does what is left.
    #[error(transparent)]
    Decided(io::Error),
}

/// Puts the log in [`NEXT_LOG`] in the place of the present one, which is kept under the name `aside`, and `file` in the
/// place of `node.json`.
///
/// The first replacement of `node.json` decides: before it the directory is what it was, after it [`finish`] can do the
/// rest at any time.
pub fn replace_log(disk: &dyn Disk, path: &Path, file: &NodeFile, aside: &str) -> Result<(), ReplaceError> {
    let deciding = NodeFile { replaced_log: Some(aside.to_owned()), ..file.clone() };
    if let Err(error) = write(disk, path, &deciding) {
        // It may be there though it could not be made durable, and then the next start goes by it.
        let decided = files::read(disk, &path.join(dir::NODE_FILE)).is_ok_and(|found| found == dir::encode(&deciding));
        return Err(if decided { ReplaceError::Decided(error) } else { ReplaceError::Undecided(error) });
    }
    finish(disk, path, &deciding).map(drop).map_err(ReplaceError::Decided)
}

/// Finishes a replacement that was decided and interrupted; gives back what `node.json` is then. Does nothing otherwise.
pub fn finish(disk: &dyn Disk, path: &Path, file: &NodeFile) -> io::Result<Option<NodeFile>> {
    let Some(aside) = &file.replaced_log else { return Ok(None) };
    if Path::new(aside).file_name() != Some(aside.as_ref()) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("node.json names {aside}, which is no name")));
    }
    let (log, next, aside) = (path.join(LOG), path.join(NEXT_LOG), path.join(aside));
    // That it is there is durable before anything rests on it: the process that decided may have failed to make it so.
    disk.sync_dir(path)?;
    if exists(disk, &next)? {
        if exists(disk, &log)? {
            disk.rename(&log, &aside)?;
            disk.sync_dir(path)?;
        }
        disk.rename(&next, &log)?;
        disk.sync_dir(path)?;
    }
    // A log that nobody writes needs no space kept for it, and this process may need it now.
    wal::abandon_reserve(disk, &aside);
    let done = NodeFile { replaced_log: None, ..file.clone() };
    write(disk, path, &done)?;
    Ok(Some(done))
}

fn write(disk: &dyn Disk, path: &Path, file: &NodeFile) -> io::Result<()> {
    let replace = || files::replace(disk, &path.join(dir::NODE_FILE), &dir::encode(file));
    wal::with_reserve(disk, &path.join(LOG), replace)
}

fn exists(disk: &dyn Disk, dir: &Path) -> io::Result<bool> {
    match disk.list(dir) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes the files in a directory, if it is there.
fn clear(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    if !exists(disk, dir)? {
        return Ok(());
    }
    let names = disk.list(dir)?;
    for name in &names {
        disk.remove(&dir.join(name))?;
    }
    if names.is_empty() { Ok(()) } else { disk.sync_dir(dir) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;
    use crate::node::dir::Phase;
    use crate::pki::seal::DataKey;
    use crate::sys::entropy::SeededEntropy;
    use crate::sys::files::{File, RealDisk};
    use crate::types::object::{Config, Profile};
    use crate::types::{Index, MemberChange, ObjectId, Position, Role};
    use crate::wal;

    const SEGMENT_BYTES: u64 = 64 << 10;
    const HERE: NodeId = NodeId(11);

    fn random() -> Box<dyn Entropy> {
        // Not the same bytes twice: salts and keys of two attempts must differ.
        static SEED: Mutex<u64> = Mutex::new(0);
        let mut seed = SEED.lock().unwrap();
        *seed += 1;
        Box::new(SeededEntropy::new(*seed))
    }

    fn key() -> Keyring {
        DataKey::from_bytes([7; 32]).into()
    }

    /// A swarm of two with their nodes and a config.
    fn state() -> State {
        let mut state = State::bootstrap(Lineage(1), HERE, "a:1");
        let mut config = Config { id: ObjectId(5), ..Config::default() };
        config.spec.annotations.name = "motd".to_owned();
        let node = |id| Operation::Create(Object::Node(Box::new(Node::new(id, Role::Manager))));
        let change = Change {
            id: ChangeId(1),
            after: Revision(0),
            time: Timestamp(1),
            term: None,
            operations: vec![Operation::Create(config.into()), node(HERE), node(NodeId(12))],
        };
        assert!(matches!(state.apply_change(change, Term(1)).0, Outcome::Committed(_)));
        state.advance(Position { term: Term(1), index: Index(2) });
        let join = MemberChange::AddLearner { raft_id: RaftId(2), node_id: NodeId(12), addr: "b:1".to_owned() };
        assert!(state.apply_member_change(&join));
        state
    }

    fn heir() -> Heir {
        Heir { node_id: HERE, addr: "c:1".to_owned(), node: None, voted: Term(4), known: Revision(1) }
    }

    fn file(lineage: u128, raft_id: u64) -> NodeFile {
        NodeFile {
            raft_id: Some(RaftId(raft_id)),
            lineage: Some(Lineage(lineage)),
            ..NodeFile::new(Phase::Member, Profile::Lan)
        }
    }

    /// A manager's directory, without its keys.
    fn old_dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        write_log(Arc::new(RealDisk), &dir.path().join(LOG), &key(), state(), SEGMENT_BYTES, &random).unwrap();
        write(&RealDisk, dir.path(), &file(1, 1)).unwrap();
        dir
    }

    fn other(error: &WriteError) -> io::Error {
        io::Error::other(error.to_string())
    }

    /// What `skep recover` does once it has read everything.
    fn rebuild(disk: &Arc<dyn Disk>, dir: &Path) -> Result<(), ReplaceError> {
        let (state, raft_id) = succeed(state(), Lineage(2), heir(), 9, random().as_mut());
        write_next(disk, dir, &key(), &state, SEGMENT_BYTES, &random)
            .map_err(|error| ReplaceError::Undecided(other(&error)))?;
        replace_log(disk.as_ref(), dir, &file(2, raft_id.0), "raft.before-recover-1")
    }

    /// What the next start finds, after it has finished what was decided.
    fn found(dir: &Path) -> (Lineage, State) {
        let read = || serde_json::from_slice::<NodeFile>(&std::fs::read(dir.join(dir::NODE_FILE)).unwrap()).unwrap();
        finish(&RealDisk, dir, &read()).unwrap();
        let file = read();
        assert_eq!(file.replaced_log, None);
        let lineage = file.lineage.unwrap();
        let options = Options { segment_bytes: SEGMENT_BYTES, lineage };
        let log = dir.join(LOG);
        let (_, recovered) = wal::look(&RealDisk, &log, key(), &options).unwrap();
        let snapshots = Snapshots { disk: Arc::new(RealDisk), dir: log, keys: key(), lineage };
        let state = snapshots.load(recovered.snapshot.unwrap().position.index).unwrap();
        assert_eq!(Some(state.member_of(HERE).unwrap().raft_id), file.raft_id);
        (lineage, state)
    }

    #[test]
    fn the_heir_is_alone_and_the_lost_managers_nodes_are_down() {
        let (state, raft_id) = succeed(state(), Lineage(2), heir(), 9, random().as_mut());
        assert_eq!((raft_id, state.members().len()), (RaftId(3), 1));
        let node = |id| stored(&state, NodeId(id)).unwrap();
        assert_eq!((node(11).status.state, node(11).status.addr.as_str()), (NodeState::Ready, "c:1"));
        assert_eq!(node(12).status.state, NodeState::Down);
        assert_eq!(node(12).meta.version, state.revision());
        assert!(node(12).status.message.contains(&HERE.to_string()));
        // Everything else is as it was.
        let config = state.get(Kind::Config, ObjectId(5)).unwrap();
        assert_eq!(config.object.meta().version, Revision(1));
    }

    #[test]
    fn an_heir_that_had_no_node_gets_one() {
        let newcomer = NodeId(99);
        let node = Some(Node::new(newcomer, Role::Manager));
        let heir = Heir { node_id: newcomer, addr: "c:1".to_owned(), node, voted: Term(0), known: Revision(1) };
        let (state, _) = succeed(state(), Lineage(2), heir, 9, random().as_mut());
        assert!(stored(&state, newcomer).is_some() && state.is_removed_raft_id(RaftId(1)));
        assert_eq!(stored(&state, HERE).unwrap().status.state, NodeState::Down);
    }

    #[test]
    fn a_log_is_replaced_and_the_old_one_kept() {
        let dir = old_dir();
        assert_eq!(found(dir.path()).0, Lineage(1));
        rebuild(&(Arc::new(RealDisk) as Arc<dyn Disk>), dir.path()).unwrap();
        let (lineage, state) = found(dir.path());
        assert_eq!((lineage, state.lineage()), (Lineage(2), Lineage(2)));
        let options = Options { segment_bytes: SEGMENT_BYTES, lineage: Lineage(1) };
        let aside = dir.path().join("raft.before-recover-1");
        assert!(wal::look(&RealDisk, &aside, key(), &options).is_ok());
    }

    #[test]
    fn a_name_that_leads_out_of_the_directory_moves_nothing() {
        let dir = old_dir();
        std::fs::create_dir(dir.path().join(NEXT_LOG)).unwrap();
        for name in ["../x", "/x", "a/b", "..", ""] {
            let file = NodeFile { replaced_log: Some(name.to_owned()), ..file(2, 3) };
            assert_eq!(finish(&RealDisk, dir.path(), &file).unwrap_err().kind(), io::ErrorKind::InvalidData, "{name}");
            assert!(dir.path().join(LOG).is_dir() && dir.path().join(NEXT_LOG).is_dir(), "{name}");
        }
    }

    #[test]
    fn a_crash_at_any_step_leaves_the_old_state_or_the_new_one_and_it_can_be_done_again() {
        let mut seen = [0, 0];
        for step in 0.. {
            let dir = old_dir();
            let disk = Failing::after(step);
            let result = rebuild(&(disk.clone() as Arc<dyn Disk>), dir.path());
            if result.is_ok() {
                assert!(step > 20, "only {step} steps: the disk does not see them");
                break;
            }
            let (lineage, state) = found(dir.path());
            let expected = if lineage == Lineage(1) { super::tests::state() } else { state.clone() };
            assert_eq!(state.hash(), expected.hash());
            seen[usize::from(lineage == Lineage(2))] += 1;
            if lineage == Lineage(1) {
                rebuild(&(Arc::new(RealDisk) as Arc<dyn Disk>), dir.path()).unwrap();
                assert_eq!(found(dir.path()).0, Lineage(2));
            }
            assert!(dir.path().join("raft.before-recover-1").is_dir(), "step {step}");
            assert!(!dir.path().join(NEXT_LOG).exists(), "step {step}");
        }
        assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
    }

    /// A disk that a process stops using after so many changes.
    #[derive(Debug)]
    struct Failing {
        left: Arc<AtomicU64>,
    }

    impl Failing {
        fn after(changes: u64) -> Arc<Self> {
            Arc::new(Self { left: Arc::new(AtomicU64::new(changes)) })
        }
    }

    fn spend(left: &AtomicU64) -> io::Result<()> {
        match left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)) {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::other("the process is gone")),
        }
    }

    impl Disk for Failing {
        fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
            spend(&self.left)?;
            Ok(Arc::new(FailingFile { file: RealDisk.create(path)?, left: self.left.clone() }))
        }

        fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
            Ok(Arc::new(FailingFile { file: RealDisk.open(path)?, left: self.left.clone() }))
        }

        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            spend(&self.left)?;
            RealDisk.rename(from, to)
        }

        fn remove(&self, path: &Path) -> io::Result<()> {
            spend(&self.left)?;
            RealDisk.remove(path)
        }

        fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
            RealDisk.list(dir)
        }

        fn create_dir(&self, dir: &Path) -> io::Result<()> {
            spend(&self.left)?;
            RealDisk.create_dir(dir)
        }

        fn sync_dir(&self, dir: &Path) -> io::Result<()> {
            spend(&self.left)?;
            RealDisk.sync_dir(dir)
        }
    }

    #[derive(Debug)]
    struct FailingFile {
        file: Arc<dyn File>,
        left: Arc<AtomicU64>,
    }

    impl File for FailingFile {
        fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            spend(&self.left)?;
            self.file.write_at(offset, bytes)
        }

        fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
            self.file.read_at(offset, bytes)
        }

        fn sync_data(&self) -> io::Result<()> {
            spend(&self.left)?;
            self.file.sync_data()
        }

        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }

        fn allocate(&self, len: u64) -> io::Result<()> {
            spend(&self.left)?;
            self.file.allocate(len)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            spend(&self.left)?;
            self.file.set_len(len)
        }

        fn os_file(&self) -> Option<&std::fs::File> {
            self.file.os_file()
        }
    }
}
