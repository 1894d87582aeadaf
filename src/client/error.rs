//! How a call failed.

use super::WriteId;
use crate::codec::{DecodeError, envelope};
use crate::types::limits::MAX_FRAME_BYTES;
use crate::types::{Code, Status};

/// Why a call gave no answer. Each holds a [`Status`] to show to a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientError {
    /// Nothing was sent: no manager could be reached.
    Unreachable(Status),
    /// A manager refused.
    Refused(Status),
    /// The request was sent, and the connection broke or the time ran out before an answer came.
    Lost(Status),
    /// A write may have been carried out. The same write under the same id tells.
    OutcomeUnknown {
        /// Its id.
        id: WriteId,
        /// What the last attempt failed with.
        status: Status,
    },
}

impl ClientError {
    /// What to show.
    pub const fn status(&self) -> &Status {
        match self {
            Self::Unreachable(status)
            | Self::Refused(status)
            | Self::Lost(status)
            | Self::OutcomeUnknown { status, .. } => status,
        }
    }

    /// What to show.
    pub fn into_status(self) -> Status {
        match self {
            Self::Unreachable(status)
            | Self::Refused(status)
            | Self::Lost(status)
            | Self::OutcomeUnknown { status, .. } => status,
        }
    }

    /// Whether this answers what became of a write, however often it was sent: a repeated id is looked up before
    /// anything else is checked, so that such a refusal is also the first attempt's.
    pub(super) const fn is_definite(&self) -> bool {
        match self {
            Self::Refused(status) => !matches!(
                status.code,
                Code::Unavailable
                    | Code::Unknown
                    | Code::ResourceExhausted
                    | Code::DeadlineExceeded
                    | Code::Unauthenticated
                    | Code::Internal
            ),
            _ => false,
        }
    }

    /// Whether this attempt may have been carried out.
    pub(super) const fn leaves_doubt(&self) -> bool {
        match self {
            Self::Lost(_) | Self::OutcomeUnknown { .. } => true,
            Self::Refused(status) => matches!(status.code, Code::Unknown | Code::Internal),
            Self::Unreachable(_) => false,
        }
    }

    /// Whether the same request may succeed in a moment.
    pub(super) const fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable(status) => matches!(status.code, Code::Unavailable),
            Self::Lost(status) => !matches!(status.code, Code::Internal | Code::FailedPrecondition),
            Self::Refused(status) => status.code.is_transient() && !status.hopeless,
            Self::OutcomeUnknown { .. } => false,
        }
    }

    /// A connection that broke before any request was on it.
    pub(super) fn before_sending(self) -> Self {
        match self {
            Self::Lost(status) => Self::Unreachable(status),
            other => other,
        }
    }

    /// The refusal in an error frame's body.
    pub(super) fn refusal(body: &[u8]) -> Self {
        match envelope::decode(body, MAX_FRAME_BYTES) {
            Ok(status) => Self::Refused(status),
            Err(error) => Self::undecodable(error),
        }
    }

    pub(super) fn undecodable(error: DecodeError) -> Self {
        match error {
            DecodeError::Newer { .. } => Self::Lost(
                Status::new(
                    Code::FailedPrecondition,
                    "the manager speaks a newer format than this command understands",
                )
                .with_hint("use the `skep` that the manager runs"),
            ),
            _ => Self::garbled(&error.to_string()),
        }
    }

    pub(super) fn garbled(what: &str) -> Self {
        Self::Lost(
            Status::new(Code::Internal, format!("the other side sent what no manager sends: {what}"))
                .with_hint("check that the address or socket is a skep manager's, of this version"),
        )
    }
}

impl std::fmt::Display for ClientError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.status().fmt(f)
    }
}

impl std::error::Error for ClientError {}
