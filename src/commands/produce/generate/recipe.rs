//! What to generate: the values, their defaults and their ranges.
//!
//! A recipe that passes [`Recipe::check`] can be followed without overflow and for ever. This
//! module does not know how.

use std::fmt::Display;

const MAX_EVENTS_PER_VISIT: u64 = 20_000;
const MAX_HOSTS: usize = 65_535;
/// As in the domain name system.
pub const MAX_HOST_BYTES: usize = 255;
const MIN_RATE: f64 = 0.001;
const MAX_RATE: f64 = 1e6;
/// The limit on running visits and events held back, together: about 40 bytes each.
const MAX_IN_MEMORY: f64 = 30e6;
/// In milliseconds; keeps every time within the calendar, whatever is added.
const MAX_SPAN_MS: i64 = 100 * 366 * 86_400_000;
/// 5000-01-01T00:00:00Z.
const MAX_START_MS: i64 = 95_617_584_000_000;

/// What to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// How many records; `None` goes on for ever.
    pub number: Option<u64>,
    /// How many people there are. With fewer than `rate` × (`pause_ms` + 300 s ÷
    /// `events_per_visit`) they are hardly away between visits, and their sessions run together.
    pub visitors: u64,
    /// The sites that are visited.
    pub hosts: Vec<String>,
    /// Mean number of events of a visit.
    pub events_per_visit: u64,
    /// Mean pause between two events of a visit, in milliseconds.
    pub pause_ms: i64,
    /// How much older than the newest event before it an event may be, in milliseconds.
    pub disorder_ms: i64,
    /// Ratio of records that do not decode, spread evenly over every `BadKind`.
    pub bad: f64,
    /// Ratio of good events that are written in one of the unusual forms that the contract allows.
    pub odd: f64,
    /// Ratio of stragglers: good events that are older than `disorder_ms` allows.
    pub late: f64,
    /// How much older than the newest event stragglers are at most, in milliseconds.
    pub late_by_ms: i64,
    /// Ratio of events from one single visitor, who never leaves.
    pub hot: f64,
    /// A different seed gives different events.
    pub seed: u64,
    /// Records per second of event time, on average.
    pub rate: f64,
    /// Event time of the start, in milliseconds since 1970.
    pub start_ms: i64,
}

impl Default for Recipe {
    /// A small site from 2023-11-14T22:13:20Z on: in order, nothing late, nothing bad.
    fn default() -> Self {
        Recipe {
            number: None,
            visitors: 100_000,
            hosts: ["zachwilson.techcreator.io", "zachwilson.tech", "lulu.techcreator.io"]
                .map(String::from)
                .to_vec(),
            events_per_visit: 8,
            pause_ms: 20_000,
            disorder_ms: 0,
            bad: 0.0,
            odd: 1.0 / 200.0,
            late: 0.0,
            late_by_ms: 3_600_000,
            hot: 0.0,
            seed: 1,
            rate: 100.0,
            start_ms: 1_700_000_000_000,
        }
    }
}

impl Recipe {
    /// Checks that a generator can follow this recipe.
    ///
    /// # Errors
    /// Says, for the user who typed it, which value is out of range, and the range.
    pub fn check(&self) -> Result<(), String> {
        within("visitors", self.visitors, 1, u64::from(u32::MAX))?;
        within("hosts", self.hosts.len(), 1, MAX_HOSTS)?;
        if self.hosts.iter().any(|host| host.is_empty() || host.contains('\0')) {
            return Err("a host is empty or holds a NUL: such events would be bad".to_string());
        }
        if self.hosts.iter().any(|host| host.len() > MAX_HOST_BYTES) {
            return Err(format!("a host is longer than {MAX_HOST_BYTES} bytes"));
        }
        within("events per visit", self.events_per_visit, 1, MAX_EVENTS_PER_VISIT)?;
        within("pause (ms)", self.pause_ms, 0, MAX_SPAN_MS)?;
        within("disorder (ms)", self.disorder_ms, 0, MAX_SPAN_MS)?;
        within("ratio of bad records", self.bad, 0.0, 1.0)?;
        within("ratio of late events", self.late, 0.0, 1.0)?;
        within("ratio of odd events", self.odd, 0.0, 1.0)?;
        within("ratio of bad and late records together", self.bad + self.late, 0.0, 1.0)?;
        within("lateness (ms)", self.late_by_ms, 0, MAX_SPAN_MS)?;
        if self.late > 0.0 && self.late_by_ms <= self.disorder_ms {
            return Err(format!(
                "late events must be later than disorder makes them: {} ms is not more than {} ms",
                self.late_by_ms, self.disorder_ms
            ));
        }
        within("ratio of the hot visitor", self.hot, 0.0, 1.0)?;
        within("rate (events per second)", self.rate, MIN_RATE, MAX_RATE)?;
        within("start (ms since 1970)", self.start_ms, 0, MAX_START_MS)?;
        let in_memory = self.rate * (self.pause_ms as f64 + self.disorder_ms as f64) / 1_000.0;
        match in_memory <= MAX_IN_MEMORY {
            true => Ok(()),
            false => Err(format!(
                "rate × (pause + disorder) is {in_memory:.0}, the number of visits and events in \
                 memory; lower one of them until it is at most {MAX_IN_MEMORY}"
            )),
        }
    }
}

