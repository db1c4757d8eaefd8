//! The wall clock of a live job is set by minutes and by days, in both directions: the job
//! continues, the table equals the batch answer, and the log says how far the clocks are apart.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::cluster::Hosts;
use crate::lifecycle::wait_for_records;
use crate::oracle::{Event, event, sessions};
use crate::world::{Running, World, chrono_now_ms};

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * HOUR_MS;
/// Whatever a clock does, a row that is due is written within this time.
const SOON: Duration = Duration::from_secs(5);

/// The log line of a job that begins to read.
const READS: &str = "reading begins";

/// The library that shifts a clock, built once and kept in cargo's target directory.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let name = format!("shifted-clock-{}.so", std::process::id());
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/real/shifted_clock.c");
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .args([library.as_os_str(), source.as_ref(), "-ldl".as_ref()])
            .status();
        assert!(status.expect("a C compiler is there").success());
        library
    })
}

/// The wall clock of one machine.
struct Clock {
    file: PathBuf,
}

impl Clock {
    fn new(world: &World, machine: &str) -> Clock {
        let file = std::env::temp_dir().join(format!("{}-{machine}.clock", world.name));
        world.write(&file, "01234567");
        let clock = Clock { file };
        clock.set(0);
        clock
    }

    /// Sets the clock this many milliseconds ahead. The file is mapped, so it is written in place.
    fn set(&self, ahead_ms: i64) {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options().write(true).open(&self.file).expect("it is there");
        file.write_all_at(&ahead_ms.to_ne_bytes(), 0).expect("written");
    }

    /// The job on this machine.
    fn command(&self, world: &World, args: &str) -> Command {
        let mut command = world.command();
        command.env("LD_PRELOAD", library()).env("TEST_CLOCK", &self.file);
        command.args(["--epoch", "50ms", "--out-of-orderness", "0s", "--idle-timeout", "1h"]);
        command.args(args.split_whitespace());
        command
    }
}

/// Events of one visitor, each a session; they are sent one by one.
struct Visits<'a> {
    world: &'a World,
    partitions: i32,
    events: Vec<Event>,
    next_ms: i64,
}

impl<'a> Visits<'a> {
    fn new(world: &'a World, partitions: i32) -> Self {
        world.create_topic(partitions);
        Visits { world, partitions, events: vec![], next_ms: chrono_now_ms() - 8 * HOUR_MS }
    }

