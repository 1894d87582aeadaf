//! `skep wal`: a look at a log on disk, without a manager.
//!
//! Only headers and checksums are shown, so that the key in the data directory is not needed and no contents leak into
//! a terminal or a bug report.

use std::path::Path;

use serde_json::{Value, json};

use super::args::WalCommand;
use super::commands::Ended;
use super::exit::{Exit, Failure};
use super::output::{Output, Written};
use crate::sys::files::RealDisk;
use crate::types::Code;
use crate::wal::{Found, WalError, inspect};

/// `skep wal inspect`.
pub fn run(out: &mut Output, command: &WalCommand) -> Ended {
    let WalCommand::Inspect { dir } = command;
    let raft = dir.join("raft");
    let dir = if raft.is_dir() { &raft } else { dir };
    let found: Vec<Found> = inspect(&RealDisk, dir, None).map_err(|error| failed(dir, &error))?.collect();
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

/// Damage is what lies before a valid batch: a crash leaves nothing behind but an unfinished last write.
pub(super) fn verdict(found: &[Found]) -> Ended {
    let last_good = found.iter().rposition(|found| matches!(found, Found::Batch { .. })).unwrap_or(0);
    let problems = found.iter().enumerate().filter_map(|(place, found)| match found {
        Found::Problem { file, offset, what } => Some((place, file, offset, what)),
        _ => None,
    });
    for (place, file, offset, what) in problems {
        // Snapshots come after all segments, so that their place tells nothing.
        if place < last_good || file.starts_with("snap-") {
            return Err(Failure::damaged(format!("{file} is damaged at byte {offset}: {what}")).with_hint(
                "to take the data from the other managers again, move the data directory aside and join anew with \
                 `skep run --join`",
            ));
        }
    }
    Ok(Exit::Done)
}

fn failed(dir: &Path, error: &WalError) -> Failure {
    let failure = match error {
        WalError::Damaged { .. } => Failure::damaged(error.to_string()),
        WalError::Newer { .. } => Failure::refused(Code::FailedPrecondition, error.to_string()),
        _ => Failure::internal(error.to_string()),
    };
    failure.with_hint(error.hint()).while_attempting(|| format!("cannot read the log in {}", dir.display()))
}

/// A flat row; `type` is `segment`, `batch`, `end`, `snapshot` or `problem`.
fn row(found: &Found) -> Value {
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
        Found::Problem { file, offset, what } => {
            json!({ "type": "problem", "file": file, "offset": offset, "what": what })
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
            "{file}  index {}, term {}, {} bytes, {} voters, {} learners",
            meta.position.index,
            meta.position.term,
            meta.bytes,
            meta.configuration.voters.len(),
            meta.configuration.learners.len()
        ),
        Found::Problem { file, offset, what } => format!("  at {offset:>9}  problem in {file}: {what}"),
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

    fn problem(file: &str) -> Found {
        Found::Problem { file: file.to_owned(), offset: 1024, what: "torn".to_owned() }
    }

    #[test]
    fn a_problem_is_damage_unless_it_is_at_the_end_of_the_log() {
        assert_eq!(verdict(&[batch(), problem("wal-1")]), Ok(Exit::Done));
        for found in [[batch(), problem("wal-1"), batch()], [batch(), batch(), problem("snap-5")]] {
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
            run(&mut out, &WalCommand::Inspect { dir: dir.to_owned() }).map_err(|failure| failure.exit)
        };
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(check(dir.path()), Err(Exit::Refused));
        assert_eq!(check(&dir.path().join("missing")), Err(Exit::Internal));
    }
}
