//! `sessionizer open`: what is open is listed, with the age of the list, whether the job runs or
//! not, and by a login that may only read.

use serde_json::Value;

use crate::kafka::{PAST_MS, start, wait_for_records};
use crate::oracle::{Event, event};
use crate::world::{World, chrono_now_ms, eventually};

struct Open {
    code: Option<i32>,
    said: String,
    log: String,
}

fn open(world: &World, args: &[&str], env: &[(&str, &str)]) -> Open {
    let mut command = world.command();
    command.env_remove("KAFKA_URL").env_remove("KAFKA_TOPIC");
    command.arg("open").args(args).envs(env.iter().copied());
    let output = command.output().expect("the program was built");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Open { code: output.status.code(), said: text(&output.stdout), log: text(&output.stderr) }
}

fn says(world: &World, args: &[&str]) -> String {
    let open = open(world, args, &[]);
    assert_eq!(open.code, Some(0), "{}\n{}", open.said, open.log);
    open.said
}

fn json(world: &World, args: &[&str]) -> Value {
    let said = says(world, &[&["--json"], args].concat());
    serde_json::from_str(&said).unwrap_or_else(|why| panic!("{why}:\n{said}"))
}

/// (ip, host, events) of the listed sessions.
fn listed(document: &Value) -> Vec<(String, String, u64)> {
    let sessions = document["sessions"].as_array().expect("a list");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let of = |s: &Value| (text(&s["ip"]), text(&s["host"]), s["events"].as_u64().expect("a count"));
    sessions.iter().map(of).collect()
}

#[test]
fn open_sessions_are_listed_while_the_job_runs_and_while_it_does_not() {
    let world = World::new("open");
    world.create_topic(1);
    let args = ["--snapshot-interval", "300ms", "--idle-timeout", "1h", "-w", "2"];
    let job = start(&world, &args);
    // One session closes, three stay open: the watermark is older than the newest event.
    let events: Vec<Event> = [
        ("192.0.2.1", "shop", 0),
        ("192.0.2.7", "shop", 600_000),
        ("192.0.2.7", "www", 600_100),
        ("192.0.2.8", "shop", 600_200),
        ("192.0.2.7", "shop", 600_300),
    ]
    .map(|(ip, host, at)| event(ip, host, PAST_MS + at))
    .to_vec();
    world.send_events(0, &events);
    wait_for_records(&world, events.len());
    let row = |ip: &str, host: &str, events| (ip.to_owned(), host.to_owned(), events);
    let all =
        [row("192.0.2.7", "shop", 2), row("192.0.2.8", "shop", 1), row("192.0.2.7", "www", 1)];
    eventually("the snapshots have them", || listed(&json(&world, &[])) == all);
    let generation = "select sum(generation), max(run) from sessionizer.shard_progress";
    let before = world.query(generation);

    let document = json(&world, &["--ip", "192.0.2.7", "--limit", "1"]);
    assert_eq!(listed(&document), all[..1]);
    assert_eq!((&document["open_sessions"], &document["events"]), (&2.into(), &3.into()));
    let text = &document["sessions"][0];
    assert_eq!(text["first"], "2023-11-14T22:23:20.000Z");
    assert_eq!(text["last"], "2023-11-14T22:23:20.300Z");
    assert_eq!(listed(&json(&world, &["--host", "shop"])), all[..2]);
    assert_eq!(listed(&json(&world, &["--ip", "192.0.2.7", "--host", "www"])), all[2..]);
    assert_eq!(listed(&json(&world, &["--ip", "192.0.2.1"])), []);
    assert_eq!(world.query(generation), before, "it takes no fence");
    job.stop();

    // All snapshots are of the last epoch now, and the summary says when that was.
    let document = json(&world, &[]);
    assert_eq!(listed(&document), all);
    assert_eq!(document["snapshots"]["oldest"], document["snapshots"]["newest"]);
    let epoch = world.value("select max(epoch) from sessionizer.shard_progress");
    let at: i64 = epoch.parse().expect("milliseconds");
    assert!((0..60_000).contains(&(chrono_now_ms() - at)), "{epoch}");
    let time = chrono::DateTime::from_timestamp_millis(at).expect("a time");
    let said = says(&world, &[]);
    let summary = format!("3 open sessions with 4 events in the job {}.", world.name);
    assert_eq!(said.lines().next(), Some(&*summary), "{said}");
    let as_of = format!("As of {} UTC, ", time.format("%Y-%m-%d %H:%M:%S"));
    assert!(said.lines().nth(1).is_some_and(|line| line.starts_with(&as_of)), "{said}");
    assert!(said.contains("2023-11-14 22:23:20"), "{said}");

    // Nothing but reading is needed.
    let role = world.role();
    world.execute(&format!(
        "create role {role} login; grant usage on schema sessionizer to {role};
         grant select on sessionizer.jobs, sessionizer.snapshots to {role}"
    ));
    let read = open(&world, &["--json"], &[("POSTGRES_USER", &role)]);
    assert_eq!((read.code, read.said), (Some(0), says(&world, &["--json"])), "{}", read.log);

    // A drain closes everything.
    world.run_to_end(&[]);
    let said = says(&world, &[]);
    assert!(said.starts_with("No open session in the job "), "{said}");
}

#[test]
fn a_job_that_is_not_there_is_named_with_those_that_are() {
    let world = World::new("open-nobody");
    let why = |args: &[&str], says: &str| {
        let refused = open(&world, args, &[]);
        assert_eq!(refused.code, Some(2), "{}\n{}", refused.said, refused.log);
        assert!(refused.log.contains(says), "{says:?} is missing in\n{}", refused.log);
    };
    why(&[], "there are no jobs yet");
    world.create_topic(1);
    let job = start(&world, &[]);
    job.stop();
    why(
        &["--job", "nobody"],
        &format!("there is no job nobody in the database {}", world.database),
    );
    why(&["--job", "nobody"], &format!("the jobs are: {}", world.name));
    why(&["--limit", "many"], "--limit");
    let role = world.role();
    world.execute(&format!("create role {role} login"));
    let refused = open(&world, &[], &[("POSTGRES_USER", &role)]);
    let grants = "grant usage on schema sessionizer to LOGIN; grant select on sessionizer.jobs, \
                  sessionizer.snapshots to LOGIN;";
    assert!(refused.code == Some(2) && refused.log.contains(grants), "{}", refused.log);
    world.execute(&grants.replace("LOGIN", &role));
    let allowed = open(&world, &[], &[("POSTGRES_USER", &role)]);
    assert_eq!(allowed.code, Some(0), "{}", allowed.log);
}
