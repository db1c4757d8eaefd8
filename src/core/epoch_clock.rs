//! The clock of the epochs, and how far it is from the wall clock. Pure: the caller passes the
//! time.
//!
//! Epochs look like wall-clock times but do not depend on the wall clock. A run begins at the wall
//! clock of process 0, or after the last bound epoch if that is later. From there on epochs follow
//! elapsed time, a clock that nobody sets. So a step of the wall clock, of any size and in either
//! direction, neither stops epochs nor makes them race, and durations between epochs (idle
//! timeouts, the watermark of a silent topic) are true durations.
//!
//! During a run epochs do not follow the wall clock, not even forward. A process that jumps ahead
//! of the others in a cluster has to wait for them. And when every partition is idle, the watermark
//! advances with the epochs, so a jump of hours would make all events that come next late. A
//! restart brings epochs that are behind back to the wall clock. Epochs that are ahead of it stay
//! ahead by the same distance until the wall clock has caught up.
//!
//! Clocks that count elapsed time differ a little, too. A worker follows the others forward: when
//! it learns that an epoch was cut elsewhere, it moves its own clock at least that far. Nobody ever
//! waits for a clock, and all follow the fastest.

use std::fmt;

use crate::time::{Epoch, EventTime};

/// Computes the current epoch from the time elapsed since the run began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EpochClock {
    /// Its reading when no time has passed.
    origin: Epoch,
}

impl EpochClock {
    /// Starts at `first`.
    pub fn new(first: Epoch) -> Self {
        EpochClock { origin: first }
    }

    /// Its reading in milliseconds; epochs are ticks of it.
    pub fn at(&self, elapsed_ms: u64) -> u64 {
        self.origin.saturating_add(elapsed_ms)
    }

    /// Moves the clock forward to `epoch`, which another worker has cut, if it is behind that.
    pub fn follow(&mut self, epoch: Epoch, elapsed_ms: u64) {
        self.origin += epoch.saturating_sub(self.at(elapsed_ms));
    }
}

/// Clocks closer than this are not reported.
const MIN_APART_MS: u64 = 5_000;
/// After how long an unchanged distance is reported again.
const REPEAT_MS: u64 = 3_600_000;
/// The shortest time between two reports.
const MIN_INTERVAL_MS: u64 = 3_000;

/// Watches how far the wall clock is from the epochs, and decides when to report it.
#[derive(Clone, Debug)]
pub struct WallClockWatch {
    /// From this distance on, the clocks count as apart.
    min_apart_ms: u64,
    /// The distance last reported, and when.
    reported: Option<(i64, u64)>,
}

/// A report about the wall clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClockReport {
    /// It is this many milliseconds ahead of the epochs; behind them if negative.
    Apart(i64),
    /// It was apart and no longer is.
    Together,
}

impl WallClockWatch {
    /// Creates a watch for epochs of `epoch_ms` milliseconds.
    pub fn new(epoch_ms: u64) -> Self {
        WallClockWatch {
            min_apart_ms: MIN_APART_MS.max(epoch_ms.saturating_mul(2)),
            reported: None,
        }
    }

    /// Compares the clocks; returns what is worth a line in the log.
    pub fn check(&mut self, wall_ms: u64, epoch_ms: u64, elapsed_ms: u64) -> Option<ClockReport> {
        let ahead_ms = wall_ms as i64 - epoch_ms as i64;
        let distance = ahead_ms.unsigned_abs();
        let Some((before, when)) = self.reported else {
            return (distance >= self.min_apart_ms).then(|| self.report(ahead_ms, elapsed_ms));
        };
        let since = elapsed_ms.saturating_sub(when);
        if since < MIN_INTERVAL_MS {
            return None;
        }
        // Half the threshold, so that a clock near it is not reported back and forth.
        if distance < self.min_apart_ms / 2 {
            self.reported = None;
            return Some(ClockReport::Together);
        }
        let moved = ahead_ms.abs_diff(before);
        let much = moved >= self.min_apart_ms.max(before.unsigned_abs() / 10);
        (much || since >= REPEAT_MS).then(|| self.report(ahead_ms, elapsed_ms))
    }

    /// Records what is reported.
    fn report(&mut self, ahead_ms: i64, elapsed_ms: u64) -> ClockReport {
        self.reported = Some((ahead_ms, elapsed_ms));
        ClockReport::Apart(ahead_ms)
    }
}

/// A duration in milliseconds, displayed in units that fit its size.
pub struct HumanDuration(pub u64);

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0;
        let rounded = |unit_ms: u64| (ms + unit_ms / 2) / unit_ms;
        let (large, name, small, of) = match ms {
            0..59_500 => return write!(f, "{}.{} s", ms / 1_000, ms % 1_000 / 100),
            59_500..297_500 => (rounded(1_000) / 60, "min", rounded(1_000) % 60, "s"),
            297_500..3_570_000 => (rounded(60_000), "min", 0, ""),
            3_570_000..172_800_000 => (rounded(60_000) / 60, "h", rounded(60_000) % 60, "min"),
            _ => (rounded(3_600_000) / 24, "days", rounded(3_600_000) % 24, "h"),
        };
        write!(f, "{large} {name}")?;
        if small > 0 { write!(f, " {small} {of}") } else { Ok(()) }
    }
}

