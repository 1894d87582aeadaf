//! Status, members, and the HTTP pages.

use super::*;
use crate::sys::metrics::Metrics;
use crate::types::api::{DiskLevel, DiskSpace, StatusReport};

fn status(swarm: &Swarm) -> StatusReport {
    match swarm.ask(QueryKind::Status) {
        Ok(Answer::Status(report)) => *report,
        other => panic!("{other:?}"),
    }
}

fn link(id: u128) -> LinkReport {
    let addr = format!("10.0.0.{id}:4242");
    LinkReport {
        node_id: NodeId(id),
        addr,
        alive: true,
        rtt_us: 150,
        clock_offset_ms: 0,
        sync_us: 900,
        disk_low: false,
    }
}

#[test]
fn status_says_what_the_swarm_can_bear() {
    for (voters, tolerates) in [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (7, 3)] {
        let mut swarm = Swarm::ready();
        swarm.control.context.raft = report(RaftState::Leader, voters);
        let status = status(&swarm);
        assert_eq!((u64::from(status.voters), status.tolerates), (voters, tolerates));
        let even = voters % 2 == 0;
        assert_eq!(status.warnings.is_empty(), !even, "{voters}: {:?}", status.warnings);
    }
}

#[test]
fn status_names_state_and_leader() {
    let mut swarm = Swarm::ready();
    let shown = status(&swarm);
    assert_eq!((shown.state.as_str(), shown.leader_name.as_str(), shown.name.as_str()), ("ready", "m1", "m1"));
    assert_eq!((shown.leader, shown.revision), (Some(NodeId(1)), Revision(1)));

    swarm.control.context.raft.serving = false;
    assert_eq!(status(&swarm).state, "no leader", "an elected leader that does not serve yet leads nobody");

    swarm.control.context.raft = report(RaftState::Follower, 3);
    assert_eq!(status(&swarm).state, "no leader");
    swarm.control.context.raft.leader = Some(RaftId(2));
    let shown = status(&swarm);
    assert_eq!((shown.state.as_str(), shown.leader_name.as_str()), ("ready", "m2"));

    swarm.control.context.raft = report(RaftState::Joining, 0);
    assert_eq!(status(&swarm).state, "joining");

    // The store does not know this node before it has the swarm's state.
    let swarm = Swarm::new();
    assert_eq!(status(&swarm).name, "m1");
}

fn full(level: DiskLevel) -> DiskSpace {
    DiskSpace { level, free_bytes: 77, needed_bytes: 99, dir: "/d/raft".to_owned(), ..DiskSpace::default() }
}

