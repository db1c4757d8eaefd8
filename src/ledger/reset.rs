//! Removes a job and the rows of its table together, in one transaction.
//!
//! It does not rely on the job's state, so it works for a damaged or partially restored job. It
//! refuses a job that is running. If it overlooks one, that job's next commit finds its shards gone
//! and fails, so it cannot write into the emptied table.

use postgres::{GenericClient, Transaction};
use sessionizer_core::fault::Fault;

use crate::dataflow::ports::LedgerError;
use crate::dataflow::run_state::RunState;
use crate::ledger::errors::classify;
use crate::ledger::peek::Database;
use crate::ledger::start::ADVISORY_LOCK;
use crate::ledger::stopped::{commit, exists, no_such_job, open, refuse_if_running};
use crate::ledger::{LedgerConfig, schema, table};

/// All tables that hold rows of a job. The first is the one that a commit locks first, so that a
/// reset waits for commits in flight; the last is the one that the others refer to.
const TABLES: [&str; 12] = [
    "shard_progress",
    "losses",
    "replay_differences",
    "anomalies",
    "forgotten",
    "audits",
    "audit_state",
    "dead_letters",
    "snapshots",
    "bindings",
    "epochs",
    "jobs",
];
/// Up to how many rows are counted; beyond that, an estimate from Postgres has to do.
const COUNTED_ROWS: i64 = 1_000_000;
/// What to do about a job that is running.
const THEN: &str = "Stop it, then reset it";

/// What a reset will remove.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResetPlan {
    pub database: Database,
    pub job: String,
    pub created_at: String,
    pub started_at: String,
    pub started_by: String,
    /// The table, for messages.
    pub table: String,
    pub rows: RowCount,
    /// Whether the table had rows before the job.
    pub found_rows: bool,
    pub dead_letters: i64,
    /// Records in open sessions.
    pub open: i64,
}

/// How many rows the table has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RowCount {
    /// The table does not exist.
    NoTable,
    /// What has its name is no table, such as a view: its rows belong to others, and stay.
    NotATable,
    Exactly(i64),
    About(i64),
}

/// Looks at a job to be removed; refuses one that is running or does not exist.
pub fn look(config: &LedgerConfig) -> Result<ResetPlan, LedgerError> {
    let mut client = open(config, "reset")?;
    let failed = |why: postgres::Error| classify(&why, "looking at the job");
    let database = Database::of(&mut *client, config).map_err(failed)?;
    schema::version(&mut *client, &database)?;
    let job = find(&mut *client, &database, &config.job)?;
    refuse_if_running(&mut *client, &config.job, THEN)?;
    let rows = count_rows(&mut *client, &job).map_err(failed)?;
    let mut sum = |table: &str, what: &str| -> Result<i64, LedgerError> {
        if !exists(&mut *client, table).map_err(failed)? {
            return Ok(0);
        }
        let select = format!("select {what} from sessionizer.{table} where job = $1");
        Ok(client.query_one(&select, &[&config.job]).map_err(failed)?.get(0))
    };
    let dead_letters = sum("dead_letters", "count(*)")?;
    let open = sum("shard_progress", "coalesce(sum(open), 0)::int8")?;
    Ok(ResetPlan { database, rows, dead_letters, open, ..job })
}

/// Removes what [`look`] has found.
pub fn remove(config: &LedgerConfig, run_state: &RunState) -> Result<(), LedgerError> {
    let mut client = open(config, "reset")?;
    let failed = |why: postgres::Error| classify(&why, "removing the job");
    let database = Database::of(&mut *client, config).map_err(failed)?;
    let mut tx = client.transaction().map_err(failed)?;
    tx.execute("select pg_advisory_xact_lock($1)", &[&ADVISORY_LOCK]).map_err(failed)?;
    refuse_if_running(&mut tx, &config.job, THEN)?;
    let job = find(&mut tx, &database, &config.job)?;
    // This waits for commits in flight. From here on, no commit of another instance succeeds.
    for table in TABLES {
        if exists(&mut tx, table).map_err(failed)? {
            let delete = format!("delete from sessionizer.{table} where job = $1");
            tx.execute(&delete, &[&config.job]).map_err(failed)?;
        }
    }
    if !matches!(job.rows, RowCount::NoTable | RowCount::NotATable) {
        empty(&mut tx, &job.table)?;
    }
    commit(tx, run_state, "removing the job")
}

