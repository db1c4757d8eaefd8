//! Faults of Postgres and Kafka while the job runs, one by one: the job waits, warns once,
//! continues by itself, and the table is right. Faults that waiting cannot resolve end it.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rdkafka::mocking::MockCluster;
use rdkafka::types::RDKafkaApiKey;

use crate::connect::write;
use crate::kafka::{a_commit_waits, at_once, visits};
use crate::lifecycle::{Traffic, count, wait_for_records};
use crate::oracle::{event, sessions};
use crate::outage::wait_for_times;
use crate::postgres::{MINUTE, TEN, jdbc, world_with_an_event};
use crate::refusal::refused;
use crate::server::Server;
use crate::skipped::skipped;
use crate::watch::{Watched, get};
use crate::world::{Running, World, eventually};

/// Starts the job with short epochs, changes to its environment, and a log line for each attempt.
fn start_with(world: &World, writers: &str, env: &[(&str, &str)]) -> Running {
    let mut command = world.command();
    command
        .env("RUST_LOG", "info,sessionizer::dataflow::commit::writer=debug")
        .envs(env.iter().copied())
        .args(["-w", "2", "--sink-connections", writers, "--epoch", "50ms"]);
    Running::start(command)
}

/// A job that has committed something, with a single connection, so that a fault is one warning.
fn running(test: &str) -> (World, Traffic, Running) {
    let world = World::new(test);
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    let job = start_with(&world, "1", &[]);
    wait_for_records(&world, traffic.records());
    (world, traffic, job)
}

/// Waits until the job has retried several times, for this reason.
fn keeps_trying(job: &mut Running, reason: &str) {
    eventually(reason, || {
        assert!(job.is_running(), "it ended:\n{}", job.log());
        let log = job.log();
        log.lines().filter(|line| line.contains("failing for") && line.contains(reason)).count() > 3
    });
}

/// Checks that the fault is over: everything is committed, there was one warning, and the table is
/// right.
fn assert_healed(world: &World, traffic: &Traffic, mut job: Running) -> String {
    job.wait_for("commits again");
    wait_for_records(world, traffic.records());
    let log = job.stop();
    assert_eq!((count(&log, "WARN ]"), count(&log, "ERROR]")), (1, 0), "{log}");
    assert_eq!(count(&log, "cannot commit, will keep trying"), 1, "{log}");
    assert_eq!(count(&log, "commits again"), 1, "{log}");
    traffic.check(world, &["-w", "3"]);
    log
}

/// Makes this many writes to the table fail. A sequence counts them, as no rollback undoes it.
fn raise(world: &World, code: &str, times: u32) {
    world.execute(&format!(
        "create sequence raised;
         create function raise() returns trigger language plpgsql as $$ begin
             if nextval('public.raised') <= {times} then
                 raise exception 'raised by a test' using errcode = '{code}';
             end if;
             return null;
         end $$;
         create trigger raise before insert on sessionized_events
             for each statement execute function raise();"
    ));
}

/// When the log contained something, in milliseconds since 1970.
fn said_at(log: &str, text: &str) -> i64 {
    let line = log.lines().find(|line| line.contains(text)).expect("it was said");
    let time = line.trim_start_matches('[').split(' ').next().expect("a time");
    chrono::DateTime::parse_from_rfc3339(time).expect("a time").timestamp_millis()
}

/// Ends the connections of the job.
fn cut(world: &World) {
    world.query(
        "select pg_terminate_backend(pid) from pg_stat_activity
         where application_name like 'sessionizer/%' and datname = current_database()",
    );
}

/// Takes a lock that commits need, until the client is dropped.
fn lock(world: &World, table: &str) -> postgres::Client {
    let mut client = world.client();
    client.batch_execute(&format!("begin; lock table {table}")).expect("locked");
    client
}

// ---- Postgres that refuses for now ---------------------------------------------------------

