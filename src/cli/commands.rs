//! Commands that ask a running manager.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::args::*;
use super::bundle;
use super::exit::{Exit, Failure};
use super::objects;
use super::output::{Written, clean, table, tree};
use super::parse;
use super::session::{Session, read_data, unexpected};
use super::unlock;
use crate::client::ClientError;
use crate::control::even_managers;
use crate::sys::time::monotonic;
use crate::types::api::{
    Action, Admin, Answer, Autolock, Call, CertificateReport, Filter, MemberReport, QueryKind, RaftReport, RaftState,
    StatusReport, WatchItem, WatchRequest, Write,
};
use crate::types::limits::{MAX_CONFIG_BYTES, MAX_SECRET_BYTES};
use crate::types::object::{Kind, Sensitive};
use crate::types::{Code, MemberRole, Object, Role};

/// A command's end: an exit code, or a failure to print.
pub type Ended = Result<Exit, Failure>;

const DONE: Ended = Ok(Exit::Done);

/// The bytes of the file, or of standard input, that a command sends; none for a command that sends none. Read before a
/// manager is asked anything: a person who types them keeps no connection waiting.
pub fn input(command: &Command) -> Result<Vec<u8>, Failure> {
    let (path, limit, attempted) = match command {
        Command::Config(DataCommand::Create { name, file, .. }) => {
            (file, MAX_CONFIG_BYTES, cannot_create("config", name))
        }
        Command::Secret(DataCommand::Create { name, file, .. }) => {
            (file, MAX_SECRET_BYTES, cannot_create("secret", name))
        }
        Command::Resource(ResourceCommand::Create { name, file, .. }) => {
            (file, MAX_CONFIG_BYTES, cannot_create("resource", name))
        }
        Command::Resource(ResourceCommand::Update { object, file, .. }) => {
            (file, MAX_CONFIG_BYTES, cannot_update_resource(&object.object))
        }
        _ => return Ok(Vec::new()),
    };
    read_data(path, limit).map_err(|failure| failure.while_attempting(|| attempted))
}

fn cannot_create(kind: &str, name: &str) -> String {
    format!("cannot create {kind} {}", clean(name))
}

fn cannot_update_resource(object: &str) -> String {
    format!("cannot update resource {}", clean(object))
}

/// `skep status`.
pub fn status(session: &mut Session) -> Ended {
    let Answer::Status(report) = session.query(QueryKind::Status)? else { return Err(unexpected()) };
    if session.out.json {
        session.out.document(&json!(report))?;
    } else {
        session.out.text(&status_text(&report))?;
    }
    Ok(status_exit(&report.state))
}

/// A manager that has not joined yet, or leads without serving, is of no use to anyone, whoever it takes for the leader.
pub fn status_exit(state: &str) -> Exit {
    if state == "ready" { Exit::Done } else { Exit::Unavailable }
}

fn status_text(report: &StatusReport) -> String {
    let named = |id: String, name: &str| if name.is_empty() { id } else { format!("{id} ({})", clean(name)) };
    if report.role == RaftState::Worker {
        return worker_text(report, &named(report.node_id.to_string(), &report.name));
    }
    let leader = match report.leader {
        Some(leader) => named(leader.to_string(), &report.leader_name),
        None => format!("none for {}", seconds(report.leaderless_ms)),
    };
    let voters = format!("{} ({} reachable)", tolerance(report.voters as usize), report.reachable);
    // Before there is a certificate there are neither of these.
    let known = |id: u128, text: String| if id == 0 { "none yet".to_owned() } else { text };
    let mut rows = vec![
        ("node", named(known(report.node_id.0, report.node_id.to_string()), &report.name)),
        ("cluster", known(report.cluster_id.0, report.cluster_id.to_string())),
        ("state", clean(&report.state)),
    ];
    // One that is locked or has not joined knows nothing of the swarm: zeros would look like a swarm without managers.
    if report.voters > 0 {
        rows.extend([
            ("role", word(&json!(report.role))),
            ("leader", leader),
            ("term", report.term.to_string()),
            ("commit", report.commit.to_string()),
            ("applied", report.applied.to_string()),
            ("revision", report.revision.to_string()),
            ("voters", voters),
        ]);
    }
    rows.push(("version", clean(&report.version)));
    let mut text = String::new();
    for (key, value) in rows {
        text.push_str(&format!("{key:<9} {value}\n"));
    }
    if let Some(certificate) = &report.certificate {
        text.push_str(&format!("{:<9} {}\n", "identity", certificate_text(certificate)));
    }
    for warning in &report.warnings {
        text.push_str(&format!("warning   {}\n", clean(warning)));
    }
    if !report.links.is_empty() {
        let rows: Vec<Value> = report
            .links
            .iter()
            .map(|link| {
                json!({
                    "peer": link.node_id,
                    "addr": link.addr,
                    "connected": link.alive,
                    "rtt": micros(link.rtt_us),
                    "clock": format!("{:+} ms", link.clock_offset_ms),
                    "sync": micros(link.sync_us),
                })
            })
            .collect();
        let columns = [
            ("PEER", "peer"),
            ("ADDR", "addr"),
            ("CONNECTED", "connected"),
            ("RTT", "rtt"),
            ("CLOCK", "clock"),
            ("SYNC", "sync"),
        ];
        text.push('\n');
        text.push_str(&table(&columns, &rows));
    }
    text
}

