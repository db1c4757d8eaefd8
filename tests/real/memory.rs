//! Data in flight stays within --memory, however large records are and however slow Postgres is;
//! and old dead letters are removed.

use rdkafka::producer::{BaseRecord, Producer};

use crate::kafka::{a_commit_waits, assert_answer, fail, start, visits, wait_for_records};
use crate::rng::Rng;
use crate::world::{PATIENCE, Running, World, eventually, json};

/// A record that is not an event, with a number and this many bytes.
fn letter(number: usize, bytes: usize) -> String {
    let mut text = number.to_string();
    // Different characters, so that lz4 compresses it only to half.
    let mut random = Rng::new(number as u64);
    while text.len() < bytes {
        text += &format!(" {:08x}", random.below(1 << 32));
    }
    text.truncate(bytes);
    text
}

/// Sends such records to both partitions, compressed, so that more is read than was sent.
fn send_letters(world: &World, count: usize, bytes: usize) {
    let settings = [("compression.type", "lz4"), ("linger.ms", "20")];
    let producer = world.producer(&settings);
    for number in 0..count {
        let payload = letter(number, bytes);
        let mut record = BaseRecord::<(), str>::to(&world.name).partition(number as i32 % 2);
        record.payload = Some(&payload);
        while let Err((_, back)) = producer.send(record) {
            producer.poll(PATIENCE);
            record = back;
        }
    }
    producer.flush(PATIENCE).expect("delivered");
}

/// The peak memory of a process, in MB.
fn peak_mb(job: &Running) -> u64 {
    let path = format!("/proc/{}/status", job.pid());
    let status = std::fs::read_to_string(path).expect("a process");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    let kib = line.split_whitespace().nth(1).expect("a number");
    kib.parse::<u64>().expect("a number") * 1_024 / 1_000_000
}

#[test]
fn a_flood_of_bad_records_that_cannot_be_written_stays_within_the_memory() {
    const LETTERS: usize = 4_000;
    let world = World::new("flood");
    world.create_topic(2);
    let events = visits("a", 200);
    let args = ["-w", "2", "--memory", "64MiB", "--dead-letter-bytes", "100000"];
    let mut job = start(&world, &args);
    world.send_events(0, &events[..100]);
    wait_for_records(&world, 100);

    // To compress the payloads would cost the server more than all the rest.
    let external = "alter table sessionizer.dead_letters alter payload set storage external";
    world.execute(external);
    let mut client = world.client();
    let mut block = client.transaction().expect("a transaction");
    block.batch_execute("lock table sessionizer.dead_letters").expect("locked");
    // 400 MB, and dead letters keep all of it.
    send_letters(&world, LETTERS, 100_000);
    world.send_events(1, &events[100..]);
    eventually("a commit waits", || a_commit_waits(&world));
    job.wait_for("waiting for ");
    job.wait_for("it waits for a lock on sessionizer.dead_letters until process ");
    let locked = peak_mb(&job);
    assert!(locked < 2 * 67 + 150, "{locked} MB while nothing could be written:\n{}", job.log());
    block.rollback().expect("unlocked");

    wait_for_records(&world, 200 + LETTERS);
    let after = peak_mb(&job);
    assert!(after < 2 * 67 + 150, "{after} MB in the end:\n{}", job.log());
    let log = job.stop();
    // The broker is not blamed.
    assert!(!log.contains("ERROR") && !log.contains("nothing has come"), "{log}");
    // The last sessions are open, and close at the end of this.
    world.run_to_end(&["-w", "1", "--memory", "16MiB"]);
    assert_answer(&world, &events);
    assert_eq!(world.dead_letters(), [("bad_json".to_owned(), LETTERS as u64)]);
    let kept = "select count(*) from sessionizer.dead_letters
                where payload_bytes = 100000 and length(payload) = 100000";
    assert_eq!(world.value(kept), LETTERS.to_string());
}

