//! What an audit found, in words: counts, the first differences, what to look at, the verdict.

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use sessionizer_core::audit::{DayDifference, Difference, Findings};
use sessionizer_core::fault::Fault;
use sessionizer_core::key::Shard;
use sessionizer_core::plan::ShardProgress;

use crate::commands::http::{is_hidden, printable};
use crate::ledger::{AuditSnapshot, Balance};
use crate::ui::text::{count, plural};

/// How many shards with wrong counts are shown.
const SHARDS_SHOWN: usize = 10;
/// The width limit of a table, in columns.
const WIDTH: u16 = 100;

/// How many days with differences are shown.
const DAYS_SHOWN: usize = 20;

/// The findings of an audit, with what their report needs.
#[derive(Default)]
pub struct Report {
    /// The name of the table, for people and for SQL.
    pub(super) table: String,
    pub(super) quoted: String,
    /// Events of the topic, without dead letters.
    pub(super) events: u64,
    /// Whether the audit continued from an earlier one.
    pub(super) incremental: bool,
    /// Records of the topic that this audit has read.
    pub(super) records_read: u64,
    /// Rows of the table.
    pub(super) rows: u64,
    pub(super) findings: Findings,
    /// Shards with wrong counts: the recorded progress, and what was found.
    pub(super) totals: Vec<(Shard, ShardProgress, ShardProgress)>,
    pub(super) balance: Option<Balance>,
    /// Why the next start of the job would fail.
    pub(super) next_start: Option<Fault>,
}

impl Report {
    pub(super) fn of(snapshot: &AuditSnapshot, findings: Findings) -> Self {
        Report {
            table: snapshot.table_name(),
            quoted: snapshot.table().to_owned(),
            balance: snapshot.balance,
            totals: wrong_totals(snapshot, &findings.progress),
            findings,
            ..Report::default()
        }
    }

    fn unbalanced(&self) -> i64 {
        self.balance.map_or(0, |balance| balance.difference)
    }

    /// The number of differences of all kinds. If it is zero, [`Self::verdict`] is `Ok`.
    pub(super) fn differences(&self) -> u64 {
        let others = [self.unbalanced() != 0, self.next_start.is_some()];
        let others = others.into_iter().filter(|differs| *differs).count();
        self.findings.differences() + self.totals.len() as u64 + others as u64
    }

