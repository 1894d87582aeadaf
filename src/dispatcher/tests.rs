//! Sessions and reports over a store to which the test applies changes.

use super::*;
use crate::net::handler::{ConnectionId, StreamId};
use crate::store::samples;
use crate::types::api::Call;
use crate::types::object::NodeDescription;
use crate::types::{Caller, ChangeId, ClusterId, Lineage, MemberChange, RaftId, Revision, Role, Term};

const WORKER: NodeId = NodeId(7);
const NOW_MS: u64 = 1_800_000_000_000;

struct Swarm {
    store: Arc<Store>,
    changes: u128,
}

impl Swarm {
    /// The manager 1 and the worker 7.
    fn new() -> Self {
        let state = State::bootstrap(Lineage(1), NodeId(1), "10.0.0.1:4242");
        let mut swarm = Self { store: Arc::new(Store::new(state, 1 << 20)), changes: 0 };
        let cluster = samples::cluster();
        swarm.apply(vec![Operation::Create(cluster), create(WORKER, Role::Worker)]);
        swarm
    }

    fn apply(&mut self, operations: Vec<Operation>) {
        self.changes += 1;
        let id = ChangeId(self.changes);
        self.commit(Change { id, after: Revision(0), time: Timestamp(NOW_MS), term: None, operations });
    }

    fn commit(&mut self, change: Change) -> Outcome {
        self.store.write(|state| {
            let index = state.applied().index.next();
            state.advance(Position { term: Term(1), index });
            state.apply_change(change, Term(1))
        })
    }

    fn node(&self) -> Node {
        self.store.view(|state| known(state, WORKER).unwrap().clone())
    }

    /// Changes the worker's object.
    fn update(&mut self, change: impl FnOnce(&mut Node)) {
        let mut node = self.node();
        change(&mut node);
        self.apply(vec![Operation::Update(Object::Node(Box::new(node)))]);
    }

    fn report(&self, change: u128, description: &NodeDescription, addr: &str) -> Step<()> {
        let body = envelope::encode(&ReportRequest {
            change: ChangeId(change),
            after: Revision(0),
            description: description.clone(),
            issuer: "issuer".to_owned(),
            addr: addr.to_owned(),
        });
        report(&self.store, &incoming(Call::Report, WORKER, body), false, NOW_MS)
    }
}

fn create(id: NodeId, role: Role) -> Operation {
    Operation::Create(Object::Node(Box::new(Node::new(id, role))))
}

fn incoming(call: Call, node_id: NodeId, body: Vec<u8>) -> Incoming {
    Incoming {
        stream: StreamId { connection: ConnectionId(1), stream: 1 },
        caller: Caller::Node { node_id, role: Role::Worker, cluster_id: ClusterId(5), expired: false },
        addr: "10.9.9.9:50123".to_owned(),
        forwarded: false,
        call,
        deadline: Instant::from_nanos(u64::MAX),
        body: body.into(),
    }
}

fn open(swarm: &Swarm, node_id: NodeId, confirmed: bool) -> Step<Session> {
    let request = SessionRequest { description: NodeDescription::default(), issuer: String::new() };
    session(&swarm.store, &incoming(Call::Session, node_id, envelope::encode(&request)), confirmed)
}

fn begin(swarm: &Swarm) -> Session {
    match open(swarm, WORKER, false) {
        Step::Stream(session) => session,
        other => panic!("{other:?}"),
    }
}

fn at(ms: u64) -> Instant {
    Instant::from_nanos(ms * 1_000_000)
}

