//! The table of sessions and its database: created, found, refused or corrected.

use crate::late_merge::late_events;
use crate::oracle::{GAP_MS, event};
use crate::refusal::{refused, try_run};
use crate::world::{World, eventually, finish};

pub const MINUTE: i64 = 60_000;
/// For a first start on a table with rows of the same time, none of which holds an event of the
/// topic.
const OVERLAP: [&str; 3] = ["--from", "earliest", "--accept-overlap"];
/// 2024-03-05T10:00:00Z.
pub const TEN: i64 = 1_709_632_800_000;

/// A world with one event in its topic.
pub fn world_with_an_event(test: &str) -> World {
    let world = World::new(test);
    world.create_topic(1);
    world.send_events(0, &[event("10.0.0.1", "h", TEN)]);
    world
}

pub fn jdbc(world: &World, parameters: &str) -> String {
    format!("jdbc:postgresql://{}/{}?{parameters}", world.server, world.database)
}

/// Columns with their types, and keys, as a person would write them.
fn definition(world: &World, table: &str) -> Vec<String> {
    let columns = world.query(&format!(
        "select a.attname, format_type(a.atttypid, a.atttypmod), coalesce(c.collname, '-'),
                case when a.attnotnull then 'not null' else 'null' end
         from pg_attribute a left join pg_collation c on c.oid = a.attcollation
         where a.attrelid = '{table}'::regclass and a.attnum > 0 order by a.attnum"
    ));
    let keys = world.query(&format!(
        "select pg_get_indexdef(indexrelid), indisprimary from pg_index
         where indrelid = '{table}'::regclass order by 1"
    ));
    columns.into_iter().chain(keys).map(|row| row.join(" ")).collect()
}

// ---- the table -----------------------------------------------------------------------------

#[test]
fn a_table_that_is_missing_is_made() {
    let world = world_with_an_event("made");
    let log = world.run_to_end(&[]);
    assert!(log.contains("table public.sessionized_events (new) in "), "{log}");
    assert!(!log.contains("WARN"), "{log}");
    let definition = definition(&world, "sessionized_events");
    assert_eq!(
        definition[..5],
        [
            "ip text C not null",
            "host text C not null",
            "session_start timestamp(3) with time zone - not null",
            "session_end timestamp(3) with time zone - not null",
            "num_logs bigint - not null",
        ]
    );
    assert_eq!(definition.len(), 7);
    assert!(definition[5].contains("USING brin (session_end)"), "{definition:?}");
    assert!(definition[6].ends_with("(ip, host, session_start) t"), "{definition:?}");
    let log = world.run_to_end(&[]);
    assert!(!log.contains("created"), "made once:\n{log}");
}

#[test]
fn the_table_can_be_in_any_schema() {
    let world = world_with_an_event("schema");
    world.execute("create schema app; create schema reports");
    world.run_to_end(&["--job", "a", "--table", "reports.visits"]);
    assert_eq!(world.rows_of("reports.visits").len(), 1);
    let url = jdbc(&world, "currentSchema=app,public");
    let (code, log) = try_run(&world, &["--job", "b"], &[("POSTGRES_URL", &url)]);
    assert_eq!((code, world.rows_of("app.sessionized_events").len()), (0, 1), "{log}");
    assert_eq!(world.value("select to_regclass('public.sessionized_events') is null"), "t");
    let (code, log) = try_run(&world, &["--job", "b"], &[("POSTGRES_URL", &url)]);
    assert_eq!(code, 0, "found again:\n{log}");
    let url = jdbc(&world, "currentSchema=nowhere");
    let says = ["no schema", "create the schema", "currentSchema"];
    refused(&world, &["--job", "c"], &[("POSTGRES_URL", &url)], 2, &says);
    let args = ["--job", "c", "--table", "nowhere.visits"];
    refused(&world, &args, &[], 2, &["\"nowhere\" does not exist", "create the schema", "--table"]);
}

