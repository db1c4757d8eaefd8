//! The events: a sample from the end of each partition, and what it says about the sender. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use sessionizer_core::event;
use sessionizer_core::event::Reason;
use sessionizer_core::time::EventTime;

use super::codes::Code;
use super::report::Finding;
use crate::dataflow::ports::Record;
use crate::ui::text::{count, duration, plural, setting};

/// An integer event_time of the years 2001 to 2286 lies in one of these ranges, by its unit.
const SECONDS: std::ops::Range<i128> = 1_000_000_000..10_000_000_000;
const MICROSECONDS: std::ops::Range<i128> = 1_000_000_000_000_000..10_000_000_000_000_000;
const NANOSECONDS: std::ops::Range<i128> = 1_000_000_000_000_000_000..10_000_000_000_000_000_000;
/// The share of bad records above which a warning is due: that of the alert.
const BAD_SHARE: f64 = 0.01;
/// How far ahead of this machine's clock events may be without a warning.
const AHEAD_MS: i64 = 10_000;

/// A unit that event_time should not be in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Unit {
    Seconds,
    Microseconds,
    Nanoseconds,
}

impl Unit {
    fn of(time: i128) -> Option<Unit> {
        match time {
            time if SECONDS.contains(&time) => Some(Unit::Seconds),
            time if MICROSECONDS.contains(&time) => Some(Unit::Microseconds),
            time if NANOSECONDS.contains(&time) => Some(Unit::Nanoseconds),
            _ => None,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Unit::Seconds => "seconds",
            Unit::Microseconds => "microseconds",
            Unit::Nanoseconds => "nanoseconds",
        }
    }

    const fn remedy(self) -> &'static str {
        match self {
            Unit::Seconds => "have the sender multiply it by 1,000, or write RFC 3339",
            Unit::Microseconds => "have the sender divide it by 1,000, or write RFC 3339",
            Unit::Nanoseconds => "have the sender divide it by 1,000,000, or write RFC 3339",
        }
    }
}

/// What the sampled records contain.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EventSample {
    /// The times of the records that decode, in milliseconds.
    times: Vec<i64>,
    /// By reason: how many records do not decode, and where the first of them is.
    bad: BTreeMap<Reason, (u64, String)>,
    /// By unit: how many records have an event_time in it.
    units: BTreeMap<Unit, u64>,
}

impl EventSample {
    pub fn is_empty(&self) -> bool {
        self.times.is_empty() && self.bad.is_empty()
    }

    /// Adds a record.
    pub fn take(&mut self, topic: &str, partition: i32, record: &Record<'_>) {
        let number = record.payload.and_then(integer_time);
        if let Some(unit) = number.and_then(Unit::of) {
            *self.units.entry(unit).or_default() += 1;
        }
        match event::decode(record.payload) {
            Ok(event) => self.times.push(event.time.millis()),
            Err(rejected) => {
                let place = || {
                    let offset = record.offset;
                    format!("{topic}[{partition}] offset {offset}: {}", rejected.detail)
                };
                let known = self.bad.entry(rejected.reason).or_insert_with(|| (0, place()));
                known.0 += 1;
            }
        }
    }

    /// The findings about the sample, given the clock and `--max-future`.
    pub fn judge(&self, now_ms: i64, max_future_ms: i64) -> Vec<Finding> {
        if self.is_empty() {
            let text = "there are no records yet: nothing to check";
            return vec![Finding::good(Code::D01, text)];
        }
        let mut found = vec![self.decoded()];
        let unit = self.unit();
        let wrong_unit = unit.outcome != super::report::Outcome::Good;
        found.push(unit);
        if !wrong_unit {
            found.extend(self.clock(now_ms, max_future_ms));
        }
        found
    }

    fn decoded(&self) -> Finding {
        let good = self.times.len() as u64;
        let bad: u64 = self.bad.values().map(|(count, _)| count).sum();
        let all = good + bad;
        let worst = self.bad.iter().max_by_key(|(_, (count, _))| *count);
        let Some((reason, (times, place))) = worst else {
            let text = match all {
                1 => "the only record is an event".to_owned(),
                all => format!("all {} sampled records are events", count(all)),
            };
            return Finding::good(Code::D01, text);
        };
        let text = format!(
            "{} of {} sampled are not events, most often {reason} ({times}): {place}",
            count(bad),
            plural(all, "record")
        );
        if good == 0 {
            let remedy = "is KAFKA_TOPIC the right topic? An event is a JSON object with ip, host \
                          and event_time";
            return Finding::failed(Code::D01, 2, text, remedy);
        }
        if bad as f64 <= BAD_SHARE * all as f64 {
            return Finding::good(Code::D01, text);
        }
        let remedy = "they become dead letters: look at who sends them";
        Finding::warning(Code::D01, text, remedy)
    }

    fn unit(&self) -> Finding {
        let all = self.times.len() as u64 + self.bad.values().map(|(count, _)| count).sum::<u64>();
        let most = self.units.iter().max_by_key(|(_, count)| **count);
        let Some((unit, times)) = most else {
            return Finding::good(Code::D02, "event_time is RFC 3339, or in milliseconds");
        };
        let becomes = match unit {
            Unit::Seconds => "their sessions would be in January 1970",
            _ => "none of them is an event",
        };
        let text = format!(
            "event_time is in {} and not in milliseconds in {} of {} sampled: {becomes}",
            unit.name(),
            count(*times),
            plural(all, "record")
        );
        match 2 * times >= all {
            true => Finding::failed(Code::D02, 2, text, unit.remedy()),
            false => Finding::warning(Code::D02, text, unit.remedy()),
        }
    }

