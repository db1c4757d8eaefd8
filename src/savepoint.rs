//! Where a Flink job has stopped: the offsets in its savepoint.
//!
//! Flink commits the offsets of its consumer group when a checkpoint is complete, and leaves out
//! the last one: `flink stop --drain` closes the Kafka consumer before the offsets of the savepoint
//! are committed. The group is then behind what the job has written, by a checkpoint or more,
//! and the savepoint is the only place that says how far the job has read.
//!
//! A `KafkaSource` keeps one record for each partition in the state of its readers:
//!
//! ```text
//!   bytes  version  bytes  topic (u16 length, UTF-8)  partition  next offset  stopping offset
//!   i32    i32 = 0  i32    ..                         i32        i64          i64
//! ```
//!
//! The rest of the format is Flink's own and changes, so it is not decoded: the records are looked
//! for by their form. Small state is in the file `_metadata`, larger state in the files beside it.
//! The enumerator keeps records of the same form with the offsets where the job began, so the
//! greatest offset of a partition counts.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::binding::Offset;

/// The first bytes of every `_metadata`.
const MAGIC: [u8; 4] = 0x4960_672d_u32.to_be_bytes();
/// Newer versions of Flink add what kind of snapshot it is.
const PROPERTIES: &[u8] = b"org.apache.flink.runtime.checkpoint.CheckpointProperties";
/// The name of a savepoint of `flink stop --drain`, as Java writes a string.
const DRAINED: &[u8] = b"\x00\x13Terminate Savepoint";
/// The version of the serializer of a partition's record.
const RECORD_VERSION: i32 = 0;
/// What follows the topic: partition, next offset and stopping offset.
const AFTER_TOPIC: usize = 4 + 8 + 8;

/// The offsets in a savepoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Savepoint {
    /// The next offset to be read, by topic and partition. Those never read are missing.
    pub offsets: BTreeMap<(String, i32), Offset>,
    /// Whether the job was drained, that is, whether it has written all its sessions. `None`: an
    /// older version of Flink, which does not say.
    pub drained: Option<bool>,
}

/// Reads the savepoint in a directory, named as Flink prints it (`file:/...`) or as a path. Whoever
/// keeps savepoints elsewhere needs a copy of `_metadata` only.
///
/// # Errors
/// Says what is wrong with the savepoint.
pub fn read(name: &str, topics: &[String]) -> Result<Savepoint, String> {
    let directory = directory(name)?;
    let metadata = directory.join("_metadata");
    let mut files = vec![load(&metadata)?];
    let entries = fs::read_dir(&directory).map_err(|why| unreadable(&directory, &why))?;
    for entry in entries {
        let path = entry.map_err(|why| unreadable(&directory, &why))?.path();
        if path.is_file() && path != metadata {
            files.push(load(&path)?);
        }
    }
    decode(&files, topics).map_err(|why| format!("{} {why}", directory.display()))
}

fn load(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|why| unreadable(path, &why))
}

fn unreadable(path: &Path, why: &std::io::Error) -> String {
    format!("{} cannot be read: {why}", path.display())
}

/// What the files of a savepoint hold of the topics; the first is `_metadata`.
fn decode(files: &[Vec<u8>], topics: &[String]) -> Result<Savepoint, String> {
    let metadata = files.first().map_or(&[][..], Vec::as_slice);
    if !metadata.starts_with(&MAGIC) {
        return Err("is not a savepoint of Flink: its _metadata is something else".to_owned());
    }
    let drained = contains(metadata, PROPERTIES).then(|| contains(metadata, DRAINED));
    let mut offsets = BTreeMap::new();
    for bytes in files {
        collect(bytes, topics, &mut offsets);
    }
    if let Some(topic) = topics.iter().find(|topic| offsets.keys().all(|(of, _)| of != *topic)) {
        return Err(format!(
            "holds no offset of the topic {topic}: the job did not read it with a KafkaSource, its \
             state is compressed, or files beside _metadata are missing"
        ));
    }
    Ok(Savepoint { offsets, drained })
}

