//! Starting again: from what the disk holds to the state, and the log as raft-rs sees it.
//!
//! What a manager had applied is not stored; it is made anew from the newest snapshot and the log after it, up to the commit
//! index on disk. raft-rs is started only then: it reads terms and unapplied entries synchronously, so that everything
//! unapplied has to be in memory, and it must not hand out again what is applied.
//!
//! The first manager of a swarm and one that joins begin differently. The first writes a snapshot of its first state at
//! index 1 ([`bootstrap`]): every later member then starts from a snapshot too, which carries the members, and none can
//! take the founders for the whole group. A joiner begins with nothing, and cannot campaign until a leader has sent it a
//! snapshot that names it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use ::raft::eraftpb::HardState;

use super::storage::{LogView, SnapshotMark};
use crate::apply::{Applier, ApplyError};
use crate::pki::Keyring;
use crate::store::{SnapshotDecoder, SnapshotEncoder, SnapshotError, State, Store};
use crate::sys::entropy::Entropy;
use crate::sys::faults::{Fault, planted};
use crate::sys::files::Disk;
use crate::types::{Index, Lineage, Position, RaftId};
use crate::wal::{
    self, LogReader, Persist, ReadError, Recovered, SnapshotMeta, SnapshotReader, SnapshotWriter, Wal, WalError,
};

/// Bytes of log read at once while it is applied.
const REPLAY_BYTES: u64 = 1 << 20;

/// Where a manager's snapshots are, and what they are sealed with. Clones may go to other threads; all see a new key.
#[derive(Clone, Debug)]
pub struct Snapshots {
    /// The disk they are on.
    pub disk: Arc<dyn Disk>,
    /// The log's directory.
    pub dir: PathBuf,
    /// What they are sealed with.
    pub keys: Keyring,
    /// Their history.
    pub lineage: Lineage,
}

/// What a manager goes on from.
#[derive(Debug)]
pub struct Recovery {
    /// The one writer of the store, whose state has everything up to `applied`.
    pub applier: Applier,
    /// The last entry applied: the commit index on disk, or the snapshot when that is newer.
    pub applied: Index,
    /// The log, entries after `applied` in memory.
    pub log: LogView,
    /// Term, vote and commit index on disk.
    pub hard_state: wal::HardState,
    /// Bytes of disk that the log after the newest snapshot takes.
    pub log_bytes: u64,
    /// How much log there is up to which entry, see [`LogReader::segment_ends`].
    pub log_ends: Vec<(Index, u64)>,
}

