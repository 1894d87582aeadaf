//! What the net thread does with what arrives: requests go to the requests machine, Raft messages to the raft thread,
//! snapshot parts to the transfer thread, and what comes back from them goes out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;

use super::greeting::{Greetings, Verdict};
use super::outlet::Completion;
use super::service::Services;
use super::snapshots::{Job, Transfer};
use super::stop::{StopCell, Stopped};
use crate::codec::raft_message;
use crate::codec::request::Ping;
use crate::control::{self, Context, Control};
use crate::net::handler::{Command, Handler, Incoming, Outbox, Reply, StreamId, Target};
use crate::net::requests::{Effect, Event, Leadership, Limits, NotProposed, ProposalResult, RaftOrder, Requests};
use crate::raft::run::Handle;
use crate::raft::{self, FetchSnapshot, Order, OrderResult};
use crate::store::Store;
use crate::sys::metrics::{Histogram, Metrics};
use crate::sys::queue::Sender;
use crate::sys::time::{Instant, monotonic};
use crate::types::api::{
    Admin, Answer, Call, FEATURE_LEVEL, Hello, LinkReport, PROTOCOL, SetAddressRequest, SnapshotRequest,
};
use crate::types::{Caller, ClusterId, Code, Index, Lineage, Member, NodeId, Position, RaftId, Revision, Status};

/// A manager that has just started has had no time to reach the others: that it sees no majority is no news before this.
const SETTLING: Duration = Duration::from_millis(1500);
/// A member that is taken out keeps its connections so long: the answer to its request is on its way to it.
const PARTING: Duration = Duration::from_millis(500);
/// The node's own calls have tokens from here on; the requests machine's are below.
const OWN: u64 = 1 << 63;
/// What raft and links say is read again for a request after this.
const FRESH: Duration = Duration::from_millis(20);
/// A broken snapshot transfer is taken up again so often without receiving anything.
const FETCH_ATTEMPTS: u32 = 6;
/// Before the first of these attempts; doubled for each.
const FETCH_PAUSE: Duration = Duration::from_millis(100);
/// A leader may take this long to answer the node's own small calls.
const OWN_DEADLINE_MS: u32 = 5000;
/// A whole snapshot may take this long.
const FETCH_DEADLINE_MS: u32 = 600_000;

/// Who this node is; fixed while the process runs.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate's CN.
    pub node_id: NodeId,
    /// The certificate's O.
    pub cluster_id: ClusterId,
    /// Its name for people.
    pub hostname: String,
    /// Its state directory, for messages.
    pub data_dir: String,
    /// Where others reach it.
    pub advertise: String,
    /// How often it has started.
    pub boot: u64,
    /// Random per process.
    pub nonce: u64,
}

/// What the handler gets once the node has its place in the swarm.
#[derive(Debug)]
pub struct Active {
    /// Its Raft id.
    pub raft_id: RaftId,
    /// The history it belongs to.
    pub lineage: Lineage,
    /// Its store.
    pub store: Arc<Store>,
    /// Moves snapshots.
    pub transfer: Sender<Transfer>,
    /// Writes files.
    pub jobs: Sender<Job>,
    /// Where it listens, as the swarm was told.
    pub advertise: String,
}

struct Membership {
    raft_id: RaftId,
    lineage: Lineage,
    store: Arc<Store>,
    transfer: Sender<Transfer>,
    jobs: Sender<Job>,
    requests: Requests<Services>,
}

/// A snapshot on its way to this node.
struct Fetching {
    fetch: FetchSnapshot,
    token: u64,
    received: u64,
    /// Attempts since something was received.
    attempts: u32,
    /// When to ask again, after the connection broke.
    retry_at: Option<Instant>,
}

