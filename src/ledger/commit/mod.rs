//! One transaction: rows, corrections, dead letters, snapshots, books, bindings and progress of a
//! run of epochs, together or not at all (I4).
//!
//! Read committed is enough: the first statement locks the rows of our shards under our
//! generation (I5), nobody else writes our table, and every other row we touch is only ever
//! added to.
//!
//! Nobody waits for anybody in a circle, because everybody locks in one order: shards, ascending;
//! then what several writers write, epochs and bindings, ascending; then the row of the job. A start
//! takes all shards before it touches the row of the job. What is trimmed is locked without waiting:
//! where another writer is at it, nothing is left to do.

mod late;
mod refused;
mod rows;

use std::collections::BTreeMap;
use std::sync::Arc;

use postgres::{Client, GenericClient, IsolationLevel, Statement, Transaction};
use sessionizer_core::binding::TopicId;
use sessionizer_core::fault::Fault;
use sessionizer_core::key::{Key, Shard};
use sessionizer_core::session::{Closed, Span};
use sessionizer_core::time::{Epoch, EventTime};

use self::refused::Told;
pub(super) use self::refused::{ROW_REFUSED, RefusedRow};
use self::rows::{CopyFailed, Tried};
pub(super) use self::rows::{Failed, Keep, Refusal, Target};
use crate::dataflow::messages::DeadLetter;
use crate::dataflow::ports::{Batch, EpochTotals, Ledger, LedgerError, Outcome};
use crate::ledger::LedgerConfig;
use crate::ledger::connect::{classify, connect};
use crate::ledger::copy::{BinaryCopy, CopyError};
use crate::ledger::past;
use crate::ledger::past::Run;
use crate::ledger::table;
use crate::ledger::table::Table;

/// No detail of a dead letter is longer, in characters.
const DETAIL_CHARS: usize = 500;

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

/// Statements that are prepared once.
pub(super) struct Statements {
    progress: Statement,
    epochs: Statement,
    bindings: Statement,
    snapshots: Statement,
    late: late::Statements,
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

impl Statements {
    pub(super) fn prepare(
        client: &mut impl GenericClient,
        table: &Table,
        found_rows: bool,
    ) -> Result<Self, postgres::Error> {
        Ok(Statements {
            progress: client.prepare(
                "with mine as materialized (
                     select shard from sessionizer.shard_progress
                     where job = $1 and shard = any($3) order by shard for update
                 )
                 update sessionizer.shard_progress p
                 set epoch = s.epoch, closed = s.closed, open = s.open, dead = s.dead
                 from unnest($3::int4[], $4::int8[], $5::int8[], $6::int8[], $7::int8[],
                             $8::int8[]) s(shard, was, epoch, closed, open, dead)
                 join mine using (shard)
                 where p.job = $1 and p.generation = $2 and p.run = $9 and p.shard = s.shard
                     and p.epoch = s.was",
            )?,
            epochs: client.prepare(
                "insert into sessionizer.epochs as e
                     (job, epoch, watermark_ms, shards_done, closed, open, dead, max_future_ms,
                      late)
                 select $1, n.* from unnest($2::int8[], $3::int8[], $4::int4[], $5::int8[],
                     $6::int8[], $7::int8[], $8::int8[], $9::text[]) n(epoch)
                 order by n.epoch
                 on conflict (job, epoch) do update
                 set shards_done = e.shards_done + excluded.shards_done,
                     closed = e.closed + excluded.closed, open = e.open + excluded.open,
                     dead = e.dead + excluded.dead
                 where e.watermark_ms is not distinct from excluded.watermark_ms",
            )?,
            bindings: client.prepare(
                "insert into sessionizer.bindings
                     (job, epoch, topic, partition, start_offset, end_offset, promise_ms, status,
                      quiet_since, records, dead, topic_id, clock_ms)
                 select $1, n.* from unnest($2::int8[], $3::text[], $4::int4[], $5::int8[],
                     $6::int8[], $7::int8[], $8::text[], $9::int8[], $10::int8[], $11::int8[],
                     $12::text[], $13::int8[])
                     n(epoch, topic, partition)
                 order by n.epoch, n.topic, n.partition
                 on conflict do nothing",
            )?,
            snapshots: client.prepare(
                "insert into sessionizer.snapshots (job, shard, epoch, data)
                 select $1, n.* from unnest($2::int4[], $3::int8[], $4::bytea[]) n
                 on conflict (job, shard) do update
                 set epoch = excluded.epoch, data = excluded.data",
            )?,
            late: late::Statements::prepare(client, table, found_rows)?,
        })
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

