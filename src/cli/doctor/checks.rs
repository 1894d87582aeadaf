//! What the facts mean. No clock, no files: everything comes from [`Facts`].

use super::facts::{DirFacts, Facts, JOINING, LOCKED, Told};
use crate::cli::exit::Exit;
use crate::types::MemberRole;
use crate::types::api::{DiskLevel, MemberReport, StatusReport};

/// How bad something is, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Works, and will not if something else happens.
    Warn,
    /// Does not work.
    Fail,
    /// Data is damaged.
    Damage,
}

impl Severity {
    /// As JSON shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Damage => "damage",
        }
    }
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The check's name: stable, for scripts.
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is so.
    pub text: String,
    /// What to do about it, or empty.
    pub hint: String,
}

/// A finding before it has its check's name.
type Found = (Severity, String, String);

/// A check: what it finds, or nothing when there is nothing to judge.
type Check = fn(&Facts) -> Vec<Found>;

/// Every check, in the order in which a person wants to read them.
const CHECKS: [(&str, Check); 22] = [
    ("daemon", daemon),
    ("stopped", stopped),
    ("version", version),
    ("state", state),
    ("voters", voters),
    ("quorum", quorum),
    ("members", members),
    ("lag", lag),
    ("clock", clock),
    ("elections", elections),
    ("alarm", alarm),
    ("certificate", certificate),
    ("disk-space", disk_space),
    ("disk-sync", disk_sync),
    ("disk-stall", disk_stall),
    ("log-size", log_size),
    ("log", log),
    ("queues", queues),
    ("directory", directory),
    ("permissions", permissions),
    ("open-files", open_files),
    ("token", token),
];

/// Runs every check.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let run = |(check, run): (&'static str, Check)| {
        run(facts).into_iter().map(move |(severity, text, hint)| Finding { check, severity, text, hint })
    };
    CHECKS.into_iter().flat_map(run).collect()
}

const MIB: u64 = 1 << 20;
const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;
/// Clocks further apart confuse people who read logs and certificates.
const CLOCK_WARNING_MS: u64 = 2000;
/// Entries: a member so far behind is catching up, or cannot.
const LAG_ENTRIES: u64 = 10_000;
/// A disk with less takes no new segment and no snapshot soon.
const SPACE_WARNING: u64 = 512 * MIB;
/// A segment, its successor made ahead, and nothing else.
const SPACE_FAILURE: u64 = 64 * MIB;
/// Hold-ups of every write that people notice; etcd asks for 10 ms.
const SYNC_WARNING_US: u64 = 100_000;
/// From here on the disk may make leaders hand over.
const STALL_MS: u64 = 2000;
/// Several times what makes a snapshot due by default.
const LOG_WARNING: u64 = 512 * MIB;
/// More elections in an hour than stops and starts explain.
const ELECTIONS: usize = 5;
/// Before a certificate ends.
const CERTIFICATE_WARNING_MS: u64 = 14 * DAY_MS;

fn ok(text: impl Into<String>) -> Vec<Found> {
    vec![(Severity::Ok, text.into(), String::new())]
}

fn warn(text: impl Into<String>, hint: impl Into<String>) -> Vec<Found> {
    vec![(Severity::Warn, text.into(), hint.into())]
}

fn fail(text: impl Into<String>, hint: impl Into<String>) -> Vec<Found> {
    vec![(Severity::Fail, text.into(), hint.into())]
}

fn damage(text: impl Into<String>, hint: impl Into<String>) -> Vec<Found> {
    vec![(Severity::Damage, text.into(), hint.into())]
}

fn told(facts: &Facts) -> Option<&Told> {
    facts.manager.as_ref().ok().map(|told| &**told)
}

fn status(facts: &Facts) -> Option<&StatusReport> {
    told(facts)?.status.as_ref()
}

fn start(facts: &Facts) -> String {
    format!(
        "start it: `systemctl start skep`, or `skep run --data-dir {}` with the options it had",
        facts.dir.path.display()
    )
}

