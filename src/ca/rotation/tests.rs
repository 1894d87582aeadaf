#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::super::tests::{CLUSTER, cluster};
use super::super::{found, signer};
use super::*;
use crate::client::own_root;
use crate::pki::{JoinToken, NodeIdentity, RootCa};
use crate::sys::entropy::SeededEntropy;
use crate::sys::time::wall_ms;
use crate::term::Ended;
use crate::types::api::NewRoot;
use crate::types::object::{Certificate, NodeDescription, Sensitive};
use crate::types::{Lineage, MemberChange, Outcome, Position, RaftId, Refusal, Role, Term};

const FIRST: NodeId = NodeId(1);
const HOURS: Duration = Duration::from_secs(2 * 3600);
const STEP_MS: u64 = 500;

/// A node as it is on its own machine.
struct Machine {
    identity: NodeIdentity,
    /// The roots it was given.
    roots: String,
    up: bool,
    /// Certificates never reach its disk.
    stuck: bool,
}

/// A swarm: the store, the leader's service, and the nodes, which do what nodes do.
struct Swarm {
    state: State,
    service: Rotation,
    now_ms: u64,
    changes: u128,
    entropy: SeededEntropy,
    machines: BTreeMap<NodeId, Machine>,
}

impl Swarm {
    /// One manager and so many workers, all of them up.
    fn of(nodes: u128) -> Self {
        // The handshakes of TLS read the real clock.
        let now_ms = wall_ms();
        let entropy = &mut SeededEntropy::new(1);
        let founding = found(CLUSTER, FIRST, NodeDescription::default(), HOURS, now_ms, entropy).unwrap();
        let roots = founding.root_ca.certificate.clone();
        let mut swarm = Self {
            state: State::bootstrap(Lineage(7), FIRST, "10.0.0.1:4242"),
            service: Rotation::default(),
            now_ms,
            changes: 0,
            entropy: SeededEntropy::new(2),
            machines: BTreeMap::new(),
        };
        let mut cluster = cluster(founding.root_ca);
        cluster.spec.annotations.name = "default".to_owned();
        swarm.write(vec![Operation::Create(cluster.into()), Operation::Create(Object::Node(Box::new(founding.node)))]);
        swarm.machines.insert(FIRST, Machine { identity: founding.identity, roots, up: true, stuck: false });
        for id in 2..=nodes {
            swarm.join(NodeId(id), Role::Worker);
        }
        swarm.report_all();
        swarm
    }

    fn cluster(&self) -> &Cluster {
        self.state.cluster().unwrap()
    }

    fn node(&self, id: NodeId) -> Node {
        node(&self.state, id).unwrap().clone()
    }

    fn commit(&mut self, change: Change) -> Outcome {
        let Position { term, index } = self.state.applied();
        self.state.advance(Position { term, index: index.next() });
        self.state.apply_change(change, term).0
    }

    fn write(&mut self, operations: Vec<Operation>) {
        self.changes += 1;
        let (id, after) = (ChangeId(self.changes), self.state.revision());
        let change = Change { id, after, time: Timestamp(self.now_ms), term: None, operations };
        let outcome = self.commit(change);
        assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
    }

    fn update(&mut self, object: impl Into<Object>) {
        self.write(vec![Operation::Update(object.into())]);
    }

    fn join(&mut self, id: NodeId, role: Role) {
        let node = Node::new(id, role);
        self.write(vec![Operation::Create(node.into())]);
        let identity = self.certify(id);
        let roots = self.cluster().root_ca.certificate.clone();
        self.machines.insert(id, Machine { identity, roots, up: true, stuck: false });
    }

    /// What the authority does when a node asks.
    fn certify(&mut self, id: NodeId) -> NodeIdentity {
        let root = signer(self.cluster()).unwrap();
        let key = pki::generate_key(&mut self.entropy);
        let request = pki::signing_request(&key).unwrap();
        let mut node = self.node(id);
        let chain = root.sign_request(&request, id, node.role, CLUSTER, self.now_ms, HOURS, &mut self.entropy).unwrap();
        let reported_issuer = node.certificate.reported_issuer.clone();
        node.certificate = Certificate {
            state: IssuanceState::Issued,
            certificate: chain.clone(),
            issuer: root.issuer().to_owned(),
            reported_issuer,
            ..Certificate::none(node.role)
        };
        self.update(node);
        NodeIdentity::new(&chain, key).unwrap()
    }

