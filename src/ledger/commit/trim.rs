//! Deletes the totals and bindings that no start will read again.

use crate::dataflow::ports::LedgerError;
use crate::ledger::commit::Commit;
use crate::ledger::errors::classify;

impl Commit<'_> {
    /// Deletes the totals and bindings from before the oldest snapshot, except the last binding of
    /// each partition: no start reads them.
    pub fn trim(&mut self) -> Result<(), LedgerError> {
        let failed = |why: postgres::Error| classify(&why, "trimming bindings");
        let base: i64 = self
            .tx
            .query_one(
                "select min(epoch) from sessionizer.snapshots where job = $1",
                &[&self.target.config.job],
            )
            .map_err(failed)?
            .get(0);
        self.tx
            .execute(
                "delete from sessionizer.epochs where ctid = any(array(
                     select ctid from sessionizer.epochs where job = $1 and epoch < $2
                     for update skip locked))",
                &[&self.target.config.job, &base],
            )
            .map_err(failed)?;
        self.tx
            .execute(
                "delete from sessionizer.bindings where ctid = any(array(
                     select ctid from sessionizer.bindings b
                     where job = $1 and epoch < $2 and exists (
                         select from sessionizer.bindings later
                         where later.job = b.job and later.topic = b.topic
                         and later.partition = b.partition
                         and later.epoch > b.epoch and later.epoch <= $2)
                     for update skip locked))",
                &[&self.target.config.job, &base],
            )
            .map_err(failed)?;
        Ok(())
    }
}
