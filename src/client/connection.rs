//! Frames over a socket, with deadlines.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::local::connect_unix;
use super::{ClientError, TlsTarget};
use crate::codec::frame::{self, FrameKind, HEADER, Header};
use crate::codec::request::Ping;
use crate::pki;
use crate::sys::time::{Instant, monotonic, wall_ms};
use crate::types::limits::MAX_FRAME_BYTES;
use crate::types::{Code, Status};

/// One connection: frames in, frames out. Answers pings by itself.
pub struct Connection {
    transport: Box<dyn Transport>,
    /// Whom it reaches, for messages.
    peer: String,
    /// Bytes read and not yet consumed.
    received: Vec<u8>,
    /// The next stream; the side that dialled uses odd numbers.
    next_stream: u32,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// A byte stream whose waits can be bounded.
trait Transport: Read + Write + Send {
    fn set_timeouts(&self, timeout: Option<Duration>) -> io::Result<()>;
}

impl Transport for UnixStream {
    fn set_timeouts(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(timeout)?;
        self.set_write_timeout(timeout)
    }
}

impl Transport for rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    fn set_timeouts(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.sock.set_read_timeout(timeout)?;
        self.sock.set_write_timeout(timeout)
    }
}

impl Connection {
    /// To the control socket at `path`.
    pub(super) fn local(path: &Path, deadline: Instant) -> Result<Self, ClientError> {
        let stream = connect_unix(path, deadline.since(monotonic())).map_err(|error| cannot_reach(path, &error))?;
        Ok(Self::over(Box::new(stream), format!("the manager at {}", path.display())))
    }

    /// Over TLS. The handshake is complete when this returns.
    pub(super) fn tls(target: &TlsTarget, deadline: Instant) -> Result<Self, ClientError> {
        let socket = dial(&target.addr, deadline)?;
        let session = rustls::ClientConnection::new(target.config.clone(), target.server_name.clone())
            .map_err(|error| ClientError::Unreachable(Status::new(Code::Internal, error.to_string())))?;
        let mut stream = rustls::StreamOwned::new(session, socket);
        while stream.conn.is_handshaking() {
            let remaining = deadline.since(monotonic());
            if remaining.is_zero() {
                return Err(ClientError::Unreachable(silent(&target.addr)));
            }
            stream
                .set_timeouts(Some(remaining))
                .and_then(|()| stream.conn.complete_io(&mut stream.sock))
                .map_err(|error| handshake_failed(&target.addr, &error))?;
        }
        pki::check_protocol(stream.conn.alpn_protocol())
            .map_err(|error| ClientError::Unreachable(prefixed(&target.addr, error.into())))?;
        Ok(Self::over(Box::new(stream), target.addr.clone()))
    }

    fn over(transport: Box<dyn Transport>, peer: String) -> Self {
        Self { transport, peer, received: Vec::new(), next_stream: 1 }
    }

    /// Whom it reaches, for messages.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Sends a request on a new stream and gives its number.
    pub fn open(&mut self, request: &[u8], deadline: Instant) -> Result<u32, ClientError> {
        let stream = self.next_stream;
        self.next_stream = stream.checked_add(2).unwrap_or(1);
        self.send(FrameKind::Request, stream, request, deadline)?;
        Ok(stream)
    }

    /// Sends a frame.
    pub fn send(&mut self, kind: FrameKind, stream: u32, body: &[u8], deadline: Instant) -> Result<(), ClientError> {
        if body.len() > MAX_FRAME_BYTES {
            let message = format!("the request has {} bytes; the limit is {MAX_FRAME_BYTES}", body.len());
            return Err(ClientError::Refused(Status::new(Code::InvalidArgument, message)));
        }
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        // A hello with this flag means calls of mine only: no link between managers, which would carry Raft messages.
        let flags = if kind == FrameKind::Hello { frame::END } else { 0 };
        frame::write(&mut bytes, kind, flags, stream, body);
        let remaining = deadline.since(monotonic()).max(SHORTEST_WAIT);
        self.transport
            .set_timeouts(Some(remaining))
            .and_then(|()| self.transport.write_all(&bytes))
            .and_then(|()| self.transport.flush())
            .map_err(|error| self.lost(&error))
    }

