//! What may be asked of a node: its role, its availability, its labels, and that it goes.
//!
//! A request only writes down what is wanted; the leader's services make it so. Here is decided what must not be wanted:
//! a swarm without a manager, or without a reachable majority.

use std::collections::BTreeMap;

use crate::store::{State, Stored};
use crate::types::error::{Code, Status};
use crate::types::object::{Availability, MembershipState, Node, NodeState};
use crate::types::{Expect, Kind, Member, MemberRole, NodeId, Object, Operation, Role};

use super::write::No;
use super::{refusal, validate};

/// What a person asks of a node; `None` leaves it.
pub(super) struct Wanted<'a> {
    pub role: Option<Role>,
    pub availability: Option<Availability>,
    pub set: &'a BTreeMap<String, String>,
    pub remove: &'a [String],
}

pub(super) fn update(
    state: &State,
    stored: &Stored,
    wanted: &Wanted<'_>,
    reachable: &[NodeId],
) -> Result<Vec<Operation>, No> {
    let Wanted { role, availability, set, remove } = *wanted;
    if role.is_none() && availability.is_none() && set.is_empty() && remove.is_empty() {
        let status = Status::new(Code::InvalidArgument, "nothing is named, so nothing would change");
        return Err(No::Never(status.with_hint("`skep node update --help` lists what can be changed")));
    }
    let mut node = of(stored)?.clone();
    let name = refusal::name(state, Kind::Node, node.id.into());
    if node.spec.membership == MembershipState::Leaving {
        let status = Status::new(Code::FailedPrecondition, format!("node {name} is being removed"));
        return Err(No::Now(status.with_hint(format!("`skep node inspect {name}` shows how far that is"))));
    }
    let mut operations = Vec::new();
    if role == Some(Role::Worker) && node.spec.desired_role == Role::Manager {
        operations.extend(guard(state, &node, "demote", reachable)?);
    }
    node.spec.desired_role = role.unwrap_or(node.spec.desired_role);
    node.spec.availability = availability.unwrap_or(node.spec.availability);
    let labels = &mut node.spec.annotations.labels;
    labels.retain(|key, _| !remove.contains(key));
    labels.extend(set.iter().map(|(key, value)| (key.clone(), value.clone())));
    validate::attributes([&*labels]).map_err(No::Now)?;
    operations.push(Operation::Update(Object::Node(Box::new(node))));
    Ok(operations)
}

pub(super) fn remove(state: &State, stored: &Stored, force: bool, reachable: &[NodeId]) -> Result<Vec<Operation>, No> {
    let node = of(stored)?;
    let name = refusal::name(state, Kind::Node, node.id.into());
    let is_member = state.member_of(node.id).is_some();
    if !force && is_member {
        let message = format!(
            "node {name} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before \
             removal"
        );
        let hint =
            format!("`skep node demote {name}`, or `skep node rm --force {name}` does both, also when it is down");
        return Err(No::Now(Status::new(Code::FailedPrecondition, message).with_hint(hint)));
    }
    if !force && node.status.state == NodeState::Ready {
        let message = format!("node {name} is not down and can't be removed");
        let hint = format!("stop it first, or remove it as it is: `skep node rm --force {name}`");
        return Err(No::Now(Status::new(Code::FailedPrecondition, message).with_hint(hint)));
    }
    if !is_member {
        // Of this version: what is revoked is the certificate that this object knows of.
        let version = Some(node.meta.version);
        let revoke = node.revoked_until().map(|until| Operation::Revoke { node: node.id, until });
        let remove = Operation::Remove { kind: Kind::Node, id: node.id.into(), version };
        return Ok(revoke.into_iter().chain([remove]).collect());
    }
    let mut operations = Vec::new();
    if node.spec.desired_role == Role::Manager {
        operations.extend(guard(state, node, "remove", reachable)?);
    }
    let mut node = node.clone();
    (node.spec.desired_role, node.spec.membership) = (Role::Worker, MembershipState::Leaving);
    operations.push(Operation::Update(Object::Node(Box::new(node))));
    Ok(operations)
}

/// Whether the swarm can do without a manager, and what must still be so when the change is applied: that somebody who
/// stays was not asked to go meanwhile.
fn guard(state: &State, node: &Node, attempted: &str, reachable: &[NodeId]) -> Result<Option<Operation>, No> {
    let Some(Member { role: MemberRole::Voter, .. }) = state.member_of(node.id) else { return Ok(None) };
    let others = || state.members().values().filter(|m| m.role == MemberRole::Voter && m.node_id != node.id);
    let stays = |member: &Member| {
        let stored = state.get(Kind::Node, member.node_id.into())?;
        match &stored.object {
            Object::Node(node) if node.spec.desired_role == Role::Manager => Some(&node.meta),
            _ => None,
        }
    };
    let Some((witness, meta)) = others().find_map(|member| Some((member.node_id, stays(member)?))) else {
        let message = format!("attempting to {attempted} the last manager of the swarm");
        let hint =
            "promote another node first: `skep node promote NODE`, and wait until `skep members` shows it as a voter";
        return Err(No::Now(Status::new(Code::FailedPrecondition, message).with_hint(hint)));
    };
    let (left, up) = (others().count(), others().filter(|member| reachable.contains(&member.node_id)).count());
    let needed = left / 2 + 1;
    if up < needed {
        let message = format!(
            "can't remove member from the raft: this would result in a loss of quorum ({up} of the {left} other managers \
             can be reached, and {needed} are needed)"
        );
        let hint = "start the managers that are down first, or remove one of those instead: `skep members` shows which";
        return Err(No::Now(Status::new(Code::FailedPrecondition, message).with_hint(hint)));
    }
    let expect = Expect::Version(meta.version);
    Ok(Some(Operation::Require { kind: Kind::Node, id: witness.into(), expect }))
}

fn of(stored: &Stored) -> Result<&Node, No> {
    match &stored.object {
        Object::Node(node) => Ok(node),
        _ => Err(No::Never(Status::new(Code::Internal, "a node was looked up, and something else was found"))),
    }
}
