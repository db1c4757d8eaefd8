//! Which rows of `sessionizer.anomalies` change, given what is published.

use std::collections::{BTreeMap, BTreeSet};

use sessionizer_core::anomaly::{Anomaly, Hour, Identity, rows};
use sessionizer_core::time::{Epoch, EventTime};

use crate::dataflow::anomalies::publish::Published;

/// How many rows are written for one kind, host and hour; one more row counts the rest.
const ROWS_PER_HOUR: usize = 20;

/// What has changed as of an epoch.
pub(super) struct Updates {
    pub(super) epoch: Epoch,
    /// Rows, and whether each is raised.
    pub(super) rows: Vec<(Identity, Anomaly, bool)>,
    /// At the beginning: what is live. Other rows that would be live are withdrawn: a correction
    /// was committed just before the last run ended, or the thresholds have changed.
    pub(super) all: Option<(BTreeSet<Identity>, Hour)>,
}

/// The rows that have been queued.
pub(super) struct Queued {
    end_after_ms: i64,
    rows: BTreeMap<Identity, Anomaly>,
    /// Rows whose place earlier anomalies have taken: these are counted among the rest, and their
    /// rows stay as they are.
    displaced: BTreeMap<Identity, Anomaly>,
}

impl Queued {
    /// Nothing queued yet. A session ends `end_after_ms` after its last event.
    pub(super) fn new(end_after_ms: i64) -> Self {
        Queued { end_after_ms, rows: BTreeMap::new(), displaced: BTreeMap::new() }
    }

    /// Returns what has changed since the last call, if anything has.
    pub(super) fn take(&mut self, published: &Published) -> Option<Updates> {
        let now = rows(&published.live, (ROWS_PER_HOUR, self.end_after_ms));
        let finds_all = published.begins == Some(true) && published.watermark.is_some();
        if now == self.rows && self.displaced.is_empty() && !finds_all {
            return None;
        }
        let hour = Hour::of(published.watermark.unwrap_or(EventTime::NEVER));
        let raised = now.iter().filter(|(identity, row)| self.rows.get(*identity) != Some(*row));
        let raised = raised.map(|(identity, row)| (identity.clone(), row.clone(), true));
        let raised: Vec<(Identity, Anomaly, bool)> = raised.collect();

        let mut missing = std::mem::take(&mut self.displaced);
        missing.extend(std::mem::take(&mut self.rows));
        missing.retain(|identity, _| !now.contains_key(identity));
        let is_any = !missing.is_empty();
        let live: BTreeSet<_> =
            published.live.iter().filter(|_| is_any).map(Anomaly::identity).collect();
        let (mut displaced, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            missing.into_iter().partition(|(_, row)| live.contains(&row.identity()));
        if finds_all {
            // An earlier run may have written a row for any of them.
            let all = published.live.iter().map(|row| (identity(row), row.clone()));
            displaced.extend(all.filter(|(identity, _)| !now.contains_key(identity)));
        }
        let gone = gone.into_iter().filter(|(_, row)| published.withdraws(row, self.end_after_ms));
        let gone = gone.map(|(identity, row)| (identity, row, false));
        let rows: Vec<(Identity, Anomaly, bool)> = gone.chain(raised).collect();

        let live = || published.live.iter().map(identity);
        let all = finds_all.then(|| (live().chain(now.keys().cloned()).collect(), hour));
        (self.rows, self.displaced) = (now, displaced);
        let changed = !rows.is_empty() || all.is_some();
        changed.then_some(Updates { epoch: published.epoch, rows, all })
    }
}

fn identity(anomaly: &Anomaly) -> Identity {
    let (kind, host, subject, at) = anomaly.identity();
    (kind, host.to_owned(), subject.to_owned(), at)
}

#[cfg(test)]
mod tests {
    use sessionizer_core::anomaly::{Evidence, Kind, LIVE};

    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    /// A burst that began at this minute of the first hour, with this many events.
    fn burst(minute: i64, events: u64) -> Anomaly {
        Anomaly {
            kind: Kind::Burst,
            host: "a.example".to_owned(),
            subject: format!("192.0.2.{minute}"),
            at: EventTime::from_millis(minute * 60_000),
            observed: events,
            expected: 9,
            threshold: 40,
            evidence: Evidence::Session { events, duration_ms: 1_000, sessions: 900, rank: 5 },
        }
    }

