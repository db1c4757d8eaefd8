//! The steps of a commit, one statement each, and the diagnosis if a statement changes fewer rows
//! than expected.

use std::collections::BTreeMap;

use postgres::Transaction;
use sessionizer_core::binding::{Binding, TopicId};
use sessionizer_core::fault::Fault;
use sessionizer_core::key::Key;
use sessionizer_core::session::Span;
use sessionizer_core::time::{Epoch, EventTime};

use crate::dataflow::messages::DeadLetter;
use crate::dataflow::ports::{Batch, EpochTotals, LedgerError, Outcome, ShardStep};
use crate::ledger::commit::rows::{CopyFailed, Failed};
use crate::ledger::commit::{Commit, changed, rows};
use crate::ledger::copy::{BinaryCopy, CopyError};
use crate::ledger::errors::classify;
use crate::ledger::rollback;

/// The longest detail of a dead letter, in characters.
const DETAIL_CHARS: usize = 500;

impl Commit<'_> {
    /// Moves the shards forward: the fence and the idempotence check in one (I5).
    pub fn progress(&mut self, batch: &Batch) -> Result<(), LedgerError> {
        let steps = &batch.steps;
        let column = |value: fn(&ShardStep) -> u64| -> Vec<i64> {
            steps.iter().map(|step| value(step) as i64).collect()
        };
        let shards: Vec<i32> = steps.iter().map(|step| step.shard.0 as i32).collect();
        let moved = self
            .tx
            .execute(
                &self.target.statements.progress,
                &[
                    &self.target.config.job,
                    &self.run.fence.generation,
                    &shards,
                    &column(|step| step.from),
                    &column(|step| step.to.epoch),
                    &column(|step| step.to.closed),
                    &column(|step| step.to.open),
                    &column(|step| step.to.dead),
                    &self.run.fence.run,
                ],
            )
            .map_err(|why| classify(&why, "moving the progress"))?;
        if moved == steps.len() as u64 {
            return Ok(());
        }
        Err(rollback::diagnose(&mut self.tx, self.target.config, self.run))
    }

    pub(super) fn rows(
        &mut self,
        rows: &[(&Key, Span)],
        outcome: &mut Outcome,
    ) -> Result<(), Failed> {
        if rows.is_empty() {
            return Ok(());
        }
        if !self.careful {
            return self.target.copy(&mut self.tx, rows);
        }
        self.check_without_rows()?;
        let (target, tx) = (self.target, &mut self.tx);
        let refused = rows::write_bisecting(rows, &mut self.tried, target.table, |part, keep| {
            target.attempt(tx, keep, |tx| target.copy(tx, part))
        })?;
        for ((key, span), refusal) in refused {
            self.refuse(key, *span, false, refusal, outcome);
        }
        Ok(())
    }

    /// Refuses to commit rows into columns that have changed since they were checked: they may have
    /// rounded the times without an error. While this transaction has written to the table, they
    /// cannot change.
    pub(super) fn refuse_changed_columns(&mut self, known: &str) -> Result<(), LedgerError> {
        let row = self.tx.query_one(&self.target.statements.columns, &[&self.target.config.job]);
        let row = row.map_err(|why| classify(&why, "looking at the columns of the table"))?;
        if row.get::<_, &str>(0) == known { Ok(()) } else { Err(changed(self.target.table)) }
    }

    pub fn dead_letters(&mut self, letters: &[(Epoch, DeadLetter)]) -> Result<(), LedgerError> {
        if letters.is_empty() {
            return Ok(());
        }
        let copy = "copy sessionizer.dead_letters (job, topic, partition, \"offset\", reason,
                    detail, payload, payload_bytes, read_at) from stdin (format binary)";
        let (job, topics) = (&self.target.config.job, &self.run.topics);
        copy_in(&mut self.tx, copy, |copy| {
            for (epoch, letter) in letters {
                copy.row(9)?;
                copy.text(job);
                copy.text(&topics[usize::from(letter.partition.topic)]);
                copy.int4(letter.partition.number);
                copy.int8(letter.offset.get());
                copy.text(letter.reason.name());
                copy.text(&printable(&letter.detail));
                copy.bytes(letter.payload.as_deref());
                copy.int8(letter.payload_bytes as i64);
                copy.time(EventTime::from_millis(*epoch as i64));
            }
            Ok(())
        })?;
        Ok(())
    }

    pub fn snapshots(&mut self, batch: &Batch) -> Result<(), LedgerError> {
        if batch.snapshots.is_empty() {
            return Ok(());
        }
        let shards: Vec<i32> = batch.snapshots.keys().map(|shard| shard.0 as i32).collect();
        let epochs: Vec<i64> = batch.snapshots.values().map(|(epoch, _)| *epoch as i64).collect();
        let data: Vec<&[u8]> =
            batch.snapshots.values().map(|(_, bytes)| bytes.as_slice()).collect();
        self.tx
            .execute(
                &self.target.statements.snapshots,
                &[&self.target.config.job, &shards, &epochs, &data],
            )
            .map_err(|why| classify(&why, "writing snapshots"))?;
        Ok(())
    }

    pub fn epochs(&mut self, totals: &[EpochTotals]) -> Result<(), LedgerError> {
        let column = |value: fn(&EpochTotals) -> u64| -> Vec<i64> {
            totals.iter().map(|totals| value(totals) as i64).collect()
        };
        let watermarks: Vec<Option<i64>> =
            totals.iter().map(|totals| stored(totals.meta.watermark)).collect();
        let shards: Vec<i32> = totals.iter().map(|totals| totals.shards as i32).collect();
        let late: Vec<&str> = totals.iter().map(|totals| totals.meta.rules.late.name()).collect();
        let entered = self
            .tx
            .execute(
                &self.target.statements.epochs,
                &[
                    &self.target.config.job,
                    &column(|totals| totals.epoch),
                    &watermarks,
                    &shards,
                    &column(|totals| totals.closed),
                    &column(|totals| totals.open),
                    &column(|totals| totals.dead),
                    &column(|totals| totals.meta.rules.max_future_ms as u64),
                    &late,
                ],
            )
            .map_err(|why| classify(&why, "writing the totals"))?;
        match entered == totals.len() as u64 {
            true => Ok(()),
            false => Err(self.other_watermark(totals)),
        }
    }

    /// Finds the epoch whose watermark differs from the one another writer has committed (I2).
    fn other_watermark(&mut self, totals: &[EpochTotals]) -> LedgerError {
        let epochs: Vec<i64> = totals.iter().map(|totals| totals.epoch as i64).collect();
        let there = self.tx.query(
            "select epoch, watermark_ms from sessionizer.epochs where job = $1 and epoch = any($2)",
            &[&self.target.config.job, &epochs],
        );
        let there = match there {
            Ok(there) => there,
            Err(why) => return classify(&why, "comparing watermarks"),
        };
        let there: BTreeMap<i64, Option<i64>> =
            there.iter().map(|row| (row.get(0), row.get(1))).collect();
        let shown = |ms: Option<i64>| match ms {
            Some(ms) => EventTime::from_millis(ms).to_string(),
            None => "none".to_owned(),
        };
        let other = totals.iter().find_map(|totals| {
            let (ours, theirs) =
                (stored(totals.meta.watermark), there.get(&(totals.epoch as i64))?);
            (ours != *theirs).then(|| (totals.epoch, shown(ours), shown(*theirs)))
        });
        let Some((epoch, ours, theirs)) = other else {
            return LedgerError::retry("an epoch changed while it was being written");
        };
        LedgerError::Fatal(Fault::environment(format!(
            "two parts of the job {} disagree: one has committed the watermark {theirs} for the \
             epoch {epoch}, another comes to {ours}, and the watermark decides which sessions \
             close. Nothing of this commit is written, and the next start reads the epoch again. \
             Do all processes run the same version? If they do, this is a bug: please report it",
            self.target.config.job
        )))
    }

    /// Writes all bindings of these epochs. Every writer has them, and the first to commit writes
    /// them (I3).
    pub fn bindings(&mut self, totals: &[EpochTotals]) -> Result<(), LedgerError> {
        let all: Vec<(Epoch, &Binding)> = totals
            .iter()
            .flat_map(|totals| totals.meta.bindings.iter().map(|b| (totals.epoch, b)))
            .collect();
        if all.is_empty() {
            return Ok(());
        }
        let int8 = |value: fn(&Binding) -> i64| -> Vec<i64> {
            all.iter().map(|(_, binding)| value(binding)).collect()
        };
        let epochs: Vec<i64> = all.iter().map(|(epoch, _)| *epoch as i64).collect();
        let topics: Vec<&str> = all
            .iter()
            .map(|(_, b)| self.run.topics[usize::from(b.partition.topic)].as_str())
            .collect();
        let partitions: Vec<i32> = all.iter().map(|(_, b)| b.partition.number).collect();
        let promises: Vec<Option<i64>> = all.iter().map(|(_, b)| stored(b.promise)).collect();
        let topic_ids: Vec<Option<&str>> =
            all.iter().map(|(_, b)| b.topic_id.as_ref().map(TopicId::name)).collect();
        let clocks: Vec<Option<i64>> =
            all.iter().map(|(_, b)| b.clock_ms.map(|clock_ms| clock_ms as i64)).collect();
        let statuses: Vec<&str> = all.iter().map(|(_, b)| b.status.name()).collect();
        self.tx
            .execute(
                &self.target.statements.bindings,
                &[
                    &self.target.config.job,
                    &epochs,
                    &topics,
                    &partitions,
                    &int8(|b| b.start.get()),
                    &int8(|b| b.end.get()),
                    &promises,
                    &statuses,
                    &int8(|b| b.quiet_since as i64),
                    &int8(|b| b.records as i64),
                    &int8(|b| b.dead as i64),
                    &topic_ids,
                    &clocks,
                ],
            )
            .map_err(|why| classify(&why, "writing bindings"))?;
        Ok(())
    }
}

pub(super) fn copy_in(
    tx: &mut Transaction<'_>,
    statement: &str,
    write: impl FnOnce(&mut BinaryCopy<'_>) -> std::io::Result<()>,
) -> Result<u64, CopyFailed> {
    let writer = tx
        .copy_in(statement)
        .map_err(|why| CopyFailed::Begin(classify(&why, "beginning a COPY")))?;
    let mut copy = BinaryCopy::new(writer);
    let done = write(&mut copy).map_err(CopyError::from).and_then(|()| copy.finish());
    done.map_err(CopyFailed::Rows)
}

fn stored(time: EventTime) -> Option<i64> {
    (time > EventTime::NEVER).then_some(time.millis())
}

/// Makes text storable in Postgres and readable by people: no NUL, bounded length.
pub(super) fn printable(text: &str) -> String {
    text.chars().take(DETAIL_CHARS).map(|c| if c == '\0' { '\u{fffd}' } else { c }).collect()
}
