//! Faults planted on purpose, to see that what looks for faults finds them.
#![cfg(debug_assertions)]

use skep::raft::Stop;
use skep::sys::faults::{Fault, plant};

use crate::explore::{Settings, explore};
use crate::failure::{Failure, catch, ensure};
use crate::ms;
use crate::node::Cause;
use crate::world::World;

/// A planted fault, and what is expected of the checkers.
struct Row {
    fault: Fault,
    /// Any of these may be the first to see it.
    caught_by: &'static [&'static str],
    /// Of the seeds from 1 to this one, one at least catches it.
    seeds: u64,
    how: How,
}

/// How the fault is brought out.
#[derive(Clone, Copy)]
enum How {
    /// By the general explorer, as it runs for everything else.
    Explored,
    /// By a story that leads to the place.
    Told(fn(u64)),
}

use How::{Explored, Told};

fn run(how: How, seed: u64) -> Result<(), Failure> {
    match how {
        Explored => explore(seed, &Settings::default()).map(drop),
        Told(story) => catch(|| story(seed)),
    }
}

const ROWS: &[Row] = &[
    Row { fault: Fault::DamageCutOff, caught_by: &["durability"], seeds: 5, how: Told(rotten_log) },
    Row { fault: Fault::LeaderOfUnsyncedTerm, caught_by: &["promises"], seeds: 2, how: Told(sole_voter_with_learner) },
    Row { fault: Fault::NoPreVote, caught_by: &["story"], seeds: 5, how: Told(rejoining_manager) },
    Row { fault: Fault::NoCheckQuorum, caught_by: &["story"], seeds: 1, how: Told(leader_cut_off) },
    Row { fault: Fault::LeaderReadsAlone, caught_by: &["stale read"], seeds: 20, how: Told(leader_paused) },
    Row { fault: Fault::StrangersNotHeard, caught_by: &["liveness"], seeds: 3, how: Told(stranger_needs_a_vote) },
    Row { fault: Fault::EmptyLogVotes, caught_by: &["story", "lost write"], seeds: 3, how: Told(wiped_member) },
    Row { fault: Fault::EarlyVotesTaken, caught_by: &["panic"], seeds: 20, how: Told(slow_voters) },
    Row { fault: Fault::LostLogUnnoticed, caught_by: &["panic"], seeds: 1, how: Told(wiped_and_led) },
    Row { fault: Fault::RolledBackWelcome, caught_by: &["lost write"], seeds: 3, how: Told(rolled_back) },
    Row { fault: Fault::SnapshotFailureUntold, caught_by: &["liveness"], seeds: 20, how: Told(snapshot_breaks_off) },
    Row { fault: Fault::SameElectionTimeouts, caught_by: &["liveness"], seeds: 20, how: Told(duel) },
    Row { fault: Fault::LeaderDeathUnnoticed, caught_by: &["liveness"], seeds: 1, how: Told(leader_killed) },
    Row { fault: Fault::StalledLeaderStays, caught_by: &["liveness"], seeds: 1, how: Told(leader_stalled) },
    Row { fault: Fault::DivergenceUnnoticed, caught_by: &["liveness"], seeds: 1, how: Told(replica_corrupted) },
];

// ---- stories ----

/// A manager comes back from a partition in which it has campaigned all the time.
fn rejoining_manager(seed: u64) {
    let mut world = World::cluster(seed, 3);
    let (leader, cut_off) = (world.wait_for_leader(ms(1000)), world.followers()[0]);
    let term = world.term(leader);
    world.isolate(&[cut_off]);
    world.run_for(ms(8000));
    world.heal();
    world.run_for(ms(3000));
    ensure!("story", world.term(leader) == term, "it made an election");
}

/// A leader that is cut off believes in itself for two election timeouts at most.
fn leader_cut_off(seed: u64) {
    let mut world = World::cluster(seed, 3);
    let leader = world.wait_for_leader(ms(1000));
    world.isolate(&[leader]);
    world.run_for(ms(4000));
    let believes = world.nodes[&leader].run.as_ref().is_some_and(|run| run.machine.leadership().serving);
    ensure!("story", !believes, "it leads on");
}

