//! The life of a request, from its arrival to its one answer.
//!
//! A [`Requests`] machine stands between the socket loop, which delivers whole requests, and a [`Service`], which decides
//! from the store. It finds the place where a request can be carried out (here, or at the leader), waits while there is
//! none, proposes what the service decided, goes round again when leadership moved under a request that may safely be
//! repeated, and ends every request at its deadline at the latest. It reads no clock and does no I/O: [`Event`]s in,
//! [`Effect`]s out.
//!
//! What a caller may rely on:
//!
//! * Every request is answered exactly once, unless its caller cancelled it first.
//! * Once a change may have been proposed anywhere, its caller gets a definite outcome or `Unknown`; before that, never
//!   `Unknown`.
//! * A refusal that was drawn from the store, and every linearizable read, is sent only after a ReadIndex round that
//!   began after the request arrived. Requests of one turn of the loop share a round; later ones take a later round.
//! * A call that another manager passed on is never passed on again.
//! * A stream sends no more than its receiver has credit for, and keeps nothing back but its place in the store's ring.
//!
//! Not here: what a request means ([`Service`]), who may make it ([`super::routes`]), bytes on sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::handler::{Incoming, Reply, StreamId};
use super::routes::{self, Served};
use crate::codec::envelope;
use crate::sys::metrics::Metrics;
use crate::sys::time::Instant;
use crate::types::api::{Call, Forwarded, LeaveRequest, WriteRequest};
use crate::types::error::{Code, Status};
use crate::types::limits::MAX_CHANGE_BYTES;
use crate::types::log::Command;
use crate::types::{Change, NodeId, Outcome};

mod streams;
#[cfg(test)]
mod tests;

use streams::Streams;

/// Names one thing that this machine asked for; never used again. Below 2^63, so that the node can make calls of its own
/// under tokens above.
pub type Token = u64;

/// Decides what requests mean, from the store as it is when asked.
pub trait Service: Send {
    /// The state of a stream between two parts.
    type Stream: Send;

    /// Decides what to do with `request`. `attempt` counts the rebuilds of one write after conflicts; `confirmed`: a
    /// ReadIndex round that began after the request arrived has been applied here.
    fn decide(&mut self, request: &Incoming, attempt: u32, confirmed: bool) -> Step<Self::Stream>;

    /// The change proposed by this attempt ended so, by the log's own word.
    fn ended(&mut self, request: &Incoming, attempt: u32, outcome: &Outcome) -> Step<Self::Stream>;

    /// The next part of a stream, of at most `room` bytes.
    fn pull(&mut self, now: Instant, stream: &mut Self::Stream, room: usize) -> Pull;
}

/// What a service decided.
#[derive(Debug)]
pub enum Step<W> {
    /// The answer.
    Answer(Bytes),
    /// Wrong whatever the state says, or definite by the log's word.
    Refuse(Status),
    /// Drawn from the store: sent only after a ReadIndex round that began after the request arrived.
    RefuseIfConfirmed(Status),
    /// A linearizable read: decide again after a round.
    Barrier,
    /// Propose this.
    Propose(Change),
    /// Build the change again, as the next attempt.
    Rebuild,
    /// Something only raft can do.
    Raft(RaftOrder),
    /// A stream of answers, pulled as far as its receiver's credit goes.
    Stream(W),
    /// The node answers this call itself, and this machine forgets it.
    Elsewhere,
}

/// The next part of a stream.
#[derive(Debug)]
pub enum Pull {
    /// A part.
    Part(Bytes),
    /// The next part is larger than the room.
    Full,
    /// Nothing until the store moves, or until the moment named.
    Idle(Option<Instant>),
    /// Everything has been sent.
    Done,
    /// The stream ends, because of this.
    End(Status),
}

/// Something only raft can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RaftOrder {
    /// Hand leadership over, to this voter or to the best one.
    Transfer {
        /// To whom.
        to: Option<NodeId>,
    },
    /// Write a snapshot of this manager's store now.
    Snapshot,
    /// Make a node a member.
    Join {
        /// Who.
        node_id: NodeId,
        /// Where it listens.
        addr: String,
        /// The newest format of replicated bytes it understands.
        feature_level: u32,
    },
    /// Take a member out. With `force` and without a leader to ask, this manager goes without being let go, and the
    /// others go on counting it.
    Leave {
        /// Who.
        node_id: NodeId,
        /// Even if quorum would be at risk.
        force: bool,
    },
    /// Record where a member listens.
    SetAddress {
        /// Who.
        node_id: NodeId,
        /// Where.
        addr: String,
    },
}

impl RaftOrder {
    const fn needs_leader(&self) -> bool {
        !matches!(self, Self::Snapshot)
    }

