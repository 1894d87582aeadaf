//! Bytes: frames on a connection, versioned envelopes, requests, Raft messages.
//!
//! Everything that leaves a process or a thread's memory is encoded here, and every decoder treats its input as hostile:
//! a length is checked before it is believed and before memory is taken for it, trailing bytes are an error, nothing
//! panics. Encodings are fixed little-endian.
//!
//! Not here: what the bytes mean (`types`), where they go (`net`, `wal`).
//!
//! Invariants: a decoder gives back exactly what its encoder was given; encodings change only under a new version number.

pub mod envelope;
pub mod frame;
pub mod raft_message;
pub mod request;

/// Why bytes could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The input ends early.
    #[error("the input ends early")]
    Truncated,
    /// Bytes are left over.
    #[error("{0} bytes are left over")]
    Trailing(usize),
    /// A length is over its limit.
    #[error("a length of {length} is over the limit of {limit}")]
    TooLong {
        /// The length claimed.
        length: u64,
        /// The most allowed.
        limit: u64,
    },
    /// The envelope's version is newer than this build.
    #[error("version {found} of the format is newer than this build understands (up to {known})")]
    Newer {
        /// The version found.
        found: u8,
        /// The newest known.
        known: u8,
    },
    /// A field has a value that means nothing.
    #[error("a field has an unknown value: {0}")]
    Unknown(&'static str),
    /// The body is not what its type demands.
    #[error("the body is malformed")]
    Malformed,
}

/// Reads fixed-width fields from a slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.0.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        self.0 = tail;
        Ok(head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.take(2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        let mut word = [0; 8];
        word.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(word))
    }

    /// A u32 length and that many bytes, where fewer are left than the length claims is an error before any allocation.
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    pub(crate) fn end(self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.0.len())) }
    }
}

/// The first 128 bits of SHA-256: what the state hash sums up. Not a secret, but nobody can steer it either.
pub fn digest128(parts: &[&[u8]]) -> u128 {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut first = [0; 16];
    first.copy_from_slice(&context.finish().as_ref()[..16]);
    u128::from_le_bytes(first)
}
