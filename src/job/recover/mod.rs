//! Makes a [`RecoveryPlan`] from what is durable and what Kafka has.

mod banner;
mod beginning;
mod group;
mod outlook;
mod overlap;
pub mod savepoint;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use log::{info, warn};
use sessionizer_core::binding::{Binding, BoundEpoch, Offset, Partition, RecordRules, Status};
use sessionizer_core::fault::Fault;
use sessionizer_core::plan::{PartitionPlan, RecoveryPlan};
use sessionizer_core::time::{Epoch, EventTime};

use self::beginning::Beginning;
pub use self::outlook::{Outlook, outlook};
use crate::config::Config;
use crate::dataflow::ports::LedgerError;
use crate::dataflow::run_state::RunState;
use crate::kafka::{Admin, ReadCheck};
use crate::ledger;
use crate::ledger::{InitialRows, Loss, NamedBinding, RecoveredState, StartOptions, Started};
use crate::ui::text::plural;

/// Asks Kafka, takes the fence and makes the plan. Worker 0 of process 0 does this, once for each
/// start.
///
/// Kafka is asked first: a start that cannot read its topic must not stop an instance that can.
/// Whether a first start is allowed is decided before anything is created, so a refused start
/// leaves nothing behind. Epochs begin at the wall clock, read once all queries are answered. Also
/// returns the rows that the statistics start from, if there are statistics.
pub fn make_plan(
    config: &Config,
    run_state: &RunState,
    now_ms: impl Fn() -> Epoch,
) -> Result<(RecoveryPlan, Option<InitialRows>), Fault> {
    // One timeout for everything.
    let began = Instant::now();
    let time_left = || config.start_timeout.saturating_sub(began.elapsed());
    let admin = Admin::new(&config.kafka)?;
    let give_up = || run_state.stopping();
    let counts = admin.topics(time_left(), give_up)?;
    let readable = ReadCheck::start(&config.kafka);
    let found = ledger::peek_with_retries(&config.ledger, time_left(), give_up)?;
    let with_rows = found.as_ref().is_some_and(|found| found.rows.is_some());
    let beginning = match &found {
        Some(found) => Some(beginning::find(config, &admin, &counts, found)?),
        None => None,
    };
    let group_offsets = found.is_none().then(|| group::request(config, &counts));
    readable.wait()?;
    let topics = &config.kafka.topics;
    let ledger = &config.ledger;
    let options = StartOptions { with_rows, needed_past: config.needed_past() };
    let mut started = ledger::start_with_retries(ledger, topics, options, time_left(), give_up)?;
    let mut plan = assemble(&started.durable, topics, &counts, now_ms(), config.rules)?;
    let ids = admin.topic_ids(topics);
    plan.topic_ids.iter_mut().zip(ids).for_each(|(known, id)| *known = id);
    let beginning = match started.durable.is_first_start() {
        false => Beginning::default(),
        true => beginning.ok_or_else(|| {
            Fault::Environment(format!(
                "the job {} was removed while this start looked at it: start again",
                config.ledger.job
            ))
        })?,
    };
    beginning.advice.iter().for_each(|advice| warn!("{advice}"));
    let losses = place_partitions(&mut plan, (config, run_state), (&admin, &counts), beginning)?;
    log_start(config, &counts, &started, &plan);
    let ahead = group_offsets.map(|offsets| group::compare(&offsets, config, &plan));
    ahead.iter().flatten().for_each(|advice| warn!("{advice}"));
    if !losses.is_empty() {
        accept(&mut plan, config, &losses)?;
    }
    Ok((plan, started.initial_rows.take()))
}

fn log_start(config: &Config, counts: &[i32], started: &Started, plan: &RecoveryPlan) {
    info!("{}", banner::banner(config, counts, started, plan));
    if config.from.is_some() && !started.durable.is_first_start() {
        warn!(
            "--from says where a first start begins; the job {} has begun and continues where it \
             stopped (`sessionizer reset` begins afresh)",
            config.ledger.job
        );
    }
    let before = started.topics_before.as_ref();
    if let Some(change) = banner::topic_change(before, &started.durable, &config.kafka.topics) {
        warn!("{change}");
    }
    match started.found_rows_to {
        Some(EventTime::NEVER) | None => {}
        Some(newest) => info!(
            "the table has rows up to {newest}: an event up to then merges with the rows that it \
             touches"
        ),
    }
}

