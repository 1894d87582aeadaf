//! Decides for the raft thread: events in, [`Effects`] out.
//!
//! Usage: [`Machine::step`] for each event of a batch, then [`Machine::finish`] once, which runs raft-rs's ready loop.
//! raft-rs forbids touching it between `ready()` and `advance_append_async()`; both happen inside `finish` only.
//!
//! Here: the machine's parts, its two entrances and small helpers. Each file beside this one holds one concern.

mod applying;
mod disk;
mod fence;
mod inbound;
mod leadership;
mod links;
mod membership;
mod ready;
mod requests;
mod snapshots;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeType, Entry, EntryType, Message, MessageType};
use raft::{
    Config, GetEntriesContext, ProgressState, RawNode, ReadOnlyOption, SnapshotStatus, StateRole, Storage as _,
};

use super::failover::{self, Failover};
use super::journal::{Cause, Happened};
use super::orders::{Orders, Proposed, Transfer, Wanted, WantedKind};
use super::reads::Reads;
use super::storage::{LogView, SnapshotMark, entry_bytes};
use super::validate::{self, Invalid};
use super::{
    Applied, Effects, Event, FetchSnapshot, Leadership, Order, OrderResult, Outgoing, Replicated, Reply, Report, Stop,
    Timing, Token,
};
use crate::codec::envelope;
use crate::sys::faults::{Fault, planted};
use crate::sys::time::Instant;
use crate::types::api::{Answer, DiskLevel, DiskSpace, FEATURE_LEVEL, JoinAnswer, Progress, RaftState};
use crate::types::log::{Command, Configuration, StateHash};
use crate::types::member::MemberChange;
use crate::types::object::Profile;
use crate::types::{Code, Index, Lineage, Member, MemberRole, NodeId, Position, RaftId, Status, Term};
use crate::wal::{self, Persist};

/// Entry bytes handed to the log and not yet synced, above which a leader refuses proposals and a follower drops appends.
const MAX_UNSYNCED_BYTES: u64 = 64 << 20;
/// Entry bytes handed to apply and not yet applied; more wait here.
const MAX_APPLYING_BYTES: u64 = 16 << 20;
/// Entry bytes committed and not yet applied, above which a leader refuses proposals and a follower drops appends.
const MAX_UNAPPLIED_BYTES: u64 = 64 << 20;
/// A leader whose oldest unsynced append is older hands over.
const DISK_STALL: Duration = Duration::from_secs(5);
/// A voter whose median sync is slower does not get leadership from a stalled leader.
const HEALTHY_SYNC_US: u64 = 100_000;
/// A low disk asks for a snapshot, so that old segments of the log can go, at most this often.
const LOW_DISK_PAUSE: Duration = Duration::from_secs(30);
/// A leader tells what is committed with its next entries, or after this without any.
const COMMIT_PATIENCE: Duration = Duration::from_millis(2);
/// A read round is begun again after this.
const READ_RETRY: Duration = Duration::from_millis(300);
/// A read round is given up after this.
const READ_LIMIT: Duration = Duration::from_secs(10);
/// A follower that does not fetch the snapshot it was offered for so long is offered it again.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(10);
/// Shortest election timeouts that whoever asked for a transfer waits after this member's leadership ended.
const TRANSFER_PATIENCE: u32 = 2;
/// A snapshot that failed is tried again after this, then after twice as long, up to [`SNAPSHOT_PAUSE_MAX`].
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(2);
/// See [`SNAPSHOT_PAUSE`].
const SNAPSHOT_PAUSE_MAX: Duration = Duration::from_secs(600);
/// What a manager may send that is no member as far as is known here: this member may have been cut off while the other
/// joined, and must take its log and grant its votes, or the swarm can stay without a leader for ever.
const STRANGERS_MAY: [MessageType; 5] = [
    MessageType::MsgAppend,
    MessageType::MsgHeartbeat,
    MessageType::MsgSnapshot,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestPreVote,
];
/// A learner this many entries behind has caught up.
const PROMOTION_LAG: u64 = 256;
/// A mark is due after this many changes...
const MARK_CHANGES: u64 = 4096;
/// ...or this long after the last change.
const MARK_IDLE: Duration = Duration::from_secs(10);
/// Own marks remembered, for peers that report late.
const MARKS_KEPT: usize = 8;
/// Log sizes are sampled at this grain, to find where a number of bytes begins.
const SIZE_GRAIN: u64 = 64 << 10;

