//! Forgets a visitor: removes everything about an address, in one transaction that keeps the counts
//! right.
//!
//! The count of what is removed moves from `closed`, `open` and `dead` to `forgotten`, so the
//! balance stays zero. In a table that had rows before the job, it is unknown how many events of a
//! row are the job's: such a row is removed, and its events still count as closed.

use std::collections::BTreeSet;

use postgres::fallible_iterator::FallibleIterator;
use postgres::types::ToSql;
use postgres::{Row, Transaction};
use sessionizer_core::event;
use sessionizer_core::fault::Fault;
use sessionizer_core::key::{Key, Shard};
use sessionizer_core::moves::Moves;
pub use sessionizer_core::visitor::Visitor;

use crate::dataflow::ports::LedgerError;
use crate::dataflow::run_state::RunState;
use crate::ledger::commit::{ROW_REFUSED, RefusedRow};
use crate::ledger::errors::classify;
use crate::ledger::mention::mentions;
use crate::ledger::peek::Database;
use crate::ledger::stopped::{StoppedJob, commit, open};
use crate::ledger::{LedgerConfig, forgotten};

/// Replaces the detail of a dead letter that mentioned the visitor.
const BLANK: &str = "removed by sessionizer forget";

/// Whether a text that is not an event mentions the visitor.
fn is_in(visitor: &Visitor, text: &[u8]) -> bool {
    mentions(text, &visitor.ip) && visitor.host.as_ref().is_none_or(|host| mentions(text, host))
}

/// What was removed: how many of each, and how many records they stood for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Removed {
    pub database: Database,
    /// The table, for messages.
    pub table: String,
    pub rows: (u64, u64),
    /// Whether the table had rows before the job: then the records of those rows still count as
    /// closed.
    pub found_rows: bool,
    pub open: (u64, u64),
    pub letters: (u64, u64),
    /// Dead letters that are not events of the visitor but mention it: their payload and detail
    /// were removed.
    pub blanked: u64,
    /// Dead letters of whose payload too little was kept to tell whose they are.
    pub cut: u64,
    pub anomalies: u64,
}

impl Removed {
    /// Whether nothing of the visitor was found.
    pub fn is_nothing(&self) -> bool {
        let Removed { rows, open, letters, blanked, anomalies, .. } = self;
        [rows.0, open.0, letters.0, *blanked, *anomalies] == [0; 5]
    }
}

/// Removes everything about a visitor. Without a run that `commits`, all of it is rolled back, and
/// the result says what would be removed.
pub fn forget(
    config: &LedgerConfig,
    visitor: &Visitor,
    commits: Option<&RunState>,
) -> Result<Removed, LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "forgetting a visitor");
    let mut client = open(config, "forget")?;
    let mut tx = client.transaction().map_err(failed)?;
    let stopped = StoppedJob::take(&mut tx, config, "forget")?;
    let mut moves = Moves::new(stopped.config.shards);
    let rows = rows(&mut tx, &stopped, &mut moves, visitor)?;
    let open = open_sessions(&mut tx, &stopped, &mut moves, visitor)?;
    let Letters { gone: letters, blanked, cut } =
        dead_letters(&mut tx, &stopped, &mut moves, visitor)?;
    let anomalies = anomalies(&mut tx, &stopped, visitor)?;
    // A payload that was cut may be an event of the visitor, which a redrive would find in Kafka.
    if rows.0 + open.0 + letters.0 + cut > 0 {
        let name = (&*visitor.ip, visitor.host.as_deref());
        forgotten::note(&mut tx, &config.job, name, &stopped.bindings)?;
    }
    stopped.count(&mut tx, &moves)?;
    stopped.check(&mut tx)?;
    let removed = Removed {
        database: stopped.database.clone(),
        table: stopped.table.shown.clone(),
        rows,
        found_rows: stopped.found_rows,
        open,
        letters,
        blanked,
        cut,
        anomalies,
    };
    match commits {
        None => tx.rollback().map_err(failed)?,
        Some(run_state) => commit(tx, run_state, "forgetting a visitor")?,
    }
    Ok(removed)
}

