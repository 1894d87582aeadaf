//! Decides for the raft thread: events in, [`Effects`] out.
//!
//! Usage: [`Machine::step`] for each event of a batch, then [`Machine::finish`] once, which runs raft-rs's ready loop.
//! raft-rs forbids touching it between `ready()` and `advance_append_async()`; both happen inside `finish` only.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeType, Entry, EntryType, Message, MessageType};
use raft::{
    Config, GetEntriesContext, ProgressState, RawNode, ReadOnlyOption, SnapshotStatus, StateRole, Storage as _,
};

use super::failover::{self, Failover};
use super::orders::{Orders, Proposed, Transfer, Wanted, WantedKind};
use super::reads::Reads;
use super::storage::{LogView, SnapshotMark, entry_bytes};
use super::validate::{self, Invalid};
use super::{
    Applied, Effects, Event, FetchSnapshot, Leadership, Order, OrderResult, Outgoing, Replicated, Reply, Report, Stop,
    Timing, Token,
};
use crate::codec::envelope;
use crate::sys::time::Instant;
use crate::types::api::{Answer, FEATURE_LEVEL, JoinAnswer, Progress, RaftState};
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
/// A read round is begun again after this.
const READ_RETRY: Duration = Duration::from_millis(300);
/// A read round is given up after this.
const READ_LIMIT: Duration = Duration::from_secs(10);
/// A follower that does not fetch the snapshot it was offered for so long is offered it again.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(10);
/// A snapshot that failed is tried again after this, then after twice as long, up to [`SNAPSHOT_PAUSE_MAX`].
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(30);
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
    marks: VecDeque<(Index, u128)>,
    /// The snapshot it was offered: when it last showed interest.
    snapshot: Option<Instant>,
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
    replicated: Replicated,

    persist_number: u64,
    in_flight: VecDeque<InFlight>,
    unsynced_bytes: u64,
    durable: Durable,
    /// The commit index last handed to the log with a sync.
    commit_asked: Index,

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
    own_sync_us: u64,
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
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            batch_append: true,
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
            replicated: options.replicated,
            persist_number: options.persist_number,
            in_flight: VecDeque::new(),
            unsynced_bytes: 0,
            durable: Durable { hard_state: options.hard_state, last },
            commit_asked: options.hard_state.commit,
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
            sizes: VecDeque::new(),
            total_bytes: 0,
            creating_snapshot: false,
            snapshot_pause: None,
            offered: None,
            fetched_bytes: 0,
            marks: VecDeque::new(),
            changes_since_mark: 0,
            last_change: now,
            mark_proposed: None,
            own_sync_us: 0,
            effects: Effects::default(),
        };
        machine.effects.peers = Some(machine.replicated.members.clone());
        machine.set_election_timeout();
        if machine.is_sole_voter() {
            machine.campaign();
        }
        Ok(machine)
    }

    /// Takes one event. Reads no clock and does no I/O. Call [`Machine::finish`] after the last of a batch.
    pub fn step(&mut self, now: Instant, event: Event) {
        match event {
            Event::Tick => self.on_tick(now),
            Event::Peer { from, message } => self.on_peer(now, from, message),
            Event::Propose { token, command } => self.on_propose(token, command),
            Event::Read { token } => self.reads.add(now, token),
            Event::Order { token, order } => self.on_order(token, order),
            Event::Persisted { number } => self.on_persisted(number),
            Event::Applied(applied) => self.on_applied(applied),
            Event::Fetched { fetch, entries } => {
                let context: GetEntriesContext = self.node.mut_store().fetched(fetch, entries);
                self.node.on_entries_fetched(context);
                self.node.mut_store().drop_fetched();
            }
            Event::SnapshotCreated { mark } => self.on_snapshot_created(now, mark),
            Event::SnapshotFailed => {
                self.creating_snapshot = false;
                let pause =
                    self.snapshot_pause.map_or(SNAPSHOT_PAUSE, |(_, pause)| (pause * 2).min(SNAPSHOT_PAUSE_MAX));
                self.snapshot_pause = Some((now + pause, pause));
                let status = Status::new(Code::Internal, "the snapshot could not be written; the log says why");
                self.finish_snapshot_orders(OrderResult::Refused(status));
            }
            Event::SnapshotFetched { position, bytes } => self.on_snapshot_fetched(position, bytes),
            Event::SnapshotNotFetched { position } => {
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
            Event::OwnSync { sync_us } => self.own_sync_us = sync_us,
            Event::Stopping => {
                self.stopping = true;
                self.transfer_to_best(None);
            }
        }
        self.set_election_timeout();
    }

    /// Ends a batch of events: proposes what was collected, runs raft-rs's ready loop, and gives all effects since the
    /// last call.
    pub fn finish(&mut self, now: Instant) -> Effects {
        let jitter = failover::spread(self.seed, self.raft_id.0, now.as_nanos(), 2);
        if self.failover.due(now, jitter) && self.node.raft.leader_id == 0 {
            self.campaign();
        }
        self.propose_collected();
        self.propose_membership();
        self.begin_reads(now);
        self.run_ready_loop(now);
        self.hand_to_apply(now);
        self.note_leadership(now);
        let ready = self.reads.ready(self.applied);
        if !ready.is_empty() {
            self.effects.replies.push(Reply::ReadReady(ready));
        }
        let done = self.applied.min(self.durable.last.index);
        self.node.mut_store().evict(done);
        self.effects.fetch = self.node.mut_store().take_fetches();
        self.set_election_timeout();
        self.check_snapshot_due(now);
        std::mem::take(&mut self.effects)
    }

    /// When [`Machine::finish`] should be called though nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        // A retry that is due and cannot be made must not keep the caller spinning.
        let retry = self.reads.next_retry(READ_RETRY).filter(|_| self.can_read());
        [self.failover.deadline(), retry].into_iter().flatten().min()
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

    // ---- ticks and links ----

    fn on_tick(&mut self, now: Instant) {
        // raft-rs panics when a sole voter ticks into a campaign while a Ready is unsynced.
        if self.is_sole_voter() && !self.is_leader() && !self.in_flight.is_empty() {
            return;
        }
        let was_candidate = self.is_candidate();
        self.node.tick();
        if !was_candidate && self.is_candidate() {
            self.elections += 1;
        }
        let expired = self.reads.expire(now, READ_LIMIT);
        if !expired.is_empty() {
            self.effects.replies.push(Reply::ReadFailed(expired));
        }
        if self.is_leader() {
            self.watch_disk(now);
            self.watch_transfer();
            self.watch_snapshots(now);
            self.promote_learners();
            self.propose_mark(now);
        }
    }

    /// Disk latency is part of a leader's liveness: heartbeats alone would keep a leader that can write nothing.
    fn watch_disk(&mut self, now: Instant) {
        let stalled = self.in_flight.iter().find(|flight| flight.sync).is_some_and(|f| now.since(f.since) > DISK_STALL);
        // A transfer may come to nothing, and the swarm can commit nothing while this leader stays.
        let tried = self.handed_over_at.is_some_and(|at| now.since(at) < DISK_STALL);
        let free = self.node.raft.lead_transferee.is_none();
        if stalled && !tried && free && self.transfer_to_best(Some(HEALTHY_SYNC_US)) {
            self.handed_over_at = Some(now);
            log::warn!("the disk has not finished a write for {DISK_STALL:?}: handing leadership over");
        }
    }

    fn watch_transfer(&mut self) {
        let Some(transfer) = self.orders.transfer.as_ref() else { return };
        // raft-rs gives a transfer up after an election timeout, silently.
        if self.node.raft.lead_transferee.is_none() {
            let to = transfer.to;
            if let Some(token) = self.orders.transfer.take().and_then(|transfer| transfer.token) {
                let message = format!("member {to} did not take over; this manager leads on");
                // Not `Unavailable`, which is asked again: proposals wait while a transfer runs.
                let status = Status::new(Code::Aborted, message).with_hint("`skep members` shows who is reachable");
                self.effects.replies.push(Reply::Order(token, OrderResult::Refused(status)));
            }
        }
    }

    fn watch_snapshots(&mut self, now: Instant) {
        let members: Vec<(u64, NodeId)> =
            self.replicated.members.iter().map(|member| (member.raft_id.0, member.node_id)).collect();
        for (id, node) in members {
            let progress = self.node.raft.prs().get(id);
            let is_waiting = progress.is_some_and(|progress| progress.state == ProgressState::Snapshot);
            let peer = self.peers.entry(node).or_default();
            if !is_waiting {
                peer.snapshot = None;
                continue;
            }
            let since = *peer.snapshot.get_or_insert(now);
            if now.since(since) > SNAPSHOT_PATIENCE || !peer.up {
                peer.snapshot = None;
                // raft-rs never offers a snapshot again by itself.
                self.node.report_snapshot(id, SnapshotStatus::Failure);
            }
        }
    }

    fn on_link(&mut self, now: Instant, node: NodeId, up: bool, refused: bool) {
        let peer = self.peers.entry(node).or_default();
        peer.up = up;
        if up {
            // A follower that was unreachable is probed at once instead of at the next heartbeat.
            if self.is_leader() {
                self.node.ping();
            }
            return;
        }
        let Some(id) = self.raft_id_of(node) else { return };
        self.node.report_unreachable(id.0);
        let raft = &self.node.raft;
        if refused && raft.state == StateRole::Follower && raft.leader_id == id.0 && raft.promotable() {
            let term = raft.term;
            let rtt = self.peers.values().map(|peer| peer.rtt_us).max().unwrap_or(0);
            let sync = self.peers.values().map(|peer| peer.sync_us).max().unwrap_or(0).max(self.own_sync_us);
            let rank = self.rank_without(id);
            if self.failover.leader_died(now, term, id.0, rank, failover::turn(rtt, sync)) {
                // `become_follower` would also zero the election clock; only the lease has to go.
                self.node.raft.leader_id = 0;
            }
        }
    }

    fn on_measured(&mut self, node: NodeId, rtt_us: u64, sync_us: u64, mark: (Index, u128)) {
        let peer = self.peers.entry(node).or_default();
        peer.rtt_us = rtt_us;
        peer.sync_us = sync_us;
        if mark.0.0 != 0 && peer.marks.back() != Some(&mark) {
            peer.marks.push_back(mark);
            if peer.marks.len() > MARKS_KEPT {
                peer.marks.pop_front();
            }
        }
        self.compare_hashes();
    }

    /// A replica that a majority of voters contradicts, all with the same sum, is wrong for certain.
    fn compare_hashes(&mut self) {
        let voters = self.voters().count();
        let majority = voters / 2 + 1;
        for own in &self.marks {
            let mut sums: BTreeMap<u128, usize> = BTreeMap::new();
            for member in self.voters().filter(|member| member.raft_id != self.raft_id) {
                let marks = self.peers.get(&member.node_id).map(|peer| &peer.marks);
                for (_, sum) in marks.into_iter().flatten().filter(|(index, _)| *index == own.index) {
                    *sums.entry(*sum).or_default() += 1;
                }
            }
            if let Some((sum, count)) = sums.iter().find(|(sum, _)| **sum != own.sum) {
                let verdict = format!(
                    "state hash {:032x} at log index {} (revision {}) differs from {sum:032x} that {count} of {voters} voters have",
                    own.sum, own.index, own.revision
                );
                if *count >= majority {
                    self.effects.stop = Some(Stop::Fenced(verdict));
                } else {
                    log::error!("{verdict}: not a majority, so that it is unknown who is wrong");
                }
            }
        }
    }

    // ---- peers ----

    fn on_peer(&mut self, now: Instant, from: NodeId, message: Message) {
        let known = self.replicated.members.iter().find(|member| member.raft_id.0 == message.from);
        match known {
            Some(member) if member.node_id != from => {
                log::warn!("dropping a raft message: node {from} claims to be member {}", message.from);
                return;
            }
            Some(_) => {}
            None if message.from < self.replicated.next_raft_id.0 && self.was_member(message.from) => {
                return;
            }
            None if !STRANGERS_MAY.contains(&message.msg_type) => return,
            None => {
                self.strangers.insert(message.from, from);
                if self.strangers.len() > 64 {
                    self.strangers.pop_first();
                }
            }
        }
        if let Err(invalid) = validate::check(&message, self.raft_id.0, &self.node.raft.raft_log) {
            if invalid == Invalid::LogLost && message.term >= self.node.raft.term {
                let text = format!(
                    "the leader has this member's log confirmed up to {}, but it ends at {}: the disk lost acknowledged data",
                    message.commit,
                    self.node.raft.raft_log.last_index()
                );
                self.effects.stop = Some(Stop::Fenced(text));
            } else {
                log::warn!("dropping a raft message {:?} of node {from}: {invalid}", message.msg_type);
            }
            return;
        }
        match message.msg_type {
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote if self.replicated.members.is_empty() => {
                // Only a voter is asked, and only a member that had its log becomes one.
                log::warn!("not voting for node {from}: it takes this member for a voter, and there is no log here");
                return;
            }
            MessageType::MsgAppend if self.is_over_budget() => return,
            MessageType::MsgSnapshot => return self.on_snapshot_offer(now, from, message),
            MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse
                if self.is_candidate() && self.is_unsynced() && self.early_votes.len() < 64 =>
            {
                // The request left when everything was synced, and the report of that is still on its way here.
                self.early_votes.push(message);
                return;
            }
            _ => {}
        }
        self.step_raft(message);
        let _ = now;
    }

    /// Entries are not known to be durable yet. raft-rs panics when it wins an election then.
    fn is_unsynced(&self) -> bool {
        self.node.raft.raft_log.persisted < self.node.raft.raft_log.last_index()
    }

    fn step_raft(&mut self, message: Message) {
        let kind = message.msg_type;
        if let Err(error) = self.node.step(message) {
            log::debug!("raft did not take a {kind:?}: {error}");
        }
    }

    /// A raft id below the counter that is no member now has been removed.
    fn was_member(&self, id: u64) -> bool {
        // A member that is itself behind does not know newer ones: only ids below its own counter are judged.
        !self.replicated.members.is_empty() && id < self.replicated.next_raft_id.0
    }

    fn on_snapshot_offer(&mut self, now: Instant, from: NodeId, message: Message) {
        let position = snapshot_position(&message);
        if message.term < self.node.raft.term || position.index <= self.applied {
            // raft-rs answers an old one with what is committed here, which moves the sender on.
            self.step_raft(message);
            return;
        }
        let same = self.offered.as_ref().is_some_and(|(offered, _)| snapshot_position(offered) == position);
        // The leader offers again after a while without progress: so does a fetch that died without a word.
        if same && self.offered.as_ref().is_some_and(|(_, at)| now.since(*at) < SNAPSHOT_PATIENCE) {
            return;
        }
        let state = message.get_snapshot().get_metadata().get_conf_state();
        let configuration = Configuration {
            voters: state.voters.iter().map(|id| RaftId(*id)).collect(),
            learners: state.learners.iter().map(|id| RaftId(*id)).collect(),
        };
        let mark = SnapshotMark { position, configuration, bytes: 0 };
        self.offered = Some((message, now));
        self.effects.fetch_snapshot = Some(FetchSnapshot { from, mark });
    }

    fn on_snapshot_fetched(&mut self, position: Position, bytes: u64) {
        let Some((message, _)) = self.offered.take_if(|(offered, _)| snapshot_position(offered) == position) else {
            return;
        };
        self.fetched_bytes = bytes;
        self.step_raft(message);
    }

    // ---- proposals ----

    fn on_propose(&mut self, token: Token, command: Bytes) {
        if !self.is_leader() || self.node.raft.lead_transferee.is_some() || self.stopping {
            self.effects.replies.push(Reply::NotLeader(token));
        } else if self.is_over_budget() {
            self.effects.replies.push(Reply::Overloaded(token));
        } else {
            self.proposing.push((token, command));
        }
    }

    fn is_over_budget(&self) -> bool {
        self.unsynced_bytes > MAX_UNSYNCED_BYTES || self.committed_bytes + self.applying_bytes > MAX_UNAPPLIED_BYTES
    }

    /// One message for all: raft-rs appends and broadcasts once.
    fn propose_collected(&mut self) {
        if self.proposing.is_empty() {
            return;
        }
        let proposing = std::mem::take(&mut self.proposing);
        let (tokens, commands): (Vec<Token>, Vec<Bytes>) = proposing.into_iter().unzip();
        match self.propose(commands) {
            Some((first, term)) => {
                for (offset, token) in tokens.into_iter().enumerate() {
                    self.pending.push_back((Index(first.0 + offset as u64), term, token));
                }
            }
            None if self.is_leader() => self.effects.replies.extend(tokens.into_iter().map(Reply::Overloaded)),
            None => self.effects.replies.extend(tokens.into_iter().map(Reply::NotLeader)),
        }
    }

    /// Appends commands as entries; the index of the first and the term.
    fn propose(&mut self, commands: Vec<Bytes>) -> Option<(Index, Term)> {
        if !self.is_leader() {
            return None;
        }
        let first = Index(self.node.raft.raft_log.last_index() + 1);
        let mut message = Message::default();
        message.msg_type = MessageType::MsgPropose;
        message.from = self.raft_id.0;
        let entries: Vec<Entry> = commands
            .into_iter()
            .map(|data| {
                let mut entry = Entry::default();
                entry.data = data;
                entry
            })
            .collect();
        message.entries = entries.into();
        self.node.step(message).ok()?;
        Some((first, Term(self.node.raft.term)))
    }

    fn propose_command(&mut self, command: &Command) -> Option<(Index, Term)> {
        self.propose(vec![envelope::encode(command).into()])
    }

    // ---- reads ----

    fn begin_reads(&mut self, now: Instant) {
        if self.can_read() && !self.reads.is_empty() {
            for context in self.reads.begin(now, READ_RETRY) {
                self.node.read_index(context);
            }
        }
    }

    /// raft-rs drops a round without a word when there is no leader or the leader's term has no commit yet.
    fn can_read(&self) -> bool {
        let raft = &self.node.raft;
        if self.is_leader() { raft.commit_to_current_term() } else { raft.leader_id != 0 }
    }

    // ---- orders ----

    fn on_order(&mut self, token: Token, order: Order) {
        if let Order::Snapshot = order {
            let mark = self.node.store().snapshot_mark();
            if mark.position.index == self.applied && mark.position.index.0 > 1 {
                let answer = Answer::SnapshotWritten { position: mark.position, bytes: mark.bytes };
                self.effects.replies.push(Reply::Order(token, OrderResult::Done(answer)));
                return;
            }
            self.orders.snapshots.push(token);
            self.create_snapshot();
            return;
        }
        if !self.is_leader() || self.stopping {
            self.effects.replies.push(Reply::Order(token, OrderResult::Again));
            return;
        }
        let immediate = match order {
            Order::Snapshot => None,
            Order::Transfer { to } => self.order_transfer(token, to),
            Order::Join { node_id, addr, feature_level } => self.order_join(token, node_id, addr, feature_level),
            Order::Leave { node_id, force } => self.order_leave(token, node_id, force),
            Order::SetAddress { node_id, addr } => self.order_address(token, node_id, &addr),
        };
        if let Some(result) = immediate {
            self.effects.replies.push(Reply::Order(token, result));
        }
    }

    fn order_transfer(&mut self, token: Token, to: Option<NodeId>) -> Option<OrderResult> {
        if to == Some(self.node_id) {
            return Some(OrderResult::Done(Answer::Leader(self.node_id)));
        }
        if self.orders.transfer.is_some() {
            let status = Status::new(Code::FailedPrecondition, "leadership is being handed over already");
            return Some(OrderResult::Refused(status.with_hint("see who leads with `skep members`")));
        }
        let target = match to {
            None => self.best_voter(None),
            Some(node) => match self.voters().find(|member| member.node_id == node) {
                Some(member) if self.is_up(node) => Some(member.raft_id),
                Some(_) => {
                    let status = Status::new(Code::FailedPrecondition, format!("manager {node} is not reachable"));
                    return Some(OrderResult::Refused(status.with_hint("see who is with `skep members`")));
                }
                None => {
                    let status = Status::new(Code::FailedPrecondition, format!("node {node} is not a voter"));
                    return Some(OrderResult::Refused(status.with_hint("see who votes with `skep members`")));
                }
            },
        };
        let Some(to) = target else {
            let status = Status::new(Code::FailedPrecondition, "there is no other reachable voter to lead");
            return Some(OrderResult::Refused(status.with_hint("add one with `skep run --join`")));
        };
        self.node.transfer_leader(to.0);
        self.orders.transfer = Some(Transfer { token: Some(token), to, term: Term(self.node.raft.term) });
        None
    }

    fn order_join(&mut self, token: Token, node_id: NodeId, addr: String, level: u32) -> Option<OrderResult> {
        if level < FEATURE_LEVEL {
            let message =
                format!("the joiner understands formats up to level {level}; this swarm writes {FEATURE_LEVEL}");
            let status = Status::new(Code::FailedPrecondition, message).with_hint("install a newer skep there");
            return Some(OrderResult::Refused(status));
        }
        if let Some(member) = self.replicated.members.iter().find(|member| member.node_id == node_id) {
            if member.addr == addr {
                return Some(OrderResult::Done(self.join_answer(member.raft_id, addr)));
            }
            // A second join under a new address is a move.
            return self.order_address(token, node_id, &addr);
        }
        if self.replicated.members.iter().any(|member| member.addr == addr) {
            let message = format!("another member listens on {addr}");
            let status = Status::new(Code::AlreadyExists, message)
                .with_hint("start the joiner with another --advertise, or remove the old member first");
            return Some(OrderResult::Refused(status));
        }
        self.want(Wanted { token: Some(token), node_id, kind: WantedKind::Join(addr) })
    }

    fn want(&mut self, wanted: Wanted) -> Option<OrderResult> {
        if self.orders.concerns(wanted.node_id) && wanted.token.is_some() {
            let message = format!("a membership change of node {} is under way", wanted.node_id);
            let status = Status::new(Code::Unavailable, message).with_hint("try again in a second");
            return Some(OrderResult::Refused(status));
        }
        if self.orders.want(wanted) {
            return None;
        }
        let status = Status::new(Code::ResourceExhausted, "too many membership changes wait for their turn");
        Some(OrderResult::Refused(status.with_hint("try again in a second")))
    }

    fn order_leave(&mut self, token: Token, node_id: NodeId, force: bool) -> Option<OrderResult> {
        let Some(member) = self.replicated.members.iter().find(|member| member.node_id == node_id) else {
            return Some(OrderResult::Done(Answer::Done));
        };
        let member = member.clone();
        let voters = self.voters().count();
        if member.role == MemberRole::Voter && voters == 1 {
            let status = Status::new(Code::FailedPrecondition, "the last manager cannot leave its swarm");
            return Some(OrderResult::Refused(
                status.with_hint("to end the swarm, stop the daemon and remove its data directory"),
            ));
        }
        if member.role == MemberRole::Voter && !force {
            let left = voters - 1;
            let needed = left / 2 + 1;
            let reachable = self.voters().filter(|m| m.node_id != node_id && self.is_up(m.node_id)).count();
            if reachable < needed {
                let message = format!(
                    "removing manager {node_id} would leave {reachable} reachable of {left} voters, and {needed} are needed"
                );
                let status = Status::new(Code::FailedPrecondition, message)
                    .with_hint("bring the other managers back first, or use --force");
                return Some(OrderResult::Refused(status));
            }
        }
        if member.raft_id == self.raft_id {
            // A removed leader would go on sending heartbeats for ever: whoever leads next removes it.
            if self.node.raft.lead_transferee.is_none() && !self.transfer_to_best(None) {
                let status = Status::new(Code::Unavailable, "no other voter is reachable to lead first");
                return Some(OrderResult::Refused(status.with_hint("see who is reachable with `skep members`")));
            }
            // Answered when leadership has moved.
            self.orders.waiting.push_back(Wanted { token: Some(token), node_id, kind: WantedKind::Leave(force) });
            return None;
        }
        self.want(Wanted { token: Some(token), node_id, kind: WantedKind::Leave(force) })
    }

    fn order_address(&mut self, token: Token, node_id: NodeId, addr: &str) -> Option<OrderResult> {
        let Some(member) = self.replicated.members.iter().find(|member| member.node_id == node_id) else {
            let status = Status::new(Code::FailedPrecondition, format!("node {node_id} is not a member"));
            return Some(OrderResult::Refused(status.with_hint("join first with `skep run --join`")));
        };
        if member.addr == addr {
            return Some(OrderResult::Done(Answer::Done));
        }
        let command = Command::SetAddress { raft_id: member.raft_id, node_id, addr: addr.to_owned() };
        match self.propose_command(&command) {
            Some((index, term)) => {
                self.orders.addresses.push((index, term, token));
                None
            }
            None => Some(OrderResult::Again),
        }
    }

    fn join_answer(&self, raft_id: RaftId, advertise: String) -> Answer {
        Answer::Joined(Box::new(JoinAnswer {
            raft_id,
            advertise,
            lineage: self.lineage,
            profile: self.profile,
            members: self.replicated.members.clone(),
        }))
    }

    /// Proposes the next membership change when nothing stands against it.
    fn propose_membership(&mut self) {
        let raft = &self.node.raft;
        let free = self.is_leader()
            && raft.lead_transferee.is_none()
            && self.orders.proposed.is_none()
            && raft.commit_to_current_term()
            && !raft.has_pending_conf()
            && raft.pending_conf_index <= self.applied.0;
        if !free {
            return;
        }
        let Some(wanted) = self.orders.waiting.pop_front() else { return };
        let member = self.replicated.members.iter().find(|member| member.node_id == wanted.node_id);
        let (kind, id, change) = match (wanted.kind, member) {
            (WantedKind::Join(addr), None) => {
                let raft_id = self.replicated.next_raft_id;
                let change = MemberChange::AddLearner { raft_id, node_id: wanted.node_id, addr };
                (ConfChangeType::AddLearnerNode, raft_id, change)
            }
            (WantedKind::Promote(raft_id), Some(member)) if member.role == MemberRole::Learner => {
                (ConfChangeType::AddNode, raft_id, MemberChange::Promote { raft_id })
            }
            (WantedKind::Leave(_), Some(member)) if member.raft_id != self.raft_id => {
                let raft_id = member.raft_id;
                (ConfChangeType::RemoveNode, raft_id, MemberChange::Remove { raft_id })
            }
            _ => {
                // Overtaken by another change: whoever asked finds out by asking again.
                if let Some(token) = wanted.token {
                    self.effects.replies.push(Reply::Order(token, OrderResult::Again));
                }
                return;
            }
        };
        let mut conf_change = ConfChange::default();
        conf_change.set_change_type(kind);
        conf_change.node_id = id.0;
        conf_change.context = envelope::encode(&change).into();
        if self.node.propose_conf_change(Vec::new(), conf_change).is_err() {
            if let Some(token) = wanted.token {
                self.effects.replies.push(Reply::Order(token, OrderResult::Again));
            }
            return;
        }
        let index = Index(self.node.raft.raft_log.last_index());
        let term = Term(self.node.raft.term);
        self.orders.proposed = Some(Proposed { token: wanted.token, index, term, change, node_id: wanted.node_id });
    }

    /// What became of the membership change at `index`: apply's verdict, or `None` when raft-rs put nothing in its place.
    fn membership_decided(&mut self, index: Index, verdict: Option<bool>) {
        let Some(proposed) = self.orders.proposed.take_if(|proposed| proposed.index <= index) else { return };
        let decided = proposed.index == index && verdict.is_some();
        let certain = decided && verdict == Some(true);
        let Some(token) = proposed.token else { return };
        let result = match proposed.change {
            MemberChange::AddLearner { raft_id, addr, .. } if certain => {
                OrderResult::Done(self.join_answer(raft_id, addr))
            }
            MemberChange::Promote { .. } | MemberChange::Remove { .. } if certain => OrderResult::Done(Answer::Done),
            // Its id is new and the node is no member, so that apply can have refused it for one reason only.
            MemberChange::AddLearner { .. } if decided => {
                let message = format!("node {} was removed from this swarm", proposed.node_id);
                let hint = "join it again with an empty data directory, as a new node";
                OrderResult::Refused(Status::new(Code::FailedPrecondition, message).with_hint(hint))
            }
            _ => OrderResult::Again,
        };
        self.effects.replies.push(Reply::Order(token, result));
    }

    fn promote_learners(&mut self) {
        let last = self.node.raft.raft_log.last_index();
        let candidate = self.replicated.members.iter().find(|member| {
            let progress = self.node.raft.prs().get(member.raft_id.0);
            member.role == MemberRole::Learner
                && !self.orders.concerns(member.node_id)
                && progress.is_some_and(|progress| {
                    // After a snapshot raft-rs goes on probing until there is an entry to send.
                    let is_following = progress.state == ProgressState::Replicate || progress.matched == last;
                    is_following
                        && progress.recent_active
                        && progress.matched > 0
                        && progress.matched + PROMOTION_LAG >= last
                })
        });
        if let Some(member) = candidate {
            let kind = WantedKind::Promote(member.raft_id);
            let node_id = member.node_id;
            self.orders.want(Wanted { token: None, node_id, kind });
        }
    }

    /// Begins a transfer to the voter that is furthest; false when there is none.
    fn transfer_to_best(&mut self, healthy_sync_us: Option<u64>) -> bool {
        if !self.is_leader() {
            return false;
        }
        let Some(to) = self.best_voter(healthy_sync_us) else { return false };
        self.node.transfer_leader(to.0);
        if self.orders.transfer.is_none() {
            self.orders.transfer = Some(Transfer { token: None, to, term: Term(self.node.raft.term) });
        }
        true
    }

    fn best_voter(&self, healthy_sync_us: Option<u64>) -> Option<RaftId> {
        self.voters()
            .filter(|member| member.raft_id != self.raft_id)
            .filter_map(|member| {
                let peer = self.peers.get(&member.node_id).filter(|peer| peer.up)?;
                let healthy = healthy_sync_us.is_none_or(|limit| peer.sync_us <= limit);
                let progress = self.node.raft.prs().get(member.raft_id.0).filter(|_| healthy)?;
                Some((progress.matched, std::cmp::Reverse(member.raft_id)))
            })
            .max()
            .map(|(_, id)| id.0)
    }

    fn finish_snapshot_orders(&mut self, result: OrderResult) {
        for token in std::mem::take(&mut self.orders.snapshots) {
            self.effects.replies.push(Reply::Order(token, result.clone()));
        }
    }

    // ---- durability ----

    fn run_ready_loop(&mut self, now: Instant) {
        while self.node.has_ready() {
            let mut ready = self.node.ready();
            let number = ready.number();
            for message in ready.take_messages() {
                self.send(message);
            }
            for read in ready.take_read_states() {
                self.reads.confirm(&read.request_ctx, Index(read.index));
            }
            let snapshot = if ready.snapshot().is_empty() { None } else { Some(ready.snapshot().clone()) };
            let mut persist_snapshot = None;
            if let Some(snapshot) = snapshot {
                let metadata = snapshot.get_metadata();
                let state = metadata.get_conf_state();
                let configuration = Configuration {
                    voters: state.voters.iter().map(|id| RaftId(*id)).collect(),
                    learners: state.learners.iter().map(|id| RaftId(*id)).collect(),
                };
                let position = Position { term: Term(metadata.term), index: Index(metadata.index) };
                let bytes = self.fetched_bytes;
                self.node.mut_store().install(SnapshotMark { position, configuration, bytes });
                self.log_bytes = 0;
                self.sizes.clear();
                self.committed.clear();
                self.committed_bytes = 0;
                self.deciding = None;
                self.effects.install = Some(position);
                persist_snapshot = Some(wal::SnapshotMark::Installed(position));
            }
            let entries = ready.take_entries();
            self.node.mut_store().append(&entries);
            for entry in ready.take_committed_entries() {
                self.committed_bytes += entry_bytes(&entry);
                self.committed.push_back(entry);
            }
            let releases = self.sort_persisted_messages(ready.take_persisted_messages());
            let must_sync = ready.must_sync();
            self.node.advance_append_async(ready);
            if must_sync {
                self.persist(now, Some(number), entries, persist_snapshot, releases);
                if let Some(wal::SnapshotMark::Installed(position)) = persist_snapshot {
                    self.installing = Some((self.persist_number, position.index));
                    self.installed_early = None;
                }
            } else if self.in_flight.is_empty() {
                self.effects.messages.extend(releases);
                self.node.on_persist_ready(number);
            } else {
                self.persist_nothing(now, number, releases);
            }
        }
    }

    /// Answers that rest on nothing but a durable term need not wait for the disk.
    fn sort_persisted_messages(&mut self, messages: Vec<Message>) -> Vec<Outgoing> {
        let mut held = Vec::new();
        for message in messages {
            let granted = message.msg_type == MessageType::MsgRequestVoteResponse && !message.reject;
            if granted {
                self.failover.cancel();
            }
            let hasty = matches!(
                message.msg_type,
                MessageType::MsgHeartbeatResponse | MessageType::MsgReadIndex | MessageType::MsgReadIndexResp
            );
            if hasty && message.term <= self.durable.hard_state.term.0 {
                self.send(message);
            } else if let Some(outgoing) = self.address(message) {
                held.push(outgoing);
            }
        }
        held
    }

    fn current_hard_state(&self) -> wal::HardState {
        let raft = &self.node.raft;
        wal::HardState { term: Term(raft.term), vote: RaftId(raft.vote), commit: Index(raft.raft_log.committed) }
    }

    fn persist(
        &mut self,
        now: Instant,
        ready: Option<u64>,
        entries: Vec<Entry>,
        snapshot: Option<wal::SnapshotMark>,
        releases: Vec<Outgoing>,
    ) {
        self.persist_number += 1;
        let hard_state = self.current_hard_state();
        let bytes: u64 = entries.iter().map(entry_bytes).sum();
        let last = entries.last().map(|entry| Position { term: Term(entry.term), index: Index(entry.index) });
        let last = last.or(match snapshot {
            Some(wal::SnapshotMark::Installed(position)) => Some(position),
            _ => None,
        });
        self.note_sizes(&entries);
        self.unsynced_bytes += bytes;
        self.commit_asked = hard_state.commit;
        let number = self.persist_number;
        let hard_state = Some(hard_state);
        self.in_flight.push_back(InFlight { number, ready, since: now, sync: true, bytes, last, hard_state });
        self.effects.persist.push((Persist { number, entries, hard_state, snapshot, must_sync: true }, releases));
    }

    /// Keeps messages in order behind what is being synced.
    fn persist_nothing(&mut self, now: Instant, ready: u64, releases: Vec<Outgoing>) {
        self.persist_number += 1;
        let number = self.persist_number;
        let flight =
            InFlight { number, ready: Some(ready), since: now, sync: false, bytes: 0, last: None, hard_state: None };
        self.in_flight.push_back(flight);
        let persist = Persist { number, entries: Vec::new(), hard_state: None, snapshot: None, must_sync: false };
        self.effects.persist.push((persist, releases));
    }

    fn on_persisted(&mut self, number: u64) {
        let mut ready = None;
        while self.in_flight.front().is_some_and(|flight| flight.number <= number) {
            let flight = self.in_flight.pop_front().expect("front() was there");
            self.unsynced_bytes -= flight.bytes;
            ready = flight.ready.or(ready);
            if let Some(hard_state) = flight.hard_state {
                self.durable.hard_state = hard_state;
            }
            if let Some(last) = flight.last {
                self.durable.last = last;
            }
        }
        if let Some(ready) = ready {
            self.node.on_persist_ready(ready);
        }
        if !self.is_unsynced() {
            for vote in std::mem::take(&mut self.early_votes) {
                self.step_raft(vote);
            }
        }
        if self.installing.take_if(|(installed, _)| *installed <= number).is_some()
            && let Some(applied) = self.installed_early.take()
        {
            self.on_applied(applied);
        }
    }

    // ---- apply ----

    fn hand_to_apply(&mut self, now: Instant) {
        while let Some(entry) = self.committed.front() {
            if self.deciding.is_some() || self.applying_bytes > MAX_APPLYING_BYTES {
                break;
            }
            let index = Index(entry.index);
            if entry.entry_type == EntryType::EntryConfChange && index > self.durable.hard_state.commit {
                // A crash between applying a membership change and writing its commit would bring back a
                // configuration that no longer counts.
                if index > self.commit_asked {
                    self.persist(now, None, Vec::new(), None, Vec::new());
                }
                break;
            }
            let entry = self.committed.pop_front().expect("front() was there");
            let bytes = entry_bytes(&entry);
            self.committed_bytes -= bytes;
            self.applying_bytes += bytes;
            self.handed.push_back((index, bytes));
            let token = self.take_token(index, Term(entry.term));
            if entry.entry_type == EntryType::EntryConfChange {
                let mut change = ConfChange::default();
                // Apply stops the node on an entry it cannot read; an empty change alters nothing here.
                let _ = change.merge_from_bytes(&entry.data);
                self.deciding = Some((index, change));
            } else if entry.data.is_empty() {
                // The first entry of a term, or a membership change that raft-rs replaced.
                if self.orders.proposed.as_ref().is_some_and(|proposed| proposed.index == index) {
                    self.membership_decided(index, None);
                }
            } else {
                self.changes_since_mark += 1;
                self.last_change = now;
            }
            self.effects.apply.push((entry, token));
        }
    }

    /// The caller that waits for this entry. Callers whose entries were overwritten are told.
    fn take_token(&mut self, index: Index, term: Term) -> Option<Token> {
        while let Some(&(pending_index, pending_term, token)) = self.pending.front() {
            if pending_index > index {
                return None;
            }
            self.pending.pop_front();
            if pending_index == index && pending_term == term {
                return Some(token);
            }
            self.effects.replies.push(Reply::Lost(token));
        }
        None
    }

    fn on_applied(&mut self, applied: Applied) {
        let index = applied.position.index;
        // raft-rs panics when more is applied than persisted. Nothing else is handed to apply until then.
        if self.installing.is_some_and(|(_, installing)| index >= installing) {
            self.installed_early = Some(applied);
            return;
        }
        self.applied = self.applied.max(index);
        while self.handed.front().is_some_and(|(handed, _)| *handed <= index) {
            let (_, bytes) = self.handed.pop_front().expect("front() was there");
            self.applying_bytes -= bytes;
        }
        let was_member = self.is_member();
        if let Some(replicated) = applied.replicated {
            if replicated.members != self.replicated.members {
                self.effects.peers = Some(replicated.members.clone());
            }
            self.replicated = replicated;
        }
        if let Some((at, change)) = self.deciding.take_if(|(at, _)| *at <= index) {
            let accepted = applied.members.iter().any(|(member, accepted)| *member == at && *accepted);
            if accepted && let Err(error) = self.node.apply_conf_change(&change) {
                panic!("apply accepted a membership change that raft refuses: {error}");
            }
            let configuration = self.configuration();
            self.node.mut_store().set_configuration(&configuration);
            self.membership_decided(at, Some(accepted));
        }
        if index.0 > self.node.raft.raft_log.applied {
            self.node.advance_apply_to(index.0);
        }
        self.answer_addresses(index);
        if let Some(mark) = applied.mark {
            self.changes_since_mark = 0;
            self.mark_proposed = None;
            self.marks.push_back(mark);
            if self.marks.len() > MARKS_KEPT {
                self.marks.pop_front();
            }
            self.compare_hashes();
        }
        if was_member && !self.is_member() {
            self.effects.stop = Some(Stop::Removed);
        }
    }

    fn answer_addresses(&mut self, applied: Index) {
        let (done, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.orders.addresses).into_iter().partition(|(index, _, _)| *index <= applied);
        self.orders.addresses = waiting;
        for (index, term, token) in done {
            let same = self.node.store().term_at(index.0).is_none_or(|ours| ours == term);
            let result = if same { OrderResult::Done(Answer::Done) } else { OrderResult::Again };
            self.effects.replies.push(Reply::Order(token, result));
        }
    }

    // ---- leadership ----

    fn note_leadership(&mut self, now: Instant) {
        let raft = &self.node.raft;
        let (is_leader, term, leader_id) = (raft.state == StateRole::Leader, Term(raft.term), raft.leader_id);
        if leader_id != 0 {
            self.last_leader = Some(RaftId(leader_id));
            self.leader_lost = None;
            self.failover.cancel();
        } else if self.leader_lost.is_none() {
            self.leader_lost = Some(now);
        }
        let led = self.leadership.leader == Some(self.node_id);
        let new_term = term != self.leadership.term;
        if is_leader && (new_term || !led) {
            self.term_began = Index(raft.raft_log.last_index());
        }
        if led && (!is_leader || new_term) {
            self.leadership_ended();
        }
        let leader = if leader_id == 0 { None } else { self.node_of(leader_id) };
        let serving = is_leader && self.applied >= self.term_began;
        let leadership = Leadership { leader, serving, term };
        self.settle_transfer(leader_id, term);
        if leadership != self.leadership {
            self.leadership = leadership;
            self.effects.leadership = Some(leadership);
        }
    }

    fn leadership_ended(&mut self) {
        let uncertain = std::mem::take(&mut self.pending).into_iter().map(|(_, _, token)| Reply::Uncertain(token));
        self.effects.replies.extend(uncertain);
        let replies = self.orders.leadership_ended();
        self.effects.replies.extend(replies);
        self.mark_proposed = None;
        for peer in self.peers.values_mut() {
            peer.snapshot = None;
        }
    }

    fn settle_transfer(&mut self, leader: u64, term: Term) {
        let Some(transfer) = self.orders.transfer.take_if(|transfer| transfer.term != term && leader != 0) else {
            return;
        };
        if let Some(token) = transfer.token {
            let result = match self.node_of(leader) {
                Some(node) if transfer.to.0 == leader => OrderResult::Done(Answer::Leader(node)),
                _ => {
                    let message = format!("member {leader} took over instead of member {}", transfer.to);
                    OrderResult::Refused(Status::new(Code::Aborted, message).with_hint("try again"))
                }
            };
            self.effects.replies.push(Reply::Order(token, result));
        }
    }

    fn propose_mark(&mut self, now: Instant) {
        let due = self.changes_since_mark >= MARK_CHANGES
            || (self.changes_since_mark > 0 && now.since(self.last_change) > MARK_IDLE);
        if !due || self.mark_proposed.is_some() || !self.leadership.serving {
            return;
        }
        let progress = self.node.raft.prs();
        let floors = self
            .voters()
            .map(|member| {
                (member.raft_id, Index(progress.get(member.raft_id.0).map_or(0, |progress| progress.matched)))
            })
            .collect();
        self.mark_proposed = self.propose_command(&Command::Mark { floors }).map(|(index, _)| index);
    }

    // ---- snapshots and compaction ----

    fn note_sizes(&mut self, entries: &[Entry]) {
        for entry in entries {
            let bytes = entry_bytes(entry);
            self.log_bytes += bytes;
            self.total_bytes += bytes;
            if self.sizes.back().is_none_or(|(index, at)| self.total_bytes >= at + SIZE_GRAIN || index.0 >= entry.index)
            {
                while self.sizes.back().is_some_and(|(index, _)| index.0 >= entry.index) {
                    self.sizes.pop_back();
                }
                self.sizes.push_back((Index(entry.index), self.total_bytes));
            }
        }
    }

    fn check_snapshot_due(&mut self, now: Instant) {
        let settings = self.replicated.settings;
        let size = settings.snapshot_bytes.max(2 * self.node.store().snapshot_mark().bytes);
        // The managers of a swarm do not all write at once.
        let due = size + size / 8 * u64::from(self.rank_without(RaftId(0)));
        let wanted = self.node.mut_store().take_snapshot_wanted();
        if self.snapshot_pause.is_some_and(|(until, _)| now < until) {
            return;
        }
        if self.log_bytes > due {
            self.create_snapshot();
        } else if let Some((index, _)) = wanted
            && index <= self.applied.0
            && self.node.store().snapshot_mark().position.index < self.applied
        {
            self.create_snapshot();
        }
    }

    fn create_snapshot(&mut self) {
        if !self.creating_snapshot && self.applied.0 > 0 {
            self.creating_snapshot = true;
            self.effects.create_snapshot = true;
        }
    }

    fn on_snapshot_created(&mut self, now: Instant, mark: SnapshotMark) {
        self.creating_snapshot = false;
        self.snapshot_pause = None;
        let position = mark.position;
        let answer = Answer::SnapshotWritten { position, bytes: mark.bytes };
        self.finish_snapshot_orders(OrderResult::Done(answer));
        if position <= self.node.store().snapshot_mark().position {
            return;
        }
        let settings = self.replicated.settings;
        self.log_bytes = self.bytes_after(position.index);
        self.node.mut_store().snapshot_created(mark);
        self.persist(now, None, Vec::new(), Some(wal::SnapshotMark::Created(position)), Vec::new());
        let mut keep_from = self.index_bytes_before(position.index, settings.keep_bytes);
        if self.is_leader() {
            let slowest = self
                .replicated
                .members
                .iter()
                .filter(|member| member.raft_id != self.raft_id)
                .filter_map(|member| self.node.raft.prs().get(member.raft_id.0))
                .filter(|progress| progress.recent_active && progress.matched > 0)
                .map(|progress| progress.matched)
                .min();
            // Nobody needs what everybody active has.
            keep_from = keep_from.max(Index(slowest.unwrap_or(u64::MAX).saturating_add(1)).min(position.index.next()));
        }
        // Whoever is being sent an older snapshot needs the log from there on.
        let sending = self.node.raft.prs().iter().filter(|(_, progress)| progress.state == ProgressState::Snapshot);
        let sent = sending.map(|(_, progress)| Index(progress.pending_snapshot)).min().unwrap_or(position.index);
        // What raft-rs has not been told to be applied it may still read, when it campaigns.
        let keep_from = keep_from.min(position.index.min(sent).min(self.applied).next());
        if keep_from > self.node.store().first() {
            self.node.mut_store().compact(keep_from);
            while self.sizes.len() > 1 && self.sizes[1].0 <= keep_from {
                self.sizes.pop_front();
            }
            self.effects.compact = Some(keep_from);
        }
    }

    fn bytes_after(&self, index: Index) -> u64 {
        let at = self.sizes.iter().rev().find(|(sampled, _)| *sampled <= index).map_or(0, |(_, at)| *at);
        self.total_bytes - at.min(self.total_bytes)
    }

    /// The index from which on at most `bytes` of log stand before `index`.
    fn index_bytes_before(&self, index: Index, bytes: u64) -> Index {
        let end = self.total_bytes - self.bytes_after(index).min(self.total_bytes);
        let from = self.sizes.iter().find(|(sampled, at)| *sampled <= index && at + bytes >= end);
        from.map_or(index.next(), |(sampled, _)| *sampled)
    }

    // ---- helpers ----

    fn send(&mut self, message: Message) {
        if let Some(outgoing) = self.address(message) {
            self.effects.messages.push(outgoing);
        }
    }

    fn address(&self, message: Message) -> Option<Outgoing> {
        let to = self.node_of(message.to)?;
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

    fn campaign(&mut self) {
        let raft = &self.node.raft;
        // raft-rs lets a learner campaign and even win, and panics without voters.
        let must_wait = self.is_sole_voter() && (!self.in_flight.is_empty() || self.is_unsynced());
        if raft.promotable() && !self.is_leader() && !must_wait {
            self.elections += 1;
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
        let ticks = failover::election_timeout(self.seed, self.raft_id.0, raft.term, role, self.timing.election_ticks);
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
                        active: progress.recent_active || member.raft_id == self.raft_id,
                    })
                })
                .collect()
        } else {
            Vec::new()
        };
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
        }
    }
}

fn snapshot_position(message: &Message) -> Position {
    let metadata = message.get_snapshot().get_metadata();
    Position { term: Term(metadata.term), index: Index(metadata.index) }
}
