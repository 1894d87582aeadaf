//! A manager made of a script, and the client against it.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write as _};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;

use super::*;
use crate::codec::frame::{self, HEADER, Header, INITIAL_CREDIT};
use crate::codec::request::Ping;
use crate::pki;
use crate::sys::entropy::SeededEntropy;
use crate::sys::time::wall_ms;
use crate::types::api::{Action, PROTOCOL, WatchEvent, WatchItem};
use crate::types::log::Position;
use crate::types::object::{Config, ConfigSpec};
use crate::types::{ClusterId, Index, Lineage, Role, Term};

const TIMEOUT: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(60);
const NODE: NodeId = NodeId(7);
const LINEAGE: Lineage = Lineage(3);

fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL,
        cluster_id: ClusterId(1),
        node_id: NODE,
        raft_id: None,
        lineage: LINEAGE,
        boot: 1,
        nonce: 1,
        last: Position { term: Term(1), index: Index(1) },
        advertise: "127.0.0.1:1".to_owned(),
        feature_level: 1,
        revision: Revision(41),
    }
}

/// The manager's end of one connection.
struct Served<S>(S);

impl<S: Read + std::io::Write> Served<S> {
    fn greet(mut self) -> Self {
        self.send(FrameKind::Hello, 0, 0, &envelope::encode(&hello()));
        self
    }

    fn send(&mut self, kind: FrameKind, flags: u8, stream: u32, body: &[u8]) {
        let mut bytes = Vec::new();
        frame::write(&mut bytes, kind, flags, stream, body);
        self.0.write_all(&bytes).unwrap();
        self.0.flush().unwrap();
    }

    fn receive(&mut self) -> (Header, Vec<u8>) {
        let mut bytes = [0; HEADER];
        self.0.read_exact(&mut bytes).unwrap();
        let header = Header::decode(&bytes, MAX_FRAME_BYTES).unwrap();
        let mut body = vec![0; header.length as usize];
        self.0.read_exact(&mut body).unwrap();
        (header, body)
    }

    /// The next request: its stream, call and envelope.
    fn request(&mut self) -> (u32, Call, Vec<u8>) {
        let (header, body) = self.receive();
        assert_eq!(header.kind, FrameKind::Request);
        let request = request::decode(&body).unwrap();
        (header.stream, request.call, request.body.to_vec())
    }

    fn write_request(&mut self) -> (u32, WriteRequest) {
        let (stream, call, body) = self.request();
        assert_eq!(call, Call::Write);
        (stream, envelope::decode(&body, MAX_FRAME_BYTES).unwrap())
    }

    fn answer(&mut self, stream: u32, answer: &Answer) {
        self.send(FrameKind::Answer, END, stream, &envelope::encode(answer));
    }

    fn refuse(&mut self, stream: u32, status: &Status) {
        self.send(FrameKind::Error, END, stream, &envelope::encode(status));
    }

    fn item(&mut self, stream: u32, item: &WatchItem) {
        self.send(FrameKind::Answer, 0, stream, &envelope::encode(item));
    }
}

/// Serves connections at a socket, one after the other, each with its script. Nobody listens once they are used up.
type Script = Box<dyn FnOnce(Served<UnixStream>) + Send>;

fn serve(scripts: Vec<Script>) -> (tempfile::TempDir, PathBuf, JoinHandle<()>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("skep.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        for script in scripts {
            let (stream, _) = listener.accept().unwrap();
            script(Served(stream));
        }
    });
    (dir, path, server)
}

fn write() -> Write {
    Write::Remove { kind: Kind::Config, object: "web".to_owned(), if_version: None }
}

fn unavailable(hopeless: bool) -> Status {
    Status { hopeless, ..Status::new(Code::Unavailable, "no leader") }
}

const WRITTEN: Answer = Answer::Written { id: ObjectId(5), revision: Revision(42) };

#[test]
fn a_refused_or_lost_write_is_sent_again_under_the_same_id() {
    let (sender, requests) = std::sync::mpsc::channel();
    let again = sender.clone();
    let (_dir, path, server) = serve(vec![
        Box::new(move |served| {
            let mut served = served.greet();
            let (stream, request) = served.write_request();
            sender.send(request).unwrap();
            served.refuse(stream, &unavailable(false));
            let (_, request) = served.write_request();
            sender.send(request).unwrap();
            // The connection closes without an answer.
        }),
        Box::new(move |served| {
            let mut served = served.greet();
            let (stream, request) = served.write_request();
            again.send(request).unwrap();
            served.answer(stream, &WRITTEN);
        }),
    ]);
    let mut client = Client::local(&path, TIMEOUT).unwrap();
    let written = client.write(write(), TIMEOUT).unwrap();
    assert_eq!(written, Written { id: ObjectId(5), revision: Revision(42) });
    let requests: Vec<_> = requests.iter().collect();
    assert_eq!(requests.len(), 3);
    assert!(requests.iter().all(|request| *request == requests[0]));
    assert_eq!(requests[0].after, Revision(41));
    server.join().unwrap();
}

