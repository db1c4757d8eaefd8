//! Makes a [`RecoveryPlan`] from what is durable and what Kafka has.

mod assemble;
mod banner;
mod beginning;
mod group;
mod losses;
mod outlook;
mod overlap;
pub mod savepoint;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use log::{info, warn};
use sessionizer_core::binding::{Binding, BoundEpoch, Offset, Partition};
use sessionizer_core::fault::{Fault, Message};
use sessionizer_core::plan::{PartitionPlan, RecoveryPlan};
use sessionizer_core::time::{Epoch, EventTime};

pub use self::assemble::assemble;
use self::beginning::Beginning;
pub use self::outlook::{Outlook, outlook};
use crate::config::Config;
use crate::dataflow::run_state::RunState;
use crate::job::recover::losses::{accept, find_loss, retire_what_is_gone};
use crate::kafka::{Admin, ReadCheck};
use crate::ledger;
use crate::ledger::{InitialRows, Loss, StartOptions, Started};

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
            let job = &config.ledger.job;
            let problem = format!("the job {job} was removed while this start looked at it");
            Fault::environment(Message::new(problem).remedy(": ", "start again"))
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
            note_held_back(run_state, (topic, partition.number), (end, *log_end));
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

/// Warns that a bounded run ends before the end of the log, and counts what it leaves out.
fn note_held_back(
    run_state: &RunState,
    (topic, partition): (&str, i32),
    (end, log_end): (Offset, Offset),
) {
    let count = log_end.since(end);
    run_state.metrics.held_offsets.fetch_add(count as u64, Relaxed);
    warn!(
        topic = topic, partition = partition, offset = end.get();
        "{topic}[{partition}]: --until-end reads to offset {end}, the last stable offset. The \
         {count} offsets from there up to {log_end} are held back by an open transaction: Kafka \
         delivers them when it has ended. Run --until-end again then"
    );
}

/// The last binding of a partition.
fn last_binding(part: &PartitionPlan, replay: &[BoundEpoch]) -> Binding {
    let partition = part.start.partition;
    let replayed = replay.iter().rev().flat_map(|epoch| &epoch.bindings);
    *replayed.into_iter().find(|b| b.partition == partition).unwrap_or(&part.start)
}

/// Whether nothing durable mentions this partition.
fn is_new(part: &PartitionPlan, replay: &[BoundEpoch]) -> bool {
    let partition = part.start.partition;
    !part.known && replay.iter().all(|e| e.bindings.iter().all(|b| b.partition != partition))
}
