//! A state as a stream of bytes, and back.
//!
//! ```text
//! record: kind u8 | length u32 (little-endian) | body: an envelope of `length` bytes
//! stream: header, remembered changes (several records), objects in order of kind and id (one record each), end
//! ```
//!
//! The end record carries the count of objects and the state hash. Both sides compute the hash from what they really
//! write or read: a byte that changed in memory, on the way or in the encoder's own code is noticed here, before the
//! snapshot replaces anything.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ahead::ahead;
use super::membership::Membership;
use super::ring::{self, Horizons, Limits, Record, Ring};
use super::state::{State, Stored};
use crate::codec::{DecodeError, digest128, envelope};
use crate::sys::faults::{Fault, planted};
use crate::sys::memory;
use crate::types::limits::MAX_FRAME_BYTES;
use crate::types::{Kind, Lineage, Object, ObjectId, Position, Revision};

/// Bytes of one chunk of the stream; only the last one is shorter.
pub const SNAPSHOT_CHUNK_BYTES: usize = 256 << 10;

/// Why a snapshot was not written or not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The bytes are not a snapshot of this or an older version.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Records do not follow each other as they must.
    #[error("the snapshot is malformed: {0}")]
    Malformed(&'static str),
    /// The stream ended before its end record.
    #[error("the snapshot ends early")]
    Truncated,
    /// The number of objects is not what the end record says.
    #[error("the snapshot holds {found} objects, and should hold {expected}")]
    Count {
        /// What the end record says.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// An object in memory is no longer what was stored.
    #[error("the {kind} {id} in memory is not what was stored: faulty memory is likely")]
    ObjectChanged {
        /// Its table.
        kind: Kind,
        /// Its id.
        id: ObjectId,
    },
    /// The hash of the content is not what it should be.
    #[error("the state's hash is {found:032x}, and should be {expected:032x}")]
    Hash {
        /// What it should be.
        expected: u128,
        /// What the content gives.
        found: u128,
    },
}

/// The first record.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Header {
    lineage: Lineage,
    applied: Position,
    revision: Revision,
    membership: Membership,
    forgotten: u64,
    horizons: Horizons,
}

/// The last record.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct End {
    objects: u64,
    hash: u128,
}

const HEADER: u8 = 1;
const REMEMBERED: u8 = 2;
const OBJECT: u8 = 3;
const END: u8 = 4;

/// Bytes before a record's body.
const RECORD_HEADER_BYTES: usize = 5;
/// Remembered changes in one record.
const RECORDS_PER_BATCH: u64 = 1024;

/// Writes a state, a chunk at a time: what it holds besides the state is two chunks and one object at most.
pub struct SnapshotEncoder {
    state: State,
    buffer: Vec<u8>,
    next: Next,
    objects: u64,
    objects_hash: u128,
    ring_hash: u128,
}

/// What the encoder writes next.
#[derive(Clone, Copy, Debug)]
enum Next {
    Header,
    /// The remembered change at this place and those after it.
    Remembered(u64),
    /// The objects of this kind from this id on.
    Objects(Kind, ObjectId),
    End,
    Nothing,
}

impl std::fmt::Debug for SnapshotEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The bytes hold secrets.
        f.debug_struct("SnapshotEncoder").finish_non_exhaustive()
    }
}

impl SnapshotEncoder {
    /// Begins with nothing written. The state is a clone: writers are not disturbed.
    pub fn new(state: State) -> Self {
        Self { state, buffer: Vec::new(), next: Next::Header, objects: 0, objects_hash: 0, ring_hash: 0 }
    }

    fn step(&mut self) -> Result<(), SnapshotError> {
        self.next = match self.next {
            Next::Header => self.header(),
            Next::Remembered(place) => self.remembered(place),
            Next::Objects(kind, id) => self.objects(kind, id)?,
            Next::End => self.end()?,
            Next::Nothing => Next::Nothing,
        };
        Ok(())
    }

    fn header(&mut self) -> Next {
        let header = Header {
            lineage: self.state.lineage,
            applied: self.state.applied,
            revision: self.state.revision,
            membership: (*self.state.membership).clone(),
            forgotten: self.state.ring.forgotten(),
            horizons: self.state.ring.horizons(),
        };
        self.record(HEADER, |body| envelope::encode_into(&header, body));
        Next::Remembered(0)
    }

