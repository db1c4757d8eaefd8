//! Kafka: the only module that names rdkafka. It owns the settings of every client; `context` owns
//! the state that their callbacks share, and every other submodule one use of a client.
//!
//! [`Admin`] queries partitions and offsets, [`KafkaFeed`] reads the partitions of one worker,
//! [`Watcher`] finds new partitions and notices when brokers go away and come back, [`Publisher`]
//! writes events, and [`EmbeddedBroker`] is a broker inside this process for demonstrations.
//!
//! Partitions are assigned, never subscribed to: the dataflow decides which worker reads which
//! partition. Each partition has a queue of its own, so that one can be read while another is
//! paused. Offsets are kept in Postgres; the offsets of the consumer group are only a courtesy to
//! tools that show lag.

mod admin;
mod batch;
mod consumer;
mod context;
mod group;
mod inspect;
mod origin;
mod producer;
pub mod remedy;
mod rights;
mod scan;
mod topic_ids;
mod watcher;

use std::os::unix::fs::FileTypeExt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use log::debug;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use sessionizer_core::fault::Fault;
use sessionizer_core::secret::Secret;

pub use self::admin::{Admin, StartAt};
pub use self::consumer::KafkaFeed;
use self::context::Context;
pub use self::group::{Committer, GroupOffset, OffsetsBy};
pub use self::inspect::{BatchLimits, TopicReply};
pub use self::origin::{Foreign, foreign_records};
pub use self::producer::{EmbeddedBroker, Publisher, create_topic};
pub use self::rights::ReadCheck;
pub use self::scan::{Range, scan, scan_for};
pub use self::watcher::Watcher;
use crate::ui::tls;

/// How to reach Kafka.
#[derive(Clone, Debug)]
pub struct KafkaConfig {
    pub brokers: String,
    pub group: String,
    pub topics: Vec<String>,
    /// Key and secret for SASL_SSL with PLAIN, as the Flink job used it. `None`: plaintext.
    pub login: Option<(String, Secret)>,
    /// Settings of librdkafka, applied last.
    pub extra: Vec<(String, Secret)>,
    /// The limit on fetched but unread records, in bytes, for all partitions of a process together.
    pub queued_bytes: u64,
}

/// Settings that the job depends on, and why users may not set them. Every setting that changes
/// which records are read is listed. All others only shape how records arrive (fetch sizes, queues,
/// `check.crcs`, the rack they come from), and a replay reads the same records whatever their
/// values.
pub const RESERVED: [(&str, &str); 22] = [
    ("bootstrap.servers", "set KAFKA_URL instead"),
    ("metadata.broker.list", "set KAFKA_URL instead"),
    ("group.id", "set KAFKA_GROUP instead"),
    ("enable.auto.commit", "offsets are committed with the rows, in Postgres"),
    ("enable.auto.offset.store", "offsets are committed with the rows, in Postgres"),
    ("enable.partition.eof", "the end of a partition is how idleness is told from delay"),
    ("auto.offset.reset", "an offset that is gone must stop the job, not skip records"),
    ("auto.commit.enable", "offsets are committed with the rows, in Postgres"),
    ("offset.store.method", "offsets are committed with the rows, in Postgres"),
    ("isolation.level", "records of transactions that were aborted must not count"),
    ("topic.blacklist", "the job would wait for a topic that is ignored"),
    ("allow.auto.create.topics", "a missing topic must be reported, not created"),
    ("partition.assignment.strategy", "the job itself divides the partitions"),
    ("group.instance.id", "the job itself divides the partitions"),
    ("group.protocol", "the job itself divides the partitions"),
    ("group.remote.assignor", "the job itself divides the partitions"),
    ("transactional.id", "the producer writes without transactions"),
    ("enabled_events", "the job depends on the events of librdkafka"),
    ("log.queue", "the log tells why a broker closes a connection"),
    ("log_level", "the log tells why a broker closes a connection"),
    ("test.mock.num.brokers", "the brokers are those of KAFKA_URL"),
    ("test.mock.broker.rtt", "the brokers are those of KAFKA_URL"),
];

