//! `--late drop`: what Flink would drop goes to `dead_letters`, counted and with its payload.

use std::collections::BTreeSet;

use crate::kafka::{start, wait_for_records};
use crate::oracle::{Event, GAP_MS, event, sessions};
use crate::world::{World, eventually, json};

/// 2023-11-14T22:13:20Z.
const T: i64 = 1_700_000_000_000;
/// Where the watermark stands when the late events come.
const W: i64 = T + 100 * GAP_MS;
const DROP: [&str; 6] = ["--late", "drop", "--out-of-orderness", "0s", "--idle-timeout", "1h"];

fn payloads(world: &World) -> BTreeSet<String> {
    let sql = "select convert_from(payload, 'UTF8') from sessionizer.dead_letters
               where reason = 'late'";
    world.query(sql).into_iter().map(|row| row[0].clone()).collect()
}

/// Those whose session ends before the watermark are dropped, on both sides of the boundary.
#[test]
fn late_events_can_be_dropped_as_flink_does() {
    let world = World::new("drop");
    world.create_topic(1);
    let on_time = [event("closed", "h", T), event("open", "h", W - GAP_MS), event("mover", "h", W)];
    let (kept, dropped) = (
        [
            // Its session ends at the watermark: that is not before it.
            event("edge", "h", W - GAP_MS),
            // As late as possible, but its session is still open.
            event("open", "h", W - 2 * GAP_MS),
        ],
        [
            event("edge", "i", W - GAP_MS - 1),
            event("closed", "h", T + 1),
            event("nobody", "h", T),
            // Together they are a session, and that has ended too.
            event("pair", "h", T),
            event("pair", "h", T + GAP_MS),
        ],
    );
    let job = start(&world, &DROP);
    world.send_events(0, &on_time);
    wait_for_records(&world, 3);
    eventually("the first session is closed", || world.rows().len() == 1);
    // One transaction, one epoch or several: none of the late ones touches another.
    world.send_events(0, kept.iter().chain(&dropped));
    wait_for_records(&world, 10);
    job.stop();
    let want: BTreeSet<String> = dropped.iter().map(json).collect();
    assert_eq!(payloads(&world), want);
    let place = "select count(distinct \"offset\"), min(\"offset\"), min(partition),
                 bool_and(detail like '%watermark%' and payload_bytes = length(payload))
                 from sessionizer.dead_letters";
    assert_eq!(world.query(place), [["5", "5", "0", "t"]]);
    world.run_to_end(&DROP);
    let counted: Vec<Event> = on_time.iter().chain(&kept).cloned().collect();
    assert_eq!(world.rows(), sessions(&counted));
    assert_eq!(world.imbalance(), "0");
    assert_eq!(world.value("select dead from sessionizer.balance"), "5");
}

/// An epoch is read again under the rule that it was bound with, whatever the next start says.
#[test]
fn dropped_events_are_neither_doubled_nor_forgotten_by_a_crash() {
    let world = World::new("drop-crash");
    world.create_topic(2);
    let mut sent: Vec<Event> = Vec::new();
    let mut late: Vec<Event> = Vec::new();
    for round in 0..6 {
        let rule = if round % 2 == 0 { "drop" } else { "merge" };
        let workers = format!("{}", round % 3 + 1);
        let mut args = vec!["--late", rule, "--out-of-orderness", "0s", "--idle-timeout", "1h"];
        args.extend(["--snapshot-interval", "1h", "-w", &workers]);
        let job = start(&world, &args);
        let now = W + round * 10 * GAP_MS;
        let movers = [event("mover", "h", now), event("mover", "i", now)];
        (0..2).for_each(|partition| world.send_events(partition, &movers));
        sent.extend(movers.iter().chain(&movers).cloned());
        wait_for_records(&world, sent.len() + late.len());
        // Both partitions have moved, and the rule knows it.
        eventually("the sessions before are closed", || {
            world.rows().len() >= sessions(&sent).len().saturating_sub(2)
        });
        let events: Vec<Event> =
            (0..5).map(|n| event(&format!("late-{round}-{n}"), "h", T + n)).collect();
        world.send_events((round % 2) as i32, &events);
        if rule == "drop" {
            late.extend(events)
        } else {
            sent.extend(events)
        }
        wait_for_records(&world, sent.len() + late.len());
        job.kill();
    }
    world.run_to_end(&["-w", "2"]);
    assert_eq!(world.rows(), sessions(&sent));
    assert_eq!(payloads(&world), late.iter().map(json).collect());
    let letters = "select count(*) from sessionizer.dead_letters";
    assert_eq!(world.value(letters), late.len().to_string());
    assert_eq!(world.imbalance(), "0");
    let mut audit = world.command();
    audit.arg("audit");
    let (status, log) = crate::world::finish(audit);
    assert!(status.success(), "{log}");
}