#[test]
fn names_are_taken_as_they_are_written() {
    let world = world_with_an_event("names");
    world.execute(r#"create schema "My ""best"" Schema""#);
    let table = r#"My "best" Schema.Sessions; drop table 'x' --"#;
    let args = ["--table", table, "--job", "o'clock \"job\" \\ é"];
    world.run_to_end(&args);
    let quoted = r#""My ""best"" Schema"."Sessions; drop table 'x' --""#;
    assert_eq!(world.rows_of(quoted).len(), 1);
    // A straggler goes through every statement that names the table.
    world.send_events(0, &[event("10.0.0.1", "h", TEN - MINUTE)]);
    world.run_to_end(&args);
    let rows = world.rows_of(quoted);
    assert_eq!(rows.iter().map(|row| row.4).collect::<Vec<_>>(), [2]);
    assert_eq!(world.value("select job from sessionizer.balance"), args[3]);
}

#[test]
fn a_table_of_a_flink_job_is_taken_over_as_it_stands() {
    let world = World::new("flink");
    world.create_topic(1);
    // Another zone for everything that has one: what is stored must not move with it.
    world.execute(&format!("alter database {} set timezone to 'Asia/Tokyo'", world.database));
    let tables = [("plain", "timestamp(3)"), ("zoned", "timestamp(3) with time zone")];
    for (table, time) in tables {
        world.execute(&format!(
            "create table {table} (ip varchar, host varchar, session_start {time},
                                   session_end {time}, num_logs bigint);
             insert into {table} values
             ('twice',   'h', '2024-03-05 10:00:00Z', '2024-03-05 10:06:00Z', 2),
             ('twice',   'h', '2024-03-05 10:00:00Z', '2024-03-05 10:06:00Z', 2),
             ('overlap', 'h', '2024-03-05 10:00:00Z', '2024-03-05 10:10:00Z', 3),
             ('overlap', 'h', '2024-03-05 10:04:00Z', '2024-03-05 10:12:00Z', 2),
             ('chain',   'h', '2024-03-05 10:00:00Z', '2024-03-05 10:06:00Z', 1),
             ('chain',   'h', '2024-03-05 10:05:30Z', '2024-03-05 10:12:00Z', 1),
             ('chain',   'h', '2024-03-05 10:12:00Z', '2024-03-05 10:20:00Z', 1),
             ('left',    'h', '2024-03-05 10:00:00Z', '2024-03-05 10:06:00Z', 1),
             ('left',    'h', '2024-03-05 10:00:00Z', '2024-03-05 10:06:00Z', 1),
             ('left',    'h', '2024-03-05 10:03:00Z', '2024-03-05 10:09:00Z', 1);"
        ));
    }
    for (ip, time) in [
        ("twice", TEN + 3 * MINUTE),    // Within both rows.
        ("twice", TEN + 120 * MINUTE),  // Later than every row: on time.
        ("overlap", TEN + 12 * MINUTE), // At the end of one row, which overlaps the other.
        ("chain", TEN - 4 * MINUTE),    // Touches the first of three rows.
        ("new", TEN),
    ] {
        world.send_events(0, &[event(ip, "h", time)]);
    }
    for (table, _) in tables {
        let before = definition(&world, table);
        let log = world.run_to_end(&[&["--table", table, "--job", table], &OVERLAP[..]].concat());
        let advice = format!(
            "create unique index concurrently on public.{table} (ip, host, session_start);"
        );
        assert!(log.contains(&advice), "{log}");
        assert!(log.contains("the table has rows up to 2024-03-05T10:20:00.000Z"), "{log}");
        assert_eq!(log.contains("written in UTC"), table == "plain", "{log}");
        assert_eq!(definition(&world, table), before);
        let rows = world.query(&format!(
            "set timezone to 'UTC';
             select ip, session_start::text, session_end::text, num_logs from {table}
             order by 1, 2, 3, 4"
        ));
        let rows: Vec<String> = rows.iter().map(|row| row.join(" ")).collect();
        let zone = if table == "plain" { "" } else { "+00" };
        let want = [
            ("chain", "09:56:00", "10:20:00", 4),
            ("left", "10:00:00", "10:06:00", 1),
            ("left", "10:00:00", "10:06:00", 1),
            ("left", "10:03:00", "10:09:00", 1),
            ("new", "10:00:00", "10:05:00", 1),
            ("overlap", "10:00:00", "10:17:00", 6),
            ("twice", "10:00:00", "10:08:00", 5),
            ("twice", "12:00:00", "12:05:00", 1),
        ];
        let want = want.map(|(ip, start, end, count)| {
            format!("{ip} 2024-03-05 {start}{zone} 2024-03-05 {end}{zone} {count}")
        });
        assert_eq!(rows, want, "{table}");
    }
    let balances = world.query("select records, closed, difference from sessionizer.balance");
    assert_eq!(balances, [["5", "5", "0"], ["5", "5", "0"]]);
}

