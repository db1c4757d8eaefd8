//! The statistics, against a plain fold of the changes: at every complete epoch, with windows that
//! move, corrections, restarts, and a past that comes late, in pieces, or not at all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use sessionizer::dataflow::anomalies::AnomaliesConfig;
use sessionizer::dataflow::messages::Change;
use sessionizer::dataflow::statistics::StatisticsConfig;
use sessionizer::dataflow::statistics::collections::BUSY;
use sessionizer::dataflow::statistics::publish::Published;
use sessionizer::dataflow::statistics::quota::Quotas;
use sessionizer::dataflow::statistics::rows::{OpenPast, Past};
use sessionizer::dataflow::statistics::sums::{Host, Quantiles, Summary, Sums, VisitorAddress};
use sessionizer::dataflow::statistics::window::Bounds;
use sessionizer_core::anomaly::{DetectorBounds, Kind, Thresholds};
use sessionizer_core::key::Key;
use sessionizer_core::session::Span;
use sessionizer_core::statistics::Bin;
use sessionizer_core::time::{Epoch, EventTime};

use crate::ledger::{GAP_MS, Store};
use crate::rng::Rng;
use crate::run::EPOCH_MS;
use crate::sabotage::Sabotage;

/// The rows of a table, and how often each is there.
pub type Rows = BTreeMap<(Key, Span), i64>;

/// Collects what the commits of a life change, with the last epoch of each commit.
pub type Changes = Arc<Mutex<Vec<(Epoch, Change)>>>;

/// The statistics of one life.
#[derive(Clone)]
pub struct Statistics {
    pub bounds: Bounds,
    quotas: Quotas,
    /// The table at the start, and what was changed since.
    start: Arc<Rows>,
    changes: Changes,
    /// How the past is read; `None`: the table was empty.
    past: Option<Reading>,
    store: Arc<Mutex<Store>>,
    sabotage: Option<Sabotage>,
    pub seen: Arc<Seen>,
}

/// The detectors are there as well. These worlds last for seconds, so nothing can be found: they are
/// compared with the batch answer by a test of their own. They assert that what they are told of
/// open sessions is consistent.
fn anomalies() -> AnomaliesConfig {
    let mut thresholds = Thresholds::default();
    thresholds.marathon.min = GAP_MS as u64;
    AnomaliesConfig {
        thresholds,
        kinds: Kind::ALL.to_vec(),
        bounds: DetectorBounds { hosts: 2, visitors: 100 },
        out_of_orderness_ms: 5_000,
        idle_timeout_ms: 60_000,
        on_anomalies: Arc::new(|published| assert!(published.live.is_empty())),
    }
}

/// How the table of the start is read.
#[derive(Clone, Copy, Debug)]
struct Reading {
    rows: usize,
    waits: usize,
    fails: bool,
}

/// What the statistics of all lives went through.
#[derive(Debug, Default)]
pub struct Seen {
    pub published: AtomicU64,
    pub moved: AtomicU64,
    pub taken_back: AtomicU64,
    pub failed: AtomicU64,
    pub others: AtomicU64,
    pub visitors_missing: AtomicU64,
    /// The last epoch that was published.
    last: AtomicU64,
}

impl Seen {
    fn all(&self) -> [&AtomicU64; 6] {
        let Seen { published, moved, taken_back, failed, others, visitors_missing, .. } = self;
        [published, moved, taken_back, failed, others, visitors_missing]
    }

    pub fn add(&self, other: &Seen) {
        for (sum, more) in self.all().into_iter().zip(other.all()) {
            sum.fetch_add(more.load(Relaxed), Relaxed);
        }
    }

    /// A simulation in which nothing goes wrong proves nothing.
    pub fn check(&self) {
        assert!(self.all().iter().all(|seen| seen.load(Relaxed) > 0), "statistics: {self:?}");
    }
}

impl Clone for Seen {
    fn clone(&self) -> Self {
        let all = Seen::default();
        all.add(self);
        all
    }
}

