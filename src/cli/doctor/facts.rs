//! What there is to know of a manager: asked, looked up under `/proc`, and read from its directory. Nothing is changed.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli::args::Common;
use crate::cli::exit::Failure;
use crate::cli::run::STOPPED_FILE;
use crate::cli::{session, wal};
use crate::client::Client;
use crate::pki::{self, Identity};
use crate::sys::files::RealDisk;
use crate::sys::time::wall_ms;
use crate::types::api::{Answer, Call, Diagnosis, MemberReport, QueryKind, RaftState, StatusReport};
use crate::wal::Found;

/// Everything that the checks judge.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// The wall clock.
    pub now_ms: u64,
    /// This build.
    pub version: String,
    /// The control socket that was tried.
    pub socket: PathBuf,
    /// What the manager says, or why it says nothing.
    pub manager: Result<Box<Told>, String>,
    /// What a worker says of itself, where one answers: it keeps nothing else that can be judged.
    pub worker: Option<Box<StatusReport>>,
    /// Its directory.
    pub dir: DirFacts,
    /// Its process, if there is one that can be looked at.
    pub process: Option<ProcessFacts>,
    /// A join token lies here, with these permission bits.
    pub token: Option<(PathBuf, u32)>,
}

/// What a running manager tells.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// Its health.
    pub diagnosis: Diagnosis,
    /// Its status; `None` when it does not tell, such as before it has joined.
    pub status: Option<StatusReport>,
    /// The Raft group as it knows it.
    pub members: Vec<MemberReport>,
}

/// A data directory as it lies there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DirFacts {
    /// Where.
    pub path: PathBuf,
    /// Why it cannot be read; `None` when it can.
    pub unreadable: Option<String>,
    /// Permission bits.
    pub mode: u32,
    /// Files that others than the owner may read or write.
    pub open_files: Vec<String>,
    /// `node.json`: absent, unreadable or malformed, or its phase.
    pub node: Option<Result<String, String>>,
    /// The process that holds the lock.
    pub locked_by: Option<u32>,
    /// The node's certificate.
    pub certificate: Option<Result<Identity, String>>,
    /// The node's key is there.
    pub has_key: bool,
    /// The keys are sealed under the unlock key.
    pub is_sealed: bool,
    /// There is a log.
    pub has_log: bool,
    /// Bytes of log and snapshots.
    pub raft_bytes: u64,
    /// What is wrong with the log, when it was read: only while no manager writes it.
    pub damage: Option<String>,
    /// What recovery cut off and kept.
    pub lost_and_found: usize,
    /// The log of a member that was removed.
    pub retired: Option<String>,
    /// Why the last process stopped by itself.
    pub stopped: Option<StoppedFacts>,
    /// Bytes free to its owner, and in all, and free inodes.
    pub disk: Option<(u64, u64, u64)>,
}

/// Why a process stopped by itself, as it left it in its directory.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct StoppedFacts {
    /// Its exit code.
    pub exit: u8,
    /// Why.
    pub reason: String,
    /// What to do about it.
    pub hint: String,
}

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessFacts {
    /// Its id.
    pub pid: u32,
    /// Files it has open, and may have.
    pub files: Option<(u64, u64)>,
}

/// Why a locked manager says nothing.
pub const LOCKED: &str = "it is locked";

/// How it begins why a node that is about to join says nothing; what it waits for follows.
pub const JOINING: &str = "it has not joined its swarm yet";

