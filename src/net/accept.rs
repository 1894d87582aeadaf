//! Letting connections in, and keeping those that have not said who they are from disturbing the others.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use rustls::ServerConnection;

use super::connection::{Connection, Entry, Stage, token};
use super::handler::{ConnectionId, Handler};
use super::http::{Exchange, Parsed, Step, reason};
use super::link::{Link, Socket};
use super::meters::{Class, Malformed};
use super::run::{HTTP, LISTEN, Net, Timer, UNIX};
use crate::sys::time::Instant;
use crate::types::error::{Code, Status};
use crate::types::{Caller, NodeId};

/// Bytes not yet on the wire that the kernel takes of one connection.
const UNSENT: u32 = 128 << 10;
/// After the process ran out of descriptors or memory, accepting begins again so much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// That nothing can be accepted is logged so often.
const COMPLAINTS: Duration = Duration::from_secs(60);

/// The listening sockets.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    tcp: Option<TcpListener>,
    unix: Option<UnixListener>,
    http: Option<TcpListener>,
    /// Listeners with connections that wait, as far as is known: listen, unix, http.
    pending: [bool; 3],
    /// Out of descriptors: nothing is accepted until the timer fires.
    paused: bool,
    /// When that was last logged.
    complained: Option<Instant>,
}

impl Listeners {
    pub(super) fn new(
        registry: &Registry,
        tcp: Option<std::net::TcpListener>,
        unix: Option<std::os::unix::net::UnixListener>,
        http: Option<std::net::TcpListener>,
    ) -> io::Result<Self> {
        let open = |listener: Option<std::net::TcpListener>, token| -> io::Result<Option<TcpListener>> {
            let Some(listener) = listener else { return Ok(None) };
            listener.set_nonblocking(true)?;
            let mut listener = TcpListener::from_std(listener);
            registry.register(&mut listener, token, Interest::READABLE)?;
            Ok(Some(listener))
        };
        let (tcp, http) = (open(tcp, LISTEN)?, open(http, HTTP)?);
        let unix = match unix {
            Some(listener) => {
                listener.set_nonblocking(true)?;
                let mut listener = UnixListener::from_std(listener);
                registry.register(&mut listener, UNIX, Interest::READABLE)?;
                Some(listener)
            }
            None => None,
        };
        Ok(Self { tcp, unix, http, ..Self::default() })
    }

    /// Connections wait at a listener.
    pub(super) fn readable(&mut self, token: Token) {
        let place = if token == LISTEN { 0 } else { 1 + usize::from(token == HTTP) };
        self.pending[place] = true;
    }

    /// Whether there is something to accept now.
    pub(super) fn has_pending(&self) -> bool {
        !self.paused && self.pending.contains(&true)
    }

    /// Accepts again after a pause.
    pub(super) fn resume(&mut self) {
        self.paused = false;
        self.pending = [true; 3];
    }

    /// Accepts nothing any more.
    pub(super) fn close(&mut self) {
        *self = Self::default();
    }
}

impl<H: Handler> Net<H> {
    /// Accepts what waits, a bounded number at a time.
    pub(super) fn accept(&mut self) {
        for place in 0..3 {
            for _ in 0..self.settings.limits.accept_burst {
                if self.listeners.paused || !self.listeners.pending[place] {
                    break;
                }
                match self.accept_one(place) {
                    Ok(true) => {}
                    Ok(false) => self.listeners.pending[place] = false,
                    Err(error) => self.accept_failed(&error),
                }
            }
        }
        self.settle();
    }

    /// False when nothing waits.
    fn accept_one(&mut self, place: usize) -> io::Result<bool> {
        let accepted = match place {
            0 => self
                .listeners
                .tcp
                .as_ref()
                .map(|listener| listener.accept().map(|(socket, addr)| Accepted::Tcp(socket, addr))),
            1 => {
                self.listeners.unix.as_ref().map(|listener| listener.accept().map(|(socket, _)| Accepted::Unix(socket)))
            }
            _ => {
                self.listeners.http.as_ref().map(|listener| listener.accept().map(|(socket, _)| Accepted::Http(socket)))
            }
        };
        match accepted {
            None => Ok(false),
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Some(Err(error)) => Err(error),
            Some(Ok(_)) if self.connections.is_full() => Ok(true),
            Some(Ok(Accepted::Tcp(socket, addr))) => {
                self.accept_tcp(socket, addr);
                Ok(true)
            }
            Some(Ok(Accepted::Unix(socket))) => {
                self.accept_unix(socket);
                Ok(true)
            }
            Some(Ok(Accepted::Http(socket))) => {
                self.accept_http(socket);
                Ok(true)
            }
        }
    }

