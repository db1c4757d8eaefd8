//! A writer: keeps the totals of its shards, and commits runs of epochs to the ledger.
//!
//! [`Writer`] is a state machine with one step: take what waits, try to commit it, learn the
//! outcome. Its driver decides when: a thread of its own (`driver.rs`), or the operator itself in
//! tests that control every step. A writer knows the ledger only through its port.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use sessionizer_core::fault::Fault;
use sessionizer_core::key::Shard;
use sessionizer_core::plan::RecoveryPlan;
use sessionizer_core::time::Epoch;

use crate::dataflow::commit::table_changes::TableChanges;
use crate::dataflow::commit::totals::WriterTotals;
use crate::dataflow::messages::{Change, DeadLetter, EpochMeta, ShardOutput};
use crate::dataflow::ports::{Batch, Ledger, LedgerError, Outcome, Refused, WhySilent};
use crate::dataflow::run_state::RunState;
use crate::ui::text;
use crate::ui::trouble::RepeatedFailure;
use crate::ui::waiting::{Awaited, WaitGuard};

/// A transaction takes no further epochs once it has this many rows and dead letters.
const ROWS_PER_BATCH: usize = 500_000;

/// The reason of the dead letter that stands for a session that the table refuses.
pub const ROW_REFUSED: &str = "row_refused";

/// Opens the ledger of a writer, on the thread that drives it; takes the writer's number.
pub type OpenLedger = Arc<dyn Fn(u32) -> Result<Box<dyn Ledger>, LedgerError> + Send + Sync>;

/// Everything that one writer has to commit for one epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriterEpoch {
    pub epoch: Epoch,
    pub meta: EpochMeta,
    pub outputs: Vec<ShardOutput>,
    pub dead_letters: Vec<DeadLetter>,
}

impl WriterEpoch {
    fn rows(&self) -> usize {
        let of = |output: &ShardOutput| output.closed.len() + output.dropped.len();
        self.outputs.iter().map(of).sum::<usize>() + self.dead_letters.len()
    }
}

/// The outcome of a writer's step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StepOutcome {
    /// Nothing waits.
    Idle,
    /// Everything up to and including this epoch is durable, and these are the changes in the
    /// table.
    Durable(Epoch, Vec<Change>),
    /// It failed, and may work later.
    Failed,
}

/// A writer and the epochs that wait for it.
pub struct Writer {
    writer: u32,
    /// The first epoch that is not replayed.
    first_epoch: Epoch,
    totals: WriterTotals,
    open: OpenLedger,
    ledger: Option<Box<dyn Ledger>>,
    why_silent: Arc<Mutex<Option<WhySilent>>>,
    run_state: Arc<RunState>,
    waiting: VecDeque<WriterEpoch>,
    /// The run that is being committed, and its last epoch; it stays the same until it is durable.
    run: Option<(Batch, Epoch)>,
    /// What the last attempt did to the table.
    outcome: Outcome,
    /// Whether the last attempt may have been committed: its reply may have been lost.
    unsure: bool,
    failing: Option<Failing>,
}

/// Attempts that have failed, one after the other.
struct Failing {
    since: Instant,
    waiting: WaitGuard,
    repeated: RepeatedFailure,
}

impl Writer {
    pub fn new(
        writer: u32,
        writers: u32,
        plan: &RecoveryPlan,
        open: OpenLedger,
        run_state: Arc<RunState>,
    ) -> Self {
        Writer {
            writer,
            first_epoch: plan.first_epoch,
            totals: WriterTotals::new(writer, writers, plan),
            open,
            ledger: None,
            why_silent: Arc::default(),
            run_state,
            waiting: VecDeque::new(),
            run: None,
            outcome: Outcome::default(),
            unsure: false,
            failing: None,
        }
    }

    pub(super) fn number(&self) -> u32 {
        self.writer
    }

    pub(super) fn run_state(&self) -> &RunState {
        &self.run_state
    }

    /// Whether the last attempt failed; that has been reported.
    pub(super) fn is_failing(&self) -> bool {
        self.failing.is_some()
    }

    /// What another thread may ask while a step takes long. It changes with the connection.
    pub(super) fn why_silent(&self) -> Arc<Mutex<Option<WhySilent>>> {
        Arc::clone(&self.why_silent)
    }

    /// Adds an epoch; epochs come in order.
    pub fn submit(&mut self, part: WriterEpoch) {
        let last = self.waiting.back().map(|last| last.epoch);
        debug_assert!(last < Some(part.epoch), "I5: epoch {} comes after {last:?}", part.epoch);
        self.waiting.push_back(part);
        self.show_waiting();
    }

    /// Shows what waits, and what is being committed.
    fn show_waiting(&self) {
        let rows = self.waiting.iter().map(WriterEpoch::rows).sum::<usize>();
        let committing = self.run.as_ref().map_or(0, |(batch, _)| batch.closed.len());
        self.run_state.metrics.figures.writer(self.writer, |shown| {
            shown.waiting_epochs = (self.waiting.len() + usize::from(self.run.is_some())) as u64;
            shown.waiting_rows = (rows + committing) as u64;
        });
    }

