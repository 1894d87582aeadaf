//! A backup between two parts: the state as it was when it was asked for, and how much of it was sent.

use std::sync::Arc;

use bytes::Bytes;

use super::Context;
use crate::codec::envelope;
use crate::net::requests::Pull;
use crate::store::{SnapshotEncoder, State};
use crate::sys::heavy::Heavy;
use crate::types::Timestamp;
use crate::types::api::{BackupInfo, FEATURE_LEVEL};
use crate::types::error::{Code, Status};

/// A part has at most so many bytes: well below the window of a stream, so that a reader that takes its time still sees
/// progress.
const PART_BYTES: usize = 64 << 10;

/// A backup on its way: one part that says what it is of, then the state's bytes as snapshots have them. It holds the
/// state, which costs what changes meanwhile, and one encoded chunk.
///
/// Nothing is redacted: a backup without its secrets could not be restored.
pub struct Backup {
    info: Option<Bytes>,
    /// With what counts it among those under way, for as long as the state is there.
    encoder: Heavy<(SnapshotEncoder, Arc<()>)>,
    pending: Bytes,
}

impl std::fmt::Debug for Backup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The bytes hold secrets.
        f.debug_struct("Backup").finish_non_exhaustive()
    }
}

impl Backup {
    /// Of `state`, by the manager that `context` describes. It counts as under way while it holds `under_way`.
    pub fn new(state: State, context: &Context, now_ms: u64, under_way: Arc<()>) -> Self {
        let info = BackupInfo {
            created_at: Timestamp(now_ms),
            version: context.version.clone(),
            node_id: context.node_id,
            cluster_id: context.cluster_id,
            lineage: state.lineage(),
            position: state.applied(),
            revision: state.revision(),
            members: state.members().values().cloned().collect(),
            feature_level: state.cluster().map_or(FEATURE_LEVEL, |cluster| cluster.feature_level),
            hash: state.hash(),
        };
        let info = Some(envelope::encode(&info).into());
        let takes_long = state.is_large();
        let encoder = Heavy::new((SnapshotEncoder::new(state), under_way), takes_long);
        Self { info, encoder, pending: Bytes::new() }
    }

    /// The next part, of at most `room` bytes.
    pub(super) fn pull(&mut self, room: usize) -> Pull {
        if let Some(info) = self.info.take_if(|info| info.len() <= room) {
            return Pull::Part(info);
        }
        if self.info.is_some() {
            return Pull::Full;
        }
        if self.pending.is_empty() {
            match self.encoder.0.next() {
                Some(Ok(chunk)) => self.pending = chunk.into(),
                Some(Err(error)) => {
                    let status = Status::new(Code::Internal, format!("the backup was given up: {error}"));
                    return Pull::End(status.with_hint("take it from another manager, and look at this one's log"));
                }
                None => return Pull::Done,
            }
        }
        let part = self.pending.split_to(self.pending.len().min(room).min(PART_BYTES));
        Pull::Part(part)
    }
}
