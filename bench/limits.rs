//! What `scripts/bench` measures beside the program itself: how fast records can be had at all, and
//! parts of the job without the world around them. Not for users; it ships nowhere.
//!
//! Each subcommand does one thing once and prints one line of `name value` pairs; `scripts/bench`
//! repeats, takes turns, and compares.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use sessionizer::commands::produce::event::WebEvent;
use sessionizer::commands::produce::generate::{Generator, Recipe};
use sessionizer::commands::produce::pace::Pace;
use sessionizer::config;
use sessionizer::config::Problems;
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
use sessionizer::dataflow::statistics::window::Bounds;
use sessionizer::job::clock::now_ms;
use sessionizer::job::recover::assemble;
use sessionizer::kafka::{Admin, KafkaConfig, Publisher, Range, create_topic, scan};
use sessionizer::ledger::{NamedEpoch, RecoveredState};
use sessionizer_core::alignment::Drift;
use sessionizer_core::binding::{Late, Offset, Partition, Rules};
use sessionizer_core::fault::Fault;
use sessionizer_core::key::Shard;
use sessionizer_core::plan::{Fence, RecoveryPlan, ShardProgress};
use sessionizer_core::session::SessionTable;
use sessionizer_core::time::{Epoch, EpochLength, EventTime, Gap, tick};
use sessionizer_core::watermark::WatermarkConfig;

#[derive(Parser)]
enum Command {
    /// Reads the topic of the environment to its end and throws the records away
    Raw {
        /// Consumers, each with a thread and a share of the partitions
        #[arg(long, default_value_t = 1)]
        consumers: usize,
    },
    /// Runs the dataflow over generated events in memory, into a ledger that discards
    Compute {
        #[arg(short, long, default_value_t = 1)]
        workers: usize,
        #[arg(long, default_value_t = 5_000_000)]
        events: u64,
        #[arg(long, default_value_t = 50_000)]
        visitors: u64,
        #[arg(long, default_value_t = 4)]
        partitions: i32,
        /// Events a second of event time
        #[arg(long, default_value_t = 100)]
        density: u64,
        /// What is counted live: visitors, hosts or none
        #[arg(long, default_value = "none")]
        statistics: String,
    },
    /// Opens so many sessions in the dataflow, with keys of 30 bytes, and says what they take
    Memory {
        #[arg(short, long, default_value_t = 1)]
        workers: usize,
        #[arg(long, default_value_t = 1_000_000)]
        sessions: u64,
    },
    /// Writes events whose time is exactly that of their sending: eight a visitor, half a second
    /// apart
    Live {
        #[arg(long, default_value_t = 10_000.0)]
        rate: f64,
        #[arg(long, default_value_t = 60.0)]
        seconds: f64,
        #[arg(long, default_value_t = 4)]
        partitions: i32,
    },
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Raw { consumers } => raw(consumers),
        Command::Compute { workers, events, visitors, partitions, density, statistics: which } => {
            statistics(&which).and_then(|statistics| {
                compute(workers, (events, density), visitors, partitions, statistics)
            })
        }
        Command::Memory { workers, sessions } => memory(workers, sessions),
        Command::Live { rate, seconds, partitions } => live(rate, seconds, partitions),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("error: {fault}");
            ExitCode::from(fault.exit_code())
        }
    }
}

// ---- Kafka alone ---------------------------------------------------------------------------

fn kafka() -> Result<KafkaConfig, Fault> {
    let env = config::Environment::new(std::env::vars_os());
    let mut problems = Problems::new(&env);
    let config = config::read_kafka(&mut problems, &[], true, &env);
    config.filter(|_| problems.is_empty()).ok_or_else(|| problems.fault())
}

