//! The raft thread: owns the [`Machine`], its queues and the clock.
//!
//! Events wait in lanes that are looked at in a fixed order, each up to a cap per turn: what the node's own threads
//! report, votes and heartbeats, a tick, appends, requests. One turn is one batch for the machine and one wakeup for
//! everybody it concerns.
//!
//! A turn is not tied to the thread. Whoever has queued a little takes it here and now if nobody else is at it
//! ([`Handle::turn`], [`crate::sys::stage`]): a lone write then crosses 6 threads on its way through leader and follower
//! instead of 12. Much is left to the thread, so that a busy leader has two processors for sockets and for Raft.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use raft::eraftpb::{Message, MessageType};

use super::journal::Journal;
use super::machine::{Durable, Machine};
use super::{Applied, Effects, Event, FetchSnapshot, Leadership, Outgoing, Replicated, Reply, Report, Stop};
use crate::apply;
use crate::codec::raft_message;
use crate::store::{State, Store};
use crate::sys::metrics::{Counter, Gauge, Histogram, Metrics};
use crate::sys::queue::{self, Bell, Receiver, Sender, Waiter, Waker};
use crate::sys::stage::Stage;
use crate::sys::thread::{self, Thread};
use crate::sys::time::{Instant, monotonic};
use crate::types::api::RaftEvent;
use crate::types::log::StateHash;
use crate::types::{Index, Member, NodeId, Outcome, Position};
use crate::wal::{self, LogReader, ReadError};

/// What leaves the raft, wal and apply threads for the rest of the node. No call may block.
pub trait Outlet: Send + Sync + 'static {
    /// Sends encoded Raft messages; false when they were dropped.
    fn send(&self, to: NodeId, body: Vec<u8>, urgent: bool) -> bool;
    /// Answers to requests.
    fn replies(&self, replies: Vec<Reply>);
    /// Outcomes of proposals.
    fn outcomes(&self, outcomes: Vec<(u64, Outcome)>);
    /// The store moved: watchers have something to read.
    fn moved(&self);
    /// These nodes were removed, or are managers no more; `None`: any node may have been.
    fn departed(&self, nodes: Option<Vec<NodeId>>);
    /// Who leads changed.
    fn leadership(&self, leadership: Leadership);
    /// Keep connections to these.
    fn peers(&self, members: Vec<Member>);
    /// Fetch this snapshot.
    fn fetch_snapshot(&self, fetch: FetchSnapshot);
    /// Write a snapshot of the store; false when too much waits for whoever writes it.
    fn create_snapshot(&self) -> bool;
    /// The node must stop.
    fn stop(&self, stop: Stop);
}

/// What other threads send to the raft thread.
#[derive(Debug)]
pub enum Input {
    /// For the machine.
    Event(Event),
    /// A fetched snapshot's state, ready to be installed.
    Fetched {
        /// Its place.
        position: Position,
        /// Size of its file.
        bytes: u64,
        /// What it holds.
        state: Box<State>,
    },
}

/// Messages per turn and lane.
const TURN: usize = 1024;
/// Appends per turn: each may be 256 KiB.
const APPENDS_PER_TURN: usize = 64;
/// The most events that a turn on a thread of another stage begins with.
const FEW_EVENTS: usize = 8;
/// A frame of messages is sent when it is this long.
const FRAME_BYTES: usize = 1 << 20;

/// A handle to the raft thread.
#[derive(Clone, Debug)]
pub struct Handle {
    // Boxed: a queue's memory comes in blocks of 31 slots, and the largest event takes 300 bytes.
    internal: Sender<Box<Input>>,
    urgent: Sender<Box<Event>>,
    appends: Sender<Box<Event>>,
    requests: Sender<Box<Event>>,
    bell: Bell,
    shared: Arc<Shared>,
}