fn daemon(facts: &Facts) -> Vec<Found> {
    if facts.worker.is_some() {
        return ok(format!("the worker answers on {}", facts.socket.display()));
    }
    let why = match &facts.manager {
        Ok(told) => {
            let (pid, uptime) = (told.diagnosis.pid, age(told.diagnosis.uptime_ms));
            return ok(format!("the manager answers on {}: process {pid}, up {uptime}", facts.socket.display()));
        }
        Err(why) => why,
    };
    if why == LOCKED {
        return fail(
            "the manager is locked: its keys are sealed, and it waits for the unlock key",
            "give it with `skep unlock`; any manager that runs prints it: `skep unlock-key show`",
        );
    }
    if why.starts_with(JOINING) {
        return fail(why, JOIN_HINT);
    }
    if let Some(pid) = facts.dir.locked_by {
        let hint = format!(
            "if it replays its log, wait; if it hangs, save `/proc/{pid}/task/*/wchan` and the disk's state, and \
             restart it; if its socket is elsewhere, give --socket"
        );
        return fail(format!("process {pid} has the directory and does not answer: {why}"), hint);
    }
    let then =
        if facts.dir.is_sealed { "; its keys are locked: then give it the unlock key with `skep unlock`" } else { "" };
    fail(format!("no manager runs: {why}"), start(facts) + then + "; `journalctl -u skep -n 50` says why it stopped")
}

/// A member that was rolled back, or that a majority contradicts, starts like any other, and stops when the others have
/// looked at it: only what it left behind tells.
fn stopped(facts: &Facts) -> Vec<Found> {
    let runs = told(facts).is_some() || facts.worker.is_some();
    let Some(stopped) = facts.dir.stopped.as_ref().filter(|_| !runs) else { return Vec::new() };
    let said = format!("it stopped by itself the last time: {}", stopped.reason);
    if stopped.exit == Exit::Damaged as u8 { damage(said, &stopped.hint) } else { fail(said, &stopped.hint) }
}

fn version(facts: &Facts) -> Vec<Found> {
    let of_worker = facts.worker.as_ref().map(|status| &status.version);
    let Some(theirs) = told(facts).map(|told| &told.diagnosis.version).or(of_worker) else { return Vec::new() };
    let ours = &facts.version;
    match theirs == ours {
        true => ok(format!("{ours}, on both sides")),
        false => warn(format!("the node runs {theirs}, this is {ours}"), "restart it after an upgrade"),
    }
}

const JOIN_HINT: &str = "see its log; the manager that it joins must be reachable, have a leader, and reach it back; one \
                         that a person must let in: `skep node approve NODE` there";

/// A worker is well when it has a manager; what it warns of itself is all that it knows.
fn worker_state(status: &StatusReport) -> Vec<Found> {
    let said = status.warnings.join("; ");
    match &status.manager {
        None => {
            let hint = "start a manager that it knows, or look at the network between them: it tries again by itself; \
                        `skep run --peer HOST:PORT` tells it of another";
            fail(format!("a worker in touch with no manager: {said}"), hint)
        }
        Some((id, addr)) if said.is_empty() => ok(format!("ready: a worker in touch with manager {id} at {addr}")),
        Some((id, addr)) => warn(format!("a worker in touch with manager {id} at {addr}: {said}"), ""),
    }
}

fn state(facts: &Facts) -> Vec<Found> {
    if let Some(status) = &facts.worker {
        return worker_state(status);
    }
    let Some(told) = told(facts) else { return Vec::new() };
    let raft = &told.diagnosis.raft;
    if !told.diagnosis.joined {
        return fail(JOINING, JOIN_HINT);
    }
    let Some(status) = &told.status else {
        return fail("it does not tell its state", "see its log with `journalctl -u skep -n 50`");
    };
    let leader = if status.leader_name.is_empty() { "itself" } else { &status.leader_name };
    match (status.state.as_str(), status.leader) {
        ("ready", _) => ok(format!("ready: {} in term {}, led by {leader}", role(status), status.term)),
        ("no leader", _) => fail(
            format!("no leader for {}, in term {}", age(status.leaderless_ms), status.term),
            match status.reachable > status.voters / 2 {
                true => "an election should end within seconds; if it does not, look at disk-sync and clock below",
                false => "see quorum below; until then reads work with --stale",
            },
        ),
        (other, _) => fail(
            format!("{other}, at log index {} of {}", raft.applied, raft.commit),
            "it waits for the leader to send it the log: the leader must be able to reach it at its address",
        ),
    }
}

