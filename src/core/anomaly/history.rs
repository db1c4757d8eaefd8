//! The history that sessions, visitors and hosts are compared with, and the comparisons.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::thresholds::{Limit, Thresholds};
use super::{Anomaly, Evidence, Kind, pace};
use crate::session::Span;
use crate::statistics::{Bin, Histogram};
use crate::time::EventTime;
pub use crate::time::{DAY_MS, Day};

/// Hours and days are those of UTC.
pub const HOUR_MS: i64 = 3_600_000;
/// Surges and falls are looked for in buckets of this length.
pub const BUCKET_MS: i64 = 300_000;
/// How many buckets make up the hour before.
const BEFORE: usize = 12;
/// At least this many of them must have sessions; otherwise the host has only just appeared, or was
/// away. With half of them empty, the median would be half of the usual rate.
const NOT_EMPTY: usize = BEFORE / 2 + 1;
/// How many buckets make up a quarter of an hour, over which small hosts are judged.
const QUARTER: i64 = 3;
/// Falls of small hosts are looked for over this length, up to the end of each bucket.
pub const QUARTER_MS: i64 = QUARTER * BUCKET_MS;
/// Visitors are compared with those of the day before only if the first sessions of that day ended
/// within this many hours of its start: part of a day says too little.
const MORNING: i64 = 6;

/// An hour, numbered since 1970.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Hour(pub i64);

impl Hour {
    /// The hour that contains `time`.
    pub fn of(time: EventTime) -> Self {
        Hour(time.millis().div_euclid(HOUR_MS))
    }

    /// Its beginning.
    pub fn start(self) -> EventTime {
        EventTime::from_millis(self.0.saturating_mul(HOUR_MS))
    }

    /// The day that it belongs to.
    pub fn day(self) -> Day {
        Day(self.0.div_euclid(24))
    }
}

impl Day {
    /// Its first hour.
    pub fn first_hour(self) -> Hour {
        Hour(self.0.saturating_mul(24))
    }
}

/// The number of the bucket of `length_ms` that contains `time`.
pub fn bucket(time: EventTime, length_ms: i64) -> i64 {
    time.millis().div_euclid(length_ms)
}

/// The sessions of a host that ended in an hour.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HourSums {
    pub events: Histogram,
    pub durations_ms: Histogram,
    /// Of the sessions with more than `burst.min` events.
    pub paces: Histogram,
    /// Sessions with one event.
    pub singles: i64,
}

impl HourSums {
    /// Adds `n` sessions, or removes them if `n` is negative.
    pub fn add(&mut self, span: &Span, n: i64, thresholds: &Thresholds) {
        if span.count > thresholds.burst.min {
            self.paces.add(Bin::of(pace(span)), n);
        }
        self.events.add(Bin::of(span.count), n);
        self.durations_ms.add(Bin::of(span.duration_ms()), n);
        self.singles += if span.count == 1 { n } else { 0 };
    }

    /// How many sessions there are.
    pub fn sessions(&self) -> i64 {
        self.events.count()
    }
}

/// What the sessions that end in an hour are compared with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Limits {
    pub burst: Limit,
    /// Of bursts, in events a minute.
    pub pace: Limit,
    pub marathon: Limit,
    /// How many sessions ended in the 24 hours before, and how many of them had one event.
    pub sessions: u64,
    pub singles: u64,
    /// A slower session is no burst, in events a minute.
    pub slowest: u64,
}

impl Limits {
    /// The limits of `hour`, from the hours of one host. `None` while the host is being learned: it
    /// has too few sessions in the 24 hours before, or they all ended in the last of those hours,
    /// the beginning of which may not have been seen.
    pub fn of(
        hours: &BTreeMap<Hour, HourSums>,
        hour: Hour,
        thresholds: &Thresholds,
    ) -> Option<Limits> {
        let mut sum = HourSums::default();
        let mut first = None;
        for (at, sums) in hours.range(Hour(hour.0 - 24)..hour) {
            if sums.sessions() > 0 {
                first = first.or(Some(*at));
            }
            sum.events.plus(&sums.events);
            sum.durations_ms.plus(&sums.durations_ms);
            sum.paces.plus(&sums.paces);
            sum.singles += sums.singles;
        }
        let sessions = u64::try_from(sum.sessions()).ok()?;
        if sessions < thresholds.learn || first? > Hour(hour.0 - 2) {
            return None;
        }
        Some(Limits {
            burst: thresholds.burst.limit(&sum.events)?,
            pace: thresholds.pace_limit(&sum.paces),
            marathon: thresholds.marathon.limit(&sum.durations_ms)?,
            sessions,
            singles: u64::try_from(sum.singles).ok()?,
            slowest: thresholds.burst_pace_min,
        })
    }

