//! The reader: reads the partitions of one worker, decodes, cuts epochs and binds them.
//!
//! It has two phases. In the *replay* it steps through the bound epochs of the plan and reads
//! exactly what each binding says (`replay.rs`). *Live*, an epoch is a tick of the epochs' clock,
//! which follows elapsed time (`live.rs`). Records read during the tick belong to the epoch; at its
//! end the reader binds it and moves on. Whether an event is too far in the future is decided by
//! the wall clock at the beginning of the epoch, and that clock is bound as well. All chance ends
//! here: after the source, the content of an epoch is a function of its binding (I2).
//!
//! The first live epoch is cut before anything is read in it: its binding records where reading
//! begins. The same holds for a partition that is found later: its first binding is its start.
//!
//! The reader never runs more than `EPOCHS_IN_FLIGHT` epochs ahead of what is durable, and reads
//! nothing while the memory for data in flight is used up, so a slow or absent Postgres stops the
//! reading. Epochs still end, and sooner, because what they hold is released once it is durable.
//! While memory is used up, a bound epoch is replayed only once everything before it is durable,
//! but then whole, however much it takes.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use sessionizer_core::binding::{Binding, BoundEpoch, Late, Offset, Partition, RecordRules};
use sessionizer_core::fault::Fault;
use sessionizer_core::plan::{PartitionPlan, RecoveryPlan};
use sessionizer_core::time::{Epoch, EventTime};
use sessionizer_core::watchdog::Watchdog;
use sessionizer_core::watermark::{WatermarkBound, WatermarkConfig, WatermarkGenerator};
use timely::dataflow::operators::probe;

use crate::dataflow::EPOCHS_IN_FLIGHT;
use crate::dataflow::budget::ChargeKind;
use crate::dataflow::feedback::Feedback;
use crate::dataflow::figures::WorkerFigures;
use crate::dataflow::messages::{DeadLetter, Suspect};
use crate::dataflow::ports::{Feed, Record, Stopped};
use crate::dataflow::run_state::RunState;
use crate::dataflow::source::SourceConfig;
use crate::dataflow::source::clocks::Clocks;
use crate::dataflow::source::emit::{Emit, NextActivation};
use crate::dataflow::source::partition::Part;
use crate::dataflow::source::pause::Pause;
use crate::dataflow::source::route::{Routed, Router};
use crate::dataflow::source::settle::COUNT_INTERVAL_MS;
use crate::dataflow::span_batch::{SpanBatch, SpanBatchBuilder};

/// How many records one activation reads at most, over all partitions: this keeps the worker
/// responsive (about 50 ms of decoding).
pub(super) const RECORDS_PER_ACTIVATION: usize = 65_536;
/// How long a reader sleeps while too much is in flight.
pub(super) const WAIT_INTERVAL: Duration = Duration::from_millis(10);

pub(super) enum Phase {
    /// The bound epochs that are still to be replayed.
    Replay(VecDeque<BoundEpoch>),
    Live,
    /// Everything is cut, and the reader waits for it to become durable.
    Stopped,
}

/// An epoch that is cut and not yet durable.
pub(super) struct InFlight {
    pub(super) epoch: Epoch,
    /// The end offsets that become durable with it.
    pub(super) ends: Vec<(Partition, Offset)>,
}

/// The partitions of one worker, and how far it has read them.
pub struct Reader<F> {
    pub(super) worker: usize,
    pub(super) plan: Arc<RecoveryPlan>,
    pub(super) config: SourceConfig,
    pub(super) run_state: Arc<RunState>,
    pub(super) durable: probe::Handle<Epoch>,
    pub(super) feedback: Rc<Feedback>,
    pub(super) clocks: Clocks,
    pub(super) feed: F,
    pub(super) phase: Phase,
    /// The epoch that records are read into; every earlier one is cut.
    pub(super) epoch: Epoch,
    /// How many records have been read into it so far.
    pub(super) records: usize,
    /// The wall clock at the beginning of the epoch: its events are checked against it.
    pub(super) wall_ms: u64,
    pub(super) parts: Vec<Part>,
    pub(super) turn: usize,
    /// An upper bound of the watermark before this epoch.
    pub(super) watermark: WatermarkBound,
    /// New partitions that are not yet read.
    pub(super) found: Vec<(Partition, Offset)>,
    /// Epochs that are cut and not yet durable.
    pub(super) in_flight: VecDeque<InFlight>,
    /// Watches the oldest of them; only one source of a process does.
    pub(super) watchdog: Option<Watchdog<Epoch>>,
    /// How much may be read.
    pub(super) pause: Pause,
    /// End offsets that are durable but not yet reported to the broker.
    pub(super) settled: BTreeMap<Partition, Offset>,
    pub(super) group_committed_ms: u64,
    /// The last count of what is available to read: records, partitions without a known end, and
    /// when that was.
    pub(super) counted: (i64, i64, u64),
    /// Events of the epoch that have been read and not yet sent.
    pub(super) builder: SpanBatchBuilder,
    pub(super) scratch: Vec<u8>,
    pub(super) figures: Arc<WorkerFigures>,
}

