//! State written by older versions is read, and the job continues from it.

use crate::world::{World, finish};

const STATE: &str = include_str!("../fixtures/state-2026-11/state.sql");
const RECORDS: &str = include_str!("../fixtures/state-2026-11/records.tsv");

/// The name of the job and the topic.
const NAME: &str = "fixture";

fn payload(text: &str) -> Vec<u8> {
    let Some(digits) = text.strip_prefix('x') else { return text.as_bytes().to_vec() };
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal");
    (0..digits.len()).step_by(2).map(byte).collect()
}

fn records() -> impl Iterator<Item = (i32, Vec<u8>)> {
    RECORDS.lines().map(|line| {
        let (partition, text) = line.split_once('\t').expect("a partition and a payload");
        (partition.parse().expect("a partition"), payload(text))
    })
}

#[test]
fn a_job_of_an_older_version_is_gone_on_with() {
    let mut world = World::new("upgrade");
    // The shard of a dead letter goes by the name of its topic.
    world.name = NAME.to_owned();
    world.create_topic(2);
    for partition in 0..2 {
        let of_partition = records().filter(|(of, _)| *of == partition);
        world.send(partition, of_partition.map(|(_, payload)| Some(payload)));
    }
    world.execute(STATE);
    let before = (world.rows().len(), world.value("select sum(closed) from sessionizer.balance"));
    assert_eq!(before, (156, "1286".to_owned()), "the state is that of the fixture");

    let log = world.run_to_end(&["-w", "3"]);
    assert!(log.contains("2 epochs to read again"), "{log}");
    assert_eq!(world.rows(), world.answer(&world.name));
    assert_eq!(world.imbalance(), "0");
    assert_eq!(world.value("select records from sessionizer.balance"), "2400");

    let mut audit = world.command();
    audit.arg("audit");
    let (status, log) = finish(audit);
    assert!(status.success(), "{log}");

    // Whoever runs the tests against servers of their own may run this again.
    world.delete_topic(NAME);
}
