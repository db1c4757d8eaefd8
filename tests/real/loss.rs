//! Records that Kafka no longer has: a start refuses and says so, or continues if it was told to,
//! and then the loss is counted in the balance.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::kafka::{assert_answer, fail, start, visits, wait_for_records};
use crate::oracle::{Event, Row, sessions};
use crate::world::{World, eventually};

const ACCEPT: &str = "--accept-lost-offsets";

/// (records, closed, open, dead, lost, difference) of the balance.
fn totals(world: &World) -> Vec<i64> {
    let sql = "select records, closed, open, dead, lost, difference from sessionizer.balance";
    world.query(sql)[0].iter().map(|number| number.parse().expect("a number")).collect()
}

fn events_in(rows: &BTreeSet<Row>) -> i64 {
    rows.iter().map(|row| row.4).sum()
}

fn all<'a>(one: &'a [Event], other: &'a [Event]) -> Vec<Event> {
    [one, other].concat()
}

#[test]
fn records_that_were_not_read_yet_can_be_given_up() {
    let world = World::new("given-up");
    world.create_topic(2);
    let events = visits("a", 40);
    world.send_events(1, &events[..5]);
    world.run_to_end(&[]);
    world.send_events(1, &events[5..20]);
    world.delete_records(&world.name, 1, 8);
    let (code, log) = fail(&world, &[], &["--until-end"]);
    assert_eq!(code, 2, "{log}");
    let place = format!("{}[1]", world.name);
    for part in [place.as_str(), "offset 5", "8 to 20", "retention", ACCEPT] {
        assert!(log.contains(part), "{part:?} is missing in\n{log}");
    }
    let log = world.run_to_end(&[ACCEPT]);
    assert!(log.contains("WARN") && log.contains("retention"), "{log}");
    assert_eq!(world.rows(), sessions(&all(&events[..5], &events[8..20])));
    // Nothing that had been read is lost: those records had not been counted.
    assert_eq!(totals(&world), [17, 17, 0, 0, 0, 0]);
    let losses = "select partition, lost_from, lost_to, read_to from sessionizer.losses";
    assert_eq!(world.query(losses), [["1", "5", "8", "5"]]);
    // The next start misses nothing.
    world.send_events(1, &events[20..]);
    world.run_to_end(&[]);
    assert_eq!(world.rows(), sessions(&all(&events[..5], &events[8..])));
}

#[test]
fn records_that_a_replay_needs_are_counted_when_they_are_gone() {
    let world = World::new("replay-lost");
    world.create_topic(1);
    let events = visits("a", 200);
    // No snapshot before the kill: everything has to be read again.
    let job = start(&world, &["--snapshot-interval", "1h", "--idle-timeout", "1h", "-w", "2"]);
    world.send_events(0, &events[..100]);
    wait_for_records(&world, 100);
    job.kill();
    let closed = world.rows();
    assert!(!closed.is_empty() && events_in(&closed) < 100, "some are closed, some are open");
    // Most of the beginning of the open sessions is gone.
    world.delete_records(&world.name, 0, 90);
    let (code, log) = fail(&world, &[], &["--until-end"]);
    assert_eq!(code, 2, "{log}");
    assert!(log.contains("offset 0") && log.contains("90 to 100"), "{log}");
    let log = world.run_to_end(&[ACCEPT, "-w", "3"]);
    let rows = world.rows();
    let lost = 100 - events_in(&rows);
    assert!(lost > 0, "{rows:?}");
    assert_eq!(totals(&world), [100, 100 - lost, 0, 0, lost, 0]);
    assert!(log.contains(&format!("{lost} records that had been read are lost")), "{log}");
    assert!(rows.is_superset(&closed), "what had been written stays");
    // From there on, it is a job like any other: late events merge with the rows they touch.
    world.send_events(0, &events[100..]);
    world.send_events(0, &events[..1]);
    world.run_to_end(&[]);
    let totals = totals(&world);
    assert_eq!((totals[0], totals[4], totals[5]), (201, lost, 0));
    assert_eq!(events_in(&world.rows()), 201 - lost);
}

