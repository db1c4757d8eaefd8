//! The surroundings of the job in its database: its own schema, and the triggers and publications
//! of the table.

use postgres::Transaction;
use sessionizer_core::fault::{Fault, Message};

use crate::dataflow::ports::LedgerError;
use crate::ledger::LedgerConfig;
use crate::ledger::connect::quote;
use crate::ledger::errors::classify;
use crate::ledger::peek::Database;
use crate::ledger::table::Table;
use crate::ledger::{schema, table};

/// The state of the schema `sessionizer`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OwnSchema {
    /// The first start creates it.
    Missing,
    /// It has this version, and a start brings it to that of the program.
    Older(i32),
    /// It is of this program's version.
    Complete(i32),
}

/// Inspects the schema. Refuses a newer version, and a login that would have to create or migrate
/// the schema but may not.
pub fn own_schema(
    tx: &mut Transaction<'_>,
    config: &LedgerConfig,
) -> Result<OwnSchema, LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "looking at the schema sessionizer");
    let at = Database::of(tx, config).map_err(failed)?;
    let version = schema::version(tx, &at)?;
    if version == schema::NEWEST && schema::is_complete(tx).map_err(failed)? {
        return Ok(OwnSchema::Complete(version));
    }
    let row = tx
        .query_one(
            "select (select nspowner::regrole::text from pg_namespace
                     where nspname = 'sessionizer'),
                    has_database_privilege(current_database(), 'create'),
                    coalesce(has_schema_privilege(to_regnamespace('sessionizer')::oid, 'create'),
                             false)
                    and not exists (select from pg_class c
                                    where c.relnamespace = to_regnamespace('sessionizer')
                                          and c.relkind in ('r', 'v')
                                          and not pg_has_role(c.relowner, 'usage'))",
            &[],
        )
        .map_err(failed)?;
    let (owner, creates, migrates): (Option<String>, bool, bool) =
        (row.get(0), row.get(1), row.get(2));
    match owner {
        None if creates => Ok(OwnSchema::Missing),
        None => {
            let user = &config.user;
            let problem = format!(
                "the schema sessionizer is missing, and the login {user} may not create it"
            );
            let remedy = format!("create schema sessionizer authorization {};", quote(user));
            let message = Message::new(problem).remedy("; grant it: ", remedy);
            Err(LedgerError::Fatal(Fault::config(message)))
        }
        Some(_) if migrates => Ok(OwnSchema::Older(version)),
        Some(owner) => {
            let why = "it may not create or change what is in there";
            Err(schema::may_not(&at, version, &owner, why))
        }
    }
}

/// Refuses a login that may not create the missing table.
pub fn may_create_table(
    tx: &mut Transaction<'_>,
    config: &LedgerConfig,
) -> Result<(), LedgerError> {
    let schema = match config.table.split_once('.') {
        Some((schema, _)) => Some(schema.to_owned()),
        None => table::first_schema(tx, config)?,
    };
    let row = tx
        .query_one(
            "select current_user::text, n.oid is not null, n.nspname::text,
                    coalesce(has_schema_privilege(n.oid, 'create'), false)
             from (select 1) one left join pg_namespace n on n.nspname = $1",
            &[&schema],
        )
        .map_err(|why| classify(&why, "looking for the schema of the table"))?;
    let (login, there): (String, bool) = (quote(row.get(0)), row.get(1));
    let table = &config.table;
    if !there {
        let problem = format!("the table {table} does not exist, and neither does its schema");
        let message = Message::new(problem).remedy(": ", table::CREATE_SCHEMA);
        return Err(LedgerError::Fatal(Fault::config(message)));
    }
    if row.get(3) {
        return Ok(());
    }
    let schema: &str = row.get(2);
    let problem = format!(
        "the table {table} does not exist, and the login {} may not create it in the schema \
         {schema}",
        config.user
    );
    let remedy = format!("grant create on schema {} to {login};", quote(schema));
    Err(LedgerError::Fatal(Fault::config(Message::new(problem).remedy("; grant it: ", remedy))))
}

/// Triggers of a table and its partitions, each with its function.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Triggers {
    /// Triggers that can change a row or keep it out.
    pub before: Vec<String>,
    /// All other triggers that run for each row or statement.
    pub others: Vec<String>,
}

/// Returns the triggers that run when the job writes or deletes rows.
pub fn triggers(tx: &mut Transaction<'_>, table: &Table) -> Result<Triggers, LedgerError> {
    let rows = tx
        .query(
            "select distinct format('%I (%s)', tgname, tgfoid::regproc), tgtype & 3 = 3
             from pg_trigger
             where tgrelid in (select to_regclass($1)::oid
                               union all select relid from pg_partition_tree(to_regclass($1)))
                   and not tgisinternal and tgenabled in ('O', 'A') and tgtype & 12 <> 0
             order by 1",
            &[&table.quoted()],
        )
        .map_err(|why| classify(&why, "looking at the triggers of the table"))?;
    let (before, others): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.get::<_, bool>(1));
    let names = |rows: Vec<&postgres::Row>| rows.iter().map(|row| row.get(0)).collect();
    Ok(Triggers { before: names(before), others: names(others) })
}

/// Tables whose deletes Postgres refuses, each with the publications that publish deletes.
pub type Unpublishable = Vec<(String, String)>;

/// Looks among the table, its partitions, and the tables of the schema `sessionizer` for those that
/// publish deletes and have no replica identity.
pub fn unpublishable(
    tx: &mut Transaction<'_>,
    table: Option<&Table>,
) -> Result<Unpublishable, LedgerError> {
    let rows = tx
        .query(
            "select format('%I.%I', t.schemaname, t.tablename),
                    string_agg(distinct quote_ident(p.pubname), ', ')
             from pg_publication p
             join pg_publication_tables t using (pubname)
             join pg_class c on c.oid = to_regclass(format('%I.%I', t.schemaname, t.tablename))
             where p.pubdelete
                   and (c.oid in (select to_regclass($1)::oid
                                  union all select relid from pg_partition_tree(to_regclass($1)))
                        or c.relnamespace = to_regnamespace('sessionizer'))
                   and case c.relreplident
                       when 'f' then false
                       when 'd' then not exists (select from pg_index i where i.indrelid = c.oid
                                                 and i.indisprimary and i.indisvalid
                                                 and i.indimmediate)
                       when 'i' then not exists (select from pg_index i where i.indrelid = c.oid
                                                 and i.indisreplident and i.indisvalid)
                       else true end
             group by 1 order by 1",
            &[&table.map(Table::quoted)],
        )
        .map_err(|why| classify(&why, "looking at the publications"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
