//! Each rule just below, at and above its threshold; learning; corrections.

mod hosts;
mod settings;
mod visitors;

use std::collections::BTreeMap;

use super::*;
use crate::statistics::{Bin, Histogram};

const HOST: &str = "shop.example";
/// 2026-06-01T00:00:00Z.
const DAY: i64 = 1_780_272_000_000;
const GAP_MS: i64 = 300_000;
const MINUTE: i64 = 60_000;

/// A session that ends at `end_ms` and lasts `duration_ms`.
fn session(ip: &str, end_ms: i64, duration_ms: i64, count: u64) -> (String, Span, EventTime) {
    let last = EventTime::from_millis(end_ms - GAP_MS);
    let span = Span { first: last.plus(-duration_ms), last, count };
    (ip.to_owned(), span, EventTime::from_millis(end_ms))
}

type Row = (String, Span, EventTime);

/// Thresholds for these tests, whatever the defaults are.
fn thresholds() -> Thresholds {
    let by_visits =
        Outlier { min: 8, q95_factor: 3.0, rank_factor: 1.5, rank: 25, cap_factor: Some(20.0) };
    Thresholds {
        burst: Outlier {
            min: 20,
            q95_factor: 4.0,
            rank_factor: 3.0,
            rank: 10,
            cap_factor: Some(100.0),
        },
        marathon: Outlier {
            min: 6 * 3_600_000,
            q95_factor: 0.0,
            rank_factor: 3.0,
            rank: 10,
            cap_factor: None,
        },
        burst_pace_factor: 1.5,
        burst_pace_rank: 25,
        repeat: by_visits,
        network: by_visits,
        repeat_growth: 2.0,
        repeat_z: 0.0,
        network_growth: 2.0,
        network_z: 0.0,
        ..Thresholds::default()
    }
}

fn found(rows: &[Row], watermark_ms: i64) -> Vec<Anomaly> {
    let sessions =
        rows.iter().map(|(ip, span, end)| Session { ip, host: HOST, span: *span, end: *end });
    batch(sessions, EventTime::from_millis(watermark_ms), &thresholds())
}

fn of(kind: Kind, found: &[Anomaly]) -> Vec<&Anomaly> {
    found.iter().filter(|anomaly| anomaly.kind == kind).collect()
}

/// `n` sessions of different visitors that end evenly over the hours `from .. to` of the day.
fn quiet(n: i64, from: i64, to: i64) -> Vec<Row> {
    let span = (to - from) * 60 * MINUTE;
    let end = |i: i64| DAY + from * 60 * MINUTE + i * span / n;
    (0..n).map(|i| session(&format!("10.{}.{}.1", i / 250, i % 250), end(i), 60_000, 3)).collect()
}

#[test]
fn a_burst_has_more_events_than_the_floor_the_percentile_and_the_rank_allow() {
    let at = DAY + 10 * 60 * MINUTE;
    // 95 % have 3 events, so the floor of 20 is the highest.
    for (events, want) in [(19, 0), (20, 0), (21, 1)] {
        let mut rows = quiet(300, 0, 10);
        rows.push(session("a", at, 600_000, events));
        assert_eq!(of(Kind::Burst, &found(&rows, at + 1)).len(), want, "{events}");
    }
    // Ten sessions of 10 events: three times that is higher than the floor.
    for (events, want) in [(30, 0), (31, 1)] {
        let mut rows = quiet(300, 0, 10);
        rows.extend((0..10).map(|i| session("b", DAY + (i + 1) * 50 * MINUTE, 60_000, 10)));
        rows.push(session("a", at, 600_000, events));
        let found = found(&rows, at + 1);
        assert_eq!(of(Kind::Burst, &found).len(), want, "{events}");
        if want == 1 {
            let burst = of(Kind::Burst, &found)[0];
            assert_eq!((burst.expected, burst.threshold), (10, 30));
            assert_eq!(burst.at, EventTime::from_millis(at - GAP_MS - 600_000));
            let want = "31 events in 10 min; of 310 sessions in the 24 h before, 10 had 10 or more";
            assert_eq!(burst.reason(), want);
        }
    }
}

