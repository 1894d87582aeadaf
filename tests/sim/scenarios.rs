//! What a swarm must do, one story each.

use skep::raft::{Order, OrderResult, Stop};
use skep::types::api::{Answer, FEATURE_LEVEL};
use skep::types::{Code, NodeId, RaftId};

use crate::node::Cause;
use crate::world::World;
use crate::{check, ms};

const MIB: u64 = 1 << 20;

fn join_order(world: &World, node_id: NodeId, addr: &str) -> Order {
    let _ = world;
    Order::Join { node_id, addr: addr.to_owned(), feature_level: FEATURE_LEVEL }
}

fn refusal(result: OrderResult) -> Code {
    match result {
        OrderResult::Refused(status) => status.code,
        other => panic!("expected a refusal: {other:?}"),
    }
}

// ---- beginning, joining, leaving ----

#[test]
fn one_manager_begins_a_swarm_and_takes_writes() {
    check(4, |seed| {
        let mut world = World::cluster(seed, 1);
        world.write_many(5);
        let only = world.ids()[0];
        assert!(world.read_at(only, ms(200)));
        world.kill(only);
        world.start(only);
        world.recover_and_check();
    });
}

#[test]
fn two_more_managers_join_and_are_promoted_by_themselves() {
    check(6, |seed| {
        let mut world = World::cluster(seed, 3);
        world.write_many(5);
        for id in world.ids() {
            assert!(world.read_at(id, ms(500)), "every manager answers reads");
        }
        world.recover_and_check();
    });
}

#[test]
fn managers_join_under_load() {
    check(4, |seed| {
        let mut world = World::new(seed);
        world.bootstrap();
        world.load(6);
        for _ in 0..4 {
            world.join();
            world.run_for(ms(300));
        }
        world.wait_for_voters(5);
        world.recover_and_check();
    });
}

#[test]
fn a_follower_leaves_and_its_raft_id_is_never_used_again() {
    check(4, |seed| {
        let mut world = World::cluster(seed, 3);
        let leaving = world.followers()[0];
        let done = world.order(&Order::Leave { node_id: leaving, force: false, for_good: true });
        assert_eq!(done, OrderResult::Done(Answer::Done));
        world.run_until("the one that left knows", ms(5000), |world| {
            world.stopped(leaving) == Some(&Cause::Stop(Stop::Removed))
        });
        // The simulated swarm fails when an id is given twice.
        world.join();
        world.wait_for_voters(3);
        // As a node it may be in the swarm still, and be made a manager again: that is another member then.
        let again = world.order(&join_order(&world, leaving, "manager-1b:4242"));
        let OrderResult::Done(Answer::Joined(answer)) = again else { panic!("{again:?}") };
        assert_eq!(answer.raft_id, RaftId(5));
        let done = world.order(&Order::Leave { node_id: leaving, force: false, for_good: true });
        assert_eq!(done, OrderResult::Done(Answer::Done));
        world.recover_and_check();
    });
}

#[test]
fn a_leader_that_leaves_hands_over_first() {
    check(4, |seed| {
        let mut world = World::cluster(seed, 3);
        let leaving = world.wait_for_leader(ms(1000));
        world.load(3);
        let done = world.order(&Order::Leave { node_id: leaving, force: false, for_good: true });
        assert_eq!(done, OrderResult::Done(Answer::Done));
        world.run_until("the one that left knows", ms(5000), |world| {
            world.stopped(leaving) == Some(&Cause::Stop(Stop::Removed))
        });
        world.wait_for_voters(2);
        world.recover_and_check();
    });
}

#[test]
fn the_last_manager_cannot_leave() {
    check(2, |seed| {
        let mut world = World::cluster(seed, 2);
        let (leader, follower) = (world.wait_for_leader(ms(1000)), world.followers()[0]);
        world.order(&Order::Leave { node_id: follower, force: false, for_good: true });
        let last = world.order(&Order::Leave { node_id: leader, force: true, for_good: true });
        assert_eq!(refusal(last), Code::FailedPrecondition);
        world.recover_and_check();
    });
}

