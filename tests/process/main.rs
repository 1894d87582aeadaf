//! The product as people run it: the real binary, real processes on the loopback, real kills.
//!
//! One swarm at a time: [`swarm::Swarm`] holds a lock while it lives, so that a test's deadlines measure the product and
//! not its neighbours. Nothing sleeps to wait; everything polls with a deadline. When a test fails, the end of every
//! manager's log is printed.
//!
//! What a network does to managers goes through [`proxy`], what a disk does through a small file system ([`full`]) or one
//! that is frozen ([`stalled`], as root only).

#![allow(clippy::unwrap_used)]

mod autolock;
mod backup;
mod bounds;
mod chaos;
mod client;
mod crash;
mod damage;
mod doctor;
mod flood;
mod frozen;
mod full;
mod input;
mod joining;
mod leave;
#[path = "../sim/linear.rs"]
#[allow(dead_code)]
mod linear;
mod links;
mod mounted;
mod moved;
mod partition;
mod proxy;
mod recover;
mod refused;
mod roles;
mod rotation;
mod service;
mod snapshots;
mod stalled;
mod swarm;
mod tokens;
mod tools;
mod watch;
mod workers;
mod writers;
