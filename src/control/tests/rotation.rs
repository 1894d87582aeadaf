//! Replacing the root: what is refused, and what becomes of what is not.

use super::*;
use crate::client::{given_root, own_root};
use crate::pki::{self, RootCa};
use crate::sys::entropy::SeededEntropy;
use crate::types::api::{NewRoot, RootCaReport};
use crate::types::object::{IssuanceState, JoinTokens, RootRotation, Standing};

const YEAR_MS: u64 = 365 * 86_400_000;

fn root(seed: u64) -> NewRoot {
    own_root(NOW_MS, &mut SeededEntropy::new(seed)).unwrap()
}

fn text(key: &Sensitive) -> &str {
    std::str::from_utf8(&key.0).unwrap()
}

fn load(root: &NewRoot) -> RootCa {
    RootCa::load(&root.certificate, text(&root.key)).unwrap()
}

/// A root that a person made with openssl or the like.
fn made(change: impl FnOnce(&mut rcgen::CertificateParams)) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = made_with(&key, change);
    (pem, key.serialize_pem())
}

fn made_with(key: &rcgen::KeyPair, change: impl FnOnce(&mut rcgen::CertificateParams)) -> String {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    change(&mut params);
    params.self_signed(key).unwrap().pem()
}

fn new_root((certificate, key): &(String, String)) -> NewRoot {
    given_root(certificate, key.clone().into_bytes(), &mut SeededEntropy::new(77))
}

fn rotate_to(root: &NewRoot, skip: &[&str], resume: bool) -> Write {
    let skip = skip.iter().map(|node| (*node).to_owned()).collect();
    Write::RotateRoot { root: root.clone(), skip, resume }
}

impl Swarm {
    /// A swarm with a root of its own, made from seed 1, and three managers that vote.
    fn rooted() -> Self {
        Self::rooted_at(&root(1))
    }

    fn rooted_at(root: &NewRoot) -> Self {
        let mut swarm = Self::ready();
        let mut cluster = swarm.cluster();
        cluster.root_ca = object::RootCa {
            key: root.key.clone(),
            certificate: root.certificate.clone(),
            digest: pki::root_digest(&root.certificate),
            join_tokens: root.join_tokens.clone(),
            ..object::RootCa::default()
        };
        let issuer = pki::root_facts(&root.certificate).unwrap()[0].issuer.clone();
        let nodes = (1..=3).map(|id| {
            let mut node = swarm.node(id);
            node.certificate.certificate = "chain".to_owned();
            node.certificate.state = IssuanceState::Issued;
            node.certificate.issuer.clone_from(&issuer);
            node.certificate.reported_issuer.clone_from(&issuer);
            Operation::Update(node.into())
        });
        let operations: Vec<_> = nodes.chain([Operation::Update(cluster.into())]).collect();
        assert!(matches!(swarm.apply(operations), Outcome::Committed(_)));
        swarm.control.store().write(|state| {
            for id in 2..=3_u64 {
                let raft_id = RaftId(id);
                let addr = format!("10.0.0.{id}:4242");
                assert!(state.apply_member_change(&MemberChange::AddLearner {
                    raft_id,
                    node_id: NodeId(id.into()),
                    addr
                }));
                assert!(state.apply_member_change(&MemberChange::Promote { raft_id }));
            }
            ((), None)
        });
        swarm.control.context.raft = report(RaftState::Leader, 3);
        swarm
    }

    fn cluster(&self) -> Cluster {
        self.view(|state| state.cluster().unwrap().clone())
    }

    fn node(&self, id: u128) -> Node {
        self.view(|state| match &state.get(Kind::Node, ObjectId(id)).unwrap().object {
            Object::Node(node) => (**node).clone(),
            other => panic!("{other:?}"),
        })
    }

    fn rotation(&self) -> RootRotation {
        self.cluster().root_ca.rotation.unwrap()
    }

    fn report(&self) -> RootCaReport {
        match self.ask(QueryKind::RootCa) {
            Ok(Answer::RootCa(report)) => *report,
            other => panic!("{other:?}"),
        }
    }