fn role(status: &StatusReport) -> String {
    format!("{:?}", status.role).to_lowercase()
}

fn voters(facts: &Facts) -> Vec<Found> {
    let Some(status) = status(facts) else { return Vec::new() };
    let (voters, tolerates) = (status.voters, status.tolerates);
    let add =
        "add one: `skep token show --role manager` here, then `skep run --join HOST:PORT --token-file FILE` there";
    match voters {
        0 => Vec::new(),
        1 => warn("one manager: losing its disk loses the swarm", add),
        2 => warn("2 managers tolerate no failure: losing either stops the swarm", add),
        _ if voters.is_multiple_of(2) => {
            warn(format!("{voters} managers tolerate no more failures than {}", voters - 1), "add one or remove one")
        }
        _ => ok(format!("{voters} managers vote, and the swarm tolerates the loss of {tolerates}")),
    }
}

fn gone(facts: &Facts) -> Vec<&MemberReport> {
    let members = told(facts).map_or(&[][..], |told| &told.members);
    members.iter().filter(|member| !member.reachable && member.role == MemberRole::Voter).collect()
}

fn quorum(facts: &Facts) -> Vec<Found> {
    let Some(status) = status(facts).filter(|status| status.voters > 0) else { return Vec::new() };
    let (voters, reachable) = (status.voters, status.reachable);
    let majority = voters / 2 + 1;
    let gone: Vec<String> = gone(facts).iter().map(|member| format!("{} ({})", member.name, member.addr)).collect();
    let gone = gone.join(" and ");
    let said = format!("{reachable} of {voters} voters can be reached from here, and {majority} are needed");
    if reachable < majority {
        let hint = format!(
            "start {gone} again, each on its own machine: `systemctl start skep`, or `skep run --data-dir DIR` with its \
             own DIR; look at the network between them; only if {} of them are gone for good: stop this manager and make \
             a swarm of it alone with `skep recover --data-dir {}`",
            voters - majority + 1,
            facts.dir.path.display()
        );
        return fail(format!("{said}: without {gone} nothing can be written"), hint);
    }
    if reachable == majority && reachable < voters {
        return warn(format!("{said}: one more loss stops the swarm"), format!("bring {gone} back"));
    }
    ok(said)
}

fn members(facts: &Facts) -> Vec<Found> {
    let Some(told) = told(facts).filter(|told| !told.members.is_empty()) else { return Vec::new() };
    let mut found = Vec::new();
    for member in told.members.iter().filter(|member| !member.reachable) {
        let kind = if member.role == MemberRole::Voter { "voter" } else { "learner" };
        let hint = format!(
            "start it, or look at the network; one that is gone for good is taken out with `skep node rm --force {}` while \
             a majority is left",
            member.name
        );
        found.extend(warn(format!("no connection with {kind} {} at {}", member.name, member.addr), hint));
    }
    for member in told.members.iter().filter(|member| member.reachable && member.role == MemberRole::Learner) {
        found.extend(warn(format!("{} is a learner: it does not vote before it has caught up", member.name), ""));
    }
    if found.is_empty() { ok(format!("all {} can be reached", told.members.len())) } else { found }
}

fn lag(facts: &Facts) -> Vec<Found> {
    let Some(told) = told(facts) else { return Vec::new() };
    let raft = &told.diagnosis.raft;
    let mut found = Vec::new();
    for member in &told.members {
        let behind = member.matched.map_or(0, |matched| raft.last.0.saturating_sub(matched.0));
        if behind > LAG_ENTRIES {
            let hint = "it catches up by itself if its disk and network can; `skep raft status` shows whether it moves";
            found.extend(warn(format!("{} is {behind} log entries behind", member.name), hint));
        }
    }
    let unapplied = raft.commit.0.saturating_sub(raft.applied.0);
    if unapplied > LAG_ENTRIES {
        let hint = "wait if it has just started; else this machine is too slow for the swarm";
        found.extend(warn(format!("{unapplied} committed entries are not applied here yet"), hint));
    }
    if found.is_empty() { ok(format!("applied {} of {} committed", raft.applied, raft.commit)) } else { found }
}

