//! Kafka: the only file that names rdkafka, with its one room, `kafka/batch.rs`.
//!
//! [`Cluster`] asks questions (partitions, offsets), [`KafkaFeed`] reads the partitions of one
//! worker, [`Watcher`] finds new partitions and notices when brokers go and come back,
//! [`Publisher`] writes events, [`EmbeddedBroker`] is a broker inside this process for
//! demonstrations.
//!
//! Partitions are assigned, never subscribed to: which worker reads what is the dataflow's
//! business. Each has a queue of its own, so that one can be read and another left alone.
//! Offsets are kept in Postgres; those of the group are a courtesy to tools that show lag.

mod batch;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{
    BaseRecord, DefaultProducerContext, DeliveryResult, Producer, ProducerContext, ThreadedProducer,
};
use rdkafka::topic_partition_list::{Offset as RdOffset, TopicPartitionList};

use self::batch::{Batches, Next};
use crate::binding::{Offset, Partition, TopicId};
use crate::control::Fault;
use crate::operators::{Feed, Record, Stopped};
use crate::secret::Secret;

/// How to reach Kafka.
#[derive(Clone, Debug)]
pub struct KafkaConfig {
    pub brokers: String,
    pub group: String,
    pub topics: Vec<String>,
    /// Key and secret: SASL_SSL with PLAIN, as the Flink job had it; without, plaintext.
    pub login: Option<(String, Secret)>,
    /// Settings of librdkafka, applied last.
    pub extra: Vec<(String, Secret)>,
}

/// Settings that the job depends on, and why nobody else may set them.
pub const RESERVED: [(&str, &str); 7] = [
    ("bootstrap.servers", "set KAFKA_URL instead"),
    ("metadata.broker.list", "set KAFKA_URL instead"),
    ("group.id", "set KAFKA_GROUP instead"),
    ("enable.auto.commit", "offsets are committed with the rows, in Postgres"),
    ("enable.auto.offset.store", "offsets are committed with the rows, in Postgres"),
    ("enable.partition.eof", "the end of a partition is how idleness is told from delay"),
    ("auto.offset.reset", "an offset that is gone must stop the job, not skip records"),
];

/// How long one question to the brokers may take.
const QUESTION: Duration = Duration::from_secs(5);
/// How long a start asks at a time: in between it notices that it is to stop.
const START_QUESTION: Duration = Duration::from_secs(1);
/// How often the brokers are asked again whether a partition without a leader has one.
const ASK_FOR_LEADERS: Duration = Duration::from_secs(1);
/// How long a question may take even if a start has no patience left.
const QUICK_QUESTION: Duration = Duration::from_millis(500);
/// How long a producer waits for brokers.
const CREATE_PATIENCE: Duration = Duration::from_secs(10);
/// How often a client is polled for events at a time. A poll that has handled an event of its own,
/// a line of the log for example, says the same as one that found nothing, so it is no sign.
const EVENTS_PER_SERVICE: usize = 100;
/// How long the end of a run waits until a consumer has closed: a new one needs a second to find
/// out which broker takes its offsets.
const CLOSING: Duration = Duration::from_secs(3);
/// What all partitions of a process together may hold of fetched, unread records, in KiB.
const QUEUED_KIB: usize = 64 * 1024;
/// How many fetched, unread records of all partitions together are enough for a while: 50 ms of
/// work. Each takes 200 bytes beside its own, so that more of them make the better part of the
/// memory of a job, and none of its speed.
const QUEUED_RECORDS: usize = 40_000;

impl KafkaConfig {
    /// Whether librdkafka accepts all settings; the error names the first that it does not.
    pub fn check(&self) -> Result<(), String> {
        match self.client().create_native_config() {
            Ok(_) => Ok(()),
            Err(KafkaError::ClientConfig(_, why, name, value)) => {
                // The value may be a secret, and the reason may repeat it.
                let why = why.replace(&value, "...");
                Err(format!("librdkafka does not accept {name}: {why}"))
            }
            Err(other) => Err(other.to_string()),
        }
    }

