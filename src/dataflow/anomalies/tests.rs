//! Compares what is published with the batch answer, at one complete epoch in four: with
//! corrections, windows that move, several workers, several writers of which one is ahead, and a
//! past that comes late.

mod run;

use std::collections::BTreeMap;

use sessionizer_core::anomaly::{
    Anomaly, Day, Evidence, Hour, Kind, LIVE, LIVE_DAYS, OpenNow, OpenReport, Session, batch,
};
use sessionizer_core::key::Key;
use sessionizer_core::session::Span;
use sessionizer_core::time::EventTime;

use self::run::{
    Commits, EPOCH_MS, GAP_MS, HOSTS, KINDS, commits, run, run_from, run_within, world,
};
use super::publish::Published;
use crate::dataflow::messages::Committed;
use crate::dataflow::statistics::sums::Row;
use crate::shared::thresholds::sensitive;

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
    let mut want = batch(sessions, watermark, &sensitive());
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
