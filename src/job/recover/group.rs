//! Detects a database that has gone back to an earlier state since the last run, and another
//! program that has read on in the meantime, by what the consumer group has committed.
//!
//! A job commits to its group only offsets whose records are durable. So if the group's offset is
//! beyond what Postgres knows, the commits in between are gone.

use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use log::debug;
use sessionizer_core::binding::Offset;
use sessionizer_core::plan::RecoveryPlan;
use sessionizer_core::time::EventTime;

use crate::config::Config;
use crate::job::recover::last_binding;
use crate::kafka::{Admin, Committer, OffsetsBy};
use crate::ui::text::plural;

/// The group's offsets are informative only, so a start waits no longer than this for them.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The group's offsets, once the answer arrives.
pub struct GroupOffsets(Receiver<OffsetsBy>);

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

/// Says how far the database lags the offsets of the group, and whether another program has gone
/// ahead of the job.
pub fn compare(group_offsets: &GroupOffsets, config: &Config, plan: &RecoveryPlan) -> Vec<String> {
    let Ok(offsets) = group_offsets.0.recv_timeout(ANSWER_TIMEOUT) else { return Vec::new() };
    let (mut gone_back, mut overtaken) = (Vec::new(), Vec::new());
    for part in plan.partitions.iter().filter(|part| !part.retired && part.restart.is_none()) {
        let partition = part.start.partition;
        let topic = plan.topic(partition);
        let durable = last_binding(part, &plan.replay).end;
        let place = (topic.to_owned(), partition.number);
        let Some((offset, committer)) = offsets.get(&place).filter(|(at, _)| *at > durable) else {
            continue;
        };
        let ahead = Ahead { place: format!("{topic}[{}]", partition.number), durable, to: *offset };
        match committer {
            Committer::ThisJob => gone_back.push(ahead),
            Committer::AnotherJob => {}
            Committer::AnotherProgram => overtaken.push(ahead),
        }
    }
    let group = &config.kafka.group;
    let gone_back = gone_back.first().map(|first| {
        let epoch = plan.replay.last().map_or(plan.base_epoch, |bound| bound.epoch);
        format!(
            "the database has gone back to an earlier state: the consumer group {group} remembers \
             that the job {} had committed more, {}. The newest epoch there is of {}. It may be an \
             asynchronous failover, a restored backup, or a crash with synchronous_commit = off. \
             What is missing is reread, {} from offset {} on",
            config.ledger.job,
            extent(&gone_back),
            EventTime::from_millis(epoch as i64),
            first.place,
            first.durable
        )
    });
    let overtaken = overtaken.first().map(|first| {
        format!(
            "another program has committed offsets of the consumer group {group} that are ahead of \
             the job {}: {}, {} up to offset {}. If it has written the events of these records \
             into the same table, such as a Flink job that ran again in the meantime, they count \
             twice from here on: docs/FROM_FLINK.md says how to come back from Flink",
            config.ledger.job,
            extent(&overtaken),
            first.place,
            first.to
        )
    });
    gone_back.into_iter().chain(overtaken).collect()
}

/// A partition of which the group knows more than the database.
struct Ahead {
    place: String,
    durable: Offset,
    to: Offset,
}

/// `1,932 records in 2 partitions`
fn extent(all: &[Ahead]) -> String {
    let records: i64 = all.iter().map(|ahead| ahead.to.since(ahead.durable)).sum();
    let partitions = plural(all.len() as u64, "partition");
    format!("{} in {partitions}", plural(records as u64, "record"))
}