    fn client(&self) -> ClientConfig {
        // Whoever uses OpenSSL first says what it does when the process exits. Its own choice is to
        // take itself apart, and threads of clients that are still closing crash on what is left.
        openssl::init();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config.set("client.id", "sessionizer");
        // A dead peer is noticed even when nothing is sent; the first tries come soon and the
        // later ones often enough that a broker that is back is found within seconds.
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

    /// How long a topic may be unknown to the brokers before it counts as gone: as librdkafka has
    /// it, half a minute, for a broker that has just started may not know of it yet.
    fn gone_patience(&self) -> Duration {
        let set = self.extra.iter().rfind(|(name, _)| name == "topic.metadata.propagation.max.ms");
        let millis = set.and_then(|(_, value)| value.reveal().trim().parse().ok());
        Duration::from_millis(millis.unwrap_or(30_000))
    }

    fn consumer(&self, partitions: usize) -> ClientConfig {
        let mut config = self.client();
        let partitions = partitions.max(1);
        let queued_kib = (QUEUED_KIB / partitions).clamp(1_024, 16 * 1_024);
        // Fewer than a fetch brings would be asked for again before they are there.
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
            // Memory stays bounded however many partitions there are.
            ("queued.max.messages.kbytes", queued_kib.to_string()),
            ("queued.min.messages", queued_records.to_string()),
            // When a queue was full, ask again soon: the default of a second idles a backlog.
            ("fetch.queue.backoff.ms", "5".to_owned()),
            // A broker has one question at a time. If the queue of a partition is full, it is about
            // the others only, and where those have come to their end the broker waits so long for
            // more: the default of half a second stops a partition that still has a backlog.
            ("fetch.wait.max.ms", "50".to_owned()),
        ];
        for (name, value) in defaults {
            if !self.extra.iter().any(|(extra, _)| extra == name) {
                config.set(name, value);
            }
        }
        config
    }
}

/// What the callbacks of librdkafka know, shared by all clients of a process.
#[derive(Default)]
struct Health {
    /// How many times a connection failed: whoever knows a smaller number knows too little.
    troubles: AtomicU64,
    last: Mutex<Option<String>>,
    /// Where the partitions ended when the brokers were asked after so many troubles.
    ends: Mutex<(u64, BTreeMap<Partition, Offset>)>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Callbacks: librdkafka's many lines become debug lines, its failures a count.
#[derive(Clone, Default)]
struct Context {
    health: Arc<Health>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        debug!(target: "librdkafka", "{level:?} {facility}: {message}");
        // A broker that hangs up on what it does not understand is told of in the log only.
        if facility == "FAIL" {
            let reason = message.split_once("]: ").map_or(message, |(_thread, reason)| reason);
            *lock(&self.health.last) = Some(reason.to_owned());
        }
        // An error of a partition that is no answer to a fetch, for example that its topic is gone,
        // comes with a batch and is told of in the log only: the watcher finds out what it is.
        if facility == "ERROR" {
            self.health.troubles.fetch_add(1, Relaxed);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        if code == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        debug!(target: "librdkafka", "{error}: {reason}");
        let mut last = lock(&self.health.last);
        // That all brokers are down says less than why the last one went.
        if last.is_none() || code != Some(RDKafkaErrorCode::AllBrokersDown) {
            *last = Some(reason.to_owned());
        }
        self.health.troubles.fetch_add(1, Relaxed);
    }
}

impl ConsumerContext for Context {}

/// Asks the brokers about topics and offsets.
pub struct Cluster {
    config: KafkaConfig,
    client: BaseConsumer<Context>,
    context: Context,
}

/// What the brokers say of a topic.
struct Layout {
    partitions: i32,
    /// Those that no broker serves now.
    leaderless: Vec<i32>,
}

/// Where reading may begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum From {
    /// The oldest record there is.
    Earliest,
    /// Behind the newest record.
    Latest,
    /// The first record with this Kafka timestamp or a later one, in milliseconds since 1970.
    Timestamp(i64),
}

impl Cluster {
    /// Makes a client; nothing is asked yet.
    pub fn new(config: &KafkaConfig) -> Result<Self, Fault> {
        Cluster::with(config, Context::default())
    }

    fn with(config: &KafkaConfig, context: Context) -> Result<Self, Fault> {
        let mut client = config.client();
        client.set("allow.auto.create.topics", "false");
        let client = BaseConsumer::from_config_and_context(&client, context.clone())
            .map_err(|why| refused(config, &why))?;
        Ok(Cluster { config: config.clone(), client, context })
    }

    /// Lets callbacks run.
    fn serve(&self) {
        for _ in 0..EVENTS_PER_SERVICE {
            drop(self.client.poll(Duration::ZERO));
        }
    }

    /// The partitions of a topic. `Err(None)`: the brokers did not answer in time.
    fn partitions(&self, topic: &str, patience: Duration) -> Result<Layout, Option<Fault>> {
        self.serve();
        let metadata = self.client.fetch_metadata(Some(topic), patience);
        self.serve();
        let metadata = metadata.map_err(|why| self.unanswered(&why))?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        match found.and_then(|topic| topic.error()) {
            None => {}
            Some(error) => {
                let code = RDKafkaErrorCode::from(error);
                return match code {
                    RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::UnknownTopic
                    | RDKafkaErrorCode::InvalidTopic => Err(Some(no_topic(topic))),
                    RDKafkaErrorCode::TopicAuthorizationFailed => {
                        Err(Some(Fault::Config(format!(
                            "Kafka does not let this login read the topic {topic}: grant it READ \
                             and DESCRIBE"
                        ))))
                    }
                    _ => Err(None),
                };
            }
        }
        let Some(found) = found.filter(|found| !found.partitions().is_empty()) else {
            return Err(Some(no_topic(topic)));
        };
        let leaderless = found.partitions().iter().filter(|partition| partition.leader() < 0);
        Ok(Layout {
            partitions: found.partitions().len() as i32,
            leaderless: leaderless.map(|partition| partition.id()).collect(),
        })
    }

