//! Queries to the brokers: which partitions a topic has, where they begin and end, and its topic
//! id.

use std::collections::BTreeMap;
use std::ops::ControlFlow::{Break, Continue};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::info;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset as RdOffset, TopicPartitionList};
use sessionizer_core::binding::{Offset, Partition, TopicId};
use sessionizer_core::fault::{Fault, Message};

use crate::kafka::remedy;
use crate::kafka::{
    Context, EVENTS_PER_SERVICE, KafkaConfig, REQUEST_TIMEOUT, RETRY_PAUSE, lock, refused,
    topic_ids,
};
use crate::retry;
use crate::ui::tls;
use crate::ui::waiting::{Awaited, WaitGuard};

/// The timeout of one request during a start: between requests the start notices a stop.
const START_REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// How long brokers must refuse a login or a certificate before a start gives up: a broker that has
/// just started may not know the login yet.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(3);
/// The minimum timeout of a request, even if the timeout of the start is over.
const MIN_REQUEST_TIMEOUT: Duration = Duration::from_millis(500);

/// Asks the brokers about topics and offsets.
pub struct Admin {
    pub(super) config: KafkaConfig,
    pub(super) client: Arc<BaseConsumer<Context>>,
    pub(super) context: Context,
}

/// What the brokers report about a topic.
pub(super) struct Layout {
    pub(super) partitions: i32,
    /// The partitions that no broker serves now.
    pub(super) leaderless: Vec<i32>,
}

/// Why the partitions of a topic are not known.
pub(super) enum NoLayout {
    /// The brokers did not answer in time.
    Unanswered,
    NoTopic(Fault),
    /// This login may not read the topic.
    Denied(Fault),
}

/// Where reading may begin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StartAt {
    /// The oldest record.
    Earliest,
    /// After the newest record.
    Latest,
    /// The first record with this Kafka timestamp or a later one, in milliseconds since 1970.
    Timestamp(i64),
    /// The committed offsets of this consumer group.
    Group(String),
    /// The offsets in this savepoint of a Flink job.
    Savepoint(String),
}

impl Admin {
    /// Creates a client; sends no request yet.
    pub fn new(config: &KafkaConfig) -> Result<Self, Fault> {
        Admin::with(config, &config.client(), Context::default())
    }

    /// The same, with a client that can also commit the offsets of the consumer group.
    pub(super) fn with_group(config: &KafkaConfig, context: Context) -> Result<Self, Fault> {
        let mut client = config.client();
        client.set("group.id", &config.group).set("enable.auto.commit", "false");
        Admin::with(config, &client, context)
    }

    fn with(config: &KafkaConfig, client: &ClientConfig, context: Context) -> Result<Self, Fault> {
        let mut client = client.clone();
        client.set("allow.auto.create.topics", "false");
        let client = BaseConsumer::from_config_and_context(&client, context.clone())
            .map_err(|why| refused(config, &why))?;
        Ok(Admin { config: config.clone(), client: Arc::new(client), context })
    }

    /// Runs pending callbacks.
    pub(super) fn serve(&self) {
        for _ in 0..EVENTS_PER_SERVICE {
            drop(self.client.poll(Duration::ZERO));
        }
    }

    /// Returns the partitions of a topic.
    pub(super) fn partitions(&self, topic: &str, timeout: Duration) -> Result<Layout, NoLayout> {
        self.serve();
        let metadata = self.client.fetch_metadata(Some(topic), timeout);
        self.serve();
        let metadata = metadata.map_err(|why| {
            self.note_unanswered(&why);
            NoLayout::Unanswered
        })?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        match found.and_then(|topic| topic.error()) {
            None => {}
            Some(error) => {
                let code = RDKafkaErrorCode::from(error);
                return match code {
                    RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::UnknownTopic
                    | RDKafkaErrorCode::InvalidTopic => Err(NoLayout::NoTopic(no_topic(topic))),
                    RDKafkaErrorCode::TopicAuthorizationFailed => {
                        let problem =
                            format!("Kafka does not let this login read the topic {topic}");
                        let message =
                            Message::new(problem).remedy(": ", "grant it READ and DESCRIBE");
                        Err(NoLayout::Denied(Fault::config(message)))
                    }
                    _ => Err(NoLayout::Unanswered),
                };
            }
        }
        let Some(found) = found.filter(|found| !found.partitions().is_empty()) else {
            return Err(NoLayout::NoTopic(no_topic(topic)));
        };
        let leaderless = found.partitions().iter().filter(|partition| partition.leader() < 0);
        Ok(Layout {
            partitions: found.partitions().len() as i32,
            leaderless: leaderless.map(|partition| partition.id()).collect(),
        })
    }