    /// The call that asks the leader for this order. A request to leave names the manager that was asked, or the leader
    /// would take itself out.
    fn call(&self, request: &Incoming) -> (Call, Bytes) {
        match *self {
            Self::Leave { node_id, force } => (Call::Leave, envelope::encode(&LeaveRequest { node_id, force }).into()),
            _ => (request.call, request.body.clone()),
        }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A request arrived that the route table admits.
    Request(Incoming),
    /// Its caller is gone or lost interest.
    Cancelled(StreamId),
    /// The receiver of a stream takes so many bytes in all now.
    Credit(StreamId, u32),
    /// A call made with [`Effect::Forward`] or [`Effect::BackDial`] ended.
    Replied {
        /// The call's.
        token: Token,
        /// How.
        reply: Reply,
    },
    /// What became of a proposal.
    Outcome {
        /// The proposal's.
        token: Token,
        /// How it ended.
        result: ProposalResult,
    },
    /// The store holds everything that was committed when the round began.
    ReadReady {
        /// The round's.
        token: Token,
    },
    /// The round came to nothing: leadership moved, or time ran out.
    ReadFailed {
        /// The round's.
        token: Token,
    },
    /// An order was carried out or refused. `Unavailable` promises that nothing was done, `Unknown` promises nothing.
    RaftResult {
        /// The order's.
        token: Token,
        /// The answer's envelope, or why not.
        result: Result<Bytes, Status>,
    },
    /// Who leads, as this manager knows it now.
    Leadership(Leadership),
    /// The store has moved on.
    StoreMoved,
    /// All that arrived in this turn of the loop has been delivered, or [`Requests::next_deadline`] has come.
    TurnEnded,
}

/// Who leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The leader, if one is known.
    pub leader: Option<NodeId>,
    /// This manager leads and has applied its own term's first entry.
    pub serving: bool,
    /// Set while no leader is known and this manager sees no reachable majority: what to tell callers, at once.
    pub no_majority: Option<Status>,
}

/// How a proposal ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProposalResult {
    /// It was committed and judged.
    Applied(Outcome),
    /// It never entered the log.
    NotProposed(NotProposed),
    /// Another entry was committed in its place: certainly not applied.
    Lost,
    /// Leadership ended while it was in the log: it may still be committed.
    Uncertain,
}

/// Why a proposal never entered the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotProposed {
    /// This manager does not lead.
    NotLeader,
    /// Too much is under way already.
    Overloaded,
}

/// Something to do. Its `Debug` form shows the length of what requests and changes carry, which may be secret.
#[derive(Clone)]
pub enum Effect {
    /// Send an answer, or a part of a stream of them.
    Answer {
        /// Where to.
        stream: StreamId,
        /// The body.
        body: Bytes,
        /// Nothing follows.
        end: bool,
    },
    /// Refuse a request, or end a stream.
    Refuse {
        /// Where to.
        stream: StreamId,
        /// Why.
        status: Status,
    },
    /// Propose an entry; ends in [`Event::Outcome`].
    Propose {
        /// Comes back with the outcome.
        token: Token,
        /// The envelope of [`Command::Change`].
        command: Vec<u8>,
    },
    /// Begin a ReadIndex round now; ends in [`Event::ReadReady`] or [`Event::ReadFailed`].
    Read {
        /// Comes back with the result.
        token: Token,
    },
    /// Order something of raft; ends in [`Event::RaftResult`].
    Raft {
        /// Comes back with the result.
        token: Token,
        /// What.
        order: RaftOrder,
    },
    /// Pass a call on; ends in [`Event::Replied`].
    Forward {
        /// Comes back with the reply.
        token: Token,
        /// The leader.
        to: NodeId,
        /// What is asked.
        call: Call,
        /// What is left of its time, milliseconds.
        deadline_ms: u32,
        /// On whose behalf.
        forwarded: Forwarded,
        /// The call's envelope.
        body: Bytes,
    },
    /// Drop a call made before: its reply is no longer wanted.
    Abandon {
        /// The call's.
        token: Token,
    },
    /// Call [`Call::Health`] on the address that a joiner gave, where it must prove to be `node`; ends in
    /// [`Event::Replied`]. A manager that cannot be reached would cost the swarm a vote.
    BackDial {
        /// Comes back with the reply.
        token: Token,
        /// Who must answer.
        node: NodeId,
        /// Where.
        addr: String,
    },
    /// The node answers this request itself.
    Elsewhere(Incoming),
}

impl std::fmt::Debug for Effect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Answer { stream, body, end } => f
                .debug_struct("Answer")
                .field("stream", stream)
                .field("body_bytes", &body.len())
                .field("end", end)
                .finish(),
            Self::Refuse { stream, status } => {
                f.debug_struct("Refuse").field("stream", stream).field("status", status).finish()
            }
            Self::Propose { token, command } => {
                f.debug_struct("Propose").field("token", token).field("command_bytes", &command.len()).finish()
            }
            Self::Read { token } => f.debug_struct("Read").field("token", token).finish(),
            Self::Raft { token, order } => f.debug_struct("Raft").field("token", token).field("order", order).finish(),
            Self::Forward { token, to, call, deadline_ms, forwarded, body } => f
                .debug_struct("Forward")
                .field("token", token)
                .field("to", to)
                .field("call", call)
                .field("deadline_ms", deadline_ms)
                .field("forwarded", forwarded)
                .field("body_bytes", &body.len())
                .finish(),
            Self::Abandon { token } => f.debug_struct("Abandon").field("token", token).finish(),
            Self::BackDial { token, node, addr } => {
                f.debug_struct("BackDial").field("token", token).field("node", node).field("addr", addr).finish()
            }
            Self::Elsewhere(incoming) => f.debug_tuple("Elsewhere").field(incoming).finish(),
        }
    }
}