/// The timeout of one request to the brokers.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before a request is repeated.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How many times a client is polled for events in one go. A poll that has handled an internal
/// event, such as a log line, returns the same as one that found nothing, so the return value does
/// not say whether to stop.
const EVENTS_PER_SERVICE: usize = 100;
/// The default limit on fetched but unread records, in bytes, for all partitions of a process
/// together.
pub const QUEUED_BYTES: u64 = 64 << 20;
/// How many fetched but unread records suffice for all partitions together: 50 ms of work. Each
/// takes 200 bytes on top of its own size, so a larger number would make up most of a job's memory
/// without making it any faster.
const QUEUED_RECORDS: usize = 40_000;

impl KafkaConfig {
    /// Checks that librdkafka accepts all settings; the error names the first that it rejects.
    pub fn check(&self) -> Result<(), String> {
        let files = self.extra.iter().filter(|(name, _)| name.ends_with(".location"));
        for (name, file) in files {
            // OpenSSL would wait for somebody to write into it.
            let file = file.reveal().trim();
            if std::fs::metadata(file).is_ok_and(|found| found.file_type().is_fifo()) {
                return Err(format!("{name}: {file} is a pipe, not a file"));
            }
        }
        match self.client().create_native_config() {
            Ok(_) => self.check_together(),
            Err(KafkaError::ClientConfig(_, why, name, value)) => {
                // The value may be a secret, and the reason may repeat it.
                let why = why.replace(&value, "...");
                if name.starts_with("sasl.oauthbearer") && !has_oidc() {
                    return Err(format!(
                        "{name} cannot be used: this build of sessionizer has no OIDC, as \
                         `sessionizer --version` shows. Build it with `cargo build --release \
                         --features oidc`, which takes cmake, or use the image"
                    ));
                }
                Err(format!("librdkafka does not accept {name}: {why}"))
            }
            Err(other) => Err(other.to_string()),
        }
    }

    /// Checks what librdkafka checks when it makes a client, without a broker and without files.
    fn check_together(&self) -> Result<(), String> {
        let mut client = self.client();
        client.remove("bootstrap.servers");
        for (name, _) in self.extra.iter().filter(|(name, _)| name.ends_with(".location")) {
            client.remove(name);
        }
        match client.create::<BaseConsumer>() {
            Err(KafkaError::ClientCreation(why)) => {
                // The start has better words for logins and certificates.
                if ["ssl", "sasl"].iter().any(|word| why.to_lowercase().contains(word)) {
                    return Ok(());
                }
                // Shorter values are numbers, which occur within other words.
                let values = self.extra.iter().map(|(_, value)| value.reveal().trim());
                let secrets = values.filter(|value| value.len() > 3);
                let why = secrets.fold(why, |why, value| why.replace(value, "..."));
                Err(format!("librdkafka does not accept these settings together: {why}"))
            }
            _ => Ok(()),
        }
    }

    fn client(&self) -> ClientConfig {
        // The first user of OpenSSL decides what it does when the process exits. By default it
        // frees its global state, and threads of clients that are still closing would crash.
        openssl::init();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config.set("client.id", "sessionizer");
        // Notice a dead peer even when nothing is sent. The first reconnects come soon, and later
        // ones often enough to find a broker within seconds of its return.
        config.set("socket.keepalive.enable", "true");
        config.set("reconnect.backoff.max.ms", "2000");
        if let Some((key, secret)) = &self.login {
            config.set("security.protocol", "SASL_SSL");
            config.set("sasl.mechanism", "PLAIN");
            config.set("sasl.username", key);
            config.set("sasl.password", secret.reveal());
        }
        for (name, value) in &self.extra {
            config.set(name, value.reveal());
        }
        config.set_log_level(RDKafkaLogLevel::Info);
        config
    }

