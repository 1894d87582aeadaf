//! skep: a swarm manager in one small binary.
//!
//! skep is Docker Swarm mode's manager plane rebuilt without Go, gRPC or an async runtime: a Raft node, a replicated
//! object store with tables, transactions and watch, membership over a length-prefixed mutual-TLS protocol, and a
//! certificate authority with join tokens. It runs as a daemon (`skep run`), and embeds as a library.
//!
//! # Map
//!
//! Dedicated OS threads share nothing but bounded queues and the store's read snapshots:
//!
//! ```text
//!  CLI, peers, agents
//!      | TLS 1.3 frames (peers, agents) / plain frames on a unix socket (local CLI)
//!  +---v---+  requests   +--------------------------------------+
//!  |  net  |------------>| services: control, ca, dispatcher    |
//!  | (mio) |<-- replies -+--------+-----------------^-----------+
//!  +-^---+-+                      | Change          | snapshot + events
//!    |   | peer messages          v                 |
//!    | +-v------------------------------+   +-------+---------+
//!    | |  raft: tick / ready loop       |   |  store + watch  |
//!    | +-+-----------^----------+-------+   +-------^---------+
//!    |   | persist   | done     | committed         | the only writer
//!    |   v           |          v                   |
//!    | +-+-----------+-+   +----+-------------------+--+
//!    | |  wal (mmap)   |   |  apply                    |
//!    | +---------------+   +---------------------------+
//!    +--- outgoing peer messages ---
//! ```
//!
//! A write goes one way round: `net` decodes a frame, `control` turns the request and the store's state into a change or
//! a refusal, `raft` proposes, `wal` makes it durable here while peers make it durable there, `apply` checks and applies
//! it, the outcome goes back to `net`, events go to watchers.
//!
//! A stage is not tied to its thread: whoever has a little work for `raft` or `apply` does it at once, if nobody else is at
//! it, because for a lone write the hops between threads took longer than everything else (`sys::stage`).
//!
//! Actors are two files: `machine.rs` decides (no clock, no I/O, no threads, no randomness), `run.rs` does (thread,
//! queues, clock). A whole cluster of machines runs in one thread under one seed in `tests/sim`.
//!
//! # Embedding
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use skep::types::api::Write;
//!
//! let dir = tempfile::tempdir()?;
//! let node = skep::Node::start(skep::Config::local(dir.path()))?;
//! let mut client = node.client()?;
//! let write = Write::CreateConfig { name: "motd".into(), labels: Default::default(), data: b"be kind".to_vec() };
//! let written = client.write(write, Duration::from_secs(10))?;
//! println!("config {} at revision {}", written.id, written.revision);
//! node.stop(Duration::from_secs(5));
//! # Ok(())
//! # }
//! ```
//!
//! # Layers
//!
//! A folder may name only folders above it in this table; `tests/layers.rs` reads it and fails on an upward import.
//!
//! | folder | charter |
//! |---|---|
//! | `sys` | the only door to time, randomness, threads, queues, files, metrics |
//! | `types` | the nouns: ids, revisions, the eleven object kinds, changes, requests, limits; plain serde data |
//! | `codec` | bytes: frames, versioned envelopes with size limits, Raft messages |
//! | `pki` | keys, certificates, tokens, sealing: pure functions of bytes, time and entropy |
//! | `wal` | the log and snapshot files; knows index and term, not contents |
//! | `store` | tables, indexes, read snapshots, transactions, watch |
//! | `apply` | committed entries to store; deterministic, exactly once, the one writer |
//! | `term` | the services of a leader: what each is told and may ask for |
//! | `backup` | the file that holds a whole swarm: written as a stream, sealed, checked |
//! | `raft` | agreement: tikv/raft-rs wrapped in a machine; membership, proposals, reads, snapshots |
//! | `net` | sockets, TLS, frames, peers, routing by call and role; knows no service |
//! | `client` | a blocking caller for the command line, for joining, and for embedders |
//! | `control` | the service behind the command line: validation, changes, queries, redaction |
//! | `ca` | the service that hands out the root certificate and signs nodes' requests |
//! | `roles` | the service that makes a node's role what was asked: promotion, demotion, removal |
//! | `dispatcher` | the service that nodes keep a session with: their role, their roots, the managers |
//! | `agent` | keeps a node's identity alive: certificate, roots, role; talks to the managers for a worker |
//! | `node` | wires all of it: start, leader term, shutdown order |
//! | `cli` | what a person types and reads |

pub mod agent;
pub mod apply;
pub mod backup;
pub mod ca;
pub mod cli;
pub mod client;
pub mod codec;
pub mod control;
pub mod dispatcher;
pub mod net;
pub mod node;
pub mod pki;
pub mod raft;
pub mod roles;
pub mod store;
pub mod sys;
pub mod term;
pub mod types;
pub mod wal;

pub use node::{Config, Node, StartError};
