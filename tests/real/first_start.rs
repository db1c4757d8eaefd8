//! The first start of a job on a table with rows of another job: nothing is counted twice, and
//! every way to begin leads to the batch answer.

use std::collections::BTreeSet;
use std::time::Duration;

use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::producer::{BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::kafka::{PAST_MS, at_once};
use crate::oracle::{Event, GAP_MS, Row, event, sessions};
use crate::refusal::{refused, try_run};
use crate::world::{PATIENCE, World, chrono_now_ms, eventually, finish, json};

const HOUR_MS: i64 = 3_600_000;
/// How many records each partition has from before the handover, and from after it.
pub const BEFORE: i64 = 40;

/// Visits that end within an hour of this time.
fn visits_from(time_ms: i64, partition: i64) -> Vec<Event> {
    let visit = |at: i64| {
        let ip = format!("10.0.{partition}.{}", at % 7);
        event(&ip, "h", time_ms + at * 60_000 + partition)
    };
    (0..BEFORE).map(visit).collect()
}

/// A topic that another job has read up to the middle, and the table that it has written. The
/// third partition is empty.
pub struct Handover {
    pub world: World,
    before: Vec<Event>,
    after: Vec<Event>,
    /// A moment between the two halves, by the timestamps of the records.
    middle_ms: i64,
}

impl Handover {
    pub fn new(test: &str) -> Handover {
        let world = World::new(test);
        world.create_topic(3);
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for partition in 0..2 {
            let visits = visits_from(PAST_MS, i64::from(partition));
            world.send_events(partition, &visits);
            before.extend(visits);
        }
        std::thread::sleep(Duration::from_millis(20));
        let middle_ms = chrono_now_ms();
        std::thread::sleep(Duration::from_millis(20));
        for partition in 0..2 {
            // Later events may touch the last rows of the previous job.
            let visits = visits_from(PAST_MS + BEFORE * 60_000, i64::from(partition));
            world.send_events(partition, &visits);
            after.extend(visits);
        }
        make_table(&world);
        insert(&world, &sessions(&before));
        Handover { world, before, after, middle_ms }
    }

    pub fn all(&self) -> BTreeSet<Row> {
        sessions(self.before.iter().chain(&self.after))
    }

    /// The offsets that the previous job has committed: where it stopped.
    fn commit_middle(&self, group: &str) {
        commit(&self.world, group, &[(0, BEFORE), (1, BEFORE), (2, 0)]);
    }

    /// Checks that nothing was created or changed.
    pub fn assert_untouched(&self) {
        let world = &self.world;
        assert_eq!(world.value("select to_regnamespace('sessionizer') is null"), "t");
        assert_eq!(world.rows(), sessions(&self.before));
    }
}

fn make_table(world: &World) {
    world.execute(
        "create table sessionized_events (ip text, host text, session_start timestamptz(3),
             session_end timestamptz(3), num_logs bigint, primary key (ip, host, session_start))",
    );
}

fn insert(world: &World, rows: &BTreeSet<Row>) {
    let time = |ms: i64| format!("to_timestamp({ms} / 1000.0)");
    let rows: Vec<String> = rows
        .iter()
        .map(|(ip, host, start, end, count)| {
            format!("('{ip}', '{host}', {}, {}, {count})", time(*start), time(*end))
        })
        .collect();
    world.execute(&format!("insert into sessionized_events values {}", rows.join(", ")));
}

/// Commits offsets as a consumer of a group does.
pub fn commit(world: &World, group: &str, offsets: &[(i32, i64)]) {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in offsets {
        let offset = Offset::Offset(*offset);
        list.add_partition_offset(&world.name, *partition, offset).expect("an offset");
    }
    world.consumer(group).commit(&list, CommitMode::Sync).expect("committed");
}

fn sum(world: &World) -> String {
    world.value("select sum(num_logs) from sessionized_events")
}

