//! `skep status`: what a manager or a worker says of itself.

use serde_json::{Value, json};

use super::exit::{Ended, Exit};
use super::nodes::tolerance;
use super::output::{clean, micros, seconds, table, word};
use super::session::{Session, unexpected};
use crate::types::api::{Answer, CertificateReport, QueryKind, RaftState, StatusReport};

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
