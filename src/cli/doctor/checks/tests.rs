//! One sound manager, and what each thing that is wrong with it makes the doctor say.

use std::path::PathBuf;

use super::super::facts::ProcessFacts;
use super::super::{exit, lines, rows};
use super::*;
use crate::pki::Identity;
use crate::types::api::{Diagnosis, DiskSpace, LinkReport, QueueReport, RaftEvent, RaftReport, RaftState};
use crate::types::{ClusterId, Index, NodeId, RaftId, Revision, Role, Term};

const NOW: u64 = 1_800_000_000_000;

fn member(id: u64) -> MemberReport {
    MemberReport {
        node_id: NodeId(id.into()),
        raft_id: RaftId(id),
        name: format!("m{id}"),
        addr: format!("10.0.0.{id}:4242"),
        role: MemberRole::Voter,
        leader: id == 1,
        reachable: true,
        matched: Some(Index(100)),
        rtt_us: Some(300),
    }
}

fn link(id: u64) -> LinkReport {
    let node_id = NodeId(id.into());
    LinkReport {
        node_id,
        addr: format!("10.0.0.{id}:4242"),
        alive: true,
        rtt_us: 300,
        clock_offset_ms: 3,
        sync_us: 256,
        disk_low: false,
    }
}

fn raft() -> RaftReport {
    RaftReport {
        raft_id: RaftId(1),
        state: RaftState::Leader,
        leader: Some(RaftId(1)),
        last_leader: None,
        leaderless_ms: 0,
        serving: true,
        term: Term(3),
        commit: Index(100),
        applied: Index(100),
        first: Index(1),
        last: Index(100),
        snapshot: Index(50),
        log_bytes: 4096,
        elections: 1,
        members: Vec::new(),
        progress: Vec::new(),
        reachable: Vec::new(),
        alarms: Vec::new(),
        unsynced_ms: 0,
        disk: DiskSpace::default(),
    }
}

/// A leader of three, with nothing wrong.
fn sound() -> Facts {
    let diagnosis = Diagnosis {
        pid: 77,
        version: "1.0".to_owned(),
        node_id: NodeId(1),
        boot: 4,
        uptime_ms: 5_000_000,
        joined: true,
        raft: raft(),
        sync_count: 900,
        sync_p50_us: 128,
        sync_p99_us: 2048,
        queues: vec![QueueReport { name: "wal".to_owned(), depth: 3, capacity: 1024 }],
        events: Vec::new(),
        metrics: String::new(),
    };
    let status = StatusReport {
        node_id: NodeId(1),
        name: "m1".to_owned(),
        cluster_id: ClusterId(5),
        state: "ready".to_owned(),
        role: RaftState::Leader,
        leader: Some(NodeId(1)),
        leader_name: "m1".to_owned(),
        term: Term(3),
        commit: Index(100),
        applied: Index(100),
        revision: Revision(60),
        voters: 3,
        reachable: 3,
        tolerates: 1,
        leaderless_ms: 0,
        version: "1.0".to_owned(),
        warnings: Vec::new(),
        links: vec![link(2), link(3)],
        manager: None,
        certificate: None,
    };
    let identity = Identity {
        node_id: NodeId(1),
        role: Role::Manager,
        cluster_id: ClusterId(5),
        not_before_ms: NOW - DAY_MS,
        not_after_ms: NOW + 89 * DAY_MS,
    };
    Facts {
        now_ms: NOW,
        version: "1.0".to_owned(),
        socket: PathBuf::from("/d/skep.sock"),
        manager: Ok(Box::new(Told { diagnosis, status: Some(status), members: (1..=3).map(member).collect() })),
        dir: DirFacts {
            path: PathBuf::from("/d"),
            mode: 0o700,
            node: Some(Ok("member".to_owned())),
            locked_by: Some(77),
            certificate: Some(Ok(identity)),
            has_key: true,
            has_log: true,
            raft_bytes: 40 << 20,
            disk: Some((9 << 30, 20 << 30, 1_000_000)),
            ..DirFacts::default()
        },
        process: Some(ProcessFacts { pid: 77, files: Some((40, 65536)) }),
        token: None,
        worker: None,
    }
}

/// A worker with a manager; it was a manager once.
fn worker() -> Facts {
    let mut facts = sound();
    let mut status = status_mut(&mut facts).clone();
    (status.role, status.manager) = (RaftState::Worker, Some((NodeId(2), "10.0.0.2:4242".to_owned())));
    (facts.manager, facts.worker) = (Err("this node is a worker".to_owned()), Some(Box::new(status)));
    (facts.dir.node, facts.dir.has_log) = (Some(Ok("worker".to_owned())), false);
    facts.dir.retired = Some("raft.removed-5".to_owned());
    facts
}

