//! The table of sessions: created if it is missing, checked but never altered if it exists.

use log::{info, warn};
use postgres::error::SqlState;
use postgres::{GenericClient, Transaction};
use sessionizer_core::fault::{Fault, Message};
use sessionizer_core::time::EventTime;

use crate::dataflow::ports::LedgerError;
use crate::ledger::connect::quote;
use crate::ledger::errors::classify;
use crate::ledger::{LedgerConfig, columns};
use crate::ui::text::plural;

/// The properties of the table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table {
    pub schema: String,
    pub name: String,
    /// For messages: quoted only where Postgres needs it.
    pub shown: String,
    /// The type of its times: `timestamptz` or `timestamp`.
    pub time_type: &'static str,
    /// Whether its primary key, or another unique index, begins with `ip, host, session_start`.
    pub keyed: bool,
    pub partitioned: bool,
    /// Whether a BEFORE trigger may change rows on their way in.
    pub rewritten: bool,
    /// What the user should know about it or do about it.
    pub advice: Vec<Message>,
}

impl Table {
    /// The statement that adds the key, without locking the table where Postgres can do that.
    pub fn add_key(&self) -> String {
        let concurrently = if self.partitioned { "" } else { "concurrently " };
        format!("create unique index {concurrently}on {} (ip, host, session_start);", self.shown)
    }

    /// Returns schema and name, quoted.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }
}

fn typed(config: &LedgerConfig) -> String {
    config.table.split('.').map(quote).collect::<Vec<_>>().join(".")
}

/// Creates the table if it is missing, and inspects it. Returns whether it was created.
pub fn ensure(
    tx: &mut Transaction<'_>,
    config: &LedgerConfig,
) -> Result<(Table, bool), LedgerError> {
    let (oid, first_schema) = resolve(tx, config)?;
    if let Some(oid) = oid {
        return Ok((look(tx, config, oid)?, false));
    }
    let name = match (config.table.contains('.'), first_schema) {
        (true, _) => typed(config),
        (false, Some(schema)) => format!("{}.{}", quote(&schema), typed(config)),
        (false, None) => {
            let why = Message::new("it does not exist, and no schema of the search path does");
            return Err(refuse(&config.table, why.remedy(": ", CREATE_SCHEMA)));
        }
    };
    let create = format!(
        "create table {name} (
            ip            text collate \"C\" not null,
            host          text collate \"C\" not null,
            session_start timestamptz(3) not null,
            session_end   timestamptz(3) not null,
            num_logs      bigint not null,
            primary key (ip, host, session_start)
        );
        -- For questions about a time. Rows come in about this order, so it costs next to nothing.
        create index on {name} using brin (session_end) with (autosummarize = on)"
    );
    tx.batch_execute(&create).map_err(|why| classify(&why, "creating the table"))?;
    let (oid, _) = resolve(tx, config)?;
    let oid = oid.ok_or_else(|| refuse(&config.table, "it does not exist after it was created"))?;
    Ok((look(tx, config, oid)?, true))
}

/// What to do about a table without a schema to create it in.
pub const CREATE_SCHEMA: &str = "create the schema, or correct --table or currentSchema";

pub fn refuse(table: &str, why: impl Into<Message>) -> LedgerError {
    let doing = format!("the table {table} cannot be used");
    LedgerError::Fatal(Fault::config(why.into().context(doing)))
}

/// The error for a job whose table is gone: its contents cannot be restored from here.
pub fn gone(job: &str, table: &str) -> LedgerError {
    let problem = format!("the table {table} of the job {job} is gone: it was dropped or renamed");
    let remedy = "Rename it back or restore it, or begin afresh: `sessionizer reset` removes the \
                  job, and the next start makes the table and reads the topic again";
    LedgerError::Fatal(Fault::config(Message::new(problem).remedy(". ", remedy)))
}

/// Finds the table, and the first schema of the user's search path. That path is in force only for
/// this statement, in which every name is qualified.
fn resolve(
    client: &mut impl GenericClient,
    config: &LedgerConfig,
) -> Result<(Option<u32>, Option<String>), LedgerError> {
    let row = client
        .query_one(
            "select pg_catalog.set_config('search_path',
                                          pg_catalog.current_setting('sessionizer.path'), false),
                    pg_catalog.to_regclass($1)::pg_catalog.oid,
                    pg_catalog.current_schema()::pg_catalog.text,
                    pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false)",
            &[&typed(config)],
        )
        .map_err(|why| {
            let lacks = why.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE);
            match config.table.split_once('.').filter(|_| lacks) {
                Some((schema, _)) => may_not_look(config, schema),
                None => classify(&why, "looking for the table"),
            }
        })?;
    Ok((row.get(1), row.get(2)))
}