#[test]
fn a_manager_is_not_removed_while_the_rest_would_have_no_majority() {
    check(2, |seed| {
        let mut world = World::cluster(seed, 3);
        let followers = world.followers();
        world.kill(followers[0]);
        world.run_for(ms(100));
        let refused = world.order(&Order::Leave { node_id: followers[1], force: false, for_good: true });
        assert_eq!(refusal(refused), Code::FailedPrecondition);
        // The one that is down may go: two of two remain.
        let done = world.order(&Order::Leave { node_id: followers[0], force: false, for_good: true });
        assert_eq!(done, OrderResult::Done(Answer::Done));
        world.start(followers[0]);
        world.run_until("it learns of its removal", ms(3000), |world| world.stopped(followers[0]).is_some());
        world.recover_and_check();
    });
}

#[test]
fn a_join_under_an_address_that_another_member_has_is_refused() {
    check(2, |seed| {
        let mut world = World::cluster(seed, 2);
        let taken = world.order(&join_order(&world, NodeId(99), "manager-1:4242"));
        assert_eq!(refusal(taken), Code::AlreadyExists);
        let old = Order::Join { node_id: NodeId(99), addr: "x:1".into(), feature_level: FEATURE_LEVEL - 1 };
        assert_eq!(refusal(world.order(&old)), Code::FailedPrecondition);
        world.recover_and_check();
    });
}

#[test]
fn a_manager_that_has_nothing_yet_says_so_when_a_snapshot_is_ordered() {
    check(2, |seed| {
        let mut world = World::cluster(seed, 1);
        let joined = world.join();
        let ordered = world.order_at(joined, Order::Snapshot).expect("an answer");
        assert_eq!(refusal(ordered), Code::FailedPrecondition);
        world.recover_and_check();
    });
}

#[test]
fn a_joiner_that_nobody_can_reach_stays_a_learner_and_stops_nothing() {
    check(2, |seed| {
        let mut world = World::cluster(seed, 2);
        let joined = world.order(&join_order(&world, NodeId(99), "nowhere:1"));
        assert!(matches!(joined, OrderResult::Done(Answer::Joined(_))));
        world.run_for(ms(15_000));
        world.write_within(ms(500));
        let leader = world.wait_for_leader(ms(1000));
        assert_eq!((world.voters(leader), world.state(leader).members().len()), (2, 3));
        let done = world.order(&Order::Leave { node_id: NodeId(99), force: false, for_good: true });
        assert_eq!(done, OrderResult::Done(Answer::Done));
        world.recover_and_check();
    });
}

#[test]
fn a_second_join_with_a_new_address_is_a_move() {
    check(2, |seed| {
        let mut world = World::cluster(seed, 3);
        let moved = world.followers()[0];
        let same = world.order(&join_order(&world, moved, &format!("manager-{}:4242", moved.0)));
        let OrderResult::Done(Answer::Joined(answer)) = same else { panic!("{same:?}") };
        assert_eq!(world.order(&join_order(&world, moved, "elsewhere:7")), OrderResult::Done(Answer::Done));
        world.settle();
        for id in world.ids() {
            let member = world.state(id).member_of(moved).unwrap().clone();
            assert_eq!((member.addr.as_str(), member.raft_id), ("elsewhere:7", answer.raft_id));
        }
        assert_eq!(world.state(moved).members().len(), 3);
        world.recover_and_check();
    });
}

#[test]
fn two_joins_at_once_are_both_made_one_after_the_other() {
    check(4, |seed| {
        let mut world = World::cluster(seed, 1);
        world.join();
        world.join();
        world.wait_for_voters(3);
        world.recover_and_check();
    });
}

// ---- leaders come and go ----

