//! Nothing secret leaves, by any way out.

use super::*;
use crate::net::requests::Pull;
use crate::types::api::{Filter, WatchRequest};
use crate::types::object::{EncryptionKey, JoinTokens, RootRotation, Runtime, Secret, Service, Task, TaskSpec, Token};

/// Found in no output. Its bytes and text are the same, so that it shows in every encoding.
const MARKER: &str = "HIDE-ME-0123456789";

fn marker() -> Sensitive {
    Sensitive(MARKER.as_bytes().to_vec())
}

fn key() -> EncryptionKey {
    EncryptionKey { key: marker(), ..EncryptionKey::default() }
}

fn task_spec() -> TaskSpec {
    let mut spec = TaskSpec::default();
    let Runtime::Container(container) = &mut spec.runtime else { panic!() };
    container.registry_auth = marker();
    spec
}

/// One object of every kind that holds anything sensitive, with the marker in every such place.
fn sensitive_objects() -> Vec<Object> {
    let mut secret = Secret { id: ObjectId(1), ..Secret::default() };
    secret.spec.annotations.name = "secret".to_owned();
    secret.spec.data = marker();

    let mut cluster = cluster();
    cluster.spec.ca.signing_ca_key = marker();
    cluster.root_ca.key = marker();
    cluster.root_ca.join_tokens = JoinTokens { worker: MARKER.to_owned(), manager: MARKER.to_owned() };
    let join_tokens = JoinTokens { worker: MARKER.to_owned(), manager: MARKER.to_owned() };
    cluster.root_ca.rotation = Some(RootRotation { key: marker(), join_tokens, ..RootRotation::default() });
    cluster.network_bootstrap_keys = vec![key(), key()];
    cluster.unlock_keys = vec![key()];

    let mut service = Service { id: ObjectId(2), ..Service::default() };
    service.spec.annotations.name = "service".to_owned();
    service.spec.task = task_spec();
    service.previous_spec = Some(Box::new(service.spec.clone()));
    let mut task = Task { id: ObjectId(3), ..Task::default() };
    task.spec = task_spec();
    let token = Token {
        id: ObjectId(4),
        meta: object::Meta::default(),
        annotations: Annotations::default(),
        role: Role::Worker,
        expires_at: None,
        uses_left: Some(1),
        root_digest: "digest".to_owned(),
        secret_digest: marker(),
    };
    vec![
        Object::Token(Box::new(token)),
        secret.into(),
        Object::Cluster(Box::new(cluster)),
        Object::Service(Box::new(service)),
        Object::Task(Box::new(task)),
    ]
}

#[track_caller]
fn clean(bytes: &[u8], what: &str) {
    let found = bytes.windows(MARKER.len()).any(|window| window == MARKER.as_bytes());
    assert!(!found, "{what} shows what must stay inside");
}

#[test]
fn no_encoding_of_a_redacted_object_holds_a_secret() {
    for object in sensitive_objects() {
        let kind = object.kind();
        let planted = envelope::encode(&object);
        let count = planted.windows(MARKER.len()).filter(|window| *window == MARKER.as_bytes()).count();
        let expected = match kind {
            Kind::Cluster => 10,
            Kind::Service => 2,
            _ => 1,
        };
        assert_eq!(count, expected, "{kind}: the marker must stand in every sensitive place");
        let redacted = redact::redact(&object);
        clean(&envelope::encode(&redacted), kind.name());
        clean(serde_json::to_string(&redacted).unwrap().as_bytes(), kind.name());
        clean(format!("{redacted:?}").as_bytes(), kind.name());
        // Debug of the object itself goes to logs.
        clean(format!("{object:?}").as_bytes(), kind.name());
        // What is left is the object as it was.
        assert_eq!((redacted.id(), redacted.meta(), redacted.name()), (object.id(), object.meta(), object.name()));
    }
}

#[test]
fn no_answer_or_watch_shows_a_secret() {
    let mut swarm = Swarm::new();
    let watches = [
        WatchRequest::default(),
        WatchRequest { include_old: true, kinds: Kind::ALL.to_vec(), ..WatchRequest::default() },
    ];
    let before: Vec<Watch> =
        watches.iter().map(|request| Watch::begin(swarm.control.store(), request.clone()).unwrap()).collect();
    let objects = sensitive_objects();
    swarm.apply(objects.iter().cloned().map(Operation::Create).collect());
    let updates = objects.iter().cloned().map(|mut object| {
        object.meta_mut().version = Revision(1);
        Operation::Update(object)
    });
    swarm.apply(updates.collect());
    for object in &objects {
        let (kind, id) = (object.kind(), object.id());
        let list = swarm.ask(QueryKind::List(kind, Filter::default(), None)).unwrap();
        assert!(matches!(&list, Answer::Objects { objects, .. } if objects.len() == 1));
        let inspect = swarm.ask(QueryKind::Inspect(kind, id.to_string())).unwrap();
        for answer in [list, inspect] {
            clean(&encode(&answer), kind.name());
            clean(format!("{answer:?}").as_bytes(), kind.name());
        }
    }
    let snapshots = watches.iter().map(|request| Watch::begin(swarm.control.store(), request.clone()).unwrap());
    let mut parts = 0;
    for mut watch in before.into_iter().chain(snapshots.collect::<Vec<_>>()) {
        while let Pull::Part(body) = watch.pull(swarm.control.store(), Instant::default(), usize::MAX) {
            clean(&body, "a watch");
            parts += 1;
        }
    }
    // Two that saw begin, two changes and a mark; two that saw a snapshot of five kinds and its end.
    assert_eq!(parts, 2 * 4 + 2 * 6);
}