#[test]
fn a_new_write_is_made_after_a_revision_that_is_not_old() {
    let greet_at = |mut served: Served<UnixStream>, revision| {
        served.send(FrameKind::Hello, 0, 0, &envelope::encode(&Hello { revision: Revision(revision), ..hello() }));
        served
    };
    let (_dir, path, server) = serve(vec![
        Box::new(move |served| {
            let mut served = greet_at(served, 41);
            for (after, revision) in [(41, 50), (50, 51), (51, 20), (51, 52)] {
                let (stream, request) = served.write_request();
                assert_eq!(request.after, Revision(after));
                served.answer(stream, &Answer::Written { id: ObjectId(5), revision: Revision(revision) });
            }
            // Whoever was idle comes on a new connection.
            let _ = served.0.read(&mut [0; 1]);
        }),
        Box::new(move |served| {
            let mut served = greet_at(served, 200_000);
            let (stream, request) = served.write_request();
            assert_eq!(request.after, Revision(200_000));
            served.answer(stream, &WRITTEN);
        }),
    ]);
    let mut client = Client::local(&path, TIMEOUT).unwrap();
    for _ in 0..4 {
        client.recent_until = monotonic() + TIMEOUT;
        client.write(write(), TIMEOUT).unwrap();
    }
    // As if it had been idle for long. The script's first connection ends only when the client has left it.
    client.recent_until = Instant::from_nanos(0);
    client.connection = None;
    client.write(write(), TIMEOUT).unwrap();
    server.join().unwrap();
}

#[test]
fn a_client_that_cannot_ask_anew_writes_after_what_it_knows() {
    let (_dir, path, server) = serve(vec![Box::new(|served| {
        let mut served = served.greet();
        let (stream, request) = served.write_request();
        assert_eq!(request.after, Revision(41));
        served.answer(stream, &WRITTEN);
    })]);
    let mut client = Client::local(&path, TIMEOUT).unwrap();
    std::fs::remove_file(&path).unwrap();
    client.recent_until = Instant::from_nanos(0);
    client.write(write(), TIMEOUT).unwrap();
    server.join().unwrap();
}

#[test]
fn a_request_whose_time_is_nearly_over_still_names_a_deadline() {
    let (_dir, path, server) = serve(vec![Box::new(|served| {
        let mut served = served.greet();
        let (_, body) = served.receive();
        assert_eq!(request::decode(&body).unwrap().deadline_ms, 1);
    })]);
    let mut client = Client::local(&path, TIMEOUT).unwrap();
    client.call(Call::Health, &(), Duration::ZERO).unwrap_err();
    server.join().unwrap();
}

#[test]
fn a_manager_without_hope_ends_the_retries_at_once() {
    let (_dir, path, server) = serve(vec![Box::new(|served| {
        let mut served = served.greet();
        let (stream, _) = served.write_request();
        served.refuse(stream, &unavailable(true));
    })]);
    let mut client = Client::local(&path, TIMEOUT).unwrap();
    assert_eq!(client.write(write(), TIMEOUT), Err(ClientError::Refused(unavailable(true))));
    server.join().unwrap();
}

#[test]
fn a_write_that_was_lost_stays_in_doubt_until_a_definite_answer() {
    let check = |status: Status, expected: &dyn Fn(ClientError) -> bool| {
        let (_dir, path, server) = serve(vec![
            Box::new(|served| drop(served.greet().write_request())),
            Box::new(move |served| {
                let mut served = served.greet();
                let (stream, _) = served.write_request();
                served.refuse(stream, &status);
            }),
        ]);
        let mut client = Client::local(&path, TIMEOUT).unwrap();
        let error = client.write(write(), TIMEOUT).unwrap_err();
        assert!(expected(error.clone()), "{error:?}");
        server.join().unwrap();
    };
    check(unavailable(true), &|error| matches!(error, ClientError::OutcomeUnknown { .. }));
    check(Status::new(Code::Internal, "x"), &|error| matches!(error, ClientError::OutcomeUnknown { .. }));
    check(Status::new(Code::NotFound, "x"), &|error| matches!(error, ClientError::Refused(_)));
}

