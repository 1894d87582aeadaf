//! Directories that must not take part: wiped, rolled back, copied, damaged, from the future.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::swarm::{Manager, Swarm, eventually};

/// Copies a directory of a manager that does not run.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy(&entry.path(), &target);
        } else if kind.is_file() {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Starts a manager that must refuse; what it said.
#[track_caller]
fn refuses(manager: &mut Manager, code: i32) -> String {
    let before = manager.log_length();
    manager.spawn();
    let ended = manager.ended();
    let said = manager.log_since(before);
    assert_eq!(ended, Some(code), "{said}");
    assert!(said.contains("\nhint: ") && !said.contains("panicked"), "{said}");
    said
}

fn segments(manager: &Manager) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(manager.dir.join("raft")).unwrap().flatten();
    let mut segments: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains("/wal-")).collect();
    segments.sort();
    segments
}

#[test]
fn a_member_whose_log_was_wiped_is_refused() {
    let mut swarm = Swarm::of(3);
    let wiped = swarm.followers()[0];
    swarm.managers[wiped].stop();
    let raft = swarm.managers[wiped].dir.join("raft");
    std::fs::remove_dir_all(&raft).unwrap();
    let said = refuses(&mut swarm.managers[wiped], 3);
    assert!(said.contains("its log is gone"), "{said}");
    std::fs::create_dir(&raft).unwrap();
    let said = refuses(&mut swarm.managers[wiped], 3);
    assert!(said.contains("its log is gone") && said.contains("must not vote"), "{said}");
    swarm.managers[swarm.leader()].create_config("others-go-on", b"x");
}

#[test]
fn a_directory_rolled_back_is_turned_away_by_its_peers() {
    let mut swarm = Swarm::of(3);
    let old = swarm.followers()[0];
    swarm.managers[old].stop();
    let backup = swarm.path().join("backup");
    copy(&swarm.managers[old].dir, &backup);
    for name in ["one", "two"] {
        swarm.managers[old].start();
        swarm.votes(old);
        swarm.managers[old].create_config(name, b"x");
        swarm.converge();
        swarm.managers[old].stop();
    }
    std::fs::remove_dir_all(&swarm.managers[old].dir).unwrap();
    copy(&backup, &swarm.managers[old].dir);
    let said = refuses(&mut swarm.managers[old], 5);
    assert!(said.contains("was rolled back"), "{said}");
    let leader = swarm.leader();
    swarm.managers[leader].create_config("others-go-on", b"x");
    swarm.converge();
}

#[test]
fn a_leader_rolled_back_behind_its_own_writes_is_turned_away_by_its_peers() {
    let mut swarm = Swarm::of(3);
    let old = swarm.followers()[0];
    swarm.managers[old].stop();
    let backup = swarm.path().join("backup");
    copy(&swarm.managers[old].dir, &backup);
    swarm.managers[old].start();
    swarm.votes(old);
    let name = swarm.managers[old].name.clone();
    swarm.managers[old].skep(&["raft", "transfer", &name]).ok();
    for number in 0..10 {
        swarm.managers[old].create_config(&format!("c{number}"), b"x");
    }
    swarm.managers[old].kill();
    std::fs::remove_dir_all(&swarm.managers[old].dir).unwrap();
    copy(&backup, &swarm.managers[old].dir);
    let said = refuses(&mut swarm.managers[old], 5);
    assert!(said.contains("was rolled back"), "{said}");
    let leader = swarm.leader();
    assert_eq!(swarm.managers[leader].json(&["config", "ls"]).as_array().unwrap().len(), 10);
    swarm.managers[leader].create_config("others-go-on", b"x");
    swarm.converge();
}

