//! The rights of a Kafka login: those that deploy/kafka/acls.sh grants are enough, and each missing
//! right is named at the start.

use std::io::Write;
use std::process::Command;

use crate::brokers::Broker;
use crate::kafka::{at_once, visits};
use crate::oracle::sessions;
use crate::world::{Running, World, eventually, finish};

const PASSWORD: &str = "wonder-4711";
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Settings of a broker that checks rights. A login without a name may do anything.
pub const CHECKS_RIGHTS: &str = "
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
";

/// A broker that checks rights on its second port. The first is for the test, which may do
/// anything.
fn guarded(test: &str, logins: &[&str]) -> (Broker, String) {
    let mut broker = Broker::new(test);
    let address = broker.services(&format!("secure admin {PASSWORD}"));
    let users: String =
        logins.iter().map(|login| format!(" user_{login}=\"{PASSWORD}\"")).collect();
    let settings = format!(
        "{CHECKS_RIGHTS}\
         listener.name.secure.plain.sasl.jaas.config=\
         org.apache.kafka.common.security.plain.PlainLoginModule required{users};\n"
    );
    append(&broker, &settings);
    broker.address = broker.services("start");
    (broker, address)
}

/// Appends to the settings of the second port of a broker that is not running yet. If a setting is
/// there twice, the last one counts.
pub fn append(broker: &Broker, settings: &str) {
    let path = broker.directory.join("secure.properties");
    let file = std::fs::File::options().append(true).open(path);
    file.and_then(|mut file| file.write_all(settings.as_bytes())).expect("it can be written");
}

/// Kafka's tool for rights, as a command line.
fn acl_tool(broker: &Broker) -> String {
    let directory = broker.directory.display();
    format!("{ROOT}/scripts/services kafka tool {directory} org.apache.kafka.tools.AclCommand")
}

fn granted(mut command: Command) {
    let output = command.output().expect("it can be run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
}

/// Grants a login the rights that are documented.
pub fn grant_least(broker: &Broker, login: &str, world: &World) {
    let mut least = Command::new(format!("{ROOT}/deploy/kafka/acls.sh"));
    least.env("KAFKA_ACLS", acl_tool(broker)).args([login, &world.name, &world.name]);
    granted(least);
}

/// Grants one right on a topic (`--topic`) or a group (`--group`).
fn grant(broker: &Broker, login: &str, right: &str, (resource, name): (&str, &str)) {
    let acls = acl_tool(broker);
    let mut words = acls.split(' ');
    let mut grant = Command::new(words.next().expect("a program"));
    let login = format!("User:{login}");
    grant.args(words).args(["--add", "--allow-principal", &login, "--operation", right]);
    grant.args([resource, name]);
    granted(grant);
}

#[test]
fn the_rights_that_are_documented_are_enough_and_a_missing_one_is_named() {
    let (broker, address) = guarded("guarded", &["least", "describes", "reads", "nobody"]);
    let mut world = World::new("rights");
    world.kafka.clone_from(&broker.address);
    world.create_topic(2);
    let events = visits("a", 30);
    world.send_events(0, &events);
    grant_least(&broker, "least", &world);
    for (login, right, resource) in [
        ("describes", "Describe", "--topic"),
        ("describes", "Read", "--group"),
        ("reads", "Read", "--topic"),
    ] {
        grant(&broker, login, right, (resource, &world.name));
    }
    let trust = format!("ssl.ca.location={}", broker.directory.join("ca.pem").display());
    let run = |login: &str, args: &[&str]| {
        let mut job = world.command();
        job.env("KAFKA_URL", &address)
            .env("KAFKA_WEB_TRAFFIC_KEY", login)
            .env("KAFKA_WEB_TRAFFIC_SECRET", PASSWORD)
            .args(["--until-end", "--kafka-config", &trust, "--job", login, "--table", login])
            .args(args);
        let (status, log) = finish(job);
        (status.code(), log)
    };
    let topic = &world.name;
    at_once(["least", "describes", "reads", "nobody"], |login| {
        let (code, log) = run(login, &["--from", "earliest"]);
        let says: &[&str] = match login {
            "least" => {
                assert_eq!((code, log.contains("WARN")), (Some(0), false), "{log}");
                return assert_eq!(world.rows_of(login), sessions(&events));
            }
            "reads" => {
                assert_eq!(world.rows_of(login), sessions(&events), "{log}");
                &["WARN", "consumer group", "grant it READ on the group"]
            }
            "describes" => &["ERROR", topic, "grant it READ on the topic"],
            _ => &["ERROR", topic, "grant it READ and DESCRIBE"],
        };
        assert_eq!(code, Some(if login == "reads" { 0 } else { 2 }), "{login}: {log}");
        for part in says {
            assert!(log.contains(part), "{login}: {part:?} is missing in\n{log}");
        }
    });
    // The others were refused before they created a job, or took one over.
    let jobs = "select string_agg(job, ' ' order by job) from sessionizer.jobs";
    assert_eq!(world.value(jobs), "least reads");
    let (code, log) = run("describes", &["--job", "least", "--table", "least"]);
    assert_eq!(code, Some(2), "{log}");
    let generation =
        "select distinct generation from sessionizer.shard_progress where job = 'least'";
    assert_eq!(world.value(generation), "1", "nothing was taken over: {log}");
    let mut audit = world.command();
    audit
        .env("KAFKA_URL", &address)
        .env("KAFKA_WEB_TRAFFIC_KEY", "describes")
        .env("KAFKA_WEB_TRAFFIC_SECRET", PASSWORD)
        .args(["audit", "--kafka-config", &trust, "--job", "least"]);
    let (status, log) = finish(audit);
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("grant it READ on the topic"), "{log}");
}

/// librdkafka starts no partition that is assigned while a commit to the group is unanswered, and
/// one that has no coordinator waits for it.
#[test]
fn a_new_partition_is_read_although_the_group_cannot_be_used() {
    let (broker, address) = guarded("guarded-found", &["reads"]);
    let mut world = World::new("rights-found");
    world.kafka.clone_from(&broker.address);
    world.create_topic(1);
    let events = visits("a", 2_000);
    let (found, others) = events.split_at(10);
    let mut others = others.iter();
    world.send_events(0, others.next());
    grant(&broker, "reads", "Read", ("--topic", &world.name));
    let mut command = world.command();
    let trust = format!("ssl.ca.location={}", broker.directory.join("ca.pem").display());
    command.env("KAFKA_URL", &address).env("KAFKA_WEB_TRAFFIC_KEY", "reads");
    command.env("KAFKA_WEB_TRAFFIC_SECRET", PASSWORD).args(["--from", "earliest"]);
    command.args(["--kafka-config", &trust, "--epoch", "50ms", "--discovery-interval", "1s"]);
    let mut job = Running::start(command);
    job.wait_for("grant it READ on the group");
    job.wait_for("reading begins");
    world.add_partitions(&world.name, 2);
    world.send_events(1, found);
    let read = "select records from sessionizer.partitions where partition = 1";
    eventually("the new partition is read", || {
        // So that there is always something to commit.
        world.send_events(0, others.next());
        world.query(read) == [["10"]]
    });
    job.stop();
}