/// The directory of a savepoint that is named by its directory or by its `_metadata`.
fn directory(name: &str) -> Result<PathBuf, String> {
    let path = match name.split_once(':') {
        Some(("file", path)) => Path::new(path),
        Some((scheme, rest)) if rest.starts_with("//") => {
            return Err(format!(
                "{name}: savepoints in {scheme}: cannot be read from here; copy the file _metadata \
                 to a local directory and name that"
            ));
        }
        _ => Path::new(name),
    };
    let path = if path.ends_with("_metadata") { path.parent().unwrap_or(path) } else { path };
    // Flink prints file:/..., others write file:///...
    Ok(path.components().collect())
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

/// Adds what these bytes hold of the topics.
fn collect(bytes: &[u8], topics: &[String], offsets: &mut BTreeMap<(String, i32), Offset>) {
    for topic in topics {
        let Some(head) = record_head(topic) else { continue };
        let length = head.len() + AFTER_TOPIC;
        for record in bytes.windows(length).filter(|window| window.starts_with(&head)) {
            let numbers = &record[head.len()..];
            let partition = i32::from_be_bytes(array(&numbers[..4]));
            let next = i64::from_be_bytes(array(&numbers[4..12]));
            // Below zero it is not an offset yet but where to begin: nothing was read.
            if partition >= 0 && next >= 0 {
                let offset = offsets.entry((topic.clone(), partition)).or_insert(next);
                *offset = next.max(*offset);
            }
        }
    }
}

/// A record up to the end of the topic, without the number of bytes that comes first. `None`: no
/// topic has a name that long.
fn record_head(topic: &str) -> Option<Vec<u8>> {
    let length = u16::try_from(topic.len()).ok()?;
    let bytes = 2 + i32::from(length) + AFTER_TOPIC as i32;
    let mut head = Vec::new();
    head.extend(RECORD_VERSION.to_be_bytes());
    head.extend(bytes.to_be_bytes());
    head.extend(length.to_be_bytes());
    head.extend(topic.as_bytes());
    Some(head)
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("a slice of that length")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(topic: &str, partition: i32, next: i64) -> Vec<u8> {
        let mut bytes = record_head(topic).expect("a short name");
        bytes.extend(partition.to_be_bytes());
        bytes.extend(next.to_be_bytes());
        bytes.extend(i64::MIN.to_be_bytes());
        bytes
    }

    fn decoded(files: &[&[Vec<u8>]], topics: &[&str]) -> Result<Savepoint, String> {
        let files: Vec<Vec<u8>> = files.iter().map(|parts| parts.concat()).collect();
        let topics: Vec<String> = topics.iter().map(|&topic| topic.to_owned()).collect();
        decode(&files, &topics)
    }

    fn magic() -> Vec<u8> {
        MAGIC.to_vec()
    }

    #[test]
    fn the_greatest_offset_of_a_partition_counts_and_what_was_not_read_is_missing() {
        let begun = record("web", 0, 5);
        let parts = vec![
            magic(),
            begun,
            record("web", 1, -3),
            b"...".to_vec(),
            record("web", 0, 70),
            record("web-2", 0, 99),
            record("web", 2, -2),
        ];
        let found = decoded(&[&parts, &[record("web", 1, 8)]], &["web"]).expect("a savepoint");
        let offsets = [(("web".to_owned(), 0), 70), (("web".to_owned(), 1), 8)];
        assert_eq!(found, Savepoint { offsets: offsets.into(), drained: None });
    }

    #[test]
    fn a_savepoint_says_whether_the_job_was_drained() {
        for (name, drained) in [("Terminate Savepoint", true), ("Suspend Savepoint", false)] {
            let mut text = (name.len() as u16).to_be_bytes().to_vec();
            text.extend(name.as_bytes());
            let parts = vec![magic(), record("t", 0, 1), PROPERTIES.to_vec(), text];
            let found = decoded(&[&parts], &["t"]).expect("a savepoint");
            assert_eq!(found.drained, Some(drained), "{name}");
        }
    }

    #[test]
    fn what_is_no_savepoint_or_of_another_topic_is_an_error() {
        let why = |parts: &[Vec<u8>], topics: &[&str]| {
            decoded(&[parts], topics).expect_err("not of these")
        };
        let record = record("t", 0, 1);
        assert!(why(&[magic(), record.clone()], &["t", "u"]).contains("offset of the topic u"));
        assert!(why(&[magic(), record[..30].to_vec()], &["t"]).contains("no offset"));
        assert!(why(&[record], &["t"]).contains("not a savepoint"));
        assert!(why(&[], &["t"]).contains("not a savepoint"));
        let why = read("/nowhere/savepoint-1", &[]).expect_err("not there");
        assert!(why.contains("/nowhere/savepoint-1/_metadata cannot be read"), "{why}");
    }

    #[test]
    fn savepoints_are_named_as_flink_prints_them_or_by_path() {
        for name in ["file:/s/p-1", "file:///s/p-1", "/s/p-1", "/s/p-1/", "/s/p-1/_metadata"] {
            assert_eq!(directory(name), Ok(PathBuf::from("/s/p-1")), "{name}");
        }
        let why = directory("s3://bucket/p-1").expect_err("not local");
        assert!(why.contains("copy the file _metadata"), "{why}");
    }
}
