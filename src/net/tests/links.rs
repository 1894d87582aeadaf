//! Managers among themselves, and a client on the local socket.

use std::time::{Duration, Instant as Clock};

use bytes::Bytes;

use super::harness::*;
use crate::codec::envelope;
use crate::codec::frame::{END, FrameKind, INITIAL_CREDIT};
use crate::net::Limits;
use crate::net::handler::{Command, Reply, Target};
use crate::pki;
use crate::types::api::{Call, Forwarded};
use crate::types::{Caller, NodeId, Role};

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
            Event::Measured(id, rtt_us, offset_ms, sync_us) if *id == peer => Some((*rtt_us, *offset_ms, *sync_us)),
            _ => None,
        };
        let (rtt_us, offset_ms, sync_us) = net.wait("round trip", measured);
        assert!(rtt_us < 5_000_000 && offset_ms.abs() < 1000, "{rtt_us} {offset_ms}");
        assert_eq!(sync_us, 77, "what the peer reports of itself");
        let greeted = |event: &Event| match event {
            Event::Greeted(caller, hello) => Some((caller.is_manager(), hello.node_id)),
            _ => None,
        };
        assert_eq!(net.wait("greeting", greeted), (true, peer));
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

#[test]
fn a_peer_whose_process_is_gone_is_told_within_milliseconds_and_found_again() {
    let swarm = Swarm::new(5);
    let (mut one, mut two) = pair(&swarm);
    let (peer, place) = (two.id, two.addr);
    one.send(call(1, peer, Call::Write, b"never answered"));
    two.wait("call", |event| matches!(event, Event::Request(_)).then_some(()));
    let before = Clock::now();
    two.stop();
    let (refused, when) = one.wait_disconnected(peer);
    assert!(refused, "nobody listens there any more");
    assert!(when - before < Duration::from_secs(2), "{:?}", when - before);
    assert!(matches!(one.wait_reply(1), Reply::Lost { sent: true }));
    one.send(call(2, peer, Call::Query, b""));
    assert!(matches!(one.wait_reply(2), Reply::Lost { sent: false }));
    let _again = Running::start_with(&swarm, 2, Setup { listen: Some(place), ..Setup::default() });
    one.wait_connected(peer);
}

#[test]
fn a_call_that_takes_too_long_is_lost_and_cancelled() {
    let swarm = Swarm::new(6);
    let (mut one, mut two) = pair(&swarm);
    let (to, body) = (Target::Node(two.id), Bytes::new());
    one.send(Command::Call { token: 1, to, call: Call::Write, deadline_ms: 50, forwarded: None, body });
    assert!(matches!(one.wait_reply(1), Reply::Lost { sent: true }));
    two.wait("cancellation", |event| matches!(event, Event::Cancelled(_)).then_some(()));
    one.send(call(2, two.id, Call::Write, b""));
    one.send(Command::Abandon { token: 2 });
    two.wait("cancellation", |event| matches!(event, Event::Cancelled(_)).then_some(()));
    assert!(!one.has(|event| matches!(event, Event::Replied(..)).then_some(())), "an abandoned call has no reply");
}

/// A manager by hand, greeted, on a socket that buffers little.
fn manual_manager(swarm: &Swarm, net: &mut Running, node: NodeId) -> Client<Secure> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(32 << 10).unwrap();
    socket.connect(&net.addr.into()).unwrap();
    let socket = std::net::TcpStream::from(socket);
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let config = swarm.client(Some(&swarm.identity(node, Role::Manager)));
    let tls = rustls::ClientConnection::new(config, pki::tls::server_name(net.id)).unwrap();
    let mut client = Client::over(rustls::StreamOwned::new(tls, socket));
    client.send(FrameKind::Hello, 0, 0, &envelope::encode(&hello(swarm.cluster, node)));
    assert_eq!(client.receive().unwrap().0.kind, FrameKind::Hello);
    net.wait_connected(node);
    client
}

#[test]
fn an_urgent_frame_overtakes_appends_and_appends_over_the_budget_are_dropped() {
    let swarm = Swarm::new(7);
    let limits = Limits { queue_bytes: 8 << 20, ..Limits::default() };
    let mut net = Running::start_with(&swarm, 1, Setup { limits, ..Setup::default() });
    let mut peer = manual_manager(&swarm, &mut net, NodeId(2));
    let append = Bytes::from(vec![1; 64 << 10]);
    for _ in 0..300 {
        while !net.handle().send_raft(NodeId(2), append.clone(), false) {
            std::thread::yield_now();
        }
    }
    eventually("the queue is full", || net.counter("skep_net_dropped_raft_total{lane=\"bulk\"}") > 0);
    net.wait("the handler hears of it", |event| matches!(event, Event::Dropped(NodeId(2))).then_some(()));
    assert!(net.handle().send_raft(NodeId(2), &b"vote"[..], true));
    let mut appends = 0;
    loop {
        let (header, body) = peer.receive().unwrap();
        match header.kind {
            FrameKind::Raft if body == b"vote"[..] => break,
            FrameKind::Raft => appends += 1,
            _ => {}
        }
    }
    assert!(appends < 40, "the vote waited behind {appends} appends");
    // What was not dropped still comes, whole and in order.
    let dropped = net.counter("skep_net_dropped_raft_total{lane=\"bulk\"}");
    while appends + dropped < 300 {
        let (header, body) = peer.receive().unwrap();
        if header.kind == FrameKind::Raft {
            assert_eq!(body, append);
            appends += 1;
        }
    }
}