/// Collects everything, from whatever answers.
pub fn collect(common: &Common) -> Result<Facts, Failure> {
    let (dir, socket) = places(common)?;
    let (manager, worker) = ask(common, &socket);
    let running = manager.is_ok();
    let dir = look_at(&dir, running);
    let pid = manager.as_ref().ok().map(|told| told.diagnosis.pid).or(dir.locked_by);
    Ok(Facts {
        now_ms: wall_ms(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        socket,
        token: token(pid),
        process: pid.and_then(process),
        manager,
        worker,
        dir,
    })
}

/// The data directory and the control socket. With a socket alone the directory is the one that it lies in, if that is a
/// manager's.
pub fn places(common: &Common) -> Result<(PathBuf, PathBuf), Failure> {
    match (common.socket.as_slice(), &common.data_dir) {
        ([], _) => {
            let dir = session::data_dir(common)?;
            let socket = dir.join("skep.sock");
            Ok((dir, socket))
        }
        ([socket], Some(dir)) => Ok((dir.clone(), socket.clone())),
        ([socket], None) => {
            let beside = socket.parent().filter(|dir| dir.join("node.json").exists()).map(Path::to_path_buf);
            Ok((beside.map_or_else(|| session::data_dir(common), Ok)?, socket.clone()))
        }
        _ => Err(Failure::usage("--socket is given several times; only `skep bench` takes several")),
    }
}

/// What a manager tells, or why there is none that does; what a worker tells, if it is one.
fn ask(common: &Common, socket: &Path) -> (Result<Box<Told>, String>, Option<Box<StatusReport>>) {
    let timeout = common.timeout;
    let mut client = match Client::local(socket, timeout) {
        Ok(client) => client,
        Err(error) => return (Err(error.into_status().message), None),
    };
    let status = |client: &mut Client| match client.query(QueryKind::Status, true, timeout) {
        Ok(Answer::Status(status)) => Some(*status),
        _ => None,
    };
    let diagnosis = match client.call(Call::Diagnose, &(), timeout) {
        Ok(Answer::Diagnosis(diagnosis)) => *diagnosis,
        Ok(_) => return (Err("it answers something else than was asked: another version?".to_owned()), None),
        Err(error) => {
            let why = error.into_status().message;
            return match status(&mut client) {
                Some(status) if status.state == "locked" => (Err(LOCKED.to_owned()), None),
                Some(status) if status.state == "joining" => {
                    (Err(format!("{JOINING}: {}", status.warnings.join("; "))), None)
                }
                Some(status) if status.role == RaftState::Worker => (Err(why), Some(Box::new(status))),
                _ => (Err(why), None),
            };
        }
    };
    let status = status(&mut client);
    let members = match client.query(QueryKind::Members, true, timeout) {
        Ok(Answer::Members(members)) => members,
        _ => Vec::new(),
    };
    (Ok(Box::new(Told { diagnosis, status, members })), None)
}

fn look_at(path: &Path, running: bool) -> DirFacts {
    let mut facts = DirFacts { path: path.to_owned(), ..DirFacts::default() };
    match std::fs::metadata(path) {
        Ok(metadata) => facts.mode = metadata.permissions().mode() & 0o7777,
        Err(error) => {
            facts.unreadable = Some(error.to_string());
            return facts;
        }
    }
    if let Err(error) = std::fs::read_dir(path) {
        facts.unreadable = Some(error.to_string());
        return facts;
    }
    facts.node = read(&path.join("node.json")).map(|read| read.and_then(|text| phase(&text)));
    facts.locked_by = locked_by(&path.join("LOCK"));
    let certificate = read(&path.join("pki/node.crt"));
    facts.certificate =
        certificate.map(|read| read.and_then(|text| pki::identity_of_pem(&text).map_err(|error| error.to_string())));
    facts.has_key = path.join("pki/node.key").exists();
    facts.is_sealed = crate::node::is_locked(path);
    let raft = path.join("raft");
    let mut names = names(&raft);
    names.retain(|name| name.starts_with("wal-") || name.starts_with("snap-"));
    facts.has_log = names.iter().any(|name| name.starts_with("wal-"));
    let lengths = names.iter().filter_map(|name| std::fs::metadata(raft.join(name)).ok());
    facts.raft_bytes = lengths.map(|metadata| metadata.blocks() * 512).sum();
    if !running && facts.locked_by.is_none() && facts.has_log {
        facts.damage = damage(&raft);
    }
    facts.lost_and_found = self::names(&raft.join("lost+found")).len();
    facts.stopped =
        read(&path.join(STOPPED_FILE)).and_then(Result::ok).and_then(|text| serde_json::from_str(&text).ok());
    facts.retired = self::names(path).into_iter().find(|name| name.starts_with("raft.removed-"));
    for name in ["node.json", "peers.json", "pki", "pki/node.key", "raft"] {
        let bits = std::fs::metadata(path.join(name)).map_or(0, |metadata| metadata.permissions().mode());
        if bits & 0o077 != 0 {
            facts.open_files.push(name.to_owned());
        }
    }
    facts.disk = rustix::fs::statvfs(path)
        .ok()
        .map(|stat| (stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize, stat.f_favail));
    facts
}

/// The text of a file; `None` when there is none.
fn read(path: &Path) -> Option<Result<String, String>> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        read => Some(read.map_err(|error| error.to_string())),
    }
}

