//! Who may take part: judges a manager's hello before anything else of its connection is looked at.
//!
//! A member that comes back with less log than it had acknowledged, or a second process from a copied directory, would
//! vote away what the others rely on. What can be noticed is: a boot counter that went back, the same boot with another
//! nonce, and a log that ends before a floor that a mark in the log recorded. What cannot: a directory rolled back by less
//! than the marks know while every other manager was down as well, or one that was started so often before it met anybody
//! that it counts more starts again than its peers have seen.
//!
//! A recovery or a restore begins a new history, and no member of another one may take part. Which of two is the later one
//! their revisions tell. A member of the former one that has no majority any more stops when it learns of the later one; a
//! majority goes on: a recovery on the wrong side of a cut must not end a healthy swarm.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::StartError;
use super::stop::Stopped;
use crate::store::{ERA, State};
use crate::sys::faults::{Fault, planted};
use crate::sys::files::{self, RealDisk};
use crate::types::api::{Hello, PROTOCOL};
use crate::types::object::MembershipState;
use crate::types::{Caller, Code, Index, Kind, Lineage, NodeId, Object, Revision, Role, Status};

/// The newest start seen of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    boot: u64,
    nonce: u64,
}

/// The format of `peers.json`.
const FORMAT: u32 = 1;

/// `peers.json`. Before format 1 the map of peers was all of it.
#[derive(Debug, Serialize, Deserialize)]
struct PeersFile {
    format: u32,
    /// The oldest format a reader must understand.
    min_reader: u32,
    peers: BTreeMap<String, Seen>,
}

impl PeersFile {
    fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let value: serde_json::Value = serde_json::from_slice(bytes)?;
        let Some(min_reader) = value.get("min_reader").and_then(serde_json::Value::as_u64) else {
            return Ok(Self { format: 0, min_reader: 0, peers: serde_json::from_value(value)? });
        };
        if min_reader > u64::from(FORMAT) {
            return Err(Unreadable::Newer(min_reader));
        }
        Ok(serde_json::from_value(value)?)
    }
}

/// Why a `peers.json` cannot be used.
#[derive(Debug)]
enum Unreadable {
    Newer(u64),
    Damaged(serde_json::Error),
}

impl From<serde_json::Error> for Unreadable {
    fn from(error: serde_json::Error) -> Self {
        Self::Damaged(error)
    }
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
const DEMOTED: &str = "was demoted to a worker";
const ROLLED_BACK: &str = "was rolled back";
const OUTLIVED: &str = "belongs to a former history of this swarm";
const FOREIGN: &str = "belongs to another history of this swarm";
/// Suspects remembered; each is a process of a member, so that there are few.
const MAX_SUSPECTS: usize = 64;

impl Greetings {
    /// What `peers.json` holds. A file that is missing or damaged forgets what was seen; the floors in the log remain.
    ///
    /// # Errors
    /// When a newer skep wrote it in a format that this one does not understand.
    pub fn load(path: &Path) -> Result<Self, StartError> {
        let forgotten = "which starts of peers were seen is forgotten";
        let peers = match files::read(&RealDisk, path) {
            Ok(bytes) => match PeersFile::decode(&bytes) {
                Ok(file) => file.peers,
                Err(Unreadable::Newer(min_reader)) => {
                    let what = format!("cannot read {}", path.display());
                    let why =
                        format!("it was written by a newer skep (format {min_reader}, this one reads up to {FORMAT})");
                    return Err(StartError::refused(what, why, "install the newer skep again"));
                }
                Err(Unreadable::Damaged(error)) => {
                    log::warn!("{} cannot be read ({error}): {forgotten}", path.display());
                    BTreeMap::new()
                }
            },
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    log::warn!("{}: {error}: {forgotten}", path.display());
                }
                BTreeMap::new()
            }
        };
        let seen = peers.into_iter().filter_map(|(node, seen)| Some((node.parse().ok()?, seen))).collect();
        Ok(Self { seen, suspects: BTreeMap::new() })
    }

    fn encode(&self) -> Vec<u8> {
        let peers = self.seen.iter().map(|(node, seen)| (node.to_string(), *seen)).collect();
        let file = PeersFile { format: FORMAT, min_reader: FORMAT, peers };
        serde_json::to_vec_pretty(&file).expect("plain data")
    }

    /// Judges a hello against what was seen and what the state knows.
    pub fn judge(&mut self, caller: &Caller, hello: &Hello, state: &State, lineage: Lineage) -> Verdict {
        let Some(node) = caller.node_id() else { return Verdict::Welcome };
        if hello.protocol != PROTOCOL {
            let message = format!("protocol {} is spoken here, and the peer speaks {}", PROTOCOL, hello.protocol);
            return refused(Code::FailedPrecondition, message, "run versions of skep that are next to each other");
        }
        if hello.raft_id.is_some() && hello.lineage != lineage {
            return foreign(node, hello, state.revision());
        }
        let hint = "to join again, start it on an empty data directory with a join token";
        if state.is_revoked(node) {
            return refused(Code::PermissionDenied, format!("node {node} {REMOVED}"), hint);
        }
        let Some(raft_id) = hello.raft_id else { return Verdict::Welcome };
        if state.is_removed_raft_id(raft_id) {
            if is_demoted(state, node) {
                return refused(Code::PermissionDenied, format!("node {node} {DEMOTED}"), "");
            }
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
        self.judge_start(node, hello, state)
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

    fn judge_start(&mut self, node: NodeId, hello: &Hello, state: &State) -> Verdict {
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
                // Those whom the swarm knows no more come under another id if they come again: the file must not grow for ever.
                let is_known = |id: NodeId| state.member_of(id).is_some() || state.get(Kind::Node, id.into()).is_some();
                self.seen.retain(|id, _| is_known(*id));
                self.seen.insert(node, new);
                Verdict::WelcomeNew(self.encode())
            }
        }
    }

    /// What being turned away for this reason means for the node that was.
    pub fn meaning(status: &Status) -> Option<Stopped> {
        if status.code == Code::PermissionDenied && status.message.ends_with(REMOVED) {
            return Some(Stopped::Removed);
        }
        if status.code == Code::PermissionDenied && status.message.ends_with(DEMOTED) {
            return Some(Stopped::Demoted);
        }
        if status.code != Code::FailedPrecondition {
            return None;
        }
        if status.message.contains(OUTLIVED) {
            return Some(Stopped::Outlived(status.message.clone()));
        }
        status.message.contains(ROLLED_BACK).then(|| Stopped::Fenced(status.message.clone()))
    }
}

