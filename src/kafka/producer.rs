//! Writes events, creates their topic, and embeds a broker where there is none.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use log::debug;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{
    BaseRecord, DefaultProducerContext, DeliveryResult, Producer, ProducerContext, ThreadedProducer,
};
use sessionizer_core::fault::{Fault, Message};

use crate::kafka::admin::no_topic;
use crate::kafka::{Admin, KafkaConfig, lock, origin, refused};

/// How long creating a topic waits for brokers.
const CREATE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a broker may take no record before it is given up.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);

/// Writes events to a topic.
pub struct Publisher {
    topic: String,
    producer: ThreadedProducer<Delivery>,
    /// How many records have been queued.
    queued: AtomicU64,
    delivery: Delivery,
}

#[derive(Clone, Default)]
struct Delivery {
    delivered: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    last: Arc<Mutex<Option<String>>>,
}

impl ClientContext for Delivery {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        debug!(target: "librdkafka", "{level:?} {facility}: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(target: "librdkafka", "{error}: {reason}");
        *lock(&self.last) = Some(crate::ui::tls::plain(reason));
    }
}

impl ProducerContext for Delivery {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => self.delivered.fetch_add(1, Relaxed),
            Err((why, _)) => {
                *lock(&self.last) = Some(why.to_string());
                self.failed.fetch_add(1, Relaxed)
            }
        };
    }
}

impl Publisher {
    /// Connects to the first topic of the configuration, which must exist.
    pub fn new(config: &KafkaConfig, compression: &str) -> Result<Self, Fault> {
        let mut client = config.client();
        // Idempotent: a retry after a lost reply must not write a record twice.
        client.set("enable.idempotence", "true");
        client.set("compression.type", compression);
        client.set("linger.ms", "5");
        client.set("queue.buffering.max.messages", "500000");
        for (name, value) in &config.extra {
            client.set(name, value.reveal());
        }
        let delivery = Delivery::default();
        let producer = ThreadedProducer::from_config_and_context(&client, delivery.clone())
            .map_err(|why| refused(config, &why))?;
        Ok(Publisher {
            topic: config.topics[0].clone(),
            producer,
            queued: AtomicU64::new(0),
            delivery,
        })
    }

    /// Queues a record for the partition of its key; blocks while the queue is full. A payload of
    /// `None` is a tombstone.
    ///
    /// Records carry the time of writing, not the event time: by this timestamp, brokers delete old
    /// records and refuse those from the future.
    pub fn send(&self, key: Option<&str>, payload: Option<&[u8]>) -> Result<(), Fault> {
        self.send_to(None, key, payload, || false).map(drop)
    }

    /// Queues a record for a partition, if one is named. While the queue is full, because the
    /// brokers do not keep up or are away, it waits until `give_up` says not to: then it returns
    /// `false`, and the record was not queued.
    pub fn send_to(
        &self,
        partition: Option<i32>,
        key: Option<&str>,
        payload: Option<&[u8]>,
        give_up: impl Fn() -> bool,
    ) -> Result<bool, Fault> {
        let mut record = BaseRecord::<str, [u8]>::to(&self.topic);
        record.partition = partition;
        record.key = key;
        record.payload = payload;
        record.headers = origin::mark(self.queued.fetch_add(1, Relaxed));
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(true),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    if give_up() {
                        return Ok(false);
                    }
                    record = back;
                    thread::sleep(Duration::from_millis(2));
                }
                Err((why, _)) => {
                    return Err(Fault::environment(format!(
                        "cannot write to the topic {}: {why}",
                        self.topic
                    )));
                }
            }
        }
    }

    /// Returns how many records the brokers have acknowledged.
    pub fn delivered(&self) -> u64 {
        self.delivery.delivered.load(Relaxed)
    }

    /// Waits for as long as the broker takes records. Returns whether it has taken all of them.
    fn flush_while_it_goes_on(&self) -> bool {
        let (mut left, mut since) = (self.producer.in_flight_count(), Instant::now());
        while self.producer.flush(Duration::from_secs(1)).is_err() {
            let now = self.producer.in_flight_count();
            if now < left {
                (left, since) = (now, Instant::now());
            } else if since.elapsed() >= FLUSH_TIMEOUT {
                return false;
            }
        }
        true
    }

    /// Waits until the brokers have acknowledged every record.
    pub fn flush(&self) -> Result<(), Fault> {
        let flushed = self.flush_while_it_goes_on();
        let failed = self.delivery.failed.load(Relaxed);
        if flushed && failed == 0 {
            return Ok(());
        }
        let why = lock(&self.delivery.last).clone().unwrap_or_else(|| "no answer".to_owned());
        let lost = failed + self.producer.in_flight_count() as u64;
        let lost = crate::ui::text::plural(lost, "record");
        Err(Fault::environment(format!(
            "{lost} could not be written to the topic {}: {why}",
            self.topic
        )))
    }
}

