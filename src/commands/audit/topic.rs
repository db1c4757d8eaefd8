//! Reads the part of the topic that an audit needs, and separates events from other records.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::ProgressBar;
use sessionizer_core::binding::Offset;
use sessionizer_core::event;
use sessionizer_core::event::{Event, Reason};
use sessionizer_core::fault::Fault;
use sessionizer_core::key::{Key, Shard, stable_hash};
use sessionizer_core::time::EventTime;

use crate::commands::audit::stopped;
use crate::dataflow::ports::Record;
use crate::dataflow::run_state::RunState;
use crate::kafka::{Admin, KafkaConfig, Range, scan};
use crate::ledger::{Moment, NamedBinding};
use crate::ui::bars::{bars, style};
use crate::ui::can_redraw;

/// By topic and partition, and then by shard: the offset after the last record that was verified.
pub(super) type Ends = BTreeMap<(String, i32), Vec<Offset>>;

/// What a record is to an audit.
pub(super) enum Judged {
    Event(Key, EventTime),
    /// An event of a visitor that was forgotten after it had been read.
    Forgotten,
    /// Not an event, or one that does not count.
    Dead,
}

/// Ranges of offsets, and which of their records count for which shard.
pub(super) struct Pass<'a> {
    moment: &'a Moment,
    pub(super) ranges: Vec<Range>,
    /// By range and shard: the offset of the first record that counts, and the one after the last.
    counts: Vec<Vec<(Offset, Offset)>>,
    /// By range: the offset that all shards have passed.
    passed: Vec<Offset>,
}

impl<'a> Pass<'a> {
    /// The records that the job has read and that were not verified before.
    pub(super) fn new_records(moment: &'a Moment, verified: &Ends) -> Self {
        Pass::of(moment, |binding, ends| {
            let from = verified_to(verified, binding, ends.len());
            from.into_iter().zip(ends).map(|(from, end)| (from, end.max(from))).collect()
        })
    }

    /// The records that were verified before.
    pub(super) fn old_records(moment: &'a Moment, verified: &Ends) -> Self {
        Pass::of(moment, |binding, ends| {
            let upto = verified_to(verified, binding, ends.len());
            upto.into_iter().map(|upto| (binding.start, upto)).collect()
        })
    }

    fn of(
        moment: &'a Moment,
        counts: impl Fn(&NamedBinding, Vec<Offset>) -> Vec<(Offset, Offset)>,
    ) -> Self {
        let mut pass = Pass { moment, ranges: Vec::new(), counts: Vec::new(), passed: Vec::new() };
        for binding in moment.latest_bindings() {
            let ends = ends_by_shard(moment, binding);
            let passed = ends.iter().min().copied().unwrap_or(binding.start);
            let counts = counts(binding, ends);
            let start = counts.iter().map(|(from, _)| *from).min().unwrap_or(binding.start);
            let end = counts.iter().map(|(_, end)| *end).max().unwrap_or(binding.start);
            if start < end {
                let (topic, partition) = (binding.topic.clone(), binding.partition);
                pass.ranges.push(Range { topic, partition, start, end });
                pass.counts.push(counts);
                pass.passed.push(passed);
            }
        }
        pass
    }

    /// The number of offsets in the ranges, which is at least the number of records.
    pub(super) fn records(&self) -> i64 {
        self.ranges.iter().map(|range| range.end.since(range.start)).sum()
    }

    /// The first range that Kafka no longer has completely, with the oldest offset and the end that
    /// it has.
    pub(super) fn missing(
        &self,
        kafka: &KafkaConfig,
        run_state: &RunState,
    ) -> Result<Option<(&Range, Offset, Offset)>, Fault> {
        let cluster = Admin::new(kafka)?;
        cluster.topics(Duration::from_secs(60), || run_state.ending())?;
        for range in &self.ranges {
            let (oldest, end) = cluster.offsets(&range.topic, range.partition)?;
            if oldest > range.start || end < range.end {
                return Ok(Some((range, oldest, end)));
            }
        }
        Ok(None)
    }

    /// Reads all ranges. `take` gets the shard for which a record counts, and what it is. Returns
    /// how many records were read, including those that do not count.
    pub(super) fn read(
        &self,
        kafka: &KafkaConfig,
        run_state: &RunState,
        mut take: impl FnMut(Shard, Judged),
    ) -> Result<u64, Fault> {
        let mut records = 0;
        if self.ranges.is_empty() {
            return Ok(records);
        }
        let bar = match can_redraw(&std::io::stderr()) {
            true => bars().add(ProgressBar::new(self.records() as u64)).with_style(style(
                "{bar:24} {percent}% of {human_len} records, {rate}, {eta} to go",
            )),
            false => ProgressBar::hidden(),
        };
        scan(
            kafka,
            &self.ranges,
            || run_state.ending(),
            |at, record| {
                records += 1;
                if records.is_multiple_of(4_096) {
                    bar.set_position(records);
                }
                let (shard, judged) = self.judge(at, &record);
                let (from, end) = self.counts[at][shard.0 as usize];
                if from <= record.offset && record.offset < end {
                    take(shard, judged);
                }
                !run_state.ending()
            },
        )?;
        bar.finish_and_clear();
        if run_state.ending() {
            return Err(stopped());
        }
        Ok(records)
    }

    /// The shard for which a record counts, and what it is.
    fn judge(&self, at: usize, record: &Record<'_>) -> (Shard, Judged) {
        let Range { topic, partition, .. } = &self.ranges[at];
        let shards = self.moment.shards.len() as u32;
        let place = (topic.clone(), *partition);
        let event = event::decode(record.payload).ok();
        let refused = self.moment.refused.get(&place);
        let refused = refused.and_then(|offsets| offsets.get(&record.offset)).copied();
        let refused = refused.or_else(|| {
            let time = event.as_ref().filter(|_| record.offset >= self.passed[at])?.time;
            let latest = self.moment.latest.get(&place)?;
            let (_, latest) = latest.iter().find(|(end, _)| record.offset < *end)?;
            (time > *latest).then_some(Reason::Future)
        });
        let key = event.as_ref().map(Event::key);
        let of_key = key.as_ref().map(|key| Shard::of(stable_hash(key.bytes()), shards));
        // A dead letter counts for the shard of its offset, unless it is an event that came too
        // late.
        let shard = of_key
            .filter(|_| refused != Some(Reason::Future))
            .unwrap_or_else(|| Shard::of_record(topic, *partition, record.offset, shards));
        let judged = match event.zip(key).filter(|_| refused.is_none()) {
            Some((_, key)) if self.moment.forgotten.has(&key, topic, *partition, record.offset) => {
                Judged::Forgotten
            }
            Some((event, key)) => Judged::Event(key, event.time),
            None => Judged::Dead,
        };
        (shard, judged)
    }
}

/// By shard: the offset up to which a partition was verified.
fn verified_to(verified: &Ends, binding: &NamedBinding, shards: usize) -> Vec<Offset> {
    let place = (binding.topic.clone(), binding.partition);
    verified.get(&place).cloned().unwrap_or_else(|| vec![binding.start; shards])
}

/// By shard: the offset up to which the job has read a partition.
pub(super) fn ends_by_shard(moment: &Moment, binding: &NamedBinding) -> Vec<Offset> {
    let end = |epoch| {
        let (_, bindings) = &moment.epochs[epoch];
        let place = (&binding.topic, binding.partition);
        let found = bindings.iter().find(|found| (&found.topic, found.partition) == place);
        found.map_or(binding.start, |found| found.end)
    };
    moment.shards.iter().map(|shard| end(&shard.epoch)).collect()
}
