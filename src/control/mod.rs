//! The service behind the command line: what a request means, decided from the store.
//!
//! [`Control`] is asked by the machine that carries requests (`net::requests`) and answers with one of its steps: an
//! answer, a refusal, a change to propose, an order to raft, a stream. It owns nothing but a handle on the store and what
//! the node last told it of raft and links ([`Context`]); it blocks on nothing and may be asked again at any time.
//!
//! What others may rely on:
//!
//! * A write becomes one [`Change`](crate::types::Change) whose ids derive from the caller's change id alone, so that the
//!   same request asked again, here or at another leader, walks through the same attempts and gets the same answer. A
//!   conflict on a version that the caller did not name is built again under the next derived id; one on a version that
//!   the caller named is the caller's answer.
//! * Whatever must hold when the change is applied ("this kind is registered", "nothing uses this secret") travels inside
//!   the change. What is checked here as well is checked only to name what is in the way.
//! * A refusal drawn from the store is marked so that the machine confirms it with the leader first.
//! * Everything that leaves passes [`redact`]: no secret, private key, unlock key, bootstrap key or join token is in a
//!   list, an inspection or a watch. The swarm's two join tokens and the unlock key are told by queries of their own only
//!   ([`QueryKind`](crate::types::api::QueryKind)), the unlock key to managers that ask for it; of a token with conditions
//!   the swarm itself knows but a digest. A backup holds everything.
//! * Nobody is served whom the store does not have, whatever its certificate says; that a node was removed is said only
//!   when it is certain.
//! * A role or a removal is only written down as wanted, and only if the swarm keeps a manager and a reachable majority.
//! * Every refusal says what to do next where there is something to do.
//!
//! # What a watch costs
//!
//! With a thousand watchers of one change in a hundred each and ten of everything, three managers on two cores, clients
//! included, while sixteen clients write:
//!
//! | what was tried | changes a second, two interleaved pairs |
//! |---|---|
//! | each watcher pulled in every turn in which the store moved, with its timer taken out and put back | 5,780 and 4,535 |
//! | a watcher that waits is only asked, once a turn, whether it wants any of the new changes; taking them out of the ring is left to those who do | 6,522 and 5,368; kept |
//!
//! Sixteen writers with one write outstanding each bound the rate themselves: 6,753 with 16, 8,061 with 64, 10,101 with
//! 128, in one sitting. What is left is one `send` for each delivery, twenty of them for a change; filters are a
//! twelfth. Run it with `skep bench watch --clients 1000 --one-in 100 --unfiltered 10 --writers 128 --total 1000000`:
//! an operation is a delivery.
//!
//! Not here: who may ask (`net::routes`), waiting and forwarding (`net::requests`), certificates (`ca`), how members are
//! added and removed (`raft`).

use std::sync::Arc;

use bytes::Bytes;

use crate::codec::envelope;
use crate::net::handler::Incoming;
use crate::net::requests::{Pull, Step};
use crate::store::Store;
use crate::sys::time::Instant;
use crate::types::api::{Answer, BackupRequest, Call, CertificateReport, LinkReport, RaftReport, RaftState};
use crate::types::error::{Code, Status};
use crate::types::{ClusterId, NodeId, ObjectId, Outcome, Standing};

mod backup;
mod filter;
mod http;
mod membership;
mod nodes;
mod query;
pub mod redact;
mod refusal;
mod report;
mod rotate;
mod tokens;
mod validate;
mod watch;
mod write;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use backup::Backup;
pub use http::http;
pub use query::query;
pub use report::{
    certificate_warning, certificate_warnings, clock_words, even_managers, joining_status, locked_status, no_majority,
};
pub use watch::Watch;
pub use write::{Decision, attempt_id, decide_write, object_id};

/// A stream of answers.
#[derive(Debug)]
pub enum Feed {
    /// A watch.
    Watch(Box<Watch>),
    /// A backup.
    Backup(Box<Backup>),
}

impl Feed {
    /// Whether it holds a state of some time ago, whatever has changed since.
    pub fn holds(&self) -> bool {
        match self {
            Self::Watch(watch) => watch.has_snapshot(),
            Self::Backup(_) => true,
        }
    }
}

/// Backups that one manager makes at a time: each holds a state of its own.
const MAX_BACKUPS: usize = 2;

