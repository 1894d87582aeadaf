//! What may be written, and what a repeated or contended write is answered.

use super::*;
use crate::types::api::Autolock;
use crate::types::object::{SecretReference, Service};

/// Each write's verdict: `ok`, or how it is refused. The text given is the beginning of the whole.
fn check(swarm: &mut Swarm, script: Vec<(Write, &str)>) {
    for (number, (write, expected)) in script.into_iter().enumerate() {
        let shown = format!("{write:?}");
        let result = swarm.write(write);
        let found = verdict(&result);
        assert!(found.starts_with(expected) && !expected.is_empty(), "step {number}: {shown}: {found}");
        if let Err(status) = result {
            assert!(!status.message.contains("::") && !status.message.contains("Refusal"), "{status:?}");
        }
    }
}

fn service(id: u128, name: &str, secrets: &[ObjectId]) -> Object {
    let mut service = Service { id: ObjectId(id), ..Service::default() };
    service.spec.annotations.name = name.to_owned();
    let object::Runtime::Container(container) = &mut service.spec.task.runtime else { panic!() };
    container.secrets = secrets
        .iter()
        .map(|id| SecretReference { secret_id: *id, secret_name: "s".to_owned(), target: None })
        .collect();
    Object::Service(Box::new(service))
}

#[test]
fn configs_and_secrets_follow_their_rules() {
    let no_data = Write::CreateConfig { name: "empty".to_owned(), labels: BTreeMap::new(), data: Vec::new() };
    let labelled = |labels| Write::CreateConfig { name: "labelled".to_owned(), labels, data: vec![1] };
    check(
        &mut Swarm::new(),
        vec![
            (config("web"), "ok"),
            (config("WEB"), "AlreadyExists: config WEB already exists, with id "),
            (secret("web"), "ok"),
            (config("-web"), "InvalidArgument: invalid config name: only 64"),
            (secret(""), "InvalidArgument: secret name must be provided"),
            (no_data, "InvalidArgument: config data must be larger than 0 and less than 1024000 bytes"),
            (
                labelled(map(&[("k", &"v".repeat(20_000))])),
                "InvalidArgument: labels and indices of one object are limited",
            ),
            (labelled(map(&[("", "v")])), "InvalidArgument: a label needs a key"),
            (label(Kind::Config, "Web", &[("tier", "1")], None), "ok"),
            (label(Kind::Config, "web", &[("big", &"v".repeat(16_380))], None), "InvalidArgument: labels and indices"),
            (label(Kind::Secret, "gone", &[], None), "NotFound: could not find secret gone"),
            (label(Kind::Resource, "web", &[], None), "InvalidArgument: a resource cannot be changed by its labels"),
            (remove(Kind::Config, "web", None), "ok"),
            (remove(Kind::Config, "web", None), "NotFound: could not find config web"),
            (remove(Kind::Node, "web", None), "InvalidArgument: a node cannot be removed this way"),
            (remove(Kind::Secret, "", None), "NotFound: could not find secret"),
        ],
    );
}

#[test]
fn labels_are_set_and_removed() {
    let mut swarm = Swarm::new();
    let id = swarm.create_config("web");
    swarm.write(label(Kind::Config, "web", &[("a", "1"), ("b", "2")], None)).unwrap();
    let write = Write::UpdateLabels {
        kind: Kind::Config,
        object: id.to_string()[..12].to_owned(),
        set: map(&[("b", "3")]),
        remove: vec!["a".to_owned(), "absent".to_owned()],
        if_version: None,
    };
    assert_eq!(swarm.write(write), Ok((id, Revision(3))));
    let stored = swarm.view(|state| state.get(Kind::Config, id).unwrap().clone());
    assert_eq!(*stored.object.labels(), map(&[("b", "3")]));
    assert_eq!(stored.object.meta().updated_at, Timestamp(NOW_MS));
}

