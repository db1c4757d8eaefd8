//! The start: the schema, the job, the fence, and what is durable.
//!
//! All of it is one transaction under an advisory lock, so two first starts at the same moment
//! do not meet. Taking the fence (`generation + 1` on every row of `shard_progress`) waits for
//! commits in flight and makes every later commit of an older instance fail.

use std::fmt;

use log::info;
use postgres::{Client, GenericClient, IsolationLevel, Row, Transaction};

use super::LedgerConfig;
use super::connect::{GRANT, classify};
use super::table::{self, Table};
use crate::binding::{Late, Offset, Rules, Status, TopicId};
use crate::control::Fault;
use crate::key::Shard;
use crate::operators::LedgerError;
use crate::plan::ShardProgress;
use crate::session::SessionTable;
use crate::snapshot;
use crate::time::{Epoch, EventTime};

const SCHEMA: &str = include_str!("schema.sql");
/// Any constant: it only has to be the same in every instance.
const ADVISORY_LOCK: i64 = 0x7365_7373_696f_6e73;

/// A binding as it is stored: the topic by its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedBinding {
    pub topic: String,
    pub partition: i32,
    pub topic_id: Option<TopicId>,
    pub start: Offset,
    pub end: Offset,
    pub promise: EventTime,
    pub status: Status,
    pub quiet_since: Epoch,
    pub records: u64,
    pub dead: u64,
    /// By which clock its epoch was judged; known of what is to be read again.
    pub clock_ms: Option<u64>,
}

/// A bound epoch as it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedEpoch {
    pub epoch: Epoch,
    pub watermark: EventTime,
    /// `None`: an older version of the program bound it.
    pub rules: Option<Rules>,
    pub bindings: Vec<NamedBinding>,
}

/// What is durable of the job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Durable {
    pub generation: i64,
    /// By shard.
    pub progress: Vec<ShardProgress>,
    /// The oldest snapshot: its epoch, the watermark then, and the last binding of each
    /// partition at or before it.
    pub base: NamedEpoch,
    /// Every bound epoch after the base, in order.
    pub replay: Vec<NamedEpoch>,
}

/// Prepares everything and takes the fence.
pub fn start(client: &mut Client, config: &LedgerConfig) -> Result<Durable, LedgerError> {
    check_encoding(client)?;
    let ails = |why: postgres::Error| classify(&why, "starting");
    // Each statement sees what was committed while the one before waited for a lock.
    let tx = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start();
    let mut tx = tx.map_err(ails)?;
    tx.execute("select pg_advisory_xact_lock($1)", &[&ADVISORY_LOCK]).map_err(ails)?;
    ensure_schema(&mut tx)?;
    check_table_is_there(&mut tx, config)?;
    let (table, made) = table::ensure(&mut tx, config)?;
    check_rights(&mut tx, &table)?;
    let created = ensure_job(&mut tx, config, &table)?;
    let generation = fence(&mut tx, config)?;
    tx.commit().map_err(ails)?;
    if made {
        info!("created the table {}", config.table);
    }
    if created {
        table::advise(&table);
    }
    read(client, config, generation)
}

/// Keys are UTF-8, byte for byte; any other encoding would change or refuse them.
fn check_encoding(client: &mut Client) -> Result<(), LedgerError> {
    let row = client
        .query_one("select current_setting('server_encoding'), current_database()::text", &[])
        .map_err(|why| classify(&why, "asking for the encoding"))?;
    let (encoding, database): (String, String) = (row.get(0), row.get(1));
    if encoding == "UTF8" || encoding == "SQL_ASCII" {
        return Ok(());
    }
    Err(LedgerError::Fatal(Fault::Config(format!(
        "the database {database} is encoded in {encoding}: the job needs UTF8 (create database \
         ... encoding 'UTF8' template template0)"
    ))))
}

/// Makes our schema unless it is all there: one that an administrator has made must do, even if
/// the job may not create anything.
fn ensure_schema(tx: &mut Transaction<'_>) -> Result<(), LedgerError> {
    let ails = |why: postgres::Error| classify(&why, "preparing the schema sessionizer");
    let there: bool = tx
        .query_one(
            "select to_regclass('sessionizer.partitions') is not null
                and to_regclass('sessionizer.balance') is not null
                and to_regclass('sessionizer.losses') is not null
                and exists (select from pg_attribute
                            where attrelid = to_regclass('sessionizer.bindings')
                            and attname = 'clock_ms')",
            &[],
        )
        .map_err(ails)?
        .get(0);
    if there { Ok(()) } else { tx.batch_execute(SCHEMA).map_err(ails) }
}

