//! The durable state at one moment, for the audit: one read-only transaction, whose snapshot lasts
//! as long as the audit takes. It only reads: comparing this with the topic is left to the caller.

mod beside;
mod progress;

use std::collections::{BTreeMap, HashMap};

use postgres::fallible_iterator::FallibleIterator;
use postgres::types::ToSql;
use postgres::{Client, Row};
use sessionizer_core::audit::{JobHistory, Proof};
use sessionizer_core::binding::Offset;
use sessionizer_core::event::Reason;
use sessionizer_core::fault::{Fault, Message};
use sessionizer_core::key::{Key, Shard};
use sessionizer_core::plan::{Fence, ShardProgress};
use sessionizer_core::session::Span;
use sessionizer_core::session::snapshot;
use sessionizer_core::time::{Epoch, EventTime, Gap};

use crate::dataflow::ports::LedgerError;
use crate::ledger::SessionEnd;
use crate::ledger::blocked::WatchedClient;
use crate::ledger::connect::{connect_preferring_primary, quote};
use crate::ledger::copy::Timestamp;
use crate::ledger::errors::classify;
use crate::ledger::forgotten::Forgotten;
use crate::ledger::peek::Database;
use crate::ledger::schema;
use crate::ledger::stopped::{exists, no_such_job};
use crate::ledger::{LedgerConfig, NamedBinding, durable, pooler};

/// The durable state at one moment.
pub struct AuditSnapshot {
    client: WatchedClient,
    job: String,
    schema: String,
    name: String,
    /// Schema and name, quoted.
    table: String,
    session_end: SessionEnd,
    pub gap: Gap,
    /// Whether the table had rows before the job.
    pub found_rows: bool,
    /// The newest end of those rows, if the job has noted it.
    pub found_rows_to: Option<EventTime>,
    pub history: JobHistory,
    /// By shard: the epoch up to which its output is in the table, and its counts.
    pub shards: Vec<ShardProgress>,
    /// By epoch at which a shard stands: the watermark, and the last binding of each partition.
    pub epochs: BTreeMap<Epoch, (EventTime, Vec<NamedBinding>)>,
    /// The watermark of the slowest shard. A drain does not move it.
    pub watermark: EventTime,
    /// Records that decode but are dead letters: too far in the future, or dropped as late. By
    /// topic and partition; late ones count in the shard of their key.
    pub refused: HashMap<(String, i32), HashMap<Offset, Reason>>,
    /// The epochs that some shards have passed and others have not: by topic and partition, the end
    /// offset of each, and the latest event time that does not count as future. The dead letters
    /// would show it, but they belong to other shards, which may lag behind.
    pub latest: HashMap<(String, i32), Vec<(Offset, EventTime)>>,
    /// Sessions that the table has refused; their events count as dead letters.
    pub refused_rows: Vec<(Key, Span)>,
    /// Visitors that were forgotten, and by shard how many of their records no longer count.
    pub forgotten: Forgotten,
    pub forgotten_records: Vec<u64>,
    /// As of the last epoch that all shards have passed.
    pub balance: Option<Balance>,
}

/// What became of the records that the job has read. Each number counts records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Balance {
    pub records: i64,
    pub closed: i64,
    pub open: i64,
    pub dead: i64,
    pub lost: i64,
    /// Of visitors that were forgotten.
    pub forgotten: i64,
    pub difference: i64,
}

impl AuditSnapshot {
    /// Begins the transaction and reads everything except the table of sessions.
    pub fn read(config: &LedgerConfig) -> Result<Self, LedgerError> {
        let mut client = begin(config)?;
        let database = Database::of(&mut *client, config).map_err(failed)?;
        // Whatever is there may not be of this program.
        schema::refuse_foreign(&mut *client, &database)?;
        let job = job_row(&mut client, &config.job).map_err(failed)?;
        let Some(job) = job else { return Err(no_such_job(&mut *client, &database, &config.job)?) };
        schema::refuse_other(&mut *client, &database)?;
        refuse_after_loss(&mut client, &config.job)?;
        let mut moment = Self::of_job(client, config, &job)?;
        moment.read_epochs()?;
        moment.read_refused()?;
        moment.read_refused_rows()?;
        moment.read_forgotten()?;
        moment.read_latest()?;
        moment.read_balance()?;
        moment.history.losses = moment.count("losses")?;
        moment.history.replays = moment.count("replay_differences")?;
        let known = moment.shards.iter().all(|shard| moment.epochs.contains_key(&shard.epoch));
        if moment.shards.len() as i32 != job.get::<_, i32>("shards") || !known {
            return Err(LedgerError::Fatal(Fault::config(format!(
                "the state of the job {} in sessionizer.* is incomplete: a shard or the epoch it \
                 has reached is missing. Rows were deleted or changed by hand, or a restore was \
                 partial",
                config.job
            ))));
        }
        Ok(moment)
    }

