//! Marathons that are still open: at the limit, when they close, and against a plain answer.

use super::super::{DetectorBounds, DetectorChanges, DetectorState, Visitor};
use super::*;
use crate::anomaly::history::HourSums;
use crate::shared::rng::Rng;
use crate::statistics::Bin;

const HOST: &str = "a.example";
const HASH: u64 = 7;
const GAP_MS: i64 = 300_000;
const HOUR_MS: i64 = super::super::HOUR_MS;
/// 2026-06-01T00:00:00Z, and the noon after.
const DAY: i64 = 1_780_272_000_000;
const NOON: i64 = DAY + 12 * HOUR_MS;

fn at(ms: i64) -> EventTime {
    EventTime::from_millis(ms)
}

/// A row: address, span, and whether it is added or removed.
type Row = (String, Span, i64);

fn row(ip: &str, end_ms: i64, duration_ms: i64) -> Row {
    let last = at(end_ms - GAP_MS);
    (ip.to_owned(), Span { first: last.plus(-duration_ms), last, count: 30 }, 1)
}

/// Sessions of three hours that end evenly over the hours of the day before noon.
fn morning() -> Vec<Row> {
    (0..220).map(|n| row(&n.to_string(), DAY + (n + 1) * 190_000, 3 * HOUR_MS)).collect()
}

/// The detectors, and what a caller has who adds up their changes.
struct Detector {
    state: DetectorState,
    found: BTreeMap<Anomaly, i64>,
    large: BTreeMap<(String, Span), i64>,
}

impl Detector {
    fn new() -> Self {
        let bounds = DetectorBounds { hosts: 10, visitors: 0 };
        let state = DetectorState::new(Thresholds::default(), bounds, Hour(i64::MIN / 2));
        Detector { state, found: BTreeMap::new(), large: BTreeMap::new() }
    }

    /// With the sessions of the morning, at noon.
    fn at_noon() -> Self {
        let mut detector = Detector::new();
        detector.advance(&morning(), NOON + 1);
        detector
    }

    fn advance(&mut self, rows: &[Row], watermark: i64) {
        let owned =
            rows.iter().map(|(ip, span, diff)| (Key::new(ip, HOST), Visitor::of(ip), *span, *diff));
        let owned: Vec<(Key, Visitor, Span, i64)> = owned.collect();
        let rows = owned.iter().map(|(key, visitor, span, diff)| RowChange {
            key,
            visitor,
            host_hash: HASH,
            span: *span,
            end: span.last.plus(GAP_MS),
            diff: *diff,
        });
        let changed = self.state.advance(rows, at(watermark));
        self.take(changed);
    }

    fn take(&mut self, changed: DetectorChanges) {
        for (anomaly, n) in changed.host_anomalies {
            *self.found.entry(anomaly).or_default() += n;
        }
        for (_, session, n) in changed.large {
            *self.large.entry(session).or_default() += n;
        }
        self.found.retain(|_, n| *n != 0);
        self.large.retain(|_, n| *n != 0);
        assert!(self.found.values().all(|n| *n == 1), "each once");
    }

    fn report(&mut self, ip: &str, first: i64, now: OpenNow) {
        self.state.report(HASH, &OpenReport { key: Key::new(ip, HOST), at: at(first), now });
    }

    fn marathons(&self) -> Vec<&Anomaly> {
        self.found.keys().filter(|found| found.kind == Kind::Marathon).collect()
    }
}

fn open(first: i64, last: i64) -> OpenNow {
    OpenNow::Open(Span { first: at(first), last: at(last), count: 301 })
}

#[test]
fn an_open_session_is_a_marathon_if_it_is_longer_than_the_limit_of_its_host() {
    // The floor is ten hours.
    let floor = 10 * HOUR_MS;
    // Ten sessions of ten hours: a quarter longer than that is not unusual.
    let usual = (1.25 * Bin::of(10 * HOUR_MS as u64).highest() as f64) as i64;
    let long: Vec<Row> =
        (0..10).map(|n| row("b", NOON - (n + 1) * HOUR_MS, 10 * HOUR_MS)).collect();
    for (others, limit) in [(vec![], floor), (long, usual)] {
        for (ms, want) in [(limit - 1, 0), (limit, 0), (limit + 1, 1)] {
            let mut detector = Detector::at_noon();
            detector.advance(&others, NOON + 2);
            detector.report("a", NOON - ms, open(NOON - ms, NOON));
            detector.advance(&[], NOON + 3);
            let marathons = detector.marathons();
            assert_eq!(marathons.len(), want, "{ms}");
            let of_it = marathons.first().map(|found| (&*found.subject, found.at, found.observed));
            let it = ("a", at(NOON - ms), ms as u64 / 1_000);
            assert_eq!(of_it, (want > 0).then_some(it));
        }
    }
}

