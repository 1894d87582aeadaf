//! Measures what the store's operations cost, with 10,000 nodes in it, as the reference implementation's own benchmarks
//! do (`BenchmarkCreateNode` and its neighbours in the Go sources; see README, "Measured").
//!
//! ```text
//! cargo bench --bench store
//! ```
//!
//! Create and update are one log entry each, as the apply thread gets them: decoded, judged, carried out, counted in the
//! state hash, and kept for watchers.
#![allow(clippy::unwrap_used, missing_docs)]

mod entries;

use divan::{Bencher, black_box};
use raft::eraftpb::Entry;
use skep::sys::entropy::{Entropy, SeededEntropy};
use skep::types::object::Node;
use skep::types::{Kind, NodeId, Object, ObjectId, Operation, Role, Selector};

use self::entries::Log;

const NODES: u64 = 10_000;

fn main() {
    divan::main();
}

fn create_node(log: &mut Log, number: u64) -> Entry {
    let mut node = Node::new(NodeId(log.entropy.next_u128()), Role::Worker);
    node.description.hostname = format!("name{number}");
    log.entry(Operation::Create(node.into()))
}

fn filled() -> Log {
    let mut log = Log::new();
    for number in 0..NODES {
        let entry = create_node(&mut log, number);
        log.applier.apply(&entry).unwrap();
    }
    assert_eq!(log.state().count(Kind::Node) as u64, NODES);
    log
}

/// Times entries that were made outside the clock: all of `make`'s for a filled store.
fn apply(bencher: Bencher, make: impl Fn(&mut Log) -> Vec<Entry> + Sync) {
    bencher
        .counter(divan::counter::ItemsCount::new(NODES))
        .with_inputs(|| {
            let mut log = filled();
            let entries = make(&mut log);
            (log, entries)
        })
        .bench_local_values(|(mut log, entries)| {
            for entry in &entries {
                black_box(log.applier.apply(entry).unwrap());
            }
            // Given back, so that freeing it is not timed.
            (log, entries)
        });
}

/// Reference: 10.5 µs for an item.
#[divan::bench(sample_count = 10)]
fn create(bencher: Bencher) {
    apply(bencher, |log| (NODES..2 * NODES).map(|number| create_node(log, number)).collect());
}

/// Reference: 24 µs for an item.
#[divan::bench(sample_count = 10)]
fn update(bencher: Bencher) {
    apply(bencher, |log| {
        let nodes: Vec<Object> = log.state().iter(Kind::Node).map(|stored| stored.object.clone()).collect();
        nodes.into_iter().map(|node| log.entry(Operation::Update(node))).collect()
    });
}

/// Reference: 637 ns.
#[divan::bench(sample_size = 1000)]
fn get(bencher: Bencher) {
    let state = filled().state();
    let mut ids: Vec<ObjectId> = state.iter(Kind::Node).map(|stored| stored.object.id()).collect();
    let mut entropy = SeededEntropy::new(2);
    ids.sort_by_cached_key(|_| entropy.next_u128());
    let mut next = ids.iter().cycle();
    bencher.bench_local(|| state.get(Kind::Node, *next.next().unwrap()).cloned().unwrap());
}

/// Reference: 269 ns.
#[divan::bench(sample_size = 1000)]
fn find_by_name(bencher: Bencher) {
    let state = filled().state();
    let mut names: Vec<String> = (0..NODES).map(|number| format!("name{number}")).collect();
    let mut entropy = SeededEntropy::new(2);
    names.sort_by_cached_key(|_| entropy.next_u128());
    let mut next = names.iter().cycle();
    bencher.bench_local(|| state.by_name(Kind::Node, next.next().unwrap()).cloned().unwrap());
}

/// Reference: 3.75 ms.
#[divan::bench]
fn find_all(bencher: Bencher) {
    let state = filled().state();
    bencher.bench_local(|| {
        let all: Vec<_> = state.find(Kind::Node, &[Selector::All]).into_iter().cloned().collect();
        assert_eq!(all.len() as u64, NODES);
        all
    });
}
