//! Puts the services behind the requests machine: `control`, and the certificate authority.

use std::sync::Arc;

use bytes::Bytes;

use crate::ca::{self, Directory};
use crate::control::{self, Control, Feed};
use crate::net::handler::Incoming;
use crate::net::requests::{Pull, Service, Step};
use crate::store::Store;
use crate::sys::entropy::OsEntropy;
use crate::sys::time::{Instant, wall_ms};
use crate::types::api::{Call, IssueRequest};
use crate::types::object::{Cluster, Node};
use crate::types::{Code, Kind, NodeId, Object, Outcome, Status};

/// Every service of a manager.
#[derive(Debug)]
pub struct Services {
    /// What the command line talks to.
    pub control: Control,
}

struct Reader<'a>(&'a Store);

impl Directory for Reader<'_> {
    fn cluster(&self) -> Option<Cluster> {
        self.0.view(|state| state.cluster().cloned())
    }

    fn node(&self, id: NodeId) -> Option<Node> {
        self.0.view(|state| match &state.get(Kind::Node, id.into())?.object {
            Object::Node(node) => Some((**node).clone()),
            _ => None,
        })
    }
}

impl Services {
    fn store(&self) -> &Arc<Store> {
        self.control.store()
    }

    fn certificate(&self, request: &Incoming, confirmed: bool) -> Step<Feed> {
        let reader = Reader(self.store());
        let result = match request.call {
            Call::GetRoot => ca::get_root(&reader),
            Call::CertificateStatus => decode(request).and_then(|node_id| ca::status(&reader, node_id)),
            _ => return self.issue(request),
        };
        match result {
            Ok(answer) => Step::Answer(control::encode(&answer)),
            Err(status) if status.code == Code::NotFound && !confirmed => Step::RefuseIfConfirmed(status),
            Err(status) => Step::Refuse(status),
        }
    }

    fn issue(&self, request: &Incoming) -> Step<Feed> {
        let request: IssueRequest = match decode(request) {
            Ok(request) => request,
            Err(status) => return Step::Refuse(status),
        };
        if let Some(outcome) = self.store().view(|state| state.remembered(request.change)) {
            return self.issued(&request, &outcome);
        }
        match ca::issue(&Reader(self.store()), &request, wall_ms(), &mut OsEntropy) {
            Ok(issue) => Step::Propose(issue.change),
            // A token that was rotated a moment ago may not have reached this store.
            Err(status) if status.code == Code::InvalidArgument => Step::RefuseIfConfirmed(status),
            Err(status) => Step::Refuse(status),
        }
    }

    fn issued(&self, request: &IssueRequest, outcome: &Outcome) -> Step<Feed> {
        match outcome {
            Outcome::Committed(_) => match ca::status(&Reader(self.store()), ca::node_of_change(request.change)) {
                Ok(answer) => Step::Answer(control::encode(&answer)),
                Err(status) => Step::Refuse(status),
            },
            Outcome::Refused(_) => Step::Refuse(
                Status::new(
                    Code::Aborted,
                    "the certificate was not issued, because the swarm's state changed meanwhile",
                )
                .with_hint("try again"),
            ),
            Outcome::Forgotten => Step::Refuse(Status {
                // Asking again, here or elsewhere, gives the same answer.
                hopeless: true,
                ..Status::new(Code::Unknown, "the request is too old to tell whether it was carried out")
                    .with_hint("start again on an empty data directory")
            }),
        }
    }
}

impl Service for Services {
    type Stream = Feed;

    fn decide(&mut self, request: &Incoming, attempt: u32, confirmed: bool) -> Step<Feed> {
        match request.call {
            Call::GetRoot | Call::Issue | Call::CertificateStatus => self.certificate(request, confirmed),
            _ => self.control.decide(request, attempt, confirmed, wall_ms()),
        }
    }

    fn ended(&mut self, request: &Incoming, _attempt: u32, outcome: &Outcome) -> Step<Feed> {
        match request.call {
            Call::Issue => match decode(request) {
                Ok(issue) => self.issued(&issue, outcome),
                Err(status) => Step::Refuse(status),
            },
            _ => self.control.ended(request, outcome),
        }
    }

    fn holds(&self, stream: &Feed) -> bool {
        stream.holds()
    }

    fn pull(&mut self, now: Instant, stream: &mut Feed, room: usize) -> Pull {
        self.control.pull(now, stream, room)
    }
}

fn decode<T: serde::de::DeserializeOwned>(request: &Incoming) -> Result<T, Status> {
    let body: &Bytes = &request.body;
    crate::codec::envelope::decode(body, body.len()).map_err(|error| {
        Status::new(Code::InvalidArgument, format!("the request cannot be read: {error}"))
            .with_hint("use the same version of skep on both sides")
    })
}