#[test]
fn another_manager_leads_within_milliseconds_when_the_leaders_process_dies() {
    check(20, |seed| {
        let mut world = World::cluster(seed, 3);
        world.write_many(3);
        let leader = world.wait_for_leader(ms(5000));
        world.kill(leader);
        world.wait_for_leader(ms(300));
        world.write_within(ms(300));
        world.start(leader);
        world.recover_and_check();
    });
}

#[test]
fn five_managers_fail_over_as_fast() {
    check(10, |seed| {
        let mut world = World::cluster(seed, 5);
        world.load(4);
        world.run_for(ms(200));
        for _ in 0..2 {
            let leader = world.wait_for_leader(ms(5000));
            world.kill(leader);
            world.wait_for_leader(ms(400));
        }
        world.recover_and_check();
    });
}

#[test]
fn a_leader_that_is_cut_off_is_replaced_within_two_and_a_half_seconds() {
    check(10, |seed| {
        let mut world = World::cluster(seed, 3);
        let leader = world.wait_for_leader(ms(5000));
        world.isolate(&[leader]);
        world.run_until("another leads", ms(2500), |world| world.leader().is_some_and(|other| other != leader));
        world.write();
        world.recover_and_check();
    });
}

#[test]
fn a_leader_without_power_is_replaced_within_two_and_a_half_seconds() {
    check(10, |seed| {
        let mut world = World::cluster(seed, 3);
        world.load(4);
        world.run_for(ms(500));
        let leader = world.wait_for_leader(ms(5000));
        world.lose_power(leader);
        world.wait_for_leader(ms(2500));
        world.recover_and_check();
    });
}

#[test]
fn leadership_is_handed_to_the_one_that_was_named() {
    check(6, |seed| {
        let mut world = World::cluster(seed, 3);
        world.load(4);
        world.run_for(ms(200));
        let to = world.followers()[1];
        let done = world.order(&Order::Transfer { to: Some(to) });
        assert_eq!(done, OrderResult::Done(Answer::Leader(to)));
        assert_eq!(world.wait_for_leader(ms(1000)), to);
        let anybody = world.order(&Order::Transfer { to: None });
        assert!(matches!(anybody, OrderResult::Done(Answer::Leader(other)) if other != to), "{anybody:?}");
        world.recover_and_check();
    });
}

#[test]
fn a_transfer_to_somebody_who_is_down_is_refused_and_the_leader_leads_on() {
    check(4, |seed| {
        let mut world = World::cluster(seed, 3);
        let (leader, down) = (world.wait_for_leader(ms(1000)), world.followers()[0]);
        world.kill(down);
        world.run_for(ms(50));
        assert_eq!(refusal(world.order(&Order::Transfer { to: Some(down) })), Code::FailedPrecondition);
        // One that is there and does not answer.
        let silent = *world.followers().iter().find(|id| world.is_running(**id)).unwrap();
        world.pause(silent, true);
        let result = world.order_at(leader, Order::Transfer { to: Some(silent) });
        assert!(matches!(result, Some(OrderResult::Refused(_)) | None), "{result:?}");
        world.recover_and_check();
    });
}

#[test]
fn a_transfer_under_a_leader_that_is_cut_off_has_an_answer_although_nobody_else_is_known_to_lead() {
    let mut unknown = 0;
    for seed in 0..6 {
        let mut world = World::cluster(seed, 3);
        let (leader, to) = (world.wait_for_leader(ms(1000)), world.followers()[0]);
        world.isolate(&[leader]);
        // It has looked for a quorum once since, and will not find one when it looks again.
        world.run_for(ms(1050));
        match world.order_at(leader, Order::Transfer { to: Some(to) }).expect("an answer") {
            OrderResult::Refused(status) if status.code == Code::Unknown => unknown += 1,
            // It had looked again already.
            result => assert_eq!(result, OrderResult::Again, "seed {seed}"),
        }
        world.heal();
        world.recover_and_check();
    }
    assert!(unknown > 0, "no leader was deposed under a transfer");
}

