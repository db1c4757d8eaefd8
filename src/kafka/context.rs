//! The callbacks that all clients of a process share, and what they have observed: failed
//! connections, refused logins, end offsets. It asks nobody and decides nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use log::{debug, warn};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use sessionizer_core::binding::{Offset, Partition};

use crate::kafka::lock;
use crate::ui::tls;

/// What librdkafka reports when a token endpoint rejects a client id or a secret.
const DENIED: [&str; 5] =
    ["invalid_client", "unauthorized_client", "invalid_grant", "(401)", "(403)"];

/// What librdkafka's callbacks have observed, shared by all clients of a process.
pub(super) struct Health {
    /// The origin of all times in milliseconds below.
    began: Instant,
    /// How many connections have failed.
    pub(super) failures: AtomicU64,
    /// When a connection last failed, plus one; 0: never.
    last_failure_ms: AtomicU64,
    /// The reason for the last failure.
    pub(super) last: Mutex<Option<String>>,
    /// Whether no broker could be reached.
    all_down: AtomicBool,
    /// Whether the warning about the denied consumer group was logged.
    group_denied: AtomicBool,
    /// Since when a login or a certificate has been refused, and why.
    refused: Mutex<Option<(Instant, String)>>,
    /// How many commits of the group's offsets have not been answered.
    pub(super) commits: AtomicU64,
    /// When the brokers were last asked for the end offsets, and their answer.
    pub(super) ends: Mutex<(u64, BTreeMap<Partition, Offset>)>,
}

impl Default for Health {
    fn default() -> Self {
        Health {
            began: Instant::now(),
            failures: AtomicU64::default(),
            last_failure_ms: AtomicU64::default(),
            last: Mutex::default(),
            all_down: AtomicBool::default(),
            group_denied: AtomicBool::default(),
            refused: Mutex::default(),
            commits: AtomicU64::default(),
            ends: Mutex::default(),
        }
    }
}

impl Health {
    pub(super) fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// A connection failed, or a partition lost its leader: end offsets reported earlier are void.
    pub(super) fn record_failure(&self) {
        self.last_failure_ms.fetch_max(self.now_ms() + 1, Relaxed);
        self.failures.fetch_add(1, Relaxed);
    }

    /// When the last failure happened.
    pub(super) fn last_failure_ms(&self) -> Option<u64> {
        self.last_failure_ms.load(Relaxed).checked_sub(1)
    }
}

/// The callbacks: librdkafka's log becomes debug lines, its failures a count.
#[derive(Clone, Default)]
pub(super) struct Context {
    pub(super) health: Arc<Health>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        debug!(target: "librdkafka", "{level:?} {facility}: {message}");
        // Only the log reports a broker that hangs up on a request it does not understand.
        if facility == "FAIL" {
            let reason = message.split_once("]: ").map_or(message, |(_thread, reason)| reason);
            *lock(&self.health.last) = Some(tls::plain(reason));
        }
        // An error of a partition that does not answer a fetch, for example that its topic is gone,
        // arrives with a batch, and only the log reports it. The watcher finds out what it is.
        if facility == "ERROR" {
            self.health.record_failure();
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        if code == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        debug!(target: "librdkafka", "{error}: {reason}");
        let kind = code.map_or("Unknown".to_owned(), |code| format!("{code:?}"));
        crate::ui::trouble::count("kafka", &kind);
        if code == Some(RDKafkaErrorCode::GroupAuthorizationFailed) {
            // This is not a failed connection.
            return self.warn_group_denied();
        }
        // A token endpoint that is down may come back; its verdict on a secret is final.
        let no_token = reason.contains("OAUTHBEARER token");
        let is_final = !no_token || DENIED.iter().any(|status| reason.contains(status));
        if code == Some(RDKafkaErrorCode::Authentication) && is_final
            || code == Some(RDKafkaErrorCode::SSL) && reason.contains("certificate verify failed")
        {
            let mut refused = lock(&self.health.refused);
            let since = refused.take().map_or_else(Instant::now, |(since, _)| since);
            *refused = Some((since, reason.to_owned()));
        }
        if code == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.health.all_down.store(true, Relaxed);
        }
        let mut last = lock(&self.health.last);
        // "All brokers are down" says less than why the last one failed.
        if last.is_none() || code != Some(RDKafkaErrorCode::AllBrokersDown) {
            *last = Some(tls::plain(reason));
        }
        self.health.record_failure();
    }
}

impl Context {
    /// Warns once that this login may not use the consumer group.
    fn warn_group_denied(&self) {
        if !self.health.group_denied.swap(true, Relaxed) {
            warn!(
                "Kafka does not let this login use the consumer group that KAFKA_GROUP names: \
                 grant it READ on the group. The job continues without it, because its offsets \
                 are in Postgres; tools that show lag do not see its progress"
            );
        }
    }

    /// Whether no broker could be reached, at some moment.
    pub(super) fn all_down(&self) -> bool {
        self.health.all_down.load(Relaxed)
    }

    /// Why brokers refuse the login or the certificate, if they have done so for at least `long`.
    /// Waiting does not resolve it.
    pub(super) fn refused_for(&self, long: Duration) -> Option<String> {
        let refused = lock(&self.health.refused);
        let (since, why) = refused.as_ref()?;
        (since.elapsed() >= long).then(|| why.clone())
    }
}

impl ConsumerContext for Context {
    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        self.health.commits.fetch_sub(1, Relaxed);
        match result.map_err(|why| why.rdkafka_error_code()) {
            Err(Some(RDKafkaErrorCode::GroupAuthorizationFailed)) => self.warn_group_denied(),
            Err(why) => debug!("the group's offsets were not committed: {why:?}"),
            Ok(()) => {}
        }
    }
}
