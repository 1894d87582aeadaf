//! The gate and the janitor.

use super::*;
use crate::ca::gate::{MAX_MANAGERS_UNDER_WAY, MAX_UNDER_WAY};
use crate::ca::janitor::{CROWDED_JOIN_MS, ENDED_TOKEN_MS, SIGNED_JOIN_MS, WAITING_JOIN_MS};
use crate::term::{Effect, Ended, Event, Service};
use crate::types::MemberChange;
use crate::types::RaftId;

/// Lets a new janitor look until it has nothing more to do now; gives what it changed, and when it wants to look again.
fn clean(swarm: &mut Swarm, now_ms: u64) -> (usize, Option<u64>) {
    let mut janitor = Janitor::new(Box::new(SeededEntropy::new(now_ms)));
    let mut changed = 0;
    // Looks further apart than it bundles changes, by a clock that this test owns.
    for at_ms in (now_ms..).step_by(1000) {
        let effects = janitor.step(at_ms, Event::Look { state: &swarm.state, here: FIRST, reachable: &[FIRST] });
        if effects.is_empty() {
            break;
        }
        for effect in effects {
            let Effect::Propose { token, change } = effect else { panic!("{effect:?}") };
            let outcome = swarm.apply(&change);
            assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
            janitor.step(at_ms, Event::Outcome { token, result: Ended::Committed(swarm.state.revision()) });
            changed += 1;
        }
    }
    (changed, janitor.next_deadline())
}

#[test]
fn what_waited_for_a_broken_authority_is_signed_when_it_works_again() {
    let (mut swarm, _) = Swarm::founded();
    let key = swarm.break_ca();
    let joined = swarm.join(&request(&swarm.tokens().worker), 10).unwrap();
    swarm.set_node(FIRST, |node| {
        node.certificate.reported_issuer = "seen".to_owned();
        node.certificate.approved_until = Some(Timestamp(NOW_MS + 1));
    });
    let next = pki::generate_key(&mut SeededEntropy::new(50));
    let asked = IssueRequest { csr: pki::signing_request(&next).unwrap(), ..request("") };
    swarm.ask_as(&caller(FIRST, Role::Manager, false), &asked, 11, NOW_MS).unwrap();
    // The permission stays until it is used.
    assert_eq!(swarm.node(FIRST).certificate.approved_until, Some(Timestamp(NOW_MS + 1)));
    assert_eq!(clean(&mut swarm, NOW_MS).0, 0);

    swarm.set_cluster(|cluster| cluster.root_ca.key = key);
    assert_eq!(clean(&mut swarm, NOW_MS).0, 2);
    let (chain, role) = swarm.chain_of(joined);
    assert_eq!(role, Role::Worker);
    NodeIdentity::new(&chain, self::key()).unwrap().verify(&swarm.root_pem(), NOW_MS).unwrap();
    let identity = NodeIdentity::new(&swarm.chain_of(FIRST).0, next).unwrap();
    assert_eq!(identity.identity().node_id, FIRST);
    let certificate = swarm.node(FIRST).certificate;
    assert_eq!((certificate.reported_issuer.as_str(), certificate.approved_until), ("seen", None));
    assert_eq!(clean(&mut swarm, NOW_MS).0, 0);
}

#[test]
fn a_node_is_signed_once_a_person_accepts_it() {
    let (mut swarm, _) = Swarm::founded();
    swarm.set_cluster(|cluster| {
        cluster.spec.acceptance_policies = vec![AcceptancePolicy { role: Role::Worker, autoaccept: false }];
    });
    let id = swarm.join(&request(&swarm.tokens().worker), 10).unwrap();
    assert_eq!(clean(&mut swarm, NOW_MS).0, 0);
    swarm.set_node(id, |node| node.spec.membership = MembershipState::Accepted);
    assert_eq!(clean(&mut swarm, NOW_MS).0, 1);
    NodeIdentity::new(&swarm.chain_of(id).0, key()).unwrap();
}

