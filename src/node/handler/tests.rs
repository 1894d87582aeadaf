//! A member's handler without threads: what it tells raft and the socket loop.

use std::path::Path;

use super::*;
use crate::pki::testing;
use crate::raft::run::{Inbox, queues};
use crate::store::State;
use crate::sys::queue::{Receiver, bounded};
use crate::types::MemberRole;
use crate::types::api::SnapshotRequest;
use crate::types::log::Configuration;

/// Node 1 of the members 1, 2 and 3.
struct Node {
    handler: NodeHandler,
    raft: Inbox,
    begun: Instant,
    transfers: Receiver<Transfer>,
    /// Keeps the queues to the workers open.
    _workers: Box<dyn std::any::Any>,
}

/// A manager's certificate; nothing here looks at it.
fn own() -> Own {
    let root = testing::root(1);
    Own::new(testing::manager(&root, NodeId(1), testing::NOW_MS), root.certificate_pem().to_owned())
}

impl Node {
    fn new() -> Self {
        let metrics = Metrics::default();
        let (raft, inbox) = queues(super::super::assemble::empty_report(), &metrics);
        let identity = Identity {
            node_id: NodeId(1),
            cluster_id: ClusterId(5),
            hostname: "m1".to_owned(),
            data_dir: "/var/lib/skep".to_owned(),
            advertise: addr(1),
            boot: 1,
            nonce: 1,
        };
        let mut handler = NodeHandler::new(Parts {
            identity,
            raft,
            greetings: Greetings::load(Path::new("/nonexistent/peers.json")).unwrap(),
            metrics: metrics.clone(),
            stop: Arc::default(),
            watched: Arc::default(),
            progress: Progress::default(),
            own: own(),
        });
        let (transfer, transfers) = bounded(4, metrics.queue("transfer"));
        let (jobs, job_inbox) = bounded(4, metrics.queue("jobs"));
        let (locksmith, locksmith_inbox) = bounded(4, metrics.queue("locksmith"));
        let state = State::bootstrap(Lineage(7), NodeId(1), addr(1));
        handler.activate(Active {
            held_up: Notices::default(),
            raft_id: RaftId(1),
            lineage: Lineage(7),
            store: Arc::new(Store::new(state, 1 << 16)),
            transfer,
            jobs,
            locksmith,
            advertise: addr(1),
        });
        let mut node = Self {
            handler,
            raft: inbox,
            begun: monotonic(),
            transfers,
            _workers: Box::new((job_inbox, locksmith_inbox)),
        };
        let members = (1..=3).map(|id| Member {
            raft_id: RaftId(id),
            node_id: NodeId(id.into()),
            addr: addr(id),
            role: MemberRole::Voter,
        });
        node.act(|handler, out, now| handler.completed(now, vec![Completion::Peers(members.collect())], out));
        node.act(|handler, out, _| handler.connected(NodeId(2), out));
        while node.raft.next_reported().is_some() {}
        node
    }

    fn act(&mut self, act: impl FnOnce(&mut NodeHandler, &mut Outbox, Instant)) -> Vec<Command> {
        let mut out = Outbox::default();
        act(&mut self.handler, &mut out, self.begun);
        out.commands
    }

    /// The end of a turn so many seconds after the beginning.
    fn turn(&mut self, seconds: u64) -> Vec<Command> {
        let at = self.begun + Duration::from_secs(seconds);
        self.act(|handler, out, _| handler.turn_ended(at, out))
    }
}

fn addr(id: u64) -> String {
    format!("10.0.0.{id}:4242")
}

/// Where member 3 is dialled, if these say so.
fn dialled(commands: &[Command]) -> Option<String> {
    commands.iter().rev().find_map(|command| match command {
        Command::Peers(peers) => peers.iter().find(|(node, _)| *node == NodeId(3)).map(|(_, addr)| addr.clone()),
        _ => None,
    })
}

/// The question where somebody listens: its token, whom it goes to and about whom it is.
fn question(commands: &[Command]) -> Option<(u64, NodeId, RaftId)> {
    commands.iter().find_map(|command| match command {
        Command::Call { token, to: Target::Node(to), call: Call::ResolveAddress, body, .. } => {
            let asked: ResolveAddress = crate::codec::envelope::decode(body, 100).unwrap();
            Some((*token, *to, asked.raft_id))
        }
        _ => None,
    })
}

