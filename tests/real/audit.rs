//! `sessionizer audit`: a correct table passes, even beside a running job and right after a crash;
//! differences are named, and so is whatever prevents an audit.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use crate::brokers::Broker;
use crate::lifecycle::{Raise, SOON, Traffic, send_until, start, wait_for_records};
use crate::oracle::event;
use crate::world::{Running, World, chrono_now_ms, eventually, finish};

const RIGHT: &str = "The table equals the batch answer: ";

/// How an audit ended.
pub struct Audit {
    pub code: Option<i32>,
    /// Its tables and its verdict.
    pub said: String,
    pub log: String,
}

pub fn audit(world: &World, args: &[&str]) -> Audit {
    let output = world.command().arg("audit").args(args).output().expect("the program was built");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Audit { code: output.status.code(), said: text(&output.stdout), log: text(&output.stderr) }
}

/// The audit must find nothing.
pub fn passes(world: &World) -> Audit {
    let audit = audit(world, &[]);
    assert_eq!(audit.code, Some(0), "{}\n{}", audit.said, audit.log);
    let last = audit.said.lines().last().expect("a verdict");
    assert!(last.starts_with(RIGHT), "{}", audit.said);
    assert!(audit.said.lines().all(|line| line.chars().count() <= 100), "{}", audit.said);
    audit
}

/// The audit must end with this code and say why.
pub fn fails(world: &World, args: &[&str], code: i32, why: &str) -> Audit {
    let audit = audit(world, args);
    assert_eq!(audit.code, Some(code), "{}\n{}", audit.said, audit.log);
    assert!(audit.log.contains(why), "{why:?} is not said:\n{}\n{}", audit.said, audit.log);
    assert!(!audit.said.contains(RIGHT), "{}", audit.said);
    audit
}

/// The counts: rows that are right, rows of open sessions, open, missing, wrong.
fn counts(audit: &Audit) -> Vec<u64> {
    let of = |what: &str| {
        let line = audit.said.lines().find(|line| line.contains(what))?;
        let number = line.split_whitespace().next().expect("a count").replace(',', "");
        Some(number.parse().expect("a count"))
    };
    assert!(of("rows are right").is_some(), "{}", audit.said);
    [
        "rows are right",
        "parts of sessions that are open again",
        "are still open",
        "sessions are missing",
        "rows are wrong",
    ]
    .map(|what| of(what).unwrap_or(0))
    .to_vec()
}

/// The differences that are shown: what, ip, host, first, last, events.
pub fn differences(audit: &Audit) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        let cells = line.split(['│', '┆']).map(|cell| cell.trim().to_owned());
        cells.filter(|cell| !cell.is_empty()).collect()
    };
    let of_table =
        |cells: &Vec<String>| cells.len() == 6 && ["missing", "wrong"].contains(&cells[0].as_str());
    audit.said.lines().map(cells).filter(of_table).collect()
}

/// A job that has read everything and has ended; the topic holds stragglers and bad input.
pub fn settled(test: &str) -> World {
    let world = World::new(test);
    let mut traffic = Traffic::new(&world);
    for _ in 0..2 {
        traffic.send(2_000);
        // The second time, stragglers merge with rows that the first run has written.
        traffic.check(&world, &["-w", "2"]);
    }
    world
}

#[test]
fn a_table_that_is_the_batch_answer_passes() {
    let world = settled("audit-right");
    let audit = passes(&world);
    let rows: u64 = world.value("select count(*) from sessionized_events").parse().expect("rows");
    assert_eq!(counts(&audit), [rows, 0, 0, 0, 0]);
    assert!(differences(&audit).is_empty(), "{}", audit.said);
}

