//! Apply: committed log entries become state, exactly once, in log order, by one writer.
//!
//! [`Applier`] is the machine: one entry in, one [`Effect`] out, no clock, no I/O beyond the store in memory. [`spawn`]
//! gives it a thread. Raft hands over committed entries in batches, each entry perhaps with a token of the proposal that
//! waits for it at this manager, and hears once per batch how far the store is, what became of those proposals, and
//! which membership entries were accepted; only then does it take them up itself.
//!
//! Others may rely on this:
//!
//! - Two replicas that applied the same entries have the same state: what an entry does depends on the entry, its term
//!   and the state, on nothing else. [`crate::store::State::hash`] shows it.
//! - Entries follow each other without a gap and none comes twice. Anything else panics: raft and the store disagree
//!   about where they are, and every guess would let this replica diverge.
//! - An entry that cannot be read stops the process with exit code 5 instead of being skipped, for the same reason. It
//!   was written by a newer version, or by a fault.
//! - A reader never waits for a batch: the store is locked per entry.
//!
//! # What it costs
//!
//! At 128 clients that each create a resource of 256 bytes, on two cores, this thread takes 5 to 7 µs of processor for a
//! change on every manager, of 50 to 70 µs in all on three (per-thread times, at 25,000 changes a second). Shares of one
//! profile, so good to a quarter: looking an id up that is not there yet 1.7 µs (cache misses; the insert that follows finds
//! the path warm), fresh memory from the kernel 1.7, the persistent maps 1.1, SHA-256 1.0, decoding 0.4. What was tried:
//!
//! | what | what it gave |
//! |---|---|
//! | one descent instead of a range of the name index | kept; not measured by itself |
//! | XXH3 instead of SHA-256 | not measured by itself; at most the 1.0 above. Waits for a feature level: replicas compare the sum |
//! | mimalloc | version 2: 57 and 52 µs where 55 and 58 stood, so nothing sure, and 9 % less memory. Version 3, three pairs: the rate is the same, 200 MB resident where 137 stood, and a p99 of 11 ms where 6 stood: thrown out |
//! | one malloc arena, larger steps of growth | nothing beyond noise |
//! | ids in time order, so that new objects are neighbours | nothing, and ids that all begin alike |
//! | applying a request of few entries on the thread that hands it in | kept: with Raft's turns in the same way, see `raft` |
//! | a map of our own instead of `imbl`'s B-trees for objects, names and remembered changes: a trie of 64-way branches by the bits of the key, where the ways of a whole batch of entries are fetched side by side before the first is applied | this thread alone, by `cargo bench --bench apply`: a sixth to a third less, 6.3 to 5.3 and 9.1 to 5.8 µs. Three managers: 59 and 59 µs a write, because two threads of one core already work while the other waits for memory. A start with a million changes, on a slow day: 6.8 s, without it 6.1 to 7.5, and 842 MB instead of 789. Thrown out |
//! | a resource in one allocation for name, kind and payload; keys of 16 and 12 bytes where names and change ids stood; ids aligned as their halves; the index by kind filled in two rounds | kept: 898 to 636 bytes resident for a resource with 100,000 (303 of them its own) and 5.3 to 4.3 µs for this thread alone, by `cargo bench --bench apply`; three managers 112 to 80 MB together with what `raft` keeps |
//! | the object itself in the index of names, where its id stood; a resource of 64 bytes instead of 80, whose variant stands where a length needs no bits; remembered changes found by 32 bits of their ids instead of 64; with `raft`'s 256 KiB of entries that everyone has instead of 1 MiB | kept: three managers with 100,000 resources 77.0 to 77.9 MB before, 72.4 to 73.6 after (linked dynamically, as not released). On a slow day an object was found by name in 213 to 359 ns where 475 to 775 stood (`cargo bench --bench store`), and an update, which now goes down that tree too, cost the same within noise |
//! | a resource's place among those of its kind in 16 bytes instead of 24 (`store`, by age), a remembered event in 80 instead of 112 | kept: three managers with 100,000 resources 69.4 to 70.3 MB before, 68.0 to 69.3 after (linked statically, in turn) |
//! | memory asked for 112 KiB at a time (`sys::memory`), where glibc extends the arena of a thread by 4 KiB | kept: 512 clients on three managers 55.4 µs of processor a create, of the whole machine, before and 52.0 after; means of seven interleaved runs |
//! | and those pages fetched by one call (`MADV_POPULATE_WRITE`) instead of a fault each | 52.1 in the same runs: thrown out, as unsafe code for nothing |
//! | the key of a name as one number, made without a loop over its bytes | kept: 587 instructions for finding a name where 679 stood (callgrind); in time within the noise |
//! | the case of eight letters changed at once | kept: 530 instructions where 587 stood, and 198 to 212 ns where 210 to 313 did (`cargo bench --bench store`, medians of three runs in turn) |
//! | 256 trees, found by eight bits of the key, where one tree for ids and one for names stood | by `cargo bench --bench store` with 10,000 nodes: found by id in 75 to 110 ns where 120 to 165 stood, by name in 131 to 189 where 164 to 240 did, all listed in a quarter more. The apply thread alone no faster: 5.0 and 4.7 µs, means of eight runs. Thrown out |
//! | a B+ tree of our own instead of `imbl`'s, its leaves as long as what they hold | alone, with a million random ids: 35 bytes an entry instead of 42, and 1.5 µs for an insertion instead of 0.8. Thrown out |
//! | sixteen entries decoded and looked up before the first is applied, so that their cache misses overlap | nothing at a start with a million changes: `imbl`'s descents do not overlap. Thrown out |
//! | objects encoded without a size limit, for which bincode walks through each value twice | kept: creating a node 2.2 to 2.5 µs before, 2.04 to 2.16 after (`cargo bench --bench store`) |
//! | one way down each tree for a create: put in, and taken out again if id or name was taken; a remembered change likewise; and a new resource packed without a copy between | kept: three managers and 128 clients 41,000 to 42,000/s before, 44,600 to 48,500 after, in three pairs |
//! | up to 64 changes joined in one log entry | 4 % less processor, 10 MB more resident; and entries that the version before cannot read: thrown out |
//! | secrets and template engines boxed, so that every object is 80 bytes smaller | kept: 197 to 164 MB resident with 150,000 resources |
//!
//! Starting with a million changes behind the last snapshot, each a new resource of 256 bytes, takes 2.4 s where it took
//! 3.6 to 3.9 (pairs on a good day; on a slow one the older figure was 6). What gave it, each step measured with the ones
//! before it:
//!
//! | what | seconds |
//! |---|---|
//! | as entries are applied otherwise | 3.6 to 3.9 |
//! | what is created waits in hash maps and goes into the trees in order when the log has ended (`store`, staged) | 3.0 |
//! | no digests of remembered changes that leave again, no events that the watch ring would have no room for | 2.8 |
//! | objects moved into the tree, without touching each to count references | 2.65 |
//! | names put into their tree by a second thread meanwhile | 2.45 |
//!
//! Tried and thrown out before: a thread that reads, opens and decodes ahead. It took 30 % of the work off this one and gave
//! nothing: on two processors that share their caches, what another thread made is as cold as what lies on the disk.
//! Transparent huge pages gave nothing either, nor did hash tables with a faster hash for what is staged, one lookup in each
//! where two are made, and one for remembered changes instead of their tree: 5.25 s and 5.16 on a slow machine, means of sixteen
//! pairs, whose times differ by a tenth.
//!
//! Not here: whether an entry is committed (`raft`); what a change may do (`store`); recovery, which feeds the same
//! entries to the same [`Applier`] without a thread.

mod machine;
mod run;

pub use machine::{Applier, ApplyError, Effect};
pub use run::{Handle, Progress, Request, Work, spawn};

use crate::codec::{DecodeError, envelope};
use crate::types::limits::MAX_FRAME_BYTES;
use crate::types::log::Command;

/// The payload of a normal log entry.
pub fn encode(command: &Command) -> Vec<u8> {
    envelope::encode(command)
}

/// Reads what [`encode`] wrote.
pub fn decode(payload: &[u8]) -> Result<Command, DecodeError> {
    envelope::decode(payload, MAX_FRAME_BYTES)
}
