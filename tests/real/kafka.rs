//! What a topic can contain. A record counts once, whatever surrounds it.

use rdkafka::consumer::Consumer;
use rdkafka::message::ToBytes;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::oracle::{Event, event, sessions};
use crate::world::{PATIENCE, Running, World, eventually, finish, json};

/// Options of a job that commits often and checks often.
pub const QUICK: [&str; 6] =
    ["--epoch", "100ms", "--idle-timeout", "1s", "--discovery-interval", "300ms"];

/// 2023-11-14T22:13:20Z: some time in the past.
pub const PAST_MS: i64 = 1_700_000_000_000;

/// Visits of five visitors to a host: three go from page to page within the gap, two do not.
pub fn visits(host: &str, count: usize) -> Vec<Event> {
    let visit = |at: usize| {
        let (visitor, page) = (at as i64 % 5, at as i64 / 5);
        event(&format!("10.0.0.{visitor}"), host, PAST_MS + page * (299_998 + visitor))
    };
    (0..count).map(visit).collect()
}

/// Starts the job with [`QUICK`] and waits until it has made its plan.
pub fn start(world: &World, args: &[&str]) -> Running {
    start_on(world, &world.name, args)
}

pub fn start_on(world: &World, topics: &str, args: &[&str]) -> Running {
    let mut command = world.command();
    let quick = QUICK.chunks(2).filter(|pair| !args.contains(&pair[0]));
    command.env("KAFKA_TOPIC", topics).args(quick.flatten()).args(args);
    let mut job = Running::start(command);
    job.wait_for(" of the job ");
    job
}

/// Runs the job to the end of other topics than the first.
pub fn run_on(world: &World, topics: &str, args: &[&str]) -> String {
    let mut command = world.command();
    command.env("KAFKA_TOPIC", topics).arg("--until-end").args(args);
    let (status, log) = finish(command);
    assert!(status.success(), "{status}:\n{log}");
    log
}

/// Runs the job where it must fail; gives the exit code and the log.
pub fn fail(world: &World, env: &[(&str, &str)], args: &[&str]) -> (i32, String) {
    let mut command = world.command();
    command.envs(env.iter().copied()).args(args);
    let (status, log) = finish(command);
    (status.code().unwrap_or_else(|| panic!("{status}:\n{log}")), log)
}

/// Runs all cases at the same time, as most of it is waiting.
pub fn at_once<T: Send>(cases: impl IntoIterator<Item = T>, act: impl Fn(T) + Sync) {
    let act = &act;
    std::thread::scope(|scope| {
        for case in cases {
            scope.spawn(move || act(case));
        }
    });
}

/// Waits until this many records are accounted for, and checks the balance.
pub fn wait_for_records(world: &World, records: usize) {
    let sql = "select coalesce(max(records), 0) from sessionizer.balance";
    eventually(&format!("{records} records in the books"), || {
        world.value(sql).parse::<usize>().expect("a number") >= records
    });
    let totals = world.query("select records, difference from sessionizer.balance");
    assert_eq!(totals, [[records.to_string(), "0".to_owned()]]);
}

/// Checks that the table and the balance are right for these events.
pub fn assert_answer<'a>(world: &World, events: impl IntoIterator<Item = &'a Event> + Clone) {
    assert_eq!(world.rows(), sessions(events.clone()));
    assert_eq!(world.imbalance(), "0");
    let records = world.value("select records - dead from sessionizer.balance");
    assert_eq!(records, events.into_iter().count().to_string());
}

pub fn send_by<'a>(
    producer: &ThreadedProducer<DefaultProducerContext>,
    topic: &str,
    partition: i32,
    events: impl IntoIterator<Item = &'a Event>,
) {
    for event in events {
        let payload = json(event);
        let record = BaseRecord::<(), str>::to(topic).partition(partition).payload(&payload);
        producer.send(record).map_err(|(why, _)| why).expect("queued");
    }
    producer.flush(PATIENCE).expect("delivered");
}