/// Where a reader is: it says which partitions are its own.
#[derive(Clone, Copy)]
struct Place {
    worker: usize,
    peers: usize,
    processes: usize,
}

impl Place {
    /// The bound epochs, each with the bindings of this reader alone.
    fn part_of(self, replay: &[BoundEpoch]) -> VecDeque<BoundEpoch> {
        let Place { worker, peers, processes } = self;
        let mine = |binding: &&Binding| binding.partition.worker(peers, processes) == worker;
        let part = |bound: &BoundEpoch| BoundEpoch {
            bindings: bound.bindings.iter().filter(mine).copied().collect(),
            ..bound.clone()
        };
        replay.iter().map(part).collect()
    }
}

/// Assigns the partitions of a reader to its feed, where reading them begins.
fn assign<F: Feed>(
    plan: &RecoveryPlan,
    watermark: WatermarkConfig,
    feed: &mut F,
    Place { worker, peers, processes }: Place,
) -> Result<Vec<Part>, Fault> {
    let mut parts = Vec::new();
    for plan_of in plan.partitions_of(worker, (peers, processes)) {
        let PartitionPlan { start, until, retired, restart, oldest, .. } = *plan_of;
        // A topic that is no longer read may no longer exist: it is touched only if the replay
        // needs its records.
        let mut replayed = plan.replay.iter().flat_map(|bound| &bound.bindings);
        let needed =
            !retired || replayed.any(|b| b.partition == start.partition && b.end > start.end);
        let assigned = needed && restart.is_none();
        if assigned {
            feed.assign(start.partition, start.end.max(oldest))?;
        }
        let generator = WatermarkGenerator::resume(watermark, start, plan.first_epoch);
        parts.push(Part { until, retired, assigned, restart, ..Part::new(generator) });
    }
    Ok(parts)
}

impl<F: Feed> Reader<F> {
    /// Creates the reader of a worker and assigns its partitions to the feed.
    pub fn new(
        plan: &Arc<RecoveryPlan>,
        config: SourceConfig,
        run_state: Arc<RunState>,
        durable: probe::Handle<Epoch>,
        mut feed: F,
        (worker, peers): (usize, usize),
        feedback: Rc<Feedback>,
    ) -> Result<Self, Fault> {
        let processes = config.processes;
        let place = Place { worker, peers, processes };
        let parts = assign(plan, config.watermark, &mut feed, place)?;
        let replay = place.part_of(&plan.replay);
        run_state.metrics.replay_epochs.fetch_add(replay.len() as u64, Relaxed);
        run_state.metrics.readers.fetch_add(1, Relaxed);
        run_state.metrics.figures.name_topics(&plan.topics);
        let figures = run_state.metrics.figures.worker(worker);
        run_state.metrics.ends_unknown.fetch_add(parts.len() as i64, Relaxed);
        let counted = (0, parts.len() as i64, 0);
        let epoch = replay.front().map_or(plan.first_epoch, |bound| bound.epoch);
        let replays = !replay.is_empty();
        let builder = SpanBatchBuilder::new(config.gap, plan.shards(), peers);
        let watches = worker.is_multiple_of(peers / processes);
        let clocks = Clocks::new(
            config.clocks.clone(),
            plan.first_epoch,
            watches.then_some(config.epochs.ms),
            plan.rules.max_future_ms,
        );
        let pause = Pause::new(&run_state, worker, watches);
        let mut reader = Reader {
            worker,
            plan: Arc::clone(plan),
            config,
            run_state,
            durable,
            feedback,
            clocks,
            feed,
            phase: Phase::Replay(replay),
            epoch,
            records: 0,
            wall_ms: 0,
            parts,
            turn: 0,
            watermark: WatermarkBound::new(plan.base_watermark),
            found: Vec::new(),
            in_flight: VecDeque::new(),
            watchdog: watches.then(Watchdog::default),
            pause,
            settled: BTreeMap::new(),
            group_committed_ms: 0,
            counted,
            builder,
            scratch: Vec::new(),
            figures,
        };
        if !replays {
            reader.go_live()?;
        }
        Ok(reader)
    }

    /// One activation: notes what has become durable, reads and cuts into `emit`, and returns when
    /// to activate the reader again.
    pub fn activate(&mut self, emit: &mut Emit) -> Result<NextActivation, Fault> {
        self.settle();
        let next = self.advance(emit)?;
        self.flush(emit);
        let now_ms = self.clocks.elapsed_ms();
        if now_ms.saturating_sub(self.counted.2) >= COUNT_INTERVAL_MS {
            self.count_available(now_ms);
        }
        Ok(next)
    }

