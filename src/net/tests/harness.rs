//! Loops in one process, a handler that records and echoes, and clients that speak raw frames.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant as Clock};

use bytes::Bytes;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use tempfile::TempDir;

use super::super::handler::{Command, Handler, Incoming, Outbox, Reply, StreamId};
use super::super::wire::Parser;
use super::super::{Config, Credentials, Limits, NetHandle, channel, spawn};
use crate::codec::frame::{FrameKind, Header, INITIAL_CREDIT};
use crate::codec::request::Ping;
use crate::codec::{envelope, frame, request};
use crate::pki::{self, NodeIdentity, RootCa, Trust};
use crate::sys::entropy::SeededEntropy;
use crate::sys::metrics::Metrics;
use crate::sys::thread::Thread;
use crate::sys::time::{Instant, wall_ms};
use crate::types::api::{Call, FEATURE_LEVEL, Hello, PROTOCOL};
use crate::types::error::Code;
use crate::types::limits::MAX_FRAME_BYTES;
use crate::types::{Caller, ClusterId, Lineage, NodeId, Position, RaftId, Revision, Role, Standing, Status};

/// Nothing in these tests takes nearly so long, unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A root and the swarm that it signs for.
pub struct Swarm {
    pub root: RootCa,
    pub cluster: ClusterId,
}

impl Swarm {
    pub fn new(seed: u64) -> Self {
        let root = RootCa::generate(wall_ms(), &mut SeededEntropy::new(seed)).unwrap();
        Self { root, cluster: ClusterId(u128::from(seed) << 64 | 0xC1) }
    }

    pub fn identity(&self, node: NodeId, role: Role) -> NodeIdentity {
        self.identity_at(node, role, wall_ms())
    }

    pub fn identity_at(&self, node: NodeId, role: Role, now_ms: u64) -> NodeIdentity {
        let entropy = &mut SeededEntropy::new(node.0 as u64);
        let key = pki::generate_key(entropy);
        let request = pki::signing_request(&key).unwrap();
        let hour = Duration::from_secs(3600);
        let chain = self.root.sign_request(&request, node, role, self.cluster, now_ms, hour, entropy).unwrap();
        NodeIdentity::new(&chain, key).unwrap()
    }

    pub fn credentials(&self, node: NodeId) -> Credentials {
        let identity = self.identity(node, Role::Manager);
        let roots = self.root.certificate_pem();
        let server = pki::server_config(&identity, roots).unwrap();
        Credentials::new(server, pki::peer_config(&identity, roots).unwrap())
    }

    pub fn client(&self, identity: Option<&NodeIdentity>) -> std::sync::Arc<ClientConfig> {
        pki::client_config(identity, Trust::Roots(self.root.certificate_pem().to_owned())).unwrap()
    }
}

pub fn hello(cluster: ClusterId, node: NodeId) -> Hello {
    Hello {
        protocol: PROTOCOL,
        cluster_id: cluster,
        node_id: node,
        raft_id: Some(RaftId(node.0 as u64)),
        lineage: Lineage(1),
        boot: 1,
        nonce: 1,
        last: Position::default(),
        advertise: String::new(),
        feature_level: FEATURE_LEVEL,
        revision: Revision(7),
    }
}

/// What a loop is told of nodes; may change while it runs.
pub type Standings = Arc<Mutex<BTreeMap<NodeId, Standing>>>;

/// What a loop told its handler.
#[derive(Debug)]
pub enum Event {
    Greeted(Caller, Hello),
    TurnedAway(Option<NodeId>, Status),
    Request(Incoming),
    Cancelled(StreamId),
    Replied(u64, Reply),
    Raft(NodeId, Bytes),
    Dropped(NodeId),
    Connected(NodeId),
    Disconnected(NodeId, bool, Clock),
    Measured(NodeId, u64, i64, u64),
}

/// Records everything. Answers `Query` with its own body, `Health` with the caller's printed form, `GetRoot` with
/// `root`, `Watch` with as many bytes as its body's u32 says, as far as credit goes; keeps `Write` waiting.
pub struct Recorder {
    cluster: ClusterId,
    node: NodeId,
    events: mpsc::Sender<Event>,
    quiet: bool,
    streams: BTreeMap<StreamId, (u32, u32)>,
    pub refuse: Option<Status>,
    pub admits_expired: bool,
    pub standings: Standings,
}

impl Recorder {
    fn tell(&self, event: Event) {
        // The test may have ended.
        let _ = self.events.send(event);
    }

    fn pump(&mut self, stream: StreamId, out: &mut Outbox) {
        let Some((left, credit)) = self.streams.get_mut(&stream) else { return };
        while *left > 0 && *credit > 0 {
            let length = (*left).min(*credit).min(64 << 10);
            *left -= length;
            *credit -= length;
            let body = Bytes::from(vec![*left as u8; length as usize]);
            out.commands.push(Command::Answer { stream, body, end: *left == 0 });
        }
        if *left == 0 {
            self.streams.remove(&stream);
        }
    }
}

