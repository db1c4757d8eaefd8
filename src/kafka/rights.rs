//! Finds out at a start whether this login may read its topics.
//!
//! Brokers report where a topic begins and ends even to a login that may only describe it. Whether
//! it may read is known only once it fetches. That would be too late: by then, this start would
//! have taken over from an instance that can read.

use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use log::debug;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset as RdOffset, TopicPartitionList};
use sessionizer_core::fault::{Fault, Message};

use crate::kafka::consumer::learn_leaders;
use crate::kafka::{Context, KafkaConfig};

/// How long a start waits for the answer. Without one it continues, and reading will report what is
/// wrong.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// The answer, once it arrives.
pub struct ReadCheck(Receiver<Result<(), Fault>>);

impl ReadCheck {
    /// Fetches from the end of one partition of each topic, in the background.
    pub fn start(config: &KafkaConfig) -> Self {
        let (answer, receiver) = channel();
        let config = config.clone();
        // After a timeout, nobody listens any more.
        let work = move || drop(answer.send(check(&config)));
        let thread = thread::Builder::new().name("kafka-rights".to_owned());
        thread.spawn(work).expect("a thread can be started");
        ReadCheck(receiver)
    }

    /// Returns an error if a broker refuses to let this login read a topic.
    pub fn wait(self) -> Result<(), Fault> {
        self.0.recv_timeout(CHECK_TIMEOUT).unwrap_or(Ok(()))
    }
}

fn check(config: &KafkaConfig) -> Result<(), Fault> {
    let mut client = config.consumer(1);
    client.set("fetch.wait.max.ms", "1");
    let consumer: BaseConsumer<Context> =
        match BaseConsumer::from_config_and_context(&client, Context::default()) {
            Ok(consumer) => consumer,
            Err(why) => {
                debug!("whether the topics may be read: {why}");
                return Ok(());
            }
        };
    let began = Instant::now();
    for topic in &config.topics {
        learn_leaders(&consumer, topic);
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, 0, RdOffset::End).expect("a valid offset");
        if let Err(why) = consumer.assign(&list) {
            debug!("whether {topic} may be read: {why}");
            continue;
        }
        while began.elapsed() < CHECK_TIMEOUT {
            match consumer.poll(Duration::from_millis(100)) {
                None => {}
                Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => break,
                Some(Err(why)) if is_denied(&why) => {
                    return Err(denied(std::iter::once(topic.as_str())));
                }
                Some(Err(why)) => debug!("whether {topic} may be read: {why}"),
            }
        }
    }
    debug!("whether the topics may be read was known after {:?}", began.elapsed());
    Ok(())
}

/// Whether a broker does not let this login read.
pub(super) fn is_denied(why: &KafkaError) -> bool {
    why.rdkafka_error_code() == Some(RDKafkaErrorCode::TopicAuthorizationFailed)
}

/// The fault if this login may not read one of these topics.
pub(super) fn denied<'a>(topics: impl Iterator<Item = &'a str>) -> Fault {
    let topics: Vec<&str> = topics.collect();
    let topics = topics.join(" or ");
    let message = Message::new(format!("Kafka does not let this login read the topic {topics}"));
    Fault::config(message.remedy(": ", "grant it READ on the topic"))
}
