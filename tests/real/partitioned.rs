//! A table that is partitioned by the beginning of a session, whose old partitions are dropped while
//! the job runs; and the recipe of docs/OPERATIONS.md for it.

use std::path::Path;
use std::process::Command;

use crate::documents::recipes;
use crate::oracle::{Event, event, sessions};
use crate::refusal::refused;
use crate::world::{World, chrono_now_ms, eventually, finish};

const MINUTE: i64 = 60_000;
const FAST: [&str; 4] = ["--epoch", "100ms", "--idle-timeout", "300ms"];

/// The SQL of the section "Retention and partitions".
fn recipe() -> Vec<&'static str> {
    recipes("Retention and partitions", "\n```sql")
}

/// Runs the file of the nightly job.
fn partitions(world: &World, settings: &[&str]) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/postgres/partitions.sql");
    let mut psql = Command::new("psql");
    psql.args(["-qX", "-v", "ON_ERROR_STOP=1"]).arg("-f").arg(file);
    psql.env("PGUSER", &world.user).env("PGPASSWORD", &world.password);
    settings.iter().for_each(|setting| _ = psql.args(["-v", setting]));
    psql.arg(format!("postgres://{}/{}", world.server, world.database));
    let output = psql.output().expect("psql is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn names(world: &World) -> Vec<String> {
    let sql = "select relid::regclass from pg_partition_tree('sessionized_events') where isleaf
               order by relid::regclass::text";
    world.query(sql).into_iter().map(|row| row[0].clone()).collect()
}

/// The beginning of a month in UTC, this many months after the current one.
fn month(world: &World, after: i64) -> i64 {
    let sql = format!(
        "select (extract(epoch from date_trunc('month', now() at time zone 'UTC')
                                    + {after} * interval '1 month') * 1000)::bigint"
    );
    world.value(&sql).parse().expect("a time")
}

/// How many rows there are, without those of [`tick`].
fn rows(world: &World) -> String {
    world.value("select count(*) from sessionized_events where host <> 'tick'")
}

/// An event that takes the watermark with it.
fn tick(time_ms: i64) -> Event {
    event("tick", "tick", time_ms)
}

#[test]
fn partitions_come_and_go_while_the_job_runs() {
    let world = World::new("partitioned");
    world.create_topic(1);
    world.execute(recipe()[0]);
    partitions(&world, &["keep=2", "ahead=1"]);
    assert_eq!(names(&world).len(), 4);
    let old = month(&world, -2) + 3 * MINUTE;
    let border = month(&world, 0);
    let last = month(&world, -1) + 3 * MINUTE;
    let now = chrono_now_ms() - 30 * MINUTE;
    let first = [
        event("old", "h", old),
        event("last", "h", last),
        // Seven minutes apart, in two months: too old to be now.
        event("across", "h", border - 3 * MINUTE),
        event("across", "h", border + 4 * MINUTE),
        event("now", "h", now),
        tick(now + 10 * MINUTE),
    ];
    let late = [
        event("last", "h", last + 2 * MINUTE),
        // Joins the two, which become one row in the earlier month.
        event("across", "h", border),
    ];
    let more = [event("again", "h", now + MINUTE), event("last", "h", last + 5 * MINUTE)];
    world.send_events(0, &first);
    let mut job = world.start(&FAST);
    eventually("five rows", || {
        world.value("select to_regclass('sessionizer.balance') is not null") == "t"
            && rows(&world) == "5"
    });
    // The oldest month goes, and another one ahead is made.
    partitions(&world, &["keep=1", "ahead=2"]);
    assert_eq!(names(&world).len(), 4);
    assert_eq!(rows(&world), "4");
    world.send_events(0, &late);
    eventually("late events have merged", || rows(&world) == "3");
    // Its month is gone.
    world.send_events(0, [&event("old", "h", old + MINUTE)]);
    eventually("a dead letter", || world.dead_letters() == [("row_refused".to_owned(), 1)]);
    job.wait_for("no partition of relation \"sessionized_events\" found for row");
    job.wait_for("). It is in sessionizer.dead_letters");
    job.kill();
    world.send_events(0, &more);
    let job = world.start(&FAST);
    eventually("it goes on", || rows(&world) == "4");
    job.stop();
    world.run_to_end(&[]);
    let kept: Vec<&Event> = first.iter().skip(1).chain(&late).chain(&more).collect();
    assert_eq!(world.rows(), sessions(kept));
    let border = "select tableoid::regclass::text from sessionized_events where ip = 'across'";
    assert_eq!(world.value(border), names(&world)[0]);
    assert_eq!(world.imbalance(), "0");
    let balance = "select closed, dead from sessionizer.balance";
    assert_eq!(world.query(balance), [["10", "1"]], "rows that were dropped stay counted");
    // The audit knows the topic alone: what was dropped is missing, and nothing else.
    let mut command = world.command();
    command.arg("audit");
    let audit = command.output().expect("the program was built");
    let said = String::from_utf8_lossy(&audit.stdout).into_owned();
    assert_eq!(audit.status.code(), Some(1), "{said}");
    assert!(said.contains("old") && !said.contains("across") && !said.contains("again"), "{said}");
}

