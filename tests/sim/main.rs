//! Whole swarms under simulated time: real machines, logs and stores in one thread, one seed, over a network, a disk and
//! a clock that do what the seed says. A test that fails prints the seed and the command that runs it again.
#![allow(missing_docs, clippy::unwrap_used)]

mod disk;
mod explore;
mod failure;
mod history;
mod linear;
mod node;
mod planted;
mod promises;
mod scenarios;
mod serial;
mod workload;
mod world;

use std::time::Duration;

use skep::sys::time::Instant;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Runs a scenario under several seeds: as many as it asks for or `SKEP_SIM_SEEDS` says, or the one in `SKEP_SIM_SEED`.
fn check(seeds: u64, scenario: impl Fn(u64)) {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let only: Option<u64> = number("SKEP_SIM_SEED");
    let seeds = only.map_or(1..=number("SKEP_SIM_SEEDS").unwrap_or(seeds), |seed| seed..=seed);
    for seed in seeds {
        if let Err(failure) = failure::catch(|| scenario(seed)) {
            let test = std::thread::current().name().unwrap_or_default().to_owned();
            panic!("seed {seed}: {failure}\nreplay: SKEP_SIM_SEED={seed} cargo test --test sim {test}");
        }
    }
}
