//! `sessionizer reset`: a job and its rows are removed together, and the next start begins anew.

use crate::kafka::{start, visits, wait_for_records};
use crate::oracle::sessions;
use crate::world::World;

struct Reset {
    code: Option<i32>,
    said: String,
    log: String,
}

fn reset(world: &World, args: &[&str], env: &[(&str, &str)]) -> Reset {
    let mut command = world.command();
    command.env_remove("KAFKA_URL").env_remove("KAFKA_TOPIC");
    command.arg("reset").args(args).envs(env.iter().copied());
    let output = command.output().expect("the program was built");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Reset { code: output.status.code(), said: text(&output.stdout), log: text(&output.stderr) }
}

fn resets(world: &World, args: &[&str], env: &[(&str, &str)]) -> Reset {
    let reset = reset(world, args, env);
    assert_eq!(reset.code, Some(0), "{}\n{}", reset.said, reset.log);
    reset
}

fn refuses(world: &World, args: &[&str], says: &[&str]) {
    let reset = reset(world, args, &[]);
    assert_eq!(reset.code, Some(2), "{}\n{}", reset.said, reset.log);
    for part in says {
        assert!(reset.log.contains(part), "{part:?} is missing in\n{}", reset.log);
    }
}

const STATE: [&str; 7] =
    ["jobs", "shard_progress", "epochs", "bindings", "snapshots", "dead_letters", "losses"];

/// How many rows there are of all jobs together, by table.
fn state(world: &World) -> Vec<u64> {
    let count = |table: &&str| {
        world.value(&format!("select count(*) from sessionizer.{table}")).parse().expect("a count")
    };
    STATE.iter().map(count).collect()
}

fn world(test: &str) -> World {
    let world = World::new(test);
    world.create_topic(2);
    world.send_events(1, &visits("a", 40));
    world.send(0, [Some("no event")]);
    world.run_to_end(&[]);
    world
}

#[test]
fn a_job_and_its_rows_go_together_and_the_next_start_reads_all_again() {
    let world = world("reset");
    world.run_to_end(&["--job", "other", "--table", "other"]);
    let of_other = world.rows_of("other");
    let before = state(&world);
    refuses(&world, &[], &["nothing was removed", "--yes"]);
    assert_eq!((state(&world), world.rows()), (before, of_other.clone()));

    let done = resets(&world, &["--yes"], &[]);
    let place = format!("the database {} at {} as {}", world.database, world.server, world.user);
    for part in [&*place, &world.name, "public.sessionized_events: ", "dead letters   1\n"] {
        assert!(done.said.contains(part), "{part:?} is missing in\n{}", done.said);
    }
    assert!(world.rows().is_empty());
    assert_eq!(world.query("select job from sessionizer.jobs"), [["other"]]);
    assert_eq!(world.rows_of("other"), of_other);
    // The group's offsets are still there, at the end; they do not matter.
    let log = world.run_to_end(&[]);
    assert!(log.contains("first start") && log.contains("from the earliest offsets"), "{log}");
    assert_eq!(world.rows(), sessions(&visits("a", 40)));

    resets(&world, &["--yes", "--job", "other"], &[]);
    assert!(world.rows_of("other").is_empty());
    assert!(!world.rows().is_empty());
}

#[test]
fn a_job_that_is_not_there_is_named_with_those_that_are() {
    let nothing = World::new("reset-nothing");
    refuses(&nothing, &["--yes"], &["there is no job", &nothing.name, "there are no jobs yet"]);
    let world = world("reset-unknown");
    let jobs = format!("the jobs are: {}", world.name);
    refuses(&world, &["--yes", "--job", "nobody"], &["there is no job nobody in", &jobs]);
    assert!(!world.rows().is_empty());
}

#[test]
fn a_job_that_runs_is_not_removed() {
    let world = world("reset-running");
    let mut job = start(&world, &[]);
    world.send_events(1, &visits("b", 5));
    wait_for_records(&world, 46);
    refuses(&world, &["--yes"], &[&world.name, "is running", "Stop it"]);
    assert!(job.is_running());
    job.stop();
    resets(&world, &["--yes"], &[]);
    assert_eq!(state(&world), [0; 7]);
}

#[test]
fn what_is_damaged_can_be_removed() {
    let world = world("reset-damaged");
    for damage in [
        "delete from sessionizer.shard_progress",
        "delete from sessionizer.bindings; delete from sessionizer.epochs",
        "truncate sessionized_events",
        "drop table sessionized_events",
        "drop table sessionizer.dead_letters",
        "drop table sessionizer.bindings cascade",
    ] {
        world.execute(damage);
        resets(&world, &["--yes"], &[]);
        world.run_to_end(&[]);
        assert_eq!(world.rows(), sessions(&visits("a", 40)), "{damage}");
    }
}

#[test]
fn rows_are_deleted_where_they_cannot_be_truncated() {
    let world = world("reset-delete");
    let role = world.role();
    world.execute(&format!(
        "create role {role} login;
         grant usage on schema sessionizer to {role};
         grant select, update, delete on all tables in schema sessionizer to {role};
         grant select, delete on sessionized_events to {role}"
    ));
    resets(&world, &["--yes"], &[("POSTGRES_USER", &role)]);
    assert_eq!((world.rows().len(), state(&world)), (0, vec![0; 7]));
    // Others refer to it: a truncate would take their rows as well.
    world.run_to_end(&[]);
    world.execute(
        "create table notes (ip text, host text, session_start timestamptz(3), note text,
             foreign key (ip, host, session_start) references sessionized_events)",
    );
    resets(&world, &["--yes"], &[]);
    assert_eq!((world.rows().len(), state(&world)), (0, vec![0; 7]));
    // If the rows cannot be removed, the job stays, too.
    world.run_to_end(&[]);
    world.execute(
        "create function keep() returns trigger language plpgsql as 'begin return null; end';
         create trigger keep before delete on sessionized_events
             for each row execute function keep()",
    );
    let rows = world.rows();
    refuses(&world, &["--yes"], &["still has rows", "Nothing was removed"]);
    assert_eq!(world.rows(), rows);
    world.execute("drop trigger keep on sessionized_events");
    world.run_to_end(&[]);
    assert_eq!(world.rows(), rows);
}

/// After a table was swapped for a view, the rows behind it belong to another job.
#[test]
fn what_is_behind_a_view_stays() {
    let world = world("reset-view");
    world.run_to_end(&["--job", "other", "--table", "other"]);
    let rows = world.rows_of("other");
    world.execute(
        "alter table sessionized_events rename to before;
         create view sessionized_events as table other",
    );
    let done = resets(&world, &["--yes"], &[]);
    assert!(
        done.said.contains("it is a view or the like now, and stays as it is"),
        "{}",
        done.said
    );
    assert_eq!(world.rows_of("other"), rows);
    assert_eq!(world.value("select string_agg(job, ' ') from sessionizer.jobs"), "other");
}
