//! Processes dead letters again, with today's program and settings, as one more commit of a job
//! that has stopped.
//!
//! A record that is an event now becomes a session of one event, as if it had come in one more
//! epoch with the watermark of the last: it joins the open sessions of its key, or closes at once
//! and is written, or merged with the rows that it touches, by the code of every commit (I6). Its
//! dead letter is deleted in the same transaction, so it counts once, whatever crashes (I4, I8).

use std::collections::{BTreeMap, HashMap};

use postgres::Transaction;
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::ToSql;
use sessionizer_core::binding::{Late, Offset, RecordRules, TopicId};
use sessionizer_core::event;
use sessionizer_core::event::Rejected;
use sessionizer_core::fault::Fault;
use sessionizer_core::key::{Key, Shard, stable_hash};
use sessionizer_core::moves::Moves;
use sessionizer_core::session::again::{LastEpoch, again, part_of};
use sessionizer_core::session::{Closed, Span};
use sessionizer_core::time::EventTime;

use crate::dataflow::ports::{LedgerError, Outcome};
use crate::dataflow::run_state::RunState;
use crate::ledger::LedgerConfig;
use crate::ledger::commit::{Commit, Failed, ROW_REFUSED, RefusedRow, Statements, Target};
use crate::ledger::errors::classify;
use crate::ledger::forgotten::Forgotten;
use crate::ledger::peek::Database;
use crate::ledger::rollback::Run;
use crate::ledger::stopped::{StoppedJob, commit, open};

/// The position of a record.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Position {
    pub topic: String,
    pub partition: i32,
    pub offset: Offset,
}

/// A dead letter that holds only the beginning of its payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cut {
    pub position: Position,
    /// The part that was kept, and the length of the whole.
    pub kept: Vec<u8>,
    pub payload_bytes: u64,
    /// The topic that the job reads now; `None` if it is not known.
    pub topic_id: Option<TopicId>,
    /// Whether the topic has been created again since: then the offset may mean another record.
    pub recreated: bool,
}

/// The event that Kafka has for a cut payload, or why it has none.
pub type Decoded = Result<(Key, EventTime), String>;

/// Which dead letters to process again, and by which rules.
pub struct Redrive {
    pub reasons: Vec<String>,
    pub rules: RecordRules,
    pub now_ms: u64,
    /// The cut payloads that were reread from Kafka.
    pub found: HashMap<Position, Decoded>,
}

/// What became of the dead letters of one reason.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ReasonCounts {
    /// How many there are, and how many records they stand for.
    pub letters: u64,
    pub records: u64,
    /// The same for those that are events now.
    pub good: u64,
    pub good_records: u64,
    /// Why the others are not, and how many of them for each reason.
    pub bad: BTreeMap<String, u64>,
}

/// What became of all dead letters.
pub struct Redriven {
    pub database: Database,
    pub by_reason: BTreeMap<String, ReasonCounts>,
    /// Records that joined open sessions, and records that are in rows now.
    pub open: u64,
    pub closed: u64,
}

/// A dead letter that is an event now.
struct Good {
    /// Its row in the table of dead letters.
    ctid: String,
    reason: String,
    key: Key,
    span: Span,
    /// The shard that counts it as dead.
    dead_in: Shard,
}

/// Returns the dead letters of these reasons whose payload was cut. A payload that was removed, by
/// `--keep-dead-letters` or because its visitor was forgotten, is not reread from Kafka.
pub fn cut(config: &LedgerConfig, reasons: &[String]) -> Result<Vec<Cut>, LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "looking through the dead letters");
    let mut client = open(config, "redrive")?;
    let there: bool = client
        .query_one("select to_regclass('sessionizer.dead_letters') is not null", &[])
        .map_err(failed)?
        .get(0);
    if !there {
        return Ok(Vec::new());
    }
    let rows = client
        .query(
            "select topic, partition, \"offset\", payload, payload_bytes,
                    (select b.topic_id from sessionizer.bindings b
                     where (b.job, b.topic, b.partition) = (d.job, d.topic, d.partition)
                     order by b.epoch desc limit 1),
                    exists (select from sessionizer.losses l
                            where (l.job, l.topic) = (d.job, d.topic) and l.lost_to is null)
             from sessionizer.dead_letters d
             where job = $1 and reason = any($2) and topic is not null and partition is not null
                   and \"offset\" is not null and payload_bytes > length(payload)
             order by topic, partition, \"offset\"",
            &[&config.job, &reasons],
        )
        .map_err(failed)?;
    let cut = rows.iter().map(|row| Cut {
        position: Position {
            topic: row.get(0),
            partition: row.get(1),
            offset: Offset::new(row.get(2)),
        },
        kept: row.get(3),
        payload_bytes: row.get::<_, i64>(4).unsigned_abs(),
        topic_id: row.get::<_, Option<&str>>(5).and_then(TopicId::named),
        recreated: row.get(6),
    });
    Ok(cut.collect())
}

