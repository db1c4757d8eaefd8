//! A table that changes at random, and a caller who joins the changes that a state emits.

use std::collections::BTreeMap;

use super::{GAP_MS, HOUR_MS, bounds};
use crate::anomaly::state::*;
use crate::anomaly::{Kind, Session, batch};
use crate::shared::rng::Rng;
use crate::shared::thresholds::sensitive;

pub type Row = (String, String, Span, EventTime);

/// What a caller who joins the changes has.
#[derive(Default)]
pub struct Joined {
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
    pub fn take(&mut self, changed: DetectorChanges) {
        changed.large.into_iter().for_each(|(k, v, n)| plus(&mut self.large, (k, v), n));
        changed.limits.into_iter().for_each(|(k, v, n)| plus(&mut self.limits, (k, v), n));
        let of_hosts = changed.host_anomalies.into_iter();
        of_hosts.for_each(|(anomaly, n)| plus(&mut self.host_anomalies, anomaly, n));
        changed.frequent.into_iter().for_each(|(k, v, n)| plus(&mut self.frequent, (k, v), n));
        let limits = changed.day_limits.into_iter();
        limits.for_each(|(k, v, n)| plus(&mut self.day_limits, (k, v), n));
    }

    pub fn anomalies(&self) -> Vec<Anomaly> {
        let mut all: Vec<Anomaly> = self.host_anomalies.keys().cloned().collect();
        for (key, (ip, span)) in self.large.keys() {
            for (_, limits) in self.limits.keys().filter(|(of, _)| of == key) {
                all.extend(limits.judge(ip, &key.0, span));
            }
        }
        for (key, frequent) in self.frequent.keys() {
            for (_, limits) in self.day_limits.keys().filter(|(of, _)| of == key) {
                all.extend(limits.judge(key, frequent, &sensitive()));
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
pub fn is_known(state: &DetectorState, anomaly: &Anomaly, watermark: EventTime) -> bool {
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
pub fn random_row(rng: &mut Rng, now_ms: i64, ago_ms: i64) -> Row {
    let host = ["a.example", "b.example"][rng.below(2) as usize].to_owned();
    let ip = format!("192.0.{}.{}", rng.below(12), rng.below(10));
    let end_ms = now_ms - rng.below(ago_ms as u64) as i64;
    let count = if rng.one_in(15) { rng.between(1, 40) } else { rng.between(1, 4) };
    let span_ms = if rng.one_in(20) { rng.below(2_000_000) } else { rng.below(100_000) };
    let last = EventTime::from_millis(end_ms - GAP_MS);
    let first = last.plus(if count == 1 { 0 } else { -(span_ms as i64) });
    (ip, host, Span { first, last, count }, EventTime::from_millis(end_ms))
}

/// Moves a state by rows that are added (1) or removed (−1).
pub fn advance_by<'a>(
    state: &mut DetectorState,
    changes: impl IntoIterator<Item = (&'a Row, i64)>,
    watermark: EventTime,
) -> DetectorChanges {
    let owned: Vec<(Key, Visitor, Span, EventTime, i64)> = changes
        .into_iter()
        .map(|((ip, host, span, end), diff)| {
            (Key::new(ip, host), Visitor::of(ip), *span, *end, diff)
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
    state.advance(changes, watermark)
}

/// The batch answer.
pub fn answer(rows: &[Row], watermark: EventTime) -> Vec<Anomaly> {
    let table =
        rows.iter().map(|(ip, host, span, end)| Session { ip, host, span: *span, end: *end });
    batch(table, watermark, &sensitive())
}

/// A table that changes at random, and the state that follows it.
pub struct World {
    seed: u64,
    rng: Rng,
    now_ms: i64,
    /// By how much time has just jumped, as in a backlog.
    pub jumps_ms: i64,
    /// How many sessions end in a step.
    busy: u64,
    rows: Vec<Row>,
    pub state: DetectorState,
    pub joined: Joined,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let start_ms = 1_780_272_000_000 + rng.below(86_400_000) as i64;
        let known_from = match seed % 3 {
            1 => Hour(start_ms.div_euclid(HOUR_MS)),
            _ => Hour(i64::MIN / 2),
        };
        World {
            seed,
            rng,
            now_ms: start_ms + HOUR_MS,
            jumps_ms: 0,
            busy: 1,
            rows: Vec::new(),
            state: DetectorState::new(sensitive(), bounds(10), known_from),
            joined: Joined::default(),
        }
    }

    pub fn watermark(&self) -> EventTime {
        EventTime::from_millis(self.now_ms + 1)
    }

    /// Time advances by minutes, sometimes by hours, and in a backlog by days.
    pub fn pass_time(&mut self) {
        let rng = &mut self.rng;
        self.now_ms += rng.below(600_000) as i64;
        self.now_ms += if rng.one_in(60) { rng.below(20 * 3_600_000) as i64 } else { 0 };
        self.busy = if rng.one_in(8) { rng.below(14) } else { self.busy };
        self.jumps_ms = if rng.one_in(40) { rng.between(1, 6) as i64 * 24 * HOUR_MS } else { 0 };
        self.now_ms += self.jumps_ms;
    }

    /// Sessions close. Late events remove a row, and may replace it with a longer one.
    pub fn change_rows(&mut self) -> Vec<(Row, i64)> {
        let rng = &mut self.rng;
        let ago_ms = self.jumps_ms + 600_000;
        let n = if self.jumps_ms > 0 { 800 } else { self.busy };
        let mut changes: Vec<(Row, i64)> =
            (0..n).map(|_| (random_row(rng, self.now_ms, ago_ms), 1)).collect();
        if rng.one_in(2) && !self.rows.is_empty() {
            let recent = self.rows.len().min(400);
            let at = self.rows.len() - 1 - rng.below(recent as u64) as usize;
            let row = self.rows[at].clone();
            let mut longer = row.clone();
            longer.2.count += rng.between(1, 9);
            changes.push((row, -1));
            changes.extend(rng.one_in(2).then_some((longer, 1)));
        }
        for (row, diff) in &changes {
            match diff {
                1 => self.rows.push(row.clone()),
                _ => {
                    let at = self.rows.iter().position(|known| known == row);
                    self.rows.remove(at.expect("it was there"));
                }
            }
        }
        changes
    }

    /// Begins anew: whatever was emitted before does not count.
    pub fn begin(&mut self) {
        let from = match self.seed {
            2 => Hour(Hour::of(self.watermark()).0 - HISTORY),
            _ => needed_from(self.watermark(), true),
        };
        self.joined = Joined::default();
        self.joined.take(self.state.begin(from));
    }

    /// Compares what is joined with the batch answer; before the last advance, the watermark was
    /// `live_at`. Returns the anomalies.
    pub fn compare(&mut self, live_at: EventTime) -> Vec<Anomaly> {
        // Nothing older can be live, nor be the history of what is.
        let needed = live_at.plus(-97 * HOUR_MS);
        self.rows.retain(|(.., end)| *end > needed);
        let mut want = answer(&self.rows, self.watermark());
        want.retain(|anomaly| is_known(&self.state, anomaly, live_at));
        // The first quarter that is known may only continue the one before: it is left out.
        let first = Hour(self.state.known_from.0.saturating_add(HISTORY));
        let quarter = |a: &Anomaly| bucket(a.at, SINGLES_MS);
        let is_first = |a: &Anomaly| quarter(a) == first.0.saturating_mul(4);
        want.retain(|a| a.kind != Kind::Singles || !is_first(a));
        let mut got = self.joined.anomalies();
        // A visitor depends on whether the day before could be judged, too.
        let last_unknown = Hour(self.state.known_from.0.saturating_sub(1)).day();
        let is_whole = |a: &Anomaly| Day::of(a.at).0 - 2 > last_unknown.0;
        for all in [&mut want, &mut got] {
            all.retain(|a| a.kind != Kind::Repeat || is_whole(a));
        }
        let odd: Vec<&Anomaly> = got.iter().filter(|a| !want.contains(a)).collect();
        let missing: Vec<&Anomaly> = want.iter().filter(|a| !got.contains(a)).collect();
        assert!(got == want, "seed {}: {odd:?} instead of {missing:?}", self.seed);
        got
    }
}
