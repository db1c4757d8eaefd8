//! What the detectors remember of the changes of the table: enough to find the anomalies of the
//! last day, and to withdraw them when a correction explains them.
//!
//! An anomaly of hour `h` depends on the hours `h − 24 ..= h`. The hours after `H − 24`, where `H`
//! is the hour of the watermark, are *live*: their anomalies may still be withdrawn. So 49 hours of
//! sums are kept, and single sessions only if they are large enough to stand out, and only while
//! they are live.
//!
//! Visitors and networks are judged by the day: see `days`.
//!
//! The output consists of changes: the sessions that may stand out and the limits of their hours,
//! which the caller joins, and the anomalies of whole hosts. Whatever expires is retracted, so what
//! the join yields is what is live. Nothing is emitted for an hour whose history is incomplete.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::days::{DayLimits, Days, Frequent, HostDay, KEPT_DAYS, LIVE_DAYS};
use super::history::{BUCKET_MS, Day, Hour, HourSums, Limits, SINGLES_MS, bucket, judge_bucket};
use super::{Anomaly, Thresholds, duration_ms};
use crate::session::Span;
use crate::time::EventTime;

/// For how many hours anomalies are live: they may still be withdrawn.
pub const LIVE: i64 = 24;
/// How many hours of history an hour is compared with.
const HISTORY: i64 = 24;
/// How many hours are kept: those, and one more for the quarter before the first live one.
const KEPT: i64 = LIVE + HISTORY + 1;
/// How many buckets after one may change if its count does: those whose hour before contains it,
/// and the next, which is emitted only if the bucket before it does not stand out in the same way.
const BUCKETS_AFTER: i64 = 13;

/// Before any day.
const ALL_DAYS: Day = Day(i64::MIN / 100);

/// A row of the table that was added (`diff` 1) or removed (−1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RowChange<'a> {
    pub ip: &'a str,
    pub host: &'a str,
    /// A hash of the host, which stands for it.
    pub host_hash: u64,
    pub span: Span,
    /// Its `session_end`.
    pub end: EventTime,
    pub diff: i64,
}

/// A host and an hour: the key of the join.
pub type HostHour = (String, Hour);

/// What an advance has changed. A positive diff adds, a negative one retracts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DetectorChanges {
    /// Sessions that are large enough to stand out: address and span.
    pub large: Vec<(HostHour, (String, Span), i64)>,
    /// What they are compared with.
    pub limits: Vec<(HostHour, Limits, i64)>,
    /// Anomalies of whole hosts.
    pub host_anomalies: Vec<(Anomaly, i64)>,
    /// Visitors and networks with enough sessions to stand out.
    pub frequent: Vec<(HostDay, Frequent, i64)>,
    /// What they are compared with.
    pub day_limits: Vec<(HostDay, DayLimits, i64)>,
}

/// The memory of the detectors, for some of the hosts.
#[derive(Clone, Debug)]
pub struct DetectorState {
    thresholds: Thresholds,
    bounds: DetectorBounds,
    watermark: EventTime,
    /// The first hour whose rows are known.
    known_from: Hour,
    /// The latest hour of a row that was refused because there was no room for its host.
    refused: Option<Hour>,
    /// By the hash of their name.
    hosts: HashMap<u64, HostState>,
    /// Rows that were refused because there was no room for their host.
    pub refused_rows: u64,
    /// How many visitors are kept, counted by host and day.
    visitors: usize,
    /// The first day whose visitors are known: before it, there were too many.
    visitors_from: Day,
}

/// What is kept at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DetectorBounds {
    pub hosts: usize,
    /// Visitors, counted by host and day. With zero, neither visitors nor networks are judged.
    pub visitors: usize,
}

/// The first hour whose rows are needed when the watermark is here: for what is live, and for what
/// it is compared with.
pub fn needed_from(watermark: EventTime, visitors: bool) -> Hour {
    let now = Hour::of(watermark);
    match visitors {
        true => Day(now.day().0 - KEPT_DAYS + 1).first_hour().min(Hour(now.0 - KEPT + 1)),
        false => Hour(now.0 - KEPT + 1),
    }
}

