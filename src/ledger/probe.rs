//! A trial of everything that the job will do in Postgres, at each start, before it does anything.
//!
//! Most of it is needed only later: deleting a row when the first late event arrives, writing a
//! dead letter when the first bad record does. The trial finds now what would fail then. It uses
//! the statements of a commit, in the transaction of the start, and is rolled back to a savepoint.

use std::time::{Instant, SystemTime};

use postgres::Transaction;
use sessionizer_core::binding::{Binding, Late, Offset, Partition, RecordRules};
use sessionizer_core::event::Reason;
use sessionizer_core::fault::{Fault, Message};
use sessionizer_core::key::{Key, Shard};
use sessionizer_core::plan::ShardProgress;
use sessionizer_core::session::snapshot;
use sessionizer_core::session::{SessionTable, Span};
use sessionizer_core::time::{Epoch, EventTime};

use crate::dataflow::messages::{DeadLetter, EpochMeta};
use crate::dataflow::ports::{Batch, EpochTotals, LedgerError, Outcome, ShardStep};
use crate::ledger::LedgerConfig;
use crate::ledger::commit::{Commit, Failed, Keep, Refusal, Statements, Target};
use crate::ledger::copy::Timestamp;
use crate::ledger::durable::RecoveredState;
use crate::ledger::errors::classify;
use crate::ledger::rights;
use crate::ledger::rollback::Run;
use crate::ledger::table::Table;

/// An epoch that no job will reach.
const LAST_EPOCH: Epoch = 1 << 50;

/// Tries everything; returns advice for the user. An error says what does not work, which part of
/// the job needs it, and what to do.
pub fn probe(
    tx: &mut Transaction<'_>,
    config: &LedgerConfig,
    topics: &[String],
    table: &Table,
    durable: &RecoveredState,
) -> Result<Vec<Message>, LedgerError> {
    let began = Instant::now();
    rights::refuse_row_security(tx, table)?;
    let failed = |why: postgres::Error| classify(&why, "trying out a commit");
    let statements = Statements::prepare(tx, table, false).map_err(failed)?;
    let target = Target { config, table, found_rows: false, statements: &statements };
    let savepoint = tx.savepoint("probe").map_err(failed)?;
    let run = Run::on_trial(durable.fence, topics);
    let mut trial = Commit::trial(savepoint, target, &run);
    try_own_tables(&mut trial, durable).map_err(|failed| {
        let what = "a trial of what the job does in the schema sessionizer has failed";
        match failed {
            Failed::Ledger(LedgerError::Fatal(fault)) => {
                let why = fault.message().clone().context(what);
                LedgerError::Fatal(Fault::with_code(fault.exit_code(), why))
            }
            Failed::Ledger(error) => error,
            Failed::Refused(refusal) => {
                LedgerError::Fatal(Fault::config(Message::new(refusal.message).context(what)))
            }
        }
    })?;
    let advice = try_table(&mut trial.tx, target)?;
    trial.tx.rollback().map_err(failed)?;
    log::debug!("a trial of a commit took {:?}", began.elapsed());
    Ok(advice)
}

/// Tries the steps of a commit in the schema `sessionizer`.
fn try_own_tables(trial: &mut Commit<'_>, durable: &RecoveredState) -> Result<(), Failed> {
    let config = trial.target.config;
    let partition = Partition { topic: 0, number: 0 };
    let before = durable.progress.first().copied().unwrap_or_default();
    let to = ShardProgress { epoch: LAST_EPOCH, closed: before.closed + 1, ..before };
    let letter = DeadLetter {
        shard: Shard(0),
        partition,
        offset: Offset::ZERO,
        reason: Reason::BadJson,
        detail: "a trial".to_owned(),
        payload: Some(b"{".to_vec()),
        payload_bytes: 1,
    };
    let meta = EpochMeta {
        watermark: EventTime::from_millis(0),
        rules: RecordRules { max_future_ms: 0, late: Late::Merge },
        bindings: vec![Binding::initial(partition, Offset::ZERO)],
        lagging: Vec::new(),
        differences: Vec::new(),
    };
    let empty = snapshot::encode(&SessionTable::new(config.gap, EventTime::NEVER));
    let batch = Batch {
        steps: vec![ShardStep { shard: Shard(0), from: before.epoch, to }],
        totals: vec![EpochTotals {
            epoch: LAST_EPOCH,
            meta,
            shards: 1,
            closed: to.closed,
            open: to.open,
            dead: to.dead,
        }],
        closed: Vec::new(),
        dead_letters: vec![(LAST_EPOCH, letter)],
        snapshots: [(Shard(0), (LAST_EPOCH, empty))].into(),
    };
    trial.progress(&batch)?;
    trial.dead_letters(&batch.dead_letters)?;
    trial.snapshots(&batch)?;
    let mut outcome = Outcome::default();
    let (key, span) = (Key::new("192.0.2.1", "example.invalid"), Span::event(EventTime::EARLIEST));
    trial.refuse(&key, span, false, Refusal::of_a_trial(), &mut outcome);
    trial.refused(&batch, &outcome)?;
    trial.epochs(&batch.totals)?; // A second time, as if another writer had written the epoch.
    trial.trim()?;
    Ok(())
}