#[test]
fn open_sessions_are_no_differences() {
    let world = World::new("audit-open");
    let mut traffic = Traffic::new(&world);
    traffic.send(2_000);
    let job = start(&world, "-w 2");
    wait_for_records(&world, traffic.records());
    job.stop();
    let found = counts(&passes(&world));
    assert!(found[0] > 0 && found[2] > 0 && found[3..] == [0, 0], "{found:?}");
    // A drained session that continues is in the table with some of its events.
    world.run_to_end(&[]);
    traffic.send(200);
    let job = start(&world, "-w 2");
    wait_for_records(&world, traffic.records());
    job.stop();
    let found = counts(&passes(&world));
    assert!(found[1] > 0 && found[3..] == [0, 0], "{found:?}");
}

#[test]
fn rows_that_are_changed_gone_or_too_many_are_named() {
    let world = settled("audit-damaged");
    let rows: u64 = world.value("select count(*) from sessionized_events").parse().expect("rows");
    let (missing, too_many) = ("missing", "wrong");
    let third = "where (ip, host, session_start) =
                 (select ip, host, session_start from sessionized_events
                  order by ip, host, session_start offset 3 limit 1)";
    let victim = world.query(&format!("select ip, host, num_logs from sessionized_events {third}"));
    let [ip, host, events] = victim[0].clone().try_into().expect("three columns");
    let more = (events.parse::<u64>().expect("a count") + 1).to_string();
    let named = |kind: &str, events: &str| [kind, &ip, &host, events].map(str::to_owned);
    let copy = "create table saved as table sessionized_events;
                alter table sessionized_events drop constraint sessionized_events_pkey";
    world.execute(copy);
    let cases = [
        (
            format!("update sessionized_events set num_logs = num_logs + 1 {third}"),
            "1 session missing, 1 row wrong",
            [rows - 1, 1, 1],
            vec![named(too_many, &more), named(missing, &events)],
        ),
        (
            format!("update sessionized_events set session_end = session_end + '1 ms' {third}"),
            "1 session missing, 1 row wrong",
            [rows - 1, 1, 1],
            vec![named(too_many, &events), named(missing, &events)],
        ),
        (
            format!("delete from sessionized_events {third}"),
            "1 session missing, 0 rows wrong",
            [rows - 1, 1, 0],
            vec![named(missing, &events)],
        ),
        (
            format!("insert into sessionized_events select * from sessionized_events {third}"),
            "0 sessions missing, 1 row wrong",
            [rows, 0, 1],
            vec![named(too_many, &events)],
        ),
        (
            format!(
                "insert into sessionized_events
                 select ip, host, session_start - '1 day'::interval, session_end, num_logs
                 from sessionized_events {third}"
            ),
            "0 sessions missing, 1 row wrong",
            [rows, 0, 1],
            vec![named(too_many, &events)],
        ),
    ];
    for (damage, why, [right, missing, wrong], want) in cases {
        world.execute(&damage);
        let why = format!("the table public.sessionized_events is not the batch answer: {why}");
        let audit = fails(&world, &[], 1, &why);
        let look = format!(
            "  select * from \"public\".\"sessionized_events\"\n  where ip = '{ip}' and host = '{host}'"
        );
        assert!(audit.said.contains(&look), "{}", audit.said);
        assert!(audit.said.lines().all(|line| line.chars().count() <= 100), "{}", audit.said);
        assert_eq!(counts(&audit), [right, 0, 0, missing, wrong], "{damage}:\n{}", audit.said);
        let shown: Vec<Vec<String>> =
            differences(&audit).into_iter().map(|row| [&row[..3], &row[5..]].concat()).collect();
        assert_eq!(shown, want, "{damage}:\n{}", audit.said);
        world.execute("truncate sessionized_events; insert into sessionized_events table saved");
    }
    passes(&world);
    // Counted, and not shown.
    world.execute("delete from sessionized_events");
    let audit = fails(&world, &["--show", "3"], 1, "sessions missing, 0 rows wrong");
    assert!(differences(&audit).len() <= 6, "{}", audit.said);
    assert_eq!(counts(&audit), [0, 0, 0, rows, 0]);
}