/// A worker has no log to speak of.
fn worker_text(report: &StatusReport, node: &str) -> String {
    let manager = match &report.manager {
        Some((manager, addr)) => format!("{manager} at {}", clean(addr)),
        None => "none".to_owned(),
    };
    let certificate = report.certificate.as_ref().map(certificate_text).unwrap_or_default();
    let mut text = String::new();
    for (key, value) in [
        ("node", node.to_owned()),
        ("cluster", report.cluster_id.to_string()),
        ("state", clean(&report.state)),
        ("role", "worker".to_owned()),
        ("manager", manager),
        ("identity", certificate),
        ("version", clean(&report.version)),
    ] {
        text.push_str(&format!("{key:<9} {value}\n"));
    }
    for warning in &report.warnings {
        text.push_str(&format!("warning   {}\n", clean(warning)));
    }
    text
}

fn certificate_text(certificate: &CertificateReport) -> String {
    let CertificateReport { role, expires_at, renews_at, .. } = certificate;
    format!("{} certificate until {expires_at}, renewed about {renews_at}", role.name())
}

/// `skep members`.
pub fn members(session: &mut Session) -> Ended {
    let members = member_reports(session)?;
    let rows: Vec<Value> = members.iter().map(member_row).collect();
    let columns = [
        ("NODE", "node_id"),
        ("RAFT", "raft_id"),
        ("NAME", "name"),
        ("ADDR", "addr"),
        ("ROLE", "role"),
        ("LEADER", "leader"),
        ("REACHABLE", "reachable"),
        ("MATCH", "match"),
        ("RTT MS", "rtt_ms"),
    ];
    session.out.rows(&columns, &rows)?;
    show_tolerance(session, &members)?;
    DONE
}

fn member_reports(session: &mut Session) -> Result<Vec<MemberReport>, Failure> {
    match session.query(QueryKind::Members)? {
        Answer::Members(members) => Ok(members),
        _ => Err(unexpected()),
    }
}

fn member_row(member: &MemberReport) -> Value {
    json!({
        "node_id": member.node_id,
        "raft_id": member.raft_id,
        "name": member.name,
        "addr": member.addr,
        "role": member.role,
        "leader": member.leader,
        "reachable": member.reachable,
        "match": member.matched,
        // Milliseconds to the microsecond; a product would print 0.30000000000000004.
        "rtt_ms": member.rtt_us.map(|us| us as f64 / 1000.0),
    })
}

/// `skep watch`.
pub fn watch(session: &mut Session, args: &WatchArgs) -> Ended {
    let request = WatchRequest {
        from: args.from.map(|revision| (session.client.hello().lineage, revision)),
        skip_snapshot: true,
        kinds: args.kind.clone(),
        filter: Filter::default(),
        include_old: session.out.json,
    };
    let watch = session.client.watch(request, session.timeout)?;
    for item in watch {
        if let Written::Closed = show_watch_item(session, item?)? {
            return DONE;
        }
        if let Written::Closed = session.out.flush()? {
            return DONE;
        }
    }
    DONE
}

