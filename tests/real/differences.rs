//! Differences that must not occur: a replay that returns other records, and two writers that
//! disagree.

use rdkafka::producer::{BaseRecord, Producer};

use crate::kafka::{fail, start, visits, wait_for_records};
use crate::oracle::{Event, event};
use crate::world::{PATIENCE, World, eventually, json};

/// Sends records of which compaction keeps the last of each of `keys` keys.
fn send_keyed(world: &World, keys: usize, events: &[Event]) {
    let producer = world.producer(&[]);
    for (at, event) in events.iter().enumerate() {
        let (key, payload) = ((at % keys).to_string(), json(event));
        let record = BaseRecord::<str, str>::to(&world.name).partition(0);
        let record = record.key(&key).payload(&payload);
        producer.send(record).map_err(|(why, _)| why).expect("queued");
    }
    producer.flush(PATIENCE).expect("delivered");
}

#[test]
fn a_replay_of_a_topic_that_was_compacted_is_in_the_books() {
    let world = World::new("compacted-replay");
    let settings =
        [("cleanup.policy", "compact"), ("segment.ms", "100"), ("delete.retention.ms", "100")];
    world.create(&world.name, 1, &settings);
    let events = visits("a", 200);
    // No snapshot before the kill: everything has to be read again.
    let job = start(&world, &["--snapshot-interval", "1h", "--idle-timeout", "1h", "-w", "2"]);
    send_keyed(&world, 20, &events[..100]);
    wait_for_records(&world, 100);
    job.kill();
    let closed = world.rows();
    let written: i64 = closed.iter().map(|row| row.4).sum();
    assert!((1..100).contains(&written), "some are closed, some are open: {closed:?}");

    send_keyed(&world, 20, &events[100..140]);
    eventually("only the last record of each key is left", || {
        // A segment is full when a record comes later than segment.ms.
        send_keyed(&world, 20, &events[140..160]);
        world.read_topic(&world.name).iter().flatten().count() <= 40
    });
    let log = world.run_to_end(&["-w", "3"]);
    assert!(log.contains(&format!("{}[0]: reading offsets ", world.name)), "{log}");
    let lost = 100 - written;
    assert!(log.contains(&format!("{lost} records that had been read are lost")), "{log}");
    let totals = "select lost, difference, replay_difference from sessionizer.balance";
    assert_eq!(world.query(totals), [[lost.to_string(), "0".to_owned(), "-100".to_owned()]]);
    let by_epoch = "select sum(recorded), sum(found), min(from_offset), max(to_offset)
                    from sessionizer.replay_differences where topic = ";
    let by_epoch = format!("{by_epoch}'{}' and partition = 0", world.name);
    assert_eq!(world.query(&by_epoch), [["100", "0", "0", "100"]]);
    assert!(world.rows().is_superset(&closed), "what had been written stays");

    // What has closed before the crash counts as closed, though the replay has not seen it: an
    // event that is late for it merges with its row.
    send_keyed(&world, 20, &events[..20]);
    world.run_to_end(&[]);
    assert_eq!(world.query(totals)[0][..2], [lost.to_string(), "0".to_owned()]);
    let touching = "select count(*) from (select session_start <= lag(session_end) over
                    (partition by ip, host order by session_start) touches
                    from sessionized_events) rows where touches";
    assert_eq!(world.value(touching), "0");
}

#[test]
fn writers_that_disagree_on_a_watermark_end_the_run_with_an_explanation() {
    let world = World::new("disagree");
    world.create_topic(1);
    world.send_events(0, &[event("a", "h", 1_700_000_000_000)]);
    world.run_to_end(&[]);
    // The second writer of an epoch finds a different watermark than its own.
    world.execute(
        "create function another() returns trigger language plpgsql as $$ begin
             update sessionizer.epochs set watermark_ms = 5
             where job = new.job and epoch = new.epoch;
             return null;
         end $$;
         create trigger another after insert on sessionizer.epochs
             for each row execute function another()",
    );
    let args = ["-w", "2", "--sink-connections", "2", "--until-end"];
    world.send_events(0, &[event("b", "h", 1_700_000_000_000)]);
    let (code, log) = fail(&world, &[], &args);
    assert_eq!(code, 1, "{log}");
    for part in ["the watermark 1970-01-01T00:00:00.005Z", "another comes to ", "report it"] {
        assert!(log.contains(part), "{part:?} is missing in\n{log}");
    }
    assert!(!log.contains("panicked"), "{log}");
}
