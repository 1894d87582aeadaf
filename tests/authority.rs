//! The certificate authority as strangers meet it: over TLS, with nothing but a token, or with a certificate that is over.
//!
//! One process whose clock is wound forward, so the tests take turns.

#![allow(clippy::unwrap_used)]
#![cfg(debug_assertions)]

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use skep::client::{Client, ClientError, TlsTarget};
use skep::pki::{self, NodeIdentity, PrivateKey, Trust};
use skep::sys::entropy::{Entropy, OsEntropy};
use skep::sys::time::{wall_ms, wind};
use skep::types::api::{Answer, Call, Filter, IssueRequest, QueryKind, ReportRequest, Write};
use skep::types::object::{Availability, NodeDescription, Sensitive};
use skep::types::{ChangeId, Code, Kind, NodeId, Object, Role, Status};
use skep::{Config, Node};

const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

static CLOCK: Mutex<()> = Mutex::new(());

#[track_caller]
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A manager that begins a swarm, and who meets it.
struct Swarm {
    manager: Node,
    root_pem: String,
    token: String,
    _dir: tempfile::TempDir,
    _clock: MutexGuard<'static, ()>,
}

impl Swarm {
    fn new() -> Self {
        let clock = CLOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let manager = Node::start(Config::local(dir.path().join("m1"))).unwrap();
        let Answer::Token(token) =
            manager.client().unwrap().query(QueryKind::Token(Role::Worker), false, PATIENCE).unwrap()
        else {
            panic!("a token is asked for");
        };
        let token = String::from_utf8(token.0.clone()).unwrap();
        let mut swarm = Self { manager, root_pem: String::new(), token, _dir: dir, _clock: clock };
        let Answer::Root { root } = swarm.stranger(None, Trust::Anything).call(Call::GetRoot, &(), PATIENCE).unwrap()
        else {
            panic!("the root is asked for");
        };
        swarm.token.parse::<pki::JoinToken>().unwrap().verify_root(&root).unwrap();
        swarm.root_pem = root;
        // What the manager says of itself is written a moment after it serves.
        eventually("the manager has reported", || swarm.nodes().iter().all(|node| node.certificate.in_use));
        swarm
    }

    /// A connection of somebody who shows this certificate, or none.
    fn stranger(&self, identity: Option<&NodeIdentity>, trust: Trust) -> Client {
        let target = TlsTarget {
            addr: self.manager.listen_addr().to_string(),
            server_name: pki::manager_name(),
            config: pki::client_config(identity, trust).unwrap(),
            expected: None,
            hello: None,
        };
        Client::tls(target, PATIENCE).unwrap()
    }

    fn ask<B: serde::Serialize>(&self, identity: Option<&NodeIdentity>, body: &B) -> Result<Answer, Status> {
        let mut client = self.stranger(identity, Trust::Roots(self.root_pem.clone()));
        client.call(Call::Issue, body, PATIENCE).map_err(ClientError::into_status)
    }