/// What a machine starts from.
#[derive(Debug)]
pub struct Options {
    /// This member.
    pub raft_id: RaftId,
    /// Its certificate.
    pub node_id: NodeId,
    /// The swarm's history, told to joiners.
    pub lineage: Lineage,
    /// Timing.
    pub profile: Profile,
    /// Spreads election timeouts.
    pub seed: u64,
    /// Random per process: makes read contexts unique.
    pub nonce: u64,
    /// The log as recovered, entries after the last applied one in memory.
    pub log: LogView,
    /// The last entry applied.
    pub applied: Index,
    /// The replicated state that raft reads, as of `applied`.
    pub replicated: Replicated,
    /// Log bytes after the last snapshot.
    pub log_bytes: u64,
    /// Some entries, in order, and the bytes of log on the disk up to each, with it.
    pub log_ends: Vec<(Index, u64)>,
    /// The hard state on disk.
    pub hard_state: wal::HardState,
    /// The last persist number used; the next is one more.
    pub persist_number: u64,
}

#[derive(Debug)]
struct InFlight {
    number: u64,
    ready: Option<u64>,
    since: Instant,
    sync: bool,
    bytes: u64,
    last: Option<Position>,
    hard_state: Option<wal::HardState>,
}

/// What is on disk for certain.
#[derive(Clone, Copy, Debug, Default)]
pub struct Durable {
    /// Term and vote.
    pub hard_state: wal::HardState,
    /// The last entry.
    pub last: Position,
}

#[derive(Debug, Default)]
struct Peer {
    up: bool,
    rtt_us: u64,
    sync_us: u64,
    disk_low: bool,
    marks: VecDeque<(Index, u128)>,
    /// The snapshot it was offered: when it last showed interest.
    snapshot: Option<Instant>,
    /// When it last sent something that raft could take.
    heard: Option<Instant>,
}

/// The raft thread's decisions.
pub struct Machine {
    node: RawNode<LogView>,
    raft_id: RaftId,
    node_id: NodeId,
    lineage: Lineage,
    profile: Profile,
    timing: Timing,
    seed: u64,
    timeout: failover::Timeout,
    replicated: Replicated,

    persist_number: u64,
    in_flight: VecDeque<InFlight>,
    unsynced_bytes: u64,
    durable: Durable,
    /// The commit index last handed to the log with a sync.
    commit_asked: Index,
    /// As leader: the commit index that the others were told last, and when they are told of a later one.
    commit_told: Index,
    commit_due: Option<Instant>,

    committed: VecDeque<Entry>,
    committed_bytes: u64,
    handed: VecDeque<(Index, u64)>,
    applying_bytes: u64,
    applied: Index,
    /// The membership entry that apply is deciding; nothing after it is handed over before raft-rs has learnt of it.
    deciding: Option<(Index, ConfChange)>,
    /// The snapshot that is being installed: the number that makes it durable, and its index.
    installing: Option<(u64, Index)>,
    /// Apply was done with it before the disk was.
    installed_early: Option<Applied>,
    /// Answers to a campaign that came before the report that the campaign could leave.
    early_votes: Vec<Message>,

    proposing: Vec<(Token, Bytes)>,
    pending: VecDeque<(Index, Term, Token)>,
    reads: Reads,
    orders: Orders,
    failover: Failover,
    peers: BTreeMap<NodeId, Peer>,
    /// Senders that are no members here yet.
    strangers: BTreeMap<u64, NodeId>,

    leadership: Leadership,
    term_began: Index,
    last_leader: Option<RaftId>,
    leader_lost: Option<Instant>,
    elections: u64,
    /// When a stalled disk last made this leader try to hand over.
    handed_over_at: Option<Instant>,
    stopping: bool,

