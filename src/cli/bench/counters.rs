//! What the managers that are asked spend on one operation: the difference of two looks at each.
//!
//! A look is a manager's own counters and what the kernel keeps of its process under `/proc`, as far as the caller may
//! read it. Managers that are not named by a `--socket` work too and are not seen here.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::cli::exit::Failure;
use crate::client::Client;
use crate::types::api::{Answer, Call, Diagnosis};

/// One manager at one moment: ever growing numbers by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    node: String,
    numbers: BTreeMap<&'static str, u64>,
}

impl Look {
    /// Asks the manager behind `socket`, leader or not.
    pub fn take(socket: &Path, timeout: Duration) -> Result<Self, Failure> {
        match Client::local(socket, timeout)?.call(Call::Diagnose, &(), timeout)? {
            Answer::Diagnosis(diagnosis) => Ok(Self::of(&diagnosis)),
            _ => Err(crate::cli::session::unexpected()),
        }
    }

    fn of(diagnosis: &Diagnosis) -> Self {
        let mut numbers = BTreeMap::new();
        for (name, metric) in METRICS {
            numbers.insert(name, metric_sum(&diagnosis.metrics, metric));
        }
        if let Some(process) = process(diagnosis.pid) {
            numbers.extend(process);
        }
        Self { node: diagnosis.node_id.to_string(), numbers }
    }

    /// What was spent per operation since `before`; nothing for a manager that was started anew in between.
    pub fn per_operation(&self, before: &Self, operations: u64) -> Option<Value> {
        if self.node != before.node || operations == 0 {
            return None;
        }
        let mut row = Map::from_iter([("node_id".to_owned(), json!(self.node))]);
        for (name, now) in &self.numbers {
            let spent = now.checked_sub(*before.numbers.get(name)?)?;
            let per_operation = (spent as f64 / operations as f64 * 1000.0).round() / 1000.0;
            row.insert((*name).to_owned(), json!(per_operation));
        }
        Some(Value::Object(row))
    }
}

/// Names in the output, and the metrics they are made of.
const METRICS: [(&str, &str); 6] = [
    ("syncs", "skep_wal_syncs_total"),
    ("log_bytes", "skep_wal_bytes_total"),
    ("apply_batches", "skep_apply_batch_seconds_count"),
    ("frames_sent", "skep_net_sent_frames_total"),
    ("socket_calls", "skep_net_system_calls_total"),
    ("bytes_sent", "skep_net_sent_bytes_total"),
];

/// The sum of a metric's lines, whatever their labels.
fn metric_sum(text: &str, metric: &str) -> u64 {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(metric)?;
        let value = rest.rsplit(' ').next()?;
        (rest.starts_with(' ') || rest.starts_with('{')).then(|| value.parse::<u64>().ok())?
    });
    values.sum()
}

/// Processor time and context switches of a process, all its threads together; `None` where the kernel does not tell.
fn process(pid: u32) -> Option<BTreeMap<&'static str, u64>> {
    let mut numbers = BTreeMap::from([("cpu_us", 0), ("sleeps", 0), ("preemptions", 0)]);
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let task = task.ok()?.path();
        // A thread may end while this looks.
        let (Ok(status), Ok(schedule)) =
            (std::fs::read_to_string(task.join("status")), std::fs::read_to_string(task.join("schedstat")))
        else {
            continue;
        };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        // Nanoseconds on a processor come first (proc(5), schedstat).
        let nanoseconds = schedule.split(' ').next().and_then(|first| first.parse::<u64>().ok()).unwrap_or(0);
        *numbers.entry("cpu_us").or_default() += nanoseconds / 1000;
        *numbers.entry("sleeps").or_default() += field("voluntary_ctxt_switches:");
        *numbers.entry("preemptions").or_default() += field("nonvoluntary_ctxt_switches:");
    }
    Some(numbers)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels_and_not_mistaken_for_a_longer_name() {
        let text = "# TYPE a_total counter\na_total{x=\"1\"} 3\na_total{x=\"2\"} 4\na_total_more 9\na 1\n";
        assert_eq!(metric_sum(text, "a_total"), 7);
        assert_eq!(metric_sum(text, "a"), 1);
        assert_eq!(metric_sum(text, "absent"), 0);
    }

    #[test]
    fn this_process_has_used_some_of_a_processor() {
        let numbers = process(std::process::id()).unwrap();
        assert!(numbers["cpu_us"] > 0 && numbers.contains_key("sleeps"));
        assert_eq!(process(u32::MAX), None);
    }

    #[test]
    fn what_was_spent_is_shown_per_operation_and_not_across_a_restart() {
        let look = |syncs| Look { node: "n".into(), numbers: BTreeMap::from([("syncs", syncs)]) };
        assert_eq!(look(30).per_operation(&look(10), 40).unwrap()["syncs"], 0.5);
        assert_eq!(look(3).per_operation(&look(10), 40), None);
        assert_eq!(look(30).per_operation(&look(10), 0), None);
    }
}
