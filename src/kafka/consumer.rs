//! Reads the partitions of a worker as they grow.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::channel;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use log::{debug, warn};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset as RdOffset, TopicPartitionList};
use sessionizer_core::binding::{Offset, Partition};
use sessionizer_core::fault::{Fault, Message};
use sessionizer_core::partition_end::PartitionEnd;

use crate::dataflow::ports::{Feed, Record, Stopped};
use crate::kafka::batch::{Batches, NextItem};
use crate::kafka::watcher::{Found, Watcher};
use crate::kafka::{Context, EVENTS_PER_SERVICE, KafkaConfig, REQUEST_TIMEOUT, lock, refused};

/// How long the end of a run waits for a consumer to close: a new consumer needs a second to find
/// its group coordinator.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Reads the partitions of one worker.
pub struct KafkaFeed {
    parts: BTreeMap<Partition, PartFeed>,
    /// Moved to a thread that closes it when the feed is dropped.
    consumer: Option<Arc<BaseConsumer<Context>>>,
    context: Context,
    topics: Vec<String>,
    /// Commits the offsets of the group: [`Watcher::group`] says why the consumer does not.
    group: Weak<BaseConsumer<Context>>,
    /// The metadata of those offsets.
    mark: String,
    found: Found,
    mine: Box<dyn Fn(Partition) -> bool>,
    wake: Arc<dyn Fn() + Send + Sync>,
    /// How long the end offset that a broker has reported stays valid.
    lifetime_ms: u64,
}

struct PartFeed {
    /// Fetched records; a record at or after the wanted end stays there.
    batches: Batches<Context>,
    /// The position of the reader, and what is known of the records after it.
    end: PartitionEnd,
    /// The last failed fetch: its offset, its error, and how often in a row.
    failing: Option<(Offset, RDKafkaErrorCode, u32)>,
}

/// How long a new consumer waits to learn which brokers serve a topic.
const LEADERS_TIMEOUT: Duration = Duration::from_secs(1);

/// Lets a new consumer learn which brokers serve a topic. A consumer that is assigned partitions
/// before that looks for their brokers only half a second later.
pub(super) fn learn_leaders(consumer: &BaseConsumer<Context>, topic: &str) {
    if let Err(why) = consumer.fetch_metadata(Some(topic), LEADERS_TIMEOUT) {
        debug!("which brokers serve {topic}: {why}");
    }
}

/// After this many failures in a row at one offset, a fetch is not expected to recover by itself.
const FAILURES_BEFORE_WARNING: u32 = 3;

impl KafkaFeed {
    /// Creates a feed that reads nothing yet. `mine` decides which new partitions belong to this
    /// worker, `partitions` is roughly how many all feeds of this process will read, and `wake` is
    /// called when records have arrived.
    pub fn new(
        config: &KafkaConfig,
        (topics, job): (&[String], &str),
        watcher: &Watcher,
        partitions: usize,
        mine: Box<dyn Fn(Partition) -> bool>,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<Self, Fault> {
        let context = watcher.context.clone();
        let consumer =
            BaseConsumer::from_config_and_context(&config.consumer(partitions), context.clone())
                .map_err(|why| refused(config, &why))?;
        topics.iter().for_each(|topic| learn_leaders(&consumer, topic));
        Ok(KafkaFeed {
            parts: BTreeMap::new(),
            consumer: Some(Arc::new(consumer)),
            context,
            topics: topics.to_vec(),
            group: Weak::clone(&watcher.group),
            mark: crate::kafka::group::mark(job),
            found: Arc::clone(&watcher.found),
            mine,
            wake,
            lifetime_ms: watcher.end_lifetime.as_millis() as u64,
        })
    }

    fn list(&self, offsets: impl Iterator<Item = (Partition, Offset)>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            let topic = &self.topics[usize::from(partition.topic)];
            list.add_partition_offset(topic, partition.number, RdOffset::Offset(offset.get()))
                .expect("an offset is not negative");
        }
        list
    }

    fn consumer(&self) -> &Arc<BaseConsumer<Context>> {
        self.consumer.as_ref().expect("the consumer is there until the feed is dropped")
    }

