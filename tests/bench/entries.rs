//! Log entries for the benchmarks of store and apply: in log order, into one store.
#![allow(dead_code, reason = "each benchmark uses a part")]

use std::sync::Arc;

use raft::eraftpb::Entry;
use skep::apply::{Applier, encode};
use skep::store::{State, Store};
use skep::sys::entropy::{Entropy, SeededEntropy};
use skep::types::log::Command;
use skep::types::{Change, ChangeId, Lineage, NodeId, Operation, Timestamp};

/// A store, and what makes the next entry for it.
pub struct Log {
    pub applier: Applier,
    pub entropy: SeededEntropy,
    index: u64,
}

impl Log {
    pub fn new() -> Self {
        let state = State::bootstrap(Lineage(1), NodeId(1), "a:1");
        Self { applier: Applier::new(Arc::new(Store::new(state, 8 << 20))), entropy: SeededEntropy::new(1), index: 1 }
    }

    pub fn state(&self) -> State {
        self.applier.store().snapshot()
    }

    pub fn entry(&mut self, operation: Operation) -> Entry {
        self.index += 1;
        let id = ChangeId::ordered(self.index / 25, self.entropy.next_u128());
        let after = self.applier.store().revision();
        let change = Change { id, after, time: Timestamp(self.index), term: None, operations: vec![operation] };
        let data = encode(&Command::Change(change)).into();
        Entry { index: self.index, term: 1, data, ..Entry::default() }
    }
}