fn clock(facts: &Facts) -> Vec<Found> {
    let Some(status) = status(facts) else { return Vec::new() };
    let alive = status.links.iter().filter(|link| link.alive);
    let off = alive.clone().filter(|link| link.clock_offset_ms.unsigned_abs() > CLOCK_WARNING_MS);
    let name = |node_id| {
        let members = told(facts).map_or(&[][..], |told| &told.members);
        let member = members.iter().find(|member| member.node_id == node_id);
        member.map_or_else(|| node_id.to_string(), |member| member.name.clone())
    };
    let found: Vec<Found> = off
        .flat_map(|link| {
            let text = format!("the clock of {} is {:+} ms from this one", name(link.node_id), link.clock_offset_ms);
            warn(text, "set both by NTP: `timedatectl status`")
        })
        .collect();
    match (found.is_empty(), alive.count()) {
        (true, 0) => Vec::new(),
        (true, peers) => ok(format!("within {} s of {peers} peers", CLOCK_WARNING_MS / 1000)),
        (false, _) => found,
    }
}

/// Events of a kind in the last hour.
fn lately<'a>(told: &'a Told, kind: &'a str) -> impl Iterator<Item = &'a crate::types::api::RaftEvent> {
    told.diagnosis.events.iter().filter(move |event| event.kind == kind && event.age_ms < HOUR_MS)
}

fn elections(facts: &Facts) -> Vec<Found> {
    let Some(told) = told(facts) else { return Vec::new() };
    let count = lately(told, "election").count();
    let said = format!("{count} elections begun here in the last hour");
    match count > ELECTIONS {
        true => warn(
            said,
            "look at disk-sync and clock here and on the leader, and at the network; `skep debug bundle FILE` has them all",
        ),
        false => ok(said),
    }
}

fn alarm(facts: &Facts) -> Vec<Found> {
    let Some(told) = told(facts) else { return Vec::new() };
    let alarms = &told.diagnosis.raft.alarms;
    if alarms.is_empty() {
        return ok("the replicas agree, as far as they were compared");
    }
    let hint = "save `skep debug bundle FILE` of every manager; then move the data directory of the one that is wrong \
                away and join it again with a token";
    alarms.iter().flat_map(|alarm| damage(alarm, hint)).collect()
}

fn certificate(facts: &Facts) -> Vec<Found> {
    let identity = match &facts.dir.certificate {
        None => return Vec::new(),
        Some(Err(why)) => return damage(format!("pki/node.crt cannot be used: {why}"), "put it back from a backup"),
        Some(Ok(identity)) => identity,
    };
    if identity.is_expired(facts.now_ms) {
        let since = age(facts.now_ms - identity.not_after_ms);
        return fail(
            format!("the node's certificate expired {since} ago"),
            "check `date -u`; if it is right, start the node: it gets a new one by itself, or, if it was off for longer than \
             the swarm allows, after `skep node approve NODE` on a manager",
        );
    }
    if facts.now_ms < identity.not_before_ms {
        return fail("the node's certificate is not valid yet", "set this machine's clock: `timedatectl status`");
    }
    let left = identity.not_after_ms - facts.now_ms;
    let said = format!("the node's certificate is valid for another {}", age(left));
    if left < CERTIFICATE_WARNING_MS {
        warn(said, "a node that runs and reaches a manager renews it by itself")
    } else {
        ok(said)
    }
}