/// A job that exists has a table: an empty one in its place would lack what was written before.
fn check_table_is_there(
    tx: &mut Transaction<'_>,
    config: &LedgerConfig,
) -> Result<(), LedgerError> {
    let gone = tx
        .query_opt(
            "select from sessionizer.jobs where job = $1
                and to_regclass(format('%I.%I', table_schema, table_name)) is null",
            &[&config.job],
        )
        .map_err(|why| classify(&why, "looking for the job's table"))?;
    if gone.is_some() { Err(table::gone(config)) } else { Ok(()) }
}

/// Most rights are needed late: to delete, when the first late event comes. A job that lacks one
/// must not run until then.
fn check_rights(tx: &mut Transaction<'_>, table: &Table) -> Result<(), LedgerError> {
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
    Err(LedgerError::Fatal(Fault::World(format!(
        "Postgres refuses: the login {user} lacks the right to {} on the table {}{GRANT}",
        missing.join(", "),
        table.quoted()
    ))))
}

/// Finds the job or creates it; says whether it was created.
fn ensure_job(
    tx: &mut Transaction<'_>,
    config: &LedgerConfig,
    table: &Table,
) -> Result<bool, LedgerError> {
    let ails = |why: postgres::Error| classify(&why, "looking for the job");
    let by = format!("pid {} on {}", std::process::id(), host_name());
    let job = tx
        .query_opt(
            "update sessionizer.jobs set started_at = now(), started_by = $2 where job = $1
             returning table_schema, table_name, shards, gap_ms, session_end",
            &[&config.job, &by],
        )
        .map_err(ails)?;
    if let Some(job) = job {
        check_settings(&job, config, table)?;
        return Ok(false);
    }
    let other = tx
        .query_opt(
            "select job from sessionizer.jobs where table_schema = $1 and table_name = $2",
            &[&table.schema, &table.name],
        )
        .map_err(ails)?;
    if let Some(other) = other {
        let other: String = other.get(0);
        return Err(LedgerError::Fatal(Fault::Config(format!(
            "the table {} belongs to the job {other}; this is the job {}: give it a table of its \
             own (--table), or start it as {other} (--job)",
            table.quoted(),
            config.job
        ))));
    }
    create_job(tx, config, table, &by).map(|()| true)
}

fn check_settings(job: &Row, config: &LedgerConfig, table: &Table) -> Result<(), LedgerError> {
    let (schema, name): (String, String) = (job.get(0), job.get(1));
    let (shards, gap_ms): (i32, i64) = (job.get(2), job.get(3));
    let session_end: String = job.get(4);
    let mut differences = Vec::new();
    if (&schema, &name) != (&table.schema, &table.name) {
        differences.push(format!("its table is {schema}.{name}, not {}", table.quoted()));
    }
    if shards != config.shards as i32 {
        differences.push(format!("it has {shards} shards, not {} (--shards)", config.shards));
    }
    if gap_ms != config.gap.millis() {
        differences.push(format!("its gap is {gap_ms} ms, not {} (--gap)", config.gap.millis()));
    }
    if session_end != config.session_end.name() {
        let now = config.session_end.name();
        differences.push(format!("its --session-end is {session_end}, not {now}"));
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(LedgerError::Fatal(Fault::Config(format!(
        "the job {} was created with other settings: {}. They shape rows that are there already: \
         start with those of its creation, or as another job (--job) with a table of its own",
        config.job,
        differences.join("; ")
    ))))
}

/// Rows that are there already are the past: they set the horizon of every shard.
fn create_job(
    tx: &mut Transaction<'_>,
    config: &LedgerConfig,
    table: &Table,
    by: &str,
) -> Result<(), LedgerError> {
    let ails = |why: postgres::Error| classify(&why, "creating the job");
    let name = table.quoted();
    let newest = newest_end(tx, config, &name).map_err(ails)?;
    let horizon = newest.unwrap_or(EventTime::NEVER);
    tx.execute(
        "insert into sessionizer.jobs (job, table_schema, table_name, shards, gap_ms,
                                       session_end, found_rows, started_by)
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
        &[
            &config.job,
            &table.schema,
            &table.name,
            &(config.shards as i32),
            &config.gap.millis(),
            &config.session_end.name(),
            &newest.is_some(),
            &by,
        ],
    )
    .map_err(ails)?;
    let empty = snapshot::encode(&SessionTable::new(config.gap, horizon));
    let shards: Vec<i32> = (0..config.shards as i32).collect();
    tx.execute(
        "insert into sessionizer.shard_progress
         select $1, shard, 0, 0, 0, 0, 0 from unnest($2::int4[]) shard",
        &[&config.job, &shards],
    )
    .map_err(ails)?;
    tx.execute(
        "insert into sessionizer.snapshots
         select $1, shard, 0, $3 from unnest($2::int4[]) shard",
        &[&config.job, &shards, &empty],
    )
    .map_err(ails)?;
    tx.execute(
        "insert into sessionizer.epochs (job, epoch, shards_done, closed, open, dead)
         values ($1, 0, $2, 0, 0, 0)",
        &[&config.job, &(config.shards as i32)],
    )
    .map_err(ails)?;
    info!("created the job {} on the table {name}, {} shards", config.job, config.shards);
    if newest.is_some() {
        info!("the table has rows up to {horizon}: events up to then merge with what they touch");
    }
    Ok(())
}

