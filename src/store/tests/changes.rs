//! What becomes of a change.

use super::*;
use crate::store::ResolveError;
use crate::types::change::InvalidChange;
use crate::types::object::Node;

fn check(steps: &[(Vec<Operation>, Outcome)]) {
    let mut log = Log::new();
    for (number, (operations, expected)) in steps.iter().enumerate() {
        let before = log.state.clone();
        let outcome = log.run(operations.clone());
        assert_eq!(outcome, *expected, "step {number}");
        let committed = matches!(outcome, Outcome::Committed(_));
        assert_eq!(log.state.revision().0 - before.revision().0, u64::from(committed), "step {number}");
    }
}

#[test]
fn every_refusal_has_its_case() {
    use Operation::{Create, Remove, Require, RequireNone, Update};
    let kind = Kind::Config;
    let (one, two) = (ObjectId(1), ObjectId(2));
    let committed = |revision| Outcome::Committed(Revision(revision));
    let refused = Outcome::Refused;
    let mut labelled = config(3, "labelled");
    if let Object::Config(config) = &mut labelled {
        config.spec.annotations.labels.insert("k".into(), "v".repeat(16 << 10));
    }
    check(&[
        (vec![], refused(Refusal::Invalid(InvalidChange::Empty))),
        (vec![Create(config(1, ""))], refused(Refusal::Invalid(InvalidChange::NameMissing))),
        (vec![Create(labelled)], refused(Refusal::Invalid(InvalidChange::LabelsTooLarge))),
        (vec![Create(config(1, "One"))], committed(1)),
        (vec![Create(config(1, "other"))], refused(Refusal::Exists { kind, id: one })),
        (vec![Create(config(2, "oNE"))], refused(Refusal::NameConflict { kind, holder: one })),
        (vec![Update(at(config(2, "two"), 1))], refused(Refusal::NotFound { kind, id: two })),
        (
            vec![Update(at(config(1, "one"), 0))],
            refused(Refusal::OutOfSequence { kind, id: one, found: Some(Revision(1)) }),
        ),
        (vec![Update(at(config(1, "uno"), 1))], committed(2)),
        (vec![Create(config(2, "one"))], committed(3)),
        (vec![Update(at(config(2, "UNO"), 3))], refused(Refusal::NameConflict { kind, holder: one })),
        (vec![Remove { kind, id: ObjectId(9), version: None }], refused(Refusal::NotFound { kind, id: ObjectId(9) })),
        (
            vec![Remove { kind, id: one, version: Some(Revision(1)) }],
            refused(Refusal::OutOfSequence { kind, id: one, found: Some(Revision(2)) }),
        ),
        (vec![Require { kind, id: one, expect: Expect::Present }], committed(4)),
        (vec![Require { kind, id: one, expect: Expect::Absent }], refused(Refusal::Exists { kind, id: one })),
        (
            vec![Require { kind, id: one, expect: Expect::Version(Revision(4)) }],
            refused(Refusal::OutOfSequence { kind, id: one, found: Some(Revision(2)) }),
        ),
        (
            vec![Require { kind, id: ObjectId(9), expect: Expect::Version(Revision(4)) }],
            refused(Refusal::OutOfSequence { kind, id: ObjectId(9), found: None }),
        ),
        (
            vec![Require { kind, id: ObjectId(9), expect: Expect::Present }],
            refused(Refusal::NotFound { kind, id: ObjectId(9) }),
        ),
        (
            vec![RequireNone { kind, any_of: vec![Selector::NamePrefix("U".into())] }],
            refused(Refusal::Referenced { kind, by: one }),
        ),
        (vec![RequireNone { kind, any_of: vec![Selector::Name("absent".into())] }], committed(5)),
        (vec![Remove { kind, id: one, version: Some(Revision(2)) }, Create(config(1, "one!"))], committed(6)),
    ]);
}

#[test]
fn a_change_is_carried_out_whole_or_not_at_all() {
    let mut log = Log::new();
    log.run(vec![Operation::Create(config(1, "one")), Operation::Create(config(2, "two"))]);
    let before = log.state.clone();
    let outcome = log.run(vec![
        Operation::Update(at(config(1, "first"), 1)),
        Operation::Remove { kind: Kind::Config, id: ObjectId(2), version: None },
        Operation::Create(config(2, "one")),
        Operation::Create(config(3, "three")),
        Operation::Create(config(4, "THREE")),
    ]);
    let holder = ObjectId(3);
    assert_eq!(outcome, Outcome::Refused(Refusal::NameConflict { kind: Kind::Config, holder }));
    assert_eq!(contents(&log.state), contents(&before));
    for (name, id) in [("one", 1), ("two", 2)] {
        assert_eq!(log.state.by_name(Kind::Config, name).unwrap().object.id(), ObjectId(id));
    }
    assert!(log.state.by_name(Kind::Config, "three").is_none());
    assert_eq!(log.state.bytes(Kind::Config), before.bytes(Kind::Config));
}

