//! Reading a snapshot file.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{Header, SnapshotMeta, Source, Stream, name};
use crate::pki::Keyring;
use crate::pki::seal::{DataKey, SegmentKey};
use crate::sys::files::Disk;
use crate::types::{Index, Lineage, Position};
use crate::wal::error::{Doing, WalError};

/// Reads one snapshot file, chunk by chunk, and believes nothing that its checksums and seals do not vouch for. The
/// snapshot is whole only when [`Self::next_chunk`] has returned `None`.
#[derive(Debug)]
pub struct SnapshotReader {
    source: Source,
    key: Arc<DataKey>,
    meta: SnapshotMeta,
    stream: Stream,
    /// Bytes of the next chunk that were skipped.
    skip: usize,
    done: bool,
}

impl SnapshotReader {
    /// Opens the snapshot of `index` in `dir`.
    pub fn open(
        disk: &dyn Disk,
        dir: &Path,
        keys: impl Into<Keyring>,
        lineage: Lineage,
        index: Index,
    ) -> Result<Self, WalError> {
        let (source, header, bytes) = open(disk, dir, index)?;
        let key = header.check(&source.name, &keys.into(), lineage)?;
        let stream = Stream::new(SegmentKey::derive(&key, &header.salt), &bytes);
        let end = source.end(stream.at)?;
        let meta = SnapshotMeta { position: header.position, configuration: header.configuration, bytes: end.offset };
        Ok(Self { source, key, meta, stream, skip: 0, done: false })
    }

    /// What it is a snapshot of.
    pub const fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// The next bytes of the state; `None` after the last, once the end record has vouched for all of them.
    pub fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, WalError> {
        if self.done {
            return Ok(None);
        }
        match self.source.next(&mut self.stream, &self.key)? {
            Some(mut chunk) => {
                chunk.drain(..self.skip.min(chunk.len()));
                self.skip = 0;
                Ok(Some(chunk))
            }
            None => {
                self.done = true;
                Ok(None)
            }
        }
    }

    /// Goes on after the first `offset` bytes of the state, which is not before where it stands. The contents of what is
    /// skipped are not read, only the heads of its chunks. An offset past the end is an error.
    pub fn skip_to(&mut self, offset: u64) -> Result<(), WalError> {
        let offset = offset.max(self.stream.plain);
        self.skip = self.source.skip(&mut self.stream, &self.key, offset)?;
        Ok(())
    }
}

/// A snapshot's file by itself, wherever it is: what can be known of it without its key.
#[derive(Debug)]
pub struct SnapshotFile {
    /// What it is of.
    pub meta: SnapshotMeta,
    /// The history it belongs to.
    pub lineage: Lineage,
    /// The id of the key it is sealed with.
    pub key_id: u64,
    source: Source,
    header: Header,
    bytes: Vec<u8>,
}

impl SnapshotFile {
    /// Opens the snapshot at `path`, under whatever name, and checks its header and that it has an end.
    pub fn open(disk: &dyn Disk, path: &Path) -> Result<Self, WalError> {
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let file = disk.open(path).doing("open", path)?;
        let source = Source::new(file, name, path.to_owned())?;
        let (header, bytes) = Header::read(&source)?;
        let end = source.end(bytes.len() as u64)?;
        let configuration = header.configuration.clone();
        let meta = SnapshotMeta { position: header.position, configuration, bytes: end.offset };
        let (lineage, key_id) = (header.lineage, header.key_id);
        Ok(Self { meta, lineage, key_id, source, header, bytes })
    }

    /// To read what is in it.
    pub fn reader(self, keys: impl Into<Keyring>) -> Result<SnapshotReader, WalError> {
        let key = self.header.check(&self.source.name, &keys.into(), self.lineage)?;
        let stream = Stream::new(SegmentKey::derive(&key, &self.header.salt), &self.bytes);
        Ok(SnapshotReader { source: self.source, key, meta: self.meta, stream, skip: 0, done: false })
    }
}

/// Opens the snapshot of `index` and reads its header, which is returned decoded and as it is.
fn open(disk: &dyn Disk, dir: &Path, index: Index) -> Result<(Source, Header, Vec<u8>), WalError> {
    let name = name(index);
    let path = dir.join(&name);
    let file = disk.open(&path).doing("open", &path)?;
    let source = Source::new(file, name, path)?;
    let (header, bytes) = Header::read(&source)?;
    if header.position.index != index {
        return Err(source.damaged(0, format!("its header says that it is {}", self::name(header.position.index))));
    }
    Ok((source, header, bytes))
}

/// What a snapshot says of itself, its lineage and the id of its key. Needs no key.
pub(in crate::wal) fn describe(
    disk: &dyn Disk,
    dir: &Path,
    index: Index,
) -> Result<(SnapshotMeta, Lineage, u64), WalError> {
    let (source, header, bytes) = open(disk, dir, index)?;
    let end = source.end(bytes.len() as u64)?;
    let meta = SnapshotMeta { position: header.position, configuration: header.configuration, bytes: end.offset };
    Ok((meta, header.lineage, header.key_id))
}

/// What the snapshot of `position`, which the log rests on, says of itself: its header and end are checked.
pub(in crate::wal) fn meta(
    disk: &dyn Disk,
    dir: &Path,
    keys: &Keyring,
    lineage: Lineage,
    position: Position,
) -> Result<SnapshotMeta, WalError> {
    let reader = match SnapshotReader::open(disk, dir, keys, lineage, position.index) {
        Err(WalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let what = "the snapshot that the log rests on is missing";
            return Err(WalError::damaged(&name(position.index), 0, what));
        }
        result => result?,
    };
    if reader.meta.position != position {
        return Err(reader.source.damaged(0, "the snapshot is of another term than the log says"));
    }
    Ok(reader.meta)
}