#[test]
fn a_table_with_rows_is_not_begun_upon_unasked() {
    let handover = Handover::new("unasked");
    let world = &handover.world;
    handover.commit_middle(&world.name);
    // The newest row is that of the last visitor.
    let newest = handover.before.iter().map(|event| event.time_ms).max().expect("events") + GAP_MS;
    let newest = chrono::DateTime::from_timestamp_millis(newest).expect("a time");
    let newest = newest.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    let ways = [
        "the table public.sessionized_events has rows up to ",
        &newest,
        "--from group\n",
        &format!("the consumer group {}", world.name),
        &format!("--from {newest}\n"),
        "--table NAME",
        "truncate public.sessionized_events",
    ];
    refused(world, &[], &[], 2, &ways);
    refused(world, &["--accept-overlap"], &[], 2, &["--from group"]);
    refused(world, &[], &[("SESSIONIZER_FROM", "")], 2, &["--from group"]);
    handover.assert_untouched();
    let (code, log) = try_run(world, &[], &[("SESSIONIZER_FROM", "group")]);
    assert_eq!(code, 0, "{log}");
    assert!(log.contains(&format!("from the offsets of the consumer group {}", world.name)));
    assert_eq!(world.rows(), handover.all());
    // From now on the job knows its position.
    world.run_to_end(&[]);
    assert_eq!(world.rows(), handover.all());
}

#[test]
fn every_way_to_begin_ends_in_the_batch_answer() {
    at_once(["group", "other-group", "time", "time-and-group", "table", "truncate"], |way| {
        let handover = Handover::new(&format!("way-{way}"));
        let world = &handover.world;
        let middle = handover.middle_ms.to_string();
        let mut table = "sessionized_events";
        let args: Vec<&str> = match way {
            "group" => {
                handover.commit_middle(&world.name);
                vec!["--from", "group"]
            }
            "other-group" => {
                handover.commit_middle("of-flink");
                vec!["--from", "group:of-flink", "-w", "2"]
            }
            "time" => vec!["--from", &middle],
            "time-and-group" => {
                handover.commit_middle(&world.name);
                vec!["--from", &middle]
            }
            "table" => {
                table = "another";
                vec!["--table", "another"]
            }
            _ => {
                world.execute("truncate sessionized_events");
                vec![]
            }
        };
        let log = world.run_to_end(&args);
        assert!(!log.contains("WARN"), "{way}: {log}");
        assert_eq!(world.rows_of(table), handover.all(), "{way}");
        assert_eq!(world.imbalance(), "0", "{way}");
        let log = world.run_to_end(if table == "another" { &args } else { &[] });
        assert!(log.contains("start 2 of the job"), "{log}");
        assert_eq!(world.rows_of(table), handover.all(), "{way}");
        // Sessions that were cut where the job before has stopped are one row, and no difference.
        let mut audit = world.command();
        audit.arg("audit");
        let (status, log) = finish(audit);
        assert!(status.success(), "{way}:\n{log}");
        if !matches!(way, "table" | "truncate") {
            assert_audit_knows_what_is_older(world);
        }
    });
}

/// What begins after the newest row from before the job is the job's own; what begins before may be
/// of anybody.
fn assert_audit_knows_what_is_older(world: &World) {
    let audit = || {
        let mut audit = world.command();
        audit.arg("audit");
        finish(audit)
    };
    for (begins, code) in [("- interval '1 day'", 0), ("+ interval '1 ms'", 1)] {
        let (status, log) = {
            world.execute(&format!(
                "insert into sessionized_events
                 select '9.9.9.9', 'h', found_rows_to {begins}, found_rows_to + interval '1 h', 3
                 from sessionizer.jobs"
            ));
            audit()
        };
        assert_eq!(status.code(), Some(code), "{begins}:\n{log}");
    }
}