/// What was read in one epoch is replayed in one, even with less memory than it takes.
#[test]
fn epochs_are_read_again_with_less_memory_than_they_were_read_with() {
    let world = World::new("less-memory");
    world.create_topic(2);
    let events = visits("a", 100);
    world.send_events(0, &events[..50]);
    send_letters(&world, 1_000, 60_000);
    world.send_events(1, &events[50..]);
    let keep = ["--dead-letter-bytes", "65536", "--snapshot-interval", "1h"];
    let large = ["-w", "2", "--memory", "1GiB", "--epoch", "1s", "--idle-timeout", "1h"];
    let job = start(&world, &[&large[..], &keep].concat());
    wait_for_records(&world, 1_100);
    job.kill();
    let small = ["-w", "2", "--memory", "16MiB"];
    let log = world.run_to_end(&[&small[..], &keep].concat());
    assert_answer(&world, &events);
    assert_eq!(world.dead_letters(), [("bad_json".to_owned(), 1_000)], "{log}");
}

/// A single record that is larger than the whole limit passes.
#[test]
fn a_record_larger_than_the_memory_passes() {
    let world = World::new("large-record");
    world.create(&world.name, 2, &[("max.message.bytes", "40000000")]);
    let events = visits("a", 20);
    world.send_events(0, &events[..10]);
    let producer = world.producer(&[
        ("message.max.bytes", "40000000"),
        ("compression.type", "zstd"),
        ("request.timeout.ms", "60000"),
    ]);
    let payload =
        json(&events[10]).replacen('{', &format!("{{\"x\":\"{}\",", letter(1, 20 << 20)), 1);
    let record = BaseRecord::<(), str>::to(&world.name).partition(0).payload(&payload);
    producer.send(record).map_err(|(why, _)| why).expect("queued");
    let no_event = letter(2, 20 << 20);
    let record = BaseRecord::<(), str>::to(&world.name).partition(1).payload(&no_event);
    producer.send(record).map_err(|(why, _)| why).expect("queued");
    producer.flush(PATIENCE).expect("delivered");
    world.send_events(0, &events[11..]);
    world.run_to_end(&["-w", "2", "--memory", "16MiB", "--dead-letter-bytes", "100000000"]);
    assert_answer(&world, &events);
    let kept = world.query("select length(payload), payload_bytes from sessionizer.dead_letters");
    assert_eq!(kept, [["20971520", "20971520"]]);
}

#[test]
fn old_dead_letters_go_and_stay_counted() {
    let world = World::new("old-letters");
    world.create_topic(2);
    let events = visits("a", 20);
    world.send_events(0, &events);
    send_letters(&world, 50, 100);
    let later = crate::world::chrono_now_ms() + 86_400_000;
    let of_the_future = crate::oracle::event("10.0.0.9", "a", later);
    world.send_events(1, [&of_the_future]);
    let mut job = start(&world, &["--keep-dead-letters", "3s"]);
    wait_for_records(&world, 71);
    job.wait_for("removed 50 dead letters older than 3 s");
    eventually("the payload is gone", || {
        let left = world.query("select reason, payload is null from sessionizer.dead_letters");
        left == [["future", "t"]]
    });
    assert_eq!(world.value("select dead from sessionizer.balance"), "51");
    let log = job.stop();
    assert!(!log.contains("WARN ]"), "{log}");
    world.run_to_end(&[]);
    assert_answer(&world, &events);
    let mut audit = world.command();
    audit.arg("audit");
    let (status, said) = crate::world::finish(audit);
    assert!(status.success(), "{said}");
}

#[test]
fn a_size_that_is_none_is_refused() {
    let world = World::new("sizes");
    let (code, log) = fail(&world, &[("SESSIONIZER_MEMORY", "a lot")], &[]);
    assert_eq!(code, 2, "{log}");
    let want = "SESSIONIZER_MEMORY  is \"a lot\": it must be a size with its unit, like 256MiB";
    assert!(log.contains(want), "{log}");
    let (code, log) = fail(&world, &[], &["--memory", "1MiB", "--keep-dead-letters", "never"]);
    assert_eq!(code, 2, "{log}");
    assert!(log.contains("is \"1MiB\": it must be from 16MiB to 1024GiB"), "{log}");
    let want = "is \"never\": it must be a duration like 300s, 5m or 250ms, or \
                forever";
    assert!(log.contains(want), "{log}");
}
