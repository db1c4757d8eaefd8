//! Writes the rows of sessions. The table belongs to the user, so it may refuse any of them.
//!
//! Nearly always it takes them all, in one COPY. If it refuses one, the transaction is rolled back
//! and repeated carefully: a bisection, in savepoints, isolates the rows that cannot be stored.
//! Each becomes a dead letter in the same transaction, and its records move from `closed` to
//! `dead`; so the decision is made once, whatever crashes.

use postgres::Transaction;
use postgres::error::DbError;
use sessionizer_core::fault::Fault;
use sessionizer_core::key::Key;
use sessionizer_core::session::Span;

use crate::dataflow::ports::LedgerError;
use crate::ledger::LedgerConfig;
use crate::ledger::commit::Statements;
use crate::ledger::commit::steps::copy_in;
use crate::ledger::copy::CopyError;
use crate::ledger::errors::classify;
use crate::ledger::table::Table;

/// After this many refused rows in a run, and none stored, the table counts as unusable.
pub(super) const MAX_REFUSED_WITHOUT_STORED: u64 = 1_000;
/// How many of the remaining rows to sample before giving up: none of them may be storable either.
const SAMPLE_ROWS: usize = 100;

/// Why rows were not written.
#[derive(Debug)]
pub(in crate::ledger) enum Failed {
    /// A failure that has nothing to do with their contents.
    Ledger(LedgerError),
    /// The table refuses at least one of them.
    Refused(Refusal),
}

impl From<LedgerError> for Failed {
    fn from(error: LedgerError) -> Self {
        Failed::Ledger(error)
    }
}

/// Why the server refuses a row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::ledger) struct Refusal {
    /// The SQLSTATE; empty if the server reported no error.
    pub code: String,
    pub message: String,
    /// The column at fault, if known.
    pub column: Option<String>,
    kind: RefusalKind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum RefusalKind {
    /// The server reported an error.
    Error,
    /// A row was not stored, or not found again, without an error.
    Silent,
    /// A row was stored with other values.
    Change,
}

impl Refusal {
    /// Returns `None` if the error is not about a row.
    fn of(error: &postgres::Error) -> Option<Self> {
        let db = error.as_db_error()?;
        may_concern_a_row(db.code().code()).then(|| Refusal {
            code: db.code().code().to_owned(),
            message: describe(db),
            column: db.column().map(str::to_owned).or_else(|| column_in(db.where_()?)),
            kind: RefusalKind::Error,
        })
    }

    /// A refusal without an error from the server.
    pub(in crate::ledger) fn silent(message: String) -> Self {
        Refusal { code: String::new(), message, column: None, kind: RefusalKind::Silent }
    }

    pub(in crate::ledger) fn of_a_trial() -> Self {
        Refusal::silent("a trial".to_owned())
    }

    /// Whether a row was stored with other values.
    pub(in crate::ledger) fn is_change(&self) -> bool {
        self.kind == RefusalKind::Change
    }

    /// Whether this looks like a fault of the table that affects every row: rows silently kept out,
    /// or a trigger whose function cannot run. Constraints, and errors that a trigger raises
    /// itself, may concern only this row.
    pub(in crate::ledger) fn is_of_the_table(&self) -> bool {
        self.kind != RefusalKind::Error || self.code.starts_with("42")
    }

    /// Returns what the user can do to store such a row.
    pub(in crate::ledger) fn remedy(&self, table: &str) -> String {
        match (&*self.code, &self.column) {
            ("22001", Some(column)) => {
                format!("To store such rows: alter table {table} alter column {column} type text;")
            }
            ("23514", _) if self.message.contains("partition") => format!(
                "To store such rows, add a partition for them, or: create table ... partition of \
                 {table} default;"
            ),
            ("54000", _) => format!(
                "To store such rows, drop the index of {table} named above, or replace it by one over \
                 md5(...)"
            ),
            _ => format!("To store such rows, change what refuses them in {table}"),
        }
    }
}

/// Joins the message, detail and hint of the server, without the full stop at the end.
fn describe(db: &DbError) -> String {
    let mut text = format!("{} ({})", db.message(), db.code().code());
    for more in [db.detail(), db.hint()].into_iter().flatten() {
        text.push_str("; ");
        text.push_str(more.trim_end_matches('.'));
    }
    text
}

