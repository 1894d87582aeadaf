//! `skep wal`: a look at a log on disk, without a manager, and its repair.
//!
//! Only headers and checksums are shown, so that no contents leak into a terminal or a bug report. The key, where it is at
//! hand, is used to check what the headers do not tell.

use std::path::Path;

use serde_json::{Value, json};

use super::args::{UnlockArgs, WalCommand};
use super::exit::{Ended, Exit, Failure};
use super::output::{Output, Written};
use super::{question, unlock};
use crate::node::repair::{self, Repair};
use crate::sys::files::RealDisk;
use crate::types::Code;
use crate::wal::repair::{CutOff, Plan};
use crate::wal::{Found, WalError, inspect};

/// `skep wal`.
pub fn run(out: &mut Output, command: &WalCommand) -> Ended {
    match command {
        WalCommand::Inspect { dir, unlock } => look(out, dir, unlock),
        WalCommand::Repair { dir, yes, dry_run, unlock } => mend(out, dir, *yes, *dry_run, unlock),
    }
}

fn look(out: &mut Output, dir: &Path, args: &UnlockArgs) -> Ended {
    let raft = dir.join("raft");
    // A key that cannot be read is a finding of whoever starts from it; the headers can be looked at.
    let around = if raft.is_dir() { dir } else { dir.parent().unwrap_or(dir) };
    // Nobody is asked: whoever gives no unlock key sees the headers.
    let unlock = if crate::node::is_locked(around) { unlock::given(args)? } else { None };
    let keys = repair::data_keys(around, unlock.as_ref()).ok().flatten();
    let dir = if raft.is_dir() { &raft } else { dir };
    let found: Vec<Found> = inspect(&RealDisk, dir, keys.as_ref()).map_err(|error| failed(dir, &error))?.collect();
    if found.is_empty() {
        return Err(Failure::refused(Code::NotFound, format!("{} holds no log", dir.display()))
            .with_hint("name a manager's data directory, such as /var/lib/skep"));
    }
    if out.json {
        out.document(&found.iter().map(row).collect())?;
    } else {
        for found in &found {
            if let Written::Closed = out.line(&line(found))? {
                break;
            }
        }
    }
    verdict(&found)
}

/// `skep wal repair`.
fn mend(out: &mut Output, dir: &Path, yes: bool, dry_run: bool, args: &UnlockArgs) -> Ended {
    let unlock = unlock::given_or_asked(args, dir)?;
    let Some(repair) = Repair::plan(dir, unlock.as_ref())? else {
        let said = format!("the log in {} is not damaged: there is nothing to repair", dir.display());
        report(out, json!({ "damaged": false, "repaired": false }), &said)?;
        return Ok(Exit::Done);
    };
    let plan = repair.what().clone();
    let shown = shown(&plan);
    if dry_run {
        report(out, plan_row(&plan, false), &format!("{shown}\nnothing was changed"))?;
        return Ok(Exit::Damaged);
    }
    let question = if plan.covered {
        format!("{shown}\nNothing is lost by it, and this manager goes on as the member it is.")
    } else {
        format!(
            "{shown}\n\
             What is cut off may have been acknowledged to clients: those changes are lost for ever.\n\
             If a majority of the other managers is alive, do not do this: move the data directory aside and join anew \
             with `skep run --join` and another address or port in --listen and --advertise, and nothing is lost.\n\
             After it this manager never takes part in its swarm again; its data is good for a swarm of its own."
        )
    };
    question::ask(&question, yes, std::io::stdin().lock())
        .map_err(|failure| failure.while_attempting(|| format!("cannot repair the log in {}", dir.display())))?;
    repair.carry_out()?;
    let dir = dir.display();
    let next = if plan.covered {
        format!("start the manager with `skep run --data-dir {dir}`")
    } else {
        format!("make it a swarm of its own with `skep recover --data-dir {dir}`")
    };
    let said = format!("the log in {dir} was cut off; what was cut is in raft/lost+found\nNext: {next}");
    report(out, plan_row(&plan, true), &said)?;
    Ok(Exit::Done)
}

fn report(out: &mut Output, value: Value, text: &str) -> Result<(), Failure> {
    if out.json { out.document(&value) } else { out.line(text) }.map(|_| ())
}

fn shown(plan: &Plan) -> String {
    let mut text = format!("{} is damaged at byte {}: {}\n", plan.file, plan.offset, plan.what);
    for cut in &plan.cuts {
        let part = if cut.from == 0 { "all".to_owned() } else { format!("from byte {} on", cut.from) };
        text.push_str(&format!("  cut off: {}, {part}, {} bytes\n", cut.file, cut.bytes));
    }
    if plan.cuts.is_empty() {
        text.push_str("  what is missing stays missing: the log goes on without it\n");
    }
    text.push_str(&match plan.last.0 {
        last if plan.covered => {
            format!(
                "  what stays: snapshot {}, which holds all that is cut off, and entries up to {last}",
                plan.snapshot
            )
        }
        0 => "  what stays: no entries; a snapshot that is whole is still good for `skep recover`".to_owned(),
        last => format!("  what stays: entries up to {last}, snapshot {}", plan.snapshot),
    });
    text
}

fn plan_row(plan: &Plan, repaired: bool) -> Value {
    let cut = |cut: &CutOff| json!({ "file": cut.file, "from": cut.from, "bytes": cut.bytes });
    json!({
        "damaged": true,
        "repaired": repaired,
        "file": plan.file,
        "offset": plan.offset,
        "what": plan.what,
        "cuts": plan.cuts.iter().map(cut).collect::<Vec<_>>(),
        "covered": plan.covered,
        "last": plan.last,
        "snapshot": plan.snapshot,
    })
}

