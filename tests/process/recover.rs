//! The day a majority is lost: one manager is made a swarm of its own, and the others join it anew.

use std::path::Path;

use serde_json::Value;

use super::swarm::{ERA, Ended, Manager, Swarm, eventually, skep, skep_with_input, untouched};

fn recover(dir: &Path, input: &[u8], arguments: &[&str]) -> Ended {
    skep_with_input(input, |command| {
        command.args(["recover", "--data-dir"]).arg(dir).args(arguments);
    })
}

/// One object of every kind that people make.
fn fill(manager: &Manager) {
    manager.create_config("motd", b"be kind");
    manager.skep_with_input(b"hunter2", &["secret", "create", "password", "-"]).ok();
    manager.skep(&["extension", "create", "volume"]).ok();
    manager.skep_with_input(b"spin", &["resource", "create", "disk1", "-", "--kind", "volume", "--index", "a=b"]).ok();
    manager.skep(&["config", "update", "motd", "--label", "tone=soft"]).ok();
    for number in 0..20 {
        manager.create_config(&format!("c{number}"), format!("data {number}").as_bytes());
    }
}

fn names(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn node_json(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("node.json")).unwrap()).unwrap()
}

#[test]
fn two_of_three_managers_are_destroyed_and_the_third_goes_on_with_everything() {
    let mut swarm = Swarm::of(3);
    fill(&swarm.managers[0]);
    let before = swarm.converge();
    let revision = swarm.managers[2].status().unwrap()["revision"].as_u64().unwrap();
    let cluster = swarm.managers[2].status().unwrap()["cluster_id"].clone();
    let old_addr = swarm.managers[2].addr.clone();

    // A running manager is left alone.
    let dir = swarm.managers[2].dir.clone();
    recover(&dir, b"yes\n", &[]).refused_with_hint(3, &["another skep process is using it"]);

    // The last one says what can be done.
    swarm.managers[0].kill();
    swarm.managers[1].kill();
    let said = eventually("the last manager gives up on the others", || {
        let ended = swarm.managers[2].skep_with_input(b"x", &["config", "create", "late", "-", "--timeout", "2s"]);
        (ended.code == Some(4) && ended.stderr.contains("gone for good")).then_some(ended.stderr)
    });
    assert!(said.contains(&format!("skep recover --data-dir {}", dir.display())), "{said}");
    swarm.managers[2].kill();

    // A look, an answer that is not yes, and the real thing.
    let first = std::fs::read(dir.join("node.json")).unwrap();
    let looked = recover(&dir, b"", &["--dry-run", "--json"]).json();
    assert_eq!(looked["revision"], revision);
    assert_eq!(looked["objects"]["config"], 21);
    assert_eq!(looked["objects"]["secret"], 1);
    let dropped: Vec<&str> = looked["members"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|row| (row["dropped"] == true).then_some(row["name"].as_str()?))
        .collect();
    assert_eq!(dropped, ["m1", "m2"], "{looked}");
    recover(&dir, b"no\n", &[]).refused_with_hint(3, &["nothing was changed"]);
    recover(&dir, b"", &[]).refused_with_hint(3, &["nothing was changed"]);
    assert_eq!(std::fs::read(dir.join("node.json")).unwrap(), first);
    let said = recover(&dir, b"yes\n", &[]).ok();
    for part in
        ["21 config", "m1 at", "m2 at", "skep run --data-dir", "token show --role manager", "raft.before-recover-"]
    {
        assert!(said.contains(part), "nothing of {part:?}: {said}");
    }
    assert!(names(&dir).iter().any(|name| name.starts_with("raft.before-recover-")));

    // With another address, as on a machine that was moved.
    let third = &mut swarm.managers[2];
    third.addr = "127.0.0.1:0".to_owned();
    third.start();
    assert_ne!(third.addr, old_addr);
    swarm.votes(2);
    let third = &swarm.managers[2];
    let status = third.status().unwrap();
    assert_eq!((status["voters"].clone(), status["cluster_id"].clone()), (1.into(), cluster));
    assert!(status["revision"].as_u64().unwrap() > revision + ERA, "{status}");
    assert_eq!(untouched(third.everything()), untouched(before.clone()), "ids, names and contents");
    let rows = third.json(&["node", "ls"]);
    let down: Vec<&str> = rows
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|row| (row["state"] == "down").then_some(row["name"].as_str()?))
        .collect();
    assert_eq!(down.len(), 2, "{rows}");
    third.create_config("after", b"x");

    // What was watched before is no position of the new history.
    third.skep(&["watch", "--from", &revision.to_string()]).refused_with_hint(3, &["no longer kept"]);

    // A lost manager that returns alone learns that it is over, and disturbs nobody.
    let addr = swarm.managers[2].addr.clone();
    let term = swarm.managers[2].status().unwrap()["term"].clone();
    let returned = &mut swarm.managers[0];
    returned.arguments = vec!["--peer".to_owned(), addr];
    returned.spawn();
    let said = eventually("it has met the other history", || {
        let said = returned.log_since(0);
        said.contains("former history").then_some(said)
    });
    assert!(said.contains("the one you want?") && said.contains("start it with --join"), "{said}");
    returned.kill();
    assert_eq!(swarm.managers[2].status().unwrap()["term"], term);

    // From an empty directory it joins, and so does another.
    swarm.join(|_| {});
    swarm.join(|_| {});
    let members = swarm.managers[2].json(&["members"]);
    let mut raft_ids: Vec<u64> =
        members.as_array().unwrap().iter().map(|row| row["raft_id"].as_u64().unwrap()).collect();
    raft_ids.sort_unstable();
    assert_eq!(raft_ids, [4, 5, 6], "no raft id is used twice");
    swarm.managers[3].create_config("three-again", b"x");
    let after = untouched(swarm.converge());
    for object in untouched(before) {
        assert!(after.contains(&object), "{object:?}");
    }
    // Any two of them go on without the third.
    swarm.managers[2].kill();
    swarm.votes(3);
    swarm.managers[4].create_config("without-the-third", b"x");
}

