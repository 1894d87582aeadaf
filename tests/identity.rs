//! Identity over time, in one process whose clock is wound forward: renewal, expiry, workers, roles.
//!
//! The clock is the process's, so the tests take turns.

#![allow(clippy::unwrap_used)]
#![cfg(debug_assertions)]

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use skep::client::Client;
use skep::node::{NodeFile, Phase};
use skep::sys::entropy::OsEntropy;
use skep::sys::time::{unset, wall_ms, wind};
use skep::types::api::{
    Answer, MemberReport, QueryKind, RaftState, RootCaReport, StatusReport, WatchItem, WatchRequest, Write,
};
use skep::types::object::{Node as NodeObject, NodeState, Profile, Sensitive};
use skep::types::{Code, Kind, MemberRole, NodeId, Object, Role};
use skep::{Config, Node};

const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

static CLOCK: Mutex<()> = Mutex::new(());

fn clock() -> MutexGuard<'static, ()> {
    CLOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[track_caller]
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A manager that began a swarm whose certificates are valid for an hour.
fn found(dir: &Path) -> Node {
    let node = Node::start(Config::local(dir.join("m1"))).unwrap();
    let write = Write::UpdateCluster {
        snapshot_bytes: None,
        keep_bytes: None,
        node_certificate_expiry_ms: Some(HOUR.as_millis() as u64),
        approve_joins: None,
        expired_grace_ms: None,
        if_version: None,
        autolock: None,
    };
    node.client().unwrap().write(write, PATIENCE).unwrap();
    // Its first certificate was made before that.
    let first = chain(&node);
    wind(HOUR * 24 * 75);
    renewed(&node, &first);
    node
}

/// A node's certificate as it lies on its disk.
fn chain(node: &Node) -> Vec<u8> {
    std::fs::read(node.data_dir().join("pki/node.crt")).unwrap()
}

/// Waits until a node has another certificate, which is in force.
#[track_caller]
fn renewed(node: &Node, before: &[u8]) {
    eventually("a new certificate", || {
        let certificate = status(node)?.certificate?;
        (chain(node) != before && certificate.expires_at.0 > wall_ms()).then_some(())
    });
}

fn joining(dir: &Path, name: &str, to: &Node, role: Role) -> Config {
    let Answer::Token(token) = to.client().unwrap().query(QueryKind::Token(role), false, PATIENCE).unwrap() else {
        panic!("a token is asked for");
    };
    Config { join: Some(to.listen_addr().to_string()), token: Some(token), ..Config::local(dir.join(name)) }
}

fn join(dir: &Path, name: &str, to: &Node, role: Role) -> Node {
    Node::start(joining(dir, name, to, role)).unwrap()
}

fn status(node: &Node) -> Option<StatusReport> {
    match node.client().ok()?.query(QueryKind::Status, true, Duration::from_secs(5)).ok()? {
        Answer::Status(status) => Some(*status),
        _ => None,
    }
}

fn members(client: &mut Client) -> Vec<MemberReport> {
    match client.query(QueryKind::Members, true, PATIENCE).unwrap() {
        Answer::Members(members) => members,
        other => panic!("{other:?}"),
    }
}

fn voters(client: &mut Client) -> usize {
    members(client).iter().filter(|member| member.role == MemberRole::Voter).count()
}