/// What the raft thread publishes.
#[derive(Debug)]
struct Shared {
    stage: Stage<Raft>,
    /// When the thread wakes by itself, nanoseconds of [`Instant`]; written in the stage.
    wakes_at: AtomicU64,
    /// The log thread has not been woken for what a turn queued for it.
    log_waits: AtomicBool,
    log: OnceLock<Waker>,
    report: Mutex<Report>,
    durable: Mutex<Durable>,
    mark: Mutex<Option<StateHash>>,
    journal: Mutex<Journal>,
    turns: AtomicU64,
    stop: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no code panics while it holds this lock")
}

impl Shared {
    fn wake_log(&self) {
        if self.log_waits.load(SeqCst)
            && self.log_waits.swap(false, SeqCst)
            && let Some(log) = self.log.get()
        {
            log.wake();
        }
    }
}

impl Handle {
    /// A message from a peer. A full lane drops it: Raft repeats itself. Wakes nobody: see [`Self::turn`].
    pub fn peer(&self, from: NodeId, message: Message) -> bool {
        let bulky = matches!(message.msg_type, MessageType::MsgAppend | MessageType::MsgSnapshot)
            && !message.entries.is_empty();
        let lane = if bulky { &self.appends } else { &self.urgent };
        lane.put(Box::new(Event::Peer { from, message })).is_ok()
    }

    /// A proposal, a read or an order; false when the lane is full and nothing was queued. Wakes nobody: see
    /// [`Self::turn`].
    pub fn request(&self, event: Event) -> bool {
        self.requests.put(Box::new(event)).is_ok()
    }

    /// Has taken up what [`Self::peer`] and [`Self::request`] queued: once for all that one turn of a caller's queued, so
    /// that they become one batch. A little is done before this returns, unless another thread is at it.
    pub fn turn(&self) {
        // Whoever is at it, further up this stack perhaps, knows when the log thread may have the processor.
        if self.turn_before_log() {
            self.wake_log();
        }
    }

    /// As [`Self::turn`], for somebody who has messages to send before the log thread takes the processor, and calls
    /// [`Self::wake_log`] then. False when the turn is another's.
    pub fn turn_before_log(&self) -> bool {
        if self.shared.stop.load(Relaxed) {
            return false;
        }
        let waiting = self.requests.len() + self.urgent.len() + self.appends.len() + self.internal.len();
        if waiting > FEW_EVENTS {
            self.bell.ring();
            return false;
        }
        // Another thread that is at it looks again before it leaves.
        self.shared.stage.try_run(|raft| {
            raft.turns();
            if raft.deadline().as_nanos() < self.shared.wakes_at.load(Relaxed) {
                self.bell.ring();
            }
        })
    }

    /// Wakes the log thread, if there is something for it.
    pub fn wake_log(&self) {
        self.shared.wake_log();
    }

    /// What the node's own threads report. These must not be lost: their number is bounded by what raft handed out.
    pub fn internal(&self, input: Input) {
        self.queue_report(input);
        self.bell.ring();
    }

    fn queue_report(&self, input: Input) {
        if self.internal.try_send(Box::new(input)).is_err() {
            log::error!("the raft thread does not take what the log and apply report: it is stuck");
            std::process::abort();
        }
    }

    /// A link came up or went down, a ping returned.
    pub fn link(&self, event: Event) {
        self.internal(Input::Event(event));
    }

    /// The report as of the last tick or change of leadership.
    pub fn report(&self) -> Report {
        lock(&self.shared.report).clone()
    }

    /// What is on disk for certain.
    pub fn durable(&self) -> Durable {
        *lock(&self.shared.durable)
    }

    /// The last own state hash at a mark.
    pub fn mark(&self) -> Option<StateHash> {
        *lock(&self.shared.mark)
    }

    /// What happened lately, oldest first.
    pub fn events(&self, now: Instant) -> Vec<RaftEvent> {
        lock(&self.shared.journal).show(now)
    }

    /// Turns of the loop so far: it makes progress while this grows.
    pub fn turns(&self) -> u64 {
        self.shared.turns.load(Relaxed)
    }