#[test]
fn extensions_and_resources_follow_their_rules() {
    let update = |object: &str, if_version: Option<u64>| Write::UpdateResource {
        object: object.to_owned(),
        payload: Some(Sensitive(b"new".to_vec())),
        labels: Some(map(&[("l", "1")])),
        indices: None,
        if_version: if_version.map(Revision),
    };
    let mut swarm = Swarm::new();
    check(
        &mut swarm,
        vec![
            (resource("soup", "dish"), "InvalidArgument: Kind dish is not registered"),
            (resource("soup", ""), "InvalidArgument: Resource must belong to an Extension"),
            (resource("", "dish"), "InvalidArgument: Resource must have a name"),
            (extension(""), "InvalidArgument: extension name must be provided"),
            (extension("dish"), "ok"),
            (extension("Dish"), "AlreadyExists: extension Dish already exists"),
            (resource("soup", "DISH"), "ok"),
            (resource("Soup", "dish"), "AlreadyExists: resource Soup already exists"),
            (update("soup", None), "ok"),
            (update("salad", None), "NotFound: resource salad not found"),
            (
                remove(Kind::Extension, "dish", None),
                "InvalidArgument: extension 'dish' is in use by the following resource(s): soup",
            ),
            (remove(Kind::Resource, "soup", None), "ok"),
            (remove(Kind::Extension, "dish", None), "ok"),
        ],
    );
}

#[test]
fn a_resource_keeps_what_an_update_does_not_name() {
    let mut swarm = Swarm::new();
    swarm.write(extension("dish")).unwrap();
    let create = Write::CreateResource {
        name: "soup".to_owned(),
        kind: "DISH".to_owned(),
        labels: map(&[("l", "1")]),
        indices: map(&[("i", "1")]),
        payload: b"old".to_vec(),
    };
    let (id, _) = swarm.write(create).unwrap();
    let write = Write::UpdateResource {
        object: "soup".to_owned(),
        payload: None,
        labels: Some(map(&[("l", "2")])),
        indices: None,
        if_version: None,
    };
    swarm.write(write).unwrap();
    let stored = swarm.view(|state| state.get(Kind::Resource, id).unwrap().clone());
    let Object::Resource(resource) = &stored.object else { panic!() };
    assert_eq!(resource.payload(), b"old");
    assert_eq!(resource.kind(), "dish", "the name as it was registered");
    assert_eq!((resource.labels(), resource.indices()), (&map(&[("l", "2")]), &map(&[("i", "1")])));
}

#[test]
fn a_removal_names_at_most_ten_users() {
    let mut swarm = Swarm::new();
    swarm.write(extension("dish")).unwrap();
    for number in 0..11 {
        swarm.write(resource(&format!("r{number}"), "dish")).unwrap();
    }
    let status = swarm.write(remove(Kind::Extension, "dish", None)).unwrap_err();
    assert_eq!(status.message.matches(", r").count(), 9, "{status}");
    assert!(status.message.ends_with(", and more"), "{status}");
    assert!(status.hint.contains("skep resource ls --filter kind=dish"), "{status:?}");
}

#[test]
fn what_a_service_uses_stays() {
    let mut swarm = Swarm::new();
    let (id, _) = swarm.write(secret("key")).unwrap();
    swarm.apply(vec![Operation::Create(service(1, "api", &[id])), Operation::Create(service(2, "web", &[id]))]);
    let expected = "InvalidArgument: secret 'key' is in use by the following service(s): api, web";
    check(&mut swarm, vec![(remove(Kind::Secret, "key", None), expected)]);
}

