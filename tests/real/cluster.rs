//! Several processes as one job, on loopback: the table equals the batch answer whatever happens to
//! one of them, and the others end with its name.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::lifecycle::{Raise, SOON, Traffic, count, ends_well, send_until, wait_for_records};
use crate::rng::Rng;
use crate::world::{Running, World, eventually};

/// The exit code of a process that has lost another.
pub const LOST: Option<i32> = Some(4);
/// The loss of a process is noticed within this time: two seconds, and some for a busy machine. If
/// its connections did not close, it would take the ten seconds of --peer-timeout.
const NOTICED: Duration = Duration::from_secs(8);

/// Free addresses on loopback, below the range of ephemeral ports.
pub fn addresses(count: usize) -> Vec<String> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + (std::process::id() % 90) as u16 * 100;
    let free = std::iter::repeat_with(|| first + NEXT.fetch_add(1, Ordering::Relaxed) % 1_000)
        .map(|port| format!("127.0.0.1:{port}"))
        .filter(|address| TcpListener::bind(address).is_ok());
    free.take(count).collect()
}

/// Where the processes of a cluster are.
pub struct Hosts {
    pub addresses: Vec<String>,
    pub file: PathBuf,
}

impl Hosts {
    pub fn new(world: &World, addresses: Vec<String>) -> Hosts {
        let name = format!("{}-{}", world.name, addresses[0].replace([':', '.'], "-"));
        let file = std::env::temp_dir().join(name);
        world.write(&file, &addresses.join("\n"));
        Hosts { addresses, file }
    }

    pub fn local(world: &World, processes: usize) -> Hosts {
        Hosts::new(world, addresses(processes))
    }

    /// The arguments that make a process one of this cluster.
    pub fn place(&self, process: usize) -> Vec<String> {
        let file = self.file.to_str().expect("a path in UTF-8");
        ["-n", &self.addresses.len().to_string(), "-p", &process.to_string(), "--hostfile", file]
            .map(str::to_owned)
            .to_vec()
    }

    /// Starts one process, with quick commits.
    fn start_one(&self, world: &World, process: usize, args: &str) -> Running {
        let mut command = world.command();
        command.args(self.place(process)).args(args.split(' ')).args(["--epoch", "50ms"]);
        Running::start(command)
    }

    /// Starts all.
    fn start(&self, world: &World, args: &str) -> Vec<Running> {
        (0..self.addresses.len()).map(|process| self.start_one(world, process, args)).collect()
    }
}

fn start(world: &World, processes: usize, args: &str) -> Vec<Running> {
    Hosts::local(world, processes).start(world, args)
}

/// Starts all and waits until they read.
fn running(world: &World, processes: usize, args: &str) -> Vec<Running> {
    let mut all = start(world, processes, args);
    for process in &mut all {
        process.wait_for("reading begins");
    }
    all
}

fn wait(all: Vec<Running>) -> Vec<(ExitStatus, String)> {
    all.into_iter().map(Running::wait).collect()
}

/// Waits until all have ended, after one of them was killed or asked to stop. A process that had
/// not connected to the others by then rightly waits for them; no one restarts them here, so it is
/// asked to stop, too.
fn wait_without_one(mut all: Vec<Running>) -> Vec<(ExitStatus, String)> {
    let until = Instant::now() + NOTICED;
    while Instant::now() < until && all.iter_mut().any(Running::is_running) {
        std::thread::sleep(Duration::from_millis(10));
    }
    for process in &mut all {
        if process.is_running() && !process.log().contains("and so are all others") {
            process.signal("TERM");
        }
    }
    wait(all)
}

/// Each must have ended well.
fn ended(all: Vec<Running>) -> Vec<String> {
    let ended = wait(all);
    for (process, (status, log)) in ended.iter().enumerate() {
        assert!(status.success(), "process {process}: {status}:\n{log}");
        assert_eq!(count(log, "ERROR]"), 0, "process {process}:\n{log}");
    }
    ended.into_iter().map(|(_, log)| log).collect()
}

// ---- together ------------------------------------------------------------------------------

#[test]
fn processes_share_the_work_and_the_table_is_the_batch_answer() {
    let world = World::new("cluster");
    let mut traffic = Traffic::new(&world);
    traffic.send(3_000);
    let logs = ended(start(&world, 3, "-w 2 --until-end"));
    traffic.compare(&world);
    // Three partitions, six workers: half of them only keep sessions and writers.
    let rows = |log: &String| log.contains(" rows written");
    assert!(logs.iter().all(rows), "a process without writers: {logs:?}");
}

