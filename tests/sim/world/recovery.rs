//! Forced recovery: a swarm that lost its managers goes on from what one of them has.
//!
//! The former history ends where the recovery begins. Everything that was seen of it is judged then, what the heir held must
//! be in what it begins, and from there on the checkers follow the new history alone. What only the others held is lost, and
//! with it what a client was told of it: its changes may be made again. Clients go on with the versions that they know: one
//! that the former history told them is never that of something else.
//!
//! Former managers that come back go on among themselves, unobserved. No word of theirs reaches the new swarm, and they are
//! told that they were outlived and nothing worse: what they hold may be all that is left of what was lost.

use std::path::Path;
use std::sync::Arc;

use skep::node::rebuild::{self, Heir};
use skep::node::{NodeFile, Phase};
use skep::raft::recover::Snapshots;
use skep::store::State;
use skep::sys::entropy::{Entropy, SeededEntropy};
use skep::sys::files::{self, Disk};
use skep::types::object::Profile;
use skep::types::{Lineage, NodeId, Revision, Term};
use skep::wal;

use super::World;
use crate::failure::{ensure, fail};
use crate::history;
use crate::node::{Cause, DIR, Layout, Node, data_key};
use crate::serial::Raise;

const NODE_FILE: &str = "node.json";
/// Attempts that the power may cut off, one after the other.
const ATTEMPTS: u32 = 3;

impl World {
    /// All managers but `heir` are lost, and what that one has becomes a swarm of one manager; false, and nothing is done,
    /// when it has nothing that could.
    pub fn recover_one(&mut self, heir: NodeId) -> bool {
        if self.lost == Some(heir) || self.is_gone(heir) || self.nodes[&heir].corrupted {
            return false;
        }
        if self.is_running(heir) {
            self.end(heir);
        }
        let node = self.nodes.get_mut(&heir).expect("the node exists");
        (node.stalled, node.sync_us) = (false, (100, 1000));
        node.disk.limit(None);
        let (state, ..) = everything(node, &self.layout, node.lineage);
        if state.members().is_empty() {
            self.start(heir);
            return false;
        }
        for other in self.ids() {
            if other != heir && self.is_current(other) {
                if self.is_running(other) {
                    self.lose_power(other);
                }
                let node = self.nodes.get_mut(&other).expect("the node exists");
                node.image = None;
                if self.lost == Some(other) {
                    node.stopped = Some(Cause::Damaged("it had lost its data".to_owned()));
                }
            }
        }
        self.note(|_| format!("node {} begins a new history", heir.0));
        let (state, known) = self.rebuild(heir);
        self.succeed(heir, &state, Raise { after: known });
        self.start(heir);
        true
    }

    /// Former managers that can be started again, with all that they had.
    pub fn left_behind(&self) -> Vec<NodeId> {
        let may_return = |id: &NodeId| {
            let usable = matches!(self.stopped(*id), None | Some(Cause::Disk(_))) && !self.nodes[id].corrupted;
            !self.is_current(*id) && !self.is_running(*id) && usable
        };
        self.ids().into_iter().filter(may_return).collect()
    }

    /// Whether a manager belongs to the history that is checked, and not to one that a recovery ended.
    pub fn is_current(&self, id: NodeId) -> bool {
        self.nodes[&id].era == self.era
    }

    /// What `skep recover` does, again until it is done: the power may go at any moment.
    fn rebuild(&mut self, heir: NodeId) -> (State, Revision) {
        let layout = self.layout;
        let node = self.nodes.get_mut(&heir).expect("the node exists");
        let entropy = &mut self.entropy;
        let before = NodeFile {
            node_id: Some(heir),
            raft_id: Some(node.raft_id),
            lineage: Some(node.lineage),
            boot: node.boot,
            ..NodeFile::new(Phase::Member, Profile::Lan)
        };
        let disk: Arc<dyn Disk> = Arc::new(node.disk.clone());
        let encoded = serde_json::to_vec_pretty(&before).expect("plain data");
        files::replace(disk.as_ref(), Path::new(NODE_FILE), &encoded).expect("nothing is wrong with the disk");
        let mut known = Revision(0);
        for attempt in 1.. {
            // A power cut may take back a commit index that was not synced.
            known = everything(node, &layout, node.lineage).1;
            let dies = attempt < ATTEMPTS && entropy.below(2) == 0;
            if dies {
                node.disk.begin_to_die(entropy.below(30));
            }
            let done = recover(&disk, node, &layout, &before, entropy);
            if dies {
                node.disk.lose_power(entropy);
            } else if let Err(why) = &done {
                fail("history", format!("node {} cannot be recovered: {why}", heir.0));
            }
            let found = files::read(disk.as_ref(), Path::new(NODE_FILE)).expect("it is replaced, and never gone");
            let found: NodeFile = serde_json::from_slice(&found).expect("it is replaced as a whole");
            let finished = rebuild::finish(disk.as_ref(), Path::new(""), &found)
                .unwrap_or_else(|error| fail("history", format!("the rest of a recovery cannot be done: {error}")));
            let found = finished.unwrap_or(found);
            let raft_id = found.raft_id.expect("both files have one");
            if raft_id != node.raft_id {
                ensure!("raft id", raft_id > node.raft_id, "{raft_id} is given to who was {}", node.raft_id);
                (node.raft_id, node.lineage) = (raft_id, found.lineage.expect("both files have one"));
                break;
            }
        }
        (everything(node, &layout, node.lineage).0, known)
    }

