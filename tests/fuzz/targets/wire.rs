//! What arrives on sockets: frames, requests, answers, hellos, pings, Raft messages, HTTP.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use skep::codec::frame::{self, END, FrameKind, HEADER};
use skep::codec::request::{self, Ping};
use skep::codec::{envelope, raft_message};
use skep::control::{Context, Control, Feed};
use skep::net::fuzz::{Frames, http_head};
use skep::net::handler::{ConnectionId, Incoming, StreamId};
use skep::net::requests::{Pull, Step};
use skep::node::fuzz::{Greetings, Verdict};
use skep::store::Store;
use skep::sys::time::Instant;
use skep::types::api::*;
use skep::types::error::Code;
use skep::types::limits::{MAX_FRAME_BYTES, MAX_UNAUTHENTICATED_FRAME_BYTES};
use skep::types::object::{JoinTokens, Kind, NodeDescription, Profile, Sensitive};
use skep::types::*;

use super::state::{LINEAGE, sample_state};
use super::{ENVELOPE, PLAIN, Target, canonical, numbered, tagged};

pub(super) fn targets() -> Vec<Target> {
    vec![
        Target { name: "frame", run: frames, seeds: frame_seeds, runs: 5000, ..PLAIN },
        Target { name: "request", run: requests, seeds: request_seeds, runs: 5000, ..ENVELOPE },
        Target { name: "answer", run: answer, seeds: answer_seeds, runs: 4000, ..ENVELOPE },
        Target { name: "hello", run: hello, seeds: hello_seeds, ..ENVELOPE },
        Target { name: "ping", run: ping, seeds: ping_seeds, runs: 1000, ..PLAIN },
        Target { name: "raft_message", run: raft_messages, seeds: raft_seeds, runs: 5000, bytes_per_byte: 64, ..PLAIN },
        Target { name: "http", run: http, seeds: http_seeds, words: HTTP_WORDS, ..PLAIN },
    ]
}

/// The first byte chooses how the stream is cut, and the limit.
fn frames(input: &[u8]) {
    let Some((cut, stream)) = input.split_first() else { return };
    let limit = if cut & 1 == 0 { MAX_UNAUTHENTICATED_FRAME_BYTES } else { MAX_FRAME_BYTES };
    let whole = parse(stream, stream.len(), limit);
    assert!(whole == parse(stream, usize::from(cut / 2) + 1, limit), "cut differently, the frames differ");
    let (taken, error) = whole;
    assert!(stream.starts_with(&taken), "the frames taken are not what was sent");
    if !error {
        assert!(stream.len() - taken.len() < HEADER + limit, "a whole frame was left lying");
    }
}

/// The frames of a stream that comes in pieces, as bytes again, and whether it broke.
fn parse(stream: &[u8], piece: usize, limit: usize) -> (Vec<u8>, bool) {
    let (mut parser, mut taken) = (Frames::default(), Vec::new());
    for mut piece in stream.chunks(piece.max(1)) {
        loop {
            match parser.next(&mut piece, limit) {
                Ok(Some((header, body))) => {
                    assert!(body.len() <= limit && body.len() == header.length as usize);
                    frame::write(&mut taken, header.kind, header.flags, header.stream, &body);
                }
                Ok(None) => break,
                Err(_) => return (taken, true),
            }
        }
        assert!(piece.is_empty(), "the parser takes everything it is given");
    }
    (taken, false)
}

fn frame_seeds() -> Vec<(String, Vec<u8>)> {
    let mut stream = Vec::new();
    frame::write(&mut stream, FrameKind::Hello, 0, 0, &envelope::encode(&sample_hello()));
    frame::write(&mut stream, FrameKind::Request, 0, 1, &request::encode(Call::Health, 1000, None, b""));
    frame::write(&mut stream, FrameKind::Credit, 0, 1, &1000_u32.to_le_bytes());
    frame::write(&mut stream, FrameKind::Ping, 0, 0, &Ping::default().encode());
    let mut answers = Vec::new();
    frame::write(&mut answers, FrameKind::Answer, END, 1, b"answer");
    frame::write(&mut answers, FrameKind::Error, END, 3, &envelope::encode(&status()));
    frame::write(&mut answers, FrameKind::Cancel, 0, 5, b"");
    numbered([tagged(0, &stream), tagged(7, &stream), tagged(1, &answers), tagged(254, &answers)])
}