/// The error for a login that may not look into the schema of the table.
fn may_not_look(config: &LedgerConfig, schema: &str) -> LedgerError {
    let problem = format!(
        "Postgres refuses: the login {} may not look into the schema {schema} of the table {}",
        config.user, config.table
    );
    let remedy = format!("grant usage on schema {} to {};", quote(schema), quote(&config.user));
    LedgerError::Fatal(Fault::config(Message::new(problem).remedy("; grant it: ", remedy)))
}

/// Returns the schema in which a table without one would be created; `None` if no schema of the
/// user's search path exists.
pub fn first_schema(
    client: &mut impl GenericClient,
    config: &LedgerConfig,
) -> Result<Option<String>, LedgerError> {
    resolve(client, config).map(|(_, first)| first)
}

/// Returns the quoted schema and name of the relation with the table's name; `None` if there is
/// none.
pub fn qualified_name(
    client: &mut impl GenericClient,
    config: &LedgerConfig,
) -> Result<Option<String>, LedgerError> {
    let (Some(oid), _) = resolve(client, config)? else { return Ok(None) };
    let name = client
        .query_opt(
            "select format('%I.%I', n.nspname, c.relname)
             from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = $1",
            &[&oid],
        )
        .map_err(|why| classify(&why, "looking for the table"))?;
    Ok(name.map(|row| row.get(0)))
}

/// Finds and inspects the table; `None` if there is none.
pub fn find(
    client: &mut impl GenericClient,
    config: &LedgerConfig,
) -> Result<Option<Table>, LedgerError> {
    match resolve(client, config)? {
        (Some(oid), _) => look(client, config, oid).map(Some),
        (None, _) => Ok(None),
    }
}

/// Inspects the table that the job has used since its creation, whatever the search path is now.
pub fn of_job(
    client: &mut impl GenericClient,
    config: &LedgerConfig,
) -> Result<Table, LedgerError> {
    let oid = client
        .query_opt(
            "select to_regclass(format('%I.%I', table_schema, table_name))::oid,
                    format('%I.%I', table_schema, table_name)
             from sessionizer.jobs where job = $1",
            &[&config.job],
        )
        .map_err(|why| classify(&why, "looking for the job's table"))?;
    match oid.map(|row| (row.get::<_, Option<u32>>(0), row.get::<_, String>(1))) {
        Some((Some(oid), _)) => look(client, config, oid),
        Some((None, table)) => Err(gone(&config.job, &table)),
        None => Err(LedgerError::Fatal(Fault::config(format!(
            "the job {} is gone from sessionizer.jobs: it was deleted",
            config.job
        )))),
    }
}

fn look(
    client: &mut impl GenericClient,
    config: &LedgerConfig,
    oid: u32,
) -> Result<Table, LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "looking at the table");
    let row = client
        .query_opt(
            "select n.nspname::text, c.relname::text, c.relkind::text,
                    format('%I.%I', n.nspname, c.relname), c.relpersistence::text,
                    c.relkind = 'p' and not exists
                        (select from pg_inherits where inhparent = c.oid),
                    exists (select from pg_trigger t
                            where t.tgrelid in (select c.oid union all
                                                select relid from pg_partition_tree(c.oid))
                                  and not t.tgisinternal and t.tgenabled <> 'D'
                                  and t.tgtype & 7 = 7),
                    exists (select from pg_index i where i.indrelid = c.oid and i.indisvalid
                            and i.indpred is null
                            and (select array_agg(a.attname::text order by k.at)
                                 from unnest(i.indkey[0:2]) with ordinality k(attnum, at)
                                 join pg_attribute a on a.attrelid = c.oid
                                                    and a.attnum = k.attnum)
                                = '{ip,host,session_start}'),
                    exists (select from pg_class p
                            where p.oid in (select relid from pg_partition_tree(c.oid))
                                  and p.relpersistence = 'u')
             from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = $1",
            &[&oid],
        )
        .map_err(failed)?;
    let row = row.ok_or_else(|| refuse(&config.table, "it was dropped just now"))?;
    let (schema, name): (String, String) = (row.get(0), row.get(1));
    let (kind, shown): (&str, String) = (row.get(2), row.get(3));
    check_kind(kind, row.get(4)).map_err(|why| refuse(&shown, why))?;
    let mut advice = Vec::new();
    if row.get::<_, &str>(4) == "u" || row.get(8) {
        let problem = format!(
            "the table {shown} is unlogged (or a partition of it): after a crash of Postgres its \
             rows are gone, and the job does not write them again"
        );
        let remedy = format!("alter table {shown} set logged;");
        advice.push(Message::new(problem).remedy(". To keep them: ", remedy));
    }
    if row.get(5) {
        let problem = format!(
            "the table {shown} has no partition, so it cannot hold rows: sessions become dead \
             letters (row_refused)"
        );
        let remedy = format!("create table ... partition of {shown} default;");
        advice.push(Message::new(problem).remedy(". Make one, for example: ", remedy));
    }
    let (rewritten, keyed) = (row.get(6), row.get(7));
    let time_type = columns::check(client, config, oid, &shown, &mut advice)?;
    let partitioned = kind == "p";
    Ok(Table { schema, name, shown, time_type, keyed, partitioned, rewritten, advice })
}

