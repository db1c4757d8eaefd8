//! State written by older versions is read, and the job continues from it.

use std::process::Command;

use crate::documents::recipes;
use crate::kafka::PAST_MS;
use crate::lifecycle::wait_for_records;
use crate::oracle::event;
use crate::refusal::{refused, try_run};
use crate::world::{World, finish};

/// What a version has left, killed in the middle of its work: see `tests/fixtures/README.md`.
struct Fixture {
    /// The name of the job and the topic: the shard of a dead letter goes by the name of its topic.
    name: &'static str,
    /// A dump of the schema `sessionizer` and the table.
    state: &'static str,
    /// The partition and the payload of each record of the topic.
    records: &'static str,
    partitions: i32,
    /// How many rows the table has, and how many records have been read.
    rows: usize,
    read: &'static str,
}

const EARLY: Fixture = Fixture {
    name: "fixture",
    state: include_str!("../fixtures/state-2026-11/state.sql"),
    records: include_str!("../fixtures/state-2026-11/records.tsv"),
    partitions: 2,
    rows: 156,
    read: "1800",
};

const NOT_NUMBERED: Fixture = Fixture {
    name: "fixture-0-1-0",
    state: include_str!("../fixtures/state-0.1.0/state.sql"),
    records: include_str!("../fixtures/state-0.1.0/records.tsv"),
    partitions: 3,
    rows: 639,
    read: "1963",
};

fn payload(text: &str) -> Vec<u8> {
    let Some(digits) = text.strip_prefix('x') else { return text.as_bytes().to_vec() };
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal");
    (0..digits.len()).step_by(2).map(byte).collect()
}

/// Sends a part of the records, and returns how many these are.
fn send(world: &World, partitions: i32, lines: &[&str]) -> u64 {
    let records: Vec<(i32, Vec<u8>)> = lines
        .iter()
        .map(|line| {
            let (partition, text) = line.split_once('\t').expect("a partition and a payload");
            (partition.parse().expect("a partition"), payload(text))
        })
        .collect();
    for partition in 0..partitions {
        let of_partition = records.iter().filter(|(of, _)| *of == partition);
        world.send(partition, of_partition.map(|(_, payload)| Some(payload)));
    }
    records.len() as u64
}

impl Fixture {
    /// A world with the state and all records, and the name that it would have had.
    fn world(&self, test: &str) -> (World, String) {
        let mut world = World::new(test);
        let usual = std::mem::replace(&mut world.name, self.name.to_owned());
        world.create_topic(self.partitions);
        let lines: Vec<&str> = self.records.lines().collect();
        send(&world, self.partitions, &lines);
        world.execute(self.state);
        let read = world.value("select records from sessionizer.balance");
        let found = (world.rows().len(), &*read);
        assert_eq!(found, (self.rows, self.read), "the state is that of the fixture");
        (world, usual)
    }

    fn is_gone_on_with(&self, test: &str) {
        let (mut world, usual) = self.world(test);
        // An audit reads what this version has written.
        let (status, log) = audit(&world);
        assert_eq!(status, Some(2), "{log}");
        assert!(log.contains("is of version 0, and sessionizer 0."), "{log}");
        let log = world.run_to_end(&["-w", "3"]);
        assert!(log.contains("epochs to replay"), "{log}");
        assert!(log.contains("the schema sessionizer was brought from version 0 to"), "{log}");
        assert_eq!(world.rows(), world.answer(&world.name));
        assert_eq!(world.imbalance(), "0");
        let all = self.records.lines().count().to_string();
        assert_eq!(world.value("select records from sessionizer.balance"), all);

        let (status, log) = audit(&world);
        assert_eq!(status, Some(0), "{log}");
        let log = world.run_to_end(&[]);
        assert!(!log.contains("the schema sessionizer was"), "once is enough: {log}");

        // Whoever runs the tests against servers of their own may run this again.
        world.delete_topic(self.name);
        // What is cleaned up at the end goes by the beginning of the name, and that of one fixture
        // begins that of another.
        world.name = usual;
    }
}

fn audit(world: &World) -> (Option<i32>, String) {
    let mut audit = world.command();
    audit.arg("audit");
    let (status, log) = finish(audit);
    (status.code(), log)
}

#[test]
fn a_job_of_an_early_version_is_gone_on_with() {
    EARLY.is_gone_on_with("upgrade-early");
}

#[test]
fn a_job_of_the_last_version_without_a_number_is_gone_on_with() {
    NOT_NUMBERED.is_gone_on_with("upgrade-last");
}

