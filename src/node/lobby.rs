//! What a node answers before it is a manager at work: who it is, what it waits for, and little else.
//!
//! Without a certificate there is no place in a swarm and nothing to listen for; but a person who types `skep status` then
//! wants to know what the node is waiting for. [`Lobby`] serves the control socket (and the probes) until the certificate
//! is there; after that the node's own handler answers in the same words until it has its place.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use crate::codec::envelope;
use crate::codec::request::Ping;
use crate::control;
use crate::net::handler::{Handler, Incoming, Outbox, Reply, StreamId};
use crate::net::{self, NetHandle, routes};
use crate::sys::metrics::Metrics;
use crate::sys::thread::Thread;
use crate::sys::time::Instant;
use crate::types::api::{Answer, Call, FEATURE_LEVEL, Hello, PROTOCOL, Query, QueryKind};
use crate::types::{Caller, ClusterId, Code, Lineage, NodeId, Position, Revision, Standing, Status};

/// What a join waits for, in words; shared with whoever answers meanwhile.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    words: Arc<Mutex<String>>,
    cancelled: Arc<AtomicBool>,
}

impl Progress {
    /// Replaces the words.
    pub fn say(&self, waiting_for: String) {
        *self.words.lock().expect("no code panics while it holds this lock") = waiting_for;
    }

    /// The words.
    pub fn words(&self) -> String {
        self.words.lock().expect("no code panics while it holds this lock").clone()
    }

    /// Nothing is waited for any more: the node stops.
    pub fn cancel(&self) {
        self.cancelled.store(true, SeqCst);
    }

    /// Whether the node stops.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(SeqCst)
    }
}

/// Answers for a node that has no state yet.
pub trait Porter: Send + 'static {
    /// Who the node is; all zero while nobody knows.
    fn identity(&self) -> (NodeId, ClusterId);
    /// The answer to a request.
    fn answer(&self, request: &Incoming) -> Result<Bytes, Status>;
    /// What whoever wants more is told.
    fn refusal(&self) -> Status;
    /// The answer to a probe: status, type, text.
    fn http(&self, path: &str) -> (u16, &'static str, String);
}

/// A node that is not a member yet.
#[derive(Clone, Debug)]
pub struct Joiner {
    /// All zero before it has a certificate.
    pub node_id: NodeId,
    /// The same.
    pub cluster_id: ClusterId,
    /// Its name for people.
    pub hostname: String,
    /// What it waits for.
    pub progress: Progress,
}

impl Porter for Joiner {
    fn identity(&self) -> (NodeId, ClusterId) {
        (self.node_id, self.cluster_id)
    }

    fn answer(&self, request: &Incoming) -> Result<Bytes, Status> {
        if !routes::route(request.call).before_joining {
            return Err(self.refusal());
        }
        if request.call == Call::Health {
            return Ok(control::encode(&Answer::Done));
        }
        match envelope::decode::<Query>(&request.body, request.body.len()) {
            Ok(Query { what: QueryKind::Status, .. }) => {
                let words = self.progress.words();
                let status = control::joining_status(self.node_id, self.cluster_id, &self.hostname, &words);
                Ok(control::encode(&Answer::Status(Box::new(status))))
            }
            Ok(_) => Err(self.refusal()),
            Err(error) => {
                let message = format!("the request cannot be read: {error}");
                let hint = "use a command line of the same version as the manager";
                Err(Status::new(Code::InvalidArgument, message).with_hint(hint))
            }
        }
    }

    fn refusal(&self) -> Status {
        let message = format!("this manager is joining a swarm and has no state yet: it is {}", self.progress.words());
        Status::new(Code::Unavailable, message).with_hint("`skep status` shows how far it is")
    }

    /// It lives, and is not ready.
    fn http(&self, path: &str) -> (u16, &'static str, String) {
        if path == "/healthz" {
            return (200, "text/plain", "ok\n".to_owned());
        }
        (503, "text/plain", format!("joining a swarm: {}\n", self.progress.words()))
    }
}

