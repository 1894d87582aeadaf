//! One simulated manager: the real machine, log, store and snapshots; thread work as jobs that finish later.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use raft::eraftpb::Entry;
use skep::apply::{Applier, Effect};
use skep::pki::seal::DataKey;
use skep::raft::machine::{Machine, Options};
use skep::raft::recover::{self, Snapshots};
use skep::raft::{Applied, Outgoing, Replicated, Stop, Token};
use skep::store::State;
use skep::sys::entropy::{Entropy, SeededEntropy};
use skep::sys::files::Disk;
use skep::sys::time::Instant;
use skep::types::object::{Profile, RaftSettings};
use skep::types::{Index, Lineage, NodeId, Outcome, Position, RaftId};
use skep::wal::{self, HardState, LogReader, Persist, Wal};

use crate::disk::SimDisk;
use crate::failure::ensure;

pub const LINEAGE: Lineage = Lineage(0x5ce9);
pub const DIR: &str = "raft";
const SEGMENT_BYTES: u64 = 64 << 10;
const RING_BYTES: usize = 1 << 20;

/// A manager, running or not.
pub struct Node {
    pub id: NodeId,
    pub addr: String,
    pub raft_id: RaftId,
    pub disk: SimDisk,
    /// Counts starts: what was meant for an earlier life is dropped.
    pub life: u64,
    pub run: Option<Running>,
    /// Why it stopped by itself.
    pub stopped: Option<Stop>,
    /// The machine is off, as opposed to the process: redials are not refused.
    pub dark: bool,
    /// SIGSTOP.
    pub paused: bool,
    /// The disk answers nothing.
    pub stalled: bool,
    /// A sync takes between these, microseconds.
    pub sync_us: (u64, u64),
    /// Its state was changed behind its back.
    pub corrupted: bool,
}

/// What lives in the process.
pub struct Running {
    pub machine: Machine,
    pub wal: Wal,
    pub reader: LogReader,
    pub applier: Applier,
    pub snapshots: Snapshots,
    /// The hard state that the log was last given, and has synced.
    pub written: HardState,
    pub wal_queue: VecDeque<WalJob>,
    /// Jobs in the write that is going on.
    pub writing: usize,
    pub apply_queue: VecDeque<ApplyJob>,
    pub applying: bool,
    pub creating: Option<State>,
    pub fetched: Option<(Position, State)>,
    pub replicated: Replicated,
    pub settings: RaftSettings,
    /// Requests not answered yet.
    pub tokens: BTreeSet<Token>,
    /// Peers that the machine wants connections to.
    pub wanted: BTreeSet<NodeId>,
    pub finish_due: bool,
    pub wake_at: Option<Instant>,
}

/// Work of the log's thread.
pub enum WalJob {
    Persist(Persist, Vec<Outgoing>),
    Compact(Index),
}

/// Work of the apply thread.
pub enum ApplyJob {
    Install(Box<State>),
    Entries(Vec<(Entry, Option<Token>)>),
}

/// What a turn of the apply thread did.
#[derive(Default)]
pub struct AppliedTurn {
    pub applied: Applied,
    pub outcomes: Vec<(Token, Outcome)>,
    /// Each entry with the hash of the state after it.
    pub log: Vec<(Entry, u128)>,
    pub installed: bool,
}

/// How a manager starts.
pub enum Start {
    /// As the first of a swarm.
    Bootstrap,
    /// From its disk, which may be empty.
    Disk,
}

pub fn data_key() -> DataKey {
    DataKey::generate(&mut SeededEntropy::new(77))
}

impl Node {
    pub fn new(id: NodeId, raft_id: RaftId, addr: String) -> Self {
        Self {
            id,
            addr,
            raft_id,
            disk: SimDisk::default(),
            life: 0,
            run: None,
            stopped: None,
            dark: false,
            paused: false,
            stalled: false,
            sync_us: (100, 1000),
            corrupted: false,
        }
    }

