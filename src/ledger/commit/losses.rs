//! Replays that differ from their bindings, and the records lost that way: recorded first, counted
//! later.

use crate::dataflow::ports::{EpochTotals, LedgerError};
use crate::ledger::commit::Commit;
use crate::ledger::errors::classify;

impl Commit<'_> {
    /// Records where a replay differs from its bindings. Returns the epoch from which the loss can
    /// be counted.
    pub(super) fn replay_differences(
        &mut self,
        totals: &[EpochTotals],
    ) -> Result<Option<i64>, LedgerError> {
        let failed = |why: postgres::Error| classify(&why, "noting a replay that was different");
        let Some(totals) = totals.iter().rfind(|totals| !totals.meta.differences.is_empty()) else {
            return Ok(None);
        };
        let noted = totals.epoch as i64;
        // Every writer records them, and does so again if a start crashes before its first
        // snapshot.
        for difference in &totals.meta.differences {
            self.tx
                .execute(
                    "insert into sessionizer.replay_differences
                         (job, topic, partition, epoch, from_offset, to_offset, recorded, found)
                     values ($1, $2, $3, $4, $5, $6, $7, $8)
                     on conflict (job, topic, partition, epoch) do update
                     set found = excluded.found, noted_at = excluded.noted_at",
                    &[
                        &self.target.config.job,
                        &self.run.topics[usize::from(difference.partition.topic)],
                        &difference.partition.number,
                        &(difference.epoch as i64),
                        &difference.from.get(),
                        &difference.to.get(),
                        &(difference.recorded as i64),
                        &(difference.found as i64),
                    ],
                )
                .map_err(failed)?;
        }
        self.tx
            .execute(
                "update sessionizer.jobs set loss_epoch = greatest(loss_epoch, $2) where job = $1",
                &[&self.target.config.job, &noted],
            )
            .map_err(failed)?;
        Ok(Some(noted))
    }

    /// Counts the records of an accepted loss once all shards have passed `epoch`: the loss is what
    /// is then missing from the totals. Returns whether it has been counted.
    pub fn count_loss(&mut self, epoch: i64) -> Result<bool, LedgerError> {
        let failed = |why: postgres::Error| classify(&why, "counting what is lost");
        let counted = self
            .tx
            .query_opt(
                "update sessionizer.jobs j set lost = j.lost + b.difference, loss_epoch = null
                 from sessionizer.balance b
                 where j.job = $1 and b.job = j.job and j.loss_epoch = $2 and b.epoch >= $2
                 returning b.difference",
                &[&self.target.config.job, &epoch],
            )
            .map_err(failed)?;
        if let Some(row) = counted {
            let lost: i64 = row.get(0);
            match lost {
                0 => {}
                1.. => log::warn!(
                    job = self.target.config.job, epoch = epoch, records = lost;
                    "{lost} records that had been read are lost (sessionizer.losses and \
                     sessionizer.replay_differences say where)"
                ),
                _ => log::warn!(
                    job = self.target.config.job, epoch = epoch, records = -lost;
                    "a replay has brought {} records that had not been read before \
                     (sessionizer.replay_differences says where)",
                    -lost
                ),
            }
            return Ok(true);
        }
        let pending = self
            .tx
            .query_opt(
                "select from sessionizer.jobs where job = $1 and loss_epoch = $2",
                &[&self.target.config.job, &epoch],
            )
            .map_err(failed)?;
        Ok(pending.is_none())
    }
}
