//! A file system of its own for a manager, in a mount namespace that a process holds, so that it outlives the manager and
//! is gone with the test, however that ends.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::swarm::Manager;

pub struct Mounted {
    /// Ends when its input does.
    holder: Child,
    /// What `nsenter` needs besides, to get into the same namespaces.
    enter: &'static [&'static str],
    dir: PathBuf,
}

impl Mounted {
    /// Makes `dir` and runs `mount` in the new namespace, a shell command that finds `arguments` in `$0` and after; `None`
    /// where that is not allowed. `own_user`: with a user namespace, so that it takes no root.
    pub fn at(dir: &Path, own_user: bool, mount: &str, arguments: &[&Path]) -> Option<Self> {
        std::fs::create_dir(dir).unwrap();
        let script = format!("{mount} && echo ready && exec cat");
        let (new, enter): (_, &[_]) =
            if own_user { ("-Urm", &["-U", "-m", "--preserve-credentials"]) } else { ("-m", &["-m"]) };
        let mut command = Command::new("unshare");
        command.args([new, "--propagation", "private", "sh", "-c", &script]).args(arguments);
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut holder = spawned.ok()?;
        let mut said = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        let mounted = Self { holder, enter, dir: dir.to_owned() };
        (said == "ready\n").then_some(mounted)
    }

    /// The words that run something where this is mounted.
    pub fn within(&self, words: &[&str]) -> Vec<String> {
        let holder = self.holder.id().to_string();
        let enter = ["nsenter"].iter().chain(self.enter).copied().chain(["-t", &holder, "--"]);
        enter.chain(words.iter().copied()).map(str::to_owned).collect()
    }

    /// The manager runs where this is mounted, and is reached from outside.
    pub fn carry(&self, manager: &mut Manager) {
        manager.wrapper = self.within(&[]);
        manager.socket = Some(self.dir.with_extension("sock"));
    }

    /// A file in it, as seen from outside.
    pub fn outside(&self, name: &str) -> PathBuf {
        let path = self.dir.join(name);
        PathBuf::from(format!("/proc/{}/root", self.holder.id())).join(path.strip_prefix("/").unwrap())
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = (self.holder.kill(), self.holder.wait());
    }
}
