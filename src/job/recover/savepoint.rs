//! Where a Flink job stopped: reads the offsets in its savepoint.
//!
//! Flink commits the offsets of its consumer group when a checkpoint is complete, but not for the
//! last one: `flink stop --drain` closes the Kafka consumer before the offsets of the savepoint are
//! committed. The group then lags what the job has written by a checkpoint or more, and only the
//! savepoint shows how far the job has read.
//!
//! A `KafkaSource` keeps one record for each partition in the state of its readers:
//!
//! ```text
//!   bytes  version  bytes  topic (u16 length, UTF-8)  partition  next offset  stopping offset
//!   i32    i32 = 0  i32    ..                         i32        i64          i64
//! ```
//!
//! The rest of the format is internal to Flink and changes, so it is not decoded: the bytes are
//! searched for records of this form. Small state is in the file `_metadata`, larger state in the
//! files beside it. The enumerator keeps records of the same form with the offsets where the job
//! began, so the largest offset of a partition counts.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use sessionizer_core::binding::Offset;
use sessionizer_core::fault::Message;

/// The file that every savepoint has.
const METADATA: &str = "_metadata";
/// Its first bytes.
const MAGIC: [u8; 4] = 0x4960_672d_u32.to_be_bytes();
/// Newer versions of Flink record the kind of snapshot.
const PROPERTIES: &[u8] = b"org.apache.flink.runtime.checkpoint.CheckpointProperties";
/// The name of a savepoint made by `flink stop --drain`, as Java writes a string.
const DRAINED: &[u8] = b"\x00\x13Terminate Savepoint";
/// The version of the serializer for a partition's record.
const RECORD_VERSION: i32 = 0;
/// What follows the topic: partition, next offset and stopping offset.
const AFTER_TOPIC: usize = 4 + 8 + 8;

/// The offsets in a savepoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Savepoint {
    /// The next offset to be read, by topic and partition. Partitions never read are missing.
    pub offsets: BTreeMap<(String, i32), Offset>,
    /// Whether the job was drained, that is, has written all its sessions. `None` for older
    /// versions of Flink, which do not record it.
    pub drained: Option<bool>,
}

/// Reads the savepoint in a directory, named as Flink prints it (`file:/...`) or as a path. For
/// savepoints kept elsewhere, a local copy of `_metadata` is enough.
///
/// # Errors
/// If the savepoint cannot be read; the message says why.
pub fn read(name: &str, topics: &[String]) -> Result<Savepoint, Message> {
    let directory = directory(name)?;
    let metadata = directory.join(METADATA);
    if !metadata.exists() {
        return Err(missing(&directory));
    }
    let mut files = vec![load(&metadata)?];
    let entries = fs::read_dir(&directory).map_err(|why| unreadable(&directory, &why))?;
    for entry in entries {
        let path = entry.map_err(|why| unreadable(&directory, &why))?.path();
        if path.is_file() && path != metadata {
            files.push(load(&path)?);
        }
    }
    decode(&files, topics).map_err(|why| format!("{} {why}", directory.display()).into())
}

/// The message for a directory without a savepoint: often it is the parent directory.
fn missing(directory: &Path) -> Message {
    let place = directory.display();
    let entries = fs::read_dir(directory);
    let what = match &entries {
        Err(why) if why.kind() == ErrorKind::NotFound => format!("there is no directory {place}"),
        _ => format!("the directory {place} has no file {METADATA}"),
    };
    let below = entries.into_iter().flatten().flatten().map(|entry| entry.path());
    let newest = below
        .filter_map(|path| Some((path.join(METADATA).metadata().ok()?.modified().ok()?, path)));
    let newest = newest.max().map_or(String::new(), |(_, path)| {
        format!(" The newest one in there is {}", path.display())
    });
    let remedy = format!(
        "DIR is the directory that `flink stop --savepointPath` printed, the one that contains \
         {METADATA}, or a copy of it.{newest}"
    );
    Message::new(what).remedy(". ", remedy)
}

fn load(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|why| unreadable(path, &why))
}

fn unreadable(path: &Path, why: &std::io::Error) -> String {
    format!("{} cannot be read: {why}", path.display())
}

/// Finds the offsets of the topics in the files of a savepoint; the first file is `_metadata`.
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