    /// Starts the process, as the daemon does.
    pub fn start(
        &mut self,
        now: Instant,
        start: &Start,
        seed: u64,
        settings: RaftSettings,
        entropy: &mut SeededEntropy,
    ) {
        assert!(self.run.is_none(), "{} runs already", self.id.0);
        self.life += 1;
        (self.paused, self.dark) = (false, false);
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let key = data_key();
        let options = wal::Options { segment_bytes: SEGMENT_BYTES, lineage: LINEAGE };
        let source = Box::new(SeededEntropy::new(entropy.next_u64()));
        let (mut wal, mut recovered) =
            Wal::open_with(disk.clone(), Path::new(DIR), &key, options, source, false).expect("the log opens");
        let snapshots = Snapshots { disk, dir: DIR.into(), key, lineage: LINEAGE };
        if let (Start::Bootstrap, None) = (start, &recovered.snapshot) {
            let state = State::bootstrap(LINEAGE, self.id, self.addr.clone());
            recovered = recover::bootstrap(&mut wal, &snapshots, state, entropy).expect("a swarm can be begun");
        }
        let reader = wal.reader();
        let recovery = recover::recover(&reader, &recovered, &snapshots, RING_BYTES).expect("the log can be replayed");
        let replicated = replicated(&recovery.applier, settings);
        let machine = Machine::new(
            now,
            Options {
                raft_id: self.raft_id,
                node_id: self.id,
                lineage: LINEAGE,
                profile: Profile::Lan,
                seed,
                nonce: entropy.next_u64(),
                log: recovery.log,
                applied: recovery.applied,
                replicated: replicated.clone(),
                log_bytes: recovery.log_bytes,
                hard_state: recovery.hard_state,
                persist_number: 0,
            },
        )
        .expect("the machine starts");
        self.run = Some(Running {
            machine,
            wal,
            reader,
            written: recovery.hard_state,
            applier: recovery.applier,
            snapshots,
            wal_queue: VecDeque::new(),
            writing: 0,
            apply_queue: VecDeque::new(),
            applying: false,
            creating: None,
            fetched: None,
            replicated,
            settings,
            tokens: BTreeSet::new(),
            wanted: BTreeSet::new(),
            finish_due: false,
            wake_at: None,
        });
    }

    /// The power goes in the middle of whatever is being written.
    pub fn lose_power(&mut self, entropy: &mut SeededEntropy) {
        if let Some(run) = self.run.as_mut().filter(|run| run.writing > 0 && entropy.below(4) > 0) {
            self.disk.begin_to_die(entropy.below(4));
            run.write();
        }
        self.run = None;
        self.disk.lose_power(entropy);
        self.dark = true;
    }

    pub fn state(&self) -> Option<State> {
        self.run.as_ref().map(|run| run.applier.store().snapshot())
    }
}

impl Running {
    /// Writes the jobs of this turn; gives back the highest number and what it releases.
    pub fn write(&mut self) -> (Option<u64>, Vec<Outgoing>) {
        let jobs: Vec<WalJob> = self.wal_queue.drain(..self.writing).collect();
        self.writing = 0;
        let (mut batch, mut released, mut keep_from) = (Vec::new(), Vec::new(), None);
        for job in jobs {
            match job {
                WalJob::Persist(persist, mut messages) => {
                    batch.push(persist);
                    released.append(&mut messages);
                }
                WalJob::Compact(index) => keep_from = keep_from.max(Some(index)),
            }
        }
        let hard_states = batch.iter().filter(|persist| persist.must_sync).filter_map(|persist| persist.hard_state);
        self.written = hard_states.last().unwrap_or(self.written);
        let written = (!batch.is_empty()).then(|| self.wal.write(&batch).expect("the log can be written").number);
        if let Some(index) = keep_from {
            self.wal.compact(index).expect("the log can be compacted");
            let Snapshots { disk, dir, .. } = &self.snapshots;
            wal::remove_snapshots_before(disk.as_ref(), dir, self.reader.snapshot().index)
                .expect("files can be removed");
        }
        (written, released)
    }

