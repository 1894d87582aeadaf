//! Writing a snapshot file, in one go or in several.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{
    CHUNK, CHUNK_BYTES, HEAD, HEAD_AAD, Head, Header, LAST, SALT, SnapshotMeta, Source, Stream, length, name, temporary,
};
use crate::pki::Keyring;
use crate::pki::seal::{DataKey, SALT_BYTES, SegmentKey, TAG_BYTES};
use crate::sys::entropy::{Entropy, OsEntropy};
use crate::sys::faults::{Fault, planted};
use crate::sys::files::{Disk, File};
use crate::types::log::Configuration;
use crate::types::{Lineage, Position};
use crate::wal::error::{Doing, WalError};
use crate::wal::reserve::with_reserve;

/// Writes one snapshot file. Nothing of it counts before [`Self::finish`]; dropped before that, it removes what it wrote.
#[derive(Debug)]
pub struct SnapshotWriter {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Held until the file is finished: the key must not be forgotten before.
    key: Arc<DataKey>,
    header: Header,
    file: Arc<dyn File>,
    stream: Stream,
    buffer: Vec<u8>,
    /// Bytes written since the last sync.
    unsynced: usize,
    finished: bool,
}

/// So much is synced at a time.
const SYNC_BYTES: usize = 4 << 20;
/// And so much, a multiple of any page, is given to the disk.
const WRITE_BACK_BYTES: u64 = 512 << 10;

impl SnapshotWriter {
    /// Begins the snapshot of `position` in `dir`. An unfinished one of the same position is thrown away.
    pub fn create(
        disk: Arc<dyn Disk>,
        dir: &Path,
        keys: impl Into<Keyring>,
        lineage: Lineage,
        position: Position,
        configuration: &Configuration,
    ) -> Result<Self, WalError> {
        Self::create_with(disk, dir, keys, lineage, position, configuration, &mut OsEntropy)
    }

