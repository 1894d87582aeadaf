//! `skep bench`: many clients in one event loop, and what they measured.
//!
//! A client is one connection with one request outstanding, an operation is one answer to it. Nothing is retried: a
//! refusal is an error and counts as one. With `--rate` operations begin at even distances instead of one after the other:
//! what a swarm does under a load that it does not slow down. The driver shares the machine with the managers that it measures, so it is
//! one thread that spends its time in the kernel; threads per client would measure the scheduler.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::args::{BenchArgs, BenchCommand, Common, WatchBenchArgs, WriteBenchArgs};
use super::exit::{Exit, Failure};
use super::output::{Output, table};
use super::session::{data_dir, unexpected};
use crate::client::Client;
use crate::sys::entropy::{Entropy as _, OsEntropy};
use crate::types::api::{Answer, Write};
use crate::types::{Kind, ObjectId};

mod connection;
mod counters;
mod driver;
mod histogram;

use counters::Look;
use histogram::Histogram;

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Write,
    Read,
    Mixed,
    Watch,
}

/// A benchmark, ready to run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub work: Work,
    /// Clients are spread over these in turn.
    pub sockets: Vec<PathBuf>,
    pub clients: usize,
    /// Watchers besides that want every change, of all kinds.
    pub unfiltered: usize,
    /// Clients besides that write while others watch.
    pub writers: usize,
    /// A change belongs to one of so many groups, and a client that watches wants those of one.
    pub groups: u64,
    /// Operations in all.
    pub total: u64,
    /// Operations begun in a second; `None` for one as soon as the one before is answered.
    pub rate: Option<u64>,
    /// Bytes of each resource.
    pub size: usize,
    /// Reads may be answered from the local store.
    pub stale: bool,
    /// How long an answer may take.
    pub timeout: Duration,
    /// The extension, new for this run.
    pub extension: String,
    /// What is read.
    pub object: Option<ObjectId>,
    /// What is written over, in turn; a write creates a resource if there is nothing here.
    pub overwrite: Vec<ObjectId>,
    /// Show how far it is.
    pub progress: bool,
}

impl Plan {
    fn watchers(&self) -> usize {
        self.clients + self.unfiltered
    }

    /// What the name of a resource of this group begins with.
    fn prefix(&self, group: u64) -> String {
        format!("{}-{group}-", self.extension)
    }

    /// Writes for so many deliveries: one reaches a part of the clients, and every unfiltered watcher.
    fn writes(&self) -> u64 {
        let reached = self.clients as u64 + self.unfiltered as u64 * self.groups;
        (self.total * self.groups).div_ceil(reached.max(1))
    }
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    pub writes: Histogram,
    pub reads: Histogram,
    pub deliveries: Histogram,
    pub errors: u64,
    /// The first error's text.
    pub first_error: Option<String>,
    pub elapsed: Duration,
}

impl Measured {
    /// What operations are counted in.
    fn operations(&self, work: Work) -> Histogram {
        match work {
            Work::Write => self.writes.clone(),
            Work::Read => self.reads.clone(),
            Work::Watch => self.deliveries.clone(),
            Work::Mixed => {
                let mut both = self.writes.clone();
                both.add(&self.reads);
                both
            }
        }
    }
}

/// `skep bench`.
pub fn run(common: &Common, command: &BenchCommand, out: &mut Output) -> Result<Exit, Failure> {
    let (creates, everything) = (WriteBenchArgs::default(), WatchBenchArgs::default());
    let (work, args, write, watch) = match command {
        BenchCommand::Write { bench, write } => (Work::Write, bench, write, &everything),
        BenchCommand::Read(bench) => (Work::Read, bench, &creates, &everything),
        BenchCommand::Mixed { bench, write } => (Work::Mixed, bench, write, &everything),
        BenchCommand::Watch { bench, watch } => (Work::Watch, bench, &creates, watch),
    };
    let plan = prepare(common, work, args, write, watch)?;
    let look = || plan.sockets.iter().map(|socket| Look::take(socket, plan.timeout)).collect::<Result<Vec<_>, _>>();
    let before = look()?;
    let measured = driver::drive(&plan)?;
    // A manager that went away during the run is no reason to keep back what was measured.
    let after = look().unwrap_or_default();
    let operations = measured.operations(work).total();
    let costs =
        after.iter().zip(&before).filter_map(|(after, before)| after.per_operation(before, operations)).collect();
    report(&plan, &measured, costs, out)?;
    if let Some(error) = &measured.first_error {
        eprintln!("skep: {} of {} operations failed, the first with: {error}", measured.errors, plan.total);
    }
    Ok(if measured.operations(work).total() == 0 { Exit::Unavailable } else { Exit::Done })
}

