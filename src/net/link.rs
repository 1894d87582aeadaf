//! One socket with what lies between it and frames: TLS, the parser, the lanes.

use std::io::{self, IoSlice, Read, Write};

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};

use super::wire::{Lanes, Parser};

/// Bytes read from a socket with one system call.
pub(super) const READ: usize = 64 << 10;
/// Plain bytes that one such read can amount to: what TLS held back of a record may come on top.
pub(super) const PLAIN: usize = READ + (32 << 10);
/// Bytes handed to a socket at once. What is urgent waits behind at most so much, and behind one frame.
const WRITE: usize = 128 << 10;
/// A buffer for writing keeps no more than this when it has been emptied.
const KEEP: usize = 1 << 20;

/// A connected stream socket.
#[derive(Debug)]
pub(super) enum Socket {
    /// From or to another machine.
    Tcp(TcpStream),
    /// From this machine.
    Unix(UnixStream),
}

/// Why a link is of no use any more.
#[derive(Debug)]
pub(super) enum Broken {
    /// The socket failed.
    Socket(io::Error),
    /// TLS failed, or the other side sent an alert.
    Tls(rustls::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Socket(error)
    }
}

/// What one read brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Received {
    /// Bytes from the socket.
    pub raw: usize,
    /// Plain bytes now in the buffer.
    pub plain: usize,
    /// Nothing more is to be read until the socket says so.
    pub drained: bool,
    /// The other side sends no more.
    pub ended: bool,
}

/// What a flush did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    /// Bytes to the socket.
    pub raw: usize,
    /// Frames taken from the lanes.
    pub frames: u64,
    /// System calls.
    pub calls: u64,
    /// The socket takes no more for now.
    pub blocked: bool,
}

/// A socket, its TLS state if it has any, and frames on their way in and out.
#[derive(Debug)]
pub(super) struct Link {
    socket: Socket,
    tls: Option<Box<rustls::Connection>>,
    /// Frames that arrive.
    pub parser: Parser,
    /// Frames that wait to be sent.
    pub lanes: Lanes,
    /// Plain bytes that the socket did not take, and how many of them it took since. TLS keeps its own.
    unsent: Vec<u8>,
    unsent_start: usize,
    /// The loop is told when the socket takes more.
    waits_for_room: bool,
}

impl Link {
    pub(super) fn new(socket: Socket, tls: Option<rustls::Connection>) -> Self {
        Self {
            socket,
            tls: tls.map(|mut tls| {
                // What goes in is bounded by `flush`, which hands over no more while something waits.
                tls.set_buffer_limit(None);
                Box::new(tls)
            }),
            parser: Parser::default(),
            lanes: Lanes::default(),
            unsent: Vec::new(),
            unsent_start: 0,
            waits_for_room: false,
        }
    }

    pub(super) const fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The TLS state; `None` on the local socket.
    pub(super) fn tls(&self) -> Option<&rustls::Connection> {
        self.tls.as_deref()
    }