#[test]
fn the_key_can_be_added_as_logged_while_the_job_runs() {
    let world = world_with_an_event("key");
    world.execute(
        "create table sessionized_events (ip varchar, host varchar, session_start timestamp(3),
                                          session_end timestamp(3), num_logs bigint)",
    );
    let args = ["--epoch", "50ms", "--out-of-orderness", "0s", "--sink-connections", "2"];
    let mut job = world.start(&args);
    job.wait_for("create unique index");
    let log = job.log();
    let advice = &log[log.find("create unique index").expect("advice")..];
    let rows = |count: usize| eventually("rows", || world.rows().len() == count);
    world.send_events(0, &[event("10.0.0.2", "h", TEN + 10 * GAP_MS)]);
    rows(1);
    world.execute(&advice[..=advice.find(';').expect("a statement")]);
    world.send_events(0, &[event("10.0.0.1", "h", TEN + GAP_MS)]);
    world.send_events(0, &[event("10.0.0.3", "h", TEN + 20 * GAP_MS)]);
    rows(2);
    let log = job.stop();
    assert_eq!(log.matches("WARN ]").count(), 1, "only the advice:\n{log}");
    let log = world.run_to_end(&[]);
    assert!(!log.contains("WARN ]"), "{log}");
    assert_eq!(world.rows(), world.answer(&world.name));
}

#[test]
fn rows_of_others_may_be_more_precise_than_ours() {
    let world = world_with_an_event("micro");
    world.execute(
        "create table sessionized_events (ip text, host text, session_start timestamptz,
                                          session_end timestamptz, num_logs bigint);
         insert into sessionized_events values
         ('10.0.0.1', 'h', '2024-03-05 09:58:00.000900Z', '2024-03-05 10:04:00.123999Z', 2)",
    );
    world.run_to_end(&OVERLAP);
    let row = ("10.0.0.1".to_owned(), "h".to_owned(), TEN - 2 * MINUTE, TEN + GAP_MS, 3);
    assert_eq!(world.rows(), [row].into());
}

#[test]
fn the_databases_own_defaults_do_not_matter() {
    let world = World::new("defaults");
    world.create_topic(2);
    for default in [
        "default_transaction_isolation to 'serializable'",
        "default_transaction_deferrable to on",
        "datestyle to 'SQL, DMY'",
        "bytea_output to 'escape'",
        "search_path to ''",
        "timezone to 'America/St_Johns'",
        "client_encoding to 'LATIN1'",
        "synchronous_commit to off",
    ] {
        world.execute(&format!("alter database {} set {default}", world.database));
    }
    world.execute("create schema app");
    let (before, late) = late_events();
    for events in [before, late] {
        world.send_events(0, &events);
        world.send(1, [Some("{")]);
        let args = ["-w", "2", "--sink-connections", "4", "--table", "app.visits"];
        let log = world.run_to_end(&args);
        let warnings = log.matches("WARN ]").count();
        assert!(warnings == 1 && log.contains("synchronous_commit is off"), "{log}");
        assert_eq!(world.rows_of("app.visits"), world.answer(&world.name));
    }
}