#[test]
fn the_reason_says_that_it_is_open() {
    let mut detector = Detector::at_noon();
    detector.report("a", NOON - 11 * HOUR_MS, open(NOON - 11 * HOUR_MS, NOON));
    detector.advance(&[], NOON + 2);
    let reason = detector.marathons()[0].reason();
    assert_eq!(
        reason,
        "open for 11 h, an event every 2 min on average; of 220 sessions in the 24 h before, 10 \
         lasted 2 h 54 min or longer"
    );
}

#[test]
fn a_host_is_learned_first_and_judged_again_in_every_hour() {
    let mut detector = Detector::new();
    detector.report("a", NOON - 11 * HOUR_MS, open(NOON - 11 * HOUR_MS, NOON));
    detector.advance(&[], NOON + 1);
    assert_eq!(detector.marathons().len(), 0, "nothing is known of the host");
    detector.advance(&morning()[..199], NOON + 2);
    assert_eq!(detector.marathons().len(), 0, "too little is known of the host");
    // The last rows of the hour before are enough.
    detector.advance(&morning()[199..], NOON + 3);
    assert_eq!(detector.marathons().len(), 1);
    // A correction makes longer sessions usual.
    let long: Vec<Row> = (0..10).map(|n| row("b", NOON - (n + 1), 9 * HOUR_MS)).collect();
    detector.advance(&long, NOON + 4);
    assert_eq!(detector.marathons().len(), 0);
    // A day later nothing is known that it could be compared with.
    detector.report("a", NOON - 11 * HOUR_MS, open(NOON - 11 * HOUR_MS, NOON + 8 * HOUR_MS));
    detector.advance(&[], NOON + 9 * HOUR_MS);
    assert_eq!(detector.marathons().len(), 1);
    detector.advance(&[], NOON + 40 * HOUR_MS);
    assert_eq!(detector.marathons().len(), 0);
}

#[test]
fn its_row_takes_it_over_whenever_it_comes() {
    let first = NOON - 11 * HOUR_MS;
    let closed = row("a", NOON + GAP_MS, 11 * HOUR_MS);
    for waits in [0, 1, 5] {
        let mut detector = Detector::at_noon();
        detector.report("a", first, open(first, NOON));
        detector.advance(&[], NOON + 2);
        let found = detector.found.clone();
        detector.report("a", first, OpenNow::Closed);
        for n in 0..waits {
            detector.advance(&[], NOON + GAP_MS + n + 1);
            assert_eq!(detector.found, found, "until its row comes");
        }
        // Others do not take it over.
        let other = row("c", NOON + GAP_MS, 11 * HOUR_MS);
        let removed = (closed.0.clone(), closed.1, -1);
        detector.advance(&[other], NOON + GAP_MS + 8);
        assert_eq!(detector.found.len(), 1);
        detector.advance(std::slice::from_ref(&closed), NOON + GAP_MS + 9);
        assert_eq!((detector.found.len(), detector.large.len()), (0, 2));
        detector.advance(&[removed], NOON + GAP_MS + 10);
        assert_eq!((detector.found.len(), detector.large.len()), (0, 1));
    }
}

#[test]
fn a_row_that_begins_earlier_takes_it_over_and_an_open_one_is_taken_over_by_none() {
    let first = NOON - 11 * HOUR_MS;
    let mut detector = Detector::at_noon();
    detector.report("a", first, open(first, NOON));
    let row = row("a", NOON + GAP_MS, 12 * HOUR_MS);
    detector.advance(std::slice::from_ref(&row), NOON + 2);
    assert_eq!(detector.marathons().len(), 1, "it is open");
    detector.report("a", first, OpenNow::Closed);
    detector.advance(&[row], NOON + GAP_MS + 1);
    assert_eq!(detector.marathons().len(), 0);
}

