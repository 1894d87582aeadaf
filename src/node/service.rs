//! Puts the services behind the requests machine: `control`, the certificate authority, the dispatcher.

use std::sync::Arc;

use bytes::Bytes;

use crate::ca::{self, Decision, Gate, Wish};
use crate::control::{self, Control};
use crate::dispatcher;
use crate::net::handler::Incoming;
use crate::net::requests::{Pull, Service, Step};
use crate::store::{State, Store};
use crate::sys::entropy::OsEntropy;
use crate::sys::time::{Instant, monotonic, wall_ms};
use crate::types::api::{Call, IssueRequest, Query};
use crate::types::{Caller, Change, Code, NodeId, ObjectId, Outcome, Refusal, Status};

/// Every service of a manager.
#[derive(Debug)]
pub struct Services {
    /// What the command line talks to.
    pub control: Control,
    /// Lets newcomers in, while this manager leads.
    gate: Gate,
}

/// A stream of answers of one of them.
#[derive(Debug)]
pub enum Feed {
    /// What the command line watches or saves.
    Control(control::Feed),
    /// A node's session.
    Session(Box<dispatcher::Session>),
}

/// A step of one service as a step of all.
fn step<W>(step: Step<W>, wrap: impl FnOnce(W) -> Feed) -> Step<Feed> {
    match step {
        Step::Stream(stream) => Step::Stream(wrap(stream)),
        Step::Answer(body) => Step::Answer(body),
        Step::Refuse(status) => Step::Refuse(status),
        Step::RefuseIfConfirmed(status) => Step::RefuseIfConfirmed(status),
        Step::Barrier => Step::Barrier,
        Step::Propose(change) => Step::Propose(change),
        Step::Rebuild => Step::Rebuild,
        Step::Raft(order) => Step::Raft(order),
        Step::Elsewhere => Step::Elsewhere,
    }
}

impl Services {
    /// The services of a manager.
    pub fn new(control: Control) -> Self {
        Self { control, gate: Gate::default() }
    }

    fn store(&self) -> &Arc<Store> {
        self.control.store()
    }

    fn certificate(&mut self, request: &Incoming, attempt: u32, confirmed: bool) -> Step<Feed> {
        let state = self.store().snapshot();
        let result = match request.call {
            Call::GetRoot => ca::get_root(&state),
            Call::CertificateStatus => decode(request).and_then(|node_id| ca::status(&state, node_id)),
            _ => return self.issue(&state, request, attempt),
        };
        match result {
            Ok(answer) => Step::Answer(control::encode(&answer)),
            Err(status) if status.code == Code::NotFound && !confirmed => Step::RefuseIfConfirmed(status),
            Err(status) => Step::Refuse(status),
        }
    }

    fn issue(&mut self, state: &State, incoming: &Incoming, attempt: u32) -> Step<Feed> {
        let request: IssueRequest = match decode(incoming) {
            Ok(request) => request,
            Err(status) => return Step::Refuse(status),
        };
        let id = control::attempt_id(request.change, attempt);
        if let Some(outcome) = state.remembered(id) {
            return issued(state, &incoming.caller, &request, &outcome);
        }
        let gate = &mut self.gate;
        let now_ms = monotonic().as_nanos() / 1_000_000;
        let permit: ca::Permit<'_> = &mut |wish| match wish {
            Wish::Newcomer(role) => gate.admit(state, role, now_ms),
            // Built again, it is the same renewal.
            Wish::Renewal(_) if attempt > 0 => Ok(()),
            Wish::Renewal(node_id) => gate.write(node_id, now_ms),
        };
        match ca::issue(state, &incoming.caller, &request, wall_ms(), &mut OsEntropy, permit) {
            Ok(Decision::Propose(change)) => Step::Propose(Change { id, ..change }),
            Ok(Decision::Have(node_id)) => handed_out(state, node_id),
            // A token that was rotated a moment ago may not have reached this store.
            Err(status) if matches!(status.code, Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition) => {
                Step::RefuseIfConfirmed(status)
            }
            Err(status) => Step::Refuse(status),
        }
    }
}

