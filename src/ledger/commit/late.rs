//! Late sessions and the rows they touch: found, merged in a pure function, replaced.

use postgres::{Client, Statement};

use super::Commit;
use crate::control::Fault;
use crate::correction::{Correction, correct};
use crate::key::Key;
use crate::ledger::connect::classify;
use crate::ledger::copy::Timestamp;
use crate::ledger::table::Table;
use crate::operators::LedgerError;
use crate::session::{Closed, Span};
use crate::time::EventTime;

/// How many late sessions one look at the table is for.
const LATE_PER_QUERY: usize = 10_000;

pub(super) struct Statements {
    touching: Statement,
    delete: Statement,
}

impl Statements {
    pub(super) fn prepare(
        client: &mut Client,
        table: &Table,
        found_rows: bool,
    ) -> Result<Self, postgres::Error> {
        let (name, time) = (table.quoted(), table.time_type);
        Ok(Statements {
            touching: client.prepare(&touching(table, found_rows))?,
            // Rows of others may be more precise than the milliseconds that we have read of them.
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

/// The rows that touch any of the spans `k`. Our own do not touch each other, so that of all that
/// begin before a span only the last one can: two steps into the index find them, however many
/// sessions a visitor has had. Rows of others may lie over each other, and all are looked at, as
/// they are where no index helps.
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
    /// Merges late sessions with the rows they touch, and adds what that changes to `corrections`.
    pub(super) fn late(
        &mut self,
        late: &[&Closed],
        corrections: &mut Vec<Correction>,
    ) -> Result<(), LedgerError> {
        if !late.is_empty() && self.table.keyed {
            // A plan is kept, and may have been made when the table had a page.
            let set = self.tx.batch_execute("set local enable_seqscan = off");
            set.map_err(|why| classify(&why, "preparing for late events"))?;
        }
        for late in late.chunks(LATE_PER_QUERY) {
            corrections.extend(self.merge(late)?);
        }
        Ok(())
    }

    fn merge(&mut self, late: &[&Closed]) -> Result<Vec<Correction>, LedgerError> {
        let spans: Vec<(Key, Span)> =
            late.iter().map(|closed| (closed.key.clone(), closed.span)).collect();
        let mut rows = self.touching(&spans)?;
        let mut corrections = correct(spans.clone(), rows.clone(), self.config.gap);
        while self.found_rows {
            // Rows of others may touch each other: look again from where the merging has got.
            let grown: Vec<(Key, Span)> = corrections
                .iter()
                .flat_map(|c| c.added.iter().map(|span| (c.key.clone(), *span)))
                .collect();
            let more = self.touching(&grown)?;
            if more.len() == rows.len() {
                break;
            }
            rows = more;
            corrections = correct(spans.clone(), rows.clone(), self.config.gap);
        }
        self.delete(&corrections)?;
        let added: Vec<(&Key, Span)> =
            corrections.iter().flat_map(|c| c.added.iter().map(|span| (&c.key, *span))).collect();
        self.rows(added.into_iter())?;
        Ok(corrections)
    }

    fn touching(&mut self, spans: &[(Key, Span)]) -> Result<Vec<(Key, Span)>, LedgerError> {
        let (gap, end) = (self.config.gap, self.config.session_end);
        // touches: row.first <= span.last + gap and span.first <= row.last + gap; the stored
        // end lies `end_ms` behind the row's last event.
        let end_ms = end.of(&Span::event(EventTime::from_millis(0)), gap).millis();
        let columns = Columns::of(
            spans,
            |span| span.first.plus(end_ms - gap.millis()),
            |span| gap.end_after(span.last),
        );
        let rows = self
            .tx
            .query(&self.statements.late.touching, &columns.parameters())
            .map_err(|why| classify(&why, "finding the rows that late events touch"))?;
        let span = |row: &postgres::Row| {
            let (first, last): (Timestamp, Timestamp) = (row.get(2), row.get(3));
            let last = end.last_event(last.0, gap);
            let count = row.get::<_, i64>(4) as u64;
            (Key::new(row.get(0), row.get(1)), Span { first: first.0, last, count })
        };
        Ok(rows.iter().map(span).collect())
    }

    fn delete(&mut self, corrections: &[Correction]) -> Result<(), LedgerError> {
        let removed: Vec<(Key, Span)> = corrections
            .iter()
            .flat_map(|c| c.removed.iter().map(|span| (c.key.clone(), *span)))
            .collect();
        if removed.is_empty() {
            return Ok(());
        }
        let (gap, end) = (self.config.gap, self.config.session_end);
        let columns = Columns::of(&removed, |span| span.first, |span| end.of(span, gap));
        let deleted = self
            .tx
            .execute(&self.statements.late.delete, &columns.parameters())
            .map_err(|why| classify(&why, "replacing rows that late events touch"))?;
        if deleted == removed.len() as u64 {
            return Ok(());
        }
        Err(LedgerError::Fatal(Fault::World(format!(
            "{deleted} rows of {} went where {} were just read: somebody else writes it",
            self.table.shown,
            removed.len()
        ))))
    }
}

/// Keys and two times, column by column, as arrays for `unnest`.
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
