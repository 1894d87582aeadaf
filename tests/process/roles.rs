//! Managers that become workers, and managers that go for good.

use serde_json::Value;

use super::swarm::{Manager, Swarm, eventually};

/// What `node inspect` says of a node by name, asked of a manager.
fn inspect(by: &Manager, name: &str) -> Value {
    by.json(&["node", "inspect", name])
}

fn voters(by: &Manager) -> usize {
    let members = by.json(&["members"]);
    members.as_array().unwrap().iter().filter(|member| member["role"] == "voter").count()
}

/// It is a worker to the swarm, and at most its certificate is not one's yet.
fn is_worker(by: &Manager, name: &str) -> bool {
    let node = inspect(by, name);
    let phase = node["phase"].as_str().unwrap();
    node["role"] == "worker" && (phase.is_empty() || phase == "demoting: waiting for its worker certificate")
}

fn is_seen_to_be_down(by: &Manager, name: &str) {
    eventually("it is seen to be down", || {
        let members = by.json(&["members"]);
        let mut rows = members.as_array().unwrap().iter();
        rows.any(|member| member["name"] == *name && member["reachable"] == false).then_some(())
    });
}

#[test]
fn followers_and_leaders_are_demoted_and_the_last_manager_stays() {
    let swarm = Swarm::of(3);
    let leader = swarm.leader();
    let follower = swarm.followers()[0];
    let last = swarm.followers()[1];
    let name = |swarm: &Swarm, place: usize| swarm.managers[place].name.clone();
    let (leading, following, staying) = (name(&swarm, leader), name(&swarm, follower), name(&swarm, last));

    // Asked of a manager that does not lead.
    swarm.managers[last].skep(&["node", "demote", &following]).ok();
    eventually("the follower is a worker", || is_worker(&swarm.managers[last], &following).then_some(()));
    assert_eq!(voters(&swarm.managers[last]), 2);
    let shown = swarm.managers[last].skep(&["members"]).ok();
    assert!(shown.contains("2 voters, tolerates 0; 2 managers tolerate no failure"), "{shown}");
    let status = swarm.managers[last].json(&["status"]);
    assert!(status["warnings"].to_string().contains("2 managers tolerate no failure"), "{status}");

    // The leader hands over first, also when it is asked to demote itself.
    // Whoever waits for it is told by the worker that it has become.
    swarm.managers[leader].skep(&["node", "demote", &leading, "--wait", "--timeout", "60s"]).ok();
    eventually("the leader is a worker", || is_worker(&swarm.managers[last], &leading).then_some(()));
    assert_eq!((voters(&swarm.managers[last]), swarm.leader_among(&[last])), (1, last));
    swarm.managers[last].create_config("alone", b"x");

    let said = swarm.managers[last].skep(&["node", "demote", &staying]);
    said.refused_with_hint(3, &["cannot demote node", "attempting to demote the last manager of the swarm"]);
    let said = swarm.managers[last].skep(&["node", "rm", "--force", &staying]);
    said.refused_with_hint(3, &["cannot remove node", "attempting to remove the last manager of the swarm"]);
}

#[test]
fn a_manager_that_is_down_is_demoted_or_removed_and_what_the_majority_needs_is_not() {
    let mut swarm = Swarm::of(4);
    let leader = swarm.leader();
    let others = swarm.followers();
    let names: Vec<String> = swarm.managers.iter().map(|manager| manager.name.clone()).collect();
    for place in &others[..1] {
        swarm.managers[*place].kill();
    }
    let (down, up) = (names[others[0]].clone(), names[others[1]].clone());
    let by = &swarm.managers[leader];
    by.skep(&["node", "rm", &up]).refused_with_hint(3, &["is a cluster manager and is a member of the raft cluster"]);
    is_seen_to_be_down(by, &down);
    let said = by.skep(&["node", "rm", "--force", "--wait", "--timeout", "50s", &down]).ok();
    assert_eq!(said.len(), 25, "{said}");
    assert_eq!(voters(by), 3);
    by.skep(&["node", "inspect", &down]).refused_with_hint(3, &["not found"]);

    // It comes back to a swarm that it does not belong to any more.
    swarm.managers[others[0]].spawn();
    assert_eq!(swarm.managers[others[0]].ended(), Some(3), "{}", swarm.managers[others[0]].log_since(0));
    assert!(swarm.managers[others[0]].log_since(0).contains("was removed from the swarm"));

    // Of three, one down: the others are needed.
    let third = names[others[2]].clone();
    swarm.managers[others[2]].kill();
    let by = &swarm.managers[leader];
    is_seen_to_be_down(by, &third);
    by.skep(&["node", "demote", &up]).refused_with_hint(3, &["this would result in a loss of quorum"]);
    by.skep(&["node", "demote", &third]).ok();
    eventually("the one that is down is a worker", || is_worker(by, &third).then_some(()));
    assert_eq!(voters(by), 2);
}

