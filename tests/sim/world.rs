//! A swarm in one thread under one seed: managers, the network between them, their clients, and what must always hold.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use bytes::Bytes;
use raft::eraftpb::MessageType;
use skep::apply;
use skep::codec::raft_message;
use skep::raft::journal::Happened;
use skep::raft::{Effects, Event, Fetch, FetchSnapshot, Order, OrderResult, Outgoing, Reply, Stop, Token};
use skep::store::State;
use skep::store::scrub::{Progress, Scrubber};
use skep::sys::entropy::{Entropy, SeededEntropy};
use skep::sys::time::Instant;
use skep::types::api::Answer;
use skep::types::log::Command;
use skep::types::object::{Annotations, Config, ConfigSpec, Meta, Profile, RaftSettings};
use skep::types::{
    Change, ChangeId, Index, Kind, MemberRole, NodeId, Object, ObjectId, Operation, Outcome, RaftId, Revision,
    Timestamp,
};

use crate::node::{Agreement, ApplyJob, Node, Start, WalJob};

pub const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// How the network behaves. Times in microseconds, chances in a thousand.
#[derive(Clone, Debug)]
pub struct Network {
    pub latency_us: (u64, u64),
    pub drop: u64,
    pub duplicate: u64,
    pub reorder: bool,
    /// Nothing gets from the first to the second.
    pub cut: BTreeSet<(NodeId, NodeId)>,
}

impl Network {
    pub fn healthy() -> Self {
        Self { latency_us: (50, 400), drop: 0, duplicate: 0, reorder: false, cut: BTreeSet::new() }
    }
}

struct Timed {
    at: Instant,
    seq: u64,
    target: Target,
}

enum Target {
    Node(NodeId, u64, Happening),
    Client(usize, u64),
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

enum Happening {
    Tick,
    Wake,
    Finish,
    Deliver(NodeId, Bytes),
    Lost(NodeId),
    Link { peer: NodeId, up: bool, refused: bool },
    Pong(NodeId),
    Written,
    Applied,
    SnapshotMade,
    LogRead(Box<Fetch>),
    SnapshotCame(FetchSnapshot),
    Request(Box<Event>),
}

/// A caller with one request outstanding at most.
#[derive(Default)]
struct Client {
    doing: Option<Doing>,
    /// Its newest alarm; earlier ones are void.
    alarm: u64,
    /// The object it writes, its version, and how often it was written.
    object: Option<(ObjectId, Revision)>,
}

struct Doing {
    /// Fixed before the first attempt; `None` for a read.
    change: Option<Change>,
    /// What a read must see at least.
    floor: Revision,
    node: NodeId,
    token: Token,
    since: Instant,
}

/// The simulated swarm.
pub struct World {
    pub seed: u64,
    pub entropy: SeededEntropy,
    pub now: Instant,
    pub nodes: BTreeMap<NodeId, Node>,
    pub net: Network,
    pub settings: RaftSettings,
    /// Changes that were acknowledged, with their revision.
    pub acked: BTreeMap<ChangeId, Revision>,
    pub reads_done: u64,
    /// Leaders that announced themselves, in order.
    pub reigns: Vec<(Instant, NodeId)>,
    /// What the machines noted.
    pub happened: Vec<(NodeId, Happened)>,
    /// Nodes that may find out that their data is not to be trusted.
    pub may_fence: BTreeSet<NodeId>,
    /// Clients begin new requests.
    pub load: bool,
    /// Digest of everything that happened.
    pub trace: u32,
    /// Payload bytes of a write.
    pub payload: usize,
    seq: u64,
    queue: BinaryHeap<Reverse<Timed>>,
    agreement: Agreement,
    clients: Vec<Client>,
    issued: BTreeSet<ChangeId>,
    /// The newest revision that anybody was told of.
    floor: Revision,
    links: BTreeSet<(NodeId, NodeId)>,
    /// When a link's far end was first silent.
    silent: BTreeMap<(NodeId, NodeId), Instant>,
    last_delivery: BTreeMap<(NodeId, NodeId), Instant>,
    orders: BTreeMap<Token, Option<OrderResult>>,
    next_token: Token,
    next_node: u128,
    raft_ids: BTreeMap<RaftId, NodeId>,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            eprintln!(
                "at {:?} with seed {}: SKEP_SIM_SEED={} cargo test --test sim {name}",
                self.now, self.seed, self.seed
            );
        }
    }
}

impl World {
    /// Nobody yet.
    pub fn new(seed: u64) -> Self {
        let mut world = Self {
            seed,
            entropy: SeededEntropy::new(seed),
            now: Instant::from_nanos(10_000_000_000),
            nodes: BTreeMap::new(),
            net: Network::healthy(),
            settings: RaftSettings::for_profile(Profile::Lan),
            acked: BTreeMap::new(),
            reads_done: 0,
            reigns: Vec::new(),
            happened: Vec::new(),
            may_fence: BTreeSet::new(),
            load: false,
            trace: 0,
            payload: 64,
            seq: 0,
            queue: BinaryHeap::new(),
            agreement: Agreement::default(),
            clients: Vec::new(),
            issued: BTreeSet::new(),
            floor: Revision(0),
            links: BTreeSet::new(),
            silent: BTreeMap::new(),
            last_delivery: BTreeMap::new(),
            orders: BTreeMap::new(),
            next_token: 1,
            next_node: 1,
            raft_ids: BTreeMap::new(),
        };
        world.schedule(Duration::ZERO, Target::Links);
        world.schedule(ms(7), Target::Pings);
        world
    }

