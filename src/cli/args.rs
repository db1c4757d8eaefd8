//! The flags of each command. Every flag has an environment variable (SESSIONIZER_ and its name)
//! and a default that works.
//!
//! Values are taken as text: [`crate::config`] reads them, so that all mistakes are reported at
//! once and not one at a time. No flag names its variable: [`crate::cli::variables`] derives it.
//!
//! The file is long because the help of each flag is its manual.

use clap::{Args, ValueHint};
use clap_complete::Shell;

const SESSIONS: &str = "Sessions";
const READ: &str = "Where to read";
const WRITE: &str = "Where to write";
const CLUSTER: &str = "Workers and processes";
const WATCH: &str = "Watching";
const TUNING: &str = "Tuning";

/// The job.
#[derive(Args, Debug, Clone)]
pub struct RunArgs {
    /// Events of a visitor at most this far apart are one session
    #[arg(help_heading = SESSIONS, long, value_name = "DURATION", default_value = "5m")]
    pub gap: String,

    /// How much older than the newest event of its partition an on-time event may be
    ///
    /// Older events are not lost: they are merged with the rows they belong to (see --late).
    #[arg(help_heading = SESSIONS, long, value_name = "DURATION", default_value = "15s")]
    pub out_of_orderness: String,

    /// What happens to an event whose session has closed: merge or drop
    ///
    /// Merge it with the rows that it touches, or drop it to dead_letters. With merge, the table is
    /// what a batch query over all events would give, however late they come. With drop, an event
    /// is dropped if its session, with everything that has joined it by the end of the event's
    /// epoch, ends before the watermark, as in Flink.
    #[arg(help_heading = SESSIONS, long, value_name = "WHICH", default_value = "merge")]
    pub late: String,

    /// What session_end holds: window (the last event plus the gap) or last-event
    #[arg(help_heading = SESSIONS, long, value_name = "WHICH", default_value = "window")]
    pub session_end: String,

    /// An event further ahead of the clock than this goes to dead_letters
    #[arg(help_heading = SESSIONS, long, value_name = "DURATION", default_value = "5m")]
    pub max_future: String,

    /// A partition read to its end and silent for this long no longer holds the watermark back
    #[arg(help_heading = SESSIONS, long, value_name = "DURATION", default_value = "30s")]
    pub idle_timeout: String,

    /// Where the first start of a job begins: earliest, latest, group, group:NAME, savepoint:DIR or
    /// a time (2026-01-31T12:00:00Z) [default: earliest]
    ///
    /// With group, it begins at the offsets that the consumer group KAFKA_GROUP (or NAME) has
    /// committed. With savepoint, it begins exactly where a Flink job has stopped: DIR is the
    /// savepoint made by `flink stop --drain`, or a directory with its file _metadata. A time is
    /// looked up among the timestamps of the records in Kafka. If the table already has rows, a
    /// first start must be told where to begin. In a cluster, process 0 decides.
    #[arg(help_heading = READ, long, value_name = "WHERE")]
    pub from: Option<String>,

    /// Begin where --from says even if the table has rows of events after that position
    ///
    /// Without it, such a first start is refused, because those events would be counted twice. It
    /// also lets --from group begin at the earliest record of a partition for which the group has
    /// committed no offset.
    #[arg(help_heading = READ, long)]
    pub accept_overlap: bool,

    /// Read up to the current end of the topic, close every session, and exit
    #[arg(help_heading = READ, long)]
    pub until_end: bool,

    /// Continue even if Kafka no longer has records that the job has not read, or has to reread
    ///
    /// Without it, such a start stops and says what is missing. With it, the loss is logged, and
    /// recorded in sessionizer.losses and in the balance. In a cluster, process 0 decides.
    #[arg(help_heading = READ, long)]
    pub accept_lost_offsets: bool,

    /// A setting of librdkafka, name=value; can be given several times
    ///
    /// For SCRAM, OAUTHBEARER, client certificates, a CA file (ssl.ca.location=...), and anything
    /// else that librdkafka supports. In the environment variable, separate settings by semicolons.
    #[arg(help_heading = READ, long, value_name = "NAME=VALUE", value_delimiter = ';')]
    pub kafka_config: Vec<String>,