#[derive(Clone, Debug)]
struct HostState {
    name: Box<str>,
    known_from: Hour,
    hours: BTreeMap<Hour, HourSums>,
    large: BTreeMap<Hour, BTreeMap<(String, Span), i64>>,
    limits: BTreeMap<Hour, Limits>,
    /// Sessions by bucket of five minutes.
    buckets: BTreeMap<i64, i64>,
    /// Sessions by quarter of an hour, and how many of them had one event.
    quarters: BTreeMap<i64, (i64, i64)>,
    /// The anomalies of the host that have been emitted and not retracted, by hour.
    host_anomalies: BTreeMap<Hour, BTreeSet<Anomaly>>,
    days: Days,
    /// The buckets of five minutes whose rows have changed in this advance.
    touched: BTreeSet<i64>,
}

impl DetectorState {
    /// Starts empty. Rows that ended before the hour `known_from` are ignored.
    pub fn new(thresholds: Thresholds, bounds: DetectorBounds, known_from: Hour) -> Self {
        DetectorState {
            thresholds,
            bounds,
            watermark: EventTime::NEVER,
            known_from,
            refused: None,
            hosts: HashMap::new(),
            refused_rows: 0,
            visitors: 0,
            visitors_from: ALL_DAYS,
        }
    }

    /// The first hour whose anomalies are known and live.
    pub fn first_live(&self) -> Hour {
        let live = Hour::of(self.watermark).0 - LIVE + 1;
        Hour(live.max(self.known_from.0.saturating_add(HISTORY)))
    }

    /// Declares that all rows from the hour `known_from` on have been taken in: forgets the older
    /// ones, and emits everything that is live, as if nothing had been emitted before.
    pub fn begin(&mut self, known_from: Hour) -> DetectorChanges {
        let mut changed = DetectorChanges::default();
        self.known_from = known_from;
        let live = Hour::of(self.watermark).0 - LIVE + 1;
        let buckets = live * (super::HOUR_MS / BUCKET_MS)..bucket(self.watermark, BUCKET_MS);
        let buckets: BTreeSet<i64> = buckets.collect();
        let quarters = live * (super::HOUR_MS / SINGLES_MS)..bucket(self.watermark, SINGLES_MS);
        for host_state in self.hosts.values_mut() {
            let host = &*host_state.name.clone();
            host_state.known_from = host_state.known_from.max(known_from);
            host_state.hours = host_state.hours.split_off(&known_from);
            host_state.limits.clear();
            host_state.host_anomalies.clear();
            for (hour, sessions) in &host_state.large {
                let all = sessions.iter().map(|(session, n)| (session.clone(), *n));
                let all = all.map(|(session, n)| ((host.to_string(), *hour), session, n));
                changed.large.extend(all);
            }
            host_state.limit(host, Hour(i64::MIN), &self.thresholds, &mut changed);
            host_state.judge(host, &buckets, quarters.clone(), &self.thresholds, &mut changed);
            let days = (live_day(self.watermark), host_state.known_day(self.visitors_from));
            host_state.days.emit_all(host, days, &self.thresholds, &mut changed);
        }
        changed
    }

    /// The watermark that it has reached.
    pub fn watermark(&self) -> EventTime {
        self.watermark
    }

    /// How many hosts have state.
    pub fn hosts(&self) -> usize {
        self.hosts.len()
    }

    /// Whether rows or visitors were refused because there was no room for them.
    pub fn has_refused(&self) -> bool {
        self.refused.is_some() || self.visitors_from > ALL_DAYS
    }