    /// `size` voters, the first of which leads.
    pub fn cluster(seed: u64, size: usize) -> Self {
        Self::cluster_with(seed, size, |_| {})
    }

    pub fn cluster_with(seed: u64, size: usize, settings: impl FnOnce(&mut RaftSettings)) -> Self {
        let mut world = Self::new(seed);
        settings(&mut world.settings);
        world.bootstrap();
        for _ in 1..size {
            world.join();
        }
        world.wait_for_voters(size);
        world
    }

    // ---- what tests do ----

    /// Begins a swarm.
    pub fn bootstrap(&mut self) -> NodeId {
        let id = self.new_node(RaftId(1));
        self.boot(id, &Start::Bootstrap);
        self.run_until("the first manager leads", ms(3000), |world| world.leader() == Some(id));
        id
    }

    /// Adds a manager, by way of the leader.
    pub fn join(&mut self) -> NodeId {
        let id = NodeId(self.next_node);
        let addr = address(id);
        match self.order(&Order::Join {
            node_id: id,
            addr: addr.clone(),
            feature_level: skep::types::api::FEATURE_LEVEL,
        }) {
            OrderResult::Done(Answer::Joined(answer)) => {
                assert_eq!(answer.advertise, addr);
                let added = self.new_node(answer.raft_id);
                assert_eq!(added, id);
                self.boot(id, &Start::Disk);
                id
            }
            other => panic!("the join was answered {other:?}"),
        }
    }

    /// A join that may come to nothing; the next attempt is then made by the same node.
    pub fn try_to_join(&mut self, leader: NodeId) {
        let (id, feature_level) = (NodeId(self.next_node), skep::types::api::FEATURE_LEVEL);
        let order = Order::Join { node_id: id, addr: address(id), feature_level };
        if let Some(OrderResult::Done(Answer::Joined(answer))) = self.order_at(leader, order) {
            self.new_node(answer.raft_id);
            self.boot(id, &Start::Disk);
        }
    }

    fn new_node(&mut self, raft_id: RaftId) -> NodeId {
        let id = NodeId(self.next_node);
        self.next_node += 1;
        if let Some(before) = self.raft_ids.insert(raft_id, id) {
            panic!("raft id {raft_id} was given to {} before {}", before.0, id.0);
        }
        self.nodes.insert(id, Node::new(id, raft_id, address(id)));
        id
    }

    fn boot(&mut self, id: NodeId, start: &Start) {
        let (now, seed, settings) = (self.now, self.seed, self.settings);
        let node = self.nodes.get_mut(&id).expect("the node exists");
        node.start(now, start, seed, settings, &mut self.entropy);
        node.stopped = None;
        if !node.corrupted {
            let state = node.state().expect("it runs");
            self.agreement.state(id, state.applied().index.0, state.hash());
        }
        let phase = self.entropy.below(100_000);
        self.at_node(id, Duration::from_micros(phase), Happening::Tick);
        self.finish_soon(id);
        self.schedule(ms(1), Target::Links);
    }

    /// Starts a process that was stopped.
    pub fn start(&mut self, id: NodeId) {
        self.boot(id, &Start::Disk);
    }

    /// kill -9: what was written stays, redials are refused.
    pub fn kill(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("the node exists");
        node.run = None;
        node.life += 1;
        self.schedule(Duration::ZERO, Target::Links);
    }

    /// The machine loses its power: what was not synced is lost in part, and nobody refuses anything.
    pub fn lose_power(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("the node exists");
        node.lose_power(&mut self.entropy);
        node.life += 1;
    }

    /// The data directory is lost while the process is down.
    pub fn wipe(&mut self, id: NodeId) {
        assert!(!self.is_running(id));
        self.nodes[&id].disk.wipe();
    }

    /// SIGSTOP and SIGCONT.
    pub fn pause(&mut self, id: NodeId, paused: bool) {
        self.nodes.get_mut(&id).expect("the node exists").paused = paused;
    }

    /// The disk stops answering, or goes on.
    pub fn stall(&mut self, id: NodeId, stalled: bool) {
        self.nodes.get_mut(&id).expect("the node exists").stalled = stalled;
    }

    /// Nothing gets from anyone in `from` to anyone in `to`.
    pub fn cut(&mut self, from: &[NodeId], to: &[NodeId]) {
        for &from in from {
            self.net.cut.extend(to.iter().filter(|to| **to != from).map(|&to| (from, to)));
        }
    }

    /// Separates `group` from everybody else, in both directions.
    pub fn isolate(&mut self, group: &[NodeId]) {
        let others: Vec<NodeId> = self.nodes.keys().filter(|id| !group.contains(id)).copied().collect();
        self.cut(group, &others);
        self.cut(&others, group);
    }

