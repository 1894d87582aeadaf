//! The service that nodes keep a session with: what the swarm wants of them, and what they say of themselves.
//!
//! [`Session`] is a stream that any manager serves from its own store: a node's role, the roots it is to trust, whether it
//! should ask for a new certificate, and where the managers are. The first item comes at once, another whenever something in
//! it changes. [`report`] is the way back: the leader writes down what a node says of its machine and of its certificate.
//!
//! What the rest of the program may rely on:
//!
//! - A session tells what this manager's store says, which may be a little old, and never goes back in time: a store only
//!   moves forward.
//! - Who is not in the node table is told that it was removed only after a look that no other manager can contradict: a
//!   manager that lags does not know the newest nodes yet. A node that vanishes from the table while its session lasts was
//!   removed for certain.
//! - What a session costs does not grow with the swarm's changes: it looks at the store twice a second, and not at all
//!   when nothing was applied since.
//! - A report that says nothing new writes nothing.
//!
//! Not here: tasks. Heartbeats: a session notices the loss of its manager by itself, and what a node that has fallen silent
//! means for its tasks is for whoever hands out tasks. Who may call (`net::routes`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::codec::envelope;
use crate::net::handler::Incoming;
use crate::net::requests::{Pull, Step};
use crate::store::{State, Store};
use crate::sys::time::Instant;
use crate::types::api::{Answer, ReportRequest, SessionItem, SessionRequest};
use crate::types::object::{IssuanceState, Node, NodeState};
use crate::types::{Change, Code, Kind, NodeId, Object, Operation, Outcome, Position, Status, Timestamp};

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

/// A session looks at the store so often: a change of role reaches its node within it.
const LOOK: Duration = Duration::from_millis(500);
/// An address is a host name and a port at most; an issuer is a digest.
const MAX_WORD_BYTES: usize = 300;

/// A node's session, between two items.
#[derive(Debug)]
pub struct Session {
    store: Arc<Store>,
    node_id: NodeId,
    /// How far the log was applied when the store was last looked at: a change of members has no revision.
    seen: Position,
    /// What was sent last.
    told: Option<SessionItem>,
    /// What does not fit into the receiver's credit yet.
    waiting: Option<Bytes>,
    look_at: Instant,
}

/// Begins a session with the node that asks.
pub fn session(store: &Arc<Store>, request: &Incoming, confirmed: bool) -> Step<Session> {
    let asked: Result<SessionRequest, Status> = decode(request);
    let node_id = match (asked, request.caller.node_id()) {
        (Err(status), _) => return Step::Refuse(status),
        (Ok(_), None) => return Step::Refuse(Status::new(Code::PermissionDenied, "a session is for a node")),
        (Ok(_), Some(node_id)) => node_id,
    };
    if let Err(status) = store.view(|state| known(state, node_id).map(|_| ())) {
        return refuse(status, confirmed);
    }
    Step::Stream(Session {
        store: store.clone(),
        node_id,
        seen: Position::default(),
        told: None,
        waiting: None,
        look_at: Instant::default(),
    })
}

impl Session {
    /// The next item, if there is one.
    pub fn pull(&mut self, now: Instant, room: usize) -> Pull {
        if self.waiting.is_none() {
            if now < self.look_at {
                return Pull::Idle(Some(self.look_at));
            }
            self.look_at = now + LOOK;
            let applied = self.store.view(State::applied);
            if self.told.is_some() && applied == self.seen {
                return Pull::Idle(Some(self.look_at));
            }
            self.seen = applied;
            let item = match self.store.view(|state| item(state, self.node_id)) {
                Ok(item) => item,
                Err(status) => return Pull::End(status),
            };
            if self.told.as_ref() == Some(&item) {
                return Pull::Idle(Some(self.look_at));
            }
            self.waiting = Some(envelope::encode(&item).into());
            self.told = Some(item);
        }
        match self.waiting.take_if(|body| body.len() <= room) {
            Some(body) => Pull::Part(body),
            None => Pull::Full,
        }
    }
}

/// What the state says to a node.
///
/// # Errors
/// `PermissionDenied` for a node that is not in its table, `Unavailable` while there is no state yet.
pub fn item(state: &State, node_id: NodeId) -> Result<SessionItem, Status> {
    let node = known(state, node_id)?;
    let roots = state.cluster().map(|cluster| cluster.root_ca.certificate.clone()).unwrap_or_default();
    Ok(SessionItem {
        role: node.role,
        desired_role: node.spec.desired_role,
        member: state.member_of(node_id).is_some(),
        renew: node.certificate.state == IssuanceState::Rotate,
        roots,
        managers: state.members().values().map(|member| (member.node_id, member.addr.clone())).collect(),
    })
}