    fn warnings(&self) -> String {
        match self.ask(QueryKind::Status) {
            Ok(Answer::Status(report)) => report.warnings.join("\n"),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn check_refused(&mut self, write: Write, expected: &str) {
        let before = self.cluster();
        let result = self.write(write);
        assert!(verdict(&result).contains(expected), "{}", verdict(&result));
        assert!(!result.unwrap_err().hint.is_empty());
        assert_eq!(self.cluster(), before);
    }
}

#[test]
fn a_rotation_begins_with_the_new_root_signed_by_the_old_one() {
    let (mut swarm, new) = (Swarm::rooted(), root(2));
    let before = swarm.cluster().root_ca;
    swarm.write(rotate_to(&new, &["m3"], false)).unwrap();
    let root_ca = swarm.cluster().root_ca;
    assert_eq!((&root_ca.certificate, &root_ca.key), (&before.certificate, &before.key));
    assert_eq!(root_ca.join_tokens, before.join_tokens, "whoever joins now must find the old root");
    let rotation = root_ca.rotation.unwrap();
    assert_eq!(
        (&rotation.certificate, &rotation.key, &rotation.join_tokens),
        (&new.certificate, &new.key, &new.join_tokens)
    );
    assert_eq!((rotation.issuer.as_str(), rotation.started_at), (load(&new).issuer(), Timestamp(NOW_MS)));
    assert_eq!(rotation.skip, [NodeId(3)].into());
    let signer = load(&new).succeeding(rotation.cross_signed_certificate);
    signer.rehearse(&before.certificate, ClusterId(5), NOW_MS, &mut SeededEntropy::new(1)).unwrap();
}

#[test]
fn a_repeated_request_begins_one_rotation() {
    let mut swarm = Swarm::rooted();
    let request = swarm.request(rotate_to(&root(2), &[], false));
    let first = swarm.send(&request).unwrap();
    assert_eq!((first.0, swarm.send(&request)), (ObjectId(5), Ok(first)));
    assert_eq!(swarm.cluster().meta.version, first.1);
}

#[test]
fn what_a_person_gives_must_be_a_root_that_the_swarm_can_live_with() {
    let mut swarm = Swarm::rooted();
    let good = root(2);
    let with = |certificate: &str, key: &Sensitive| NewRoot {
        certificate: certificate.to_owned(),
        key: key.clone(),
        join_tokens: good.join_tokens.clone(),
    };
    let mut check = |root: &NewRoot, expected: &str| swarm.check_refused(rotate_to(root, &[], false), expected);
    check(
        &with("", &good.key),
        "InvalidArgument: if a signing CA key is provided, the signing CA cert must also be provided",
    );
    check(&with(&good.certificate, &Sensitive::default()), "InvalidArgument: the CA certificate comes without its key");
    check(&with("", &Sensitive::default()), "InvalidArgument: no root certificate is given");
    check(
        &with(&good.certificate, &root(3).key),
        "InvalidArgument: the private key does not belong to the root certificate",
    );
    let two = format!("{}{}", good.certificate, root(3).certificate);
    check(&with(&two, &good.key), "the desired CA certificate cannot contain multiple certificates");
    let tokens = JoinTokens::default();
    check(&NewRoot { join_tokens: tokens, ..good.clone() }, "does not hold two different join tokens for the new root");
    check(&NewRoot { join_tokens: root(3).join_tokens, ..good.clone() }, "join tokens for the new root");
    let worker = good.join_tokens.worker.clone();
    let same = JoinTokens { manager: worker.clone(), worker };
    check(&NewRoot { join_tokens: same, ..good.clone() }, "two different join tokens");

    let date = |ms: u64| time::OffsetDateTime::from_unix_timestamp(i64::try_from(ms / 1000).unwrap()).unwrap();
    let soon = made(|params| params.not_after = date(NOW_MS + YEAR_MS - 1000));
    check(&new_root(&soon), "InvalidArgument: CA certificate expires too soon: at 2028-01-15T07:59:59");
    let future = made(|params| params.not_before = date(NOW_MS + 60_000));
    check(&new_root(&future), "InvalidArgument: the CA certificate is not valid before 2027-01-15T08:01:00");
    let narrow = made(|params| params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0)));
    check(&new_root(&narrow), "InvalidArgument: the CA certificate may sign nodes only");
    let walled = made(|params| {
        let only = vec![rcgen::GeneralSubtree::DnsName("example.org".to_owned())];
        params.name_constraints =
            Some(rcgen::NameConstraints { permitted_subtrees: only, excluded_subtrees: Vec::new() });
    });
    check(&new_root(&walled), "InvalidArgument: nodes would not accept certificates that this root signs");
    let enough = made(|params| params.not_after = date(NOW_MS + YEAR_MS + 1000));
    assert_eq!(verdict(&swarm.write(rotate_to(&new_root(&enough), &[], false))), "ok");
}

