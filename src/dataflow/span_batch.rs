//! Arrivals in transit: packed by worker, many in one run of bytes. Pure.
//!
//! One record per event would cost an allocation at the source, a free at the sessions, on another
//! thread, and a walk through every field between processes. A [`SpanBatch`] is one allocation for
//! a thousand events, travels as one byte string, and is read in place.
//!
//! The [`SpanBatchBuilder`] also joins events of a key that touch, if they come soon after one
//! another. Merging is associative (I1), so this cannot affect the result. It makes a visitor who
//! sends half of all events no more expensive than the others.

use serde::{Deserialize, Serialize};
use sessionizer_core::key::Shard;
use sessionizer_core::session::Span;
use sessionizer_core::time::{EventTime, Gap};

/// A batch is complete when it has reached this size, which bounds the size of a message.
const BATCH_BYTES: usize = 64 * 1024;
/// How many recent keys are remembered, to join their events. A power of two; at 16 bytes each,
/// they fit the first-level cache.
const RECENT: usize = 1_024;

/// Arrivals for the shards of one worker.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SpanBatch {
    pub worker: u32,
    /// The arrivals, one after another, as [`SpanBatchBuilder::add`] writes them.
    #[serde(with = "as_one_string")]
    bytes: Vec<u8>,
}

/// One or more events of a key that touch, on their way to its shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpanUpdate<'a> {
    /// [`sessionizer_core::key::stable_hash`] of the key, computed once at the source.
    pub hash: u64,
    pub span: Span,
    /// The encoded key.
    pub key: &'a [u8],
}

/// The layout of an arrival: hash, first, last - first, count, length of the key, key.
const FIRST: usize = 8;
const LENGTH_MS: usize = 16;
const COUNT: usize = 20;
const KEY_BYTES: usize = 24;
const KEY: usize = 26;

impl SpanBatch {
    /// The memory it takes.
    pub fn size(&self) -> u64 {
        (size_of::<SpanBatch>() + self.bytes.capacity()) as u64
    }

    /// Its arrivals, in the order of packing.
    pub fn arrivals(&self) -> impl Iterator<Item = SpanUpdate<'_>> {
        let mut rest = self.bytes.as_slice();
        std::iter::from_fn(move || {
            let (head, after) = rest.split_first_chunk::<KEY>()?;
            let key_bytes = usize::from(u16::from_le_bytes(part(head, KEY_BYTES)));
            let (key, after) = after.split_at(key_bytes);
            rest = after;
            let hash = u64::from_le_bytes(part(head, 0));
            Some(SpanUpdate { hash, span: span(head), key })
        })
    }
}

fn part<const N: usize>(head: &[u8; KEY], at: usize) -> [u8; N] {
    head[at..at + N].try_into().expect("as long as asked for")
}

fn span(head: &[u8; KEY]) -> Span {
    let first = EventTime::from_millis(i64::from_le_bytes(part(head, FIRST)));
    let length_ms = u32::from_le_bytes(part(head, LENGTH_MS));
    let count = u32::from_le_bytes(part(head, COUNT));
    Span { first, last: first.plus(i64::from(length_ms)), count: u64::from(count) }
}

/// Packs arrivals, one epoch at a time.
pub struct SpanBatchBuilder {
    gap: Gap,
    shards: u32,
    /// The batch being filled, by worker.
    open: Vec<OpenBatch>,
    full: Vec<SpanBatch>,
    /// The position of the last arrival of a hash among all bytes for its worker, by the low bits
    /// of the hash. The arrival may have been sent already.
    recent: Vec<(u64, u64)>,
}

/// A batch that is being filled.
#[derive(Clone, Default)]
struct OpenBatch {
    /// How many bytes for this worker have been sent before.
    sent: u64,
    bytes: Vec<u8>,
}

impl OpenBatch {
    /// Completes the batch; the next one has room for `capacity` bytes.
    fn close(&mut self, worker: usize, capacity: usize) -> SpanBatch {
        self.sent += self.bytes.len() as u64;
        let bytes = std::mem::replace(&mut self.bytes, Vec::with_capacity(capacity));
        SpanBatch { worker: worker as u32, bytes }
    }

    /// The bytes packed from `place` on, if they have not been sent.
    fn from(&mut self, place: u64) -> Option<&mut [u8]> {
        self.bytes.get_mut(usize::try_from(place.checked_sub(self.sent)?).ok()?..)
    }
}

