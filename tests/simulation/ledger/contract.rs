//! The contract and the invariants, checked on what the store holds: against the batch answer over
//! everything that was bound.

use super::*;
use crate::oracle;

/// The sessions of each key.
pub type Sessions = oracle::Sessions<String>;

fn sessions<'a>(events: impl IntoIterator<Item = (&'a str, i64)>) -> Sessions {
    let events = events.into_iter().map(|(key, time)| (key.to_owned(), time));
    oracle::sessions(events, GAP_MS)
}

impl Store {
    /// Checks the contract, each key at the epoch of its own shard; I6 and I8.
    pub(super) fn check(&self) {
        for (key, rows) in &self.table {
            let mut rows = rows.clone();
            rows.sort_unstable();
            for pair in rows.windows(2) {
                assert!(!pair[0].touches(&pair[1], gap()), "I6: rows of {key:?} touch: {rows:?}");
            }
        }
        self.check_totals();
        let topic = self.topic.lock().expect("one at a time");
        for shard in 0..self.progress.len() {
            let upto = self.progress[shard].epoch;
            let shards = self.progress.len() as u32;
            let mine = |key: &str| {
                let hash = sessionizer_core::key::stable_hash(
                    Key::new(key, crate::feed::host(key)).bytes(),
                );
                Shard::of(hash, shards).0 as usize == shard
            };
            let Bound { events, drained } = self.bound(&topic, upto);
            let in_drain = sessions(events[..drained.unwrap_or(0)].iter().copied());
            // After a drain, everything that was bound is closed.
            let all_closed = drained.is_some_and(|drained| drained == events.len());
            let sessions = sessions(events.into_iter().filter(|(key, _)| mine(key)));
            let watermark = self.watermarks.get(&upto).copied().unwrap_or(EventTime::NEVER);
            let close_before = if all_closed { EventTime::FOREVER } else { watermark };
            self.check_shard(shard, &sessions, &in_drain, (watermark, close_before), &mine);
        }
    }

    /// Checks I8 at the last epoch that all shards have passed.
    fn check_totals(&self) {
        let shards = self.progress.len() as u32;
        let complete = self.epochs.iter().rev().find(|(_, totals)| totals.shards_done == shards);
        let (epoch, totals) = complete.expect("I8: no epoch is kept that all shards have passed");
        let mut records: BTreeMap<Partition, u64> = BTreeMap::new();
        for ((_, partition), binding) in self.bindings.range(..(*epoch + 1, FIRST)) {
            records.insert(*partition, binding.records);
        }
        let records: u64 = records.values().sum();
        assert_eq!(records, totals.closed + totals.open + totals.dead, "I8 at {epoch}: {totals:?}");
    }

    fn check_shard(
        &self,
        shard: usize,
        sessions: &Sessions,
        in_drain: &Sessions,
        (watermark, close_before): (EventTime, EventTime),
        mine: &dyn Fn(&str) -> bool,
    ) {
        let rows: Sessions = self.rows().into_iter().filter(|(key, _)| mine(key)).collect();
        for (key, sessions) in sessions {
            for session in sessions {
                let closed = session.1 + GAP_MS < close_before.millis();
                let there = rows.get(key).is_some_and(|rows| rows.contains(session));
                assert!(
                    !closed || there,
                    "shard {shard}: {key}'s {session:?} is missing: {rows:?}"
                );
            }
        }
        for (key, rows) in &rows {
            for row in rows {
                let part = |s: &&(i64, i64, u64)| s.0 <= row.0 && row.1 <= s.1 && row.2 <= s.2;
                let of = sessions.get(key).and_then(|sessions| sessions.iter().find(part));
                assert!(of.is_some(), "shard {shard}: {key}'s row {row:?} is of no session");
                let drained = in_drain.get(key).is_some_and(|drained| {
                    drained.last().is_some_and(|(_, newest, _)| row.1 <= *newest)
                });
                let passed = drained || row.1 + GAP_MS < watermark.millis();
                assert!(passed, "shard {shard}: {key}'s {row:?} was closed before {watermark}");
            }
        }
    }

    /// No partition may be idle unless the broker has reported its end.
    pub(super) fn check_idle(&self, binding: &Binding) {
        let topic = self.topic.lock().expect("one at a time");
        let log = &topic.logs[binding.partition.number as usize];
        let idle = binding.status == Status::Idle;
        assert!(
            !idle || log.said_end.contains(&binding.end),
            "it is not known to end: {binding:?}"
        );
    }

