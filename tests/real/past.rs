//! A database that goes back to an earlier state: a standby that lacks the last commits is
//! promoted, a crash loses what was not flushed, a backup is restored. The job says what has
//! happened and continues from what is there; in the end the table equals the batch answer.

use std::process::Command;

use crate::lifecycle::{Traffic, count, start, wait_for_records};
use crate::server::Server;
use crate::world::{Running, World, eventually};

const BACK: &str = "the database has gone back to an earlier state";
const GOES_ON: &str = "The job continues from what is there";

fn execute(server: &Server, sql: &str) {
    let (host, port) = server.address.rsplit_once(':').expect("host:port");
    let mut config = ::postgres::Config::new();
    config.host(host).port(port.parse().expect("a port")).user("postgres").dbname("postgres");
    let mut client = config.connect(::postgres::NoTls).expect("it answers");
    client.batch_execute(sql).unwrap_or_else(|why| panic!("{sql}: {why}"));
}

/// The job with a URL of its own.
fn start_at(world: &World, hosts: &str, args: &str) -> Running {
    let mut command = world.command();
    command
        .env("POSTGRES_URL", format!("jdbc:postgresql://{hosts}/{}", world.database))
        .args(args.split_whitespace())
        .args(["--epoch", "50ms"]);
    Running::start(command)
}

/// A primary and a standby that follows it, and the job on both.
struct Pair {
    primary: Server,
    standby: Server,
    world: World,
    traffic: Traffic,
}

impl Pair {
    fn new(test: &str) -> Pair {
        let primary = Server::start(&format!("{test}-1"));
        execute(&primary, "alter system set wal_retrieve_retry_interval to '100ms'");
        let standby = primary.standby(&format!("{test}-2"));
        let world = World::on(&primary, test);
        let traffic = Traffic::new(&world);
        let pair = Pair { primary, standby, world, traffic };
        // The database has just been created on the primary.
        pair.wait_until_followed();
        pair
    }

    fn hosts(&self) -> String {
        format!("{},{}", self.standby.address, self.primary.address)
    }

    fn wait_until_followed(&self) {
        eventually("the standby has all of it", || {
            let sent = "select pg_current_wal_lsn() <= replay_lsn from pg_stat_replication";
            self.world.query(sent).iter().any(|row| row[0] == "t")
        });
    }

    /// Promotes the standby; the primary is lost.
    fn fail_over(&mut self) {
        self.primary.act("kill");
        execute(&self.standby, "select pg_promote()");
        self.world.server = self.standby.address.clone();
    }
}

#[test]
fn a_failover_that_loses_nothing_needs_no_restart() {
    let mut pair = Pair::new("failover");
    pair.traffic.send(500);
    // The standby comes first in the URL, and is skipped.
    let hosts = format!("{}?targetServerType=primary", pair.world.database);
    let mut command = pair.world.command();
    command
        .env("POSTGRES_URL", format!("jdbc:postgresql://{}/{hosts}", pair.hosts()))
        .args(["-w", "2", "--epoch", "50ms"]);
    let mut job = Running::start(command);
    job.wait_for("reading begins");
    wait_for_records(&pair.world, pair.traffic.records());
    pair.wait_until_followed();
    pair.fail_over();
    pair.traffic.send(500);
    job.wait_for("commits again");
    wait_for_records(&pair.world, pair.traffic.records());
    let log = job.stop();
    assert_eq!((count(&log, BACK), count(&log, "ERROR]")), (0, 0), "{log}");
    pair.traffic.check(&pair.world, &[]);
}

#[test]
fn a_standby_alone_is_not_taken_for_the_primary() {
    let pair = Pair::new("standby-alone");
    let args = "--start-timeout 2s";
    let (status, log) = start_at(&pair.world, &pair.standby.address, args).wait();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("it is a standby, or default_transaction_read_only is on"), "{log}");
}

