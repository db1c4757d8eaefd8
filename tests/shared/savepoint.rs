//! Savepoints as Flink writes them, as far as `src/job/recover/savepoint.rs` reads them.

/// The record that a `KafkaSource` keeps for a partition: the next offset to be read. A negative
/// value says where to begin.
pub fn record(topic: &str, partition: i32, next: i64) -> Vec<u8> {
    let mut split = (topic.len() as u16).to_be_bytes().to_vec();
    split.extend(topic.as_bytes());
    split.extend(partition.to_be_bytes());
    split.extend(next.to_be_bytes());
    split.extend(i64::MIN.to_be_bytes());
    let version = 0_i32;
    let length = split.len() as i32;
    [&version.to_be_bytes()[..], &length.to_be_bytes(), &split].concat()
}

/// The file `_metadata` of a savepoint with these records. `kind` is the name of the savepoint,
/// which older versions of Flink do not write: `Terminate Savepoint` is made by `flink stop
/// --drain`, `Suspend Savepoint` without `--drain`.
pub fn metadata(kind: Option<&str>, records: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = 0x4960_672d_u32.to_be_bytes().to_vec();
    bytes.extend(records.concat());
    if let Some(kind) = kind {
        bytes.extend(b"org.apache.flink.runtime.checkpoint.CheckpointProperties");
        bytes.extend((kind.len() as u16).to_be_bytes());
        bytes.extend(kind.as_bytes());
    }
    bytes
}