/// A request frame's body: its head, its call's own body, and what a manager makes of it.
fn requests(input: &[u8]) {
    let Ok(request) = request::decode(input) else { return };
    let again = request::encode(request.call, request.deadline_ms, request.forwarded.as_ref(), request.body);
    assert!(request::decode(&again).as_ref() == Ok(&request), "a request does not survive");
    let body = request.body;
    match request.call {
        Call::Query => drop(canonical::<Query>(body)),
        Call::Write => drop(canonical::<WriteRequest>(body)),
        Call::Watch => drop(canonical::<WatchRequest>(body)),
        Call::Admin => drop(canonical::<Admin>(body)),
        Call::Backup => drop(canonical::<BackupRequest>(body)),
        Call::Snapshot => drop(canonical::<SnapshotRequest>(body)),
        Call::ResolveAddress => drop(canonical::<ResolveAddress>(body)),
        Call::Join => drop(canonical::<JoinRequest>(body)),
        Call::Leave => drop(canonical::<LeaveRequest>(body)),
        Call::SetAddress => drop(canonical::<SetAddressRequest>(body)),
        Call::Issue => drop(canonical::<IssueRequest>(body)),
        Call::CertificateStatus => drop(canonical::<NodeId>(body)),
        Call::Unlock => drop(canonical::<UnlockRequest>(body)),
        Call::Report => drop(canonical::<ReportRequest>(body)),
        Call::Session => drop(canonical::<SessionRequest>(body)),
        Call::Health | Call::GetRoot | Call::Diagnose | Call::GetUnlockKey => {}
    }
    let (forwarded, caller) = match request.forwarded {
        Some(forwarded) => (true, forwarded.caller),
        None => (false, Caller::Local),
    };
    let incoming = Incoming {
        stream: StreamId { connection: ConnectionId(1), stream: 1 },
        caller,
        addr: "10.0.0.9:5000".to_owned(),
        forwarded,
        call: request.call,
        deadline: Instant::from_nanos(1 << 40),
        body: Bytes::copy_from_slice(body),
    };
    decide(&incoming);
}

/// A manager's decision; a change it would propose is applied, and a watch it would begin is pulled.
fn decide(incoming: &Incoming) {
    static CONTROL: LazyLock<Control> =
        LazyLock::new(|| Control::new(Arc::new(Store::new(sample_state(), 1 << 20)), context()));
    for confirmed in [false, true] {
        match CONTROL.decide(incoming, 0, confirmed, 1_700_000_000_000) {
            Step::Propose(change) => {
                let (mut state, object) = (CONTROL.store().snapshot(), change.written());
                let (outcome, _) = state.apply_change(change, Term(3));
                assert_eq!(state.hash(), state.recompute_hash());
                for object in [object, None] {
                    drop(CONTROL.ended(incoming, object, &outcome));
                }
            }
            Step::Answer(answer) => assert!(envelope::decode::<Answer>(&answer, MAX_FRAME_BYTES).is_ok()),
            Step::Stream(mut feed) => {
                let is_watch = matches!(feed, Feed::Watch(_));
                // Bounded: the events are all there, so that it soon waits or is done.
                for _ in 0..100 {
                    match CONTROL.pull(Instant::from_nanos(5), &mut feed, MAX_FRAME_BYTES) {
                        Pull::Part(part) => {
                            assert!(!is_watch || envelope::decode::<WatchItem>(&part, MAX_FRAME_BYTES).is_ok());
                        }
                        Pull::Searching => {}
                        Pull::Full => panic!("an item is larger than a frame"),
                        Pull::Done => {
                            assert!(!is_watch, "a watch goes on");
                            break;
                        }
                        Pull::Idle(_) | Pull::End(_) => break,
                    }
                }
            }
            Step::Refuse(status) | Step::RefuseIfConfirmed(status) => {
                // A name that the caller gave is given back.
                let quotes = incoming.body.windows(6).any(|six| six == b"skep::");
                assert!(!status.message.is_empty(), "a refusal says why");
                assert!(quotes || !status.message.contains("skep::"), "{}", status.message);
            }
            Step::Barrier | Step::Rebuild | Step::Raft(_) | Step::Elsewhere => {}
        }
    }
}

