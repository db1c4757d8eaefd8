//! The durable state of a job, as a start and the audit read it.
//!
//! Others can reach these tables: a restore may be partial, and rows may be deleted or changed by
//! hand. So everything is checked before it is used, and anything wrong is an error that names the
//! rows to look at, never a panic.

use postgres::{GenericClient, Row};
use sessionizer_core::binding::{Late, Offset, RecordRules, Status, TopicId};
use sessionizer_core::fault::{Fault, Message};
use sessionizer_core::plan::{Fence, ShardProgress};
use sessionizer_core::time::{Epoch, EventTime};

use crate::dataflow::ports::LedgerError;
use crate::ledger::LedgerConfig;
use crate::ledger::errors::classify;
use crate::ledger::stopped::exists;
use crate::ledger::table;
use crate::ui::text;

/// A binding as stored, with the topic's name.
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
    /// The wall clock by which events of its epoch were judged; known for epochs to be replayed.
    pub clock_ms: Option<u64>,
}

/// A bound epoch as stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedEpoch {
    pub epoch: Epoch,
    pub watermark: EventTime,
    /// `None`: an older version of the program bound it.
    pub rules: Option<RecordRules>,
    pub bindings: Vec<NamedBinding>,
}

/// The durable state of the job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecoveredState {
    pub fence: Fence,
    /// By shard.
    pub progress: Vec<ShardProgress>,
    /// The oldest snapshot: its epoch, the watermark then, and the last binding of each
    /// partition at or before it.
    pub base: NamedEpoch,
    /// Every bound epoch after the base, in order.
    pub replay: Vec<NamedEpoch>,
}

impl RecoveredState {
    /// Whether nothing has ever been committed, so that it is still undecided where reading begins.
    pub fn is_first_start(&self) -> bool {
        self.replay.is_empty() && self.base.bindings.is_empty()
    }
}

/// Reads the durable state for the run that holds the fence: nobody else can change it meanwhile.
pub fn read(
    client: &mut impl GenericClient,
    job: &str,
    fence: Fence,
) -> Result<RecoveredState, LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "reading what is durable");
    let progress = progress(client, job)?;
    let base = client
        .query_opt(
            "select epoch, watermark_ms, max_future_ms, late from sessionizer.epochs
             where job = $1 and epoch =
             (select min(epoch) from sessionizer.snapshots where job = $1)",
            &[&job],
        )
        .map_err(failed)?;
    let Some(base) = base else {
        return Err(incomplete(job, "the epoch of the oldest snapshot is missing"));
    };
    let mut base = epoch(&base)?;
    base.bindings = bindings_at(client, job, base.epoch)?;
    let mut replay: Vec<NamedEpoch> = client
        .query(
            "select epoch, watermark_ms, max_future_ms, late from sessionizer.epochs
             where job = $1 and epoch > $2 order by epoch",
            &[&job, &(base.epoch as i64)],
        )
        .map_err(failed)?
        .iter()
        .map(epoch)
        .collect::<Result<_, _>>()?;
    // The audit changes nothing, so the column may be missing: then no clock is known.
    let select = format!(
        "select {BINDING}, epoch, (to_jsonb(b) ->> 'clock_ms')::int8 as clock_ms
         from sessionizer.bindings b where job = $1 and epoch > $2
         order by epoch, topic, partition"
    );
    let mut at = 0;
    for row in &client.query(&select, &[&job, &(base.epoch as i64)]).map_err(failed)? {
        let epoch = unsigned(row, "epoch")?;
        while replay.get(at).is_some_and(|bound| bound.epoch < epoch) {
            at += 1;
        }
        let bound = replay.get_mut(at).filter(|bound| bound.epoch == epoch);
        let bound = bound.ok_or_else(|| {
            incomplete(job, &format!("sessionizer.epochs lacks the epoch {epoch}"))
        })?;
        let clock_ms = row.get::<_, Option<i64>>("clock_ms").map(|clock_ms| clock_ms.max(0) as u64);
        bound.bindings.push(NamedBinding { clock_ms, ..binding(row)? });
    }
    Ok(RecoveredState { fence, progress, base, replay })
}

/// Refuses a job that lacks something a start depends on. `table` is its table, quoted.
pub fn check(client: &mut impl GenericClient, job: &str, table: &str) -> Result<(), LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "checking that nothing is missing");
    let mut missing = find_missing(client, job).map_err(failed)?;
    missing.extend(find_empty(client, job, table).map_err(failed)?);
    if missing.is_empty() { Ok(()) } else { Err(incomplete(job, &missing.join("; "))) }
}

