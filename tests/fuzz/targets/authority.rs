//! What the certificate authority is asked for, by anybody who can connect.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use skep::ca::{self, Decision};
use skep::codec::envelope;
use skep::pki::{JoinToken, generate_key, identity_of_pem, signing_request};
use skep::store::State;
use skep::sys::entropy::SeededEntropy;
use skep::types::api::{Answer, IssueRequest};
use skep::types::limits::MAX_FRAME_BYTES;
use skep::types::object::{
    Annotations, Availability, CaSettings, Cluster, ClusterSpec, IssuanceState, Meta, Node, NodeDescription, Profile,
    RaftSettings, Sensitive, Token,
};
use skep::types::{
    Caller, Change, ChangeId, ClusterId, Kind, Lineage, NodeId, Object, ObjectId, Operation, Outcome, Revision, Role,
    Term, Timestamp,
};

use super::{ENVELOPE, Target};

pub(super) fn targets() -> Vec<Target> {
    vec![Target { name: "issue", run: issue, seeds, words: WORDS, runs: 1500, ..ENVELOPE }]
}

const WORDS: &[&str] = &["-----BEGIN ", "-----END ", "-----\n", "CERTIFICATE REQUEST", "SWMTKN-1-", "\n", "="];

/// 2026-01-01T00:00:00Z.
const NOW_MS: u64 = 1_767_225_600_000;
const CLUSTER: ClusterId = ClusterId(0xFEDC);
/// The first manager, and a worker that joined.
const NODES: [(NodeId, Role); 2] = [(NodeId(0xF1), Role::Manager), (NodeId(0xF2), Role::Worker)];

struct Swarm {
    state: State,
    /// Manager's, worker's, and one for two workers.
    tokens: [String; 3],
}

/// A swarm of two nodes with every kind of token; one that can sign and one that cannot.
static SWARMS: LazyLock<[Swarm; 2]> = LazyLock::new(|| [swarm(true), swarm(false)]);

fn swarm(can_sign: bool) -> Swarm {
    let entropy = &mut SeededEntropy::new(1);
    let validity = Duration::from_secs(7200);
    let (first, _) = NODES[0];
    let founding = ca::found(CLUSTER, first, NodeDescription::default(), validity, NOW_MS, entropy);
    let founding = founding.expect("the date is one of our time");
    let (standing, root) = (founding.root_ca.join_tokens.clone(), founding.root_ca.certificate.clone());
    let mut cluster = cluster(founding.root_ca);
    if !can_sign {
        cluster.root_ca.key = Sensitive(b"broken".to_vec());
    }
    let made = JoinToken::generate(&root, entropy);
    let token = Token {
        id: made.object_id(),
        meta: Meta::default(),
        annotations: Annotations {
            labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
            ..Annotations::default()
        },
        role: Role::Worker,
        expires_at: Some(Timestamp(NOW_MS + 1)),
        uses_left: Some(2),
        root_digest: made.digest(),
        secret_digest: Sensitive(made.secret_digest().to_vec()),
    };
    let mut worker = Node::new(NODES[1].0, NODES[1].1);
    worker.certificate.state = IssuanceState::Issued;
    worker.certificate.expires_at = Timestamp(NOW_MS - 1000);
    let objects = [Object::from(cluster), founding.node.into(), worker.into(), token.into()];
    let mut state = State::bootstrap(Lineage(1), first, "10.0.0.1:4242");
    let outcome = apply(&mut state, 1 << 100, objects.map(Operation::Create).to_vec());
    assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
    Swarm { state, tokens: [standing.manager, standing.worker, made.to_string()] }
}

