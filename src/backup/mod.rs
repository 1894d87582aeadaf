//! The backup file: a whole swarm in one file, checked from the first byte to the last.
//!
//! A backup holds everything that is replicated, as of one revision: objects with the secrets in them, the root certificate
//! and its key, the join tokens, the members. Nothing else is needed to begin the swarm again, and whoever has the file
//! and its passphrase has the swarm.
//!
//! ```text
//! file     = preamble record(header) record(chunk)* record(end)
//! preamble = magic, versions, flags, PBKDF2 rounds, salt, key id, checksum      68 bytes
//! record   = head (24 bytes: kind, length, number, checksums) payload
//! ```
//!
//! Chunks are the state as `store` encodes it for snapshots. The end record holds the SHA-256 of all bytes before it.
//! With a passphrase every payload is sealed under a key that PBKDF2 makes of it, with the record's head as associated
//! data; without one the sums show accidents and not intent.
//!
//! What others may rely on: [`Writer`] and [`Reader`] hold one chunk at a time; what [`Reader::next_chunk`] has given is to
//! be believed only once it has given `None`, because only then the end has vouched for all of it; [`load`] gives a
//! state that agrees with itself and with the header; a wrong passphrase is told from damage.
//!
//! Not here: where the bytes come from, which file they go to, what a restore makes of them.

mod error;
mod format;
mod reader;
mod writer;

pub use error::BackupError;
pub use reader::{Reader, load};
pub use writer::{Summary, Writer};

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
