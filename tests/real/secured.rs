//! Kafka behind TLS and a login.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::brokers::Broker;
use crate::kafka::{at_once, fail, visits};
use crate::oracle::sessions;
use crate::world::{World, finish};

const USER: &str = "alice";
const PASSWORD: &str = "wonder-4711";

/// A broker with two ports: an open one for the test, and one that asks for a login over TLS.
pub struct Secured {
    broker: Broker,
    address: String,
}

impl Secured {
    /// Tests that run at the same time share one; it is removed after the last of them.
    pub fn shared() -> Arc<Secured> {
        static SHARED: Mutex<Weak<Secured>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let secured = Arc::new(Secured::start());
            *shared = Arc::downgrade(&secured);
            secured
        })
    }

    fn start() -> Secured {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut broker = Broker::new(&format!("secured-{count}"));
        let address = broker.services(&format!("secure {USER} {PASSWORD}"));
        broker.address = broker.services("start");
        Secured { broker, address }
    }

    /// A test's world on the open port.
    pub fn world(&self, test: &str) -> World {
        let mut world = World::new(test);
        world.kafka.clone_from(&self.broker.address);
        world
    }

    /// The setting that makes the broker's certificate trusted.
    pub fn trust(&self) -> String {
        format!("ssl.ca.location={}", self.broker.directory.join("ca.pem").display())
    }

    /// The program on the closed port, with a login by the two variables.
    pub fn command(&self, world: &World, secret: &str) -> Command {
        let mut command = world.command();
        command
            .env("KAFKA_URL", &self.address)
            .env("KAFKA_WEB_TRAFFIC_KEY", USER)
            .env("KAFKA_WEB_TRAFFIC_SECRET", secret);
        command
    }
}

/// Runs a command that must give up with this exit code, within its start timeout of three seconds;
/// gives its log.
fn give_up(mut command: Command, code: i32) -> String {
    let began = Instant::now();
    command.args(["--start-timeout", "3s"]);
    let (status, log) = finish(command);
    let took = began.elapsed();
    assert_eq!(status.code(), Some(code), "{log}");
    assert!(took < Duration::from_secs(20), "after {took:?}:\n{log}");
    log
}

#[test]
fn a_key_and_a_secret_log_in_over_tls() {
    let secured = Secured::shared();
    let world = secured.world("plain");
    let mut produce = secured.command(&world, PASSWORD);
    produce.args(["produce", "--historical", "1d", "--number", "500", "--partitions", "2"]);
    produce.args(["--kafka-config", &secured.trust()]);
    let (status, log) = finish(produce);
    assert!(status.success() && !log.contains(PASSWORD), "{status}:\n{log}");
    let mut job = secured.command(&world, PASSWORD);
    job.args(["--until-end", "-w", "2", "--kafka-config", &secured.trust()]);
    job.env("RUST_LOG", "trace,librdkafka=trace");
    let (status, log) = finish(job);
    assert!(status.success() && !log.contains(PASSWORD), "{status}:\n{log}");
    assert_eq!(world.rows(), world.answer(&world.name));
    let totals = world.query("select records, difference from sessionizer.balance");
    assert_eq!(totals, [["500", "0"]]);
}

#[test]
fn a_wrong_secret_is_reported_in_time_and_never_shown() {
    let secured = Secured::shared();
    let world = secured.world("wrong");
    world.create_topic(1);
    at_once(["PLAIN", "SCRAM-SHA-512"], |mechanism| {
        let mut job = secured.command(&world, "mistaken-0815");
        let mechanism = format!("sasl.mechanism={mechanism}");
        job.args(["--kafka-config", &mechanism, "--kafka-config", &secured.trust()]);
        job.env("RUST_LOG", "trace,librdkafka=trace");
        let log = give_up(job, 2);
        for part in ["uthentication failed", "KAFKA_WEB_TRAFFIC_SECRET", &secured.address] {
            assert!(last_error(&log).contains(part), "{part:?} is missing in\n{log}");
        }
        assert!(!log.contains("mistaken-0815"), "{log}");
    });
}

fn last_error(log: &str) -> &str {
    log.lines().rfind(|line| line.contains("ERROR")).unwrap_or_else(|| panic!("no error:\n{log}"))
}

#[test]
fn scram_is_a_matter_of_settings() {
    let secured = Secured::shared();
    let world = secured.world("scram");
    world.create_topic(1);
    let events = visits("h", 30);
    world.send_events(0, &events);
    // On top of the two variables, or without them, by flags or in the environment.
    let mut by_variables = secured.command(&world, PASSWORD);
    let mechanism = "sasl.mechanism=SCRAM-SHA-512";
    by_variables.args(["--kafka-config", mechanism, "--kafka-config", &secured.trust()]);
    let mut by_settings = world.command();
    let settings = format!(
        "security.protocol=SASL_SSL; {mechanism}; sasl.username={USER}; sasl.password={PASSWORD};{}",
        secured.trust()
    );
    by_settings.env("KAFKA_URL", &secured.address).env("SESSIONIZER_KAFKA_CONFIG", settings);
    at_once([("variables", by_variables), ("settings", by_settings)], |(name, mut job)| {
        job.args(["--until-end", "--job", name, "--table", name]);
        let (status, log) = finish(job);
        assert!(status.success() && !log.contains(PASSWORD), "{status}:\n{log}");
        assert_eq!(world.rows_of(name), sessions(&events), "by {name}");
    });
}

#[test]
fn what_is_wrong_with_a_connection_is_reported() {
    let secured = Secured::shared();
    let world = secured.world("mismatched");
    world.create_topic(1);
    let nobody_vouches_for_the_certificate = secured.command(&world, PASSWORD);
    let mut no_login_where_one_is_needed = world.command();
    no_login_where_one_is_needed.env("KAFKA_URL", &secured.address);
    let mut a_login_where_none_is_needed = secured.command(&world, PASSWORD);
    a_login_where_none_is_needed.env("KAFKA_URL", &world.kafka);
    let cases = [
        (
            nobody_vouches_for_the_certificate,
            2,
            ["certificate", "ssl.ca.location=FILE", "KAFKA_URL"],
        ),
        (
            no_login_where_one_is_needed,
            1,
            ["Disconnected", "check KAFKA_", "KAFKA_WEB_TRAFFIC_KEY"],
        ),
        (a_login_where_none_is_needed, 1, ["SSL", "check KAFKA_", "KAFKA_WEB_TRAFFIC_KEY"]),
    ];
    at_once(cases, |(command, code, says)| {
        let log = give_up(command, code);
        for part in says {
            assert!(last_error(&log).contains(part), "{part:?} is missing in\n{log}");
        }
        assert!(!log.contains(PASSWORD), "{log}");
    });
}

#[test]
fn half_a_login_is_a_mistake() {
    let world = World::new("half");
    let (key, secret) = ("KAFKA_WEB_TRAFFIC_KEY", "KAFKA_WEB_TRAFFIC_SECRET");
    for (set, missing) in [(key, secret), (secret, key)] {
        let produce = ["produce", "--number", "1"];
        for args in [&[][..], &produce] {
            let (code, log) = fail(&world, &[(set, PASSWORD)], args);
            assert_eq!(code, 2, "{log}");
            assert!(log.contains(&format!("{missing}  is not set")), "{log}");
            assert!(!log.contains(PASSWORD), "{log}");
        }
    }
}