    fn clock(&self, now_ms: i64, max_future_ms: i64) -> Option<Finding> {
        let newest = *self.times.iter().max()?;
        let ahead = newest.saturating_sub(now_ms);
        let span = duration(Duration::from_millis(ahead.unsigned_abs()));
        if ahead <= 0 {
            let text = format!("the newest sampled event is {span} old");
            return Some(Finding::good(Code::D03, text));
        }
        if ahead <= AHEAD_MS {
            let text = "the newest sampled event agrees with this machine's clock";
            return Some(Finding::good(Code::D03, text));
        }
        let lost = self.times.iter().filter(|time| *time - now_ms > max_future_ms).count();
        let newest = EventTime::from_millis(newest);
        let text = match lost {
            0 => format!("the newest sampled event is {span} ahead of this machine's clock"),
            lost => format!(
                "{} of {} sampled are more than --max-future ({}) ahead of this machine's clock \
                 and would become dead letters; the newest is of {newest}, {span} ahead",
                count(lost),
                plural(self.times.len(), "event"),
                setting(max_future_ms)
            ),
        };
        // Zones differ from UTC by multiples of a quarter of an hour, and events are a little older
        // than now.
        let quarter = 900_000;
        let zone = ahead > quarter && (quarter - 1 - (ahead - 1) % quarter) < 120_000;
        let remedy = match zone {
            true => "is a time zone missing? Times without one count as UTC: 12:00+02:00 is 10:00Z",
            false => "compare the clocks of this machine and of whoever sends the events",
        };
        Some(Finding::warning(Code::D03, text, remedy))
    }
}

/// The event_time of a payload, if it is a number or a string of nothing but digits.
fn integer_time(payload: &[u8]) -> Option<i128> {
    let value: Value = serde_json::from_slice(payload).ok()?;
    match &value["event_time"] {
        Value::Number(number) => {
            let whole = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
            whole.or_else(|| number.as_f64().map(|number| number as i128))
        }
        Value::String(digits) => digits.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use sessionizer_core::binding::Offset;

    use super::*;
    use crate::commands::check::report::Outcome;

    const NOW: i64 = 1_700_000_000_000;

    fn sample(times: &[&str]) -> EventSample {
        let mut sample = EventSample::default();
        for (at, time) in times.iter().enumerate() {
            let payload = format!(r#"{{"ip":"a","host":"h","event_time":{time}}}"#);
            let payload = Some(payload.as_bytes());
            sample.take("t", 0, &Record { offset: Offset::new(at as i64), payload });
        }
        sample
    }

    /// The code, the outcome and the text of what is not good.
    fn wrong(sample: &EventSample) -> Vec<(Code, Outcome, String)> {
        let found = sample.judge(NOW, 300_000);
        let wrong = found.into_iter().filter(|finding| finding.outcome != Outcome::Good);
        wrong.map(|finding| (finding.code, finding.outcome, finding.text)).collect()
    }

    #[test]
    fn milliseconds_and_rfc_3339_are_good() {
        let good = sample(&["1700000000000", r#""2023-11-14T22:13:19Z""#, "946684800000"]);
        assert_eq!(wrong(&good), []);
        assert_eq!(wrong(&EventSample::default()), []);
    }

    #[test]
    fn other_units_are_told_apart() {
        for (time, unit) in [
            ("1700000000", "seconds"),
            ("1700000000.123", "seconds"),
            (r#""1700000000""#, "seconds"),
            ("1700000000000000", "microseconds"),
            ("1700000000000000000", "nanoseconds"),
        ] {
            let wrong = wrong(&sample(&[time, time]));
            let of = wrong.iter().find(|(code, ..)| *code == Code::D02);
            let (_, outcome, text) = of.unwrap_or_else(|| panic!("{time}: {wrong:?}"));
            assert_eq!(*outcome, Outcome::Failed(2), "{time}");
            assert!(text.contains(&format!("in {unit} and")), "{text}");
        }
        // One sender of several.
        let some = wrong(&sample(&["1700000000", "1700000000000", "1700000000000"]));
        assert_eq!(some[0].1, Outcome::Warning, "{some:?}");
    }

    #[test]
    fn events_ahead_of_the_clock_are_counted_and_a_missing_zone_is_suspected() {
        let ahead = |ms: i64| sample(&[&(NOW + ms).to_string(), "1700000000000"]);
        assert_eq!(wrong(&ahead(10_000)), []);
        let [(Code::D03, Outcome::Warning, text)] = &wrong(&ahead(60_000))[..] else {
            panic!("a minute ahead");
        };
        assert!(!text.contains("dead letters"), "{text}");
        let far = ahead(2 * 3_600_000 - 3_000).judge(NOW, 300_000);
        let far = far.last().expect("a finding");
        assert!(far.text.starts_with("1 of 2 events sampled are more than"), "{}", far.text);
        assert!(far.remedies[0].contains("time zone"), "{far:?}");
        let odd = ahead(2 * 3_600_000 + 400_000).judge(NOW, 300_000);
        assert!(odd.last().expect("a finding").remedies[0].contains("clocks"), "{odd:?}");
    }

    #[test]
    fn a_topic_without_any_event_is_the_wrong_one() {
        let mut sample = sample(&["true"]);
        let [(code, outcome, text)] = &wrong(&sample)[..] else { panic!("one finding") };
        assert_eq!((*code, *outcome), (Code::D01, Outcome::Failed(2)));
        assert!(text.contains("bad_time (1): t[0] offset 0"), "{text}");
        for at in 0..99 {
            let payload = Some(&br#"{"ip":"a","host":"h","event_time":1700000000000}"#[..]);
            sample.take("t", 0, &Record { offset: Offset::new(at), payload });
        }
        assert_eq!(wrong(&sample), [], "one in a hundred is no reason to worry");
    }
}