#[test]
fn rows_of_others_may_hold_nulls() {
    let world = world_with_an_event("nulls");
    world.execute(
        "create table sessionized_events (ip varchar, host varchar, session_start timestamp(3),
                                          session_end timestamp(3), num_logs bigint);
         insert into sessionized_events values
         (null, 'h', '2024-03-05 10:00', '2024-03-05 10:05', 1),
         ('10.0.0.1', 'h', null, '2024-03-05 10:05', 1),
         ('10.0.0.1', 'h', '2024-03-05 10:00', null, 1),
         ('10.0.0.1', 'h', '2024-03-05 10:01', '2024-03-05 10:06', null);",
    );
    world.run_to_end(&OVERLAP);
    let merged = "select count(*), sum(num_logs) from sessionized_events
                  where ip = '10.0.0.1' and session_start = '2024-03-05 10:00'
                  and session_end = '2024-03-05 10:06'";
    assert_eq!(world.query(merged), [["1", "1"]]);
}

#[test]
fn a_table_that_cannot_hold_sessions_is_refused() {
    let world = world_with_an_event("wrong");
    let columns = |changed: &str| {
        let right = "ip text,host text,session_start timestamptz(3),session_end timestamptz(3),\
                     num_logs bigint";
        let mut columns: Vec<&str> = right.split(',').collect();
        let name = changed.split(' ').next().expect("a name");
        columns.retain(|column| !name.starts_with(column.split(' ').next().expect("a name")));
        columns.push(changed);
        columns.join(", ")
    };
    let table = |changed: &str| format!("create table sessionized_events ({})", columns(changed));
    let cases: [(String, &[&str]); 10] = [
        (table("session_ended timestamptz"), &["no column session_end"]),
        (table("num_logs integer"), &["num_logs", "integer", "bigint"]),
        (table("num_logs numeric"), &["num_logs", "numeric", "bigint"]),
        (table("ip inet"), &["ip", "inet", "text"]),
        (table("host char(20)"), &["host", "character", "text"]),
        (
            table("session_end timestamp(3)"),
            &["session_start", "session_end", "give both the same type"],
        ),
        (table("session_start date"), &["session_start", "date", "timestamp"]),
        (table("visits integer not null"), &["column visits", "no default"]),
        ("create view sessionized_events as select 'a'::text as ip".to_owned(), &["view"]),
        (table("session_end timestamptz(0)"), &["session_end", "milliseconds"]),
    ];
    for (create, says) in cases {
        world.execute(&create);
        let log = refused(&world, &[], &[], 2, says);
        assert!(log.contains("sessionized_events"), "{create} is not named:\n{log}");
        let kind = if create.contains("create view") { "view" } else { "table" };
        world.execute(&format!("drop {kind} sessionized_events"));
    }
    let there = world.value("select to_regclass('sessionizer.jobs') is not null");
    assert_eq!(there, "f", "a start that is refused leaves nothing behind");
}

#[test]
fn a_table_may_have_more_columns_that_can_do_without_us() {
    let world = world_with_an_event("more");
    world.execute(
        "create table sessionized_events (
             id bigint generated always as identity, written_at timestamptz not null default now(),
             note text, session_end timestamptz not null, session_start timestamptz not null,
             length interval generated always as (session_end - session_start) stored,
             num_logs bigint not null check (num_logs > 0), host text not null, ip text not null,
             unique (ip, host, session_start, session_end))",
    );
    let log = world.run_to_end(&[]);
    assert!(!log.contains("primary key"), "an index that begins with the key will do:\n{log}");
    world.send_events(0, &[event("10.0.0.1", "h", TEN + GAP_MS)]);
    world.run_to_end(&[]);
    let row = "select num_logs, length, written_at <= now(), note is null from sessionized_events";
    assert_eq!(world.query(row), [["2", "00:10:00", "t", "t"]]);
}

