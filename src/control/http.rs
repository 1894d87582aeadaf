//! The `--http` listener's three pages: for load balancers and for Prometheus.

use std::fmt::Write as _;

use crate::store::Store;
use crate::sys::metrics::Metrics;
use crate::types::Kind;
use crate::types::api::RaftState;

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
        "/metrics" => {
            refresh(context, store, metrics);
            (200, METRICS, metrics.render())
        }
        _ => (404, TEXT, "not found: there are /healthz, /readyz and /metrics\n".to_owned()),
    }
}

fn not_ready(context: &Context, store: &Store) -> Option<String> {
    let raft = &context.raft;
    match raft.state {
        RaftState::Joining => Some("this node has not joined the swarm yet".to_owned()),
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

fn refresh(context: &Context, store: &Store, metrics: &Metrics) {
    let raft = &context.raft;
    let set = |name: &str, value: u64| metrics.gauge(name).set(value);
    set("skep_raft_term", raft.term.0);
    set("skep_raft_commit_index", raft.commit.0);
    set("skep_raft_applied_index", raft.applied.0);
    set("skep_raft_last_index", raft.last.0);
    set("skep_raft_snapshot_index", raft.snapshot.0);
    set("skep_raft_log_bytes", raft.log_bytes);
    set("skep_raft_is_leader", u64::from(raft.state == RaftState::Leader));
    set("skep_raft_has_leader", u64::from(raft.leader.is_some()));
    set("skep_raft_leaderless_ms", raft.leaderless_ms);
    set("skep_raft_members", raft.members.len() as u64);
    let (revision, objects) = store.view(|state| {
        let counts = Kind::ALL.map(|kind| (kind, state.count(kind) as u64, state.bytes(kind)));
        (state.revision(), counts)
    });
    set("skep_store_revision", revision.0);
    for (kind, count, bytes) in objects {
        set(&format!("skep_store_objects{{kind=\"{kind}\"}}"), count);
        set(&format!("skep_store_object_bytes{{kind=\"{kind}\"}}"), bytes);
    }
    for link in &context.links {
        let label = |name: &str| {
            let mut name = name.to_owned();
            let _ = write!(name, "{{peer=\"{}\"}}", link.node_id);
            name
        };
        set(&label("skep_peer_up"), u64::from(link.alive));
        set(&label("skep_peer_rtt_us"), link.rtt_us);
        set(&label("skep_peer_sync_us"), link.sync_us);
        // A gauge holds no sign: the offset is given both ways, one of them zero.
        set(&label("skep_peer_clock_ahead_ms"), u64::try_from(link.clock_offset_ms).unwrap_or(0));
        set(&label("skep_peer_clock_behind_ms"), u64::try_from(-link.clock_offset_ms).unwrap_or(0));
    }
}