    log_bytes: u64,
    sizes: VecDeque<(Index, u64)>,
    total_bytes: u64,
    creating_snapshot: bool,
    /// After a snapshot that failed: no new one before this, and how long that pause is.
    snapshot_pause: Option<(Instant, Duration)>,
    offered: Option<(Message, Instant)>,
    /// Size of the snapshot fetched last, for the rule that says when the next is due.
    fetched_bytes: u64,
    marks: VecDeque<StateHash>,
    changes_since_mark: u64,
    last_change: Instant,
    mark_proposed: Option<Index>,
    /// The disagreement about state hashes that was logged last, with the mark it was seen at.
    alarm: Option<(Index, String)>,
    /// Decided in this batch: stop as soon as its end.
    fence_due: Option<Stop>,
    /// A leader that must stop, while it hands over.
    fencing: Option<fence::Fencing>,
    /// State, term and leader as last noted.
    noted: (StateRole, u64, u64),
    own_sync_us: u64,
    disk: DiskSpace,
    /// When a low disk last asked for a snapshot.
    low_disk_snapshot: Option<Instant>,
    retiring: Option<snapshots::Retiring>,
    /// The fewest segments that the log has had since then, while the disk is low.
    low_disk_floor: Option<u64>,
    effects: Effects,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let raft = &self.node.raft;
        write!(f, "raft {} {:?} term {} applied {}", self.raft_id, raft.state, raft.term, self.applied)
    }
}

impl Machine {
    /// A member from its recovered log. A sole voter campaigns at once.
    pub fn new(now: Instant, options: Options) -> Result<Self, raft::Error> {
        let timing = Timing::of(options.profile);
        let inflight_bytes: u64 = if options.profile == Profile::Sdcard { 2 << 20 } else { 8 << 20 };
        let message_bytes: u64 = 256 << 10;
        let config = Config {
            id: options.raft_id.0,
            election_tick: timing.election_ticks,
            heartbeat_tick: 1,
            applied: options.applied.0,
            max_size_per_msg: message_bytes,
            max_inflight_msgs: (inflight_bytes / message_bytes) as usize,
            check_quorum: !planted(Fault::NoCheckQuorum),
            pre_vote: !planted(Fault::NoPreVote),
            read_only_option: if planted(Fault::LeaderReadsAlone) {
                ReadOnlyOption::LeaseBased
            } else {
                ReadOnlyOption::Safe
            },
            batch_append: true,
            // See `tell_commit`.
            skip_bcast_commit: true,
            max_uncommitted_size: 64 << 20,
            max_committed_size_per_ready: 4 << 20,
            ..Config::default()
        };
        let last = options.log.last();
        let node = RawNode::new(&config, options.log, &super::logger::logger())?;
        let mut machine = Self {
            node,
            raft_id: options.raft_id,
            node_id: options.node_id,
            lineage: options.lineage,
            profile: options.profile,
            timing,
            seed: options.seed,
            timeout: failover::Timeout::default(),
            replicated: options.replicated,
            persist_number: options.persist_number,
            in_flight: VecDeque::new(),
            unsynced_bytes: 0,
            durable: Durable { hard_state: options.hard_state, last },
            commit_asked: options.hard_state.commit,
            commit_told: Index(0),
            commit_due: None,
            committed: VecDeque::new(),
            committed_bytes: 0,
            handed: VecDeque::new(),
            applying_bytes: 0,
            applied: options.applied,
            deciding: None,
            installing: None,
            installed_early: None,
            early_votes: Vec::new(),
            proposing: Vec::new(),
            pending: VecDeque::new(),
            reads: Reads::new(options.nonce),
            orders: Orders::default(),
            failover: Failover::default(),
            peers: BTreeMap::new(),
            strangers: BTreeMap::new(),
            leadership: Leadership::default(),
            term_began: Index(0),
            last_leader: None,
            leader_lost: Some(now),
            elections: 0,
            handed_over_at: None,
            stopping: false,
            log_bytes: options.log_bytes,
            total_bytes: options.log_ends.last().map_or(0, |(_, bytes)| *bytes),
            sizes: options.log_ends.into(),
            creating_snapshot: false,
            snapshot_pause: None,
            offered: None,
            fetched_bytes: 0,
            marks: VecDeque::new(),
            changes_since_mark: 0,
            last_change: now,
            mark_proposed: None,
            alarm: None,
            fence_due: None,
            fencing: None,
            noted: (StateRole::Follower, 0, 0),
            own_sync_us: 0,
            disk: DiskSpace::default(),
            low_disk_snapshot: None,
            retiring: None,
            low_disk_floor: None,
            effects: Effects::default(),
        };
        machine.effects.peers = Some(machine.replicated.members.clone());
        machine.set_election_timeout();
        // A process that ended right after its snapshot has let go of nothing.
        let snapshot = machine.node.store().snapshot_mark().position;
        machine.compact(snapshot);
        if machine.is_sole_voter() {
            machine.campaign(Cause::Alone);
        }
        Ok(machine)
    }

