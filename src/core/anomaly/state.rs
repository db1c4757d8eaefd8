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
//! the join yields is what is live, and what has expired in the last advance. Nothing is emitted for
//! an hour whose history is incomplete.

mod advance;

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::days::{DayLimits, Frequent, HostDay, KEPT_DAYS, LIVE_DAYS};
use super::history::{BUCKET_MS, Day, Hour, Limits, SINGLES_MS, bucket};
use super::host::HostState;
use super::network::Visitor;
use super::open::{OpenReport, OpenSessions};
use super::{Anomaly, Thresholds};
use crate::key::Key;
use crate::session::Span;
use crate::time::EventTime;

/// For how many hours anomalies are live: they may still be withdrawn.
pub const LIVE: i64 = 24;
/// How many hours of history an hour is compared with.
pub(super) const HISTORY: i64 = 24;
/// How many hours are kept: those, and one more for the quarter before the first live one.
pub(super) const KEPT: i64 = LIVE + HISTORY + 1;
/// How many buckets after one may change if its count does: those whose hour before contains it,
/// or the hour before the quarter that they end; and the next, which is emitted only if the bucket
/// before it does not stand out in the same way.
pub(super) const BUCKETS_AFTER: i64 = 15;

/// Before any day.
const ALL_DAYS: Day = Day(i64::MIN / 100);

/// A row of the table that was added (`diff` 1) or removed (−1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RowChange<'a> {
    pub key: &'a Key,
    /// The visitor of the key.
    pub visitor: &'a Visitor,
    /// A hash of the host of the key, which stands for it.
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
    /// Anomalies of whole hosts, and of sessions that are open.
    pub host_anomalies: Vec<(Anomaly, i64)>,
    /// Visitors and networks with enough sessions to stand out.
    pub frequent: Vec<(HostDay, Frequent, i64)>,
    /// What they are compared with.
    pub day_limits: Vec<(HostDay, DayLimits, i64)>,
    /// Whether all visitors were forgotten, because there were too many.
    pub forgot_visitors: bool,
}

impl DetectorChanges {
    /// Adds what has changed after this.
    pub fn extend(&mut self, then: DetectorChanges) {
        self.large.extend(then.large);
        self.limits.extend(then.limits);
        self.host_anomalies.extend(then.host_anomalies);
        self.frequent.extend(then.frequent);
        self.day_limits.extend(then.day_limits);
        self.forgot_visitors |= then.forgot_visitors;
    }
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
    hosts: HashMap<u64, HostState, RandomState>,
    /// Rows that were refused because there was no room for their host.
    pub refused_rows: u64,
    /// How many visitors are kept, counted by host and day.
    visitors: usize,
    /// The first day whose visitors are known: before it, there were too many.
    visitors_from: Day,
    open: OpenSessions,
    /// Anomalies of open sessions that have to be retracted.
    joined: Vec<Anomaly>,
    /// What has expired in the last advance, to be retracted by the next.
    expired: DetectorChanges,
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

impl DetectorState {
    /// Starts empty. Rows that ended before the hour `known_from` are ignored.
    pub fn new(thresholds: Thresholds, bounds: DetectorBounds, known_from: Hour) -> Self {
        DetectorState {
            thresholds,
            bounds,
            watermark: EventTime::NEVER,
            known_from,
            refused: None,
            hosts: HashMap::default(),
            refused_rows: 0,
            visitors: 0,
            visitors_from: ALL_DAYS,
            open: OpenSessions::default(),
            joined: Vec::new(),
            expired: DetectorChanges::default(),
        }
    }

    /// The same, with the open sessions that another has been told of.
    #[must_use]
    pub fn with_open_of(self, other: &mut DetectorState) -> Self {
        let mut open = std::mem::take(&mut other.open);
        open.begin();
        DetectorState { open, ..self }
    }

    /// Declares that all rows from the hour `known_from` on have been taken in: forgets the older
    /// ones, and emits everything that is live, as if nothing had been emitted before.
    pub fn begin(&mut self, known_from: Hour) -> DetectorChanges {
        let mut changed = DetectorChanges::default();
        self.expired = DetectorChanges::default();
        self.known_from = known_from;
        let live = Hour::of(self.watermark).0 - LIVE + 1;
        let buckets = live * (super::HOUR_MS / BUCKET_MS)..bucket(self.watermark, BUCKET_MS);
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
            let buckets = host_state.buckets_around(buckets.clone());
            host_state.judge(host, &buckets, quarters.clone(), &self.thresholds, &mut changed);
            let days = (live_day(self.watermark), host_state.known_day(self.visitors_from));
            host_state.days.emit_all(host, days, &self.thresholds, &mut changed);
        }
        self.open.begin();
        self.judge_open(&mut changed);
        changed
    }

    /// Takes in what has become of a long session; `host_hash` stands for its host. What follows
    /// from it is returned by the next [`Self::advance`], whose rows come later.
    pub fn report(&mut self, host_hash: u64, report: &OpenReport) {
        let gone = self.open.report(host_hash, report);
        self.joined.extend(gone);
    }

    fn judge_open(&mut self, changed: &mut DetectorChanges) {
        let (now, thresholds) = (Hour::of(self.watermark), &self.thresholds);
        self.open.judge(&self.hosts, now, thresholds, &mut changed.host_anomalies);
    }

    /// Sets how many visitors may be kept, if any are.
    pub fn allow_visitors(&mut self, visitors: usize) {
        self.bounds.visitors = visitors;
    }

    /// The watermark that it has reached.
    pub fn watermark(&self) -> EventTime {
        self.watermark
    }

    /// How many hosts have state.
    pub fn hosts(&self) -> usize {
        self.hosts.len()
    }

    /// How many visitors are kept, counted by host and day.
    pub fn visitors(&self) -> usize {
        self.visitors
    }

    /// The first day whose visitors are known, if there were too many before it.
    pub fn visitors_from(&self) -> Option<Day> {
        (self.visitors_from > ALL_DAYS).then_some(self.visitors_from)
    }

    /// Whether rows or visitors were refused because there was no room for them.
    pub fn has_refused(&self) -> bool {
        self.refused.is_some() || self.visitors_from > ALL_DAYS
    }
}

/// The first day whose anomalies are live.
fn live_day(watermark: EventTime) -> Day {
    Day(Day::of(watermark).0 - LIVE_DAYS + 1)
}

#[cfg(test)]
mod tests;
