//! `skep debug bundle`: everything that helps to find out what is wrong with a manager, in one archive.
//!
//! Whatever answers is asked, and what does not answer leaves a line that says why; nothing needs a leader or even a
//! manager. What goes in is chosen, not filtered: what the doctor sees, what the manager tells of its health, headers of
//! the log, names and sizes of files, and what the kernel knows of the process. No contents of entries and objects but
//! the swarm's redacted settings, no keys, no tokens, no environment, and a command line without its token.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use serde_json::{Value, json};

use super::args::{BundleArgs, Common};
use super::doctor::{self, facts};
use super::exit::{Ended, Exit, Failure};
use super::output::Output;
use super::tar::Archive;
use super::{objects, wal};
use crate::client::Client;
use crate::sys::files::RealDisk;
use crate::sys::time::wall_ms;
use crate::types::api::{Answer, QueryKind};
use crate::types::{Code, Kind};

const README: &str = "\
What is wrong with a skep manager: one bundle for each manager that is asked about.

doctor.txt, doctor.json   what `skep doctor` finds
status.json members.json  what the manager says of itself and of the Raft group (absent when it does not answer)
raft.json events.txt      Raft's progress, and what happened to it lately, oldest first
metrics.txt               counters, gauges, and the histogram of syncs (skep_wal_sync_seconds), Prometheus text
cluster.json              the swarm's settings, redacted, as this manager has them
process.txt threads.txt   limits, memory and I/O of the process; for each thread its name, state, processor time, and
                          where it waits in the kernel (wchan, syscall, stack as far as the kernel shows them). Stacks
                          in user space are not here: `gdb -p PID -batch -ex 'thread apply all bt'` prints them
log.jsonl                 headers of the log and snapshots, as `skep wal inspect --json` shows them; no contents
files.txt node.json       the data directory: mode, owner, size, allocated bytes, age, name; who the node is
system.txt                kernel, uptime, load, memory, disk
errors.txt                what could not be had, and why

No secrets, keys, tokens, or contents of objects and log entries are in it.
";

/// `skep debug bundle`.
pub fn run(common: &Common, args: &BundleArgs, out: &mut Output) -> Ended {
    let attempted = || format!("cannot write the bundle {}", args.file.display());
    if args.file == Path::new("-") {
        let files = collect(common)?;
        let failed = |error| Failure::internal(error_text(&error)).while_attempting(attempted);
        write(io::stdout().lock(), &files).map_err(failed)?;
        return Ok(Exit::Done);
    }
    // Refused before anything is collected.
    let file = create(&args.file, args.force).map_err(|failure| failure.while_attempting(attempted))?;
    let written = collect(common).and_then(|files| {
        write(io::BufWriter::new(&file), &files)
            .and_then(|()| file.sync_all())
            .map_err(|error| Failure::internal(error_text(&error)))
    });
    if let Err(failure) = written {
        let _ = std::fs::remove_file(&args.file);
        return Err(failure.while_attempting(attempted));
    }
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    match out.json {
        true => out.document(&json!({ "file": args.file, "bytes": size }))?,
        false => out.line(&format!("wrote {} ({} KiB); it holds no secrets", args.file.display(), size / 1024))?,
    };
    Ok(Exit::Done)
}

fn error_text(error: &io::Error) -> String {
    error.to_string()
}

fn create(path: &Path, force: bool) -> Result<std::fs::File, Failure> {
    if force {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Failure::internal(error_text(&error))),
            _ => {}
        }
    }
    // Never through a link, and never into what is there.
    std::fs::File::options().write(true).create_new(true).mode(0o600).open(path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::refused(Code::AlreadyExists, "the file is there already")
            .with_hint("choose another name, or replace it with --force"),
        _ => Failure::internal(error_text(&error)),
    })
}

