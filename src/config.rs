//! What was typed, and what is valid. No I/O: only text in, settings out.
//!
//! Everything that is missing or wrong is collected and told in one message, each with the name
//! of the variable or flag and what to do.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use crate::alignment::Drift;
use crate::binding::{Late, Rules};
use crate::cli::RunArgs;
use crate::cluster::SecretSource;
use crate::control::Fault;
use crate::event::parse_rfc3339;
use crate::kafka::{From, KafkaConfig, RESERVED};
use crate::ledger::url::{self, PostgresUrl};
use crate::ledger::{LedgerConfig, SessionEnd};
use crate::secret::Secret;
use crate::time::Gap;
use crate::watermark::Patience;

/// A valid configuration of the job.
#[derive(Clone, Debug)]
pub struct Config {
    /// Of each process.
    pub workers: usize,
    pub processes: usize,
    /// Which of them this one is.
    pub process: usize,
    pub hostfile: Option<PathBuf>,
    pub peer_timeout: Duration,
    /// The secret that the processes share.
    pub cluster_secret: Option<SecretSource>,
    pub cluster_insecure: bool,
    pub kafka: KafkaConfig,
    pub ledger: LedgerConfig,
    pub from: From,
    pub until_end: bool,
    pub epoch_ms: u64,
    pub patience: Patience,
    /// How far a partition may be ahead of the slowest one that is behind, in event time.
    pub drift: Drift,
    pub rules: Rules,
    pub accept_lost_offsets: bool,
    pub lanes: u32,
    pub snapshot_interval_ms: u64,
    pub dead_letter_bytes: usize,
    pub discovery_interval: Duration,
    pub start_timeout: Duration,
    pub stop_timeout: Duration,
}

/// The value of an environment variable, if it is set.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The environment of this process.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Collects what is wrong.
#[derive(Default)]
pub struct Problems(Vec<(String, String)>);

impl Problems {
    /// Notes that `name` is wrong.
    pub fn add(&mut self, name: &str, what: impl Into<String>) {
        self.0.push((name.to_owned(), what.into()));
    }

