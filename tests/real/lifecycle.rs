//! Stopping, dying, signals and refusals of Postgres: the table still equals the batch answer,
//! nothing is written twice, and the balance holds.

use std::collections::BTreeSet;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use crate::oracle::{Event, event, sessions};
use crate::rng::Rng;
use crate::world::{PATIENCE, Running, World, eventually, json};

const PARTITIONS: i32 = 3;
/// Whatever happens, a process that was asked to stop ends within this time.
pub const SOON: Duration = Duration::from_secs(10);

/// Events of some six hundred keys, a little out of order, with stragglers and bad records among
/// them; what was sent is remembered.
pub struct Traffic {
    topic: String,
    producer: ThreadedProducer<DefaultProducerContext>,
    random: Rng,
    clock_ms: i64,
    events: Vec<Event>,
    bad: u64,
}

impl Traffic {
    /// Makes the topic.
    pub fn new(world: &World) -> Traffic {
        world.create_topic(PARTITIONS);
        Traffic {
            topic: world.name.clone(),
            producer: world.producer(&[("linger.ms", "1")]),
            random: Rng::new(7),
            clock_ms: 1_709_632_800_000,
            events: Vec::new(),
            bad: 0,
        }
    }

    pub fn records(&self) -> u64 {
        self.events.len() as u64 + self.bad
    }

    /// Sends this many records; they are in Kafka when this returns.
    pub fn send(&mut self, count: usize) {
        for _ in 0..count {
            self.clock_ms += 500;
            let partition = self.random.below(PARTITIONS as u64) as i32;
            let payload = self.payload();
            let record = BaseRecord::<(), str>::to(&self.topic).partition(partition);
            self.producer.send(record.payload(&payload)).map_err(|(why, _)| why).expect("queued");
        }
        self.producer.flush(PATIENCE).expect("delivered");
    }

    fn payload(&mut self) -> String {
        let random = &mut self.random;
        if random.one_in(100) {
            self.bad += 1;
            return format!("no event, number {}", self.bad);
        }
        let age_ms = if random.one_in(100) { 7_200_000 } else { 10_000 };
        let time_ms = self.clock_ms - random.below(age_ms) as i64;
        let (ip, host) = (random.below(200), random.below(3));
        let event = event(&format!("10.0.0.{ip}"), &format!("host-{host}"), time_ms);
        let payload = json(&event);
        self.events.push(event);
        payload
    }

    /// Runs the job to the end and checks that everything is in the table exactly once.
    pub fn check(&self, world: &World, args: &[&str]) {
        world.run_to_end(args);
        self.compare(world);
    }

    /// Checks that everything sent is in the table and in the balance exactly once.
    pub fn compare(&self, world: &World) {
        let (got, want) = (world.rows(), sessions(&self.events));
        let missing: BTreeSet<_> = want.difference(&got).take(5).collect();
        let too_many: BTreeSet<_> = got.difference(&want).take(5).collect();
        assert!(got == want, "missing: {missing:?}\ntoo many: {too_many:?}");
        let letters = "select count(*), count(distinct (topic, partition, \"offset\")),
                       count(distinct payload) from sessionizer.dead_letters";
        let bad = self.bad.to_string();
        assert_eq!(world.query(letters), [[bad.clone(), bad.clone(), bad]], "dead letters");
        let balance = "select records, open, difference from sessionizer.balance";
        assert_eq!(world.query(balance), [[self.records().to_string(), "0".into(), "0".into()]]);
    }
}

/// Starts the job with quick commits.
pub fn start(world: &World, args: &str) -> Running {
    let args: Vec<&str> = args.split(' ').chain(["--epoch", "50ms"]).collect();
    world.start(&args)
}

/// Waits until this many records are accounted for, as long as the number grows.
pub fn wait_for_records(world: &World, records: u64) {
    let sql = "select coalesce(max(records), 0) from sessionizer.balance";
    let there = || world.value("select to_regclass('sessionizer.balance') is not null") == "t";
    let mut before = 0;
    while before < records {
        eventually(&format!("more than {before} of {records} records in the books"), || {
            let now = if there() { world.value(sql).parse().expect("a number") } else { 0 };
            std::mem::replace(&mut before, now) < now || now >= records
        });
    }
}

/// The number of log lines that contain a text; a level is written as in `WARN ]`.
pub fn count(log: &str, text: &str) -> usize {
    log.lines().filter(|line| line.contains(text)).count()
}

/// Whether a stop was clean. Before the program handles signals, a signal ends it like any other
/// program.
pub fn ends_well(status: ExitStatus, log: &str) -> bool {
    status.success() || status.code().is_none() && log.is_empty()
}

