//! The service against a state that does what it asks, as raft and apply would.

use super::*;
use crate::store::State;
use crate::types::object::{IssuanceState, NodeState};
use crate::types::{Code, Lineage, MemberChange, Outcome, RaftId, Refusal, Revision, Standing, Status};

const HERE: NodeId = NodeId(1);

/// A swarm of managers 1 to `managers`, led by 1, and workers 11 to 10 + `workers`.
struct Swarm {
    state: State,
    roles: Roles,
    here: NodeId,
    reachable: Vec<NodeId>,
    now_ms: u64,
    changes: u128,
}

impl Swarm {
    fn new(managers: u64, workers: u64) -> Self {
        let state = State::bootstrap(Lineage(1), HERE, "m1:1");
        let reachable = (1..=managers).map(|id| NodeId(id.into())).collect();
        let roles = Roles::new(Term(1));
        let mut swarm = Self { state, roles, here: HERE, reachable, now_ms: 1000, changes: 0 };
        for raft_id in 2..=managers {
            swarm.join(raft_id);
        }
        let ids = (1..=managers).map(|id| (id, Role::Manager)).chain((11..11 + workers).map(|id| (id, Role::Worker)));
        for (id, role) in ids {
            let mut node = Node::new(NodeId(id.into()), role);
            (node.certificate.state, node.certificate.expires_at) = (IssuanceState::Issued, Timestamp(90_000));
            swarm.write(vec![Operation::Create(node.into())]);
        }
        swarm.write(vec![Operation::Create(cluster())]);
        swarm
    }

    fn join(&mut self, id: u64) {
        let (raft_id, addr) = (self.state.next_raft_id(), format!("m{id}:1"));
        let add = MemberChange::AddLearner { raft_id, node_id: NodeId(id.into()), addr };
        assert!(self.state.apply_member_change(&add));
        assert!(self.state.apply_member_change(&MemberChange::Promote { raft_id }));
    }

    fn write(&mut self, operations: Vec<Operation>) -> Outcome {
        self.changes += 1;
        let (id, after) = (ChangeId(self.changes), self.state.revision());
        let change = Change { id, after, time: Timestamp(self.now_ms), term: None, operations };
        self.state.apply_change(change, Term(1)).0
    }

    /// Changes what is asked of a node.
    fn ask(&mut self, id: u128, change: impl FnOnce(&mut Node)) {
        let mut node = node(&self.state, NodeId(id)).unwrap().clone();
        change(&mut node);
        assert!(matches!(self.write(vec![Operation::Update(node.into())]), Outcome::Committed(_)));
    }

    fn demote(&mut self, id: u128) {
        self.ask(id, |node| node.spec.desired_role = Role::Worker);
    }

    fn remove(&mut self, id: u128) {
        self.ask(id, |node| {
            (node.spec.desired_role, node.spec.membership) = (Role::Worker, MembershipState::Leaving);
        });
    }

    fn look(&mut self) -> Vec<Effect> {
        let event = Event::Look { state: &self.state, here: self.here, reachable: &self.reachable };
        self.roles.step(self.now_ms, event)
    }

    fn ended(&mut self, token: u64, result: Ended) {
        assert_eq!(self.roles.step(self.now_ms, Event::Outcome { token, result }), []);
    }

    /// Does what is asked until nothing more is: the names of the steps. A transfer moves leadership.
    fn settle(&mut self) -> Vec<String> {
        let mut steps = Vec::new();
        loop {
            let effects = self.look();
            if effects.is_empty() {
                return steps;
            }
            for effect in effects {
                steps.push(match effect {
                    Effect::Propose { token, change } => {
                        let name = shown(&change);
                        let outcome = self.state.apply_change(change, Term(1)).0;
                        let Outcome::Committed(revision) = outcome else { panic!("{name}: {outcome:?}") };
                        self.ended(token, Ended::Committed(revision));
                        name
                    }
                    Effect::RemoveMember { token, node_id } => {
                        assert_ne!(node_id, self.here, "a leader that is taken out goes on sending heartbeats");
                        let raft_id = self.state.member_of(node_id).unwrap().raft_id;
                        assert!(self.state.apply_member_change(&MemberChange::Remove { raft_id }));
                        self.ended(token, Ended::Done);
                        format!("take out {}", node_id.0)
                    }
                    Effect::Transfer { to, .. } => {
                        self.here = to;
                        self.roles = Roles::new(Term(1));
                        format!("transfer to {}", to.0)
                    }
                });
            }
            assert!(steps.len() < 100, "it never ends: {steps:?}");
        }
    }