/// The handler.
pub struct NodeHandler {
    identity: Identity,
    raft: Handle,
    member: Option<Box<Membership>>,
    greetings: Greetings,
    links: BTreeMap<NodeId, LinkReport>,
    hints: BTreeMap<NodeId, String>,
    peers: Vec<Member>,
    leadership: raft::Leadership,
    refreshed: Option<Instant>,
    sync: Histogram,
    metrics: Metrics,
    stop: Arc<StopCell>,
    watched: Arc<AtomicBool>,
    next_token: u64,
    fetching: Option<Fetching>,
    /// A call that tells the leader our new address.
    moving: Option<u64>,
    /// Snapshot streams that this node serves.
    serving: BTreeMap<StreamId, NodeId>,
    /// Bytes of them that were handed to the socket loop.
    answered: BTreeMap<StreamId, u64>,
    /// Callers that asked this node to leave.
    leaving: BTreeSet<StreamId>,
    /// Those who are no longer members, and when to close their connections.
    parting: Vec<(Instant, Member)>,
    /// Until then callers wait for a leader although no majority is reached; `None` after that.
    settling: Option<Instant>,
    effects: Vec<Effect>,
    backlog: VecDeque<Event>,
}

impl std::fmt::Debug for NodeHandler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeHandler").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// What a handler is made of.
#[derive(Debug)]
pub struct Parts {
    /// Who this node is.
    pub identity: Identity,
    /// The raft thread, running or to be.
    pub raft: Handle,
    /// What was seen of peers before.
    pub greetings: Greetings,
    /// Where things are counted.
    pub metrics: Metrics,
    /// Ends the node.
    pub stop: Arc<StopCell>,
    /// Set while somebody watches the store.
    pub watched: Arc<AtomicBool>,
}

impl NodeHandler {
    /// A handler that answers nothing but health checks until it is told its place with [`Completion::Active`].
    pub fn new(parts: Parts) -> Self {
        let Parts { identity, raft, greetings, metrics, stop, watched } = parts;
        Self {
            identity,
            raft,
            member: None,
            greetings,
            links: BTreeMap::new(),
            hints: BTreeMap::new(),
            peers: Vec::new(),
            leadership: raft::Leadership::default(),
            refreshed: None,
            sync: metrics.histogram("skep_wal_sync_seconds"),
            metrics,
            stop,
            watched,
            next_token: OWN,
            fetching: None,
            moving: None,
            serving: BTreeMap::new(),
            answered: BTreeMap::new(),
            leaving: BTreeSet::new(),
            parting: Vec::new(),
            settling: None,
            effects: Vec::new(),
            backlog: VecDeque::new(),
        }
    }

    /// The node has its place: requests are served from now on.
    pub fn activate(&mut self, active: Active) {
        let Active { raft_id, lineage, store, transfer, jobs, advertise } = active;
        self.identity.advertise = advertise;
        let control = Control::new(store.clone(), self.context());
        let requests = Requests::new(self.identity.node_id, Services { control }, Limits::default());
        self.member = Some(Box::new(Membership { raft_id, lineage, store, transfer, jobs, requests }));
        self.settling = Some(monotonic() + SETTLING);
    }

    fn context(&self) -> Context {
        Context {
            node_id: self.identity.node_id,
            cluster_id: self.identity.cluster_id,
            hostname: self.identity.hostname.clone(),
            data_dir: self.identity.data_dir.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sync_us: self.sync.quantile_us(0.5),
            raft: self.report(),
            links: self.links.values().cloned().collect(),
        }
    }

    /// Raft's report is a tick old at most; who is reachable is known here better than there.
    fn report(&self) -> crate::types::api::RaftReport {
        let mut report = self.raft.report();
        let up = self.links.values().filter(|link| link.alive).map(|link| link.node_id);
        report.reachable = up.chain([self.identity.node_id]).collect();
        report
    }

    fn refresh(&mut self, now: Instant) {
        if self.refreshed.is_some_and(|at| now.since(at) < FRESH) {
            return;
        }
        self.refreshed = Some(now);
        let context = self.context();
        if let Some(member) = &mut self.member {
            member.requests.service_mut().control.context = context;
        }
    }

