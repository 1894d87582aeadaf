//! The `leader` thread: runs the services of a term while this manager leads and serves.
//!
//! One thread for the life of the process, one [`Machine`] for each term: a term's services are made when raft announces
//! that the term's own first entry is applied, and gone before those of the next are made. On a follower the thread sleeps.
//!
//! What wakes it: leadership, outcomes, deadlines, and the store. The apply thread rings only when a look is wanted, and
//! after that not before the next look, so that a busy store costs it one load for each batch. A look is due [`PAUSE`]
//! after the one before at the earliest, reads the events since then, and takes a state only if one of them concerns a
//! service.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::codec::envelope;
use crate::raft::run::Handle;
use crate::raft::{self, Leadership, Order, OrderResult, Reply};
use crate::store::{Cursor, State, Store};
use crate::sys::entropy::{Entropy as _, OsEntropy};
use crate::sys::metrics::Metrics;
use crate::sys::queue::{self, Bell, Latest, Receiver, Sender, Waiter};
use crate::sys::thread::{self, Thread};
use crate::sys::time::{Instant, monotonic, wall_ms};
use crate::term::{Ended, Machine, News, Request, Service, View, Work};
use crate::types::limits::MAX_CHANGE_BYTES;
use crate::types::log::Command;
use crate::types::{Change, Code, Member, NodeId, Outcome, Status, Term};

/// Tokens of this thread's requests: from here up to those of the net thread's own.
pub const FIRST_TOKEN: u64 = 1 << 62;
const END_TOKEN: u64 = 1 << 63;
/// Between two looks at a store that changes all the time.
const PAUSE: Duration = Duration::from_millis(100);
/// While someone waits for a moment by the wall clock, it is compared with the monotonic one this often at least.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A wall clock that is off by more than this was set.
const CLOCK_SET_MS: u64 = 1000;
/// Outcomes that wait for the thread; fewer are under way at any time, also when terms follow each other fast.
const OUTCOMES: usize = 4096;
/// Batches of events read under one lock of the store.
const EVENTS: usize = 256;

/// Makes the services of a term.
pub type Services = Box<dyn Fn(Term) -> Vec<Box<dyn Service>> + Send>;

/// Where others reach the thread. It ends when the last of these is gone.
#[derive(Clone, Debug)]
pub struct LeaderHandle {
    leadership: Latest<Leadership>,
    outcomes: Sender<(u64, Ended)>,
    /// A look is wanted when the store moves.
    armed: Arc<AtomicBool>,
    bell: Bell,
    notices: Notices,
}

/// What the services of a leader cannot do now, and why; empty on a follower. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Notices(Arc<Mutex<Vec<String>>>);

impl Notices {
    /// As they are now.
    pub fn get(&self) -> Vec<String> {
        self.0.lock().expect("no code panics while it holds this lock").clone()
    }

    fn set(&self, notices: Vec<String>) {
        *self.0.lock().expect("no code panics while it holds this lock") = notices;
    }
}

impl LeaderHandle {
    /// What holds the services up.
    pub fn notices(&self) -> Notices {
        self.notices.clone()
    }

    /// Who leads changed.
    pub fn leadership(&self, leadership: Leadership) {
        self.leadership.put(leadership);
        self.bell.ring();
    }

    /// The store moved.
    pub fn moved(&self) {
        // Most of the time there is nobody to ring for.
        if self.armed.load(SeqCst) && self.armed.swap(false, SeqCst) {
            self.bell.ring();
        }
    }

    /// Takes the outcomes of this thread's changes, and gives back the others.
    pub fn take_outcomes(&self, mut outcomes: Vec<(u64, Outcome)>) -> Vec<(u64, Outcome)> {
        if outcomes.iter().any(|(token, _)| is_ours(*token)) {
            outcomes.retain(|(token, outcome)| {
                let ours = is_ours(*token);
                if ours {
                    self.send(*token, judged(outcome));
                }
                !ours
            });
            self.bell.ring();
        }
        outcomes
    }

    /// Takes raft's answers to this thread's requests, and gives back the others.
    pub fn take_replies(&self, replies: Vec<Reply>) -> Vec<Reply> {
        if !replies.iter().any(|reply| token(reply).is_some_and(is_ours)) {
            return replies;
        }
        let (ours, others): (Vec<_>, Vec<_>) = replies.into_iter().partition(|reply| token(reply).is_some_and(is_ours));
        for reply in ours {
            if let Some((token, ended)) = answered(reply) {
                self.send(token, ended);
            }
        }
        self.bell.ring();
        others
    }

    fn send(&self, token: u64, ended: Ended) {
        if self.outcomes.try_send((token, ended)).is_err() {
            // A service that never hears what became of its request would wait for it for ever.
            log::error!("the leader thread does not take what became of its requests: it is stuck");
            std::process::abort();
        }
    }
}