impl SpanBatchBuilder {
    /// Creates a builder for a job with this many shards and workers.
    pub fn new(gap: Gap, shards: u32, workers: usize) -> Self {
        SpanBatchBuilder {
            gap,
            shards,
            open: vec![OpenBatch::default(); workers],
            full: Vec::new(),
            recent: vec![(0, 0); RECENT],
        }
    }

    /// Adds an event; `hash` is [`sessionizer_core::key::stable_hash`] of the encoded key. Returns
    /// by how many bytes the batches have grown.
    pub fn add(&mut self, hash: u64, key: &[u8], time: EventTime) -> usize {
        let worker = Shard::of(hash, self.shards).worker(self.open.len());
        let open = &mut self.open[worker];
        let recent = &mut self.recent[hash as usize % RECENT];
        if recent.0 == hash
            && let Some(last) = open.from(recent.1)
            && join(last, hash, key, time, self.gap)
        {
            return 0;
        }
        *recent = (hash, open.sent + open.bytes.len() as u64);
        let mut head = [0; KEY];
        head[..FIRST].copy_from_slice(&hash.to_le_bytes());
        head[FIRST..LENGTH_MS].copy_from_slice(&time.millis().to_le_bytes());
        head[COUNT..KEY_BYTES].copy_from_slice(&1u32.to_le_bytes());
        let key_bytes = u16::try_from(key.len()).expect("the decoder bounds the key");
        head[KEY_BYTES..].copy_from_slice(&key_bytes.to_le_bytes());
        open.bytes.extend_from_slice(&head);
        open.bytes.extend_from_slice(key);
        if open.bytes.len() >= BATCH_BYTES {
            self.full.push(open.close(worker, BATCH_BYTES + 4_096));
        }
        KEY + key.len()
    }

    /// Takes all batches; the next arrivals may belong to another epoch.
    pub fn take(&mut self) -> Vec<SpanBatch> {
        let open = self.open.iter_mut().enumerate().filter(|(_, open)| !open.bytes.is_empty());
        self.full.extend(open.map(|(worker, open)| open.close(worker, 0)));
        std::mem::take(&mut self.full)
    }
}

/// Joins an event to the arrival at the beginning of `last`, if that has the same key and they
/// touch.
fn join(last: &mut [u8], hash: u64, key: &[u8], time: EventTime, gap: Gap) -> bool {
    let Some((head, rest)) = last.split_first_chunk_mut::<KEY>() else { return false };
    let known = head[..FIRST] == hash.to_le_bytes()
        && head[KEY_BYTES..] == (key.len() as u16).to_le_bytes()
        && rest.get(..key.len()) == Some(key);
    let (before, event) = (span(head), Span::event(time));
    if !known || !before.touches(&event, gap) {
        return false;
    }
    let joined = before.merge(event);
    let length_ms = joined.last.millis() - joined.first.millis();
    let (Ok(length_ms), Ok(count)) = (u32::try_from(length_ms), u32::try_from(joined.count)) else {
        return false;
    };
    head[FIRST..LENGTH_MS].copy_from_slice(&joined.first.millis().to_le_bytes());
    head[LENGTH_MS..COUNT].copy_from_slice(&length_ms.to_le_bytes());
    head[COUNT..KEY_BYTES].copy_from_slice(&count.to_le_bytes());
    true
}

/// Serde treats a vector of bytes as a list of numbers unless told otherwise.
mod as_one_string {
    use std::fmt;

    use serde::de::{Error, SeqAccess, Visitor};
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;
        impl<'de> Visitor<'de> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
            fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
            /// A format without byte strings writes a list instead.
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u8>, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = seq.next_element()? {
                    bytes.push(byte);
                }
                Ok(bytes)
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sessionizer_core::key::{Key, MAX_KEY_BYTES, stable_hash};

    const GAP_MS: i64 = 300_000;

    fn builder(workers: usize) -> SpanBatchBuilder {
        SpanBatchBuilder::new(Gap::from_millis(GAP_MS).expect("valid"), 128, workers)
    }

    fn add(builder: &mut SpanBatchBuilder, ip: &str, millis: i64) {
        let key = Key::new(ip, "h");
        builder.add(stable_hash(key.bytes()), key.bytes(), EventTime::from_millis(millis));
    }