/// The answer to a request whose change ended so.
fn issued(state: &State, caller: &Caller, request: &IssueRequest, outcome: &Outcome) -> Step<Feed> {
    match outcome {
        Outcome::Committed(_) => handed_out(state, ca::subject(state, caller, request)),
        // The node was written meanwhile, by its own report or by a person: decide from what it is now.
        Outcome::Refused(Refusal::OutOfSequence { .. }) => Step::Rebuild,
        Outcome::Refused(refused) => Step::Refuse(ca::in_words(refused)),
        Outcome::Forgotten => Step::Refuse(Status {
            // Asking again, here or elsewhere, gives the same answer.
            hopeless: true,
            ..Status::new(Code::Unknown, "the request is too old to tell whether it was carried out")
                .with_hint("start again on an empty data directory")
        }),
    }
}

fn handed_out(state: &State, node_id: NodeId) -> Step<Feed> {
    match ca::status(state, node_id) {
        Ok(answer) => Step::Answer(control::encode(&answer)),
        Err(status) => Step::Refuse(status),
    }
}

impl Service for Services {
    type Stream = Feed;

    fn is_word_of_every_leader(&self, status: &Status) -> bool {
        ca::is_waiting(status)
    }

    fn decide(&mut self, request: &Incoming, attempt: u32, confirmed: bool) -> Step<Feed> {
        match request.call {
            Call::GetRoot | Call::Issue | Call::CertificateStatus => self.certificate(request, attempt, confirmed),
            Call::Session => {
                step(dispatcher::session(self.store(), request, confirmed), |session| Feed::Session(Box::new(session)))
            }
            Call::Report => {
                let step = dispatcher::report(self.store(), request, confirmed, wall_ms());
                match (&step, request.caller.node_id()) {
                    (Step::Propose(_), Some(node_id)) => self
                        .gate
                        .write(node_id, monotonic().as_nanos() / 1_000_000)
                        .map_or_else(Step::Refuse, |()| step),
                    _ => step,
                }
            }
            _ => step(self.control.decide(request, attempt, confirmed, wall_ms()), Feed::Control),
        }
    }

    fn ended(&mut self, request: &Incoming, _: u32, object: Option<ObjectId>, outcome: &Outcome) -> Step<Feed> {
        match request.call {
            Call::Issue => match decode(request) {
                Ok(issue) => issued(&self.store().snapshot(), &request.caller, &issue, outcome),
                Err(status) => Step::Refuse(status),
            },
            Call::Report => dispatcher::reported(outcome),
            _ => step(self.control.ended(request, object, outcome), Feed::Control),
        }
    }

    fn takes_long(&self, request: &Incoming, confirmed: bool) -> bool {
        request.call == Call::Query && Query::list_is_stale(&request.body).is_some_and(|stale| stale || confirmed)
    }

    fn holds(&self, stream: &Feed) -> bool {
        match stream {
            Feed::Control(feed) => feed.holds(),
            Feed::Session(_) => false,
        }
    }

    fn has_news(&mut self, stream: &mut Feed) -> bool {
        match stream {
            Feed::Control(feed) => self.control.has_news(feed),
            // It looks twice a second, whatever happens: thousands of them would look at every change.
            Feed::Session(_) => false,
        }
    }

    fn pull(&mut self, now: Instant, stream: &mut Feed, room: usize) -> Pull {
        match stream {
            Feed::Control(feed) => self.control.pull(now, feed, room),
            Feed::Session(session) => session.pull(now, room),
        }
    }
}

fn decode<T: serde::de::DeserializeOwned>(request: &Incoming) -> Result<T, Status> {
    let body: &Bytes = &request.body;
    crate::codec::envelope::decode(body, body.len()).map_err(|error| {
        Status::new(Code::InvalidArgument, format!("the request cannot be read: {error}"))
            .with_hint("use the same version of skep on both sides")
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