/// Whether a node that is no member any more stays in the swarm as a worker.
pub fn is_demoted(state: &State, node: NodeId) -> bool {
    match state.get(Kind::Node, node.into()).map(|stored| &stored.object) {
        Some(Object::Node(node)) => {
            node.spec.desired_role == Role::Worker && node.spec.membership != MembershipState::Leaving
        }
        _ => false,
    }
}

/// Neither history takes a member of the other; only one of the former is told that it is over.
fn foreign(node: NodeId, hello: &Hello, ours: Revision) -> Verdict {
    // Who has joined and has no data yet shows nothing of its history's age.
    let has_data = hello.revision > Revision(0) || hello.last.index > Index(0);
    if has_data && hello.revision.0 / ERA < ours.0 / ERA {
        let hint = "a recovery or a restore has begun a new one: start it on an empty data directory with a join token";
        return refused(Code::FailedPrecondition, format!("node {node} {OUTLIVED}"), hint);
    }
    let hint = "compare `skep status` on both; keep one swarm, and join the others to it from empty data directories";
    refused(Code::FailedPrecondition, format!("node {node} {FOREIGN}"), hint)
}

const ROLLED_BACK_HINT: &str = "move its data directory away and start it on an empty one with --join and a token";

fn refused(code: Code, message: String, hint: &str) -> Verdict {
    Verdict::Refused(Status::new(code, message).with_hint(hint))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::types::api::FEATURE_LEVEL;
    use crate::types::{ClusterId, Position, RaftId, Role, Term};

    const HERE: NodeId = NodeId(1);
    const PEER: NodeId = NodeId(2);

    fn caller() -> Caller {
        Caller::Node { node_id: PEER, role: Role::Manager, cluster_id: ClusterId(1), expired: false }
    }

    fn hello(lineage: u128, revision: u64, raft_id: Option<u64>) -> Hello {
        Hello {
            protocol: PROTOCOL,
            cluster_id: ClusterId(1),
            node_id: PEER,
            raft_id: raft_id.map(RaftId),
            lineage: Lineage(lineage),
            boot: 1,
            nonce: 1,
            last: Position::default(),
            advertise: "b:1".to_owned(),
            feature_level: FEATURE_LEVEL,
            revision: Revision(revision),
        }
    }

    /// What a manager of the history 2, the second one, says to a peer, and what that means to the peer.
    fn check(hello: &Hello, said: &str, meaning: Option<Stopped>) {
        let state = State::bootstrap(Lineage(1), HERE, "a:1").begin_anew(Lineage(2), HERE, "a:1", Term(1), Revision(0));
        match Greetings::default().judge(&caller(), hello, &state, Lineage(2)) {
            Verdict::Refused(status) => {
                assert!(status.message.ends_with(said) && !said.is_empty(), "{status}");
                assert_eq!(Greetings::meaning(&status), meaning, "{status}");
            }
            verdict => assert_eq!(said, "", "{verdict:?}"),
        }
    }

    #[test]
    fn a_member_of_another_history_takes_no_part_and_only_a_former_one_is_over() {
        let outlived = Stopped::Outlived(format!("node {PEER} belongs to a former history of this swarm"));
        check(&hello(1, ERA - 1, Some(2)), "former history of this swarm", Some(outlived));
        check(&hello(3, ERA + 7, Some(2)), "another history of this swarm", None);
        check(&hello(3, 2 * ERA, Some(2)), "another history of this swarm", None);
        check(&hello(2, ERA, Some(3)), "", None);
        // One of a still later history has joined that, and has received nothing yet.
        check(&hello(3, 0, Some(9)), "another history of this swarm", None);
        let last = Position { term: Term(1), index: Index(4) };
        let outlived = Stopped::Outlived(format!("node {PEER} belongs to a former history of this swarm"));
        check(&Hello { last, ..hello(1, 0, Some(2)) }, "former history of this swarm", Some(outlived));
        // A newcomer has no history yet.
        check(&hello(0, 0, None), "", None);
    }

    #[test]
    fn a_member_that_a_recovery_dropped_is_told_of_the_new_history_first() {
        let before = {
            let mut state = State::bootstrap(Lineage(1), HERE, "a:1");
            state.advance(Position { term: Term(1), index: Index(2) });
            let change =
                crate::types::MemberChange::AddLearner { raft_id: RaftId(2), node_id: PEER, addr: "b:1".to_owned() };
            assert!(state.apply_member_change(&change));
            state
        };
        let state = before.begin_anew(Lineage(2), HERE, "a:1", Term(1), Revision(0));
        let say = |hello: &Hello| match Greetings::default().judge(&caller(), hello, &state, Lineage(2)) {
            Verdict::Refused(status) => Greetings::meaning(&status),
            _ => None,
        };
        assert!(matches!(say(&hello(1, 5, Some(2))), Some(Stopped::Outlived(_))));
        // Its certificate is still good, and the place that it had gives it none under the new history.
        assert_eq!(say(&hello(2, ERA, Some(2))), Some(Stopped::Removed));
        // As a node without a place it may ask for one, and is heard if the new history has it.
        assert_eq!(say(&hello(0, 0, None)), None);
    }

    fn load(text: &str) -> Result<Greetings, StartError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers.json");
        std::fs::write(&path, text).unwrap();
        Greetings::load(&path)
    }

    fn seen(text: &str) -> Vec<(u128, u64, u64)> {
        load(text).unwrap().seen.into_iter().map(|(node, seen)| (node.0, seen.boot, seen.nonce)).collect()
    }

    #[test]
    fn what_was_seen_of_nodes_that_are_gone_is_forgotten() {
        let mut state = State::bootstrap(Lineage(1), HERE, "a:1");
        for (raft_id, node) in [(RaftId(2), PEER), (RaftId(3), NodeId(8))] {
            let change = crate::types::MemberChange::AddLearner { raft_id, node_id: node, addr: format!("{node}:1") };
            assert!(state.apply_member_change(&change));
        }
        let mut greetings = Greetings::default();
        let mut greet = |state: &State, node_id: NodeId, raft_id: u64| {
            let caller = Caller::Node { node_id, role: Role::Manager, cluster_id: ClusterId(5), expired: false };
            let hello = Hello { node_id, boot: 1, raft_id: Some(RaftId(raft_id)), ..hello(1, 0, Some(raft_id)) };
            let verdict = greetings.judge(&caller, &hello, state, Lineage(1));
            assert!(matches!(verdict, Verdict::WelcomeNew(_)), "{verdict:?}");
            greetings.seen.keys().copied().collect::<Vec<_>>()
        };
        assert_eq!(greet(&state, PEER, 2), [PEER]);
        let mut both = vec![PEER, NodeId(8)];
        both.sort();
        assert_eq!(greet(&state, NodeId(8), 3), both);
        assert!(state.apply_member_change(&crate::types::MemberChange::Remove { raft_id: RaftId(2) }));
        let add =
            crate::types::MemberChange::AddLearner { raft_id: RaftId(4), node_id: NodeId(9), addr: "c:1".to_owned() };
        assert!(state.apply_member_change(&add));
        assert_eq!(greet(&state, NodeId(9), 4), [NodeId(8), NodeId(9)]);
    }

    #[test]
    fn what_was_seen_of_peers_is_read_back_in_this_format_and_in_the_one_before_it() {
        let seven = NodeId(7).to_string();
        let greetings = Greetings { seen: [(NodeId(7), Seen { boot: 3, nonce: 9 })].into(), ..Greetings::default() };
        let text = String::from_utf8(greetings.encode()).unwrap();
        assert!(text.contains("\"format\": 1") && text.contains("\"min_reader\": 1"), "{text}");
        assert_eq!(seen(&text), [(7, 3, 9)]);
        assert_eq!(seen(&format!("{{\"{seven}\": {{\"boot\": 3, \"nonce\": 9}}}}")), [(7, 3, 9)]);
        assert_eq!(seen("{}"), []);
        // A later format that this reader still understands, with something more in it.
        let later = format!(
            "{{\"format\": 2, \"min_reader\": 1, \"more\": 5, \"peers\": {{\"{seven}\": {{\"boot\": 3, \"nonce\": 9}}}}}}"
        );
        assert_eq!(seen(&later), [(7, 3, 9)]);
    }

    #[test]
    fn a_peers_file_of_the_future_is_refused_and_a_damaged_one_forgotten() {
        let error = load("{\"format\": 9, \"min_reader\": 9, \"peers\": []}").unwrap_err();
        assert!(error.why.contains("newer skep (format 9"), "{error}");
        assert!(!error.hint.is_empty());
        for damaged in ["", "[]", "{\"x", "{\"min_reader\": 1}"] {
            assert_eq!(seen(damaged), [], "{damaged}");
        }
    }
}