    fn accept_failed(&mut self, error: &io::Error) {
        if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) {
            return;
        }
        // One stranger more or less makes room for one connection and none for the next: no end to be told of each time.
        if self.listeners.complained.is_none_or(|at| self.now.since(at) >= COMPLAINTS) {
            self.listeners.complained = Some(self.now);
            log::error!("cannot accept connections for now: {error} (raise the limit of open files)");
        }
        // One descriptor fewer in the hands of a stranger is one more for a peer.
        if let Some(oldest) = self.oldest_stranger(None, ConnectionId(u64::MAX)) {
            self.evict(oldest);
        }
        self.listeners.paused = true;
        self.timers.insert((self.now + ACCEPT_PAUSE, Timer::Accept));
    }

    fn accept_tcp(&mut self, socket: TcpStream, addr: SocketAddr) {
        tune(&socket);
        let Some(credentials) = &self.settings.credentials else { return };
        let tls = match ServerConnection::new(credentials.server()) {
            Ok(tls) => tls,
            Err(error) => {
                log::error!("cannot accept a connection from {addr}: {error}");
                return;
            }
        };
        let link = Link::new(Socket::Tcp(socket), Some(tls.into()));
        let mut connection = Connection::new(link, Stage::Handshaking, Class::Handshaking, None);
        connection.addr = addr.to_string();
        connection.source = Some(source(addr.ip()));
        let Some(id) = self.admit(connection) else { return };
        self.unauthenticated.insert(id);
        self.set_deadline(id, Some(self.now + self.settings.limits.handshake));
        self.make_room(id, source(addr.ip()));
    }

    /// Closes the oldest of those who have not authenticated, as long as there are too many. The newcomer stays: a peer
    /// that connects while somebody holds all places gets one.
    fn make_room(&mut self, newcomer: ConnectionId, source: IpAddr) {
        let limits = self.settings.limits;
        let of_source = |net: &Self| {
            let same = |id: &&ConnectionId| net.connections.get(**id).is_some_and(|other| other.source == Some(source));
            net.unauthenticated.iter().filter(same).count()
        };
        if self.unauthenticated.len() > limits.unauthenticated_per_source
            && of_source(self) > limits.unauthenticated_per_source
            && let Some(oldest) = self.oldest_stranger(Some(source), newcomer)
        {
            self.evict(oldest);
        }
        if self.unauthenticated.len() > limits.unauthenticated
            && let Some(oldest) = self.oldest_stranger(None, newcomer)
        {
            self.evict(oldest);
        }
    }

    /// The oldest connection, except `but`, that has not authenticated. Whether it waits for an answer does not count: a
    /// request that nobody can answer now would keep its place against everybody who comes later.
    fn oldest_stranger(&self, source: Option<IpAddr>, but: ConnectionId) -> Option<ConnectionId> {
        self.unauthenticated
            .iter()
            .copied()
            .filter(|id| *id != but)
            .find(|id| self.connections.get(*id).is_some_and(|other| source.is_none() || other.source == source))
    }

    fn evict(&mut self, id: ConnectionId) {
        self.meters.evicted.add(1);
        log::debug!("closing a connection that has not authenticated, to make room");
        self.close(id);
    }

    fn accept_unix(&mut self, socket: UnixStream) {
        let refusal = self.refusal_of(&socket);
        let link = Link::new(Socket::Unix(socket), None);
        let mut connection = Connection::new(link, Stage::Open, Class::Local, None);
        connection.caller = Some(Caller::Local);
        connection.authenticated = true;
        let Some(id) = self.admit(connection) else { return };
        match refusal {
            Some(status) => self.fail(id, &status),
            None => self.send_hello(id),
        }
    }

    fn refusal_of(&self, socket: &UnixStream) -> Option<Status> {
        let open = self.meters.open(Class::Local).get();
        if open >= self.settings.limits.local as u64 {
            let message = format!("too many connections on the local socket ({open})");
            return Some(Status::new(Code::ResourceExhausted, message));
        }
        if self.settings.socket_group {
            return None;
        }
        let owner = rustix::process::geteuid();
        match rustix::net::sockopt::socket_peercred(socket) {
            Ok(peer) if peer.uid.is_root() || peer.uid == owner => None,
            Ok(peer) => {
                let message = format!(
                    "user {} may not use the local socket: it is for root and user {}",
                    peer.uid.as_raw(),
                    owner.as_raw()
                );
                Some(Status::new(Code::PermissionDenied, message).with_hint(
                    "run the command as root or as the owner of the daemon, or start the daemon with --socket-group",
                ))
            }
            Err(error) => Some(Status::new(
                Code::PermissionDenied,
                format!("cannot tell who connected to the local socket: {error}"),
            )),
        }
    }

    fn accept_http(&mut self, socket: TcpStream) {
        let deadline = self.now + self.settings.limits.handshake;
        let id = self.connections.insert(Entry::Http(Box::new(Exchange::new(socket, deadline))));
        self.meters.open(Class::Http).add(1);
        self.timers.insert((deadline, Timer::Connection(id)));
        self.exchanges.insert(id);
        let registry = self.inbox.poll.registry();
        let registered = match self.connections.http_mut(id) {
            Some(exchange) => {
                registry.register(&mut exchange.socket, token(id), Interest::READABLE | Interest::WRITABLE)
            }
            None => Ok(()),
        };
        if registered.is_err() {
            self.close_http(id);
        } else if self.exchanges.len() > self.settings.limits.http
            && let Some(oldest) = self.exchanges.first().copied()
        {
            self.meters.evicted.add(1);
            self.close_http(oldest);
        }
    }

    /// Reads and answers on an HTTP connection.
    pub(super) fn step_http(&mut self, id: ConnectionId) {
        let Some(exchange) = self.connections.http_mut(id) else { return };
        let parsed = match exchange.step(&mut self.raw) {
            Step::Wait => return,
            Step::Done => return self.close_http(id),
            Step::Answer(parsed) => parsed,
        };
        let (status, content_type, body) = match parsed {
            Parsed::Get(path) => self.handler.http(&path),
            Parsed::Refused(status) => {
                self.meters.malformed(Malformed::Http).add(1);
                (status, "text/plain", format!("{}\n", reason(status)))
            }
            Parsed::Incomplete => return,
        };
        let Some(exchange) = self.connections.http_mut(id) else { return };
        exchange.answer(status, content_type, &body);
        if exchange.step(&mut self.raw) == Step::Done {
            self.close_http(id);
        }
    }

    /// Ends an HTTP exchange, finished or not.
    pub(super) fn close_http(&mut self, id: ConnectionId) {
        if let Some(Entry::Http(exchange)) = self.connections.remove(id) {
            self.timers.remove(&(exchange.deadline, Timer::Connection(id)));
            self.exchanges.remove(&id);
            self.meters.open(Class::Http).sub(1);
        }
    }

    /// Takes a connection into the table and has its socket watched.
    pub(super) fn admit(&mut self, connection: Connection) -> Option<ConnectionId> {
        let (class, connecting) = (connection.class, connection.stage == Stage::Connecting);
        let id = self.connections.insert(Entry::Frames(Box::new(connection)));
        self.meters.open(class).add(1);
        let registry = self.inbox.poll.registry();
        let connection = self.connections.get_mut(id)?;
        connection.id = id;
        if let Err(error) = connection.link.register(registry, token(id), connecting) {
            log::error!("cannot watch a connection: {error}");
            self.close(id);
            return None;
        }
        Some(id)
    }

    /// Shows a connection under another class.
    pub(super) fn reclassify(&mut self, id: ConnectionId, class: Class) {
        if let Some(connection) = self.connections.get_mut(id) {
            self.meters.open(connection.class).sub(1);
            self.meters.open(class).add(1);
            connection.class = class;
        }
    }

    /// Warns of a peer's trouble, but not again and again of the same.
    pub(super) fn warn_of_peer(&mut self, peer: NodeId, message: &str, hint: &str) {
        let hint = if hint.is_empty() { String::new() } else { format!(" (hint: {hint})") };
        let known = self
            .warned
            .get(&peer)
            .is_some_and(|(when, last)| last == message && self.now.since(*when) < Duration::from_secs(60));
        if known {
            log::debug!("manager {peer}: {message}{hint}");
        } else {
            log::warn!("manager {peer}: {message}{hint}");
            self.warned.insert(peer, (self.now, message.to_owned()));
        }
    }
}

/// Sets what makes a connection quick and a dead one noticed. Where the system refuses, it works all the same.
pub(super) fn tune(socket: &TcpStream) {
    let _ = socket.set_nodelay(true);
    let socket = socket2::SockRef::from(socket);
    // Nodes that only ask now and then are not pinged; the kernel finds out when they are gone.
    let _ = socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(Duration::from_secs(60)));
    // The kernel would take megabytes of appends on a slow line, and no heartbeat can overtake what it has taken.
    let _ = socket.set_tcp_notsent_lowat(UNSENT);
}

enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
    Http(TcpStream),
}

/// Whom an address counts for: with IPv6 a /64, which is what one host gets.
fn source(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        ip => ip,
    }
}
