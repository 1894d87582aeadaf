//! Snapshot files: the state as of one log position, streamed in and out in sealed chunks.
//!
//! ```text
//! file   = header configuration record* end
//! record = head (32 bytes) payload        a chunk: sealed bytes and tag; a salt: the salt of what follows
//! end    = head (32 bytes) sealed total   the checksum over the heads of all chunks, which hold those of the payloads
//! ```
//!
//! A snapshot counts from the moment it has its name: before that it is a temporary file, which a transfer that broke off
//! can take up again after a restart. What was written before then keeps its key, and a new salt begins, because a chunk
//! that was cut off in the middle must not be sealed again under the same number.
//!
//! # What writing one costs others
//!
//! With a million resources of 256 bytes and 16 clients on three managers, on two cores and one disk, the 99th percentile
//! in ms while one of the managers writes its snapshot, and while all three do (by hand; left to themselves they take turns):
//!
//! | | none | one | three |
//! |---|---|---|---|
//! | 4 MiB given to the disk at each sync | 1.5 to 1.8 | 2.7 to 3.1 | 3.9 to 7.4 |
//! | as it is written (`posix_fadvise`), and objects fetched side by side (`store`, ahead) | 1.7 to 2.1 | 2.0 to 2.9 | 2.9 to 5.1 |
//!
//! The log's sync took 2.2 ms at its 99th percentile where 0.55 stood, because it waited behind those 4 MiB; the snapshot's
//! thread took 1.39 s of processor and takes 0.96. A sync every 256 KiB gave the disk's part too, at the price of as many
//! commits of a file system's journal. Another scheduling class for that thread, or a lower priority, gave nothing.

mod reader;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::reader::{SnapshotFile, SnapshotReader};
pub(super) use self::reader::{describe, meta};
pub use self::writer::SnapshotWriter;
use super::error::{Doing, WalError};
use super::format::{self, Cursor, MIN_READER, VERSION};
use crate::pki::Keyring;
use crate::pki::seal::{DataKey, SALT_BYTES, SegmentKey, TAG_BYTES};
use crate::sys::files::{Disk, File};
use crate::types::log::Configuration;
use crate::types::{Index, Lineage, Position, RaftId};

const MAGIC: [u8; 8] = *b"SKEPSNAP";
/// The header before the configuration.
const HEADER: usize = 96;
/// A record's head; its checksum covers the 28 bytes before it, the seal the first 24.
const HEAD: usize = 32;
const HEAD_AAD: usize = 24;
/// Plain bytes of one chunk, at most.
const CHUNK_BYTES: usize = 1 << 20;
/// The end record: its sealed payload is a checksum.
const END: usize = HEAD + 4 + TAG_BYTES;

const CHUNK: u8 = 1;
const SALT: u8 = 2;
const LAST: u8 = 3;

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The last entry it covers.
    pub position: Position,
    /// The members of the Raft group as of that entry.
    pub configuration: Configuration,
    /// Bytes of the state in it, unsealed.
    pub bytes: u64,
}

