//! `sessionizer redrive`: dead letters that are events now are merged, exactly once, and the others
//! stay as they are.

use std::process::Command;

use crate::kafka::{start, wait_for_records};
use crate::oracle::{Event, GAP_MS, event, sessions};
use crate::world::{Running, World, chrono_now_ms, eventually, json};

/// 2023-11-14T22:13:20Z.
const T: i64 = 1_700_000_000_000;
/// The watermark when the late events come.
const W: i64 = T + 100 * GAP_MS;
const ARGS: [&str; 8] =
    ["--out-of-orderness", "0s", "--idle-timeout", "1h", "--dead-letter-bytes", "300", "-w", "2"];
const HOUR_MS: i64 = 3_600_000;

struct Done {
    code: Option<i32>,
    said: String,
    log: String,
}

fn command(world: &World, args: &[&str]) -> Command {
    let mut command = world.command();
    command.args(args);
    command
}

fn run(world: &World, args: &[&str]) -> Done {
    let output = command(world, args).output().expect("the program was built");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Done { code: output.status.code(), said: text(&output.stdout), log: text(&output.stderr) }
}

fn says(world: &World, args: &[&str]) -> String {
    let done = run(world, args);
    assert_eq!(done.code, Some(0), "{args:?}: {}\n{}", done.said, done.log);
    done.said
}

fn refuses(world: &World, args: &[&str], says: &[&str]) {
    let done = run(world, args);
    assert_eq!(done.code, Some(2), "{args:?}: {}\n{}", done.said, done.log);
    for part in says {
        assert!(done.log.contains(part), "{part:?} is missing in\n{}", done.log);
    }
}

/// The line of a reason: dead letters, records, good ones, records.
fn of_reason(said: &str, reason: &str) -> [u64; 4] {
    let line = said.lines().find(|line| line.trim_start().starts_with(reason));
    let line = line.unwrap_or_else(|| panic!("{reason} is missing in\n{said}"));
    let numbers = line.split_whitespace().skip(1);
    let numbers: Vec<u64> = numbers.map(|n| n.parse().expect("a count")).collect();
    numbers.try_into().expect("four counts")
}

fn audit(world: &World) {
    let said = says(world, &["audit"]);
    assert!(said.contains("The table equals the batch answer"), "{said}");
    assert_eq!(world.imbalance(), "0");
}

fn books(world: &World) -> Vec<Vec<String>> {
    world.query("select records, closed, open, dead, difference from sessionizer.balance")
}