#[test]
fn appends_for_a_peer_without_a_connection_are_told_to_be_dropped_and_votes_are_not() {
    let swarm = Swarm::new(12);
    let mut net = Running::start(&swarm, 1);
    assert!(net.handle().send_raft(NodeId(3), &b"vote"[..], true));
    eventually("the vote is dropped", || net.counter("skep_net_dropped_raft_total{lane=\"urgent\"}") > 0);
    assert!(net.handle().send_raft(NodeId(2), &b"append"[..], false));
    let dropped = net.wait("append", |event| match event {
        Event::Dropped(peer) => Some(*peer),
        _ => None,
    });
    assert_eq!(dropped, NodeId(2));
}

#[test]
fn a_peer_that_falls_silent_is_closed() {
    let swarm = Swarm::new(8);
    let limits = Limits { ping: Duration::from_millis(50), ..Limits::default() };
    let mut net = Running::start_with(&swarm, 1, Setup { limits, ..Setup::default() });
    let mut peer = manual_manager(&swarm, &mut net, NodeId(2));
    let mut pings = 0;
    while let Some((header, _)) = peer.receive() {
        assert_eq!(header.kind, FrameKind::Ping);
        pings += 1;
    }
    // One when it was greeted, and three that found no answer.
    assert_eq!(pings, 4);
    assert!(!net.wait_disconnected(NodeId(2)).0, "there is no address that could refuse");
}

#[test]
fn a_connection_for_calls_of_its_own_is_no_link() {
    let swarm = Swarm::new(9);
    let mut net = Running::start(&swarm, 1);
    let config = swarm.client(Some(&swarm.identity(NodeId(2), Role::Manager)));
    let mut client = Client::secure(&net, config);
    client.send(FrameKind::Hello, END, 0, &envelope::encode(&hello(swarm.cluster, NodeId(2))));
    assert_eq!(client.receive().unwrap().0.kind, FrameKind::Hello);
    client.echo(1, b"call");
    assert!(!net.has(|event| matches!(event, Event::Connected(_)).then_some(())));
}

#[test]
fn what_is_queued_at_shutdown_still_leaves() {
    let swarm = Swarm::new(10);
    let net = Running::start_with(&swarm, 1, Setup { quiet: true, ..Setup::default() });
    let mut client = Client::local(&net);
    let body = vec![5; 60 << 10];
    for stream in 0..50 {
        client.ask(2 * stream + 1, Call::Query, &body);
    }
    // The last request is answered, so all are; most answers wait for this client to read.
    eventually("all were received", || net.counter("skep_net_received_frames_total") == 50);
    net.send(Command::Shutdown);
    for _ in 0..50 {
        assert_eq!(client.receive().unwrap().1.len(), body.len());
    }
    assert!(client.receive().is_none());
}

#[test]
fn many_threads_wake_the_loop_and_nothing_is_lost() {
    let swarm = Swarm::new(11);
    let (one, mut two) = pair(&swarm);
    let senders: Vec<_> = (0..4)
        .map(|number| {
            let (net, to) = (one.handle().clone(), two.id);
            std::thread::spawn(move || {
                for message in 0..500_u32 {
                    let body = [&[number][..], &message.to_le_bytes()].concat();
                    while !net.send_raft(to, body.clone(), message % 2 == 0) {
                        std::thread::yield_now();
                    }
                }
            })
        })
        .collect();
    for sender in senders {
        sender.join().unwrap();
    }
    for _ in 0..2000 {
        two.wait("raft message", |event| matches!(event, Event::Raft(..)).then_some(()));
    }
}

#[test]
fn managers_with_expired_certificates_are_peers_where_they_may_and_ask_for_nothing() {
    let swarm = Swarm::new(20);
    let expired = |net: &Running| {
        let identity = swarm.identity_at(net.id, Role::Manager, crate::sys::time::wall_ms() - 48 * 3_600_000);
        let roots = swarm.root.certificate_pem();
        let server = pki::server_config(&identity, roots).unwrap();
        net.credentials.replace(server, pki::peer_config(&identity, roots).unwrap());
    };
    let start = |id, admits_expired| Running::start_with(&swarm, id, Setup { admits_expired, ..Setup::default() });
    let (mut one, mut two) = (start(1, true), start(2, true));
    for net in [&one, &two] {
        expired(net);
    }
    one.dial(&[two.place()]);
    one.wait_connected(two.id);
    two.wait_connected(one.id);
    assert!(one.handle().send_raft(two.id, &b"vote"[..], true));
    let raft = |event: &Event| matches!(event, Event::Raft(..)).then_some(());
    two.wait("raft messages", raft);
    let (first, second) = (one.id, two.id);
    for (net, peer) in [(&mut one, second), (&mut two, first)] {
        net.send(call(1, peer, Call::Query, b"x"));
        let (code, message) = refused(net.wait_reply(1));
        assert_eq!(code, crate::types::Code::Unauthenticated, "{message}");
    }

    // Neither side alone can make it so.
    let (mut strict, lenient) = (start(3, false), start(4, true));
    expired(&lenient);
    lenient.dial(&[strict.place()]);
    strict.dial(&[lenient.place()]);
    let turned = |event: &Event| match event {
        Event::TurnedAway(_, status) => Some(status.clone()),
        _ => None,
    };
    let mut lenient = lenient;
    let status = lenient.wait("a refusal", turned);
    assert!(status.message.contains("expired"), "{status}");
    let connected = |event: &Event| matches!(event, Event::Connected(_)).then_some(());
    assert!(!strict.has(connected));
}