    /// Checks that exactly the right events were dropped, by a model that knows nothing but the
    /// bindings. Returns how many there are.
    pub fn check_dropped(&self) -> u64 {
        let topic = self.topic.lock().expect("one at a time");
        let mut open: BTreeMap<&str, Vec<Span>> = BTreeMap::new();
        let mut last: BTreeMap<Partition, Binding> = BTreeMap::new();
        let (mut before, mut want) = (EventTime::NEVER, BTreeSet::new());
        for (epoch, rules) in &self.rules {
            let watermark = self.watermarks[epoch];
            let mut came: Vec<(Partition, Offset, &str, EventTime)> = Vec::new();
            for ((_, at), binding) in self.history.range((*epoch, FIRST)..(*epoch + 1, FIRST)) {
                let from = last.insert(*at, *binding).map_or(binding.start, |b| b.end);
                for entry in &topic.logs[at.number as usize].entries {
                    if let Some((key, time)) = entry.event_by(binding.clock_in(*epoch))
                        && (from..binding.end).contains(&entry.offset)
                    {
                        came.push((*at, entry.offset, key, EventTime::from_millis(time)));
                    }
                }
            }
            for (_, _, key, time) in &came {
                open.entry(key).or_default().push(Span::event(*time));
            }
            for (key, spans) in &mut open {
                *spans = merge_touching(std::mem::take(spans), gap());
                let late = |span: &Span| gap().end_after(span.last) < before;
                if rules.late == Late::Drop {
                    for late in spans.iter().filter(|span| late(span)) {
                        let of = |at: &&(_, _, &str, _)| {
                            at.2 == *key && late.first <= at.3 && at.3 <= late.last
                        };
                        want.extend(came.iter().filter(of).map(|came| (came.0, came.1)));
                    }
                    spans.retain(|span| !late(span));
                }
                let drained = last.values().all(|binding| binding.status == Status::Ended);
                spans.retain(|span| !drained && gap().end_after(span.last) >= watermark);
            }
            before = watermark;
        }
        assert_eq!(self.dropped, want, "what is dropped is what came too late");
        want.len() as u64
    }

    /// The batch answer over everything that was ever bound.
    pub fn answer(&self) -> Sessions {
        let topic = self.topic.lock().expect("one at a time");
        sessions(self.bound(&topic, Epoch::MAX - 1).events)
    }

    /// The batch answer over the topic; `None` while some of it is not bound.
    pub fn whole_answer(&self) -> Option<Sessions> {
        let everywhere = |_| Offset::MAX;
        self.is_bound_to(everywhere).then(|| self.answer())
    }

    /// Every event that was bound up to and including an epoch.
    fn bound<'a>(&self, topic: &'a Topic, upto: Epoch) -> Bound<'a> {
        let mut events = Vec::new();
        let mut drained = None;
        let mut status = BTreeMap::new();
        let mut now = 0;
        let mut passed = vec![0; topic.logs.len()];
        for ((epoch, partition), binding) in self.history.range(..(upto + 1, FIRST)) {
            if *epoch > now && ended(&status) {
                drained = Some(events.len());
            }
            now = *epoch;
            status.insert(*partition, binding.status);
            let at = partition.number as usize;
            let entries = topic.logs[at].entries[passed[at]..].iter();
            for entry in entries.take_while(|entry| entry.offset < binding.end) {
                if !self.dropped.contains(&(*partition, entry.offset)) {
                    events.extend(entry.event_by(binding.clock_in(*epoch)));
                }
                passed[at] += 1;
            }
        }
        if ended(&status) {
            drained = Some(events.len());
        }
        Bound { events, drained }
    }

    /// Whether every record of each partition before an offset is bound.
    pub fn is_bound_to(&self, offset: impl Fn(Partition) -> Offset) -> bool {
        let topic = self.topic.lock().expect("one at a time");
        topic.logs.iter().enumerate().all(|(number, log)| {
            let partition = Partition { topic: 0, number: number as i32 };
            let bound = self.history.iter().filter(|((_, other), _)| *other == partition);
            let end = bound.map(|(_, binding)| binding.end).max().unwrap_or(Offset::ZERO);
            let before = offset(partition);
            let mut wanted = log.entries.iter().filter(|entry| entry.offset < before);
            wanted.next_back().is_none_or(|last| last.offset < end)
        })
    }

    /// Whether anything at or after an offset of some partition is bound.
    pub fn is_bound_behind(&self, offset: impl Fn(Partition) -> Offset) -> bool {
        self.history.iter().any(|((_, at), binding)| binding.end > offset(*at))
    }

    /// Whether a partition has ended in this epoch or later.
    pub fn has_ends_since(&self, epoch: Epoch) -> bool {
        self.history.range((epoch, FIRST)..).any(|(_, b)| b.status == Status::Ended)
    }

    /// Whether all partitions have ended.
    pub fn is_drained(&self) -> bool {
        ended(&self.history.iter().map(|((_, at), binding)| (*at, binding.status)).collect())
    }
}

/// What was bound up to some epoch.
struct Bound<'a> {
    events: Vec<(&'a str, i64)>,
    /// How many of the events were there when a bounded run last closed everything.
    drained: Option<usize>,
}

/// Whether there are partitions, and all have ended.
fn ended(status: &BTreeMap<Partition, Status>) -> bool {
    !status.is_empty() && status.values().all(|status| *status == Status::Ended)
}
