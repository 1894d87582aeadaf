//! Whole swarms under simulated time: real machines, logs and stores in one thread, one seed, over a network, a disk and
//! a clock that do what the seed says. A test that fails prints the seed and the command that runs it again.
#![allow(missing_docs, clippy::unwrap_used)]

mod disk;
mod explore;
mod node;
mod scenarios;
mod world;

/// Runs a scenario under several seeds, or under the one in `SKEP_SIM_SEED`.
fn check(seeds: u64, scenario: impl Fn(u64)) {
    match std::env::var("SKEP_SIM_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => scenario(seed),
        None => (1..=seeds).for_each(scenario),
    }
}