    fn remembered(&mut self, place: u64) -> Next {
        let end = (place + RECORDS_PER_BATCH).min(self.state.ring.len());
        let batch: Vec<Record> = (place..end).filter_map(|place| self.state.ring.get_at(place)).collect();
        if batch.is_empty() {
            return Next::Objects(Kind::ALL[0], ObjectId(0));
        }
        let numbers = self.state.ring.forgotten() + place..;
        for (number, record) in numbers.zip(&batch) {
            self.ring_hash = self.ring_hash.wrapping_add(ring::digest(number, record));
        }
        self.record(REMEMBERED, |body| envelope::encode_into(&batch, body));
        Next::Remembered(end)
    }

    /// Writes objects until a chunk is full.
    fn objects(&mut self, kind: Kind, from: ObjectId) -> Result<Next, SnapshotError> {
        let state = self.state.clone();
        for stored in ahead(state.table(kind).since(from)) {
            let id = stored.object.id();
            if self.buffer.len() >= SNAPSHOT_CHUNK_BYTES {
                return Ok(Next::Objects(kind, id));
            }
            let body = self.record(OBJECT, |body| envelope::encode_into(&stored.object, body));
            let hash = digest128(&[b"object", &self.buffer[body..]]);
            if hash != stored.hash {
                return Err(SnapshotError::ObjectChanged { kind, id });
            }
            self.objects += 1;
            self.objects_hash = self.objects_hash.wrapping_add(hash);
        }
        let following = Kind::ALL.into_iter().find(|other| *other > kind);
        Ok(following.map_or(Next::End, |kind| Next::Objects(kind, ObjectId(0))))
    }

    fn end(&mut self) -> Result<Next, SnapshotError> {
        let (expected, found) = (self.state.hash(), self.state.total(self.objects_hash, self.ring_hash));
        if expected != found {
            return Err(SnapshotError::Hash { expected, found });
        }
        let end = End { objects: self.objects, hash: found };
        self.record(END, |body| envelope::encode_into(&end, body));
        Ok(Next::Nothing)
    }

    /// Appends a record whose body `write` appends; gives the place of the body.
    fn record(&mut self, kind: u8, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        self.buffer.push(kind);
        let length = self.buffer.len();
        self.buffer.extend_from_slice(&[0; 4]);
        let body = self.buffer.len();
        write(&mut self.buffer);
        let bytes = u32::try_from(self.buffer.len() - body).expect("a record is an object, or bounded by its batch");
        self.buffer[length..body].copy_from_slice(&bytes.to_le_bytes());
        body
    }
}

impl Iterator for SnapshotEncoder {
    type Item = Result<Vec<u8>, SnapshotError>;

    /// The next chunk. After an error there is none: a snapshot without its end record is not accepted anywhere.
    fn next(&mut self) -> Option<Self::Item> {
        while self.buffer.len() < SNAPSHOT_CHUNK_BYTES && !matches!(self.next, Next::Nothing) {
            if let Err(error) = self.step() {
                self.next = Next::Nothing;
                self.buffer.clear();
                return Some(Err(error));
            }
        }
        if self.buffer.is_empty() {
            return None;
        }
        let end = self.buffer.len().min(SNAPSHOT_CHUNK_BYTES);
        // The next chunk's room at once: most objects are small, and to grow into it would copy it twice.
        let room =
            if matches!(self.next, Next::Nothing) { 0 } else { SNAPSHOT_CHUNK_BYTES + SNAPSHOT_CHUNK_BYTES / 16 };
        let mut rest = Vec::with_capacity(room);
        rest.extend_from_slice(&self.buffer[end..]);
        self.buffer.truncate(end);
        Some(Ok(std::mem::replace(&mut self.buffer, rest)))
    }
}