    fn failed(&self, partition: Partition, position: Offset, why: &KafkaError) -> Option<Fault> {
        let topic = &self.topics[usize::from(partition.topic)];
        let place = format!("{topic}[{}] at offset {position}", partition.number);
        match why.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                let number = partition.number;
                let there = self.consumer().fetch_watermarks(topic, number, REQUEST_TIMEOUT).ok();
                let there = there.map_or("has others".to_owned(), |(oldest, end)| {
                    format!("has {oldest} to {end}")
                });
                let problem = format!(
                    "{place}: Kafka no longer has this offset, it {there}: retention has deleted \
                     it, or the topic was deleted and created again. The data in Postgres stays \
                     right"
                );
                let remedy =
                    "Start with --accept-lost-offsets to continue without the records in between";
                Some(Fault::config(Message::new(problem).remedy(". ", remedy)))
            }
            Some(
                RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition,
            ) => Some(Fault::environment(format!("{place}: the topic or partition is gone"))),
            Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
                let problem = format!("{place}: Kafka does not let this login read the topic");
                let message = Message::new(problem).remedy(": ", "grant it READ on the topic");
                Some(Fault::config(message))
            }
            _ => {
                debug!(
                    topic = topic, partition = partition.number, offset = position.get();
                    "cannot be read: {why}"
                );
                None
            }
        }
    }
}

impl KafkaFeed {
    /// Warns once about an offset that keeps failing, with a remedy if one is known.
    fn warn_of_failures(&self, partition: Partition, position: Offset, why: &KafkaError) {
        let help = match why.rdkafka_error_code() {
            Some(RDKafkaErrorCode::BadCompression) => {
                ". A batch that is larger than receive.message.max.bytes when it is decompressed \
                 cannot be read: raise it (--kafka-config receive.message.max.bytes=1000000000)"
            }
            Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize) => {
                ". Raise what a fetch may hold (--kafka-config fetch.message.max.bytes=..., and \
                 receive.message.max.bytes=... above it)"
            }
            _ => "",
        };
        warn!(
            topic = self.topics[usize::from(partition.topic)],
            partition = partition.number,
            offset = position.get();
            "{}[{}]: the records at offset {position} cannot be read, and it is tried again and \
             again: {why}{help}",
            self.topics[usize::from(partition.topic)],
            partition.number
        );
    }
}

impl Feed for KafkaFeed {
    fn assign(&mut self, partition: Partition, start: Offset) -> Result<(), Fault> {
        let topic = &self.topics[usize::from(partition.topic)];
        let failed = |why: &dyn std::fmt::Display| {
            Fault::environment(format!("{topic}[{}] cannot be read: {why}", partition.number))
        };
        let wake = Arc::clone(&self.wake);
        let batches = Batches::split(self.consumer(), topic, partition.number, move || wake())
            .ok_or_else(|| failed(&"librdkafka has no queue for it"))?;
        let list = self.list(std::iter::once((partition, start)));
        self.consumer().incremental_assign(&list).map_err(|why| failed(&why))?;
        let end = PartitionEnd::new(start, self.lifetime_ms, self.context.health.now_ms());
        let part = PartFeed { batches, end, failing: None };
        self.parts.insert(partition, part);
        Ok(())
    }