fn check_kind(kind: &str, persistence: &str) -> Result<(), Message> {
    let what = match kind {
        "r" | "p" if persistence == "t" => "a temporary table, gone with its session",
        "r" | "p" => return Ok(()),
        "v" => "a view",
        "m" => "a materialized view",
        "f" => "a foreign table, and what is written there is outside this transaction",
        "S" => "a sequence",
        "i" | "I" => "an index",
        _ => "not a table",
    };
    let remedy = "name a table with --table, or rename it and let the job create one";
    Err(Message::new(format!("it is {what}")).remedy("; ", remedy))
}

/// Whether a table, given quoted, has any row.
pub fn has_rows(client: &mut impl GenericClient, table: &str) -> Result<bool, postgres::Error> {
    Ok(client.query_one(&format!("select exists (select from {table})"), &[])?.get(0))
}

/// Returns the end of the newest row of a table, given quoted: its last event plus the gap. `None`
/// if no row has an end. Refuses rows outside the years of events, for example at infinity: no
/// session could follow them.
pub fn newest_end(
    client: &mut impl GenericClient,
    config: &LedgerConfig,
    table: &str,
) -> Result<Option<EventTime>, LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "looking for the newest row of the table");
    // A session may end a gap after the last event.
    let gap_ms = config.gap.millis();
    let outside = format!(
        "(session_start < '0001-01-01 00:00:00+00' or session_end < '0001-01-01 00:00:00+00'
          or session_start >= '10000-01-01 00:00:00+00'
          or session_end - interval '{gap_ms} ms' >= '10000-01-01 00:00:00+00')"
    );
    let rows = format!("select max(session_end), count(*) filter (where {outside}) from {table}");
    let row = client.query_one(&rows, &[]).map_err(failed)?;
    let count: i64 = row.get(1);
    if count > 0 {
        let example = format!(
            "select ip, host, session_start::text, session_end::text from {table}
             where {outside} limit 1"
        );
        let example = client.query_opt(&example, &[]).map_err(failed)?;
        let example = example.map_or_else(String::new, |row| {
            let shown: Vec<String> = (0..4)
                .map(|at| row.get::<_, Option<String>>(at).unwrap_or_else(|| "null".to_owned()))
                .collect();
            format!(
                ", for example ip {}, host {}, from {} to {}",
                shown[0], shown[1], shown[2], shown[3]
            )
        });
        let sql: Vec<&str> = outside.split_whitespace().collect();
        let rows = plural(count, "row");
        let problem = format!("the times of {rows} are outside the years 1 to 9999{example}");
        let remedy = format!(
            "correct such rows, or delete them: delete from {table} where {};",
            sql.join(" ")
        );
        return Err(refuse(table, Message::new(problem).remedy(": ", remedy)));
    }
    let newest: Option<crate::ledger::copy::Timestamp> = row.get(0);
    Ok(newest.map(|end| config.gap.end_after(config.session_end.last_event(end.0, config.gap))))
}

/// Logs what the table lacks and how to add it. Never adds it unasked.
pub fn advise(table: &Table) {
    if !table.keyed {
        let name = &table.shown;
        warn!(
            "the table {name} has no key: late events will be slow to find their rows, and \
             nothing keeps duplicates out. To add one while the job runs: {}",
            table.add_key()
        );
    }
    if table.time_type == "timestamp" {
        info!("the times of {} have no time zone: they are written in UTC", table.shown);
    }
}
