//! `sessionizer forget`: nothing of a visitor is left in the database, and everything that counts
//! records still agrees: the balance, the audit, and the table with the batch answer over the
//! events that remain.

use std::collections::BTreeSet;
use std::process::Command;

use crate::kafka::{PAST_MS, start, wait_for_records};
use crate::oracle::{Event, GAP_MS, Row, event, sessions};
use crate::queries::balance_adds_up;
use crate::world::{World, chrono_now_ms, eventually};

/// The visitor that is forgotten, and others whose addresses look alike.
const GONE: &str = "192.0.2.7";
const OTHERS: [&str; 3] = ["192.0.2.70", "192.0.2.8", "1.192.0.2.7"];
/// Where the watermark stands once it has moved.
const LATER_MS: i64 = PAST_MS + 100 * GAP_MS;

struct Done {
    code: Option<i32>,
    said: String,
    log: String,
}

fn run(world: &World, args: &[&str]) -> Done {
    let output = world.command().args(args).output().expect("the program was built");
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
    assert_eq!(done.code, Some(2), "{}\n{}", done.said, done.log);
    for part in says {
        assert!(done.log.contains(part), "{part:?} is missing in\n{}", done.log);
    }
}

fn forgets(world: &World, args: &[&str]) -> String {
    says(world, &[&["forget", "--ip", GONE, "--yes"], args].concat())
}

/// The line of a table that begins with `what`, as (removed, events).
fn counted(said: &str, what: &str) -> (u64, u64) {
    let line = said.lines().find(|line| line.trim_start().starts_with(what));
    let line = line.unwrap_or_else(|| panic!("{what:?} is missing in\n{said}"));
    let numbers: Vec<u64> =
        line.split_whitespace().filter_map(|word| word.replace(',', "").parse().ok()).collect();
    (numbers[0], numbers.get(1).copied().unwrap_or(0))
}