#[test]
fn a_failover_to_a_standby_that_lacks_commits_is_gone_on_from() {
    for processes in [1, 2] {
        let mut pair = Pair::new(&format!("lacks-{processes}"));
        pair.traffic.send(500);
        let hosts = crate::cluster::Hosts::local(&pair.world, processes);
        let start = |pair: &Pair| -> Vec<Running> {
            let one = |process: usize| {
                let mut command = pair.world.command();
                let url = format!("jdbc:postgresql://{}/{}", pair.hosts(), pair.world.database);
                command.env("POSTGRES_URL", url).args(["-w", "2", "--epoch", "50ms"]);
                if processes > 1 {
                    command.args(hosts.place(process));
                }
                Running::start(command)
            };
            (0..processes).map(one).collect()
        };
        let mut job = start(&pair);
        wait_for_records(&pair.world, pair.traffic.records());
        pair.wait_until_followed();
        let kept = pair.traffic.records();
        execute(&pair.standby, "alter system set primary_conninfo to ''");
        execute(&pair.standby, "select pg_reload_conf()");
        eventually("the standby follows no more", || {
            pair.world.value("select count(*) from pg_stat_replication") == "0"
        });
        pair.traffic.send(1_000);
        wait_for_records(&pair.world, pair.traffic.records());
        pair.fail_over();
        let records = "select coalesce(max(records), 0) from sessionizer.balance";
        pair.traffic.send(500);
        if processes == 1 {
            job[0].wait_for(GOES_ON);
        } else {
            let mut says_what_to_do = false;
            for process in job.drain(..) {
                let (status, log) = process.wait();
                assert_eq!(status.code(), Some(1), "{log}");
                assert!(log.contains(BACK), "{log}");
                says_what_to_do |= log.contains("Start the job again");
            }
            assert!(says_what_to_do);
            let there = pair.world.value(records).parse::<u64>().expect("a number");
            assert!(there >= kept && there < pair.traffic.records(), "{there}");
            job = start(&pair);
        }
        wait_for_records(&pair.world, pair.traffic.records());
        job[0].signal("TERM");
        let mut logs = String::new();
        for process in job {
            let (status, log) = process.wait();
            assert!(status.success(), "{status}:\n{log}");
            logs.push_str(&log);
        }
        if processes == 1 {
            assert!(logs.contains("A standby was promoted that lacked the last commits"), "{logs}");
            assert!(logs.contains("(timeline 2, before it was 1)"), "{logs}");
        }
        assert_eq!(count(&logs, "ERROR]"), 0, "{logs}");
        pair.traffic.check(&pair.world, &[]);
        let audit = pair.world.command().arg("audit").output().expect("it can be run");
        assert!(audit.status.success(), "{}", String::from_utf8_lossy(&audit.stdout));
    }
}

#[test]
fn an_asynchronous_commit_that_a_crash_takes_back_is_read_again() {
    let server = Server::start("lost-commit");
    // Nothing else flushes what a commit has not flushed.
    execute(&server, "alter system set wal_writer_delay to '10s'");
    execute(&server, "alter system set synchronous_commit to off");
    execute(&server, "select pg_reload_conf()");
    let world = World::on(&server, "lost-commit");
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    let mut job = start(&world, "-w 2");
    wait_for_records(&world, traffic.records());
    job.wait_for("synchronous_commit is off for the login postgres");
    let mut seen = 0;
    for _ in 0..10 {
        world.execute("checkpoint");
        traffic.send(1_000);
        wait_for_records(&world, traffic.records());
        server.act("kill");
        server.act("start");
        traffic.send(100);
        wait_for_records(&world, traffic.records());
        assert!(job.is_running(), "{}", job.log());
        let now = count(&job.log(), BACK);
        if now > seen {
            seen = now;
        }
        if seen >= 2 {
            break;
        }
    }
    let log = job.stop();
    assert!(seen > 0 && log.contains("crash with synchronous_commit = off"), "{log}");
    assert_eq!(count(&log, "ERROR]"), 0, "{log}");
    traffic.check(&world, &[]);
}

/// Keeps the server's files as they are now.
fn back_up(server: &Server) {
    server.act("stop");
    copy(server, "data", "backup");
    server.act("start");
}

/// Restores the server to the files that were kept.
fn put_back(server: &Server) {
    server.act("stop");
    copy(server, "backup", "data");
    server.act("start");
}

/// The files of a server, as a snapshot of its disk has them.
fn copy(from: &Server, what: &str, to: &str) {
    let [from, to] = [what, to].map(|name| from.directory.join(name));
    let _ = std::fs::remove_dir_all(&to);
    let status = Command::new("cp").arg("-a").args([&from, &to]).status();
    assert!(status.expect("there is a cp").success());
}

