//! Every call by every kind of caller, over real connections: what reaches the handler, and as whom.

use super::harness::*;
use crate::codec::frame::{END, FrameKind};
use crate::codec::{envelope, request};
use crate::net::handler::{Command, Incoming};
use crate::net::routes::tests::PROMISED;
use crate::pki;
use crate::sys::time::wall_ms;
use crate::types::api::{Call, Forwarded};
use crate::types::error::Code;
use crate::types::{Caller, ClusterId, NodeId, Role, Standing, Status};

const SERVER: u128 = 1;
const WORKER: u128 = 11;
const MANAGER: u128 = 12;
const DEMOTED: u128 = 13;
const PROMOTED: u128 = 14;
const REMOVED: u128 = 15;
/// Not in the store: they may be newer than it.
const NEW_WORKER: u128 = 21;
const NEW_MANAGER: u128 = 22;

/// Who asks, and with what certificate.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Local,
    NoCertificate,
    Node(u128, Role),
    Expired(u128, Role),
    OtherSwarm(Role),
}

/// Whom the server takes a caller for, by a letter of the promises; `None`: it is not heard at all.
const KINDS: [(Kind, Option<char>); 14] = [
    (Kind::Local, Some('l')),
    (Kind::NoCertificate, Some('a')),
    (Kind::Node(WORKER, Role::Worker), Some('w')),
    (Kind::Node(MANAGER, Role::Manager), Some('m')),
    // Its certificate still says manager.
    (Kind::Node(DEMOTED, Role::Manager), Some('w')),
    // The store says manager, and its certificate does not yet.
    (Kind::Node(PROMOTED, Role::Worker), Some('w')),
    (Kind::Node(REMOVED, Role::Manager), None),
    (Kind::Node(REMOVED, Role::Worker), None),
    (Kind::Node(NEW_WORKER, Role::Worker), Some('w')),
    (Kind::Node(NEW_MANAGER, Role::Manager), Some('m')),
    (Kind::Expired(WORKER, Role::Worker), Some('e')),
    (Kind::Expired(MANAGER, Role::Manager), Some('e')),
    (Kind::OtherSwarm(Role::Worker), None),
    (Kind::OtherSwarm(Role::Manager), None),
];

fn stand() -> Standings {
    standings(&[
        (SERVER, Standing::Manager),
        (WORKER, Standing::Worker),
        (MANAGER, Standing::Manager),
        (DEMOTED, Standing::Worker),
        (PROMOTED, Standing::Manager),
        (REMOVED, Standing::Removed),
    ])
}

/// What became of a request.
#[derive(Debug)]
enum Fate {
    /// The handler was asked, by this caller.
    Heard(Caller),
    /// The request was refused, and the connection goes on.
    Refused(Status),
    /// The connection was ended.
    TurnedAway(Status),
    /// The connection was ended before there was one, with an alert.
    BrokenOff(String),
}

struct Matrix {
    swarm: Swarm,
    net: Running,
}

impl Matrix {
    fn new() -> Self {
        let swarm = Swarm::new(60);
        let net = Running::start_with(&swarm, SERVER, Setup { standings: stand(), ..Setup::default() });
        Self { swarm, net }
    }

    /// The certificate of a kind of caller, and whether a manager is named in it.
    fn connect(&self, kind: Kind) -> Client<Box<dyn Stream>> {
        let identity = match kind {
            Kind::Local => {
                return Client::over(Box::new(std::os::unix::net::UnixStream::connect(&self.net.socket).unwrap()));
            }
            Kind::NoCertificate => None,
            Kind::Node(id, role) => Some((self.swarm.identity(NodeId(id), role), role == Role::Manager)),
            Kind::Expired(id, role) => {
                let then = wall_ms() - 48 * 3_600_000;
                Some((self.swarm.identity_at(NodeId(id), role, then), false))
            }
            Kind::OtherSwarm(role) => {
                // Another swarm under the same root: the chain alone does not tell them apart.
                let sibling = Swarm { root: Swarm::new(60).root, cluster: ClusterId(99) };
                Some((sibling.identity(NodeId(31), role), false))
            }
        };
        let own = identity.as_ref().map(|(identity, _)| identity);
        let config = match kind {
            // It would not talk to this swarm's managers otherwise.
            Kind::OtherSwarm(_) => pki::client_config(own, pki::Trust::Anything).unwrap(),
            _ => self.swarm.client(own),
        };
        let secure = Client::secure(&self.net, config);
        let mut client = Client::over(Box::new(secure.stream) as Box<dyn Stream>);
        if let (Some((_, true)), Kind::Node(id, _)) = (&identity, kind) {
            let body = envelope::encode(&hello(self.swarm.cluster, NodeId(id)));
            client.send(FrameKind::Hello, END, 0, &body);
        }
        client
    }

