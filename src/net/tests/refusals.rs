//! Who gets in, who does not, and what they are told.

use bytes::Bytes;

use super::harness::*;
use crate::codec::frame::{END, FrameKind};
use crate::codec::{envelope, request};
use crate::net::handler::{Command, Reply, Target};
use crate::pki;
use crate::sys::time::wall_ms;
use crate::types::api::{Call, Forwarded};
use crate::types::error::Code;
use crate::types::{Caller, ClusterId, NodeId, Role, Standing, Status};

/// Calls `Health` at an address where `peer` is expected.
fn health(net: &mut Running, peer: NodeId, addr: &str) -> Reply {
    let (to, body) = (Target::Address(peer, addr.to_owned()), Bytes::new());
    net.send(Command::Call { token: 9, to, call: Call::Health, deadline_ms: 5000, forwarded: None, body });
    net.wait_reply(9)
}

#[test]
fn a_connection_for_one_call_is_made_and_closed_and_is_no_link() {
    let swarm = Swarm::new(1);
    let (mut one, mut two) = (Running::start(&swarm, 1), Running::start(&swarm, 2));
    let (peer, addr) = two.place();
    match health(&mut one, peer, &addr) {
        Reply::Answer { body, end: true } => {
            let text = String::from_utf8_lossy(&body);
            assert!(text.contains(&one.id.to_string()) && text.contains("from 127.0.0.1:"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    eventually("the connection is closed at both ends", || one.gauge("manager") == 0 && two.gauge("manager") == 0);
    for net in [&mut one, &mut two] {
        assert!(!net.has(|event| matches!(event, Event::Connected(_) | Event::Disconnected(..)).then_some(())));
    }
}

#[test]
fn names_are_looked_up() {
    let swarm = Swarm::new(2);
    let (mut one, two) = (Running::start(&swarm, 1), Running::start(&swarm, 2));
    let addr = format!("localhost:{}", two.addr.port());
    assert!(matches!(health(&mut one, two.id, &addr), Reply::Answer { .. }));
    let (code, message) = refused(health(&mut one, two.id, "no-such-host.invalid:1"));
    assert_eq!(code, Code::Unavailable);
    assert!(message.starts_with("cannot look up no-such-host.invalid:1: "), "{message}");
}

#[test]
fn a_call_to_where_nobody_listens_is_refused_with_the_reason() {
    let swarm = Swarm::new(3);
    let mut one = Running::start(&swarm, 1);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (code, message) = refused(health(&mut one, NodeId(2), &closed));
    assert_eq!(code, Code::Unavailable);
    assert!(message.starts_with(&format!("cannot connect to {closed}: Connection refused")), "{message}");
    one.send(Command::Call {
        token: 5,
        to: Target::Node(NodeId(2)),
        call: Call::Health,
        deadline_ms: 5000,
        forwarded: None,
        body: Bytes::new(),
    });
    assert!(matches!(one.wait_reply(5), Reply::Lost { sent: false }));
}

#[test]
fn another_node_or_another_swarm_at_the_address_is_refused_with_the_reason() {
    let swarm = Swarm::new(4);
    let (mut one, two) = (Running::start(&swarm, 1), Running::start(&swarm, 2));
    let (_, message) = refused(health(&mut one, NodeId(3), &two.addr.to_string()));
    assert!(message.contains("another node answers at this address"), "{message}");
    let other = Swarm::new(5);
    let foreign = Running::start(&other, 2);
    let (code, message) = refused(health(&mut one, foreign.id, &foreign.addr.to_string()));
    assert_eq!(code, Code::Unauthenticated);
    assert!(message.contains("belongs to another swarm"), "{message}");
    // The same root may sign for several swarms.
    let sibling = Swarm { root: Swarm::new(4).root, cluster: ClusterId(99) };
    let shared = Running::start(&sibling, 2);
    let (_, message) = refused(health(&mut one, shared.id, &shared.addr.to_string()));
    assert!(message.contains("another swarm"), "{message}");
}

#[test]
fn a_manager_whose_certificate_the_other_side_does_not_know_hears_it() {
    let swarm = Swarm::new(6);
    let foreign = Swarm::new(7);
    let two = Running::start(&swarm, 2);
    // Believes the server, but shows a certificate of another root.
    let identity = foreign.identity(NodeId(1), Role::Manager);
    let mut client = Client::secure(&two, {
        let trust = pki::Trust::Roots(swarm.root.certificate_pem().to_owned());
        let other = Swarm { root: Swarm::new(7).root, cluster: swarm.cluster };
        pki::client_config(Some(&other.identity(NodeId(1), Role::Manager)), trust).unwrap()
    });
    drop(identity);
    client.send(FrameKind::Hello, 0, 0, &envelope::encode(&hello(swarm.cluster, NodeId(1))));
    let error = loop {
        let mut piece = [0; 64];
        match std::io::Read::read(&mut client.stream, &mut piece) {
            Ok(0) => panic!("closed without an alert"),
            Ok(_) => {}
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("UnknownCA") || error.contains("DecryptError"), "{error}");
    eventually("it is counted", || two.counter("skep_net_handshakes_total{result=\"failed\"}") == 1);
}

#[test]
fn a_hello_that_is_refused_comes_back_as_the_reason() {
    let swarm = Swarm::new(8);
    let refusal = Status::new(Code::FailedPrecondition, "you were rolled back").with_hint("join again");
    let two = Running::start_with(&swarm, 2, Setup { refuse: Some(refusal.clone()), ..Setup::default() });
    let mut one = Running::start(&swarm, 1);
    one.dial(&[two.place()]);
    let told = one.wait("refusal", |event| match event {
        Event::TurnedAway(Some(NodeId(2)), status) => Some(status.clone()),
        _ => None,
    });
    assert_eq!(told, refusal);
    assert!(!one.has(|event| matches!(event, Event::Connected(_)).then_some(())), "it was never connected");
    let (_, message) = refused(health(&mut one, two.id, &two.addr.to_string()));
    assert!(message.ends_with("you were rolled back"), "{message}");
}

#[test]
fn a_hello_must_match_its_certificate_and_come_first() {
    let swarm = Swarm::new(9);
    let net = Running::start(&swarm, 2);
    let config = swarm.client(Some(&swarm.identity(NodeId(1), Role::Manager)));
    let mut newer = hello(swarm.cluster, NodeId(1));
    newer.protocol += 1;
    for (hello, code, expected) in [
        (hello(swarm.cluster, NodeId(3)), Code::PermissionDenied, "a hello in the name of"),
        (hello(ClusterId(5), NodeId(1)), Code::PermissionDenied, "of another swarm"),
        (newer, Code::FailedPrecondition, "speaks protocol 2"),
    ] {
        let mut client = Client::secure(&net, config.clone());
        client.send(FrameKind::Hello, 0, 0, &envelope::encode(&hello));
        let status = client.receive_error(0);
        assert_eq!(status.code, code);
        assert!(status.message.contains(expected), "{status}");
        assert!(client.receive().is_none());
    }
    let mut client = Client::secure(&net, config);
    client.ask(1, Call::GetRoot, b"");
    assert!(client.receive_error(0).message.contains("first frame must be its hello"));
}

#[test]
fn a_removed_manager_is_refused_and_told_so() {
    let swarm = Swarm::new(10);
    let two =
        Running::start_with(&swarm, 2, Setup { standings: standings(&[(1, Standing::Removed)]), ..Setup::default() });
    let mut one = Running::start(&swarm, 1);
    let (code, message) = refused(health(&mut one, two.id, &two.addr.to_string()));
    assert_eq!(code, Code::PermissionDenied);
    assert!(message.contains("was removed from the swarm"), "{message}");
}

#[test]
fn strangers_may_make_only_the_calls_that_get_a_certificate() {
    let swarm = Swarm::new(11);
    let net = Running::start(&swarm, 1);
    let expired = swarm.identity_at(NodeId(8), Role::Manager, wall_ms() - 48 * 3_600_000);
    let worker = swarm.identity(NodeId(9), Role::Worker);
    for identity in [None, Some(&expired), Some(&worker)] {
        let mut client = Client::secure(&net, swarm.client(identity));
        client.ask(1, Call::GetRoot, b"");
        let (header, body) = client.receive().unwrap();
        assert_eq!(
            (header.kind, envelope::decode::<crate::types::api::Hello>(&body, 4096).is_ok()),
            (FrameKind::Hello, true)
        );
        let (header, body) = client.receive().unwrap();
        assert_eq!((header.kind, header.flags, &body[..]), (FrameKind::Answer, END, &b"root"[..]));
        client.ask(3, Call::Query, b"");
        let status = client.receive_error(3);
        assert!(matches!(status.code, Code::Unauthenticated | Code::PermissionDenied), "{status:?}");
        // The refusal of one request is not the end of the connection.
        client.ask(5, Call::GetRoot, b"");
        assert_eq!(client.receive().unwrap().0.stream, 5);
    }
}

#[test]
fn an_expired_manager_hears_that_it_is_expired() {
    let swarm = Swarm::new(12);
    let net = Running::start(&swarm, 1);
    let expired = swarm.identity_at(NodeId(8), Role::Manager, wall_ms() - 48 * 3_600_000);
    let mut client = Client::secure(&net, swarm.client(Some(&expired)));
    client.send(FrameKind::Hello, 0, 0, &envelope::encode(&hello(swarm.cluster, NodeId(8))));
    assert_eq!(client.receive().unwrap().0.kind, FrameKind::Hello);
    let status = client.receive_error(0);
    assert_eq!(status.code, Code::Unauthenticated);
    assert!(status.message.contains("has expired"), "{status}");
}

#[test]
fn only_managers_pass_calls_on() {
    let swarm = Swarm::new(13);
    let net = Running::start(&swarm, 1);
    let forwarded = Forwarded { caller: Caller::Local, addr: String::new() };
    let body = request::encode(Call::Write, 1000, Some(&forwarded), b"");
    let mut local = Client::local(&net);
    local.send(FrameKind::Request, 0, 1, &body);
    assert_eq!(local.receive_error(1).code, Code::PermissionDenied);
    let mut stranger = Client::secure(&net, swarm.client(None));
    stranger.send(FrameKind::Request, 0, 1, &body);
    assert_eq!(stranger.receive_error(1).code, Code::PermissionDenied);
}

#[test]
fn renewed_certificates_are_used_by_connections_that_begin_later() {
    let swarm = Swarm::new(14);
    let net = Running::start(&swarm, 1);
    let renewed = swarm.identity(NodeId(5), Role::Manager);
    let server = pki::server_config(&renewed, swarm.root.certificate_pem()).unwrap();
    let mut before = Client::secure(&net, swarm.client(None));
    before.ask(1, Call::GetRoot, b"");
    before.receive().unwrap();
    net.credentials.replace(server, swarm.client(Some(&renewed)));
    let mut after = Client::over({
        let name = pki::tls::server_name(NodeId(5));
        let tls = rustls::ClientConnection::new(swarm.client(None), name).unwrap();
        rustls::StreamOwned::new(tls, std::net::TcpStream::connect(net.addr).unwrap())
    });
    after.ask(1, Call::GetRoot, b"");
    assert_eq!(after.receive().unwrap().0.kind, FrameKind::Hello);
    before.ask(3, Call::GetRoot, b"");
    assert!(before.receive().is_some());
}