/// How much may wait here.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests that wait for a leader.
    pub held: usize,
    /// Those of them whose callers show no certificate in force. They cannot take the places of members.
    pub held_of_strangers: usize,
    /// Bytes of their bodies.
    pub held_bytes: usize,
    /// Requests under way in all.
    pub requests: usize,
    /// Open streams.
    pub streams: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { held: 4096, held_of_strangers: 256, held_bytes: 64 << 20, requests: 32_768, streams: 1024 }
    }
}

/// How much is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Load {
    /// Requests that wait for a leader.
    pub held: usize,
    /// Requests without an answer yet, those included.
    pub requests: usize,
    /// Open streams.
    pub streams: usize,
}

impl Load {
    /// Sets the gauges `skep_requests_held`, `skep_requests` and `skep_streams`.
    pub fn show(self, metrics: &Metrics) {
        for (name, value) in
            [("skep_requests_held", self.held), ("skep_requests", self.requests), ("skep_streams", self.streams)]
        {
            metrics.gauge(name).set(value as u64);
        }
    }
}

/// How often one write is built again after conflicts before its caller is told.
pub const MAX_REBUILDS: u32 = 8;
/// Before a request goes round again: what it met needs a moment to change.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How long a joiner may take to answer on the address it gave.
const BACK_DIAL: Duration = Duration::from_secs(5);

/// A request's place in the order of arrival.
type Key = u64;

#[derive(Debug)]
struct Pending {
    incoming: Incoming,
    phase: Phase,
    /// Rebuilds of the write so far.
    attempt: u32,
    /// A round that began after the arrival has been applied.
    confirmed: bool,
    /// An earlier pass may have been carried out, and nobody knows.
    in_doubt: bool,
}

#[derive(Debug)]
enum Phase {
    /// Being looked at within this step.
    Deciding,
    /// Waits for a leader, and for this moment.
    Held(Instant),
    /// Waits for the turn's end to share a round.
    Gathered,
    /// Waits for a round.
    Reading(#[cfg_attr(not(debug_assertions), allow(dead_code, reason = "for the invariants of debug builds"))] Token),
    /// Waits for its outcome.
    Proposed(Token),
    /// Waits for the joiner's answer, until then.
    Dialling(Token, RaftOrder, Instant),
    /// Waits for raft.
    Ordered(Token),
    /// Waits for the leader's answer.
    Forwarded(Token, NodeId),
}

/// The machine.
#[derive(Debug)]
pub struct Requests<S: Service> {
    service: S,
    node_id: NodeId,
    limits: Limits,
    leadership: Leadership,
    requests: BTreeMap<Key, Pending>,
    by_stream: BTreeMap<StreamId, Key>,
    /// What is outstanding elsewhere, except rounds.
    tokens: BTreeMap<Token, Key>,
    /// Every request's deadline, and moments at which to look at a request again.
    timers: BTreeSet<(Instant, Key)>,
    /// In order of arrival.
    held: BTreeSet<Key>,
    held_bytes: usize,
    held_of_strangers: usize,
    gathered: Vec<Key>,
    rounds: BTreeMap<Token, Vec<Key>>,
    streams: Streams<S::Stream>,
    next_key: Key,
    next_token: Token,
}

impl<S: Service> Requests<S> {
    /// A machine for the manager `node_id`.
    pub fn new(node_id: NodeId, service: S, limits: Limits) -> Self {
        Self {
            service,
            node_id,
            limits,
            leadership: Leadership::default(),
            requests: BTreeMap::new(),
            by_stream: BTreeMap::new(),
            tokens: BTreeMap::new(),
            timers: BTreeSet::new(),
            held: BTreeSet::new(),
            held_bytes: 0,
            held_of_strangers: 0,
            gathered: Vec::new(),
            rounds: BTreeMap::new(),
            streams: Streams::default(),
            next_key: 0,
            next_token: 1,
        }
    }

    /// The service, to tell it what it must know.
    pub const fn service_mut(&mut self) -> &mut S {
        &mut self.service
    }

    /// The service.
    pub const fn service(&self) -> &S {
        &self.service
    }

    /// How much is under way, for the metrics.
    pub fn load(&self) -> Load {
        Load { held: self.held.len(), requests: self.requests.len(), streams: self.streams.len() }
    }

