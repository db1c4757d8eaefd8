//! The commit of a run of epochs: rows, corrections, dead letters, snapshots, totals, bindings and
//! progress in one transaction, all or nothing (I4).
//!
//! This module owns the order of the steps, which is that of the calls in `attempt`. `statements`
//! prepares their SQL, and `steps`, `rows`, `late`, `refused`, `losses` and `trim` execute them. It
//! does not know how sessions are made.
//!
//! Read committed is enough: the first statement locks the rows of our shards under our generation
//! (I5), nobody else writes our table, and every other row that a commit touches is only ever added
//! to.
//!
//! Deadlocks cannot occur, because every transaction locks in the same order: shards, ascending;
//! then the rows that several writers share, epochs and bindings, ascending; then the row of the
//! job. A start locks all shards before it touches the row of the job. Trimming skips rows that
//! another writer has locked: that writer is trimming them already.

mod late;
mod losses;
mod refused;
mod rows;
mod statements;
mod steps;
mod trim;

use std::sync::Arc;
use std::time::{Duration, Instant};

use postgres::{Client, IsolationLevel, Transaction};
use sessionizer_core::fault::Fault;
use sessionizer_core::key::{Key, Shard};
use sessionizer_core::session::{Closed, Span};
use sessionizer_core::time::Epoch;

pub use self::refused::ROW_REFUSED;
use self::refused::RefusalWarnings;
pub(super) use self::refused::RefusedRow;
use self::rows::Tried;
pub(super) use self::rows::{Failed, Keep, Refusal, Target};
pub(super) use self::statements::Statements;
use crate::dataflow::ports::{Batch, Ledger, LedgerError, Outcome, WhySilent};
use crate::ledger::LedgerConfig;
use crate::ledger::blocked::{Observer, Session};
use crate::ledger::columns;
use crate::ledger::connect::connect;
use crate::ledger::errors::classify;
use crate::ledger::rollback;
use crate::ledger::rollback::Run;
use crate::ledger::table;
use crate::ledger::table::Table;

/// How often a writer looks whether the table still has the triggers and keys that it had at the
/// start. Its columns are looked at in each commit.
const CHECK_TABLE_EVERY: Duration = Duration::from_secs(60);

/// A writer: a connection and its prepared statements.
pub struct LedgerWriter {
    config: Arc<LedgerConfig>,
    run: Arc<Run>,
    client: Client,
    session: Session,
    /// How the columns of the table were when they were checked.
    columns: String,
    table: Table,
    table_checked: Instant,
    /// Whether the table had rows before the job; those may touch each other.
    found_rows: bool,
    /// The epoch that all shards must pass before an accepted loss is counted.
    loss_epoch: Option<i64>,
    statements: Statements,
    tried: Tried,
    warnings: RefusalWarnings,
}

impl LedgerWriter {
    /// Connects and prepares the statements.
    pub fn open(config: Arc<LedgerConfig>, run: Arc<Run>) -> Result<Self, LedgerError> {
        let mut client = connect(&config).map_err(in_a_run)?;
        run.note_server(&mut client);
        let session = Session::of(&mut client, &config)?;
        let failed = |why: postgres::Error| classify(&why, "preparing to commit");
        // First: what changes after this is noticed.
        let columns = client.query_one(columns::FINGERPRINT, &[&config.job]).map_err(failed)?;
        let columns = columns.get(0);
        let table = table::of_job(&mut client, &config)?;
        let job = client
            .query_opt(
                "select found_rows, loss_epoch from sessionizer.jobs where job = $1",
                &[&config.job],
            )
            .map_err(failed)?;
        let (found_rows, loss_epoch) = job.map_or((false, None), |row| (row.get(0), row.get(1)));
        let statements = Statements::prepare(&mut client, &table, found_rows).map_err(failed)?;
        let (tried, warnings) = (Tried::default(), RefusalWarnings::default());
        Ok(LedgerWriter {
            config,
            run,
            client,
            session,
            columns,
            table,
            table_checked: Instant::now(),
            found_rows,
            loss_epoch,
            statements,
            tried,
            warnings,
        })
    }

