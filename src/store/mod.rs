//! The replicated store.

mod change;
mod handle;
mod membership;
mod ring;
mod snapshot;
mod state;
mod table;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
pub mod watch;

pub use handle::Store;
pub use snapshot::{SNAPSHOT_CHUNK_BYTES, SnapshotDecoder, SnapshotEncoder, SnapshotError};
pub use state::{ResolveError, State, Stored};
pub use watch::{Cursor, Event, EventBatch, WatchError};