#[test]
fn text_that_is_no_root_is_refused_with_a_reason() {
    let mut swarm = Swarm::rooted();
    let good = root(2);
    for certificate in ["hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let root = NewRoot { certificate: certificate.to_owned(), ..good.clone() };
        let result = swarm.write(rotate_to(&root, &[], false));
        assert_eq!(result.unwrap_err().code, Code::InvalidArgument);
    }
    for key in [b"hello".as_slice(), b"\xff\xfe", &[b'x'; 100_000]] {
        let root = NewRoot { key: Sensitive(key.to_vec()), ..good.clone() };
        let status = swarm.write(rotate_to(&root, &[], false)).unwrap_err();
        assert!(status.code == Code::InvalidArgument && status.message.contains("root key"), "{status:?}");
    }
    assert_eq!(swarm.cluster().root_ca.rotation, None);
}

#[test]
fn the_present_certificate_ends_a_rotation_and_gives_back_a_lost_key() {
    let (mut swarm, present) = (Swarm::rooted(), root(1));
    swarm.write(rotate_to(&root(2), &[], false)).unwrap();
    swarm.write(rotate_to(&present, &[], false)).unwrap();
    assert_eq!(swarm.cluster().root_ca.rotation, None);
    swarm.check_refused(rotate_to(&present, &["m1"], false), "InvalidArgument: the present root certificate needs no");

    let mut cluster = swarm.cluster();
    cluster.root_ca.key = Sensitive::default();
    swarm.apply(vec![Operation::Update(cluster.into())]);
    assert!(!swarm.report().has_key);
    let lost = "FailedPrecondition: the swarm's root key or certificate is unusable";
    swarm.check_refused(rotate_to(&root(2), &[], false), lost);
    swarm.write(rotate_to(&present, &[], false)).unwrap();
    assert_eq!(swarm.cluster().root_ca.key, present.key);
    swarm.write(rotate_to(&root(2), &[], false)).unwrap();
}

#[test]
fn the_present_certificate_is_taken_however_soon_it_ends() {
    let date = |ms: u64| time::OffsetDateTime::from_unix_timestamp(i64::try_from(ms / 1000).unwrap()).unwrap();
    let short = new_root(&made(|params| params.not_after = date(NOW_MS + 60_000)));
    let mut swarm = Swarm::rooted_at(&short);
    swarm.write(rotate_to(&root(2), &[], false)).unwrap();
    swarm.write(rotate_to(&short, &[], false)).unwrap();
    assert_eq!(swarm.cluster().root_ca.rotation, None);
}

#[test]
fn two_roots_never_share_a_key() {
    let key = rcgen::KeyPair::generate().unwrap();
    let named = |name: &str| {
        let pem = made_with(&key, |params| params.distinguished_name.push(rcgen::DnType::OrganizationName, name));
        new_root(&(pem, key.serialize_pem()))
    };
    let mut swarm = Swarm::rooted_at(&named("one"));
    let identical = "InvalidArgument: Cannot update to a cert with an identical key";
    swarm.check_refused(rotate_to(&named("two"), &[], false), identical);
    let mut swarm = Swarm::rooted();
    swarm.write(rotate_to(&named("one"), &[], false)).unwrap();
    swarm.check_refused(rotate_to(&named("two"), &[], false), identical);
}

#[test]
fn the_same_target_goes_on_and_another_one_starts_again() {
    let mut swarm = Swarm::rooted();
    swarm.write(rotate_to(&root(2), &["m2"], false)).unwrap();
    let first = swarm.rotation();
    let again = NewRoot { join_tokens: JoinTokens::default(), ..root(2) };
    swarm.write(rotate_to(&again, &[], false)).unwrap();
    assert_eq!(swarm.rotation(), first);
    swarm.write(rotate_to(&root(3), &[], false)).unwrap();
    let second = swarm.rotation();
    assert_eq!((second.certificate.as_str(), second.skip.len()), (root(3).certificate.as_str(), 0));
    let signer = load(&root(3)).succeeding(second.cross_signed_certificate);
    signer.rehearse(&root(1).certificate, ClusterId(5), NOW_MS, &mut SeededEntropy::new(1)).unwrap();
}

