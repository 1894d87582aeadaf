//! `skep backup`: save a swarm to a file, look at the file, begin a swarm from it.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, IsTerminal as _, Read, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, linkat, openat, renameat_with};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::args::{BackupCommand, Common, PassphraseArgs, RestoreArgs, SaveArgs};
use super::exit::{Ended, Exit, Failure};
use super::output::{Output, clean};
use super::session::{Session, data_dir};
use super::{advertise, question};
use crate::backup::{self, BackupError, Reader, Summary, Writer};
use crate::client;
use crate::node::restore;
use crate::store::State;
use crate::sys::entropy::OsEntropy;
use crate::types::api::BackupInfo;
use crate::types::{Code, Kind, Revision};

/// `skep backup`.
pub fn run(common: &Common, command: &BackupCommand, out: Output) -> Ended {
    match command {
        BackupCommand::Save(args) => {
            let shown = shown(&args.file);
            save(common, args, out)
                .map_err(|failure| failure.while_attempting(|| format!("cannot save a backup to {shown}")))
        }
        BackupCommand::Inspect { file, passphrase } => {
            let attempted = || format!("cannot use the backup {}", shown(file));
            inspect(file, passphrase, out).map_err(|failure| failure.while_attempting(attempted))
        }
        BackupCommand::Restore(args) => {
            let attempted = || format!("cannot restore {}", shown(&args.file));
            restore(common, args, out).map_err(|failure| failure.while_attempting(attempted))
        }
    }
}

fn shown(file: &Path) -> String {
    if is_stream(file) { "standard input or output".to_owned() } else { file.display().to_string() }
}

fn is_stream(file: &Path) -> bool {
    file == Path::new("-")
}

// ---- save ----

fn save(common: &Common, args: &SaveArgs, mut out: Output) -> Ended {
    let passphrase = passphrase(&args.passphrase)?;
    if is_stream(&args.file) && io::stdout().is_terminal() {
        return Err(Failure::refused(Code::InvalidArgument, "standard output is a terminal")
            .with_hint("name a file, or send it on to another command"));
    }
    if !args.force && !is_stream(&args.file) && args.file.symlink_metadata().is_ok() {
        return Err(exists());
    }
    if passphrase.is_none() {
        // Nobody may be left to read it.
        let _ = writeln!(
            io::stderr(),
            "warning: the backup holds the swarm's root key and all secrets in the clear; seal it with --passphrase-file"
        );
    }
    let session = Session::open(common, Output::new(Box::new(io::sink()), out.json))?;
    let stream = session.client.backup(common.stale, common.timeout)?;
    let info = stream.info().clone();
    let secret = passphrase.as_ref().map(|text| text.as_slice());
    let summary = if is_stream(&args.file) {
        let (mut stdout, summary) = copy(stream, io::stdout().lock(), secret)?;
        stdout.flush().map_err(|error| Failure::internal(error.to_string()))?;
        summary
    } else {
        let target = Target::create(&args.file)?;
        let (file, summary) = copy(stream, BufWriter::with_capacity(1 << 20, &target.file), secret)?;
        drop(file);
        target.finish(args.force)?;
        summary
    };
    let report = saved(&info, &summary, args, passphrase.is_some());
    if is_stream(&args.file) {
        let _ = writeln!(io::stderr(), "{report}");
    } else if out.json {
        out.document(&report)?;
    } else {
        out.line(&format!(
            "saved revision {} of swarm {} to {} ({} bytes, {})",
            info.revision,
            info.cluster_id,
            args.file.display(),
            summary.bytes,
            if passphrase.is_some() { "sealed" } else { "not sealed" }
        ))?;
    }
    out.flush()?;
    Ok(Exit::Done)
}

fn saved(info: &BackupInfo, summary: &Summary, args: &SaveArgs, sealed: bool) -> Value {
    let mut report = describe_info(info);
    let sum: String = summary.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    report["file"] = args.file.display().to_string().into();
    report["bytes"] = summary.bytes.into();
    report["sha256"] = sum.into();
    report["sealed"] = sealed.into();
    report
}

fn exists() -> Failure {
    Failure::refused(Code::AlreadyExists, "there is a file of this name").with_hint("choose another, or give --force")
}