    /// How often to look for new partitions
    #[arg(help_heading = READ, long, value_name = "DURATION", default_value = "30s")]
    pub discovery_interval: String,

    /// The job's name, under which its state is kept [default: KAFKA_GROUP]
    #[arg(help_heading = WRITE, long, value_name = "NAME")]
    pub job: Option<String>,

    /// The table of sessions, created if it is missing: name or schema.name
    #[arg(help_heading = WRITE, long, value_name = "NAME", default_value = "sessionized_events")]
    pub table: String,

    /// Continue although the table is empty and the job has written sessions to it
    ///
    /// Without it, such a start is refused: the job cannot know whether your own retention has
    /// removed the rows, or somebody has deleted them by mistake, or a restore lacks them. In a
    /// cluster, process 0 decides.
    #[arg(help_heading = WRITE, long)]
    pub accept_empty_table: bool,

    /// Connections that write to Postgres [default: one for two workers]
    ///
    /// The number for all processes together; in a cluster, the default is one for each worker.
    /// Fewer connections are less work for Postgres. More may be faster if most sessions have one
    /// or two events, and Postgres has processors to spare.
    #[arg(help_heading = WRITE, long, value_name = "N")]
    pub sink_connections: Option<String>,

    /// How many bytes of a payload a dead letter keeps
    ///
    /// For a longer payload, the column payload holds its beginning, and payload_bytes its full
    /// length.
    #[arg(help_heading = WRITE, long, value_name = "BYTES", default_value = "4096")]
    pub dead_letter_bytes: String,

    /// How long dead letters are kept: forever, or a duration like 90d
    ///
    /// Older ones are removed in the background. They still count: the balance does not change. For
    /// those with the reasons future and late, only the payload is removed, because `sessionizer
    /// audit` needs to know which they are. In a cluster, process 0 decides.
    #[arg(help_heading = WRITE, long, value_name = "DURATION", default_value = "forever")]
    pub keep_dead_letters: String,

    /// How long rows of sessionizer.anomalies are kept: forever, or a duration like 90d
    #[arg(help_heading = WRITE, long, value_name = "DURATION", default_value = "90d")]
    pub keep_anomalies: String,

    /// Parts into which the keys are divided; fixed when the job is created
    #[arg(help_heading = WRITE, long, value_name = "N", default_value = "128")]
    pub shards: String,

    /// Worker threads
    #[arg(help_heading = CLUSTER, short = 'w', long, value_name = "N", default_value = "1")]
    pub workers: String,

    /// Processes that run the job together, each with this many worker threads
    ///
    /// Start each with its own --process and otherwise the same settings: they find each other by
    /// the hostfile, and wait for each other as long as it takes.
    #[arg(help_heading = CLUSTER, short = 'n', long, value_name = "N", default_value = "1")]
    pub processes: String,

    /// The index of this process, counted from 0
    #[arg(help_heading = CLUSTER, short = 'p', long, value_name = "I", default_value = "0")]
    pub process: String,

    /// A file with the address of each process: one host:port a line, process 0 first
    ///
    /// Each process listens on its own address only. Blank lines and text after a # are ignored; if
    /// there are more lines than processes, the first ones are used; the default port is 2101.
    /// Addresses beyond loopback need a cluster secret. [default: all processes on localhost, at
    /// the ports 2101, 2102, ...]
    #[arg(help_heading = CLUSTER, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub hostfile: Option<String>,

    /// A file with the secret that all processes share: at least 16 bytes, preferably random
    ///
    /// With it, the processes prove to each other that they belong together, and encrypt what they
    /// send (TLS 1.3). Make one with: head -c 32 /dev/urandom | base64 > FILE. Instead, the
    /// environment variable SESSIONIZER_CLUSTER_SECRET can hold the secret itself.
    #[arg(help_heading = CLUSTER, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub cluster_secret_file: Option<String>,

