//! A full disk: changes are refused before it is, nothing is lost, and it ends when there is room again.
//!
//! The disk is a small file system in memory. Where nobody may make namespaces the tests say that they are skipped.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::mounted::Mounted;
use super::swarm::{Swarm, eventually};
use super::writers::Writers;

/// Three segments, the reserve, and some.
const DISK_MIB: u64 = 88;

struct SmallDisk(Mounted);

impl SmallDisk {
    /// Mounts one at `dir`; `None` where that is not allowed.
    fn at(dir: &Path) -> Option<Self> {
        let mount = format!("mount -t tmpfs -o mode=0700,size={DISK_MIB}m small \"$0\"");
        Mounted::at(dir, true, &mount, &[dir]).map(Self)
    }

    /// Takes what is left.
    fn fill(&self) {
        let mut filler = File::create(self.0.outside("filler")).unwrap();
        while filler.write_all(&[7; 4096]).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.0.outside("filler")).unwrap();
    }
}

/// A swarm whose first manager has a small disk.
fn swarm() -> Option<(Swarm, SmallDisk)> {
    let mut swarm = Swarm::empty();
    let Some(disk) = SmallDisk::at(&swarm.path().join("m1")) else {
        eprintln!("skipped: this system does not let its users make namespaces");
        return None;
    };
    swarm.join(|manager| disk.0.carry(manager));
    Some((swarm, disk))
}

#[test]
fn a_full_disk_refuses_changes_and_takes_them_again_when_there_is_room() {
    let Some((mut swarm, disk)) = swarm() else { return };
    let manager = &swarm.managers[0];
    manager.create_config("before", b"x");
    let mut taken = 3;
    for round in 0..2 {
        disk.fill();
        let mut count = 0;
        let (name, refused) = eventually("changes are refused", || {
            count += 1;
            let name = format!("filling-{round}-{count}");
            let arguments = ["config", "create", &name, "-", "--timeout", "200ms"];
            let ended = manager.skep_with_input(b"x", &arguments);
            taken += u64::from(ended.code == Some(0));
            (ended.code != Some(0)).then_some((name, ended))
        });
        refused.refused_with_hint(4, &["the leader's disk is almost full", "bytes are free", "free "]);
        manager.skep(&["config", "inspect", "before"]).ok();
        manager.skep(&["config", "inspect", &name]).refused_with_hint(3, &[&name]);
        disk.free();
        eventually("changes are taken again", || {
            let name = format!("after-{round}");
            (manager.skep_with_input(b"x", &["config", "create", &name, "-"]).code == Some(0)).then_some(())
        });
    }
    // It starts on a full disk too, as it must to make room.
    disk.fill();
    let manager = &mut swarm.managers[0];
    manager.kill();
    manager.start();
    swarm.votes(0);
    let manager = &swarm.managers[0];
    assert_eq!(manager.json(&["config", "ls"]).as_array().unwrap().len() as u64, taken);
    disk.free();
    eventually("changes are taken again", || {
        (manager.skep_with_input(b"x", &["config", "create", "last", "-"]).code == Some(0)).then_some(())
    });
}

#[test]
fn a_leader_whose_disk_is_full_hands_over_and_catches_up_when_there_is_room() {
    let Some((mut swarm, disk)) = swarm() else { return };
    swarm.join(|_| {});
    swarm.join(|_| {});
    let writers = Writers::start(&swarm, 4);
    writers.wait_for(40);
    swarm.managers[1].skep(&["raft", "transfer", "m1"]).ok();
    let before = swarm.managers[0].log_length();
    disk.fill();
    eventually("it hands over", || {
        swarm.managers[0].log_since(before).contains("handing leadership over").then_some(())
    });
    assert_ne!(swarm.leader(), 0);
    writers.wait_for(200);
    // Not even a crash on the full disk loses what it has.
    swarm.managers[0].kill();
    writers.wait_for(40);
    swarm.managers[0].start();
    writers.wait_for(40);
    disk.free();
    swarm.votes(0);
    writers.wait_for(40);
    writers.finish().check(&swarm);
}
