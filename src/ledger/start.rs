//! The start: ensures the schema and the job, takes the fence, and reads the durable state.
//!
//! All of it is one transaction under an advisory lock, so that simultaneous first starts do not
//! collide. Taking the fence (`generation + 1` on every row of `shard_progress`) waits for commits
//! in flight, and makes every later commit of an older instance fail.

use postgres::fallible_iterator::FallibleIterator;
use postgres::types::ToSql;
use postgres::{Client, IsolationLevel, Transaction};
use sessionizer_core::fault::{Fault, Message};
use sessionizer_core::key::Shard;
use sessionizer_core::plan::Fence;
use sessionizer_core::time::{Epoch, EventTime};

use crate::dataflow::ports::LedgerError;
use crate::dataflow::statistics::NeededPast;
use crate::ledger::connect::quote;
use crate::ledger::durable;
use crate::ledger::durable::RecoveredState;
use crate::ledger::errors::classify;
use crate::ledger::initial_rows::InitialRows;
use crate::ledger::peek::Database;
use crate::ledger::schema;
use crate::ledger::table;
use crate::ledger::table::Table;
use crate::ledger::{LedgerConfig, job, probe, rights};

/// An arbitrary constant, the same in every instance and in `sessionizer reset`.
pub const ADVISORY_LOCK: i64 = 0x7365_7373_696f_6e73;

/// The result of a start.
pub struct Started {
    pub durable: RecoveredState,
    pub database: Database,
    /// The table, for messages.
    pub table: String,
    /// Whether this start created the table.
    pub made_table: bool,
    /// KAFKA_TOPIC at the previous start, if known.
    pub topics_before: Option<Vec<String>>,
    /// The end of the newest row, if this is a first start on a table with rows.
    pub found_rows_to: Option<EventTime>,
    /// The rows that the statistics start from, if there are statistics.
    pub initial_rows: Option<InitialRows>,
}

/// What the caller decides about a start.
#[derive(Clone, Copy, Debug)]
pub struct StartOptions {
    /// Allows a first start although the table has rows: the caller has compared them with where
    /// reading begins.
    pub with_rows: bool,
    /// What the statistics need of the table, if there are any.
    pub needed_past: Option<NeededPast>,
}

/// Prepares everything, takes the fence and reads the durable state.
///
/// Anything missing or wrong is found before the transaction commits, so a refused start changes
/// nothing and does not fence a running instance.
pub fn start(
    client: &mut Client,
    config: &LedgerConfig,
    topics: &[String],
    StartOptions { with_rows, needed_past }: StartOptions,
) -> Result<Started, LedgerError> {
    check_encoding(client)?;
    let failed = |why: postgres::Error| classify(&why, "starting");
    let database = Database::of(client, config).map_err(failed)?;
    // Read committed: each statement sees what was committed while the previous one waited for a
    // lock.
    let tx = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start();
    let mut tx = tx.map_err(failed)?;
    tx.execute("select pg_advisory_xact_lock($1)", &[&ADVISORY_LOCK]).map_err(failed)?;
    let migrated = schema::migrate(&mut tx, &database)?;
    rights::check_rights(&mut tx)?;
    job::check_table_is_there(&mut tx, config)?;
    let (table, made_table) = table::ensure(&mut tx, config)?;
    check_rights(&mut tx, &table)?;
    lock_shards(&mut tx, &config.job)?;
    let before = job::ensure_job(&mut tx, config, topics, &table)?;
    let (created_job, topics_before) = (before.is_none(), before.flatten());
    let fence = fence(&mut tx, config)?;
    durable::check_for_start(&mut tx, config, &table.quoted())?;
    let durable = durable::read(&mut tx, &config.job, fence)?;
    let mut found_rows_to = None;
    if durable.is_first_start() && table::has_rows(&mut tx, &table.quoted()).map_err(failed)? {
        if !with_rows {
            let problem = format!(
                "the table {} or the job {} was changed while this start looked at them",
                table.shown, config.job
            );
            let message = Message::new(problem).remedy(": ", "start again");
            return Err(LedgerError::Fatal(Fault::environment(message)));
        }
        found_rows_to = Some(job::begin_after_rows(&mut tx, config, &table)?);
    }
    // Nobody else commits any more, and this run has not begun to.
    let initial_rows = match needed_past {
        Some(_) if made_table => Some(InitialRows::Empty),
        Some(needed) => Some(InitialRows::begin(&mut tx, config, &table, &durable, needed)?),
        None => None,
    };
    let lost_commits = may_lose_commits(&mut tx).map_err(failed)?;
    if let Some(warning) = lost_commits {
        log::warn!("{warning}");
    }
    let mut advice = rights::advise_on_owners(&mut tx, &table, created_job)?;
    advice.extend(probe::probe(&mut tx, config, topics, &table, &durable)?);
    let initial_rows = initial_rows.map(InitialRows::imported);
    tx.commit().map_err(failed)?;
    if let Some(migrated) = migrated {
        log::info!("{migrated}");
    }
    if created_job {
        table::advise(&table);
    }
    table.advice.iter().chain(&advice).for_each(|advice| log::warn!("{advice}"));
    let table = table.shown;
    Ok(Started { durable, database, table, made_table, topics_before, found_rows_to, initial_rows })
}