    /// Let processes on several machines communicate without a secret, unencrypted
    ///
    /// Anybody who can connect can then read and forge what they send, and can stop the job.
    #[arg(help_heading = CLUSTER, long)]
    pub cluster_insecure: bool,

    /// A process that is silent for this long is lost, and the others end
    #[arg(help_heading = CLUSTER, long, value_name = "DURATION", default_value = "10s")]
    pub peer_timeout: String,

    /// Where metrics, health and the page are served: ADDRESS:PORT, or none
    ///
    /// One port serves all: / is the page, /status a JSON document, /metrics is for Prometheus,
    /// /livez and /readyz are for whatever supervises the process. Port 0 is any free port, which
    /// the log names. If the port is taken, the job logs a warning and runs without it. Beyond
    /// loopback, anybody who can reach the port can read it. [default: 127.0.0.1:9464; several
    /// processes that have no hostfile use the ports from there on]
    #[arg(help_heading = WATCH, long, value_name = "ADDRESS")]
    pub http: Option<String>,

    /// A host name under which the port answers; can be given several times
    ///
    /// It always answers under addresses and localhost. It refuses other names, because a foreign
    /// web page could make a browser send requests under a name that leads here.
    #[arg(help_heading = WATCH, long, value_name = "NAME", value_delimiter = ',')]
    pub http_host: Vec<String>,

    /// Whether the page shows addresses of visitors and payloads: masked or full
    ///
    /// On loopback it always shows them. Elsewhere, with masked, the last octet of an address (of
    /// IPv6 the last 80 bits) and the payloads of dead letters are left out.
    #[arg(help_heading = WATCH, long, value_name = "WHICH", default_value = "masked")]
    pub page: String,

    /// How long a job may make no progress before /readyz says so
    #[arg(help_heading = WATCH, long, value_name = "DURATION", default_value = "60s")]
    pub ready_within: String,

    /// The hosts with a metric of their own [default: the first 20 that appear]
    #[arg(help_heading = WATCH, long, value_name = "NAME", value_delimiter = ',')]
    pub metrics_hosts: Vec<String>,

    /// Live statistics of the last day: hosts, visitors (by host and by visitor), or none
    ///
    /// They follow every change of the table, corrections by late events included, and are shown on
    /// the page, in /status and as metrics. A start reads the rows of the last day in the
    /// background. Visitors take more time in a backlog: docs/BENCHMARKS.md has the figures.
    #[arg(help_heading = WATCH, long, value_name = "WHICH", default_value = "hosts")]
    pub statistics: String,

    /// With --statistics visitors, how many visitors are counted at most; each counts once in every
    /// hour in which it comes [default: 1000000]
    ///
    /// Beyond that, visitors are not counted until the next hour; the page says so. A visitor takes
    /// some 200 bytes.
    #[arg(help_heading = WATCH, long, value_name = "N")]
    pub statistics_visitors: Option<String>,