fn fence(tx: &mut Transaction<'_>, config: &LedgerConfig) -> Result<i64, LedgerError> {
    let rows = tx
        .query(
            "update sessionizer.shard_progress set generation = generation + 1 where job = $1
             returning generation",
            &[&config.job],
        )
        .map_err(|why| classify(&why, "taking the fence"))?;
    rows.iter().map(|row| row.get(0)).max().ok_or_else(|| {
        LedgerError::Fatal(Fault::World(format!(
            "the job {} has no rows in sessionizer.shard_progress: they were deleted; restore \
             them, or delete the job from sessionizer.jobs and start afresh",
            config.job
        )))
    })
}

/// Reads what is durable. After the fence nobody else can change it.
fn read(
    client: &mut Client,
    config: &LedgerConfig,
    generation: i64,
) -> Result<Durable, LedgerError> {
    let ails = |why: postgres::Error| classify(&why, "reading what is durable");
    // One snapshot for all of it: an instance that takes over meanwhile may commit.
    let mut tx = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .map_err(ails)?;
    let progress = progress(&mut tx, &config.job).map_err(ails)?;
    let base = tx
        .query_opt(
            "select epoch, watermark_ms, max_future_ms, late from sessionizer.epochs
             where job = $1 and epoch =
             (select min(epoch) from sessionizer.snapshots where job = $1)",
            &[&config.job],
        )
        .map_err(ails)?;
    let Some(base) = base.filter(|_| progress.len() == config.shards as usize) else {
        return Err(LedgerError::Fatal(Fault::World(format!(
            "what sessionizer.* holds of the job {} is incomplete: rows were deleted by hand or \
             a restore was partial; restore all of the schema sessionizer, or none of the job",
            config.job
        ))));
    };
    let mut base = epoch(&base);
    base.bindings = bindings_at(&mut tx, &config.job, base.epoch).map_err(ails)?;
    let mut replay: Vec<NamedEpoch> = tx
        .query(
            "select epoch, watermark_ms, max_future_ms, late from sessionizer.epochs
             where job = $1 and epoch > $2 order by epoch",
            &[&config.job, &(base.epoch as i64)],
        )
        .map_err(ails)?
        .iter()
        .map(epoch)
        .collect();
    let select = format!(
        "select {BINDING}, epoch, clock_ms from sessionizer.bindings where job = $1 and epoch > $2
         order by epoch, topic, partition"
    );
    let mut at = 0;
    for row in &tx.query(&select, &[&config.job, &(base.epoch as i64)]).map_err(ails)? {
        let epoch = unsigned(row, 10);
        while replay.get(at).is_some_and(|bound| bound.epoch < epoch) {
            at += 1;
        }
        let bound = replay.get_mut(at).filter(|bound| bound.epoch == epoch);
        let clock_ms = row.get::<_, Option<i64>>(11).map(|clock_ms| clock_ms.max(0) as u64);
        let binding = NamedBinding { clock_ms, ..binding(row) };
        bound.expect("I3: a binding is durable with its epoch").bindings.push(binding);
    }
    Ok(Durable { generation, progress, base, replay })
}