/// From the manager to the file, a part at a time.
fn copy<W: Write>(mut stream: client::Backup, to: W, passphrase: Option<&[u8]>) -> Result<(W, Summary), Failure> {
    let write = |error: io::Error| Failure::internal(format!("cannot write: {error}"));
    // An older manager may send what it has before it has anything: that must not take the place of a good backup.
    if stream.info().members.is_empty() || stream.info().revision == Revision(0) {
        return Err(Failure::refused(Code::FailedPrecondition, "the manager has no data of the swarm yet")
            .with_hint("take the backup from another manager"));
    }
    let mut writer = Writer::begin(to, stream.info(), passphrase, &mut OsEntropy).map_err(write)?;
    while let Some(part) = stream.next_part()? {
        writer.write(&part).map_err(write)?;
    }
    writer.finish().map_err(write)
}

/// A file that takes its name when it is whole. Until then it has none where the file system can do that: it may hold
/// secrets, and a process that is killed removes nothing.
struct Target {
    file: File,
    /// What it is called until then, if it must have a name.
    temporary: PathBuf,
    named: bool,
    path: PathBuf,
}

impl Target {
    fn create(path: &Path) -> Result<Self, Failure> {
        let Some(name) = path.file_name() else {
            return Err(Failure::usage(format!("{} is no name for a file", path.display())));
        };
        let name = name.to_string_lossy();
        remove_remains(directory(path), &name);
        let temporary = path.with_file_name(format!(".{name}.{}.new", std::process::id()));
        let path = path.to_owned();
        let nameless = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        if let Ok(file) = openat(CWD, directory(&path), nameless, Mode::RUSR | Mode::WUSR) {
            return Ok(Self { file: file.into(), temporary, named: false, path });
        }
        let open = File::options().write(true).create_new(true).mode(0o600).open(&temporary);
        let file = open.map_err(|error| {
            Failure::internal(format!("cannot make {}: {error}", temporary.display()))
                .with_hint("choose a directory that you can write to")
        })?;
        Ok(Self { file, temporary, named: true, path })
    }

    /// Gives a file without a name one.
    fn link(&mut self, path: &Path) -> rustix::io::Result<()> {
        let open = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        linkat(CWD, open, CWD, path, AtFlags::SYMLINK_FOLLOW)
    }

    fn finish(mut self, replace: bool) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::internal(format!("cannot make it durable: {error}"));
        self.file.sync_all().map_err(failed)?;
        if !self.named {
            let path = self.path.clone();
            match self.link(&path) {
                Ok(()) => return sync(&self.path).map_err(failed),
                Err(rustix::io::Errno::EXIST) if !replace => return Err(exists()),
                // Only a file that has a name can take another one's place, and without /proc this is the only way.
                _ => {
                    let temporary = self.temporary.clone();
                    self.link(&temporary).map_err(|error| failed(error.into()))?;
                    self.named = true;
                }
            }
        }
        let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match renameat_with(CWD, &self.temporary, CWD, &self.path, flags) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Err(exists()),
            // The file system does not know the flag. That nothing stood there was looked at before.
            Err(rustix::io::Errno::INVAL) => std::fs::rename(&self.temporary, &self.path).map_err(failed)?,
            Err(error) => return Err(failed(error.into())),
        }
        self.named = false;
        sync(&self.path).map_err(failed)
    }
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// Makes the name of a file durable.
fn sync(path: &Path) -> io::Result<()> {
    File::open(directory(path)).and_then(|dir| dir.sync_all())
}