fn disk_space(facts: &Facts) -> Vec<Found> {
    let Some((free, total, inodes)) = facts.dir.disk else { return Vec::new() };
    let said = format!("{} of {} are free", size(free), size(total));
    let hint = "free space there, or move the directory to a larger disk while the manager is stopped";
    let level = told(facts).map_or(DiskLevel::Ok, |told| told.diagnosis.raft.disk.level);
    if level != DiskLevel::Ok {
        return fail(format!("{said}: too little, so that changes are refused until there is more"), hint);
    }
    if free < SPACE_FAILURE || inodes == 0 {
        return fail(said, hint);
    }
    if free < SPACE_WARNING || free < total / 20 { warn(said, hint) } else { ok(said) }
}

fn disk_sync(facts: &Facts) -> Vec<Found> {
    let Some(told) = told(facts).filter(|told| told.diagnosis.sync_count > 0) else { return Vec::new() };
    let diagnosis = &told.diagnosis;
    let millis = |us: u64| format!("{} ms", us as f64 / 1000.0);
    let said = format!(
        "a sync takes at most {} half of the time and {} in 99 of 100 ({} so far)",
        millis(diagnosis.sync_p50_us),
        millis(diagnosis.sync_p99_us),
        diagnosis.sync_count
    );
    let slow = lately(told, "slow-sync").count();
    if diagnosis.sync_p99_us > SYNC_WARNING_US || slow > 10 {
        let hint = "every write waits for it: use a disk of its own, or --profile sdcard for a new swarm on slow flash";
        return warn(format!("{said}; {slow} took longer than 100 ms in the last hour"), hint);
    }
    ok(said)
}

fn disk_stall(facts: &Facts) -> Vec<Found> {
    let Some(told) = told(facts) else { return Vec::new() };
    let stalled = told.diagnosis.raft.unsynced_ms;
    if stalled < STALL_MS {
        return Vec::new();
    }
    let hint =
        "the disk hangs: `dmesg | tail` says why; hand over with `skep raft transfer` if this manager still leads";
    fail(format!("a write to the log has been waiting for the disk for {}", age(stalled)), hint)
}

fn log_size(facts: &Facts) -> Vec<Found> {
    let Some(told) = told(facts) else { return Vec::new() };
    let raft = &told.diagnosis.raft;
    let said = format!("{} of log since the snapshot at index {}", size(raft.log_bytes), raft.snapshot);
    let failed = lately(told, "snapshot-failed").count();
    if failed > 0 {
        let hint = "see its log for the reason, and disk-space above; `skep raft snapshot` tries again now";
        return warn(format!("{said}; {failed} snapshots failed in the last hour"), hint);
    }
    if raft.log_bytes > LOG_WARNING {
        let hint = "`skep raft snapshot` writes one now; `skep cluster inspect` shows when they are due";
        return warn(said, hint);
    }
    ok(said)
}

const JOIN_ANEW: &str = "to take the data from the other managers again, move the data directory aside and join anew with \
                         `skep run --join HOST:PORT --token-file FILE`";

/// The log on disk. While a manager writes it only its surroundings are judged.
fn log(facts: &Facts) -> Vec<Found> {
    let dir = &facts.dir;
    let member = matches!(&dir.node, Some(Ok(phase)) if phase == "member");
    // A worker that was a manager keeps its former log there, and one that manages again has another.
    if let Some(retired) = dir.retired.as_ref().filter(|_| member && !dir.has_log) {
        let hint = "to join again, move the whole directory aside and start with --join and a token";
        return fail(format!("this node left the swarm or was removed; its log was moved to {retired}"), hint);
    }
    if let Some(what) = &dir.damage {
        return damage(what, format!("`skep wal inspect {}` shows where; {JOIN_ANEW}", dir.path.display()));
    }
    if member && !dir.has_log && dir.unreadable.is_none() {
        return damage("its log is gone: raft/ is missing or empty", format!("put raft/ back, or {JOIN_ANEW}"));
    }
    if !dir.has_log {
        return Vec::new();
    }
    let said = format!("{} of log and snapshots on disk", size(dir.raft_bytes));
    if dir.lost_and_found > 0 {
        let hint = "these were cut off at a start because a crash had left them unfinished; nothing needs them";
        return warn(format!("{said}; {} files in raft/lost+found", dir.lost_and_found), hint);
    }
    ok(said)
}

