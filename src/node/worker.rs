//! A worker: a session with a manager, and a control socket that says so.
//!
//! It has no log, no store and no port. What it knows of the swarm is where the managers are, which it keeps in
//! `managers.json`: when the manager that it talks to is gone it asks another one, also after a restart.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::StartError;
use super::assemble::hello_without_place;
use super::dir::{DataDir, NodeFile, Phase};
use super::keeper::Keeper;
use super::lobby::{Lobby, Porter};
use super::start::{describe, internal};
use super::stop::StopCell;
use super::supervisor::House;
use crate::agent::outside::{Outside, Parts};
use crate::agent::run::{Agent, Follow};
use crate::agent::{Link, Own, run};
use crate::codec::envelope;
use crate::control;
use crate::net::handler::Incoming;
use crate::net::routes;
use crate::pki::Identity;
use crate::store::Store;
use crate::sys::entropy::{Entropy as _, OsEntropy};
use crate::sys::metrics::Gauge;
use crate::sys::queue::{Sender, bounded};
use crate::sys::thread::Thread;
use crate::sys::time::wall_ms;
use crate::types::api::{Answer, Call, Query, QueryKind, RaftState, SessionItem, StatusReport};
use crate::types::{ClusterId, Code, NodeId, Role, Status};

/// Why a worker is one no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerEnd {
    /// The node stops.
    Asked,
    /// It has a manager's certificate, and is to be one.
    Promoted,
    /// It is no longer part of the swarm.
    Removed,
}

/// A worker at work.
#[derive(Debug)]
pub struct Worker {
    end: Arc<StopCell<WorkerEnd>>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    lobby: Lobby,
    /// Dropped, it ends the agent.
    stop: Sender<()>,
    agent: Thread,
}

impl Worker {
    /// Begins. With `in_doubt` the node was taken out of the Raft group, and whether it is a worker now is what it asks
    /// first.
    pub fn start(house: &House, file: &NodeFile, in_doubt: bool) -> Result<Self, StartError> {
        let end = Arc::new(StopCell::default());
        let link = Link::default();
        let description = describe(house.config.name.as_deref());
        let identity = house.own.identity();
        let attendant = Attendant {
            node_id: identity.node_id,
            cluster_id: identity.cluster_id,
            hostname: description.hostname.clone(),
            own: house.own.clone(),
            link: link.clone(),
            in_doubt: Arc::new(Mutex::new(in_doubt)),
        };
        let follower = Follower {
            end: end.clone(),
            in_doubt: attendant.in_doubt.clone(),
            dir: house.dir.clone(),
            file: file.clone(),
        };
        let sockets = &house.sockets;
        let lobby = Lobby::open(&sockets.unix, sockets.of_group, sockets.http.as_ref(), attendant).map_err(internal)?;
        let (stop, stopped) = bounded(1, Gauge::default());
        let remembering = house.dir.clone();
        let given = house.config.peers.iter().cloned().chain(file.join.clone()).collect();
        let outside = Outside::new(Parts {
            own: house.own.clone(),
            description: description.clone(),
            known: remembered(&house.dir),
            given,
            hello: hello_without_place(&identity, file.boot, OsEntropy.next_u64(), ""),
            stop: stopped,
            link,
            remember: Box::new(move |managers| remember(&remembering, managers)),
        });
        let agent = run::spawn(Agent {
            own: house.own.clone(),
            swarm: outside,
            keep: Box::new(Keeper::new(house)),
            follow: Box::new(follower),
            description,
            advertise: String::new(),
        })
        .map_err(internal)?;
        Ok(Self { end, running: Mutex::new(Some(Running { lobby, stop, agent })) })
    }

    /// Blocks until it is one no longer.
    pub fn wait(&self) -> WorkerEnd {
        self.end.wait()
    }

    /// Stops its threads.
    pub fn stop(&self, deadline: Duration) {
        let running = self.running.lock().expect("no code panics while it holds this lock").take();
        if let Some(Running { lobby, stop, agent }) = running {
            drop(stop);
            if !agent.join(deadline) {
                log::warn!("thread agent did not stop in time");
            }
            drop(lobby);
        }
        self.end.stop(WorkerEnd::Asked);
    }
}

/// What the swarm's wishes mean for a worker.
struct Follower {
    end: Arc<StopCell<WorkerEnd>>,
    in_doubt: Arc<Mutex<bool>>,
    dir: Arc<DataDir>,
    file: NodeFile,
}

impl Follow for Follower {
    fn told(&mut self, identity: &Identity, item: &SessionItem) {
        let in_doubt = self.in_doubt.clone();
        let mut in_doubt = in_doubt.lock().expect("no code panics while it holds this lock");
        let is_to_manage = item.role == Role::Manager && item.desired_role == Role::Manager;
        if *in_doubt {
            if item.member {
                // This manager has not heard yet that the node was taken out.
                return;
            }
            if is_to_manage {
                // Nobody made a worker of it: it left, or was taken out for good.
                return self.end.stop(WorkerEnd::Removed);
            }
            if self.settle() {
                *in_doubt = false;
                log::info!("this node is a worker now");
            }
        }
        if is_to_manage && identity.role == Role::Manager {
            self.end.stop(WorkerEnd::Promoted);
        }
    }

    fn removed(&mut self, why: &Status) {
        log::error!("{why}");
        self.end.stop(WorkerEnd::Removed);
    }
}

