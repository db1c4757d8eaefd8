//! The anomalies of this run, for display: which are live, and how many were raised and withdrawn;
//! and what the detectors keep, and what they had no room for.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

use log::info;
use sessionizer_core::anomaly::{Anomaly, Day, DetectorState, Hour, Kind, LIVE};
use sessionizer_core::time::{Epoch, EventTime};

use crate::dataflow::anomalies::publish::Published;

/// How many are shown, and how many of one publication are logged individually.
const SHOWN: usize = 100;
const LOGGED: usize = 10;

/// The detectors of the workers of a process.
#[derive(Debug, Default)]
pub struct DetectorFigures {
    /// Whether there are any.
    pub running: AtomicBool,
    pub hosts: AtomicU64,
    /// Visitors, counted by host and day.
    pub visitors: AtomicU64,
    /// Rows that were not looked at, because there was no room for their host.
    pub refused_rows: AtomicU64,
    /// The first day whose visitors are known to all workers, if there were too many before it.
    pub visitors_from: Mutex<Option<Day>>,
}

impl DetectorFigures {
    /// Records the sizes of a worker's detectors, given those that it recorded before, and takes
    /// the number of the rows that they have refused since.
    pub fn show(&self, shown: &mut [usize; 2], state: &mut DetectorState) {
        self.running.store(true, Relaxed);
        let sizes = [state.hosts(), state.visitors()];
        for ((figure, shown), size) in
            [&self.hosts, &self.visitors].into_iter().zip(shown).zip(sizes)
        {
            // The difference wraps around if the size fell; the sum is right all the same.
            figure.fetch_add((size as u64).wrapping_sub(*shown as u64), Relaxed);
            *shown = size;
        }
        self.refused_rows.fetch_add(std::mem::take(&mut state.refused_rows), Relaxed);
        if let Some(from) = state.visitors_from() {
            let mut latest = self.visitors_from.lock().expect("nobody panics while holding it");
            *latest = latest.max(Some(from));
        }
    }
}

/// How many anomalies of a kind were found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// In this run.
    pub raised: u64,
    pub withdrawn: u64,
    /// Of the last day.
    pub live: u64,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AnomalyFigures {
    pub epoch: Epoch,
    /// As of that epoch.
    pub watermark: Option<EventTime>,
    /// Of each kind that is looked for.
    pub counts: BTreeMap<Kind, Counts>,
    /// The newest anomalies that are live, newest first.
    pub newest: Vec<Anomaly>,
    /// What was known by then had been found before the start.
    found_to: EventTime,
    /// A session that had lasted longer by then had been found while it was open.
    marathon_ms: i64,
}

impl AnomalyFigures {
    /// Nothing yet, of these kinds. What was known at `found_to` had been found before the start,
    /// and so had sessions that were open then and had lasted longer than `marathon_ms`.
    pub fn of(kinds: &[Kind], found_to: EventTime, marathon_ms: i64) -> Self {
        let counts = kinds.iter().map(|kind| (*kind, Counts::default())).collect();
        AnomalyFigures {
            epoch: 0,
            watermark: None,
            counts,
            newest: Vec::new(),
            found_to,
            marathon_ms,
        }
    }

    /// Takes in what is published, and logs what is new. A session ends `end_after_ms` after its
    /// last event.
    pub fn take(&mut self, published: &Published, end_after_ms: i64) {
        self.epoch = published.epoch;
        self.watermark = published.watermark;
        if !published.raised.is_empty() || !published.withdrawn.is_empty() {
            let news = |anomaly: &&Anomaly| match anomaly.known(end_after_ms) {
                Some(known) => known > self.found_to && !self.was_open(anomaly, end_after_ms),
                None => published.begins.is_none(),
            };
            let raised: Vec<&Anomaly> = published.raised.iter().filter(news).collect();
            for anomaly in &raised {
                self.counts.entry(anomaly.kind).or_default().raised += 1;
            }
            for anomaly in &published.withdrawn {
                self.counts.entry(anomaly.kind).or_default().withdrawn += 1;
            }
            log_all("anomaly", raised.into_iter());
            log_all("anomaly withdrawn", published.withdrawn.iter());
        }
        self.counts.values_mut().for_each(|counts| counts.live = 0);
        let now = Hour::of(published.watermark.unwrap_or(EventTime::NEVER));
        let is_live = |anomaly: &&Anomaly| anomaly.hour(end_after_ms).0 > now.0 - LIVE;
        for anomaly in published.live.iter().filter(is_live) {
            self.counts.entry(anomaly.kind).or_default().live += 1;
        }
        let mut newest: Vec<&Anomaly> = published.live.iter().filter(is_live).collect();
        let order = |a: &&Anomaly, b: &&Anomaly| (b.at, a.identity()).cmp(&(a.at, b.identity()));
        if newest.len() > SHOWN {
            newest.select_nth_unstable_by(SHOWN, order);
            newest.truncate(SHOWN);
        }
        newest.sort_unstable_by(order);
        self.newest = newest.into_iter().cloned().collect();
    }

