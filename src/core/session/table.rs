//! The open sessions of one shard: inserts spans, and closes the sessions that the watermark has
//! passed.
//!
//! The open sessions of a key never touch each other: [`SessionTable::insert`] merges everything
//! that a new span touches. The table knows nothing of epochs and partitions, and does no I/O.

mod long;
mod many;

use std::collections::{BTreeMap, HashMap};

use hashbrown::HashTable;

use self::long::Long;
use crate::key::{Key, stable_hash};
use crate::session::keys::{KeyAt, Keys};
use crate::session::span::{Closed, Open, Span};
use crate::time::{EventTime, Gap};

/// The open sessions of a shard and its horizon.
///
/// A session costs 40 bytes, the key and its length rounded up to eight, about 9 bytes of index and
/// 6 of `due`. An insert is one probe of a hash table. Closing visits the sessions that are due
/// and, about once per gap, each of the others. Memory of closed sessions is reused, not released.
///
/// ```
/// use sessionizer_core::key::{Key, stable_hash};
/// use sessionizer_core::session::{SessionTable, Span};
/// use sessionizer_core::time::{EventTime, Gap};
///
/// let gap = Gap::from_millis(10).expect("valid");
/// let at = EventTime::from_millis;
/// let mut table = SessionTable::new(gap, EventTime::NEVER);
/// let key = Key::new("192.0.2.7", "a.example");
/// for ms in [0, 5, 40] {
///     table.insert(stable_hash(key.bytes()), key.bytes(), Span::event(at(ms)));
/// }
/// assert_eq!(table.len(), 2);
///
/// // The first session ends at 15, so a watermark beyond that closes it.
/// let mut closed = Vec::new();
/// table.close(at(16), &mut closed);
/// assert_eq!(closed[0].span, Span { first: at(0), last: at(5), count: 2 });
/// assert_eq!(table.horizon(), at(15));
/// ```
#[derive(Debug)]
pub struct SessionTable {
    gap: Gap,
    horizon: EventTime,
    /// The slot of the newest open session of each key, by the key's hash.
    index: HashTable<u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    keys: Keys,
    /// The open sessions of keys that have many, sorted by their first event.
    sorted: HashMap<KeyAt, BTreeMap<EventTime, u32>>,
    /// The slots to visit when the watermark gets there, by the bucket of their end. Every slot
    /// that is not free is filed once. If its session has grown since, the slot is filed again when
    /// its turn comes.
    due: BTreeMap<i64, Vec<u32>>,
    bucket_ms: i64,
    open: usize,
    open_records: u64,
    long: Long,
}

#[derive(Debug)]
struct Slot {
    span: Span,
    /// Shared by all sessions of the key.
    key: KeyAt,
    /// The low half of the key's hash, so that the index can probe and grow without reading the
    /// key.
    hash: u32,
    /// Another open session of the same key, or [`NONE`]; [`SORTED`] if the key has many.
    next: u32,
    late: bool,
    /// The session was merged into another; the slot becomes free once it is no longer filed.
    absorbed: bool,
}

const NONE: u32 = u32::MAX;

/// The sessions of the key are in `sorted`, and the index holds any one of them.
const SORTED: u32 = u32::MAX - 1;

/// A key with more open sessions than this keeps them sorted until it has none. Scanning a few is
/// cheaper than keeping them in order.
const MAX_LIST: usize = 32;

/// How finely sessions are filed by their end: a fraction of the gap, so that a bucket that is only
/// half due holds few sessions to visit twice.
const BUCKETS_PER_GAP: i64 = 64;

impl SessionTable {
    /// Creates an empty table; `horizon` is the largest end of any session ever closed.
    pub fn new(gap: Gap, horizon: EventTime) -> Self {
        SessionTable {
            gap,
            horizon,
            index: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            keys: Keys::default(),
            sorted: HashMap::new(),
            due: BTreeMap::new(),
            bucket_ms: (gap.millis() / BUCKETS_PER_GAP).max(1),
            open: 0,
            open_records: 0,
            long: Long::default(),
        }
    }

