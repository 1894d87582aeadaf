//! Measures what a manager pays for many objects: processor time for a log entry, and memory.
//!
//! ```text
//! cargo bench --bench apply [-- --objects N]
//! ```
//!
//! Applies encoded log entries, each creating one resource of 256 bytes, until there are N (250,000), as `skep bench write`
//! makes them. Times are processor time of the one thread, so that what else runs on the machine matters little. Memory is
//! what the process has resident, less what it had before, so that it includes what the allocator wastes, the remembered
//! changes and the watch ring, and not the entries, which are made in batches and freed.
#![allow(clippy::unwrap_used, missing_docs)]

mod entries;

use std::hint::black_box;

use rustix::time::{ClockId, clock_gettime};
use skep::sys::entropy::Entropy;
use skep::types::object::{Extension, Resource};
use skep::types::{ObjectId, Operation};

use self::entries::Log;

const STEP: u64 = 50_000;
/// Bytes that every resource has by itself: payload, name and id.
const OWN_BYTES: u64 = 256 + 31 + 16;

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
    let mut log = Log::new();
    let mut extension = Extension { id: ObjectId(7), ..Extension::default() };
    extension.annotations.name = "bench".into();
    apply(&mut log, 1, |_| Operation::Create(extension.clone().into()));
    println!("| objects | ns for a create | resident, bytes for an object | of these its own |");
    println!("|---|---|---|---|");
    let before = resident_bytes();
    for filled in (STEP..=objects).step_by(STEP as usize) {
        let spent = apply(&mut log, STEP, |log| {
            let id = ObjectId(log.entropy.next_u128());
            let mut resource = Resource { id, kind: "bench".into(), payload: vec![7; 256], ..Resource::default() };
            resource.annotations.name = format!("bench-{id}");
            Operation::Create(resource.into())
        });
        println!("| {filled} | {spent:.0} | {} | {OWN_BYTES} |", (resident_bytes() - before) / filled);
    }
}

/// Nanoseconds that this thread has run so far.
fn spent_ns() -> u64 {
    let spent = clock_gettime(ClockId::ThreadCPUTime);
    spent.tv_sec as u64 * 1_000_000_000 + spent.tv_nsec as u64
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel tells resident memory");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("in KiB") * 1024
}

/// Applies entries that `make` prepares in batches outside the clock; nanoseconds for each.
fn apply(log: &mut Log, count: u64, mut make: impl FnMut(&mut Log) -> Operation) -> f64 {
    let revision = log.applier.store().revision().0;
    let mut spent = 0;
    for made in (0..count).step_by(100) {
        let batch: Vec<_> = (made..count.min(made + 100))
            .map(|_| {
                let operation = make(log);
                log.entry(operation)
            })
            .collect();
        let begin = spent_ns();
        for entry in &batch {
            black_box(log.applier.apply(entry).unwrap());
        }
        spent += spent_ns() - begin;
    }
    assert_eq!(log.applier.store().revision().0, revision + count, "every change was committed");
    spent as f64 / count as f64
}
