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
//! * Updates of one object that callers ask for go to the log one at a time, in order of arrival: whoever names no version
//!   is not refused for what other callers write at the same moment.
//! * Lists, which take milliseconds, are decided two in a turn of the loop, however many are ready.
//! * A stream sends no more than its receiver has credit for, and keeps nothing back but its place in the store's ring.
//!
//! Not here: what a request means ([`Service`]), who may make it ([`super::routes`]), bytes on sockets.
//!
//! Files: `interface` what goes in and out, `pass` from arrival to the wait, `held` the wait for a leader, `replies` what
//! ends a wait, `turns` who changes an object next, `end` the one answer, `streams` what has many.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use super::handler::{Incoming, Reply, StreamId};
use super::routes::{self, Served};
use crate::codec::envelope;
use crate::sys::time::Instant;
use crate::types::api::{Call, Forwarded, LeaveRequest, WriteRequest};
use crate::types::error::{Code, Status};
use crate::types::limits::MAX_CHANGE_BYTES;
use crate::types::log::Command;
use crate::types::{Change, NodeId, ObjectId, Operation};

mod end;
mod held;
mod interface;
mod pass;
mod replies;
mod streams;
#[cfg(test)]
mod tests;
mod turns;

use end::{overloaded, unreachable_joiner};
pub use interface::{Effect, Event, Leadership, Limits, Load, NotProposed, ProposalResult, Pull, Service, Step, Token};
use streams::Streams;

pub use crate::raft::Order;

/// How often one write is built again after conflicts before its caller is told.
pub const MAX_REBUILDS: u32 = 8;
/// Before a request goes round again: what it met needs a moment to change.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How long a joiner may take to answer on the address it gave.
const BACK_DIAL: Duration = Duration::from_secs(5);

/// Requests decided in one turn of the loop of those that take long.
const LONG_PER_TURN: usize = 2;

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
    /// Waits for its turn among those that take long.
    Long,
    /// Waits for a leader, and for this moment.
    Held(Instant),
    /// Waits for the turn's end to share a round.
    Gathered,
    /// Waits for a round.
    Reading(#[cfg_attr(not(debug_assertions), allow(dead_code, reason = "for the invariants of debug builds"))] Token),
    /// Waits for its outcome.
    Proposed {
        token: Token,
        /// The object whose turn it has.
        turn: Option<ObjectId>,
        /// The one object that it writes.
        object: Option<ObjectId>,
    },
    /// Waits for the turn of the object that it changes.
    Queued(ObjectId),
    /// Waits for the joiner's answer, until then.
    Dialling(Token, Order, Instant),
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
    requests: FxHashMap<Key, Pending>,
    by_stream: BTreeMap<StreamId, Key>,
    /// What is outstanding elsewhere, except rounds.
    tokens: FxHashMap<Token, Key>,
    /// Every request's deadline, and moments at which to look at a request again.
    timers: BTreeSet<(Instant, Key)>,
    /// In order of arrival.
    held: BTreeSet<Key>,
    held_bytes: usize,
    held_of_strangers: usize,
    gathered: Vec<Key>,
    /// Who takes long, in the order in which they can be decided; and keys of requests that are over.
    long: VecDeque<Key>,
    rounds: BTreeMap<Token, Vec<Key>>,
    /// Objects that a change under way changes, and who waits to change them next.
    turns: BTreeMap<ObjectId, BTreeSet<Key>>,
    queued_bytes: usize,
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
            requests: FxHashMap::default(),
            by_stream: BTreeMap::new(),
            tokens: FxHashMap::default(),
            timers: BTreeSet::new(),
            held: BTreeSet::new(),
            held_bytes: 0,
            held_of_strangers: 0,
            gathered: Vec::new(),
            long: VecDeque::new(),
            rounds: BTreeMap::new(),
            turns: BTreeMap::new(),
            queued_bytes: 0,
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
        if !self.gathered.is_empty() || !self.long.is_empty() {
            // It came after the end of the turn, with an answer of raft's, say, or others came before it in this one.
            return Some(Instant::default());
        }
        let timer = self.timers.first().map(|(at, _)| *at);
        timer.into_iter().chain(self.streams.next_deadline()).min()
    }

    /// Takes one event and appends what must be done, in order.
    pub fn step(&mut self, now: Instant, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Request(incoming) => self.on_request(now, incoming, effects),
            Event::Cancelled(stream) => self.on_cancelled(now, stream, effects),
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

    fn on_turn_ended(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        while let Some(&(at, key)) = self.timers.first().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, key));
            self.on_timer(now, key, effects);
        }
        if !self.held.is_empty() {
            self.release(now, false, effects);
        }
        self.decide_long_ones(now, effects);
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

    /// A few of those that take long: everybody else waits meanwhile.
    fn decide_long_ones(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        for _ in 0..LONG_PER_TURN {
            while let Some(key) = self.long.pop_front() {
                if matches!(self.requests.get(&key), Some(Pending { phase: Phase::Long, .. })) {
                    self.decide_now(now, key, effects);
                    break;
                }
            }
        }
    }

    fn token(&mut self, key: Key) -> Token {
        let token = self.next_token;
        self.next_token += 1;
        self.tokens.insert(token, key);
        token
    }

    #[cfg(debug_assertions)]
    fn check_invariants(&self) {
        assert_eq!(self.by_stream.len(), self.requests.len());
        for (stream, key) in &self.by_stream {
            assert_eq!(self.requests[key].incoming.stream, *stream);
            assert!(!self.streams.contains(*stream));
        }
        let (mut held_bytes, mut held_of_strangers) = (0, 0);
        let (mut tokens, mut turns, mut queued_bytes) = (0, BTreeSet::new(), 0);
        for (key, pending) in &self.requests {
            assert!(self.timers.contains(&(pending.incoming.deadline, *key)), "a request without a deadline");
            match &pending.phase {
                Phase::Deciding => panic!("a request that nobody will look at again"),
                Phase::Held(_) => {
                    held_bytes += pending.incoming.body.len();
                    held_of_strangers += usize::from(routes::is_stranger(&pending.incoming.caller));
                }
                Phase::Gathered => assert!(self.gathered.contains(key)),
                Phase::Long => assert!(self.long.contains(key)),
                Phase::Reading(token) => assert!(self.rounds[token].contains(key)),
                Phase::Queued(object) => {
                    queued_bytes += pending.incoming.body.len();
                    assert!(self.turns[object].contains(key));
                }
                Phase::Proposed { token, .. }
                | Phase::Dialling(token, ..)
                | Phase::Ordered(token)
                | Phase::Forwarded(token, _) => {
                    tokens += 1;
                    assert_eq!(self.tokens[token], *key);
                }
            }
            assert_eq!(matches!(pending.phase, Phase::Held(_)), self.held.contains(key));
            if let Phase::Proposed { turn: Some(object), .. } = &pending.phase {
                assert!(turns.insert(*object), "two have the turn of one object");
            }
        }
        assert!(turns.iter().eq(self.turns.keys()), "a turn that nobody has");
        assert_eq!((held_bytes, tokens), (self.held_bytes, self.tokens.len()));
        assert_eq!(queued_bytes, self.queued_bytes);
        assert_eq!(held_of_strangers, self.held_of_strangers);
    }
}