    /// As [`Self::create`], with the salt from `entropy`.
    pub fn create_with(
        disk: Arc<dyn Disk>,
        dir: &Path,
        keys: impl Into<Keyring>,
        lineage: Lineage,
        position: Position,
        configuration: &Configuration,
        entropy: &mut dyn Entropy,
    ) -> Result<Self, WalError> {
        let key = keys.into().newest();
        let temporary = dir.join(temporary(position.index));
        match disk.remove(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).doing("remove", &temporary),
            _ => {}
        }
        let configuration = configuration.clone();
        let header = Header { lineage, key_id: key.id(), salt: salt(entropy), position, configuration };
        let bytes = header.encode();
        let file = with_reserve(disk.as_ref(), dir, || disk.create(&temporary)).doing("create", &temporary)?;
        let stream = Stream::new(SegmentKey::derive(&key, &header.salt), &bytes);
        let dir = dir.to_owned();
        let writer = Self { disk, dir, key, header, file, stream, buffer: Vec::new(), unsynced: 0, finished: false };
        with_reserve(writer.disk.as_ref(), &writer.dir, || writer.file.write_at(0, &bytes))
            .doing("write", &temporary)?;
        Ok(writer)
    }

    /// Takes up an unfinished snapshot of `position` that an earlier run of the process left, after its last intact
    /// chunk; `None` if there is none that fits, and then it has to be created.
    pub fn resume(
        disk: Arc<dyn Disk>,
        dir: &Path,
        keys: impl Into<Keyring>,
        lineage: Lineage,
        position: Position,
        configuration: &Configuration,
        entropy: &mut dyn Entropy,
    ) -> Result<Option<Self>, WalError> {
        let name = temporary(position.index);
        let path = dir.join(&name);
        let source = match disk.open(&path) {
            Ok(file) => Source::new(file, name, path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).doing("open", &path),
        };
        let Ok((header, bytes)) = Header::read(&source) else { return Ok(None) };
        // What was begun with a key that is to go is begun again with the new one.
        let newest = keys.into().newest();
        let key = header.check(&source.name, &Keyring::from(&*newest), lineage);
        let fits = key.is_ok() && header.position == position && header.configuration == *configuration;
        if !fits {
            return Ok(None);
        }
        let key = newest;
        let mut stream = Stream::new(SegmentKey::derive(&key, &header.salt), &bytes);
        while let Ok(Some(_)) = source.next(&mut stream, &key) {}
        source.file.set_len(stream.at).doing("cut", &source.path)?;
        let dir = dir.to_owned();
        let mut writer = Self {
            disk,
            dir,
            key,
            header,
            file: source.file,
            stream,
            buffer: Vec::new(),
            unsynced: 0,
            finished: false,
        };
        writer.begin_salt(salt(entropy))?;
        Ok(Some(writer))
    }

    /// Appends bytes of the state. Where one call ends and the next begins is kept (up to 1 MiB), but means nothing.
    pub fn write_chunk(&mut self, plain: &[u8]) -> Result<(), WalError> {
        for chunk in plain.chunks(CHUNK_BYTES) {
            self.put(CHUNK, chunk)?;
        }
        Ok(())
    }

    /// Bytes of the state written so far: where a transfer that broke off goes on.
    pub const fn plain_bytes_written(&self) -> u64 {
        self.stream.plain
    }

    /// Makes the snapshot durable and gives it its name.
    pub fn finish(mut self) -> Result<SnapshotMeta, WalError> {
        let total = self.stream.total.to_le_bytes();
        let bytes = self.stream.plain;
        self.put(LAST, &total)?;
        let temporary = self.temporary();
        self.file.sync_data().doing("sync", &temporary)?;
        let path = self.dir.join(name(self.header.position.index));
        self.disk.rename(&temporary, &path).doing("rename a file to", &path)?;
        self.finished = true;
        if !planted(Fault::SnapshotNameNotSynced) {
            self.disk.sync_dir(&self.dir).doing("sync", &self.dir)?;
        }
        let Header { position, configuration, .. } = self.header.clone();
        Ok(SnapshotMeta { position, configuration, bytes })
    }

    /// Leaves the unfinished file for a later [`Self::resume`].
    pub fn suspend(mut self) {
        self.finished = true;
    }

    fn put(&mut self, kind: u8, plain: &[u8]) -> Result<(), WalError> {
        let len = length(plain.len() + TAG_BYTES);
        let mut head = Head { kind, len, number: self.stream.number, offset: self.stream.plain, payload_crc: 0 };
        self.buffer.clear();
        self.buffer.extend_from_slice(&[0; HEAD]);
        self.buffer.extend_from_slice(plain);
        let aad = head.encode();
        let tag = self.stream.key.seal_slice(head.number, &aad[..HEAD_AAD], &mut self.buffer[HEAD..]);
        self.buffer.extend_from_slice(&tag);
        self.write(&mut head)
    }

    fn begin_salt(&mut self, salt: [u8; SALT_BYTES]) -> Result<(), WalError> {
        let (number, offset) = (self.stream.number, self.stream.plain);
        let mut head = Head { kind: SALT, len: length(SALT_BYTES), number, offset, payload_crc: 0 };
        self.buffer.clear();
        self.buffer.extend_from_slice(&[0; HEAD]);
        self.buffer.extend_from_slice(&salt);
        self.write(&mut head)?;
        self.stream.key = SegmentKey::derive(&self.key, &salt);
        Ok(())
    }

    fn write(&mut self, head: &mut Head) -> Result<(), WalError> {
        head.payload_crc = crc32fast::hash(&self.buffer[HEAD..]);
        self.buffer[..HEAD].copy_from_slice(&head.encode());
        let write = || self.file.write_at(self.stream.at, &self.buffer);
        with_reserve(self.disk.as_ref(), &self.dir, write).doing("write", &self.temporary())?;
        // The log's syncs wait behind what the disk is given in one go: little by little, and not all of it at a sync or
        // even at the end.
        let begun = self.stream.at / WRITE_BACK_BYTES * WRITE_BACK_BYTES;
        self.stream.passed(head);
        let whole = self.stream.at / WRITE_BACK_BYTES * WRITE_BACK_BYTES - begun;
        if whole > 0 {
            self.file.write_back(begun, whole);
        }
        self.unsynced += self.buffer.len();
        if self.unsynced >= SYNC_BYTES {
            self.unsynced = 0;
            self.file.sync_data().doing("sync", &self.temporary())?;
        }
        Ok(())
    }

    fn temporary(&self) -> PathBuf {
        self.dir.join(temporary(self.header.position.index))
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if !self.finished {
            let temporary = self.temporary();
            if let Err(error) = self.disk.remove(&temporary) {
                log::warn!("an unfinished snapshot stays: cannot remove {}: {error}", temporary.display());
            }
        }
    }
}

fn salt(entropy: &mut dyn Entropy) -> [u8; SALT_BYTES] {
    let mut salt = [0; SALT_BYTES];
    entropy.fill(&mut salt);
    salt
}