#[test]
fn a_process_waits_for_late_ones_and_logs_which() {
    let world = World::new("cluster-late");
    let mut traffic = Traffic::new(&world);
    traffic.send(200);
    let hosts = Hosts::local(&world, 3);
    let mut all = vec![hosts.start_one(&world, 0, "-w 1 --until-end")];
    let missing = format!("process 2 ({}): it has not come yet", hosts.addresses[2]);
    all[0].wait_for(&missing);
    all.push(hosts.start_one(&world, 1, "-w 1 --until-end"));
    all[1].wait_for(&missing);
    assert_eq!(world.value("select to_regclass('sessionizer.jobs') is null"), "t", "too early");
    all.push(hosts.start_one(&world, 2, "-w 1 --until-end"));
    ended(all);
    traffic.compare(&world);
}

#[test]
fn processes_and_workers_can_change_at_every_start_also_after_kills() {
    let world = World::new("cluster-rescale");
    let mut traffic = Traffic::new(&world);
    let mut moments = Rng::new(3);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _raise = Raise(&done);
        scope.spawn(|| send_until(&mut traffic, &done));
        let shapes = [(1, 2), (3, 1), (2, 2), (1, 4), (3, 2), (2, 1)];
        for (round, (processes, workers)) in shapes.into_iter().cycle().take(12).enumerate() {
            let interval = ["200ms", "1h"][round / 3 % 2];
            let writers = moments.between(1, 5);
            let args =
                format!("-w {workers} --sink-connections {writers} --snapshot-interval {interval}");
            let all = start(&world, processes, &args);
            // Every fourth time, so early that hardly any process has connected to the others.
            let least = if round % 4 == 1 { 0 } else { 100 };
            std::thread::sleep(Duration::from_millis(least + moments.below(9 * least + 10)));
            let one = moments.below(processes as u64) as usize;
            let signal = ["KILL", "KILL", "TERM"][round % 3];
            all[one].signal(signal);
            for (process, (status, log)) in wait_without_one(all).into_iter().enumerate() {
                let found = log.contains("and so are all others");
                let lost = status.code() == LOST;
                let well = match signal {
                    "KILL" if process == one => true,
                    "KILL" if found => lost,
                    _ => lost || ends_well(status, &log),
                };
                assert!(well, "round {round}, process {process}: {status}:\n{log}");
                assert_eq!(count(&log, "panicked"), 0, "{log}");
            }
        }
    });
    traffic.check(&world, &["-w", "3"]);
}

// ---- losing one ----------------------------------------------------------------------------

#[test]
fn a_killed_process_ends_the_others_at_once_and_they_name_it() {
    let world = World::new("cluster-kill");
    let mut traffic = Traffic::new(&world);
    traffic.send(1_000);
    for killed in 0..3 {
        let hosts = Hosts::local(&world, 3);
        let mut all = hosts.start(&world, "-w 1");
        all.iter_mut().for_each(|process| process.wait_for("reading begins"));
        traffic.send(500);
        let began = Instant::now();
        all.remove(killed).kill();
        for (status, log) in wait(all) {
            assert_eq!(status.code(), LOST, "{log}");
            let says = format!("lost process {killed} ({}): it has", hosts.addresses[killed]);
            assert!(log.contains(&says), "{log}");
            assert_eq!((count(&log, "ERROR]"), count(&log, "panicked")), (1, 0), "{log}");
        }
        assert!(began.elapsed() < NOTICED, "it took {:?}", began.elapsed());
    }
    traffic.check(&world, &[]);
}

#[test]
fn a_frozen_process_is_missed_in_time_and_can_write_no_more_when_it_wakes() {
    let world = World::new("cluster-freeze");
    let mut traffic = Traffic::new(&world);
    traffic.send(1_000);
    let mut all = running(&world, 3, "-w 1 --peer-timeout 2s");
    traffic.send(2_000);
    let frozen = all.remove(1);
    frozen.signal("STOP");
    let began = Instant::now();
    for (status, log) in wait(all) {
        assert_eq!(status.code(), LOST, "{log}");
        assert!(log.contains("lost process 1 (") && log.contains("not answered for 2s"), "{log}");
    }
    assert!(began.elapsed() < NOTICED, "it took {:?}", began.elapsed());
    // Another instance takes over. It has the fence before the frozen one wakes, unless that one
    // froze within a transaction: then it waits for the end of the transaction.
    let mut next = start(&world, 2, "-w 2");
    traffic.send(2_000);
    std::thread::sleep(Duration::from_secs(2));
    frozen.signal("CONT");
    let (status, log) = frozen.wait();
    assert!(matches!(status.code(), Some(3 | 4)), "{status}:\n{log}");
    assert_eq!(count(&log, "panicked"), 0, "{log}");
    next.iter_mut().for_each(|process| process.wait_for("reading begins"));
    wait_for_records(&world, traffic.records());
    next[0].signal("TERM");
    ended(next);
    traffic.check(&world, &["-w", "2"]);
}

