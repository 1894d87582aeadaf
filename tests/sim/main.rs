//! Whole swarms under simulated time: one thread, one seed, and everything that can go wrong.
//!
//! # What is real, and what is not
//!
//! Real are the machine of `raft` (with raft-rs in it), the log and the snapshot files of `wal` down to their bytes, recovery,
//! `apply`, the store, the watch service of `control`, the encoding of Raft messages, and of `node` the judgement of hellos
//! and the making of a new swarm from one manager's log: the code that a daemon runs, called as its threads call it. Simulated are the threads (their work is a job that
//! finishes later), the network with its connections and pings, the disk, the clocks, and the clients. `disk` keeps what was
//! synced apart from what was written, sector by sector; `world` holds the one queue of everything that happens.
//!
//! # Who uses the swarm
//!
//! Clients (`workload`) use registers that are replaced by version, sets that are listed by an index, and banks of cells
//! that change several at once under conditions. They ask the leader or anybody, repeat a change under its id when no answer
//! comes and sometimes when one came, give up, and read both linearizably and stale at every manager. Watchers with
//! filters follow, some of them slowly, and resume elsewhere when their manager dies.
//!
//! # What happens to it
//!
//! [`explore`] draws a plan from the seed: size, pace, layout, workload, and which of its nemeses take part. Processes are
//! killed, paused and started again, alone and all at once; machines lose power in the middle of a write; disks are
//! slow, stall, fill up, fail a sync, lose a bit or an end of a file, lose everything, or are replaced by an old copy; the
//! network is cut in every shape, in one direction too, loses, repeats, reorders and dawdles; clocks drift; members
//! join, leave, move, and leadership is handed around; all managers but one are lost, and the swarm is begun anew from that
//! one (`world::recovery`), with power cuts within the recovery and former managers that come back afterwards. `scenarios` tells single stories with what must come of each.
//! In `roles` people ask for managers to become workers and the other way round, and the leader's service sees to it.
//!
//! # What must hold
//!
//! Each checker has a name, and [`failure::Failure`] carries it.
//!
//! | checker | promise |
//! |---|---|
//! | `linearizability` | the answers of each register, set and bank have an order (`linear`: Wing, Gong and Lowe's search) |
//! | `serial order` | every outcome, anywhere, is what the log says when a second, simpler store carries it out (`serial`) |
//! | `real time` | a change gets a revision above all that were known when it was first asked for |
//! | `stale read` | a linearizable read sees what anybody was told before it began |
//! | `reads of a prefix` | every read, stale ones too, is of the state at its revision; a process's never go back |
//! | `at most once` | one change id, one answer; as many revisions as changes that committed |
//! | `lost write` | what was acknowledged is there: at every new leader, and on everybody in the end |
//! | `watch` | the nine promises of every watcher's streams, across managers |
//! | `one leader per term`, `log prefix`, `state hash`, `raft id` | what they say |
//! | `durability` | a process finds what the one before it had synced: entries, term, vote |
//! | `promises` | no message says what the disk does not hold yet, and no restart forgets what was said (`promises`) |
//! | `majority` | what is applied anywhere is on the disks of a majority |
//! | `history` | a recovery ends a history: its members take no part any more, are told so, and keep what they have |
//! | `membership` | a leader counts the members that apply decided on |
//! | `snapshot` | what is installed is what was fetched; one is written at a time |
//! | `answers` | every request is answered, once |
//! | `stopped` | nobody stops, or refuses to start, to whom nothing was done |
//! | `liveness` | once everything is healed a write succeeds within `HEALED` in `world::verdict`, and all become equal |
//! | `roles` | whoever leaves the group was asked to, and is no worker before |
//! | `panic` | the product does not panic |
//!
//! `planted` shows that they find bugs: for each of the faults that can be planted, who reports it and within how many seeds.
//!
//! # How to replay
//!
//! Nothing but the seed decides: `the_same_seed_gives_the_same_trace` holds that. `scripts/sim --seed S` runs one seed,
//! `--replay` prints everything that happens under it, every message, sync, answer and fault with its time, and
//! `scripts/sim --for 10m` hunts. A scenario is replayed by the command that its failure prints. A seed means something
//! only for the code that it was found with; what it found is kept as a scenario, or in `SEEDS_KEPT` in `explore`.
//!
//! # What it cannot see
//!
//! Races between threads and their queues, the sockets, TLS and frames of `net`, forwarding and request checks of
//! `control`, the real file system and its mmap, memory that rots apart from the scenarios that say so, and time that code
//! takes. What a former history does after a recovery, if its majority comes back, is not looked at. `peers.json` and the
//! boot counter count as durable at once. At most one member loses its data before it is replaced, because nothing can survive the loss of what a majority holds; an old copy of a directory is put back only
//! when every other manager has met a later start of its member, and not started a second time before it met one, because
//! that is what the guard can know.
#![allow(missing_docs, clippy::unwrap_used)]

mod disk;
mod explore;
mod failure;
mod hashes;
mod history;
mod linear;
mod node;
mod planted;
mod promises;
mod roles;
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
