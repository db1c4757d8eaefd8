//! What can be typed. Every flag has an environment variable and a default that serves.
//!
//! Values are taken as text: [`crate::config`] reads them, so that everything that is wrong can
//! be told at once and not one mistake at a time.

use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand};

/// Turns a Kafka topic of web events into sessions in PostgreSQL, exactly once.
///
/// Without a subcommand, it runs the job: it reads the topic, groups events by (ip, host) into
/// sessions with a gap of five minutes, and writes each session that has closed to the table
/// sessionized_events. Stop it with Ctrl-C or SIGTERM and start it again whenever you like, with
/// any number of workers: no session is lost and none is written twice.
#[derive(Parser, Debug)]
#[command(version, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true, after_long_help = ENVIRONMENT)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: RunArgs,
}

const ENVIRONMENT: &str = "\
Environment (required unless a default is named):
  KAFKA_URL                 the brokers: host:port[,host:port]
  KAFKA_TOPIC               the topic, or several: a,b
  KAFKA_GROUP               names the job, and the consumer group whose lag tools can show
  POSTGRES_URL              jdbc:postgresql://host:port/database?sslmode=...&currentSchema=...
                            or postgres://host:port/database
  POSTGRES_USER             default: postgres (a user in the URL counts more)
  POSTGRES_PASSWORD         default: postgres (a password in the URL counts more)
  KAFKA_WEB_TRAFFIC_KEY     with the secret: SASL_SSL with PLAIN; neither: plaintext
  KAFKA_WEB_TRAFFIC_SECRET
  SESSIONIZER_CLUSTER_SECRET
                            the secret of --cluster-secret-file itself
  RUST_LOG                  what is logged: warn, info (default), debug

Exit codes: 0 done or stopped cleanly, 1 the world is not as it should be, 2 a setting is wrong,
3 another instance of the job has taken over, 4 another process of the job is lost.";

/// What else it can do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Writes events to the topic: from an access log, or generated
    Produce(Box<ProduceArgs>),
    /// Reads the topic again, computes the batch answer and holds the table against it
    ///
    /// Uses the environment of the job and may run beside it. Exits with 0 only if the table is the
    /// batch answer and the balance is zero.
    Audit(Box<AuditArgs>),
    /// Runs the job on a broker of its own with generated events, and shows what came of it
    ///
    /// Needs POSTGRES_URL only; scripts/demo gives it a private server. Everything that the demo
    /// writes is in the job named by --job.
    Demo(Box<DemoArgs>),
}

/// The job.
#[derive(Args, Debug, Clone)]
pub struct RunArgs {
    /// Worker threads
    #[arg(short = 'w', long, value_name = "N", env = "SESSIONIZER_WORKERS", default_value = "1")]
    pub workers: String,

    /// Processes that run the job together, each with so many worker threads
    ///
    /// Start each with its own --process and otherwise the same settings: they find each other by
    /// the hostfile, and wait for each other as long as it takes.
    #[arg(short = 'n', long, value_name = "N", env = "SESSIONIZER_PROCESSES", default_value = "1")]
    pub processes: String,

    /// Which of them this one is, from 0
    #[arg(short = 'p', long, value_name = "I", env = "SESSIONIZER_PROCESS", default_value = "0")]
    pub process: String,

    /// A file with the address of each process: one host:port a line, process 0 first
    ///
    /// Each process listens on its own address only. Blank lines and what follows a # do not count;
    /// the port is 2101 where none is named. Addresses other than those of loopback need a cluster
    /// secret. [default: all processes on localhost, at the ports 2101, 2102, ...]
    #[arg(long, value_name = "FILE", env = "SESSIONIZER_HOSTFILE")]
    pub hostfile: Option<String>,

    /// A file with the secret that all processes share: 16 bytes or more, best random
    ///
    /// With it, the processes prove to each other that they belong together, and encrypt what they
    /// send (TLS 1.3). Make one with: head -c 32 /dev/urandom | base64 > FILE. The environment
    /// variable SESSIONIZER_CLUSTER_SECRET can hold the secret itself instead.
    #[arg(long, value_name = "FILE", env = "SESSIONIZER_CLUSTER_SECRET_FILE")]
    pub cluster_secret_file: Option<String>,

