//! Ctrl-C at a command that waits: the first one ends it soon and with a sentence, whatever it
//! waits for. Only a commit is waited for.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::kafka::visits;
use crate::world::{Running, World, eventually};

/// How long a command may take to end. The programs of other tests use the processors, too.
const SOON: Duration = Duration::from_secs(3);

/// Every command that asks a server, what it says when it is stopped, and its exit code.
const COMMANDS: [(&[&str], &str, i32); 14] = [
    (&["audit"], "the audit was stopped before its end", 1),
    (&["audit", "--every", "1h"], "", 0),
    (&["check"], "the check was stopped before its end", 1),
    (&["check", "--wait", "1h", "--json"], "the check was stopped before its end", 1),
    (&["compare", "--against", "other"], "the comparison was stopped before its end", 1),
    (&["compare", "--against", "other", "--no-topic"], "the comparison was stopped", 1),
    (&["report"], "the report was stopped before its end", 1),
    (&["reset", "--yes"], "stopped; nothing was removed", 1),
    (&["forget", "--yes", "--ip", "192.0.2.7"], "stopped; nothing was removed", 1),
    (&["redrive", "--yes", "--reason", "late"], "stopped; nothing was changed", 1),
    (&["open"], "stopped before the end", 1),
    (&["status"], "stopped before the end", 1),
    (&["status", "--watch"], "", 0),
    (&["health"], "stopped before the end", 1),
];

#[test]
fn the_first_ctrl_c_ends_every_command_that_waits_for_a_silent_server() {
    // The kernel accepts connections, and nobody answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = silent.local_addr().expect("bound").to_string();
    for (args, says, code) in COMMANDS {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sessionizer"));
        command
            .args(args)
            .env_clear()
            .env("KAFKA_URL", &address)
            .env("KAFKA_TOPIC", "t")
            .env("KAFKA_GROUP", "g")
            .env("POSTGRES_URL", format!("postgres://{address}/d"))
            .env("SESSIONIZER_HTTP", &address)
            .stdin(Stdio::null());
        let mut job = Running::start(command);
        std::thread::sleep(Duration::from_millis(500));
        assert!(job.is_running(), "{args:?} does not wait:\n{}", job.log());
        let log = interrupted(job, args, code);
        assert!(log.contains(says), "{args:?}:\n{log}");
        assert_eq!(log.contains("ERROR]"), !says.is_empty(), "{args:?}:\n{log}");
    }
}

/// Sends SIGINT; the program must end soon. Gives its log.
fn interrupted(job: Running, args: &[&str], code: i32) -> String {
    job.signal("INT");
    let asked = Instant::now();
    let (status, log) = job.wait();
    assert!(asked.elapsed() < SOON, "{args:?} took {:?}:\n{log}", asked.elapsed());
    assert_eq!(status.code(), Some(code), "{args:?}:\n{log}");
    log
}

#[test]
fn a_command_that_waits_for_a_lock_changes_nothing_and_a_commit_is_waited_for() {
    let world = World::new("interrupt");
    world.create_topic(1);
    world.send_events(0, &visits("a", 3));
    world.run_to_end(&[]);
    let start = || {
        let mut command = world.command();
        command.args(["reset", "--yes"]);
        Running::start(command)
    };
    let jobs = || world.value("select count(*) from sessionizer.jobs");
    let waits = |event: &str| {
        let sql = format!(
            "select count(*) from pg_stat_activity where application_name = 'sessionizer reset'
             and wait_event = '{event}' and datname = current_database()"
        );
        eventually("it waits", || world.value(&sql) == "1");
    };

    let mut client = world.client();
    let mut held = client.transaction().expect("begun");
    held.batch_execute("lock table sessionizer.snapshots").expect("locked");
    let reset = start();
    waits("relation");
    let log = interrupted(reset, &["reset"], 1);
    assert!(log.contains("stopped; nothing was removed"), "{log}");
    held.rollback().expect("it answers");
    assert_eq!(jobs(), "1");

    // A commit that takes two seconds.
    world.execute(
        "create function slow() returns trigger language plpgsql as
             'begin perform pg_sleep(2); return null; end';
         create constraint trigger slow after delete on sessionizer.jobs
             deferrable initially deferred for each row execute function slow()",
    );
    let mut reset = start();
    waits("PgSleep");
    reset.signal("INT");
    reset.wait_for("waiting for Postgres to commit");
    let (status, log) = reset.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(jobs(), "0");
}
