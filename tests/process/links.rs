//! A manager that has a certificate and does not keep the rules.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use raft::eraftpb::{Message, MessageType};
use skep::codec::frame::{self, FrameKind, HEADER, Header};
use skep::codec::{envelope, raft_message};
use skep::pki::keyfile;
use skep::pki::{self, NodeIdentity, Trust};
use skep::types::api::{FEATURE_LEVEL, Hello, PROTOCOL};
use skep::types::{Index, Lineage, Position, RaftId, Revision, Status, Term};

use super::swarm::{Manager, Swarm, eventually};

/// The TLS settings of a manager, from its directory.
fn credentials(dir: &Path) -> (NodeIdentity, Arc<rustls::ClientConfig>) {
    let read = |name: &str| std::fs::read_to_string(dir.join("pki").join(name)).unwrap();
    let key = read("node.key");
    let keyfile::Read::Open(keys) = keyfile::read(&key).unwrap() else { panic!("it is not locked") };
    let identity = NodeIdentity::new(&read("node.crt"), keys.node_key).unwrap();
    let config = pki::client_config(Some(&identity), Trust::Roots(read("root.crt"))).unwrap();
    (identity, config)
}

type Link = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

/// A link to a manager, greeted.
fn link(to: &Manager, config: &Arc<rustls::ClientConfig>, hello: &Hello) -> Link {
    let socket = TcpStream::connect(&to.addr).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let tls = rustls::ClientConnection::new(config.clone(), pki::manager_name()).unwrap();
    let mut link = rustls::StreamOwned::new(tls, socket);
    send(&mut link, FrameKind::Hello, 0, &envelope::encode(hello));
    let (header, body) = receive(&mut link).expect("a hello");
    assert_eq!(header.kind, FrameKind::Hello, "{:?}", envelope::decode::<Status>(&body, 4096));
    link
}

fn send(link: &mut Link, kind: FrameKind, stream: u32, body: &[u8]) {
    let mut bytes = Vec::new();
    frame::write(&mut bytes, kind, 0, stream, body);
    link.write_all(&bytes).unwrap();
    link.flush().unwrap();
}

/// The next frame; `None` when the other side has closed.
fn receive(link: &mut Link) -> Option<(Header, Vec<u8>)> {
    let mut header = [0; HEADER];
    if let Err(error) = link.read_exact(&mut header) {
        assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "nothing came");
        return None;
    }
    let header = Header::decode(&header, 8 << 20).unwrap();
    let mut body = vec![0; header.length as usize];
    link.read_exact(&mut body).ok()?;
    Some((header, body))
}

/// Reads until the other side closes; the reason that it gave.
fn closed(link: &mut Link) -> Option<Status> {
    let mut reason = None;
    while let Some((header, body)) = receive(link) {
        if header.kind == FrameKind::Error && header.stream == 0 {
            reason = Some(envelope::decode(&body, 4096).unwrap());
        }
    }
    reason
}

#[test]
fn a_manager_that_breaks_the_rules_loses_its_connection_and_harms_nobody() {
    let mut swarm = Swarm::of(3);
    let rogue = swarm.followers()[0];
    swarm.converge();
    swarm.managers[rogue].kill();
    let leader = swarm.leader();
    let (identity, config) = credentials(&swarm.managers[rogue].dir);
    let told = swarm.managers[leader].json(&["raft", "status"]);
    let member = told["members"]
        .as_array()
        .unwrap()
        .iter()
        .find(|member| member["node_id"] == identity.identity().node_id.to_string().as_str());
    let raft_id = RaftId(member.unwrap()["raft_id"].as_u64().unwrap());
    let own = RaftId(told["raft_id"].as_u64().unwrap());
    let file = std::fs::read(swarm.managers[rogue].dir.join("node.json")).unwrap();
    let file: serde_json::Value = serde_json::from_slice(&file).unwrap();
    let lineage: Lineage = serde_json::from_value(file["lineage"].clone()).unwrap();
    let term = told["term"].as_u64().unwrap();
    let hello = Hello {
        protocol: PROTOCOL,
        cluster_id: identity.identity().cluster_id,
        node_id: identity.identity().node_id,
        raft_id: Some(raft_id),
        lineage,
        boot: file["boot"].as_u64().unwrap() + 1,
        nonce: 7,
        last: Position { term: Term(term), index: Index(told["last"].as_u64().unwrap()) },
        advertise: swarm.managers[rogue].addr.clone(),
        feature_level: FEATURE_LEVEL,
        revision: Revision(0),
    };
    let manager = &swarm.managers[leader];
    manager.create_config("before", b"x");
    let before = manager.log_length();

    let framed = |kind: FrameKind, stream: u32, body: &[u8]| {
        let mut bytes = Vec::new();
        frame::write(&mut bytes, kind, 0, stream, body);
        bytes
    };
    let edited = |place: usize, value: u8| {
        let mut bytes = framed(FrameKind::Ping, 0, &[0; 8]);
        bytes[place] = value;
        bytes
    };
    for (what, said, bytes) in [
        ("a length over the limit", "malformed frame", edited(3, 0xff)),
        ("an unknown kind", "malformed frame", edited(4, 99)),
        ("a request that is none", "malformed request", framed(FrameKind::Request, 1, b"\x01")),
        ("a ping that is none", "malformed ping", framed(FrameKind::Ping, 0, b"abc")),
        ("a second hello", "hello", framed(FrameKind::Hello, 0, b"")),
    ] {
        let before = manager.log_length();
        let mut link = link(manager, &config, &hello);
        link.write_all(&bytes).unwrap();
        link.flush().unwrap();
        let reason = closed(&mut link).unwrap_or_else(|| panic!("{what}: no reason"));
        assert!(reason.message.contains(said), "{what}: {reason:?}");
        eventually(what, || manager.log_since(before).contains(&reason.message).then_some(()));
    }
    // Bytes that are no messages end the connection too.
    let mut broken = link(manager, &config, &hello);
    send(&mut broken, FrameKind::Raft, 0, &[0xff; 40]);
    closed(&mut broken);
    eventually("it says so", || manager.log_since(before).contains("raft messages that cannot be read").then_some(()));
    // Messages that raft cannot take are dropped one by one.
    let mut wrong = link(manager, &config, &hello);
    let message = |kind: MessageType, edit: &dyn Fn(&mut Message)| {
        let mut message = Message::default();
        message.msg_type = kind;
        (message.from, message.to, message.term) = (raft_id.0, own.0, term);
        edit(&mut message);
        let mut bytes = Vec::new();
        raft_message::encode_into(&message, &mut bytes);
        bytes
    };
    for bytes in [
        message(MessageType::MsgHup, &|_| {}),
        message(MessageType::MsgAppendResponse, &|message| message.index = 1 << 40),
        message(MessageType::MsgHeartbeatResponse, &|message| message.term = 0),
        message(MessageType::MsgHeartbeatResponse, &|message| message.from = own.0),
        message(MessageType::MsgTransferLeader, &|_| {}),
    ] {
        send(&mut wrong, FrameKind::Raft, 0, &bytes);
    }
    eventually("each is dropped", || {
        (manager.log_since(before).matches("dropping a raft message").count() >= 5).then_some(())
    });
    manager.create_config("after", b"x");
    assert_eq!(swarm.leader(), leader, "nobody lost an election over this");
    for manager in swarm.running() {
        assert!(!manager.log_since(0).contains("panicked"));
    }
    swarm.converge();
}
