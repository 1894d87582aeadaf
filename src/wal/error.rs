//! How the log and the snapshots fail, by what their caller does about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::types::Lineage;

/// Why a log or snapshot file could not be used. After any error of [`super::Wal`] the process stops: what the disk
/// holds is known again only after the next open.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The operating system failed the call. A failed sync is among these, and is never retried: the kernel may
    /// drop the pages it could not write and report success the next time.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was attempted, as in "cannot …".
        doing: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file holds something else than what was written to it, or part of the log is missing.
    #[error("{file} is damaged at byte {offset}: {what}")]
    Damaged {
        /// The segment's or snapshot's name.
        file: String,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// A newer skep wrote the file and says that this one cannot read it.
    #[error(
        "{file} was written in format {version}, which needs a reader of format {min_reader} or newer; this is {ours}"
    )]
    Newer {
        /// The file's name.
        file: String,
        /// The format it was written in.
        version: u16,
        /// The oldest reader that understands it.
        min_reader: u16,
        /// The newest format this program knows.
        ours: u16,
    },
    /// The file was sealed with another data key.
    #[error("{file} is sealed with data key {found:016x}, and the key at hand is {expected:016x}")]
    WrongKey {
        /// The file's name.
        file: String,
        /// The id of the key it was sealed with.
        found: u64,
        /// The id of the key at hand.
        expected: u64,
    },
    /// The file belongs to another history of the swarm.
    #[error("{file} belongs to lineage {found}, and this manager to lineage {expected}")]
    ForeignLineage {
        /// The file's name.
        file: String,
        /// The lineage in the file.
        found: Lineage,
        /// The lineage it should have.
        expected: Lineage,
    },
    /// An entry does not fit into an empty segment.
    #[error("an entry of {bytes} bytes does not fit into a log segment, which holds {limit}")]
    EntryTooLarge {
        /// The entry's encoded length.
        bytes: u64,
        /// What a segment takes.
        limit: u64,
    },
    /// An earlier write failed; nothing may be written until the log was opened anew.
    #[error("the log failed before and takes no more writes")]
    Failed,
}

impl WalError {
    /// What an operator does about it; empty when the message says it all.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "make room on the disk; the log needs two segments more than it holds, or shrink it with \
                 `skep cluster update --snapshot-bytes SIZE --keep-bytes SIZE`"
            }
            Self::Damaged { .. } => {
                "`skep wal repair DIR --dry-run` tells whether cutting the damage off would lose anything, and `skep wal \
                 inspect DIR` shows all of it; to take the data from the other managers again, move the data directory \
                 aside and join anew with `skep run --join` and another address or port in --listen and --advertise; this \
                 member stays on their list and counts towards their majority"
            }
            Self::Newer { .. } => "start the version of skep that wrote it, or a newer one",
            Self::WrongKey { .. } => "put back the key file that belongs to this data directory",
            Self::ForeignLineage { .. } => "this file comes from another swarm or from before a restore: move it aside",
            Self::Io { .. } => {
                "look at the disk (`df`, `dmesg`) and at who may read and write there, and give the same command again"
            }
            Self::EntryTooLarge { .. } | Self::Failed => "",
        }
    }

    /// Whether stored data is damaged, as opposed to refused or out of reach: the process exits with 5.
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }

    pub(super) fn damaged(file: &str, offset: u64, what: impl Into<String>) -> Self {
        Self::Damaged { file: file.to_owned(), offset, what: what.into() }
    }
}

/// Attaches what was attempted on which path to a failed call.
pub(super) trait Doing<T> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, WalError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, WalError> {
        self.map_err(|source| WalError::Io { doing, path: path.to_owned(), source })
    }
}

/// Why old entries could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The entries were deleted because a snapshot covers them: send that snapshot.
    #[error("the log begins after the entries asked for")]
    Compacted,
    /// The log does not reach that far.
    #[error("the log ends before the entries asked for")]
    Unavailable,
    /// What the disk holds is not what was written.
    #[error("{file} is damaged at byte {offset}: {what}")]
    Damaged {
        /// The segment's name.
        file: String,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The operating system failed the read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl From<WalError> for ReadError {
    fn from(error: WalError) -> Self {
        match error {
            WalError::Io { path, source, .. } => Self::Io { path, source },
            WalError::Damaged { file, offset, what } => Self::Damaged { file, offset, what },
            other => Self::Damaged { file: String::new(), offset: 0, what: other.to_string() },
        }
    }
}
