//! The `net` thread: one turn after another, each from a wait for sockets to the last write.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use mio::{Events, Poll, Token, Waker};
use rustls::{ClientConfig, ServerConfig};

use super::accept::Listeners;
use super::calls::OutgoingCall;
use super::connection::{Connections, token};
use super::dial::Resolver;
use super::handler::{Command, ConnectionId, Handler, Outbox, Reply};
use super::link::{PLAIN, READ};
use super::meters::Meters;
use super::peers::{Effect, Peers};
use crate::sys::metrics::Metrics;
use crate::sys::queue::{self, Full, Receiver, Sender};
use crate::sys::thread::{self, Thread};
use crate::sys::time::{Instant, monotonic};
use crate::types::limits::MAX_FRAME_BYTES;
use crate::types::{ClusterId, NodeId};

/// What the socket loop needs to begin.
#[derive(Debug)]
pub struct Config {
    /// Where peers and nodes connect; bound and listening.
    pub listen: Option<TcpListener>,
    /// Where the command line connects; bound and listening, its file mode set.
    pub unix: Option<UnixListener>,
    /// The local socket belongs to a group: its file mode says who may connect, and not the caller's user id.
    pub socket_group: bool,
    /// Where probes and scrapers connect; bound and listening.
    pub http: Option<TcpListener>,
    /// This node.
    pub node_id: NodeId,
    /// Its swarm.
    pub cluster_id: ClusterId,
    /// Certificates, replaced in place when they are renewed; `None` for a node that has none yet and serves local callers
    /// only.
    pub credentials: Option<Credentials>,
    /// Bounds.
    pub limits: Limits,
    /// Spreads the dials of managers that start together.
    pub seed: u64,
    /// Where the loop counts.
    pub metrics: Metrics,
}

/// The TLS settings of every connection that begins from now on. Clones share them.
#[derive(Clone, Debug)]
pub struct Credentials(Arc<RwLock<(Arc<ServerConfig>, Arc<ClientConfig>)>>);

impl Credentials {
    /// Settings from `pki::tls`.
    pub fn new(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> Self {
        Self(Arc::new(RwLock::new((server, client))))
    }

    /// Replaces both; connections that exist keep theirs.
    pub fn replace(&self, server: Arc<ServerConfig>, client: Arc<ClientConfig>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = (server, client);
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    pub(super) fn client(&self) -> Arc<ClientConfig> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}

/// Bounds of the loop. The defaults are the product's; tests shrink them.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connecting, TLS and hello together take no longer.
    pub handshake: Duration,
    /// Connections that have not authenticated; the oldest is closed when more come.
    pub unauthenticated: usize,
    /// The same, of one source address (of one /64 with IPv6).
    pub unauthenticated_per_source: usize,
    /// Connections of one worker; the oldest is closed when more come.
    pub per_worker: usize,
    /// Connections on the local socket; more are refused.
    pub local: usize,
    /// HTTP exchanges at a time; the oldest is closed when more come.
    pub http: usize,
    /// Connections accepted in one turn of the loop from one listener.
    pub accept_burst: usize,
    /// Requests of one connection that are open at a time; more are refused.
    pub streams: usize,
    /// Bytes that wait to be sent on one connection. Appends over it are dropped; answers over it close the connection:
    /// its other side does not read.
    pub queue_bytes: usize,
    /// The same for frames that overtake others.
    pub urgent_queue_bytes: usize,
    /// Between pings.
    pub ping: Duration,
    /// Pings without any sign of life before a connection is closed.
    pub missed_pings: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            unauthenticated: 256,
            unauthenticated_per_source: 64,
            per_worker: 8,
            local: 4096,
            http: 64,
            accept_burst: 64,
            streams: 1024,
            queue_bytes: 16 << 20,
            urgent_queue_bytes: 1 << 20,
            ping: Duration::from_secs(1),
            missed_pings: 3,
        }
    }
}

/// Raft frames that wait for the loop, of one lane.
const RAFT_QUEUE: usize = 4096;
/// Bytes of appends that wait for the loop.
const RAFT_QUEUE_BYTES: usize = 32 << 20;
/// Handshakes of strangers that go on in one turn. One costs about a quarter of a millisecond.
const HANDSHAKES: usize = 8;
/// Completions taken in one turn.
const COMPLETIONS: usize = 8192;
/// Commands of one event that room is kept for.
const COMMANDS_KEPT: usize = 16;

