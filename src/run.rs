//! One run of the job in this process: workers, the plan, the dataflow, and how it ends.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{debug, error, info, warn};
use timely::communication::WorkerGuards;
use timely::dataflow::operators::vec::{Broadcast, Input};
use timely::dataflow::operators::{Inspect, Probe};
use timely::worker::Worker;

use crate::binding::Partition;
use crate::cluster::{self, Allocators, Cluster, ClusterConfig, Stage, hosts};
use crate::config::Config;
use crate::control::{Control, Fault};
use crate::dataflow::{self, Shape};
use crate::kafka::{self, KafkaFeed, Watcher};
use crate::key::Shard;
use crate::ledger;
use crate::operators::commit::Drive;
use crate::operators::lane::OpenLedger;
use crate::operators::sessions::LoadedShard;
use crate::operators::source::{SourceConfig, WorldClocks};
use crate::plan::Plan;
use crate::progress::{Done, Ending, Progress, ending};
use crate::snapshot;
use crate::start::make_plan;
use crate::text::{duration, plural};
use crate::time::EpochLength;

/// From how many rows of this process on short epochs are committed together. Before, the pages of
/// the table's key are few, and to wait costs more than it saves (docs/ARCHITECTURE.md, Decisions).
const GATHER_FROM_ROWS: u64 = 1_000_000;
/// How long a worker sleeps at most before it looks at the flags of the run.
const NAP: Duration = Duration::from_millis(100);
/// How long a failed process of a cluster takes to end by itself. Then it is ended: the others are
/// to be started again, and must not wait for what hangs here.
const LAST_WORDS: Duration = Duration::from_millis(1_500);
/// How long the end of a run waits for the peers to close their connections.
const FAREWELL: Duration = Duration::from_secs(5);
/// How often the brokers are asked where the partitions end: at a quarter of the idle timeout, but
/// neither more often nor more seldom than this.
const ENDS_OFTEN: Duration = Duration::from_millis(250);
const ENDS_SELDOM: Duration = Duration::from_secs(2);

/// Milliseconds since 1970 by the wall clock.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// A run that ends so soon because the database has gone back has not helped; after so many in a
/// row the job ends.
const SHORT_RUN: Duration = Duration::from_secs(60);
const SHORT_RUNS: u32 = 5;

/// Runs the job until it is asked to stop, has read to the end, or fails. A database that has gone
/// back to an earlier state is gone on from, as a start would. A cluster ends, and has to be
/// started again.
pub fn run(config: &Config, control: &Arc<Control>) -> Result<(), Fault> {
    let mut control = Arc::clone(control);
    let mut short_runs = 0;
    loop {
        let began = Instant::now();
        let ended = run_once(config, &control);
        let Err(Fault::GoneBack(why)) = ended else { return ended };
        short_runs = if began.elapsed() < SHORT_RUN { short_runs + 1 } else { 0 };
        if config.processes > 1 || control.stopping() || short_runs >= SHORT_RUNS {
            return Err(Fault::GoneBack(format!(
                "{why}. Start the job again: it goes on from what is there, and reads again what \
                 is missing"
            )));
        }
        warn!("{why}. The job goes on from what is there, and reads again what is missing");
        control = Arc::new(control.successor());
    }
}

fn run_once(config: &Config, control: &Arc<Control>) -> Result<(), Fault> {
    let began = Instant::now();
    for name in &config.ledger.url.ignored {
        info!("POSTGRES_URL: the parameter {name} means nothing here and is ignored");
    }
    let (cluster, (builders, others)) = if config.processes == 1 {
        (None, alone(config.workers)?)
    } else {
        match join(config, control)? {
            Some((cluster, allocators)) => (Some(cluster), allocators),
            None => {
                info!("stopped while other processes were missing");
                return Ok(());
            }
        }
    };
    let watchdog = cluster.as_ref().map(|_| watch_the_end(control));
    let progress = Progress::start(Arc::clone(control), config.until_end);
    let job = Arc::new(Job {
        config: config.clone(),
        control: Arc::clone(control),
        start: cluster.as_ref().map(Cluster::start),
        watcher: Mutex::default(),
        loaded: Mutex::default(),
    });
    let (ended, ends) = channel();
    let worker_config = timely::WorkerConfig::default();
    let guards = timely::execute::execute_from(builders, others, worker_config, move |worker| {
        if let Err(fault) = job.work(worker) {
            job.control.fail(fault);
        }
        // What is left is of a run that has ended otherwise: nothing of it may go on.
        for dataflow in worker.installed_dataflows() {
            worker.drop_dataflow(dataflow);
        }
        let _ = ended.send(()); // Nobody listens any more if it took too long.
    });
    let guards = guards.map_err(Fault::World)?;
    match &cluster {
        None => join_workers(guards, control),
        Some(cluster) => part(cluster, guards, &ends, config.workers, control),
    }
    drop(progress);
    drop(cluster);
    drop(watchdog);
    if let Some(fault) = control.fault() {
        return Err(fault);
    }
    let how = match (control.abandoned(), config.until_end && !control.stopping()) {
        (true, _) => Ending::StoppedWhileReadingAgain,
        (false, true) => Ending::ReadToTheEnd,
        (false, false) => Ending::Stopped,
    };
    let gauges = &control.gauges;
    let done = Done {
        records: gauges.records.load(Relaxed),
        rows: gauges.rows.load(Relaxed),
        late: gauges.late.load(Relaxed),
        dead: gauges.dead.load(Relaxed),
        held_back: gauges.held_back.load(Relaxed),
        took: began.elapsed(),
    };
    info!("{}", ending(how, done));
    Ok(())
}

