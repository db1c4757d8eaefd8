//! `sessionizer demo`: the real job on a broker inside this process, with generated events.
//!
//! Only the broker and the visitors are simulated: the events go through the same consumer,
//! dataflow and transactions as real ones, into the Postgres that POSTGRES_URL names, and at the
//! end the audit reads the topic again. The demo begins with a minute of history, with short visits
//! and a small gap, so that sessions close while you watch. It reads no setting of any other job,
//! and writes to its own table and job, which the next demo replaces.

mod show;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use log::info;
use sessionizer_core::binding::Offset;
use sessionizer_core::fault::Fault;
use sessionizer_core::secret::Secret;

use crate::cli::{DemoArgs, RunArgs};
use crate::commands::audit;
use crate::commands::produce::generate::{Generator, Recipe};
use crate::commands::produce::history;
use crate::commands::produce::history::HistoryPlan;
use crate::commands::produce::pace::Pace;
use crate::config;
use crate::config::{Config, Environment, Problems, duration_ms, number, whole};
use crate::dataflow::ports::LedgerError;
use crate::dataflow::run_state::RunState;
use crate::job;
use crate::job::clock::now_ms;
use crate::kafka::{Admin, EmbeddedBroker, Publisher};
use crate::ledger;
use crate::ledger::LedgerConfig;

/// The job, its consumer group and its table.
const NAME: &str = "sessionizer_demo";
const TOPIC: &str = "web-events";
/// The embedded broker keeps 5 MiB of each partition, and the audit needs everything that was sent.
const PARTITIONS: i32 = 24;
/// Instead of the default of five minutes.
const GAP: &str = "5s";
const HISTORY_MS: i64 = 60_000;
/// The most events a second of history: with more, writing them would take longer than a second.
const MAX_DENSITY: f64 = 2_000.0;
/// How long to wait for the last sessions at most, in addition to the gap.
const LAST_SESSIONS_TIMEOUT: Duration = Duration::from_secs(15);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The validated arguments.
struct Options {
    /// `None`: until Ctrl-C.
    length: Option<Duration>,
    rate: f64,
}

/// Runs the demo.
pub fn demo(args: &DemoArgs, env: &Environment, run_state: &Arc<RunState>) -> Result<(), Fault> {
    let options = read(args, env)?;
    let broker = EmbeddedBroker::start(TOPIC, PARTITIONS)?;
    let config = configure(args, &broker.address(), env)?;
    begin_afresh(&config.ledger)?;
    show::intro(options.rate);
    let began = Instant::now();
    let visitors = {
        let (config, run_state) = (config.clone(), Arc::clone(run_state));
        thread::spawn(move || send(&config, &options, &run_state))
    };
    let job = {
        let (config, run_state) = (config.clone(), Arc::clone(run_state));
        thread::spawn(move || job::run(&config, &run_state))
    };
    while !visitors.is_finished() && !job.is_finished() && run_state.metrics.rows.load(Relaxed) == 0
    {
        thread::sleep(POLL_INTERVAL);
    }
    if run_state.metrics.rows.load(Relaxed) > 0 {
        show::first_rows(&config.ledger, began.elapsed())?;
    }
    let sent = visitors.join().expect("the visitors do not panic");
    if let Ok(sent) = sent
        && !run_state.ending()
    {
        info!("no more visitors: waiting for the last sessions");
        wait_for_silence(&config, sent, run_state);
    }
    run_state.request_stop();
    job.join().expect("the job does not panic")?;
    let sent = sent?;
    if run_state.metrics.records.load(Relaxed) == 0 {
        println!("Stopped before any event was read.");
        return Ok(());
    }
    show::results(&config.ledger)?;
    show::verdict(sent, verify(&config)?);
    show::next_steps(args);
    Ok(())
}

fn read(args: &DemoArgs, env: &Environment) -> Result<Options, Fault> {
    let mut problems = Problems::new(env);
    let length_ms = duration_ms(&args.length, 1_000, 3_600_000)
        .map_err(|what| problems.add("--length", what))
        .unwrap_or_default();
    let rate = number(&args.rate, 1.0, 1e6)
        .map_err(|what| problems.add("--rate", what))
        .unwrap_or_default();
    if let Err(what) = whole(&args.workers, 1, 1_024) {
        problems.add("--workers", what);
    }
    if !problems.is_empty() {
        return Err(problems.fault());
    }
    let length = (!args.keep).then(|| Duration::from_millis(length_ms));
    Ok(Options { length, rate })
}