#[test]
fn operations_see_what_the_ones_before_them_did() {
    let mut log = Log::new();
    let (kind, id) = (Kind::Config, ObjectId(1));
    let outcome = log.run(vec![
        Operation::Create(config(1, "one")),
        Operation::Require { kind, id, expect: Expect::Version(Revision(1)) },
        Operation::Remove { kind, id, version: Some(Revision(1)) },
        Operation::RequireNone { kind, any_of: vec![Selector::All] },
        Operation::Create(config(2, "one")),
    ]);
    assert_eq!(outcome, Outcome::Committed(Revision(1)));
    assert_eq!(log.state.iter(kind).map(|stored| stored.object.id()).collect::<Vec<_>>(), [ObjectId(2)]);
}

#[test]
fn apply_writes_version_and_times() {
    let mut log = Log::new();
    let mut object = config(1, "one");
    *object.meta_mut() =
        crate::types::object::Meta { version: Revision(77), created_at: Timestamp(77), updated_at: Timestamp(77) };
    log.run(vec![Operation::Create(object)]);
    let created = *log.state.get(Kind::Config, ObjectId(1)).unwrap().object.meta();
    assert_eq!(
        (created.version, created.created_at, created.updated_at),
        (Revision(1), Timestamp(1000), Timestamp(1000))
    );
    log.run(vec![Operation::Update(at(config(1, "one"), 1))]);
    let updated = *log.state.get(Kind::Config, ObjectId(1)).unwrap().object.meta();
    assert_eq!(
        (updated.version, updated.created_at, updated.updated_at),
        (Revision(2), Timestamp(1000), Timestamp(2000))
    );
}

#[test]
fn a_repeated_change_gets_its_first_answer_before_any_other_check() {
    let mut log = Log::new();
    let create = log.change(vec![Operation::Create(config(1, "one"))]);
    let conflict = log.change(vec![Operation::Create(config(2, "ONE"))]);
    let committed = log.apply(&create);
    assert!(committed.1.is_some());
    let (refused, none) = log.apply(&conflict);
    assert!(none.is_none());
    log.run(vec![Operation::Remove { kind: Kind::Config, id: ObjectId(1), version: None }]);
    log.term = Term(9);
    for (change, first) in [(&create, &committed.0), (&conflict, &refused)] {
        let mut again = change.clone();
        again.term = Some(Term(1));
        let (outcome, events) = log.apply(&again);
        assert_eq!((&outcome, events.is_none()), (first, true));
        assert_eq!(log.state.remembered(change.id).as_ref(), Some(first));
    }
    assert_eq!(log.state.revision(), Revision(2));
}

#[test]
fn a_change_of_another_term_is_refused() {
    let mut log = Log::new();
    log.term = Term(5);
    let mut change = log.change(vec![Operation::Create(config(1, "one"))]);
    change.term = Some(Term(4));
    assert_eq!(log.apply(&change).0, Outcome::Refused(Refusal::TermChanged));
    let mut change = log.change(vec![Operation::Create(config(1, "one"))]);
    change.term = Some(Term(5));
    assert_eq!(log.apply(&change).0, Outcome::Committed(Revision(1)));
}

/// Applies scripts of commits (`c`) and refusals (`r`) to a ring of three records, then asks for the horizon.
fn check_horizon(script: &str, expected: Option<u64>) -> Log {
    let mut log = Log::with_ring(3);
    for (number, letter) in script.chars().enumerate() {
        let operations = match letter {
            'c' => vec![Operation::Create(config(number as u128 + 1, &format!("c{number}")))],
            _ => Vec::new(),
        };
        log.run(operations);
    }
    assert_eq!(log.state.horizon(), expected.map(Revision), "{script}");
    log
}

#[test]
fn the_horizon_is_where_the_last_forgotten_record_was_made() {
    check_horizon("", None);
    check_horizon("ccc", None);
    check_horizon("cccc", Some(0));
    check_horizon("ccccc", Some(1));
    check_horizon("rccc", Some(0));
    // Refusals made at the present revision would get the same answer again.
    check_horizon("rrrr", None);
    check_horizon("crrrr", Some(0));
    // The third record is a refusal at revision 2, which is not the present one any more.
    check_horizon("ccrccc", Some(2));
    check_horizon("ccrrrr", Some(1));
}

