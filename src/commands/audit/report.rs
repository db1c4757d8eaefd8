//! What an audit found, in words: counts, the first differences, what to look at, the verdict.

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use sessionizer_core::fault::Fault;
use sessionizer_core::key::{Key, Shard};
use sessionizer_core::plan::ShardProgress;
use sessionizer_core::session::Span;

use crate::ledger::{Balance, Moment};
use crate::ui::text::{count, plural};

/// How many shards with wrong counts are shown.
const SHARDS_SHOWN: usize = 10;
/// The width limit of a table, in columns.
const WIDTH: u16 = 100;

/// How a row and the batch answer differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Difference {
    /// A session of the batch answer has no row.
    Missing,
    /// A row is not a session of the batch answer.
    Wrong,
}

/// What the audit found.
#[derive(Default)]
pub struct Report {
    /// The name of the table, for people and for SQL.
    pub(super) table: String,
    pub(super) quoted: String,
    /// Events of the topic that count.
    pub(super) events: u64,
    /// Rows that are sessions of the batch answer.
    pub(super) right: u64,
    /// Rows that are part of a session that is open again.
    pub(super) part_of_open: u64,
    /// Open sessions: their rows are written when they close.
    pub(super) open: u64,
    /// If the table had rows before the job: rows that hold events from both.
    pub(super) joined: u64,
    /// If the table had rows before the job: rows that hold no event of the job.
    pub(super) before: u64,
    /// Sessions that are dead letters, in whole or in part, because the table refused them.
    pub(super) refused: u64,
    pub(super) missing_count: u64,
    pub(super) wrong_count: u64,
    /// The first differences.
    pub(super) shown: Vec<(Difference, Key, Span)>,
    /// Shards with wrong counts: the recorded progress, and what was found.
    pub(super) totals: Vec<(Shard, ShardProgress, ShardProgress)>,
    pub(super) balance: Option<Balance>,
    /// Why the next start of the job would fail.
    pub(super) next_start: Option<Fault>,
}

impl Report {
    pub(super) fn of(moment: &Moment) -> Self {
        Report {
            table: moment.table_name(),
            quoted: moment.table().to_owned(),
            balance: moment.balance,
            ..Report::default()
        }
    }

    /// One sentence that says that the table is right, or the fault that says what is wrong: first
    /// the rows, then the counts.
    pub fn verdict(&self) -> Result<String, Fault> {
        let differences = self.missing_count + self.wrong_count;
        let unbalanced = self.balance.map_or(0, |balance| balance.difference);
        let what = if differences > 0 {
            format!(
                "the table {} is not the batch answer: {} missing, {} wrong",
                self.table,
                plural(self.missing_count, "session"),
                plural(self.wrong_count, "row")
            )
        } else if !self.totals.is_empty() {
            format!(
                "the rows are right, but the counts of {} in sessionizer.shard_progress are not",
                plural(self.totals.len(), "shard")
            )
        } else if unbalanced != 0 {
            format!(
                "the rows are right, but sessionizer.balance shows a difference of {unbalanced} \
                 records: its counts in sessionizer.epochs or sessionizer.bindings were changed"
            )
        } else if let Some(fault) = &self.next_start {
            return Err(fault.clone());
        } else {
            return Ok(format!(
                "The table equals the batch answer: {} of {}, {} still open.",
                plural(self.right + self.part_of_open + self.joined, "session"),
                plural(self.events, "event"),
                count(self.open)
            ));
        };
        Err(Fault::Environment(what))
    }

    /// Writes what was found; the verdict is left to the caller.
    pub fn print(&self, out: &mut impl Write) -> io::Result<()> {
        self.print_differences(out)?;
        writeln!(out, "Rows of {} and sessions of the topic:", self.table)?;
        line(out, self.right, "rows are right")?;
        for (count, what) in [
            (self.part_of_open, "rows are parts of sessions that are open again"),
            (self.joined, "rows were there before the job, and it has merged events into them"),
            (self.before, "rows are older than the job, and of no event that it has read"),
            (self.open, "sessions are still open: their rows come when they close"),
            (self.refused, "sessions are dead letters: the table has refused them (row_refused)"),
        ] {
            if count > 0 {
                line(out, count, what)?;
            }
        }
        line(out, self.missing_count, "sessions are missing in the table")?;
        line(out, self.wrong_count, "rows are wrong: no session of the topic is like that")?;
        self.print_shards(out)?;
        if let Some(balance) = &self.balance {
            print_balance(balance, out)?;
        }
        self.print_next_step(out)
    }