/// Removes what processes that were killed had begun to write for a file of this name.
fn remove_remains(dir: &Path, name: &str) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let found = entry.file_name().to_string_lossy().into_owned();
        let begun = found.strip_prefix('.').and_then(|it| it.strip_prefix(name)).and_then(|it| it.strip_prefix('.'));
        let process = begun.and_then(|it| it.strip_suffix(".new")).and_then(|it| it.parse::<u32>().ok());
        if process.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if self.named {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

// ---- inspect and restore ----

fn inspect(file: &Path, passphrase: &PassphraseArgs, mut out: Output) -> Ended {
    let opened = open(file, passphrase)?;
    if out.json {
        out.document(&opened.report())?;
    } else {
        out.text(&opened.text())?;
    }
    out.flush()?;
    Ok(Exit::Done)
}

fn restore(common: &Common, args: &RestoreArgs, mut out: Output) -> Ended {
    if let Some(address) = &args.advertise {
        advertise::check("--advertise", address)?;
    }
    if is_stream(&args.file) && !args.yes && !args.dry_run {
        return Err(Failure::usage("the backup comes from standard input, so that nobody can answer there")
            .with_hint("add --yes"));
    }
    let dir = data_dir(common)?;
    let opened = open(&args.file, &args.passphrase)?;
    restore::check(&dir, &opened.state)?;
    if !out.json {
        out.text(&opened.text())?;
        out.flush()?;
    }
    if args.dry_run {
        if out.json {
            out.document(&opened.report())?;
        } else {
            out.line(&format!("dry run: it could be restored to {}; nothing was changed", dir.display()))?;
        }
        out.flush()?;
        return Ok(Exit::Done);
    }
    let question = format!(
        "This begins the swarm again in {}, with a new history. Do it only when its managers are gone for good, or are to \
         be replaced: if they still run, there will be two swarms.",
        dir.display()
    );
    question::ask(&question, args.yes, io::stdin().lock())?;
    let addr = match &args.advertise {
        Some(addr) => addr.clone(),
        // The manager says where it listens when it starts; until then nobody asks.
        None => advertise::choose(DEFAULT_LISTEN, None, advertise::interfaces)
            .ok()
            .flatten()
            .unwrap_or_else(|| LOOPBACK.to_owned()),
    };
    let mut report = opened.report();
    let restored = restore::restore(&dir, opened.state, args.name.as_deref().map(clean), &addr)?;
    if out.json {
        report["restored"] = json!({
            "node_id": restored.node_id,
            "raft_id": restored.raft_id,
            "lineage": restored.lineage,
            "revision": restored.revision,
            "addr": restored.addr,
            "data_dir": dir.display().to_string(),
        });
        out.document(&report)?;
    } else {
        out.text(&format!(
            "{dir} holds the swarm now: manager {}, lineage {}, revision {}.\n\
             Next:\n\
             1. start it: `skep run --data-dir {dir}{with}`\n\
             2. on other machines: move old data directories away, and join with `skep run --join HOST:PORT --token-file \
             FILE`; the tokens are those of the backup, and `skep token show --role manager` prints them\n",
            restored.node_id,
            restored.lineage,
            restored.revision,
            dir = dir.display(),
            with = args.advertise.as_ref().map(|addr| format!(" --advertise {addr}")).unwrap_or_default(),
        ))?;
    }
    out.flush()?;
    Ok(Exit::Done)
}

const DEFAULT_LISTEN: &str = "0.0.0.0:4242";
const LOOPBACK: &str = "127.0.0.1:4242";

/// A backup that was read to its end.
struct Opened {
    info: BackupInfo,
    state: State,
    sealed: bool,
    bytes: u64,
}

fn open(file: &Path, args: &PassphraseArgs) -> Result<Opened, Failure> {
    let passphrase = passphrase(args)?;
    let input: Box<dyn Read> = match is_stream(file) {
        true => Box::new(io::stdin().lock()),
        false => Box::new(File::open(file).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Failure::refused(Code::NotFound, "there is no such file"),
            _ => Failure::internal(error.to_string()),
        })?),
    };
    let read = || -> Result<Opened, BackupError> {
        let mut reader =
            Reader::open(BufReader::with_capacity(1 << 20, input), passphrase.as_ref().map(|text| text.as_slice()))?;
        let state = backup::load(&mut reader)?;
        Ok(Opened { info: reader.info().clone(), state, sealed: reader.is_sealed(), bytes: reader.bytes_read() })
    };
    read().map_err(failed)
}

fn failed(error: BackupError) -> Failure {
    let failure = if error.is_damage() {
        Failure::damaged(error.to_string())
    } else if error.is_refusal() {
        Failure::refused(Code::InvalidArgument, error.to_string())
    } else {
        Failure::internal(error.to_string())
    };
    failure.with_hint(error.hint())
}

impl Opened {
    fn objects(&self) -> impl Iterator<Item = (Kind, u64, u64)> {
        let state = &self.state;
        let all = Kind::ALL.into_iter().map(|kind| (kind, state.count(kind) as u64, state.bytes(kind)));
        all.filter(|(_, count, _)| *count > 0)
    }