/// The node's object, as the swarm has it.
fn object(manager: &Node, node: &Node) -> NodeObject {
    let asked = QueryKind::Inspect(Kind::Node, node.node_id().to_string());
    match manager.client().unwrap().query(asked, false, PATIENCE).unwrap() {
        Answer::Object(object) => match *object {
            Object::Node(node) => *node,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn config(name: &str) -> Write {
    Write::CreateConfig { name: name.to_owned(), labels: Default::default(), data: b"hello".to_vec() }
}

/// A worker whose manager answers.
#[track_caller]
fn in_touch(worker: &Node) -> StatusReport {
    eventually("the worker is in touch with a manager", || {
        let status = status(worker)?;
        (status.role == RaftState::Worker && status.state == "ready" && status.manager.is_some()).then_some(status)
    })
}

#[test]
fn certificates_are_renewed_while_writes_go_on_over_connections_that_stay() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let second = join(dir.path(), "m2", &first, Role::Manager);
    let third = join(dir.path(), "m3", &first, Role::Manager);
    let worker = join(dir.path(), "w1", &first, Role::Worker);
    eventually("three voters", || (voters(&mut first.client().unwrap()) == 3).then_some(()));
    in_touch(&worker);
    let nodes = [&first, &second, &third, &worker];
    let dials = |node: &Node| {
        let metrics = node.metrics().render();
        metrics.lines().filter(|line| line.starts_with("skep_net_dials")).map(str::to_owned).collect::<Vec<_>>()
    };

    let (ended, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writer = {
        let (ended, written, mut client) = (ended.clone(), written.clone(), second.client().unwrap());
        std::thread::spawn(move || {
            let mut number = 0;
            while !ended.load(Ordering::SeqCst) {
                client.write(config(&format!("c{number}")), PATIENCE).unwrap();
                number += 1;
                written.store(number, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(2));
            }
        })
    };
    eventually("writes", || (written.load(Ordering::SeqCst) > 20).then_some(()));
    let links = nodes.map(dials);
    for _ in 0..2 {
        let before = nodes.map(chain);
        wind(HOUR * 5 / 6);
        for (node, before) in nodes.iter().zip(before) {
            renewed(node, &before);
        }
        let so_far = written.load(Ordering::SeqCst);
        eventually("writes go on", || (written.load(Ordering::SeqCst) > so_far + 20).then_some(()));
    }
    // No manager had to dial another anew, and the leader is who it was.
    assert_eq!(nodes.map(dials), links);
    assert_eq!(status(&third).unwrap().leader, Some(first.node_id()));
    ended.store(true, Ordering::SeqCst);
    writer.join().unwrap();

    // What is on disk is what is used: everybody comes back, and new handshakes are made with the new certificates.
    let peers = vec![second.listen_addr().to_string()];
    third.stop(Duration::from_secs(5));
    drop(third);
    let third = Node::start(Config { peers, ..Config::local(dir.path().join("m3")) }).unwrap();
    eventually("it is back", || (status(&third)?.state == "ready").then_some(()));
    in_touch(&worker);
    let issuer = object(&first, &worker).certificate;
    assert!(!issuer.issuer.is_empty() && issuer.reported_issuer == issuer.issuer);
}

#[test]
fn a_worker_listens_nowhere_survives_restarts_and_takes_another_manager() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let second = join(dir.path(), "m2", &first, Role::Manager);
    let third = join(dir.path(), "m3", &first, Role::Manager);
    eventually("three voters", || (voters(&mut first.client().unwrap()) == 3).then_some(()));
    let worker = join(dir.path(), "w1", &first, Role::Worker);
    assert!(worker.is_worker() && worker.listen_addr().port() == 0);
    let told = in_touch(&worker);
    assert_eq!((told.node_id, told.voters), (worker.node_id(), 0));
    let certificate = told.certificate.unwrap();
    assert_eq!(certificate.role, Role::Worker);
    assert!(certificate.expires_at.0 > wall_ms() && certificate.renews_at < certificate.expires_at);
    for nothing in ["raft", "peers.json"] {
        assert!(!worker.data_dir().join(nothing).exists(), "{nothing}");
    }
    // It takes no orders, and says where to go.
    let refused = worker.client().unwrap().write(config("x"), PATIENCE).unwrap_err().into_status();
    assert_eq!(refused.code, Code::FailedPrecondition);
    assert!(refused.message.contains("this node is a worker") && refused.hint.contains("on a manager"), "{refused}");
    eventually("the swarm knows it is there", || {
        let node = object(&first, &worker);
        (node.role == Role::Worker && !node.certificate.reported_issuer.is_empty()).then_some(())
    });

    // Its manager goes, and the one after that.
    let managers = [first, second, third];
    let mut alive: Vec<&Node> = managers.iter().collect();
    let manager = in_touch(&worker).manager.unwrap().0;
    alive.retain(|node| node.node_id() != manager);
    managers.iter().find(|node| node.node_id() == manager).unwrap().stop(Duration::from_secs(5));
    eventually("it takes another manager", || {
        let (now, _) = in_touch(&worker).manager?;
        alive.iter().any(|node| node.node_id() == now).then_some(())
    });

    // It comes back to a manager that it was only told of: the one it joined at may be gone.
    let (id, directory) = (worker.node_id(), worker.data_dir().to_owned());
    worker.stop(Duration::from_secs(5));
    drop(worker);
    let remembered = std::fs::read_to_string(directory.join("managers.json")).unwrap();
    assert!(alive.iter().all(|node| remembered.contains(&node.listen_addr().to_string())), "{remembered}");
    let worker = Node::start(Config { existing: true, ..Config::local(&directory) }).unwrap();
    assert_eq!((worker.node_id(), worker.is_worker()), (id, true));
    let now = in_touch(&worker).manager.unwrap().0;
    assert!(alive.iter().any(|node| node.node_id() == now));
}

#[test]
fn nodes_that_were_off_past_the_end_of_their_certificates_come_back_by_themselves() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let second = join(dir.path(), "m2", &first, Role::Manager);
    let third = join(dir.path(), "m3", &first, Role::Manager);
    let worker = join(dir.path(), "w1", &first, Role::Worker);
    eventually("three voters", || (voters(&mut first.client().unwrap()) == 3).then_some(()));
    in_touch(&worker);
    let (addr, ids) = (third.listen_addr().to_string(), (third.node_id(), worker.node_id()));
    third.stop(Duration::from_secs(5));
    worker.stop(Duration::from_secs(5));
    drop((third, worker));
    // In steps, so that those who run renew in time.
    for _ in 0..4 {
        let before = [&first, &second].map(chain);
        wind(HOUR * 5 / 6);
        for (node, before) in [&first, &second].into_iter().zip(before) {
            renewed(node, &before);
        }
    }
    let before = [std::fs::read(dir.path().join("m3/pki/node.crt")), std::fs::read(dir.path().join("w1/pki/node.crt"))];
    let third = Node::start(Config { listen: addr, ..Config::local(dir.path().join("m3")) }).unwrap();
    let worker = Node::start(Config::local(dir.path().join("w1"))).unwrap();
    assert_eq!((third.node_id(), worker.node_id()), ids);
    let [of_third, of_worker] = before.map(Result::unwrap);
    renewed(&third, &of_third);
    renewed(&worker, &of_worker);
    in_touch(&worker);
    eventually("the manager takes part", || (status(&third)?.state == "ready").then_some(()));
    first.client().unwrap().write(config("after"), PATIENCE).unwrap();
}

#[test]
fn managers_that_were_all_off_past_the_end_of_their_certificates_find_each_other_and_renew() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let second = join(dir.path(), "m2", &first, Role::Manager);
    let third = join(dir.path(), "m3", &first, Role::Manager);
    let worker = join(dir.path(), "w1", &first, Role::Worker);
    eventually("three voters", || (voters(&mut first.client().unwrap()) == 3).then_some(()));
    in_touch(&worker);
    let nodes = [first, second, third, worker];
    let before: Vec<Vec<u8>> = nodes.iter().map(chain).collect();
    let places: Vec<_> =
        nodes.iter().map(|node| (node.data_dir().to_owned(), node.listen_addr().to_string())).collect();
    for node in &nodes {
        node.stop(Duration::from_secs(5));
    }
    drop(nodes);
    // None of them has a certificate in force, and a leader alone gives new ones.
    wind(HOUR * 24 * 30);
    let start = |(directory, addr): &(std::path::PathBuf, String)| {
        Node::start(Config { listen: addr.clone(), ..Config::local(directory) }).unwrap()
    };
    let nodes: Vec<Node> = places[..3].iter().map(start).collect();
    for (node, before) in nodes.iter().zip(&before) {
        renewed(node, before);
    }
    // Who asks a follower is heard by the leader: nobody is left with a link that is only lent.
    for (number, node) in nodes.iter().enumerate() {
        node.client().unwrap().write(config(&format!("after-{number}")), PATIENCE).unwrap();
    }
    let worker = Node::start(Config::local(&places[3].0)).unwrap();
    renewed(&worker, &before[3]);
    in_touch(&worker);
}

