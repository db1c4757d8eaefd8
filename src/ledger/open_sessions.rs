//! Reads the open sessions from the snapshots, for people who look at a job, running or not.
//!
//! It only reads, in one transaction, and takes no lock. Each snapshot is as old as its epoch: a
//! running job takes one of each shard every `--snapshot-interval`, a clean stop one of every
//! shard.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use postgres::Transaction;
use postgres::error::SqlState;
use sessionizer_core::fault::Fault;
use sessionizer_core::key::{Key, Shard, stable_hash};
use sessionizer_core::session::Span;
use sessionizer_core::time::{Epoch, EventTime, Gap};

use crate::dataflow::ports::LedgerError;
use crate::ledger::connect::connect_preferring_primary;
use crate::ledger::errors::classify;
use crate::ledger::peek::Database;
use crate::ledger::stopped::{decode, exists, no_such_job};
use crate::ledger::{LedgerConfig, durable, pooler, schema};

/// Which sessions are wanted: those of this visitor, those of this host, or all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WantedSessions {
    pub ip: Option<String>,
    pub host: Option<String>,
}

impl WantedSessions {
    /// Whether a session of this encoded key is one of them.
    fn has(&self, key: &[u8]) -> bool {
        let at = key.iter().position(|byte| *byte == 0).expect("a key holds one separator");
        let is = |wanted: &Option<String>, part: &[u8]| {
            wanted.as_ref().is_none_or(|wanted| wanted.as_bytes() == part)
        };
        is(&self.ip, &key[..at]) && is(&self.host, &key[at + 1..])
    }

    /// The only shard that can hold them, if there is only one.
    fn shard(&self, shards: u32) -> Option<Shard> {
        let (ip, host) = self.ip.as_deref().zip(self.host.as_deref())?;
        Some(Shard::of(stable_hash(Key::new(ip, host).bytes()), shards))
    }
}

/// What the snapshots hold of the wanted sessions.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OpenSessions {
    /// Those with the most recent last event, most recent first.
    pub first: Vec<(Key, Span)>,
    /// How many there are, and how many events they have.
    pub sessions: u64,
    pub events: u64,
    /// The epochs of the oldest and the newest snapshot that was read; zero if the job has never
    /// committed anything.
    pub oldest: Epoch,
    pub newest: Epoch,
}

/// The error for a login that may not read them: it need not be that of the job.
fn lacks_right(why: &postgres::Error) -> LedgerError {
    let what = why.as_db_error().map_or(String::new(), |db| db.message().to_owned());
    LedgerError::Fatal(Fault::config(format!(
        "Postgres refuses: {what}; to list open sessions, a login needs: grant usage on schema \
         sessionizer to LOGIN; grant select on sessionizer.jobs, sessionizer.snapshots to LOGIN;"
    )))
}

fn failed(why: postgres::Error) -> LedgerError {
    match why.code() {
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => lacks_right(&why),
        _ => classify(&why, "reading snapshots"),
    }
}

/// Reads the open sessions of a job, at most `limit` of them in detail.
pub fn read(
    config: &LedgerConfig,
    wanted: &WantedSessions,
    limit: usize,
) -> Result<OpenSessions, LedgerError> {
    let mut client = pooler::connect_directly(config, connect_preferring_primary)?;
    // Not the name of an instance, or a `reset` would take this for a running job.
    client.batch_execute("set application_name = 'sessionizer open'").map_err(failed)?;
    let mut tx = client.build_transaction().read_only(true);
    tx = tx.isolation_level(postgres::IsolationLevel::RepeatableRead);
    let mut tx = tx.start().map_err(failed)?;
    let (shards, gap) = settings(&mut tx, config)?;
    let read = tx
        .prepare("select epoch, data from sessionizer.snapshots where job = $1 and shard = $2")
        .map_err(failed)?;
    let mut found = OpenSessions { oldest: Epoch::MAX, ..OpenSessions::default() };
    let mut latest = LatestSessions { limit, heap: BinaryHeap::new() };
    let all = match wanted.shard(shards) {
        Some(shard) => shard.0..shard.0 + 1,
        None => 0..shards,
    };
    // One by one: together they may be large.
    for shard in all.map(Shard) {
        let row = tx.query_opt(&read, &[&config.job, &(shard.0 as i32)]).map_err(failed)?;
        let row = row.ok_or_else(|| {
            let what = format!("the snapshot of shard {} is missing", shard.0);
            durable::incomplete(&config.job, &what)
        })?;
        let epoch = durable::unsigned(&row, "epoch")?;
        (found.oldest, found.newest) = (found.oldest.min(epoch), found.newest.max(epoch));
        let table = decode(&config.job, row.get(1), gap, shard, shards)?;
        for open in table.open().filter(|open| wanted.has(open.key)) {
            found.sessions += 1;
            found.events += open.span.count;
            latest.offer(open.key, open.span);
        }
    }
    found.first = latest.sorted();
    Ok(found)
}

/// The number of shards of the job and its gap.
fn settings(tx: &mut Transaction<'_>, config: &LedgerConfig) -> Result<(u32, Gap), LedgerError> {
    let database = Database::of(tx, config).map_err(failed)?;
    schema::refuse_foreign(tx, &database)?;
    let job = match exists(tx, "jobs").map_err(failed)? {
        true => tx
            .query_opt("select shards, gap_ms from sessionizer.jobs where job = $1", &[&config.job])
            .map_err(failed)?,
        false => None,
    };
    let Some(job) = job else {
        return Err(no_such_job(tx, &database, &config.job)?);
    };
    let shards = job.get::<_, i32>(0).max(1) as u32;
    let gap = Gap::from_millis(job.get(1))
        .ok_or_else(|| durable::incomplete(&config.job, "sessionizer.jobs holds an invalid gap"))?;
    Ok((shards, gap))
}

/// The sessions with the most recent last events, at most `limit` of them.
struct LatestSessions {
    limit: usize,
    /// By last and first event and key, the least recent on top; with the number of events.
    heap: BinaryHeap<Reverse<(EventTime, EventTime, Key, u64)>>,
}

impl LatestSessions {
    fn offer(&mut self, key: &[u8], span: Span) {
        let rank = (span.last, span.first, key);
        let least = self.heap.peek();
        let least = least.map(|Reverse((last, first, key, _))| (*last, *first, key.bytes()));
        // Only a session that stays gets a key of its own.
        if self.heap.len() >= self.limit && least.is_none_or(|least| rank <= least) {
            return;
        }
        self.heap.push(Reverse((span.last, span.first, Key::from_encoded(key), span.count)));
        if self.heap.len() > self.limit {
            self.heap.pop();
        }
    }

    /// The most recent first.
    fn sorted(self) -> Vec<(Key, Span)> {
        let sorted = self.heap.into_sorted_vec().into_iter();
        sorted
            .map(|Reverse((last, first, key, count))| (key, Span { first, last, count }))
            .collect()
    }
}
