//! skep as a library: three managers in one process, through the public interface.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use skep::client::Client;
use skep::types::Role;
use skep::types::api::{Answer, QueryKind, Write};
use skep::types::{Kind, MemberRole, Object};
use skep::{Config, Node};

const PATIENCE: Duration = Duration::from_secs(30);

fn join(dir: &Path, first: &Node) -> Node {
    let mut client = first.client().unwrap();
    let Answer::Token(token) = client.query(QueryKind::Token(Role::Manager), false, PATIENCE).unwrap() else {
        panic!("a token is asked for");
    };
    let config = Config { join: Some(first.listen_addr().to_string()), token: Some(token), ..Config::local(dir) };
    Node::start(config).unwrap()
}

fn voters(client: &mut Client) -> usize {
    let Answer::Members(members) = client.query(QueryKind::Members, true, PATIENCE).unwrap() else {
        panic!("members are asked for");
    };
    members.iter().filter(|member| member.role == MemberRole::Voter).count()
}

fn config(name: &str) -> Write {
    Write::CreateConfig { name: name.to_owned(), labels: Default::default(), data: b"hello".to_vec() }
}

fn read(node: &Node, name: &str) -> Vec<u8> {
    let mut client = node.client().unwrap();
    let answer = client.query(QueryKind::Inspect(Kind::Config, name.to_owned()), false, PATIENCE).unwrap();
    match answer {
        Answer::Object(object) => match *object {
            Object::Config(config) => config.spec.data,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn three_managers_in_one_process_outlive_their_leader() {
    let dir = tempfile::tempdir().unwrap();
    let first = Node::start(Config::local(dir.path().join("one"))).unwrap();
    let second = join(&dir.path().join("two"), &first);
    let third = join(&dir.path().join("three"), &first);
    let deadline = Instant::now() + PATIENCE;
    while voters(&mut second.client().unwrap()) < 3 {
        assert!(Instant::now() < deadline, "three managers do not become voters");
        std::thread::sleep(Duration::from_millis(10));
    }

    second.client().unwrap().write(config("motd"), PATIENCE).unwrap();
    assert_eq!(read(&third, "motd"), b"hello");

    // The first one began the swarm and leads it.
    first.stop(Duration::from_secs(5));
    third.client().unwrap().write(config("after"), PATIENCE).unwrap();
    assert_eq!(read(&second, "after"), b"hello");
    assert_ne!(second.node_id(), third.node_id());
    second.stop(Duration::from_secs(5));
    third.stop(Duration::from_secs(5));

    // Everything is in the directories. All listen elsewhere than before, and one address brings them together.
    let first = Node::start(Config::local(dir.path().join("one"))).unwrap();
    let peers = vec![first.listen_addr().to_string()];
    let second = Node::start(Config { peers, ..Config::local(dir.path().join("two")) }).unwrap();
    assert_eq!(read(&second, "after"), b"hello");
    assert_eq!(read(&first, "motd"), b"hello");
}

#[test]
fn a_node_that_is_dropped_lets_go_of_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let node = Node::start(Config::local(dir.path())).unwrap();
        assert!(Node::start(Config::local(dir.path())).unwrap_err().to_string().contains("another skep process"));
        drop(node);
    }
}

/// What finds a replica that is wrong, and that the others go on and lose nothing. Only debug builds can spoil one.
#[cfg(debug_assertions)]
mod spoilt {
    use skep::node::Stopped;
    use skep::types::object::Config as Plain;
    use skep::types::{Change, ChangeId, ObjectId, Operation, Revision, Timestamp};

    use super::*;

    fn three(dir: &Path) -> [Node; 3] {
        let first = Node::start(Config::local(dir.join("one"))).unwrap();
        let second = join(&dir.join("two"), &first);
        let third = join(&dir.join("three"), &first);
        let deadline = Instant::now() + PATIENCE;
        while voters(&mut second.client().unwrap()) < 3 {
            assert!(Instant::now() < deadline, "three managers do not become voters");
            std::thread::sleep(Duration::from_millis(10));
        }
        second.client().unwrap().write(config("cold"), PATIENCE).unwrap();
        assert_eq!((read(&first, "cold"), read(&third, "cold")), (b"hello".to_vec(), b"hello".to_vec()));
        [first, second, third]
    }

    /// The others take writes and have what was there before.
    fn others_go_on(others: [&Node; 2]) {
        others[0].client().unwrap().write(config("after"), PATIENCE).unwrap();
        for node in others {
            assert_eq!((read(node, "cold"), read(node, "after")), (b"hello".to_vec(), b"hello".to_vec()));
        }
    }

    #[test]
    fn memory_that_rots_is_found_at_a_follower_and_at_the_leader_and_a_restart_reads_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second, third] = three(dir.path());
        // Sound memory passes.
        first.scrub();
        second.rot("cold");
        let Stopped::Rotten(why) = second.wait() else { panic!("it stops because of its memory") };
        assert!(why.contains("config") && why.contains("is not what was written"), "{why}");
        others_go_on([&first, &third]);
        drop(second);
        let peers = vec![first.listen_addr().to_string()];
        let second = Node::start(Config { peers, ..Config::local(dir.path().join("two")) }).unwrap();
        assert_eq!((read(&second, "cold"), read(&second, "after")), (b"hello".to_vec(), b"hello".to_vec()));

        // The first one began the swarm and leads it.
        first.rot("cold");
        assert!(matches!(first.wait(), Stopped::Rotten(_)));
        third.client().unwrap().write(config("last"), PATIENCE).unwrap();
        assert_eq!((read(&second, "last"), read(&third, "cold")), (b"hello".to_vec(), b"hello".to_vec()));
    }

    #[test]
    fn a_replica_that_the_others_contradict_stops_and_they_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second, third] = three(dir.path());
        let mut odd = Plain { id: ObjectId(77), ..Plain::default() };
        odd.spec.annotations.name = "odd".to_owned();
        let operations = vec![Operation::Create(odd.into())];
        let change = Change { id: ChangeId(77), after: Revision(0), time: Timestamp(1), term: None, operations };
        // It answers wrongly until the mark that follows the last change by ten seconds is compared.
        third.diverge(change);
        let Stopped::Fenced(why) = third.wait() else { panic!("a majority contradicts it") };
        assert!(why.contains("this replica is wrong"), "{why}");
        others_go_on([&first, &second]);
    }
}
