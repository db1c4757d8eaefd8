//! Kafka in memory: logs with holes that grow before the reader's eyes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use sessionizer::binding::{Offset, Partition};
use sessionizer::control::Fault;
use sessionizer::operators::{Feed, Record, Stopped};

use crate::oracle::GAP_MS;
use crate::rng::Rng;
use crate::sabotage::Sabotage;

/// Where the clock of a schedule begins.
pub const BEGIN_MS: u64 = 1_000_000_000;
pub const OUT_OF_ORDERNESS_MS: i64 = 30;
/// An event further ahead of the clock than this is none.
pub const MAX_FUTURE_MS: i64 = 3_600_000;

/// A record; an event if it has a key and a time, and if the time is not in the future.
#[derive(Clone, Debug)]
pub struct Entry {
    pub offset: Offset,
    pub payload: Option<Vec<u8>>,
    pub event: Option<(String, i64)>,
}

impl Entry {
    /// The event that it is if it is judged by a clock.
    pub fn event_by(&self, clock_ms: u64) -> Option<(&str, i64)> {
        let (key, time) = self.event.as_ref()?;
        (*time <= clock_ms as i64 + MAX_FUTURE_MS).then_some((&**key, *time))
    }
}

/// A partition: what will ever be in it, and how much of that is there.
#[derive(Clone, Debug, Default)]
pub struct Log {
    pub entries: Vec<Entry>,
    pub visible: usize,
    /// The offset behind everything: holes may lie at the end.
    pub end: Offset,
    /// The positions behind which the broker has said that nothing lies.
    pub said_end: BTreeSet<Offset>,
}

impl Log {
    /// More records come.
    pub fn show(&mut self, more: usize) {
        self.visible = (self.visible + more).min(self.entries.len());
    }

    /// The end as the broker gives it now.
    pub fn visible_end(&self) -> Offset {
        match self.entries.get(self.visible) {
            Some(next) => next.offset,
            None => self.end,
        }
    }
}

/// The topic.
#[derive(Debug)]
pub struct Topic {
    pub logs: Vec<Log>,
    /// How many of the partitions exist yet.
    pub existing: usize,
    pub rng: Rng,
    pub sabotage: Option<Sabotage>,
}

impl Topic {
    pub fn new(rng: &mut Rng, keys: u64, sabotage: Option<Sabotage>) -> Self {
        // One that is accepted makes nearly everything after it late: not in every schedule.
        let futures = rng.one_in(3);
        let logs: Vec<Log> = (0..rng.between(1, 4)).map(|_| log(rng, keys, futures)).collect();
        let existing = match rng.one_in(2) {
            true => rng.between(1, logs.len() as u64) as usize,
            false => logs.len(),
        };
        Topic { logs, existing, rng: Rng::new(rng.below(u64::MAX)), sabotage }
    }

    /// A partition appears, and some records may be in it already.
    pub fn grow(&mut self) {
        if self.existing < self.logs.len() {
            let log = &mut self.logs[self.existing];
            log.visible = self.rng.below(10).min(log.entries.len() as u64) as usize;
            self.existing += 1;
        }
    }
}

