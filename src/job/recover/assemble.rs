//! The part of the plan that follows from what is durable. It asks nobody.

use std::collections::BTreeMap;

use sessionizer_core::binding::{Binding, BoundEpoch, Offset, Partition, RecordRules};
use sessionizer_core::fault::Fault;
use sessionizer_core::plan::{PartitionPlan, RecoveryPlan};
use sessionizer_core::time::Epoch;

use crate::ledger::{NamedBinding, RecoveredState};

/// Builds the part of the plan that follows from what is durable; offsets of new partitions are 0.
/// `counts` are the numbers of partitions, by topic, `first` is the wall clock, and `rules` apply
/// to new epochs.
pub fn assemble(
    durable: &RecoveredState,
    topics: &[String],
    counts: &[i32],
    first: Epoch,
    rules: RecordRules,
) -> Result<RecoveryPlan, Fault> {
    let names = all_topics(durable, topics);
    let bindings = |named: &[NamedBinding]| -> Vec<Binding> {
        named.iter().map(|named| binding(named, &names)).collect()
    };
    let base = bindings(&durable.base.bindings);
    let replay: Vec<BoundEpoch> = durable
        .replay
        .iter()
        .map(|epoch| BoundEpoch {
            epoch: epoch.epoch,
            watermark: epoch.watermark,
            rules: epoch.rules.unwrap_or(rules),
            bindings: bindings(&epoch.bindings),
        })
        .collect();
    let last = last_epoch(durable)?;
    Ok(RecoveryPlan {
        fence: durable.fence,
        topic_ids: vec![None; names.len()],
        topics: names,
        rules,
        lost_before: None,
        progress: durable.progress.clone(),
        base_epoch: durable.base.epoch,
        base_watermark: durable.base.watermark,
        partitions: partitions(&base, &replay, counts),
        replay,
        first_epoch: first.max(last + 1),
        age_ms: 0,
    })
}

/// The topics to read, and then those that are bound and no longer read.
fn all_topics(durable: &RecoveredState, topics: &[String]) -> Vec<String> {
    let mut names = topics.to_vec();
    let bound = std::iter::once(&durable.base).chain(&durable.replay);
    for named in bound.flat_map(|epoch| &epoch.bindings) {
        if !names.contains(&named.topic) {
            names.push(named.topic.clone());
        }
    }
    names
}

/// A binding, with its topic by its place among the `names`.
fn binding(named: &NamedBinding, names: &[String]) -> Binding {
    let topic = names.iter().position(|name| *name == named.topic).expect("all have a name");
    Binding {
        partition: Partition { topic: topic as u16, number: named.partition },
        topic_id: named.topic_id,
        start: named.start,
        end: named.end,
        promise: named.promise,
        status: named.status,
        quiet_since: named.quiet_since,
        records: named.records,
        dead: named.dead,
        clock_ms: named.clock_ms,
    }
}

/// All partitions: those of the base, those first bound in the replay, and those that nothing
/// durable mentions. A topic without a count is no longer read.
fn partitions(base: &[Binding], replay: &[BoundEpoch], counts: &[i32]) -> Vec<PartitionPlan> {
    let mut partitions: BTreeMap<Partition, PartitionPlan> = BTreeMap::new();
    let mut plan = |start: Binding, known: bool| {
        let retired = usize::from(start.partition.topic) >= counts.len();
        let (until, restart, oldest) = (None, None, Offset::ZERO);
        let plan = PartitionPlan { start, known, until, retired, restart, oldest };
        partitions.entry(start.partition).or_insert(plan);
    };
    for binding in base {
        plan(*binding, true);
    }
    for binding in replay.iter().flat_map(|epoch| &epoch.bindings) {
        // The first binding of a partition is where reading it began.
        plan(*binding, false);
    }
    for (topic, count) in counts.iter().enumerate() {
        for number in 0..*count {
            plan(Binding::initial(Partition { topic: topic as u16, number }, Offset::ZERO), false);
        }
    }
    partitions.into_values().collect()
}