impl Handler for Recorder {
    type Completion = Command;

    fn hello(&mut self) -> Hello {
        hello(self.cluster, self.node)
    }

    fn greeted(&mut self, caller: &Caller, hello: &Hello) -> Result<(), Status> {
        self.tell(Event::Greeted(caller.clone(), hello.clone()));
        self.refuse.clone().map_or(Ok(()), Err)
    }

    fn turned_away(&mut self, peer: Option<NodeId>, status: &Status, _: &mut Outbox) {
        self.tell(Event::TurnedAway(peer, status.clone()));
    }

    fn request(&mut self, _: Instant, request: Incoming, out: &mut Outbox) {
        match request.call {
            Call::Query => out.answer(request.stream, request.body.clone()),
            Call::Health => {
                out.answer(request.stream, format!("{:?} from {}", request.caller, request.addr).into_bytes())
            }
            Call::GetRoot => out.answer(request.stream, &b"root"[..]),
            Call::Watch => {
                let length = u32::from_le_bytes(request.body[..4].try_into().unwrap());
                self.streams.insert(request.stream, (length, INITIAL_CREDIT));
                self.pump(request.stream, out);
            }
            _ => {}
        }
        if !self.quiet {
            self.tell(Event::Request(request));
        }
    }

    fn cancelled(&mut self, stream: StreamId, _: &mut Outbox) {
        self.streams.remove(&stream);
        self.tell(Event::Cancelled(stream));
    }

    fn credit(&mut self, stream: StreamId, available: u32, out: &mut Outbox) {
        if let Some((_, credit)) = self.streams.get_mut(&stream) {
            *credit = available;
            self.pump(stream, out);
        }
    }

    fn replied(&mut self, _: Instant, token: u64, reply: Reply, _: &mut Outbox) {
        self.tell(Event::Replied(token, reply));
    }

    fn raft(&mut self, from: NodeId, body: Bytes, _: &mut Outbox) {
        if !self.quiet {
            self.tell(Event::Raft(from, body));
        }
    }

    fn raft_dropped(&mut self, peer: NodeId) {
        self.tell(Event::Dropped(peer));
    }

    fn connected(&mut self, peer: NodeId, _: &mut Outbox) {
        self.tell(Event::Connected(peer));
    }

    fn disconnected(&mut self, peer: NodeId, refused: bool, _: &mut Outbox) {
        self.tell(Event::Disconnected(peer, refused, Clock::now()));
    }

    fn measured(&mut self, peer: NodeId, rtt_us: u64, clock_offset_ms: i64, ping: Ping) {
        self.tell(Event::Measured(peer, rtt_us, clock_offset_ms, ping.sync_us));
    }

    fn ping(&mut self) -> Ping {
        Ping { sync_us: 77, ..Ping::default() }
    }

    fn completed(&mut self, _: Instant, completions: Vec<Command>, out: &mut Outbox) {
        out.commands.extend(completions);
    }

    fn turn_ended(&mut self, _: Instant, _: &mut Outbox) {}

    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    fn http(&mut self, path: &str) -> (u16, &'static str, String) {
        match path {
            "/healthz" => (200, "text/plain", "well\n".to_owned()),
            _ => (404, "text/plain", "not here\n".to_owned()),
        }
    }

    fn standing(&self, node: NodeId) -> Standing {
        self.standings.lock().unwrap().get(&node).copied().unwrap_or(Standing::Unknown)
    }

    fn admits_expired(&self, _: NodeId) -> bool {
        self.admits_expired
    }
}

/// These nodes stand so, and nobody else is known.
pub fn standings(of: &[(u128, Standing)]) -> Standings {
    Arc::new(Mutex::new(of.iter().map(|(node, standing)| (NodeId(*node), *standing)).collect()))
}

/// How a test's loop differs from the usual one.
#[derive(Default)]
pub struct Setup {
    pub limits: Limits,
    pub quiet: bool,
    pub refuse: Option<Status>,
    pub admits_expired: bool,
    pub standings: Standings,
    pub listen: Option<SocketAddr>,
}

/// A loop that runs.
pub struct Running {
    pub id: NodeId,
    pub addr: SocketAddr,
    pub http: SocketAddr,
    pub socket: PathBuf,
    pub metrics: Metrics,
    pub credentials: Credentials,
    handle: Option<NetHandle<Command>>,
    thread: Option<Thread>,
    events: mpsc::Receiver<Event>,
    backlog: Vec<Event>,
    _directory: TempDir,
}