fn cluster(root_ca: skep::types::object::RootCa) -> Cluster {
    Cluster {
        id: CLUSTER,
        meta: Meta::default(),
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
                expired_grace_ms: 1000,
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

fn apply(state: &mut State, id: u128, operations: Vec<Operation>) -> Outcome {
    let after = state.revision();
    let change = Change { id: ChangeId(id), after, time: Timestamp(NOW_MS), term: None, operations };
    state.apply_change(change, Term(2)).0
}

/// The first byte chooses who asks and whether the swarm can sign; the rest is the request's envelope.
fn issue(input: &[u8]) {
    let Some((form, body)) = input.split_first() else { return };
    let swarm = &SWARMS[usize::from(form >> 3 & 1)];
    let known = |(node_id, role): (NodeId, Role), expired| Caller::Node { node_id, role, cluster_id: CLUSTER, expired };
    let caller = match form & 7 {
        0 | 1 => Caller::Anonymous,
        2 => known(NODES[0], false),
        3 => known(NODES[1], true),
        // Says of itself what the store does not.
        4 => known((NODES[1].0, Role::Manager), false),
        5 => known((NodeId(7), Role::Manager), false),
        6 => Caller::Node { node_id: NODES[0].0, role: Role::Manager, cluster_id: ClusterId(8), expired: false },
        _ => Caller::Local,
    };
    let Ok(request) = envelope::decode::<IssueRequest>(body, MAX_FRAME_BYTES) else { return };
    let entropy = &mut SeededEntropy::new(9);
    let mut wish = None;
    let permit: ca::Permit<'_> = &mut |asked| {
        wish = Some(asked);
        Ok(())
    };
    let change = match ca::issue(&swarm.state, &caller, &request, NOW_MS, entropy, permit) {
        Ok(Decision::Propose(change)) => change,
        Ok(Decision::Have(node)) => return assert!(NODES.iter().any(|(known, _)| *known == node), "{node}"),
        Err(status) => {
            assert!(!status.message.is_empty() && !status.hint.is_empty(), "{status:?}");
            let shown = format!("{status:?}");
            return assert!(swarm.tokens.iter().all(|token| !shown.contains(&token[60..])), "a token is shown");
        }
    };
    assert_eq!((change.id, change.after, change.time), (request.change, request.after, Timestamp(NOW_MS)));
    let subject = ca::subject(&swarm.state, &caller, &request);
    let newcomer = matches!(wish.expect("nothing is signed that was not permitted"), ca::Wish::Newcomer(_));
    let role = expected_role(swarm, subject, newcomer, &request);
    // A newcomer gets one node, for one use of its token; everybody else nothing but a new certificate.
    for operation in &change.operations {
        match operation {
            Operation::Create(Object::Node(node)) => assert!(newcomer && node.id == subject && node.role == role),
            Operation::Update(Object::Node(node)) => assert!(!newcomer && node.id == subject && node.role == role),
            Operation::UseToken(_) => assert!(newcomer && request.token.0 == swarm.tokens[2].as_bytes()),
            other => panic!("{other:?}"),
        }
    }
    let mut state = swarm.state.clone();
    let before = (state.count(Kind::Node), state.get(Kind::Token, token_id(swarm)).expect("it is there").hash);
    let outcome = apply(&mut state, request.change.0, change.operations);
    // The one id that is taken, and one that a request can hit, answer for another change.
    if let Outcome::Committed(Revision(2)) = outcome {
        assert_eq!(state.count(Kind::Node), before.0 + usize::from(newcomer));
        let token = state.get(Kind::Token, token_id(swarm)).expect("it is not removed");
        assert_eq!(token.hash == before.1, !newcomer || request.token.0 != swarm.tokens[2].as_bytes());
        match ca::status(&state, subject) {
            Ok(Answer::Certificate { node_id, chain, role: certified }) => {
                let identity = identity_of_pem(&chain).expect("what was signed names a node");
                let found = (identity.node_id, identity.role, identity.cluster_id);
                assert_eq!((found, node_id, certified), ((subject, role, CLUSTER), subject, role));
            }
            Ok(other) => panic!("{other:?}"),
            Err(status) => assert!(form >> 3 & 1 == 1, "{status:?}"),
        }
    }
}

fn token_id(swarm: &Swarm) -> ObjectId {
    swarm.tokens[2].parse::<JoinToken>().expect("it was made by the product").object_id()
}

/// The role that the token or the store gives; anything else would be an escalation.
fn expected_role(swarm: &Swarm, subject: NodeId, newcomer: bool, request: &IssueRequest) -> Role {
    if !newcomer {
        return NODES.iter().find(|(id, _)| *id == subject).expect("only nodes renew").1;
    }
    let place = swarm.tokens.iter().position(|token| token.as_bytes() == request.token.0);
    let role = [Role::Manager, Role::Worker, Role::Worker][place.expect("only a whole token admits")];
    assert!(request.role.is_none_or(|wanted| wanted == role), "a node was made that does not want its role");
    role
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let request = |token: &str, role| IssueRequest {
        change: ChangeId(5),
        after: Revision(0),
        csr: signing_request(&generate_key(&mut SeededEntropy::new(2))).expect("an ed25519 key signs"),
        token: Sensitive(token.as_bytes().to_vec()),
        role,
        description: NodeDescription { hostname: "m2".to_owned(), ..NodeDescription::default() },
        availability: Availability::Active,
    };
    let [manager, worker, limited] = SWARMS[0].tokens.each_ref().map(String::as_str);
    [
        ("manager", 0, request(manager, Some(Role::Manager))),
        ("worker", 0, request(worker, None)),
        ("limited", 0, request(limited, None)),
        ("renews", 2, request("", None)),
        ("expired", 3, request("", None)),
        ("pretends", 4, request("", None)),
        ("gone", 5, request("", None)),
        ("foreign", 6, request(worker, None)),
        ("broken", 8, request(limited, None)),
        ("broken-renews", 10, request("", None)),
    ]
    .into_iter()
    .map(|(name, form, request)| (name.to_owned(), [vec![form], envelope::encode(&request)].concat()))
    .collect()
}
