//! The service that makes a node's role what was asked of it: promotion, demotion, removal.
//!
//! What is asked stands in the node's spec, what is so in its `role` and in the list of members. [`Roles`] is a leader's
//! service ([`crate::term`]) that closes the gap, a step at a time. Each step is complete in itself and leaves a state from
//! which the next leader goes on, so that there is nothing to resume but the state:
//!
//! | asked | found | done |
//! |---|---|---|
//! | manager | the role is worker | the role is set; the node gets a certificate and joins by itself |
//! | worker | the leader itself | leadership is handed to a manager that stays one |
//! | worker | a member of the Raft group | it is taken out, if those left have a reachable majority |
//! | worker | no member, the role is manager | the role is set, and the end of its manager's certificate noted |
//! | to leave | a member | as for a worker |
//! | to leave | no member | the node is removed, and its manager's certificate revoked, in one change |
//! | nothing: it is gone | a member | it is taken out |
//!
//! A manager that leaves by itself is marked as leaving by the very entry that takes it out, so that the last step follows
//! by itself.
//!
//! One member is taken out at a time, so that each is judged by what the one before left. What cannot be done now is tried
//! again every [`RETRY_MS`], and when anything changes. [`phase`] says for people where a node stands, and
//! [`Service::notices`] what holds it up, which only the leader knows.
//!
//! Not here: whether a demotion or removal may be asked for (`control`), certificates (`ca`), the quorum guard itself and
//! the order of membership changes (`raft`), and what the node does about it (`agent`).

use std::collections::{BTreeMap, BTreeSet};

use crate::codec::digest128;
use crate::store::State;
use crate::sys::faults::{Fault, planted};
use crate::term::{Effect, Ended, Event, Service};
use crate::types::object::{MembershipState, Node};
use crate::types::{Change, ChangeId, Kind, Member, MemberRole, NodeId, Object, Operation, Role, Term, Timestamp};

mod phase;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use phase::phase;

/// What cannot be done now is tried again after this, as swarmkit does.
pub const RETRY_MS: u64 = 5000;

/// The service, for one term.
#[derive(Debug)]
pub struct Roles {
    term: Term,
    /// What is under way: whom it concerns, by token.
    under_way: BTreeMap<u64, (NodeId, Step)>,
    /// What did not work, and when to try it again.
    held: BTreeMap<NodeId, Held>,
    next_token: u64,
}

#[derive(Debug)]
struct Held {
    until_ms: u64,
    why: String,
}

/// The next thing to do about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It acts in this role from now on.
    SetRole(Role),
    /// Take it out of the group.
    TakeOut,
    /// Hand leadership over: it leads, and is to be taken out.
    HandOver,
    /// Remove its object.
    Forget,
}

impl Roles {
    /// The service of `term`.
    pub const fn new(term: Term) -> Self {
        Self { term, under_way: BTreeMap::new(), held: BTreeMap::new(), next_token: 1 }
    }

    fn look(&mut self, now_ms: u64, state: &State, here: NodeId, reachable: &[NodeId]) -> Vec<Effect> {
        if state.cluster().is_none() {
            // The founder leads before its own node is in the store.
            return Vec::new();
        }
        let pending = pending(state, here);
        self.held.retain(|node, held| {
            // Never further away than a pause, also when the clock was set back.
            held.until_ms = held.until_ms.min(now_ms.saturating_add(RETRY_MS));
            pending.iter().any(|(pending, _)| pending == node)
        });
        let busy: BTreeSet<NodeId> = self.under_way.values().map(|(node, _)| *node).collect();
        let free = |roles: &Self, node: &NodeId| {
            !busy.contains(node) && roles.held.get(node).is_none_or(|held| held.until_ms <= now_ms)
        };
        let mut effects = Vec::new();
        let mut taking_out = self.under_way.values().any(|(_, step)| matches!(step, Step::TakeOut | Step::HandOver));
        for (node_id, step) in &pending {
            if !free(self, node_id) {
                continue;
            }
            match step {
                Step::TakeOut if !taking_out => {
                    let token = self.begin(*node_id, *step);
                    effects.push(Effect::RemoveMember { token, node_id: *node_id });
                    taking_out = true;
                }
                Step::SetRole(_) | Step::Forget => {
                    let Some(node) = node(state, *node_id) else { continue };
                    let token = self.begin(*node_id, *step);
                    effects.push(Effect::Propose { token, change: self.change(state, now_ms, node, *step) });
                }
                Step::TakeOut | Step::HandOver => {}
            }
        }
        // Whoever leads next begins with the rest; so first what needs no new leader.
        if pending.contains(&(here, Step::HandOver)) && !taking_out && free(self, &here) {
            match successor(state, here, reachable) {
                Some(to) => {
                    let token = self.begin(here, Step::HandOver);
                    effects.push(Effect::Transfer { token, to });
                }
                None => self.hold(now_ms, here, "no other manager that stays one can be reached".to_owned()),
            }
        }
        effects
    }