    /// Takes in rows and moves to a watermark. Returns what that has changed.
    pub fn advance<'a>(
        &mut self,
        rows: impl Iterator<Item = RowChange<'a>>,
        watermark: EventTime,
    ) -> DetectorChanges {
        let before = self.watermark;
        self.watermark = before.max(watermark);
        let live = Hour::of(self.watermark).0 - LIVE + 1;
        let (live_buckets, live_quarters) =
            (live * (super::HOUR_MS / BUCKET_MS), live * (super::HOUR_MS / SINGLES_MS));
        let mut changed = DetectorChanges::default();
        let mut touched: Vec<u64> = Vec::new();
        for row in rows {
            let Some(host_state) = self.take(&row, &mut changed) else { continue };
            if host_state.touched.is_empty() {
                touched.push(row.host_hash);
            }
            host_state.touched.insert(bucket(row.end, BUCKET_MS));
        }
        for host in touched {
            let Some(host_state) = self.hosts.get_mut(&host) else { continue };
            let buckets = std::mem::take(&mut host_state.touched);
            let host = &*host_state.name.clone();
            let days = (live_day(self.watermark), host_state.known_day(self.visitors_from));
            host_state.days.emit(host, days, &self.thresholds, &mut changed);
            let first = Hour(buckets.first().map_or(0, |at| at * BUCKET_MS / super::HOUR_MS));
            host_state.limit(host, first, &self.thresholds, &mut changed);
            // Buckets that are already final are judged again.
            let known = buckets.iter().flat_map(|at| *at..=at + BUCKETS_AFTER);
            let live = live_buckets..bucket(before, BUCKET_MS);
            let again: BTreeSet<i64> = known.filter(|at| live.contains(at)).collect();
            let oldest = buckets.first().map_or(0, |at| (at * BUCKET_MS).div_euclid(SINGLES_MS));
            let quarters = oldest.max(live_quarters)..bucket(before, SINGLES_MS);
            if !again.is_empty() || !quarters.is_empty() {
                host_state.judge(host, &again, quarters, &self.thresholds, &mut changed);
            }
        }
        self.turn(before, &mut changed);
        if self.visitors > self.bounds.visitors {
            self.drop_visitors(&mut changed);
        }
        changed
    }

    /// Forgets all visitors, because there are too many. They are counted again from the next day
    /// on.
    fn drop_visitors(&mut self, changed: &mut DetectorChanges) {
        let last = self.hosts.values().filter_map(|host_state| host_state.days.last()).max();
        self.visitors_from = last.map_or(self.visitors_from, |day| Day(day.0 + 1));
        for host_state in self.hosts.values_mut() {
            host_state.days.clear(&host_state.name, changed);
        }
        self.visitors = 0;
    }

    /// Adds a row to its host, unless it is too old or there is no room for the host.
    fn take(
        &mut self,
        row: &RowChange<'_>,
        changed: &mut DetectorChanges,
    ) -> Option<&mut HostState> {
        let hour = Hour::of(row.end);
        let now = Hour::of(self.watermark).0;
        let is_kept = hour.0 > now - KEPT;
        let by_day = self.bounds.visitors > 0
            && hour.day().0 > Day::of(self.watermark).0 - KEPT_DAYS
            && hour.day() >= self.visitors_from;
        if !(is_kept || by_day) || hour < self.known_from {
            return None;
        }
        let hosts = self.hosts.len();
        let entry = self.hosts.entry(row.host_hash);
        if matches!(entry, Entry::Vacant(_)) && hosts >= self.bounds.hosts {
            self.refused = self.refused.max(Some(hour));
            self.refused_rows += 1;
            return None;
        }
        let host_state = entry.or_insert_with(|| {
            // Rows of this host may have been refused until then.
            let oldest = needed_from(self.watermark, self.bounds.visitors > 0);
            let since = self.refused.filter(|refused| *refused >= oldest);
            let known_from = since.map_or(self.known_from, |refused| Hour(refused.0 + 1));
            HostState::new(row.host, known_from)
        });
        if hour < host_state.known_from {
            return None;
        }
        if by_day {
            let grown = host_state.days.add(row.ip, hour, row.diff, &self.thresholds);
            self.visitors = self.visitors.saturating_add_signed(grown);
        }
        if !is_kept {
            return Some(host_state);
        }
        host_state.hours.entry(hour).or_default().add(&row.span, row.diff);
        *host_state.buckets.entry(bucket(row.end, BUCKET_MS)).or_default() += row.diff;
        let (all, singles) = host_state.quarters.entry(bucket(row.end, SINGLES_MS)).or_default();
        *all += row.diff;
        *singles += if row.span.count == 1 { row.diff } else { 0 };
        let is_large = row.span.count > self.thresholds.burst.min
            || duration_ms(&row.span) > self.thresholds.marathon.min;
        if is_large && hour.0 > now - LIVE {
            let session = (row.ip.to_owned(), row.span);
            let of_hour = host_state.large.entry(hour).or_default();
            let count = of_hour.entry(session.clone()).or_default();
            *count += row.diff;
            if *count == 0 {
                of_hour.remove(&session);
            }
            changed.large.push(((row.host.to_owned(), hour), session, row.diff));
        }
        Some(host_state)
    }

    /// Judges the buckets that have become final, and retracts what is no longer live.
    fn turn(&mut self, before: EventTime, changed: &mut DetectorChanges) {
        let (from, to) = (bucket(before, BUCKET_MS), bucket(self.watermark, BUCKET_MS));
        if from == to {
            return;
        }
        let live = Hour::of(self.watermark).0 - LIVE + 1;
        let from = from.max(live * (super::HOUR_MS / BUCKET_MS));
        let new: BTreeSet<i64> = (from..to).collect();
        let quarters = bucket(before, SINGLES_MS).max((from * BUCKET_MS).div_euclid(SINGLES_MS))
            ..bucket(self.watermark, SINGLES_MS);
        let forgets = Hour::of(before) != Hour::of(self.watermark);
        let (thresholds, watermark) = (&self.thresholds, self.watermark);
        let visitors = &mut self.visitors;
        self.hosts.retain(|_, host_state| {
            let host = &*host_state.name.clone();
            host_state.judge(host, &new, quarters.clone(), thresholds, changed);
            if forgets {
                host_state.forget(host, Hour::of(watermark), changed);
                let grown = host_state.days.forget(host, Day::of(watermark), changed);
                *visitors = visitors.saturating_add_signed(grown);
            }
            !host_state.hours.is_empty() || !host_state.days.is_empty()
        });
    }
}