#[test]
fn a_recovery_on_the_wrong_side_ends_nobody_who_still_has_a_majority() {
    let mut swarm = Swarm::of(3);
    swarm.managers[0].create_config("before", b"x");
    swarm.converge();
    let revision = swarm.managers[0].status().unwrap()["revision"].as_u64().unwrap();
    swarm.managers[2].kill();
    let dir = swarm.managers[2].dir.clone();
    recover(&dir, b"yes\n", &[]).ok();
    // At the address where the others still call it.
    swarm.managers[2].start();
    swarm.votes(2);
    for place in 0..2 {
        let manager = &swarm.managers[place];
        eventually("it has met the other history", || manager.log_since(0).contains("this node goes on").then_some(()));
    }
    swarm.managers[2].create_config("there", b"x");
    for place in 0..2 {
        swarm.managers[place].create_config(&format!("here{place}"), b"x");
        let status = swarm.managers[place].status().unwrap();
        assert!(status["revision"].as_u64().unwrap() < revision + ERA, "{status}");
    }
    // Nor does one of them end while the other is away for a moment.
    swarm.managers[0].kill();
    swarm.managers[2].create_config("still-there", b"x");
    swarm.managers[0].start();
    swarm.votes(0);
    swarm.managers[1].create_config("still-here", b"x");
}

#[test]
fn a_directory_that_holds_no_manager_is_refused_and_not_made() {
    let swarm = Swarm::empty();
    let missing = swarm.path().join("missing");
    recover(&missing, b"yes\n", &[]).refused_with_hint(3, &["no such directory"]);
    assert!(!missing.exists());
    let empty = swarm.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    recover(&empty, b"yes\n", &[]).refused_with_hint(3, &["no manager"]);
}

#[test]
fn a_recovery_can_be_repeated_and_a_damaged_log_is_not_recovered() {
    let mut swarm = Swarm::of(1);
    fill(&swarm.managers[0]);
    let before = untouched(swarm.managers[0].everything());
    swarm.managers[0].kill();
    let dir = swarm.managers[0].dir.clone();
    let mut lineages = vec![node_json(&dir)["lineage"].clone()];
    for _ in 0..2 {
        let done = recover(&dir, b"", &["--yes", "--json", "--advertise", "127.0.0.1:9"]).json();
        let new = node_json(&dir);
        assert_eq!(new["lineage"], done["recovered"]["lineage"]);
        assert_eq!(Some(&new["parent_lineage"]), lineages.last());
        assert!(!lineages.contains(&new["lineage"]));
        lineages.push(new["lineage"].clone());
    }
    assert_eq!(names(&dir).iter().filter(|name| name.starts_with("raft.before-recover-")).count(), 2);
    swarm.managers[0].start();
    swarm.votes(0);
    assert_eq!(untouched(swarm.managers[0].everything()), before);
    let addr = swarm.managers[0].addr.clone();
    eventually("it says where it listens now", || {
        (swarm.managers[0].json(&["members"])[0]["addr"] == addr.as_str()).then_some(())
    });
    for number in 0..20 {
        swarm.managers[0].create_config(&format!("more{number}"), &[7; 2000]);
    }
    swarm.managers[0].kill();

    let segment = names(&dir.join("raft")).into_iter().filter(|name| name.starts_with("wal-")).max().unwrap();
    let path = dir.join("raft").join(segment);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let said = recover(&dir, b"", &["--yes"]).refused_with_hint(5, &["damaged at byte"]);
    assert!(said.contains("wal-") && said.contains("skep wal repair"), "{said}");
    skep(|command| {
        command.args(["run", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&dir);
    })
    .refused_with_hint(5, &["damaged at byte"]);

    // Cut at the damage it does not start as the member it was, and can be recovered.
    skep(|command| {
        command.args(["wal", "repair", "--yes"]).arg(&dir);
    })
    .ok();
    skep(|command| {
        command.args(["run", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&dir);
    })
    .refused_with_hint(3, &["was repaired", "skep recover --data-dir"]);
    recover(&dir, b"", &["--yes"]).ok();
    swarm.managers[0].start();
    swarm.votes(0);
    let after = untouched(swarm.managers[0].everything());
    assert!(before.iter().all(|object| after.contains(object)));
}
