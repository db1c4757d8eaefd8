//! The topic in memory: logs with holes that grow while they are read. An open transaction hides
//! what is written after it.

use std::collections::BTreeSet;

use sessionizer_core::binding::Offset;
use sessionizer_core::key::Key;

use crate::ledger::GAP_MS;
use crate::rng::Rng;
use crate::sabotage::Sabotage;

/// Where the clock of a schedule begins.
pub const BEGIN_MS: u64 = 1_000_000_000;
pub const OUT_OF_ORDERNESS_MS: i64 = 30;
/// An event further ahead of the clock than this is not an event.
pub const MAX_FUTURE_MS: i64 = 3_600_000;
/// A record. It is an event if it has a key and a time, and if the time is not in the future.
#[derive(Clone, Debug)]
pub struct Entry {
    pub offset: Offset,
    pub payload: Option<Vec<u8>>,
    pub event: Option<(String, i64)>,
}

impl Entry {
    /// The event, if it is one when judged by this clock.
    pub fn event_by(&self, clock_ms: u64) -> Option<(&str, i64)> {
        let (key, time) = self.event.as_ref()?;
        (*time <= clock_ms as i64 + MAX_FUTURE_MS).then_some((&**key, *time))
    }
}

/// A partition: everything that will ever be in it, and how much of that is there now.
#[derive(Clone, Debug, Default)]
pub struct Log {
    pub entries: Vec<Entry>,
    pub visible: usize,
    /// When each record that can be read first became readable.
    readable: Vec<u64>,
    /// Whether a transaction is open, so that what has arrived since cannot be read.
    transaction: bool,
    /// Whether nobody serves it, so that no fetch and no question is answered.
    pub unserved: bool,
    /// The offset after everything: holes may lie at the end.
    pub end: Offset,
    /// The positions at which the broker has said that nothing follows.
    pub said_end: BTreeSet<Offset>,
}

impl Log {
    /// More records arrive.
    pub fn show(&mut self, more: usize, now_ms: u64) {
        self.visible = (self.visible + more).min(self.entries.len());
        if !self.transaction {
            self.readable.resize(self.visible, now_ms);
        }
    }

    /// A transaction begins or ends.
    pub fn set_transaction(&mut self, open: bool, now_ms: u64) {
        self.transaction = open;
        self.show(0, now_ms);
    }

    pub fn is_in_a_transaction(&self) -> bool {
        self.transaction
    }

    /// How many records can be read.
    pub fn readable(&self) -> usize {
        self.readable.len()
    }

    /// The offset of a record, or that after everything.
    pub fn offset_of(&self, index: usize) -> Offset {
        self.entries.get(index).map_or(self.end, |entry| entry.offset)
    }

    /// The end as the broker reports it now: the last stable offset.
    pub fn readable_end(&self) -> Offset {
        self.offset_of(self.readable.len())
    }

    /// The same at the beginning of this millisecond.
    pub fn readable_end_at(&self, ms: u64) -> Offset {
        self.offset_of(self.readable.partition_point(|since| *since < ms))
    }
}

/// The topic.
#[derive(Debug)]
pub struct Topic {
    pub logs: Vec<Log>,
    /// How many of the partitions exist so far.
    pub existing: usize,
    pub rng: Rng,
    /// Whether the broker answers every question at once, and no connection fails.
    pub calm: bool,
    pub sabotage: Option<Sabotage>,
}

impl Topic {
    pub fn new(rng: &mut Rng, keys: u64, sabotage: Option<Sabotage>) -> Self {
        // Once one is accepted, nearly everything after it is late, so not in every schedule.
        let futures = rng.one_in(3);
        let logs: Vec<Log> = (0..rng.between(1, 4)).map(|_| log(rng, keys, futures)).collect();
        let existing = match rng.one_in(2) {
            true => rng.between(1, logs.len() as u64) as usize,
            false => logs.len(),
        };
        Topic { logs, existing, rng: Rng::new(rng.below(u64::MAX)), calm: false, sabotage }
    }

    /// A partition appears, possibly with some records already in it.
    pub fn grow(&mut self, now_ms: u64) {
        if self.existing < self.logs.len() {
            let log = &mut self.logs[self.existing];
            log.show(self.rng.below(10) as usize, now_ms);
            self.existing += 1;
        }
    }
}

fn log(rng: &mut Rng, keys: u64, futures: bool) -> Log {
    let mut now = BEGIN_MS as i64 - 500;
    let mut offset = Offset::new(rng.below(5) as i64);
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
            // Just close enough to an earlier event to join it, or just too far.
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
        let (ip, host) = (ip(&key), host(&key));
        let good = format!(r#"{{"ip":"{ip}","host":"{host}","event_time":{time}}}"#);
        let (payload, event) = match rng.below(40) {
            0 => (None, None),
            1 => (Some(b"not json".to_vec()), None),
            // A year ahead: never an event, and never a reason to close anything.
            2 => {
                let ahead = BEGIN_MS as i64 + 31_536_000_000;
                let json = format!(r#"{{"ip":"{ip}","host":"{host}","event_time":{ahead}}}"#);
                (Some(json.into_bytes()), None)
            }
            _ => (Some(good.into_bytes()), Some((key, time))),
        };
        entries.push(Entry { offset, payload, event });
        offset = offset.plus(1 + if rng.one_in(5) { rng.below(4) as i64 } else { 0 });
    }
    Log { entries, end: offset, ..Log::default() }
}

/// The maximum number of keys in a topic: `k0` to `k3`.
pub const KEYS: u64 = 4;

/// The host of a key: some share one.
pub fn host(name: &str) -> &'static str {
    if name.ends_with('1') { "g" } else { "h" }
}

/// The address of a key: two share one, on different hosts.
pub fn ip(name: &str) -> &str {
    if name == "k2" { "k1" } else { name }
}

/// The session key.
pub fn key(name: &str) -> Key {
    Key::new(ip(name), host(name))
}

/// The name of a session key.
pub fn name(key: &Key) -> &str {
    let (ip, host) = key.parts();
    if (ip, host) == ("k1", "h") { "k2" } else { ip }
}
