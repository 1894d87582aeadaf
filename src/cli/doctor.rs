//! `skep doctor`: looks at a manager from all sides, says what is well and what is not, and what to do about it.
//!
//! [`facts`] collects, from the running manager as far as it answers, from its process, and from its directory, which is
//! only read; nothing needs a leader, a majority or even a manager. [`checks`] judges, from the facts alone. A new check
//! is one row of its table.

mod checks;
pub mod facts;

pub use checks::{Finding, Severity, examine};
use serde_json::{Value, json};

use super::args::Common;
use super::exit::{Ended, Exit};
use super::output::{Output, Written, clean};

/// `skep doctor`.
pub fn run(common: &Common, out: &mut Output) -> Ended {
    let findings = examine(&facts::collect(common)?);
    if out.json {
        out.document(&rows(&findings))?;
    } else {
        for line in lines(&findings) {
            if let Written::Closed = out.line(&line)? {
                break;
            }
        }
    }
    Ok(exit(&findings))
}

/// One flat row for each finding.
pub fn rows(findings: &[Finding]) -> Value {
    let row = |finding: &Finding| {
        json!({
            "check": finding.check,
            "level": finding.severity.name(),
            "what": finding.text,
            "todo": finding.hint,
        })
    };
    findings.iter().map(row).collect()
}

/// `ok|warn|FAIL  check  what  — what to do`.
pub fn lines(findings: &[Finding]) -> Vec<String> {
    let line = |finding: &Finding| {
        let level = match finding.severity {
            Severity::Ok => "ok",
            Severity::Warn => "warn",
            Severity::Fail | Severity::Damage => "FAIL",
        };
        let mut line = format!("{level:<5} {:<12} {}", finding.check, clean(&finding.text));
        if !finding.hint.is_empty() {
            line.push_str(&format!("  — {}", clean(&finding.hint)));
        }
        line
    };
    findings.iter().map(line).collect()
}

/// 0 when nothing fails, whatever there is to warn of; 5 when data is damaged; 4 when something else fails.
pub fn exit(findings: &[Finding]) -> Exit {
    match findings.iter().map(|finding| finding.severity).max() {
        Some(Severity::Damage) => Exit::Damaged,
        Some(Severity::Fail) => Exit::Unavailable,
        _ => Exit::Done,
    }
}
