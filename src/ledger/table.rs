//! The table of sessions: made if it is missing, accepted as it stands if it is not.

use log::{info, warn};
use postgres::{GenericClient, Transaction};

use super::LedgerConfig;
use super::connect::{classify, quote};
use crate::control::Fault;
use crate::operators::LedgerError;
use crate::session::Span;
use crate::time::{EventTime, Gap};

/// What `session_end` holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionEnd {
    /// The last event and the gap: the exclusive end of the window, as the Flink job wrote it.
    Window,
    /// The last event.
    LastEvent,
}

impl SessionEnd {
    /// The name in `jobs.session_end`, and the value of `--session-end`.
    pub const fn name(self) -> &'static str {
        match self {
            SessionEnd::Window => "window",
            SessionEnd::LastEvent => "last-event",
        }
    }

    /// The `session_end` of a row.
    pub fn of(self, span: &Span, gap: Gap) -> EventTime {
        match self {
            SessionEnd::Window => gap.end_after(span.last),
            SessionEnd::LastEvent => span.last,
        }
    }

    /// The last event of a row with this `session_end`.
    pub fn last_event(self, end: EventTime, gap: Gap) -> EventTime {
        match self {
            SessionEnd::Window => end.plus(-gap.millis()),
            SessionEnd::LastEvent => end,
        }
    }
}

/// The table as it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table {
    pub schema: String,
    pub name: String,
    /// As people write it: quotes only where Postgres needs them.
    pub shown: String,
    /// `timestamptz` or `timestamp`: what its times are.
    pub time_type: &'static str,
    /// Whether its primary key, or another unique index, begins with `ip, host, session_start`.
    pub keyed: bool,
}

impl Table {
    /// Schema and name in quotes.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }
}

fn typed(config: &LedgerConfig) -> String {
    config.table.split('.').map(quote).collect::<Vec<_>>().join(".")
}

/// Makes the table if it is missing and looks at it; says whether it was made.
pub fn ensure(
    tx: &mut Transaction<'_>,
    config: &LedgerConfig,
) -> Result<(Table, bool), LedgerError> {
    if let Some(table) = find(tx, config)? {
        return Ok((table, false));
    }
    let name = typed(config);
    let create = format!(
        "create table {name} (
            ip            text collate \"C\" not null,
            host          text collate \"C\" not null,
            session_start timestamptz(3) not null,
            session_end   timestamptz(3) not null,
            num_logs      bigint not null,
            primary key (ip, host, session_start)
        )"
    );
    tx.batch_execute(&create).map_err(|why| classify(&why, "creating the table"))?;
    let table = find(tx, config)?;
    Ok((table.ok_or_else(|| refuse(config, "it is not there after it was created"))?, true))
}

fn refuse(config: &LedgerConfig, why: &str) -> LedgerError {
    LedgerError::Fatal(Fault::Config(format!("the table {} cannot be used: {why}", config.table)))
}

/// The table of a job that exists does not: what was in it cannot be made again from here.
pub fn gone(job: &str, table: &str) -> LedgerError {
    LedgerError::Fatal(Fault::World(format!(
        "the table {table} of the job {job} is gone: it was dropped. Restore it, or begin afresh: \
         `sessionizer reset` removes the job, and the next start makes the table and reads the \
         topic again"
    )))
}

