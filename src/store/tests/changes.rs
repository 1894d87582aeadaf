//! What becomes of a change.

use super::*;
use crate::types::change::InvalidChange;

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
