//! What one worker does, from the plan to the end of the run.

mod statistics;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::{debug, info};
use sessionizer_core::binding::Partition;
use sessionizer_core::fault::{Fault, Message};
use sessionizer_core::key::Shard;
use sessionizer_core::plan::{PartitionPlan, RecoveryPlan};
use sessionizer_core::session::snapshot;
use sessionizer_core::time::{Epoch, EpochLength};
use timely::dataflow::operators::probe::Handle;
use timely::dataflow::operators::vec::{Broadcast, Input};
use timely::dataflow::operators::{Inspect, Probe};
use timely::scheduling::{Activator, SyncActivator};
use timely::worker::Worker;

use crate::cluster;
use crate::cluster::StartStage;
use crate::config::Config;
use crate::dataflow::commit::WriterDriver;
use crate::dataflow::commit::writer::OpenLedger;
use crate::dataflow::figures::running_ms;
use crate::dataflow::graph;
use crate::dataflow::graph::DataflowConfig;
use crate::dataflow::run_state::RunState;
use crate::dataflow::sessions::LoadedShard;
use crate::dataflow::source::{SourceConfig, WorldClocks};
use crate::dataflow::statistics::quota::Quotas;
use crate::job::clock::now_ms;
use crate::job::recover::make_plan;
use crate::job::shutdown::POLL_INTERVAL;
use crate::job::{GATHER_FROM_ROWS, MAX_ENDS_INTERVAL, MIN_ENDS_INTERVAL};
use crate::kafka;
use crate::kafka::{KafkaFeed, Watcher};
use crate::ledger;
use crate::ledger::InitialRows;
use crate::ui::text::{duration, plural};

/// What the workers of this process share.
pub(super) struct Job {
    pub(super) config: Config,
    pub(super) run_state: Arc<RunState>,
    /// In a cluster: reports to the others how far the start of this process has come.
    pub(super) start_reporter: Option<cluster::StartReporter>,
    pub(super) watcher: Mutex<Option<Arc<Watcher>>>,
    pub(super) loaded: Mutex<Loaded>,
    /// The rows that the statistics start from: on process 0, from the plan on until worker 0 takes
    /// them.
    pub(super) initial_rows: Mutex<Option<InitialRows>>,
    pub(super) quotas: Quotas,
}

/// How many workers of this process have loaded their shards, and how many open sessions those
/// held.
#[derive(Default)]
pub(super) struct Loaded {
    workers: usize,
    sessions: u64,
}

impl Job {
    /// Runs one worker, from the plan to the end of the run.
    pub(super) fn work(self: &Arc<Self>, worker: &mut Worker) -> Result<(), Fault> {
        let Some(plan) = self.learn_plan(worker)? else { return Ok(()) };
        // Every worker learns the plan at about the same moment, whatever the clocks say. From here
        // on, epochs follow elapsed time, on every machine.
        let learnt = Instant::now();
        self.reach(StartStage::Loading(0));
        let plan = Arc::new(plan);
        let (index, peers) = (worker.index(), worker.peers());
        let processes = self.config.processes;
        let shards = match self.load(&plan, index, peers) {
            Err(_) if self.run_state.stopping() => {
                // The others may be running already. They end as they would in the middle of a
                // replay.
                self.run_state.abandon();
                return Ok(());
            }
            shards => shards?,
        };
        let watcher = self.watch(&plan)?;
        self.count_ahead(plan.partitions_of(index, (peers, processes)));
        let config = self.dataflow_config(&plan, learnt);
        let count = plan.partitions_of(index, (peers, processes)).count();
        // Each worker reads about the same number of partitions.
        let of_process = count * self.config.workers;
        self.share_memory(of_process);
        let open_feed = |wake| {
            let mine =
                Box::new(move |partition: Partition| partition.worker(peers, processes) == index);
            let topics = (plan.topics.as_slice(), self.config.ledger.job.as_str());
            let wake = Arc::new(waker(wake));
            KafkaFeed::new(&self.config.kafka, topics, &watcher, of_process, mine, wake)
        };
        let (source, durable) = graph::build(
            worker,
            &plan,
            &config,
            shards,
            open_feed,
            self.open_ledger(&plan),
            &self.run_state,
        );
        debug!("worker {index} of {peers} runs, {count} partitions");
        let _pruning = match self.config.keep_dead_letters {
            Some(keep) if index == 0 => Some(ledger::keep_dead_letters(&self.config.ledger, keep)),
            _ => None,
        };
        self.step_to_the_end(worker, &source, &durable)
    }

