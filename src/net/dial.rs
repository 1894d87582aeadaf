//! Making connections: names to addresses, addresses to sockets, sockets to TLS.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use mio::Token;
use mio::event::Event;
use mio::net::TcpStream;
use rustls::ClientConnection;

use super::accept::tune;
use super::connection::{Connection, Dial, Entry, Purpose, Stage};
use super::handler::{ConnectionId, Handler, Reply};
use super::link::{Link, Socket};
use super::meters::Class;
use super::peers::{Effect, Failure};
use super::run::{Bell, Net};
use crate::pki;
use crate::sys::metrics::Gauge;
use crate::sys::{queue, thread};
use crate::types::NodeId;
use crate::types::error::{Code, Status};

/// Names that are looked up at a time. A lookup blocks its thread for as long as the system's resolver likes.
const LOOKUPS: usize = 16;

type Found = (String, io::Result<Vec<SocketAddr>>);

/// Looks names up on threads of their own, one for each name while it is asked for.
#[derive(Debug)]
pub(super) struct Resolver {
    bell: Arc<Bell>,
    results: queue::Receiver<Found>,
    sender: queue::Sender<Found>,
    /// Dials that wait for a name.
    waiting: BTreeMap<String, Vec<Dial>>,
    /// What each name last meant: used when there is no time to ask, or no answer.
    known: BTreeMap<String, Vec<SocketAddr>>,
}

impl Resolver {
    pub(super) fn new(bell: Arc<Bell>) -> Self {
        let (sender, results) = queue::bounded(LOOKUPS, Gauge::default());
        Self { bell, results, sender, waiting: BTreeMap::new(), known: BTreeMap::new() }
    }

    /// Whether a name was found, or not.
    pub(super) fn has_results(&self) -> bool {
        !self.results.is_empty()
    }

    /// Begins to look a dial's name up.
    fn look_up(&mut self, dial: Dial) -> Result<(), (Dial, io::Error)> {
        let name = dial.addr.clone();
        if let Some(others) = self.waiting.get_mut(&name) {
            others.push(dial);
            return Ok(());
        }
        if self.waiting.len() >= LOOKUPS {
            return Err((dial, io::Error::other("too many names are being looked up")));
        }
        let (bell, sender, asked) = (self.bell.clone(), self.sender.clone(), name.clone());
        let started = thread::spawn("resolve", move || {
            let found = asked.to_socket_addrs().map(Iterator::collect);
            // There is room for as many results as there are threads.
            let _ = sender.try_send((asked, found));
            bell.ring();
        });
        match started {
            Ok(_) => {
                self.waiting.insert(name, vec![dial]);
                Ok(())
            }
            Err(error) => Err((dial, error)),
        }
    }
}