/// The settings of the job: those of the demo, the defaults, and from the environment only where
/// Postgres is.
fn configure(args: &DemoArgs, broker: &str, env: &Environment) -> Result<Config, Fault> {
    use clap::Parser;
    let settings = [
        ("--workers", args.workers.as_str()),
        ("--job", NAME),
        ("--table", NAME),
        ("--gap", GAP),
        ("--out-of-orderness", "2s"),
        ("--idle-timeout", "1s"),
        ("--max-future", "1m"),
        // A job may run beside it.
        ("--http", "127.0.0.1:0"),
    ];
    let typed = settings.iter().flat_map(|(name, value)| [*name, *value]);
    let cli = crate::cli::Cli::parse_from(std::iter::once("sessionizer").chain(typed));
    let run: RunArgs = cli.run;
    let env = env.with(&[
        ("KAFKA_URL", Some(broker)),
        ("KAFKA_TOPIC", Some(TOPIC)),
        ("KAFKA_GROUP", Some(NAME)),
        ("KAFKA_WEB_TRAFFIC_KEY", None),
        ("KAFKA_WEB_TRAFFIC_SECRET", None),
    ]);
    config::read(&run, &env)
}

/// Removes what an earlier demo left in this database, and nothing else.
fn begin_afresh(ledger: &LedgerConfig) -> Result<(), Fault> {
    let failed = |error| match error {
        LedgerError::Fatal(fault) => fault,
        LedgerError::Retry(why) => Fault::environment(format!("Postgres cannot be used: {why}")),
    };
    let ask = |sql: &str| ledger::query(ledger, sql).map_err(failed);
    // The first row of each answer holds the column names.
    let jobs = ask("select 1 where to_regclass('sessionizer.jobs') is not null")?;
    if !jobs.is_empty() {
        let before = ask(&format!(
            "select format('%I.%I', table_schema, table_name), table_name
             from sessionizer.jobs where job = '{NAME}'"
        ))?;
        match before.get(1).map(Vec::as_slice) {
            None => {}
            Some([quoted, name]) if name == NAME => {
                // Several statements in one message are one transaction.
                ask(&format!(
                    "drop table if exists {quoted};
                     delete from sessionizer.jobs where job = '{NAME}'"
                ))?;
            }
            Some(other) => {
                return Err(Fault::config(format!(
                    "a job of the name {NAME} writes to the table {} in this database, so it was \
                     not made by the demo: point POSTGRES_URL to another database",
                    other[0]
                )));
            }
        }
    }
    if ledger::qualified_table_name(ledger).map_err(failed)?.is_some() {
        return Err(Fault::config(format!(
            "the table {NAME} exists in this database and was not made by the demo: rename or drop \
             it, or point POSTGRES_URL to another database"
        )));
    }
    Ok(())
}

/// Sends the visitors' events: the history at once, then live events at a rate, until the time is
/// over or somebody stops the demo. Returns how many records were sent.
fn send(config: &Config, options: &Options, run_state: &RunState) -> Result<u64, Fault> {
    let recipe = Recipe {
        visitors: 20_000,
        hosts: ["www", "shop", "docs"].map(|name| format!("{name}.example")).to_vec(),
        pause_ms: 1_000,
        disorder_ms: 2_000,
        bad: 0.002,
        late: 0.005,
        late_by_ms: 60_000,
        rate: options.rate,
        ..Recipe::default()
    };
    let now = || now_ms() as i64;
    let mut kafka = config.kafka.clone();
    // Larger batches compress better, and the broker keeps more.
    kafka.extra.push(("linger.ms".to_owned(), Secret::new("100".to_owned())));
    let publisher = Publisher::new(&kafka, "zstd")?;
    let mut sent = 0;
    let history = HistoryPlan { length_ms: HISTORY_MS, density: options.rate.min(MAX_DENSITY) };
    for record in history.records(&recipe, now).map_err(Fault::config)? {
        if run_state.ending() {
            break;
        }
        publisher.send(record.key.as_deref(), record.payload.as_deref())?;
        sent += 1;
    }
    let began = Instant::now();
    let mut pace = Pace::new(options.rate);
    let mut due = 0;
    for record in Generator::new(history::live(&recipe, now())).map_err(Fault::config)? {
        while due == 0 {
            let over = options.length.is_some_and(|length| began.elapsed() >= length);
            if over || run_state.ending() {
                publisher.flush()?;
                return Ok(sent);
            }
            due = pace.due(began.elapsed());
            if due == 0 {
                thread::sleep(pace.wait().min(POLL_INTERVAL));
            }
        }
        due -= 1;
        publisher.send(record.key.as_deref(), record.payload.as_deref())?;
        sent += 1;
    }
    unreachable!("a recipe without a number has no end")
}

