//! Damaged files, and the tools for the day when they are found.

use std::path::{Path, PathBuf};

use skep::types::Kind;

use super::swarm::{Ended, Swarm, eventually, skep, skep_with_input};

/// The files of a log whose names begin so, in order.
fn files(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let names = std::fs::read_dir(dir.join("raft")).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> =
        names.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(prefix)).collect();
    found.sort();
    found
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// A manager that should not start from this directory.
fn run(dir: &Path) -> Ended {
    skep(|command| {
        command.arg("run").arg("--data-dir").arg(dir).args(["--listen", "127.0.0.1:0"]);
    })
}

#[test]
fn a_damaged_log_is_named_cut_off_after_a_yes_and_never_voted_with_again() {
    let mut swarm = Swarm::of(1);
    let dir = swarm.managers[0].dir.clone();
    for number in 0..6 {
        swarm.managers[0].create_config(&format!("c{number}"), b"planted-text");
    }
    let repair = |input: &[u8], arguments: &[&str]| {
        skep_with_input(input, |command| {
            command.args(["wal", "repair"]).arg(&dir).args(arguments);
        })
    };
    repair(b"", &["--yes"]).refused(3, &["another skep process is using it"]);
    swarm.managers[0].stop();
    assert!(repair(b"", &["--yes"]).ok().contains("nothing to repair"));

    let inspect = |arguments: &[&str]| {
        skep(|command| {
            command.args(["wal", "inspect"]).arg(&dir).args(arguments);
        })
    };
    let rows = inspect(&["--json"]).json();
    let batches: Vec<u64> = rows
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["type"] == "batch" && row["file"] == "wal-00000001")
        .map(|row| row["offset"].as_u64().unwrap())
        .collect();
    let offset = batches[batches.len() - 3];
    let segment = files(&dir, "wal-").remove(0);
    let before = std::fs::read(&segment).unwrap();
    flip(&segment, offset as usize + 80);
    let place = format!("wal-00000001 is damaged at byte {offset}");
    inspect(&[]).refused_with_hint(5, &[&place]);
    run(&dir).refused_with_hint(5, &[&place]);

    let damaged = std::fs::read(&segment).unwrap();
    let shown = repair(b"", &["--dry-run", "--json"]);
    assert_eq!(shown.code, Some(5));
    let value: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    assert!(value["offset"] == offset && value["repaired"] == false, "{value}");
    repair(b"no\n", &[]).refused(3, &["nothing was changed"]);
    assert_eq!(std::fs::read(&segment).unwrap(), damaged);
    let said = repair(b"yes\n", &[]);
    assert!(said.stderr.contains("may have been acknowledged") && said.stderr.contains("join anew"), "{}", said.stderr);
    assert!(said.ok().contains("lost+found"));

    // What was cut is kept, what stood before it stays, and nothing of it is a member any more.
    let kept: Vec<_> = std::fs::read_dir(dir.join("raft/lost+found")).unwrap().collect();
    assert!(!kept.is_empty());
    let now = std::fs::read(&segment).unwrap();
    assert_eq!(now[..offset as usize], before[..offset as usize]);
    assert!(now[offset as usize..].iter().all(|byte| *byte == 0));
    inspect(&[]).ok();
    run(&dir).refused_with_hint(3, &["repaired", "must not vote"]);
    repair(b"", &["--yes"]).ok();
}

#[test]
fn a_log_without_its_last_segment_does_not_start() {
    let mut swarm = Swarm::of(1);
    let dir = swarm.managers[0].dir.clone();
    swarm.managers[0].create_config("one", b"x");
    swarm.managers[0].stop();
    swarm.managers[0].start();
    swarm.managers[0].create_config("two", b"x");
    swarm.managers[0].stop();
    let last = files(&dir, "wal-").pop().unwrap();
    let name = last.file_name().unwrap().to_string_lossy().into_owned();
    std::fs::remove_file(&last).unwrap();
    run(&dir).refused_with_hint(5, &[&name, "the segment is missing"]);
}

