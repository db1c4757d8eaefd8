//! Reads ranges of offsets, each in order: for the audit, and for the checks of a start.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset as RdOffset, TopicPartitionList};
use sessionizer_core::binding::Offset;
use sessionizer_core::epoch_clock::HumanDuration;
use sessionizer_core::fault::Fault;

use crate::dataflow::ports::Record;
use crate::kafka::{Context, KafkaConfig, lock, refused, rights};
use crate::ui::text;

/// How long a poll waits: this often, a scan that receives nothing checks whether to go on.
const POLL_TIMEOUT: Duration = Duration::from_millis(500);
/// How long nothing may arrive before that is reported, and how often it is reported from then on.
const SILENCE_NOTICE_DELAY: Duration = Duration::from_secs(10);
const SILENCE_NOTICE_INTERVAL: Duration = Duration::from_secs(60);

/// Offsets of a partition, from `start` up to but excluding `end`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    pub topic: String,
    pub partition: i32,
    pub start: Offset,
    pub end: Offset,
}

/// Reads all ranges at once, each in order, and waits for brokers that are away. `take` gets the
/// index of the range and the record, and returns whether to continue; `give_up` is asked while
/// nothing comes.
pub fn scan(
    config: &KafkaConfig,
    ranges: &[Range],
    give_up: impl Fn() -> bool,
    take: impl FnMut(usize, Record<'_>) -> bool,
) -> Result<(), Fault> {
    read(config, ranges, (None, &give_up), take)
}

/// Like [`scan`], for at most `timeout`.
pub fn scan_for(
    config: &KafkaConfig,
    ranges: &[Range],
    timeout: Duration,
    take: impl FnMut(usize, Record<'_>) -> bool,
) -> Result<(), Fault> {
    read(config, ranges, (Some(timeout), &|| false), take)
}

fn read(
    config: &KafkaConfig,
    ranges: &[Range],
    (timeout, give_up): (Option<Duration>, &dyn Fn() -> bool),
    mut take: impl FnMut(usize, Record<'_>) -> bool,
) -> Result<(), Fault> {
    let context = Context::default();
    let consumer = assigned(config, ranges, &context)?;
    let places: BTreeMap<(&str, i32), usize> = ranges
        .iter()
        .enumerate()
        .map(|(at, range)| ((range.topic.as_str(), range.partition), at))
        .collect();
    let mut open: Vec<bool> = ranges.iter().map(|range| range.start < range.end).collect();
    let mut silence = Silence::new(config);
    while let Some(waiting) = open.iter().position(|open| *open) {
        if timeout.is_some_and(|timeout| silence.began.elapsed() >= timeout) {
            let Range { topic, partition, start, .. } = &ranges[waiting];
            return Err(Fault::environment(format!(
                "{topic}[{partition}]: Kafka at {} did not deliver the records from offset \
                 {start} on within {:?}",
                config.brokers,
                silence.began.elapsed()
            )));
        }
        let polled = consumer.poll(POLL_TIMEOUT);
        if let Some(Ok(message)) = &polled {
            silence.is_over();
            let at = places[&(message.topic(), message.partition())];
            let offset = Offset::new(message.offset());
            if offset < ranges[at].end {
                let record = Record { offset, payload: message.payload() };
                if !take(at, record) {
                    return Ok(());
                }
            }
            open[at] &= offset.next() < ranges[at].end;
            continue;
        }
        if give_up() {
            return Ok(());
        }
        match polled {
            Some(Err(why)) if rights::is_denied(&why) => {
                return Err(rights::denied(ranges.iter().map(|range| range.topic.as_str())));
            }
            Some(Err(why)) if !matches!(why, KafkaError::PartitionEOF(_)) => {
                debug!("polling again: {why}");
            }
            // The event names the partition but not its topic, and a range may end in missing
            // offsets: compare the positions instead.
            _ => {
                let positions = consumer.position().map_err(|why| failed(&why))?;
                for (range, open) in ranges.iter().zip(&mut open) {
                    let found = positions.find_partition(&range.topic, range.partition);
                    if let Some(RdOffset::Offset(position)) = found.map(|found| found.offset()) {
                        *open &= Offset::new(position) < range.end;
                    }
                }
            }
        }
        silence.goes_on(&ranges[waiting], &context);
    }
    Ok(())
}

/// A consumer that begins at the start of each range.
fn assigned(
    config: &KafkaConfig,
    ranges: &[Range],
    context: &Context,
) -> Result<BaseConsumer<Context>, Fault> {
    let client = config.consumer(ranges.len());
    let consumer = BaseConsumer::from_config_and_context(&client, context.clone())
        .map_err(|why| refused(config, &why))?;
    let mut list = TopicPartitionList::new();
    for Range { topic, partition, start, .. } in ranges {
        list.add_partition_offset(topic, *partition, RdOffset::Offset(start.get()))
            .expect("an offset is not negative");
    }
    consumer.assign(&list).map_err(|why| failed(&why))?;
    Ok(consumer)
}

fn failed(why: &KafkaError) -> Fault {
    Fault::environment(format!("the topic cannot be reread: {why}"))
}

/// Reports that nothing arrives, and that records arrive again.
struct Silence<'a> {
    config: &'a KafkaConfig,
    began: Instant,
    /// When the last record arrived.
    since: Instant,
    reported: Option<Instant>,
}

impl<'a> Silence<'a> {
    fn new(config: &'a KafkaConfig) -> Self {
        let now = Instant::now();
        Silence { config, began: now, since: now, reported: None }
    }

    fn is_over(&mut self) {
        let now = Instant::now();
        if self.reported.take().is_some() {
            let lasted = text::duration(now - self.since);
            info!("Kafka at {} delivers records again, after {lasted}", self.config.brokers);
        }
        self.since = now;
    }

    fn goes_on(&mut self, range: &Range, context: &Context) {
        let due = match self.reported {
            None => self.since.elapsed() >= SILENCE_NOTICE_DELAY,
            Some(reported) => reported.elapsed() >= SILENCE_NOTICE_INTERVAL,
        };
        if due {
            self.reported = Some(Instant::now());
            let why = lock(&context.health.last).clone();
            let why = why.map_or(String::new(), |why| format!(" ({why})"));
            warn!(
                "{}[{}]: Kafka at {} has delivered no records for {}{why}; reading resumes when it \
                 does",
                range.topic,
                range.partition,
                self.config.brokers,
                HumanDuration(self.since.elapsed().as_millis() as u64)
            );
        }
    }
}
