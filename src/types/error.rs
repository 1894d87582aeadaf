//! How a request failed: gRPC's code names, a message, and what to do next.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a request failed, in gRPC's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Code {
    /// The request is wrong whatever the state.
    InvalidArgument,
    /// No such object.
    NotFound,
    /// The id or name is taken.
    AlreadyExists,
    /// The object changed after it was read ("update out of sequence").
    Aborted,
    /// The state does not allow it.
    FailedPrecondition,
    /// The caller may not.
    PermissionDenied,
    /// The caller has no valid certificate or token.
    Unauthenticated,
    /// A queue or quota is full; nothing was proposed.
    ResourceExhausted,
    /// No leader, or no majority reachable; nothing was proposed.
    Unavailable,
    /// The deadline passed before anything was proposed.
    DeadlineExceeded,
    /// The change was proposed or forwarded, and its outcome is not known.
    Unknown,
    /// A watch position is no longer in the ring, or lies in another lineage: take a new snapshot.
    OutOfRange,
    /// This manager does not offer the call.
    Unimplemented,
    /// Something failed that should not.
    Internal,
}

impl Code {
    /// The name as JSON and messages show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "InvalidArgument",
            Self::NotFound => "NotFound",
            Self::AlreadyExists => "AlreadyExists",
            Self::Aborted => "Aborted",
            Self::FailedPrecondition => "FailedPrecondition",
            Self::PermissionDenied => "PermissionDenied",
            Self::Unauthenticated => "Unauthenticated",
            Self::ResourceExhausted => "ResourceExhausted",
            Self::Unavailable => "Unavailable",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::Unknown => "Unknown",
            Self::OutOfRange => "OutOfRange",
            Self::Unimplemented => "Unimplemented",
            Self::Internal => "Internal",
        }
    }

    /// Whether the same request may succeed later without anybody changing it.
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Unavailable | Self::Unknown | Self::ResourceExhausted)
    }
}

/// A failed request: what a person or a program gets to see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The class of failure.
    pub code: Code,
    /// What went wrong and, where it is not obvious, with what.
    pub message: String,
    /// The next command to type, or empty.
    pub hint: String,
    /// Retrying here is useless now: the answering manager itself sees no reachable majority.
    pub hopeless: bool,
}

impl Status {
    /// A failure without a hint.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: String::new(), hopeless: false }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}
