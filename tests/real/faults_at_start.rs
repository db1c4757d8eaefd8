//! Faults during a start: it waits for those that may resolve themselves, and can be interrupted;
//! others are reported at once.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::connect::server_with_tls;
use crate::faults::mock;
use crate::kafka::{at_once, visits, wait_for_records};
use crate::lifecycle::{Traffic, count, start};
use crate::oracle::{event, sessions};
use crate::postgres::{MINUTE, TEN, world_with_an_event};
use crate::refusal::{refused, try_run};
use crate::world::{Running, World, finish};

/// A stop must not take longer than this, even on a busy machine; a start would wait for a minute.
const QUICKLY: Duration = Duration::from_secs(10);

/// Stops a job that is waiting in its start, which is not a fault.
fn assert_stops(job: Running) {
    let asked = Instant::now();
    job.signal("TERM");
    let (status, log) = job.wait();
    let took = asked.elapsed();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(took < QUICKLY, "after {took:?}:\n{log}");
    assert_eq!((count(&log, "stopped while starting"), count(&log, "ERROR]")), (1, 0), "{log}");
}

#[test]
fn a_stop_while_a_start_waits_is_quick_and_no_fault() {
    let world = world_with_an_event("impatient");
    let postgres = |address: &str| format!("jdbc:postgresql://{address}/{}", world.database);
    let nobody = "127.0.0.1:1";
    at_once(
        [("KAFKA_URL", nobody.to_owned()), ("POSTGRES_URL", postgres(nobody))],
        |(name, url)| {
            let mut command = world.command();
            command.env(name, &url);
            let mut job = Running::start(command);
            job.wait_for("waiting for ");
            assert!(job.log().contains("refused"), "{}", job.log());
            assert_stops(job);
        },
    );
    // A server that accepts connections and never answers.
    at_once(["KAFKA_URL", "POSTGRES_URL"], |name| {
        let mute = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = mute.local_addr().expect("bound").to_string();
        let url = if name == "KAFKA_URL" { address } else { postgres(&address) };
        let mut command = world.command();
        command.env(name, &url);
        let mut job = Running::start(command);
        let connection = mute.accept().expect("the job comes");
        job.wait_for("waiting for ");
        assert_stops(job);
        drop(connection);
    });
    assert_eq!(world.value("select to_regclass('sessionizer.jobs') is null"), "t");
    world.run_to_end(&[]);
    assert_eq!(world.rows(), world.answer(&world.name));
}

#[test]
fn a_start_waits_until_every_partition_has_a_leader() {
    let (mock, world) = mock("leaders");
    let events = visits("a", 20);
    world.send_events(0, &events[..10]);
    world.send_events(1, &events[10..]);
    let mut running = crate::kafka::start(&world, &[]);
    wait_for_records(&world, 20);
    mock.partition_leader(&world.name, 1, None).expect("set");
    running.wait_for("has no leader");
    let mut next = world.start(&["--until-end"]);
    next.wait_for(&format!(
        "waiting for Kafka at {}: {}[1] has no leader",
        world.kafka, world.name
    ));
    assert!(running.is_running(), "a start that cannot read disturbs nobody");
    mock.partition_leader(&world.name, 1, Some(1)).expect("set");
    let (status, log) = next.wait();
    assert!(status.success(), "{status}:\n{log}");
    assert_eq!(running.wait().0.code(), Some(3));
    assert_eq!((world.rows(), world.imbalance()), (sessions(&events), "0".to_owned()));
}

#[test]
fn a_certificate_that_does_not_verify_is_refused_at_once() {
    let (server, ours, other) = server_with_tls("distrust");
    let world = World::on(&server, "distrust");
    world.create_topic(1);
    let port = world.server.rsplit_once(':').expect("a port").1;
    let cases = [
        ("localhost", "verify-full", &other, "issuer"),
        ("127.0.0.1", "verify-ca", &other, "issuer"),
        ("127.0.0.1", "verify-full", &ours, "mismatch"),
    ];
    at_once(cases, |(host, mode, authority, reason)| {
        let trust = format!("sslmode={mode}&sslrootcert={}", authority.display());
        let url = format!("jdbc:postgresql://{host}:{port}/{}?{trust}", world.database);
        let mut command = world.command();
        command.env("POSTGRES_URL", url).args(["--start-timeout", "1h"]);
        let (status, log) = finish(command);
        assert_eq!(status.code(), Some(2), "{log}");
        for part in ["certificate", reason, "sslmode", "sslrootcert", "POSTGRES_URL"] {
            assert!(log.contains(part), "{part:?} is missing in\n{log}");
        }
        assert!(!log.contains("waiting for Postgres"), "{log}");
    });
}

