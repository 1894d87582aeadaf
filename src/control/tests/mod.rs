//! Tests of the service as a whole: a store, a log of one's own, and requests as they arrive.

mod backups;
mod nodes;
mod reads;
mod redaction;
mod reports;
mod rotation;
mod tokens;
mod watching;
mod writes;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::net::handler::{ConnectionId, StreamId};
use crate::store::State;
use crate::types::api::{Progress, Query, QueryKind, Write, WriteRequest};
use crate::types::object::{
    AcceptancePolicy, Annotations, CaSettings, Cluster, ClusterSpec, Node, Profile, RaftSettings, RootCa, Sensitive,
};
use crate::types::*;

const NOW_MS: u64 = 1_800_000_000_000;

/// One manager's control service over a store to which the test applies changes in order.
struct Swarm {
    control: Control,
    changes: u128,
}

impl Swarm {
    fn new() -> Self {
        Self::with_ring(1 << 20)
    }

    fn with_ring(ring_bytes: usize) -> Self {
        let state = State::bootstrap(Lineage(7), NodeId(1), "10.0.0.1:4242");
        let context = Context {
            node_id: NodeId(1),
            cluster_id: ClusterId(5),
            hostname: "m1".to_owned(),
            data_dir: "/var/lib/skep".to_owned(),
            version: "1.2.3".to_owned(),
            sync_us: 0,
            certificate: None,
            raft: report(RaftState::Leader, 1),
            links: Vec::new(),
            notices: Vec::new(),
        };
        Self { control: Control::new(Arc::new(Store::new(state, ring_bytes)), context), changes: 0 }
    }

    /// A swarm with its cluster object and the nodes `m1` to `m3`.
    fn ready() -> Self {
        let mut swarm = Self::new();
        let nodes = (1..=3).map(|id| {
            let mut node = Node::new(NodeId(id), Role::Manager);
            node.description.hostname = format!("m{id}");
            Operation::Create(Object::Node(Box::new(node)))
        });
        let operations: Vec<Operation> =
            [Operation::Create(Object::Cluster(Box::new(cluster())))].into_iter().chain(nodes).collect();
        assert_eq!(swarm.apply(operations), Outcome::Committed(Revision(1)));
        swarm
    }

    fn view<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        self.control.store().view(read)
    }

    /// Applies operations as another writer's change.
    fn apply(&mut self, operations: Vec<Operation>) -> Outcome {
        self.changes += 1;
        let after = self.view(State::revision);
        let id = ChangeId(1 << 100 | self.changes);
        self.commit(&Change { id, after, time: Timestamp(NOW_MS), term: None, operations })
    }

    /// Applies a change as the next entry of the log.
    fn commit(&self, change: &Change) -> Outcome {
        self.control.store().write(|state| {
            let Position { term, index } = state.applied();
            state.advance(Position { term, index: index.next() });
            state.apply_change(change.clone(), term)
        })
    }

    /// A request for `write` under a change id of its own.
    fn request(&mut self, write: Write) -> WriteRequest {
        self.changes += 1;
        WriteRequest { change: ChangeId(self.changes), after: self.view(State::revision), write }
    }

    /// Carries a request to its end.
    fn send(&self, request: &WriteRequest) -> Result<(ObjectId, Revision), Status> {
        let incoming = incoming(Call::Write, envelope::encode(request));
        let mut attempt = 0;
        let mut step = self.control.decide(&incoming, attempt, true, NOW_MS);
        loop {
            step = match step {
                Step::Answer(body) => match envelope::decode(&body, body.len()).unwrap() {
                    Answer::Written { id, revision } => return Ok((id, revision)),
                    other => panic!("{other:?}"),
                },
                Step::Refuse(status) | Step::RefuseIfConfirmed(status) => return Err(status),
                Step::Propose(change) => {
                    let outcome = self.commit(&change);
                    let step = self.control.ended(&incoming, change.written(), &outcome);
                    // What was kept of the proposal and what the store says of the change are the same answer.
                    let found = self.control.ended(&incoming, None, &outcome);
                    assert_eq!(format!("{step:?}"), format!("{found:?}"), "{request:?}");
                    step
                }
                Step::Rebuild => {
                    attempt += 1;
                    self.control.decide(&incoming, attempt, true, NOW_MS)
                }
                other => panic!("{other:?}"),
            };
        }
    }

    fn write(&mut self, write: Write) -> Result<(ObjectId, Revision), Status> {
        let request = self.request(write);
        self.send(&request)
    }

    fn ask(&self, what: QueryKind) -> Result<Answer, Status> {
        let body = envelope::encode(&Query { stale: true, what });
        match self.control.decide(&incoming(Call::Query, body), 0, false, NOW_MS) {
            Step::Answer(body) => Ok(envelope::decode(&body, body.len()).unwrap()),
            Step::Refuse(status) => Err(status),
            other => panic!("{other:?}"),
        }
    }

    fn node(&self, id: u128) -> Node {
        self.view(|state| match &state.get(Kind::Node, ObjectId(id)).unwrap().object {
            Object::Node(node) => (**node).clone(),
            other => panic!("{other:?}"),
        })
    }

    fn create_config(&mut self, name: &str) -> ObjectId {
        self.write(config(name)).unwrap().0
    }
}

