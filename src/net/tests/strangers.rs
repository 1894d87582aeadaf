//! Bytes that are no frames, connections that say nothing, readers that do not read, and HTTP.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::harness::*;
use crate::codec::frame::{self, END, FrameKind, HEADER};
use crate::codec::request::Ping;
use crate::codec::{envelope, request};
use crate::net::Limits;
use crate::sys::entropy::SeededEntropy;
use crate::types::api::Call;
use crate::types::error::Code;
use crate::types::limits::{MAX_FRAME_BYTES, MAX_UNAUTHENTICATED_FRAME_BYTES};
use crate::types::{NodeId, Role, Status};

/// A frame as bytes.
fn bytes(kind: FrameKind, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::write(&mut bytes, kind, flags, stream, body);
    bytes
}

fn ask(stream: u32, call: Call, body: &[u8]) -> Vec<u8> {
    bytes(FrameKind::Request, 0, stream, &request::encode(call, 1000, None, body))
}

#[test]
fn every_kind_of_malformed_frame_ends_its_connection_with_a_reason_and_no_other() {
    let swarm = Swarm::new(1);
    let net = Running::start(&swarm, 1);
    let mut bystander = Client::local(&net);
    let header = |place: usize, value: u8| {
        let mut bad = ask(1, Call::Query, b"");
        bad[place] = value;
        bad
    };
    let mut cut_request = ask(1, Call::Query, b"");
    cut_request.truncate(HEADER + 3);
    cut_request[0] = 3;
    let twice = [ask(1, Call::Write, b""), ask(1, Call::Write, b"")].concat();
    for (what, cause, input) in [
        ("unknown kind", "header", header(4, 99)),
        ("unknown flags", "header", header(5, 0x80)),
        ("reserved bits", "header", header(6, 1)),
        ("too long", "length", header(3, 0xff)),
        ("short request", "body", cut_request),
        ("short credit", "body", bytes(FrameKind::Credit, 0, 1, b"abc")),
        ("short ping", "body", bytes(FrameKind::Ping, 0, 0, b"abc")),
        ("garbled status", "body", bytes(FrameKind::Error, 0, 0, b"\x01abc")),
        ("hello of a client", "order", bytes(FrameKind::Hello, 0, 0, b"")),
        ("raft of a client", "order", bytes(FrameKind::Raft, 0, 0, b"")),
        ("pong of a client", "order", bytes(FrameKind::Pong, 0, 0, &Ping::default().encode())),
        ("ping on a stream", "order", bytes(FrameKind::Ping, 0, 1, &Ping::default().encode())),
        ("request on the other side's stream", "order", ask(2, Call::Query, b"")),
        ("request on stream 0", "order", ask(0, Call::Query, b"")),
        ("stream opened twice", "order", twice),
    ] {
        let counter = format!("skep_net_malformed_total{{cause=\"{cause}\"}}");
        let before = net.counter(&counter);
        let mut client = Client::local(&net);
        client.stream.write_all(&input).unwrap();
        let status = client.receive_error(0);
        assert_eq!(status.code, Code::InvalidArgument, "{what}");
        assert!(client.receive().is_none(), "{what}");
        assert_eq!(net.counter(&counter), before + 1, "{what}");
    }
    bystander.echo(1, b"still here");
    // What a newer client asks for is refused without ending the connection.
    let mut unknown = request::encode(Call::Query, 0, None, b"");
    unknown[0] = 0xee;
    bystander.send(FrameKind::Request, 0, 3, &unknown);
    assert_eq!(bystander.receive_error(3).code, Code::Unimplemented);
    bystander.echo(3, b"still here");
}

