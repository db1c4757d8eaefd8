//! Unusual settings of a server, of a table and of this machine: they change nothing, or the message
//! says what to do.

use std::process::Command;

use crate::audit::{Audit, audit, passes};
use crate::lifecycle::{Traffic, wait_for_records};
use crate::oracle::{event, sessions};
use crate::postgres::{TEN, jdbc, world_with_an_event};
use crate::refusal::{refused, try_run};
use crate::world::{World, eventually, finish};

#[test]
fn a_server_that_quotes_all_identifiers_changes_nothing() {
    let world = world_with_an_event("quotes");
    let database = &world.database;
    world.execute(&format!("alter database {database} set quote_all_identifiers = on"));
    world.run_to_end(&[]);
    world.run_to_end(&[]);
    assert_eq!(world.rows(), world.answer(&world.name));
}

/// The JDBC driver gives `currentSchema` to Postgres as it is.
#[test]
fn the_schemas_of_the_url_are_those_that_postgres_finds() {
    let world = world_with_an_event("path");
    let user = &world.user;
    world.execute(&format!(
        "create schema reports; create schema \"Reports\"; create schema \"{user}\""
    ));
    let cases = [
        ("Reports,public", "reports"),
        ("%22Reports%22,public", "\"Reports\""),
        ("%22$user%22,public", &format!("\"{user}\"")),
    ];
    for (job, (path, schema)) in cases.into_iter().enumerate() {
        let url = jdbc(&world, &format!("currentSchema={path}"));
        let (code, log) =
            try_run(&world, &["--job", &format!("j{job}")], &[("POSTGRES_URL", &url)]);
        assert_eq!(code, 0, "{log}");
        let rows = world.rows_of(&format!("{schema}.sessionized_events"));
        assert_eq!(rows.len(), 1, "{path}:\n{log}");
    }
}

#[test]
fn a_type_that_cannot_be_converted_has_no_sql_that_fails() {
    let world = world_with_an_event("no-cast");
    world.execute(
        "create table sessionized_events (ip text, host text, session_start time,
                                          session_end timestamptz, num_logs int)",
    );
    let says =
        ["session_start is of type time without", "no cast between the two: give session_start"];
    let log = refused(&world, &[], &[], 2, &says);
    assert!(!log.contains("session_start::"), "{log}");
    assert!(log.contains("using num_logs::bigint"), "{log}");
}

#[test]
fn an_audit_reads_a_table_whose_columns_have_changed_or_says_that_they_have() {
    let world = world_with_an_event("retyped");
    world.run_to_end(&[]);
    world.execute("alter table sessionized_events alter column num_logs type int");
    passes(&world);
    world.execute(
        "alter table sessionized_events alter column session_end type text using session_end::text",
    );
    let mut forget = world.command();
    forget.args(["forget", "--ip", "10.0.0.1", "--dry-run"]);
    let (status, log) = finish(forget);
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("sessionized_events cannot be used: its column"), "{log}");
    let mut report = world.command();
    report.arg("report");
    let (status, log) = finish(report);
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("not as this program has made it"), "{log}");
    let Audit { code, log, .. } = audit(&world, &["--full"]);
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("the type of a column has changed") && log.contains("check"), "{log}");
}

#[test]
fn settings_of_kafka_that_exclude_each_other_are_refused_before_anything_connects() {
    let world = World::new("together");
    let says = ["--kafka-config", "together", "max.poll.interval.ms"];
    let setting = "max.poll.interval.ms=1";
    refused(&world, &["--kafka-config", setting], &[("KAFKA_URL", "127.0.0.1:1")], 2, &says);
}

