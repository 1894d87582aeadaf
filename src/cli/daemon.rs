//! The seam between the command line and the node that it runs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::exit::{Exit, Failure};
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
}

/// A running manager, as far as the command line deals with it.
pub trait Daemon: Send + Sync {
    /// Where it listens.
    fn listen_addr(&self) -> SocketAddr;
    /// Blocks until it has stopped, and says why.
    fn wait(&self) -> Stopped;
    /// Hands leadership over and stops; gives up after `deadline`.
    fn stop(&self, deadline: Duration);
    /// Whether its threads have made progress since the last call.
    fn progress(&self) -> bool;
}

/// Why a manager has stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// For people.
    pub reason: String,
    /// The next command to type, or empty.
    pub hint: String,
    /// How the process ends.
    pub exit: Exit,
}

/// Starts a manager; it listens when this returns.
pub fn start(options: Options) -> Result<Arc<dyn Daemon>, Failure> {
    Err(Failure::internal(format!("no node in this build can open {}", options.data_dir.display())))
}