    /// How long a topic may be unknown to the brokers before it counts as gone. The default is
    /// librdkafka's, half a minute: a broker that has just started may not know the topic yet.
    fn gone_patience(&self) -> Duration {
        let set = self.extra.iter().rfind(|(name, _)| name == "topic.metadata.propagation.max.ms");
        let millis = set.and_then(|(_, value)| value.reveal().trim().parse().ok());
        Duration::from_millis(millis.unwrap_or(30_000))
    }

    /// The maximum number of bytes that the consumers of a process hold if it reads this many
    /// partitions.
    pub fn held_bytes(&self, partitions: usize) -> u64 {
        let Shares { queued_kib, fetched_kib } = self.shares(partitions);
        (queued_kib + fetched_kib) * 1_024 * partitions as u64
    }

    /// The limits of each partition if there are this many. A queue can exceed its limit by one
    /// fetch.
    fn shares(&self, partitions: usize) -> Shares {
        let share_kib = self.queued_bytes / 1_024 / partitions.max(1) as u64;
        let queued_kib = share_kib.clamp(64, 16 * 1_024);
        // A fetch may become several times as large when it is decompressed.
        let fetched_kib = (share_kib / 16).clamp(64, 1_024);
        Shares { queued_kib, fetched_kib }
    }

    fn consumer(&self, partitions: usize) -> ClientConfig {
        let mut config = self.client();
        let partitions = partitions.max(1);
        let Shares { queued_kib, fetched_kib } = self.shares(partitions);
        // With a limit below what one fetch brings, the next would be sent before the first
        // arrives.
        let queued_records = (QUEUED_RECORDS / partitions).clamp(2_500, 20_000);
        for (name, value) in [
            ("group.id", self.group.as_str()),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("enable.partition.eof", "true"),
            ("allow.auto.create.topics", "false"),
        ] {
            config.set(name, value);
        }
        let defaults = [
            // Bound memory, however many partitions there are.
            ("queued.max.messages.kbytes", queued_kib.to_string()),
            ("fetch.message.max.bytes", (fetched_kib * 1_024).to_string()),
            ("queued.min.messages", queued_records.to_string()),
            // Fetch again soon after a queue was full: the default of a second stalls a backlog.
            ("fetch.queue.backoff.ms", "5".to_owned()),
            // There is one fetch request at a time to each broker. While the queue of a partition
            // is full, the request covers the others only; if those are at their end, the broker
            // waits this long for more. The default of half a second would stall a partition that
            // still has a backlog.
            ("fetch.wait.max.ms", "50".to_owned()),
        ];
        for (name, value) in defaults {
            let other =
                if name == "fetch.message.max.bytes" { "max.partition.fetch.bytes" } else { name };
            if !self.extra.iter().any(|(extra, _)| extra == name || extra == other) {
                config.set(name, value);
            }
        }
        config
    }
}

/// The limits of one partition.
struct Shares {
    /// Fetched but unread records.
    queued_kib: u64,
    /// One fetch. A larger batch of records still arrives, alone.
    fetched_kib: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The version of librdkafka, and the features it was built with.
pub fn library() -> (String, String) {
    let config = ClientConfig::new().create_native_config();
    let features = config.and_then(|config| config.get("builtin.features"));
    let features = features.unwrap_or_else(|why| why.to_string()).replace(',', ", ");
    (rdkafka::util::get_rdkafka_version().1, features)
}

/// Whether this build can get tokens from an OIDC server.
fn has_oidc() -> bool {
    library().1.split(", ").any(|feature| feature == "oidc")
}

fn refused(config: &KafkaConfig, why: &KafkaError) -> Fault {
    debug!(target: "librdkafka", "{why}");
    let why = match why {
        KafkaError::ClientCreation(why) => tls::plain(why),
        other => other.to_string(),
    };
    Fault::config(format!("cannot create a client for Kafka at {}: {why}", config.brokers))
}
