//! Checks Postgres for `sessionizer check`: asks what a start asks, and writes nothing.
//!
//! Every question has its own read-only transaction, so a failed one does not hide the others, and
//! Postgres itself refuses a write. What a start finds out by trying it in a transaction that is
//! rolled back is read from the catalogs instead.

mod server;
mod surroundings;

use std::time::Duration;

use postgres::config::TargetSessionAttrs;
use postgres::{Client, Transaction};
pub use server::{Connections, ReadOnly, Server};
use sessionizer_core::fault::{Fault, Message};
use sessionizer_core::plan::Fence;
use sessionizer_core::session::snapshot;
use sessionizer_core::time::EventTime;
pub use surroundings::{OwnSchema, Triggers, Unpublishable};

use crate::dataflow::ports::{Cause, LedgerError};
use crate::ledger::connect::{configure_session, dial, within};
use crate::ledger::errors::classify;
use crate::ledger::peek::FirstStart;
pub use crate::ledger::pooler::is_in_between as is_pooler;
use crate::ledger::table::Table;
use crate::ledger::{
    LedgerConfig, NamedEpoch, RecoveredState, durable, job, peek, pooler, rights, start, stopped,
    table, trust,
};

/// The application name of the connections, which is not that of an instance of the job.
const APPLICATION: &str = "sessionizer check";

/// What a start would find, as of one moment.
pub struct Found {
    /// `None`: the job has committed something, which determines where reading continues.
    pub first: Option<FirstStart>,
    pub durable: RecoveredState,
    /// KAFKA_TOPIC at the last start.
    pub topics_before: Option<Vec<String>>,
}

/// A connection for these questions.
pub struct Inspection {
    client: Client,
    config: LedgerConfig,
}

impl Inspection {
    /// Connects, and looks for a pooler before anything is set in the session. A server that does
    /// not allow writes is inspected nevertheless, although a start would refuse it.
    pub fn open(
        config: &LedgerConfig,
        timeout: Duration,
    ) -> Result<(Self, Option<ReadOnly>), LedgerError> {
        let mut config = config.clone();
        config.url.connect_timeout = config.url.connect_timeout.min(timeout);
        let mut writable = true;
        let writes =
            |config: &LedgerConfig| dial(config, APPLICATION, TargetSessionAttrs::ReadWrite);
        let mut client = within(timeout, &config, writes).or_else(|why| match &why {
            LedgerError::Retry(failure) if failure.cause == Cause::ReadOnly => {
                writable = false;
                within(timeout, &config, any)
            }
            _ => Err(why),
        })?;
        pooler::refuse_shared(&mut client, &config, any)?;
        let read_only = match writable {
            true => None,
            false => Some(server::read_only(&mut client)?),
        };
        configure_session(&mut client, &config)?;
        let ms = timeout.as_millis();
        client
            .batch_execute(&format!("set statement_timeout = {ms}; set lock_timeout = {ms}"))
            .map_err(|why| classify(&why, "setting up the connection"))?;
        Ok((Inspection { client, config }, read_only))
    }

