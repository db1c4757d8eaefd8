//! From what is durable and what Kafka has to a [`Plan`].

use std::collections::BTreeMap;

use log::info;

use crate::binding::{Binding, BoundEpoch, Offset, Partition};
use crate::config::Config;
use crate::control::{Control, Fault};
use crate::kafka::{Cluster, From};
use crate::ledger::{self, Durable, NamedBinding};
use crate::plan::{PartitionPlan, Plan};
use crate::time::{Epoch, tick};

/// Asks Kafka, takes the fence and makes the plan. Worker 0 of process 0 does it, once a start.
///
/// Kafka is asked first: a start that cannot read its topic must not stop an instance that can.
pub fn make_plan(config: &Config, control: &Control, now_ms: u64) -> Result<Plan, Fault> {
    let cluster = Cluster::new(&config.kafka)?;
    let give_up = || control.stopping();
    let counts = cluster.topics(config.start_timeout, give_up)?;
    let durable = ledger::start_patiently(&config.ledger, config.start_timeout, give_up)?;
    let first = tick(now_ms, config.epoch_ms);
    let mut plan = assemble(&durable, &config.kafka.topics, &counts, first);
    // A start that ended before its first commit has left no trace: the next is the first.
    let first_start = durable.replay.is_empty() && durable.base.bindings.is_empty();
    let from = if first_start { config.from } else { From::Earliest };
    for part in &mut plan.partitions {
        if part.retired {
            continue;
        }
        let partition = part.start.partition;
        let topic = &plan.topics[usize::from(partition.topic)];
        let (oldest, end) = cluster.offsets(topic, partition.number)?;
        if is_new(part, &plan.replay) {
            let start = cluster.offset_from(topic, partition.number, from)?;
            part.start = Binding::initial(partition, start);
        }
        check_available(topic, partition.number, part.start.end, oldest, end)?;
        part.until = config.until_end.then_some(end);
    }
    for part in plan.partitions.iter().filter(|part| part.retired) {
        let topic = plan.topic(part.start.partition);
        info!("{topic}[{}] is read no more: it is not in KAFKA_TOPIC", part.start.partition.number);
    }
    let (replay, generation) = (plan.replay.len(), plan.generation);
    if first_start {
        info!("first start of the job {}, from {:?}", config.ledger.job, config.from);
    } else {
        info!(
            "start {generation} of the job {}: {replay} epochs to read again, then on from where \
             it was",
            config.ledger.job
        );
    }
    Ok(plan)
}

/// Whether nothing durable speaks of this partition.
fn is_new(part: &PartitionPlan, replay: &[BoundEpoch]) -> bool {
    let partition = part.start.partition;
    !part.known && replay.iter().all(|e| e.bindings.iter().all(|b| b.partition != partition))
}

fn check_available(
    topic: &str,
    number: i32,
    wanted: Offset,
    oldest: Offset,
    end: Offset,
) -> Result<(), Fault> {
    if (oldest..=end).contains(&wanted) {
        return Ok(());
    }
    let why = if wanted < oldest {
        "retention has deleted the records in between"
    } else {
        "the topic was deleted and made again, or its end was lost"
    };
    Err(Fault::World(format!(
        "{topic}[{number}]: reading has to go on at offset {wanted}, but Kafka has {oldest} to \
         {end}: {why}. What is in Postgres stays right; start as another job (--job, --table) to \
         read what is there"
    )))
}