    fn unanswered(&self, why: &KafkaError) -> Option<Fault> {
        let mut last = lock(&self.context.health.last);
        last.get_or_insert_with(|| why.to_string());
        None
    }

    /// How many partitions each topic has; waits at most `patience` for brokers, and for one that
    /// leads each partition: nobody could say where the others begin and end.
    pub fn topics(
        &self,
        patience: Duration,
        mut give_up: impl FnMut() -> bool,
    ) -> Result<Vec<i32>, Fault> {
        let began = Instant::now();
        let mut told = false;
        let mut counts = Vec::new();
        for topic in &self.config.topics {
            counts.push(loop {
                let left = patience.saturating_sub(began.elapsed());
                match self.partitions(topic, left.clamp(QUICK_QUESTION, START_QUESTION)) {
                    Ok(layout) if layout.leaderless.is_empty() => break layout.partitions,
                    Ok(layout) => {
                        let why = format!("{topic}{:?} has no leader", layout.leaderless);
                        *lock(&self.context.health.last) = Some(why);
                    }
                    Err(Some(fault)) => return Err(fault),
                    Err(None) => {}
                }
                // The reason comes by a callback, a moment after the failure.
                thread::sleep(Duration::from_millis(200));
                self.serve();
                let why = lock(&self.context.health.last).clone();
                let why = why.unwrap_or_else(|| "no answer".to_owned());
                if began.elapsed() >= patience || give_up() {
                    return Err(Fault::World(format!(
                        "Kafka at {} cannot be used: {why}; check KAFKA_URL, and, if it asks for a \
                         login, KAFKA_WEB_TRAFFIC_KEY and KAFKA_WEB_TRAFFIC_SECRET",
                        self.config.brokers
                    )));
                }
                if !told {
                    told = true;
                    info!("waiting for Kafka at {}: {why}", self.config.brokers);
                }
            });
        }
        Ok(counts)
    }

    /// The ids of topics; `None` for those of brokers that do not say (before Kafka 3.1, or of
    /// another make).
    pub fn topic_ids(&self, topics: &[String]) -> Vec<Option<TopicId>> {
        describe::topic_ids(self.client.client(), topics, QUESTION)
    }

    /// The oldest offset of a partition, and the one behind the newest record that is committed.
    pub fn offsets(&self, topic: &str, partition: i32) -> Result<(Offset, Offset), Fault> {
        let mut last = None;
        for _ in 0..5 {
            match self.client.fetch_watermarks(topic, partition, QUESTION) {
                Ok(offsets) => return Ok(offsets),
                Err(why) => last = Some(why),
            }
            self.serve();
            thread::sleep(Duration::from_millis(200));
        }
        let why = last.map(|why| why.to_string()).unwrap_or_default();
        Err(Fault::World(format!(
            "Kafka at {} does not say which offsets {topic}[{partition}] has: {why}",
            self.config.brokers
        )))
    }

    /// The offset at which a first start begins.
    pub fn offset_from(&self, topic: &str, partition: i32, from: From) -> Result<Offset, Fault> {
        let (oldest, end) = self.offsets(topic, partition)?;
        let timestamp = match from {
            From::Earliest => return Ok(oldest),
            From::Latest => return Ok(end),
            From::Timestamp(timestamp) => timestamp.max(0),
        };
        let ails = |why: &dyn std::fmt::Display| {
            Fault::World(format!("no offset of {topic}[{partition}] for --from: {why}"))
        };
        let mut wanted = TopicPartitionList::new();
        wanted
            .add_partition_offset(topic, partition, RdOffset::Offset(timestamp))
            .map_err(|why| ails(&why))?;
        let found = self.client.offsets_for_times(wanted, QUESTION).map_err(|why| ails(&why))?;
        match found.find_partition(topic, partition).map(|element| element.offset()) {
            Some(RdOffset::Offset(offset)) => Ok(offset),
            // No record is that late: begin behind the newest.
            _ => Ok(end),
        }
    }
}

/// What topics are called inside Kafka. rdkafka has no safe way to ask, so this one room holds the
/// calls of librdkafka's C interface.
mod describe {
    use std::ffi::{CStr, CString, c_char};
    use std::ptr;
    use std::time::Duration;

    use rdkafka::bindings as c;
    use rdkafka::client::{Client, ClientContext};

    use crate::binding::TopicId;

