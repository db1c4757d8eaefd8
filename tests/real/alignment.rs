//! Partitions that are far apart in event time: all are read, and live traffic never waits.

use std::time::Duration;

use crate::kafka::{PAST_MS, start, wait_for_records};
use crate::oracle::{Event, event};
use crate::world::World;

/// Events `step_ms` apart, of a few visitors.
fn events(name: &str, count: i64, step_ms: i64) -> Vec<Event> {
    let visit = |at: i64| event(&format!("{name}.{}", at % 7), "h", PAST_MS + at * step_ms);
    (0..count).map(visit).collect()
}

#[test]
fn a_backlog_that_is_far_apart_in_time_is_read_to_its_end() {
    for workers in ["1", "3"] {
        let world = World::new("apart");
        world.create_topic(4);
        // The last one is empty, and one has a single event of long ago.
        world.send_events(0, &events("slow", 30_000, 10));
        world.send_events(1, &events("fast", 3_000, 60_000));
        world.send_events(2, &events("once", 1, 0));
        let log = world.run_to_end(&[
            "-w",
            workers,
            "--epoch",
            "20ms",
            "--max-drift",
            "1s",
            "--drift-sessions",
            "0",
        ]);
        assert!(log.contains("read to the end: 33,001 records in"), "{log}");
        assert!(!log.contains("late session"), "{log}");
        assert_eq!(world.rows(), world.answer(&world.name));
        assert_eq!(world.imbalance(), "0");
    }
}

/// The partitions are never idle, and hours apart: each is read as its records come.
#[test]
fn live_traffic_does_not_wait_for_live_traffic() {
    let world = World::new("live");
    world.create_topic(2);
    let job =
        start(&world, &["--idle-timeout", "1h", "--max-drift", "1s", "--drift-sessions", "0"]);
    for round in 0..20 {
        let at = |name: &str, hours: i64| event(name, "h", PAST_MS + hours * 3_600_000 + round);
        world.send_events(0, [&at("old", 0)]);
        world.send_events(1, [&at("new", 24)]);
        std::thread::sleep(Duration::from_millis(50));
    }
    wait_for_records(&world, 40);
    job.stop();
}