#[test]
fn a_missing_right_is_reported_before_anything_is_read() {
    let world = world_with_an_event("rights");
    let role = world.role();
    world.execute(&format!(
        "create role {role} login; grant create on database {} to {role};
         create table sessionized_events (
             ip text, host text, session_start timestamptz(3), session_end timestamptz(3),
             num_logs bigint, primary key (ip, host, session_start))",
        world.database
    ));
    let env = [("POSTGRES_USER", &*role)];
    let grant = |rights: &str| {
        world.execute(&format!(
            "revoke all on sessionized_events from {role};
             grant {rights} on sessionized_events to {role}"
        ));
    };
    for (granted, missing) in [
        ("select, insert", "delete"),
        ("select, delete", "insert"),
        ("insert, delete", "select"),
        ("select", "insert, delete"),
        ("select, delete, insert (ip, host)", "insert"),
    ] {
        grant(granted);
        let lacks = format!("the login {role} lacks the right to {missing} on the table");
        let log = refused(&world, &[], &env, 2, &[&lacks, "public.sessionized_events; grant it"]);
        assert_eq!(count(&log, "ERROR]"), 1, "{log}");
    }
    assert_eq!(world.value("select to_regclass('sessionizer.jobs') is null"), "t");
    grant("select, delete, insert (ip, host, session_start, session_end, num_logs)");
    for time in [TEN, TEN - MINUTE] {
        world.send_events(0, &[event("10.0.0.1", "h", time)]);
        let (code, log) = try_run(&world, &[], &env);
        assert_eq!(code, 0, "{log}");
        assert_eq!(world.rows(), world.answer(&world.name));
    }
}

#[test]
fn a_snapshot_that_is_damaged_is_named_and_nothing_is_written() {
    let world = World::new("damaged");
    let mut traffic = Traffic::new(&world);
    traffic.send(2_000);
    let job = start(&world, "-w 2");
    crate::lifecycle::wait_for_records(&world, traffic.records());
    job.stop();
    traffic.send(2_000);
    world.execute("create table kept as select * from sessionizer.snapshots");
    let epoch = world.value("select epoch from sessionizer.snapshots where shard = 77");
    let durable = || {
        let tables = [
            "select shard, epoch, closed, open, dead from sessionizer.shard_progress order by 1",
            "select * from sessionizer.epochs order by epoch",
            "select * from sessionizer.bindings order by epoch, topic, partition",
            "select shard, epoch, md5(data) from sessionizer.snapshots order by 1",
            "select * from sessionizer.dead_letters order by topic, partition, \"offset\"",
        ];
        (world.rows(), tables.map(|table| world.query(table)))
    };
    let last = "length(data) - 1";
    for (damage, says) in [
        (format!("set_byte(data, {last}, get_byte(data, {last}) # 255)"), "cannot be read: it"),
        ("set_byte(data, 5, get_byte(data, 5) # 1)".to_owned(), "its checksum does not match"),
        ("set_byte(data, 4, 9)".to_owned(), "its format is version 9"),
        ("''".to_owned(), "it does not begin like a snapshot"),
    ] {
        let update = format!("update sessionizer.snapshots set data = {damage} where shard = 77");
        world.execute(&update);
        let before = durable();
        let place = format!("the snapshot of shard 77 at epoch {epoch} (sessionizer.snapshots)");
        let log = refused(&world, &["-w", "2"], &[], 2, &[&place, says, "backup"]);
        assert_eq!(count(&log, "ERROR]"), 1, "{log}");
        assert!(durable() == before, "something was written:\n{log}");
        world.execute(
            "update sessionizer.snapshots s set data = kept.data from kept
             where kept.shard = s.shard",
        );
    }
    traffic.check(&world, &["-w", "3"]);
}