#[test]
fn a_stored_request_that_cannot_be_read_fails_for_good() {
    let (mut swarm, _) = Swarm::founded();
    swarm.set_node(FIRST, |node| {
        node.certificate.state = IssuanceState::Renew;
        node.certificate.csr = "not a request".to_owned();
    });
    assert_eq!(clean(&mut swarm, NOW_MS).0, 1);
    check_refusal(status(&swarm.state, FIRST), Code::FailedPrecondition, "CSR Decode failed");
    // The next request of its node is taken like any other.
    swarm.ask_as(&caller(FIRST, Role::Manager, false), &request(""), 10, NOW_MS).unwrap();
    swarm.chain_of(FIRST);
}

#[test]
fn who_asked_and_never_came_is_forgotten() {
    let (mut swarm, _) = Swarm::founded();
    let tokens = swarm.tokens();
    let [silent, came, member] = [10, 11, 12].map(|change| swarm.join(&request(&tokens.manager), change).unwrap());
    swarm.set_node(came, |node| node.certificate.reported_issuer = node.certificate.issuer.clone());
    let addr = "10.0.0.2:4242".to_owned();
    assert!(swarm.state.apply_member_change(&MemberChange::AddLearner { raft_id: RaftId(2), node_id: member, addr }));
    swarm.break_ca();
    let waiting = swarm.join(&request(&tokens.worker), 13).unwrap();

    assert_eq!(clean(&mut swarm, NOW_MS + SIGNED_JOIN_MS - 1), (0, Some(NOW_MS + SIGNED_JOIN_MS)));
    let (changed, next) = clean(&mut swarm, NOW_MS + SIGNED_JOIN_MS);
    assert_eq!((changed, next), (1, Some(NOW_MS + WAITING_JOIN_MS)));
    let is_there = |swarm: &Swarm, id| node_of(&swarm.state, id).is_some();
    assert!(!is_there(&swarm, silent) && is_there(&swarm, came) && is_there(&swarm, member) && is_there(&swarm, FIRST));
    assert!(is_there(&swarm, waiting));
    // Its certificate is still in force: other managers must not take it for one that they do not know yet.
    assert!(swarm.state.is_revoked(silent));
    assert_eq!(clean(&mut swarm, NOW_MS + WAITING_JOIN_MS), (1, None));
    assert!(!is_there(&swarm, waiting) && !swarm.state.is_revoked(waiting));
}

#[test]
fn a_worker_that_never_came_needs_no_revocation() {
    let (mut swarm, _) = Swarm::founded();
    let id = swarm.join(&request(&swarm.tokens().worker), 10).unwrap();
    assert_eq!(clean(&mut swarm, NOW_MS + SIGNED_JOIN_MS).0, 1);
    assert!(node_of(&swarm.state, id).is_none() && !swarm.state.is_revoked(id));
}

#[test]
fn a_node_that_comes_while_it_is_being_forgotten_stays() {
    let (mut swarm, _) = Swarm::founded();
    let id = swarm.join(&request(&swarm.tokens().worker), 10).unwrap();
    let mut janitor = Janitor::new(Box::new(SeededEntropy::new(1)));
    let late_ms = NOW_MS + SIGNED_JOIN_MS;
    let look = |janitor: &mut Janitor, swarm: &Swarm, at_ms| {
        janitor.step(at_ms, Event::Look { state: &swarm.state, here: FIRST, reachable: &[FIRST] })
    };
    let effects = look(&mut janitor, &swarm, late_ms);
    let [Effect::Propose { token, change }] = effects.as_slice() else { panic!("{effects:?}") };
    // What is under way is not asked for again.
    assert_eq!(look(&mut janitor, &swarm, late_ms + 1000), []);
    swarm.set_node(id, |node| node.certificate.reported_issuer = "seen".to_owned());
    let outcome = swarm.apply(change);
    let Outcome::Refused(refused) = outcome else { panic!("{outcome:?}") };
    janitor.step(late_ms + 1000, Event::Outcome { token: *token, result: Ended::Refused(refused) });
    assert!(janitor.next_deadline().is_some());
    assert_eq!(look(&mut janitor, &swarm, late_ms + 10_000), []);
    assert_eq!(janitor.next_deadline(), None);
}