#[test]
fn a_pipe_that_nobody_writes_to_is_named() {
    let world = World::new("pipe");
    world.create_topic(1);
    let pipe = std::env::temp_dir().join(format!("pipe-{}", std::process::id()));
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let pipe = pipe.to_str().expect("UTF-8");
    let url = jdbc(&world, &format!("sslmode=verify-full&sslrootcert={pipe}"));
    let nobody = "it is a pipe that nobody has written to its end";
    let kafka = format!("ssl.ca.location={pipe}");
    refused(&world, &["--env-file", pipe], &[], 2, &[nobody]);
    refused(&world, &[], &[("POSTGRES_PASSWORD_FILE", pipe)], 2, &[nobody]);
    refused(&world, &[], &[("POSTGRES_URL", &url)], 2, &["sslrootcert", "is a pipe, not a file"]);
    let args = ["--kafka-config", "security.protocol=ssl", "--kafka-config", &kafka];
    refused(&world, &args, &[], 2, &["ssl.ca.location", "pipe"]);
    // A shell writes at once.
    let shell = format!(
        "printf 'SESSIONIZER_GAP=7s\\n' | {} check --no-connect --env-file /dev/stdin",
        env!("CARGO_BIN_EXE_sessionizer")
    );
    let mut check = world.command();
    check.arg("check");
    let mut piped = Command::new("sh");
    piped.args(["-c", &shell]);
    for (name, value) in check.get_envs().filter_map(|(name, value)| Some((name, value?))) {
        piped.env(name, value);
    }
    let output = piped.output().expect("sh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    std::fs::remove_file(pipe).expect("it can be removed");
}

/// What has to wait is no reason to begin afresh.
#[test]
fn a_check_that_waits_for_a_lock_advises_to_look_for_it() {
    let world = world_with_an_event("check-locked");
    world.run_to_end(&[]);
    for table in ["sessionized_events", "sessionizer.jobs", "sessionizer.snapshots"] {
        let mut client = world.client();
        let mut lock = client.transaction().expect("a transaction");
        lock.batch_execute(&format!("lock table {table}")).expect("it is free");
        let mut check = world.command();
        check.args(["check", "--only", "postgres,plan", "--timeout", "1s"]);
        let output = check.output().expect("the program was built");
        let said = String::from_utf8_lossy(&output.stdout);
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(!said.contains("sessionizer reset"), "{table}: {said}");
        assert!(!said.contains("name another table"), "{table}: {said}");
        assert_eq!(output.status.code(), Some(1), "{table}: {said}");
        assert!(said.contains("see who holds a lock"), "{table}: {said}");
    }
}

#[test]
fn a_login_that_may_not_connect_is_told_that_right() {
    let mut world = world_with_an_event("no-connect");
    let (login, database) = (world.role(), world.database.clone());
    world.execute(&format!(
        "create role {login} login; revoke connect on database {database} from public"
    ));
    world.login = Some(login);
    refused(&world, &[], &[], 2, &["permission denied for database", "grant connect on database"]);
}

/// Whoever can send events must not reach the terminal of whoever reads a report.
#[test]
fn text_of_events_gives_a_terminal_no_orders() {
    let world = World::new("terminal");
    world.create_topic(1);
    let ip = "10.0.0.1\u{1b}[31m\u{7}\u{202e}";
    world.send_events(0, &[event(ip, "h\r\u{9b}31m", TEN)]);
    world.run_to_end(&[]);
    world.execute("create table flink as table sessionized_events");
    world.execute("update sessionized_events set num_logs = 7");
    let commands =
        [&["audit", "--full"][..], &["compare", "--against", "flink", "--no-topic"], &["report"]];
    for args in commands {
        let output = world.command().args(args).output().expect("the program was built");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains("31m"), "{args:?}: {said}");
        let obeyed = ['\u{1b}', '\u{7}', '\u{202e}', '\r', '\u{9b}'];
        assert!(!said.contains(obeyed), "{args:?}: {said:?}");
    }
}

/// Rows at infinity are no sessions, and nothing could follow them.
#[test]
fn a_table_with_rows_at_infinity_is_refused_with_an_example() {
    let world = world_with_an_event("infinity");
    world.execute(
        "create table odd (ip text, host text, session_start timestamptz, session_end timestamptz,
                           num_logs bigint)",
    );
    let odd = [
        ("2026-01-01", "infinity"),
        ("-infinity", "2026-01-01"),
        ("2026-01-01", "294276-12-31"),
        ("infinity", "infinity"),
        ("2026-01-01", "-infinity"),
    ];
    for (start, end) in odd {
        world.execute(&format!(
            "truncate odd; insert into odd values ('10.0.0.7', 'shop', '{start}', '{end}', 1)"
        ));
        let args = ["--table", "odd", "--from", "earliest", "--accept-overlap"];
        let log = refused(&world, &args, &[], 2, &["odd", "10.0.0.7", "shop", "years 1 to 9999"]);
        let (_, sql) = log.split_once("delete them: ").expect("SQL that deletes them");
        let sql = sql.lines().next().expect("a line");
        let output = world.command().args(["check", "--table", "odd"]).output().expect("built");
        assert_eq!(output.status.code(), Some(2));
        world.execute(sql);
        assert_eq!(world.value("select count(*) from odd"), "0", "{sql}");
    }
    // What comes later only stands in the way of the report.
    world.run_to_end(&["--table", "odd"]);
    world.execute("insert into odd values ('10.0.0.7', 'shop', '2024-03-05', 'infinity', 1)");
    let mut report = world.command();
    report.arg("report");
    let (status, log) = finish(report);
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(
        log.contains("rows that are no sessions") && log.contains("order by isfinite"),
        "{log}"
    );
}

