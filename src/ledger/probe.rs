//! A trial of everything that the job will do in Postgres, at each start, before it does anything.
//!
//! Most of it is needed only later: deleting a row when the first late event arrives, writing a
//! dead letter when the first bad record does. The trial finds now what would fail then. It uses
//! the statements of a commit, in the transaction of the start, and is rolled back to a savepoint.

use std::time::{Instant, SystemTime};

use postgres::Transaction;
use sessionizer_core::binding::{Binding, Late, Offset, Partition, Rules};
use sessionizer_core::event::Reason;
use sessionizer_core::fault::Fault;
use sessionizer_core::key::{Key, Shard};
use sessionizer_core::plan::ShardProgress;
use sessionizer_core::session::snapshot;
use sessionizer_core::session::{SessionTable, Span};
use sessionizer_core::time::{Epoch, EventTime};

use crate::dataflow::messages::{DeadLetter, EpochMeta};
use crate::dataflow::ports::{Batch, EpochTotals, LedgerError, Outcome, ShardStep};
use crate::ledger::LedgerConfig;
use crate::ledger::commit::{Commit, Failed, Keep, Refusal, Statements, Target};
use crate::ledger::connect::{classify, quote};
use crate::ledger::copy::Timestamp;
use crate::ledger::durable::RecoveredState;
use crate::ledger::past::Run;
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
) -> Result<Vec<String>, LedgerError> {
    let began = Instant::now();
    refuse_row_security(tx, table)?;
    let failed = |why: postgres::Error| classify(&why, "trying out a commit");
    let statements = Statements::prepare(tx, table, false).map_err(failed)?;
    let target = Target { config, table, found_rows: false, statements: &statements };
    let savepoint = tx.savepoint("probe").map_err(failed)?;
    let run = Run::on_trial(durable.fence, topics);
    let mut trial = Commit::trial(savepoint, target, &run);
    try_own_tables(&mut trial, durable).map_err(|failed| match failed {
        Failed::Ledger(LedgerError::Fatal(fault)) => LedgerError::Fatal(Fault::with_code(
            fault.exit_code(),
            format!("a trial of what the job does in the schema sessionizer has failed: {fault}"),
        )),
        Failed::Ledger(error) => error,
        Failed::Refused(refusal) => LedgerError::Fatal(Fault::Config(format!(
            "a trial of what the job does in the schema sessionizer has failed: {}",
            refusal.message
        ))),
    })?;
    let advice = try_table(&mut trial.tx, target)?;
    trial.tx.rollback().map_err(failed)?;
    log::debug!("a trial of a commit took {:?}", began.elapsed());
    Ok(advice)
}