    /// Whether this side of the swarm has a leader, can elect one, or has had no time to find out.
    fn may_have_majority(&self) -> bool {
        let Some(member) = &self.member else { return false };
        let context = self.context();
        self.settling.is_some() || member.store.view(|state| control::no_majority(state, &context)).is_none()
    }

    fn own_token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// Runs the requests machine and carries out what it asks, until it asks nothing more.
    fn drive(&mut self, now: Instant, event: Event, out: &mut Outbox) {
        self.backlog.push_back(event);
        while let Some(event) = self.backlog.pop_front() {
            let Some(member) = &mut self.member else { return };
            member.requests.step(now, event, &mut self.effects);
            for effect in std::mem::take(&mut self.effects) {
                self.carry_out(effect, out);
            }
        }
    }

    fn carry_out(&mut self, effect: Effect, out: &mut Outbox) {
        match effect {
            Effect::Answer { stream, body, end } => {
                if self.leaving.remove(&stream) {
                    self.stop.stop(Stopped::Removed);
                }
                out.commands.push(Command::Answer { stream, body, end });
            }
            Effect::Refuse { stream, status } => {
                self.leaving.remove(&stream);
                out.refuse(stream, status);
            }
            Effect::Propose { token, command } => {
                if !self.raft.request(raft::Event::Propose { token, command: command.into() }) {
                    let result = ProposalResult::NotProposed(NotProposed::Overloaded);
                    self.backlog.push_back(Event::Outcome { token, result });
                }
            }
            Effect::Read { token } => {
                if !self.raft.request(raft::Event::Read { token }) {
                    self.backlog.push_back(Event::ReadFailed { token });
                }
            }
            Effect::Raft { token, order } => self.order(token, order),
            Effect::Forward { token, to, call, deadline_ms, forwarded, body } => {
                let forwarded = Some(forwarded);
                out.commands.push(Command::Call { token, to: Target::Node(to), call, deadline_ms, forwarded, body });
            }
            Effect::Abandon { token } => out.commands.push(Command::Abandon { token }),
            Effect::BackDial { token, node, addr } => {
                let body = crate::codec::envelope::encode(&()).into();
                out.commands.push(Command::Call {
                    token,
                    to: Target::Address(node, addr),
                    call: Call::Health,
                    deadline_ms: OWN_DEADLINE_MS,
                    forwarded: None,
                    body,
                });
            }
            Effect::Elsewhere(request) => self.serve_snapshot(&request, out),
        }
    }

    fn order(&mut self, token: u64, order: RaftOrder) {
        let order = match order {
            RaftOrder::Transfer { to } => Order::Transfer { to },
            RaftOrder::Snapshot => Order::Snapshot,
            RaftOrder::Join { node_id, addr, feature_level } => Order::Join { node_id, addr, feature_level },
            RaftOrder::Leave { node_id, force: true }
                if node_id == self.identity.node_id && self.leadership.leader.is_none() =>
            {
                // Nobody can be asked: this manager goes, and the others go on counting it.
                let result = Ok(control::encode(&Answer::Done));
                self.backlog.push_back(Event::RaftResult { token, result });
                return;
            }
            RaftOrder::Leave { node_id, force } => Order::Leave { node_id, force },
            RaftOrder::SetAddress { node_id, addr } => Order::SetAddress { node_id, addr },
        };
        if !self.raft.request(raft::Event::Order { token, order }) {
            let status = Status::new(Code::Unavailable, "too many requests wait for raft").with_hint("try again");
            self.backlog.push_back(Event::RaftResult { token, result: Err(status) });
        }
    }

    fn serve_snapshot(&mut self, request: &Incoming, out: &mut Outbox) {
        let (Some(member), Some(node)) = (&self.member, request.caller.node_id()) else { return };
        let wanted: SnapshotRequest = match crate::codec::envelope::decode(&request.body, request.body.len()) {
            Ok(wanted) => wanted,
            Err(error) => {
                let status = Status::new(Code::InvalidArgument, format!("the request cannot be read: {error}"));
                out.refuse(request.stream, status);
                return;
            }
        };
        let SnapshotRequest { position, offset } = wanted;
        let job = Transfer::Serve { stream: request.stream, position, offset };
        if member.transfer.try_send(job).is_err() {
            out.refuse(request.stream, Status::new(Code::ResourceExhausted, "too many snapshots are being sent"));
            return;
        }
        self.serving.insert(request.stream, node);
        self.raft.link(raft::Event::SnapshotServing { node });
    }