#[test]
fn an_unknown_outcome_names_the_id_that_was_sent() {
    let (sender, requests) = std::sync::mpsc::channel();
    let (_dir, path, server) = serve(vec![Box::new(move |served| {
        sender.send(served.greet().write_request().1).unwrap();
    })]);
    let mut client = Client::local(&path, TIMEOUT).unwrap();
    let error = client.write(write(), Duration::from_millis(200)).unwrap_err();
    let request = requests.recv().unwrap();
    let ClientError::OutcomeUnknown { id, .. } = error else { panic!("{error:?}") };
    assert_eq!(id, WriteId { change: request.change, after: request.after });
    server.join().unwrap();
}

#[test]
fn a_silent_manager_costs_the_timeout_and_no_more() {
    let (_dir, path, server) = serve(vec![Box::new(|served| {
        let mut served = served.greet();
        served.request();
        let _ = served.0.read(&mut [0; 1]);
    })]);
    let mut client = Client::local(&path, TIMEOUT).unwrap();
    let began = monotonic();
    let error = client.query(QueryKind::Status, true, SHORT).unwrap_err();
    assert_eq!(error.status().code, Code::DeadlineExceeded);
    assert!(monotonic().since(began) < TIMEOUT);
    drop(client);
    server.join().unwrap();
}

#[test]
fn nobody_at_the_socket_is_said_at_once_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let error = Client::local(&dir.path().join("skep.sock"), TIMEOUT).unwrap_err();
    let ClientError::Unreachable(status) = error else { panic!("{error:?}") };
    assert_eq!(status.code, Code::Unavailable);
    assert!(status.message.contains("no manager answers at"), "{}", status.message);
    assert!(status.hint.contains("skep run"), "{}", status.hint);

    let error = Client::local(&dir.path().join("n".repeat(200)), TIMEOUT).unwrap_err();
    assert!(error.status().hint.contains("--socket"), "{error:?}");
}

#[test]
fn a_connection_may_be_refused_before_any_request() {
    let status = Status::new(Code::PermissionDenied, "this socket is root's");
    let sent = envelope::encode(&status);
    let (_dir, path, server) = serve(vec![Box::new(move |mut served| served.send(FrameKind::Error, END, 0, &sent))]);
    assert_eq!(Client::local(&path, TIMEOUT).unwrap_err(), ClientError::Refused(status));
    server.join().unwrap();
}

#[test]
fn bytes_that_no_manager_sends_are_an_error() {
    for bytes in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[0xFF; 64], &[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]] {
        let (_dir, path, server) = serve(vec![Box::new(move |mut served| served.0.write_all(bytes).unwrap())]);
        let error = Client::local(&path, TIMEOUT).unwrap_err();
        assert_eq!(error.status().code, Code::Internal, "{error:?}");
        server.join().unwrap();
    }
}

#[test]
fn a_list_follows_its_pages_and_pings_are_answered() {
    let object = |id| Object::from(Config { id: ObjectId(id), ..Config::default() });
    let (_dir, path, server) = serve(vec![Box::new(move |served| {
        let mut served = served.greet();
        let ping = Ping { sent_ns: 77, ..Ping::default() };
        let pages = [
            (None, Answer::Objects { objects: vec![object(1), object(2)], more: true }),
            (Some(2), Answer::Searched { objects: vec![object(3)], after: ObjectId(5) }),
            (Some(5), Answer::Searched { objects: vec![], after: ObjectId(9) }),
            (Some(9), Answer::Objects { objects: vec![object(10)], more: true }),
            (Some(10), Answer::Objects { objects: vec![], more: false }),
        ];
        for (after, page) in pages {
            let (stream, _, body) = served.request();
            let query: Query = envelope::decode(&body, MAX_FRAME_BYTES).unwrap();
            assert_eq!(query.what, QueryKind::List(Kind::Config, Filter::default(), after.map(ObjectId)));
            served.send(FrameKind::Ping, 0, 0, &ping.encode());
            let (header, body) = served.receive();
            assert_eq!((header.kind, Ping::decode(&body).unwrap().sent_ns), (FrameKind::Pong, 77));
            served.answer(stream, &page);
        }
    })]);
    let mut client = Client::local(&path, TIMEOUT).unwrap();
    let objects = client.list(Kind::Config, &Filter::default(), false, TIMEOUT).unwrap();
    assert_eq!(objects.iter().map(Object::id).collect::<Vec<_>>(), [1, 2, 3, 10].map(ObjectId));
    server.join().unwrap();
}