/// What a manager knows beside its store. The node refreshes it; it may be a little old.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// This node.
    pub node_id: NodeId,
    /// The swarm.
    pub cluster_id: ClusterId,
    /// The host name, for as long as the store does not know this node.
    pub hostname: String,
    /// Its state directory, for messages.
    pub data_dir: String,
    /// The version of this build.
    pub version: String,
    /// This node's own median sync, microseconds.
    pub sync_us: u64,
    /// What raft says of itself.
    pub raft: RaftReport,
    /// Links to peers.
    pub links: Vec<LinkReport>,
    /// This node's certificate.
    pub certificate: Option<CertificateReport>,
    /// What people should be warned of besides.
    pub notices: Vec<String>,
}

impl Context {
    /// Whether this node has no log yet.
    pub fn joining(&self) -> bool {
        self.raft.state == RaftState::Joining
    }

    /// The leader's identity, if it is known who leads.
    pub fn leader(&self) -> Option<NodeId> {
        let leader = self.raft.leader?;
        self.raft.members.iter().find(|member| member.raft_id == leader).map(|member| member.node_id)
    }
}

/// The service.
#[derive(Debug)]
pub struct Control {
    store: Arc<Store>,
    /// What this manager knows beside its store.
    pub context: Context,
    /// Shared with each backup that is being made.
    backups: Arc<()>,
}

impl Control {
    /// A service over `store`.
    pub fn new(store: Arc<Store>, context: Context) -> Self {
        Self { store, context, backups: Arc::new(()) }
    }

    /// The store it decides from.
    pub const fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Decides what to do with a request, as [`Service::decide`](crate::net::requests::Service::decide) wants it.
    /// `now_ms` is the wall clock, for the times of objects. Calls of the CA are not known here.
    pub fn decide(&self, request: &Incoming, attempt: u32, confirmed: bool, now_ms: u64) -> Step<Feed> {
        if let Some(step) = self.stranger(request, confirmed) {
            return step;
        }
        match request.call {
            Call::Write => match decode(request) {
                Ok(write) => match self
                    .store
                    .view(|state| decide_write(state, &write, attempt, now_ms, &self.context.raft.reachable))
                {
                    Decision::Step(step) => step,
                    Decision::Remembered(outcome) => write::ended(&self.store, &write, &outcome),
                },
                Err(status) => Step::Refuse(status),
            },
            Call::Query => match decode(request) {
                Ok(what) => query::decide(&self.store, &what, confirmed, &self.context),
                Err(status) => Step::Refuse(status),
            },
            Call::Watch => match decode(request) {
                Ok(watch) => match Watch::begin(&self.store, watch) {
                    Ok(watch) => Step::Stream(Feed::Watch(Box::new(watch))),
                    Err(status) => Step::Refuse(status),
                },
                Err(status) => Step::Refuse(status),
            },
            Call::Backup => match decode(request) {
                Ok(BackupRequest { stale: false }) if !confirmed => Step::Barrier,
                Ok(BackupRequest { .. })
                    if self.context.joining() || self.store.view(|state| state.cluster().is_none()) =>
                {
                    let why = "this manager has not received the swarm's data yet: there is nothing to back up";
                    Step::Refuse(Status::new(Code::Unavailable, why).with_hint("take the backup from another manager"))
                }
                Ok(BackupRequest { .. }) if Arc::strong_count(&self.backups) > MAX_BACKUPS => {
                    let why = format!("this manager is making {MAX_BACKUPS} backups already");
                    let hint = "wait until one of them is done, or take this one from another manager with --socket";
                    Step::Refuse(Status::new(Code::ResourceExhausted, why).with_hint(hint))
                }
                Ok(BackupRequest { .. }) => {
                    let backup = Backup::new(self.store.snapshot(), &self.context, now_ms, self.backups.clone());
                    Step::Stream(Feed::Backup(Box::new(backup)))
                }
                Err(status) => Step::Refuse(status),
            },
            Call::Admin => match decode(request) {
                Ok(admin) => self.store.view(|state| membership::admin(state, &self.context, request, admin)),
                Err(status) => Step::Refuse(status),
            },
            Call::Join => match decode(request) {
                Ok(join) => self.store.view(|state| membership::join(state, request, join)),
                Err(status) => Step::Refuse(status),
            },
            Call::Leave => match decode(request) {
                Ok(leave) => membership::leave(request, leave),
                Err(status) => Step::Refuse(status),
            },
            Call::SetAddress => match decode(request) {
                Ok(address) => membership::set_address(request, address),
                Err(status) => Step::Refuse(status),
            },
            Call::ResolveAddress => match decode(request) {
                Ok(which) => self.store.view(|state| membership::resolve_address(state, which)),
                Err(status) => Step::Refuse(status),
            },
            // That the caller reached this process, and that it is who its certificate says, is all that is asked.
            Call::Health => Step::Answer(encode(&Answer::Done)),
            Call::Snapshot => Step::Elsewhere,
            Call::GetUnlockKey => match self.store.view(query::unlock_key) {
                Ok(answer) => Step::Answer(encode(&answer)),
                Err(status) => Step::Refuse(status),
            },
            Call::Unlock => Step::Refuse(
                Status::new(Code::FailedPrecondition, "this manager is not locked")
                    .with_hint("`skep status` shows its state"),
            ),
            Call::Diagnose => {
                Step::Refuse(Status::new(Code::Unimplemented, "the node that this service belongs to tells that"))
            }
            Call::GetRoot | Call::Issue | Call::CertificateStatus => {
                Step::Refuse(Status::new(Code::Unimplemented, "this manager offers no certificate authority"))
            }
            Call::Report | Call::Session => {
                Step::Refuse(Status::new(Code::Unimplemented, "this manager keeps no sessions"))
            }
        }
    }