    // ---- snapshots on their way here ----

    fn begin_fetch(&mut self, fetch: FetchSnapshot, out: &mut Outbox) {
        log::info!("fetching a snapshot at log index {} from node {}", fetch.mark.position.index, fetch.from);
        if let Some(old) = self.fetching.take() {
            out.commands.push(Command::Abandon { token: old.token });
            self.transfer(Transfer::Abort);
        }
        let Some(member) = &self.member else { return };
        if member.transfer.try_send(Transfer::Begin(fetch.mark.clone())).is_err() {
            self.raft.link(raft::Event::SnapshotNotFetched { position: fetch.mark.position });
            return;
        }
        self.fetching = Some(Fetching { fetch, token: 0, received: 0, attempts: 0, retry_at: None });
        self.call_for_snapshot(out);
    }

    fn call_for_snapshot(&mut self, out: &mut Outbox) {
        let token = self.own_token();
        let Some(fetching) = &mut self.fetching else { return };
        fetching.token = token;
        fetching.attempts += 1;
        fetching.retry_at = None;
        let request = SnapshotRequest { position: fetching.fetch.mark.position, offset: fetching.received };
        out.commands.push(Command::Call {
            token,
            to: Target::Node(fetching.fetch.from),
            call: Call::Snapshot,
            deadline_ms: FETCH_DEADLINE_MS,
            forwarded: None,
            body: crate::codec::envelope::encode(&request).into(),
        });
    }

    fn fetch_replied(&mut self, reply: Reply) {
        let Some(fetching) = &mut self.fetching else { return };
        match reply {
            Reply::Answer { body, end } => {
                fetching.received += body.len() as u64;
                fetching.attempts = 0;
                if !body.is_empty() {
                    self.transfer(Transfer::Part(body));
                }
                if end {
                    self.transfer(Transfer::End);
                }
            }
            Reply::Refused(status) => {
                log::warn!("the snapshot is refused: {status}");
                self.transfer(Transfer::Abort);
            }
            Reply::Lost { .. } if fetching.attempts < FETCH_ATTEMPTS => {
                // A redial takes a moment; what was received is kept.
                fetching.retry_at = Some(monotonic() + FETCH_PAUSE * (1 << fetching.attempts));
            }
            Reply::Lost { .. } => {
                log::warn!("the snapshot's sender cannot be reached");
                self.transfer(Transfer::Abort);
            }
        }
    }

    fn transfer(&mut self, transfer: Transfer) {
        if let Some(member) = &self.member
            && member.transfer.try_send(transfer).is_err()
        {
            // Only possible when the disk takes nothing for thousands of parts; credit bounds them to a few.
            log::error!("the transfer thread is stuck");
        }
    }

    // ---- leadership and members ----

    fn announce(&mut self, now: Instant, out: &mut Outbox) {
        self.refreshed = None;
        self.refresh(now);
        let Some(member) = &self.member else { return };
        let context = &member.requests.service().control.context;
        let no_majority = match self.settling {
            Some(_) => None,
            None => member.store.view(|state| control::no_majority(state, context)),
        };
        let leadership = Leadership { leader: self.leadership.leader, serving: self.leadership.serving, no_majority };
        self.drive(now, Event::Leadership(leadership), out);
        self.move_if_needed(out);
    }

    fn set_peers(&mut self, now: Instant, members: Vec<Member>, out: &mut Outbox) {
        let old = std::mem::replace(&mut self.peers, members);
        self.parting.retain(|(_, member)| !self.peers.iter().any(|peer| peer.node_id == member.node_id));
        for member in old {
            if !self.peers.iter().any(|peer| peer.node_id == member.node_id) {
                self.links.remove(&member.node_id);
                self.parting.push((now + PARTING, member));
            }
        }
        for link in self.links.values_mut() {
            if let Some(member) = self.peers.iter().find(|member| member.node_id == link.node_id) {
                link.addr.clone_from(&member.addr);
            }
        }
        self.dial_peers(out);
    }