/// Looks at the table; `None` if there is none.
pub fn find(
    client: &mut impl GenericClient,
    config: &LedgerConfig,
) -> Result<Option<Table>, LedgerError> {
    let ails = |why: postgres::Error| classify(&why, "looking at the table");
    let row = client
        .query_opt(
            "select n.nspname, c.relname, c.oid, c.relkind::text,
                    format('%I.%I', n.nspname, c.relname)
             from pg_class c
             join pg_namespace n on n.oid = c.relnamespace where c.oid = to_regclass($1)",
            &[&typed(config)],
        )
        .map_err(ails)?;
    let Some(row) = row else { return Ok(None) };
    let (schema, name, oid): (String, String, u32) = (row.get(0), row.get(1), row.get(2));
    let (kind, shown): (String, String) = (row.get(3), row.get(4));
    if kind != "r" && kind != "p" {
        return Err(refuse(config, "it is a view or something else that is no table"));
    }
    let columns = client
        .query(
            "select attname::text, atttypid::regtype::text, attnotnull and not atthasdef
                    and attidentity = '' and attgenerated = '', atttypmod
             from pg_attribute where attrelid = $1 and attnum > 0 and not attisdropped",
            &[&oid],
        )
        .map_err(ails)?;
    let mut types: std::collections::BTreeMap<String, String> = Default::default();
    for column in columns {
        let (column, ty, needed, modifier): (String, String, bool, i32) =
            (column.get(0), column.get(1), column.get(2), column.get(3));
        let ours = ["ip", "host", "session_start", "session_end", "num_logs"];
        if needed && !ours.contains(&column.as_str()) {
            return Err(refuse(
                config,
                &format!("its column {column} needs a value and has no default"),
            ));
        }
        // timestamp(0) to (2) would round, and a row must be found again by its times.
        if ty.starts_with("timestamp") && (0..3).contains(&modifier) && ours.contains(&&*column) {
            return Err(refuse(config, &format!("its column {column} does not hold milliseconds")));
        }
        types.insert(column, ty);
    }
    let time_type = check_types(&types).map_err(|why| refuse(config, &why))?;
    let keyed = client
        .query_one(
            "select exists (
                select from pg_index i where i.indrelid = $1 and i.indisvalid and i.indpred is null
                and (select array_agg(a.attname::text order by k.at)
                     from unnest(i.indkey[0:2]) with ordinality k(attnum, at)
                     join pg_attribute a on a.attrelid = $1 and a.attnum = k.attnum)
                    = '{ip,host,session_start}')",
            &[&oid],
        )
        .map_err(ails)?
        .get(0);
    Ok(Some(Table { schema, name, shown, time_type, keyed }))
}

/// Whether a table, named in quotes, has any row.
pub fn has_rows(client: &mut impl GenericClient, table: &str) -> Result<bool, postgres::Error> {
    Ok(client.query_one(&format!("select exists (select from {table})"), &[])?.get(0))
}

/// The end of the newest row of a table, named in quotes, as a session counts it; `None` if no row
/// has an end.
pub fn newest_end(
    client: &mut impl GenericClient,
    config: &LedgerConfig,
    table: &str,
) -> Result<Option<EventTime>, postgres::Error> {
    let row = client.query_one(&format!("select max(session_end) from {table}"), &[])?;
    let newest: Option<super::copy::Timestamp> = row.get(0);
    Ok(newest.map(|end| config.gap.end_after(config.session_end.last_event(end.0, config.gap))))
}

/// The type of its times, if all columns are there and can hold what we write.
fn check_types(types: &std::collections::BTreeMap<String, String>) -> Result<&'static str, String> {
    let is = |column: &str, allowed: &[&str]| match types.get(column) {
        None => Err(format!("it has no column {column}")),
        Some(ty) if allowed.contains(&ty.as_str()) => Ok(ty.clone()),
        Some(ty) => {
            Err(format!("its column {column} is of type {ty}, it must be {}", allowed.join(" or ")))
        }
    };
    for column in ["ip", "host"] {
        is(column, &["text", "character varying"])?;
    }
    let times = ["timestamp with time zone", "timestamp without time zone"];
    let start = is("session_start", &times)?;
    let end = is("session_end", &times)?;
    is("num_logs", &["bigint"])?;
    if start != end {
        return Err(format!("session_start is {start} and session_end is {end}: make them alike"));
    }
    Ok(if start == times[0] { "timestamptz" } else { "timestamp" })
}

/// Says what a table that we did not make lacks, and how to add it. Never adds it unasked.
pub fn advise(table: &Table) {
    if !table.keyed {
        let name = &table.shown;
        warn!(
            "the table {name} has no primary key: late events will be slow to find their rows, \
             and nothing keeps duplicates out. To add it: alter table {name} add primary key \
             (ip, host, session_start);"
        );
    }
    if table.time_type == "timestamp" {
        info!("the times of {} have no time zone: they are written in UTC", table.shown);
    }
}