/// The same for a start, which may be told that the rows are gone on purpose.
pub fn check_for_start(
    client: &mut impl GenericClient,
    config: &LedgerConfig,
    table: &str,
) -> Result<(), LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "checking that nothing is missing");
    let job = &config.job;
    let mut missing = find_missing(client, job).map_err(failed)?;
    let empty = find_empty(client, job, table).map_err(failed)?;
    match empty {
        Some(why) if config.accept_empty_table => {
            log::warn!("{why}; continuing, as --accept-empty-table says");
        }
        Some(why) if missing.is_empty() => {
            let remedy = "If they were removed on purpose, for example by a retention of your own, \
                          start once with --accept-empty-table. Otherwise restore the table and the \
                          schema sessionizer from one backup, or begin afresh: `sessionizer reset` \
                          removes the job, and the next start reads the topic again";
            return Err(LedgerError::Fatal(Fault::config(Message::new(why).remedy(". ", remedy))));
        }
        why => missing.extend(why),
    }
    if missing.is_empty() { Ok(()) } else { Err(incomplete(job, &missing.join("; "))) }
}

/// Describes a table without rows, if sessions were written to it.
fn find_empty(
    client: &mut impl GenericClient,
    job: &str,
    table: &str,
) -> Result<Option<String>, postgres::Error> {
    let sum =
        "select coalesce(sum(closed), 0)::int8 from sessionizer.shard_progress where job = $1";
    let closed: i64 = client.query_one(sum, &[&job])?.get(0);
    if closed == 0 || table::has_rows(client, table)? || has_forgotten(client, job)? {
        return Ok(None);
    }
    let records = text::plural(closed as u64, "record");
    Ok(Some(format!("the table is empty, although sessions of {records} were written to it")))
}

fn find_missing(
    client: &mut impl GenericClient,
    job: &str,
) -> Result<Vec<String>, postgres::Error> {
    let row = client.query_one(
        "select j.shards::int8, j.loss_epoch is not null,
                (select count(*) from sessionizer.shard_progress p
                 where p.job = j.job and p.shard between 0 and j.shards - 1),
                (select count(*) from sessionizer.snapshots s
                 where s.job = j.job and s.shard between 0 and j.shards - 1),
                (select count(*) from sessionizer.snapshots s
                 join sessionizer.shard_progress p using (job, shard)
                 where job = j.job and s.epoch > p.epoch),
                (select count(*) from
                     (select epoch from sessionizer.shard_progress where job = j.job
                      union select epoch from sessionizer.snapshots where job = j.job) needed
                 where not exists (select from sessionizer.epochs e
                                   where e.job = j.job and e.epoch = needed.epoch)),
                (select count(*) from sessionizer.bindings b where b.job = j.job),
                (select coalesce(max(p.epoch), 0) from sessionizer.shard_progress p
                 where p.job = j.job)
         from sessionizer.jobs j where j.job = $1",
        &[&job],
    )?;
    let number = |column: usize| row.get::<_, i64>(column);
    let shards = number(0);
    let mut missing = Vec::new();
    for (of, there) in [("shard_progress", number(2)), ("snapshots", number(3))] {
        if there != shards {
            missing.push(format!("sessionizer.{of} has {there} of {shards} shards"));
        }
    }
    if number(4) > 0 {
        missing.push(format!(
            "{} snapshots are newer than their shards in sessionizer.shard_progress",
            number(4)
        ));
    }
    if number(5) > 0 {
        missing.push(format!(
            "sessionizer.epochs lacks {} epochs at which shards or snapshots stand",
            number(5)
        ));
    }
    if number(6) == 0 && number(7) > 0 {
        missing.push(
            "sessionizer.bindings has no row, so nothing says up to which offsets the topic was \
             read"
                .to_owned(),
        );
    }
    if missing.is_empty() && !row.get::<_, bool>(1) {
        missing.extend(find_imbalance(client, job)?);
    }
    Ok(missing)
}

/// Whether visitors of the job were forgotten: then the table may be empty for that reason.
fn has_forgotten(client: &mut impl GenericClient, job: &str) -> Result<bool, postgres::Error> {
    Ok(exists(client, "forgotten")?
        && client
            .query_one("select exists (select from sessionizer.forgotten where job = $1)", &[&job])?
            .get(0))
}

/// Describes how the totals fail to balance at the last epoch that all shards have passed.
fn find_imbalance(
    client: &mut impl GenericClient,
    job: &str,
) -> Result<Option<String>, postgres::Error> {
    let row = client.query_opt(
        "select records, closed, open, dead, lost, difference from sessionizer.balance
         where job = $1",
        &[&job],
    )?;
    let Some(row) = row else {
        return Ok(Some("sessionizer.epochs has no epoch that all shards have passed".to_owned()));
    };
    let [records, closed, open, dead, lost, difference] =
        [0, 1, 2, 3, 4, 5].map(|column| row.get::<_, i64>(column));
    Ok((difference != 0).then(|| {
        format!(
            "sessionizer.balance has a difference of {difference}: {records} records were read, \
             {closed} are in closed sessions, {open} in open ones, {dead} are dead letters and \
             {lost} are lost"
        )
    }))
}

/// What to do about a state that is damaged.
pub const RESTORE: &str = "Restore the schema sessionizer and the table from one backup, or begin \
                           afresh: `sessionizer reset` removes the job and its rows, and the next \
                           start reads the topic again";