/// Merges the dead letters that are events now. Without a run that `commits`, all of it is rolled
/// back, and the result says what would happen.
pub fn redrive(
    config: &LedgerConfig,
    request: &Redrive,
    commits: Option<&RunState>,
) -> Result<Redriven, LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "redriving dead letters");
    let mut client = open(config, "redrive")?;
    let mut tx = client.transaction().map_err(failed)?;
    let stopped = StoppedJob::take(&mut tx, config, "redrive")?;
    let (mut by_reason, good) = judge(&mut tx, &stopped, request)?;
    let merged = merge(&mut tx, &stopped, request.rules.late, &good)?;
    let mut moves = Moves::new(stopped.config.shards);
    for (shard, (open, closed)) in &merged.counts {
        moves.merge(*shard, *open as i64, *closed as i64);
    }
    let mut gone: Vec<&str> = Vec::new();
    for (letter, why) in good.iter().zip(&merged.bad) {
        let of = by_reason.entry(letter.reason.clone()).or_default();
        match why {
            Some(why) => *of.bad.entry(why.clone()).or_default() += 1,
            None => {
                (of.good, of.good_records) = (of.good + 1, of.good_records + letter.span.count);
                moves.redrive_letter(letter.dead_in, letter.span.count as i64);
                gone.push(&letter.ctid);
            }
        }
    }
    let deleted = tx
        .execute(
            "delete from sessionizer.dead_letters
             where job = $1 and ctid = any($2::text[]::tid[])",
            &[&config.job, &gone],
        )
        .map_err(failed)?;
    if deleted != gone.len() as u64 {
        let why = "dead letters were changed meanwhile: try again";
        return Err(LedgerError::retry(why));
    }
    stopped.count(&mut tx, &moves)?;
    stopped.check(&mut tx)?;
    let sum = |of: fn(&(u64, u64)) -> u64| merged.counts.values().map(of).sum();
    let redriven = Redriven {
        database: stopped.database.clone(),
        by_reason,
        open: sum(|counts| counts.0),
        closed: sum(|counts| counts.1),
    };
    match commits {
        None => tx.rollback().map_err(failed)?,
        Some(run_state) => commit(tx, run_state, "redriving dead letters")?,
    }
    Ok(redriven)
}

/// Decodes the dead letters of the wanted reasons again. Returns the counts by reason, which
/// already include those that are still bad, and the events.
fn judge(
    tx: &mut Transaction<'_>,
    stopped: &StoppedJob,
    request: &Redrive,
) -> Result<(BTreeMap<String, ReasonCounts>, Vec<Good>), LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "looking through the dead letters");
    let mut by_reason: BTreeMap<String, ReasonCounts> =
        request.reasons.iter().map(|reason| (reason.clone(), ReasonCounts::default())).collect();
    let mut good = Vec::new();
    let forgotten = Forgotten::read(tx, &stopped.config.job)?;
    let parameters: [&(dyn ToSql + Sync); 2] = [&stopped.config.job, &request.reasons];
    let mut rows = tx
        .query_raw(
            "select ctid::text, reason, topic, partition, \"offset\", payload, payload_bytes, records
             from sessionizer.dead_letters where job = $1 and reason = any($2)
             order by read_at",
            parameters,
        )
        .map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let reason: String = row.get(1);
        let records = row.get::<_, i64>(7).unsigned_abs();
        let of = by_reason.entry(reason.clone()).or_default();
        (of.letters, of.records) = (of.letters + 1, of.records + records);
        match event_of(&row, &reason, request, &forgotten) {
            Ok((key, span)) if span.count == records => {
                let dead_in = stopped.shard_of_letter(&row, &key);
                good.push(Good { ctid: row.get(0), reason, key, span, dead_in });
            }
            Ok(_) => *of.bad.entry("it was changed by hand".to_owned()).or_default() += 1,
            Err(why) => *of.bad.entry(why).or_default() += 1,
        }
    }
    drop(rows);
    Ok((by_reason, good))
}

/// The event of a dead letter, or why it is still none.
fn event_of(
    row: &postgres::Row,
    reason: &str,
    request: &Redrive,
    forgotten: &Forgotten,
) -> Result<(Key, Span), String> {
    let payload: Option<&[u8]> = row.get(5);
    if reason == ROW_REFUSED {
        let refused = payload.and_then(RefusedRow::read);
        return refused.ok_or_else(|| "its payload is no longer a row".to_owned());
    }
    let (Some(topic), Some(partition), Some(offset)) =
        (row.get::<_, Option<String>>(2), row.get(3), row.get::<_, Option<i64>>(4))
    else {
        return Err("it has no position".to_owned());
    };
    let position = Position { topic, partition, offset: Offset::new(offset) };
    let (whole, kept) = (row.get::<_, i64>(6), payload.map(|kept| kept.len() as i64));
    if whole > 0 && kept.is_none() {
        return Err("its payload was removed".to_owned());
    }
    let (key, time) = if whole > kept.unwrap_or(0) {
        let found = request.found.get(&position);
        found.cloned().unwrap_or_else(|| Err("its payload is not known".to_owned()))?
    } else {
        decode(payload)?
    };
    // While the payload was cut, `forget` could not tell whose event this is.
    if forgotten.has(&key, &position.topic, partition, position.offset) {
        return Err("its visitor was forgotten".to_owned());
    }
    if time > request.rules.latest(request.now_ms) {
        return Err("later than the clock plus --max-future".to_owned());
    }
    Ok((key, Span::event(time)))
}

