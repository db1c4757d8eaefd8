//! A job that is not running, for the commands that read or change its state in the meantime: they
//! find it, and make sure that no instance is running and that it was stopped cleanly.
//!
//! A clean stop leaves all shards at one epoch, and with it the snapshot of each shard at that very
//! epoch. So a start would replay nothing, and the snapshots and the table together are everything
//! that the job knows of the records it has read. A command may then change both in one
//! transaction. It takes the fence first, as a start does: if an instance is running nevertheless,
//! its next commit fails, and nothing that it holds in memory is written.

use std::ops::ControlFlow::{Break, Continue};
use std::time::Duration;

use postgres::{GenericClient, Row, Transaction};
use sessionizer_core::binding::{Offset, Status};
use sessionizer_core::event::Reason;
use sessionizer_core::fault::{Fault, Message};
use sessionizer_core::key::{Key, Shard};
use sessionizer_core::moves;
use sessionizer_core::moves::{Delta, Moves};
use sessionizer_core::plan::Fence;
use sessionizer_core::session::{SessionTable, snapshot};
use sessionizer_core::time::{Epoch, EventTime, Gap};

use crate::dataflow::ports::LedgerError;
use crate::dataflow::run_state::RunState;
use crate::ledger::SessionEnd;
use crate::ledger::blocked::WatchedClient;
use crate::ledger::commit::ROW_REFUSED;
use crate::ledger::connect::connect;
use crate::ledger::durable::NamedBinding;
use crate::ledger::errors::classify;
use crate::ledger::peek::Database;
use crate::ledger::pooler::connect_directly;
use crate::ledger::table::Table;
use crate::ledger::{LedgerConfig, durable, job, rights, schema, start, table};
use crate::retry;
use crate::ui::text;

/// How long a closed connection may still be listed.
const CLOSED_CONNECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// Opens a connection that does not look like an instance of the job.
pub(super) fn open(config: &LedgerConfig, command: &str) -> Result<WatchedClient, LedgerError> {
    let mut client = connect_directly(config, connect)?;
    client
        .batch_execute(&format!(
            "set application_name = 'sessionizer {command}'; set lock_timeout = '30s'"
        ))
        .map_err(|why| classify(&why, "setting up the connection"))?;
    let database = Database::of(&mut *client, config);
    let database = database.map_err(|why| classify(&why, "looking at the database"))?;
    schema::refuse_foreign(&mut *client, &database)?;
    Ok(client)
}

/// Whether there is a table or view of this name in the schema `sessionizer`.
pub(super) fn exists(
    client: &mut impl GenericClient,
    table: &str,
) -> Result<bool, postgres::Error> {
    let name = format!("sessionizer.{table}");
    Ok(client.query_one("select to_regclass($1) is not null", &[&name])?.get(0))
}

/// The error for a job that does not exist; it names those that do.
pub(super) fn no_such_job(
    client: &mut impl GenericClient,
    database: &Database,
    job: &str,
) -> Result<LedgerError, LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "looking for the job");
    let mut jobs: Vec<String> = Vec::new();
    if exists(client, "jobs").map_err(failed)? {
        let rows = client.query("select job from sessionizer.jobs order by job limit 20", &[]);
        jobs.extend(rows.map_err(failed)?.iter().map(|row| row.get::<_, String>(0)));
    }
    let there = match jobs.as_slice() {
        [] => "there are no jobs yet".to_owned(),
        jobs => format!("the jobs are: {}", jobs.join(", ")),
    };
    let message = Message::new(format!("there is no job {job} in {database}; {there}"));
    let message = message.remedy(". ", "Name the job with --job or KAFKA_GROUP");
    Ok(LedgerError::Fatal(Fault::config(message)))
}

