//! Apply: committed log entries become state.
mod machine;
mod run;

pub use machine::{Applier, ApplyError, Effect};
pub use run::{Progress, Request, Work, spawn};

use crate::codec::{DecodeError, envelope};
use crate::types::limits::MAX_FRAME_BYTES;
use crate::types::log::Command;

/// The payload of a normal log entry.
pub fn encode(command: &Command) -> Vec<u8> {
    envelope::encode(command)
}

/// Reads what [`encode`] wrote.
pub fn decode(payload: &[u8]) -> Result<Command, DecodeError> {
    envelope::decode(payload, MAX_FRAME_BYTES)
}