/// A problem is damage unless a crash may have left it.
pub(super) fn verdict(found: &[Found]) -> Ended {
    let damage = found.iter().find_map(|found| match found {
        Found::Problem { file, offset, what, harmless: false } => Some((file, offset, what)),
        _ => None,
    });
    let Some((file, offset, what)) = damage else { return Ok(Exit::Done) };
    Err(Failure::damaged(format!("{file} is damaged at byte {offset}: {what}")).with_hint(
        "to take the data from the other managers again, move the data directory aside and join anew with \
         `skep run --join`",
    ))
}

pub(super) fn failed(dir: &Path, error: &WalError) -> Failure {
    let failure = match error {
        WalError::Damaged { .. } => Failure::damaged(error.to_string()),
        WalError::Newer { .. } | WalError::WrongKey { .. } | WalError::ForeignLineage { .. } => {
            Failure::refused(Code::FailedPrecondition, error.to_string())
        }
        _ => Failure::internal(error.to_string()),
    };
    failure.with_hint(error.hint()).while_attempting(|| format!("cannot read the log in {}", dir.display()))
}

/// A flat row; `type` is `segment`, `batch`, `end`, `snapshot` or `problem`.
pub(super) fn row(found: &Found) -> Value {
    match found {
        Found::Segment { file, header } => json!({
            "type": "segment",
            "file": file,
            "sequence": header.sequence,
            "lineage": header.lineage,
            "key_id": format!("{:016x}", header.key_id),
            "epoch": format!("{:016x}", header.epoch),
            "bytes": header.bytes,
            "first_batch": header.first_number,
            "term": header.hard_state.term,
            "commit": header.hard_state.commit,
            "snapshot": header.snapshot.index,
            "last": header.last.index,
        }),
        Found::Batch { file, offset, header, .. } => json!({
            "type": "batch",
            "file": file,
            "offset": offset,
            "number": header.number,
            "first": (header.entries > 0).then_some(header.first),
            "entries": header.entries,
            "bytes": header.length,
        }),
        Found::End { file, offset } => json!({ "type": "end", "file": file, "offset": offset }),
        Found::Snapshot { file, meta, lineage, key_id } => json!({
            "type": "snapshot",
            "file": file,
            "index": meta.position.index,
            "term": meta.position.term,
            "bytes": meta.bytes,
            "voters": meta.configuration.voters,
            "learners": meta.configuration.learners,
            "lineage": lineage,
            "key_id": format!("{key_id:016x}"),
        }),
        Found::Problem { file, offset, what, harmless } => {
            json!({ "type": "problem", "file": file, "offset": offset, "what": what, "harmless": harmless })
        }
    }
}

fn line(found: &Found) -> String {
    match found {
        Found::Segment { file, header } => format!(
            "{file}  {} bytes, lineage {}, term {}, commit {}, last entry {}, snapshot {}",
            header.bytes,
            header.lineage,
            header.hard_state.term,
            header.hard_state.commit,
            header.last.index,
            header.snapshot.index
        ),
        Found::Batch { offset, header, .. } => {
            let entries = match header.entries {
                0 => "no entries".to_owned(),
                1 => format!("entry {}", header.first),
                count => format!("entries {} to {}", header.first, header.first + u64::from(count) - 1),
            };
            format!("  at {offset:>9}  batch {}, {} bytes, {entries}", header.number, header.length)
        }
        Found::End { offset, .. } => format!("  at {offset:>9}  end"),
        Found::Snapshot { file, meta, .. } => format!(
            "{file}  index {}, term {}, {} bytes, voters {}, learners {}",
            meta.position.index,
            meta.position.term,
            meta.bytes,
            meta.configuration.voters.len(),
            meta.configuration.learners.len()
        ),
        Found::Problem { file, offset, what, harmless: true } => {
            format!("  at {offset:>9}  an unfinished write in {file}, which the next start cuts off: {what}")
        }
        Found::Problem { file, offset, what, harmless: false } => {
            format!("  at {offset:>9}  problem in {file}: {what}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::BatchHeader;

    fn batch() -> Found {
        let header = BatchHeader { length: 1, epoch: 1, number: 1, first: 7, entries: 3, previous: 0, payload_crc: 0 };
        Found::Batch { file: "wal-1".to_owned(), offset: 512, header, records: None }
    }

    fn problem(harmless: bool) -> Found {
        Found::Problem { file: "wal-1".to_owned(), offset: 1024, what: "torn".to_owned(), harmless }
    }

    #[test]
    fn a_problem_is_damage_unless_a_crash_may_have_left_it() {
        assert_eq!(verdict(&[batch(), problem(true)]), Ok(Exit::Done));
        for found in [[problem(false), batch()], [batch(), problem(false)]] {
            assert_eq!(verdict(&found).map_err(|failure| failure.exit), Err(Exit::Damaged));
        }
    }

    #[test]
    fn a_batch_is_one_line_and_one_row() {
        assert_eq!(line(&batch()), "  at       512  batch 1, 1 bytes, entries 7 to 9");
        assert_eq!(
            row(&batch()).to_string(),
            r#"{"bytes":1,"entries":3,"file":"wal-1","first":7,"number":1,"offset":512,"type":"batch"}"#
        );
    }

    #[test]
    fn a_directory_without_a_log_is_told_from_one_that_is_missing() {
        let check = |dir: &Path| {
            let mut out = Output::new(Box::new(std::io::sink()), false);
            run(&mut out, &WalCommand::Inspect { dir: dir.to_owned(), unlock: UnlockArgs::default() })
                .map_err(|failure| failure.exit)
        };
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(check(dir.path()), Err(Exit::Refused));
        assert_eq!(check(&dir.path().join("missing")), Err(Exit::Internal));
    }
}
