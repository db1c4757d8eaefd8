//! The reader's side of Kafka in memory.
//!
//! Between a log and its reader is a queue of fetched records, in which they age. Brokers are asked
//! where partitions end, and answer later, or fall silent.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use sessionizer::dataflow::ports::{Feed, Record, Stopped};
use sessionizer_core::binding::{Offset, Partition};
use sessionizer_core::fault::Fault;
use sessionizer_core::partition_end::PartitionEnd;

use crate::clocks::SimClocks;
use crate::sabotage::Sabotage;
use crate::topic::Topic;

/// How long a broker's statement about the end of a partition remains valid.
const WORD_LIFETIME_MS: u64 = 40;

/// What was fetched and not yet taken.
enum Fetched {
    /// The index of a record.
    Record(usize),
    End(Offset),
}

/// A partition that is being read.
struct Fetching {
    end: PartitionEnd,
    queue: VecDeque<Fetched>,
    /// What is fetched next, and whether its end has been reported.
    next: Offset,
    told_end: bool,
}

/// The partitions of one worker.
pub struct SimFeed {
    topic: Arc<Mutex<Topic>>,
    clocks: Arc<SimClocks>,
    mine: Box<dyn Fn(Partition) -> bool>,
    known: usize,
    parts: BTreeMap<Partition, Fetching>,
    /// Pending answers: what was asked, and when.
    answers: Vec<(Partition, Offset, u64)>,
    /// When a connection last failed, as far as this worker knows.
    last_failure_ms: Option<u64>,
}

impl SimFeed {
    /// `known` partitions are in the plan.
    pub fn new(
        topic: Arc<Mutex<Topic>>,
        clocks: Arc<SimClocks>,
        known: usize,
        mine: Box<dyn Fn(Partition) -> bool>,
    ) -> Self {
        let (parts, answers, last_failure_ms) = (BTreeMap::new(), Vec::new(), None);
        SimFeed { topic, clocks, mine, known, parts, answers, last_failure_ms }
    }

    fn sabotage(&self) -> Option<Sabotage> {
        self.topic.lock().expect("one at a time").sabotage
    }

    /// Asks where the partitions end, and takes answers that have arrived.
    fn ask(&mut self) {
        let mut topic = self.topic.lock().expect("one at a time");
        let now_ms = self.clocks.elapsed_ms();
        for partition in self.parts.keys() {
            let log = &topic.logs[partition.number as usize];
            let (served, end) = (!log.unserved, log.readable_end());
            if served && topic.rng.one_in(2) {
                self.answers.push((*partition, end, now_ms));
            }
        }
        while !self.answers.is_empty() && (topic.calm || !topic.rng.one_in(3)) {
            let at = topic.rng.below(self.answers.len() as u64) as usize;
            let (partition, end, asked_ms) = self.answers.swap_remove(at);
            let asked_ms = match topic.sabotage {
                Some(Sabotage::AnswerCountsAsOfItsArrival) => now_ms,
                _ => asked_ms,
            };
            self.parts.get_mut(&partition).expect("asked").end.answer(end, asked_ms);
        }
        if !topic.calm && topic.rng.one_in(40) {
            self.last_failure_ms = Some(now_ms);
        }
    }
}

impl Fetching {
    /// The broker answers a fetch.
    fn fetch(&mut self, topic: &mut Topic, partition: Partition) {
        let most = topic.rng.below(8) as usize;
        let log = &topic.logs[partition.number as usize];
        if log.unserved || self.queue.len() > 10 {
            return;
        }
        let readable = &log.entries[..log.readable()];
        let first = readable.partition_point(|entry| entry.offset < self.next);
        for (index, entry) in readable.iter().enumerate().skip(first).take(most) {
            self.queue.push_back(Fetched::Record(index));
            (self.next, self.told_end) = (entry.offset.next(), false);
        }
        let left = readable.len().saturating_sub(first);
        let end = log.readable_end();
        if left <= most && (!self.told_end || self.next < end) {
            self.queue.push_back(Fetched::End(end));
            (self.next, self.told_end) = (self.next.max(end), true);
        }
    }
}

impl Feed for SimFeed {
    fn assign(&mut self, partition: Partition, start: Offset) -> Result<(), Fault> {
        let end = PartitionEnd::new(start, WORD_LIFETIME_MS, self.clocks.elapsed_ms());
        let (queue, next, told_end) = (VecDeque::new(), start, false);
        self.parts.insert(partition, Fetching { end, queue, next, told_end });
        Ok(())
    }

