//! Starts what lets others watch a run: the HTTP port, the report on SIGUSR1, and systemd's
//! notifications.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sessionizer_core::fault::Fault;

use crate::cli::version;
use crate::config::Config;
use crate::dataflow::run_state::RunState;
use crate::job::clock::now_ms;
use crate::job::notify::Notifier;
use crate::job::report::Reporter;
use crate::ledger::BalanceWatch;
use crate::monitor::condition::Ended;
use crate::monitor::{AskBalance, Asked, AuditRow, BalanceRow, JobFacts, Monitor};
use crate::random;

/// How often the last audit is read, at most, while somebody looks.
const AUDIT_INTERVAL: Duration = Duration::from_secs(15);

/// What lets others watch the runs of this process.
pub(super) struct Watchers {
    monitor: Option<Monitor>,
    reporter: Reporter,
    notifier: Notifier,
}

impl Watchers {
    pub(super) fn start(config: &Config, run_state: &Arc<RunState>) -> Self {
        let (http, facts) = (&config.http, facts(config));
        Watchers {
            reporter: Reporter::start(config.process, run_state),
            notifier: Notifier::start(facts.clone(), run_state),
            monitor: Monitor::start(http, facts, run_state, now_ms, ask_balance(config)),
        }
    }

    /// Watches another run from now on.
    pub(super) fn follow(&self, run_state: &Arc<RunState>) {
        self.reporter.follow(run_state);
        self.notifier.follow(run_state);
        if let Some(monitor) = &self.monitor {
            monitor.follow(run_state);
        }
    }

    /// Shows how the last run ended.
    pub(super) fn end(self, result: &Result<(), Fault>, stopping: bool) {
        if let Some(monitor) = self.monitor {
            monitor.end(ended(result, stopping));
        }
    }
}

/// How a run ended. `stopping` says whether it had been asked to stop.
fn ended(result: &Result<(), Fault>, stopping: bool) -> Ended {
    match result {
        Ok(()) => Ended::Stopped,
        Err(Fault::Fenced(_)) => Ended::Fenced,
        // Mostly after --stop-timeout. The next start makes up for it: there is nothing to correct.
        Err(Fault::Environment(why) | Fault::GoneBack(why) | Fault::Peer(why)) if stopping => {
            Ended::Uncommitted(why.to_string())
        }
        Err(fault) => Ended::Failed(fault.to_string()),
    }
}

/// What the displays need to know about the job.
pub(super) fn facts(config: &Config) -> JobFacts {
    let Config { ledger, watermark, http, .. } = config;
    let loopback = http.address.is_some_and(|address| address.ip().is_loopback());
    JobFacts {
        run: format!("{:016x}", random::id()),
        version: version::VERSION,
        revision: version::COMMIT,
        job: ledger.job.clone(),
        table: ledger.table.clone(),
        topics: config.kafka.topics.clone(),
        gap_ms: ledger.gap.millis() as u64,
        end_after_ms: ledger.session_end.after_ms(ledger.gap),
        out_of_orderness_ms: watermark.out_of_orderness_ms,
        idle_timeout_ms: watermark.idle_timeout_ms,
        epoch_ms: config.epoch_ms,
        late: config.rules.late.name(),
        until_end: config.until_end,
        process: config.process,
        processes: config.processes,
        workers: config.workers,
        writers: config.writers,
        masked: !loopback && !http.full,
        started_ms: now_ms(),
        // An epoch that is not over yet cannot be durable.
        ready_within: http.ready_within.max(std::time::Duration::from_millis(config.epoch_ms * 3)),
    }
}

fn ask_balance(config: &Config) -> AskBalance {
    let mut watch = BalanceWatch::new(&config.ledger);
    let shows_audits = config.process == 0;
    let mut asked: Option<Instant> = None;
    Box::new(move || {
        let balance = match watch.read() {
            Ok(Some((epoch, found))) => Ok(BalanceRow {
                as_of_ms: epoch,
                records: found.records,
                closed: found.closed,
                open: found.open,
                dead: found.dead,
                lost: found.lost,
                forgotten: found.forgotten,
                difference: found.difference,
            }),
            Ok(None) => Err("nothing had been committed when Postgres was last asked".to_owned()),
            Err(why) => Err(format!("Postgres did not answer: {why}")),
        };
        let due = asked.is_none_or(|asked| asked.elapsed() >= AUDIT_INTERVAL);
        let audit = (shows_audits && due).then(|| {
            asked = Some(Instant::now());
            last_audit(&mut watch)
        });
        Asked { balance, audit: audit.flatten() }
    })
}

/// The last audit; `None` if it cannot be read.
fn last_audit(watch: &mut BalanceWatch) -> Option<Option<AuditRow>> {
    let found = watch.last_audit();
    let found =
        found.inspect_err(|why| log::debug!("the last audit cannot be read: {why}")).ok()?;
    Some(found.map(|found| AuditRow {
        audited_at_ms: found.audited_at_ms,
        watermark_ms: found.watermark_ms,
        incremental: found.incremental,
        rows: found.rows,
        differences: found.differences,
        unverifiable: found.unverifiable,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_that_could_not_commit_is_no_failure_of_the_job() {
        let why = || "stopped without a last commit".to_owned();
        for (fault, stopping, want) in [
            (None, true, Ended::Stopped),
            (None, false, Ended::Stopped),
            (Some(Fault::environment(why())), true, Ended::Uncommitted(why())),
            (Some(Fault::environment(why())), false, Ended::Failed(why())),
            (Some(Fault::config(why())), true, Ended::Failed(why())),
            (Some(Fault::fenced(why())), true, Ended::Fenced),
        ] {
            let result = fault.clone().map_or(Ok(()), Err);
            assert_eq!(ended(&result, stopping), want, "{fault:?}, {stopping}");
        }
    }
}