/// Tries to write rows, find them again, and replace them.
fn try_table(tx: &mut Transaction<'_>, target: Target<'_>) -> Result<Vec<Message>, LedgerError> {
    let shown = &target.table.shown;
    let nothing = target.attempt(tx, Keep::Nothing, |tx| target.copy(tx, &[]));
    works(tx, target, WRITE, nothing)?;
    let nothing = target.attempt(tx, Keep::Nothing, |tx| {
        target.delete_nothing(tx).map_err(|why| target.failed_at(&why, "deleting rows"))
    });
    works(tx, target, LATE, nothing)?;
    let mut refusals: Vec<Refusal> = Vec::new();
    let mut taken = false;
    for rows in candidates(tx, target)? {
        let copied: Vec<(&Key, Span)> = rows.iter().map(|(key, span)| (key, *span)).collect();
        let written = target.attempt(tx, Keep::Written, |tx| target.copy(tx, &copied));
        match written.map_err(|error| cannot(target, WRITE, error))? {
            Ok(()) => {
                find_again(tx, target, &rows)?;
                taken = true;
                break;
            }
            Err(refusal) if refusal.is_change() => {
                return Err(cannot_because(tx, target, WRITE, &refusal));
            }
            Err(refusal) => refusals.push(refusal),
        }
    }
    let Some(first) = refusals.first() else { return Ok(Vec::new()) };
    if !taken && refusals.iter().all(Refusal::is_of_the_table) {
        return Err(cannot_because(tx, target, WRITE, first));
    }
    if first.code == "22001" && !target.table.advice.is_empty() {
        return Ok(Vec::new()); // The advice names the column already.
    }
    let problem = format!(
        "the table {shown} refuses a trial row (rolled back): {}. Sessions that it refuses become \
         dead letters (row_refused), and the others are stored",
        first.message
    );
    Ok(vec![Message::new(problem).remedy(". ", first.remedy(shown))])
}

const WRITE: &str = "sessions that close are written by COPY";
const LATE: &str = "a late event deletes and writes again the rows that it touches";

/// Returns rows to try, one kind after another until the table accepts one: long keys, short keys,
/// and rows like an existing one, in case made-up keys violate the table's constraints.
fn candidates(
    tx: &mut Transaction<'_>,
    target: Target<'_>,
) -> Result<Vec<Vec<(Key, Span)>>, LedgerError> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = EventTime::from_millis(since.as_millis() as i64);
    let span = |first: EventTime| Span { first, last: first.plus(1_000), count: 3 };
    let long = |time| {
        let ip = "2001:0db8:ffff:ffff:ffff:ffff:192.0.2.255";
        let hosts = ["A.Trial-Of-The-Job.Example.Invalid", "a.trial-of-the-job.example.invalid"];
        hosts.map(|host| (Key::new(ip, host), span(time))).to_vec()
    };
    let short = ["A.invalid", "a.invalid"].map(|host| (Key::new("::", host), span(now))).to_vec();
    let mut candidates = vec![long(now), short];
    let select = format!(
        "select ip::text, host::text, session_start from {}
         where ip is not null and host is not null and session_start is not null limit 1",
        target.table.quoted()
    );
    let like = tx.query_opt(&select, &[]).map_err(|why| classify(&why, "looking for a row"))?;
    if let Some(row) = like {
        let (ip, host, start): (&str, &str, Timestamp) = (row.get(0), row.get(1), row.get(2));
        if (EventTime::EARLIEST..=EventTime::LATEST).contains(&start.0) {
            candidates.push(long(start.0));
        }
        candidates.push(vec![(Key::new(ip, host), span(now))]);
    }
    Ok(candidates)
}

