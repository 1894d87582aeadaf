//! How a manager's agent reaches the swarm: its own store tells what the swarm wants, and its own services, or those of the
//! leader behind them, give certificates. With a certificate that nobody takes for a link any more, it asks another manager
//! directly.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::assemble::newest_ms;
use super::keys::KeyStore;
use super::outlet::{Ask, Completion};
use super::worker::managers_of;
use crate::agent::Own;
use crate::agent::outside::Remember;
use crate::agent::remotes::Remotes;
use crate::agent::run::{News, Swarm};
use crate::client::{Client, ClientError};
use crate::codec::envelope;
use crate::dispatcher;
use crate::net::NetHandle;
use crate::raft::run::Handle;
use crate::store::{State, Store};
use crate::sys::entropy::{Entropy as _, OsEntropy};
use crate::sys::metrics::Gauge;
use crate::sys::queue::{Received, Receiver, bounded};
use crate::sys::time::{Instant, monotonic, set_floor, wall_ms};
use crate::types::api::{Answer, Call, Hello, IssueRequest, ReportRequest, SessionItem};
use crate::types::limits::MAX_FRAME_BYTES;
use crate::types::{Code, NodeId, Position, RaftId, Revision, Status};

/// The store is looked at so often.
const LOOK: Duration = Duration::from_secs(1);
/// One call may take so long.
const ATTEMPT: Duration = Duration::from_secs(3);
/// Other managers asked in one attempt.
const ATTEMPTS: usize = 3;

/// What it is made of.
pub struct Inside {
    pub own: Own,
    pub node_id: NodeId,
    pub store: Arc<Store>,
    pub raft: Handle,
    pub net: NetHandle<Completion>,
    /// Dropping its other end stops the agent.
    pub stop: Receiver<()>,
    pub stopped: bool,
    /// The hello with which another manager is asked directly.
    pub hello: Box<dyn Fn() -> Hello + Send>,
    /// How far the log was applied when the store was last looked at.
    pub seen: Option<Position>,
    pub told: Option<SessionItem>,
    pub leader: Option<RaftId>,
    /// The managers are written down when they change, and now and then for the time's sake.
    pub remember: Remember,
    /// The machine's clock was never set when the node started.
    pub clock_unset: bool,
    pub remembered: (Vec<(NodeId, String)>, Instant),
    /// The key file, which may want another private key.
    pub keys: KeyStore,
    /// What it wanted when it was last looked at.
    pub wanted: bool,
}

/// The managers, and the time with them, are written down so often at least.
pub const REMEMBER: Duration = Duration::from_secs(86_400);

impl Inside {
    /// What there is to tell.
    fn look(&mut self) -> News {
        let leader = self.raft.report().leader;
        if leader != self.leader {
            self.leader = leader;
            if leader.is_some() {
                return News::Connected;
            }
        }
        let applied = self.store.view(State::applied);
        let wanted = self.keys.wants_new_certificate();
        if self.seen == Some(applied) && self.wanted == wanted {
            return News::Nothing;
        }
        self.wanted = wanted;
        self.seen = Some(applied);
        if self.clock_unset {
            // Entries that were not known to be committed when the log was read come in time.
            set_floor(newest_ms(&self.store));
            let report = self.raft.report();
            self.clock_unset = report.leader.is_none() || applied.term < report.term;
        }
        self.remember();
        let item = self.store.view(|state| dispatcher::item(state, self.node_id));
        // A private key that lay on the disk in the clear is replaced once managers lock.
        match item.map(|item| SessionItem { renew: item.renew || wanted, ..item }) {
            // What a log says of a node before it has its place is of the past.
            Ok(item) if item.member && self.told.as_ref() != Some(&item) => {
                self.told = Some(item.clone());
                News::Told(Box::new(item))
            }
            _ => News::Nothing,
        }
    }