/// Returns a warning if a commit may be acknowledged before it is on disk and then be lost. The job
/// notices and rereads them, but rows that others have seen may be gone for a moment.
pub(super) fn may_lose_commits(
    tx: &mut Transaction<'_>,
) -> Result<Option<Message>, postgres::Error> {
    let row = tx.query_one(
        "select current_user::text, current_setting('synchronous_commit') = 'off'",
        &[],
    )?;
    Ok(row.get::<_, bool>(1).then(|| {
        let user: String = row.get(0);
        let problem = format!(
            "synchronous_commit is off for the login {user}: a crash of Postgres may take back the \
             last commits. The job notices and reads the missing records again"
        );
        let remedy = format!("alter role {} set synchronous_commit = on", quote(&user));
        Message::new(problem).remedy("; to rule it out: ", remedy)
    }))
}

/// Refuses an encoding that would change or reject keys, which are UTF-8, byte for byte.
pub fn check_encoding(client: &mut Client) -> Result<(), LedgerError> {
    let row = client
        .query_one("select current_setting('server_encoding'), current_database()::text", &[])
        .map_err(|why| classify(&why, "asking for the encoding"))?;
    let (encoding, database): (String, String) = (row.get(0), row.get(1));
    if encoding == "UTF8" || encoding == "SQL_ASCII" {
        return Ok(());
    }
    let problem = format!("the database {database} is encoded in {encoding}");
    let remedy = "the job needs UTF8 (create database ... encoding 'UTF8' template template0)";
    Err(LedgerError::Fatal(Fault::config(Message::new(problem).remedy(": ", remedy))))
}

/// Checks the rights on the table now, because most are needed only later: `delete`, for example,
/// when the first late event arrives. A job that lacks a right must not start.
pub fn check_rights(tx: &mut Transaction<'_>, table: &Table) -> Result<(), LedgerError> {
    let row = tx
        .query_one(
            "select current_user::text,
                    array_remove(array[
                        case when not has_table_privilege(t, 'select') then 'select' end,
                        case when not has_table_privilege(t, 'insert')
                              and not (select bool_and(has_column_privilege(t, c, 'insert'))
                                       from unnest(array['ip', 'host', 'session_start',
                                                         'session_end', 'num_logs']) c)
                             then 'insert' end,
                        case when not has_table_privilege(t, 'delete') then 'delete' end], null)
             from (select to_regclass($1)::oid) t(t)",
            &[&table.quoted()],
        )
        .map_err(|why| classify(&why, "asking for the rights on the table"))?;
    let (user, missing): (String, Vec<String>) = (row.get(0), row.get(1));
    if missing.is_empty() {
        return Ok(());
    }
    let (rights, shown) = (missing.join(", "), &table.shown);
    let problem = format!(
        "Postgres refuses: the login {user} lacks the right to {rights} on the table {shown}"
    );
    let remedy = format!("grant {rights} on {shown} to {};", quote(&user));
    Err(LedgerError::Fatal(Fault::config(Message::new(problem).remedy("; grant it: ", remedy))))
}