/// The error for a state that no start can continue from.
pub fn incomplete(job: &str, what: &str) -> LedgerError {
    let problem = format!(
        "the state of the job {job} in Postgres is incomplete: {what}. Rows were deleted or \
         changed by hand, or a restore was partial; continuing from here would lose or repeat \
         sessions"
    );
    LedgerError::Fatal(Fault::config(Message::new(problem).remedy(". ", RESTORE)))
}

/// The error for a value that this program did not write.
fn foreign(row: &Row, column: &str, value: &dyn std::fmt::Debug) -> LedgerError {
    let table = if row.columns().iter().any(|column| column.name() == "end_offset") {
        "bindings"
    } else if row.columns().iter().any(|column| column.name() == "watermark_ms") {
        "epochs"
    } else if row.columns().iter().any(|column| column.name() == "data") {
        "snapshots"
    } else {
        "shard_progress"
    };
    let problem = format!(
        "sessionizer.{table} holds {column} = {value:?}, which no version of this program writes: \
         was it changed by hand?"
    );
    let remedy = "Restore the schema sessionizer and the table from one backup, or begin afresh \
                  with `sessionizer reset`";
    LedgerError::Fatal(Fault::config(Message::new(problem).remedy(" ", remedy)))
}

/// Reads an epoch, without its bindings.
fn epoch(row: &Row) -> Result<NamedEpoch, LedgerError> {
    let (max_future_ms, late): (Option<i64>, Option<&str>) = (row.get(2), row.get(3));
    let rules = match max_future_ms.zip(late) {
        None => None,
        Some((max_future_ms, late)) => {
            let late = Late::named(late).ok_or_else(|| foreign(row, "late", &late))?;
            Some(RecordRules { max_future_ms, late })
        }
    };
    let watermark = optional(row, "watermark_ms");
    Ok(NamedEpoch { epoch: unsigned(row, "epoch")?, watermark, rules, bindings: vec![] })
}

/// Returns the progress of each shard, in order.
pub fn progress(
    client: &mut impl GenericClient,
    job: &str,
) -> Result<Vec<ShardProgress>, LedgerError> {
    let rows = client
        .query(
            "select epoch, closed, open, dead from sessionizer.shard_progress where job = $1
             order by shard",
            &[&job],
        )
        .map_err(|why| classify(&why, "reading how far each shard is"))?;
    let shard = |row: &Row| {
        Ok(ShardProgress {
            epoch: unsigned(row, "epoch")?,
            closed: unsigned(row, "closed")?,
            open: unsigned(row, "open")?,
            dead: unsigned(row, "dead")?,
        })
    };
    rows.iter().map(shard).collect()
}

/// Reads a count or an epoch, which is not negative unless somebody has changed it.
pub fn unsigned(row: &Row, column: &str) -> Result<u64, LedgerError> {
    let value: i64 = row.get(column);
    u64::try_from(value).map_err(|_| foreign(row, column, &value))
}

fn offset(row: &Row, column: &str) -> Result<Offset, LedgerError> {
    let value: i64 = row.get(column);
    if value < 0 {
        return Err(foreign(row, column, &value));
    }
    Ok(Offset::new(value))
}

fn optional(row: &Row, column: &str) -> EventTime {
    row.get::<_, Option<i64>>(column).map_or(EventTime::NEVER, EventTime::from_millis)
}

/// The columns that [`binding`] reads.
const BINDING: &str = "topic, partition, start_offset, end_offset, promise_ms, status, \
                       quiet_since, records, dead, topic_id";

/// Returns the last binding of each partition at or before an epoch.
pub fn bindings_at(
    client: &mut impl GenericClient,
    job: &str,
    epoch: Epoch,
) -> Result<Vec<NamedBinding>, LedgerError> {
    let select = format!(
        "select distinct on (topic, partition) {BINDING} from sessionizer.bindings
         where job = $1 and epoch <= $2 order by topic, partition, epoch desc"
    );
    let rows = client
        .query(&select, &[&job, &(epoch as i64)])
        .map_err(|why| classify(&why, "reading how far each partition is"))?;
    rows.iter().map(binding).collect()
}

fn binding(row: &Row) -> Result<NamedBinding, LedgerError> {
    let (partition, status): (i32, &str) = (row.get("partition"), row.get("status"));
    if partition < 0 {
        return Err(foreign(row, "partition", &partition));
    }
    Ok(NamedBinding {
        topic: row.get("topic"),
        partition,
        topic_id: row.get::<_, Option<&str>>("topic_id").and_then(TopicId::named),
        start: offset(row, "start_offset")?,
        end: offset(row, "end_offset")?,
        promise: optional(row, "promise_ms"),
        status: Status::named(status).ok_or_else(|| foreign(row, "status", &status))?,
        quiet_since: unsigned(row, "quiet_since")?,
        records: unsigned(row, "records")?,
        dead: unsigned(row, "dead")?,
        clock_ms: None,
    })
}