fn is_ours(token: u64) -> bool {
    (FIRST_TOKEN..END_TOKEN).contains(&token)
}

fn token(reply: &Reply) -> Option<u64> {
    match reply {
        Reply::NotLeader(token)
        | Reply::Overloaded(token)
        | Reply::Refused(token, _)
        | Reply::Lost(token)
        | Reply::Uncertain(token)
        | Reply::Order(token, _) => Some(*token),
        Reply::ReadReady(_) | Reply::ReadFailed(_) => None,
    }
}

fn judged(outcome: &Outcome) -> Ended {
    match outcome {
        Outcome::Committed(revision) => Ended::Committed(*revision),
        Outcome::Refused(refusal) => Ended::Refused(refusal.clone()),
        Outcome::Forgotten => Ended::Uncertain,
    }
}

fn answered(reply: Reply) -> Option<(u64, Ended)> {
    let moved = || Ended::Declined(Status::new(Code::Unavailable, "leadership moved; nothing was done"));
    Some(match reply {
        Reply::NotLeader(token) | Reply::Lost(token) => (token, moved()),
        Reply::Overloaded(token) => (token, overloaded()),
        Reply::Refused(token, status) => (token, Ended::Declined(status)),
        Reply::Uncertain(token) => (token, Ended::Uncertain),
        Reply::Order(token, result) => {
            let ended = match result {
                OrderResult::Done(_) => Ended::Done,
                OrderResult::Refused(status) => Ended::Declined(status),
                OrderResult::Uncertain => Ended::Uncertain,
                OrderResult::Again => moved(),
            };
            (token, ended)
        }
        Reply::ReadReady(_) | Reply::ReadFailed(_) => return None,
    })
}

fn overloaded() -> Ended {
    Ended::Declined(Status::new(Code::ResourceExhausted, "too many requests wait for raft"))
}

/// Starts the thread.
pub fn spawn(
    node_id: NodeId,
    store: Arc<Store>,
    raft: Handle,
    services: Services,
    metrics: &Metrics,
) -> io::Result<(LeaderHandle, Thread)> {
    let (outcomes, outcomes_in) = queue::bounded(OUTCOMES, metrics.queue("leader"));
    let (bell, waiter) = queue::bell();
    let leadership = Latest::default();
    let armed = Arc::new(AtomicBool::new(false));
    let notices = Notices::default();
    let handle =
        LeaderHandle { leadership: leadership.clone(), outcomes, armed: armed.clone(), bell, notices: notices.clone() };
    let mut leader = Leader {
        node_id,
        store,
        raft,
        services,
        leadership,
        outcomes: outcomes_in,
        armed,
        waiter,
        current: None,
        next_token: FIRST_TOKEN,
        notices,
    };
    Ok((handle, thread::spawn("leader", move || leader.run())?))
}

struct Leader {
    node_id: NodeId,
    store: Arc<Store>,
    raft: Handle,
    services: Services,
    leadership: Latest<Leadership>,
    outcomes: Receiver<(u64, Ended)>,
    armed: Arc<AtomicBool>,
    waiter: Waiter,
    current: Option<LeaderTerm>,
    next_token: u64,
    notices: Notices,
}

/// A leadership of this manager, from the announcement to its end.
struct LeaderTerm {
    term: Term,
    machine: Machine,
    /// Up to where the store's events were read.
    cursor: Cursor,
    members: Vec<Member>,
    /// The last look; `None` before the first.
    looked: Option<Instant>,
    /// Both clocks when they were last compared.
    clocks: (Instant, u64),
}

impl Leader {
    fn run(&mut self) {
        loop {
            let deadline = self.next_wake();
            if !self.waiter.wait_until(deadline) {
                return;
            }
            if let Some(leadership) = self.leadership.take() {
                self.follow(leadership);
            }
            self.hear();
            self.look();
            self.tell();
        }
    }

    fn tell(&self) {
        let notices = match &self.current {
            Some(current) => self.store.view(|state| current.machine.notices(state)),
            None => Vec::new(),
        };
        self.notices.set(notices);
    }

    fn next_wake(&self) -> Instant {
        let now = monotonic();
        let Some(current) = &self.current else { return now + Duration::from_secs(86_400) };
        let by_wall = current.machine.next_deadline().map(|at| {
            let left = Duration::from_millis(at.saturating_sub(wall_ms()));
            (now + left.min(LONGEST_WAIT)).max(current.looked.map_or(now, |looked| looked + PAUSE))
        });
        // Rung for, and too early to look then.
        let waiting = (!self.armed.load(SeqCst)).then(|| current.looked.map_or(now, |looked| looked + PAUSE));
        by_wall.into_iter().chain(waiting).min().unwrap_or(now + Duration::from_secs(86_400))
    }

