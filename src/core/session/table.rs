//! The open sessions of one shard: insert spans, close what the watermark has passed.
//!
//! The open sessions of a key never touch each other; [`SessionTable::insert`] merges whatever a
//! new span touches.

use std::collections::{BTreeMap, HashMap};

use hashbrown::HashTable;

use crate::key::{Key, stable_hash};
use crate::session::keys::{KeyAt, Keys};
use crate::session::span::{Closed, Open, Span};
use crate::time::{EventTime, Gap};

/// The open sessions of a shard and its horizon.
///
/// Costs: 40 bytes, the key and its length rounded up to eight, about 9 bytes of index and 6 of
/// `due` a session; an insert is one probe of a hash table; closing touches sessions that are due
/// and, once in about a gap, each that is not. Memory that sessions have left is used again, not
/// given back.
#[derive(Debug)]
pub struct SessionTable {
    gap: Gap,
    horizon: EventTime,
    /// Slot of the newest open session of each key, by the key's hash.
    index: HashTable<u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    keys: Keys,
    /// The open sessions of keys that have many, by their first event.
    crowds: HashMap<KeyAt, BTreeMap<EventTime, u32>>,
    /// Slots to look at when the watermark gets there, by the bucket of their end. Each slot that
    /// is not free is filed once; if its session has grown since, it is filed again when its turn
    /// comes.
    due: BTreeMap<i64, Vec<u32>>,
    bucket_ms: i64,
    open: usize,
    open_records: u64,
}

#[derive(Debug)]
struct Slot {
    span: Span,
    /// Shared by all sessions of the key.
    key: KeyAt,
    /// Low half of the key's hash: the index and its growth need no look at the key.
    hash: u32,
    /// Another open session of the same key, or [`NONE`]; [`CROWD`] if the key has many.
    next: u32,
    late: bool,
    /// The session has gone into another; the slot is free as soon as it is filed no more.
    absorbed: bool,
}

const NONE: u32 = u32::MAX;

/// The sessions of the key are in `crowds`, and any of them is the one in the index.
const CROWD: u32 = u32::MAX - 1;

