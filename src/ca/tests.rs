#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use super::*;
use crate::codec::envelope;
use crate::net::routes;
use crate::sys::entropy::SeededEntropy;
use crate::types::api::{Call, IssueRequest};
use crate::types::object::{AcceptancePolicy, Annotations, CaSettings, ClusterSpec, Profile, RaftSettings};
use crate::types::{Caller, Change, Index, Lineage, ObjectId, Operation, Outcome, Position, Refusal, Revision, Term};

/// 2026-01-01T00:00:00Z.
const NOW_MS: u64 = 1_767_225_600_000;
pub(super) const CLUSTER: ClusterId = ClusterId(0xC1);
const FIRST: NodeId = NodeId(0xF1);

/// A swarm's store, to which the test applies changes in order.
struct Swarm {
    state: State,
    changes: u128,
}

impl Swarm {
    /// Without anything.
    fn empty() -> Self {
        let mut state = State::bootstrap(Lineage(1), FIRST, "10.0.0.1:4242");
        state.advance(Position { term: Term(2), index: Index(2) });
        Self { state, changes: 1 << 100 }
    }

    /// A swarm of one manager.
    fn founded() -> (Self, NodeIdentity) {
        Self::founded_at(NOW_MS)
    }

    fn founded_at(now_ms: u64) -> (Self, NodeIdentity) {
        let entropy = &mut SeededEntropy::new(1);
        let founding = found(CLUSTER, FIRST, description("m1"), DEFAULT_VALIDITY, now_ms, entropy).unwrap();
        let mut swarm = Self::empty();
        let objects = [Object::from(cluster(founding.root_ca)), founding.node.into()];
        swarm.write(objects.map(Operation::Create).to_vec(), now_ms);
        (swarm, founding.identity)
    }

    fn cluster(&self) -> &Cluster {
        self.state.cluster().unwrap()
    }

    fn tokens(&self) -> JoinTokens {
        self.cluster().root_ca.join_tokens.clone()
    }

    fn root_pem(&self) -> String {
        match get_root(&self.state).unwrap() {
            Answer::Root { root } => root,
            other => panic!("{other:?}"),
        }
    }

    fn node(&self, id: NodeId) -> Node {
        node_of(&self.state, id).unwrap().clone()
    }

    fn chain_of(&self, node: NodeId) -> (String, Role) {
        match status(&self.state, node).unwrap() {
            Answer::Certificate { node_id, chain, role } if node_id == node => (chain, role),
            other => panic!("{other:?}"),
        }
    }

    /// Applies operations that must be taken, as somebody else's change.
    fn write(&mut self, operations: Vec<Operation>, now_ms: u64) {
        self.changes += 1;
        let (id, after) = (ChangeId(self.changes), self.state.revision());
        let outcome = self.apply(&Change { id, after, time: Timestamp(now_ms), term: None, operations });
        assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
    }

    fn apply(&mut self, change: &Change) -> Outcome {
        self.state.apply_change(change.clone(), Term(2)).0
    }

    fn set_cluster(&mut self, set: impl FnOnce(&mut Cluster)) {
        let mut cluster = self.cluster().clone();
        set(&mut cluster);
        self.write(vec![Operation::Update(cluster.into())], NOW_MS);
    }

    fn set_node(&mut self, id: NodeId, set: impl FnOnce(&mut Node)) {
        let mut node = self.node(id);
        set(&mut node);
        self.write(vec![Operation::Update(node.into())], NOW_MS);
    }

    /// The root key is gone, or back.
    fn break_ca(&mut self) -> Sensitive {
        let key = self.cluster().root_ca.key.clone();
        self.set_cluster(|cluster| cluster.root_ca.key = Sensitive(b"SECRET".to_vec()));
        key
    }

