//! Finds new partitions, and notices when brokers, leaders and topics go away and come back.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use rdkafka::consumer::BaseConsumer;
use sessionizer_core::binding::{Offset, Partition, TopicId};
use sessionizer_core::fault::{Fault, Message};

use crate::kafka::admin::{Admin, Layout, NoLayout};
use crate::kafka::{Context, KafkaConfig, REQUEST_TIMEOUT, lock};
use crate::ui::text::{duration, plural};
use crate::ui::trouble::RepeatedFailure;
use crate::ui::waiting::{Awaited, WaitGuard};

/// How often to ask the brokers for the leader of a partition that has none.
const LEADER_INTERVAL: Duration = Duration::from_secs(1);

/// How long requests must fail until the brokers count as away.
const AWAY_AFTER: Duration = Duration::from_secs(1);

/// How long the end of a run waits for the brokers to answer the last commits of the group's
/// offsets. Those are a courtesy.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(3);

/// Watches the connection to the brokers, for all workers of a process.
pub struct Watcher {
    pub(super) context: Context,
    pub(super) found: Found,
    /// Commits the group's offsets. The consumers must not: librdkafka starts no partition that is
    /// assigned while the coordinator of the group owes an answer to a commit.
    pub(super) group: Weak<BaseConsumer<Context>>,
    /// How long the end offsets that the brokers have reported stay valid.
    pub(super) end_lifetime: Duration,
    stop: Option<Sender<()>>,
    /// Disconnected when the thread has ended.
    ended: Mutex<Receiver<()>>,
}

impl Watcher {
    /// Starts watching. `topics` are the topics of the plan with their ids, `known` is the number
    /// of partitions by topic. The watcher looks for new partitions at the interval `every`, and
    /// asks for the end offsets at the interval `ends_every`.
    pub fn start(
        config: &KafkaConfig,
        topics: (&[String], &[Option<TopicId>]),
        known: BTreeMap<u16, i32>,
        (every, ends_every): (Duration, Duration),
    ) -> Result<Self, Fault> {
        let context = Context::default();
        let admin = Admin::with_group(config, context.clone())?;
        let group = Arc::downgrade(&admin.client);
        let found: Found = Arc::new(Mutex::new(Ok(BTreeMap::new())));
        let (stop, stopped) = channel::<()>();
        let (ending, ended) = channel::<()>();
        let mut watcher = WatcherThread {
            admin,
            topics: topics.0.to_vec(),
            ids: topics.1.to_vec(),
            known,
            found: Arc::clone(&found),
            asked: Instant::now(),
            every,
            ends_asked: Instant::now(),
            ends_every,
            settled: 0,
            failing_since: None,
            away: None,
            leaderless: BTreeMap::new(),
            gone: BTreeMap::new(),
            gone_patience: config.gone_patience(),
        };
        thread::Builder::new()
            .name("kafka-watcher".to_owned())
            .spawn(move || {
                let pause = Duration::from_millis(250);
                while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                    watcher.check();
                }
                // A client that closes waits for the answers to its commits.
                drop(watcher);
                drop(ending);
            })
            .expect("a thread can be started");
        // The watcher asks again long before that.
        let end_lifetime = ends_every * 4;
        Ok(Watcher {
            context,
            found,
            group,
            end_lifetime,
            stop: Some(stop),
            ended: Mutex::new(ended),
        })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.stop.take());
        // Otherwise do not wait: a request in flight may take its time, and its answer no longer
        // matters.
        if self.context.health.commits.load(Relaxed) > 0 {
            let _ = lock(&self.ended).recv_timeout(COMMIT_TIMEOUT);
        }
    }
}

/// What the watcher has found and the feeds have not picked up yet: partitions with their first
/// offset, or the fault that ends the run.
pub(super) type Found = Arc<Mutex<Result<BTreeMap<Partition, Offset>, Fault>>>;

struct WatcherThread {
    admin: Admin,
    topics: Vec<String>,
    ids: Vec<Option<TopicId>>,
    known: BTreeMap<u16, i32>,
    found: Found,
    asked: Instant,
    every: Duration,
    ends_asked: Instant,
    ends_every: Duration,
    /// How many failures are known to be over.
    settled: u64,
    /// Since when requests have failed without interruption.
    failing_since: Option<Instant>,
    away: Option<Away>,
    /// Partitions that no broker serves, and since when.
    leaderless: BTreeMap<Partition, Instant>,
    /// Topics that the brokers no longer know or show, and since when.
    gone: BTreeMap<u16, Instant>,
    gone_patience: Duration,
}

/// The brokers do not answer.
struct Away {
    since: Instant,
    waiting: WaitGuard,
    repeated: RepeatedFailure,
}

impl WatcherThread {
    fn check(&mut self) {
        self.admin.serve();
        let failures = self.admin.context.health.failures.load(Relaxed);
        let failing = failures > self.settled || self.away.is_some();
        let every = match self.leaderless.is_empty() && self.gone.is_empty() {
            true => self.every,
            false => self.every.min(LEADER_INTERVAL),
        };
        if !failing && self.asked.elapsed() < every {
            if self.ends_asked.elapsed() >= self.ends_every && !self.query_ends() {
                // The next round asks for everything, and warns if no broker answers.
                self.admin.context.health.record_failure();
            }
            return;
        }
        self.asked = Instant::now();
        if self.find_partitions() && self.query_ends() {
            self.settled = failures;
            self.failing_since = None;
            *lock(&self.admin.context.health.last) = None;
            if let Some(Away { since, .. }) = self.away.take() {
                let brokers = &self.admin.config.brokers;
                info!(brokers = brokers; "Kafka is back after {}", duration(since.elapsed()));
            }
        } else {
            self.is_away();
        }
    }

