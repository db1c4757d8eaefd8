//! What is durable at one moment, for the audit: read in one transaction that sees that moment
//! for as long as the audit takes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use postgres::Client;
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::ToSql;

use super::connect::{classify, connect, quote};
use super::copy::Timestamp;
use super::table::SessionEnd;
use super::{LedgerConfig, NamedBinding, start};
use crate::binding::{Offset, Status};
use crate::control::Fault;
use crate::event::Reason;
use crate::key::Key;
use crate::operators::LedgerError;
use crate::plan::ShardProgress;
use crate::session::Span;
use crate::time::{Epoch, EventTime, Gap};

/// The moment.
pub struct Moment {
    client: Client,
    table: String,
    session_end: SessionEnd,
    pub gap: Gap,
    /// Whether the table had rows before the job.
    pub found_rows: bool,
    /// By shard: the epoch up to which its output is in the table, and its books.
    pub shards: Vec<ShardProgress>,
    /// By epoch of a shard: what it closes up to, and the last binding of each partition.
    pub epochs: BTreeMap<Epoch, (EventTime, Vec<NamedBinding>)>,
    /// Records that decode and are dead letters all the same: of the future, or dropped as late.
    /// By topic and partition; the latter are counted in the shard of their key.
    pub refused: HashMap<(String, i32), HashMap<Offset, Reason>>,
    /// What shards have passed and others have not: by topic and partition, the end of each such
    /// epoch and the latest event of it that is none of the future. The dead letters that tell
    /// belong to shards of their own, and those may be behind.
    pub latest: HashMap<(String, i32), Vec<(Offset, EventTime)>>,
    /// Records, closed, open, dead, difference, as of the last epoch that all shards have passed.
    pub balance: Vec<String>,
}

impl Moment {
    /// Begins the transaction and reads all but the table.
    pub fn read(config: &LedgerConfig) -> Result<Self, LedgerError> {
        let ails = |why: postgres::Error| classify(&why, "reading what is durable");
        let mut client = connect(config)?;
        // The transaction is idle while the topic is read, however long that takes; it holds no
        // lock that anybody waits for.
        client
            .batch_execute(
                "set idle_in_transaction_session_timeout = 0;
                 begin isolation level repeatable read read only",
            )
            .map_err(ails)?;
        let there = client
            .query_one("select to_regclass('sessionizer.jobs') is not null", &[])
            .map_err(ails)?;
        let job = match there.get(0) {
            false => None, // No job has ever run here.
            true => client
                .query_opt(
                    "select table_schema, table_name, gap_ms, session_end, found_rows, shards
                     from sessionizer.jobs where job = $1",
                    &[&config.job],
                )
                .map_err(ails)?,
        };
        let Some(job) = job else {
            return Err(LedgerError::Fatal(Fault::Config(format!(
                "there is no job {} in this database: name it by KAFKA_GROUP or --job",
                config.job
            ))));
        };
        refuse_after_loss(&mut client, &config.job)?;
        let (schema, name): (String, String) = (job.get(0), job.get(1));
        let session_end = match job.get::<_, &str>(3) {
            name if name == SessionEnd::LastEvent.name() => SessionEnd::LastEvent,
            _ => SessionEnd::Window,
        };
        let mut moment = Moment {
            client,
            table: format!("{}.{}", quote(&schema), quote(&name)),
            session_end,
            gap: Gap::from_millis(job.get(2)).expect("a job has a valid gap"),
            found_rows: job.get(4),
            shards: Vec::new(),
            epochs: BTreeMap::new(),
            refused: HashMap::new(),
            latest: HashMap::new(),
            balance: Vec::new(),
        };
        moment.read_progress(&config.job).map_err(ails)?;
        let known = moment.shards.iter().all(|shard| moment.epochs.contains_key(&shard.epoch));
        if moment.shards.len() as i32 != job.get::<_, i32>(5) || !known {
            return Err(LedgerError::Fatal(Fault::World(format!(
                "what sessionizer.* holds of the job {} is incomplete: a shard or the epoch it \
                 has reached is missing. Rows were deleted or changed by hand, or a restore was \
                 partial",
                config.job
            ))));
        }
        Ok(moment)
    }

