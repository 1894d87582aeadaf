//! kill -9, and nothing that was acknowledged is lost.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::swarm::{Swarm, eventually};
use super::writers::Writers;

#[test]
fn ten_leaders_killed_under_load_lose_nothing() {
    let mut swarm = Swarm::of(3);
    let writers = Writers::start(&swarm, 4);
    for round in 0..10 {
        writers.wait_for(40);
        let leader = swarm.leader();
        let begin = Instant::now();
        swarm.managers[leader].kill();
        writers.wait_for(10);
        eprintln!("round {round}: {} died, ten more writes after {:?}", swarm.managers[leader].name, begin.elapsed());
        swarm.managers[leader].start();
        swarm.votes(leader);
    }
    let finished = writers.finish();
    finished.check(&swarm);
}

#[test]
fn all_managers_killed_at_once_lose_nothing_and_start_one_after_the_other() {
    let mut swarm = Swarm::of(3);
    let writers = Writers::start(&swarm, 4);
    writers.wait_for(100);
    for manager in &swarm.managers {
        manager.signal(Signal::KILL);
    }
    for manager in &mut swarm.managers {
        manager.kill();
    }

    // The first one back is ready for its service manager: it listens and answers, though nobody leads.
    swarm.managers[0].start();
    let alone = swarm.managers[0].skep(&["status"]);
    assert_eq!(alone.code, Some(4), "{alone:?}");
    assert!(alone.stdout.contains("no leader") && alone.stdout.contains("none for"), "{}", alone.stdout);

    // Once it had its chance to find the others, it says at once that there is no use in waiting.
    let ended = swarm.managers[0].skep(&["config", "ls", "--timeout", "50s"]);
    assert!(ended.took < Duration::from_secs(10), "{ended:?}");
    ended.refused_with_hint(4, &["1 of 3 managers can be reached"]);

    // The second one makes a majority.
    swarm.managers[1].start();
    writers.wait_for(20);
    swarm.managers[2].start();
    swarm.votes(2);
    writers.wait_for(20);
    writers.finish().check(&swarm);
}

#[test]
fn a_leader_that_is_asked_to_stop_hands_over_first() {
    let mut swarm = Swarm::of(3);
    for _ in 0..3 {
        let leader = swarm.leader();
        let follower = swarm.followers()[0];
        let before = swarm.managers[follower].log_length();
        let begin = Instant::now();
        swarm.managers[leader].signal(Signal::TERM);
        assert_eq!(swarm.managers[leader].ended(), Some(0));
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        let ended = swarm.managers[follower].skep_with_input(b"x", &["config", "create", &format!("c{leader}"), "-"]);
        eprintln!("asked to stop: ended after {:?}, and a write took {:?}", begin.elapsed(), ended.took);
        // Somebody else led before it was gone.
        let said = eventually("the others miss it", || {
            let said = swarm.managers[follower].log_since(before);
            said.contains("lost manager").then_some(said)
        });
        assert!(said.find(" leads in term ") < said.find("lost manager"), "{said}");
        assert!(said.contains(" leads in term "), "{said}");
        swarm.managers[follower].skep(&["config", "rm", &ended.ok()]).ok();
        let status = swarm.managers[follower].json(&["status"]);
        assert_eq!(status["state"], "ready");
        assert!(!swarm.managers[leader].socket().exists(), "a socket nobody listens on is left behind");
        swarm.managers[leader].start();
        swarm.votes(leader);
    }
}

#[test]
fn a_second_signal_ends_a_stop_that_waits() {
    let mut swarm = Swarm::of(3);
    let leader = swarm.leader();
    let others = swarm.followers();
    // There is nobody to hand over to.
    for &place in &others {
        swarm.managers[place].signal(Signal::STOP);
    }
    let before = swarm.managers[leader].log_length();
    swarm.managers[leader].signal(Signal::TERM);
    eventually("it begins to stop", || {
        swarm.managers[leader].log_since(before).contains("asked to stop").then_some(())
    });
    let begin = Instant::now();
    swarm.managers[leader].signal(Signal::INT);
    let code = swarm.managers[leader].ended();
    assert!(begin.elapsed() < Duration::from_millis(500), "{:?}", begin.elapsed());
    assert_eq!(code, Some(1));
    for &place in &others {
        swarm.managers[place].signal(Signal::CONT);
    }
    swarm.managers[leader].start();
    swarm.votes(leader);
}

#[test]
fn a_leader_that_was_frozen_finds_another_in_its_place_and_follows() {
    let swarm = Swarm::of(3);
    let leader = swarm.leader();
    let other = swarm.followers()[0];
    swarm.managers[leader].signal(Signal::STOP);
    swarm.managers[other].create_config("while-frozen", b"x");
    swarm.managers[leader].signal(Signal::CONT);
    // It may still think that it leads; what it says is true all the same.
    let found = swarm.managers[leader].json(&["config", "inspect", "while-frozen", "--timeout", "30s"]);
    assert_eq!(found["spec"]["data"], "eA==");
    assert_ne!(swarm.leader(), leader);
    swarm.converge();
}
