//! Leaving, and what becomes of a manager that is no longer a member.

use std::time::Duration;

use skep::types::NodeId;
use skep::types::api::{Answer, Call, LeaveRequest};

use super::swarm::{Manager, Swarm, eventually};

/// Nothing of a manager that left is shown by another: neither a row nor a member.
#[track_caller]
fn check_forgotten(id: &str, by: &Manager) {
    eventually("the node that left is gone from the list", || {
        let shown = |words: &[&str]| by.json(words).to_string().contains(id);
        (!shown(&["node", "ls"]) && !shown(&["members"])).then_some(())
    });
}

fn node_id(manager: &Manager) -> String {
    manager.json(&["status"])["node_id"].as_str().unwrap().to_owned()
}

fn voters(manager: &Manager) -> u64 {
    manager.status().and_then(|status| status["voters"].as_u64()).unwrap_or_default()
}

/// The process ended because it is no longer a member: it says so, and its log was moved aside.
#[track_caller]
fn check_gone(manager: &mut Manager) {
    assert_eq!(manager.ended(), Some(3), "{}", manager.log_since(0));
    let log = manager.log_since(0);
    assert!(log.contains("no longer a member of the swarm") && log.contains("hint: to join again"), "{log}");
    assert!(!manager.dir.join("raft").exists());
    let aside = std::fs::read_dir(&manager.dir).unwrap().flatten();
    assert!(aside.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("raft.removed-")));
}

/// Starting it again in place is refused, clearly: one that left by itself knows by itself, and one that others took out
/// asks them first whether it is a worker now.
#[track_caller]
fn check_refused(manager: &mut Manager, why: &str) {
    let before = manager.log_length();
    manager.spawn();
    assert_eq!(manager.ended(), Some(3));
    let said = manager.log_since(before);
    assert!(said.contains("start with --join HOST:PORT and a token"), "{said}");
    assert!(said.contains(why) && said.contains("\nhint: to join again, move "), "{said}");
}

#[test]
fn a_follower_and_a_leader_leave_and_the_last_manager_stays() {
    let mut swarm = Swarm::of(3);
    swarm.managers[0].create_config("motd", b"hello");

    let follower = swarm.followers()[0];
    let id = node_id(&swarm.managers[follower]);
    let said = swarm.managers[follower].skep(&["leave"]).ok();
    assert!(said.contains("left the swarm"), "{said}");
    check_gone(&mut swarm.managers[follower]);
    for manager in swarm.running() {
        eventually("two voters are left", || (voters(manager) == 2).then_some(()));
        check_forgotten(&id, manager);
    }
    check_refused(
        &mut swarm.managers[follower],
        "this node left the swarm or was removed from it; its log was moved to",
    );

    let leader = swarm.leader();
    let last = swarm.followers()[0];
    let id = node_id(&swarm.managers[leader]);
    swarm.managers[leader].skep(&["leave"]).ok();
    check_gone(&mut swarm.managers[leader]);
    eventually("one voter is left", || (voters(&swarm.managers[last]) == 1).then_some(()));
    check_forgotten(&id, &swarm.managers[last]);
    swarm.managers[last].create_config("after", b"x");
    let names = swarm.managers[last].json(&["config", "ls"]);
    assert_eq!(names.as_array().unwrap().len(), 2);

    swarm.managers[last].skep(&["leave"]).refused_with_hint(3, &["cannot take node", "last"]);
    swarm.managers[last].create_config("still-here", b"x");

    // A newcomer takes a place of its own; the old directory moved away makes a newcomer.
    let newcomer = swarm.join(|_| {});
    let members = swarm.managers[newcomer].json(&["members"]);
    let raft_ids: Vec<u64> = members.as_array().unwrap().iter().map(|row| row["raft_id"].as_u64().unwrap()).collect();
    assert!(raft_ids.contains(&4), "a raft id is never used again: {raft_ids:?}");
    swarm.converge();
}

#[test]
fn a_manager_removed_while_it_was_down_learns_it_when_it_returns() {
    let mut swarm = Swarm::of(3);
    let gone = swarm.followers()[0];
    let node_id: NodeId = swarm.managers[gone].json(&["status"])["node_id"].as_str().unwrap().parse().unwrap();
    swarm.managers[gone].kill();
    let leader = swarm.leader();
    let mut client = swarm.managers[leader].client();
    let request = LeaveRequest { node_id, force: false };
    let answer = client.call(Call::Leave, &request, Duration::from_secs(20)).unwrap();
    assert_eq!(answer, Answer::Done);
    swarm.managers[leader].create_config("meanwhile", b"x");
    eventually("two voters are left", || (voters(&swarm.managers[leader]) == 2).then_some(()));

    swarm.managers[gone].spawn();
    check_gone(&mut swarm.managers[gone]);
    check_refused(&mut swarm.managers[gone], "this node is no longer a member of the swarm");
    // The others are as they were.
    assert_eq!(swarm.leader(), leader);
    swarm.converge();
}
