//! The dataflow alone: from memory into a ledger that discards.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sessionizer::commands::produce::generate::{Generator, Recipe};
use sessionizer::dataflow::anomalies::AnomaliesConfig;
use sessionizer::dataflow::commit::WriterDriver;
use sessionizer::dataflow::graph;
use sessionizer::dataflow::graph::DataflowConfig;
use sessionizer::dataflow::ports::{Batch, Feed, Ledger, LedgerError, Outcome, Record, Stopped};
use sessionizer::dataflow::run_state::RunState;
use sessionizer::dataflow::sessions::LoadedShard;
use sessionizer::dataflow::source::{SourceConfig, WorldClocks};
use sessionizer::dataflow::statistics::StatisticsConfig;
use sessionizer::dataflow::statistics::board::Board;
use sessionizer::dataflow::statistics::publish::OnStatistics;
use sessionizer::dataflow::statistics::quota::Quotas;
use sessionizer::dataflow::statistics::window::Bounds;
use sessionizer::job::clock::now_ms;
use sessionizer::job::recover::assemble;
use sessionizer::ledger::{NamedEpoch, RecoveredState};
use sessionizer_core::alignment::Drift;
use sessionizer_core::anomaly::{DetectorBounds, Kind, Thresholds};
use sessionizer_core::binding::{Late, Offset, Partition, RecordRules};
use sessionizer_core::fault::Fault;
use sessionizer_core::key::Shard;
use sessionizer_core::plan::{Fence, RecoveryPlan, ShardProgress};
use sessionizer_core::session::SessionTable;
use sessionizer_core::time::{Epoch, EpochLength, EventTime, Gap, tick};
use sessionizer_core::watermark::WatermarkConfig;

use crate::{cpu_seconds, memory_kib};

/// A partition in memory.
#[derive(Default)]
struct Log {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Log {
    fn push(&mut self, payload: &[u8]) {
        self.bytes.extend_from_slice(payload);
        self.ends.push(self.bytes.len());
    }

    fn record(&self, at: usize) -> &[u8] {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.bytes[start..self.ends[at]]
    }
}

/// When the first record was read and the last epoch committed.
#[derive(Default)]
pub struct Times(Mutex<Option<(Instant, Instant)>>);

impl Times {
    /// Something was read or committed now.
    fn note(&self) {
        let now = Instant::now();
        self.0.lock().expect("not poisoned").get_or_insert((now, now)).1 = now;
    }

    fn seconds(&self) -> f64 {
        let (first, last) = self.0.lock().expect("not poisoned").expect("something was read");
        (last - first).as_secs_f64()
    }
}

/// Partitions that are there from the start and do not grow.
struct Stored {
    times: Arc<Times>,
    logs: Arc<Vec<Log>>,
    positions: BTreeMap<Partition, usize>,
}

impl Feed for Stored {
    fn assign(&mut self, partition: Partition, start: Offset) -> Result<(), Fault> {
        self.positions.insert(partition, start.get() as usize);
        Ok(())
    }

    fn read(
        &mut self,
        partition: Partition,
        end: Option<Offset>,
        limit: usize,
        take: &mut dyn FnMut(Record<'_>) -> bool,
    ) -> Result<Stopped, Fault> {
        let log = &self.logs[partition.number as usize];
        let position = self.positions.get_mut(&partition).expect("assigned");
        if *position == 0 {
            self.times.note();
        }
        let until = end.map_or(log.ends.len(), |end| log.ends.len().min(end.get() as usize));
        let mut to = until.min(*position + limit);
        for at in *position..to {
            if !take(Record { offset: Offset::new(at as i64), payload: Some(log.record(at)) }) {
                to = at + 1;
                break;
            }
        }
        *position = to;
        Ok(match to < until {
            true => Stopped::AtLimit,
            false if end.is_some_and(|end| to >= end.get() as usize) => Stopped::AtEnd,
            false => Stopped::Waiting,
        })
    }

    fn position(&self, partition: Partition) -> Offset {
        Offset::new(self.positions[&partition] as i64)
    }

    fn quiet_ms_ago(&self, partition: Partition) -> Option<u64> {
        let all = self.logs[partition.number as usize].ends.len();
        (self.positions[&partition] == all).then_some(0)
    }

    fn service(&mut self) -> Result<Vec<(Partition, Offset)>, Fault> {
        Ok(Vec::new())
    }

    fn durable(&mut self, _: &BTreeMap<Partition, Offset>) {}
}

/// Takes everything and keeps nothing.
struct Discard(Arc<Times>);

impl Ledger for Discard {
    fn commit(&mut self, _: &Batch, _: &mut Outcome) -> Result<(), LedgerError> {
        self.0.note();
        Ok(())
    }

