//! Turns what was typed into valid settings. Text in, settings out; the only I/O is `--env-file` and
//! files with secrets.
//!
//! Everything that is missing or wrong is collected and reported in one message, each with the name
//! of the variable or flag and what to do.

pub mod anomalies;
mod cluster;
mod env_file;
mod environment;
mod http;
pub mod kafka;
mod postgres;
mod problems;
mod secret_files;
#[cfg(test)]
mod tests;
pub mod value;

use std::path::PathBuf;
use std::time::Duration;

pub use anomalies::Anomalies;
use cluster::read_cluster_secret;
pub use environment::Environment;
pub use kafka::read_kafka;
pub use postgres::{read_job, read_ledger, read_ledger_alone, read_ledger_of, read_table};
pub use problems::Problems;
pub use secret_files::read_secret_files;
use sessionizer_core::alignment::Drift;
use sessionizer_core::binding::{Late, RecordRules};
use sessionizer_core::fault::Fault;
use sessionizer_core::rfc3339::parse_rfc3339;
use sessionizer_core::time::EventTime;
use sessionizer_core::watermark::WatermarkConfig;
pub use value::{duration_ms, is_pipe, list, name, number, read_file, size, whole};

use crate::cli::RunArgs;
use crate::cluster::SecretSource;
use crate::dataflow::changes::HOSTS;
use crate::dataflow::statistics::NeededPast;
use crate::dataflow::statistics::window::Bounds;
use crate::kafka::{KafkaConfig, StartAt};
use crate::ledger::LedgerConfig;
use crate::monitor::HttpConfig;

/// A valid configuration of the job.
#[derive(Clone, Debug)]
pub struct Config {
    /// Workers in each process.
    pub workers: usize,
    pub processes: usize,
    /// The index of this process.
    pub process: usize,
    pub hostfile: Option<PathBuf>,
    pub peer_timeout: Duration,
    /// The secret that the processes share.
    pub cluster_secret: Option<SecretSource>,
    pub cluster_insecure: bool,
    pub kafka: KafkaConfig,
    pub ledger: LedgerConfig,
    /// `None` if it was not given, so that a job does not begin on a table with rows by default.
    pub from: Option<StartAt>,
    pub accept_overlap: bool,
    pub until_end: bool,
    pub epoch_ms: u64,
    pub watermark: WatermarkConfig,
    /// How far a partition may be ahead of the slowest one that lags, in event time.
    pub drift: Drift,
    pub rules: RecordRules,
    pub accept_lost_offsets: bool,
    pub writers: u32,
    pub snapshot_interval_ms: u64,
    pub dead_letter_bytes: usize,
    /// How long dead letters are kept; `None` means for ever.
    pub keep_dead_letters: Option<Duration>,
    pub keep_anomalies: Option<Duration>,
    /// How many bytes of memory the data in flight may take.
    pub memory_bytes: u64,
    pub discovery_interval: Duration,
    pub start_timeout: Duration,
    pub stop_timeout: Duration,
    pub http: HttpConfig,
    /// The window of the live statistics; `None` if they are off. See [`Config::needed_past`].
    pub statistics: Option<Bounds>,
    pub anomalies: Anomalies,
}

/// Reads the settings of the job.
pub fn read(args: &RunArgs, env: &Environment) -> Result<Config, Fault> {
    try_read(args, env).map_err(Problems::fault)
}

