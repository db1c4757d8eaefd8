//! The workers of one life of the job: real timely threads, one of which moves at a time.
//!
//! They belong to one process or to several, each with its own flags: what one process knows, the
//! others learn some steps later, and a lost process stops moving while the others carry on. Data
//! between workers of different processes is serialised, as on a network.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use sessionizer::dataflow::budget::ChargeKind;
use sessionizer::dataflow::commit::WriterDriver;
use sessionizer::dataflow::commit::writer::OpenLedger;
use sessionizer::dataflow::graph;
use sessionizer::dataflow::graph::{DataflowConfig, OnChanges};
use sessionizer::dataflow::messages::Change;
use sessionizer::dataflow::ports::LedgerError;
use sessionizer::dataflow::run_state::RunState;
use sessionizer::dataflow::sessions::LoadedShard;
use sessionizer::dataflow::source::SourceConfig;
use sessionizer_core::alignment::Drift;
use sessionizer_core::binding::Partition;
use sessionizer_core::fault::Fault;
use sessionizer_core::plan::RecoveryPlan;
use sessionizer_core::time::{Epoch, EpochLength};
use sessionizer_core::watermark::WatermarkConfig;

use crate::clocks::SimClocks;
use crate::feed::SimFeed;
use crate::ledger::{Connection, Store};
use crate::sabotage::Sabotage;
use crate::statistics::{Changes, Statistics};
use crate::topic::{OUT_OF_ORDERNESS_MS, Topic};
use crate::witness;

pub const EPOCH_MS: u64 = 10;

/// The parameters of a life.
#[derive(Clone)]
pub struct Setup {
    pub plan: Arc<RecoveryPlan>,
    /// Of all processes together.
    pub workers: usize,
    pub processes: usize,
    pub writers: u32,
    pub topic: Arc<Mutex<Topic>>,
    pub store: Arc<Mutex<Store>>,
    pub clocks: Arc<SimClocks>,
    /// The changes emitted by the commit operators, to be compared with the table.
    pub changes: Changes,
    pub statistics: Option<Statistics>,
    /// How long after the previous worker each worker learns the plan.
    pub lag_ms: u64,
    /// By how many percent the clock of each worker is faster than that of the previous one.
    pub fast_percent: u64,
    pub sabotage: Option<Sabotage>,
    /// After how many rows short epochs are committed together.
    pub gather_from_rows: u64,
    /// How far a partition may be ahead of the slowest.
    pub drift: Drift,
    /// Whether the life ends where the partitions ended at its start.
    pub bounded: bool,
    /// How many bytes a process may have in flight.
    pub memory: u64,
    /// How much of a payload a dead letter keeps.
    pub dead_letter_bytes: usize,
}

/// One life.
pub struct SimRun {
    turns: Vec<Sender<()>>,
    /// Whether a worker's dataflow still exists after its turn.
    moved: Vec<Receiver<bool>>,
    /// The workers whose dataflows are gone.
    ended: RefCell<BTreeSet<usize>>,
    pub plan: Arc<RecoveryPlan>,
    /// By process.
    pub controls: Vec<Arc<RunState>>,
    /// The process that no longer moves.
    lost: Cell<Option<usize>>,
    threads: Option<timely::communication::WorkerGuards<()>>,
}

