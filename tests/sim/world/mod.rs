//! A swarm in one thread under one seed: managers, the network between them, their clients, and what must always hold.
//!
//! Everything that happens stands in one queue, in order of time and of when it was put there; nothing else has an order
//! that could differ between two runs.

mod clients;
mod faults;
mod managers;
mod memory;
mod network;
mod orders;
mod recovery;
pub mod roles;
mod verdict;
mod watchers;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use bytes::Bytes;
use skep::raft::journal::Happened;
use skep::raft::{Event, Fetch, FetchSnapshot, OrderResult, Token};
use skep::store::State;
use skep::sys::entropy::SeededEntropy;
use skep::types::object::{Profile, RaftSettings};
use skep::types::{ChangeId, Index, Lineage, MemberRole, NodeId, Outcome, RaftId, Revision};

pub use self::clients::Client;
pub use self::network::Network;
use self::roles::Court;
pub use self::watchers::Watcher;
use crate::failure::fail;
use crate::history::{Op, Searched};
use crate::node::{Cause, LINEAGE, Layout, Node};
use crate::promises::Promises;
use crate::serial::Serial;
use crate::workload::Workload;
use crate::{Duration, Instant, ms};

struct Timed {
    at: Instant,
    seq: u64,
    target: Target,
}

enum Target {
    Node(NodeId, u64, Happening),
    Client(usize, u64),
    Watcher(usize),
    Court,
    Links,
    Pings,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.seq) == (other.at, other.seq)
    }
}

impl Eq for Timed {}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

/// What happens at a manager.
pub enum Happening {
    Tick,
    Wake,
    Finish,
    Deliver(NodeId, Bytes),
    Lost(NodeId),
    Link { peer: NodeId, up: bool, refused: bool },
    Pong(NodeId),
    Written,
    Persisted(u64),
    Applied,
    SnapshotMade,
    LogRead(Box<Fetch>),
    SnapshotCame(FetchSnapshot),
    Request(Box<Event>),
    Stale(usize, usize),
}

/// The simulated swarm.
pub struct World {
    pub entropy: SeededEntropy,
    pub now: Instant,
    pub nodes: BTreeMap<NodeId, Node>,
    pub net: Network,
    pub layout: Layout,
    pub workload: Workload,
    /// Clients begin new calls.
    pub load: bool,
    /// Changes that were acknowledged, with their revision.
    pub acked: BTreeMap<ChangeId, Revision>,
    pub reads_done: u64,
    /// Streams that watchers opened.
    pub watches: u64,
    /// Leaders that announced themselves, in order.
    pub reigns: Vec<(Instant, NodeId)>,
    /// What the machines noted.
    pub happened: Vec<(NodeId, Happened)>,
    /// Nodes that may find out that their data is not to be trusted.
    pub may_fence: BTreeSet<NodeId>,
    /// Nodes whose disk was made to fail, or whose files were damaged: their process may end or refuse to start.
    pub may_fail: BTreeSet<NodeId>,
    /// The member whose data is gone or not to be used, until it has been replaced.
    pub lost: Option<NodeId>,
    /// The member that runs from an old copy of its directory.
    pub rolled_back: Option<NodeId>,
    /// The history that is checked, and how many recoveries came before it.
    pub lineage: Lineage,
    pub era: u32,
    /// Managers of a former history that were told that it is over.
    pub outlived: BTreeSet<NodeId>,
    /// Acknowledged changes that no heir held.
    pub acked_and_lost: usize,
    /// The newest start of the second that the first has welcomed.
    pub met: BTreeMap<(NodeId, NodeId), u64>,
    /// Digest of everything that happened.
    pub trace: u32,
    /// Tells everything that happens.
    pub verbose: bool,
    /// What the searches for an order did, once all is over.
    pub searched: Searched,
    seq: u64,
    queue: BinaryHeap<Reverse<Timed>>,
    /// Looks at the links that stand in the queue.
    looks: u32,
    serial: Serial,
    promises: Promises,
    history: Vec<Op>,
    clients: Vec<Client>,
    watchers: Vec<Watcher>,
    next_value: u64,
    issued: BTreeSet<ChangeId>,
    /// Every answer that a client got.
    told: BTreeMap<ChangeId, Outcome>,
    /// The newest revision that anybody was told of.
    floor: Revision,
    /// Connections, and the lives of the two processes that they are between.
    links: BTreeMap<(NodeId, NodeId), (u64, u64)>,
    /// When a link's far end was first silent.
    silent: BTreeMap<(NodeId, NodeId), Instant>,
    last_delivery: BTreeMap<(NodeId, NodeId), Instant>,
    /// When the first of the pair hears, or heard, the last news of its link.
    last_link: BTreeMap<(NodeId, NodeId), Instant>,
    orders: BTreeMap<Token, Option<OrderResult>>,
    /// Nodes' roles, and who sees to them.
    pub court: Court,
    next_token: Token,
    next_node: u128,
    raft_ids: BTreeMap<RaftId, NodeId>,
}