#[test]
fn a_change_from_beyond_the_horizon_is_never_applied() {
    let mut log = check_horizon("ccccc", Some(1));
    let revision = log.state.revision();
    for (after, expected) in [(0, Outcome::Forgotten), (1, Outcome::Forgotten), (2, Outcome::Committed(Revision(6)))] {
        let mut change = log.change(vec![Operation::Create(config(100, "late"))]);
        change.after = Revision(after);
        assert_eq!(log.apply(&change).0, expected, "after {after}");
        if expected == Outcome::Forgotten {
            assert_eq!(log.state.remembered(change.id), None);
            assert_eq!(log.state.revision(), revision);
        }
    }
}

#[test]
fn a_commit_that_many_refusals_pushed_out_is_not_applied_twice() {
    let mut log = Log::with_ring(3);
    let change = log.change(vec![Operation::Create(config(1, "one"))]);
    log.apply(&change);
    log.run(vec![Operation::Remove { kind: Kind::Config, id: ObjectId(1), version: None }]);
    for _ in 0..10 {
        log.run(Vec::new());
    }
    assert_eq!(log.state.remembered(change.id), None);
    assert_eq!(log.apply(&change).0, Outcome::Forgotten);
    // And the swarm goes on although the ring holds nothing but refusals.
    assert!(matches!(log.run(vec![Operation::Create(config(1, "one"))]), Outcome::Committed(_)));
}

#[test]
fn the_ring_holds_131072_commits_in_its_4_mib() {
    let mut log = Log::new();
    for number in 0..131_073_u64 {
        let change =
            log.change(vec![Operation::Require { kind: Kind::Config, id: ObjectId(1), expect: Expect::Absent }]);
        let (outcome, _) = log.state.apply_change(change, Term(1));
        assert_eq!(outcome, Outcome::Committed(Revision(number + 1)));
    }
    assert_eq!(log.state.remembered(ChangeId(1)), None);
    assert_eq!(log.state.remembered(ChangeId(2)), Some(Outcome::Committed(Revision(2))));
    assert_eq!(log.state.hash(), log.state.recompute_hash());
}

#[test]
fn a_clone_does_not_see_what_comes_later() {
    let mut log = Log::new();
    log.run(vec![Operation::Create(config(1, "one"))]);
    let clone = log.state.clone();
    let (hash, before) = (clone.hash(), contents(&clone));
    log.run(vec![Operation::Update(at(config(1, "uno"), 1)), Operation::Create(config(2, "two"))]);
    log.state.mark(&[(RaftId(1), Index(9))]);
    assert_eq!((clone.hash(), clone.recompute_hash(), contents(&clone)), (hash, hash, before));
    assert!(clone.by_name(Kind::Config, "uno").is_none() && clone.by_name(Kind::Config, "one").is_some());
}

#[test]
fn a_reference_is_an_id_a_name_or_a_beginning_of_an_id() {
    let mut log = Log::new();
    // Printed ids begin with 0000…, so that the third one's is its own beginning.
    let far = u128::MAX / 2;
    log.run(vec![
        Operation::Create(config(1, "one")),
        Operation::Create(config(2, "two")),
        Operation::Create(config(far, "far")),
        Operation::Create(config(4, &ObjectId(1).to_string())),
    ]);
    let check = |reference: &str, expected: Result<u128, ResolveError>| {
        let found = log.state.resolve(Kind::Config, reference).map(|stored| stored.object.id().0);
        assert_eq!(found, expected, "{reference:?}");
    };
    check("ONE", Ok(1));
    check("two", Ok(2));
    check(&ObjectId(1).to_string(), Ok(1));
    check(&ObjectId(far).to_string()[..3], Ok(far));
    check("0000", Err(ResolveError::Ambiguous(vec![ObjectId(1), ObjectId(2), ObjectId(4)])));
    for nothing in ["", "three", "zzzz", "one ", &ObjectId(3).to_string()] {
        check(nothing, Err(ResolveError::NotFound));
    }
}

#[test]
fn hosts_may_share_a_name_and_then_a_reference_to_it_is_ambiguous() {
    let mut log = Log::new();
    let node = |id| {
        let mut node = Node::new(NodeId(id), Role::Manager);
        node.description.hostname = "Host".to_owned();
        Operation::Create(node.into())
    };
    assert_eq!(log.run(vec![node(5), node(3)]), Outcome::Committed(Revision(1)));
    let both = Err(ResolveError::Ambiguous(vec![ObjectId(3), ObjectId(5)]));
    assert_eq!(log.state.resolve(Kind::Node, "host").map(|stored| stored.object.id()), both);
    log.run(vec![Operation::Remove { kind: Kind::Node, id: ObjectId(3), version: None }]);
    assert_eq!(log.state.resolve(Kind::Node, "HOST").map(|stored| stored.object.id()), Ok(ObjectId(5)));
}