    fn progress(&mut self, _: &[Shard]) -> Result<Vec<Epoch>, LedgerError> {
        unreachable!("nobody asks what became of a commit that never fails")
    }
}

/// The rest of what the dataflow needs.
#[derive(Clone)]
pub struct Setup {
    workers: usize,
    gap: Gap,
    epoch_ms: u64,
    until_end: bool,
    plan: Arc<RecoveryPlan>,
    pub run_state: Arc<RunState>,
    times: Arc<Times>,
    statistics: Option<StatisticsConfig>,
}

impl Setup {
    pub fn new(workers: usize, ends: Vec<Option<Offset>>, gap_ms: i64, epoch_ms: u64) -> Self {
        let base =
            NamedEpoch { epoch: 0, watermark: EventTime::NEVER, rules: None, bindings: Vec::new() };
        let progress = vec![ShardProgress::default(); 128];
        let durable =
            RecoveredState { fence: Fence::default(), progress, base, replay: Vec::new() };
        let rules = RecordRules { max_future_ms: 300_000, late: Late::Merge };
        let topics = ["events".to_owned()];
        let first = tick(now_ms(), epoch_ms);
        let counts = [ends.len() as i32];
        let plan = assemble(&durable, &topics, &counts, first, rules);
        let mut plan = plan.expect("nothing is missing");
        let until_end = ends.iter().all(Option::is_some);
        plan.partitions.iter_mut().zip(ends).for_each(|(part, end)| part.until = end);
        let gap = Gap::from_millis(gap_ms).expect("a gap is positive");
        let (plan, run_state, times) = (Arc::new(plan), Arc::default(), Arc::default());
        let statistics = None;
        Setup { workers, gap, epoch_ms, until_end, plan, run_state, times, statistics }
    }

    /// Runs until nothing is left to do.
    pub fn run<F: Feed + 'static>(
        self,
        open_feed: impl Fn() -> F + Send + Sync + 'static,
    ) -> Result<(), Fault> {
        let run_state = Arc::clone(&self.run_state);
        let communication = match self.workers {
            1 => timely::CommunicationConfig::Thread,
            several => timely::CommunicationConfig::Process(several),
        };
        let timely = timely::Config { communication, worker: timely::WorkerConfig::default() };
        let began = Instant::now();
        let guards = timely::execute(timely, move |worker| {
            let open = |shard| {
                let table = SessionTable::new(self.gap, EventTime::NEVER);
                LoadedShard { shard, epoch: 0, table }
            };
            let shards = self.plan.shards_of(worker.index(), worker.peers()).map(open).collect();
            let config = self.config(began);
            let times = Arc::clone(&self.times);
            let (_source, _durable) = graph::build(
                worker,
                &self.plan,
                &config,
                shards,
                |_| Ok(open_feed()),
                Arc::new(move |_| Ok(Box::new(Discard(Arc::clone(&times))))),
                &self.run_state,
            );
            while worker.has_dataflows() && !self.run_state.failed() {
                worker.step_or_park(Some(Duration::from_millis(100)));
            }
        });
        for result in guards.map_err(Fault::environment)?.join() {
            result.expect("a worker does not panic");
        }
        run_state.fault().map_or(Ok(()), Err)
    }