/// What is wrong after `spoil`: the check, how bad, and parts of what it says and advises. Everything else stays as well
/// as it was, except what `also` names.
#[track_caller]
fn check(spoil: impl FnOnce(&mut Facts), check: &str, severity: Severity, said: &[&str]) -> Vec<Finding> {
    let mut facts = sound();
    spoil(&mut facts);
    let findings = examine(&facts);
    let found = findings.iter().filter(|finding| finding.check == check && finding.severity == severity);
    let line = found.map(|finding| format!("{} — {}", finding.text, finding.hint)).collect::<Vec<_>>().join("\n");
    for part in said {
        assert!(line.contains(part), "no {part:?} in {line:?}: {findings:#?}");
    }
    let worst = findings.iter().map(|finding| finding.severity).max();
    assert_eq!(worst, Some(severity), "{findings:#?}");
    findings
}

fn told_mut(facts: &mut Facts) -> &mut Told {
    facts.manager.as_mut().unwrap()
}

fn status_mut(facts: &mut Facts) -> &mut StatusReport {
    told_mut(facts).status.as_mut().unwrap()
}

fn events(kind: &str, count: usize, age_ms: u64) -> Vec<RaftEvent> {
    vec![RaftEvent { age_ms, kind: kind.to_owned(), text: String::new() }; count]
}

#[test]
fn nothing_is_wrong_with_a_sound_manager() {
    let findings = examine(&sound());
    assert!(
        findings.iter().all(|finding| finding.severity == Severity::Ok && finding.hint.is_empty()),
        "{findings:#?}"
    );
    assert!(findings.len() > 15);
    assert_eq!(exit(&findings) as u8, 0);
    let lines = lines(&findings);
    assert!(lines[0].starts_with("ok    daemon       the manager answers on /d/skep.sock"), "{}", lines[0]);
    assert_eq!(rows(&findings)[0]["level"], "ok");
}

#[test]
fn every_check_has_a_name_of_its_own() {
    let mut names: Vec<_> = CHECKS.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), CHECKS.len());
}

#[test]
fn a_manager_that_does_not_run_is_told_from_one_that_hangs() {
    use Severity::Fail;
    let gone = |facts: &mut Facts| {
        facts.manager = Err("nobody listens".to_owned());
        facts.dir.locked_by = None;
        facts.process = None;
    };
    let findings = check(gone, "daemon", Fail, &["no manager runs: nobody listens", "`skep run --data-dir /d`"]);
    assert_eq!(exit(&findings) as u8, 4);
    let waits = |facts: &mut Facts| facts.manager = Err(crate::cli::doctor::facts::LOCKED.to_owned());
    check(waits, "daemon", Fail, &["the manager is locked", "`skep unlock`"]);
    check(|facts| facts.manager = Err("timed out".to_owned()), "daemon", Fail, &["process 77 has the directory"]);
}

#[test]
fn a_lost_quorum_names_who_is_gone_and_the_next_commands() {
    let lose = |facts: &mut Facts| {
        for member in &mut told_mut(facts).members[1..] {
            member.reachable = false;
        }
        let status = status_mut(facts);
        (status.reachable, status.leader, status.state) = (1, None, "no leader".to_owned());
        status.leaderless_ms = 90_000;
    };
    let findings = check(
        lose,
        "quorum",
        Severity::Fail,
        &[
            "1 of 3 voters can be reached from here, and 2 are needed",
            "without m2 (10.0.0.2:4242) and m3 (10.0.0.3:4242)",
            "`systemctl start skep`",
            "`skep recover --data-dir /d`",
        ],
    );
    assert!(findings.iter().any(|finding| finding.check == "state" && finding.text.contains("no leader for 2 min")));
    assert_eq!(exit(&findings) as u8, 4);
}

