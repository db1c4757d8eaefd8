//! The state of the job besides its table, for the audit: how far it is, and what does not count.

use std::collections::BTreeSet;

use sessionizer_core::binding::{Offset, Status};
use sessionizer_core::event::Reason;
use sessionizer_core::time::{Epoch, EventTime};

use super::{AuditSnapshot, Balance, failed};
use crate::dataflow::ports::LedgerError;
use crate::ledger::commit::{ROW_REFUSED, RefusedRow};
use crate::ledger::durable;
use crate::ledger::errors::classify;
use crate::ledger::forgotten::Forgotten;

impl AuditSnapshot {
    /// Reads how far the shards are, and what is bound to the epochs at which they stand.
    pub(super) fn read_epochs(&mut self) -> Result<(), LedgerError> {
        self.shards = durable::progress(&mut *self.client, &self.job)?;
        for epoch in self.shards.iter().map(|shard| shard.epoch).collect::<BTreeSet<Epoch>>() {
            let watermark = self
                .client
                .query_opt(
                    "select watermark_ms from sessionizer.epochs where job = $1 and epoch = $2",
                    &[&self.job, &(epoch as i64)],
                )
                .map_err(failed)?;
            let Some(watermark) = watermark else { continue };
            let watermark = watermark.get::<_, Option<i64>>(0);
            let mut watermark = watermark.map_or(EventTime::NEVER, EventTime::from_millis);
            self.watermark = self.watermark.min(watermark);
            let bindings = durable::bindings_at(&mut *self.client, &self.job, epoch)?;
            if bindings.iter().all(|binding| binding.status == Status::Ended) {
                watermark = EventTime::FOREVER; // A drain closes everything.
            }
            self.epochs.insert(epoch, (watermark, bindings));
        }
        Ok(())
    }

    pub(super) fn read_refused(&mut self) -> Result<(), LedgerError> {
        let refused = self
            .client
            .query(
                "select topic, partition, \"offset\", reason = 'late' from sessionizer.dead_letters
             where job = $1 and reason in ('future', 'late') and topic is not null
                   and partition is not null and \"offset\" is not null",
                &[&self.job],
            )
            .map_err(failed)?;
        for row in &refused {
            let reason = if row.get(3) { Reason::Late } else { Reason::Future };
            self.refused
                .entry((row.get(0), row.get(1)))
                .or_default()
                .insert(Offset::new(row.get(2)), reason);
        }
        Ok(())
    }

    pub(super) fn read_latest(&mut self) -> Result<(), LedgerError> {
        let slowest = self.shards.iter().map(|shard| shard.epoch).min().unwrap_or(0);
        // Read it through JSON: a schema of an older version lacks the column.
        let latest = self
            .client
            .query(
                "select b.topic, b.partition, b.end_offset,
                        coalesce((to_jsonb(b) ->> 'clock_ms')::int8, b.epoch) + e.max_future_ms
             from sessionizer.bindings b join sessionizer.epochs e using (job, epoch)
             where job = $1 and epoch > $2 and e.max_future_ms is not null order by epoch",
                &[&self.job, &(slowest as i64)],
            )
            .map_err(failed)?;
        for row in &latest {
            let latest = (Offset::new(row.get(2)), EventTime::from_millis(row.get(3)));
            self.latest.entry((row.get(0), row.get(1))).or_default().push(latest);
        }
        Ok(())
    }

    pub(super) fn read_balance(&mut self) -> Result<(), LedgerError> {
        // The view of an older version lacks the last columns.
        let balance = self
            .client
            .query_opt(
                "select records, closed, open, dead, difference,
                    coalesce((to_jsonb(b) ->> 'lost')::bigint, 0),
                    coalesce((to_jsonb(b) ->> 'forgotten')::bigint, 0)
             from sessionizer.balance b where job = $1",
                &[&self.job],
            )
            .map_err(failed)?;
        self.balance = balance.map(|row| Balance {
            records: row.get(0),
            closed: row.get(1),
            open: row.get(2),
            dead: row.get(3),
            difference: row.get(4),
            lost: row.get(5),
            forgotten: row.get(6),
        });
        Ok(())
    }

    pub(super) fn read_forgotten(&mut self) -> Result<(), LedgerError> {
        self.forgotten = Forgotten::read(&mut *self.client, &self.job)?;
        // Read it through JSON: a schema of an older version lacks the column.
        let rows = self
            .client
            .query(
                "select coalesce((to_jsonb(p) ->> 'forgotten')::int8, 0) as forgotten
                 from sessionizer.shard_progress p where job = $1 order by shard",
                &[&self.job],
            )
            .map_err(|why| classify(&why, "reading who was forgotten"))?;
        let records = rows.iter().map(|row| durable::unsigned(row, "forgotten"));
        self.forgotten_records = records.collect::<Result<_, _>>()?;
        Ok(())
    }

    pub(super) fn read_refused_rows(&mut self) -> Result<(), LedgerError> {
        let rows = self
            .client
            .query(
                "select payload from sessionizer.dead_letters where job = $1 and reason = $2",
                &[&self.job, &ROW_REFUSED],
            )
            .map_err(failed)?;
        for row in rows {
            let payload: Option<&[u8]> = row.get(0);
            let (key, span) = RefusedRow::read(payload.unwrap_or_default()).ok_or_else(|| {
                durable::incomplete(&self.job, "a dead letter row_refused does not hold a row")
            })?;
            self.refused_rows.push((key, span));
        }
        Ok(())
    }
}
