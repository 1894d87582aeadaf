//! A manager in one value: wires log, state machine, raft, network and services together.
//!
//! [`Node::start`] opens the state directory, makes or joins a swarm if the directory is new, replays the log, starts the
//! threads, and returns once the node listens; whether there is a leader yet is another matter. [`Node::stop`] hands
//! leadership over and stops the threads in the order in which they feed each other: net, raft, log, apply.
//!
//! ```text
//! start.rs      from a directory to a running node      handler.rs    what the net thread does
//! dir.rs        the directory's files and lock          service.rs    control and ca behind the requests machine
//! found.rs      the first manager of a new swarm        outlet.rs     raft, log and apply to net
//! join.rs       a certificate and a place in a swarm    snapshots.rs  writing, sending and fetching snapshots
//! sockets.rs    listening                               greeting.rs   judging a peer's hello
//! stop.rs       why a node ends                         handler/      its parts: requests, members, snapshots, diagnose
//! lobby.rs      what a joining node answers             pace.rs       how fast snapshots leave
//! addresses.rs  members that are not where they were    space.rs      watching the disk fill up
//! repair.rs     a damaged log, cut to what is whole     recover.rs    one manager from a lost majority
//! restore.rs    one manager from a backup               rebuild.rs    a state as the log of a new history
//! outlived.rs   told that its history is over
//! ```
//!
//! Not here: logic worth testing by itself, except the judgement of hellos, the beginning of a new history (`rebuild`),
//! and the small machines `pace`, `addresses` and `outlived`.
//!
//! Invariants: nothing of a new swarm counts before `node.json` says `member`; the boot counter is raised and synced
//! before the node says anything; no global logger, signal handler or panic hook is touched, so that several nodes live in
//! one process.

mod addresses;
mod dir;
mod found;
#[doc(hidden)]
pub mod fuzz;
pub mod greeting;
mod handler;
mod join;
mod lobby;
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

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use dir::{NodeFile, Phase, is_member};
pub use stop::Stopped;

use self::outlet::Completion;
use self::stop::StopCell;
use crate::client::{Client, ClientError};
use crate::net::NetHandle;
use crate::raft::run::Handle;
use crate::raft::{Event, Timing};
use crate::store::scrub::Scrub;
#[cfg(debug_assertions)]
use crate::store::{Store, scrub::Pass};
use crate::sys::metrics::{Counter, Gauge, Metrics};
use crate::sys::thread::Thread;
use crate::sys::time::monotonic;
use crate::types::object::{Profile, Sensitive};
#[cfg(debug_assertions)]
use crate::types::{Change, Kind, Object};
use crate::types::{NodeId, RaftId};
use crate::wal;

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

/// A running manager. The crate's own page shows how to embed one.
#[derive(Debug)]
pub struct Node {
    node_id: NodeId,
    raft_id: RaftId,
    data_dir: PathBuf,
    listen: SocketAddr,
    http: Option<SocketAddr>,
    socket: PathBuf,
    metrics: Metrics,
    timing: Timing,
    stop: Arc<StopCell>,
    raft: Handle,
    net: NetHandle<Completion>,
    pulse: wal::run::Pulse,
    applied: Counter,
    apply_queue: Gauge,
    seen: (AtomicU64, AtomicU64),
    running: Mutex<Option<Running>>,
    #[cfg(debug_assertions)]
    store: Arc<Store>,
}

/// The threads, in the order in which they are stopped.
#[derive(Debug)]
struct Running {
    threads: Vec<Thread>,
    /// Ends the thread that scrubs, when it is dropped.
    scrub: Scrub,
    /// Dropped, it ends the thread that watches the disk.
    space: crate::sys::queue::Sender<()>,
    /// Keeps the directory locked.
    dir: dir::DataDir,
}

/// An unsynced write older than this is no progress.
const STUCK: Duration = Duration::from_secs(20);
/// How long a leader that stops waits for another to take over.
const HAND_OVER: Duration = Duration::from_millis(1500);

impl Node {
    /// Starts a node. When this returns it listens and has replayed its log; it may not have found a leader yet.
    pub fn start(config: Config) -> Result<Self, StartError> {
        start::start(config)
    }

    /// This node's identity.
    pub const fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// Its place in the Raft group.
    pub const fn raft_id(&self) -> RaftId {
        self.raft_id
    }

    /// Where it listens for peers.
    pub const fn listen_addr(&self) -> SocketAddr {
        self.listen
    }