    /// Let processes on several machines talk without a secret, unencrypted
    ///
    /// Whoever can connect can then read and forge what they send, and can stop the job.
    #[arg(long, env = "SESSIONIZER_CLUSTER_INSECURE", value_parser = FalseyValueParser::new())]
    pub cluster_insecure: bool,

    /// A process that is silent for so long is lost, and the others end
    #[arg(long, value_name = "DURATION", env = "SESSIONIZER_PEER_TIMEOUT", default_value = "10s")]
    pub peer_timeout: String,

    /// Events of a visitor at most this far apart are one session
    #[arg(long, value_name = "DURATION", env = "SESSIONIZER_GAP", default_value = "5m")]
    pub gap: String,

    /// How much older than the newest event of its partition an on-time event may be
    ///
    /// Events that are older still are not lost: they are merged with the rows they belong to.
    #[arg(
        long,
        value_name = "DURATION",
        env = "SESSIONIZER_OUT_OF_ORDERNESS",
        default_value = "15s"
    )]
    pub out_of_orderness: String,

    /// How often progress is made and committed
    #[arg(long, value_name = "DURATION", env = "SESSIONIZER_EPOCH", default_value = "1s")]
    pub epoch: String,

    /// A partition that was read to its end and is silent for so long holds nothing back
    #[arg(long, value_name = "DURATION", env = "SESSIONIZER_IDLE_TIMEOUT", default_value = "30s")]
    pub idle_timeout: String,

    /// How far a partition may be read ahead of the slowest one that is behind, in event time
    ///
    /// In a backlog, partitions that are further ahead wait until the others catch up, so that
    /// memory stays bounded; where events are sparse it is what the slowest makes in four epochs. A
    /// partition that has nothing to read holds nobody.
    #[arg(long, value_name = "DURATION", env = "SESSIONIZER_MAX_DRIFT", default_value = "10m")]
    pub max_drift: String,

    /// Partitions wait for slower ones only while a process has more sessions open than this
    ///
    /// Waiting costs time and saves memory: 50 MB of half a million open sessions are not worth it.
    #[arg(
        long,
        value_name = "NUMBER",
        env = "SESSIONIZER_DRIFT_SESSIONS",
        default_value = "500000"
    )]
    pub drift_sessions: String,

    /// An event later than the clock by more than this goes to dead_letters
    #[arg(long, value_name = "DURATION", env = "SESSIONIZER_MAX_FUTURE", default_value = "5m")]
    pub max_future: String,

    /// What becomes of an event so late that its session has closed: merge it with the rows that it
    /// touches, or drop it to dead_letters
    ///
    /// With merge, the table is what a batch query over all events would give, however late they
    /// come. With drop, an event is dropped if its session, with all that has come of it by the end
    /// of the event's epoch, ends before the watermark, as Flink does it.
    #[arg(long, value_name = "WHICH", env = "SESSIONIZER_LATE_EVENTS", default_value = "merge")]
    pub late: String,

    /// Go on although Kafka does not have records any more that the job has not read, or has to
    /// read again
    ///
    /// Without it, such a start stops and says what is missing. With it, the loss is logged, and
    /// kept in sessionizer.losses and in the balance. Of several processes, process 0 decides.
    #[arg(
        long,
        env = "SESSIONIZER_ACCEPT_LOST_OFFSETS",
        value_parser = FalseyValueParser::new()
    )]
    pub accept_lost_offsets: bool,

    /// What session_end holds: window (the last event and the gap) or last-event
    #[arg(long, value_name = "WHICH", env = "SESSIONIZER_SESSION_END", default_value = "window")]
    pub session_end: String,

    /// The table of sessions, made if it is missing: name or schema.name
    #[arg(
        long,
        value_name = "NAME",
        env = "SESSIONIZER_TABLE",
        default_value = "sessionized_events"
    )]
    pub table: String,

    /// Where the first start of a job begins: earliest, latest or a time (2026-01-31T12:00:00Z)
    ///
    /// Of several processes, process 0 decides.
    #[arg(long, value_name = "WHERE", env = "SESSIONIZER_FROM", default_value = "earliest")]
    pub from: String,

    /// Read to the offsets that are the end now, close everything, and exit
    #[arg(long, env = "SESSIONIZER_UNTIL_END", value_parser = FalseyValueParser::new())]
    pub until_end: bool,

    /// Connections that write to Postgres [default: one for two workers]
    ///
    /// Of all processes together; if there are several, the default is one for each worker. The
    /// fewer, the less work it is for Postgres. More may be faster where most sessions have one or
    /// two events, and Postgres has processors to spare.
    #[arg(long, value_name = "N", env = "SESSIONIZER_SINK_CONNECTIONS")]
    pub sink_connections: Option<String>,

    /// A setting of librdkafka, name=value; can be given several times
    ///
    /// For SCRAM, OAUTHBEARER, client certificates, a CA file (ssl.ca.location=...), and anything
    /// else that librdkafka can do. In the environment variable, separate them by semicolons.
    #[arg(
        long,
        value_name = "NAME=VALUE",
        env = "SESSIONIZER_KAFKA_CONFIG",
        hide_env_values = true,
        value_delimiter = ';'
    )]
    pub kafka_config: Vec<String>,

    /// The job's name, under which its state is kept [default: KAFKA_GROUP]
    #[arg(long, value_name = "NAME", env = "SESSIONIZER_JOB")]
    pub job: Option<String>,

    /// Parts into which the keys are divided; fixed when the job is created
    #[arg(long, value_name = "N", env = "SESSIONIZER_SHARDS", default_value = "128")]
    pub shards: String,

    /// How often the open sessions of each shard are saved; a restart reads again what came since
    #[arg(
        long,
        value_name = "DURATION",
        env = "SESSIONIZER_SNAPSHOT_INTERVAL",
        default_value = "1m"
    )]
    pub snapshot_interval: String,

    /// How often new partitions are looked for
    #[arg(
        long,
        value_name = "DURATION",
        env = "SESSIONIZER_DISCOVERY_INTERVAL",
        default_value = "30s"
    )]
    pub discovery_interval: String,

    /// How many bytes of a payload a dead letter keeps
    #[arg(
        long,
        value_name = "BYTES",
        env = "SESSIONIZER_DEAD_LETTER_BYTES",
        default_value = "65536"
    )]
    pub dead_letter_bytes: String,

    /// How long a start waits for Kafka and Postgres
    #[arg(long, value_name = "DURATION", env = "SESSIONIZER_START_TIMEOUT", default_value = "1m")]
    pub start_timeout: String,

    /// How long a clean stop waits for its last commit
    #[arg(long, value_name = "DURATION", env = "SESSIONIZER_STOP_TIMEOUT", default_value = "10s")]
    pub stop_timeout: String,
}