/// Serves the control socket until it is dropped.
#[derive(Debug)]
pub struct Lobby {
    net: Option<NetHandle<()>>,
    thread: Option<Thread>,
}

/// Callers that are being answered may take so long to read it.
const PARTING: Duration = Duration::from_secs(2);

impl Lobby {
    /// Begins to serve. The listeners stay open after it, for the node itself.
    pub fn open(
        unix: &UnixListener,
        of_group: bool,
        http: Option<&TcpListener>,
        porter: impl Porter,
    ) -> std::io::Result<Self> {
        let metrics = Metrics::default();
        let (handle, inbox) = net::channel(1, &metrics)?;
        let (node_id, cluster_id) = porter.identity();
        let config = net::Config {
            listen: None,
            unix: Some(unix.try_clone()?),
            socket_group: of_group,
            http: http.map(TcpListener::try_clone).transpose()?,
            node_id,
            cluster_id,
            credentials: None,
            limits: net::Limits::default(),
            seed: 0,
            metrics,
        };
        let thread = net::spawn(config, Doorkeeper(porter), inbox)?;
        Ok(Self { net: Some(handle), thread: Some(thread) })
    }
}

impl Drop for Lobby {
    fn drop(&mut self) {
        // The loop ends when its last handle goes.
        self.net = None;
        if let Some(thread) = self.thread.take()
            && !thread.join(PARTING)
        {
            log::warn!("the control socket of the waiting node was not closed in time");
        }
    }
}

/// Answers on the net thread. There are no managers to talk to: nobody is dialled and nobody can connect but local callers.
struct Doorkeeper<P>(P);

impl<P: Porter> Handler for Doorkeeper<P> {
    type Completion = ();

    fn hello(&mut self) -> Hello {
        Hello {
            protocol: PROTOCOL,
            cluster_id: self.0.identity().1,
            node_id: self.0.identity().0,
            raft_id: None,
            lineage: Lineage(0),
            boot: 0,
            nonce: 0,
            last: Position::default(),
            advertise: String::new(),
            feature_level: FEATURE_LEVEL,
            revision: Revision(0),
        }
    }

    fn request(&mut self, _: Instant, request: Incoming, out: &mut Outbox) {
        match self.0.answer(&request) {
            Ok(body) => out.answer(request.stream, body),
            Err(status) => out.refuse(request.stream, status),
        }
    }

    fn http(&mut self, path: &str) -> (u16, &'static str, String) {
        self.0.http(path)
    }

    fn greeted(&mut self, _: &Caller, _: &Hello) -> Result<(), Status> {
        Err(self.0.refusal())
    }

    fn turned_away(&mut self, _: Option<NodeId>, _: &Status, _: &mut Outbox) {}
    fn cancelled(&mut self, _: StreamId, _: &mut Outbox) {}
    fn credit(&mut self, _: StreamId, _: u32, _: &mut Outbox) {}
    fn replied(&mut self, _: Instant, _: u64, _: Reply, _: &mut Outbox) {}
    fn raft(&mut self, _: NodeId, _: Bytes, _: &mut Outbox) {}
    fn raft_dropped(&mut self, _: NodeId) {}
    fn connected(&mut self, _: NodeId, _: &mut Outbox) {}
    fn disconnected(&mut self, _: NodeId, _: bool, _: &mut Outbox) {}
    fn measured(&mut self, _: NodeId, _: u64, _: i64, _: Ping) {}
    fn completed(&mut self, _: Instant, _: Vec<()>, _: &mut Outbox) {}
    fn turn_ended(&mut self, _: Instant, _: &mut Outbox) {}

    fn ping(&mut self) -> Ping {
        Ping::default()
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    fn standing(&self, _: NodeId) -> Standing {
        Standing::Unknown
    }

    fn admits_expired(&self, _: NodeId) -> bool {
        false
    }
}
