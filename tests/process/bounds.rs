//! Bounds that callers and machines set: time, descriptors, who may use the socket.

use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, prlimit};

use super::swarm::{Manager, Swarm, eventually, skep};

#[test]
fn a_timeout_that_ends_under_a_majority_that_is_slow_tells_what_is_known() {
    let swarm = Swarm::of(3);
    let leader = swarm.leader();
    let manager = &swarm.managers[leader];
    manager.create_config("before", b"x");
    // Their connections are up, and they do nothing.
    for place in swarm.followers() {
        swarm.managers[place].signal(Signal::STOP);
    }
    let write = manager.skep_with_input(b"x", &["config", "create", "motd", "-", "--timeout", "300ms"]);
    let read = manager.skep(&["config", "ls", "--timeout", "300ms"]);
    for place in 0..3 {
        if place != leader {
            swarm.managers[place].signal(Signal::CONT);
        }
    }
    // The write was proposed, and may be committed yet; the read certainly was not answered.
    let said = write.refused_with_hint(6, &["--change-id "]);
    read.refused_with_hint(4, &[]);
    let change = said.split("--change-id ").nth(1).unwrap().split(['`', ' ', '\n']).next().unwrap().to_owned();
    let again = ["config", "create", "motd", "-", "--change-id", &change, "--timeout", "30s"];
    manager.skep_with_input(b"x", &again).ok();
    manager.skep_with_input(b"x", &again).ok();
    let names = manager.json(&["config", "ls", "--timeout", "30s"]);
    assert_eq!(names.as_array().unwrap().len(), 2, "{names}");
    swarm.converge();
}

/// Descriptors that a manager holds.
fn descriptors(manager: &Manager) -> u64 {
    std::fs::read_dir(format!("/proc/{}/fd", manager.pid().as_raw_nonzero())).unwrap().count() as u64
}

/// Processor time that a manager has used, in clock ticks (a hundredth of a second on every Linux that runs this).
fn ticks(manager: &Manager) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", manager.pid().as_raw_nonzero())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn a_manager_out_of_descriptors_waits_quietly_and_goes_on_when_there_are_some() {
    let swarm = Swarm::of(1);
    let manager = &swarm.managers[0];
    manager.create_config("before", b"x");
    let before = manager.log_length();
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: Some(descriptors(manager) + 5), maximum };
    let whole = prlimit(Some(manager.pid()), Resource::Nofile, limit).unwrap();
    let held: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(&manager.addr).unwrap()).collect();
    eventually("it says so", || manager.log_since(before).contains("cannot accept connections for now").then_some(()));
    // All that wait keep its listener readable: a loop that only looked at that would never sleep.
    let (began, used) = (Instant::now(), ticks(manager));
    eventually("a while has passed", || (began.elapsed() > Duration::from_secs(2)).then_some(()));
    let (passed, used) = (began.elapsed().as_millis() as u64 / 10, ticks(manager) - used);
    assert!(used * 2 < passed, "{used} of {passed} ticks were used");
    assert!(manager.log_since(before).lines().count() < 100, "a stranger can fill the disk with log lines");
    prlimit(Some(manager.pid()), Resource::Nofile, whole).unwrap();
    manager.create_config("after", b"x");
    drop(held);
    eventually("those who left are forgotten", || (descriptors(manager) < 100).then_some(()));
    let rows = manager.json(&["config", "ls"]);
    assert_eq!(rows.as_array().unwrap().len(), 2, "{rows}");
}

#[test]
fn the_socket_can_belong_to_a_group() {
    let own = rustix::process::getegid();
    let others = rustix::process::getgroups().unwrap();
    let root = rustix::process::geteuid().is_root();
    // Root may give a file to any group; others to those they belong to.
    let group = others.into_iter().find(|group| *group != own).map(|group| group.as_raw()).or(root.then_some(1));
    let Some(group) = group else {
        eprintln!("skipped: the user who runs the tests belongs to one group only");
        return;
    };
    let mut swarm = Swarm::empty();
    let socket = swarm.path().join("group.sock");
    let place = swarm.add();
    let manager = &mut swarm.managers[place];
    manager.arguments = vec!["--socket-group".into(), group.to_string()];
    manager.spawn();
    assert_eq!(manager.ended(), Some(3), "the data directory is closed to the group");
    manager.arguments.extend(["--socket".into(), socket.display().to_string()]);
    manager.start();
    let metadata = std::fs::metadata(&socket).unwrap();
    assert_eq!((metadata.permissions().mode() & 0o777, metadata.gid()), (0o660, group));
    let ask = || {
        skep(|command| {
            command.arg("--socket").arg(&socket).arg("status");
        })
    };
    eventually("it answers there", || (ask().code == Some(0)).then_some(()));
    manager.stop();
    manager.arguments[1] = "no-such-group-here".to_owned();
    let before = manager.log_length();
    manager.spawn();
    assert_eq!(manager.ended(), Some(3));
    let said = manager.log_since(before);
    assert!(said.contains("there is no group no-such-group-here") && said.contains("hint: "), "{said}");
}

/// Names in a manager's log directory that begin and end so.
fn files(manager: &Manager, begin: &str, end: &str) -> Vec<String> {
    let names = std::fs::read_dir(manager.dir.join("raft")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(begin) && name.ends_with(end)).collect()
}

#[test]
fn a_manager_that_starts_again_and_again_keeps_few_segments_and_no_unfinished_snapshots() {
    let mut swarm = Swarm::of(1);
    let manager = &mut swarm.managers[0];
    // Half of what is usual: a snapshot is due after three segments.
    manager.skep(&["cluster", "update", "--snapshot-bytes", "32MiB", "--keep-bytes", "64KiB"]).ok();
    for start in 0..9 {
        manager.create_config(&format!("c{start}"), b"x");
        manager.kill();
        // As a kill in the middle of a snapshot leaves it.
        std::fs::write(manager.dir.join(format!("raft/snap-{:012}.part", 900 + start)), b"half").unwrap();
        manager.start();
        assert!(files(manager, "snap-", ".part").iter().all(|name| !name.starts_with("snap-0000000009")));
        // Those three, what is kept before the snapshot, and the newest.
        eventually("old segments go", || (files(manager, "wal-", "").len() <= 5).then_some(()));
    }
    assert_eq!(manager.json(&["config", "ls"]).as_array().unwrap().len(), 9);
}