    /// Requests and streams under way.
    pub fn len(&self) -> usize {
        self.requests.len() + self.streams.len()
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// When to send [`Event::TurnEnded`] at the latest though nothing else happens.
    pub fn next_deadline(&self) -> Option<Instant> {
        let timer = self.timers.first().map(|(at, _)| *at);
        timer.into_iter().chain(self.streams.next_deadline()).min()
    }

    /// Takes one event and appends what must be done, in order.
    pub fn step(&mut self, now: Instant, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Request(incoming) => self.on_request(now, incoming, effects),
            Event::Cancelled(stream) => self.on_cancelled(stream, effects),
            Event::Credit(stream, available) => self.streams.credit(stream, available),
            Event::Replied { token, reply } => self.on_replied(now, token, reply, effects),
            Event::Outcome { token, result } => self.on_outcome(now, token, result, effects),
            Event::ReadReady { token } => self.on_round(now, token, true, effects),
            Event::ReadFailed { token } => self.on_round(now, token, false, effects),
            Event::RaftResult { token, result } => self.on_raft_result(now, token, result, effects),
            Event::Leadership(leadership) => self.on_leadership(now, leadership, effects),
            Event::StoreMoved => self.streams.store_moved(),
            Event::TurnEnded => self.on_turn_ended(now, effects),
        }
        #[cfg(debug_assertions)]
        self.check_invariants();
    }

    fn on_request(&mut self, now: Instant, incoming: Incoming, effects: &mut Vec<Effect>) {
        let stream = incoming.stream;
        if self.by_stream.contains_key(&stream) || self.streams.contains(stream) {
            // A stream number is used once per connection; answering this one would answer the other's caller.
            return;
        }
        if incoming.deadline <= now {
            let status = Status::new(Code::DeadlineExceeded, "the request's time was over before it arrived");
            effects.push(Effect::Refuse { stream, status });
            return;
        }
        if self.requests.len() >= self.limits.requests {
            effects.push(Effect::Refuse { stream, status: overloaded("requests are under way") });
            return;
        }
        let key = self.next_key;
        self.next_key += 1;
        self.by_stream.insert(stream, key);
        self.timers.insert((incoming.deadline, key));
        let pending = Pending { incoming, phase: Phase::Deciding, attempt: 0, confirmed: false, in_doubt: false };
        self.requests.insert(key, pending);
        self.place(now, key, effects);
    }

    /// Begins a pass: finds out where the request can be carried out, and sends it there.
    fn place(&mut self, now: Instant, key: Key, effects: &mut Vec<Effect>) {
        let leads = self.serves_as_leader();
        let Some(pending) = self.requests.get_mut(&key) else { return };
        pending.attempt = 0;
        match routes::route(pending.incoming.call).served {
            Served::Here => self.decide(now, key, effects),
            Served::Leader if leads => self.decide(now, key, effects),
            Served::Leader => {
                let (call, body) = (pending.incoming.call, pending.incoming.body.clone());
                self.pass_on(now, key, call, body, effects);
            }
        }
    }

    /// Passes a call on to the leader, or holds it until there is one.
    fn pass_on(&mut self, now: Instant, key: Key, call: Call, body: Bytes, effects: &mut Vec<Effect>) {
        let Some(pending) = self.requests.get_mut(&key) else { return };
        let leader = self.leadership.leader.filter(|leader| *leader != self.node_id);
        let Some(to) = leader.filter(|_| !pending.incoming.forwarded) else {
            return self.hold(now, key, now, effects);
        };
        let token = self.next_token;
        self.next_token += 1;
        pending.phase = Phase::Forwarded(token, to);
        let left_ms = pending.incoming.deadline.since(now).as_millis();
        let forwarded = Forwarded { caller: pending.incoming.caller.clone(), addr: pending.incoming.addr.clone() };
        self.tokens.insert(token, key);
        let deadline_ms = u32::try_from(left_ms).unwrap_or(u32::MAX).max(1);
        effects.push(Effect::Forward { token, to, call, deadline_ms, forwarded, body });
    }

    /// Keeps a request until there is a leader, and at least until `from`; refuses it when waiting is hopeless.
    fn hold(&mut self, now: Instant, key: Key, from: Instant, effects: &mut Vec<Effect>) {
        let Some(pending) = self.requests.get_mut(&key) else { return };
        if pending.incoming.forwarded && self.leadership.leader != Some(self.node_id) {
            let message = "this manager does not lead, and does not pass on what was passed on to it";
            return self.refuse(key, Status::new(Code::Unavailable, message), effects);
        }
        if let (None, Some(status)) = (self.leadership.leader, &self.leadership.no_majority) {
            let status = status.clone();
            return self.refuse(key, status, effects);
        }
        let bytes = pending.incoming.body.len();
        let of_stranger = usize::from(routes::is_stranger(&pending.incoming.caller));
        if self.held.len() >= self.limits.held
            || self.held_bytes + bytes > self.limits.held_bytes
            || self.held_of_strangers + of_stranger > self.limits.held_of_strangers
        {
            return self.refuse(key, overloaded("requests wait for a leader"), effects);
        }
        pending.phase = Phase::Held(from);
        self.held.insert(key);
        self.held_bytes += bytes;
        self.held_of_strangers += of_stranger;
        if from > now {
            self.timers.insert((from, key));
        }
    }