    fn fate(&mut self, kind: Kind, call: Call, forwarded: Option<&Forwarded>) -> Fate {
        let mut client = self.connect(kind);
        client.send(FrameKind::Request, 0, 1, &request::encode(call, 5000, forwarded, &[0; 4]));
        // A call that nobody may be asked by is followed by one of which both ends tell.
        loop {
            if let Some(heard) = self.net.pick(|event| match event {
                Event::Request(Incoming { caller, call: asked, .. }) if *asked == call => Some(caller.clone()),
                _ => None,
            }) {
                return Fate::Heard(heard);
            }
            match client.receive_if_any() {
                Err(alert) => return Fate::BrokenOff(alert),
                Ok(Some((header, body))) if header.kind == FrameKind::Error => {
                    let status = envelope::decode(&body, 4096).unwrap();
                    return if header.stream == 0 { Fate::TurnedAway(status) } else { Fate::Refused(status) };
                }
                _ => std::thread::yield_now(),
            }
        }
    }
}

/// What the product promises of a call: who may make it, as letters, and whether a manager may pass it on.
fn promised(call: Call) -> (&'static str, bool) {
    let row = PROMISED.iter().find(|(promised, ..)| *promised == call);
    let (_, callers, forwardable) = *row.unwrap_or_else(|| panic!("{call:?} has no row: decide who may make it"));
    (callers, forwardable)
}

/// The letter that a caller is treated by once it reached the handler.
fn letter(caller: &Caller) -> char {
    match caller {
        Caller::Local => 'l',
        Caller::Anonymous => 'a',
        Caller::Node { expired: true, .. } => 'e',
        Caller::Node { role: Role::Worker, .. } => 'w',
        Caller::Node { role: Role::Manager, .. } => 'm',
    }
}

#[track_caller]
fn check(cell: &str, fate: &Fate, expected: Option<char>, may: bool) {
    match (fate, expected) {
        (Fate::Heard(caller), Some(expected)) => {
            assert!(may, "{cell}: reached the handler");
            assert_eq!(letter(caller), expected, "{cell}: as {caller:?}");
        }
        (Fate::Refused(status), Some(_)) => {
            assert!(!may, "{cell}: {status:?}");
            let codes = [Code::PermissionDenied, Code::Unauthenticated, Code::InvalidArgument];
            // An expired manager may be a peer for a moment, and whoever asked it may try again.
            let is_lent = cell.contains("by Expired(12, Manager)") && status.code == Code::Unavailable;
            assert!((codes.contains(&status.code) || is_lent) && !status.message.is_empty(), "{cell}: {status:?}");
        }
        // Who is not heard is told why.
        (Fate::TurnedAway(status), None) => {
            assert!(matches!(status.code, Code::PermissionDenied | Code::Unauthenticated), "{cell}: {status:?}");
            assert!(!status.hint.is_empty(), "{cell}: {status:?} does not say what to do");
        }
        (Fate::BrokenOff(alert), None) => assert!(alert.contains("alert: CertificateUnknown"), "{cell}: {alert}"),
        (fate, _) => panic!("{cell}: {fate:?}"),
    }
}

#[test]
fn every_call_admits_exactly_its_callers() {
    let mut matrix = Matrix::new();
    for call in Call::ALL {
        let (callers, _) = promised(call);
        for (kind, letter) in KINDS {
            let fate = matrix.fate(kind, call, None);
            let may = letter.is_some_and(|letter| callers.contains(letter));
            check(&format!("{call:?} by {kind:?}"), &fate, letter, may);
        }
    }
}

