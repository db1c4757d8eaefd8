//! One transaction: rows, corrections, dead letters, snapshots, books, bindings and progress of a
//! run of epochs, together or not at all (I4).
//!
//! Read committed is enough: the first statement locks the rows of our shards under our
//! generation (I5), nobody else writes our table, and every other row we touch is only ever
//! added to.
//!
//! Nobody waits for anybody in a circle, because everybody locks in one order: shards, ascending;
//! then what several lanes write, epochs and bindings, ascending; then the row of the job. A start
//! takes all shards before it touches the row of the job. What is trimmed is locked without waiting:
//! where another lane is at it, nothing is left to do.

mod late;

use std::sync::Arc;

use postgres::{Client, IsolationLevel, Statement, Transaction};

use super::LedgerConfig;
use super::connect::{classify, connect};
use super::copy::{BinaryCopy, CopyError};
use super::past::{self, Run};
use super::table::{self, Table};
use crate::binding::TopicId;
use crate::control::Fault;
use crate::correction::Correction;
use crate::key::{Key, Shard};
use crate::operators::{Batch, DeadLetter, EpochBooks, Ledger, LedgerError};
use crate::session::{Closed, Span};
use crate::time::{Epoch, EventTime};

/// No detail of a dead letter is longer, in characters.
const DETAIL_CHARS: usize = 500;

/// A lane: a connection and its statements.
pub struct Lane {
    config: Arc<LedgerConfig>,
    run: Arc<Run>,
    client: Client,
    table: Table,
    /// Whether rows may touch each other, because some were there before the job.
    found_rows: bool,
    /// A loss was accepted that is counted when all shards have passed this epoch.
    loss_epoch: Option<i64>,
    statements: Statements,
}

struct Statements {
    progress: Statement,
    epochs: Statement,
    bindings: Statement,
    snapshots: Statement,
    late: late::Statements,
}

impl Lane {
    /// Connects and prepares.
    pub fn open(config: Arc<LedgerConfig>, run: Arc<Run>) -> Result<Self, LedgerError> {
        let mut client = connect(&config).map_err(in_a_run)?;
        run.meet(&mut client);
        let Some(table) = table::find(&mut client, &config)? else {
            return Err(table::gone(&config.job, &config.table));
        };
        let ails = |why: postgres::Error| classify(&why, "preparing to commit");
        let job = client
            .query_opt(
                "select found_rows, loss_epoch from sessionizer.jobs where job = $1",
                &[&config.job],
            )
            .map_err(ails)?;
        let (found_rows, loss_epoch) = job.map_or((false, None), |row| (row.get(0), row.get(1)));
        let statements = Statements::prepare(&mut client, &table, found_rows).map_err(ails)?;
        Ok(Lane { config, run, client, table, found_rows, loss_epoch, statements })
    }
}