/// `sessionizer produce`.
///
/// Uses KAFKA_URL, KAFKA_TOPIC and the login of the job; creates the topic if it is missing.
#[derive(Args, Debug, Clone)]
pub struct ProduceArgs {
    /// Read events from this access log (Apache or nginx, combined format, plain or gzip; - is
    /// standard input) instead of generating them
    #[arg(long, value_name = "FILE", env = "SESSIONIZER_ACCESS_LOG")]
    pub access_log: Option<String>,

    /// The host of every event: an access log has none; generated events are spread over these
    #[arg(long, value_name = "NAME", env = "SESSIONIZER_HOST", value_delimiter = ',')]
    pub host: Vec<String>,

    /// Stop after so many records [default: never, or the end of the log]
    #[arg(long, value_name = "N", env = "SESSIONIZER_NUMBER")]
    pub number: Option<String>,

    /// Records a second; 0 is as fast as possible
    ///
    /// [default: 100 for live events, 0 for an access log or historical events]
    #[arg(long, value_name = "N", env = "SESSIONIZER_RATE")]
    pub rate: Option<String>,

    /// Begin in the past and give events times from there on, instead of the time of the clock:
    /// a time (2026-01-31T12:00:00Z) or how long ago (30d)
    #[arg(long, value_name = "WHEN", env = "SESSIONIZER_HISTORICAL")]
    pub historical: Option<String>,