/// A file's header, decoded.
#[derive(Clone, Debug)]
struct Header {
    lineage: Lineage,
    key_id: u64,
    salt: [u8; SALT_BYTES],
    position: Position,
    configuration: Configuration,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + 64);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&MIN_READER.to_le_bytes());
        bytes.extend_from_slice(&self.lineage.0.to_le_bytes());
        bytes.extend_from_slice(&self.key_id.to_le_bytes());
        bytes.extend_from_slice(&self.salt);
        format::put_position(&mut bytes, self.position);
        let mut configuration = Vec::new();
        for members in [&self.configuration.voters, &self.configuration.learners] {
            configuration.extend_from_slice(&length(members.len()).to_le_bytes());
            for member in members {
                configuration.extend_from_slice(&member.0.to_le_bytes());
            }
        }
        bytes.extend_from_slice(&length(configuration.len()).to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&configuration).to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        debug_assert_eq!(bytes.len(), HEADER);
        bytes.extend_from_slice(&configuration);
        bytes
    }

    fn read(source: &Source) -> Result<(Self, Vec<u8>), WalError> {
        let damaged = |what: &str| source.damaged(0, what);
        if source.len < HEADER as u64 {
            return Err(source.damaged(source.len, "the file ends within its header"));
        }
        let mut bytes = vec![0; HEADER];
        source.read(0, &mut bytes)?;
        let (body, crc) = bytes.split_at(HEADER - 4);
        if crc32fast::hash(body).to_le_bytes() != crc {
            return Err(damaged("the snapshot's header does not match its checksum"));
        }
        let mut cursor = Cursor(body);
        format::check_versions(&source.name, MAGIC, VERSION, &mut cursor)?;
        let mut fixed = || -> Option<_> {
            let (lineage, key_id) = (Lineage(cursor.u128()?), cursor.u64()?);
            let salt = cursor.take(SALT_BYTES)?.try_into().ok()?;
            let position = cursor.position()?;
            Some((
                Self { lineage, key_id, salt, position, configuration: Configuration::default() },
                cursor.u32()?,
                cursor.u32()?,
            ))
        };
        let (mut header, len, crc) = fixed().ok_or_else(|| damaged("the snapshot's header makes no sense"))?;
        if u64::from(len) > source.len - HEADER as u64 {
            return Err(damaged("the file ends within the list of members"));
        }
        let mut configuration = vec![0; len as usize];
        source.read(HEADER as u64, &mut configuration)?;
        if crc32fast::hash(&configuration) != crc {
            return Err(source.damaged(HEADER as u64, "the list of members does not match its checksum"));
        }
        let mut cursor = Cursor(&configuration);
        let mut lists = || Some(Configuration { voters: members(&mut cursor)?, learners: members(&mut cursor)? });
        header.configuration =
            lists().ok_or_else(|| source.damaged(HEADER as u64, "the list of members makes no sense"))?;
        bytes.extend_from_slice(&configuration);
        Ok((header, bytes))
    }

    /// The key that the snapshot is sealed with, if it is one of ours.
    fn check(&self, name: &str, keys: &Keyring, lineage: Lineage) -> Result<Arc<DataKey>, WalError> {
        let file = name.to_owned();
        if self.lineage != lineage {
            return Err(WalError::ForeignLineage { file, found: self.lineage, expected: lineage });
        }
        keys.of(self.key_id).ok_or_else(|| WalError::WrongKey {
            file,
            found: self.key_id,
            expected: keys.newest().id(),
        })
    }
}

fn members(cursor: &mut Cursor<'_>) -> Option<Vec<RaftId>> {
    // Not allocated ahead: the count is as true as the file.
    (0..cursor.u32()?).map(|_| cursor.u64().map(RaftId)).collect()
}

fn length(len: usize) -> u32 {
    u32::try_from(len).expect("a chunk or a list of members is far below 4 GiB")
}

/// What stands before a record's payload.
#[derive(Clone, Copy, Debug)]
struct Head {
    kind: u8,
    /// Of the payload.
    len: u32,
    /// Counts chunks from 0; the seal's nonce.
    number: u64,
    /// Plain bytes before this record.
    offset: u64,
    payload_crc: u32,
}

impl Head {
    fn encode(&self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[0] = self.kind;
        bytes[4..8].copy_from_slice(&self.len.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..HEAD_AAD].copy_from_slice(&self.offset.to_le_bytes());
        bytes[HEAD_AAD..28].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..28]);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEAD]) -> Option<Self> {
        let mut cursor = Cursor(bytes);
        let kind = cursor.u8()?;
        cursor.take(3)?;
        let (len, number, offset, payload_crc) = (cursor.u32()?, cursor.u64()?, cursor.u64()?, cursor.u32()?);
        (crc32fast::hash(&bytes[..28]) == cursor.u32()?).then_some(Self { kind, len, number, offset, payload_crc })
    }
}

/// Where a stream of records stands: the same for its writer and its readers.
#[derive(Debug)]
struct Stream {
    key: SegmentKey,
    /// In the file.
    at: u64,
    /// The next chunk's number.
    number: u64,
    /// Plain bytes before it.
    plain: u64,
    /// Checksum over the heads so far, and the header.
    total: u32,
}

