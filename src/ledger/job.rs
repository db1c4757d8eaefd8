//! The row of a job: the first start creates it, and every later start compares it with the
//! settings.

use postgres::{Row, Transaction};
use sessionizer_core::fault::{Fault, Message};
use sessionizer_core::session::{SessionTable, snapshot};
use sessionizer_core::time::EventTime;

use crate::dataflow::ports::LedgerError;
use crate::ledger::errors::classify;
use crate::ledger::table;
use crate::ledger::table::Table;
use crate::ledger::{LedgerConfig, human_duration};

/// Refuses a job whose table is gone: an empty one in its place would lack its earlier rows.
pub(super) fn check_table_is_there(
    tx: &mut Transaction<'_>,
    config: &LedgerConfig,
) -> Result<(), LedgerError> {
    let gone = tx
        .query_opt(
            "select format('%I.%I', table_schema, table_name) from sessionizer.jobs
             where job = $1 and to_regclass(format('%I.%I', table_schema, table_name)) is null",
            &[&config.job],
        )
        .map_err(|why| classify(&why, "looking for the job's table"))?;
    gone.map_or(Ok(()), |row| Err(table::gone(&config.job, row.get(0))))
}

/// Finds the job and returns the topics of its last start. `None`: the job was created.
pub(super) fn ensure_job(
    tx: &mut Transaction<'_>,
    config: &LedgerConfig,
    topics: &[String],
    table: &Table,
) -> Result<Option<Option<Vec<String>>>, LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "looking for the job");
    let by = format!("pid {} on {}", std::process::id(), host_name());
    let job = tx
        .query_opt(
            "update sessionizer.jobs j set started_at = now(), started_by = $2, topics = $3
             from (select job, topics from sessionizer.jobs where job = $1
                   for no key update) before  -- A commit in flight may refer to the job.
             where j.job = before.job
             returning table_schema, table_name, shards, gap_ms, session_end, before.topics",
            &[&config.job, &by, &topics],
        )
        .map_err(failed)?;
    if let Some(job) = job {
        check_settings(&job, config, table)?;
        return Ok(Some(job.get(5)));
    }
    check_owner(tx, config, table)?;
    create_job(tx, config, topics, table, &by).map(|()| None)
}

/// Compares an existing job with the settings, as a start does; returns the topics of its last
/// start. `None`: there is no such job, and the table belongs to no other.
pub(super) fn look(
    tx: &mut Transaction<'_>,
    config: &LedgerConfig,
    table: &Table,
) -> Result<Option<Option<Vec<String>>>, LedgerError> {
    let job = tx
        .query_opt(
            "select table_schema, table_name, shards, gap_ms, session_end,
                    -- An older version has no such column.
                    case when jsonb_typeof(to_jsonb(j) -> 'topics') = 'array' then
                        (select array_agg(topic) from jsonb_array_elements_text(
                            to_jsonb(j) -> 'topics') topic) end
             from sessionizer.jobs j where job = $1",
            &[&config.job],
        )
        .map_err(|why| classify(&why, "looking for the job"))?;
    let Some(job) = job else { return check_owner(tx, config, table).map(|()| None) };
    check_settings(&job, config, table)?;
    Ok(Some(job.get(5)))
}

/// Refuses a table that belongs to another job.
pub fn check_owner(
    tx: &mut Transaction<'_>,
    config: &LedgerConfig,
    table: &Table,
) -> Result<(), LedgerError> {
    let other = tx
        .query_opt(
            "select job from sessionizer.jobs
             where table_schema = $1 and table_name = $2 and job <> $3",
            &[&table.schema, &table.name, &config.job],
        )
        .map_err(|why| classify(&why, "looking for the job of the table"))?;
    let Some(other) = other else { return Ok(()) };
    let other: String = other.get(0);
    let (shown, job) = (&table.shown, &config.job);
    let problem = format!("the table {shown} belongs to the job {other}; this is the job {job}");
    let remedy = format!("give it a table of its own (--table), or start it as {other} (--job)");
    Err(LedgerError::Fatal(Fault::config(Message::new(problem).remedy(": ", remedy))))
}