fn context() -> Context {
    let raft = RaftReport {
        raft_id: RaftId(1),
        state: RaftState::Leader,
        leader: Some(RaftId(1)),
        last_leader: None,
        leaderless_ms: 0,
        serving: true,
        term: Term(1),
        commit: Index(9),
        applied: Index(9),
        first: Index(2),
        last: Index(9),
        snapshot: Index(1),
        log_bytes: 100,
        elections: 1,
        members: sample_state().members().values().cloned().collect(),
        progress: Vec::new(),
        reachable: vec![NodeId(0x11)],
        alarms: Vec::new(),
        unsynced_ms: 0,
        disk: Default::default(),
    };
    Context {
        node_id: NodeId(0x11),
        cluster_id: ClusterId(0xc1),
        hostname: "m1".to_owned(),
        data_dir: "/var/lib/skep".to_owned(),
        version: "1".to_owned(),
        sync_us: 100,
        raft,
        links: Vec::new(),
        certificate: None,
        notices: Vec::new(),
    }
}

fn request_seeds() -> Vec<(String, Vec<u8>)> {
    let labels = || [("tier".to_owned(), "front".to_owned())].into();
    let write = |write| envelope::encode(&WriteRequest { change: ChangeId(77), after: Revision(1), write });
    let filter = Filter {
        names: vec!["widget-1".to_owned()],
        name_prefixes: vec!["w".to_owned()],
        id_prefixes: vec!["000".to_owned()],
        labels: [("tier".to_owned(), None), ("empty".to_owned(), Some(String::new()))].into(),
        kinds: vec!["widget".to_owned()],
    };
    let list = QueryKind::List(Kind::Resource, filter.clone(), Some(ObjectId(3)));
    let object = || "nginx.conf".to_owned();
    let bodies = [
        (Call::Query, "list", envelope::encode(&Query { stale: true, what: list })),
        (
            Call::Query,
            "inspect",
            envelope::encode(&Query { stale: true, what: QueryKind::Inspect(Kind::Node, "m1".to_owned()) }),
        ),
        (Call::Query, "token", envelope::encode(&Query { stale: false, what: QueryKind::Token(Role::Manager) })),
        (
            Call::Query,
            "change",
            envelope::encode(&Query { stale: true, what: QueryKind::Change(ChangeId(5), Revision(1)) }),
        ),
        (
            Call::Write,
            "create-config",
            write(Write::CreateConfig { name: "motd".to_owned(), labels: labels(), data: b"be kind".to_vec() }),
        ),
        (
            Call::Write,
            "create-secret",
            write(Write::CreateSecret {
                name: "key".to_owned(),
                labels: labels(),
                data: Sensitive(b"hunter2".to_vec()),
            }),
        ),
        (
            Call::Write,
            "update-labels",
            write(Write::UpdateLabels {
                kind: Kind::Config,
                object: object(),
                set: labels(),
                remove: vec!["empty".to_owned()],
                if_version: Some(Revision(1)),
            }),
        ),
        (
            Call::Write,
            "create-extension",
            write(Write::CreateExtension {
                name: "route".to_owned(),
                description: "Routes".to_owned(),
                labels: labels(),
            }),
        ),
        (
            Call::Write,
            "create-resource",
            write(Write::CreateResource {
                name: "widget-2".to_owned(),
                kind: "widget".to_owned(),
                labels: labels(),
                indices: labels(),
                payload: vec![0, 255],
            }),
        ),
        (
            Call::Write,
            "update-resource",
            write(Write::UpdateResource {
                object: "widget-1".to_owned(),
                payload: Some(Sensitive(vec![1])),
                labels: Some(labels()),
                indices: None,
                if_version: None,
            }),
        ),
        (Call::Write, "remove", write(Write::Remove { kind: Kind::Config, object: object(), if_version: None })),
        (
            Call::Write,
            "update-cluster",
            write(Write::UpdateCluster {
                snapshot_bytes: Some(1 << 26),
                keep_bytes: None,
                node_certificate_expiry_ms: Some(7_776_000_000),
                expired_grace_ms: Some(0),
                approve_joins: Some(true),
                if_version: None,
                autolock: Some(Autolock::On { key: Sensitive(vec![7; 32]) }),
            }),
        ),
        (Call::Write, "unlock-key", write(Write::RotateUnlockKey { key: Sensitive(vec![7; 32]) })),
        (
            Call::Write,
            "rotate-token",
            write(Write::RotateToken { role: Role::Worker, token: Sensitive(b"SWMTKN-1-".to_vec()) }),
        ),
        (
            Call::Write,
            "create-token",
            write(Write::CreateToken {
                role: Role::Manager,
                labels: labels(),
                ttl_ms: Some(3_600_000),
                uses: Some(5),
                token: Sensitive(b"SWMTKN-1-".to_vec()),
            }),
        ),
        (Call::Write, "remove-token", write(Write::RemoveToken { token: object() })),
        (Call::Write, "approve-node", write(Write::ApproveNode { node: object() })),
        (
            Call::Write,
            "rotate-root",
            write(Write::RotateRoot {
                root: NewRoot {
                    certificate: "-----BEGIN CERTIFICATE-----".to_owned(),
                    key: Sensitive(b"-----BEGIN PRIVATE KEY-----".to_vec()),
                    join_tokens: JoinTokens { worker: "SWMTKN-1-a-b".to_owned(), manager: "SWMTKN-1-a-c".to_owned() },
                },
                skip: vec!["m3".to_owned()],
                resume: true,
            }),
        ),
        (Call::Query, "root-ca", envelope::encode(&Query { stale: true, what: QueryKind::RootCa })),
        (Call::Backup, "backup", envelope::encode(&BackupRequest { stale: true })),
        (
            Call::Watch,
            "watch",
            envelope::encode(&WatchRequest { filter, kinds: vec![Kind::Resource], ..WatchRequest::default() }),
        ),
        (
            Call::Watch,
            "watch-from",
            envelope::encode(&WatchRequest {
                from: Some((LINEAGE, Revision(1))),
                include_old: true,
                ..WatchRequest::default()
            }),
        ),
        (Call::Admin, "transfer", envelope::encode(&Admin::Transfer { to: Some("m2".to_owned()) })),
        (Call::Admin, "leave", envelope::encode(&Admin::Leave { force: true })),
        (
            Call::Snapshot,
            "snapshot",
            envelope::encode(&SnapshotRequest { position: Position { term: Term(1), index: Index(9) }, offset: 5 }),
        ),
        (Call::ResolveAddress, "resolve", envelope::encode(&ResolveAddress { raft_id: RaftId(1) })),
        (Call::Join, "join", envelope::encode(&JoinRequest { advertise: "0.0.0.0:4242".to_owned(), feature_level: 1 })),
        (Call::Leave, "leave-group", envelope::encode(&LeaveRequest { node_id: NodeId(0x11), force: false })),
        (Call::SetAddress, "move", envelope::encode(&SetAddressRequest { addr: "10.0.0.7:4242".to_owned() })),
        (
            Call::Issue,
            "issue",
            envelope::encode(&IssueRequest {
                change: ChangeId(5),
                after: Revision(0),
                csr: "-----BEGIN".to_owned(),
                token: Sensitive(b"SWMTKN-1-".to_vec()),
                role: Some(Role::Manager),
                description: NodeDescription::default(),
                availability: skep::types::object::Availability::Active,
            }),
        ),
        (Call::CertificateStatus, "certificate-status", envelope::encode(&NodeId(0x11))),
        (Call::Unlock, "unlock", envelope::encode(&UnlockRequest { key: Sensitive(vec![7; 32]) })),
        (Call::GetUnlockKey, "get-unlock-key", envelope::encode(&())),
        (Call::Health, "health", Vec::new()),
        (
            Call::Report,
            "report",
            envelope::encode(&ReportRequest {
                change: ChangeId(5),
                after: Revision(1),
                description: NodeDescription::default(),
                issuer: "issuer".to_owned(),
                addr: "10.0.0.7:4242".to_owned(),
            }),
        ),
        (
            Call::Session,
            "session",
            envelope::encode(&SessionRequest { description: NodeDescription::default(), issuer: String::new() }),
        ),
    ];
    let caller =
        Caller::Node { node_id: NodeId(0x11), role: Role::Manager, cluster_id: ClusterId(0xc1), expired: false };
    let forwarded = Forwarded { caller, addr: "10.0.0.7:4242".to_owned() };
    let mut seeds: Vec<(String, Vec<u8>)> = bodies
        .iter()
        .map(|(call, name, body)| ((*name).to_owned(), request::encode(*call, 10_000, None, body)))
        .collect();
    let (call, _, body) = &bodies[18];
    seeds.push(("forwarded".to_owned(), request::encode(*call, 10_000, Some(&forwarded), body)));
    seeds
}