    /// Closes the connections of those who had their time to hear that they are no longer members.
    fn part(&mut self, now: Instant, out: &mut Outbox) {
        let (due, parting) = std::mem::take(&mut self.parting).into_iter().partition(|(due, _)| *due <= now);
        self.parting = parting;
        let due: Vec<(Instant, Member)> = due;
        if due.is_empty() {
            return;
        }
        self.dial_peers(out);
        out.commands.extend(due.into_iter().map(|(_, member)| Command::Disconnect(member.node_id)));
    }

    /// Apply may see that this node left before the leader's answer is here, and the node stops then: whoever asked for
    /// it gets what is true.
    fn answer_leaving(&mut self, now: Instant, out: &mut Outbox) {
        for stream in std::mem::take(&mut self.leaving) {
            self.drive(now, Event::Cancelled(stream), out);
            out.commands.push(Command::Answer { stream, body: control::encode(&Answer::Done), end: true });
        }
    }

    fn dial_peers(&self, out: &mut Outbox) {
        let own = self.identity.node_id;
        let parting = self.parting.iter().map(|(_, member)| member);
        let peers = self.peers.iter().chain(parting).filter(|member| member.node_id != own);
        let dial = |member: &Member| {
            let addr = self.hints.get(&member.node_id).unwrap_or(&member.addr);
            (member.node_id, addr.clone())
        };
        out.commands.push(Command::Peers(peers.map(dial).collect()));
    }

    /// Tells the swarm when this node listens elsewhere than the members' list says.
    fn move_if_needed(&mut self, out: &mut Outbox) {
        let own = self.peers.iter().find(|member| member.node_id == self.identity.node_id);
        let (Some(own), Some(leader), None) = (own, self.leadership.leader, self.moving) else { return };
        if own.addr == self.identity.advertise {
            return;
        }
        let addr = self.identity.advertise.clone();
        log::info!("this manager moved from {} to {addr}: telling the swarm", own.addr);
        let token = self.own_token();
        if leader == self.identity.node_id {
            let order = Order::SetAddress { node_id: leader, addr };
            if self.raft.request(raft::Event::Order { token, order }) {
                self.moving = Some(token);
            }
            return;
        }
        self.moving = Some(token);
        out.commands.push(Command::Call {
            token,
            to: Target::Node(leader),
            call: Call::SetAddress,
            deadline_ms: OWN_DEADLINE_MS,
            forwarded: None,
            body: crate::codec::envelope::encode(&SetAddressRequest { addr }).into(),
        });
    }

    fn raft_replies(&mut self, now: Instant, replies: Vec<raft::Reply>, out: &mut Outbox) {
        for reply in replies {
            match reply {
                raft::Reply::NotLeader(token) => {
                    let result = ProposalResult::NotProposed(NotProposed::NotLeader);
                    self.drive(now, Event::Outcome { token, result }, out);
                }
                raft::Reply::Overloaded(token) => {
                    let result = ProposalResult::NotProposed(NotProposed::Overloaded);
                    self.drive(now, Event::Outcome { token, result }, out);
                }
                raft::Reply::Lost(token) => {
                    self.drive(now, Event::Outcome { token, result: ProposalResult::Lost }, out);
                }
                raft::Reply::Uncertain(token) => {
                    self.drive(now, Event::Outcome { token, result: ProposalResult::Uncertain }, out);
                }
                raft::Reply::ReadReady(tokens) => {
                    for token in tokens {
                        self.drive(now, Event::ReadReady { token }, out);
                    }
                }
                raft::Reply::ReadFailed(tokens) => {
                    for token in tokens {
                        self.drive(now, Event::ReadFailed { token }, out);
                    }
                }
                raft::Reply::Order(token, _) if token >= OWN => self.moving = None,
                raft::Reply::Order(token, result) => {
                    let result = match result {
                        OrderResult::Done(answer) => Ok(control::encode(&answer)),
                        OrderResult::Refused(status) => Err(status),
                        OrderResult::Uncertain => {
                            let message =
                                "leadership moved while the order was in the log: it may still be carried out";
                            Err(Status::new(Code::Unknown, message)
                                .with_hint("see with `skep members`, then try again"))
                        }
                        OrderResult::Again => {
                            Err(Status::new(Code::Unavailable, "leadership moved; nothing was done")
                                .with_hint("try again"))
                        }
                    };
                    self.drive(now, Event::RaftResult { token, result }, out);
                }
            }
        }
    }
}

