//! One HTTP exchange: a GET in, an answer out, and the connection ends.
//!
//! For probes and scrapers only: no bodies, no keep-alive, no TLS.

use std::io::{self, Read, Write};

use mio::net::TcpStream;

use crate::sys::time::Instant;

/// A request head is no longer than this.
const HEAD: usize = 8 << 10;
/// Header lines in it.
const LINES: usize = 64;

/// What a request amounts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// More must arrive.
    Incomplete,
    /// A GET of this path, without its query.
    Get(String),
    /// Anything else, with the status that answers it.
    Refused(u16),
}

/// One exchange.
#[derive(Debug)]
pub(super) struct Exchange {
    pub socket: TcpStream,
    pub deadline: Instant,
    head: Vec<u8>,
    answer: Vec<u8>,
    sent: usize,
}

/// What became of an exchange when its socket was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing to do until the socket or the deadline says so.
    Wait,
    /// The request is complete and wants [`Exchange::answer`].
    Answer(Parsed),
    /// It is over.
    Done,
}

impl Exchange {
    pub(super) const fn new(socket: TcpStream, deadline: Instant) -> Self {
        Self { socket, deadline, head: Vec::new(), answer: Vec::new(), sent: 0 }
    }

    /// Reads what has arrived, writes what there is.
    pub(super) fn step(&mut self, buffer: &mut [u8]) -> Step {
        self.try_step(buffer).unwrap_or(Step::Done)
    }

    fn try_step(&mut self, buffer: &mut [u8]) -> io::Result<Step> {
        if !self.answer.is_empty() {
            return self.send(buffer);
        }
        loop {
            match self.socket.read(buffer) {
                Ok(0) => return Ok(Step::Done),
                Ok(length) => self.head.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Step::Wait),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            match parse(&self.head) {
                Parsed::Incomplete => {}
                parsed => return Ok(Step::Answer(parsed)),
            }
        }
    }

    /// Sets the answer; [`Exchange::step`] sends it.
    pub(super) fn answer(&mut self, status: u16, content_type: &str, body: &str) {
        let allow = if status == 405 { "Allow: GET\r\n" } else { "" };
        self.answer = format!(
            "HTTP/1.1 {status} {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n{body}",
            reason(status),
            body.len(),
        )
        .into_bytes();
        self.head = Vec::new();
    }

    fn send(&mut self, buffer: &mut [u8]) -> io::Result<Step> {
        while self.sent < self.answer.len() {
            match self.socket.write(&self.answer[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => self.sent += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Step::Wait),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if self.sent == self.answer.len() {
                self.socket.shutdown(std::net::Shutdown::Write)?;
            }
        }
        // Closing with unread input makes the kernel send a reset, which can overtake the answer. So the rest is read.
        for _ in 0..16 {
            match self.socket.read(buffer) {
                Ok(0) => return Ok(Step::Done),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Step::Wait)
    }
}

/// Reads a request head.
pub(super) fn parse(head: &[u8]) -> Parsed {
    let mut lines = [httparse::EMPTY_HEADER; LINES];
    let mut request = httparse::Request::new(&mut lines);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length > HEAD => Parsed::Refused(431),
        Ok(httparse::Status::Complete(_)) => match (request.method, request.path) {
            (Some("GET"), Some(path)) => Parsed::Get(path.split('?').next().unwrap_or(path).to_owned()),
            _ => Parsed::Refused(405),
        },
        Ok(httparse::Status::Partial) if head.len() >= HEAD => Parsed::Refused(431),
        Ok(httparse::Status::Partial) => Parsed::Incomplete,
        Err(httparse::Error::TooManyHeaders) => Parsed::Refused(431),
        Err(_) => Parsed::Refused(400),
    }
}

/// The reason phrase of a status.
pub(super) const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_short_get_is_taken() {
        let long = format!("GET /x HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(HEAD));
        let many = format!("GET /x HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(LINES + 1));
        for (head, expected) in [
            ("GET /metrics?name=a HTTP/1.1\r\nHost: h\r\n\r\n", Parsed::Get("/metrics".to_owned())),
            ("GET /healthz HTTP/1.0\r\n\r\n", Parsed::Get("/healthz".to_owned())),
            ("GET /healthz HTTP/1.1\r\nHost:", Parsed::Incomplete),
            ("POST /healthz HTTP/1.1\r\n\r\n", Parsed::Refused(405)),
            ("\u{16}\u{3}\u{1}", Parsed::Refused(400)),
            ("nonsense\r\n\r\n", Parsed::Refused(400)),
            (&long, Parsed::Refused(431)),
            (&long[..HEAD], Parsed::Refused(431)),
            (&many, Parsed::Refused(431)),
        ] {
            assert_eq!(parse(head.as_bytes()), expected, "{head:.60}");
        }
    }
}