/// Reads a state from pieces of any size.
#[derive(Debug, Default)]
pub struct SnapshotDecoder {
    /// Bytes of a record that is not whole yet.
    pending: Vec<u8>,
    state: Option<State>,
    last: Option<(Kind, ObjectId)>,
    /// In order of kind and id. They are put into their tables all at once.
    objects: Vec<Arc<Stored>>,
    end: Option<End>,
}

impl SnapshotDecoder {
    /// Begins before the first byte.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the stream. After an error the decoder is of no use.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let mut rest = pending.as_slice();
        while let Some((header, tail)) = rest.split_first_chunk::<RECORD_HEADER_BYTES>() {
            let [kind, length @ ..] = header;
            let length = u32::from_le_bytes(*length) as usize;
            if length > MAX_FRAME_BYTES {
                let (length, limit) = (length as u64, MAX_FRAME_BYTES as u64);
                return Err(DecodeError::TooLong { length, limit }.into());
            }
            let Some((body, after)) = tail.split_at_checked(length) else { break };
            self.record(*kind, body)?;
            rest = after;
        }
        self.pending = rest.to_vec();
        Ok(())
    }

    /// The state, once everything was pushed and what came is what was sent.
    pub fn finish(self) -> Result<State, SnapshotError> {
        let (Some(mut state), Some(end)) = (self.state, self.end) else { return Err(SnapshotError::Truncated) };
        if !self.pending.is_empty() {
            return Err(SnapshotError::Malformed("bytes follow its end"));
        }
        let found = self.objects.len() as u64;
        if found != end.objects {
            return Err(SnapshotError::Count { expected: end.objects, found });
        }
        state.load(self.objects);
        // Every share of it was computed from the decoded objects and records.
        let found = state.hash();
        if found != end.hash {
            return Err(SnapshotError::Hash { expected: end.hash, found });
        }
        if planted(Fault::SnapshotForgetsChanges) {
            state.ring = Ring::new(Limits::PRODUCT);
        }
        Ok(state)
    }

    fn record(&mut self, kind: u8, body: &[u8]) -> Result<(), SnapshotError> {
        if self.end.is_some() {
            return Err(SnapshotError::Malformed("a record follows its end"));
        }
        if (kind == HEADER) != self.state.is_none() {
            return Err(SnapshotError::Malformed("it must begin with its header"));
        }
        match kind {
            HEADER => self.state = Some(begin(decode(body)?)?),
            REMEMBERED => self.remembered(decode(body)?)?,
            OBJECT => self.object(decode(body)?)?,
            END => self.end = Some(decode(body)?),
            _ => return Err(DecodeError::Unknown("snapshot record").into()),
        }
        Ok(())
    }

    fn remembered(&mut self, batch: Vec<Record>) -> Result<(), SnapshotError> {
        let state = self.state.as_mut().ok_or(SnapshotError::Truncated)?;
        for record in &batch {
            if state.ring.get(record.id).is_some() {
                return Err(SnapshotError::Malformed("a change is remembered twice"));
            }
            state.ring.push(record);
        }
        Ok(())
    }

    fn object(&mut self, object: Object) -> Result<(), SnapshotError> {
        let place = (object.kind(), object.id());
        if self.last.is_some_and(|last| last >= place) {
            return Err(SnapshotError::Malformed("its objects are out of order"));
        }
        self.last = Some(place);
        let stored = Stored::new(object);
        memory::grown(stored.bytes as usize);
        self.objects.push(Arc::new(stored));
        Ok(())
    }
}

fn begin(header: Header) -> Result<State, SnapshotError> {
    // Counters that no swarm reaches would overflow later, where it is too late for an error.
    let next_raft_id = header.membership.next_raft_id.0;
    let counters = [header.revision.0, header.applied.index.0, header.applied.term.0, header.forgotten, next_raft_id];
    if counters.iter().any(|counter| *counter > u64::MAX / 2) {
        return Err(SnapshotError::Malformed("a counter of its header is out of range"));
    }
    Ok(State {
        applied: header.applied,
        revision: header.revision,
        membership: Arc::new(header.membership),
        ring: Ring::resume(Limits::PRODUCT, header.forgotten, header.horizons),
        ..State::new(header.lineage)
    })
}

fn decode<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    envelope::decode(body, MAX_FRAME_BYTES)
}