/// Everything in the database as text, with bytea decoded, and the open sessions.
fn everything(world: &World) -> String {
    let (host, port) = world.server.rsplit_once(':').expect("host:port");
    let mut dump = Command::new("pg_dump");
    dump.args(["--inserts", "-h", host, "-p", port, "-U", &world.user, &world.database]);
    let output = dump.env("PGPASSWORD", &world.password).output().expect("pg_dump runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut text = String::from_utf8(output.stdout).expect("UTF-8");
    let payloads = "select encode(payload, 'escape') from sessionizer.dead_letters
                    where payload is not null";
    text.extend(world.query(payloads).into_iter().map(|row| row[0].clone()));
    text.push_str(&says(world, &["open", "--json", "--limit", "1000"]));
    // The planner keeps frequent values.
    let known = "select coalesce(string_agg(v::text, ' '), '') from pg_stats s
                 cross join lateral (values (s.most_common_vals::text),
                                            (s.histogram_bounds::text)) all_of(v)
                 where s.tablename in ('sessionized_events', 'dead_letters', 'anomalies')";
    text + &world.value(known)
}

/// Whether the text has the address as a whole: others contain it.
fn mentions(text: &str) -> bool {
    let mut text = text.to_owned();
    for other in OTHERS {
        text = text.replace(other, "");
    }
    text.contains(GONE)
}

fn audit(world: &World) {
    let said = says(world, &["audit"]);
    assert!(said.contains("The table equals the batch answer"), "{said}");
    assert_eq!(world.imbalance(), "0");
}

fn all(sent: &[Event], keep: impl Fn(&Event) -> bool) -> BTreeSet<Row> {
    sessions(&sent.iter().filter(|event| keep(event)).cloned().collect::<Vec<_>>())
}

/// Visits of everybody: closed and open sessions, on two hosts.
fn visits(from_ms: i64) -> Vec<Event> {
    let mut events = Vec::new();
    for (at, ip) in [GONE].iter().chain(&OTHERS).enumerate() {
        for host in ["shop", "www"] {
            for step in 0..3 {
                events.push(event(ip, host, from_ms + at as i64 * 1_000 + step * 200_000));
            }
        }
    }
    events
}

#[test]
fn nothing_of_a_visitor_is_left_and_everything_still_agrees() {
    let world = World::new("forget");
    // A narrow host: rows with a longer one are refused.
    world.execute(
        "create table sessionized_events (ip text, host varchar(8), session_start timestamptz(3),
             session_end timestamptz(3), num_logs bigint, primary key (ip, host, session_start))",
    );
    world.create_topic(2);
    let args = ["--out-of-orderness", "0s", "--idle-timeout", "1h", "-w", "2"];
    let job = start(&world, &args);
    let mut sent = visits(PAST_MS);
    let refused =
        [event(GONE, "much-too-long", PAST_MS), event("192.0.2.8", "much-too-long", PAST_MS)];
    world.send_events(0, sent.iter().chain(&refused));
    let newest = [visits(LATER_MS), vec![event("mover", "h", LATER_MS + 500_000)]].concat();
    world.send_events(0, &newest);
    world.send_events(1, &newest[newest.len() - 1..]);
    sent.extend(newest.iter().cloned());
    sent.push(newest[newest.len() - 1].clone());
    let read = sent.len() + refused.len();
    wait_for_records(&world, read);
    // Late, and merged with a row.
    let merged = event(GONE, "shop", PAST_MS + 500_000);
    let now = chrono_now_ms();
    let future =
        [event(GONE, "www", now + 86_400_000), event("192.0.2.8", "www", now + 86_400_000)];
    world.send_events(1, std::slice::from_ref(&merged));
    sent.push(merged);
    world.send_events(1, &future);
    let bad = [
        format!("{{\"ip\":\"{GONE}\",\"event_time\":1}}"),
        format!("plain text of {GONE}:8080 in a record"),
        format!("{{\"ip\":\"{}\",\"event_time\":2}}", OTHERS[0]),
        format!("\"{GONE}\""),
    ];
    world.send(1, bad.iter().map(|payload| Some(payload.clone())));
    let long = "x".repeat(5_000); // The address is in the part that is kept.
    world.send(0, [Some(format!("{{\"ip\":\"{GONE}\",\"host\":\"{long}\",\"event_time\":1}}"))]);
    wait_for_records(&world, read + 8);
    job.stop();
    // By default, late events would be merged: drop two of them.
    let job = start(&world, &[&args[..], &["--late", "drop"]].concat());
    let dropped =
        [event(GONE, "www", PAST_MS + 3_000_000), event("192.0.2.8", "www", PAST_MS + 3_000_000)];
    world.send_events(0, &dropped);
    wait_for_records(&world, read + 10);
    job.stop();
    world.execute(&format!(
        "insert into sessionizer.anomalies (job, kind, host, subject, at, observed, expected,
             threshold, unit, reason, details, state, raised_epoch)
         select '{}', 'burst', 'shop', ip, now(), 1, 1, 1, 'events', '1 event', '{{}}', 'raised', 1
         from unnest(array['{GONE}', '192.0.2.8', '192.0.2.0/24']) ip; analyze",
        world.name
    ));
    audit(&world);
    assert!(mentions(&everything(&world)), "the test looks in the right places");
    let before =
        (world.rows(), world.dead_letters(), world.query("select * from sessionizer.balance"));

    // A trial changes nothing, nor does a question that nobody answers.
    let trial = says(&world, &["forget", "--ip", GONE, "--dry-run"]);
    refuses(&world, &["forget", "--ip", GONE], &["nothing was removed", "--yes"]);
    refuses(&world, &["forget", "--ip", "", "--yes"], &["--ip", "is empty"]);
    let after =
        (world.rows(), world.dead_letters(), world.query("select * from sessionizer.balance"));
    assert_eq!(after, before);

    let said = forgets(&world, &[]);
    for said in [&trial, &said] {
        assert_eq!(counted(said, "rows of public.sessionized_events"), (2, 7), "{said}");
        assert_eq!(counted(said, "open sessions"), (2, 6), "{said}");
        // In the future, too late, and refused.
        assert_eq!(counted(said, "dead letters"), (3, 3), "{said}");
        assert_eq!(counted(said, "payloads of others"), (4, 0), "{said}");
        assert_eq!(counted(said, "anomalies"), (1, 0), "{said}");
        assert!(said.lines().all(|line| line.chars().count() <= 90), "{said}");
    }
    let found = everything(&world);
    assert!(!mentions(&found), "{}", found.lines().filter(|line| mentions(line)).count());
    let books = "select forgotten, difference from sessionizer.balance";
    assert_eq!(world.query(books), [["16", "0"]]);
    balance_adds_up(&world, &["closed", "open", "dead", "forgotten"]);
    audit(&world);

    // Forgotten once more, and somebody who was never there.
    let nothing = forgets(&world, &[]);
    assert!(nothing.contains(&format!("has stored nothing about {GONE} in")), "{nothing}");
    let nothing = says(&world, &["forget", "--ip", "nobody", "--yes"]);
    assert!(nothing.contains("nothing about nobody"), "{nothing}");
    assert_eq!(world.query(books), [["16", "0"]]);

    // The job goes on, and events that come from now on count.
    let job = start(&world, &args);
    let again = [
        event(GONE, "shop", PAST_MS + 600_000),
        event("192.0.2.8", "shop", PAST_MS + 600_000),
        event(GONE, "shop", LATER_MS + 400_001),
        event("192.0.2.70", "www", LATER_MS + 450_000),
    ];
    world.send_events(0, &again);
    wait_for_records(&world, read + 14);
    audit(&world);
    job.stop();
    world.run_to_end(&[]);
    let mut remain: Vec<Event> = sent.into_iter().filter(|event| event.ip != GONE).collect();
    remain.extend(again);
    assert_eq!(world.rows(), all(&remain, |_| true));
    audit(&world);

    // One host of another visitor.
    let said = says(&world, &["forget", "--ip", "192.0.2.8", "--host", "shop", "--yes"]);
    assert_eq!(counted(&said, "rows of"), (2, 7), "{said}");
    assert_eq!(counted(&said, "dead letters"), (0, 0), "{said}");
    let is_left = |event: &Event| (&*event.ip, &*event.host) != ("192.0.2.8", "shop");
    assert_eq!(world.rows(), all(&remain, is_left));
    assert_eq!(world.value("select count(*) from sessionizer.anomalies"), "1");
    audit(&world);
}

