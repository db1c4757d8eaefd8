//! Compares what is published with the batch answer, at one complete epoch in four: with
//! corrections, windows that move, several workers, several writers of which one is ahead, and a
//! past that comes late.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use differential_dataflow::input::Input as _;
use sessionizer_core::anomaly::{
    Anomaly, Day, DetectorBounds, Evidence, Hour, Kind, LIVE, LIVE_DAYS, OpenNow, OpenReport,
    Session, Thresholds, batch,
};
use sessionizer_core::key::Key;
use sessionizer_core::session::Span;
use sessionizer_core::time::{Epoch, EventTime};
use timely::dataflow::operators::Input;

use super::publish::Published;
use super::{AnomaliesConfig, render_anomalies};
use crate::commands::produce::generate::random::Random;
use crate::dataflow::messages::Committed;
use crate::dataflow::statistics::operator::render_window;
use crate::dataflow::statistics::quota::{Quotas, Share};
use crate::dataflow::statistics::rows::{Before, WindowInput};
use crate::dataflow::statistics::sums::Row;
use crate::dataflow::statistics::watermarks::render_watermarks;
use crate::dataflow::statistics::window::Bounds;

const GAP_MS: i64 = 300_000;
const EPOCHS: u64 = 240;
const EPOCH_MS: u64 = 1_000;
/// More than there are.
const HOSTS: usize = 1_000;
/// Those that are a function of the table: all but the clocks.
const KINDS: [Kind; 7] = [
    Kind::Burst,
    Kind::Marathon,
    Kind::Repeat,
    Kind::Network,
    Kind::Surge,
    Kind::Fall,
    Kind::Singles,
];

/// What happens: the rows of each epoch and its watermark.
type World = Vec<(Vec<Row>, EventTime)>;

fn world(seed: u64) -> World {
    let mut random = Random::new(seed, 1);
    let mut now_ms = 1_780_272_000_000 + random.below(86_400_000) as i64;
    let mut known: Vec<Row> = Vec::new();
    let mut busy = 1;
    let mut epoch = |_| {
        now_ms += random.below(900_000) as i64;
        now_ms += if random.below(40) == 0 { random.below(20 * 3_600_000) as i64 } else { 0 };
        busy = if random.below(8) == 0 { random.below(14) } else { busy };
        // In a backlog, by days.
        let days = if random.below(60) == 0 { 1 + random.below(4) } else { 0 };
        let ago_ms = 600_000 + days * 86_400_000;
        now_ms += (days * 86_400_000) as i64;
        let mut rows = Vec::new();
        for _ in 0..if days > 0 { 700 } else { busy } {
            let host = random.pick(&["a.example", "b.example", "c.example"]);
            let end_ms = now_ms - random.below(ago_ms) as i64;
            let few = random.below(15) > 0;
            let count = 1 + random.below(if few { 4 } else { 40 });
            let short = random.below(20) > 0;
            let span_ms = random.below(if short { 100_000 } else { 2_000_000 });
            let last = EventTime::from_millis(end_ms - GAP_MS);
            let first = last.plus(if count == 1 { 0 } else { -(span_ms as i64) });
            let key = Key::new(&format!("192.0.{}.{}", random.below(12), random.below(10)), host);
            let span = Span { first, last, count };
            rows.push(Row::new(key, span, end_ms, 1));
        }
        // Late events remove a row, and may replace it with a larger one.
        if random.below(3) == 0 && !known.is_empty() {
            let recent = known.len().min(300);
            let at = known.len() - 1 - random.below(recent as u64) as usize;
            let row = known.swap_remove(at);
            let mut larger = row.clone();
            larger.span.count += 1 + random.below(9);
            rows.push(Row { diff: -1, ..row });
            if random.below(3) > 0 {
                rows.push(larger);
            }
        }
        known.extend(rows.iter().filter(|row| row.diff > 0).cloned());
        (rows, EventTime::from_millis(now_ms + 1))
    };
    (0..EPOCHS).map(&mut epoch).collect()
}

/// What the writers commit at the end of each epoch.
type Commits = Vec<Vec<(Committed, Vec<Row>)>>;

/// Each of the writers commits its part of the rows. A single one does so after every epoch. Several
/// join up to eight epochs in a transaction, but none across the epoch `past`.
fn commits(world: &World, writers: u32, past: Option<u64>) -> Commits {
    let mut random = Random::new(u64::from(writers), 2);
    let mut commits: Commits = vec![Vec::new(); world.len()];
    for writer in 0..writers {
        let is_mine = |row: &&Row| {
            let address = row.key.parts().0.bytes();
            address.map(u32::from).sum::<u32>() % writers == writer
        };
        let mut joined = Vec::new();
        for (at, (rows, watermark)) in world.iter().enumerate() {
            joined.extend(rows.iter().filter(is_mine).cloned());
            let is_last = at + 1 == world.len() || past == Some(at as u64 + 1);
            if writers == 1 || is_last || random.below(8) == 0 {
                let committed = Committed { writer, watermark: *watermark };
                commits[at].push((committed, std::mem::take(&mut joined)));
            }
        }
    }
    commits
}