#[test]
fn a_serialization_failure_or_a_deadlock_is_tried_again_after_growing_pauses() {
    at_once([("serialization", "40001"), ("conflict", "40P01")], |(name, code)| {
        let (world, mut traffic, mut job) = running(name);
        raise(&world, code, 5);
        traffic.send(2_000);
        keeps_trying(&mut job, &format!("({code})"));
        let log = assert_healed(&world, &traffic, job);
        assert_eq!(count(&log, "failing for"), 5, "as often as it was refused:\n{log}");
        let took_ms = said_at(&log, "commits again") - said_at(&log, "WARN ]");
        // 50, 100, 200, 400 and 800 ms.
        assert!(took_ms >= 1_500, "five tries within {took_ms} ms:\n{log}");
    });
}

#[test]
fn a_deadlock_that_the_job_loses_is_tried_again() {
    let world = World::new("deadlock");
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    // The job looks for deadlocks after three seconds of waiting, the other one does not.
    let url = jdbc(&world, "options=-c%20deadlock_timeout%3D3s");
    let job = start_with(&world, "1", &[("POSTGRES_URL", &url)]);
    wait_for_records(&world, traffic.records());
    let mut other = world.client();
    other.batch_execute("set deadlock_timeout to '1h'").expect("set");
    other.batch_execute("begin; lock table sessionizer.epochs in share mode").expect("locked");
    traffic.send(500);
    eventually("a commit waits", || a_commit_waits(&world));
    let circle = "update sessionizer.shard_progress set epoch = epoch";
    other.batch_execute(circle).expect("the job has lost");
    other.batch_execute("rollback").expect("unlocked");
    let log = assert_healed(&world, &traffic, job);
    assert!(log.contains("deadlock detected (40P01)"), "{log}");
}

/// A small file system below the directory of a server.
struct Disk(PathBuf);

impl Disk {
    /// `None` where this user may not mount one.
    fn mount(server: &Server) -> Option<Disk> {
        let disk = Disk(server.directory.join("disk"));
        std::fs::create_dir(&disk.0).expect("a directory");
        let owner = std::fs::metadata(server.directory.join("data")).expect("there");
        let (user, group) = (owner.uid(), owner.gid());
        let options = format!("size=4m,mode=700,uid={user},gid={group}");
        disk.run("mount", &["-t", "tmpfs", "-o", &options, "tmpfs"]).then_some(disk)
    }

    fn run(&self, command: &str, args: &[&str]) -> bool {
        let mut command = Command::new(command);
        let status = command.args(args).arg(&self.0).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    }

    /// Fills it completely.
    fn fill(&self) {
        let mut ballast = std::fs::File::create(self.0.join("ballast")).expect("made");
        while ballast.write_all(&[1; 4_096]).is_ok() {}
    }

    fn grow(&self) {
        assert!(self.run("mount", &["-o", "remount,size=256m"]), "it cannot grow");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, because the server still has files open there.
        self.run("umount", &["-l"]);
    }
}

#[test]
fn a_full_disk_is_waited_for() {
    let server = Server::start("full");
    let disk = Disk::mount(&server);
    let world = World::on(&server, "full");
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    let mut job = start_with(&world, "1", &[]);
    wait_for_records(&world, traffic.records());
    match &disk {
        Some(disk) => {
            let place = disk.0.display();
            world.execute(&format!("create tablespace small location '{place}'"));
            world.execute("alter table sessionized_events set tablespace small");
            disk.fill();
        }
        None => {
            skipped("a real full disk", "this user may not mount one; a trigger raises the error");
            raise(&world, "53100", 7);
        }
    }
    traffic.send(5_000);
    keeps_trying(&mut job, "(53100)");
    traffic.send(500);
    keeps_trying(&mut job, "(53100)");
    if let Some(disk) = &disk {
        assert!(!job.log().contains("commits again"), "{}", job.log());
        disk.grow();
    }
    assert_healed(&world, &traffic, job);
}