    /// Every node that is up says what it uses, if that is news.
    fn report_all(&mut self) {
        let up: Vec<NodeId> = self.machines.iter().filter(|(_, machine)| machine.up).map(|(id, _)| *id).collect();
        for id in up {
            let machine = &self.machines[&id];
            let issuer = pki::issuer_of(machine.identity.chain_pem(), &machine.roots).unwrap();
            let Some(node) = node(&self.state, id) else { continue };
            if node.certificate.reported_issuer != issuer {
                let mut node = node.clone();
                node.certificate.reported_issuer = issuer;
                self.update(node);
            }
        }
    }

    /// Begins a rotation to a root made from `seed`, as `control` does.
    fn rotate(&mut self, seed: u64, skip: &[u128]) -> NewRoot {
        let new = own_root(self.now_ms, &mut SeededEntropy::new(seed)).unwrap();
        let mut cluster = self.cluster().clone();
        let text = |key: &Sensitive| String::from_utf8(key.0.clone()).unwrap();
        let current = RootCa::load(&cluster.root_ca.certificate, &text(&cluster.root_ca.key)).unwrap();
        let next = RootCa::load(&new.certificate, &text(&new.key)).unwrap();
        cluster.root_ca.rotation = Some(RootRotation {
            certificate: new.certificate.clone(),
            key: new.key.clone(),
            cross_signed_certificate: current.cross_sign(&next, &mut self.entropy).unwrap(),
            issuer: next.issuer().to_owned(),
            join_tokens: new.join_tokens.clone(),
            started_at: Timestamp(self.now_ms),
            skip: skip.iter().copied().map(NodeId).collect(),
        });
        self.update(cluster);
        new
    }

    fn look(&mut self) -> Vec<(u64, Change)> {
        let event = Event::Look { state: &self.state, here: FIRST, reachable: &[] };
        let effects = self.service.step(self.now_ms, event);
        let change = |effect| match effect {
            Effect::Propose { token, change } => (token, change),
            other => panic!("{other:?}"),
        };
        effects.into_iter().map(change).collect()
    }

    fn end(&mut self, token: u64, change: Change) -> Outcome {
        let outcome = self.commit(change);
        let result = match &outcome {
            Outcome::Committed(revision) => Ended::Committed(*revision),
            Outcome::Refused(refusal) => Ended::Refused(refusal.clone()),
            Outcome::Forgotten => Ended::Uncertain,
        };
        assert_eq!(self.service.step(self.now_ms, Event::Outcome { token, result }), []);
        outcome
    }

    /// The service looks, its changes are committed, and every node that is up does its part; a moment passes.
    fn step(&mut self) {
        for (token, change) in self.look() {
            self.end(token, change);
        }
        self.report_all();
        let up: Vec<NodeId> = self.machines.iter().filter(|(_, machine)| machine.up).map(|(id, _)| *id).collect();
        for id in up {
            let roots = self.cluster().root_ca.certificate.clone();
            if node(&self.state, id).is_some_and(|node| node.certificate.state == IssuanceState::Rotate) {
                let identity = self.certify(id);
                let machine = self.machines.get_mut(&id).unwrap();
                if !machine.stuck {
                    machine.identity = identity;
                }
            }
            self.machines.get_mut(&id).unwrap().roots = roots;
        }
        self.now_ms += STEP_MS;
    }

    /// Steps until the rotation is over.
    #[track_caller]
    fn finish(&mut self) {
        for _ in 0..1000 {
            if self.cluster().root_ca.rotation.is_none() {
                return;
            }
            self.step();
        }
        panic!("{:?}", self.progress());
    }

    fn steps(&mut self, count: u64) {
        (0..count).for_each(|_| self.step());
    }

    fn progress(&self) -> RotationProgress {
        self.cluster().root_ca.rotation.as_ref().unwrap().progress(nodes(&self.state), &voters(&self.state))
    }

    fn waiting(&self) -> Vec<u128> {
        self.progress().waiting.iter().map(|(id, _)| id.0).collect()
    }

    /// Every two nodes that are up connect to each other.
    #[track_caller]
    fn check_connections(&self) {
        let up = || self.machines.iter().filter(|(_, machine)| machine.up);
        for (server_id, server) in up() {
            for (client_id, client) in up() {
                let met = connect(client, server, *server_id);
                assert_eq!(met, Ok(*client_id), "{client_id} connects to {server_id}");
            }
        }
    }