    fn print_differences(&self, out: &mut impl Write) -> io::Result<()> {
        if self.shown.is_empty() {
            return Ok(());
        }
        let mut table = table(&["", "ip", "host", "first event", "last event", "events"]);
        for (difference, key, span) in &self.shown {
            let (ip, host) = key.parts();
            let what = match difference {
                Difference::Missing => "missing",
                Difference::Wrong => "wrong",
            };
            table.add_row([
                what.to_owned(),
                ip.to_owned(),
                host.to_owned(),
                // With a space, at which a narrow table breaks the line.
                span.first.to_string().replace('T', " "),
                span.last.to_string().replace('T', " "),
                count(span.count),
            ]);
        }
        writeln!(out, "{table}")
    }

    fn print_shards(&self, out: &mut impl Write) -> io::Result<()> {
        // Where rows are wrong, so are the counts.
        if self.totals.is_empty() || self.missing_count + self.wrong_count > 0 {
            return Ok(());
        }
        let mut shards =
            table(&["shard", "records", "in closed sessions", "in open sessions", "dead letters"]);
        for (shard, recorded, found) in self.totals.iter().take(SHARDS_SHOWN) {
            for (what, of) in [("counted by the job", recorded), ("found by the audit", found)] {
                shards.add_row([
                    shard.0.to_string(),
                    what.to_owned(),
                    count(of.closed),
                    count(of.open),
                    count(of.dead),
                ]);
            }
        }
        writeln!(out, "Shards whose counts of records are wrong:\n{shards}")
    }

    /// What to look at if something is wrong.
    fn print_next_step(&self, out: &mut impl Write) -> io::Result<()> {
        if let Some((_, key, _)) = self.shown.first() {
            let (ip, host) = key.parts();
            let quote = |text: &str| format!("'{}'", text.replace('\'', "''"));
            return writeln!(
                out,
                "Look at the rows of the first difference:\n  select * from {}\n  where ip = {} and \
                 host = {} order by session_start;\nDid anything else than the job write to this \
                 table? If not, please report it.",
                self.quoted,
                quote(ip),
                quote(host)
            );
        }
        if self.verdict().is_err() {
            writeln!(
                out,
                "Did anybody change the tables of the schema sessionizer, or restore them in part? \
                 If not,\nplease report it."
            )?;
        }
        Ok(())
    }
}

/// A count and what it counts, in columns.
fn line(out: &mut impl Write, n: u64, what: &str) -> io::Result<()> {
    writeln!(out, "{:>15}  {what}", count(n))
}

fn print_balance(balance: &Balance, out: &mut impl Write) -> io::Result<()> {
    let Balance { records, closed, open, dead, lost, forgotten, difference } = balance;
    writeln!(out, "Records that the job has read:")?;
    writeln!(out, "{:>15}  records, of them", count(*records))?;
    writeln!(out, "{:>15}  in closed sessions", count(*closed))?;
    writeln!(out, "{:>15}  in open sessions", count(*open))?;
    writeln!(out, "{:>15}  dead letters", count(*dead))?;
    if *lost != 0 {
        writeln!(out, "{:>15}  lost in Kafka, and accepted", count(*lost))?;
    }
    if *forgotten != 0 {
        writeln!(out, "{:>15}  of visitors that were forgotten", count(*forgotten))?;
    }
    writeln!(out, "{difference:>15}  unaccounted for")
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    let width = table.width().unwrap_or(WIDTH).min(WIDTH);
    table.set_width(width);
    table.set_header(header.iter().copied());
    table
}
