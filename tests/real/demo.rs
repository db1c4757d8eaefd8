//! `demo`: how it starts, its names, its verdict, and what it refuses.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::kafka::fail;
use crate::world::{PATIENCE, World, eventually, finish};

/// How long a demo may take until its first rows.
const FIRST_ROWS: Duration = Duration::from_secs(10);

/// Every setting of a job, with values that a demo must not use.
const HOSTILE: &str = "WORKERS PROCESSES PROCESS HOSTFILE PEER_TIMEOUT GAP OUT_OF_ORDERNESS EPOCH \
    IDLE_TIMEOUT MAX_DRIFT DRIFT_SESSIONS MAX_FUTURE LATE LATE_EVENTS ACCEPT_LOST_OFFSETS \
    SESSION_END TABLE FROM UNTIL_END SINK_CONNECTIONS KAFKA_CONFIG JOB SHARDS SNAPSHOT_INTERVAL \
    DISCOVERY_INTERVAL DEAD_LETTER_BYTES KEEP_DEAD_LETTERS MEMORY START_TIMEOUT STOP_TIMEOUT RATE LENGTH KEEP DEMO_LENGTH \
    DEMO_KEEP";

/// Runs a short demo to its end; gives what it printed, and how long its first rows took.
fn short_demo(world: &World, env: &[(String, String)]) -> (String, Duration) {
    let mut command = world.command();
    command.envs(env.iter().cloned()).args(["demo", "--length", "2s"]);
    let began = Instant::now();
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.expect("the program was built");
    // The previous demo has left rows; this one's are recent.
    let rows = "select count(*) from pg_class where oid = to_regclass('sessionizer_demo')
                and exists (select from sessionizer.balance where closed > 0 and as_of > now() - \
                interval '10 s')";
    let there = "select count(*) from pg_class where oid = to_regclass('sessionizer.balance')";
    eventually("there are rows", || world.value(there) == "1" && world.value(rows) == "1");
    let first = began.elapsed();
    let output = child.wait_with_output().expect("a child");
    assert!(began.elapsed() < PATIENCE, "it took {:?}", began.elapsed());
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}:\n{log}", output.status);
    (String::from_utf8_lossy(&output.stdout).into_owned(), first)
}

fn count_of(screen: &str, before: &str) -> u64 {
    let screen = screen.split_whitespace().collect::<Vec<_>>().join(" ");
    let at = screen.find(before).unwrap_or_else(|| panic!("no {before:?} in:\n{screen}"));
    let words = screen[..at].split_whitespace();
    let number = words.last().expect("a number").replace(',', "");
    number.parse().unwrap_or_else(|_| panic!("{number:?} before {before:?} in:\n{screen}"))
}

#[test]
fn a_short_demo_has_rows_soon_a_verdict_and_names_of_its_own_whatever_is_exported() {
    let world = World::new("demo");
    let hostile = |name: &str| (format!("SESSIONIZER_{name}"), "nonsense".to_owned());
    let hostile: Vec<_> = HOSTILE.split_whitespace().map(hostile).collect();
    // The second replaces the rows of the first.
    for env in [hostile.as_slice(), &[]] {
        let (screen, first) = short_demo(&world, env);
        assert!(first < FIRST_ROWS, "the first rows came after {first:?}");
        let sessions = count_of(&screen, " sessions of ");
        assert!(sessions > 10_000, "only {sessions} sessions");
        assert!(screen.contains("The topic was reread and audited."), "{screen}");
        assert!(screen.contains("export KAFKA_URL="), "no next step:\n{screen}");
        let widest = screen.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(80), "{widest:?} columns:\n{screen}");

        assert_eq!(world.value("select count(*) from sessionizer_demo"), sessions.to_string());
        let tables = world.query("select tablename from pg_tables where schemaname = 'public'");
        assert_eq!(tables, [["sessionizer_demo"]]);
        let jobs = world.query("select job, table_name, gap_ms from sessionizer.jobs");
        assert_eq!(jobs, [["sessionizer_demo", "sessionizer_demo", "5000"]]);
    }
}

#[test]
fn a_table_or_a_job_that_is_not_the_demos_is_left_alone() {
    let world = World::new("demo-name");
    world.query("create table sessionizer_demo as select 7 as mine");
    let (code, log) = fail(&world, &[], &["demo"]);
    assert!(code == 2 && log.contains("not made by the demo"), "{code}:\n{log}");
    assert_eq!(world.value("select mine from sessionizer_demo"), "7");

    world.query("drop table sessionizer_demo");
    world.create_topic(1);
    world.run_to_end(&["--job", "sessionizer_demo", "--table", "kept"]);
    let (code, log) = fail(&world, &[], &["demo"]);
    assert!(code == 2 && log.contains("kept"), "{code}:\n{log}");
    assert_eq!(world.value("select count(*) from kept"), "0");
}

#[test]
fn what_is_wrong_with_an_option_is_reported_before_anything_starts() {
    let world = World::new("demo-options");
    let args = ["demo", "--length", "soon", "--rate", "x", "-w", "0"];
    // Not even the address of Postgres is needed.
    let (code, log) = fail(&world, &[("POSTGRES_URL", "")], &args);
    assert!(code == 2, "{code}:\n{log}");
    for option in ["--length", "--rate", "--workers"] {
        assert!(log.contains(option), "{option} is not named:\n{log}");
    }
}

#[test]
fn the_script_refuses_wrong_options_before_it_builds() {
    let empty = std::env::temp_dir().join(format!("demo-script-{}", std::process::id()));
    std::fs::create_dir(&empty).expect("a new directory");
    for (args, wrong) in [
        (&["--length", "soon"][..], "--length"),
        (&["--length=500ms"], "--length"),
        (&["--length", "2h"], "--length"),
        (&["--length"], "--length"),
        (&["--rate", "x"], "--rate"),
        (&["--rate", "0"], "--rate"),
        (&["-w", "0"], "-w"),
        (&["--workers=1.5"], "--workers"),
        (&["--lenght", "2s"], "--lenght"),
        (&["2s"], "2s"),
    ] {
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/demo"));
        command.args(args).env("CARGO_TARGET_DIR", &empty).env("TMPDIR", &empty);
        let began = Instant::now();
        let (status, log) = finish(command);
        assert_eq!(status.code(), Some(2), "{args:?}:\n{log}");
        assert!(log.contains(wrong) && log.contains("scripts/demo --help"), "{args:?}:\n{log}");
        assert!(began.elapsed() < Duration::from_secs(5), "{args:?}: {:?}", began.elapsed());
        let left: Vec<_> = std::fs::read_dir(&empty).expect("still there").collect();
        assert!(left.is_empty(), "{args:?} left {left:?}");
    }
    std::fs::remove_dir(&empty).expect("empty");
}
