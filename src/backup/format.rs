//! The bytes of preamble and record heads. Frozen: backups outlive the program that wrote them.

use super::BackupError;
use crate::pki::seal::{DataKey, SALT_BYTES};

pub const MAGIC: [u8; 8] = *b"SKEPBACK";
/// The newest format known here.
pub const VERSION: u16 = 1;
const MIN_READER: u16 = 1;

pub const PREAMBLE: usize = 68;
pub const HEAD: usize = 24;
/// What a seal covers of a head besides its payload: kind, length and number.
pub const HEAD_AAD: usize = 16;
/// Plain bytes of one record, at most.
pub const CHUNK_BYTES: usize = 256 << 10;

/// Rounds of PBKDF2-HMAC-SHA256 for a new backup (OWASP's Password Storage Cheat Sheet, 2023).
pub const ROUNDS: u32 = 600_000;
/// A file that asks for more is not ours: reading it would take minutes before anything is checked.
const MAX_ROUNDS: u32 = 10_000_000;
const SEALED: u32 = 1;

/// The first bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// How a key is made of a passphrase, if the file is sealed.
    pub seal: Option<SealedWith>,
}

/// How a key is made of a passphrase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedWith {
    pub rounds: u32,
    pub salt: [u8; SALT_BYTES],
    /// The id of the key that comes out: tells a wrong passphrase from damage.
    pub key_id: u64,
}

impl SealedWith {
    pub fn key(&self, passphrase: &[u8]) -> DataKey {
        DataKey::from_passphrase(passphrase, &self.salt, self.rounds)
    }
}

impl Preamble {
    pub fn encode(&self) -> [u8; PREAMBLE] {
        let plain = SealedWith { rounds: 0, salt: [0; SALT_BYTES], key_id: 0 };
        let seal = self.seal.as_ref().unwrap_or(&plain);
        let flags = if self.seal.is_some() { SEALED } else { 0 };
        let mut bytes = Vec::with_capacity(PREAMBLE);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&MIN_READER.to_le_bytes());
        bytes.extend_from_slice(&flags.to_le_bytes());
        bytes.extend_from_slice(&seal.rounds.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&seal.salt);
        bytes.extend_from_slice(&seal.key_id.to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes.try_into().expect("the parts above are as long as a preamble")
    }

    /// Reads what follows the magic, which the caller has looked at.
    pub fn decode(bytes: &[u8; PREAMBLE]) -> Result<Self, BackupError> {
        let damaged = |what: &str| BackupError::Damaged { offset: 0, what: what.to_owned() };
        if crc32fast::hash(&bytes[..PREAMBLE - 4]) != u32_at(bytes, PREAMBLE - 4) {
            return Err(damaged("the first bytes do not match their checksum"));
        }
        let (version, min_reader) = (u16_at(bytes, 8), u16_at(bytes, 10));
        if min_reader > VERSION {
            return Err(BackupError::Newer { version, min_reader, ours: VERSION });
        }
        let (flags, rounds) = (u32_at(bytes, 12), u32_at(bytes, 16));
        if flags & SEALED == 0 {
            return Ok(Self { seal: None });
        }
        if rounds == 0 || rounds > MAX_ROUNDS {
            return Err(damaged("no backup has so many rounds of key derivation"));
        }
        let mut salt = [0; SALT_BYTES];
        salt.copy_from_slice(&bytes[24..24 + SALT_BYTES]);
        Ok(Self { seal: Some(SealedWith { rounds, salt, key_id: u64_at(bytes, 56) }) })
    }
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// What the backup is of.
    Header,
    /// Bytes of the state.
    Chunk,
    /// Vouches for everything before it.
    End,
}

/// What stands before a record's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub kind: RecordKind,
    /// Of the payload as it stands in the file.
    pub len: u32,
    /// Counts records from 0; the seal's nonce.
    pub number: u64,
    pub payload_crc: u32,
}

impl Head {
    pub fn encode(&self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[0] = match self.kind {
            RecordKind::Header => 1,
            RecordKind::Chunk => 2,
            RecordKind::End => 3,
        };
        bytes[4..8].copy_from_slice(&self.len.to_le_bytes());
        bytes[8..HEAD_AAD].copy_from_slice(&self.number.to_le_bytes());
        bytes[HEAD_AAD..20].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..20]);
        bytes[20..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` for bytes that no head has.
    pub fn decode(bytes: &[u8; HEAD]) -> Option<Self> {
        if crc32fast::hash(&bytes[..20]) != u32_at(bytes, 20) {
            return None;
        }
        let kind = match bytes[0] {
            1 => RecordKind::Header,
            2 => RecordKind::Chunk,
            3 => RecordKind::End,
            _ => return None,
        };
        let (len, number) = (u32_at(bytes, 4), u64_at(bytes, 8));
        Some(Self { kind, len, number, payload_crc: u32_at(bytes, HEAD_AAD) })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
