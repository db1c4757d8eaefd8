//! Reads the part of the topic that an audit needs, and separates events from other records.

use std::collections::BTreeMap;

use sessionizer_core::binding::Offset;
use sessionizer_core::event;
use sessionizer_core::event::{Event, Reason};
use sessionizer_core::fault::Fault;
use sessionizer_core::key::{Key, Shard, stable_hash};
use sessionizer_core::time::EventTime;

use crate::commands::audit::stopped;
use crate::commands::reread;
use crate::commands::reread::Available;
use crate::dataflow::ports::Record;
use crate::dataflow::run_state::RunState;
use crate::kafka::{KafkaConfig, Range};
use crate::ledger::{AuditSnapshot, NamedBinding};

/// By topic and partition, and then by shard: the offset after the last record that was verified.
pub(super) type Ends = BTreeMap<(String, i32), Vec<Offset>>;

/// What a record is to an audit.
pub(super) enum RecordKind {
    Event(Key, EventTime),
    /// An event of a visitor that was forgotten after it had been read.
    Forgotten,
    /// Not an event, or one that does not count.
    Dead,
}

/// Ranges of offsets, and which of their records count for which shard.
pub(super) struct TopicScan<'a> {
    snapshot: &'a AuditSnapshot,
    pub(super) ranges: Vec<Range>,
    /// By range and shard: the offset of the first record that counts, and the one after the last.
    counts: Vec<Vec<(Offset, Offset)>>,
    /// By range: the offset that all shards have passed.
    passed: Vec<Offset>,
}

impl<'a> TopicScan<'a> {
    /// The records that the job has read and that were not verified before.
    pub(super) fn new_records(snapshot: &'a AuditSnapshot, verified: &Ends) -> Self {
        TopicScan::of(snapshot, |binding, ends| {
            let from = verified_to(verified, binding, ends.len());
            from.into_iter().zip(ends).map(|(from, end)| (from, end.max(from))).collect()
        })
    }

    /// The records that were verified before.
    pub(super) fn old_records(snapshot: &'a AuditSnapshot, verified: &Ends) -> Self {
        TopicScan::of(snapshot, |binding, ends| {
            let upto = verified_to(verified, binding, ends.len());
            upto.into_iter().map(|upto| (binding.start, upto)).collect()
        })
    }

    fn of(
        snapshot: &'a AuditSnapshot,
        counts: impl Fn(&NamedBinding, Vec<Offset>) -> Vec<(Offset, Offset)>,
    ) -> Self {
        let mut scan =
            TopicScan { snapshot, ranges: Vec::new(), counts: Vec::new(), passed: Vec::new() };
        for binding in snapshot.latest_bindings() {
            let ends = ends_by_shard(snapshot, binding);
            let passed = ends.iter().min().copied().unwrap_or(binding.start);
            let counts = counts(binding, ends);
            let start = counts.iter().map(|(from, _)| *from).min().unwrap_or(binding.start);
            let end = counts.iter().map(|(_, end)| *end).max().unwrap_or(binding.start);
            if start < end {
                let (topic, partition) = (binding.topic.clone(), binding.partition);
                scan.ranges.push(Range { topic, partition, start, end });
                scan.counts.push(counts);
                scan.passed.push(passed);
            }
        }
        scan
    }

    /// The number of offsets in the ranges, which is at least the number of records.
    pub(super) fn records(&self) -> u64 {
        reread::count(&self.ranges)
    }

    /// The first range that Kafka no longer has completely.
    pub(super) fn missing(
        &self,
        kafka: &KafkaConfig,
        run_state: &RunState,
    ) -> Result<Option<Available<'_>>, Fault> {
        let available = reread::available(kafka, &self.ranges, run_state)?;
        Ok(available.into_iter().find(|available| !available.is_complete()))
    }

    /// Reads all ranges. `take` gets the shard for which a record counts, and what it is. Returns
    /// how many records were read, including those that do not count.
    pub(super) fn read(
        &self,
        kafka: &KafkaConfig,
        run_state: &RunState,
        mut take: impl FnMut(Shard, RecordKind),
    ) -> Result<u64, Fault> {
        let read = reread::read(kafka, &self.ranges, run_state, |at, record| {
            let (shard, kind) = self.kind_of(at, record);
            let (from, end) = self.counts[at][shard.0 as usize];
            if from <= record.offset && record.offset < end {
                take(shard, kind);
            }
        })?;
        read.ok_or_else(stopped)
    }

    /// The shard for which a record counts, and what it is.
    fn kind_of(&self, at: usize, record: &Record<'_>) -> (Shard, RecordKind) {
        let Range { topic, partition, .. } = &self.ranges[at];
        let shards = self.snapshot.shards.len() as u32;
        let place = (topic.clone(), *partition);
        let event = event::decode(record.payload).ok();
        let refused = self.snapshot.refused.get(&place);
        let refused = refused.and_then(|offsets| offsets.get(&record.offset)).copied();
        let refused = refused.or_else(|| {
            let time = event.as_ref().filter(|_| record.offset >= self.passed[at])?.time;
            let latest = self.snapshot.latest.get(&place)?;
            let (_, latest) = latest.iter().find(|(end, _)| record.offset < *end)?;
            (time > *latest).then_some(Reason::Future)
        });
        let key = event.as_ref().map(Event::key);
        let of_key = key.as_ref().map(|key| Shard::of(stable_hash(key.bytes()), shards));
        // Records that are not events, and events from the future, count for the shard of their
        // offset; all others for that of their key.
        let shard = of_key
            .filter(|_| refused != Some(Reason::Future))
            .unwrap_or_else(|| Shard::of_record(topic, *partition, record.offset, shards));
        let kind = match event.zip(key).filter(|_| refused.is_none()) {
            Some((_, key))
                if self.snapshot.forgotten.has(&key, topic, *partition, record.offset) =>
            {
                RecordKind::Forgotten
            }
            Some((event, key)) => RecordKind::Event(key, event.time),
            None => RecordKind::Dead,
        };
        (shard, kind)
    }
}

/// By shard: the offset up to which a partition was verified.
fn verified_to(verified: &Ends, binding: &NamedBinding, shards: usize) -> Vec<Offset> {
    let place = (binding.topic.clone(), binding.partition);
    verified.get(&place).cloned().unwrap_or_else(|| vec![binding.start; shards])
}

/// By shard: the offset up to which the job has read a partition.
pub(super) fn ends_by_shard(snapshot: &AuditSnapshot, binding: &NamedBinding) -> Vec<Offset> {
    let end = |epoch| {
        let (_, bindings) = &snapshot.epochs[epoch];
        let place = (&binding.topic, binding.partition);
        let found = bindings.iter().find(|found| (&found.topic, found.partition) == place);
        found.map_or(binding.start, |found| found.end)
    };
    snapshot.shards.iter().map(|shard| end(&shard.epoch)).collect()
}