/// Sends one record with a key.
fn send_keyed<P: ToBytes + ?Sized>(world: &World, key: &str, payload: Option<&P>) {
    let producer = world.producer(&[]);
    let mut record = BaseRecord::<str, P>::to(&world.name).partition(0).key(key);
    record.payload = payload;
    producer.send(record).map_err(|(why, _)| why).expect("queued");
    producer.flush(PATIENCE).expect("delivered");
}

/// How far the job is durable, by partition.
pub fn durable_ends(world: &World, topic: &str) -> Vec<i64> {
    let sql = format!(
        "select end_offset from sessionizer.partitions where topic = '{topic}' order by partition"
    );
    world.query(&sql).iter().map(|row| row[0].parse().expect("an offset")).collect()
}

/// The offsets that the group has committed, by partition; -1 where it has committed none.
pub fn group_offsets(world: &World, topic: &str, partitions: i32) -> Vec<i64> {
    let mut wanted = TopicPartitionList::new();
    wanted.add_partition_range(topic, 0, partitions - 1);
    let known = world.consumer(&world.name).committed_offsets(wanted, PATIENCE);
    let known = known.expect("the broker answers");
    let offset = |number| match known.find_partition(topic, number).map(|found| found.offset()) {
        Some(Offset::Offset(offset)) => offset,
        _ => -1,
    };
    (0..partitions).map(offset).collect()
}

pub fn log_ends(world: &World, topic: &str, partitions: i32) -> Vec<i64> {
    (0..partitions).map(|number| world.log_range(topic, number).1).collect()
}

/// Whether the job waits for a lock that the test holds.
pub fn a_commit_waits(world: &World) -> bool {
    let sql = "select count(*) > 0 from pg_stat_activity
               where datname = current_database() and wait_event_type = 'Lock'";
    world.value(sql) == "t"
}

#[test]
fn records_of_every_compression_are_read() {
    let world = World::new("codecs");
    world.create_topic(1);
    let mut events = Vec::new();
    for codec in ["gzip", "snappy", "lz4", "zstd"] {
        let visits = visits(codec, 500);
        let producer = world.producer(&[("compression.type", codec), ("linger.ms", "50")]);
        send_by(&producer, &world.name, 0, &visits);
        events.extend(visits);
    }
    world.run_to_end(&[]);
    assert_answer(&world, &events);
}

#[test]
fn keys_do_not_matter_and_records_without_payload_are_dead_letters() {
    let world = World::new("keys");
    world.create_topic(1);
    let events = visits("a", 3);
    send_keyed(&world, "somebody", Some(&json(&events[0])));
    send_keyed(&world, "", Some(&json(&events[1])));
    send_keyed::<str>(&world, "a tombstone", None);
    send_keyed(&world, "no bytes", Some(""));
    world.send(0, [Some(json(&events[2])), None, Some(String::new())]);
    world.run_to_end(&[]);
    assert_answer(&world, &events);
    let letters = world.query(
        "select \"offset\", reason, payload is null, coalesce(length(payload), 0), payload_bytes
         from sessionizer.dead_letters order by 1",
    );
    let tombstone = |offset: &str| [offset, "empty", "t", "0", "0"].map(str::to_owned);
    let no_bytes = |offset: &str| [offset, "empty", "f", "0", "0"].map(str::to_owned);
    assert_eq!(letters, [tombstone("2"), no_bytes("3"), tombstone("5"), no_bytes("6")]);
}