#[test]
fn what_a_group_has_read_is_not_read_again_not_even_one_record() {
    let world = World::new("boundary");
    world.create_topic(1);
    // Every event has an hour of its own, and its record a second of its own. Kafka soon deletes
    // what is stamped with a time long past.
    let events: Vec<Event> =
        (0..10).map(|at| event(&format!("10.0.0.{at}"), "h", PAST_MS + at * HOUR_MS)).collect();
    let first_ms = chrono_now_ms() - 60_000;
    let stamp_ms = |at: usize| first_ms + at as i64 * 1_000;
    let producer = world.producer(&[]);
    for (at, event) in events.iter().enumerate() {
        let payload = json(event);
        let record = BaseRecord::<(), str>::to(&world.name).partition(0).payload(&payload);
        let record = record.timestamp(stamp_ms(at));
        producer.send(record).map_err(|(why, _)| why).expect("queued");
    }
    producer.flush(PATIENCE).expect("delivered");
    commit(&world, &world.name, &[(0, 6)]);
    make_table(&world);
    insert(&world, &sessions(&events[..6]));
    let from = |at: usize| stamp_ms(at).to_string();
    let place = format!("{}[0] would be read from offset 5", world.name);
    let says = [&*place, "has read up to 6", "--accept-overlap"];
    refused(&world, &["--from", &from(5)], &[], 2, &says);
    assert_eq!(world.value("select to_regnamespace('sessionizer') is null"), "t");
    for (at, want) in [(6, [&events[..6], &events[6..]]), (7, [&events[..6], &events[7..]])] {
        // The previous job has committed, too.
        commit(&world, &world.name, &[(0, 6)]);
        let table = format!("from_{at}");
        world.execute(&format!("create table {table} as table sessionized_events"));
        world.run_to_end(&["--job", &table, "--table", &table, "--from", &from(at)]);
        assert_eq!(world.rows_of(&table), sessions(want.into_iter().flatten()), "from {at}");
    }
    // If it is accepted, one event counts twice.
    commit(&world, &world.name, &[(0, 6)]);
    let log = world.run_to_end(&["--from", &from(5), "--accept-overlap"]);
    assert!(log.contains("WARN") && log.contains("may be counted twice"), "{log}");
    assert_eq!(sum(&world), "11");
}

#[test]
fn where_no_group_has_committed_the_events_decide() {
    let handover = Handover::new("events-tell");
    let world = &handover.world;
    let first = chrono::DateTime::from_timestamp_millis(PAST_MS).expect("a time");
    let first = first.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    let place = format!("{}[0] has at offset 0 an event of {first}", world.name);
    for from in ["earliest", "2020-01-01T00:00:00Z"] {
        refused(world, &["--from", from], &[], 2, &[&place, "counted twice", "--from group"]);
    }
    handover.assert_untouched();
    let log = world.run_to_end(&["--from", "earliest", "--accept-overlap"]);
    assert!(log.contains("WARN") && log.contains("may be counted twice"), "{log}");
    let twice = 2 * handover.before.len() + handover.after.len();
    assert_eq!(sum(world), twice.to_string());
}

/// The last event of the newest row is the limit, whatever `session_end` holds.
#[test]
fn an_event_as_old_as_the_newest_row_overlaps_and_a_later_one_does_not() {
    for (mode, shift) in [("window", GAP_MS), ("last-event", 0)] {
        let world = World::new(&format!("limit-{mode}"));
        world.create_topic(1);
        let mode = ["--session-end", mode, "--from", "earliest"];
        let start = |name: &str, time_ms: i64| {
            world.execute(&format!(
                "create table {name} (ip text, host text, session_start timestamptz(3),
                                      session_end timestamptz(3), num_logs bigint);
                 insert into {name} values ('old', 'h', to_timestamp({PAST_MS} / 1000.0),
                                            to_timestamp({} / 1000.0), 2)",
                time_ms + shift
            ));
            try_run(&world, &[&mode[..], &["--job", name, "--table", name]].concat(), &[])
        };
        world.send_events(0, &[event("10.0.0.1", "h", PAST_MS + HOUR_MS)]);
        let (code, log) = start("same", PAST_MS + HOUR_MS);
        assert_eq!(code, 2, "{log}");
        assert!(log.contains("has at offset 0 an event of"), "{log}");
        let (code, log) = start("older", PAST_MS + HOUR_MS - 1);
        assert_eq!(code, 0, "{log}");
    }
}

#[test]
fn a_group_that_has_committed_nothing_is_named() {
    let handover = Handover::new("no-group");
    let world = &handover.world;
    let says = ["the consumer group nobody has committed no offset", &world.name, "checkpointing"];
    refused(world, &["--from", "group:nobody"], &[], 2, &says);
    handover.assert_untouched();
    let says = format!("the consumer group {} has committed no offset", world.name);
    refused(world, &["--from", "group"], &[], 2, &[&says]);
    // An empty table does not help either.
    world.execute("truncate sessionized_events");
    refused(world, &["--from", "group"], &[], 2, &[&says]);
}

/// A time in another time zone, or with the wrong year.
#[test]
fn a_start_position_in_the_future_is_reported() {
    let handover = Handover::new("future");
    let world = &handover.world;
    let later = (chrono_now_ms() + 2 * HOUR_MS + 300_000).to_string();
    let log = world.run_to_end(&["--from", &later]);
    let told = log.lines().find(|line| line.contains("in the future")).expect("it is told");
    assert!(told.contains("WARN") && told.contains("lies 2 h "), "{told}");
    assert_eq!(world.rows(), sessions(&handover.before));
    let before = handover.middle_ms.to_string();
    let log = world.run_to_end(&["--from", &before, "--job", "other", "--table", "other"]);
    assert!(!log.contains("in the future"), "{log}");
}