#[test]
fn rows_from_before_the_job_are_removed_and_were_never_counted() {
    let world = World::new("forget-before");
    world.execute(&format!(
        "create table sessionized_events (ip varchar, host varchar, session_start timestamp(3),
                                          session_end timestamp(3), num_logs bigint);
         insert into sessionized_events values
             ('{GONE}', 'shop', '2020-01-01', '2020-01-01 00:05', 4),
             ('{GONE}', 'shop', '2023-11-14 22:10', '2023-11-14 22:15', 5),
             ('192.0.2.8', 'shop', '2020-01-01', '2020-01-01 00:05', 6)"
    ));
    world.create_topic(1);
    let sent = visits(PAST_MS);
    world.send_events(0, &sent);
    world.run_to_end(&["--from", "earliest", "--accept-overlap"]);
    audit(&world);
    let merged = format!("select max(num_logs) from sessionized_events where ip = '{GONE}'");
    assert_eq!(world.value(&merged), "8", "three events joined a row from before");
    let said = forgets(&world, &[]);
    // 4 alone, 5 with 3 of the job, and 3 on the other host.
    assert_eq!(counted(&said, "rows of"), (3, 15), "{said}");
    assert!(said.contains("still count as closed"), "{said}");
    let left = "select count(*), sum(num_logs) from sessionized_events";
    assert_eq!(world.query(left), [["7".to_owned(), (6 + 18).to_string()]]);
    audit(&world);
    // With everybody gone the table is empty, and the next start accepts that.
    for ip in OTHERS {
        says(&world, &["forget", "--ip", ip, "--yes"]);
    }
    assert_eq!(world.rows().len(), 0);
    let again = [event(GONE, "shop", PAST_MS)];
    world.send_events(0, &again);
    world.run_to_end(&[]);
    assert_eq!(world.rows(), sessions(&again));
    audit(&world);
}