    /// Anomalies to look for in the same rows, live: burst, marathon, repeat, network, surge, fall,
    /// singles, clock, several with commas, or none
    ///
    /// An anomaly is a session, a visitor, a network, or some minutes of a host that are unlike
    /// what the host had in the hours or the day before; or a partition whose clock is off. Each is
    /// logged, and shown on the page, in /status and as metrics; a correction by late events can
    /// withdraw it. Needs --statistics. docs/ANOMALIES.md says what is found and what is not.
    #[arg(
        help_heading = WATCH, long, value_name = "KINDS", value_delimiter = ',',
        default_value = "burst,marathon,repeat,network,surge,fall,singles,clock"
    )]
    pub anomalies: Vec<String>,

    /// Change the threshold of an anomaly, for example burst.min=100; several with commas
    ///
    /// docs/ANOMALIES.md lists them.
    #[arg(help_heading = WATCH, long, value_name = "NAME=VALUE", value_delimiter = ',')]
    pub anomaly_threshold: Vec<String>,

    /// How often the job commits: the length of an epoch
    #[arg(help_heading = TUNING, long, value_name = "DURATION", default_value = "1s")]
    pub epoch: String,

    /// How much memory a process may use for data in flight: 256MiB, 1GiB
    ///
    /// This covers everything that was fetched and is not yet committed: records, events, dead
    /// letters, rows, and snapshots being saved. When it is used up, reading waits until Postgres
    /// has taken some of it. It does not cover open sessions, which take about 100 bytes each, nor
    /// what the program itself needs, about 40 MiB. At least 16MiB.
    #[arg(help_heading = TUNING, long, value_name = "SIZE", default_value = "256MiB")]
    pub memory: String,

    /// How far a partition may be read ahead of the slowest one that lags, in event time
    ///
    /// In a backlog, partitions that are further ahead wait until the others catch up, so that
    /// memory stays bounded. Where events are sparse, the limit is instead what the slowest reads
    /// in four epochs. A partition that has nothing to read never makes others wait.
    #[arg(help_heading = TUNING, long, value_name = "DURATION", default_value = "10m")]
    pub max_drift: String,

    /// Partitions wait for slower ones only while a process has more open sessions than this
    ///
    /// Waiting saves memory but costs time, and the 50 MB of half a million open sessions are not
    /// worth that.
    #[arg(help_heading = TUNING, long, value_name = "NUMBER", default_value = "500000")]
    pub drift_sessions: String,

    /// How often the open sessions of each shard are saved; a restart replays what came since
    /// then
    #[arg(help_heading = TUNING, long, value_name = "DURATION", default_value = "1m")]
    pub snapshot_interval: String,

    /// How long a start waits for Kafka and Postgres
    #[arg(help_heading = TUNING, long, value_name = "DURATION", default_value = "1m")]
    pub start_timeout: String,

    /// How long a clean stop waits for its last commit
    #[arg(help_heading = TUNING, long, value_name = "DURATION", default_value = "10s")]
    pub stop_timeout: String,
}

/// Which job, for the commands that work on what it has stored.
#[derive(Args, Debug, Clone)]
pub struct JobArgs {
    /// The job's name [default: KAFKA_GROUP]
    #[arg(id = "job", long = "job", value_name = "NAME")]
    pub name: Option<String>,
}

/// Which running job, for the commands that ask its port.
#[derive(Args, Debug, Clone)]
pub struct AskedJobArgs {
    /// The job that must answer [default: KAFKA_GROUP, unless a URL is given]
    ///
    /// Another job may have the port: the exit code is then 2, and the message names both.
    #[arg(id = "job", long = "job", value_name = "NAME")]
    pub name: Option<String>,
}

/// How Kafka is reached, for the commands that read or write the topic.
#[derive(Args, Debug, Clone)]
pub struct KafkaArgs {
    /// A setting of librdkafka, name=value; can be given several times
    #[arg(
        id = "kafka_config",
        long = "kafka-config",
        value_name = "NAME=VALUE",
        value_delimiter = ';'
    )]
    pub settings: Vec<String>,
}

/// `sessionizer produce`.
///
/// Uses KAFKA_URL, KAFKA_TOPIC and the login of the job; creates the topic if it is missing.
#[derive(Args, Debug, Clone)]
pub struct ProduceArgs {
    /// Read events from this access log (Apache or nginx, combined format, plain or gzip; - is
    /// standard input) instead of generating them
    ///
    /// Lines that do not parse are logged and skipped; if none does, nothing is created or written.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub access_log: Option<String>,

    /// The host of every event, since an access log has none; generated events are spread over
    /// these
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub host: Vec<String>,

    /// Stop after this many records [default: never, or the end of the log]
    #[arg(long, value_name = "N")]
    pub number: Option<String>,

    /// Records a second; 0 means as fast as possible
    ///
    /// [default: 100 for live events, 0 for an access log or historical events]
    #[arg(long, value_name = "N")]
    pub rate: Option<String>,