    #[track_caller]
    fn settles(&mut self, expected: &[&str]) {
        assert_eq!(self.settle(), expected);
        // What is as it should be wakes nobody.
        assert_eq!(self.roles.next_deadline(), None);
    }

    fn phase(&self, id: u128) -> &'static str {
        let member = self.state.member_of(NodeId(id)).map(|member| (member.role, member.node_id == self.here));
        phase(node(&self.state, NodeId(id)).unwrap(), member)
    }
}

fn cluster() -> Object {
    crate::store::samples::cluster()
}

fn shown(change: &Change) -> String {
    let steps = change.operations.iter().map(|operation| match operation {
        Operation::Update(Object::Node(node)) => format!("{} is a {}", node.id.0, node.role.name()),
        Operation::Remove { id, .. } => format!("forget {}", { id.0 }),
        Operation::Revoke { node, until } => format!("revoke {} until {}", node.0, until.0),
        other => panic!("{other:?}"),
    });
    steps.collect::<Vec<_>>().join(", ")
}

#[test]
fn a_swarm_that_is_as_it_should_be_is_left_alone() {
    Swarm::new(3, 2).settles(&[]);
}

#[test]
fn a_promoted_worker_is_a_manager_at_once_and_waits_for_its_certificate() {
    let mut swarm = Swarm::new(1, 1);
    swarm.ask(11, |node| node.spec.desired_role = Role::Manager);
    assert_eq!(swarm.phase(11), "promoting: waiting for the leader");
    swarm.settles(&["11 is a manager"]);
    assert_eq!(swarm.phase(11), "promoting: waiting for its certificate");
    swarm.ask(11, |node| node.certificate.role = Role::Manager);
    assert_eq!(swarm.phase(11), "promoting: waiting for it to join the group");
    swarm.ask(11, |node| node.status.state = NodeState::Down);
    assert_eq!(swarm.phase(11), "not in the group: it was lost, or has to join anew");
    swarm.ask(11, |node| node.status.state = NodeState::Ready);
    let (raft_id, node_id, addr) = (RaftId(2), NodeId(11), "w:1".to_owned());
    assert!(swarm.state.apply_member_change(&MemberChange::AddLearner { raft_id, node_id, addr }));
    assert_eq!(swarm.phase(11), "promoting: catching up");
    assert!(swarm.state.apply_member_change(&MemberChange::Promote { raft_id }));
    assert_eq!(swarm.phase(11), "");
    swarm.settles(&[]);
}

#[test]
fn a_demoted_manager_leaves_the_group_before_its_role_changes() {
    let mut swarm = Swarm::new(3, 0);
    swarm.demote(2);
    assert_eq!(swarm.phase(2), "demoting: leaving the group");
    swarm.settles(&["take out 2", "2 is a worker"]);
    assert_eq!(swarm.phase(2), "demoting: waiting for its worker certificate");
    assert_eq!(node(&swarm.state, NodeId(2)).unwrap().manager_until, Timestamp(90_000));
    swarm.ask(2, |node| node.certificate.role = Role::Worker);
    assert_eq!(swarm.phase(2), "");
    assert_eq!(swarm.state.standing(NodeId(2)), Standing::Worker);
}

#[test]
fn a_leader_that_is_demoted_hands_over_to_one_that_stays_and_is_taken_out_by_it() {
    let mut swarm = Swarm::new(4, 0);
    for id in [1, 2] {
        swarm.demote(id);
    }
    assert_eq!(swarm.phase(1), "demoting: handing leadership over");
    swarm.settles(&["take out 2", "2 is a worker", "transfer to 3", "take out 1", "1 is a worker"]);
}

#[test]
fn a_removed_manager_leaves_the_group_then_its_object_goes_and_its_certificate_is_revoked() {
    let mut swarm = Swarm::new(3, 0);
    swarm.remove(3);
    assert_eq!(swarm.phase(3), "removing: leaving the group");
    swarm.settles(&["take out 3", "revoke 3 until 90000, forget 3"]);
    assert_eq!(swarm.state.standing(NodeId(3)), Standing::Removed);
    swarm.remove(1);
    swarm.settles(&["transfer to 2", "take out 1", "revoke 1 until 90000, forget 1"]);
    // Its successor is alone now, and stays.
    swarm.remove(2);
    assert_eq!(swarm.settle(), Vec::<String>::new());
    assert_eq!(swarm.phase(2), "removing: handing leadership over");
}