impl Stream {
    /// At the first record. The total begins with the header, so the sealed end vouches for that too.
    fn new(key: SegmentKey, header: &[u8]) -> Self {
        Self { key, at: header.len() as u64, number: 0, plain: 0, total: crc32fast::hash(header) }
    }

    fn passed(&mut self, head: &Head) {
        self.at += (HEAD as u64) + u64::from(head.len);
        let mut hasher = crc32fast::Hasher::new_with_initial(self.total);
        hasher.update(&head.encode());
        self.total = hasher.finalize();
        if head.kind == CHUNK {
            self.number += 1;
            self.plain += u64::from(head.len) - TAG_BYTES as u64;
        }
    }
}

/// An open file with its name, for messages.
#[derive(Debug)]
struct Source {
    file: Arc<dyn File>,
    name: String,
    path: PathBuf,
    len: u64,
}

impl Source {
    fn new(file: Arc<dyn File>, name: String, path: PathBuf) -> Result<Self, WalError> {
        let len = file.len().doing("read the length of", &path)?;
        Ok(Self { file, name, path, len })
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), WalError> {
        self.file.read_at(offset, bytes).doing("read", &self.path)
    }

    fn damaged(&self, offset: u64, what: impl Into<String>) -> WalError {
        WalError::damaged(&self.name, offset, what)
    }

    /// The head of the record where the stream stands, which must continue it and lie within the file.
    fn head(&self, stream: &Stream) -> Result<Head, WalError> {
        let at = stream.at;
        let rest = self.len.saturating_sub(at);
        if rest < HEAD as u64 {
            return Err(self.damaged(at, "the snapshot ends before its end record"));
        }
        let mut bytes = [0; HEAD];
        self.read(at, &mut bytes)?;
        let head =
            Head::decode(&bytes).ok_or_else(|| self.damaged(at, "a record's head does not match its checksum"))?;
        if (head.number, head.offset) != (stream.number, stream.plain) {
            return Err(self.damaged(at, "the record does not continue the one before it"));
        }
        let len = head.len as usize;
        let fits = match head.kind {
            CHUNK => (TAG_BYTES..=CHUNK_BYTES + TAG_BYTES).contains(&len),
            SALT => len == SALT_BYTES,
            LAST => HEAD + len == END && rest == END as u64,
            _ => false,
        };
        if !fits || rest < (HEAD + len) as u64 {
            return Err(self.damaged(at, "the record's kind or length makes no sense here"));
        }
        Ok(head)
    }

    /// Passes the next chunk and returns its contents; `None` at the end.
    fn next(&self, stream: &mut Stream, key: &DataKey) -> Result<Option<Vec<u8>>, WalError> {
        loop {
            let head = self.head(stream)?;
            let at = stream.at;
            let mut payload = self.payload(at, &head)?;
            if head.kind == SALT {
                self.pass_salt(stream, key, &head, &payload);
                continue;
            }
            stream
                .key
                .open_in_place(head.number, &head.encode()[..HEAD_AAD], &mut payload)
                .map_err(|error| self.damaged(at, error.to_string()))?;
            if head.kind == LAST {
                let is_whole = payload == stream.total.to_le_bytes();
                return if is_whole {
                    Ok(None)
                } else {
                    Err(self.damaged(at, "the snapshot does not match its total"))
                };
            }
            stream.passed(&head);
            return Ok(Some(payload));
        }
    }

    /// Passes records up to the chunk that holds byte `offset` of the state, which is not before the stream; returns how
    /// much of that chunk comes before it.
    fn skip(&self, stream: &mut Stream, key: &DataKey, offset: u64) -> Result<usize, WalError> {
        while stream.plain < offset {
            let head = self.head(stream)?;
            match head.kind {
                SALT => {
                    let payload = self.payload(stream.at, &head)?;
                    self.pass_salt(stream, key, &head, &payload);
                }
                CHUNK if stream.plain + (u64::from(head.len) - TAG_BYTES as u64) > offset => break,
                CHUNK => stream.passed(&head),
                _ => return Err(self.damaged(stream.at, format!("the state ends before byte {offset}"))),
            }
        }
        Ok(usize::try_from(offset - stream.plain).expect("a chunk is far shorter than the address space"))
    }