/// The last epoch that is bound. No shard can have gone further.
fn last_epoch(durable: &RecoveredState) -> Result<Epoch, Fault> {
    let bound = std::iter::once(&durable.base).chain(&durable.replay);
    let last = bound.map(|epoch| epoch.epoch).max().unwrap_or(0);
    let committed = durable.progress.iter().map(|shard| shard.epoch).max().unwrap_or(0);
    if committed > last {
        return Err(Fault::config(format!(
            "a shard stands at the epoch {committed} in sessionizer.shard_progress, but the last in \
             sessionizer.epochs is {last}: rows were deleted or changed by hand"
        )));
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use sessionizer_core::binding::{Late, Status};
    use sessionizer_core::plan::{Fence, ShardProgress};
    use sessionizer_core::time::EventTime;

    use super::*;
    use crate::job::recover::is_new;
    use crate::ledger::NamedEpoch;

    const RULES: RecordRules = RecordRules { max_future_ms: 0, late: Late::Merge };

    fn named(topic: &str, partition: i32, end: i64) -> NamedBinding {
        NamedBinding {
            topic: topic.to_owned(),
            partition,
            topic_id: None,
            start: Offset::ZERO,
            end: Offset::new(end),
            promise: EventTime::NEVER,
            status: Status::Active,
            quiet_since: 0,
            records: end as u64,
            dead: 0,
            clock_ms: None,
        }
    }

    fn epoch(epoch: Epoch, bindings: Vec<NamedBinding>) -> NamedEpoch {
        NamedEpoch { epoch, watermark: EventTime::NEVER, rules: None, bindings }
    }

    fn durable(base: NamedEpoch, replay: Vec<NamedEpoch>) -> RecoveredState {
        let last = replay.last().map_or(base.epoch, |bound| bound.epoch);
        let progress = vec![ShardProgress { epoch: last, ..Default::default() }; 4];
        RecoveredState { fence: Fence::default(), progress, base, replay }
    }

    fn topics(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_first_start_knows_no_partition_and_begins_at_the_tick() {
        let plan = assemble(
            &durable(epoch(0, vec![]), vec![]),
            &topics(&["a", "b"]),
            &[2, 1],
            5_000,
            RULES,
        )
        .expect("complete");
        assert_eq!(plan.first_epoch, 5_000);
        assert_eq!(plan.partitions.len(), 3);
        assert!(plan.partitions.iter().all(|part| !part.known && is_new(part, &plan.replay)));
        assert_eq!(plan.partitions[2].start.partition, Partition { topic: 1, number: 0 });
    }

    #[test]
    fn a_restart_reads_from_the_base_and_new_partitions_from_their_first_binding() {
        let base = epoch(1_000, vec![named("a", 0, 10)]);
        let replay = vec![epoch(2_000, vec![named("a", 0, 20), named("a", 1, 3)])];
        let plan = assemble(&durable(base, replay), &topics(&["a"]), &[3], 1_500, RULES)
            .expect("complete");
        let starts: Vec<_> = plan.partitions.iter().map(|p| (p.start.end.get(), p.known)).collect();
        assert_eq!(starts, [(10, true), (3, false), (0, false)]);
        let new: Vec<_> = plan.partitions.iter().map(|p| is_new(p, &plan.replay)).collect();
        assert_eq!(new, [false, false, true]);
        assert_eq!(plan.first_epoch, 2_001, "epochs only go forward, whatever the clock says");
    }

    #[test]
    fn partitions_of_a_topic_that_is_not_read_any_more_are_retired() {
        let base = epoch(1_000, vec![named("a", 0, 10), named("old", 0, 7)]);
        let plan = assemble(&durable(base, vec![]), &topics(&["a"]), &[1], 9_000, RULES)
            .expect("complete");
        let retired: Vec<_> = plan.partitions.iter().map(|p| p.retired).collect();
        assert_eq!((plan.topics.len(), retired), (2, vec![false, true]));
    }
}