fn raw(consumers: usize) -> Result<(), Fault> {
    let config = kafka()?;
    let cluster = Admin::new(&config)?;
    let topic = &config.topics[0];
    let count = cluster.topics(Duration::from_secs(10), || false)?[0];
    let mut shares = vec![Vec::new(); consumers.clamp(1, count as usize)];
    for partition in 0..count {
        let (start, end) = cluster.offsets(topic, partition)?;
        let share = partition as usize % shares.len();
        shares[share].push(Range { topic: topic.clone(), partition, start, end });
    }
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let read = |ranges: Vec<Range>| {
        let config = config.clone();
        thread::spawn(move || {
            let (mut records, mut bytes, mut first) = (0u64, 0u64, None);
            scan(
                &config,
                &ranges,
                || false,
                |_, record| {
                    first.get_or_insert_with(Instant::now);
                    records += 1;
                    bytes += record.payload.map_or(0, |payload| payload.len() as u64);
                    true
                },
            )?;
            Ok((records, bytes, first))
        })
    };
    let threads: Vec<_> = shares.into_iter().map(read).collect();
    let (mut records, mut bytes, mut first) = (0, 0, began);
    for (at, thread) in threads.into_iter().enumerate() {
        let (more, more_bytes, begin) = thread.join().expect("a consumer does not panic")?;
        records += more;
        bytes += more_bytes;
        // The job is timed from its first commit on, so this from the first record on.
        let begin = begin.unwrap_or(began);
        first = if at == 0 { begin } else { first.min(begin) };
    }
    let (seconds, cpu) = (first.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    println!("records {records} bytes {bytes} seconds {seconds:.3} cpu {cpu:.2}");
    Ok(())
}

fn live(rate: f64, seconds: f64, partitions: i32) -> Result<(), Fault> {
    // How many visitors are there at once, and how many events each sends.
    let (at_once, events) = ((rate / 2.0).max(1.0) as u64, 8);
    let config = kafka()?;
    create_topic(&config, partitions)?;
    let publisher = Publisher::new(&config, "none")?;
    let (began, mut pace) = (Instant::now(), Pace::new(rate));
    let mut sent = 0;
    while began.elapsed().as_secs_f64() < seconds {
        for _ in 0..pace.due(began.elapsed()) {
            // They begin and end at different times: some at every moment.
            let (place, round) = (sent % at_once, sent / at_once);
            let visitor = place + (round + place % events) / events * at_once;
            let event = event(visitor, now_ms() as i64);
            publisher.send(Some(&event.ip), Some(&event.to_json()))?;
            sent += 1;
        }
        thread::sleep(Duration::from_millis(1));
    }
    publisher.flush()?;
    println!("records {sent} seconds {:.3}", began.elapsed().as_secs_f64());
    Ok(())
}

/// An event of about 360 bytes; `ip` and `host` have 15 each.
fn event(visitor: u64, event_time_ms: i64) -> WebEvent<'static> {
    let octet = |shift: u32| (visitor >> shift) & 255;
    let ip = format!("1{:02}.{:03}.{:03}.{:03}", octet(24), octet(16), octet(8), octet(0));
    WebEvent {
        url: "/blog/what-a-session-is?page=2".into(),
        referrer: "https://www.example.org/blog".into(),
        user_agent: "Mozilla/5.0 (X11; Linux x86_64; rv:131.0) Gecko/20100101 Firefox/131.0".into(),
        host: "www.example.org".into(),
        ip: ip.into(),
        headers: vec![
            ("accept".into(), "text/html,application/xhtml+xml".into()),
            ("accept-language".into(), "en-GB,en;q=0.5".into()),
        ],
        event_time_ms,
    }
}

// ---- the dataflow alone --------------------------------------------------------------------

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
struct Times(Mutex<Option<(Instant, Instant)>>);

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
struct Setup {
    workers: usize,
    gap: Gap,
    epoch_ms: u64,
    until_end: bool,
    plan: Arc<RecoveryPlan>,
    run_state: Arc<RunState>,
    times: Arc<Times>,
    statistics: Option<StatisticsConfig>,
}

impl Setup {
    fn new(workers: usize, ends: Vec<Option<Offset>>, gap_ms: i64, epoch_ms: u64) -> Self {
        let base =
            NamedEpoch { epoch: 0, watermark: EventTime::NEVER, rules: None, bindings: Vec::new() };
        let progress = vec![ShardProgress::default(); 128];
        let durable =
            RecoveredState { fence: Fence::default(), progress, base, replay: Vec::new() };
        let rules = Rules { max_future_ms: 300_000, late: Late::Merge };
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
    fn run<F: Feed + 'static>(
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
            let shape = DataflowConfig {
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
                // None is taken but the last.
                snapshot_interval_ms: 86_400_000,
                writers: self.workers as u32,
                gather_from_rows: 0,
                drive: WriterDriver::Threads,
                on_changes: Arc::new(|_, _| ()),
                statistics: self.statistics.clone(),
            };
            let times = Arc::clone(&self.times);
            let (_source, _durable) = graph::build(
                worker,
                &self.plan,
                &shape,
                shards,
                |_| Ok(open_feed()),
                Arc::new(move |_| Ok(Box::new(Discard(Arc::clone(&times))))),
                &self.run_state,
            );
            while worker.has_dataflows() && !self.run_state.failed() {
                worker.step_or_park(Some(Duration::from_millis(100)));
            }
        });
        for result in guards.map_err(Fault::Environment)?.join() {
            result.expect("a worker does not panic");
        }
        run_state.fault().map_or(Ok(()), Err)
    }
}