/// Refuses a job that is running. Instances are recognized by their application name, which
/// Postgres truncates to 63 bytes. An instance that has just ended may still be listed, and so may
/// the second connection that looked for a pooler.
pub(super) fn refuse_if_running(
    client: &mut impl GenericClient,
    job: &str,
    then: &str,
) -> Result<(), LedgerError> {
    let look = || match running(client, job) {
        Ok(running) if running.is_empty() => Break(Ok(())),
        Ok(running) => Continue(running),
        Err(why) => Break(Err(classify(&why, "looking for instances that run"))),
    };
    retry::until(CLOSED_CONNECTION_TIMEOUT, Duration::from_millis(50), look).unwrap_or_else(|running| {
        let (pid, from) = &running[0];
        Err(LedgerError::Fatal(Fault::config(format!(
            "the job {job} is running, or an audit of it: {} to Postgres, the first from {from} \
             (pid {pid} in pg_stat_activity). {then}",
            text::plural(running.len(), "connection")
        ))))
    })
}

pub(super) fn running(
    client: &mut impl GenericClient,
    job: &str,
) -> Result<Vec<(i32, String)>, postgres::Error> {
    // Within a transaction, Postgres would repeat the activity it reported first.
    client.execute("select pg_stat_clear_snapshot()", &[])?;
    let rows = client.query(
        "select pid, coalesce(host(client_addr), 'local') from pg_stat_activity
         where datname = current_database() and pid <> pg_backend_pid()
             and application_name = convert_from(
                 substring(convert_to($1, 'UTF8') for 63), 'UTF8')
         order by pid",
        &[&format!("sessionizer/{job}")],
    )?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Commits what a command has changed, unless it was asked to stop before.
pub(super) fn commit(
    tx: Transaction<'_>,
    run_state: &RunState,
    doing: &str,
) -> Result<(), LedgerError> {
    if !run_state.begin_commit() {
        let why = "stopped; nothing was changed";
        return Err(LedgerError::Fatal(Fault::environment(why)));
    }
    tx.commit().map_err(|why| classify(&why, doing))
}

/// The row of a job that is not running: shards, gap, what ends hold, whether rows were found, and
/// whether a loss is being counted. No job can start before the transaction ends.
fn job_not_running(
    tx: &mut Transaction<'_>,
    config: &LedgerConfig,
    command: &str,
) -> Result<(Row, Database), LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "looking at the job");
    let database = Database::of(tx, config).map_err(failed)?;
    tx.execute("select pg_advisory_xact_lock($1)", &[&start::ADVISORY_LOCK]).map_err(failed)?;
    let then = format!("Stop it with SIGTERM, then use `sessionizer {command}`");
    refuse_if_running(tx, &config.job, &then)?;
    if !exists(tx, "jobs").map_err(failed)? {
        return Err(no_such_job(tx, &database, &config.job)?);
    }
    let row = tx
        .query_opt(
            "select shards, gap_ms, session_end, found_rows, loss_epoch is not null
             from sessionizer.jobs where job = $1",
            &[&config.job],
        )
        .map_err(failed)?;
    match row {
        Some(row) => Ok((row, database)),
        None => Err(no_such_job(tx, &database, &config.job)?),
    }
}

/// Notes who has the fence, and forgets what audits have verified: it is about to change, so the
/// next one has to read everything again.
fn note_command(tx: &mut Transaction<'_>, job: &str, command: &str) -> Result<(), postgres::Error> {
    let by = format!("sessionizer {command}, pid {}", std::process::id());
    tx.execute(
        "update sessionizer.jobs set started_at = now(), started_by = $2 where job = $1",
        &[&job, &by],
    )?;
    tx.execute("delete from sessionizer.audit_state where job = $1", &[&job])?;
    Ok(())
}

/// A job that has stopped cleanly, with its fence taken by this transaction.
pub(super) struct StoppedJob {
    /// With the settings that were fixed when the job was created.
    pub config: LedgerConfig,
    pub database: Database,
    pub table: Table,
    /// Whether the table had rows before the job.
    pub found_rows: bool,
    /// The epoch of all shards and all snapshots.
    pub epoch: Epoch,
    /// The watermark of that epoch, and the time before which a session must have ended to have
    /// closed: the same, unless the epoch was drained.
    pub watermark: EventTime,
    pub close_before: EventTime,
    /// The last binding of each partition.
    pub bindings: Vec<NamedBinding>,
    pub fence: Fence,
}

