//! Topics and partitions that come and go, and the offsets of the consumer group.

use crate::first_start::commit;
use crate::jobs::produce;
use crate::kafka::{
    a_commit_waits, assert_answer, at_once, durable_ends, group_offsets, run_on, start, start_on,
    visits, wait_for_records,
};
use crate::oracle::{Event, sessions};
use crate::world::{PATIENCE, World, chrono_now_ms, eventually, finish, json};
use rdkafka::consumer::Consumer;
use rdkafka::producer::{BaseRecord, Producer};
use std::time::Duration;

#[test]
fn there_may_be_more_workers_than_partitions_and_the_other_way_round() {
    let world = World::new("workers-partitions");
    at_once([("one", "1", "4"), ("nine", "9", "2")], |(topic, partitions, workers)| {
        let topic = format!("{}-{topic}", world.name);
        let mut command = world.command();
        command.env("KAFKA_TOPIC", &topic).arg("produce");
        command.args(["--historical", "1d", "--density", "1", "--number", "3000"]);
        command.args(["--disorder", "5s", "--bad", "0.01", "--partitions", partitions]);
        let (status, log) = finish(command);
        assert!(status.success(), "{status}:\n{log}");
        let table = format!("sessions_{workers}");
        let args = ["-w", workers, "--job", &table, "--table", &table];
        // Killed in between: a worker without partitions has nothing to replay.
        let job = start_on(&world, &topic, &args);
        let read = format!("select records from sessionizer.balance where job = '{table}'");
        eventually("all is read", || world.query(&read) == [["3000"]]);
        job.kill();
        run_on(&world, &topic, &args);
        assert_eq!(world.rows_of(&table), world.answer(&topic), "{workers} workers");
    });
    let totals = world.query("select records, open, difference from sessionizer.balance");
    assert_eq!(totals, [["3000", "0", "0"], ["3000", "0", "0"]]);
}

#[test]
fn topics_are_added_and_removed_at_a_restart() {
    let world = World::new("topics");
    let [a, b, c] = ["a", "b", "c"].map(|name| format!("{}-{name}", world.name));
    for (topic, partitions) in [(&a, 1), (&b, 3), (&c, 2)] {
        world.create(topic, partitions, &[]);
    }
    let mut events = Vec::new();
    // The visitors are the same in all topics, so sessions span several topics.
    let all = visits("h", 70);
    let mut fresh = all.chunks(10);
    let mut send = |topic: &str, partition: i32| {
        let chunk = fresh.next().expect("enough visits");
        world.send_to(topic, partition, chunk.iter().map(|event| Some(json(event))));
        chunk
    };
    events.extend_from_slice(send(&a, 0));
    events.extend_from_slice(send(&b, 2));
    run_on(&world, &format!("{a},{b}"), &["-w", "2"]);
    assert_answer(&world, &events);

    events.extend_from_slice(send(&c, 1));
    events.extend_from_slice(send(&a, 0));
    run_on(&world, &format!("{c},{b},{a}"), &[]);
    assert_answer(&world, &events);

    let missed = send(&b, 0);
    events.extend_from_slice(send(&a, 0));
    let log = run_on(&world, &format!("{a},{c}"), &[]);
    assert!(log.contains(&format!("{b} is read no more")), "{log}");
    assert_answer(&world, &events);

    // Once added again, the topic continues where it was left.
    events.extend_from_slice(missed);
    run_on(&world, &format!("{b},{a}"), &[]);
    assert_answer(&world, &events);
}

