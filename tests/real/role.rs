//! The login that `deploy/postgres/role.sql` creates: the job runs as it whatever happens, and if
//! any of its rights is missing, a start is refused and names it.

use std::process::Command;

use crate::oracle::event;
use crate::postgres::{MINUTE, TEN};
use crate::refusal::{refused, try_run};
use crate::world::{World, finish};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/postgres/role.sql");

/// Runs the script as the superuser of the test; gives what it has said.
fn run_script(world: &World, settings: &[(&str, &str)]) -> String {
    let (host, port) = world.server.rsplit_once(':').expect("host:port");
    let mut psql = Command::new("psql");
    psql.args(["-X", "-q", "-h", host, "-p", port, "-U", &world.user, "-d", &world.database]);
    psql.env("PGPASSWORD", &world.password).args(["-v", &format!("role={}", world.role())]);
    for (name, value) in settings {
        psql.args(["-v", &format!("{name}={value}")]);
    }
    let output = psql.args(["-f", SCRIPT]).output().expect("psql can be run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

/// A world in which everything has been made by the script, and the job's login is the role.
fn world(test: &str) -> World {
    let mut world = World::new(test);
    world.create_topic(1);
    assert_eq!(run_script(&world, &[]), "");
    world.execute(&format!("revoke all on database {} from public", world.database));
    world.login = Some(world.role());
    world
}

fn command(world: &World, args: &[&str]) -> (bool, String) {
    let mut command = world.command();
    command.args(args);
    let (status, log) = finish(command);
    (status.success(), log)
}

#[test]
fn the_job_does_everything_with_the_rights_of_its_role() {
    let world = world("role");
    let login = world.role();
    // On time, bad, late, a restart, and again.
    world.send_events(0, &[event("10.0.0.1", "h", TEN)]);
    world.send(0, [Some("{")]);
    for step in 1..4 {
        let (code, log) = try_run(&world, &[], &[]);
        assert_eq!(code, 0, "{log}");
        assert!(!log.contains("superuser"), "{log}");
        assert_eq!(world.rows(), world.answer(&world.name));
        world.send_events(0, &[event("10.0.0.1", "h", TEN - step * MINUTE)]);
    }
    world.run_to_end(&[]);
    let (good, log) = command(&world, &["audit"]);
    assert!(good, "{log}");
    assert_eq!(world.dead_letters(), [("bad_json".to_owned(), 1)]);
    let visitor = world.value("select ip from sessionized_events limit 1");
    for args in [
        &["open"][..],
        &["redrive", "--reason", "bad_json", "--yes"],
        &["forget", "--ip", &visitor, "--yes"],
        &["audit"],
    ] {
        let (good, log) = command(&world, args);
        assert!(good, "{args:?}:\n{log}");
    }
    // Again: nothing is taken away, and nothing fails.
    run_script(&world, &[]);
    let (good, log) = command(&world, &["reset", "--yes"]);
    assert!(good && world.rows().is_empty(), "{log}");
    world.run_to_end(&[]);
    assert_eq!(world.rows(), world.answer(&world.name));
    let more = format!(
        "select rolsuper or rolcreaterole or rolcreatedb or rolbypassrls
                or has_schema_privilege(oid, 'public', 'create')
                or has_database_privilege(oid, current_database(), 'create')
                or has_table_privilege(oid, 'sessionized_events', 'update')
         from pg_roles where rolname = '{login}'"
    );
    assert_eq!(world.value(&more), "f");
}

#[test]
fn the_script_grants_rights_on_a_table_that_is_there() {
    let mut world = World::new("role-there");
    world.create_topic(1);
    world.execute(
        "create schema \"My Data\"; create table \"My Data\".\"All Visits\" (
             ip varchar, host varchar, session_start timestamp(3), session_end timestamp(3),
             num_logs bigint);",
    );
    run_script(&world, &[("schema", "My Data"), ("table", "All Visits")]);
    world.login = Some(world.role());
    for time in [TEN, TEN - MINUTE] {
        world.send_events(0, &[event("10.0.0.1", "h", time)]);
        world.run_to_end(&["--table", "My Data.All Visits"]);
    }
    assert_eq!(world.rows_of("\"My Data\".\"All Visits\"").len(), 1);
}

/// As when a trial has run as a superuser, and the job is to go on with fewer rights.
#[test]
fn the_script_lets_a_role_go_on_with_what_another_login_has_begun() {
    let mut world = World::new("role-later");
    world.create_topic(1);
    world.send_events(0, &[event("10.0.0.1", "h", TEN)]);
    world.send(0, [Some("{")]);
    world.run_to_end(&[]);
    assert_eq!(run_script(&world, &[]), "");
    world.login = Some(world.role());
    world.send_events(0, &[event("10.0.0.1", "h", TEN - MINUTE)]);
    let (code, log) = try_run(&world, &[], &[]);
    assert_eq!(code, 0, "{log}");
    assert_eq!(world.rows(), world.answer(&world.name));
    let visitor = world.value("select ip from sessionized_events limit 1");
    let everything = [
        &["audit"][..],
        &["redrive", "--reason", "bad_json", "--yes"],
        &["forget", "--ip", &visitor, "--yes"],
        &["audit"],
        &["reset", "--yes"],
    ];
    for args in everything {
        let (good, log) = command(&world, args);
        assert!(good, "{args:?}:\n{log}");
    }
    // What a later version adds as the owner of the schema is granted as well.
    world.execute("create table sessionizer.later (n int)");
    let login = world.role();
    let granted = format!("select has_table_privilege('{login}', 'sessionizer.later', 'update')");
    assert_eq!(world.value(&granted), "t");
}

/// Including rights that are needed late, or never by most jobs.
#[test]
fn every_right_that_is_missing_is_named_at_the_start() {
    let world = world("rights-each");
    let login = world.role();
    world.send_events(0, &[event("10.0.0.1", "h", TEN)]);
    world.run_to_end(&[]);
    world.execute("alter schema sessionizer owner to postgres");
    world.execute(
        "do $$ declare name text; begin
             for name in select format('%s sessionizer.%I',
                                       case relkind when 'v' then 'view' else 'table' end, relname)
                         from pg_class where relnamespace = 'sessionizer'::regnamespace
                                             and relkind in ('r', 'v') loop
                 execute format('alter %s owner to postgres', name);
             end loop; end $$",
    );
    world.execute(&format!("grant usage on schema sessionizer to {login}"));
    let cases = [
        ("table sessionized_events", "select insert delete"),
        ("table sessionizer.schema_version", "select"),
        ("table sessionizer.jobs", "select insert update"),
        ("table sessionizer.shard_progress", "select insert update"),
        ("table sessionizer.epochs", "select insert update delete"),
        ("table sessionizer.bindings", "select insert update delete"),
        ("table sessionizer.snapshots", "select insert update"),
        ("table sessionizer.dead_letters", "select insert update delete"),
        ("table sessionizer.losses", "select insert delete"),
        ("table sessionizer.replay_differences", "select insert"),
        ("table sessionizer.anomalies", "select insert update delete"),
        ("table sessionizer.forgotten", "select insert update delete"),
        ("table sessionizer.audit_state", "select delete"),
        ("table sessionizer.balance", "select"),
        ("schema sessionizer", "usage"),
    ];
    for (object, rights) in cases {
        let all = rights.replace(' ', ", ");
        world.execute(&format!("grant {all} on {object} to {login}"));
    }
    let (code, log) = try_run(&world, &[], &[]);
    assert_eq!(code, 0, "these rights are enough:\n{log}");
    let before = world.value("select min(generation) from sessionizer.shard_progress");
    for (object, rights) in cases {
        for right in rights.split(' ') {
            world.execute(&format!("revoke {right} on {object} from {login}"));
            let name = object.trim_start_matches("table ");
            let name =
                if name == "sessionized_events" { "public.sessionized_events" } else { name };
            let grant = format!("grant {right} on {name} to \"{login}\";");
            let unquoted = grant.replace('"', "");
            let log = refused(&world, &[], &[], 2, &[&login]);
            assert!(log.contains(&grant) || log.contains(&unquoted), "{grant}:\n{log}");
            world.execute(&format!("grant {right} on {object} to {login}"));
        }
    }
    let after = world.value("select min(generation) from sessionizer.shard_progress");
    assert_eq!(before, after, "a start that is refused fences nobody");
    assert_eq!(try_run(&world, &[], &[]).0, 0);
}
