//! `skep raft` and `skep leave`: the group of managers as Raft sees it, and orders to it.

use serde_json::{Value, json};

use super::args::{LeaveArgs, RaftCommand};
use super::bundle;
use super::exit::{DONE, Ended, Failure};
use super::output::{seconds, table, word};
use super::session::{Session, unexpected};
use crate::types::MemberRole;
use crate::types::api::{Admin, Answer, Call, QueryKind, RaftReport};

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
