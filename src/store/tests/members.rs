//! Who is in the Raft group.

use super::*;
use crate::types::log::Configuration;
use crate::types::object::Node;

fn add(raft_id: u64, node_id: u128) -> MemberChange {
    MemberChange::AddLearner { raft_id: RaftId(raft_id), node_id: NodeId(node_id), addr: format!("10.0.0.{node_id}:1") }
}

fn promote(raft_id: u64) -> MemberChange {
    MemberChange::Promote { raft_id: RaftId(raft_id) }
}

fn remove(raft_id: u64) -> MemberChange {
    MemberChange::Remove { raft_id: RaftId(raft_id) }
}

/// Applies the steps in order, each with whether it must be accepted; a refused one must change nothing.
fn check(steps: &[(MemberChange, bool)]) -> State {
    let mut state = Log::new().state;
    for (number, (change, expected)) in steps.iter().enumerate() {
        let before = state.hash();
        assert_eq!(state.apply_member_change(change), *expected, "step {number}: {change:?}");
        assert_eq!(state.hash() != before, *expected, "step {number}: {change:?}");
        assert_eq!(state.hash(), state.recompute_hash());
    }
    state
}

#[test]
fn a_member_joins_as_a_learner_under_the_next_id_and_is_promoted_once() {
    let state = check(&[
        (add(3, 2), false),
        (add(1, 2), false),
        (add(2, 1), false),
        (promote(2), false),
        (add(2, 2), true),
        (add(2, 3), false),
        (add(3, 2), false),
        (promote(2), true),
        (promote(2), false),
        (promote(1), false),
        (add(3, 3), true),
    ]);
    let configuration = Configuration { voters: vec![RaftId(1), RaftId(2)], learners: vec![RaftId(3)] };
    assert_eq!((state.configuration(), state.next_raft_id()), (configuration, RaftId(4)));
    assert_eq!(state.member_of(NodeId(3)).unwrap().raft_id, RaftId(3));
}

#[test]
fn the_last_voter_stays() {
    check(&[
        (remove(9), false),
        (remove(1), false),
        (add(2, 2), true),
        (remove(1), false),
        (promote(2), true),
        (remove(1), true),
        (remove(1), false),
        (remove(2), false),
    ]);
}

#[test]
fn a_raft_id_is_never_used_again_and_a_removed_node_returns_only_while_its_object_exists() {
    let mut state =
        check(&[(add(2, 2), true), (promote(2), true), (remove(2), true), (add(2, 3), false), (add(3, 2), false)]);
    assert!(state.is_removed(NodeId(2)) && state.is_removed_raft_id(RaftId(2)));
    assert!(!state.is_removed(NodeId(3)) && !state.is_removed_raft_id(RaftId(3)));

    let node = Operation::Create(Node::new(NodeId(2), Role::Manager).into());
    let change = Change { id: ChangeId(1), after: Revision(0), time: Timestamp(0), term: None, operations: vec![node] };
    assert_eq!(state.apply_change(change, Term(1)).0, Outcome::Committed(Revision(1)));
    assert!(state.apply_member_change(&add(3, 2)));
    assert!(!state.is_removed(NodeId(2)) && state.is_removed_raft_id(RaftId(2)));
}

#[test]
fn an_address_is_noted_only_for_the_member_that_has_both_ids() {
    let mut state = check(&[(add(2, 2), true)]);
    for (raft_id, node_id, expected) in [(2, 3, false), (3, 2, false), (2, 2, true)] {
        assert_eq!(state.set_address(RaftId(raft_id), NodeId(node_id), "host:9"), expected);
        assert_eq!(state.members()[&RaftId(2)].addr == "host:9", expected);
    }
}

#[test]
fn a_floor_never_falls_and_goes_with_its_member() {
    let mut state = check(&[(add(2, 2), true)]);
    let floors = |state: &State| state.floors().iter().map(|(id, index)| (id.0, index.0)).collect::<Vec<_>>();
    let mark = state.mark(&[(RaftId(1), Index(10)), (RaftId(2), Index(5)), (RaftId(9), Index(5))]);
    assert_eq!((mark.index, mark.revision, mark.sum), (state.applied().index, state.revision(), state.hash()));
    assert_eq!(floors(&state), [(1, 10), (2, 5)]);
    state.mark(&[(RaftId(1), Index(0)), (RaftId(2), Index(7))]);
    assert_eq!(floors(&state), [(1, 10), (2, 7)]);
    state.apply_member_change(&remove(2));
    assert_eq!(floors(&state), [(1, 10)]);
}