/// Waits until everything is read and all sessions have closed, but no longer than the clock needs
/// for that.
fn wait_for_silence(config: &Config, sent: u64, run_state: &RunState) {
    let metrics = &run_state.metrics;
    let gap = Duration::from_millis(config.ledger.gap.millis() as u64);
    let until = Instant::now() + gap + LAST_SESSIONS_TIMEOUT;
    let open = || metrics.records.load(Relaxed) < sent || metrics.open_sessions.load(Relaxed) > 0;
    while open() && !run_state.ending() && Instant::now() < until {
        thread::sleep(POLL_INTERVAL);
    }
}

/// Audits the demo's own topic and table. Returns what the audit says about a table that is right,
/// or `None` if the broker has not kept the topic.
fn verify(config: &Config) -> Result<Option<String>, Fault> {
    let admin = Admin::new(&config.kafka)?;
    for partition in 0..PARTITIONS {
        if admin.offsets(TOPIC, partition)?.0 > Offset::ZERO {
            return Ok(None);
        }
    }
    // The run has ended, so its flags say "stop", but the audit has not begun.
    let report = audit::verify(&config.kafka, &config.ledger, &RunState::default())?;
    report.verdict().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> DemoArgs {
        DemoArgs {
            workers: "3".to_owned(),
            length: "2s".to_owned(),
            rate: "100".to_owned(),
            keep: false,
            temporary_database: false,
        }
    }

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::new(variables.iter().map(|(name, value)| (name.into(), value.into())))
    }

    #[test]
    fn only_where_postgres_is_comes_from_the_environment() {
        let env = environment(&[
            ("POSTGRES_URL", "postgres://db.example/d"),
            ("POSTGRES_USER", "somebody"),
            ("KAFKA_URL", "of another job"),
            ("KAFKA_TOPIC", "of another job"),
            ("KAFKA_GROUP", "of another job"),
            ("KAFKA_WEB_TRAFFIC_KEY", "of another job"),
            ("SESSIONIZER_JOB", "of another job"),
            ("SESSIONIZER_GAP", "of another job"),
        ]);
        let config = configure(&args(), "localhost:1", &env).expect("all is valid");
        assert_eq!(config.ledger.url.database, "d");
        assert_eq!(config.ledger.user, "somebody");
        let own = [&config.ledger.job, &config.ledger.table, &config.kafka.group];
        assert_eq!(own, [NAME; 3]);
        assert_eq!(config.kafka.topics, [TOPIC]);
        assert_eq!(config.kafka.brokers, "localhost:1");
        assert!(config.kafka.login.is_none());
        assert_eq!((config.workers, config.ledger.gap.millis()), (3, 5_000));
    }

    #[test]
    fn everything_that_is_wrong_is_reported_at_once() {
        let wrong = DemoArgs {
            workers: "0".to_owned(),
            length: "soon".to_owned(),
            rate: "x".to_owned(),
            ..args()
        };
        let env = Environment::default();
        let fault = read(&wrong, &env).map(|_| ()).expect_err("three settings are wrong");
        assert_eq!(fault.exit_code(), 2);
        for name in ["--workers", "--length", "--rate"] {
            assert!(fault.to_string().contains(name), "{fault}");
        }
    }
}
