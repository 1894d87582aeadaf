//! One client of the benchmark: a socket that is never waited for.

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use mio::net::UnixStream;
use mio::{Interest, Registry, Token};

use crate::client::connect_unix;
use crate::codec::frame::{self, FrameKind, HEADER, Header};
use crate::types::limits::MAX_FRAME_BYTES;

/// Frames in and out of one non-blocking socket.
pub struct Connection {
    socket: UnixStream,
    token: Token,
    received: Vec<u8>,
    unsent: Vec<u8>,
    /// Whether the loop was asked to tell when the socket takes bytes again.
    waits_to_write: bool,
    next_stream: u32,
}

impl Connection {
    /// Connects and registers for readability.
    pub fn open(path: &Path, timeout: Duration, registry: &Registry, token: Token) -> io::Result<Self> {
        let socket = connect_unix(path, timeout)?;
        socket.set_nonblocking(true)?;
        let mut socket = UnixStream::from_std(socket);
        registry.register(&mut socket, token, Interest::READABLE)?;
        let (received, unsent) = (Vec::new(), Vec::new());
        Ok(Self { socket, token, received, unsent, waits_to_write: false, next_stream: 1 })
    }

    /// Opens a stream with a request and gives its number.
    pub fn request(&mut self, registry: &Registry, body: &[u8]) -> io::Result<u32> {
        let stream = self.next_stream;
        self.next_stream = stream.checked_add(2).unwrap_or(1);
        self.send(registry, FrameKind::Request, stream, body)?;
        Ok(stream)
    }

    /// Sends a frame as far as the socket takes it.
    pub fn send(&mut self, registry: &Registry, kind: FrameKind, stream: u32, body: &[u8]) -> io::Result<()> {
        frame::write(&mut self.unsent, kind, 0, stream, body);
        self.flush(registry)
    }

    /// Sends what is left.
    pub fn flush(&mut self, registry: &Registry) -> io::Result<()> {
        let mut sent = 0;
        let blocked = loop {
            if sent == self.unsent.len() {
                break false;
            }
            match self.socket.write(&self.unsent[sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break true,
                Err(error) => return Err(error),
            }
        };
        self.unsent.drain(..sent);
        if blocked != self.waits_to_write {
            self.waits_to_write = blocked;
            let interest = if blocked { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            registry.reregister(&mut self.socket, self.token, interest)?;
        }
        Ok(())
    }

    /// Reads all that is there, by way of `chunk`.
    pub fn fill(&mut self, chunk: &mut [u8]) -> io::Result<()> {
        loop {
            match self.socket.read(chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.received.extend_from_slice(&chunk[..count]);
                    if count < chunk.len() {
                        // That was all; what comes later is an event of its own.
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// The frames that have arrived whole.
    pub fn frames(&mut self) -> io::Result<Vec<(Header, Vec<u8>)>> {
        let mut frames = Vec::new();
        let mut start = 0;
        while let Some(bytes) = self.received[start..].first_chunk::<HEADER>() {
            let header = Header::decode(bytes, MAX_FRAME_BYTES).map_err(io::Error::other)?;
            let end = start + HEADER + header.length as usize;
            let Some(body) = self.received.get(start + HEADER..end) else { break };
            frames.push((header, body.to_vec()));
            start = end;
        }
        self.received.drain(..start);
        Ok(frames)
    }
}