    /// One sentence that says that the table is right, or the fault that says what is wrong: first
    /// the rows, then the counts.
    pub fn verdict(&self) -> Result<String, Fault> {
        let found = &self.findings;
        let unbalanced = self.unbalanced();
        let what = if found.differences() > 0 {
            let days = match found.days.len() {
                0 => String::new(),
                days => format!(", {} changed since verified", plural(days, "day")),
            };
            format!(
                "the table {} is not the batch answer: {} missing, {} wrong{days}",
                self.table,
                plural(found.missing, "session"),
                plural(found.wrong, "row")
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
            let sessions = found.right + found.sealed + found.part_of_open + found.joined;
            return Ok(format!(
                "The table equals the batch answer: {} of {}, {} still open.",
                plural(sessions, "session"),
                plural(self.events, "event"),
                count(found.open)
            ));
        };
        Err(Fault::environment(what))
    }

    /// Writes the findings; the verdict is left to the caller.
    pub fn print(&self, out: &mut impl Write) -> io::Result<()> {
        self.print_differences(out)?;
        self.print_days(out)?;
        let found = &self.findings;
        if self.incremental {
            let read = plural(self.records_read, "record");
            writeln!(
                out,
                "Continued from the last audit: read {read}, all others were verified before."
            )?;
        }
        writeln!(out, "Rows of {} and sessions of the topic:", self.table)?;
        line(out, found.right + found.sealed, "rows are right")?;
        for (count, what) in [
            (found.sealed, "of them were verified before: the sums of their days are the same"),
            (found.part_of_open, "rows are parts of sessions that are open again"),
            (found.joined, "rows were there before the job, and it has merged events into them"),
            (found.before, "rows are older than the job and hold none of its events"),
            (found.open, "sessions are still open: their rows come when they close"),
            (found.refused, "sessions are dead letters: the table has refused them (row_refused)"),
        ] {
            if count > 0 {
                line(out, count, what)?;
            }
        }
        line(out, found.missing, "sessions are missing in the table")?;
        line(out, found.wrong, "rows are wrong: they match no session of the topic")?;
        self.print_unverified(out)?;
        self.print_shards(out)?;
        if let Some(balance) = &self.balance {
            print_balance(balance, out)?;
        }
        self.print_next_step(out)
    }

    fn print_differences(&self, out: &mut impl Write) -> io::Result<()> {
        if self.findings.shown.is_empty() {
            return Ok(());
        }
        let mut table = table(&["", "ip", "host", "first event", "last event", "events"]);
        for (difference, key, span) in &self.findings.shown {
            let (ip, host) = key.parts();
            let what = match difference {
                Difference::Missing => "missing",
                Difference::Wrong => "wrong",
            };
            table.add_row([
                what.to_owned(),
                printable(ip),
                printable(host),
                // With a space, at which a narrow table breaks the line.
                span.first.to_string().replace('T', " "),
                span.last.to_string().replace('T', " "),
                count(span.count),
            ]);
        }
        writeln!(out, "{table}")
    }

    fn print_days(&self, out: &mut impl Write) -> io::Result<()> {
        if self.findings.days.is_empty() {
            return Ok(());
        }
        let mut days = table(&["sessions that ended on", "", "rows", "events"]);
        for DayDifference { day, verified, found } in self.findings.days.iter().take(DAYS_SHOWN) {
            for (what, sums) in [("verified before", verified), ("in the table now", found)] {
                days.add_row([
                    day.to_string(),
                    what.to_owned(),
                    signed(sums.rows),
                    signed(sums.events),
                ]);
            }
        }
        writeln!(out, "Days whose rows have changed since they were verified:\n{days}")
    }

    /// Reports what was not compared, and why.
    fn print_unverified(&self, out: &mut impl Write) -> io::Result<()> {
        let found = &self.findings;
        let removed: i64 = found.removed.iter().map(|(_, rows)| rows).sum();
        if let Some(newest) = found.removed.iter().map(|(day, _)| *day).max() {
            let what =
                format!("rows up to {newest} are gone, as are all older ones: removed on purpose");
            line(out, removed.unsigned_abs(), &what)?;
        }
        if let Some(DayDifference { day, verified, found }) = &found.thinned {
            let gone = (verified.rows - found.rows).unsigned_abs();
            line(
                out,
                gone,
                &format!("rows of {day}, the oldest day left, were removed with them"),
            )?;
        }
        if found.unverifiable > 0 {
            let what = "rows cannot be verified: they hold late events and others that Kafka lacks";
            line(out, found.unverifiable, what)?;
        }
        if !found.sealed_anew.is_empty() {
            let rows: i64 = found.sealed_anew.iter().map(|(_, rows)| rows).sum();
            let days = plural(found.sealed_anew.len(), "day");
            let what = format!("rows of {days} with such rows are accepted unverified");
            line(out, rows.unsigned_abs(), &what)?;
        }
        Ok(())
    }

    fn print_shards(&self, out: &mut impl Write) -> io::Result<()> {
        // Where rows are wrong, so are the counts.
        if self.totals.is_empty() || self.findings.differences() > 0 {
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

    /// Suggests what to look at if something is wrong.
    fn print_next_step(&self, out: &mut impl Write) -> io::Result<()> {
        if let Some((_, key, _)) = self.findings.shown.first() {
            let (ip, host) = key.parts();
            return writeln!(
                out,
                "Look at the rows of the first difference:\n  select * from {}\n  where ip = {} and \
                 host = {} order by session_start;\nDid anything other than the job write to this \
                 table? If not, please report it.",
                self.quoted,
                literal(ip),
                literal(host)
            );
        }
        if let Some(difference) = self.findings.days.first() {
            let (day, next) = (difference.day, difference.day.next());
            return writeln!(
                out,
                "sessionizer audit --full names the rows, while Kafka has their events. Those of that \
                 day:\n  select * from {}\n  where session_end >= '{day}' and session_end < '{next}';",
                self.quoted
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

/// The shards whose recorded counts differ from those that were found.
fn wrong_totals(
    snapshot: &AuditSnapshot,
    found: &[ShardProgress],
) -> Vec<(Shard, ShardProgress, ShardProgress)> {
    let compare = |(at, recorded): (usize, &ShardProgress)| {
        let mut found = ShardProgress { epoch: recorded.epoch, ..found[at] };
        if snapshot.found_rows {
            // Rows from before the job count events that the job does not know.
            let both = found.closed + found.open;
            found.closed = recorded.closed;
            found.open = both.saturating_sub(recorded.closed);
        }
        (found != *recorded).then_some((Shard(at as u32), *recorded, found))
    };
    snapshot.shards.iter().enumerate().filter_map(compare).collect()
}

/// A count that is negative if sums contradict each other.
fn signed(n: i64) -> String {
    format!("{}{}", if n < 0 { "-" } else { "" }, count(n.unsigned_abs()))
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
/// A literal of SQL that a terminal shows as it is.
fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if !text.contains(is_hidden) {
        return format!("'{quoted}'");
    }
    let escaped = quoted.replace('\\', r"\\").chars().fold(String::new(), |mut all, c| {
        match is_hidden(c) {
            true => all.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => all.push(c),
        }
        all
    });
    format!("E'{escaped}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_shows_what_a_terminal_would_obey() {
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"back\slash"), r"'back\slash'");
        let (escape, turned) = ("\u{1b}[31m'\\", "a\u{202e}b");
        assert_eq!(literal(escape), r"E'\u001b[31m''\\'");
        assert_eq!(literal(turned), r"E'a\u202eb'");
        assert_eq!(printable(turned), "a\u{fffd}b");
    }
}
