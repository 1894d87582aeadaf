//! Frames: what a connection carries, over TLS or a unix socket.
//!
//! ```text
//! length u32 | kind u8 | flags u8 | reserved u16 | stream u32 | body: `length` bytes      (little-endian)
//! ```
//!
//! The side that dialled opens streams with odd numbers, the other with even ones; stream 0 is the connection itself.

use super::{DecodeError, Reader};

/// Bytes of a frame's header.
pub const HEADER: usize = 12;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// An `api::Hello` envelope; the first frame. With [`END`], its sender makes calls of its own on the connection and
    /// takes nothing else there: no calls, no Raft messages, no pings.
    Hello = 1,
    /// A request (`codec::request`); opens its stream.
    Request = 2,
    /// An answer body. [`END`] on the last one of its stream.
    Answer = 3,
    /// A `Status` envelope; ends its stream, or on stream 0 the connection.
    Error = 4,
    /// u32: the receiver of a stream takes so many more body bytes.
    Credit = 5,
    /// The caller no longer wants the answer.
    Cancel = 6,
    /// A ping body (`codec::request::Ping`).
    Ping = 7,
    /// The ping's body back, with the answerer's clock.
    Pong = 8,
    /// Raft messages (`codec::raft_message`), one or more.
    Raft = 9,
}

/// Flag: the last frame of its stream.
pub const END: u8 = 1;

/// Bytes of answer a caller of a stream grants before it sends any [`FrameKind::Credit`].
pub const INITIAL_CREDIT: u32 = 256 << 10;

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of body.
    pub length: u32,
    /// What it is.
    pub kind: FrameKind,
    /// [`END`].
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4] = self.kind as u8;
        bytes[5] = self.flags;
        bytes[8..12].copy_from_slice(&self.stream.to_le_bytes());
        bytes
    }

    /// Reads a header; `limit` is the longest body allowed now.
    pub fn decode(bytes: &[u8; HEADER], limit: usize) -> Result<Self, DecodeError> {
        let mut reader = Reader(bytes);
        let length = reader.u32()?;
        let kind = match reader.u8()? {
            1 => FrameKind::Hello,
            2 => FrameKind::Request,
            3 => FrameKind::Answer,
            4 => FrameKind::Error,
            5 => FrameKind::Credit,
            6 => FrameKind::Cancel,
            7 => FrameKind::Ping,
            8 => FrameKind::Pong,
            9 => FrameKind::Raft,
            _ => return Err(DecodeError::Unknown("frame kind")),
        };
        let flags = reader.u8()?;
        if flags & !END != 0 {
            return Err(DecodeError::Unknown("frame flags"));
        }
        if reader.u16()? != 0 {
            return Err(DecodeError::Unknown("reserved bits of a frame"));
        }
        if length as usize > limit {
            return Err(DecodeError::TooLong { length: u64::from(length), limit: limit as u64 });
        }
        Ok(Self { length, kind, flags, stream: reader.u32()? })
    }
}

/// Appends a whole frame to `out`.
pub fn write(out: &mut Vec<u8>, kind: FrameKind, flags: u8, stream: u32, body: &[u8]) {
    let length = u32::try_from(body.len()).expect("bodies are bounded by MAX_FRAME_BYTES where they are made");
    out.extend_from_slice(&Header { length, kind, flags, stream }.encode());
    out.extend_from_slice(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_and_a_hostile_one_is_refused() {
        let header = Header { length: 5, kind: FrameKind::Raft, flags: END, stream: 9 };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes, 5), Ok(header));
        assert_eq!(Header::decode(&bytes, 4), Err(DecodeError::TooLong { length: 5, limit: 4 }));
        for (place, value) in [(4, 0), (4, 10), (5, 2), (6, 1), (7, 1)] {
            let mut bad = bytes;
            bad[place] = value;
            assert!(matches!(Header::decode(&bad, 5), Err(DecodeError::Unknown(_))), "byte {place}");
        }
    }
}