#[test]
fn a_database_that_is_read_only_is_waited_for() {
    let world = World::new("read-only");
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    let job = start_with(&world, "1", &[("SESSIONIZER_HTTP", "127.0.0.1:0")]);
    let Watched { mut job, address } = Watched::from(job);
    wait_for_records(&world, traffic.records());
    let set = |to: &str| {
        let database = &world.database;
        world.execute(&format!(
            "begin read write;
             alter database {database} set default_transaction_read_only to {to}; commit"
        ));
    };
    set("on");
    cut(&world);
    traffic.send(500);
    keeps_trying(&mut job, "database does not allow writes");
    eventually("the cause is counted", || {
        let counted = "sessionizer_postgres_retries_total{cause=\"read_only\"}";
        get(&address, "/metrics").body.contains(counted)
    });
    set("off");
    assert_healed(&world, &traffic, job);
}

#[test]
fn a_server_in_recovery_is_waited_for() {
    let server = Server::start("recovery");
    let world = World::on(&server, "recovery");
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    let recover = || {
        server.act("stop");
        let data = server.directory.join("data");
        write(&data.join("standby.signal"), &data, b"", 0o600);
        server.act("start");
        assert_eq!(world.value("select pg_is_in_recovery()"), "t");
    };
    let promote = || world.execute("select pg_promote()");
    // Recovery looks for more to replay, and for a promotion, at these intervals.
    world.execute("alter system set wal_retrieve_retry_interval to '100ms'");
    recover();
    let mut job = start_with(&world, "1", &[]);
    job.wait_for("waiting for Postgres");
    assert!(job.log().contains("database does not allow writes"), "{}", job.log());
    promote();
    wait_for_records(&world, traffic.records());
    recover();
    traffic.send(500);
    keeps_trying(&mut job, "database does not allow writes");
    promote();
    assert_healed(&world, &traffic, job);
}

#[test]
fn too_many_connections_are_waited_for_at_the_start_and_later() {
    let mut world = World::new("connections");
    let role = world.role();
    // Only the owner of the schema sessionizer, and roles that it trusts, may use it.
    world.login = Some(role.clone());
    let database = &world.database;
    world.execute(&format!(
        "create role {role} login; grant create on database {database} to {role};
         grant create, usage on schema public to {role}"
    ));
    let limit =
        |to: i32| world.execute(&format!("alter database {database} connection limit {to}"));
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    limit(0);
    let mut job = start_with(&world, "3", &[("POSTGRES_USER", &role)]);
    job.wait_for("waiting for Postgres");
    assert!(job.log().contains("(53300)"), "{}", job.log());
    // The start needs one, each worker another, and of three writers one keeps it.
    limit(1);
    wait_for_times(&mut job, "cannot commit, will keep trying", 2);
    limit(-1);
    wait_for_records(&world, traffic.records());
    let before = count(&job.log(), "commits again");
    limit(0);
    cut(&world);
    traffic.send(500);
    keeps_trying(&mut job, "(53300)");
    limit(-1);
    wait_for_times(&mut job, "commits again", before + 3);
    wait_for_records(&world, traffic.records());
    let log = job.stop();
    assert_eq!(count(&log, "ERROR]"), 0, "{log}");
    for writer in 0..3 {
        let times = count(&log, &format!("writer {writer}: cannot commit"));
        assert!((1..=2).contains(&times), "writer {writer} said so {times} times:\n{log}");
    }
    traffic.check(&world, &[]);
}

#[test]
fn a_commit_that_is_cancelled_is_tried_again() {
    let (world, mut traffic, mut job) = running("cancelled");
    let block = lock(&world, "sessionizer.bindings");
    traffic.send(500);
    eventually("it was cancelled again and again", || {
        assert!(job.is_running(), "it ended:\n{}", job.log());
        world.query(
            "select pg_cancel_backend(pid) from pg_stat_activity
             where datname = current_database() and wait_event_type = 'Lock'",
        );
        count(&job.log(), "failing for") > 3
    });
    keeps_trying(&mut job, "canceling statement due to user request (57014)");
    drop(block);
    assert_healed(&world, &traffic, job);
}

#[test]
fn a_table_that_somebody_holds_longer_than_a_timeout_is_waited_for() {
    let cases = [("statement_timeout", "(57014)"), ("lock_timeout", "(55P03)")];
    at_once(cases, |(setting, code)| {
        let world = World::new(setting);
        let mut traffic = Traffic::new(&world);
        traffic.send(500);
        let url = jdbc(&world, &format!("options=-c%20{setting}%3D400"));
        let mut job = start_with(&world, "1", &[("POSTGRES_URL", &url)]);
        wait_for_records(&world, traffic.records());
        let block = lock(&world, "sessionized_events");
        traffic.send(2_000);
        keeps_trying(&mut job, code);
        drop(block);
        assert_healed(&world, &traffic, job);
    });
}

