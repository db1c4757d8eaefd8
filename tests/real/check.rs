//! `sessionizer check`: what it says in each case, and that it changes nothing.

use std::collections::BTreeMap;
use std::process::Command;

use rdkafka::consumer::Consumer;
use serde_json::Value;

use crate::brokers::Broker;
use crate::kafka::{at_once, wait_for_records};
use crate::oracle::event;
use crate::postgres::{MINUTE, TEN};
use crate::secured::Secured;
use crate::user_table::COLUMNS;
use crate::world::{PATIENCE, World, chrono_now_ms, eventually, finish, json};

/// A password that must not appear anywhere. The servers of these tests take any.
const CANARY: &str = "hunter2-@:/?#% ä";

/// Runs a check. Returns the exit code and what it has printed, on both streams.
pub fn check(world: &World, args: &[&str], env: &[(&str, &str)]) -> (i32, String) {
    check_by(world.command(), args, env)
}

fn check_by(mut command: Command, args: &[&str], env: &[(&str, &str)]) -> (i32, String) {
    // Other tests keep the processors busy.
    command.env("POSTGRES_PASSWORD", CANARY).env("SESSIONIZER_TIMEOUT", "20s");
    command.arg("check").args(args);
    let output = command.envs(env.iter().copied()).output().expect("the program was built");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    let (said, log) = (text(output.stdout), text(output.stderr));
    assert!(!said.contains(CANARY) && !log.contains(CANARY), "{said}\n{log}");
    assert!(!log.contains("panicked"), "{log}");
    let code = output.status.code().unwrap_or_else(|| panic!("{}:\n{log}", output.status));
    (code, format!("{log}{said}"))
}

/// The sign of each code in a report that is not printed on a terminal.
fn signs(said: &str) -> BTreeMap<String, String> {
    let lines = said.lines().filter_map(|line| {
        let (sign, rest) = line.trim_start().split_once(' ')?;
        let code = rest.trim_start().split(' ').next()?;
        let is_line = ["ok", "warn", "FAIL"].contains(&sign) && code.starts_with("SZ-");
        is_line.then(|| (code.to_owned(), sign.to_owned()))
    });
    lines.collect()
}

/// The codes that are not good.
pub fn bad(said: &str) -> Vec<String> {
    let bad = signs(said).into_iter().filter(|(_, sign)| sign != "ok");
    bad.map(|(code, sign)| format!("{sign} {code}")).collect()
}