impl<H: Handler> Net<H> {
    /// Carries out a decision of the peers' machine.
    pub(super) fn peer_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Dial { peer, attempt, addr, hurried } => {
                self.attempts.insert(attempt, None);
                self.dial(peer, addr, Purpose::Peer(attempt), hurried);
            }
            Effect::Abort(attempt) => {
                if let Some(Some(connection)) = self.attempts.remove(&attempt) {
                    self.close(connection);
                }
            }
            Effect::Close(connection) => self.close(connection),
            Effect::Connected(peer) => {
                log::info!("connected to manager {peer}");
                self.warned.remove(&peer);
                self.handler.connected(peer, &mut self.out);
            }
            Effect::Disconnected { peer, refused } => {
                let how = if refused { ": its address refuses connections" } else { "" };
                log::info!("lost manager {peer}{how}");
                self.handler.disconnected(peer, refused, &mut self.out);
            }
        }
    }

    /// Connects to `addr`, where `peer` must answer.
    pub(super) fn dial(&mut self, peer: NodeId, addr: String, purpose: Purpose, hurried: bool) {
        let mut dial = Dial { peer, purpose, addr, candidates: Vec::new() };
        if let Ok(literal) = dial.addr.parse() {
            dial.candidates.push(literal);
            return self.connect(dial);
        }
        if hurried && let Some(known) = self.resolver.known.get(&dial.addr) {
            dial.candidates.clone_from(known);
            return self.connect(dial);
        }
        if let Err((dial, error)) = self.resolver.look_up(dial) {
            self.dial_failed(&dial, Failure::Other, &format!("cannot look up {}: {error}", dial.addr), "");
        }
    }

    /// Goes on with dials whose names were looked up.
    pub(super) fn take_resolved(&mut self) {
        while let Some((name, found)) = self.resolver.results.try_recv() {
            let waiting = self.resolver.waiting.remove(&name).unwrap_or_default();
            let error = match found {
                Ok(addresses) if !addresses.is_empty() => {
                    self.resolver.known.insert(name.clone(), addresses);
                    String::new()
                }
                Ok(_) => "the name has no address".to_owned(),
                Err(error) => error.to_string(),
            };
            for mut dial in waiting {
                let is_wanted = match dial.purpose {
                    Purpose::Peer(attempt) => self.attempts.contains_key(&attempt),
                    Purpose::Call(token) => self.calls.contains_key(&token),
                };
                if !is_wanted {
                    continue;
                }
                match self.resolver.known.get(&name) {
                    Some(addresses) => {
                        dial.candidates.clone_from(addresses);
                        self.connect(dial);
                    }
                    None => {
                        let message = format!("cannot look up {name}: {error}");
                        self.dial_failed(&dial, Failure::Other, &message, "check the address with `skep members`");
                    }
                }
            }
            self.settle();
        }
    }

    /// Tries the next address of a dial.
    fn connect(&mut self, mut dial: Dial) {
        let mut failure = (Failure::Other, "no address is left to try".to_owned());
        while !dial.candidates.is_empty() {
            let addr = dial.candidates.remove(0);
            match self.begin(&dial, addr) {
                Ok(()) => return,
                Err(error) => failure = (kind(&error), error.to_string()),
            }
        }
        let message = format!("cannot connect to {}: {}", dial.addr, failure.1);
        self.dial_failed(&dial, failure.0, &message, "");
    }

    fn begin(&mut self, dial: &Dial, addr: SocketAddr) -> io::Result<()> {
        if self.connections.is_full() {
            return Err(io::Error::other("too many connections are open"));
        }
        let Some(credentials) = &self.settings.credentials else {
            return Err(io::Error::other("this node has no certificate yet"));
        };
        let socket = TcpStream::connect(addr)?;
        let name = pki::tls::server_name(dial.peer);
        let tls = ClientConnection::new(credentials.client(), name).map_err(io::Error::other)?;
        let link = Link::new(Socket::Tcp(socket), Some(tls.into()));
        let mut connection = Connection::new(link, Stage::Connecting, Class::Handshaking, Some(dial.clone()));
        connection.addr = addr.to_string();
        let id = self.admit(connection).ok_or_else(|| io::Error::other("the socket cannot be watched"))?;
        if let Purpose::Peer(attempt) = dial.purpose {
            self.attempts.insert(attempt, Some(id));
        }
        self.set_deadline(id, Some(self.now + self.settings.limits.handshake));
        Ok(())
    }

    /// A dial came to nothing.
    pub(super) fn dial_failed(&mut self, dial: &Dial, failure: Failure, message: &str, hint: &str) {
        self.meters.failed_dials.add(1);
        log::debug!("dialling manager {}: {message}", dial.peer);
        match dial.purpose {
            Purpose::Peer(attempt) => {
                self.attempts.remove(&attempt);
                self.peers.dial_failed(self.now, dial.peer, attempt, failure, &mut self.effects);
            }
            Purpose::Call(token) => {
                let status = Status::new(Code::Unavailable, message).with_hint(hint);
                self.fail_call(token, Reply::Refused(status));
            }
        }
    }

    /// Something happened at a socket.
    pub(super) fn socket_event(&mut self, token: Token, event: &Event) {
        let Some(id) = self.connections.by_token(token) else { return };
        let Some(connection) = self.connections.get_mut(id) else {
            self.step_http(id);
            return self.settle();
        };
        if connection.stage == Stage::Connecting {
            self.check_connect(id);
            return self.settle();
        }
        let ends = event.is_read_closed() || event.is_error();
        connection.eager |= ends;
        if (event.is_readable() || ends) && !connection.readable {
            connection.readable = true;
            self.ready.push(id);
        }
        if event.is_writable() {
            self.mark_dirty(id);
        }
    }

    /// Whether a connection that is being made is made by now.
    fn check_connect(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let Socket::Tcp(socket) = connection.link.socket() else { return };
        let error = match socket.take_error() {
            Ok(None) => match socket.peer_addr() {
                Ok(_) => {
                    tune(socket);
                    connection.stage = Stage::Handshaking;
                    return self.mark_dirty(id);
                }
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return,
                Err(error) => error,
            },
            Ok(Some(error)) | Err(error) => error,
        };
        let Some(dial) = connection.dial.take() else { return };
        let class = connection.class;
        self.set_deadline(id, None);
        if let Some(Entry::Frames(mut connection)) = self.connections.remove(id) {
            connection.link.deregister(self.inbox.poll.registry());
            self.meters.open(class).sub(1);
        }
        if dial.candidates.is_empty() {
            let message = format!("cannot connect to {}: {error}", dial.addr);
            self.dial_failed(&dial, kind(&error), &message, "");
        } else {
            self.connect(dial);
        }
    }
}

fn kind(error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::ConnectionRefused { Failure::Refused } else { Failure::Other }
}