/// What the workers of a job of one process are built from.
fn alone(workers: usize) -> Result<Allocators, Fault> {
    let communication = match workers {
        1 => timely::CommunicationConfig::Thread,
        several => timely::CommunicationConfig::Process(several),
    };
    communication.try_build().map_err(Fault::World)
}

/// Waits for the other processes of the job; `None` if this one is to stop before.
fn join(config: &Config, control: &Arc<Control>) -> Result<Option<(Cluster, Allocators)>, Fault> {
    let addresses = match &config.hostfile {
        None => hosts::local(config.processes),
        Some(path) => {
            let place = path.display();
            let text = std::fs::read_to_string(path).map_err(|why| {
                Fault::Config(format!("the hostfile {place} (--hostfile) cannot be read: {why}"))
            })?;
            hosts::parse(&text, config.processes)
                .map_err(|what| Fault::Config(format!("the hostfile {place} {what}")))?
        }
    };
    let cluster = ClusterConfig {
        process: config.process,
        addresses,
        peer_timeout: config.peer_timeout,
        start_timeout: config.start_timeout,
        wall_ms: now_ms,
        secret: config.cluster_secret.clone(),
        insecure: config.cluster_insecure,
    };
    let Some(mut cluster) = Cluster::gather(&cluster, config.shared(), control)? else {
        return Ok(None);
    };
    let allocators = cluster.allocators(config.workers)?;
    Ok(Some((cluster, allocators)))
}

fn join_workers(guards: WorkerGuards<()>, control: &Control) {
    for result in guards.join() {
        if let Err(why) = result {
            control.fail(Fault::World(format!("a worker thread ended abnormally: {why}")));
        }
    }
}