impl World {
    /// Nobody yet.
    pub fn new(seed: u64) -> Self {
        let settings = RaftSettings::for_profile(Profile::Lan);
        let mut world = Self {
            entropy: SeededEntropy::new(seed),
            now: Instant::from_nanos(10_000_000_000),
            nodes: BTreeMap::new(),
            net: Network::healthy(),
            layout: Layout { seed, settings, segment_bytes: 64 << 10, ring_bytes: 1 << 20 },
            workload: Workload::default(),
            load: false,
            acked: BTreeMap::new(),
            reads_done: 0,
            watches: 0,
            reigns: Vec::new(),
            happened: Vec::new(),
            may_fence: BTreeSet::new(),
            may_fail: BTreeSet::new(),
            lost: None,
            rolled_back: None,
            lineage: LINEAGE,
            era: 0,
            outlived: BTreeSet::new(),
            acked_and_lost: 0,
            met: BTreeMap::new(),
            trace: 0,
            verbose: std::env::var_os("SKEP_SIM_REPLAY").is_some(),
            searched: Searched::default(),
            seq: 0,
            queue: BinaryHeap::new(),
            looks: 0,
            serial: Serial::new(),
            promises: Promises::default(),
            history: Vec::new(),
            clients: Vec::new(),
            watchers: Vec::new(),
            next_value: 0,
            issued: BTreeSet::new(),
            told: BTreeMap::new(),
            floor: Revision(0),
            links: BTreeMap::new(),
            silent: BTreeMap::new(),
            last_delivery: BTreeMap::new(),
            last_link: BTreeMap::new(),
            orders: BTreeMap::new(),
            court: Court::default(),
            next_token: 1,
            next_node: 1,
            raft_ids: BTreeMap::new(),
        };
        world.look_at_links_in(Duration::ZERO);
        world.schedule(ms(7), Target::Pings);
        world
    }

    /// `size` voters, the first of which leads.
    pub fn cluster(seed: u64, size: usize) -> Self {
        Self::cluster_with(seed, size, |_| {})
    }

    pub fn cluster_with(seed: u64, size: usize, settings: impl FnOnce(&mut RaftSettings)) -> Self {
        let mut world = Self::new(seed);
        settings(&mut world.layout.settings);
        world.grow(size);
        world
    }

    /// Begins a swarm of `size` voters.
    pub fn grow(&mut self, size: usize) {
        self.bootstrap();
        for _ in 1..size {
            self.join();
        }
        self.wait_for_voters(size);
    }

    // ---- what there is to see ----

    pub fn is_running(&self, id: NodeId) -> bool {
        self.nodes[&id].run.is_some()
    }

    pub fn stopped(&self, id: NodeId) -> Option<&Cause> {
        self.nodes[&id].stopped.as_ref()
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// Who serves as leader, by the newest term.
    pub fn leader(&self) -> Option<NodeId> {
        let serving = self.nodes.values().filter_map(|node| {
            let leadership = node.run.as_ref()?.machine.leadership();
            (leadership.serving && !node.paused && node.era == self.era).then_some((leadership.term, node.id))
        });
        serving.max().map(|(_, id)| id)
    }

    pub fn term(&self, id: NodeId) -> u64 {
        self.nodes[&id].run.as_ref().map_or(0, |run| run.machine.leadership().term.0)
    }

    pub fn followers(&self) -> Vec<NodeId> {
        let leader = self.leader();
        self.ids().into_iter().filter(|id| Some(*id) != leader && self.is_current(*id)).collect()
    }

    pub fn state(&self, id: NodeId) -> State {
        self.nodes[&id].state().expect("the node runs")
    }

    fn view<T>(&self, id: NodeId, read: impl FnOnce(&State) -> T) -> T {
        self.nodes[&id].run.as_ref().expect("the node runs").applier.store().view(read)
    }

    pub fn voters(&self, id: NodeId) -> usize {
        self.view(id, |state| state.members().values().filter(|member| member.role == MemberRole::Voter).count())
    }

    fn report(&self, id: NodeId) -> skep::raft::Report {
        self.nodes[&id].run.as_ref().expect("the node runs").machine.report(self.now)
    }

    pub fn first_index(&self, id: NodeId) -> Index {
        self.report(id).first
    }

    pub fn last_index(&self, id: NodeId) -> Index {
        self.report(id).last
    }

    pub fn snapshot_index(&self, id: NodeId) -> Index {
        self.report(id).snapshot
    }

    // ---- letting time pass ----

    pub fn wait_for_voters(&mut self, count: usize) {
        self.run_until("everybody votes", ms(20_000), |world| {
            let counts = |id: &NodeId| world.is_running(*id) && world.is_current(*id);
            let running: Vec<NodeId> = world.ids().into_iter().filter(counts).collect();
            world.leader().is_some() && running.iter().all(|id| world.voters(*id) == count)
        });
    }

    pub fn wait_for_leader(&mut self, limit: Duration) -> NodeId {
        self.run_until("somebody leads", limit, |world| world.leader().is_some());
        self.leader().expect("waited for")
    }

    /// Waits until everybody that runs has applied the same entries.
    pub fn settle(&mut self) {
        self.run_until("everybody has caught up", ms(30_000), Self::is_settled);
    }

    /// Whether everybody that runs has applied the same entries.
    pub fn is_settled(&self) -> bool {
        let current = self.nodes.values().filter(|node| node.era == self.era);
        let running = current.filter_map(|node| node.run.as_ref());
        let mut applied = running.map(|run| run.applier.store().view(State::applied));
        let first = applied.next();
        self.leader().is_some() && applied.all(|other| Some(other) == first)
    }

    pub fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.turn(end) {}
    }

