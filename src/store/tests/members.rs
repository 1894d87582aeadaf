//! Who is in the Raft group.

use super::*;
use crate::store::SnapshotEncoder;
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
fn a_raft_id_is_never_used_again_and_a_node_returns_under_another_unless_it_is_revoked() {
    let mut state = check(&[(add(2, 2), true), (promote(2), true), (remove(2), true), (add(2, 3), false)]);
    assert!(state.is_removed_raft_id(RaftId(2)));
    for (raft_id, expected) in [(0, false), (1, false), (2, true), (3, false)] {
        assert_eq!(state.is_removed_raft_id(RaftId(raft_id)), expected, "{raft_id}");
    }
    assert!(state.apply_member_change(&add(3, 2)));
    assert!(state.apply_member_change(&remove(3)));
    let revoke = vec![Operation::Revoke { node: NodeId(2), until: Timestamp(9) }];
    let change = Change { id: ChangeId(1), after: Revision(0), time: Timestamp(0), term: None, operations: revoke };
    assert_eq!(state.apply_change(change, Term(1)).0, Outcome::Committed(Revision(1)));
    assert!(!state.apply_member_change(&add(4, 2)) && state.apply_member_change(&add(4, 3)));
}

#[test]
fn what_a_node_may_act_as_is_what_its_object_says_and_a_revocation_outlives_it() {
    let mut log = Log::new();
    let (one, two) = (NodeId(1), NodeId(2));
    assert_eq!(log.state.standing(one), Standing::Unknown);
    log.run(vec![Operation::Create(Node::new(one, Role::Manager).into())]);
    log.run(vec![Operation::Create(Node::new(two, Role::Worker).into())]);
    assert_eq!((log.state.standing(one), log.state.standing(two)), (Standing::Manager, Standing::Worker));
    let until = Timestamp(u64::MAX);
    // Of a change that is refused nothing is left, whatever stood before the refusal.
    let refused = vec![Operation::Revoke { node: two, until }, Operation::Create(Node::new(one, Role::Worker).into())];
    assert!(matches!(log.run(refused), Outcome::Refused(Refusal::Exists { .. })));
    assert_eq!((log.state.standing(two), log.state.revocations()), (Standing::Worker, 0));
    let before = log.state.hash();
    let gone = vec![
        Operation::Revoke { node: one, until },
        Operation::Remove { kind: Kind::Node, id: one.into(), version: None },
    ];
    assert!(matches!(log.run(gone), Outcome::Committed(_)));
    assert_eq!((log.state.standing(one), log.state.revocations()), (Standing::Removed, 1));
    assert_ne!(log.state.hash(), before);
    assert_eq!(log.state.hash(), log.state.recompute_hash());
    // As a worker it leaves nothing behind.
    log.run(vec![Operation::Remove { kind: Kind::Node, id: two.into(), version: None }]);
    assert_eq!((log.state.standing(two), log.state.revocations()), (Standing::Unknown, 1));
}

/// The encoded size of everything.
fn snapshot_bytes(state: &State) -> usize {
    SnapshotEncoder::new(state.clone()).map(|chunk| chunk.unwrap().len()).sum()
}

/// Takes in a node and removes it again, so many times, at these intervals; the sizes of the snapshot after a warm-up and
/// at the end, and the most revocations there were.
fn churn(role: Role, rounds: u64, interval_ms: u64, validity_ms: u64) -> (usize, usize, usize) {
    let mut log = Log::with_ring(1000);
    let (mut early, mut most) = (0, 0);
    let mut time = Timestamp(0);
    let run = |log: &mut Log, operations: Vec<Operation>, time: Timestamp| {
        let change = Change { time, ..log.change(operations) };
        assert!(matches!(log.state.apply_change(change, Term(1)).0, Outcome::Committed(_)));
    };
    for round in 0..rounds {
        time.0 += interval_ms;
        let mut node = Node::new(NodeId(u128::from(round) + 100), role);
        node.certificate.expires_at = Timestamp(time.0 + validity_ms);
        let (id, revoked) = (node.id, node.revoked_until());
        run(&mut log, vec![Operation::Create(node.into())], time);
        if role == Role::Manager {
            let raft_id = log.state.next_raft_id();
            assert!(log.state.apply_member_change(&MemberChange::AddLearner {
                raft_id,
                node_id: id,
                addr: String::new()
            }));
            assert!(log.state.apply_member_change(&MemberChange::Remove { raft_id }));
        }
        let revoke = revoked.map(|until| Operation::Revoke { node: id, until });
        let remove = Operation::Remove { kind: Kind::Node, id: id.into(), version: None };
        run(&mut log, revoke.into_iter().chain([remove]).collect(), time);
        most = most.max(log.state.revocations());
        if round == rounds / 5 {
            early = snapshot_bytes(&log.state);
        }
    }
    assert_eq!((log.state.count(Kind::Node), log.state.members().len()), (0, 0));
    assert_eq!(log.state.hash(), log.state.recompute_hash());
    (early, snapshot_bytes(&log.state), most)
}

#[test]
fn a_hundred_thousand_workers_that_come_and_go_leave_nothing_behind() {
    let (early, late, revocations) = churn(Role::Worker, 100_000, 1000, 90 * 86_400_000);
    assert_eq!(revocations, 0);
    // Counters are written in few bytes while they are small.
    assert!(late <= early + 64, "{early} bytes after a fifth, {late} in the end");
}

#[test]
fn managers_that_come_and_go_leave_no_more_than_one_certificates_time_behind() {
    const HOUR_MS: u64 = 3_600_000;
    let (early, late, revocations) = churn(Role::Manager, 100_000, HOUR_MS, 90 * 24 * HOUR_MS);
    // 90 days and the week after, one an hour.
    assert_eq!(revocations, 97 * 24 + 1);
    assert!(late <= early + 64, "{early} bytes after a fifth, {late} in the end");
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
    let mark = state.mark(&[(RaftId(1), Index(10)), (RaftId(2), Index(5)), (RaftId(9), Index(5))]).unwrap();
    assert_eq!((mark.index, mark.revision, mark.sum), (state.applied().index, state.revision(), state.hash()));
    assert_eq!(floors(&state), [(1, 10), (2, 5)]);
    state.mark(&[(RaftId(1), Index(0)), (RaftId(2), Index(7))]);
    assert_eq!(floors(&state), [(1, 10), (2, 7)]);
    state.apply_member_change(&remove(2));
    assert_eq!(floors(&state), [(1, 10)]);
}