fn queues(facts: &Facts) -> Vec<Found> {
    let Some(told) = told(facts) else { return Vec::new() };
    let queues = &told.diagnosis.queues;
    let near = queues.iter().filter(|queue| queue.capacity > 4 && queue.depth * 5 >= queue.capacity * 4);
    let found: Vec<Found> = near
        .flat_map(|queue| {
            let text = format!("{} of {} places are taken in the queue {}", queue.depth, queue.capacity, queue.name);
            warn(text, "callers are refused when it is full: the disk or the processor does not keep up")
        })
        .collect();
    if found.is_empty() { ok(format!("none of {} is nearly full", queues.len())) } else { found }
}

fn directory(facts: &Facts) -> Vec<Found> {
    let DirFacts { path, unreadable, node, has_key, .. } = &facts.dir;
    let path = path.display();
    if let Some(why) = unreadable {
        let said = format!("{path} cannot be read: {why}");
        let hint = "name the manager's with --data-dir, and run this as its owner or as root";
        return if told(facts).is_some() { warn(said, hint) } else { fail(said, hint) };
    }
    match node {
        None if told(facts).is_some() => {
            warn(format!("{path} is not the directory of this manager"), "name it with --data-dir")
        }
        None => fail(format!("{path} holds no manager"), "name the directory of one with --data-dir"),
        Some(Err(why)) => damage(
            format!("{path}/node.json: {why}"),
            "put it back from a backup, or move the whole directory aside and join again",
        ),
        Some(Ok(phase)) if phase == "member" && !has_key => damage(
            format!("{path}/pki/node.key is missing"),
            "put it back from a backup, or move the directory aside and join again",
        ),
        Some(Ok(phase)) => ok(format!("{path}, phase {phase}")),
    }
}

fn permissions(facts: &Facts) -> Vec<Found> {
    let dir = &facts.dir;
    if dir.unreadable.is_some() || dir.node.is_none() {
        return Vec::new();
    }
    let mut open = Vec::new();
    if dir.mode & 0o077 != 0 {
        open.push(".".to_owned());
    }
    open.extend(dir.open_files.iter().filter(|name| dir.mode & 0o077 != 0 || *name == "pki/node.key").cloned());
    match open.is_empty() {
        true => ok(format!("only the owner reads {}", dir.path.display())),
        false => warn(
            format!("others may read {} in {}", open.join(", "), dir.path.display()),
            format!("`chmod -R go= {}`", dir.path.display()),
        ),
    }
}

fn open_files(facts: &Facts) -> Vec<Found> {
    let Some((open, limit)) = facts.process.and_then(|process| process.files) else { return Vec::new() };
    let said = format!("{open} of {limit} allowed");
    match limit < 1024 || open * 5 > limit * 4 {
        true => warn(said, "raise LimitNOFILE in the unit, or `ulimit -n`, and restart"),
        false => ok(said),
    }
}

fn token(facts: &Facts) -> Vec<Found> {
    let Some((path, mode)) = &facts.token else { return Vec::new() };
    let path = path.display();
    match mode & 0o077 {
        0 => ok(format!("only the owner reads {path}")),
        _ => warn(format!("others may read the join token in {path}"), format!("`chmod 600 {path}`")),
    }
}

/// `1.2 s`, `3 min`, `2 h`, `40 days`.
fn age(ms: u64) -> String {
    let seconds = ms as f64 / 1000.0;
    match seconds {
        ..60.0 => format!("{seconds:.1} s"),
        60.0..7200.0 => format!("{:.0} min", seconds / 60.0),
        7200.0..172_800.0 => format!("{:.0} h", seconds / 3600.0),
        _ => format!("{:.0} days", seconds / 86_400.0),
    }
}

/// `12 KiB`, `3.4 GiB`.
fn size(bytes: u64) -> String {
    match bytes {
        0..MIB => format!("{} KiB", bytes / 1024),
        MIB..1_073_741_824 => format!("{} MiB", bytes / MIB),
        _ => format!("{:.1} GiB", bytes as f64 / (1024.0 * MIB as f64)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