/// The first byte chooses the type.
fn answer(input: &[u8]) {
    let Some((tag, bytes)) = input.split_first() else { return };
    match tag % 7 {
        0 => {
            // Objects are shown as JSON; that is as total as the binary form.
            if let Some(Answer::Objects { objects, .. }) = canonical::<Answer>(bytes) {
                for object in &objects {
                    serde_json::to_string(object).expect("an object can be shown");
                }
            }
        }
        1 => drop(canonical::<WatchItem>(bytes)),
        2 => drop(canonical::<JoinAnswer>(bytes)),
        3 => {
            if let Some(status) = canonical::<Status>(bytes) {
                assert!(!format!("{status} {status:?}").is_empty());
            }
        }
        4 => {
            if let Some(object) = canonical::<Object>(bytes) {
                serde_json::to_string(&object).expect("an object can be shown");
                let _ = (object.name(), object.id().to_string(), object.meta().created_at.to_string());
                assert!(!format!("{object:?}").is_empty());
                skep::control::redact::redact(&object);
            }
        }
        5 => drop(canonical::<Forwarded>(bytes)),
        _ => drop(canonical::<(Vec<Selector>, Vec<Outcome>, Option<Filter>)>(bytes)),
    }
}

fn status() -> Status {
    Status::new(Code::NotFound, "no such config: web").with_hint("see what there is with `skep config ls`")
}

