//! Tracks which processes were started with other settings, and decides when that ends this one.
//!
//! What a connecting process says is only a claim: it may come from anybody, or from a process that
//! is just being stopped. An answer counts only if it comes from the address in the hostfile when
//! this process connects there, and only if it persists. A process that starts there in time with
//! the same settings clears the difference.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How long an address must keep answering with other settings.
const MIN_DURATION: Duration = Duration::from_secs(2);
/// How long this process goes on greeting after that, so that the others find out as well.
const GRACE_PERIOD: Duration = Duration::from_secs(2);

/// What is known about differing settings.
#[derive(Default)]
pub(super) struct Differing {
    claimed: BTreeSet<usize>,
    found: BTreeMap<usize, DifferingAnswer>,
    settled: Option<Instant>,
}

struct DifferingAnswer {
    what: String,
    first: Instant,
    last: Instant,
}

impl Differing {
    /// A connection claims to be `process`, and has other settings.
    pub fn claim(&mut self, process: usize) {
        self.claimed.insert(process);
    }

    /// Whether such a claim still has to be verified.
    pub fn is_claimed(&self, process: usize) -> bool {
        self.claimed.contains(&process)
    }

    /// The address of a process has answered with other settings.
    pub fn found(&mut self, process: usize, what: String, now: Instant) {
        let first = self.found.get(&process).map_or(now, |found| found.first);
        self.found.insert(process, DifferingAnswer { what, first, last: now });
    }

    /// The address of a process has answered with the same settings.
    pub fn agrees(&mut self, process: usize) {
        self.claimed.remove(&process);
        self.found.remove(&process);
    }

    /// What differs, once that is certain.
    pub fn settled(&mut self, now: Instant) -> Option<String> {
        let persists =
            |found: &DifferingAnswer| found.last.duration_since(found.first) >= MIN_DURATION;
        if !self.found.values().any(persists) {
            self.settled = None;
            return None;
        }
        let since = *self.settled.get_or_insert(now);
        let all: Vec<&str> = self.found.values().map(|found| found.what.as_str()).collect();
        (now.duration_since(since) >= GRACE_PERIOD).then(|| all.join(". "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_persists_at_an_address_is_settled_and_a_claim_is_nothing() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut differing = Differing::default();
        differing.claim(1);
        assert!(differing.is_claimed(1) && differing.settled(at(60_000)).is_none());
        differing.found(1, "1 differs".to_owned(), at(0));
        assert!(differing.settled(at(60_000)).is_none(), "it has answered once");
        differing.found(1, "1 differs".to_owned(), at(1_999));
        differing.found(2, "2 differs".to_owned(), at(1_999));
        assert!(differing.settled(at(1_999)).is_none());
        differing.found(1, "1 differs".to_owned(), at(2_000));
        assert!(differing.settled(at(2_000)).is_none(), "the others are to find out as well");
        assert_eq!(differing.settled(at(4_000)).as_deref(), Some("1 differs. 2 differs"));
    }

    #[test]
    fn a_process_that_returns_with_the_same_settings_clears_the_difference() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut differing = Differing::default();
        differing.claim(1);
        differing.found(1, "1 differs".to_owned(), at(0));
        differing.found(1, "1 differs".to_owned(), at(3_000));
        assert!(differing.settled(at(3_000)).is_none());
        differing.agrees(1);
        assert!(!differing.is_claimed(1) && differing.settled(at(9_000)).is_none());
        differing.found(1, "1 differs again".to_owned(), at(9_000));
        assert!(differing.settled(at(9_000)).is_none(), "it counts from the beginning");
    }
}
