//! Another table beside that of the job, read in the same snapshot: for `compare`.

use postgres::error::{DbError, SqlState};
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::ToSql;
use sessionizer_core::fault::Fault;
use sessionizer_core::key::Key;
use sessionizer_core::session::Span;

use crate::dataflow::ports::LedgerError;
use crate::ledger::audit::AuditSnapshot;
use crate::ledger::copy::Timestamp;
use crate::ledger::errors::classify;
use crate::ledger::{LedgerConfig, SessionEnd, table};

/// A session in any table with the columns of the job's.
const COLUMNS: &str = "ip::text collate \"C\" as ip, host::text collate \"C\" as host,
                       session_start::timestamptz as first, session_end::timestamptz as ended,
                       num_logs::bigint as events";

impl AuditSnapshot {
    /// Finds another table in this database, to compare with, and returns its name. Refuses one
    /// that does not have the columns of sessions.
    pub fn find_beside(&mut self, other: &LedgerConfig) -> Result<String, LedgerError> {
        let failed = |why: postgres::Error| classify(&why, "looking at the other table");
        let refuse = |why: String| Err(LedgerError::Fatal(Fault::config(why)));
        let Some(theirs) = table::qualified_name(&mut *self.client, other)? else {
            return refuse(format!(
                "--against: there is no table {} in this database, or not in the schemas of the \
                 search path: write it as schema.name",
                other.table
            ));
        };
        let is_one = self
            .client
            .query_one("select $1::text::regclass = $2::text::regclass", &[&theirs, &self.table])
            .map_err(failed)?;
        if is_one.get(0) {
            return refuse(format!(
                "--against: {} is the table of the job {} itself",
                other.table, self.job
            ));
        }
        let try_columns = format!("select {COLUMNS} from {theirs} limit 0");
        match self.client.batch_execute(&try_columns) {
            Ok(()) => Ok(theirs),
            Err(why) => match why.code() {
                Some(&SqlState::UNDEFINED_COLUMN | &SqlState::CANNOT_COERCE) => refuse(format!(
                    "--against: the table {} does not have the columns of sessions (ip, host, \
                     session_start, session_end, num_logs): {}",
                    other.table,
                    why.as_db_error().map_or("", DbError::message)
                )),
                _ => Err(failed(why)),
            },
        }
    }

    /// Passes every row of the table and of the table of `other`, as of this moment, to `take`,
    /// until it returns false: visitor by visitor, in order of session_start, with whether it is of
    /// the job's table. The span of either holds its last event; in the other table, that is
    /// session_end less the gap.
    pub fn rows_beside(
        &mut self,
        other: &LedgerConfig,
        mut take: impl FnMut(bool, Key, Span) -> bool,
    ) -> Result<(), LedgerError> {
        let failed = |why: postgres::Error| match why.as_db_error() {
            // Text is cast to times and numbers; the job's own columns need no cast.
            Some(error) if error.code().code().starts_with("22") => {
                LedgerError::Fatal(Fault::config(format!(
                    "--against: the table {} holds a value that is none of a session: {}; compare \
                     with a view that leaves out such rows",
                    other.table,
                    error.message()
                )))
            }
            _ => classify(&why, "reading the two tables"),
        };
        let theirs = self.find_beside(other)?;
        // Times without a zone are in UTC, as everywhere.
        self.client.batch_execute("set local time zone 'UTC'").map_err(failed)?;
        let select = format!(
            "select true as ours, {COLUMNS} from {} union all select false, {COLUMNS} from {theirs}
             order by ip, host, first, ended",
            self.table
        );
        let none: [&(dyn ToSql + Sync); 0] = [];
        let mut rows = self.client.query_raw(&select, none).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let ours: bool = row.get(0);
            let (ip, host): (Option<&str>, Option<&str>) = (row.get(1), row.get(2));
            let (first, end): (Option<Timestamp>, Option<Timestamp>) = (row.get(3), row.get(4));
            let (Some(first), Some(end)) = (first, end) else { continue };
            let ends = if ours { self.session_end } else { SessionEnd::Window };
            let span = Span {
                first: first.0,
                last: ends.last_event(end.0, self.gap),
                count: row.get::<_, Option<i64>>(5).map_or(0, |n| u64::try_from(n).unwrap_or(0)),
            };
            let key = Key::new(ip.unwrap_or_default(), host.unwrap_or_default());
            if !take(ours, key, span) {
                break;
            }
        }
        Ok(())
    }
}