    /// The anomalies of a session that ended in that hour.
    pub fn judge(&self, ip: &str, host: &str, span: &Span) -> impl Iterator<Item = Anomaly> {
        let duration_ms = span.duration_ms();
        let pace = pace(span);
        let found = |kind, limit: &Limit, unit_ms, observed, by_pace| {
            let Limit { count: sessions, rank, .. } = *limit;
            let events = span.count;
            let evidence = match by_pace {
                true => Evidence::Pace { events, duration_ms, sessions, rank },
                false => Evidence::Session { events, duration_ms, sessions, rank },
            };
            (observed > limit.above).then(|| Anomaly {
                kind,
                host: host.to_owned(),
                subject: ip.to_owned(),
                at: span.first,
                observed: observed / unit_ms,
                expected: limit.ranked / unit_ms,
                threshold: limit.above / unit_ms,
                evidence,
            })
        };
        let burst = found(Kind::Burst, &self.burst, 1, span.count, false)
            .or_else(|| found(Kind::Burst, &self.pace, 1, pace, true))
            .filter(|_| pace >= self.slowest);
        let marathon = found(Kind::Marathon, &self.marathon, 1_000, duration_ms, false);
        burst.into_iter().chain(marathon)
    }

    /// Judges a quarter of an hour: whether it has more one-event sessions than usual.
    pub fn judge_singles(
        &self,
        host: &str,
        quarter: i64,
        sessions: u64,
        singles: u64,
        thresholds: &Thresholds,
    ) -> Option<Anomaly> {
        let from = thresholds.singles_from(sessions, self.singles, self.sessions)?;
        let percent = |part: u64, of: u64| (100 * part + of / 2) / of.max(1);
        (singles >= from).then(|| Anomaly {
            kind: Kind::Singles,
            host: host.to_owned(),
            subject: String::new(),
            at: EventTime::from_millis(quarter * SINGLES_MS),
            observed: percent(singles, sessions),
            expected: percent(self.singles, self.sessions),
            threshold: percent(from, sessions),
            evidence: Evidence::Singles { sessions },
        })
    }
}

/// One-event sessions are counted in buckets of this length.
pub const SINGLES_MS: i64 = 900_000;

/// Whether visitors can be compared with those of a day that had these numbers of sessions, by hour
/// of the day.
pub fn day_is_known(
    mut by_hour: impl Iterator<Item = (i64, i64)> + Clone,
    thresholds: &Thresholds,
) -> bool {
    let all: i64 = by_hour.clone().map(|(_, n)| n).sum();
    let first = by_hour.find(|(_, n)| *n > 0);
    all >= thresholds.learn as i64 && first.is_some_and(|(hour, _)| hour < MORNING)
}

/// What a visitor did on one day on one host.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct VisitorSums {
    pub sessions: u64,
    /// Its sessions on the day before.
    pub before: u64,
}

/// A visitor who came back too often on `day`, and more often than on the day before. If that day
/// could not be judged (`judged_before`), who came as often on it counts now: who comes every day is
/// found once.
pub fn judge_visitor(
    host: &str,
    ip: &str,
    day: Day,
    VisitorSums { sessions, before }: VisitorSums,
    (limit, judged_before): (&Limit, bool),
    thresholds: &Thresholds,
) -> Option<Anomaly> {
    let is_news = sessions as f64 > thresholds.repeat_growth * before as f64
        && (!judged_before || Thresholds::is_more(sessions, before, thresholds.repeat_z));
    (sessions > limit.above && is_news).then(|| Anomaly {
        kind: Kind::Repeat,
        host: host.to_owned(),
        subject: ip.to_owned(),
        at: day.start(),
        observed: sessions,
        expected: limit.q95,
        threshold: limit.above,
        evidence: Evidence::Visitor { before, visitors: limit.count },
    })
}