#[test]
fn a_manager_alone_renews_the_certificate_it_outlived() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let (id, directory) = (first.node_id(), first.data_dir().to_owned());
    first.stop(Duration::from_secs(5));
    let before = chain(&first);
    drop(first);
    wind(HOUR * 24 * 100);
    let first = Node::start(Config::local(&directory)).unwrap();
    assert_eq!(first.node_id(), id);
    renewed(&first, &before);
    first.client().unwrap().write(config("after"), PATIENCE).unwrap();
    // And lets others in with it.
    let second = join(dir.path(), "m2", &first, Role::Manager);
    eventually("two voters", || (voters(&mut second.client().unwrap()) == 2).then_some(()));
}

/// Asks for a role.
fn ask_for(role: Role, of: &Node, by: &Node) {
    let write = Write::UpdateNode {
        node: of.node_id().to_string(),
        role: Some(role),
        availability: None,
        set: Default::default(),
        remove: Vec::new(),
        if_version: None,
    };
    by.client().unwrap().write(write, PATIENCE).unwrap();
}

/// Waits until a node is a manager that votes, and one of so many.
#[track_caller]
fn manages(node: &Node, of: usize) {
    eventually("it is a manager", || {
        let status = status(node)?;
        let votes = matches!(status.role, RaftState::Leader | RaftState::Follower) && status.state == "ready";
        (votes && status.voters as usize == of && status.certificate?.role == Role::Manager).then_some(())
    });
    assert!(!node.is_worker() && node.listen_addr().port() != 0);
}