    /// Asks the service, and does what it says.
    fn decide(&mut self, now: Instant, key: Key, effects: &mut Vec<Effect>) {
        let Some(pending) = self.requests.get_mut(&key) else { return };
        pending.phase = Phase::Deciding;
        let step = self.service.decide(&pending.incoming, pending.attempt, pending.confirmed);
        self.follow(now, key, step, effects);
    }

    fn follow(&mut self, now: Instant, key: Key, mut step: Step<S::Stream>, effects: &mut Vec<Effect>) {
        // A service that rebuilds is asked again here, not by recursion.
        while let Step::Rebuild = step {
            let Some(pending) = self.requests.get_mut(&key) else { return };
            if pending.attempt >= MAX_REBUILDS {
                let message = "update out of sequence: other writers kept changing the object";
                let status = Status::new(Code::Aborted, message).with_hint("run the command again");
                return self.finish_refused(key, status, effects);
            }
            pending.attempt += 1;
            step = self.service.decide(&pending.incoming, pending.attempt, pending.confirmed);
        }
        let Some(pending) = self.requests.get_mut(&key) else { return };
        match step {
            Step::Answer(body) => self.finish_answered(key, body, effects),
            Step::Refuse(status) => self.finish_refused(key, status, effects),
            Step::RefuseIfConfirmed(status) if pending.confirmed => self.finish_refused(key, status, effects),
            Step::RefuseIfConfirmed(_) | Step::Barrier => self.gather(now, key, effects),
            Step::Propose(change) => self.propose(key, change, effects),
            Step::Raft(order) => self.order(now, key, order, effects),
            Step::Stream(source) => {
                let stream = pending.incoming.stream;
                if self.streams.len() >= self.limits.streams {
                    return self.refuse(key, overloaded("streams are open"), effects);
                }
                self.remove(key);
                self.streams.begin(stream, source);
            }
            Step::Elsewhere => {
                if let Some(pending) = self.remove(key) {
                    effects.push(Effect::Elsewhere(pending.incoming));
                }
            }
            Step::Rebuild => unreachable!("the loop above ends with another step"),
        }
    }

    /// Joins the round that begins when the turn ends.
    fn gather(&mut self, now: Instant, key: Key, effects: &mut Vec<Effect>) {
        if !self.knows_leader() {
            return self.hold(now, key, now, effects);
        }
        if let Some(pending) = self.requests.get_mut(&key) {
            pending.phase = Phase::Gathered;
            self.gathered.push(key);
        }
    }

    fn propose(&mut self, key: Key, change: Change, effects: &mut Vec<Effect>) {
        let command = envelope::encode(&Command::Change(change));
        if command.len() > MAX_CHANGE_BYTES {
            let message = format!("the change takes {} bytes; the limit is {MAX_CHANGE_BYTES}", command.len());
            let status = Status::new(Code::InvalidArgument, message).with_hint("split it, or store less per object");
            return self.finish_refused(key, status, effects);
        }
        let token = self.token(key);
        if let Some(pending) = self.requests.get_mut(&key) {
            pending.phase = Phase::Proposed(token);
        }
        effects.push(Effect::Propose { token, command });
    }

    fn order(&mut self, now: Instant, key: Key, order: RaftOrder, effects: &mut Vec<Effect>) {
        if order.needs_leader() && !self.serves_as_leader() {
            let alone = matches!(order, RaftOrder::Leave { force: true, node_id } if node_id == self.node_id);
            if self.knows_leader() || !alone {
                let Some(pending) = self.requests.get(&key) else { return };
                let (call, body) = order.call(&pending.incoming);
                return self.pass_on(now, key, call, body, effects);
            }
        }
        let token = self.token(key);
        let Some(pending) = self.requests.get_mut(&key) else { return };
        if let RaftOrder::Join { node_id: node, ref addr, .. } = order {
            let (addr, until) = (addr.clone(), now + BACK_DIAL);
            pending.phase = Phase::Dialling(token, order, until);
            self.timers.insert((until, key));
            effects.push(Effect::BackDial { token, node, addr });
        } else {
            pending.phase = Phase::Ordered(token);
            effects.push(Effect::Raft { token, order });
        }
    }

    fn on_replied(&mut self, now: Instant, token: Token, reply: Reply, effects: &mut Vec<Effect>) {
        let Some(key) = self.tokens.remove(&token) else { return };
        let Some(pending) = self.requests.get_mut(&key) else { return };
        match std::mem::replace(&mut pending.phase, Phase::Deciding) {
            Phase::Dialling(_, order, until) => {
                self.drop_timer(until, key);
                self.on_dialled(key, order, reply, effects);
            }
            Phase::Forwarded(..) => self.on_forward_ended(now, key, reply, effects),
            phase => pending.phase = phase,
        }
    }

    fn on_dialled(&mut self, key: Key, order: RaftOrder, reply: Reply, effects: &mut Vec<Effect>) {
        let why = match reply {
            Reply::Answer { .. } => {
                let token = self.token(key);
                if let Some(pending) = self.requests.get_mut(&key) {
                    pending.phase = Phase::Ordered(token);
                }
                effects.push(Effect::Raft { token, order });
                return;
            }
            Reply::Refused(status) => status.message,
            Reply::Lost { .. } => "nothing answers there".to_owned(),
        };
        self.refuse(key, unreachable_joiner(&order, &why), effects);
    }

