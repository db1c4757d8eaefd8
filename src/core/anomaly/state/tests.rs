//! The state, against the batch answer.

mod world;

use std::collections::{BTreeMap, BTreeSet};

use self::world::{Joined, Row, World, advance_by, answer, is_known, random_row};
use super::*;
use crate::anomaly::Kind;
use crate::shared::rng::Rng;
use crate::shared::thresholds::sensitive;

const GAP_MS: i64 = 300_000;
const HOUR_MS: i64 = crate::anomaly::HOUR_MS;

fn bounds(hosts: usize) -> DetectorBounds {
    DetectorBounds { hosts, visitors: 100_000 }
}

/// What has occurred, to show that the test proves something.
#[derive(Default)]
struct Seen {
    /// How often an anomaly was live, and how often one was withdrawn.
    kinds: BTreeMap<Kind, (u64, u64)>,
    /// Kinds of which one was found that a jump had already passed.
    on_the_way: BTreeSet<Kind>,
}

impl Seen {
    fn note(&mut self, world: &World, before: &[Anomaly], got: &[Anomaly]) {
        let live = |a: &&Anomaly| is_known(&world.state, a, world.watermark());
        for anomaly in got {
            self.kinds.entry(anomaly.kind).or_default().0 += 1;
            if world.jumps_ms > 0 && !live(&anomaly) {
                self.on_the_way.insert(anomaly.kind);
            }
        }
        let is_gone = |a: &&Anomaly| !got.iter().any(|b| b.identity() == a.identity());
        let withdrawn = before.iter().filter(live).filter(is_gone);
        withdrawn.for_each(|a| self.kinds.entry(a.kind).or_default().1 += 1);
    }
}

#[test]
fn what_is_joined_is_the_batch_answer_of_the_live_hours() {
    let mut seen = Seen::default();
    for seed in 0..6 {
        let mut world = World::new(seed);
        let begins_at = if seed % 3 == 2 { 150 } else { 0 };
        let mut before: Vec<Anomaly> = Vec::new();
        for step in 0..400 {
            world.pass_time();
            let changes = world.change_rows();
            let changes = changes.iter().map(|(row, diff)| (row, *diff));
            let (mut live_at, watermark) = (world.state.watermark, world.watermark());
            let changed = advance_by(&mut world.state, changes, watermark);
            if step < begins_at {
                continue;
            }
            if step == begins_at && step > 0 {
                live_at = watermark;
                world.begin();
            } else {
                world.joined.take(changed);
            }
            if step % 5 == 0 || world.jumps_ms > 0 {
                let got = world.compare(live_at);
                seen.note(&world, &before, &got);
                before = got;
            }
        }
    }
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Clock) {
        let (raised, withdrawn) = seen.kinds.get(&kind).copied().unwrap_or_default();
        assert!(raised > 50 && withdrawn > 0, "{:?}", seen.kinds);
        assert!(seen.on_the_way.contains(&kind), "{:?}", seen.on_the_way);
    }
}

const DAY_MS: i64 = 24 * HOUR_MS;

/// Ten days, and silence for two in the middle; ordered.
fn ten_days(rng: &mut Rng, start_ms: i64) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for day in [0, 1, 2, 3, 4, 7, 8, 9] {
        // Silence is a fall only if there was something before.
        let busy = if day == 4 { 1_500 } else { rng.between(200, 1_500) };
        let now_ms = start_ms + (day + 1) * DAY_MS;
        rows.extend((0..busy).map(|_| random_row(rng, now_ms, DAY_MS)));
    }
    rows.sort_unstable_by_key(|(.., end)| *end);
    rows
}

/// Everything that is raised while the watermark moves from `start` to `end`, by `step_ms` at once.
fn raised(rows: &[Row], start: EventTime, end: EventTime, step_ms: i64) -> BTreeSet<Anomaly> {
    let state = &mut DetectorState::new(sensitive(), bounds(10), Hour(i64::MIN / 2));
    let (mut joined, mut raised) = (Joined::default(), BTreeSet::new());
    let (mut from, mut watermark) = (0, start);
    while watermark < end {
        watermark = watermark.plus(step_ms).min(end);
        let to = rows.partition_point(|(.., end)| *end < watermark);
        joined.take(advance_by(state, rows[from..to].iter().map(|row| (row, 1)), watermark));
        raised.extend(joined.anomalies());
        from = to;
    }
    // What expired is gone after the next advance.
    joined.take(state.advance(std::iter::empty(), end));
    assert!(joined.anomalies().iter().all(|a| is_known(state, a, end)));
    raised
}

