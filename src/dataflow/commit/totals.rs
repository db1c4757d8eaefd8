//! The totals of a writer's shards: what every epoch adds to them, and the batch to commit for a
//! run of epochs (I4, I5).

use std::collections::BTreeMap;

use sessionizer_core::key::Shard;
use sessionizer_core::plan::{RecoveryPlan, ShardProgress};

use crate::dataflow::commit::writer::WriterEpoch;
use crate::dataflow::ports::{Batch, EpochTotals, Refused, ShardStep};

/// The progress and the totals of a writer's shards.
pub(super) struct WriterTotals {
    shards: BTreeMap<Shard, ShardProgress>,
}

impl WriterTotals {
    pub(super) fn new(writer: u32, writers: u32, plan: &RecoveryPlan) -> Self {
        let shards = (0..plan.shards()).map(Shard).filter(|shard| shard.writer(writers) == writer);
        let shards = shards.map(|shard| (shard, plan.progress[shard.0 as usize])).collect();
        WriterTotals { shards }
    }

    /// Moves the events of refused sessions from `closed` to `dead`, and returns how many they are.
    pub(super) fn refuse(&mut self, refused: &[Refused]) -> u64 {
        for Refused { shard, session } in refused {
            let totals = self.shards.get_mut(shard).expect("a shard of this writer");
            totals.closed -= session.span.count;
            totals.dead += session.span.count;
        }
        refused.iter().map(|refused| refused.session.span.count).sum()
    }

    /// Enters a run of epochs and returns the batch to write; `None` if all of it passed before a
    /// restart, or if no shard belongs to this writer.
    pub(super) fn enter(&mut self, run: Vec<WriterEpoch>) -> Option<Batch> {
        let before = self.shards.clone();
        let mut batch = Batch::default();
        for part in run {
            self.enter_epoch(part, &mut batch);
        }
        for (shard, to) in &self.shards {
            let from = before[shard].epoch;
            if to.epoch > from {
                batch.steps.push(ShardStep { shard: *shard, from, to: *to });
            }
        }
        (!batch.steps.is_empty()).then_some(batch)
    }

    fn enter_epoch(&mut self, part: WriterEpoch, batch: &mut Batch) {
        let epoch = part.epoch;
        for output in part.outputs {
            let totals = self.shards.get_mut(&output.shard).expect("a shard of this writer");
            if epoch <= totals.epoch {
                continue; // I5: it passed before the restart.
            }
            let closed: u64 = output.closed.iter().map(|closed| closed.span.count).sum();
            totals.closed += closed;
            totals.open = output.open_records;
            totals.dead += output.dropped.len() as u64;
            batch.dead_letters.extend(output.dropped.into_iter().map(|letter| (epoch, letter)));
            batch.closed.extend(output.closed);
            if let Some(bytes) = output.snapshot {
                batch.snapshots.insert(output.shard, (epoch, bytes));
            }
        }
        for letter in part.dead_letters {
            let totals = self.shards.get_mut(&letter.shard).expect("a shard of this writer");
            if epoch > totals.epoch {
                totals.dead += 1;
                batch.dead_letters.push((epoch, letter));
            }
        }
        let mut totals =
            EpochTotals { epoch, meta: part.meta, shards: 0, closed: 0, open: 0, dead: 0 };
        for progress in self.shards.values_mut().filter(|progress| epoch > progress.epoch) {
            progress.epoch = epoch;
            totals.shards += 1;
            totals.closed += progress.closed;
            totals.open += progress.open;
            totals.dead += progress.dead;
        }
        if totals.shards > 0 {
            batch.totals.push(totals);
        }
    }
}