impl SimRun {
    pub fn start(setup: Setup) -> Self {
        let controls: Vec<Arc<RunState>> = (0..setup.processes).map(|_| Arc::default()).collect();
        for run_state in &controls {
            run_state.memory.set(setup.memory, setup.workers / setup.processes);
            if setup.sabotage == Some(Sabotage::MemoryNeverReleased) {
                run_state.memory.charge(ChargeKind::Rows, 0, Epoch::MAX, setup.memory);
            }
        }
        let plan = Arc::clone(&setup.plan);
        let (mut turns, mut moved, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..setup.workers {
            let (turn, my_turn) = channel();
            let (did, done) = channel();
            turns.push(turn);
            moved.push(done);
            ends.push(Some((my_turn, did)));
        }
        let ends = Mutex::new(ends);
        let shared = controls.clone();
        let witness = witness::of_this_thread();
        let configuration = timely::Config {
            communication: match setup.processes {
                1 => timely::CommunicationConfig::Process(setup.workers),
                _ => timely::CommunicationConfig::ProcessBinary(setup.workers),
            },
            worker: timely::WorkerConfig::default(),
        };
        let threads = timely::execute(configuration, move |worker| {
            witness::hears_this_thread(witness.clone());
            let (my_turn, did) = {
                let mut ends = ends.lock().expect("not poisoned");
                ends[worker.index()].take().expect("once a worker")
            };
            let process = process_of(worker.index(), setup.processes, setup.workers);
            work(worker, &setup, (process, &shared[process]), &my_turn, &did);
            for dataflow in worker.installed_dataflows() {
                worker.drop_dataflow(dataflow);
            }
        });
        let threads = Some(threads.expect("threads can be started"));
        let (ended, lost) = (RefCell::default(), Cell::new(None));
        SimRun { turns, moved, ended, plan, controls, lost, threads }
    }

    pub fn processes(&self) -> usize {
        self.controls.len()
    }

    pub fn process_of(&self, worker: usize) -> usize {
        process_of(worker, self.processes(), self.workers())
    }

    /// The fault of a process, if one has failed.
    pub fn fault(&self) -> Option<Fault> {
        self.controls.iter().find_map(|run_state| run_state.fault())
    }

    /// The last epoch that a process believes to be durable everywhere.
    pub fn believed_durable(&self) -> Epoch {
        let believed = |run_state: &Arc<RunState>| run_state.metrics.durable_epoch.load(Relaxed);
        self.controls.iter().map(believed).max().expect("a process")
    }

    /// Stops a process for good: it was killed, or is frozen for ever.
    pub fn lose(&self, process: usize) {
        self.lost.set(Some(process));
    }

    pub fn workers(&self) -> usize {
        self.turns.len()
    }

    /// Lets one worker take a step. Returns whether its dataflow still exists.
    pub fn step(&self, worker: usize) -> bool {
        if self.lost.get() == Some(self.process_of(worker)) {
            return true;
        }
        let gone = "the worker panicked: see above";
        self.turns[worker].send(()).expect(gone);
        let there = self.moved[worker].recv().expect(gone);
        if !there {
            self.ended.borrow_mut().insert(worker);
        }
        there
    }

    /// Whether the dataflow of every worker is gone, so that nothing is left to do.
    pub fn ended(&self) -> bool {
        self.ended.borrow().len() == self.workers()
    }
}

impl Drop for SimRun {
    /// The crash: nobody gets another turn.
    fn drop(&mut self) {
        self.turns.clear();
        for result in self.threads.take().expect("dropped once").join() {
            if let Err(why) = result
                && !std::thread::panicking()
            {
                panic!("a worker panicked: {why}");
            }
        }
    }
}

/// All processes have the same number of workers, and those of one process are consecutive.
fn process_of(worker: usize, processes: usize, workers: usize) -> usize {
    worker * processes / workers
}

/// The settings of one worker.
fn config(setup: &Setup, process: usize, worker: usize) -> DataflowConfig {
    let odd = (setup.lag_ms * worker as u64, setup.fast_percent * worker as u64);
    let changes = Arc::clone(&setup.changes);
    let on_changes: OnChanges = Arc::new(move |epoch, batch: &[Change]| {
        let batch = batch.iter().map(|change| (epoch, change.clone()));
        changes.lock().expect("one at a time").extend(batch);
    });
    DataflowConfig {
        source: SourceConfig {
            processes: setup.processes,
            epochs: EpochLength { ms: EPOCH_MS, full_ms: 3, full_records: 5 },
            watermark: WatermarkConfig {
                out_of_orderness_ms: OUT_OF_ORDERNESS_MS,
                idle_timeout_ms: 50,
            },
            gap: crate::ledger::gap(),
            dead_letter_bytes: setup.dead_letter_bytes,
            until_end: setup.bounded,
            clocks: setup.clocks.of_worker(process, &setup.plan, odd, setup.sabotage),
            alarm: false,
        },
        snapshot_interval_ms: 100,
        drift: setup.drift,
        writers: setup.writers,
        gather_from_rows: setup.gather_from_rows,
        driver: WriterDriver::Inline,
        on_changes,
        statistics: setup.statistics.as_ref().map(Statistics::config),
    }
}

fn work(
    worker: &mut timely::worker::Worker,
    setup: &Setup,
    (process, run_state): (usize, &Arc<RunState>),
    my_turn: &Receiver<()>,
    did: &Sender<bool>,
) {
    // Workers take turns in building too: what they ask the store for is part of the schedule.
    if my_turn.recv().is_err() {
        return;
    }
    let (index, peers) = (worker.index(), worker.peers());
    let shards = {
        let store = setup.store.lock().expect("one at a time");
        let load = |shard| {
            let (epoch, table) = store.snapshot(shard);
            LoadedShard { shard, epoch, table }
        };
        setup.plan.shards_of(index, peers).map(load).collect()
    };
    let config = config(setup, process, index);
    let (store, fence) = (Arc::clone(&setup.store), setup.plan.fence);
    let open_ledger: OpenLedger = Arc::new(move |_| {
        let connection = Connection { store: Arc::clone(&store), fence, process };
        Ok::<_, LedgerError>(Box::new(connection))
    });
    let (topic, clocks) = (Arc::clone(&setup.topic), Arc::clone(&setup.clocks));
    let known = setup.plan.partitions.len();
    let processes = setup.processes;
    let open_feed = |_| {
        let mine =
            Box::new(move |partition: Partition| partition.worker(peers, processes) == index);
        Ok(SimFeed::new(topic, clocks, known, mine))
    };
    let (source, _durable) =
        graph::build(worker, &setup.plan, &config, shards, open_feed, open_ledger, run_state);
    loop {
        if did.send(worker.has_dataflows()).is_err() || my_turn.recv().is_err() {
            return;
        }
        source.activate();
        worker.step();
    }
}
