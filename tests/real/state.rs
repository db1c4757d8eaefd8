//! State of a job in Postgres that is partly missing or changed by hand: a start explains the
//! problem and changes nothing, and the audit notices it.

use crate::lifecycle::{Traffic, count, start, wait_for_records};
use crate::refusal::refused;
use crate::world::{World, finish};

const TABLES: [&str; 4] = ["bindings", "epochs", "snapshots", "shard_progress"];

/// A job that has closed sessions and has others open, stopped; and a copy of its state.
fn stopped(test: &str) -> (World, Traffic) {
    let world = World::new(test);
    let mut traffic = Traffic::new(&world);
    traffic.send(2_000);
    let job = start(&world, "-w 2");
    wait_for_records(&world, traffic.records());
    job.stop();
    world.execute("create table kept as table sessionized_events");
    for table in TABLES {
        world.execute(&format!("create table kept_{table} as table sessionizer.{table}"));
    }
    traffic.send(500);
    (world, traffic)
}

fn restore(world: &World) {
    for table in TABLES {
        world.execute(&format!(
            "delete from sessionizer.{table}; insert into sessionizer.{table} table kept_{table}"
        ));
    }
    world.execute("truncate sessionized_events; insert into sessionized_events table kept");
}

fn audit(world: &World) -> (Option<i32>, String) {
    let mut command = world.command();
    command.arg("audit");
    let (status, log) = finish(command);
    (status.code(), log)
}

/// Damage, and what a start says of it.
const DAMAGE: [(&str, &str); 17] = [
    ("delete from sessionizer.bindings", "sessionizer.bindings has no row"),
    ("drop table sessionizer.bindings cascade", "sessionizer.bindings has no row"),
    ("delete from sessionizer.epochs", "sessionizer.epochs lacks"),
    ("delete from sessionizer.snapshots", "sessionizer.snapshots has 0 of 128 shards"),
    (
        "delete from sessionizer.snapshots where shard = 77",
        "sessionizer.snapshots has 127 of 128 shards",
    ),
    ("delete from sessionizer.shard_progress", "sessionizer.shard_progress has no row"),
    (
        "delete from sessionizer.shard_progress where shard = 127",
        "sessionizer.shard_progress has 127 of 128 shards",
    ),
    ("delete from sessionizer.bindings where partition = 1", "a difference of -"),
    (
        "update sessionizer.shard_progress set epoch = epoch - 1 where shard = 7",
        "newer than their shards",
    ),
    (
        "update sessionizer.shard_progress set epoch = epoch + 1000 where shard = 7",
        "sessionizer.epochs lacks 1 epochs",
    ),
    ("update sessionizer.epochs set closed = closed + 1", "a difference of -1"),
    ("truncate sessionized_events", "the table is empty, although "),
    ("delete from sessionized_events", "the table is empty, although "),
    ("update sessionizer.bindings set status = 'asleep'", "holds status = \"asleep\""),
    ("update sessionizer.bindings set quiet_since = -1", "holds quiet_since = -1"),
    ("update sessionizer.shard_progress set dead = -1 where shard = 7", "holds dead = -1"),
    ("update sessionizer.epochs set late = 'never'", "holds late = \"never\""),
];

#[test]
fn what_is_missing_or_changed_is_named_and_nothing_is_written() {
    let (world, traffic) = stopped("state");
    let generation = "select coalesce(max(generation), 1) from sessionizer.shard_progress";
    for (damage, says) in DAMAGE {
        world.execute(damage);
        let before = world.rows();
        let log = refused(&world, &[], &[], 2, &[says, "sessionizer reset", "backup"]);
        assert_eq!(count(&log, "ERROR]"), 1, "{damage}: {log}");
        assert!(world.rows() == before, "{damage}");
        if damage.starts_with("drop") {
            // As it was, without its view.
            world.execute("create table sessionizer.bindings (like kept_bindings)");
        }
        let (code, log) = audit(&world);
        assert!(matches!(code, Some(1 | 2)), "{damage}: the audit says nothing: {log}");
        assert!(!log.contains("panicked"), "{damage}: {log}");
        if damage.starts_with("drop") {
            world.execute("drop table sessionizer.bindings");
            // A start creates what is missing, but this one was refused and leaves nothing behind.
            world.execute(include_str!("../../src/ledger/migrations/001_tables.sql"));
        }
        assert_eq!(world.value(generation), "1", "{damage}: nobody was fenced");
        restore(&world);
    }
    traffic.check(&world, &["-w", "3"]);
}

#[test]
fn the_audit_looks_at_what_the_next_start_goes_on_from() {
    let (world, traffic) = stopped("state-audit");
    let (code, log) = audit(&world);
    assert_eq!(code, Some(0), "{log}");
    // Two shards that have sessions open.
    let open = "select shard from sessionizer.shard_progress where open > 0 order by 1 limit 2";
    let open = world.query(open);
    let (one, other) = (&open[0][0], &open[1][0]);
    let last = "set_byte(data, length(data) - 1, get_byte(data, length(data) - 1) # 255)";
    let swap = format!(
        "update sessionizer.snapshots s set data = t.data from sessionizer.snapshots t
         where (s.shard, t.shard) in (({one}, {other}), ({other}, {one}))"
    );
    let update =
        |what: &str| format!("update sessionizer.snapshots set data = {what} where shard = {one}");
    let empty = "(select data from kept_snapshots order by length(data) limit 1)";
    for (damage, says) in [
        (format!("delete from sessionizer.snapshots where shard = {one}"), "127 of 128 shards"),
        (update(last), "cannot be read: "),
        (swap.clone(), "it holds sessions of another shard"),
        (update(empty), "holds 0 records in open sessions"),
    ] {
        world.execute(&damage);
        let (code, log) = audit(&world);
        assert_eq!(code, Some(1), "{damage}: {log}");
        for part in ["the next start will fail", says] {
            assert!(log.contains(part), "{damage}: {part:?} is missing in {log}");
        }
        restore(&world);
    }
    world.execute(&swap);
    refused(&world, &[], &[], 2, &["it holds sessions of another shard", "sessionizer reset"]);
    restore(&world);
    traffic.check(&world, &["-w", "3"]);
}