#[test]
fn a_default_partition_takes_what_has_none() {
    let world = World::new("partitioned-default");
    world.create_topic(1);
    world.execute(recipe()[0]);
    partitions(&world, &["keep=2", "ahead=1"]);
    world.execute("create table rest partition of sessionized_events default");
    let old = month(&world, -2) + 3 * MINUTE;
    let now = chrono_now_ms() - 30 * MINUTE;
    world.send_events(0, &[event("old", "h", old), event("now", "h", now)]);
    world.run_to_end(&[]);
    partitions(&world, &["keep=1", "ahead=1"]);
    assert_eq!(rows(&world), "1");
    let after = event("old", "h", old + MINUTE);
    world.send_events(0, [&after]);
    world.run_to_end(&[]);
    assert_eq!(world.rows_of("rest"), sessions([&after]), "a session of its own");
    assert_eq!(world.dead_letters(), []);
    assert_eq!(world.imbalance(), "0");
}

#[test]
fn a_table_becomes_a_partition_of_another() {
    let world = World::new("partitioned-later");
    world.create_topic(1);
    let recipe = recipe();
    assert_eq!(recipe.len(), 3, "the table, and two steps for one that exists");
    // In the document, the next month is December 2026; here it is April 2024.
    let here = |sql: &str| {
        let sql = sql.replace("2026-12-01", "2024-04-01").replace("2027-01-01", "2024-05-01");
        sql.replace("_2026_12", "_2024_04")
    };
    let april = chrono::DateTime::parse_from_rfc3339("2024-04-01T00:00:00Z").expect("a time");
    let april = april.timestamp_millis();
    let mut events = vec![
        event("before", "h", april - 20 * MINUTE),
        event("border", "h", april - 4 * MINUTE),
        tick(april + 10 * MINUTE),
    ];
    world.send_events(0, &events);
    let job = world.start(&FAST);
    eventually("two rows", || {
        world.value("select to_regclass('sessionized_events') is not null") == "t"
            && rows(&world) == "2"
    });
    world.execute(&here(recipe[1]));
    job.stop();
    world.execute(&here(recipe[2]));
    assert_eq!(rows(&world), "2");
    let after = [
        event("border", "h", april + 3 * MINUTE),
        event("before", "h", april - 18 * MINUTE),
        event("border", "h", april - MINUTE),
        event("after", "h", april + 30 * MINUTE),
    ];
    world.send_events(0, &after);
    events.extend(after);
    world.run_to_end(&[]);
    assert_eq!(world.rows(), sessions(&events));
    let places = "select tableoid::regclass::text, count(*) from sessionized_events
                  group by 1 order by 1";
    assert_eq!(
        world.query(places),
        [["sessionized_events_2024_04", "2"], ["sessionized_events_before", "2"]]
    );
    let mut audit = world.command();
    audit.arg("audit");
    let (status, log) = finish(audit);
    assert!(status.success(), "{log}");

    // Months before that one would overlap the old table.
    partitions(&world, &["keep=600", "ahead=1", "since=2024-04-01"]);
    let names = names(&world);
    let has = |name: &str| names.iter().any(|known| known == name);
    assert!(has("sessionized_events_before") && has("sessionized_events_2024_05"), "{names:?}");
    assert!(!has("sessionized_events_2024_03"), "{names:?}");
    assert_eq!(rows(&world), "3");
}

#[test]
fn a_table_that_retention_has_emptied_is_accepted_when_told() {
    let world = World::new("partitioned-empty");
    world.create_topic(1);
    world.execute(recipe()[0]);
    partitions(&world, &["keep=1", "ahead=1"]);
    let old = month(&world, -1) + MINUTE;
    world.send_events(0, &[event("old", "h", old), event("old", "h", old + MINUTE)]);
    world.run_to_end(&[]);
    partitions(&world, &["keep=0", "ahead=1"]);
    assert_eq!(rows(&world), "0");
    let log = refused(
        &world,
        &[],
        &[],
        2,
        &["the table is empty, although sessions of 2 records were written to it"],
    );
    assert!(log.contains("start once with --accept-empty-table"), "{log}");
    let log = world.run_to_end(&["--accept-empty-table"]);
    assert!(log.contains("continuing, as --accept-empty-table says"), "{log}");
    let now = event("now", "h", chrono_now_ms() - 30 * MINUTE);
    world.send_events(0, [&now]);
    world.run_to_end(&["--accept-empty-table"]);
    world.run_to_end(&[]);
    assert_eq!(world.rows(), sessions([&now]));
    assert_eq!(world.imbalance(), "0");
}