#[test]
fn many_changes_are_one_look_and_no_work_is_lost() {
    let (mut swarm, _) = Swarm::founded();
    for change in 10..110 {
        swarm.join(&request(&swarm.tokens().worker), change).unwrap();
    }
    let mut janitor = Janitor::new(Box::new(SeededEntropy::new(1)));
    let late_ms = NOW_MS + SIGNED_JOIN_MS;
    let look = |janitor: &mut Janitor, at_ms| {
        janitor.step(at_ms, Event::Look { state: &swarm.state, here: FIRST, reachable: &[] }).len()
    };
    let first = look(&mut janitor, late_ms);
    assert!((1..100).contains(&first), "{first}");
    assert_eq!(look(&mut janitor, late_ms + 1), 0);
    assert_eq!(janitor.next_deadline(), Some(late_ms + 500));
    // A clock that was set back does not silence it.
    assert_eq!(look(&mut janitor, late_ms - 1000), 0);
    assert_eq!(clean(&mut swarm, late_ms).0, 100);
}

#[test]
fn a_token_that_ended_is_removed_a_day_later() {
    let (mut swarm, _) = Swarm::founded();
    let (text, token) = swarm.make_token(Role::Worker, Some(NOW_MS + 1000), Some(1));
    let end_ms = NOW_MS + 1000 + ENDED_TOKEN_MS;
    assert_eq!(clean(&mut swarm, end_ms - 1), (0, Some(end_ms)));
    // Used up counts from its last use.
    let joined = swarm.join(&request(&text), 10).unwrap();
    swarm.set_node(joined, |node| node.certificate.reported_issuer = "seen".to_owned());
    assert_eq!(clean(&mut swarm, end_ms - 1001), (0, Some(end_ms - 1000)));
    assert!(swarm.token(token).is_some());
    assert_eq!(clean(&mut swarm, end_ms - 1000), (1, None));
    assert!(swarm.token(token).is_none());
}

#[test]
fn a_token_of_a_former_root_goes_and_one_without_end_stays() {
    let (mut swarm, _) = Swarm::founded();
    let (_, token) = swarm.make_token(Role::Worker, None, None);
    assert_eq!(clean(&mut swarm, NOW_MS + 1000 * ENDED_TOKEN_MS).0, 0);
    swarm.set_cluster(|cluster| cluster.root_ca.digest = "another".to_owned());
    assert_eq!(clean(&mut swarm, NOW_MS).0, 1);
    assert!(swarm.token(token).is_none());
}

#[test]
fn newcomers_are_let_in_at_a_bounded_rate() {
    let (swarm, _) = Swarm::founded();
    let mut gate = Gate::default();
    let mut let_in = |from_ms: u64, count: u64| {
        (0..count).filter(|_| gate.admit(&swarm.state, Role::Worker, from_ms).is_ok()).count()
    };
    assert_eq!(let_in(5_000_000, 600), 500);
    assert_eq!(let_in(5_000_010, 600), 0);
    assert_eq!(let_in(5_001_000, 600), 50);
    assert_eq!(let_in(5_001_000, 600), 0);
    let status = gate.admit(&swarm.state, Role::Worker, 5_001_001).unwrap_err();
    assert_eq!(status.code, Code::ResourceExhausted);
    assert!(status.code.is_transient());
}

#[test]
fn a_token_that_leaked_does_not_fill_the_store() {
    let (mut swarm, _) = Swarm::founded();
    let mut gate = Gate::default();
    let asked = request(&swarm.tokens().worker);
    // Copies of one certificate: signing thousands would only take time.
    let id = swarm.join(&asked, 1).unwrap();
    let node = swarm.node(id);
    let (mut let_in, mut now_ms) = (0, 1_000_000);
    let refusal = loop {
        now_ms += 100;
        match gate.admit(&swarm.state, Role::Worker, now_ms) {
            Ok(()) => {
                let copy = Node { id: NodeId(1 << 64 | let_in), ..node.clone() };
                swarm.write(vec![Operation::Create(copy.into())], NOW_MS);
                let_in += 1;
            }
            Err(status) => break status,
        }
        assert!(let_in < 10_000, "nothing stops it");
    };
    assert_eq!(usize::try_from(let_in).unwrap() + 1, MAX_UNDER_WAY);
    check_refusal(Err::<(), _>(refusal.clone()), Code::ResourceExhausted, "have not come");
    assert!(refusal.hint.contains("skep token rotate"));
    // As soon as some have come, others may.
    swarm.set_node(id, |node| node.certificate.reported_issuer = "seen".to_owned());
    gate.admit(&swarm.state, Role::Worker, now_ms + 1000).unwrap();
    assert_eq!(gate.admit(&swarm.state, Role::Worker, now_ms + 1000).unwrap_err().code, Code::ResourceExhausted);
}