    /// Takes one event. Reads no clock and does no I/O. Call [`Machine::finish`] after the last of a batch.
    pub fn step(&mut self, now: Instant, event: Event) {
        match event {
            Event::Tick => self.on_tick(now),
            Event::Peer { from, message } => self.on_peer(now, from, message),
            Event::Propose { token, command } => self.on_propose(token, command),
            Event::Read { token } if planted(Fault::StaleRead) => {
                self.effects.replies.push(Reply::ReadReady(vec![token]));
            }
            Event::Read { token } if self.fencing.is_some() => {
                self.effects.replies.push(Reply::ReadFailed(vec![token]));
            }
            Event::Read { token } => self.reads.add(now, token),
            Event::Order { token, order } => self.on_order(token, order),
            Event::Persisted { number } => {
                self.note_slow_sync(now, number);
                self.on_persisted(number);
            }
            Event::Applied(applied) => self.on_applied(applied),
            Event::Fetched { fetch, entries } => {
                let context: GetEntriesContext = self.node.mut_store().fetched(fetch, entries);
                self.node.on_entries_fetched(context);
                self.node.mut_store().drop_fetched();
            }
            Event::SnapshotCreated { mark } => self.on_snapshot_created(now, mark),
            Event::SnapshotFailed => {
                // It let nothing go, and is tried again.
                self.low_disk_floor = None;
                self.creating_snapshot = false;
                let pause =
                    self.snapshot_pause.map_or(SNAPSHOT_PAUSE, |(_, pause)| (pause * 2).min(SNAPSHOT_PAUSE_MAX));
                self.snapshot_pause = Some((now + pause, pause));
                self.effects.happened.push(Happened::SnapshotFailed);
                let status = Status::new(Code::Internal, "the snapshot could not be written; the log says why");
                self.finish_snapshot_orders(OrderResult::Refused(status));
            }
            Event::SnapshotFetched { position, bytes } => self.on_snapshot_fetched(position, bytes),
            Event::SnapshotNotFetched { position } => {
                self.effects.happened.push(Happened::SnapshotNotFetched { index: position.index });
                if self.offered.as_ref().is_some_and(|(message, _)| snapshot_position(message) == position) {
                    self.offered = None;
                }
            }
            Event::SnapshotServing { node } => {
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.snapshot = Some(now);
                }
            }
            Event::Link { node, up, refused } => self.on_link(now, node, up, refused),
            Event::Unreachable { node } => {
                if let Some(id) = self.raft_id_of(node) {
                    self.node.report_unreachable(id.0);
                }
            }
            Event::Measured { node, rtt_us, sync_us, mark } => self.on_measured(node, rtt_us, sync_us, mark),
            Event::PeerDisk { node, low } => self.peers.entry(node).or_default().disk_low = low,
            Event::Retire { upto } => self.on_retire(upto),
            Event::Unreadable { upto } => self.on_unreadable(upto),
            Event::DiskSpace(space) => self.on_disk_space(space),
            Event::OwnSync { sync_us } => self.own_sync_us = sync_us,
            Event::Rotten { what } => self.fence_due = Some(Stop::Rotten(what)),
            Event::Stopping => {
                self.stopping = true;
                self.transfer_to_best(false);
            }
        }
        self.set_election_timeout();
    }

    /// Ends a batch of events: proposes what was collected, runs raft-rs's ready loop, and gives all effects since the
    /// last call.
    pub fn finish(&mut self, now: Instant) -> Effects {
        let (seed, id) = (self.seed, self.raft_id.0);
        let jitter = || failover::spread(seed, id, now.as_nanos(), 2);
        if self.failover.due(now, jitter) && self.node.raft.leader_id == 0 {
            self.campaign(if self.failover.is_after_death() { Cause::LeaderGone } else { Cause::Refused });
        }
        self.propose_collected();
        self.propose_membership();
        self.begin_reads(now);
        self.tell_commit(now);
        self.run_ready_loop(now);
        self.hand_to_apply(now);
        self.note_leadership(now);
        self.note_role();
        self.watch_fence(now);
        let applied = if planted(Fault::ReadBeforeApplied) { Index(u64::MAX) } else { self.applied };
        let ready = self.reads.ready(applied);
        if !ready.is_empty() {
            self.effects.replies.push(Reply::ReadReady(ready));
        }
        let done = self.applied.min(self.durable.last.index);
        let everywhere = self.matched_everywhere();
        self.node.mut_store().evict(done, everywhere);
        self.effects.fetch = self.node.mut_store().take_fetches();
        self.set_election_timeout();
        self.check_snapshot_due(now);
        std::mem::take(&mut self.effects)
    }

    /// When [`Machine::finish`] should be called though nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        // A retry that is due and cannot be made must not keep the caller spinning.
        let retry = self.reads.next_retry(READ_RETRY).filter(|_| self.can_read());
        [self.failover.deadline(), retry, self.fence_deadline(), self.commit_due].into_iter().flatten().min()
    }

    /// Time between ticks.
    pub const fn tick_interval(&self) -> Duration {
        Duration::from_millis(self.timing.tick_ms)
    }

    /// Who leads, as last announced.
    pub const fn leadership(&self) -> Leadership {
        self.leadership
    }

    /// What is on disk for certain.
    pub const fn durable(&self) -> Durable {
        self.durable
    }

    /// The last own state hash at a mark.
    pub fn last_mark(&self) -> Option<StateHash> {
        self.marks.back().copied()
    }

    /// Members as of the last entry applied.
    pub fn members(&self) -> &[Member] {
        &self.replicated.members
    }

    fn send(&mut self, message: Message) {
        if let Some(outgoing) = self.address(message) {
            self.effects.messages.push(outgoing);
        }
    }

    fn address(&self, mut message: Message) -> Option<Outgoing> {
        let to = self.node_of(message.to)?;
        // Another leader may have changed the log since a message of an older term was made.
        let leads = self.is_leader() && message.term == self.node.raft.term;
        let term = |index| if leads { self.node.raft.raft_log.term(index).ok() } else { None };
        // raft-rs says 0 of what was compacted away.
        let term = |index: u64| term(index).filter(|term| *term != 0 || index == 0);
        set_predecessor(&mut message, term)?;
        Some(Outgoing { to, message })
    }

    fn node_of(&self, id: u64) -> Option<NodeId> {
        let member = self.replicated.members.iter().find(|member| member.raft_id.0 == id);
        member.map(|member| member.node_id).or_else(|| self.strangers.get(&id).copied())
    }

    fn raft_id_of(&self, node: NodeId) -> Option<RaftId> {
        let member = self.replicated.members.iter().find(|member| member.node_id == node);
        let stranger = || self.strangers.iter().find(|(_, id)| **id == node).map(|(id, _)| RaftId(*id));
        member.map(|member| member.raft_id).or_else(stranger)
    }

    fn voters(&self) -> impl Iterator<Item = &Member> {
        self.replicated.members.iter().filter(|member| member.role == MemberRole::Voter)
    }

    fn configuration(&self) -> Configuration {
        let of = |role| {
            let members = self.replicated.members.iter().filter(move |member| member.role == role);
            members.map(|member| member.raft_id).collect()
        };
        Configuration { voters: of(MemberRole::Voter), learners: of(MemberRole::Learner) }
    }

    /// Our place among the voters but `dead`, by raft id.
    fn rank_without(&self, dead: RaftId) -> u32 {
        let before = self.voters().filter(|member| member.raft_id != dead && member.raft_id < self.raft_id);
        before.count() as u32
    }

    fn is_member(&self) -> bool {
        self.replicated.members.iter().any(|member| member.raft_id == self.raft_id)
    }

    fn is_up(&self, node: NodeId) -> bool {
        node == self.node_id || self.peers.get(&node).is_some_and(|peer| peer.up)
    }

    fn heard_ms(&self, now: Instant, member: &Member) -> Option<u64> {
        if member.raft_id == self.raft_id {
            return Some(0);
        }
        let heard = self.peers.get(&member.node_id)?.heard?;
        Some(now.since(heard).as_millis() as u64)
    }

    fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    fn is_candidate(&self) -> bool {
        matches!(self.node.raft.state, StateRole::Candidate | StateRole::PreCandidate)
    }

    fn is_sole_voter(&self) -> bool {
        let mut voters = self.voters();
        voters.next().is_some_and(|member| member.raft_id == self.raft_id) && voters.next().is_none()
    }

    fn campaign(&mut self, cause: Cause) {
        let raft = &self.node.raft;
        // raft-rs lets a learner campaign and even win, and panics without voters.
        let unsynced = self.is_sole_voter() && (!self.in_flight.is_empty() || self.is_unsynced());
        let must_wait = unsynced || self.is_installing();
        if raft.promotable() && !self.is_leader() && !must_wait {
            self.elections += 1;
            self.effects.happened.push(Happened::Campaigned { term: Term(raft.term + 1), cause });
            if let Err(error) = self.node.campaign() {
                log::debug!("raft did not campaign: {error}");
            }
        }
    }

    fn set_election_timeout(&mut self) {
        let raft = &self.node.raft;
        let role = match raft.state {
            StateRole::Follower => 0,
            StateRole::Candidate => 1,
            StateRole::Leader => 2,
            StateRole::PreCandidate => 3,
        };
        let ticks = self.timeout.get(self.seed, self.raft_id.0, raft.term, role, self.timing.election_ticks);
        self.node.raft.set_randomized_election_timeout(ticks);
    }

    /// What operators and other threads get to see.
    pub fn report(&self, now: Instant) -> Report {
        let raft = &self.node.raft;
        let learner =
            self.replicated.members.iter().any(|m| m.raft_id == self.raft_id && m.role == MemberRole::Learner);
        let state = match raft.state {
            StateRole::Leader => RaftState::Leader,
            StateRole::Candidate | StateRole::PreCandidate => RaftState::Candidate,
            StateRole::Follower if self.replicated.members.is_empty() => RaftState::Joining,
            StateRole::Follower if learner => RaftState::Learner,
            StateRole::Follower => RaftState::Follower,
        };
        let progress = if self.is_leader() {
            let members = self.replicated.members.iter();
            members
                .filter_map(|member| {
                    let progress = raft.prs().get(member.raft_id.0)?;
                    Some(Progress {
                        raft_id: member.raft_id,
                        matched: Index(progress.matched),
                        state: progress.state.to_string().to_lowercase().replace("state", ""),
                        heard_ms: self.heard_ms(now, member),
                    })
                })
                .collect()
        } else {
            Vec::new()
        };
        let unsynced = self.in_flight.iter().find(|flight| flight.sync);
        let reachable = self.peers.iter().filter(|(_, peer)| peer.up).map(|(node, _)| *node);
        Report {
            raft_id: self.raft_id,
            state,
            leader: (raft.leader_id != 0).then_some(RaftId(raft.leader_id)),
            last_leader: self.last_leader,
            leaderless_ms: self.leader_lost.map_or(0, |since| now.since(since).as_millis() as u64),
            serving: self.leadership.serving,
            term: Term(raft.term),
            commit: Index(raft.raft_log.committed),
            applied: self.applied,
            first: self.node.store().first(),
            last: Index(self.node.store().last_index().unwrap_or(0)),
            snapshot: self.node.store().snapshot_mark().position.index,
            log_bytes: self.log_bytes,
            elections: self.elections,
            members: self.replicated.members.clone(),
            progress,
            reachable: reachable.chain([self.node_id]).collect(),
            alarms: self.alarms(),
            unsynced_ms: unsynced.map_or(0, |flight| now.since(flight.since).as_millis() as u64),
            disk: self.disk.clone(),
        }
    }
}