impl Running {
    pub fn start(swarm: &Swarm, id: u128) -> Self {
        Self::start_with(swarm, id, Setup::default())
    }

    pub fn start_with(swarm: &Swarm, id: u128, setup: Setup) -> Self {
        let id = NodeId(id);
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let listen = TcpListener::bind(setup.listen.unwrap_or(any)).unwrap();
        let http = TcpListener::bind(any).unwrap();
        let (addr, http_addr) = (listen.local_addr().unwrap(), http.local_addr().unwrap());
        let metrics = Metrics::default();
        let credentials = swarm.credentials(id);
        let config = Config {
            listen: Some(listen),
            unix: Some(UnixListener::bind(&socket).unwrap()),
            socket_group: false,
            http: Some(http),
            node_id: id,
            cluster_id: swarm.cluster,
            credentials: Some(credentials.clone()),
            limits: setup.limits,
            seed: id.0 as u64,
            metrics: metrics.clone(),
        };
        let (sender, events) = mpsc::channel();
        let recorder = Recorder {
            cluster: swarm.cluster,
            node: id,
            events: sender,
            quiet: setup.quiet,
            streams: BTreeMap::new(),
            refuse: setup.refuse,
            admits_expired: setup.admits_expired,
            standings: setup.standings,
        };
        let (handle, inbox) = channel(100_000, &metrics).unwrap();
        let thread = spawn(config, recorder, inbox).unwrap();
        Self {
            id,
            addr,
            http: http_addr,
            socket,
            metrics,
            credentials,
            handle: Some(handle),
            thread: Some(thread),
            events,
            backlog: Vec::new(),
            _directory: directory,
        }
    }

    pub fn handle(&self) -> &NetHandle<Command> {
        self.handle.as_ref().unwrap()
    }

    pub fn send(&self, command: Command) {
        self.handle().send(command).unwrap();
    }

    /// Has this loop dial the others, and nobody else.
    pub fn dial(&self, others: &[(NodeId, String)]) {
        self.send(Command::Peers(others.to_vec()));
    }

    pub fn place(&self) -> (NodeId, String) {
        (self.id, self.addr.to_string())
    }

    /// Waits for an event that `pick` takes; others stay for later.
    #[track_caller]
    pub fn wait<T>(&mut self, what: &str, pick: impl Fn(&Event) -> Option<T>) -> T {
        self.wait_until(Clock::now() + PATIENCE, &pick)
            .unwrap_or_else(|| panic!("no {what}; there was {:?}", self.backlog))
    }

    fn wait_until<T>(&mut self, deadline: Clock, pick: &impl Fn(&Event) -> Option<T>) -> Option<T> {
        if let Some(place) = self.backlog.iter().position(|event| pick(event).is_some()) {
            return pick(&self.backlog.remove(place));
        }
        loop {
            let event = self.events.recv_timeout(deadline.saturating_duration_since(Clock::now())).ok()?;
            if let Some(found) = pick(&event) {
                return Some(found);
            }
            self.backlog.push(event);
        }
    }

    /// The first event that has been told by now and that `pick` takes.
    pub fn pick<T>(&mut self, pick: impl Fn(&Event) -> Option<T>) -> Option<T> {
        self.backlog.extend(self.events.try_iter());
        let place = self.backlog.iter().position(|event| pick(event).is_some())?;
        pick(&self.backlog.remove(place))
    }

    /// Whether an event that has been told by now is taken by `pick`.
    pub fn has<T>(&mut self, pick: impl Fn(&Event) -> Option<T>) -> bool {
        self.backlog.extend(self.events.try_iter());
        self.backlog.iter().any(|event| pick(event).is_some())
    }

    #[track_caller]
    pub fn wait_connected(&mut self, peer: NodeId) {
        self.wait("connection", |event| matches!(event, Event::Connected(id) if *id == peer).then_some(()));
    }

    #[track_caller]
    pub fn wait_reply(&mut self, wanted: u64) -> Reply {
        self.wait("reply", |event| match event {
            Event::Replied(token, reply) if *token == wanted => Some(reply.clone()),
            _ => None,
        })
    }

    #[track_caller]
    pub fn wait_disconnected(&mut self, peer: NodeId) -> (bool, Clock) {
        self.wait("disconnection", |event| match event {
            Event::Disconnected(id, refused, when) if *id == peer => Some((*refused, *when)),
            _ => None,
        })
    }

    /// Ends the loop and waits for it.
    pub fn stop(&mut self) {
        // A loop whose inbox is full or whose thread has ended needs no order.
        drop(self.handle.take());
        if let Some(thread) = self.thread.take() {
            assert!(thread.join(PATIENCE), "the loop does not end");
        }
    }

    pub fn counter(&self, name: &str) -> u64 {
        self.metrics.counter(name).get()
    }