impl StoppedJob {
    /// Refuses a job that is running or was not stopped cleanly, and takes the fence.
    pub fn take(
        tx: &mut Transaction<'_>,
        config: &LedgerConfig,
        command: &str,
    ) -> Result<Self, LedgerError> {
        let failed = |why: postgres::Error| classify(&why, "looking at the job");
        let (row, database) = job_not_running(tx, config, command)?;
        schema::migrate(tx, &database)?;
        rights::check_rights(tx)?;
        job::check_table_is_there(tx, config)?;
        let table = table::of_job(tx, config)?;
        start::check_rights(tx, &table)?;
        rights::refuse_row_security(tx, &table)?;
        start::lock_shards(tx, &config.job)?;
        if row.get(4) {
            return Err(not_clean(&config.job, command, "a loss of records is being counted"));
        }
        durable::check(tx, &config.job, &table.quoted())?;
        let epoch = aligned_at(tx, &config.job, command)?;
        let gap = Gap::from_millis(row.get(1)).ok_or_else(|| {
            durable::incomplete(&config.job, "sessionizer.jobs holds an invalid gap")
        })?;
        let config = LedgerConfig {
            table: table.shown.clone(),
            shards: row.get::<_, i32>(0) as u32,
            gap,
            session_end: SessionEnd::named(row.get(2)),
            ..config.clone()
        };
        let bindings = durable::bindings_at(tx, &config.job, epoch)?;
        let watermark = watermark(tx, &config.job, epoch)?;
        let drained = !bindings.is_empty() && bindings.iter().all(|b| b.status == Status::Ended);
        let close_before = if drained { EventTime::FOREVER } else { watermark };
        let fence = start::fence(tx, &config)?;
        note_command(tx, &config.job, command).map_err(failed)?;
        Ok(StoppedJob {
            database,
            table,
            found_rows: row.get(3),
            epoch,
            watermark,
            close_before,
            bindings,
            fence,
            config,
        })
    }

    /// Reads the open sessions of a shard.
    pub fn shard(
        &self,
        tx: &mut Transaction<'_>,
        shard: Shard,
    ) -> Result<SessionTable, LedgerError> {
        let row = tx
            .query_one(
                "select data from sessionizer.snapshots where job = $1 and shard = $2",
                &[&self.config.job, &(shard.0 as i32)],
            )
            .map_err(|why| classify(&why, "reading snapshots"))?;
        decode(&self.config.job, row.get(0), self.config.gap, shard, self.config.shards)
    }

    /// Replaces the snapshot of a shard.
    pub fn put(
        &self,
        tx: &mut Transaction<'_>,
        shard: Shard,
        table: &SessionTable,
    ) -> Result<(), LedgerError> {
        tx.execute(
            "update sessionizer.snapshots set data = $3 where job = $1 and shard = $2",
            &[&self.config.job, &(shard.0 as i32), &snapshot::encode(table)],
        )
        .map_err(|why| classify(&why, "writing snapshots"))?;
        Ok(())
    }

    /// The shard that counts a dead letter which is an event of `key`, given its row: reason, topic,
    /// partition and offset follow the first column.
    pub fn shard_of_letter(&self, row: &postgres::Row, key: &Key) -> Shard {
        let reason: &str = row.get(1);
        let position = match (row.get(2), row.get(3), row.get(4)) {
            (Some(topic), Some(partition), Some(offset)) => {
                Some((topic, partition, Offset::new(offset)))
            }
            _ => None,
        };
        let by_key = reason == Reason::Late.name() || reason == ROW_REFUSED;
        moves::counted_in(by_key, position, key, self.config.shards)
    }