/// Finds the column in the context of an error: `COPY visits, line 3, column ip`.
fn column_in(context: &str) -> Option<String> {
    let line = context.lines().find(|line| line.starts_with("COPY "))?;
    let (_, column) = line.rsplit_once(", column ")?;
    Some(column.split(':').next().unwrap_or(column).trim_matches('"').to_owned())
}

/// Whether an error with this code, raised while rows are written or deleted, may concern one of
/// them. A trigger can raise any code, so this excludes only those that the server itself uses for
/// something else: connection, transaction, rights, resources, operator intervention, internal
/// error.
fn may_concern_a_row(code: &str) -> bool {
    const OTHERS: [&str; 17] = [
        "08", "0A", "25", "26", "28", "2D", "3D", "3F", "40", "53", "55", "57", "58", "72", "F0",
        "HV", "XX",
    ];
    !OTHERS.iter().any(|class| code.starts_with(class)) && !["42501", "54001"].contains(&code)
}

/// What a savepoint keeps of a successful attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::ledger) enum Keep {
    Written,
    Nothing,
}

/// Everything that writing rows needs.
#[derive(Clone, Copy)]
pub(in crate::ledger) struct Target<'a> {
    pub config: &'a LedgerConfig,
    pub table: &'a Table,
    pub found_rows: bool,
    pub statements: &'a Statements,
}

impl Target<'_> {
    /// Writes rows, all or nothing.
    pub(in crate::ledger) fn copy(
        &self,
        tx: &mut Transaction<'_>,
        rows: &[(&Key, Span)],
    ) -> Result<(), Failed> {
        let copy = format!(
            "copy {} (ip, host, session_start, session_end, num_logs) from stdin (format binary)",
            self.table.quoted()
        );
        let (gap, end) = (self.config.gap, self.config.session_end);
        let written = copy_in(tx, &copy, |copy| {
            for (key, span) in rows {
                let (ip, host) = key.parts();
                copy.row(5)?;
                copy.text(ip);
                copy.text(host);
                copy.time(span.first);
                copy.time(end.of(span, gap));
                copy.int8(span.count as i64);
            }
            Ok(())
        });
        match written {
            Ok(written) if written == rows.len() as u64 => {}
            Ok(written) => {
                return Err(Failed::Refused(Refusal::silent(format!(
                    "Postgres has stored {written} of {} without an error: a trigger of {} keeps \
                     rows out",
                    crate::ui::text::plural(rows.len(), "row"),
                    self.table.shown
                ))));
            }
            Err(error) => return Err(self.failed(error)),
        }
        if self.table.rewritten && !rows.is_empty() && self.count(tx, rows)? < rows.len() as i64 {
            let message = format!(
                "a trigger of {} has changed the row, so that it would not be found again",
                self.table.shown
            );
            let refusal = Refusal { kind: RefusalKind::Change, ..Refusal::silent(message) };
            return Err(Failed::Refused(refusal));
        }
        Ok(())
    }

    fn failed(&self, error: CopyFailed) -> Failed {
        match error {
            CopyFailed::Begin(error) => Failed::Ledger(error),
            CopyFailed::Rows(error) => match error.postgres() {
                Some(why) => self.failed_at(why, "copying rows"),
                None => Failed::Ledger(LedgerError::retry(format!("copying rows: {error:?}"))),
            },
        }
    }

    /// Classifies an error that occurred while rows were written or deleted.
    pub(in crate::ledger) fn failed_at(&self, why: &postgres::Error, doing: &str) -> Failed {
        match Refusal::of(why) {
            Some(refusal) if self.is_foreign_writer(why) => {
                Failed::Ledger(LedgerError::Fatal(Fault::config(format!(
                    "Postgres refuses: {doing}: {}; a session that this job has just closed is in \
                     {} already: somebody else writes it, and a table belongs to one job",
                    refusal.message, self.table.shown
                ))))
            }
            Some(refusal) => Failed::Refused(refusal),
            None => Failed::Ledger(classify(why, doing)),
        }
    }

    /// Whether our own key is already there: then somebody else writes the table. Other unique
    /// indexes may constrain anything.
    fn is_foreign_writer(&self, why: &postgres::Error) -> bool {
        let detail = why.as_db_error().and_then(DbError::detail).unwrap_or("");
        why.code() == Some(&postgres::error::SqlState::UNIQUE_VIOLATION)
            && detail.contains("(ip, host, session_start)=(")
    }

    /// Runs `act` in a savepoint and checks deferred constraints there as well. A refused row
    /// leaves no trace.
    pub(in crate::ledger) fn attempt<T>(
        &self,
        tx: &mut Transaction<'_>,
        keep: Keep,
        act: impl FnOnce(&mut Transaction<'_>) -> Result<T, Failed>,
    ) -> Result<Result<T, Refusal>, LedgerError> {
        let failed = |why: postgres::Error| classify(&why, "setting a savepoint");
        let mut savepoint = tx.transaction().map_err(failed)?;
        let done = act(&mut savepoint).and_then(|done| {
            let immediate = savepoint.batch_execute("set constraints all immediate");
            immediate.map_err(|why| self.failed_at(&why, "checking constraints"))?;
            Ok(done)
        });
        match done {
            Ok(done) if keep == Keep::Nothing => {
                savepoint.rollback().map_err(failed)?;
                Ok(Ok(done))
            }
            Ok(done) => {
                savepoint.batch_execute("set constraints all deferred").map_err(failed)?;
                savepoint.commit().map_err(failed)?;
                Ok(Ok(done))
            }
            Err(Failed::Refused(refusal)) => {
                savepoint.rollback().map_err(failed)?;
                Ok(Err(refusal))
            }
            Err(Failed::Ledger(error)) => Err(error),
        }
    }
}