/// Wakes the loop, once for many.
#[derive(Debug)]
pub(super) struct Bell {
    waker: Waker,
    /// The loop will look at its queues before it sleeps.
    awake: AtomicBool,
    /// All handles are gone.
    closed: AtomicBool,
}

impl Bell {
    pub(super) fn ring(&self) {
        // A sender queues first and swaps after that; the loop stores first and looks at its queues after that. So
        // either the sender finds the loop about to sleep, or the loop finds what was queued.
        if !self.awake.swap(true, Ordering::SeqCst) {
            // A failure means that the event loop is gone, and with it whoever could be woken.
            let _ = self.waker.wake();
        }
    }
}

#[derive(Debug)]
struct Ends<C> {
    completions: Sender<C>,
    urgent: Sender<(NodeId, Bytes)>,
    appends: Sender<(NodeId, Bytes)>,
    append_bytes: Arc<AtomicUsize>,
    bell: Arc<Bell>,
}

impl<C> Drop for Ends<C> {
    fn drop(&mut self) {
        self.bell.closed.store(true, Ordering::SeqCst);
        self.bell.awake.store(false, Ordering::SeqCst);
        self.bell.ring();
    }
}

/// What other threads hold of the loop. Clones share it; when the last is dropped, the loop shuts down.
#[derive(Debug)]
pub struct NetHandle<C>(Arc<Ends<C>>);

impl<C> Clone for NetHandle<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<C> NetHandle<C> {
    /// Hands a completion to the loop's handler, or gives it back when the queue is full.
    pub fn send(&self, completion: C) -> Result<(), Full<C>> {
        self.0.completions.try_send(completion)?;
        self.0.bell.ring();
        Ok(())
    }

    /// Hands over many with one wake-up; what did not fit comes back.
    pub fn send_all(&self, completions: impl IntoIterator<Item = C>) -> Result<(), Full<Vec<C>>> {
        let mut completions = completions.into_iter();
        let mut left = Vec::new();
        for completion in completions.by_ref() {
            if let Err(Full(completion)) = self.0.completions.try_send(completion) {
                left.push(completion);
                break;
            }
        }
        self.0.bell.ring();
        left.extend(completions);
        if left.is_empty() { Ok(()) } else { Err(Full(left)) }
    }

    /// Sends Raft messages (`codec::raft_message`) to a manager over any live connection. False when they were dropped
    /// because too much waits already; what is dropped later is told to the handler (`Handler::raft_dropped`).
    /// `urgent` ones (votes, heartbeats and their answers) have a lane of their own and overtake appends.
    pub fn send_raft(&self, to: NodeId, body: impl Into<Bytes>, urgent: bool) -> bool {
        let body = body.into();
        if body.len() > MAX_FRAME_BYTES {
            return false;
        }
        let lane = if urgent { &self.0.urgent } else { &self.0.appends };
        let length = body.len();
        if !urgent && self.0.append_bytes.fetch_add(length, Ordering::Relaxed) + length > RAFT_QUEUE_BYTES {
            self.0.append_bytes.fetch_sub(length, Ordering::Relaxed);
            return false;
        }
        let sent = lane.try_send((to, body)).is_ok();
        if sent {
            self.0.bell.ring();
        } else if !urgent {
            self.0.append_bytes.fetch_sub(length, Ordering::Relaxed);
        }
        sent
    }
}

/// The loop's end of what [`channel`] makes.
#[derive(Debug)]
pub struct NetInbox<C> {
    pub(super) poll: Poll,
    completions: Receiver<C>,
    urgent: Receiver<(NodeId, Bytes)>,
    appends: Receiver<(NodeId, Bytes)>,
    append_bytes: Arc<AtomicUsize>,
    bell: Arc<Bell>,
}

