//! A disk that takes no write for two seconds: nobody loses leadership over it, and nothing is lost.
//!
//! The disk is a file with a file system of its own that is frozen (`fsfreeze`), in a mount namespace that a process holds.
//! That takes root and a loop device; where there is none the test says that it is skipped.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::swarm::{Manager, Swarm, eventually};
use super::writers::Writers;

const DISK_MIB: u64 = 512;
const STALL_SECONDS: u32 = 2;

struct Disk {
    /// Ends when its input does, which is when this test ends however it does.
    holder: Child,
    dir: PathBuf,
}

impl Disk {
    /// Mounts one at `dir`; `None` where that is not allowed.
    fn at(dir: &Path) -> Option<Self> {
        std::fs::create_dir(dir).unwrap();
        let image = dir.with_extension("image");
        File::create(&image).unwrap().set_len(DISK_MIB << 20).unwrap();
        let made =
            Command::new("mkfs.ext4").arg("-qF").arg(&image).stdout(Stdio::null()).stderr(Stdio::null()).status();
        made.ok().filter(std::process::ExitStatus::success)?;
        let script = "mount -o loop \"$0\" \"$1\" && chmod 700 \"$1\" && echo ready && exec cat";
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-c", script]).arg(&image).arg(dir);
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut holder = spawned.ok()?;
        let mut said = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        let disk = Self { holder, dir: dir.to_owned() };
        (said == "ready\n").then_some(disk)
    }

    fn within(&self, words: &[&str]) -> Vec<String> {
        let holder = self.holder.id().to_string();
        ["nsenter", "-m", "-t", &holder, "--"].iter().chain(words).map(|word| (*word).to_owned()).collect()
    }

    fn carry(&self, manager: &mut Manager) {
        manager.wrapper = self.within(&[]);
        manager.socket = Some(self.dir.with_extension("sock"));
    }

    /// Takes no write for a while. Thaws by itself, whatever becomes of the test.
    fn stall(&self) -> Child {
        let script = format!("fsfreeze -f \"$0\" && echo frozen; sleep {STALL_SECONDS}; fsfreeze -u \"$0\"");
        let words = self.within(&["sh", "-c", &script]);
        let mut stall =
            Command::new(&words[0]).args(&words[1..]).arg(&self.dir).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(stall.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "frozen\n");
        stall
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = (self.holder.kill(), self.holder.wait());
    }
}

#[test]
fn a_disk_that_stalls_for_two_seconds_costs_nobody_the_leadership() {
    let mut swarm = Swarm::empty();
    let Some(disk) = Disk::at(&swarm.path().join("m1")) else {
        eprintln!("skipped: this system lets nobody mount and freeze a file system of his own");
        return;
    };
    swarm.join(|manager| disk.carry(manager));
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