#[test]
fn a_burst_may_be_one_by_its_pace() {
    let at = DAY + 10 * 60 * MINUTE;
    let with = |large: i64, minutes: i64, one: (u64, i64)| {
        let mut rows = quiet(300, 0, 10);
        let end = |i: i64| DAY + (i + 1) * 20 * MINUTE;
        rows.extend((0..large).map(|i| session("b", end(i), minutes * MINUTE, 100)));
        rows.push(session("a", at, one.1 * MINUTE, one.0));
        found(&rows, at + 1)
    };
    // Ten sessions of two events a minute: the floor of 20 a minute is the highest.
    for (events, want) in [(199, 0), (209, 0), (210, 1)] {
        let found = with(10, 50, (events, 10));
        assert_eq!(of(Kind::Burst, &found).len(), want, "{events}");
        if want == 1 {
            let burst = of(Kind::Burst, &found)[0];
            assert_eq!((burst.observed, burst.expected, burst.threshold), (21, 2, 20));
            assert_eq!(burst.unit(), "events a minute");
            let want = "210 events in 10 min, 21 a minute; of 10 large sessions in the 24 h before, \
                        10 had 2 a minute or more";
            assert_eq!(burst.reason(), want);
        }
    }
    // The highest of the bin of 20 a minute is 21, and one and a half times that is 31.
    for (events, want) in [(155, 0), (159, 0), (160, 1)] {
        assert_eq!(of(Kind::Burst, &with(25, 5, (events, 5))).len(), want, "{events}");
    }
    // Of ten that have 20 a minute, too: with so few, the 95th percentile is the fastest.
    for (events, want) in [(155, 0), (159, 0), (160, 1)] {
        assert_eq!(of(Kind::Burst, &with(10, 5, (events, 5))).len(), want, "{events}");
    }
    let with_few = |large| of(Kind::Burst, &with(large, 50, (205, 1)))[0].reason();
    let [none, one] = [0, 1].map(with_few);
    assert_eq!(none, "205 events in 60 s; of 300 sessions in the 24 h before, 10 had 3 or more");
    assert!(one.starts_with("205 events in 60 s; "), "{one}");
}

#[test]
fn a_session_shorter_than_a_minute_is_no_faster_than_one_of_a_minute() {
    let span = |duration_ms, count| session("a", DAY, duration_ms, count).1;
    let paces = [(0, 1), (1, 50), (60_000, 50), (60_001, 50), (120_000, 50), (300_000, 9)];
    assert_eq!(paces.map(|(ms, count)| pace(&span(ms, count))), [1, 50, 50, 49, 25, 1]);
    let (ip, span, end) = session("a", DAY, 60_001, 50);
    assert_eq!(Session { ip: &ip, host: HOST, span, end }.duration_ms(), 60_001);
}

#[test]
fn a_page_left_open_is_no_burst() {
    let at = DAY + 10 * 60 * MINUTE;
    for (events, want) in [(999, 0), (1_000, 1)] {
        let mut rows = quiet(300, 0, 10);
        rows.push(session("a", at, 500 * MINUTE, events));
        assert_eq!(of(Kind::Burst, &found(&rows, at + 1)).len(), want, "{events}");
    }
}

#[test]
fn floods_do_not_hide_the_next_one() {
    // Eleven floods of 5,000 events raise the rank to 15,000; 100 times the percentile is 300.
    let at = DAY + 10 * 60 * MINUTE;
    for (events, want) in [(300, 0), (301, 1)] {
        let mut rows = quiet(300, 0, 10);
        rows.extend((0..11).map(|i| session("b", DAY + (i + 1) * 50 * MINUTE, 60_000, 5_000)));
        rows.push(session("a", at, 30_000, events));
        let found = found(&rows, at + 1);
        assert_eq!(of(Kind::Burst, &found).iter().filter(|a| a.subject == "a").count(), want);
    }
}