#[test]
fn a_second_cluster_takes_over_and_all_of_the_first_report_which() {
    let world = World::new("cluster-takeover");
    let mut traffic = Traffic::new(&world);
    traffic.send(1_000);
    let first = running(&world, 2, "-w 1");
    wait_for_records(&world, 1);
    let second = running(&world, 3, "-w 1");
    traffic.send(1_000);
    for (status, log) in wait(first) {
        assert_eq!(status.code(), Some(3), "{log}");
        assert!(log.contains("has taken over (pid "), "{log}");
    }
    wait_for_records(&world, traffic.records());
    second[2].signal("INT");
    ended(second);
    traffic.check(&world, &[]);
}

#[test]
fn a_cluster_that_is_not_complete_stops_no_other_instance() {
    let world = World::new("cluster-incomplete");
    let mut traffic = Traffic::new(&world);
    traffic.send(300);
    let mut job = world.start(&["--epoch", "50ms"]);
    wait_for_records(&world, 1);
    let hosts = Hosts::local(&world, 3);
    let two = vec![hosts.start_one(&world, 0, "-w 1"), hosts.start_one(&world, 2, "-w 1")];
    std::thread::sleep(Duration::from_millis(1_500));
    traffic.send(300);
    wait_for_records(&world, traffic.records());
    assert!(job.is_running());
    // A waiting process can be stopped, and a cluster stops as a whole.
    two[1].signal("TERM");
    ended(two);
    job.stop();
    traffic.check(&world, &[]);
}

// ---- stopping ------------------------------------------------------------------------------

#[test]
fn a_stop_of_any_process_stops_all_and_nothing_is_read_again() {
    let world = World::new("cluster-stop");
    let mut traffic = Traffic::new(&world);
    for asked in 0..4 {
        let all = running(&world, 3, "-w 1");
        traffic.send(1_000);
        wait_for_records(&world, traffic.records() - 500);
        let began = Instant::now();
        // The last time all are asked, as a supervisor does it.
        for (process, running) in all.iter().enumerate() {
            if asked == process || asked == 3 {
                running.signal("TERM");
            }
        }
        ended(all);
        assert!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
        let unsaved = "select count(*) from sessionizer.shard_progress p
                       left join sessionizer.snapshots s using (job, shard)
                       where s.epoch is distinct from p.epoch";
        assert_eq!(world.value(unsaved), "0", "every shard is saved where it stands");
        assert_eq!(world.imbalance(), "0");
    }
    traffic.check(&world, &["-w", "2"]);
}

// ---- settings ------------------------------------------------------------------------------

#[test]
fn processes_with_other_settings_report_which_and_none_writes_a_row() {
    let world = World::new("cluster-settings");
    Traffic::new(&world).send(100);
    let hosts = Hosts::local(&world, 3);
    let all = vec![
        hosts.start_one(&world, 0, "-w 1 --gap 5m"),
        hosts.start_one(&world, 1, "-w 1 --gap 1m --late drop"),
        hosts.start_one(&world, 2, "-w 1 --gap 5m"),
    ];
    for (process, (status, log)) in wait(all).into_iter().enumerate() {
        assert_eq!(status.code(), Some(2), "process {process}: {log}");
        let says = match process {
            1 => ["--gap is 5m there and 1m here", "--late is merge there and drop here"],
            _ => ["--gap is 1m there and 5m here", "--late is drop there and merge here"],
        };
        assert!(says.iter().all(|says| log.contains(says)), "process {process}: {log}");
    }
    assert_eq!(world.value("select to_regclass('sessionized_events') is null"), "t");
}