    /// Tells the thread to stop after this turn.
    pub fn stop(&self) {
        self.shared.stop.store(true, Relaxed);
        self.bell.ring();
    }
}

/// The receiving half of a [`Handle`], for [`spawn`].
#[derive(Debug)]
pub struct Inbox {
    internal: Receiver<Box<Input>>,
    urgent: Receiver<Box<Event>>,
    appends: Receiver<Box<Event>>,
    requests: Receiver<Box<Event>>,
    waiter: Waiter,
    shared: Arc<Shared>,
}

#[cfg(test)]
impl Inbox {
    /// The next of what the node's own threads reported.
    pub fn next_reported(&self) -> Option<Event> {
        match *self.internal.try_recv()? {
            Input::Event(event) => Some(event),
            Input::Fetched { .. } => None,
        }
    }
}

/// Queues of a raft thread that is started later, so that the threads it talks to can be given the handle first.
pub fn queues(report: Report, metrics: &Metrics) -> (Handle, Inbox) {
    let (internal, internal_in) = queue::bounded(1 << 14, metrics.queue("raft_internal"));
    let (urgent, urgent_in) = queue::bounded(4096, metrics.queue("raft_urgent"));
    let (appends, appends_in) = queue::bounded(256, metrics.queue("raft_appends"));
    let (requests, requests_in) = queue::bounded(8192, metrics.queue("raft_requests"));
    let (bell, waiter) = queue::bell();
    let shared = Arc::new(Shared {
        report: Mutex::new(report),
        durable: Mutex::default(),
        mark: Mutex::default(),
        journal: Mutex::default(),
        turns: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        stage: Stage::default(),
        wakes_at: AtomicU64::new(0),
        log_waits: AtomicBool::new(false),
        log: OnceLock::new(),
    });
    let handle = Handle { internal, urgent, appends, requests, bell, shared: shared.clone() };
    let inbox =
        Inbox { internal: internal_in, urgent: urgent_in, appends: appends_in, requests: requests_in, waiter, shared };
    (handle, inbox)
}

/// Where the raft thread sends its work.
#[derive(Debug)]
pub struct Workers {
    /// The log thread.
    pub wal: Sender<wal::run::Request<Vec<Outgoing>>>,
    /// The apply thread.
    pub apply: apply::Handle,
    /// The log's read side, for followers that lag.
    pub reader: LogReader,
}

/// Starts the raft thread.
pub fn spawn(
    machine: Machine,
    inbox: Inbox,
    handle: &Handle,
    workers: Workers,
    outlet: Arc<dyn Outlet>,
    metrics: &Metrics,
) -> io::Result<Thread> {
    // This thread is the only one that starts it.
    let _ = inbox.shared.log.set(workers.wal.waker());
    // Whoever greets peers once this returns knows where the log ends.
    *lock(&inbox.shared.durable) = machine.durable();
    *lock(&inbox.shared.report) = machine.report(monotonic());
    let (fetches, fetches_in) = queue::bounded(1024, metrics.queue("logread"));
    let back = handle.clone();
    let reader = workers.reader.clone();
    thread::spawn("logread", move || {
        let mut told = Index(0);
        while let Some(fetch) = fetches_in.recv() {
            let fetch: super::Fetch = fetch;
            let entries = reader.read(fetch.low, fetch.high, fetch.max_bytes).unwrap_or_else(|error| {
                // Whoever needs them asks again with every heartbeat.
                if fetch.high > told {
                    told = fetch.high;
                    log::warn!("cannot read log entries from {} for a follower: {error}", fetch.low);
                }
                if matches!(error, ReadError::Damaged { .. } | ReadError::Io { .. }) {
                    back.internal(Input::Event(Event::Unreadable { upto: Index(fetch.high.0 - 1) }));
                }
                Vec::new()
            });
            back.internal(Input::Event(Event::Fetched { fetch, entries }));
        }
    })?;
    let Inbox { internal, urgent, appends, requests, waiter, shared } = inbox;
    let inbox = Lanes { internal, urgent, appends, requests, shared: shared.clone() };
    let mut raft = Raft {
        next_tick: monotonic() + machine.tick_interval(),
        machine,
        inbox,
        workers,
        outlet,
        fetches,
        backlog: VecDeque::new(),
        apply_backlog: VecDeque::new(),
        fetched: Vec::new(),
        sync_histogram: metrics.histogram("skep_wal_sync_seconds"),
        proposals: metrics.counter("skep_raft_proposals_total"),
        reads: metrics.counter("skep_raft_reads_total"),
        elections: metrics.gauge("skep_raft_elections"),
        turn_events: metrics.counter("skep_raft_events_total"),
    };
    thread::spawn("raft", move || {
        raft.begin();
        shared.wake_log();
        shared.stage.begin(raft);
        let turns = |raft: &mut Raft| {
            while raft.turn() && !raft.inbox.shared.stop.load(Relaxed) {
                raft.inbox.shared.wake_log();
            }
            raft.inbox.shared.wake_log();
            let wakes_at = raft.deadline();
            raft.inbox.shared.wakes_at.store(wakes_at.as_nanos(), Relaxed);
            wakes_at
        };
        while let Some(wakes_at) = shared.stage.run(turns)
            && !shared.stop.load(Relaxed)
            && waiter.wait_until(wakes_at)
        {}
        shared.stage.end();
    })
}