impl Handler for NodeHandler {
    type Completion = Completion;

    fn hello(&mut self) -> Hello {
        let member = self.member.as_ref();
        Hello {
            protocol: PROTOCOL,
            cluster_id: self.identity.cluster_id,
            node_id: self.identity.node_id,
            raft_id: member.map(|member| member.raft_id),
            lineage: member.map_or(Lineage(0), |member| member.lineage),
            boot: self.identity.boot,
            nonce: self.identity.nonce,
            last: if member.is_some() { self.raft.durable().last } else { Position::default() },
            advertise: self.identity.advertise.clone(),
            feature_level: FEATURE_LEVEL,
            revision: member.map_or(Revision(0), |member| member.store.revision()),
        }
    }

    fn greeted(&mut self, caller: &Caller, hello: &Hello) -> Result<(), Status> {
        let Some(member) = &self.member else { return Ok(()) };
        let verdict = member.store.view(|state| self.greetings.judge(caller, hello, state, member.lineage));
        match verdict {
            Verdict::Welcome => {}
            Verdict::WelcomeNew(peers) => {
                // A queue that is full of snapshots to write drops it: what is not remembered is judged by the floors.
                let _ = member.jobs.try_send(Job::Remember(peers));
            }
            Verdict::Refused(status) => return Err(status),
        }
        let known = self.peers.iter().find(|peer| peer.node_id == hello.node_id);
        if known.is_some_and(|peer| peer.addr != hello.advertise) && !hello.advertise.is_empty() {
            self.hints.insert(hello.node_id, hello.advertise.clone());
        }
        Ok(())
    }

    fn turned_away(&mut self, peer: Option<NodeId>, status: &Status, _out: &mut Outbox) {
        if self.member.is_none() {
            return;
        }
        let by = peer.map_or_else(|| "a manager".to_owned(), |peer| format!("manager {peer}"));
        match Greetings::meaning(status) {
            Some(Stopped::Outlived(_)) if self.may_have_majority() => {
                log::error!("{by} turned this node away: {status}; this side has a majority and goes on");
            }
            Some(stopped) => {
                log::error!("{by} turned this node away: {status}");
                self.stop.stop(stopped);
            }
            None => log::warn!("{by} turned this node away: {status}"),
        }
    }

    fn request(&mut self, now: Instant, request: Incoming, out: &mut Outbox) {
        if self.member.is_none() {
            if request.call == Call::Health {
                out.answer(request.stream, control::encode(&Answer::Done));
            } else {
                let status = Status::new(Code::Unavailable, "this manager is joining a swarm and has no state yet");
                out.refuse(request.stream, status.with_hint("try again in a second"));
            }
            return;
        }
        self.refresh(now);
        match request.call {
            Call::Watch => self.watched.store(true, Relaxed),
            Call::Admin => {
                let admin: Result<Admin, _> = crate::codec::envelope::decode(&request.body, request.body.len());
                if matches!(admin, Ok(Admin::Leave { .. })) && request.caller == Caller::Local {
                    self.leaving.insert(request.stream);
                }
            }
            _ => {}
        }
        self.drive(now, Event::Request(request), out);
    }

