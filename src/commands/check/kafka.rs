//! Kafka: whether it answers, what this login may do, and what the partitions hold. [`super::data`]
//! judges the records that are sampled here.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use sessionizer_core::binding::{Offset, Partition};

use super::codes::{Code, Section};
use super::data::EventSample;
use super::report::Finding;
use crate::job::clock::now_ms;
use crate::kafka::{Admin, KafkaConfig, Range, ReadCheck, TopicReply, remedy, scan_for};
use crate::ui::text::{bytes, count, plural};

/// How many records are sampled in all, and from one partition.
const SAMPLED: i64 = 2_000;
const SAMPLED_OF_ONE: std::ops::RangeInclusive<i64> = 10..=200;
/// How many partitions a line names.
const NAMED: usize = 4;

/// What to look at, and how.
pub struct CheckOptions {
    pub sections: Vec<Section>,
    /// Whether `--only` names `data`: then the events are read even if Kafka creates
    /// `__consumer_offsets` because of that.
    pub data_requested: bool,
    pub timeout: Duration,
    pub max_future_ms: i64,
}

/// What the plan needs to know.
pub struct Facts {
    /// The number of partitions, by topic.
    pub counts: Vec<i32>,
    /// Whether consumer groups can be asked about without changing anything.
    pub has_groups: bool,
    /// For JSON.
    pub partitions: Vec<Value>,
}

/// Checks Kafka and a sample of the events. Returns `None` if the topics cannot be read.
pub fn check(
    config: &KafkaConfig,
    options: &CheckOptions,
    report: &mut dyn FnMut(Finding),
) -> Option<Facts> {
    let admin = match Admin::new(config) {
        Ok(admin) => admin,
        Err(fault) => {
            report(
                Finding::of_fault(Code::K02, &fault)
                    .or_remedy("correct the sasl.* and ssl.* settings of --kafka-config"),
            );
            return None;
        }
    };
    let counts = topics(config, &admin, options.timeout, report)?;
    let has_groups = admin.has_groups();
    let partitions = partitions(&counts);
    let oldest = admin.beginnings(&config.topics, &partitions);
    // In this order: records that arrive in between must not look like those of a transaction.
    let log_ends = admin.log_ends(&config.topics, &partitions);
    let ends = admin.ends(&config.topics, &partitions).unwrap_or_default();
    let ranges = ranges(config, &oldest, &ends);
    let facts = Facts {
        counts,
        has_groups,
        partitions: ranges.iter().map(|range| as_json(range, &log_ends, config)).collect(),
    };
    extents(config, &partitions, &ranges, report);
    open_transactions(config, &ranges, &log_ends, report);
    batches(config, &admin, options.timeout, report);
    if !has_groups && !options.data_requested {
        report(Finding::warning(
            Code::K06,
            "no consumer has used this Kafka yet, and the first makes Kafka create its topic \
             __consumer_offsets: no events were sampled",
            "to read them all the same: sessionizer check --only data",
        ));
        return Some(facts);
    }
    group(config, &admin, &partitions, options.timeout, report);
    if let Err(fault) = ReadCheck::start(config).wait() {
        report(Finding::of_fault(Code::K05, &fault));
        return None;
    }
    report(Finding::good(Code::K05, "this login may read the topics"));
    if options.sections.contains(&Section::Data) {
        sample(config, &ranges, options, report);
    }
    Some(facts)
}

/// Looks up the topics. Returns the number of partitions of each, or `None` if any cannot be used.
fn topics(
    config: &KafkaConfig,
    admin: &Admin,
    timeout: Duration,
    report: &mut dyn FnMut(Finding),
) -> Option<Vec<i32>> {
    let place = &config.brokers;
    let mut counts = Vec::new();
    let mut answered = false;
    let mut answers = |brokers: usize, report: &mut dyn FnMut(Finding)| {
        if !std::mem::replace(&mut answered, true) {
            let who = match brokers {
                0 => String::new(),
                brokers => format!(": {}", plural(brokers, "broker")),
            };
            report(Finding::good(Code::K01, format!("{place} answers{who}")));
            report(Finding::good(Code::K02, format!("connected by {}", config.protocol())));
        }
    };
    for topic in &config.topics {
        match admin.inspect(topic, timeout) {
            TopicReply::Topic { brokers, partitions, leaderless } => {
                answers(brokers, report);
                report(Finding::good(Code::K03, format!("the topic {topic} exists")));
                leaders(topic, partitions, &leaderless, report);
                counts.push(partitions);
            }
            TopicReply::NoTopic => {
                answers(0, report);
                report(no_topic(topic, config));
            }
            TopicReply::Denied(fault) => {
                answers(0, report);
                report(Finding::of_fault(Code::K05, &fault));
            }
            TopicReply::Refused(why) => {
                report(refused(config, &why));
                return None;
            }
            TopicReply::Silent(why) => {
                report(silent(config, &why));
                return None;
            }
        }
    }
    (counts.len() == config.topics.len()).then_some(counts)
}