#[test]
fn a_member_whose_object_is_gone_is_taken_out() {
    let mut swarm = Swarm::new(3, 0);
    for id in [2, 1] {
        swarm.write(vec![Operation::Remove { kind: Kind::Node, id: NodeId(id).into(), version: None }]);
    }
    swarm.settles(&["take out 2", "transfer to 3", "take out 1"]);
}

#[test]
fn work_that_a_former_leader_left_is_found_at_the_beginning() {
    for (managers, left, rest) in
        [(3, 0, vec!["take out 2", "2 is a worker"]), (3, 1, vec!["2 is a worker"]), (3, 2, vec![])]
    {
        let mut swarm = Swarm::new(managers, 0);
        swarm.demote(2);
        for _ in 0..left {
            match swarm.look().remove(0) {
                Effect::Propose { change, .. } => drop(swarm.state.apply_change(change, Term(1))),
                Effect::RemoveMember { node_id, .. } => {
                    let raft_id = swarm.state.member_of(node_id).unwrap().raft_id;
                    assert!(swarm.state.apply_member_change(&MemberChange::Remove { raft_id }));
                }
                Effect::Transfer { .. } => panic!("it does not lead"),
            }
            swarm.roles = Roles::new(Term(2));
        }
        swarm.roles = Roles::new(Term(1));
        swarm.settles(&rest);
    }
}

#[test]
fn what_cannot_be_done_now_is_tried_again_after_a_pause_and_holds_nobody_else_up() {
    let mut swarm = Swarm::new(5, 1);
    for id in [2, 3] {
        swarm.demote(id);
    }
    let effects = swarm.look();
    let [Effect::RemoveMember { token, node_id: NodeId(2) }] = effects[..] else { panic!("{effects:?}") };
    assert_eq!(swarm.look(), [], "one at a time");
    let status = Status::new(Code::FailedPrecondition, "it would leave 1 reachable of 4 voters");
    swarm.ended(token, Ended::Declined(status.clone()));
    let notices = swarm.roles.notices(&swarm.state);
    assert!(matches!(&notices[..], [notice] if notice.ends_with(&status.message)), "{notices:?}");
    let effects = swarm.look();
    let [Effect::RemoveMember { token, node_id: NodeId(3) }] = effects[..] else { panic!("{effects:?}") };
    swarm.ended(token, Ended::Uncertain);
    assert_eq!((swarm.look(), swarm.roles.next_deadline()), (vec![], Some(1000 + RETRY_MS)));
    // What needs no one's leave goes on meanwhile.
    swarm.ask(11, |node| node.spec.desired_role = Role::Manager);
    assert_eq!(swarm.settle(), ["11 is a manager"]);
    swarm.now_ms += RETRY_MS;
    swarm.settles(&["take out 2", "2 is a worker", "take out 3", "3 is a worker"]);
    assert_eq!(swarm.roles.notices(&swarm.state), [""; 0]);
}

#[test]
fn a_clock_that_is_set_back_delays_nothing_by_more_than_the_pause() {
    let mut swarm = Swarm::new(2, 0);
    swarm.demote(1);
    swarm.reachable = vec![HERE];
    swarm.now_ms = 1_000_000;
    assert_eq!(swarm.look(), []);
    swarm.now_ms = 1000;
    swarm.look();
    assert_eq!(swarm.roles.next_deadline(), Some(1000 + RETRY_MS));
    swarm.reachable.push(NodeId(2));
    swarm.now_ms += RETRY_MS;
    swarm.settles(&["transfer to 2", "take out 1", "1 is a worker"]);
}

#[test]
fn a_node_that_changed_meanwhile_is_looked_at_again() {
    let mut swarm = Swarm::new(1, 1);
    swarm.ask(11, |node| node.spec.desired_role = Role::Manager);
    let Effect::Propose { token, change } = swarm.look().remove(0) else { panic!("a promotion is a change") };
    swarm.ask(11, |node| node.spec.desired_role = Role::Worker);
    let (outcome, _) = swarm.state.apply_change(change, Term(1));
    let Outcome::Refused(refusal @ Refusal::OutOfSequence { .. }) = outcome else { panic!("{outcome:?}") };
    swarm.ended(token, Ended::Refused(refusal));
    swarm.settles(&[]);
    assert_eq!(node(&swarm.state, NodeId(11)).unwrap().role, Role::Worker);
    assert!(swarm.state.revision() > Revision(0));
}

#[test]
fn a_founder_without_a_cluster_is_left_alone() {
    let mut swarm = Swarm::new(1, 0);
    swarm.state = State::bootstrap(Lineage(1), HERE, "m1:1");
    swarm.settles(&[]);
}