    /// Asks for the ids of topics, in their order; what is not answered in time is `None`.
    pub fn topic_ids<C: ClientContext>(
        client: &Client<C>,
        topics: &[String],
        patience: Duration,
    ) -> Vec<Option<TopicId>> {
        let names: Vec<CString> =
            topics.iter().filter_map(|topic| CString::new(topic.as_str()).ok()).collect();
        let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        let mut found = vec![None; topics.len()];
        // SAFETY: the client outlives this call, and so do `names`, which librdkafka copies. Each
        // of the four things made here is destroyed once, after the last use of what it holds:
        // the ids point into the event. librdkafka gives null only for an event that did not come
        // in time and for a result of another kind, and both are looked at before use.
        unsafe {
            let native = client.native_ptr();
            let queue = c::rd_kafka_queue_new(native);
            let wanted =
                c::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
            let options = c::rd_kafka_AdminOptions_new(
                native,
                c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
            );
            let millis = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
            c::rd_kafka_AdminOptions_set_request_timeout(options, millis, ptr::null_mut(), 0);
            c::rd_kafka_DescribeTopics(native, wanted, options, queue);
            let event = c::rd_kafka_queue_poll(queue, millis);
            if !event.is_null() {
                let result = c::rd_kafka_event_DescribeTopics_result(event);
                if !result.is_null() {
                    let mut count = 0;
                    let all = c::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
                    for at in 0..count.min(found.len()) {
                        let topic = *all.add(at);
                        let name = CStr::from_ptr(c::rd_kafka_TopicDescription_name(topic));
                        let id = c::rd_kafka_TopicDescription_topic_id(topic);
                        let place = names.iter().position(|wanted| wanted.as_c_str() == name);
                        if let Some(place) = place.filter(|_| !id.is_null()) {
                            found[place] = read(id);
                        }
                    }
                }
                c::rd_kafka_event_destroy(event);
            }
            c::rd_kafka_AdminOptions_destroy(options);
            c::rd_kafka_TopicCollection_destroy(wanted);
            c::rd_kafka_queue_destroy(queue);
        }
        found
    }

    /// The id in Kafka's spelling; all zeros is none.
    ///
    /// # Safety
    /// `id` must point to an id of librdkafka.
    unsafe fn read(id: *const c::rd_kafka_Uuid_t) -> Option<TopicId> {
        // SAFETY: the caller's promise; the text belongs to the id and is ended by a zero.
        let text = unsafe {
            let bits = c::rd_kafka_Uuid_most_significant_bits(id)
                | c::rd_kafka_Uuid_least_significant_bits(id);
            let text = c::rd_kafka_Uuid_base64str(id);
            if bits == 0 || text.is_null() {
                return None;
            }
            CStr::from_ptr(text)
        };
        // librdkafka spells ids in the other Base64, which Kafka's own tools do not use.
        TopicId::named(&text.to_str().ok()?.replace('+', "-").replace('/', "_"))
    }
}

fn refused(config: &KafkaConfig, why: &KafkaError) -> Fault {
    Fault::Config(format!("no client for Kafka at {} can be made: {why}", config.brokers))
}

fn no_topic(topic: &str) -> Fault {
    Fault::Config(format!(
        "the topic {topic} does not exist: create it, or correct KAFKA_TOPIC (with Kafka's own \
         tool: kafka-topics.sh --create --topic {topic} --partitions 4 --bootstrap-server ...; \
         `sessionizer produce` creates the topic that it writes to)"
    ))
}