fn phase(text: &str) -> Result<String, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("it is not JSON ({error})"))?;
    value["phase"].as_str().map(str::to_owned).ok_or_else(|| "it names no phase".to_owned())
}

/// The names in a directory, in order; none when it cannot be read.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// What makes a manager refuse to start from this log, in words.
fn damage(raft: &Path) -> Option<String> {
    match crate::wal::inspect(&RealDisk, raft, None) {
        Ok(found) => {
            let found: Vec<Found> = found.collect();
            // Every start makes a segment: that none can be read is not what a crash leaves.
            let none = !found.iter().any(|found| matches!(found, Found::Segment { .. }));
            let first = found.iter().find_map(|found| match found {
                Found::Problem { file, what, .. } if none => Some(format!("{file} is damaged: {what}")),
                _ => None,
            });
            first.or_else(|| wal::verdict(&found).err().map(|failure| failure.message))
        }
        Err(error) => Some(error.to_string()),
    }
}

/// Who holds the lock on this file. Trying to take it could make a manager that is just starting give up.
fn locked_by(path: &Path) -> Option<u32> {
    let inode = std::fs::metadata(path).ok()?.ino().to_string();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    holder(&locks, &inode)
}

/// From proc_locks(5): `1: FLOCK  ADVISORY  WRITE 4711 08:01:123 0 EOF`.
fn holder(locks: &str, inode: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, file, ..] = words.as_slice() else { return None };
        let same = file.rsplit(':').next() == Some(inode);
        same.then(|| pid.parse().ok()).flatten()
    })
}

fn process(pid: u32) -> Option<ProcessFacts> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let limits = std::fs::read_to_string(proc.join("limits")).ok();
    let limit = limits.and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
        line.split_whitespace().next()?.parse().ok()
    });
    let open = std::fs::read_dir(proc.join("fd")).ok().map(|entries| entries.count() as u64);
    proc.exists().then(|| ProcessFacts { pid, files: open.zip(limit) })
}

/// The token file that the process was told of, or the one that the service unit's comments name.
fn token(pid: Option<u32>) -> Option<(PathBuf, u32)> {
    let line = pid.and_then(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).ok()).unwrap_or_default();
    let words: Vec<String> =
        line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let named = words.iter().enumerate().find_map(|(place, word)| match word.strip_prefix("--token-file") {
        Some("") => words.get(place + 1).cloned(),
        Some(rest) => rest.strip_prefix('=').map(str::to_owned),
        None => None,
    });
    let path = PathBuf::from(named.filter(|name| name != "-").unwrap_or_else(|| "/etc/skep/token".to_owned()));
    let mode = std::fs::metadata(&path).ok()?.permissions().mode();
    Some((path, mode & 0o777))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_found_by_the_files_number() {
        let locks = "1: POSIX  ADVISORY  WRITE 77 08:01:5 0 EOF\n2: FLOCK  ADVISORY  WRITE 4711 08:01:123 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 99 08:01:9 0 EOF\n";
        assert_eq!((holder(locks, "123"), holder(locks, "5"), holder(locks, "23")), (Some(4711), None, None));
    }

    #[test]
    fn a_directory_is_looked_at_and_not_changed() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("d");
        assert!(look_at(&dir, false).unreadable.is_some());
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        let empty = look_at(&dir, false);
        assert_eq!((empty.mode, empty.node, empty.has_log), (0o755, None, false));
        std::fs::write(dir.join("node.json"), "{").unwrap();
        std::fs::create_dir_all(dir.join("raft/lost+found")).unwrap();
        std::fs::write(dir.join("raft/wal-00000001"), b"not a log").unwrap();
        let odd = look_at(&dir, false);
        assert!(odd.node.unwrap().unwrap_err().contains("not JSON"));
        assert!(odd.damage.is_some());
        assert_eq!(names(&dir), ["node.json", "raft"]);
    }
}