    /// Counts the records that these partitions are to read, if the run is bounded.
    fn count_ahead<'a>(&self, partitions: impl Iterator<Item = &'a PartitionPlan>) {
        let ahead = |part: &PartitionPlan| Some(part.until?.since(part.start.end));
        let ahead: i64 = partitions.filter_map(ahead).sum();
        self.run_state.metrics.records_ahead.fetch_add(ahead.max(0) as u64, Relaxed);
    }

    /// What shapes the dataflow of a worker that learnt the plan at this moment.
    fn dataflow_config(self: &Arc<Self>, plan: &RecoveryPlan, learnt: Instant) -> DataflowConfig {
        let age_ms = plan.age_ms;
        DataflowConfig {
            source: SourceConfig {
                processes: self.config.processes,
                epochs: EpochLength::of_millis(self.config.epoch_ms),
                watermark: self.config.watermark,
                gap: self.config.ledger.gap,
                dead_letter_bytes: self.config.dead_letter_bytes,
                until_end: self.config.until_end,
                clocks: WorldClocks {
                    elapsed_ms: Arc::new(move || age_ms + learnt.elapsed().as_millis() as u64),
                    wall_ms: Arc::new(now_ms),
                },
                alarm: true,
            },
            snapshot_interval_ms: self.config.snapshot_interval_ms,
            drift: self.config.drift,
            writers: self.config.writers,
            gather_from_rows: GATHER_FROM_ROWS,
            driver: WriterDriver::Threads,
            on_changes: self.on_changes(),
            statistics: self.statistics(plan),
        }
    }

    /// Divides the memory for data in flight equally among the workers, without what the consumers
    /// of this process hold if they read so many partitions.
    fn share_memory(&self, partitions: usize) {
        let held = self.config.kafka.held_bytes(partitions).min(self.config.memory_bytes / 2);
        self.run_state.memory.set(self.config.memory_bytes - held, self.config.workers);
    }

    /// Steps the dataflow until it ends. A stop wakes its source, and waits for a last commit.
    fn step_to_the_end(
        &self,
        worker: &mut Worker,
        source: &Activator,
        durable: &Handle<Epoch>,
    ) -> Result<(), Fault> {
        let figures = self.run_state.metrics.figures.worker(worker.index());
        let mut stopping_since = None;
        while worker.has_dataflows() {
            figures.stepped_ms.store(running_ms(), Relaxed);
            if self.run_state.failed() || self.run_state.abandoned() {
                return Ok(());
            }
            if self.run_state.stopping() {
                let since = *stopping_since.get_or_insert_with(|| {
                    source.activate();
                    Instant::now()
                });
                if since.elapsed() > self.config.stop_timeout && !durable.done() {
                    return Err(Fault::environment(format!(
                        "stopped without a last commit: Postgres did not take it within {}. \
                         Nothing is lost: the next start rereads what is not committed",
                        duration(self.config.stop_timeout)
                    )));
                }
            }
            worker.step_or_park(Some(POLL_INTERVAL));
        }
        figures.stepped_ms.store(0, Relaxed);
        Ok(())
    }

    /// Worker 0 of process 0 makes the plan and broadcasts it. Returns `None` if the run ends
    /// first.
    fn learn_plan(&self, worker: &mut Worker) -> Result<Option<RecoveryPlan>, Fault> {
        let learnt: Rc<RefCell<Option<Vec<u8>>>> = Rc::default();
        let keep = Rc::clone(&learnt);
        let (mut input, probe) = worker.dataflow_named::<u64, _, _>("plan", |scope| {
            let (input, stream) = scope.new_input::<Vec<u8>>();
            let stream = stream.broadcast().inspect(move |bytes: &Vec<u8>| {
                *keep.borrow_mut() = Some(bytes.clone());
            });
            let (probe, _) = stream.probe();
            (input, probe)
        });
        if worker.index() == 0 {
            let asked = Cell::new(Instant::now());
            let first_epoch = || {
                asked.set(Instant::now());
                now_ms()
            };
            match make_plan(&self.config, &self.run_state, first_epoch) {
                Ok((mut plan, initial_rows)) => {
                    *self.initial_rows.lock().unwrap_or_else(PoisonError::into_inner) =
                        initial_rows;
                    plan.age_ms = asked.get().elapsed().as_millis() as u64;
                    input.send(serde_json::to_vec(&plan).expect("a plan is plain data"));
                }
                // The other workers learn of it from an empty stream, the user from the fault. A
                // start that is asked to stop has no fault: it was only waiting.
                Err(why) if self.run_state.stopping() => info!("stopped while starting: {why}"),
                Err(fault) => self.run_state.fail(fault),
            }
        }
        input.close();
        // Process 0 may be lost in the meantime.
        worker
            .step_or_park_while(Some(POLL_INTERVAL), || !probe.done() && !self.run_state.failed());
        let bytes = learnt.borrow_mut().take();
        Ok(bytes.map(|bytes| serde_json::from_slice(&bytes).expect("a plan was sent")))
    }

    /// Loads the shards of this worker from their snapshots.
    fn load(
        &self,
        plan: &RecoveryPlan,
        index: usize,
        peers: usize,
    ) -> Result<Vec<LoadedShard>, Fault> {
        let began = Instant::now();
        let mine: Vec<Shard> = plan.shards_of(index, peers).collect();
        self.run_state.metrics.shards_to_load.fetch_add(mine.len() as u64, Relaxed);
        let stored = ledger::snapshots_with_retries(
            &self.config.ledger,
            (plan.fence, self.config.process == 0),
            mine.clone(),
            self.config.start_timeout,
            || self.run_state.ending(),
        )?;
        let mut shards = Vec::with_capacity(mine.len());
        for (shard, epoch, bytes) in stored {
            let table = snapshot::decode_of(&bytes, self.config.ledger.gap, shard, plan.shards());
            let table = table.map_err(|damage| {
                let problem = format!(
                    "the snapshot of shard {} at epoch {epoch} (sessionizer.snapshots) cannot be \
                     read: {damage}",
                    shard.0
                );
                Fault::config(Message::new(problem).remedy(". ", ledger::RESTORE))
            })?;
            let figures = &self.run_state.metrics.figures;
            figures.snapshot(shard, epoch, bytes.len() as u64);
            shards.push(LoadedShard { shard, epoch, table });
            self.run_state.metrics.shards_loaded.fetch_add(1, Relaxed);
        }
        if shards.iter().map(|loaded| loaded.shard).ne(mine.iter().copied()) {
            return Err(Fault::config(format!(
                "snapshots of the job {} are missing in sessionizer.snapshots: found {} of {}",
                self.config.ledger.job,
                shards.len(),
                mine.len()
            )));
        }
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.workers += 1;
        loaded.sessions += shards.iter().map(|shard| shard.table.len() as u64).sum::<u64>();
        if loaded.workers == self.config.workers {
            // A first start has no open sessions.
            if loaded.sessions == 0 {
                info!("reading begins");
            } else {
                let sessions = plural(loaded.sessions, "open session");
                let took = began.elapsed().as_secs_f64();
                info!("reading begins: loaded {sessions} in {took:.2} s");
            }
            self.reach(StartStage::Running);
        }
        Ok(shards)
    }

    fn reach(&self, stage: StartStage) {
        if let Some(reporter) = &self.start_reporter {
            reporter.reach(stage);
        }
    }

    /// The watcher of this process, started by the first worker that asks for it.
    fn watch(&self, plan: &RecoveryPlan) -> Result<Arc<Watcher>, Fault> {
        let mut slot = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watcher) = &*slot {
            return Ok(Arc::clone(watcher));
        }
        if self.config.process > 0 {
            self.check_kafka(plan)?;
        }
        let mut known: BTreeMap<u16, i32> = BTreeMap::new();
        for part in plan.partitions.iter().filter(|part| !part.retired) {
            let partition = part.start.partition;
            let count = known.entry(partition.topic).or_default();
            *count = (*count).max(partition.number + 1);
        }
        let every = self.config.discovery_interval;
        let topics = (plan.topics.as_slice(), plan.topic_ids.as_slice());
        // Silence is counted up to the last answer, so ask often enough to notice it in time.
        let idle_timeout = Duration::from_millis(self.config.watermark.idle_timeout_ms);
        let ends_every = (idle_timeout / 4).clamp(MIN_ENDS_INTERVAL, MAX_ENDS_INTERVAL);
        let watcher = Watcher::start(&self.config.kafka, topics, known, (every, ends_every))?;
        let watcher = Arc::new(watcher);
        *slot = Some(Arc::clone(&watcher));
        Ok(watcher)
    }

    /// Every process has its own Kafka settings; they must lead to the cluster that process 0 has
    /// asked.
    fn check_kafka(&self, plan: &RecoveryPlan) -> Result<(), Fault> {
        let kafka = kafka::Admin::new(&self.config.kafka)?;
        kafka.topics(self.config.start_timeout, || self.run_state.ending())?;
        let topics = &self.config.kafka.topics;
        for ((topic, there), here) in
            topics.iter().zip(&plan.topic_ids).zip(kafka.topic_ids(topics))
        {
            if let (Some(there), Some(here)) = (there, here)
                && *there != here
            {
                return Err(Fault::config(format!(
                    "KAFKA_URL of process {} leads to another Kafka than that of process 0: the \
                     topic {topic} has the id {here:?} here and {there:?} there",
                    self.config.process
                )));
            }
        }
        Ok(())
    }

    fn open_ledger(&self, plan: &RecoveryPlan) -> OpenLedger {
        let config = Arc::new(self.config.ledger.clone());
        let run = Arc::new(ledger::Run::new(plan));
        Arc::new(move |_writer| ledger::open_writer(&config, &run))
    }
}

/// Wakes an operator, from any thread.
fn waker(activator: SyncActivator) -> impl Fn() + Send + Sync {
    let activator = Mutex::new(activator);
    move || {
        // This fails only once the worker is gone, and then nobody needs waking.
        let _ = activator.lock().unwrap_or_else(PoisonError::into_inner).activate();
    }
}