/// A leader that is cut off sleeps while another one takes over, and is asked as soon as it wakes.
fn leader_paused(seed: u64) {
    let mut world = World::cluster(seed, 3);
    world.load(6);
    world.run_for(ms(300));
    let leader = world.wait_for_leader(ms(1000));
    world.isolate(&[leader]);
    world.pause(leader, true);
    world.run_until("another leads", ms(5000), |world| world.leader().is_some_and(|other| other != leader));
    world.run_for(ms(500));
    world.pause(leader, false);
    world.read_at(leader, ms(1000));
}

/// The vote that decides is of a manager that was cut off while the candidate joined.
fn stranger_needs_a_vote(seed: u64) {
    let mut world = World::cluster(seed, 3);
    let (leader, cut_off) = (world.wait_for_leader(ms(1000)), world.followers()[0]);
    let other = world.followers()[1];
    world.isolate(&[cut_off]);
    let fourth = world.join();
    world.isolate(&[cut_off]);
    world.run_until("the fourth votes", ms(10_000), |world| world.voters(fourth) == 4);
    world.isolate(&[other]);
    world.propose_at(leader);
    world.run_until("the fourth has more", ms(3000), |world| world.last_index(fourth) > world.last_index(other));
    world.lose_power(leader);
    world.heal();
    world.wait_for_leader(ms(8000));
}

/// Of the two that had what was acknowledged one is down and one has lost it.
fn wiped_member(seed: u64) {
    let mut world = World::cluster(seed, 3);
    world.load(4);
    world.run_for(ms(500));
    let (leader, followers) = (world.wait_for_leader(ms(1000)), world.followers());
    let (wiped, behind) = (followers[0], followers[1]);
    world.isolate(&[behind]);
    world.run_for(ms(1000));
    world.load = false;
    world.kill(wiped);
    world.wipe(wiped);
    world.lose_power(leader);
    world.start(wiped);
    world.heal();
    world.run_for(ms(8000));
    ensure!("story", world.leader().is_none(), "one leads that lacks what was acknowledged");
}

/// A member that lost its log meets the leader that counts on it.
fn wiped_and_led(seed: u64) {
    let mut world = World::cluster(seed, 3);
    world.write_many(3);
    let wiped = world.followers()[0];
    world.kill(wiped);
    world.wipe(wiped);
    world.start(wiped);
    world.run_until("it is fenced", ms(3000), |world| is_fenced(world, wiped));
}

/// Of the two that had what was acknowledged one is down, and the other gets the directory of a while ago back.
fn rolled_back(seed: u64) {
    let mut world = World::cluster(seed, 3);
    let (leader, followers) = (world.wait_for_leader(ms(1000)), world.followers());
    let (old, behind) = (followers[0], followers[1]);
    world.kill(old);
    world.copy_directory(old);
    world.start(old);
    world.write_many(3);
    world.settle();
    world.isolate(&[behind]);
    world.write_many(3);
    world.kill(old);
    world.restore_directory(old);
    world.lose_power(leader);
    world.start(old);
    world.heal();
    world.run_for(ms(8000));
    ensure!("story", world.leader().is_none(), "one leads that lacks what was acknowledged");
}

fn is_fenced(world: &World, id: skep::types::NodeId) -> bool {
    matches!(world.stopped(id), Some(Cause::Stop(Stop::Fenced(_))))
}

/// Leaders die one after the other, and their voters' raft threads are busy.
fn slow_voters(seed: u64) {
    let mut world = World::cluster(seed, 5);
    world.load(6);
    for _ in 0..12 {
        world.run_for(ms(200));
        let leader = world.wait_for_leader(ms(10_000));
        world.kill(leader);
        world.wait_for_leader(ms(10_000));
        world.start(leader);
    }
}