/// Waits for commits in flight and blocks new ones. It locks as a commit does, shards first and in
/// ascending order, so that there is no deadlock.
pub(super) fn lock_shards(tx: &mut Transaction<'_>, job: &str) -> Result<(), LedgerError> {
    let lock = "select from sessionizer.shard_progress where job = $1 order by shard for update";
    tx.execute(lock, &[&job]).map(|_| ()).map_err(|why| classify(&why, "taking the fence"))
}

/// Takes the fence: from here on, no commit of another run succeeds.
pub(super) fn fence(tx: &mut Transaction<'_>, config: &LedgerConfig) -> Result<Fence, LedgerError> {
    let mut random = [0; 8];
    openssl::rand::rand_bytes(&mut random).map_err(|why| {
        LedgerError::Fatal(Fault::environment(format!("OpenSSL has no random numbers: {why}")))
    })?;
    let run = i64::from_ne_bytes(random);
    let rows = tx
        .query(
            "update sessionizer.shard_progress set generation = generation + 1, run = $2
             where job = $1 returning generation",
            &[&config.job, &run],
        )
        .map_err(|why| classify(&why, "taking the fence"))?;
    let generation = rows.iter().map(|row| row.get(0)).max();
    let generation = generation.ok_or_else(|| {
        durable::incomplete(&config.job, "sessionizer.shard_progress has no row of the job")
    })?;
    Ok(Fence { generation, run })
}

/// Reads the snapshots of some shards, for the run that has taken the fence. `ours` means that this
/// process took it, not another one of the cluster.
pub fn snapshots(
    client: &mut Client,
    config: &LedgerConfig,
    (fence, ours): (Fence, bool),
    shards: &[Shard],
    mut arrived: impl FnMut(),
) -> Result<Vec<(Shard, Epoch, Vec<u8>)>, LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "reading snapshots");
    check_fence(client, config, (fence, ours))?;
    let numbers: Vec<i32> = shards.iter().map(|shard| shard.0 as i32).collect();
    let parameters: [&(dyn ToSql + Sync); 2] = [&config.job, &numbers];
    let mut rows = client
        .query_raw(
            "select shard, epoch, data from sessionizer.snapshots
             where job = $1 and shard = any($2) order by shard",
            parameters,
        )
        .map_err(failed)?;
    let mut snapshots = Vec::with_capacity(shards.len());
    while let Some(row) = rows.next().map_err(failed)? {
        arrived();
        let shard = Shard(row.get::<_, i32>(0) as u32);
        snapshots.push((shard, durable::unsigned(&row, "epoch")?, row.get(2)));
    }
    Ok(snapshots)
}

/// Checks that this is the database in which the run has taken its fence: each process of a cluster
/// has its own POSTGRES_URL.
fn check_fence(
    client: &mut Client,
    config: &LedgerConfig,
    (fence, ours): (Fence, bool),
) -> Result<(), LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "asking for the generation");
    // A database that never had a job lacks the table.
    let there: bool = client
        .query_one("select to_regclass('sessionizer.shard_progress') is not null", &[])
        .map_err(failed)?
        .get(0);
    let newest: (Option<i64>, Option<i64>) = if there {
        let newest = "select max(generation), max(run) from sessionizer.shard_progress
                      where job = $1";
        let row = client.query_one(newest, &[&config.job]).map_err(failed)?;
        (row.get(0), row.get(1))
    } else {
        (None, None)
    };
    let generation = fence.generation;
    match newest {
        (Some(newest), run) if newest == generation && run == Some(fence.run) => Ok(()),
        (Some(newest), _) if newest > generation || ours && newest == generation => {
            Err(LedgerError::Fatal(Fault::fenced(format!(
                "another instance of the job {} has taken over during the start: it is generation \
             {newest}, this one is {generation}",
                config.job
            ))))
        }
        _ if ours => Err(LedgerError::Fatal(Fault::gone_back(format!(
            "the database at {} has gone back to an earlier state: it does not know of this start \
             of the job {}. It may be an asynchronous failover, a restored backup, or a crash with \
             synchronous_commit = off",
            config.url, config.job
        )))),
        _ => Err(LedgerError::Fatal(Fault::config(format!(
            "the database at {} is not the one in which process 0 has started the job {}: \
             POSTGRES_URL must lead every process to the same one",
            config.url, config.job
        )))),
    }
}