    fn begin(&mut self, node: NodeId, step: Step) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.under_way.insert(token, (node, step));
        token
    }

    fn change(&self, state: &State, now_ms: u64, node: &Node, step: Step) -> Change {
        let version = node.meta.version;
        let operations = match step {
            Step::Forget => {
                let remove = Operation::Remove { kind: Kind::Node, id: node.id.into(), version: Some(version) };
                let revoke = node.revoked_until().map(|until| Operation::Revoke { node: node.id, until });
                revoke.into_iter().chain([remove]).collect()
            }
            Step::SetRole(role) => {
                let manager_until = node.revoked_until().unwrap_or_default();
                let node = Node { role, manager_until, ..node.clone() };
                vec![Operation::Update(Object::Node(Box::new(node)))]
            }
            Step::TakeOut | Step::HandOver => Vec::new(),
        };
        // The same node at the same version is the same change, so that one whose outcome is not known is not made twice.
        let id = [&node.id.0.to_le_bytes()[..], &version.0.to_le_bytes(), &self.term.0.to_le_bytes()].concat();
        Change {
            id: ChangeId(digest128(&[b"role", &id])),
            after: state.revision(),
            time: Timestamp(now_ms),
            term: None,
            operations,
        }
    }

    fn hold(&mut self, now_ms: u64, node: NodeId, why: String) {
        if self.held.get(&node).is_none_or(|held| held.why != why) {
            log::info!("the role of node {node} cannot be changed yet: {why}");
        }
        self.held.insert(node, Held { until_ms: now_ms.saturating_add(RETRY_MS), why });
    }

    fn ended(&mut self, now_ms: u64, token: u64, result: Ended) {
        let Some((node, step)) = self.under_way.remove(&token) else { return };
        match result {
            Ended::Committed(_) | Ended::Done => {
                self.held.remove(&node);
                match step {
                    Step::SetRole(role) => log::info!("node {node} is a {} now", role.name()),
                    Step::TakeOut => log::info!("node {node} is no member of the managers' group any more"),
                    Step::Forget => log::info!("node {node} is removed"),
                    Step::HandOver => {}
                }
            }
            // It changed meanwhile, and that is a reason to look again; or the term is over.
            Ended::Refused(_) => {}
            Ended::Declined(status) => self.hold(now_ms, node, status.message),
            Ended::Uncertain => self.hold(now_ms, node, "it is not known whether the last step was done".to_owned()),
        }
    }
}

impl Service for Roles {
    fn name(&self) -> &'static str {
        "roles"
    }

    fn concerns(&self, kind: Kind) -> bool {
        matches!(kind, Kind::Node | Kind::Cluster)
    }

    fn step(&mut self, now_ms: u64, event: Event<'_>) -> Vec<Effect> {
        match event {
            Event::Look { state, here, reachable } => self.look(now_ms, state, here, reachable),
            Event::Outcome { token, result } => {
                self.ended(now_ms, token, result);
                Vec::new()
            }
        }
    }

    fn notices(&self, state: &State) -> Vec<String> {
        let notice = |(id, held): (&NodeId, &Held)| {
            let hostname =
                node(state, *id).map(|node| node.description.hostname.clone()).filter(|name| !name.is_empty());
            let name = hostname.unwrap_or_else(|| id.to_string());
            format!("the role of node {name} cannot be changed yet, and this is tried again: {}", held.why)
        };
        self.held.iter().map(notice).collect()
    }

    fn next_deadline(&self) -> Option<u64> {
        self.held.values().map(|held| held.until_ms).min()
    }
}

/// The next step of every node that is not as it should be, in order of their ids; those without an object come last.
fn pending(state: &State, here: NodeId) -> Vec<(NodeId, Step)> {
    let members: BTreeMap<NodeId, &Member> = state.members().values().map(|member| (member.node_id, member)).collect();
    let out = |node: NodeId| if node == here { Step::HandOver } else { Step::TakeOut };
    let mut pending = Vec::new();
    for stored in state.iter(Kind::Node) {
        let Object::Node(node) = &stored.object else { continue };
        let leaves = node.spec.membership == MembershipState::Leaving;
        let stays_manager = node.spec.desired_role == Role::Manager && !leaves;
        let step = match (stays_manager, node.role, members.contains_key(&node.id)) {
            (true, Role::Worker, _) => Step::SetRole(Role::Manager),
            (false, Role::Manager, true) if planted(Fault::WorkerWhileMember) => Step::SetRole(Role::Worker),
            (false, _, true) => out(node.id),
            (false, _, false) if leaves => Step::Forget,
            (false, Role::Manager, false) => Step::SetRole(Role::Worker),
            (true, Role::Manager, _) | (false, Role::Worker, false) => continue,
        };
        pending.push((node.id, step));
    }
    let gone = members.keys().filter(|node_id| node(state, **node_id).is_none());
    pending.extend(gone.map(|node_id| (*node_id, out(*node_id))));
    pending
}

/// Who should lead instead: a voter that can be reached and stays a manager.
fn successor(state: &State, here: NodeId, reachable: &[NodeId]) -> Option<NodeId> {
    let stays = |node_id: NodeId| {
        node(state, node_id).is_some_and(|node| {
            node.spec.desired_role == Role::Manager && node.spec.membership != MembershipState::Leaving
        })
    };
    let voters = state.members().values().filter(|member| member.role == MemberRole::Voter);
    voters.map(|member| member.node_id).find(|id| *id != here && reachable.contains(id) && stays(*id))
}

fn node(state: &State, node_id: NodeId) -> Option<&Node> {
    match &state.get(Kind::Node, node_id.into())?.object {
        Object::Node(node) => Some(node),
        _ => None,
    }
}
