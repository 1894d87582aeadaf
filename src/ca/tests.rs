#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use super::*;
use crate::codec::envelope;
use crate::net::routes;
use crate::pki::JoinToken;
use crate::sys::entropy::SeededEntropy;
use crate::types::api::Call;
use crate::types::object::{Annotations, CaSettings, ClusterSpec, Profile, RaftSettings};
use crate::types::{Caller, Revision};

/// 2026-01-01T00:00:00Z.
const NOW_MS: u64 = 1_767_225_600_000;
pub(super) const CLUSTER: ClusterId = ClusterId(0xC1);
const FIRST: NodeId = NodeId(0xF1);

#[derive(Default)]
struct Store {
    cluster: Option<Cluster>,
    nodes: BTreeMap<NodeId, Node>,
}

impl Directory for Store {
    fn cluster(&self) -> Option<Cluster> {
        self.cluster.clone()
    }

    fn node(&self, id: NodeId) -> Option<Node> {
        self.nodes.get(&id).cloned()
    }
}

impl Store {
    /// A swarm of one manager.
    fn founded() -> (Self, NodeIdentity) {
        Self::founded_at(NOW_MS)
    }

    fn founded_at(now_ms: u64) -> (Self, NodeIdentity) {
        let entropy = &mut SeededEntropy::new(1);
        let founding = found(CLUSTER, FIRST, description("m1"), DEFAULT_VALIDITY, now_ms, entropy).unwrap();
        let store = Self { cluster: Some(cluster(founding.root_ca)), nodes: BTreeMap::from([(FIRST, founding.node)]) };
        (store, founding.identity)
    }

    fn tokens(&self) -> JoinTokens {
        self.cluster.as_ref().unwrap().root_ca.join_tokens.clone()
    }

    fn root_pem(&self) -> String {
        match get_root(self).unwrap() {
            Answer::Root { root } => root,
            other => panic!("{other:?}"),
        }
    }

    fn chain_of(&self, node: NodeId) -> (String, Role) {
        match status(self, node).unwrap() {
            Answer::Certificate { node_id, chain, role } if node_id == node => (chain, role),
            other => panic!("{other:?}"),
        }
    }

    /// Applies what a change creates.
    fn apply(&mut self, change: &Change) {
        for operation in &change.operations {
            match operation {
                Operation::Create(Object::Node(node)) => self.nodes.insert(node.id, (**node).clone()),
                other => panic!("{other:?}"),
            };
        }
    }
}