#[test]
fn a_crowd_that_never_came_keeps_nobody_out_for_long_and_a_few_have_their_hour() {
    let check = |workers: u128, role: Role, left: usize| {
        let (mut swarm, _) = Swarm::founded();
        let tokens = swarm.tokens();
        let token = if role == Role::Worker { tokens.worker } else { tokens.manager };
        let node = swarm.join(&request(&token), 1).map(|id| swarm.node(id)).unwrap();
        for id in 1..workers {
            let copy = Node { id: NodeId(1 << 64 | id), ..node.clone() };
            swarm.write(vec![Operation::Create(copy.into())], NOW_MS);
        }
        assert_eq!(clean(&mut swarm, NOW_MS + CROWDED_JOIN_MS - 1).0, 0);
        clean(&mut swarm, NOW_MS + CROWDED_JOIN_MS);
        // The founder stays in any case.
        assert_eq!(swarm.state.count(Kind::Node) - 1, left, "of {workers}");
    };
    let half = MAX_UNDER_WAY / 2;
    check(half as u128 - 1, Role::Worker, half - 1);
    // No more than are needed to be no crowd any more, and what is under way with them.
    let (mut swarm, _) = Swarm::founded();
    let node = swarm.join(&request(&swarm.tokens().worker), 1).map(|id| swarm.node(id)).unwrap();
    for id in 1..MAX_UNDER_WAY as u128 {
        let copy = Node { id: NodeId(1 << 64 | id), ..node.clone() };
        swarm.write(vec![Operation::Create(copy.into())], NOW_MS);
    }
    clean(&mut swarm, NOW_MS + CROWDED_JOIN_MS);
    let left = swarm.state.count(Kind::Node) - 1;
    assert!((half - 40..half).contains(&left), "{left}");
    // A manager's certificate that is forgotten is remembered as revoked.
    check(half as u128 + 1, Role::Manager, half + 1);
}

#[test]
fn managers_that_never_come_keep_no_worker_out() {
    let (mut swarm, _) = Swarm::founded();
    let node = swarm.join(&request(&swarm.tokens().manager), 1).map(|id| swarm.node(id)).unwrap();
    for id in 1..MAX_MANAGERS_UNDER_WAY as u128 {
        let copy = Node { id: NodeId(1 << 64 | id), ..node.clone() };
        swarm.write(vec![Operation::Create(copy.into())], NOW_MS);
    }
    let mut gate = Gate::default();
    check_refusal(gate.admit(&swarm.state, Role::Manager, 1), Code::ResourceExhausted, "100 managers have asked");
    gate.admit(&swarm.state, Role::Worker, 1).unwrap();
}

#[test]
fn a_node_writes_of_itself_at_a_bounded_rate_and_holds_up_no_other() {
    let mut gate = Gate::default();
    let mut writes =
        |node: u128, now_ms: u64, count: u64| (0..count).filter(|_| gate.write(NodeId(node), now_ms).is_ok()).count();
    assert_eq!((writes(1, 5000, 100), writes(1, 5000, 1), writes(2, 5000, 5)), (30, 0, 5));
    assert_eq!((writes(1, 6999, 1), writes(1, 7000, 5)), (0, 1));
    // Nodes that have been quiet are forgotten, and one that was not is none of them.
    for node in 10..20_000 {
        assert_eq!(writes(node, 7000 + node as u64, 1), 1);
    }
    assert_eq!((writes(1, 27_000, 100), writes(1, 10_000_000, 100)), (10, 30));
    let remembered = gate.writers.len();
    assert!(remembered <= 4096 + 2000, "{remembered}");
    let refused = (0..100).find_map(|_| gate.write(NodeId(3), 10_000_000).err()).unwrap();
    assert!(refused.code.is_transient() && refused.hint.contains("skep node rm --force"), "{refused}");
}