/// What is queued for Raft.
struct Lanes {
    internal: Receiver<Box<Input>>,
    urgent: Receiver<Box<Event>>,
    appends: Receiver<Box<Event>>,
    requests: Receiver<Box<Event>>,
    shared: Arc<Shared>,
}

/// The stage: everything that a turn needs.
struct Raft {
    machine: Machine,
    inbox: Lanes,
    workers: Workers,
    outlet: Arc<dyn Outlet>,
    fetches: Sender<super::Fetch>,
    /// What did not fit into a worker's queue yet; bounded by the machine's byte budgets.
    backlog: VecDeque<wal::run::Request<Vec<Outgoing>>>,
    apply_backlog: VecDeque<apply::Request>,
    /// Fetched in this turn; raft takes one of them in the same turn, or none ever.
    fetched: Vec<(Position, Box<State>)>,
    next_tick: Instant,
    sync_histogram: Histogram,
    proposals: Counter,
    reads: Counter,
    elections: Gauge,
    turn_events: Counter,
}

impl Raft {
    fn begin(&mut self) {
        let effects = self.machine.finish(monotonic());
        self.carry_out(effects);
        self.publish(monotonic());
    }

    /// Turns until nothing is there.
    fn turns(&mut self) {
        while self.turn() && !self.inbox.shared.stop.load(Relaxed) {}
    }

    /// When a turn is due though nothing arrives.
    fn deadline(&self) -> Instant {
        self.machine.deadline().map_or(self.next_tick, |at| at.min(self.next_tick))
    }

    /// One batch; true when something was there, so that another look is due before waiting.
    fn turn(&mut self) -> bool {
        let now = monotonic();
        let mut events = 0;
        for _ in 0..TURN {
            let Some(input) = self.inbox.internal.try_recv() else { break };
            events += 1;
            match *input {
                Input::Event(event) => self.machine.step(now, event),
                Input::Fetched { position, bytes, state } => {
                    self.fetched.push((position, state));
                    self.machine.step(now, Event::SnapshotFetched { position, bytes });
                }
            }
        }
        events += self.drain(now, TURN, |inbox| inbox.urgent.try_recv());
        let ticked = now >= self.next_tick;
        if ticked {
            // After a stall one tick is delivered, not the ones that were missed: they would end a healthy leader's term.
            self.next_tick = now + self.machine.tick_interval();
            let sync_us = self.sync_histogram.quantile_us(0.5);
            self.machine.step(now, Event::OwnSync { sync_us });
            self.machine.step(now, Event::Tick);
        }
        events += self.drain(now, APPENDS_PER_TURN, |inbox| inbox.appends.try_recv());
        events += self.drain(now, TURN, |inbox| inbox.requests.try_recv());
        let due = self.machine.deadline().is_some_and(|at| at <= now);
        if events > 0 || ticked || due {
            let effects = self.machine.finish(now);
            let announced = effects.leadership.is_some() || effects.peers.is_some();
            *lock(&self.inbox.shared.durable) = self.machine.durable();
            *lock(&self.inbox.shared.mark) = self.machine.last_mark();
            if ticked || announced {
                self.publish(now);
            }
            self.carry_out(effects);
            self.turn_events.add(events as u64);
            self.inbox.shared.turns.fetch_add(1, Relaxed);
        }
        self.flush_backlogs();
        events > 0
    }