/// Every column, default, key, index and view: what older versions have left ends up the same.
#[test]
fn an_old_schema_ends_up_as_a_new_one() {
    const SHAPE: &str = "
        select format('%s.%s %s %s %s', table_name, column_name, data_type, is_nullable,
                      column_default)
        from information_schema.columns where table_schema = 'sessionizer'
        union all
        select indexdef from pg_indexes where schemaname = 'sessionizer'
        union all
        select conrelid::regclass || ' ' || pg_get_constraintdef(oid) from pg_constraint
        where connamespace = 'sessionizer'::regnamespace
        union all
        select viewname || definition from pg_views where schemaname = 'sessionizer'
        union all
        select relname || relreplident::text || coalesce(reloptions::text, '') from pg_class
        where relnamespace = 'sessionizer'::regnamespace and relkind = 'r'
        order by 1";
    let script = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sessionizer"));
        let output = command.arg("schema").output().expect("it runs");
        let sql = String::from_utf8(output.stdout).expect("UTF-8");
        // Without what only psql understands.
        let lines = sql.lines().filter(|line| !line.starts_with('\\'));
        lines.collect::<Vec<_>>().join("\n")
    };
    let shape_after = |state: &str| {
        let world = World::new("shape");
        world.execute(state);
        world.execute(&script());
        world.query(SHAPE)
    };
    let new = shape_after("");
    assert!(new.len() > 90, "{}", new.len());
    for state in [EARLY.state, NOT_NUMBERED.state] {
        assert_eq!(shape_after(state), new);
    }
}

#[test]
fn state_of_a_newer_version_is_refused_by_every_command() {
    let world = World::new("upgrade-newer");
    world.create_topic(1);
    world.run_to_end(&[]);
    world.execute(
        "insert into sessionizer.schema_version (version, name, applied_by)
         values (99, 'later', 'sessionizer 9.8.7 (0123456789)')",
    );
    let says =
        ["is of version 99, written by sessionizer 9.8.7 (0123456789)", "; this is sessionizer 0."];
    refused(&world, &[], &[], 2, &says);
    for args in [&["audit"][..], &["reset", "--yes"]] {
        let mut command = world.command();
        command.args(args);
        let (status, log) = finish(command);
        assert_eq!(status.code(), Some(2), "{args:?}: {log}");
        says.iter().for_each(|what| assert!(log.contains(what), "{args:?}: {log}"));
    }
    assert_eq!(world.value("select count(*) from sessionizer.jobs"), "1");
}

/// The schema belongs to somebody else, and the job's login has just the rights that it needs.
#[test]
fn a_login_that_may_not_migrate_says_who_has_to_run_what() {
    let mut world = World::new("upgrade-rights");
    world.create_topic(1);
    world.run_to_end(&[]);
    let (login, database) = (world.role(), world.database.clone());
    let grant = format!(
        "create role {login} login; grant usage on schema sessionizer to {login};
         grant select, insert, update, delete on all tables in schema sessionizer to {login};
         grant select, insert, delete on sessionized_events to {login};"
    );
    world.execute(&grant);
    world.login = Some(login.clone());
    let (code, log) = try_run(&world, &[], &[]);
    assert_eq!(code, 0, "nothing has to be migrated: {log}");
    world.execute("drop view sessionizer.partitions");
    let says = [" lacks what it should have, and the login ", "sessionizer schema | psql"];
    refused(&world, &[], &[], 2, &says);
    // As a version without numbers has left it.
    world.execute("drop table sessionizer.schema_version");
    let command = format!("sessionizer schema | psql -U postgres -d {database}");
    let who = format!("the login {login} may not do that");
    let says = ["has to be brought from version 0 to version ", &who, &command];
    refused(&world, &[], &[], 2, &says);
    // Just that, by psql.
    let (host, port) = world.server.rsplit_once(':').expect("host:port");
    let shell = format!(
        "{} schema | psql -X -q -h {host} -p {port} -U {} -d {database}",
        env!("CARGO_BIN_EXE_sessionizer"),
        world.user
    );
    let migrate = || {
        let mut psql = Command::new("sh");
        psql.args(["-c", &shell]).env("PGPASSWORD", &world.password);
        // Those of the test run are not for the program.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SESSIONIZER_")) {
            psql.env_remove(name);
        }
        let output = psql.output().expect("psql can be run");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    let (done, said) = migrate();
    assert!(done, "{said}");
    assert_eq!(said.lines().count(), 1, "no notices, no rows: {said}");
    let grant = "grant select on sessionizer.schema_version to ";
    refused(&world, &[], &[], 2, &[grant]);
    world.execute(&format!("{grant} {login}"));
    let (code, log) = try_run(&world, &[], &[]);
    assert_eq!(code, 0, "{log}");
    // Doing it again does no harm, and an older program cannot do it.
    let (done, said) = migrate();
    assert!(done, "{said}");
    world.execute("insert into sessionizer.schema_version values (99, 'later', 'another program')");
    let (done, said) = migrate();
    assert!(!done && said.contains("is of version 99, which is newer than"), "{said}");
}

