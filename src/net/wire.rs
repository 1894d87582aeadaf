//! Frames out of bytes and bytes out of frames, without sockets.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::codec::DecodeError;
use crate::codec::frame::{FrameKind, HEADER, Header};

/// Takes frames out of a stream of bytes that arrives in pieces.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// The header bytes of a frame whose header is not complete.
    header: [u8; HEADER],
    /// How many of them there are.
    header_length: usize,
    /// The header of a frame whose body is not complete.
    pending: Option<Header>,
    /// That body, as far as it has arrived.
    body: Vec<u8>,
}

impl Parser {
    /// The next frame, once it is complete; takes what it uses off `input`. `limit` is the longest body allowed now. After
    /// an error the stream has no meaning any more.
    pub(super) fn next(&mut self, input: &mut &[u8], limit: usize) -> Result<Option<(Header, Bytes)>, DecodeError> {
        let header = match self.pending {
            Some(header) => header,
            None => match self.header(input, limit)? {
                Some(header) => header,
                None => return Ok(None),
            },
        };
        let length = header.length as usize;
        if self.body.is_empty() && input.len() >= length {
            let (body, rest) = input.split_at(length);
            *input = rest;
            self.pending = None;
            return Ok(Some((header, Bytes::copy_from_slice(body))));
        }
        let (piece, rest) = input.split_at(input.len().min(length - self.body.len()));
        *input = rest;
        self.reserve(length, piece.len());
        self.body.extend_from_slice(piece);
        if self.body.len() < length {
            self.pending = Some(header);
            return Ok(None);
        }
        self.pending = None;
        Ok(Some((header, Bytes::from(std::mem::take(&mut self.body)))))
    }

    /// Whether the last frame is incomplete.
    pub(super) const fn is_inside_a_frame(&self) -> bool {
        self.header_length > 0 || self.pending.is_some()
    }

    fn header(&mut self, input: &mut &[u8], limit: usize) -> Result<Option<Header>, DecodeError> {
        let (piece, rest) = input.split_at(input.len().min(HEADER - self.header_length));
        *input = rest;
        self.header[self.header_length..self.header_length + piece.len()].copy_from_slice(piece);
        self.header_length += piece.len();
        if self.header_length < HEADER {
            return Ok(None);
        }
        self.header_length = 0;
        Header::decode(&self.header, limit).map(Some)
    }

    /// Takes memory as bytes arrive, at most twice what has arrived: a length alone is no reason to.
    fn reserve(&mut self, length: usize, arriving: usize) {
        let (have, room) = (self.body.len(), self.body.capacity() - self.body.len());
        if room < arriving {
            let wanted = (have * 2).max(64 << 10).max(have + arriving).min(length);
            self.body.reserve_exact(wanted - have);
        }
    }
}

/// A frame that waits to be sent.
#[derive(Debug)]
struct Frame {
    header: [u8; HEADER],
    body: Bytes,
}

/// The two lanes of frames that wait to be sent on a connection. What is urgent overtakes, but only between frames.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    urgent: VecDeque<Frame>,
    urgent_bytes: usize,
    bulk: VecDeque<Frame>,
    bulk_bytes: usize,
    /// Bulk frames queued, and handed on, since the connection began.
    queued: u64,
    handed_on: u64,
}

/// The place of a bulk frame in its lane, to ask later whether it has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Serial(u64);

impl Lanes {
    /// Queues a frame that overtakes bulk ones.
    pub(super) fn push_urgent(&mut self, kind: FrameKind, flags: u8, stream: u32, body: Bytes) {
        let frame = Frame::new(kind, flags, stream, body);
        self.urgent_bytes += frame.size();
        self.urgent.push_back(frame);
    }

    /// Queues a frame behind all others.
    pub(super) fn push(&mut self, kind: FrameKind, flags: u8, stream: u32, body: Bytes) -> Serial {
        let frame = Frame::new(kind, flags, stream, body);
        self.bulk_bytes += frame.size();
        self.bulk.push_back(frame);
        self.queued += 1;
        Serial(self.queued)
    }

    /// Whether a bulk frame was handed to the socket.
    pub(super) const fn has_left(&self, serial: Serial) -> bool {
        serial.0 <= self.handed_on
    }

    /// Bytes of bulk frames that wait.
    pub(super) const fn bulk_bytes(&self) -> usize {
        self.bulk_bytes
    }

    /// Bytes of urgent frames that wait.
    pub(super) const fn urgent_bytes(&self) -> usize {
        self.urgent_bytes
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.urgent.is_empty() && self.bulk.is_empty()
    }

