//! Measures the store alone: what one entry costs the apply thread, and what a read costs.
//!
//! ```text
//! cargo bench --bench store [-- [--objects N]]
//! ```
//!
//! The first table has the operations of the reference implementation's own benchmarks, with 10,000 nodes. The second
//! applies encoded log entries, each creating one resource of 256 bytes, with N objects (250,000) there already, as
//! `skep bench write` makes them. Times are processor time of the one thread, so that what else runs on the machine
//! matters little.
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::sync::Arc;

use raft::eraftpb::Entry;
use skep::apply::{Applier, encode};
use skep::store::{State, Store};
use skep::sys::entropy::{Entropy, SeededEntropy};
use skep::types::log::Command;
use skep::types::object::{Extension, Node, Resource};
use skep::types::{
    Change, ChangeId, Kind, Lineage, NodeId, Object, ObjectId, Operation, Revision, Role, Selector, Timestamp,
};

const NODES: u64 = 10_000;

fn main() {
    let mut objects = 250_000;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--objects" => {
                objects = arguments.next().and_then(|text| text.parse().ok()).expect("--objects takes a number")
            }
            // From cargo.
            "--bench" => {}
            other => panic!("unknown argument {other}"),
        }
    }
    operations();
    entries(objects);
}

/// Nanoseconds that this thread has run so far.
fn spent_ns() -> u64 {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").expect("the kernel counts run time");
    statistics.split(' ').next().and_then(|text| text.parse().ok()).expect("the first field is nanoseconds")
}

/// Entries in log order, into one store.
struct Log {
    applier: Applier,
    entropy: SeededEntropy,
    index: u64,
}

impl Log {
    fn new() -> Self {
        let state = State::bootstrap(Lineage(1), NodeId(1), "a:1");
        Self { applier: Applier::new(Arc::new(Store::new(state, 8 << 20))), entropy: SeededEntropy::new(1), index: 1 }
    }

    fn entry(&mut self, operation: Operation, after: Revision) -> Entry {
        self.index += 1;
        let id = ChangeId::ordered(self.index / 25, self.entropy.next_u128());
        let change = Change { id, after, time: Timestamp(self.index), term: None, operations: vec![operation] };
        let data = encode(&Command::Change(change)).into();
        Entry { index: self.index, term: 1, data, ..Entry::default() }
    }

    fn revision(&self) -> Revision {
        self.applier.store().revision()
    }

    /// Applies entries that `make` prepares in batches outside the clock; nanoseconds for each.
    fn apply(&mut self, count: u64, mut make: impl FnMut(&mut Self, u64) -> Operation) -> f64 {
        let mut spent = 0;
        let mut made = 0;
        while made < count {
            let after = self.revision();
            let batch: Vec<_> = (made..count.min(made + 1000))
                .map(|number| {
                    let operation = make(self, number);
                    self.entry(operation, after)
                })
                .collect();
            made += batch.len() as u64;
            let begin = spent_ns();
            for entry in &batch {
                black_box(self.applier.apply(entry).unwrap());
            }
            spent += spent_ns() - begin;
        }
        assert!(self.revision().0 >= count, "every change was committed");
        spent as f64 / count as f64
    }
}

fn node(number: u64, entropy: &mut SeededEntropy) -> Object {
    let mut node = Node::new(NodeId(entropy.next_u128()), Role::Worker);
    node.spec.annotations.name = format!("name{number}");
    node.into()
}

fn operations() {
    let mut log = Log::new();
    let create = log.apply(NODES, |log, number| Operation::Create(node(number, &mut log.entropy)));
    let state = log.applier.store().snapshot();
    let nodes: Vec<Object> = state.iter(Kind::Node).map(|stored| stored.object.clone()).collect();
    drop(state);
    let update = log.apply(NODES, |_, number| Operation::Update(nodes[number as usize].clone()));
    let state = log.applier.store().snapshot();
    let ids: Vec<ObjectId> = nodes.iter().map(Object::id).collect();
    let each = |what: &mut dyn FnMut(u64)| {
        let begin = spent_ns();
        (0..NODES).for_each(what);
        (spent_ns() - begin) as f64 / NODES as f64
    };
    let get = each(&mut |number| drop(black_box(state.get(Kind::Node, ids[number as usize]).cloned())));
    let names: Vec<String> = (0..NODES).map(|number| format!("name{number}")).collect();
    let by_name = each(&mut |number| drop(black_box(state.by_name(Kind::Node, &names[number as usize]).cloned())));
    let begin = spent_ns();
    for _ in 0..100 {
        black_box(state.find(Kind::Node, &[Selector::All]).len());
    }
    let all = (spent_ns() - begin) as f64 / 100.0;
    println!(
        "with {NODES} nodes: create {create:.0} ns, update {update:.0} ns, get {get:.0} ns, find by name {by_name:.0} ns, find all {:.1} µs",
        all / 1e3
    );
}

fn entries(objects: u64) {
    let mut log = Log::new();
    let mut extension = Extension { id: ObjectId(7), ..Extension::default() };
    extension.annotations.name = "bench".into();
    log.apply(1, |_, _| Operation::Create(extension.clone().into()));
    let mut resource = |log: &mut Log, _| {
        let id = ObjectId(log.entropy.next_u128());
        let mut resource = Resource { id, kind: "bench".into(), payload: vec![7; 256], ..Resource::default() };
        resource.annotations.name = format!("bench-{id}");
        Operation::Create(resource.into())
    };
    let mut filled = 0;
    while filled < objects {
        let step = 50_000.min(objects - filled);
        let spent = log.apply(step, &mut resource);
        filled += step;
        println!("create with {filled} objects: {spent:.0} ns");
    }
}
