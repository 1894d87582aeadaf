use crate::world::{World, ms};

/// Runs a scenario under several seeds, or under the one in `SKEP_SIM_SEED`.
pub fn check(seeds: u64, scenario: impl Fn(u64)) {
    match std::env::var("SKEP_SIM_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => scenario(seed),
        None => (1..=seeds).for_each(scenario),
    }
}

#[test]
fn one_manager_begins_a_swarm_and_takes_writes() {
    check(4, |seed| {
        let mut world = World::cluster(seed, 1);
        world.write_many(5);
        world.recover_and_check();
    });
}

#[test]
fn two_more_managers_join_and_are_promoted_by_themselves() {
    check(4, |seed| {
        let mut world = World::cluster(seed, 3);
        world.write_many(5);
        world.recover_and_check();
    });
}

#[test]
fn another_manager_leads_within_milliseconds_when_the_leaders_process_dies() {
    check(6, |seed| {
        let mut world = World::cluster(seed, 3);
        world.write_many(3);
        let leader = world.wait_for_leader(ms(5000));
        world.kill(leader);
        world.wait_for_leader(ms(400));
        world.write_many(3);
        world.start(leader);
        world.recover_and_check();
    });
}