/// Frames of every kind, as a manager or a client may send them.
fn corpus(swarm: &Swarm) -> Vec<Vec<u8>> {
    vec![
        bytes(FrameKind::Hello, END, 0, &envelope::encode(&hello(swarm.cluster, NodeId(5)))),
        ask(1, Call::Query, b"body"),
        ask(3, Call::Watch, &100_u32.to_le_bytes()),
        bytes(FrameKind::Credit, 0, 3, &10_u32.to_le_bytes()),
        bytes(FrameKind::Cancel, 0, 3, b""),
        bytes(FrameKind::Answer, END, 2, b"answer"),
        bytes(FrameKind::Error, END, 2, &envelope::encode(&Status::new(Code::Internal, "x"))),
        bytes(FrameKind::Ping, 0, 0, &Ping::default().encode()),
        bytes(FrameKind::Pong, 0, 0, &Ping::default().encode()),
        bytes(FrameKind::Raft, 0, 0, b"raft"),
    ]
}

/// Valid frames in any order, with bytes flipped, cut out, doubled and put in.
fn mutated(corpus: &[Vec<u8>], random: &mut SeededEntropy) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..=random.below(4) {
        bytes.extend_from_slice(&corpus[random.below(corpus.len() as u64) as usize]);
    }
    for _ in 0..random.below(4) {
        let place = random.below(bytes.len() as u64) as usize;
        match random.below(4) {
            0 => bytes[place] ^= 1 << random.below(8),
            1 => bytes[place] = random.below(256) as u8,
            2 => bytes.truncate(place.max(1)),
            _ => bytes.insert(place, random.below(256) as u8),
        }
    }
    bytes
}

#[test]
fn mutated_frames_disturb_nobody_else() {
    let swarm = Swarm::new(2);
    let net = Running::start_with(&swarm, 1, Setup { quiet: true, ..Setup::default() });
    let mut bystander = Client::local(&net);
    let corpus = corpus(&swarm);
    let manager = swarm.client(Some(&swarm.identity(NodeId(5), Role::Manager)));
    let mut random = SeededEntropy::new(2);
    for round in 0..400 {
        let input = mutated(&corpus, &mut random);
        // The other side may close in the midst of it.
        if round % 8 == 0 {
            let mut client = Client::secure(&net, manager.clone());
            let _ = client.stream.write_all(&[&corpus[0], input.as_slice()].concat());
            client.stream.conn.send_close_notify();
            let _ = client.stream.flush();
            let _ = client.stream.sock.shutdown(Shutdown::Write);
            let mut rest = Vec::new();
            let _ = client.stream.read_to_end(&mut rest);
        } else {
            let mut client = UnixStream::connect(&net.socket).unwrap();
            let _ = client.write_all(&input);
            let _ = client.shutdown(Shutdown::Write);
            let mut rest = Vec::new();
            let _ = client.read_to_end(&mut rest);
        }
        if round % 50 == 0 {
            bystander.echo(1, b"still here");
        }
    }
    bystander.echo(1, b"still here");
    eventually("all are closed", || net.gauge("local") == 1 && net.gauge("manager") + net.gauge("handshaking") == 0);
}

#[test]
fn what_is_no_tls_is_closed() {
    let swarm = Swarm::new(3);
    let net = Running::start(&swarm, 1);
    for input in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"SSH-2.0-scanner\r\n", &[0; 4096], &[0x16, 3, 1, 0xff, 0xff, 1, 1]] {
        let mut socket = TcpStream::connect(net.addr).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(input).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        // An alert may come, or a reset.
        let _ = socket.read_to_end(&mut rest);
        assert!(rest.len() < 64);
    }
    eventually("all are closed", || net.gauge("handshaking") == 0);
    assert!(net.counter("skep_net_handshakes_total{result=\"failed\"}") >= 4);
}

#[test]
fn frames_are_bounded_and_more_so_before_authentication() {
    let swarm = Swarm::new(4);
    let net = Running::start(&swarm, 1);
    let mut stranger = Client::secure(&net, swarm.client(None));
    stranger.send(FrameKind::Request, 0, 1, &vec![0; MAX_UNAUTHENTICATED_FRAME_BYTES + 1][..]);
    let status = stranger.receive_error(0);
    assert_eq!(status.code, Code::InvalidArgument);
    assert!(status.message.contains("over the limit of 65536"), "{status}");
    // A member may send more, and is told by the route table what is too much.
    let mut local = Client::local(&net);
    local.ask(1, Call::Write, &vec![0; 3 << 20]);
    assert_eq!(local.receive_error(1).code, Code::InvalidArgument);
    local.echo(3, b"still here");
    let mut header = bytes(FrameKind::Request, 0, 5, b"");
    header[0..4].copy_from_slice(&(MAX_FRAME_BYTES as u32 + 1).to_le_bytes());
    local.stream.write_all(&header).unwrap();
    assert!(local.receive_error(0).message.contains("over the limit"));
}