    fn read(
        &mut self,
        partition: Partition,
        end: Option<Offset>,
        limit: usize,
        take: &mut dyn FnMut(Record<'_>) -> bool,
    ) -> Result<Stopped, Fault> {
        let part = self.parts.get_mut(&partition).expect("only assigned partitions are read");
        let beyond = |offset: Offset| end.is_some_and(|end| offset >= end);
        let mut left = limit;
        loop {
            if beyond(part.end.position()) {
                return Ok(Stopped::AtEnd);
            }
            match part.batches.peek() {
                Some(NextItem::Record(record)) if beyond(record.offset) => {
                    return Ok(Stopped::AtEnd);
                }
                Some(NextItem::Record(_)) if left == 0 => return Ok(Stopped::AtLimit),
                Some(NextItem::Record(record)) => {
                    let offset = record.offset;
                    left = if take(record) { left - 1 } else { 0 };
                    part.end.record(offset);
                }
                Some(NextItem::End(offset)) => part.end.end(offset),
                Some(NextItem::Failed(code)) => {
                    part.batches.pass();
                    let (position, why) =
                        (part.end.position(), KafkaError::MessageConsumption(code));
                    let before =
                        part.failing.filter(|(at, same, _)| (*at, *same) == (position, code));
                    let times = before.map_or(1, |(_, _, times)| times + 1);
                    part.failing = Some((position, code, times));
                    if let Some(fault) = self.failed(partition, position, &why) {
                        return Err(fault);
                    }
                    if times == FAILURES_BEFORE_WARNING {
                        self.warn_of_failures(partition, position, &why);
                    }
                    return Ok(Stopped::Waiting);
                }
                None => {
                    let now_ms = self.context.health.now_ms();
                    part.end.emptied(now_ms);
                    if let Some(end) = part.batches.known_end() {
                        part.end.log_ended(end, now_ms);
                    }
                    let all = part.end.has_ended() && end.is_some();
                    return Ok(if all { Stopped::AtEnd } else { Stopped::Waiting });
                }
            }
            part.batches.pass();
        }
    }

    fn position(&self, partition: Partition) -> Offset {
        self.parts[&partition].end.position()
    }

    /// After a broker was away, librdkafka's consumer may stop fetching from some of its partitions
    /// until it learns again which brokers serve them (docs/DECISIONS.md).
    fn fetch_again(&mut self, partition: Partition) {
        let part = &self.parts[&partition];
        if part.batches.holds() {
            return;
        }
        let topic = &self.topics[usize::from(partition.topic)];
        learn_leaders(self.consumer(), topic);
        let list = self.list(std::iter::once((partition, part.end.position())));
        let consumer = self.consumer();
        let again =
            consumer.incremental_unassign(&list).and_then(|()| consumer.incremental_assign(&list));
        if let Err(why) = again {
            debug!("{topic}[{}] cannot be fetched again: {why}", partition.number);
        }
    }

    fn quiet_ms_ago(&self, partition: Partition) -> Option<u64> {
        let part = &self.parts[&partition];
        if part.batches.holds() {
            return None;
        }
        let health = &self.context.health;
        part.end.quiet_ms_ago(health.now_ms(), health.last_failure_ms())
    }

    fn may_be_held_back(&self, partition: Partition) -> bool {
        // `known_end` is the end of the log; `part.end` knows the last stable offset.
        let part = &self.parts[&partition];
        part.batches.known_end().is_some_and(|end| end > part.end.position())
    }

    fn held_by_transaction(&self, partition: Partition) -> Option<Offset> {
        let (part, health) = (&self.parts[&partition], &self.context.health);
        if part.batches.holds() {
            return None;
        }
        part.end.held_back_to(health.now_ms(), health.last_failure_ms())
    }

    fn keeps_up(&self, partition: Partition) -> bool {
        // While records keep arriving, the broker never reports the end of the partition.
        let part = &self.parts[&partition];
        let end = part.batches.known_end();
        !part.batches.holds()
            && (part.end.has_ended() || end.is_some_and(|end| end <= part.end.position()))
    }

    fn waiting(&self, partition: Partition) -> Option<u64> {
        let part = &self.parts[&partition];
        match part.batches.known_end() {
            Some(end) => Some(u64::try_from(end.since(part.end.position())).unwrap_or(0)),
            None => part.end.has_ended().then_some(0),
        }
    }

    fn read_up_to_ms(&self, partition: Partition) -> Option<i64> {
        self.parts[&partition].batches.read_up_to_ms()
    }

    fn service(&mut self) -> Result<Vec<(Partition, Offset)>, Fault> {
        for _ in 0..EVENTS_PER_SERVICE {
            // The common queue carries only events: a record here would be lost.
            let event = self.consumer().poll(Duration::ZERO);
            assert!(!matches!(event, Some(Ok(_))), "a record came by the common queue");
        }
        {
            let (asked_ms, ends) = &*lock(&self.context.health.ends);
            for (partition, part) in &mut self.parts {
                if let Some(end) = ends.get(partition) {
                    part.end.answer(*end, *asked_ms);
                }
            }
        }
        let mut found = lock(&self.found);
        let found = found.as_mut().map_err(|fault| fault.clone())?;
        let mine: Vec<Partition> =
            found.keys().filter(|partition| (self.mine)(**partition)).copied().collect();
        Ok(mine.into_iter().filter_map(|at| found.remove_entry(&at)).collect())
    }

    fn durable(&mut self, ends: &BTreeMap<Partition, Offset>) {
        let Some(group) = self.group.upgrade() else { return };
        let mut list = TopicPartitionList::new();
        for (partition, end) in ends {
            let topic = &self.topics[usize::from(partition.topic)];
            let mut entry = list.add_partition(topic, partition.number);
            entry.set_offset(RdOffset::Offset(end.get())).expect("an offset is not negative");
            entry.set_metadata(&self.mark);
        }
        self.context.health.commits.fetch_add(1, Relaxed);
        if let Err(why) = group.commit(&list, CommitMode::Async) {
            self.context.health.commits.fetch_sub(1, Relaxed);
            debug!("the group's offsets were not committed, tools will show too much lag: {why}");
        }
    }
}

impl Drop for KafkaFeed {
    /// A closing consumer may wait for a broker that is down, for a minute or for ever: wait up to
    /// `CLOSE_TIMEOUT`, then end the run.
    fn drop(&mut self) {
        let (closing, closed) = channel::<()>();
        // The queues of the partitions hold references to the consumer, too.
        let all = (std::mem::take(&mut self.parts), self.consumer.take(), closing);
        let thread = thread::Builder::new().name("kafka-close".to_owned());
        if thread.spawn(move || drop(all)).is_ok() {
            let _ = closed.recv_timeout(CLOSE_TIMEOUT);
        }
    }
}