/// Sets for each partition where reading begins and ends. Returns what is needed but gone.
fn place_partitions(
    plan: &mut RecoveryPlan,
    (config, run_state): (&Config, &RunState),
    (admin, counts): (&Admin, &[i32]),
    beginning: Beginning,
) -> Result<Vec<Loss>, Fault> {
    let mut losses = beginning.losses;
    losses.extend(retire_what_is_gone(plan, counts));
    let recreated: BTreeSet<String> = losses
        .iter()
        .filter(|loss| loss.available.is_none())
        .map(|loss| loss.topic.clone())
        .collect();
    // Queried first: if the readable end, queried later, is before this one, growth of the log is
    // not the reason.
    let log_ends = match config.until_end {
        true => {
            let read = plan.partitions.iter().filter(|part| !part.retired);
            let read: Vec<Partition> = read.map(|part| part.start.partition).collect();
            admin.log_ends(&plan.topics, &read)
        }
        false => BTreeMap::new(),
    };
    for part in plan.partitions.iter_mut().filter(|part| !part.retired) {
        let partition = part.start.partition;
        let topic = &plan.topics[usize::from(partition.topic)];
        let (oldest, end) = admin.offsets(topic, partition.number)?;
        part.until = config.until_end.then_some(end);
        part.oldest = oldest;
        if let Some(log_end) = log_ends.get(&partition).filter(|log_end| **log_end > end) {
            let count = log_end.since(end);
            run_state.metrics.held_offsets.fetch_add(count as u64, Relaxed);
            warn!(
                topic = topic, partition = partition.number, offset = end.get();
                "{topic}[{}]: --until-end reads to offset {end}, the last stable offset. The {count} \
                 offsets from there up to {log_end} are held back by an open transaction: Kafka \
                 delivers them when it has ended. Run --until-end again then",
                partition.number
            );
        }
        if is_new(part, &plan.replay) {
            let start = beginning.offsets.get(&(topic.clone(), partition.number));
            part.start = Binding::initial(partition, *start.unwrap_or(&oldest));
            continue;
        }
        let last = last_binding(part, &plan.replay);
        let now = plan.topic_ids[usize::from(partition.topic)];
        let same = now.zip(last.topic_id).map(|(now, then)| now == then);
        let same = if recreated.contains(topic) { Some(false) } else { same };
        let Some(loss) = find_loss(topic, (part.start.end, &last), (oldest, end), same) else {
            continue;
        };
        if loss.to.is_none() {
            part.restart = Some(oldest);
        } else if end < last.end {
            part.restart = Some(end);
        }
        losses.push(loss);
    }
    Ok(losses)
}

/// The last binding of a partition.
fn last_binding(part: &PartitionPlan, replay: &[BoundEpoch]) -> Binding {
    let partition = part.start.partition;
    let replayed = replay.iter().rev().flat_map(|epoch| &epoch.bindings);
    *replayed.into_iter().find(|b| b.partition == partition).unwrap_or(&part.start)
}

/// A topic never loses partitions: if it has fewer than the job has read, it was deleted and
/// created again. The missing ones are not read, and the watermark does not wait for them. Returns
/// the losses, without those that an earlier start has accepted. `counts` are the numbers of
/// partitions, by topic.
fn retire_what_is_gone(plan: &mut RecoveryPlan, counts: &[i32]) -> Vec<Loss> {
    let mut losses = Vec::new();
    for part in plan.partitions.iter_mut().filter(|part| !part.retired) {
        let Partition { topic, number } = part.start.partition;
        let count = counts[usize::from(topic)];
        if number < count {
            continue;
        }
        let last = last_binding(part, &plan.replay);
        let now = plan.topic_ids[usize::from(topic)];
        // Accepting the loss binds an end and the new topic's id to the partition.
        let accepted = match now.zip(last.topic_id) {
            Some((now, then)) => now == then,
            None => last.status == Status::Ended,
        };
        part.retired = true;
        // If the new topic ever gets such a partition, it is read from the beginning.
        part.restart = Some(Offset::ZERO);
        if accepted {
            continue;
        }
        losses.push(Loss {
            topic: plan.topics[usize::from(topic)].clone(),
            partition: number,
            from: part.start.end,
            to: None,
            read_to: last.end,
            available: None,
            reason: format!(
                "the topic was deleted and created again with {}",
                plural(count as u64, "partition")
            ),
        });
    }
    losses
}

/// Whether nothing durable mentions this partition.
fn is_new(part: &PartitionPlan, replay: &[BoundEpoch]) -> bool {
    let partition = part.start.partition;
    !part.known && replay.iter().all(|e| e.bindings.iter().all(|b| b.partition != partition))
}

/// Finds what a partition needs but Kafka no longer has. `from` is where reading begins, `last` the
/// last binding; Kafka has the offsets from `oldest` to `end`. `same` says whether the topic is
/// still the one that was bound.
fn find_loss(
    topic: &str,
    (from, last): (Offset, &Binding),
    (oldest, end): (Offset, Offset),
    same: Option<bool>,
) -> Option<Loss> {
    // Nobody knows how long a deleted topic was.
    let (from, to, reason) = if same == Some(false) {
        (from, None, "the topic was deleted and created again")
    } else if end < last.end && same.is_none() {
        (from, None, "the topic was deleted and created again, or its end was lost")
    } else if end < last.end {
        (end, Some(last.end), "the end of the log was lost (an unclean leader election?)")
    } else if from < oldest {
        (from, Some(oldest), "retention has deleted the records in between")
    } else {
        return None;
    };
    let (topic, partition) = (topic.to_owned(), last.partition.number);
    let (available, reason) = (Some((oldest, end)), reason.to_owned());
    Some(Loss { topic, partition, from, to, read_to: last.end, available, reason })
}