    /// Sends one to each partition. Each closes the session before it, whose row must be there
    /// soon.
    fn next(&mut self) {
        let closed = self.events.clone();
        self.next_ms += 6 * MINUTE_MS;
        for partition in 0..self.partitions {
            let event = event(&format!("visitor-{partition}"), "h", self.next_ms);
            self.world.send_events(partition, [&event]);
            self.events.push(event);
        }
        let (sent, want) = (Instant::now(), sessions(&closed));
        let there = || match self.world.value("select to_regclass('sessionized_events') is null") {
            null if null == "t" => BTreeSet::new(),
            _ => self.world.rows(),
        };
        while there() != want {
            let rows = there();
            assert!(sent.elapsed() < SOON, "rows do not come: {rows:?}, not {want:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Checks that everything is in the table once the job has ended, and that the audit agrees.
    fn check(&self) {
        self.world.run_to_end(&[]);
        assert_eq!(self.world.rows(), sessions(&self.events));
        assert_eq!(self.world.imbalance(), "0");
        let audit = self.world.command().arg("audit").output().expect("it can be run");
        assert!(audit.status.success(), "{}", String::from_utf8_lossy(&audit.stdout));
    }
}

fn records(world: &World) -> u64 {
    let records = world.value("select records from sessionizer.balance");
    records.parse().expect("a number")
}

fn dead(world: &World) -> String {
    world.value("select count(*) from sessionizer.dead_letters where reason = 'future'")
}

/// An event that is too far ahead: a dead letter, and nothing else.
fn send_ahead(world: &World, ahead_ms: i64) {
    let (before, dead_before) = (records(world), dead(world));
    world.send_events(0, [&event("ahead", "h", chrono_now_ms() + ahead_ms)]);
    wait_for_records(world, before + 1);
    let want = dead_before.parse::<u64>().expect("a count") + 1;
    assert_eq!(dead(world), want.to_string(), "an event {} h ahead", ahead_ms / HOUR_MS);
}

/// Checks that epochs advance about as fast as time. On a busy machine, one measurement may be off.
fn check_the_speed_of_epochs(world: &World) {
    let mut speeds = Vec::new();
    while !speeds.last().is_some_and(|speed| (0.7..1.3).contains(speed)) {
        assert!(speeds.len() < 5, "epochs go {speeds:?} times as fast as time");
        speeds.push(speed_of_epochs(world));
    }
}

/// How fast epochs advance, as a multiple of real time.
fn speed_of_epochs(world: &World) -> f64 {
    let last = || -> i64 {
        let epoch = world.value("select max(epoch) from sessionizer.shard_progress");
        epoch.parse().expect("a number")
    };
    let (began, before) = (Instant::now(), last());
    std::thread::sleep(Duration::from_secs(2));
    (last() - before) as f64 / 1_000.0 / began.elapsed().as_secs_f64()
}

#[test]
fn a_clock_that_is_set_neither_stops_the_job_nor_changes_the_answer() {
    let world = World::new("clock");
    let clock = Clock::new(&world, "it");
    let mut visits = Visits::new(&world, 2);
    // So that all events are valid by a clock that is a day behind.
    let mut job = Running::start(clock.command(&world, "--max-future 25h"));
    job.wait_for(READS);
    for _ in 0..3 {
        visits.next();
    }
    for (ahead_ms, says) in [
        // During a start the clock advances, and epochs do not.
        (-2 * MINUTE_MS - 5_000, "the clock of this machine is 2 min "),
        (-10 * MINUTE_MS, "the clock of this machine is 10 min behind the job's epochs"),
        (-DAY_MS, "the clock of this machine is 24 h behind the job's epochs"),
        (DAY_MS, "the clock of this machine is 24 h ahead of the job's epochs"),
        (0, "the clock of this machine agrees with the job's epochs again"),
    ] {
        clock.set(ahead_ms);
        for _ in 0..3 {
            visits.next();
        }
        send_ahead(&world, 60 * DAY_MS);
        job.wait_for(says);
        check_the_speed_of_epochs(&world);
        assert_eq!(world.imbalance(), "0");
    }
    job.stop();
    visits.check();
}

#[test]
fn a_job_that_ran_a_day_ahead_goes_on_at_once_when_the_clock_is_right_again() {
    let world = World::new("clock-ahead");
    let clock = Clock::new(&world, "it");
    let mut visits = Visits::new(&world, 1);
    clock.set(DAY_MS);
    let mut job = Running::start(clock.command(&world, ""));
    job.wait_for(READS);
    for _ in 0..2 {
        visits.next();
    }
    // First the clock is corrected under the live job; then that dies, and another one begins.
    clock.set(0);
    for _ in 0..2 {
        job.wait_for("the clock of this machine is 24 h behind the job's epochs");
        for _ in 0..3 {
            visits.next();
        }
        let ahead = "select as_of > now() + interval '23 hours' from sessionizer.balance";
        assert_eq!(world.value(ahead), "t");
        // By the epochs it would be an event.
        send_ahead(&world, 20 * HOUR_MS);
        visits.next();
        job.kill();
        job = Running::start(clock.command(&world, ""));
        job.wait_for(READS);
    }
    job.stop();
    visits.check();
}

#[test]
fn a_clock_that_is_corrected_forward_makes_no_dead_letters() {
    let world = World::new("clock-behind");
    let clock = Clock::new(&world, "it");
    let mut visits = Visits::new(&world, 1);
    clock.set(-9 * HOUR_MS);
    let mut job = Running::start(clock.command(&world, ""));
    job.wait_for(READS);
    clock.set(0);
    std::thread::sleep(Duration::from_millis(200));
    for _ in 0..3 {
        visits.next();
    }
    assert_eq!(dead(&world), "0");
    job.stop();
    visits.check();
}

#[test]
fn processes_whose_clocks_are_hours_apart_go_on_together_and_report_it() {
    for (name, ahead_ms) in [("ahead", 5 * HOUR_MS), ("behind", -5 * HOUR_MS)] {
        let world = World::new(&format!("clock-cluster-{name}"));
        let mut visits = Visits::new(&world, 2);
        let hosts = Hosts::local(&world, 2);
        let clocks = [Clock::new(&world, "0"), Clock::new(&world, "1")];
        clocks[1].set(ahead_ms);
        let mut all: Vec<Running> = (0..2)
            .map(|process| {
                let mut command = clocks[process].command(&world, "-w 1 --max-future 25h");
                command.args(hosts.place(process));
                Running::start(command)
            })
            .collect();
        all.iter_mut().for_each(|process| process.wait_for(READS));
        for _ in 0..3 {
            visits.next();
        }
        let other = if name == "ahead" { "behind" } else { "ahead of" };
        let this = if name == "ahead" { "ahead of" } else { "behind" };
        let addresses = &hosts.addresses;
        all[0].wait_for(&format!(
            "the clock of process 1 ({}) is 5 h {this} the one here",
            addresses[1]
        ));
        all[1].wait_for(&format!(
            "the clock of process 0 ({}) is 5 h {other} the one here",
            addresses[0]
        ));
        all[1].wait_for(&format!("the clock of this machine is 5 h {this} the job's epochs"));
        check_the_speed_of_epochs(&world);
        clocks[0].set(-ahead_ms);
        for _ in 0..3 {
            visits.next();
        }
        assert_eq!(world.imbalance(), "0");
        all[0].signal("TERM");
        for process in all {
            let (status, log) = process.wait();
            assert!(status.success(), "{status}:\n{log}");
        }
        visits.check();
    }
}

#[test]
fn what_a_version_without_the_column_has_bound_is_read_again_as_it_was() {
    let world = World::new("clock-column");
    let clock = Clock::new(&world, "it");
    let mut visits = Visits::new(&world, 2);
    let mut job = Running::start(clock.command(&world, "--snapshot-interval 1h"));
    job.wait_for(READS);
    for _ in 0..3 {
        visits.next();
    }
    job.kill();
    // As a version without numbered migrations has left it.
    world.execute(
        "drop table sessionizer.schema_version;
         alter table sessionizer.bindings drop column clock_ms",
    );
    let mut job = Running::start(clock.command(&world, ""));
    job.wait_for(READS);
    for _ in 0..2 {
        visits.next();
    }
    job.stop();
    visits.check();
    let clocks = "select count(*) > 0 from sessionizer.bindings where clock_ms is not null";
    assert_eq!(world.value(clocks), "t");
}
