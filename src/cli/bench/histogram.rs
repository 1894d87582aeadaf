//! Latencies in log-linear buckets, after HdrHistogram: each power of two is cut into 128 equal parts, so that a
//! reported value differs from the recorded one by less than 1 %, in 60 KiB whatever the number of values.

/// Parts of each power of two.
const PARTS: u64 = 128;
/// `PARTS` as a power of two.
const PARTS_LOG2: u32 = PARTS.trailing_zeros();
/// The first `2 * PARTS` values have buckets of their own, and each further power of two has `PARTS`.
const BUCKETS: usize = (64 - PARTS_LOG2 as usize) * PARTS as usize + PARTS as usize;

/// Counts of durations in microseconds.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max: 0 }
    }
}

impl Histogram {
    /// Counts one value.
    pub fn record(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.total += 1;
        self.max = self.max.max(value);
    }

    /// How many values were counted.
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// The largest value, exactly; zero without values.
    pub const fn max(&self) -> u64 {
        self.max
    }

    /// The smallest value that at least `fraction` of the values do not exceed, within 1 %; zero without values.
    pub fn quantile(&self, fraction: f64) -> u64 {
        let wanted = ((self.total as f64 * fraction).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return middle(bucket).min(self.max);
            }
        }
        0
    }

    /// Adds the counts of another one.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
    }
}

fn bucket(value: u64) -> usize {
    if value < 2 * PARTS {
        return value as usize;
    }
    let shift = value.ilog2() - PARTS_LOG2;
    (u64::from(shift) * PARTS + (value >> shift)) as usize
}

/// The middle of a bucket's values.
fn middle(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * PARTS {
        return bucket;
    }
    let shift = (bucket / PARTS - 1) as u32;
    let low = (bucket - u64::from(shift) * PARTS) << shift;
    low + ((1_u64 << shift) - 1) / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::entropy::{Entropy as _, SeededEntropy};

    #[test]
    fn every_value_comes_back_within_one_percent() {
        let mut random = SeededEntropy::new(7);
        let edges = (0..64).flat_map(|power| [1_u64 << power, (1 << power) - 1, (1 << power) + 1]);
        let values = (0..1000).chain(edges).chain((0..10_000).map(|_| random.next_u64() >> random.below(64)));
        for value in values.chain([u64::MAX]) {
            let shown = middle(bucket(value));
            assert!(shown.abs_diff(value) as f64 <= 0.01 * value as f64, "{value} shows as {shown}");
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn quantiles() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.quantile(0.5), histogram.max()), (0, 0));
        for value in 1..=100 {
            histogram.record(value);
        }
        assert_eq!((histogram.quantile(0.5), histogram.quantile(0.99), histogram.quantile(1.0)), (50, 99, 100));
        let mut sum = Histogram::default();
        sum.record(5000);
        sum.add(&histogram);
        assert_eq!((sum.total(), sum.max(), sum.quantile(0.0)), (101, 5000, 1));
    }
}