/// The same; otherwise all that is wrong.
pub fn try_read<'a>(args: &RunArgs, env: &'a Environment) -> Result<Config, Problems<'a>> {
    let mut problems = Problems::new(env);
    let kafka = read_kafka(&mut problems, &args.kafka_config, true, env);
    let ledger = read_ledger(&mut problems, args, env);
    let processes = Processes::read(&mut problems, args);
    let times = Times::read(&mut problems, args);
    let cluster_secret = read_cluster_secret(&mut problems, args, env);
    let late = Late::named(args.late.trim())
        .ok_or_else(|| format!("is {:?}: it can be merge or drop", args.late));
    let late = problems.take("--late", late);
    let from = match &args.from {
        None => Some(None),
        Some(from) => problems.take("--from", read_from(from, env)).map(Some),
    };
    let kept = Kept::read(&mut problems, args);
    let memory_bytes = problems.take("--memory", size(&args.memory, 16, 1 << 20));
    let http = http::read_http(&mut problems, args);
    let statistics = read_statistics(&mut problems, args);
    let anomalies = anomalies::read(&mut problems, args);
    let drift_sessions =
        problems.take("--drift-sessions", whole(&args.drift_sessions, 0, u64::MAX));
    let all = || {
        let Processes { workers, processes, process, writers } = processes?;
        let (times, kept) = (times?, kept?);
        Some(Config {
            workers,
            processes,
            process,
            hostfile: args.hostfile.as_deref().filter(|path| !path.is_empty()).map(PathBuf::from),
            peer_timeout: times.peer_timeout,
            cluster_secret: cluster_secret.clone(),
            cluster_insecure: args.cluster_insecure,
            // A quarter is for what has been fetched and not yet read.
            kafka: KafkaConfig { queued_bytes: memory_bytes? / 4, ..kafka? },
            ledger: ledger?,
            from: from?,
            accept_overlap: args.accept_overlap,
            until_end: args.until_end,
            epoch_ms: times.epoch_ms,
            watermark: times.watermark,
            drift: Drift { most_ms: times.max_drift_ms, sessions: drift_sessions? },
            rules: RecordRules { max_future_ms: times.max_future_ms, late: late? },
            accept_lost_offsets: args.accept_lost_offsets,
            writers,
            snapshot_interval_ms: times.snapshot_interval_ms,
            dead_letter_bytes: kept.dead_letter_bytes,
            keep_dead_letters: kept.dead_letters,
            keep_anomalies: kept.anomalies,
            memory_bytes: memory_bytes?,
            discovery_interval: times.discovery_interval,
            start_timeout: times.start_timeout,
            stop_timeout: times.stop_timeout,
            http: http.clone()?,
            statistics: statistics?,
            anomalies: anomalies.clone()?,
        })
    };
    all().filter(|_| problems.is_empty()).ok_or(problems)
}

/// How the work is shared out.
#[derive(Clone, Copy)]
struct Processes {
    workers: usize,
    processes: usize,
    process: usize,
    writers: u32,
}

impl Processes {
    fn read(problems: &mut Problems<'_>, args: &RunArgs) -> Option<Self> {
        let workers = problems.take("--workers", whole(&args.workers, 1, 1_024));
        let processes = problems.take("--processes", whole(&args.processes, 1, 1_024));
        let last = processes.map_or(u64::MAX, |processes| processes - 1);
        let process = problems.take("--process", process(&args.process, last));
        let writers = match &args.sink_connections {
            Some(text) => problems.take("--sink-connections", whole(text, 1, 1_024)),
            // Fewer writers than workers are less work for Postgres, but in a cluster rows would
            // have to travel between processes.
            None => workers.zip(processes).map(|(workers, processes)| match processes {
                1 => workers.div_ceil(2),
                _ => workers * processes,
            }),
        };
        Some(Processes {
            workers: workers? as usize,
            processes: processes? as usize,
            process: process? as usize,
            writers: writers? as u32,
        })
    }
}

const HOUR_MS: u64 = 3_600_000;
const YEAR_MS: u64 = 366 * 24 * HOUR_MS;

/// The settings that are a length of time.
#[derive(Clone, Copy)]
struct Times {
    epoch_ms: u64,
    watermark: WatermarkConfig,
    max_drift_ms: i64,
    max_future_ms: i64,
    snapshot_interval_ms: u64,
    discovery_interval: Duration,
    start_timeout: Duration,
    stop_timeout: Duration,
    peer_timeout: Duration,
}

