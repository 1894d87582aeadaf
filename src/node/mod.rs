//! A node in one value: as a manager log, state machine, raft, network and services wired together, as a worker a session
//! with a manager; and what makes one of the other.
//!
//! [`Node::start`] opens the state directory, makes or joins a swarm if the directory is new, replays the log, starts the
//! threads, and returns once the node listens; whether there is a leader yet is another matter. [`Node::stop`] hands
//! leadership over and stops the threads in the order in which they feed each other: net, raft, log, apply.
//!
//! A node's certificate says which role it has, and the swarm may change its mind. The thread `node` follows: a worker that
//! holds a manager's certificate joins the Raft group, and a manager that is taken out of the group becomes a worker, in
//! the same process and on the same control socket. Only the swarm's word makes that of it: one that was taken out keeps
//! `member` in `node.json` and asks the managers what it is now, since it may have been removed altogether.
//!
//! ```text
//! start.rs      from a directory to a running node      handler.rs    what the net thread does
//! open.rs       keys and log of a node that was there   assemble.rs   a manager's threads put together
//! dir.rs        the directory's files and lock          service.rs    control and ca behind the requests machine
//! found.rs      the first manager of a new swarm        outlet.rs     raft, log and apply to net
//! join.rs       a certificate and a place in a swarm    snapshots.rs  writing, sending and fetching snapshots
//! sockets.rs    listening                               greeting.rs   judging a peer's hello
//! stop.rs       why a node ends                         handler/      its parts: requests, members, snapshots, diagnose
//! lobby.rs      what a joining node answers             pace.rs       how fast snapshots leave
//! addresses.rs  members that are not where they were    space.rs      watching the disk fill up
//! repair.rs     a damaged log, cut to what is whole     recover.rs    one manager from a lost majority
//! restore.rs    one manager from a backup               rebuild.rs    a state as the log of a new history
//! leader.rs     the leader's services of a term         manager.rs    a running manager
//! worker.rs     a worker's threads                      supervisor.rs from one role to the other
//! inside.rs     how a manager's agent reaches the swarm keeper.rs     what the agent writes down
//! keys.rs       the key file                            locksmith.rs  new data keys, and the lock the swarm wants
//! locked.rs     waiting for the unlock key
//! outlived.rs   told that its history is over
//! ```
//!
//! Not here: logic worth testing by itself, except the judgement of hellos, the beginning of a new history (`rebuild`),
//! and the small machines `pace`, `addresses` and `outlived`.
//!
//! Invariants: a worker has no `raft/`, so that nothing old can vote when it becomes a manager again; nothing of a new
//! swarm counts before `node.json` says `member`; the boot counter is raised and synced before the node says anything; no
//! global logger, signal handler or panic hook is touched, so that several nodes live in one process.

mod addresses;
mod assemble;
mod dir;
mod found;
#[doc(hidden)]
pub mod fuzz;
pub mod greeting;
mod handler;
mod inside;
mod join;
mod keeper;
mod keys;
mod leader;
mod lobby;
mod locked;
mod locksmith;
mod manager;
mod open;
mod outlet;
mod outlived;
mod pace;
pub mod rebuild;
pub mod recover;
pub mod repair;
pub mod restore;
mod service;
mod snapshots;
mod sockets;
mod space;
mod start;
mod stop;
mod supervisor;
mod worker;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use dir::{NodeFile, Phase, is_member};
pub use locked::is_locked;
pub use stop::Stopped;

use self::supervisor::{Engine, Shared};
use crate::client::{Client, ClientError};
use crate::pki::UnlockKey;
use crate::sys::metrics::Metrics;
use crate::sys::thread::Thread;
use crate::sys::time::monotonic;
#[cfg(debug_assertions)]
use crate::types::Change;
use crate::types::object::{Profile, Sensitive};
use crate::types::{NodeId, RaftId};

