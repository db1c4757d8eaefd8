//! Checks Kafka for `sessionizer check`. It creates no topic, joins no group and commits nothing.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use log::debug;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::topic_partition_list::{Offset as RdOffset, TopicPartitionList};
use sessionizer_core::binding::{Offset, Partition};
use sessionizer_core::fault::Fault;

use crate::kafka::admin::NoLayout;
use crate::kafka::{Admin, Context, KafkaConfig, REQUEST_TIMEOUT, RETRY_PAUSE, lock};

/// The topic in which Kafka keeps the offsets of groups. Kafka creates it when the first group
/// appears, for which a consumer that names a group is enough.
const OFFSETS_TOPIC: &str = "__consumer_offsets";
/// For how long a login or a certificate must be refused, or all brokers be away, before that
/// counts.
const SURE_AFTER: Duration = Duration::from_secs(1);
/// librdkafka's default of `receive.message.max.bytes`.
const RECEIVE_BYTES: u64 = 100_000_000;
/// What a response needs besides the records.
const FRAME_BYTES: u64 = 512;

/// What the brokers say about a topic, or why they do not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TopicReply {
    /// How many brokers and partitions there are, and the partitions without a leader.
    Topic { brokers: usize, partitions: i32, leaderless: Vec<i32> },
    /// They answer, and there is no such topic.
    NoTopic,
    /// They answer, but not what this login asks about the topic.
    Denied(Fault),
    /// They refuse the login or the client's certificate, or the client refuses theirs.
    Refused(String),
    /// They do not answer.
    Silent(String),
}

/// Whether one record batch of a topic can be received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchLimits {
    /// `max.message.bytes` of the topic: the largest record batch.
    pub topic: u64,
    /// `receive.message.max.bytes`, the largest response that the client accepts, less its frame.
    pub here: u64,
}

impl KafkaConfig {
    /// How connections are made, for people: `SASL_SSL with PLAIN`.
    pub fn protocol(&self) -> String {
        let set = |names: &[&str]| {
            let found = self.extra.iter().rev().find(|(name, _)| names.contains(&name.as_str()));
            found.map(|(_, value)| value.reveal().trim().to_uppercase())
        };
        let default = if self.login.is_some() { "SASL_SSL" } else { "PLAINTEXT" };
        let protocol = set(&["security.protocol"]).unwrap_or_else(|| default.to_owned());
        if !protocol.starts_with("SASL") {
            return protocol;
        }
        let mechanism = set(&["sasl.mechanism", "sasl.mechanisms"]);
        let default = if self.login.is_some() { "PLAIN" } else { "GSSAPI" };
        format!("{protocol} with {}", mechanism.unwrap_or_else(|| default.to_owned()))
    }

    /// Returns what is wrong with the files that settings of librdkafka name.
    pub fn unreadable_files(&self) -> Vec<Fault> {
        let named = self.extra.iter().filter(|(name, _)| name.ends_with(".location"));
        let wrong = named.filter_map(|(name, file)| {
            let file = file.reveal().trim();
            let why = std::fs::metadata(file).and_then(|found| match found.is_dir() {
                true => Ok(()),
                false => std::fs::File::open(file).map(drop),
            });
            let why = why.err()?;
            Some(Fault::config(format!("--kafka-config {name}: {file} cannot be read: {why}")))
        });
        wrong.collect()
    }

    fn receive_bytes(&self) -> u64 {
        let set = self.extra.iter().rfind(|(name, _)| name == "receive.message.max.bytes");
        let set = set.and_then(|(_, value)| value.reveal().trim().parse().ok());
        set.unwrap_or(RECEIVE_BYTES)
    }
}

impl Admin {
    /// Asks about a topic. Waits at most `timeout`, and less if all brokers are known to be away.
    pub fn inspect(&self, topic: &str, timeout: Duration) -> TopicReply {
        let began = Instant::now();
        loop {
            let left = timeout.saturating_sub(began.elapsed());
            let request = left.clamp(RETRY_PAUSE, SURE_AFTER);
            match self.partitions(topic, request) {
                Ok(layout) => {
                    let (partitions, leaderless) = (layout.partitions, layout.leaderless);
                    return TopicReply::Topic { brokers: self.brokers(), partitions, leaderless };
                }
                Err(NoLayout::NoTopic(_)) => return TopicReply::NoTopic,
                Err(NoLayout::Denied(fault)) => return TopicReply::Denied(fault),
                Err(NoLayout::Unanswered) => {}
            }
            // A callback delivers the reason, a moment after the failure.
            thread::sleep(RETRY_PAUSE);
            self.serve();
            let over = began.elapsed() >= timeout;
            let all_down = self.context.all_down() && began.elapsed() >= SURE_AFTER;
            let sure = if over || all_down { Duration::ZERO } else { SURE_AFTER };
            if let Some(why) = self.context.refused_for(sure) {
                return TopicReply::Refused(why);
            }
            if over || all_down {
                let why = lock(&self.context.health.last).clone();
                return TopicReply::Silent(why.unwrap_or_else(|| "no answer".to_owned()));
            }
        }
    }

