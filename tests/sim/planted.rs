//! Faults planted on purpose: what looks for faults must find them.
//!
//! A checker that has never found anything proves nothing. Each fault below stands as one line in the product where it
//! would have been made ([`skep::sys::faults`]), and is planted for the length of a run. Then the seeds from 1 on are run
//! until a checker reports; it must be one of those named here, and it must come within the seeds named here. Without the
//! fault the same seeds are clean.
//!
//! *Explored* is the general explorer as it runs for everything else: it knows nothing of the fault. *Focused* is the
//! explorer with a few of its nemeses alone, because among all of them the ones that are needed meet too seldom for a
//! short test. A *story* leads to the place step by step:
//! because the product hides the fault from everything but time (a slower failover breaks no promise), because another
//! guard stands behind the one that is left out, or because what must coincide coincides once in thousands of runs.
//!
//! | fault | what goes wrong | caught by | how | seeds |
//! |---|---|---|---|---|
//! | `WriteNotSynced` | power loss takes back what was acknowledged | durability, promises, stopped | explored | 20 |
//! | `VoteNotWritten` | a restart forgets a term and a vote | promises, durability | explored | 20 |
//! | `SegmentNameNotSynced` | power loss takes a whole segment | stopped, durability, promises, log prefix | explored | 40 |
//! | `SnapshotNameNotSynced` | power loss takes the snapshot that the log rests on | stopped | explored | 20 |
//! | `CommitBeyondEntries` | a log that was written well cannot be read | stopped | explored | 200 |
//! | `TornTailLeft` | what a crash tore is damage at the next start | stopped | story | 10 |
//! | `DamageCutOff` | one flipped bit takes back what was acknowledged | durability, promises | focused | 40 |
//! | `TruncationForgotten` | a log whose end was replaced cannot be read | stopped | focused | 60 |
//! | `SnapshotUnrecorded` | the log begins after its snapshot | stopped | explored | 10 |
//! | `LeaderCountsUnsynced` | a minority's disks hold what was acknowledged | majority | explored | 10 |
//! | `LeaderOfUnsyncedTerm` | a learner holds entries of a term that begins anew | promises | story | 2 |
//! | `AppendAnsweredBeforeSync` | power loss takes back what a follower acknowledged | promises, majority | explored | 10 |
//! | `VoteAnsweredBeforeSync` | power loss takes back a vote | promises | explored | 10 |
//! | `HeartbeatOfUnsyncedTerm` | power loss takes back a term that was confirmed | promises | explored | 10 |
//! | `SnapshotWithoutHardState` | a restart after a snapshot forgets term and vote | durability, promises | focused | 60 |
//! | `MembershipBeforeCommitSynced` | a restart brings back an older configuration | promises | explored | 50 |
//! | `MembershipAtProposal` | entries are counted by members nobody agreed on | membership | explored | 10 |
//! | `NoPreVote` | who comes back from a partition deposes the leader | story | story | 5 |
//! | `NoCheckQuorum` | a leader that nobody hears goes on as one | story | story | 1 |
//! | `StaleRead` | a read misses what was acknowledged before it | stale read, linearizability | explored | 10 |
//! | `LeaderReadsAlone` | a leader that slept answers, or refuses, from the past | stale read | story | 10 |
//! | `ReadBeforeApplied` | a read misses what was acknowledged before it | stale read, linearizability | explored | 10 |
//! | `LateReadInRound` | a read misses what was acknowledged after its round began | stale read, linearizability | focused | 60 |
//! | `ServesBeforeOwnTerm` | a new leader answers before it knows what there is | lost write | explored | 60 |
//! | `StrangersNotHeard` | no leader, for want of a vote that may not be given | liveness | story | 3 |
//! | `EmptyLogVotes` | a majority of which one lost its data forgets | lost write, log prefix, story | story | 5 |
//! | `EarlyVotesTaken` | raft-rs panics when it wins | panic | explored | 120 |
//! | `LostLogUnnoticed` | raft-rs panics at a commit index beyond the log | panic | explored | 30 |
//! | `RolledBackWelcome` | a majority of which one is of last week forgets | lost write, log prefix, story | story | 5 |
//! | `SnapshotWithoutReceiver` | a new member ignores snapshots that do not name it | liveness | explored | 10 |
//! | `SnapshotFailureUntold` | a follower whose transfer broke off waits for ever | liveness | story | 10 |
//! | `SameElectionTimeouts` | candidates meet again and again | liveness | story | 30 |
//! | `LostDuelWaits` | two candidates of which none wins cost another timeout | liveness | story | 60 |
//! | `LeaderDeathUnnoticed` | seconds without a leader instead of milliseconds | liveness | story | 1 |
//! | `StalledLeaderStays` | nothing is written for as long as a disk hangs | liveness | story | 1 |
//! | `DivergenceUnnoticed` | a replica that is wrong votes and serves | liveness | story | 1 |
//! | `QuorumUnguarded` | a demotion takes the majority with it | liveness | story | 1 |
//! | `WorkerWhileMember` | who counts as a worker votes, and may be the leader | roles | story | 5 |
//! | `LineageKept` | former managers that come back are taken for removed ones, and give up what they have | history | story | 3 |
//! | `RevisionNotRaised` | revisions that were told to somebody are given away again | history | story | 1 |
//! | `TailNotRaised` | a version that the lost managers told somebody names something else | history | story | 3 |
//! | `RecoveredToCommit` | a recovery leaves out what its manager had acknowledged | lost write | story | 10 |
//! | `RecoveryForgetsChanges` | a retry makes a change a second time in the swarm that was recovered | lost write | story | 1 |
//! | `ClockInApply` | replicas differ | serial order, state hash | explored | 10 |
//! | `AppliedTwice` | an entry counts twice after a restart | panic | explored | 10 |
//! | `RepeatedChangeApplied` | a retry makes the change a second time, or is told that it failed | serial order, at most once | explored | 10 |
//! | `ChangeForgottenEarly` | a retry makes the change a second time | lost write, at most once, serial order | explored | 10 |
//! | `SnapshotForgetsChanges` | a retry does, where a snapshot was installed | state hash, serial order | explored | 10 |
//! | `RefusalTakesRevision` | revisions have gaps | reads of a prefix, serial order, panic | explored | 10 |
//! | `RefusedChangeHalfDone` | a change that was refused has happened in part | reads of a prefix, serial order, linearizability | explored | 10 |
//! | `VersionUnchecked` | a lost update | serial order, linearizability | explored | 10 |
//! | `RequireUnchecked` | a change is made on conditions that do not hold | serial order, linearizability | explored | 10 |
//! | `NameUnchecked` | two objects of one name | serial order | explored | 10 |
//! | `NameIndexStale` | two objects of one name, or a name that is taken by nobody | serial order, state hash | explored | 10 |
//! | `TermUnchecked` | an old leader's decision is carried out under a new one | serial order | explored | 30 |
//! | `RaftIdReused` | a new member is taken for one that was removed | raft id | explored | 20 |
//! | `EventsOutOfOrder` | a watcher sees a change backwards | serial order | explored | 10 |
//! | `EventsMissing` | a watcher sees a part of a change | serial order, watch | explored | 10 |
//! | `WatchGapAtInstall` | a watcher misses changes without a word | watch | explored | 20 |
//!
//! `panic` is an assertion of the product or of raft-rs. `stopped` is a manager that stops or does not start though nothing
//! was done to it. `story` is the last line of the story.
#![cfg(debug_assertions)]

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use skep::raft::Stop;
use skep::sys::faults::{Fault, plant};

