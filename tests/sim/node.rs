//! One simulated manager: the real machine, log, store and snapshots; thread work as jobs that finish later.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use raft::eraftpb::Entry;
use skep::apply::{Applier, ApplyError, Effect};
use skep::node::greeting::Greetings;
use skep::pki::seal::DataKey;
use skep::raft::machine::{Durable, Machine, Options};
use skep::raft::recover::{self, RecoverError, Snapshots};
use skep::raft::{Applied, Outgoing, Replicated, Stop, Token};
use skep::store::State;
use skep::sys::entropy::{Entropy, SeededEntropy};
use skep::sys::files::Disk;
use skep::sys::time::Instant;
use skep::types::object::{Profile, RaftSettings};
use skep::types::{Index, Lineage, NodeId, Outcome, Position, RaftId, Revision};
use skep::wal::{self, HardState, LogReader, Persist, Wal};

use crate::disk::SimDisk;
use crate::world::roles::{Reign, check_step};

/// The history that a world begins with.
pub const LINEAGE: Lineage = Lineage(0x5ce9);
pub const DIR: &str = "raft";

/// A manager, running or not.
pub struct Node {
    pub id: NodeId,
    pub addr: String,
    pub raft_id: RaftId,
    pub disk: SimDisk,
    /// Counts its starts; kept with the disk, as `node.json` does.
    pub boot: u64,
    /// The history that its directory belongs to, kept in the same way.
    pub lineage: Lineage,
    /// How many recoveries the swarm had had when the directory became part of it.
    pub era: u32,
    /// What it saw of its peers' starts; kept with the disk, as `peers.json` is.
    pub greetings: Greetings,
    /// A copy of its directory, made while it was down, and the start that it was made before.
    pub image: Option<(SimDisk, u64)>,
    /// Counts processes: what was meant for an earlier one is dropped.
    pub life: u64,
    pub run: Option<Running>,
    /// Why it stopped by itself.
    pub stopped: Option<Cause>,
    /// What its last process had on disk for certain.
    pub promised: Option<Durable>,
    /// The machine is off, as opposed to the process: redials are not refused.
    pub dark: bool,
    /// SIGSTOP, and what happens when it goes on.
    pub paused: bool,
    pub held: Vec<crate::world::Happening>,
    /// The disk answers nothing.
    pub stalled: bool,
    /// A sync takes between these, microseconds.
    pub sync_us: (u64, u64),
    pub clock: Clock,
    /// Its state was changed behind its back.
    pub corrupted: bool,
}

/// Why a manager is down though nobody killed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Raft, or a peer that judged its hello, said so. It does not start again.
    Stop(Stop),
    /// Its disk failed or is full; it may be started again.
    Disk(String),
    /// Its files are damaged, and it refuses to start from them.
    Damaged(String),
}

/// A manager's own idea of time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// The last change of rate, in the world's time and in its own.
    since: (Instant, Instant),
    /// How much faster than the world's, in parts of a million.
    ppm: i64,
    /// How far its wall clock is off, milliseconds.
    pub wall_ms: i64,
}

impl Clock {
    pub const fn new() -> Self {
        Self { since: (Instant::from_nanos(0), Instant::from_nanos(0)), ppm: 0, wall_ms: 0 }
    }

    /// Its monotonic clock.
    pub fn at(&self, now: Instant) -> Instant {
        self.since.1 + scale(now.since(self.since.0), 1_000_000 + self.ppm, 1_000_000)
    }

    /// How long of the world's time until its clock has moved by `local`.
    pub fn takes(&self, local: Duration) -> Duration {
        scale(local, 1_000_000, 1_000_000 + self.ppm)
    }

    pub fn set_rate(&mut self, now: Instant, ppm: i64) {
        self.since = (now, self.at(now));
        self.ppm = ppm;
    }
}