fn read(pull: Pull) -> SessionItem {
    match pull {
        Pull::Part(body) => envelope::decode(&body, body.len()).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_session_tells_everything_at_once_and_then_what_changes() {
    let mut swarm = Swarm::new();
    let mut session = begin(&swarm);
    let first = read(session.pull(at(0), 1 << 20));
    assert_eq!((first.role, first.desired_role, first.renew, first.member), (Role::Worker, Role::Worker, false, false));
    assert_eq!(first.managers, [(NodeId(1), "10.0.0.1:4242".to_owned())]);
    assert!(!first.roots.is_empty());
    assert!(matches!(session.pull(at(1), 1 << 20), Pull::Idle(Some(due)) if due == at(500)));

    // Another object's change is none of its business, and it is looked at no oftener than twice a second.
    swarm.apply(vec![create(NodeId(9), Role::Worker)]);
    assert!(matches!(session.pull(at(499), 1 << 20), Pull::Idle(Some(due)) if due == at(500)));
    assert!(matches!(session.pull(at(500), 1 << 20), Pull::Idle(Some(_))));

    swarm.update(|node| node.spec.desired_role = Role::Manager);
    let item = read(session.pull(at(1000), 1 << 20));
    assert_eq!((item.role, item.desired_role), (Role::Worker, Role::Manager));
    swarm.update(|node| {
        node.role = Role::Manager;
        node.certificate.state = IssuanceState::Rotate;
    });
    let item = read(session.pull(at(1500), 1 << 20));
    assert_eq!((item.role, item.renew), (Role::Manager, true));
    let change = MemberChange::AddLearner { raft_id: RaftId(2), node_id: WORKER, addr: "10.0.0.7:4242".to_owned() };
    swarm.store.write(|state| {
        let index = state.applied().index.next();
        state.advance(Position { term: Term(1), index });
        assert!(state.apply_member_change(&change));
        ((), None)
    });
    let item = read(session.pull(at(2000), 1 << 20));
    assert!(item.member && item.managers.len() == 2);
}

#[test]
fn an_item_waits_for_credit_and_is_not_lost() {
    let swarm = Swarm::new();
    let mut session = begin(&swarm);
    assert!(matches!(session.pull(at(0), 8), Pull::Full));
    assert!(matches!(session.pull(at(1), 8), Pull::Full));
    assert_eq!(read(session.pull(at(2), 1 << 20)).role, Role::Worker);
}

#[test]
fn who_is_not_known_was_removed_only_after_a_look_that_nobody_contradicts() {
    let mut swarm = Swarm::new();
    let stranger = NodeId(99);
    assert!(
        matches!(open(&swarm, stranger, false), Step::RefuseIfConfirmed(status) if status.code == Code::PermissionDenied)
    );
    assert!(
        matches!(open(&swarm, stranger, true), Step::Refuse(status) if status.message.ends_with("was removed from the swarm"))
    );
    // Whose node vanishes while the session lasts needs no second look.
    let mut session = begin(&swarm);
    read(session.pull(at(0), 1 << 20));
    swarm.apply(vec![Operation::Remove { kind: Kind::Node, id: WORKER.into(), version: None }]);
    assert!(matches!(session.pull(at(500), 1 << 20), Pull::End(status) if status.code == Code::PermissionDenied));
    let description = NodeDescription::default();
    assert!(matches!(swarm.report(50, &description, ""), Step::RefuseIfConfirmed(_)));
}

#[test]
fn a_manager_without_state_calls_nobody_removed() {
    let store = Arc::new(Store::new(State::bootstrap(Lineage(1), NodeId(1), "10.0.0.1:4242"), 1 << 20));
    let swarm = Swarm { store, changes: 0 };
    for confirmed in [false, true] {
        assert!(matches!(open(&swarm, WORKER, confirmed), Step::Refuse(status) if status.code == Code::Unavailable));
    }
}

#[test]
fn a_report_is_written_once_and_only_when_it_says_something_new() {
    let mut swarm = Swarm::new();
    let description = NodeDescription { hostname: "board-7".to_owned(), ..NodeDescription::default() };
    let Step::Propose(change) = swarm.report(50, &description, "") else { panic!("it is news") };
    assert!(matches!(swarm.commit(change), Outcome::Committed(_)));
    let node = swarm.node();
    assert_eq!((node.description.hostname.as_str(), node.certificate.reported_issuer.as_str()), ("board-7", "issuer"));
    assert_eq!((node.status.state, node.status.addr.as_str()), (NodeState::Ready, "10.9.9.9"));
    let revision = swarm.store.revision();
    // The same request again, and another one that says the same.
    for change in [50, 51] {
        assert!(matches!(swarm.report(change, &description, ""), Step::Answer(_)));
    }
    assert_eq!(swarm.store.revision(), revision);
    // A manager says where it listens.
    let Step::Propose(change) = swarm.report(52, &description, "m7.example:4242") else { panic!("it is news") };
    swarm.commit(change);
    assert_eq!(swarm.node().status.addr, "m7.example:4242");
}

#[test]
fn a_report_that_crossed_another_change_is_made_again() {
    let mut swarm = Swarm::new();
    let description = NodeDescription { hostname: "board-7".to_owned(), ..NodeDescription::default() };
    let Step::Propose(change) = swarm.report(50, &description, "") else { panic!("it is news") };
    swarm.update(|node| node.spec.desired_role = Role::Manager);
    let outcome = swarm.commit(change);
    assert!(matches!(reported::<()>(&outcome), Step::Refuse(status) if status.code == Code::Aborted), "{outcome:?}");
    assert!(matches!(swarm.report(51, &description, ""), Step::Propose(_)));
}

#[test]
fn what_would_spoil_a_terminal_is_refused() {
    let swarm = Swarm::new();
    for hostname in ["\u{1b}[2J".to_owned(), "a".repeat(254)] {
        let description = NodeDescription { hostname, ..NodeDescription::default() };
        assert!(
            matches!(swarm.report(50, &description, ""), Step::Refuse(status) if status.code == Code::InvalidArgument)
        );
    }
    let labels = NodeDescription {
        engine_labels: (0..2000).map(|n| (format!("label-{n}"), String::new())).collect(),
        ..NodeDescription::default()
    };
    assert!(matches!(swarm.report(50, &labels, ""), Step::Refuse(status) if status.message.contains("16384 bytes")));
    let os = NodeDescription { os: "linux\u{7}".to_owned(), ..NodeDescription::default() };
    assert!(matches!(swarm.report(50, &os, ""), Step::Refuse(status) if status.message.contains("control")));
    for addr in ["\u{1b}]0;x\u{7}:1".to_owned(), "a".repeat(301), "10.0.0.1:4242\n10.0.0.2:4242".to_owned()] {
        let refused = swarm.report(50, &NodeDescription::default(), &addr);
        assert!(matches!(refused, Step::Refuse(status) if status.code == Code::InvalidArgument), "{addr:?}");
    }
    let garbage = incoming(Call::Report, WORKER, vec![1, 2, 3]);
    assert!(matches!(report::<()>(&swarm.store, &garbage, false, NOW_MS), Step::Refuse(_)));
    let nobody = Incoming { caller: Caller::Local, ..incoming(Call::Session, WORKER, garbage.body.to_vec()) };
    assert!(matches!(session(&swarm.store, &nobody, false), Step::Refuse(_)));
}