#[test]
fn a_backup_that_is_put_back_under_a_live_job_and_between_two_is_gone_on_from() {
    let server = Server::start("backup");
    let world = World::on(&server, "backup");
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    let mut job = start(&world, "-w 2 --snapshot-interval 300ms");
    wait_for_records(&world, traffic.records());
    back_up(&server);
    // The same run goes on, then another one: the generation of the backup is an older one.
    for lives in 1..=2 {
        traffic.send(1_000);
        wait_for_records(&world, traffic.records());
        if lives == 2 {
            job.stop();
            job = start(&world, "-w 3 --snapshot-interval 300ms");
            job.wait_for("reading begins");
            traffic.send(100);
            wait_for_records(&world, traffic.records());
        }
        server.act("stop");
        copy(&server, "backup", "data");
        server.act("start");
        traffic.send(300);
        job.wait_for(GOES_ON);
        wait_for_records(&world, traffic.records());
        let log = job.log();
        assert!(log.contains("or with the files of a backup"), "{log}");
    }
    // The job is down while it happens: the group of Kafka remembers.
    job.stop();
    put_back(&server);
    let mut job = start(&world, "-w 1");
    job.wait_for("the consumer group");
    assert!(job.log().contains(BACK), "{}", job.log());
    wait_for_records(&world, traffic.records());
    let log = job.stop();
    assert_eq!(count(&log, "ERROR]"), 0, "{log}");
    traffic.check(&world, &[]);
    // The group has new offsets: the next start has nothing to report.
    let log = world.run_to_end(&[]);
    assert!(!log.contains(BACK), "{log}");
}

#[test]
fn what_is_missing_after_a_restore_and_gone_from_the_topic_is_reported_as_a_loss() {
    let server = Server::start("backup-lost");
    let world = World::on(&server, "backup-lost");
    let mut traffic = Traffic::new(&world);
    traffic.send(300);
    world.run_to_end(&[]);
    back_up(&server);
    let (_, end) = world.log_range(&world.name, 0);
    traffic.send(300);
    let job = start(&world, "-w 2");
    wait_for_records(&world, traffic.records());
    world.delete_records(&world.name, 0, end + 10);
    put_back(&server);
    traffic.send(10);
    let (status, log) = job.wait();
    assert_eq!(status.code(), Some(2), "{log}");
    let loss = format!(
        "{}[0]: reading has to continue at offset {end}, but Kafka has {}",
        world.name,
        end + 10
    );
    for part in [BACK, GOES_ON, &loss, "retention", "--accept-lost-offsets"] {
        assert!(log.contains(part), "{part:?} is missing in\n{log}");
    }
    world.run_to_end(&["--accept-lost-offsets"]);
    assert_eq!(world.imbalance(), "0");
}

#[test]
fn rows_that_are_changed_by_hand_are_not_taken_for_an_earlier_state() {
    let world = World::new("by-hand");
    let mut traffic = Traffic::new(&world);
    traffic.send(300);
    let job = start(&world, "-w 2");
    wait_for_records(&world, traffic.records());
    world.execute("update sessionizer.shard_progress set epoch = epoch - 1 where shard = 3");
    traffic.send(300);
    let (status, log) = job.wait();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("were they changed by hand?") && !log.contains(BACK), "{log}");
}

#[test]
fn two_runs_that_took_the_same_generation_do_not_write_side_by_side() {
    let server = Server::start("same-generation");
    let world = World::on(&server, "same-generation");
    let mut traffic = Traffic::new(&world);
    traffic.send(300);
    world.run_to_end(&[]);
    back_up(&server);
    // The first takes the fence, and its database goes back to before that.
    let mut first = start(&world, "-w 1 --sink-connections 2");
    first.wait_for("reading begins");
    first.signal("STOP");
    put_back(&server);
    let second = start(&world, "-w 1 --sink-connections 2");
    eventually("the other has the same", || {
        world.value("select max(generation) from sessionizer.shard_progress") == "2"
    });
    first.signal("CONT");
    traffic.send(300);
    let (status, log) = first.wait();
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(log.contains(&format!("has taken over (pid {} on ", second.pid())), "{log}");
    wait_for_records(&world, traffic.records());
    second.stop();
    traffic.check(&world, &[]);
}