/// Deletes the rows of the visitor.
fn rows(
    tx: &mut Transaction<'_>,
    stopped: &StoppedJob,
    moves: &mut Moves,
    visitor: &Visitor,
) -> Result<(u64, u64), LedgerError> {
    let (failed, name) =
        (|why: postgres::Error| classify(&why, "deleting rows"), stopped.table.quoted());
    // The first condition can use the index; the second compares byte for byte, whatever the
    // collation.
    let which = "ip = $1::text and ip::text collate \"C\" = $1::text
                 and ($2::text is null or host::text collate \"C\" = $2::text)";
    let parameters: [&(dyn ToSql + Sync); 2] = [&visitor.ip, &visitor.host];
    let gone = tx
        .query(
            &format!(
                "with gone as (delete from {name} where {which} returning host::text, num_logs)
                 select coalesce(host, ''), count(*), coalesce(sum(num_logs), 0)::int8
                 from gone group by host"
            ),
            &parameters,
        )
        .map_err(failed)?;
    let left: bool = tx
        .query_one(&format!("select exists (select from {name} where {which})"), &parameters)
        .map_err(failed)?
        .get(0);
    if left {
        return Err(LedgerError::Fatal(Fault::config(format!(
            "the table {} still has rows of the visitor after they were deleted: a trigger or a \
             rule keeps them. Nothing was removed",
            stopped.table.shown
        ))));
    }
    let (mut rows, mut records) = (0, 0);
    for row in gone {
        let (host, number, logs): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
        (rows, records) = (rows + number, records + logs);
        if !stopped.found_rows {
            moves.forget_row(&Key::new(&visitor.ip, &host), logs);
        }
    }
    Ok((rows.unsigned_abs(), records.unsigned_abs()))
}

/// Removes the open sessions of the visitor from the snapshots.
fn open_sessions(
    tx: &mut Transaction<'_>,
    stopped: &StoppedJob,
    moves: &mut Moves,
    visitor: &Visitor,
) -> Result<(u64, u64), LedgerError> {
    let (mut sessions, mut records) = (0, 0);
    for shard in visitor.shards(stopped.config.shards).map(Shard) {
        let table = stopped.shard(tx, shard)?;
        if let Some(left) = visitor.removed_from(&table) {
            stopped.put(tx, shard, &left)?;
            let gone = table.open_records() - left.open_records();
            moves.forget_open(shard, gone as i64);
            (sessions, records) = (sessions + (table.len() - left.len()) as u64, records + gone);
        }
    }
    Ok((sessions, records))
}

/// What became of the dead letters.
struct Letters {
    /// How many were deleted, and the records they stood for.
    gone: (u64, u64),
    blanked: u64,
    /// How many were cut and do not mention the visitor.
    cut: u64,
}

/// What a dead letter has to do with the visitor.
enum Relation {
    /// It is an event of the visitor.
    Event(Key),
    /// It mentions the visitor.
    Mention,
    /// It was cut, and what is left does not mention the visitor.
    Unknown,
    None,
}

/// Judges a row of dead letters, as `dead_letters` selects it.
fn relation(row: &Row, visitor: &Visitor) -> Relation {
    let payload: Option<&[u8]> = row.get(6);
    let refused = row.get::<_, &str>(1) == ROW_REFUSED;
    let key = match refused {
        true => RefusedRow::read(payload.unwrap_or_default()).map(|(key, _)| key),
        false => event::decode(payload).ok().map(|event| event.key()),
    };
    // An event of the same visitor on another host stays as it is.
    let is_of_other_host = key.as_ref().is_some_and(|key| key.parts().0 == visitor.ip);
    if let Some(key) = key.filter(|key| visitor.has_key(key.bytes())) {
        return Relation::Event(key);
    }
    if refused {
        return Relation::None;
    }
    let detail: &str = row.get(5);
    let is_ours = |text: &[u8]| is_in(visitor, text);
    if !is_of_other_host && (payload.is_some_and(is_ours) || is_ours(detail.as_bytes())) {
        return Relation::Mention;
    }
    if row.get(8) { Relation::Unknown } else { Relation::None }
}

/// Deletes the dead letters that are events of the visitor, and blanks the others that mention it.
fn dead_letters(
    tx: &mut Transaction<'_>,
    stopped: &StoppedJob,
    moves: &mut Moves,
    visitor: &Visitor,
) -> Result<Letters, LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "looking through the dead letters");
    let (mut gone, mut blank): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    let (mut records, mut cut) = (0, 0);
    let mut letters = tx
        .query_raw(
            "select ctid::text, reason, topic, partition, \"offset\", detail, payload, records,
                    coalesce(payload_bytes > length(payload), false)
             from sessionizer.dead_letters where job = $1",
            [&stopped.config.job],
        )
        .map_err(failed)?;
    while let Some(row) = letters.next().map_err(failed)? {
        match relation(&row, visitor) {
            Relation::Event(key) => {
                let number: i64 = row.get(7);
                moves.forget_letter(stopped.shard_of_letter(&row, &key), &key, number);
                records += number;
                gone.push(row.get(0));
            }
            Relation::Mention => blank.push(row.get(0)),
            Relation::Unknown => cut += 1,
            Relation::None => {}
        }
    }
    drop(letters);
    let job = &stopped.config.job;
    let deleted = tx
        .execute(
            "delete from sessionizer.dead_letters
             where job = $1 and ctid = any($2::text[]::tid[])",
            &[job, &gone],
        )
        .map_err(failed)?;
    let blanked = tx
        .execute(
            "update sessionizer.dead_letters set payload = null, detail = $3
             where job = $1 and ctid = any($2::text[]::tid[])",
            &[job, &blank, &BLANK],
        )
        .map_err(failed)?;
    if (deleted, blanked) != (gone.len() as u64, blank.len() as u64) {
        let why = "dead letters were changed meanwhile: try again";
        return Err(LedgerError::retry(why));
    }
    Ok(Letters { gone: (deleted, records.unsigned_abs()), blanked, cut })
}

/// Deletes the anomalies of the visitor. Those of networks and hosts name no visitor.
fn anomalies(
    tx: &mut Transaction<'_>,
    stopped: &StoppedJob,
    visitor: &Visitor,
) -> Result<u64, LedgerError> {
    tx.execute(
        "delete from sessionizer.anomalies
         where job = $1 and kind in ('burst', 'marathon', 'repeat') and subject = $2
           and ($3::text is null or host = $3)",
        &[&stopped.config.job, &visitor.ip, &visitor.host],
    )
    .map_err(|why| classify(&why, "deleting anomalies"))
}

/// Brings the planner's statistics up to date: they hold frequent values, and the address may be
/// one of them. If the login may not do this, Postgres warns, and its autovacuum does it later.
pub fn analyze(config: &LedgerConfig, table: &str) -> Result<(), LedgerError> {
    let tables: BTreeSet<&str> =
        [table, "sessionizer.dead_letters", "sessionizer.anomalies"].into();
    let mut client = open(config, "forget")?;
    for table in tables {
        client
            .batch_execute(&format!("analyze {table}"))
            .map_err(|why| classify(&why, "bringing the planner's statistics up to date"))?;
    }
    Ok(())
}
