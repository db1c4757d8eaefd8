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
//! In a backlog the watermark may move by days at once. Such an advance is made in steps of a few
//! hours, so that everything is judged with its history and little is kept. What expires is retracted
//! by the advance after it: whatever was found is there for one advance at least.
//!
//! The output consists of changes: the sessions that may stand out and the limits of their hours,
//! which the caller joins, and the anomalies of whole hosts. Whatever expires is retracted, so what
//! the join yields is what is live, and what has expired in the last advance. Nothing is emitted for an hour whose history is incomplete.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use foldhash::fast::RandomState;

use super::days::{DayLimits, Frequent, HostDay, KEPT_DAYS, LIVE_DAYS, VISITOR_DAYS};
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
/// The furthest that the watermark moves in one step, in hours, unless no row ended in between. What
/// ends in a step must be live at its end, and so must what was found in it.
const STEP: i64 = 12;
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

    /// Takes in rows and moves to a watermark. Returns what has changed, and what had expired in the
    /// advance before.
    pub fn advance<'a>(
        &mut self,
        rows: impl Iterator<Item = RowChange<'a>>,
        watermark: EventTime,
    ) -> DetectorChanges {
        let mut changed = std::mem::take(&mut self.expired);
        let joined = self.joined.drain(..).map(|gone| (gone, -1));
        changed.host_anomalies.extend(joined);
        let watermark = self.watermark.max(watermark);
        if Hour::of(watermark) == Hour::of(self.watermark) {
            self.advance_step(rows, watermark, &mut changed);
        } else {
            for (end, rows) in self.steps(rows, watermark) {
                self.advance_step(rows.into_iter(), end, &mut changed);
            }
        }
        self.judge_open(&mut changed);
        changed
    }

    /// The steps to a watermark, by the watermark that each ends with. Corrections come first: what
    /// they change is still live.
    fn steps<'a>(
        &self,
        rows: impl Iterator<Item = RowChange<'a>>,
        watermark: EventTime,
    ) -> BTreeMap<EventTime, Vec<RowChange<'a>>> {
        let step_end = |time: EventTime| {
            let step = Hour::of(time).0.div_euclid(STEP);
            Hour((step + 1) * STEP).start().min(watermark)
        };
        let mut steps = BTreeMap::from([(self.watermark, Vec::new()), (watermark, Vec::new())]);
        for row in rows {
            steps.entry(step_end(row.end).max(self.watermark)).or_default().push(row);
        }
        // A host may fall silent in the step after its last rows, or later if those had come before.
        let silent = |end: EventTime| end.plus(BUCKETS_AFTER * BUCKET_MS);
        let after = steps.keys().flat_map(|end| [step_end(*end), step_end(silent(*end))]);
        let after: Vec<EventTime> = after.collect();
        for end in after {
            steps.entry(end).or_default();
        }
        steps
    }

    /// Takes in rows and moves to a watermark at most a step away, unless no row ended in between.
    fn advance_step<'a>(
        &mut self,
        rows: impl Iterator<Item = RowChange<'a>>,
        watermark: EventTime,
        changed: &mut DetectorChanges,
    ) {
        let before = self.watermark;
        self.watermark = before.max(watermark);
        let live = Hour::of(self.watermark).0 - LIVE + 1;
        let (live_buckets, live_quarters) =
            (live * (super::HOUR_MS / BUCKET_MS), live * (super::HOUR_MS / SINGLES_MS));
        let mut touched: Vec<u64> = Vec::new();
        for row in rows {
            let replaced = self.open.replace(&row).into_iter();
            changed.host_anomalies.extend(replaced.map(|gone| (gone, -1)));
            let Some(host_state) = self.take(&row, changed) else { continue };
            if host_state.touched.is_empty() {
                touched.push(row.host_hash);
            }
            host_state.touched.insert(bucket(row.end, BUCKET_MS));
        }
        for hash in touched {
            let Some(host_state) = self.hosts.get_mut(&hash) else { continue };
            let buckets = std::mem::take(&mut host_state.touched);
            let host = &*host_state.name.clone();
            let days = (live_day(self.watermark), host_state.known_day(self.visitors_from));
            host_state.days.emit(host, days, &self.thresholds, changed);
            let first =
                Hour(buckets.first().map_or(0, |at| (at * BUCKET_MS).div_euclid(super::HOUR_MS)));
            host_state.limit(host, first, &self.thresholds, changed);
            if first < Hour::of(self.watermark) {
                self.open.touch(hash);
            }
            // Buckets that are already final are judged again.
            let known = buckets.iter().flat_map(|at| *at..=at + BUCKETS_AFTER);
            let live = live_buckets..bucket(before, BUCKET_MS);
            let again: BTreeSet<i64> = known.filter(|at| live.contains(at)).collect();
            let again: Vec<i64> = again.into_iter().collect();
            let oldest = buckets.first().map_or(0, |at| (at * BUCKET_MS).div_euclid(SINGLES_MS));
            let quarters = oldest.max(live_quarters)..bucket(before, SINGLES_MS);
            if !again.is_empty() || !quarters.is_empty() {
                host_state.judge(host, &again, quarters, &self.thresholds, changed);
            }
        }
        self.turn(before, changed);
        if self.visitors > self.bounds.visitors {
            self.drop_visitors(changed);
        }
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
        changed.forgot_visitors = true;
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
        let days = hour.day().0 - Day::of(self.watermark).0;
        let by_day =
            self.bounds.visitors > 0 && days > -KEPT_DAYS && hour.day() >= self.visitors_from;
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
            HostState::new(row.key.parts().1, known_from)
        });
        if hour < host_state.known_from {
            return None;
        }
        if by_day {
            let visitor = (days > -VISITOR_DAYS).then_some(row.visitor);
            let grown = host_state.days.add(visitor, hour, row.diff, &self.thresholds);
            self.visitors = self.visitors.saturating_add_signed(grown);
        }
        if !is_kept {
            return Some(host_state);
        }
        host_state.hours.entry(hour).or_default().add(&row.span, row.diff, &self.thresholds);
        *host_state.buckets.entry(bucket(row.end, BUCKET_MS)).or_default() += row.diff;
        let (all, singles) = host_state.quarters.entry(bucket(row.end, SINGLES_MS)).or_default();
        *all += row.diff;
        *singles += if row.span.count == 1 { row.diff } else { 0 };
        let is_large = row.span.count > self.thresholds.burst.min
            || row.span.duration_ms() > self.thresholds.marathon.min;
        if is_large && hour.0 > now - LIVE {
            let (ip, host) = row.key.parts();
            let session = (ip.to_owned(), row.span);
            let of_hour = host_state.large.entry(hour).or_default();
            let count = of_hour.entry(session.clone()).or_default();
            *count += row.diff;
            if *count == 0 {
                of_hour.remove(&session);
            }
            changed.large.push(((host.to_owned(), hour), session, row.diff));
        }
        Some(host_state)
    }

    /// Judges the buckets that have become final, and forgets what is no longer live.
    fn turn(&mut self, before: EventTime, changed: &mut DetectorChanges) {
        let (from, to) = (bucket(before, BUCKET_MS), bucket(self.watermark, BUCKET_MS));
        if from == to {
            return;
        }
        let live = Hour::of(self.watermark).0 - LIVE + 1;
        let from = from.max(live * (super::HOUR_MS / BUCKET_MS));
        let quarters = bucket(before, SINGLES_MS).max((from * BUCKET_MS).div_euclid(SINGLES_MS))
            ..bucket(self.watermark, SINGLES_MS);
        let forgets = Hour::of(before) != Hour::of(self.watermark);
        if forgets {
            self.open.touch_all();
        }
        let (thresholds, watermark) = (&self.thresholds, self.watermark);
        let (visitors, expired) = (&mut self.visitors, &mut self.expired);
        self.hosts.retain(|_, host_state| {
            let host = &*host_state.name.clone();
            let new = host_state.buckets_around(from..to);
            host_state.judge(host, &new, quarters.clone(), thresholds, changed);
            if forgets {
                host_state.forget(host, Hour::of(watermark), expired);
                let grown = host_state.days.forget(host, Day::of(watermark), expired);
                *visitors = visitors.saturating_add_signed(grown);
            }
            !host_state.hours.is_empty() || !host_state.days.is_empty()
        });
    }
}

/// The first day whose anomalies are live.
fn live_day(watermark: EventTime) -> Day {
    Day(Day::of(watermark).0 - LIVE_DAYS + 1)
}

#[cfg(test)]
mod tests;