    /// The value, or a note of what is wrong with it.
    fn take<T>(&mut self, name: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|what| self.add(name, what)).ok()
    }

    /// All of it in one message.
    pub fn fault(self) -> Fault {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut message = match self.0.len() {
            1 => "a setting is missing or wrong:".to_owned(),
            several => format!("{several} settings are missing or wrong:"),
        };
        for (name, what) in &self.0 {
            write!(message, "\n  {name:width$}  {what}").expect("a string takes all");
        }
        message.push_str("\n(sessionizer --help explains every setting)");
        Fault::Config(message)
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Reads the settings of the job.
pub fn read(args: &RunArgs, env: Lookup<'_>) -> Result<Config, Fault> {
    let mut problems = Problems::default();
    let kafka = read_kafka(&mut problems, &args.kafka_config, true, env);
    let ledger = read_ledger(&mut problems, args, env);
    let workers = problems.take("--workers", whole(&args.workers, 1, 1_024));
    let processes = problems.take("--processes", whole(&args.processes, 1, 1_024));
    let last = processes.map_or(u64::MAX, |processes| processes - 1);
    let process = problems.take("--process", process(&args.process, last));
    let lanes = match &args.sink_connections {
        Some(text) => problems.take("--sink-connections", whole(text, 1, 1_024)),
        // The fewer, the less work they are for Postgres; but between processes rows would travel.
        None => workers.zip(processes).map(|(workers, processes)| match processes {
            1 => workers.div_ceil(2),
            _ => workers * processes,
        }),
    };
    let mut ms = |name: &str, text: &str, least: u64, most: u64| {
        problems.take(name, duration_ms(text, least, most))
    };
    const HOUR: u64 = 3_600_000;
    const YEAR: u64 = 366 * 24 * HOUR;
    let epoch_ms = ms("--epoch", &args.epoch, 10, HOUR);
    let out_of_orderness_ms = ms("--out-of-orderness", &args.out_of_orderness, 0, YEAR);
    let idle_timeout_ms = ms("--idle-timeout", &args.idle_timeout, 1, YEAR);
    let max_drift_ms = ms("--max-drift", &args.max_drift, 0, YEAR);
    let max_future_ms = ms("--max-future", &args.max_future, 0, YEAR);
    let snapshot_interval_ms = ms("--snapshot-interval", &args.snapshot_interval, 100, YEAR);
    let discovery_ms = ms("--discovery-interval", &args.discovery_interval, 100, YEAR);
    let start_timeout_ms = ms("--start-timeout", &args.start_timeout, 0, YEAR);
    let stop_timeout_ms = ms("--stop-timeout", &args.stop_timeout, 100, HOUR);
    let peer_timeout_ms = ms("--peer-timeout", &args.peer_timeout, 1_000, HOUR);
    let cluster_secret = read_cluster_secret(&mut problems, args, env);
    let late = Late::named(&args.late)
        .ok_or_else(|| format!("is {:?}: it can be merge or drop", args.late));
    let late = problems.take("--late", late);
    let from = problems.take("--from", read_from(&args.from));
    let dead_letter_bytes =
        problems.take("--dead-letter-bytes", whole(&args.dead_letter_bytes, 0, 100_000_000));
    let drift_sessions =
        problems.take("--drift-sessions", whole(&args.drift_sessions, 0, u64::MAX));
    let all = || {
        Some(Config {
            workers: workers? as usize,
            processes: processes? as usize,
            process: process? as usize,
            hostfile: args.hostfile.as_deref().filter(|path| !path.is_empty()).map(PathBuf::from),
            peer_timeout: Duration::from_millis(peer_timeout_ms?),
            cluster_secret: cluster_secret.clone(),
            cluster_insecure: args.cluster_insecure,
            kafka: kafka?,
            ledger: ledger?,
            from: from?,
            until_end: args.until_end,
            epoch_ms: epoch_ms?,
            patience: Patience {
                out_of_orderness_ms: out_of_orderness_ms? as i64,
                idle_timeout_ms: idle_timeout_ms?,
            },
            drift: Drift { most_ms: max_drift_ms? as i64, sessions: drift_sessions? },
            rules: Rules { max_future_ms: max_future_ms? as i64, late: late? },
            accept_lost_offsets: args.accept_lost_offsets,
            lanes: lanes? as u32,
            snapshot_interval_ms: snapshot_interval_ms?,
            dead_letter_bytes: dead_letter_bytes? as usize,
            discovery_interval: Duration::from_millis(discovery_ms?),
            start_timeout: Duration::from_millis(start_timeout_ms?),
            stop_timeout: Duration::from_millis(stop_timeout_ms?),
        })
    };
    all().filter(|_| problems.is_empty()).ok_or_else(|| problems.fault())
}

impl Config {
    /// What all processes of a job must agree on, by the names that users know. Where servers are
    /// and how to log in may be told to each process in its own way.
    pub fn shared(&self) -> Vec<(String, String)> {
        let Config { kafka, ledger, patience, rules, drift, .. } = self;
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
            ("--out-of-orderness", ms(patience.out_of_orderness_ms as u64)),
            ("--idle-timeout", ms(patience.idle_timeout_ms)),
            ("--max-future", ms(rules.max_future_ms as u64)),
            ("--late", rules.late.name().to_owned()),
            ("--until-end", self.until_end.to_string()),
            ("--sink-connections", self.lanes.to_string()),
            ("--snapshot-interval", ms(self.snapshot_interval_ms)),
            ("--max-drift", ms(drift.most_ms as u64)),
            ("--drift-sessions", drift.sessions.to_string()),
            ("--dead-letter-bytes", self.dead_letter_bytes.to_string()),
        ];
        settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// The index of a process, which is at most `last`.
fn process(text: &str, last: u64) -> Result<u64, String> {
    whole(text, 0, last.min(1_023)).map_err(|what| format!("{what} (--processes less one)"))
}

fn set(env: Lookup<'_>, name: &str) -> Option<String> {
    env(name).filter(|value| !value.trim().is_empty())
}

/// Reads how to reach Kafka; a producer needs no group.
pub fn read_kafka(
    problems: &mut Problems,
    extra: &[String],
    consumes: bool,
    env: Lookup<'_>,
) -> Option<KafkaConfig> {
    let mut need = |name: &str, what: &str| {
        let value = set(env, name);
        if value.is_none() {
            problems.add(name, format!("is not set: {what}"));
        }
        value.unwrap_or_default()
    };
    let brokers = need("KAFKA_URL", "the brokers, as host:port[,host:port]");
    let topic = need("KAFKA_TOPIC", "the topic to read, or several: a,b");
    let group = match consumes {
        true => need("KAFKA_GROUP", "the name of the job and of its consumer group"),
        false => String::new(),
    };
    let mut topics: Vec<String> = Vec::new();
    for topic in topic.split(',').map(str::trim).filter(|topic| !topic.is_empty()) {
        if !topics.iter().any(|known| known == topic) {
            topics.push(topic.to_owned());
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if topic.len() > 249 || !topic.chars().all(legal) {
            problems.add("KAFKA_TOPIC", format!("{topic:?} is no name of a topic"));
        }
    }
    let (key, secret) = (set(env, "KAFKA_WEB_TRAFFIC_KEY"), set(env, "KAFKA_WEB_TRAFFIC_SECRET"));
    let login = match (key, secret) {
        (Some(key), Some(secret)) => Some((key, Secret::new(secret))),
        (None, None) => None,
        (Some(_), None) => {
            let what = "is not set and KAFKA_WEB_TRAFFIC_KEY is: set both, or neither";
            problems.add("KAFKA_WEB_TRAFFIC_SECRET", what);
            None
        }
        (None, Some(_)) => {
            let what = "is not set and KAFKA_WEB_TRAFFIC_SECRET is: set both, or neither";
            problems.add("KAFKA_WEB_TRAFFIC_KEY", what);
            None
        }
    };
    let extra = read_extra(problems, extra);
    let config = KafkaConfig { brokers, group, topics, login, extra };
    if !config.brokers.is_empty()
        && let Err(why) = config.check()
    {
        problems.add("--kafka-config", why);
    }
    Some(config)
}

fn read_extra(problems: &mut Problems, extra: &[String]) -> Vec<(String, Secret)> {
    let mut settings = Vec::new();
    for text in extra.iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
        let Some((name, value)) = text.split_once('=') else {
            // Not repeated: what is not name=value may be a secret.
            problems.add("--kafka-config", "is not of the form name=value");
            continue;
        };
        match RESERVED.iter().find(|(reserved, _)| *reserved == name.trim()) {
            Some((_, why)) => {
                problems.add("--kafka-config", format!("{} cannot be set: {why}", name.trim()));
            }
            None => settings.push((name.trim().to_owned(), Secret::new(value))),
        }
    }
    settings
}

/// Where the cluster's secret is. The secret itself is only taken from a variable: the arguments of
/// a process can be seen by everybody on the machine.
fn read_cluster_secret(
    problems: &mut Problems,
    args: &RunArgs,
    env: Lookup<'_>,
) -> Option<SecretSource> {
    const VARIABLE: &str = "SESSIONIZER_CLUSTER_SECRET";
    let file = args.cluster_secret_file.as_deref().filter(|path| !path.trim().is_empty());
    let secret = match (file, set(env, VARIABLE)) {
        (Some(_), Some(_)) => {
            problems.add(VARIABLE, "is set, and so is --cluster-secret-file: only one can be");
            None
        }
        (Some(file), None) => Some(SecretSource::File(PathBuf::from(file))),
        (None, secret) => secret.map(|secret| SecretSource::Variable(Secret::new(secret))),
    };
    if secret.is_some() && args.cluster_insecure {
        problems.add("--cluster-insecure", "contradicts the cluster secret: only one can be set");
    }
    secret
}

/// Where Postgres is, and as whom.
fn read_login(problems: &mut Problems, env: Lookup<'_>) -> Option<(PostgresUrl, String, Secret)> {
    let url = match set(env, "POSTGRES_URL") {
        Some(text) => problems.take("POSTGRES_URL", url::parse(&text)),
        None => {
            let what = "is not set: jdbc:postgresql://host:port/database or postgres://...";
            problems.add("POSTGRES_URL", what);
            None
        }
    }?;
    let files = [
        ("sslrootcert", &url.root_cert),
        ("sslcert", &url.client_cert),
        ("sslkey", &url.client_key),
    ];
    for (name, file) in files {
        if file.as_ref().is_some_and(|file: &PathBuf| !file.is_absolute()) {
            problems.add("POSTGRES_URL", format!("{name} must be an absolute path"));
        }
    }
    let default = || "postgres".to_owned();
    let user = url.user.clone().or_else(|| set(env, "POSTGRES_USER")).unwrap_or_else(default);
    let password = url.password.clone().or_else(|| set(env, "POSTGRES_PASSWORD"));
    let password = Secret::new(password.unwrap_or_else(default));
    Some((url, user, password))
}

/// Reads how to reach the state of a job; what was settled when it was created is in there.
pub fn read_ledger_of(
    problems: &mut Problems,
    job: Option<&str>,
    env: Lookup<'_>,
) -> Option<LedgerConfig> {
    let (url, user, password) = read_login(problems, env)?;
    let job = job.map(str::to_owned).filter(|job| !job.trim().is_empty());
    Some(LedgerConfig {
        url,
        user,
        password,
        job: job.or_else(|| set(env, "KAFKA_GROUP"))?,
        table: String::new(),
        shards: 0,
        gap: Gap::from_millis(1)?,
        session_end: SessionEnd::Window,
    })
}

fn read_ledger(problems: &mut Problems, args: &RunArgs, env: Lookup<'_>) -> Option<LedgerConfig> {
    let login = read_login(problems, env);
    let gap = problems.take("--gap", duration_ms(&args.gap, 1, 31_536_000_000_000));
    let session_end = [SessionEnd::Window, SessionEnd::LastEvent]
        .into_iter()
        .find(|which| which.name() == args.session_end)
        .ok_or_else(|| format!("is {:?}: it can be window or last-event", args.session_end));
    let session_end = problems.take("--session-end", session_end);
    let shards = problems.take("--shards", whole(&args.shards, 1, 65_536));
    let table = args.table.trim();
    if table.is_empty() || table.split('.').count() > 2 || table.split('.').any(str::is_empty) {
        problems.add("--table", format!("is {table:?}: it must be name or schema.name"));
    }
    let job = args.job.clone().filter(|job| !job.trim().is_empty());
    let job = job.or_else(|| set(env, "KAFKA_GROUP"));
    let (url, user, password) = login?;
    Some(LedgerConfig {
        url,
        user,
        password,
        job: job?,
        table: table.to_owned(),
        shards: shards? as u32,
        gap: Gap::from_millis(gap? as i64)?,
        session_end: session_end?,
    })
}

fn read_from(text: &str) -> Result<From, String> {
    match text.trim() {
        "earliest" => Ok(From::Earliest),
        "latest" => Ok(From::Latest),
        other => other
            .parse()
            .ok()
            .or_else(|| parse_rfc3339(other.as_bytes()))
            .map(From::Timestamp)
            .ok_or(format!(
                "is {other:?}: it can be earliest, latest, a time like 2026-01-31T12:00:00Z or \
                 milliseconds since 1970"
            )),
    }
}

/// A whole number between bounds.
pub fn whole(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let number = text.trim().parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("is {text:?}: it must be a whole number from {least} to {most}"))
}

/// A number between bounds.
pub fn number(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let number = text.trim().parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("is {text:?}: it must be a number from {least} to {most}"))
}