impl HostState {
    fn new(name: &str, known_from: Hour) -> Self {
        HostState {
            name: name.into(),
            known_from,
            hours: BTreeMap::new(),
            large: BTreeMap::new(),
            limits: BTreeMap::new(),
            buckets: BTreeMap::new(),
            quarters: BTreeMap::new(),
            host_anomalies: BTreeMap::new(),
            days: Days::default(),
            touched: BTreeSet::new(),
        }
    }

    /// The first day of which all sessions are known, and all visitors.
    fn known_day(&self, visitors_from: Day) -> Day {
        let last_unknown = Hour(self.known_from.0.saturating_sub(1)).day();
        Day(last_unknown.0 + 1).max(visitors_from)
    }

    /// Whether the whole history of an hour is known.
    fn is_known(&self, hour: Hour) -> bool {
        hour.0 - HISTORY >= self.known_from.0
    }

    /// Emits the limits of the hours from `first` on that have large sessions.
    fn limit(
        &mut self,
        host: &str,
        first: Hour,
        thresholds: &Thresholds,
        changed: &mut DetectorChanges,
    ) {
        let hours: Vec<Hour> = self.large.range(first..).map(|(hour, _)| *hour).collect();
        for hour in hours {
            let is_needed = self.is_known(hour) && !self.large[&hour].is_empty();
            let limits = is_needed.then(|| Limits::of(&self.hours, hour, thresholds)).flatten();
            let emitted = self.limits.get(&hour).copied();
            if emitted == limits {
                continue;
            }
            let key = || (host.to_owned(), hour);
            changed.limits.extend(emitted.map(|emitted| (key(), emitted, -1)));
            changed.limits.extend(limits.map(|limits| (key(), limits, 1)));
            match limits {
                Some(limits) => self.limits.insert(hour, limits),
                None => self.limits.remove(&hour),
            };
        }
    }

