//! The analysis in `queries/`: each file on rows that the job wrote, against numbers worked out by
//! hand.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use crate::oracle::{Event, event};
use crate::world::{World, eventually};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("queries")
}

/// Runs a file of `queries/` and gives its rows, the columns separated by ` | `.
pub fn run(world: &World, file: &str) -> Vec<String> {
    run_of(world, file, None)
}

/// The same, with `-v job=...`.
fn run_of(world: &World, file: &str, job: Option<&str>) -> Vec<String> {
    let mut psql = std::process::Command::new("psql");
    psql.args(["-qAtX", "-F", " | ", "-v", "ON_ERROR_STOP=1"]).env("PGTZ", "UTC");
    psql.env("PGUSER", &world.user).env("PGPASSWORD", &world.password);
    psql.arg(format!("postgres://{}/{}", world.server, world.database));
    if let Some(job) = job {
        psql.args(["-v", &format!("job={job}")]);
    }
    let output = psql.arg("-f").arg(directory().join(file)).output().expect("psql is installed");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{file}: {}", text(&output.stderr));
    text(&output.stdout).lines().map(str::to_owned).collect()
}

/// Panics unless the columns of `queries/balance.sql` add up to the records, with some in each of
/// the `filled` columns, and the job is balanced.
pub fn balance_adds_up(world: &World, filled: &[&str]) {
    let names = ["records", "closed", "open", "dead", "lost", "forgotten", "difference"];
    let rows = run(world, "balance.sql");
    assert_eq!(rows.len(), 1, "{rows:?}");
    let columns: Vec<&str> = rows[0].split(" | ").collect();
    let number = |name: &str| -> i64 {
        let at = names.iter().position(|known| *known == name).expect("a column");
        columns[1 + at].parse().unwrap_or_else(|why| panic!("{name} in {rows:?}: {why}"))
    };
    let sum: i64 = names[1..].iter().map(|name| number(name)).sum();
    assert_eq!(number("records"), sum, "{rows:?}");
    assert!(filled.iter().all(|name| number(name) > 0), "{filled:?} in {rows:?}");
    assert_eq!((number("difference"), columns[1 + names.len()]), (0, "yes"), "{rows:?}");
}

#[test]
fn each_query_can_be_asked_of_one_job() {
    let world = World::new("queries-jobs");
    let other = format!("{}-other", world.name);
    world.create_topic(1);
    world.send_events(0, &events("10.0.0.9", "a.techcreator.io", &["10:00:00", "10:01:30"]));
    world.send(0, [Some("no event")]);
    world.run_to_end(&[]);
    world.send_events(0, &events("10.0.0.8", "b.techcreator.io", &["12:00:00"]));
    let apart = "Odd Table";
    world.run_to_end(&["--job", &other, "--table", apart, "--session-end", "last-event"]);
    let (mine, others) = (Some(world.name.as_str()), Some(other.as_str()));
    for file in ["balance.sql", "lag.sql", "dead_letters.sql"] {
        let jobs = |rows: Vec<String>| -> Vec<String> {
            rows.iter().map(|row| row.split(" | ").next().unwrap().to_owned()).collect()
        };
        assert_eq!(jobs(run_of(&world, file, None)), [world.name.clone(), other.clone()], "{file}");
        assert_eq!(jobs(run_of(&world, file, mine)), [world.name.as_str()], "{file}");
        assert_eq!(jobs(run_of(&world, file, others)), [other.as_str()], "{file}");
    }
    let longest = |job| -> Vec<String> {
        let rows = run_of(&world, "longest_sessions.sql", job);
        let pick = |row: &String| {
            let row: Vec<&str> = row.split(" | ").collect();
            [row[0], row[4], row[5]].join(" | ")
        };
        rows.iter().map(pick).collect()
    };
    let first = "10.0.0.9 | 00:01:30 | 2";
    assert_eq!(longest(None), [first]);
    assert_eq!(longest(mine), [first]);
    // Of another table, whose session_end is the last event.
    assert_eq!(longest(others), [first, "10.0.0.8 | 00:00:00 | 1"]);
    for (file, mine_has, others_has) in [
        ("average_events_per_session.sql", "all users | 1 | 2 | 2.00", "all users | 2 | 3 | 1.50"),
        (
            "sessions_per_hour.sql",
            "2024-03-05 10:00:00+00 | 1 | 1 | 2",
            "2024-03-05 12:00:00+00 | 1 | 1 | 1",
        ),
    ] {
        assert_eq!(run_of(&world, file, None)[0], mine_has, "{file}");
        assert_eq!(run_of(&world, file, mine)[0], mine_has, "{file}");
        assert_eq!(run_of(&world, file, others)[0], others_has, "{file}");
    }
    for file in ["compare_hosts.sql", "touching_sessions.sql"] {
        assert_eq!(run_of(&world, file, mine), run_of(&world, file, None), "{file}");
        run_of(&world, file, others);
    }
}