/// Creates the first topic of the configuration unless it exists; returns whether it did.
///
/// It looks for the topic first: a login that may write need not be allowed to create, and an
/// unreachable broker is reported with the reason. `suits` may refuse what would be created.
pub fn create_topic(
    config: &KafkaConfig,
    partitions: i32,
    suits: impl FnOnce() -> Result<(), Fault>,
) -> Result<bool, Fault> {
    let topic = &config.topics[0];
    match Admin::new(config)?.topics(CREATE_TIMEOUT, || false) {
        Ok(_) => return Ok(false),
        Err(fault) if fault == no_topic(topic) => {}
        Err(other) => return Err(other),
    }
    suits()?;
    let failed = |why: &dyn std::fmt::Display| {
        Fault::environment(format!("cannot create the topic {topic}: {why}"))
    };
    let admin: AdminClient<Delivery> =
        AdminClient::from_config_and_context(&config.client(), Delivery::default())
            .map_err(|why| refused(config, &why))?;
    // -1: the default replication factor of the brokers.
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(20)));
    let results = futures_executor::block_on(admin.create_topics([&new], &options))
        .map_err(|why| failed(&why))?;
    match results.into_iter().next() {
        Some(Ok(_)) => Ok(true),
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(false),
        Some(Err((
            _,
            why @ (RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
            | RDKafkaErrorCode::PolicyViolation),
        ))) => {
            let message = Message::new(format!("cannot create {topic}: {why}"));
            Err(Fault::config(message.remedy("; ", "create it another way")))
        }
        Some(Err((_, why))) => Err(failed(&why)),
        None => Err(failed(&"no answer")),
    }
}

/// A broker inside this process: librdkafka's mock cluster. Its contents are lost when it is
/// dropped.
pub struct EmbeddedBroker(MockCluster<'static, DefaultProducerContext>);

impl EmbeddedBroker {
    /// Starts it with one topic.
    pub fn start(topic: &str, partitions: i32) -> Result<Self, Fault> {
        let failed = |why: KafkaError| {
            Fault::environment(format!("the embedded broker does not start: {why}"))
        };
        let cluster = MockCluster::new(1).map_err(failed)?;
        cluster.create_topic(topic, partitions, 1).map_err(failed)?;
        Ok(EmbeddedBroker(cluster))
    }

    /// Returns the address it listens on, on the loopback interface.
    pub fn address(&self) -> String {
        self.0.bootstrap_servers()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::QUEUED_BYTES;

    #[test]
    fn a_full_queue_is_waited_for_until_somebody_gives_up() {
        let small = ("queue.buffering.max.messages".to_owned(), "1".to_owned());
        let config = KafkaConfig {
            queued_bytes: QUEUED_BYTES,
            brokers: "127.0.0.1:1".to_owned(),
            group: "g".to_owned(),
            topics: vec!["t".to_owned()],
            login: None,
            extra: vec![(small.0, sessionizer_core::secret::Secret::new(small.1))],
        };
        let publisher = Publisher::new(&config, "none").expect("it connects later");
        assert_eq!(publisher.send_to(None, None, None, || true), Ok(true));
        assert_eq!(publisher.send_to(None, None, None, || true), Ok(false));
    }
}
