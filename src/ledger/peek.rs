//! A look before a start: which server the connection leads to, whether the job has committed
//! anything, and whether its table has rows. It creates and changes nothing.

use std::fmt;

use postgres::{Client, GenericClient, Transaction};
use sessionizer_core::time::EventTime;

use crate::dataflow::ports::LedgerError;
use crate::ledger::errors::classify;
use crate::ledger::job;
use crate::ledger::schema;
use crate::ledger::start;
use crate::ledger::table;
use crate::ledger::table::Table;
use crate::ledger::{LedgerConfig, rights};

/// Where a connection leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Database {
    /// `host:port`.
    pub server: String,
    pub database: String,
    pub user: String,
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Database { server, database, user } = self;
        write!(f, "the database {database} at {server} as {user}")
    }
}

impl Database {
    /// Asks the server. If the URL names several hosts, only the server knows which one it is.
    pub fn of(
        client: &mut impl GenericClient,
        config: &LedgerConfig,
    ) -> Result<Self, postgres::Error> {
        let row = client.query_one(
            "select current_database()::text, current_user::text,
                    host(inet_server_addr()) || ':' || inet_server_port()",
            &[],
        )?;
        let server = match config.url.hosts.as_slice() {
            [(host, port)] => format!("{host}:{port}"),
            several => row.get::<_, Option<String>>(2).unwrap_or_else(|| {
                let hosts: Vec<String> =
                    several.iter().map(|(host, port)| format!("{host}:{port}")).collect();
                hosts.join(",")
            }),
        };
        Ok(Database { server, database: row.get(0), user: row.get(1) })
    }
}

/// What a first start finds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FirstStart {
    /// `None`: the table has no row, or does not exist.
    pub rows: Option<ExistingRows>,
}

/// The rows that a table had before the job wrote any.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExistingRows {
    /// The table, for messages.
    pub table: String,
    /// The end of the newest row: its last event plus the gap, whatever `session_end` holds. `None`
    /// if no row has an end.
    pub newest: Option<EventTime>,
}

/// Looks at the job and its table. `None`: the job has committed something, which determines where
/// reading continues.
pub fn peek(client: &mut Client, config: &LedgerConfig) -> Result<Option<FirstStart>, LedgerError> {
    start::check_encoding(client)?;
    let failed = |why: postgres::Error| classify(&why, "looking at the table and the job");
    let mut tx = client.build_transaction().read_only(true).start().map_err(failed)?;
    rights::check_rights(&mut tx)?;
    let database = Database::of(&mut tx, config).map_err(failed)?;
    schema::version(&mut tx, &database)?;
    if !is_first_start(&mut tx, config).map_err(failed)? {
        return Ok(None);
    }
    let Some(table) = table::find(&mut tx, config)? else {
        return Ok(Some(FirstStart { rows: None }));
    };
    start::check_rights(&mut tx, &table)?;
    let there = exists(&mut tx, &["sessionizer.jobs"]).map_err(failed)?;
    if there {
        job::check_owner(&mut tx, config, &table)?;
    }
    Ok(Some(FirstStart { rows: rows(&mut tx, config, &table)? }))
}

fn exists(tx: &mut Transaction<'_>, tables: &[&str]) -> Result<bool, postgres::Error> {
    let select = "select bool_and(to_regclass(name) is not null) from unnest($1::text[]) name";
    Ok(tx.query_one(select, &[&tables])?.get(0))
}

/// Whether the job has committed nothing yet, or does not exist. A job with missing rows is not at
/// its first start: the start itself reports what is missing.
fn is_first_start(
    tx: &mut Transaction<'_>,
    config: &LedgerConfig,
) -> Result<bool, postgres::Error> {
    if !exists(tx, &["sessionizer.jobs"])? {
        return Ok(true);
    }
    let job = tx.query_opt("select shards from sessionizer.jobs where job = $1", &[&config.job])?;
    let Some(job) = job else { return Ok(true) };
    if !exists(tx, &["sessionizer.bindings", "sessionizer.shard_progress"])? {
        return Ok(false);
    }
    let row = tx.query_one(
        "select not exists (select from sessionizer.bindings where job = $1),
                count(*), coalesce(max(epoch), 0)
         from sessionizer.shard_progress where job = $1",
        &[&config.job],
    )?;
    let shards = i64::from(job.get::<_, i32>(0));
    Ok(row.get(0) && row.get::<_, i64>(1) == shards && row.get::<_, i64>(2) == 0)
}

fn rows(
    tx: &mut Transaction<'_>,
    config: &LedgerConfig,
    table: &Table,
) -> Result<Option<ExistingRows>, LedgerError> {
    let name = table.quoted();
    let failed = |why: postgres::Error| classify(&why, "looking at the table and the job");
    if !table::has_rows(tx, &name).map_err(failed)? {
        return Ok(None);
    }
    let newest = table::newest_end(tx, config, &name)?;
    Ok(Some(ExistingRows { table: table.shown.clone(), newest }))
}
