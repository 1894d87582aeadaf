//! What a manager says of itself and of the group.

use std::time::Duration;

use crate::store::State;
use crate::types::api::{CertificateReport, DiskLevel, DiskSpace, LinkReport, MemberReport, RaftState, StatusReport};
use crate::types::error::{Code, Status};
use crate::types::object::{IssuanceState, MembershipState};
use crate::types::{ClusterId, Index, Kind, Member, MemberRole, NodeId, Object, Revision, Selector, Term};

use super::{Context, refusal, rotate};

/// Clocks further apart than this confuse people who read logs and certificates.
const CLOCK_WARNING_MS: u64 = 2000;
/// A median sync above this holds up every write, and soon heartbeats. etcd asks for 10 ms at the 99th percentile.
const SYNC_WARNING_US: u64 = 100_000;

pub(super) fn status(state: &State, context: &Context) -> StatusReport {
    let raft = &context.raft;
    let leader = context.leader();
    let voters = voters(context).count();
    let joined = !context.joining();
    let known = if raft.state == RaftState::Leader { raft.serving } else { leader.is_some() };
    StatusReport {
        node_id: context.node_id,
        name: name(state, context, context.node_id),
        cluster_id: context.cluster_id,
        state: match (joined, known) {
            (false, _) => "joining",
            (true, true) => "ready",
            (true, false) => "no leader",
        }
        .to_owned(),
        role: raft.state,
        leader,
        leader_name: leader.map(|leader| name(state, context, leader)).unwrap_or_default(),
        term: raft.term,
        commit: raft.commit,
        applied: raft.applied,
        revision: state.revision(),
        voters: count(voters),
        reachable: count(reachable(context)),
        tolerates: count(voters.saturating_sub(1) / 2),
        leaderless_ms: raft.leaderless_ms,
        version: context.version.clone(),
        warnings: warnings(state, context),
        links: context.links.clone(),
        manager: None,
        certificate: context.certificate.clone(),
    }
}

/// What a node says of itself before it is a member; `waiting_for` in words, such as "asking 10.0.0.7:4242 for a
/// certificate".
pub fn joining_status(node_id: NodeId, cluster_id: ClusterId, name: &str, waiting_for: &str) -> StatusReport {
    StatusReport {
        node_id,
        name: name.to_owned(),
        cluster_id,
        state: "joining".to_owned(),
        role: RaftState::Joining,
        leader: None,
        leader_name: String::new(),
        term: Term(0),
        commit: Index(0),
        applied: Index(0),
        revision: Revision(0),
        voters: 0,
        reachable: 0,
        tolerates: 0,
        leaderless_ms: 0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        warnings: vec![format!("not a member yet: {waiting_for}")],
        links: Vec::new(),
        manager: None,
        certificate: None,
    }
}

/// What a manager says of itself while its keys are locked.
pub fn locked_status(node_id: NodeId, cluster_id: ClusterId, name: &str) -> StatusReport {
    let warning = "its keys are locked: give the unlock key with `skep unlock`";
    StatusReport {
        state: "locked".to_owned(),
        warnings: vec![warning.to_owned()],
        ..joining_status(node_id, cluster_id, name, "")
    }
}

pub(super) fn members(state: &State, context: &Context) -> Vec<MemberReport> {
    let raft = &context.raft;
    let report = |member: &Member| {
        let progress = raft.progress.iter().find(|progress| progress.raft_id == member.raft_id);
        let link = context.links.iter().find(|link| link.node_id == member.node_id);
        let own = member.node_id == context.node_id;
        MemberReport {
            node_id: member.node_id,
            raft_id: member.raft_id,
            name: name(state, context, member.node_id),
            addr: member.addr.clone(),
            role: member.role,
            leader: raft.leader == Some(member.raft_id),
            reachable: own || raft.reachable.contains(&member.node_id),
            matched: progress.map(|progress| progress.matched),
            rtt_us: if own {
                Some(0)
            } else {
                link.filter(|link| link.alive && link.rtt_us > 0).map(|link| link.rtt_us)
            },
        }
    };
    raft.members.iter().map(report).collect()
}