    fn on_forward_ended(&mut self, now: Instant, key: Key, reply: Reply, effects: &mut Vec<Effect>) {
        let Some(pending) = self.requests.get_mut(&key) else { return };
        let route = routes::route(pending.incoming.call);
        let again = now + RETRY_PAUSE;
        match reply {
            Reply::Answer { body, .. } => self.finish_answered(key, body, effects),
            // It never left this machine.
            Reply::Lost { sent: false } => self.hold(now, key, again, effects),
            Reply::Lost { sent: true } => {
                pending.in_doubt |= route.changes;
                if route.repeatable {
                    self.hold(now, key, again, effects);
                } else {
                    let status = Status::new(Code::Unknown, "the connection to the leader broke");
                    self.refuse(key, status, effects);
                }
            }
            Reply::Refused(status) => match status.code {
                Code::Unavailable if route.repeatable => self.hold(now, key, again, effects),
                Code::Unknown if route.repeatable && !status.hopeless => {
                    pending.in_doubt = true;
                    self.hold(now, key, again, effects);
                }
                _ => self.refuse(key, status, effects),
            },
        }
    }

    fn on_outcome(&mut self, now: Instant, token: Token, result: ProposalResult, effects: &mut Vec<Effect>) {
        let Some(key) = self.tokens.remove(&token) else { return };
        let Some(pending) = self.requests.get_mut(&key) else { return };
        pending.phase = Phase::Deciding;
        match result {
            ProposalResult::Applied(outcome) => {
                let step = self.service.ended(&pending.incoming, pending.attempt, &outcome);
                self.follow(now, key, step, effects);
            }
            ProposalResult::NotProposed(NotProposed::Overloaded) if !pending.in_doubt => {
                self.refuse(key, overloaded("changes wait to be proposed"), effects);
            }
            // The same change id makes it safe to send the change again, wherever the leader is then.
            ProposalResult::NotProposed(_) | ProposalResult::Lost => self.hold(now, key, now + RETRY_PAUSE, effects),
            ProposalResult::Uncertain => {
                pending.in_doubt = true;
                self.hold(now, key, now + RETRY_PAUSE, effects);
            }
        }
    }

    fn on_raft_result(&mut self, now: Instant, token: Token, result: Result<Bytes, Status>, effects: &mut Vec<Effect>) {
        let Some(key) = self.tokens.remove(&token) else { return };
        let Some(pending) = self.requests.get_mut(&key) else { return };
        let repeatable = routes::route(pending.incoming.call).repeatable;
        pending.phase = Phase::Deciding;
        match result {
            Ok(body) => self.finish_answered(key, body, effects),
            Err(status) if status.hopeless => self.refuse(key, status, effects),
            // Nothing was done here, so whoever leads now may be asked.
            Err(status) if status.code == Code::Unavailable => self.hold(now, key, now + RETRY_PAUSE, effects),
            Err(status) if status.code == Code::Unknown && repeatable => {
                pending.in_doubt = true;
                self.hold(now, key, now + RETRY_PAUSE, effects);
            }
            Err(status) => self.refuse(key, status, effects),
        }
    }

    fn on_round(&mut self, now: Instant, token: Token, ready: bool, effects: &mut Vec<Effect>) {
        for key in self.rounds.remove(&token).unwrap_or_default() {
            let Some(pending) = self.requests.get_mut(&key) else { continue };
            pending.phase = Phase::Deciding;
            if !ready {
                self.hold(now, key, now + RETRY_PAUSE, effects);
                continue;
            }
            pending.confirmed = true;
            self.decide(now, key, effects);
        }
    }

    fn on_leadership(&mut self, now: Instant, leadership: Leadership, effects: &mut Vec<Effect>) {
        let (before, knew) = (self.leadership.leader, self.knows_leader());
        self.leadership = leadership;
        let moved = before != self.leadership.leader;
        if moved {
            self.leave_old_leader(now, effects);
        }
        // What was held back for a moment need not wait for it when the leader is new.
        self.release(now, moved || !knew, effects);
    }

    /// Takes back what was passed on to a manager that no longer leads, if it may be sent again: the old leader may be
    /// cut off, and its silence would cost the caller its deadline.
    fn leave_old_leader(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let leader = self.leadership.leader;
        if leader.is_none() {
            return;
        }
        let stranded: Vec<(Key, Token)> = self
            .requests
            .iter()
            .filter_map(|(key, pending)| match pending.phase {
                Phase::Forwarded(token, to) if Some(to) != leader => {
                    routes::route(pending.incoming.call).repeatable.then_some((*key, token))
                }
                _ => None,
            })
            .collect();
        for (key, token) in stranded {
            self.tokens.remove(&token);
            effects.push(Effect::Abandon { token });
            if let Some(pending) = self.requests.get_mut(&key) {
                pending.in_doubt |= routes::route(pending.incoming.call).changes;
                pending.phase = Phase::Deciding;
            }
            self.place(now, key, effects);
        }
    }