fn answer_seeds() -> Vec<(String, Vec<u8>)> {
    let state = sample_state();
    let objects: Vec<Object> =
        Kind::ALL.into_iter().flat_map(|kind| state.iter(kind)).map(|stored| stored.object.clone()).collect();
    let member =
        Member { raft_id: RaftId(1), node_id: NodeId(0x11), addr: "m1:4242".to_owned(), role: MemberRole::Voter };
    let joined = JoinAnswer {
        raft_id: RaftId(2),
        advertise: "m2:4242".to_owned(),
        lineage: LINEAGE,
        profile: Profile::Lan,
        members: vec![member],
    };
    let small: Vec<Object> = objects.iter().filter(|object| envelope::encode(*object).len() < 300).cloned().collect();
    let event = WatchEvent { action: Action::Update, object: small[0].clone(), old: Some(small[1].clone()) };
    let selectors = (
        vec![
            Selector::IdPrefix("00".to_owned()),
            Selector::Slot(ObjectId(3), 4),
            Selector::Custom { index: "rack".to_owned(), value: "r7".to_owned() },
        ],
        vec![Outcome::Committed(Revision(3)), Outcome::Refused(Refusal::TermChanged), Outcome::Forgotten],
        Some(Filter::default()),
    );
    let mut seeds = vec![
        tagged(0, &envelope::encode(&Answer::Objects { objects: small.clone(), more: true })),
        tagged(0, &envelope::encode(&Answer::Raft(Box::new(context().raft)))),
        tagged(0, &envelope::encode(&Answer::Written { id: ObjectId(3), revision: Revision(4) })),
        tagged(0, &envelope::encode(&Answer::Joined(Box::new(joined.clone())))),
        tagged(1, &envelope::encode(&WatchItem::Snapshot { objects: small })),
        tagged(1, &envelope::encode(&WatchItem::Change { revision: Revision(5), events: vec![event] })),
        tagged(1, &envelope::encode(&WatchItem::Begin { lineage: LINEAGE, revision: Revision(4) })),
        tagged(2, &envelope::encode(&joined)),
        tagged(3, &envelope::encode(&status())),
        tagged(5, &envelope::encode(&Forwarded { caller: Caller::Anonymous, addr: "h:1".to_owned() })),
        tagged(6, &envelope::encode(&selectors)),
    ];
    seeds.extend(objects.iter().map(|object| tagged(4, &envelope::encode(object))));
    numbered(seeds)
}