/// What to tell callers while no leader is known and this manager sees no reachable majority; `None` while it sees one,
/// because then a leader will soon be there. Says what a person needs: how many managers there are, how many can be
/// reached, how many are needed, who led last and how long ago.
pub fn no_majority(state: &State, context: &Context) -> Option<Status> {
    let raft = &context.raft;
    let all = voters(context).count();
    let (reachable, majority) = (reachable(context), all / 2 + 1);
    if context.joining() || raft.leader.is_some() || all == 0 || reachable >= majority {
        return None;
    }
    let age = seconds(raft.leaderless_ms);
    let last = match raft.last_leader.and_then(|id| raft.members.iter().find(|member| member.raft_id == id)) {
        Some(member) => {
            format!("the last leader was {} at {}, {age} ago", name(state, context, member.node_id), member.addr)
        }
        None => format!("no leader has been known for {age}"),
    };
    let lost: Vec<String> = voters(context)
        .filter(|member| !is_reachable(context, member))
        .map(|member| format!("{} at {}", name(state, context, member.node_id), member.addr))
        .collect();
    let message = format!(
        "the swarm has no leader: {reachable} of {all} managers can be reached from here, and {majority} are needed; {last}"
    );
    let hint = format!(
        "start {} again, each with its own data directory, or look at the network between them; until then reads work \
         with `--stale`; only if they are gone for good: stop this manager and make it a swarm of its own with \
         `skep recover --data-dir {}`",
        lost.join(" and "),
        context.data_dir
    );
    Some(Status { hopeless: true, ..Status::new(Code::Unavailable, message).with_hint(hint) })
}

fn warnings(state: &State, context: &Context) -> Vec<String> {
    let mut warnings = context.raft.alarms.clone();
    warnings.extend_from_slice(&context.notices);
    if context.joining() {
        warnings.push("a member without a log yet: waiting for the leader to send it".to_owned());
    }
    let voters = voters(context).count();
    let (reachable, majority) = (reachable(context), voters / 2 + 1);
    warnings.extend(even_managers(voters));
    if voters > 0 && reachable < majority {
        warnings.push(format!("only {reachable} of {voters} managers can be reached from here; {majority} are needed"));
    } else if reachable < voters && reachable == majority {
        warnings
            .push(format!("{reachable} of {voters} managers can be reached from here: one more loss stops the swarm"));
    }
    for link in context.links.iter().filter(|link| link.alive) {
        let name = name(state, context, link.node_id);
        warnings.extend(clock_warning(&name, link));
        warnings.extend(sync_warning(&name, link.sync_us));
        if link.disk_low {
            warnings.push(format!("the disk of {name} is almost full: it takes no changes while it leads"));
        }
    }
    warnings.extend(sync_warning("this manager", context.sync_us));
    warnings.extend(disk_warning(&context.raft.disk));
    warnings.extend(waiting_warnings(state));
    warnings.extend(rotate::warning(state, context));
    warnings
}

/// What is wrong with this number of managers: an even one tolerates no more failures than one less.
pub fn even_managers(managers: usize) -> Option<String> {
    match managers {
        2 => Some("2 managers tolerate no failure: losing either stops the swarm; add a third".to_owned()),
        0 => None,
        even if even.is_multiple_of(2) => {
            let fewer = even - 1;
            Some(format!("{even} managers tolerate no more failures than {fewer}: add or remove one"))
        }
        _ => None,
    }
}

/// Nodes that wait for a person, or for an authority that can sign.
fn waiting_warnings(state: &State) -> Vec<String> {
    let mut warnings = Vec::new();
    let pending = state.find(Kind::Node, &[Selector::Membership(MembershipState::Pending)]);
    if let Some(first) = pending.first() {
        let (count, id) = (pending.len(), first.object.id());
        warnings.push(format!("{count} node(s) wait to be let in, such as {id}: `skep node approve {id}`"));
    }
    let waits = |stored: &&std::sync::Arc<crate::store::Stored>| match &stored.object {
        Object::Node(node) => {
            matches!(node.certificate.state, IssuanceState::Pending | IssuanceState::Renew)
                && !node.certificate.error.is_empty()
        }
        _ => false,
    };
    let mut unsigned = state.iter(Kind::Node).filter(waits);
    if let Some(Object::Node(first)) = unsigned.next().map(|stored| &stored.object) {
        let (count, why) = (1 + unsigned.count(), &first.certificate.error);
        warnings.push(format!("{count} node(s) wait for a certificate, such as {}: {why}", first.id));
    }
    warnings
}

