//! The origin of records: `produce` marks what it writes, so that it does not write into somebody
//! else's topic by mistake.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::topic_partition_list::{Offset as RdOffset, TopicPartitionList};
use sessionizer_core::binding::Offset;
use sessionizer_core::fault::Fault;

use crate::kafka::{Admin, Context, KafkaConfig, refused};

/// The header that marks a record of `produce`; it has no value.
const MARK: &str = "sessionizer";
/// The first records of a run are all marked, later ones only one in [`MARK_EVERY_NTH`]: a header
/// on each would make the records of a topic larger by a twentieth.
const MARK_ALL_BELOW: u64 = 1_000;
const MARK_EVERY_NTH: u64 = 16;
/// How many records are searched for the mark at either end of a partition. The chance that none of
/// that many records of ours is marked is one in fifteen million.
const EXAMINED: i64 = 256;
/// How long the search may take.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns the headers of the `number`th record of a run.
pub(super) fn mark(number: u64) -> Option<OwnedHeaders> {
    let marked = number < MARK_ALL_BELOW || number.is_multiple_of(MARK_EVERY_NTH);
    marked.then(|| {
        let header = Header { key: MARK, value: None::<&[u8]> };
        OwnedHeaders::new_with_capacity(1).insert(header)
    })
}

/// A topic that holds records which `produce` has not written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Foreign {
    /// A partition whose oldest or newest records `produce` has not written.
    pub partition: i32,
    /// How many records the topic holds.
    pub records: u64,
}

/// Checks whether the first topic of the configuration holds records that `produce` has not
/// written, by the oldest and the newest records of each partition.
pub fn foreign_records(config: &KafkaConfig) -> Result<Option<Foreign>, Fault> {
    let topic = &config.topics[0];
    let admin = Admin::new(config)?;
    let counts = admin.topics(SEARCH_TIMEOUT, || false)?;
    let mut oldest = BTreeMap::new();
    let mut newest = BTreeMap::new();
    let mut records = 0;
    for partition in 0..counts[0] {
        let (start, end) = admin.offsets(topic, partition)?;
        if start < end {
            records += end.since(start) as u64;
            oldest.insert(partition, (start, end.min(start.plus(EXAMINED))));
            newest.insert(partition, (start.max(end.plus(-EXAMINED)), end));
        }
    }
    for ranges in [oldest, newest] {
        if let Some(partition) = unmarked(config, ranges)? {
            return Ok(Some(Foreign { partition, records }));
        }
    }
    Ok(None)
}

/// Finds a partition that has records in its range, but none with the mark.
fn unmarked(
    config: &KafkaConfig,
    mut ranges: BTreeMap<i32, (Offset, Offset)>,
) -> Result<Option<i32>, Fault> {
    let topic = &config.topics[0];
    let failed = |why: &dyn std::fmt::Display| {
        Fault::environment(format!("the records of {topic} cannot be examined: {why}"))
    };
    let mut settings = config.consumer(ranges.len());
    // Nothing is committed, and `produce` needs no KAFKA_GROUP; but a consumer must name a group.
    settings.set("group.id", "sessionizer-produce");
    let consumer: BaseConsumer<Context> =
        BaseConsumer::from_config_and_context(&settings, Context::default())
            .map_err(|why| refused(config, &why))?;
    let mut list = TopicPartitionList::new();
    for (partition, (start, _)) in &ranges {
        list.add_partition_offset(topic, *partition, RdOffset::Offset(start.get()))
            .map_err(|why| failed(&why))?;
    }
    consumer.assign(&list).map_err(|why| failed(&why))?;
    let began = Instant::now();
    let mut seen = BTreeSet::new();
    while !ranges.is_empty() {
        if began.elapsed() >= SEARCH_TIMEOUT {
            return Err(failed(&"no answer"));
        }
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => {
                let partition = message.partition();
                let Some(&(_, end)) = ranges.get(&partition) else { continue };
                let mut headers = message.headers().into_iter().flat_map(|headers| headers.iter());
                if headers.any(|header| header.key == MARK) {
                    ranges.remove(&partition);
                } else if Offset::new(message.offset()).next() >= end {
                    return Ok(Some(partition));
                } else {
                    seen.insert(partition);
                }
            }
            // The rest of a range may hold no records: transaction markers, or missing offsets.
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                let open = ranges.remove(&partition).is_some();
                if open && seen.contains(&partition) {
                    return Ok(Some(partition));
                }
            }
            Some(Err(why)) => log::debug!("looking at the records of {topic}: {why}"),
            None => {}
        }
    }
    Ok(None)
}