impl Times {
    fn read(problems: &mut Problems<'_>, args: &RunArgs) -> Option<Self> {
        let mut ms = |name: &str, text: &str, least: u64, most: u64| {
            problems.take(name, duration_ms(text, least, most))
        };
        let epoch = ms("--epoch", &args.epoch, 10, HOUR_MS);
        let out_of_orderness = ms("--out-of-orderness", &args.out_of_orderness, 0, YEAR_MS);
        let idle_timeout = ms("--idle-timeout", &args.idle_timeout, 1, YEAR_MS);
        let max_drift = ms("--max-drift", &args.max_drift, 0, YEAR_MS);
        let max_future = ms("--max-future", &args.max_future, 0, YEAR_MS);
        let snapshot_interval = ms("--snapshot-interval", &args.snapshot_interval, 100, YEAR_MS);
        let discovery = ms("--discovery-interval", &args.discovery_interval, 100, YEAR_MS);
        let start_timeout = ms("--start-timeout", &args.start_timeout, 0, YEAR_MS);
        let stop_timeout = ms("--stop-timeout", &args.stop_timeout, 100, HOUR_MS);
        let peer_timeout = ms("--peer-timeout", &args.peer_timeout, 1_000, HOUR_MS);
        Some(Times {
            epoch_ms: epoch?,
            watermark: WatermarkConfig {
                out_of_orderness_ms: out_of_orderness? as i64,
                idle_timeout_ms: idle_timeout?,
            },
            max_drift_ms: max_drift? as i64,
            max_future_ms: max_future? as i64,
            snapshot_interval_ms: snapshot_interval?,
            discovery_interval: Duration::from_millis(discovery?),
            start_timeout: Duration::from_millis(start_timeout?),
            stop_timeout: Duration::from_millis(stop_timeout?),
            peer_timeout: Duration::from_millis(peer_timeout?),
        })
    }
}

/// What is kept besides sessions: how much of a payload, and for how long. `None` means for ever.
#[derive(Clone, Copy)]
struct Kept {
    dead_letter_bytes: usize,
    dead_letters: Option<Duration>,
    anomalies: Option<Duration>,
}

impl Kept {
    fn read(problems: &mut Problems<'_>, args: &RunArgs) -> Option<Self> {
        let bytes = whole(&args.dead_letter_bytes, 0, 100_000_000);
        let bytes = problems.take("--dead-letter-bytes", bytes);
        let mut keep = |name: &str, text: &str| match text.trim() {
            "forever" => Some(None),
            text => {
                let ms = duration_ms(text, 1_000, 100 * YEAR_MS);
                let ms = problems.take(name, ms.map_err(|why| format!("{why}, or forever")));
                ms.map(|ms| Some(Duration::from_millis(ms)))
            }
        };
        let dead_letters = keep("--keep-dead-letters", &args.keep_dead_letters);
        let anomalies = keep("--keep-anomalies", &args.keep_anomalies);
        Some(Kept {
            dead_letter_bytes: bytes? as usize,
            dead_letters: dead_letters?,
            anomalies: anomalies?,
        })
    }
}

impl Config {
    /// How many visitors the detectors of anomalies keep; 0 if they judge none.
    pub fn judged_visitors(&self) -> usize {
        match (self.anomalies.judges_visitors(), self.statistics) {
            (true, Some(Bounds { visitors: 0, .. })) => VISITORS as usize,
            (true, Some(bounds)) => bounds.visitors,
            _ => 0,
        }
    }

    /// What the statistics and the anomalies need of the table at a start.
    pub fn needed_past(&self) -> Option<NeededPast> {
        Some(NeededPast {
            window: self.statistics?,
            anomalies: !self.anomalies.kinds.is_empty(),
            visitors: self.judged_visitors() > 0,
        })
    }