    fn payload(&self, at: u64, head: &Head) -> Result<Vec<u8>, WalError> {
        let mut payload = vec![0; head.len as usize];
        self.read(at + HEAD as u64, &mut payload)?;
        if crc32fast::hash(&payload) != head.payload_crc {
            return Err(self.damaged(at, "a record does not match its checksum"));
        }
        Ok(payload)
    }

    /// What follows is sealed under another salt.
    fn pass_salt(&self, stream: &mut Stream, key: &DataKey, head: &Head, salt: &[u8]) {
        stream.key = SegmentKey::derive(key, salt.try_into().expect("the length of a salt was checked with its head"));
        stream.passed(head);
    }

    /// The head of the end record, read from where it must stand.
    fn end(&self, first: u64) -> Result<Head, WalError> {
        let at = self.len.checked_sub(END as u64).filter(|at| *at >= first);
        let at = at.ok_or_else(|| self.damaged(self.len, "the snapshot ends before its end record"))?;
        let mut bytes = [0; HEAD];
        self.read(at, &mut bytes)?;
        Head::decode(&bytes)
            .filter(|head| head.kind == LAST)
            .ok_or_else(|| self.damaged(at, "the snapshot does not end with an end record"))
    }
}

/// The finished snapshots in `dir`, oldest first.
pub fn list_snapshots(disk: &dyn Disk, dir: &Path) -> Result<Vec<Index>, WalError> {
    let mut indexes: Vec<Index> = disk
        .list(dir)
        .doing("list", dir)?
        .iter()
        .filter_map(|file| file.strip_prefix("snap-")?.parse().ok().map(Index).filter(|index| name(*index) == *file))
        .collect();
    indexes.sort_unstable();
    Ok(indexes)
}

/// Removes the snapshots before `index`, finished or not. The newest that the log has recorded must be at `index` or
/// after it.
pub fn remove_snapshots_before(disk: &dyn Disk, dir: &Path, index: Index) -> Result<(), WalError> {
    for file in disk.list(dir).doing("list", dir)? {
        let number = file.strip_prefix("snap-").map(|rest| rest.strip_suffix(UNFINISHED).unwrap_or(rest));
        let Some(old) = number.and_then(|number| number.parse().ok()).map(Index) else { continue };
        if old < index && (file == name(old) || file == temporary(old)) {
            let path = dir.join(&file);
            disk.remove(&path).doing("remove", &path)?;
        }
    }
    Ok(())
}

/// Removes the snapshots that an earlier run of the process did not finish. For a start, before any is begun.
pub fn remove_unfinished_snapshots(disk: &dyn Disk, dir: &Path) -> Result<(), WalError> {
    for file in disk.list(dir).doing("list", dir)? {
        if matches!(index_of(&file), Some((_, false))) {
            let path = dir.join(&file);
            disk.remove(&path).doing("remove", &path)?;
        }
    }
    Ok(())
}

/// The index of the snapshot whose file has this name, and whether it is finished.
pub(super) fn index_of(file: &str) -> Option<(Index, bool)> {
    let rest = file.strip_prefix("snap-")?;
    let digits = rest.strip_suffix(UNFINISHED);
    let index = Index(digits.unwrap_or(rest).parse().ok()?);
    (file == name(index) || file == temporary(index)).then_some((index, digits.is_none()))
}

/// The id of the key that a snapshot's file is sealed with, finished or not.
pub(super) fn key_id(file: Arc<dyn File>, name: &str, path: &Path) -> Result<u64, WalError> {
    let source = Source::new(file, name.to_owned(), path.to_owned())?;
    Ok(Header::read(&source)?.0.key_id)
}

const UNFINISHED: &str = ".part";

/// The file name of the snapshot of this index.
pub(super) fn name(index: Index) -> String {
    format!("snap-{index:012}")
}

fn temporary(index: Index) -> String {
    format!("{}{UNFINISHED}", name(index))
}
