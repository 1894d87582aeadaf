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
use skep::sys::time::{wall_ms, wind};
use skep::types::api::{Answer, QueryKind, RaftState, StatusReport, Write};
use skep::types::object::Node as NodeObject;
use skep::types::{Code, Kind, MemberRole, Object, Role};
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
    };
    node.client().unwrap().write(write, PATIENCE).unwrap();
    node
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

fn expires_ms(node: &Node) -> u64 {
    eventually("status", || status(node)).certificate.unwrap().expires_at.0
}

fn voters(client: &mut Client) -> usize {
    match client.query(QueryKind::Members, true, PATIENCE).unwrap() {
        Answer::Members(members) => members.iter().filter(|member| member.role == MemberRole::Voter).count(),
        other => panic!("{other:?}"),
    }
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

/// Waits until a node has a certificate that ends later than this.
#[track_caller]
fn renewed_since(node: &Node, before_ms: u64) {
    eventually("a new certificate", || {
        let certificate = status(node)?.certificate?;
        (certificate.expires_at.0 > before_ms).then_some(())
    });
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
    // The founder's own was made before the hour was set.
    wind(HOUR * 24 * 75);
    let dials = |node: &Node| {
        node.metrics()
            .render()
            .lines()
            .filter(|line| line.starts_with("skep_net_dials"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    renewed_since(&first, wall_ms());

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
        let before = nodes.map(expires_ms);
        let certificates = nodes.map(|node| std::fs::read(node.data_dir().join("pki/node.crt")).unwrap());
        wind(HOUR * 5 / 6);
        for (node, before) in nodes.iter().zip(before) {
            renewed_since(node, before);
        }
        let after = nodes.map(|node| std::fs::read(node.data_dir().join("pki/node.crt")).unwrap());
        assert!(certificates.iter().zip(&after).all(|(before, after)| before != after));
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
        let before = [&first, &second].map(expires_ms);
        wind(HOUR * 5 / 6);
        for (node, before) in [&first, &second].into_iter().zip(before) {
            if before < wall_ms() + HOUR.as_millis() as u64 / 5 {
                renewed_since(node, before);
            }
        }
    }
    let begun = wall_ms();
    let third = Node::start(Config { listen: addr, ..Config::local(dir.path().join("m3")) }).unwrap();
    let worker = Node::start(Config::local(dir.path().join("w1"))).unwrap();
    assert_eq!((third.node_id(), worker.node_id()), ids);
    renewed_since(&third, begun);
    renewed_since(&worker, begun);
    in_touch(&worker);
    eventually("the manager takes part", || (status(&third)?.state == "ready").then_some(()));
    first.client().unwrap().write(config("after"), PATIENCE).unwrap();
}

#[test]
fn a_manager_alone_renews_the_certificate_it_outlived() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let (id, directory) = (first.node_id(), first.data_dir().to_owned());
    first.stop(Duration::from_secs(5));
    drop(first);
    wind(HOUR * 24 * 100);
    let first = Node::start(Config::local(&directory)).unwrap();
    assert_eq!(first.node_id(), id);
    renewed_since(&first, wall_ms());
    first.client().unwrap().write(config("after"), PATIENCE).unwrap();
    // And lets others in with it.
    let second = join(dir.path(), "m2", &first, Role::Manager);
    eventually("two voters", || (voters(&mut second.client().unwrap()) == 2).then_some(()));
}
