//! `sessionizer compare`: every way in which the table of a Flink job may differ from ours has its
//! class, and a difference that has no reason is unexplained.

use serde_json::Value;

use crate::oracle::{Event, event};
use crate::world::{World, finish};

const HOST: &str = "shop.example";
const NOON_MS: i64 = 1_780_315_200_000; // 2026-06-01T12:00:00Z

/// An event of a visitor, `second` seconds after noon.
fn at(ip: &str, second: i64) -> Event {
    event(ip, HOST, NOON_MS + 1_000 * second)
}

/// A job that has read a topic in which events come late, and a table as Flink would have left it
/// if it had lost nothing.
fn beside_flink(test: &str) -> World {
    let world = World::new(test);
    world.create_topic(1);
    let on_time = [
        at("same", 0),
        at("late", 0),
        at("exact", 0),
        at("joined", 0),
        at("again", 0),
        at("again", 60),
        at("same", 60),
        at("lost", 70),
        at("lost", 80),
        at("exact", 300),
        at("joined", 480),
        // The watermark passes them.
        at("clock", 1_200),
        // They are late, by one second and by far.
        at("late", 30),
        at("joined", 270),
        at("late-alone", 884),
        at("on-time", 886),
        at("clock", 3_600),
    ];
    world.send_events(0, &on_time);
    world.run_to_end(&[]);
    world.execute(
        "create table flink (ip text, host text, session_start timestamp(3),
                             session_end timestamp(3), num_logs bigint);
         insert into flink select ip, host, session_start at time zone 'UTC',
                                  session_end at time zone 'UTC', num_logs
                           from sessionized_events;
         update flink set num_logs = 1, session_end = session_start + interval '5 min'
         where ip in ('late', 'exact', 'joined');
         delete from flink where ip = 'late-alone';
         insert into flink values
             ('exact', 'shop.example', '2026-06-01 12:05', '2026-06-01 12:10', 1),
             ('joined', 'shop.example', '2026-06-01 12:04:30', '2026-06-01 12:13', 2),
             ('again', 'shop.example', '2026-06-01 12:01', '2026-06-01 12:06', 1)",
    );
    world
}

