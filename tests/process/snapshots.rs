//! Snapshots: written, compacted behind, sent to those who need them.

use super::swarm::{Manager, Swarm, eventually};

fn raft(manager: &Manager) -> serde_json::Value {
    manager.json(&["raft", "status"])
}

fn number(value: &serde_json::Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key}: {value}"))
}

/// Writes about so many KiB of log through this manager.
#[track_caller]
fn write_kib(manager: &Manager, name: &str, kib: usize) {
    for part in 0..kib.div_ceil(64) {
        manager.create_config(&format!("{name}-{part}"), &vec![part as u8 + 1; 64 << 10]);
    }
}

#[test]
fn the_log_is_compacted_and_managers_that_lack_its_beginning_get_a_snapshot() {
    let mut swarm = Swarm::of(3);
    swarm.managers[0].skep(&["cluster", "update", "--snapshot-bytes", "64KiB", "--keep-bytes", "64KiB"]).ok();
    let first = number(&raft(&swarm.managers[0]), "snapshot");

    // One is away while the others go on.
    let away = swarm.followers()[0];
    swarm.converge();
    let behind = number(&raft(&swarm.managers[away]), "last");
    swarm.managers[away].kill();
    let leader = swarm.leader();
    write_kib(&swarm.managers[leader], "away", 1536);
    eventually("a snapshot is written and the log before it dropped", || {
        let report = raft(&swarm.managers[leader]);
        (number(&report, "snapshot") > first && number(&report, "first") > behind + 1).then_some(())
    });
    let before = swarm.managers[away].log_length();
    swarm.managers[away].start();
    swarm.votes(away);
    swarm.converge();
    assert!(swarm.managers[away].log_since(before).contains("fetched a snapshot"), "it caught up some other way");

    // Everything starts again from snapshot and log.
    for manager in &mut swarm.managers {
        manager.kill();
    }
    for manager in &mut swarm.managers {
        manager.start();
    }
    let leader = swarm.leader();
    swarm.managers[leader].create_config("restarted", b"x");
    let store = swarm.converge();

    // A newcomer gets all of it.
    let newcomer = swarm.join(|_| {});
    assert!(swarm.managers[newcomer].log_since(0).contains("fetched a snapshot"));
    let now = swarm.converge();
    // Its node object is new.
    assert_eq!(now.len(), store.len() + 1);
    assert_eq!(swarm.managers[newcomer].json(&["status"])["voters"], 4);
    swarm.managers[newcomer].create_config("joined", b"x");

    // At the word of a person.
    let ended = swarm.managers[newcomer].json(&["raft", "snapshot"]);
    assert!(number(&ended, "index") > 0 && number(&ended, "bytes") > 1 << 20, "{ended}");
    swarm.converge();
}

#[test]
fn leadership_goes_where_it_is_sent() {
    let swarm = Swarm::of(3);
    for _ in 0..3 {
        let target = swarm.followers()[0];
        let name = swarm.managers[target].name.clone();
        let asked = swarm.followers()[1];
        let said = swarm.managers[asked].json(&["raft", "transfer", &name]);
        assert_eq!(said["leader"], swarm.managers[target].json(&["status"])["node_id"]);
        assert_eq!(swarm.leader(), target);
    }
    swarm.managers[0].skep(&["raft", "transfer", "nobody"]).refused_with_hint(3, &["nobody"]);
}
