//! The certificate authority behind the requests machine, in a manager without threads.

use super::*;
use crate::codec::envelope;
use crate::control::Context;
use crate::net::handler::{ConnectionId, StreamId};
use crate::pki;
use crate::sys::entropy::SeededEntropy;
use crate::types::api::Answer;
use crate::types::object::{
    Annotations, Availability, CaSettings, Cluster, ClusterSpec, Meta, Node, NodeDescription, Profile, RaftSettings,
    Sensitive,
};
use crate::types::{ChangeId, ClusterId, Kind, Lineage, Object, Operation, Position, Revision, Role, Term, Timestamp};

const CLUSTER: ClusterId = ClusterId(0xC1);
const FIRST: NodeId = NodeId(0xF1);

/// A leader and its log.
struct Leader {
    services: Services,
    token: String,
}

fn incoming(caller: Caller, call: Call, body: Bytes) -> Incoming {
    Incoming {
        stream: StreamId { connection: ConnectionId(1), stream: 1 },
        caller,
        addr: String::new(),
        // What a follower passes on says who asked it.
        forwarded: true,
        call,
        deadline: Instant::from_nanos(u64::MAX),
        body,
    }
}

impl Leader {
    fn new() -> Self {
        let entropy = &mut SeededEntropy::new(1);
        let founding =
            ca::found(CLUSTER, FIRST, NodeDescription::default(), ca::DEFAULT_VALIDITY, wall_ms(), entropy).unwrap();
        let token = founding.root_ca.join_tokens.worker.clone();
        let state = State::bootstrap(Lineage(1), FIRST, "10.0.0.1:4242");
        let context = Context {
            notices: Vec::new(),
            node_id: FIRST,
            cluster_id: CLUSTER,
            hostname: "m1".to_owned(),
            data_dir: "/var/lib/skep".to_owned(),
            version: "1.2.3".to_owned(),
            sync_us: 0,
            raft: super::super::assemble::empty_report(),
            links: Vec::new(),
            certificate: None,
        };
        let services = Services::new(Control::new(Arc::new(Store::new(state, 1 << 16)), context));
        let leader = Self { services, token };
        leader.write(
            1 << 100,
            vec![Operation::Create(cluster(founding.root_ca).into()), Operation::Create(founding.node.into())],
        );
        leader
    }

    fn commit(&self, change: Change) -> Outcome {
        self.services.store().write(|state| {
            let Position { index, .. } = state.applied();
            state.advance(Position { term: Term(1), index: index.next() });
            state.apply_change(change.clone(), Term(1))
        })
    }

    fn write(&self, id: u128, operations: Vec<Operation>) {
        let after = self.services.store().revision();
        let change = Change { id: ChangeId(id), after, time: Timestamp(wall_ms()), term: None, operations };
        let outcome = self.commit(change);
        assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
    }

    fn node(&self, id: NodeId) -> Node {
        self.services.store().view(|state| match &state.get(Kind::Node, id.into()).unwrap().object {
            Object::Node(node) => (**node).clone(),
            other => panic!("{other:?}"),
        })
    }

    /// Carries a request to its end. `meddle` is called before each change is committed.
    fn ask(
        &mut self,
        caller: Caller,
        request: &IssueRequest,
        mut meddle: impl FnMut(&Self, u32),
    ) -> Result<(NodeId, String), Status> {
        let incoming = incoming(caller, Call::Issue, envelope::encode(request).into());
        let mut attempt = 0;
        let mut step = self.services.decide(&incoming, attempt, true);
        loop {
            step = match step {
                Step::Answer(body) => match envelope::decode(&body, body.len()).unwrap() {
                    Answer::Certificate { node_id, chain, .. } => return Ok((node_id, chain)),
                    other => panic!("{other:?}"),
                },
                Step::Refuse(status) | Step::RefuseIfConfirmed(status) => return Err(status),
                Step::Propose(change) => {
                    meddle(self, attempt);
                    let object = change.written();
                    let outcome = self.commit(change);
                    self.services.ended(&incoming, attempt, object, &outcome)
                }
                Step::Rebuild => {
                    attempt += 1;
                    self.services.decide(&incoming, attempt, true)
                }
                other => panic!("{other:?}"),
            };
        }
    }
}