/// Runs the comparison: exit code, output, log.
fn compare(world: &World, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = world.command();
    let output = command.args(["compare", "--against", "flink"]).args(args).output();
    let output = output.expect("the program was built");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The classes that have sessions, and how many.
fn classes(json: &str) -> Vec<(String, u64)> {
    let report: Value = serde_json::from_str(json).expect("one JSON object");
    let of = |class: &Value| {
        let sessions = class["sessions"].as_u64().expect("a count");
        (class["class"].as_str().expect("a name").to_owned(), sessions)
    };
    let classes = report["classes"].as_array().expect("classes").iter().map(of);
    classes.filter(|(_, sessions)| *sessions > 0).collect()
}

fn named(classes: &[(&str, u64)]) -> Vec<(String, u64)> {
    classes.iter().map(|(name, sessions)| ((*name).to_owned(), *sessions)).collect()
}

#[test]
fn what_flink_does_differently_is_explained_and_what_it_lost_is_not() {
    let world = beside_flink("compare");
    let before = world.query("select * from flink order by 1, 3");
    let (code, json, log) = compare(&world, &["--json"]);
    assert_eq!(code, Some(0), "{json}\n{log}");
    let explained =
        [("same", 5), ("late", 2), ("exact gap", 1), ("overlapping", 1), ("counted again", 1)];
    assert_eq!(classes(&json), named(&explained));

    let (code, text, log) = compare(&world, &[]);
    assert_eq!(code, Some(0), "{text}\n{log}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    let verdict = "5 of 10 sessions are the same in both tables, 0 cannot be compared, and \
                   nothing is unexplained.";
    assert_eq!(text.lines().last(), Some(verdict), "{text}");
    assert!(text.contains("The other table lacks 2 events that came late."), "{text}");

    // An event that was not late is missing.
    world.execute("update flink set num_logs = 1 where ip = 'lost'");
    let (code, json, log) = compare(&world, &["--json"]);
    assert_eq!(code, Some(1), "{json}\n{log}");
    let one_is_lost = [
        ("same", 4),
        ("late", 2),
        ("exact gap", 1),
        ("overlapping", 1),
        ("counted again", 1),
        ("unexplained", 1),
    ];
    assert_eq!(classes(&json), named(&one_is_lost));
    assert!(log.contains("1 difference unexplained. Does `sessionizer audit` find"), "{log}");
    // Without the topic it looks like a late one.
    let (code, json, log) = compare(&world, &["--json", "--no-topic"]);
    assert_eq!((code, classes(&json)[1].1), (Some(0), 3), "{json}\n{log}");
    // With a shorter delay of the watermark more may have been late, with a longer one fewer.
    world.execute("delete from flink where ip = 'on-time'");
    let unexplained = |delay: &str| {
        let (_, json, _) = compare(&world, &["--json", "--out-of-orderness", delay]);
        let report: Value = serde_json::from_str(&json).expect("one JSON object");
        report["unexplained"].as_u64().expect("a count")
    };
    assert_eq!([unexplained("14s"), unexplained("15s"), unexplained("17s")], [1, 2, 3]);
    let after = world.query("select * from flink order by 1, 3");
    assert_eq!(before.len(), after.len() + 1, "the comparison only reads");
}

#[test]
fn what_the_job_has_forgotten_is_no_difference_of_the_other_program() {
    let world = beside_flink("compare-forgotten");
    let mut forget = world.command();
    forget.args(["forget", "--ip", "again", "--yes"]);
    let (status, log) = finish(forget);
    assert!(status.success(), "{log}");
    let (code, json, log) = compare(&world, &["--json"]);
    assert_eq!(code, Some(0), "{json}\n{log}");
    let found = [("same", 5), ("late", 2), ("exact gap", 1), ("overlapping", 1), ("forgotten", 1)];
    assert_eq!(classes(&json), named(&found));
}

#[test]
fn what_the_job_has_put_into_dead_letters_is_no_difference_of_the_other_program() {
    let world = World::new("compare-dead");
    world.create_topic(1);
    let long = "h".repeat(2_700);
    let on_time =
        [at("dropped", 0), at("late-alone", 0), event("long", &long, NOON_MS), at("clock", 3_600)];
    let late = [at("dropped", 60), at("late-alone", 900), at("clock", 7_200)];
    for events in [&on_time[..], &late] {
        world.send_events(0, events);
        world.run_to_end(&["--late", "drop"]);
    }
    world.execute(&format!(
        "create table flink as select * from sessionized_events;
         update flink set num_logs = 2, session_end = session_end + interval '1 min'
         where ip = 'dropped';
         insert into flink values
             ('late-alone', '{HOST}', '2026-06-01 12:15Z', '2026-06-01 12:20Z', 1),
             ('long', '{long}', '2026-06-01 12:00Z', '2026-06-01 12:05Z', 1)",
    ));
    let (code, json, log) = compare(&world, &["--json"]);
    assert_eq!(code, Some(0), "{json}\n{log}");
    assert_eq!(classes(&json), named(&[("same", 3), ("dead letters", 3)]));
    // One more than there are dead letters.
    world.execute("update flink set num_logs = 3 where ip = 'dropped'");
    let (code, json, log) = compare(&world, &["--json"]);
    assert_eq!(code, Some(1), "{json}\n{log}");
    let found = [("same", 3), ("dead letters", 2), ("unexplained", 1)];
    assert_eq!(classes(&json), named(&found));
}

#[test]
fn what_one_table_cannot_have_yet_or_any_more_is_not_compared() {
    let world = beside_flink("compare-edges");
    // Flink began later, and has not closed the last session.
    world.execute(
        "delete from flink where ip in ('same', 'late', 'exact', 'joined', 'again', 'lost')
             or ip = 'clock' and session_start > '2026-06-01 12:30'",
    );
    let (code, json, log) = compare(&world, &["--json"]);
    assert_eq!(code, Some(0), "{json}\n{log}");
    let edges = [("same", 2), ("before the beginning", 7), ("not closed yet", 1)];
    assert_eq!(classes(&json), named(&edges));
    // Beyond the period that both have, the missing sessions are unexplained.
    let (code, json, _) = compare(&world, &["--json", "--since", "2026-06-01T12:00:00Z"]);
    assert_eq!(code, Some(1), "{json}");
}

#[test]
fn what_cannot_be_compared_is_named() {
    let world = beside_flink("compare-refused");
    let refused = |args: &[&str], code: i32, why: &str| {
        let output = world.command().arg("compare").args(args).output().expect("it was built");
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{log}");
        assert!(log.contains(why), "{why:?} is not said:\n{log}");
    };
    refused(&[], 2, "--against  is not set: the table of the other program");
    refused(&["--against", "nowhere"], 2, "there is no table nowhere in this database");
    refused(&["--against", "sessionized_events"], 2, "is the table of the job");
    refused(&["--against", "flink", "--since", "noon"], 2, "is \"noon\": it must be a time");
    world.execute("create table empty (like flink); create table narrow (ip text)");
    refused(&["--against", "empty"], 1, "the table empty has no rows yet");
    refused(&["--against", "narrow"], 2, "the columns of sessions (ip, host, session_start,");
    refused(&["--against", "narrow"], 2, "num_logs): column \"host\" does not exist");
    // It is said before the topic is read: the broker is not even asked.
    let mut away = world.command();
    away.args(["compare", "--against", "narrow"]).env("KAFKA_URL", "127.0.0.1:1");
    let (status, log) = finish(away);
    assert!(status.code() == Some(2) && log.contains("\"host\" does not exist"), "{log}");
    world.execute(
        "create table odd as select host, 1 as ip, now() as session_start, true as
                   session_end, 1 as num_logs from flink",
    );
    refused(&["--against", "odd"], 2, "num_logs): cannot cast type boolean to timestamp with");
    world.execute(
        "create table texts as select ip, host, session_start::text, session_end::text,
                   num_logs::text from flink;
         insert into texts values ('192.0.2.7', 'h', 'noon', '2026-01-01', '1')",
    );
    let value = "--against: the table texts holds a value that is none of a session: invalid input \
                 syntax for type timestamp with time zone: \"noon\"";
    refused(&["--against", "texts"], 2, value);
    let nothing = ["--against", "flink", "--since", "2100-01-01T00:00:00Z"];
    refused(&nothing, 1, "have no time in common to compare: it would begin at 2100-01-01T00:00");
}