fn scale(duration: Duration, by: i64, of: i64) -> Duration {
    Duration::from_nanos((duration.as_nanos() * by as u128 / of as u128) as u64)
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
    /// When the newest report of a sync reaches the raft thread.
    pub reported: Instant,
    pub wal_queue: VecDeque<WalJob>,
    /// Jobs in the write that is going on.
    pub writing: usize,
    pub apply_queue: VecDeque<ApplyJob>,
    pub applying: bool,
    pub creating: Option<State>,
    pub fetched: Option<(Position, State)>,
    pub replicated: Replicated,
    pub settings: RaftSettings,
    /// Random per process, as in its hello.
    pub nonce: u64,
    /// Requests not answered yet.
    pub tokens: BTreeSet<Token>,
    /// Peers that the machine wants connections to.
    pub wanted: BTreeSet<NodeId>,
    pub finish_due: bool,
    pub wake_at: Option<Instant>,
    /// The leader's services, while it leads.
    pub reign: Option<Reign>,
    /// The newest state that a stale read was answered from.
    pub shown: Revision,
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
    /// Each entry with the hash of the state after it, and a change's outcome.
    pub log: Vec<(Entry, u128, Option<Outcome>)>,
    pub installed: bool,
}

/// How a manager starts.
pub enum Start {
    /// As the first of a swarm.
    Bootstrap,
    /// From its disk, which may be empty.
    Disk,
}

/// What all managers of a world have in common.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub seed: u64,
    pub settings: RaftSettings,
    pub segment_bytes: u64,
    /// Budget of the watch ring.
    pub ring_bytes: usize,
}

pub fn data_key() -> DataKey {
    DataKey::generate(&mut SeededEntropy::new(77))
}

impl Node {
    pub fn new(id: NodeId, raft_id: RaftId, addr: String, lineage: Lineage, era: u32) -> Self {
        Self {
            lineage,
            era,
            id,
            addr,
            raft_id,
            disk: SimDisk::default(),
            boot: 0,
            greetings: Greetings::default(),
            image: None,
            life: 0,
            run: None,
            stopped: None,
            promised: None,
            dark: false,
            paused: false,
            held: Vec::new(),
            stalled: false,
            sync_us: (100, 1000),
            clock: Clock::new(),
            corrupted: false,
        }
    }

    /// Starts the process, as the daemon does.
    pub fn start(
        &mut self,
        now: Instant,
        start: &Start,
        layout: &Layout,
        entropy: &mut SeededEntropy,
    ) -> Result<(), RecoverError> {
        assert!(self.run.is_none(), "{} runs already", self.id.0);
        self.life += 1;
        self.boot += 1;
        (self.paused, self.dark) = (false, false);
        self.held.clear();
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let key = data_key();
        let lineage = self.lineage;
        let options = wal::Options { segment_bytes: layout.segment_bytes, lineage };
        let source = Box::new(SeededEntropy::new(entropy.next_u64()));
        let (mut wal, mut recovered) = Wal::open_with(disk.clone(), Path::new(DIR), &key, options, source, false)?;
        let snapshots = Snapshots { disk, dir: DIR.into(), keys: key.into(), lineage };
        if let (Start::Bootstrap, None) = (start, &recovered.snapshot) {
            let state = State::bootstrap(lineage, self.id, self.addr.clone());
            recovered = recover::bootstrap(&mut wal, &snapshots, state, entropy)?;
        }
        let reader = wal.reader();
        let recovery = recover::recover(&reader, &recovered, &snapshots, layout.ring_bytes)?;
        let replicated = replicated(&recovery.applier, layout.settings);
        let nonce = entropy.next_u64();
        let machine = Machine::new(
            self.clock.at(now),
            Options {
                raft_id: self.raft_id,
                node_id: self.id,
                lineage,
                profile: Profile::Lan,
                seed: layout.seed,
                nonce,
                log: recovery.log,
                applied: recovery.applied,
                replicated: replicated.clone(),
                log_bytes: recovery.log_bytes,
                log_ends: recovery.log_ends,
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
            reported: now,
            applier: recovery.applier,
            snapshots,
            wal_queue: VecDeque::new(),
            writing: 0,
            apply_queue: VecDeque::new(),
            applying: false,
            creating: None,
            fetched: None,
            replicated,
            settings: layout.settings,
            nonce,
            tokens: BTreeSet::new(),
            wanted: BTreeSet::new(),
            finish_due: false,
            wake_at: None,
            reign: None,
            shown: Revision(0),
        });
        Ok(())
    }