#[test]
fn a_partition_without_an_offset_is_named_if_it_has_records() {
    let handover = Handover::new("no-offset");
    let world = &handover.world;
    commit(world, &world.name, &[(0, BEFORE)]);
    let place = format!("no offset of {}[1], where there are records", world.name);
    let log = refused(world, &["--from", "group"], &[], 2, &[&place, "--accept-overlap"]);
    assert!(!log.contains("[2]"), "an empty partition needs none: {log}");
    handover.assert_untouched();
    // Nothing of the second partition was in the table.
    world.execute("delete from sessionized_events where ip like '10.0.1.%'");
    let log = world.run_to_end(&["--from", "group", "--accept-overlap"]);
    assert!(log.contains("WARN") && log.contains("[1]"), "{log}");
    assert_eq!(world.rows(), handover.all());
}

#[test]
fn offsets_of_a_group_that_kafka_does_not_have_are_refused() {
    let handover = Handover::new("gone-offset");
    let world = &handover.world;
    commit(world, &world.name, &[(0, BEFORE), (1, 2 * BEFORE + 1)]);
    let place = format!("offset {} of {}[1], but Kafka has 0 to", 2 * BEFORE + 1, world.name);
    refused(world, &["--from", "group", "--accept-lost-offsets"], &[], 2, &[&place]);
    commit(world, &world.name, &[(1, BEFORE)]);
    world.delete_records(&world.name, 0, BEFORE + 3);
    let place = format!("{}[0]: reading has to continue at offset {BEFORE}", world.name);
    let says = [&*place, "43 to 80", "--accept-lost-offsets"];
    refused(world, &["--from", "group"], &[], 2, &says);
    handover.assert_untouched();
    world.run_to_end(&["--from", "group", "--accept-lost-offsets"]);
    let partition = |n: i64| visits_from(PAST_MS + BEFORE * 60_000, n);
    let (zero, one) = (partition(0), partition(1));
    assert_eq!(world.rows(), sessions(handover.before.iter().chain(&zero[3..]).chain(&one)));
    let losses = "select partition, lost_from, lost_to, read_to from sessionizer.losses";
    assert_eq!(world.query(losses), [["0", "40", "43", "40"]]);
    assert_eq!(world.imbalance(), "0");
}

/// Offsets that this program commits for tools that show lag are not a handover: sessions were open
/// there.
#[test]
fn offsets_that_a_job_of_this_program_has_committed_are_no_handover() {
    let world = World::new("own-offsets");
    world.create_topic(1);
    world.send_events(0, &visits_from(PAST_MS, 0));
    world.run_to_end(&[]);
    let mut wanted = TopicPartitionList::new();
    wanted.add_partition(&world.name, 0);
    eventually("the group's offset is committed", || {
        let found = world.consumer(&world.name).committed_offsets(wanted.clone(), PATIENCE);
        let found = found.expect("the broker answers");
        let found = found.find_partition(&world.name, 0).expect("asked for").offset();
        found == Offset::Offset(BEFORE)
    });
    let rows = world.rows();
    world.execute("delete from sessionizer.jobs");
    let says = ["committed by a sessionizer job", "--reset-offsets"];
    refused(&world, &["--from", "group"], &[], 2, &says);
    refused(&world, &["--from", "earliest"], &[], 2, &["counted twice"]);
    assert_eq!(world.rows(), rows);
    // If they were set by hand, they count.
    commit(&world, &world.name, &[(0, BEFORE)]);
    world.run_to_end(&["--from", "group"]);
    assert_eq!(world.rows(), rows);
}

#[test]
fn a_start_that_ended_before_its_first_commit_is_followed_by_a_first_start() {
    let handover = Handover::new("no-commit");
    let world = &handover.world;
    handover.commit_middle(&world.name);
    let mut job = world.start(&["--epoch", "1h", "--from", "group"]);
    job.wait_for("first start of the job");
    job.kill();
    assert_eq!(world.value("select found_rows from sessionizer.jobs"), "t");
    refused(world, &[], &[], 2, &["--from group"]);
    refused(world, &["--from", "earliest"], &[], 2, &["counted twice"]);
    assert_eq!(world.value("select distinct generation from sessionizer.shard_progress"), "1");
    world.run_to_end(&["--from", "group"]);
    assert_eq!(world.rows(), handover.all());
}