impl Statements {
    fn prepare(
        client: &mut Client,
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
                     dead = e.dead + excluded.dead",
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

impl Ledger for Lane {
    fn commit(
        &mut self,
        batch: &Batch,
        corrections: &mut Vec<Correction>,
    ) -> Result<(), LedgerError> {
        let ails = |why: postgres::Error| classify(&why, "committing");
        let mut commit = Commit {
            // The database may have another default.
            tx: self
                .client
                .build_transaction()
                .isolation_level(IsolationLevel::ReadCommitted)
                .start()
                .map_err(ails)?,
            config: &self.config,
            run: &self.run,
            table: &self.table,
            found_rows: self.found_rows,
            statements: &self.statements,
        };
        commit.progress(batch)?;
        let (late, on_time): (Vec<&Closed>, Vec<&Closed>) =
            batch.closed.iter().partition(|closed| closed.late);
        commit.rows(in_key_order(on_time).into_iter())?;
        commit.late(&late, corrections)?;
        commit.dead_letters(&batch.dead_letters)?;
        commit.snapshots(batch)?;
        commit.epochs(&batch.books)?;
        commit.bindings(&batch.books)?;
        if !batch.snapshots.is_empty() {
            commit.trim()?;
        }
        let counted = match self.loss_epoch {
            Some(epoch) => commit.count_loss(epoch)?,
            None => true,
        };
        commit.tx.commit().map_err(|why| classify(&why, "waiting for the reply to COMMIT"))?;
        self.loss_epoch = self.loss_epoch.filter(|_| !counted);
        self.run.committed(batch.steps.iter().map(|step| step.to.epoch).max().unwrap_or(0));
        Ok(())
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
struct Commit<'a> {
    tx: Transaction<'a>,
    config: &'a LedgerConfig,
    run: &'a Run,
    table: &'a Table,
    found_rows: bool,
    statements: &'a Statements,
}

impl Commit<'_> {
    /// The fence and the idempotence check in one (I5).
    fn progress(&mut self, batch: &Batch) -> Result<(), LedgerError> {
        let steps = &batch.steps;
        let column = |value: fn(&crate::operators::ShardStep) -> u64| -> Vec<i64> {
            steps.iter().map(|step| value(step) as i64).collect()
        };
        let shards: Vec<i32> = steps.iter().map(|step| step.shard.0 as i32).collect();
        let moved = self
            .tx
            .execute(
                &self.statements.progress,
                &[
                    &self.config.job,
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
        Err(past::why_not(&mut self.tx, self.config, self.run))
    }

    fn rows<'k>(
        &mut self,
        rows: impl ExactSizeIterator<Item = (&'k Key, Span)>,
    ) -> Result<(), LedgerError> {
        let count = rows.len() as u64;
        if count == 0 {
            return Ok(());
        }
        let copy = format!(
            "copy {} (ip, host, session_start, session_end, num_logs) from stdin (format binary)",
            self.table.quoted()
        );
        let (gap, end) = (self.config.gap, self.config.session_end);
        let table = &self.table.shown;
        let written = copy_in(&mut self.tx, &copy, |copy| {
            for (key, span) in rows {
                let (ip, host) = key.parts();
                copy.row(5)?;
                copy.text(ip);
                copy.text(host);
                copy.time(span.first);
                copy.time(end.of(&span, gap));
                copy.int8(span.count as i64);
            }
            Ok(())
        })
        .map_err(|error| foreign_writer(error, table))?;
        assert_eq!(written, count, "Postgres takes every row of a COPY");
        Ok(())
    }

    fn dead_letters(&mut self, letters: &[(Epoch, DeadLetter)]) -> Result<(), LedgerError> {
        if letters.is_empty() {
            return Ok(());
        }
        let copy = "copy sessionizer.dead_letters (job, topic, partition, \"offset\", reason,
                    detail, payload, payload_bytes, read_at) from stdin (format binary)";
        let (job, topics) = (&self.config.job, &self.run.topics);
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
        })
        .map(|_| ())
    }

    fn snapshots(&mut self, batch: &Batch) -> Result<(), LedgerError> {
        if batch.snapshots.is_empty() {
            return Ok(());
        }
        let shards: Vec<i32> = batch.snapshots.keys().map(|shard| shard.0 as i32).collect();
        let epochs: Vec<i64> = batch.snapshots.values().map(|(epoch, _)| *epoch as i64).collect();
        let data: Vec<&[u8]> =
            batch.snapshots.values().map(|(_, bytes)| bytes.as_slice()).collect();
        self.tx
            .execute(&self.statements.snapshots, &[&self.config.job, &shards, &epochs, &data])
            .map_err(|why| classify(&why, "writing snapshots"))?;
        Ok(())
    }

    fn epochs(&mut self, books: &[EpochBooks]) -> Result<(), LedgerError> {
        let column = |value: fn(&EpochBooks) -> u64| -> Vec<i64> {
            books.iter().map(|books| value(books) as i64).collect()
        };
        let watermarks: Vec<Option<i64>> =
            books.iter().map(|books| stored(books.summary.watermark)).collect();
        let shards: Vec<i32> = books.iter().map(|books| books.shards as i32).collect();
        let late: Vec<&str> = books.iter().map(|books| books.summary.rules.late.name()).collect();
        self.tx
            .execute(
                &self.statements.epochs,
                &[
                    &self.config.job,
                    &column(|books| books.epoch),
                    &watermarks,
                    &shards,
                    &column(|books| books.closed),
                    &column(|books| books.open),
                    &column(|books| books.dead),
                    &column(|books| books.summary.rules.max_future_ms as u64),
                    &late,
                ],
            )
            .map_err(|why| classify(&why, "writing the books"))?;
        Ok(())
    }

    /// All bindings of these epochs: every lane brings them, the first one writes them (I3).
    fn bindings(&mut self, books: &[EpochBooks]) -> Result<(), LedgerError> {
        let all: Vec<(Epoch, &crate::binding::Binding)> = books
            .iter()
            .flat_map(|books| books.summary.bindings.iter().map(|b| (books.epoch, b)))
            .collect();
        if all.is_empty() {
            return Ok(());
        }
        let int8 = |value: fn(&crate::binding::Binding) -> i64| -> Vec<i64> {
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
                &self.statements.bindings,
                &[
                    &self.config.job,
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
    fn count_loss(&mut self, epoch: i64) -> Result<bool, LedgerError> {
        let ails = |why: postgres::Error| classify(&why, "counting what is lost");
        let counted = self
            .tx
            .query_opt(
                "update sessionizer.jobs j set lost = j.lost + b.difference, loss_epoch = null
                 from sessionizer.balance b
                 where j.job = $1 and b.job = j.job and j.loss_epoch = $2 and b.epoch >= $2
                 returning b.difference",
                &[&self.config.job, &epoch],
            )
            .map_err(ails)?;
        if let Some(row) = counted {
            let lost: i64 = row.get(0);
            log::warn!(
                "{lost} records that had been read are lost (sessionizer.losses says where)"
            );
            return Ok(true);
        }
        let pending = self
            .tx
            .query_opt(
                "select from sessionizer.jobs where job = $1 and loss_epoch = $2",
                &[&self.config.job, &epoch],
            )
            .map_err(ails)?;
        Ok(pending.is_none())
    }

    /// Forgets what lies behind the oldest snapshot: no start will ask for it.
    fn trim(&mut self) -> Result<(), LedgerError> {
        let ails = |why: postgres::Error| classify(&why, "trimming bindings");
        let base: i64 = self
            .tx
            .query_one(
                "select min(epoch) from sessionizer.snapshots where job = $1",
                &[&self.config.job],
            )
            .map_err(ails)?
            .get(0);
        self.tx
            .execute(
                "delete from sessionizer.epochs where ctid = any(array(
                     select ctid from sessionizer.epochs where job = $1 and epoch < $2
                     for update skip locked))",
                &[&self.config.job, &base],
            )
            .map_err(ails)?;
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
                &[&self.config.job, &base],
            )
            .map_err(ails)?;
        Ok(())
    }
}

fn copy_in(
    tx: &mut Transaction<'_>,
    statement: &str,
    write: impl FnOnce(&mut BinaryCopy<'_>) -> std::io::Result<()>,
) -> Result<u64, LedgerError> {
    let writer = tx.copy_in(statement).map_err(|why| classify(&why, "beginning a COPY"))?;
    let mut copy = BinaryCopy::new(writer);
    let done = write(&mut copy).map_err(CopyError::from).and_then(|()| copy.finish());
    done.map_err(|why| match why.postgres() {
        Some(why) => classify(why, "copying rows"),
        None => LedgerError::Retry(format!("copying rows: {why:?}")),
    })
}

/// A login that was right at the start and is not any more, or a database that is gone, may come
/// back: a password is being changed, or a backup restored. The next start finds out.
fn in_a_run(error: LedgerError) -> LedgerError {
    match error {
        LedgerError::Fatal(Fault::Config(why)) => LedgerError::Fatal(Fault::World(why)),
        other => other,
    }
}

/// A row of ours that is there already was written by somebody else.
fn foreign_writer(error: LedgerError, table: &str) -> LedgerError {
    match error {
        LedgerError::Fatal(Fault::Config(why)) if why.contains("(23505)") => {
            LedgerError::Fatal(Fault::Config(format!(
                "{why}; a session that this job has just closed is in {table} already: somebody \
                 else writes it, and a table belongs to one job"
            )))
        }
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