#[test]
fn late_and_future_events_are_merged_once_and_the_others_stay() {
    let world = World::new("redrive");
    world.create_topic(1);
    let on_time = [event("a", "h", T), event("open", "h", W - 100_000), event("mover", "h", W)];
    let job = start(&world, &[&ARGS[..], &["--late", "drop"]].concat());
    world.send_events(0, &on_time);
    wait_for_records(&world, 3);
    eventually("the first session is closed", || world.rows().len() == 1);
    let late = [
        event("a", "h", T + GAP_MS), // Joins a row, just.
        event("b", "h", T),
        event("b", "h", T + GAP_MS),
        event("open", "h", W - 100_000 - 2 * GAP_MS),
        event("open", "h", W - 100_000 - GAP_MS - 1), // It touches the one before, and no open one.
    ];
    world.send_events(0, &late);
    let cut = event("a", "h", T - 1);
    let long = json(&cut).replace("\"url\":\"/\"", &format!("\"url\":\"{}\"", "x".repeat(1_000)));
    assert!(long.len() > 1_000);
    let now = chrono_now_ms();
    let (soon, never) = (event("a", "h", now + HOUR_MS), event("a", "h", now + 30 * HOUR_MS));
    world.send(0, [Some(long), Some("no event".to_owned()), Some(json(&soon)), Some(json(&never))]);
    wait_for_records(&world, 12);
    // If it had come earlier, the last two would not have been too late.
    let bridge = event("open", "h", W - 101_000);
    world.send_events(0, std::slice::from_ref(&bridge));
    wait_for_records(&world, 13);
    let all = ["redrive", "--reason", "late,future,bad_json", "--max-future", "2h"];
    refuses(&world, &all, &["is running", "Stop it with SIGTERM"]);
    job.stop();
    let letters = |late: u64, future: u64| {
        let all = [("bad_json", 1), ("future", future), ("late", late)];
        let there = all.into_iter().filter(|(_, n)| *n > 0);
        there.map(|(reason, n)| (reason.to_owned(), n)).collect::<Vec<_>>()
    };
    assert_eq!(world.dead_letters(), letters(6, 2));
    audit(&world);
    let before = (books(&world), world.rows());

    // Trials change nothing.
    let said = says(&world, &["redrive", "--reason", "late", "--late", "drop", "--dry-run"]);
    assert_eq!(of_reason(&said, "late"), [6, 6, 2, 2], "{said}");
    assert!(said.contains("4 late: its session has closed, and --late is drop"), "{said}");
    let said = says(&world, &[&all[..], &["--dry-run"]].concat());
    assert_eq!(of_reason(&said, "late"), [6; 4], "{said}");
    assert_eq!(of_reason(&said, "future"), [2, 2, 1, 1], "{said}");
    assert_eq!(of_reason(&said, "bad_json"), [1, 1, 0, 0], "{said}");
    for why in ["1 bad_json: still bad_json", "1 future: later than the clock"] {
        assert!(said.contains(why), "{why:?} is missing in\n{said}");
    }
    assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
    refuses(&world, &all, &["nothing was changed", "--yes"]);
    refuses(&world, &["redrive", "--reason", "late,old"], &["--reason", "\"old\"", "row_refused"]);
    assert_eq!((books(&world), world.rows()), before);

    // Killed in the middle of it: nothing has happened.
    let mut client = world.client();
    let mut held = client.transaction().expect("begun");
    held.batch_execute("lock table sessionizer.dead_letters in share mode").expect("locked");
    let job = Running::start(command(&world, &[&all[..], &["--yes"]].concat()));
    let waits = "select count(*) from pg_stat_activity
                 where application_name = 'sessionizer redrive' and wait_event_type = 'Lock'
                       and datname = current_database()";
    eventually("it waits", || world.value(waits) == "1");
    job.kill();
    held.rollback().expect("it answers");
    eventually("its connection is gone", || {
        let there = "select count(*) from pg_stat_activity
                     where application_name = 'sessionizer redrive'
                           and datname = current_database()";
        world.value(there) == "0"
    });
    assert_eq!((books(&world), world.rows()), before);

    let said = says(&world, &[&all[..], &["--yes"]].concat());
    assert_eq!(of_reason(&said, "late"), [6; 4], "{said}");
    let now_dead = world.dead_letters();
    assert_eq!(now_dead, letters(0, 1));
    audit(&world);
    let after = books(&world);
    // Two of `a` and two of `b` are in rows; three of `open`, `mover`, and one to come are open.
    assert_eq!((&*after[0][0], &*after[0][3]), ("13", "2"), "{after:?}");
    // Once more: nothing counts twice.
    let said = says(&world, &[&all[..], &["--yes"]].concat());
    assert!(said.contains("None of them is an event now; nothing was changed."), "{said}");
    assert_eq!(books(&world), after);

    // The job goes on with all of them.
    let job = start(&world, &ARGS);
    let more =
        [event("open", "h", W - 50_000), event("b", "h", T + 2 * GAP_MS), event("c", "h", T)];
    world.send_events(0, &more);
    wait_for_records(&world, 16);
    audit(&world);
    job.stop();
    world.run_to_end(&ARGS);
    let mut counted: Vec<Event> = on_time.iter().chain(&late).chain(&more).cloned().collect();
    counted.extend([cut, soon, bridge]);
    assert_eq!(world.rows(), sessions(&counted));
    audit(&world);

    // After a drain everything is closed, and what comes back closes at once.
    let never = ["redrive", "--reason", "future", "--max-future", "40h", "--yes"];
    let said = says(&world, &never);
    assert!(said.contains("Merged: 1 event into rows, 0 into open sessions."), "{said}");
    counted.push(event("a", "h", now + 30 * HOUR_MS));
    assert_eq!(world.rows(), sessions(&counted));
    audit(&world);
}

#[test]
fn refused_rows_are_written_once_the_table_takes_them() {
    let world = World::new("redrive-refused");
    world.execute(
        "create table sessionized_events (ip text, host varchar(4), session_start timestamptz(3),
             session_end timestamptz(3), num_logs bigint check (num_logs <> 7),
             primary key (ip, host, session_start))",
    );
    world.create_topic(1);
    let job = start(&world, &ARGS);
    let mut first = vec![
        event("a", "h", T),
        event("a", "long host", T),
        event("a", "long host", T + 1_000),
        event("mover", "h", W),
    ];
    first.extend((0..7).map(|second| event("seven", "h", T + second * 1_000)));
    world.send_events(0, &first);
    wait_for_records(&world, 11);
    // Late, and refused on its own.
    let late = event("a", "long host", T + GAP_MS);
    world.send_events(0, std::slice::from_ref(&late));
    world.send(0, [Some("no event")]);
    wait_for_records(&world, 13);
    job.stop();
    assert_eq!(world.dead_letters(), [("bad_json".to_owned(), 1), ("row_refused".to_owned(), 3)]);
    let redrive = ["redrive", "--reason", "row_refused", "--yes"];
    let said = says(&world, &redrive);
    assert_eq!(of_reason(&said, "row_refused"), [3, 10, 0, 0], "{said}");
    assert!(said.contains("(22001)") && said.contains("(23514)"), "{said}");

    world.execute("alter table sessionized_events alter column host type text");
    // Rows that were accepted are not too late, whatever --late says.
    let said = says(&world, &[&redrive[..], &["--late", "drop"]].concat());
    assert_eq!(of_reason(&said, "row_refused"), [3, 10, 2, 3], "{said}");
    assert_eq!(world.dead_letters(), [("bad_json".to_owned(), 1), ("row_refused".to_owned(), 1)]);
    let closed = |event: &&Event| event.ip == "a";
    let closed: Vec<Event> = first.iter().filter(closed).chain([&late]).cloned().collect();
    assert_eq!(world.rows(), sessions(&closed));
    audit(&world);

    // A program that decodes more: here, a payload that was not an event when it was read.
    let payload = json(&event("old", "h", W + 1_000));
    world.execute(&format!(
        "update sessionizer.dead_letters set payload = convert_to('{payload}', 'UTF8'),
                payload_bytes = {} where reason = 'bad_json'",
        payload.len()
    ));
    let said = says(&world, &["redrive", "--reason", "bad_json", "--yes"]);
    assert!(said.contains("Merged: 0 events into rows, 1 into open sessions."), "{said}");
    assert_eq!(world.dead_letters(), [("row_refused".to_owned(), 1)]);
    assert_eq!(world.imbalance(), "0");
    world.run_to_end(&ARGS);
    let mut counted = closed;
    counted.extend([event("mover", "h", W), event("old", "h", W + 1_000)]);
    assert_eq!(world.rows(), sessions(&counted));
}

