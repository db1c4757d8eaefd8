//! Brokers that go away, come back, or are missing: the job warns once and waits, and nothing is
//! lost.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::kafka::{
    PAST_MS, QUICK, a_commit_waits, assert_answer, fail, start, visits, wait_for_records,
};
use crate::oracle::{event, sessions};
use crate::world::{Running, World, eventually, finish};

/// A private broker of a test, removed with it.
pub struct Broker {
    pub directory: PathBuf,
    /// `host:port`, the same after every restart.
    pub address: String,
}

impl Broker {
    /// Starts one; `test` names its directory.
    pub fn start(test: &str) -> Broker {
        let mut broker = Broker::new(test);
        broker.address = broker.services("start");
        broker
    }

    /// A broker that has not been started.
    pub fn new(test: &str) -> Broker {
        // A PostgreSQL server of a test with the same name has another directory.
        let name = format!("kafka-{test}-{}", std::process::id());
        Broker { directory: std::env::temp_dir().join(name), address: String::new() }
    }

    /// Runs a verb of `scripts/services kafka`, followed by the arguments after the directory.
    pub fn services(&self, line: &str) -> String {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services"))
            .args(["kafka", verb])
            .arg(&self.directory)
            .args(rest.split_whitespace())
            .output()
            .expect("scripts/services can be run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {said}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // A panic within a panic would end the whole test program, and leave other servers behind.
        if std::panic::catch_unwind(|| self.services("kill")).is_ok() {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

#[test]
fn a_broker_that_goes_away_is_missed_once_and_found_again() {
    let broker = Broker::start("away");
    let mut world = World::new("away");
    world.kafka.clone_from(&broker.address);
    world.create_topic(2);
    let events = visits("a", 50);
    world.send_events(0, &events[..10]);
    let mut job = start(&world, &["-w", "2"]);
    world.send_events(1, &events[10..20]);
    wait_for_records(&world, 20);

    broker.services("kill");
    job.wait_for("WARN");
    broker.services("start");
    world.send_events(0, &events[20..30]);
    // A day later, so that everything before has closed.
    let newest = [0, 1].map(|_| event("newest", "a", PAST_MS + 86_400_000));
    world.send_events(1, events[30..40].iter().chain(&newest[..1]));
    world.send_events(0, &newest[1..]);
    wait_for_records(&world, 42);
    job.wait_for("Kafka is back");
    assert_eq!(world.rows(), sessions(&events[..40]));
    let log = job.log();
    let lines = |of: &str| log.lines().filter(|line| line.contains(of)).count();
    // A warning is repeated if the outage lasts, as on a machine that starts a broker slowly.
    let warned = lines("WARN") - lines("still does not answer");
    assert_eq!((warned, lines("ERROR"), lines("Kafka is back")), (1, 0, 1), "{log}");
    let warning = log.lines().find(|line| line.contains("WARN")).expect("counted");
    assert!(warning.contains(&world.kafka) && warning.contains("refused"), "{warning}");

    // A request that a hanging broker has not answered must not keep the job from stopping.
    let mut client = world.client();
    let mut block = client.transaction().expect("a transaction");
    block.batch_execute("lock table sessionizer.bindings in exclusive mode").expect("locked");
    world.send_events(0, &events[40..]);
    eventually("a commit waits", || a_commit_waits(&world));
    broker.services("pause");
    block.rollback().expect("unlocked");
    wait_for_records(&world, 52);
    let began = Instant::now();
    let log = job.stop();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(8), "it stopped after {took:?}:\n{log}");
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn a_start_that_cannot_read_reports_why_and_disturbs_nobody() {
    let world = World::new("unreadable");
    world.create_topic(1);
    let events = visits("a", 10);
    let mut job = start(&world, &[]);

    let missing = format!("{}-missing", world.name);
    for topics in [missing.clone(), format!("{},{missing}", world.name)] {
        let (code, log) = fail(&world, &[("KAFKA_TOPIC", &topics)], &[]);
        assert_eq!(code, 2, "{log}");
        assert!(log.contains(&format!("the topic {missing} does not exist: create it")), "{log}");
    }

    let began = Instant::now();
    let nobody = "127.0.0.1:1";
    let (code, log) = fail(&world, &[("KAFKA_URL", nobody)], &["--start-timeout", "2s"]);
    assert_eq!(code, 1, "{log}");
    for part in [nobody, "refused", "check KAFKA_URL"] {
        assert!(log.contains(part), "{part:?} is missing in\n{log}");
    }
    let took = began.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(20)).contains(&took), "{took:?}:\n{log}");

    world.send_events(0, &events);
    wait_for_records(&world, 10);
    assert!(job.is_running());
    job.stop();
}

#[test]
fn one_of_the_brokers_in_the_url_is_enough() {
    let world = World::new("one-is-enough");
    world.create_topic(1);
    let events = visits("a", 10);
    world.send_events(0, &events);
    let url = format!("127.0.0.1:1,127.0.0.1:2,{}", world.kafka);
    let mut command = world.command();
    command.env("KAFKA_URL", url).arg("--until-end");
    let (status, log) = finish(command);
    assert!(status.success() && !log.contains("WARN"), "{status}:\n{log}");
    assert_answer(&world, &events);
}

#[test]
fn a_broker_that_is_not_there_yet_is_waited_for() {
    let world = World::new("not-yet");
    world.create_topic(1);
    let events = visits("a", 10);
    world.send_events(0, &events);
    // At first nothing listens on the port; then a proxy does.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let mut command = world.command();
    command.env("KAFKA_URL", &address).args(QUICK);
    let mut job = Running::start(command);
    job.wait_for(&format!("waiting for Kafka at {address}"));
    let listener = std::net::TcpListener::bind(&address).expect("the port is still free");
    let kafka = world.kafka.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let broker = std::net::TcpStream::connect(&kafka).expect("the broker answers");
            let pass = |from: &std::net::TcpStream, to: &std::net::TcpStream| {
                let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            };
            pass(&client, &broker);
            pass(&broker, &client);
        }
    });
    job.wait_for("first start of the job");
    wait_for_records(&world, 10);
    job.stop();
}

#[test]
fn produce_reports_why_it_cannot_reach_a_broker() {
    let world = World::new("produce-unreachable");
    let began = Instant::now();
    let nobody = "127.0.0.1:1";
    let (code, log) = fail(&world, &[("KAFKA_URL", nobody)], &["produce", "--number", "1"]);
    assert_eq!(code, 1, "{log}");
    assert!(log.contains(nobody) && log.contains("refused"), "{log}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}