    pub fn run_until(&mut self, what: &str, limit: Duration, done: impl Fn(&Self) -> bool) {
        let end = self.now + limit;
        while !done(self) {
            if !self.turn(end) {
                fail("liveness", format!("not within {limit:?}: {what}\n{}", self.describe()));
            }
        }
    }

    /// Every manager, one a line.
    pub fn describe(&self) -> String {
        let mut lines = Vec::new();
        for node in self.nodes.values() {
            lines.push(match &node.run {
                Some(run) => {
                    let report = run.machine.report(self.now);
                    format!(
                        "node {}: {:?}, leader {:?}, commit {}, log {}..={}, snapshot {}, members {:?}, reachable {:?}{}",
                        node.id.0,
                        run.machine,
                        report.leader.map(|id| id.0),
                        report.commit,
                        report.first,
                        report.last,
                        report.snapshot,
                        report.members.iter().map(|m| (m.raft_id.0, m.node_id.0, m.role)).collect::<Vec<_>>(),
                        report.reachable.iter().map(|id| id.0).collect::<Vec<_>>(),
                        if node.paused { ", paused" } else { "" },
                    )
                }
                None => format!("node {} (raft {}): down, {:?}", node.id.0, node.raft_id, node.stopped),
            });
        }
        lines.join("\n")
    }

    /// A line of the trace that people read.
    fn note(&self, line: impl FnOnce(&Self) -> String) {
        if self.verbose {
            println!("{:>12.6} {}", self.now.as_nanos() as f64 / 1e9, line(self));
        }
    }

    /// Lets the next thing happen; false when nothing does before `end`, which is then now.
    fn turn(&mut self, end: Instant) -> bool {
        if self.queue.peek().is_none_or(|next| next.0.at > end) {
            self.now = end;
            return false;
        }
        let Some(Reverse(Timed { at, seq, target })) = self.queue.pop() else { return false };
        self.now = at;
        let mut hasher = crc32fast::Hasher::new_with_initial(self.trace);
        hasher.update(&at.as_nanos().to_le_bytes());
        hasher.update(&seq.to_le_bytes());
        if let Target::Node(_, _, Happening::Deliver(_, body)) = &target {
            hasher.update(body);
        }
        self.trace = hasher.finalize();
        match target {
            Target::Client(client, alarm) => self.client_turn(client, alarm),
            Target::Watcher(watcher) => self.watcher_turn(watcher),
            Target::Court => self.court_turn(),
            Target::Links => self.look_at_links(),
            Target::Pings => self.ping_all(),
            Target::Node(id, life, happening) => {
                let node = self.nodes.get_mut(&id).expect("nodes are never taken away");
                if node.life != life || node.run.is_none() {
                    return true;
                }
                if node.paused {
                    // It happens when the process goes on; of ticks only one is under way.
                    node.held.push(happening);
                    return true;
                }
                self.happen(id, happening);
            }
        }
        true
    }

    fn schedule(&mut self, after: Duration, target: Target) {
        self.schedule_at(self.now + after, target);
    }

    fn schedule_at(&mut self, at: Instant, target: Target) {
        self.seq += 1;
        self.queue.push(Reverse(Timed { at, seq: self.seq, target }));
    }

    fn at_node(&mut self, id: NodeId, after: Duration, happening: Happening) {
        let life = self.nodes[&id].life;
        self.schedule(after, Target::Node(id, life, happening));
    }

    fn between(&mut self, (low, high): (u64, u64)) -> Duration {
        Duration::from_micros(low + self.entropy.below(high - low + 1))
    }
}