#[test]
fn a_call_is_passed_on_by_managers_only_and_for_those_who_may_make_it() {
    let mut matrix = Matrix::new();
    let node = |id, role, expired| Caller::Node { node_id: NodeId(id), role, cluster_id: ClusterId(1), expired };
    let origins = [
        (Caller::Local, Some('l')),
        (Caller::Anonymous, Some('a')),
        (node(WORKER, Role::Worker, false), Some('w')),
        (node(MANAGER, Role::Manager, false), Some('m')),
        (node(MANAGER, Role::Manager, true), Some('e')),
        // What the manager that passes it on does not know yet, this one does.
        (node(DEMOTED, Role::Manager, false), Some('w')),
        (node(REMOVED, Role::Manager, false), None),
    ];
    for call in Call::ALL {
        let (callers, forwardable) = promised(call);
        for (origin, letter) in &origins {
            let forwarded = Forwarded { caller: origin.clone(), addr: "10.0.0.9:1".to_owned() };
            let may = forwardable && letter.is_some_and(|letter| callers.contains(letter));
            let cell = format!("{call:?} of {origin:?}");
            let fate = matrix.fate(Kind::Node(MANAGER, Role::Manager), call, Some(&forwarded));
            check(&format!("{cell} by a manager"), &fate, letter.or(Some('-')), may);
            for by in [
                Kind::Local,
                Kind::NoCertificate,
                Kind::Node(WORKER, Role::Worker),
                Kind::Node(DEMOTED, Role::Manager),
                Kind::Expired(MANAGER, Role::Manager),
            ] {
                let fate = matrix.fate(by, call, Some(&forwarded));
                check(&format!("{cell} by {by:?}"), &fate, letter.or(Some('-')), false);
            }
        }
    }
}

/// A worker is answered.
#[track_caller]
fn still_here(worker: &mut Client<Secure>, stream: u32) {
    worker.ask(stream, Call::GetRoot, b"");
    assert_eq!(worker.receive().unwrap().0.kind, FrameKind::Answer);
}

#[test]
fn who_is_removed_or_demoted_loses_what_it_has_open_at_once_in_both_directions() {
    let swarm = Swarm::new(61);
    let stand = standings(&[(1, Standing::Manager), (2, Standing::Manager), (3, Standing::Manager)]);
    let mut one = Running::start_with(&swarm, 1, Setup { standings: stand.clone(), ..Setup::default() });
    let (mut two, mut three) = (Running::start(&swarm, 2), Running::start(&swarm, 3));
    // One connection that this side made, and one that the other side made.
    one.dial(&[two.place()]);
    three.dial(&[one.place()]);
    for peer in [2, 3] {
        one.wait_connected(NodeId(peer));
    }
    let mut worker = Client::secure(&one, swarm.client(Some(&swarm.identity(NodeId(4), Role::Worker))));
    assert_eq!(worker.receive().unwrap().0.kind, FrameKind::Hello);
    let set = |node: u128, standing| stand.lock().unwrap().insert(NodeId(node), standing);
    for (node, standing) in [(2, Standing::Removed), (3, Standing::Worker)] {
        set(node, standing);
        one.send(Command::Judge(Some(vec![NodeId(node)])));
        one.wait_disconnected(NodeId(node));
    }
    let told = |net: &mut Running| {
        net.wait("reason", |event| match event {
            Event::TurnedAway(Some(NodeId(1)), status) => Some(status.message.clone()),
            _ => None,
        })
    };
    assert!(told(&mut two).ends_with("was removed from the swarm"));
    assert!(told(&mut three).ends_with("was demoted to a worker"));
    // The worker was not meant; now it is.
    still_here(&mut worker, 1);
    one.send(Command::Judge(Some(vec![NodeId(4)])));
    assert!(worker.receive_error(0).message.ends_with("was removed from the swarm"));
    assert!(worker.receive().is_none());
}

#[test]
fn after_a_snapshot_every_connection_is_looked_at_and_nobody_is_called_removed_without_proof() {
    let swarm = Swarm::new(62);
    let stand = standings(&[(4, Standing::Worker), (5, Standing::Worker)]);
    let one = Running::start_with(&swarm, 1, Setup { standings: stand.clone(), ..Setup::default() });
    let connect = |id| {
        let mut worker = Client::secure(&one, swarm.client(Some(&swarm.identity(NodeId(id), Role::Worker))));
        assert_eq!(worker.receive().unwrap().0.kind, FrameKind::Hello);
        worker
    };
    let (mut four, mut five) = (connect(4), connect(5));
    stand.lock().unwrap().remove(&NodeId(4));
    one.send(Command::Judge(None));
    let status = four.receive_error(0);
    assert_eq!(status.code, Code::Unavailable, "{status}");
    still_here(&mut five, 1);
}