#[test]
fn what_is_wrong_with_the_group_is_a_warning() {
    use Severity::Warn;
    check(|facts| status_mut(facts).voters = 1, "voters", Warn, &["one manager"]);
    check(|facts| (status_mut(facts).voters, status_mut(facts).reachable) = (2, 2), "voters", Warn, &["no failure"]);
    check(
        |facts| (status_mut(facts).voters, status_mut(facts).reachable) = (4, 4),
        "voters",
        Warn,
        &["no more failures than 3"],
    );
    let one_gone = |facts: &mut Facts| {
        told_mut(facts).members[1].reachable = false;
        status_mut(facts).reachable = 2;
    };
    check(one_gone, "quorum", Warn, &["one more loss stops the swarm", "bring m2 (10.0.0.2:4242) back"]);
    check(one_gone, "members", Warn, &["no connection with voter m2"]);
    check(|facts| told_mut(facts).members[2].role = MemberRole::Learner, "members", Warn, &["m3 is a learner"]);
    let behind = |facts: &mut Facts| told_mut(facts).diagnosis.raft.last = Index(20_000);
    check(behind, "lag", Warn, &["19900 log entries behind"]);
    check(
        |facts| status_mut(facts).links[0].clock_offset_ms = -9000,
        "clock",
        Warn,
        &["clock of m2 is -9000 ms", "NTP"],
    );
    check(|facts| told_mut(facts).diagnosis.events = events("election", 6, 5), "elections", Warn, &["6 elections"]);
    let findings = check(|facts| facts.version = "1.1".to_owned(), "version", Warn, &["runs 1.0, this is 1.1"]);
    assert_eq!(exit(&findings) as u8, 0);
    // What happened long ago is history.
    let mut old = sound();
    told_mut(&mut old).diagnosis.events = events("election", 60, HOUR_MS + 1);
    assert_eq!(exit(&examine(&old)) as u8, 0);
    assert!(examine(&old).iter().all(|finding| finding.severity == Severity::Ok));
}

#[test]
fn what_is_wrong_with_the_disk() {
    use Severity::{Fail, Warn};
    check(|facts| facts.dir.disk = Some((100 << 20, 20 << 30, 9)), "disk-space", Warn, &["100 MiB of 20.0 GiB"]);
    check(|facts| facts.dir.disk = Some((1 << 20, 20 << 30, 9)), "disk-space", Fail, &["1 MiB", "free space"]);
    check(|facts| facts.dir.disk = Some((9 << 30, 20 << 30, 0)), "disk-space", Fail, &["free"]);
    let low = |facts: &mut Facts| told_mut(facts).diagnosis.raft.disk.level = DiskLevel::Low;
    check(low, "disk-space", Fail, &["changes are refused"]);
    check(|facts| told_mut(facts).diagnosis.sync_p99_us = 524_288, "disk-sync", Warn, &["524.288 ms in 99 of 100"]);
    check(
        |facts| told_mut(facts).diagnosis.events = events("slow-sync", 11, 5),
        "disk-sync",
        Warn,
        &["11 took longer"],
    );
    check(
        |facts| told_mut(facts).diagnosis.raft.unsynced_ms = 7000,
        "disk-stall",
        Fail,
        &["7.0 s", "`skep raft transfer`"],
    );
    check(|facts| told_mut(facts).diagnosis.raft.log_bytes = 1 << 30, "log-size", Warn, &["1.0 GiB of log since"]);
    let failed = |facts: &mut Facts| told_mut(facts).diagnosis.events = events("snapshot-failed", 2, 5);
    check(failed, "log-size", Warn, &["2 snapshots failed"]);
    let full = |facts: &mut Facts| told_mut(facts).diagnosis.queues[0].depth = 1000;
    check(full, "queues", Warn, &["1000 of 1024 places", "queue wal"]);
}

#[test]
fn damage_is_told_from_what_passes() {
    use Severity::{Damage, Fail};
    let alarm = |facts: &mut Facts| told_mut(facts).diagnosis.raft.alarms = vec!["member 3 differs".to_owned()];
    let findings = check(alarm, "alarm", Damage, &["member 3 differs", "`skep debug bundle FILE`"]);
    assert_eq!(exit(&findings) as u8, 5);
    check(|facts| facts.dir.has_log = false, "log", Damage, &["its log is gone"]);
    check(|facts| facts.dir.node = Some(Err("it is not JSON".to_owned())), "directory", Damage, &["/d/node.json"]);
    check(|facts| facts.dir.has_key = false, "directory", Damage, &["node.key is missing"]);
    let torn = |facts: &mut Facts| {
        facts.manager = Err("nobody".to_owned());
        facts.dir.damage = Some("wal-00000002 is damaged at byte 512: x".to_owned());
    };
    check(torn, "log", Damage, &["wal-00000002 is damaged at byte 512", "`skep wal inspect /d`"]);
    let removed = |facts: &mut Facts| {
        (facts.dir.retired, facts.dir.has_log) = (Some("raft.removed-5".to_owned()), false);
    };
    check(removed, "log", Fail, &["was removed"]);
    check(|facts| facts.dir.certificate = Some(Err("no".to_owned())), "certificate", Damage, &["node.crt"]);
}

