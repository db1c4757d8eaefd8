//! A job that makes no progress says why.

use std::time::Duration;

use rdkafka::producer::{BaseRecord, Producer};

use crate::brokers::Broker;
use crate::kafka::{assert_answer, send_by, start, visits, wait_for_records};
use crate::oracle::event;
use crate::world::{PATIENCE, World, eventually, json};

#[test]
fn a_batch_that_cannot_be_unpacked_is_reported_with_the_setting_that_helps() {
    let world = World::new("stuck-batch");
    world.create_topic(1);
    world.send_events(0, &[event("a", "h", 1_700_000_000_000)]);
    // Sixty megabytes that take a few kilobytes: more than a consumer unpacks by default.
    let producer = world.producer(&[
        ("compression.type", "zstd"),
        ("linger.ms", "3000"),
        ("batch.size", "200000000"),
        ("message.max.bytes", "200000000"),
    ]);
    let mut large = json(&event("a", "h", 1_700_000_001_000));
    large.push_str(&" ".repeat(1_000_000));
    for _ in 0..60 {
        let record = BaseRecord::<(), str>::to(&world.name).partition(0).payload(large.as_str());
        producer.send(record).map_err(|(why, _)| why).expect("queued");
    }
    producer.flush(PATIENCE).expect("delivered");
    let mut job = world.start(&[]);
    let place = format!("{}[0]: the records at offset 1 cannot be read", world.name);
    job.wait_for(&place);
    job.wait_for("receive.message.max.bytes");
    let stands = format!("{}[0]: nothing has come for 30.", world.name);
    job.wait_for(&stands);
    let log = job.stop();
    assert_eq!(log.matches(&place).count(), 1, "{log}");
    assert_eq!(log.matches(&stands).count(), 1, "{log}");
    world.run_to_end(&["--kafka-config", "receive.message.max.bytes=1000000000"]);
    assert_eq!(world.value("select sum(num_logs) from sessionized_events"), "61");
}

#[test]
fn commits_that_wait_for_a_lock_are_reported() {
    let world = World::new("stuck-commit");
    world.create_topic(1);
    world.send_events(0, &[event("a", "h", 1_700_000_000_000)]);
    let mut job = world.start(&["--epoch", "50ms"]);
    crate::lifecycle::wait_for_records(&world, 1);
    let mut client = world.client();
    let mut held = client.transaction().expect("begun");
    held.execute("select from sessionizer.shard_progress for update", &[]).expect("locked");
    job.wait_for("nothing has become durable for 30.");
    assert!(job.log().contains("waits for Postgres: a commit is under way"), "{}", job.log());
    drop(held);
    job.stop();
    assert_eq!(world.imbalance(), "0");
}

#[test]
fn an_open_transaction_that_holds_records_back_is_reported_and_is_no_silence() {
    let world = World::new("stuck-transaction");
    world.create_topic(2);
    let events = visits("a", 30);
    world.send_events(0, &events[..5]);
    let mut job = start(&world, &[]);
    wait_for_records(&world, 5);
    let producer = world.producer(&[("transactional.id", &world.name)]);
    producer.init_transactions(PATIENCE).expect("the broker knows transactions");
    producer.begin_transaction().expect("begun");
    send_by(&producer, &world.name, 0, &events[5..10]);
    world.send_events(0, &events[10..20]);
    world.send_events(1, &events[20..]);
    let told =
        format!("{}[0]: an open transaction has held back offsets 5 up to 20 for 30.", world.name);
    job.wait_for(&told);
    let line = format!(": an open transaction in {}[0], ", world.name);
    assert!(job.log().contains(&line), "{}", job.log());
    let remedy = format!("describe-producers --topic {} --partition 0`", world.name);
    assert!(job.log().contains(&remedy), "{}", job.log());
    // One is silent for longer than the idle timeout, the other waits for the transaction.
    let statuses = "select status from sessionizer.partitions order by partition";
    assert_eq!(world.query(statuses), [["active"], ["idle"]]);
    producer.commit_transaction(PATIENCE).expect("committed");
    wait_for_records(&world, 30);
    eventually("silence", || world.query(statuses) == [["idle"], ["idle"]]);
    let log = job.stop();
    assert_eq!(log.matches(&told).count(), 1, "{log}");
    assert!(!log.contains("nothing has come for"), "{log}");
    world.run_to_end(&[]);
    assert_answer(&world, &events);
}

#[test]
fn a_silent_broker_is_not_a_silent_partition() {
    let broker = Broker::start("stuck-silent");
    let mut world = World::new("stuck-silent");
    world.kafka.clone_from(&broker.address);
    world.create_topic(1);
    let events = visits("a", 40);
    let mut args = vec!["--gap", "1s", "--out-of-orderness", "1s", "--epoch", "50ms"];
    args.extend(["--idle-timeout", "10s"]);
    let mut job = world.start(&args);
    job.wait_for("reading begins");
    let statuses = "select status from sessionizer.partitions";
    let mut sent = 0;
    loop {
        world.send_events(0, &events[sent..sent + 10]);
        sent += 10;
        wait_for_records(&world, sent);
        // The job has learned that there is nothing more, and from here on it can learn nothing.
        broker.services("pause");
        if world.query(statuses) == [["active"]] {
            break;
        }
        broker.services("continue");
    }
    std::thread::sleep(Duration::from_secs(15));
    let waited = world.query(statuses);
    broker.services("continue");
    assert_eq!(waited, [["active"]], "nobody knows whether there is more");
    eventually("it is silent", || world.query(statuses) == [["idle"]]);
    job.stop();
    world.run_to_end(&args);
    let rows = world.value("select sum(num_logs) from sessionized_events");
    assert_eq!(rows, sent.to_string());
}
