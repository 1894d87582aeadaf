//! Faults of every kind in random order; afterwards the swarm must be well and have lost nothing.

use std::time::Duration;

use skep::raft::Order;
use skep::types::NodeId;

use crate::failure::{Failure, catch, fail};
use crate::world::World;
use crate::{check, ms};

/// How far a run goes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Faults and reliefs before everything must be well again.
    pub rounds: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { rounds: 30 }
    }
}

/// What a run did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Digest of everything that happened: equal for equal seeds and settings.
    pub trace: u32,
    /// Simulated time.
    pub simulated: Duration,
    /// Writes that were acknowledged.
    pub acked: usize,
    /// Reads that were answered.
    pub reads: u64,
    /// Leaders that announced themselves.
    pub reigns: usize,
}

/// One seed: a swarm, clients, trouble of every kind, and in the end everything that must hold.
pub fn explore(seed: u64, settings: &Settings) -> Result<Report, Failure> {
    catch(|| run(seed, settings))
}

fn run(seed: u64, settings: &Settings) -> Report {
    let size = 3 + (seed % 3) as usize;
    let mut world = World::cluster_with(seed, size, |settings| {
        (settings.snapshot_bytes, settings.keep_bytes) = (24 << 10, 8 << 10);
    });
    let began = world.now;
    world.workload.payload = 200;
    world.load(3);
    world.watch(4);
    for _ in 0..settings.rounds {
        let wait = world.entropy.below(700) + 20;
        world.run_for(ms(wait));
        if world.entropy.below(2) == 0 { trouble(&mut world) } else { relief(&mut world) }
    }
    world.recover_and_check();
    Report {
        trace: world.trace,
        simulated: world.now.since(began),
        acked: world.acked.len(),
        reads: world.reads_done,
        reigns: world.reigns.len(),
    }
}

/// As [`explore`], for tests.
fn explored(seed: u64) -> Report {
    explore(seed, &Settings::default()).unwrap_or_else(|failure| fail(failure.checker, failure.message))
}

/// One fault. The leader is hit as often as everybody else together.
fn trouble(world: &mut World) {
    let ids = world.ids();
    let any = ids[world.entropy.below(ids.len() as u64) as usize];
    let id = world.leader().filter(|_| world.entropy.below(2) == 0).unwrap_or(any);
    let down = ids.iter().filter(|id| !world.is_running(**id)).count();
    let may_fall = world.is_running(id) && (2 * (down + 1) < ids.len() || world.entropy.below(8) == 0);
    match world.entropy.below(16) {
        0..=2 if may_fall => world.kill(id),
        3 | 4 if may_fall => world.lose_power(id),
        5 => {
            for id in ids.into_iter().filter(|id| world.is_running(*id)).collect::<Vec<_>>() {
                world.lose_power(id);
                world.start(id);
            }
        }
        6 => world.isolate(&[id]),
        7 => {
            let others: Vec<_> = ids.into_iter().filter(|other| *other != id).collect();
            if world.entropy.below(2) == 0 { world.cut(&[id], &others) } else { world.cut(&others, &[id]) }
        }
        8 => {
            world.net.drop = world.entropy.below(200);
            world.net.duplicate = world.entropy.below(200);
            world.net.reorder = world.entropy.below(2) == 0;
            world.net.latency_us = (100, 500 + world.entropy.below(60_000));
        }
        9 => world.pause(id, true),
        10 => world.stall(id, true),
        _ => churn(world, any),
    }
}

/// Something gets better.
fn relief(world: &mut World) {
    let ids = world.ids();
    if world.entropy.below(2) == 0 {
        world.heal();
    }
    for id in ids {
        match world.entropy.below(3) {
            0 if !world.is_running(id) && world.stopped(id).is_none() => world.start(id),
            1 => {
                world.pause(id, false);
                world.stall(id, false);
            }
            _ => {}
        }
    }
}

/// An order at whoever leads, without insisting.
fn churn(world: &mut World, id: NodeId) {
    let Some(leader) = world.leader() else { return };
    let members = world.state(leader).members().len();
    match world.entropy.below(4) {
        0 if members < 6 => world.try_to_join(leader),
        1 if members > 3 => drop(world.order_at(leader, Order::Leave { node_id: id, force: false })),
        2 => drop(world.order_at(leader, Order::Snapshot)),
        _ => drop(world.order_at(leader, Order::Transfer { to: None })),
    }
}

#[test]
fn a_swarm_survives_every_mix_of_faults() {
    check(100, |seed| drop(explored(seed)));
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    check(3, |seed| assert_eq!(explored(seed), explored(seed)));
}
