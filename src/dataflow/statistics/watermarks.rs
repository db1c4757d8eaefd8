//! The watermark up to which the table is complete.
//!
//! Every writer commits its own shards, and joins as many epochs in one transaction as are waiting;
//! their rows become known at the last of them. Meanwhile another writer may be several epochs
//! behind or ahead. The watermark of an epoch alone therefore does not say that the rows of all
//! sessions that it closes are known. That is true of the least watermark that the writers have
//! reached.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sessionizer_core::time::{Epoch, EventTime};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::vec::Broadcast;

use crate::dataflow::messages::Committed;
use crate::dataflow::statistics::rows::Before;

/// Up to which event time the table is complete, as of an epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TableWatermark {
    /// Once the replay is over, every session that ended before then has its row in the table.
    pub complete: EventTime,
    /// No session that has closed ended later, except those of a drain.
    pub latest: EventTime,
}

impl TableWatermark {
    /// That of an empty table.
    pub const NEVER: TableWatermark =
        TableWatermark { complete: EventTime::NEVER, latest: EventTime::NEVER };

    /// One that is at least as far as both.
    #[must_use]
    pub fn max(self, other: TableWatermark) -> Self {
        TableWatermark {
            complete: self.complete.max(other.complete),
            latest: self.latest.max(other.latest),
        }
    }

    /// Whether a session that ended then has its row before the table is complete up to there:
    /// its writer is ahead of another.
    pub fn is_ahead(&self, end: EventTime) -> bool {
        self.complete < end && end <= self.latest
    }
}

/// The watermarks that the writers have reached.
#[derive(Clone, Debug)]
pub struct WriterWatermarks(Vec<EventTime>);

impl WriterWatermarks {
    /// Of this many writers, all of which have reached the same.
    pub fn new(writers: u32, reached: EventTime) -> Self {
        WriterWatermarks(vec![reached; writers as usize])
    }

    pub fn take(&mut self, committed: &Committed) {
        let reached = &mut self.0[committed.writer as usize];
        *reached = committed.watermark.max(*reached);
    }

    /// Up to when the table is complete if a session closes `closes_after_ms` after its end.
    pub fn of_table(&self, closes_after_ms: i64) -> TableWatermark {
        let ended = |reached: Option<&EventTime>| {
            reached.map_or(EventTime::NEVER, |reached| reached.plus(-closes_after_ms))
        };
        TableWatermark { complete: ended(self.0.iter().min()), latest: ended(self.0.iter().max()) }
    }
}

/// Tells every worker up to when the table is complete: first as of the last epoch that is replayed,
/// and then after every epoch with which a transaction ends, even if nothing has changed. The
/// detectors begin with the first of those that is not replayed.
pub fn render_watermarks<'scope>(
    committed: StreamVec<'scope, Epoch, Committed>,
    before: Before,
    closes_after_ms: i64,
) -> StreamVec<'scope, Epoch, TableWatermark> {
    committed.broadcast().unary_frontier::<CapacityContainerBuilder<Vec<TableWatermark>>, _, _, _>(
        Pipeline,
        "Watermarks",
        move |capability, _info| {
            // It begins at the watermark of the last epoch that is replayed, so a replay does not
            // move it.
            let mut writers = WriterWatermarks::new(before.writers, before.watermark);
            let replayed = before.first_epoch.saturating_sub(1);
            let mut first = Some(capability.delayed(&replayed));
            first = first.filter(|_| before.watermark > EventTime::NEVER);
            let mut waiting: BTreeMap<Epoch, (Capability<Epoch>, Vec<Committed>)> = BTreeMap::new();
            move |(input, frontier), output| {
                if let Some(capability) = first.take() {
                    output.session(&capability).give(writers.of_table(closes_after_ms));
                }
                input.for_each_stamp(|cap, batches| {
                    let epoch = *cap.least().expect("commits travel under an epoch");
                    let retain = || cap.retain_least(0).expect("a message's stamp holds its epoch");
                    let of_epoch = waiting.entry(epoch).or_insert_with(|| (retain(), Vec::new()));
                    of_epoch.1.extend(batches.flat_map(|batch| batch.drain(..)));
                });
                let frontier = frontier.frontier().first().copied().unwrap_or(Epoch::MAX);
                let incomplete = waiting.split_off(&frontier);
                for (capability, committed) in
                    std::mem::replace(&mut waiting, incomplete).into_values()
                {
                    committed.iter().for_each(|committed| writers.take(committed));
                    output.session(&capability).give(writers.of_table(closes_after_ms));
                }
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_complete_up_to_the_slowest_writer() {
        let at = EventTime::from_millis;
        let mut writers = WriterWatermarks::new(2, at(1_000));
        let mut take = |writer, reached| {
            writers.take(&Committed { writer, watermark: at(reached) });
            let TableWatermark { complete, latest } = writers.of_table(100);
            (complete.millis(), latest.millis())
        };
        assert_eq!(take(0, 5_000), (900, 4_900));
        assert_eq!(take(1, 3_000), (2_900, 4_900));
        assert_eq!(take(1, 2_000), (2_900, 4_900), "a watermark never falls");
        assert_eq!(take(1, 7_000), (4_900, 6_900));
    }

    #[test]
    fn a_row_is_ahead_if_its_writer_is() {
        let at = EventTime::from_millis;
        let watermark = TableWatermark { complete: at(2_000), latest: at(4_000) };
        let ahead = [1_999, 2_000, 2_001, 4_000, 4_001].map(|end| watermark.is_ahead(at(end)));
        assert_eq!(ahead, [false, false, true, true, false]);
    }

    #[test]
    fn nothing_is_complete_before_every_writer_has_committed() {
        let mut writers = WriterWatermarks::new(2, EventTime::NEVER);
        writers.take(&Committed { writer: 0, watermark: EventTime::from_millis(5_000) });
        assert_eq!(writers.of_table(0).complete, EventTime::NEVER);
    }
}
