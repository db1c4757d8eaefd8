//! The first start where a Flink job has stopped: at the offsets in its savepoint.

use std::path::{Path, PathBuf};

use crate::first_start::{BEFORE, Handover, commit};
use crate::refusal::refused;
use crate::written::{metadata, record};

/// A savepoint of `flink stop`, of a job that has read the topic up to the middle.
fn write_savepoint(handover: &Handover, kind: &str) -> PathBuf {
    let name = &handover.world.name;
    let directory = std::env::temp_dir().join(format!("{name}-{}", kind.replace(' ', "-")));
    std::fs::create_dir(&directory).expect("a new directory");
    let begun = (0..3).map(|partition| record(name, partition, -2));
    // Flink has never read anything of the third partition.
    let reached = [record(name, 0, BEFORE), record(name, 1, BEFORE)];
    let records: Vec<Vec<u8>> = begun.chain(reached).collect();
    std::fs::write(directory.join("_metadata"), metadata(Some(kind), &records)).expect("written");
    directory
}

/// Flink has not committed the offsets of its savepoint to the group: only the savepoint has them.
#[test]
fn a_savepoint_of_a_drained_job_goes_on_where_that_job_has_stopped() {
    let handover = Handover::new("savepoint");
    let world = &handover.world;
    commit(world, &world.name, &[(0, BEFORE - 7), (1, 3)]);
    let drained = write_savepoint(&handover, "Terminate Savepoint");
    let suspended = write_savepoint(&handover, "Suspend Savepoint");
    let from = |directory: &Path| format!("savepoint:{}", directory.display());
    let says = [&*suspended.display().to_string(), "not made by `flink stop --drain`", "sessions"];
    refused(world, &["--from", &from(&suspended)], &[], 2, &says);
    let another = format!("{}-another", world.name);
    world.create(&another, 1, &[]);
    let (env, says) = ([("KAFKA_TOPIC", &*another)], format!("no offset of the topic {another}"));
    refused(world, &["--from", &from(&drained)], &env, 2, &[&says]);
    handover.assert_untouched();
    let log = world.run_to_end(&["--from", &from(&drained), "-w", "2"]);
    assert!(log.contains(&format!("from the offsets of the savepoint {}", drained.display())));
    assert!(!log.contains("WARN"), "{log}");
    assert_eq!(world.rows(), handover.all());
    assert_eq!(world.imbalance(), "0");
    // From now on the job knows its position, and no longer needs the savepoint.
    for directory in [drained, suspended] {
        std::fs::remove_dir_all(directory).expect("ours");
    }
    world.run_to_end(&[]);
    assert_eq!(world.rows(), handover.all());
}

#[test]
fn a_savepoint_that_is_not_there_is_asked_for() {
    let handover = Handover::new("no-savepoint");
    let world = &handover.world;
    let says = ["there is no directory /nowhere/s-1", "`flink stop --savepointPath` printed"];
    refused(world, &["--from", "savepoint:/nowhere/s-1"], &[], 2, &says);
    handover.assert_untouched();
}