    fn unpack(batches: &[SpanBatch]) -> Vec<(String, i64, i64, u64)> {
        let arrivals = batches.iter().flat_map(SpanBatch::arrivals);
        arrivals
            .map(|arrival| {
                assert_eq!(arrival.hash, stable_hash(arrival.key));
                let key = Key::from_bytes(arrival.key).expect("a key");
                let Span { first, last, count } = arrival.span;
                (key.parts().0.to_owned(), first.millis(), last.millis(), count)
            })
            .collect()
    }

    #[test]
    fn what_is_packed_comes_out_at_the_worker_of_its_shard() {
        for workers in [1, 2, 3, 8] {
            let mut builder = builder(workers);
            let mut want = Vec::new();
            for number in 0..5_000 {
                let ip = format!("{number}{}", "x".repeat(number % 40));
                add(&mut builder, &ip, number as i64 - 77);
                want.push((ip, number as i64 - 77, number as i64 - 77, 1));
            }
            add(&mut builder, &"y".repeat(MAX_KEY_BYTES - 1), i64::MIN / 8);
            let batches = builder.take();
            assert!(batches.iter().all(|batch| batch.bytes.len() < BATCH_BYTES + 4_096));
            for batch in &batches {
                for arrival in batch.arrivals() {
                    let worker = Shard::of(arrival.hash, 128).worker(workers);
                    assert_eq!(worker, batch.worker as usize);
                }
            }
            let mut got = unpack(&batches);
            assert_eq!(got.len(), want.len() + 1);
            got.retain(|(ip, ..)| !ip.starts_with('y'));
            got.sort();
            want.sort();
            assert_eq!(got, want);
            assert_eq!(builder.take(), []);
        }
    }

    #[test]
    fn events_of_a_key_are_joined_only_if_they_touch() {
        for (apart, want) in [
            (GAP_MS - 1, vec![("a".to_owned(), 0, GAP_MS - 1, 2)]),
            (GAP_MS, vec![("a".to_owned(), 0, GAP_MS, 2)]),
            (
                GAP_MS + 1,
                vec![("a".to_owned(), 0, 0, 1), ("a".to_owned(), GAP_MS + 1, GAP_MS + 1, 1)],
            ),
        ] {
            for backwards in [false, true] {
                let mut builder = builder(2);
                let mut times = [0, apart];
                if backwards {
                    times.reverse();
                }
                times.iter().for_each(|time| add(&mut builder, "a", *time));
                let mut got = unpack(&builder.take());
                got.sort();
                assert_eq!(got, want, "{times:?}");
            }
        }
    }

    #[test]
    fn nothing_is_joined_to_what_has_left_or_to_another_key() {
        let mut builder = builder(1);
        add(&mut builder, "a", 0);
        assert_eq!(builder.take().len(), 1);
        add(&mut builder, "b", 0);
        add(&mut builder, "a", 1);
        let want = [("b".to_owned(), 0, 0, 1), ("a".to_owned(), 1, 1, 1)];
        assert_eq!(unpack(&builder.take()), want);
        // Two keys with the same hash.
        builder.add(7, Key::new("a", "h").bytes(), EventTime::from_millis(0));
        builder.add(7, Key::new("b", "h").bytes(), EventTime::from_millis(0));
        assert_eq!(builder.take()[0].arrivals().count(), 2);
    }

    #[test]
    fn a_span_longer_than_a_batch_can_hold_is_not_made() {
        let mut builder = SpanBatchBuilder::new(Gap::from_millis(1 << 40).expect("valid"), 1, 1);
        for time in [0, 1 << 31, u32::MAX.into(), (1 << 32) + 1] {
            add(&mut builder, "a", time);
        }
        let late = (1 << 32) + 1;
        let want = [("a".to_owned(), 0, u32::MAX.into(), 3), ("a".to_owned(), late, late, 1)];
        assert_eq!(unpack(&builder.take()), want);
    }

    #[test]
    fn a_hot_key_fills_no_batch() {
        let mut builder = builder(2);
        for time in 0..100_000 {
            add(&mut builder, "hot", time);
            add(&mut builder, &format!("{}", time % 7), time);
        }
        assert_eq!(builder.take().iter().flat_map(SpanBatch::arrivals).count(), 8);
    }
}