/// Waits until a node is a worker in every respect.
#[track_caller]
fn works(node: &Node) {
    eventually("it is a worker", || {
        let status = status(node)?;
        let certificate = status.certificate?;
        (status.role == RaftState::Worker && status.state == "ready" && certificate.role == Role::Worker).then_some(())
    });
    assert!(node.is_worker() && !node.data_dir().join("raft").exists());
}

#[test]
fn a_node_is_promoted_and_demoted_in_the_process_that_it_is() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let second = join(dir.path(), "m2", &first, Role::Manager);
    eventually("two voters", || (voters(&mut first.client().unwrap()) == 2).then_some(()));
    let node = join(dir.path(), "n", &first, Role::Worker);
    in_touch(&node);
    for round in 0..2 {
        ask_for(Role::Manager, &node, &first);
        manages(&node, 3);
        // It takes writes, and the others keep its log.
        node.client().unwrap().write(config(&format!("by-it-{round}")), PATIENCE).unwrap();
        assert_eq!(object(&second, &node).role, Role::Manager);
        ask_for(Role::Worker, &node, &second);
        works(&node);
        eventually("two voters are left", || (voters(&mut first.client().unwrap()) == 2).then_some(()));
        eventually("the swarm knows", || (object(&first, &node).role == Role::Worker).then_some(()));
    }
    // What it is it still is after a restart.
    let directory = node.data_dir().to_owned();
    node.stop(Duration::from_secs(5));
    drop(node);
    let node = Node::start(Config::local(&directory)).unwrap();
    works(&node);
    ask_for(Role::Manager, &node, &first);
    manages(&node, 3);
    let listen = node.listen_addr().to_string();
    node.stop(Duration::from_secs(5));
    drop(node);
    let node = Node::start(Config { listen, ..Config::local(&directory) }).unwrap();
    manages(&node, 3);
}

#[test]
fn a_leader_that_is_demoted_hands_over_and_goes_on_as_a_worker() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let second = join(dir.path(), "m2", &first, Role::Manager);
    let third = join(dir.path(), "m3", &first, Role::Manager);
    eventually("three voters", || (voters(&mut first.client().unwrap()) == 3).then_some(()));
    ask_for(Role::Worker, &first, &second);
    works(&first);
    manages(&second, 2);
    manages(&third, 2);
    second.client().unwrap().write(config("after"), PATIENCE).unwrap();
}