#[test]
fn what_a_removed_topic_has_brought_survives_a_crash() {
    let world = World::new("removed");
    let [a, b] = ["a", "b"].map(|name| format!("{}-{name}", world.name));
    world.create(&a, 1, &[]);
    world.create(&b, 2, &[]);
    let events = visits("h", 60);
    let send = |topic: &str, partition: i32, events: &[Event]| {
        world.send_to(topic, partition, events.iter().map(|event| Some(json(event))));
    };
    send(&a, 0, &events[..10]);
    send(&b, 1, &events[10..20]);
    let job = start_on(&world, &format!("{a},{b}"), &["-w", "2"]);
    wait_for_records(&world, 20);
    send(&b, 0, &events[20..40]);
    wait_for_records(&world, 40);
    job.kill();
    send(&a, 0, &events[40..]);
    // The open sessions are not in a snapshot: the topic is read again before it is left.
    let job = start_on(&world, &a, &[]);
    wait_for_records(&world, 60);
    job.stop();
    run_on(&world, &a, &[]);
    assert_answer(&world, &events);
}

#[test]
fn new_partitions_are_read_from_their_start() {
    let world = World::new("new-partitions");
    world.create_topic(1);
    let events = visits("a", 90);
    let job = start(&world, &["-w", "2"]);
    world.send_events(0, &events[..20]);
    wait_for_records(&world, 20);
    // A stopped process discovers nothing, so the records are written first.
    job.signal("STOP");
    world.add_partitions(&world.name, 4);
    world.send_events(1, &events[20..30]);
    world.send_events(3, &events[30..40]);
    job.signal("CONT");
    wait_for_records(&world, 40);
    world.send_events(2, &events[40..50]);
    world.send_events(3, &events[50..60]);
    wait_for_records(&world, 60);
    let log = job.kill();
    let found = log.lines().filter(|line| line.contains("found a new partition")).count();
    assert_eq!(found, 3, "{log}");
    // They are in no snapshot yet: the replay begins where their reading began.
    world.send_events(1, &events[60..70]);
    // Another one appears while no job runs.
    world.add_partitions(&world.name, 5);
    world.send_events(4, &events[70..]);
    let job = start(&world, &["--from", "latest"]);
    wait_for_records(&world, 90);
    job.stop();
    world.run_to_end(&[]);
    assert_answer(&world, &events);
}

#[test]
fn the_offsets_of_the_group_are_what_is_durable() {
    let world = World::new("group");
    world.create_topic(3);
    let events = visits("a", 40);
    let group = || group_offsets(&world, &world.name, 3);
    let durable = || durable_ends(&world, &world.name);
    world.send_events(0, &events[..10]);
    world.send_events(1, &events[10..20]);
    let job = start(&world, &["-w", "2"]);
    wait_for_records(&world, 20);
    eventually("the group follows", || group() == [10, 10, 0]);

    // While nothing can be committed, the group stays where it is.
    let mut client = world.client();
    let mut block = client.transaction().expect("a transaction");
    block.batch_execute("lock table sessionizer.bindings in exclusive mode").expect("locked");
    world.send_events(2, &events[20..30]);
    eventually("a commit waits", || a_commit_waits(&world));
    assert_eq!((group(), durable()), (vec![10, 10, 0], vec![10, 10, 0]));
    block.rollback().expect("unlocked");
    eventually("the group follows", || group() == [10, 10, 10]);
    assert_eq!(durable(), [10, 10, 10]);

    // A clean stop commits the last offsets.
    world.send_events(1, &events[30..]);
    wait_for_records(&world, 40);
    job.stop();
    assert_eq!(durable(), [10, 20, 10]);
    eventually("the group has the last word", || group() == [10, 20, 10]);
}