use crate::explore::{Nemesis, Settings, explore};
use crate::failure::{Failure, catch, ensure};
use crate::ms;
use crate::node::Cause;
use crate::roles;
use crate::world::World;

/// A planted fault, and what is expected of the checkers.
struct Row {
    fault: Fault,
    /// What goes wrong, for the table.
    harm: &'static str,
    /// Any of these may be the first to see it.
    caught_by: &'static [&'static str],
    how: How,
    /// Of the seeds from 1 to this one, one at least catches it.
    seeds: u64,
}

/// How the fault is brought out.
#[derive(Clone, Copy)]
enum How {
    /// By the general explorer, as it runs for everything else.
    Explored,
    /// By the explorer, with these nemeses only.
    Focused(&'static [Nemesis]),
    /// By a story that leads to the place.
    Story(fn(u64)),
}

use How::{Explored, Focused, Story};

const fn row(fault: Fault, harm: &'static str, caught_by: &'static [&'static str], how: How, seeds: u64) -> Row {
    Row { fault, harm, caught_by, how, seeds }
}

const NEWCOMERS_AND_CRASHES: &[Nemesis] =
    &[Nemesis::Join, Nemesis::Leave, Nemesis::Power, Nemesis::Blackout, Nemesis::Kill];

const PARTITIONS_AND_RESTARTS: &[Nemesis] =
    &[Nemesis::Isolate, Nemesis::Halves, Nemesis::RestartAll, Nemesis::Kill, Nemesis::Transfer];

#[rustfmt::skip]
const ROWS: &[Row] = &[
    row(Fault::WriteNotSynced, "power loss takes back what was acknowledged", &["durability", "promises", "stopped"], Explored, 20),
    row(Fault::VoteNotWritten, "a restart forgets a term and a vote", &["promises", "durability"], Explored, 20),
    row(Fault::SegmentNameNotSynced, "power loss takes a whole segment", &["stopped", "durability", "promises", "log prefix"], Explored, 40),
    row(Fault::SnapshotNameNotSynced, "power loss takes the snapshot that the log rests on", &["stopped"], Explored, 20),
    row(Fault::CommitBeyondEntries, "a log that was written well cannot be read", &["stopped"], Explored, 200),
    row(Fault::TornTailLeft, "what a crash tore is damage at the next start", &["stopped"], Story(power_again_and_again), 10),
    row(Fault::DamageCutOff, "one flipped bit takes back what was acknowledged", &["durability", "promises"], Focused(&[Nemesis::Flip, Nemesis::Truncate]), 40),
    row(Fault::TruncationForgotten, "a log whose end was replaced cannot be read", &["stopped"], Focused(PARTITIONS_AND_RESTARTS), 60),
    row(Fault::SnapshotUnrecorded, "the log begins after its snapshot", &["stopped"], Explored, 10),
    row(Fault::LeaderCountsUnsynced, "a minority's disks hold what was acknowledged", &["majority"], Explored, 10),
    row(Fault::LeaderOfUnsyncedTerm, "a learner holds entries of a term that begins anew", &["promises"], Story(sole_voter_with_learner), 2),
    row(Fault::AppendAnsweredBeforeSync, "power loss takes back what a follower acknowledged", &["promises", "majority"], Explored, 10),
    row(Fault::VoteAnsweredBeforeSync, "power loss takes back a vote", &["promises"], Explored, 10),
    row(Fault::HeartbeatOfUnsyncedTerm, "power loss takes back a term that was confirmed", &["promises"], Explored, 10),
    row(Fault::SnapshotWithoutHardState, "a restart after a snapshot forgets term and vote", &["durability", "promises"], Focused(NEWCOMERS_AND_CRASHES), 60),
    row(Fault::MembershipBeforeCommitSynced, "a restart brings back an older configuration", &["promises"], Explored, 50),
    row(Fault::MembershipAtProposal, "entries are counted by members nobody agreed on", &["membership"], Explored, 10),
    row(Fault::NoPreVote, "who comes back from a partition deposes the leader", &["story"], Story(rejoining_manager), 5),
    row(Fault::NoCheckQuorum, "a leader that nobody hears goes on as one", &["story"], Story(leader_cut_off), 1),
    row(Fault::StaleRead, "a read misses what was acknowledged before it", &["stale read", "linearizability"], Explored, 10),
    row(Fault::LeaderReadsAlone, "a leader that slept answers, or refuses, from the past", &["stale read"], Story(leader_paused), 10),
    row(Fault::ReadBeforeApplied, "a read misses what was acknowledged before it", &["stale read", "linearizability"], Explored, 10),
    row(Fault::LateReadInRound, "a read misses what was acknowledged after its round began", &["stale read", "linearizability"], Focused(&[Nemesis::Weather, Nemesis::Flaky]), 60),
    row(Fault::ServesBeforeOwnTerm, "a new leader answers before it knows what there is", &["lost write"], Explored, 60),
    row(Fault::StrangersNotHeard, "no leader, for want of a vote that may not be given", &["liveness"], Story(stranger_needs_a_vote), 3),
    row(Fault::EmptyLogVotes, "a majority of which one lost its data forgets", &["lost write", "log prefix", "story"], Story(wiped_member), 5),
    row(Fault::EarlyVotesTaken, "raft-rs panics when it wins", &["panic"], Explored, 120),
    row(Fault::LostLogUnnoticed, "raft-rs panics at a commit index beyond the log", &["panic"], Explored, 30),
    row(Fault::RolledBackWelcome, "a majority of which one is of last week forgets", &["lost write", "log prefix", "story"], Story(rolled_back), 5),
    row(Fault::SnapshotWithoutReceiver, "a new member ignores snapshots that do not name it", &["liveness"], Explored, 10),
    row(Fault::SnapshotFailureUntold, "a follower whose transfer broke off waits for ever", &["liveness"], Story(transfer_breaks_off), 10),
    row(Fault::SameElectionTimeouts, "candidates meet again and again", &["liveness"], Story(duel), 30),
    row(Fault::LostDuelWaits, "two candidates of which none wins cost another timeout", &["liveness"], Story(lost_duel), 60),
    row(Fault::LeaderDeathUnnoticed, "seconds without a leader instead of milliseconds", &["liveness"], Story(leader_killed), 1),
    row(Fault::StalledLeaderStays, "nothing is written for as long as a disk hangs", &["liveness"], Story(leader_stalled), 1),
    row(Fault::DivergenceUnnoticed, "a replica that is wrong votes and serves", &["liveness"], Story(replica_corrupted), 1),
    row(Fault::QuorumUnguarded, "a demotion takes the majority with it", &["liveness"], Story(roles::demoted_while_another_dies), 1),
    row(Fault::WorkerWhileMember, "who counts as a worker votes, and may be the leader", &["roles"], Story(roles::asked_for_in_trouble), 5),
    row(Fault::LineageKept, "former managers that come back are taken for removed ones, and give up what they have", &["history"], Story(recovered), 3),
    row(Fault::RevisionNotRaised, "revisions that were told to somebody are given away again", &["history"], Story(recovered), 1),
    row(Fault::TailNotRaised, "a version that the lost managers told somebody names something else", &["history"], Story(recovered_with_a_tail), 3),
    row(Fault::RecoveredToCommit, "a recovery leaves out what its manager had acknowledged", &["lost write"], Story(recovered), 10),
    row(Fault::RecoveryForgetsChanges, "a retry makes a change a second time in the swarm that was recovered", &["lost write"], Story(recovered), 1),
    row(Fault::ClockInApply, "replicas differ", &["serial order", "state hash"], Explored, 10),
    row(Fault::AppliedTwice, "an entry counts twice after a restart", &["panic"], Explored, 10),
    row(Fault::RepeatedChangeApplied, "a retry makes the change a second time, or is told that it failed", &["serial order", "at most once"], Explored, 10),
    row(Fault::ChangeForgottenEarly, "a retry makes the change a second time", &["lost write", "at most once", "serial order"], Explored, 10),
    row(Fault::SnapshotForgetsChanges, "a retry does, where a snapshot was installed", &["state hash", "serial order"], Explored, 10),
    row(Fault::RefusalTakesRevision, "revisions have gaps", &["reads of a prefix", "serial order", "panic"], Explored, 10),
    row(Fault::RefusedChangeHalfDone, "a change that was refused has happened in part", &["reads of a prefix", "serial order", "linearizability"], Explored, 10),
    row(Fault::VersionUnchecked, "a lost update", &["serial order", "linearizability"], Explored, 10),
    row(Fault::RequireUnchecked, "a change is made on conditions that do not hold", &["serial order", "linearizability"], Explored, 10),
    row(Fault::NameUnchecked, "two objects of one name", &["serial order"], Explored, 10),
    row(Fault::NameIndexStale, "two objects of one name, or a name that is taken by nobody", &["serial order", "state hash"], Explored, 10),
    row(Fault::TermUnchecked, "an old leader's decision is carried out under a new one", &["serial order"], Explored, 30),
    row(Fault::RaftIdReused, "a new member is taken for one that was removed", &["raft id"], Explored, 20),
    row(Fault::EventsOutOfOrder, "a watcher sees a change backwards", &["serial order"], Explored, 10),
    row(Fault::EventsMissing, "a watcher sees a part of a change", &["serial order", "watch"], Explored, 10),
    row(Fault::WatchGapAtInstall, "a watcher misses changes without a word", &["watch"], Explored, 20),
];

fn run(how: How, seed: u64) -> Result<(), Failure> {
    let focus = |nemeses: &[Nemesis]| Settings { nemeses: Some(nemeses.to_vec()), ..Settings::default() };
    match how {
        Explored => explore(seed, &Settings::default()).map(drop),
        Focused(nemeses) => explore(seed, &focus(nemeses)).map(drop),
        Story(story) => catch(|| story(seed)),
    }
}

/// What is wrong with a row: nobody reports its fault in time, or somebody else does.
fn look(row: &Row) -> Option<String> {
    let fault = row.fault;
    for seed in 1..=row.seeds {
        let found = {
            let _planted = plant(Some(fault));
            run(row.how, seed)
        };
        // The explorer's own seeds are clean, or its own test says so.
        if !matches!(row.how, Explored)
            && let Err(failure) = run(row.how, seed)
        {
            return Some(format!("{fault:?}: seed {seed} reports though nothing is planted: {failure}"));
        }
        match found {
            Ok(()) => {}
            Err(failure) if row.caught_by.contains(&failure.checker) => {
                println!("{fault:?}: seed {seed} of {}: {failure}", row.seeds);
                return None;
            }
            Err(failure) => return Some(format!("{fault:?}: seed {seed}: who reports is not named: {failure}")),
        }
    }
    Some(format!("{fault:?}: nobody reports it within {} seeds", row.seeds))
}

#[test]
fn every_planted_fault_is_found() {
    let (next, wrong) = (AtomicUsize::new(0), std::sync::Mutex::new(Vec::new()));
    let only = std::env::var("SKEP_SIM_FAULT").ok();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(row) = ROWS.get(next.fetch_add(1, Relaxed)) {
                    let asked = only.as_ref().is_none_or(|only| format!("{:?}", row.fault) == *only);
                    if let Some(text) = asked.then(|| look(row)).flatten() {
                        wrong.lock().unwrap().push(text);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "SKEP_SIM_FAULT=NAME looks at one of them alone\n{}", wrong.join("\n"));
}

#[test]
#[ignore = "for whoever makes the explorer stronger: which rows could be explored by now"]
fn what_the_explorer_finds_of_the_rest() {
    let only = std::env::var("SKEP_SIM_FAULT").ok();
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (from, count) = (number("SKEP_SIM_FROM").unwrap_or(1), number("SKEP_SIM_SEEDS").unwrap_or(150));
    let asked = |row: &&Row| match &only {
        Some(only) => format!("{:?}", row.fault) == *only,
        None => !matches!(row.how, Explored),
    };
    for row in ROWS.iter().filter(asked) {
        let _planted = plant(Some(row.fault));
        let found = (from..from + count).find_map(|seed| Some((seed, run(Explored, seed).err()?)));
        println!("{:?}: {}", row.fault, found.map_or("nothing".to_owned(), |(seed, by)| format!("seed {seed}: {by}")));
    }
}

#[test]
fn every_fault_has_a_row_and_the_table_above_is_that_of_the_rows() {
    let listed: Vec<Fault> = ROWS.iter().map(|row| row.fault).collect();
    for fault in Fault::ALL {
        assert_eq!(listed.iter().filter(|listed| *listed == fault).count(), 1, "{fault:?} needs one row");
    }
    let lines = ROWS.iter().map(|row| {
        let how = match row.how {
            Explored => "explored",
            Focused(_) => "focused",
            Story(_) => "story",
        };
        format!("//! | `{:?}` | {} | {} | {how} | {} |\n", row.fault, row.harm, row.caught_by.join(", "), row.seeds)
    });
    let table: String = lines.collect();
    assert!(include_str!("planted.rs").contains(&format!("|---|\n{table}//!\n")), "the table should read\n{table}");
}

// ---- stories ----

/// All but one manager are lost under load; the others come back when the swarm has begun anew.
fn recovered(seed: u64) {
    let mut world = World::cluster(seed, 3);
    world.load(4);
    world.run_for(ms(700));
    let heir = world.followers()[0];
    world.recover_one(heir);
    world.wait_for_leader(ms(5000));
    for former in world.left_behind() {
        world.start(former);
    }
    world.run_for(ms(2000));
    world.recover_and_check();
}

/// A leader that was cut off goes on alone with changes that nobody else ever had, after the others went on without it.
fn recovered_with_a_tail(seed: u64) {
    let mut world = World::cluster(seed, 3);
    world.load(6);
    world.run_for(ms(700));
    let heir = world.wait_for_leader(ms(1000));
    world.isolate(&[heir]);
    world.propose_at(heir);
    world.run_until("another leads", ms(5000), |world| world.leader().is_some_and(|other| other != heir));
    world.run_for(ms(1500));
    assert!(world.recover_one(heir), "it was a member");
    world.heal();
    world.wait_for_leader(ms(5000));
    world.run_for(ms(2000));
    world.recover_and_check();
}

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

/// Everybody loses the leader at once, nobody is told that it is gone, and each candidate's request crosses the others'.
fn duel(seed: u64) {
    let mut world = World::cluster(seed, 5);
    let leader = world.wait_for_leader(ms(1000));
    world.net.latency_us = (150_000, 160_000);
    world.run_for(ms(1000));
    world.lose_power(leader);
    world.wait_for_leader(ms(20_000));
}

/// Two candidates whose requests cross, while the leader is silent.
fn lost_duel(seed: u64) {
    let mut world = World::cluster(seed, 3);
    world.net.latency_us = (20_000, 40_000);
    world.run_for(ms(1000));
    let leader = world.wait_for_leader(ms(1000));
    world.pause(leader, true);
    world.wait_for_leader(ms(2500));
}

/// A machine loses its power in the middle of write after write.
fn power_again_and_again(seed: u64) {
    let mut world = World::cluster(seed, 3);
    world.workload.payload = 3000;
    let victim = world.followers()[0];
    world.load(4);
    for _ in 0..12 {
        world.run_for(ms(60));
        world.lose_power_while_writing(victim);
        world.start(victim);
    }
}

/// A follower dies while it fetches the snapshot that it needs, and comes back.
fn transfer_breaks_off(seed: u64) {
    let mut world = World::cluster_with(seed, 3, |settings| {
        (settings.snapshot_bytes, settings.keep_bytes) = (8 << 10, 1 << 10);
    });
    let (leader, down) = (world.wait_for_leader(ms(1000)), world.followers()[0]);
    let knew = world.last_index(down);
    world.kill(down);
    world.load(4);
    world.run_until("the log no longer reaches back", ms(20_000), |world| world.first_index(leader) > knew.next());
    world.load = false;
    world.start(down);
    world.run_until("a snapshot is offered", ms(5000), |world| {
        let run = world.nodes[&leader].run.as_ref().expect("nobody killed it");
        run.machine.report(world.now).progress.iter().any(|progress| progress.state == "snapshot")
    });
    world.kill(down);
    world.run_for(ms(500));
    world.start(down);
    world.settle();
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