    pub fn gauge(&self, class: &str) -> u64 {
        self.metrics.gauge(&format!("skep_net_connections{{class=\"{class}\"}}")).get()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

/// Polls until `done`.
#[track_caller]
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Clock::now() + PATIENCE;
    while !done() {
        assert!(Clock::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

/// A stream whose reads can be bounded in time.
pub trait Stream: Read + Write {
    fn patience(&self, patience: Duration);
}

impl Stream for UnixStream {
    fn patience(&self, patience: Duration) {
        self.set_read_timeout(Some(patience)).unwrap();
    }
}

impl Stream for Secure {
    fn patience(&self, patience: Duration) {
        self.sock.set_read_timeout(Some(patience)).unwrap();
    }
}

impl Client<Box<dyn Stream>> {
    /// The next frame, if one comes within a moment; an error when the other side broke off, with what TLS says of it.
    pub fn receive_if_any(&mut self) -> Result<Option<(Header, Bytes)>, String> {
        self.stream.patience(Duration::from_millis(2));
        loop {
            let mut input = self.buffer.as_slice();
            let frame = self.parser.next(&mut input, MAX_FRAME_BYTES).unwrap();
            let used = self.buffer.len() - input.len();
            self.buffer.drain(..used);
            if frame.is_some() {
                return Ok(frame);
            }
            let mut piece = [0; 16 << 10];
            match self.stream.read(&mut piece) {
                Ok(0) => panic!("the connection closed without a reason"),
                Ok(length) => self.buffer.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

/// A client that speaks frames over any blocking stream.
pub struct Client<S> {
    pub stream: S,
    parser: Parser,
    buffer: Vec<u8>,
}

impl Client<UnixStream> {
    /// Connects to the local socket and takes the hello.
    pub fn local(to: &Running) -> Self {
        let stream = UnixStream::connect(&to.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Self::over(stream);
        assert_eq!(client.receive().unwrap().0.kind, FrameKind::Hello);
        client
    }
}

pub type Secure = StreamOwned<ClientConnection, TcpStream>;

impl Client<Secure> {
    /// Connects over TLS; takes nothing yet.
    pub fn secure(to: &Running, config: std::sync::Arc<ClientConfig>) -> Self {
        let socket = TcpStream::connect(to.addr).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let name = pki::tls::server_name(to.id);
        Self::over(StreamOwned::new(ClientConnection::new(config, name).unwrap(), socket))
    }
}

impl<S: Read + Write> Client<S> {
    pub fn over(stream: S) -> Self {
        Self { stream, parser: Parser::default(), buffer: Vec::new() }
    }

    pub fn send(&mut self, kind: FrameKind, flags: u8, stream: u32, body: &[u8]) {
        let mut bytes = Vec::new();
        frame::write(&mut bytes, kind, flags, stream, body);
        self.stream.write_all(&bytes).unwrap();
        self.stream.flush().unwrap();
    }

    pub fn ask(&mut self, stream: u32, call: Call, body: &[u8]) {
        self.send(FrameKind::Request, 0, stream, &request::encode(call, 5000, None, body));
    }

    /// The next frame; `None` when the other side has closed.
    pub fn receive(&mut self) -> Option<(Header, Bytes)> {
        loop {
            let mut input = self.buffer.as_slice();
            let frame = self.parser.next(&mut input, MAX_FRAME_BYTES).unwrap();
            let used = self.buffer.len() - input.len();
            self.buffer.drain(..used);
            if frame.is_some() {
                return frame;
            }
            let mut piece = [0; 16 << 10];
            match self.stream.read(&mut piece) {
                Ok(0) => return None,
                Ok(length) => self.buffer.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("nothing came"),
                Err(_) => return None,
            }
        }
    }

    /// The status that ends a stream, or with stream 0 the connection.
    #[track_caller]
    pub fn receive_error(&mut self, stream: u32) -> Status {
        loop {
            let (header, body) = self.receive().expect("the connection closed without a reason");
            if header.kind == FrameKind::Error {
                assert_eq!(header.stream, stream);
                return envelope::decode(&body, 4096).unwrap();
            }
        }
    }

    /// Asks on a stream of its own and gives back the whole answer.
    #[track_caller]
    pub fn echo(&mut self, stream: u32, body: &[u8]) {
        self.ask(stream, Call::Query, body);
        let (header, answer) = self.receive().unwrap();
        assert_eq!((header.kind, header.flags, header.stream), (FrameKind::Answer, frame::END, stream));
        assert_eq!(answer, body);
    }
}

/// The code of a refusal.
#[track_caller]
pub fn refused(reply: Reply) -> (Code, String) {
    match reply {
        Reply::Refused(status) => (status.code, status.message),
        other => panic!("not refused: {other:?}"),
    }
}