// ---- stopping ------------------------------------------------------------------------------

#[test]
fn a_stop_loses_nothing_and_the_next_start_reads_nothing_again() {
    let world = World::new("stop");
    let mut traffic = Traffic::new(&world);
    let rounds = [("1", "1", "TERM"), ("3", "2", "INT"), ("2", "5", "TERM"), ("4", "1", "INT")];
    for (round, (workers, writers, signal)) in rounds.into_iter().enumerate() {
        traffic.send(1_000);
        let mut job = start(&world, &format!("-w {workers} --sink-connections {writers}"));
        job.wait_for(if round == 0 { "first start" } else { " 0 epochs to replay" });
        wait_for_records(&world, traffic.records());
        traffic.send(1_000);
        wait_for_records(&world, traffic.records() - 500);
        traffic.send(500);
        let asked = Instant::now();
        job.signal(signal);
        let (status, log) = job.wait();
        assert!(status.success(), "{signal}: {status}:\n{log}");
        assert!(asked.elapsed() < SOON, "{signal} took {:?}:\n{log}", asked.elapsed());
        assert!(count(&log, "ERROR]") + count(&log, "WARN ]") == 0, "{log}");
        let unsaved = "select count(*) from sessionizer.shard_progress p
                       left join sessionizer.snapshots s using (job, shard)
                       where s.epoch is distinct from p.epoch";
        assert_eq!(world.value(unsaved), "0", "every shard is saved where it stands");
        assert_eq!(world.imbalance(), "0");
    }
    traffic.check(&world, &["-w", "2"]);
}

#[test]
fn a_stop_before_the_first_commit_is_clean_too() {
    let world = World::new("stop-early");
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    for pause_ms in [0, 20, 50, 100, 200] {
        let job = world.start(&["-w", "2", "--epoch", "1h"]);
        std::thread::sleep(Duration::from_millis(pause_ms));
        let asked = Instant::now();
        job.signal("TERM");
        let (status, log) = job.wait();
        assert!(ends_well(status, &log), "after {pause_ms} ms: {status}:\n{log}");
        assert!(asked.elapsed() < SOON, "{:?}:\n{log}", asked.elapsed());
    }
    traffic.check(&world, &[]);
}

// ---- dying ---------------------------------------------------------------------------------

/// Sends records until told to stop.
pub fn send_until(traffic: &mut Traffic, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        traffic.send(100);
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Checks the balance every 20 ms until told to stop; it must always be zero. Counts the commits
/// that it has seen.
fn watch_balance(world: &World, done: &AtomicBool, seen: &AtomicUsize) {
    let mut client = world.client();
    let there = "select to_regclass('sessionizer.balance') is not null";
    let mut commits = BTreeSet::new();
    while !done.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
        if !client.query_one(there, &[]).expect("it answers").get::<_, bool>(0) {
            continue;
        }
        let rows = client.query("select epoch, difference, * from sessionizer.balance", &[]);
        for row in rows.expect("it answers") {
            assert_eq!(row.get::<_, i64>(1), 0, "the books do not balance: {row:?}");
            commits.insert(row.get::<_, i64>(0));
        }
        seen.store(commits.len(), Ordering::Relaxed);
    }
}

/// Raises the flag even when a test fails, so that its other threads end.
pub struct Raise<'a>(pub &'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn being_killed_or_stopped_at_any_moment_loses_and_repeats_nothing() {
    let world = World::new("kill");
    let mut traffic = Traffic::new(&world);
    let mut moments = Rng::new(1);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _raise = Raise(&done);
        scope.spawn(|| send_until(&mut traffic, &done));
        scope.spawn(|| watch_balance(&world, &done, &AtomicUsize::new(0)));
        let shapes = [("1", "1"), ("3", "2"), ("2", "3"), ("4", "4"), ("1", "3"), ("2", "1")];
        for (round, (workers, writers)) in shapes.into_iter().cycle().take(12).enumerate() {
            // With and without snapshots that come while it runs.
            let interval = ["200ms", "1h"][round / 3 % 2];
            let job = start(
                &world,
                &format!(
                    "-w {workers} --sink-connections {writers} --snapshot-interval {interval}"
                ),
            );
            std::thread::sleep(Duration::from_millis(moments.between(50, 749)));
            // A stop may come while the replay after the previous kill is running.
            let signal = ["KILL", "KILL", "TERM"][round % 3];
            job.signal(signal);
            let (status, log) = job.wait();
            assert!(signal == "KILL" || ends_well(status, &log), "{status}:\n{log}");
            assert!(count(&log, "ERROR]") == 0, "{log}");
        }
    });
    traffic.check(&world, &["-w", "3"]);
}