/// The end of a process of a cluster. After a clean end, what timely still has to send is sent, and
/// the peers say that they are done. After any other, nobody waits for anybody.
fn part(
    cluster: &Cluster,
    guards: WorkerGuards<()>,
    ends: &Receiver<()>,
    workers: usize,
    control: &Arc<Control>,
) {
    let mut running = workers;
    let mut failed_since = None;
    while running > 0 {
        match ends.recv_timeout(NAP) {
            Ok(()) => running -= 1,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if control.failed() && failed_since.get_or_insert_with(Instant::now).elapsed() >= LAST_WORDS
        {
            break;
        }
    }
    if control.failed() || control.abandoned() {
        // Its threads wait for peers that may be gone: they end with the process.
        std::mem::forget(guards);
        return;
    }
    cluster.finished();
    let (joined, all) = channel();
    let control = Arc::clone(control);
    thread::spawn(move || {
        join_workers(guards, &control);
        let _ = joined.send(());
    });
    if all.recv_timeout(FAREWELL).is_err() {
        debug!("a peer has not closed its connection within {FAREWELL:?}");
    }
}

/// Ends the process if it has failed and does not end by itself, until what is returned is dropped.
fn watch_the_end(control: &Arc<Control>) -> std::sync::mpsc::Sender<()> {
    let (running, over) = channel::<()>();
    let control = Arc::clone(control);
    let work = move || {
        while !control.failed() {
            if over.recv_timeout(NAP) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
        if over.recv_timeout(LAST_WORDS) == Err(RecvTimeoutError::Timeout)
            && let Some(fault) = control.fault()
        {
            error!("{fault}");
            signal_hook::low_level::exit(i32::from(fault.exit_code()));
        }
    };
    let thread = thread::Builder::new().name("watchdog".to_owned());
    thread.spawn(work).expect("a thread can be started");
    running
}

/// What the workers of this process share.
struct Job {
    config: Config,
    control: Arc<Control>,
    /// Of a cluster: tells the others how far this process is.
    start: Option<cluster::Start>,
    watcher: Mutex<Option<Arc<Watcher>>>,
    loaded: Mutex<Loaded>,
}

/// How many workers of this process have loaded their shards, and how many open sessions were in
/// them.
#[derive(Default)]
struct Loaded {
    workers: usize,
    sessions: u64,
}

impl Job {
    /// What one worker does, from the plan to the end.
    fn work(&self, worker: &mut Worker) -> Result<(), Fault> {
        let Some(plan) = self.learn_plan(worker)? else { return Ok(()) };
        // Everybody learns the plan at about the same moment, whatever the clocks say: from here on
        // epochs go by elapsed time, on every machine.
        let (learnt, age_ms) = (Instant::now(), plan.age_ms);
        self.reach(Stage::Loading(0));
        let plan = Arc::new(plan);
        let (index, peers) = (worker.index(), worker.peers());
        let processes = self.config.processes;
        let shards = match self.load(&plan, index, peers) {
            Err(_) if self.control.stopping() => {
                // The others may run already: they end as they would in the middle of a replay.
                self.control.abandon();
                return Ok(());
            }
            shards => shards?,
        };
        let watcher = self.watch(&plan)?;
        let ahead = |part: &crate::plan::PartitionPlan| Some(part.until? - part.start.end);
        let ahead: i64 = plan.partitions_of(index, (peers, processes)).filter_map(ahead).sum();
        self.control.gauges.records_ahead.fetch_add(ahead.max(0) as u64, Relaxed);
        let shape = Shape {
            source: SourceConfig {
                processes,
                epochs: EpochLength::of_millis(self.config.epoch_ms),
                patience: self.config.patience,
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
            lanes: self.config.lanes,
            gather_from_rows: GATHER_FROM_ROWS,
            drive: Drive::Threads,
            on_changes: Arc::new(|_changes| ()),
        };
        let count = plan.partitions_of(index, (peers, processes)).count();
        // Workers have about as many partitions each, and share the memory.
        let of_process = count * self.config.workers;
        let kafka = &self.config.kafka;
        let held = kafka.held_bytes(of_process).min(self.config.memory_bytes / 2);
        self.control.memory.set(self.config.memory_bytes - held, self.config.workers);
        let open_feed = |wake| {
            let wake: timely::scheduling::SyncActivator = wake;
            let wake = Mutex::new(wake);
            let wake = Arc::new(move || {
                // Fails only when the worker is gone, and then nobody needs waking.
                let _ = wake.lock().unwrap_or_else(PoisonError::into_inner).activate();
            });
            let mine =
                Box::new(move |partition: Partition| partition.worker(peers, processes) == index);
            let topics = (plan.topics.as_slice(), self.config.ledger.job.as_str());
            KafkaFeed::new(kafka, topics, &watcher, of_process, mine, wake)
        };
        let (source, durable) = dataflow::build(
            worker,
            &plan,
            &shape,
            shards,
            open_feed,
            self.open_ledger(&plan),
            &self.control,
        );
        debug!("worker {index} of {peers} runs, {count} partitions");
        let _pruning = match self.config.keep_dead_letters {
            Some(keep) if index == 0 => Some(ledger::keep_dead_letters(&self.config.ledger, keep)),
            _ => None,
        };
        let mut stopping_since = None;
        while worker.has_dataflows() {
            if self.control.failed() || self.control.abandoned() {
                return Ok(());
            }
            if self.control.stopping() {
                let since = *stopping_since.get_or_insert_with(|| {
                    source.activate();
                    Instant::now()
                });
                if since.elapsed() > self.config.stop_timeout && !durable.done() {
                    return Err(Fault::World(format!(
                        "stopped without a last commit: Postgres did not take it within {}. \
                         Nothing is lost: the next start reads again what is not committed",
                        duration(self.config.stop_timeout)
                    )));
                }
            }
            worker.step_or_park(Some(NAP));
        }
        Ok(())
    }

    /// Worker 0 of process 0 makes the plan, everybody gets it; `None` if the run ends before.
    fn learn_plan(&self, worker: &mut Worker) -> Result<Option<Plan>, Fault> {
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
            match make_plan(&self.config, &self.control, first_epoch) {
                Ok(mut plan) => {
                    plan.age_ms = asked.get().elapsed().as_millis() as u64;
                    input.send(serde_json::to_vec(&plan).expect("a plan is plain data"));
                }
                // An empty stream tells the others; the fault tells the user. A start that is to
                // stop has none: it was waiting.
                Err(why) if self.control.stopping() => info!("stopped while starting: {why}"),
                Err(fault) => self.control.fail(fault),
            }
        }
        input.close();
        // Process 0 may be lost meanwhile.
        worker.step_or_park_while(Some(NAP), || !probe.done() && !self.control.failed());
        let bytes = learnt.borrow_mut().take();
        Ok(bytes.map(|bytes| serde_json::from_slice(&bytes).expect("a plan was sent")))
    }

    /// The shards of this worker, from their snapshots.
    fn load(&self, plan: &Plan, index: usize, peers: usize) -> Result<Vec<LoadedShard>, Fault> {
        let began = Instant::now();
        let mine: Vec<Shard> = plan.shards_of(index, peers).collect();
        self.control.gauges.shards_to_load.fetch_add(mine.len() as u64, Relaxed);
        let stored = ledger::snapshots_patiently(
            &self.config.ledger,
            (plan.fence, self.config.process == 0),
            mine.clone(),
            self.config.start_timeout,
            || self.control.ending(),
        )?;
        let mut shards = Vec::with_capacity(mine.len());
        for (shard, epoch, bytes) in stored {
            let table = snapshot::decode_of(&bytes, self.config.ledger.gap, shard, plan.shards());
            let table = table.map_err(|damage| {
                Fault::Config(format!(
                    "the snapshot of shard {} at epoch {epoch} (sessionizer.snapshots) cannot be \
                     read: {damage}. Restore the schema sessionizer and the table from one backup, or \
                     begin afresh: `sessionizer reset` removes the job and its rows, and the next \
                     start reads the topic again",
                    shard.0
                ))
            })?;
            shards.push(LoadedShard { shard, epoch, table });
            self.control.gauges.shards_loaded.fetch_add(1, Relaxed);
        }
        if shards.iter().map(|loaded| loaded.shard).ne(mine.iter().copied()) {
            return Err(Fault::Config(format!(
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
            // A first start has none.
            if loaded.sessions == 0 {
                info!("reading begins");
            } else {
                let sessions = plural(loaded.sessions, "open session");
                let took = began.elapsed().as_secs_f64();
                info!("reading begins: loaded {sessions} in {took:.2} s");
            }
            self.reach(Stage::Running);
        }
        Ok(shards)
    }

    fn reach(&self, stage: Stage) {
        if let Some(start) = &self.start {
            start.reach(stage);
        }
    }

    /// The watcher of this process; the first worker that asks starts it.
    fn watch(&self, plan: &Plan) -> Result<Arc<Watcher>, Fault> {
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
        // Silence is counted up to the last answer: ask often enough to notice it in time.
        let idle_timeout = Duration::from_millis(self.config.patience.idle_timeout_ms);
        let ends_every = (idle_timeout / 4).clamp(ENDS_OFTEN, ENDS_SELDOM);
        let watcher = Watcher::start(&self.config.kafka, topics, known, (every, ends_every))?;
        let watcher = Arc::new(watcher);
        *slot = Some(Arc::clone(&watcher));
        Ok(watcher)
    }

    /// Each process is told by itself where Kafka is: it must be the one that process 0 has asked.
    fn check_kafka(&self, plan: &Plan) -> Result<(), Fault> {
        let kafka = kafka::Cluster::new(&self.config.kafka)?;
        kafka.topics(self.config.start_timeout, || self.control.ending())?;
        let topics = &self.config.kafka.topics;
        for ((topic, there), here) in
            topics.iter().zip(&plan.topic_ids).zip(kafka.topic_ids(topics))
        {
            if let (Some(there), Some(here)) = (there, here)
                && *there != here
            {
                return Err(Fault::Config(format!(
                    "KAFKA_URL of process {} leads to another Kafka than that of process 0: the \
                     topic {topic} has the id {here:?} here and {there:?} there",
                    self.config.process
                )));
            }
        }
        Ok(())
    }

    fn open_ledger(&self, plan: &Plan) -> OpenLedger {
        let config = Arc::new(self.config.ledger.clone());
        let run = Arc::new(ledger::Run::new(plan));
        Arc::new(move |_lane| ledger::open_lane(&config, &run))
    }
}
