//! The state, against the batch answer.

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

/// Whether an anomaly is known to this state, and live when the watermark is here.
fn is_known(state: &DetectorState, anomaly: &Anomaly, watermark: EventTime) -> bool {
    if anomaly.kind.is_by_day() {
        let day = Day::of(anomaly.at);
        let known_from = state.known_from.0.saturating_sub(1);
        return day >= live_day(watermark) && Day(day.0 - 1) > Hour(known_from).day();
    }
    let live = Hour::of(watermark).0 - LIVE + 1;
    hour(anomaly).0 >= live.max(state.known_from.0.saturating_add(HISTORY))
}

fn hour(anomaly: &Anomaly) -> Hour {
    anomaly.hour(GAP_MS)
}

/// A session that ended up to `ago_ms` before `now_ms`.
fn random_row(rng: &mut Rng, now_ms: i64, ago_ms: i64) -> Row {
    let host = ["a.example", "b.example"][rng.below(2) as usize].to_owned();
    let ip = format!("192.0.{}.{}", rng.below(12), rng.below(10));
    let end_ms = now_ms - rng.below(ago_ms as u64) as i64;
    let count = if rng.one_in(15) { rng.between(1, 40) } else { rng.between(1, 4) };
    let span_ms = if rng.one_in(20) { rng.below(2_000_000) } else { rng.below(100_000) };
    let last = EventTime::from_millis(end_ms - GAP_MS);
    let first = last.plus(if count == 1 { 0 } else { -(span_ms as i64) });
    (ip, host, Span { first, last, count }, EventTime::from_millis(end_ms))
}

#[test]
fn what_is_joined_is_the_batch_answer_of_the_live_hours() {
    let mut seen: BTreeMap<Kind, (u64, u64)> = BTreeMap::new();
    let mut found_on_the_way: BTreeSet<Kind> = BTreeSet::new();
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
            // In a backlog, by days.
            let jumps_ms = if rng.one_in(40) { rng.between(1, 6) as i64 * 24 * HOUR_MS } else { 0 };
            now_ms += jumps_ms;
            let ago_ms = jumps_ms + 600_000;
            let n = if jumps_ms > 0 { 800 } else { busy };
            let mut changes: Vec<(Row, i64)> =
                (0..n).map(|_| (random_row(&mut rng, now_ms, ago_ms), 1)).collect();
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
            let owned: Vec<(Key, Visitor, Span, EventTime, i64)> = changes
                .iter()
                .map(|((ip, host, span, end), diff)| {
                    (Key::new(ip, host), Visitor::of(ip), *span, *end, *diff)
                })
                .collect();
            let changes = owned.iter().map(|(key, visitor, span, end, diff)| RowChange {
                key,
                visitor,
                host_hash: xxhash_rust::xxh3::xxh3_64(key.parts().1.as_bytes()),
                span: *span,
                end: *end,
                diff: *diff,
            });
            let mut live_at = state.watermark;
            let changed = state.advance(changes, watermark);
            match step {
                _ if step < begins_at => continue,
                _ if step == begins_at && step > 0 => {
                    live_at = watermark;
                    let from = match seed {
                        2 => Hour(Hour::of(watermark).0 - HISTORY),
                        _ => needed_from(watermark, true),
                    };
                    joined.take(state.begin(from));
                }
                _ => joined.take(changed),
            }
            if step % 5 > 0 && jumps_ms == 0 {
                continue;
            }
            // Nothing older can be live, nor be the history of what is.
            let needed = live_at.plus(-97 * HOUR_MS);
            rows.retain(|(.., end)| *end > needed);
            let table = rows.iter().map(|(ip, host, span, end)| Session {
                ip,
                host,
                span: *span,
                end: *end,
            });
            let mut want = batch(table, watermark, &Thresholds::sensitive());
            want.retain(|anomaly| is_known(&state, anomaly, live_at));
            // The first quarter that is known may only continue the one before: it is left out.
            let first = Hour(state.known_from.0.saturating_add(HISTORY));
            let quarter = |a: &Anomaly| bucket(a.at, SINGLES_MS);
            let is_first = |a: &Anomaly| quarter(a) == first.0.saturating_mul(4);
            want.retain(|a| a.kind != Kind::Singles || !is_first(a));
            let mut got = joined.anomalies();
            // A visitor depends on whether the day before could be judged, too.
            let last_unknown = Hour(state.known_from.0.saturating_sub(1)).day();
            let is_whole = |a: &Anomaly| Day::of(a.at).0 - 2 > last_unknown.0;
            for all in [&mut want, &mut got] {
                all.retain(|a| a.kind != Kind::Repeat || is_whole(a));
            }
            let odd: Vec<&Anomaly> = got.iter().filter(|a| !want.contains(a)).collect();
            let missing: Vec<&Anomaly> = want.iter().filter(|a| !got.contains(a)).collect();
            assert!(got == want, "seed {seed}: {odd:?} instead of {missing:?}");
            for anomaly in &got {
                seen.entry(anomaly.kind).or_default().0 += 1;
            }
            let is_old = |a: &&Anomaly| !is_known(&state, a, watermark) && jumps_ms > 0;
            found_on_the_way.extend(got.iter().filter(is_old).map(|anomaly| anomaly.kind));
            let live = |a: &&Anomaly| is_known(&state, a, watermark);
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
        assert!(found_on_the_way.contains(&kind), "{found_on_the_way:?}");
    }
}