    fn drain(&mut self, now: Instant, cap: usize, next: impl Fn(&Lanes) -> Option<Box<Event>>) -> usize {
        let mut events = 0;
        while events < cap
            && let Some(event) = next(&self.inbox)
        {
            match &*event {
                Event::Propose { .. } => self.proposals.add(1),
                Event::Read { .. } => self.reads.add(1),
                _ => {}
            }
            self.machine.step(now, *event);
            events += 1;
        }
        events
    }

    fn publish(&self, now: Instant) {
        let report = self.machine.report(now);
        self.elections.set(report.elections);
        *lock(&self.inbox.shared.report) = report;
    }

    fn carry_out(&mut self, effects: Effects) {
        if !effects.happened.is_empty() {
            lock(&self.inbox.shared.journal).extend(monotonic(), effects.happened);
        }
        for node in send_all(&*self.outlet, effects.messages) {
            self.machine.step(monotonic(), Event::Unreachable { node });
        }
        for (batch, release) in effects.persist {
            self.backlog.push_back(wal::run::Request::Persist { batch, release });
        }
        if let Some(keep_from) = effects.compact {
            self.backlog.push_back(wal::run::Request::Compact { keep_from });
        }
        let fetched = std::mem::take(&mut self.fetched);
        if let Some(position) = effects.install {
            let (_, state) = fetched
                .into_iter()
                .find(|(fetched, _)| *fetched == position)
                .expect("raft installs a snapshot in the turn that reports it fetched");
            self.apply_backlog.push_back(apply::Request::Install { state });
        }
        if !effects.apply.is_empty() {
            self.apply_backlog.push_back(apply::Request::Apply(apply::Work { entries: effects.apply }));
        }
        self.flush_backlogs();
        if let Some(leadership) = effects.leadership {
            self.outlet.leadership(leadership);
        }
        if let Some(members) = effects.peers {
            self.outlet.peers(members);
        }
        if !effects.replies.is_empty() {
            self.outlet.replies(effects.replies);
        }
        for fetch in effects.fetch {
            if let Err(queue::Full(fetch)) = self.fetches.try_send(fetch) {
                // The follower is probed again later.
                self.machine.step(monotonic(), Event::Fetched { fetch, entries: Vec::new() });
            }
        }
        if effects.create_snapshot && !self.outlet.create_snapshot() {
            self.machine.step(monotonic(), Event::SnapshotFailed);
        }
        if let Some(fetch) = effects.fetch_snapshot {
            self.outlet.fetch_snapshot(fetch);
        }
        if let Some(stop) = effects.stop {
            self.outlet.stop(stop);
        }
    }

    fn flush_backlogs(&mut self) {
        if !self.backlog.is_empty() {
            flush(&mut self.backlog, |request| self.workers.wal.put(request));
            self.inbox.shared.log_waits.store(true, SeqCst);
        }
        flush(&mut self.apply_backlog, |request| self.workers.apply.give(request));
    }
}

