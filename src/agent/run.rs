//! The thread `agent`: carries out what the machine decides.

use std::collections::VecDeque;
use std::time::Duration;

use super::machine::{Effect, Event, Facts, Machine};
use super::own::Own;
use crate::pki::{self, Identity, NodeIdentity};
use crate::sys::entropy::{Entropy, OsEntropy};
use crate::sys::thread::{self, Thread};
use crate::sys::time::{Instant, monotonic, wall_ms};
use crate::types::api::{Answer, IssueRequest, ReportRequest, SessionItem};
use crate::types::object::{Availability, NodeDescription, Sensitive};
use crate::types::{ChangeId, Code, NodeId, Revision, Status};

/// How the agent hears of the swarm's wishes, and reaches who can fulfil its own.
pub trait Swarm: Send {
    /// Waits until there is news, until `deadline` at the latest.
    fn wait(&mut self, deadline: Instant) -> News;
    /// A revision that is not far in the past.
    fn revision(&mut self) -> Revision;
    /// Asks for a certificate, and waits for the answer for a few seconds at most.
    fn issue(&mut self, request: &IssueRequest) -> Result<Answer, Status>;
    /// Hands in a report, as [`Self::issue`].
    fn report(&mut self, request: &ReportRequest) -> Result<Answer, Status>;
    /// Whether the node stops: what takes long is broken off.
    fn is_stopping(&self) -> bool;
}

/// What a wait ended with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The deadline passed.
    Nothing,
    /// A manager can be reached.
    Connected,
    /// The swarm says what it wants of this node.
    Told(Box<SessionItem>),
    /// Somebody says that these are the swarm's roots.
    Roots(String),
    /// A manager that could not be mistaken says that this node is no longer part of the swarm.
    Removed(Status),
    /// The node stops.
    Stop,
}

/// Writes down what must outlive the process.
pub trait Keep: Send {
    /// Replaces certificate and key, so that a crash leaves either both old ones or both new ones.
    fn renew(&self, identity: &NodeIdentity) -> Result<(), String>;
    /// Replaces the roots.
    fn trust(&self, roots: &str) -> Result<(), String>;
}

/// What else the node hears of: called on the agent's thread, must not block.
pub trait Follow: Send {
    /// The swarm wants this, or the certificate is another: `identity` is what it says now.
    fn told(&mut self, identity: &Identity, item: &SessionItem);
    /// The node was removed from the swarm.
    fn removed(&mut self, why: &Status);
}

/// What an agent is made of.
pub struct Agent<S> {
    /// The identity it keeps alive.
    pub own: Own,
    /// The way to the swarm.
    pub swarm: S,
    /// The way to the disk.
    pub keep: Box<dyn Keep>,
    /// Who else wants to know.
    pub follow: Box<dyn Follow>,
    /// This machine.
    pub description: NodeDescription,
    /// Where others reach this node; empty for one that listens nowhere.
    pub advertise: String,
}

impl<S> std::fmt::Debug for Agent<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("own", &self.own).finish_non_exhaustive()
    }
}

/// The wall clock is looked at so often: it may jump, and goes on while the machine sleeps.
const LOOK: Duration = Duration::from_secs(5);
/// A certificate that the swarm cannot sign at the moment is waited for so long within one attempt.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two questions for it.
const PAUSE: Duration = Duration::from_millis(500);

/// Starts the thread. It ends when its [`Swarm`] says [`News::Stop`], or after the node was removed.
pub fn spawn<S: Swarm + 'static>(agent: Agent<S>) -> std::io::Result<Thread> {
    thread::spawn("agent", move || Runner::new(agent).run())
}

struct Runner<S> {
    agent: Agent<S>,
    machine: Machine,
    /// What the swarm wanted last.
    item: Option<Box<SessionItem>>,
}

impl<S: Swarm> Runner<S> {
    fn new(agent: Agent<S>) -> Self {
        let machine = Machine::new(facts(&agent.own.identity()), agent.own.roots(), OsEntropy.next_u64());
        Self { agent, machine, item: None }
    }