/// Makes the two ends of the loop's inbox, so that threads which the loop's handler needs can be given the handle before
/// the loop runs. `capacity` bounds the completions that wait.
pub fn channel<C>(capacity: usize, metrics: &Metrics) -> io::Result<(NetHandle<C>, NetInbox<C>)> {
    let poll = Poll::new()?;
    let waker = Waker::new(poll.registry(), WAKER)?;
    let bell = Arc::new(Bell { waker, awake: AtomicBool::new(false), closed: AtomicBool::new(false) });
    let (completions, completions_in) = queue::bounded(capacity, metrics.queue("net_completions"));
    let (urgent, urgent_in) = queue::bounded(RAFT_QUEUE, metrics.queue("net_urgent"));
    let (appends, appends_in) = queue::bounded(RAFT_QUEUE, metrics.queue("net_appends"));
    let append_bytes = Arc::new(AtomicUsize::new(0));
    let inbox = NetInbox {
        poll,
        completions: completions_in,
        urgent: urgent_in,
        appends: appends_in,
        append_bytes: append_bytes.clone(),
        bell: bell.clone(),
    };
    Ok((NetHandle(Arc::new(Ends { completions, urgent, appends, append_bytes, bell })), inbox))
}

/// Starts the `net` thread. It ends after [`Command::Shutdown`], or when every [`NetHandle`] is dropped.
pub fn spawn<H: Handler + 'static>(config: Config, handler: H, inbox: NetInbox<H::Completion>) -> io::Result<Thread> {
    let net = Net::new(config, handler, inbox)?;
    thread::spawn("net", move || net.run())
}

/// The tokens of what is not a connection.
pub(super) const WAKER: Token = Token(usize::MAX);
pub(super) const LISTEN: Token = Token(usize::MAX - 1);
pub(super) const UNIX: Token = Token(usize::MAX - 2);
pub(super) const HTTP: Token = Token(usize::MAX - 3);

/// What happens later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A connection's deadline.
    Connection(ConnectionId),
    /// A call's deadline.
    Call(u64),
    /// All links are pinged.
    Ping,
    /// Connections are accepted again.
    Accept,
}

/// Identity and bounds, which do not change while the loop runs.
#[derive(Debug)]
pub(super) struct Settings {
    pub node_id: NodeId,
    pub cluster_id: ClusterId,
    pub credentials: Option<Credentials>,
    pub limits: Limits,
    pub socket_group: bool,
}

/// The loop. Its parts are spread over the files of this folder: [`super::accept`] lets connections in, [`super::dial`]
/// makes them, [`super::session`] takes frames, [`super::calls`] makes calls.
pub(super) struct Net<H: Handler> {
    pub settings: Settings,
    pub handler: H,
    pub out: Outbox,
    pub inbox: NetInbox<H::Completion>,
    /// The time of this turn.
    pub now: Instant,
    pub connections: Connections,
    pub listeners: Listeners,
    /// Connections that have not authenticated, oldest first.
    pub unauthenticated: BTreeSet<ConnectionId>,
    pub exchanges: BTreeSet<ConnectionId>,
    pub peers: Peers,
    pub effects: Vec<Effect>,
    /// Dials of peers that go on, by attempt, with their connection once there is one.
    pub attempts: HashMap<u64, Option<ConnectionId>>,
    pub resolver: Resolver,
    pub calls: HashMap<u64, OutgoingCall>,
    /// Replies of calls that failed while they were made: told in the next turn, so that whoever tries again at once
    /// does not keep the loop from everything else.
    pub deferred: VecDeque<(u64, Reply)>,
    pub timers: BTreeSet<(Instant, Timer)>,
    pub ping_scheduled: bool,
    /// Connections with bytes to be read, or to be sent.
    pub ready: Vec<ConnectionId>,
    pub dirty: Vec<ConnectionId>,
    pub raw: Vec<u8>,
    pub plain: Vec<u8>,
    pub staging: Vec<u8>,
    pub meters: Meters,
    /// The clocks of peers minus ours, milliseconds, as last measured.
    pub clocks: BTreeMap<NodeId, i64>,
    /// The last warning about each peer, and when it was given.
    pub warned: BTreeMap<NodeId, (Instant, String)>,
    /// The loop ends at this time at the latest.
    pub stopping: Option<Instant>,
}

