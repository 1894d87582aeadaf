//! `skep members` and `skep node`: who belongs to the swarm, as what, and how many may fail.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::args::{NodeCommand, NodesArgs};
use super::commands::{ids, inspect, list, pairs, write_and_show};
use super::exit::{DONE, Ended, Failure};
use super::objects;
use super::output::{Written, clean};
use super::session::{Session, unexpected};
use crate::client::ClientError;
use crate::control::even_managers;
use crate::sys::time::monotonic;
use crate::types::api::{Answer, Filter, MemberReport, QueryKind, RaftState, Write};
use crate::types::object::Kind;
use crate::types::{Code, MemberRole, Object, Role};

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

pub fn member_reports(session: &mut Session) -> Result<Vec<MemberReport>, Failure> {
    match session.query(QueryKind::Members)? {
        Answer::Members(members) => Ok(members),
        _ => Err(unexpected()),
    }
}

/// Below a table for people: how many managers may fail.
fn show_tolerance(session: &mut Session, members: &[MemberReport]) -> Result<(), Failure> {
    let voters = members.iter().filter(|member| member.role == MemberRole::Voter).count();
    if !session.out.json && voters > 0 {
        let more = even_managers(voters).map(|why| format!("; {why}")).unwrap_or_default();
        session.out.line(&format!("\n{}{more}", tolerance(voters)))?;
    }
    Ok(())
}

pub fn tolerance(voters: usize) -> String {
    let s = if voters == 1 { "" } else { "s" };
    format!("{voters} voter{s}, tolerates {}", voters.saturating_sub(1) / 2)
}
