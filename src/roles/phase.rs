//! Where a node stands on its way from one role to another, in words.

use crate::types::object::{MembershipState, Node, NodeState};
use crate::types::{MemberRole, Role};

/// What the change of a node's role waits for, such as `promoting: catching up`; empty when it is what it should be.
/// `member`: whether it votes and whether it leads, if it is a member of the Raft group.
pub fn phase(node: &Node, member: Option<(MemberRole, bool)>) -> &'static str {
    let leaves = node.spec.membership == MembershipState::Leaving;
    match (leaves, node.spec.desired_role, node.role, member) {
        (true, _, _, Some((_, true))) => "removing: handing leadership over",
        (true, _, _, Some((_, false))) => "removing: leaving the group",
        (true, _, _, None) => "removing: waiting for the leader",
        (_, Role::Manager, Role::Worker, _) => "promoting: waiting for the leader",
        (_, Role::Manager, Role::Manager, Some((MemberRole::Voter, _))) => "",
        (_, Role::Manager, Role::Manager, Some((MemberRole::Learner, _))) => "promoting: catching up",
        (_, Role::Manager, Role::Manager, None) if node.certificate.role == Role::Worker => {
            "promoting: waiting for its certificate"
        }
        // A recovery or a restore began without it.
        (_, Role::Manager, Role::Manager, None) if node.status.state == NodeState::Down => {
            "not in the group: it was lost, or has to join anew"
        }
        (_, Role::Manager, Role::Manager, None) => "promoting: waiting for it to join the group",
        (_, Role::Worker, _, Some((_, true))) => "demoting: handing leadership over",
        (_, Role::Worker, _, Some((_, false))) => "demoting: leaving the group",
        (_, Role::Worker, Role::Manager, None) => "demoting: waiting for the leader",
        (_, Role::Worker, Role::Worker, None) if node.certificate.role == Role::Manager => {
            "demoting: waiting for its worker certificate"
        }
        (_, Role::Worker, Role::Worker, None) => "",
    }
}
