//! Decides where the first start of a job begins to read, and whether it may.
//!
//! If the table has rows before the job has written any, it holds sessions of events that may still
//! be in the topic. Reading those events again would count them twice, and no later check could
//! detect it. So a first start on such a table has to be told where to begin, and that position is
//! checked against the offsets that a consumer group has committed, or against the events
//! themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::HumanCount;
use sessionizer_core::binding::Offset;
use sessionizer_core::fault::{Fault, Message};
use sessionizer_core::time::EventTime;

use crate::config::Config;
use crate::job::clock::now_ms;
use crate::job::recover::{overlap, savepoint};
use crate::kafka::{Admin, GroupOffset, StartAt};
use crate::ledger::{ExistingRows, FirstStart, Loss};
use crate::ui::text::duration;

/// How many positions a message names.
pub(super) const MAX_NAMED: usize = 3;

/// What stands between a reason to refuse a start and the remedy. `check` never changes anything,
/// and need not say so.
pub(super) const NOTHING_CHANGED: &str = ". Nothing was changed. ";

/// Where each partition begins.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Beginning {
    /// By topic and partition.
    pub offsets: BTreeMap<(String, i32), Offset>,
    /// Offsets of the consumer group that Kafka no longer has, if that is accepted.
    pub losses: Vec<Loss>,
    /// What the user should know about it.
    pub advice: Vec<String>,
}

/// A partition at a first start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct PartitionStart {
    pub topic: String,
    pub partition: i32,
    /// The oldest offset that Kafka has, and the offset after the newest record.
    pub oldest: Offset,
    pub end: Offset,
    pub committed: Option<GroupOffset>,
    /// Where reading begins.
    pub begin: Offset,
}

impl PartitionStart {
    pub fn name(&self) -> String {
        format!("{}[{}]", self.topic, self.partition)
    }
}

/// Finds where a first start begins. Refuses a start that would, or could, count events twice.
pub fn find(
    config: &Config,
    admin: &Admin,
    counts: &[i32],
    found: &FirstStart,
) -> Result<Beginning, Fault> {
    if let (Some(rows), None) = (&found.rows, &config.from) {
        return Err(from_is_required(config, rows));
    }
    let from = config.from.clone().unwrap_or(StartAt::Earliest);
    let mut starts = find_starts(config, admin, counts)?;
    let group = match &from {
        StartAt::Group(group) => group.as_str(),
        _ => config.kafka.group.as_str(),
    };
    // Without rows, only --from group needs the offsets.
    if found.rows.is_some() || matches!(from, StartAt::Group(_)) {
        let wanted: Vec<(String, i32)> =
            starts.iter().map(|start| (start.topic.clone(), start.partition)).collect();
        let committed = admin.committed(group, &wanted, config.start_timeout)?;
        if committed.is_none() && matches!(from, StartAt::Group(_)) {
            let problem = format!(
                "--from group: Kafka does not let this login read the offsets of the consumer \
                 group {group}"
            );
            let remedy = "grant it READ and DESCRIBE on the group";
            return Err(Fault::config(Message::new(problem).remedy(": ", remedy)));
        }
        let committed = committed.unwrap_or_default();
        for start in &mut starts {
            start.committed = committed.get(&(start.topic.clone(), start.partition)).copied();
        }
    }
    let (mut losses, mut advice) = (Vec::new(), Vec::new());
    match &from {
        StartAt::Group(group) => {
            losses = begin_at_group(config, group, &mut starts, found, &mut advice)?;
        }
        StartAt::Savepoint(name) => {
            losses = begin_at_savepoint(config, name, &mut starts, &mut advice)?;
        }
        StartAt::Earliest => starts.iter_mut().for_each(|start| start.begin = start.oldest),
        StartAt::Latest => starts.iter_mut().for_each(|start| start.begin = start.end),
        StartAt::Timestamp(ms) => {
            advice.extend(in_the_future(*ms));
            for start in &mut starts {
                start.begin = admin.offset_at(&start.topic, start.partition, *ms, start.end)?;
            }
        }
    }
    if let Some(rows) = &found.rows {
        advice.extend(overlap::refuse(config, group, &starts, rows)?);
    }
    let offsets = starts.into_iter().map(|p| ((p.topic, p.partition), p.begin)).collect();
    Ok(Beginning { offsets, losses, advice })
}