#[test]
fn a_directory_from_before_a_mark_is_turned_away_by_peers_that_remember_no_start_and_it_joins_anew() {
    let mut swarm = Swarm::of(3);
    let old = swarm.followers()[0];
    let peers: Vec<usize> = (0..3).filter(|&place| place != old).collect();
    swarm.managers[old].stop();
    let backup = swarm.path().join("backup");
    copy(&swarm.managers[old].dir, &backup);
    let logged = swarm.managers[old].log_length();
    swarm.managers[old].start();
    let said = swarm.managers[old].log_since(logged);
    let replayed = said.split("replayed the log up to index ").nth(1).unwrap().split(' ').next().unwrap();
    let replayed: u64 = replayed.parse().unwrap();
    swarm.votes(old);
    swarm.managers[old].create_config("motd", b"x");
    let written = Instant::now();
    // A mark says how far each voter has come. It is an entry of its own, which comes when nothing has changed for ten
    // seconds.
    eventually("the log is marked", || {
        let applied = swarm.managers[old].status()?["applied"].as_u64()?;
        (applied >= replayed + 2 && written.elapsed() > Duration::from_secs(11)).then_some(())
    });
    swarm.converge();
    // What each has seen of the others' starts goes, so that only the mark is left.
    for manager in &mut swarm.managers {
        manager.kill();
    }
    for &place in &peers {
        std::fs::remove_file(swarm.managers[place].dir.join("peers.json")).unwrap();
        swarm.managers[place].start();
    }
    swarm.leader();
    std::fs::remove_dir_all(&swarm.managers[old].dir).unwrap();
    copy(&backup, &swarm.managers[old].dir);
    let said = refuses(&mut swarm.managers[old], 5);
    assert!(said.contains("was rolled back: its log ends at "), "{said}");
    assert!(said.contains("hint: the others go on; to come back, move ") && said.contains("join anew"), "{said}");

    // What the hint says.
    std::fs::rename(&swarm.managers[old].dir, swarm.path().join("aside")).unwrap();
    swarm.join(|_| {});
    swarm.converge();
}

#[test]
fn of_two_processes_from_one_directory_one_is_fenced_and_the_swarm_goes_on() {
    let mut swarm = Swarm::of(3);
    let original = swarm.followers()[0];
    swarm.managers[original].stop();
    let copied = swarm.add();
    let (from, to) = (swarm.managers[original].dir.clone(), swarm.managers[copied].dir.clone());
    copy(&from, &to);
    swarm.managers[original].start();
    swarm.votes(original);
    swarm.managers[original].create_config("before", b"x");
    let said = refuses(&mut swarm.managers[copied], 5);
    assert!(said.contains("runs twice") || said.contains("was rolled back"), "{said}");
    swarm.managers[original].create_config("after", b"x");
    swarm.converge();
}

#[test]
fn of_a_running_directory_and_its_copy_one_goes_on() {
    let mut swarm = Swarm::of(3);
    let original = swarm.followers()[0];
    let copied = swarm.add();
    swarm.converge();
    let (from, to) = (swarm.managers[original].dir.clone(), swarm.managers[copied].dir.clone());
    copy(&from, &to);
    // The copy is the newer start, so that the peers take it for the manager come back: the older one must go.
    swarm.managers[copied].start();
    assert_eq!(swarm.managers[original].ended(), Some(5));
    let said = swarm.managers[original].log_since(0);
    assert!(said.contains("was rolled back") || said.contains("runs twice"), "{said}");
    swarm.votes(copied);
    swarm.managers[copied].create_config("after", b"x");
    swarm.converge();
}

#[test]
fn a_damaged_log_is_refused_and_the_place_is_named() {
    let mut swarm = Swarm::of(3);
    let victim = swarm.followers()[0];
    for number in 0..20 {
        swarm.managers[victim].create_config(&format!("c{number}"), &[7; 2000]);
    }
    swarm.converge();
    swarm.managers[victim].stop();
    let segment = segments(&swarm.managers[victim]).pop().unwrap();
    let name = segment.file_name().unwrap().to_string_lossy().into_owned();
    let file = File::options().read(true).write(true).open(&segment).unwrap();
    let place = 16 * 1024;
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], place).unwrap();
    let said = refuses(&mut swarm.managers[victim], 5);
    assert!(said.contains(&format!("{name} is damaged at byte ")), "{said}");
    assert!(said.contains("skep wal inspect"), "{said}");
    let dir = swarm.managers[victim].dir.display().to_string();
    let ended = super::swarm::skep(|command| {
        command.args(["wal", "inspect", &dir]);
    });
    ended.refused_with_hint(5, &[&format!("{name} is damaged at byte ")]);

    // As it was, it starts.
    file.write_all_at(&byte, place).unwrap();
    swarm.managers[victim].start();
    swarm.votes(victim);
    swarm.converge();
}

