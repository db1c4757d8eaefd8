//! Live pacing: how many events are due.
//!
//! A token bucket over a clock that the caller reads. In any stretch of time, no more events come
//! due than the rate allows plus one second's worth, and a caller that asks at least once a second
//! gets exactly the rate. This module never sleeps and never reads a clock.

use std::time::Duration;

/// A token bucket that fills at `rate` and holds one second's worth, but at least two events.
#[derive(Clone, Debug)]
pub struct Pace {
    per_second: f64,
    capacity: f64,
    tokens: f64,
    filled_at: Duration,
}

impl Pace {
    /// A bucket for `per_second` events; the first event is due at once.
    ///
    /// # Panics
    /// Unless the rate is positive and finite: the command line has checked that.
    pub fn new(per_second: f64) -> Self {
        assert!(
            per_second > 0.0 && per_second.is_finite(),
            "a pace of {per_second} events a second is not positive and finite"
        );
        Pace {
            per_second,
            capacity: per_second.max(1.0) + 1.0,
            tokens: 1.0,
            filled_at: Duration::ZERO,
        }
    }

    /// Takes the events that are due at `elapsed` since the start, and returns how many: they are
    /// to be sent now. After a pause of more than a second, the time beyond is forgiven, so that a
    /// producer that was suspended does not flood. A clock that goes back counts as standing still.
    pub fn due(&mut self, elapsed: Duration) -> u64 {
        let passed = elapsed.saturating_sub(self.filled_at);
        self.filled_at = self.filled_at.max(elapsed);
        let full = self.tokens + passed.as_secs_f64() * self.per_second;
        self.tokens = full.min(self.capacity);
        let due = self.tokens.floor();
        self.tokens -= due;
        due as u64
    }

    /// How long after the last call of [`Self::due`] the next event comes due.
    pub fn wait(&self) -> Duration {
        let seconds = (1.0 - self.tokens).max(0.0) / self.per_second;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_steady_caller_gets_the_rate_however_often_it_asks() {
        for rate in [0.5, 1.0, 7.3, 1_000.0, 123_456.7] {
            for step_ms in [1, 3, 50, 999] {
                let mut pace = Pace::new(rate);
                let seconds = 600;
                let total: u64 =
                    (0..=seconds * 1000 / step_ms).map(|i| pace.due(ms(i * step_ms))).sum();
                let last = (seconds * 1000 / step_ms * step_ms) as f64 / 1000.0;
                let off = total as f64 - (1.0 + rate * last);
                assert!((-1.01..=0.01).contains(&off), "rate {rate}, step {step_ms}: off by {off}");
            }
        }
    }

    #[test]
    fn the_first_event_is_due_at_once_and_the_second_after_its_time() {
        let mut pace = Pace::new(10.0);
        let due: Vec<u64> = [0, 0, 99, 100, 100, 199, 201].map(|t| pace.due(ms(t))).to_vec();
        assert_eq!(due, [1, 0, 0, 1, 0, 0, 1]);
    }

    #[test]
    fn a_pause_is_forgiven_beyond_one_second() {
        let mut pace = Pace::new(100.0);
        pace.due(ms(0));
        assert_eq!(pace.due(ms(3_600_000)), 101);
        assert_eq!(pace.due(ms(3_600_010)), 1);
        // Two, not one: otherwise the remaining fraction of a slow event would be lost.
        let mut slow = Pace::new(0.1);
        slow.due(ms(0));
        assert_eq!(slow.due(ms(100_000)), 2);
    }

    #[test]
    fn a_clock_that_goes_back_stands_still() {
        let mut pace = Pace::new(10.0);
        assert_eq!(pace.due(ms(1_000)), 11);
        assert_eq!(pace.due(ms(500)), 0);
        assert_eq!(pace.due(ms(1_000)), 0);
        assert_eq!(pace.due(ms(1_101)), 1);
    }

    #[test]
    fn waiting_as_told_makes_exactly_one_event_due() {
        let mut pace = Pace::new(3.0);
        let mut now = Duration::ZERO;
        pace.due(now);
        for _ in 0..1_000 {
            now += pace.wait() + Duration::from_nanos(2);
            assert_eq!(pace.due(now), 1);
        }
        assert!((now.as_secs_f64() - 1_000.0 / 3.0).abs() < 0.001, "took {now:?}");
    }

    #[test]
    #[should_panic(expected = "a pace of 0 events a second")]
    fn a_pace_of_nothing_is_a_mistake_of_the_caller() {
        Pace::new(0.0);
    }
}