#[test]
fn a_host_is_learned_before_it_is_judged() {
    let at = DAY + 10 * 60 * MINUTE;
    let bursts = |mut rows: Vec<Row>| {
        rows.push(session("a", at, 30_000, 1_000));
        of(Kind::Burst, &found(&rows, at + 1)).len()
    };
    assert_eq!([bursts(quiet(199, 0, 10)), bursts(quiet(200, 0, 10))], [0, 1]);
    // The history begins in the hour before, which may be incomplete.
    assert_eq!([bursts(quiet(200, 9, 10)), bursts(quiet(200, 8, 10))], [0, 1]);
    // Sessions more than 24 hours older, or of the same hour, do not count.
    assert_eq!([bursts(quiet(240, -15, -14)), bursts(quiet(240, -14, -13))], [0, 1]);
    assert_eq!(bursts(quiet(240, 10, 11)), 0);
}

#[test]
fn an_hour_is_compared_with_what_ended_before_and_has_not_been_taken_back() {
    let thresholds = thresholds();
    let spans = [1, 3, 20, 21].map(|count| session("a", DAY, 60_000, count).1);
    let mut hours: BTreeMap<Hour, HourSums> = BTreeMap::new();
    for (hour, counts) in [(1, [100, 30, 0, 2]), (9, [7, 70, 5, 1])] {
        for (span, n) in spans.iter().zip(counts) {
            hours.entry(Hour(hour)).or_default().add(span, n, &thresholds);
        }
    }
    let of = |hours: &BTreeMap<Hour, HourSums>| Limits::of(hours, Hour(10), &thresholds);
    let limits = of(&hours).expect("215 sessions are enough");
    assert_eq!((limits.sessions, limits.singles), (215, 107));
    // Of more than twenty events.
    assert_eq!(limits.pace.count, 3);
    // What ended in the first hour is taken back: the last hour alone is no history.
    let taken_back = hours.get_mut(&Hour(1)).expect("it was added");
    spans.iter().zip([100, 30, 0, 2]).for_each(|(span, n)| taken_back.add(span, -n, &thresholds));
    assert_eq!(*taken_back, HourSums::default());
    hours.entry(Hour(9)).or_default().add(&spans[1], 200, &thresholds);
    assert_eq!(of(&hours), None);
}

#[test]
fn a_day_is_known_if_its_first_sessions_ended_in_the_morning() {
    let known = |by_hour: &[(i64, i64)]| day_is_known(by_hour.iter().copied(), &thresholds());
    assert!(known(&[(0, 0), (5, 1), (23, 199)]));
    assert!(!known(&[(0, 0), (5, 1), (23, 198)]), "too few");
    assert!(!known(&[(0, 0), (5, 0), (6, 200)]), "too late");
}

#[test]
fn a_marathon_is_longer_than_six_hours_and_three_times_the_rank() {
    let at = DAY + 10 * 60 * MINUTE;
    let six_hours = 6 * 60 * MINUTE;
    for (duration, want) in [(six_hours - 1, 0), (six_hours, 0), (six_hours + 1, 1)] {
        let mut rows = quiet(300, 0, 10);
        rows.push(session("a", at, duration, 15));
        assert_eq!(of(Kind::Marathon, &found(&rows, at + 1)).len(), want, "{duration}");
    }
    let limit = 3 * Bin::of(180 * MINUTE as u64).highest() as i64;
    for (duration, want) in [(limit, 0), (limit + 1, 1)] {
        let mut rows = quiet(300, 0, 10);
        rows.extend((0..10).map(|i| session("b", DAY + (i + 1) * 50 * MINUTE, 180 * MINUTE, 9)));
        rows.push(session("a", at, duration, 15));
        let found = found(&rows, at + 1);
        assert_eq!(of(Kind::Marathon, &found).len(), want, "{duration}");
        if want == 1 {
            // Seconds; three hours lie in the bin from 10 · 2^20 to 11 · 2^20 − 1 milliseconds.
            let marathon = of(Kind::Marathon, &found)[0];
            assert_eq!(
                (marathon.expected, marathon.threshold, marathon.unit()),
                (10_485, 34_603, "seconds")
            );
            assert_eq!(marathon.observed, duration as u64 / 1_000);
        }
    }
}