    fn report(&self) -> Value {
        let mut report = describe_info(&self.info);
        let rows: Vec<Value> = self
            .objects()
            .map(|(kind, count, bytes)| json!({ "kind": kind.name(), "count": count, "bytes": bytes }))
            .collect();
        report["objects"] = rows.into();
        report["bytes"] = self.bytes.into();
        report["sealed"] = self.sealed.into();
        report
    }

    fn text(&self) -> String {
        let info = &self.info;
        let mut text = format!(
            "backup of swarm {} at revision {} (log index {}, term {})\n  made      {} by manager {}, skep {}\n  \
             lineage   {}\n  file      {} bytes, {}\n",
            info.cluster_id,
            info.revision,
            info.position.index,
            info.position.term,
            info.created_at,
            info.node_id,
            clean(&info.version),
            info.lineage,
            self.bytes,
            if self.sealed { "sealed" } else { "not sealed" },
        );
        for member in &info.members {
            text.push_str(&format!("  member    {} at {}\n", member.node_id, clean(&member.addr)));
        }
        for (kind, count, bytes) in self.objects() {
            text.push_str(&format!("  {:<9} {count} ({bytes} bytes)\n", kind.name()));
        }
        text
    }
}

fn describe_info(info: &BackupInfo) -> Value {
    let members: Vec<Value> = info
        .members
        .iter()
        .map(|member| json!({ "node_id": member.node_id, "raft_id": member.raft_id, "addr": member.addr, "role": member.role }))
        .collect();
    json!({
        "created_at": info.created_at,
        "version": info.version,
        "node_id": info.node_id,
        "cluster_id": info.cluster_id,
        "lineage": info.lineage,
        "index": info.position.index,
        "term": info.position.term,
        "revision": info.revision,
        "feature_level": info.feature_level,
        "members": members,
    })
}

/// The passphrase that the flags name, without the line break at its end.
fn passphrase(args: &PassphraseArgs) -> Result<Option<Zeroizing<Vec<u8>>>, Failure> {
    let path = match (&args.passphrase_file, args.passphrase_fd) {
        (Some(path), _) => path.clone(),
        (None, Some(descriptor)) => PathBuf::from(format!("/proc/self/fd/{descriptor}")),
        (None, None) => return Ok(None),
    };
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_PASSPHRASE + 1));
    File::open(&path)
        .and_then(|file| file.take(MAX_PASSPHRASE as u64 + 1).read_to_end(&mut text))
        .map_err(|error| Failure::internal(format!("cannot read the passphrase from {}: {error}", path.display())))?;
    while matches!(text.last(), Some(b'\n' | b'\r')) {
        text.pop();
    }
    if text.is_empty() || text.len() > MAX_PASSPHRASE {
        let message = format!("{} holds no passphrase: one has 1 to {MAX_PASSPHRASE} bytes", path.display());
        return Err(Failure::refused(Code::InvalidArgument, message).with_hint("put it into the file, on one line"));
    }
    Ok(Some(text))
}

const MAX_PASSPHRASE: usize = 1024;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_backup_has_its_name_when_it_is_whole_and_leaves_nothing_when_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b");
        let write = |text: &str| {
            let target = Target::create(&path).unwrap();
            (&target.file).write_all(text.as_bytes()).unwrap();
            target
        };
        drop(write("begun"));
        assert_eq!(names(dir.path()), Vec::<String>::new());
        write("one").finish(false).unwrap();
        assert_eq!(write("two").finish(false).unwrap_err().code, Code::AlreadyExists.name());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one");
        write("three").finish(true).unwrap();
        assert_eq!(
            (names(dir.path()), std::fs::read_to_string(&path).unwrap()),
            (vec!["b".to_owned()], "three".to_owned())
        );
    }

    #[test]
    fn what_killed_processes_had_begun_is_removed_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        // No process has this number: it is above what the kernel gives.
        let (dead, alive) = (u32::MAX, std::process::id());
        let others = [format!(".b.{alive}.new"), format!(".c.{dead}.new"), ".b.new".to_owned(), format!(".b.{dead}")];
        for name in others.iter().chain([&format!(".b.{dead}.new")]) {
            std::fs::write(dir.path().join(name), "secret").unwrap();
        }
        drop(Target::create(&dir.path().join("b")).unwrap());
        let mut expected = others.to_vec();
        expected.sort();
        assert_eq!(names(dir.path()), expected);
    }
}