fn check_settings(job: &Row, config: &LedgerConfig, table: &Table) -> Result<(), LedgerError> {
    let (schema, name): (String, String) = (job.get(0), job.get(1));
    let (shards, gap_ms): (i32, i64) = (job.get(2), job.get(3));
    let session_end: String = job.get(4);
    let mut differences = Vec::new();
    if (&schema, &name) != (&table.schema, &table.name) {
        differences.push(format!("its table is {schema}.{name}, not {} (--table)", table.shown));
    }
    if shards != config.shards as i32 {
        differences.push(format!("it has {shards} shards, not {} (--shards)", config.shards));
    }
    if gap_ms != config.gap.millis() {
        let (was, now) = (human_duration(gap_ms), human_duration(config.gap.millis()));
        differences.push(format!("its gap is {was}, not {now} (--gap)"));
    }
    if session_end != config.session_end.name() {
        let now = config.session_end.name();
        differences.push(format!("its --session-end is {session_end}, not {now}"));
    }
    if differences.is_empty() {
        return Ok(());
    }
    let problem = format!(
        "the job {} was created with other settings: {}. They shape rows that are there already",
        config.job,
        differences.join("; ")
    );
    let remedy =
        "start with those of its creation, or as another job (--job) with a table of its own";
    Err(LedgerError::Fatal(Fault::config(Message::new(problem).remedy(": ", remedy))))
}

fn create_job(
    tx: &mut Transaction<'_>,
    config: &LedgerConfig,
    topics: &[String],
    table: &Table,
    by: &str,
) -> Result<(), LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "creating the job");
    tx.execute(
        "insert into sessionizer.jobs (job, table_schema, table_name, shards, gap_ms,
                                       session_end, found_rows, started_by, topics)
         values ($1, $2, $3, $4, $5, $6, false, $7, $8)",
        &[
            &config.job,
            &table.schema,
            &table.name,
            &(config.shards as i32),
            &config.gap.millis(),
            &config.session_end.name(),
            &by,
            &topics,
        ],
    )
    .map_err(failed)?;
    let empty = snapshot::encode(&SessionTable::new(config.gap, EventTime::NEVER));
    let shards: Vec<i32> = (0..config.shards as i32).collect();
    tx.execute(
        "insert into sessionizer.shard_progress
         select $1, shard, 0, 0, 0, 0, 0 from unnest($2::int4[]) shard",
        &[&config.job, &shards],
    )
    .map_err(failed)?;
    tx.execute(
        "insert into sessionizer.snapshots
         select $1, shard, 0, $3 from unnest($2::int4[]) shard",
        &[&config.job, &shards, &empty],
    )
    .map_err(failed)?;
    tx.execute(
        "insert into sessionizer.epochs (job, epoch, shards_done, closed, open, dead)
         values ($1, 0, $2, 0, 0, 0)",
        &[&config.job, &(config.shards as i32)],
    )
    .map_err(failed)?;
    Ok(())
}

/// Sets the horizon of every shard to the end of the newest row that the table had before the job
/// committed anything, and returns it.
pub(super) fn begin_after_rows(
    tx: &mut Transaction<'_>,
    config: &LedgerConfig,
    table: &Table,
) -> Result<EventTime, LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "beginning after the rows of the table");
    let newest = table::newest_end(tx, config, &table.quoted())?;
    let horizon = newest.unwrap_or(EventTime::NEVER);
    tx.execute(
        "update sessionizer.jobs set found_rows = true,
                found_rows_to = timestamptz 'epoch' + $2::int8 * interval '1 millisecond'
         where job = $1",
        &[&config.job, &newest.map(EventTime::millis)],
    )
    .map_err(failed)?;
    let empty = snapshot::encode(&SessionTable::new(config.gap, horizon));
    tx.execute(
        "update sessionizer.snapshots set data = $2 where job = $1 and epoch = 0",
        &[&config.job, &empty],
    )
    .map_err(failed)?;
    Ok(horizon)
}

/// Returns the name of this machine, for messages about who has taken over.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "an unnamed host".to_owned() } else { name.to_owned() }
}