pub(super) fn cluster(root_ca: object::RootCa) -> Cluster {
    Cluster {
        id: CLUSTER,
        meta: crate::types::object::Meta::default(),
        spec: ClusterSpec {
            annotations: Annotations::default(),
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

fn ask(store: &Store, request: &IssueRequest, change: u128) -> Result<Issue, Status> {
    let request = IssueRequest { change: ChangeId(change), ..request.clone() };
    issue(store, &request, NOW_MS, &mut SeededEntropy::new(change as u64))
}

#[track_caller]
fn check_refusal<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, words: &str) {
    let status = result.unwrap_err();
    assert!(status.code == code && status.message.contains(words), "{status:?}");
}

#[test]
fn a_newcomer_joins_with_nothing_but_a_token() {
    let (mut store, first) = Store::founded();
    for (token, role, change) in
        [(store.tokens().manager, Role::Manager, 10), (store.tokens().worker, Role::Worker, 11)]
    {
        let root_pem = store.root_pem();
        token.parse::<JoinToken>().unwrap().verify_root(&root_pem).unwrap();

        let Issue { change, node_id } = ask(&store, &request(&token), change).unwrap();
        assert_eq!(status(&store, node_id).unwrap_err().code, Code::NotFound);
        store.apply(&change);

        let (chain, certified_role) = store.chain_of(node_id);
        assert_eq!(certified_role, role);
        let identity = NodeIdentity::new(&chain, key()).unwrap();
        identity.verify(&root_pem, NOW_MS).unwrap();
        let expected = (node_id, role, CLUSTER, NOW_MS + 7_200_000);
        let found = identity.identity();
        assert_eq!((found.node_id, found.role, found.cluster_id, found.not_after_ms), expected);
        assert_eq!(found.cluster_id, first.identity().cluster_id);
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
    let (mut store, manager) = Store::founded_at(now_ms);
    let root_pem = store.root_pem();
    let stranger = met_by(&manager, None, &root_pem, now_ms);
    assert_eq!(stranger, Caller::Anonymous);
    routes::check(Call::Issue, &stranger).unwrap();

    let body = envelope::encode(&request(&store.tokens().worker));
    assert!(body.len() <= routes::route(Call::Issue).body_limit);
    let request: IssueRequest = envelope::decode(&body, body.len()).unwrap();
    let Issue { change, node_id } = issue(&store, &request, now_ms, &mut SeededEntropy::new(3)).unwrap();
    store.apply(&change);
    let (chain, _) = store.chain_of(node_id);
    let worker = NodeIdentity::new(&chain, key()).unwrap();

    let caller = met_by(&manager, Some(&worker), &root_pem, now_ms);
    assert_eq!(caller, Caller::Node { node_id, role: Role::Worker, cluster_id: CLUSTER, expired: false });
    check_refusal(routes::check(Call::Write, &caller), Code::PermissionDenied, "the caller is a worker");
    routes::check(Call::CertificateStatus, &caller).unwrap();
}

#[test]
fn the_change_creates_an_accepted_node_and_nothing_else() {
    let (store, _) = Store::founded();
    let Issue { change, node_id } = ask(&store, &request(&store.tokens().worker), 10).unwrap();
    assert_eq!((change.id, change.after, change.time), (ChangeId(10), Revision(3), Timestamp(NOW_MS)));
    let [Operation::Create(Object::Node(node))] = change.operations.as_slice() else {
        panic!("{change:?}");
    };
    assert_eq!((node.id, node.role, node.spec.desired_role), (node_id, Role::Worker, Role::Worker));
    assert_eq!(node.spec.membership, crate::types::object::MembershipState::Accepted);
    assert_eq!(node.description.hostname, "m2");
    assert_eq!(node.certificate.csr, request("").csr);
}

#[test]
fn a_repeated_request_is_for_the_same_node() {
    let (store, _) = Store::founded();
    let request = request(&store.tokens().manager);
    let again = |change| ask(&store, &request, change).unwrap().node_id;
    assert_eq!(again(10), again(10));
    assert_ne!(again(10), again(11));
    // The id is stored in certificates: it must not change between versions.
    assert_eq!(node_of_change(ChangeId(10)).to_string(), "3mbu38cpb6s0krd88d96mil3b");
}

#[test]
fn only_a_current_token_of_this_swarm_admits() {
    let (mut store, _) = Store::founded();
    let tokens = store.tokens();
    let other = JoinToken::generate(&store.root_pem(), &mut SeededEntropy::new(9)).to_string();
    let cut = &tokens.manager[..tokens.manager.len() - 1];
    let secret_only = &tokens.manager[60..];
    for token in ["", "hello", other.as_str(), cut, secret_only, &format!("{} ", tokens.manager)] {
        let refusal = ask(&store, &request(token), 10);
        assert!(refusal.as_ref().unwrap_err().hint.contains("skep token show"));
        check_refusal(refusal, Code::InvalidArgument, "A valid join token is necessary to join this cluster");
    }
    store.cluster.as_mut().unwrap().root_ca.join_tokens.manager = other;
    check_refusal(ask(&store, &request(&tokens.manager), 10), Code::InvalidArgument, "A valid join token");
    ask(&store, &request(&tokens.worker), 10).unwrap();
    // An empty stored token is no token; it must not admit whoever sends none.
    store.cluster.as_mut().unwrap().root_ca.join_tokens.worker.clear();
    check_refusal(ask(&store, &request(""), 10), Code::InvalidArgument, "A valid join token");
}

#[test]
fn a_bad_request_is_the_newcomers_fault() {
    let (store, _) = Store::founded();
    let good = request(&store.tokens().manager);
    let check = |request: IssueRequest, words: &str| {
        check_refusal(ask(&store, &request, 10), Code::InvalidArgument, words);
    };
    check(IssueRequest { csr: String::new(), ..good.clone() }, "a signing request is needed");
    check(IssueRequest { csr: "x".repeat(20_000), ..good.clone() }, "larger than 16384 bytes");
    check(IssueRequest { csr: store.root_pem(), ..good.clone() }, "no readable signing request");
    check(IssueRequest { description: description("a\u{1b}[2J"), ..good.clone() }, "control characters");
    check(IssueRequest { description: description(&"a".repeat(254)), ..good }, "at most 253 bytes");
}

#[test]
fn without_a_cluster_the_authority_is_still_starting() {
    let empty = Store::default();
    check_refusal(get_root(&empty), Code::Unavailable, "still starting");
    check_refusal(ask(&empty, &request("SWMTKN-1-a-b"), 10), Code::Unavailable, "still starting");
    check_refusal(status(&empty, FIRST), Code::NotFound, "not part of this swarm");
    let unfinished = Store { cluster: Some(cluster(object::RootCa::default())), ..Store::default() };
    check_refusal(get_root(&unfinished), Code::Unavailable, "still starting");
    check_refusal(ask(&unfinished, &request(""), 10), Code::Unavailable, "still starting");
}

#[test]
fn a_swarm_without_its_key_says_so_and_a_broken_one_shows_nothing() {
    let (mut store, _) = Store::founded();
    let request = request(&store.tokens().manager);
    let root_ca = |store: &mut Store, key: &[u8]| store.cluster.as_mut().unwrap().root_ca.key = Sensitive(key.to_vec());
    root_ca(&mut store, b"");
    check_refusal(ask(&store, &request, 10), Code::FailedPrecondition, "does not hold its root key");
    root_ca(&mut store, b"SECRET");
    let status = ask(&store, &request, 10).unwrap_err();
    assert!(status.code == Code::Internal && !status.message.contains("SECRET"), "{status:?}");
}

#[test]
fn a_validity_under_an_hour_is_taken_for_the_default() {
    let (mut store, _) = Store::founded();
    let request = request(&store.tokens().manager);
    let mut days_for = |setting_ms| {
        store.cluster.as_mut().unwrap().spec.ca.node_certificate_expiry_ms = setting_ms;
        let Issue { change, .. } = ask(&store, &request, 10).unwrap();
        let [Operation::Create(Object::Node(node))] = change.operations.as_slice() else {
            panic!("{change:?}");
        };
        let identity = NodeIdentity::new(&node.certificate.certificate, key()).unwrap();
        (identity.identity().not_after_ms - NOW_MS) / 3_600_000
    };
    assert_eq!((days_for(0), days_for(3_599_999), days_for(3_600_000)), (90 * 24, 90 * 24, 1));
}

#[test]
fn the_first_manager_needs_nobody() {
    let (store, identity) = Store::founded();
    identity.verify(&store.root_pem(), NOW_MS).unwrap();
    assert_eq!(store.chain_of(FIRST), (identity.chain_pem().to_owned(), Role::Manager));
    let tokens = store.tokens();
    assert_ne!(tokens.manager, tokens.worker);
    assert_eq!(store.nodes[&FIRST].role, Role::Manager);
}

#[test]
fn a_certificate_that_is_not_there_yet_is_asked_for_again() {
    let (mut store, _) = Store::founded();
    let mut status_in = |state| {
        store.nodes.get_mut(&FIRST).unwrap().certificate.state = state;
        store.nodes.get_mut(&FIRST).unwrap().certificate.error = "the external authority said no".to_owned();
        status(&store, FIRST).map(|_| ()).map_err(|status| status.code)
    };
    assert_eq!(status_in(IssuanceState::Issued), Ok(()));
    assert_eq!(status_in(IssuanceState::Rotate), Ok(()));
    assert_eq!(status_in(IssuanceState::Pending), Err(Code::Unavailable));
    assert_eq!(status_in(IssuanceState::Renew), Err(Code::Unavailable));
    assert_eq!(status_in(IssuanceState::Unknown), Err(Code::Unavailable));
    assert_eq!(status_in(IssuanceState::Failed), Err(Code::FailedPrecondition));
    check_refusal(status(&store, FIRST), Code::FailedPrecondition, "the external authority said no");
}

#[test]
fn debug_shows_no_token() {
    let (store, _) = Store::founded();
    let token = store.tokens().manager;
    let shown = format!("{:?} {:?}", request(&token), store.cluster);
    assert!(!shown.contains(&token[60..]), "{shown}");
}