    fn read(
        &mut self,
        partition: Partition,
        end: Option<Offset>,
        limit: usize,
        take: &mut dyn FnMut(Record<'_>) -> bool,
    ) -> Result<Stopped, Fault> {
        let topic = &mut *self.topic.lock().expect("one at a time");
        let now_ms = self.clocks.elapsed_ms();
        let mut left = limit.min(topic.rng.below(5) as usize);
        let wanted = end;
        let end = match topic.sabotage {
            Some(Sabotage::ReplayToThePresentEnd) => None,
            _ => end,
        };
        let part = self.parts.get_mut(&partition).expect("assigned");
        // Now and then some records were fetched before, and more arrive after those taken now.
        if topic.rng.one_in(2) {
            part.fetch(topic, partition);
        }
        let stopped = loop {
            if end.is_some_and(|end| part.end.position() >= end) {
                break Stopped::AtEnd;
            }
            let log = &topic.logs[partition.number as usize];
            match part.queue.front() {
                Some(Fetched::Record(at)) => {
                    let entry = &log.entries[*at];
                    if end.is_some_and(|end| entry.offset >= end) {
                        break Stopped::AtEnd;
                    }
                    if left == 0 {
                        break Stopped::AtLimit;
                    }
                    let on =
                        take(Record { offset: entry.offset, payload: entry.payload.as_deref() });
                    left = if on { left - 1 } else { 0 };
                    part.end.record(entry.offset);
                }
                Some(Fetched::End(offset)) => {
                    if topic.sabotage == Some(Sabotage::StaleEndBelieved) {
                        part.end.emptied(now_ms);
                    }
                    part.end.end(*offset);
                }
                None => {
                    part.end.emptied(now_ms);
                    let all = part.end.has_ended() && wanted.is_some();
                    break if all { Stopped::AtEnd } else { Stopped::Waiting };
                }
            }
            part.queue.pop_front();
        };
        if topic.rng.one_in(2) {
            part.fetch(topic, partition);
        }
        Ok(stopped)
    }

    fn position(&self, partition: Partition) -> Offset {
        let skips = self.sabotage() == Some(Sabotage::PositionSkipsARecord);
        self.parts[&partition].end.position().plus(i64::from(skips))
    }

    fn quiet_ms_ago(&self, partition: Partition) -> Option<u64> {
        let mut topic = self.topic.lock().expect("one at a time");
        if topic.sabotage == Some(Sabotage::CaughtUpTooSoon) {
            return Some(0);
        }
        let (now_ms, end) = (self.clocks.elapsed_ms(), &self.parts[&partition].end);
        let ago = end.quiet_ms_ago(now_ms, self.last_failure_ms)?;
        let (position, log) = (end.position(), &mut topic.logs[partition.number as usize]);
        let then = log.readable_end_at(now_ms - ago);
        assert!(then <= position, "{ago} ms ago records came after {position} of {partition:?}");
        if log.readable() == log.visible {
            log.said_end.insert(position);
        }
        Some(ago)
    }

    fn held_by_transaction(&self, partition: Partition) -> Option<Offset> {
        let topic = self.topic.lock().expect("one at a time");
        let log = &topic.logs[partition.number as usize];
        let ignored = topic.sabotage == Some(Sabotage::OpenTransactionIsSilence);
        let held = log.readable() < log.visible && !ignored;
        held.then(|| log.offset_of(log.visible))
    }

    fn service(&mut self) -> Result<Vec<(Partition, Offset)>, Fault> {
        self.ask();
        let topic = self.topic.lock().expect("one at a time");
        let existing = topic.existing;
        let begins = |partition: Partition| match topic.sabotage {
            Some(Sabotage::NewPartitionFromItsEnd) => {
                topic.logs[partition.number as usize].readable_end()
            }
            _ => Offset::ZERO,
        };
        let new = (self.known..existing).map(|n| Partition { topic: 0, number: n as i32 });
        let found =
            new.filter(|partition| (self.mine)(*partition)).map(|p| (p, begins(p))).collect();
        self.known = existing;
        Ok(found)
    }

    fn durable(&mut self, _: &BTreeMap<Partition, Offset>) {}
}