    /// The swarm's root is this one, with its tokens, and every node that is up has a certificate of it and nothing else.
    #[track_caller]
    fn check_ended(&self, new: &NewRoot) {
        let root_ca = &self.cluster().root_ca;
        assert_eq!((&root_ca.certificate, &root_ca.key, &root_ca.rotation), (&new.certificate, &new.key, &None));
        assert_eq!(root_ca.join_tokens, new.join_tokens);
        assert_eq!(root_ca.digest, pki::root_digest(&new.certificate));
        root_ca.join_tokens.worker.parse::<JoinToken>().unwrap().verify_root(&root_ca.certificate).unwrap();
        for (id, machine) in self.machines.iter().filter(|(_, machine)| machine.up) {
            machine.identity.verify(&new.certificate, self.now_ms).unwrap_or_else(|error| panic!("{id}: {error}"));
        }
    }
}

/// Whom the server meets when the client dials it.
fn connect(client: &Machine, server: &Machine, server_id: NodeId) -> Result<NodeId, rustls::Error> {
    let config = pki::client_config(Some(&client.identity), pki::Trust::Roots(client.roots.clone())).unwrap();
    let mut dialer = rustls::ClientConnection::new(config, pki::server_name(server_id)).unwrap();
    let config = pki::server_config(&server.identity, &server.roots).unwrap();
    let mut listener = rustls::ServerConnection::new(config).unwrap();
    while dialer.is_handshaking() || listener.is_handshaking() {
        let (mut there, mut back) = (Vec::new(), Vec::new());
        dialer.write_tls(&mut there).unwrap();
        listener.read_tls(&mut there.as_slice()).unwrap();
        listener.process_new_packets()?;
        listener.write_tls(&mut back).unwrap();
        dialer.read_tls(&mut back.as_slice()).unwrap();
        dialer.process_new_packets()?;
    }
    Ok(pki::identity_of(&listener.peer_certificates().unwrap()[0]).unwrap().node_id)
}

#[test]
fn every_node_moves_while_all_stay_connected_and_the_new_root_takes_over() {
    let mut swarm = Swarm::of(4);
    let before = swarm.cluster().root_ca.clone();
    let left_behind = swarm.machines[&NodeId(2)].identity.clone();
    swarm.check_connections();
    let new = swarm.rotate(10, &[]);
    assert_eq!(swarm.cluster().root_ca.certificate, before.certificate, "the old root is handed out until the end");
    while swarm.cluster().root_ca.rotation.is_some() {
        swarm.check_connections();
        swarm.step();
    }
    // Some nodes have been given the new root, and some not yet.
    swarm.check_connections();
    swarm.step();
    swarm.check_connections();
    swarm.check_ended(&new);
    assert_ne!(swarm.cluster().root_ca.join_tokens, before.join_tokens);
    assert!(left_behind.verify(&new.certificate, swarm.now_ms).is_err());
    // Whoever joins now is signed by the new root alone, and known to everybody.
    swarm.join(NodeId(5), Role::Worker);
    swarm.check_connections();
    assert_eq!(swarm.look(), []);
}

#[test]
fn thirty_nodes_are_told_every_three_seconds() {
    let mut swarm = Swarm::of(65);
    swarm.rotate(10, &[]);
    for (after_ms, told) in [(0, 30), (10, 0), (2980, 0), (10, 30), (2990, 0), (10, 5), (3000, 0)] {
        swarm.now_ms += after_ms;
        let changes = swarm.look();
        assert_eq!(changes.len(), told, "{after_ms}");
        for (token, change) in changes {
            let [Operation::Update(Object::Node(node))] = change.operations.as_slice() else { panic!("{change:?}") };
            assert_eq!(node.certificate.state, IssuanceState::Rotate);
            swarm.end(token, change);
        }
    }
    assert!(swarm.progress().waiting.iter().all(|(_, standing)| *standing == Standing::Asked));
}