    /// A snapshot that knows the settings of the job, and nothing of its progress.
    fn of_job(
        client: WatchedClient,
        config: &LedgerConfig,
        job: &Row,
    ) -> Result<Self, LedgerError> {
        let (schema, name): (String, String) = (job.get("table_schema"), job.get("table_name"));
        let gap = Gap::from_millis(job.get("gap_ms")).ok_or_else(|| {
            durable::incomplete(&config.job, "sessionizer.jobs holds an invalid gap")
        })?;
        Ok(AuditSnapshot {
            client,
            job: config.job.clone(),
            table: format!("{}.{}", quote(&schema), quote(&name)),
            schema,
            name,
            session_end: SessionEnd::named(job.get("session_end")),
            gap,
            found_rows: job.get("found_rows"),
            found_rows_to: job.get::<_, Option<i64>>("found_rows_to").map(EventTime::from_millis),
            history: JobHistory {
                created_at: job.get("created_at"),
                lost: u64::try_from(job.get::<_, i64>("lost")).unwrap_or(0),
                ..JobHistory::default()
            },
            shards: Vec::new(),
            epochs: BTreeMap::new(),
            watermark: EventTime::FOREVER,
            refused: HashMap::new(),
            latest: HashMap::new(),
            refused_rows: Vec::new(),
            forgotten: Forgotten::default(),
            forgotten_records: Vec::new(),
            balance: None,
        })
    }

    /// Returns the table, quoted for SQL.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// Returns the last binding of each partition, as of the shard that is ahead.
    pub fn latest_bindings(&self) -> &[NamedBinding] {
        self.epochs.last_key_value().map_or(&[], |(_, (_, bindings))| bindings)
    }

    /// Returns the time from the last event of a session to the end in its row, in milliseconds.
    pub fn end_after_ms(&self) -> i64 {
        self.session_end.after_ms(self.gap)
    }

    /// The rows of the job in a table that an older version may lack.
    fn count(&mut self, table: &str) -> Result<u64, LedgerError> {
        let failed = |why: postgres::Error| classify(&why, "looking for losses");
        if !exists(&mut *self.client, table).map_err(failed)? {
            return Ok(0);
        }
        let count = format!("select count(*) from sessionizer.{table} where job = $1");
        let row = self.client.query_one(&count, &[&self.job]).map_err(failed)?;
        Ok(row.get::<_, i64>(0) as u64)
    }

    /// Reads what the last audit has verified. The inner error says why it cannot be read.
    pub fn proof(&mut self) -> Result<Option<Result<Proof, String>>, LedgerError> {
        let row = self
            .client
            .query_opt(
                "select data from sessionizer.audit_state where job = $1 and data is not null",
                &[&self.job],
            )
            .map_err(|why| classify(&why, "reading what the last audit has verified"))?;
        Ok(row.map(|row| Proof::decode(row.get(0))))
    }

    /// Returns the table, for messages.
    pub fn table_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Fails if the next start would fail. That start depends on more than the table, which can be
    /// correct anyway.
    pub fn check_next_start(&mut self) -> Result<(), LedgerError> {
        let cannot = |why: Message| {
            LedgerError::Fatal(Fault::environment(why.context("the next start will fail")))
        };
        let refused = |error: LedgerError| match error {
            LedgerError::Fatal(fault) => cannot(fault.message().clone()),
            retry => retry,
        };
        durable::check(&mut *self.client, &self.job, &self.table).map_err(refused)?;
        durable::read(&mut *self.client, &self.job, Fence::default()).map_err(refused)?;
        let shards = self.shards.len() as u32;
        for (at, progress) in self.shards.iter().enumerate() {
            // Read them one by one: together they may be large.
            let row = self
                .client
                .query_one(
                    "select epoch, data from sessionizer.snapshots where job = $1 and shard = $2",
                    &[&self.job, &(at as i32)],
                )
                .map_err(|why| classify(&why, "reading snapshots"))?;
            let epoch = durable::unsigned(&row, "epoch")?;
            let place = format!("the snapshot of shard {at} at epoch {epoch}");
            let table = snapshot::decode_of(row.get(1), self.gap, Shard(at as u32), shards)
                .map_err(|damage| cannot(format!("{place} cannot be read: {damage}").into()))?;
            let open: u64 = table.open().map(|open| open.span.count).sum();
            if epoch == progress.epoch && open != progress.open {
                return Err(cannot(
                    format!(
                        "{place} holds {open} records in open sessions, and \
                     sessionizer.shard_progress says {}",
                        progress.open
                    )
                    .into(),
                ));
            }
        }
        Ok(())
    }