impl Statistics {
    pub fn new(
        rng: &mut Rng,
        (start, changes): (&Rows, &Changes),
        drained: bool,
        store: &Arc<Mutex<Store>>,
        sabotage: Option<Sabotage>,
    ) -> Self {
        let (hour_ms, hours) = (rng.between(50, 400) as i64, rng.between(1, 6) as i64);
        let (minute_ms, minutes) = (rng.between(10, 60) as i64, rng.between(1, 5) as i64);
        let bounds = Bounds {
            // A minute that is kept belongs to an hour that is kept.
            minute_ms: minute_ms.min(hours * hour_ms / (minutes + 1)),
            minutes,
            hour_ms,
            hours,
            hosts: [1, 1, 2, 100][rng.below(4) as usize],
            visitors: [0, 1, 2, 1_000, 1_000][rng.below(5) as usize],
        };
        // Of rows that a bounded run has closed before their time nothing is known.
        let fails = rng.one_in(5) && !drained;
        let reading =
            Reading { rows: rng.between(1, 4) as usize, waits: rng.below(6) as usize, fails };
        Statistics {
            bounds,
            quotas: Quotas::default(),
            start: Arc::new(start.clone()),
            changes: Arc::clone(changes),
            past: (!start.is_empty() || rng.one_in(2)).then_some(reading),
            store: Arc::clone(store),
            sabotage,
            seen: Arc::default(),
        }
    }

    pub fn config(&self) -> StatisticsConfig {
        let own = self.clone();
        StatisticsConfig {
            bounds: self.bounds,
            quotas: self.quotas.clone(),
            every_ms: EPOCH_MS,
            end_after_ms: GAP_MS,
            closes_after_ms: 0,
            past: self.past.map(|reading| self.open_past(reading)),
            on_statistics: Arc::new(move |published| own.check(published)),
            anomalies: Some(anomalies()),
        }
    }

    fn open_past(&self, reading: Reading) -> OpenPast {
        let own = self.clone();
        Arc::new(move |wake| {
            let own = own.clone();
            let (mut rows, mut waits): (Option<Vec<Change>>, _) = (None, reading.waits);
            Box::new(move || {
                if waits > 0 {
                    waits -= 1;
                    wake.activate().expect("its worker is there");
                    return Past::Waiting;
                }
                let rows = rows.get_or_insert_with(|| own.past());
                if rows.is_empty() {
                    return if reading.fails { Past::Failed } else { Past::Whole };
                }
                waits = reading.waits;
                Past::Rows(rows.split_off(rows.len().saturating_sub(reading.rows)))
            })
        })
    }

    /// The table at the start.
    fn past(&self) -> Vec<Change> {
        let table = match self.sabotage {
            Some(Sabotage::PastOfAnotherMoment) => {
                self.store.lock().expect("one at a time").table()
            }
            _ => self.start.as_ref().clone(),
        };
        let change = |((key, span), diff): ((Key, Span), i64)| Change { key, span, diff };
        let mut past: Vec<Change> = table.into_iter().map(change).collect();
        if self.sabotage == Some(Sabotage::PastMissesARow) {
            past.pop();
        }
        if self.sabotage == Some(Sabotage::PastIsReadTwice) {
            past.extend_from_within(..);
        }
        past
    }

    /// Compares what is published with the fold of the changes up to that epoch.
    fn check(&self, published: &Published) {
        let seen = &self.seen;
        assert_eq!(published.broken, 0, "statistics: more was removed than was there");
        assert!(published.epoch > 0, "statistics: said before anything was committed");
        assert!(published.epoch >= seen.last.load(Relaxed), "statistics: the epoch falls");
        seen.last.store(published.epoch, Relaxed);
        if self.past.is_some() && !published.is_complete() {
            let nothing = Published {
                epoch: published.epoch,
                watermark: published.watermark,
                from: published.from.clone(),
                ..Published::default()
            };
            assert_eq!(*published, nothing, "statistics: said before the past is known");
            return;
        }
        seen.published.fetch_add(1, Relaxed);
        let rows = self.rows_at(published.epoch);
        let watermark = published.watermark.unwrap_or(EventTime::NEVER);
        let (want, moved) = self.fold(&rows, watermark, published);
        seen.moved.fetch_add(moved, Relaxed);
        let of = format!("{}, W {watermark}, {:?}", published.epoch, published.from);
        let of = format!("of {of}, {:?}, {:?}", self.bounds, self.past);
        assert_eq!(published.hours, want.hours, "statistics: hours {of}");
        assert_eq!(published.days, want.days, "statistics: days {of}");
        assert_eq!(published.minutes, want.minutes, "statistics: minutes {of}");
        if self.bounds.visitors == 0 {
            assert_eq!((published.visitors.len(), published.busy.len()), (0, 0));
        } else if published.visitors_from().is_some() {
            seen.visitors_missing.fetch_add(1, Relaxed);
        } else {
            assert_eq!(published.visitors, want.visitors, "statistics: visitors");
            assert_eq!(published.busy, want.busy, "statistics: the busiest visitors");
        }
    }

