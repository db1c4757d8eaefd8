//! The analysis of whole weeks in `queries/`, against numbers worked out by hand; and the rules of
//! the anomalies in SQL, against those of the program.

use std::collections::BTreeSet;
use std::io::Write;

use sessionizer_core::anomaly::{Evidence, Kind, Session, Thresholds, batch};
use sessionizer_core::session::Span;
use sessionizer_core::time::EventTime;

use crate::oracle::{Event, event};
use crate::queries::run;
use crate::rng::Rng;
use crate::world::World;

/// A time in March 2024, in milliseconds since 1970; the fourth is a Monday.
fn march(time: &str) -> i64 {
    let time = format!("2024-03-{}Z", time.replace(' ', "T"));
    chrono::DateTime::parse_from_rfc3339(&time).expect("a time").timestamp_millis()
}

/// Nine sessions of fourteen events in two weeks, the second of them not over.
pub fn two_weeks(name: &str, options: &[&str]) -> World {
    let world = World::new(name);
    world.create_topic(1);
    let visits: [(&str, &str, &[&str]); 9] = [
        ("10.0.0.1", "a.example", &["04 10:00:00", "04 10:01:00"]),
        ("10.0.0.1", "b.example", &["04 23:57:00"]),
        ("10.0.0.2", "a.example", &["04 23:58:00", "05 00:01:00"]),
        ("10.0.0.1", "a.example", &["05 10:00:00"]),
        // After the part of its week that the second has reached.
        ("10.0.0.9", "b.example", &["05 11:00:00"]),
        ("10.0.0.3", "a.example", &["10 12:00:00"]),
        ("10.0.0.1", "a.example", &["11 09:00:00", "11 09:04:00", "11 09:08:00"]),
        ("10.0.0.3", "a.example", &["11 10:00:00"]),
        ("10.0.0.9", "b.example", &["12 10:00:00", "12 10:02:00"]),
    ];
    let events = visits.iter().flat_map(|(ip, host, times)| {
        times.iter().map(|time| event(ip, host, march(time))).collect::<Vec<Event>>()
    });
    world.send_events(0, &events.collect::<Vec<_>>());
    world.run_to_end(options);
    world
}

#[test]
fn two_weeks_are_analysed_whatever_session_end_holds() {
    for (name, options) in
        [("analysis", &[][..]), ("analysis-last", &["--session-end", "last-event"])]
    {
        let world = two_weeks(name, options);
        assert_eq!(
            run(&world, "hosts_side_by_side.sql"),
            [
                // 60, 0, 480, 180, 0 and 0 seconds.
                "a.example | 6 | 3 | 10 | 2.00 | 1.67 | 00:02:00 | 50.0",
                "b.example | 3 | 2 | 4 | 1.50 | 1.33 | 00:00:40 | 66.7",
            ],
        );
        assert_eq!(
            run(&world, "bounce_rate.sql"),
            [" | 9 | 5 | 55.6", "a.example | 6 | 3 | 50.0", "b.example | 3 | 2 | 66.7"]
        );
        let single = "1.00 | 1 | 1 | 1 | 00:00:00 | 00:00:00 | 00:00:00 | 00:00:00";
        assert_eq!(
            run(&world, "distribution_by_host_and_day.sql"),
            [
                "2024-03-12 | b.example | 1 | 2.00 | 2 | 2 | 2 \
                 | 00:02:00 | 00:02:00 | 00:02:00 | 00:02:00",
                // Of 1 and 3 events, and of 0 and 8 minutes.
                "2024-03-11 | a.example | 2 | 2.00 | 1 | 3 | 3 \
                 | 00:04:00 | 00:00:00 | 00:08:00 | 00:08:00",
                &format!("2024-03-10 | a.example | 1 | {single}"),
                &format!("2024-03-05 | a.example | 1 | {single}"),
                &format!("2024-03-05 | b.example | 1 | {single}"),
                // One of them goes on past midnight.
                "2024-03-04 | a.example | 2 | 2.00 | 2 | 2 | 2 \
                 | 00:02:00 | 00:01:00 | 00:03:00 | 00:03:00",
                &format!("2024-03-04 | b.example | 1 | {single}"),
            ]
        );
        assert_eq!(
            run(&world, "returning_visitors.sql"),
            [
                "2024-03-12 | b.example | 1 | 1 | 100.0 | 7.0",
                "2024-03-11 | a.example | 2 | 2 | 100.0 | 3.5",
                "2024-03-10 | a.example | 1 | 0 | 0.0 | ",
                "2024-03-05 | a.example | 1 | 1 | 100.0 | 1.0",
                "2024-03-05 | b.example | 1 | 0 | 0.0 | ",
                "2024-03-04 | a.example | 2 | 0 | 0.0 | ",
                "2024-03-04 | b.example | 1 | 0 | 0.0 | ",
            ]
        );
        assert_eq!(
            run(&world, "spanning_midnight.sql"),
            ["2024-03-04 | a.example | 2 | 1 | 50.00 | 2 | 00:03:00"],
            "one whose session_end alone is past midnight does not count"
        );
        assert_eq!(
            run(&world, "week_against_week.sql"),
            [
                " | 3 | 4 | -25.0 | 3 | 3 | 0.0 | 6 | 6 | 0.0 | 33.3 | 50.0",
                "a.example | 2 | 3 | -33.3 | 2 | 2 | 0.0 | 4 | 5 | -20.0 | 50.0 | 33.3",
                "b.example | 1 | 1 | 0.0 | 1 | 1 | 0.0 | 2 | 1 | 100.0 | 0.0 | 100.0",
            ]
        );
        let busy: Vec<String> = run(&world, "busiest_hours.sql");
        let busy_hours: Vec<&str> =
            busy.iter().filter(|row| row.contains(['1', '2'])).map(String::as_str).collect();
        assert_eq!(busy.len(), 24);
        for hour in [
            "9 | 1 | 0 | 0 | 0 | 0 | 0 | 0",
            "10 | 2 | 2 | 0 | 0 | 0 | 0 | 0",
            "11 | 0 | 1 | 0 | 0 | 0 | 0 | 0",
            "12 | 0 | 0 | 0 | 0 | 0 | 0 | 1",
            "23 | 2 | 0 | 0 | 0 | 0 | 0 | 0",
        ] {
            assert!(busy_hours.contains(&hour), "{hour} is not in {busy_hours:?}");
        }
    }
}