    /// Whether frames cannot flow yet.
    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// Whether something waits to be sent.
    pub(super) fn has_output(&self) -> bool {
        !self.lanes.is_empty() || !self.unsent.is_empty() || self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Asks to be told when the socket is readable, and writable if `room` is wanted: a unix socket reports room after
    /// every read of the other side, so that asking always would double the wake-ups.
    pub(super) fn register(&mut self, registry: &Registry, token: Token, room: bool) -> io::Result<()> {
        self.waits_for_room = room;
        let interest = if room { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        registry.register(&mut self.socket, token, interest)
    }

    /// Adjusts what [`Link::register`] asked for.
    pub(super) fn want_room(&mut self, registry: &Registry, token: Token, room: bool) -> io::Result<()> {
        if room == self.waits_for_room {
            return Ok(());
        }
        self.waits_for_room = room;
        let interest = if room { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        registry.reregister(&mut self.socket, token, interest)
    }

    /// Reads once from the socket; plain bytes land in `plain`, which must have room for [`PLAIN`].
    pub(super) fn read(&mut self, raw: &mut [u8], plain: &mut [u8]) -> Result<Received, Broken> {
        let Some(tls) = self.tls.as_mut() else {
            let Some(length) = read_some(&mut self.socket, &mut plain[..READ])? else {
                return Ok(Received { drained: true, ..Received::default() });
            };
            return Ok(Received { raw: length, plain: length, drained: length < READ, ended: length == 0 });
        };
        let Some(length) = read_some(&mut self.socket, &mut raw[..READ])? else {
            return Ok(Received { drained: true, ..Received::default() });
        };
        let mut received = Received { raw: length, plain: 0, drained: length < READ, ended: length == 0 };
        let mut input = &raw[..length];
        while !input.is_empty() && !received.ended {
            received.ended = tls.read_tls(&mut input)? == 0;
            match tls.process_new_packets() {
                Ok(state) => received.ended |= state.peer_has_closed(),
                Err(error) => {
                    // The alert that tells the other side why.
                    let _ = tls.write_tls(&mut self.socket);
                    return Err(Broken::Tls(error));
                }
            }
            while received.plain < plain.len() {
                match tls.reader().read(&mut plain[received.plain..]) {
                    Ok(0) => break,
                    Ok(length) => received.plain += length,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(received)
    }

    /// Reads and forgets what has arrived; true once the other side sends no more.
    pub(super) fn discard(&mut self, raw: &mut [u8]) -> bool {
        // A bound, so that somebody who sends without end keeps nobody busy; the rest waits for the deadline.
        for _ in 0..16 {
            match read_some(&mut self.socket, raw) {
                Ok(Some(0)) | Err(_) => return true,
                Ok(Some(_)) => {}
                Ok(None) => return false,
            }
        }
        false
    }

    /// Sends as much as the socket takes.
    pub(super) fn flush(&mut self, staging: &mut Vec<u8>) -> io::Result<Sent> {
        let mut sent = Sent::default();
        let result =
            if self.tls.is_some() { self.flush_tls(staging, &mut sent) } else { self.flush_plain(staging, &mut sent) };
        staging.clear();
        if staging.capacity() > KEEP {
            staging.shrink_to(KEEP);
        }
        result.map(|()| sent)
    }

    fn flush_plain(&mut self, staging: &mut Vec<u8>, sent: &mut Sent) -> io::Result<()> {
        loop {
            while self.unsent_start < self.unsent.len() {
                sent.calls += 1;
                match write_some(&mut self.socket, &self.unsent[self.unsent_start..])? {
                    Some(length) => {
                        self.unsent_start += length;
                        sent.raw += length;
                    }
                    None => {
                        sent.blocked = true;
                        return Ok(());
                    }
                }
            }
            // Idle connections hold no memory for writing.
            (self.unsent, self.unsent_start) = (Vec::new(), 0);
            staging.clear();
            sent.frames += self.lanes.fill(staging, WRITE);
            if staging.is_empty() {
                return Ok(());
            }
            let length = write_some(&mut self.socket, staging)?.unwrap_or(0);
            sent.calls += 1;
            sent.raw += length;
            self.unsent.extend_from_slice(&staging[length..]);
        }
    }

    fn flush_tls(&mut self, staging: &mut Vec<u8>, sent: &mut Sent) -> io::Result<()> {
        let Some(tls) = self.tls.as_mut() else { return Ok(()) };
        loop {
            while tls.wants_write() {
                sent.calls += 1;
                match tls.write_tls(&mut self.socket) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(length) => sent.raw += length,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        sent.blocked = true;
                        return Ok(());
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            if tls.is_handshaking() {
                return Ok(());
            }
            staging.clear();
            sent.frames += self.lanes.fill(staging, WRITE);
            if staging.is_empty() {
                return Ok(());
            }
            // One call for many frames: few records, few seals.
            tls.writer().write_all(staging)?;
        }
    }

    /// Tells the other side that nothing follows, and sends no more after what waits. Output that does not fit is lost.
    pub(super) fn end_output(&mut self, staging: &mut Vec<u8>) {
        if let Some(tls) = self.tls.as_mut() {
            tls.send_close_notify();
        }
        let _ = self.flush(staging);
        let _ = match &self.socket {
            Socket::Tcp(socket) => socket.shutdown(std::net::Shutdown::Write),
            Socket::Unix(socket) => socket.shutdown(std::net::Shutdown::Write),
        };
    }

    /// Stops watching the socket.
    pub(super) fn deregister(&mut self, registry: &Registry) {
        // Closing the socket does the same; nothing is lost when this fails.
        let _ = registry.deregister(&mut self.socket);
    }
}

/// Reads; `None` when nothing is there.
fn read_some(socket: &mut Socket, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match socket.read(buffer) {
            Ok(length) => return Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Writes; `None` when there is no room.
fn write_some(socket: &mut Socket, bytes: &[u8]) -> io::Result<Option<usize>> {
    loop {
        match socket.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => return Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read(buffer),
            Self::Unix(socket) => socket.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write(bytes),
            Self::Unix(socket) => socket.write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write_vectored(slices),
            Self::Unix(socket) => socket.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Source for Socket {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.register(registry, token, interests),
            Self::Unix(socket) => socket.register(registry, token, interests),
        }
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.reregister(registry, token, interests),
            Self::Unix(socket) => socket.reregister(registry, token, interests),
        }
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.deregister(registry),
            Self::Unix(socket) => socket.deregister(registry),
        }
    }
}