    fn read_progress(&mut self, job: &str) -> Result<(), postgres::Error> {
        self.shards = start::progress(&mut self.client, job)?;
        for epoch in self.shards.iter().map(|shard| shard.epoch).collect::<BTreeSet<Epoch>>() {
            let watermark = self.client.query_opt(
                "select watermark_ms from sessionizer.epochs where job = $1 and epoch = $2",
                &[&job, &(epoch as i64)],
            )?;
            let Some(watermark) = watermark else { continue };
            let watermark = watermark.get::<_, Option<i64>>(0);
            let mut watermark = watermark.map_or(EventTime::NEVER, EventTime::from_millis);
            let bindings = start::bindings_at(&mut self.client, job, epoch)?;
            if bindings.iter().all(|binding| binding.status == Status::Ended) {
                watermark = EventTime::FOREVER; // A drain closes everything.
            }
            self.epochs.insert(epoch, (watermark, bindings));
        }
        let refused = self.client.query(
            "select topic, partition, \"offset\", reason = 'late' from sessionizer.dead_letters
             where job = $1 and reason in ('future', 'late')",
            &[&job],
        )?;
        for row in &refused {
            let reason = if row.get(3) { Reason::Late } else { Reason::Future };
            self.refused.entry((row.get(0), row.get(1))).or_default().insert(row.get(2), reason);
        }
        let behind = self.shards.iter().map(|shard| shard.epoch).min().unwrap_or(0);
        // By way of JSON: a job that an older version runs has no such column.
        let latest = self.client.query(
            "select b.topic, b.partition, b.end_offset,
                    coalesce((to_jsonb(b) ->> 'clock_ms')::int8, b.epoch) + e.max_future_ms
             from sessionizer.bindings b join sessionizer.epochs e using (job, epoch)
             where job = $1 and epoch > $2 and e.max_future_ms is not null order by epoch",
            &[&job, &(behind as i64)],
        )?;
        for row in &latest {
            let latest = (row.get(2), EventTime::from_millis(row.get(3)));
            self.latest.entry((row.get(0), row.get(1))).or_default().push(latest);
        }
        let balance = self.client.query_opt(
            "select records::text, closed::text, open::text, dead::text, difference::text
             from sessionizer.balance where job = $1",
            &[&job],
        )?;
        self.balance =
            balance.map_or(Vec::new(), |row| (0..row.len()).map(|at| row.get(at)).collect());
        Ok(())
    }

    /// Hands out every row of the table as it was at the moment, until `take` has enough.
    ///
    /// A table that the job has found may allow nulls. No row of the job has one, so whatever
    /// stands for a null must not look like a session.
    pub fn rows(&mut self, mut take: impl FnMut(Key, Span) -> bool) -> Result<(), LedgerError> {
        let ails = |why: postgres::Error| classify(&why, "reading the table");
        let select = format!(
            "select ip::text, host::text, session_start, session_end, num_logs from {}",
            self.table
        );
        let none: [&(dyn ToSql + Sync); 0] = [];
        let mut rows = self.client.query_raw(&select, none).map_err(ails)?;
        while let Some(row) = rows.next().map_err(ails)? {
            let (ip, host): (Option<&str>, Option<&str>) = (row.get(0), row.get(1));
            let (first, end): (Option<Timestamp>, Option<Timestamp>) = (row.get(2), row.get(3));
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

/// Of a topic that was made again, the first one is gone, and with it the answer.
fn refuse_after_loss(client: &mut Client, job: &str) -> Result<(), LedgerError> {
    let ails = |why: postgres::Error| classify(&why, "looking for losses");
    let there = client
        .query_one("select to_regclass('sessionizer.losses') is not null", &[])
        .map_err(ails)?;
    if !there.get::<_, bool>(0) {
        return Ok(()); // An older version of the program made the schema.
    }
    let lost = client
        .query_opt(
            "select topic, accepted_at::text from sessionizer.losses
             where job = $1 and lost_to is null order by accepted_at desc limit 1",
            &[&job],
        )
        .map_err(ails)?;
    let Some(lost) = lost else { return Ok(()) };
    let (topic, since): (String, String) = (lost.get(0), lost.get(1));
    Err(LedgerError::Fatal(Fault::World(format!(
        "the topic {topic} was made again, and the job went on with it ({since}): what is gone \
         cannot be audited"
    ))))
}