    /// The fence and the idempotence check in one (I5).
    pub fn progress(&mut self, batch: &Batch) -> Result<(), LedgerError> {
        let steps = &batch.steps;
        let column = |value: fn(&crate::dataflow::ports::ShardStep) -> u64| -> Vec<i64> {
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
        Err(past::why_not(&mut self.tx, self.target.config, self.run))
    }

    fn rows(&mut self, rows: &[(&Key, Span)], outcome: &mut Outcome) -> Result<(), Failed> {
        if rows.is_empty() {
            return Ok(());
        }
        if !self.careful {
            return self.target.copy(&mut self.tx, rows);
        }
        self.check_without_rows()?;
        let (target, tx) = (self.target, &mut self.tx);
        let refused = rows::sift(rows, &mut self.tried, target.table, |part, keep| {
            target.attempt(tx, keep, |tx| target.copy(tx, part))
        })?;
        for ((key, span), refusal) in refused {
            self.refuse(key, *span, false, refusal, outcome);
        }
        Ok(())
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
                copy.int8(letter.offset);
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
            totals.iter().map(|totals| stored(totals.summary.watermark)).collect();
        let shards: Vec<i32> = totals.iter().map(|totals| totals.shards as i32).collect();
        let late: Vec<&str> =
            totals.iter().map(|totals| totals.summary.rules.late.name()).collect();
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
                    &column(|totals| totals.summary.rules.max_future_ms as u64),
                    &late,
                ],
            )
            .map_err(|why| classify(&why, "writing the books"))?;
        match entered == totals.len() as u64 {
            true => Ok(()),
            false => Err(self.other_watermark(totals)),
        }
    }

