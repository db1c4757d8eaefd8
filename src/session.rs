//! Open sessions of one shard: insert spans, close what the watermark has passed. Pure.
//!
//! Invariant I1 lives here: a session depends on event times only. Merging two spans takes the
//! earlier start, the later end and the sum of the counts, so the order in which events arrive,
//! and how they were combined on the way, cannot show in the result.
//!
//! Two spans *touch* iff at most `gap` lies between them, inclusive. The open sessions of a key
//! never touch each other; [`SessionTable::insert`] merges whatever a new span touches.

use std::collections::BTreeMap;

use hashbrown::HashTable;
use serde::{Deserialize, Serialize};

use crate::key::{Key, stable_hash};
use crate::time::{EventTime, Gap};

/// One or more events of a key: from the first to the last of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Span {
    /// Time of the first event.
    pub first: EventTime,
    /// Time of the last event.
    pub last: EventTime,
    /// How many events; at least one.
    pub count: u64,
}

impl Span {
    /// A single event.
    pub fn event(time: EventTime) -> Self {
        Span { first: time, last: time, count: 1 }
    }

    /// Whether the two belong to one session: at most `gap` lies between them.
    pub fn touches(&self, other: &Span, gap: Gap) -> bool {
        self.first <= other.last + gap && other.first <= self.last + gap
    }

    /// The span of both; associative and commutative (I1).
    #[must_use]
    pub fn merge(self, other: Span) -> Span {
        Span {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
            count: self.count + other.count,
        }
    }
}

/// Spans of one key -> the fewest that do not touch each other, in order of time.
pub fn merge_touching(mut spans: Vec<Span>, gap: Gap) -> Vec<Span> {
    spans.sort_unstable();
    let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        match merged.last_mut() {
            Some(before) if before.touches(&span, gap) => *before = before.merge(span),
            _ => merged.push(span),
        }
    }
    merged
}

/// A session that no on-time event can join any more.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Closed {
    /// Whose it is.
    pub key: Key,
    /// Its events.
    pub span: Span,
    /// Whether it may touch a session that closed before: its commit merges it with the table.
    pub late: bool,
}

/// An open session as a snapshot holds it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Open {
    pub key: Key,
    pub span: Span,
    pub late: bool,
}

/// The open sessions of a shard and its horizon.
///
/// Costs: about 56 bytes, the key and 15 bytes of index a session; an insert is one probe of a
/// hash table; closing touches sessions that are due and, once in about a gap, each that is not.
#[derive(Debug)]
pub struct SessionTable {
    gap: Gap,
    horizon: EventTime,
    /// Slot of the newest open session of each key, by the key's hash.
    index: HashTable<u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Slots to look at when the watermark gets there, by the bucket of their end. A session
    /// that has grown since is filed again; an entry that its slot does not know is stale.
    due: BTreeMap<i64, Vec<u32>>,
    bucket_ms: i64,
    open_records: u64,
}

#[derive(Debug)]
struct Slot {
    /// `None`: the slot is free.
    key: Option<Key>,
    span: Span,
    late: bool,
    /// Another open session of the same key, or [`NONE`].
    next: u32,
    /// The bucket it is filed under in `due`.
    filed: i64,
}

const NONE: u32 = u32::MAX;

/// How finely sessions are filed by their end: a part of the gap, so that a bucket that is only
/// half due holds few sessions to look at twice.
const BUCKETS_PER_GAP: i64 = 64;

impl SessionTable {
    /// No open sessions; `horizon` is the largest end of a session that was ever closed.
    pub fn new(gap: Gap, horizon: EventTime) -> Self {
        SessionTable {
            gap,
            horizon,
            index: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            due: BTreeMap::new(),
            bucket_ms: (gap.millis() / BUCKETS_PER_GAP).max(1),
            open_records: 0,
        }
    }

    /// The table that [`Self::open`] and [`Self::horizon`] describe.
    pub fn restore(gap: Gap, horizon: EventTime, open: impl IntoIterator<Item = Open>) -> Self {
        let mut table = SessionTable::new(gap, horizon);
        for session in open {
            let hash = stable_hash(session.key.bytes());
            table.put(hash, session.key.bytes(), session.span, session.late);
        }
        table
    }

    /// The largest `session_end` ever closed: an event later than this touches no closed session.
    pub fn horizon(&self) -> EventTime {
        self.horizon
    }

    /// How many sessions are open.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether no session is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many events the open sessions hold.
    pub fn open_records(&self) -> u64 {
        self.open_records
    }

