//! `skep recover`: what a directory holds, the question, and the new swarm.

use serde_json::{Value, json};

use super::advertise;
use super::args::{Common, RecoverArgs};
use super::exit::{Ended, Exit};
use super::output::{Output, clean};
use super::question;
use super::session::data_dir;
use super::unlock;
use crate::node::recover::{Basis, Found, Recovered, Recovery};
use crate::types::MemberRole;

/// `skep recover`.
pub fn run(common: &Common, args: &RecoverArgs, out: &mut Output) -> Ended {
    if let Some(address) = &args.advertise {
        advertise::check("--advertise", address)?;
    }
    let dir = data_dir(common)?;
    let shown = dir.display().to_string();
    let unlock = unlock::given_or_asked(&args.unlock, &dir)?;
    let basis = if args.from_snapshot { Basis::Snapshot } else { Basis::Log };
    let recovery = Recovery::open(&dir, basis, unlock.as_ref())?;
    let found = recovery.found().clone();
    if !out.json {
        out.text(&describe(&found, &shown))?;
        out.flush()?;
    }
    if args.dry_run {
        if out.json {
            out.document(&report(&found, None))?;
        } else {
            out.line("dry run: nothing was changed")?;
        }
        return Ok(Exit::Done);
    }
    question::ask(&warning(&found, &shown), args.yes, std::io::stdin().lock())?;
    let recovered = recovery.carry_out(args.advertise.clone())?;
    if out.json {
        out.document(&report(&found, Some(&recovered)))?;
    } else {
        out.text(&next(&recovered, &shown, args.advertise.as_deref()))?;
    }
    Ok(Exit::Done)
}

fn others(found: &Found) -> Vec<String> {
    let others = found.members.iter().filter(|(member, _)| member.node_id != found.node_id);
    others
        .map(|(member, name)| {
            let name = if name.is_empty() { member.node_id.to_string() } else { clean(name) };
            format!("{name} at {}", clean(&member.addr))
        })
        .collect()
}

fn describe(found: &Found, dir: &str) -> String {
    let mut text = format!("{dir} holds manager {} of swarm {}\n", found.node_id, found.cluster_id);
    let taken = if found.from_snapshot { "snapshot  of index" } else { "log       up to index" };
    text.push_str(&format!("  {taken} {}, term {}; revision {}\n", found.last.index, found.last.term, found.revision));
    if let Some(end) = found.left_out {
        text.push_str(&format!(
            "            the log goes on to index {end} at least; what it holds after the snapshot, which may have been \
             acknowledged,\n            is left out\n"
        ));
    }
    if found.uncommitted > 0 {
        text.push_str(&format!(
            "            {} of these entries were not known to be committed; they are kept, because they may have been \
             acknowledged,\n            and what they wrote gets new versions\n",
            found.uncommitted
        ));
    }
    if found.unfinished {
        text.push_str("            an unfinished last write, of which nothing was acknowledged, is left out\n");
    }
    let objects: Vec<String> = found.objects.iter().map(|(kind, count)| format!("{count} {}", kind.name())).collect();
    text.push_str(&format!("  objects   {}\n", objects.join(", ")));
    let others = others(found);
    let dropped = if others.is_empty() { "nobody".to_owned() } else { others.join(", ") };
    text.push_str(&format!("  dropped   {dropped}\n"));
    text
}

fn warning(found: &Found, dir: &str) -> String {
    let others = others(found);
    let rest = if others.is_empty() {
        "It was the only one already; this still begins a new history.".to_owned()
    } else {
        format!(
            "Do this only when {} are gone for good: what they acknowledged and this one never received is lost, and if \
             they still run, there will be two swarms. Can they be started again? Then start them instead. Run `skep \
             recover --dry-run` on every directory that is left first, and take the one with the higher last term, then \
             the higher index: those that join anew lose what only they have.",
            others.join(" and ")
        )
    };
    let own = found.members.iter().find(|(member, _)| member.node_id == found.node_id);
    let learner = own.is_some_and(|(member, _)| member.role == MemberRole::Learner);
    let rest =
        if learner { format!("This manager is a learner: it may lack acknowledged changes. {rest}") } else { rest };
    let rest = if found.from_snapshot {
        format!("Changes that are in its log only are lost for ever; `skep wal repair` may save more of them. {rest}")
    } else {
        rest
    };
    format!("This makes the manager in {dir} a swarm of its own, with a new history. {rest}")
}

fn next(recovered: &Recovered, dir: &str, advertise: Option<&str>) -> String {
    let start = match advertise {
        Some(addr) => format!(
            "start this manager with the options it had, and `--advertise {}` (a service: in its unit): `skep run --data-dir \
             {dir} --advertise {}`",
            clean(addr),
            clean(addr)
        ),
        None => format!("start this manager with the options it always had: `skep run --data-dir {dir}`"),
    };
    format!(
        "This manager is a swarm of its own now: lineage {}, revision {}.\n\
         The old log is kept in {}; remove it when all is well.\n\
         Next:\n\
         1. {start}\n\
         2. on each other machine, before its manager is started again: move its data directory away\n\
         3. there, join anew: `skep run --join {} --token-file FILE`, with the token that `skep token show --role manager` \
         prints here; the tokens are the ones from before\n\
         4. the managers that are gone stay in `skep node ls` as down: `skep node rm NODE` removes them\n",
        recovered.lineage,
        recovered.revision,
        recovered.aside.display(),
        clean(&recovered.addr),
    )
}

fn report(found: &Found, recovered: Option<&Recovered>) -> Value {
    let members: Vec<Value> = found
        .members
        .iter()
        .map(|(member, name)| {
            json!({
                "node_id": member.node_id,
                "raft_id": member.raft_id,
                "name": name,
                "addr": member.addr,
                "dropped": member.node_id != found.node_id,
            })
        })
        .collect();
    let objects: serde_json::Map<String, Value> =
        found.objects.iter().map(|(kind, count)| (kind.name().to_owned(), json!(count))).collect();
    let new = recovered.map(|recovered| {
        json!({
            "lineage": recovered.lineage,
            "raft_id": recovered.raft_id,
            "addr": recovered.addr,
            "revision": recovered.revision,
            "old_log": recovered.aside.display().to_string(),
        })
    });
    json!({
        "node_id": found.node_id,
        "cluster_id": found.cluster_id,
        "lineage": found.lineage,
        "last_index": found.last.index,
        "last_term": found.last.term,
        "uncommitted": found.uncommitted,
        "unfinished_write": found.unfinished,
        "from_snapshot": found.from_snapshot,
        "left_out": found.left_out,
        "revision": found.revision,
        "members": members,
        "objects": objects,
        "recovered": new,
    })
}