#[test]
fn only_the_first_start_asks_where_to_begin() {
    let world = World::new("from");
    world.create_topic(3);
    let hour_ms = 3_600_000;
    let now_ms = chrono_now_ms();
    let events = visits("a", 30);
    // What counts is Kafka's time of a record, not the event's.
    let send = |partition: i32, events: &[Event], at_ms: i64| {
        let producer = world.producer(&[]);
        for event in events {
            let payload = json(event);
            let record = BaseRecord::<(), str>::to(&world.name).partition(partition);
            let record = record.timestamp(at_ms).payload(&payload);
            producer.send(record).map_err(|(why, _)| why).expect("queued");
        }
        producer.flush(PATIENCE).expect("delivered");
    };
    send(0, &events[..5], now_ms - 3 * hour_ms);
    send(0, &events[5..10], now_ms - hour_ms);
    send(1, &events[10..15], now_ms - 3 * hour_ms);
    let rfc_3339 = chrono::DateTime::from_timestamp_millis(now_ms - hour_ms).expect("a time");
    let rfc_3339 = rfc_3339.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    let since_ms = (now_ms - 2 * hour_ms).to_string();
    let first = [
        ("earliest", events[..15].to_vec()),
        ("latest", Vec::new()),
        (since_ms.as_str(), events[5..10].to_vec()),
        (rfc_3339.as_str(), events[5..10].to_vec()),
    ];
    at_once(first.iter().enumerate(), |(at, (from, want))| {
        let job = format!("job_{at}");
        world.run_to_end(&["--job", &job, "--table", &job, "--from", from]);
        assert_eq!(world.rows_of(&job), sessions(want), "--from {from}");
    });
    send(1, &events[15..20], now_ms);
    send(2, &events[20..], now_ms);
    at_once(first.iter().enumerate(), |(at, (from, want))| {
        let job = format!("job_{at}");
        let other = if at == 0 { "latest" } else { "earliest" };
        world.run_to_end(&["--job", &job, "--table", &job, "--from", other]);
        let want = [want, &events[15..]].concat();
        assert_eq!(world.rows_of(&job), sessions(&want), "--from {from}, later {other}");
    });
    let differences = world.query("select distinct difference from sessionizer.balance");
    assert_eq!(differences, [["0"]]);
}

/// The job does not join the group, so its members do not matter.
#[test]
fn a_group_with_members_is_no_trouble() {
    let world = World::new("members");
    world.create_topic(2);
    let events = visits("a", 20);
    world.send_events(0, &events);
    let member = world.consumer(&world.name);
    member.subscribe(&[&world.name]).expect("subscribed");
    let assigned = || {
        let _ = member.poll(Duration::from_millis(50));
        member.assignment().expect("known").count() == 2
    };
    eventually("it has all partitions", assigned);
    let job = start(&world, &[]);
    wait_for_records(&world, 20);
    let log = job.stop();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    world.run_to_end(&[]);
    assert_answer(&world, &events);
}

/// `produce` creates the topic, so a first run needs nothing else.
#[test]
fn a_topic_may_be_empty() {
    let world = World::new("empty");
    produce(&world, &["--historical", "1h", "--number", "0", "--partitions", "2"]);
    world.run_to_end(&["-w", "2"]);
    assert_eq!(world.rows().len(), 0);
    assert_eq!(world.query("select records, difference from sessionizer.balance"), [["0", "0"]]);
    eventually("the group is told", || group_offsets(&world, &world.name, 2) == [0, 0]);
}

/// A Flink job that ran again after this one was stopped, for example.
#[test]
fn a_start_says_if_another_program_has_read_on_in_the_group() {
    let world = World::new("overtaken");
    world.create_topic(2);
    world.send_events(0, &visits("a", 20));
    world.run_to_end(&[]);
    world.send_events(0, &visits("b", 20));
    eventually("the group has the last word", || group_offsets(&world, &world.name, 2)[0] == 20);
    // As far as the job is no news.
    commit(&world, &world.name, &[(0, 20)]);
    let says = "another program has committed offsets of the consumer group";
    let check = || {
        let mut command = world.command();
        command.arg("check");
        let output = command.output().expect("the program was built");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(!check().contains(says));
    commit(&world, &world.name, &[(0, 33)]);
    let checked = check();
    let checked = checked.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(checked.contains("warn SZ-L03") && checked.contains(says), "{checked}");
    let log = world.run_to_end(&[]);
    assert!(log.contains(says) && log.contains("13 records in 1 partition"), "{log}");
    // Those offsets decide nothing, and the job's own take their place.
    assert_eq!(world.imbalance(), "0");
    let log = world.run_to_end(&[]);
    assert!(!log.contains(says), "{log}");
}
