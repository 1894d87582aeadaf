//! Loops that talk to each other and to hostile strangers, over loopback.

#![allow(clippy::unwrap_used)]

mod harness;
mod links;
mod matrix;
mod refusals;
mod speed;
mod strangers;
