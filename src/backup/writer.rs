//! Writing a backup as its bytes arrive.

use std::io::{self, Write};

use ring::digest::{Context, SHA256};

use super::format::{CHUNK_BYTES, HEAD_AAD, Head, Preamble, ROUNDS, RecordKind, SealedWith};
use crate::codec::envelope;
use crate::pki::seal::{SALT_BYTES, SegmentKey};
use crate::sys::entropy::Entropy;
use crate::types::api::BackupInfo;

/// Writes one backup. It is one only after [`Self::finish`].
pub struct Writer<W> {
    out: W,
    seal: Option<SegmentKey>,
    digest: Context,
    number: u64,
    bytes: u64,
    /// Bytes of the state that do not fill a chunk yet.
    pending: Vec<u8>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Length of the file.
    pub bytes: u64,
    /// The sum that its end record holds.
    pub sha256: [u8; 32],
}

impl<W: Write> Writer<W> {
    /// Begins with the header. With a passphrase everything after the first bytes is sealed.
    pub fn begin(out: W, info: &BackupInfo, passphrase: Option<&[u8]>, entropy: &mut dyn Entropy) -> io::Result<Self> {
        Self::begin_with(out, info, passphrase, ROUNDS, entropy)
    }

    pub(super) fn begin_with(
        out: W,
        info: &BackupInfo,
        passphrase: Option<&[u8]>,
        rounds: u32,
        entropy: &mut dyn Entropy,
    ) -> io::Result<Self> {
        let keys = passphrase.map(|passphrase| {
            let mut salt = [0; SALT_BYTES];
            entropy.fill(&mut salt);
            let mut sealed = SealedWith { rounds, salt, key_id: 0 };
            let key = sealed.key(passphrase);
            sealed.key_id = key.id();
            (sealed, SegmentKey::derive(&key, &salt))
        });
        let (sealed, seal) = keys.unzip();
        let mut writer = Self { out, seal, digest: Context::new(&SHA256), number: 0, bytes: 0, pending: Vec::new() };
        writer.put(&Preamble { seal: sealed }.encode())?;
        writer.record(RecordKind::Header, envelope::encode(info))?;
        Ok(writer)
    }

    /// Appends bytes of the state.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK_BYTES - self.pending.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() == CHUNK_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes the end, and gives back where everything went; that is not synced yet.
    pub fn finish(mut self) -> io::Result<(W, Summary)> {
        self.flush()?;
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(self.digest.clone().finish().as_ref());
        self.record(RecordKind::End, sha256.to_vec())?;
        self.out.flush()?;
        Ok((self.out, Summary { bytes: self.bytes, sha256 }))
    }

    fn flush(&mut self) -> io::Result<()> {
        match std::mem::take(&mut self.pending) {
            empty if empty.is_empty() => Ok(()),
            chunk => self.record(RecordKind::Chunk, chunk),
        }
    }

    fn record(&mut self, kind: RecordKind, mut payload: Vec<u8>) -> io::Result<()> {
        let tag = if self.seal.is_some() { crate::pki::seal::TAG_BYTES } else { 0 };
        let len = u32::try_from(payload.len() + tag).expect("a header or a chunk is far below 4 GiB");
        let mut head = Head { kind, len, number: self.number, payload_crc: 0 };
        if let Some(seal) = &self.seal {
            seal.seal_in_place(self.number, &head.encode()[..HEAD_AAD], &mut payload);
        }
        head.payload_crc = crc32fast::hash(&payload);
        self.number += 1;
        self.put(&head.encode())?;
        self.put(&payload)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

impl<W> std::fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
