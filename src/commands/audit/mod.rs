//! `sessionizer audit`: computes the batch answer from the topic, and compares the table with it.
//!
//! It may run beside the job: everything in Postgres is read in one snapshot, each shard at the
//! epoch it had reached by then, and the topic is read up to the offsets bound by that epoch. The
//! recorded totals are compared with both: for each shard, they must match the table and the topic.
//!
//! What was verified is kept in `sessionizer.audit_state`, and the next audit continues from it
//! ([`sessionizer_core::audit`]): it reads only newer records.

mod once;
mod report;
mod topic;

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::{error, info};
use sessionizer_core::fault::Fault;

use self::once::once;
pub use self::report::Report;
use crate::cli::AuditArgs;
use crate::commands::output::printed;
use crate::config;
use crate::config::value::duration_ms;
use crate::config::{Environment, Problems, whole};
use crate::dataflow::run_state::RunState;
use crate::kafka::KafkaConfig;
use crate::ledger::LedgerConfig;
use crate::ui::text;

/// How many differences of each kind are shown by default.
const MAX_SHOWN: usize = 20;
/// The bounds of `--every` and `--keep`.
const YEAR_MS: u64 = 366 * 86_400_000;
/// How often a pause between audits checks whether it must end.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How to audit.
struct Settings {
    /// How many differences of each kind are shown.
    show: usize,
    every: Option<Duration>,
    full: bool,
    record: bool,
    keep_ms: i64,
    /// Whether the log already says that results are not kept.
    not_kept_logged: Cell<bool>,
}

/// Compares and prints the report. The fault says that the table is not the batch answer.
pub fn audit(args: &AuditArgs, env: &Environment, run_state: &Arc<RunState>) -> Result<(), Fault> {
    let (kafka, ledger, settings) = read(args, env)?;
    if let Some(every) = settings.every {
        return repeat(&kafka, &ledger, (&settings, every), run_state);
    }
    let report = once(&kafka, &ledger, &settings, run_state)?;
    printed(report.print(&mut io::stdout().lock()))?;
    let sentence = report.verdict()?;
    printed(writeln(&sentence))
}

/// Audits again and again. Differences, and failures that may pass by themselves, are logged.
fn repeat(
    kafka: &KafkaConfig,
    ledger: &LedgerConfig,
    (settings, every): (&Settings, Duration),
    run_state: &RunState,
) -> Result<(), Fault> {
    loop {
        let began = Instant::now();
        match once(kafka, ledger, settings, run_state) {
            Ok(report) => match report.verdict() {
                Ok(sentence) => info!("{sentence}"),
                Err(fault) => {
                    printed(report.print(&mut io::stdout().lock()))?;
                    error!("{fault}");
                }
            },
            Err(_) if run_state.ending() => {}
            Err(Fault::Environment(why)) => {
                error!(
                    "not audited: {why}. The next audit follows within {}",
                    text::duration(every)
                );
            }
            Err(fault) => return Err(fault),
        }
        while !run_state.ending() && began.elapsed() < every {
            thread::sleep(POLL_INTERVAL.min(every.saturating_sub(began.elapsed())));
        }
        if run_state.ending() {
            return Ok(());
        }
    }
}

/// Compares the table of a job with the topic, and keeps nothing. The fault says why that is
/// impossible; [`Report::verdict`] says whether the table is right.
pub fn verify(
    kafka: &KafkaConfig,
    ledger: &LedgerConfig,
    run_state: &RunState,
) -> Result<Report, Fault> {
    let settings = Settings {
        show: MAX_SHOWN,
        every: None,
        full: true,
        record: false,
        keep_ms: 0,
        not_kept_logged: Cell::new(false),
    };
    once(kafka, ledger, &settings, run_state)
}

fn writeln(line: &str) -> io::Result<()> {
    use io::Write;
    writeln!(io::stdout().lock(), "{line}")
}

fn stopped() -> Fault {
    Fault::environment("the audit was stopped before its end")
}

fn read(
    args: &AuditArgs,
    env: &Environment,
) -> Result<(KafkaConfig, LedgerConfig, Settings), Fault> {
    let mut problems = Problems::new(env);
    let kafka = config::read_kafka(&mut problems, &args.kafka.settings, true, env);
    let ledger = config::read_ledger_of(&mut problems, args.job.name.as_deref(), env);
    let show = problems.take("--show", whole(&args.show, 0, 1_000_000));
    let keep_ms = problems.take("--keep", duration_ms(&args.keep, 0, YEAR_MS));
    let every = args.every.as_deref().map(|every| duration_ms(every, 1_000, YEAR_MS));
    let every = every.and_then(|every| problems.take("--every", every)).map(Duration::from_millis);
    match (kafka, ledger, show, keep_ms) {
        (Some(kafka), Some(ledger), Some(show), Some(keep_ms)) if problems.is_empty() => {
            let settings = Settings {
                show: show as usize,
                every,
                full: args.full,
                record: !args.no_record,
                keep_ms: keep_ms as i64,
                not_kept_logged: Cell::new(false),
            };
            Ok((kafka, ledger, settings))
        }
        _ => Err(problems.fault()),
    }
}
