//! Faults of every kind in random order; afterwards the swarm must be well and have lost nothing.

use crate::check;
use crate::world::{World, ms};

/// Three to five managers, clients, and a minute of trouble.
fn explore(seed: u64) -> World {
    let size = 3 + (seed % 3) as usize;
    let mut world = World::cluster_with(seed, size, |settings| {
        (settings.snapshot_bytes, settings.keep_bytes) = (24 << 10, 8 << 10);
    });
    world.load(5);
    world.payload = 200;
    for _ in 0..25 {
        let wait = world.entropy.below(900) + 20;
        world.run_for(ms(wait));
        trouble(&mut world);
    }
    world.recover_and_check();
    world
}

fn trouble(world: &mut World) {
    let ids = world.ids();
    let id = ids[world.entropy.below(ids.len() as u64) as usize];
    match world.entropy.below(16) {
        0 | 1 if world.is_running(id) => world.kill(id),
        2 if world.is_running(id) => world.lose_power(id),
        3 => {
            for id in ids {
                if world.is_running(id) {
                    world.lose_power(id);
                }
            }
        }
        4..=7 => {
            for id in ids {
                if !world.is_running(id) && world.stopped(id).is_none() {
                    world.start(id);
                }
            }
        }
        8 => world.isolate(&[id]),
        9 => {
            let others: Vec<_> = ids.into_iter().filter(|other| *other != id).collect();
            world.cut(&[id], &others);
        }
        10 | 11 => world.heal(),
        12 => {
            world.net.drop = world.entropy.below(200);
            world.net.duplicate = world.entropy.below(200);
            world.net.reorder = world.entropy.below(2) == 0;
            world.net.latency_us = (100, 500 + world.entropy.below(60_000));
        }
        13 => world.pause(id, true),
        14 => world.stall(id, true),
        _ => {
            for id in ids {
                world.pause(id, false);
                world.stall(id, false);
            }
        }
    }
}

#[test]
fn a_swarm_survives_every_mix_of_faults() {
    check(100, |seed| drop(explore(seed)));
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    check(3, |seed| {
        let (one, other) = (explore(seed), explore(seed));
        assert_eq!((one.trace, one.acked.len()), (other.trace, other.acked.len()));
    });
}