#[test]
fn a_table_without_rows_has_no_days_and_no_weeks() {
    let world = World::new("analysis-empty");
    world.create_topic(1);
    world.run_to_end(&[]);
    for file in [
        "hosts_side_by_side.sql",
        "distribution_by_host_and_day.sql",
        "returning_visitors.sql",
        "spanning_midnight.sql",
        "unlike_the_rest.sql",
    ] {
        assert_eq!(run(&world, file), [""; 0], "{file}");
    }
    assert_eq!(run(&world, "bounce_rate.sql"), [" | 0 | 0 | 0"]);
    assert_eq!(run(&world, "week_against_week.sql"), [" | 0 | 0 |  | 0 | 0 |  | 0 | 0 |  |  | "]);
    assert_eq!(run(&world, "busiest_hours.sql")[0], "0 | 0 | 0 | 0 | 0 | 0 | 0 | 0");
}

#[test]
fn a_session_unlike_three_hundred_others_is_found() {
    let world = World::new("analysis-burst");
    world.create_topic(1);
    let minute = |n: i64| march("04 00:00:00") + n * 60_000;
    // One session of one event each minute, for six hours.
    let mut events: Vec<Event> =
        (0..360).map(|n| event(&format!("10.0.{}.{}", n / 250, n % 250), "h", minute(n))).collect();
    // Then one of 40 events, which is the least limit, and one of 41; and one of 200 seconds more
    // than ten hours.
    events.extend((0..40).map(|n| event("192.0.2.1", "h", minute(400) + n * 1_000)));
    events.extend((0..41).map(|n| event("192.0.2.2", "h", minute(400) + n * 1_000)));
    events.extend((0..=181).map(|n| event("192.0.2.3", "h", minute(400) + n * 200_000)));
    events.sort_by_key(|event| event.time_ms);
    world.send_events(0, &events);
    world.run_to_end(&[]);
    assert_eq!(
        run(&world, "unlike_the_rest.sql"),
        [
            "2024-03-04 06:40:00+00 | burst | h | 192.0.2.2 | 41 | 40",
            "2024-03-04 06:40:00+00 | marathon | h | 192.0.2.3 | 36200 | 36000",
        ]
    );
}