    /// Restores the table that [`Self::open`] and [`Self::horizon`] describe.
    pub fn restore<'a>(
        gap: Gap,
        horizon: EventTime,
        open: impl IntoIterator<Item = Open<'a>>,
    ) -> Self {
        let mut table = SessionTable::new(gap, horizon);
        for Open { key, span, late } in open {
            table.put(stable_hash(key), key, span, late);
        }
        table.check();
        table
    }

    /// The largest `session_end` ever closed: a later event touches no closed session.
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

    /// The number of events in open sessions.
    pub fn open_records(&self) -> u64 {
        self.open_records
    }

    /// About how many bytes the table has allocated. What closed sessions have left is counted, as
    /// it is kept for others. It is cheap, whatever the number of sessions.
    pub fn allocated_bytes(&self) -> usize {
        let filed = self.slots.len() - self.free.len();
        // A list that grows has half its size to spare, on average.
        let due = filed * size_of::<u32>() * 3 / 2;
        // Of the keys with many sessions, only the entries: few keys have that many.
        let sorted = self.sorted.capacity() * size_of::<(KeyAt, BTreeMap<EventTime, u32>)>();
        self.index.allocation_size()
            + self.slots.capacity() * size_of::<Slot>()
            + self.free.capacity() * size_of::<u32>()
            + self.keys.allocated_bytes()
            + due
            + sorted
    }

    /// Every open session, in no order.
    pub fn open(&self) -> impl Iterator<Item = Open<'_>> {
        // Every indexed slot is the head of its key's list, or one of its sorted sessions.
        self.index.iter().flat_map(|head| {
            let in_use = |at: u32| (at < SORTED).then(|| &self.slots[at as usize]);
            let first = &self.slots[*head as usize];
            let list = std::iter::successors(Some(first), move |slot| in_use(slot.next));
            let sorted = (first.next == SORTED).then(|| &self.sorted[&first.key]);
            let others =
                sorted.into_iter().flat_map(BTreeMap::values).filter(move |at| *at != head);
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
        debug_assert!(span.first <= span.last && span.count > 0, "I1: {span:?} is no span");
        self.put(hash, key, span, span.first <= self.horizon);
    }

    /// Removes every session whose end is before `watermark`, in no particular order, and moves the
    /// horizon to the largest end among them.
    pub fn close(&mut self, watermark: EventTime, closed: &mut Vec<Closed>) {
        let before = closed.len();
        self.take_due(watermark, closed);
        let ends = closed[before..].iter().map(|closed| self.gap.end_after(closed.span.last));
        let latest = ends.max().unwrap_or(EventTime::NEVER);
        debug_assert!(latest < watermark || latest == EventTime::NEVER, "{latest} is not due");
        self.horizon = self.horizon.max(latest);
    }

    /// Asserts, where assertions are built in, that the totals are those of the open sessions (I8).
    pub(super) fn check(&self) {
        if cfg!(debug_assertions) {
            let (mut sessions, mut records) = (0, 0);
            for open in self.open() {
                sessions += 1;
                records += open.span.count;
            }
            let totals = (self.open, self.open_records);
            assert_eq!(totals, (sessions, records), "I8: the totals of the open sessions");
        }
    }

    /// The same table without the sessions of keys that are `gone`; the horizon stays.
    pub fn without(&self, gone: impl Fn(&[u8]) -> bool) -> Self {
        SessionTable::restore(self.gap, self.horizon, self.open().filter(|open| !gone(open.key)))
    }

    /// The session gap.
    pub fn gap(&self) -> Gap {
        self.gap
    }

    /// Raises the horizon to at least `time`: only later events then count as touching nothing.
    pub fn raise_horizon(&mut self, time: EventTime) {
        self.horizon = self.horizon.max(time);
    }

    /// Removes every session whose end is before `watermark`, as if its events had never arrived:
    /// the horizon stays.
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
                } else {
                    self.long.visit(at, &slot.span);
                    if self.bucket(end) == bucket {
                        again.push(at);
                    } else {
                        self.file(at);
                    }
                }
            }
            if !again.is_empty() {
                // Only the bucket that contains the watermark keeps sessions that are not due.
                self.due.insert(bucket, again);
                break;
            }
        }
    }

    /// The bucket in which a session with this end is filed.
    fn bucket(&self, end: EventTime) -> i64 {
        end.millis().div_euclid(self.bucket_ms)
    }

    /// Files a slot by the end of its session.
    fn file(&mut self, at: u32) {
        let bucket = self.bucket(self.gap.end_after(self.slots[at as usize].span.last));
        self.due.entry(bucket).or_default().push(at);
    }

    /// Adds events of a key: to the open session that they touch, or as a session of their own.
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
        self.put_in_list(head, hash, span, late);
    }

    /// Puts an open session into a free slot and files it; the caller indexes it.
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

    /// Merges slot `from` into slot `into`; the caller repairs the list.
    fn absorb(&mut self, into: u32, from: u32) {
        let Slot { span, late, .. } = self.slots[from as usize];
        let slot = &mut self.slots[into as usize];
        slot.span = slot.span.merge(span);
        slot.late |= late;
        self.long.merge(into, &slot.span, from);
        self.slots[from as usize].absorbed = true;
        self.open -= 1;
    }

    /// Removes a session that is no longer filed from its slot, from the list of its key and, if it
    /// was the last, from the index.
    fn take(&mut self, at: u32) -> Closed {
        let Slot { span, key: key_at, hash, late, next, .. } = self.slots[at as usize];
        let key = Key::from_encoded(self.keys.get(key_at));
        let of_key = |head: &u32| self.slots[*head as usize].key == key_at;
        let mut entry = self
            .index
            .find_entry(spread(hash), of_key)
            .expect("every open session is indexed by its key");
        let head = *entry.get();
        if next == SORTED {
            let sorted = self.sorted.get_mut(&key_at).expect("its sessions are sorted");
            sorted.remove(&span.first);
            match sorted.first_key_value() {
                Some((_, other)) if head == at => *entry.get_mut() = *other,
                Some(_) => {}
                None => {
                    self.sorted.remove(&key_at);
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
        self.long.forget(at);
        self.open -= 1;
        self.open_records -= span.count;
        Closed { key, span, late }
    }
}

/// The hash for the index, which uses the low bits for the place and the top seven to tell entries
/// apart.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

#[cfg(test)]
mod tests;