#[test]
fn books_that_are_changed_are_named() {
    let world = settled("audit-books");
    world.execute("create table saved as table sessionizer.shard_progress");
    world.execute("create table saved_epochs as table sessionizer.epochs");
    let totals = "the counts of 1 shard in sessionizer.shard_progress are not";
    for (damage, why) in [
        (
            "update sessionizer.epochs set closed = closed + 1",
            "sessionizer.balance shows a difference of -1 records",
        ),
        ("update sessionizer.shard_progress set closed = closed + 1 where shard = 7", totals),
        ("update sessionizer.shard_progress set dead = dead + 1 where shard = 7", totals),
        (
            "update sessionizer.shard_progress set closed = closed - 1, open = open + 1
             where shard = 7",
            totals,
        ),
        ("update sessionizer.shard_progress set epoch = epoch - 1 where shard = 7", "incomplete"),
        ("delete from sessionizer.shard_progress where shard = 7", "incomplete"),
    ] {
        world.execute(damage);
        let code = if why == "incomplete" { 2 } else { 1 };
        let audit = fails(&world, &[], code, why);
        assert_eq!(
            audit.said.contains("found by the audit"),
            why == totals,
            "{damage}:\n{}",
            audit.said
        );
        world.execute(
            "delete from sessionizer.shard_progress;
             insert into sessionizer.shard_progress table saved;
             delete from sessionizer.epochs; insert into sessionizer.epochs table saved_epochs",
        );
    }
    passes(&world);
}

#[test]
fn it_passes_again_and_again_beside_a_job_that_commits() {
    let world = World::new("audit-beside");
    let mut traffic = Traffic::new(&world);
    let job = start(&world, "-w 2 --sink-connections 3 --snapshot-interval 500ms");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let raise = Raise(&done);
        let sender = scope.spawn(|| send_until(&mut traffic, &done));
        wait_for_records(&world, 1);
        for _ in 0..6 {
            let before = records(&world);
            passes(&world);
            eventually("the job goes on committing", || records(&world) > before);
        }
        drop(raise);
        sender.join().expect("it sends");
    });
    job.stop();
    traffic.check(&world, &[]);
    passes(&world);
}

fn records(world: &World) -> u64 {
    let sql = "select coalesce(max(records), 0) from sessionizer.balance";
    world.value(sql).parse().expect("a number")
}

#[test]
fn it_passes_right_after_a_kill_with_shards_at_different_epochs() {
    let world = World::new("audit-killed");
    let mut traffic = Traffic::new(&world);
    let apart = "select count(distinct epoch) from sessionizer.shard_progress";
    let mut different = 0;
    for round in 0..20 {
        // One writer waits for a lock of ours while the other commits.
        let job = start(&world, "-w 2 --sink-connections 2 --snapshot-interval 300ms");
        traffic.send(300);
        wait_for_records(&world, traffic.records() - 200);
        let mut client = world.client();
        let mut held = client.transaction().expect("it answers");
        let hold = "select from sessionizer.shard_progress where shard = 0 for update";
        held.query(hold, &[]).expect("locked");
        traffic.send(300);
        eventually("the other writer has gone on", || world.value(apart) != "1");
        job.kill();
        held.rollback().expect("it answers");
        // A commit that was waiting for the lock fails: its client is gone.
        eventually("the connections are gone", || {
            let gone = "select count(*) from pg_stat_activity
                        where application_name like 'sessionizer/%'
                            and datname = current_database()";
            world.value(gone) == "0"
        });
        different += usize::from(world.value(apart) != "1");
        passes(&world);
        if different == 3 {
            traffic.check(&world, &["-w", "3"]);
            passes(&world);
            return;
        }
        assert!(round < 19, "shards stood at different epochs {different} times only");
    }
}

