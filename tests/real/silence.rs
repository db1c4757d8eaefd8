//! A network that stalls: Postgres says nothing at all, and the connection stays.

use crate::lifecycle::{Traffic, count, wait_for_records};
use crate::world::{Running, World};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A proxy to Postgres that can stop forwarding while all connections stay open.
struct Way {
    address: String,
    stalls: Arc<AtomicBool>,
}

impl Way {
    fn to(server: &str) -> Way {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("bound").to_string();
        let way = Way { address, stalls: Arc::default() };
        let (server, stalls) = (server.to_owned(), Arc::clone(&way.stalls));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(&server) else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (mut from, mut to) =
                        (from.try_clone().expect("open"), to.try_clone().expect("open"));
                    let stalls = Arc::clone(&stalls);
                    std::thread::spawn(move || pass(&mut from, &mut to, &stalls));
                }
            }
        });
        way
    }

    fn stall(&self, stalls: bool) {
        self.stalls.store(stalls, Ordering::Relaxed);
    }
}

fn pass(from: &mut TcpStream, to: &mut TcpStream, stalls: &AtomicBool) {
    let mut buffer = [0; 65_536];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        while stalls.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// A job that has committed something through such a proxy.
fn running_by_a_way(test: &str, args: &[&str]) -> (World, Traffic, Running, Way) {
    let world = World::new(test);
    let way = Way::to(&world.server);
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    let mut command = world.command();
    let url = format!("jdbc:postgresql://{}/{}", way.address, world.database);
    command.env("POSTGRES_URL", url).args(["--sink-connections", "1", "--epoch", "50ms"]);
    command.args(args);
    let job = Running::start(command);
    wait_for_records(&world, traffic.records());
    (world, traffic, job, way)
}

#[test]
fn a_commit_without_an_answer_is_reported_once_and_waited_for() {
    let (world, mut traffic, mut job, way) = running_by_a_way("silence", &[]);
    way.stall(true);
    traffic.send(500);
    job.wait_for("writer 0: Postgres has not answered for 10 s");
    traffic.send(500);
    way.stall(false);
    job.wait_for("writer 0: Postgres has answered, after 1");
    wait_for_records(&world, traffic.records());
    let log = job.stop();
    assert_eq!((count(&log, "WARN ]"), count(&log, "ERROR]")), (1, 0), "{log}");
    traffic.check(&world, &[]);
}

#[test]
fn a_way_that_stalls_for_good_does_not_keep_the_job_from_stopping() {
    let (world, mut traffic, job, way) = running_by_a_way("for-good", &["--stop-timeout", "1s"]);
    way.stall(true);
    traffic.send(500);
    job.signal("TERM");
    let (status, log) = job.wait();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("Nothing is lost"), "{log}");
    // To the server, the job is still connected. Now it sees the connections end.
    way.stall(false);
    traffic.check(&world, &[]);
}