    /// Warns that the brokers do not answer, and again while they do not.
    fn is_away(&mut self) {
        // A client that has just connected may fail once.
        let failing_since = *self.failing_since.get_or_insert(self.asked);
        if failing_since.elapsed() < AWAY_AFTER {
            return;
        }
        let brokers = &self.admin.config.brokers;
        let why = lock(&self.admin.context.health.last).clone();
        let why = why.unwrap_or_else(|| "timed out".to_owned());
        let away = self.away.get_or_insert_with(|| Away {
            since: failing_since,
            waiting: WaitGuard::new(Awaited::Kafka(brokers.clone()), None),
            repeated: RepeatedFailure::default(),
        });
        away.waiting.because(&why);
        let lasts = away.since.elapsed();
        match away.repeated.record(lasts) {
            Some(1) => {
                warn!(
                    brokers = brokers;
                    "Kafka at {brokers} does not answer: {why}; reading resumes when it is back"
                );
            }
            Some(times) => warn!(
                brokers = brokers, attempts = times;
                "Kafka at {brokers} still does not answer, after {} and {}: {why}",
                duration(lasts),
                plural(times, "attempt")
            ),
            None => {}
        }
    }

    /// Asks for the end offsets of all partitions with a leader; returns whether the brokers
    /// answered.
    fn query_ends(&mut self) -> bool {
        let health = Arc::clone(&self.admin.context.health);
        let asked_ms = health.now_ms();
        self.ends_asked = Instant::now();
        let all = self.known.iter().filter(|(topic, _)| !self.gone.contains_key(topic));
        let all = all
            .flat_map(|(&topic, &known)| (0..known).map(move |number| Partition { topic, number }));
        let served: Vec<Partition> =
            all.filter(|partition| !self.leaderless.contains_key(partition)).collect();
        let Some(ends) = self.admin.ends(&self.topics, &served) else { return false };
        *lock(&health.ends) = (asked_ms, ends);
        true
    }

    /// Looks for new partitions; returns whether every request was answered.
    fn find_partitions(&mut self) -> bool {
        for (index, topic) in self.topics.clone().into_iter().enumerate() {
            let index = index as u16;
            let Some(&known) = self.known.get(&index) else { continue };
            let layout = match self.admin.partitions(&topic, REQUEST_TIMEOUT) {
                Ok(layout) if layout.partitions < known => {
                    let count = layout.partitions;
                    self.note_missing(
                        index,
                        &format!("the topic {topic} has only {count} partitions"),
                    );
                    continue;
                }
                Ok(layout) => layout,
                Err(NoLayout::NoTopic(fault) | NoLayout::Denied(fault)) => {
                    self.note_missing(index, &fault.to_string());
                    continue;
                }
                Err(NoLayout::Unanswered) => return false,
            };
            self.gone.remove(&index);
            self.check_leaders(index, &topic, known, &layout);
            let count = layout.partitions;
            for number in known..count {
                let partition = Partition { topic: index, number };
                let Ok((oldest, _)) = self.admin.offsets(&topic, number) else {
                    return false;
                };
                if let Ok(found) = &mut *lock(&self.found) {
                    found.insert(partition, oldest);
                }
                self.known.insert(index, number + 1);
            }
        }
        self.check_ids();
        true
    }

    /// Ends the run if a topic it reads has been gone for too long.
    fn note_missing(&mut self, topic: u16, why: &str) {
        let name = &self.topics[usize::from(topic)];
        let since = *self.gone.entry(topic).or_insert_with(|| {
            debug!("{name} is gone: {why}");
            Instant::now()
        });
        if since.elapsed() >= self.gone_patience {
            *lock(&self.found) = Err(Fault::config(format!(
                "the topic {name} or a part of it disappeared while the job was running: {why}"
            )));
        }
    }

    /// Logs which partitions have lost their leader, and which have one again. Clients do not
    /// report either as a failure: they wait. Both make the known end offsets stale.
    fn check_leaders(&mut self, topic: u16, name: &str, known: i32, layout: &Layout) {
        let without = |number: i32| layout.leaderless.contains(&number);
        let mut lost = Vec::new();
        let mut changed = false;
        // A partition that was just created gets its leader a moment later.
        for number in 0..known.min(layout.partitions) {
            let partition = Partition { topic, number };
            match (without(number), self.leaderless.get(&partition)) {
                (true, None) => {
                    self.leaderless.insert(partition, Instant::now());
                    lost.push(number);
                }
                (false, Some(since)) => {
                    info!(
                        topic = name, partition = number;
                        "{name}[{number}] has a leader again after {}",
                        duration(since.elapsed())
                    );
                    self.leaderless.remove(&partition);
                    changed = true;
                }
                _ => {}
            }
        }
        if !lost.is_empty() {
            warn!(
                topic = name, partitions:? = lost;
                "{name}{lost:?} has no leader: no broker of {} serves it. The other partitions are \
                 read; the watermark waits for it, and advances again when it is back",
                self.admin.config.brokers
            );
        }
        if changed || !lost.is_empty() {
            self.admin.context.health.record_failure();
        }
    }

    /// Ends the run if a topic was deleted and created again.
    fn check_ids(&self) {
        let now = self.admin.topic_ids(&self.topics);
        for ((topic, known), now) in self.topics.iter().zip(&self.ids).zip(now) {
            if let (Some(known), Some(now)) = (known, now)
                && *known != now
            {
                let problem = format!(
                    "the topic {topic} was deleted and created again while the job ran (its id was \
                     {known:?} and is {now:?})"
                );
                let remedy = "Start with --accept-lost-offsets to continue with the new one from \
                              its beginning";
                let message = Message::new(problem).remedy(". ", remedy);
                *lock(&self.found) = Err(Fault::config(message));
            }
        }
    }
}