#[test]
fn a_topic_that_was_made_again_is_noticed_however_long_it_is() {
    let world = World::new("again-longer");
    world.create_topic(2);
    let events = visits("a", 60);
    world.send_events(0, &events[..10]);
    world.run_to_end(&[]);
    world.delete_topic(&world.name);
    world.create_topic(2);
    world.send_events(0, &events[10..40]);
    let (code, log) = fail(&world, &[], &["--until-end"]);
    assert_eq!(code, 2, "{log}");
    for part in [&format!("{}[0]", world.name), "created again", ACCEPT] {
        assert!(log.contains(part), "{part:?} is missing in\n{log}");
    }
    assert_eq!(world.rows(), sessions(&events[..10]));
    world.run_to_end(&[ACCEPT]);
    assert_eq!(world.rows(), sessions(&events[..40]));
    assert_eq!(totals(&world), [40, 40, 0, 0, 0, 0]);
    world.send_events(1, &events[40..]);
    world.run_to_end(&[]);
    assert_eq!(world.rows(), sessions(&events));
    let (code, log) = fail(&world, &[], &["audit"]);
    assert_eq!(code, 2, "{log}");
    assert!(log.contains("cannot be audited"), "{log}");
}

#[test]
fn what_was_open_of_a_topic_that_was_made_again_is_lost_and_counted() {
    let world = World::new("again-open");
    world.create_topic(1);
    let events = visits("a", 60);
    let job = start(&world, &["--snapshot-interval", "1h", "--idle-timeout", "1h"]);
    world.send_events(0, &events[..40]);
    wait_for_records(&world, 40);
    job.kill();
    let closed = world.rows();
    world.delete_topic(&world.name);
    world.create_topic(1);
    let new = visits("b", 60);
    world.send_events(0, &new);
    world.run_to_end(&[ACCEPT]);
    let lost = 40 - events_in(&closed);
    assert!(lost > 0);
    assert_eq!(totals(&world), [100, 100 - lost, 0, 0, lost, 0]);
    assert_eq!(world.rows(), &closed | &sessions(&new));
}

#[test]
fn a_topic_that_is_made_again_while_the_job_runs_ends_the_run() {
    let world = World::new("again-live");
    world.create_topic(1);
    world.send_events(0, &visits("a", 5));
    let job = start(&world, &[]);
    wait_for_records(&world, 5);
    world.delete_topic(&world.name);
    world.create_topic(1);
    world.send_events(0, &visits("b", 50));
    let (status, log) = job.wait();
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains(&world.name), "{log}");
    assert_eq!(world.imbalance(), "0");
}

#[test]
fn a_start_reports_which_offsets_are_gone() {
    let world = World::new("retention");
    world.create_topic(2);
    let events = visits("a", 40);
    world.send_events(1, &events[..5]);
    world.run_to_end(&[]);
    let rows = world.rows();
    world.send_events(1, &events[5..20]);
    world.delete_records(&world.name, 1, 8);
    let (code, log) = fail(&world, &[], &["--until-end"]);
    assert_eq!(code, 2, "{log}");
    let place = format!("{}[1]", world.name);
    for part in [place.as_str(), "offset 5", "8 to 20", "retention"] {
        assert!(log.contains(part), "{part:?} is missing in\n{log}");
    }
    assert_eq!(world.rows(), rows);
    // Records deleted up to exactly the next offset are not missed.
    world.run_to_end(&["--job", "anew", "--table", "anew"]);
    assert_eq!(world.rows_of("anew"), sessions(&events[8..20]));
    world.delete_records(&world.name, 1, 20);
    world.send_events(1, &events[20..]);
    world.run_to_end(&["--job", "anew", "--table", "anew"]);
    assert_eq!(world.rows_of("anew"), sessions(&events[8..]));
}

#[test]
fn offsets_that_go_while_it_runs_end_the_run() {
    let world = World::new("gone");
    world.create_topic(1);
    let events = visits("a", 30);
    world.send_events(0, &events[..5]);
    // The broker holds no fetch for long, so none is under way when the job has stood still for a
    // while.
    let job = start(&world, &["--kafka-config", "fetch.wait.max.ms=10"]);
    wait_for_records(&world, 5);
    job.signal("STOP");
    std::thread::sleep(Duration::from_secs(1));
    world.send_events(0, &events[5..]);
    world.delete_records(&world.name, 0, 12);
    job.signal("CONT");
    let (status, log) = job.wait();
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains(&format!("{}[0] at offset 5", world.name)), "{log}");
    assert!(log.contains("retention"), "{log}");
    assert_eq!(world.imbalance(), "0");
}