/// Makes what the benchmark needs: an extension of its own, an object to read, and those to write over.
fn prepare(
    common: &Common,
    work: Work,
    args: &BenchArgs,
    write: &WriteBenchArgs,
    watch: &WatchBenchArgs,
) -> Result<Plan, Failure> {
    let sockets = match common.socket.as_slice() {
        [] => vec![data_dir(common)?.join("skep.sock")],
        sockets => sockets.to_vec(),
    };
    let mut client = Client::local(&sockets[0], common.timeout)?;
    let extension = format!("bench-{:08x}", OsEntropy.next_u64() as u32);
    let size = usize::try_from(args.size).map_err(|_| Failure::usage("--size is too large"))?;
    let mut make = |write| -> Result<ObjectId, Failure> {
        let attempted = || "cannot prepare the benchmark".to_owned();
        let written =
            client.write(write, common.timeout).map_err(|error| Failure::from(error).while_attempting(attempted))?;
        Ok(written.id)
    };
    make(Write::CreateExtension {
        name: extension.clone(),
        description: "made by skep bench".to_owned(),
        labels: Default::default(),
    })?;
    let resource = |name| Write::CreateResource {
        name,
        kind: extension.clone(),
        labels: Default::default(),
        indices: Default::default(),
        payload: vec![b'x'; size],
    };
    let mut object = None;
    if matches!(work, Work::Read | Work::Mixed) {
        let id = make(resource(format!("{extension}-object")))?;
        // Every manager that is going to be asked has it, so that a stale read finds it too.
        for socket in &sockets {
            let mut client = Client::local(socket, common.timeout)?;
            let what = crate::types::api::QueryKind::Inspect(Kind::Resource, id.to_string());
            match client.query(what, false, common.timeout)? {
                Answer::Object(_) => {}
                _ => return Err(unexpected()),
            }
        }
        object = Some(id);
    }
    let overwrite = (0..write.overwrite.unwrap_or(0))
        .map(|number| make(resource(format!("{extension}-over-{number}"))))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Plan {
        work,
        sockets,
        clients: args.clients as usize,
        unfiltered: watch.unfiltered as usize,
        writers: watch.writers as usize,
        groups: u64::from(watch.one_in),
        total: args.total,
        rate: args.rate,
        size,
        stale: common.stale,
        timeout: common.timeout,
        extension,
        object,
        overwrite,
        progress: !common.json && std::io::stderr().is_terminal(),
    })
}

/// `costs` are the counters of the managers asked, per operation.
fn report(plan: &Plan, measured: &Measured, costs: Vec<Value>, out: &mut Output) -> Result<(), Failure> {
    let all = figures(&measured.operations(plan.work), measured.elapsed);
    if out.json {
        let mut value = all;
        value["errors"] = measured.errors.into();
        value["clients"] = plan.clients.into();
        value["size"] = plan.size.into();
        value["rate"] = plan.rate.into();
        value["overwrite"] = plan.overwrite.len().into();
        value["elapsed_ms"] = json!(u64::try_from(measured.elapsed.as_millis()).unwrap_or(u64::MAX));
        if plan.work == Work::Mixed {
            value["write"] = figures(&measured.writes, measured.elapsed);
            value["read"] = figures(&measured.reads, measured.elapsed);
        }
        if plan.work == Work::Watch {
            value["unfiltered"] = plan.unfiltered.into();
            value["writers"] = plan.writers.into();
            value["one_in"] = plan.groups.into();
            value["write"] = figures(&measured.writes, measured.elapsed);
        }
        value["managers"] = costs.into();
        out.document(&value)?;
        return Ok(());
    }
    let mut rows = Vec::new();
    let mut add = |name: &str, histogram: &Histogram| {
        let mut row = figures(histogram, measured.elapsed);
        row["what"] = name.into();
        rows.push(row);
    };
    match plan.work {
        Work::Write => add("write", &measured.writes),
        Work::Read => add("read", &measured.reads),
        Work::Mixed => {
            add("write", &measured.writes);
            add("read", &measured.reads);
        }
        Work::Watch => {
            add("write", &measured.writes);
            add("delivery", &measured.deliveries);
        }
    }
    let columns = [
        ("", "what"),
        ("OPS", "ops"),
        ("OPS/S", "ops_per_s"),
        ("P50 US", "p50_us"),
        ("P90 US", "p90_us"),
        ("P99 US", "p99_us"),
        ("P99.9 US", "p999_us"),
        ("MAX US", "max_us"),
    ];
    out.text(&table(&columns, &rows))?;
    if !costs.is_empty() {
        let columns = [
            ("MANAGER", "node_id"),
            ("CPU US/OP", "cpu_us"),
            ("SYNCS/OP", "syncs"),
            ("SLEEPS/OP", "sleeps"),
            ("PREEMPTIONS/OP", "preemptions"),
            ("FRAMES/OP", "frames_sent"),
            ("SOCKET CALLS/OP", "socket_calls"),
            ("LOG BYTES/OP", "log_bytes"),
        ];
        out.text(&table(&columns, &costs))?;
    }
    let rate = plan.rate.map_or(String::new(), |rate| format!(", {rate} asked for in a second"));
    out.line(&format!(
        "{} clients{rate}, {} bytes, {} errors, {:.2} s",
        plan.clients,
        plan.size,
        measured.errors,
        measured.elapsed.as_secs_f64()
    ))?;
    Ok(())
}

fn figures(histogram: &Histogram, elapsed: Duration) -> Value {
    let seconds = elapsed.as_secs_f64();
    let rate = if seconds > 0.0 { histogram.total() as f64 / seconds } else { 0.0 };
    json!({
        "ops": histogram.total(),
        "ops_per_s": rate.round() as u64,
        "p50_us": histogram.quantile(0.5),
        "p90_us": histogram.quantile(0.9),
        "p99_us": histogram.quantile(0.99),
        "p999_us": histogram.quantile(0.999),
        "max_us": histogram.max(),
    })
}

#[cfg(test)]
mod tests;