    /// Shows a commit that has succeeded.
    fn show_commit(&self, batch: &Batch, upto: Epoch, refused: &[Refused], began: Instant) {
        let figures = &self.run_state.metrics.figures;
        figures.writer(self.writer, |shown| {
            let took = began.elapsed();
            shown.committing_since = None;
            shown.durable_epoch = upto;
            shown.commits += 1;
            shown.rows += (batch.closed.len() - refused.len()) as u64;
            shown.last_commit = Some(took);
            shown.took.observe(took.as_secs_f64());
        });
        figures.committed();
        for (shard, (epoch, bytes)) in &batch.snapshots {
            figures.snapshot(*shard, *epoch, bytes.len() as u64);
        }
        for Refused { session, .. } in refused {
            let (_ip, host) = session.key.parts();
            let detail = format!("a session on {host}: the table refuses its row");
            figures.refused(ROW_REFUSED, session.span.count, upto, detail);
        }
    }

    /// Tries to commit what waits: as many epochs as one transaction takes.
    pub fn step(&mut self) -> Result<StepOutcome, Fault> {
        if self.run.is_none() {
            let Some((epochs, upto)) = self.take_waiting() else { return Ok(StepOutcome::Idle) };
            let Some(batch) = self.totals.enter(epochs) else {
                // It was committed before this start.
                return Ok(StepOutcome::Durable(upto, Vec::new()));
            };
            self.run = Some((batch, upto));
            self.run_state.metrics.writers_committing.fetch_add(1, Relaxed);
        }
        let began = Instant::now();
        self.show_waiting();
        let figures = &self.run_state.metrics.figures;
        figures.writer(self.writer, |shown| shown.committing_since = Some(began));
        match self.attempt() {
            Ok(()) => {
                self.report_recovery();
                Ok(self.end_run(began))
            }
            Err(LedgerError::Fatal(fault)) => Err(fault),
            Err(LedgerError::Retry(why)) => {
                self.unsure = true;
                self.ledger = None;
                self.report_failure(&why.to_string());
                Ok(StepOutcome::Failed)
            }
        }
    }

    /// Takes the epochs of the next run from those that wait; also returns the last of them. What
    /// is replayed is not joined with what is new, so that after the last replayed epoch all its
    /// rows are known.
    fn take_waiting(&mut self) -> Option<(Vec<WriterEpoch>, Epoch)> {
        let first = self.waiting.pop_front()?;
        let mut rows = first.rows();
        let mut upto = first.epoch;
        let mut epochs = vec![first];
        let is_new = |epoch| epoch >= self.first_epoch;
        while rows < ROWS_PER_BATCH
            && self.waiting.front().is_some_and(|next| is_new(next.epoch) == is_new(upto))
            && let Some(next) = self.waiting.pop_front()
        {
            rows += next.rows();
            upto = next.epoch;
            epochs.push(next);
        }
        Some((epochs, upto))
    }

    /// Ends the run, which is durable: counts what it did to the table, and tells of it.
    fn end_run(&mut self, began: Instant) -> StepOutcome {
        let (batch, upto) = self.run.take().expect("a run was tried");
        let outcome = std::mem::take(&mut self.outcome);
        self.show_commit(&batch, upto, &outcome.refused, began);
        self.show_waiting();
        let late = batch.closed.iter().filter(|closed| closed.late);
        let late_events: u64 = late.map(|closed| closed.span.count).sum();
        let refused = self.totals.refuse(&outcome.refused);
        let sessions = batch.closed.len() - outcome.refused.len();
        let changes = TableChanges::of(batch, outcome);
        let late = sessions as u64 - changes.on_time;
        log::debug!(
            epoch = upto,
            writer = self.writer,
            rows = changes.on_time,
            late = late,
            dead = refused;
            "committed"
        );
        let metrics = &self.run_state.metrics;
        metrics.dead.fetch_add(refused, Relaxed);
        metrics.rows.fetch_add(changes.on_time, Relaxed);
        metrics.late.fetch_add(late, Relaxed);
        metrics.late_events.fetch_add(late_events, Relaxed);
        metrics.commits.fetch_add(1, Relaxed);
        metrics.writers_committing.fetch_sub(1, Relaxed);
        StepOutcome::Durable(upto, changes.all)
    }

    /// Makes one attempt. If it is not known whether the last attempt was committed, the progress
    /// of the shards shows it: a transaction moves all of them, or none.
    fn attempt(&mut self) -> Result<(), LedgerError> {
        let (batch, upto) = self.run.as_ref().expect("a run is tried");
        let upto = *upto;
        if self.ledger.is_none() {
            let ledger = (self.open)(self.writer)?;
            let mut why_silent = self.why_silent.lock().unwrap_or_else(PoisonError::into_inner);
            *why_silent = ledger.why_silent();
            drop(why_silent);
            self.ledger = Some(ledger);
        }
        let ledger = self.ledger.as_mut().expect("just opened");
        if self.unsure {
            let shards: Vec<Shard> = batch.steps.iter().map(|step| step.shard).collect();
            let progress = ledger.progress(&shards)?;
            self.unsure = false;
            if batch.steps.iter().zip(&progress).all(|(step, epoch)| step.to.epoch == *epoch) {
                log::info!(
                    writer = self.writer, epoch = upto;
                    "writer {}: the commit whose reply was lost had succeeded",
                    self.writer
                );
                return Ok(());
            }
        }
        self.outcome = Outcome::default();
        ledger.commit(batch, &mut self.outcome)
    }