fn leaders(topic: &str, partitions: i32, leaderless: &[i32], report: &mut dyn FnMut(Finding)) {
    if leaderless.is_empty() {
        let every = match partitions {
            1 => "its partition has a leader".to_owned(),
            several => format!("all {several} partitions of {topic} have leaders"),
        };
        return report(Finding::good(Code::K04, every));
    }
    let text = format!("{topic}{leaderless:?}: no broker leads these partitions now");
    let remedy = format!(
        "kafka-topics.sh --describe --topic {topic} --unavailable-partitions --bootstrap-server ..."
    );
    report(Finding::failed(Code::K04, 1, text, remedy));
}

fn no_topic(topic: &str, config: &KafkaConfig) -> Finding {
    let mut finding = Finding::failed(
        Code::K03,
        2,
        format!("the topic {topic} does not exist"),
        "correct KAFKA_TOPIC, or create it:",
    );
    let first = config.brokers.split(',').next().unwrap_or_default();
    finding.remedies.push(format!(
        "kafka-topics.sh --create --topic {topic} --partitions 4 --bootstrap-server {first}"
    ));
    finding
}

fn refused(config: &KafkaConfig, why: &str) -> Finding {
    let why = crate::ui::tls::plain(why);
    let text = format!("Kafka at {} refuses the connection: {why}", config.brokers);
    Finding::failed(Code::K02, 2, text, remedy::of_refusal(&why))
}

fn silent(config: &KafkaConfig, why: &str) -> Finding {
    let text = format!("Kafka at {}: {why}", config.brokers);
    Finding::failed(Code::K01, 1, text, remedy::of_silence(why))
}

/// All partitions of all topics.
fn partitions(counts: &[i32]) -> Vec<Partition> {
    let of = |(topic, count): (usize, &i32)| {
        let partition = move |number| Partition { topic: topic as u16, number };
        (0..*count).map(partition)
    };
    counts.iter().enumerate().flat_map(of).collect()
}

/// The offsets that each partition holds, where they are known.
fn ranges(
    config: &KafkaConfig,
    oldest: &BTreeMap<Partition, Offset>,
    ends: &BTreeMap<Partition, Offset>,
) -> Vec<(Partition, Range)> {
    let range = |(partition, start): (&Partition, &Offset)| {
        let topic = config.topics[usize::from(partition.topic)].clone();
        let end = *ends.get(partition)?;
        Some((*partition, Range { topic, partition: partition.number, start: *start, end }))
    };
    oldest.iter().filter_map(range).collect()
}

fn as_json(
    (partition, range): &(Partition, Range),
    log_ends: &BTreeMap<Partition, Offset>,
    config: &KafkaConfig,
) -> Value {
    let log_end = log_ends.get(partition).copied().unwrap_or(range.end);
    json!({
        "topic": config.topics[usize::from(partition.topic)],
        "partition": partition.number,
        "oldest": range.start.get(),
        "end": range.end.get(),
        "held_back": log_end.since(range.end).max(0),
    })
}

/// How much the partitions hold.
fn extents(
    config: &KafkaConfig,
    partitions: &[Partition],
    ranges: &[(Partition, Range)],
    report: &mut dyn FnMut(Finding),
) {
    for (at, topic) in config.topics.iter().enumerate() {
        let of = |partition: &Partition| usize::from(partition.topic) == at;
        let wanted = partitions.iter().filter(|partition| of(partition)).count();
        let mine: Vec<&Range> =
            ranges.iter().filter(|(partition, _)| of(partition)).map(|(_, range)| range).collect();
        if mine.len() < wanted {
            let missing = plural(wanted - mine.len(), "partition");
            let text = format!("the offsets of {missing} of {topic} are not known: no answer");
            report(Finding::failed(Code::K07, 1, text, "see SZ-K04, or raise --timeout"));
            continue;
        }
        let records: i64 = mine.iter().map(|range| range.end.since(range.start)).sum();
        let place =
            |range: &&Range| format!("[{}] {}..{}", range.partition, range.start, range.end);
        let mut places: Vec<String> = mine.iter().take(NAMED).map(place).collect();
        if mine.len() > NAMED {
            places.push(format!("and {} more", mine.len() - NAMED));
        }
        report(Finding::good(
            Code::K07,
            format!("{topic}: {} offsets, {}", count(records), places.join(", ")),
        ));
    }
}

