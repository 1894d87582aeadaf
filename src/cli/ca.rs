//! `skep ca`: the root certificate, and its replacement by another.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::args::{CaCommand, Common, RotateArgs};
use super::exit::{Ended, Exit, Failure};
use super::output::{Output, Written, clean, table};
use super::session::{Session, read_data, unexpected};
use crate::client::{given_root, own_root};
use crate::sys::entropy::OsEntropy;
use crate::sys::time::wall_ms;
use crate::types::Code;
use crate::types::api::{
    Answer, NewRoot, QueryKind, RootCaReport, RootCertificate, RotationNode, RotationReport, Write,
};
use crate::types::object::Standing;

/// `skep ca`.
pub fn run(common: &Common, command: &CaCommand, out: Output) -> Ended {
    let exit = match command {
        CaCommand::Show => {
            let mut session = Session::open(common, out)?;
            let report = report(&mut session)?;
            match session.out.json {
                true => session.out.document(&json!(report))?,
                false => session.out.text(&shown(&report))?,
            };
            session.out.flush()?;
            Exit::Done
        }
        CaCommand::Rotate(args) => {
            // Read before a manager is asked: a person who types a key keeps no connection waiting.
            let root = root(args).map_err(|failure| failure.while_attempting(attempted))?;
            rotate(&mut Session::open(common, out)?, args, root)?
        }
    };
    Ok(exit)
}

fn attempted() -> String {
    "cannot replace the root certificate".to_owned()
}

/// The root that is asked for: from files, or a new one.
fn root(args: &RotateArgs) -> Result<NewRoot, Failure> {
    if args.cert.is_none() && args.key.is_none() {
        return own_root(wall_ms(), &mut OsEntropy).map_err(|error| Failure::internal(error.to_string()));
    }
    let read = |path: Option<&Path>| path.map_or_else(|| Ok(Vec::new()), |path| read_data(path, MAX_PEM_BYTES));
    let certificate = read(args.cert.as_deref())?;
    let certificate = String::from_utf8(certificate)
        .map_err(|_| Failure::refused(Code::InvalidArgument, "the certificate is not PEM text"))?;
    Ok(given_root(&certificate, read(args.key.as_deref())?, &mut OsEntropy))
}

fn rotate(session: &mut Session, args: &RotateArgs, root: NewRoot) -> Ended {
    let resume = !args.skip.is_empty() && args.cert.is_none() && args.key.is_none();
    let write = Write::RotateRoot { root, skip: args.skip.clone(), resume };
    let written = session.write(&args.write, write).map_err(|failure| failure.while_attempting(attempted))?;
    if !args.skip.is_empty() && !session.out.json {
        eprintln!(
            "hint: a skipped node that has no new certificate when the rotation ends is cut off: it has to join again, on \
             an empty data directory with a new token"
        );
    }
    // What was asked for may have been asked for before under the same id, with another root: the store tells.
    let report = report(session)?;
    let target = report.rotation.as_ref().map_or(&report.digest, |rotation| &rotation.root.digest).clone();
    if args.wait {
        return wait(session, report, &target);
    }
    if session.out.json {
        let under_way = report.rotation.is_some();
        session.out.document(&json!({ "digest": target, "version": written.revision, "rotating": under_way }))?;
    } else {
        session.out.line(&target)?;
        if let Some(rotation) = &report.rotation {
            eprintln!("{}; `skep ca show` tells more", progress(rotation));
        }
    }
    session.out.flush()?;
    Ok(Exit::Done)
}

