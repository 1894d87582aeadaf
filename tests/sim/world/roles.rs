//! Roles: what people ask of nodes, the leader's service that makes it so, and nodes that come once they are to manage.
//!
//! A swarm has no node objects before [`World::begin_roles`]; from then on the service that gives nodes their roles runs
//! on whoever leads, as the daemon's leader thread runs it: what it asks for goes to raft, and what became of that goes
//! back. What people ask is decided by `control`, against the leader's state. A node is promoted once at most, and demoted
//! once: what a demoted manager's process does is not simulated.

use std::collections::BTreeMap;

use skep::apply;
use skep::control::{Context, Control};
use skep::net::handler::{ConnectionId, Incoming, StreamId};
use skep::net::requests::Step;
use skep::raft::{Event, Order, OrderResult, Reply, Token};
use skep::roles::Roles;
use skep::store::State;
use skep::sys::entropy::Entropy;
use skep::term::{Ended, Machine, News, Request, View, Work};
use skep::types::api::{Answer, Call, FEATURE_LEVEL, Write, WriteRequest};
use skep::types::log::Command;
use skep::types::object::{Annotations, CaSettings, Cluster, ClusterSpec, Meta, Node, RootCa, Sensitive};
use skep::types::{
    Caller, Change, ChangeId, ClusterId, Code, Index, Kind, MemberRole, NodeId, Object, Operation, Outcome, Role,
    Status, Term, Timestamp,
};

use super::orders::address;
use super::{Target, World};
use crate::failure::{ensure, fail};
use crate::node::Start;
use crate::{Instant, ms};

/// When the simulated time begins.
const BEGAN_MS: u64 = 1_800_000_000_000;
/// A wall clock that is off by more than this was set.
const CLOCK_SET_MS: u64 = 1000;

/// The services of one leadership of one process.
pub struct Reign {
    term: Term,
    machine: Machine,
    /// Up to where the log was applied at the last look.
    seen: Index,
    /// Both clocks at the last look.
    clocks: (Instant, u64),
    /// What was asked of raft: the machine's name for it, by ours.
    under_way: BTreeMap<Token, u64>,
}

/// What a world with roles keeps.
#[derive(Default)]
pub struct Court {
    /// The leader's services do nothing for a while.
    pub idle: bool,
    /// Workers: nodes that have never managed.
    pub workers: Vec<NodeId>,
    /// Nodes that ask to be taken into the group, since when.
    joining: BTreeMap<Token, (NodeId, Instant)>,
    /// What people asked, and what became of it.
    asked: BTreeMap<Token, Option<Outcome>>,
}

/// A node is not what it was asked to be.
fn unfinished(state: &State) -> Option<NodeId> {
    let nodes = state.iter(Kind::Node).filter_map(|stored| match &stored.object {
        Object::Node(node) => Some(node),
        _ => None,
    });
    let mut unfinished = nodes.filter(|node| {
        let member = state.member_of(node.id).map(|member| member.role);
        let done = match node.spec.desired_role {
            Role::Manager => member == Some(MemberRole::Voter),
            Role::Worker => member.is_none(),
        };
        !done || node.role != node.spec.desired_role
    });
    unfinished.next().map(|node| node.id)
}

fn node_of(state: &State, id: NodeId) -> Option<&Node> {
    match &state.get(Kind::Node, id.into())?.object {
        Object::Node(node) => Some(node),
        _ => None,
    }
}

/// Nodes act in the role of a manager until they have left the group, and nobody leaves it who was not asked to.
pub fn check_step(before: &State, after: &State, at: NodeId) {
    if after.cluster().is_none() {
        return;
    }
    for stored in before.iter(Kind::Node) {
        let id = NodeId(stored.object.id().0);
        let (was, is) = (node_of(before, id).map(|node| node.role), node_of(after, id).map(|node| node.role));
        let demoted = was == Some(Role::Manager) && is == Some(Role::Worker);
        let early = demoted && after.member_of(id).is_some();
        ensure!("roles", !early, "node {} has {} as a worker, and it is a member of the group", at.0, id.0);
        let left = before.member_of(id).is_some() && after.member_of(id).is_none();
        let asked = node_of(after, id).is_none_or(|node| node.spec.desired_role == Role::Worker);
        ensure!("roles", !left || asked, "node {} has {} taken out, which was to stay", at.0, id.0);
    }
}