    /// Every open session, in no order.
    pub fn open(&self) -> impl Iterator<Item = (&Key, Span, bool)> {
        self.slots.iter().filter_map(|slot| Some((slot.key.as_ref()?, slot.span, slot.late)))
    }

    /// Adds events of a key; `hash` is [`stable_hash`] of the encoded key.
    ///
    /// An event may touch a closed session only if it is not later than the horizon; then the
    /// session that it starts or joins is late.
    pub fn insert(&mut self, hash: u64, key: &[u8], span: Span) {
        debug_assert_eq!(hash, stable_hash(key), "the hash belongs to the key");
        self.put(hash, key, span, span.first <= self.horizon);
    }

    /// Takes out every session whose end lies before `watermark`, in no order, and moves the
    /// horizon to the largest end among them.
    pub fn close(&mut self, watermark: EventTime, closed: &mut Vec<Closed>) {
        let before = closed.len();
        self.take_due(watermark, closed);
        let ends = closed[before..].iter().map(|closed| self.gap.end_after(closed.span.last));
        self.horizon = self.horizon.max(ends.max().unwrap_or(EventTime::NEVER));
    }

    /// Moves the horizon at least to `time`: later events only then count as touching nothing.
    pub fn raise_horizon(&mut self, time: EventTime) {
        self.horizon = self.horizon.max(time);
    }

    /// Takes out every session whose end lies before `watermark`, as if its events had never
    /// come: the horizon stays.
    pub fn take_due(&mut self, watermark: EventTime, closed: &mut Vec<Closed>) {
        let last_bucket = self.bucket(watermark);
        while let Some(entry) = self.due.first_entry() {
            let bucket = *entry.key();
            if bucket > last_bucket {
                break;
            }
            let mut again = Vec::new();
            for at in entry.remove() {
                let slot = &self.slots[at as usize];
                if slot.key.is_none() || slot.filed != bucket {
                    continue;
                }
                if self.gap.end_after(slot.span.last) < watermark {
                    closed.push(self.take(at));
                } else if self.bucket(self.gap.end_after(slot.span.last)) == bucket {
                    again.push(at);
                } else {
                    self.file(at);
                }
            }
            if !again.is_empty() {
                // Only the bucket that holds the watermark keeps sessions that are not due.
                self.due.insert(bucket, again);
                break;
            }
        }
    }

    fn bucket(&self, end: EventTime) -> i64 {
        end.millis().div_euclid(self.bucket_ms)
    }

    fn file(&mut self, at: u32) {
        let bucket = self.bucket(self.gap.end_after(self.slots[at as usize].span.last));
        self.slots[at as usize].filed = bucket;
        self.due.entry(bucket).or_default().push(at);
    }

    fn put(&mut self, hash: u64, key: &[u8], span: Span, late: bool) {
        self.open_records += span.count;
        let slots = &self.slots;
        let Some(&head) = self.index.find(hash, |at| holds(slots, *at, key)) else {
            let at = self.add(Key::from_encoded(key), span, late, NONE);
            let slots = &self.slots;
            self.index.insert_unique(hash, at, |at| hash_of(slots, *at));
            return;
        };
        let mut joined = None;
        let mut before = NONE;
        let mut at = head;
        while at != NONE {
            let next = self.slots[at as usize].next;
            if !self.slots[at as usize].span.touches(&span, self.gap) {
                before = at;
            } else if let Some(into) = joined {
                // The span bridges two open sessions: the second goes into the first. `before`
                // exists, for `into` comes earlier in the list.
                self.absorb(into, at);
                self.slots[before as usize].next = next;
            } else {
                let slot = &mut self.slots[at as usize];
                slot.span = slot.span.merge(span);
                slot.late |= late;
                joined = Some(at);
                before = at;
            }
            at = next;
        }
        if joined.is_none() {
            let key = self.slots[head as usize].key.clone().expect("an indexed slot is in use");
            let at = self.add(key, span, late, head);
            *self.index.find_mut(hash, |at| *at == head).expect("the head is indexed") = at;
        }
    }