#[test]
fn candidates_that_duel_settle_soon() {
    check(20, |seed| {
        let mut world = World::cluster(seed, 5);
        let leader = world.wait_for_leader(ms(1000));
        world.net.latency_us = (3_000, 20_000);
        world.run_for(ms(1000));
        world.kill(leader);
        world.wait_for_leader(ms(6000));
        world.recover_and_check();
    });
}

#[test]
fn a_voter_that_loses_power_during_an_election_does_not_vote_twice() {
    check(20, |seed| {
        let mut world = World::cluster(seed, 3);
        world.net.latency_us = (2_000, 60_000);
        for _ in 0..12 {
            for id in world.ids() {
                world.lose_power(id);
                world.start(id);
            }
            let mut voted = 0;
            for _ in 0..500 {
                world.run_for(ms(8));
                let ids = world.ids();
                let newest = ids.iter().map(|id| world.term(*id)).max().unwrap_or(0);
                // Whoever has just heard of a new term has perhaps just voted in it.
                if newest > voted {
                    voted = newest;
                    for id in ids.into_iter().filter(|id| world.term(*id) == newest).collect::<Vec<_>>() {
                        if world.entropy.below(2) == 0 {
                            world.lose_power(id);
                            world.start(id);
                        }
                    }
                }
                if world.leader().is_some() {
                    break;
                }
            }
        }
        world.recover_and_check();
    });
}

// ---- followers, quorum, partitions ----

#[test]
fn a_follower_that_was_down_catches_up_from_the_log() {
    check(4, |seed| {
        let mut world = World::cluster(seed, 3);
        let down = world.followers()[0];
        world.kill(down);
        world.load(4);
        world.run_for(ms(3000));
        world.start(down);
        world.recover_and_check();
        assert_eq!(world.snapshot_index(down).0, world.snapshot_index(down).0.min(20), "no snapshot was needed");
    });
}

#[test]
fn without_a_majority_nothing_is_acknowledged_and_with_it_nothing_was_lost() {
    check(4, |seed| {
        let mut world = World::cluster(seed, 3);
        world.load(6);
        world.run_for(ms(300));
        for id in world.followers() {
            world.kill(id);
        }
        world.run_for(ms(100));
        let acked = world.acked.len();
        world.run_for(ms(8000));
        assert_eq!(world.acked.len(), acked);
        world.recover_and_check();
        assert!(world.acked.len() > acked);
    });
}

#[test]
fn requests_without_a_leader_are_answered_and_neither_lost_nor_doubled() {
    check(3, |seed| {
        let mut world = World::cluster(seed, 3);
        world.load(8);
        world.run_for(ms(200));
        let ids = world.ids();
        world.cut(&ids, &ids);
        world.run_for(ms(15_000));
        assert!(world.leader().is_none(), "CheckQuorum deposed it");
        world.recover_and_check();
    });
}

#[test]
fn a_manager_rejoins_after_a_partition_without_an_election() {
    check(6, |seed| {
        let mut world = World::cluster(seed, 3);
        world.load(4);
        let (leader, cut_off) = (world.wait_for_leader(ms(1000)), world.followers()[0]);
        let term = world.term(leader);
        world.isolate(&[cut_off]);
        world.run_for(ms(8000));
        world.heal();
        world.run_for(ms(3000));
        assert_eq!((world.leader(), world.term(leader)), (Some(leader), term), "PreVote keeps it from disturbing");
        world.recover_and_check();
    });
}

#[test]
fn a_one_way_partition_ends_with_a_leader_that_is_heard() {
    check(10, |seed| {
        let mut world = World::cluster(seed, 3);
        world.load(4);
        let (leader, followers) = (world.wait_for_leader(ms(1000)), world.followers());
        match seed % 3 {
            0 => world.cut(&[leader], &followers),
            1 => world.cut(&followers, &[leader]),
            _ => world.cut(&[leader], &followers[..1]),
        }
        world.run_for(ms(6000));
        world.write_within(ms(3000));
        world.recover_and_check();
    });
}