/// A block of `sh` in docs/OPERATIONS.md: the one that calls this program.
fn recipe(program: &str) -> &'static str {
    let blocks = recipes("Backup and restore", "\n```sh");
    blocks.into_iter().find(|block| block.contains(program)).expect("there is such a block")
}

#[test]
fn a_backup_is_complete_and_the_job_goes_on_from_it() {
    let world = World::new("backup");
    world.create_topic(2);
    let events = |from: i64| (0..200).map(move |i| event("a", "h", PAST_MS + (from + i) * 60_000));
    let send = |from: i64| world.send_events(0, &events(from).collect::<Vec<_>>());
    let dump = std::env::temp_dir().join(format!("{}.dump", world.name));
    let run = |recipe: &str| {
        let (host, port) = world.server.rsplit_once(':').expect("host:port");
        let code = recipe.replace("sessionizer.dump", dump.to_str().expect("text"));
        let code = code.replace("analytics", &world.database);
        let mut shell = Command::new("bash");
        shell.args(["-euc", &code]).envs([("PGHOST", host), ("PGPORT", port)]);
        shell.envs([("PGUSER", &world.user), ("PGPASSWORD", &world.password)]);
        let output = shell.output().expect("there is a shell");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let balance = || world.query("select * from sessionizer.balance");
    send(0);
    world.run_to_end(&[]);
    let before = (balance(), world.rows());
    run(recipe("pg_dump"));
    send(1_000);
    world.run_to_end(&[]);
    assert_ne!((balance(), world.rows()), before);
    run(recipe("pg_restore"));
    std::fs::remove_file(&dump).expect("it was written");
    assert_eq!((balance(), world.rows()), before, "the restored state is that of the backup");
    world.run_to_end(&["-w", "2"]);
    let mut audit = world.command();
    audit.args(["audit", "--full"]);
    let (status, log) = finish(audit);
    assert!(status.success(), "{log}");
}

/// Before a release: writes `state.sql` into the folder that the variable `FIXTURE` names, from the
/// records that are there.
#[test]
#[ignore = "writes a fixture: see tests/fixtures/README.md"]
fn make_the_fixture_of_this_version() {
    const PARTITIONS: i32 = 3;
    let folder = std::env::var("FIXTURE").expect("FIXTURE names a folder with records.tsv");
    let records = std::fs::read_to_string(format!("{folder}/records.tsv")).expect("records.tsv");
    let lines: Vec<&str> = records.lines().collect();
    let mut world = World::new("make-fixture");
    let version = env!("CARGO_PKG_VERSION").replace('.', "-");
    world.name = format!("fixture-{version}");
    world.create_topic(PARTITIONS);
    let (first, rest) = lines.split_at(lines.len() / 2);
    let (second, unread) = rest.split_at(rest.len() / 2);
    let mut sent = send(&world, PARTITIONS, first);
    let job = world.start(&["-w", "2"]);
    wait_for_records(&world, sent);
    job.stop();
    sent += send(&world, PARTITIONS, second);
    let job = world.start(&["-w", "2", "--epoch", "100ms", "--snapshot-interval", "1h"]);
    wait_for_records(&world, sent);
    job.kill();
    send(&world, PARTITIONS, unread);
    // Another broker gives the topic another id.
    world.execute("update sessionizer.bindings set topic_id = null");
    let (host, port) = world.server.rsplit_once(':').expect("host:port");
    let mut dump = Command::new("pg_dump");
    dump.args(["-h", host, "-p", port, "-U", &world.user, "-d", &world.database]);
    dump.args(["--inserts", "--no-owner", "--no-privileges", "-n", "sessionizer"]);
    dump.args(["-n", "public"]).env("PGPASSWORD", &world.password);
    let output = dump.output().expect("pg_dump can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let says = |line: &&str| {
        let ours = !line.starts_with("CREATE SCHEMA public") && !line.contains("SCHEMA public IS");
        ours && !line.is_empty() && !line.starts_with("--") && !line.starts_with('\\')
    };
    let lines: Vec<&str> = text.lines().filter(says).collect();
    std::fs::write(format!("{folder}/state.sql"), lines.join("\n") + "\n").expect("written");
    let rows = world.rows().len();
    let read = world.value("select records from sessionizer.balance");
    println!("{rows} rows, {read} records read");
    world.delete_topic(&world.name);
}