impl World {
    /// Every manager has its node object from now on, there are `workers` more nodes, and the leader sees to their roles.
    pub fn begin_roles(&mut self, workers: u128) {
        let managers: Vec<NodeId> = self.ids();
        self.court.workers = (0..workers).map(|number| NodeId(self.next_node + number)).collect();
        self.next_node += workers;
        let mut operations = vec![Operation::Create(Object::Cluster(Box::new(cluster(self))))];
        let of_role = |ids: &[NodeId], role| ids.iter().map(move |id| Node::new(*id, role)).collect::<Vec<_>>();
        let nodes = [of_role(&managers, Role::Manager), of_role(&self.court.workers, Role::Worker)].concat();
        operations.extend(nodes.into_iter().map(|node| Operation::Create(Object::Node(Box::new(node)))));
        let leader = self.wait_for_leader(ms(5000));
        let after = self.state(leader).revision();
        let id = ChangeId(self.entropy.next_u128());
        let change = Change { id, after, time: Timestamp(1), term: None, operations };
        let outcome = self.propose_change(leader, change);
        assert!(matches!(outcome, Some(Outcome::Committed(_))), "{outcome:?}");
        self.settle();
        self.schedule(ms(1), Target::Court);
    }

    /// Proposes a change at a manager; `None` when its outcome is not known.
    fn propose_change(&mut self, id: NodeId, change: Change) -> Option<Outcome> {
        let token = self.token(id);
        self.issued.insert(change.id);
        self.court.asked.insert(token, None);
        self.request(id, Event::Propose { token, command: apply::encode(&Command::Change(change)).into() });
        let end = self.now + ms(3000);
        let waits = |world: &Self| {
            let run = world.nodes[&id].run.as_ref();
            world.court.asked[&token].is_none() && run.is_some_and(|run| run.tokens.contains(&token))
        };
        while self.now < end && waits(self) && self.turn(end) {}
        self.court.asked.remove(&token).flatten()
    }

    /// A person asks for a role, of whoever leads. True when it is written down; otherwise it may be all the same.
    pub fn ask_for(&mut self, node: NodeId, role: Role) -> bool {
        let Some(leader) = self.leader().filter(|leader| !self.nodes[leader].paused) else { return false };
        let write = Write::UpdateNode {
            node: node.to_string(),
            role: Some(role),
            availability: None,
            set: BTreeMap::new(),
            remove: Vec::new(),
            if_version: None,
        };
        let run = self.nodes[&leader].run.as_ref().expect("it leads");
        let store = run.applier.store().clone();
        let change = ChangeId(self.entropy.next_u128());
        let request = WriteRequest { change, after: store.view(State::revision), write };
        let context = Context {
            node_id: leader,
            cluster_id: ClusterId(1),
            hostname: String::new(),
            data_dir: String::new(),
            version: String::new(),
            sync_us: 0,
            raft: self.report(leader),
            links: Vec::new(),
            certificate: None,
            notices: Vec::new(),
        };
        let incoming = Incoming {
            stream: StreamId { connection: ConnectionId(1), stream: 1 },
            caller: Caller::Local,
            addr: String::new(),
            forwarded: false,
            call: Call::Write,
            deadline: Instant::from_nanos(u64::MAX),
            body: skep::codec::envelope::encode(&request).into(),
        };
        let now_ms = self.wall_ms(leader);
        match Control::new(store, context).decide(&incoming, 0, true, now_ms) {
            Step::Propose(change) => {
                let outcome = self.propose_change(leader, change);
                self.note(|_| format!("node {} is to be a {}: {outcome:?}", node.0, role.name()));
                matches!(outcome, Some(Outcome::Committed(_)))
            }
            Step::Refuse(status) | Step::RefuseIfConfirmed(status) => {
                self.note(|_| format!("node {} is not to be a {}: {status}", node.0, role.name()));
                false
            }
            _ => fail("answers", "a role is asked for, and the answer is no change"),
        }
    }