    fn add(&mut self, key: Key, span: Span, late: bool, next: u32) -> u32 {
        let slot = Slot { key: Some(key), span, late, next, filed: 0 };
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at as usize] = slot;
                at
            }
            None => {
                self.slots.push(slot);
                u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 open sessions a shard")
            }
        };
        self.file(at);
        at
    }

    /// Merges slot `from` into slot `into` and frees it; the caller mends the list.
    fn absorb(&mut self, into: u32, from: u32) {
        let Slot { span, late, .. } = self.slots[from as usize];
        let slot = &mut self.slots[into as usize];
        slot.span = slot.span.merge(span);
        slot.late |= late;
        self.slots[from as usize].key = None;
        self.free.push(from);
    }

    /// Takes a session out of its slot, the list of its key and, if it was the last, the index.
    fn take(&mut self, at: u32) -> Closed {
        let Slot { span, late, next, .. } = self.slots[at as usize];
        let key = self.slots[at as usize].key.take().expect("a slot in use");
        let hash = stable_hash(key.bytes());
        let entry = self
            .index
            .find_entry(hash, |head| *head == at || holds(&self.slots, *head, key.bytes()));
        let mut entry = entry.expect("every open session is indexed by its key");
        let head = *entry.get();
        if head != at {
            let mut before = head;
            while self.slots[before as usize].next != at {
                before = self.slots[before as usize].next;
            }
            self.slots[before as usize].next = next;
        } else if next != NONE {
            *entry.get_mut() = next;
        } else {
            entry.remove();
        }
        self.free.push(at);
        self.open_records -= span.count;
        Closed { key, span, late }
    }
}

fn holds(slots: &[Slot], at: u32, key: &[u8]) -> bool {
    slots[at as usize].key.as_ref().is_some_and(|held| held.bytes() == key)
}