fn write(out: impl Write, files: &[(String, Vec<u8>)]) -> io::Result<()> {
    let mut archive = Archive::new(out, wall_ms() / 1000);
    for (name, contents) in files {
        archive.file(&format!("skep-bundle/{name}"), contents)?;
    }
    archive.finish()
}

/// The bundle's files, in order.
#[derive(Default)]
struct Bundle {
    files: Vec<(String, Vec<u8>)>,
    errors: String,
}

impl Bundle {
    fn text(&mut self, name: &str, text: impl Into<String>) {
        self.files.push((name.to_owned(), text.into().into_bytes()));
    }

    fn json(&mut self, name: &str, value: &Value) {
        self.text(name, format!("{value:#}\n"));
    }

    fn missing(&mut self, what: &str, why: &str) {
        let _ = writeln!(self.errors, "{what}: {why}");
    }
}

fn collect(common: &Common) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let facts = facts::collect(common)?;
    let findings = doctor::examine(&facts);
    let mut bundle = Bundle::default();
    bundle.text("README.txt", README);
    bundle.text("doctor.txt", doctor::lines(&findings).join("\n") + "\n");
    bundle.json("doctor.json", &doctor::rows(&findings));
    match &facts.manager {
        Ok(told) => {
            match &told.status {
                Some(status) => bundle.json("status.json", &json!(status)),
                None => bundle.missing("status.json", "the manager does not tell"),
            }
            bundle.json("members.json", &json!(told.members));
            bundle.json("raft.json", &json!(told.diagnosis.raft));
            bundle.text("events.txt", events(&told.diagnosis.events));
            bundle.text("metrics.txt", told.diagnosis.metrics.clone());
            match cluster(common, &facts.socket) {
                Ok(cluster) => bundle.json("cluster.json", &cluster),
                Err(why) => bundle.missing("cluster.json", &why),
            }
        }
        Err(why) => match &facts.worker {
            Some(status) => bundle.json("status.json", &json!(status)),
            None => bundle.missing("what the manager tells", why),
        },
    }
    if let Some(process) = facts.process {
        bundle.text("process.txt", process_text(process.pid));
        bundle.text("threads.txt", threads(process.pid));
    }
    directory(&mut bundle, &facts);
    bundle.text("system.txt", system(&facts));
    let errors = std::mem::take(&mut bundle.errors);
    bundle.text("errors.txt", errors);
    Ok(bundle.files)
}

/// What happened to Raft lately, for people.
pub(super) fn events(events: &[crate::types::api::RaftEvent]) -> String {
    let mut text = String::from("seconds ago  kind  what\n");
    for event in events {
        let _ = writeln!(text, "{:>12.3}  {:<18}  {}", event.age_ms as f64 / 1000.0, event.kind, event.text);
    }
    text
}

fn cluster(common: &Common, socket: &Path) -> Result<Value, String> {
    let mut client = Client::local(socket, common.timeout).map_err(|error| error.into_status().message)?;
    let id = client.hello().cluster_id.to_string();
    match client.query(QueryKind::Inspect(Kind::Cluster, id), true, common.timeout) {
        Ok(Answer::Object(object)) => Ok(objects::document(&object)),
        Ok(_) => Err("the manager answered something else".to_owned()),
        Err(error) => Err(error.into_status().message),
    }
}

fn directory(bundle: &mut Bundle, facts: &facts::Facts) {
    let dir = facts.dir.path.as_path();
    let mut listing = String::from("mode uid size allocated age-s name\n");
    list(dir, "", 0, &mut listing);
    bundle.text("files.txt", listing);
    match std::fs::read_to_string(dir.join("node.json")) {
        Ok(text) => bundle.text("node.json", text),
        Err(error) => bundle.missing("node.json", &error_text(&error)),
    }
    // A worker has none.
    if facts.worker.is_some() && !dir.join("raft").exists() {
        return;
    }
    match crate::wal::inspect(&RealDisk, &dir.join("raft"), None) {
        Ok(found) => {
            let mut text = String::new();
            for found in found.take(MAX_LOG_ROWS) {
                let _ = writeln!(text, "{}", wal::row(&found));
            }
            bundle.text("log.jsonl", text);
        }
        Err(error) => bundle.missing("log.jsonl", &error.to_string()),
    }
}

