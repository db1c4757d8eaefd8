//! What the detectors remember of one host: sums by hour, bucket and day, and what has been emitted.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::days::Days;
use super::history::{BUCKET_MS, Day, Hour, HourSums, Limits, SINGLES_MS, judge_bucket};
use super::state::{BUCKETS_AFTER, DetectorChanges, HISTORY, KEPT, LIVE};
use super::{Anomaly, Thresholds};
use crate::session::Span;
use crate::time::EventTime;

#[derive(Clone, Debug)]
pub(super) struct HostState {
    pub(super) name: Box<str>,
    pub(super) known_from: Hour,
    pub(super) hours: BTreeMap<Hour, HourSums>,
    pub(super) large: BTreeMap<Hour, BTreeMap<(String, Span), i64>>,
    pub(super) limits: BTreeMap<Hour, Limits>,
    /// Sessions by bucket of five minutes.
    pub(super) buckets: BTreeMap<i64, i64>,
    /// Sessions by quarter of an hour, and how many of them had one event.
    pub(super) quarters: BTreeMap<i64, (i64, i64)>,
    /// The anomalies of the host that have been emitted and not retracted, by hour.
    pub(super) host_anomalies: BTreeMap<Hour, BTreeSet<Anomaly>>,
    pub(super) days: Days,
    /// The buckets of five minutes whose rows have changed in this advance.
    pub(super) touched: BTreeSet<i64>,
}

impl HostState {
    pub(super) fn new(name: &str, known_from: Hour) -> Self {
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
    pub(super) fn known_day(&self, visitors_from: Day) -> Day {
        let last_unknown = Hour(self.known_from.0.saturating_sub(1)).day();
        Day(last_unknown.0 + 1).max(visitors_from)
    }

    /// Whether the whole history of an hour is known.
    pub(super) fn is_known(&self, hour: Hour) -> bool {
        hour.0 - HISTORY >= self.known_from.0
    }

    /// Emits the limits of the hours from `first` on that have large sessions.
    pub(super) fn limit(
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

    /// Those of these buckets of five minutes that may stand out, in order: they have sessions, or
    /// had some so shortly before that it could be a fall.
    pub(super) fn buckets_around(&self, buckets: Range<i64>) -> Vec<i64> {
        let mut around = Vec::new();
        let mut next = buckets.start;
        for (at, _) in self.buckets.range(buckets.start.saturating_sub(BUCKETS_AFTER)..) {
            let end = (at + BUCKETS_AFTER + 1).min(buckets.end);
            if *at >= buckets.end {
                break;
            }
            around.extend(next.max(*at)..end);
            next = next.max(end);
        }
        around
    }

    /// Judges these final buckets of five minutes, and these quarters of an hour.
    pub(super) fn judge(
        &mut self,
        host: &str,
        buckets: &[i64],
        quarters: Range<i64>,
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
        // A quarter without sessions does not stand out, and cannot have done so.
        let mut last: Option<(i64, bool)> = None;
        let first = quarters.start.min(quarters.end);
        for at in self.quarters.range(first..quarters.end).map(|(at, _)| *at) {
            let before = match last {
                Some((known, is_over)) if known == at - 1 => is_over,
                _ => singles(at - 1).is_some(),
            };
            let now = singles(at);
            last = Some((at, now.is_some()));
            // If the quarter before is unknown, this one may only continue it: it is not emitted.
            let hour_before = Hour::of(EventTime::from_millis((at - 1) * SINGLES_MS));
            let anomaly = now.filter(|_| !before && self.is_known(hour_before));
            found.push((EventTime::from_millis(at * SINGLES_MS), false, anomaly));
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

    /// Forgets what is no longer live when the watermark is in the hour `now`, and retracts what was
    /// emitted of it.
    pub(super) fn forget(&mut self, host: &str, now: Hour, changed: &mut DetectorChanges) {
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