    pub fn heal(&mut self) {
        self.net = Network::healthy();
        self.schedule(Duration::ZERO, Target::Links);
    }

    /// Changes one replica's state behind its back.
    pub fn corrupt(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("the node exists");
        node.corrupted = true;
        self.may_fence.insert(id);
        let change = create(ChangeId(0xbad), ObjectId(0xbad), Revision(0), 8);
        let store = node.run.as_ref().expect("it runs").applier.store();
        store.write(|state| {
            let term = state.applied().term;
            state.apply_change(&change, term)
        });
    }

    /// Flips a bit of an object in one replica's memory; no hash says anything.
    pub fn rot(&mut self, id: NodeId) {
        self.may_fence.insert(id);
        let store = self.nodes[&id].run.as_ref().expect("it runs").applier.store();
        store.write(|state| {
            let cold = state.iter(Kind::Config).next().map(|stored| stored.object.id()).expect("something was written");
            let before = state.hash();
            assert!(state.rot(Kind::Config, cold, |object| match object {
                Object::Config(config) => config.spec.data[0] ^= 1,
                _ => unreachable!("it is a config"),
            }));
            assert_eq!(state.hash(), before);
            ((), None)
        });
    }

    /// One pass of the scrubber at every manager that runs.
    pub fn scrub(&mut self) {
        for id in self.ids() {
            let Some(run) = self.nodes.get_mut(&id).and_then(|node| node.run.as_mut()) else { continue };
            let mut scrubber = Scrubber::default();
            let found = loop {
                match scrubber.step(&run.applier.store().snapshot(), 1 << 10) {
                    Ok(Progress::More) => {}
                    Ok(Progress::Passed) => break None,
                    Err(rot) => break Some(rot),
                }
            };
            if let Some(rot) = found {
                run.machine.step(self.now, Event::Rotten { what: rot.to_string() });
                self.finish_soon(id);
            }
        }
    }

    pub fn alarms(&self, id: NodeId) -> Vec<String> {
        self.nodes[&id].run.as_ref().map_or(Vec::new(), |run| run.machine.report(self.now).alarms)
    }

    pub fn is_running(&self, id: NodeId) -> bool {
        self.nodes[&id].run.is_some()
    }

