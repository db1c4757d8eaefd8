//! Partitions whose clock is off, live: worker 0 of the job judges the bindings of each epoch.
//!
//! A partition that lags says nothing about its clock, and neither does one that is idle. Replayed
//! epochs are not judged, because they were judged when they were new. Nor are those within the
//! idle timeout after them: until then, a partition may be active without having brought anything
//! in this run.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use differential_dataflow::{AsCollection, VecCollection};
use sessionizer_core::anomaly::{Anomaly, ClockJudge, Day, LIVE_DAYS, PartitionClock};
use sessionizer_core::binding::{Binding, Partition, Status};
use sessionizer_core::time::{Epoch, EventTime};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::Operator;

use crate::dataflow::messages::EpochMeta;

/// What is known of the partitions.
struct Clocks<N> {
    judge: ClockJudge,
    name: N,
    bindings: BTreeMap<Partition, Binding>,
    names: BTreeMap<Partition, String>,
    watermark: EventTime,
    /// Those that were emitted and not retracted. There is at most one for a partition and day.
    live: BTreeMap<(Day, String), Anomaly>,
}

impl<N: Fn(Partition) -> String> Clocks<N> {
    /// Takes in the next epoch. Returns what has changed.
    fn advance(&mut self, meta: EpochMeta, is_new: bool) -> Vec<(Anomaly, i64)> {
        for binding in meta.bindings {
            self.names.entry(binding.partition).or_insert_with(|| (self.name)(binding.partition));
            self.bindings.insert(binding.partition, binding);
        }
        self.watermark = self.watermark.max(meta.watermark);
        let mut changes = Vec::new();
        if is_new {
            let partitions: Vec<PartitionClock<'_>> = self
                .bindings
                .values()
                .map(|binding| {
                    let counts = binding.status == Status::Active
                        && binding.promise > EventTime::NEVER
                        && !meta.lagging.contains(&binding.partition);
                    let name = &self.names[&binding.partition];
                    PartitionClock { name, promise: counts.then_some(binding.promise) }
                })
                .collect();
            for anomaly in self.judge.epoch(&partitions) {
                let key = (Day::of(anomaly.at), anomaly.subject.clone());
                if let Entry::Vacant(entry) = self.live.entry(key) {
                    entry.insert(anomaly.clone());
                    changes.push((anomaly, 1));
                }
            }
        }
        let first_live = Day(Day::of(self.watermark).0 - LIVE_DAYS + 1);
        let live = self.live.split_off(&(first_live, String::new()));
        let expired = std::mem::replace(&mut self.live, live);
        changes.extend(expired.into_values().map(|anomaly| (anomaly, -1)));
        changes
    }
}

/// Builds the judge of the clocks. `name` returns the name of a partition; epochs before
/// `judged_from` are not judged.
pub fn render_clocks<'scope>(
    metas: StreamVec<'scope, Epoch, EpochMeta>,
    judge: ClockJudge,
    name: impl Fn(Partition) -> String + 'static,
    judged_from: Epoch,
) -> VecCollection<'scope, Epoch, Anomaly, i64> {
    let judges = metas.scope().index() == 0;
    let found = metas.unary_frontier::<CapacityContainerBuilder<Vec<_>>, _, _, _>(
        Pipeline,
        "Clocks",
        move |_, _| {
            let mut clocks = Clocks {
                judge,
                name,
                bindings: BTreeMap::new(),
                names: BTreeMap::new(),
                watermark: EventTime::NEVER,
                live: BTreeMap::new(),
            };
            let mut pending: BTreeMap<Epoch, (Capability<Epoch>, EpochMeta)> = BTreeMap::new();
            move |(metas, frontier), output| {
                metas.for_each_stamp(|cap, batches| {
                    for meta in batches.flat_map(|batch| batch.drain(..)).filter(|_| judges) {
                        let cap = cap.retain_least(0).expect("a message's stamp holds its epoch");
                        pending.insert(*cap.time(), (cap, meta));
                    }
                });
                let frontier = frontier.frontier().first().copied().unwrap_or(Epoch::MAX);
                let incomplete = pending.split_off(&frontier);
                for (epoch, (cap, meta)) in std::mem::replace(&mut pending, incomplete) {
                    let changes = clocks.advance(meta, epoch >= judged_from);
                    let changes = changes.into_iter().map(|(anomaly, n)| (anomaly, epoch, n));
                    output.session(&cap).give_iterator(changes);
                }
            }
        },
    );
    found.as_collection()
}

#[cfg(test)]
mod tests {
    use sessionizer_core::anomaly::{DAY_MS, Thresholds};
    use sessionizer_core::binding::{Late, Offset, RecordRules};

    use super::*;

    /// An epoch in which partition 3 is ten minutes ahead of the others.
    fn epoch(now_ms: i64, lagging: &[i32]) -> EpochMeta {
        let partition = |number| Partition { topic: 0, number };
        let binding = |number| {
            let ahead_ms = if number == 3 { 600_000 } else { i64::from(number) };
            let promise = EventTime::from_millis(now_ms + ahead_ms);
            Binding { promise, ..Binding::initial(partition(number), Offset::ZERO) }
        };
        EpochMeta {
            watermark: EventTime::from_millis(now_ms),
            rules: RecordRules { max_future_ms: 0, late: Late::Merge },
            bindings: (0..4).map(binding).collect(),
            lagging: lagging.iter().map(|number| partition(*number)).collect(),
            differences: Vec::new(),
        }
    }

    #[test]
    fn a_clock_is_off_once_a_day_unless_its_partition_lags_or_is_replayed() {
        let judge = ClockJudge::new(&Thresholds::default(), 5_000, 30_000);
        let mut clocks = Clocks {
            judge,
            name: |partition: Partition| format!("t/{}", partition.number),
            bindings: BTreeMap::new(),
            names: BTreeMap::new(),
            watermark: EventTime::NEVER,
            live: BTreeMap::new(),
        };
        let noon = 20_605 * DAY_MS + DAY_MS / 2;
        let mut days = |day: i64, epochs: i64, lagging: &[i32], is_new| {
            let at = |n| noon + day * DAY_MS + n * 1_000;
            let changes = (0..epochs).flat_map(|n| clocks.advance(epoch(at(n), lagging), is_new));
            let of =
                |(anomaly, n): (Anomaly, i64)| (anomaly.subject, Day::of(anomaly.at).0 - 20_605, n);
            changes.map(of).collect::<Vec<_>>()
        };
        let off = |day, n| ("t/3".to_owned(), day, n);
        assert_eq!(days(0, 9, &[3], true), [], "it lags");
        assert_eq!(days(0, 9, &[], false), [], "it is replayed");
        assert_eq!(days(0, 2, &[], true), []);
        assert_eq!(days(0, 9, &[], true), [off(0, 1)]);
        // It lags for a moment: it is not emitted again for the same day.
        assert_eq!(days(0, 1, &[3], true), []);
        assert_eq!(days(0, 9, &[], true), []);
        assert_eq!(days(1, 9, &[], true), [off(1, 1)]);
        assert_eq!(days(2, 9, &[], true), [off(2, 1), off(0, -1)]);
    }
}
