//! The driver against a manager that answers everything.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use super::*;
use crate::codec::frame::{self, END, FrameKind, HEADER, Header};
use crate::codec::{envelope, request};
use crate::types::api::{Action, Call, Hello, PROTOCOL, WatchEvent, WatchItem, WatchRequest, WriteRequest};
use crate::types::limits::MAX_FRAME_BYTES;
use crate::types::object::{Annotations, Resource};
use crate::types::{ChangeId, ClusterId, Code, Lineage, NodeId, Object, Revision, Status};

#[derive(Default)]
struct State {
    connections: usize,
    changes: BTreeSet<ChangeId>,
    names: BTreeSet<String>,
    /// How often each object was written over, and with what.
    written_over: BTreeMap<String, u64>,
    payloads: BTreeSet<Vec<u8>>,
    reads: u64,
    /// Connection, stream, and the beginnings of names that it wants.
    watchers: Vec<(UnixStream, u32, Vec<String>)>,
    /// Every so many writes one is refused.
    refuse_every: Option<usize>,
}

fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL,
        cluster_id: ClusterId(1),
        node_id: NodeId(1),
        raft_id: None,
        lineage: Lineage(1),
        boot: 1,
        nonce: 1,
        last: Default::default(),
        advertise: String::new(),
        feature_level: 1,
        revision: Revision(9),
    }
}

fn send(stream: &mut UnixStream, kind: FrameKind, flags: u8, number: u32, body: &[u8]) {
    let mut bytes = Vec::new();
    frame::write(&mut bytes, kind, flags, number, body);
    let _ = stream.write_all(&bytes);
}

fn read_frame(stream: &mut UnixStream) -> std::io::Result<(Header, Vec<u8>)> {
    let mut bytes = [0; HEADER];
    stream.read_exact(&mut bytes)?;
    let header = Header::decode(&bytes, MAX_FRAME_BYTES).unwrap();
    let mut body = vec![0; header.length as usize];
    stream.read_exact(&mut body)?;
    Ok((header, body))
}

fn serve_one(mut stream: UnixStream, state: &Mutex<State>) {
    state.lock().unwrap().connections += 1;
    send(&mut stream, FrameKind::Hello, 0, 0, &envelope::encode(&hello()));
    while let Ok((header, body)) = read_frame(&mut stream) {
        if header.kind != FrameKind::Request {
            continue;
        }
        let request = request::decode(&body).unwrap();
        let mut state = state.lock().unwrap();
        match request.call {
            Call::Write => {
                let request: WriteRequest = envelope::decode(request.body, MAX_FRAME_BYTES).unwrap();
                assert!(state.changes.insert(request.change), "a retry is no operation");
                assert!(request.after >= Revision(9));
                let (name, kind, payload) = match request.write {
                    Write::CreateResource { name, kind, payload, .. } => (name, kind, payload),
                    Write::UpdateResource { object, payload, if_version: None, .. } => {
                        *state.written_over.entry(object).or_default() += 1;
                        let payload = payload.unwrap().0.clone();
                        assert!(state.payloads.insert(payload.clone()), "an update that changes nothing");
                        (format!("over-{}", state.changes.len()), String::new(), payload)
                    }
                    other => panic!("{other:?}"),
                };
                assert_eq!(payload.len(), 256);
                if state.refuse_every.is_some_and(|every| state.changes.len().is_multiple_of(every)) {
                    let status = Status::new(Code::ResourceExhausted, "full");
                    send(&mut stream, FrameKind::Error, END, header.stream, &envelope::encode(&status));
                    continue;
                }
                assert!(state.names.insert(name.clone()));
                let wanted = name.clone();
                let revision = Revision(9 + state.names.len() as u64);
                let annotations = Annotations { name, ..Annotations::default() };
                let object = Object::from(Resource { annotations, kind, ..Resource::default() });
                let events = vec![WatchEvent { action: Action::Create, object, old: None }];
                let item = envelope::encode(&WatchItem::Change { revision, events });
                for (watcher, number, prefixes) in &mut state.watchers {
                    if prefixes.is_empty() || prefixes.iter().any(|prefix| wanted.starts_with(prefix)) {
                        send(watcher, FrameKind::Answer, 0, *number, &item);
                    }
                }
                let answer = Answer::Written { id: ObjectId(1), revision };
                send(&mut stream, FrameKind::Answer, END, header.stream, &envelope::encode(&answer));
            }
            Call::Query => {
                state.reads += 1;
                let answer = Answer::Object(Box::new(Object::from(Resource::default())));
                send(&mut stream, FrameKind::Answer, END, header.stream, &envelope::encode(&answer));
            }
            Call::Watch => {
                let begin = WatchItem::Begin { lineage: Lineage(1), revision: Revision(9) };
                send(&mut stream, FrameKind::Answer, 0, header.stream, &envelope::encode(&begin));
                let request: WatchRequest = envelope::decode(request.body, MAX_FRAME_BYTES).unwrap();
                let prefixes = request.filter.name_prefixes;
                state.watchers.push((stream.try_clone().unwrap(), header.stream, prefixes));
            }
            other => panic!("{other:?}"),
        }
    }
}

fn drive(work: Work, clients: usize, total: u64, refuse_every: Option<usize>) -> (Measured, Arc<Mutex<State>>) {
    drive_groups(work, clients, total, refuse_every, (1, 0))
}