// ---- Kafka ---------------------------------------------------------------------------------

/// A broker in this process: a real one has no partition without a leader unless it is one of
/// several. The test's topic has two partitions.
pub fn mock(test: &str) -> (MockCluster<'static, impl rdkafka::ClientContext>, World) {
    let mock = MockCluster::new(1).expect("a broker");
    // In later versions, its answers name a partition's leader without looking for one.
    mock.apiversion(RDKafkaApiKey::Produce, Some(0), Some(9)).expect("set");
    mock.apiversion(RDKafkaApiKey::Fetch, Some(0), Some(11)).expect("set");
    let mut world = World::new(test);
    world.kafka = mock.bootstrap_servers();
    mock.create_topic(&world.name, 2, 1).expect("a topic");
    (mock, world)
}

#[test]
fn a_partition_without_a_leader_is_named_once_and_the_others_are_read() {
    let (mock, world) = mock("leader");
    let events = visits("a", 40);
    world.send_events(0, &events[..10]);
    world.send_events(1, &events[10..20]);
    let mut job = crate::kafka::start(&world, &["-w", "2"]);
    crate::kafka::wait_for_records(&world, 20);
    mock.partition_leader(&world.name, 1, None).expect("set");
    job.wait_for(&format!("{}[1] has no leader", world.name));
    world.send_events(0, &events[20..30]);
    crate::kafka::wait_for_records(&world, 30);
    mock.partition_leader(&world.name, 1, Some(1)).expect("set");
    job.wait_for(&format!("{}[1] has a leader again", world.name));
    world.send_events(1, &events[30..]);
    crate::kafka::wait_for_records(&world, 40);
    let log = job.stop();
    assert_eq!((count(&log, "WARN "), count(&log, "ERROR")), (1, 0), "{log}");
    world.run_to_end(&[]);
    assert_eq!(world.rows(), sessions(&events));
    assert_eq!(world.imbalance(), "0");
}

// ---- somebody else -------------------------------------------------------------------------

#[test]
fn a_row_of_ours_that_somebody_else_has_written_ends_the_job() {
    let world = world_with_an_event("written");
    let job = crate::kafka::start(&world, &[]);
    crate::kafka::wait_for_records(&world, 1);
    world.execute(
        "insert into sessionized_events
         values ('10.0.0.1', 'h', '2024-03-05T10:00:00Z', '2024-03-05T10:07:00Z', 3)",
    );
    let theirs = world.rows();
    // A day later: the session closes.
    world.send_events(0, &[event("10.0.0.2", "h", TEN + 1_440 * MINUTE)]);
    let (status, log) = job.wait();
    assert_eq!(status.code(), Some(2), "{log}");
    for part in ["(23505)", "is in public.sessionized_events already", "somebody else"] {
        assert!(log.contains(part), "{part:?} is missing in\n{log}");
    }
    assert_eq!((world.rows(), world.imbalance()), (theirs, "0".to_owned()));
}

#[test]
fn a_table_that_keeps_what_late_events_replace_is_refused() {
    let world = world_with_an_event("taken");
    world.run_to_end(&[]);
    let rows = world.rows();
    world.execute(
        "create function keep() returns trigger language plpgsql as 'begin return null; end';
         create trigger keep before delete on sessionized_events
             for each row execute function keep();",
    );
    world.send_events(0, &[event("10.0.0.1", "h", TEN + MINUTE)]);
    let says = ["0 rows of public.sessionized_events were deleted where 1", "keep (public.keep)"];
    refused(&world, &[], &[], 2, &says);
    assert_eq!((world.rows(), world.imbalance()), (rows, "0".to_owned()));
    world.execute("drop trigger keep on sessionized_events");
    world.run_to_end(&[]);
    assert_eq!(world.rows(), world.answer(&world.name));
}