/// Decodes a payload with today's program.
pub fn decode(payload: Option<&[u8]>) -> Decoded {
    match event::decode(payload) {
        Ok(event) => Ok((event.key(), event.time)),
        Err(Rejected { reason, .. }) => Err(format!("still {reason}")),
    }
}

/// The result of merging.
struct Merged {
    /// By shard: how many of the dead records are in open sessions now, and how many in closed
    /// ones.
    counts: BTreeMap<Shard, (u64, u64)>,
    /// For each letter, why it is bad after all.
    bad: Vec<Option<String>>,
}

/// Merges events with open sessions and rows.
fn merge(
    tx: &mut Transaction<'_>,
    stopped: &StoppedJob,
    late: Late,
    good: &[Good],
) -> Result<Merged, LedgerError> {
    let shards = stopped.config.shards;
    let mut by_shard: BTreeMap<Shard, Vec<usize>> = BTreeMap::new();
    for (at, letter) in good.iter().enumerate() {
        by_shard.entry(Shard::of(stable_hash(letter.key.bytes()), shards)).or_default().push(at);
    }
    let mut merged = Merged { counts: BTreeMap::new(), bad: vec![None; good.len()] };
    // By key: the sessions that close at once, with their letters.
    let mut closed: Vec<Closed> = Vec::new();
    let mut letters: HashMap<Key, Vec<usize>> = HashMap::new();
    let (watermark, close_before) = (stopped.watermark, stopped.close_before);
    let last = LastEpoch { watermark, close_before, late };
    for (shard, own) in by_shard {
        let mut table = stopped.shard(tx, shard)?;
        let (refused, events): (Vec<usize>, Vec<usize>) =
            own.iter().partition(|at| good[**at].reason == ROW_REFUSED);
        let event = |at: &usize| (&good[*at].key, good[*at].span);
        let again = again(&mut table, last, events.iter().map(event), refused.iter().map(event));
        let why = "its session has closed, and --late is drop";
        mark(&again.dropped, good, &events, &mut merged.bad, why);
        let records: u64 = again.closed.iter().map(|closed| closed.span.count).sum();
        merged.counts.insert(shard, (again.open, records));
        if own.iter().any(|at| merged.bad[*at].is_none()) {
            stopped.put(tx, shard, &table)?;
        }
        for at in own {
            letters.entry(good[at].key.clone()).or_default().push(at);
        }
        closed.extend(again.closed);
    }
    for (key, span, why) in write(tx, stopped, &closed)? {
        let shard = Shard::of(stable_hash(key.bytes()), shards);
        merged.counts.get_mut(&shard).expect("it was merged").1 -= span.count;
        let due = [Closed { key: key.clone(), span, late: false }];
        mark(&due, good, &letters[&key], &mut merged.bad, &why);
    }
    Ok(merged)
}

/// Marks the letters among `which` that are part of these sessions as bad.
fn mark(
    sessions: &[Closed],
    good: &[Good],
    which: &[usize],
    bad: &mut [Option<String>],
    why: &str,
) {
    let is_part = part_of(sessions);
    for at in which.iter().copied() {
        if bad[at].is_none() && is_part(&good[at].key, good[at].span) {
            bad[at] = Some(why.to_owned());
        }
    }
}

/// Writes sessions as a commit does; returns those that the table refuses, with the reason.
fn write(
    tx: &mut Transaction<'_>,
    stopped: &StoppedJob,
    closed: &[Closed],
) -> Result<Vec<(Key, Span, String)>, LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "writing rows");
    if closed.is_empty() {
        return Ok(Vec::new());
    }
    let (config, table, found_rows) = (&stopped.config, &stopped.table, stopped.found_rows);
    let statements = Statements::prepare(tx, table, found_rows).map_err(failed)?;
    let target = Target { config, table, found_rows, statements: &statements };
    let run = Run::on_trial(stopped.fence, &[]);
    let savepoint = tx.savepoint("rows").map_err(failed)?;
    let mut commit = Commit::trial(savepoint, target, &run);
    let refused = commit.sessions(closed, &mut Outcome::default()).map_err(|why| match why {
        Failed::Ledger(error) => error,
        Failed::Refused(refusal) => LedgerError::Fatal(Fault::config(format!(
            "the table {} refuses rows: {}. {}. Nothing was changed",
            table.shown,
            refusal.message,
            refusal.remedy(&table.shown)
        ))),
    })?;
    commit.tx.commit().map_err(failed)?;
    Ok(refused)
}
