//! Late sessions: finds the rows they touch, merges both in a pure function, and replaces the rows.

use std::collections::HashSet;

use postgres::{GenericClient, Statement, Transaction};
use sessionizer_core::fault::Fault;
use sessionizer_core::key::Key;
use sessionizer_core::session::correction::{Correction, correct};
use sessionizer_core::session::{Closed, Span};
use sessionizer_core::time::EventTime;

use crate::dataflow::ports::{LedgerError, Outcome};
use crate::ledger::commit::Commit;
use crate::ledger::commit::rows;
use crate::ledger::commit::rows::{Failed, Keep, Refusal, Target};
use crate::ledger::copy::Timestamp;
use crate::ledger::errors::classify;
use crate::ledger::table::Table;

/// How many late sessions one query looks up.
const LATE_PER_QUERY: usize = 10_000;

/// The largest `num_logs` that this program accepts in a row: sums of them must not overflow.
const MAX_NUM_LOGS: i64 = 1 << 50;

pub(super) struct LateStatements {
    touching: Statement,
    delete: Statement,
}

impl LateStatements {
    pub(super) fn prepare(
        client: &mut impl GenericClient,
        table: &Table,
        found_rows: bool,
    ) -> Result<Self, postgres::Error> {
        let (name, time) = (table.quoted(), table.time_type);
        Ok(LateStatements {
            touching: client.prepare(&touching(table, found_rows))?,
            // Rows written by other programs may have times more precise than the milliseconds that
            // we read.
            delete: client.prepare(&format!(
                "delete from {name} r
                 using unnest($1::text[], $2::text[], $3::{time}[], $4::{time}[])
                       k(ip, host, session_start, session_end)
                 where r.ip = k.ip and r.host = k.host
                       and r.session_start >= k.session_start
                       and r.session_start < k.session_start + interval '1 ms'
                       and r.session_end >= k.session_end
                       and r.session_end < k.session_end + interval '1 ms'"
            ))?,
        })
    }
}

/// The query for the rows that touch any of the spans `k`. Our own rows do not touch each other, so
/// of those that begin before a span only the last can touch it: two index lookups find them,
/// however many sessions a visitor has had. Rows written by other programs may overlap, so all of
/// them are examined, as they are if there is no index.
fn touching(table: &Table, found_rows: bool) -> String {
    let name = table.quoted();
    let rows = if table.keyed && !found_rows {
        let of_key = format!(
            "select ip, host, session_start, session_end, num_logs, tableoid, ctid
             from {name} where (ip, host) = (k.ip, k.host)"
        );
        format!(
            "cross join lateral (
                 ({of_key} and session_start >= k.low and session_start <= k.high)
                 union all
                 ({of_key} and session_start < k.low order by session_start desc limit 1)
             ) r"
        )
    } else {
        format!("join {name} r on (r.ip, r.host) = (k.ip, k.host) and r.session_start <= k.high")
    };
    format!(
        "select distinct on (r.tableoid, r.ctid)
                r.ip::text, r.host::text, r.session_start, r.session_end,
                coalesce(r.num_logs, 0)
         from unnest($1::text[], $2::text[], $3::{time}[], $4::{time}[])
              k(ip, host, low, high)
         {rows}
         where r.session_end >= k.low",
        time = table.time_type,
    )
}

impl Commit<'_> {
    /// Merges late sessions with the rows they touch, and adds the corrections to the outcome.
    pub(super) fn late(&mut self, late: &[&Closed], outcome: &mut Outcome) -> Result<(), Failed> {
        if late.is_empty() {
            return Ok(());
        }
        if self.target.table.keyed {
            // The server keeps the plan, which may date from when the table had a single page.
            let set = self.tx.batch_execute("set local enable_seqscan = off");
            set.map_err(|why| classify(&why, "preparing for late events"))?;
        }
        let late: Vec<(Key, Span)> =
            late.iter().map(|closed| (closed.key.clone(), closed.span)).collect();
        for late in late.chunks(LATE_PER_QUERY) {
            if self.careful {
                self.merge_bisecting(late, outcome)?;
            } else {
                outcome.corrections.extend(self.target.merge(&mut self.tx, late)?);
            }
        }
        Ok(())
    }

    fn merge_bisecting(
        &mut self,
        late: &[(Key, Span)],
        outcome: &mut Outcome,
    ) -> Result<(), LedgerError> {
        let (target, tx) = (self.target, &mut self.tx);
        let mut corrections = Vec::new();
        let refused = rows::write_bisecting(late, &mut self.tried, target.table, |part, keep| {
            let merged = target.attempt(tx, keep, |tx| target.merge(tx, part))?;
            Ok(merged.map(|merged| match keep {
                Keep::Written => corrections.extend(merged),
                Keep::Nothing => {}
            }))
        })?;
        outcome.corrections.extend(corrections);
        for ((key, span), refusal) in refused {
            self.refuse(key, *span, true, refusal, outcome);
        }
        Ok(())
    }
}