    /// Changes the counts of shards, and the totals of the epoch with them. Older totals would no
    /// longer add up, and no start reads them.
    pub fn count(&self, tx: &mut Transaction<'_>, moves: &Moves) -> Result<(), LedgerError> {
        let failed = |why: postgres::Error| classify(&why, "writing the totals");
        let (job, epoch) = (&self.config.job, self.epoch as i64);
        let deltas = moves.deltas();
        let shards: Vec<i32> = deltas.iter().map(|(shard, _)| shard.0 as i32).collect();
        let column = |of: fn(&Delta) -> i64| -> Vec<i64> {
            deltas.iter().map(|(_, delta)| of(delta)).collect()
        };
        let [closed, open, dead] = [column(|d| d.closed), column(|d| d.open), column(|d| d.dead)];
        let forgotten = column(|d| d.forgotten);
        let sum = [&closed, &open, &dead, &forgotten].into_iter().flatten().sum::<i64>();
        assert_eq!(sum, 0, "I8: records move from one count to another, and none vanishes");
        let left = tx
            .query_one(
                "with moved as (
                     update sessionizer.shard_progress p
                     set closed = p.closed + d.closed, open = p.open + d.open,
                         dead = p.dead + d.dead, forgotten = p.forgotten + d.forgotten
                     from unnest($2::int4[], $3::int8[], $4::int8[], $5::int8[], $6::int8[])
                          d(shard, closed, open, dead, forgotten)
                     where p.job = $1 and p.shard = d.shard
                     returning least(p.closed, p.open, p.dead) as least
                 ) select count(*), coalesce(min(least), 0) from moved",
                &[job, &shards, &closed, &open, &dead, &forgotten],
            )
            .map_err(failed)?;
        if left.get::<_, i64>(0) != shards.len() as i64 || left.get::<_, i64>(1) < 0 {
            let what = "sessionizer.shard_progress counts fewer records than there are";
            return Err(durable::incomplete(job, what));
        }
        let sums = [closed, open, dead].map(|column| column.iter().sum::<i64>());
        tx.execute(
            "update sessionizer.epochs set closed = closed + $3, open = open + $4, dead = dead + $5
             where job = $1 and epoch = $2",
            &[job, &epoch, &sums[0], &sums[1], &sums[2]],
        )
        .map_err(failed)?;
        tx.execute("delete from sessionizer.epochs where job = $1 and epoch < $2", &[job, &epoch])
            .map_err(failed)?;
        Ok(())
    }

    /// Fails if the next start would refuse the state that this transaction leaves.
    pub fn check(&self, tx: &mut Transaction<'_>) -> Result<(), LedgerError> {
        durable::check(tx, &self.config.job, &self.table.quoted())
    }
}

/// Decodes the snapshot of a shard.
pub(super) fn decode(
    job: &str,
    data: &[u8],
    gap: Gap,
    shard: Shard,
    shards: u32,
) -> Result<SessionTable, LedgerError> {
    snapshot::decode_of(data, gap, shard, shards).map_err(|damage| {
        let what = format!("the snapshot of shard {} cannot be read: {damage}", shard.0);
        durable::incomplete(job, &what)
    })
}

/// Returns the epoch of a clean stop.
fn aligned_at(tx: &mut Transaction<'_>, job: &str, command: &str) -> Result<Epoch, LedgerError> {
    let row = tx
        .query_one(
            "select min(p.epoch), max(p.epoch), bool_and(s.epoch is not distinct from p.epoch),
                    (select max(e.epoch) from sessionizer.epochs e where e.job = $1)
             from sessionizer.shard_progress p
             left join sessionizer.snapshots s using (job, shard) where job = $1",
            &[&job],
        )
        .map_err(|why| classify(&why, "looking at how the job has stopped"))?;
    let (least, most): (Option<i64>, Option<i64>) = (row.get(0), row.get(1));
    let same_snapshots = row.get::<_, Option<bool>>(2) == Some(true);
    let newest: Option<i64> = row.get(3);
    match (least, most) {
        (Some(least), Some(most)) if least == most && same_snapshots && newest == Some(most) => {
            Ok(most as Epoch)
        }
        _ => Err(not_clean(job, command, "some of its work has to be replayed")),
    }
}

fn not_clean(job: &str, command: &str, why: &str) -> LedgerError {
    LedgerError::Fatal(Fault::config(format!(
        "the job {job} was not stopped cleanly: {why}. Start it, wait until it is ready, and stop \
         it with SIGTERM; then use `sessionizer {command}`. Nothing was changed"
    )))
}

fn watermark(
    client: &mut impl GenericClient,
    job: &str,
    epoch: Epoch,
) -> Result<EventTime, LedgerError> {
    let row = client
        .query_one(
            "select watermark_ms from sessionizer.epochs where job = $1 and epoch = $2",
            &[&job, &(epoch as i64)],
        )
        .map_err(|why| classify(&why, "reading the watermark"))?;
    let watermark = row.get::<_, Option<i64>>(0);
    Ok(watermark.map_or(EventTime::NEVER, EventTime::from_millis))
}