#[test]
fn a_schema_of_another_program_is_recognized_by_every_command() {
    let tables = [("jobs", "id int"), ("anomalies", "id int"), ("schema_version", "version int")];
    for (table, columns) in tables {
        let world = world_with_an_event("foreign-schema");
        world.execute(&format!(
            "create schema sessionizer; create table sessionizer.{table} ({columns})"
        ));
        let said = &["schema sessionizer", table, "alter schema sessionizer rename"];
        refused(&world, &[], &[], 2, said);
        let output = world.command().arg("check").output().expect("the program was built");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("FAIL SZ-P06") && !text.contains("42703"), "{text}");
        let commands: [&[&str]; 5] = [
            &["reset", "--yes"],
            &["audit"],
            &["open"],
            &["report"],
            &["forget", "--ip", "x", "--yes"],
        ];
        for args in commands {
            let mut command = world.command();
            command.args(args);
            let (status, log) = finish(command);
            assert_eq!(status.code(), Some(2), "{args:?}: {log}");
            assert!(log.contains("alter schema sessionizer rename"), "{args:?}: {log}");
        }
    }
}

/// The table may be changed by somebody who does not know of the job.
#[test]
fn a_column_that_changes_under_a_running_job_stops_it_and_nothing_is_lost() {
    let changes = [
        (
            "alter column num_logs type int",
            "alter column num_logs type bigint",
            "num_logs is of type",
        ),
        (
            "add column shop text not null default 'x';
             alter table sessionized_events alter column shop drop default",
            "drop column shop",
            "column shop needs a value",
        ),
        (
            "alter column session_end type timestamp using session_end at time zone 'UTC'",
            "alter column session_end type timestamptz using session_end at time zone 'UTC'",
            "give both the same type",
        ),
    ];
    for (change, back, said) in changes {
        let world = World::new("changed");
        let mut traffic = Traffic::new(&world);
        traffic.send(500);
        let job = world.start(&["--epoch", "50ms"]);
        wait_for_records(&world, traffic.records());
        world.execute(&format!("alter table sessionized_events {change}"));
        traffic.send(1_000);
        let (status, log) = job.wait();
        assert_eq!(status.code(), Some(2), "{log}");
        assert!(log.contains(said), "{log}");
        assert_eq!(
            world.value(
                "select count(*) from sessionizer.dead_letters where reason = 'row_refused'"
            ),
            "0"
        );
        world.execute(&format!("alter table sessionized_events {back}"));
        traffic.check(&world, &[]);
    }
}

/// A column that rounds refuses nothing.
#[test]
fn no_row_is_rounded_by_a_column_that_changes_under_a_running_job() {
    let world = World::new("rounded");
    world.create_topic(1);
    let at = |ip: &str, ms: i64| event(ip, "h", TEN + ms);
    let mut events = vec![at("10.0.0.1", 0), at("10.0.0.2", 400_000)];
    world.send_events(0, &events);
    let job = world.start(&["--epoch", "50ms", "--sink-connections", "1"]);
    let rows = || world.value("select count(*) from sessionized_events");
    let made = || world.value("select to_regclass('sessionized_events') is not null") == "t";
    eventually("the first session is written", || made() && rows() == "1");
    let both = |ty: &str| {
        world.execute(&format!(
            "alter table sessionized_events alter column session_start type {ty},
                                            alter column session_end type {ty}"
        ));
    };
    both("timestamptz(0)");
    let more = [at("10.0.0.3", 400_001), at("10.0.0.4", 2_000_000)];
    world.send_events(0, &more);
    let (status, log) = job.wait();
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("does not hold milliseconds"), "{log}");
    assert_eq!(rows(), "1", "what could not be written as it is was not written");
    both("timestamptz");
    world.run_to_end(&[]);
    events.extend(more);
    assert_eq!(world.rows(), sessions(&events));
}