/// Warns of a time in the future: it may be a typo, or meant in another time zone.
fn in_the_future(ms: i64) -> Option<String> {
    let ahead = u64::try_from(ms.saturating_sub(now_ms() as i64)).unwrap_or(0);
    // Clocks differ a little.
    (ahead >= 1_000).then(|| {
        format!(
            "--from {} lies {} in the future, by this machine's clock: a partition without a \
             record of then or later is read from its end, as with --from latest",
            EventTime::from_millis(ms),
            duration(Duration::from_millis(ahead))
        )
    })
}

fn find_starts(
    config: &Config,
    admin: &Admin,
    counts: &[i32],
) -> Result<Vec<PartitionStart>, Fault> {
    let mut starts = Vec::new();
    for (topic, count) in config.kafka.topics.iter().zip(counts) {
        for partition in 0..*count {
            let (oldest, end) = admin.offsets(topic, partition)?;
            let topic = topic.clone();
            starts.push(PartitionStart {
                topic,
                partition,
                oldest,
                end,
                committed: None,
                begin: oldest,
            });
        }
    }
    Ok(starts)
}

/// Explains why a first start on a table with rows needs `--from`.
fn from_is_required(config: &Config, rows: &ExistingRows) -> Fault {
    let ExistingRows { table, newest } = rows;
    let (job, group) = (&config.ledger.job, &config.kafka.group);
    let up_to = newest.map_or(String::new(), |newest| format!(" up to {newest}"));
    let time = newest.map_or(String::new(), |newest| {
        format!(
            "\n  --from {newest}\n      begins at the first record with this Kafka timestamp or \
             a later one. This is the end of the last session in the table, the gap included: \
             records before it that the table lacks are skipped"
        )
    });
    let problem = format!(
        "the table {table} has rows{up_to} and the job {job} has not begun yet: reading the topic \
         from its beginning would count the events of those rows twice"
    );
    let remedy = format!(
        "Say where to begin (--from), or give the job an empty table:\
         \n  --from savepoint:DIR\
         \n      continues where a Flink job has stopped: DIR is what `flink stop --drain` printed\
         \n  --from group\
         \n      continues at the offsets that the consumer group {group} has committed (--from \
         group:NAME: those of another group); a Flink job's lag behind its rows, even after \
         --drain, and the events in between would count twice{time}\
         \n  --table NAME\
         \n      another table, which is made if it is missing; everything is read\
         \n  truncate {table}\
         \n      (in psql) if its rows are not needed; everything is read again"
    );
    Fault::config(Message::new(problem).remedy(NOTHING_CHANGED, remedy))
}

/// Begins at the offsets of a group, for all partitions.
fn begin_at_group(
    config: &Config,
    group: &str,
    starts: &mut [PartitionStart],
    found: &FirstStart,
    advice: &mut Vec<String>,
) -> Result<Vec<Loss>, Fault> {
    let topics = config.kafka.topics.join(", ");
    if starts.iter().all(|start| start.committed.is_none()) {
        let problem =
            format!("--from group: the consumer group {group} has committed no offset of {topics}");
        let remedy = "Is it the group.id of the job before (--from group:NAME), and was \
                      checkpointing on, without which Flink commits none? Kafka also forgets the \
                      offsets of a group that has been empty for a week (offsets.retention.minutes)";
        return Err(Fault::config(Message::new(problem).remedy(". ", remedy)));
    }
    let ours = starts.iter().filter(|start| start.committed.is_some_and(|c| c.ours));
    let ours = named(ours.map(PartitionStart::name));
    if !ours.is_empty() {
        let what = format!(
            "the offsets of the consumer group {group} for {ours} were committed by a sessionizer \
             job and not by another before it: sessions that were open then are not in the table, \
             and their first events would be missing"
        );
        if found.rows.is_some() {
            let remedy = "Empty the table to read everything again; or, if the table was put back \
                          to what another job has written, set the group's offsets to where that \
                          job stopped (kafka-consumer-groups.sh --reset-offsets)";
            let message = Message::new(what).context("--from group").remedy(". ", remedy);
            return Err(Fault::config(message));
        }
        advice.push(what);
    }
    let offsets: Vec<Option<Offset>> =
        starts.iter().map(|start| start.committed.map(|committed| committed.offset)).collect();
    let who = format!("the consumer group {group} has committed");
    begin_at(config, ("--from group", &who), starts, &offsets, advice)
}

