//! Whole swarms under simulated time: real machines, logs and stores in one thread, one seed, over a network, a disk and
//! a clock that do what the seed says. A test that fails prints the seed and the command that runs it again.
#![allow(missing_docs, clippy::unwrap_used)]

mod disk;
mod node;
mod scenarios;
mod world;