/// A job that reads a backlog finds the same, whether its watermark moves by minutes or by days.
#[test]
fn a_backlog_raises_everything_however_far_the_watermark_moves_at_once() {
    let mut found_days: BTreeSet<i64> = BTreeSet::new();
    for seed in 0..3 {
        let mut rng = Rng::new(seed);
        // Days, and so the silence, begin with a step, shortly before one, or somewhere.
        let starts = [0, DAY_MS - 60_000, rng.below(DAY_MS as u64) as i64];
        let start_ms = 1_780_272_000_000 + starts[seed as usize];
        let rows = ten_days(&mut rng, start_ms);
        let start = EventTime::from_millis(start_ms);
        let end = start.plus(10 * DAY_MS + 1);
        let want = answer(&rows, end);
        let silence_ms = start_ms + 5 * DAY_MS;
        let falls = |a: &Anomaly| {
            a.kind == Kind::Fall && (0..HOUR_MS).contains(&(a.at.millis() - silence_ms))
        };
        assert!(want.iter().any(falls));
        for step_ms in [HOUR_MS / 20, 7 * HOUR_MS, 5 * DAY_MS + 30_000, 3 * DAY_MS, 30 * DAY_MS] {
            let raised = raised(&rows, start, end, step_ms);
            let missing: Vec<&Anomaly> = want.iter().filter(|a| !raised.contains(a)).collect();
            assert!(missing.is_empty(), "seed {seed} by {step_ms} ms: {missing:?}");
            // What is judged by the day is raised before the day is over, with other figures.
            let final_ones = |a: &&Anomaly| !a.kind.is_by_day();
            let identity = |a: &Anomaly| (a.kind, a.host.clone(), a.subject.clone(), a.at);
            let identities = |all: &mut dyn Iterator<Item = &Anomaly>| -> BTreeSet<_> {
                all.map(identity).collect()
            };
            let got = identities(&mut raised.iter().filter(final_ones));
            assert_eq!(got, identities(&mut want.iter().filter(final_ones)), "{step_ms} ms");
            found_days.extend(want.iter().map(|a| (a.at.millis() - start_ms).div_euclid(DAY_MS)));
        }
    }
    assert!(found_days.len() > 8, "{found_days:?}");
}

#[test]
fn hosts_are_bounded_and_a_host_without_room_leaves_no_trace() {
    let mut state = DetectorState::new(sensitive(), bounds(1), Hour(i64::MIN / 2));
    let last = EventTime::from_millis(1_780_272_000_000);
    let span = Span { first: last, last, count: 90 };
    let (visitor, a, b) =
        (Visitor::of("a"), Key::new("a", "a.example"), Key::new("a", "b.example"));
    let row = |host_hash, diff| RowChange {
        key: if host_hash == 1 { &a } else { &b },
        visitor: &visitor,
        host_hash,
        span,
        end: last.plus(GAP_MS),
        diff,
    };
    let watermark = last.plus(GAP_MS + 1);
    state.advance([row(1, 1), row(2, 1)].into_iter(), watermark);
    assert_eq!((state.hosts(), state.refused_rows), (1, 1));
    // Later there is room, but a correction of the past is ignored.
    let later = watermark.plus(30 * HOUR_MS);
    state.advance([row(1, -1)].into_iter(), later);
    state.hosts.clear();
    let changed = state.advance([row(2, -1)].into_iter(), later);
    assert_eq!(changed, DetectorChanges::default());
}

/// An attack: every row has a host and an address of its own.
#[test]
fn random_hosts_and_addresses_stay_within_the_bounds() {
    let bounds = DetectorBounds { hosts: 50, visitors: 200 };
    let mut state = DetectorState::new(sensitive(), bounds, Hour(i64::MIN / 2));
    let start = EventTime::from_millis(1_780_272_000_000);
    let (mut refused, mut dropped) = (0, 0);
    for hour in 0..24 * 6 {
        let end = start.plus(hour * HOUR_MS);
        let span = Span { first: end.plus(-GAP_MS), last: end.plus(-GAP_MS), count: 90 };
        // Most hosts are never seen again; one is there from the beginning.
        let ip = |n: i64| format!("{hour}.{n}");
        let names = (0..40).map(|n| (ip(n), ip(n), hour << 8 | n));
        let names = names.chain((40..50).map(|n| ("a.example".to_owned(), ip(n), -1)));
        let rows: Vec<(Key, Visitor, i64)> =
            names.map(|(host, ip, hash)| (Key::new(&ip, &host), Visitor::of(&ip), hash)).collect();
        let rows = rows.iter().rev().map(|(key, visitor, hash)| {
            let host_hash = *hash as u64;
            RowChange { key, visitor, host_hash, span, end, diff: 1 }
        });
        state.advance(rows, end.plus(1));
        assert!(state.hosts() <= 50 && state.visitors() <= 200);
        assert!(state.hosts.contains_key(&u64::MAX), "it does not lose its place");
        let large = state.hosts.values().flat_map(|host| host.large.values());
        assert!(large.map(BTreeMap::len).sum::<usize>() <= 50 * (LIVE as usize + 1));
        refused += std::mem::take(&mut state.refused_rows);
        dropped += usize::from(state.visitors_from().is_some());
    }
    assert!(refused > 3_000 && dropped > 100, "{refused} refused, dropped {dropped} times");
    assert!(state.has_refused());
}

#[test]
fn too_many_visitors_are_forgotten_until_the_next_day() {
    let bounds = DetectorBounds { hosts: 10, visitors: 60 };
    let mut state = DetectorState::new(sensitive(), bounds, Hour(i64::MIN / 2));
    let day = 20_605;
    let mut joined = Joined::default();
    // Every day twenty visitors, a new one of whom comes often, and on some days a crowd.
    let mut one_day = |state: &mut DetectorState, day: i64, crowd: u64| {
        let start = Day(day).start();
        let ip = |n: u64| format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255);
        let often = (0..20).map(|n| (format!("192.0.2.{}", day - 20_500), n));
        let visits = (0..19 + crowd).map(|n| (ip(n), n % 40));
        let visits = visits.chain(often).map(|(ip, n)| (Key::new(&ip, "a"), Visitor::of(&ip), n));
        let visits: Vec<(Key, Visitor, u64)> = visits.collect();
        let rows = visits.iter().map(|(key, visitor, n)| {
            let last = start.plus(60_000 * *n as i64);
            let span = Span { first: last, last, count: 1 };
            let end = last.plus(GAP_MS);
            RowChange { key, visitor, host_hash: 1, span, end, diff: 1 }
        });
        let changes = state.advance(rows, start.plus(3 * HOUR_MS));
        assert_eq!(changes.forgot_visitors, crowd > 0);
        joined.take(changes);
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
