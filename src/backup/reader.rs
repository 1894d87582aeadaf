//! Reading a backup, believing nothing that its sums do not vouch for.

use std::io::{self, Read};

use ring::digest::{Context, SHA256};

use super::BackupError;
use super::format::{CHUNK_BYTES, HEAD, HEAD_AAD, Head, MAGIC, PREAMBLE, Preamble, RecordKind};
use crate::codec::envelope;
use crate::pki::seal::{SegmentKey, TAG_BYTES};
use crate::store::{SnapshotDecoder, State};
use crate::types::api::BackupInfo;

/// Reads one backup, a chunk at a time.
pub struct Reader<R> {
    input: R,
    seal: Option<SegmentKey>,
    digest: Context,
    /// Where the next byte stands.
    at: u64,
    number: u64,
    info: BackupInfo,
    sealed: bool,
    done: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the beginning, up to the header.
    pub fn open(input: R, passphrase: Option<&[u8]>) -> Result<Self, BackupError> {
        let info = BackupInfo::default();
        let digest = Context::new(&SHA256);
        let mut reader = Self { input, seal: None, digest, at: 0, number: 0, info, sealed: false, done: false };
        let mut bytes = [0; PREAMBLE];
        let (magic, rest) = bytes.split_at_mut(MAGIC.len());
        reader.take(magic)?;
        if *magic != MAGIC {
            return Err(BackupError::NotABackup);
        }
        reader.take(rest)?;
        let preamble = Preamble::decode(&bytes)?;
        reader.sealed = preamble.seal.is_some();
        reader.seal = match (preamble.seal, passphrase) {
            (None, None) => None,
            (None, Some(_)) => return Err(BackupError::NotSealed),
            (Some(_), None) => return Err(BackupError::Sealed),
            (Some(with), Some(passphrase)) => {
                let key = with.key(passphrase);
                if key.id() != with.key_id {
                    return Err(BackupError::WrongPassphrase);
                }
                Some(SegmentKey::derive(&key, &with.salt))
            }
        };
        let at = reader.at;
        let (kind, header) = reader.record()?;
        if kind != RecordKind::Header {
            return Err(damaged(at, "it does not begin with its header"));
        }
        reader.info =
            envelope::decode(&header, header.len()).map_err(|error| damaged(at, format!("its header: {error}")))?;
        Ok(reader)
    }

    /// What it is a backup of, as it says.
    pub const fn info(&self) -> &BackupInfo {
        &self.info
    }

    /// Whether a passphrase opened it.
    pub const fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// Bytes read so far.
    pub const fn bytes_read(&self) -> u64 {
        self.at
    }

    /// The next bytes of the state; `None` after the last, once the end has vouched for everything.
    pub fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, BackupError> {
        if self.done {
            return Ok(None);
        }
        let at = self.at;
        let before = self.digest.clone();
        match self.record()? {
            (RecordKind::Chunk, chunk) => Ok(Some(chunk)),
            (RecordKind::Header, _) => Err(damaged(at, "it has a second header")),
            (RecordKind::End, sum) => {
                if before.finish().as_ref() != sum {
                    return Err(damaged(at, "the sum over all of it is another one than its end says"));
                }
                let mut more = [0];
                if read_some(&mut self.input, &mut more)? != 0 {
                    return Err(damaged(self.at, "bytes follow its end"));
                }
                self.done = true;
                Ok(None)
            }
        }
    }

    fn record(&mut self) -> Result<(RecordKind, Vec<u8>), BackupError> {
        let at = self.at;
        let mut bytes = [0; HEAD];
        self.take(&mut bytes)?;
        let head = Head::decode(&bytes).ok_or_else(|| damaged(at, "no record begins here"))?;
        if head.number != self.number || head.len as usize > CHUNK_BYTES + TAG_BYTES {
            return Err(damaged(at, "the record does not continue the one before it"));
        }
        let mut payload = vec![0; head.len as usize];
        self.take(&mut payload)?;
        if crc32fast::hash(&payload) != head.payload_crc {
            return Err(damaged(at, "a record does not match its checksum"));
        }
        if let Some(seal) = &self.seal {
            seal.open_in_place(head.number, &bytes[..HEAD_AAD], &mut payload)
                .map_err(|error| damaged(at, error.to_string()))?;
        }
        self.number += 1;
        Ok((head.kind, payload))
    }

    fn take(&mut self, bytes: &mut [u8]) -> Result<(), BackupError> {
        let mut filled = 0;
        while filled < bytes.len() {
            match read_some(&mut self.input, &mut bytes[filled..])? {
                0 if self.at == 0 => return Err(BackupError::NotABackup),
                0 => return Err(damaged(self.at + filled as u64, "it ends here, before its end record")),
                count => filled += count,
            }
        }
        self.digest.update(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }
}

impl<R> std::fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("info", &self.info).field("at", &self.at).finish_non_exhaustive()
    }
}

/// Reads the rest of a backup into a state, and checks that it is whole, agrees with itself and with its header.
pub fn load<R: Read>(reader: &mut Reader<R>) -> Result<State, BackupError> {
    let mut decoder = SnapshotDecoder::new();
    while let Some(chunk) = reader.next_chunk()? {
        decoder.push(&chunk)?;
    }
    let state = decoder.finish()?;
    let info = reader.info();
    let cluster = state.cluster().ok_or(BackupError::Mismatch("the swarm"))?;
    for (same, what) in [
        (state.hash() == info.hash, "the state's hash"),
        (state.lineage() == info.lineage, "the lineage"),
        (state.applied() == info.position, "the place in the log"),
        (state.revision() == info.revision, "the revision"),
        (state.members().values().eq(&info.members), "the list of members"),
        (cluster.id == info.cluster_id, "the swarm's id"),
    ] {
        if !same {
            return Err(BackupError::Mismatch(what));
        }
    }
    Ok(state)
}

fn read_some(input: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        match input.read(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn damaged(offset: u64, what: impl Into<String>) -> BackupError {
    BackupError::Damaged { offset, what: what.into() }
}
