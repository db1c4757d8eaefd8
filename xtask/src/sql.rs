//! Queries to PostgreSQL. The only file that names the client library.
//!
//! Servers go away and come back here, so most queries use a new connection.

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

    /// Runs a statement on a new connection.
    pub fn run(&self, sql: &str) -> Result<()> {
        self.connect()?.run(sql)
    }

    /// The first row of a query, on a new connection.
    pub fn row<const N: usize>(&self, sql: &str) -> Result<[String; N]> {
        self.connect()?.row(sql)?.ok_or_else(|| Failure(format!("no rows: {sql}")))
    }

    /// The single value of a query, on a new connection.
    pub fn value(&self, sql: &str) -> Result<String> {
        Ok(self.row::<1>(sql)?.concat())
    }

    /// The single value of a query, as a number.
    pub fn number(&self, sql: &str) -> Result<f64> {
        number(&self.value(sql)?)
    }
}

impl Connection {
    /// Runs one or more statements.
    pub fn run(&mut self, sql: &str) -> Result<()> {
        self.0.batch_execute(sql).map_err(|why| failed(sql, &why))
    }

    /// The first row of a query as text; null becomes an empty string.
    pub fn row<const N: usize>(&mut self, sql: &str) -> Result<Option<[String; N]>> {
        let messages = self.0.simple_query(sql).map_err(|why| failed(sql, &why))?;
        let row = messages.into_iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(row.map(|row| std::array::from_fn(|at| row.get(at).unwrap_or_default().to_owned())))
    }

    /// The first column of each row of a query.
    pub fn rows(&mut self, sql: &str) -> Result<Vec<String>> {
        let messages = self.0.simple_query(sql).map_err(|why| failed(sql, &why))?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// Whether a query returns true. It is false while the tables of the job do not exist.
    pub fn holds(&mut self, sql: &str) -> Result<bool> {
        let there = "select to_regclass('sessionizer.balance') is not null";
        Ok(self.row(there)? == Some(["t".to_owned()]) && self.row(sql)? == Some(["t".to_owned()]))
    }

    /// Writes the output of `copy … to stdout` to a file.
    pub fn copy_out(&mut self, sql: &str, to: &mut impl Write) -> Result<()> {
        let mut reader = self.0.copy_out(sql).map_err(|why| failed(sql, &why))?;
        std::io::copy(&mut reader, to).during(sql).map(|_| ())
    }

    /// Runs `copy … from stdin` with a file, and returns the number of rows.
    pub fn copy_in(&mut self, sql: &str, from: &mut impl Read) -> Result<u64> {
        let mut writer = self.0.copy_in(sql).map_err(|why| failed(sql, &why))?;
        std::io::copy(from, &mut writer).during(sql)?;
        writer.finish().map_err(|why| failed(sql, &why))
    }

    /// Cancels the running query, from another thread.
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

/// Parses a number from PostgreSQL.
pub fn number(text: &str) -> Result<f64> {
    text.parse().during(format!("not a number: {text:?}"))
}

fn failed(what: &str, why: &postgres::Error) -> Failure {
    // The client's own message is `db error`; the server's says more.
    match why.as_db_error() {
        Some(error) => Failure(format!("{what}: {}", error.message())),
        None => Failure(format!("{what}: {why}")),
    }
}