/// Checks that written rows are found again unchanged, and that a late event can replace one.
fn find_again(
    tx: &mut Transaction<'_>,
    target: Target<'_>,
    rows: &[(Key, Span)],
) -> Result<(), LedgerError> {
    let there = target.touching(tx, rows)?;
    let found = rows.iter().filter(|row| there.contains(row)).count();
    if found < rows.len() {
        let what = format!("of {} rows that were written, {found} are found again", rows.len());
        return Err(cannot_because(tx, target, LATE, &Refusal::silent(what)));
    }
    let (key, span) = &rows[0];
    let late = [(key.clone(), Span::event(span.first.plus(1)))];
    let merged = target.attempt(tx, Keep::Written, |tx| target.merge(tx, &late));
    works(tx, target, LATE, merged)
}

fn works<T>(
    tx: &mut Transaction<'_>,
    target: Target<'_>,
    needed: &str,
    tried: Result<Result<T, Refusal>, LedgerError>,
) -> Result<(), LedgerError> {
    match tried {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(refusal)) => Err(cannot_because(tx, target, needed, &refusal)),
        Err(error) => Err(cannot(target, needed, error)),
    }
}

fn cannot_because(
    tx: &mut Transaction<'_>,
    target: Target<'_>,
    needed: &str,
    refusal: &Refusal,
) -> LedgerError {
    let shown = &target.table.shown;
    let triggers = triggers(tx, target.table);
    let remedy = match triggers.as_str() {
        "" => format!("Look at the rules and constraints of {shown}"),
        triggers => format!(
            "Its triggers are {triggers}. To do without one: alter table {shown} disable trigger \
             ...; if a function does not find what it names, it has relied on the search path, \
             which is pg_catalog here: alter function ... set search_path = ...;"
        ),
    };
    let why = Message::new(refusal.message.as_str()).remedy(". ", remedy);
    LedgerError::Fatal(Fault::config(unusable(shown, needed, why)))
}

/// Like [`cannot_because`], for an error of the server that does not depend on the rows.
fn cannot(target: Target<'_>, needed: &str, error: LedgerError) -> LedgerError {
    let LedgerError::Fatal(fault) = error else { return error };
    let (shown, why) = (&target.table.shown, fault.message());
    let problem = why.problem.trim_end_matches('.');
    let mut message = Message { problem: problem.to_owned(), ..why.clone() };
    if problem.contains("(55000)") || problem.contains("(42P10)") {
        // A publication of deletes needs a replica identity.
        let remedy = format!(
            "Either alter table {shown} add primary key (ip, host, session_start); or alter table \
             {shown} replica identity full;"
        );
        message = message.remedy(". ", remedy);
    }
    LedgerError::Fatal(Fault::with_code(fault.exit_code(), unusable(shown, needed, message)))
}

/// Says which part of the job the table cannot serve.
fn unusable(shown: &str, needed: &str, why: Message) -> Message {
    why.context(format!(
        "the table {shown} cannot be used as it is: {needed}, and a trial of that has failed \
         (nothing of it stays)"
    ))
}

/// Returns the triggers of the table, for a message; nothing if the transaction has failed.
fn triggers(tx: &mut Transaction<'_>, table: &Table) -> String {
    let row = tx.query_one(
        "select coalesce(string_agg(distinct format('%I (%s)', tgname, tgfoid::regproc), ', '), '')
         from pg_trigger
         where tgrelid in (select to_regclass($1)::oid
                           union all select relid from pg_partition_tree(to_regclass($1)))
               and not tgisinternal and tgenabled <> 'D'",
        &[&table.quoted()],
    );
    row.map(|row| row.get(0)).unwrap_or_default()
}