#[test]
fn a_correction_withdraws_what_it_explains() {
    let at = DAY + 10 * 60 * MINUTE;
    let mut rows = quiet(300, 0, 10);
    rows.push(session("a", at, 600_000, 25));
    assert_eq!(of(Kind::Burst, &found(&rows, at + 1)).len(), 1);
    // Late events show that the day before had ten sessions of nine events.
    rows.extend((0..10).map(|i| session("b", DAY + (i + 1) * 50 * MINUTE, 60_000, 9)));
    assert!(of(Kind::Burst, &found(&rows, at + 1)).is_empty());
    // A later day changes nothing.
    let mut later = quiet(300, 0, 10);
    later.push(session("a", at, 600_000, 25));
    let before = found(&later, at + 1);
    later.extend(quiet(300, 11, 20));
    assert_eq!(of(Kind::Burst, &found(&later, at + 11 * 3_600_000)), of(Kind::Burst, &before));
}

#[test]
fn hosts_are_judged_apart() {
    let at = DAY + 10 * 60 * MINUTE;
    let rows = quiet(300, 0, 10);
    let (ip, span, end) = session("a", at, 30_000, 1_000);
    let sessions = rows
        .iter()
        .map(|(ip, span, end)| Session { ip, host: HOST, span: *span, end: *end })
        .chain([Session { ip: &ip, host: "new.example", span, end }]);
    assert!(batch(sessions, EventTime::from_millis(at + 1), &thresholds()).is_empty());
}

#[test]
fn a_clock_is_off_for_three_epochs_and_told_once() {
    let thresholds = Thresholds::default();
    let mut judge = ClockJudge::new(&thresholds, 15_000, 30_000);
    let mut epoch = |ahead_ms: i64, active: bool| {
        let at = |ms| Some(EventTime::from_millis(DAY + ms));
        let promise = if active { at(ahead_ms) } else { None };
        let names = ["t/0", "t/1", "t/2", "t/3"];
        let promises = [at(0), at(10), at(20), promise];
        let clocks = names.into_iter().zip(promises);
        let clocks: Vec<PartitionClock<'_>> =
            clocks.map(|(name, promise)| PartitionClock { name, promise }).collect();
        judge.epoch(&clocks)
    };
    // The median is that of partition 1, at 10 ms.
    assert!([epoch(60_010, true), epoch(60_010, true), epoch(60_010, true)].concat().is_empty());
    assert!([epoch(60_011, true), epoch(60_011, true)].concat().is_empty());
    let [clock] = &epoch(840_000, true)[..] else { panic!("one clock") };
    assert_eq!((clock.subject.as_str(), clock.observed, clock.threshold), ("t/3", 839, 60));
    let want = "t/3 is 13 min ahead of the other partitions; its sessions close too late";
    assert_eq!(clock.reason(), want);
    assert!(epoch(840_000, true).is_empty());
    // An idle epoch or a correct clock resets the count; so does a change of direction.
    assert!(epoch(840_000, false).is_empty());
    assert!([epoch(840_000, true), epoch(840_000, true), epoch(0, true)].concat().is_empty());
    assert!([epoch(840_000, true), epoch(840_000, true)].concat().is_empty());
    assert!([epoch(-840_000, true), epoch(-840_000, true)].concat().is_empty());
    let [lagging] = &epoch(-840_000, true)[..] else { panic!("one clock") };
    let want = "t/3 lags the other partitions by 14 min; all sessions close late";
    assert_eq!(lagging.reason(), want);
}

#[test]
fn a_clock_may_be_off_by_the_floor_thrice_the_disorder_and_as_long_as_silence_is_none() {
    let thresholds = Thresholds::default();
    let off_s = |disorder_s: u64, idle_s: u64| {
        thresholds.clock_off_ms(disorder_s * 1_000, idle_s * 1_000) / 1_000
    };
    assert_eq!([off_s(15, 30), off_s(40, 30), off_s(15, 100)], [60, 120, 115]);
}