#[test]
fn a_manager_that_was_cut_off_while_a_fourth_joined_helps_to_elect_it() {
    check(10, |seed| {
        let mut world = World::cluster(seed, 3);
        let (leader, cut_off) = (world.wait_for_leader(ms(1000)), world.followers()[0]);
        let other = world.followers()[1];
        world.isolate(&[cut_off]);
        let fourth = world.join();
        world.isolate(&[cut_off]);
        world.run_until("the fourth votes", ms(10_000), |world| world.voters(fourth) == 4);
        // Only the fourth has the newest entries, and the one that does not know it has the vote that decides.
        world.isolate(&[other]);
        world.propose_at(leader);
        world.run_until("the fourth has more", ms(3000), |world| world.last_index(fourth) > world.last_index(other));
        world.lose_power(leader);
        world.heal();
        assert_eq!(world.voters(cut_off), 3);
        assert_eq!(world.wait_for_leader(ms(8000)), fourth);
        world.recover_and_check();
    });
}

#[test]
fn reads_are_answered_though_messages_get_lost() {
    check(4, |seed| {
        let mut world = World::cluster(seed, 3);
        world.net.drop = 200;
        let mut answered = 0;
        for round in 0..20 {
            let id = world.ids()[round % 3];
            answered += u32::from(world.read_at(id, ms(12_000)));
        }
        assert!(answered >= 15, "{answered} of 20");
        world.recover_and_check();
    });
}

// ---- stops and starts ----

#[test]
fn all_start_again_together() {
    check(6, |seed| {
        let mut world = World::cluster(seed, 3);
        world.load(4);
        world.run_for(ms(1000));
        for id in world.ids() {
            world.kill(id);
        }
        world.run_for(ms(100));
        for id in world.ids() {
            world.start(id);
        }
        world.wait_for_leader(ms(5000));
        world.recover_and_check();
    });
}

#[test]
fn all_start_again_one_by_one() {
    check(6, |seed| {
        let mut world = World::cluster(seed, 3);
        world.load(4);
        for id in world.ids() {
            world.run_for(ms(500));
            world.kill(id);
        }
        for id in world.ids() {
            world.run_for(ms(2500));
            world.start(id);
        }
        world.recover_and_check();
    });
}

#[test]
fn a_rolling_restart_under_load_loses_nothing() {
    check(3, |seed| {
        let mut world = World::cluster(seed, 3);
        world.load(6);
        for id in world.ids() {
            world.kill(id);
            world.run_for(ms(400));
            world.start(id);
            world.run_for(ms(2000));
        }
        world.recover_and_check();
    });
}

#[test]
fn all_lose_power_at_once_under_load() {
    check(40, |seed| {
        let mut world = World::cluster_with(seed, 3, |settings| {
            (settings.snapshot_bytes, settings.keep_bytes) = (32 << 10, 8 << 10);
        });
        world.load(8);
        for _ in 0..3 {
            let wait = world.entropy.below(700) + 300;
            world.run_for(ms(wait));
            for id in world.ids() {
                world.lose_power(id);
            }
            for id in world.ids() {
                world.start(id);
            }
        }
        world.recover_and_check();
    });
}

#[test]
fn a_member_that_lost_its_directory_neither_votes_nor_takes_part() {
    check(10, |seed| {
        let mut world = World::cluster(seed, 3);
        world.load(4);
        world.run_for(ms(500));
        let (leader, followers) = (world.wait_for_leader(ms(1000)), world.followers());
        let (wiped, behind) = (followers[0], followers[1]);
        // What is acknowledged now is on the leader and on the one that is wiped.
        world.isolate(&[behind]);
        world.run_for(ms(1000));
        world.load = false;
        world.kill(wiped);
        world.wipe(wiped);
        world.may_fence.insert(wiped);
        world.lose_power(leader);
        world.start(wiped);
        world.heal();
        world.run_for(ms(8000));
        assert!(world.leader().is_none(), "{behind:?} lacks what was acknowledged");
        world.start(leader);
        world.wait_for_leader(ms(10_000));
        world.write();
    });
}

