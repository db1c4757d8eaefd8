//! The recipes of docs/OPERATIONS.md for a backup, and for a change of the rules, with a job that
//! runs.

use std::path::Path;
use std::process::Command;

use crate::documents::recipes;
use crate::lifecycle::{Traffic, start, wait_for_records};
use crate::world::{World, finish};

/// The blocks of a section that are run here.
fn recipe(section: &str) -> Vec<&'static str> {
    recipes(section, "<!-- run by tests/real/operations.rs -->\n```")
}

/// Runs a block with the names of this test in place of those of the document.
fn run(world: &World, directory: &Path, code: &str) {
    let program = Path::new(env!("CARGO_BIN_EXE_sessionizer"));
    let programs = program.parent().expect("a directory").display();
    let path = std::env::var("PATH").expect("there is a PATH");
    let (host, port) = world.server.rsplit_once(':').expect("host:port");
    let code = code
        .replace("analytics", &world.database)
        .replace("sessions-30m", &format!("{}-30m", world.name))
        // There is one topic for each test, and the job would go on.
        .replace("--from earliest", "--from earliest --until-end")
        .replace("127.0.0.1:9465", "127.0.0.1:0");
    let mut shell = Command::new("bash");
    shell.args(["-euc", &code]).current_dir(directory);
    for (name, value) in world.command().get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    shell
        .env("PATH", format!("{programs}:{path}"))
        .env("PGHOST", host)
        .env("PGPORT", port)
        .env("PGUSER", &world.user)
        .env("PGPASSWORD", &world.password);
    let (status, log) = finish(shell);
    assert!(status.success(), "{code}: {status}\n{log}");
}

#[test]
fn a_backup_of_a_running_job_is_restored_and_gone_on_from() {
    let mut world = World::new("restore");
    let directory = std::env::temp_dir().join(&world.name);
    std::fs::create_dir_all(&directory).expect("created");
    let mut traffic = Traffic::new(&world);
    let [back_up, restore] = recipe("Backup and restore").try_into().expect("two blocks");
    traffic.send(1_000);
    let job = start(&world, "-w 2");
    wait_for_records(&world, traffic.records());
    run(&world, &directory, back_up);
    traffic.send(1_500);
    wait_for_records(&world, traffic.records());
    job.stop();
    run(&world, &directory, restore);

    let before = std::mem::take(&mut world.database);
    world.database = format!("{before}_restored");
    assert_eq!(world.value("select records from sessionizer.balance"), "1000");
    traffic.send(500);
    let log = world.run_to_end(&[]);
    assert!(log.contains("the database has gone back to an earlier state"), "{log}");
    assert_eq!(world.rows(), world.answer(&world.name));
    assert_eq!(world.imbalance(), "0");
    let mut audit = world.command();
    audit.arg("audit");
    let (status, log) = finish(audit);
    assert!(status.success(), "{log}");
    std::fs::remove_dir_all(&directory).expect("there");
    // The other one goes with the test.
    let restored = std::mem::replace(&mut world.database, before);
    world.execute(&format!("drop database {restored} with (force)"));
}

#[test]
fn other_rules_are_prepared_beside_the_job_and_readers_switch_at_once() {
    let world = World::new("other-rules");
    let directory = std::env::temp_dir().join(&world.name);
    std::fs::create_dir_all(&directory).expect("created");
    let mut traffic = Traffic::new(&world);
    let [view, second, switch] =
        recipe("Changing the rules without a gap").try_into().expect("three blocks");
    traffic.send(1_000);
    let job = start(&world, "-w 2");
    wait_for_records(&world, traffic.records());
    world.execute(view);
    run(&world, &directory, second);
    run(&world, &directory, switch);
    // Both have every event, and the longer gap makes fewer sessions of them.
    let sums =
        |table: &str| world.value(&format!("select coalesce(sum(num_logs), 0) from {table}"));
    assert_eq!(world.rows_of("sessions"), world.rows_of("sessionized_events_30m"));
    job.stop();
    world.run_to_end(&[]);
    assert_eq!(world.rows(), world.answer(&world.name), "the first job is as it was");
    assert_eq!(sums("sessions"), sums("sessionized_events"));
    assert!(world.rows_of("sessions").len() < world.rows().len());
    std::fs::remove_dir_all(&directory).expect("there");
}