    fn report_failure(&mut self, why: &str) {
        let failing = self.failing.get_or_insert_with(|| Failing {
            since: Instant::now(),
            waiting: WaitGuard::new(Awaited::Postgres(None), None),
            repeated: RepeatedFailure::default(),
        });
        failing.waiting.because(why);
        let (since, writer) = (failing.since, self.writer);
        let epoch = self.run.as_ref().map_or(0, |(_, upto)| *upto);
        match failing.repeated.record(since.elapsed()) {
            Some(1) => log::warn!(
                writer = writer, epoch = epoch;
                "writer {writer}: cannot commit, will keep trying: {why}"
            ),
            Some(times) => log::warn!(
                writer = writer, epoch = epoch, attempts = times;
                "writer {writer}: still cannot commit, after {} and {}: {why}",
                text::duration(since.elapsed()),
                text::plural(times, "attempt")
            ),
            None => {}
        }
        self.run_state.metrics.figures.writer(self.writer, |shown| {
            shown.committing_since = None;
            shown.failing_since = Some(since);
            shown.error = Some(why.to_owned());
            shown.failures += 1;
        });
        log::debug!(
            writer = writer, epoch = epoch;
            "writer {writer}: failing for {:?}: {why}",
            since.elapsed()
        );
    }

    fn report_recovery(&mut self) {
        if let Some(Failing { since, .. }) = self.failing.take() {
            let lasted = text::duration(since.elapsed());
            log::info!(
                writer = self.writer;
                "writer {}: commits again, after {lasted}",
                self.writer
            );
            self.run_state.metrics.figures.writer(self.writer, |shown| {
                (shown.failing_since, shown.error) = (None, None);
            });
        }
    }
}

#[cfg(test)]
mod tests {

    use sessionizer_core::binding::{Late, RecordRules};
    use sessionizer_core::plan::{Fence, ShardProgress};
    use sessionizer_core::time::EventTime;

    use super::*;

    /// Notes the epochs of each transaction.
    struct Transactions(Arc<Mutex<Vec<Vec<Epoch>>>>);

    impl Ledger for Transactions {
        fn commit(&mut self, batch: &Batch, _outcome: &mut Outcome) -> Result<(), LedgerError> {
            let epochs = batch.totals.iter().map(|totals| totals.epoch).collect();
            self.0.lock().expect("alone").push(epochs);
            Ok(())
        }

        fn progress(&mut self, _shards: &[Shard]) -> Result<Vec<Epoch>, LedgerError> {
            Err(LedgerError::retry("nothing is ever in doubt"))
        }
    }

    #[test]
    fn a_transaction_joins_what_waits_but_not_what_is_replayed_with_what_is_new() {
        let rules = RecordRules { max_future_ms: 0, late: Late::Merge };
        let plan = RecoveryPlan {
            fence: Fence::default(),
            topics: Vec::new(),
            topic_ids: Vec::new(),
            rules,
            lost_before: None,
            // It had committed the first of the epochs that are replayed.
            progress: vec![ShardProgress { epoch: 5, ..ShardProgress::default() }],
            base_epoch: 4,
            base_watermark: EventTime::NEVER,
            replay: Vec::new(),
            first_epoch: 8,
            age_ms: 0,
            partitions: Vec::new(),
        };
        let transactions: Arc<Mutex<Vec<Vec<Epoch>>>> = Arc::default();
        let ledger = Arc::clone(&transactions);
        let open: OpenLedger = Arc::new(move |_| Ok(Box::new(Transactions(Arc::clone(&ledger)))));
        let mut writer = Writer::new(0, 1, &plan, open, Arc::default());
        for epoch in 5..12 {
            let meta = EpochMeta {
                watermark: EventTime::NEVER,
                rules,
                bindings: Vec::new(),
                lagging: Vec::new(),
                differences: Vec::new(),
            };
            let (outputs, dead_letters) = (Vec::new(), Vec::new());
            writer.submit(WriterEpoch { epoch, meta, outputs, dead_letters });
        }
        let mut step = || writer.step().expect("no fault");
        assert_eq!(step(), StepOutcome::Durable(7, Vec::new()));
        assert_eq!(step(), StepOutcome::Durable(11, Vec::new()));
        assert_eq!(step(), StepOutcome::Idle);
        let transactions = transactions.lock().expect("alone");
        assert_eq!(*transactions, [vec![6, 7], vec![8, 9, 10, 11]]);
    }
}