    fn cancelled(&mut self, stream: StreamId, out: &mut Outbox) {
        self.leaving.remove(&stream);
        self.answered.remove(&stream);
        if self.serving.remove(&stream).is_some() {
            self.transfer(Transfer::Cancel(stream));
        } else {
            self.drive(monotonic(), Event::Cancelled(stream), out);
        }
    }

    fn credit(&mut self, stream: StreamId, available: u32, out: &mut Outbox) {
        if let Some(node) = self.serving.get(&stream).copied() {
            self.raft.link(raft::Event::SnapshotServing { node });
            let answered = self.answered.get(&stream).copied().unwrap_or(0);
            self.transfer(Transfer::Credit { stream, available, answered });
        } else {
            self.drive(monotonic(), Event::Credit(stream, available), out);
        }
    }

    fn replied(&mut self, now: Instant, token: u64, reply: Reply, out: &mut Outbox) {
        if token < OWN {
            self.drive(now, Event::Replied { token, reply }, out);
        } else if self.fetching.as_ref().is_some_and(|fetching| fetching.token == token) {
            self.fetch_replied(reply);
        } else if self.moving == Some(token) {
            self.moving = None;
            if let Reply::Refused(status) = reply {
                log::warn!("the swarm did not take this manager's new address: {status}");
            }
        }
    }

    fn raft(&mut self, from: NodeId, body: Bytes, out: &mut Outbox) {
        if self.member.is_none() {
            return;
        }
        match raft_message::decode_all(&body) {
            Ok(messages) => {
                for message in messages {
                    self.raft.peer(from, message);
                }
            }
            Err(error) => {
                log::warn!("node {from} sent raft messages that cannot be read: {error}");
                out.commands.push(Command::Disconnect(from));
            }
        }
    }

    fn connected(&mut self, peer: NodeId, out: &mut Outbox) {
        let addr = self.peers.iter().find(|member| member.node_id == peer).map(|member| member.addr.clone());
        let link = self.links.entry(peer).or_insert_with(|| LinkReport {
            node_id: peer,
            addr: String::new(),
            alive: false,
            rtt_us: 0,
            clock_offset_ms: 0,
            sync_us: 0,
        });
        link.alive = true;
        link.addr = addr.unwrap_or_default();
        self.raft.link(raft::Event::Link { node: peer, up: true, refused: false });
        self.announce(monotonic(), out);
    }