/// The report with spaces for line breaks, which depend on the length of names.
pub fn flat(said: &str) -> String {
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Makes Kafka create its topic of offsets, as the first consumer of any test would do.
fn accustom(world: &World) {
    check(world, &["--only", "data"], &[]);
    eventually("Kafka has its topic of offsets", || {
        let metadata = world.consumer("asks").fetch_metadata(None, PATIENCE);
        let metadata = metadata.expect("the broker answers");
        metadata.topics().iter().any(|topic| topic.name() == "__consumer_offsets")
    });
}

/// A world with recent events.
fn world(test: &str) -> World {
    let world = World::new(test);
    world.create_topic(2);
    let now = chrono_now_ms();
    for partition in 0..2 {
        let events = (0..50).map(|at| json(&event("10.0.0.1", "h", now - 600_000 + at * 1_000)));
        world.send(partition, events.map(Some));
    }
    accustom(&world);
    world
}

#[test]
fn a_first_start_is_foretold() {
    let world = world("check_first");
    let (code, said) = check(&world, &[], &[]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(bad(&said), Vec::<String>::new(), "{said}");
    for part in [
        "all 100 sampled records are events",
        "the first start creates the schema sessionizer",
        "would begin at the earliest offsets: 100 records to read",
        "no instance of the job is running",
    ] {
        assert!(flat(&said).contains(part), "{part:?} is missing in\n{said}");
    }
    assert!(said.is_ascii(), "without a terminal: {said}");
    assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(last.starts_with("good: "), "{last}");

    let (code, document) = check(&world, &["--json"], &[]);
    assert_eq!(code, 0, "{document}");
    let document: Value = serde_json::from_str(&document).expect("JSON");
    assert_eq!(document["format"], 1);
    assert_eq!(document["job"], world.name.as_str());
    assert_eq!(document["plan"]["kind"], "first start");
    assert_eq!(document["plan"]["records"], 100);
    assert_eq!(document["partitions"][1]["end"], 50);
    assert!(document["findings"].as_array().is_some_and(|found| found.len() > 20));

    // To check one part, the settings of the others are not needed.
    let nothing = [("POSTGRES_URL", "")];
    let (code, said) = check(&world, &["--only", "kafka"], &nothing);
    assert_eq!(code, 0, "{said}");
    assert!(signs(&said).keys().all(|code| code.starts_with("SZ-K")), "{said}");
    let (code, said) = check(&world, &["--no-connect"], &[("KAFKA_URL", "127.0.0.1:1")]);
    assert_eq!((code, signs(&said).len()), (0, 1), "{said}");
}

#[test]
fn a_running_job_is_found_and_left_alone() {
    let world = world("check_running");
    let mut job = world.start(&["--epoch", "100ms"]);
    job.wait_for("first start of the job");
    wait_for_records(&world, 100);
    let (code, said) = check(&world, &[], &[]);
    assert_eq!(code, 3, "{said}");
    assert_eq!(bad(&said), ["FAIL SZ-L04"], "{said}");
    assert!(flat(&said).contains("would continue at epoch 20"), "{said}");
    assert!(said.lines().last().is_some_and(|l| l.contains("instance of the job is running")));
    // It was not fenced: it goes on.
    world.send_events(0, &[event("10.0.0.2", "h", chrono_now_ms())]);
    wait_for_records(&world, 101);
    assert!(job.is_running(), "{}", job.log());
    let log = job.stop();
    assert!(!log.contains("taken over"), "{log}");
    let (code, said) = check(&world, &[], &[]);
    assert_eq!(code, 0, "{said}");
}

/// The exit code, the codes that are not good, and words of the report.
type Fails = (i32, &'static [&'static str], &'static [&'static str]);
/// Variables.
type Variables = &'static [(&'static str, &'static str)];
/// Statements, flags, variables, and what fails.
type Case = (&'static str, &'static [&'static str], Variables, Fails);

/// `$t` is the table, `$r` a login without rights.
const CASES: &[Case] = &[
    ("", &["--gapp-less"], &[], (2, &[], &["unexpected argument"])),
    ("", &["--only", "kafak"], &[], (2, &[], &["settings, kafka, data"])),
    (
        "",
        &[],
        &[("SESSIONIZER_GAP", "x"), ("SESSIONIZER_TABEL", "y")],
        (2, &["FAIL SZ-S01", "warn SZ-S02", "warn SZ-L01"], &["SESSIONIZER_TABLE?"]),
    ),
    (
        "",
        &["--kafka-config", "security.protocol=ssl", "--kafka-config", "ssl.ca.location=/nowhere.pem"],
        &[],
        (2, &["FAIL SZ-K02", "FAIL SZ-S04", "warn SZ-L01"], &["/nowhere.pem cannot be read"]),
    ),
    (
        "",
        &[],
        &[("KAFKA_TOPIC", "nothing-of-this-name")],
        (2, &["FAIL SZ-K03", "warn SZ-L01"], &["kafka-topics.sh --create"]),
    ),
    (
        "",
        &[],
        &[("KAFKA_URL", "127.0.0.1:1")],
        (1, &["FAIL SZ-K01", "warn SZ-L01"], &["Connection refused", "ok   SZ-P08"]),
    ),
    (
        "",
        &[],
        &[("POSTGRES_URL", "postgres://127.0.0.1:1/d")],
        (1, &["FAIL SZ-P01", "warn SZ-L01"], &["Connection refused", "ok   SZ-D01"]),
    ),
    (
        "",
        &[],
        &[("POSTGRES_USER", "nobody-of-this-name")],
        (2, &["FAIL SZ-P01", "warn SZ-L01"], &["nobody-of-this-name"]),
    ),
    (
        "create table $t ($c, primary key (ip, host, session_start));
         alter table $t alter num_logs type integer",
        &[],
        &[],
        (2, &["FAIL SZ-P08", "warn SZ-L01"], &["alter column num_logs type bigint using num_logs::bigint;"]),
    ),
    (
        "create table $t ($c, more text not null); alter table $t alter num_logs type integer;
         alter table $t drop column host",
        &[],
        &[],
        (
            2,
            &["FAIL SZ-P08", "warn SZ-L01"],
            &[
                "its column more needs a value and has no default; it has no column host; its column
                 num_logs is of type integer, it must be bigint",
                "add column host text; alter table public.sessionized_events alter column num_logs
                 type bigint using num_logs::bigint;",
            ],
        ),
    ),
    (
        "create table $t ($c, primary key (ip, host, session_start));
         alter table $t alter ip type varchar(15)",
        &[],
        &[],
        (0, &["warn SZ-P09"], &["alter column ip type text;"]),
    ),
    (
        "create table $t ($c, primary key (ip, host, session_start));
         alter table $t alter ip type inet using ip::inet",
        &[],
        &[],
        (2, &["FAIL SZ-P08", "warn SZ-L01"], &["alter column ip type text using host(ip);"]),
    ),
    ("create table $t ($c)", &[], &[], (0, &["warn SZ-P10"], &["create unique index concurrently"])),
    (
        "create table $t ($c, primary key (ip, host, session_start));
         create role $r login; grant select, insert on $t to $r;
         create schema sessionizer authorization $r",
        &[],
        &[("POSTGRES_USER", "$r")],
        (2, &["FAIL SZ-P11", "warn SZ-L01"], &["grant delete on public.sessionized_events to"]),
    ),
    (
        "create role $r login; revoke create on schema public from public",
        &[],
        &[("POSTGRES_USER", "$r")],
        (
            2,
            &["FAIL SZ-P06", "FAIL SZ-P08", "warn SZ-L01"],
            &["create schema sessionizer authorization", "grant create on schema \"public\""],
        ),
    ),
    (
        "create table $t ($c, primary key (ip, host, session_start));
         create function f() returns trigger language plpgsql as 'begin return null; end';
         create trigger keeps_out before insert on $t for each row execute function f()",
        &[],
        &[],
        (0, &["warn SZ-P13"], &["keeps_out (public.f)", "disable trigger keeps_out;"]),
    ),
    (
        "create table $t ($c, primary key (ip, host, session_start)); create role $r login;
         grant all on $t to $r; alter table $t enable row level security;
         create schema sessionizer authorization $r",
        &[],
        &[("POSTGRES_USER", "$r")],
        (2, &["FAIL SZ-P12", "warn SZ-L01"], &["disable row level security"]),
    ),
    (
        "create table $t ($c, unique (ip, host, session_start)); create publication p for all tables",
        &[],
        &[],
        (2, &["FAIL SZ-P14"], &["publication p", "add primary key"]),
    ),
    (
        "alter database $d set default_transaction_read_only = on",
        &[],
        &[],
        (1, &["FAIL SZ-P03"], &["reset default_transaction_read_only;", "ok   SZ-P08"]),
    ),
    (
        "alter database $d set synchronous_commit = off; alter database $d connection limit 5;
         create role $r login; grant create on database $d to $r;
         grant create on schema public to $r",
        &[],
        &[("POSTGRES_USER", "$r"), ("SESSIONIZER_SINK_CONNECTIONS", "8")],
        (1, &["FAIL SZ-P16", "warn SZ-P18"], &["connection limit -1;"]),
    ),
];

#[test]
fn each_failure_has_its_code_and_its_remedy() {
    let shared = world("check_cases");
    at_once(CASES.iter().enumerate(), |(at, (sql, args, env, (code, codes, words)))| {
        let mut world = World::new(&format!("check_case_{at}"));
        let role = world.role();
        let named = |text: &str| {
            text.replace("$t", "sessionized_events")
                .replace("$c", COLUMNS)
                .replace("$d", &world.database)
                .replace("$r", &role)
        };
        if !sql.is_empty() {
            world.execute(&named(sql));
        }
        let env: Vec<(&str, String)> =
            env.iter().map(|(name, value)| (*name, named(value))).collect();
        world.name.clone_from(&shared.name);
        let mut command = world.command();
        command.envs(env.iter().map(|(name, value)| (*name, value)));
        let (got, said) = check_by(command, args, &[]);
        assert_eq!(got, *code, "{at}: {said}");
        let mut wanted: Vec<String> = codes.iter().map(|code| (*code).to_owned()).collect();
        let mut found = bad(&said);
        wanted.sort();
        found.sort();
        assert_eq!(found, wanted, "{at}: {said}");
        let joined = flat(&said);
        for word in *words {
            let word = flat(word);
            assert!(joined.contains(&word), "{at}: {word:?} is missing in\n{said}");
        }
        // World removes its own topics by their prefix, and these are not its own.
        world.name = format!("{}-x", world.database);
        if sql.contains("$r") {
            let drop = format!("drop owned by {role} cascade");
            world.execute(&format!("set default_transaction_read_only = off; {drop}"));
        }
    });
}

#[test]
fn events_in_another_unit_are_told() {
    let world = world("check_units");
    let now = chrono_now_ms();
    for (topic, time, code, bad_codes) in [
        ("seconds", (now / 1_000).to_string(), 2, vec!["FAIL SZ-D02"]),
        ("micros", (now * 1_000).to_string(), 2, vec!["FAIL SZ-D01", "FAIL SZ-D02"]),
        ("ahead", (now + 7_200_000).to_string(), 0, vec!["warn SZ-D03"]),
    ] {
        let topic = format!("{}-{topic}", world.name);
        world.create(&topic, 1, &[]);
        let payload = format!(r#"{{"ip":"a","host":"h","event_time":{time}}}"#);
        world.send_to(&topic, 0, [Some(&payload), Some(&payload)]);
        let (got, said) = check(&world, &[], &[("KAFKA_TOPIC", &topic)]);
        assert_eq!(
            (got, bad(&said)),
            (code, bad_codes.iter().map(ToString::to_string).collect()),
            "{said}"
        );
    }
}

#[test]
fn what_a_start_would_refuse_is_told_with_the_words_of_the_start() {
    let world = world("check_refused");
    world.run_to_end(&[]);
    let (code, said) = check(&world, &["--gap", "10m"], &[]);
    assert_eq!((code, bad(&said)), (2, vec!["warn SZ-L01".into(), "FAIL SZ-P19".into()]), "{said}");
    assert!(flat(&said).contains("its gap is 5m, not 10m"), "{said}");
    // Another job, and a table with rows.
    let other = [("SESSIONIZER_JOB", "other")];
    let (code, said) = check(&world, &[], &other);
    assert_eq!((code, bad(&said)), (2, vec!["warn SZ-L01".into(), "FAIL SZ-P19".into()]), "{said}");
    world.execute(
        "create table filled (like sessionized_events including all);
                   insert into filled select * from sessionized_events",
    );
    let filled = [("SESSIONIZER_JOB", "other"), ("SESSIONIZER_TABLE", "filled")];
    let (code, said) = check(&world, &[], &filled);
    assert_eq!((code, bad(&said)), (2, vec!["FAIL SZ-L01".to_owned()]), "{said}");
    assert!(flat(&said).contains("--from group"), "{said}");
    // Kafka has lost what is needed.
    world.send_events(0, &vec![event("10.0.0.3", "h", TEN); 9]);
    world.delete_records(&world.name, 0, 55);
    let (code, said) = check(&world, &[], &[]);
    assert_eq!((code, bad(&said)), (2, vec!["FAIL SZ-L02".to_owned()]), "{said}");
    assert!(said.contains("--accept-lost-offsets"), "{said}");
    let (code, said) = check(&world, &["--accept-lost-offsets"], &[]);
    assert_eq!((code, bad(&said)), (0, vec!["warn SZ-L02".to_owned()]), "{said}");
}

#[test]
fn a_check_waits_until_nothing_fails() {
    let world = world("check_wait");
    let topic = format!("{}-later", world.name);
    let env = [("KAFKA_TOPIC", topic.as_str())];
    let (code, said) = std::thread::scope(|scope| {
        let waits = scope.spawn(|| check(&world, &["--wait", "60s"], &env));
        std::thread::sleep(std::time::Duration::from_millis(1_500));
        world.create(&topic, 1, &[]);
        waits.join().expect("it ends")
    });
    assert_eq!(code, 0, "{said}");
    assert!(flat(&said).contains("of 1 min: SZ-K03"), "{said}");
    // It does not wait for what cannot pass by itself.
    let began = std::time::Instant::now();
    let (code, said) = check(&world, &["--wait", "60s", "--gap", "x"], &[]);
    assert_eq!(code, 2, "{said}");
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{said}");
}

#[test]
fn a_wrong_secret_and_a_wrong_mechanism_are_told_apart() {
    let secured = Secured::shared();
    let world = secured.world("check_secured");
    world.create_topic(1);
    let trust = secured.trust();
    let login = |args: &[&str]| {
        let args = [&["--only", "kafka", "--kafka-config", &trust], args].concat();
        check_by(secured.command(&world, CANARY), &args, &[])
    };
    let (code, said) = login(&[]);
    assert_eq!((code, bad(&said)), (2, vec!["FAIL SZ-K02".to_owned()]), "{said}");
    assert!(said.contains("KAFKA_WEB_TRAFFIC_SECRET"), "{said}");
    let (code, said) = login(&["--kafka-config", "sasl.mechanism=SCRAM-SHA-256"]);
    assert_eq!((code, bad(&said)), (2, vec!["FAIL SZ-K02".to_owned()]), "{said}");
    assert!(said.contains("PLAIN"), "it says what the broker offers: {said}");
}

/// Everything that is in the database, as a dump.
fn dump(world: &World) -> String {
    let (host, port) = world.server.rsplit_once(':').expect("host:port");
    let mut command = Command::new("pg_dump");
    command.args(["-h", host, "-p", port, "-U", &world.user, "-d", &world.database]);
    let output = command.env("PGPASSWORD", &world.password).output().expect("pg_dump can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8_lossy(&output.stdout);
    // pg_dump writes a key that protects against injection, random for each dump.
    let lines =
        text.lines().filter(|l| !l.starts_with("\\restrict") && !l.starts_with("\\unrestrict"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Everything that is in Kafka: topics with the ends of their partitions, and groups.
fn inventory(world: &World) -> String {
    // Without a group: asking must not change what is asked for.
    let consumer: rdkafka::consumer::BaseConsumer =
        world.kafka_client().set("isolation.level", "read_uncommitted").create().expect("a client");
    let metadata = consumer.fetch_metadata(None, PATIENCE).expect("the broker answers");
    let mut lines = Vec::new();
    for topic in metadata.topics() {
        for partition in topic.partitions() {
            let ends = consumer.fetch_watermarks(topic.name(), partition.id(), PATIENCE);
            lines.push(format!("{} {} {:?}", topic.name(), partition.id(), ends.ok()));
        }
    }
    let groups = consumer.fetch_group_list(None, PATIENCE).expect("the broker answers");
    for group in groups.groups() {
        lines.push(format!("group {} {}", group.name(), group.state()));
    }
    lines.sort();
    lines.join("\n")
}

#[test]
fn a_check_changes_nothing() {
    let broker = Broker::start("check");
    let mut world = World::new("check_nothing");
    world.kafka.clone_from(&broker.address);
    // Not with the functions of the tests, which are consumers with a group.
    let mut produce = world.command();
    produce.args(["produce", "--number", "1", "--historical", "1d", "--partitions", "2"]);
    let (status, log) = finish(produce);
    assert!(status.success(), "{log}");
    let now = chrono_now_ms();
    world.send_events(0, &[event("10.0.0.1", "h", now - 20 * MINUTE)]);
    let unchanged = |env: &[(&str, &str)], code: i32| {
        let before = (dump(&world), inventory(&world));
        for args in [&[][..], &["--json", "-w", "2", "--until-end"]] {
            let (got, said) = check(&world, args, env);
            assert_eq!(got, code, "{args:?}: {said}");
        }
        assert_eq!(before.0, dump(&world));
        assert_eq!(before.1, inventory(&world));
    };
    // Neither a schema nor a table, and a Kafka that no consumer has used.
    let (code, said) = check(&world, &[], &[]);
    assert_eq!((code, bad(&said)), (0, vec!["warn SZ-K06".to_owned()]), "{said}");
    unchanged(&[], 0);
    assert!(!inventory(&world).contains("__consumer_offsets"));
    // A job that has written rows, a late event that waits, and a bad record.
    world.run_to_end(&[]);
    world.send_events(0, &[event("10.0.0.1", "h", now - 20 * MINUTE + 1)]);
    world.send(1, [Some("{")]);
    unchanged(&[], 0);
    // Starts that would be refused.
    unchanged(&[("SESSIONIZER_GAP", "10m")], 2);
    unchanged(&[("KAFKA_TOPIC", "missing")], 2);
    // The job is as before: it goes on, and nothing is there twice.
    world.run_to_end(&[]);
    assert_eq!(world.rows().len(), 2);
    assert_eq!(world.imbalance(), "0");
}