    fn run(mut self) {
        self.agent.own.note(self.machine.renews_at_ms(), None);
        self.handle(Event::Tick);
        loop {
            let latest = monotonic() + LOOK;
            let deadline = self.machine.next_deadline().map_or(latest, |due| due.min(latest));
            match self.agent.swarm.wait(deadline) {
                News::Nothing => self.handle(Event::Tick),
                News::Connected => self.handle(Event::Connected),
                News::Told(item) => {
                    let (role, renew, roots) = (item.role, item.renew, item.roots.clone());
                    self.agent.follow.told(&self.agent.own.identity(), &item);
                    self.item = Some(item);
                    self.handle(Event::Told { role, renew, roots });
                }
                News::Roots(roots) => self.handle(Event::Offered(roots)),
                News::Removed(why) => return self.agent.follow.removed(&why),
                News::Stop => return,
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for effect in self.machine.step(monotonic(), wall_ms(), event) {
                if self.agent.swarm.is_stopping() {
                    return;
                }
                events.push_back(self.carry_out(effect));
            }
        }
        self.agent.own.note(self.machine.renews_at_ms(), None);
    }

    fn carry_out(&mut self, effect: Effect) -> Event {
        match effect {
            Effect::Renew => match self.renew() {
                Ok(identity) => {
                    let role = identity.role.name();
                    let end = crate::types::Timestamp(identity.not_after_ms);
                    log::info!("this node has a new certificate: {role}, valid until {end}");
                    self.agent.own.note(self.machine.renews_at_ms(), Some(String::new()));
                    if let Some(item) = &self.item {
                        self.agent.follow.told(&identity, item);
                    }
                    Event::Renewed(facts(&identity))
                }
                Err(status) => {
                    log::warn!("no new certificate yet: {status}");
                    self.agent.own.note(self.machine.renews_at_ms(), Some(status.message));
                    Event::NotRenewed
                }
            },
            Effect::Trust(roots) => match self.trust(&roots) {
                Ok(()) => {
                    log::info!("this node trusts the swarm's new root certificates");
                    Event::Trusted(roots)
                }
                Err(why) => {
                    log::warn!("root certificates that were offered are not taken: {why}");
                    Event::NotTrusted
                }
            },
            Effect::Report => match self.report() {
                Ok(()) => Event::Reported,
                Err(status) => {
                    log::debug!("this node's report did not arrive: {status}");
                    Event::NotReported
                }
            },
        }
    }

    /// Gets a certificate for a key of its own, and uses it.
    fn renew(&mut self) -> Result<Identity, Status> {
        let own = &self.agent.own;
        let key = pki::generate_key(&mut OsEntropy);
        let request = IssueRequest {
            change: ChangeId::ordered(wall_ms(), OsEntropy.next_u128()),
            after: self.agent.swarm.revision(),
            csr: pki::signing_request(&key)?,
            token: Sensitive::default(),
            role: None,
            description: self.agent.description.clone(),
            availability: Availability::Active,
        };
        let until = monotonic() + PATIENCE;
        let identity = loop {
            match self.agent.swarm.issue(&request) {
                Ok(Answer::Certificate { node_id, chain, .. }) => match NodeIdentity::new(&chain, key.clone()) {
                    Ok(identity) => break check(identity, node_id, own)?,
                    // The one before it: the new one is not signed yet.
                    Err(pki::PkiError::KeyMismatch { .. }) if monotonic() < until => {}
                    Err(error) => return Err(error.into()),
                },
                Ok(_) => return Err(Status::new(Code::Internal, "the manager gave another answer than asked for")),
                Err(status) if status.code.is_transient() && !status.hopeless && monotonic() < until => {
                    log::debug!("waiting for a new certificate: {status}");
                }
                Err(status) => return Err(status),
            }
            if self.agent.swarm.is_stopping() {
                return Err(Status::new(Code::Unavailable, "the node stops"));
            }
            std::thread::sleep(PAUSE);
        };
        let failed = |why: String| Status::new(Code::Internal, format!("the new certificate is not used: {why}"));
        self.agent.keep.renew(&identity).map_err(failed)?;
        let certificate = *identity.identity();
        own.renew(identity)?;
        Ok(certificate)
    }

    /// Takes roots that our own certificate leads to.
    fn trust(&self, roots: &str) -> Result<(), String> {
        let own = &self.agent.own;
        own.node().verify_at_its_time(roots, wall_ms()).map_err(|error| error.to_string())?;
        self.agent.keep.trust(roots)?;
        own.trust(roots.to_owned()).map_err(|error| error.to_string())
    }

    fn report(&mut self) -> Result<(), Status> {
        let own = &self.agent.own;
        let description =
            NodeDescription { trust_root_digest: pki::root_digest(&own.roots()), ..self.agent.description.clone() };
        let request = ReportRequest {
            change: ChangeId::ordered(wall_ms(), OsEntropy.next_u128()),
            after: self.agent.swarm.revision(),
            description,
            issuer: own.issuer(),
            addr: self.agent.advertise.clone(),
        };
        self.agent.swarm.report(&request).map(|_| ())
    }
}

fn facts(identity: &Identity) -> Facts {
    let Identity { role, not_before_ms, not_after_ms, .. } = *identity;
    Facts { role, not_before_ms, not_after_ms }
}

/// A certificate is taken for what it is only if it is ours, and a root that we trust signed it.
fn check(identity: NodeIdentity, node_id: NodeId, own: &Own) -> Result<NodeIdentity, Status> {
    let (before, after) = (own.identity(), *identity.identity());
    if (after.node_id, after.cluster_id) != (before.node_id, before.cluster_id) || node_id != before.node_id {
        let message = format!("the swarm sent a certificate for node {} of swarm {}", after.node_id, after.cluster_id);
        return Err(Status::new(Code::Internal, message));
    }
    identity.verify_at_its_time(&own.roots(), wall_ms())?;
    Ok(identity)
}