/// An epoch without its bindings.
fn epoch(row: &Row) -> NamedEpoch {
    let (max_future_ms, late): (Option<i64>, Option<&str>) = (row.get(2), row.get(3));
    let rules = max_future_ms.zip(late).map(|(max_future_ms, late)| {
        let late =
            Late::named(late).unwrap_or_else(|| panic!("sessionizer.epochs holds late = {late:?}"));
        Rules { max_future_ms, late }
    });
    NamedEpoch { epoch: unsigned(row, 0), watermark: optional(row, 1), rules, bindings: vec![] }
}

/// How far each shard is, in order.
pub fn progress(
    client: &mut impl GenericClient,
    job: &str,
) -> Result<Vec<ShardProgress>, postgres::Error> {
    let rows = client.query(
        "select epoch, closed, open, dead from sessionizer.shard_progress where job = $1
         order by shard",
        &[&job],
    )?;
    let shard = |row: &Row| ShardProgress {
        epoch: unsigned(row, 0),
        closed: unsigned(row, 1),
        open: unsigned(row, 2),
        dead: unsigned(row, 3),
    };
    Ok(rows.iter().map(shard).collect())
}

fn unsigned(row: &Row, column: usize) -> u64 {
    u64::try_from(row.get::<_, i64>(column)).expect("counts and epochs are not negative")
}

fn optional(row: &Row, column: usize) -> EventTime {
    row.get::<_, Option<i64>>(column).map_or(EventTime::NEVER, EventTime::from_millis)
}

/// The columns that [`binding`] reads.
const BINDING: &str = "topic, partition, start_offset, end_offset, promise_ms, status, \
                       quiet_since, records, dead, topic_id";

/// The last binding of each partition at or before an epoch.
pub fn bindings_at(
    client: &mut impl GenericClient,
    job: &str,
    epoch: Epoch,
) -> Result<Vec<NamedBinding>, postgres::Error> {
    let select = format!(
        "select distinct on (topic, partition) {BINDING} from sessionizer.bindings
         where job = $1 and epoch <= $2 order by topic, partition, epoch desc"
    );
    Ok(client.query(&select, &[&job, &(epoch as i64)])?.iter().map(binding).collect())
}

fn binding(row: &Row) -> NamedBinding {
    let status: &str = row.get(5);
    NamedBinding {
        topic: row.get(0),
        partition: row.get(1),
        topic_id: row.get::<_, Option<&str>>(9).and_then(TopicId::named),
        start: row.get(2),
        end: row.get(3),
        promise: optional(row, 4),
        status: Status::named(status)
            .unwrap_or_else(|| panic!("sessionizer.bindings holds the status {status:?}")),
        quiet_since: unsigned(row, 6),
        records: unsigned(row, 7),
        dead: unsigned(row, 8),
        clock_ms: None,
    }
}

/// Offsets that are needed and gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loss {
    pub topic: String,
    pub partition: i32,
    /// The first that is needed.
    pub from: Offset,
    /// The first that there is; `None` if the topic was made again.
    pub to: Option<Offset>,
    /// Up to which offset it had been read.
    pub read_to: Offset,
    /// What Kafka has.
    pub available: (Offset, Offset),
    pub reason: &'static str,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Loss { topic, partition, from, read_to, available, reason, .. } = self;
        let (oldest, end) = available;
        let needed = if end < read_to { read_to } else { from };
        write!(
            f,
            "{topic}[{partition}]: reading has to go on at offset {needed}, but Kafka has {oldest} \
             to {end}: {reason}"
        )
    }
}

