//! Nodes are promoted and demoted through the store, while managers die and the network is cut.

use skep::raft::Stop;
use skep::types::{NodeId, Role};

use crate::explore::{Nemesis, relief, strike};
use crate::failure::ensure;
use crate::node::Cause;
use crate::world::World;
use crate::{check, ms};

const TROUBLE: &[Nemesis] = &[
    Nemesis::Kill,
    Nemesis::Power,
    Nemesis::Blackout,
    Nemesis::Isolate,
    Nemesis::Halves,
    Nemesis::OneWay,
    Nemesis::CutLeader,
    Nemesis::Weather,
    Nemesis::Pause,
    Nemesis::Clock,
    Nemesis::Transfer,
];

fn one_of<T: Copy>(world: &mut World, choices: &[T]) -> Option<T> {
    let count = choices.len() as u64;
    (count > 0).then(|| choices[world.entropy.below(count) as usize])
}

/// People ask for this and that, in trouble of every kind; in the end every node is what it was asked to be.
pub fn asked_for_in_trouble(seed: u64) {
    let mut world = World::cluster(seed, 3);
    world.begin_roles(6);
    world.load(2);
    let mut fresh = world.court.workers.clone();
    for _ in 0..16 {
        let wait = world.entropy.below(900) + 30;
        world.run_for(ms(wait));
        match world.entropy.below(8) {
            0 | 1 => {
                if let Some(id) = fresh.pop() {
                    world.ask_for(id, Role::Manager);
                }
            }
            2 | 3 => {
                // The leader as often as everybody else together.
                let staying = world.staying();
                let leader = world.leader().filter(|leader| staying.contains(leader) && wait.is_multiple_of(2));
                if let Some(id) = leader.or_else(|| one_of(&mut world, &staying)) {
                    world.ask_for(id, Role::Worker);
                }
            }
            4 | 5 => relief(&mut world),
            _ => {
                if let Some(nemesis) = one_of(&mut world, TROUBLE) {
                    strike(&mut world, nemesis);
                }
            }
        }
    }
    world.relieve();
    world.start_all();
    world.roles_come_true();
    world.recover_and_check();
}

/// A manager was told to become a worker, and before that is done another one dies whom the rest needs now.
pub fn demoted_while_another_dies(seed: u64) {
    let mut world = World::cluster(seed, 3);
    world.begin_roles(0);
    let (demoted, dies) = (world.followers()[0], world.followers()[1]);
    world.court.idle = true;
    ensure!("story", world.ask_for(demoted, Role::Worker), "it is refused, and all of them are there");
    world.kill(dies);
    world.run_for(ms(500));
    world.court.idle = false;
    world.run_for(ms(8000));
    world.write_within(ms(2000));
    world.start(dies);
    world.roles_come_true();
    world.recover_and_check();
}

fn is_out(world: &World, id: NodeId) -> bool {
    world.stopped(id) == Some(&Cause::Stop(Stop::Removed))
}

#[test]
fn whatever_happens_meanwhile_every_node_becomes_what_it_was_asked_to_be() {
    check(40, asked_for_in_trouble);
}

#[test]
fn a_demotion_waits_for_a_majority_of_those_who_are_left() {
    check(6, demoted_while_another_dies);
}

#[test]
fn a_leader_that_is_demoted_hands_over_and_the_next_one_does_the_rest() {
    check(10, |seed| {
        let mut world = World::cluster(seed, 3);
        world.begin_roles(0);
        world.load(3);
        let leader = world.wait_for_leader(ms(1000));
        assert!(world.ask_for(leader, Role::Worker));
        world.run_until("it is no manager any more", ms(10_000), |world| is_out(world, leader));
        world.roles_come_true();
        assert_eq!(world.staying().len(), 2);
        world.recover_and_check();
    });
}

#[test]
fn one_manager_after_the_other_is_replaced_by_a_promoted_worker_under_load() {
    check(6, |seed| {
        let mut world = World::cluster(seed, 3);
        let first = world.ids();
        world.begin_roles(3);
        world.load(3);
        for (old, new) in first.iter().zip(world.court.workers.clone()) {
            assert!(world.ask_for(new, Role::Manager));
            world.roles_come_true();
            assert!(world.ask_for(*old, Role::Worker));
            // Whoever leads when it is asked may be gone before it has done anything.
            if seed.is_multiple_of(2) {
                let leader = world.wait_for_leader(ms(5000));
                world.kill(leader);
                world.wait_for_leader(ms(5000));
                if world.stopped(leader).is_none() {
                    world.start(leader);
                }
            }
            world.roles_come_true();
            world.run_until("the old one knows", ms(10_000), |world| is_out(world, *old));
        }
        assert_eq!(world.staying().len(), 3);
        world.recover_and_check();
    });
}

#[test]
fn the_last_manager_stays_one() {
    check(4, |seed| {
        let mut world = World::cluster(seed, 2);
        world.begin_roles(0);
        let (first, second) = (world.wait_for_leader(ms(1000)), world.followers()[0]);
        // Two people at once, each of another manager.
        world.court.idle = true;
        let asked = [first, second].map(|id| world.ask_for(id, Role::Worker));
        assert_eq!(asked, [true, false], "one must stay");
        world.court.idle = false;
        world.roles_come_true();
        assert_eq!(world.staying(), [second]);
        world.recover_and_check();
    });
}
