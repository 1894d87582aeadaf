//! Managers among themselves, and a client on the local socket.

use bytes::Bytes;

use super::harness::*;
use crate::codec::frame::{END, FrameKind, INITIAL_CREDIT};
use crate::net::handler::{Command, Reply, Target};
use crate::types::api::{Call, Forwarded};
use crate::types::{Caller, NodeId};

fn call(token: u64, to: NodeId, call: Call, body: &[u8]) -> Command {
    let body = Bytes::copy_from_slice(body);
    Command::Call { token, to: Target::Node(to), call, deadline_ms: 5000, forwarded: None, body }
}

/// Two managers that dialled each other.
fn pair(swarm: &Swarm) -> (Running, Running) {
    let (mut one, mut two) = (Running::start(swarm, 1), Running::start(swarm, 2));
    one.dial(&[two.place()]);
    two.dial(&[one.place()]);
    one.wait_connected(two.id);
    two.wait_connected(one.id);
    (one, two)
}

#[test]
fn managers_exchange_calls_and_raft_messages_both_ways() {
    let swarm = Swarm::new(1);
    let (mut one, mut two) = pair(&swarm);
    let (first, second) = (one.id, two.id);
    one.send(call(1, second, Call::Query, b"ping"));
    two.send(call(2, first, Call::Query, b"pong"));
    for (net, token, expected) in [(&mut one, 1, "ping"), (&mut two, 2, "pong")] {
        match net.wait_reply(token) {
            Reply::Answer { body, end: true } => assert_eq!(body, expected),
            other => panic!("{other:?}"),
        }
    }
    assert!(one.handle().send_raft(second, &b"append"[..], false));
    assert!(two.handle().send_raft(first, &b"vote"[..], true));
    let raft = |event: &Event| match event {
        Event::Raft(from, body) => Some((*from, body.clone())),
        _ => None,
    };
    assert_eq!(two.wait("append", raft), (first, Bytes::from_static(b"append")));
    assert_eq!(one.wait("vote", raft), (second, Bytes::from_static(b"vote")));
    for (net, peer) in [(&mut one, second), (&mut two, first)] {
        let measured = |event: &Event| match event {
            Event::Measured(id, rtt_us, offset_ms) if *id == peer => Some((*rtt_us, *offset_ms)),
            _ => None,
        };
        let (rtt_us, offset_ms) = net.wait("round trip", measured);
        assert!(rtt_us < 5_000_000 && offset_ms.abs() < 1000, "{rtt_us} {offset_ms}");
    }
}

#[test]
fn a_forwarded_call_carries_its_caller() {
    let swarm = Swarm::new(2);
    let (one, mut two) = pair(&swarm);
    let forwarded = Forwarded { caller: Caller::Local, addr: "elsewhere:1".to_owned() };
    let (to, body) = (Target::Node(two.id), Bytes::new());
    one.send(Command::Call { token: 1, to, call: Call::Write, deadline_ms: 5000, forwarded: Some(forwarded), body });
    let request = two.wait("request", |event| match event {
        Event::Request(request) => Some(request.clone()),
        _ => None,
    });
    assert_eq!((request.caller, request.addr, request.forwarded), (Caller::Local, "elsewhere:1".to_owned(), true));
}

#[test]
fn a_streamed_answer_waits_for_credit_and_others_do_not_wait_for_it() {
    let swarm = Swarm::new(3);
    let (mut one, two) = pair(&swarm);
    let total = INITIAL_CREDIT * 3 + 5;
    one.send(call(1, two.id, Call::Watch, &total.to_le_bytes()));
    let mut received = 0;
    let part = |one: &mut Running| match one.wait_reply(1) {
        Reply::Answer { body, end } => (u32::try_from(body.len()).unwrap(), end),
        other => panic!("{other:?}"),
    };
    while received < INITIAL_CREDIT {
        received += part(&mut one).0;
    }
    assert_eq!(received, INITIAL_CREDIT);
    one.send(call(2, two.id, Call::Query, b"meanwhile"));
    assert!(matches!(one.wait_reply(2), Reply::Answer { end: true, .. }));
    assert!(!one.has(|event| matches!(event, Event::Replied(1, _)).then_some(())), "nothing comes without credit");
    loop {
        one.send(Command::Grant { token: 1, bytes: INITIAL_CREDIT / 2 });
        let mut granted = INITIAL_CREDIT / 2;
        let mut ended = false;
        while granted > 0 && !ended {
            let (length, end) = part(&mut one);
            (received, granted, ended) = (received + length, granted - length, end);
        }
        if ended {
            break;
        }
    }
    assert_eq!(received, total);
    assert_eq!(two.counter("skep_net_over_credit_total"), 0);
}

#[test]
fn a_client_on_the_local_socket_gets_answers() {
    let swarm = Swarm::new(4);
    let mut net = Running::start(&swarm, 1);
    let mut client = Client::local(&net);
    client.echo(1, b"");
    client.echo(3, b"small");
    client.echo(5, &[7; 60 << 10]);
    let total = INITIAL_CREDIT + 1;
    client.ask(7, Call::Watch, &total.to_le_bytes());
    let mut received = 0;
    while received < INITIAL_CREDIT as usize {
        received += client.receive().unwrap().1.len();
    }
    client.send(FrameKind::Credit, 0, 7, &1_u32.to_le_bytes());
    let (header, body) = client.receive().unwrap();
    assert_eq!((header.flags, body.len()), (END, 1));
    client.ask(9, Call::Write, b"kept waiting");
    net.wait("write", |event| matches!(event, Event::Request(request) if request.call == Call::Write).then_some(()));
    client.send(FrameKind::Cancel, 0, 9, b"");
    net.wait("cancellation", |event| matches!(event, Event::Cancelled(stream) if stream.stream == 9).then_some(()));
}