#[test]
fn a_leader_is_removed_by_force_and_hears_it() {
    let mut swarm = Swarm::of(3);
    let leader = swarm.leader();
    let other = swarm.followers()[0];
    let name = swarm.managers[leader].name.clone();
    swarm.managers[other].skep(&["node", "rm", "--force", "--wait", "--timeout", "50s", &name]).ok();
    assert_eq!(swarm.managers[leader].ended(), Some(3), "{}", swarm.managers[leader].log_since(0));
    let rows = swarm.managers[other].json(&["node", "ls"]);
    assert_eq!(rows.as_array().unwrap().len(), 2);
    assert_eq!(voters(&swarm.managers[other]), 2);
}

/// Two managers and a worker that has been started; the worker's place.
fn with_a_worker() -> (Swarm, usize) {
    let mut swarm = Swarm::of(2);
    let place = swarm.add();
    let token = swarm.managers[0].skep(&["token", "show", "--role", "worker"]).ok();
    let (addr, file) = (swarm.managers[0].addr.clone(), swarm.token_file(&token));
    swarm.managers[place].arguments = vec!["--join".into(), addr, "--token-file".into(), file];
    swarm.managers[place].spawn();
    (swarm, place)
}

#[test]
fn a_worker_is_promoted_and_demoted_and_promoted_again_in_place() {
    let (mut swarm, place) = with_a_worker();
    let name = swarm.managers[place].name.clone();
    let by = &swarm.managers[0];
    let id = eventually("the worker is listed", || {
        let rows = by.json(&["node", "ls"]);
        let row = rows.as_array().unwrap().iter().find(|row| row["name"] == *name)?.clone();
        Some(row["id"].as_str().unwrap().to_owned())
    });
    for (verb, role, count) in [("promote", "manager", 3), ("demote", "worker", 2), ("promote", "manager", 3)] {
        by.skep(&["node", verb, "--wait", "--timeout", "50s", &name]).ok();
        let node = inspect(by, &name);
        assert_eq!((&node["role"], &node["phase"], &node["id"]), (&role.into(), &"".into(), &id.clone().into()));
        assert_eq!(voters(by), count, "{verb}");
        eventually("its own word is the same", || {
            let status = swarm.managers[place].status()?;
            ((status["role"] == "worker") == (role == "worker")).then_some(())
        });
    }
    // Up, and only a worker: it goes by force, at once, and hears it.
    by.skep(&["node", "demote", "--wait", "--timeout", "50s", &id]).ok();
    by.skep(&["node", "rm", &id]).refused_with_hint(3, &["is not down and can't be removed"]);
    by.skep(&["node", "rm", "--force", &id]).ok();
    assert_eq!(swarm.managers[place].ended(), Some(3), "{}", swarm.managers[place].log_since(0));
}

#[test]
fn a_worker_that_is_stopped_at_any_moment_of_its_promotion_goes_on_at_its_next_start() {
    let (mut swarm, place) = with_a_worker();
    let name = swarm.managers[place].name.clone();
    eventually("the worker is in touch", || (swarm.managers[place].status()?["state"] == "ready").then_some(()));
    let id = swarm.managers[place].status().unwrap()["node_id"].clone();
    // The order has just been given; the certificate came; the node joins the group; it fetches the state.
    let moments = ["", "a new certificate: manager", "joining the others", "joined the swarm", "leads in term"];
    for (number, moment) in moments.into_iter().enumerate() {
        let before = swarm.managers[place].log_length();
        swarm.managers[0].skep(&["node", "promote", &name]).ok();
        eventually("the moment has come", || swarm.managers[place].log_since(before).contains(moment).then_some(()));
        swarm.managers[place].stop();
        swarm.managers[place].spawn();
        swarm.managers[0].skep(&["node", "promote", "--wait", "--timeout", "50s", &name]).ok();
        swarm.votes(place);
        let node = inspect(&swarm.managers[0], &name);
        assert_eq!((&node["role"], &node["phase"], &node["id"]), (&"manager".into(), &"".into(), &id));
        assert_eq!(voters(&swarm.managers[0]), 3, "stopped at {moment:?}");
        swarm.managers[place].create_config(&format!("after-{number}"), b"x");
        swarm.managers[0].skep(&["node", "demote", "--wait", "--timeout", "50s", &name]).ok();
        eventually("it is a worker", || (swarm.managers[place].status()?["role"] == "worker").then_some(()));
    }
    // However often that happens, one log of its time as a manager is kept.
    let names = std::fs::read_dir(&swarm.managers[place].dir).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.filter(|name| name.to_string_lossy().starts_with("raft")).count(), 1);
    let doctor = swarm.managers[place].skep(&["doctor"]);
    assert!(doctor.code == Some(0) && doctor.stdout.contains("ok    state        ready: a worker"), "{doctor:?}");
}