/// How to start a node.
#[derive(Clone, Debug)]
pub struct Config {
    /// The state directory; made if it is missing.
    pub data_dir: PathBuf,
    /// Where to listen, `host:port`; port 0 takes a free one.
    pub listen: String,
    /// Where others reach it; `None`: where it listens. Port 0 means the port it listens on.
    pub advertise: Option<String>,
    /// With an empty directory: join the swarm of this manager, `host:port`, instead of making a new one.
    pub join: Option<String>,
    /// The join token.
    pub token: Option<Sensitive>,
    /// Managers to try besides those remembered, `host:port`.
    pub peers: Vec<String>,
    /// Refuse an empty directory: an unmounted disk must not make a new swarm.
    pub existing: bool,
    /// The control socket; `None`: `skep.sock` in the directory.
    pub socket: Option<PathBuf>,
    /// A group that may use the control socket, by name or number.
    pub socket_group: Option<String>,
    /// Where to serve `/healthz`, `/readyz` and `/metrics`; `None`: nowhere.
    pub http: Option<String>,
    /// Timing of a new swarm; joiners take the swarm's.
    pub profile: Profile,
    /// The node's name; `None`: the machine's.
    pub name: Option<String>,
    /// Opens a directory that is locked.
    pub unlock_key: Option<UnlockKey>,
}

impl Config {
    /// A node of its own on the loopback, in `data_dir`, on a free port.
    pub fn local(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            listen: "127.0.0.1:0".to_owned(),
            advertise: None,
            join: None,
            token: None,
            peers: Vec::new(),
            existing: false,
            socket: None,
            socket_group: None,
            http: None,
            profile: Profile::Lan,
            name: None,
            unlock_key: None,
        }
    }
}

/// What a caller does about a failed start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartFailure {
    /// Input or output failed, a port is in use.
    Internal,
    /// It will be refused again until something is changed.
    Refused,
    /// The swarm cannot be reached or has no leader: later may do.
    Unavailable,
    /// Data is damaged or missing.
    Damaged,
}

/// Why a node did not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartError {
    /// The class of failure.
    pub failure: StartFailure,
    /// What was attempted.
    pub what: String,
    /// Why it failed.
    pub why: String,
    /// What to type next, or empty.
    pub hint: String,
}

impl StartError {
    fn new(failure: StartFailure, what: impl fmt::Display, why: impl fmt::Display, hint: impl fmt::Display) -> Self {
        Self { failure, what: what.to_string(), why: why.to_string(), hint: hint.to_string() }
    }