    fn follow(&mut self, leadership: Leadership) {
        let leads = leadership.serving && leadership.leader == Some(self.node_id);
        if leads && self.current.as_ref().is_some_and(|current| current.term == leadership.term) {
            return;
        }
        if let Some(ended) = self.current.take() {
            self.armed.store(false, SeqCst);
            self.next_token = ended.machine.next_token();
            log::debug!("the leader's services of term {} have stopped", ended.term);
        }
        if leads {
            let services = (self.services)(leadership.term);
            let machine = Machine::new(leadership.term, self.next_token, OsEntropy.next_u128(), services);
            log::debug!("term {} begins: {machine:?}", leadership.term);
            let (_, cursor) = self.store.view_and_watch();
            let clocks = (monotonic(), wall_ms());
            let term = leadership.term;
            self.current = Some(LeaderTerm { term, machine, cursor, members: Vec::new(), looked: None, clocks });
        }
    }

    /// Tells the services what became of what they asked for.
    fn hear(&mut self) {
        while let Some((token, ended)) = self.outcomes.try_recv() {
            let Some(current) = &mut self.current else { continue };
            let requests = current.machine.ended(wall_ms(), token, ended);
            self.carry_out(requests);
        }
    }

    fn look(&mut self) {
        let Some(current) = &mut self.current else { return };
        let now = monotonic();
        if current.looked.is_some_and(|looked| now < looked + PAUSE) {
            return;
        }
        let now_ms = wall_ms();
        let expected = current.clocks.1 + u64::try_from(now.since(current.clocks.0).as_millis()).unwrap_or(u64::MAX);
        let was_set = expected.abs_diff(now_ms) > CLOCK_SET_MS;
        current.clocks = (now, now_ms);
        let due = current.machine.next_deadline().is_some_and(|at| at <= now_ms);
        if self.armed.load(SeqCst) && !due && !was_set {
            return;
        }
        // Before the events are read: what comes after them rings.
        self.armed.store(true, SeqCst);
        let mut news = News { everything: current.looked.is_none() || was_set, ..News::default() };
        current.looked = Some(now);
        loop {
            match self.store.poll(&mut current.cursor, EVENTS) {
                Ok(batches) => {
                    let kinds = batches.iter().flat_map(|batch| &*batch.events).map(|event| event.object.object.kind());
                    news.kinds.extend(kinds.filter(|kind| current.machine.concerns(*kind)));
                    if batches.len() < EVENTS {
                        break;
                    }
                }
                Err(_) => {
                    // The ring has moved past the cursor: anything may have changed.
                    (_, current.cursor) = self.store.view_and_watch();
                    news.everything = true;
                    break;
                }
            }
        }
        if !self.store.view(|state| state.members().values().eq(&current.members)) {
            current.members = self.store.view(|state| state.members().values().cloned().collect());
            news.everything = true;
        }
        if !news.everything && news.kinds.is_empty() && !due {
            return;
        }
        let state: State = self.store.snapshot();
        let reachable = self.raft.report().reachable;
        let view = View { now_ms, state: &state, here: self.node_id, reachable: &reachable };
        let requests = current.machine.look(view, &news);
        drop(state);
        self.carry_out(requests);
    }

    fn carry_out(&mut self, requests: Vec<Request>) {
        let mut requests = VecDeque::from(requests);
        while let Some(Request { token, work }) = requests.pop_front() {
            let asked = match work {
                Work::Propose(change) => self.propose(token, change),
                Work::RemoveMember(node_id) => {
                    self.order(token, Order::Leave { node_id, force: false, for_good: false })
                }
                Work::Transfer(to) => self.order(token, Order::Transfer { to: Some(to) }),
            };
            if let (Err(ended), Some(current)) = (asked, &mut self.current) {
                requests.extend(current.machine.ended(wall_ms(), token, ended));
            }
        }
    }

    fn propose(&self, token: u64, change: Change) -> Result<(), Ended> {
        let command = envelope::encode(&Command::Change(change));
        if command.len() > MAX_CHANGE_BYTES {
            let message = format!("the change takes {} bytes; the limit is {MAX_CHANGE_BYTES}", command.len());
            return Err(Ended::Declined(Status::new(Code::InvalidArgument, message)));
        }
        self.request(raft::Event::Propose { token, command: command.into() })
    }

    fn order(&self, token: u64, order: Order) -> Result<(), Ended> {
        self.request(raft::Event::Order { token, order })
    }

    fn request(&self, event: raft::Event) -> Result<(), Ended> {
        let queued = self.raft.request(event);
        self.raft.turn();
        if queued { Ok(()) } else { Err(overloaded()) }
    }
}