#[test]
fn the_books_balance_at_every_commit() {
    let world = World::new("balance");
    let mut traffic = Traffic::new(&world);
    let (done, seen) = (AtomicBool::new(false), AtomicUsize::new(0));
    let job = start(&world, "-w 2 --sink-connections 3 --snapshot-interval 500ms");
    std::thread::scope(|scope| {
        let raise = Raise(&done);
        let watch = scope.spawn(|| watch_balance(&world, &done, &seen));
        eventually("ten commits were looked at", || {
            assert!(!watch.is_finished(), "the books do not balance: see above");
            traffic.send(200);
            seen.load(Ordering::Relaxed) >= 10
        });
        wait_for_records(&world, traffic.records());
        drop(raise);
        watch.join().expect("it balances");
    });
    job.stop();
    traffic.check(&world, &[]);
}

// ---- signals -------------------------------------------------------------------------------

#[test]
fn a_hangup_is_a_clean_stop() {
    let world = World::new("hangup");
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    // The test runner may ignore the signal, and that would be inherited.
    let with_hangup = |program: std::process::Command, args: &[&str]| {
        let mut command = std::process::Command::new("env");
        command.env_clear().arg("--default-signal=HUP").arg(program.get_program()).args(args);
        command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    };
    let job = Running::start(with_hangup(world.command(), &["-w", "1"]));
    wait_for_records(&world, traffic.records());
    job.signal("HUP");
    let (status, log) = job.wait();
    assert!(status.success(), "{status}:\n{log}");
    assert!(log.contains("committing what was read"), "{log}");
    traffic.check(&world, &[]);
    let mut waiting = world.command();
    waiting.env("KAFKA_URL", "127.0.0.1:1");
    let mut waiting = Running::start(with_hangup(waiting, &["audit", "--show", "1"]));
    waiting.wait_for("waiting for Kafka");
    waiting.signal("HUP");
    let (status, log) = waiting.wait();
    assert_eq!(status.code(), Some(1), "the audit was stopped:\n{log}");
}

#[test]
fn under_nohup_a_hangup_means_nothing() {
    let world = World::new("nohup");
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    let program = world.command();
    let mut command = std::process::Command::new("nohup");
    command.env_clear().arg(program.get_program()).stdin(std::process::Stdio::null());
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut job = Running::start(command);
    wait_for_records(&world, traffic.records());
    job.signal("HUP");
    traffic.send(500);
    wait_for_records(&world, traffic.records());
    assert!(job.is_running(), "{}", job.log());
    job.stop();
    traffic.check(&world, &[]);
}

// ---- Postgres refusing ---------------------------------------------------------------------

#[test]
fn a_table_that_is_dropped_ends_the_job() {
    let world = World::new("dropped");
    let mut traffic = Traffic::new(&world);
    traffic.send(2_000);
    let job = start(&world, "-w 2 --sink-connections 3");
    wait_for_records(&world, traffic.records());
    world.execute("drop table sessionized_events");
    traffic.send(2_000);
    let (status, log) = job.wait();
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("sessionized_events") && log.contains("dropped"), "{log}");
    assert_eq!((count(&log, "ERROR]"), count(&log, "panicked")), (1, 0), "{log}");
}

#[test]
fn a_permission_that_is_revoked_ends_the_job_and_nothing_is_lost() {
    let mut world = World::new("revoked");
    let role = world.role();
    world.login = Some(role.clone());
    world.execute(&format!(
        "create role {role} login; grant create on database {} to {role};
         grant create, usage on schema public to {role}",
        world.database
    ));
    let mut traffic = Traffic::new(&world);
    traffic.send(2_000);
    let start = || {
        let mut command = world.command();
        command.env("POSTGRES_USER", &role).args(["-w", "2", "--epoch", "50ms"]);
        Running::start(command)
    };
    let job = start();
    wait_for_records(&world, traffic.records());
    world.execute(&format!("revoke insert on sessionized_events from {role}"));
    traffic.send(2_000);
    let (status, log) = job.wait();
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("permission denied for table sessionized_events"), "{log}");
    assert!(log.contains("grant it"), "{log}");
    world.execute(&format!("grant insert on sessionized_events to {role}"));
    let job = start();
    wait_for_records(&world, traffic.records());
    job.stop();
    traffic.check(&world, &[]);
}
