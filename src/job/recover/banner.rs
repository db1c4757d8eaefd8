//! What a start reports about itself: the version of the program, the servers it is connected to,
//! and where it resumes. It contains no secrets.

use std::collections::BTreeSet;
use std::time::Duration;

use sessionizer_core::plan::RecoveryPlan;
use sessionizer_core::time::EventTime;

use crate::cli::version;
use crate::config::Config;
use crate::kafka::StartAt;
use crate::ledger::{RecoveredState, Started};
use crate::ui::text;

/// The log line of a start.
pub fn banner(config: &Config, counts: &[i32], started: &Started, plan: &RecoveryPlan) -> String {
    let job = &config.ledger.job;
    let whence = if started.durable.is_first_start() {
        format!("first start of the job {job}, from {}", beginning(config.from.as_ref()))
    } else {
        let (generation, epochs) =
            (plan.fence.generation, text::plural(plan.replay.len() as u64, "epoch"));
        format!("start {generation} of the job {job}: {epochs} to replay")
    };
    let topics = config.kafka.topics.iter().zip(counts);
    let topics: Vec<String> = topics
        .map(|(topic, count)| format!("{topic} ({})", text::plural(*count as u64, "partition")))
        .collect();
    let gap = Duration::from_millis(config.ledger.gap.millis() as u64);
    let workers = text::plural(config.workers as u64, "worker");
    let workers = match config.processes {
        1 => workers,
        processes => format!("{processes} processes with {workers} each"),
    };
    format!(
        "{whence}; topic {} at {}; table {}{} in {}; gap {}; {workers}; sessionizer {}",
        topics.join(", "),
        config.kafka.brokers,
        started.table,
        if started.made_table { " (new)" } else { "" },
        started.database,
        humantime::format_duration(gap),
        version::FULL,
    )
}

/// Describes where a first start begins.
pub fn beginning(from: Option<&StartAt>) -> String {
    match from {
        None | Some(StartAt::Earliest) => "the earliest offsets".to_owned(),
        Some(StartAt::Latest) => "the latest offsets".to_owned(),
        Some(StartAt::Timestamp(ms)) => EventTime::from_millis(*ms).to_string(),
        Some(StartAt::Group(group)) => format!("the offsets of the consumer group {group}"),
        Some(StartAt::Savepoint(name)) => format!("the offsets of the savepoint {name}"),
    }
}

/// Describes what a change of KAFKA_TOPIC since the last start means. `None` if it has not changed.
pub fn topic_change(
    before: Option<&Vec<String>>,
    durable: &RecoveredState,
    topics: &[String],
) -> Option<String> {
    let before: BTreeSet<&str> = before?.iter().map(|t| &**t).collect();
    let now: BTreeSet<&str> = topics.iter().map(String::as_str).collect();
    let RecoveredState { base, replay, .. } = durable;
    let epochs = std::iter::once(base).chain(replay);
    let known: BTreeSet<&str> =
        epochs.flat_map(|epoch| &epoch.bindings).map(|binding| &*binding.topic).collect();
    let gone: Vec<&str> =
        before.difference(&now).copied().filter(|topic| known.contains(topic)).collect();
    let (again, new): (Vec<&str>, Vec<&str>) =
        now.difference(&before).copied().partition(|topic| known.contains(topic));
    let mut parts = Vec::new();
    for (topics, what) in [
        (
            gone,
            "is read no more (what was read of it counts; its open sessions close as time goes on \
             in the other topics, which it does not hold back)",
        ),
        (new, "is new, and read from its earliest offset"),
        (again, "is read again, from where it was left"),
    ] {
        parts.extend(topics.iter().map(|topic| format!("{topic} {what}")));
    }
    let was = before.into_iter().collect::<Vec<&str>>().join(",");
    (!parts.is_empty())
        .then(|| format!("KAFKA_TOPIC has changed, it was {was}: {}", parts.join("; ")))
}