/// Notes what is lost, from `first_epoch` on; gives the end of the newest row of the table: no
/// session has closed that ends later.
pub fn accept_losses(
    client: &mut Client,
    config: &LedgerConfig,
    losses: &[Loss],
    first_epoch: Epoch,
) -> Result<EventTime, LedgerError> {
    let ails = |why: postgres::Error| classify(&why, "noting what is lost");
    let mut tx = client.transaction().map_err(ails)?;
    for loss in losses {
        // A start that ended before its first commit has noted the same.
        tx.execute(
            "delete from sessionizer.losses
             where job = $1 and topic = $2 and partition = $3 and lost_from = $4",
            &[&config.job, &loss.topic, &loss.partition, &loss.from],
        )
        .map_err(ails)?;
        tx.execute(
            "insert into sessionizer.losses
                 (job, topic, partition, lost_from, lost_to, read_to, reason)
             values ($1, $2, $3, $4, $5, $6, $7)",
            &[
                &config.job,
                &loss.topic,
                &loss.partition,
                &loss.from,
                &loss.to,
                &loss.read_to,
                &loss.reason,
            ],
        )
        .map_err(ails)?;
    }
    tx.execute(
        "update sessionizer.jobs set loss_epoch = $2 where job = $1",
        &[&config.job, &(first_epoch as i64)],
    )
    .map_err(ails)?;
    let table = tx
        .query_one(
            "select format('%I.%I', table_schema, table_name) from sessionizer.jobs where job = $1",
            &[&config.job],
        )
        .map_err(ails)?;
    let newest = newest_end(&mut tx, config, table.get(0)).map_err(ails)?;
    tx.commit().map_err(ails)?;
    Ok(newest.unwrap_or(EventTime::NEVER))
}

/// The end of the newest row of the table, as a session counts it.
fn newest_end(
    client: &mut impl GenericClient,
    config: &LedgerConfig,
    table: &str,
) -> Result<Option<EventTime>, postgres::Error> {
    let row = client.query_one(&format!("select max(session_end) from {table}"), &[])?;
    let newest: Option<super::copy::Timestamp> = row.get(0);
    Ok(newest.map(|end| config.gap.end_after(config.session_end.last_event(end.0, config.gap))))
}

/// Reads the snapshots of some shards, for the run that has taken the fence as `generation`.
pub fn snapshots(
    client: &mut Client,
    config: &LedgerConfig,
    generation: i64,
    shards: &[Shard],
) -> Result<Vec<(Shard, Epoch, Vec<u8>)>, LedgerError> {
    check_generation(client, config, generation)?;
    let numbers: Vec<i32> = shards.iter().map(|shard| shard.0 as i32).collect();
    let rows = client
        .query(
            "select shard, epoch, data from sessionizer.snapshots
             where job = $1 and shard = any($2) order by shard",
            &[&config.job, &numbers],
        )
        .map_err(|why| classify(&why, "reading snapshots"))?;
    let snapshot = |row: &Row| (Shard(row.get::<_, i32>(0) as u32), unsigned(row, 1), row.get(2));
    Ok(rows.iter().map(snapshot).collect())
}

/// Whether this is the database in which the run has taken its fence: each process of a cluster is
/// told by itself where Postgres is.
fn check_generation(
    client: &mut Client,
    config: &LedgerConfig,
    generation: i64,
) -> Result<(), LedgerError> {
    let ails = |why: postgres::Error| classify(&why, "asking for the generation");
    // A database that never had a job has no such table.
    let there: bool = client
        .query_one("select to_regclass('sessionizer.shard_progress') is not null", &[])
        .map_err(ails)?
        .get(0);
    let newest: Option<i64> = if there {
        let newest = "select max(generation) from sessionizer.shard_progress where job = $1";
        client.query_one(newest, &[&config.job]).map_err(ails)?.get(0)
    } else {
        None
    };
    match newest {
        Some(newest) if newest == generation => Ok(()),
        Some(newest) if newest > generation => Err(LedgerError::Fatal(Fault::Fenced(format!(
            "another instance of the job {} has taken over during the start: it is generation \
             {newest}, this one is {generation}",
            config.job
        )))),
        _ => Err(LedgerError::Fatal(Fault::Config(format!(
            "the database at {} is not the one in which process 0 has started the job {}: \
             POSTGRES_URL must lead every process to the same",
            config.url, config.job
        )))),
    }
}

/// The name of this machine, for messages about who has taken over.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "an unnamed host".to_owned() } else { name.to_owned() }
}
