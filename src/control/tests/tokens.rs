//! Join tokens and approval.

use super::*;
use crate::pki::JoinToken;
use crate::sys::entropy::SeededEntropy;
use crate::types::api::{Filter, WatchRequest};
use crate::types::object::{MembershipState, Token};

const ROOT: &str = "root";

fn swarm() -> Swarm {
    let mut swarm = Swarm::ready();
    set_cluster(&mut swarm, |cluster| {
        cluster.root_ca.certificate = ROOT.to_owned();
        cluster.root_ca.digest = crate::pki::root_digest(ROOT);
    });
    swarm
}

fn set_cluster(swarm: &mut Swarm, set: impl FnOnce(&mut Cluster)) {
    let mut cluster = swarm.view(|state| state.cluster().unwrap().clone());
    set(&mut cluster);
    let outcome = swarm.apply(vec![Operation::Update(cluster.into())]);
    assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
}

fn set_node(swarm: &mut Swarm, id: u128, set: impl FnOnce(&mut Node)) {
    let mut node = node(swarm, id);
    set(&mut node);
    let outcome = swarm.apply(vec![Operation::Update(node.into())]);
    assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
}

fn node(swarm: &Swarm, id: u128) -> Node {
    swarm.view(|state| match &state.get(Kind::Node, ObjectId(id)).unwrap().object {
        Object::Node(node) => (**node).clone(),
        other => panic!("{other:?}"),
    })
}

fn made(seed: u64) -> JoinToken {
    JoinToken::generate(ROOT, &mut SeededEntropy::new(seed))
}

fn sensitive(token: &JoinToken) -> Sensitive {
    Sensitive(token.to_string().into_bytes())
}

fn create(token: &JoinToken, ttl_ms: Option<u64>, uses: Option<u32>) -> Write {
    let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
    Write::CreateToken { role: Role::Worker, labels, ttl_ms, uses, token: sensitive(token) }
}

fn stored(swarm: &Swarm, id: ObjectId) -> Option<Token> {
    swarm.view(|state| match &state.get(Kind::Token, id)?.object {
        Object::Token(token) => Some((**token).clone()),
        other => panic!("{other:?}"),
    })
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, words: &str) -> Status {
    let status = result.unwrap_err();
    assert!(status.code == code && status.message.contains(words), "{status:?}");
    status
}

#[test]
fn a_token_is_rotated_for_one_role_and_a_repeated_request_makes_no_other() {
    let mut swarm = swarm();
    set_cluster(&mut swarm, |cluster| cluster.root_ca.join_tokens.manager = made(1).to_string());
    let request = swarm.request(Write::RotateToken { role: Role::Worker, token: sensitive(&made(2)) });
    let first = swarm.send(&request).unwrap();
    assert_eq!(first.0, ClusterId(5).into());
    let tokens = swarm.view(|state| state.cluster().unwrap().root_ca.join_tokens.clone());
    assert_eq!((tokens.worker, tokens.manager), (made(2).to_string(), made(1).to_string()));
    // Another rotation, and then the first request once more.
    swarm.write(Write::RotateToken { role: Role::Worker, token: sensitive(&made(3)) }).unwrap();
    assert_eq!(swarm.send(&request), Ok(first));
    assert_eq!(swarm.view(|state| state.cluster().unwrap().root_ca.join_tokens.worker.clone()), made(3).to_string());
    let Ok(Answer::Token(shown)) = swarm.ask(QueryKind::Token(Role::Worker)) else { panic!() };
    assert_eq!(shown, sensitive(&made(3)));
}

#[test]
fn only_a_token_for_the_swarms_root_is_taken() {
    let mut swarm = swarm();
    let other = JoinToken::generate("another root", &mut SeededEntropy::new(1));
    let text = |text: &str| Sensitive(text.as_bytes().to_vec());
    for (token, code, words) in [
        (text(""), Code::InvalidArgument, "does not begin with SWMTKN"),
        (text("SWMTKN-1-x-y"), Code::InvalidArgument, "is not a digest"),
        (Sensitive(vec![0xff; 85]), Code::InvalidArgument, "does not begin with SWMTKN"),
        (text(&format!("{}\n", made(1))), Code::InvalidArgument, "is not a secret"),
        (sensitive(&other), Code::FailedPrecondition, "for another root certificate"),
    ] {
        let create = Write::CreateToken {
            role: Role::Worker,
            labels: BTreeMap::new(),
            ttl_ms: None,
            uses: None,
            token: token.clone(),
        };
        for write in [Write::RotateToken { role: Role::Manager, token }, create] {
            let status = refused(swarm.write(write), code, words);
            assert!(!status.hint.is_empty() && !status.message.contains(&other.to_string()[60..]), "{status:?}");
        }
    }
}