#[test]
fn rows_that_come_between_two_first_starts_are_seen() {
    let handover = Handover::new("between");
    let world = &handover.world;
    handover.commit_middle(&world.name);
    world.execute("truncate sessionized_events");
    let mut job = world.start(&["--epoch", "1h"]);
    job.wait_for("first start of the job");
    job.kill();
    assert_eq!(world.value("select found_rows from sessionizer.jobs"), "f");
    insert(world, &sessions(&handover.before));
    refused(world, &[], &[], 2, &["--from group"]);
    let log = world.run_to_end(&["--from", "group"]);
    assert!(log.contains("the table has rows up to "), "{log}");
    assert_eq!(world.value("select found_rows from sessionizer.jobs"), "t");
    // Also those that merge with what was there.
    assert_eq!(world.rows(), handover.all());
}

#[test]
fn a_start_logs_what_it_is_connected_to_and_no_secret() {
    let world = World::new("banner");
    world.create_topic(3);
    world.send_events(0, &visits_from(PAST_MS, 0));
    world.execute("create schema \"Web\"");
    let args = ["--table", "Web.visits", "-w", "2", "--gap", "7m"];
    let env = [("POSTGRES_PASSWORD", "geheim-4711")];
    let line = |log: &str, of: &str| {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(of)).collect();
        assert_eq!(lines.len(), 1, "{of:?} is said once:\n{log}");
        lines[0].to_owned()
    };
    let World { name, kafka, server, user, database, .. } = &world;
    let both = [
        &*format!("topic {name} (3 partitions) at {kafka}; table \"Web\".visits"),
        &*format!(" in the database {database} at {server} as {user}; gap 7m; 2 workers; "),
        concat!("sessionizer ", env!("CARGO_PKG_VERSION"), " ("),
    ];
    for (whence, table) in [
        (format!("first start of the job {name}, from the earliest offsets; "), "visits (new) in"),
        (format!("start 2 of the job {name}: 0 epochs to replay; "), "visits in"),
    ] {
        let (code, log) = try_run(&world, &args, &env);
        assert_eq!(code, 0, "{log}");
        let banner = line(&log, " of the job ");
        for part in both.iter().copied().chain([&*whence, table]) {
            assert!(banner.contains(part), "{part:?} is missing in\n{banner}");
        }
        assert!(!log.contains("geheim"), "{log}");
    }
}

#[test]
fn a_change_of_topics_is_reported_once() {
    let world = World::new("change");
    let [a, b, c] = ["a", "b", "c"].map(|name| format!("{}-{name}", world.name));
    for topic in [&a, &b, &c] {
        world.create(topic, 1, &[]);
        let events = visits_from(PAST_MS, 0);
        world.send_to(topic, 0, events.iter().map(|event| Some(json(event))));
    }
    let changes = |topics: &str| -> Vec<String> {
        let (code, log) = try_run(&world, &[], &[("KAFKA_TOPIC", topics)]);
        assert_eq!(code, 0, "{log}");
        let changes = log.lines().filter(|line| line.contains("KAFKA_TOPIC has changed"));
        changes.map(str::to_owned).collect()
    };
    let none: [String; 0] = [];
    let (ab, bc) = (format!("{a},{b}"), format!("{c},{b}"));
    assert_eq!(changes(&ab), none, "a first start");
    assert_eq!(changes(&format!("{b},{a}")), none, "the order does not matter");
    let told = changes(&bc);
    assert_eq!(told.len(), 1);
    for part in [
        "WARN".to_owned(),
        format!("it was {ab}: "),
        format!("{a} is read no more"),
        format!("{c} is new, and read from its earliest offset"),
    ] {
        assert!(told[0].contains(&part), "{part:?} is missing in {told:?}");
    }
    assert_eq!(changes(&bc), none, "it was told");
    let told = changes(&format!("{bc},{a}"));
    assert!(told[0].contains(&format!("{a} is read again, from where it was left")), "{told:?}");
    assert!(!told[0].contains("is new") && !told[0].contains("no more"), "{told:?}");
}