impl<H: Handler> Net<H> {
    fn new(config: Config, handler: H, inbox: NetInbox<H::Completion>) -> io::Result<Self> {
        let registry = inbox.poll.registry();
        let listeners = Listeners::new(registry, config.listen, config.unix, config.http)?;
        let resolver = Resolver::new(inbox.bell.clone());
        Ok(Self {
            handler,
            out: Outbox::default(),
            now: monotonic(),
            connections: Connections::default(),
            listeners,
            unauthenticated: BTreeSet::new(),
            exchanges: BTreeSet::new(),
            peers: Peers::new(config.seed, config.limits.handshake),
            effects: Vec::new(),
            attempts: HashMap::new(),
            resolver,
            calls: HashMap::new(),
            deferred: VecDeque::new(),
            timers: BTreeSet::new(),
            ping_scheduled: false,
            ready: Vec::new(),
            dirty: Vec::new(),
            raw: vec![0; READ],
            plain: vec![0; PLAIN],
            staging: Vec::new(),
            meters: Meters::new(&config.metrics),
            clocks: BTreeMap::new(),
            warned: BTreeMap::new(),
            stopping: None,
            settings: Settings {
                node_id: config.node_id,
                cluster_id: config.cluster_id,
                credentials: config.credentials,
                limits: config.limits,
                socket_group: config.socket_group,
            },
            inbox,
        })
    }

    fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        while !self.is_finished() {
            let timeout = self.timeout();
            if let Err(error) = self.inbox.poll.poll(&mut events, timeout)
                && error.kind() != io::ErrorKind::Interrupted
            {
                // EBADF and EINVAL are all that is left: the loop has lost its own descriptor.
                panic!("waiting for sockets: {error}");
            }
            self.inbox.bell.awake.store(true, Ordering::SeqCst);
            self.meters.calls.add(1);
            self.now = monotonic();
            for event in &events {
                match event.token() {
                    WAKER => {}
                    LISTEN | UNIX | HTTP => self.listeners.readable(event.token()),
                    other => self.socket_event(other, event),
                }
            }
            self.turn();
        }
        self.end();
    }

    /// Everything but the wait.
    fn turn(&mut self) {
        self.accept();
        self.read_ready();
        self.take_inbox();
        self.take_resolved();
        self.expire();
        for (token, reply) in std::mem::take(&mut self.deferred) {
            self.handler.replied(self.now, token, reply, &mut self.out);
        }
        self.settle();
        self.handler.turn_ended(self.now, &mut self.out);
        self.settle();
        if self.has_inbox() {
            // The other stages have answered at once, on this very thread perhaps.
            self.take_inbox();
            self.settle();
        }
        // A write that fails closes a connection, and who hears of it may write elsewhere.
        for _ in 0..3 {
            self.flush();
            self.settle();
        }
        self.handler.turn_written();
    }

    /// Whether other threads have something for this one.
    fn has_inbox(&self) -> bool {
        let NetInbox { urgent, appends, completions, .. } = &self.inbox;
        !(urgent.is_empty() && appends.is_empty() && completions.is_empty())
    }

    /// Reads what has arrived. Handshakes cost most and come from anybody: a few of them in a turn.
    fn read_ready(&mut self) {
        let mut handshakes = 0;
        for id in std::mem::take(&mut self.ready) {
            let Some(connection) = self.connections.get(id) else { continue };
            if connection.dial.is_none() && connection.link.is_handshaking() {
                handshakes += 1;
                if handshakes > HANDSHAKES {
                    self.ready.push(id);
                    continue;
                }
            }
            self.read(id);
        }
    }

    /// Carries out what the handler and the peers' machine asked for, until neither asks for more.
    pub(super) fn settle(&mut self) {
        loop {
            if !self.effects.is_empty() {
                for effect in std::mem::take(&mut self.effects) {
                    self.peer_effect(effect);
                }
            } else if !self.out.commands.is_empty() {
                let mut commands = std::mem::take(&mut self.out.commands);
                for command in commands.drain(..) {
                    self.execute(command);
                }
                // The room for a few is used again; what they asked for has its own.
                if self.out.commands.is_empty() && commands.capacity() <= COMMANDS_KEPT {
                    self.out.commands = commands;
                }
            } else {
                return;
            }
        }
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Answer { stream, body, end } => self.send_answer(stream, body, end),
            Command::Refuse { stream, status } => self.send_refusal(stream, &status),
            Command::Call { token, to, call, deadline_ms, forwarded, body } => {
                self.make_call(token, to, call, deadline_ms, forwarded.as_ref(), &body);
            }
            Command::Grant { token, bytes } => self.grant(token, bytes),
            Command::Abandon { token } => self.abandon(token),
            Command::Raft { to, body, urgent } => self.send_raft(to, body.into(), urgent),
            Command::Peers(list) => {
                let us = self.settings.node_id;
                let list = if self.stopping.is_some() { Vec::new() } else { list };
                let list: Vec<_> = list.into_iter().filter(|(id, _)| *id != us).collect();
                self.clocks.retain(|node, _| list.iter().any(|(id, _)| id == node));
                self.peers.set(self.now, list, &mut self.effects);
            }
            Command::Redial => self.peers.redial(self.now, &mut self.effects),
            Command::Disconnect(node) => self.disconnect(node),
            Command::Judge(nodes) => self.judge(nodes.as_deref()),
            Command::Shutdown => self.shut_down(),
        }
    }

    fn take_inbox(&mut self) {
        for _ in 0..RAFT_QUEUE {
            let Some((to, body)) = self.inbox.urgent.try_recv() else { break };
            self.send_raft(to, body, true);
        }
        for _ in 0..RAFT_QUEUE {
            let Some((to, body)) = self.inbox.appends.try_recv() else { break };
            self.inbox.append_bytes.fetch_sub(body.len(), Ordering::Relaxed);
            self.send_raft(to, body, false);
        }
        let waiting = self.inbox.completions.len().min(COMPLETIONS);
        if waiting > 0 {
            let completions: Vec<_> = (0..waiting).map_while(|_| self.inbox.completions.try_recv()).collect();
            self.handler.completed(self.now, completions, &mut self.out);
            self.settle();
        }
        if self.inbox.bell.closed.load(Ordering::SeqCst) && self.inbox.completions.is_empty() {
            self.shut_down();
        }
    }

    /// How long to wait for sockets; `None` for as long as it takes.
    fn timeout(&self) -> Option<Duration> {
        self.inbox.bell.awake.store(false, Ordering::SeqCst);
        let work = !self.ready.is_empty()
            || !self.dirty.is_empty()
            || !self.deferred.is_empty()
            || self.listeners.has_pending()
            || self.resolver.has_results()
            || self.has_inbox();
        if work {
            return Some(Duration::ZERO);
        }
        let timers = self.timers.first().map(|(when, _)| *when);
        [timers, self.peers.next_deadline(), self.handler.next_deadline(), self.stopping]
            .into_iter()
            .flatten()
            .min()
            .map(|when| when.since(monotonic()))
    }

    fn expire(&mut self) {
        while let Some(&(when, timer)) = self.timers.first()
            && when <= self.now
        {
            self.timers.pop_first();
            match timer {
                Timer::Connection(id) => self.connection_expired(id),
                Timer::Call(token) => self.call_expired(token),
                Timer::Ping => self.ping_all(),
                Timer::Accept => self.listeners.resume(),
            }
            self.settle();
        }
        self.peers.expire(self.now, &mut self.effects);
        self.settle();
    }

    /// When the loop looks at a connection again, whatever happens.
    pub(super) fn set_deadline(&mut self, id: ConnectionId, deadline: Option<Instant>) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        if let Some(old) = std::mem::replace(&mut connection.deadline, deadline) {
            self.timers.remove(&(old, Timer::Connection(id)));
        }
        if let Some(deadline) = deadline {
            self.timers.insert((deadline, Timer::Connection(id)));
        }
    }

    /// Puts a connection among those to be flushed at the end of the turn.
    pub(super) fn mark_dirty(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(id)
            && !connection.dirty
        {
            connection.dirty = true;
            self.dirty.push(id);
        }
    }

    fn shut_down(&mut self) {
        if self.stopping.is_none() {
            self.stopping = Some(self.now + Duration::from_secs(1));
            self.listeners.close();
            self.peers.set(self.now, Vec::new(), &mut self.effects);
        }
    }

    fn is_finished(&self) -> bool {
        let Some(deadline) = self.stopping else { return false };
        let is_idle = self.inbox.completions.is_empty()
            && self.out.commands.is_empty()
            && self.connections.iter().all(|connection| !connection.link.has_output());
        is_idle || self.now >= deadline
    }

    /// The last thing every other side hears is that the connection ends here.
    fn end(&mut self) {
        for id in self.connections.iter().map(|connection| connection.id).collect::<Vec<_>>() {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.link.end_output(&mut self.staging);
            }
        }
    }

    /// Watches a connection's socket for room as long as something waits to be sent.
    pub(super) fn watch_room(&mut self, id: ConnectionId, room: bool) -> io::Result<()> {
        match self.connections.get_mut(id) {
            Some(connection) => connection.link.want_room(self.inbox.poll.registry(), token(id), room),
            None => Ok(()),
        }
    }
}