#[test]
fn what_must_hold_is_checked_again_when_the_change_is_applied() {
    // Each: what is there, the write, what another writer does between decision and log, and the verdict.
    type Race = (Vec<Write>, Write, fn(&Swarm) -> Vec<Operation>, &'static str);
    fn of(swarm: &Swarm, kind: Kind, name: &str) -> ObjectId {
        swarm.view(|state| state.by_name(kind, name).unwrap().object.id())
    }
    fn removes(swarm: &Swarm, kind: Kind, name: &str) -> Vec<Operation> {
        vec![Operation::Remove { kind, id: of(swarm, kind, name), version: None }]
    }
    let races: Vec<Race> = vec![
        (
            vec![extension("dish")],
            resource("soup", "dish"),
            |swarm| removes(swarm, Kind::Extension, "dish"),
            "InvalidArgument: Kind dish is not registered",
        ),
        (
            vec![extension("dish")],
            remove(Kind::Extension, "dish", None),
            |_| {
                let mut soup = object::Resource { id: ObjectId(9), kind: "dish".to_owned(), ..Default::default() };
                soup.annotations.name = "soup".to_owned();
                vec![Operation::Create(Object::from(soup))]
            },
            "InvalidArgument: extension 'dish' is in use by the following resource(s): soup",
        ),
        (
            vec![secret("key")],
            remove(Kind::Secret, "key", None),
            |swarm| vec![Operation::Create(service(1, "api", &[of(swarm, Kind::Secret, "key")]))],
            "InvalidArgument: secret 'key' is in use by the following service(s): api",
        ),
        (
            vec![],
            config("web"),
            |_| {
                let mut other = object::Config { id: ObjectId(9), ..Default::default() };
                other.spec.annotations.name = "Web".to_owned();
                vec![Operation::Create(Object::from(other))]
            },
            "AlreadyExists: config web already exists, with id 0000000000000000000000009",
        ),
        (
            vec![config("web")],
            label(Kind::Config, "web", &[("a", "1")], None),
            |swarm| removes(swarm, Kind::Config, "web"),
            "NotFound: could not find config web",
        ),
        (
            vec![config("web")],
            remove(Kind::Config, "web", None),
            |swarm| removes(swarm, Kind::Config, "web"),
            "NotFound: could not find config web",
        ),
        (
            vec![config("web")],
            label(Kind::Config, "web", &[("a", "1")], Some(1)),
            |swarm| {
                vec![Operation::Update(swarm.view(|state| state.by_name(Kind::Config, "web").unwrap().object.clone()))]
            },
            "Aborted: update out of sequence: config web is at version 2, not 1",
        ),
        (
            vec![config("web")],
            remove(Kind::Config, "web", Some(1)),
            |swarm| {
                vec![Operation::Update(swarm.view(|state| state.by_name(Kind::Config, "web").unwrap().object.clone()))]
            },
            "Aborted: update out of sequence: config web is at version 2, not 1",
        ),
    ];
    for (before, write, other, expected) in races {
        let mut swarm = Swarm::new();
        for write in before {
            swarm.write(write).unwrap();
        }
        let request = swarm.request(write);
        let Decision::Step(Step::Propose(change)) = swarm.view(|state| decide_write(state, &request, 0, NOW_MS, &[]))
        else {
            panic!("{request:?} is fine as long as nobody interferes")
        };
        let operations = other(&swarm);
        assert!(matches!(swarm.apply(operations), Outcome::Committed(_)));
        let outcome = swarm.commit(&change);
        let incoming = incoming(Call::Write, envelope::encode(&request));
        let Step::Refuse(status) = swarm.control.ended(&incoming, change.written(), &outcome) else {
            panic!("{request:?}: {outcome:?}")
        };
        assert_eq!(verdict::<()>(&Err(status.clone())), expected);
        // The log's word stays: a repeated request gets it again.
        assert_eq!(swarm.send(&request), Err(status));
    }
}

#[test]
fn a_version_that_the_caller_names_is_not_guessed_again() {
    let mut swarm = Swarm::new();
    swarm.write(config("web")).unwrap();
    let stale = "Aborted: update out of sequence: config web is at version 2, not 1";
    check(
        &mut swarm,
        vec![
            (label(Kind::Config, "web", &[("a", "1")], Some(1)), "ok"),
            (label(Kind::Config, "web", &[("a", "2")], Some(1)), stale),
            (remove(Kind::Config, "web", Some(1)), stale),
            (label(Kind::Config, "web", &[("a", "2")], Some(2)), "ok"),
            (remove(Kind::Config, "web", Some(3)), "ok"),
        ],
    );
}

#[test]
fn a_conflict_with_another_writer_is_built_again_and_repeats_the_same() {
    let mut swarm = Swarm::new();
    let id = swarm.create_config("web");
    let request = swarm.request(label(Kind::Config, "web", &[("mine", "1")], None));
    let Decision::Step(Step::Propose(first)) = swarm.view(|state| decide_write(state, &request, 0, NOW_MS, &[])) else {
        panic!()
    };
    swarm.write(label(Kind::Config, "web", &[("theirs", "1")], None)).unwrap();
    let outcome = swarm.commit(&first);
    assert!(matches!(outcome, Outcome::Refused(Refusal::OutOfSequence { .. })), "{outcome:?}");

    // Whoever carries the request on finds that its first attempt was refused, and makes the second.
    assert_eq!(swarm.send(&request), Ok((id, Revision(3))));
    let labels = swarm.view(|state| state.get(Kind::Config, id).unwrap().object.labels().clone());
    assert_eq!(labels, map(&[("mine", "1"), ("theirs", "1")]));
    // Asked again, after more changes too: the same answer, and nothing is written twice.
    swarm.write(label(Kind::Config, "web", &[("mine", "2")], None)).unwrap();
    assert_eq!(swarm.send(&request), Ok((id, Revision(3))));
    assert_eq!(swarm.view(State::revision), Revision(4));
    let change = QueryKind::Change(request.change, request.after);
    assert_eq!(swarm.ask(change), Ok(Answer::Change(api::ChangeReport::Committed(Revision(3)))));
}

#[test]
fn a_repeated_write_gets_the_first_answer_whatever_came_after() {
    let mut swarm = Swarm::new();
    let create = swarm.request(config("web"));
    let (id, created) = swarm.send(&create).unwrap();
    assert_eq!(id, object_id(create.change, Kind::Config));
    let removal = swarm.request(remove(Kind::Config, "web", None));
    assert_eq!(swarm.send(&removal), Ok((id, Revision(2))));
    swarm.create_config("web");
    assert_eq!(swarm.send(&create), Ok((id, created)));
    // The name means another object now; the events still say which one was removed.
    assert_eq!(swarm.send(&removal), Ok((id, Revision(2))));
    // A refusal that the log gave is remembered too; one that never reached the log is decided anew.
    let refused = swarm.request(config("web"));
    assert_eq!(swarm.send(&refused).unwrap_err().code, Code::AlreadyExists);
    swarm.write(remove(Kind::Config, "web", None)).unwrap();
    assert!(swarm.send(&refused).is_ok());
}

#[test]
fn a_write_made_too_long_ago_is_of_unknown_outcome() {
    let mut swarm = Swarm::new();
    let request = swarm.request(config("web"));
    swarm.send(&request).unwrap();
    let nothing = || vec![Operation::Require { kind: Kind::Config, id: ObjectId(9), expect: Expect::Absent }];
    for _ in 0..limits::MAX_REMEMBERED_CHANGES + 1 {
        assert!(matches!(swarm.apply(nothing()), Outcome::Committed(_)));
    }
    let status = swarm.send(&request).unwrap_err();
    assert_eq!((status.code, status.hopeless), (Code::Unknown, true), "{status:?}");
    let change = QueryKind::Change(request.change, request.after);
    assert_eq!(swarm.ask(change), Ok(Answer::Change(api::ChangeReport::Forgotten)));
}

#[test]
fn an_attempt_has_an_id_of_its_own() {
    let change = ChangeId(77);
    assert_eq!(attempt_id(change, 0), change);
    let ids: std::collections::BTreeSet<_> = (0..9).map(|n| attempt_id(change, n)).collect();
    assert_eq!(ids.len(), 9);
    assert_ne!(object_id(change, Kind::Config), object_id(change, Kind::Secret));
}

#[test]
fn refusals_drawn_from_the_store_ask_to_be_confirmed() {
    let mut swarm = Swarm::new();
    swarm.create_config("web");
    for write in [
        config("web"),
        label(Kind::Config, "gone", &[], None),
        label(Kind::Config, "web", &[], Some(9)),
        remove(Kind::Config, "gone", None),
        resource("soup", "dish"),
        Write::UpdateCluster {
            snapshot_bytes: Some(1 << 20),
            keep_bytes: None,
            node_certificate_expiry_ms: None,
            expired_grace_ms: None,
            approve_joins: None,
            if_version: None,
            autolock: None,
        },
    ] {
        let request = swarm.request(write);
        let decision = swarm.view(|state| decide_write(state, &request, 0, NOW_MS, &[]));
        assert!(matches!(decision, Decision::Step(Step::RefuseIfConfirmed(_))), "{request:?}: {decision:?}");
    }
    let request = swarm.request(config(""));
    let decision = swarm.view(|state| decide_write(state, &request, 0, NOW_MS, &[]));
    assert!(matches!(decision, Decision::Step(Step::Refuse(_))), "{decision:?}");
}

#[test]
fn settings_are_changed_within_bounds() {
    let update =
        |snapshot_bytes, keep_bytes, node_certificate_expiry_ms, if_version: Option<u64>| Write::UpdateCluster {
            snapshot_bytes,
            keep_bytes,
            node_certificate_expiry_ms,
            expired_grace_ms: None,
            approve_joins: None,
            if_version: if_version.map(Revision),
            autolock: None,
        };
    let mut swarm = Swarm::ready();
    check(
        &mut swarm,
        vec![
            (update(None, None, None, None), "InvalidArgument: no setting is named"),
            (update(Some(1), None, None, None), "InvalidArgument: --snapshot-bytes must be from 65536 bytes"),
            (update(None, Some(65_535), None, None), "InvalidArgument: --keep-bytes must be from"),
            (update(None, None, Some(3_599_999), None), "InvalidArgument: minimum certificate expiry time is: 1h0m0s"),
            (update(Some(65_536), None, Some(3_600_000), None), "ok"),
            (update(None, Some(1 << 20), None, Some(1)), "Aborted: update out of sequence: cluster"),
            (update(None, Some(1 << 20), None, Some(2)), "ok"),
        ],
    );
    let spec = swarm.view(|state| state.cluster().unwrap().spec.clone());
    assert_eq!((spec.raft.snapshot_bytes, spec.raft.keep_bytes), (65_536, 1 << 20));
    assert_eq!(spec.ca.node_certificate_expiry_ms, 3_600_000);
    let answered = swarm.write(update(Some(1 << 20), None, None, None));
    assert_eq!(answered, Ok((ClusterId(5).into(), Revision(4))));
}

#[test]
fn the_unlock_key_is_the_first_one_given_until_it_is_rotated_or_the_lock_is_off() {
    let autolock = |autolock| Write::UpdateCluster {
        snapshot_bytes: None,
        keep_bytes: None,
        expired_grace_ms: None,
        approve_joins: None,
        node_certificate_expiry_ms: None,
        if_version: None,
        autolock: Some(autolock),
    };
    let key = |byte| Sensitive(vec![byte; 32]);
    let mut swarm = Swarm::ready();
    let rotate = |byte| Write::RotateUnlockKey { key: key(byte) };
    check(
        &mut swarm,
        vec![
            (rotate(1), "FailedPrecondition: managers do not lock"),
            (autolock(Autolock::On { key: Sensitive(vec![1; 31]) }), "InvalidArgument: an unlock key has 32 bytes"),
            (autolock(Autolock::On { key: key(1) }), "ok"),
            // People have written the first one down.
            (autolock(Autolock::On { key: key(2) }), "ok"),
        ],
    );
    let stored = |swarm: &Swarm| swarm.view(|state| state.cluster().unwrap().unlock_key().cloned());
    assert_eq!(stored(&swarm), Some(key(1)));
    let told = |swarm: &Swarm| swarm.view(|state| crate::control::query::unlock_key(state).unwrap());
    let version = swarm.view(|state| state.cluster().unwrap().meta.version);
    assert_eq!(told(&swarm), Answer::UnlockKey { key: Some(key(1)), version });
    check(
        &mut swarm,
        vec![
            (Write::RotateUnlockKey { key: Sensitive(vec![]) }, "InvalidArgument: an unlock key has 32 bytes"),
            (rotate(3), "ok"),
        ],
    );
    assert_eq!(stored(&swarm), Some(key(3)));
    check(&mut swarm, vec![(autolock(Autolock::Off), "ok")]);
    assert!(swarm.view(|state| state.cluster().unwrap().unlock_keys.is_empty()));
    let version = swarm.view(|state| state.cluster().unwrap().meta.version);
    assert_eq!(told(&swarm), Answer::UnlockKey { key: None, version });
}

#[test]
fn an_unreadable_request_is_refused() {
    let swarm = Swarm::new();
    for call in
        [Call::Write, Call::Query, Call::Watch, Call::Admin, Call::Leave, Call::SetAddress, Call::ResolveAddress]
    {
        for body in [vec![], vec![9, 9, 9], vec![1, 255, 255, 255, 255]] {
            let step = swarm.control.decide(&incoming(call, body), 0, false, NOW_MS);
            assert!(
                matches!(&step, Step::Refuse(status) if status.code == Code::InvalidArgument),
                "{call:?}: {step:?}"
            );
        }
    }
}