#[test]
fn late_letters_are_merged_once_in_each_mode_and_between_runs_of_the_job() {
    let world = World::new("redrive-modes");
    world.create_topic(1);
    let first = [event("a", "h", T), event("open", "h", W - 100_000), event("mover", "h", W)];
    let dropping = [&ARGS[..], &["--late", "drop"]].concat();
    let job = start(&world, &dropping);
    world.send_events(0, &first);
    wait_for_records(&world, 3);
    eventually("the first session is closed", || world.rows().len() == 1);
    // Two join the row of `a`, one begins a session of its own, and one is too late only as long as
    // the event that joins it to the open session has not come.
    let late = [
        event("a", "h", T + GAP_MS),
        event("a", "h", T + 3 * GAP_MS),
        event("b", "h", T),
        event("open", "h", W - 100_000 - GAP_MS - 1),
    ];
    world.send_events(0, &late);
    wait_for_records(&world, 7);
    let bridge = event("open", "h", W - 100_000 - GAP_MS / 2);
    world.send_events(0, std::slice::from_ref(&bridge));
    wait_for_records(&world, 8);
    let redrive = |mode| ["redrive", "--reason", "late", "--yes", "--late", mode];
    for mode in ["drop", "merge"] {
        refuses(&world, &redrive(mode), &["is running", "Stop it with SIGTERM"]);
    }
    job.stop();
    assert_eq!(world.dead_letters(), [("late".to_owned(), 4)]);

    // A job that drops late events takes back only what is not too late any more.
    let said = says(&world, &redrive("drop"));
    assert_eq!(of_reason(&said, "late"), [4, 4, 1, 1], "{said}");
    assert!(said.contains("Merged: 0 events into rows, 1 into open sessions."), "{said}");
    audit(&world);
    let before = (books(&world), world.rows());
    let said = says(&world, &redrive("drop"));
    assert!(said.contains("None of them is an event now; nothing was changed."), "{said}");
    assert_eq!((books(&world), world.rows()), before);

    // The job goes on, and a late event corrects the row that a dead letter will join.
    let job = start(&world, &ARGS);
    let between = event("a", "h", T + 2 * GAP_MS);
    world.send_events(0, std::slice::from_ref(&between));
    wait_for_records(&world, 9);
    refuses(&world, &redrive("merge"), &["is running"]);
    job.stop();
    let said = says(&world, &redrive("merge"));
    assert_eq!(of_reason(&said, "late"), [3; 4], "{said}");
    assert!(said.contains("Merged: 3 events into rows, 0 into open sessions."), "{said}");
    assert_eq!(world.dead_letters(), []);
    audit(&world);
    let before = (books(&world), world.rows());
    for mode in ["merge", "drop"] {
        let said = says(&world, &redrive(mode));
        assert!(said.contains("None of them is an event now; nothing was changed."), "{said}");
        assert_eq!((books(&world), world.rows()), before);
    }

    // What comes then corrects the rows in which they are, and is dropped by a job that drops.
    world.run_to_end(&ARGS);
    let job = start(&world, &ARGS);
    let correction = event("b", "h", T + GAP_MS);
    world.send_events(0, std::slice::from_ref(&correction));
    wait_for_records(&world, 10);
    job.stop();
    let job = start(&world, &dropping);
    let dropped = event("b", "h", T + 2 * GAP_MS);
    world.send_events(0, std::slice::from_ref(&dropped));
    wait_for_records(&world, 11);
    job.stop();
    let mut counted: Vec<Event> = first.iter().chain(&late).cloned().collect();
    counted.extend([bridge, between, correction]);
    assert_eq!(world.rows(), sessions(&counted));
    let said = says(&world, &redrive("merge"));
    assert_eq!(of_reason(&said, "late"), [1; 4], "{said}");
    counted.push(dropped);
    assert_eq!(world.rows(), sessions(&counted));
    audit(&world);
}