    fn refused(what: impl fmt::Display, why: impl fmt::Display, hint: impl fmt::Display) -> Self {
        Self::new(StartFailure::Refused, what, why, hint)
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

impl std::error::Error for StartError {}

/// A running node. The crate's own page shows how to embed one.
#[derive(Debug)]
pub struct Node {
    shared: Arc<Shared>,
    supervisor: std::sync::Mutex<Option<Thread>>,
}

impl Node {
    /// Starts a node. When this returns a manager listens and has replayed its log; it may not have found a leader yet. A
    /// worker has its certificate; it may not be in touch with a manager yet.
    ///
    /// A directory whose keys are locked is refused, unless [`Config::unlock_key`] opens it.
    pub fn start(config: Config) -> Result<Self, StartError> {
        start::start(config, None)
    }

    /// As [`Self::start`], but a locked directory is waited for: its control socket answers that it is locked, and takes
    /// the unlock key. `while_locked` is called as soon as that begins, and then about every second.
    pub fn start_unlocked_by_others(config: Config, while_locked: &mut dyn FnMut()) -> Result<Self, StartError> {
        start::start(config, Some(while_locked))
    }

    /// This node's identity.
    pub fn node_id(&self) -> NodeId {
        self.shared.node_id
    }

    /// Its place in the Raft group; zero while it is a worker.
    pub fn raft_id(&self) -> RaftId {
        match self.shared.engine() {
            Engine::Manager(manager) => manager.raft_id,
            Engine::Worker(_) | Engine::Changing => RaftId(0),
        }
    }

    /// Where it listens for peers; port 0 while it is a worker, which listens nowhere.
    pub fn listen_addr(&self) -> SocketAddr {
        match self.shared.engine() {
            Engine::Manager(manager) => manager.listen,
            Engine::Worker(_) | Engine::Changing => (Ipv4Addr::UNSPECIFIED, 0).into(),
        }
    }

    /// Whether it is a worker now.
    pub fn is_worker(&self) -> bool {
        matches!(self.shared.engine(), Engine::Worker(_))
    }

    /// Where it serves HTTP, if it does.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.shared.http
    }

    /// Its control socket.
    pub fn socket(&self) -> &Path {
        &self.shared.socket
    }

    /// Counters, gauges and histograms.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// The state directory.
    pub fn data_dir(&self) -> &Path {
        &self.shared.data_dir
    }

    /// A caller of this node.
    pub fn client(&self) -> Result<Client, ClientError> {
        Client::local(&self.shared.socket, Duration::from_secs(5))
    }

    /// Blocks until the node has a reason to stop: it was asked to, it was removed from the swarm, or its data cannot be
    /// trusted. The threads have ended when this returns.
    pub fn wait(&self) -> Stopped {
        let reason = self.shared.stop.wait();
        if reason != Stopped::Asked {
            self.end(Duration::from_secs(2));
        }
        reason
    }

    /// Hands leadership over, stops the threads, and gives up after `deadline`: what was acknowledged is on disk whatever
    /// happens.
    pub fn stop(&self, deadline: Duration) {
        let until = monotonic() + deadline;
        self.shared.ask_to_stop();
        match self.shared.engine() {
            Engine::Manager(manager) => manager.stop(deadline),
            Engine::Worker(worker) => worker.stop(deadline),
            Engine::Changing => {}
        }
        self.end(until.since(monotonic()));
        self.shared.stop.stop(Stopped::Asked);
    }

    /// Waits for the thread that follows the node's role.
    fn end(&self, deadline: Duration) {
        let supervisor = self.supervisor.lock().expect("no code panics while it holds this lock").take();
        if let Some(supervisor) = supervisor
            && !supervisor.join(deadline)
        {
            log::warn!("the node did not stop in time");
        }
    }

    /// Whether raft, log and apply have made progress since the last call, or had nothing to do.
    pub fn progress(&self) -> bool {
        match self.shared.engine() {
            Engine::Manager(manager) => manager.progress(),
            Engine::Worker(_) | Engine::Changing => true,
        }
    }

    /// Flips a bit of a config in memory behind the store's back, and looks through the memory now instead of within the
    /// hour. For tests of what happens then.
    #[cfg(debug_assertions)]
    #[doc(hidden)]
    pub fn rot(&self, config: &str) {
        if let Engine::Manager(manager) = self.shared.engine() {
            manager.rot(config);
        }
    }

    /// Looks through the memory now.
    #[cfg(debug_assertions)]
    #[doc(hidden)]
    pub fn scrub(&self) {
        if let Engine::Manager(manager) = self.shared.engine() {
            manager.scrub();
        }
    }

    /// Makes a config in this replica only, so that its state hash differs from the others'. For tests.
    #[cfg(debug_assertions)]
    #[doc(hidden)]
    pub fn diverge(&self, change: Change) {
        if let Engine::Manager(manager) = self.shared.engine() {
            manager.diverge(change);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shared.ask_to_stop();
        match self.shared.engine() {
            Engine::Manager(manager) => {
                manager.halt(Duration::from_secs(2), &Stopped::Asked);
                // The thread that follows the node's role holds the directory, and waits for a reason to let go of it.
                manager.stop.stop(Stopped::Asked);
            }
            Engine::Worker(worker) => worker.stop(Duration::from_secs(2)),
            Engine::Changing => {}
        }
        self.end(Duration::from_secs(2));
    }
}
