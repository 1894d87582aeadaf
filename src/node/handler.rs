//! What the net thread does with what arrives: requests go to the requests machine, Raft messages to the raft thread,
//! snapshot parts to the transfer thread, and what comes back from them goes out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;

use super::addresses::Addresses;
use super::greeting::{Greetings, Verdict};
use super::leader::Notices;
use super::lobby::{Joiner, Porter as _, Progress};
use super::locksmith;
use super::outlet::{Ask, Completion};
use super::outlived::{Outlived, Reaction};
use super::service::Services;
use super::snapshots::{Job, Transfer};
use super::stop::{StopCell, Stopped};
use crate::agent::Own;
use crate::ca;
use crate::codec::raft_message;
use crate::codec::request::Ping;
use crate::control::{self, Context, Control};
use crate::net::handler::{Command, ConnectionId, Handler, Incoming, Outbox, Reply, StreamId, Target};
use crate::net::requests::{Effect, Event, Leadership, Limits, NotProposed, ProposalResult, Requests};
use crate::raft::run::Handle;
use crate::raft::{self, FetchSnapshot, Order, OrderResult};
use crate::store::Store;
use crate::sys::metrics::{Histogram, Metrics};
use crate::sys::queue::Sender;
use crate::sys::time::{Instant, monotonic, wall_ms};
use crate::types::api::{
    Admin, Answer, Call, DiskLevel, FEATURE_LEVEL, Hello, LinkReport, PROTOCOL, ResolveAddress, SetAddressRequest,
    SnapshotRequest,
};
use crate::types::{
    Caller, ClusterId, Code, Index, Lineage, Member, NodeId, Position, RaftId, Revision, Role, Standing, Status,
};

mod completions;
mod diagnose;
mod links;
mod members;
mod requests;
mod snapshots;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use members::log_leadership;
use snapshots::Fetching;

/// A manager that has just started, or has a new certificate after the former one had ended, has had no time to reach the
/// others: that it sees no majority is no news before this.
const SETTLING: Duration = Duration::from_millis(1500);
/// The node's own calls have tokens from here on; the requests machine's are below.
const OWN: u64 = 1 << 63;
/// What raft and links say is read again for a request after this.
const FRESH: Duration = Duration::from_millis(20);
/// A manager that turned this node away and has not been heard of since is not news for longer.
const REFUSAL_LASTS: Duration = Duration::from_secs(60);
/// The connection of this node's own requests, which no socket has.
const INSIDE: ConnectionId = ConnectionId(u64::MAX);
/// A leader may take this long to answer the node's own small calls.
const OWN_DEADLINE_MS: u32 = 5000;

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
    /// Keeps the key file.
    pub locksmith: Sender<locksmith::Order>,
    /// Where it listens, as the swarm was told.
    pub advertise: String,
    /// What the services of this leader cannot do now.
    pub held_up: Notices,
}

struct Membership {
    held_up: Notices,
    raft_id: RaftId,
    lineage: Lineage,
    store: Arc<Store>,
    transfer: Sender<Transfer>,
    jobs: Sender<Job>,
    locksmith: Sender<locksmith::Order>,
    requests: Requests<Services>,
}

/// The handler.
pub struct NodeHandler {
    identity: Identity,
    raft: Handle,
    member: Option<Box<Membership>>,
    greetings: Greetings,
    links: BTreeMap<NodeId, LinkReport>,
    /// Peers whose disks are low, as raft was told.
    low_disks: BTreeSet<NodeId>,
    hints: BTreeMap<NodeId, String>,
    peers: Vec<Member>,
    leadership: raft::Leadership,
    refreshed: Option<Instant>,
    sync: Histogram,
    metrics: Metrics,
    stop: Arc<StopCell<Stopped>>,
    watched: Arc<AtomicBool>,
    progress: Progress,
    next_token: u64,
    fetching: Option<Fetching>,
    /// Members that do not answer, and the calls that ask others where they are.
    addresses: Addresses,
    /// The member, and the address besides that of the members' list that it did not answer on.
    resolving: BTreeMap<u64, (NodeId, Option<String>)>,
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
    /// The certificate that the links were made with had ended.
    was_expired: bool,
    /// Peers for whom appends were dropped in this turn.
    unreachable: BTreeSet<NodeId>,
    /// Something was queued for the raft thread in this turn, which makes one batch of all of it.
    raft_waits: bool,
    effects: Vec<Effect>,
    backlog: VecDeque<Event>,
    /// What managers of a later history say.
    outlived: Outlived,
    /// This node's own requests, and where their answers go.
    asking: BTreeMap<StreamId, Sender<Result<Bytes, Status>>>,
    /// The certificate, for `status`.
    own: Own,
    /// Managers that do not take this node, since when, and why.
    refusals: BTreeMap<Option<NodeId>, (Instant, String)>,
}

