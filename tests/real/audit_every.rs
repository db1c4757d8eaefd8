//! Audits that continue from the last one: new events, late events, damage, and events and rows
//! that Kafka and the table no longer have.

use std::time::{Duration, Instant};

use crate::audit::{audit, differences, fails, passes, settled};
use crate::lifecycle::{start, wait_for_records};
use crate::oracle::{Event, GAP_MS, event};
use crate::postgres::{MINUTE, TEN};
use crate::watch::Watched;
use crate::world::{PATIENCE, Running, World, eventually};

const DAY: i64 = 86_400_000;
const RIGHT: &str = "The table equals the batch answer: ";

/// Sixty visitors on one day, two events each.
fn day(number: i64) -> Vec<Event> {
    let of = |visitor: i64| {
        let at = TEN + number * DAY + visitor * 1_000;
        let ip = format!("10.0.0.{visitor}");
        [event(&ip, "h", at), event(&ip, "h", at + MINUTE)]
    };
    let mut events: Vec<Event> = (0..60).flat_map(of).collect();
    events.sort_by_key(|event| event.time_ms);
    events
}

/// A column of the last audit.
fn last(world: &World, column: &str) -> String {
    world
        .value(&format!("select {column} from sessionizer.audits order by audited_at desc limit 1"))
}

fn audits(world: &World) -> usize {
    world.value("select count(*) from sessionizer.audits").parse().expect("a number")
}