#[test]
fn a_session_that_joins_another_is_gone_at_once_and_one_without_a_row_in_the_end() {
    let first = NOON - 11 * HOUR_MS;
    let mut detector = Detector::at_noon();
    detector.report("a", first, open(first, NOON));
    detector.report("b", first, open(first, NOON));
    detector.advance(&[], NOON + 2);
    assert_eq!(detector.marathons().len(), 2);
    detector.report("a", first, OpenNow::Joined);
    detector.report("a", first - HOUR_MS, open(first - HOUR_MS, NOON));
    detector.advance(&[], NOON + 3);
    let starts: Vec<EventTime> = detector.marathons().iter().map(|found| found.at).collect();
    assert_eq!(starts, [at(first - HOUR_MS), at(first)], "that of b, and the new one of a");
    detector.report("b", first, OpenNow::Closed);
    for n in 0..HELD as i64 - 1 {
        detector.advance(&[], NOON + 4 + n);
        assert_eq!(detector.marathons().len(), 2, "after {n}");
    }
    detector.advance(&[], NOON + 1_000);
    assert_eq!(detector.marathons().len(), 1);
    // What begins again emits it again.
    detector.found.clear();
    let changed = detector.state.begin(Hour(i64::MIN / 2));
    detector.take(changed);
    assert_eq!(detector.marathons().len(), 1);
}

/// The marathons among open sessions, by sorting everything anew.
fn answer(rows: &[Row], open: &BTreeMap<(String, i64), Span>, watermark: i64) -> Vec<Anomaly> {
    let thresholds = Thresholds::default();
    let mut hours: BTreeMap<Hour, HourSums> = BTreeMap::new();
    for (_, span, diff) in rows {
        hours.entry(Hour::of(span.last.plus(GAP_MS))).or_default().add(span, *diff, &thresholds);
    }
    let limits = Limits::of(&hours, Hour::of(at(watermark)), &thresholds);
    let Some(limits) = limits else { return Vec::new() };
    let mut found: Vec<Anomaly> =
        open.iter().filter_map(|((ip, _), span)| limits.judge_open(ip, HOST, span)).collect();
    found.sort_unstable();
    found
}

#[test]
fn what_is_emitted_is_the_plain_answer_at_every_moment() {
    let (mut most, mut changed) = (0, 0);
    for seed in 0..20 {
        let mut rng = Rng::new(seed);
        let mut detector = Detector::new();
        let (mut rows, mut now) = (Vec::new(), NOON);
        let mut open: BTreeMap<(String, i64), Span> = BTreeMap::new();
        let mut before = Vec::new();
        for step in 0..300 {
            now += rng.below(900_000) as i64;
            // Ordinary rows, sometimes of the hour before; and long ones in some of the hours.
            let long = step / 50 % 4 == 2 && rng.one_in(4);
            let new = (0..rng.below(9)).map(|n| {
                let length = if long { rng.below(14 * 3_600_000) } else { rng.below(7_200_000) };
                row(&format!("{step}.{n}"), now - rng.below(1_800_000) as i64, length as i64)
            });
            let new: Vec<Row> = new.collect();
            // Sessions open, grow and close.
            if rng.one_in(3) {
                let first = now - rng.between(9 * 3_600_000, 13 * 3_600_000) as i64;
                open.insert((step.to_string(), first), Span::event(at(first)));
            }
            for ((ip, first), span) in &mut open {
                if span.count == 1 || rng.one_in(3) {
                    *span = Span { last: at(now), count: span.count + 9, ..*span };
                    detector.report(ip, *first, OpenNow::Open(*span));
                }
            }
            let mut closing = Vec::new();
            open.retain(|(ip, first), span| {
                let closes = rng.one_in(12);
                if closes {
                    detector.report(ip, *first, OpenNow::Closed);
                    closing.push((ip.clone(), *span, 1));
                }
                !closes
            });
            let all: Vec<Row> = new.into_iter().chain(closing).collect();
            detector.advance(&all, now + 1);
            rows.extend(all);
            rows.retain(|(_, span, _)| span.last.millis() > now - 30 * HOUR_MS);
            let want = answer(&rows, &open, now + 1);
            let got: Vec<Anomaly> = detector.marathons().into_iter().cloned().collect();
            assert_eq!(got, want, "seed {seed}, step {step}");
            most = most.max(got.len());
            changed += usize::from(got != before);
            before = got;
        }
    }
    assert!(most > 4 && changed > 200, "{most}, {changed}");
}
