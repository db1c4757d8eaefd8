//! The recent past: rates over the last seconds, a point a second for the charts, and marks on
//! their time axis.

use std::collections::{BTreeMap, VecDeque};

/// How long points are kept, in milliseconds.
pub const RETENTION_MS: u64 = 900_000;
/// The distance between two points.
pub const POINT_INTERVAL_MS: u64 = 1_000;
/// The period over which rates are measured.
const RATE_PERIOD_MS: u64 = 5_000;
/// How many marks are kept.
const MAX_MARKS: usize = 100;

/// Counters at one moment.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct CounterSample {
    /// Events, and bad records.
    pub records: u64,
    pub events: u64,
    pub rows: u64,
    /// Records by partition.
    pub parts: BTreeMap<String, u64>,
}

/// A point of the charts. `None` is a gap.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Point {
    pub at_ms: u64,
    pub events: Option<f64>,
    pub rows: Option<f64>,
    pub lag_s: Option<f64>,
    pub watermark_s: Option<f64>,
    pub durable_s: Option<f64>,
}

/// A vertical line on the time axis.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mark {
    pub at_ms: u64,
    pub kind: &'static str,
    pub text: String,
}

/// The last fifteen minutes.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct History {
    counts: VecDeque<(u64, CounterSample)>,
    pub points: VecDeque<Point>,
    pub marks: VecDeque<Mark>,
    /// How many marks there have been.
    pub marked: usize,
}

impl History {
    /// Adds the counters at a moment. If one has fallen, a new run has begun, and the rates start
    /// over.
    pub fn count(&mut self, at_ms: u64, counts: CounterSample) {
        let fell = |last: &CounterSample| counts.records < last.records || counts.rows < last.rows;
        if self.counts.back().is_some_and(|(at, last)| *at >= at_ms || fell(last)) {
            self.counts.clear();
        }
        self.counts.push_back((at_ms, counts));
        while self.counts.len() > 2 && at_ms - self.counts[1].0 >= RATE_PERIOD_MS {
            self.counts.pop_front();
        }
    }

    /// Events and rows a second, over the last seconds; `None` at first.
    pub fn rates(&self) -> Option<(f64, f64)> {
        let (first, last) = (self.counts.front()?, self.counts.back()?);
        rates(first, last)
    }

    /// Records a second, over the last seconds; 0 at first.
    pub fn record_rate(&self) -> f64 {
        let (Some(first), Some(last)) = (self.counts.front(), self.counts.back()) else {
            return 0.0;
        };
        let records = last.1.records.saturating_sub(first.1.records) as f64;
        seconds(first.0, last.0).map_or(0.0, |seconds| records / seconds)
    }

    /// Events and rows of the last second.
    pub fn of_last_second(&self) -> Option<(f64, f64)> {
        let before = self.counts.len().checked_sub(2)?;
        rates(&self.counts[before], self.counts.back()?)
    }

    /// Records a second of a partition.
    pub fn rate_of(&self, part: &str) -> Option<f64> {
        let (first, last) = (self.counts.front()?, self.counts.back()?);
        let seconds = seconds(first.0, last.0)?;
        let (before, now) = (first.1.parts.get(part)?, last.1.parts.get(part)?);
        Some(now.saturating_sub(*before) as f64 / seconds)
    }

    /// Adds a point, and drops what is too old.
    pub fn point(&mut self, point: Point) {
        self.points.push_back(point);
        let oldest = point.at_ms.saturating_sub(RETENTION_MS);
        while self.points.front().is_some_and(|point| point.at_ms < oldest) {
            self.points.pop_front();
        }
        // It must not grow even if the clock is set back.
        while self.points.len() > (RETENTION_MS / POINT_INTERVAL_MS) as usize + 10 {
            self.points.pop_front();
        }
    }

    /// Adds a mark.
    pub fn mark(&mut self, at_ms: u64, kind: &'static str, text: String) {
        self.marks.push_back(Mark { at_ms, kind, text });
        self.marked += 1;
        if self.marks.len() > MAX_MARKS {
            self.marks.pop_front();
        }
    }
}

fn seconds(from_ms: u64, to_ms: u64) -> Option<f64> {
    (to_ms > from_ms).then(|| (to_ms - from_ms) as f64 / 1_000.0)
}

fn rates(first: &(u64, CounterSample), last: &(u64, CounterSample)) -> Option<(f64, f64)> {
    let seconds = seconds(first.0, last.0)?;
    let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
    Some((rate(last.1.events, first.1.events), rate(last.1.rows, first.1.rows)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(events: u64, rows: u64) -> CounterSample {
        let parts = BTreeMap::from([("t/0".to_owned(), events)]);
        CounterSample { records: events * 2, events, rows, parts }
    }

    #[test]
    fn rates_are_of_the_last_seconds_and_begin_anew_with_a_run() {
        let mut history = History::default();
        assert_eq!(history.rates(), None);
        for second in 0..20 {
            history.count(second * 1_000, counts(second * 100, second * 10));
        }
        assert_eq!(history.rates(), Some((100.0, 10.0)));
        assert_eq!(history.record_rate(), 200.0);
        history.count(20_000, counts(1_900, 190));
        assert_eq!(history.of_last_second(), Some((0.0, 0.0)));
        assert!(history.rates().expect("known").0 < 100.0);
        assert!(history.rate_of("t/0").is_some() && history.rate_of("t/1").is_none());
        history.count(21_000, counts(5, 0));
        assert_eq!(history.rates(), None);
    }

    #[test]
    fn points_and_marks_are_bounded_whatever_the_clock_does() {
        let mut history = History::default();
        let point = |at_ms| Point {
            at_ms,
            events: None,
            rows: None,
            lag_s: None,
            watermark_s: None,
            durable_s: None,
        };
        for second in 0..2_000 {
            history.point(point(second * 1_000));
            history.mark(second, "started", String::new());
        }
        assert_eq!((history.points.len(), history.marks.len()), (901, MAX_MARKS));
        for _ in 0..2_000 {
            history.point(point(5));
        }
        assert!(history.points.len() <= 910);
    }
}
