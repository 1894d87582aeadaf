//! A disk that takes no write for two seconds: nobody loses leadership over it, and nothing is lost.
//!
//! The disk is a file with a file system of its own that is frozen (`fsfreeze`).
//! That takes root and a loop device; where there is none the test says that it is skipped.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use super::mounted::Mounted;
use super::swarm::{Swarm, eventually};
use super::writers::Writers;

const DISK_MIB: u64 = 512;
const STALL_SECONDS: u32 = 2;

struct Disk(Mounted);

impl Disk {
    /// Mounts one at `dir`; `None` where that is not allowed.
    fn at(dir: &Path) -> Option<Self> {
        let image = dir.with_extension("image");
        File::create(&image).unwrap().set_len(DISK_MIB << 20).unwrap();
        let made =
            Command::new("mkfs.ext4").arg("-qF").arg(&image).stdout(Stdio::null()).stderr(Stdio::null()).status();
        made.ok().filter(ExitStatus::success)?;
        Mounted::at(dir, false, "mount -o loop \"$0\" \"$1\" && chmod 700 \"$1\"", &[&image, dir]).map(Self)
    }

    /// Takes no write for a while. Thaws by itself, whatever becomes of the test.
    fn stall(&self) -> Child {
        let script = format!("fsfreeze -f \"$0\" && echo frozen; sleep {STALL_SECONDS}; fsfreeze -u \"$0\"");
        let words = self.0.within(&["sh", "-c", &script]);
        let mut stall =
            Command::new(&words[0]).args(&words[1..]).arg(self.0.dir()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(stall.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "frozen\n");
        stall
    }
}

#[test]
fn a_disk_that_stalls_for_two_seconds_costs_nobody_the_leadership() {
    let mut swarm = Swarm::empty();
    let Some(disk) = Disk::at(&swarm.path().join("m1")) else {
        eprintln!("skipped: this system lets nobody mount and freeze a file system of his own");
        return;
    };
    swarm.join(|manager| disk.0.carry(manager));
    swarm.join(|_| {});
    swarm.join(|_| {});
    let writers = Writers::start(&swarm, 4);
    // As the disk of the leader, then as that of a follower.
    for leader in ["m1", "m2"] {
        writers.wait_for(40);
        let now = swarm.leader();
        swarm.managers[now].skep(&["raft", "transfer", leader]).ok();
        let place = eventually("leadership is where it should be", || {
            Some(swarm.leader()).filter(|place| swarm.managers[*place].name == leader)
        });
        writers.wait_for(40);
        let term = swarm.managers[place].json(&["status"])["term"].clone();
        let mut stall = disk.stall();
        assert!(stall.wait().unwrap().success());
        writers.wait_for(40);
        let after = swarm.managers[place].json(&["status"]);
        assert_eq!((swarm.leader(), &after["term"]), (place, &term), "{after}");
    }
    writers.finish().check(&swarm);
}