/// Both sides of a snapshot transfer die in turn.
fn snapshot_breaks_off(seed: u64) {
    let mut world = World::cluster_with(seed, 3, |settings| {
        (settings.snapshot_bytes, settings.keep_bytes) = (64 << 10, 16 << 10);
    });
    world.workload.payload = 1000;
    let down = world.followers()[0];
    world.lose_power(down);
    world.load(8);
    world.run_for(ms(4000));
    for _ in 0..4 {
        world.start(down);
        let wait = world.entropy.below(300);
        world.run_for(ms(wait));
        world.lose_power(down);
        world.run_for(ms(500));
    }
    world.recover_and_check();
}

/// Everybody loses the leader at once, and nobody is told that it is gone.
fn duel(seed: u64) {
    let mut world = World::cluster(seed, 5);
    let leader = world.wait_for_leader(ms(1000));
    world.net.latency_us = (60_000, 90_000);
    world.run_for(ms(1000));
    world.lose_power(leader);
    world.wait_for_leader(ms(10_000));
}

/// A process that is gone is noticed at once.
fn leader_killed(seed: u64) {
    let mut world = World::cluster(seed, 3);
    world.write_many(3);
    let leader = world.wait_for_leader(ms(5000));
    world.kill(leader);
    world.wait_for_leader(ms(300));
}

/// A leader that can write nothing hands over.
fn leader_stalled(seed: u64) {
    let mut world = World::cluster(seed, 3);
    world.load(4);
    world.run_for(ms(1500));
    let leader = world.wait_for_leader(ms(1000));
    world.stall(leader, true);
    world.run_until("another leads", ms(7000), |world| world.leader().is_some_and(|other| other != leader));
}

/// One replica's memory is not what it was.
fn replica_corrupted(seed: u64) {
    let mut world = World::cluster(seed, 3);
    world.write_many(5);
    let bad = world.followers()[0];
    world.settle();
    world.corrupt(bad);
    world.run_until("it is fenced", ms(20_000), |world| is_fenced(world, bad));
}

/// The only voter starts again while a learner is still empty.
fn sole_voter_with_learner(seed: u64) {
    let mut world = World::new(seed);
    let first = world.bootstrap();
    let learner = world.join();
    world.kill(learner);
    world.lose_power(first);
    world.start(first);
    world.start(learner);
    world.wait_for_voters(2);
}

/// A batch in the middle of a log rots while its manager is down.
fn rotten_log(seed: u64) {
    let mut world = World::cluster(seed, 3);
    world.write_many(40);
    let rotten = world.followers()[0];
    world.kill(rotten);
    if !world.rot(rotten, crate::disk::Rot::Flip) {
        return;
    }
    world.lost = Some(rotten);
    world.start(rotten);
}

#[test]
#[ignore = "a look at what finds which fault, for whoever changes the table"]
fn survey() {
    let most = std::env::var("SKEP_SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10_u64);
    let only = std::env::var("FAULT").ok();
    let stories = std::env::var_os("STORIES").is_some();
    for fault in Fault::ALL {
        if only.as_ref().is_some_and(|only| !only.split(',').any(|name| format!("{fault:?}") == name)) {
            continue;
        }
        let how = ROWS.iter().find(|row| row.fault == *fault && stories).map_or(Explored, |row| row.how);
        if stories && matches!(how, Explored) {
            continue;
        }
        if stories && let Some(bad) = (1..=most).find_map(|seed| run(how, seed).err().map(|failure| (seed, failure))) {
            println!("{fault:?} | NOT PLANTED {bad:?}");
        }
        let _planted = plant(Some(*fault));
        let began = std::time::Instant::now();
        let found = (1..=most).find_map(|seed| run(how, seed).err().map(|failure| (seed, failure)));
        match found {
            Some((seed, failure)) => {
                let text: String = failure.to_string().chars().take(180).collect();
                println!("{fault:?} | {seed} | {text} | {:?}", began.elapsed());
            }
            None => println!("{fault:?} | - | {:?}", began.elapsed()),
        }
    }
}