    /// Asks in a read-only transaction, and rolls it back.
    fn ask<T>(
        &mut self,
        question: impl FnOnce(&mut Transaction<'_>, &LedgerConfig) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        let tx = self.client.build_transaction().read_only(true).start();
        let mut tx = tx.map_err(|why| classify(&why, "asking"))?;
        question(&mut tx, &self.config)
    }

    pub fn server(&mut self) -> Result<Server, LedgerError> {
        self.ask(server::server)
    }

    /// Refuses an encoding that would change keys.
    pub fn encoding(&mut self) -> Result<(), LedgerError> {
        start::check_encoding(&mut self.client)
    }

    /// Refuses objects in the schema `sessionizer` that belong to others.
    pub fn owners(&mut self) -> Result<(), LedgerError> {
        self.ask(|tx, _| trust::refuse_foreign(tx))
    }

    /// Whether the schema `sessionizer` exists, or can be created or upgraded.
    pub fn own_schema(&mut self) -> Result<OwnSchema, LedgerError> {
        self.ask(surroundings::own_schema)
    }

    /// Refuses a login that lacks a right on an object of the schema `sessionizer`.
    pub fn own_rights(&mut self) -> Result<(), LedgerError> {
        self.ask(|tx, _| rights::check_rights(tx))
    }

    /// The table; `None` if it is missing and a start may create it.
    pub fn table(&mut self, own_schema: bool) -> Result<Option<Table>, LedgerError> {
        // Another program's table of this name says nothing about the job.
        let there = own_schema && self.ask(|tx, _| has(tx, "jobs"))?;
        let table = self.ask(|tx, config| {
            if there {
                job::check_table_is_there(tx, config)?;
            }
            table::find(tx, config)
        })?;
        if table.is_none() {
            self.ask(surroundings::may_create_table)?;
        }
        Ok(table)
    }

    /// Refuses a login that lacks a right on the table, even one that only a late event needs.
    pub fn table_rights(&mut self, table: &Table) -> Result<(), LedgerError> {
        self.ask(|tx, _| start::check_rights(tx, table))
    }

    /// Refuses row security that applies to the login.
    pub fn row_security(&mut self, table: &Table) -> Result<(), LedgerError> {
        self.ask(|tx, _| rights::refuse_row_security(tx, table))
    }

    /// The triggers that run for rows of the job.
    pub fn triggers(&mut self, table: &Table) -> Result<Triggers, LedgerError> {
        self.ask(|tx, _| surroundings::triggers(tx, table))
    }

    /// The tables whose deletes a publication would refuse.
    pub fn unpublishable(&mut self, table: Option<&Table>) -> Result<Unpublishable, LedgerError> {
        self.ask(|tx, _| surroundings::unpublishable(tx, table))
    }

    /// Advice if the table has another owner, or the login has too many rights.
    pub fn owner_advice(&mut self, table: &Table) -> Result<Vec<Message>, LedgerError> {
        self.ask(|tx, _| rights::advise_on_owners(tx, table, false))
    }

    /// A warning if commits may be lost in a crash.
    pub fn lost_commits(&mut self) -> Result<Option<Message>, LedgerError> {
        self.ask(|tx, _| {
            start::may_lose_commits(tx).map_err(|why| classify(&why, "asking for a setting"))
        })
    }

    /// The instances of the job that are connected: process id and address.
    pub fn running(&mut self) -> Result<Vec<(i32, String)>, LedgerError> {
        self.ask(|tx, config| {
            stopped::running(tx, &config.job).map_err(|why| classify(&why, "looking for instances"))
        })
    }

    /// Who started the job last, and when; `None` if there is no such job.
    pub fn started(&mut self) -> Result<Option<(String, String)>, LedgerError> {
        self.ask(|tx, config| {
            if !has(tx, "jobs")? {
                return Ok(None);
            }
            let row = tx.query_opt(
                "select started_by, to_char(started_at, 'YYYY-MM-DD HH24:MI:SSOF')
                 from sessionizer.jobs where job = $1",
                &[&config.job],
            );
            let row = row.map_err(|why| classify(&why, "looking for the job"))?;
            Ok(row.map(|row| (row.get(0), row.get(1))))
        })
    }

    /// Compares the job with its settings, and checks that its state is complete. Returns what a
    /// start would find.
    pub fn found(&mut self, table: Option<&Table>) -> Result<Found, LedgerError> {
        let first = peek::peek(&mut self.client, &self.config)?;
        self.ask(|tx, config| {
            // Everything as of one moment: the job may be running.
            tx.batch_execute("set transaction isolation level repeatable read")
                .map_err(|why| classify(&why, "reading what is durable"))?;
            let topics_before = match table {
                Some(table) if has(tx, "jobs")? => job::look(tx, config, table)?.flatten(),
                _ => None,
            };
            let durable = match (&first, table) {
                (None, Some(table)) => {
                    refuse_newer(tx, config)?;
                    durable::check(tx, &config.job, &table.quoted())?;
                    durable::read(tx, &config.job, Fence::default())?
                }
                _ => nothing(),
            };
            Ok(Found { first, durable, topics_before })
        })
    }
}

/// Opens a connection to any server, whether it allows writes or not.
fn any(config: &LedgerConfig) -> Result<Client, LedgerError> {
    dial(config, APPLICATION, TargetSessionAttrs::Any)
}

/// Whether the schema `sessionizer` has this table or view.
fn has(tx: &mut Transaction<'_>, name: &str) -> Result<bool, LedgerError> {
    let name = format!("sessionizer.{name}");
    let there = tx.query_one("select to_regclass($1) is not null", &[&name]);
    there.map(|row| row.get(0)).map_err(|why| classify(&why, "looking for the schema sessionizer"))
}

/// The state of a job that has committed nothing.
fn nothing() -> RecoveredState {
    let (watermark, rules, bindings) = (EventTime::NEVER, None, Vec::new());
    let base = NamedEpoch { epoch: 0, watermark, rules, bindings };
    RecoveredState { fence: Fence::default(), progress: Vec::new(), base, replay: Vec::new() }
}

/// Refuses open sessions that a newer version of the program has saved.
fn refuse_newer(tx: &mut Transaction<'_>, config: &LedgerConfig) -> Result<(), LedgerError> {
    let newest = tx.query_one(
        "select max(case when length(data) > 4 then get_byte(data, 4) end)
         from sessionizer.snapshots where job = $1",
        &[&config.job],
    );
    let newest = newest.map_err(|why| classify(&why, "looking at the open sessions"))?;
    match newest.get::<_, Option<i32>>(0) {
        Some(found) if found > i32::from(snapshot::VERSION) => {
            let problem = format!(
                "the open sessions of the job {} are in format {found}, and this version reads up \
                 to {}",
                config.job,
                snapshot::VERSION
            );
            let remedy = "start it with the newer version that has written them";
            Err(LedgerError::Fatal(Fault::config(Message::new(problem).remedy(": ", remedy))))
        }
        _ => Ok(()),
    }
}