    /// Begin in the past and let event times continue from there, instead of using the clock: a time
    /// (2026-01-31T12:00:00Z) or how long ago (30d)
    #[arg(long, value_name = "WHEN")]
    pub historical: Option<String>,

    /// Give an empty topic this much history up to now, then continue with live events
    ///
    /// The history is written as fast as possible, with --density events a second of event time;
    /// live events at --rate continue where it ends. A topic that already holds records gets no
    /// history.
    #[arg(long, value_name = "DURATION")]
    pub history: Option<String>,

    /// Events a second of event time, for historical events
    ///
    /// It needs --historical or --history. [default: 100]
    #[arg(long, value_name = "N")]
    pub density: Option<String>,

    /// How many visitors there are
    #[arg(long, value_name = "N", default_value = "1000")]
    pub visitors: String,

    /// How far out of order events may arrive
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    pub disorder: String,

    /// The share of records that do not decode, 0 to 1
    #[arg(long, value_name = "SHARE", default_value = "0", conflicts_with = "access_log")]
    pub bad: String,

    /// The share of good events that are written in an unusual form, 0 to 1: times with an offset,
    /// escaped text, fields of other types, and anything else that is allowed
    #[arg(long, value_name = "SHARE", default_value = "0.005")]
    pub odd: String,

    /// The share of stragglers, 0 to 1: events that come much later than --disorder allows
    #[arg(long, value_name = "SHARE", default_value = "0")]
    pub late: String,

    /// How late stragglers are, at most
    #[arg(long, value_name = "DURATION", default_value = "1h", requires = "late")]
    pub late_by: String,

    /// The share of events that come from a single visitor, 0 to 1
    #[arg(long, value_name = "SHARE", default_value = "0")]
    pub hot: String,

    /// The same seed gives the same events
    #[arg(long, value_name = "N", default_value = "1")]
    pub seed: String,

    /// Whole days of ordinary traffic in which this happens: flood, crawler, slow, distributed,
    /// reader, marathon, surge, outage, singles, skew, or clean for none of them; several with
    /// commas
    ///
    /// The traffic has a daily curve and long tails. The days end with yesterday, unless
    /// --historical says when they begin; nothing happens on the first. Of the other options,
    /// --host, --number, --rate and --seed apply. docs/ANOMALIES.md describes the scenarios.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub scenario: Vec<String>,

    /// Write what happens in a scenario, when, and who does it to this file, one line of JSON each
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub truth: Option<String>,

    /// How many days a scenario has
    #[arg(long, value_name = "N", default_value = "2", requires = "scenario")]
    pub days: String,

    /// How many visits a day each host has in a scenario
    #[arg(long, value_name = "N", default_value = "10000", requires = "scenario")]
    pub visits: String,

    /// How long the tails are in a scenario: light or heavy
    #[arg(long, value_name = "TAIL", default_value = "light", requires = "scenario")]
    pub tail: String,

    /// How often each of the scenarios happens to each host, and a skew to the topic
    #[arg(long, value_name = "N", default_value = "2", requires = "scenario")]
    pub incidents: String,

    /// Partitions of the topic, if it has to be created
    #[arg(long, value_name = "N", default_value = "4")]
    pub partitions: String,

    /// gzip, snappy, lz4, zstd or none
    #[arg(long, value_name = "CODEC", default_value = "none")]
    pub compression: String,

    /// Write to the topic even if it holds records that were not written by `produce`
    #[arg(long)]
    pub append: bool,

    /// Write records without a key; otherwise the ip is the key
    #[arg(long)]
    pub no_key: bool,

    #[command(flatten)]
    pub kafka: KafkaArgs,
}

/// `sessionizer audit`.
#[derive(Args, Debug, Clone)]
pub struct AuditArgs {
    #[command(flatten)]
    pub job: JobArgs,

    /// How many differences of each kind to show
    #[arg(long, value_name = "N", default_value = "20")]
    pub show: String,

    /// Repeat the audit at this interval, until it is stopped
    ///
    /// A difference is logged as an error and kept in sessionizer.audits, and the audits continue.
    #[arg(long, value_name = "DURATION")]
    pub every: Option<String>,

