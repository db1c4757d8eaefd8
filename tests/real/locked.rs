//! A lock that somebody else holds: whoever waits for it says so, and names the holder.

use crate::lifecycle::{Traffic, wait_for_records};
use crate::postgres::{jdbc, world_with_an_event};
use crate::world::{Running, World, eventually, finish};

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
        assert!(log.contains(&format!("until process {holder} of Postgres")), "{log}");
        assert!(log.contains("a migration") && log.contains("idle in transaction"), "{log}");
        assert!(log.contains(&format!("pg_terminate_backend({holder})")), "{log}");
    }
    client.batch_execute("rollback").expect("it is open");
    for (command, _) in commands {
        let (status, log) = command.wait();
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
    job.wait_for("waiting for a lock on sessionizer.jobs until process");
    let log = job.log();
    assert!(log.contains(&format!("pg_terminate_backend({holder})")), "{log}");
    client.batch_execute("rollback").expect("it is open");
    let (status, log) = job.wait();
    assert!(status.success(), "{log}");
}

/// The lock that two starts take one after the other is on no table.
#[test]
fn a_start_that_waits_for_another_one_says_so() {
    let world = world_with_an_event("locked-advisory");
    let script = world.command().arg("schema").output().expect("the program was built").stdout;
    let script = String::from_utf8_lossy(&script);
    let (_, number) = script.split_once("pg_advisory_xact_lock(").expect("migrations lock");
    let number = number.split(')').next().expect("a number");
    let mut client = world.client();
    client.batch_execute(&format!("begin; select pg_advisory_xact_lock({number})")).expect("free");
    let holder: i32 = client.query_one("select pg_backend_pid()", &[]).expect("connected").get(0);
    let mut job = world.start(&["--until-end"]);
    job.wait_for(&format!("waiting for a lock until process {holder} of Postgres"));
    client.batch_execute("rollback").expect("it is open");
    let (status, log) = job.wait();
    assert!(status.success(), "{log}");
}

#[test]
fn a_commit_that_waits_for_a_lock_says_whose_it_is() {
    let world = World::new("locked-commit");
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    let mut job = world.start(&["--sink-connections", "1", "--epoch", "50ms"]);
    wait_for_records(&world, traffic.records());
    let mut client = world.client();
    for (sql, table) in [
        ("lock table sessionizer.epochs", "sessionizer.epochs"),
        ("select from sessionizer.shard_progress for update", "sessionizer.shard_progress"),
    ] {
        client.batch_execute(&format!("begin; {sql}")).expect("it is free");
        let holder: i32 =
            client.query_one("select pg_backend_pid()", &[]).expect("connected").get(0);
        traffic.send(500);
        let waits = format!("it waits for a lock on {table} until process {holder} of Postgres");
        job.wait_for(&format!("has not answered for 10 s: {waits}"));
        assert!(job.log().contains(&format!("pg_terminate_backend({holder})")), "{}", job.log());
        client.batch_execute("rollback").expect("it is open");
        wait_for_records(&world, traffic.records());
    }
    job.wait_for("writer 0: Postgres has answered, after 1");
    job.stop();
    traffic.check(&world, &[]);
}

/// Whoever waits itself, as somebody's `alter table` behind a long query, is not to be ended.
#[test]
fn who_has_to_end_is_at_the_head_of_the_queue() {
    let world = world_with_an_event("locked-queue");
    world.run_to_end(&[]);
    let mut reader = world.client();
    reader.batch_execute("begin; select from sessionized_events").expect("it is free");
    let head: i32 = reader.query_one("select pg_backend_pid()", &[]).expect("connected").get(0);
    let mut second = world.client();
    let waiting = std::thread::spawn(move || {
        second.batch_execute("begin; lock table sessionized_events; rollback")
    });
    eventually("somebody waits behind the reader", || {
        let waiting = "select count(*) from pg_locks
                       where not granted and relation = 'sessionized_events'::regclass";
        world.value(waiting) == "1"
    });
    let mut report = begin(&world, &["report"]);
    report.wait_for("waiting for a lock on public.sessionized_events until process");
    assert!(report.log().contains(&format!("until process {head} of")), "{}", report.log());
    reader.batch_execute("rollback").expect("it is open");
    let (status, log) = report.wait();
    assert!(status.success(), "{log}");
    waiting.join().expect("no panic").expect("the lock was granted");
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