#[test]
fn a_thousand_silent_connections_keep_no_peer_out() {
    let swarm = Swarm::new(5);
    let (mut one, mut two) = (Running::start(&swarm, 1), Running::start(&swarm, 2));
    one.dial(&[two.place()]);
    one.wait_connected(two.id);
    two.wait_connected(one.id);
    let mut silent = VecDeque::new();
    for round in 0..1000 {
        silent.push_back(TcpStream::connect(one.addr).unwrap());
        if silent.len() > 150 {
            silent.pop_front();
        }
        if round % 100 == 0 {
            assert!(two.handle().send_raft(one.id, vec![round as u8], true));
            one.wait("raft message", |event| matches!(event, Event::Raft(NodeId(2), _)).then_some(()));
        }
    }
    eventually("the oldest were closed", || one.gauge("handshaking") <= 64);
    // Closed are those that have gone, and those over the limit of one source.
    assert!(one.counter("skep_net_evicted_total") > 0);
    let mut three = Running::start(&swarm, 3);
    three.dial(&[one.place()]);
    three.wait_connected(one.id);
    assert!(!one.has(|event| matches!(event, Event::Disconnected(..)).then_some(())));
}

#[test]
fn who_says_nothing_is_closed_after_a_while() {
    let swarm = Swarm::new(6);
    let limits = Limits { handshake: Duration::from_millis(300), ..Limits::default() };
    let net = Running::start_with(&swarm, 1, Setup { limits, ..Setup::default() });
    let mut silent = TcpStream::connect(net.addr).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut http = TcpStream::connect(net.http).unwrap();
    http.write_all(b"GET /heal").unwrap();
    let mut anonymous = Client::secure(&net, swarm.client(None));
    anonymous.ask(1, Call::GetRoot, b"");
    assert_eq!(anonymous.receive_error(0).code, Code::DeadlineExceeded);
    // At most an alert that says goodbye.
    let mut rest = Vec::new();
    assert!(silent.read_to_end(&mut rest).unwrap_or(0) < 16);
    assert_eq!(http.read(&mut [0; 8]).unwrap_or(0), 0);
    // One that waits for an answer is not silent.
    let mut waiting = Client::secure(&net, swarm.client(None));
    waiting.ask(1, Call::Issue, b"");
    assert_eq!(waiting.receive().unwrap().0.kind, FrameKind::Hello);
    waiting.stream.sock.set_read_timeout(Some(Duration::from_millis(900))).unwrap();
    let mut byte = [0];
    let nothing = waiting.stream.read(&mut byte).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn a_stranger_that_waits_for_an_answer_is_closed_like_any_other() {
    let swarm = Swarm::new(12);
    let limits = Limits { unauthenticated_per_source: 2, ..Limits::default() };
    let net = Running::start_with(&swarm, 1, Setup { limits, ..Setup::default() });
    let stranger = || {
        let mut client = Client::secure(&net, swarm.client(None));
        // The call is never answered here.
        client.ask(1, Call::Issue, b"");
        assert_eq!(client.receive().unwrap().0.kind, FrameKind::Hello);
        client
    };
    let mut oldest = stranger();
    let _silent = TcpStream::connect(net.addr).unwrap();
    eventually("both are there", || net.gauge("anonymous") + net.gauge("handshaking") == 2);
    let _newest = stranger();
    assert!(oldest.receive().is_none());
    eventually("two are left", || net.gauge("anonymous") + net.gauge("handshaking") == 2);
}

#[test]
fn a_worker_has_so_many_connections_and_its_oldest_makes_room() {
    let swarm = Swarm::new(13);
    let limits = Limits { per_worker: 2, ..Limits::default() };
    let net = Running::start_with(&swarm, 1, Setup { limits, ..Setup::default() });
    let connect = |node| {
        let mut client = Client::secure(&net, swarm.client(Some(&swarm.identity(NodeId(node), Role::Worker))));
        client.stream.flush().unwrap();
        assert_eq!(client.receive().unwrap().0.kind, FrameKind::Hello);
        client
    };
    let (mut first, mut other, mut second) = (connect(8), connect(9), connect(8));
    let mut third = connect(8);
    assert!(first.receive().is_none());
    for client in [&mut other, &mut second, &mut third] {
        client.ask(1, Call::GetRoot, b"");
        assert_eq!(client.receive().unwrap().0.kind, FrameKind::Answer);
    }
    assert_eq!(net.gauge("worker"), 3);
}

#[test]
fn a_client_that_closes_its_half_is_forgotten() {
    let swarm = Swarm::new(7);
    let mut net = Running::start(&swarm, 1);
    let mut client = Client::local(&net);
    client.ask(1, Call::Write, b"");
    client.stream.shutdown(Shutdown::Write).unwrap();
    net.wait("cancellation", |event| matches!(event, Event::Cancelled(stream) if stream.stream == 1).then_some(()));
    assert!(client.receive().is_none());
    eventually("it is closed", || net.gauge("local") == 0);
}

#[test]
fn open_requests_of_a_connection_are_bounded() {
    let swarm = Swarm::new(8);
    let limits = Limits { streams: 3, ..Limits::default() };
    let net = Running::start_with(&swarm, 1, Setup { limits, ..Setup::default() });
    let mut client = Client::local(&net);
    for stream in [1, 3, 5] {
        client.ask(stream, Call::Write, b"");
    }
    client.ask(7, Call::Write, b"");
    assert_eq!(client.receive_error(7).code, Code::ResourceExhausted);
    client.send(FrameKind::Cancel, 0, 3, b"");
    client.echo(3, b"room again");
}

#[test]
fn a_client_that_does_not_read_is_closed_and_only_that_one() {
    let swarm = Swarm::new(9);
    let limits = Limits { queue_bytes: 1 << 20, ..Limits::default() };
    let net = Running::start_with(&swarm, 1, Setup { limits, quiet: true, ..Setup::default() });
    let mut bystander = Client::local(&net);
    let mut deaf = Client::local(&net);
    let body = vec![0; 60 << 10];
    for stream in 0..200 {
        let request = ask(2 * stream + 1, Call::Query, &body);
        if deaf.stream.write_all(&request).is_err() {
            break;
        }
    }
    eventually("it is closed", || net.counter("skep_net_slow_readers_total") == 1);
    bystander.echo(1, b"still here");
    eventually("it is gone", || net.gauge("local") == 1);
}

#[test]
fn http_answers_a_get_and_nothing_else() {
    let swarm = Swarm::new(10);
    let net = Running::start(&swarm, 1);
    let exchange = |request: &[u8]| {
        let mut socket = TcpStream::connect(net.http).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(request).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    };
    let well = exchange(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(well.starts_with("HTTP/1.1 200 OK\r\n") && well.ends_with("Connection: close\r\n\r\nwell\n"), "{well}");
    let body = [b"POST /healthz HTTP/1.1\r\nContent-Length: 100000\r\n\r\n".to_vec(), vec![b'x'; 100_000]].concat();
    for (request, expected) in [
        (&b"GET /nothing HTTP/1.1\r\n\r\n"[..], "HTTP/1.1 404 "),
        (&body, "HTTP/1.1 405 "),
        (b"nonsense\r\n\r\n", "HTTP/1.1 400 "),
        (&[b"GET / HTTP/1.1\r\nA: ".as_slice(), &[b'a'; 9000]].concat(), "HTTP/1.1 431 "),
    ] {
        let answer = exchange(request);
        assert!(answer.starts_with(expected), "{answer}");
    }
    eventually("all are closed", || net.gauge("http") == 0);
}
