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
