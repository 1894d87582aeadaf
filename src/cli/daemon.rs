//! The seam between the command line and the node that it runs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::exit::{Exit, Failure};
use crate::node::{self, Node, StartError, StartFailure};
use crate::pki::UnlockKey;
use crate::types::Code;
use crate::types::object::Profile;

/// What `skep run` was told, checked and with defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The state directory.
    pub data_dir: PathBuf,
    /// Where to listen, `host:port`.
    pub listen: String,
    /// Where others reach this manager; `None` means where it listens. Port 0 means the port it listens on.
    pub advertise: Option<String>,
    /// A manager of the swarm to join.
    pub join: Option<String>,
    /// The join token.
    pub token: Option<crate::types::object::Sensitive>,
    /// Managers to try besides those remembered.
    pub peers: Vec<String>,
    /// Refuse an empty data directory.
    pub existing: bool,
    /// The control socket, if not in the data directory.
    pub socket: Option<PathBuf>,
    /// A group that may use the control socket.
    pub socket_group: Option<String>,
    /// Where to serve metrics.
    pub http: Option<String>,
    /// Timing of a new swarm.
    pub profile: Profile,
    /// The node's name.
    pub name: Option<String>,
    /// Opens a directory that is locked.
    pub unlock_key: Option<UnlockKey>,
}

/// A running node, as far as the command line deals with it.
pub trait Daemon: Send + Sync {
    /// Where it listens for peers; port 0 for a worker, which listens nowhere.
    fn listen_addr(&self) -> SocketAddr;
    /// Blocks until it has stopped, and says why.
    fn wait(&self) -> Stopped;
    /// Hands leadership over and stops; gives up after `deadline`.
    fn stop(&self, deadline: Duration);
    /// Whether its threads have made progress since the last call.
    fn progress(&self) -> bool;
}

/// Why a node has stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// For people.
    pub reason: String,
    /// The next command to type, or empty.
    pub hint: String,
    /// How the process ends.
    pub exit: Exit,
}

/// Starts a node; a manager listens when this returns. While its keys are locked, `while_locked` is called again and again.
pub fn start(options: Options, while_locked: &mut dyn FnMut()) -> Result<Arc<dyn Daemon>, Failure> {
    let config = node::Config {
        data_dir: options.data_dir,
        listen: options.listen,
        advertise: options.advertise,
        join: options.join,
        token: options.token,
        peers: options.peers,
        existing: options.existing,
        socket: options.socket,
        socket_group: options.socket_group,
        http: options.http,
        profile: options.profile,
        name: options.name,
        unlock_key: options.unlock_key,
    };
    match Node::start_unlocked_by_others(config, while_locked) {
        Ok(node) => Ok(Arc::new(node)),
        Err(error) => Err(Failure::from(error)),
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let (exit, code) = match error.failure {
            StartFailure::Internal => (Exit::Internal, Code::Internal),
            StartFailure::Refused => (Exit::Refused, Code::FailedPrecondition),
            StartFailure::Unavailable => (Exit::Unavailable, Code::Unavailable),
            StartFailure::Damaged => (Exit::Damaged, Code::Internal),
        };
        Self { attempted: error.what, code: code.name(), message: error.why, hint: error.hint, exit, change: None }
    }
}

impl Daemon for Node {
    fn listen_addr(&self) -> SocketAddr {
        Self::listen_addr(self)
    }

    fn wait(&self) -> Stopped {
        match Self::wait(self) {
            node::Stopped::Asked => Stopped { reason: "stopped".to_owned(), hint: String::new(), exit: Exit::Done },
            node::Stopped::Removed => Stopped {
                reason: "this node is no longer a member of the swarm: it left the swarm or was removed from it"
                    .to_owned(),
                hint: format!(
                    "to join again, move {} away and start with --join HOST:PORT and a token",
                    self.data_dir().display()
                ),
                exit: Exit::Refused,
            },
            node::Stopped::Demoted => Stopped {
                reason: "this manager was demoted to a worker; its log was moved aside".to_owned(),
                hint: "`skep node promote NODE` on another manager makes it a manager again".to_owned(),
                exit: Exit::Done,
            },
            node::Stopped::Outlived(why) => Stopped {
                reason: why,
                hint: format!(
                    "is the swarm that began anew the one you want? then move {} away and start with --join HOST:PORT and \
                     a token of it; if not, stop its managers and start this one again",
                    self.data_dir().display()
                ),
                exit: Exit::Refused,
            },
            node::Stopped::Fenced(why) => Stopped {
                reason: why,
                hint: format!(
                    "the others go on; to come back, move {} away, and join anew with another address or port in --listen \
                     and --advertise; the old member stays in the list and counts towards the majority",
                    self.data_dir().display()
                ),
                exit: Exit::Damaged,
            },
            node::Stopped::Rotten(why) => Stopped {
                reason: format!("{why}: faulty memory is likely"),
                hint: format!(
                    "test this machine's memory; then `skep run` again makes the state anew from its disk, or move {} \
                     away and join again with a token to take it from the others",
                    self.data_dir().display()
                ),
                exit: Exit::Damaged,
            },
        }
    }

    fn stop(&self, deadline: Duration) {
        Self::stop(self, deadline);
    }

    fn progress(&self) -> bool {
        Self::progress(self)
    }
}