#[test]
fn a_deadline_is_set_for_whoever_is_not_told_yet_and_for_nobody_else() {
    let mut swarm = Swarm::of(31);
    assert_eq!(swarm.look(), []);
    assert_eq!(swarm.service.next_deadline(), None);
    swarm.rotate(10, &[]);
    let changes = swarm.look();
    assert_eq!(swarm.service.next_deadline(), Some(swarm.now_ms + BATCH_PAUSE_MS));
    changes.into_iter().for_each(|(token, change)| {
        swarm.end(token, change);
    });
    swarm.now_ms += BATCH_PAUSE_MS;
    let changes = swarm.look();
    assert_eq!((changes.len(), swarm.service.next_deadline()), (1, None));
    // Until it is known what became of it, the one that is told is not told again.
    assert_eq!(swarm.look(), []);
}

#[test]
fn a_node_that_is_down_holds_the_end_up_until_it_is_back() {
    let mut swarm = Swarm::of(3);
    swarm.machines.get_mut(&NodeId(3)).unwrap().up = false;
    let new = swarm.rotate(10, &[]);
    swarm.steps(200);
    assert_eq!((swarm.waiting(), swarm.progress().converged), (vec![3], 2));
    swarm.machines.get_mut(&NodeId(3)).unwrap().up = true;
    swarm.check_connections();
    swarm.finish();
    swarm.check_ended(&new);
}

#[test]
fn a_node_that_is_removed_or_skipped_holds_nothing_up() {
    for skip in [false, true] {
        let mut swarm = Swarm::of(3);
        swarm.machines.get_mut(&NodeId(3)).unwrap().up = false;
        let new = swarm.rotate(10, if skip { &[3] } else { &[] });
        swarm.steps(20);
        if !skip {
            assert_eq!(swarm.waiting(), [3]);
            swarm.write(vec![Operation::Remove { kind: Kind::Node, id: NodeId(3).into(), version: None }]);
        }
        swarm.finish();
        swarm.step();
        swarm.check_ended(&new);
        // It comes back with what it had: nobody knows it any more.
        let back = &swarm.machines[&NodeId(3)];
        assert!(back.identity.verify(&swarm.cluster().root_ca.certificate, swarm.now_ms).is_err());
    }
}

#[test]
fn a_skipped_node_that_comes_back_in_time_moves_like_the_others() {
    let mut swarm = Swarm::of(3);
    for id in [2, 3] {
        swarm.machines.get_mut(&NodeId(id)).unwrap().up = false;
    }
    let new = swarm.rotate(10, &[3]);
    swarm.steps(20);
    assert_eq!(swarm.waiting(), [2]);
    swarm.machines.get_mut(&NodeId(3)).unwrap().up = true;
    swarm.steps(20);
    assert_eq!((swarm.waiting(), swarm.progress().skipped), (vec![2], Vec::new()));
    swarm.machines.get_mut(&NodeId(2)).unwrap().up = true;
    swarm.finish();
    swarm.check_ended(&new);
}

#[test]
fn voters_without_whom_there_is_no_majority_are_waited_for_though_skipped() {
    let mut swarm = Swarm::of(3);
    for id in [2, 3_u64] {
        let (raft_id, node_id) = (RaftId(id), NodeId(id.into()));
        let add = MemberChange::AddLearner { raft_id, node_id, addr: format!("10.0.0.{id}:4242") };
        for change in [add, MemberChange::Promote { raft_id }] {
            assert!(swarm.state.apply_member_change(&change));
        }
        swarm.machines.get_mut(&node_id).unwrap().up = false;
    }
    swarm.rotate(10, &[2, 3]);
    swarm.steps(50);
    assert_eq!(swarm.waiting(), [2, 3]);
    swarm.machines.get_mut(&NodeId(2)).unwrap().up = true;
    swarm.finish();
}

#[test]
fn three_rotations_in_a_row_end_at_the_last_root() {
    let mut swarm = Swarm::of(4);
    let mut new = swarm.rotate(10, &[]);
    for seed in [11, 12] {
        swarm.check_connections();
        swarm.steps(2);
        swarm.check_connections();
        assert!(swarm.cluster().root_ca.rotation.is_some(), "the next one must begin before this one ends");
        new = swarm.rotate(seed, &[]);
    }
    while swarm.cluster().root_ca.rotation.is_some() {
        swarm.check_connections();
        swarm.step();
    }
    swarm.check_ended(&new);
    // And three that each come to their end.
    for seed in 13..16 {
        new = swarm.rotate(seed, &[]);
        swarm.finish();
        swarm.step();
        swarm.check_connections();
        swarm.check_ended(&new);
    }
}

