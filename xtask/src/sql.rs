//! Questions to PostgreSQL. The only file that names its client.
//!
//! Servers here go away and come back, so most questions have a connection of their own.

use std::io::{Read, Write};
use std::time::Duration;

use postgres::{CancelToken, Client, NoTls, SimpleQueryMessage};

use crate::failure::{Failure, Result, While};

/// How to reach a server.
#[derive(Clone)]
pub struct Server {
    /// `host:port`
    pub address: String,
}

pub struct Connection(Client);

impl Server {
    pub fn connect(&self) -> Result<Connection> {
        let url = format!("postgres://postgres@{}/postgres", self.address);
        let mut config: postgres::Config = url.parse().during(&url)?;
        config.connect_timeout(Duration::from_secs(30)).application_name("xtask");
        config.connect(NoTls).map(Connection).map_err(|why| failed(&url, &why))
    }

    /// Runs a statement on a connection of its own.
    pub fn run(&self, sql: &str) -> Result<()> {
        self.connect()?.run(sql)
    }

    /// The first row of a query, on a connection of its own.
    pub fn row<const N: usize>(&self, sql: &str) -> Result<[String; N]> {
        self.connect()?.row(sql)?.ok_or_else(|| Failure(format!("no rows: {sql}")))
    }

    /// The one value of a query, on a connection of its own.
    pub fn value(&self, sql: &str) -> Result<String> {
        Ok(self.row::<1>(sql)?.concat())
    }

    /// The one value of a query, which is a number.
    pub fn number(&self, sql: &str) -> Result<f64> {
        number(&self.value(sql)?)
    }
}

impl Connection {
    /// Runs one or more statements.
    pub fn run(&mut self, sql: &str) -> Result<()> {
        self.0.batch_execute(sql).map_err(|why| failed(sql, &why))
    }

    /// The first row of a query, as text; null is empty.
    pub fn row<const N: usize>(&mut self, sql: &str) -> Result<Option<[String; N]>> {
        let messages = self.0.simple_query(sql).map_err(|why| failed(sql, &why))?;
        let row = messages.into_iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(row.map(|row| std::array::from_fn(|at| row.get(at).unwrap_or_default().to_owned())))
    }

    /// Whether a query gives true. As long as the tables of the job are not there, it does not.
    pub fn holds(&mut self, sql: &str) -> Result<bool> {
        let there = "select to_regclass('sessionizer.balance') is not null";
        Ok(self.row(there)? == Some(["t".to_owned()]) && self.row(sql)? == Some(["t".to_owned()]))
    }

    /// Writes what `copy … to stdout` gives.
    pub fn copy_out(&mut self, sql: &str, to: &mut impl Write) -> Result<()> {
        let mut reader = self.0.copy_out(sql).map_err(|why| failed(sql, &why))?;
        std::io::copy(&mut reader, to).during(sql).map(|_| ())
    }

    /// Reads what `copy … from stdin` takes, and returns the number of rows.
    pub fn copy_in(&mut self, sql: &str, from: &mut impl Read) -> Result<u64> {
        let mut writer = self.0.copy_in(sql).map_err(|why| failed(sql, &why))?;
        std::io::copy(from, &mut writer).during(sql)?;
        writer.finish().map_err(|why| failed(sql, &why))
    }

    /// Ends what the connection is doing, from another thread.
    pub fn canceller(&self) -> Canceller {
        Canceller(self.0.cancel_token())
    }
}

pub struct Canceller(CancelToken);

impl Canceller {
    pub fn cancel(&self) {
        let _ = self.0.cancel_query(NoTls);
    }
}

/// A number that PostgreSQL has written.
pub fn number(text: &str) -> Result<f64> {
    text.parse().during(format!("not a number: {text:?}"))
}

fn failed(what: &str, why: &postgres::Error) -> Failure {
    // The client says `db error`; the server says more.
    match why.as_db_error() {
        Some(error) => Failure(format!("{what}: {}", error.message())),
        None => Failure(format!("{what}: {why}")),
    }
}