#[test]
fn a_manager_that_was_demoted_or_removed_while_it_was_down_finds_out() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let nodes = ["m2", "m3", "m4", "m5"].map(|name| join(dir.path(), name, &first, Role::Manager));
    eventually("five voters", || (voters(&mut first.client().unwrap()) == 5).then_some(()));
    let [_second, _third, demoted, removed] = nodes;
    for node in [&demoted, &removed] {
        node.stop(Duration::from_secs(5));
    }
    ask_for(Role::Worker, &demoted, &first);
    let write = Write::RemoveNode { node: removed.node_id().to_string(), force: true };
    first.client().unwrap().write(write, PATIENCE).unwrap();
    drop((demoted, removed));
    eventually("three voters are left", || (voters(&mut first.client().unwrap()) == 3).then_some(()));

    let demoted = Node::start(Config::local(dir.path().join("m4"))).unwrap();
    works(&demoted);
    let removed = Node::start(Config::local(dir.path().join("m5"))).unwrap();
    assert_eq!(removed.wait(), skep::node::Stopped::Removed);
    drop(removed);
    // It stays so: nothing is left with which it could take part.
    let error = Node::start(Config::local(dir.path().join("m5"))).map(|node| node.wait());
    assert_eq!(error.unwrap(), skep::node::Stopped::Removed);
}

#[test]
fn a_follower_and_a_leader_that_were_demoted_are_promoted_again() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let second = join(dir.path(), "m2", &first, Role::Manager);
    let third = join(dir.path(), "m3", &first, Role::Manager);
    eventually("three voters", || (voters(&mut first.client().unwrap()) == 3).then_some(()));
    // The first began the swarm and leads it; the second follows.
    for (node, by) in [(&second, &third), (&first, &third)] {
        let before = (node.node_id(), node.raft_id());
        ask_for(Role::Worker, node, by);
        works(node);
        manages(by, 2);
        by.client().unwrap().write(config(&format!("without-{}", before.0)), PATIENCE).unwrap();
        ask_for(Role::Manager, node, by);
        manages(node, 3);
        // The same node, in a place of its own: what it held as a manager it does not hold any more.
        let members = members(&mut by.client().unwrap());
        let place = members.iter().find(|member| member.node_id == before.0).unwrap();
        assert!(place.raft_id > before.1, "{place:?} after {before:?}");
        node.client().unwrap().write(config(&format!("with-{}", before.0)), PATIENCE).unwrap();
    }
    // Whoever came back counts: two of the three carry the swarm without the one that never left.
    third.stop(Duration::from_secs(5));
    second.client().unwrap().write(config("after"), PATIENCE).unwrap();
}

/// What the swarm was told of nodes since a watch began.
fn states(watch: &mut skep::client::Watch) -> Vec<(NodeId, NodeState)> {
    let mut states = Vec::new();
    let soon = skep::sys::time::monotonic() + Duration::from_secs(2);
    while let Some(item) = watch.next_until(Some(soon)).unwrap() {
        let objects: Vec<Object> = match item {
            WatchItem::Snapshot { objects } => objects,
            WatchItem::Change { events, .. } => events.into_iter().map(|event| event.object).collect(),
            WatchItem::Begin { .. } | WatchItem::Mark { .. } => continue,
        };
        states.extend(objects.into_iter().filter_map(|object| match object {
            Object::Node(node) => Some((node.id, node.status.state)),
            _ => None,
        }));
    }
    states
}

#[test]
fn nobody_is_called_down_because_the_leader_starts_again() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let second = join(dir.path(), "m2", &first, Role::Manager);
    let third = join(dir.path(), "m3", &first, Role::Manager);
    let worker = join(dir.path(), "w1", &first, Role::Worker);
    eventually("three voters", || (voters(&mut first.client().unwrap()) == 3).then_some(()));
    in_touch(&worker);
    for node in [&first, &second, &third, &worker] {
        eventually("it has reported", || (!object(&second, node).certificate.reported_issuer.is_empty()).then_some(()));
    }
    let request = WatchRequest {
        from: None,
        skip_snapshot: false,
        kinds: vec![Kind::Node],
        filter: Default::default(),
        include_old: false,
    };
    let mut watch = second.client().unwrap().watch(request, PATIENCE).unwrap();
    let leads = |node: &Node| status(node).is_some_and(|status| status.role == RaftState::Leader);
    assert!(leads(&first));
    let (listen, directory) = (first.listen_addr().to_string(), first.data_dir().to_owned());
    first.stop(Duration::from_secs(5));
    drop(first);
    eventually("another leads", || (leads(&second) || leads(&third)).then_some(()));
    in_touch(&worker);
    let first = Node::start(Config { listen, ..Config::local(&directory) }).unwrap();
    manages(&first, 3);
    in_touch(&worker);
    // A change behind all that the restart brought about, so that the watch has seen it.
    ask_for(Role::Worker, &worker, &first);
    let states = states(&mut watch);
    assert!(states.len() >= 4 && states.iter().all(|(_, state)| *state == NodeState::Ready), "{states:?}");
}

