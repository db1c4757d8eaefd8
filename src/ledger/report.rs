//! Runs the queries of a report: read-only, all of them in one snapshot. The caller provides the
//! queries.

use std::time::Duration;

use postgres::error::SqlState;
use postgres::types::Type;
use postgres::{Client, SimpleQueryMessage};
use sessionizer_core::fault::{Fault, Message};

use crate::dataflow::ports::LedgerError;
use crate::ledger::blocked::WatchedClient;
use crate::ledger::connect::connect_any;
use crate::ledger::errors::classify;
use crate::ledger::peek::Database;
use crate::ledger::stopped::no_such_job;
use crate::ledger::{LedgerConfig, pooler, schema};
use crate::ui::text;

/// Lets queries count in memory what would otherwise be sorted on disk, and ends them within a
/// second when this process has gone away.
const SETTINGS: &str = "
    set application_name = 'sessionizer report';
    set standard_conforming_strings = on;
    -- Compiling takes seconds, and most queries less than one.
    set jit = off;
    set datestyle = 'ISO'; set intervalstyle = 'postgres'; set extra_float_digits = 1;
    select set_config('work_mem', '64MB', false)
    from pg_settings where name = 'work_mem' and setting::bigint < 65536;
    select set_config('client_connection_check_interval', '1s', false)
    from pg_settings where name = 'client_connection_check_interval';";

/// Which sessions a report is about.
#[derive(Clone, Debug, Default)]
pub struct SessionFilter {
    /// The first and the last day on which they began: `2026-01-31`, checked by the caller.
    pub from: Option<String>,
    pub to: Option<String>,
    /// All if empty.
    pub hosts: Vec<String>,
    pub time_zone: String,
    pub timeout: Duration,
}

/// The errors of arithmetic with times at infinity, or with too large a number of events.
const ARITHMETIC_ERRORS: [SqlState; 3] = [
    SqlState::DATETIME_FIELD_OVERFLOW,
    SqlState::INTERVAL_FIELD_OVERFLOW,
    SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
];

/// What a column holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ColumnType {
    Text,
    Number,
    Day,
    Time,
    Length,
}

/// The rows of a query; every value as Postgres writes it.
#[derive(Clone, Debug, Default)]
pub struct QueryResult {
    pub columns: Vec<(String, ColumnType)>,
    pub rows: Vec<Vec<Option<String>>>,
}

/// A connection in a read-only transaction, and the table that is asked.
pub struct ReportReader {
    client: WatchedClient,
    /// Schema and name, quoted.
    pub table: String,
    /// When the snapshot was taken.
    pub as_of: String,
    /// What stands for the table in a query.
    source: String,
    timeout: Duration,
}

impl ReportReader {
    /// Connects, and finds the table of the job.
    pub fn open(
        config: &LedgerConfig,
        filter: &SessionFilter,
    ) -> Result<ReportReader, LedgerError> {
        let mut client = pooler::connect_directly(config, connect_any)?;
        let failed = |why: postgres::Error| classify(&why, "preparing a report");
        client.batch_execute(SETTINGS).map_err(failed)?;
        // Postgres would take an offset as well, with the sign the other way round.
        let named = "select name from pg_timezone_names where lower(name) = lower($1)";
        let zone = client.query_opt(named, &[&filter.time_zone]).map_err(failed)?;
        let zone: String = zone.map(|row| row.get(0)).ok_or_else(|| {
            refuse(format!(
                "--time-zone: Postgres knows no time zone {:?}: select name from pg_timezone_names",
                filter.time_zone
            ))
        })?;
        client.batch_execute(&format!("set time zone {}", literal(&zone))).map_err(failed)?;
        let begin = "begin transaction isolation level repeatable read, read only";
        client.batch_execute(begin).map_err(failed)?;
        let (table, source) = find(&mut client, config, filter)?;
        let now = "select to_char(now(), 'YYYY-MM-DD HH24:MI:SSOF')";
        let as_of = client.query_one(now, &[]).map_err(failed)?.get(0);
        let limit = format!("set local statement_timeout = {}", filter.timeout.as_millis());
        client.batch_execute(&limit).map_err(failed)?;
        Ok(ReportReader { client, table, as_of, source, timeout: filter.timeout })
    }