fn sample_hello() -> Hello {
    Hello {
        protocol: PROTOCOL,
        cluster_id: ClusterId(0xc1),
        node_id: NodeId(0x11),
        raft_id: Some(RaftId(1)),
        lineage: LINEAGE,
        boot: 3,
        nonce: 0xfeed,
        last: Position { term: Term(1), index: Index(9) },
        advertise: "10.0.0.7:4242".to_owned(),
        feature_level: 1,
        revision: Revision(1),
    }
}

/// Several hellos, each behind a length of two bytes: what one leaves behind the next is judged by.
fn hello(input: &[u8]) {
    static STATE: LazyLock<State> = LazyLock::new(sample_state);
    use skep::store::State;

    let mut greetings = Greetings::default();
    let mut rest = input;
    while let Some((length, tail)) = rest.split_first_chunk::<2>() {
        let (bytes, after) = tail.split_at(tail.len().min(usize::from(u16::from_le_bytes(*length))));
        rest = after;
        let Some(hello) = canonical::<Hello>(bytes) else { continue };
        let (node_id, cluster_id) = (hello.node_id, hello.cluster_id);
        let caller = Caller::Node { node_id, role: Role::Manager, cluster_id, expired: false };
        match greetings.judge(&caller, &hello, &STATE, LINEAGE) {
            Verdict::Welcome => {}
            Verdict::WelcomeNew(file) => {
                let judged = greetings.judge(&caller, &hello, &STATE, LINEAGE);
                assert_eq!(judged, Verdict::Welcome, "what was welcome is not any more");
                serde_json::from_slice::<serde_json::Value>(&file).expect("peers.json is JSON");
            }
            Verdict::Refused(status) => assert!(!status.message.is_empty()),
        }
    }
}

fn hello_seeds() -> Vec<(String, Vec<u8>)> {
    let framed = |hello: &Hello| {
        let bytes = envelope::encode(hello);
        [&(bytes.len() as u16).to_le_bytes()[..], &bytes].concat()
    };
    let first = sample_hello();
    let later = Hello { boot: 4, nonce: 1, ..first.clone() };
    let stranger = Hello { raft_id: None, node_id: NodeId(0x99), ..first.clone() };
    numbered([framed(&first), [framed(&first), framed(&later), framed(&first)].concat(), framed(&stranger)])
}

fn ping(input: &[u8]) {
    if let Ok(ping) = Ping::decode(input) {
        assert_eq!(ping.encode(), input);
    }
}

fn ping_seeds() -> Vec<(String, Vec<u8>)> {
    numbered([Ping { sent_ns: 1, wall_ms: 2, sync_us: 3, mark_index: 4, mark_sum: 5, disk_low: true }.encode()])
}

fn raft_messages(input: &[u8]) {
    let Ok(messages) = raft_message::decode_all(&Bytes::copy_from_slice(input)) else { return };
    let encode = |messages: &[Message]| {
        let mut bytes = Vec::new();
        for message in messages {
            raft_message::encode_into(message, &mut bytes);
        }
        bytes
    };
    // A snapshot of nothing is written as none.
    let again = encode(&messages);
    let decoded = raft_message::decode_all(&Bytes::copy_from_slice(&again)).expect("what was encoded is decoded");
    assert!(encode(&decoded) == again, "a raft message does not survive");
}