/// The statistics of a run whose table is empty at the start, seen by nobody.
fn statistics(which: &str) -> Result<Option<StatisticsConfig>, Fault> {
    let visitors = match which {
        "none" => return Ok(None),
        "hosts" => 0,
        "visitors" => 1_000_000,
        _ => return Err(Fault::Config(format!("--statistics {which}: visitors, hosts or none"))),
    };
    let bounds = Bounds::day(10_000, visitors);
    let on_statistics: OnStatistics = Arc::new(move |published| {
        std::hint::black_box(Board::of(published, bounds));
    });
    let (every_ms, end_after_ms, past) = (1_000, 300_000, None);
    let anomalies = None;
    Ok(Some(StatisticsConfig { bounds, every_ms, end_after_ms, past, on_statistics, anomalies }))
}

fn compute(
    workers: usize,
    (events, density): (u64, u64),
    visitors: u64,
    partitions: i32,
    statistics: Option<StatisticsConfig>,
) -> Result<(), Fault> {
    let recipe = Recipe {
        number: Some(events),
        rate: density as f64,
        visitors,
        disorder_ms: 10_000,
        odd: 0.0,
        ..Recipe::default()
    };
    let mut logs: Vec<Log> = (0..partitions).map(|_| Log::default()).collect();
    for record in Generator::new(recipe).map_err(Fault::Config)? {
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
    println!("records {events} rows {rows} seconds {seconds:.3} cpu {cpu:.2} peak_kib {peak}");
    Ok(())
}

// ---- memory --------------------------------------------------------------------------------

/// Partitions of which every record is the first event of another visitor; made as they are read.
struct Crowd {
    partitions: usize,
    /// How many visitors come to each partition.
    visitors: u64,
    positions: BTreeMap<Partition, u64>,
    /// How many more records there are before the next epoch: what waits to be applied is not what
    /// is measured.
    budget: u64,
}

const CROWD_PER_EPOCH: u64 = 50_000;
const CROWD_PARTITIONS: usize = 4;

impl Feed for Crowd {
    fn assign(&mut self, partition: Partition, start: Offset) -> Result<(), Fault> {
        self.positions.insert(partition, start.get() as u64);
        Ok(())
    }

    fn read(
        &mut self,
        partition: Partition,
        _: Option<Offset>,
        limit: usize,
        take: &mut dyn FnMut(Record<'_>) -> bool,
    ) -> Result<Stopped, Fault> {
        let position = self.positions.get_mut(&partition).expect("assigned");
        let count = (self.visitors - *position).min(limit as u64).min(self.budget);
        for _ in 0..count {
            self.budget -= 1;
            let visitor = *position * self.partitions as u64 + partition.number as u64;
            // A minute in all, whatever their number.
            let ms = 1_700_000_000_000 + (*position * 60_000 / self.visitors) as i64;
            let payload = event(visitor, ms).to_json();
            let on =
                take(Record { offset: Offset::new(*position as i64), payload: Some(&payload) });
            *position += 1;
            if !on {
                break;
            }
        }
        let more = *position < self.visitors && self.budget > 0;
        Ok(if more { Stopped::AtLimit } else { Stopped::Waiting })
    }

    fn position(&self, partition: Partition) -> Offset {
        Offset::new(self.positions[&partition] as i64)
    }

    fn quiet_ms_ago(&self, _: Partition) -> Option<u64> {
        None
    }

    fn service(&mut self) -> Result<Vec<(Partition, Offset)>, Fault> {
        self.budget = CROWD_PER_EPOCH;
        Ok(Vec::new())
    }

    fn durable(&mut self, _: &BTreeMap<Partition, Offset>) {}
}

fn memory(workers: usize, sessions: u64) -> Result<(), Fault> {
    let visitors = sessions / CROWD_PARTITIONS as u64;
    let setup = Setup::new(workers, vec![None; CROWD_PARTITIONS], 7_200_000, 50);
    let run_state = Arc::clone(&setup.run_state);
    let before = memory_kib("VmRSS");
    thread::spawn(move || {
        setup.run(move || Crowd {
            partitions: CROWD_PARTITIONS,
            visitors,
            positions: BTreeMap::new(),
            budget: 0,
        })
    });
    let all = (visitors * CROWD_PARTITIONS as u64) as i64;
    while run_state.metrics.open_sessions.load(Relaxed) < all {
        if let Some(fault) = run_state.fault() {
            return Err(fault);
        }
        thread::sleep(Duration::from_millis(50));
    }
    thread::sleep(Duration::from_millis(500));
    let (now, peak) = (memory_kib("VmRSS"), memory_kib("VmHWM"));
    println!("sessions {all} before_kib {before} rss_kib {now} peak_kib {peak}");
    // The workers go on for ever; nothing they hold is worth taking apart.
    std::process::exit(0);
}

// ---- this process --------------------------------------------------------------------------

/// User and system time of all threads so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux has /proc");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number of ticks");
    // The kernel counts in hundredths for whoever looks from outside, on every architecture.
    (ticks(11) + ticks(12)) / 100.0
}

/// A line of `/proc/self/status` that is in KiB.
fn memory_kib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has /proc");
    let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}