#[test]
fn an_end_that_was_decided_before_the_target_changed_is_refused() {
    let mut swarm = Swarm::of(2);
    swarm.rotate(10, &[]);
    let (token, change) = loop {
        match swarm.look().as_slice() {
            [(token, change)] if matches!(change.operations[..], [Operation::Update(Object::Cluster(_))]) => {
                break (*token, change.clone());
            }
            changes => changes.iter().cloned().for_each(|(token, change)| {
                swarm.end(token, change);
            }),
        }
        swarm.step();
    };
    let last = swarm.rotate(11, &[]);
    let outcome = swarm.end(token, change);
    assert!(matches!(outcome, Outcome::Refused(Refusal::OutOfSequence { .. })), "{outcome:?}");
    assert!(swarm.cluster().root_ca.rotation.is_some());
    swarm.finish();
    swarm.step();
    swarm.check_ended(&last);
}

#[test]
fn a_certificate_that_is_made_and_not_used_is_offered_again_after_a_minute() {
    let mut swarm = Swarm::of(2);
    swarm.machines.get_mut(&NodeId(2)).unwrap().stuck = true;
    let new = swarm.rotate(10, &[]);
    swarm.steps(10);
    let standing = |swarm: &Swarm| swarm.progress().waiting;
    assert_eq!(standing(&swarm), [(NodeId(2), Standing::Issued)]);
    let first = swarm.node(NodeId(2)).certificate.certificate;
    swarm.steps(STUCK_MS / STEP_MS - 20);
    assert_eq!(swarm.node(NodeId(2)).certificate.certificate, first);
    assert!(swarm.service.next_deadline().is_some());
    swarm.steps(20);
    assert_ne!(swarm.node(NodeId(2)).certificate.certificate, first);
    swarm.machines.get_mut(&NodeId(2)).unwrap().stuck = false;
    swarm.finish();
    swarm.step();
    swarm.check_ended(&new);
}

#[test]
fn a_refused_request_is_made_again_after_a_minute() {
    let mut swarm = Swarm::of(2);
    swarm.rotate(10, &[]);
    let mut node = swarm.node(NodeId(2));
    node.certificate.state = IssuanceState::Failed;
    swarm.update(node);
    assert_eq!(swarm.look().len(), 1, "only the other one is told");
    assert_eq!(swarm.service.next_deadline(), Some(swarm.now_ms + STUCK_MS));
    swarm.now_ms += STUCK_MS;
    let told = swarm.look();
    assert!(matches!(&told[0].1.operations[..], [Operation::Update(Object::Node(node))] if node.id == NodeId(2)));
}

#[test]
fn another_leader_goes_on_where_the_former_one_was() {
    let mut swarm = Swarm::of(4);
    let new = swarm.rotate(10, &[]);
    while swarm.cluster().root_ca.rotation.is_some() {
        swarm.service = Rotation::default();
        let Position { term, index } = swarm.state.applied();
        swarm.state.advance(Position { term: Term(term.0 + 1), index: index.next() });
        swarm.step();
    }
    swarm.step();
    swarm.check_ended(&new);
}

#[test]
fn the_same_state_asks_for_the_same_changes_and_another_term_for_others() {
    let mut swarm = Swarm::of(3);
    swarm.rotate(10, &[]);
    let ids = |swarm: &mut Swarm| -> Vec<ChangeId> {
        swarm.service = Rotation::default();
        swarm.look().into_iter().map(|(_, change)| change.id).collect()
    };
    let first = ids(&mut swarm);
    assert_eq!((first.len(), ids(&mut swarm)), (3, first.clone()));
    let Position { term, index } = swarm.state.applied();
    swarm.state.advance(Position { term: Term(term.0 + 1), index: index.next() });
    assert!(ids(&mut swarm).iter().all(|id| !first.contains(id)));
}

#[test]
fn a_clock_that_is_set_back_holds_nobody_up_for_long() {
    let mut swarm = Swarm::of(40);
    swarm.rotate(10, &[]);
    assert_eq!(swarm.look().len(), 30);
    swarm.now_ms -= 86_400_000;
    swarm.service.under_way.clear();
    assert_eq!(swarm.look(), []);
    let at = swarm.service.next_deadline().unwrap();
    assert!(at <= swarm.now_ms + BATCH_PAUSE_MS, "{at}");
}