    /// Tries one transaction. If `careful`, it isolates the rows that the table refuses and commits
    /// the others.
    fn attempt(
        &mut self,
        batch: &Batch,
        outcome: &mut Outcome,
        careful: bool,
    ) -> Result<(), Failed> {
        let failed = |why: postgres::Error| classify(&why, "committing");
        let target = Target {
            config: &self.config,
            table: &self.table,
            found_rows: self.found_rows,
            statements: &self.statements,
        };
        let mut commit = Commit {
            // Do not rely on the default of the database.
            tx: self
                .client
                .build_transaction()
                .isolation_level(IsolationLevel::ReadCommitted)
                .start()
                .map_err(failed)?,
            target,
            run: &self.run,
            careful,
            tried: self.tried,
            letters: Vec::new(),
        };
        commit.progress(batch)?;
        let (late, on_time): (Vec<&Closed>, Vec<&Closed>) =
            batch.closed.iter().partition(|closed| closed.late);
        commit.rows(&in_key_order(on_time), outcome)?;
        commit.late(&late, outcome)?;
        commit.dead_letters(&batch.dead_letters)?;
        commit.snapshots(batch)?;
        // The totals and the bindings, too: a refused session changes the totals.
        commit.refused(batch, outcome)?;
        if !batch.closed.is_empty() {
            commit.refuse_changed_columns(&self.columns)?;
        }
        if !batch.snapshots.is_empty() {
            commit.trim()?;
        }
        let loss_epoch = commit.replay_differences(&batch.totals)?.or(self.loss_epoch);
        let counted = match loss_epoch {
            Some(epoch) => commit.count_loss(epoch)?,
            None => true,
        };
        let (tried, letters) = (commit.tried, commit.letters);
        let done = commit.tx.commit();
        // COMMIT checks deferred constraints.
        done.map_err(|why| target.failed_at(&why, "waiting for the reply to COMMIT"))?;
        self.tried = tried;
        self.tried.stored |= batch.closed.len() > outcome.refused.len();
        self.loss_epoch = loss_epoch.filter(|_| !counted);
        self.run.committed(batch.steps.iter().map(|step| step.to.epoch).max().unwrap_or(0));
        self.warnings.warn(&letters, &self.table, &self.config);
        Ok(())
    }

    /// Looks at the table again: somebody may have changed it while the job runs, so that it cannot
    /// hold sessions any more, or has to be written in another way.
    fn check_table(&mut self) -> Result<(), LedgerError> {
        let found = table::of_job(&mut self.client, &self.config)?;
        self.table_checked = Instant::now();
        let known = &self.table;
        if (found.time_type, found.rewritten) == (known.time_type, known.rewritten)
            && (found.keyed, found.partitioned) == (known.keyed, known.partitioned)
        {
            return Ok(());
        }
        Err(changed(&found))
    }
}

/// What was prepared for the table does not fit any more: the writer has to begin anew with it.
fn changed(table: &Table) -> LedgerError {
    LedgerError::retry(format!("the table {} has been changed", table.shown))
}

impl Ledger for LedgerWriter {
    fn commit(&mut self, batch: &Batch, outcome: &mut Outcome) -> Result<(), LedgerError> {
        if self.table_checked.elapsed() >= CHECK_TABLE_EVERY {
            self.check_table()?;
        }
        let failed = match self.attempt(batch, outcome, false) {
            Ok(()) => return Ok(()),
            Err(Failed::Ledger(error)) => return Err(error),
            Err(Failed::Refused(refusal)) => refusal,
        };
        self.check_table()?;
        log::debug!("the table refuses a row; retrying row by row: {}", failed.message);
        *outcome = Outcome::default();
        self.attempt(batch, outcome, true).map_err(|failed| match failed {
            Failed::Ledger(error) => error,
            Failed::Refused(refusal) => LedgerError::Fatal(Fault::config(format!(
                "the table {} refuses rows that it accepted a moment ago: {}. {}",
                self.table.shown,
                refusal.message,
                refusal.remedy(&self.table.shown)
            ))),
        })
    }