fn show_watch_item(session: &mut Session, item: WatchItem) -> Result<Written, Failure> {
    match item {
        WatchItem::Snapshot { .. } => Ok(Written::Yes),
        WatchItem::Begin { revision, .. } | WatchItem::Mark { revision } => match session.out.json {
            true => session.out.record(&json!({ "revision": revision, "mark": true })),
            false => Ok(Written::Yes),
        },
        WatchItem::Change { revision, events } if session.out.json => {
            let events: Vec<Value> = events
                .iter()
                .map(|event| {
                    let mut shown = json!({
                        "action": event.action,
                        "kind": event.object.kind(),
                        "object": objects::document(&event.object),
                    });
                    if let Some(old) = &event.old {
                        shown["old"] = objects::document(old);
                    }
                    shown
                })
                .collect();
            session.out.record(&json!({ "revision": revision, "events": events }))
        }
        WatchItem::Change { revision, events } => {
            for event in &events {
                let action = match event.action {
                    Action::Create => "create",
                    Action::Update => "update",
                    Action::Remove => "remove",
                };
                let (kind, id, name) = (event.object.kind(), event.object.id(), clean(objects::name(&event.object)));
                if let Written::Closed = session.out.line(&format!("{revision} {action} {kind} {id} {name}"))? {
                    return Ok(Written::Closed);
                }
            }
            Ok(Written::Yes)
        }
    }
}

/// `skep node`.
pub fn node(session: &mut Session, command: &NodeCommand) -> Ended {
    match command {
        NodeCommand::Ls(args) => {
            let objects = list(session, Kind::Node, args)?;
            if args.quiet && !session.out.json {
                return ids(session, &objects);
            }
            let members = member_reports(session)?;
            let rows: Vec<Value> = objects
                .iter()
                .map(|object| {
                    let mut row = objects::row(object);
                    objects::add_manager_state(&mut row, object, &members);
                    row
                })
                .collect();
            session.out.rows(objects::columns(Kind::Node), &rows)?;
            show_tolerance(session, &members)?;
            DONE
        }
        NodeCommand::Inspect(object) => inspect(session, Kind::Node, &object.object),
        NodeCommand::Approve { object, write } => {
            let request = Write::ApproveNode { node: object.object.clone() };
            write_and_show(session, write, request, || format!("cannot approve node {}", clean(&object.object)))
        }
        NodeCommand::Promote(args) => each_node(session, args, "promote", |node| role_of(node, Role::Manager)),
        NodeCommand::Demote(args) => each_node(session, args, "demote", |node| role_of(node, Role::Worker)),
        NodeCommand::Rm { force, nodes } => {
            each_node(session, nodes, "remove", |node| Write::RemoveNode { node, force: *force })
        }
        NodeCommand::Update { object, availability, label, label_rm, version, write } => {
            let request = Write::UpdateNode {
                node: object.object.clone(),
                role: None,
                availability: availability.map(Into::into),
                set: pairs(label),
                remove: label_rm.clone(),
                if_version: version.if_version,
            };
            write_and_show(session, write, request, || format!("cannot update node {}", clean(&object.object)))
        }
    }
}

fn role_of(node: String, role: Role) -> Write {
    Write::UpdateNode {
        node,
        role: Some(role),
        availability: None,
        set: BTreeMap::new(),
        remove: Vec::new(),
        if_version: None,
    }
}