    /// Reread everything, and not just what is new since the last audit
    #[arg(long)]
    pub full: bool,

    /// How long verified sessions are kept individually, so that late events can join them
    ///
    /// Counted back from the watermark. Of older sessions, only sums by day are kept: a difference
    /// then names the day, and --full names the row. An event that comes later than that may make
    /// the audit reread older records of the topic.
    #[arg(long, value_name = "DURATION", default_value = "1d")]
    pub keep: String,

    /// Write nothing: reread everything, and keep no result
    #[arg(long)]
    pub no_record: bool,

    #[command(flatten)]
    pub kafka: KafkaArgs,
}

/// `sessionizer check`: the flags of the job, and its own.
#[derive(Args, Debug, Clone)]
pub struct CheckArgs {
    #[command(flatten)]
    pub run: RunArgs,

    /// What to check, several with commas: settings, kafka, postgres, data, plan [default: all]
    #[arg(long, value_name = "PARTS", value_delimiter = ',')]
    pub only: Vec<String>,

    /// Check the settings alone, without connecting to anything
    #[arg(long)]
    pub no_connect: bool,

    /// Repeat until nothing fails, for at most this long
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    pub wait: String,

    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,

    /// How long a server may take to answer
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    pub timeout: String,
}

/// The comparison with another table.
#[derive(Args, Debug, Clone)]
pub struct CompareArgs {
    /// The other table, in the same database: name or schema.name (required)
    ///
    /// Its columns are those of sessionized_events. Its session_end is the last event plus the gap,
    /// as Flink writes it.
    #[arg(long, value_name = "TABLE")]
    pub against: Option<String>,

    #[command(flatten)]
    pub job: JobArgs,

    /// Compare sessions that begin at this time or later (2026-01-31T12:00:00Z) [default: the first
    /// session that both tables can have]
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,

    /// Compare sessions that end by this time [default: where both tables have closed everything]
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,

    /// The delay of the other program's watermark
    #[arg(long, value_name = "DURATION", default_value = "15s")]
    pub out_of_orderness: String,

    /// Do not read the topic: treat all missing events as late, without checking
    #[arg(long)]
    pub no_topic: bool,

    /// How many differences of each class to show
    #[arg(long, value_name = "N", default_value = "3")]
    pub show: String,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub kafka: KafkaArgs,
}

/// `sessionizer reset`.
#[derive(Args, Debug, Clone)]
pub struct ResetArgs {
    #[command(flatten)]
    pub job: JobArgs,

    /// Do not ask; has no variable
    #[arg(short = 'y', long)]
    pub yes: bool,
}

/// `sessionizer open`.
#[derive(Args, Debug, Clone)]
pub struct OpenArgs {
    /// Only sessions of this visitor, as its events spell it; has no variable
    #[arg(long, value_name = "ADDRESS")]
    pub ip: Option<String>,

    /// Only sessions on this host; has no variable
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,

    /// How many to list, those with the most recent last event first
    #[arg(long, value_name = "N", default_value = "20")]
    pub limit: String,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub job: JobArgs,
}

/// `sessionizer forget`.
#[derive(Args, Debug, Clone)]
pub struct ForgetArgs {
    /// The visitor, as its events spell it; has no variable
    #[arg(long, value_name = "ADDRESS")]
    pub ip: String,

    /// Only on this host; has no variable
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,

    /// Only show what would be removed
    #[arg(long)]
    pub dry_run: bool,

    /// Do not ask; has no variable
    #[arg(short = 'y', long)]
    pub yes: bool,

    #[command(flatten)]
    pub job: JobArgs,
}

/// `sessionizer redrive`.
#[derive(Args, Debug, Clone)]
pub struct RedriveArgs {
    /// Which dead letters, by their reason: future, late, row_refused, bad_json, …;
    /// several with commas; has no variable
    #[arg(long, value_name = "REASON", value_delimiter = ',', required = true)]
    pub reason: Vec<String>,