fn clock_warning(name: &str, link: &LinkReport) -> Option<String> {
    clock_words(name, link.clock_offset_ms)
}

/// What to say when another machine's clock, `offset` milliseconds ahead of ours, is too far from it.
pub fn clock_words(name: &str, offset: i64) -> Option<String> {
    (offset.unsigned_abs() > CLOCK_WARNING_MS).then(|| {
        let direction = if offset > 0 { "ahead of" } else { "behind" };
        format!("the clock of {name} is {} {direction} this one: set both by NTP", seconds(offset.unsigned_abs()))
    })
}

/// What to say of a certificate that is over, or that cannot be renewed in time.
pub fn certificate_warning(certificate: Option<&CertificateReport>, now_ms: u64) -> Option<String> {
    let CertificateReport { expires_at, trouble, .. } = certificate?;
    let why = if trouble.is_empty() { String::new() } else { format!(": {trouble}") };
    if now_ms > expires_at.0 {
        return Some(format!("this node's certificate expired at {expires_at}, and it has no new one yet{why}"));
    }
    (!trouble.is_empty()).then(|| format!("this node gets no new certificate, and its own ends at {expires_at}{why}"))
}

/// [`certificate_warning`] of a manager: without a leader one whose certificate is over has nobody to ask.
pub fn certificate_warnings(certificate: &CertificateReport, has_leader: bool, now_ms: u64) -> Vec<String> {
    let mut warnings: Vec<String> = certificate_warning(Some(certificate), now_ms).into_iter().collect();
    if !has_leader && now_ms > certificate.expires_at.0 {
        warnings.push(
            "managers take nobody's word whose certificate is over: where a majority's are, no leader can be elected and \
             nobody can renew; stop the managers, and go on from one of them with `skep recover`"
                .to_owned(),
        );
    }
    warnings
}

fn sync_warning(name: &str, sync_us: u64) -> Option<String> {
    (sync_us > SYNC_WARNING_US)
        .then(|| format!("the disk of {name} takes {} ms for a sync, and every write waits for it", sync_us / 1000))
}

fn disk_warning(disk: &DiskSpace) -> Option<String> {
    let DiskSpace { level, free_bytes, needed_bytes, dir, .. } = disk;
    let consequence = match level {
        DiskLevel::Ok => return None,
        DiskLevel::Low => "it takes no changes while it leads",
        DiskLevel::Full => "it takes nothing new into its log",
    };
    Some(format!(
        "the disk of this manager is almost full, {free_bytes} bytes are free at {dir}: {consequence} until {needed_bytes} \
         bytes more are"
    ))
}

pub(super) fn name(state: &State, context: &Context, node_id: NodeId) -> String {
    let known = state.get(Kind::Node, node_id.into()).is_some();
    if node_id == context.node_id && !known {
        return context.hostname.clone();
    }
    refusal::name(state, Kind::Node, node_id.into())
}

fn voters(context: &Context) -> impl Iterator<Item = &Member> {
    context.raft.members.iter().filter(|member| member.role == MemberRole::Voter)
}

fn is_reachable(context: &Context, member: &Member) -> bool {
    member.node_id == context.node_id || context.raft.reachable.contains(&member.node_id)
}

fn reachable(context: &Context) -> usize {
    voters(context).filter(|member| is_reachable(context, member)).count()
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// `1.2 s`, `3 min`, `2 h`.
fn seconds(ms: u64) -> String {
    let seconds = Duration::from_millis(ms).as_secs_f64();
    match seconds {
        ..60.0 => format!("{seconds:.1} s"),
        60.0..7200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.0} h", seconds / 3600.0),
    }
}