#[test]
fn appends_that_were_dropped_in_a_turn_make_their_peer_unreachable_once() {
    let mut node = Node::new();
    node.act(|handler, _, _| {
        for peer in [3, 2, 3, 3] {
            handler.raft_dropped(NodeId(peer));
        }
    });
    for _ in 0..2 {
        node.turn(0);
    }
    let mut told = Vec::new();
    while let Some(event) = node.raft.next_reported() {
        match event {
            raft::Event::Unreachable { node } => told.push(node.0),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, [2, 3]);
}

#[test]
fn a_member_that_does_not_answer_is_asked_for_and_dialled_where_others_know_it() {
    let mut node = Node::new();
    assert_eq!(question(&node.turn(1)), None, "it may come back");
    let (token, to, about) = question(&node.turn(4)).unwrap();
    assert_eq!((to, about), (NodeId(2), RaftId(3)));
    // The same address is no news.
    let reply = |addr: &str| Reply::Answer { body: control::encode(&Answer::Address(addr.to_owned())), end: true };
    let said = node.act(|handler, out, now| handler.replied(now, token, reply(&addr(3)), out));
    assert_eq!(dialled(&said), None);
    let (token, ..) = question(&node.turn(11)).unwrap();
    let said = node.act(|handler, out, now| handler.replied(now, token, reply("10.9.9.9:4242"), out));
    assert_eq!(dialled(&said).as_deref(), Some("10.9.9.9:4242"));
    // There it does not answer either: the list's address has its turn again.
    let said = node.turn(24);
    assert_eq!(dialled(&said), Some(addr(3)));
    assert!(question(&said).is_some());
    // Once it is connected nobody is asked any more, and what was asked does not matter.
    let (token, ..) = question(&said).unwrap();
    node.act(|handler, out, _| handler.connected(NodeId(3), out));
    let late = node.act(|handler, out, now| handler.replied(now, token, reply("10.9.9.9:4242"), out));
    assert_eq!((dialled(&late), question(&node.turn(600))), (None, None));
}

#[test]
fn a_certificate_asked_for_on_the_local_socket_is_this_nodes_own() {
    use crate::net::handler::ConnectionId;
    use crate::types::api::IssueRequest;
    let mut node = Node::new();
    // A follower: what it passes on shows for whom.
    let leadership = Leadership { leader: Some(NodeId(2)), serving: false, no_majority: None };
    node.act(|handler, out, now| handler.drive(now, Event::Leadership(leadership), out));
    let mut passed_on = |caller: Caller, stream: u32| {
        let request = IssueRequest {
            change: crate::types::ChangeId(1),
            after: Revision(0),
            csr: "a request".to_owned(),
            token: crate::types::object::Sensitive::default(),
            description: crate::types::object::NodeDescription::default(),
            role: None,
            availability: crate::types::object::Availability::Active,
        };
        let incoming = Incoming {
            stream: StreamId { connection: ConnectionId(9), stream },
            caller,
            addr: String::new(),
            forwarded: false,
            call: Call::Issue,
            deadline: node.begun + Duration::from_secs(5),
            body: crate::codec::envelope::encode(&request).into(),
        };
        let commands = node.act(|handler, out, now| handler.request(now, incoming, out));
        commands.into_iter().find_map(|command| match command {
            Command::Call { to: Target::Node(NodeId(2)), forwarded, .. } => forwarded.map(|forwarded| forwarded.caller),
            _ => None,
        })
    };
    let (node_id, cluster_id) = (NodeId(1), ClusterId(5));
    let own = Caller::Node { node_id, role: Role::Manager, cluster_id, expired: false };
    assert_eq!(passed_on(Caller::Local, 1), Some(own));
    assert_eq!(passed_on(Caller::Anonymous, 3), Some(Caller::Anonymous));
}

#[test]
fn why_a_manager_turns_this_one_away_is_in_its_status_until_they_are_connected() {
    let mut node = Node::new();
    let status = Status::new(Code::Unauthenticated, "it does not know the root").with_hint("join again");
    let notices = |node: &Node| node.handler.context().notices;
    // What there is to say of its certificate stays as it is: this one ended long ago.
    let before = notices(&node);
    for _ in 0..3 {
        node.act(|handler, out, _| handler.turned_away(Some(NodeId(3)), &status, out));
    }
    let mut told = notices(&node);
    told.retain(|told| !before.contains(told));
    assert!(matches!(&told[..], [told] if told.contains("does not know the root (hint: join again)")), "{told:?}");
    node.act(|handler, out, _| handler.connected(NodeId(3), out));
    assert_eq!(notices(&node), before);
}

#[test]
fn a_snapshot_that_is_offered_again_is_fetched_on_and_another_one_from_its_beginning() {
    let mut node = Node::new();
    let mut offer = |from: u64, index: u64| {
        let mark = crate::raft::storage::SnapshotMark {
            position: Position { term: crate::types::Term(2), index: Index(index) },
            configuration: Configuration::default(),
            bytes: 0,
        };
        let fetch = FetchSnapshot { from: NodeId(from.into()), mark };
        let commands =
            node.act(|handler, out, now| handler.completed(now, vec![Completion::Fetch(fetch.clone())], out));
        let abandoned = commands.iter().find_map(|command| match command {
            Command::Abandon { token } => Some(*token),
            _ => None,
        });
        let (token, asked) = commands
            .iter()
            .find_map(|command| match command {
                Command::Call { token, call: Call::Snapshot, body, .. } => {
                    Some((*token, crate::codec::envelope::decode::<SnapshotRequest>(body, 100).unwrap()))
                }
                _ => None,
            })
            .expect("it is called for");
        let reply = Reply::Answer { body: vec![7; 100].into(), end: false };
        node.act(|handler, out, now| handler.replied(now, token, reply, out));
        let mut told = Vec::new();
        while let Some(transfer) = node.transfers.try_recv() {
            told.push(match transfer {
                Transfer::Begin(_) => "begin",
                Transfer::Part(_) => "part",
                Transfer::Abort => "abort",
                _ => "else",
            });
        }
        (abandoned, token, asked.offset, told)
    };
    let (none, first, offset, told) = offer(2, 50);
    assert_eq!((none, offset, told), (None, 0, vec!["begin", "part"]));
    let (abandoned, second, offset, told) = offer(2, 50);
    assert_eq!((abandoned, offset, told), (Some(first), 100, vec!["part"]));
    let (abandoned, third, offset, told) = offer(2, 60);
    assert_eq!((abandoned, offset, told), (Some(second), 0, vec!["begin", "part"]));
    // Another leader's may be written in another way.
    let (abandoned, _, offset, told) = offer(3, 60);
    assert_eq!((abandoned, offset, told), (Some(third), 0, vec!["begin", "part"]));
}