/// Why a manager cannot go on from its disk.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// A log or snapshot file could not be used.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The log could not be read back.
    #[error("the log cannot be replayed: {0}")]
    Read(#[from] ReadError),
    /// A snapshot's content is not what was written.
    #[error("the snapshot at log index {index} cannot be used: {source}")]
    Snapshot {
        /// Its index.
        index: Index,
        /// What is wrong with it.
        source: SnapshotError,
    },
    /// A snapshot's content is of another place or group than its header says.
    #[error("the snapshot at log index {index} holds another state than its header says")]
    Mismatch {
        /// Its index.
        index: Index,
    },
    /// An entry cannot be applied by this build.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

impl Snapshots {
    /// Reads a finished snapshot into a state.
    pub fn load(&self, index: Index) -> Result<State, RecoverError> {
        let mut reader = SnapshotReader::open(self.disk.as_ref(), &self.dir, &self.keys, self.lineage, index)?;
        let broken = |source| RecoverError::Snapshot { index, source };
        let mut decoder = SnapshotDecoder::new();
        while let Some(chunk) = reader.next_chunk()? {
            decoder.push(&chunk).map_err(broken)?;
        }
        let state = decoder.finish().map_err(broken)?;
        let SnapshotMeta { position, configuration, .. } = reader.meta();
        let same =
            state.applied() == *position && state.configuration() == *configuration && state.lineage() == self.lineage;
        if same { Ok(state) } else { Err(RecoverError::Mismatch { index }) }
    }

    /// Writes a snapshot of `state` and makes it durable. It counts once the log has recorded it.
    pub fn save(&self, state: State, entropy: &mut dyn Entropy) -> Result<SnapshotMark, RecoverError> {
        self.save_slowly(state, entropy, |_| Ok(()))
    }

    /// As [`Self::save`]; `before_chunk` is called with the size of what is written next, and may wait, or end it.
    pub fn save_slowly(
        &self,
        state: State,
        entropy: &mut dyn Entropy,
        mut before_chunk: impl FnMut(usize) -> io::Result<()>,
    ) -> Result<SnapshotMark, RecoverError> {
        let (disk, keys, lineage) = (self.disk.clone(), &self.keys, self.lineage);
        let (position, configuration) = (state.applied(), state.configuration());
        let mut writer =
            SnapshotWriter::create_with(disk, &self.dir, keys, lineage, position, &configuration, entropy)?;
        for chunk in SnapshotEncoder::new(state) {
            let chunk = chunk.map_err(|source| RecoverError::Snapshot { index: position.index, source })?;
            before_chunk(chunk.len()).map_err(|source| WalError::Io {
                doing: "write a snapshot in",
                path: self.dir.clone(),
                source,
            })?;
            writer.write_chunk(&chunk)?;
        }
        Ok(writer.finish()?.into())
    }
}

impl From<SnapshotMeta> for SnapshotMark {
    fn from(meta: SnapshotMeta) -> Self {
        Self { position: meta.position, configuration: meta.configuration, bytes: meta.bytes }
    }
}

/// Makes `state`, the first of a new swarm, durable in an empty log, as if it had been installed. What it gives back is
/// what the next open would. A crash before the end leaves an empty log, and it can be called again.
///
/// # Panics
///
/// When `wal` is not empty.
pub fn bootstrap(
    wal: &mut Wal,
    snapshots: &Snapshots,
    state: State,
    entropy: &mut dyn Entropy,
) -> Result<Recovered, RecoverError> {
    let position = state.applied();
    assert_eq!(wal.reader().last(), Position::default(), "a swarm is begun in an empty log");
    let mark = snapshots.save(state, entropy)?;
    let hard_state = wal::HardState { term: position.term, vote: RaftId(0), commit: position.index };
    wal.write(&[Persist {
        number: 0,
        entries: Vec::new(),
        hard_state: Some(hard_state),
        snapshot: Some(wal::SnapshotMark::Installed(position)),
        must_sync: true,
    }])?;
    let SnapshotMark { position, configuration, bytes } = mark;
    Ok(Recovered {
        hard_state,
        snapshot: Some(SnapshotMeta { position, configuration, bytes }),
        first: position.index.next(),
        last: position,
        terms: vec![position],
        bytes_since_snapshot: 0,
        cut: None,
    })
}

/// Loads the newest snapshot, applies the log after it up to the stored commit index, and reads the rest into memory.
/// `ring_bytes` is the budget of the store's watch ring, which the last entries fill.
pub fn recover(
    reader: &LogReader,
    recovered: &Recovered,
    snapshots: &Snapshots,
    ring_bytes: usize,
) -> Result<Recovery, RecoverError> {
    let (state, mark) = match &recovered.snapshot {
        Some(meta) => (snapshots.load(meta.position.index)?, SnapshotMark::from(meta.clone())),
        None => (State::new(snapshots.lineage), SnapshotMark::default()),
    };
    let mut applied = recovered.hard_state.commit.max(state.applied().index);
    let mut next = state.applied().index.next();
    let mut applier = Applier::new(Arc::new(Store::new(state, ring_bytes)));
    replay(&mut applier, reader, next, applied)?;
    next = next.max(applied.next());
    if planted(Fault::AppliedTwice) && applied > mark.position.index {
        (applied, next) = (Index(applied.0 - 1), applied);
    }
    let end = recovered.last.index.next();
    let mut tail = Vec::new();
    while next < end {
        tail.append(&mut reader.read(next, end, REPLAY_BYTES)?);
        next = tail.last().map_or(end, |entry| Index(entry.index).next());
    }
    let base = recovered.terms.first().copied().unwrap_or_default();
    let hard_state = wal::HardState { commit: applied, ..recovered.hard_state };
    let mut stored = HardState::default();
    (stored.term, stored.vote, stored.commit) = (hard_state.term.0, hard_state.vote.0, hard_state.commit.0);
    let configuration = applier.store().view(State::configuration);
    let log = LogView::new(base, runs(recovered), recovered.last, tail, mark, &configuration, stored);
    let (log_bytes, log_ends) = (recovered.bytes_since_snapshot, reader.segment_ends());
    Ok(Recovery { applier, applied, log, hard_state, log_bytes, log_ends })
}

/// Applies the entries of the log from `next` to `last`.
pub fn replay(applier: &mut Applier, reader: &LogReader, mut next: Index, last: Index) -> Result<(), RecoverError> {
    applier.replay(last, |applier| {
        while next <= last {
            for entry in reader.read(next, last.next(), REPLAY_BYTES)? {
                applier.apply(&entry)?;
                next = Index(entry.index).next();
            }
        }
        Ok(())
    })
}

/// The first position of every term after the log's base. The log's own list leaves out a first run in the base's term.
fn runs(recovered: &Recovered) -> Vec<Position> {
    let mut terms = recovered.terms.iter().copied();
    let base = terms.next().unwrap_or_default();
    let mut runs: Vec<Position> = terms.collect();
    let first = base.index.next();
    if first <= recovered.last.index && runs.first().is_none_or(|run| run.index > first) {
        runs.insert(0, Position { term: base.term, index: first });
    }
    runs
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use ::raft::Storage as _;
    use ::raft::eraftpb::Entry;

    use super::*;
    use crate::pki::seal::DataKey;
    use crate::sys::entropy::SeededEntropy;
    use crate::sys::files::RealDisk;
    use crate::types::{NodeId, Term};

    const LINEAGE: Lineage = Lineage(7);

    struct Opened {
        wal: Wal,
        recovered: Recovered,
        snapshots: Snapshots,
    }

    fn open(dir: &Path) -> Opened {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let keys = Keyring::from(DataKey::generate(&mut SeededEntropy::new(1)));
        let options = wal::Options { segment_bytes: 64 << 10, lineage: LINEAGE };
        let entropy = Box::new(SeededEntropy::new(2));
        let (wal, recovered) = Wal::open_with(disk.clone(), dir, &keys, options, entropy, false).unwrap();
        Opened { wal, recovered, snapshots: Snapshots { disk, dir: dir.to_owned(), keys, lineage: LINEAGE } }
    }

    fn recovery(opened: &Opened) -> Recovery {
        recover(&opened.wal.reader(), &opened.recovered, &opened.snapshots, 1 << 20).unwrap()
    }

    fn first_state() -> State {
        State::bootstrap(LINEAGE, NodeId(11), "127.0.0.1:1")
    }

    fn write(wal: &mut Wal, entries: &[(u64, u64)], term: u64, commit: u64) {
        let entries = entries.iter().map(|&(term, index)| {
            let mut entry = Entry::default();
            (entry.term, entry.index) = (term, index);
            entry
        });
        let hard_state = wal::HardState { term: Term(term), vote: RaftId(1), commit: Index(commit) };
        let persist = Persist {
            number: 1,
            entries: entries.collect(),
            hard_state: Some(hard_state),
            snapshot: None,
            must_sync: true,
        };
        wal.write(&[persist]).unwrap();
    }

    #[test]
    fn the_first_manager_begins_at_index_one_and_finds_that_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut opened = open(dir.path());
        let made = bootstrap(&mut opened.wal, &opened.snapshots, first_state(), &mut SeededEntropy::new(3)).unwrap();
        drop(opened);
        let again = open(dir.path());
        assert_eq!(again.recovered.snapshot, made.snapshot);
        assert_eq!((again.recovered.first, again.recovered.last), (made.first, made.last));
        assert_eq!((again.recovered.hard_state, &again.recovered.terms), (made.hard_state, &made.terms));
        let recovery = recovery(&again);
        assert_eq!((recovery.applied, recovery.hard_state.commit), (Index(1), Index(1)));
        assert_eq!(recovery.applier.store().view(State::hash), first_state().hash());
        assert_eq!(recovery.log.initial_state().unwrap().conf_state.voters, [1]);
    }

    #[test]
    fn a_bootstrap_that_broke_off_before_its_record_can_be_begun_again() {
        let dir = tempfile::tempdir().unwrap();
        let opened = open(dir.path());
        opened.snapshots.save(first_state(), &mut SeededEntropy::new(3)).unwrap();
        drop(opened);
        let mut again = open(dir.path());
        assert_eq!(again.recovered.snapshot, None);
        bootstrap(&mut again.wal, &again.snapshots, first_state(), &mut SeededEntropy::new(4)).unwrap();
    }

    #[test]
    fn a_joiner_begins_with_nothing_and_no_members() {
        let dir = tempfile::tempdir().unwrap();
        let recovery = recovery(&open(dir.path()));
        assert_eq!(
            (recovery.applied, recovery.log.last(), recovery.log.first()),
            (Index(0), Position::default(), Index(1))
        );
        assert!(recovery.log.initial_state().unwrap().conf_state.voters.is_empty());
        assert_eq!(recovery.log.term_at(0), Some(Term(0)));
    }

    #[test]
    fn what_was_committed_is_applied_and_the_rest_is_in_memory_with_every_term_known() {
        let dir = tempfile::tempdir().unwrap();
        let mut opened = open(dir.path());
        bootstrap(&mut opened.wal, &opened.snapshots, first_state(), &mut SeededEntropy::new(3)).unwrap();
        write(&mut opened.wal, &[(1, 2), (1, 3), (4, 4), (4, 5)], 4, 3);
        drop(opened);
        let recovery = recovery(&open(dir.path()));
        assert_eq!((recovery.applied, recovery.hard_state.term), (Index(3), Term(4)));
        assert_eq!(recovery.applier.store().view(State::applied).index, Index(3));
        let terms: Vec<_> = (0..=6).map(|index| recovery.log.term_at(index).map(|term| term.0)).collect();
        assert_eq!(terms, [None, Some(1), Some(1), Some(1), Some(4), Some(4), None]);
        let context = ::raft::GetEntriesContext::empty(false);
        assert_eq!(recovery.log.entries(4, 6, None, context).unwrap().len(), 2);
    }

    #[test]
    fn a_snapshot_with_another_state_than_its_header_says_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let opened = open(dir.path());
        let Snapshots { disk, dir, keys, lineage } = opened.snapshots.clone();
        let (state, elsewhere) = (first_state(), Position { term: Term(1), index: Index(9) });
        let configuration = state.configuration();
        let mut writer = SnapshotWriter::create(disk, &dir, &keys, lineage, elsewhere, &configuration).unwrap();
        for chunk in SnapshotEncoder::new(state) {
            writer.write_chunk(&chunk.unwrap()).unwrap();
        }
        writer.finish().unwrap();
        assert!(matches!(opened.snapshots.load(Index(9)), Err(RecoverError::Mismatch { index: Index(9) })));
    }
}