/// Asks the same of several nodes, one after the other, and waits for each if that is wanted.
fn each_node(session: &mut Session, args: &NodesArgs, verb: &str, request: impl Fn(String) -> Write) -> Ended {
    if args.write.change_id.is_some() && args.nodes.len() > 1 {
        return Err(Failure::usage("--change-id asks about one change; give the one node that it is about"));
    }
    let (mut rows, before) = (Vec::new(), managers_to_be(session));
    for node in &args.nodes {
        let attempted = || format!("cannot {verb} node {}", clean(node));
        let written =
            session.write(&args.write, request(node.clone())).map_err(|failure| failure.while_attempting(attempted))?;
        if args.wait {
            // By id from here on: the name may go with the node, or be another's.
            wait_for_role(session, &written.id.to_string()).map_err(|failure| failure.while_attempting(attempted))?;
        }
        rows.push(json!({ "id": written.id, "version": written.revision }));
        if !session.out.json {
            session.out.line(&written.id.to_string())?;
        }
    }
    match (session.out.json, rows.as_slice()) {
        (true, [row]) => session.out.document(row)?,
        (true, _) => session.out.document(&Value::Array(rows))?,
        (false, _) => Written::Yes,
    };
    // Nothing fails because this cannot be told.
    let after = managers_to_be(session).filter(|after| before != Some(*after));
    if let Some(why) = after.and_then(even_managers) {
        eprintln!("hint: {why}");
    }
    DONE
}

/// How many managers are wanted now; `None` if that cannot be told, or nobody reads it.
fn managers_to_be(session: &mut Session) -> Option<usize> {
    if session.out.json {
        return None;
    }
    let nodes = session.client.list(Kind::Node, &Filter::default(), false, session.timeout).ok()?;
    let members = member_reports(session).ok()?;
    // Those that a recovery left behind are managers by name only.
    let counts = |node: &&Object| {
        let is_lost =
            matches!(node, Object::Node(node) if objects::phase(node, &members).starts_with("not in the group"));
        objects::is_to_be_manager(node) && !is_lost
    };
    Some(nodes.iter().filter(counts).count())
}