    /// How many vote, by what is applied here.
    pub fn voters(&self) -> usize {
        self.applier.store().view(|state| state.configuration().voters.len())
    }

    /// Applies all that is queued.
    pub fn apply(&mut self) -> AppliedTurn {
        let mut turn = AppliedTurn::default();
        for job in std::mem::take(&mut self.apply_queue) {
            match job {
                ApplyJob::Install(state) => {
                    self.applier.store().install(*state);
                    turn.installed = true;
                }
                ApplyJob::Entries(entries) => {
                    for (entry, token) in entries {
                        match self.applier.apply(&entry).expect("the entry can be applied") {
                            Effect::Outcome(outcome) => turn.outcomes.extend(token.map(|token| (token, outcome))),
                            Effect::Member { accepted, .. } => {
                                turn.applied.members.push((Index(entry.index), accepted));
                            }
                            Effect::Mark(mark) => turn.applied.mark = Some(mark),
                            Effect::None | Effect::Address => {}
                        }
                        let hash = self.applier.store().view(State::hash);
                        turn.log.push((entry, hash));
                    }
                }
            }
        }
        turn.applied.position = self.applier.store().view(State::applied);
        let replicated = replicated(&self.applier, self.settings);
        if replicated != self.replicated {
            self.replicated = replicated.clone();
            turn.applied.replicated = Some(replicated);
        }
        turn
    }

    /// Copies a snapshot of `sender` onto this disk, as a transfer does, and reads it.
    pub fn fetch(
        &self,
        sender: &Snapshots,
        index: Index,
        entropy: &mut SeededEntropy,
    ) -> Result<(Position, u64, State), wal::WalError> {
        let Snapshots { disk, dir, key, lineage } = sender;
        let mut reader = wal::SnapshotReader::open(disk.as_ref(), dir, key, *lineage, index)?;
        let wal::SnapshotMeta { position, configuration, .. } = reader.meta().clone();
        let Snapshots { disk, dir, key, lineage } = &self.snapshots;
        let disk = disk.clone();
        let mut writer = wal::SnapshotWriter::create_with(disk, dir, key, *lineage, position, &configuration, entropy)?;
        while let Some(chunk) = reader.next_chunk()? {
            writer.write_chunk(&chunk)?;
        }
        let meta = writer.finish()?;
        let state = self.snapshots.load(index).expect("what was just written can be read");
        Ok((position, meta.bytes, state))
    }
}

fn replicated(applier: &Applier, settings: RaftSettings) -> Replicated {
    applier.store().view(|state| Replicated {
        members: state.members().values().cloned().collect(),
        next_raft_id: state.next_raft_id(),
        settings,
    })
}

/// What the whole swarm must agree on, gathered from everybody.
#[derive(Default)]
pub struct Agreement {
    pub leaders: BTreeMap<u64, NodeId>,
    pub log: BTreeMap<u64, (u64, u32)>,
    pub hashes: BTreeMap<u64, u128>,
}

impl Agreement {
    /// A node leads in a term.
    pub fn leads(&mut self, term: u64, node: NodeId) {
        let first = *self.leaders.entry(term).or_insert(node);
        ensure!("one leader per term", first == node, "{} and {} lead in term {term}", first.0, node.0);
    }

    /// A node applied an entry.
    pub fn applied(&mut self, node: NodeId, entry: &Entry, hash: u128) {
        let found = (entry.term, crc32fast::hash(&entry.data));
        let first = *self.log.entry(entry.index).or_insert(found);
        ensure!("log prefix", first == found, "node {} applied another entry at {}", node.0, entry.index);
        self.state(node, entry.index, hash);
    }

    /// A node has a state.
    pub fn state(&mut self, node: NodeId, index: u64, hash: u128) {
        let first = *self.hashes.entry(index).or_insert(hash);
        ensure!("state hash", first == hash, "the state of node {} differs at {index}", node.0);
    }
}