/// Rows of the log's headers: some 10 MiB of text.
const MAX_LOG_ROWS: usize = 100_000;

fn list(dir: &Path, prefix: &str, depth: u32, text: &mut String) {
    for name in facts::names(dir) {
        let path = dir.join(&name);
        let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
        let age = wall_ms() / 1000;
        let age = age.saturating_sub(u64::try_from(metadata.mtime()).unwrap_or(0));
        let (mode, uid, size, allocated) = (metadata.mode(), metadata.uid(), metadata.len(), metadata.blocks() * 512);
        let _ = writeln!(text, "{mode:o} {uid} {size} {allocated} {age} {prefix}{name}");
        if metadata.is_dir() && depth < 3 {
            list(&path, &format!("{prefix}{name}/"), depth + 1, text);
        }
    }
}

/// Files of a directory below `/proc`, each under its name.
fn show(dir: &str, names: &[&str]) -> String {
    let mut text = String::new();
    for name in names {
        let read = std::fs::read_to_string(format!("{dir}/{name}"));
        let shown = read.unwrap_or_else(|error| format!("({error})"));
        let _ = writeln!(text, "== {name}\n{}", shown.trim_end());
    }
    text
}

fn process_text(pid: u32) -> String {
    let dir = format!("/proc/{pid}");
    let line = std::fs::read(format!("{dir}/cmdline")).unwrap_or_default();
    let words: Vec<String> =
        line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    format!(
        "== command line\n{}\n{}",
        without_token(&words).join(" ").trim_end(),
        show(&dir, &["limits", "status", "io"])
    )
}

/// A command line with the token in it blotted out.
fn without_token(words: &[String]) -> Vec<String> {
    let mut hide = false;
    let mut shown = Vec::new();
    for word in words {
        let secret = std::mem::replace(&mut hide, word == "--token");
        shown.push(match word {
            _ if secret => "***".to_owned(),
            word if word.starts_with("--token=") => "--token=***".to_owned(),
            word => word.clone(),
        });
    }
    shown
}

fn threads(pid: u32) -> String {
    let dir = format!("/proc/{pid}/task");
    let mut text = String::new();
    for task in facts::names(Path::new(&dir)) {
        let _ = writeln!(text, "==== thread {task}");
        text.push_str(&show(&format!("{dir}/{task}"), &["comm", "stat", "schedstat", "wchan", "syscall", "stack"]));
    }
    text
}

fn system(facts: &facts::Facts) -> String {
    let mut text = format!("skep {}\nwall clock {} ms since 1970\n", facts.version, facts.now_ms);
    if let Some((free, total, inodes)) = facts.dir.disk {
        let _ = writeln!(text, "disk of {}: {free} of {total} bytes free, {inodes} inodes", facts.dir.path.display());
    }
    text + &show(
        "/proc",
        &["version", "uptime", "loadavg", "meminfo", "pressure/io", "pressure/cpu", "pressure/memory"],
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_token_on_the_command_line_is_blotted_out() {
        let check = |words: &[&str], shown: &str| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(without_token(&words).join(" "), shown);
        };
        check(&["skep", "run", "--token", "SWMTKN-1-x", "--join", "h:1"], "skep run --token *** --join h:1");
        check(&["skep", "run", "--token=SWMTKN-1-x"], "skep run --token=***");
        check(&["skep", "run", "--token-file", "/t"], "skep run --token-file /t");
    }

    #[test]
    fn a_file_that_is_there_is_replaced_only_with_force_and_is_for_its_owner() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.tar");
        std::fs::write(&path, "mine").unwrap();
        assert_eq!(create(&path, false).unwrap_err().exit as u8, 3);
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        create(&path, true).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