    /// The process is gone.
    pub fn end(&mut self, entropy: &mut SeededEntropy) {
        if let Some(run) = self.run.take() {
            self.promised = Some(run.machine.durable());
        }
        self.life += 1;
        self.held.clear();
        self.disk.evict(entropy);
    }

    /// The power goes in the middle of whatever is being written.
    pub fn lose_power(&mut self, entropy: &mut SeededEntropy) {
        if let Some(run) = self.run.as_mut().filter(|run| run.writing > 0 && entropy.below(4) > 0) {
            self.disk.begin_to_die(entropy.below(4));
            // What comes of it nobody learns.
            let _ = run.write();
        }
        self.end(entropy);
        self.disk.lose_power(entropy);
        self.dark = true;
    }

    pub fn state(&self) -> Option<State> {
        self.run.as_ref().map(|run| run.applier.store().snapshot())
    }
}

impl Running {
    /// Writes the jobs of this turn; gives back the highest number and what it releases.
    pub fn write(&mut self) -> Result<(Option<u64>, Vec<Outgoing>), wal::WalError> {
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
        let newest = batch.iter().rev().find_map(|persist| persist.hard_state);
        self.written = newest.unwrap_or(self.written);
        let written = if batch.is_empty() { None } else { Some(self.wal.write(&batch)?.number) };
        if let Some(index) = keep_from {
            self.wal.compact(index)?;
            let Snapshots { disk, dir, .. } = &self.snapshots;
            wal::remove_snapshots_before(disk.as_ref(), dir, self.reader.snapshot().index)?;
        }
        Ok((written, released))
    }

    /// How many vote, by what is applied here.
    pub fn voters(&self) -> usize {
        self.applier.store().view(|state| state.configuration().voters.len())
    }

    /// Applies all that is queued.
    pub fn apply(&mut self, id: NodeId) -> Result<AppliedTurn, ApplyError> {
        let mut turn = AppliedTurn::default();
        for job in std::mem::take(&mut self.apply_queue) {
            match job {
                ApplyJob::Install(state) => {
                    self.applier.store().install(*state);
                    turn.installed = true;
                }
                ApplyJob::Entries(entries) => {
                    for (entry, token) in entries {
                        let mut judged = None;
                        let roles = self.applier.store().view(|state| state.cluster().map(|_| state.clone()));
                        match self.applier.apply(&entry)? {
                            Effect::Outcome(outcome) => {
                                judged = Some(outcome.clone());
                                turn.outcomes.extend(token.map(|token| (token, outcome)));
                            }
                            Effect::Member { accepted, .. } => {
                                turn.applied.members.push((Index(entry.index), accepted));
                            }
                            Effect::Mark(mark) => turn.applied.mark = Some(mark),
                            Effect::None | Effect::Address => {}
                        }
                        if let Some(before) = roles {
                            self.applier.store().view(|after| check_step(&before, after, id));
                        }
                        let hash = self.applier.store().view(State::hash);
                        turn.log.push((entry, hash, judged));
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
        Ok(turn)
    }

    /// Copies a snapshot of `sender` onto this disk, as a transfer does, and reads it.
    pub fn fetch(
        &self,
        sender: &Snapshots,
        index: Index,
        entropy: &mut SeededEntropy,
    ) -> Result<(Position, u64, State), RecoverError> {
        let Snapshots { disk, dir, keys: key, lineage } = sender;
        let mut reader = wal::SnapshotReader::open(disk.as_ref(), dir, key, *lineage, index)?;
        let wal::SnapshotMeta { position, configuration, .. } = reader.meta().clone();
        let Snapshots { disk, dir, keys: key, lineage } = &self.snapshots;
        let disk = disk.clone();
        let mut writer = wal::SnapshotWriter::create_with(disk, dir, key, *lineage, position, &configuration, entropy)?;
        while let Some(chunk) = reader.next_chunk()? {
            writer.write_chunk(&chunk)?;
        }
        let meta = writer.finish()?;
        let state = self.snapshots.load(index)?;
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