    /// Which epoch has another watermark than another writer has committed (I2).
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
                (stored(totals.summary.watermark), there.get(&(totals.epoch as i64))?);
            (ours != *theirs).then(|| (totals.epoch, shown(ours), shown(*theirs)))
        });
        let Some((epoch, ours, theirs)) = other else {
            return LedgerError::Retry("an epoch has changed while it was written".to_owned());
        };
        LedgerError::Fatal(Fault::Environment(format!(
            "two parts of the job {} disagree: one has committed the watermark {theirs} for the epoch \
             {epoch}, another comes to {ours}, and sessions close by it. Nothing of this commit is \
             written, and the next start reads the epoch again. Do all processes run the same \
             version? If they do, this is a bug: please report it",
            self.target.config.job
        )))
    }

    /// Notes what a replay has brought otherwise than it was bound, and the epoch at which it can be
    /// told what of that is lost.
    fn replay_differences(&mut self, totals: &[EpochTotals]) -> Result<Option<i64>, LedgerError> {
        let failed = |why: postgres::Error| classify(&why, "noting a replay that was different");
        let Some(totals) = totals.iter().rfind(|totals| !totals.summary.differences.is_empty())
        else {
            return Ok(None);
        };
        let noted = totals.epoch as i64;
        // Every writer brings them. Again and again, if a start crashes before its first snapshot.
        for difference in &totals.summary.differences {
            self.tx
                .execute(
                    "insert into sessionizer.replay_differences
                         (job, topic, partition, epoch, from_offset, to_offset, recorded, found)
                     values ($1, $2, $3, $4, $5, $6, $7, $8)
                     on conflict (job, topic, partition, epoch) do update
                     set found = excluded.found, noted_at = excluded.noted_at",
                    &[
                        &self.target.config.job,
                        &self.run.topics[usize::from(difference.partition.topic)],
                        &difference.partition.number,
                        &(difference.epoch as i64),
                        &difference.from,
                        &difference.to,
                        &(difference.recorded as i64),
                        &(difference.found as i64),
                    ],
                )
                .map_err(failed)?;
        }
        self.tx
            .execute(
                "update sessionizer.jobs set loss_epoch = greatest(loss_epoch, $2) where job = $1",
                &[&self.target.config.job, &noted],
            )
            .map_err(failed)?;
        Ok(Some(noted))
    }

    /// All bindings of these epochs: every writer brings them, the first one writes them (I3).
    pub fn bindings(&mut self, totals: &[EpochTotals]) -> Result<(), LedgerError> {
        let all: Vec<(Epoch, &sessionizer_core::binding::Binding)> = totals
            .iter()
            .flat_map(|totals| totals.summary.bindings.iter().map(|b| (totals.epoch, b)))
            .collect();
        if all.is_empty() {
            return Ok(());
        }
        let int8 = |value: fn(&sessionizer_core::binding::Binding) -> i64| -> Vec<i64> {
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
                    &int8(|b| b.start),
                    &int8(|b| b.end),
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

    /// Counts what an accepted loss has cost, if all shards have passed the epoch from which that
    /// can be told: what the books lack then. Says whether it is counted.
    pub fn count_loss(&mut self, epoch: i64) -> Result<bool, LedgerError> {
        let failed = |why: postgres::Error| classify(&why, "counting what is lost");
        let counted = self
            .tx
            .query_opt(
                "update sessionizer.jobs j set lost = j.lost + b.difference, loss_epoch = null
                 from sessionizer.balance b
                 where j.job = $1 and b.job = j.job and j.loss_epoch = $2 and b.epoch >= $2
                 returning b.difference",
                &[&self.target.config.job, &epoch],
            )
            .map_err(failed)?;
        if let Some(row) = counted {
            let lost: i64 = row.get(0);
            match lost {
                0 => {}
                1.. => log::warn!(
                    "{lost} records that had been read are lost (sessionizer.losses and \
                     sessionizer.replay_differences say where)"
                ),
                _ => log::warn!(
                    "a replay has brought {} records that had not been read before \
                     (sessionizer.replay_differences says where)",
                    -lost
                ),
            }
            return Ok(true);
        }
        let pending = self
            .tx
            .query_opt(
                "select from sessionizer.jobs where job = $1 and loss_epoch = $2",
                &[&self.target.config.job, &epoch],
            )
            .map_err(failed)?;
        Ok(pending.is_none())
    }

    /// Forgets what lies behind the oldest snapshot: no start will ask for it.
    pub fn trim(&mut self) -> Result<(), LedgerError> {
        let failed = |why: postgres::Error| classify(&why, "trimming bindings");
        let base: i64 = self
            .tx
            .query_one(
                "select min(epoch) from sessionizer.snapshots where job = $1",
                &[&self.target.config.job],
            )
            .map_err(failed)?
            .get(0);
        self.tx
            .execute(
                "delete from sessionizer.epochs where ctid = any(array(
                     select ctid from sessionizer.epochs where job = $1 and epoch < $2
                     for update skip locked))",
                &[&self.target.config.job, &base],
            )
            .map_err(failed)?;
        self.tx
            .execute(
                "delete from sessionizer.bindings where ctid = any(array(
                     select ctid from sessionizer.bindings b
                     where job = $1 and epoch < $2 and exists (
                         select from sessionizer.bindings later
                         where later.job = b.job and later.topic = b.topic
                         and later.partition = b.partition
                         and later.epoch > b.epoch and later.epoch <= $2)
                     for update skip locked))",
                &[&self.target.config.job, &base],
            )
            .map_err(failed)?;
        Ok(())
    }
}

fn copy_in(
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

/// A login that was right at the start and is not any more, or a database that is gone, may come
/// back: a password is being changed, or a backup restored. The next start finds out.
fn in_a_run(error: LedgerError) -> LedgerError {
    match error {
        LedgerError::Fatal(Fault::Config(why)) => LedgerError::Fatal(Fault::Environment(why)),
        other => other,
    }
}

fn stored(time: EventTime) -> Option<i64> {
    (time > EventTime::NEVER).then_some(time.millis())
}

/// Text that Postgres can store and a person can read: no NUL, bounded.
fn printable(text: &str) -> String {
    text.chars().take(DETAIL_CHARS).map(|c| if c == '\0' { '\u{fffd}' } else { c }).collect()
}
