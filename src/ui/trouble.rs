//! Counts failures of servers for the metrics, and decides how often the log repeats one that
//! lasts.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How many kinds are distinguished; further ones count as `other`.
const KINDS: usize = 64;

static COUNTS: Mutex<BTreeMap<(&'static str, String), u64>> = Mutex::new(BTreeMap::new());

/// Counts a failure: whose (`kafka`, `postgres`), and of which kind.
pub fn count(whose: &'static str, kind: &str) {
    let mut counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut key = (whose, kind.to_owned());
    if counts.len() >= KINDS && !counts.contains_key(&key) {
        key.1 = "other".to_owned();
    }
    *counts.entry(key).or_default() += 1;
}

/// All failures so far: whose, of which kind, how many.
pub fn counts() -> Vec<(String, String, u64)> {
    let counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    counts.iter().map(|((whose, kind), n)| ((*whose).to_owned(), kind.clone(), *n)).collect()
}

/// When the log repeats a failure that lasts: after these times from its beginning, and then after
/// each further multiple of the last one.
const REPEATS: [Duration; 3] =
    [Duration::from_secs(10), Duration::from_secs(60), Duration::from_secs(600)];

/// A failure that lasts: when to log it again, and how often it has happened.
#[derive(Clone, Debug, Default)]
pub struct RepeatedFailure {
    times: u64,
    reports: u32,
}

impl RepeatedFailure {
    /// Notes that it has happened (again), this long after the first time. Returns how often it has
    /// happened if it is time to log it: the first time, and then less and less often.
    pub fn record(&mut self, lasts: Duration) -> Option<u64> {
        self.times += 1;
        (lasts >= self.due()).then(|| {
            self.reports += 1;
            // Skipped times are not made up for.
            while self.due() <= lasts {
                self.reports += 1;
            }
            self.times
        })
    }

    fn due(&self) -> Duration {
        match self.reports {
            0 => Duration::ZERO,
            reports if reports as usize <= REPEATS.len() => REPEATS[reports as usize - 1],
            reports => REPEATS[REPEATS.len() - 1] * (reports - REPEATS.len() as u32 + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lasting_failure_is_reported_less_and_less_often_with_a_count() {
        let mut repeated = RepeatedFailure::default();
        let reports: Vec<(u64, u64)> = (0..3_000)
            .filter_map(|second| Some((second, repeated.record(Duration::from_secs(second))?)))
            .collect();
        let want = [(0, 1), (10, 11), (60, 61), (600, 601), (1_200, 1_201), (1_800, 1_801)];
        assert_eq!(reports[..6], want);
    }

    #[test]
    fn what_was_missed_is_not_made_up_for() {
        let mut repeated = RepeatedFailure::default();
        assert_eq!(repeated.record(Duration::ZERO), Some(1));
        assert_eq!(repeated.record(Duration::from_secs(700)), Some(2));
        assert_eq!(repeated.record(Duration::from_secs(701)), None);
    }

    #[test]
    fn kinds_without_end_become_one() {
        for n in 0..KINDS + 10 {
            count("test", &n.to_string());
        }
        let counts = counts();
        let other = counts.iter().find(|(_, kind, _)| kind == "other");
        assert!(counts.len() <= KINDS + 1 && other.is_some_and(|(_, _, n)| *n >= 10));
    }
}