#[test]
fn a_topic_that_is_deleted_ends_the_run() {
    let world = World::new("deleted");
    world.create_topic(2);
    world.send_events(0, &visits("a", 5));
    // By default, a topic may be unknown for half a minute: to a client, a new one can be.
    let job = start(&world, &["--kafka-config", "topic.metadata.propagation.max.ms=0"]);
    wait_for_records(&world, 5);
    world.delete_topic(&world.name);
    let (status, log) = job.wait();
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains(&world.name) && log.contains("disappeared while the job"), "{log}");
    assert_eq!(world.imbalance(), "0");
    let (code, log) = fail(&world, &[], &[]);
    assert_eq!(code, 2, "{log}");
    assert!(log.contains(&format!("the topic {} does not exist", world.name)), "{log}");
}

#[test]
fn a_topic_that_was_made_again_and_is_shorter_is_refused() {
    let world = World::new("made-again");
    world.create_topic(1);
    let events = visits("a", 20);
    world.send_events(0, &events);
    world.run_to_end(&[]);
    world.delete_topic(&world.name);
    world.create_topic(1);
    world.send_events(0, &events[..5]);
    let (code, log) = fail(&world, &[], &["--until-end"]);
    assert_eq!(code, 2, "{log}");
    for part in [&format!("{}[0]", world.name), "offset 20", "0 to 5", "created again"] {
        assert!(log.contains(part), "{part:?} is missing in\n{log}");
    }
    assert_answer(&world, &events);
}

/// Sends events to each partition, of a host of its own.
fn to_each(world: &World, partitions: i32, host: &str) -> Vec<Event> {
    let mut all = Vec::new();
    for partition in 0..partitions {
        let events = visits(&format!("{host}-{partition}"), 20);
        world.send_events(partition, &events);
        all.extend(events);
    }
    all
}

#[test]
fn a_topic_that_was_made_again_with_fewer_partitions_can_be_gone_on_with() {
    let world = World::new("fewer");
    world.create_topic(4);
    to_each(&world, 4, "first");
    let job = start(&world, &["--snapshot-interval", "1h", "--idle-timeout", "1h"]);
    wait_for_records(&world, 80);
    job.kill();
    let closed = world.rows();
    world.delete_topic(&world.name);
    world.create_topic(2);
    let second = to_each(&world, 2, "second");
    for _ in 0..2 {
        let (code, log) = fail(&world, &[], &["--until-end"]);
        assert_eq!(code, 2, "{log}");
        for number in 0..4 {
            let gone = format!("{}[{number}]: it had been read up to offset 20", world.name);
            let other = format!("{}[{number}]: reading has to continue at offset 0", world.name);
            let place = if number < 2 { other } else { gone };
            assert!(log.contains(&place), "{place:?} is missing in\n{log}");
        }
        for part in ["the partition is gone", "created again with 2 partitions", ACCEPT] {
            assert!(log.contains(part), "{part:?} is missing in\n{log}");
        }
    }
    // The watermark does not wait for what is gone: what is sent now closes what was sent before.
    let job = start(&world, &[ACCEPT, "--idle-timeout", "1h"]);
    wait_for_records(&world, 120);
    let lost = 80 - events_in(&closed);
    assert!(lost > 0);
    let losses = "select partition, lost_to is null, read_to from sessionizer.losses order by 1";
    let want = (0..4).map(|at| vec![at.to_string(), "t".to_owned(), "20".to_owned()]);
    assert_eq!(world.query(losses), want.collect::<Vec<_>>());
    eventually("sessions close", || {
        let rows = world.rows();
        rows.len() > closed.len() && world.value("select lost from sessionizer.balance") != "0"
    });
    job.stop();
    world.run_to_end(&[]);
    assert_eq!(totals(&world), [120, 120 - lost, 0, 0, lost, 0]);
    assert_eq!(world.rows(), &closed | &sessions(&second));
    // Accepted once is accepted; and a partition that comes again is read from its beginning, by a
    // job that runs and by one that starts.
    let job = start(&world, &[]);
    world.add_partitions(&world.name, 3);
    let third = visits("third", 20);
    world.send_events(2, &third);
    wait_for_records(&world, 140);
    job.stop();
    world.add_partitions(&world.name, 4);
    let fourth = visits("fourth", 20);
    world.send_events(3, &fourth);
    world.run_to_end(&[]);
    assert_eq!(totals(&world), [160, 160 - lost, 0, 0, lost, 0]);
    let all = [second, third, fourth].concat();
    assert_eq!(world.rows(), &closed | &sessions(&all));
    let (code, log) = fail(&world, &[], &["audit"]);
    assert_eq!(code, 2, "{log}");
    assert!(log.contains("cannot be audited"), "{log}");
}