    /// Locks the rows it reads, and so waits for a commit that is still in flight because its reply
    /// was lost.
    fn progress(&mut self, shards: &[Shard]) -> Result<Vec<Epoch>, LedgerError> {
        let numbers: Vec<i32> = shards.iter().map(|shard| shard.0 as i32).collect();
        let rows = self
            .client
            .query(
                "select epoch from sessionizer.shard_progress
                 where job = $1 and generation = $3 and run = $4 and shard = any($2)
                 order by shard for update",
                &[&self.config.job, &numbers, &self.run.fence.generation, &self.run.fence.run],
            )
            .map_err(|why| classify(&why, "reading progress"))?;
        if rows.len() != shards.len() {
            return Err(rollback::diagnose(&mut self.client, &self.config, &self.run));
        }
        Ok(rows.iter().map(|row| row.get::<_, i64>(0) as Epoch).collect())
    }

    fn why_silent(&self) -> Option<WhySilent> {
        let mut observer = Observer::new(self.session.clone());
        Some(Box::new(move || observer.lock()))
    }
}

/// Sorts rows by the primary key, so that the server visits the pages of its index in order. That
/// saves a quarter of its work on the rows of a backlog.
fn in_key_order(closed: Vec<&Closed>) -> Vec<(&Key, Span)> {
    // Comparing a prefix of the key as a number nearly always decides, without following a pointer.
    let prefix = |key: &Key| {
        let mut bytes = [0; 16];
        let length = key.bytes().len().min(16);
        bytes[..length].copy_from_slice(&key.bytes()[..length]);
        u128::from_be_bytes(bytes)
    };
    let mut rows: Vec<(u128, &Key, Span)> =
        closed.iter().map(|closed| (prefix(&closed.key), &closed.key, closed.span)).collect();
    rows.sort_unstable();
    rows.into_iter().map(|(_, key, span)| (key, span)).collect()
}

/// One commit under way; its methods are the steps.
pub(super) struct Commit<'a> {
    pub tx: Transaction<'a>,
    pub target: Target<'a>,
    pub run: &'a Run,
    /// Whether to isolate refused rows, so that they do not keep the others out.
    careful: bool,
    tried: Tried,
    /// The sessions that the table has refused, and why.
    letters: Vec<refused::Letter>,
}

impl<'a> Commit<'a> {
    /// A commit of which only individual steps are tried.
    pub fn trial(tx: Transaction<'a>, target: Target<'a>, run: &'a Run) -> Self {
        let (careful, tried, letters) = (true, Tried::default(), Vec::new());
        Commit { tx, target, run, careful, tried, letters }
    }

    /// Writes sessions that have closed, and merges the late ones with the rows that they touch.
    /// Returns those that the table refuses, and why.
    pub fn sessions(
        &mut self,
        closed: &[Closed],
        outcome: &mut Outcome,
    ) -> Result<Vec<(Key, Span, String)>, Failed> {
        let (late, on_time): (Vec<&Closed>, Vec<&Closed>) =
            closed.iter().partition(|closed| closed.late);
        self.rows(&in_key_order(on_time), outcome)?;
        self.late(&late, outcome)?;
        Ok(self.letters.iter().map(refused::Letter::to_parts).collect())
    }
}

/// During a run, a login that stops working or a database that disappears may come back: somebody
/// may be changing a password or restoring a backup. The next start finds out.
fn in_a_run(error: LedgerError) -> LedgerError {
    match error {
        LedgerError::Fatal(Fault::Config(why)) => LedgerError::Fatal(Fault::Environment(why)),
        other => other,
    }
}