    /// Sends on what was held, or refuses it, as leadership allows.
    fn release(&mut self, now: Instant, at_once: bool, effects: &mut Vec<Effect>) {
        let hopeless = self.leadership.leader.is_none() && self.leadership.no_majority.is_some();
        let known = self.knows_leader();
        let not_leading = self.leadership.leader != Some(self.node_id);
        let due: Vec<Key> = self
            .held
            .iter()
            .copied()
            .filter(|key| {
                let Some(pending) = self.requests.get(key) else { return false };
                let Phase::Held(from) = pending.phase else { return false };
                hopeless || (pending.incoming.forwarded && not_leading) || known && (at_once || from <= now)
            })
            .collect();
        for key in due {
            self.unhold(key);
            self.place(now, key, effects);
        }
    }

    fn on_turn_ended(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        while let Some(&(at, key)) = self.timers.first().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, key));
            self.on_timer(now, key, effects);
        }
        if !self.held.is_empty() {
            self.release(now, false, effects);
        }
        let mut gathered = std::mem::take(&mut self.gathered);
        gathered.retain(|key| self.requests.contains_key(key));
        if !gathered.is_empty() {
            let token = self.next_token;
            self.next_token += 1;
            for key in &gathered {
                if let Some(pending) = self.requests.get_mut(key) {
                    pending.phase = Phase::Reading(token);
                }
            }
            self.rounds.insert(token, gathered);
            effects.push(Effect::Read { token });
        }
        self.streams.pull(now, &mut self.service, effects);
    }

    fn on_timer(&mut self, now: Instant, key: Key, effects: &mut Vec<Effect>) {
        let Some(pending) = self.requests.get(&key) else { return };
        if pending.incoming.deadline > now {
            if let Phase::Dialling(token, order, until) = &pending.phase
                && *until <= now
            {
                let (token, status) = (*token, unreachable_joiner(order, "nothing answered in time"));
                self.tokens.remove(&token);
                effects.push(Effect::Abandon { token });
                self.refuse(key, status, effects);
            }
            return;
        }
        let changes = routes::route(pending.incoming.call).changes;
        let under_way = matches!(pending.phase, Phase::Proposed(_) | Phase::Ordered(_) | Phase::Forwarded(..));
        let status = if changes && under_way {
            Status::new(Code::Unknown, "its time was over before an answer came")
        } else {
            let message = match pending.phase {
                Phase::Held(_) => "no leader was there before the request's time was over",
                Phase::Gathered | Phase::Reading(_) => {
                    "the leader did not confirm the read before the request's time was over"
                }
                _ => "the request's time was over",
            };
            Status::new(Code::DeadlineExceeded, message).with_hint("`skep status` shows whether a leader is known")
        };
        self.abandon(key, effects);
        self.refuse(key, status, effects);
    }

    fn on_cancelled(&mut self, stream: StreamId, effects: &mut Vec<Effect>) {
        if let Some(key) = self.by_stream.get(&stream).copied() {
            self.abandon(key, effects);
            self.remove(key);
        } else {
            self.streams.cancel(stream);
        }
    }

    /// Tells the network that the reply a request waits for is no longer wanted.
    fn abandon(&mut self, key: Key, effects: &mut Vec<Effect>) {
        if let Some(Phase::Forwarded(token, _) | Phase::Dialling(token, ..)) =
            self.requests.get(&key).map(|pending| &pending.phase)
        {
            effects.push(Effect::Abandon { token: *token });
        }
    }

    fn finish_answered(&mut self, key: Key, body: Bytes, effects: &mut Vec<Effect>) {
        if let Some(pending) = self.remove(key) {
            effects.push(Effect::Answer { stream: pending.incoming.stream, body, end: true });
        }
    }

    /// Refuses with a status that is the truth about the request, whatever earlier passes did.
    fn finish_refused(&mut self, key: Key, status: Status, effects: &mut Vec<Effect>) {
        if let Some(pending) = self.remove(key) {
            effects.push(Effect::Refuse { stream: pending.incoming.stream, status });
        }
    }

    /// Refuses with a status that speaks of the last pass only: when an earlier one may have been carried out, the
    /// outcome is unknown.
    fn refuse(&mut self, key: Key, status: Status, effects: &mut Vec<Effect>) {
        let Some(pending) = self.requests.get(&key) else { return };
        let says_nothing_was_done = match status.code {
            Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted => true,
            // Every pass dials the joiner anew: that it cannot be reached now does not undo an earlier pass.
            Code::FailedPrecondition => pending.incoming.call == Call::Join,
            _ => false,
        };
        let ours = status.code == Code::Unknown && status.hint.is_empty() && !status.hopeless;
        let status = if ours || (pending.in_doubt && says_nothing_was_done) {
            unknown(&pending.incoming, &status)
        } else {
            status
        };
        self.finish_refused(key, status, effects);
    }

    /// Forgets a request and everything that points to it.
    fn remove(&mut self, key: Key) -> Option<Pending> {
        self.unhold(key);
        if let Some(Phase::Dialling(_, _, until)) = self.requests.get(&key).map(|pending| &pending.phase) {
            self.drop_timer(*until, key);
        }
        let pending = self.requests.remove(&key)?;
        self.by_stream.remove(&pending.incoming.stream);
        self.timers.remove(&(pending.incoming.deadline, key));
        match pending.phase {
            Phase::Proposed(token)
            | Phase::Ordered(token)
            | Phase::Forwarded(token, _)
            | Phase::Dialling(token, ..) => {
                self.tokens.remove(&token);
            }
            Phase::Deciding | Phase::Held(_) | Phase::Gathered | Phase::Reading(_) => {}
        }
        Some(pending)
    }

    fn unhold(&mut self, key: Key) {
        if self.held.remove(&key)
            && let Some(pending) = self.requests.get_mut(&key)
        {
            self.held_bytes -= pending.incoming.body.len();
            self.held_of_strangers -= usize::from(routes::is_stranger(&pending.incoming.caller));
            if let Phase::Held(from) = std::mem::replace(&mut pending.phase, Phase::Deciding) {
                self.drop_timer(from, key);
            }
        }
    }

    /// Drops a timer, unless it falls together with the request's deadline.
    fn drop_timer(&mut self, at: Instant, key: Key) {
        if self.requests.get(&key).is_some_and(|pending| pending.incoming.deadline != at) {
            self.timers.remove(&(at, key));
        }
    }

    fn token(&mut self, key: Key) -> Token {
        let token = self.next_token;
        self.next_token += 1;
        self.tokens.insert(token, key);
        token
    }

    fn serves_as_leader(&self) -> bool {
        self.leadership.serving && self.leadership.leader == Some(self.node_id)
    }

    /// Whether someone can answer for the swarm: another manager, or this one once it serves.
    fn knows_leader(&self) -> bool {
        self.leadership.leader.is_some_and(|leader| leader != self.node_id || self.leadership.serving)
    }

    #[cfg(debug_assertions)]
    fn check_invariants(&self) {
        assert_eq!(self.by_stream.len(), self.requests.len());
        for (stream, key) in &self.by_stream {
            assert_eq!(self.requests[key].incoming.stream, *stream);
            assert!(!self.streams.contains(*stream));
        }
        let (mut held_bytes, mut held_of_strangers) = (0, 0);
        let mut tokens = 0;
        for (key, pending) in &self.requests {
            assert!(self.timers.contains(&(pending.incoming.deadline, *key)), "a request without a deadline");
            match &pending.phase {
                Phase::Deciding => panic!("a request that nobody will look at again"),
                Phase::Held(_) => {
                    held_bytes += pending.incoming.body.len();
                    held_of_strangers += usize::from(routes::is_stranger(&pending.incoming.caller));
                }
                Phase::Gathered => assert!(self.gathered.contains(key)),
                Phase::Reading(token) => assert!(self.rounds[token].contains(key)),
                Phase::Proposed(token)
                | Phase::Dialling(token, ..)
                | Phase::Ordered(token)
                | Phase::Forwarded(token, _) => {
                    tokens += 1;
                    assert_eq!(self.tokens[token], *key);
                }
            }
            assert_eq!(matches!(pending.phase, Phase::Held(_)), self.held.contains(key));
        }
        assert_eq!((held_bytes, tokens), (self.held_bytes, self.tokens.len()));
        assert_eq!(held_of_strangers, self.held_of_strangers);
    }
}