#[test]
fn managers_that_all_outlived_their_certificates_go_on_from_one_of_them() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let second = join(dir.path(), "m2", &first, Role::Manager);
    eventually("two voters", || (voters(&mut first.client().unwrap()) == 2).then_some(()));
    first.client().unwrap().write(config("kept"), PATIENCE).unwrap();
    let (id, listen) = (first.node_id(), first.listen_addr().to_string());
    let directory = first.data_dir().to_owned();
    for node in [&first, &second] {
        node.stop(Duration::from_secs(5));
    }
    drop((first, second));
    wind(HOUR * 24 * 100);
    // Neither takes the other's word any more, so none of them leads, and none can renew.
    let first = Node::start(Config { listen: listen.clone(), ..Config::local(&directory) }).unwrap();
    let second = Node::start(Config::local(dir.path().join("m2"))).unwrap();
    eventually("they say what is wrong", || {
        let told = [&first, &second].map(|node| status(node).map(|status| status.warnings.concat()));
        let says = |told: String| told.contains("certificate expired at") && told.contains("`skep recover`");
        told.into_iter().all(|told| told.is_some_and(says)).then_some(())
    });
    for node in [&first, &second] {
        let status = status(node).unwrap();
        assert!(status.leader.is_none() && status.certificate.unwrap().expires_at.0 < wall_ms());
        node.stop(Duration::from_secs(5));
    }
    drop((first, second));

    let recovery = skep::node::recover::Recovery::open(&directory, None).unwrap();
    recovery.carry_out(None).unwrap();
    let first = Node::start(Config { listen, ..Config::local(&directory) }).unwrap();
    assert_eq!(first.node_id(), id);
    manages(&first, 1);
    assert!(status(&first).unwrap().certificate.unwrap().expires_at.0 > wall_ms());
    // It renews like any other, and the other manager takes its place in the swarm that goes on.
    let before = chain(&first);
    wind(HOUR * 5 / 6);
    renewed(&first, &before);
    std::fs::rename(dir.path().join("m2"), dir.path().join("aside")).unwrap();
    let second = join(dir.path(), "m2", &first, Role::Manager);
    manages(&second, 2);
    let asked = QueryKind::Inspect(Kind::Config, "kept".to_owned());
    second.client().unwrap().query(asked, false, PATIENCE).unwrap();
}

#[test]
fn members_come_back_though_the_tokens_they_joined_with_are_no_good_any_more() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let roles = [("m2", Role::Manager), ("w1", Role::Worker)];
    let settings = roles.map(|(name, role)| joining(dir.path(), name, &first, role));
    let [second, worker] = settings.each_ref().map(|settings| Node::start(settings.clone()).unwrap());
    eventually("two voters", || (voters(&mut first.client().unwrap()) == 2).then_some(()));
    in_touch(&worker);
    let (ids, listen) = ([second.node_id(), worker.node_id()], second.listen_addr().to_string());
    let mut rotated = first.client().unwrap();
    for role in [Role::Manager, Role::Worker] {
        let token = skep::pki::JoinToken::generate(&root(&first).roots[0].certificate, &mut OsEntropy);
        let token = Sensitive(token.to_string().into_bytes());
        rotated.write(Write::RotateToken { role, token }, PATIENCE).unwrap();
    }
    worker.stop(Duration::from_secs(5));
    second.stop(Duration::from_secs(5));
    drop((second, worker));
    let strange = Config { data_dir: dir.path().join("strange"), ..settings[1].clone() };
    let [of_second, of_worker] = settings;
    let second = Node::start(Config { listen, ..of_second }).unwrap();
    let worker = Node::start(of_worker).unwrap();
    manages(&second, 2);
    in_touch(&worker);
    assert_eq!([second.node_id(), worker.node_id()], ids);
    // A stranger with the same command line is turned away.
    let refused = Node::start(strange).unwrap_err().to_string();
    assert!(refused.contains("A valid join token is necessary"), "{refused}");
}

