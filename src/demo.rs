//! `sessionizer demo`: the real job on a broker inside this process, with generated events.
//!
//! Nothing is faked but the broker and the visitors: the events go through the same consumer,
//! dataflow and transactions as those of a user, into the Postgres that POSTGRES_URL names. The
//! visits are short and the gap is small, so that sessions close while one looks on.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use log::info;

use crate::cli::{DemoArgs, RunArgs};
use crate::config::{self, Config, Environment, Problems, duration_ms, number};
use crate::control::{Control, Fault};
use crate::kafka::{EmbeddedBroker, Publisher};
use crate::ledger;
use crate::produce::generate::{Generator, Recipe};
use crate::produce::pace::Pace;
use crate::run::{self, now_ms};

const TOPIC: &str = "web-events";
const PARTITIONS: i32 = 4;
/// The gap of the demo in seconds, in place of the five minutes of real life.
const GAP: &str = "8s";

/// A question and the query that answers it.
const TABLES: [(&str, &str); 4] = [
    (
        "The longest sessions",
        "select ip, host, to_char(session_start, 'HH24:MI:SS.MS') as session_start,
                to_char(session_end, 'HH24:MI:SS.MS') as session_end, num_logs
         from {table} order by num_logs desc, session_start limit 8",
    ),
    (
        "Sessions by host",
        "select host, count(*) as sessions, count(distinct ip) as visitors,
                sum(num_logs) as events, round(avg(num_logs), 2) as events_per_session
         from {table} group by host order by sessions desc limit 5",
    ),
    (
        "What did not decode",
        "select reason, count(*) as records, left(min(detail), 60) as example
         from sessionizer.dead_letters where job = {job} group by reason order by 2 desc",
    ),
    (
        "The balance: every record is in a closed session, an open one, or a dead letter",
        "select records, closed, open, dead, difference from sessionizer.balance
         where job = {job}",
    ),
];

/// Runs the demo.
pub fn demo(args: &DemoArgs, env: &Environment, control: &Arc<Control>) -> Result<(), Fault> {
    let mut problems = Problems::new(env);
    let length_ms = duration_ms(&args.length, 1_000, 3_600_000).unwrap_or_else(|what| {
        problems.add("--length", what);
        0
    });
    let rate = number(&args.rate, 1.0, 1e6).unwrap_or_else(|what| {
        problems.add("--rate", what);
        0.0
    });
    if !problems.is_empty() {
        return Err(problems.fault());
    }
    let broker = EmbeddedBroker::start(TOPIC, PARTITIONS)?;
    let config = configure(args, env, &broker.address())?;
    info!(
        "the demo: {rate} events/s from 20,000 visitors, out of order by up to 2 s, one in 500 bad, \
         one in 200 late; a session ends after {GAP} of silence"
    );
    let length = (!args.keep).then(|| Duration::from_millis(length_ms));
    let visitors = {
        let (config, control) = (config.clone(), Arc::clone(control));
        thread::spawn(move || send(&config, rate, length, &control))
    };
    let job = {
        let (config, control) = (config.clone(), Arc::clone(control));
        thread::spawn(move || run::run(&config, &control))
    };
    let sent = visitors.join().expect("the visitors do not panic");
    if sent.is_ok() && !control.stopping() {
        info!("no more visitors: the last sessions close when time has passed them");
        wait_for_silence(&config, control);
    }
    control.request_stop();
    job.join().expect("the job does not panic")?;
    let sent = sent?;
    show(&config)?;
    println!("{sent} events were sent, {} records were read.", records(control));
    Ok(())
}

fn records(control: &Control) -> u64 {
    control.gauges.records.load(std::sync::atomic::Ordering::Relaxed)
}

fn configure(args: &DemoArgs, env: &Environment, broker: &str) -> Result<Config, Fault> {
    use clap::Parser;
    let settings = [
        ("--workers", args.workers.as_str()),
        ("--job", &args.job),
        ("--gap", GAP),
        ("--out-of-orderness", "2s"),
        ("--idle-timeout", "2s"),
        ("--max-future", "1m"),
    ];
    let typed = settings.iter().flat_map(|(name, value)| [*name, *value]);
    let cli = crate::cli::Cli::parse_from(std::iter::once("sessionizer").chain(typed));
    let run: RunArgs = cli.run;
    let env = env.with(&[
        ("KAFKA_URL", Some(broker)),
        ("KAFKA_TOPIC", Some(TOPIC)),
        ("KAFKA_GROUP", Some(&args.job)),
        ("KAFKA_WEB_TRAFFIC_KEY", None),
        ("KAFKA_WEB_TRAFFIC_SECRET", None),
    ]);
    config::read(&run, &env)
}

/// The visitors: live events at a rate, until the time is over or somebody stops the demo.
fn send(
    config: &Config,
    rate: f64,
    length: Option<Duration>,
    control: &Control,
) -> Result<u64, Fault> {
    let recipe = Recipe {
        visitors: 20_000,
        pause_ms: 1_000,
        disorder_ms: 2_000,
        bad: 0.002,
        late: 0.005,
        late_by_ms: 60_000,
        rate,
        start_ms: now_ms() as i64 - 2_000,
        ..Recipe::default()
    };
    let publisher = Publisher::new(&config.kafka, "none")?;
    let began = Instant::now();
    let mut pace = Pace::new(rate);
    let mut due = 0;
    let mut sent = 0;
    for record in Generator::new(recipe).map_err(Fault::Config)? {
        while due == 0 {
            if length.is_some_and(|length| began.elapsed() >= length) || control.ending() {
                publisher.flush()?;
                return Ok(sent);
            }
            due = pace.due(began.elapsed());
            if due == 0 {
                thread::sleep(pace.wait().min(Duration::from_millis(50)));
            }
        }
        due -= 1;
        publisher.send(record.key.as_deref(), record.payload.as_deref())?;
        sent += 1;
    }
    Ok(sent)
}

/// Waits until all sessions have closed, at most as long as that takes by the clock.
fn wait_for_silence(config: &Config, control: &Control) {
    let gap = Duration::from_millis(config.ledger.gap.millis() as u64);
    let until = Instant::now() + gap + Duration::from_secs(15);
    let open = || control.gauges.open_sessions.load(std::sync::atomic::Ordering::Relaxed);
    thread::sleep(Duration::from_secs(2));
    while open() > 0 && !control.ending() && Instant::now() < until {
        thread::sleep(Duration::from_millis(100));
    }
}

/// Prints what came of it.
fn show(config: &Config) -> Result<(), Fault> {
    let quoted = format!("'{}'", config.ledger.job.replace('\'', "''"));
    for (title, sql) in TABLES {
        let sql = sql.replace("{table}", &config.ledger.table).replace("{job}", &quoted);
        let rows = ledger::query(&config.ledger, &sql)
            .map_err(|why| Fault::World(format!("the results cannot be shown: {why}")))?;
        let mut rows = rows.into_iter();
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        table.set_content_arrangement(ContentArrangement::Dynamic);
        if let Some(header) = rows.next() {
            table.set_header(header);
        }
        table.add_rows(rows);
        println!("\n{title}\n{table}");
    }
    Ok(())
}