/// Explains a distance between the wall clock and the epochs, for the log.
pub fn explain(ahead_ms: i64, wall_ms: u64, max_future_ms: i64) -> String {
    let distance = HumanDuration(ahead_ms.unsigned_abs());
    if ahead_ms < 0 {
        let latest = EventTime::from_millis(wall_ms as i64).plus(max_future_ms);
        return format!(
            "the clock of this machine is {distance} behind the job's epochs: it was set back, or \
             the job ran with a clock that was ahead. Epochs continue by elapsed time. Events \
             later than this clock plus --max-future (now {latest}) become dead letters: if they \
             should not, correct the clock"
        );
    }
    format!(
        "the clock of this machine is {distance} ahead of the job's epochs: it was set forward, or \
         the machine slept. Epochs continue by elapsed time, and as_of in sessionizer.balance is \
         behind by the same distance; a restart of the job brings it up to date"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;
    const DAY_MS: u64 = 24 * HOUR_MS;

    #[test]
    fn epochs_go_by_elapsed_time_from_where_they_begin() {
        let clock = EpochClock::new(5_000);
        assert_eq!([clock.at(0), clock.at(999), clock.at(DAY_MS)], [5_000, 5_999, 5_000 + DAY_MS]);
    }

    #[test]
    fn a_clock_follows_epochs_of_others_forward_and_never_back() {
        let mut clock = EpochClock::new(5_000);
        clock.follow(5_500, 700);
        assert_eq!(clock.at(700), 5_700, "it was there already");
        clock.follow(6_000, 700);
        assert_eq!([clock.at(700), clock.at(800)], [6_000, 6_100]);
        clock.follow(0, 900);
        assert_eq!(clock.at(900), 6_200);
    }

    #[test]
    fn clocks_that_are_apart_are_reported_once_and_again_when_that_changes_much() {
        let mut watch = WallClockWatch::new(1_000);
        let mut check = |ahead: i64, at: u64| {
            let epoch = 10 * DAY_MS + at;
            watch.check((epoch as i64 + ahead) as u64, epoch, at)
        };
        let day = DAY_MS as i64;
        assert_eq!([check(4_999, 0), check(-4_999, 1_000)], [None, None]);
        assert_eq!(check(-5_000, 2_000), Some(ClockReport::Apart(-5_000)));
        assert_eq!(check(-day, 3_000), None, "a clock that jitters does not fill the log");
        assert_eq!(check(-day, 12_000), Some(ClockReport::Apart(-day)));
        assert_eq!(check(-day + 60_000, 60_000), None, "a minute of a day is not much");
        assert_eq!(check(-day, 12_000 + REPEAT_MS), Some(ClockReport::Apart(-day)));
        assert_eq!(check(day, 2 * REPEAT_MS), Some(ClockReport::Apart(day)));
        assert_eq!(check(2_500, 3 * REPEAT_MS), Some(ClockReport::Apart(2_500)));
        assert_eq!(check(2_499, 4 * REPEAT_MS), Some(ClockReport::Together));
        assert_eq!(check(0, 5 * REPEAT_MS), None);
    }

    #[test]
    fn between_two_reports_are_some_seconds_however_much_changes() {
        let mut watch = WallClockWatch::new(1_000);
        let mut check = |ahead_ms: u64, at_ms: u64| watch.check(at_ms + ahead_ms, at_ms, at_ms);
        assert_eq!(check(10_000, 0), Some(ClockReport::Apart(10_000)));
        assert_eq!(check(90_000, MIN_INTERVAL_MS - 1), None);
        assert_eq!(check(90_000, MIN_INTERVAL_MS), Some(ClockReport::Apart(90_000)));
    }

    #[test]
    fn long_epochs_are_apart_from_the_clock_by_nature() {
        let mut watch = WallClockWatch::new(60_000);
        assert_eq!(watch.check(119_999, 0, 0), None);
        assert_eq!(watch.check(120_000, 0, 0), Some(ClockReport::Apart(120_000)));
    }

    #[test]
    fn distances_are_in_units_that_fit() {
        for (ms, text) in [
            (5_940, "5.9 s"),
            (59_499, "59.4 s"),
            (59_500, "1 min"),
            (120_499, "2 min"),
            (125_400, "2 min 5 s"),
            (9 * 60_000 + 40_000, "10 min"),
            (HOUR_MS - 1, "1 h"),
            (DAY_MS - 1, "24 h"),
            (DAY_MS + 61_000, "24 h 1 min"),
            (3 * DAY_MS + HOUR_MS, "3 days 1 h"),
        ] {
            assert_eq!(HumanDuration(ms).to_string(), text);
        }
    }

    #[test]
    fn an_explanation_names_the_distance_and_what_follows() {
        let behind = explain(-(DAY_MS as i64), 1_700_000_000_000, 300_000);
        assert!(behind.contains("24 h behind the job's epochs"), "{behind}");
        assert!(behind.contains("2023-11-14T22:18:20.000Z"), "{behind}");
        let ahead = explain(120_000, 0, 0);
        assert!(ahead.contains("2 min ahead of the job's epochs"), "{ahead}");
    }
}
