//! The schema `sessionizer`: its version, and the migrations that bring an older one up to date.
//!
//! Migrations are numbered and go forward only. A start applies those that are missing, in its own
//! transaction and under its advisory lock, so a start that is refused has changed nothing. State
//! of a newer version is refused, because only that version knows what it means.

use std::fmt;
use std::fmt::Write;

use postgres::error::SqlState;
use postgres::{GenericClient, Transaction};
use sessionizer_core::fault::{Fault, Message};

use crate::dataflow::ports::LedgerError;
use crate::ledger::errors::classify;
use crate::ledger::peek::Database;
use crate::ledger::start::ADVISORY_LOCK;

/// The migrations, in order; the first is number 1. One that has been released never changes.
const MIGRATIONS: [(&str, &str); 2] = [
    ("tables", include_str!("migrations/001_tables.sql")),
    ("found_rows_to", include_str!("migrations/002_found_rows_to.sql")),
];
/// The version that this program reads and writes.
pub const NEWEST: i32 = MIGRATIONS.len() as i32;

/// The name of this program in the row of a migration and in messages.
const PROGRAM: &str =
    concat!("sessionizer ", env!("CARGO_PKG_VERSION"), " (", env!("BUILD_COMMIT"), ")");

/// Commits lock the shards first. A migration does the same, so that the two cannot deadlock.
const LOCK: &str = "
do $$ begin
    if to_regclass('sessionizer.shard_progress') is not null then
        lock table sessionizer.shard_progress in access exclusive mode;
    end if;
end $$;
";

/// What a start has done to an existing schema.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Migrated {
    from: i32,
}

impl fmt::Display for Migrated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.from == NEWEST {
            return f.write_str("what was missing in the schema sessionizer was created again");
        }
        let from = self.from;
        write!(f, "the schema sessionizer was brought from version {from} to version {NEWEST}")
    }
}

/// Brings the schema to the newest version. Tables and views of that version that are missing are
/// created again, empty: the checks of the state that follow find out what that means for the job.
pub fn migrate(tx: &mut Transaction<'_>, at: &Database) -> Result<Option<Migrated>, LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "preparing the schema sessionizer");
    let version = version(tx, at)?;
    let from = if is_complete(tx).map_err(failed)? { version } else { 0 };
    if from == NEWEST {
        return Ok(None);
    }
    let owner = "select nspowner::regrole::text from pg_namespace where nspname = 'sessionizer'";
    let owner: Option<String> = tx.query_opt(owner, &[]).map_err(failed)?.map(|row| row.get(0));
    tx.batch_execute(&steps(from)).map_err(|why| match (why.as_db_error(), &owner) {
        (Some(db), Some(owner)) if *db.code() == SqlState::INSUFFICIENT_PRIVILEGE => {
            may_not(at, version, owner, db.message())
        }
        _ => failed(why),
    })?;
    Ok(owner.map(|_| Migrated { from: version }))
}

pub(super) fn may_not(at: &Database, version: i32, owner: &str, why: &str) -> LedgerError {
    let Database { database, user, .. } = at;
    let change = match version {
        NEWEST => "lacks what it should have".to_owned(),
        _ => format!("has to be brought from version {version} to version {NEWEST}"),
    };
    let problem = format!(
        "the schema sessionizer in {at} {change}, and the login {user} may not do that: {why}"
    );
    let remedy =
        format!("Run as {owner}, who owns it: sessionizer schema | psql -U {owner} -d {database}");
    LedgerError::Fatal(Fault::config(Message::new(problem).remedy(". ", remedy)))
}

/// The version of the schema; 0 if there is none, or if it comes from a program that did not number
/// it. Refuses a version that is newer than this program, and tables of another program.
pub fn version(client: &mut impl GenericClient, at: &Database) -> Result<i32, LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "asking for the version of the schema");
    refuse_foreign(client, at)?;
    let numbered = "select to_regclass('sessionizer.schema_version') is not null";
    if !client.query_one(numbered, &[]).map_err(failed)?.get::<_, bool>(0) {
        return Ok(0);
    }
    let newest = "select version, applied_by from sessionizer.schema_version
                  order by version desc limit 1";
    let Some(row) = client.query_opt(newest, &[]).map_err(failed)? else { return Ok(0) };
    let found: i32 = row.get(0);
    if found <= NEWEST {
        return Ok(found);
    }
    let problem = format!(
        "the schema sessionizer in {at} is of version {found}, written by {}; this is {PROGRAM}, \
         which knows version {NEWEST} at most",
        row.get::<_, String>(1)
    );
    let remedy = "Start that program or a newer one. To go back, restore a backup from before its \
                  first start";
    Err(LedgerError::Fatal(Fault::config(Message::new(problem).remedy(". ", remedy))))
}

/// Refuses a schema in which something has the name of one of our tables and is none.
pub(super) fn refuse_foreign(
    client: &mut impl GenericClient,
    at: &Database,
) -> Result<(), LedgerError> {
    let foreign = client
        .query_opt(
            "select c.relname::text, o.sign
             from pg_class c
             join (select name, case name when 'schema_version' then 'applied_by'
                                          when 'jobs' then 'table_schema' else 'job' end as sign
                   from unnest($1::text[]) name) o on o.name = c.relname
             where c.relnamespace = to_regnamespace('sessionizer') and c.relkind <> 'i'
                   and not exists (select from pg_attribute a
                                   where a.attrelid = c.oid and a.attname = o.sign
                                         and not a.attisdropped)
             order by c.relname limit 1",
            &[&objects()],
        )
        .map_err(|why| classify(&why, "looking at the schema sessionizer"))?;
    let Some(foreign) = foreign else { return Ok(()) };
    let (name, column): (&str, &str) = (foreign.get(0), foreign.get(1));
    let problem = format!(
        "the schema sessionizer in {at} holds something else of the name {name}: it has no column \
         {column}"
    );
    let remedy = "rename that schema (alter schema sessionizer rename to ...), or use another \
                  database: the job needs one of this name for itself";
    Err(LedgerError::Fatal(Fault::config(Message::new(problem).remedy("; ", remedy))))
}