    /// What happens to an event whose session has closed, as for the job: merge or drop
    #[arg(long, value_name = "WHICH", default_value = "merge")]
    pub late: String,

    /// An event further ahead of the clock than this remains a dead letter, as for the job
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    pub max_future: String,

    /// Only show which of them are events now, and why the others are not
    #[arg(long)]
    pub dry_run: bool,

    /// Do not ask; has no variable
    #[arg(short = 'y', long)]
    pub yes: bool,

    #[command(flatten)]
    pub job: JobArgs,

    #[command(flatten)]
    pub kafka: KafkaArgs,
}

/// `sessionizer report`.
#[derive(Args, Debug, Clone)]
pub struct ReportArgs {
    #[command(flatten)]
    pub job: JobArgs,

    /// Only sessions that began on this day or later: 2026-01-31
    #[arg(long, value_name = "DAY")]
    pub from: Option<String>,

    /// Only sessions that began on this day or earlier
    #[arg(long, value_name = "DAY")]
    pub to: Option<String>,

    /// Only sessions on these hosts
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub host: Vec<String>,

    /// Only these parts, named after their files in queries/; several with commas
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub only: Vec<String>,

    /// Write one HTML page with charts to this file (- is standard output): it needs no network and
    /// runs no script
    #[arg(long, value_name = "FILE")]
    pub html: Option<String>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Print one part (see --only) as CSV
    ///
    /// Text that a spreadsheet would take for a formula (it begins with =, +, -, @, a tab or a line
    /// break) gets an apostrophe in front.
    #[arg(long)]
    pub csv: bool,

    /// How many rows of each part are printed as a table; JSON, CSV and HTML have more
    #[arg(long, value_name = "N", default_value = "20")]
    pub rows: String,

    /// Show the addresses of visitors in full; otherwise their ends are masked, as on the page
    #[arg(long)]
    pub addresses: bool,

    /// The time zone of days and hours, by its name in Postgres
    #[arg(long, value_name = "NAME", default_value = "UTC")]
    pub time_zone: String,

    /// How long a single query may take
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    pub timeout: String,
}

/// `sessionizer health`.
#[derive(Args, Debug, Clone)]
pub struct HealthArgs {
    /// Where the job listens [default: SESSIONIZER_HTTP, or http://127.0.0.1:9464]
    #[arg(value_name = "URL")]
    pub url: Option<String>,

    /// Ask whether the job is alive, not whether it is ready
    #[arg(long)]
    pub live: bool,

    #[command(flatten)]
    pub job: AskedJobArgs,
}

/// `sessionizer status`.
#[derive(Args, Debug, Clone)]
pub struct StatusArgs {
    /// Where the job listens [default: SESSIONIZER_HTTP, or http://127.0.0.1:9464]
    #[arg(value_name = "URL")]
    pub url: Option<String>,

    /// Print the whole document as JSON
    #[arg(long)]
    pub json: bool,

    /// Show it again every second, until Ctrl-C
    #[arg(long)]
    pub watch: bool,

    #[command(flatten)]
    pub job: AskedJobArgs,
}

/// `sessionizer demo`.
///
/// No variable sets any of these: a demo tried in a shell that exports a job's environment must not
/// pick up the settings of that job.
#[derive(Args, Debug, Clone)]
pub struct DemoArgs {
    /// Worker threads
    #[arg(short = 'w', long, value_name = "N", default_value = "2")]
    pub workers: String,

    /// How long live events are sent, after the history
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub length: String,

    /// Events a second
    #[arg(long, value_name = "N", default_value = "2000")]
    pub rate: String,

    /// Continue until Ctrl-C
    #[arg(long)]
    pub keep: bool,

    /// The database disappears when the demo is over: do not point to it
    #[arg(long, hide = true)]
    pub temporary_database: bool,
}

/// `sessionizer completions`.
#[derive(Args, Debug, Clone)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// `sessionizer man`.
#[derive(Args, Debug, Clone)]
pub struct ManArgs {
    /// Write all pages there; the directory is created if it is missing
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: Option<String>,
}
