//! Time: the newtypes and all arithmetic on them.
//!
//! Two kinds of time never mix. *Event time* says when something happened and shapes sessions. An
//! *epoch* says when a record was read; it is the unit of progress and of commits. Both count
//! milliseconds since 1970-01-01T00:00:00Z, and nothing in this file reads a clock.

use std::fmt;
use std::ops::Add;

use chrono::{DateTime, SecondsFormat};
use serde::{Deserialize, Serialize};

pub const DAY_MS: i64 = 86_400_000;

/// When an event happened: milliseconds since 1970, from the payload.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EventTime(i64);

impl EventTime {
    /// 0001-01-01T00:00:00.000Z, the earliest time an event may carry.
    pub const EARLIEST: EventTime = EventTime(-62_135_596_800_000);
    /// 9999-12-31T23:59:59.999Z, the latest time an event may carry.
    pub const LATEST: EventTime = EventTime(253_402_300_799_999);
    /// Before every event; the horizon of a shard that has closed nothing.
    pub const NEVER: EventTime = EventTime(i64::MIN / 4);
    /// After every event; a drained epoch closes everything before it.
    pub const FOREVER: EventTime = EventTime(i64::MAX / 4);

    /// Creates a time from milliseconds since 1970. Any value is accepted: the decoder checks the
    /// range.
    pub const fn from_millis(millis: i64) -> Self {
        EventTime(millis)
    }

    /// Milliseconds since 1970.
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// This time, `millis` later (earlier if negative), never past [`Self::FOREVER`] or
    /// [`Self::NEVER`].
    pub fn plus(self, millis: i64) -> Self {
        let sum = self.0.saturating_add(millis);
        EventTime(sum.clamp(Self::NEVER.0, Self::FOREVER.0))
    }
}

impl fmt::Display for EventTime {
    /// RFC 3339 in UTC with milliseconds; the values outside the calendar print as words or as a
    /// number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::from_timestamp_millis(self.0) {
            _ if *self <= Self::NEVER => f.write_str("never"),
            _ if *self >= Self::FOREVER => f.write_str("forever"),
            Some(time) => f.write_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true)),
            None => write!(f, "{} ms", self.0),
        }
    }
}

impl fmt::Debug for EventTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The timely timestamp: the tick, in milliseconds since 1970 by the clock of the epochs, in which
/// a record was read.
pub type Epoch = u64;

/// The start of the tick of length `every_ms` that contains `now_ms`.
pub fn tick(now_ms: u64, every_ms: u64) -> Epoch {
    now_ms - now_ms % every_ms
}

/// How long epochs are. They are shorter in a backlog: an epoch's input is kept until the epoch is
/// complete, so shorter epochs take less memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EpochLength {
    /// Milliseconds.
    pub ms: u64,
    /// The length of a full epoch, in milliseconds.
    pub full_ms: u64,
    /// How many records of one worker fill an epoch.
    pub full_records: usize,
}

impl EpochLength {
    /// The current tick, given whether the epoch is full.
    pub fn tick(self, now_ms: u64, full: bool) -> Epoch {
        tick(now_ms, if full { self.full_ms.min(self.ms) } else { self.ms })
    }

    /// Epochs of `ms` milliseconds, with the usual length and size of a full one.
    pub fn of_millis(ms: u64) -> Self {
        EpochLength { ms, full_ms: 250, full_records: 65_536 }
    }
}

/// The session gap: two events of a key at most this far apart are in one session (inclusive).
///
/// ```
/// use sessionizer_core::time::{EventTime, Gap};
///
/// let gap = Gap::from_millis(300_000).expect("positive and not absurd");
/// let last = EventTime::from_millis(1_000);
/// assert_eq!(gap.end_after(last), EventTime::from_millis(301_000));
/// assert_eq!(Gap::from_millis(0), None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Gap(i64);

impl Gap {
    /// Creates a gap of `millis`, which must be positive and shorter than a thousand years.
    pub fn from_millis(millis: i64) -> Option<Self> {
        (1..=31_536_000_000_000).contains(&millis).then_some(Gap(millis))
    }

    /// Milliseconds.
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// The exclusive end of the window of a session whose last event is `last`.
    pub fn end_after(self, last: EventTime) -> EventTime {
        last + self
    }
}

impl Add<Gap> for EventTime {
    type Output = EventTime;
    fn add(self, gap: Gap) -> EventTime {
        self.plus(gap.0)
    }
}

/// A day in UTC, counted since 1970.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Day(pub i64);

impl Day {
    /// The day that contains `time`.
    pub fn of(time: EventTime) -> Self {
        Day(time.millis().div_euclid(DAY_MS))
    }

    /// Its beginning.
    pub fn start(self) -> EventTime {
        EventTime::from_millis(self.0.saturating_mul(DAY_MS))
    }

    /// The day after.
    pub fn next(self) -> Self {
        Day(self.0 + 1)
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = self.start().to_string();
        f.write_str(start.split('T').next().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_multiples_and_never_ahead_of_the_clock() {
        for (now, every, want) in
            [(0, 1000, 0), (999, 1000, 0), (1000, 1000, 1000), (1750, 250, 1750)]
        {
            assert_eq!(tick(now, every), want);
        }
    }

    #[test]
    fn full_epochs_are_short_and_never_longer_than_others() {
        let epochs = EpochLength { ms: 1_000, full_ms: 250, full_records: 10 };
        assert_eq!([epochs.tick(1_999, false), epochs.tick(1_999, true)], [1_000, 1_750]);
        let short = EpochLength { ms: 100, ..epochs };
        assert_eq!([short.tick(1_999, false), short.tick(1_999, true)], [1_900, 1_900]);
    }

    #[test]
    fn times_print_as_people_write_them() {
        assert_eq!(EventTime(1_700_000_000_123).to_string(), "2023-11-14T22:13:20.123Z");
        assert_eq!(EventTime::EARLIEST.to_string(), "0001-01-01T00:00:00.000Z");
        assert_eq!(EventTime::LATEST.to_string(), "9999-12-31T23:59:59.999Z");
        assert_eq!(EventTime::NEVER.to_string(), "never");
        assert_eq!(EventTime::FOREVER.to_string(), "forever");
        assert_eq!(EventTime(9_000_000_000_000_000).to_string(), "9000000000000000 ms");
        assert_eq!(format!("{:?}", EventTime(0)), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn arithmetic_saturates_at_never_and_forever() {
        assert_eq!(EventTime::NEVER.plus(-5), EventTime::NEVER);
        assert_eq!(EventTime::FOREVER.plus(i64::MAX), EventTime::FOREVER);
        let gap = Gap::from_millis(300_000).expect("valid");
        assert_eq!(gap.end_after(EventTime(0)), EventTime(300_000));
        assert!(Gap::from_millis(0).is_none());
    }

    #[test]
    fn a_day_prints_as_a_date_and_holds_its_first_and_not_its_last_moment() {
        let day = |ms| Day::of(EventTime::from_millis(ms));
        assert_eq!(day(0).to_string(), "1970-01-01");
        assert_eq!(day(-1).to_string(), "1969-12-31");
        assert_eq!(day(DAY_MS - 1).next(), day(DAY_MS));
        assert!(!Day::of(EventTime::NEVER).to_string().is_empty());
    }
}