/// `code: message`, or `ok`.
fn verdict<T>(result: &Result<T, Status>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(status) => format!("{}: {}", status.code.name(), status.message),
    }
}

fn incoming(call: Call, body: Vec<u8>) -> Incoming {
    Incoming {
        stream: StreamId { connection: ConnectionId(1), stream: 1 },
        caller: Caller::Local,
        addr: String::new(),
        forwarded: false,
        call,
        deadline: Instant::from_nanos(u64::MAX),
        body: Bytes::from(body),
    }
}

fn cluster() -> Cluster {
    Cluster {
        id: ClusterId(5),
        meta: object::Meta::default(),
        spec: ClusterSpec {
            annotations: Annotations { name: "default".to_owned(), ..Annotations::default() },
            task_history_retention_limit: 5,
            raft: RaftSettings::for_profile(Profile::Lan),
            heartbeat_period_ms: 5000,
            ca: CaSettings {
                node_certificate_expiry_ms: 90 * 24 * 3_600_000,
                external_cas: Vec::new(),
                signing_ca_certificate: String::new(),
                signing_ca_key: Sensitive::default(),
                force_rotate: 0,
                expired_grace_ms: 31_536_000_000,
            },
            default_log_driver: None,
            auto_lock_managers: false,
            acceptance_policies: vec![AcceptancePolicy { role: Role::Worker, autoaccept: true }],
        },
        root_ca: RootCa::default(),
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

/// What raft says in a group of `voters` voters, all reachable, led by this one if it leads at all.
fn report(state: RaftState, voters: u64) -> RaftReport {
    let members: Vec<Member> = (1..=voters)
        .map(|id| Member {
            raft_id: RaftId(id),
            node_id: NodeId(id.into()),
            addr: format!("10.0.0.{id}:4242"),
            role: MemberRole::Voter,
        })
        .collect();
    let leads = state == RaftState::Leader;
    let progress = |member: &Member| Progress {
        raft_id: member.raft_id,
        matched: Index(90),
        state: "replicate".to_owned(),
        heard_ms: Some(0),
    };
    RaftReport {
        raft_id: RaftId(1),
        state,
        leader: leads.then_some(RaftId(1)),
        last_leader: None,
        leaderless_ms: 0,
        serving: leads,
        term: Term(3),
        commit: Index(100),
        applied: Index(99),
        first: Index(1),
        last: Index(101),
        snapshot: Index(0),
        log_bytes: 4096,
        elections: 1,
        progress: if leads { members.iter().map(progress).collect() } else { Vec::new() },
        reachable: members.iter().map(|member| member.node_id).collect(),
        members,
        alarms: Vec::new(),
        unsynced_ms: 0,
        disk: Default::default(),
    }
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn config(name: &str) -> Write {
    Write::CreateConfig { name: name.to_owned(), labels: BTreeMap::new(), data: b"data".to_vec() }
}

fn secret(name: &str) -> Write {
    Write::CreateSecret { name: name.to_owned(), labels: BTreeMap::new(), data: Sensitive(b"data".to_vec()) }
}

fn extension(name: &str) -> Write {
    Write::CreateExtension { name: name.to_owned(), description: String::new(), labels: BTreeMap::new() }
}

fn resource(name: &str, kind: &str) -> Write {
    Write::CreateResource {
        name: name.to_owned(),
        kind: kind.to_owned(),
        labels: BTreeMap::new(),
        indices: BTreeMap::new(),
        payload: b"data".to_vec(),
    }
}

fn label(kind: Kind, object: &str, labels: &[(&str, &str)], if_version: Option<u64>) -> Write {
    Write::UpdateLabels {
        kind,
        object: object.to_owned(),
        set: map(labels),
        remove: Vec::new(),
        if_version: if_version.map(Revision),
    }
}

fn remove(kind: Kind, object: &str, if_version: Option<u64>) -> Write {
    Write::Remove { kind, object: object.to_owned(), if_version: if_version.map(Revision) }
}