    /// Where it serves HTTP, if it does.
    pub const fn http_addr(&self) -> Option<SocketAddr> {
        self.http
    }

    /// Its control socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Counters, gauges and histograms.
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// A caller of this node.
    pub fn client(&self) -> Result<Client, ClientError> {
        Client::local(&self.socket, Duration::from_secs(5))
    }

    /// Blocks until the node has a reason to stop: it was asked to, it was removed from the swarm, or its data cannot be
    /// trusted. The threads have ended when this returns.
    pub fn wait(&self) -> Stopped {
        let reason = self.stop.wait();
        if reason != Stopped::Asked {
            self.halt(Duration::from_secs(2), &reason);
        }
        reason
    }

    /// Hands leadership over, stops the threads, and gives up after `deadline`: what was acknowledged is on disk whatever
    /// happens.
    pub fn stop(&self, deadline: Duration) {
        let until = monotonic() + deadline;
        if self.raft.report().serving && self.raft.report().members.len() > 1 {
            self.raft.link(Event::Stopping);
            let patience = until.min(monotonic() + HAND_OVER);
            while self.raft.report().serving && monotonic() < patience {
                std::thread::sleep(Duration::from_millis(self.timing.tick_ms / 10));
            }
        }
        self.halt(until.since(monotonic()), &Stopped::Asked);
        self.stop.stop(Stopped::Asked);
    }

    fn halt(&self, deadline: Duration, reason: &Stopped) {
        let Some(running) = self.running.lock().expect("no code panics while it holds this lock").take() else {
            return;
        };
        let until = monotonic() + deadline;
        if *reason != Stopped::Asked {
            // A node that may not take part says nothing more.
            self.raft.stop();
        }
        // A full queue means that the net thread is stuck; the deadline ends it.
        let _ = self.net.send(Completion::Shutdown);
        drop(running.scrub);
        let mut threads = running.threads.into_iter();
        if let Some(net) = threads.next() {
            net.join(until.since(monotonic()));
        }
        self.raft.stop();
        self.pulse.give_up();
        drop(running.space);
        for thread in threads {
            let name = thread.name().to_owned();
            if !thread.join(until.since(monotonic())) {
                log::warn!("thread {name} did not stop in time");
            }
        }
        let _ = std::fs::remove_file(&self.socket);
        if *reason == Stopped::Removed {
            match running.dir.retire(crate::sys::time::wall_ms()) {
                Ok(aside) => log::info!("the log was moved to {}", aside.display()),
                Err(error) => log::error!("the log could not be moved aside: {error}"),
            }
        }
    }

    /// Whether raft, log and apply have made progress since the last call, or had nothing to do.
    pub fn progress(&self) -> bool {
        let turns = self.raft.turns();
        let applied = self.applied.get();
        let raft = self.seen.0.swap(turns, Relaxed) != turns;
        let apply = self.seen.1.swap(applied, Relaxed) != applied || self.apply_queue.get() == 0;
        let log = self.pulse.oldest_unsynced().is_none_or(|since| monotonic().since(since) < STUCK);
        raft && apply && log
    }

    /// Flips a bit of a config in memory behind the store's back, and looks through the memory now instead of within the
    /// hour. For tests of what happens then.
    #[cfg(debug_assertions)]
    #[doc(hidden)]
    pub fn rot(&self, config: &str) {
        self.store.write(|state| {
            let id = state.by_name(Kind::Config, config).expect("the test has made it").object.id();
            let rotted = state.rot(Kind::Config, id, |object| match object {
                Object::Config(config) => config.spec.data[0] ^= 1,
                _ => unreachable!("it is a config"),
            });
            assert!(rotted);
            ((), None)
        });
        self.scrub();
    }

    /// Looks through the memory now.
    #[cfg(debug_assertions)]
    #[doc(hidden)]
    pub fn scrub(&self) {
        if let Some(running) = &*self.running.lock().expect("no code panics while it holds this lock") {
            // A pass that is waiting already will do.
            let _ = running.scrub.try_send(Pass);
        }
    }

    /// Makes a config in this replica only, so that its state hash differs from the others'. For tests.
    #[cfg(debug_assertions)]
    #[doc(hidden)]
    pub fn diverge(&self, change: Change) {
        self.store.write(|state| {
            let term = state.applied().term;
            state.apply_change(change, term)
        });
    }

    /// The state directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.halt(Duration::from_secs(2), &Stopped::Asked);
    }
}