#[test]
fn nodes_can_be_skipped_while_a_rotation_goes_on() {
    let mut swarm = Swarm::rooted();
    // With none under way, resuming is beginning.
    swarm.write(rotate_to(&root(2), &[], true)).unwrap();
    assert_eq!(swarm.rotation().certificate, root(2).certificate);
    swarm.write(rotate_to(&root(3), &["m3"], true)).unwrap();
    assert_eq!((swarm.rotation().certificate, swarm.rotation().skip), (root(2).certificate, [NodeId(3)].into()));
    swarm.check_refused(rotate_to(&root(3), &["m9"], true), "NotFound: node m9 not found");
    let stop = "FailedPrecondition: skipping 2 of 3 managers that vote would leave 1, and 2 are needed";
    swarm.check_refused(rotate_to(&root(3), &["m2"], true), stop);
    swarm.check_refused(rotate_to(&root(4), &["m1", "m2"], false), stop);
    // Another target has a list of its own.
    swarm.write(rotate_to(&root(4), &["m2"], false)).unwrap();
    assert_eq!(swarm.rotation().skip, [NodeId(2)].into());
}

#[test]
fn a_root_for_nodes_only_says_that_it_cannot_be_left() {
    let narrow = made(|params| params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0)));
    let mut swarm = Swarm::rooted_at(&new_root(&narrow));
    let expected = "FailedPrecondition: the present root certificate may sign nodes only";
    swarm.check_refused(rotate_to(&root(2), &[], false), expected);
}

#[test]
fn a_report_names_roots_and_whoever_is_waited_for() {
    let mut swarm = Swarm::rooted();
    let quiet = swarm.report();
    assert_eq!(quiet.digest, pki::root_digest(&root(1).certificate));
    assert_eq!((quiet.roots.len(), quiet.has_key, quiet.rotation), (1, true, None));
    assert_eq!(
        (quiet.roots[0].subject.as_str(), quiet.roots[0].digest.as_str()),
        ("CN=swarm-ca", quiet.digest.as_str())
    );
    assert_eq!(swarm.warnings(), "");

    swarm.write(rotate_to(&root(2), &["m3"], false)).unwrap();
    let mut node = swarm.node(1);
    node.certificate.reported_issuer = load(&root(2)).issuer().to_owned();
    let mut told = swarm.node(2);
    told.certificate.state = IssuanceState::Rotate;
    swarm.apply(vec![Operation::Update(node.into()), Operation::Update(told.into())]);
    swarm.control.context.raft.reachable = vec![NodeId(1), NodeId(3)];
    let rotation = swarm.report().rotation.unwrap();
    assert_eq!(rotation.root.digest, pki::root_digest(&root(2).certificate));
    assert_eq!((rotation.total, rotation.converged, rotation.waiting), (3, 1, 1));
    let [waiting] = rotation.waiting_for.as_slice() else { panic!("{rotation:?}") };
    assert_eq!((waiting.name.as_str(), waiting.standing, waiting.connected), ("m2", Standing::Asked, Some(false)));
    assert_eq!((waiting.since, waiting.in_skip_list), (Timestamp(NOW_MS), false));
    let [skipped] = rotation.skipped.as_slice() else { panic!("{rotation:?}") };
    assert_eq!((skipped.name.as_str(), skipped.standing, skipped.connected), ("m3", Standing::NotAsked, Some(true)));
    let warnings = swarm.warnings();
    assert!(warnings.contains("1 of 3 nodes") && warnings.contains("waiting for m2 (not reachable);"), "{warnings}");
}

#[test]
fn nothing_secret_of_a_rotation_is_shown() {
    let mut swarm = Swarm::rooted();
    let new = root(2);
    let request = swarm.request(rotate_to(&new, &[], false));
    let shown_request = format!("{request:?}");
    swarm.send(&request).unwrap();
    let cluster = swarm.ask(QueryKind::Inspect(Kind::Cluster, "default".to_owned())).unwrap();
    let report = swarm.ask(QueryKind::RootCa).unwrap();
    let key = text(&new.key).lines().nth(1).unwrap().to_owned();
    let secrets = [key, new.join_tokens.worker[60..].to_owned(), new.join_tokens.manager[60..].to_owned()];
    for shown in [
        shown_request.into_bytes(),
        format!("{cluster:?} {report:?} {:?}", swarm.cluster()).into_bytes(),
        envelope::encode(&cluster),
        envelope::encode(&report),
    ] {
        for secret in &secrets {
            assert!(!shown.windows(secret.len()).any(|window| window == secret.as_bytes()));
        }
    }
}
