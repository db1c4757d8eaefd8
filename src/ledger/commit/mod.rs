//! One transaction: rows, corrections, dead letters, snapshots, books, bindings and progress of a
//! run of epochs, together or not at all (I4).
//!
//! Read committed is enough: the first statement locks the rows of our shards under our
//! generation (I5), nobody else writes our table, and every other row we touch is only ever
//! added to.
//!
//! Nobody waits for anybody in a circle, because everybody locks in one order: shards, ascending;
//! then what several writers write, epochs and bindings, ascending; then the row of the job. A
//! start takes all shards before it touches the row of the job. What is trimmed is locked without
//! waiting: where another writer is at it, nothing is left to do.

mod late;
mod losses;
mod refused;
mod rows;
mod statements;
mod steps;
mod trim;

use std::sync::Arc;

use postgres::{Client, IsolationLevel, Transaction};
use sessionizer_core::fault::Fault;
use sessionizer_core::key::{Key, Shard};
use sessionizer_core::session::{Closed, Span};
use sessionizer_core::time::Epoch;

use self::refused::Told;
pub(super) use self::refused::{ROW_REFUSED, RefusedRow};
use self::rows::Tried;
pub(super) use self::rows::{Failed, Keep, Refusal, Target};
pub(super) use self::statements::Statements;
use crate::dataflow::ports::{Batch, Ledger, LedgerError, Outcome};
use crate::ledger::LedgerConfig;
use crate::ledger::connect::{classify, connect};
use crate::ledger::past;
use crate::ledger::past::Run;
use crate::ledger::table;
use crate::ledger::table::Table;

/// A writer: a connection and its statements.
pub struct LedgerWriter {
    config: Arc<LedgerConfig>,
    run: Arc<Run>,
    client: Client,
    table: Table,
    /// Whether rows may touch each other, because some were there before the job.
    found_rows: bool,
    /// A loss was accepted that is counted when all shards have passed this epoch.
    loss_epoch: Option<i64>,
    statements: Statements,
    tried: Tried,
    told: Told,
}

impl LedgerWriter {
    /// Connects and prepares.
    pub fn open(config: Arc<LedgerConfig>, run: Arc<Run>) -> Result<Self, LedgerError> {
        let mut client = connect(&config).map_err(in_a_run)?;
        run.meet(&mut client);
        let table = table::of_job(&mut client, &config)?;
        let failed = |why: postgres::Error| classify(&why, "preparing to commit");
        let job = client
            .query_opt(
                "select found_rows, loss_epoch from sessionizer.jobs where job = $1",
                &[&config.job],
            )
            .map_err(failed)?;
        let (found_rows, loss_epoch) = job.map_or((false, None), |row| (row.get(0), row.get(1)));
        let statements = Statements::prepare(&mut client, &table, found_rows).map_err(failed)?;
        let (tried, told) = (Tried::default(), Told::default());
        Ok(LedgerWriter {
            config,
            run,
            client,
            table,
            found_rows,
            loss_epoch,
            statements,
            tried,
            told,
        })
    }

    /// One transaction. With care, it finds out which rows the table refuses, and goes on without.
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
            // The database may have another default.
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
        commit.refused(batch, outcome)?;
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
        // What is deferred to the end of a transaction is checked there.
        done.map_err(|why| target.failed_at(&why, "waiting for the reply to COMMIT"))?;
        self.tried = tried;
        self.tried.stored |= batch.closed.len() > outcome.refused.len();
        self.loss_epoch = loss_epoch.filter(|_| !counted);
        self.run.committed(batch.steps.iter().map(|step| step.to.epoch).max().unwrap_or(0));
        self.told.tell(&letters, &self.table, &self.config);
        Ok(())
    }
}

impl Ledger for LedgerWriter {
    fn commit(&mut self, batch: &Batch, outcome: &mut Outcome) -> Result<(), LedgerError> {
        let failed = match self.attempt(batch, outcome, false) {
            Ok(()) => return Ok(()),
            Err(Failed::Ledger(error)) => return Err(error),
            Err(Failed::Refused(refusal)) => refusal,
        };
        log::debug!("a row is refused, so they are tried apart: {}", failed.message);
        *outcome = Outcome::default();
        self.attempt(batch, outcome, true).map_err(|failed| match failed {
            Failed::Ledger(error) => error,
            Failed::Refused(refusal) => LedgerError::Fatal(Fault::Config(format!(
                "the table {} refuses what it took a moment ago: {}. {}",
                self.table.shown,
                refusal.message,
                refusal.remedy(&self.table.shown)
            ))),
        })
    }

    /// Locks what it reads: a commit whose reply was lost may still be under way, and is waited
    /// for.
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
            return Err(past::why_not(&mut self.client, &self.config, &self.run));
        }
        Ok(rows.iter().map(|row| row.get::<_, i64>(0) as Epoch).collect())
    }
}

/// Rows in the order of the primary key: the server then finds the pages of its index one after
/// another, which spares it a quarter of the work that the rows of a backlog are to it.
fn in_key_order(closed: Vec<&Closed>) -> Vec<(&Key, Span)> {
    // The beginning of the key as a number decides nearly always, and is at hand.
    let beginning = |key: &Key| {
        let mut bytes = [0; 16];
        let length = key.bytes().len().min(16);
        bytes[..length].copy_from_slice(&key.bytes()[..length]);
        u128::from_be_bytes(bytes)
    };
    let mut rows: Vec<(u128, &Key, Span)> =
        closed.iter().map(|closed| (beginning(&closed.key), &closed.key, closed.span)).collect();
    rows.sort_unstable();
    rows.into_iter().map(|(_, key, span)| (key, span)).collect()
}

/// The steps of a commit, in their order.
pub(super) struct Commit<'a> {
    pub tx: Transaction<'a>,
    pub target: Target<'a>,
    pub run: &'a Run,
    /// Whether rows are tried apart, so that one that is refused does not stop the others.
    careful: bool,
    tried: Tried,
    /// What the table has refused, and why.
    letters: Vec<refused::Letter>,
}

impl<'a> Commit<'a> {
    /// For a trial of single steps.
    pub fn trial(tx: Transaction<'a>, target: Target<'a>, run: &'a Run) -> Self {
        let (careful, tried, letters) = (true, Tried::default(), Vec::new());
        Commit { tx, target, run, careful, tried, letters }
    }
}

/// A login that was right at the start and is not any more, or a database that is gone, may come
/// back: a password is being changed, or a backup restored. The next start finds out.
fn in_a_run(error: LedgerError) -> LedgerError {
    match error {
        LedgerError::Fatal(Fault::Config(why)) => LedgerError::Fatal(Fault::Environment(why)),
        other => other,
    }
}