    /// Managers that vote and were not asked to become workers, by the leader's state.
    pub fn staying(&self) -> Vec<NodeId> {
        let Some(leader) = self.leader() else { return Vec::new() };
        self.view(leader, |state| {
            let voters = state.members().values().filter(|member| member.role == MemberRole::Voter);
            let stays = |id: &NodeId| node_of(state, *id).is_some_and(|node| node.spec.desired_role == Role::Manager);
            voters.map(|member| member.node_id).filter(stays).collect()
        })
    }

    /// Waits until every node is what it was asked to be.
    pub fn roles_come_true(&mut self) {
        self.run_until("every node is what it was asked to be", ms(60_000), |world| {
            world.leader().is_some_and(|leader| world.view(leader, |state| unfinished(state).is_none()))
        });
    }

    /// What a manager's wall clock shows. It has room to be set back.
    fn wall_ms(&self, id: NodeId) -> u64 {
        (BEGAN_MS + self.now.as_nanos() / 1_000_000).saturating_add_signed(self.nodes[&id].clock.wall_ms)
    }

    /// All leaders look at what there is to do; nodes that are to manage ask to be taken in.
    pub(super) fn court_turn(&mut self) {
        if !self.court.idle {
            for id in self.ids() {
                if !self.nodes[&id].paused && self.is_current(id) && self.is_running(id) {
                    self.govern(id);
                }
            }
        }
        self.let_in();
        let after = self.between((80_000, 120_000));
        self.schedule(after, Target::Court);
    }

    fn govern(&mut self, id: NodeId) {
        let (now, now_ms) = (self.now, self.wall_ms(id));
        let reachable = self.report(id).reachable;
        let run = self.nodes.get_mut(&id).and_then(|node| node.run.as_mut()).expect("it runs");
        let leadership = run.machine.leadership();
        if !leadership.serving || leadership.leader != Some(id) {
            run.reign = None;
            return;
        }
        let term = leadership.term;
        let begins = run.reign.as_ref().is_none_or(|reign| reign.term != term);
        let state = run.applier.store().snapshot();
        if begins {
            let salt = self.entropy.next_u128();
            let machine = Machine::new(term, 1, salt, vec![Box::new(Roles::new(term))]);
            run.reign =
                Some(Reign { term, machine, seen: Index(0), clocks: (now, now_ms), under_way: BTreeMap::new() });
        }
        let reign = run.reign.as_mut().expect("it reigns");
        let applied = state.applied().index;
        let expected = reign.clocks.1 + now.since(reign.clocks.0).as_millis() as u64;
        let was_set = expected.abs_diff(now_ms) > CLOCK_SET_MS;
        let news = News { everything: begins || was_set || reign.seen != applied, ..News::default() };
        (reign.seen, reign.clocks) = (applied, (now, now_ms));
        let requests = reign.machine.look(View { now_ms, state: &state, here: id, reachable: &reachable }, &news);
        self.serve(id, requests);
    }

    fn serve(&mut self, id: NodeId, requests: Vec<Request>) {
        for Request { token: asked, work } in requests {
            let token = self.token(id);
            self.note(|_| format!("node {} sees to roles: {work:?}", id.0));
            let run = self.nodes.get_mut(&id).and_then(|node| node.run.as_mut()).expect("it runs");
            run.reign.as_mut().expect("it reigns").under_way.insert(token, asked);
            let event = match work {
                Work::Propose(change) => {
                    self.issued.insert(change.id);
                    Event::Propose { token, command: apply::encode(&Command::Change(change)).into() }
                }
                Work::RemoveMember(node_id) => {
                    Event::Order { token, order: Order::Leave { node_id, force: false, for_good: false } }
                }
                Work::Transfer(to) => Event::Order { token, order: Order::Transfer { to: Some(to) } },
            };
            self.request(id, event);
        }
    }

    /// Takes what became of a request of the leader's services; false when it is nobody's there.
    fn served(&mut self, id: NodeId, token: Token, ended: Ended) -> bool {
        let now_ms = self.wall_ms(id);
        let run = self.nodes.get_mut(&id).and_then(|node| node.run.as_mut()).expect("it answers");
        let Some(reign) = &mut run.reign else { return false };
        let Some(asked) = reign.under_way.remove(&token) else { return false };
        let requests = reign.machine.ended(now_ms, asked, ended);
        ensure!("answers", run.tokens.remove(&token), "request {token} was answered twice at node {}", id.0);
        self.serve(id, requests);
        true
    }