/// How a COPY failed.
pub(super) enum CopyFailed {
    /// Before the first row.
    Begin(LedgerError),
    Rows(CopyError),
}

impl From<CopyFailed> for LedgerError {
    fn from(error: CopyFailed) -> Self {
        match error {
            CopyFailed::Begin(error) => error,
            CopyFailed::Rows(error) => match error.postgres() {
                Some(why) => classify(why, "copying rows"),
                None => LedgerError::retry(format!("copying rows: {error:?}")),
            },
        }
    }
}

/// Whether a run has stored any row, and how many the table has refused.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Tried {
    pub stored: bool,
    pub refused: u64,
}

/// Writes the rows that the table accepts, and returns the others with the reason. `write` writes
/// some of them in a savepoint. If the table refuses them, it is tried with each half, until the
/// row that is refused is alone.
pub(super) fn write_bisecting<'t, T>(
    all: &'t [T],
    tried: &mut Tried,
    table: &Table,
    mut write: impl FnMut(&'t [T], Keep) -> Result<Result<(), Refusal>, LedgerError>,
) -> Result<Vec<(&'t T, Refusal)>, LedgerError> {
    let mut refused = Vec::new();
    let mut parts = vec![all];
    while let Some(part) = parts.pop() {
        match write(part, Keep::Written)? {
            Ok(()) => tried.stored |= !part.is_empty(),
            Err(refusal) if part.len() <= 1 => {
                tried.refused += 1;
                if !tried.stored && tried.refused >= MAX_REFUSED_WITHOUT_STORED {
                    // Refused rows may be neighbours: sample the rest before giving up.
                    let left: Vec<&[T]> = parts.iter().flat_map(|part| part.chunks(1)).collect();
                    let step = left.len().div_ceil(SAMPLE_ROWS).max(1);
                    for one in left.into_iter().step_by(step) {
                        tried.stored |= write(one, Keep::Nothing)?.is_ok();
                    }
                    if !tried.stored {
                        return Err(refuses_everything(table, &refusal));
                    }
                }
                refused.extend(part.first().map(|one| (one, refusal)));
            }
            Err(_) => {
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([second, first]);
            }
        }
    }
    Ok(refused)
}

fn refuses_everything(table: &Table, refusal: &Refusal) -> LedgerError {
    LedgerError::Fatal(Fault::config(format!(
        "the table {} has refused the first {MAX_REFUSED_WITHOUT_STORED} rows of this run and \
         stored none: {}. {}; then start again: the job writes the rows of this transaction again",
        table.shown,
        refusal.message,
        refusal.remedy(&table.shown)
    )))
}