    fn config(&self, began: Instant) -> DataflowConfig {
        DataflowConfig {
            source: SourceConfig {
                processes: 1,
                epochs: EpochLength::of_millis(self.epoch_ms),
                watermark: WatermarkConfig {
                    out_of_orderness_ms: 15_000,
                    idle_timeout_ms: 3_600_000,
                },
                gap: self.gap,
                dead_letter_bytes: 1_000,
                until_end: self.until_end,
                clocks: WorldClocks {
                    elapsed_ms: Arc::new(move || began.elapsed().as_millis() as u64),
                    wall_ms: Arc::new(now_ms),
                },
                alarm: true,
            },
            drift: Drift { most_ms: 3_600_000, sessions: 0 },
            // Longer than any run: only the last snapshot is taken.
            snapshot_interval_ms: 86_400_000,
            writers: self.workers as u32,
            gather_from_rows: 0,
            driver: WriterDriver::Threads,
            on_changes: Arc::new(|_, _| ()),
            statistics: self.statistics.clone(),
        }
    }
}

/// The statistics of a run whose table is empty at the start, seen by nobody.
pub fn statistics(which: &str) -> Result<Option<StatisticsConfig>, Fault> {
    let visitors = match which {
        "none" => return Ok(None),
        "hosts" | "anomalies" => 0,
        "visitors" => 1_000_000,
        _ => {
            let all = "visitors, hosts, anomalies (with hosts) or none";
            return Err(Fault::config(format!("--statistics {which}: {all}")));
        }
    };
    let bounds = Bounds::day(10_000, visitors);
    let on_statistics: OnStatistics = Arc::new(move |published| {
        std::hint::black_box(Board::of(published, bounds));
    });
    let (every_ms, end_after_ms, closes_after_ms, past) = (1_000, 300_000, 0, None);
    let anomalies = (which == "anomalies").then(|| AnomaliesConfig {
        thresholds: Thresholds::default(),
        kinds: Kind::ALL.to_vec(),
        bounds: DetectorBounds { hosts: 10_000, visitors: 1_000_000 },
        out_of_orderness_ms: 15_000,
        idle_timeout_ms: 30_000,
        on_anomalies: Arc::new(|published| {
            std::hint::black_box(published.live.len());
        }),
    });
    let config = StatisticsConfig {
        bounds,
        quotas: Quotas::default(),
        every_ms,
        end_after_ms,
        closes_after_ms,
        past,
        on_statistics,
        anomalies,
    };
    Ok(Some(config))
}

/// Reads generated events from memory, and writes nothing.
pub fn compute(
    workers: usize,
    (events, density): (u64, u64),
    (visitors, hosts): (u64, Option<u64>),
    partitions: i32,
    statistics: Option<StatisticsConfig>,
) -> Result<(), Fault> {
    let names = |hosts: u64| (0..hosts).map(|n| format!("host-{n}.example")).collect();
    let recipe = Recipe {
        hosts: hosts.map_or_else(|| Recipe::default().hosts, names),
        number: Some(events),
        rate: density as f64,
        visitors,
        disorder_ms: 10_000,
        odd: 0.0,
        ..Recipe::default()
    };
    let mut logs: Vec<Log> = (0..partitions).map(|_| Log::default()).collect();
    for record in Generator::new(recipe).map_err(Fault::config)? {
        let key = record.key.expect("generated records have one");
        let hash = sessionizer_core::key::stable_hash(key.as_bytes());
        let payload = record.payload.expect("only bad records have none");
        logs[hash as usize % partitions as usize].push(&payload);
    }
    let ends = logs.iter().map(|log| Some(Offset::new(log.ends.len() as i64))).collect();
    let logs = Arc::new(logs);
    let mut setup = Setup::new(workers, ends, 300_000, 1_000);
    setup.statistics = statistics;
    let (run_state, times) = (Arc::clone(&setup.run_state), Arc::clone(&setup.times));
    let (reads, cpu) = (Arc::clone(&times), cpu_seconds());
    setup.run(move || Stored {
        times: Arc::clone(&reads),
        logs: Arc::clone(&logs),
        positions: BTreeMap::new(),
    })?;
    let (seconds, cpu) = (times.seconds(), cpu_seconds() - cpu);
    let rows = run_state.metrics.rows.load(Relaxed);
    let peak = memory_kib("VmHWM");
    let window = &run_state.metrics.figures.window;
    let [hosts, visitors] = [&window.hosts, &window.visitors].map(|kept| kept.load(Relaxed));
    let judged = window.detectors.visitors.load(Relaxed);
    println!(
        "records {events} rows {rows} seconds {seconds:.3} cpu {cpu:.2} peak_kib {peak} hosts \
         {hosts} visitors {visitors} judged {judged}"
    );
    Ok(())
}