/// Looks for records that cannot be read yet, because a transaction is open.
fn open_transactions(
    config: &KafkaConfig,
    ranges: &[(Partition, Range)],
    log_ends: &BTreeMap<Partition, Offset>,
    report: &mut dyn FnMut(Finding),
) {
    let held: Vec<(&Range, i64)> = ranges
        .iter()
        .filter_map(|(partition, range)| Some((range, log_ends.get(partition)?.since(range.end))))
        .filter(|(_, behind)| *behind > 0)
        .collect();
    let Some((Range { topic, partition, .. }, _)) = held.first() else {
        return report(Finding::good(Code::K08, "no transaction is open at the end"));
    };
    let more = held.len().saturating_sub(NAMED);
    let name = |(range, behind): &(&Range, i64)| {
        let Range { topic, partition, end, .. } = range;
        format!("{topic}[{partition}]: {} from {end} on", count(*behind))
    };
    let mut named = held.iter().take(NAMED).map(name).collect::<Vec<_>>().join("; ");
    if more > 0 {
        named.push_str(&format!("; and {more} more"));
    }
    let first = config.brokers.split(',').next().unwrap_or_default();
    report(Finding::warning(
        Code::K08,
        format!("open transactions hold offsets back: {named}. The watermark waits for them"),
        format!(
            "kafka-transactions.sh --bootstrap-server {first} describe-producers --topic {topic} \
             --partition {partition} shows where it began; abort with that --start-offset ends it"
        ),
    ));
}

/// Whether the largest batch that a topic allows can be received.
fn batches(
    config: &KafkaConfig,
    admin: &Admin,
    timeout: Duration,
    report: &mut dyn FnMut(Finding),
) {
    for topic in &config.topics {
        let Some(limits) = admin.batch_limits(topic, timeout) else { continue };
        let largest = bytes(limits.topic);
        if limits.topic <= limits.here {
            let text = format!("record batches of {topic} have at most {largest}, and fit");
            report(Finding::good(Code::K09, text));
            continue;
        }
        let text = format!(
            "{topic} allows record batches of {largest}, and at most {} can be received",
            bytes(limits.here)
        );
        let needed = limits.topic.saturating_add(1_024);
        let remedy = format!("add --kafka-config receive.message.max.bytes={needed}");
        report(Finding::warning(Code::K09, text, remedy));
    }
}

/// Whether the job may use the group. It does so only for the sake of tools that show lag.
fn group(
    config: &KafkaConfig,
    admin: &Admin,
    partitions: &[Partition],
    timeout: Duration,
    report: &mut dyn FnMut(Finding),
) {
    let name = |partition: &Partition| {
        (config.topics[usize::from(partition.topic)].clone(), partition.number)
    };
    let wanted: Vec<(String, i32)> = partitions.iter().map(name).collect();
    let group = &config.group;
    report(match admin.committed(group, &wanted, timeout) {
        Ok(Some(_)) => Finding::good(Code::K06, format!("the consumer group {group} can be used")),
        Ok(None) => Finding::warning(
            Code::K06,
            format!(
                "Kafka does not let this login use the consumer group {group}: the job runs \
                 without it, and tools that show lag do not see it"
            ),
            format!("grant it READ on the group {group} (deploy/kafka/acls.sh)"),
        ),
        Err(fault) => Finding::of_fault(Code::K06, &fault).or_remedy("raise --timeout"),
    });
}

/// Reads the ends of the partitions and judges what is there.
fn sample(
    config: &KafkaConfig,
    ranges: &[(Partition, Range)],
    options: &CheckOptions,
    report: &mut dyn FnMut(Finding),
) {
    let each = SAMPLED / (ranges.len() as i64).max(1);
    let each = each.clamp(*SAMPLED_OF_ONE.start(), *SAMPLED_OF_ONE.end());
    let ends: Vec<Range> = ranges
        .iter()
        .map(|(_, range)| Range {
            start: range.start.max(Offset::new((range.end.get() - each).max(0))),
            ..range.clone()
        })
        .filter(|range| range.start < range.end)
        .collect();
    let mut sample = EventSample::default();
    let read = scan_for(config, &ends, options.timeout, |at, record| {
        sample.take(&ends[at].topic, ends[at].partition, &record);
        true
    });
    if let Err(fault) = read {
        report(
            Finding::of_fault(Code::D01, &fault)
                .or_remedy("raise --timeout; if it stays so, RUST_LOG=debug shows what Kafka says"),
        );
        if sample.is_empty() {
            return;
        }
    }
    sample.judge(now_ms() as i64, options.max_future_ms).into_iter().for_each(report);
}