impl Target<'_> {
    /// Merges late sessions with the rows they touch; returns the corrections.
    pub(in crate::ledger) fn merge(
        &self,
        tx: &mut Transaction<'_>,
        late: &[(Key, Span)],
    ) -> Result<Vec<Correction>, Failed> {
        let mut rows = self.touching(tx, late)?;
        let mut corrections = correct(late.to_vec(), rows.clone(), self.config.gap);
        if self.found_rows {
            // Rows written by other programs may touch each other: look again with the merged
            // spans.
            loop {
                let grown: Vec<(Key, Span)> = corrections
                    .iter()
                    .flat_map(|c| c.added.iter().map(|span| (c.key.clone(), *span)))
                    .collect();
                let more = self.touching(tx, &grown)?;
                if more.len() <= rows.len() {
                    break;
                }
                rows = more;
                corrections = correct(late.to_vec(), rows.clone(), self.config.gap);
            }
        }
        let removed: Vec<(Key, Span)> = corrections
            .iter()
            .flat_map(|c| c.removed.iter().map(|span| (c.key.clone(), *span)))
            .collect();
        if !removed.is_empty() {
            self.delete(tx, &removed)?;
        }
        let added: Vec<(&Key, Span)> =
            corrections.iter().flat_map(|c| c.added.iter().map(|span| (&c.key, *span))).collect();
        self.copy(tx, &added)?;
        Ok(corrections)
    }

    /// Returns the rows that touch any of these spans; fails if one has another key.
    pub(in crate::ledger) fn touching(
        &self,
        tx: &mut Transaction<'_>,
        spans: &[(Key, Span)],
    ) -> Result<Vec<(Key, Span)>, LedgerError> {
        let (gap, end) = (self.config.gap, self.config.session_end);
        // touches: row.first <= span.last + gap and span.first <= row.last + gap; the stored
        // end lies `end_ms` after the row's last event.
        let end_ms = end.of(&Span::event(EventTime::from_millis(0)), gap).millis();
        let columns = Columns::of(
            spans,
            |span| span.first.plus(end_ms - gap.millis()),
            |span| gap.end_after(span.last),
        );
        let rows = tx
            .query(&self.statements.late.touching, &columns.parameters())
            .map_err(|why| classify(&why, "finding the rows that late events touch"))?;
        let keys: HashSet<&Key> = spans.iter().map(|(key, _)| key).collect();
        let span = |row: &postgres::Row| {
            let (first, last): (Timestamp, Timestamp) = (row.get(2), row.get(3));
            let last = end.last_event(last.0, gap);
            let (ip, host): (&str, &str) = (row.get(0), row.get(1));
            let (key, count) = (Key::new(ip, host), row.get::<_, i64>(4));
            // Do not trust the table: its columns may be changed while the job runs.
            if !(0..=MAX_NUM_LOGS).contains(&count) {
                let what = format!("num_logs = {count} in the row of ip {ip:?} and host {host:?}");
                return Err(self.foreign(&what));
            }
            if !keys.contains(&key) {
                let what = format!("ip {ip:?} and host {host:?} are found for another key");
                return Err(self.foreign(&what));
            }
            Ok((key, Span { first: first.0, last, count: count as u64 }))
        };
        rows.iter().map(span).collect()
    }

    fn foreign(&self, what: &str) -> LedgerError {
        LedgerError::Fatal(Fault::config(format!(
            "the table {} holds a value that this program does not write: {what}. Was the row, or \
             the type or collation of a column, changed by hand?",
            self.table.shown
        )))
    }

    /// Deletes rows that were just read.
    fn delete(&self, tx: &mut Transaction<'_>, removed: &[(Key, Span)]) -> Result<(), Failed> {
        let (gap, end) = (self.config.gap, self.config.session_end);
        let columns = Columns::of(removed, |span| span.first, |span| end.of(span, gap));
        let deleted = tx
            .execute(&self.statements.late.delete, &columns.parameters())
            .map_err(|why| self.failed_at(&why, "replacing rows that late events touch"))?;
        if deleted == removed.len() as u64 {
            return Ok(());
        }
        let what = format!(
            "{deleted} rows of {} were deleted where {} had just been read",
            self.table.shown,
            removed.len()
        );
        let mut there = self.touching(tx, removed)?;
        there.retain(|row| removed.contains(row));
        if there.len() as u64 + deleted == removed.len() as u64 {
            let why = "a trigger, a rule or a policy of the table keeps the others";
            return Err(Failed::Refused(Refusal::silent(format!("{what}: {why}"))));
        }
        let why = format!("{what}: somebody else writes it");
        Err(Failed::Ledger(LedgerError::Fatal(Fault::environment(why))))
    }

    /// Deletes no row: tries everything that a deletion needs except rows.
    pub(in crate::ledger) fn delete_nothing(
        &self,
        tx: &mut Transaction<'_>,
    ) -> Result<(), postgres::Error> {
        let columns = Columns::of(&[], |span| span.first, |span| span.last);
        tx.execute(&self.statements.late.delete, &columns.parameters()).map(|_| ())
    }

    /// Counts how many of these rows are in the table, unchanged.
    pub(super) fn count(
        &self,
        tx: &mut Transaction<'_>,
        rows: &[(&Key, Span)],
    ) -> Result<i64, LedgerError> {
        let (gap, end) = (self.config.gap, self.config.session_end);
        let keys: Vec<(Key, Span)> =
            rows.iter().map(|(key, span)| ((*key).clone(), *span)).collect();
        let columns = Columns::of(&keys, |span| span.first, |span| end.of(span, gap));
        let counts: Vec<i64> = rows.iter().map(|(_, span)| span.count as i64).collect();
        let sql = format!(
            "select count(*) from unnest($1::text[], $2::text[], $3::{time}[], $4::{time}[],
                                         $5::int8[])
                                  k(ip, host, session_start, session_end, num_logs)
             where exists (select from {name} r
                           where (r.ip, r.host, r.session_start, r.session_end, r.num_logs)
                                 = (k.ip, k.host, k.session_start, k.session_end, k.num_logs))",
            time = self.table.time_type,
            name = self.table.quoted(),
        );
        let [ips, hosts, from, to] = columns.parameters();
        tx.query_one(&sql, &[ips, hosts, from, to, &counts])
            .map(|row| row.get(0))
            .map_err(|why| classify(&why, "reading what was written"))
    }
}

/// Keys and two times as arrays for `unnest`, one array per column.
struct Columns<'a> {
    ips: Vec<&'a str>,
    hosts: Vec<&'a str>,
    from: Vec<Timestamp>,
    to: Vec<Timestamp>,
}

impl<'a> Columns<'a> {
    fn of(
        spans: &'a [(Key, Span)],
        from: impl Fn(&Span) -> EventTime,
        to: impl Fn(&Span) -> EventTime,
    ) -> Self {
        Columns {
            ips: spans.iter().map(|(key, _)| key.parts().0).collect(),
            hosts: spans.iter().map(|(key, _)| key.parts().1).collect(),
            from: spans.iter().map(|(_, span)| Timestamp(from(span))).collect(),
            to: spans.iter().map(|(_, span)| Timestamp(to(span))).collect(),
        }
    }

    fn parameters(&self) -> [&(dyn postgres::types::ToSql + Sync); 4] {
        [&self.ips, &self.hosts, &self.from, &self.to]
    }
}
