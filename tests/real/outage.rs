//! Outages of Postgres, and connections that fail at the worst moments: the job waits, warns once,
//! and continues as if nothing had happened.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use crate::lifecycle::{SOON, Traffic, count, start, wait_for_records};
use crate::server::Server;
use crate::world::{Running, World, eventually};

const WRITERS: usize = 3;

/// Waits until the log contains something this many times; the job must not end before.
pub fn wait_for_times(job: &mut Running, text: &str, times: usize) {
    eventually(text, || {
        assert!(job.is_running(), "it ended:\n{}", job.log());
        count(&job.log(), text) >= times
    });
}

fn start_with_writers(world: &World) -> Running {
    start(world, &format!("-w 2 --sink-connections {WRITERS}"))
}

#[test]
fn postgres_may_go_away_and_come_back() {
    let server = Server::start("away");
    let world = World::on(&server, "away");
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    let mut job = start_with_writers(&world);
    wait_for_records(&world, traffic.records());
    let outages = ["stop", "kill", "restart"];
    for (at, outage) in outages.into_iter().enumerate() {
        traffic.send(300);
        server.act(outage);
        traffic.send(300);
        wait_for_times(&mut job, "cannot commit, will keep trying", WRITERS * (at + 1));
        server.act("start");
        wait_for_times(&mut job, "commits again", WRITERS * (at + 1));
    }
    wait_for_records(&world, traffic.records());
    let log = job.stop();
    // A warning is repeated if the outage lasts, as on a machine that starts a server slowly.
    let warned = count(&log, "WARN ]") - count(&log, "still cannot commit");
    assert_eq!(warned, WRITERS * outages.len(), "one an outage and writer:\n{log}");
    assert_eq!(count(&log, "ERROR]"), 0, "{log}");
    traffic.check(&world, &["-w", "3"]);
}

#[test]
fn a_connection_that_is_cut_is_made_again() {
    let world = World::new("cut");
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    let mut job = start_with_writers(&world);
    wait_for_records(&world, 1);
    let cuts = 4;
    for cut in 1..=cuts {
        traffic.send(300);
        let ended = world.query(
            "select pg_terminate_backend(pid) from pg_stat_activity
             where application_name like 'sessionizer/%' and datname = current_database()",
        );
        assert_eq!(ended.len(), WRITERS, "a connection a writer, and no other");
        wait_for_times(&mut job, "commits again", WRITERS * cut);
    }
    wait_for_records(&world, traffic.records());
    let log = job.stop();
    assert_eq!(count(&log, "cannot commit, will keep trying"), WRITERS * cuts, "{log}");
    assert_eq!((count(&log, "WARN ]"), count(&log, "ERROR]")), (WRITERS * cuts, 0), "{log}");
    traffic.check(&world, &[]);
}

#[test]
fn a_stop_without_postgres_gives_up_in_time_and_loses_nothing() {
    let server = Server::start("stop-away");
    let world = World::on(&server, "stop-away");
    let mut traffic = Traffic::new(&world);
    for (signals, timeout, code) in [(1, "1s", 1), (2, "1h", 143)] {
        traffic.send(500);
        let writers = format!("-w 2 --sink-connections {WRITERS}");
        let mut job = start(&world, &format!("{writers} --stop-timeout {timeout}"));
        wait_for_records(&world, traffic.records());
        server.act("stop");
        traffic.send(500);
        wait_for_times(&mut job, "cannot commit", WRITERS);
        let asked = Instant::now();
        job.signal("TERM");
        if signals == 2 {
            job.wait_for("stopping");
            job.signal("TERM");
        }
        let (status, log) = job.wait();
        assert_eq!(status.code(), Some(code), "{log}");
        assert!(asked.elapsed() < SOON, "{:?}:\n{log}", asked.elapsed());
        assert_eq!(log.contains("Nothing is lost"), code == 1, "{log}");
        server.act("start");
    }
    traffic.check(&world, &["-w", "2"]);
}