    fn published(live: impl IntoIterator<Item = Anomaly>, hour: i64) -> Published {
        let watermark = Some(EventTime::from_millis(hour * HOUR_MS));
        let live_from = Some(Hour(hour - LIVE + 1));
        let live = live.into_iter().collect();
        Published { watermark, live_from, live, ..Published::default() }
    }

    /// The rows that change, with whether they are raised.
    fn take(queued: &mut Queued, live: Vec<Anomaly>, hour: i64) -> Vec<(String, bool)> {
        let updates = queued.take(&published(live, hour));
        let rows = updates.map_or(Vec::new(), |updates| updates.rows);
        rows.into_iter().map(|((_, _, subject, _), _, raised)| (subject, raised)).collect()
    }

    fn all_of(minutes: std::ops::Range<i64>) -> Vec<Anomaly> {
        minutes.map(|minute| burst(minute, 90)).collect()
    }

    fn row(minute: i64, raised: bool) -> (String, bool) {
        (format!("192.0.2.{minute}"), raised)
    }

    #[test]
    fn a_row_that_others_have_displaced_is_withdrawn_when_it_is_no_longer_true() {
        let mut queued = Queued::new(300_000);
        let most = ROWS_PER_HOUR as i64;
        assert_eq!(take(&mut queued, all_of(10..10 + most), 1).len(), ROWS_PER_HOUR);
        // An earlier one takes the place of the last.
        let last = 9 + most;
        let displacing = take(&mut queued, all_of(9..10 + most), 1);
        assert_eq!(displacing, [("(more)".to_owned(), true), row(9, true)]);
        assert_eq!(take(&mut queued, all_of(9..10 + most), 1), []);
        // Other figures of what is counted only change nothing.
        let mut other = all_of(9..last);
        other.push(burst(last, 200));
        assert_eq!(take(&mut queued, other, 1), []);
        // It is corrected: the row that counts it is withdrawn, and its own as well.
        let corrected = take(&mut queued, all_of(9..last), 1);
        assert_eq!(corrected, [("(more)".to_owned(), false), row(last, false)]);
        assert_eq!(take(&mut queued, all_of(9..last), 1), []);
    }

    #[test]
    fn what_expires_stays_as_it_is_even_if_others_have_displaced_it() {
        let mut queued = Queued::new(300_000);
        let most = ROWS_PER_HOUR as i64;
        take(&mut queued, all_of(10..10 + most), 1);
        take(&mut queued, all_of(9..10 + most), 1);
        assert_eq!(take(&mut queued, Vec::new(), 1 + LIVE), []);
        assert!(queued.displaced.is_empty() && queued.rows.is_empty());
    }

    #[test]
    fn a_displaced_row_that_gets_its_place_back_is_raised_with_its_figures() {
        let mut queued = Queued::new(300_000);
        let most = ROWS_PER_HOUR as i64;
        take(&mut queued, all_of(10..10 + most), 1);
        take(&mut queued, all_of(9..10 + most), 1);
        let back = take(&mut queued, all_of(10..10 + most), 1);
        let last = row(9 + most, true);
        assert_eq!(back, [("(more)".to_owned(), false), row(9, false), last]);
    }

    #[test]
    fn what_an_earlier_run_may_have_written_is_withdrawn_when_it_is_corrected() {
        let mut queued = Queued::new(300_000);
        let last = 9 + ROWS_PER_HOUR as i64;
        let begins = Some(true);
        let all = Published { begins, ..published(all_of(9..last + 1), 1) };
        assert!(queued.take(&all).expect("they are raised").all.is_some());
        let corrected = take(&mut queued, all_of(9..last), 1);
        assert_eq!(corrected, [("(more)".to_owned(), false), row(last, false)]);
    }
}
