//! For `tests/fuzz`: the decoders of this folder that nobody outside may call.

use bytes::Bytes;

use super::http::{self, Parsed};
use super::wire::Parser;
use crate::codec::DecodeError;
use crate::codec::frame::Header;

/// The path of an HTTP GET, `None` while more must arrive, or the status that refuses the request.
pub fn http_head(head: &[u8]) -> Result<Option<String>, u16> {
    match http::parse(head) {
        Parsed::Incomplete => Ok(None),
        Parsed::Get(path) => Ok(Some(path)),
        Parsed::Refused(status) => Err(status),
    }
}

/// Takes frames out of a stream of bytes that arrives in pieces.
#[derive(Debug, Default)]
pub struct Frames(Parser);

impl Frames {
    /// The next frame, once it is complete; takes what it uses off `input`.
    pub fn next(&mut self, input: &mut &[u8], limit: usize) -> Result<Option<(Header, Bytes)>, DecodeError> {
        self.0.next(input, limit)
    }
}