#[test]
fn files_of_a_newer_version_are_refused_and_left_alone() {
    let mut swarm = Swarm::of(1);
    swarm.managers[0].create_config("motd", b"hello");
    swarm.managers[0].stop();

    let path = swarm.managers[0].dir.join("node.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let newer = text.replace("\"format\": 1", "\"format\": 9").replace("\"min_reader\": 1", "\"min_reader\": 9");
    assert_ne!(newer, text);
    std::fs::write(&path, &newer).unwrap();
    let said = refuses(&mut swarm.managers[0], 3);
    assert!(said.contains("written by a newer skep (format 9"), "{said}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), newer);
    std::fs::write(&path, text).unwrap();

    let segment = segments(&swarm.managers[0]).pop().unwrap();
    let file = File::options().read(true).write(true).open(&segment).unwrap();
    let mut header = [0; 512];
    file.read_exact_at(&mut header, 0).unwrap();
    let mut newer = header;
    // The version and the oldest reader; the checksum of a sector is in its last four bytes in every format.
    newer[8..12].copy_from_slice(&[9, 0, 9, 0]);
    let checksum = crc32fast::hash(&newer[..508]);
    newer[508..].copy_from_slice(&checksum.to_le_bytes());
    file.write_all_at(&newer, 0).unwrap();
    let said = refuses(&mut swarm.managers[0], 3);
    assert!(said.contains("needs a reader of format 9"), "{said}");
    file.write_all_at(&header, 0).unwrap();

    swarm.managers[0].start();
    swarm.votes(0);
    assert_eq!(swarm.managers[0].json(&["config", "ls"])[0]["name"], "motd");
}

/// Takes a sector out of the middle of the last batch: what a power cut leaves of a write that was not synced.
fn tear(manager: &Manager) {
    let segment = segments(manager).pop().unwrap();
    let bytes = std::fs::read(&segment).unwrap();
    let begins = |sector: &usize| bytes[sector * 512..].starts_with(b"SKB\n");
    let last = (1..bytes.len() / 512).rfind(begins).unwrap();
    assert!(bytes[(last + 2) * 512..(last + 3) * 512].iter().any(|byte| *byte != 0), "the last batch is too short");
    let file = File::options().write(true).open(&segment).unwrap();
    file.write_all_at(&[0; 512], (last + 1) as u64 * 512).unwrap();
}

#[test]
fn a_torn_last_write_that_nobody_relies_on_is_cut_off_and_kept_aside() {
    let mut swarm = Swarm::of(3);
    swarm.managers[0].create_config("motd", b"x");
    swarm.converge();
    let leader = swarm.leader();
    let others = swarm.followers();
    // The others never hear of the last write.
    for &place in &others {
        swarm.managers[place].signal(Signal::STOP);
    }
    let last = |manager: &Manager| manager.json(&["raft", "status"])["last"].as_u64().unwrap();
    let before = last(&swarm.managers[leader]);
    let arguments = ["config", "create", "unheard", "-", "--timeout", "300ms"];
    let ended = swarm.managers[leader].skep_with_input(&[7; 5000], &arguments);
    assert_eq!(ended.code, Some(6), "{ended:?}");
    assert!(ended.stderr.contains("--change-id "), "{ended:?}");
    eventually("it is in the log", || (last(&swarm.managers[leader]) > before).then_some(()));
    swarm.managers[leader].kill();
    tear(&swarm.managers[leader]);
    for &place in &others {
        swarm.managers[place].signal(Signal::CONT);
    }
    swarm.managers[others[0]].create_config("after", b"x");
    let logged = swarm.managers[leader].log_length();
    swarm.managers[leader].start();
    swarm.votes(leader);
    swarm.converge();
    assert!(swarm.managers[leader].log_since(logged).contains("lost+found"), "nothing was cut");
    let kept = std::fs::read_dir(swarm.managers[leader].dir.join("raft/lost+found")).unwrap().count();
    assert_eq!(kept, 1);
    // The frozen ones may have found the write in their sockets when they woke: its outcome was not known.
    for name in ["motd", "after"] {
        swarm.managers[leader].skep(&["config", "inspect", name]).ok();
    }
}

#[test]
fn a_disk_that_lost_what_was_acknowledged_fences_its_manager() {
    let mut swarm = Swarm::of(3);
    let victim = swarm.followers()[0];
    swarm.managers[victim].create_config("motd", &[7; 3000]);
    swarm.converge();
    swarm.managers[victim].kill();
    tear(&swarm.managers[victim]);
    let said = refuses(&mut swarm.managers[victim], 5);
    assert!(said.contains("the disk lost acknowledged data"), "{said}");
    let leader = swarm.leader();
    swarm.managers[leader].create_config("others-go-on", b"x");
}