    fn disconnected(&mut self, peer: NodeId, refused: bool, out: &mut Outbox) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.alive = false;
            link.rtt_us = 0;
        }
        // A hint that leads nowhere must not hide the address that the members' list has.
        if self.hints.remove(&peer).is_some() {
            self.dial_peers(out);
        }
        self.raft.link(raft::Event::Link { node: peer, up: false, refused });
        self.announce(monotonic(), out);
    }

    fn measured(&mut self, peer: NodeId, rtt_us: u64, clock_offset_ms: i64, ping: Ping) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.rtt_us = rtt_us;
            link.clock_offset_ms = clock_offset_ms;
            link.sync_us = ping.sync_us;
        }
        let mark = (Index(ping.mark_index), ping.mark_sum);
        self.raft.link(raft::Event::Measured { node: peer, rtt_us, sync_us: ping.sync_us, mark });
    }

    fn ping(&mut self) -> Ping {
        let mark = self.raft.mark();
        Ping {
            sync_us: self.sync.quantile_us(0.5),
            mark_index: mark.map_or(0, |mark| mark.index.0),
            mark_sum: mark.map_or(0, |mark| mark.sum),
            ..Ping::default()
        }
    }

    fn completed(&mut self, now: Instant, completions: Vec<Completion>, out: &mut Outbox) {
        for completion in completions {
            match completion {
                Completion::Active(active) => {
                    self.activate(*active);
                    self.announce(now, out);
                }
                Completion::Replies(replies) => self.raft_replies(now, replies, out),
                Completion::Outcomes(outcomes) => {
                    for (token, outcome) in outcomes {
                        let result = ProposalResult::Applied(outcome);
                        self.drive(now, Event::Outcome { token, result }, out);
                    }
                    if self.watched.load(Relaxed) {
                        self.drive(now, Event::StoreMoved, out);
                    }
                }
                Completion::Moved => self.drive(now, Event::StoreMoved, out),
                Completion::Leadership(leadership) => {
                    log_leadership(&self.leadership, &leadership, self.identity.node_id);
                    self.leadership = leadership;
                    self.announce(now, out);
                }
                Completion::Peers(members) => {
                    self.set_peers(now, members, out);
                    self.announce(now, out);
                }
                Completion::Fetch(fetch) => self.begin_fetch(fetch, out),
                Completion::Served { stream, body, end } => {
                    if end || !self.serving.contains_key(&stream) {
                        self.serving.remove(&stream);
                        self.answered.remove(&stream);
                    } else {
                        *self.answered.entry(stream).or_default() += body.len() as u64;
                    }
                    out.commands.push(Command::Answer { stream, body, end });
                }
                Completion::NotServed { stream, status } => {
                    self.serving.remove(&stream);
                    out.refuse(stream, status);
                }
                Completion::Taken(position, bytes) => {
                    if let Some(fetching) = self.fetching.as_ref().filter(|f| f.fetch.mark.position == position) {
                        out.commands.push(Command::Grant { token: fetching.token, bytes });
                    }
                }
                Completion::FetchEnded(position) => {
                    if let Some(fetching) = self.fetching.take_if(|f| f.fetch.mark.position == position) {
                        out.commands.push(Command::Abandon { token: fetching.token });
                    }
                }
                Completion::Hint(node, addr) => {
                    self.hints.insert(node, addr);
                    self.dial_peers(out);
                }
                Completion::TurnedAway(status) => self.turned_away(None, &status, out),
                Completion::Shutdown => {
                    if self.stop.is_removed() {
                        self.answer_leaving(now, out);
                    }
                    out.commands.push(Command::Shutdown);
                }
            }
        }
    }

    fn turn_ended(&mut self, now: Instant, out: &mut Outbox) {
        if self.member.is_none() {
            return;
        }
        if self.settling.is_some_and(|until| until <= now) {
            self.settling = None;
            self.announce(now, out);
        }
        self.part(now, out);
        if self.fetching.as_ref().and_then(|fetching| fetching.retry_at).is_some_and(|at| at <= now) {
            self.call_for_snapshot(out);
        }
        self.drive(now, Event::TurnEnded, out);
        if let Some(member) = &self.member
            && member.requests.is_empty()
        {
            self.watched.store(false, Relaxed);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let parting = self.parting.iter().map(|(due, _)| *due).min();
        let requests = self.member.as_ref().and_then(|member| member.requests.next_deadline());
        let fetch = self.fetching.as_ref().and_then(|fetching| fetching.retry_at);
        parting.into_iter().chain(requests).chain(self.settling).chain(fetch).min()
    }

    fn http(&mut self, path: &str) -> (u16, &'static str, String) {
        self.refreshed = None;
        self.refresh(monotonic());
        match &self.member {
            Some(member) => {
                member.requests.load().show(&self.metrics);
                control::http(path, &member.requests.service().control.context, &member.store, &self.metrics)
            }
            None if path == "/healthz" => (200, "text/plain", "ok\n".to_owned()),
            None => (503, "text/plain", "joining a swarm\n".to_owned()),
        }
    }

    fn is_removed(&self, node: NodeId) -> bool {
        self.member.as_ref().is_some_and(|member| member.store.view(|state| state.is_removed(node)))
    }
}

fn log_leadership(before: &raft::Leadership, after: &raft::Leadership, own: NodeId) {
    match after.leader {
        Some(leader) if leader == own && after.serving => log::info!("this manager leads in term {}", after.term),
        Some(leader) if leader != own && before.leader != Some(leader) => {
            log::info!("manager {leader} leads in term {}", after.term);
        }
        None if before.leader.is_some() => log::warn!("no leader is known in term {}", after.term),
        _ => {}
    }
}