    /// A change was judged: one of the leader's services, or of a person.
    pub(super) fn court_outcome(&mut self, id: NodeId, token: Token, outcome: &Outcome) -> bool {
        if let Some(place) = self.court.asked.get_mut(&token) {
            *place = Some(outcome.clone());
            let run = self.nodes.get_mut(&id).and_then(|node| node.run.as_mut()).expect("it answers");
            run.tokens.remove(&token);
            return true;
        }
        let ended = match outcome {
            Outcome::Committed(revision) => Ended::Committed(*revision),
            Outcome::Refused(refusal) => Ended::Refused(refusal.clone()),
            Outcome::Forgotten => Ended::Uncertain,
        };
        self.served(id, token, ended)
    }

    /// Raft's answer to a request of the leader's services, or of a node that wants to be taken in.
    pub(super) fn court_reply(&mut self, id: NodeId, reply: &Reply) -> bool {
        let moved = || Ended::Declined(Status::new(Code::Unavailable, "leadership moved; nothing was done"));
        let (token, ended) = match reply {
            Reply::NotLeader(token) | Reply::Lost(token) | Reply::Overloaded(token) => (*token, moved()),
            Reply::Refused(token, status) => (*token, Ended::Declined(status.clone())),
            Reply::Uncertain(token) => (*token, Ended::Uncertain),
            Reply::Order(token, result) => {
                if let Some((joiner, _)) = self.court.joining.remove(token) {
                    self.taken_in(joiner, result);
                }
                let ended = match result {
                    OrderResult::Done(_) => Ended::Done,
                    OrderResult::Refused(status) => Ended::Declined(status.clone()),
                    OrderResult::Uncertain => Ended::Uncertain,
                    OrderResult::Again => moved(),
                };
                (*token, ended)
            }
            Reply::ReadReady(_) | Reply::ReadFailed(_) => return false,
        };
        self.served(id, token, ended)
    }

    /// Workers that are managers to the swarm ask for their place, again after a while.
    fn let_in(&mut self) {
        let Some(leader) = self.leader().filter(|leader| !self.nodes[leader].paused) else { return };
        let now = self.now;
        self.court.joining.retain(|_, (_, since)| now.since(*since) < ms(3000));
        for id in self.court.workers.clone() {
            let is_to_manage = self.view(leader, |state| {
                node_of(state, id)
                    .is_some_and(|node| (node.role, node.spec.desired_role) == (Role::Manager, Role::Manager))
            });
            let asks = self.court.joining.values().any(|(joiner, _)| *joiner == id);
            if is_to_manage && !asks && !self.nodes.contains_key(&id) {
                let token = self.token(leader);
                self.court.joining.insert(token, (id, now));
                let order = Order::Join { node_id: id, addr: address(id), feature_level: FEATURE_LEVEL };
                self.request(leader, Event::Order { token, order });
            }
        }
    }

    fn taken_in(&mut self, id: NodeId, result: &OrderResult) {
        if let OrderResult::Done(Answer::Joined(answer)) = result
            && !self.nodes.contains_key(&id)
        {
            self.new_node_as(id, answer.raft_id);
            self.boot(id, &Start::Disk);
        }
    }
}

fn cluster(world: &World) -> Cluster {
    Cluster {
        id: ClusterId(1),
        meta: Meta::default(),
        spec: ClusterSpec {
            annotations: Annotations { name: "default".to_owned(), ..Annotations::default() },
            task_history_retention_limit: 5,
            raft: world.layout.settings,
            heartbeat_period_ms: 5000,
            ca: CaSettings {
                node_certificate_expiry_ms: 90 * 86_400_000,
                external_cas: Vec::new(),
                signing_ca_certificate: String::new(),
                signing_ca_key: Sensitive::default(),
                force_rotate: 0,
                expired_grace_ms: 0,
            },
            default_log_driver: None,
            auto_lock_managers: false,
            acceptance_policies: Vec::new(),
        },
        root_ca: RootCa::default(),
        network_bootstrap_keys: Vec::new(),
        encryption_key_lamport_clock: 0,
        unlock_keys: Vec::new(),
        fips: false,
        default_address_pool: Vec::new(),
        subnet_size: 24,
        vxlan_udp_port: 0,
        feature_level: FEATURE_LEVEL,
    }
}