/// Begins at the offsets in the savepoint of a drained job.
fn begin_at_savepoint(
    config: &Config,
    name: &str,
    starts: &mut [PartitionStart],
    advice: &mut Vec<String>,
) -> Result<Vec<Loss>, Fault> {
    let savepoint = savepoint::read(name, &config.kafka.topics)
        .map_err(|why| Fault::config(why.context("--from savepoint")))?;
    match savepoint.drained {
        Some(true) => {}
        Some(false) => {
            let problem = format!(
                "--from savepoint: {name} was not made by `flink stop --drain`: sessions that were \
                 open are in it and not in the table"
            );
            let remedy = format!(
                "Start the Flink job from it (`flink run --fromSavepoint {name}`) and stop it with \
                 --drain"
            );
            return Err(Fault::config(Message::new(problem).remedy(". ", remedy)));
        }
        None => advice.push(format!(
            "{name} does not say whether it was made by `flink stop --drain`: without --drain, the \
             sessions that were open then are not in the table"
        )),
    }
    let offset = |start: &PartitionStart| {
        savepoint.offsets.get(&(start.topic.clone(), start.partition)).copied()
    };
    let offsets: Vec<Option<Offset>> = starts.iter().map(offset).collect();
    begin_at(config, ("--from savepoint", "the savepoint has"), starts, &offsets, advice)
}

/// Begins at these offsets, one for each partition. Messages name the flag and the source of the
/// offsets.
fn begin_at(
    config: &Config,
    (flag, who): (&str, &str),
    starts: &mut [PartitionStart],
    offsets: &[Option<Offset>],
    advice: &mut Vec<String>,
) -> Result<Vec<Loss>, Fault> {
    let behind = |(start, offset): (&PartitionStart, &Option<Offset>)| {
        let offset = offset.filter(|offset| *offset > start.end)?;
        Some((start.name(), offset, start.oldest, start.end))
    };
    if let Some((name, offset, oldest, end)) = starts.iter().zip(offsets).find_map(behind) {
        let problem = format!(
            "{flag}: {who} the offset {offset} of {name}, but Kafka has {oldest} to {end}: the \
             topic was deleted and created again, its end was lost, or this is another Kafka"
        );
        let remedy = "Begin at a time (--from TIME) or at --from earliest";
        return Err(Fault::config(Message::new(problem).remedy(". ", remedy)));
    }
    let without = |(start, offset): &(&PartitionStart, &Option<Offset>)| {
        offset.is_none() && start.oldest < start.end
    };
    let without = starts.iter().zip(offsets).filter(without).map(|(start, _)| start.name());
    let without = named(without);
    if !without.is_empty() {
        let what = format!("{who} no offset of {without}, where there are records");
        if !config.accept_overlap {
            let remedy = "If no row of the table is of those records, add --accept-overlap to begin \
                          there at the earliest one";
            return Err(Fault::config(Message::new(what).context(flag).remedy(". ", remedy)));
        }
        advice
            .push(format!("{what}: beginning there at the earliest one, as --accept-overlap says"));
    }
    let losses = place(starts, offsets);
    if !losses.is_empty() && !config.accept_lost_offsets {
        let lost = named(losses.iter().map(ToString::to_string));
        let remedy = "Add --accept-lost-offsets to continue without them (the loss is noted in \
                      sessionizer.losses)";
        return Err(Fault::config(Message::new(lost).context(flag).remedy(". ", remedy)));
    }
    Ok(losses)
}

/// Sets where each partition begins: at its offset, or at the earliest record. Returns what of that
/// is gone.
fn place(starts: &mut [PartitionStart], offsets: &[Option<Offset>]) -> Vec<Loss> {
    let mut losses = Vec::new();
    for (start, offset) in starts.iter_mut().zip(offsets) {
        let Some(offset) = *offset else {
            start.begin = start.oldest;
            continue;
        };
        start.begin = offset.max(start.oldest);
        if offset < start.oldest {
            losses.push(Loss {
                topic: start.topic.clone(),
                partition: start.partition,
                from: offset,
                to: Some(start.oldest),
                read_to: offset,
                available: Some((start.oldest, start.end)),
                reason: "retention has deleted the records in between".to_owned(),
            });
        }
    }
    losses
}

/// Lists the first few items on one line, and says how many more there are.
fn named(things: impl Iterator<Item = String>) -> String {
    let things: Vec<String> = things.collect();
    let mut text = things.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join("; ");
    if things.len() > MAX_NAMED {
        text.push_str(&format!("; and {} more", HumanCount((things.len() - MAX_NAMED) as u64)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_a_few_places_and_counts_the_rest() {
        let names = |count: usize| named((0..count).map(|at| format!("t[{at}]")));
        assert_eq!(names(0), "");
        assert_eq!(names(2), "t[0]; t[1]");
        assert!(names(1_005).ends_with("t[2]; and 1,002 more"));
    }
}