/// What is appended to a message.
fn in_brackets(hint: &str) -> String {
    if hint.is_empty() { String::new() } else { format!(" (hint: {hint})") }
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
    pub stop: Arc<StopCell<Stopped>>,
    /// Set while somebody watches the store.
    pub watched: Arc<AtomicBool>,
    /// What the join waits for, until it is over.
    pub progress: Progress,
    /// The certificate in use.
    pub own: Own,
}

impl NodeHandler {
    /// A handler that answers as a [`Joiner`] until it is told its place with [`Completion::Active`].
    pub fn new(parts: Parts) -> Self {
        let Parts { identity, raft, greetings, metrics, stop, watched, progress, own } = parts;
        Self {
            identity,
            raft,
            member: None,
            greetings,
            links: BTreeMap::new(),
            low_disks: BTreeSet::new(),
            hints: BTreeMap::new(),
            peers: Vec::new(),
            leadership: raft::Leadership::default(),
            refreshed: None,
            sync: metrics.histogram("skep_wal_sync_seconds"),
            metrics,
            stop,
            watched,
            progress,
            next_token: OWN,
            fetching: None,
            addresses: Addresses::default(),
            resolving: BTreeMap::new(),
            moving: None,
            serving: BTreeMap::new(),
            answered: BTreeMap::new(),
            leaving: BTreeSet::new(),
            parting: Vec::new(),
            settling: None,
            was_expired: false,
            unreachable: BTreeSet::new(),
            raft_waits: false,
            effects: Vec::new(),
            backlog: VecDeque::new(),
            outlived: Outlived::default(),
            asking: BTreeMap::new(),
            own,
            refusals: BTreeMap::new(),
        }
    }

    /// The node has its place: requests are served from now on.
    pub fn activate(&mut self, active: Active) {
        let Active { raft_id, lineage, store, transfer, jobs, locksmith, advertise, held_up } = active;
        self.identity.advertise = advertise;
        let control = Control::new(store.clone(), self.context());
        let requests = Requests::new(self.identity.node_id, Services::new(control), Limits::default());
        self.member =
            Some(Box::new(Membership { held_up, raft_id, lineage, store, transfer, jobs, locksmith, requests }));
        self.settling = Some(monotonic() + SETTLING);
    }

    fn joiner(&self) -> Joiner {
        Joiner {
            node_id: self.identity.node_id,
            cluster_id: self.identity.cluster_id,
            hostname: self.identity.hostname.clone(),
            progress: self.progress.clone(),
        }
    }