    fn brokers(&self) -> usize {
        let metadata = self.client.fetch_metadata(Some(&self.config.topics[0]), REQUEST_TIMEOUT);
        metadata.map_or(0, |metadata| metadata.brokers().len())
    }

    /// Returns the oldest offsets of these partitions. Partitions for which no answer comes are
    /// left out.
    pub fn beginnings(
        &self,
        topics: &[String],
        partitions: &[Partition],
    ) -> BTreeMap<Partition, Offset> {
        let mut wanted = TopicPartitionList::new();
        for partition in partitions {
            let topic = &topics[usize::from(partition.topic)];
            if wanted.add_partition_offset(topic, partition.number, RdOffset::Beginning).is_err() {
                return BTreeMap::new();
            }
        }
        let Ok(found) = self.client.offsets_for_times(wanted, REQUEST_TIMEOUT) else {
            return BTreeMap::new();
        };
        let oldest = |partition: &Partition| {
            let topic = &topics[usize::from(partition.topic)];
            let found = found.find_partition(topic, partition.number)?;
            match (found.error(), found.offset()) {
                (Ok(()), RdOffset::Offset(oldest)) => Some((*partition, Offset::new(oldest))),
                _ => None,
            }
        };
        partitions.iter().filter_map(oldest).collect()
    }

    /// Whether a consumer with a group can be created without making Kafka create its topic of
    /// offsets. If the login may not see that topic, others are assumed to have used this Kafka.
    pub fn has_groups(&self) -> bool {
        let metadata = self.client.fetch_metadata(Some(OFFSETS_TOPIC), REQUEST_TIMEOUT);
        let Ok(metadata) = metadata else { return false };
        let found = metadata.topics().iter().find(|found| found.name() == OFFSETS_TOPIC);
        match found.map(|found| found.error().map(RDKafkaErrorCode::from)) {
            Some(None | Some(RDKafkaErrorCode::TopicAuthorizationFailed)) => true,
            Some(Some(why)) => {
                debug!("{OFFSETS_TOPIC}: {why}");
                false
            }
            None => false,
        }
    }

    /// Returns the limits on a record batch of a topic; `None` if the brokers do not say.
    pub fn batch_limits(&self, topic: &str, timeout: Duration) -> Option<BatchLimits> {
        let client: AdminClient<Context> =
            AdminClient::from_config_and_context(&self.config.client(), Context::default()).ok()?;
        let options = AdminOptions::new().request_timeout(Some(timeout));
        let of_topic = ResourceSpecifier::Topic(topic);
        let asked = client.describe_configs([&of_topic], &options);
        let answer = futures_executor::block_on(asked)
            .inspect_err(|why| debug!("the settings of {topic}: {why}"))
            .ok()?;
        let config = answer.into_iter().next()?.ok()?;
        let value = config.get("max.message.bytes")?.value.as_ref()?.parse().ok()?;
        let here = self.config.receive_bytes().saturating_sub(FRAME_BYTES);
        Some(BatchLimits { topic: value, here })
    }
}

#[cfg(test)]
mod tests {
    use sessionizer_core::secret::Secret;

    use super::*;

    #[test]
    fn the_protocol_is_named_as_it_is_set() {
        let mut config = KafkaConfig {
            brokers: String::new(),
            group: String::new(),
            topics: Vec::new(),
            login: None,
            extra: Vec::new(),
            queued_bytes: 1,
        };
        assert_eq!(config.protocol(), "PLAINTEXT");
        config.login = Some(("key".to_owned(), Secret::new("hunter2")));
        assert_eq!(config.protocol(), "SASL_SSL with PLAIN");
        let set = |name: &str, value: &str| (name.to_owned(), Secret::new(value));
        config.extra =
            vec![set("sasl.mechanisms", "scram-sha-256"), set("receive.message.max.bytes", "2000")];
        assert_eq!(config.protocol(), "SASL_SSL with SCRAM-SHA-256");
        assert_eq!(config.receive_bytes(), 2_000);
        config.extra.push(set("security.protocol", "ssl"));
        assert_eq!(config.protocol(), "SSL");
    }
}