    /// The history that was checked so far is over, and the one that begins with `state` is checked from now on.
    fn succeed(&mut self, heir: NodeId, state: &State, raise: Raise) {
        for (id, outcome) in &self.told {
            let found = self.serial.outcome_of(*id);
            ensure!("lost write", found == Some(outcome), "change {id} was answered {outcome:?} and is {found:?}");
        }
        self.check_watches();
        self.searched.add(history::check(&self.workload.groups, &self.history));
        let (applied, term, acknowledged) = self.promises.held(heir);
        let held = applied.max(self.serial.committed_in(acknowledged, term));
        let serial = self.serial.succeed(heir, state, held, raise, &self.issued);
        self.told.retain(|id, outcome| {
            *outcome = raise.outcome(outcome);
            serial.outcome_of(*id) == Some(outcome)
        });
        let acked = self.acked.len();
        self.acked.retain(|id, revision| {
            *revision = raise.revision(*revision);
            serial.outcome_of(*id) == Some(&skep::types::Outcome::Committed(*revision))
        });
        let lost = acked - self.acked.len();
        self.note(|_| format!("node {} held everything up to {held}; {lost} acknowledged changes are lost", heir.0));
        self.acked_and_lost += lost;
        self.serial = serial;
        self.promises.succeed(heir);
        self.era += 1;
        let node = self.nodes.get_mut(&heir).expect("the node exists");
        (node.era, node.image) = (self.era, None);
        let (raft_id, lineage) = (node.raft_id, node.lineage);
        self.raft_ids.retain(|given, _| *given < raft_id);
        self.raft_ids.insert(raft_id, heir);
        let former = std::mem::replace(&mut self.lineage, lineage);
        (self.lost, self.rolled_back) = (None, None);
        self.clients_succeed(state);
        self.watchers_succeed(former);
    }
}

/// The state that all of a manager's log leads to, the newest revision that is known to be committed, and the newest term
/// that it may have voted in.
fn everything(node: &Node, layout: &Layout, lineage: Lineage) -> (State, Revision, Term) {
    let key = skep::pki::Keyring::from(data_key());
    let options = wal::Options { segment_bytes: layout.segment_bytes, lineage };
    let read = || -> Result<_, skep::raft::recover::RecoverError> {
        let (reader, recovered) = wal::look(&node.disk, Path::new(DIR), &key, &options)?;
        let snapshots = Snapshots { disk: Arc::new(node.disk.clone()), dir: DIR.into(), keys: key.clone(), lineage };
        let (state, known) = rebuild::read_all(&reader, &recovered, &snapshots)?;
        Ok((state, known, recovered.hard_state.term))
    };
    read().unwrap_or_else(|error| fail("history", format!("the log of node {} cannot be read: {error}", node.id.0)))
}

/// One attempt.
fn recover(
    disk: &Arc<dyn Disk>,
    node: &Node,
    layout: &Layout,
    before: &NodeFile,
    entropy: &mut SeededEntropy,
) -> Result<(), String> {
    let (state, known, voted) = everything(node, layout, node.lineage);
    let lineage = Lineage(entropy.next_u128());
    let heir = Heir { node_id: node.id, addr: node.addr.clone(), node: None, voted, known };
    let (state, raft_id) = rebuild::succeed(state, lineage, heir, 1, entropy);
    let seed = std::sync::atomic::AtomicU64::new(entropy.next_u64());
    let random = || -> Box<dyn Entropy> {
        Box::new(SeededEntropy::new(seed.fetch_add(1, std::sync::atomic::Ordering::Relaxed)))
    };
    rebuild::write_next(disk, Path::new(""), &data_key().into(), &state, layout.segment_bytes, &random)
        .map_err(|error| error.to_string())?;
    let file = NodeFile {
        raft_id: Some(raft_id),
        lineage: Some(state.lineage()),
        parent_lineage: before.lineage,
        ..before.clone()
    };
    let aside = format!("raft.before-recover-{}", raft_id.0);
    rebuild::replace_log(disk.as_ref(), Path::new(""), &file, &aside).map_err(|error| error.to_string())
}
