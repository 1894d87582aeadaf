//! A backup as it arrives.

use std::time::Duration;

use super::{Client, ClientError};
use crate::codec::frame::{END, FrameKind, INITIAL_CREDIT};
use crate::codec::{envelope, request};
use crate::sys::time::monotonic;
use crate::types::api::{BackupInfo, BackupRequest, Call};
use crate::types::limits::MAX_FRAME_BYTES;

/// The bytes of a manager's state, in the order in which a backup holds them. Nothing of it is a backup before
/// [`Self::next_part`] has given `None`.
#[derive(Debug)]
pub struct Backup {
    client: Client,
    stream: u32,
    info: BackupInfo,
    /// The manager may be silent for so long.
    patience: Duration,
    /// Bytes consumed and not granted again.
    ungranted: u32,
    done: bool,
}

/// Bytes under way beyond [`INITIAL_CREDIT`].
const WINDOW: u32 = 1 << 20;

impl Backup {
    pub(super) fn begin(mut client: Client, stale: bool, patience: Duration) -> Result<Self, ClientError> {
        let deadline = monotonic() + patience;
        let deadline_ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX).max(1);
        let body = request::encode(Call::Backup, deadline_ms, None, &envelope::encode(&BackupRequest { stale }));
        let connection = client.connection(deadline)?;
        let stream = connection.open(&body, deadline)?;
        connection.send(FrameKind::Credit, stream, &WINDOW.to_le_bytes(), deadline)?;
        let info = BackupInfo::default();
        let mut backup = Self { client, stream, info, patience, ungranted: 0, done: false };
        let first = backup.next_part()?.unwrap_or_default();
        backup.info = envelope::decode(&first, MAX_FRAME_BYTES).map_err(ClientError::undecodable)?;
        Ok(backup)
    }

    /// What it is a backup of.
    pub const fn info(&self) -> &BackupInfo {
        &self.info
    }

    /// The next bytes; `None` once the manager has said that these were all.
    pub fn next_part(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        if self.done {
            return Ok(None);
        }
        let connection = self.client.connection(monotonic() + self.patience)?;
        loop {
            // The manager refuses when its own patience is over; that news is worth a moment more.
            let (header, body) = connection.receive(Some(monotonic() + self.patience + super::GRACE))?;
            if header.stream != self.stream {
                continue;
            }
            match header.kind {
                FrameKind::Answer if header.flags & END != 0 => {
                    self.done = true;
                    return Ok(Some(body).filter(|body| !body.is_empty()));
                }
                FrameKind::Answer => {
                    self.ungranted += header.length;
                    if self.ungranted >= INITIAL_CREDIT / 2 {
                        let credit = self.ungranted.to_le_bytes();
                        connection.send(FrameKind::Credit, self.stream, &credit, monotonic() + self.patience)?;
                        self.ungranted = 0;
                    }
                    return Ok(Some(body));
                }
                FrameKind::Error => return Err(ClientError::refusal(&body)),
                FrameKind::Credit => {}
                _ => return Err(ClientError::garbled("a frame that is no part of a backup")),
            }
        }
    }
}
