//! The job from end to end: what goes into the topic comes out as sessions.

use crate::world::{World, finish};

/// Fills the topic by `sessionizer produce`; gives its log.
pub fn produce(world: &World, args: &[&str]) -> String {
    let mut command = world.command();
    command.arg("produce").args(args);
    let (status, log) = finish(command);
    assert!(status.success(), "{status}:\n{log}");
    log
}

#[test]
fn the_table_equals_the_batch_answer_at_any_number_of_workers() {
    let world = World::new("workers");
    produce(
        &world,
        &[
            "--historical",
            "7d",
            "--density",
            "20",
            "--number",
            "100000",
            "--visitors",
            "5000",
            "--disorder",
            "10s",
            "--late",
            "0.002",
            "--bad",
            "0.001",
            "--partitions",
            "3",
        ],
    );
    let want = world.answer(&world.name);
    for workers in ["1", "2", "4"] {
        let job = format!("w{workers}");
        world.run_to_end(&["-w", workers, "--job", &job, "--table", &job]);
        assert_eq!(world.rows_of(&job), want, "{workers} workers");
    }
    let balances =
        world.query("select distinct records, open, difference from sessionizer.balance");
    assert_eq!(balances, [["100000", "0", "0"]]);
}
