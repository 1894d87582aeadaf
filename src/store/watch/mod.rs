//! Watching: events of committed changes, and cursors over the ring that holds them.

pub mod check;

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::state::Stored;
use crate::sys::faults::{Fault, planted};
use crate::types::api::Action;
use crate::types::{Lineage, Revision};

/// One object's part of a change.
#[derive(Clone, Debug)]
pub struct Event {
    /// What happened.
    pub action: Action,
    /// The object after it; for a removal, the object removed.
    pub object: Arc<Stored>,
    /// The object before an update.
    pub old: Option<Arc<Stored>>,
}

/// All events of one change, in the order of its operations. A change that only demanded something has none.
#[derive(Debug)]
pub struct EventBatch {
    /// The change's revision.
    pub revision: Revision,
    /// What it did.
    pub events: Events,
    /// A service's encoding for its watchers, made by the first that needs it and shared by all. In a box, because most
    /// batches have none and the ring holds thousands.
    pub encoded: OnceLock<Box<Bytes>>,
    /// What the batch counts for in the ring: the objects, their encoding, what they replaced (which only the ring keeps
    /// alive), and a constant for each event.
    pub bytes: u64,
}

/// The events of a change: nearly always one, which needs no place of its own.
#[derive(Debug)]
pub enum Events {
    /// One.
    One([Event; 1]),
    /// None or several.
    Others(Box<[Event]>),
}

impl From<Vec<Event>> for Events {
    fn from(events: Vec<Event>) -> Self {
        match <[Event; 1]>::try_from(events) {
            Ok(one) => Self::One(one),
            Err(others) => Self::Others(others.into()),
        }
    }
}

impl std::ops::Deref for Events {
    type Target = [Event];

    fn deref(&self) -> &[Event] {
        match self {
            Self::One(one) => one,
            Self::Others(others) => others,
        }
    }
}

impl EventBatch {
    /// The events of the change that made `revision`.
    pub fn new(revision: Revision, mut events: Vec<Event>) -> Self {
        if planted(Fault::EventsOutOfOrder) {
            events.reverse();
        }
        if planted(Fault::EventsMissing) {
            events.truncate(1);
        }
        let of_event = |event: &Event| {
            let old = event.old.as_ref().map_or(0, |old| u64::from(old.bytes));
            EVENT_OVERHEAD_BYTES + 2 * u64::from(event.object.bytes) + old
        };
        let bytes = EVENT_OVERHEAD_BYTES + events.iter().map(of_event).sum::<u64>();
        Self { revision, events: events.into(), encoded: OnceLock::new(), bytes }
    }
}

/// Reference counts, the batch itself and its place in the ring, about.
pub(super) const EVENT_OVERHEAD_BYTES: u64 = 96;

/// How far a watcher has seen. Costs the store nothing: a watcher that is gone leaves nothing behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    lineage: Lineage,
    seen: Revision,
}

impl Cursor {
    pub(super) const fn after(lineage: Lineage, seen: Revision) -> Self {
        Self { lineage, seen }
    }

    /// The history that it watches.
    pub const fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// The last revision that it was given.
    pub const fn seen(&self) -> Revision {
        self.seen
    }

    pub(super) fn advance(&mut self, revision: Revision) {
        self.seen = revision;
    }
}

/// Why a watch cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// Events after the position are no longer in the ring. Take a new snapshot.
    #[error("events before revision {oldest} are no longer kept here")]
    TooOld {
        /// The oldest revision that can be resumed from.
        oldest: Revision,
    },
    /// The position belongs to another history. Take a new snapshot.
    #[error("the position belongs to another lineage of the swarm")]
    OtherLineage,
}