/// `watch` is groups and unfiltered watchers.
fn drive_groups(
    work: Work,
    clients: usize,
    total: u64,
    refuse_every: Option<usize>,
    watch: (u64, usize),
) -> (Measured, Arc<Mutex<State>>) {
    let (groups, unfiltered) = watch;
    drive_plan(Plan { work, clients, total, groups, unfiltered, ..plan() }, refuse_every)
}

fn plan() -> Plan {
    Plan {
        work: Work::Write,
        sockets: Vec::new(),
        clients: 1,
        unfiltered: 0,
        writers: 16,
        groups: 1,
        total: 100,
        rate: None,
        size: 256,
        stale: false,
        timeout: Duration::from_secs(20),
        extension: "bench-test".to_owned(),
        object: Some(ObjectId(1)),
        overwrite: Vec::new(),
        progress: false,
    }
}

/// Runs a plan against a manager that is a thread per connection.
fn drive_plan(plan: Plan, refuse_every: Option<usize>) -> (Measured, Arc<Mutex<State>>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("skep.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let state = Arc::new(Mutex::new(State { refuse_every, ..State::default() }));
    let shared = state.clone();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let state = shared.clone();
            std::thread::spawn(move || serve_one(stream, &state));
        }
    });
    let plan = Plan { sockets: vec![path], ..plan };
    (driver::drive(&plan).unwrap(), state)
}

#[test]
fn every_write_is_one_operation_with_an_id_and_a_name_of_its_own() {
    let (measured, state) = drive(Work::Write, 8, 500, None);
    assert_eq!((measured.writes.total(), measured.errors), (500, 0));
    let state = state.lock().unwrap();
    assert_eq!((state.changes.len(), state.names.len()), (500, 500));
}

#[test]
fn a_rate_is_not_exceeded_and_waiting_for_a_client_counts() {
    let (measured, _) = drive_plan(Plan { clients: 8, total: 51, rate: Some(500), ..plan() }, None);
    assert_eq!((measured.writes.total(), measured.errors), (51, 0));
    assert!(measured.elapsed >= Duration::from_millis(100), "the last was due then: {:?}", measured.elapsed);
    // One client cannot keep this up: whatever the machine, half of the operations wait for a thousand others. Without the
    // wait they would take a two-thousandth of the time, the wide margin is for a pause at the end.
    let (measured, _) = drive_plan(Plan { total: 2000, rate: Some(10_000_000), ..plan() }, None);
    let (median, elapsed) = (measured.writes.quantile(0.5), measured.elapsed.as_micros() as u64);
    assert!(median >= elapsed / 100, "{median} of {elapsed} µs");
}

#[test]
fn writing_over_takes_the_objects_in_turn_and_creates_none() {
    let overwrite: Vec<_> = (1..=4).map(ObjectId).collect();
    let (measured, state) = drive_plan(Plan { clients: 8, total: 400, overwrite: overwrite.clone(), ..plan() }, None);
    assert_eq!((measured.writes.total(), measured.errors), (400, 0));
    let expected: BTreeMap<_, _> = overwrite.iter().map(|id| (id.to_string(), 100)).collect();
    assert_eq!(state.lock().unwrap().written_over, expected);

    let overwrite: Vec<_> = (1..=10).map(ObjectId).collect();
    let work = Work::Mixed;
    let (measured, state) = drive_plan(Plan { work, clients: 8, total: 1000, overwrite, ..plan() }, None);
    assert_eq!((measured.writes.total(), measured.reads.total(), measured.errors), (100, 900, 0));
    assert!(state.lock().unwrap().written_over.values().eq([10; 10].iter()));
}

#[test]
fn a_refusal_is_counted_and_not_retried() {
    let (measured, state) = drive(Work::Write, 8, 200, Some(10));
    assert_eq!((measured.writes.total(), measured.errors), (180, 20));
    assert_eq!(measured.first_error.as_deref(), Some("ResourceExhausted: full"));
    assert_eq!(state.lock().unwrap().changes.len(), 200);
}

#[test]
fn a_mixed_run_writes_once_for_nine_reads() {
    let (measured, state) = drive(Work::Mixed, 4, 1000, None);
    assert_eq!((measured.writes.total(), measured.reads.total()), (100, 900));
    assert_eq!(state.lock().unwrap().reads, 900);
}

#[test]
fn every_watcher_gets_every_change() {
    let plan = Plan { work: Work::Watch, clients: 5, writers: 3, total: 500, ..plan() };
    let (measured, state) = drive_plan(plan, None);
    assert_eq!((measured.writes.total(), measured.deliveries.total(), measured.errors), (100, 500, 0));
    assert_eq!(state.lock().unwrap().connections, 8, "watchers and writers");
}

#[test]
fn a_watcher_of_one_group_gets_its_share_and_an_unfiltered_one_everything() {
    let (measured, _) = drive_groups(Work::Watch, 10, 4 * 60 + 2 * 120, None, (5, 2));
    // Two of ten watchers want any one change, and two want all.
    assert_eq!((measured.writes.total(), measured.deliveries.total(), measured.errors), (120, 480, 0));
}

#[test]
fn a_manager_that_goes_away_ends_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("skep.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        send(&mut stream, FrameKind::Hello, 0, 0, &envelope::encode(&hello()));
        read_frame(&mut stream).unwrap();
    });
    let plan = Plan { work: Work::Read, sockets: vec![path], stale: true, ..plan() };
    let failure = driver::drive(&plan).unwrap_err();
    assert_eq!(failure.exit, Exit::Unavailable);
    server.join().unwrap();
}