/// What the visitors of one network did on one day on one host.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct NetworkSums {
    pub addresses: u64,
    pub sessions: u64,
    /// The most sessions of one address.
    pub most: u64,
    /// Its sessions on the day before.
    pub before: u64,
}

impl NetworkSums {
    /// Adds a visitor with this many sessions.
    pub fn add(&mut self, sessions: u64) {
        self.addresses += 1;
        self.sessions += sessions;
        self.most = self.most.max(sessions);
    }
}

/// A network of many addresses that came back too often on `day`, and much more often than on the
/// day before.
pub fn judge_network(
    host: &str,
    network: &str,
    day: Day,
    sums: NetworkSums,
    limit: &Limit,
    thresholds: &Thresholds,
) -> Option<Anomaly> {
    let NetworkSums { addresses, sessions, most, before } = sums;
    let is_news = sessions as f64 > thresholds.network_growth * before as f64
        && Thresholds::is_more(sessions, before, thresholds.network_z);
    let has_many = addresses >= thresholds.network_addresses;
    (has_many && sessions > limit.above && is_news).then(|| Anomaly {
        kind: Kind::Network,
        host: host.to_owned(),
        subject: network.to_owned(),
        at: day.start(),
        observed: sessions,
        expected: limit.q95,
        threshold: limit.above,
        evidence: Evidence::Network { before, addresses, most, networks: limit.count },
    })
}

/// Returns the surge or fall of a host in a bucket, if it is the first of its kind in a row.
/// `count` returns how many sessions ended in a bucket.
pub fn judge_bucket(
    host: &str,
    at: i64,
    count: impl Fn(i64) -> u64,
    thresholds: &Thresholds,
) -> Option<Anomaly> {
    let change = surge_or_fall(at, &count, thresholds)?;
    if surge_or_fall(at - 1, &count, thresholds).is_some_and(|before| before.kind == change.kind) {
        return None;
    }
    Some(Anomaly {
        kind: change.kind,
        host: host.to_owned(),
        subject: String::new(),
        at: EventTime::from_millis(at * BUCKET_MS),
        observed: change.observed,
        expected: change.twice_median / 2,
        threshold: change.threshold,
        evidence: change.evidence,
    })
}

/// How a bucket differs from the hour before.
struct Change {
    kind: Kind,
    observed: u64,
    twice_median: u64,
    threshold: u64,
    evidence: Evidence,
}

fn surge_or_fall(at: i64, count: impl Fn(i64) -> u64, thresholds: &Thresholds) -> Option<Change> {
    let change = |kind, observed, twice_median, threshold, evidence| {
        Some(Change { kind, observed, twice_median, threshold, evidence })
    };
    if let Some(twice_median) = twice_median_before(at, &count) {
        let observed = count(at);
        let from = thresholds.surge_from(twice_median);
        if observed >= from {
            return change(Kind::Surge, observed, twice_median, from, Evidence::Bucket);
        }
        if twice_median >= 2 * thresholds.surge_min {
            let to = thresholds.fall_to(twice_median, thresholds.surge_min)?;
            if observed > to {
                return None;
            }
            return change(Kind::Fall, observed, twice_median, to, Evidence::Bucket);
        }
    }
    // Too few sessions in five minutes: fifteen, the last five of which are this bucket.
    let first = at - QUARTER + 1;
    let twice_median = QUARTER as u64 * twice_median_before(first, &count)?;
    let observed: u64 = (first..=at).map(count).sum();
    let to = thresholds.fall_to(twice_median, thresholds.fall_min)?;
    if observed > to {
        return None;
    }
    change(Kind::Fall, observed, twice_median, to, Evidence::Quarter)
}

/// Twice the median of the hour before a bucket; `None` if the host was away for most of it.
fn twice_median_before(at: i64, count: impl Fn(i64) -> u64) -> Option<u64> {
    let mut before: [u64; BEFORE] = std::array::from_fn(|n| count(at - 1 - n as i64));
    if before.iter().filter(|n| **n > 0).count() < NOT_EMPTY {
        return None;
    }
    before.sort_unstable();
    Some(before[BEFORE / 2 - 1] + before[BEFORE / 2])
}
