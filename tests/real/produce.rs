//! `produce`: from access logs, and with generated events and all options.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::kafka::{at_once, fail, visits};
use crate::oracle::{Event, sessions};
use crate::world::{PATIENCE, World, chrono_now_ms, finish};

/// A file of this test, gone when dropped.
struct TestFile(PathBuf);

impl TestFile {
    fn new(world: &World, name: &str, content: &[u8]) -> TestFile {
        let path = std::env::temp_dir().join(format!("{}-{name}", world.name));
        std::fs::write(&path, content).expect("the temporary directory is writable");
        TestFile(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a path of text")
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn log_line(event: &Event) -> String {
    let time = chrono::DateTime::from_timestamp_millis(event.time_ms).expect("a time");
    format!(
        "{} - - [{}] \"GET /a?b HTTP/1.1\" 200 2326 \"-\" \"Mozilla/5.0 (X11)\"\n",
        event.ip,
        time.format("%d/%b/%Y:%H:%M:%S +0000")
    )
}

/// Runs `produce` into a topic; it must succeed. Gives its log.
fn produce_to(world: &World, topic: &str, args: &[&str]) -> String {
    let mut command = world.command();
    command.env("KAFKA_TOPIC", topic).arg("produce").args(args);
    let (status, log) = finish(command);
    assert!(status.success(), "{status}:\n{log}");
    log
}

/// A key or a payload, if there is one.
type Bytes = Option<Vec<u8>>;

/// Keys and payloads of a partition, in order.
fn read_partition(world: &World, topic: &str, number: i32) -> Vec<(Bytes, Bytes)> {
    let consumer: BaseConsumer = world.consumer("reads");
    let (oldest, end) = world.log_range(topic, number);
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, number, Offset::Offset(oldest)).expect("an offset");
    consumer.assign(&from).expect("assigned");
    let read = |_| {
        let message = consumer.poll(PATIENCE).expect("a record").expect("the broker answers");
        (message.key().map(<[u8]>::to_vec), message.payload().map(<[u8]>::to_vec))
    };
    (oldest..end).map(read).collect()
}

#[test]
fn an_access_log_plain_or_gzip_gives_the_batch_answer() {
    let world = World::new("access-log");
    // Whole seconds: a log knows no others.
    let mut events: Vec<Event> = visits("www.example", 200);
    events.iter_mut().for_each(|event| event.time_ms = event.time_ms / 1_000 * 1_000);
    let mut text = String::from("no line of a log\n");
    for (at, event) in events.iter().enumerate() {
        text.push_str(&log_line(event));
        if at == 99 {
            text.push_str("10.0.0.1 - - [99/Foo/2023:00:00:00 +0000] \"GET /\" 200 1\n\n");
        }
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(text.as_bytes()).expect("memory");
    let gzip = gzip.finish().expect("memory");
    at_once([("plain", text.as_bytes()), ("gzip", gzip.as_slice())], |(name, content)| {
        let file = TestFile::new(&world, name, content);
        let topic = format!("{}-{name}", world.name);
        let args = ["--access-log", file.path(), "--host", "www.example", "--partitions", "2"];
        let log = produce_to(&world, &topic, &args);
        assert!(log.contains(&format!("created the topic {topic}, 2 partitions")), "{log}");
        for line in [1, 102, 103] {
            assert!(log.contains(&format!("{}: line {line} is skipped: ", file.path())), "{log}");
        }
        assert!(log.contains("skipped 3 lines that did not parse"), "{log}");
        assert!(log.contains("wrote 200 records"), "{log}");
        let mut command = world.command();
        command.env("KAFKA_TOPIC", &topic);
        command.args(["--until-end", "--job", name, "--table", name]);
        let (status, log) = finish(command);
        assert!(status.success(), "{status}:\n{log}");
        assert_eq!(world.rows_of(name), sessions(&events), "{name}");
    });
    let totals = world.query("select distinct records, dead, difference from sessionizer.balance");
    assert_eq!(totals, [["200", "0", "0"]]);
}

#[test]
fn an_access_log_may_come_by_standard_input_and_needs_a_host() {
    let world = World::new("standard-input");
    let events = visits("h", 20);
    let text: String = events.iter().map(log_line).collect();
    let file = TestFile::new(&world, "log", text.as_bytes());
    let mut command = world.command();
    command.args(["produce", "--access-log", "-", "--host", "h", "--number", "12"]);
    command.stdin(std::fs::File::open(&file.0).expect("just written"));
    let (status, log) = finish(command);
    assert!(status.success() && log.contains("wrote 12 records"), "{status}:\n{log}");

    let (code, log) = fail(&world, &[], &["produce", "--access-log", file.path()]);
    assert!(code == 2 && log.contains("--host"), "{code}:\n{log}");
    let missing = format!("{}-missing", file.path());
    let args = ["produce", "--access-log", &missing, "--host", "h"];
    let (code, log) = fail(&world, &[], &args);
    assert!(code == 2 && log.contains(&missing), "{code}:\n{log}");
}

#[test]
fn the_same_seed_gives_the_same_events_and_another_one_others() {
    let world = World::new("seeds");
    let payloads = |name: &str, seed: &str| {
        let topic = format!("{}-{name}", world.name);
        let mut args = vec!["--historical", "2026-01-01T00:00:00Z", "--seed", seed];
        let more = "--number 500 --partitions 1 --bad 0.05 --late 0.05 --disorder 5s";
        args.extend(more.split(' '));
        produce_to(&world, &topic, &args);
        read_partition(&world, &topic, 0)
    };
    let first = payloads("first", "7");
    assert_eq!(first.len(), 500);
    at_once([("again", "7", true), ("other", "8", false)], |(name, seed, same)| {
        assert_eq!(payloads(name, seed) == first, same, "--seed {seed}");
    });
}

#[test]
fn records_are_written_as_asked() {
    let world = World::new("written");
    let write = |name: &str, args: &[&str]| {
        let topic = format!("{}-{name}", world.name);
        let args = [&["--historical", "2026-01-01T00:00:00Z", "--partitions", "1"], args].concat();
        produce_to(&world, &topic, &args);
        read_partition(&world, &topic, 0)
    };
    let plain = write("keyed", &["--number", "300"]);
    assert_eq!(plain.len(), 300);
    for (key, payload) in &plain {
        let payload = payload.as_deref().expect("an event");
        let event: serde_json::Value = serde_json::from_slice(payload).expect("JSON");
        assert_eq!(key.as_deref(), event["ip"].as_str().map(str::as_bytes), "the ip is the key");
    }
    let payloads: Vec<_> = plain.iter().map(|(_, payload)| (None, payload.clone())).collect();
    at_once(["gzip", "snappy", "lz4", "zstd", "none"], |codec| {
        assert_eq!(write(codec, &["--number", "300", "--compression", codec]), plain, "{codec}");
    });
    assert_eq!(write("unkeyed", &["--number", "300", "--no-key"]), payloads);
    assert_eq!(write("nothing", &["--number", "0"]), []);
    let (code, log) = fail(&world, &[], &["produce", "--compression", "rar"]);
    assert!(code == 2 && log.contains("--compression") && log.contains("zstd"), "{code}:\n{log}");
}

#[test]
fn a_rate_is_kept() {
    let world = World::new("rate");
    let began = Instant::now();
    let log = produce_to(&world, &world.name, &["--rate", "100", "--number", "150"]);
    let took = began.elapsed();
    assert!(log.contains("wrote 150 records"), "{log}");
    // The last of 150 is due after a second and a half.
    assert!((Duration::from_millis(1_490)..Duration::from_secs(10)).contains(&took), "{took:?}");
    // Live events have the time of the clock.
    let now_ms = chrono_now_ms();
    let payloads = world.read_topic(&world.name);
    let times = payloads.iter().map(|payload| {
        let event = crate::oracle::read(payload.as_deref(), now_ms + 1_000).expect("an event");
        event.time_ms
    });
    let recent = (now_ms - 60_000)..=now_ms;
    assert!(times.into_iter().all(|time_ms| recent.contains(&time_ms)));
}

#[test]
fn an_empty_topic_gets_a_past_and_live_events_go_on_where_it_ends() {
    let world = World::new("history");
    let times = || -> Vec<i64> {
        let latest_ms = chrono_now_ms() + 1_000;
        let payloads = world.read_topic(&world.name);
        let read = |payload: &Option<Vec<u8>>| {
            crate::oracle::read(payload.as_deref(), latest_ms).expect("an event").time_ms
        };
        let mut times: Vec<i64> = payloads.iter().map(read).collect();
        times.sort_unstable();
        times
    };
    let args = ["--history", "1h", "--density", "5", "--rate", "400", "--disorder", "2s"];
    let asked_ms = chrono_now_ms();
    // 18,000 are the past, more or less; the others are live.
    let log = produce_to(&world, &world.name, &[&args[..], &["--number", "19500"]].concat());
    let ended_ms = chrono_now_ms();
    assert!(log.contains("the history of 1h"), "{log}");
    let all = times();
    assert_eq!(all.len(), 19_500);
    let (oldest, newest) = (all[0], all[all.len() - 1]);
    assert!((oldest - (asked_ms - 3_602_000)).abs() < 5_000, "begins at {oldest}: {asked_ms}");
    assert!((ended_ms - 5_000..=ended_ms).contains(&newest), "ends at {newest}, not {ended_ms}");
    let widest = all.windows(2).map(|pair| pair[1] - pair[0]).max().expect("pairs");
    assert!(widest < 5_000, "nothing for {widest} ms");

    // A second run does not write the past again.
    let log = produce_to(&world, &world.name, &[&args[..], &["--number", "100"]].concat());
    assert!(log.contains("holds records already: no history"), "{log}");
    let again = times();
    assert_eq!(again.len(), 19_600);
    assert_eq!(again[..19_000], all[..19_000]);

    let wrong = ["produce", "--history", "1h", "--historical", "2h"];
    let (code, log) = fail(&world, &[], &wrong);
    assert!(code == 2 && log.contains("--history  "), "{code}:\n{log}");
}

#[test]
fn a_topic_of_others_is_left_alone() {
    let world = World::new("foreign");
    world.create_topic(2);
    let historical = ["produce", "--historical", "2026-01-01T00:00:00Z", "--number"];
    let more = |args: &[&str]| fail(&world, &[], &[&historical[..], args].concat());
    // An empty topic is nobody's.
    produce_to(&world, &world.name, &[&historical[1..], &["3000"]].concat());
    // A topic that produce itself has written in an earlier run.
    produce_to(&world, &world.name, &[&historical[1..], &["20"]].concat());
    // Another program writes to one partition, after the records of ours: more than are looked at.
    world.send(1, (0..300).map(|_| Some("not ours")));
    let (code, log) = more(&["1"]);
    assert_eq!(code, 2, "{log}");
    for part in [&*format!("the topic {} holds 3,320 records", world.name), "[1]", "--append"] {
        assert!(log.contains(part), "{part:?} is not said:\n{log}");
    }
    assert_eq!(world.read_topic(&world.name).len(), 3_320, "nothing was written");
    produce_to(&world, &world.name, &[&historical[1..], &["1", "--append"]].concat());
    assert_eq!(world.read_topic(&world.name).len(), 3_321);
    // A topic that others have begun.
    let theirs = format!("{}-theirs", world.name);
    world.create(&theirs, 1, &[]);
    world.send_to(&theirs, 0, [Some("not ours")]);
    let (code, log) =
        fail(&world, &[("KAFKA_TOPIC", &theirs)], &[&historical[..], &["1"]].concat());
    assert!(code == 2 && log.contains(&format!("{theirs} holds 1 record, ")), "{code}:\n{log}");
}

#[test]
fn of_several_topics_the_first_is_written_to_and_that_is_logged() {
    let world = World::new("several");
    world.create_topic(1);
    let two = format!("{0},{0}-second", world.name);
    world.create(&format!("{}-second", world.name), 1, &[]);
    let log = produce_to(&world, &two, &["--historical", "1d", "--number", "5"]);
    assert!(log.contains(&format!("writing to the first, {}", world.name)), "{log}");
    assert_eq!(world.read_topic(&world.name).len(), 5);
}

/// Whether a topic exists.
fn exists(world: &World, topic: &str) -> bool {
    let metadata = world.consumer("looks").fetch_metadata(None, PATIENCE);
    let metadata = metadata.expect("the broker answers");
    metadata.topics().iter().any(|known| known.name() == topic)
}

#[test]
fn a_mistake_leaves_no_topic_behind() {
    let world = World::new("no-topic");
    let missing = format!("/nowhere/{}", world.name);
    let file = |name: &str, content: &[u8]| TestFile::new(&world, name, content);
    let zstd = file("zst", b"\x28\xb5\x2f\xfd\x04\x00\x01");
    let text = file("text", b"hello\nworld\n");
    let broken = file("gz", b"\x1f\x8b\x08broken");
    let log = |path: &str| ["--access-log", path, "--host", "h"].map(str::to_owned).to_vec();
    let flags = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let remedy = format!("it is compressed with zstd: zstd -dc {} | sessionizer", zstd.path());
    for (args, code, says) in [
        (log(&missing), 2, &*missing),
        (log("/"), 2, "Is a directory"),
        (log(zstd.path()), 2, &remedy),
        (log(text.path()), 2, "none of its 2 lines can be read; line 1: time at column 6: no time"),
        (log(broken.path()), 1, "line 1: cannot read further"),
        (flags(&format!("--scenario clean --truth {missing}/truth")), 2, "--truth"),
        (flags("--scenario skew --partitions 2 --visits 100"), 2, "has 2 partitions"),
    ] {
        let args: Vec<&str> =
            ["produce"].into_iter().chain(args.iter().map(String::as_str)).collect();
        let (got, log) = fail(&world, &[], &args);
        assert!(got == code && log.contains(says), "{args:?}: {got}:\n{log}");
        assert!(!exists(&world, &world.name), "{args:?}:\n{log}");
    }
    // Standard input that stays silent is given up at once.
    let mut command = world.command();
    command.args(["produce", "--access-log", "-", "--host", "h"]);
    command.stdin(std::process::Stdio::piped());
    let job = crate::world::Running::start(command);
    std::thread::sleep(Duration::from_millis(500));
    job.signal("INT");
    let (status, log) = job.wait_at_most(Duration::from_secs(3));
    assert!(status.code() == Some(1) && log.contains("nothing was written"), "{status}:\n{log}");
    assert!(!exists(&world, &world.name));
}

#[test]
fn a_line_that_is_too_long_is_named_among_many_that_are_bad() {
    let world = World::new("long-line");
    let events = visits("h", 2);
    let bad = "no line of a log\n".repeat(20);
    let long = "x".repeat(3 << 20);
    let text = format!("{bad}{}{long}\n{}", log_line(&events[0]), log_line(&events[1]));
    let file = TestFile::new(&world, "log", text.as_bytes());
    let log = produce_to(&world, &world.name, &["--access-log", file.path(), "--host", "h"]);
    for says in [
        "line 22 is skipped: it is longer than 1048576 bytes",
        "skipped 20 lines that did not parse",
        "skipped 1 line that was too long",
        "wrote 2 records",
    ] {
        assert!(log.contains(says), "{says:?} is missing in\n{log}");
    }
}
