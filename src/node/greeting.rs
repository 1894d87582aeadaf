//! Who may take part: judges a manager's hello before anything else of its connection is looked at.
//!
//! A member that comes back with less log than it had acknowledged, or a second process from a copied directory, would
//! vote away what the others rely on. What can be noticed is: a boot counter that went back, the same boot with another
//! nonce, and a log that ends before a floor that a mark in the log recorded. What cannot: a directory rolled back by less
//! than the marks know while every other manager was down as well.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::stop::Stopped;
use crate::store::State;
use crate::sys::faults::{Fault, planted};
use crate::sys::files::{self, RealDisk};
use crate::types::api::{Hello, PROTOCOL};
use crate::types::{Caller, Code, Index, Lineage, NodeId, Status};

/// The newest start seen of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    boot: u64,
    nonce: u64,
}

/// What was seen of peers; kept in `peers.json`.
#[derive(Debug, Default)]
pub struct Greetings {
    seen: BTreeMap<NodeId, Seen>,
    /// Hellos that fell short of a floor once, and that floor. A hello is as old as its handshake, and a floor may have
    /// risen past it since: only a second hello of the same process that is still below the first floor is a verdict.
    suspects: BTreeMap<(NodeId, u64, u64), Index>,
}

/// What becomes of a hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may take part.
    Welcome,
    /// It may take part, and these are the new contents of `peers.json`.
    WelcomeNew(Vec<u8>),
    /// It may not.
    Refused(Status),
}

const REMOVED: &str = "was removed from the swarm";
const ROLLED_BACK: &str = "was rolled back";
const FOREIGN: &str = "belongs to another history of this swarm";
/// Suspects remembered; each is a process of a member, so that there are few.
const MAX_SUSPECTS: usize = 64;

impl Greetings {
    /// What `peers.json` holds. A file that is missing or damaged forgets what was seen; the floors in the log remain.
    pub fn load(path: &Path) -> Self {
        let seen = match files::read(&RealDisk, path) {
            Ok(bytes) => serde_json::from_slice::<BTreeMap<String, Seen>>(&bytes).unwrap_or_else(|error| {
                log::warn!("{} cannot be read ({error}): which starts of peers were seen is forgotten", path.display());
                BTreeMap::new()
            }),
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    log::warn!("{}: {error}: which starts of peers were seen is forgotten", path.display());
                }
                BTreeMap::new()
            }
        };
        let seen = seen.into_iter().filter_map(|(node, seen)| Some((node.parse().ok()?, seen))).collect();
        Self { seen, suspects: BTreeMap::new() }
    }

    /// Judges a hello against what was seen and what the state knows.
    pub fn judge(&mut self, caller: &Caller, hello: &Hello, state: &State, lineage: Lineage) -> Verdict {
        let Some(node) = caller.node_id() else { return Verdict::Welcome };
        if hello.protocol != PROTOCOL {
            let message = format!("protocol {} is spoken here, and the peer speaks {}", PROTOCOL, hello.protocol);
            return refused(Code::FailedPrecondition, message, "run versions of skep that are next to each other");
        }
        if state.is_removed(node) {
            let hint = "to join again, start it on an empty data directory with a join token";
            return refused(Code::PermissionDenied, format!("node {node} {REMOVED}"), hint);
        }
        let Some(raft_id) = hello.raft_id else { return Verdict::Welcome };
        if hello.lineage != lineage {
            let hint = "it missed a recovery or a restore: start it on an empty data directory with a join token";
            return refused(Code::FailedPrecondition, format!("node {node} {FOREIGN}"), hint);
        }
        if state.is_removed_raft_id(raft_id) {
            let hint = "to join again, start it on an empty data directory with a join token";
            return refused(Code::PermissionDenied, format!("node {node} {REMOVED}"), hint);
        }
        if let Some(member) = state.members().get(&raft_id)
            && member.node_id != node
        {
            let message = format!("raft id {raft_id} belongs to node {}, not to {node}", member.node_id);
            return refused(Code::PermissionDenied, message, "");
        }
        if planted(Fault::RolledBackWelcome) {
            return Verdict::Welcome;
        }
        let floor = state.floors().get(&raft_id).copied().unwrap_or_default();
        if hello.last.index < floor {
            return self.below_floor(node, hello, floor);
        }
        self.judge_start(node, hello)
    }

    fn below_floor(&mut self, node: NodeId, hello: &Hello, floor: Index) -> Verdict {
        let process = (node, hello.boot, hello.nonce);
        let last = hello.last.index;
        match self.suspects.get(&process) {
            Some(first) if last < *first => {
                let message =
                    format!("node {node} {ROLLED_BACK}: its log ends at {last}, and it had acknowledged {first}");
                refused(Code::FailedPrecondition, message, ROLLED_BACK_HINT)
            }
            _ => {
                if self.suspects.len() >= MAX_SUSPECTS {
                    self.suspects.pop_first();
                }
                self.suspects.insert(process, floor);
                let message =
                    format!("the log of node {node} ended at {last} when it said so, and should reach {floor}");
                refused(Code::Unavailable, message, "it connects again by itself")
            }
        }
    }

    fn judge_start(&mut self, node: NodeId, hello: &Hello) -> Verdict {
        let new = Seen { boot: hello.boot, nonce: hello.nonce };
        match self.seen.get(&node) {
            Some(seen) if hello.boot < seen.boot => {
                let message = format!(
                    "node {node} {ROLLED_BACK}: this is its start {}, and start {} was seen before",
                    hello.boot, seen.boot
                );
                refused(Code::FailedPrecondition, message, ROLLED_BACK_HINT)
            }
            Some(seen) if hello.boot == seen.boot && hello.nonce != seen.nonce => {
                let message =
                    format!("node {node} {ROLLED_BACK} or runs twice: two processes claim its start {}", hello.boot);
                refused(Code::FailedPrecondition, message, ROLLED_BACK_HINT)
            }
            Some(seen) if *seen == new => Verdict::Welcome,
            _ => {
                self.seen.insert(node, new);
                let seen: BTreeMap<String, Seen> =
                    self.seen.iter().map(|(node, seen)| (node.to_string(), *seen)).collect();
                Verdict::WelcomeNew(serde_json::to_vec_pretty(&seen).expect("plain data"))
            }
        }
    }

    /// What being turned away for this reason means for the node that was.
    pub fn meaning(status: &Status) -> Option<Stopped> {
        if status.code == Code::PermissionDenied && status.message.ends_with(REMOVED) {
            return Some(Stopped::Removed);
        }
        let fenced = status.code == Code::FailedPrecondition
            && (status.message.contains(ROLLED_BACK) || status.message.contains(FOREIGN));
        fenced.then(|| Stopped::Fenced(status.message.clone()))
    }
}

const ROLLED_BACK_HINT: &str = "move its data directory away and start it on an empty one with --join and a token";

fn refused(code: Code, message: String, hint: &str) -> Verdict {
    Verdict::Refused(Status::new(code, message).with_hint(hint))
}