/// The plan as far as it follows from what is durable; offsets of new partitions are 0. `counts`
/// are the partitions of each topic, `first` is the tick of the clock.
pub fn assemble(durable: &Durable, topics: &[String], counts: &[i32], first: Epoch) -> Plan {
    let mut names = topics.to_vec();
    let bound = std::iter::once(&durable.base).chain(&durable.replay);
    for named in bound.clone().flat_map(|epoch| &epoch.bindings) {
        if !names.contains(&named.topic) {
            names.push(named.topic.clone());
        }
    }
    let binding = |named: &NamedBinding| {
        let topic = names.iter().position(|name| *name == named.topic).expect("just added");
        Binding {
            partition: Partition { topic: topic as u16, number: named.partition },
            start: named.start,
            end: named.end,
            promise: named.promise,
            status: named.status,
            quiet_since: named.quiet_since,
            records: named.records,
            dead: named.dead,
        }
    };
    let retired = |partition: Partition| usize::from(partition.topic) >= topics.len();
    let mut partitions: BTreeMap<Partition, PartitionPlan> = BTreeMap::new();
    let mut plan = |start: Binding, known: bool| {
        let retired = retired(start.partition);
        let plan = PartitionPlan { start, known, until: None, retired };
        partitions.entry(start.partition).or_insert(plan);
    };
    for named in &durable.base.bindings {
        plan(binding(named), true);
    }
    for named in durable.replay.iter().flat_map(|epoch| &epoch.bindings) {
        // The first binding of a partition is where its reading began.
        plan(binding(named), false);
    }
    for (topic, count) in counts.iter().enumerate() {
        for number in 0..*count {
            plan(Binding::initial(Partition { topic: topic as u16, number }, 0), false);
        }
    }
    let replay: Vec<BoundEpoch> = durable
        .replay
        .iter()
        .map(|epoch| BoundEpoch {
            epoch: epoch.epoch,
            watermark: epoch.watermark,
            bindings: epoch.bindings.iter().map(binding).collect(),
        })
        .collect();
    let last = bound.map(|epoch| epoch.epoch).max().unwrap_or(0);
    let committed = durable.progress.iter().map(|shard| shard.epoch).max().unwrap_or(0);
    assert!(committed <= last, "I3: epoch {committed} is committed, {last} is the last bound");
    Plan {
        generation: durable.generation,
        topics: names.clone(),
        progress: durable.progress.clone(),
        base_epoch: durable.base.epoch,
        base_watermark: durable.base.watermark,
        replay,
        first_epoch: first.max(last + 1),
        partitions: partitions.into_values().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binding::Status;
    use crate::ledger::NamedEpoch;
    use crate::plan::ShardProgress;
    use crate::time::EventTime;

    fn named(topic: &str, partition: i32, end: Offset) -> NamedBinding {
        NamedBinding {
            topic: topic.to_owned(),
            partition,
            start: 0,
            end,
            promise: EventTime::NEVER,
            status: Status::Active,
            quiet_since: 0,
            records: end as u64,
            dead: 0,
        }
    }

    fn epoch(epoch: Epoch, bindings: Vec<NamedBinding>) -> NamedEpoch {
        NamedEpoch { epoch, watermark: EventTime::NEVER, bindings }
    }

    fn durable(base: NamedEpoch, replay: Vec<NamedEpoch>) -> Durable {
        let last = replay.last().map_or(base.epoch, |bound| bound.epoch);
        let progress = vec![ShardProgress { epoch: last, ..Default::default() }; 4];
        Durable { generation: 1, progress, base, replay }
    }

    fn topics(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_first_start_knows_no_partition_and_begins_at_the_tick() {
        let plan =
            assemble(&durable(epoch(0, vec![]), vec![]), &topics(&["a", "b"]), &[2, 1], 5_000);
        assert_eq!(plan.first_epoch, 5_000);
        assert_eq!(plan.partitions.len(), 3);
        assert!(plan.partitions.iter().all(|part| !part.known && is_new(part, &plan.replay)));
        assert_eq!(plan.partitions[2].start.partition, Partition { topic: 1, number: 0 });
    }

    #[test]
    fn a_restart_reads_from_the_base_and_new_partitions_from_their_first_binding() {
        let base = epoch(1_000, vec![named("a", 0, 10)]);
        let replay = vec![epoch(2_000, vec![named("a", 0, 20), named("a", 1, 3)])];
        let plan = assemble(&durable(base, replay), &topics(&["a"]), &[3], 1_500);
        let starts: Vec<_> = plan.partitions.iter().map(|p| (p.start.end, p.known)).collect();
        assert_eq!(starts, [(10, true), (3, false), (0, false)]);
        let new: Vec<_> = plan.partitions.iter().map(|p| is_new(p, &plan.replay)).collect();
        assert_eq!(new, [false, false, true]);
        assert_eq!(plan.first_epoch, 2_001, "epochs only go forward, whatever the clock says");
    }

    #[test]
    fn partitions_of_a_topic_that_is_not_read_any_more_are_retired() {
        let base = epoch(1_000, vec![named("a", 0, 10), named("old", 0, 7)]);
        let plan = assemble(&durable(base, vec![]), &topics(&["a"]), &[1], 9_000);
        let retired: Vec<_> = plan.partitions.iter().map(|p| p.retired).collect();
        assert_eq!((plan.topics.len(), retired), (2, vec![false, true]));
    }

    #[test]
    fn offsets_that_are_not_there_stop_the_start_with_both_ends() {
        assert!(check_available("t", 0, 5, 5, 9).is_ok());
        assert!(check_available("t", 0, 9, 5, 9).is_ok());
        let gone = check_available("t", 3, 4, 5, 9).expect_err("gone").to_string();
        assert!(gone.contains("t[3]") && gone.contains("offset 4") && gone.contains("5 to 9"));
        let again = check_available("t", 3, 10, 5, 9).expect_err("made again").to_string();
        assert!(again.contains("made again"));
    }
}
