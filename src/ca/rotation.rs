//! Moves every node to a new root certificate, and ends the rotation when all of them are there.
//!
//! `control` begins a rotation by writing the new root into the cluster object; from then on the authority signs with it.
//! [`Rotation`], a service of the leader, tells nodes to ask for a new certificate, a few at a time, so that a large swarm
//! is not all at the authority's door at once. A node has moved when it *says* that it uses a certificate of the new root:
//! that one was made proves nothing, its disk may be full. When every node has moved that the rotation waits for, the new
//! root becomes the swarm's, with join tokens made for it, in one change: until that moment every node is given the old root
//! to trust, and from then on only the new one.
//!
//! A rotation that is given another target midway goes on towards that: what nodes said of the former one no longer counts,
//! and a change that would have ended it is refused, because the cluster object is another by then.
//!
//! Not here: what may become a root (`control`), and making one (`client`).

use std::collections::{BTreeMap, BTreeSet};

use crate::codec::digest128;
use crate::pki;
use crate::store::State;
use crate::term::{Effect, Event, Service};
use crate::types::object::{Cluster, IssuanceState, Node, RootRotation, RotationProgress, Standing};
use crate::types::{Change, ChangeId, Kind, MemberRole, NodeId, Object, Operation, Timestamp};

/// The service. It keeps nothing that the store does not say, but when it last did what.
#[derive(Debug, Default)]
pub struct Rotation {
    /// No node is told before this, wall clock: [`BATCH_NODES`] were told [`BATCH_PAUSE_MS`] before.
    next_batch_ms: u64,
    /// Since when nodes have been seen with a new certificate that they do not say they use, or with a refusal.
    stuck: BTreeMap<NodeId, u64>,
    /// What was proposed and has not ended: a node, or with `None` the end.
    under_way: BTreeMap<u64, Option<NodeId>>,
    next_token: u64,
    next_look_ms: Option<u64>,
}

impl Service for Rotation {
    fn name(&self) -> &'static str {
        "rotation"
    }

    fn concerns(&self, kind: Kind) -> bool {
        matches!(kind, Kind::Node | Kind::Cluster)
    }

    fn step(&mut self, now_ms: u64, event: Event<'_>) -> Vec<Effect> {
        match event {
            Event::Look { state, .. } => self.look(now_ms, state),
            Event::Outcome { token, .. } => {
                // Whatever became of it, the store tells: what is still to be done is done at the next look.
                self.under_way.remove(&token);
                let soon = now_ms.saturating_add(RETRY_MS);
                self.next_look_ms = Some(self.next_look_ms.map_or(soon, |at| at.min(soon)));
                Vec::new()
            }
        }
    }

    fn next_deadline(&self) -> Option<u64> {
        self.next_look_ms
    }
}

impl Rotation {
    fn look(&mut self, now_ms: u64, state: &State) -> Vec<Effect> {
        self.next_look_ms = None;
        // A clock that was set back must not hold up the next batch for as long.
        self.next_batch_ms = self.next_batch_ms.min(now_ms.saturating_add(BATCH_PAUSE_MS));
        let rotating = state.cluster().and_then(|cluster| Some((cluster, cluster.root_ca.rotation.as_ref()?)));
        let Some((cluster, rotation)) = rotating else {
            self.stuck.clear();
            return Vec::new();
        };
        let progress = rotation.progress(nodes(state), &voters(state));
        if progress.waiting.is_empty() {
            return self.end(now_ms, state, cluster, rotation);
        }
        self.tell(now_ms, state, &progress)
    }