    /// Whether this is a session that had been a marathon, still open, before the start.
    fn was_open(&self, anomaly: &Anomaly, end_after_ms: i64) -> bool {
        let long_at = anomaly.at.plus(self.marathon_ms).plus(end_after_ms);
        anomaly.kind == Kind::Marathon && long_at <= self.found_to
    }

    /// How many are live.
    pub fn live(&self) -> u64 {
        self.counts.values().map(|counts| counts.live).sum()
    }
}

fn log_all<'a>(what: &str, anomalies: impl ExactSizeIterator<Item = &'a Anomaly>) {
    let all = anomalies.len();
    for anomaly in anomalies.take(LOGGED) {
        let Anomaly { kind, host, subject, .. } = anomaly;
        let place = match (host.is_empty(), subject.is_empty()) {
            (false, false) => format!(" on {host}, {subject}"),
            (false, true) => format!(" on {host}"),
            // The reason names the partition.
            (true, _) => String::new(),
        };
        info!("{what}: {}{place}: {}", kind.name(), anomaly.reason());
    }
    if all > LOGGED {
        info!("{what}: and {} more", all - LOGGED);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use sessionizer_core::anomaly::Evidence;

    use super::*;

    fn burst(at_ms: i64, subject: &str) -> Anomaly {
        Anomaly {
            kind: Kind::Burst,
            host: "a.example".to_owned(),
            subject: subject.to_owned(),
            at: EventTime::from_millis(at_ms),
            observed: 90,
            expected: 9,
            threshold: 40,
            evidence: Evidence::Session { events: 90, duration_ms: 1_000, sessions: 900, rank: 5 },
        }
    }

    fn published(watermark_ms: i64, live: &[Anomaly], raised: &[Anomaly]) -> Published {
        Published {
            epoch: 1,
            watermark: Some(EventTime::from_millis(watermark_ms)),
            live: live.iter().cloned().collect::<BTreeSet<Anomaly>>(),
            raised: raised.to_vec(),
            ..Published::default()
        }
    }

    #[test]
    fn what_was_found_before_the_start_is_live_and_not_raised_again() {
        // The first publication may be far ahead of what was found before the start.
        let found_to = EventTime::from_millis(1_000_000);
        let mut figures = AnomalyFigures::of(&[Kind::Burst, Kind::Fall], found_to, 0);
        figures.take(&published(1_900_000, &[], &[]), 300_000);
        let (old, new) = ([burst(699_000, "old")], [burst(700_000, "new")]);
        let begins = Published { begins: Some(true), ..published(2_000_000, &old, &old) };
        figures.take(&begins, 300_000);
        assert_eq!(figures.counts[&Kind::Burst], Counts { raised: 0, withdrawn: 0, live: 1 });
        let both = [old, new.clone()].concat();
        figures.take(&published(2_000_000, &both, &new), 300_000);
        assert_eq!(figures.counts[&Kind::Burst], Counts { raised: 1, withdrawn: 0, live: 2 });
        assert_eq!(figures.counts[&Kind::Fall], Counts::default());
        assert_eq!((figures.live(), &figures.newest[0]), (2, &new[0]));
    }

    #[test]
    fn a_marathon_that_was_open_before_the_start_is_not_raised_again() {
        let (gap_ms, found_to) = (300_000, EventTime::from_millis(5_000_000));
        let marathon = |at_ms| Anomaly { kind: Kind::Marathon, ..burst(at_ms, "a") };
        // It had lasted an hour by then, or a millisecond less.
        for (at_ms, raised) in [(1_100_000, 0), (1_100_001, 1)] {
            let mut figures = AnomalyFigures::of(&[Kind::Marathon], found_to, 3_600_000);
            let evidence =
                Evidence::Session { events: 90, duration_ms: 9_000_000, sessions: 900, rank: 5 };
            let found = [Anomaly { evidence, ..marathon(at_ms) }];
            figures.take(&published(20_000_000, &found, &found), gap_ms);
            assert_eq!(figures.counts[&Kind::Marathon], Counts { raised, withdrawn: 0, live: 1 });
        }
    }

    #[test]
    fn all_that_a_first_start_finds_is_raised() {
        let mut figures = AnomalyFigures::of(&[Kind::Burst], EventTime::NEVER, 0);
        let found = [burst(0, "long ago")];
        figures.take(&published(1_000_000, &found, &found), 300_000);
        assert_eq!(figures.counts[&Kind::Burst], Counts { raised: 1, withdrawn: 0, live: 1 });
    }

    #[test]
    fn the_newest_are_shown() {
        let all: Vec<Anomaly> = (0..300).map(|n| burst(n * 1_000, &n.to_string())).collect();
        let mut figures = AnomalyFigures::of(&[Kind::Burst], EventTime::NEVER, 0);
        figures.take(&published(0, &all, &all), 300_000);
        assert_eq!((figures.live(), figures.newest.len()), (300, SHOWN));
        assert_eq!((&figures.newest[0], &figures.newest[99]), (&all[299], &all[200]));
    }
}