fn overloaded(what: &str) -> Status {
    Status::new(Code::ResourceExhausted, format!("this manager is busy: too many {what}"))
        .with_hint("try again in a moment")
}

fn unreachable_joiner(order: &RaftOrder, why: &str) -> Status {
    let addr = match order {
        RaftOrder::Join { addr, .. } => addr.as_str(),
        _ => "",
    };
    Status::new(Code::FailedPrecondition, format!("the managers cannot reach the new manager at {addr}: {why}"))
        .with_hint("start it with `--advertise HOST:PORT`, an address that every manager reaches, and open that port")
}

/// The outcome is not known; how to find out depends on the call.
fn unknown(request: &Incoming, why: &Status) -> Status {
    let (message, hint) = unknown_texts(request, why);
    Status { code: Code::Unknown, message, hint, hopeless: why.hopeless }
}

fn unknown_texts(request: &Incoming, why: &Status) -> (String, String) {
    if request.call == Call::Write
        && let Ok(write) = envelope::decode::<WriteRequest>(&request.body, request.body.len())
    {
        let (id, after) = (write.change, write.after);
        let message = format!("the outcome of change {id}, made after revision {after}, is not known: {}", why.message);
        let hint =
            format!("type the same command again with `--change-id {id}@{after}`: it is carried out at most once");
        return (message, hint);
    }
    let hint = if routes::route(request.call).repeatable {
        "ask again: the same request is carried out at most once"
    } else {
        "`skep members` shows whether it was carried out"
    };
    (format!("the outcome is not known: {}", why.message), hint.to_owned())
}