/// An error unless `low <= value <= high`; NaN is never within.
fn within<T: PartialOrd + Display>(name: &str, value: T, low: T, high: T) -> Result<(), String> {
    match value >= low && value <= high {
        true => Ok(()),
        false => Err(format!("{name}: {value} is not between {low} and {high}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_can_be_followed() {
        assert_eq!(Recipe::default().check(), Ok(()));
    }

    #[test]
    fn a_value_out_of_range_is_named_with_its_range() {
        let good = Recipe::default;
        for (recipe, want) in [
            (Recipe { visitors: 0, ..good() }, "visitors: 0 is not between 1 and 4294967295"),
            (Recipe { hosts: vec![], ..good() }, "hosts: 0 is not between 1 and 65535"),
            (Recipe { hosts: vec!["".into()], ..good() }, "a host is empty"),
            (Recipe { hosts: vec!["x".into(), "a\0".into()], ..good() }, "a host is empty or"),
            (Recipe { hosts: vec!["x".repeat(256)], ..good() }, "a host is longer than 255"),
            (Recipe { events_per_visit: 0, ..good() }, "events per visit: 0 is not between 1"),
            (Recipe { events_per_visit: 20_001, ..good() }, "events per visit: 20001 is not"),
            (Recipe { pause_ms: -1, ..good() }, "pause (ms): -1 is not between 0 and"),
            (Recipe { disorder_ms: -1, ..good() }, "disorder (ms): -1 is not between 0 and"),
            (Recipe { disorder_ms: i64::MAX, ..good() }, "disorder (ms): 9223372036854775807 is"),
            (Recipe { bad: 1.1, ..good() }, "ratio of bad records: 1.1 is not between 0 and 1"),
            (Recipe { bad: f64::NAN, ..good() }, "ratio of bad records: NaN is not between"),
            (Recipe { late: -0.1, ..good() }, "ratio of late events: -0.1 is not between 0 and 1"),
            (Recipe { bad: 0.7, late: 0.4, ..good() }, "ratio of bad and late records together"),
            (Recipe { late_by_ms: -1, ..good() }, "lateness (ms): -1 is not between 0 and"),
            (
                Recipe { late: 0.1, late_by_ms: 5_000, disorder_ms: 5_000, ..good() },
                "late events must be later than disorder makes them: 5000 ms is not more than 5000",
            ),
            (Recipe { hot: 2.0, ..good() }, "ratio of the hot visitor: 2 is not between 0 and 1"),
            (Recipe { rate: 0.0, ..good() }, "rate (events per second): 0 is not between 0.001"),
            (Recipe { rate: f64::INFINITY, ..good() }, "rate (events per second): inf is not"),
            (
                Recipe { disorder_ms: 100_000, rate: 1e6, ..good() },
                "rate × (pause + disorder) is 1200",
            ),
            (Recipe { start_ms: -1, ..good() }, "start (ms since 1970): -1 is not between 0 and"),
        ] {
            let error = recipe.check().expect_err(want);
            assert!(error.starts_with(want), "said {error}, not {want}");
        }
    }
}