    /// Drops the bulk frames that wait: the connection ends and only its reason matters.
    pub(super) fn drop_bulk(&mut self) {
        self.bulk.clear();
        self.bulk_bytes = 0;
    }

    /// Appends whole frames to `out` until it holds at least `target` bytes; says how many frames.
    pub(super) fn fill(&mut self, out: &mut Vec<u8>, target: usize) -> u64 {
        let mut frames = 0;
        while out.len() < target {
            let frame = if let Some(frame) = self.urgent.pop_front() {
                self.urgent_bytes -= frame.size();
                frame
            } else if let Some(frame) = self.bulk.pop_front() {
                self.bulk_bytes -= frame.size();
                self.handed_on += 1;
                frame
            } else {
                break;
            };
            out.extend_from_slice(&frame.header);
            out.extend_from_slice(&frame.body);
            frames += 1;
        }
        frames
    }
}

impl Frame {
    fn new(kind: FrameKind, flags: u8, stream: u32, body: Bytes) -> Self {
        let length = u32::try_from(body.len()).expect("bodies are bounded by MAX_FRAME_BYTES before they are queued");
        Self { header: Header { length, kind, flags, stream }.encode(), body }
    }

    const fn size(&self) -> usize {
        HEADER + self.body.len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::codec::frame;

    /// Feeds `bytes` in pieces of the given sizes and gives back the frames.
    fn parse(bytes: &[u8], pieces: &[usize], limit: usize) -> Result<Vec<(Header, Bytes)>, DecodeError> {
        let mut parser = Parser::default();
        let mut frames = Vec::new();
        let (mut rest, mut turn) = (bytes, 0);
        while !rest.is_empty() {
            let (mut piece, tail) = rest.split_at(pieces[turn % pieces.len()].clamp(1, rest.len()));
            (rest, turn) = (tail, turn + 1);
            while let Some(frame) = parser.next(&mut piece, limit)? {
                frames.push(frame);
            }
            assert!(piece.is_empty(), "the parser takes everything it is given");
        }
        assert!(!parser.is_inside_a_frame());
        Ok(frames)
    }

    proptest! {
        #[test]
        fn frames_survive_being_cut_anywhere(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
            pieces in prop::collection::vec(1_usize..400, 1..8),
        ) {
            let mut bytes = Vec::new();
            for (stream, body) in (1..).zip(&bodies) {
                frame::write(&mut bytes, FrameKind::Answer, frame::END, stream, body);
            }
            let frames = parse(&bytes, &pieces, 300).unwrap();
            let found: Vec<_> = frames.iter().map(|(header, body)| (header.stream, body.to_vec())).collect();
            let expected: Vec<_> = (1..).zip(bodies).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_body_arrives() {
        let header = Header { length: 65, kind: FrameKind::Request, flags: 0, stream: 1 };
        let mut parser = Parser::default();
        let refused = parser.next(&mut header.encode().as_slice(), 64);
        assert_eq!(refused, Err(DecodeError::TooLong { length: 65, limit: 64 }));
    }

    #[test]
    fn memory_is_taken_only_for_what_arrived() {
        let header = Header { length: 4 << 20, kind: FrameKind::Request, flags: 0, stream: 1 };
        let mut parser = Parser::default();
        let mut bytes = header.encode().to_vec();
        bytes.push(1);
        assert_eq!(parser.next(&mut bytes.as_slice(), 4 << 20), Ok(None));
        assert!(parser.body.capacity() <= 64 << 10);
    }

    #[test]
    fn urgent_frames_overtake_and_frames_stay_whole() {
        let mut lanes = Lanes::default();
        let first = lanes.push(FrameKind::Raft, 0, 0, Bytes::from_static(b"append 1"));
        let second = lanes.push(FrameKind::Raft, 0, 0, Bytes::from_static(b"append 2"));
        let mut out = Vec::new();
        assert_eq!(lanes.fill(&mut out, 1), 1);
        lanes.push_urgent(FrameKind::Raft, 0, 0, Bytes::from_static(b"vote"));
        assert!(lanes.has_left(first) && !lanes.has_left(second));
        assert_eq!((lanes.bulk_bytes(), lanes.urgent_bytes()), (20, 16));
        assert_eq!(lanes.fill(&mut out, usize::MAX), 2);
        let bodies: Vec<_> = parse(&out, &[7], 64).unwrap().into_iter().map(|(_, body)| body).collect();
        assert_eq!(bodies, ["append 1", "vote", "append 2"]);
        assert!(lanes.has_left(second) && lanes.is_empty());
        assert_eq!((lanes.bulk_bytes(), lanes.urgent_bytes()), (0, 0));
    }
}