/// Until the swarm's root is `target`: a line whenever something moves.
fn wait(session: &mut Session, mut report: RootCaReport, target: &str) -> Ended {
    let mut told = None;
    loop {
        let now = match &report.rotation {
            None if report.digest == target => {
                let done = match session.out.json {
                    true => json!({ "digest": target, "done": true }).to_string(),
                    false => format!("the root certificate is {target}"),
                };
                session.out.line(&done)?;
                session.out.flush()?;
                return Ok(Exit::Done);
            }
            None => {
                return Err(superseded(&format!(
                    "the rotation was ended, and the root certificate is {}",
                    report.digest
                )));
            }
            Some(rotation) if rotation.root.digest != target => {
                return Err(superseded(&format!(
                    "the rotation was turned towards another root, {}",
                    rotation.root.digest
                )));
            }
            Some(rotation) => match session.out.json {
                true => progress_json(rotation, target).to_string(),
                false => progress(rotation),
            },
        };
        if told.as_ref() != Some(&now) {
            if let Written::Closed = session.out.line(&now)? {
                return Ok(Exit::Done);
            }
            if let Written::Closed = session.out.flush()? {
                return Ok(Exit::Done);
            }
            told = Some(now);
        }
        std::thread::sleep(LOOK);
        report = self::report(session).map_err(|failure| {
            let hint = "the rotation goes on without this command: `skep ca show` tells how far it is";
            failure.while_attempting(|| "cannot wait for the rotation to end".to_owned()).with_hint(hint)
        })?;
    }
}

fn superseded(why: &str) -> Failure {
    Failure::refused(Code::Aborted, why)
        .while_attempting(|| "cannot wait for the rotation to end".to_owned())
        .with_hint("`skep ca show` tells what is under way")
}

fn report(session: &mut Session) -> Result<RootCaReport, Failure> {
    match session.query(QueryKind::RootCa)? {
        Answer::RootCa(report) => Ok(*report),
        _ => Err(unexpected()),
    }
}

fn progress_json(rotation: &RotationReport, target: &str) -> Value {
    json!({
        "digest": target,
        "done": false,
        "converged": rotation.converged,
        "total": rotation.total,
        "waiting": rotation.waiting,
        "waiting_for": rotation.waiting_for,
        "skipped": rotation.skipped,
    })
}

/// One line.
fn progress(rotation: &RotationReport) -> String {
    let RotationReport { total, converged, waiting, waiting_for, .. } = rotation;
    let mut text = format!("{converged} of {total} nodes have certificates of the new root");
    let mut named: Vec<String> = waiting_for
        .iter()
        .take(NAMED)
        .map(|node| {
            let lost = if node.connected == Some(false) { "not reachable, " } else { "" };
            let since = match node.standing {
                Standing::NotAsked => String::new(),
                _ => format!(" since {}", node.since),
            };
            format!("{} ({}, {lost}{}{since})", clean(&node.name), node.role.name(), words(node))
        })
        .collect();
    let more = waiting.saturating_sub(named.len() as u64);
    if more > 0 {
        named.push(format!("{more} more"));
    }
    if !named.is_empty() {
        text.push_str(&format!("; waiting for {}", named.join(", ")));
    }
    text
}

fn words(node: &RotationNode) -> String {
    match node.standing {
        Standing::NotAsked => "not told to renew yet",
        Standing::Asked => "told to renew",
        Standing::Signing => "its certificate is being made",
        Standing::Issued => "its certificate is made and not in use yet",
        Standing::Failed => return format!("refused: {}", clean(&node.error)),
        Standing::Converged => "done",
    }
    .to_owned()
}

fn shown(report: &RootCaReport) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: &str| text.push_str(&format!("{key:<9} {}\n", clean(value)));
    let mut describe = |root: &RootCertificate| {
        line("subject", &root.subject);
        line("valid", &format!("from {} to {}", root.not_before, root.not_after));
    };
    for root in &report.roots {
        describe(root);
    }
    text.insert_str(0, &format!("{:<9} {}\n", "root", report.digest));
    if !report.has_key {
        text.push_str("warning   the swarm does not hold the key, and cannot sign certificates\n");
    }
    let Some(rotation) = &report.rotation else { return text };
    let RootCertificate { digest, subject, not_before, not_after, .. } = &rotation.root;
    let RotationReport { started_at, total, converged, waiting, waiting_for, skipped, .. } = rotation;
    text.push_str(&format!("\nrotation  to {digest}\n"));
    for (key, value) in [
        ("subject", clean(subject)),
        ("valid", format!("from {not_before} to {not_after}")),
        ("since", started_at.to_string()),
        ("nodes", format!("{converged} of {total} have certificates of the new root")),
    ] {
        text.push_str(&format!("{key:<9} {value}\n"));
    }
    if !waiting_for.is_empty() {
        text.push_str(&format!("\nwaiting for {}:\n{}", count(*waiting), nodes(waiting_for)));
    }
    if !skipped.is_empty() {
        text.push_str(&format!("\nnot waited for; cut off at the end, and then to join again:\n{}", nodes(skipped)));
    }
    text
}