    /// The epoch to downgrade the capabilities to; `None` drops them.
    pub fn frontier(&self) -> Option<Epoch> {
        match self.phase {
            Phase::Stopped => None,
            Phase::Replay(_) | Phase::Live => Some(self.epoch),
        }
    }

    /// Does the work of the current phase, unless too many epochs are in flight.
    fn advance(&mut self, emit: &mut Emit) -> Result<NextActivation, Fault> {
        match &self.phase {
            Phase::Stopped if self.in_flight.is_empty() => Ok(NextActivation::Done),
            Phase::Stopped => Ok(NextActivation::After(WAIT_INTERVAL)),
            _ if self.in_flight.len() >= EPOCHS_IN_FLIGHT && !self.run_state.stopping() => {
                Ok(NextActivation::After(WAIT_INTERVAL))
            }
            Phase::Replay(_) => self.replay(emit),
            Phase::Live => self.live(emit),
        }
    }

    /// Begins a new epoch, which records are read into from now on.
    pub(super) fn begin(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        self.wall_ms = self.clocks.wall_ms();
    }

    /// The rules that the current epoch is bound with.
    fn rules(&self) -> RecordRules {
        match &self.phase {
            Phase::Replay(replay) => replay.front().map_or(self.plan.rules, |bound| bound.rules),
            Phase::Live | Phase::Stopped => self.plan.rules,
        }
    }

    /// Emits what has been read of the current epoch and not yet sent.
    pub(super) fn flush(&mut self, emit: &mut Emit) {
        let batches = self.builder.take();
        if !batches.is_empty() {
            let bytes = batches.iter().map(SpanBatch::size).sum();
            self.run_state.memory.charge(ChargeKind::Events, self.worker, self.epoch, bytes);
            Emit::at(&mut emit.arrivals, self.epoch).extend(batches);
        }
    }

    /// The index of a partition in `parts`.
    pub(super) fn part(&self, partition: Partition) -> usize {
        let found =
            self.parts.iter().position(|part| part.generator.bound().partition == partition);
        found.expect("a bound partition is in the plan")
    }

    /// Reads records of one partition into the current epoch, checks them against a clock, and
    /// subtracts them from `limit`. Stops once they have taken `most_bytes`.
    pub(super) fn read(
        &mut self,
        at: usize,
        end: Option<Offset>,
        clock_ms: u64,
        (limit, most_bytes): (&mut usize, u64),
        emit: &mut Emit,
    ) -> Result<Stopped, Fault> {
        let rules = self.rules();
        let Part { generator, .. } = &mut self.parts[at];
        let partition = generator.bound().partition;
        let router = Router {
            topic: self.plan.topic(partition),
            partition,
            shards: self.plan.shards(),
            epoch: self.epoch,
            latest: rules.latest(clock_ms),
            gap: self.config.gap,
            suspect_before: match rules.late {
                Late::Merge => EventTime::NEVER,
                Late::Drop => self.watermark.at_most(),
            },
            dead_letter_bytes: self.config.dead_letter_bytes,
        };
        let mut taken = Routed {
            arrivals: &mut self.builder,
            suspects: Emit::at(&mut emit.suspects, self.epoch),
            dead_letters: Emit::at(&mut emit.dead, self.epoch),
        };
        let (dead, suspects) = (taken.dead_letters.len(), taken.suspects.len());
        let (mut records, mut bytes) = (0, 0);
        let scratch = &mut self.scratch;
        let mut take = |record: Record<'_>| {
            records += 1;
            bytes += router.take(&record, generator, scratch, &mut taken);
            bytes < most_bytes
        };
        let stopped = self.feed.read(partition, end, *limit, &mut take)?;
        *limit -= records.min(*limit);
        self.records += records;
        self.run_state.metrics.records.fetch_add(records as u64, Relaxed);
        self.pause.take(bytes);
        let (dead, suspects) = (&taken.dead_letters[dead..], &taken.suspects[suspects..]);
        let read = &mut self.parts[at].read;
        *read = (read.0 + records as u64, read.1 + dead.len() as u64);
        self.run_state.metrics.dead.fetch_add(dead.len() as u64, Relaxed);
        self.run_state.metrics.figures.dead(dead, clock_ms);
        let memory = &self.run_state.memory;
        let bytes = dead.iter().map(DeadLetter::bytes).sum();
        memory.charge(ChargeKind::DeadLetters, self.worker, self.epoch, bytes);
        let bytes = suspects.iter().map(Suspect::bytes).sum();
        memory.charge(ChargeKind::Events, self.worker, self.epoch, bytes);
        Ok(stopped)
    }
}