    /// Events a second of event time, for historical events
    #[arg(long, value_name = "N", env = "SESSIONIZER_DENSITY", default_value = "100")]
    pub density: String,

    /// How many visitors there are
    #[arg(long, value_name = "N", env = "SESSIONIZER_VISITORS", default_value = "1000")]
    pub visitors: String,

    /// How far out of order events may arrive
    #[arg(long, value_name = "DURATION", env = "SESSIONIZER_DISORDER", default_value = "0s")]
    pub disorder: String,

    /// The share of records that do not decode, 0 to 1
    #[arg(long, value_name = "SHARE", env = "SESSIONIZER_BAD", default_value = "0")]
    pub bad: String,

    /// The share of good events that are written in an unusual form, 0 to 1: times with an offset,
    /// escaped text, fields of other types, and whatever else is allowed
    #[arg(long, value_name = "SHARE", env = "SESSIONIZER_ODD", default_value = "0.005")]
    pub odd: String,

    /// The share of stragglers, 0 to 1: events that come much later than --disorder allows
    #[arg(long, value_name = "SHARE", env = "SESSIONIZER_LATE", default_value = "0")]
    pub late: String,

    /// How late stragglers are, at most
    #[arg(long, value_name = "DURATION", env = "SESSIONIZER_LATE_BY", default_value = "1h")]
    pub late_by: String,

    /// The share of events that come from one single visitor, 0 to 1
    #[arg(long, value_name = "SHARE", env = "SESSIONIZER_HOT", default_value = "0")]
    pub hot: String,

    /// The same seed gives the same events
    #[arg(long, value_name = "N", env = "SESSIONIZER_SEED", default_value = "1")]
    pub seed: String,

    /// Partitions of the topic, if it has to be created
    #[arg(long, value_name = "N", env = "SESSIONIZER_PARTITIONS", default_value = "4")]
    pub partitions: String,

    /// gzip, snappy, lz4, zstd or none
    #[arg(long, value_name = "CODEC", env = "SESSIONIZER_COMPRESSION", default_value = "none")]
    pub compression: String,

    /// Write records without a key; otherwise the ip is the key
    #[arg(long, env = "SESSIONIZER_NO_KEY", value_parser = FalseyValueParser::new())]
    pub no_key: bool,

    /// A setting of librdkafka, name=value; can be given several times
    #[arg(
        long,
        value_name = "NAME=VALUE",
        env = "SESSIONIZER_KAFKA_CONFIG",
        hide_env_values = true,
        value_delimiter = ';'
    )]
    pub kafka_config: Vec<String>,
}

/// `sessionizer audit`.
#[derive(Args, Debug, Clone)]
pub struct AuditArgs {
    /// The job's name [default: KAFKA_GROUP]
    #[arg(long, value_name = "NAME", env = "SESSIONIZER_JOB")]
    pub job: Option<String>,

    /// How many differences of each kind are shown
    #[arg(long, value_name = "N", env = "SESSIONIZER_SHOW", default_value = "20")]
    pub show: String,

    /// A setting of librdkafka, name=value; can be given several times
    #[arg(
        long,
        value_name = "NAME=VALUE",
        env = "SESSIONIZER_KAFKA_CONFIG",
        hide_env_values = true,
        value_delimiter = ';'
    )]
    pub kafka_config: Vec<String>,
}

/// `sessionizer demo`.
#[derive(Args, Debug, Clone)]
pub struct DemoArgs {
    /// Worker threads
    #[arg(short = 'w', long, value_name = "N", env = "SESSIONIZER_WORKERS", default_value = "2")]
    pub workers: String,

    /// How long events are sent
    #[arg(long, value_name = "DURATION", env = "SESSIONIZER_DEMO_LENGTH", default_value = "40s")]
    pub length: String,

    /// Events a second
    #[arg(long, value_name = "N", env = "SESSIONIZER_RATE", default_value = "2000")]
    pub rate: String,

    /// Go on until Ctrl-C
    #[arg(long, env = "SESSIONIZER_DEMO_KEEP", value_parser = FalseyValueParser::new())]
    pub keep: bool,

    /// The job's name
    #[arg(long, value_name = "NAME", env = "SESSIONIZER_JOB", default_value = "demo")]
    pub job: String,
}