/// Runs the detectors on what is committed. What is committed before the epoch `past` is what the
/// table had at the start. The reports on open sessions come by epoch.
fn run(
    commits: &Commits,
    reports: &BTreeMap<u64, OpenReport>,
    workers: usize,
    past: Option<u64>,
) -> Vec<Published> {
    run_from(commits, reports, workers, (past, None))
}

/// The same; or a first start, which knows only from the epoch `empty` on that the table was empty.
fn run_from(
    commits: &Commits,
    reports: &BTreeMap<u64, OpenReport>,
    workers: usize,
    starts: (Option<u64>, Option<u64>),
) -> Vec<Published> {
    run_within(commits, reports, (workers, HOSTS), starts)
}

/// The same, with room for so many hosts a worker.
fn run_within(
    commits: &Commits,
    reports: &BTreeMap<u64, OpenReport>,
    (workers, hosts): (usize, usize),
    (past, empty): (Option<u64>, Option<u64>),
) -> Vec<Published> {
    let published: Arc<Mutex<Vec<Published>>> = Arc::default();
    let (seen, commits, reports) = (Arc::clone(&published), commits.clone(), reports.clone());
    let writers = commits.iter().flatten().map(|(committed, _)| committed.writer + 1).max();
    // What the last replayed epoch had reached.
    let of_past = commits.iter().take(past.unwrap_or(0) as usize).flatten();
    let watermark = of_past.map(|(committed, _)| committed.watermark).max();
    let watermark = watermark.unwrap_or(EventTime::NEVER);
    let quotas = Quotas::default();
    let guards = timely::execute(timely::Config::process(workers), move |worker| {
        let (index, peers) = (worker.index(), worker.peers());
        let seen = Arc::clone(&seen);
        let config = AnomaliesConfig {
            thresholds: Thresholds::sensitive(),
            kinds: KINDS.to_vec(),
            bounds: DetectorBounds { hosts, visitors: 1_000_000 },
            out_of_orderness_ms: 5_000,
            idle_timeout_ms: 60_000,
            on_anomalies: Arc::new(move |now| seen.lock().expect("alone").push(now.clone())),
        };
        let (mut inputs, mut committed) = worker.dataflow::<Epoch, _, _>(|scope| {
            let (inputs_in, inputs) = scope.new_input::<Vec<WindowInput>>();
            let (committed_in, committed) = scope.new_input::<Vec<Committed>>();
            let first_epoch = past.unwrap_or(0) * EPOCH_MS;
            let reads_past = past.or(empty).is_some();
            let horizon = EventTime::NEVER;
            let writers = writers.expect("something is committed");
            let before = Before { horizon, first_epoch, watermark, writers };
            let watermarks = render_watermarks(committed, before, 0);
            let of_job = (index, peers);
            let detectors =
                Some(config.detectors(of_job, &quotas.detectors, first_epoch, reads_past));
            let window = (Bounds::day(1_000, 0), Share::new(&quotas.window, 0, peers), EPOCH_MS);
            let figures = Arc::default();
            let (_, detected) =
                render_window(inputs, watermarks.clone(), window, reads_past, detectors, figures);
            let (_, no_clocks) = scope.new_collection::<Anomaly, i64>();
            let lengths = (EPOCH_MS, GAP_MS);
            render_anomalies(detected, no_clocks, watermarks, config, lengths);
            (inputs_in, committed_in)
        });
        for (at, of_epoch) in commits.iter().enumerate() {
            let at = at as u64;
            let rows = of_epoch.iter().flat_map(|(_, rows)| rows);
            let mine = rows.skip(index).step_by(peers).cloned().map(WindowInput::Row);
            match past {
                // Rows of the past are sent before that of this epoch.
                Some(past) if at < past => mine.for_each(|row| inputs.send(row)),
                _ => {
                    mine.for_each(|row| inputs.send(row));
                    if past.or(empty) == Some(at) && index == 0 {
                        let horizon = EventTime::from_millis(1);
                        let closed = |worker| WindowInput::Horizon { worker, horizon };
                        let closed = (0..peers).map(closed).filter(|_| past.is_some());
                        closed.for_each(|closed| inputs.send(closed));
                        let whole = |worker| WindowInput::Past { worker, whole: true };
                        (0..peers).map(whole).for_each(|past| inputs.send(past));
                    }
                }
            }
            // Each session is kept by one worker.
            let report = reports.get(&at).filter(|_| index == peers - 1);
            report.into_iter().for_each(|report| inputs.send(WindowInput::open(report.clone())));
            for (of_writer, _) in of_epoch {
                if of_writer.writer as usize % peers == index {
                    committed.send(*of_writer);
                }
            }
            inputs.advance_to((at + 1) * EPOCH_MS);
            committed.advance_to((at + 1) * EPOCH_MS);
            for _ in 0..40 {
                worker.step();
            }
        }
        inputs.close();
        committed.close();
        while worker.has_dataflows() {
            worker.step();
        }
    });
    for result in guards.expect("workers start").join() {
        result.expect("a worker does not panic");
    }
    Arc::into_inner(published).expect("all workers have ended").into_inner().expect("no panic")
}

