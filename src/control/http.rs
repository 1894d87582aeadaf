//! The `--http` listener's three pages: for load balancers and for Prometheus.

use std::fmt::Write as _;

use crate::store::Store;
use crate::sys::metrics::Metrics;
use crate::types::Kind;
use crate::types::api::{LinkReport, RaftState};

use super::{Context, report};

const TEXT: &str = "text/plain; charset=utf-8";
/// Prometheus text exposition format.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers a GET: status code, content type, body. `/healthz` says that the process answers, `/readyz` whether this
/// manager takes part in a swarm that has a leader, `/metrics` what it counts.
pub fn http(path: &str, context: &Context, store: &Store, metrics: &Metrics) -> (u16, &'static str, String) {
    match path.split('?').next().unwrap_or_default() {
        "/healthz" => (200, TEXT, "ok\n".to_owned()),
        "/readyz" => match not_ready(context, store) {
            None => (200, TEXT, "ok\n".to_owned()),
            Some(why) => (503, TEXT, format!("{why}\n")),
        },
        "/metrics" => (200, METRICS, metrics.render() + &gauges(context, store)),
        _ => (404, TEXT, "not found: there are /healthz, /readyz and /metrics\n".to_owned()),
    }
}

fn not_ready(context: &Context, store: &Store) -> Option<String> {
    let raft = &context.raft;
    match raft.state {
        RaftState::Joining | RaftState::Worker => Some("this node has not joined the swarm yet".to_owned()),
        RaftState::Leader if raft.serving => None,
        RaftState::Leader => Some("this manager was elected and is catching up".to_owned()),
        _ if raft.leader.is_some() && raft.applied.0 == 0 => Some("waiting for the swarm's state".to_owned()),
        _ if raft.leader.is_some() => None,
        _ => Some(
            store
                .view(|state| report::no_majority(state, context))
                .map_or_else(|| "no leader is known; an election should end soon".to_owned(), |status| status.message),
        ),
    }
}

/// What is read off the context and the store at this moment. Not kept in the registry, where a peer that left or a kind
/// that emptied would stand for ever with its last number.
fn gauges(context: &Context, store: &Store) -> String {
    let raft = &context.raft;
    let (revision, objects) = store
        .view(|state| (state.revision(), Kind::ALL.map(|kind| (kind, state.count(kind) as u64, state.bytes(kind)))));
    let mut text = String::new();
    for (name, value) in [
        ("skep_raft_term", raft.term.0),
        ("skep_raft_commit_index", raft.commit.0),
        ("skep_raft_applied_index", raft.applied.0),
        ("skep_raft_last_index", raft.last.0),
        ("skep_raft_snapshot_index", raft.snapshot.0),
        ("skep_raft_log_bytes", raft.log_bytes),
        ("skep_raft_is_leader", u64::from(raft.state == RaftState::Leader)),
        ("skep_raft_has_leader", u64::from(raft.leader.is_some())),
        ("skep_raft_leaderless_ms", raft.leaderless_ms),
        ("skep_raft_members", raft.members.len() as u64),
        ("skep_raft_alarms", raft.alarms.len() as u64),
        ("skep_store_revision", revision.0),
    ] {
        family(&mut text, name, [(String::new(), value)]);
    }
    let by_kind = |kind: Kind| format!("{{kind=\"{kind}\"}}");
    family(&mut text, "skep_store_objects", objects.iter().map(|(kind, count, _)| (by_kind(*kind), *count)));
    family(&mut text, "skep_store_object_bytes", objects.iter().map(|(kind, _, bytes)| (by_kind(*kind), *bytes)));
    let links = &context.links;
    let by_peer = |link: &LinkReport| format!("{{peer=\"{}\"}}", link.node_id);
    family(&mut text, "skep_peer_up", links.iter().map(|link| (by_peer(link), u64::from(link.alive))));
    family(&mut text, "skep_peer_rtt_us", links.iter().map(|link| (by_peer(link), link.rtt_us)));
    family(&mut text, "skep_peer_sync_us", links.iter().map(|link| (by_peer(link), link.sync_us)));
    family(&mut text, "skep_peer_clock_offset_ms", links.iter().map(|link| (by_peer(link), link.clock_offset_ms)));
    text
}

/// One metric with its labels; nothing when there is nothing to say.
fn family<V: std::fmt::Display>(text: &mut String, name: &str, values: impl IntoIterator<Item = (String, V)>) {
    let mut values = values.into_iter().peekable();
    if values.peek().is_some() {
        let _ = writeln!(text, "# TYPE {name} gauge");
    }
    for (labels, value) in values {
        let _ = writeln!(text, "{name}{labels} {value}");
    }
}