fn hash_of(slots: &[Slot], at: u32) -> u64 {
    stable_hash(slots[at as usize].key.as_ref().expect("an indexed slot is in use").bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const GAP: i64 = 300_000;

    fn gap() -> Gap {
        Gap::from_millis(GAP).expect("valid")
    }

    fn at(millis: i64) -> EventTime {
        EventTime::from_millis(millis)
    }

    fn table() -> SessionTable {
        SessionTable::new(gap(), EventTime::NEVER)
    }

    fn insert(table: &mut SessionTable, ip: &str, millis: i64) {
        let key = Key::new(ip, "h");
        table.insert(stable_hash(key.bytes()), key.bytes(), Span::event(at(millis)));
    }

    fn close(table: &mut SessionTable, watermark: i64) -> Vec<(i64, i64, u64, bool)> {
        let mut closed = Vec::new();
        table.close(at(watermark), &mut closed);
        closed.sort();
        closed
            .iter()
            .map(|c| (c.span.first.millis(), c.span.last.millis(), c.span.count, c.late))
            .collect()
    }

    #[test]
    fn events_join_up_to_and_with_the_gap() {
        for (apart, sessions) in [(GAP - 1, 1), (GAP, 1), (GAP + 1, 2)] {
            for (first, second) in [(0, apart), (apart, 0)] {
                let mut table = table();
                insert(&mut table, "a", first);
                insert(&mut table, "a", second);
                assert_eq!(table.len(), sessions, "{first} then {second}");
                assert_eq!(table.open_records(), 2);
            }
        }
    }

    #[test]
    fn a_session_closes_when_the_watermark_has_passed_its_end() {
        for (watermark, closes) in [(GAP - 1, false), (GAP, false), (GAP + 1, true)] {
            let mut table = table();
            insert(&mut table, "a", 0);
            assert_eq!(close(&mut table, watermark).len(), usize::from(closes), "{watermark}");
            assert_eq!(table.horizon(), if closes { at(GAP) } else { EventTime::NEVER });
        }
    }

    #[test]
    fn an_event_between_two_open_sessions_bridges_them_and_only_those() {
        let mut table = table();
        for time in [0, 2 * GAP, 5 * GAP, GAP] {
            insert(&mut table, "a", time);
        }
        insert(&mut table, "b", GAP);
        let want = [(0, 2 * GAP, 3, false), (5 * GAP, 5 * GAP, 1, false), (GAP, GAP, 1, false)];
        assert_eq!(close(&mut table, 10 * GAP), want);
        assert!(table.is_empty());
        assert_eq!(table.open_records(), 0);
    }

    #[test]
    fn a_session_that_grows_is_filed_again_and_closes_once() {
        let mut table = table();
        for step in 0..10 {
            insert(&mut table, "a", step * GAP / 2);
            assert_eq!(close(&mut table, step * GAP / 2 + GAP), []);
        }
        assert_eq!(close(&mut table, 9 * GAP / 2 + GAP + 1), [(0, 9 * GAP / 2, 10, false)]);
        assert_eq!(close(&mut table, 100 * GAP), []);
    }

    #[test]
    fn only_what_may_touch_a_closed_session_is_late() {
        let mut table = table();
        insert(&mut table, "a", 0);
        assert_eq!(close(&mut table, GAP + 1), [(0, 0, 1, false)]);
        for (time, late) in [(GAP - 1, true), (GAP, true), (GAP + 1, false)] {
            insert(&mut table, "b", time);
            assert_eq!(close(&mut table, 3 * GAP), [(time, time, 1, late)]);
            table.horizon = at(GAP);
        }
    }

    #[test]
    fn an_open_session_joined_by_a_late_event_is_late() {
        let mut table = SessionTable::new(gap(), at(100));
        insert(&mut table, "a", 101);
        insert(&mut table, "a", 100);
        insert(&mut table, "a", 102);
        assert_eq!(close(&mut table, 3 * GAP), [(100, 102, 3, true)]);
    }

    #[test]
    fn keys_with_one_hash_stay_apart() {
        let mut table = table();
        let (a, b) = (Key::new("a", "h"), Key::new("b", "h"));
        // Not how it is called, but what a collision looks like: `put` takes the hash on trust.
        table.put(7, a.bytes(), Span::event(at(0)), false);
        table.put(7, b.bytes(), Span::event(at(0)), false);
        assert_eq!(table.len(), 2);
    }

    /// A small generator of its own, so that a failing seed is the same everywhere.
    struct Rng(u64);

    impl Rng {
        fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) % n
        }
    }

    /// The oracle: sort the times of a key, cut where more than the gap lies between two.
    fn batch(events: &[(u64, i64)]) -> BTreeMap<u64, Vec<(i64, i64, u64)>> {
        let mut by_key: BTreeMap<u64, Vec<i64>> = BTreeMap::new();
        for (key, time) in events {
            by_key.entry(*key).or_default().push(*time);
        }
        by_key
            .into_iter()
            .map(|(key, mut times)| {
                times.sort_unstable();
                let runs = times.chunk_by(|a, b| b - a <= GAP);
                (key, runs.map(|run| (run[0], run[run.len() - 1], run.len() as u64)).collect())
            })
            .collect()
    }

    /// Any order of arrival, any combining on the way, a close and a restore at any moment: what
    /// comes out, merged the way the commit does it, is the batch answer (I1).
    #[test]
    fn whatever_the_order_the_sessions_are_those_of_the_batch() {
        for seed in 0..2_000 {
            let mut rng = Rng(seed);
            let keys = 1 + rng.below(4);
            let steps = [0, 1, GAP - 1, GAP, GAP + 1, 2 * GAP, 3 * GAP + 5];
            let mut now = 0;
            let mut events: Vec<(u64, i64)> = (0..rng.below(60))
                .map(|_| {
                    now += steps[rng.below(7) as usize];
                    (rng.below(keys), now)
                })
                .collect();
            let want = batch(&events);
            for i in (1..events.len()).rev() {
                events.swap(i, rng.below(i as u64 + 1) as usize);
            }
            assert_eq!(run(&events, &mut rng), want, "seed {seed}");
        }
    }

    fn run(events: &[(u64, i64)], rng: &mut Rng) -> BTreeMap<u64, Vec<(i64, i64, u64)>> {
        let mut table = table();
        let mut rows: BTreeMap<u64, Vec<Span>> = BTreeMap::new();
        let mut watermark = 0;
        let mut commit = |table: &mut SessionTable, watermark| {
            let mut closed = Vec::new();
            table.close(at(watermark), &mut closed);
            let (late, on_time): (Vec<_>, Vec<_>) = closed.into_iter().partition(|c| c.late);
            for closed in on_time.into_iter().chain(late) {
                let key = closed.key.parts().0.parse().expect("a number");
                let spans = rows.entry(key).or_default();
                let touched = spans.iter().any(|span| span.touches(&closed.span, gap()));
                assert!(closed.late || !touched, "an on-time session never touches a row");
                spans.push(closed.span);
                *spans = merge_touching(std::mem::take(spans), gap());
            }
        };
        for (key, time) in events {
            insert(&mut table, &key.to_string(), *time);
            if rng.below(8) == 0 {
                watermark = watermark.max(time - rng.below(3 * GAP as u64) as i64);
                commit(&mut table, watermark);
            }
            if rng.below(8) == 0 {
                let open: Vec<Open> = table
                    .open()
                    .map(|(key, span, late)| Open { key: key.clone(), span, late })
                    .collect();
                table = SessionTable::restore(gap(), table.horizon(), open);
            }
        }
        commit(&mut table, EventTime::FOREVER.millis());
        assert!(table.is_empty() && table.open_records() == 0);
        rows.into_iter()
            .map(|(key, spans)| {
                let row = |s: Span| (s.first.millis(), s.last.millis(), s.count);
                (key, spans.into_iter().map(row).collect())
            })
            .collect()
    }
}