/// Looks after the connection to the brokers, for all workers of a process.
pub struct Watcher {
    context: Context,
    found: Found,
    stop: Option<Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Watcher {
    /// Starts watching; `topics` are those of the plan with their ids, `known` are its partitions,
    /// by topic their number.
    pub fn start(
        config: &KafkaConfig,
        topics: (&[String], &[Option<TopicId>]),
        known: BTreeMap<u16, i32>,
        every: Duration,
    ) -> Result<Self, Fault> {
        let context = Context::default();
        let cluster = Cluster::with(config, context.clone())?;
        let found: Found = Arc::new(Mutex::new(Ok(BTreeMap::new())));
        let (stop, stopped) = channel::<()>();
        let mut watch = Watch {
            cluster,
            topics: topics.0.to_vec(),
            ids: topics.1.to_vec(),
            known,
            found: Arc::clone(&found),
            asked: Instant::now(),
            every,
            settled: 0,
            away_since: None,
            leaderless: BTreeMap::new(),
            gone: BTreeMap::new(),
            gone_patience: config.gone_patience(),
        };
        let thread = thread::Builder::new()
            .name("kafka-watcher".to_owned())
            .spawn(move || {
                let pause = Duration::from_millis(250);
                while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                    watch.look();
                }
            })
            .expect("a thread can be started");
        Ok(Watcher { context, found, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A question under way may take its time; nothing depends on its answer any more.
        drop(self.thread.take());
    }
}

/// What the watcher has found and the feeds have not taken notice of: partitions with their first
/// offset, or what ends the run.
type Found = Arc<Mutex<Result<BTreeMap<Partition, Offset>, Fault>>>;

struct Watch {
    cluster: Cluster,
    topics: Vec<String>,
    ids: Vec<Option<TopicId>>,
    known: BTreeMap<u16, i32>,
    found: Found,
    asked: Instant,
    every: Duration,
    /// How many troubles are known to be over.
    settled: u64,
    away_since: Option<Instant>,
    /// Partitions that no broker serves, and since when.
    leaderless: BTreeMap<Partition, Instant>,
    /// Topics that the brokers do not know or do not show any more, and since when.
    gone: BTreeMap<u16, Instant>,
    gone_patience: Duration,
}

impl Watch {
    fn look(&mut self) {
        self.cluster.serve();
        let troubles = self.cluster.context.health.troubles.load(Relaxed);
        let trouble = troubles > self.settled || self.away_since.is_some();
        let every = match self.leaderless.is_empty() && self.gone.is_empty() {
            true => self.every,
            false => self.every.min(ASK_FOR_LEADERS),
        };
        if !trouble && self.asked.elapsed() < every {
            return;
        }
        self.asked = Instant::now();
        if self.ask(troubles, trouble) {
            self.settled = troubles;
            *lock(&self.cluster.context.health.last) = None;
            if let Some(since) = self.away_since.take() {
                info!("Kafka is back after {:.0?}", since.elapsed());
            }
        } else if self.away_since.is_none() {
            self.away_since = Some(Instant::now());
            let why = lock(&self.cluster.context.health.last).clone();
            warn!(
                "Kafka at {} does not answer: {}; reading goes on when it is back",
                self.cluster.config.brokers,
                why.unwrap_or_else(|| "timed out".to_owned())
            );
        }
    }

    /// Asks for new partitions and, after trouble, where all of them end; whether all answered.
    fn ask(&mut self, troubles: u64, trouble: bool) -> bool {
        let mut ends = BTreeMap::new();
        for (index, topic) in self.topics.clone().into_iter().enumerate() {
            let index = index as u16;
            let Some(&known) = self.known.get(&index) else { continue };
            let layout = match self.cluster.partitions(&topic, QUESTION) {
                Ok(layout) if layout.partitions < known => {
                    let count = layout.partitions;
                    self.miss(index, &format!("the topic {topic} has only {count} partitions"));
                    continue;
                }
                Ok(layout) => layout,
                Err(Some(fault)) => {
                    self.miss(index, &fault.to_string());
                    continue;
                }
                Err(None) => return false,
            };
            self.gone.remove(&index);
            self.look_for_leaders(index, &topic, known, &layout);
            let count = layout.partitions;
            for number in if trouble { 0..count } else { known..count } {
                let partition = Partition { topic: index, number };
                if self.leaderless.contains_key(&partition) {
                    continue; // Nobody knows where it ends.
                }
                let Ok((oldest, end)) = self.cluster.offsets(&topic, number) else {
                    return false;
                };
                ends.insert(partition, end);
                if number >= known {
                    if let Ok(found) = &mut *lock(&self.found) {
                        found.insert(partition, oldest);
                    }
                    self.known.insert(index, number + 1);
                }
            }
        }
        self.check_ids();
        if trouble {
            *lock(&self.cluster.context.health.ends) = (troubles, ends);
        }
        true
    }

    /// Ends the run if a topic that is being read has been gone for too long.
    fn miss(&mut self, topic: u16, why: &str) {
        let name = &self.topics[usize::from(topic)];
        let since = *self.gone.entry(topic).or_insert_with(|| {
            debug!("{name} is gone: {why}");
            Instant::now()
        });
        if since.elapsed() >= self.gone_patience {
            *lock(&self.found) = Err(Fault::World(format!(
                "the topic {name} or a part of it is gone while the job runs: {why}"
            )));
        }
    }

    /// Says which partitions have lost their leader, and which have one again. Clients notice
    /// neither as a failure: they wait. What was said of where partitions end is old after both.
    fn look_for_leaders(&mut self, topic: u16, name: &str, known: i32, layout: &Layout) {
        let without = |number: i32| layout.leaderless.contains(&number);
        let mut lost = Vec::new();
        let mut changed = false;
        // A partition that has just been made gets its leader a moment later.
        for number in 0..known.min(layout.partitions) {
            let partition = Partition { topic, number };
            match (without(number), self.leaderless.get(&partition)) {
                (true, None) => {
                    self.leaderless.insert(partition, Instant::now());
                    lost.push(number);
                }
                (false, Some(since)) => {
                    info!("{name}[{number}] has a leader again after {:.0?}", since.elapsed());
                    self.leaderless.remove(&partition);
                    changed = true;
                }
                _ => {}
            }
        }
        if !lost.is_empty() {
            warn!(
                "{name}{lost:?} has no leader: no broker of {} serves it. The other partitions are \
                 read; the watermark waits for it, and goes on when it is back",
                self.cluster.config.brokers
            );
        }
        if changed || !lost.is_empty() {
            self.cluster.context.health.troubles.fetch_add(1, Relaxed);
        }
    }
}

impl Watch {
    /// Whether every topic is still the one that is being read.
    fn check_ids(&self) {
        let now = self.cluster.topic_ids(&self.topics);
        for ((topic, known), now) in self.topics.iter().zip(&self.ids).zip(now) {
            if let (Some(known), Some(now)) = (known, now)
                && *known != now
            {
                *lock(&self.found) = Err(Fault::World(format!(
                    "the topic {topic} was deleted and made again while the job ran (its id was \
                     {known:?} and is {now:?}). Start with --accept-lost-offsets to go on with \
                     the new one from its beginning"
                )));
            }
        }
    }
}

/// The partitions of one worker.
pub struct KafkaFeed {
    parts: BTreeMap<Partition, PartFeed>,
    /// Taken when the feed is dropped.
    consumer: Option<Arc<BaseConsumer<Context>>>,
    context: Context,
    topics: Vec<String>,
    found: Found,
    mine: Box<dyn Fn(Partition) -> bool>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

struct PartFeed {
    /// What has been fetched; a record behind the wanted end stays there.
    batches: Batches<Context>,
    position: Offset,
    /// The number of troubles when the broker said that nothing lies behind the position.
    ended: Option<u64>,
}

impl KafkaFeed {
    /// A feed that reads nothing yet. `mine` says which new partitions are this worker's,
    /// `partitions` about how many all feeds of this process will read; `wake` is called when
    /// records have come.
    pub fn new(
        config: &KafkaConfig,
        topics: &[String],
        watcher: &Watcher,
        partitions: usize,
        mine: Box<dyn Fn(Partition) -> bool>,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<Self, Fault> {
        let context = watcher.context.clone();
        let consumer =
            BaseConsumer::from_config_and_context(&config.consumer(partitions), context.clone())
                .map_err(|why| refused(config, &why))?;
        Ok(KafkaFeed {
            parts: BTreeMap::new(),
            consumer: Some(Arc::new(consumer)),
            context,
            topics: topics.to_vec(),
            found: Arc::clone(&watcher.found),
            mine,
            wake,
        })
    }

    fn list(&self, offsets: impl Iterator<Item = (Partition, Offset)>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            let topic = &self.topics[usize::from(partition.topic)];
            list.add_partition_offset(topic, partition.number, RdOffset::Offset(offset))
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
                let there = self.consumer().fetch_watermarks(topic, number, QUESTION).ok();
                let there = there.map_or("has others".to_owned(), |(oldest, end)| {
                    format!("has {oldest} to {end}")
                });
                Some(Fault::World(format!(
                    "{place}: Kafka does not have this offset any more, it {there}: retention has \
                     deleted it, or the topic was made again. What is in Postgres stays right. \
                     Start with --accept-lost-offsets to go on without the records in between"
                )))
            }
            Some(
                RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition,
            ) => Some(Fault::World(format!("{place}: the topic or partition is gone"))),
            Some(
                RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed,
            ) => Some(Fault::World(format!("{place}: Kafka does not let this login read it"))),
            _ => {
                debug!("{place}: {why}");
                None
            }
        }
    }
}

impl Feed for KafkaFeed {
    fn assign(&mut self, partition: Partition, start: Offset) -> Result<(), Fault> {
        let topic = &self.topics[usize::from(partition.topic)];
        let ails = |why: &dyn std::fmt::Display| {
            Fault::World(format!("{topic}[{}] cannot be read: {why}", partition.number))
        };
        let wake = Arc::clone(&self.wake);
        let batches = Batches::split(self.consumer(), topic, partition.number, move || wake())
            .ok_or_else(|| ails(&"librdkafka has no queue for it"))?;
        let list = self.list(std::iter::once((partition, start)));
        self.consumer().incremental_assign(&list).map_err(|why| ails(&why))?;
        let part = PartFeed { batches, position: start, ended: None };
        self.parts.insert(partition, part);
        Ok(())
    }

    fn read(
        &mut self,
        partition: Partition,
        end: Option<Offset>,
        limit: usize,
        take: &mut dyn FnMut(Record<'_>),
    ) -> Result<Stopped, Fault> {
        let part = self.parts.get_mut(&partition).expect("only assigned partitions are read");
        let behind = |offset: Offset| end.is_some_and(|end| offset >= end);
        let mut left = limit;
        while left > 0 {
            if behind(part.position) {
                return Ok(Stopped::AtEnd);
            }
            match part.batches.peek() {
                Some(Next::Record(record)) if behind(record.offset) => return Ok(Stopped::AtEnd),
                Some(Next::Record(record)) => {
                    let next = record.offset + 1;
                    take(record);
                    part.position = next;
                    part.ended = None;
                    left -= 1;
                }
                Some(Next::End(offset)) => {
                    // Markers of transactions may lie behind the last record: this is behind them.
                    part.position = part.position.max(offset);
                    part.ended = Some(self.context.health.troubles.load(Relaxed));
                }
                Some(Next::Failed(code)) => {
                    part.batches.pass();
                    let (position, why) = (part.position, KafkaError::MessageConsumption(code));
                    if let Some(fault) = self.failed(partition, position, &why) {
                        return Err(fault);
                    }
                    return Ok(Stopped::Waiting);
                }
                None if part.ended.is_some() && end.is_some() => return Ok(Stopped::AtEnd),
                None => return Ok(Stopped::Waiting),
            }
            part.batches.pass();
        }
        Ok(Stopped::AtLimit)
    }

    fn position(&self, partition: Partition) -> Offset {
        self.parts[&partition].position
    }

    fn caught_up(&self, partition: Partition) -> bool {
        let part = &self.parts[&partition];
        if part.batches.holds() {
            return false;
        }
        let troubles = self.context.health.troubles.load(Relaxed);
        if part.ended == Some(troubles) {
            return true;
        }
        // A connection has failed since: what the broker said then, it must say again.
        let ends = lock(&self.context.health.ends);
        ends.0 == troubles && ends.1.get(&partition).is_some_and(|end| *end <= part.position)
    }

    fn keeps_up(&self, partition: Partition) -> bool {
        // Where records come all the time, the broker never says that this was the last.
        let part = &self.parts[&partition];
        let end = part.batches.known_end();
        !part.batches.holds()
            && (part.ended.is_some() || end.is_some_and(|end| end <= part.position))
    }

    fn service(&mut self) -> Result<Vec<(Partition, Offset)>, Fault> {
        for _ in 0..EVENTS_PER_SERVICE {
            // Nothing but events comes by the common queue: a record here would be lost.
            let event = self.consumer().poll(Duration::ZERO);
            assert!(!matches!(event, Some(Ok(_))), "a record came by the common queue");
        }
        let mut found = lock(&self.found);
        let found = found.as_mut().map_err(|fault| fault.clone())?;
        let mine: Vec<Partition> =
            found.keys().filter(|partition| (self.mine)(**partition)).copied().collect();
        Ok(mine.into_iter().filter_map(|at| found.remove_entry(&at)).collect())
    }

    fn durable(&mut self, ends: &BTreeMap<Partition, Offset>) {
        let list = self.list(ends.iter().map(|(partition, end)| (*partition, *end)));
        if let Err(why) = self.consumer().commit(&list, CommitMode::Async) {
            debug!("the group's offsets were not committed (lag tools will be behind): {why}");
        }
    }
}

impl Drop for KafkaFeed {
    /// A consumer that closes waits for the replies to its commits, for a minute or for ever if
    /// the broker is away. They are a courtesy: they get a moment, and then the run ends.
    fn drop(&mut self) {
        let (closing, closed) = channel::<()>();
        // The queues of the partitions hold the consumer as well.
        let all = (std::mem::take(&mut self.parts), self.consumer.take(), closing);
        let thread = thread::Builder::new().name("kafka-close".to_owned());
        if thread.spawn(move || drop(all)).is_ok() {
            let _ = closed.recv_timeout(CLOSING);
        }
    }
}

/// Offsets of a partition: from `start`, up to and without `end`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    pub topic: String,
    pub partition: i32,
    pub start: Offset,
    pub end: Offset,
}

/// Reads ranges, each in order, all at once; `take` gets the number of the range and the record,
/// and says whether to go on.
pub fn scan(
    config: &KafkaConfig,
    ranges: &[Range],
    mut take: impl FnMut(usize, Record<'_>) -> bool,
) -> Result<(), Fault> {
    let consumer =
        BaseConsumer::from_config_and_context(&config.consumer(ranges.len()), Context::default())
            .map_err(|why| refused(config, &why))?;
    let mut list = TopicPartitionList::new();
    for range in ranges {
        list.add_partition_offset(&range.topic, range.partition, RdOffset::Offset(range.start))
            .expect("an offset is not negative");
    }
    let ails = |why: &KafkaError| Fault::World(format!("the topic cannot be read again: {why}"));
    consumer.assign(&list).map_err(|why| ails(&why))?;
    let places: BTreeMap<(&str, i32), usize> = ranges
        .iter()
        .enumerate()
        .map(|(at, range)| ((range.topic.as_str(), range.partition), at))
        .collect();
    let mut open: Vec<bool> = ranges.iter().map(|range| range.start < range.end).collect();
    while open.iter().any(|open| *open) {
        match consumer.poll(Duration::from_millis(500)) {
            Some(Ok(message)) => {
                let at = places[&(message.topic(), message.partition())];
                let offset = message.offset();
                if offset < ranges[at].end {
                    let record = Record { offset, payload: message.payload() };
                    if !take(at, record) {
                        return Ok(());
                    }
                }
                open[at] &= offset + 1 < ranges[at].end;
            }
            // The end says which partition, not of which topic; holes may lie at the end.
            Some(Err(KafkaError::PartitionEOF(_))) | None => {
                let positions = consumer.position().map_err(|why| ails(&why))?;
                for (at, range) in ranges.iter().enumerate() {
                    let found = positions.find_partition(&range.topic, range.partition);
                    if let Some(RdOffset::Offset(position)) = found.map(|found| found.offset()) {
                        open[at] &= position < range.end;
                    }
                }
            }
            Some(Err(why)) => debug!("reading again: {why}"),
        }
    }
    Ok(())
}

/// Writes events to a topic.
pub struct Publisher {
    topic: String,
    producer: ThreadedProducer<Delivery>,
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
        *lock(&self.last) = Some(reason.to_owned());
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
        Ok(Publisher { topic: config.topics[0].clone(), producer, delivery })
    }

    /// Queues a record; waits while the queue is full. `None` is a tombstone.
    ///
    /// Records carry the time of writing, not that of the event: brokers delete old records and
    /// refuse those of the future by this time.
    pub fn send(&self, key: Option<&str>, payload: Option<&[u8]>) -> Result<(), Fault> {
        let mut record = BaseRecord::<str, [u8]>::to(&self.topic);
        record.key = key;
        record.payload = payload;
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    thread::sleep(Duration::from_millis(2));
                }
                Err((why, _)) => {
                    return Err(Fault::World(format!("cannot write to {}: {why}", self.topic)));
                }
            }
        }
    }

    /// How many records the brokers have confirmed.
    pub fn delivered(&self) -> u64 {
        self.delivery.delivered.load(Relaxed)
    }

    /// Waits until everything is confirmed.
    pub fn flush(&self) -> Result<(), Fault> {
        let flushed = self.producer.flush(Duration::from_secs(60));
        let failed = self.delivery.failed.load(Relaxed);
        if flushed.is_ok() && failed == 0 {
            return Ok(());
        }
        let why = lock(&self.delivery.last).clone().unwrap_or_else(|| "no answer".to_owned());
        let lost = failed + self.producer.in_flight_count() as u64;
        Err(Fault::World(format!("{lost} records were not written to {}: {why}", self.topic)))
    }
}