#[test]
fn a_start_waits_for_postgres() {
    let server = Server::start("wait");
    let world = World::on(&server, "wait");
    let mut traffic = Traffic::new(&world);
    traffic.send(100);
    server.act("stop");
    let mut job = world.start(&[]);
    job.wait_for("waiting for Postgres");
    let asked = Instant::now();
    job.signal("TERM");
    let (status, log) = job.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("check POSTGRES_URL"), "{log}");
    assert!(asked.elapsed() < SOON, "{:?}:\n{log}", asked.elapsed());
    let mut job = start(&world, "-w 1");
    job.wait_for("waiting for Postgres");
    server.act("start");
    wait_for_records(&world, traffic.records());
    let log = job.stop();
    assert_eq!(count(&log, ": connecting: "), 1, "the reason is said once:\n{log}");
    traffic.check(&world, &[]);
}

// ---- the way to Postgres -------------------------------------------------------------------

/// A proxy to Postgres that fails when it hurts most: of the COMMITs that it sees, one never
/// reaches the server, and one does but its reply is lost.
struct Proxy {
    address: String,
    /// While it is set, commits fail.
    hurts: Arc<AtomicBool>,
    /// Commits that were cut off before and after the server.
    cut: Arc<[AtomicUsize; 2]>,
}

impl Proxy {
    fn start(server: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("bound").to_string();
        let proxy = Proxy { address, hurts: Arc::default(), cut: Arc::default() };
        let (server, hurts, cut) =
            (server.to_owned(), Arc::clone(&proxy.hurts), Arc::clone(&proxy.cut));
        std::thread::spawn(move || {
            let commits = Arc::new(AtomicUsize::new(0));
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(&server) else { continue };
                let (hurts, cut, commits) =
                    (Arc::clone(&hurts), Arc::clone(&cut), Arc::clone(&commits));
                let back = (server.try_clone().expect("open"), client.try_clone().expect("open"));
                std::thread::spawn(move || {
                    let (mut from, mut to) = back;
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
                std::thread::spawn(move || forward(client, server, &hurts, &cut, &commits));
            }
        });
        proxy
    }
}

/// Forwards what the client sends until a commit is to fail.
fn forward(
    mut client: TcpStream,
    mut server: TcpStream,
    hurts: &AtomicBool,
    cut: &[AtomicUsize; 2],
    commits: &AtomicUsize,
) {
    let mut buffer = [0; 65_536];
    while let Ok(length @ 1..) = client.read(&mut buffer) {
        let said = &buffer[..length];
        let commit =
            hurts.load(Ordering::Relaxed) && said.windows(7).any(|part| part == b"COMMIT\0");
        let number = if commit { commits.fetch_add(1, Ordering::Relaxed) } else { 0 };
        let fails = [2, 4].map(|place| commit && number % 5 == place);
        if fails[0] || fails[1] {
            let _ = client.shutdown(Shutdown::Both);
            let _ = if fails[1] { server.write_all(said) } else { Ok(()) };
            cut[usize::from(fails[1])].fetch_add(1, Ordering::Relaxed);
            break;
        }
        if server.write_all(said).is_err() {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Write);
}

/// Starts the job through a proxy.
fn start_through(world: &World, proxy: &Proxy, args: &[&str]) -> Running {
    let mut command = world.command();
    let url = format!("jdbc:postgresql://{}/{}", proxy.address, world.database);
    command.env("POSTGRES_URL", url).args(["-w", "2", "--epoch", "50ms"]).args(args);
    Running::start(command)
}

#[test]
fn a_commit_whose_reply_is_lost_is_not_repeated() {
    let world = World::new("reply");
    let mut traffic = Traffic::new(&world);
    let proxy = Proxy::start(&world.server);
    let mut job = start_through(&world, &proxy, &["--sink-connections", "3"]);
    wait_for_records(&world, 0);
    job.wait_for("first start");
    proxy.hurts.store(true, Ordering::Relaxed);
    eventually("commits were cut off", || {
        assert!(job.is_running(), "it ended:\n{}", job.log());
        traffic.send(100);
        proxy.cut.iter().all(|cut| cut.load(Ordering::Relaxed) >= 5)
    });
    proxy.hurts.store(false, Ordering::Relaxed);
    wait_for_records(&world, traffic.records());
    let log = job.stop();
    let found = count(&log, "the commit whose reply was lost had succeeded");
    assert!(found > 0 && count(&log, "ERROR]") == 0, "{log}");
    traffic.check(&world, &[]);
}

#[test]
fn a_commit_that_is_still_on_its_way_when_the_reply_is_lost_is_waited_for() {
    let world = World::new("slow");
    let mut traffic = Traffic::new(&world);
    traffic.send(100);
    world.run_to_end(&[]);
    // A slow COMMIT, as with a slow disk or a synchronous standby.
    world.execute(
        "create function slow() returns trigger language plpgsql as $$ begin
             if current_setting('slow.was', true) is distinct from txid_current()::text then
                 perform set_config('slow.was', txid_current()::text, true), pg_sleep(0.4);
             end if;
             return null;
         end $$;
         create constraint trigger slow after insert on sessionizer.epochs
             deferrable initially deferred for each row execute function slow();",
    );
    let proxy = Proxy::start(&world.server);
    let mut job = start_through(&world, &proxy, &["--sink-connections", "1"]);
    job.wait_for("start 2 of the job");
    proxy.hurts.store(true, Ordering::Relaxed);
    eventually("replies were lost", || {
        assert!(job.is_running(), "it ended:\n{}", job.log());
        traffic.send(10);
        proxy.cut[1].load(Ordering::Relaxed) >= 2
    });
    proxy.hurts.store(false, Ordering::Relaxed);
    world.execute("drop trigger slow on sessionizer.epochs");
    wait_for_records(&world, traffic.records());
    let log = job.stop();
    assert_eq!(count(&log, "ERROR]"), 0, "{log}");
    traffic.check(&world, &[]);
}

#[test]
fn an_instance_that_is_frozen_does_not_hold_up_the_next() {
    let world = World::new("frozen");
    let mut traffic = Traffic::new(&world);
    traffic.send(100);
    world.run_to_end(&[]);
    let mut command = world.command();
    let options = "options=-c%20idle_in_transaction_session_timeout%3D500";
    let url = format!("jdbc:postgresql://{}/{}?{options}", world.server, world.database);
    command.env("POSTGRES_URL", url).args(["--epoch", "50ms"]);
    let mut first = Running::start(command);
    // A start tries out a commit; that one must not be the one that waits.
    first.wait_for("reading begins");
    // Stop it in the middle of a transaction, with its locks taken.
    let mut blocker = world.client();
    let lock = "begin; lock table sessionizer.bindings in exclusive mode";
    blocker.batch_execute(lock).expect("locked");
    traffic.send(100);
    eventually("it waits in a transaction", || {
        let waits = "select count(*) from pg_locks where not granted and database =
                     (select oid from pg_database where datname = current_database())";
        world.value(waits) != "0"
    });
    first.signal("STOP");
    blocker.batch_execute("rollback").expect("unlocked");
    let second = start(&world, "-w 2");
    wait_for_records(&world, traffic.records());
    first.signal("CONT");
    let (status, log) = first.wait();
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(log.contains(&format!("has taken over (pid {} on ", second.pid())), "{log}");
    second.stop();
    traffic.check(&world, &[]);
}

#[test]
fn a_transaction_of_a_client_that_is_gone_does_not_stay_for_ever() {
    let world = World::new("timeout");
    let mut traffic = Traffic::new(&world);
    traffic.send(100);
    let job = start(&world, "-w 1");
    wait_for_records(&world, traffic.records());
    world.execute(
        "create table seen (value text);
         create function see() returns trigger language plpgsql as
             'begin insert into public.seen values
                  (current_setting(''idle_in_transaction_session_timeout'')); return null; end';
         create trigger see after insert on sessionizer.dead_letters execute function see();",
    );
    eventually("a dead letter is written", || {
        traffic.send(100);
        world.value("select count(*) from seen") != "0"
    });
    job.stop();
    assert_ne!(world.value("select min(value) from seen"), "0", "the server would wait for ever");
    traffic.check(&world, &[]);
}