    /// What all processes of a job must agree on, by the names that users know. Server addresses
    /// and logins may be given to each process in its own way.
    pub fn shared(&self) -> Vec<(String, String)> {
        let Config { kafka, ledger, watermark, rules, drift, .. } = self;
        let visitors = self.statistics.map_or(0, |bounds| bounds.visitors);
        let ms = |ms: u64| humantime::format_duration(Duration::from_millis(ms)).to_string();
        let settings = [
            ("the version", env!("CARGO_PKG_VERSION").to_owned()),
            ("--processes", self.processes.to_string()),
            ("--workers", self.workers.to_string()),
            ("KAFKA_TOPIC", kafka.topics.join(",")),
            ("--job", ledger.job.clone()),
            ("--table", ledger.table.clone()),
            ("--shards", ledger.shards.to_string()),
            ("--gap", ms(ledger.gap.millis() as u64)),
            ("--session-end", ledger.session_end.name().to_owned()),
            ("--epoch", ms(self.epoch_ms)),
            ("--out-of-orderness", ms(watermark.out_of_orderness_ms as u64)),
            ("--idle-timeout", ms(watermark.idle_timeout_ms)),
            ("--max-future", ms(rules.max_future_ms as u64)),
            ("--late", rules.late.name().to_owned()),
            ("--until-end", self.until_end.to_string()),
            ("--sink-connections", self.writers.to_string()),
            ("--snapshot-interval", ms(self.snapshot_interval_ms)),
            ("--max-drift", ms(drift.most_ms as u64)),
            ("--drift-sessions", drift.sessions.to_string()),
            ("--dead-letter-bytes", self.dead_letter_bytes.to_string()),
            ("--statistics", what_is_counted(self.statistics).to_owned()),
            ("--statistics-visitors", visitors.to_string()),
            ("--anomalies", self.anomalies.shown()),
        ];
        settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// How many visitors are counted, unless `--statistics-visitors` says otherwise.
const VISITORS: u64 = 1_000_000;

/// Reads what is counted live. The inner `None` means nothing, the outer one a mistake.
fn read_statistics(problems: &mut Problems<'_>, args: &RunArgs) -> Option<Option<Bounds>> {
    let what = args.statistics.trim();
    let visitors = match &args.statistics_visitors {
        None => Ok(VISITORS),
        Some(_) if what != "visitors" => {
            Err(format!("has nothing to limit, because --statistics is {what}, not visitors"))
        }
        Some(most) => whole(most, 1, 100_000_000),
    };
    let visitors = problems.take("--statistics-visitors", visitors)? as usize;
    let what = match what {
        "visitors" => Ok(Some(Bounds::day(HOSTS, visitors))),
        "hosts" => Ok(Some(Bounds::day(HOSTS, 0))),
        "none" => Ok(None),
        other => Err(format!("is {other:?}: it can be visitors, hosts or none")),
    };
    problems.take("--statistics", what)
}

/// The value of `--statistics`.
fn what_is_counted(statistics: Option<Bounds>) -> &'static str {
    match statistics {
        Some(bounds) if bounds.visitors > 0 => "visitors",
        Some(_) => "hosts",
        None => "none",
    }
}

/// The index of a process, which is at most `last`.
fn process(text: &str, last: u64) -> Result<u64, String> {
    whole(text, 0, last.min(1_023)).map_err(|what| format!("{what} (--processes less one)"))
}

/// A time in milliseconds since 1970. Refuses a number that is probably in seconds: in milliseconds
/// it is a time long before Kafka existed.
fn milliseconds(ms: i64) -> Result<i64, String> {
    const YEAR_2000: i64 = 946_684_800_000;
    match (1..YEAR_2000).contains(&ms) {
        true => Err(format!(
            "is {ms}: in milliseconds since 1970 that is a time in {}; if it is in seconds, append 000",
            EventTime::from_millis(ms).to_string().get(..4).unwrap_or_default()
        )),
        false => Ok(ms),
    }
}

fn read_from(text: &str, env: &Environment) -> Result<StartAt, String> {
    match text.trim() {
        "earliest" => Ok(StartAt::Earliest),
        "latest" => Ok(StartAt::Latest),
        "group" => Ok(StartAt::Group(env.value("KAFKA_GROUP").unwrap_or_default())),
        other if other.starts_with("group:") => match other["group:".len()..].trim() {
            "" => Err("is \"group:\": the name of the consumer group is missing".to_owned()),
            name => Ok(StartAt::Group(name.to_owned())),
        },
        other if other.starts_with("savepoint:") => match other["savepoint:".len()..].trim() {
            "" => Err("is \"savepoint:\": the directory of the savepoint is missing".to_owned()),
            name => Ok(StartAt::Savepoint(name.to_owned())),
        },
        other => other
            .parse()
            .ok()
            .map(milliseconds)
            .transpose()?
            .or_else(|| parse_rfc3339(other.as_bytes()))
            .map(StartAt::Timestamp)
            .ok_or(format!(
                "is {other:?}: it can be earliest, latest, group, group:NAME, savepoint:DIR, a \
                 time like 2026-01-31T12:00:00Z or milliseconds since 1970"
            )),
    }
}