    /// Asks under this change id and applies what comes of it.
    fn ask_as(&mut self, caller: &Caller, request: &IssueRequest, change: u128, now_ms: u64) -> Result<NodeId, Status> {
        let request = IssueRequest { change: ChangeId(change), ..request.clone() };
        let entropy = &mut SeededEntropy::new(change as u64);
        let mut wish = None;
        let permit: Permit<'_> = &mut |asked| {
            assert_eq!(wish.replace(asked), None, "one permit is enough");
            Ok(())
        };
        match issue(&self.state, caller, &request, now_ms, entropy, permit)? {
            Decision::Have(node_id) => {
                assert_eq!(wish, None);
                Ok(node_id)
            }
            Decision::Propose(change) => {
                let node_id = subject(&self.state, caller, &request);
                match wish {
                    Some(Wish::Newcomer(_)) => assert!(node_of(&self.state, node_id).is_none()),
                    Some(Wish::Renewal(node)) => assert!(node == node_id && node_of(&self.state, node).is_some()),
                    None => panic!("it was not asked whether this is permitted"),
                }
                match self.apply(&change) {
                    Outcome::Committed(_) => Ok(node_id),
                    Outcome::Refused(refused) => Err(in_words(&refused)),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn join(&mut self, request: &IssueRequest, change: u128) -> Result<NodeId, Status> {
        self.ask_as(&Caller::Anonymous, request, change, NOW_MS)
    }

    /// Makes a token with conditions.
    fn make_token(&mut self, role: Role, expires_at: Option<u64>, uses_left: Option<u32>) -> (String, ObjectId) {
        let made = JoinToken::generate(&self.root_pem(), &mut SeededEntropy::new(77));
        let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        let token = object::Token {
            id: made.object_id(),
            meta: object::Meta::default(),
            annotations: Annotations { labels, ..Annotations::default() },
            role,
            expires_at: expires_at.map(Timestamp),
            uses_left,
            root_digest: made.digest(),
            secret_digest: Sensitive(made.secret_digest().to_vec()),
        };
        let id = token.id;
        self.write(vec![Operation::Create(token.into())], NOW_MS);
        (made.to_string(), id)
    }

    fn token(&self, id: ObjectId) -> Option<object::Token> {
        match &self.state.get(Kind::Token, id)?.object {
            Object::Token(token) => Some((**token).clone()),
            _ => None,
        }
    }
}

/// The node with its certificate, in force or not.
fn caller(node_id: NodeId, role: Role, expired: bool) -> Caller {
    Caller::Node { node_id, role, cluster_id: CLUSTER, expired }
}

pub(super) fn cluster(root_ca: object::RootCa) -> Cluster {
    Cluster {
        id: CLUSTER,
        meta: crate::types::object::Meta::default(),
        spec: ClusterSpec {
            annotations: Annotations { name: "default".to_owned(), ..Annotations::default() },
            task_history_retention_limit: 5,
            raft: RaftSettings::for_profile(Profile::Lan),
            heartbeat_period_ms: 5000,
            ca: CaSettings {
                node_certificate_expiry_ms: 7_200_000,
                external_cas: Vec::new(),
                signing_ca_certificate: String::new(),
                signing_ca_key: Sensitive::default(),
                force_rotate: 0,
                expired_grace_ms: DEFAULT_EXPIRED_GRACE.as_millis() as u64,
            },
            default_log_driver: None,
            auto_lock_managers: false,
            acceptance_policies: Vec::new(),
        },
        root_ca,
        network_bootstrap_keys: Vec::new(),
        encryption_key_lamport_clock: 0,
        unlock_keys: Vec::new(),
        fips: false,
        default_address_pool: Vec::new(),
        subnet_size: 24,
        vxlan_udp_port: 0,
        feature_level: 1,
    }
}

fn description(hostname: &str) -> NodeDescription {
    NodeDescription { hostname: hostname.to_owned(), ..NodeDescription::default() }
}

fn key() -> pki::PrivateKey {
    pki::generate_key(&mut SeededEntropy::new(2))
}

fn request(token: &str) -> IssueRequest {
    IssueRequest {
        change: ChangeId(10),
        after: Revision(3),
        csr: pki::signing_request(&key()).unwrap(),
        token: Sensitive(token.as_bytes().to_vec()),
        description: description("m2"),
        role: None,
        availability: Availability::Active,
    }
}

#[track_caller]
fn check_refusal<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, words: &str) {
    let status = result.unwrap_err();
    assert!(status.code == code && status.message.contains(words), "{status:?}");
}

#[test]
fn a_newcomer_joins_with_nothing_but_a_token() {
    let (mut swarm, first) = Swarm::founded();
    let tokens = swarm.tokens();
    for (token, role, change) in [(tokens.manager, Role::Manager, 10), (tokens.worker, Role::Worker, 11)] {
        let root_pem = swarm.root_pem();
        token.parse::<JoinToken>().unwrap().verify_root(&root_pem).unwrap();

        let node_id = node_of_change(ChangeId(change));
        assert_eq!(status(&swarm.state, node_id).unwrap_err().code, Code::NotFound);
        assert_eq!(swarm.join(&request(&token), change), Ok(node_id));

        let (chain, certified_role) = swarm.chain_of(node_id);
        assert_eq!(certified_role, role);
        let identity = NodeIdentity::new(&chain, key()).unwrap();
        identity.verify(&root_pem, NOW_MS).unwrap();
        let expected = (node_id, role, CLUSTER, NOW_MS + 7_200_000);
        let found = identity.identity();
        assert_eq!((found.node_id, found.role, found.cluster_id, found.not_after_ms), expected);
        assert_eq!(found.cluster_id, first.identity().cluster_id);
        let certificate = swarm.node(node_id).certificate;
        assert_eq!(certificate.expires_at, Timestamp(found.not_after_ms));
        assert_eq!(pki::issuer_of(&chain, &root_pem), Ok(certificate.issuer));
    }
}

/// What the holder of `identity`, or a stranger, is to a manager that it connects to.
fn met_by(manager: &NodeIdentity, identity: Option<&NodeIdentity>, root_pem: &str, now_ms: u64) -> Caller {
    let client = pki::client_config(identity, pki::Trust::Roots(root_pem.to_owned())).unwrap();
    let mut client = rustls::ClientConnection::new(client, pki::manager_name()).unwrap();
    let mut server = rustls::ServerConnection::new(pki::server_config(manager, root_pem).unwrap()).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let (mut there, mut back) = (Vec::new(), Vec::new());
        client.write_tls(&mut there).unwrap();
        server.read_tls(&mut there.as_slice()).unwrap();
        server.process_new_packets().unwrap();
        server.write_tls(&mut back).unwrap();
        client.read_tls(&mut back.as_slice()).unwrap();
        client.process_new_packets().unwrap();
    }
    match pki::classify(server.peer_certificates(), now_ms) {
        pki::Class::Valid(found) => {
            let (node_id, role, cluster_id) = (found.node_id, found.role, found.cluster_id);
            Caller::Node { node_id, role, cluster_id, expired: false }
        }
        pki::Class::None => Caller::Anonymous,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_worker_token_makes_a_worker_that_connects_and_may_not_write() {
    let now_ms = crate::sys::time::wall_ms();
    let (mut swarm, manager) = Swarm::founded_at(now_ms);
    let root_pem = swarm.root_pem();
    let stranger = met_by(&manager, None, &root_pem, now_ms);
    assert_eq!(stranger, Caller::Anonymous);
    routes::check(Call::Issue, &stranger).unwrap();

    let body = envelope::encode(&request(&swarm.tokens().worker));
    assert!(body.len() <= routes::route(Call::Issue).body_limit);
    let request: IssueRequest = envelope::decode(&body, body.len()).unwrap();
    let node_id = swarm.ask_as(&stranger, &request, 3, now_ms).unwrap();
    let (chain, _) = swarm.chain_of(node_id);
    let worker = NodeIdentity::new(&chain, key()).unwrap();

    let caller = met_by(&manager, Some(&worker), &root_pem, now_ms);
    assert_eq!(caller, Caller::Node { node_id, role: Role::Worker, cluster_id: CLUSTER, expired: false });
    check_refusal(routes::check(Call::Write, &caller), Code::PermissionDenied, "the caller is a worker");
    routes::check(Call::CertificateStatus, &caller).unwrap();
}

/// Entropy of which a certificate would take some.
struct Unsigned;

impl Entropy for Unsigned {
    fn fill(&mut self, _: &mut [u8]) {
        panic!("something is signed");
    }
}

#[test]
fn the_change_creates_an_accepted_node_and_nothing_else() {
    let (swarm, _) = Swarm::founded();
    let request = request(&swarm.tokens().worker);
    let refused = || Err(Status::new(Code::ResourceExhausted, "not now"));
    let decision = issue(&swarm.state, &Caller::Anonymous, &request, NOW_MS, &mut Unsigned, &mut |_| refused());
    assert_eq!(decision, Err(refused().unwrap_err()));
    let decision =
        issue(&swarm.state, &Caller::Anonymous, &request, NOW_MS, &mut SeededEntropy::new(3), &mut |_| Ok(()));
    let Ok(Decision::Propose(change)) = decision else { panic!("{decision:?}") };
    assert_eq!((change.id, change.after, change.time), (ChangeId(10), Revision(3), Timestamp(NOW_MS)));
    let [Operation::Create(Object::Node(node))] = change.operations.as_slice() else {
        panic!("{change:?}");
    };
    assert_eq!(node.id, node_of_change(ChangeId(10)));
    assert_eq!((node.role, node.spec.desired_role), (Role::Worker, Role::Worker));
    assert_eq!(node.spec.membership, MembershipState::Accepted);
    assert_eq!(node.description.hostname, "m2");
    assert_eq!(node.certificate.csr, request.csr);
    assert!(node.certificate.reported_issuer.is_empty());
}

#[test]
fn a_repeated_request_is_for_the_same_node() {
    let (mut swarm, _) = Swarm::founded();
    let request = request(&swarm.tokens().manager);
    let first = swarm.join(&request, 10).unwrap();
    let chain = swarm.chain_of(first);
    // Under the same id the store gives the first answer, and the certificate stays.
    assert_eq!(
        subject(&swarm.state, &Caller::Anonymous, &IssueRequest { change: ChangeId(10), ..request.clone() }),
        first
    );
    let entropy = &mut SeededEntropy::new(99);
    let again = issue(&swarm.state, &Caller::Anonymous, &request, NOW_MS, entropy, &mut |_| Ok(())).unwrap();
    let Decision::Propose(change) = again else { panic!() };
    assert_eq!(swarm.apply(&change), swarm.state.remembered(ChangeId(10)).unwrap());
    assert_eq!(swarm.chain_of(first), chain);
    assert_ne!(swarm.join(&request, 11).unwrap(), first);
    // The id is stored in certificates: it must not change between versions.
    assert_eq!(first.to_string(), "3mbu38cpb6s0krd88d96mil3b");
}

#[test]
fn only_a_current_token_of_this_swarm_admits() {
    let (mut swarm, _) = Swarm::founded();
    let tokens = swarm.tokens();
    let other = JoinToken::generate(&swarm.root_pem(), &mut SeededEntropy::new(9)).to_string();
    let cut = &tokens.manager[..tokens.manager.len() - 1];
    let secret_only = &tokens.manager[60..];
    for token in ["", "hello", other.as_str(), cut, secret_only, "\u{0}", &format!("{} ", tokens.manager)] {
        let refusal = swarm.join(&request(token), 10);
        assert!(refusal.as_ref().unwrap_err().hint.contains("skep token show"));
        check_refusal(refusal, Code::InvalidArgument, "A valid join token is necessary to join this cluster");
    }
    let bytes = IssueRequest { token: Sensitive(vec![0xff; 85]), ..request("") };
    check_refusal(swarm.join(&bytes, 10), Code::InvalidArgument, "A valid join token");

    // Rotated: the old one is refused, the new one admits, the other role's is as it was.
    let joined = swarm.join(&request(&tokens.manager), 20).unwrap();
    swarm.set_cluster(|cluster| cluster.root_ca.join_tokens.manager = other.clone());
    check_refusal(swarm.join(&request(&tokens.manager), 21), Code::InvalidArgument, "A valid join token");
    swarm.join(&request(&other), 22).unwrap();
    swarm.join(&request(&tokens.worker), 23).unwrap();
    // Who has joined needs none of them.
    assert_eq!(swarm.ask_as(&caller(joined, Role::Manager, false), &request(""), 24, NOW_MS), Ok(joined));

    // An empty stored token is no token; it must not admit whoever sends none.
    swarm.set_cluster(|cluster| cluster.root_ca.join_tokens.worker.clear());
    check_refusal(swarm.join(&request(""), 25), Code::InvalidArgument, "A valid join token");
}

#[test]
fn a_bad_request_is_the_callers_fault_and_leaves_nothing() {
    let (mut swarm, _) = Swarm::founded();
    let good = request(&swarm.tokens().manager);
    let before = swarm.state.hash();
    let otherwise_signed = {
        let (one, two) =
            (good.csr.clone(), pki::signing_request(&pki::generate_key(&mut SeededEntropy::new(5))).unwrap());
        let half = one.len() / 2 / 65 * 65;
        format!("{}{}", &one[..half], &two[half..])
    };
    let labels = BTreeMap::from([("k".to_owned(), "v".repeat(17 << 10))]);
    let wordy = NodeDescription { engine_labels: labels, ..description("a") };
    for (bad, words) in [
        (IssueRequest { csr: String::new(), ..good.clone() }, "a signing request is needed"),
        (IssueRequest { csr: "x".repeat(20_000), ..good.clone() }, "larger than 16384 bytes"),
        (IssueRequest { csr: swarm.root_pem(), ..good.clone() }, "no readable signing request"),
        (IssueRequest { csr: "\u{0}\u{ff}".to_owned(), ..good.clone() }, "no readable signing request"),
        (IssueRequest { csr: otherwise_signed, ..good.clone() }, "signing request"),
        (IssueRequest { description: description("a\u{1b}[2J"), ..good.clone() }, "control characters"),
        (IssueRequest { description: description(&"a".repeat(254)), ..good.clone() }, "at most 253 bytes"),
        (IssueRequest { description: wordy, ..good.clone() }, "at most 16384 bytes"),
    ] {
        for asked_by in [Caller::Anonymous, caller(FIRST, Role::Manager, false), caller(FIRST, Role::Manager, true)] {
            let refusal = swarm.ask_as(&asked_by, &bad, 10, NOW_MS);
            check_refusal(refusal, Code::InvalidArgument, words);
        }
    }
    assert_eq!(swarm.state.hash(), before);
    // The same in a swarm that cannot sign: what is stored to be signed later can be signed.
    swarm.break_ca();
    let bad = IssueRequest { csr: swarm.root_pem(), ..good };
    check_refusal(swarm.join(&bad, 11), Code::InvalidArgument, "no readable signing request");
}

#[test]
fn without_a_cluster_the_authority_is_still_starting() {
    let mut swarm = Swarm::empty();
    check_refusal(get_root(&swarm.state), Code::Unavailable, "still starting");
    check_refusal(swarm.join(&request("SWMTKN-1-a-b"), 10), Code::Unavailable, "still starting");
    check_refusal(status(&swarm.state, FIRST), Code::NotFound, "not part of this swarm");
    swarm.write(vec![Operation::Create(cluster(object::RootCa::default()).into())], NOW_MS);
    check_refusal(get_root(&swarm.state), Code::Unavailable, "still starting");
    check_refusal(swarm.join(&request(""), 11), Code::Unavailable, "still starting");
}

#[test]
fn a_renewal_keeps_the_node_and_takes_the_role_that_was_observed() {
    let (mut swarm, _) = Swarm::founded();
    for (role, change) in [(Role::Worker, 10), (Role::Manager, 20)] {
        let token = if role == Role::Worker { swarm.tokens().worker } else { swarm.tokens().manager };
        let id = swarm.join(&request(&token), change).unwrap();
        swarm.set_node(id, |node| node.certificate.reported_issuer = "seen".to_owned());
        let before = swarm.node(id);
        // Another key, another name, another role wished for: only the key counts.
        let next = pki::generate_key(&mut SeededEntropy::new(30));
        let asked = IssueRequest {
            csr: pki::signing_request(&next).unwrap(),
            description: description("another"),
            ..request("")
        };
        let later_ms = NOW_MS + 3_600_000;
        assert_eq!(swarm.ask_as(&caller(id, role, false), &asked, change + 1, later_ms), Ok(id));
        let (chain, certified) = swarm.chain_of(id);
        let identity = NodeIdentity::new(&chain, next).unwrap();
        identity.verify(&swarm.root_pem(), later_ms).unwrap();
        assert_eq!((identity.identity().node_id, identity.identity().role, certified), (id, role, role));
        let after = swarm.node(id);
        assert_eq!(after.certificate.expires_at, Timestamp(later_ms + 7_200_000));
        assert_eq!(after.certificate.reported_issuer, "seen");
        assert_eq!((after.description, after.spec, after.role), (before.description, before.spec, before.role));

        // What is desired does not count before it is so; what the certificate says does not count at all.
        let other = if role == Role::Worker { Role::Manager } else { Role::Worker };
        swarm.set_node(id, |node| node.spec.desired_role = other);
        swarm.ask_as(&caller(id, other, false), &asked, change + 2, later_ms).unwrap();
        assert_eq!(swarm.chain_of(id).1, role);
        swarm.set_node(id, |node| node.role = other);
        swarm.ask_as(&caller(id, role, false), &asked, change + 3, later_ms).unwrap();
        assert_eq!(swarm.chain_of(id).1, other);
    }
}

#[test]
fn a_renewal_for_a_shorter_time_forgets_no_certificate_of_a_manager() {
    let (mut swarm, _) = Swarm::founded();
    let long = swarm.node(FIRST).certificate.expires_at;
    let asked_by = caller(FIRST, Role::Manager, false);
    swarm.ask_as(&asked_by, &request(""), 10, NOW_MS).unwrap();
    let node = swarm.node(FIRST);
    assert!(node.certificate.expires_at < long);
    assert_eq!(node.revoked_until(), Some(long));
    // One that ends later needs no note of those before it.
    let (other, _) = Swarm::founded();
    swarm = other;
    swarm.set_cluster(|cluster| cluster.spec.ca.node_certificate_expiry_ms = 100 * 86_400_000);
    swarm.ask_as(&asked_by, &request(""), 10, NOW_MS).unwrap();
    assert_eq!(swarm.node(FIRST).manager_until, Timestamp(0));
    assert_eq!(swarm.node(FIRST).revoked_until(), Some(Timestamp(NOW_MS + 100 * 86_400_000)));
}

#[test]
fn a_node_that_is_gone_does_not_renew() {
    let (mut swarm, _) = Swarm::founded();
    let id = swarm.join(&request(&swarm.tokens().worker), 10).unwrap();
    swarm.write(vec![Operation::Remove { kind: Kind::Node, id: id.into(), version: None }], NOW_MS);
    for expired in [false, true] {
        let refusal = swarm.ask_as(&caller(id, Role::Worker, expired), &request(&swarm.tokens().worker), 11, NOW_MS);
        let words = format!("node {id} not found when attempting to renew certificate");
        assert!(refusal.as_ref().unwrap_err().hint.contains("join token"));
        check_refusal(refusal, Code::NotFound, &words);
    }
}

#[test]
fn a_certificate_of_another_swarm_does_not_renew() {
    let (mut swarm, _) = Swarm::founded();
    let id = swarm.join(&request(&swarm.tokens().worker), 10).unwrap();
    let foreign = Caller::Node { node_id: id, role: Role::Manager, cluster_id: ClusterId(0xD2), expired: false };
    check_refusal(swarm.ask_as(&foreign, &request(""), 11, NOW_MS), Code::InvalidArgument, "A valid join token");
    // With a token it is a newcomer like any other.
    let joined = swarm.ask_as(&foreign, &request(&swarm.tokens().worker), 12, NOW_MS).unwrap();
    assert_ne!(joined, id);
}

#[test]
fn a_change_that_raced_with_a_renewal_is_decided_again() {
    let (mut swarm, _) = Swarm::founded();
    let asked = IssueRequest { change: ChangeId(10), ..request("") };
    let asked_by = caller(FIRST, Role::Manager, false);
    let Ok(Decision::Propose(change)) =
        issue(&swarm.state, &asked_by, &asked, NOW_MS, &mut SeededEntropy::new(1), &mut |_| Ok(()))
    else {
        panic!()
    };
    swarm.set_node(FIRST, |node| node.spec.desired_role = Role::Worker);
    let outcome = swarm.apply(&change);
    assert!(matches!(outcome, Outcome::Refused(Refusal::OutOfSequence { .. })), "{outcome:?}");
    swarm.ask_as(&asked_by, &asked, 11, NOW_MS).unwrap();
    assert_eq!(swarm.node(FIRST).spec.desired_role, Role::Worker);
}

#[test]
fn an_expired_certificate_renews_within_the_grace_and_after_approval_once() {
    const DAY_MS: u64 = 86_400_000;
    let (mut swarm, _) = Swarm::founded();
    swarm.set_cluster(|cluster| cluster.spec.ca.expired_grace_ms = 30 * DAY_MS);
    let id = swarm.join(&request(&swarm.tokens().worker), 10).unwrap();
    let expired = caller(id, Role::Worker, true);
    let end_ms = swarm.node(id).certificate.expires_at.0;

    assert_eq!(swarm.ask_as(&expired, &request(""), 11, end_ms + 30 * DAY_MS), Ok(id));
    assert_eq!(swarm.node(id).certificate.expires_at.0, end_ms + 30 * DAY_MS + 7_200_000);

    let late_ms = swarm.node(id).certificate.expires_at.0 + 30 * DAY_MS + 1;
    let refusal = swarm.ask_as(&expired, &request(""), 12, late_ms);
    assert!(refusal.as_ref().unwrap_err().hint.contains(&format!("skep node approve {id}")), "{refusal:?}");
    check_refusal(refusal, Code::FailedPrecondition, "longer ago than the 30 days that this swarm allows");
    // A token does not help a node that has an identity, and a certificate in force needs no grace.
    check_refusal(
        swarm.ask_as(&expired, &request(&swarm.tokens().worker), 13, late_ms),
        Code::FailedPrecondition,
        "expired at",
    );
    swarm.ask_as(&caller(id, Role::Worker, false), &request(""), 14, late_ms).unwrap();
    let late_ms = swarm.node(id).certificate.expires_at.0 + 31 * DAY_MS;

    // Let in, but not in time.
    swarm.set_node(id, |node| node.certificate.approved_until = Some(Timestamp(late_ms)));
    check_refusal(swarm.ask_as(&expired, &request(""), 15, late_ms), Code::FailedPrecondition, "expired at");
    // In time, and once.
    swarm.set_node(id, |node| node.certificate.approved_until = Some(Timestamp(late_ms + 1)));
    assert_eq!(swarm.ask_as(&expired, &request(""), 16, late_ms), Ok(id));
    assert_eq!(swarm.node(id).certificate.approved_until, None);
    // The answer was lost: the same request gets what was issued for it, and nothing new.
    let chain = swarm.chain_of(id);
    assert_eq!(swarm.ask_as(&expired, &request(""), 17, late_ms), Ok(id));
    assert_eq!(swarm.chain_of(id), chain);
    let other = pki::signing_request(&pki::generate_key(&mut SeededEntropy::new(40))).unwrap();
    let much_later_ms = swarm.node(id).certificate.expires_at.0 + 31 * DAY_MS;
    let refusal = swarm.ask_as(&expired, &IssueRequest { csr: other, ..request("") }, 18, much_later_ms);
    check_refusal(refusal, Code::FailedPrecondition, "expired at");
}

#[test]
fn an_old_key_of_a_node_that_runs_opens_nothing() {
    let (mut swarm, _) = Swarm::founded();
    let id = swarm.join(&request(&swarm.tokens().worker), 10).unwrap();
    let expired = caller(id, Role::Worker, true);
    let fresh = |seed| {
        let csr = pki::signing_request(&pki::generate_key(&mut SeededEntropy::new(seed))).unwrap();
        IssueRequest { csr, ..request("") }
    };
    // The answer never came, so that the node asks again with what it has, and with another key.
    swarm.ask_as(&expired, &fresh(60), 11, NOW_MS).unwrap();
    swarm.ask_as(&expired, &fresh(61), 12, NOW_MS).unwrap();
    // It came. The next renewal is for who shows a certificate in force.
    swarm.set_node(id, |node| node.certificate.in_use = true);
    let refusal = swarm.ask_as(&expired, &fresh(62), 13, NOW_MS);
    assert!(refusal.as_ref().unwrap_err().hint.contains(&format!("skep node approve {id}")), "{refusal:?}");
    check_refusal(refusal, Code::FailedPrecondition, "uses a newer certificate than this one");
    // The node lost its newest files, says a person.
    swarm.set_node(id, |node| node.certificate.approved_until = Some(Timestamp(NOW_MS + 1)));
    swarm.ask_as(&expired, &fresh(63), 14, NOW_MS).unwrap();
    let certificate = swarm.node(id).certificate;
    assert_eq!((certificate.in_use, certificate.approved_until), (false, None));
}

#[test]
fn no_grace_means_none() {
    let (mut swarm, _) = Swarm::founded();
    swarm.set_cluster(|cluster| cluster.spec.ca.expired_grace_ms = 0);
    let end_ms = swarm.node(FIRST).certificate.expires_at.0;
    let expired = caller(FIRST, Role::Manager, true);
    check_refusal(swarm.ask_as(&expired, &request(""), 10, end_ms + 1), Code::FailedPrecondition, "expired at");
}

#[test]
fn a_token_with_conditions_gives_labels_and_admits_as_many_as_it_says() {
    let (mut swarm, _) = Swarm::founded();
    let (text, token) = swarm.make_token(Role::Worker, Some(NOW_MS + 1000), Some(2));
    // Both ask before either is committed, and a third that will not find a use left.
    let decide = |swarm: &Swarm, change: u128| {
        let asked = IssueRequest { change: ChangeId(change), ..request(&text) };
        let entropy = &mut SeededEntropy::new(change as u64);
        match issue(&swarm.state, &Caller::Anonymous, &asked, NOW_MS, entropy, &mut |_| Ok(())) {
            Ok(Decision::Propose(change)) => change,
            other => panic!("{other:?}"),
        }
    };
    let changes = [10, 11, 12].map(|change| decide(&swarm, change));
    let [first, second, third] = changes.each_ref().map(|change| swarm.apply(change));
    assert!(matches!((&first, &second), (Outcome::Committed(_), Outcome::Committed(_))), "{first:?} {second:?}");
    assert_eq!(third, Outcome::Refused(Refusal::TokenSpent { id: token }));
    assert_eq!(in_words(&Refusal::TokenSpent { id: token }).code, Code::FailedPrecondition);
    assert_eq!(swarm.token(token).unwrap().uses_left, Some(0));
    for change in [10, 11] {
        let node = swarm.node(node_of_change(ChangeId(change)));
        assert_eq!(node.spec.annotations.labels, BTreeMap::from([("zone".to_owned(), "a".to_owned())]));
        assert_eq!(node.role, Role::Worker);
    }
    assert!(node_of(&swarm.state, node_of_change(ChangeId(12))).is_none());
    // A repeated request takes no second use and is not refused for want of one.
    assert_eq!(swarm.apply(&changes[0]), first);
    let refusal = swarm.join(&request(&text), 13);
    assert!(refusal.as_ref().unwrap_err().hint.contains("skep token create --role worker"));
    check_refusal(refusal, Code::FailedPrecondition, "as many nodes as it was made for");
}

#[test]
fn a_token_with_conditions_ends_and_can_be_removed() {
    let (mut swarm, _) = Swarm::founded();
    let (text, token) = swarm.make_token(Role::Manager, Some(NOW_MS + 1000), None);
    let joined = swarm.join(&request(&text), 10).unwrap();
    assert_eq!((swarm.node(joined).role, swarm.token(token).unwrap().uses_left), (Role::Manager, None));
    let refusal = swarm.ask_as(&Caller::Anonymous, &request(&text), 11, NOW_MS + 1000);
    check_refusal(refusal, Code::FailedPrecondition, "the join token expired at 2026-01-01T00:00:01.000Z");
    // The leader's clock may have gone on between decision and proposal: apply looks again, at the change's own time.
    let asked = IssueRequest { change: ChangeId(12), ..request(&text) };
    let entropy = &mut SeededEntropy::new(1);
    let decided = issue(&swarm.state, &Caller::Anonymous, &asked, NOW_MS, entropy, &mut |_| Ok(())).unwrap();
    let Decision::Propose(change) = decided else { panic!() };
    let late = Change { time: Timestamp(NOW_MS + 1000), ..change };
    assert_eq!(swarm.apply(&late), Outcome::Refused(Refusal::TokenSpent { id: token }));

    swarm.write(vec![Operation::Remove { kind: Kind::Token, id: token, version: None }], NOW_MS);
    check_refusal(swarm.join(&request(&text), 13), Code::InvalidArgument, "A valid join token");
}

#[test]
fn a_token_of_another_root_or_with_another_secret_admits_nobody() {
    let (mut swarm, _) = Swarm::founded();
    let (text, token) = swarm.make_token(Role::Worker, None, None);
    let (digest, secret) = (&text[9..59], &text[60..]);
    let other_digest = JoinToken::generate("another root", &mut SeededEntropy::new(1)).digest();
    let swapped = if secret.ends_with('0') { "1" } else { "0" };
    for wrong in [
        format!("SWMTKN-1-{other_digest}-{secret}"),
        format!("SWMTKN-1-{digest}-{}{swapped}", &secret[..24]),
        format!("SWMTKN-1-{digest}-{secret}\n"),
        secret.to_owned(),
    ] {
        check_refusal(swarm.join(&request(&wrong), 10), Code::InvalidArgument, "A valid join token");
    }
    // The id alone, without the secret's digest, is nothing.
    let mut stored = swarm.token(token).unwrap();
    stored.secret_digest = Sensitive::default();
    swarm.write(vec![Operation::Update(stored.into())], NOW_MS);
    check_refusal(swarm.join(&request(&text), 11), Code::InvalidArgument, "A valid join token");
}

#[test]
fn who_must_be_approved_waits_and_renews_nothing() {
    let (mut swarm, _) = Swarm::founded();
    swarm.set_cluster(|cluster| {
        cluster.spec.acceptance_policies = vec![AcceptancePolicy { role: Role::Worker, autoaccept: false }];
    });
    let id = swarm.join(&request(&swarm.tokens().worker), 10).unwrap();
    let node = swarm.node(id);
    assert_eq!((node.spec.membership, node.certificate.state), (MembershipState::Pending, IssuanceState::Pending));
    assert!(node.certificate.certificate.is_empty());
    let refusal = status(&swarm.state, id);
    assert_eq!(refusal.as_ref().unwrap_err().hint, format!("on a manager: `skep node approve {id}`"));
    check_refusal(refusal, Code::Unavailable, "waits until a person approves it");
    let refusal = swarm.ask_as(&caller(id, Role::Worker, false), &request(""), 11, NOW_MS);
    check_refusal(refusal, Code::Unavailable, "waits until a person approves it");
    // The rule is for workers.
    let manager = swarm.join(&request(&swarm.tokens().manager), 12).unwrap();
    swarm.chain_of(manager);
}

#[test]
fn a_swarm_that_cannot_sign_takes_requests_and_keeps_what_nodes_have() {
    let (mut swarm, _) = Swarm::founded();
    let key = swarm.break_ca();
    let joined = swarm.join(&request(&swarm.tokens().worker), 10).unwrap();
    let node = swarm.node(joined);
    assert_eq!((node.certificate.state, node.spec.membership), (IssuanceState::Pending, MembershipState::Accepted));
    check_refusal(status(&swarm.state, joined), Code::Unavailable, "the swarm's root certificate or key is unusable");

    let before = swarm.node(FIRST).certificate;
    let asked_by = caller(FIRST, Role::Manager, false);
    assert_eq!(swarm.ask_as(&asked_by, &request(""), 11, NOW_MS), Ok(FIRST));
    let after = swarm.node(FIRST).certificate;
    assert_eq!((after.state, &after.csr), (IssuanceState::Renew, &request("").csr));
    assert_eq!(
        (after.certificate, after.expires_at, after.issuer),
        (before.certificate, before.expires_at, before.issuer)
    );
    let refusal = status(&swarm.state, FIRST);
    assert!(!refusal.as_ref().unwrap_err().message.contains("SECRET"), "{refusal:?}");
    check_refusal(refusal, Code::Unavailable, "is not issued yet");
    // Asking again for the same writes nothing.
    let revision = swarm.state.revision();
    check_refusal(swarm.ask_as(&asked_by, &request(""), 12, NOW_MS), Code::Unavailable, "is not issued yet");
    assert_eq!(swarm.state.revision(), revision);

    swarm.set_cluster(|cluster| cluster.root_ca.key = Sensitive::default());
    let refusal = swarm.ask_as(&asked_by, &request(""), 13, NOW_MS);
    check_refusal(refusal, Code::Unavailable, "does not hold its root key");
    swarm.set_cluster(|cluster| cluster.root_ca.key = key);
    swarm.ask_as(&asked_by, &request(""), 14, NOW_MS).unwrap();
    swarm.chain_of(FIRST);
}

#[test]
fn a_validity_under_an_hour_is_taken_for_the_default() {
    let (mut swarm, _) = Swarm::founded();
    let request = request(&swarm.tokens().manager);
    let mut changes = 10;
    let mut hours_for = |setting_ms| {
        swarm.set_cluster(|cluster| cluster.spec.ca.node_certificate_expiry_ms = setting_ms);
        changes += 1;
        let id = swarm.join(&request, changes).unwrap();
        (swarm.node(id).certificate.expires_at.0 - NOW_MS) / 3_600_000
    };
    assert_eq!((hours_for(0), hours_for(3_599_999), hours_for(3_600_000)), (90 * 24, 90 * 24, 1));
}

#[test]
fn the_first_manager_needs_nobody() {
    let (swarm, identity) = Swarm::founded();
    identity.verify(&swarm.root_pem(), NOW_MS).unwrap();
    assert_eq!(swarm.chain_of(FIRST), (identity.chain_pem().to_owned(), Role::Manager));
    let tokens = swarm.tokens();
    assert_ne!(tokens.manager, tokens.worker);
    assert_eq!(swarm.node(FIRST).role, Role::Manager);
}

#[test]
fn a_certificate_that_is_not_there_yet_is_asked_for_again() {
    let (mut swarm, _) = Swarm::founded();
    let mut status_in = |state| {
        swarm.set_node(FIRST, |node| {
            node.certificate.state = state;
            node.certificate.error = "CSR Decode failed".to_owned();
        });
        status(&swarm.state, FIRST).map(|_| ()).map_err(|status| status.code)
    };
    assert_eq!(status_in(IssuanceState::Issued), Ok(()));
    assert_eq!(status_in(IssuanceState::Rotate), Ok(()));
    assert_eq!(status_in(IssuanceState::Pending), Err(Code::Unavailable));
    assert_eq!(status_in(IssuanceState::Renew), Err(Code::Unavailable));
    assert_eq!(status_in(IssuanceState::Unknown), Err(Code::Unavailable));
    assert_eq!(status_in(IssuanceState::Failed), Err(Code::FailedPrecondition));
    check_refusal(status(&swarm.state, FIRST), Code::FailedPrecondition, "CSR Decode failed");
}

#[test]
fn debug_shows_no_token() {
    let (mut swarm, _) = Swarm::founded();
    let token = swarm.tokens().manager;
    let (text, id) = swarm.make_token(Role::Worker, None, None);
    let shown = format!("{:?} {:?} {:?}", request(&token), swarm.cluster(), swarm.token(id));
    assert!(!shown.contains(&token[60..]) && !shown.contains(&text[60..]), "{shown}");
}

mod clean_up;
