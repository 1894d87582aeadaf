//! Replicas that are not what they should be: who notices, who stops, and that the others lose nothing.

use skep::raft::Stop;
use skep::raft::journal::Happened;
use skep::types::NodeId;

use crate::node::Cause;
use crate::world::World;
use crate::{check, ms};

/// Three managers with some objects, all caught up; a follower or the leader, by the seed.
fn settled(seed: u64) -> (World, NodeId, bool) {
    let mut world = World::cluster(seed, 3);
    world.write_many(5);
    let leader = world.wait_for_leader(ms(1000));
    world.settle();
    let leads = seed % 2 == 1;
    let bad = if leads { leader } else { world.followers()[0] };
    (world, bad, leads)
}

/// When the leader has stopped somebody else leads already; nobody waited for a timeout.
fn handed_over(world: &World, bad: NodeId, before: u64) {
    let taken = world.ids().into_iter().any(|id| id != bad && world.leads(id) && world.term(id) > before);
    assert!(taken, "nobody has taken over from the leader that fenced itself");
    assert!(world.happened.iter().any(|(id, what)| *id == bad && matches!(what, Happened::HandsOver { .. })));
}

#[test]
fn a_leader_that_the_majority_contradicts_hands_over_before_it_stops() {
    check(6, |seed| {
        let (mut world, bad, leads) = settled(seed);
        let before = world.term(bad);
        world.corrupt(bad);
        world.run_until("it is fenced", ms(20_000), |world| {
            matches!(world.stopped(bad), Some(Cause::Stop(Stop::Fenced(_))))
        });
        if leads {
            handed_over(&world, bad, before);
        }
        world.write();
        world.recover_and_check();
    });
}

#[test]
fn memory_that_rots_in_a_cold_object_is_found_by_the_scrubber_alone() {
    check(6, |seed| {
        let (mut world, bad, leads) = settled(seed);
        let before = world.term(bad);
        world.rot_memory(bad);
        // Marks are compared several times, and everybody agrees.
        for _ in 0..3 {
            world.write();
            world.run_for(ms(12_000));
        }
        assert!(world.is_running(bad));
        assert!(world.ids().into_iter().all(|id| world.alarms(id).is_empty()));
        world.scrub();
        world.run_until("it stops", ms(3000), |world| matches!(world.stopped(bad), Some(Cause::Stop(Stop::Rotten(_)))));
        if leads {
            handed_over(&world, bad, before);
        }
        world.write();
        world.recover_and_check();
        // What is on disk was written before: the process that begins anew is sound.
        world.start(bad);
        world.settle();
        world.scrub();
        world.run_for(ms(3000));
        assert!(world.is_running(bad));
        world.recover_and_check();
    });
}

#[test]
fn a_leader_that_cannot_hand_over_stops_all_the_same() {
    check(3, |seed| {
        let (mut world, bad, _) = settled(seed * 2 + 1);
        for other in world.followers() {
            world.pause(other, true);
        }
        world.rot_memory(bad);
        world.scrub();
        world.run_until("it stops", ms(2500), |world| matches!(world.stopped(bad), Some(Cause::Stop(Stop::Rotten(_)))));
        for other in world.ids() {
            world.pause(other, false);
        }
        world.recover_and_check();
    });
}

#[test]
fn an_alarm_without_a_majority_is_said_once_for_each_mark_and_shown_as_long_as_it_holds() {
    check(2, |seed| {
        let mut world = World::cluster(seed, 2);
        world.write_many(5);
        world.settle();
        let bad = world.followers()[0];
        world.corrupt(bad);
        world.run_until("both know", ms(30_000), |world| world.ids().into_iter().all(|id| world.alarms(id).len() == 1));
        // Pings repeat the marks every second or so.
        world.run_for(ms(30_000));
        for id in world.ids() {
            let told = |(at, what): &&(NodeId, Happened)| *at == id && matches!(what, Happened::HashesDiffer { .. });
            let mut marks: Vec<_> = world.happened.iter().filter(told).map(|(_, what)| *what).collect();
            let told = marks.len();
            marks.dedup();
            assert!(!marks.is_empty() && marks.len() == told, "node {id} repeats itself: {marks:?}");
            assert!(world.is_running(id));
            assert!(world.alarms(id)[0].contains("no majority of 2 voters"), "{:?}", world.alarms(id));
        }
    });
}