fn log(rng: &mut Rng, keys: u64, futures: bool) -> Log {
    let mut now = BEGIN_MS as i64 - 500;
    let mut offset = rng.below(5) as Offset;
    let mut entries: Vec<Entry> = Vec::new();
    let steps = [0, 1, 10, GAP_MS - 1, GAP_MS, GAP_MS + 1, GAP_MS + 20, 250];
    for _ in 0..rng.below(45) {
        now += steps[rng.below(steps.len() as u64) as usize];
        let back = match rng.one_in(4) {
            true => rng.below(800) as i64,
            false => rng.below(OUT_OF_ORDERNESS_MS as u64 + 1) as i64,
        };
        let (mut key, mut time) = (format!("k{}", rng.below(keys)), now - back);
        if !entries.is_empty() && rng.one_in(5) {
            // Just as far from an earlier event as joins, or as does not.
            let recent = 1 + rng.below(entries.len().min(6) as u64) as usize;
            if let Some((other, at)) = &entries[entries.len() - recent].event {
                let apart = [-GAP_MS - 1, -GAP_MS, GAP_MS, GAP_MS, GAP_MS, GAP_MS + 1];
                (key, time) = (other.clone(), at + apart[rng.below(6) as usize]);
            }
        }
        if futures && rng.one_in(8) {
            // At the edge of the future: the clock decides.
            time = BEGIN_MS as i64 + MAX_FUTURE_MS + rng.below(1_500) as i64;
        }
        let good = format!(r#"{{"ip":"{key}","host":"h","event_time":{time}}}"#);
        let (payload, event) = match rng.below(40) {
            0 => (None, None),
            1 => (Some(b"not json".to_vec()), None),
            // A year ahead: never an event, and never a reason to close anything.
            2 => {
                let ahead = BEGIN_MS as i64 + 31_536_000_000;
                let json = format!(r#"{{"ip":"{key}","host":"h","event_time":{ahead}}}"#);
                (Some(json.into_bytes()), None)
            }
            _ => (Some(good.into_bytes()), Some((key, time))),
        };
        entries.push(Entry { offset, payload, event });
        offset += 1 + if rng.one_in(5) { rng.below(4) as Offset } else { 0 };
    }
    Log { entries, visible: 0, end: offset, said_end: BTreeSet::new() }
}

/// The partitions of one worker.
pub struct SimFeed {
    topic: Arc<Mutex<Topic>>,
    mine: Box<dyn Fn(Partition) -> bool>,
    known: usize,
    positions: BTreeMap<Partition, Offset>,
}

impl SimFeed {
    /// `known` partitions are in the plan.
    pub fn new(
        topic: Arc<Mutex<Topic>>,
        known: usize,
        mine: Box<dyn Fn(Partition) -> bool>,
    ) -> Self {
        SimFeed { topic, mine, known, positions: BTreeMap::new() }
    }

    fn sabotage(&self) -> Option<Sabotage> {
        self.topic.lock().expect("one at a time").sabotage
    }
}

impl Feed for SimFeed {
    fn assign(&mut self, partition: Partition, start: Offset) -> Result<(), Fault> {
        self.positions.insert(partition, start);
        Ok(())
    }

    fn read(
        &mut self,
        partition: Partition,
        end: Option<Offset>,
        limit: usize,
        take: &mut dyn FnMut(Record<'_>) -> bool,
    ) -> Result<Stopped, Fault> {
        let mut topic = self.topic.lock().expect("one at a time");
        let limit = limit.min(topic.rng.below(5) as usize);
        let wanted = end;
        let end = match topic.sabotage {
            Some(Sabotage::ReplayToThePresentEnd) => None,
            _ => end,
        };
        let log = &topic.logs[partition.number as usize];
        let position = self.positions.get_mut(&partition).expect("assigned");
        for count in 0.. {
            let next = log.entries[..log.visible].iter().find(|entry| entry.offset >= *position);
            let Some(entry) = next else {
                // What lies between here and the end is holes.
                *position = (*position).max(log.visible_end());
                let at_end = wanted.is_some_and(|end| *position >= end);
                return Ok(if at_end { Stopped::AtEnd } else { Stopped::Waiting });
            };
            if end.is_some_and(|end| entry.offset >= end) {
                return Ok(Stopped::AtEnd);
            }
            if count == limit {
                return Ok(Stopped::AtLimit);
            }
            let on = take(Record { offset: entry.offset, payload: entry.payload.as_deref() });
            *position = entry.offset + 1;
            if !on {
                return Ok(Stopped::AtLimit);
            }
        }
        unreachable!("a log ends")
    }

    fn position(&self, partition: Partition) -> Offset {
        let skips = self.sabotage() == Some(Sabotage::PositionSkipsARecord);
        self.positions[&partition] + Offset::from(skips)
    }

    fn caught_up(&self, partition: Partition) -> bool {
        let mut topic = self.topic.lock().expect("one at a time");
        // Now and then the broker has not said so yet.
        let said = !topic.rng.one_in(8);
        let log = &mut topic.logs[partition.number as usize];
        let position = self.positions[&partition];
        let caught_up = said && position >= log.visible_end();
        if caught_up {
            log.said_end.insert(position);
        }
        caught_up || topic.sabotage == Some(Sabotage::CaughtUpTooSoon)
    }

    fn service(&mut self) -> Result<Vec<(Partition, Offset)>, Fault> {
        let topic = self.topic.lock().expect("one at a time");
        let existing = topic.existing;
        let begins = |partition: Partition| match topic.sabotage {
            Some(Sabotage::NewPartitionFromItsEnd) => {
                topic.logs[partition.number as usize].visible_end()
            }
            _ => 0,
        };
        let new = (self.known..existing).map(|n| Partition { topic: 0, number: n as i32 });
        let found =
            new.filter(|partition| (self.mine)(*partition)).map(|p| (p, begins(p))).collect();
        self.known = existing;
        Ok(found)
    }

    fn durable(&mut self, _: &BTreeMap<Partition, Offset>) {}
}