/// A duration as people write it, in milliseconds, between bounds.
pub fn duration_ms(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let duration = humantime::parse_duration(text.trim())
        .map_err(|why| format!("is {text:?}: {why}; write it like 300s, 5m or 250ms"))?;
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if (least..=most).contains(&ms) && duration.subsec_nanos().is_multiple_of(1_000_000) {
        return Ok(ms);
    }
    let show = |ms| humantime::format_duration(Duration::from_millis(ms)).to_string();
    Err(format!(
        "is {text:?}: it must be from {} to {}, in whole milliseconds",
        show(least),
        show(most)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::collections::BTreeMap;

    const GOOD: [(&str, &str); 4] = [
        ("KAFKA_URL", "localhost:9092"),
        ("KAFKA_TOPIC", "web-events"),
        ("KAFKA_GROUP", "group"),
        ("POSTGRES_URL", "jdbc:postgresql://localhost:5432/web"),
    ];

    fn read_with(env: &[(&str, &str)], args: &[&str]) -> Result<Config, String> {
        let env: BTreeMap<String, String> =
            env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let cli = crate::cli::Cli::parse_from(std::iter::once(&"sessionizer").chain(args));
        read(&cli.run, &|name| env.get(name).cloned()).map_err(|fault| fault.to_string())
    }

    #[test]
    fn four_variables_are_enough_and_the_defaults_are_those_of_the_flink_job() {
        let config = read_with(&GOOD, &[]).expect("valid");
        assert_eq!(config.ledger.gap.millis(), 300_000);
        assert_eq!(config.patience.out_of_orderness_ms, 15_000);
        assert_eq!(config.drift, Drift { most_ms: 600_000, sessions: 500_000 });
        assert_eq!((config.workers, config.lanes, config.epoch_ms), (1, 1, 1_000));
        assert_eq!((config.ledger.job.as_str(), config.ledger.shards), ("group", 128));
        assert_eq!(config.ledger.table, "sessionized_events");
        assert_eq!(config.ledger.user, "postgres");
        assert_eq!(config.ledger.password.reveal(), "postgres");
        assert_eq!(config.ledger.session_end, SessionEnd::Window);
        assert!(config.kafka.login.is_none());
        assert_eq!(config.from, From::Earliest);
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once_with_its_name() {
        let env = [("KAFKA_WEB_TRAFFIC_KEY", "k"), ("POSTGRES_URL", "mysql://u:hunter2@h/d")];
        let args = ["--gap", "soon", "-w", "0", "--session-end", "never", "--from", "x"];
        let why = read_with(&env, &args).expect_err("invalid");
        for name in [
            "KAFKA_URL",
            "KAFKA_TOPIC",
            "KAFKA_GROUP",
            "KAFKA_WEB_TRAFFIC_SECRET",
            "POSTGRES_URL",
            "--gap",
            "--workers",
            "--session-end",
            "--from",
        ] {
            assert!(why.contains(&format!("\n  {name} ")), "{name} is missing in {why}");
        }
        assert!(why.starts_with("9 settings") && !why.contains("hunter2"), "{why}");
    }

    #[test]
    fn an_empty_variable_is_one_that_is_not_set() {
        let mut env = GOOD.to_vec();
        env.extend([("KAFKA_WEB_TRAFFIC_KEY", ""), ("KAFKA_WEB_TRAFFIC_SECRET", " ")]);
        assert!(read_with(&env, &[]).expect("valid").kafka.login.is_none());
        env[0].1 = "";
        assert!(read_with(&env, &[]).expect_err("invalid").contains("KAFKA_URL"));
    }

    #[test]
    fn a_user_in_the_url_counts_more_than_the_variable() {
        let mut env = GOOD.to_vec();
        env.extend([("POSTGRES_USER", "env"), ("POSTGRES_PASSWORD", "env-secret")]);
        let config = read_with(&env, &[]).expect("valid");
        assert_eq!((&*config.ledger.user, config.ledger.password.reveal()), ("env", "env-secret"));
        env[3].1 = "postgres://url:url-secret@localhost/web";
        let config = read_with(&env, &[]).expect("valid");
        assert_eq!((&*config.ledger.user, config.ledger.password.reveal()), ("url", "url-secret"));
    }

    #[test]
    fn durations_are_written_as_people_write_them() {
        let args = ["--gap", "300s", "--epoch", "250ms", "--idle-timeout", "1m 30s"];
        let config = read_with(&GOOD, &args).expect("valid");
        assert_eq!((config.ledger.gap.millis(), config.epoch_ms), (300_000, 250));
        assert_eq!(config.patience.idle_timeout_ms, 90_000);
        for bad in ["0s", "5", "-1s", "1ns"] {
            assert!(read_with(&GOOD, &[&format!("--gap={bad}")]).is_err(), "{bad}");
        }
    }

    #[test]
    fn settings_of_librdkafka_pass_through_and_never_show() {
        let args = [
            "--kafka-config",
            "sasl.mechanism=SCRAM-SHA-512",
            "--kafka-config",
            "sasl.password=hunter2",
        ];
        let config = read_with(&GOOD, &args).expect("valid");
        assert_eq!(config.kafka.extra[1].1.reveal(), "hunter2");
        assert!(!format!("{config:?}").contains("hunter2"));
        let cases = [
            ("no.such.setting=hunter2", "no.such.setting"),
            ("fetch.wait.max.ms=hunter2", "fetch.wait.max.ms"),
            ("enable.auto.commit=true", "enable.auto.commit cannot be set"),
            ("hunter2", "name=value"),
        ];
        for (setting, want) in cases {
            let why = read_with(&GOOD, &["--kafka-config", setting]).expect_err(setting);
            assert!(why.contains(want) && !why.contains("hunter2"), "{setting}: {why}");
        }
    }

    #[test]
    fn the_help_shows_no_secret_of_the_environment() {
        use clap::CommandFactory;
        let mut command = crate::cli::Cli::command();
        let secret = |arg: &clap::Arg| arg.get_id() == "kafka_config";
        command.build();
        let everywhere = std::iter::once(&command).chain(command.get_subcommands());
        let args: Vec<&clap::Arg> =
            everywhere.flat_map(|command| command.get_arguments().filter(|a| secret(a))).collect();
        assert_eq!(args.len(), 3, "the job, the producer and the audit take settings");
        assert!(args.iter().all(|arg| arg.is_hide_env_values_set()));
    }

    #[test]
    fn a_process_has_its_place_and_lanes_go_by_all_workers() {
        let config = read_with(&GOOD, &["-n", "3", "-p", "2", "-w", "2"]).expect("valid");
        assert_eq!((config.processes, config.process, config.lanes), (3, 2, 6));
        let lanes = |args: &[&str]| read_with(&GOOD, args).expect("valid").lanes;
        let of_one = |workers| lanes(&["-w", workers]);
        assert_eq!([of_one("1"), of_one("2"), of_one("3"), of_one("8")], [1, 1, 2, 4]);
        assert_eq!(lanes(&["-w", "8", "--sink-connections", "3"]), 3);
        let why = read_with(&GOOD, &["-n", "3", "-p", "3"]).expect_err("only 0 to 2");
        assert!(why.contains("--process ") && why.contains("from 0 to 2"), "{why}");
        assert!(read_with(&GOOD, &["-p", "1"]).is_err(), "one process is process 0");
        assert!(read_with(&GOOD, &["--peer-timeout", "100ms"]).is_err(), "a beat may be late");
    }

    #[test]
    fn what_processes_must_agree_on_names_no_server_and_no_secret() {
        let shared =
            |env: &[(&str, &str)], args: &[&str]| read_with(env, args).expect("valid").shared();
        let mut env = GOOD.to_vec();
        let here = shared(&env, &["-n", "2", "-p", "0"]);
        env.extend([("POSTGRES_PASSWORD", "hunter2"), ("POSTGRES_USER", "other")]);
        (env[0].1, env[3].1) = ("other:9092", "jdbc:postgresql://other:5432/web");
        let elsewhere = ["-n", "2", "-p", "1", "--from", "latest", "--hostfile", "hosts"];
        assert_eq!(here, shared(&env, &elsewhere));
        for (flag, value) in [("--gap", "1m"), ("-w", "2"), ("--late", "drop"), ("--epoch", "2s")] {
            assert_ne!(here, shared(&GOOD, &["-n", "2", flag, value]), "{flag}");
        }
    }

    #[test]
    fn a_cluster_has_one_secret_which_shows_nowhere() {
        let mut env = GOOD.to_vec();
        let file = ["--cluster-secret-file", "/run/secrets/cluster"];
        let config = read_with(&env, &file).expect("valid");
        let path = PathBuf::from("/run/secrets/cluster");
        assert_eq!(config.cluster_secret, Some(SecretSource::File(path)));
        assert!(!read_with(&env, &[]).expect("valid").cluster_insecure);
        env.push(("SESSIONIZER_CLUSTER_SECRET", "hunter2hunter2hunter2"));
        let config = read_with(&env, &[]).expect("valid");
        let secret = SecretSource::Variable(Secret::new("hunter2hunter2hunter2"));
        assert_eq!(config.cluster_secret, Some(secret));
        assert!(!format!("{config:?} {:?}", config.shared()).contains("hunter2"));
        for (args, says) in [
            (&file[..], "SESSIONIZER_CLUSTER_SECRET  is set, and so is --cluster-secret-file"),
            (&["--cluster-insecure"], "--cluster-insecure  contradicts the cluster secret"),
        ] {
            let why = read_with(&env, args).expect_err("only one of them");
            assert!(why.contains(says) && !why.contains("hunter2"), "{why}");
        }
        env.last_mut().expect("the variable").1 = "";
        assert!(read_with(&env, &[]).expect("valid").cluster_secret.is_none());
    }

    #[test]
    fn topics_are_a_list() {
        let mut env = GOOD.to_vec();
        env[1].1 = "a, b,a";
        assert_eq!(read_with(&env, &[]).expect("valid").kafka.topics, ["a", "b"]);
        env[1].1 = "a b";
        assert!(read_with(&env, &[]).expect_err("invalid").contains("no name of a topic"));
    }

    #[test]
    fn a_start_can_be_a_time() {
        let from = |text| read_with(&GOOD, &["--from", text]).map(|config| config.from);
        assert_eq!(from("latest"), Ok(From::Latest));
        assert_eq!(from("2023-11-14T22:13:20Z"), Ok(From::Timestamp(1_700_000_000_000)));
        assert_eq!(from("1700000000000"), Ok(From::Timestamp(1_700_000_000_000)));
    }
}
