//! What a start would do, without starting: the plan is made from the same parts, but no fence is
//! taken and nothing is written.

use std::collections::BTreeMap;

use sessionizer_core::binding::{Offset, Partition};
use sessionizer_core::fault::Fault;
use sessionizer_core::time::Epoch;

use crate::config::Config;
use crate::dataflow::run_state::RunState;
use crate::job::recover::beginning::Beginning;
use crate::job::recover::losses::refuse;
use crate::job::recover::{assemble, banner, beginning, group, last_binding, place_partitions};
use crate::kafka::Admin;
use crate::ledger::Found;

/// What a start would do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outlook {
    /// Where a first start would begin; `None` if the job has begun.
    pub from: Option<String>,
    /// The last bound epoch, after which the job continues.
    pub epoch: Epoch,
    /// How many epochs are read again, and their records.
    pub epochs_again: usize,
    pub records_again: u64,
    /// Records up to where the partitions end now, with those that are read again.
    pub records: u64,
    pub partitions: usize,
    /// Why the start would be refused unless losses are accepted, and whether they are.
    pub lost: Option<(Fault, bool)>,
    /// What the user should know: a changed topic, a database that has gone back.
    pub advice: Vec<String>,
}

/// Finds out what a start would do. `counts` are the numbers of partitions, by topic;
/// `with_groups` allows questions about consumer groups.
///
/// # Errors
/// Why the start would be refused, or why nobody can tell.
pub fn outlook(
    config: &Config,
    found: &Found,
    counts: &[i32],
    with_groups: bool,
    now_ms: Epoch,
) -> Result<Outlook, Fault> {
    let topics = &config.kafka.topics;
    let admin = Admin::new(&config.kafka)?;
    let (beginning, from) = match &found.first {
        None => (Beginning::default(), None),
        Some(first) => (
            beginning::find(config, &admin, counts, first)?,
            Some(banner::beginning(config.from.as_ref())),
        ),
    };
    let group_offsets = (from.is_none() && with_groups).then(|| group::request(config, counts));
    let mut plan = assemble(&found.durable, topics, counts, now_ms, config.rules)?;
    plan.topic_ids.iter_mut().zip(admin.topic_ids(topics)).for_each(|(known, id)| *known = id);
    let mut advice = beginning.advice.clone();
    // A start that is not bounded asks for no end, and counts nothing.
    let unbounded = Config { until_end: false, ..config.clone() };
    let (run_state, kafka) = (RunState::default(), (&admin, counts));
    let losses = place_partitions(&mut plan, (&unbounded, &run_state), kafka, beginning)?;
    advice.extend(banner::topic_change(found.topics_before.as_ref(), &found.durable, topics));
    advice.extend(
        group_offsets.map(|offsets| group::compare(&offsets, config, &plan)).unwrap_or_default(),
    );
    let read: Vec<Partition> =
        plan.partitions.iter().filter(|p| !p.retired).map(|p| p.start.partition).collect();
    let ends: BTreeMap<Partition, Offset> = admin.ends(topics, &read).unwrap_or_default();
    let (mut records, mut records_again) = (0, 0);
    for part in plan.partitions.iter().filter(|part| !part.retired) {
        let from = part.restart.unwrap_or(part.start.end).max(part.oldest);
        let end = ends.get(&part.start.partition).map_or(0, |end| end.since(from).max(0));
        records += end as u64;
        if part.restart.is_none() {
            let bound = last_binding(part, &plan.replay).end;
            records_again += bound.since(from).clamp(0, end) as u64;
        }
    }
    Ok(Outlook {
        from,
        epoch: plan.replay.last().map_or(plan.base_epoch, |bound| bound.epoch),
        epochs_again: plan.replay.len(),
        records_again,
        records,
        partitions: read.len(),
        lost: (!losses.is_empty()).then(|| (refuse(&losses), config.accept_lost_offsets)),
        advice,
    })
}
