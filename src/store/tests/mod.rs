//! Tests of the store as a whole, through one helper: a scripted log.

mod changes;
mod golden;
mod members;
mod model;
pub(crate) mod samples;
mod snapshots;
mod watching;

use std::collections::BTreeMap;

use crate::types::object::{Annotations, Config};
use crate::types::*;

use super::ring::Limits;
use super::{EventBatch, State};

/// A state with a log of its own: ids and times are counted up, so that scripts are short and repeat exactly.
pub(super) struct Log {
    pub state: State,
    pub term: Term,
    changes: u128,
}

impl Log {
    pub fn new() -> Self {
        Self { state: State::bootstrap(Lineage(7), NodeId(1), "127.0.0.1:1"), term: Term(1), changes: 0 }
    }

    /// One whose ring remembers so many changes.
    pub fn with_ring(records: u64) -> Self {
        let limits = Limits { records, ..Limits::PRODUCT };
        Self { state: State::with_limits(Lineage(7), limits), ..Self::new() }
    }

    /// A new change made now.
    pub fn change(&mut self, operations: Vec<Operation>) -> Change {
        self.changes += 1;
        Change {
            id: ChangeId(self.changes),
            after: self.state.revision(),
            time: Timestamp(self.changes as u64 * 1000),
            term: None,
            operations,
        }
    }

    /// Applies a change as the next entry.
    pub fn apply(&mut self, change: &Change) -> (Outcome, Option<EventBatch>) {
        let index = self.state.applied().index.next();
        self.state.advance(Position { term: self.term, index });
        let result = self.state.apply_change(change.clone(), self.term);
        assert_eq!(self.state.hash(), self.state.recompute_hash(), "after {change:?}");
        result
    }

    /// The same of a state that is staging, of which no sum can be asked.
    pub fn replay(&mut self, change: &Change) -> Outcome {
        let index = self.state.applied().index.next();
        self.state.advance(Position { term: self.term, index });
        self.state.apply_change(change.clone(), self.term).0
    }

    pub fn run(&mut self, operations: Vec<Operation>) -> Outcome {
        let change = self.change(operations);
        self.apply(&change).0
    }
}

pub(super) fn config(id: u128, name: &str) -> Object {
    let mut config = Config { id: ObjectId(id), ..Config::default() };
    config.spec.annotations = Annotations { name: name.to_owned(), ..Annotations::default() };
    Object::from(config)
}

/// Every object, in order of kind and id.
pub(super) fn contents(state: &State) -> Vec<Object> {
    Kind::ALL.into_iter().flat_map(|kind| state.iter(kind)).map(|stored| stored.object.clone()).collect()
}

/// `object` as an update of the version `version`.
pub(super) fn at(mut object: Object, version: u64) -> Object {
    object.meta_mut().version = Revision(version);
    object
}