impl Follower {
    /// Writes down that the node is a worker.
    fn settle(&mut self) -> bool {
        self.file.phase = Phase::Worker;
        (self.file.raft_id, self.file.lineage) = (None, None);
        match self.dir.write(&self.file) {
            Ok(()) => true,
            Err(error) => {
                log::error!("{error}");
                false
            }
        }
    }
}

/// Answers on a worker's control socket.
struct Attendant {
    node_id: NodeId,
    cluster_id: ClusterId,
    hostname: String,
    own: Own,
    link: Link,
    in_doubt: Arc<Mutex<bool>>,
}

impl Attendant {
    fn status(&self) -> StatusReport {
        let link = self.link.state();
        let mut status = control::joining_status(self.node_id, self.cluster_id, &self.hostname, "");
        status.state = if link.manager.is_some() { "ready" } else { "no manager" }.to_owned();
        status.role = RaftState::Worker;
        status.manager = link.manager;
        status.certificate = Some(self.own.report());
        status.warnings = Vec::new();
        if *self.in_doubt.lock().expect("no code panics while it holds this lock") {
            let words = "this node was taken out of the group of managers, and asks whether it is a worker now";
            status.warnings.push(words.to_owned());
        }
        if !link.trouble.is_empty() {
            status.warnings.push(format!("no session with a manager: {}", link.trouble));
        }
        if let Some(offset_ms) = link.clock_offset_ms {
            status.warnings.extend(control::clock_words("the manager", offset_ms));
        }
        status.warnings.extend(control::certificate_warning(status.certificate.as_ref(), wall_ms()));
        status
    }
}

impl Porter for Attendant {
    fn identity(&self) -> (NodeId, ClusterId) {
        (self.node_id, self.cluster_id)
    }

    fn answer(&self, request: &Incoming) -> Result<Bytes, Status> {
        if request.call == Call::Health {
            return Ok(control::encode(&Answer::Done));
        }
        if !routes::route(request.call).before_joining {
            return Err(self.refusal());
        }
        match envelope::decode::<Query>(&request.body, request.body.len()) {
            Ok(Query { what: QueryKind::Status, .. }) => Ok(control::encode(&Answer::Status(Box::new(self.status())))),
            _ => Err(self.refusal()),
        }
    }

    fn refusal(&self) -> Status {
        let hint = match self.link.state().manager {
            Some((_, addr)) => {
                format!("run the command on a manager, such as the one at {addr}; `skep status` works here")
            }
            None => "run the command on a manager; `skep status` shows why this node is in touch with none".to_owned(),
        };
        let message = "this node is a worker: it keeps no state of the swarm and takes no orders for it";
        Status::new(Code::FailedPrecondition, message).with_hint(hint)
    }

    fn http(&self, path: &str) -> (u16, &'static str, String) {
        let link = self.link.state();
        match path.split('?').next().unwrap_or_default() {
            "/healthz" => (200, "text/plain", "ok\n".to_owned()),
            "/readyz" if link.manager.is_some() => (200, "text/plain", "ok\n".to_owned()),
            "/readyz" => (503, "text/plain", format!("no session with a manager: {}\n", link.trouble)),
            _ => (404, "text/plain", "not found: there are /healthz and /readyz\n".to_owned()),
        }
    }
}

const MANAGERS_FILE: &str = "managers.json";
/// The format of `managers.json`.
const FORMAT: u32 = 1;

/// `managers.json`.
#[derive(Debug, Serialize, Deserialize)]
struct ManagersFile {
    format: u32,
    /// The oldest format a reader must understand.
    min_reader: u32,
    /// When it was written, milliseconds since 1970: no clock that shows less is right.
    time_ms: u64,
    managers: Vec<(NodeId, String)>,
}

/// Writes down where the managers are. What cannot be written is told again by the next manager.
pub fn remember(dir: &DataDir, managers: &[(NodeId, String)]) {
    let file = ManagersFile { format: FORMAT, min_reader: FORMAT, time_ms: wall_ms(), managers: managers.to_vec() };
    let bytes = serde_json::to_vec_pretty(&file).expect("plain data");
    if let Err(error) = dir.replace(MANAGERS_FILE, &bytes) {
        log::warn!("{error}");
    }
}

fn read(dir: &DataDir) -> io::Result<ManagersFile> {
    let text = dir.read_text(MANAGERS_FILE).map_err(io::Error::other)?.ok_or(io::ErrorKind::NotFound)?;
    serde_json::from_str(&text).map_err(io::Error::other)
}

/// The managers that were written down. A file that is damaged or of the future says nothing: whoever was named with
/// `--join` or `--peer` is asked.
pub fn remembered(dir: &DataDir) -> Vec<(NodeId, String)> {
    match read(dir) {
        Ok(file) if file.min_reader <= FORMAT => file.managers,
        Ok(_) => Vec::new(),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                log::warn!("{MANAGERS_FILE} cannot be read: {error}");
            }
            Vec::new()
        }
    }
}

/// When the file was written, as far as there is one.
pub fn remembered_ms(dir: &DataDir) -> u64 {
    read(dir).map_or(0, |file| file.time_ms)
}

/// The managers in a store, without this one.
pub fn managers_of(store: &Store, own: NodeId) -> Vec<(NodeId, String)> {
    store.view(|state| {
        let others = state.members().values().filter(|member| member.node_id != own);
        others.map(|member| (member.node_id, member.addr.clone())).collect()
    })
}