/// A key with more open sessions than this has a crowd until it has none. A look at each of a few is
/// cheaper than to keep them in order.
const LIST_MOST: usize = 32;

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
            keys: Keys::default(),
            crowds: HashMap::new(),
            due: BTreeMap::new(),
            bucket_ms: (gap.millis() / BUCKETS_PER_GAP).max(1),
            open: 0,
            open_records: 0,
        }
    }

    /// The table that [`Self::open`] and [`Self::horizon`] describe.
    pub fn restore<'a>(
        gap: Gap,
        horizon: EventTime,
        open: impl IntoIterator<Item = Open<'a>>,
    ) -> Self {
        let mut table = SessionTable::new(gap, horizon);
        for Open { key, span, late } in open {
            table.put(stable_hash(key), key, span, late);
        }
        table
    }

    /// The largest `session_end` ever closed: an event later than this touches no closed session.
    pub fn horizon(&self) -> EventTime {
        self.horizon
    }

    /// How many sessions are open.
    pub fn len(&self) -> usize {
        self.open
    }

    /// Whether no session is open.
    pub fn is_empty(&self) -> bool {
        self.open == 0
    }

    /// How many events the open sessions hold.
    pub fn open_records(&self) -> u64 {
        self.open_records
    }

    /// Every open session, in no order.
    pub fn open(&self) -> impl Iterator<Item = Open<'_>> {
        // Every indexed slot begins the list of its key, or is one of its crowd.
        self.index.iter().flat_map(|head| {
            let in_use = |at: u32| (at < CROWD).then(|| &self.slots[at as usize]);
            let first = &self.slots[*head as usize];
            let list = std::iter::successors(Some(first), move |slot| in_use(slot.next));
            let crowd = (first.next == CROWD).then(|| &self.crowds[&first.key]);
            let others = crowd.into_iter().flat_map(BTreeMap::values).filter(move |at| *at != head);
            list.chain(others.map(|at| &self.slots[*at as usize])).map(|slot| Open {
                key: self.keys.get(slot.key),
                span: slot.span,
                late: slot.late,
            })
        })
    }

    /// Adds events of a key; `hash` is [`stable_hash`] of the encoded key.
    ///
    /// An event may touch a closed session only if it is not later than the horizon; then the
    /// session that it starts or joins is late.
    #[inline]
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

    /// How far neighbouring events of a session may lie apart.
    pub fn gap(&self) -> Gap {
        self.gap
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
                let end = self.gap.end_after(slot.span.last);
                if slot.absorbed {
                    self.free.push(at);
                } else if end < watermark {
                    closed.push(self.take(at));
                } else if self.bucket(end) == bucket {
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
        self.due.entry(bucket).or_default().push(at);
    }

    fn put(&mut self, hash: u64, key: &[u8], span: Span, late: bool) {
        self.open_records += span.count;
        let hash = hash as u32;
        let (slots, keys) = (&self.slots, &self.keys);
        let found = self.index.find(spread(hash), |at| {
            let slot = &slots[*at as usize];
            slot.hash == hash && keys.get(slot.key) == key
        });
        let Some(&head) = found else {
            let key = self.keys.add(key);
            let at = self.add(Slot { span, key, hash, next: NONE, late, absorbed: false });
            let slots = &self.slots;
            self.index.insert_unique(spread(hash), at, |at| spread(slots[*at as usize].hash));
            return;
        };
        let slot = &mut self.slots[head as usize];
        if slot.next == NONE && slot.span.touches(&span, self.gap) {
            slot.span = slot.span.merge(span);
            slot.late |= late;
            return;
        }
        self.put_among(head, hash, span, late);
    }

    /// Adds events of a key that has several open sessions, or will have: `head` is the first.
    fn put_among(&mut self, head: u32, hash: u32, span: Span, late: bool) {
        if self.slots[head as usize].next == CROWD {
            return self.put_in_crowd(head, hash, span, late);
        }
        let mut joined = None;
        let mut before = NONE;
        let mut at = head;
        let mut length = 0;
        while at != NONE {
            length += 1;
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
            let key = self.slots[head as usize].key;
            let at = self.add(Slot { span, key, hash, next: head, late, absorbed: false });
            self.index_instead(head, hash, at);
            if length >= LIST_MOST {
                self.crowd(at);
            }
        }
    }

    /// From here on the sessions of a key are kept in order; `head` is the first in its list.
    fn crowd(&mut self, head: u32) {
        let mut crowd = BTreeMap::new();
        let mut at = head;
        while at != NONE {
            let slot = &mut self.slots[at as usize];
            crowd.insert(slot.span.first, at);
            at = std::mem::replace(&mut slot.next, CROWD);
        }
        self.crowds.insert(self.slots[head as usize].key, crowd);
    }

    /// Adds events of a key that has many open sessions; `head` is the one in the index. They do not
    /// touch each other, so those that `span` touches follow each other.
    fn put_in_crowd(&mut self, head: u32, hash: u32, span: Span, late: bool) {
        let key = self.slots[head as usize].key;
        let crowd = self.crowds.get_mut(&key).expect("it has a crowd");
        let before_its_end = crowd.range(..=span.last + self.gap).rev().map(|(_, at)| *at);
        let touches = |at: &u32| self.slots[*at as usize].span.touches(&span, self.gap);
        let touched: Vec<u32> = before_its_end.take_while(touches).collect();
        for at in &touched {
            crowd.remove(&self.slots[*at as usize].span.first);
        }
        let Some((&into, others)) = touched.split_first() else {
            let at = self.add(Slot { span, key, hash, next: CROWD, late, absorbed: false });
            self.crowds.get_mut(&key).expect("it has a crowd").insert(span.first, at);
            return;
        };
        let slot = &mut self.slots[into as usize];
        slot.span = slot.span.merge(span);
        slot.late |= late;
        for from in others {
            self.absorb(into, *from);
        }
        let first = self.slots[into as usize].span.first;
        self.crowds.get_mut(&key).expect("it has a crowd").insert(first, into);
        if others.contains(&head) {
            self.index_instead(head, hash, into);
        }
    }

    /// Puts another session of its key into the place of `head` in the index.
    fn index_instead(&mut self, head: u32, hash: u32, at: u32) {
        let entry = self.index.find_mut(spread(hash), |at| *at == head);
        *entry.expect("the head is indexed") = at;
    }

    fn add(&mut self, slot: Slot) -> u32 {
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
        self.open += 1;
        self.file(at);
        at
    }

    /// Merges slot `from` into slot `into`; the caller mends the list.
    fn absorb(&mut self, into: u32, from: u32) {
        let Slot { span, late, .. } = self.slots[from as usize];
        let slot = &mut self.slots[into as usize];
        slot.span = slot.span.merge(span);
        slot.late |= late;
        self.slots[from as usize].absorbed = true;
        self.open -= 1;
    }

    /// Takes a session that is filed no more out of its slot, the list of its key and, if it was
    /// the last, the index.
    fn take(&mut self, at: u32) -> Closed {
        let Slot { span, key: key_at, hash, late, next, .. } = self.slots[at as usize];
        let key = Key::from_encoded(self.keys.get(key_at));
        let of_key = |head: &u32| self.slots[*head as usize].key == key_at;
        let mut entry = self
            .index
            .find_entry(spread(hash), of_key)
            .expect("every open session is indexed by its key");
        let head = *entry.get();
        if next == CROWD {
            let crowd = self.crowds.get_mut(&key_at).expect("it has a crowd");
            crowd.remove(&span.first);
            match crowd.first_key_value() {
                Some((_, other)) if head == at => *entry.get_mut() = *other,
                Some(_) => {}
                None => {
                    self.crowds.remove(&key_at);
                    entry.remove();
                    self.keys.remove(key_at);
                }
            }
        } else if head != at {
            let mut before = head;
            while self.slots[before as usize].next != at {
                before = self.slots[before as usize].next;
            }
            self.slots[before as usize].next = next;
        } else if next != NONE {
            *entry.get_mut() = next;
        } else {
            entry.remove();
            self.keys.remove(key_at);
        }
        self.free.push(at);
        self.open -= 1;
        self.open_records -= span.count;
        Closed { key, span, late }
    }
}