#[test]
fn a_member_that_lost_its_directory_is_fenced_by_its_leader() {
    check(4, |seed| {
        let mut world = World::cluster(seed, 3);
        world.write_many(3);
        let wiped = world.followers()[0];
        world.kill(wiped);
        world.wipe(wiped);
        world.may_fence.insert(wiped);
        world.start(wiped);
        world.run_until("it is fenced", ms(3000), |world| {
            matches!(world.stopped(wiped), Some(Cause::Stop(Stop::Fenced(_))))
        });
        world.recover_and_check();
    });
}

#[test]
fn a_manager_that_stays_away_stops_nothing() {
    check(1, |seed| {
        let mut world = World::cluster(seed, 3);
        let away = world.followers()[0];
        world.lose_power(away);
        world.load(4);
        world.run_for(ms(20_000));
        assert_eq!(world.reigns.len(), 1, "no election");
        world.recover_and_check();
    });
}

// ---- snapshots ----

/// A swarm whose snapshots are due soon.
fn small_snapshots(seed: u64, size: usize) -> World {
    let mut world = World::cluster_with(seed, size, |settings| {
        (settings.snapshot_bytes, settings.keep_bytes) = (64 << 10, 16 << 10);
    });
    world.workload.payload = 1000;
    world
}

#[test]
fn snapshots_are_made_by_size_and_the_log_before_them_goes() {
    check(4, |seed| {
        let mut world = small_snapshots(seed, 3);
        world.load(8);
        world.run_until("everybody compacts", ms(30_000), |world| {
            world.ids().into_iter().all(|id| world.snapshot_index(id).0 > 60 && world.first_index(id).0 > 30)
        });
        world.recover_and_check();
    });
}

#[test]
fn a_follower_far_behind_catches_up_by_snapshot_and_then_by_log() {
    check(6, |seed| {
        let mut world = small_snapshots(seed, 3);
        let down = world.followers()[0];
        let knew = world.state(down).applied().index;
        world.kill(down);
        world.load(8);
        world.run_until("the log no longer reaches back", ms(60_000), |world| {
            let leader = world.leader();
            leader.is_some_and(|leader| world.first_index(leader).0 > knew.0 + 2)
        });
        world.start(down);
        world.run_until("a snapshot is installed", ms(10_000), |world| {
            world.is_running(down) && world.snapshot_index(down).0 > knew.0 + 1
        });
        world.recover_and_check();
    });
}

#[test]
fn a_new_manager_gets_the_data_by_snapshot() {
    check(3, |seed| {
        let mut world = small_snapshots(seed, 2);
        world.load(8);
        world.run_for(ms(4000));
        let new = world.join();
        world.wait_for_voters(3);
        assert!(world.state(new).revision().0 > 50);
        world.recover_and_check();
    });
}

#[test]
fn managers_start_again_from_a_snapshot_and_the_log_after_it() {
    check(6, |seed| {
        let mut world = small_snapshots(seed, 3);
        world.load(8);
        world.run_until("everybody has snapshots", ms(30_000), |world| {
            world.ids().into_iter().all(|id| world.snapshot_index(id).0 > 60)
        });
        for id in world.ids() {
            world.kill(id);
        }
        for id in world.ids() {
            world.start(id);
        }
        world.recover_and_check();
    });
}

#[test]
fn a_snapshot_is_written_on_order() {
    check(2, |seed| {
        let mut world = World::cluster(seed, 3);
        world.write_many(4);
        for id in world.ids() {
            let result = world.order_at(id, Order::Snapshot);
            assert!(matches!(result, Some(OrderResult::Done(Answer::SnapshotWritten { .. }))), "{result:?}");
        }
        world.recover_and_check();
    });
}