/// Finds the row of the job.
fn find(
    client: &mut impl GenericClient,
    database: &Database,
    job: &str,
) -> Result<ResetPlan, LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "looking for the job");
    if !exists(client, "jobs").map_err(failed)? {
        return Err(no_such_job(client, database, job)?);
    }
    let row = client
        .query_opt(
            "select format('%I.%I', table_schema, table_name), found_rows,
                    to_char(created_at, 'YYYY-MM-DD HH24:MI:SSOF'),
                    to_char(started_at, 'YYYY-MM-DD HH24:MI:SSOF'), started_by,
                    (select relkind in ('r', 'p') from pg_class
                     where oid = to_regclass(format('%I.%I', table_schema, table_name)))
             from sessionizer.jobs where job = $1",
            &[&job],
        )
        .map_err(failed)?;
    let Some(row) = row else {
        return Err(no_such_job(client, database, job)?);
    };
    let is_table: Option<bool> = row.get(5);
    Ok(ResetPlan {
        database: database.clone(),
        job: job.to_owned(),
        table: row.get(0),
        found_rows: row.get(1),
        created_at: row.get(2),
        started_at: row.get(3),
        started_by: row.get(4),
        rows: match is_table {
            None => RowCount::NoTable,
            Some(false) => RowCount::NotATable,
            Some(true) => RowCount::Exactly(0),
        },
        dead_letters: 0,
        open: 0,
    })
}

fn count_rows(
    client: &mut impl GenericClient,
    job: &ResetPlan,
) -> Result<RowCount, postgres::Error> {
    if matches!(job.rows, RowCount::NoTable | RowCount::NotATable) {
        return Ok(job.rows);
    }
    let count = format!("select count(*) from (select from {} limit $1) counted", job.table);
    let counted: i64 = client.query_one(&count, &[&(COUNTED_ROWS + 1)])?.get(0);
    if counted <= COUNTED_ROWS {
        return Ok(RowCount::Exactly(counted));
    }
    let about = client.query_one(
        "select coalesce(sum(reltuples), 0)::int8 from pg_class
         where oid = to_regclass($1)
             or oid in (select relid from pg_partition_tree(to_regclass($1)))",
        &[&job.table],
    )?;
    Ok(RowCount::About(about.get::<_, i64>(0).max(counted)))
}

/// Truncates the table, or deletes its rows if it cannot be truncated.
fn empty(tx: &mut Transaction<'_>, name: &str) -> Result<(), LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "emptying the table");
    let may: bool = tx
        .query_one("select has_table_privilege($1, 'truncate')", &[&name])
        .map_err(failed)?
        .get(0);
    let truncated = may && {
        // Truncating fails if other tables refer to this one or somebody is reading it.
        let mut attempt = tx.savepoint("before_truncate").map_err(failed)?;
        let done =
            attempt.batch_execute(&format!("set local lock_timeout = '2s'; truncate {name}"));
        match done {
            Ok(()) => attempt.commit().map(|()| true),
            Err(_) => attempt.rollback().map(|()| false),
        }
        .map_err(failed)?
    };
    if !truncated {
        tx.execute(&format!("delete from {name}"), &[]).map_err(failed)?;
    }
    if table::has_rows(tx, name).map_err(failed)? {
        return Err(LedgerError::Fatal(Fault::config(format!(
            "the table {name} still has rows after all were deleted: a trigger or row security \
             keeps them. Nothing was removed"
        ))));
    }
    Ok(())
}
