//! Managers that cannot hear each other, in every shape: nothing that was acknowledged is lost, and who is cut off says so.

use std::time::Duration;

use super::proxy::Network;
use super::swarm::{Manager, Swarm, eventually};
use super::writers::Writers;

/// A way to separate the first from the others.
type Separation = fn(&Network, usize, &[usize]);

/// The leader is separated under load, answers for itself, and comes back.
#[track_caller]
fn check_leader_cut_off(separations: &[(&str, Separation)]) {
    let (swarm, network) = Network::of(3);
    let writers = Writers::start(&swarm, 4);
    let (mut others, mut last) = (0, None);
    for (what, separate) in separations {
        writers.wait_for(40);
        let alone = swarm.leader();
        let majority = swarm.followers();
        let manager = &swarm.managers[alone];
        separate(&network, alone, &majority);
        let successor = &swarm.managers[swarm.leader_among(&majority)];
        // Somebody is served at once.
        writers.wait_for(40);
        let name = format!("meanwhile-{others}");
        successor.create_config(&name, b"x");
        others += 1;

        // Who is alone knows it, and does not let anyone wait.
        eventually("it notices", || {
            let status = manager.status()?;
            (status["state"] == "no leader" && status["reachable"] == 1).then_some(())
        });
        let said = ["1 of 3 managers can be reached", "2 are needed", "the last leader was m"];
        let write = manager.skep_with_input(b"x", &["config", "create", "alone", "-", "--timeout", "55s"]);
        assert!(write.took < Duration::from_secs(20), "{what}: {write:?}");
        write.refused_with_hint(4, &said);
        // The name is not there for all it knows, which is no answer.
        manager.skep(&["config", "inspect", &name, "--timeout", "55s"]).refused_with_hint(4, &said);
        manager.skep(&["config", "inspect", &name, "--stale"]).refused_with_hint(3, &[&name]);
        if let Some(last) = last.replace(name.clone()) {
            manager.skep(&["config", "inspect", &last, "--stale"]).ok();
        }

        network.heal();
        swarm.votes(alone);
        manager.skep(&["config", "inspect", &name, "--timeout", "30s"]).ok();
        assert_ne!(swarm.leader(), alone, "{what}");
    }
    let mut finished = writers.finish();
    finished.others = others;
    finished.check(&swarm);
}

#[test]
fn a_leader_cut_off_from_the_others_stops_and_comes_back_as_a_follower() {
    check_leader_cut_off(&[
        ("connections end", |network, alone, majority| network.cut(&[alone], majority)),
        ("nothing arrives any more", |network, alone, majority| network.split(&[alone], majority)),
    ]);
}

#[test]
fn a_leader_that_is_cut_off_one_way_stops_and_comes_back_as_a_follower() {
    check_leader_cut_off(&[
        ("nobody hears it", |network, alone, majority| network.hold(&[alone], majority)),
        ("it hears nobody", |network, alone, majority| network.hold(majority, &[alone])),
    ]);
}

fn number(manager: &Manager, key: &str) -> u64 {
    let report = manager.json(&["raft", "status"]);
    report[key].as_u64().unwrap_or_else(|| panic!("{key}: {report}"))
}

/// Configs that take about a MiB, which no compression makes less.
#[track_caller]
fn write_noise(manager: &Manager, name: &str) {
    let mut state = 88_172_645_463_325_252_u64;
    for part in 0..16 {
        let noise = std::iter::repeat_with(|| {
            // xorshift64 (Marsaglia, 2003).
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        });
        manager.create_config(&format!("{name}-{part}"), &noise.take(64 << 10).collect::<Vec<u8>>());
    }
}

#[test]
fn a_follower_that_was_cut_off_for_long_catches_up_by_a_snapshot_and_disturbs_nobody() {
    let (swarm, network) = Network::of(3);
    swarm.managers[0].skep(&["cluster", "update", "--snapshot-bytes", "64KiB", "--keep-bytes", "64KiB"]).ok();
    // A machine under load may elect by itself at any time; a manager that disturbs does it every time.
    let undisturbed = (0..3).any(|round| is_undisturbed(&swarm, &network, round));
    assert!(undisturbed, "whoever comes back forces an election");
}

/// One follower is cut off, falls behind what the others keep, and comes back; whether there was no election.
#[track_caller]
fn is_undisturbed(swarm: &Swarm, network: &Network, round: u32) -> bool {
    swarm.converge();
    let leader = swarm.leader();
    let away = swarm.followers()[0];
    let others: Vec<usize> = (0..3).filter(|&place| place != away).collect();
    let (manager, behind) = (&swarm.managers[leader], number(&swarm.managers[away], "last"));
    let term = number(&swarm.managers[away], "term");
    network.split(&[away], &others);
    write_noise(manager, &format!("noise-{round}"));
    eventually("the others drop what it lacks", || (number(manager, "first") > behind + 1).then_some(()));
    // It has missed its leader for some election timeouts by then, and asked in vain whether it may stand.
    let away = &swarm.managers[away];
    eventually("it misses the leader", || {
        let status = away.status()?;
        (status["state"] == "no leader" && status["reachable"] == 1).then_some(())
    });
    assert_eq!(number(away, "term"), term, "it raised its term alone");
    let said = away.log_length();
    network.heal();
    eventually("it catches up", || away.log_since(said).contains("fetched a snapshot").then_some(()));
    swarm.converge();
    swarm.leader() == leader && number(away, "term") == term
}

#[test]
fn a_snapshot_is_fetched_over_connections_that_end_again_and_again() {
    let (mut swarm, network) = Network::of(3);
    swarm.managers[0].skep(&["cluster", "update", "--snapshot-bytes", "64KiB", "--keep-bytes", "64KiB"]).ok();
    swarm.converge();
    let leader = swarm.leader();
    let away = swarm.followers()[0];
    let behind = number(&swarm.managers[away], "last");
    swarm.managers[away].kill();
    write_noise(&swarm.managers[leader], "noise");
    eventually("the others drop what it lacks", || {
        (number(&swarm.managers[leader], "first") > behind + 1).then_some(())
    });
    let before = swarm.managers[away].log_length();
    for place in (0..3).filter(|&place| place != away) {
        network.cut_after(place, away, 300 << 10);
    }
    swarm.managers[away].start();
    for _ in 0..2 {
        eventually("its connections end", || (!network.will_cut(leader, away)).then_some(()));
        network.cut_after(leader, away, 300 << 10);
    }
    let said = || swarm.managers[away].log_since(before);
    eventually("it has the snapshot", || said().contains("fetched a snapshot").then_some(()));
    swarm.converge();
}