    /// Passes every row of the table, as of this moment, to `take`, until it returns false.
    ///
    /// A table that existed before the job may allow nulls. No row of the job has one, so the value
    /// that stands for a null must not look like a session.
    pub fn rows(&mut self, mut take: impl FnMut(Key, Span) -> bool) -> Result<(), LedgerError> {
        let failed = |why: postgres::Error| classify(&why, "reading the table");
        let select = format!(
            "select ip::text, host::text, session_start, session_end, num_logs::bigint from {}",
            self.table
        );
        let none: [&(dyn ToSql + Sync); 0] = [];
        let mut rows = self.client.query_raw(&select, none).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let (ip, host): (Option<&str>, Option<&str>) = (row.get(0), row.get(1));
            let time = |at| row.try_get::<_, Option<Timestamp>>(at).map_err(|why| changed(&why));
            let (first, end) = (time(2)?, time(3)?);
            let count: Option<i64> = row.get(4);
            let key = Key::new(ip.unwrap_or_default(), host.unwrap_or_default());
            let span = Span {
                first: first.map_or(EventTime::NEVER, |first| first.0),
                last: end
                    .map_or(EventTime::NEVER, |end| self.session_end.last_event(end.0, self.gap)),
                count: count.map_or(0, |count| u64::try_from(count).unwrap_or(0)),
            };
            if !take(key, span) {
                break;
            }
        }
        Ok(())
    }
}

/// A start would name the column and how to change it.
fn changed(why: &postgres::Error) -> LedgerError {
    LedgerError::Fatal(Fault::config(format!(
        "reading the table: {why}: the type of a column has changed since the job was started; \
         `sessionizer check --only postgres` names it, and the remedy"
    )))
}

fn failed(why: postgres::Error) -> LedgerError {
    classify(&why, "reading what is durable")
}

/// Opens a connection and begins the transaction.
fn begin(config: &LedgerConfig) -> Result<WatchedClient, LedgerError> {
    let mut client = pooler::connect_directly(config, connect_preferring_primary)?;
    // The transaction is idle while the topic is read, however long that takes. It holds no lock
    // that others wait for.
    client
        .batch_execute(
            "set idle_in_transaction_session_timeout = 0;
             begin isolation level repeatable read read only",
        )
        .map_err(failed)?;
    Ok(client)
}

/// The row of the job; `None` if there is none.
fn job_row(client: &mut Client, job: &str) -> Result<Option<Row>, postgres::Error> {
    if !exists(client, "jobs")? {
        return Ok(None); // No job has ever run here.
    }
    client.query_opt(
        // Read the last ones through JSON: a schema of an older version lacks them.
        "select table_schema, table_name, gap_ms, session_end, found_rows, shards,
                created_at::text, coalesce((to_jsonb(j) ->> 'lost')::bigint, 0) as lost,
                (extract(epoch from (to_jsonb(j) ->> 'found_rows_to')::timestamptz)
                 * 1000)::int8 as found_rows_to
         from sessionizer.jobs j where job = $1",
        &[&job],
    )
}

/// Refuses a job whose topic was deleted and created again: the records to compare with are gone.
fn refuse_after_loss(client: &mut Client, job: &str) -> Result<(), LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "looking for losses");
    if !exists(client, "losses").map_err(failed)? {
        return Ok(()); // An older version created the schema.
    }
    let lost = client
        .query_opt(
            "select topic, accepted_at::text from sessionizer.losses
             where job = $1 and lost_to is null order by accepted_at desc limit 1",
            &[&job],
        )
        .map_err(failed)?;
    let Some(lost) = lost else { return Ok(()) };
    let (topic, since): (String, String) = (lost.get(0), lost.get(1));
    Err(LedgerError::Fatal(Fault::config(format!(
        "the topic {topic} was deleted and created again, and the job continued with the new one \
         ({since}): records that are gone cannot be audited"
    ))))
}
