//! The contract and the invariants, checked on what the store holds: against the batch answer over
//! everything that was bound.

use super::stopped::Model;
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
                let hash = stable_hash(crate::topic::key(key).bytes());
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
        let forgotten: u64 = self.forgotten_records.iter().sum();
        let counted = totals.closed + totals.open + totals.dead + forgotten;
        assert_eq!(records, counted, "I8 at {epoch}: {totals:?}, {forgotten} forgotten");
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

    /// Checks that exactly the right events were dropped, and exactly the right dead letters merged
    /// again, by a model that knows nothing but the bindings and the requests. Returns how many
    /// events are dropped.
    pub fn check_dropped(&self) -> u64 {
        let topic = self.topic.lock().expect("one at a time");
        let (mut model, mut requests) =
            (Model { cuts: self.cuts, ..Model::default() }, self.requests.iter().peekable());
        let mut last: BTreeMap<Partition, Binding> = BTreeMap::new();
        let mut before = EventTime::NEVER;
        for (epoch, rules) in &self.rules {
            let watermark = self.watermarks[epoch];
            let mut came: Vec<(Partition, Offset, &str, EventTime)> = Vec::new();
            for ((_, at), binding) in self.history.range((*epoch, FIRST)..(*epoch + 1, FIRST)) {
                let from = last.insert(*at, *binding).map_or(binding.start, |b| b.end);
                for entry in &topic.logs[at.number as usize].entries {
                    let Some((key, time)) = &entry.event else { continue };
                    let time = EventTime::from_millis(*time);
                    if !(from..binding.end).contains(&entry.offset) {
                        continue;
                    }
                    match entry.event_by(binding.clock_in(*epoch)) {
                        Some(_) => came.push((*at, entry.offset, &**key, time)),
                        None => model.letter((*at, entry.offset), Reason::Future, key, time),
                    }
                }
            }
            for (_, _, key, time) in &came {
                model.open.entry(key).or_default().push(Span::event(*time));
            }
            let drained = last.values().all(|binding| binding.status == Status::Ended);
            for (key, spans) in &mut model.open {
                *spans = merge_touching(std::mem::take(spans), gap());
                let late = |span: &Span| gap().end_after(span.last) < before;
                if rules.late == Late::Drop {
                    for late in spans.iter().filter(|span| late(span)) {
                        let of = |at: &&(_, _, &str, _)| {
                            at.2 == *key && late.first <= at.3 && at.3 <= late.last
                        };
                        let letters = came
                            .iter()
                            .filter(of)
                            .map(|came| ((came.0, came.1), (Reason::Late, came.2, came.3)));
                        model.letters.extend(letters);
                    }
                    spans.retain(|span| !late(span));
                }
                spans.retain(|span| !drained && gap().end_after(span.last) >= watermark);
            }
            while let Some((_, request)) = requests.next_if(|(at, _)| at == epoch) {
                let close_before = if drained { EventTime::FOREVER } else { watermark };
                model.request(request, *epoch, (watermark, close_before));
            }
            before = watermark;
        }
        assert!(requests.next().is_none(), "a request after an epoch that is not bound");
        let late = model.letters.iter().filter(|(_, letter)| letter.0 == Reason::Late);
        let want: BTreeSet<_> = late.map(|(place, _)| *place).collect();
        assert_eq!(self.dropped, want, "what is dropped is what came too late");
        assert_eq!(self.redriven, model.redriven, "what is merged again is what is good now");
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

    /// The table and the batch answer over the topic, to be compared; `None` while some of the topic
    /// is not bound. Both are without the sessions that wait: dead letters that were merged again do
    /// not move the watermark, so sessions with them may stay open until later events come.
    pub fn settled(&self) -> Option<(Sessions, Sessions)> {
        let answer = self.whole_answer()?;
        let topic = self.topic.lock().expect("one at a time");
        let merged = self.redriven_in(&topic, 0..Epoch::MAX);
        let newest = self.watermarks.values().next_back();
        let watermark = newest.copied().unwrap_or(EventTime::NEVER).millis();
        let waits = |name: &str, session: &(i64, i64, u64)| {
            let part =
                |(own, time): &(&str, i64)| *own == name && (session.0..=session.1).contains(time);
            session.1.saturating_add(GAP_MS) >= watermark && merged.iter().any(part)
        };
        let is_of_waiting = |name: &str, row: &(i64, i64, u64)| {
            let covers = |session: &&(i64, i64, u64)| session.0 <= row.0 && row.1 <= session.1;
            let session = answer.get(name).and_then(|sessions| sessions.iter().find(covers));
            session.is_some_and(|session| waits(name, session))
        };
        let others = |mut sessions: Sessions| {
            for (name, spans) in &mut sessions {
                spans.retain(|span| !is_of_waiting(name, span));
            }
            sessions.retain(|_, spans| !spans.is_empty());
            sessions
        };
        Some((others(self.rows()), others(answer.clone())))
    }

    /// Every event that was bound up to and including an epoch.
    fn bound<'a>(&self, topic: &'a Topic, upto: Epoch) -> Bound<'a> {
        let mut events = Vec::new();
        let mut drained = None;
        let mut status = BTreeMap::new();
        let mut now = 0;
        let mut passed = vec![0; topic.logs.len()];
        for ((epoch, partition), binding) in self.history.range(..(upto + 1, FIRST)) {
            if *epoch > now {
                events.extend(self.redriven_in(topic, now..*epoch));
                if ended(&status) {
                    drained = Some(events.len());
                }
            }
            now = *epoch;
            status.insert(*partition, binding.status);
            let at = partition.number as usize;
            let entries = topic.logs[at].entries[passed[at]..].iter();
            for entry in entries.take_while(|entry| entry.offset < binding.end) {
                passed[at] += 1;
                let place = (*partition, entry.offset);
                if let Some((name, time)) = entry.event_by(binding.clock_in(*epoch))
                    && !self.dropped.contains(&place)
                    && !self.redriven.contains_key(&place)
                    && !self.is_forgotten(name, place)
                {
                    events.push((name, time));
                }
            }
        }
        events.extend(self.redriven_in(topic, now..upto + 1));
        if ended(&status) {
            drained = Some(events.len());
        }
        Bound { events, drained }
    }

    /// The events that were merged again after one of these epochs.
    fn redriven_in<'a>(
        &self,
        topic: &'a Topic,
        epochs: std::ops::Range<Epoch>,
    ) -> Vec<(&'a str, i64)> {
        let redriven = self.redriven.iter().filter(|(_, epoch)| epochs.contains(epoch));
        let event = |(place, _): (&(Partition, Offset), _)| {
            let mut entries = topic.logs[place.0.number as usize].entries.iter();
            let entry = entries.find(|entry| entry.offset == place.1)?;
            let (name, time) = entry.event.as_ref()?;
            (!self.is_forgotten(name, *place)).then_some((&**name, *time))
        };
        redriven.filter_map(event).collect()
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
