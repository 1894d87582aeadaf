//! The only door to time, randomness, threads, queues, files and metrics.
//!
//! Everything above this folder asks `sys` for what the outside world holds, so that a test can put a twin in its
//! place: machines are handed the time ([`time::Instant`]) instead of reading it, [`files::Disk`] has a simulated
//! implementation in `tests/sim`, and [`entropy::Entropy`] has a seeded one.
//!
//! Not here: any policy. `sys` knows nothing of Raft, objects or peers. The one exception is [`faults`], the list of what
//! tests can have the folders above do wrong; a build without debug assertions holds nothing of it.
//!
//! Invariants: a panic in a thread started by [`thread::spawn`] ends the process; no [`queue`] blocks its sender; every
//! queue is bounded and has a gauge.

pub mod entropy;
pub mod faults;
pub mod files;
pub mod heavy;
pub mod limits;
pub mod memory;
pub mod metrics;
pub mod queue;
pub mod stage;
pub mod thread;
pub mod time;
