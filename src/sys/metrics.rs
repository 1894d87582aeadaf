//! Counters, gauges and histograms, one registry per node, printed in Prometheus text format.
//!
//! A name is `skep_<subsystem>_<what>_<unit>`, with labels as `{queue="peers"}` in the name itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A number that only grows.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<Level>);

#[derive(Debug, Default)]
struct Level {
    value: AtomicU64,
    /// What the value cannot pass; zero when nobody has said.
    limit: AtomicU64,
}

impl Gauge {
    /// Notes what the value cannot pass.
    pub fn set_limit(&self, limit: u64) {
        self.0.limit.store(limit, Relaxed);
    }

    /// What the value cannot pass; zero when nobody has said.
    pub fn limit(&self) -> u64 {
        self.0.limit.load(Relaxed)
    }

    /// Sets the value.
    pub fn set(&self, value: u64) {
        self.0.value.store(value, Relaxed);
    }

    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        self.0.value.fetch_add(amount, Relaxed);
    }

    /// Takes `amount` away.
    pub fn sub(&self, amount: u64) {
        self.0.value.fetch_sub(amount, Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        // A queue's depth is raised by the sender and lowered by the receiver without a lock between them.
        let value = self.0.value.load(Relaxed);
        if value > u64::MAX / 2 { 0 } else { value }
    }
}

/// Durations in power-of-two buckets from 1 µs to about 17 s.
#[derive(Clone, Debug, Default)]
pub struct Histogram(Arc<Buckets>);

const BUCKETS: usize = 25;

#[derive(Debug, Default)]
struct Buckets {
    counts: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = (64 - us.leading_zeros() as usize).min(BUCKETS - 1);
        self.0.counts[bucket].fetch_add(1, Relaxed);
        self.0.sum_us.fetch_add(us, Relaxed);
    }

    /// Durations counted so far.
    pub fn count(&self) -> u64 {
        self.0.counts.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// The upper bound, in microseconds, of the bucket that holds the `fraction` quantile; zero when empty.
    pub fn quantile_us(&self, fraction: f64) -> u64 {
        let wanted = (self.count() as f64 * fraction).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.0.counts.iter().enumerate() {
            seen += count.load(Relaxed);
            if seen >= wanted && seen > 0 {
                return 1 << bucket;
            }
        }
        0
    }
}

#[derive(Clone, Debug)]
enum Metric {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
}

/// The metrics of one node. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Mutex<BTreeMap<String, Metric>>>);

impl Metrics {
    /// The counter of this name, made on first use.
    pub fn counter(&self, name: &str) -> Counter {
        match self.entry(name, || Metric::Counter(Counter::default())) {
            Metric::Counter(counter) => counter,
            _ => panic!("metric {name} is not a counter"),
        }
    }

    /// The gauge of this name, made on first use.
    pub fn gauge(&self, name: &str) -> Gauge {
        match self.entry(name, || Metric::Gauge(Gauge::default())) {
            Metric::Gauge(gauge) => gauge,
            _ => panic!("metric {name} is not a gauge"),
        }
    }

    /// The depth gauge of a queue.
    pub fn queue(&self, queue: &str) -> Gauge {
        self.gauge(&format!("skep_queue_depth{{queue=\"{queue}\"}}"))
    }

    /// Every queue: its name, what waits in it and what fits.
    pub fn queues(&self) -> Vec<(String, u64, u64)> {
        let depth = |(name, metric): (&String, &Metric)| match metric {
            Metric::Gauge(gauge) => {
                let queue = name.strip_prefix("skep_queue_depth{queue=\"")?.strip_suffix("\"}")?;
                Some((queue.to_owned(), gauge.get(), gauge.limit()))
            }
            _ => None,
        };
        self.lock().iter().filter_map(depth).collect()
    }

    /// The histogram of this name, made on first use.
    pub fn histogram(&self, name: &str) -> Histogram {
        match self.entry(name, || Metric::Histogram(Histogram::default())) {
            Metric::Histogram(histogram) => histogram,
            _ => panic!("metric {name} is not a histogram"),
        }
    }

    /// Removes a metric, such as the round trip of a peer that left.
    pub fn remove(&self, name: &str) {
        self.lock().remove(name);
    }

    /// All metrics in Prometheus text format, in order of name.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let mut last_family = String::new();
        for (name, metric) in self.lock().iter() {
            let family = name.split('{').next().unwrap_or(name);
            let kind = match metric {
                Metric::Counter(_) => "counter",
                Metric::Gauge(_) => "gauge",
                Metric::Histogram(_) => "histogram",
            };
            if family != last_family {
                let _ = writeln!(text, "# TYPE {family} {kind}");
                family.clone_into(&mut last_family);
            }
            match metric {
                Metric::Counter(counter) => {
                    let _ = writeln!(text, "{name} {}", counter.get());
                }
                Metric::Gauge(gauge) => {
                    let _ = writeln!(text, "{name} {}", gauge.get());
                }
                Metric::Histogram(histogram) => render_histogram(&mut text, name, histogram),
            }
        }
        text
    }

    fn entry(&self, name: &str, make: impl FnOnce() -> Metric) -> Metric {
        self.lock().entry(name.to_owned()).or_insert_with(make).clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Metric>> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

fn render_histogram(text: &mut String, name: &str, histogram: &Histogram) {
    let mut total = 0;
    for (bucket, count) in histogram.0.counts.iter().enumerate() {
        total += count.load(Relaxed);
        let bound = (1_u64 << bucket) as f64 / 1e6;
        let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {total}");
    }
    let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {total}");
    let _ = writeln!(text, "{name}_sum {}", histogram.0.sum_us.load(Relaxed) as f64 / 1e6);
    let _ = writeln!(text, "{name}_count {total}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_reports_the_bucket_bound_of_a_quantile() {
        let histogram = Histogram::default();
        for _ in 0..99 {
            histogram.record(Duration::from_micros(100));
        }
        histogram.record(Duration::from_millis(100));
        assert_eq!((histogram.quantile_us(0.5), histogram.quantile_us(1.0)), (128, 131_072));
    }

    #[test]
    fn labels_share_one_type_line() {
        let metrics = Metrics::default();
        metrics.queue("a").set(1);
        metrics.queue("b").set(2);
        let expected =
            "# TYPE skep_queue_depth gauge\nskep_queue_depth{queue=\"a\"} 1\nskep_queue_depth{queue=\"b\"} 2\n";
        assert_eq!(metrics.render(), expected);
    }
}
