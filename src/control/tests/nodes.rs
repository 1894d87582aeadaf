//! What may be asked of a node, and what is said when it may not.

use super::*;
use crate::types::object::{Availability, IssuanceState, MembershipState, NodeState};

/// Managers 1 to `managers`, voters with nodes `m1` and so on, and the worker `w` with id 9; all can be reached.
fn swarm(managers: u64) -> Swarm {
    let mut swarm = Swarm::new();
    let nodes = (1..=managers).map(|id| (u128::from(id), format!("m{id}"), Role::Manager));
    let nodes: Vec<_> = nodes.chain([(9, "w".to_owned(), Role::Worker)]).collect();
    let creates = nodes.into_iter().map(|(id, name, role)| {
        let mut node = Node::new(NodeId(id), role);
        node.description.hostname = name;
        (node.certificate.state, node.certificate.expires_at) = (IssuanceState::Issued, Timestamp(NOW_MS + 1000));
        Operation::Create(node.into())
    });
    let operations = [Operation::Create(Object::Cluster(Box::new(cluster())))].into_iter().chain(creates).collect();
    assert!(matches!(swarm.apply(operations), Outcome::Committed(_)));
    swarm.control.store().write(|state| {
        for id in 2..=managers {
            let (raft_id, node_id) = (RaftId(id), NodeId(id.into()));
            let add = MemberChange::AddLearner { raft_id, node_id, addr: format!("m{id}:1") };
            assert!(state.apply_member_change(&add) && state.apply_member_change(&MemberChange::Promote { raft_id }));
        }
        ((), None)
    });
    swarm.reach(&(1..=managers).collect::<Vec<_>>());
    swarm
}

impl Swarm {
    fn reach(&mut self, nodes: &[u64]) {
        self.control.context.raft.reachable = nodes.iter().map(|id| NodeId((*id).into())).collect();
    }

    #[track_caller]
    fn check(&mut self, write: Write, expected: &str) {
        let result = self.write(write);
        let shown = verdict(&result);
        assert!(shown.starts_with(expected), "{shown}");
        if let Err(status) = result {
            assert!(!status.hint.is_empty(), "{status:?} does not say what to do");
        }
    }
}

fn role(node: &str, role: Role) -> Write {
    let (set, remove) = Default::default();
    Write::UpdateNode { node: node.to_owned(), role: Some(role), availability: None, set, remove, if_version: None }
}

fn demote(node: &str) -> Write {
    role(node, Role::Worker)
}

fn rm(node: &str, force: bool) -> Write {
    Write::RemoveNode { node: node.to_owned(), force }
}

const LAST: &str = "FailedPrecondition: attempting to demote the last manager of the swarm";
const QUORUM: &str = "FailedPrecondition: can't remove member from the raft: this would result in a loss of quorum";

#[test]
fn roles_labels_and_availability_are_written_down_as_wanted() {
    let mut swarm = swarm(1);
    swarm.check(role("w", Role::Manager), "ok");
    let node = swarm.node(9);
    assert_eq!((node.spec.desired_role, node.role), (Role::Manager, Role::Worker), "the leader does the rest");
    let update = |set: &[(&str, &str)], remove: &[&str], availability, if_version| Write::UpdateNode {
        node: "w".to_owned(),
        role: None,
        availability,
        set: set.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        remove: remove.iter().map(|key| (*key).to_owned()).collect(),
        if_version,
    };
    swarm.check(update(&[("a", "1"), ("b", "2")], &[], Some(Availability::Drain), None), "ok");
    swarm.check(update(&[("c", "3")], &["a"], None, None), "ok");
    let spec = swarm.node(9).spec;
    assert_eq!(spec.annotations.labels.into_iter().collect::<Vec<_>>().len(), 2);
    assert_eq!((spec.availability, spec.desired_role), (Availability::Drain, Role::Manager));
    swarm.check(update(&[], &[], None, None), "InvalidArgument: nothing is named");
    swarm.check(update(&[("a", "1")], &[], None, Some(Revision(1))), "Aborted: update out of sequence: node w");
    swarm.check(demote("nobody"), "NotFound: node nobody not found");
}