#[test]
fn a_job_that_runs_or_was_killed_is_left_alone() {
    let world = World::new("forget-running");
    world.create_topic(1);
    let sent = visits(PAST_MS);
    let forget = ["forget", "--ip", GONE, "--yes"];
    refuses(&world, &forget, &["there is no job", "there are no jobs yet"]);
    let job = start(&world, &["--snapshot-interval", "1h"]);
    world.send_events(0, &sent);
    wait_for_records(&world, sent.len());
    refuses(&world, &forget, &["is running", "Stop it with SIGTERM"]);
    job.kill();
    eventually("its connections are gone", || {
        let mine = "select count(*) from pg_stat_activity
                    where datname = current_database() and application_name like 'sessionizer/%'";
        world.value(mine) == "0"
    });
    refuses(&world, &forget, &["was not stopped cleanly", "Start it", "Nothing was changed"]);
    assert_eq!(world.value("select max(generation) from sessionizer.shard_progress"), "1");
    // An instance whose connections do not show is turned away, and writes nothing back.
    let job = start(&world, &[]);
    world.send_events(0, &sent[..1]);
    wait_for_records(&world, sent.len() + 1);
    job.stop();
    let job = start(&world, &["--epoch", "3s"]);
    job.signal("STOP");
    world.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity
         where datname = current_database() and application_name like 'sessionizer/%'",
    );
    let said = says(&world, &forget);
    assert_eq!(counted(&said, "open sessions").1 + counted(&said, "rows of").1, 7, "{said}");
    job.signal("CONT");
    let (status, log) = job.wait();
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(log.contains("has taken over"), "{log}");
    assert_eq!(world.imbalance(), "0");
    world.run_to_end(&[]);
    let left: Vec<Event> = sent.into_iter().filter(|event| event.ip != GONE).collect();
    assert_eq!(world.rows(), sessions(&left));
    audit(&world);
}

#[test]
fn a_dead_letter_that_was_cut_before_the_address_does_not_come_back() {
    let world = World::new("forget-cut");
    world.create_topic(1);
    let args = ["--out-of-orderness", "0s", "--idle-timeout", "1h", "--late", "drop"];
    let job = start(&world, &[&args[..], &["--dead-letter-bytes", "20"]].concat());
    let sent = [event("192.0.2.8", "shop", PAST_MS), event("mover", "h", LATER_MS)];
    world.send_events(0, &sent);
    wait_for_records(&world, 2);
    eventually("a session is closed", || world.rows().len() == 1);
    let late = [GONE, "192.0.2.8"].map(|ip| {
        let url = "x".repeat(100);
        let time = PAST_MS + 10 * GAP_MS;
        Some(format!(r#"{{"url":"{url}","ip":"{ip}","host":"shop","event_time":{time}}}"#))
    });
    world.send(0, late);
    wait_for_records(&world, 4);
    job.stop();
    assert_eq!(world.dead_letters(), [("late".to_owned(), 2)]);
    for args in [&["--dry-run"][..], &[]] {
        let said = forgets(&world, args);
        assert!(said.contains("has stored nothing about 192.0.2.7 in"), "{said}");
        assert!(said.contains("Of 2 dead letters, too little of the payload was kept"), "{said}");
        assert!(said.lines().skip(1).all(|line| line.chars().count() <= 80), "{said}");
        let noted = world.value("select count(*) from sessionizer.forgotten");
        assert_eq!(noted, if args.is_empty() { "1" } else { "0" });
    }
    audit(&world);
    let said = says(&world, &["redrive", "--reason", "late", "--yes"]);
    assert!(said.contains("1 late: its visitor was forgotten"), "{said}");
    let all = [&sent[..], &[event("192.0.2.8", "shop", PAST_MS + 10 * GAP_MS)]].concat();
    world.run_to_end(&args);
    assert_eq!(world.rows(), sessions(&all));
    audit(&world);
}
