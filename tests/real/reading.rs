//! The content of a topic, and the batch answer over it, read by a consumer that is independent of
//! the job.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::oracle::{self, Event, GAP_MS, Row};
use crate::world::{PATIENCE, World, chrono_now_ms};

/// A consumer that receives nothing for this long is replaced. librdkafka itself waits a minute for
/// each answer, which may not come on a machine that is busy with other tests.
const SILENCE: Duration = Duration::from_secs(20);
const CONSUMERS: usize = 4;

impl World {
    /// Everything that is in a topic.
    pub fn read_topic(&self, topic: &str) -> Vec<Option<Vec<u8>>> {
        let metadata = self.consumer("asks").fetch_metadata(Some(topic), PATIENCE);
        let count = metadata.expect("metadata").topics()[0].partitions().len() as i32;
        let mut payloads = Vec::new();
        let mut next: BTreeMap<i32, Offset> =
            (0..count).map(|partition| (partition, Offset::Beginning)).collect();
        for _ in 0..CONSUMERS {
            self.read_on(topic, &mut next, &mut payloads);
            if next.is_empty() {
                return payloads;
            }
            eprintln!("{topic}: silent for {SILENCE:?}, {} read, next {next:?}", payloads.len());
        }
        let ends = next.keys().map(|partition| (partition, self.log_range(topic, *partition)));
        let ends: Vec<_> = ends.collect();
        panic!("{topic}: no consumer reads to the end: next {next:?}, of {ends:?}");
    }

    /// Reads until all is read, or nothing comes. Leaves those partitions in `next` that are not
    /// read to their end, with where to go on.
    fn read_on(
        &self,
        topic: &str,
        next: &mut BTreeMap<i32, Offset>,
        payloads: &mut Vec<Option<Vec<u8>>>,
    ) {
        let mut config = self.kafka_client();
        config
            .set("group.id", "reader")
            .set("enable.partition.eof", "true")
            .set("enable.auto.commit", "false");
        let consumer: BaseConsumer = config.create().expect("a consumer");
        let mut wanted = TopicPartitionList::new();
        for (partition, offset) in &*next {
            wanted.add_partition_offset(topic, *partition, *offset).expect("a valid offset");
        }
        consumer.assign(&wanted).expect("assigned");
        while !next.is_empty() {
            match consumer.poll(SILENCE) {
                Some(Ok(message)) => {
                    next.insert(message.partition(), Offset::Offset(message.offset() + 1));
                    payloads.push(message.payload().map(<[u8]>::to_vec));
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(next.remove(&partition)),
                Some(Err(why)) => panic!("reading {topic}: {why}"),
                None => return,
            }
        }
    }

    /// The batch answer over everything in a topic.
    pub fn answer(&self, topic: &str) -> BTreeSet<Row> {
        let latest_ms = chrono_now_ms() + GAP_MS;
        let payloads = self.read_topic(topic);
        let events: Vec<Event> =
            payloads.iter().filter_map(|p| oracle::read(p.as_deref(), latest_ms)).collect();
        oracle::sessions(&events)
    }
}