    /// Runs a query of `queries/` without its part for psql. In it, `:sessions` stands for the table
    /// and `:'sessions'` for its name.
    pub fn ask(&mut self, name: &str, sql: &str) -> Result<QueryResult, LedgerError> {
        let sql = fill(sql, &self.table, &self.source);
        let (timeout, table) = (self.timeout, self.table.clone());
        let failed = |why: postgres::Error| match why.code() {
            Some(&SqlState::QUERY_CANCELED) => LedgerError::Fatal(Fault::environment(format!(
                "{name} took longer than --timeout {}: ask about less (--from, --to, --host), leave \
                 it out (--only), or give it more time",
                text::setting(timeout.as_millis() as u64)
            ))),
            Some(&SqlState::INSUFFICIENT_PRIVILEGE) => lacks_right(&why),
            Some(code) if ARITHMETIC_ERRORS.contains(code) => refuse(format!(
                "{name}: {}: the table has rows that are no sessions. To find them: select * \
                 from {table} order by isfinite(session_start) and isfinite(session_end), num_logs \
                 desc limit 10",
                why.as_db_error().map_or_else(|| why.to_string(), |db| db.message().to_owned()),
            )),
            _ => classify(&why, name),
        };
        let statement = self.client.prepare(&sql).map_err(failed)?;
        let columns = statement.columns().iter();
        let columns = columns.map(|c| (c.name().to_owned(), holds(c.type_()))).collect();
        let messages = self.client.simple_query(&sql).map_err(failed)?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let values = |row: postgres::SimpleQueryRow| {
            (0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()
        };
        Ok(QueryResult { columns, rows: rows.map(values).collect() })
    }
}

fn holds(ty: &Type) -> ColumnType {
    match *ty {
        Type::INT2 | Type::INT4 | Type::INT8 | Type::NUMERIC | Type::FLOAT4 | Type::FLOAT8 => {
            ColumnType::Number
        }
        Type::DATE => ColumnType::Day,
        Type::TIMESTAMPTZ | Type::TIMESTAMP => ColumnType::Time,
        Type::INTERVAL => ColumnType::Length,
        _ => ColumnType::Text,
    }
}

/// Finds the table of the job, and what stands for it in a query.
fn find(
    client: &mut Client,
    config: &LedgerConfig,
    filter: &SessionFilter,
) -> Result<(String, String), LedgerError> {
    let failed = |why: postgres::Error| match why.code() {
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => lacks_right(&why),
        _ => classify(&why, "looking for the job"),
    };
    let database = Database::of(client, config).map_err(failed)?;
    schema::refuse_foreign(client, &database)?;
    let there = "select to_regclass('sessionizer.jobs') is not null";
    if !client.query_one(there, &[]).map_err(failed)?.get::<_, bool>(0) {
        return Err(no_such_job(client, &database, &config.job)?);
    }
    let find = "select format('%I.%I', table_schema, table_name),
                       to_regclass(format('%I.%I', table_schema, table_name))::oid
                from sessionizer.jobs where job = $1";
    let Some(row) = client.query_opt(find, &[&config.job]).map_err(failed)? else {
        return Err(no_such_job(client, &database, &config.job)?);
    };
    let table: String = row.get(0);
    let Some(oid) = row.get::<_, Option<u32>>(1) else {
        let problem = format!(
            "the table {table} of the job {} is not in {database}: it was dropped or renamed",
            config.job
        );
        let remedy = "Restore it, or name another job with --job";
        return Err(refuse(Message::new(problem).remedy(". ", remedy)));
    };
    // Where the times have no zone, they are those of UTC.
    let plain = "select count(*) filter (where atttypid = 'timestamp'::regtype)
                 from pg_attribute where attrelid = $1 and attname in ('session_start', 'session_end')";
    let plain: i64 = client.query_one(plain, &[&oid]).map_err(failed)?.get(0);
    let source = source(&table, plain > 0, filter);
    Ok((table, source))
}

/// The table, or the chosen part of it as a subquery.
fn source(table: &str, plain: bool, filter: &SessionFilter) -> String {
    let time = |column: &str| match plain {
        true => format!("{column} at time zone 'UTC'"),
        false => column.to_owned(),
    };
    // A value has the type of the column it is compared with, so that an index can be used.
    let bound = |day: &str, after: &str| {
        let bound = format!("({}::date{after})::timestamptz", literal(day));
        if plain { format!("{bound} at time zone 'UTC'") } else { bound }
    };
    let mut conditions = Vec::new();
    if let Some(from) = &filter.from {
        // The second is implied by the first, and can use the index on session_end.
        conditions.push(format!("session_start >= {}", bound(from, "")));
        conditions.push(format!("session_end >= {}", bound(from, "")));
    }
    if let Some(to) = &filter.to {
        conditions.push(format!("session_start < {}", bound(to, " + 1")));
    }
    if !filter.hosts.is_empty() {
        let hosts: Vec<String> = filter.hosts.iter().map(|host| literal(host)).collect();
        conditions.push(format!("host in ({})", hosts.join(", ")));
    }
    if conditions.is_empty() && !plain {
        return table.to_owned();
    }
    let (start, end) = (time("session_start"), time("session_end"));
    let columns = format!("ip, host, {start} as session_start, {end} as session_end, num_logs");
    let all = if conditions.is_empty() { "" } else { " where " };
    format!("(select {columns} from {table}{all}{})", conditions.join(" and "))
}

/// Puts the table in place of the variables of psql. What stands for one is not searched for the
/// other: a table may be called `x:sessions`.
fn fill(sql: &str, table: &str, source: &str) -> String {
    let parts = sql.split(":'sessions'").map(|part| part.replace(":sessions", source));
    parts.collect::<Vec<_>>().join(&literal(table))
}

/// A text as SQL writes it, with `standard_conforming_strings`.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn refuse(why: impl Into<Message>) -> LedgerError {
    LedgerError::Fatal(Fault::config(why))
}