#[test]
fn a_member_that_was_turned_away_says_so_when_it_does_not_run() {
    use super::super::facts::StoppedFacts;
    let stopped = |exit| StoppedFacts { exit, reason: "node x was rolled back".to_owned(), hint: "join".to_owned() };
    let turned_away = |exit| {
        move |facts: &mut Facts| {
            facts.manager = Err("nobody".to_owned());
            facts.dir.stopped = Some(stopped(exit));
        }
    };
    check(turned_away(5), "stopped", Severity::Damage, &["was rolled back", "join"]);
    check(turned_away(3), "stopped", Severity::Fail, &["was rolled back"]);
    // One that runs has left it behind.
    let mut facts = sound();
    facts.dir.stopped = Some(stopped(5));
    assert!(examine(&facts).iter().all(|finding| finding.check != "stopped"));
}

#[test]
fn certificates_end() {
    let ends = |left: i64| {
        move |facts: &mut Facts| {
            let Some(Ok(identity)) = &mut facts.dir.certificate else { panic!("it is sound") };
            identity.not_after_ms = NOW.checked_add_signed(left).unwrap();
        }
    };
    check(ends(5 * DAY_MS as i64), "certificate", Severity::Warn, &["another 5 days"]);
    check(ends(-(3 * HOUR_MS as i64)), "certificate", Severity::Fail, &["expired 3 h ago", "`date -u`"]);
    let early = |facts: &mut Facts| facts.now_ms = NOW - 2 * DAY_MS;
    check(early, "certificate", Severity::Fail, &["not valid yet"]);
}

#[test]
fn permissions_and_limits() {
    use Severity::{Fail, Warn};
    check(|facts| facts.dir.mode = 0o755, "permissions", Warn, &["others may read .", "`chmod -R go= /d`"]);
    check(|facts| facts.dir.open_files = vec!["pki/node.key".to_owned()], "permissions", Warn, &["pki/node.key"]);
    check(
        |facts| facts.process = Some(ProcessFacts { pid: 7, files: Some((900, 1024)) }),
        "open-files",
        Warn,
        &["900 of 1024"],
    );
    check(|facts| facts.token = Some((PathBuf::from("/t"), 0o644)), "token", Warn, &["`chmod 600 /t`"]);
    check(|facts| facts.dir.unreadable = Some("permission denied".to_owned()), "directory", Warn, &["as its owner"]);
    let nothing = |facts: &mut Facts| {
        facts.manager = Err("nobody".to_owned());
        facts.dir = DirFacts { path: PathBuf::from("/d"), ..DirFacts::default() };
    };
    check(nothing, "directory", Fail, &["/d holds no manager"]);
}

#[test]
fn a_manager_that_has_not_joined_is_no_use_yet() {
    let joining = |facts: &mut Facts| {
        let told = told_mut(facts);
        (told.diagnosis.joined, told.status) = (false, None);
        told.members.clear();
        facts.dir.node = Some(Ok("joining".to_owned()));
        facts.dir.has_log = false;
    };
    check(joining, "state", Severity::Fail, &["has not joined its swarm yet"]);
    let asks = |facts: &mut Facts| facts.manager = Err(format!("{JOINING}: asking h:1 for a certificate"));
    check(asks, "daemon", Severity::Fail, &["has not joined its swarm yet: asking h:1", "`skep node approve NODE`"]);
}

#[test]
fn a_worker_is_well_while_it_has_a_manager() {
    let findings = examine(&worker());
    assert!(findings.iter().all(|finding| finding.severity == Severity::Ok), "{findings:#?}");
    let state = |facts: &Facts| examine(facts).into_iter().find(|finding| finding.check == "state").unwrap();
    assert!(state(&worker()).text.contains("at 10.0.0.2:4242"));
    let mut warned = worker();
    warned.worker.as_mut().unwrap().warnings = vec!["the clock of the manager is 9 s ahead of this one".to_owned()];
    assert_eq!(state(&warned).severity, Severity::Warn);
    warned.worker.as_mut().unwrap().manager = None;
    let alone = state(&warned);
    assert!(
        alone.severity == Severity::Fail && alone.text.contains("9 s ahead") && !alone.hint.is_empty(),
        "{alone:?}"
    );
    // One that manages again has a log of its own beside the former one.
    let mut again = sound();
    again.dir.retired = Some("raft.removed-5".to_owned());
    assert!(examine(&again).iter().all(|finding| finding.severity == Severity::Ok));
}