/// Its dead letter belongs to a different shard than its key, and that shard may lag.
#[test]
fn an_event_of_the_future_is_none_before_its_dead_letter_is_there() {
    let world = World::new("audit-future");
    world.create_topic(1);
    let now_ms = chrono_now_ms();
    // Reading waits once eight epochs are not durable: they must not pass before the events come.
    let mut job = world.command();
    job.args(["-w", "2", "--sink-connections", "2", "--epoch", "2s"]);
    let job = Running::start(job);
    world.send_events(0, &[event("now", "h", now_ms)]);
    wait_for_records(&world, 1);
    let mut client = world.client();
    let mut held = client.transaction().expect("begun");
    let hold = "select from sessionizer.shard_progress where shard % 2 = 1 for update";
    held.execute(hold, &[]).expect("one of the two writers waits");
    let day_ms = 86_400_000;
    let ahead: Vec<_> =
        (0..30).map(|n| event(&format!("ahead-{n}"), "h", now_ms + day_ms)).collect();
    world.send_events(0, &ahead);
    eventually("the other writer goes on", || !world.dead_letters().is_empty());
    assert_ne!(world.dead_letters(), [("future".to_owned(), 30)], "both writers go on");
    passes(&world);
    drop(held);
    job.stop();
    assert_eq!(world.dead_letters(), [("future".to_owned(), 30)]);
    passes(&world);
}

#[test]
fn rows_from_before_the_job_are_distinguished() {
    let world = World::new("audit-before");
    world.execute(
        "create table sessionized_events (ip varchar, host varchar, session_start timestamp(3),
                                          session_end timestamp(3), num_logs bigint);
         insert into sessionized_events values
             ('old', 'h', '2020-01-01', '2020-01-01 00:05', 1),
             ('old', 'h', '2020-01-01 00:01', '2020-01-01 00:06', 1),
             (null, 'h', '2020-01-02', '2020-01-02 00:05', 1),
             ('old', null, null, null, null)",
    );
    Traffic::new(&world).send(1_000);
    world.run_to_end(&["--from", "earliest"]);
    let audit = passes(&world);
    assert!(audit.said.contains("4  rows are older than the job"), "{}", audit.said);
}

#[test]
fn records_that_are_gone_are_reported() {
    let world = settled("audit-gone");
    world.delete_records(&world.name, 1, 100);
    let why = format!("{}[1]: the job has read offsets 0 to ", world.name);
    let audit = fails(&world, &[], 2, &why);
    assert!(audit.log.contains("records that are gone cannot be audited"), "{}", audit.log);
    world.delete_topic(&world.name);
    fails(&world, &[], 2, &format!("the topic {} does not exist", world.name));
}

#[test]
fn a_job_that_does_not_exist_is_reported() {
    let world = World::new("audit-nobody");
    world.create_topic(1);
    let why = |job: &str| format!("there is no job {job} in the database");
    fails(&world, &[], 2, &why(&world.name));
    world.send_events(0, &[event("a", "h", 1_700_000_000_000)]);
    world.run_to_end(&[]);
    passes(&world);
    fails(&world, &["--job", "nobody"], 2, &why("nobody"));
    world.execute("drop table sessionized_events");
    fails(&world, &[], 2, "sessionized_events");
}

#[test]
fn whoever_only_reads_needs_no_server_that_takes_writes() {
    let world = World::new("audit-read-only");
    world.create_topic(1);
    world.send_events(0, &[event("a", "h", 1_700_000_000_000)]);
    world.run_to_end(&[]);
    let switch = format!("alter database {} set default_transaction_read_only", world.database);
    world.execute(&format!("create table other as table sessionized_events; {switch} = on"));
    let run = |args: &[&str]| {
        let mut command = world.command();
        command.args(args);
        finish(command)
    };
    let compare = ["compare", "--against", "other"];
    for args in [&["open"][..], &["report"], &["audit", "--no-record"], &["audit"], &compare] {
        let (status, log) = run(args);
        assert!(status.success(), "{args:?}: {log}");
        let is_kept = !log.contains("is not kept: the database is read-only");
        assert_eq!(is_kept, args != ["audit"], "{args:?}: {log}");
    }
    let (status, log) = run(&["forget", "--ip", "a", "--yes"]);
    assert!(
        status.code() == Some(1) && log.contains("default_transaction_read_only is on"),
        "{log}"
    );
}