#[test]
fn a_snapshot_transfer_survives_a_crash_of_either_side() {
    check(5, |seed| {
        let mut world = small_snapshots(seed, 3);
        let down = world.followers()[0];
        world.lose_power(down);
        world.load(8);
        world.run_for(ms(4000));
        for _ in 0..4 {
            world.start(down);
            let wait = world.entropy.below(300);
            world.run_for(ms(wait));
            let victim = if world.entropy.below(2) == 0 { down } else { world.leader().unwrap_or(down) };
            world.lose_power(victim);
            world.run_for(ms(500));
            for id in world.ids() {
                if !world.is_running(id) && id != down {
                    world.start(id);
                }
            }
            if world.is_running(down) {
                world.kill(down);
            }
        }
        world.recover_and_check();
    });
}

// ---- slow disks, pauses, wrong states ----

#[test]
fn a_leader_whose_disk_stalls_hands_over_after_five_seconds() {
    check(6, |seed| {
        let mut world = World::cluster(seed, 3);
        world.load(4);
        world.run_for(ms(1500));
        let leader = world.wait_for_leader(ms(1000));
        world.stall(leader, true);
        let term = world.term(leader);
        world.run_for(ms(4800));
        assert!(world.ids().iter().all(|id| world.term(*id) == term), "no election before five seconds");
        world.run_until("another leads", ms(2000), |world| world.leader().is_some_and(|other| other != leader));
        world.write();
        world.recover_and_check();
    });
}

#[test]
fn a_disk_that_stalls_for_two_seconds_makes_no_election() {
    check(6, |seed| {
        let mut world = World::cluster(seed, 3);
        world.load(4);
        world.run_for(ms(500));
        let stalled = world.ids()[(seed % 3) as usize];
        let (leader, term) = (world.wait_for_leader(ms(1000)), world.term(stalled));
        world.stall(stalled, true);
        world.run_for(ms(2000));
        world.stall(stalled, false);
        world.run_for(ms(1000));
        assert_eq!((world.leader(), world.term(leader)), (Some(leader), term));
        world.recover_and_check();
    });
}

#[test]
fn a_follower_whose_disk_stalls_does_not_depose_the_leader() {
    check(4, |seed| {
        let mut world = World::cluster(seed, 3);
        world.load(4);
        world.run_for(ms(500));
        let (leader, stalled) = (world.wait_for_leader(ms(1000)), world.followers());
        let term = world.term(leader);
        // Both: without their heartbeat answers the leader would step down.
        for id in &stalled {
            world.stall(*id, true);
        }
        world.run_for(ms(8000));
        assert_eq!((world.leader(), world.term(leader)), (Some(leader), term));
        world.recover_and_check();
    });
}

#[test]
fn a_leader_that_was_paused_serves_nothing_stale_when_it_wakes() {
    check(10, |seed| {
        let mut world = World::cluster(seed, 3);
        world.load(6);
        world.run_for(ms(300));
        let leader = world.wait_for_leader(ms(1000));
        world.pause(leader, true);
        world.run_until("another leads", ms(5000), |world| world.leader().is_some_and(|other| other != leader));
        world.run_for(ms(500));
        world.pause(leader, false);
        // Whatever it answers now is checked against what was acknowledged meanwhile.
        world.read_at(leader, ms(11_000));
        world.recover_and_check();
    });
}

#[test]
fn a_replica_that_differs_from_the_majority_fences_itself() {
    check(6, |seed| {
        let mut world = World::cluster(seed, 3);
        world.write_many(5);
        let leader = world.wait_for_leader(ms(1000));
        let bad = if seed % 2 == 0 { world.followers()[0] } else { leader };
        world.settle();
        world.corrupt(bad);
        world.run_until("it is fenced", ms(20_000), |world| {
            matches!(world.stopped(bad), Some(Cause::Stop(Stop::Fenced(_))))
        });
        world.write();
        world.recover_and_check();
    });
}