    /// Tells the next nodes to ask for a certificate.
    fn tell(&mut self, now_ms: u64, state: &State, progress: &RotationProgress) -> Vec<Effect> {
        let behind = || progress.waiting.iter().chain(&progress.skipped);
        let stuck_now: BTreeSet<NodeId> =
            behind().filter(|(_, standing)| is_stuck(*standing)).map(|(id, _)| *id).collect();
        self.stuck.retain(|id, since| {
            // The clock may have been set back.
            *since = (*since).min(now_ms);
            stuck_now.contains(id)
        });
        for id in stuck_now {
            self.stuck.entry(id).or_insert(now_ms);
        }
        let (mut effects, mut told) = (Vec::new(), 0);
        for (id, standing) in behind() {
            let due_ms = match standing {
                Standing::NotAsked => now_ms,
                standing if is_stuck(*standing) => {
                    self.stuck.get(id).map_or(now_ms, |since| since.saturating_add(STUCK_MS))
                }
                _ => continue,
            };
            if self.under_way.values().any(|node| *node == Some(*id)) {
                continue;
            }
            let due_ms = due_ms.max(self.next_batch_ms);
            if due_ms > now_ms || told == BATCH_NODES {
                let at = due_ms.max(if told > 0 { now_ms.saturating_add(BATCH_PAUSE_MS) } else { 0 });
                self.next_look_ms = Some(self.next_look_ms.map_or(at, |earlier| earlier.min(at)));
                continue;
            }
            let Some(node) = node(state, *id) else { continue };
            told += 1;
            self.stuck.remove(id);
            let mut node = node.clone();
            let version = node.meta.version;
            node.certificate.state = IssuanceState::Rotate;
            let change_id = change_id(state, &[b"node", &id.0.to_le_bytes(), &version.0.to_le_bytes()]);
            effects.push(self.propose(now_ms, state, change_id, Object::Node(Box::new(node)), Some(*id)));
        }
        if told > 0 {
            self.next_batch_ms = now_ms.saturating_add(BATCH_PAUSE_MS);
        }
        effects
    }

    /// Makes the new root the swarm's.
    fn end(&mut self, now_ms: u64, state: &State, cluster: &Cluster, rotation: &RootRotation) -> Vec<Effect> {
        if self.under_way.values().any(Option::is_none) {
            return Vec::new();
        }
        let mut ended = cluster.clone();
        let root_ca = &mut ended.root_ca;
        root_ca.digest = pki::root_digest(&rotation.certificate);
        root_ca.certificate.clone_from(&rotation.certificate);
        root_ca.key.clone_from(&rotation.key);
        root_ca.join_tokens.clone_from(&rotation.join_tokens);
        root_ca.rotation = None;
        let version = cluster.meta.version;
        let change_id = change_id(state, &[b"end", &version.0.to_le_bytes()]);
        vec![self.propose(now_ms, state, change_id, Object::Cluster(Box::new(ended)), None)]
    }

    fn propose(&mut self, now_ms: u64, state: &State, id: ChangeId, object: Object, node: Option<NodeId>) -> Effect {
        let token = self.next_token;
        self.next_token += 1;
        self.under_way.insert(token, node);
        let operations = vec![Operation::Update(object)];
        let change = Change { id, after: state.revision(), time: Timestamp(now_ms), term: None, operations };
        Effect::Propose { token, change }
    }
}

/// Nodes in these states were told, and nothing came of it: they are told again after a while.
const fn is_stuck(standing: Standing) -> bool {
    matches!(standing, Standing::Issued | Standing::Failed)
}

/// The same state gives the same id. The term is in it, because a change of a former leader under the same id may have been
/// refused for its term, and would be for ever.
fn change_id(state: &State, parts: &[&[u8]]) -> ChangeId {
    let term = state.applied().term.0.to_le_bytes();
    let all: Vec<&[u8]> = [b"rotation".as_slice(), &term].into_iter().chain(parts.iter().copied()).collect();
    ChangeId(digest128(&all))
}

fn nodes(state: &State) -> impl Iterator<Item = &Node> {
    state.iter(Kind::Node).filter_map(|stored| match &stored.object {
        Object::Node(node) => Some(&**node),
        _ => None,
    })
}

fn node(state: &State, id: NodeId) -> Option<&Node> {
    match &state.get(Kind::Node, id.into())?.object {
        Object::Node(node) => Some(node),
        _ => None,
    }
}

fn voters(state: &State) -> BTreeSet<NodeId> {
    let members = state.members().values();
    members.filter(|member| member.role == MemberRole::Voter).map(|member| member.node_id).collect()
}

/// Nodes that are told at once, and the pause after them: swarmkit's `IssuanceStateRotateMaxBatchSize` and its reconciler's
/// interval.
pub const BATCH_NODES: usize = 30;
/// Milliseconds.
pub const BATCH_PAUSE_MS: u64 = 3000;

/// A node with a certificate that it does not say it uses, or with a refusal, is told again after this: it may have lost the
/// one in a crash, and the other may have had a cause that has passed.
const STUCK_MS: u64 = 60_000;

/// After a change that may have been declined.
const RETRY_MS: u64 = 1000;

#[cfg(test)]
mod tests;