    /// Notes why the brokers did not answer, unless a callback has delivered a reason.
    fn note_unanswered(&self, why: &KafkaError) {
        let mut last = lock(&self.context.health.last);
        last.get_or_insert_with(|| match why.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::OperationTimedOut,
            ) => "no answer".to_owned(),
            _ => why.to_string(),
        });
    }

    /// Returns how many partitions each topic has. Waits at most `timeout` for brokers and for a
    /// leader of every partition: only the leader knows where a partition begins and ends.
    pub fn topics(
        &self,
        timeout: Duration,
        mut give_up: impl FnMut() -> bool,
    ) -> Result<Vec<i32>, Fault> {
        let began = Instant::now();
        let mut is_reported = false;
        let awaited = Awaited::Kafka(self.config.brokers.clone());
        let waiting = WaitGuard::new(awaited, Some(timeout));
        let mut counts = Vec::new();
        for topic in &self.config.topics {
            counts.push(loop {
                let left = timeout.saturating_sub(began.elapsed());
                match self.partitions(topic, left.clamp(MIN_REQUEST_TIMEOUT, START_REQUEST_TIMEOUT))
                {
                    Ok(layout) if layout.leaderless.is_empty() => break layout.partitions,
                    Ok(layout) => {
                        let why = format!("{topic}{:?} has no leader", layout.leaderless);
                        *lock(&self.context.health.last) = Some(why);
                    }
                    Err(NoLayout::NoTopic(fault) | NoLayout::Denied(fault)) => return Err(fault),
                    Err(NoLayout::Unanswered) => {}
                }
                // A callback delivers the reason, a moment after the failure.
                thread::sleep(RETRY_PAUSE);
                self.serve();
                let why = lock(&self.context.health.last).clone();
                let why = why.unwrap_or_else(|| "no answer".to_owned());
                let over = began.elapsed() >= timeout || give_up();
                let refused = if over { Duration::ZERO } else { REFUSAL_TIMEOUT };
                if let Some(why) = self.context.refused_for(refused) {
                    let why = tls::plain(&why);
                    let brokers = &self.config.brokers;
                    let problem = format!("Kafka at {brokers} refuses the connection: {why}");
                    let message = Message::new(problem).remedy("; ", remedy::of_refusal(&why));
                    return Err(Fault::config(message));
                }
                if over {
                    let brokers = &self.config.brokers;
                    let problem = format!("Kafka at {brokers} cannot be used: {why}");
                    let remedy = format!(
                        "{}; if they require a login, set KAFKA_WEB_TRAFFIC_KEY and \
                         KAFKA_WEB_TRAFFIC_SECRET",
                        remedy::of_silence(&why)
                    );
                    return Err(Fault::environment(Message::new(problem).remedy("; ", remedy)));
                }
                waiting.because(&why);
                if !is_reported {
                    is_reported = true;
                    info!("waiting for Kafka at {}: {why}", self.config.brokers);
                }
            });
        }
        Ok(counts)
    }

    /// Returns the ids of topics; `None` where the brokers do not report them (before Kafka 3.1, or
    /// not Apache Kafka).
    pub fn topic_ids(&self, topics: &[String]) -> Vec<Option<TopicId>> {
        topic_ids::topic_ids(self.client.client(), topics, REQUEST_TIMEOUT)
    }

    /// Returns the oldest offset of a partition, and the one after the newest committed record.
    pub fn offsets(&self, topic: &str, partition: i32) -> Result<(Offset, Offset), Fault> {
        let ask = || {
            self.serve();
            match self.client.fetch_watermarks(topic, partition, REQUEST_TIMEOUT) {
                Ok((oldest, end)) => Break((Offset::new(oldest), Offset::new(end))),
                Err(why) => Continue(why),
            }
        };
        retry::until(5 * REQUEST_TIMEOUT, RETRY_PAUSE, ask).map_err(|why| {
            Fault::environment(format!(
                "Kafka at {} does not say which offsets {topic}[{partition}] has: {why}",
                self.config.brokers
            ))
        })
    }

    /// Returns where these partitions end, including records after the start of an open
    /// transaction, which cannot be read yet. Partitions whose end is unknown now are left out.
    pub fn log_ends(
        &self,
        topics: &[String],
        partitions: &[Partition],
    ) -> BTreeMap<Partition, Offset> {
        // A client's isolation level is fixed when it is created.
        let mut client = self.config.client();
        client.set("isolation.level", "read_uncommitted");
        let other = Admin::with(&self.config, &client, Context::default());
        other.ok().and_then(|other| other.ends(topics, partitions)).unwrap_or_default()
    }

    /// Returns where the readable, committed records of these partitions end. Partitions whose end
    /// is unknown now are left out. `None`: the brokers did not answer.
    pub fn ends(
        &self,
        topics: &[String],
        partitions: &[Partition],
    ) -> Option<BTreeMap<Partition, Offset>> {
        if partitions.is_empty() {
            return Some(BTreeMap::new());
        }
        let mut wanted = TopicPartitionList::new();
        for partition in partitions {
            let topic = &topics[usize::from(partition.topic)];
            wanted.add_partition_offset(topic, partition.number, RdOffset::End).ok()?;
        }
        let found = match self.client.offsets_for_times(wanted, REQUEST_TIMEOUT) {
            Ok(found) => found,
            Err(why) => {
                self.note_unanswered(&why);
                return None;
            }
        };
        let end = |partition: &Partition| {
            let topic = &topics[usize::from(partition.topic)];
            let found = found.find_partition(topic, partition.number)?;
            match (found.error(), found.offset()) {
                (Ok(()), RdOffset::Offset(end)) => Some((*partition, Offset::new(end))),
                _ => None,
            }
        };
        Some(partitions.iter().filter_map(end).collect())
    }

    /// Returns the first offset of a partition with this Kafka timestamp or a later one, or `end`
    /// if there is none.
    pub fn offset_at(
        &self,
        topic: &str,
        partition: i32,
        timestamp_ms: i64,
        end: Offset,
    ) -> Result<Offset, Fault> {
        let failed = |why: &dyn std::fmt::Display| {
            Fault::environment(format!("no offset of {topic}[{partition}] for --from: {why}"))
        };
        let mut wanted = TopicPartitionList::new();
        wanted
            .add_partition_offset(topic, partition, RdOffset::Offset(timestamp_ms.max(0)))
            .map_err(|why| failed(&why))?;
        let found =
            self.client.offsets_for_times(wanted, REQUEST_TIMEOUT).map_err(|why| failed(&why))?;
        match found.find_partition(topic, partition).map(|element| element.offset()) {
            Some(RdOffset::Offset(offset)) => Ok(Offset::new(offset)),
            _ => Ok(end),
        }
    }
}

pub(super) fn no_topic(topic: &str) -> Fault {
    let remedy = format!(
        "create it, or correct KAFKA_TOPIC (with Kafka's own tool: kafka-topics.sh --create --topic \
         {topic} --partitions 4 --bootstrap-server ...; `sessionizer produce` creates the topic \
         that it writes to)"
    );
    Fault::config(Message::new(format!("the topic {topic} does not exist")).remedy(": ", remedy))
}