#[test]
fn status_warns_of_what_will_hurt() {
    type Case = (fn(&mut Context), &'static str);
    let cases: [Case; 11] = [
        (|context| context.raft.reachable.truncate(1), "only 1 of 3 managers can be reached from here; 2 are needed"),
        (|context| context.raft.reachable.truncate(2), "2 of 3 managers can be reached from here: one more loss"),
        (|context| context.links[0].clock_offset_ms = 2001, "the clock of m2 is 2.0 s ahead of this one"),
        (|context| context.links[0].clock_offset_ms = -180_000, "the clock of m2 is 3 min behind this one"),
        (|context| context.links[1].sync_us = 250_000, "the disk of m3 takes 250 ms for a sync"),
        (|context| context.sync_us = 100_001, "the disk of this manager takes 100 ms for a sync"),
        (
            |context| context.links[1].disk_low = true,
            "the disk of m3 is almost full: it takes no changes while it leads",
        ),
        (
            |context| context.raft.disk = full(DiskLevel::Low),
            "the disk of this manager is almost full, 77 bytes are free at /d/raft: it takes no changes while it leads until \
             99 bytes more are",
        ),
        (
            |context| context.raft.disk = full(DiskLevel::Full),
            "the disk of this manager is almost full, 77 bytes are free at /d/raft: it takes nothing new into its log",
        ),
        (|context| context.links[0].clock_offset_ms = 2000, ""),
        (|context| (context.links[0].alive, context.links[0].clock_offset_ms) = (false, 9999), ""),
    ];
    for (change, expected) in cases {
        let mut swarm = Swarm::ready();
        swarm.control.context.raft = report(RaftState::Leader, 3);
        swarm.control.context.links = vec![link(2), link(3)];
        change(&mut swarm.control.context);
        let warnings = status(&swarm).warnings;
        match expected {
            "" => assert!(warnings.is_empty(), "{warnings:?}"),
            _ => assert!(warnings.len() == 1 && warnings[0].starts_with(expected), "{expected}: {warnings:?}"),
        }
    }
}

#[test]
fn members_show_what_the_leader_and_the_links_know() {
    let mut swarm = Swarm::ready();
    swarm.control.context.raft = report(RaftState::Leader, 3);
    swarm.control.context.raft.reachable = vec![NodeId(1), NodeId(2)];
    swarm.control.context.links = vec![link(2), LinkReport { alive: false, ..link(3) }];
    let members = |swarm: &Swarm| match swarm.ask(QueryKind::Members) {
        Ok(Answer::Members(members)) => members,
        other => panic!("{other:?}"),
    };
    let shown: Vec<_> = members(&swarm)
        .into_iter()
        .map(|member| (member.name, member.leader, member.reachable, member.matched, member.rtt_us))
        .collect();
    let matched = Some(Index(90));
    assert_eq!(
        shown,
        [
            ("m1".to_owned(), true, true, matched, Some(0)),
            ("m2".to_owned(), false, true, matched, Some(150)),
            ("m3".to_owned(), false, false, matched, None),
        ]
    );
    swarm.control.context.raft = report(RaftState::Follower, 3);
    assert!(members(&swarm).iter().all(|member| member.matched.is_none() && !member.leader));
}

#[test]
fn a_lost_majority_is_explained() {
    let swarm = Swarm::ready();
    let told = |change: fn(&mut Context)| {
        let mut context = swarm.control.context.clone();
        context.raft = report(RaftState::Follower, 3);
        context.raft.reachable = vec![NodeId(1)];
        context.raft.last_leader = Some(RaftId(3));
        context.raft.leaderless_ms = 12_340;
        change(&mut context);
        swarm.view(|state| no_majority(state, &context))
    };
    let status = told(|_| ()).unwrap();
    assert_eq!((status.code, status.hopeless), (Code::Unavailable, true));
    assert_eq!(
        status.message,
        "the swarm has no leader: 1 of 3 managers can be reached from here, and 2 are needed; the last leader was m3 at \
         10.0.0.3:4242, 12.3 s ago"
    );
    assert!(status.hint.starts_with("start m2 at 10.0.0.2:4242 and m3 at 10.0.0.3:4242 again"), "{}", status.hint);
    assert!(
        status.hint.contains("until then reads work with `--stale`; only if they are gone for good:"),
        "{}",
        status.hint
    );
    assert!(status.hint.ends_with("`skep recover --data-dir /var/lib/skep`"), "{}", status.hint);
    assert!(
        told(|context| context.raft.last_leader = None)
            .unwrap()
            .message
            .contains("no leader has been known for 12.3 s")
    );
    // There is hope.
    assert_eq!(told(|context| context.raft.reachable.push(NodeId(2))), None);
    assert_eq!(told(|context| context.raft.leader = Some(RaftId(2))), None);
    assert_eq!(told(|context| context.raft.state = RaftState::Joining), None);
    assert_eq!(told(|context| context.raft.members.clear()), None);
}

#[test]
fn http_pages_answer_for_machines() {
    let mut swarm = Swarm::ready();
    let metrics = Metrics::default();
    let get = |swarm: &Swarm, path: &str| http(path, &swarm.control.context, swarm.control.store(), &metrics);
    assert_eq!(get(&swarm, "/healthz"), (200, "text/plain; charset=utf-8", "ok\n".to_owned()));
    assert_eq!(get(&swarm, "/readyz?verbose").0, 200);
    assert_eq!(get(&swarm, "/").0, 404);

    swarm.create_config("web");
    swarm.control.context.links = vec![LinkReport { clock_offset_ms: -5, ..link(2) }];
    let (code, content_type, body) = get(&swarm, "/metrics");
    assert_eq!((code, content_type), (200, "text/plain; version=0.0.4; charset=utf-8"));
    let peer = NodeId(2);
    for line in [
        "# TYPE skep_raft_term gauge".to_owned(),
        "skep_raft_term 3".to_owned(),
        "skep_raft_commit_index 100".to_owned(),
        "skep_raft_applied_index 99".to_owned(),
        "skep_raft_is_leader 1".to_owned(),
        "skep_store_revision 2".to_owned(),
        "skep_store_objects{kind=\"config\"} 1".to_owned(),
        "skep_store_objects{kind=\"node\"} 3".to_owned(),
        format!("skep_peer_rtt_us{{peer=\"{peer}\"}} 150"),
        format!("skep_peer_clock_offset_ms{{peer=\"{peer}\"}} -5"),
    ] {
        assert!(body.lines().any(|own| own == line), "{line} is missing in\n{body}");
    }

    swarm.control.context.raft = report(RaftState::Follower, 3);
    assert_eq!(
        get(&swarm, "/readyz"),
        (503, "text/plain; charset=utf-8", "no leader is known; an election should end soon\n".to_owned())
    );
    swarm.control.context.raft.reachable.clear();
    let (code, _, body) = get(&swarm, "/readyz");
    assert!(code == 503 && body.starts_with("the swarm has no leader: 1 of 3 managers"), "{body}");
    swarm.control.context.raft.leader = Some(RaftId(2));
    assert_eq!(get(&swarm, "/readyz").0, 200);
    swarm.control.context.raft.applied = Index(0);
    assert_eq!(get(&swarm, "/readyz").0, 503);
    swarm.control.context.raft = report(RaftState::Joining, 0);
    assert_eq!(get(&swarm, "/readyz").0, 503);
    assert_eq!(get(&swarm, "/healthz").0, 200);
}

#[test]
fn a_manager_whose_certificate_is_over_says_so_and_what_to_do_when_all_are() {
    let certificate = |trouble: &str| CertificateReport {
        role: Role::Manager,
        expires_at: Timestamp(NOW_MS),
        renews_at: Timestamp(0),
        trouble: trouble.to_owned(),
    };
    let warnings = |trouble, has_leader, now_ms| certificate_warnings(&certificate(trouble), has_leader, now_ms);
    assert!(warnings("", false, NOW_MS).is_empty());
    let over = warnings("nobody answers", true, NOW_MS + 1);
    assert!(over.len() == 1 && over[0].contains("certificate expired at") && over[0].ends_with(": nobody answers"));
    let alone = warnings("", false, NOW_MS + 1);
    assert!(alone.len() == 2 && alone[1].contains("`skep recover`"), "{alone:?}");
    let refused = warnings("refused", false, NOW_MS);
    assert!(refused.len() == 1 && refused[0].contains("gets no new certificate"), "{refused:?}");
}