/// Creates the first topic of the configuration unless it exists; says whether it did.
///
/// Asks first: a login that may write need not be allowed to create, and a broker that cannot be
/// reached is told with the reason.
pub fn create_topic(config: &KafkaConfig, partitions: i32) -> Result<bool, Fault> {
    let topic = &config.topics[0];
    match Cluster::new(config)?.topics(CREATE_PATIENCE, || false) {
        Ok(_) => return Ok(false),
        Err(Fault::Config(_not_there)) => {}
        Err(unreachable) => return Err(unreachable),
    }
    let ails = |why: &dyn std::fmt::Display| Fault::World(format!("cannot create {topic}: {why}"));
    let admin: AdminClient<Delivery> =
        AdminClient::from_config_and_context(&config.client(), Delivery::default())
            .map_err(|why| refused(config, &why))?;
    // Replication as the brokers have it by default.
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(20)));
    let results = futures_executor::block_on(admin.create_topics([&new], &options))
        .map_err(|why| ails(&why))?;
    match results.into_iter().next() {
        Some(Ok(_)) => Ok(true),
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(false),
        Some(Err((_, why))) => Err(ails(&why)),
        None => Err(ails(&"no answer")),
    }
}

/// A broker inside this process: librdkafka's mock cluster. It forgets everything at the end.
pub struct EmbeddedBroker(MockCluster<'static, DefaultProducerContext>);

impl EmbeddedBroker {
    /// Starts it with one topic.
    pub fn start(topic: &str, partitions: i32) -> Result<Self, Fault> {
        let ails =
            |why: KafkaError| Fault::World(format!("the embedded broker does not start: {why}"));
        let cluster = MockCluster::new(1).map_err(ails)?;
        cluster.create_topic(topic, partitions, 1).map_err(ails)?;
        Ok(EmbeddedBroker(cluster))
    }

    /// Where it listens, on the loopback interface.
    pub fn address(&self) -> String {
        self.0.bootstrap_servers()
    }
}