    /// A certificate for this key: a renewal for who shows one.
    fn certificate(&self, shown: Option<&NodeIdentity>, key: &PrivateKey, token: &str) -> Result<NodeIdentity, Status> {
        match self.ask(shown, &self.request(key, token))? {
            Answer::Certificate { chain, .. } => Ok(NodeIdentity::new(&chain, key.clone()).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    fn request(&self, key: &PrivateKey, token: &str) -> IssueRequest {
        IssueRequest {
            change: ChangeId(OsEntropy.next_u128()),
            after: self.manager.client().unwrap().hello().revision,
            csr: pki::signing_request(key).unwrap(),
            token: Sensitive(token.as_bytes().to_vec()),
            role: None,
            description: NodeDescription { hostname: "w1".to_owned(), ..NodeDescription::default() },
            availability: Availability::Active,
        }
    }

    /// What a node says when it uses a new certificate.
    fn report(&self, identity: &NodeIdentity) {
        let report = ReportRequest {
            change: ChangeId(OsEntropy.next_u128()),
            after: self.manager.client().unwrap().hello().revision,
            description: NodeDescription { hostname: "w1".to_owned(), ..NodeDescription::default() },
            issuer: pki::issuer_of(identity.chain_pem(), &self.root_pem).unwrap(),
            addr: String::new(),
        };
        let mut client = self.stranger(Some(identity), Trust::Roots(self.root_pem.clone()));
        assert_eq!(client.call(Call::Report, &report, PATIENCE).unwrap(), Answer::Done);
    }

    fn nodes(&self) -> Vec<skep::types::object::Node> {
        let objects = self.manager.client().unwrap().list(Kind::Node, &Filter::default(), false, PATIENCE).unwrap();
        objects
            .into_iter()
            .map(|object| match object {
                Object::Node(node) => *node,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    fn knows(&self, id: NodeId) -> bool {
        self.nodes().iter().any(|node| node.id == id)
    }

    fn write(&self, write: Write) -> Result<(), Status> {
        self.manager.client().unwrap().write(write, PATIENCE).map(|_| ()).map_err(ClientError::into_status)
    }

    fn set(&self, validity: Option<Duration>, grace: Option<Duration>) {
        let ms = |duration: Duration| duration.as_millis() as u64;
        let write = Write::UpdateCluster {
            snapshot_bytes: None,
            keep_bytes: None,
            node_certificate_expiry_ms: validity.map(ms),
            expired_grace_ms: grace.map(ms),
            approve_joins: None,
            autolock: None,
            if_version: None,
        };
        self.write(write).unwrap();
    }
}

fn key() -> PrivateKey {
    pki::generate_key(&mut OsEntropy)
}

#[track_caller]
fn check_refusal<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, words: &str) {
    let status = result.unwrap_err();
    assert!(status.code == code && status.message.contains(words) && !status.hint.is_empty(), "{status:?}");
}

#[test]
fn who_took_a_certificate_and_never_came_is_forgotten_and_the_rest_stays() {
    let swarm = Swarm::new();
    let silent = swarm.certificate(None, &key(), &swarm.token).unwrap();
    let id = silent.identity().node_id;
    assert!(swarm.knows(id) && swarm.knows(swarm.manager.node_id()));
    wind(HOUR + Duration::from_secs(60));
    // Another newcomer makes the manager look.
    let fresh = swarm.certificate(None, &key(), &swarm.token).unwrap();
    eventually("it is forgotten", || !swarm.knows(id));
    assert!(swarm.knows(fresh.identity().node_id) && swarm.knows(swarm.manager.node_id()));
    let refusal = swarm.certificate(Some(&silent), &key(), &swarm.token);
    check_refusal(refusal, Code::NotFound, "not found when attempting to renew certificate");
}

#[test]
fn a_certificate_that_expired_renews_within_the_grace() {
    let swarm = Swarm::new();
    swarm.set(Some(HOUR), Some(HOUR));
    let first = swarm.certificate(None, &key(), &swarm.token).unwrap();
    let id = first.identity().node_id;
    // In force: no token is asked for, and the node is who it was.
    let second = swarm.certificate(Some(&first), &key(), "").unwrap();
    assert_eq!((second.identity().node_id, second.identity().role), (id, Role::Worker));
    swarm.report(&second);
    wind(HOUR + HOUR / 2);
    assert!(second.identity().is_expired(wall_ms()));
    let third = swarm.certificate(Some(&second), &key(), "").unwrap();
    assert_eq!(third.identity().node_id, id);
    third.verify(&swarm.root_pem, wall_ms()).unwrap();
    // Once it is known to use that one, the old key opens nothing.
    swarm.report(&third);
    check_refusal(swarm.certificate(Some(&first), &key(), ""), Code::FailedPrecondition, "uses a newer certificate");
}

#[test]
fn hostile_requests_are_refused_with_a_hint_and_leave_nothing() {
    let swarm = Swarm::new();
    let good = || swarm.request(&key(), &swarm.token);
    let before = swarm.nodes();
    let own = good().csr;
    let middle = own.len() / 2;
    let flipped = own
        .char_indices()
        .map(|(place, letter)| match (place == middle, letter) {
            (true, 'A') => 'B',
            (true, _) => 'A',
            _ => letter,
        })
        .collect();
    for (csr, words) in [
        (String::new(), "a signing request is needed"),
        ("x".repeat(20_000), "is larger than"),
        ("-----BEGIN CERTIFICATE REQUEST-----\n".to_owned(), "no readable signing request"),
        (swarm.root_pem.clone(), "no readable signing request"),
        (own.replace('\n', "\0"), "no readable signing request"),
        (flipped, "signing request"),
    ] {
        check_refusal(swarm.ask(None, &IssueRequest { csr, ..good() }), Code::InvalidArgument, words);
    }
    let other = pki::JoinToken::generate("another root", &mut OsEntropy).to_string();
    for token in
        [vec![], vec![0; 1000], vec![0xff; 85], other.clone().into_bytes(), format!("{}\n", swarm.token).into()]
    {
        let request = IssueRequest { token: Sensitive(token), ..good() };
        check_refusal(swarm.ask(None, &request), Code::InvalidArgument, "A valid join token is necessary");
    }
    let engine_labels = [("k".to_owned(), "v".repeat(30 << 10))].into();
    let description = NodeDescription { engine_labels, ..NodeDescription::default() };
    check_refusal(
        swarm.ask(None, &IssueRequest { description, ..good() }),
        Code::InvalidArgument,
        "at most 16384 bytes",
    );
    check_refusal(swarm.ask(None, &(7_u8, "no request at all")), Code::InvalidArgument, "the request cannot be read");
    // A role that the token does not give.
    let greedy = IssueRequest { role: Some(Role::Manager), ..good() };
    check_refusal(swarm.ask(None, &greedy), Code::InvalidArgument, "the token is a worker token");
    assert_eq!(swarm.nodes(), before);
    swarm.certificate(None, &key(), &swarm.token).unwrap();
}

#[test]
fn who_was_off_for_too_long_comes_back_once_a_person_says_so() {
    let swarm = Swarm::new();
    swarm.set(Some(HOUR), Some(Duration::ZERO));
    let first = swarm.certificate(None, &key(), &swarm.token).unwrap();
    let id = first.identity().node_id;
    swarm.report(&first);
    wind(2 * HOUR);
    let refusal = swarm.certificate(Some(&first), &key(), &swarm.token);
    assert!(refusal.as_ref().unwrap_err().hint.contains(&format!("skep node approve {id}")), "{refusal:?}");
    check_refusal(refusal, Code::FailedPrecondition, "longer ago than the 0 days");
    swarm.write(Write::ApproveNode { node: id.to_string() }).unwrap();
    let second = swarm.certificate(Some(&first), &key(), "").unwrap();
    assert_eq!(second.identity().node_id, id);
    swarm.report(&second);
    wind(2 * HOUR);
    check_refusal(swarm.certificate(Some(&second), &key(), ""), Code::FailedPrecondition, "longer ago than the 0 days");
}