#[test]
fn a_swarm_keeps_a_manager_and_a_majority() {
    swarm(1).check(demote("m1"), LAST);
    swarm(1).check(rm("m1", true), "FailedPrecondition: attempting to remove the last manager of the swarm");
    // How many managers, who can be reached, who is demoted, and what becomes of it.
    for (managers, reachable, demoted, expected) in [
        (2, &[1, 2][..], "m2", "ok"),
        (3, &[1, 2, 3], "m1", "ok"),
        (3, &[1, 2], "m3", "ok"),
        (3, &[1, 2], "m2", QUORUM),
        (3, &[1, 2], "m1", QUORUM),
        (4, &[1, 2, 3], "m4", "ok"),
        (4, &[1, 2, 3], "m3", "ok"),
        (5, &[1, 2, 3], "m3", QUORUM),
        (5, &[1, 2, 3], "m5", "ok"),
    ] {
        let mut swarm = swarm(managers);
        swarm.reach(reachable);
        swarm.check(demote(demoted), expected);
        // What may not be demoted may not be removed by force either.
        if expected == QUORUM {
            swarm.check(rm(demoted, true), expected);
        }
    }
}

#[test]
fn the_last_two_managers_cannot_be_demoted_both_by_two_who_do_not_know_of_each_other() {
    let mut swarm = swarm(2);
    let requests = ["m1", "m2"].map(|node| swarm.request(demote(node)));
    let changes = requests.each_ref().map(|request| {
        match swarm.control.decide(&incoming(Call::Write, envelope::encode(request)), 0, true, NOW_MS) {
            Step::Propose(change) => change,
            other => panic!("{other:?}"),
        }
    });
    assert!(matches!(swarm.commit(&changes[0]), Outcome::Committed(_)));
    let outcome = swarm.commit(&changes[1]);
    assert!(matches!(outcome, Outcome::Refused(Refusal::OutOfSequence { .. })), "{outcome:?}");
    // Its caller hears why, by way of another attempt.
    let step =
        swarm.control.ended(&incoming(Call::Write, envelope::encode(&requests[1])), changes[1].written(), &outcome);
    assert!(matches!(step, Step::Rebuild), "{step:?}");
    assert!(verdict(&swarm.send(&requests[1])).starts_with(LAST));
}

#[test]
fn only_a_node_that_is_down_and_no_manager_is_removed_without_force() {
    let mut swarm = swarm(3);
    swarm.check(
        rm("m2", false),
        "FailedPrecondition: node m2 is a cluster manager and is a member of the raft cluster. It must be demoted to worker \
         before removal",
    );
    let mut ready = swarm.node(9);
    ready.status.state = NodeState::Ready;
    swarm.apply(vec![Operation::Update(ready.into())]);
    swarm.check(rm("w", false), "FailedPrecondition: node w is not down and can't be removed");
    swarm.check(rm("w", true), "ok");
    // A worker has nothing to revoke.
    assert_eq!(swarm.view(|state| (state.standing(NodeId(9)), state.revocations())), (Standing::Unknown, 0));
    swarm.check(rm("w", true), "NotFound: node w not found");
}

#[test]
fn a_manager_that_is_removed_leaves_the_group_first_and_one_that_was_none_yet_goes_at_once() {
    let mut swarm = swarm(3);
    swarm.check(rm("m3", true), "ok");
    let node = swarm.node(3);
    assert_eq!((node.spec.membership, node.spec.desired_role), (MembershipState::Leaving, Role::Worker));
    assert_eq!(swarm.view(|state| state.standing(NodeId(3))), Standing::Manager, "it votes until it is taken out");
    swarm.check(role("m3", Role::Manager), "FailedPrecondition: node m3 is being removed");
    // Asked again, it is the same.
    swarm.check(rm("m3", true), "ok");

    // Promoted, with a certificate, and it never joined.
    let mut promoted = swarm.node(9);
    promoted.spec.desired_role = Role::Manager;
    promoted.role = Role::Manager;
    promoted.certificate.role = Role::Manager;
    swarm.apply(vec![Operation::Update(promoted.into())]);
    swarm.check(rm("w", false), "ok");
    assert_eq!(swarm.view(|state| (state.standing(NodeId(9)), state.revocations())), (Standing::Removed, 1));
}
