//! Detects a database that has gone back to an earlier state since the last run, by what the
//! consumer group has committed.
//!
//! A job commits to its group only offsets whose records are durable. So if the group's offset is
//! beyond what Postgres knows, the commits in between are gone.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use log::debug;
use sessionizer_core::binding::Offset;
use sessionizer_core::plan::RecoveryPlan;
use sessionizer_core::time::EventTime;

use crate::config::Config;
use crate::job::recover::last_binding;
use crate::kafka::Admin;
use crate::ui::text::plural;

/// The group's offsets are informative only, so a start waits no longer than this for them.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

type Offsets = BTreeMap<(String, i32), Offset>;

/// The group's offsets, once the answer arrives.
pub struct GroupOffsets(Receiver<Offsets>);

/// Asks in the background while the start continues.
pub fn request(config: &Config, counts: &[i32]) -> GroupOffsets {
    let (answer, receiver) = channel();
    let topics = config.kafka.topics.iter().zip(counts);
    let partitions: Vec<(String, i32)> = topics
        .flat_map(|(topic, count)| (0..*count).map(|partition| (topic.clone(), partition)))
        .collect();
    let (kafka, job) = (config.kafka.clone(), config.ledger.job.clone());
    let work = move || {
        let of_job = (kafka.group.as_str(), job.as_str());
        let offsets = Admin::new(&kafka)
            .and_then(|admin| admin.committed_by(of_job, &partitions, ANSWER_TIMEOUT));
        match offsets {
            Ok(offsets) => drop(answer.send(offsets)), // Nobody may listen any more.
            Err(why) => debug!("what the consumer group remembers: {why}"),
        }
    };
    let thread = thread::Builder::new().name("kafka-group".to_owned());
    thread.spawn(work).expect("a thread can be started");
    GroupOffsets(receiver)
}

/// Says how far the database lags the offsets of the group.
pub fn compare(
    group_offsets: &GroupOffsets,
    config: &Config,
    plan: &RecoveryPlan,
) -> Option<String> {
    let offsets = group_offsets.0.recv_timeout(ANSWER_TIMEOUT).ok()?;
    let mut behind = Vec::new();
    for part in plan.partitions.iter().filter(|part| !part.retired && part.restart.is_none()) {
        let partition = part.start.partition;
        let topic = plan.topic(partition);
        let durable = last_binding(part, &plan.replay).end;
        if let Some(offset) = offsets.get(&(topic.to_owned(), partition.number))
            && *offset > durable
        {
            behind.push((format!("{topic}[{}]", partition.number), durable, offset.since(durable)));
        }
    }
    let (partition, durable, _) = behind.first()?;
    let records: i64 = behind.iter().map(|(_, _, records)| records).sum();
    let epoch = plan.replay.last().map_or(plan.base_epoch, |bound| bound.epoch);
    Some(format!(
        "the database has gone back to an earlier state: the consumer group {} remembers that the \
         job {} had committed more, {} in {}. The newest epoch there is of {}. It may be an \
         asynchronous failover, a restored backup, or a crash with synchronous_commit = off. What \
         is missing is reread, {partition} from offset {durable} on",
        config.kafka.group,
        config.ledger.job,
        plural(records as u64, "record"),
        plural(behind.len() as u64, "partition"),
        EventTime::from_millis(epoch as i64),
    ))
}