/// The table as of an epoch.
fn table(commits: &Commits, epoch: u64) -> Vec<Row> {
    let mut rows: BTreeMap<(Key, Span), Row> = BTreeMap::new();
    let commits = commits[..=(epoch / EPOCH_MS) as usize].iter().flatten();
    for row in commits.flat_map(|(_, rows)| rows) {
        let key = (row.key.clone(), row.span);
        match row.diff {
            1 => drop(rows.insert(key, row.clone())),
            _ => drop(rows.remove(&key).expect("it is there")),
        }
    }
    rows.into_values().collect()
}

/// The batch answer of what the table had up to the watermark, for what was live before.
fn answer(
    commits: &Commits,
    epoch: u64,
    (before, watermark): (EventTime, EventTime),
) -> Vec<Anomaly> {
    let rows = table(commits, epoch);
    let rows = rows.iter().filter(|row| row.end_ms <= watermark.millis());
    let sessions = rows.map(|row| {
        let (ip, host) = row.key.parts();
        Session { ip, host, span: row.span, end: EventTime::from_millis(row.end_ms) }
    });
    let first = Hour(Hour::of(before).0 - LIVE + 1);
    let first_day = Day(Day::of(before).0 - LIVE_DAYS + 1);
    let mut want = batch(sessions, watermark, &Thresholds::sensitive());
    want.retain(|anomaly| match anomaly.kind.is_by_day() {
        true => Day::of(anomaly.at) >= first_day,
        false => anomaly.hour(GAP_MS) >= first,
    });
    want
}

#[test]
fn what_is_published_is_the_batch_answer() {
    let mut counts: BTreeMap<Kind, [u64; 2]> = BTreeMap::new();
    let mut checked = 0;
    let mut behind = 0;
    for (seed, workers, writers, past, empty) in [
        (1, 1, 1, None, None),
        (2, 3, 1, None, None),
        (3, 2, 1, Some(60), None),
        (4, 1, 1, Some(90), None),
        (5, 1, 2, None, None),
        (6, 1, 3, Some(70), None),
        (7, 2, 2, None, None),
        (8, 1, 1, None, Some(40)),
        (9, 2, 2, None, Some(100)),
    ] {
        let world = world(seed);
        let commits = commits(&world, writers, past);
        let all = run_from(&commits, &BTreeMap::new(), workers, (past, empty));
        let begins = past.or(empty).map_or(0, |at| at * EPOCH_MS);
        let mut has_begun = begins == 0;
        for (number, published) in all.iter().enumerate() {
            if published.epoch < begins {
                assert!(published.live.is_empty(), "nothing is said before the past is known");
                continue;
            }
            for anomaly in &published.raised {
                counts.entry(anomaly.kind).or_default()[0] += 1;
            }
            for anomaly in &published.withdrawn {
                counts.entry(anomaly.kind).or_default()[1] += 1;
                assert!(!published.live.contains(anomaly));
                // Otherwise it would merely have expired.
                let before = all[number - 1].watermark.expect("something was found before");
                assert!(anomaly.hour(GAP_MS).0 > Hour::of(before).0 - LIVE, "{anomaly:?}");
            }
            let begins_now = !std::mem::replace(&mut has_begun, true);
            if number % 4 > 0 && !begins_now {
                continue;
            }
            checked += 1;
            let watermark = published.watermark.unwrap_or(EventTime::NEVER);
            behind += usize::from(watermark < world[(published.epoch / EPOCH_MS) as usize].1);
            let before = match published.begins {
                Some(_) => published.watermark,
                // All that has come since is judged.
                None if begins_now => None,
                None => all[..number].last().and_then(|before| before.watermark),
            };
            let before = before.unwrap_or(EventTime::NEVER);
            let want = answer(&commits, published.epoch, (before, watermark));
            let got: Vec<Anomaly> = published.live.iter().cloned().collect();
            let odd: Vec<&Anomaly> = got.iter().filter(|one| !want.contains(one)).collect();
            let missing: Vec<&Anomaly> = want.iter().filter(|one| !got.contains(one)).collect();
            let at = published.epoch;
            assert!(got == want, "seed {seed} at {at}: {odd:?} instead of {missing:?}");
        }
    }
    // Several workers may be scheduled so that they complete many epochs at once: what is counted
    // on is what the runs with one worker publish.
    assert!(checked > 80 && behind > 20, "{checked}, {behind}");
    // Each kind must have occurred, or the test proves nothing.
    let raised_often = |kind| counts.get(kind).is_some_and(|[raised, _]| *raised > 10);
    let withdrawn: u64 = counts.values().map(|[_, withdrawn]| withdrawn).sum();
    assert!(KINDS.iter().all(raised_often) && withdrawn > 10, "{counts:?}");
}

