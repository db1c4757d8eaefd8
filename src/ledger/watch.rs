//! Reads the balance and the last audit for the page and the metrics, on a connection of its own
//! that is kept while somebody watches.

use postgres::Client;

use crate::dataflow::ports::LedgerError;
use crate::ledger::LedgerConfig;
use crate::ledger::audit::Balance;
use crate::ledger::audits::{self, StoredAudit};
use crate::ledger::connect::connect;
use crate::ledger::errors::classify;

/// How often a query is attempted.
const TRIES: usize = 2;

/// Reads the balance of a job repeatedly.
pub struct BalanceWatch {
    config: LedgerConfig,
    client: Option<Client>,
}

impl BalanceWatch {
    /// Connects only at the first read.
    pub fn new(config: &LedgerConfig) -> Self {
        BalanceWatch { config: config.clone(), client: None }
    }

    /// Returns the epoch, in milliseconds since 1970, and the balance as of it; `None` before the
    /// first complete commit.
    pub fn read(&mut self) -> Result<Option<(i64, Balance)>, LedgerError> {
        let mut last = None;
        // A connection that has broken since the last call is replaced.
        for _ in 0..TRIES {
            match self.try_read() {
                Ok(found) => return Ok(found),
                Err(why) => {
                    self.client = None;
                    last = Some(why);
                }
            }
        }
        Err(last.expect("it was tried"))
    }

    /// Returns the last audit of the job, if there was any.
    pub fn last_audit(&mut self) -> Result<Option<StoredAudit>, LedgerError> {
        let job = self.config.job.clone();
        let found = audits::last(self.client()?, &job);
        if found.is_err() {
            self.client = None;
        }
        found.map_err(|why| classify(&why, "reading the last audit"))
    }

    fn client(&mut self) -> Result<&mut Client, LedgerError> {
        if self.client.is_none() {
            let mut client = connect(&self.config)?;
            // These queries must never get in the job's way.
            client
                .batch_execute(
                    "set default_transaction_read_only = on;
                     set lock_timeout = '1s'; set statement_timeout = '5s'",
                )
                .map_err(|why| classify(&why, "reading the balance"))?;
            self.client = Some(client);
        }
        Ok(self.client.as_mut().expect("just connected"))
    }

    fn try_read(&mut self) -> Result<Option<(i64, Balance)>, LedgerError> {
        let job = self.config.job.clone();
        let row = self
            .client()?
            .query_opt(
                "select b.epoch, b.records, b.closed, b.open, b.dead, b.lost, b.difference,
                        b.forgotten
                 from sessionizer.balance b where job = $1",
                &[&job],
            )
            .map_err(|why| classify(&why, "reading the balance"))?;
        Ok(row.map(|row| {
            let balance = Balance {
                records: row.get(1),
                closed: row.get(2),
                open: row.get(3),
                dead: row.get(4),
                lost: row.get(5),
                difference: row.get(6),
                forgotten: row.get(7),
            };
            (row.get(0), balance)
        }))
    }
}