    /// Judges these final buckets of five minutes, and these quarters of an hour.
    fn judge(
        &mut self,
        host: &str,
        buckets: &BTreeSet<i64>,
        quarters: std::ops::Range<i64>,
        thresholds: &Thresholds,
        changed: &mut DetectorChanges,
    ) {
        let count = |at: i64| self.buckets.get(&at).map_or(0, |n| u64::try_from(*n).unwrap_or(0));
        let mut found: Vec<(EventTime, bool, Option<Anomaly>)> = Vec::new();
        for at in buckets {
            let start = EventTime::from_millis(at * BUCKET_MS);
            let is_known = self.is_known(Hour::of(start));
            let anomaly = is_known.then(|| judge_bucket(host, *at, count, thresholds)).flatten();
            found.push((start, true, anomaly));
        }
        let mut limits: BTreeMap<Hour, Option<Limits>> = BTreeMap::new();
        let mut singles = |at: i64| {
            let (sessions, singles) = *self.quarters.get(&at)?;
            let hour = Hour::of(EventTime::from_millis(at * SINGLES_MS));
            if !self.is_known(hour) {
                return None;
            }
            let of_hour = || Limits::of(&self.hours, hour, thresholds);
            let limits = limits.entry(hour).or_insert_with(of_hour).as_ref()?;
            let [sessions, singles] = [sessions, singles].map(|n| u64::try_from(n).unwrap_or(0));
            limits.judge_singles(host, at, sessions, singles, thresholds)
        };
        let mut before = singles(quarters.start - 1).is_some();
        for at in quarters {
            let now = singles(at);
            let is_over = now.is_some();
            // If the quarter before is unknown, this one may only continue it: it is not emitted.
            let hour_before = Hour::of(EventTime::from_millis((at - 1) * SINGLES_MS));
            let anomaly = now.filter(|_| !before && self.is_known(hour_before));
            found.push((EventTime::from_millis(at * SINGLES_MS), false, anomaly));
            before = is_over;
        }
        for (at, by_bucket, anomaly) in found {
            self.emit(at, by_bucket, anomaly, changed);
        }
    }

    /// Emits the anomaly of the host, or retracts the one before, if that changes anything.
    fn emit(
        &mut self,
        at: EventTime,
        by_bucket: bool,
        anomaly: Option<Anomaly>,
        changed: &mut DetectorChanges,
    ) {
        let emitted = self.host_anomalies.entry(Hour::of(at)).or_default();
        let of_it =
            |one: &&Anomaly| one.at == at && by_bucket == (one.kind != super::Kind::Singles);
        let before = emitted.iter().find(of_it).cloned();
        if before == anomaly {
            return;
        }
        if let Some(before) = before {
            emitted.remove(&before);
            changed.host_anomalies.push((before, -1));
        }
        if let Some(anomaly) = anomaly {
            emitted.insert(anomaly.clone());
            changed.host_anomalies.push((anomaly, 1));
        }
    }

    /// Retracts what is no longer live when the watermark is in the hour `now`.
    fn forget(&mut self, host: &str, now: Hour, changed: &mut DetectorChanges) {
        let live = Hour(now.0 - LIVE + 1);
        let kept = Hour(now.0 - KEPT + 1);
        self.hours = self.hours.split_off(&kept);
        self.buckets = self.buckets.split_off(&(kept.0 * super::HOUR_MS / BUCKET_MS));
        self.quarters = self.quarters.split_off(&(kept.0 * super::HOUR_MS / SINGLES_MS));
        let large = self.large.split_off(&live);
        for (hour, sessions) in std::mem::replace(&mut self.large, large) {
            let sessions = sessions.into_iter();
            changed.large.extend(sessions.map(|(s, n)| ((host.to_owned(), hour), s, -n)));
        }
        let limits = self.limits.split_off(&live);
        for (hour, limits) in std::mem::replace(&mut self.limits, limits) {
            changed.limits.push(((host.to_owned(), hour), limits, -1));
        }
        let host_anomalies = self.host_anomalies.split_off(&live);
        let expired =
            std::mem::replace(&mut self.host_anomalies, host_anomalies).into_values().flatten();
        changed.host_anomalies.extend(expired.map(|anomaly| (anomaly, -1)));
    }
}