/// Records the losses, or refuses to start.
fn accept(plan: &mut RecoveryPlan, config: &Config, losses: &[Loss]) -> Result<(), Fault> {
    if !config.accept_lost_offsets {
        return Err(refuse(losses));
    }
    let places = places(losses);
    warn!("continuing without what is lost (--accept-lost-offsets): {places}");
    let newest = ledger::accept_losses(&config.ledger, losses, plan.first_epoch);
    plan.lost_before = Some(newest.map_err(|error| match error {
        LedgerError::Fatal(fault) => fault,
        LedgerError::Retry(why) => Fault::Environment(format!("cannot note what is lost: {why}")),
    })?);
    Ok(())
}

fn places(losses: &[Loss]) -> String {
    let places: Vec<String> = losses.iter().map(ToString::to_string).collect();
    places.join("; ")
}

fn refuse(losses: &[Loss]) -> Fault {
    Fault::Config(format!(
        "{}. What is in Postgres stays right. Start with --accept-lost-offsets to continue \
         without them (the loss is counted in sessionizer.balance), or begin afresh with what is \
         there: `sessionizer reset` removes the job and its rows",
        places(losses)
    ))
}

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
    };
    let retired = |partition: Partition| usize::from(partition.topic) >= topics.len();
    let mut partitions: BTreeMap<Partition, PartitionPlan> = BTreeMap::new();
    let mut plan = |start: Binding, known: bool| {
        let retired = retired(start.partition);
        let (until, restart, oldest) = (None, None, Offset::ZERO);
        let plan = PartitionPlan { start, known, until, retired, restart, oldest };
        partitions.entry(start.partition).or_insert(plan);
    };
    for named in &durable.base.bindings {
        plan(binding(named), true);
    }
    for named in durable.replay.iter().flat_map(|epoch| &epoch.bindings) {
        // The first binding of a partition is where reading it began.
        plan(binding(named), false);
    }
    for (topic, count) in counts.iter().enumerate() {
        for number in 0..*count {
            plan(Binding::initial(Partition { topic: topic as u16, number }, Offset::ZERO), false);
        }
    }
    let replay: Vec<BoundEpoch> = durable
        .replay
        .iter()
        .map(|epoch| BoundEpoch {
            epoch: epoch.epoch,
            watermark: epoch.watermark,
            rules: epoch.rules.unwrap_or(rules),
            bindings: epoch.bindings.iter().map(binding).collect(),
        })
        .collect();
    let last = bound.map(|epoch| epoch.epoch).max().unwrap_or(0);
    let committed = durable.progress.iter().map(|shard| shard.epoch).max().unwrap_or(0);
    if committed > last {
        return Err(Fault::Config(format!(
            "a shard stands at the epoch {committed} in sessionizer.shard_progress, but the last in \
             sessionizer.epochs is {last}: rows were deleted or changed by hand"
        )));
    }
    Ok(RecoveryPlan {
        fence: durable.fence,
        topics: names.clone(),
        topic_ids: vec![None; names.len()],
        rules,
        lost_before: None,
        progress: durable.progress.clone(),
        base_epoch: durable.base.epoch,
        base_watermark: durable.base.watermark,
        replay,
        first_epoch: first.max(last + 1),
        age_ms: 0,
        partitions: partitions.into_values().collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::NamedEpoch;
    use sessionizer_core::plan::{Fence, ShardProgress};
    use sessionizer_core::time::EventTime;

    const RULES: RecordRules =
        RecordRules { max_future_ms: 0, late: sessionizer_core::binding::Late::Merge };

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

    #[test]
    fn what_is_needed_and_gone_is_reported_with_both_ends() {
        let partition = Partition { topic: 0, number: 3 };
        let at = Offset::new;
        let last = Binding { end: at(9), ..Binding::initial(partition, Offset::ZERO) };
        let find = |from, (oldest, end), same| {
            find_loss("t", (at(from), &last), (at(oldest), at(end)), same)
        };
        let same = Some(true);
        assert_eq!(find(5, (5, 9), same), None);
        assert_eq!(find(9, (9, 9), None), None);
        let gone = find(4, (5, 9), same).expect("retention");
        assert_eq!((gone.from, gone.to, gone.read_to), (at(4), Some(at(5)), at(9)));
        let text = gone.to_string();
        assert!(text.contains("t[3]") && text.contains("offset 4") && text.contains("5 to 9"));
        for (available, same) in [((0, 8), None), ((0, 20), Some(false))] {
            let gone = find(4, available, same).expect("created again");
            assert_eq!(gone.to, None);
            assert!(gone.to_string().contains("created again"));
        }
        let cut = find(4, (0, 8), same).expect("the end is gone");
        assert_eq!((cut.from, cut.to, cut.read_to), (at(8), Some(at(9)), at(9)));
        assert!(cut.to_string().contains("offset 9, but Kafka has 0 to 8: the end"));
    }
}