/// A time on the fifth of March 2024, in milliseconds since 1970.
fn at(time: &str) -> i64 {
    let time = format!("2024-03-05T{time}Z");
    chrono::DateTime::parse_from_rfc3339(&time).expect("a time").timestamp_millis()
}

fn events(ip: &str, host: &str, times: &[&str]) -> Vec<Event> {
    times.iter().map(|time| event(ip, host, at(time))).collect()
}

/// Ten sessions of nineteen events, and four records that are none.
static DAY: LazyLock<World> = LazyLock::new(|| {
    let world = World::new("queries");
    world.create_topic(1);
    for (ip, host, times) in [
        ("10.0.0.1", "zachwilson.techcreator.io", &["10:00:00", "10:01:00", "10:03:00"][..]),
        ("10.0.0.1", "zachwilson.techcreator.io", &["11:30:00"]),
        (
            "10.0.0.2",
            "zachwilson.techcreator.io",
            &["10:10:00", "10:14:00", "10:18:00", "10:22:00", "10:26:00"],
        ),
        ("10.0.0.2", "dan.techcreator.io", &["10:20:00", "10:20:30"]),
        ("10.0.0.3", "techcreator.io", &["12:00:00"]),
        ("10.0.0.4", "nottechcreator.io", &["10:00:00", "10:00:01"]),
        ("10.0.0.4", "techcreator.io.example.org", &["10:00:00"]),
        ("10.0.0.5", "zachwilson.tech", &["10:59:00", "11:00:00"]),
        ("10.0.0.1", "zachwilson.tech", &["09:00:00", "09:30:00"]),
    ] {
        world.send_events(0, &events(ip, host, times));
    }
    let bad: [Option<&[u8]>; 4] =
        [Some(b"{"), None, Some(br#"{"ip":"1.2.3.4","event_time":1}"#), Some(b"not json \xff\\")];
    world.send(0, bad);
    world.run_to_end(&[]);
    world
});

#[test]
fn a_session_on_tech_creator_has_so_many_events_on_average() {
    assert_eq!(
        run(&DAY, "average_events_per_session.sql"),
        [
            "all users | 5 | 12 | 2.40",
            "10.0.0.2 | 2 | 7 | 3.50",
            "10.0.0.1 | 2 | 4 | 2.00",
            "10.0.0.3 | 1 | 1 | 1.00",
        ]
    );
}

#[test]
fn an_empty_table_has_an_average_too() {
    let world = World::new("queries-empty");
    world.create_topic(1);
    world.run_to_end(&[]);
    assert_eq!(run(&world, "average_events_per_session.sql"), ["all users | 0 | 0 | 0"]);
    assert_eq!(
        run(&world, "compare_hosts.sql"),
        [
            "zachwilson.techcreator.io | 0 | 0 | 0 | 0 | 00:00:00",
            "zachwilson.tech | 0 | 0 | 0 | 0 | 00:00:00",
            "lulu.techcreator.io | 0 | 0 | 0 | 0 | 00:00:00",
        ]
    );
    assert_eq!(run(&world, "longest_sessions.sql"), [""; 0]);
}

#[test]
fn hosts_compare_and_one_without_sessions_shows_with_zeros() {
    assert_eq!(
        run(&DAY, "compare_hosts.sql"),
        [
            // Of 3, 1 and 5 events, and 3, 0 and 16 minutes.
            "zachwilson.techcreator.io | 3 | 2 | 3.00 | 3 | 00:06:20",
            // Of 2, 1 and 1 events, and 60, 0 and 0 seconds.
            "zachwilson.tech | 3 | 2 | 1.33 | 1 | 00:00:20",
            "lulu.techcreator.io | 0 | 0 | 0 | 0 | 00:00:00",
        ]
    );
}

#[test]
fn sessions_count_in_the_hour_in_which_they_began() {
    assert_eq!(
        run(&DAY, "sessions_per_hour.sql"),
        [
            "2024-03-05 12:00:00+00 | 1 | 1 | 1",
            "2024-03-05 11:00:00+00 | 1 | 1 | 1",
            "2024-03-05 10:00:00+00 | 6 | 4 | 15",
            "2024-03-05 09:00:00+00 | 2 | 1 | 2",
        ]
    );
}

#[test]
fn the_longest_sessions_come_first_and_last_to_their_last_event() {
    let rows = run(&DAY, "longest_sessions.sql");
    let day = |time: &str| format!("2024-03-05 {time}+00");
    let want = [
        ("10.0.0.2", "zachwilson.techcreator.io", "10:10:00", "10:26:00", "00:16:00", 5),
        ("10.0.0.1", "zachwilson.techcreator.io", "10:00:00", "10:03:00", "00:03:00", 3),
        ("10.0.0.5", "zachwilson.tech", "10:59:00", "11:00:00", "00:01:00", 2),
        ("10.0.0.2", "dan.techcreator.io", "10:20:00", "10:20:30", "00:00:30", 2),
        ("10.0.0.4", "nottechcreator.io", "10:00:00", "10:00:01", "00:00:01", 2),
        ("10.0.0.1", "zachwilson.tech", "09:00:00", "09:00:00", "00:00:00", 1),
        ("10.0.0.1", "zachwilson.tech", "09:30:00", "09:30:00", "00:00:00", 1),
        ("10.0.0.1", "zachwilson.techcreator.io", "11:30:00", "11:30:00", "00:00:00", 1),
        ("10.0.0.3", "techcreator.io", "12:00:00", "12:00:00", "00:00:00", 1),
        ("10.0.0.4", "techcreator.io.example.org", "10:00:00", "10:00:00", "00:00:00", 1),
    ];
    let want = want.map(|(ip, host, first, last, length, events)| {
        format!("{ip} | {host} | {} | {} | {length} | {events}", day(first), day(last))
    });
    assert_eq!(rows, want);
}

#[test]
fn lengths_are_the_same_when_session_end_is_the_last_event() {
    let world = World::new("queries-last");
    world.create_topic(1);
    world.send_events(0, &events("10.0.0.9", "zachwilson.tech", &["10:00:00", "10:01:30"]));
    world.run_to_end(&["--session-end", "last-event", "--gap", "2m"]);
    let rows = run(&world, "compare_hosts.sql");
    assert_eq!(rows[1], "zachwilson.tech | 1 | 1 | 2.00 | 2 | 00:01:30");
    assert_eq!(
        run(&world, "longest_sessions.sql"),
        ["10.0.0.9 | zachwilson.tech | 2024-03-05 10:00:00+00 | 2024-03-05 10:01:30+00 \
          | 00:01:30 | 2"]
    );
}

#[test]
fn every_record_is_in_the_balance() {
    let rows = run(&DAY, "balance.sql");
    assert_eq!(rows.len(), 1);
    let want = format!("{} | 23 | 19 | 0 | 4 | 0 | 0 | 0 | yes | ", DAY.name);
    assert!(rows[0].starts_with(&want), "{rows:?}");
}

#[test]
fn books_that_do_not_add_up_show() {
    let world = World::new("queries-books");
    world.create_topic(1);
    world.send_events(0, &events("10.0.0.9", "h", &["10:00:00", "10:01:30"]));
    world.run_to_end(&[]);
    world.execute("update sessionizer.epochs set closed = closed - 1");
    let want = format!("{} | 2 | 1 | 0 | 0 | 0 | 0 | 1 | NO | ", world.name);
    let rows = run(&world, "balance.sql");
    assert!(rows[0].starts_with(&want), "{rows:?}");
}

#[test]
fn dead_letters_show_by_reason_with_their_newest_example() {
    let rows: Vec<Vec<String>> = run(&DAY, "dead_letters.sql")
        .iter()
        .map(|row| row.split(" | ").map(str::to_owned).collect())
        .collect();
    let brief: Vec<(&str, &str, &str, &str)> =
        rows.iter().map(|row| (&*row[1], &*row[2], &*row[5], &*row[7])).collect();
    let place = |offset: u32| format!("{}[0] offset {offset}", DAY.name);
    assert_eq!(
        brief,
        [
            ("bad_json", "2", &*place(22), "not json \\377\\\\"),
            ("empty", "1", &*place(20), ""),
            ("no_host", "1", &*place(21), "{\"ip\":\"1.2.3.4\",\"event_time\":1}"),
        ]
    );
    assert!(rows.iter().all(|row| row[0] == DAY.name && !row[6].is_empty()), "{rows:?}");
}

#[test]
fn the_partition_that_holds_the_others_back_is_named() {
    let world = World::new("queries-lag");
    world.create_topic(3);
    world.send_events(0, &events("10.0.0.1", "h", &["12:00:00", "11:59:00"]));
    world.send_events(1, &events("10.0.0.1", "h", &["11:00:00"]));
    world.send(1, [Some("no event")]);
    let job = world.start(&["--epoch", "100ms", "--idle-timeout", "1h"]);
    let read = |records: &str| {
        let sql = "select coalesce(sum(records), 0) from sessionizer.partitions";
        eventually("all is bound", || {
            world.value("select to_regclass('sessionizer.partitions') is not null") == "t"
                && world.value(sql) == records
        });
    };
    let brief = || -> Vec<String> {
        let rows = run(&world, "lag.sql").into_iter().map(|row| {
            let row: Vec<&str> = row.split(" | ").collect();
            [&row[2..8], &row[9..10]].concat().join(" | ")
        });
        rows.collect()
    };
    read("4");
    assert_eq!(
        brief(),
        [
            "0 | active | 2 | 2 | 0 | 2024-03-05 11:59:45+00 | f",
            "1 | active | 2 | 2 | 1 | 2024-03-05 10:59:45+00 | f",
            "2 | active | 0 | 0 | 0 |  | t",
        ]
    );
    world.send_events(2, &events("10.0.0.1", "h", &["13:00:00"]));
    read("5");
    let rows = brief();
    let holds_back: Vec<bool> = rows.iter().map(|row| row.ends_with("| t")).collect();
    assert_eq!(holds_back, [false, true, false], "{rows:?}");
    let row = run(&world, "lag.sql").swap_remove(1);
    let behind = row.split(" | ").nth(8).expect("a column");
    assert_eq!(world.value(&format!("select '{behind}'::interval > '600 days'")), "t", "{row}");
    job.stop();
    world.run_to_end(&[]);
    let rows = brief();
    assert!(rows.iter().all(|row| row.contains("ended") && row.ends_with("| f")), "{rows:?}");
}

#[test]
fn sessions_that_touch_are_found_and_the_job_writes_none() {
    assert_eq!(run(&DAY, "touching_sessions.sql"), [""; 0]);
    for (mode, touching, apart) in
        [("window", "10:05:00", "10:05:00.001"), ("last-event", "10:10:00", "10:10:00.001")]
    {
        let world = World::new("queries-touching");
        world.create_topic(1);
        world.execute(&format!(
            "create table sessionized_events (ip text, host text, session_start timestamptz(3),
                                              session_end timestamptz(3), num_logs bigint);
             insert into sessionized_events values
             ('touching', 'h', '2024-03-05 10:00Z', '2024-03-05 10:05Z', 1),
             ('touching', 'h', '2024-03-05 {touching}Z', '2024-03-05 11:00Z', 2),
             ('apart', 'h', '2024-03-05 10:00Z', '2024-03-05 10:05Z', 1),
             ('apart', 'h', '2024-03-05 {apart}Z', '2024-03-05 11:00Z', 2),
             ('another host', 'h', '2024-03-05 10:00Z', '2024-03-05 10:05Z', 1),
             ('another host', 'i', '2024-03-05 10:00Z', '2024-03-05 10:05Z', 1),
             ('within', 'h', '2024-03-05 10:00Z', '2024-03-05 11:00Z', 1),
             ('within', 'h', '2024-03-05 10:10Z', '2024-03-05 10:20Z', 2),
             ('within', 'h', '2024-03-05 10:40Z', '2024-03-05 10:50Z', 3);"
        ));
        world.run_to_end(&["--session-end", mode, "--from", "earliest"]);
        let rows = run(&world, "touching_sessions.sql");
        let found: Vec<(&str, &str)> = rows
            .iter()
            .map(|row| (&row[..row.find(' ').unwrap()], &row[row.len() - 1..]))
            .collect();
        assert_eq!(found, [("touching", "2"), ("within", "2"), ("within", "3")], "{mode}");
    }
}

#[test]
fn the_last_day_by_host_by_hour_and_its_busiest_visitors() {
    let by_host = run(&DAY, "last_day_by_host.sql");
    assert_eq!(
        by_host[..3],
        [
            " | 10 | 19 | 1231000 | 5 | 8 | 1 | 5 | 0 | 960000",
            "zachwilson.tech | 3 | 4 | 60000 | 2 | 2 | 1 | 2 | 0 | 60000",
            "zachwilson.techcreator.io | 3 | 9 | 1140000 | 1 | 2 | 3 | 5 | 180000 | 960000",
        ]
    );
    let by_hour = run(&DAY, "last_day_by_hour.sql");
    assert_eq!(by_hour[0], "2024-03-05 09:00:00+00 | 2 | 2 | 0 | 2 | 1 | 1 | 0 | 0");
    assert_eq!(by_hour.len(), 4);
    assert!(run(&DAY, "busiest_visitors.sql").is_empty(), "nobody came five times");
}

#[test]
fn every_query_opens_with_its_question_and_has_a_test() {
    let here = concat!(include_str!("queries.rs"), include_str!("analysis.rs"));
    let mut files = 0;
    for entry in std::fs::read_dir(directory()).expect("queries/ is there") {
        let path = entry.expect("readable").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        assert!(name.ends_with(".sql"), "{name} is no query");
        let text = std::fs::read_to_string(&path).expect("readable");
        let first = text.lines().next().unwrap_or("");
        assert!(first.starts_with("-- ") && first.ends_with('?'), "{name} opens with {first:?}");
        let one = format!("`psql -v job=NAME -f queries/{name}`");
        assert!(text.contains(&one), "{name} does not say how to ask one job");
        assert!(text.lines().all(|line| line.len() <= 100), "{name} has long lines");
        let is_run = [format!("(&world, \"{name}\")"), format!("(&DAY, \"{name}\")")]
            .iter()
            .any(|run| here.contains(run));
        assert!(is_run, "{name} is run by no test");
        let of_sessions = text.contains("\\set sessions ");
        assert_eq!(text.contains("\n-- Index: "), of_sessions, "{name}: which index does it use?");
        files += 1;
    }
    assert!(files >= 19, "only {files} queries");
}