fn change(revision: u64, bytes: usize) -> WatchItem {
    let spec = ConfigSpec { data: vec![7; bytes], ..ConfigSpec::default() };
    let object = Object::from(Config { id: ObjectId(1), spec, ..Config::default() });
    let event = WatchEvent { action: Action::Create, object, old: None };
    WatchItem::Change { revision: Revision(revision), events: vec![event] }
}

fn revision_of(item: &WatchItem) -> u64 {
    match item {
        WatchItem::Begin { revision, .. } | WatchItem::Change { revision, .. } | WatchItem::Mark { revision } => {
            revision.0
        }
        WatchItem::Snapshot { .. } => 0,
    }
}

#[test]
fn a_watch_grants_what_it_consumed() {
    let (_dir, path, server) = serve(vec![
        Box::new(|served| drop(served.greet())),
        Box::new(|served| {
            let mut served = served.greet();
            let (stream, call, _) = served.request();
            assert_eq!(call, Call::Watch);
            let mut credit = u64::from(INITIAL_CREDIT);
            let grant = |served: &mut Served<UnixStream>| {
                let (header, body) = served.receive();
                assert_eq!((header.kind, header.stream), (FrameKind::Credit, stream));
                u64::from(u32::from_le_bytes(body.try_into().unwrap()))
            };
            credit += grant(&mut served);
            assert!(credit >= MAX_FRAME_BYTES as u64, "the largest item must fit into the first credit");
            for revision in 0..40 {
                let item = change(revision, 1_000_000);
                let length = envelope::encode(&item).len() as u64;
                while credit < length {
                    credit += grant(&mut served);
                }
                credit -= length;
                served.item(stream, &item);
            }
            // Until the client is done with the last item.
            while served.0.read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
        }),
    ]);
    let client = Client::local(&path, TIMEOUT).unwrap();
    let watch = client.watch(WatchRequest::default(), TIMEOUT).unwrap();
    let revisions: Vec<_> = watch.take(40).map(|item| revision_of(&item.unwrap())).collect();
    assert_eq!(revisions, (0..40).collect::<Vec<_>>());
    server.join().unwrap();
}

#[test]
fn a_watch_resumes_after_its_position_and_ends_when_it_cannot() {
    let (sender, requests) = std::sync::mpsc::channel::<WatchRequest>();
    let begin = WatchItem::Begin { lineage: LINEAGE, revision: Revision(5) };
    let script = |items: Vec<WatchItem>, refusal: Option<Status>| -> Script {
        let sender = sender.clone();
        Box::new(move |served| {
            let mut served = served.greet();
            let (stream, _, body) = served.request();
            sender.send(envelope::decode(&body, MAX_FRAME_BYTES).unwrap()).unwrap();
            served.receive();
            for item in &items {
                served.item(stream, item);
            }
            if let Some(status) = refusal {
                served.refuse(stream, &status);
            }
        })
    };
    let gone = Status::new(Code::OutOfRange, "too old");
    let (_dir, path, server) = serve(vec![
        Box::new(|served| drop(served.greet())),
        script(vec![begin.clone(), change(6, 1)], None),
        script(vec![begin, change(7, 1), WatchItem::Mark { revision: Revision(9) }], Some(unavailable(false))),
        script(vec![], Some(gone.clone())),
    ]);
    let client = Client::local(&path, TIMEOUT).unwrap();
    let mut watch = client.watch(WatchRequest::default(), TIMEOUT).unwrap();
    let revisions: Vec<_> = watch.by_ref().take(4).map(|item| revision_of(&item.unwrap())).collect();
    assert_eq!(revisions, [5, 6, 7, 9]);
    assert_eq!(watch.next(), Some(Err(ClientError::Refused(gone))));
    assert_eq!(watch.next(), None);
    let positions: Vec<_> = requests.try_iter().map(|request| request.from).collect();
    assert_eq!(positions, [None, Some((LINEAGE, Revision(6))), Some((LINEAGE, Revision(9)))]);
    server.join().unwrap();
}

#[test]
fn a_watch_that_breaks_within_its_snapshot_says_so() {
    let (_dir, path, server) = serve(vec![
        Box::new(|served| drop(served.greet())),
        Box::new(|served| {
            let mut served = served.greet();
            let (stream, _, _) = served.request();
            served.receive();
            served.item(stream, &WatchItem::Snapshot { objects: Vec::new() });
        }),
    ]);
    let client = Client::local(&path, TIMEOUT).unwrap();
    let mut watch = client.watch(WatchRequest::default(), TIMEOUT).unwrap();
    assert!(matches!(watch.next(), Some(Ok(WatchItem::Snapshot { .. }))));
    assert!(matches!(watch.next(), Some(Err(ClientError::Lost(_)))));
    server.join().unwrap();
}