/// Refuses a schema that is not of this program's version, for commands that only read.
pub fn refuse_other(client: &mut impl GenericClient, at: &Database) -> Result<(), LedgerError> {
    let found = version(client, at)?;
    if found == NEWEST {
        return Ok(());
    }
    let problem = format!(
        "the schema sessionizer in {at} is of version {found}, and {PROGRAM} reads version {NEWEST}"
    );
    let remedy = "start its job once, which brings the schema up to date";
    Err(LedgerError::Fatal(Fault::config(Message::new(problem).remedy(": ", remedy))))
}

/// Whether everything that the newest version has exists.
pub(super) fn is_complete(tx: &mut Transaction<'_>) -> Result<bool, postgres::Error> {
    let all = "select bool_and(to_regclass('sessionizer.' || name) is not null)
               from unnest($1::text[]) name";
    Ok(tx.query_one(all, &[&objects()])?.get(0))
}

/// The tables and views that the migrations create, found by how their lines begin.
fn objects() -> Vec<&'static str> {
    const MADE: [&str; 2] =
        ["create table if not exists sessionizer.", "create or replace view sessionizer."];
    const DROPPED: [&str; 2] =
        ["drop table if exists sessionizer.", "drop view if exists sessionizer."];
    let name = |line: &'static str, begins: [&str; 2]| {
        let rest = begins.iter().find_map(|begin| line.strip_prefix(begin))?;
        rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next()
    };
    let mut objects = Vec::new();
    for line in MIGRATIONS.iter().flat_map(|(_, sql)| sql.lines()) {
        objects.extend(name(line, MADE));
        if let Some(dropped) = name(line, DROPPED) {
            objects.retain(|object| *object != dropped);
        }
    }
    objects
}

/// The statements that bring the schema from a version to the newest one.
fn steps(from: i32) -> String {
    let mut sql = LOCK.to_owned();
    for (number, (name, statements)) in (1..).zip(MIGRATIONS).skip(from as usize) {
        sql.push_str(statements);
        let _ = writeln!(
            sql,
            "insert into sessionizer.schema_version (version, name, applied_by)
             values ({number}, '{name}', '{PROGRAM}') on conflict (version) do nothing;"
        );
    }
    sql
}

/// All steps as a script for psql, for a login that owns the schema where the job's does not.
pub fn script() -> String {
    format!(
        "-- Brings the schema sessionizer to version {NEWEST}: {PROGRAM}.
-- For psql, as the owner of the schema. Either all of it is done or nothing; doing it again changes
-- nothing.
\\set ON_ERROR_STOP on
\\set QUIET on
begin;
set local search_path = pg_catalog, pg_temp;
set local client_min_messages = warning;
do $$ begin perform pg_advisory_xact_lock({ADVISORY_LOCK}); end $$;
do $$ declare found integer := 0; begin
    if to_regclass('sessionizer.schema_version') is not null then
        select coalesce(max(version), 0) into found from sessionizer.schema_version;
    end if;
    if found > {NEWEST} then
        raise 'the schema sessionizer is of version %, which is newer than {NEWEST}', found;
    end if;
end $$;
{}commit;
\\echo the schema sessionizer is of version {NEWEST}
",
        steps(0)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_those_that_are_applied_and_are_numbered_in_order() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/ledger/migrations");
        let files = std::fs::read_dir(folder).expect("the folder of the migrations");
        let mut files: Vec<String> = files
            .map(|file| file.expect("readable").file_name().into_string().expect("UTF-8"))
            .collect();
        files.sort();
        let applied: Vec<String> =
            (1..).zip(MIGRATIONS).map(|(n, (name, _))| format!("{n:03}_{name}.sql")).collect();
        assert_eq!(files, applied);
        for ((name, sql), file) in MIGRATIONS.iter().zip(&files) {
            let text = std::fs::read_to_string(format!("{folder}/{file}")).expect("readable");
            assert_eq!(text, *sql, "{name}");
        }
    }

    #[test]
    fn what_the_schema_has_is_what_the_migrations_make() {
        let objects = objects();
        for known in ["schema_version", "jobs", "shard_progress", "anomalies", "balance"] {
            assert!(objects.contains(&known), "{known}: {objects:?}");
        }
        // However it is written, whatever a migration creates is found by `objects`.
        let made = MIGRATIONS.iter().flat_map(|(_, sql)| sql.lines()).filter(|line| {
            let line = line.trim_start().to_lowercase();
            let (create, what) = (line.starts_with("create "), line.contains(" sessionizer."));
            create && what && (line.contains(" table ") || line.contains(" view "))
        });
        assert_eq!(made.count(), objects.len(), "{objects:?}");
    }

    #[test]
    fn a_start_takes_only_the_steps_that_are_missing_and_the_script_all() {
        let first = "create table if not exists sessionizer.jobs";
        assert!(script().contains(first) && steps(0).contains(first));
        assert!(!steps(1).contains(first));
    }
}
