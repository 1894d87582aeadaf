//! The replicated store: tables, indexes, changes, members, snapshots, watch.
//!
//! [`State`] is everything that is replicated, as a persistent value. A clone shares all of it and costs some reference
//! counts; whoever holds one reads a state that never changes while the writer goes on. [`Store`] is the handle that
//! threads share: a state behind a lock and the ring of its last events.
//!
//! Others may rely on this:
//!
//! - *One rule for everyone.* [`State::apply_change`] judges a [`Change`](crate::types::Change) from the change, its
//!   entry's term and the state alone. It is carried out as a whole or leaves no trace but its answer. Replicas that saw
//!   the same entries give the same answers and have the same [`State::hash`].
//! - *At most once.* The answers to the last changes are remembered, as part of the state. A change that comes again gets
//!   its first answer before anything else is looked at. One so old that its answer may have been forgotten is answered
//!   [`Forgotten`](crate::types::Outcome::Forgotten), and never applied.
//! - *Dense revisions.* Every committed change takes the next revision, a refused one takes none. What it wrote carries
//!   that revision as its version.
//! - *Indexes agree with [`Selector::matches`](crate::types::Selector::matches)*: [`State::find`] gives what a scan would,
//!   in order of id, each object once.
//! - *No gaps.* The ring is the only buffer of events. A watcher is a [`Cursor`], a position; it costs nothing while it
//!   waits, cannot slow the writer, and is told [`WatchError::TooOld`] when the ring has moved past it. Events become
//!   visible in the same step as the state they lead to. [`watch::check`] holds the promises as code.
//! - *Nobody is remembered for ever.* A Raft id below the counter that is no member's was removed. Managers that were removed
//!   are written down with the end of their certificates and forgotten a week after it; of a worker nothing stays.
//!   [`State::standing`] is what a node may act as.
//! - *Snapshots are checked.* [`SnapshotEncoder`] and [`SnapshotDecoder`] compute the state hash from the bytes that they
//!   write and read; a state that is not what was stored is not handed on.
//! - *Memory that rots is found.* The digests that the state hash sums up are those of the moment of writing; [`scrub`]
//!   computes them again from what is in memory now, slowly and without end, and names the first that differs.
//!
//! A start replays the log into a state that *stages* ([`State::stage`]): what entries create is found by id and name, and
//! goes into the trees, and the sums into the state hash, all at once when the log has ended.
//!
//! To read a little, [`Store::view`]; to read much, [`Store::snapshot`] and drop it soon: as long as a clone is held the
//! writer copies each node of a tree that it touches, once.
//!
//! Not here: who may write what and whether a spec makes sense (`control`), the order of entries (`apply`), files (`wal`),
//! redaction. Objects and events hold secrets.
//!
//! Invariants: the bytes hashed are those of `codec::envelope`; the hash is a wrapping sum of independent digests (one for
//! each object, one for each remembered change with its number, one for counters and members), so that a write costs two
//! digests whatever the size of the state; names are compared by ASCII case only, because Unicode's tables change between
//! compilers and replicas may be built by several; what is forgotten, and when, depends on nothing but the sequence of
//! changes.

mod ahead;
mod anew;
mod by_age;
mod change;
mod handle;
mod membership;
mod names;
mod revoked;
mod ring;
pub mod scrub;
mod snapshot;
mod staged;
mod state;
mod table;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests;
#[cfg(test)]
pub(crate) use tests::samples;
pub mod watch;

pub use anew::ERA;
pub use handle::Store;
pub use snapshot::{SNAPSHOT_CHUNK_BYTES, SnapshotDecoder, SnapshotEncoder, SnapshotError};
pub use state::{MAX_CANDIDATES, ResolveError, State, Stored};
use table::Objects;
pub use table::Search;
pub use watch::{Cursor, Event, EventBatch, WatchError};