/// Names the entry before an append's first one. raft-rs puts entries into an append for the same member that still waits
/// to be sent, and when that has none, does not look whether they follow the place it names: a joiner's answer to a probe
/// of the log's end makes entries of the log's beginning join such a probe. `None` when the term of that entry is not
/// known any more: the message is dropped, and what it had is sent after the next heartbeat.
fn set_predecessor(message: &mut Message, term: impl Fn(u64) -> Option<u64>) -> Option<()> {
    // Read rounds carry their context as an entry that has no place in the log.
    let first = message.entries.first().filter(|_| message.msg_type == MessageType::MsgAppend);
    let Some(before) = first.map(|first| first.index.saturating_sub(1)) else { return Some(()) };
    if before != message.index {
        message.log_term = term(before)?;
        message.index = before;
    }
    Some(())
}

fn snapshot_position(message: &Message) -> Position {
    let metadata = message.get_snapshot().get_metadata();
    Position { term: Term(metadata.term), index: Index(metadata.index) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::types::object::RaftSettings;

    /// The first of so many voters, its log empty after a snapshot at index 1.
    pub(super) fn machine(now: Instant, voters: u64) -> Machine {
        let base = Position { term: Term(1), index: Index(1) };
        let members = (1..=voters).map(|id| Member {
            raft_id: RaftId(id),
            node_id: NodeId(id.into()),
            addr: format!("10.0.0.{id}:4242"),
            role: MemberRole::Voter,
        });
        let configuration = Configuration { voters: (1..=voters).map(RaftId).collect(), learners: Vec::new() };
        let mark = SnapshotMark { position: base, configuration: configuration.clone(), bytes: 10 };
        let mut hard_state = raft::eraftpb::HardState::default();
        (hard_state.term, hard_state.commit) = (1, 1);
        let log = LogView::new(base, Vec::new(), base, Vec::new(), mark, &configuration, hard_state);
        let settings = RaftSettings::for_profile(Profile::Lan);
        let options = Options {
            raft_id: RaftId(1),
            node_id: NodeId(1),
            lineage: Lineage(1),
            profile: Profile::Lan,
            seed: 1,
            nonce: 1,
            log,
            applied: Index(1),
            replicated: Replicated { members: members.collect(), next_raft_id: RaftId(voters + 1), settings },
            log_bytes: 0,
            log_ends: Vec::new(),
            hard_state: wal::HardState { term: Term(1), vote: RaftId(0), commit: Index(1) },
            persist_number: 0,
        };
        Machine::new(now, options).unwrap()
    }

    fn append(index: u64, log_term: u64, entries: &[(u64, u64)]) -> Message {
        let mut message = Message::default();
        message.msg_type = MessageType::MsgAppend;
        (message.index, message.log_term) = (index, log_term);
        let entries = entries.iter().map(|&(term, index)| {
            let mut entry = Entry::default();
            (entry.term, entry.index) = (term, index);
            entry
        });
        message.entries = entries.collect::<Vec<_>>().into();
        message
    }

    #[test]
    fn an_append_names_the_entry_before_its_first() {
        // A log of terms 1, 1, 2, 3 whose first entry is gone.
        let term = |index: u64| [None, Some(1), Some(2), Some(3)].get(index as usize - 1).copied().flatten();
        let check = |mut message: Message| {
            let sent = set_predecessor(&mut message, term).is_some();
            sent.then_some((message.index, message.log_term))
        };
        assert_eq!(check(append(4, 3, &[])), Some((4, 3)), "a probe of the end");
        assert_eq!(check(append(2, 1, &[(2, 3), (3, 4)])), Some((2, 1)), "as raft-rs made it");
        assert_eq!(check(append(4, 3, &[(2, 3), (3, 4)])), Some((2, 1)), "entries that joined a probe of the end");
        assert_eq!(check(append(4, 3, &[(1, 2)])), None, "what stood before is compacted");
        let mut read = append(0, 0, &[(0, 0)]);
        read.msg_type = MessageType::MsgReadIndex;
        assert_eq!(check(read), Some((0, 0)), "the context of a read");
    }
}
