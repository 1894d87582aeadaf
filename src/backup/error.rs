//! Why a backup cannot be used, by what its owner does about it.

use std::io;

use crate::store::SnapshotError;

/// Why a backup cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is another file.
    #[error("it is not a backup")]
    NotABackup,
    /// A newer skep wrote it and says that this one cannot read it.
    #[error("it was written in format {version}, which needs a reader of format {min_reader} or newer; this is {ours}")]
    Newer {
        /// The format it was written in.
        version: u16,
        /// The oldest reader that understands it.
        min_reader: u16,
        /// The newest format this program knows.
        ours: u16,
    },
    /// It is sealed, and no passphrase was given.
    #[error("it is sealed with a passphrase, and none was given")]
    Sealed,
    /// It is sealed with another passphrase.
    #[error("the passphrase is not the one that it was sealed with")]
    WrongPassphrase,
    /// A passphrase was given, and it is not sealed: it cannot be the file that was meant.
    #[error("it is not sealed, and a passphrase was given")]
    NotSealed,
    /// It is not what was written.
    #[error("it is damaged at byte {offset}: {what}")]
    Damaged {
        /// Where.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// Its bytes are what was written, and what they say is not a state.
    #[error("its content cannot be used: {0}")]
    Content(#[from] SnapshotError),
    /// What it says of itself is not what it holds.
    #[error("its content is not what its header says: {0} differs")]
    Mismatch(&'static str),
}

impl BackupError {
    /// What its owner does about it; empty when the message says it all.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Io(_) => "",
            Self::NotABackup => "name a file that `skep backup save` has written",
            Self::Newer { .. } => "use the version of skep that wrote it, or a newer one",
            Self::Sealed => "name the file that holds the passphrase with --passphrase-file",
            Self::WrongPassphrase => "try another passphrase; without the right one the backup is of no use",
            Self::NotSealed => "leave the passphrase out if this is the file that you mean",
            Self::Damaged { .. } | Self::Content(_) | Self::Mismatch(_) => "use another copy of it, or another backup",
        }
    }

    /// Whether the file is damaged, as opposed to refused or out of reach.
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Content(_) | Self::Mismatch(_))
    }

    /// Whether it will be refused again until something else is given.
    pub const fn is_refusal(&self) -> bool {
        !self.is_damage() && !matches!(self, Self::Io(_))
    }
}