#[test]
fn a_watch_with_a_deadline_comes_back_and_goes_on() {
    let (go, wait) = std::sync::mpsc::channel();
    let (_dir, path, server) = serve(vec![
        Box::new(|served| drop(served.greet())),
        Box::new(move |served| {
            let mut served = served.greet();
            let (stream, _, _) = served.request();
            served.receive();
            // Half a frame before the deadline, the other half after it.
            let mut bytes = Vec::new();
            frame::write(&mut bytes, FrameKind::Answer, 0, stream, &envelope::encode(&change(6, 100)));
            served.0.write_all(&bytes[..50]).unwrap();
            wait.recv().unwrap();
            served.0.write_all(&bytes[50..]).unwrap();
            let _ = served.0.read(&mut [0; 1]);
        }),
    ]);
    let client = Client::local(&path, TIMEOUT).unwrap();
    let mut watch = client.watch(WatchRequest::default(), TIMEOUT).unwrap();
    assert_eq!(watch.next_until(Some(monotonic() + SHORT)), Ok(None));
    go.send(()).unwrap();
    let item = watch.next_until(Some(monotonic() + TIMEOUT)).unwrap().unwrap();
    assert_eq!(revision_of(&item), 6);
    drop(watch);
    server.join().unwrap();
}

/// A root, and a manager's identity from it.
fn identity(seed: u64) -> (pki::RootCa, pki::NodeIdentity) {
    let mut entropy = SeededEntropy::new(seed);
    let root = pki::RootCa::generate(wall_ms(), &mut entropy).unwrap();
    let key = pki::generate_key(&mut entropy);
    let request = pki::signing_request(&key).unwrap();
    let hour = Duration::from_secs(3600);
    let chain = root.sign_request(&request, NODE, Role::Manager, ClusterId(1), wall_ms(), hour, &mut entropy).unwrap();
    (root, pki::NodeIdentity::new(&chain, key).unwrap())
}

#[test]
fn over_tls_the_right_node_is_spoken_to_and_others_are_refused() {
    let (root, manager) = identity(1);
    let (other, _) = identity(2);
    let check = |trusted: &pki::RootCa, expected: Option<NodeId>| {
        let config = pki::server_config(&manager, root.certificate_pem()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (socket, _) = listener.accept().unwrap();
            let session = rustls::ServerConnection::new(config).unwrap();
            let mut stream = rustls::StreamOwned::new(session, socket);
            // A client that refuses us breaks the handshake.
            if stream.conn.complete_io(&mut stream.sock).is_ok() {
                let mut served = Served(stream).greet();
                if let Ok(()) = served.0.read_exact(&mut [0; HEADER]) {
                    served.answer(1, &Answer::Done);
                }
            }
        });
        let target = TlsTarget {
            addr,
            server_name: pki::manager_name(),
            config: pki::client_config(None, pki::Trust::Roots(trusted.certificate_pem().to_owned())).unwrap(),
            expected,
            hello: None,
        };
        let answer = Client::tls(target, TIMEOUT).and_then(|mut client| client.call(Call::Health, &(), TIMEOUT));
        server.join().unwrap();
        answer
    };
    assert_eq!(check(&root, Some(NODE)), Ok(Answer::Done));
    for error in [check(&root, Some(NodeId(8))), check(&other, None)].map(Result::unwrap_err) {
        assert_eq!(error.status().code, Code::Unauthenticated, "{error:?}");
    }
}

#[test]
fn a_port_that_speaks_no_tls_and_one_that_is_closed_are_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let target = TlsTarget {
        addr,
        server_name: pki::manager_name(),
        config: pki::client_config(None, pki::Trust::Anything).unwrap(),
        expected: None,
        hello: None,
    };
    let server = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").unwrap();
        // Read to the end, so that closing does not reset what was sent.
        let _ = socket.read_to_end(&mut Vec::new());
    });
    let error = Client::tls(target.clone(), TIMEOUT).unwrap_err();
    assert_eq!(error.status().code, Code::Unauthenticated, "{error:?}");
    server.join().unwrap();
    let error = Client::tls(target, TIMEOUT).unwrap_err();
    assert_eq!(error.status().code, Code::Unavailable, "{error:?}");
    assert!(matches!(error, ClientError::Unreachable(_)));
}