    /// The next frame that is not a ping; waits for ever without a deadline. When the deadline passes nothing is lost:
    /// the rest of a frame that has begun is read by the next call.
    pub fn receive(&mut self, deadline: Option<Instant>) -> Result<(Header, Vec<u8>), ClientError> {
        loop {
            let Some((header, body)) = self.take_frame()? else {
                self.fill(deadline)?;
                continue;
            };
            match header.kind {
                FrameKind::Ping => self.answer_ping(&body)?,
                // On stream 0 an error is the reason why the manager ends the connection.
                FrameKind::Error if header.stream == 0 => return Err(ClientError::refusal(&body)),
                _ => return Ok((header, body)),
            }
        }
    }

    /// A whole frame, if one has arrived.
    fn take_frame(&mut self) -> Result<Option<(Header, Vec<u8>)>, ClientError> {
        let Some(bytes) = self.received.first_chunk::<HEADER>() else { return Ok(None) };
        let header = Header::decode(bytes, MAX_FRAME_BYTES).map_err(ClientError::undecodable)?;
        let end = HEADER + header.length as usize;
        if self.received.len() < end {
            return Ok(None);
        }
        let body = self.received[HEADER..end].to_vec();
        self.received.drain(..end);
        Ok(Some((header, body)))
    }

    /// Reads once.
    fn fill(&mut self, deadline: Option<Instant>) -> Result<(), ClientError> {
        let timeout = match deadline {
            Some(deadline) => {
                let remaining = deadline.since(monotonic());
                if remaining.is_zero() {
                    return Err(ClientError::Lost(silent(&self.peer)));
                }
                Some(remaining.max(SHORTEST_WAIT))
            }
            None => None,
        };
        let mut chunk = [0; 16 << 10];
        match self.transport.set_timeouts(timeout).and_then(|()| self.transport.read(&mut chunk)) {
            Ok(0) => Err(self.lost(&io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => {
                self.received.extend_from_slice(&chunk[..count]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(self.lost(&error)),
        }
    }

    fn answer_ping(&mut self, body: &[u8]) -> Result<(), ClientError> {
        let ping = Ping::decode(body).map_err(ClientError::undecodable)?;
        let pong = Ping { sent_ns: ping.sent_ns, wall_ms: wall_ms(), ..Ping::default() };
        self.send(FrameKind::Pong, 0, &pong.encode(), monotonic() + PONG_TIMEOUT)
    }

    fn lost(&self, error: &io::Error) -> ClientError {
        // In TLS 1.3 a client learns only when it reads that its certificate was refused.
        if let Some(status) = tls_status(&self.peer, error) {
            return ClientError::Refused(status);
        }
        ClientError::Lost(match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => silent(&self.peer),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                Status::new(Code::Unavailable, format!("{} closed the connection before it answered", self.peer))
                    .with_hint("see whether it still runs: `skep status`")
            }
            _ => Status::new(Code::Unavailable, format!("the connection to {} broke: {error}", self.peer)),
        })
    }
}

/// The status of a wait that ended without an answer.
fn silent(peer: &str) -> Status {
    Status::new(Code::DeadlineExceeded, format!("{peer} did not answer in time"))
        .with_hint("wait longer with --timeout, or ask another manager")
}

fn cannot_reach(path: &Path, error: &io::Error) -> ClientError {
    let shown = path.display();
    let status = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory => {
            Status::new(Code::Unavailable, format!("no manager answers at {shown}: is it running?"))
                .with_hint("start one with `skep run`, or name the socket of a running one with --socket")
        }
        io::ErrorKind::PermissionDenied => {
            Status::new(Code::PermissionDenied, format!("the control socket {shown} admits root and its owner only"))
                .with_hint(
                    "run the command as that user or with sudo, or name the socket of your own manager with --socket",
                )
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => silent(&format!("the manager at {shown}")),
        io::ErrorKind::InvalidInput => {
            Status::new(Code::InvalidArgument, format!("the socket path {shown} cannot be used: {error}"))
                .with_hint("run the manager with a short path, such as `skep run --socket /run/skep.sock`")
        }
        _ => Status::new(Code::Internal, format!("cannot open the control socket {shown}: {error}")),
    };
    ClientError::Unreachable(status)
}

fn dial(addr: &str, deadline: Instant) -> Result<TcpStream, ClientError> {
    let resolved: Vec<_> = addr
        .to_socket_addrs()
        .map_err(|error| {
            let code = match error.kind() {
                io::ErrorKind::InvalidInput => Code::InvalidArgument,
                _ => Code::Unavailable,
            };
            ClientError::Unreachable(
                Status::new(code, format!("{addr} is not an address: {error}"))
                    .with_hint("an address is HOST:PORT, such as 10.0.0.7:4242"),
            )
        })?
        .collect();
    let mut last = io::Error::other("the name has no address");
    for address in resolved {
        let remaining = deadline.since(monotonic());
        if remaining.is_zero() {
            return Err(ClientError::Unreachable(silent(addr)));
        }
        match TcpStream::connect_timeout(&address, remaining) {
            Ok(stream) => {
                stream.set_nodelay(true).map_err(|error| handshake_failed(addr, &error))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    let status = match last.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => silent(addr),
        _ => Status::new(Code::Unavailable, format!("cannot reach {addr}: {last}"))
            .with_hint("check that a manager listens there and that no firewall is between"),
    };
    Err(ClientError::Unreachable(status))
}

fn handshake_failed(addr: &str, error: &io::Error) -> ClientError {
    if let Some(status) = tls_status(addr, error) {
        return ClientError::Unreachable(status);
    }
    let status = match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => silent(addr),
        _ => Status::new(Code::Unavailable, format!("the connection to {addr} broke during the handshake: {error}"))
            .with_hint("check that the port is a skep manager's"),
    };
    ClientError::Unreachable(status)
}

/// A refusal by TLS, in words: trying again changes nothing.
fn tls_status(peer: &str, error: &io::Error) -> Option<Status> {
    let refusal: &rustls::Error = error.get_ref()?.downcast_ref()?;
    let (mut message, hint) = pki::explain(refusal);
    if pki::concerns_time(refusal)
        && let Some(words) = clock_of(peer)
    {
        message.push_str("; ");
        message.push_str(&words);
    }
    Some(prefixed(peer, Status::new(Code::Unauthenticated, message).with_hint(hint)))
}

/// How far apart the clocks are, in words. Everybody may ask a manager for the time: nobody's word is believed for it, it
/// only helps a person to see which clock is wrong.
fn clock_of(addr: &str) -> Option<String> {
    let config = pki::client_config(None, pki::Trust::Anything).ok()?;
    let target =
        TlsTarget { addr: addr.to_owned(), server_name: pki::manager_name(), config, expected: None, hello: None };
    let mut client = super::Client::tls(target, CLOCK_TIMEOUT).ok()?;
    let offset_ms = client.clock_offset_ms(CLOCK_TIMEOUT).ok()?;
    Some(pki::clock_words("its clock", offset_ms))
}

fn prefixed(peer: &str, mut status: Status) -> Status {
    status.message = format!("{peer}: {}", status.message);
    status
}

/// A pong that cannot be written in this time means that the manager does not read.
const PONG_TIMEOUT: Duration = Duration::from_secs(5);
/// What a clock says is worth no longer a wait.
const CLOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// A timeout of zero would mean none.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
