//! Whole swarms under simulated time: real machines, logs and stores in one thread, one seed, over a network, a disk and
//! a clock that do what the seed says. A test that fails prints the seed and the command that runs it again.
#![allow(missing_docs, clippy::unwrap_used)]

mod disk;
mod explore;
mod hashes;
mod node;
mod scenarios;
mod world;

/// Runs a scenario under several seeds: as many as it asks for or `SKEP_SIM_SEEDS` says, or the one in `SKEP_SIM_SEED`.
fn check(seeds: u64, scenario: impl Fn(u64)) {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("SKEP_SIM_SEED") {
        Some(seed) => scenario(seed),
        None => (1..=number("SKEP_SIM_SEEDS").unwrap_or(seeds)).for_each(scenario),
    }
}
