//! How the state moves: it takes in rows, and advances to a watermark.
//!
//! In a backlog the watermark may move by days at once. Such an advance is made in steps of a few
//! hours, so that everything is judged with its history and little is kept. What expires is retracted
//! by the advance after it: whatever was found is there for one advance at least.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::{
    BUCKETS_AFTER, DetectorChanges, DetectorState, KEPT, LIVE, RowChange, live_day, needed_from,
};
use crate::anomaly::days::{KEPT_DAYS, VISITOR_DAYS};
use crate::anomaly::history::{BUCKET_MS, Day, HOUR_MS, Hour, SINGLES_MS, bucket};
use crate::anomaly::host::HostState;
use crate::time::EventTime;

/// The furthest that the watermark moves in one step, in hours, unless no row ended in between. What
/// ends in a step must be live at its end, and so must what was found in it.
const STEP: i64 = 12;

impl DetectorState {
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
            (live * (HOUR_MS / BUCKET_MS), live * (HOUR_MS / SINGLES_MS));
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
            let first = Hour(buckets.first().map_or(0, |at| (at * BUCKET_MS).div_euclid(HOUR_MS)));
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
        let from = from.max(live * (HOUR_MS / BUCKET_MS));
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
