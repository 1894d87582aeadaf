//! What the loop knows of one connection, and the table of all of them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use mio::Token;

use super::handler::ConnectionId;
use super::http::Exchange;
use super::link::Link;
use super::meters::Class;
use crate::codec::frame::INITIAL_CREDIT;
use crate::sys::time::Instant;
use crate::types::limits::{MAX_FRAME_BYTES, MAX_UNAUTHENTICATED_FRAME_BYTES};
use crate::types::{Caller, NodeId};

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// TCP is being set up.
    Connecting,
    /// TLS is being set up.
    Handshaking,
    /// A manager's hello is awaited, and nothing else is heard.
    Greeting,
    /// Requests and answers flow.
    Open,
    /// The last frames leave; what arrives is forgotten.
    Closing,
}

/// What a dialled connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be kept; the attempt's number.
    Peer(u64),
    /// For the one call with this token.
    Call(u64),
}

/// A dialled connection, or one that is being made.
#[derive(Clone, Debug)]
pub(super) struct Dial {
    /// Who must answer.
    pub peer: NodeId,
    /// What for.
    pub purpose: Purpose,
    /// `host:port` as it was given.
    pub addr: String,
    /// Addresses not tried yet.
    pub candidates: Vec<SocketAddr>,
}

/// A request of the other side that is not answered yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    /// What the caller still takes; `None` when the answer is a single frame.
    pub credit: Option<u32>,
}

/// A connection that speaks frames.
#[derive(Debug)]
pub(super) struct Connection {
    pub id: ConnectionId,
    pub link: Link,
    pub stage: Stage,
    pub class: Class,
    /// Who is at the other end; known once TLS is set up.
    pub caller: Option<Caller>,
    /// The other end's `host:port`; empty on the local socket.
    pub addr: String,
    /// For the limit per source, of accepted connections.
    pub source: Option<IpAddr>,
    /// Set on connections that this side made.
    pub dial: Option<Dial>,
    /// The other side proved who it is: its limits are those of a member.
    pub authenticated: bool,
    /// Both hellos were accepted and either side may send what it likes.
    pub is_peer_link: bool,
    /// Requests of the other side.
    pub incoming: HashMap<u32, Open>,
    /// Tokens of our calls, by stream.
    pub outgoing: HashMap<u32, u64>,
    /// The number of the stream that our next call opens, if it is free.
    pub next_stream: u32,
    /// When the loop looks at it again, whatever happens.
    pub deadline: Option<Instant>,
    /// Pings sent since anything arrived.
    pub missed: u32,
    /// When the first ping was sent; a pong that claims an older one is made up.
    pub first_ping_ns: Option<u64>,
    /// It is in the list of those to be flushed.
    pub dirty: bool,
    /// It is in the list of those to be read.
    pub readable: bool,
    /// Its other side may have ended it: it is read until it says so, not only until a read comes back short.
    pub eager: bool,
    /// Writing failed: what can still be read may say why, then it is closed.
    pub doomed: bool,
    /// When the other side's certificate ends, milliseconds since 1970.
    pub expires_ms: u64,
    /// All output has left and the socket's sending side is shut.
    pub output_ended: bool,
}

impl Connection {
    pub(super) fn new(link: Link, stage: Stage, class: Class, dial: Option<Dial>) -> Self {
        Self {
            id: ConnectionId(0),
            link,
            stage,
            class,
            caller: None,
            addr: String::new(),
            source: None,
            next_stream: if dial.is_some() { 1 } else { 2 },
            dial,
            authenticated: false,
            is_peer_link: false,
            incoming: HashMap::new(),
            outgoing: HashMap::new(),
            deadline: None,
            missed: 0,
            first_ping_ns: None,
            dirty: false,
            readable: false,
            eager: false,
            doomed: false,
            expires_ms: u64::MAX,
            output_ended: false,
        }
    }

    /// The node at the other end, if it has proved to be one.
    pub(super) fn node(&self) -> Option<NodeId> {
        self.caller.as_ref().and_then(Caller::node_id)
    }