    pub fn stopped(&self, id: NodeId) -> Option<&Stop> {
        self.nodes[&id].stopped.as_ref()
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// Who serves as leader, by the newest term.
    pub fn leader(&self) -> Option<NodeId> {
        let serving = self.nodes.values().filter_map(|node| {
            let leadership = node.run.as_ref()?.machine.leadership();
            (leadership.serving && !node.paused).then_some((leadership.term, node.id))
        });
        serving.max().map(|(_, id)| id)
    }

    /// Whether this manager leads, as far as it knows.
    pub fn leads(&self, id: NodeId) -> bool {
        self.nodes[&id].run.as_ref().is_some_and(|run| run.machine.leadership().leader == Some(id))
    }

    pub fn term(&self, id: NodeId) -> u64 {
        self.nodes[&id].run.as_ref().map_or(0, |run| run.machine.leadership().term.0)
    }

    pub fn followers(&self) -> Vec<NodeId> {
        let leader = self.leader();
        self.ids().into_iter().filter(|id| Some(*id) != leader).collect()
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

    pub fn first_index(&self, id: NodeId) -> Index {
        let run = self.nodes[&id].run.as_ref().expect("the node runs");
        run.machine.report(self.now).first
    }

    pub fn last_index(&self, id: NodeId) -> Index {
        let run = self.nodes[&id].run.as_ref().expect("the node runs");
        run.machine.report(self.now).last
    }

    pub fn snapshot_index(&self, id: NodeId) -> Index {
        let run = self.nodes[&id].run.as_ref().expect("the node runs");
        run.machine.report(self.now).snapshot
    }

    pub fn wait_for_voters(&mut self, count: usize) {
        self.run_until("everybody votes", ms(20_000), |world| {
            let running: Vec<NodeId> = world.ids().into_iter().filter(|id| world.is_running(*id)).collect();
            world.leader().is_some() && running.iter().all(|id| world.voters(*id) == count)
        });
    }

    pub fn wait_for_leader(&mut self, limit: Duration) -> NodeId {
        self.run_until("somebody leads", limit, |world| world.leader().is_some());
        self.leader().expect("waited for")
    }

    /// Waits until everybody that runs has applied the same entries.
    pub fn settle(&mut self) {
        self.run_until("everybody has caught up", ms(30_000), |world| {
            let running = world.nodes.values().filter_map(|node| node.run.as_ref());
            let applied: Vec<_> = running.map(|run| run.applier.store().view(State::applied)).collect();
            world.leader().is_some() && applied.windows(2).all(|pair| pair[0] == pair[1])
        });
    }

    /// One order, carried to whoever leads until it has an answer.
    pub fn order(&mut self, order: &Order) -> OrderResult {
        let end = self.now + ms(30_000);
        while self.now < end {
            let leader = self.wait_for_leader(ms(15_000));
            if let Some(result) = self.order_at(leader, order.clone())
                && result != OrderResult::Again
            {
                return result;
            }
            self.run_for(ms(50));
        }
        panic!("the order {order:?} was never answered");
    }

    /// One order at one manager; `None` if it was not answered within five seconds.
    pub fn order_at(&mut self, id: NodeId, order: Order) -> Option<OrderResult> {
        let token = self.token(id);
        self.orders.insert(token, None);
        self.request(id, Event::Order { token, order });
        let end = self.now + ms(5000);
        while self.now < end && self.orders[&token].is_none() && self.is_running(id) && self.turn(end) {}
        self.orders.remove(&token).flatten()
    }

    /// A write that must succeed within `limit`.
    pub fn write_within(&mut self, limit: Duration) {
        let acked = self.acked.len();
        let client = self.clients.iter().position(|client| client.doing.is_none()).unwrap_or_else(|| self.add_client());
        self.begin(client, true);
        self.run_until("a write is acknowledged", limit, |world| world.acked.len() > acked);
    }

    /// A write that is asked of one manager, and not waited for.
    pub fn propose_at(&mut self, id: NodeId) {
        let client = self.add_client();
        self.begin_at(client, true, id);
    }

    pub fn write(&mut self) {
        self.write_within(ms(10_000));
    }

    pub fn write_many(&mut self, count: usize) {
        for _ in 0..count {
            self.write();
        }
    }

    /// A linearizable read at one manager; false if it was not answered in time.
    pub fn read_at(&mut self, id: NodeId, limit: Duration) -> bool {
        let client = self.clients.iter().position(|client| client.doing.is_none()).unwrap_or_else(|| self.add_client());
        let done = self.reads_done;
        self.begin_at(client, false, id);
        let end = self.now + limit;
        while self.now < end && self.reads_done == done && self.turn(end) {}
        self.reads_done > done
    }

    /// `count` clients that write and read until told to stop.
    pub fn load(&mut self, count: usize) {
        self.load = true;
        for _ in 0..count {
            let client = self.add_client();
            self.wake_client(client, ms(1));
        }
    }

    /// Everything works again: heal, start everybody, and see that the swarm makes progress and that all are equal.
    pub fn recover_and_check(&mut self) {
        self.heal();
        for id in self.ids() {
            let node = self.nodes.get_mut(&id).expect("the node exists");
            (node.paused, node.stalled) = (false, false);
            if node.run.is_none() && node.stopped.is_none() {
                self.start(id);
            }
        }
        self.write_within(ms(10_000));
        self.load = false;
        self.run_until("every client is answered", ms(30_000), |world| {
            world.clients.iter().all(|client| client.doing.is_none())
        });
        self.run_for(ms(12_000));
        self.settle();
        for node in self.nodes.values() {
            let Some(run) = &node.run else { continue };
            assert!(run.tokens.is_empty(), "node {} never answered {:?}", node.id.0, run.tokens);
            if node.corrupted {
                continue;
            }
            let state = node.state().expect("it runs");
            check_acked(&self.acked, &state);
            let outcomes = self.issued.iter().filter_map(|id| state.remembered(*id));
            let committed = outcomes.filter(|outcome| matches!(outcome, Outcome::Committed(_))).count() as u64;
            assert_eq!(committed, state.revision().0, "a change was applied twice at node {}", node.id.0);
            assert_eq!(state.hash(), state.recompute_hash());
        }
    }

    pub fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.turn(end) {}
    }

    pub fn run_until(&mut self, what: &str, limit: Duration, done: impl Fn(&Self) -> bool) {
        let end = self.now + limit;
        while !done(self) {
            if !self.turn(end) {
                self.describe();
                panic!("not within {limit:?}: {what}");
            }
        }
    }

    fn describe(&self) {
        for node in self.nodes.values() {
            match &node.run {
                Some(run) => eprintln!("node {}: {:?} {:?}", node.id.0, run.machine, run.machine.report(self.now)),
                None => eprintln!("node {}: down, {:?}", node.id.0, node.stopped),
            }
        }
    }

    // ---- the scheduler ----

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
        self.trace = hasher.finalize();
        match target {
            Target::Client(client, alarm) if self.clients[client].alarm == alarm => self.client_turn(client),
            Target::Client(..) => {}
            Target::Links => self.look_at_links(),
            Target::Pings => self.ping_all(),
            Target::Node(id, life, happening) => {
                let node = &self.nodes[&id];
                if node.life != life || node.run.is_none() {
                    return true;
                }
                if node.paused {
                    // It happens when the process goes on; of ticks only one.
                    self.schedule(ms(10), Target::Node(id, life, happening));
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

    // ---- managers ----

    fn happen(&mut self, id: NodeId, happening: Happening) {
        let now = self.now;
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let run = node.run.as_mut().expect("checked by the caller");
        let machine = &mut run.machine;
        match happening {
            Happening::Tick => {
                machine.step(now, Event::OwnSync { sync_us: node.sync_us.1 });
                machine.step(now, Event::Tick);
                let interval = machine.tick_interval();
                self.at_node(id, interval, Happening::Tick);
            }
            Happening::Wake => run.wake_at = None,
            Happening::Finish => {
                run.finish_due = false;
                let effects = run.machine.finish(now);
                self.carry_out(id, effects);
                return;
            }
            Happening::Deliver(from, body) => {
                for message in raft_message::decode_all(&body).expect("what a manager encodes can be decoded") {
                    machine.step(now, Event::Peer { from, message });
                }
            }
            Happening::Lost(peer) => machine.step(now, Event::Unreachable { node: peer }),
            Happening::Link { peer, up, refused } => machine.step(now, Event::Link { node: peer, up, refused }),
            Happening::Pong(peer) => return self.pong(id, peer),
            Happening::Written => {
                if node.stalled {
                    return self.at_node(id, ms(10), Happening::Written);
                }
                let (number, released) = run.write();
                if let Some(number) = number {
                    run.machine.step(now, Event::Persisted { number });
                }
                for message in released {
                    self.send(id, &message);
                }
                self.write_next(id);
            }
            Happening::Applied => return self.applied(id),
            Happening::SnapshotMade => {
                let state = run.creating.take().expect("a snapshot is made of a state");
                match run.snapshots.save(state, &mut self.entropy) {
                    Ok(mark) => run.machine.step(now, Event::SnapshotCreated { mark }),
                    Err(error) => panic!("the snapshot was not written: {error}"),
                }
            }
            Happening::LogRead(fetch) => {
                let entries = run.reader.read(fetch.low, fetch.high, fetch.max_bytes).unwrap_or_default();
                run.machine.step(now, Event::Fetched { fetch: *fetch, entries });
            }
            Happening::SnapshotCame(fetch) => self.snapshot_came(id, &fetch),
            Happening::Request(event) => machine.step(now, *event),
        }
        self.finish_soon(id);
    }

    /// A turn of the raft thread takes all that happened meanwhile.
    fn finish_soon(&mut self, id: NodeId) {
        let run = self.nodes.get_mut(&id).and_then(|node| node.run.as_mut());
        if let Some(run) = run.filter(|run| !run.finish_due) {
            run.finish_due = true;
            let after = self.between((0, 100));
            self.at_node(id, after, Happening::Finish);
        }
    }

    fn carry_out(&mut self, id: NodeId, effects: Effects) {
        for message in &effects.messages {
            self.send(id, message);
        }
        self.happened.extend(effects.happened.iter().map(|what| (id, *what)));
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let run = node.run.as_mut().expect("it just finished a turn");
        run.wal_queue.extend(effects.persist.into_iter().map(|(persist, released)| WalJob::Persist(persist, released)));
        run.wal_queue.extend(effects.compact.map(WalJob::Compact));
        if let Some(position) = effects.install {
            let (fetched, state) = run.fetched.take().expect("only what was fetched is installed");
            assert_eq!(fetched, position);
            run.apply_queue.push_back(ApplyJob::Install(Box::new(state)));
        }
        if !effects.apply.is_empty() {
            run.apply_queue.push_back(ApplyJob::Entries(effects.apply));
        }
        if let Some(members) = effects.peers {
            run.wanted = members.iter().map(|member| member.node_id).filter(|peer| *peer != id).collect();
            self.schedule(ms(1), Target::Links);
        }
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let run = node.run.as_mut().expect("it just finished a turn");
        if effects.create_snapshot {
            assert!(run.creating.is_none(), "one snapshot at a time");
            run.creating = Some(run.applier.store().snapshot());
            let after = self.between((1_000, 60_000));
            self.at_node(id, after, Happening::SnapshotMade);
        }
        for fetch in effects.fetch {
            let after = self.between((100, 3000));
            self.at_node(id, after, Happening::LogRead(Box::new(fetch)));
        }
        if let Some(fetch) = effects.fetch_snapshot {
            let (from, latency) = (fetch.from, self.between((500, 30_000)));
            if self.linked(id, from) && self.is_running(from) {
                self.at_node(from, latency / 2, Happening::Request(Box::new(Event::SnapshotServing { node: id })));
            }
            self.at_node(id, latency, Happening::SnapshotCame(fetch));
        }
        self.write_next(id);
        self.apply_next(id);
        for reply in effects.replies {
            self.reply(id, reply);
        }
        if let Some(leadership) = effects.leadership
            && leadership.serving
        {
            self.agreement.leads(leadership.term.0, id);
            self.view(id, |state| check_acked(&self.acked, state));
            self.reigns.push((self.now, id));
        }
        let machine = &self.nodes[&id].run.as_ref().expect("it just finished a turn").machine;
        if machine.leadership().leader == Some(id) {
            self.agreement.leads(machine.leadership().term.0, id);
        }
        let deadline = machine.deadline();
        self.wake_at(id, deadline);
        if let Some(stop) = effects.stop {
            self.stop(id, stop);
        }
    }

    fn wake_at(&mut self, id: NodeId, deadline: Option<Instant>) {
        let run = self.nodes.get_mut(&id).and_then(|node| node.run.as_mut()).expect("it just finished a turn");
        let Some(at) = deadline.filter(|at| run.wake_at.is_none_or(|set| *at < set)) else { return };
        assert!(at.as_nanos() + 1_000_000_000 > self.now.as_nanos(), "a deadline long past would spin the raft thread");
        run.wake_at = Some(at);
        let after = at.since(self.now).max(Duration::from_micros(50));
        self.at_node(id, after, Happening::Wake);
    }

    fn stop(&mut self, id: NodeId, stop: Stop) {
        if let Stop::Fenced(text) | Stop::Rotten(text) = &stop {
            assert!(self.may_fence.contains(&id), "node {} fenced itself: {text}", id.0);
        }
        let node = self.nodes.get_mut(&id).expect("the node exists");
        node.stopped = Some(stop);
        self.kill(id);
    }

    fn write_next(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let sync_us = node.sync_us;
        let run = node.run.as_mut().expect("it runs");
        if run.writing == 0 && !run.wal_queue.is_empty() {
            run.writing = run.wal_queue.len();
            let took = self.between(sync_us);
            self.at_node(id, took, Happening::Written);
        }
    }

    fn apply_next(&mut self, id: NodeId) {
        let run = self.nodes.get_mut(&id).and_then(|node| node.run.as_mut()).expect("it runs");
        if !run.applying && !run.apply_queue.is_empty() {
            run.applying = true;
            let took = self.between((10, 500));
            self.at_node(id, took, Happening::Applied);
        }
    }

    fn applied(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let corrupted = node.corrupted;
        let run = node.run.as_mut().expect("it runs");
        run.applying = false;
        let turn = run.apply();
        let position = turn.applied.position;
        run.machine.step(self.now, Event::Applied(turn.applied));
        if !corrupted {
            for (entry, hash) in &turn.log {
                self.agreement.applied(id, entry, *hash);
            }
            if turn.installed {
                let hash = self.view(id, State::hash);
                self.agreement.state(id, position.index.0, hash);
            }
        }
        for (token, outcome) in turn.outcomes {
            self.outcome(id, token, outcome);
        }
        self.apply_next(id);
        self.finish_soon(id);
    }

    fn snapshot_came(&mut self, id: NodeId, fetch: &FetchSnapshot) {
        let (position, now) = (fetch.mark.position, self.now);
        let is_reachable = self.linked(id, fetch.from) && self.connectable(id, fetch.from);
        let sender = self.nodes.get(&fetch.from).and_then(|node| node.run.as_ref()).filter(|_| is_reachable);
        let sender = sender.map(|run| run.snapshots.clone());
        let run = self.nodes.get_mut(&id).and_then(|node| node.run.as_mut()).expect("it runs");
        let fetched = sender.and_then(|sender| run.fetch(&sender, position.index, &mut self.entropy).ok());
        match fetched {
            Some((found, bytes, state)) => {
                assert_eq!(found, position);
                run.fetched = Some((position, state));
                run.machine.step(now, Event::SnapshotFetched { position, bytes });
            }
            None => run.machine.step(now, Event::SnapshotNotFetched { position }),
        }
    }

    // ---- the network ----

    fn send(&mut self, from: NodeId, outgoing: &Outgoing) {
        let to = outgoing.to;
        if !self.linked(from, to) {
            return self.at_node(from, Duration::from_micros(20), Happening::Lost(to));
        }
        if self.net.cut.contains(&(from, to)) || !self.is_running(to) || self.entropy.below(1000) < self.net.drop {
            return;
        }
        let mut body = Vec::new();
        raft_message::encode_into(&outgoing.message, &mut body);
        let body = Bytes::from(body);
        let copies = 1 + u64::from(self.entropy.below(1000) < self.net.duplicate);
        for _ in 0..copies {
            let mut at = self.now + self.between(self.net.latency_us);
            let last = self.last_delivery.entry((from, to)).or_default();
            // One connection carries them in order, except where a test says otherwise.
            if !self.net.reorder {
                at = at.max(*last);
                *last = at;
            }
            let life = self.nodes[&to].life;
            self.schedule_at(at, Target::Node(to, life, Happening::Deliver(from, body.clone())));
        }
        debug_assert!(outgoing.message.msg_type != MessageType::MsgHup);
    }

    fn linked(&self, a: NodeId, b: NodeId) -> bool {
        self.links.contains(&(a.min(b), a.max(b)))
    }

    /// Whether a new connection would come up.
    fn connectable(&self, a: NodeId, b: NodeId) -> bool {
        let running = |id| self.nodes.get(&id).is_some_and(|node: &Node| node.run.is_some());
        running(a) && running(b) && !self.net.cut.contains(&(a, b)) && !self.net.cut.contains(&(b, a))
    }

    fn look_at_links(&mut self) {
        let ids = self.ids();
        for (at, &a) in ids.iter().enumerate() {
            for &b in &ids[at + 1..] {
                self.look_at_link(a, b);
            }
        }
        // Tests add looks of their own; this one goes on for ever.
        let looks = self.queue.iter().filter(|Reverse(timed)| matches!(timed.target, Target::Links)).count();
        if looks == 0 {
            self.schedule(ms(50), Target::Links);
        }
    }

    fn look_at_link(&mut self, a: NodeId, b: NodeId) {
        let (pair, is_up) = ((a, b), self.linked(a, b));
        let wants = |id: NodeId, peer| self.nodes[&id].run.as_ref().is_some_and(|run| run.wanted.contains(&peer));
        if self.connectable(a, b) {
            self.silent.remove(&pair);
            for (one, other) in [(a, b), (b, a)] {
                if self.view(one, |state| state.is_removed(other)) {
                    // The hello is answered with it.
                    self.links.remove(&pair);
                    return self.stop(other, Stop::Removed);
                }
            }
            if !is_up && (wants(a, b) || wants(b, a)) {
                self.links.insert(pair);
                for (one, other) in [(a, b), (b, a)] {
                    let after = self.between((200, 3000));
                    self.at_node(one, after, Happening::Link { peer: other, up: true, refused: false });
                }
            }
            return;
        }
        if !is_up {
            return;
        }
        for (one, other) in [(a, b), (b, a)] {
            let process_gone = !self.is_running(other) && !self.nodes[&other].dark;
            if self.is_running(one) && process_gone && !self.net.cut.contains(&(other, one)) {
                self.links.remove(&pair);
                let after = self.between((200, 2000));
                self.at_node(one, after, Happening::Link { peer: other, up: false, refused: true });
                return;
            }
        }
        // Pings go unanswered.
        let now = self.now;
        let since = *self.silent.entry(pair).or_insert(now);
        if now.since(since) > ms(3000) || !(self.is_running(a) || self.is_running(b)) {
            self.links.remove(&pair);
            self.silent.remove(&pair);
            for (one, other) in [(a, b), (b, a)] {
                self.at_node(one, ms(1), Happening::Link { peer: other, up: false, refused: false });
            }
        }
    }

    fn ping_all(&mut self) {
        for one in self.ids() {
            for other in self.ids() {
                if one != other && self.linked(one, other) && self.connectable(one, other) {
                    self.at_node(one, ms(1), Happening::Pong(other));
                }
            }
        }
        self.schedule(ms(500), Target::Pings);
    }

    fn pong(&mut self, id: NodeId, peer: NodeId) {
        let Some(node) = self.nodes.get(&peer).filter(|node| !node.paused) else { return };
        let Some(run) = &node.run else { return };
        let mark = run.machine.last_mark().map_or((Index(0), 0), |mark| (mark.index, mark.sum));
        let sync_us = if node.stalled { 10_000_000 } else { node.sync_us.1 };
        let rtt_us = 2 * self.net.latency_us.1;
        let event = Event::Measured { node: peer, rtt_us, sync_us, mark };
        self.nodes.get_mut(&id).and_then(|node| node.run.as_mut()).expect("it runs").machine.step(self.now, event);
        self.finish_soon(id);
    }

    // ---- clients ----

    fn add_client(&mut self) -> usize {
        self.clients.push(Client::default());
        self.clients.len() - 1
    }

    fn token(&mut self, id: NodeId) -> Token {
        let token = self.next_token;
        self.next_token += 1;
        if let Some(run) = self.nodes.get_mut(&id).and_then(|node| node.run.as_mut()) {
            run.tokens.insert(token);
        }
        token
    }

    fn request(&mut self, id: NodeId, event: Event) {
        let after = self.between((10, 200));
        self.at_node(id, after, Happening::Request(Box::new(event)));
    }

    fn client_turn(&mut self, at: usize) {
        let timeout = ms(2000);
        match &self.clients[at].doing {
            None if self.load => {
                let is_write = self.entropy.below(3) > 0;
                self.begin(at, is_write);
            }
            None => {}
            Some(doing) if self.now.since(doing.since) >= timeout => self.again(at),
            Some(_) => {}
        }
    }

    fn begin(&mut self, at: usize, is_write: bool) {
        let node = self.somebody();
        self.begin_at(at, is_write, node);
    }

    fn begin_at(&mut self, at: usize, is_write: bool, node: NodeId) {
        let change = is_write.then(|| self.new_change(at));
        self.issued.extend(change.as_ref().map(|change| change.id));
        let doing = Doing { change, floor: self.floor, node, token: 0, since: self.now };
        self.clients[at].doing = Some(doing);
        self.attempt(at);
    }

    fn new_change(&mut self, at: usize) -> Change {
        let id = ChangeId(self.entropy.next_u128());
        match self.clients[at].object {
            Some((object, version)) if self.entropy.below(2) == 0 => {
                let mut change = create(id, object, self.floor, self.payload);
                let Some(Operation::Create(Object::Config(mut config))) = change.operations.pop() else {
                    unreachable!("a create was just made")
                };
                config.meta = Meta { version, ..Meta::default() };
                change.operations = vec![Operation::Update(Object::Config(config))];
                change
            }
            _ => create(id, ObjectId(id.0), self.floor, self.payload),
        }
    }

    /// The leader most of the time, as a client that was told who leads asks.
    fn somebody(&mut self) -> NodeId {
        let running: Vec<NodeId> = self.ids().into_iter().filter(|id| self.is_running(*id)).collect();
        match self.leader().filter(|_| self.entropy.below(4) > 0) {
            Some(leader) => leader,
            None if running.is_empty() => *self.nodes.keys().next().expect("there is a node"),
            None => running[self.entropy.below(running.len() as u64) as usize],
        }
    }

    fn attempt(&mut self, at: usize) {
        let node = self.clients[at].doing.as_ref().expect("a request is being made").node;
        let token = self.token(node);
        let now = self.now;
        let doing = self.clients[at].doing.as_mut().expect("a request is being made");
        (doing.token, doing.since) = (token, now);
        let event = match &doing.change {
            Some(change) => Event::Propose { token, command: apply::encode(&Command::Change(change.clone())).into() },
            None => Event::Read { token },
        };
        self.request(node, event);
        self.wake_client(at, ms(2000));
    }

    fn wake_client(&mut self, at: usize, after: Duration) {
        self.clients[at].alarm += 1;
        let alarm = self.clients[at].alarm;
        self.schedule(after, Target::Client(at, alarm));
    }

    /// The same request once more, perhaps elsewhere.
    fn again(&mut self, at: usize) {
        let node = self.somebody();
        let doing = self.clients[at].doing.as_mut().expect("a request is being made");
        doing.node = node;
        self.attempt(at);
    }

    fn answered(&mut self, id: NodeId, token: Token) -> Option<usize> {
        let run = self.nodes.get_mut(&id).and_then(|node| node.run.as_mut()).expect("it answers");
        assert!(run.tokens.remove(&token), "request {token} was answered twice or never asked at node {}", id.0);
        self.clients.iter().position(|client| client.doing.as_ref().is_some_and(|doing| doing.token == token))
    }

    fn outcome(&mut self, id: NodeId, token: Token, outcome: Outcome) {
        let Some(at) = self.answered(id, token) else { return };
        let change = self.clients[at].doing.take().and_then(|doing| doing.change).expect("outcomes are of changes");
        match outcome {
            Outcome::Committed(revision) => {
                let before = self.acked.insert(change.id, revision);
                assert!(before.is_none_or(|before| before == revision), "two revisions for one change");
                self.floor = self.floor.max(revision);
                let (Operation::Create(object) | Operation::Update(object)) = &change.operations[0] else {
                    unreachable!("clients create and update")
                };
                self.clients[at].object = Some((object.id(), revision));
            }
            Outcome::Refused(refusal) => panic!("a change that nobody contradicts was refused: {refusal:?}"),
            Outcome::Forgotten => panic!("a young change was forgotten"),
        }
        self.think(at);
    }

    fn think(&mut self, at: usize) {
        if self.load {
            let after = self.between((1_000, 40_000));
            self.wake_client(at, after);
        }
    }

    fn reply(&mut self, id: NodeId, reply: Reply) {
        match reply {
            Reply::NotLeader(token) | Reply::Overloaded(token) | Reply::Lost(token) | Reply::Uncertain(token) => {
                self.retry_soon(id, token);
            }
            Reply::ReadReady(tokens) => {
                let revision = self.view(id, State::revision);
                for token in tokens {
                    let Some(at) = self.answered(id, token) else { continue };
                    let doing = self.clients[at].doing.take().expect("found by its token");
                    assert!(doing.change.is_none(), "a write was answered as a read");
                    assert!(revision >= doing.floor, "node {} read {revision}, and {} was known", id.0, doing.floor);
                    self.floor = self.floor.max(revision);
                    self.reads_done += 1;
                    self.think(at);
                }
            }
            Reply::ReadFailed(tokens) => {
                for token in tokens {
                    self.retry_soon(id, token);
                }
            }
            Reply::Order(token, result) => {
                self.answered(id, token);
                if let Some(place) = self.orders.get_mut(&token) {
                    *place = Some(result);
                }
            }
        }
    }

    fn retry_soon(&mut self, id: NodeId, token: Token) {
        if let Some(at) = self.answered(id, token) {
            let doing = self.clients[at].doing.as_mut().expect("found by its token");
            doing.since = Instant::from_nanos(0);
            let after = self.between((10_000, 50_000));
            self.wake_client(at, after);
        }
    }
}

fn address(id: NodeId) -> String {
    format!("manager-{}:4242", id.0)
}

fn create(id: ChangeId, object: ObjectId, after: Revision, payload: usize) -> Change {
    let annotations = Annotations { name: format!("c{}", object.0), ..Annotations::default() };
    let spec = ConfigSpec { annotations, data: vec![id.0 as u8; payload], templating: None };
    let config = Object::Config(Config { id: object, meta: Meta::default(), spec });
    Change { id, after, time: Timestamp(1), term: None, operations: vec![Operation::Create(config)] }
}

/// What was acknowledged is in this state, under the revision that was told.
fn check_acked(acked: &BTreeMap<ChangeId, Revision>, state: &State) {
    for (id, revision) in acked {
        let found = state.remembered(*id);
        assert_eq!(found, Some(Outcome::Committed(*revision)), "an acknowledged change was lost");
    }
    assert!(acked.is_empty() || state.count(Kind::Config) > 0);
}