#[test]
fn a_process_connected_to_another_database_is_refused_before_it_writes() {
    let (world, elsewhere) = (World::new("cluster-database"), World::new("cluster-elsewhere"));
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    let hosts = Hosts::local(&world, 2);
    let first = hosts.start_one(&world, 0, "-w 1");
    let mut command = world.command();
    let url = format!("jdbc:postgresql://{}/{}", elsewhere.server, elsewhere.database);
    command.env("POSTGRES_URL", url).args(hosts.place(1)).args(["-w", "1", "--epoch", "50ms"]);
    for (status, log) in wait(vec![first, Running::start(command)]) {
        assert_eq!(status.code(), Some(2), "{log}");
        assert!(log.contains("is not the one in which process 0 has started the job"), "{log}");
    }
    assert_eq!(elsewhere.value("select to_regclass('sessionized_events') is null"), "t");
    traffic.check(&world, &[]);
}

#[test]
fn a_hostfile_that_is_missing_or_too_short_is_refused_before_anything_starts() {
    let world = World::new("cluster-hostfile");
    let hosts = Hosts::local(&world, 2);
    let file = hosts.file.to_str().expect("UTF-8");
    for (args, says) in [
        (["-n", "3", "--hostfile", file], "names 2 processes, and --processes is 3"),
        (["-n", "2", "--hostfile", "/no/such/file"], "/no/such/file (--hostfile) cannot be read"),
        (["-n", "1", "--hostfile", "/no/such/file"], "/no/such/file (--hostfile) cannot be read"),
        (["-w", "1", "--hostfile", file], "names several processes, and --processes is 1"),
    ] {
        let (status, log) = world.start(&args).wait();
        assert_eq!(status.code(), Some(2), "{log}");
        assert!(log.contains(says), "{log}");
    }
}

// ---- strangers -----------------------------------------------------------------------------

#[test]
fn strangers_are_turned_away_and_stop_nothing() {
    let world = World::new("cluster-strangers");
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    let hosts = Hosts::local(&world, 2);
    let bother = || {
        let mut open = Vec::new();
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4096], b"sessionizer-peer\xff\xff", b""]
        {
            for address in &hosts.addresses {
                if let Ok(mut stranger) = TcpStream::connect(address) {
                    let _ = stranger.write_all(bytes);
                    open.push(stranger);
                }
            }
        }
        open
    };
    let first = hosts.start_one(&world, 0, "-w 1");
    eventually("it listens", || TcpStream::connect(&hosts.addresses[0]).is_ok());
    let mut open = bother();
    let mut all = vec![first, hosts.start_one(&world, 1, "-w 1")];
    all.iter_mut().for_each(|process| process.wait_for("reading begins"));
    open.extend(bother());
    // A process of an earlier or later cluster is told that there is no place for it.
    let mut old = hosts.start_one(&world, 1, "-w 1");
    old.wait_for("cannot listen on");
    traffic.send(500);
    wait_for_records(&world, traffic.records());
    drop(open);
    old.kill();
    all[1].signal("TERM");
    let logs = ended(all);
    assert!(logs[0].contains("turned away 127.0.0.1:"), "{}", logs[0]);
    traffic.check(&world, &[]);
}

#[test]
fn the_port_is_open_on_the_address_of_the_hostfile_and_on_no_other() {
    let world = World::new("cluster-listen");
    let hosts = Hosts::local(&world, 2);
    let first = hosts.start_one(&world, 0, "-w 1");
    eventually("it listens", || TcpStream::connect(&hosts.addresses[0]).is_ok());
    let port = hosts.addresses[0].rsplit_once(':').expect("a port").1;
    // All of 127/8 is this machine: a port on all interfaces would be open there too.
    assert!(TcpStream::connect(format!("127.0.0.2:{port}")).is_err());
    first.stop();
}

#[test]
fn late_events_and_bad_records_count_once_in_a_cluster_that_drops() {
    let world = World::new("cluster-drop");
    let mut traffic = Traffic::new(&world);
    // The second time, some of the events belong to sessions that closed the first time.
    for _ in 0..2 {
        traffic.send(2_000);
        ended(start(&world, 2, "-w 2 --late drop --until-end"));
    }
    let letters: BTreeSet<String> =
        world.dead_letters().into_iter().map(|(reason, _)| reason).collect();
    assert!(letters.contains("late"), "{letters:?}");
    let balance = "select records, open, difference from sessionizer.balance";
    let records = traffic.records().to_string();
    assert_eq!(world.query(balance), [[records, "0".into(), "0".into()]]);
}