/// The hash that the index sees: it takes the low bits for the place and the top seven to tell
/// entries apart.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::span::merge_touching;
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

    #[test]
    fn places_of_keys_are_used_again_and_sessions_of_a_key_share_one() {
        let mut table = table();
        let mut most = 0;
        for round in 0..50 {
            let now = round * 10 * GAP;
            for number in 0..100 {
                let ip = format!("{number}{}", "x".repeat((number % 50) as usize));
                insert(&mut table, &ip, now);
                insert(&mut table, &ip, now + 2 * GAP);
                insert(&mut table, &ip, now + GAP * (round % 2));
            }
            assert_eq!(
                close(&mut table, now + 5 * GAP).len(),
                if round % 2 == 0 { 200 } else { 100 }
            );
            assert!(table.is_empty());
            most = if round == 1 { table.keys.bytes.len() } else { most };
        }
        assert_eq!(table.keys.bytes.len(), most, "keys of the same lengths fill the same places");
        assert!(table.slots.len() <= 300, "{}", table.slots.len());
        assert_eq!(size_of::<Slot>(), 40);
    }

    /// As many as one likes. (With a look at each for every event, this would take minutes.)
    #[test]
    fn a_key_may_have_a_hundred_thousand_open_sessions() {
        const MANY: i64 = 100_000;
        let mut table = table();
        for turn in [0, GAP / 2] {
            for number in 0..MANY {
                // Not in order: 7,919 and their number have no divisor in common.
                insert(&mut table, "a", number * 7_919 % MANY * 3 * GAP + turn);
            }
            assert_eq!(table.len(), MANY as usize);
        }
        let closed = close(&mut table, MANY * 3 * GAP);
        let want = (0..MANY).map(|at| (at * 3 * GAP, at * 3 * GAP + GAP / 2, 2, false));
        assert!(closed.into_iter().eq(want), "each of them is there once, with both events");
        assert!(table.is_empty() && table.crowds.is_empty());
    }

    #[test]
    fn sessions_of_a_crowd_are_bridged_also_the_one_in_the_index() {
        let mut table = table();
        for number in 0..100 {
            insert(&mut table, "a", number * 2 * GAP);
        }
        for number in (0..99).rev() {
            insert(&mut table, "a", number * 2 * GAP + GAP);
            assert_eq!(table.len(), number as usize + 1);
            let restored = SessionTable::restore(gap(), table.horizon(), table.open());
            assert_eq!(restored.open_records(), table.open_records());
        }
        assert_eq!(close(&mut table, 1_000 * GAP), [(0, 198 * GAP, 199, false)]);
        assert!(table.is_empty() && table.crowds.is_empty());
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
            assert_eq!(run(&events, &mut rng, 8), want, "seed {seed}");
        }
    }

    /// The same for keys with many open sessions, for seldom does one close.
    #[test]
    fn whatever_the_order_the_sessions_of_a_crowd_are_those_of_the_batch() {
        let mut most = 0;
        for seed in 0..300 {
            let mut rng = Rng(seed);
            let keys = 1 + rng.below(2);
            let steps = [1, GAP, GAP + 1, GAP + 1, 2 * GAP, 2 * GAP, 3 * GAP + 5];
            let mut now = 0;
            let mut events: Vec<(u64, i64)> = (0..rng.below(400))
                .map(|_| {
                    now += steps[rng.below(7) as usize];
                    (rng.below(keys), now)
                })
                .collect();
            let want = batch(&events);
            for i in (1..events.len()).rev() {
                events.swap(i, rng.below(i as u64 + 1) as usize);
            }
            most = most.max(want.values().map(Vec::len).max().unwrap_or(0));
            assert_eq!(run(&events, &mut rng, 150), want, "seed {seed}");
        }
        assert!(most > 5 * LIST_MOST, "at most {most} sessions of a key");
    }

    fn run(
        events: &[(u64, i64)],
        rng: &mut Rng,
        seldom: u64,
    ) -> BTreeMap<u64, Vec<(i64, i64, u64)>> {
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
            if rng.below(seldom) == 0 {
                watermark = watermark.max(time - rng.below(3 * GAP as u64) as i64);
                commit(&mut table, watermark);
            }
            if rng.below(seldom) == 0 {
                let restored = SessionTable::restore(gap(), table.horizon(), table.open());
                assert_eq!(restored.len(), table.len());
                table = restored;
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