/// The first day whose anomalies are live.
fn live_day(watermark: EventTime) -> Day {
    Day(Day::of(watermark).0 - LIVE_DAYS + 1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{Kind, Session, batch};
    use super::*;
    use crate::shared::rng::Rng;

    const GAP_MS: i64 = 300_000;
    const HOUR_MS: i64 = super::super::HOUR_MS;

    type Row = (String, String, Span, EventTime);

    fn bounds(hosts: usize) -> DetectorBounds {
        DetectorBounds { hosts, visitors: 100_000 }
    }

    /// What a caller who joins the changes has.
    #[derive(Default)]
    struct Joined {
        large: BTreeMap<(HostHour, (String, Span)), i64>,
        limits: BTreeMap<(HostHour, Limits), i64>,
        host_anomalies: BTreeMap<Anomaly, i64>,
        frequent: BTreeMap<(HostDay, Frequent), i64>,
        day_limits: BTreeMap<(HostDay, DayLimits), i64>,
    }

    fn plus<K: Ord + Clone>(map: &mut BTreeMap<K, i64>, key: K, diff: i64) {
        let n = map.entry(key.clone()).or_default();
        *n += diff;
        if *n == 0 {
            map.remove(&key);
        }
    }

    impl Joined {
        fn take(&mut self, changed: DetectorChanges) {
            changed.large.into_iter().for_each(|(k, v, n)| plus(&mut self.large, (k, v), n));
            changed.limits.into_iter().for_each(|(k, v, n)| plus(&mut self.limits, (k, v), n));
            let of_hosts = changed.host_anomalies.into_iter();
            of_hosts.for_each(|(anomaly, n)| plus(&mut self.host_anomalies, anomaly, n));
            changed.frequent.into_iter().for_each(|(k, v, n)| plus(&mut self.frequent, (k, v), n));
            let limits = changed.day_limits.into_iter();
            limits.for_each(|(k, v, n)| plus(&mut self.day_limits, (k, v), n));
        }

        fn anomalies(&self) -> Vec<Anomaly> {
            let mut all: Vec<Anomaly> = self.host_anomalies.keys().cloned().collect();
            for (key, (ip, span)) in self.large.keys() {
                for (_, limits) in self.limits.keys().filter(|(of, _)| of == key) {
                    all.extend(limits.judge(ip, &key.0, span));
                }
            }
            for (key, frequent) in self.frequent.keys() {
                for (_, limits) in self.day_limits.keys().filter(|(of, _)| of == key) {
                    all.extend(limits.judge(key, frequent, &Thresholds::sensitive()));
                }
            }
            let counts = self.large.values().chain(self.limits.values());
            let counts = counts.chain(self.host_anomalies.values()).chain(self.frequent.values());
            assert!(counts.chain(self.day_limits.values()).all(|n| *n == 1), "each once");
            all.sort_unstable();
            all
        }
    }

    /// Whether an anomaly is known to this state, and live.
    fn is_known(state: &DetectorState, anomaly: &Anomaly) -> bool {
        if anomaly.kind.is_by_day() {
            let day = Day::of(anomaly.at);
            let known_from = state.known_from.0.saturating_sub(1);
            return day >= live_day(state.watermark) && Day(day.0 - 1) > Hour(known_from).day();
        }
        hour(anomaly) >= state.first_live()
    }

    fn hour(anomaly: &Anomaly) -> Hour {
        anomaly.hour(GAP_MS)
    }

    fn random_row(rng: &mut Rng, now_ms: i64) -> Row {
        let host = ["a.example", "b.example"][rng.below(2) as usize].to_owned();
        let ip = format!("192.0.{}.{}", rng.below(12), rng.below(10));
        let end_ms = now_ms - rng.below(600_000) as i64;
        let count = if rng.one_in(15) { rng.between(1, 40) } else { rng.between(1, 4) };
        let span_ms = if rng.one_in(20) { rng.below(2_000_000) } else { rng.below(100_000) };
        let last = EventTime::from_millis(end_ms - GAP_MS);
        let first = last.plus(if count == 1 { 0 } else { -(span_ms as i64) });
        (ip, host, Span { first, last, count }, EventTime::from_millis(end_ms))
    }

    #[test]
    fn what_is_joined_is_the_batch_answer_of_the_live_hours() {
        let mut seen: BTreeMap<Kind, (u64, u64)> = BTreeMap::new();
        for seed in 0..6 {
            let mut rng = Rng::new(seed);
            let start_ms = 1_780_272_000_000 + rng.below(86_400_000) as i64;
            let known_from = match seed % 3 {
                1 => Hour(start_ms.div_euclid(HOUR_MS)),
                _ => Hour(i64::MIN / 2),
            };
            let mut state = DetectorState::new(Thresholds::sensitive(), bounds(10), known_from);
            // Whatever was emitted before `begin` does not count.
            let begins_at = if seed % 3 == 2 { 150 } else { 0 };
            let (mut joined, mut rows) = (Joined::default(), Vec::<Row>::new());
            let mut now_ms = start_ms + HOUR_MS;
            let mut before: Vec<Anomaly> = Vec::new();
            let mut busy = 1;
            for step in 0..400 {
                // Time advances by minutes, and sometimes by hours.
                now_ms += rng.below(600_000) as i64;
                now_ms += if rng.one_in(60) { rng.below(20 * 3_600_000) as i64 } else { 0 };
                busy = if rng.one_in(8) { rng.below(14) } else { busy };
                let mut changes: Vec<(Row, i64)> =
                    (0..busy).map(|_| (random_row(&mut rng, now_ms), 1)).collect();
                // Late events remove a row, and may replace it with a longer one.
                if rng.one_in(2) && !rows.is_empty() {
                    let recent = rows.len().min(400);
                    let at = rows.len() - 1 - rng.below(recent as u64) as usize;
                    let row = rows[at].clone();
                    let mut longer = row.clone();
                    longer.2.count += rng.between(1, 9);
                    changes.push((row, -1));
                    changes.extend(rng.one_in(2).then_some((longer, 1)));
                }
                for (row, diff) in &changes {
                    match diff {
                        1 => rows.push(row.clone()),
                        _ => {
                            let at = rows.iter().position(|known| known == row);
                            rows.remove(at.expect("it was there"));
                        }
                    }
                }
                let watermark = EventTime::from_millis(now_ms + 1);
                let of = |(row, diff): &(Row, i64)| (row.clone(), *diff);
                let owned: Vec<(Row, i64)> = changes.iter().map(of).collect();
                let changes = owned.iter().map(|((ip, host, span, end), diff)| RowChange {
                    ip,
                    host,
                    host_hash: xxhash_rust::xxh3::xxh3_64(host.as_bytes()),
                    span: *span,
                    end: *end,
                    diff: *diff,
                });
                let changed = state.advance(changes, watermark);
                match step {
                    _ if step < begins_at => continue,
                    _ if step == begins_at && step > 0 => {
                        let from = match seed {
                            2 => Hour(Hour::of(watermark).0 - HISTORY),
                            _ => needed_from(watermark, true),
                        };
                        joined.take(state.begin(from));
                    }
                    _ => joined.take(changed),
                }
                if step % 5 > 0 {
                    continue;
                }
                // Nothing older can be live, nor be the history of what is.
                let needed = watermark.plus(-73 * HOUR_MS);
                rows.retain(|(.., end)| *end > needed);
                let table = rows.iter().map(|(ip, host, span, end)| Session {
                    ip,
                    host,
                    span: *span,
                    end: *end,
                });
                let mut want = batch(table, watermark, &Thresholds::sensitive());
                want.retain(|anomaly| is_known(&state, anomaly));
                // The first quarter that is known may only continue the one before: it is left out.
                let first = Hour(state.known_from.0.saturating_add(HISTORY));
                let quarter = |a: &Anomaly| bucket(a.at, SINGLES_MS);
                let is_first = |a: &Anomaly| quarter(a) == first.0.saturating_mul(4);
                want.retain(|a| a.kind != Kind::Singles || !is_first(a));
                let got = joined.anomalies();
                let odd: Vec<&Anomaly> = got.iter().filter(|a| !want.contains(a)).collect();
                let missing: Vec<&Anomaly> = want.iter().filter(|a| !got.contains(a)).collect();
                assert!(got == want, "seed {seed}: {odd:?} instead of {missing:?}");
                for anomaly in &got {
                    seen.entry(anomaly.kind).or_default().0 += 1;
                }
                let live = |a: &&Anomaly| is_known(&state, a);
                let is_gone = |a: &&Anomaly| !got.iter().any(|b| b.identity() == a.identity());
                let withdrawn = before.iter().filter(live).filter(is_gone);
                withdrawn.for_each(|a| seen.entry(a.kind).or_default().1 += 1);
                before = got;
            }
        }
        // Each kind must have occurred, or the test proves nothing.
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Clock) {
            let (raised, withdrawn) = seen.get(&kind).copied().unwrap_or_default();
            assert!(raised > 50 && withdrawn > 0, "{seen:?}");
        }
    }

    #[test]
    fn hosts_are_bounded_and_a_host_without_room_leaves_no_trace() {
        let mut state = DetectorState::new(Thresholds::sensitive(), bounds(1), Hour(i64::MIN / 2));
        let last = EventTime::from_millis(1_780_272_000_000);
        let span = Span { first: last, last, count: 90 };
        let row = |host: &'static str, diff| RowChange {
            ip: "a",
            host,
            host_hash: u64::from(host.as_bytes()[0]),
            span,
            end: last.plus(GAP_MS),
            diff,
        };
        let watermark = last.plus(GAP_MS + 1);
        state.advance([row("a.example", 1), row("b.example", 1)].into_iter(), watermark);
        assert_eq!((state.hosts(), state.refused_rows), (1, 1));
        // Later there is room, but a correction of the past is ignored.
        let later = watermark.plus(30 * HOUR_MS);
        state.advance([row("a.example", -1)].into_iter(), later);
        state.hosts.clear();
        let changed = state.advance([row("b.example", -1)].into_iter(), later);
        assert_eq!(changed, DetectorChanges::default());
    }

    #[test]
    fn too_many_visitors_are_forgotten_until_the_next_day() {
        let bounds = DetectorBounds { hosts: 10, visitors: 60 };
        let mut state = DetectorState::new(Thresholds::sensitive(), bounds, Hour(i64::MIN / 2));
        let day = 20_605;
        let mut joined = Joined::default();
        // Every day twenty visitors, one of whom comes often, and on some days a crowd.
        let mut one_day = |state: &mut DetectorState, day: i64, crowd: u64| {
            let start = Day(day).start();
            let ip = |n: u64| format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255);
            let often = (0..20).map(|n| (ip(0), n));
            let visits = (1..20 + crowd).map(|n| (ip(n), n % 40));
            let visits: Vec<(String, u64)> = visits.chain(often).collect();
            let rows = visits.iter().map(|(ip, n)| {
                let last = start.plus(60_000 * *n as i64);
                let span = Span { first: last, last, count: 1 };
                let end = last.plus(GAP_MS);
                RowChange { ip, host: "a", host_hash: 1, span, end, diff: 1 }
            });
            joined.take(state.advance(rows, start.plus(3 * HOUR_MS)));
            let found = joined.anomalies().into_iter();
            found.filter(|a| a.kind == Kind::Repeat).map(|a| Day::of(a.at).0 - 20_605).collect()
        };
        let none: [i64; 0] = [];
        let mut days = |n: i64, crowd| -> Vec<i64> { one_day(&mut state, day + n, crowd) };
        assert_eq!(days(0, 0), none, "there is no day before");
        assert_eq!(days(1, 0), [1]);
        assert_eq!(days(2, 100), none, "all of them are forgotten");
        assert_eq!(days(3, 0), none, "the day before is not known");
        assert_eq!(days(4, 0), [4]);
        assert_eq!(days(5, 0), [4, 5]);
        assert!(state.has_refused() && state.visitors == 60);
    }
}