    /// The longest frame body that the other side may send now.
    pub(super) const fn frame_limit(&self) -> usize {
        if self.authenticated { MAX_FRAME_BYTES } else { MAX_UNAUTHENTICATED_FRAME_BYTES }
    }

    /// The other side is a peer although its certificate had expired when the connection was made.
    pub(super) const fn is_lent(&self) -> bool {
        matches!(self.caller, Some(Caller::Node { expired: true, .. }))
    }

    /// Whether the other side may open this stream: its own parity, and not open already.
    pub(super) fn may_open(&self, stream: u32) -> bool {
        let parity = if self.dial.is_some() { 0 } else { 1 };
        stream != 0 && stream % 2 == parity && !self.incoming.contains_key(&stream)
    }

    /// Takes a number for a stream of ours.
    pub(super) fn open_stream(&mut self, token: u64) -> u32 {
        loop {
            let stream = self.next_stream;
            self.next_stream = stream.wrapping_add(2);
            // Numbers come round after 2^31 calls; an old watch may still hold one.
            if stream != 0 && !self.outgoing.contains_key(&stream) {
                self.outgoing.insert(stream, token);
                return stream;
            }
        }
    }
}

impl Open {
    pub(super) const fn new(is_stream: bool) -> Self {
        Self { credit: if is_stream { Some(INITIAL_CREDIT) } else { None } }
    }
}

/// Something with a socket.
#[derive(Debug)]
pub(super) enum Entry {
    Frames(Box<Connection>),
    Http(Box<Exchange>),
}

/// Bits of a [`ConnectionId`] that say where in the table it is; the rest is a sequence number, so that ids are never
/// used again and are in order of age.
const SLOT_BITS: u32 = 16;

/// Every connection, by id and by the event loop's token.
#[derive(Debug, Default)]
pub(super) struct Connections {
    slots: Vec<Option<(ConnectionId, Entry)>>,
    free: Vec<usize>,
    sequence: u64,
}

impl Connections {
    /// Whether there is no room.
    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() >= 1 << SLOT_BITS
    }

    /// Takes in a connection; it must not be full.
    pub(super) fn insert(&mut self, entry: Entry) -> ConnectionId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.sequence += 1;
        let id = ConnectionId(self.sequence << SLOT_BITS | slot as u64);
        self.slots[slot] = Some((id, entry));
        id
    }

    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<Entry> {
        let slot = slot(id);
        let place = self.slots.get_mut(slot)?;
        if place.as_ref().is_none_or(|(found, _)| *found != id) {
            return None;
        }
        self.free.push(slot);
        place.take().map(|(_, entry)| entry)
    }

    /// A connection that speaks frames.
    pub(super) fn get(&self, id: ConnectionId) -> Option<&Connection> {
        match self.slots.get(slot(id))? {
            Some((found, Entry::Frames(connection))) if *found == id => Some(connection),
            _ => None,
        }
    }

    /// A connection that speaks frames.
    pub(super) fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        match self.slots.get_mut(slot(id))? {
            Some((found, Entry::Frames(connection))) if *found == id => Some(connection),
            _ => None,
        }
    }

    /// A connection that speaks HTTP.
    pub(super) fn http_mut(&mut self, id: ConnectionId) -> Option<&mut Exchange> {
        match self.slots.get_mut(slot(id))? {
            Some((found, Entry::Http(exchange))) if *found == id => Some(exchange),
            _ => None,
        }
    }

    /// Whose token an event carries.
    pub(super) fn by_token(&self, token: Token) -> Option<ConnectionId> {
        self.slots.get(token.0)?.as_ref().map(|(id, _)| *id)
    }

    /// Connections that speak frames, oldest first within nothing in particular.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.slots.iter().flatten().filter_map(|(_, entry)| match entry {
            Entry::Frames(connection) => Some(&**connection),
            Entry::Http(_) => None,
        })
    }
}

const fn slot(id: ConnectionId) -> usize {
    (id.0 & ((1 << SLOT_BITS) - 1)) as usize
}

/// The event loop's token of a connection.
pub(super) const fn token(id: ConnectionId) -> Token {
    Token(slot(id))
}