/// Waits until a node is what was asked of it, or gone.
fn wait_for_role(session: &mut Session, id: &str) -> Result<(), Failure> {
    let deadline = monotonic() + session.timeout;
    loop {
        let left = deadline.since(monotonic());
        let answer = session.client.query(QueryKind::Inspect(Kind::Node, id.to_owned()), false, left.max(WAIT_PAUSE));
        let phase = match answer {
            Ok(Answer::Object(object)) => match &*object {
                Object::Node(node) => objects::phase(node, &member_reports(session)?),
                _ => return Err(unexpected()),
            },
            Ok(_) => return Err(unexpected()),
            Err(ClientError::Refused(status)) if status.code == Code::NotFound => return Ok(()),
            // This manager was one of those that were to become workers, and it tells of no node any more.
            Err(ClientError::Refused(_)) if is_worker(session, id) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if phase.is_empty() {
            return Ok(());
        }
        if left <= WAIT_PAUSE {
            let message = format!("it was asked for, and is not done yet: {phase}");
            return Err(Failure::refused(Code::DeadlineExceeded, message)
                .with_hint(format!(
                    "it goes on by itself: `skep node inspect {id}` shows how far it is, and `skep status` on the leader what \
                     holds it up"
                )));
        }
        std::thread::sleep(WAIT_PAUSE);
    }
}

/// Whether the node that answers is this one, and a worker.
fn is_worker(session: &mut Session, id: &str) -> bool {
    match session.client.query(QueryKind::Status, true, session.timeout) {
        Ok(Answer::Status(status)) => status.role == RaftState::Worker && status.node_id.to_string() == id,
        _ => false,
    }
}

/// Between two looks at something that converges.
const WAIT_PAUSE: Duration = Duration::from_millis(100);

/// Below a table for people: how many managers may fail.
fn show_tolerance(session: &mut Session, members: &[MemberReport]) -> Result<(), Failure> {
    let voters = members.iter().filter(|member| member.role == MemberRole::Voter).count();
    if !session.out.json && voters > 0 {
        let more = even_managers(voters).map(|why| format!("; {why}")).unwrap_or_default();
        session.out.line(&format!("\n{}{more}", tolerance(voters)))?;
    }
    Ok(())
}

fn tolerance(voters: usize) -> String {
    let s = if voters == 1 { "" } else { "s" };
    format!("{voters} voter{s}, tolerates {}", voters.saturating_sub(1) / 2)
}

/// `skep config` and `skep secret`. `data` is what a new one holds.
pub fn data(session: &mut Session, kind: Kind, command: &DataCommand, data: Vec<u8>) -> Ended {
    match command {
        DataCommand::Create { name, label, write, .. } => {
            let attempted = || cannot_create(kind.name(), name);
            let (name, labels) = (name.clone(), pairs(label));
            let request = match kind {
                Kind::Secret => Write::CreateSecret { name, labels, data: Sensitive(data) },
                _ => Write::CreateConfig { name, labels, data },
            };
            write_and_show(session, write, request, attempted)
        }
        DataCommand::Update { object, label, label_rm, version, write } => {
            let request = Write::UpdateLabels {
                kind,
                object: object.object.clone(),
                set: pairs(label),
                remove: label_rm.clone(),
                if_version: version.if_version,
            };
            write_and_show(session, write, request, || format!("cannot update {kind} {}", clean(&object.object)))
        }
        DataCommand::Ls(args) => ls(session, kind, args),
        DataCommand::Inspect(object) => inspect(session, kind, &object.object),
        DataCommand::Rm(args) => rm(session, kind, args),
    }
}

/// `skep extension`.
pub fn extension(session: &mut Session, command: &ExtensionCommand) -> Ended {
    match command {
        ExtensionCommand::Create { name, description, write } => {
            let request = Write::CreateExtension {
                name: name.clone(),
                description: description.clone(),
                labels: BTreeMap::new(),
            };
            write_and_show(session, write, request, || format!("cannot create extension {}", clean(name)))
        }
        ExtensionCommand::Ls(args) => ls(session, Kind::Extension, args),
        ExtensionCommand::Inspect(object) => inspect(session, Kind::Extension, &object.object),
        ExtensionCommand::Rm(args) => rm(session, Kind::Extension, args),
    }
}

/// `skep resource`. `payload` is what one holds from now on.
pub fn resource(session: &mut Session, command: &ResourceCommand, payload: Vec<u8>) -> Ended {
    match command {
        ResourceCommand::Create { name, kind, label, index, write, .. } => {
            let attempted = || cannot_create("resource", name);
            let request = Write::CreateResource {
                name: name.clone(),
                kind: kind.clone(),
                labels: pairs(label),
                indices: pairs(index),
                payload,
            };
            write_and_show(session, write, request, attempted)
        }
        ResourceCommand::Update { object, version, write, .. } => {
            let attempted = || cannot_update_resource(&object.object);
            let request = Write::UpdateResource {
                object: object.object.clone(),
                payload: Some(Sensitive(payload)),
                labels: None,
                indices: None,
                if_version: version.if_version,
            };
            write_and_show(session, write, request, attempted)
        }
        ResourceCommand::Ls(args) => ls(session, Kind::Resource, args),
        ResourceCommand::Inspect(object) => inspect(session, Kind::Resource, &object.object),
        ResourceCommand::Rm(args) => rm(session, Kind::Resource, args),
    }
}

/// `skep cluster`.
pub fn cluster(session: &mut Session, command: &ClusterCommand) -> Ended {
    match command {
        ClusterCommand::Inspect => {
            let id = session.client.hello().cluster_id.to_string();
            inspect(session, Kind::Cluster, &id)
        }
        ClusterCommand::Update {
            snapshot_bytes,
            keep_bytes,
            cert_expiry,
            expired_grace,
            approve_joins,
            autolock,
            version,
            write,
        } => {
            let request = Write::UpdateCluster {
                autolock: autolock.map(|on| match on {
                    true => Autolock::On { key: unlock::generate() },
                    false => Autolock::Off,
                }),
                snapshot_bytes: *snapshot_bytes,
                keep_bytes: *keep_bytes,
                node_certificate_expiry_ms: cert_expiry.map(milliseconds),
                expired_grace_ms: expired_grace.map(milliseconds),
                approve_joins: *approve_joins,
                if_version: version.if_version,
            };
            let attempted = || "cannot update the swarm's settings".to_owned();
            if *autolock != Some(true) {
                return write_and_show(session, write, request, attempted);
            }
            session.write(write, request).map_err(|failure| failure.while_attempting(attempted))?;
            unlock::show(session)?;
            unlock::tell(
                "this is the unlock key: keep it apart from the managers. From its next start on each of them waits for it \
                 (`skep unlock`); any manager that runs prints it again: `skep unlock-key show`",
            );
            DONE
        }
    }
}

/// `skep raft`.
pub fn raft(session: &mut Session, command: &RaftCommand) -> Ended {
    match command {
        RaftCommand::Status { events } => {
            let Answer::Raft(report) = session.query(QueryKind::Raft)? else { return Err(unexpected()) };
            let (mut document, mut text) = (json!(report), raft_text(&report));
            if *events {
                let answer = session.client.call(Call::Diagnose, &(), session.timeout)?;
                let Answer::Diagnosis(diagnosis) = answer else { return Err(unexpected()) };
                document["events"] = json!(diagnosis.events);
                text.push_str(&format!("\n{}", bundle::events(&diagnosis.events)));
            }
            match session.out.json {
                true => session.out.document(&document)?,
                false => session.out.text(&text)?,
            };
            DONE
        }
        RaftCommand::RotateKey => {
            session.admin(&Admin::RotateDataKey).map_err(|error| {
                Failure::of_order(error, "it may have begun; to give the command again does no harm")
                    .while_attempting(|| "cannot replace the data key".to_owned())
            })?;
            match session.out.json {
                true => session.out.document(&json!({ "begun": true }))?,
                false => session.out.line("begun: what is written from now on is sealed with a new key")?,
            };
            DONE
        }
        RaftCommand::Transfer { to } => {
            let request = Admin::Transfer { to: to.clone() };
            let answer = session.admin(&request).map_err(|error| {
                Failure::of_order(error, "leadership may have moved: `skep status` shows who leads")
                    .while_attempting(|| "cannot hand leadership over".to_owned())
            })?;
            let Answer::Leader(leader) = answer else { return Err(unexpected()) };
            match session.out.json {
                true => session.out.document(&json!({ "leader": leader }))?,
                false => session.out.line(&leader.to_string())?,
            };
            DONE
        }
        RaftCommand::Snapshot => {
            let answer = session.admin(&Admin::Snapshot).map_err(|error| {
                Failure::of_order(error, "it may have been written: `skep raft status` shows the newest snapshot")
                    .while_attempting(|| "cannot write a snapshot".to_owned())
            })?;
            let Answer::SnapshotWritten { position, bytes } = answer else { return Err(unexpected()) };
            match session.out.json {
                true => {
                    session.out.document(&json!({ "index": position.index, "term": position.term, "bytes": bytes }))?
                }
                false => session
                    .out
                    .line(&format!("snapshot at index {}, term {}: {bytes} bytes", position.index, position.term))?,
            };
            DONE
        }
    }
}

fn raft_text(report: &RaftReport) -> String {
    let mut text = String::new();
    let leader =
        report.leader.map_or_else(|| format!("none for {}", seconds(report.leaderless_ms)), |id| id.to_string());
    for (key, value) in [
        ("raft id", report.raft_id.to_string()),
        ("state", word(&json!(report.state))),
        ("leader", leader),
        ("term", report.term.to_string()),
        ("commit", report.commit.to_string()),
        ("applied", report.applied.to_string()),
        ("log", format!("{} to {}", report.first, report.last)),
        ("snapshot", format!("at {}, {} bytes of log since", report.snapshot, report.log_bytes)),
        ("elections", report.elections.to_string()),
    ] {
        text.push_str(&format!("{key:<9} {value}\n"));
    }
    let rows: Vec<Value> = report
        .members
        .iter()
        .map(|member| {
            let progress = report.progress.iter().find(|progress| progress.raft_id == member.raft_id);
            json!({
                "raft_id": member.raft_id,
                "node_id": member.node_id,
                "role": if member.role == MemberRole::Voter { "voter" } else { "learner" },
                "reachable": report.reachable.contains(&member.node_id),
                "match": progress.map(|progress| progress.matched),
                "state": progress.map(|progress| progress.state.clone()),
                "heard_ms": progress.and_then(|progress| progress.heard_ms),
            })
        })
        .collect();
    let columns = [
        ("RAFT", "raft_id"),
        ("NODE", "node_id"),
        ("ROLE", "role"),
        ("REACHABLE", "reachable"),
        ("MATCH", "match"),
        ("PROGRESS", "state"),
        ("HEARD MS", "heard_ms"),
    ];
    text.push('\n');
    text.push_str(&table(&columns, &rows));
    text
}

/// `skep leave`.
pub fn leave(session: &mut Session, args: &LeaveArgs) -> Ended {
    let node = session.client.hello().node_id;
    let attempted = || format!("cannot take node {node} out of the swarm");
    match session.admin(&Admin::Leave { force: args.force }) {
        Ok(Answer::Done) => {}
        Ok(_) => return Err(unexpected()),
        Err(error) => {
            let hint = "it may have left: see `skep members` on another manager";
            return Err(Failure::of_order(error, hint).while_attempting(attempted));
        }
    }
    match session.out.json {
        true => session.out.document(&json!({ "node_id": node }))?,
        false => session.out.line(&format!("node {node} left the swarm"))?,
    };
    if args.force && !session.out.json {
        eprintln!(
            "hint: if it still stands in `skep members` on another manager, it counts towards the majority there"
        );
    }
    DONE
}

pub(super) fn list(session: &mut Session, kind: Kind, args: &LsArgs) -> Result<Vec<Object>, Failure> {
    let filter = parse::filters(&args.filter);
    session
        .client
        .list(kind, &filter, session.stale, session.timeout)
        .map_err(|error| Failure::from(error).while_attempting(|| format!("cannot list {kind}s")))
}

fn ls(session: &mut Session, kind: Kind, args: &LsArgs) -> Ended {
    let objects = list(session, kind, args)?;
    if args.quiet && !session.out.json {
        return ids(session, &objects);
    }
    let rows: Vec<Value> = objects.iter().map(objects::row).collect();
    session.out.rows(objects::columns(kind), &rows)?;
    DONE
}

pub(super) fn ids(session: &mut Session, objects: &[Object]) -> Ended {
    for object in objects {
        if let Written::Closed = session.out.line(&object.id().to_string())? {
            break;
        }
    }
    DONE
}

pub(super) fn inspect(session: &mut Session, kind: Kind, object: &str) -> Ended {
    let answer = session
        .query(QueryKind::Inspect(kind, object.to_owned()))
        .map_err(|failure| failure.while_attempting(|| format!("cannot show {kind} {}", clean(object))))?;
    let Answer::Object(mut object) = answer else { return Err(unexpected()) };
    let mut phase = None;
    if let Object::Node(node) = &mut *object {
        let members = member_reports(session)?;
        phase = Some(objects::phase(node, &members));
        if let Some(member) = members.iter().find(|member| member.node_id == node.id) {
            node.status.state = objects::manager_state(member);
        }
    }
    let mut document =
        if session.out.json { objects::document(&object) } else { objects::document_for_people(&object) };
    if let Some(phase) = phase {
        document["phase"] = phase.into();
    }
    match session.out.json {
        true => session.out.document(&document)?,
        false => session.out.text(&tree(&document))?,
    };
    DONE
}

fn rm(session: &mut Session, kind: Kind, args: &RmArgs) -> Ended {
    let object = args.object.object.clone();
    let request = Write::Remove { kind, object, if_version: args.version.if_version };
    write_and_show(session, &args.write, request, || format!("cannot remove {kind} {}", clean(&args.object.object)))
}

pub(super) fn write_and_show(
    session: &mut Session,
    args: &WriteArgs,
    request: Write,
    attempted: impl FnOnce() -> String,
) -> Ended {
    let written = session.write(args, request).map_err(|failure| failure.while_attempting(attempted))?;
    match session.out.json {
        true => session.out.document(&json!({ "id": written.id, "version": written.revision }))?,
        false => session.out.line(&written.id.to_string())?,
    };
    DONE
}

pub(super) fn pairs(pairs: &[(String, String)]) -> BTreeMap<String, String> {
    pairs.iter().cloned().collect()
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

fn micros(us: u64) -> Option<String> {
    (us > 0).then(|| format!("{}.{:03} ms", us / 1000, us % 1000))
}

/// The text of a JSON string.
fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