#[test]
fn session_end_can_be_the_last_event() {
    let world = World::new("last-event");
    world.create_topic(1);
    let args = ["--session-end", "last-event"];
    let events = [event("row", "h", TEN), event("row", "h", TEN + MINUTE)];
    world.send_events(0, &events);
    world.run_to_end(&args);
    let end = TEN + MINUTE;
    let row = |ip: &str, start, end, count| (ip.to_owned(), "h".to_owned(), start, end, count);
    assert_eq!(world.rows(), [row("row", TEN, end, 2)].into());
    world.send_events(0, &[event("row", "h", end + GAP_MS + 1)]);
    world.run_to_end(&args);
    let after = end + GAP_MS + 1;
    let want = [row("row", TEN, end, 2), row("row", after, after, 1)];
    assert_eq!(world.rows(), want.into(), "a millisecond more than the gap is another session");
    world.send_events(0, &[event("row", "h", end + GAP_MS), event("row", "h", TEN - GAP_MS)]);
    world.run_to_end(&args);
    assert_eq!(world.rows(), [row("row", TEN - GAP_MS, after, 5)].into(), "both joined it");
    assert_eq!(world.imbalance(), "0");
}

// ---- the job and its settings --------------------------------------------------------------

#[test]
fn a_table_belongs_to_one_job() {
    let world = world_with_an_event("belongs");
    world.run_to_end(&["--job", "the first"]);
    refused(
        &world,
        &["--job", "the second"],
        &[],
        2,
        &["belongs to the job the first", "this is the job the second", "sessionized_events"],
    );
    let args = ["--job", "the second", "--table", "another"];
    world.run_to_end(&args);
    assert_eq!(world.rows_of("another"), world.rows());
}

#[test]
fn what_shaped_the_rows_cannot_change_at_a_restart() {
    let world = world_with_an_event("settings");
    world.run_to_end(&[]);
    let before = world.query("select * from sessionizer.jobs");
    for (args, says) in [
        (["--gap", "6m"], ["--gap", "5m", "6m"]),
        (["--shards", "64"], ["--shards", "128", "64"]),
        (["--session-end", "last-event"], ["--session-end", "window", "last-event"]),
        (["--table", "another"], ["another", "table", "sessionized_events"]),
    ] {
        let log = refused(&world, &args, &[], 2, &says);
        assert!(!log.contains("(new)"), "{log}");
    }
    let log = refused(&world, &["--gap", "6m", "--shards", "64"], &[], 2, &["--gap", "--shards"]);
    assert!(log.contains(&world.name), "it names the job:\n{log}");
    assert_eq!(world.query("select * from sessionizer.jobs"), before);
    assert_eq!(world.value("select to_regclass('another') is null"), "t");
    assert_eq!(world.value("select distinct generation from sessionizer.shard_progress"), "1");
}

#[test]
fn a_database_that_cannot_hold_every_key_is_refused() {
    let world = world_with_an_event("latin1");
    let latin = format!("{}_latin", world.database);
    world.execute(&format!(
        "create database {latin} encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0"
    ));
    let url = format!("jdbc:postgresql://{}/{latin}", world.server);
    refused(&world, &[], &[("POSTGRES_URL", &url)], 2, &[&latin, "LATIN1", "UTF8"]);
}

#[test]
fn a_job_whose_table_is_gone_does_not_begin_another_in_silence() {
    let world = world_with_an_event("gone");
    world.run_to_end(&[]);
    world.execute("drop table sessionized_events");
    world.send_events(0, &[event("10.0.0.2", "h", TEN)]);
    refused(&world, &[], &[], 2, &["sessionized_events", "gone", &world.name]);
    let mut reset = world.command();
    reset.args(["reset", "--yes"]);
    let (status, log) = finish(reset);
    assert!(status.success(), "{log}");
    world.run_to_end(&[]);
    assert_eq!(world.rows(), world.answer(&world.name), "a job that was removed begins afresh");
}