/// Refuses row security: policies hide rows, and COPY does not work with them.
fn refuse_row_security(tx: &mut Transaction<'_>, table: &Table) -> Result<(), LedgerError> {
    let row = tx
        .query_one(
            "select row_security_active(to_regclass($1)::oid), current_user::text",
            &[&table.quoted()],
        )
        .map_err(|why| classify(&why, "asking for row security"))?;
    if !row.get::<_, bool>(0) {
        return Ok(());
    }
    let (shown, login) = (&table.shown, row.get::<_, &str>(1));
    Err(LedgerError::Fatal(Fault::Config(format!(
        "the table {shown} has row level security that applies to the login {login}: it can hide \
         rows that late events touch, and COPY does not work with it. Either alter role {} \
         bypassrls; or alter table {shown} disable row level security;",
        quote(login)
    ))))
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
    let summary = EpochMeta {
        watermark: EventTime::from_millis(0),
        rules: Rules { max_future_ms: 0, late: Late::Merge },
        bindings: vec![Binding::initial(partition, Offset::ZERO)],
        differences: Vec::new(),
    };
    let empty = snapshot::encode(&SessionTable::new(config.gap, EventTime::NEVER));
    let batch = Batch {
        steps: vec![ShardStep { shard: Shard(0), from: before.epoch, to }],
        totals: vec![EpochTotals {
            epoch: LAST_EPOCH,
            summary,
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
fn try_table(tx: &mut Transaction<'_>, target: Target<'_>) -> Result<Vec<String>, LedgerError> {
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
    Ok(vec![format!(
        "the table {shown} refuses a trial row (rolled back): {}. Sessions that it \
         refuses become dead letters (row_refused), and the others are stored. {}",
        first.message,
        first.remedy(shown)
    )])
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
    LedgerError::Fatal(Fault::Config(format!(
        "the table {shown} cannot be used as it is: {needed}, and a trial of that has failed \
         (nothing of it stays): {}. {remedy}",
        refusal.message
    )))
}

/// Like [`cannot_because`], for an error of the server that does not depend on the rows.
fn cannot(target: Target<'_>, needed: &str, error: LedgerError) -> LedgerError {
    let LedgerError::Fatal(fault) = error else { return error };
    let (shown, why) = (&target.table.shown, fault.to_string());
    let why = why.trim_end_matches('.');
    let remedy = if why.contains("(55000)") || why.contains("(42P10)") {
        // A publication of deletes needs a replica identity.
        format!(
            ". Either alter table {shown} add primary key (ip, host, session_start); or alter \
             table {shown} replica identity full;"
        )
    } else {
        String::new()
    };
    LedgerError::Fatal(Fault::with_code(
        fault.exit_code(),
        format!(
            "the table {shown} cannot be used as it is: {needed}, and a trial of that has failed \
             (nothing of it stays): {why}{remedy}"
        ),
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

/// Returns advice if the table belongs to another role, or if the login has too many rights.
pub fn advise_on_owners(
    tx: &mut Transaction<'_>,
    table: &Table,
    first_start: bool,
) -> Result<Vec<String>, LedgerError> {
    let row = tx
        .query_one(
            "select me.rolname::text, me.rolsuper, owner.rolname::text,
                    owner.oid <> me.oid and not owner.rolsuper
                    and (me.rolsuper or not pg_has_role(me.oid, owner.oid, 'usage')),
                    exists (select from pg_roles other
                            where other.rolcanlogin and not other.rolsuper
                                  and (has_database_privilege(other.oid, current_database(),
                                                              'create')
                                       or has_schema_privilege(other.oid, c.relnamespace,
                                                               'create')))
             from pg_class c join pg_roles owner on owner.oid = c.relowner
             join pg_roles me on me.rolname = current_user
             where c.oid = to_regclass($1)",
            &[&table.quoted()],
        )
        .map_err(|why| classify(&why, "asking for the owner of the table"))?;
    let (login, superuser): (&str, bool) = (row.get(0), row.get(1));
    let (owner, foreign): (&str, bool) = (row.get(2), row.get(3));
    let others: bool = row.get(4);
    let mut advice = Vec::new();
    if foreign {
        advice.push(format!(
            "the table {} belongs to the role {owner}: its triggers run with the rights of the \
             job's login, {login}{}",
            table.shown,
            if superuser { ", which is a superuser" } else { "" }
        ));
    }
    if superuser {
        let what = format!(
            "the job logs in as {login}, a superuser, and needs no such rights: \
             deploy/postgres/role.sql makes a role that may do just what the job does"
        );
        if foreign || others {
            advice.push(format!(
                "{what}. Other logins may create functions and tables here, which must not come to \
                 run as a superuser"
            ));
        } else if first_start {
            log::info!("{what}");
        }
    }
    Ok(advice)
}

/// The rights that the job needs on its own tables, from its first start to a reset.
const RIGHTS: [(&str, &str); 30] = [
    ("jobs", "select"),
    ("jobs", "insert"),
    ("jobs", "update"),
    ("shard_progress", "select"),
    ("shard_progress", "insert"),
    ("shard_progress", "update"),
    ("epochs", "select"),
    ("epochs", "insert"),
    ("epochs", "update"),
    ("epochs", "delete"),
    ("bindings", "select"),
    ("bindings", "insert"),
    ("bindings", "update"),
    ("bindings", "delete"),
    ("snapshots", "select"),
    ("snapshots", "insert"),
    ("snapshots", "update"),
    ("dead_letters", "select"),
    ("dead_letters", "insert"),
    ("dead_letters", "update"),
    ("dead_letters", "delete"),
    ("losses", "insert"),
    ("losses", "delete"),
    ("replay_differences", "select"),
    ("replay_differences", "insert"),
    ("anomalies", "select"),
    ("anomalies", "insert"),
    ("anomalies", "update"),
    ("anomalies", "delete"),
    ("balance", "select"),
];

/// Fails if the login lacks a right on any existing object in the schema `sessionizer`.
pub fn check_rights(tx: &mut impl postgres::GenericClient) -> Result<(), LedgerError> {
    let (tables, rights): (Vec<&str>, Vec<&str>) = RIGHTS.into_iter().unzip();
    let missing = tx
        .query(
            "select format('grant usage on schema sessionizer to %I;', current_user),
                    current_user::text
             from pg_namespace n
             where n.nspname = 'sessionizer' and not has_schema_privilege(n.oid, 'usage')
             union all
             (select format('grant %s on sessionizer.%I to %I;', string_agg(r, ', ' order by at), t,
                            current_user), current_user::text
              from unnest($1::text[], $2::text[]) with ordinality needed(t, r, at)
              join pg_class c on c.relname = t
              join pg_namespace n on n.oid = c.relnamespace and n.nspname = 'sessionizer'
              where not has_table_privilege(c.oid, r) group by t order by min(at))",
            &[&tables, &rights],
        )
        .map_err(|why| classify(&why, "asking for the rights in the schema sessionizer"))?;
    let Some(first) = missing.first() else { return Ok(()) };
    let login: String = first.get(1);
    let grants: Vec<&str> = missing.iter().map(|row| row.get(0)).collect();
    Err(LedgerError::Fatal(Fault::Config(format!(
        "Postgres refuses: the login {login} lacks rights in the schema sessionizer, all of which \
         the job needs sooner or later. Grant them: {}",
        grants.join(" ")
    ))))
}