/// The swarm's roots, and how far a rotation is.
fn root(manager: &Node) -> RootCaReport {
    match manager.client().unwrap().query(QueryKind::RootCa, false, PATIENCE).unwrap() {
        Answer::RootCa(report) => *report,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_swarm_that_has_begun_is_not_given_up_for_another_and_one_that_never_did_is() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let own = Node::start(Config::local(dir.path().join("m2"))).unwrap();
    own.client().unwrap().write(config("mine"), PATIENCE).unwrap();
    let before = status(&own).unwrap().cluster_id;
    assert_ne!(before, status(&first).unwrap().cluster_id);
    own.stop(Duration::from_secs(5));
    drop(own);
    let own = Node::start(joining(dir.path(), "m2", &first, Role::Manager)).unwrap();
    manages(&own, 1);
    assert_eq!(status(&own).unwrap().cluster_id, before);
    let asked = QueryKind::Inspect(Kind::Config, "mine".to_owned());
    own.client().unwrap().query(asked, false, PATIENCE).unwrap();

    // What a first start leaves that was cut off before there was a swarm.
    let directory = dir.path().join("m3");
    std::fs::create_dir(&directory).unwrap();
    let file = NodeFile::new(Phase::Founding, Profile::Lan);
    std::fs::write(directory.join("node.json"), serde_json::to_vec(&file).unwrap()).unwrap();
    let node = join(dir.path(), "m3", &first, Role::Manager);
    manages(&node, 2);
    assert_eq!(voters(&mut first.client().unwrap()), 2);
}

#[test]
fn a_worker_that_moved_to_a_new_root_and_missed_the_end_of_the_rotation_learns_it() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let away = join(dir.path(), "w1", &first, Role::Worker);
    let late = join(dir.path(), "w2", &first, Role::Worker);
    in_touch(&away);
    in_touch(&late);
    let trusted = |name: &str| std::fs::read_to_string(dir.path().join(name).join("pki/root.crt")).unwrap();
    let before = trusted("w1");
    late.stop(Duration::from_secs(5));
    drop(late);
    let new = skep::client::own_root(wall_ms(), &mut OsEntropy).unwrap();
    let write = Write::RotateRoot { root: new.clone(), skip: Vec::new(), resume: false };
    first.client().unwrap().write(write, PATIENCE).unwrap();
    eventually("all have moved but one", || (root(&first).rotation?.converged == 2).then_some(()));
    away.stop(Duration::from_secs(5));
    drop(away);
    assert_eq!(trusted("w1"), before, "the new root is nobody's to trust before the end");
    let late = Node::start(Config::local(dir.path().join("w2"))).unwrap();
    eventually("the rotation is over", || root(&first).rotation.is_none().then_some(()));
    // Managers' next certificates do not lead to the root that the worker trusts. Two ways are left to it, each good enough:
    // its own chain, in which the old root vouches for the new one, and asking a manager for the roots.
    let former = [chain(&first), chain(&late)];
    wind(HOUR * 5 / 6);
    renewed(&first, &former[0]);
    renewed(&late, &former[1]);
    let away = Node::start(Config::local(dir.path().join("w1"))).unwrap();
    in_touch(&away);
    eventually("it trusts the new root", || (trusted("w1") == new.certificate).then_some(()));
}

/// Sets the clock again, to what the process has gone on with.
struct SetAgain;

impl Drop for SetAgain {
    fn drop(&mut self) {
        wind(Duration::from_millis(wall_ms()));
    }
}

#[test]
fn a_board_without_a_clock_goes_on_from_the_newest_time_in_its_log() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    wind(HOUR / 4);
    first.client().unwrap().write(config("newest"), PATIENCE).unwrap();
    let newest = wall_ms();
    let directory = first.data_dir().to_owned();
    first.stop(Duration::from_secs(5));
    drop(first);
    unset();
    let _set = SetAgain;
    assert!(wall_ms() < newest, "the clock was not unset");
    let first = Node::start(Config::local(&directory)).unwrap();
    // The write was made a moment before its time was looked at here; the log's last entries count once they are known to
    // be committed.
    eventually("the clock goes on from the newest time", || (wall_ms() + 10_000 > newest).then_some(()));
    first.client().unwrap().write(config("after"), PATIENCE).unwrap();
    let worker = join(dir.path(), "w1", &first, Role::Worker);
    in_touch(&worker);
}
