//! A lock that somebody else holds: whoever waits for it says so, and names the holder.

use crate::lifecycle::{Traffic, wait_for_records};
use crate::postgres::{jdbc, world_with_an_event};
use crate::world::{Running, World, finish};

/// Locks a table for as long as the transaction lives. Returns the process that holds the lock.
fn lock(client: &mut postgres::Client, tables: &str) -> i32 {
    client.batch_execute("set application_name = 'a migration'; begin").expect("a transaction");
    client.batch_execute(&format!("lock table {tables}")).expect("it is free");
    client.query_one("select pg_backend_pid()", &[]).expect("connected").get(0)
}

fn begin(world: &World, args: &[&str]) -> Running {
    let mut command = world.command();
    command.args(args);
    Running::start(command)
}

#[test]
fn a_command_that_waits_for_a_lock_says_whose_it_is() {
    let world = world_with_an_event("locked");
    world.run_to_end(&[]);
    world.execute("create table flink as table sessionized_events");
    let mut client = world.client();
    let holder = lock(&mut client, "sessionized_events, sessionizer.snapshots");
    let table = "sessionized_events";
    // This one goes first: it refuses to run beside an audit.
    let mut forget = begin(&world, &["forget", "--ip", "10.9.9.9", "--dry-run"]);
    forget.wait_for("waiting for a lock on ");
    let mut commands = [
        (forget, "sessionizer.snapshots"),
        (begin(&world, &["report"]), table),
        (begin(&world, &["audit", "--full"]), table),
        (begin(&world, &["compare", "--against", "flink", "--no-topic"]), table),
        (begin(&world, &["open"]), "sessionizer.snapshots"),
    ];
    for (command, what) in &mut commands {
        command.wait_for("waiting for a lock on ");
        let log = command.log();
        assert!(log.contains(*what), "{log}");
        assert!(log.contains(&format!("which process {holder} of Postgres holds")), "{log}");
        assert!(log.contains("a migration") && log.contains("idle in transaction"), "{log}");
        assert!(log.contains(&format!("pg_terminate_backend({holder})")), "{log}");
    }
    client.batch_execute("rollback").expect("it is open");
    for (command, _) in commands {
        let (status, log) = command.wait();
        assert!(log.contains("Postgres has answered, after "), "{log}");
        assert!(status.success(), "{log}");
    }
}

#[test]
fn a_start_that_waits_for_a_lock_says_whose_it_is() {
    let world = world_with_an_event("locked-start");
    world.run_to_end(&[]);
    let mut client = world.client();
    let holder = lock(&mut client, "sessionizer.jobs");
    let mut job = world.start(&["--until-end"]);
    job.wait_for("waiting for a lock on sessionizer.jobs, which process");
    let log = job.log();
    assert!(log.contains(&format!("pg_terminate_backend({holder})")), "{log}");
    client.batch_execute("rollback").expect("it is open");
    let (status, log) = job.wait();
    assert!(status.success(), "{log}");
}

#[test]
fn a_commit_that_waits_for_a_lock_says_whose_it_is() {
    let world = World::new("locked-commit");
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    let mut job =
        world.start(&["--sink-connections", "1", "--epoch", "50ms", "--http", "127.0.0.1:0"]);
    wait_for_records(&world, traffic.records());
    let mut client = world.client();
    let holder = lock(&mut client, "sessionizer.epochs");
    traffic.send(500);
    job.wait_for(
        "has not answered for 10 s: it waits for a lock on sessionizer.epochs, which process",
    );
    let log = job.log();
    assert!(log.contains(&format!("pg_terminate_backend({holder})")), "{log}");
    client.batch_execute("rollback").expect("it is open");
    job.wait_for("writer 0: Postgres has answered, after 1");
    wait_for_records(&world, traffic.records());
    job.stop();
    traffic.check(&world, &[]);
}

#[test]
fn a_command_whose_lock_takes_too_long_says_what_to_look_at() {
    let world = world_with_an_event("lock-timeout");
    world.run_to_end(&[]);
    let mut client = world.client();
    lock(&mut client, "sessionized_events");
    for args in [&["report"][..], &["audit", "--full"]] {
        let mut command = world.command();
        command.env("POSTGRES_URL", jdbc(&world, "options=-c%20lock_timeout=500")).args(args);
        let (status, log) = finish(command);
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("55P03") && log.contains("pg_stat_activity"), "{log}");
    }
}