#[test]
fn of_transactions_only_what_was_committed_counts() {
    let world = World::new("transactions");
    world.create_topic(2);
    let producer = world.producer(&[("transactional.id", &world.name)]);
    producer.init_transactions(PATIENCE).expect("the broker knows transactions");
    let write = |partition: i32, events: &[Event], commit: bool| {
        producer.begin_transaction().expect("begun");
        send_by(&producer, &world.name, partition, events);
        match commit {
            true => producer.commit_transaction(PATIENCE).expect("committed"),
            false => producer.abort_transaction(PATIENCE).expect("aborted"),
        }
        world.wait_for_markers(&world.name, partition);
    };
    let ends = |world: &World| log_ends(world, &world.name, 2);
    let (events, never) = (visits("committed", 60), visits("aborted", 5));
    write(0, &events[..10], true);
    write(0, &never, false);
    write(0, &events[10..20], true);
    write(0, &never, false);
    write(1, &never, false);
    // After the last record of both partitions come aborted records and a marker.
    world.run_to_end(&[]);
    assert_answer(&world, &events[..20]);
    assert_eq!(durable_ends(&world, &world.name), ends(&world));

    write(1, &events[20..30], true);
    write(0, &events[30..40], true);
    world.run_to_end(&["-w", "2"]);
    assert_answer(&world, &events[..40]);
    assert_eq!(durable_ends(&world, &world.name), ends(&world));

    let job = start(&world, &[]);
    write(0, &never, false);
    write(1, &events[40..50], true);
    write(1, &never, false);
    wait_for_records(&world, 50);
    // The end of a run waits only briefly for the group's offsets, which are informative.
    eventually("the group has no lag", || {
        group_offsets(&world, &world.name, 2) == ends(&world)
            && durable_ends(&world, &world.name) == ends(&world)
    });
    job.kill();
    write(0, &events[50..], true);
    world.run_to_end(&[]);
    assert_answer(&world, &events);
}

#[test]
fn an_open_transaction_is_read_when_it_is_committed() {
    let world = World::new("open-transaction");
    world.create_topic(1);
    let events = visits("a", 15);
    world.send_events(0, &events[..5]);
    let producer = world.producer(&[("transactional.id", &world.name)]);
    producer.init_transactions(PATIENCE).expect("the broker knows transactions");
    producer.begin_transaction().expect("begun");
    send_by(&producer, &world.name, 0, &events[5..10]);
    world.send_events(0, &events[10..]);
    let log = world.run_to_end(&[]);
    assert_answer(&world, &events[..5]);
    let unread = format!(
        "{}[0]: --until-end reads to offset 5, the last stable offset. The 10 offsets from there up \
         to 15",
        world.name
    );
    assert!(log.contains("WARN") && log.contains(&unread), "{log}");
    assert!(log.contains("; 10 offsets held back by open transactions"), "{log}");
    producer.commit_transaction(PATIENCE).expect("committed");
    world.wait_for_markers(&world.name, 0);
    let log = world.run_to_end(&[]);
    assert!(!log.contains("last stable offset"), "{log}");
    assert_answer(&world, &events);
}

#[test]
fn a_compacted_topic_is_read_over_its_holes() {
    let world = World::new("compacted");
    let settings =
        [("cleanup.policy", "compact"), ("segment.ms", "100"), ("delete.retention.ms", "100")];
    world.create(&world.name, 1, &settings);
    let send = |events: &[Event]| {
        let producer = world.producer(&[]);
        for (at, event) in events.iter().enumerate() {
            let (key, payload) = ((at % 20).to_string(), json(event));
            let record = BaseRecord::<str, str>::to(&world.name).partition(0);
            let record = record.key(&key).payload(&payload);
            producer.send(record).map_err(|(why, _)| why).expect("queued");
        }
        producer.flush(PATIENCE).expect("delivered");
    };
    let events = visits("a", 80);
    send(&events[..40]);
    // Only segments that are full are compacted, so all forty are still there.
    world.run_to_end(&[]);
    assert_answer(&world, &events[..40]);
    assert_eq!(durable_ends(&world, &world.name), [40]);

    send(&events[40..]);
    eventually("only the last record of each key is left", || {
        // A segment is full when a record comes later than segment.ms.
        send_keyed::<str>(&world, "later", None);
        world.read_topic(&world.name).iter().flatten().count() == 20
    });
    // The next offset to read is gone, and so are many after it.
    world.run_to_end(&[]);
    let last = &events[60..];
    assert_answer(&world, &[&events[..40], last].concat());
    world.run_to_end(&["-w", "2", "--job", "anew", "--table", "anew"]);
    assert_eq!(world.rows_of("anew"), sessions(last));
    let differences = world.query("select distinct difference from sessionizer.balance");
    assert_eq!(differences, [["0"]]);
}