/// Waits until an audit that began after this call has ended.
fn next_audit(world: &World, running: &Running) {
    let before = audits(world);
    let until = Instant::now() + PATIENCE;
    while audits(world) < before + 2 {
        assert!(Instant::now() < until, "no more audits:\n{}", running.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Starts an audit every second.
fn repeated(world: &World) -> Running {
    let mut command = world.command();
    command.args(["audit", "--every", "1s", "--keep", "1h"]);
    Running::start(command)
}

#[test]
fn audits_go_on_beside_a_job_and_find_what_is_new_late_or_damaged() {
    let world = World::new("audit-every");
    world.create_topic(1);
    let args = ["-w", "2", "--epoch", "50ms"];
    let watched = Watched::start(&world, &args);
    let mut records = 0;
    let mut send = |events: &[Event]| {
        world.send_events(0, events);
        records += events.len() as u64;
        wait_for_records(&world, records);
    };
    (0..4).for_each(|number| send(&day(number)));
    let missing = watched.status()["proof"]["why"]["differences"].to_string();
    assert!(
        missing.contains("no audit has been recorded")
            || missing.contains("look again in a moment"),
        "{missing}"
    );

    let mut audits = repeated(&world);
    audits.wait_for("reading up to 480 records of 1 partition again");
    next_audit(&world, &audits);
    let kinds = "select string_agg(distinct kind, ' ') from sessionizer.audits";
    assert_eq!(world.value(kinds), "full incremental");
    assert_eq!(last(&world, "records_read || ' ' || differences"), "0 0");
    assert_eq!(last(&world, "verified_through"), format!("{{\"{}/0\": 480}}", world.name));

    // New ones, and late ones: a session that was sealed grows, and one is new.
    let late = [
        event("10.0.0.7", "h", TEN + DAY + 7_000 + MINUTE + GAP_MS),
        event("10.0.0.8", "h", TEN - 10 * GAP_MS),
    ];
    send(&[late.as_slice(), &day(4)].concat());
    next_audit(&world, &audits);
    audits.wait_for("in a period that was already verified: reading up to 480 records again");
    assert_eq!(
        last(&world, "kind || ' ' || differences || ' ' || unverifiable"),
        "incremental 0 0"
    );
    watched.wait_until("the page has the result", |document| {
        document["proof"]["differences"] == 0 && document["proof"]["rows"].as_u64() >= Some(241)
    });
    let metrics = watched.get("/metrics").body;
    assert!(metrics.contains("\nsessionizer_audit_differences 0"), "{metrics}");

    // A row that was sealed is changed: the audits report it, and go on.
    let of_old = "where ip = '10.0.0.9' and session_start < to_timestamp(1709700000)";
    let old = world.value(&format!("select count(*) from sessionized_events {of_old}"));
    assert_eq!(old, "1");
    let change = |by: i64| {
        world
            .execute(&format!("update sessionized_events set num_logs = num_logs + {by} {of_old}"));
    };
    change(1);
    next_audit(&world, &audits);
    assert_eq!(last(&world, "differences"), "1");
    audits.wait_for("0 sessions missing, 0 rows wrong, 1 day changed since verified");
    let found = fails(&world, &["--keep", "1h"], 1, "1 day changed since verified");
    assert!(found.said.contains("audit --full names the rows"), "{}", found.said);
    let full = fails(&world, &["--full", "--no-record"], 1, "1 session missing, 1 row wrong");
    assert_eq!(differences(&full)[0][..3], ["wrong", "10.0.0.9", "h"]);
    change(-1);
    next_audit(&world, &audits);
    assert_eq!(last(&world, "differences"), "0");

    // Kafka removes what was verified: a full audit is impossible, and these go on.
    let (_, end) = world.log_range(&world.name, 0);
    world.delete_records(&world.name, 0, end);
    fails(&world, &["--full"], 2, "records that are gone cannot be audited");
    send(&day(5));
    next_audit(&world, &audits);
    assert_eq!(
        last(&world, "kind || ' ' || differences || ' ' || unverifiable"),
        "incremental 0 0"
    );
    // An event joins a row whose other events are gone.
    send(&[
        event("10.0.0.5", "h", TEN + DAY + 5_000 - GAP_MS),
        event("10.0.0.5", "h", TEN + 6 * DAY),
    ]);
    let found =
        "select count(*) from sessionizer.audits where unverifiable = 1 and differences = 0";
    eventually("it is counted", || world.value(found) != "0");
    next_audit(&world, &audits);
    assert_eq!(last(&world, "differences || ' ' || unverifiable"), "0 0");

    // Retention removes the first two days from the table.
    world.execute("delete from sessionized_events where session_end < to_timestamp(1709766000)");
    next_audit(&world, &audits);
    let rows = world.value("select count(*) from sessionized_events");
    assert_eq!(last(&world, "differences || ' ' || rows_compared"), format!("0 {rows}"));
    let log = audits.stop();
    assert!(log.contains(RIGHT), "{log}");
    let again = passes(&world);
    assert!(
        again.said.contains("Continued from the last audit: read 0 records, "),
        "{}",
        again.said
    );
    watched.job.stop();
}

#[test]
fn what_changes_the_past_makes_the_next_audit_read_everything() {
    let world = settled("audit-past");
    passes(&world);
    let kind = || last(&world, "kind");
    assert_eq!(kind(), "full");
    passes(&world);
    assert_eq!(kind(), "incremental");
    let everything = "rereading everything: ";
    for (change, why) in [
        ("delete from sessionizer.audit_state", ""),
        (
            "update sessionizer.audit_state set data = set_byte(data, 4, 9)",
            "in version 9 of the format, this program reads 1",
        ),
        ("update sessionizer.audit_state set data = set_byte(data, 5, 9)", "is damaged"),
        ("update sessionizer.jobs set created_at = now()", "the job was created anew"),
        (
            "insert into sessionizer.losses (job, topic, partition, lost_from, lost_to, read_to, reason)
             select job, 'other', 0, 1, 1, 1, 'a test' from sessionizer.jobs",
            "the loss of records was accepted",
        ),
    ] {
        world.execute(change);
        let found = passes(&world);
        assert_eq!(kind(), "full", "{change}");
        assert_eq!(found.log.contains(everything), !why.is_empty(), "{change}: {}", found.log);
        assert!(found.log.contains(why), "{change}: {}", found.log);
        passes(&world);
        assert_eq!(kind(), "incremental", "{change}");
    }
    let before = audits(&world);
    let found = audit(&world, &["--no-record"]);
    assert!(found.code == Some(0) && !found.said.contains("Continued from"), "{}", found.said);
    assert_eq!(audits(&world), before);
    passes(&world);
    assert_eq!(kind(), "incremental");
}

#[test]
fn a_login_that_may_only_read_audits_everything_and_says_that_it_keeps_nothing() {
    let mut world = settled("audit-reader");
    let role = world.role();
    world.execute(&format!(
        "create role \"{role}\" login password 'reader';
         grant usage on schema sessionizer to \"{role}\";
         grant select on all tables in schema sessionizer to \"{role}\";
         grant select on sessionized_events to \"{role}\""
    ));
    let password = std::mem::replace(&mut world.password, "reader".to_owned());
    world.login = Some(role);
    for _ in 0..2 {
        let found = passes(&world);
        let why = "the result of this audit is not kept: the login";
        assert!(found.log.contains(why), "{}", found.log);
        assert!(!found.said.contains("Continued from"), "{}", found.said);
    }
    world.login = None;
    world.password = password;
    assert_eq!(audits(&world), 0);
}

#[test]
fn repeated_audits_end_with_what_does_not_heal_and_when_they_are_stopped() {
    let world = World::new("audit-waits");
    world.create_topic(1);
    let mut command = world.command();
    command.args(["audit", "--every", "1s"]);
    let (status, log) = crate::world::finish(command);
    assert_eq!(status.code(), Some(2), "{log}");
    world.send_events(0, &day(0));
    let job = start(&world, "-w 1");
    wait_for_records(&world, 120);
    job.stop();
    let mut audits = repeated(&world);
    audits.wait_for(RIGHT);
    let log = audits.stop();
    assert!(log.contains(RIGHT), "{log}");
}