/// A start compares what it finds with what was found before, and withdraws what is missing. It must
/// not do so if there was no room for all rows that the table had.
#[test]
fn a_start_without_room_for_all_hosts_does_not_find_everything() {
    for (hosts, finds_all) in [(2, false), (3, true), (HOSTS, true)] {
        let past = Some(60);
        let commits = commits(&world(3), 1, past);
        let all = run_within(&commits, &BTreeMap::new(), (1, hosts), (past, None));
        let begins: Vec<bool> = all.iter().filter_map(|published| published.begins).collect();
        assert_eq!(begins, [finds_all], "room for {hosts} hosts");
    }
}

/// A session that is open, then closes, and whose row comes in the same epoch or later: it is raised
/// once, and never withdrawn. So it is if the detectors begin in between.
#[test]
fn a_marathon_is_raised_while_it_is_open_and_its_row_takes_it_over() {
    let key = Key::new("203.0.113.9", "a.example");
    let runs = [
        (1, 1, None),
        (3, 1, None),
        (1, 1, Some(152)),
        (2, 1, Some(160)),
        (2, 1, Some(162)),
        (1, 2, None),
        (1, 3, Some(152)),
    ];
    for (seed, late) in [(1, 0), (2, 3)] {
        for (workers, writers, past) in runs {
            let mut world = world(seed);
            let watermark = |epoch: u64| world[epoch as usize].1;
            let first = watermark(150).plus(-3_600_000);
            let span = |last, count| Span { first, last, count };
            let report = |now| OpenReport { key: key.clone(), at: first, now };
            let reports: BTreeMap<u64, OpenReport> = [
                (150, report(OpenNow::Open(span(watermark(150), 30)))),
                (155, report(OpenNow::Open(span(watermark(155), 50)))),
                (160, report(OpenNow::Closed)),
            ]
            .into();
            let end = watermark(160).plus(-1);
            let row = Row::new(key.clone(), span(end.plus(-GAP_MS), 60), end.millis(), 1);
            world[160 + late].0.push(row.clone());
            let commits = commits(&world, writers, past);
            let has_row =
                |of: &Vec<(Committed, Vec<Row>)>| of.iter().any(|(_, r)| r.contains(&row));
            let committed = commits.iter().position(has_row).expect("it is committed") as u64;
            // Its row is a burst as well.
            let is_it =
                |found: &Anomaly| found.subject == "203.0.113.9" && found.kind == Kind::Marathon;
            let of = |all: &[Anomaly]| all.iter().filter(|one| is_it(one)).count();
            let (mut raised, mut seen) = (0, [0, 0]);
            for published in run(&commits, &reports, workers, past) {
                let at = published.epoch / EPOCH_MS;
                raised += of(&published.raised);
                assert_eq!(of(&published.withdrawn), 0, "at {at}");
                let is_known = at >= 150.max(past.unwrap_or(0));
                let now = Hour::of(watermark_of(&published));
                let mut of_it = published.live.iter().filter(|one| is_it(one));
                match of_it.next() {
                    Some(found) => {
                        let is_open = matches!(found.evidence, Evidence::Open { .. });
                        // Its row counts once all writers have committed up to its end.
                        let has_row = at >= committed && watermark_of(&published) >= end;
                        assert_eq!(is_open, !has_row, "at {at}");
                        assert_eq!(found.at, first);
                        seen[usize::from(is_open)] += 1;
                    }
                    None => {
                        let is_old = Hour::of(end).0 <= now.0 - LIVE;
                        assert!(!is_known || is_old, "seed {seed}, {workers}, {past:?}: at {at}");
                    }
                }
                assert_eq!(of_it.next(), None, "once");
            }
            // Several workers may be scheduled so that they complete all epochs at once.
            let is_one = raised == 1 && seen[0] > 0;
            assert!(is_one || workers > 1 && raised <= 1, "{workers}: {raised}, {seen:?}");
        }
    }
}

fn watermark_of(published: &Published) -> EventTime {
    published.watermark.expect("every epoch has one")
}