#[test]
fn two_replicas_that_differ_raise_an_alarm_and_both_go_on() {
    check(2, |seed| {
        let mut world = World::cluster(seed, 2);
        world.write_many(5);
        world.settle();
        let bad = world.followers()[0];
        world.corrupt(bad);
        world.run_for(ms(20_000));
        assert!(world.is_running(bad));
    });
}

#[test]
fn big_writes_go_through_segments_messages_and_fetches() {
    check(2, |seed| {
        let mut world = small_snapshots(seed, 3);
        world.layout.settings.keep_bytes = 4 * MIB;
        world.workload.payload = 20_000;
        let down = world.followers()[0];
        world.kill(down);
        world.load(8);
        world.run_for(ms(6000));
        world.start(down);
        world.recover_and_check();
    });
}

#[test]
fn a_follower_that_is_installing_a_snapshot_when_its_leader_dies_does_not_fall_over() {
    check(4, |seed| {
        let mut world = small_snapshots(seed, 3);
        let down = world.followers()[0];
        let knew = world.state(down).revision();
        world.kill(down);
        world.load(8);
        world.run_until("the log no longer reaches back", ms(60_000), |world| {
            world.leader().is_some_and(|leader| world.first_index(leader).0 > knew.0 + 20)
        });
        // The snapshot is applied, and the disk has not said yet that it is recorded.
        world.stall(down, true);
        world.start(down);
        world.run_until("the snapshot is applied", ms(10_000), |world| world.state(down).revision() > knew);
        let leader = world.wait_for_leader(ms(1000));
        world.kill(leader);
        world.run_for(ms(5000));
        world.recover_and_check();
    });
}

/// The leader, a follower that has everything, or one that was cut off and lacks the end.
fn heir_of(world: &mut World, seed: u64) -> NodeId {
    let (leader, followers) = (world.wait_for_leader(ms(5000)), world.followers());
    match seed % 3 {
        0 => leader,
        1 => followers[0],
        _ => {
            world.isolate(&[followers[0]]);
            world.run_for(ms(700));
            followers[0]
        }
    }
}

#[test]
fn a_swarm_goes_on_from_any_one_manager_with_all_that_it_held() {
    check(9, |seed| {
        let mut world = World::cluster(seed, 3);
        world.load(4);
        world.watch(4);
        world.run_for(ms(1500));
        let heir = heir_of(&mut world, seed);
        let (before, others) = (world.lineage, world.ids().len() - 1);
        assert!(world.recover_one(heir));
        world.heal();
        assert_eq!(world.wait_for_leader(ms(5000)), heir);
        assert_ne!(world.lineage, before);
        if seed % 3 == 2 {
            assert!(world.acked_and_lost > 0, "the end that it lacked was acknowledged by nobody");
        }
        world.run_for(ms(1000));
        // The others are found again, with their old directories: a majority of the swarm that was.
        let former = world.left_behind();
        assert_eq!(former.len(), others);
        for id in &former {
            world.start(*id);
        }
        world.run_for(ms(6000));
        assert!(former.iter().all(|id| world.outlived.contains(id) && world.is_running(*id)));
        // New managers take their places.
        for _ in 0..2 {
            world.join();
        }
        world.wait_for_voters(3);
        world.run_for(ms(1000));
        world.recover_and_check();
    });
}

#[test]
fn a_swarm_that_was_recovered_can_be_recovered_again() {
    check(4, |seed| {
        let mut world = World::cluster(seed, 3);
        world.load(3);
        world.watch(2);
        for round in 0..3 {
            world.run_for(ms(800));
            let heir = heir_of(&mut world, seed + round);
            assert!(world.recover_one(heir));
            world.heal();
            world.wait_for_leader(ms(5000));
            for _ in 0..2 {
                world.join();
            }
            world.wait_for_voters(3);
            for former in world.left_behind() {
                world.start(former);
            }
        }
        world.recover_and_check();
    });
}