/// A row of the table.
type Row = (String, &'static str, Span, EventTime);

/// Three days of two hosts with something of every kind.
fn three_days(rng: &mut Rng, gap_ms: i64) -> Vec<Row> {
    let start = march("04 00:30:00");
    let mut rows = Vec::new();
    let (mut visitor, mut loud) = (0_u64, 0_i64);
    let mut add = |rng: &mut Rng, host, last: i64, count: u64, length_ms: i64| {
        visitor += 1;
        let ip = format!("10.{}.{}.{}", visitor >> 16, visitor >> 8 & 255, visitor & 255);
        let length_ms = if count == 1 { 0 } else { length_ms };
        let last = last + rng.below(300_000) as i64;
        let span = Span {
            first: EventTime::from_millis(last - length_ms),
            last: EventTime::from_millis(last),
            count,
        };
        rows.push((ip, host, span, EventTime::from_millis(last + gap_ms)));
    };
    for bucket in 0..3 * 288_i64 {
        let at = start + bucket * 300_000;
        loud = if rng.one_in(60) { rng.between(1, 8) as i64 } else { loud - 1 };
        let kind = rng.below(3);
        for (host, usual) in [("large.example", 45_u64), ("small.example", 9)] {
            let here = loud > 0 && host == "large.example";
            let quiet = loud > 3 && host == "small.example";
            let n = match kind {
                _ if quiet => rng.below(2),
                0 if here => usual * rng.between(3, 5),
                1 if here => rng.below(3),
                _ => rng.between(usual * 3 / 4, usual * 5 / 4),
            };
            for _ in 0..n {
                let single = rng.below(100) < if here && kind == 2 { 95 } else { 40 };
                let most = [4, 8, 16, 60][rng.below(4) as usize];
                let count = if single { 1 } else { rng.between(2, most) };
                let long = if rng.one_in(400) { 9 * 3_600_000 } else { 400_000 };
                let length_ms = rng.below(long) as i64;
                add(rng, host, at, count, length_ms);
            }
            if rng.one_in(40) {
                let (events, hours) = (rng.between(41, 2_000), rng.between(5, 20) as i64);
                add(rng, host, at, events, 1_000);
                add(rng, host, at, 100, hours * 3_600_000);
            }
        }
    }
    rows
}

#[test]
fn the_rules_in_sql_find_what_the_program_finds() {
    let (mut kinds, mut units, mut quarters) = (BTreeSet::new(), BTreeSet::new(), 0);
    for (seed, (mode, gap_ms)) in [("window", 300_000), ("last-event", 0)].into_iter().enumerate() {
        let world = World::new("analysis-unlike");
        world.create_topic(1);
        world.execute(
            "create table sessionized_events (ip text, host text, session_start timestamptz(3),
                                              session_end timestamptz(3), num_logs bigint)",
        );
        let rows = three_days(&mut Rng::new(seed as u64), gap_ms);
        let mut client = world.client();
        let mut copy = client.copy_in("copy sessionized_events from stdin").expect("a copy");
        let time = |time: EventTime| {
            let time = chrono::DateTime::from_timestamp_millis(time.millis()).expect("a time");
            time.to_rfc3339()
        };
        for (ip, host, span, end) in &rows {
            let (first, end) = (time(span.first), time(*end));
            writeln!(copy, "{ip}\t{host}\t{first}\t{end}\t{}", span.count).expect("written");
        }
        copy.finish().expect("copied");
        world.run_to_end(&["--session-end", mode, "--from", "earliest"]);
        let found: BTreeSet<String> = run(&world, "unlike_the_rest.sql").into_iter().collect();
        let sessions = rows.iter().map(|(ip, host, span, end)| {
            let (ip, host, span, end) = (ip.as_str(), *host, *span, *end);
            Session { ip, host, span, end }
        });
        let newest = rows.iter().map(|(.., end)| *end).max().expect("there are rows");
        let want = batch(sessions, newest, &Thresholds::default());
        let want = want.into_iter().filter(|a| !matches!(a.kind, Kind::Repeat | Kind::Network));
        let want: BTreeSet<String> = want
            .map(|a| {
                kinds.insert(a.kind);
                units.insert(a.unit());
                quarters += usize::from(a.evidence == Evidence::Quarter);
                let at = chrono::DateTime::from_timestamp_millis(a.at.millis()).expect("a time");
                let at = at.format("%Y-%m-%d %H:%M:%S%.3f").to_string();
                let at = at.trim_end_matches('0').trim_end_matches('.').to_owned();
                let at = if at.len() < 19 { format!("{at:0<19}") } else { at };
                let kind = a.kind.name();
                let numbers = format!("{} | {}", a.observed, a.threshold);
                format!("{at}+00 | {kind} | {} | {} | {numbers}", a.host, a.subject)
            })
            .collect();
        let odd: Vec<&String> = found.difference(&want).collect();
        let missing: Vec<&String> = want.difference(&found).collect();
        assert!(odd.is_empty() && missing.is_empty(), "{mode}: {odd:#?} instead of {missing:#?}");
    }
    let all = [Kind::Burst, Kind::Marathon, Kind::Surge, Kind::Fall, Kind::Singles];
    assert_eq!(kinds, BTreeSet::from(all), "each kind must have occurred");
    assert!(units.contains("events") && units.contains("events a minute"), "{units:?}");
    assert!(quarters > 0, "no small host fell");
}