#[test]
fn one_of_five_partitions_lags_behind_the_median() {
    let mut judge = ClockJudge::new(&Thresholds::default(), 15_000, 30_000);
    let promises = [-70_000, 0, 0, 0, 0].map(|ms| Some(EventTime::from_millis(DAY + ms)));
    let names = ["t/0", "t/1", "t/2", "t/3", "t/4"];
    let clocks: Vec<PartitionClock<'_>> = names
        .iter()
        .zip(promises)
        .map(|(name, promise)| PartitionClock { name, promise })
        .collect();
    let found: Vec<Anomaly> = (0..3).flat_map(|_| judge.epoch(&clocks)).collect();
    let [lagging] = &found[..] else { panic!("one clock: {found:?}") };
    assert_eq!((lagging.subject.as_str(), lagging.observed), ("t/0", 70));
    assert_eq!(lagging.evidence, Evidence::Clock { ahead: false });
}

#[test]
fn of_two_partitions_nobody_knows_which_is_off() {
    let mut judge = ClockJudge::new(&Thresholds::default(), 15_000, 30_000);
    let at = |ms| Some(EventTime::from_millis(DAY + ms));
    let two = [
        PartitionClock { name: "t/0", promise: at(0) },
        PartitionClock { name: "t/1", promise: at(900_000) },
    ];
    assert!((0..5).all(|_| judge.epoch(&two).is_empty()));
    assert!((0..5).all(|_| judge.epoch(&[]).is_empty()));
}

#[test]
fn an_anomaly_is_known_and_live_from_the_end_of_what_it_is_about() {
    let (events, duration_ms, sessions, rank) = (90, 20 * MINUTE as u64, 900, 5);
    let session = Evidence::Session { events, duration_ms, sessions, rank };
    let pace = Evidence::Pace { events, duration_ms, sessions, rank };
    let open = Evidence::Open { events, duration_ms, sessions, rank };
    let visitor = Evidence::Visitor { before: 0, visitors: 9 };
    let network = Evidence::Network { before: 0, addresses: 9, most: 2, networks: 9 };
    for (kind, evidence, known, hour) in [
        // 45 minutes past, 20 minutes long, and the gap of 5 minutes.
        (Kind::Burst, session, Some(70), 1),
        (Kind::Burst, pace, Some(70), 1),
        (Kind::Marathon, session, Some(70), 1),
        (Kind::Marathon, open, None, 1),
        (Kind::Surge, Evidence::Bucket, Some(50), 0),
        (Kind::Fall, Evidence::Quarter, Some(50), 0),
        (Kind::Singles, Evidence::Singles { sessions: 9 }, Some(60), 0),
        (Kind::Repeat, visitor, None, 24),
        (Kind::Network, network, None, 24),
        (Kind::Clock, Evidence::Clock { ahead: true }, None, 24),
    ] {
        let anomaly = Anomaly {
            kind,
            host: HOST.to_owned(),
            subject: String::new(),
            at: EventTime::from_millis(DAY + 45 * MINUTE),
            observed: 90,
            expected: 9,
            threshold: 40,
            evidence,
        };
        let known = known.map(|minute| EventTime::from_millis(DAY + minute * MINUTE));
        let hour = Hour::of(EventTime::from_millis(DAY + hour * HOUR_MS));
        assert_eq!((anomaly.known(GAP_MS), anomaly.hour(GAP_MS)), (known, hour), "{kind:?}");
    }
}

#[test]
fn names_are_stored_so_they_stay() {
    let names = Kind::ALL.map(Kind::name).join(" ");
    assert_eq!(names, "burst marathon repeat network surge fall singles clock");
    assert!(Kind::ALL.into_iter().all(|kind| Kind::named(kind.name()) == Some(kind)));
    assert_eq!(Kind::named("bursts"), None);
}

#[test]
fn a_history_shorter_than_the_rank_has_a_limit_all_the_same() {
    let rule = thresholds().burst;
    assert_eq!(rule.limit(&Histogram::default()), None);
    let few: Histogram = [(Bin::of(9), 1), (Bin::of(12), 2)].into_iter().collect();
    let limit = rule.limit(&few).expect("not empty");
    assert_eq!((limit.above, limit.q95, limit.ranked, limit.rank), (48, 12, 9, 3));
}