    /// The table as of an epoch.
    fn rows_at(&self, epoch: Epoch) -> Rows {
        let mut rows = self.start.as_ref().clone();
        for (at, change) in self.changes.lock().expect("one at a time").iter() {
            if *at <= epoch {
                let key = (change.key.clone(), change.span);
                *rows.entry(key).or_default() += change.diff;
                self.seen.taken_back.fetch_add(u64::from(change.diff < 0), Relaxed);
            }
        }
        rows.retain(|_, count| *count != 0);
        rows
    }

    /// The statistics of some rows, and how many rows are not in the window.
    fn fold(&self, rows: &Rows, watermark: EventTime, said: &Published) -> (Published, u64) {
        let (mut want, mut outside) = (Published::default(), 0);
        let mut hours: BTreeMap<(Host, i64), Vec<Span>> = BTreeMap::new();
        let mut minutes: BTreeMap<(Host, i64), Vec<Span>> = BTreeMap::new();
        let mut visits: BTreeMap<(Host, VisitorAddress), i64> = BTreeMap::new();
        let since = said.rows_from();
        if since.is_some() {
            self.seen.failed.fetch_add(1, Relaxed);
        }
        for ((key, span), count) in rows {
            assert_eq!(*count, 1, "a row is in the table once");
            let end = span.last.plus(GAP_MS);
            let hour = end.millis().div_euclid(self.bounds.hour_ms);
            let oldest = watermark.millis().div_euclid(self.bounds.hour_ms) - self.bounds.hours;
            if hour < oldest || since.is_some_and(|since| end <= since) {
                outside += 1;
                continue;
            }
            let (ip, name) = key.parts();
            // A host has a place of its own, or it is one of the others.
            let named = Host::named(name);
            let host = if said.hosts.contains_key(&named) { named } else { Host::OTHER };
            self.seen.others.fetch_add(u64::from(host == Host::OTHER), Relaxed);
            let minute = end.millis().div_euclid(self.bounds.minute_ms);
            let minutes_from = watermark.millis().div_euclid(self.bounds.minute_ms);
            for host in [host, Host::ALL] {
                hours.entry((host, hour)).or_default().push(*span);
                if minute >= minutes_from - self.bounds.minutes {
                    minutes.entry((host, minute)).or_default().push(*span);
                }
            }
            *visits.entry((host, VisitorAddress::at(ip))).or_default() += 1;
        }
        let mut days: HashMap<Host, Vec<Span>> = HashMap::new();
        for ((host, hour), spans) in &hours {
            days.entry(*host).or_default().extend(spans);
            want.hours.entry(*host).or_default().insert(*hour, summary(spans));
        }
        want.days = days.iter().map(|(host, spans)| (*host, summary(spans))).collect();
        for ((host, minute), spans) in &minutes {
            want.minutes.entry(*host).or_default().insert(*minute, summary(spans).sums);
        }
        let mut visitors: BTreeMap<Host, BTreeSet<VisitorAddress>> = BTreeMap::new();
        for ((host, visitor), sessions) in &visits {
            visitors.entry(*host).or_default().insert(*visitor);
            if *sessions >= BUSY {
                want.busy.insert((*host, *visitor, *sessions));
            }
        }
        want.visitors = visitors.iter().map(|(h, visitors)| (*h, visitors.len() as i64)).collect();
        (want, outside)
    }

    /// After a clean stop, everything that was committed has been published.
    pub fn check_the_end(&self) {
        let changes = self.changes.lock().expect("one at a time");
        let last = changes.iter().map(|(epoch, _)| *epoch).max().unwrap_or(0);
        let published = self.seen.last.load(Relaxed);
        assert!(published >= last, "statistics: {last} was committed, {published} is published");
    }
}

/// By sorting, not by counting.
fn summary(spans: &[Span]) -> Summary {
    let duration = |span: &Span| span.last.millis() - span.first.millis();
    let rank = |mut values: Vec<u64>, percent: usize| {
        values.sort_unstable();
        Some(Bin::of(values[(values.len() * percent).div_ceil(100) - 1]))
    };
    let events: Vec<u64> = spans.iter().map(|span| span.count).collect();
    let durations: Vec<u64> = spans.iter().map(|span| duration(span) as u64).collect();
    let quantiles = |values: &Vec<u64>| Quantiles {
        median: rank(values.clone(), 50),
        p95: rank(values.clone(), 95),
    };
    Summary {
        sums: Sums {
            sessions: spans.len() as i64,
            events: events.iter().sum::<u64>() as i64,
            duration_ms: spans.iter().map(duration).sum(),
        },
        singles: events.iter().filter(|events| **events == 1).count() as i64,
        events: quantiles(&events),
        duration_ms: quantiles(&durations),
        broken: false,
    }
}