#[test]
fn a_token_with_conditions_is_made_listed_and_removed() {
    let mut swarm = swarm();
    let token = made(4);
    let (id, revision) = swarm.write(create(&token, Some(3_600_000), Some(5))).unwrap();
    // The change's revision and the object's id.
    assert_eq!(id, token.object_id());
    let found = stored(&swarm, id).unwrap();
    assert_eq!((found.expires_at, found.uses_left), (Some(Timestamp(NOW_MS + 3_600_000)), Some(5)));
    assert_eq!((found.role, found.meta.version), (Role::Worker, revision));
    assert_eq!(found.secret_digest.0, token.secret_digest());

    // Found by id, by the beginning of it, and by label; nothing tells the secret or its digest.
    let filter =
        |label: &str| Filter { labels: [("zone".to_owned(), Some(label.to_owned()))].into(), ..Filter::default() };
    let Ok(Answer::Objects { objects, .. }) = swarm.ask(QueryKind::List(Kind::Token, filter("a"), None)) else {
        panic!()
    };
    let Ok(Answer::Object(inspected)) = swarm.ask(QueryKind::Inspect(Kind::Token, id.to_string()[..8].to_owned()))
    else {
        panic!()
    };
    assert_eq!(objects, [(*inspected).clone()]);
    let Object::Token(shown) = *inspected else { panic!() };
    assert!(shown.secret_digest.0.is_empty());
    let Ok(Answer::Objects { objects, .. }) = swarm.ask(QueryKind::List(Kind::Token, filter("b"), None)) else {
        panic!()
    };
    assert_eq!(objects, []);
    let mut watch = Watch::begin(
        swarm.control.store(),
        WatchRequest { kinds: vec![Kind::Token], filter: filter("a"), ..WatchRequest::default() },
    )
    .unwrap();
    let crate::net::requests::Pull::Part(part) = watch.pull(swarm.control.store(), Instant::default(), usize::MAX)
    else {
        panic!()
    };
    let item = envelope::decode(&part, part.len()).unwrap();
    assert!(matches!(&item, crate::types::api::WatchItem::Snapshot { objects } if objects.len() == 1), "{item:?}");

    refused(swarm.write(create(&token, None, None)), Code::AlreadyExists, "already exists");
    let status =
        refused(swarm.write(Write::RemoveToken { token: "zz".to_owned() }), Code::NotFound, "token zz not found");
    assert_eq!(status.hint, "`skep token ls` lists them");
    assert_eq!(swarm.write(Write::RemoveToken { token: id.to_string() }).unwrap().0, id);
    assert_eq!(stored(&swarm, id), None);
    // A standing token has no object: it is rotated.
    refused(swarm.write(Write::RemoveToken { token: "worker".to_owned() }), Code::NotFound, "token worker not found");
}

#[test]
fn conditions_that_mean_nothing_are_refused() {
    let mut swarm = swarm();
    for (ttl_ms, uses, words) in [
        (Some(0), None, "lives longer than nothing"),
        (Some(u64::MAX), None, "at most 100 years"),
        (None, Some(0), "admits no node"),
    ] {
        let status = refused(swarm.write(create(&made(5), ttl_ms, uses)), Code::InvalidArgument, words);
        assert!(!status.hint.is_empty());
    }
    let Write::CreateToken { role, ttl_ms, uses, token, .. } = create(&made(5), None, None) else { panic!() };
    let labels = BTreeMap::from([("k".to_owned(), "v".repeat(20_000))]);
    let write = Write::CreateToken { role, labels, ttl_ms, uses, token };
    refused(swarm.write(write), Code::InvalidArgument, "labels and indices of one object are limited");
}

#[test]
fn approval_accepts_who_waits_and_lets_back_in_who_expired() {
    let mut swarm = swarm();
    set_node(&mut swarm, 1, |node| node.spec.membership = MembershipState::Pending);
    set_node(&mut swarm, 2, |node| node.certificate.expires_at = Timestamp(NOW_MS));
    set_node(&mut swarm, 3, |node| node.certificate.expires_at = Timestamp(NOW_MS + 1));
    let approve = |swarm: &mut Swarm, node: &str| swarm.write(Write::ApproveNode { node: node.to_owned() });

    assert_eq!(approve(&mut swarm, "m1").unwrap().0, ObjectId(1));
    assert_eq!(node(&swarm, 1).spec.membership, MembershipState::Accepted);
    assert_eq!(node(&swarm, 1).certificate.approved_until, None);

    approve(&mut swarm, &ObjectId(2).to_string()).unwrap();
    assert_eq!(node(&swarm, 2).certificate.approved_until, Some(Timestamp(NOW_MS + 24 * 3_600_000)));

    let status = refused(approve(&mut swarm, "m3"), Code::FailedPrecondition, "needs no approval");
    assert!(status.hint.contains("skep node inspect"), "{status:?}");
    refused(approve(&mut swarm, "m4"), Code::NotFound, "node m4 not found");
}

#[test]
fn the_settings_of_the_authority_are_changed() {
    let mut swarm = swarm();
    let update = |expired_grace_ms, approve_joins| Write::UpdateCluster {
        snapshot_bytes: None,
        keep_bytes: None,
        node_certificate_expiry_ms: None,
        expired_grace_ms,
        approve_joins,
        if_version: None,
    };
    let spec = |swarm: &Swarm| swarm.view(|state| state.cluster().unwrap().spec.clone());
    swarm.write(update(Some(0), None)).unwrap();
    assert_eq!((spec(&swarm).ca.expired_grace_ms, spec(&swarm).acceptance_policies.len()), (0, 1));
    for ask in [true, false] {
        swarm.write(update(None, Some(ask))).unwrap();
        let policies = [Role::Worker, Role::Manager].map(|role| AcceptancePolicy { role, autoaccept: !ask });
        assert_eq!((spec(&swarm).ca.expired_grace_ms, spec(&swarm).acceptance_policies), (0, policies.to_vec()));
    }
    refused(swarm.write(update(Some(u64::MAX), None)), Code::InvalidArgument, "maximum grace");
}