fn known(state: &State, node_id: NodeId) -> Result<&Node, Status> {
    if state.cluster().is_none() {
        let status = Status::new(Code::Unavailable, "this manager has not received the swarm's data yet");
        return Err(status.with_hint("ask another manager, or try again in a moment"));
    }
    match state.get(Kind::Node, node_id.into()).map(|stored| &stored.object) {
        Some(Object::Node(node)) => Ok(node),
        _ => Err(Status::new(Code::PermissionDenied, format!("node {node_id} was removed from the swarm"))
            .with_hint("to join again, start it on an empty data directory with a join token")),
    }
}

/// A manager that lags must not call a node removed that it does not know yet.
fn refuse<W>(status: Status, confirmed: bool) -> Step<W> {
    match status.code {
        Code::PermissionDenied if !confirmed => Step::RefuseIfConfirmed(status),
        _ => Step::Refuse(status),
    }
}

/// Writes down what a node says of itself, if it is news. Served by the leader; `now_ms` is the wall clock.
pub fn report<W>(store: &Store, request: &Incoming, confirmed: bool, now_ms: u64) -> Step<W> {
    let (report, node_id) = match (decode::<ReportRequest>(request), request.caller.node_id()) {
        (Err(status), _) => return Step::Refuse(status),
        (Ok(_), None) => return Step::Refuse(Status::new(Code::PermissionDenied, "a report is a node's own")),
        (Ok(report), Some(node_id)) => (report, node_id),
    };
    if let Err(status) = check(&report) {
        return Step::Refuse(status);
    }
    let decided = store.view(|state| {
        if let Some(outcome) = state.remembered(report.change) {
            return Ok(Err(outcome));
        }
        let node = known(state, node_id)?;
        let mut next = node.clone();
        next.description.clone_from(&report.description);
        next.certificate.reported_issuer.clone_from(&report.issuer);
        next.certificate.in_use = true;
        next.status.state = NodeState::Ready;
        next.status.message.clear();
        next.status.addr = if report.addr.is_empty() { host(&request.addr) } else { report.addr.clone() };
        Ok(Ok((next != *node).then_some(next)))
    });
    match decided {
        Ok(Ok(Some(node))) => Step::Propose(Change {
            id: report.change,
            after: report.after,
            time: Timestamp(now_ms),
            term: None,
            operations: vec![Operation::Update(Object::Node(Box::new(node)))],
        }),
        Ok(Ok(None)) => Step::Answer(envelope::encode(&Answer::Done).into()),
        Ok(Err(outcome)) => reported(&outcome),
        Err(status) => refuse(status, confirmed),
    }
}

/// The change that a report became has ended so.
pub fn reported<W>(outcome: &Outcome) -> Step<W> {
    match outcome {
        Outcome::Committed(_) => Step::Answer(envelope::encode(&Answer::Done).into()),
        Outcome::Refused(_) | Outcome::Forgotten => Step::Refuse(
            Status::new(Code::Aborted, "the node's object was changed at the same moment").with_hint("report again"),
        ),
    }
}

/// What a node says is stored and shown on terminals, and is not checked by anybody else.
fn check(report: &ReportRequest) -> Result<(), Status> {
    let refuse = |message: String, hint: &str| Err(Status::new(Code::InvalidArgument, message).with_hint(hint));
    if let Some(problem) = report.description.problem() {
        let hint = "set another host name with `skep run --name NODE`, and give the node fewer and plain engine labels";
        return refuse(problem, hint);
    }
    let is_word = |text: &str| text.len() <= MAX_WORD_BYTES && !text.chars().any(|c| c.is_control() || c == ' ');
    if !is_word(&report.addr) || !is_word(&report.issuer) {
        let message = format!("an address and an issuer have at most {MAX_WORD_BYTES} bytes, without spaces");
        return refuse(message, "use the same version of skep on both sides");
    }
    Ok(())
}

/// The host of `host:port`: the port that a node calls from means nothing.
fn host(addr: &str) -> String {
    addr.rsplit_once(':').map_or(addr, |(host, _)| host).to_owned()
}

fn decode<T: serde::de::DeserializeOwned>(request: &Incoming) -> Result<T, Status> {
    envelope::decode(&request.body, request.body.len()).map_err(|error| {
        Status::new(Code::InvalidArgument, format!("the request cannot be read: {error}"))
            .with_hint("use the same version of skep on both sides")
    })
}