    fn context(&self) -> Context {
        let (certificate, raft) = (self.own.report(), self.report());
        let of_certificate = control::certificate_warnings(&certificate, raft.leader.is_some(), wall_ms());
        let now = monotonic();
        let lately = self.refusals.values().filter(|(at, _)| now.since(*at) < REFUSAL_LASTS);
        let refused = lately.map(|(_, told)| told.clone());
        let held_up = self.member.as_ref().map(|member| member.held_up.get()).unwrap_or_default();
        Context {
            node_id: self.identity.node_id,
            cluster_id: self.identity.cluster_id,
            hostname: self.identity.hostname.clone(),
            data_dir: self.identity.data_dir.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sync_us: self.sync.quantile_us(0.5),
            raft,
            links: self.links.values().cloned().collect(),
            notices: self
                .outlived
                .notice(monotonic())
                .into_iter()
                .chain(refused)
                .chain(held_up)
                .chain(of_certificate)
                .collect(),
            certificate: Some(certificate),
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

    fn own_token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
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
        self.peer_greeted(caller, hello)
    }

    fn turned_away(&mut self, peer: Option<NodeId>, status: &Status, _out: &mut Outbox) {
        self.peer_refused_us(peer, status);
    }

    fn request(&mut self, now: Instant, request: Incoming, out: &mut Outbox) {
        self.take_request(now, request, out);
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
        } else if let Some((about, failed)) = self.resolving.remove(&token) {
            self.resolved(about, failed.as_deref(), reply, out);
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
                self.raft_waits = true;
            }
            Err(error) => {
                log::warn!("node {from} sent raft messages that cannot be read: {error}");
                out.commands.push(Command::Disconnect(from));
            }
        }
    }

    fn raft_dropped(&mut self, peer: NodeId) {
        self.unreachable.insert(peer);
    }

    fn connected(&mut self, peer: NodeId, out: &mut Outbox) {
        self.peer_connected(peer, out);
    }

    fn disconnected(&mut self, peer: NodeId, refused: bool, out: &mut Outbox) {
        self.peer_disconnected(peer, refused, out);
    }

    fn measured(&mut self, peer: NodeId, rtt_us: u64, clock_offset_ms: i64, ping: Ping) {
        self.peer_measured(peer, rtt_us, clock_offset_ms, ping);
    }

    fn ping(&mut self) -> Ping {
        let mark = self.raft.mark();
        Ping {
            sync_us: self.sync.quantile_us(0.5),
            mark_index: mark.map_or(0, |mark| mark.index.0),
            mark_sum: mark.map_or(0, |mark| mark.sum),
            disk_low: self.raft.report().disk.level != DiskLevel::Ok,
            ..Ping::default()
        }
    }

    fn completed(&mut self, now: Instant, completions: Vec<Completion>, out: &mut Outbox) {
        for completion in completions {
            self.complete(now, completion, out);
        }
    }

    fn turn_ended(&mut self, now: Instant, out: &mut Outbox) {
        if self.member.is_none() {
            return;
        }
        for node in std::mem::take(&mut self.unreachable) {
            self.raft.link(raft::Event::Unreachable { node });
        }
        if self.settling.is_some_and(|until| until <= now) {
            self.settling = None;
            self.announce(now, out);
        }
        self.look_at_certificate(now, out);
        self.part(now, out);
        self.ask_for_addresses(now, out);
        if self.fetching.as_ref().and_then(|fetching| fetching.retry_at).is_some_and(|at| at <= now) {
            self.call_for_snapshot(out);
        }
        self.drive(now, Event::TurnEnded, out);
        self.wake_raft();
        if let Some(member) = &self.member
            && member.requests.is_empty()
        {
            self.watched.store(false, Relaxed);
        }
    }

    fn turn_written(&mut self) {
        self.wake_raft();
        self.raft.wake_log();
    }

    fn next_deadline(&self) -> Option<Instant> {
        if !self.unreachable.is_empty() {
            // Noted after the end of the turn.
            return Some(Instant::default());
        }
        let parting = self.parting.iter().map(|(due, _)| *due).min();
        let requests = self.member.as_ref().and_then(|member| member.requests.next_deadline());
        let fetch = self.fetching.as_ref().and_then(|fetching| fetching.retry_at);
        let lost = self.addresses.next_deadline();
        parting.into_iter().chain(requests).chain(self.settling).chain(fetch).chain(lost).min()
    }

    fn http(&mut self, path: &str) -> (u16, &'static str, String) {
        self.refreshed = None;
        self.refresh(monotonic());
        match &self.member {
            Some(member) => {
                member.requests.load().show(&self.metrics);
                control::http(path, &member.requests.service().control.context, &member.store, &self.metrics)
            }
            None => self.joiner().http(path),
        }
    }

    fn standing(&self, node: NodeId) -> Standing {
        self.member.as_ref().map_or(Standing::Unknown, |member| member.store.view(|state| state.standing(node)))
    }

    fn admits_expired(&self, node: NodeId) -> bool {
        let Some(member) = &self.member else { return false };
        let now_ms = wall_ms();
        // Where there is a leader, whoever comes late has a way to a new certificate.
        let in_need = self.leadership.leader.is_none() || self.own.identity().is_expired(now_ms);
        in_need && member.store.view(|state| state.member_of(node).is_some() && ca::may_come_back(state, node, now_ms))
    }
}