#[test]
fn a_snapshot_is_checked_and_counted_with_its_key_only() {
    let mut swarm = Swarm::of(1);
    let dir = swarm.managers[0].dir.clone();
    for number in 0..4 {
        swarm.managers[0].create_config(&format!("c{number}"), b"planted-text");
    }
    swarm.managers[0].skep(&["raft", "snapshot"]).ok();
    let snapshot = files(&dir, "snap-").pop().unwrap();
    let inspect = |file: &Path, arguments: &[&str]| {
        skep(|command| {
            command.args(["snapshot", "inspect"]).arg(file).args(arguments);
        })
    };
    // While the manager runs, and after.
    inspect(&snapshot, &[]).ok();
    swarm.managers[0].stop();
    let text = inspect(&snapshot, &[]).ok();
    assert!(text.contains("config  4 objects") && text.contains("voter") && !text.contains("planted"), "{text}");
    let value = inspect(&snapshot, &["--json"]).json();
    assert_eq!(value["members"].as_array().unwrap().len(), 1);
    let configs = value["objects"].as_array().unwrap().iter().find(|row| row["kind"] == "config").unwrap();
    assert!(configs["count"] == 4 && configs["bytes"].as_u64() > Some(40), "{configs}");

    let copy = swarm.path().join("copy-of-a-snapshot");
    std::fs::copy(&snapshot, &copy).unwrap();
    inspect(&copy, &[]).refused_with_hint(3, &["sealed with data key", "--data-dir"]);
    let data_dir = dir.display().to_string();
    assert_eq!(inspect(&copy, &["--json", "--data-dir", &data_dir]).json()["revision"], value["revision"]);
    let len = std::fs::read(&copy).unwrap().len();
    for at in [20, 150, len / 2, len - 5] {
        flip(&copy, at);
        inspect(&copy, &["--data-dir", &data_dir]).refused(5, &["copy-of-a-snapshot is damaged at byte"]);
        flip(&copy, at);
    }
    inspect(&dir.join("node.json"), &["--data-dir", &data_dir]).refused(5, &["node.json is damaged"]);
}

/// Three managers of which one, the second number, is down and lacks more than the leader, the first, keeps in memory; and
/// the leader's segment that has what it lacks.
fn with_one_that_lags() -> (Swarm, usize, usize, PathBuf) {
    let mut swarm = Swarm::of(3);
    let leader = swarm.leader();
    let late = swarm.followers()[0];
    swarm.managers[late].kill();
    let data: Vec<u8> = (0..900 << 10).map(|at: u32| (at * 7 + at / 251) as u8).collect();
    for number in 0..24 {
        swarm.managers[leader].create_config(&format!("c{number}"), &data);
    }
    let segment = files(&swarm.managers[leader].dir, "wal-").remove(0);
    (swarm, leader, late, segment)
}

#[test]
fn a_disk_that_fails_under_the_log_is_named_and_the_others_go_on() {
    let (mut swarm, leader, late, segment) = with_one_that_lags();
    let before = swarm.managers[leader].log_length();
    // The pages are gone from under the map, as when the disk cannot deliver them: the next read of them is a SIGBUS.
    std::fs::File::options().write(true).open(segment).unwrap().set_len(0).unwrap();
    swarm.managers[late].start();
    assert_eq!(swarm.managers[leader].ended(), Some(5));
    let said = swarm.managers[leader].log_since(before);
    assert!(said.contains("skep: cannot read raft/wal-00000001 at byte ") && said.contains("hint: "), "{said}");
    assert_eq!(swarm.converge().iter().filter(|object| object.kind() == Kind::Config).count(), 24);
}

#[test]
fn a_follower_that_lags_gets_a_snapshot_where_the_leaders_log_has_rotted() {
    let (mut swarm, leader, late, segment) = with_one_that_lags();
    // All of what was written in it after the join, but for its beginning: wherever the late one's next entry is, what it
    // needs is not whole.
    let file = std::fs::File::options().write(true).open(&segment).unwrap();
    for mib in 1..15 {
        std::os::unix::fs::FileExt::write_all_at(&file, b"rotten", (mib << 20) + 77_777).unwrap();
    }
    let before = swarm.managers[leader].log_length();
    swarm.managers[late].start();
    swarm.converge();
    let said = swarm.managers[leader].log_since(before);
    assert!(said.contains("is damaged at byte") && said.contains("writing a snapshot to replace the log"), "{said}");
    assert_eq!(swarm.leader(), leader);
    // Nothing of the damage is left, and the log can be opened again.
    eventually("the damaged segment has gone", || (!segment.exists()).then_some(()));
    swarm.managers[leader].stop();
    swarm.managers[leader].start();
    swarm.converge();
}