    fn remember(&mut self) {
        // One that has no state yet may be a worker again before it has any, and needs those it knew.
        if self.store.view(|state| state.members().is_empty()) {
            return;
        }
        let managers = managers_of(&self.store, self.node_id);
        let now = monotonic();
        if managers != self.remembered.0 || now.since(self.remembered.1) > REMEMBER {
            (self.remember)(&managers);
            self.remembered = (managers, now);
        }
    }

    /// Asks this manager's own services, as the node that it is.
    fn ask(&self, call: Call, body: &Bytes) -> Result<Answer, Status> {
        let (reply, answered) = bounded(1, Gauge::default());
        let deadline = monotonic() + ATTEMPT;
        let expired = self.own.identity().is_expired(wall_ms());
        let ask = Ask { call, body: body.clone(), deadline, expired, reply };
        let busy = || Status::new(Code::Unavailable, "this manager is too busy to ask itself");
        self.net.send(Completion::Ask(ask)).map_err(|_| busy())?;
        loop {
            let turn = (deadline + LOOK).min(monotonic() + Duration::from_millis(100));
            match answered.recv_until(turn) {
                Received::Item(result) => {
                    let body: Bytes = result?;
                    return envelope::decode(&body, MAX_FRAME_BYTES)
                        .map_err(|error| Status::new(Code::Internal, format!("an answer cannot be read: {error}")));
                }
                Received::TimedOut if monotonic() < deadline + LOOK && !self.is_stopping() => {}
                Received::TimedOut | Received::Closed => return Err(busy()),
            }
        }
    }

    /// Asks other managers, over connections for this call alone.
    fn ask_others<B: serde::Serialize>(&self, call: Call, body: &B, failure: Status) -> Result<Answer, Status> {
        let others = managers_of(&self.store, self.node_id);
        let mut remotes = Remotes::new(others.into_iter().map(|(_, addr)| addr), Vec::new(), OsEntropy.next_u64());
        let mut failure = failure;
        for _ in 0..ATTEMPTS.min(remotes.len()) {
            let Some(addr) = remotes.choose().filter(|_| !self.is_stopping()) else { break };
            let called =
                self.own.target(&addr, wall_ms(), || (self.hello)()).map_err(Status::from).and_then(|target| {
                    let mut client = Client::tls(target, ATTEMPT).map_err(ClientError::into_status)?;
                    client.call(call, body, ATTEMPT).map_err(ClientError::into_status)
                });
            match called {
                Ok(answer) => return Ok(answer),
                Err(status) if !status.code.is_transient() && status.code != Code::Unauthenticated => {
                    return Err(status);
                }
                Err(status) => {
                    remotes.failed(&addr);
                    failure = status;
                }
            }
        }
        Err(failure)
    }
}

impl Swarm for Inside {
    fn wait(&mut self, deadline: Instant) -> News {
        if self.is_stopping() {
            return News::Stop;
        }
        match self.look() {
            News::Nothing => {}
            news => return news,
        }
        match self.stop.recv_until(deadline.min(monotonic() + LOOK)) {
            Received::TimedOut => News::Nothing,
            Received::Item(()) | Received::Closed => {
                self.stopped = true;
                News::Stop
            }
        }
    }

    fn revision(&mut self) -> Revision {
        self.store.revision()
    }

    fn issue(&mut self, request: &IssueRequest) -> Result<Answer, Status> {
        match self.ask(Call::Issue, &envelope::encode(request).into()) {
            // Perhaps nobody takes this manager's certificate for a link any more.
            Err(status) if status.code.is_transient() => self.ask_others(Call::Issue, request, status),
            answered => answered,
        }
    }

    fn report(&mut self, request: &ReportRequest) -> Result<Answer, Status> {
        self.ask(Call::Report, &envelope::encode(request).into())
    }

    fn is_stopping(&self) -> bool {
        self.stopped || matches!(self.stop.recv_until(Instant::default()), Received::Item(()) | Received::Closed)
    }
}