fn lacks_right(why: &postgres::Error) -> LedgerError {
    let what = why.as_db_error().map_or(String::new(), |db| db.message().to_owned());
    refuse(format!(
        "Postgres refuses: {what}; a report needs select on the table of the job and on \
         sessionizer.jobs, and usage on their schemas: grant usage on schema sessionizer to LOGIN; \
         grant select on sessionizer.jobs to LOGIN;"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_with_the_name_of_a_variable_is_no_variable() {
        let sql = "select :'sessions' from :sessions";
        for table in ["x:sessions", "x:'sessions'"] {
            let name = literal(table);
            assert_eq!(fill(sql, table, table), format!("select {name} from {table}"));
        }
    }

    #[test]
    fn the_chosen_part_of_a_table_is_a_subquery() {
        let mut filter = SessionFilter::default();
        assert_eq!(source("s.t", false, &filter), "s.t");
        assert_eq!(
            source("s.t", true, &filter),
            "(select ip, host, session_start at time zone 'UTC' as session_start, session_end at \
             time zone 'UTC' as session_end, num_logs from s.t)"
        );
        filter.from = Some("2026-01-01".to_owned());
        filter.to = Some("2026-01-31".to_owned());
        filter.hosts = vec!["a'b".to_owned(), "\\".to_owned()];
        let part = source("s.t", false, &filter);
        for condition in [
            "session_start >= ('2026-01-01'::date)::timestamptz and session_end >= ",
            "session_start < ('2026-01-31'::date + 1)::timestamptz",
            "host in ('a''b', '\\')",
        ] {
            assert!(part.contains(condition), "{part}");
        }
    }
}