    /// Turns the outcome of a proposed change into the caller's answer, as
    /// [`Service::ended`](crate::net::requests::Service::ended) wants it.
    pub fn ended(&self, request: &Incoming, object: Option<ObjectId>, outcome: &Outcome) -> Step<Feed> {
        if let (Outcome::Committed(revision), Some(id)) = (outcome, object) {
            return Step::Answer(encode(&Answer::Written { id, revision: *revision }));
        }
        match decode(request) {
            Ok(write) => write::ended(&self.store, &write, outcome),
            Err(status) => Step::Refuse(status),
        }
    }

    /// Whether a stream that is idle has something to send since the store moved.
    pub fn has_news(&self, feed: &mut Feed) -> bool {
        match feed {
            Feed::Watch(watch) => watch.has_news(&self.store),
            Feed::Backup(_) => true,
        }
    }

    /// The next part of a stream, as [`Service::pull`](crate::net::requests::Service::pull) wants it.
    pub fn pull(&self, now: Instant, feed: &mut Feed, room: usize) -> Pull {
        match feed {
            Feed::Watch(watch) => watch.pull(&self.store, now, room),
            Feed::Backup(backup) => backup.pull(room),
        }
    }

    /// A node that is not in the store may ask for nothing, whatever its certificate says. That one was removed is certain
    /// for managers, which are written down; of anybody else a manager that lags would say the same of one that it has not
    /// heard of yet, and so a round must prove it. Managers talk among themselves before they know each other.
    fn stranger(&self, request: &Incoming, confirmed: bool) -> Option<Step<Feed>> {
        let node_id = request.caller.node_id()?;
        let removed = || {
            Status::new(Code::PermissionDenied, format!("node {node_id} was removed from the swarm"))
                .with_hint("to join again, start it on an empty data directory with a join token")
        };
        match self.store.view(|state| state.standing(node_id)) {
            Standing::Removed => Some(Step::Refuse(removed())),
            Standing::Unknown if is_between_managers(request.call) => None,
            // The founder's own object is in its first change.
            Standing::Unknown if self.store.view(|state| state.cluster().is_none()) => None,
            Standing::Unknown if confirmed => Some(Step::Refuse(removed())),
            Standing::Unknown => Some(Step::RefuseIfConfirmed(removed())),
            Standing::Worker | Standing::Manager => None,
        }
    }
}

/// What a manager answers to one that it does not know.
const fn is_between_managers(call: Call) -> bool {
    matches!(call, Call::Snapshot | Call::ResolveAddress | Call::Health)
}

/// Encodes an answer.
pub fn encode(answer: &Answer) -> Bytes {
    envelope::encode(answer).into()
}

fn decode<T: serde::de::DeserializeOwned>(request: &Incoming) -> Result<T, Status> {
    envelope::decode(&request.body, request.body.len()).map_err(|error| {
        Status::new(Code::InvalidArgument, format!("the request cannot be read: {error}"))
            .with_hint("use a command line of the same version as the manager")
    })
}