/// Messages as members send them, for this target and for the machine's.
pub(super) fn sample_messages() -> Vec<Message> {
    let message = |kind, edit: &dyn Fn(&mut Message)| {
        let mut message = Message::default();
        message.msg_type = kind;
        (message.from, message.to, message.term) = (1, 2, 3);
        edit(&mut message);
        message
    };
    let entry = |term, index, data: &[u8]| Entry { term, index, data: data.to_vec().into(), ..Entry::default() };
    vec![
        message(MessageType::MsgAppend, &|m| {
            (m.index, m.log_term, m.commit) = (9, 1, 9);
            m.entries = vec![entry(3, 10, b""), entry(3, 11, b"payload")].into();
        }),
        message(MessageType::MsgAppend, &|m| {
            (m.index, m.log_term, m.commit) = (8, 1, 8);
            let mut change = entry(3, 9, b"");
            change.entry_type = EntryType::EntryConfChange;
            m.entries = vec![change].into();
        }),
        message(MessageType::MsgAppendResponse, &|m| m.index = 9),
        message(MessageType::MsgAppendResponse, &|m| {
            (m.index, m.reject, m.reject_hint, m.log_term) = (9, true, 7, 1);
        }),
        message(MessageType::MsgHeartbeat, &|m| m.commit = 8),
        message(MessageType::MsgHeartbeatResponse, &|m| m.commit = 8),
        message(MessageType::MsgRequestVote, &|m| (m.term, m.index, m.log_term) = (4, 9, 1)),
        message(MessageType::MsgRequestVoteResponse, &|_| ()),
        message(MessageType::MsgRequestPreVote, &|m| (m.term, m.index, m.log_term) = (4, 9, 1)),
        message(MessageType::MsgRequestPreVoteResponse, &|m| m.reject = true),
        message(MessageType::MsgTimeoutNow, &|_| ()),
        message(MessageType::MsgReadIndex, &|m| {
            (m.term, m.entries) = (0, vec![entry(0, 0, b"a read's context")].into());
        }),
        message(MessageType::MsgReadIndexResp, &|m| {
            m.index = 9;
            m.entries = vec![entry(0, 0, b"a read's context")].into();
        }),
        message(MessageType::MsgSnapshot, &|m| {
            let metadata = m.mut_snapshot().mut_metadata();
            (metadata.index, metadata.term) = (12, 3);
            let state = metadata.mut_conf_state();
            (state.voters, state.learners) = (vec![1, 2, 3], vec![4]);
        }),
    ]
}

fn raft_seeds() -> Vec<(String, Vec<u8>)> {
    let messages = sample_messages();
    let encode = |messages: &[Message]| {
        let mut body = Vec::new();
        for message in messages {
            raft_message::encode_into(message, &mut body);
        }
        body
    };
    let mut seeds: Vec<Vec<u8>> = messages.chunks(1).map(encode).collect();
    seeds.push(encode(&messages[..3]));
    numbered(seeds)
}

const HTTP_WORDS: &[&str] =
    &["GET ", "POST ", " HTTP/1.1", "\r\n", "\r\n\r\n", ": ", "/metrics", "?", "Host", "\0", "\t"];

/// What more bytes bring never changes what was said of a complete head.
fn http(input: &[u8]) {
    let whole = http_head(input);
    if input.len() >= 8 << 10 {
        // Over the limit it depends on what has arrived when it is looked at.
        return;
    }
    for cut in [input.len() / 2, input.len().saturating_sub(1)] {
        match http_head(&input[..cut]) {
            Ok(None) => {}
            early => assert_eq!(early, whole, "the end of a request was not waited for"),
        }
    }
    if let Ok(Some(path)) = whole {
        assert!(input.len() >= path.len() && !path.contains('?'));
    }
}

fn http_seeds() -> Vec<(String, Vec<u8>)> {
    numbered(
        [
            "GET /metrics?name=a HTTP/1.1\r\nHost: 127.0.0.1:9000\r\nAccept: */*\r\n\r\n",
            "GET /healthz HTTP/1.0\r\n\r\n",
            "POST /healthz HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        ]
        .map(|head| head.as_bytes().to_vec()),
    )
}