/// A job that reads a backlog finds the same, whether its watermark moves by minutes or by days.
#[test]
fn a_backlog_raises_everything_however_far_the_watermark_moves_at_once() {
    let mut found_days: BTreeSet<i64> = BTreeSet::new();
    for seed in 0..3 {
        let mut rng = Rng::new(seed);
        let day_ms = 24 * HOUR_MS;
        // Days, and so the silence, begin with a step, shortly before one, or somewhere.
        let starts = [0, day_ms - 60_000, rng.below(day_ms as u64) as i64];
        let start_ms = 1_780_272_000_000 + starts[seed as usize];
        // Ten days, and silence for two in the middle.
        let mut rows: Vec<Row> = Vec::new();
        for day in [0, 1, 2, 3, 4, 7, 8, 9] {
            // Silence is a fall only if there was something before.
            let busy = if day == 4 { 1_500 } else { rng.between(200, 1_500) };
            let now_ms = start_ms + (day + 1) * day_ms;
            rows.extend((0..busy).map(|_| random_row(&mut rng, now_ms, day_ms)));
        }
        rows.sort_unstable_by_key(|(.., end)| *end);
        let table =
            rows.iter().map(|(ip, host, span, end)| Session { ip, host, span: *span, end: *end });
        let end = EventTime::from_millis(start_ms + 10 * day_ms + 1);
        let want = batch(table, end, &Thresholds::sensitive());
        let silence_ms = start_ms + 5 * day_ms;
        let falls = |a: &Anomaly| {
            a.kind == Kind::Fall && (0..HOUR_MS).contains(&(a.at.millis() - silence_ms))
        };
        assert!(want.iter().any(falls));
        for step_ms in [HOUR_MS / 20, 7 * HOUR_MS, 5 * day_ms + 30_000, 3 * day_ms, 30 * day_ms] {
            let state =
                &mut DetectorState::new(Thresholds::sensitive(), bounds(10), Hour(i64::MIN / 2));
            let (mut joined, mut raised) = (Joined::default(), BTreeSet::new());
            let (mut from, mut watermark) = (0, EventTime::from_millis(start_ms));
            while watermark < end {
                watermark = watermark.plus(step_ms).min(end);
                let to = rows.partition_point(|(.., end)| *end < watermark);
                let owned: Vec<(Key, Visitor, Span, EventTime)> = rows[from..to]
                    .iter()
                    .map(|(ip, host, span, end)| (Key::new(ip, host), Visitor::of(ip), *span, *end))
                    .collect();
                let changes = owned.iter().map(|(key, visitor, span, end)| RowChange {
                    key,
                    visitor,
                    host_hash: xxhash_rust::xxh3::xxh3_64(key.parts().1.as_bytes()),
                    span: *span,
                    end: *end,
                    diff: 1,
                });
                joined.take(state.advance(changes, watermark));
                raised.extend(joined.anomalies());
                from = to;
            }
            // What is judged by the day is raised before the day is over, with other figures.
            let final_ones = |a: &&Anomaly| !a.kind.is_by_day();
            let identity = |a: &Anomaly| (a.kind, a.host.clone(), a.subject.clone(), a.at);
            let identities = |all: &mut dyn Iterator<Item = &Anomaly>| -> BTreeSet<_> {
                all.map(identity).collect()
            };
            let missing: Vec<&Anomaly> = want.iter().filter(|a| !raised.contains(a)).collect();
            assert!(missing.is_empty(), "seed {seed} by {step_ms} ms: {missing:?}");
            let got = identities(&mut raised.iter().filter(final_ones));
            assert_eq!(got, identities(&mut want.iter().filter(final_ones)), "{step_ms} ms");
            found_days.extend(want.iter().map(|a| (a.at.millis() - start_ms).div_euclid(day_ms)));
            // What expired is gone after the next advance.
            joined.take(state.advance(std::iter::empty(), end));
            assert!(joined.anomalies().iter().all(|a| is_known(state, a, end)));
        }
    }
    assert!(found_days.len() > 8, "{found_days:?}");
}

#[test]
fn hosts_are_bounded_and_a_host_without_room_leaves_no_trace() {
    let mut state = DetectorState::new(Thresholds::sensitive(), bounds(1), Hour(i64::MIN / 2));
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
    let mut state = DetectorState::new(Thresholds::sensitive(), bounds, Hour(i64::MIN / 2));
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
    let mut state = DetectorState::new(Thresholds::sensitive(), bounds, Hour(i64::MIN / 2));
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
