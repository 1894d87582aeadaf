//! The product as people run it: the real binary, real processes on the loopback, real kills.
//!
//! One swarm at a time: [`swarm::Swarm`] holds a lock while it lives, so that a test's deadlines measure the product and
//! not its neighbours. Nothing sleeps to wait; everything polls with a deadline. When a test fails, the end of every
//! manager's log is printed.

#![allow(clippy::unwrap_used)]

mod backup;
mod bounds;
mod client;
mod crash;
mod damage;
mod doctor;
mod flood;
mod input;
mod joining;
mod leave;
mod links;
mod recover;
mod refused;
mod service;
mod snapshots;
mod swarm;
mod tools;
mod watch;
mod writers;