fn count(nodes: u64) -> String {
    if nodes == 1 { "1 node".to_owned() } else { format!("{nodes} nodes") }
}

fn nodes(nodes: &[RotationNode]) -> String {
    let rows: Vec<Value> = nodes
        .iter()
        .map(|node| {
            json!({
                "node_id": node.node_id,
                "name": node.name,
                "role": node.role.name(),
                "connected": node.connected,
                "state": words(node),
                "since": node.since,
            })
        })
        .collect();
    let columns = [
        ("NODE", "node_id"),
        ("NAME", "name"),
        ("ROLE", "role"),
        ("CONNECTED", "connected"),
        ("STATE", "state"),
        ("SINCE", "since"),
    ];
    table(&columns, &rows)
}

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(250);
/// Nodes that a line of progress names.
const NAMED: usize = 5;
/// What managers take for a certificate or key.
const MAX_PEM_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{NodeId, Role, Timestamp};

    fn certificate(digest: &str) -> RootCertificate {
        RootCertificate {
            digest: digest.to_owned(),
            issuer: "key".to_owned(),
            subject: "CN=swarm-ca\u{1b}[2J".to_owned(),
            not_before: Timestamp(0),
            not_after: Timestamp(86_400_000),
            certificate: "PEM".to_owned(),
        }
    }

    fn node(id: u128, standing: Standing, connected: Option<bool>) -> RotationNode {
        RotationNode {
            node_id: NodeId(id),
            name: format!("m{id}"),
            role: Role::Manager,
            standing,
            since: Timestamp(60_000),
            connected,
            error: if standing == Standing::Failed { "no\u{7}".to_owned() } else { String::new() },
            in_skip_list: false,
        }
    }

    fn rotation(waiting_for: Vec<RotationNode>, waiting: u64) -> RotationReport {
        let skipped = vec![node(9, Standing::Asked, Some(false))];
        let (root, started_at) = (certificate("NEW"), Timestamp(1000));
        RotationReport { root, started_at, total: 5, converged: 2, waiting, waiting_for, skipped }
    }

    #[test]
    fn progress_names_who_holds_it_up_and_since_when() {
        let waiting = vec![node(2, Standing::Asked, Some(false)), node(3, Standing::NotAsked, Some(true))];
        assert_eq!(
            progress(&rotation(waiting, 2)),
            "2 of 5 nodes have certificates of the new root; waiting for m2 (manager, not reachable, told to renew since \
             1970-01-01T00:01:00.000Z), m3 (manager, not told to renew yet)"
        );
        let many = (1..=9).map(|id| node(id, Standing::Signing, None)).collect();
        assert!(progress(&rotation(many, 120)).ends_with(", 115 more"));
        assert!(!progress(&rotation(Vec::new(), 0)).contains("waiting"));
    }

    #[test]
    fn what_is_shown_is_clean_and_says_who_must_join_again() {
        let waiting = vec![node(2, Standing::Failed, None)];
        let report = RootCaReport {
            digest: "OLD".to_owned(),
            roots: vec![certificate("OLD")],
            has_key: false,
            rotation: Some(rotation(waiting, 1)),
        };
        let text = shown(&report);
        assert!(
            text.starts_with("root      OLD\nsubject   CN=swarm-ca\u{FFFD}[2J\nvalid     from 1970-01-01"),
            "{text}"
        );
        for part in ["does not hold the key", "rotation  to NEW\n", "2 of 5", "waiting for 1 node:", "join again", "m9"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{text:?}");
        let quiet = shown(&RootCaReport { has_key: true, rotation: None, ..report });
        assert!(!quiet.contains("rotation") && !quiet.contains("warning"), "{quiet}");
    }
}
