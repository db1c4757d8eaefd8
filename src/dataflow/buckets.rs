//! A histogram that any thread may add to without waiting. It counts per batch, not per event.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// The upper bounds of the buckets, in seconds. They are fixed, because dashboards compare them
/// across versions.
pub const BOUNDS: [f64; 13] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// How many values were in each bucket, and their sum.
#[derive(Debug, Default)]
pub struct Buckets {
    counts: [AtomicU64; BOUNDS.len() + 1],
    sum_us: AtomicU64,
}

/// The buckets at one moment.
#[derive(Clone, PartialEq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct BucketCounts {
    /// One for each bound, and one for what is beyond the last.
    pub counts: [u64; BOUNDS.len() + 1],
    pub sum: f64,
}

impl Buckets {
    /// Adds a value in seconds.
    pub fn observe(&self, seconds: f64) {
        let at = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.counts[at].fetch_add(1, Relaxed);
        self.sum_us.fetch_add((seconds.max(0.0) * 1e6) as u64, Relaxed);
    }

    /// The counts so far.
    pub fn counted(&self) -> BucketCounts {
        let counts = std::array::from_fn(|at| self.counts[at].load(Relaxed));
        BucketCounts { counts, sum: self.sum_us.load(Relaxed) as f64 / 1e6 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let buckets = Buckets::default();
        for seconds in [0.0, 0.005, 0.006, 60.0, 61.0] {
            buckets.observe(seconds);
        }
        let counted = buckets.counted();
        assert_eq!((counted.counts[0], counted.counts[1]), (2, 1));
        assert_eq!(counted.counts[BOUNDS.len() - 1..], [1, 1]);
        assert!((counted.sum - 121.011).abs() < 1e-6, "{}", counted.sum);
    }
}