#[test]
fn it_waits_longer_than_postgres_lets_others_idle() {
    let world = settled("audit-patient");
    world.execute(&format!(
        "alter database {} set idle_in_transaction_session_timeout = '1ms'",
        world.database
    ));
    passes(&world);
}

#[test]
fn a_signal_while_it_waits_for_kafka_ends_it() {
    let world = settled("audit-stopped");
    let mut command = world.command();
    command.arg("audit").env("KAFKA_URL", "127.0.0.1:1");
    let mut audit = Running::start(command);
    audit.wait_for("waiting for Kafka");
    let asked = Instant::now();
    audit.signal("TERM");
    let (status, log) = audit.wait();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(asked.elapsed() < SOON, "{:?}:\n{log}", asked.elapsed());
    assert!(!log.contains("committing"), "it only reads:\n{log}");
}

#[test]
fn a_signal_while_the_topic_is_read_ends_it_at_once() {
    let world = World::new("audit-reading");
    let mut command = world.command();
    command.args(["produce", "--historical", "30d", "--number", "400000"]);
    let (status, log) = finish(command);
    assert!(status.success(), "{log}");
    world.run_to_end(&["-w", "2"]);
    for signal in ["INT", "TERM"] {
        let mut command = world.command();
        command.arg("audit");
        let mut audit = Running::start(command);
        audit.wait_for("reading up to 400,000 records");
        let asked = Instant::now();
        audit.signal(signal);
        let (status, log) = audit.wait();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("the audit was stopped before its end"), "{log}");
        assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    }
}

#[test]
fn a_broker_that_goes_away_while_the_topic_is_read_is_reported_and_waited_for() {
    let broker = Broker::start("audit-silent");
    let mut world = World::new("audit-silent");
    world.kafka.clone_from(&broker.address);
    let mut command = world.command();
    command.args(["produce", "--historical", "30d", "--number", "800000"]);
    let (status, log) = finish(command);
    assert!(status.success(), "{log}");
    world.run_to_end(&["-w", "2"]);
    let begin = || {
        let mut command = world.command();
        command.arg("audit");
        let mut audit = Running::start(command);
        audit.wait_for("reading up to 800,000 records");
        audit.signal("STOP");
        broker.services("pause");
        audit.signal("CONT");
        audit.wait_for("has delivered no records for 10");
        audit
    };
    let audit = begin();
    let asked = Instant::now();
    audit.signal("TERM");
    let (status, log) = audit.wait();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    broker.services("continue");
    let audit = begin();
    broker.services("continue");
    let (status, log) = audit.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("delivers records again"), "{log}");
}

#[test]
fn an_output_that_nobody_reads_changes_no_verdict() {
    use std::process::Stdio;
    let world = settled("audit-closed");
    let run = |output: Stdio| {
        let mut command = world.command();
        command.arg("audit").stdout(output).stderr(Stdio::piped());
        let output = command.output().expect("the program was built");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let closed = || {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        Stdio::from(writer)
    };
    let (code, log) = run(closed());
    assert_eq!(code, Some(0), "{log}");
    let full = std::fs::File::create("/dev/full").expect("Linux has it");
    let (code, log) = run(Stdio::from(full));
    assert!(code == Some(1) && log.contains("cannot be written to standard output"), "{log}");
    world.execute("delete from sessionized_events");
    let (code, log) = run(closed());
    assert!(code == Some(1) && log.contains("is not the batch answer"), "{log}");
}