fn cluster(root_ca: crate::types::object::RootCa) -> Cluster {
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
                expired_grace_ms: 0,
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

fn request(change: u128, token: &str) -> IssueRequest {
    let key = pki::generate_key(&mut SeededEntropy::new(change as u64));
    IssueRequest {
        change: ChangeId(change),
        after: Revision(0),
        csr: pki::signing_request(&key).unwrap(),
        token: Sensitive(token.as_bytes().to_vec()),
        description: NodeDescription::default(),
        role: None,
        availability: Availability::Active,
    }
}

fn node(node_id: NodeId, expired: bool) -> Caller {
    Caller::Node { node_id, role: Role::Worker, cluster_id: CLUSTER, expired }
}

#[test]
fn a_request_that_was_passed_on_is_its_first_callers() {
    let mut leader = Leader::new();
    let token = leader.token.clone();
    let (joined, chain) = leader.ask(Caller::Anonymous, &request(10, &token), |_, _| ()).unwrap();
    assert_eq!(pki::identity_of_pem(&chain).unwrap().node_id, joined);

    let (renewed, next) = leader.ask(node(joined, false), &request(11, ""), |_, _| ()).unwrap();
    assert_eq!(renewed, joined);
    assert_ne!(next, chain);
    // That the certificate expired travels too: there is no grace here, and the newest one has not ended.
    let (_, third) = leader.ask(node(joined, true), &request(12, ""), |_, _| ()).unwrap();
    assert_ne!(third, next);
    let mut object = leader.node(joined);
    object.certificate.expires_at = Timestamp(1);
    leader.write(1 << 101, vec![Operation::Update(object.into())]);
    let status = leader.ask(node(joined, true), &request(13, ""), |_, _| ()).unwrap_err();
    assert_eq!(status.code, Code::FailedPrecondition);
    assert!(status.hint.contains("skep node approve"), "{status:?}");
    leader.ask(node(joined, false), &request(14, ""), |_, _| ()).unwrap();
}

#[test]
fn a_repeated_request_gets_the_first_answer() {
    let mut leader = Leader::new();
    let token = leader.token.clone();
    let first = leader.ask(Caller::Anonymous, &request(10, &token), |_, _| ()).unwrap();
    let before = leader.services.store().revision();
    assert_eq!(leader.ask(Caller::Anonymous, &request(10, &token), |_, _| ()), Ok(first.clone()));
    // Its token does not matter any more.
    assert_eq!(leader.ask(Caller::Anonymous, &request(10, ""), |_, _| ()), Ok(first));
    assert_eq!(leader.services.store().revision(), before);
}

#[test]
fn a_renewal_that_meets_another_writer_is_decided_again() {
    let mut leader = Leader::new();
    let meddle = |leader: &Leader, attempt: u32| {
        if attempt < 2 {
            let mut object = leader.node(FIRST);
            object.role = if attempt == 0 { Role::Worker } else { Role::Manager };
            object.status.message = format!("write {attempt}");
            leader.write(u128::from(attempt) | 1 << 102, vec![Operation::Update(object.into())]);
        }
    };
    let asked = request(10, "");
    let first = leader.ask(node(FIRST, false), &asked, meddle).unwrap();
    assert_eq!(pki::identity_of_pem(&first.1).unwrap().role, Role::Manager);
    assert_eq!(leader.node(FIRST).status.message, "write 1");
    // Asked again it walks through the same attempts.
    assert_eq!(leader.ask(node(FIRST, false), &asked, |_, _| panic!("nothing is proposed")), Ok(first));
}

#[test]
fn a_flood_of_newcomers_is_held_back_and_renewals_are_not() {
    let mut leader = Leader::new();
    let token = leader.token.clone();
    let mut refused = None;
    for change in 10..2000 {
        if let Err(status) = leader.ask(Caller::Anonymous, &request(change, &token), |_, _| ()) {
            refused = Some(status);
            break;
        }
    }
    let status = refused.expect("someone is held back");
    assert_eq!(status.code, Code::ResourceExhausted, "{status:?}");
    leader.ask(node(FIRST, false), &request(5000, ""), |_, _| ()).unwrap();
}

#[test]
fn a_list_takes_long_once_it_can_be_answered_and_nothing_else_does() {
    use crate::types::api::{Filter, QueryKind};
    let leader = Leader::new();
    let takes_long = |what: QueryKind, stale: bool, confirmed: bool| {
        let body = envelope::encode(&Query { stale, what }).into();
        leader.services.takes_long(&incoming(Caller::Local, Call::Query, body), confirmed)
    };
    let everything = [
        QueryKind::Status,
        QueryKind::Members,
        QueryKind::Raft,
        QueryKind::List(Kind::Config, Filter::default(), None),
        QueryKind::Inspect(Kind::Config, "a".to_owned()),
        QueryKind::Token(Role::Worker),
        QueryKind::Change(ChangeId(1), Revision(1)),
        QueryKind::RootCa,
        QueryKind::UnlockKey,
    ];
    for what in everything {
        let is_list = matches!(what, QueryKind::List(..));
        for (stale, confirmed) in [(false, false), (false, true), (true, false), (true, true)] {
            let expected = is_list && (stale || confirmed);
            assert_eq!(takes_long(what.clone(), stale, confirmed), expected, "{what:?} {stale} {confirmed}");
        }
    }
    assert!(!leader.services.takes_long(&incoming(Caller::Local, Call::Query, Bytes::new()), true));
}