fn flush<T>(backlog: &mut VecDeque<T>, mut send: impl FnMut(T) -> Result<(), queue::Full<T>>) {
    while let Some(item) = backlog.pop_front() {
        if let Err(queue::Full(item)) = send(item) {
            backlog.push_front(item);
            break;
        }
    }
}

/// Encodes messages into as few frames as possible, in order per addressee; the addressees whose messages were dropped.
fn send_all(outlet: &dyn Outlet, messages: Vec<Outgoing>) -> Vec<NodeId> {
    let mut frames: Vec<(NodeId, bool, Vec<u8>)> = Vec::new();
    let mut dropped = Vec::new();
    for Outgoing { to, message } in messages {
        let urgent = message.entries.is_empty() && message.msg_type != MessageType::MsgSnapshot;
        let open = frames.iter_mut().find(|(node, lane, body)| *node == to && *lane == urgent && !body.is_empty());
        let body = match open {
            Some((_, _, body)) => body,
            None => {
                frames.push((to, urgent, Vec::with_capacity(512)));
                &mut frames.last_mut().expect("just pushed").2
            }
        };
        raft_message::encode_into(&message, body);
        if body.len() >= FRAME_BYTES {
            let full = std::mem::take(body);
            if !outlet.send(to, full, urgent) {
                dropped.push(to);
            }
        }
    }
    for (to, urgent, body) in frames {
        if !body.is_empty() && !outlet.send(to, body, urgent) && !urgent {
            dropped.push(to);
        }
    }
    dropped.dedup();
    dropped
}

/// What the log thread does when a group is durable: acknowledgements leave before raft is told, because peers wait for
/// them and raft does not.
pub fn on_durable(
    handle: Handle,
    outlet: Arc<dyn Outlet>,
) -> impl FnMut(wal::run::Durable, Vec<Vec<Outgoing>>) + Send + 'static {
    move |durable, releases| {
        let dropped = send_all(&*outlet, releases.into_iter().flatten().collect());
        handle.queue_report(Input::Event(Event::Persisted { number: durable.number }));
        for node in dropped {
            handle.queue_report(Input::Event(Event::Unreachable { node }));
        }
        handle.turn();
    }
}

/// What the apply thread does after each batch.
pub fn on_applied(
    handle: Handle,
    outlet: Arc<dyn Outlet>,
    store: Arc<Store>,
) -> impl FnMut(apply::Progress, Vec<(u64, Outcome)>) + Send + 'static {
    let mut last = store.view(replicated);
    move |progress, outcomes| {
        let now = store.view(|state| unless_same(state, &last));
        if let Some(now) = &now {
            last = now.clone();
        }
        let applied =
            Applied { position: progress.applied, members: progress.members, mark: progress.mark, replicated: now };
        if progress.installed {
            outlet.departed(None);
        } else if !progress.departed.is_empty() {
            outlet.departed(Some(progress.departed));
        }
        if outcomes.is_empty() {
            outlet.moved();
        } else {
            outlet.outcomes(outcomes);
        }
        handle.queue_report(Input::Event(Event::Applied(applied)));
        handle.turn();
    }
}

/// What raft reads of the state.
pub fn replicated(state: &State) -> Replicated {
    let settings = state.cluster().map(|cluster| cluster.spec.raft);
    Replicated {
        members: state.members().values().cloned().collect(),
        next_raft_id: state.next_raft_id(),
        settings: settings.unwrap_or(crate::types::object::RaftSettings::for_profile(Default::default())),
    }
}

/// [`replicated`], if it differs; compared in place, because this runs after every batch.
fn unless_same(state: &State, last: &Replicated) -> Option<Replicated> {
    let settings = state.cluster().map(|cluster| cluster.spec.raft);
    let same = settings.is_none_or(|settings| settings == last.settings)
        && state.next_raft_id() == last.next_raft_id
        && state.members().values().eq(last.members.iter());
    if same { None } else { Some(replicated(state)) }
}

/// How long a stopping raft thread may take.
pub const STOP_LIMIT: Duration = Duration::from_secs(2);