/// The directory of a savepoint, given the directory or its `_metadata`.
fn directory(name: &str) -> Result<PathBuf, Message> {
    let path = match name.split_once(':') {
        Some(("file", path)) => Path::new(path),
        Some((scheme, rest)) if rest.starts_with("//") => {
            let problem = format!("{name}: savepoints in {scheme}: cannot be read from here");
            let remedy = "copy the file _metadata to a local directory and name that";
            return Err(Message::new(problem).remedy("; ", remedy));
        }
        _ => Path::new(name),
    };
    let path = if path.ends_with(METADATA) { path.parent().unwrap_or(path) } else { path };
    // Flink prints file:/..., others write file:///...
    Ok(path.components().collect())
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

/// Adds the offsets of the topics found in these bytes.
fn collect(bytes: &[u8], topics: &[String], offsets: &mut BTreeMap<(String, i32), Offset>) {
    for topic in topics {
        let Some(head) = record_head(topic) else { continue };
        let length = head.len() + AFTER_TOPIC;
        for record in bytes.windows(length).filter(|window| window.starts_with(&head)) {
            let numbers = &record[head.len()..];
            let partition = i32::from_be_bytes(array(&numbers[..4]));
            let next = Offset::new(i64::from_be_bytes(array(&numbers[4..12])));
            // A negative value is not an offset but a place to begin: nothing was read yet.
            if partition >= 0 && next >= Offset::ZERO {
                let offset = offsets.entry((topic.clone(), partition)).or_insert(next);
                *offset = next.max(*offset);
            }
        }
    }
}

/// A record up to the end of the topic, without the leading byte count. `None` if the name is too
/// long for a topic.
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
#[path = "../../../tests/shared/savepoint.rs"]
mod written;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::recover::savepoint::written::{metadata, record};

    fn decoded(files: &[Vec<u8>], topics: &[&str]) -> Result<Savepoint, String> {
        let topics: Vec<String> = topics.iter().map(|&topic| topic.to_owned()).collect();
        decode(files, &topics)
    }

    #[test]
    fn the_greatest_offset_of_a_partition_counts_and_what_was_not_read_is_missing() {
        let begun = record("web", 0, 5);
        let records = [
            begun,
            record("web", 1, -3),
            b"...".to_vec(),
            record("web", 0, 70),
            record("web-2", 0, 99),
            record("web", 2, -2),
        ];
        let files = [metadata(None, &records), record("web", 1, 8)];
        let found = decoded(&files, &["web"]).expect("a savepoint");
        let offsets = [(("web".to_owned(), 0), 70), (("web".to_owned(), 1), 8)];
        let offsets = offsets.map(|(place, offset)| (place, Offset::new(offset)));
        assert_eq!(found, Savepoint { offsets: offsets.into(), drained: None });
    }

    #[test]
    fn a_savepoint_shows_whether_the_job_was_drained() {
        for (kind, drained) in [("Terminate Savepoint", true), ("Suspend Savepoint", false)] {
            let file = metadata(Some(kind), &[record("t", 0, 1)]);
            let found = decoded(&[file], &["t"]).expect("a savepoint");
            assert_eq!(found.drained, Some(drained), "{kind}");
        }
    }

    /// Written by the job in bench/flink. The table that it left had 280,418 events in its rows.
    #[test]
    fn what_flink_has_written_is_read() {
        let topics = ["events-drained".to_owned()];
        let written = |name: &str| {
            let name = format!("{}/tests/fixtures/flink-2.3/{name}", env!("CARGO_MANIFEST_DIR"));
            read(&name, &topics).expect("it is one")
        };
        let drained = written("savepoint-drained");
        assert_eq!(drained.drained, Some(true));
        let partitions: Vec<i32> = drained.offsets.keys().map(|(_, number)| *number).collect();
        assert_eq!(partitions, [0, 1, 2, 3]);
        assert_eq!(drained.offsets.values().map(|offset| offset.get()).sum::<i64>(), 280_418);
        let checkpoint = written("checkpoint");
        assert_eq!(checkpoint.drained, Some(false));
        assert!(checkpoint.offsets.iter().all(|(place, offset)| *offset < drained.offsets[place]));
    }

    #[test]
    fn what_is_no_savepoint_or_of_another_topic_is_an_error() {
        let why =
            |file: Vec<u8>, topics: &[&str]| decoded(&[file], topics).expect_err("not of these");
        let record = record("t", 0, 1);
        assert!(
            why(metadata(None, std::slice::from_ref(&record)), &["t", "u"])
                .contains("of the topic u")
        );
        assert!(why(metadata(None, &[record[..30].to_vec()]), &["t"]).contains("no offset"));
        assert!(why(record, &["t"]).contains("not a savepoint"));
        assert!(why(Vec::new(), &["t"]).contains("not a savepoint"));
        let why = read("/nowhere/savepoint-1", &[]).expect_err("not there").to_string();
        assert!(why.contains("there is no directory /nowhere/savepoint-1. DIR is the"), "{why}");
    }

    #[test]
    fn the_directory_above_a_savepoint_names_it() {
        let above = std::env::temp_dir().join(format!("savepoints-{}", std::process::id()));
        let why =
            || read(above.to_str().expect("UTF-8"), &[]).expect_err("no savepoint").to_string();
        fs::create_dir_all(above.join("savepoint-1")).expect("a directory");
        let message = why();
        assert!(
            message.contains(&format!("{} has no file _metadata", above.display())),
            "{message}"
        );
        assert!(message.ends_with("or a copy of it."), "{message}");
        fs::write(above.join("savepoint-1/_metadata"), "").expect("a file");
        let message = why();
        assert!(message.ends_with(&above.join("savepoint-1").display().to_string()), "{message}");
        fs::remove_dir_all(above).expect("ours");
    }

    #[test]
    fn savepoints_are_named_as_flink_prints_them_or_by_path() {
        for name in ["file:/s/p-1", "file:///s/p-1", "/s/p-1", "/s/p-1/", "/s/p-1/_metadata"] {
            assert_eq!(directory(name), Ok(PathBuf::from("/s/p-1")), "{name}");
        }
        let why = directory("s3://bucket/p-1").expect_err("not local").to_string();
        assert!(why.contains("copy the file _metadata"), "{why}");
    }
}
