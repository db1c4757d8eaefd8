//! The session key, its hash and its shard. All three are stored on disk, so none of them may ever
//! change.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::binding::Offset;

/// The longest key, in bytes (`ip` and `host` together), that a row may carry.
///
/// A B-tree entry in Postgres holds at most 2,704 bytes: 8 for its header, 8 for
/// `session_start`, two lengths of 4 and padding leave 2,670 for the two texts.
pub const MAX_KEY_BYTES: usize = 2_600;

/// `ip`, a NUL, `host`: one allocation per key. Neither part contains a NUL (the decoder rejects
/// it, and Postgres could not store it), so the two can always be told apart.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key(Box<[u8]>);

impl Key {
    /// Creates the key of a visitor; neither part may contain a NUL.
    pub fn new(ip: &str, host: &str) -> Self {
        let mut bytes = Vec::with_capacity(ip.len() + 1 + host.len());
        encode(ip.as_bytes(), host.as_bytes(), &mut bytes);
        Key(bytes.into_boxed_slice())
    }

    /// Reads a key that [`encode`] wrote or [`Key::bytes`] returned; `None` if `bytes` is not one.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Key::is_encoded(bytes).then(|| Key(bytes.into()))
    }

    /// Whether `bytes` is an encoded key.
    pub fn is_encoded(bytes: &[u8]) -> bool {
        std::str::from_utf8(bytes).is_ok_and(|text| text.matches('\0').count() == 1)
    }

    /// Wraps bytes that [`encode`] has just written, without checking them.
    pub fn from_encoded(bytes: &[u8]) -> Self {
        debug_assert_eq!(bytes.iter().filter(|b| **b == 0).count(), 1, "exactly one separator");
        Key(bytes.into())
    }

    /// Whether a row cannot carry this key. No event has such a key: [`crate::event::decode`] rejects
    /// it.
    pub fn is_too_long(&self) -> bool {
        self.0.len() - 1 > MAX_KEY_BYTES
    }

    /// The encoded form.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The `ip` and the `host`.
    pub fn parts(&self) -> (&str, &str) {
        let text = std::str::from_utf8(&self.0).expect("a key is made of two strings");
        text.split_once('\0').expect("a key holds one separator")
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ip, host) = self.parts();
        write!(f, "({ip}, {host})")
    }
}

/// Appends the encoded key to `out`, which a hot loop reuses; both parts are UTF-8 without NUL.
pub fn encode(ip: &[u8], host: &[u8], out: &mut Vec<u8>) {
    out.reserve(ip.len() + 1 + host.len());
    out.extend_from_slice(ip);
    out.push(0);
    out.extend_from_slice(host);
}

/// The hash of an encoded key: XXH3 with 64 bits and no seed, fixed by its specification.
pub fn stable_hash(encoded: &[u8]) -> u64 {
    xxh3_64(encoded)
}

/// A fixed share of all keys: the unit of ownership, snapshots and progress.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Shard(pub u32);

impl Shard {
    /// The shard of a hash. It uses the bits from 32 up: the low bits index a shard's hash table
    /// and the top seven tell its entries apart, so those must vary within a shard.
    pub fn of(hash: u64, shards: u32) -> Self {
        Shard(((hash >> 32) as u32) % shards)
    }

    /// The shard that counts a dead letter: it has no key, so its position in Kafka decides.
    pub fn of_record(topic: &str, partition: i32, offset: Offset, shards: u32) -> Self {
        let mut bytes = Vec::with_capacity(topic.len() + 13);
        bytes.extend_from_slice(topic.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(&partition.to_le_bytes());
        bytes.extend_from_slice(&offset.get().to_le_bytes());
        Shard::of(stable_hash(&bytes), shards)
    }

    /// The worker that owns this shard.
    pub fn worker(self, peers: usize) -> usize {
        self.0 as usize % peers
    }

    /// The commit writer that writes this shard.
    pub fn writer(self, writers: u32) -> u32 {
        self.0 % writers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_key_come_back() {
        for (ip, host) in [("1.2.3.4", "a.example"), ("", ""), ("münchen", "\u{1f600}")] {
            let key = Key::new(ip, host);
            assert_eq!(key.parts(), (ip, host));
            assert_eq!(format!("{key:?}"), format!("({ip}, {host})"));
            assert_eq!(Key::from_bytes(key.bytes()), Some(key));
        }
    }

    #[test]
    fn a_key_is_too_long_beyond_its_limit() {
        for (host, is_too_long) in [(MAX_KEY_BYTES - 1, false), (MAX_KEY_BYTES, true)] {
            assert_eq!(Key::new("a", &"h".repeat(host)).is_too_long(), is_too_long, "{host}");
        }
    }

    #[test]
    fn bytes_that_are_no_key_are_refused() {
        for bytes in [&b"no separator"[..], b"two\0sepa\0rators", b"\xff\0x"] {
            assert_eq!(Key::from_bytes(bytes), None);
        }
    }

    /// These values are on every user's disks: a change here loses their sessions.
    #[test]
    fn the_hash_and_the_shard_of_a_key_never_change() {
        let hash = stable_hash(Key::new("83.149.9.216", "semicomplete.com").bytes());
        assert_eq!(hash, xxh3_64(b"83.149.9.216\0semicomplete.com"));
        assert_eq!((hash, Shard::of(hash, 128)), (PINNED_HASH, PINNED_SHARD));
        assert_eq!(Shard::of_record("web-events", 3, Offset::new(42), 128), PINNED_RECORD_SHARD);
    }

    #[test]
    fn shards_are_spread_evenly_over_workers_and_writers() {
        for share in 1..9_usize {
            let (mut workers, mut writers) = (vec![0; share], vec![0; share]);
            for shard in (0..64).map(Shard) {
                workers[shard.worker(share)] += 1;
                writers[shard.writer(share as u32) as usize] += 1;
            }
            for shards in [workers, writers] {
                let even = 64 / share..=64_usize.div_ceil(share);
                assert!(shards.iter().all(|n| even.contains(n)), "{share}: {shards:?}");
            }
        }
    }

    const PINNED_HASH: u64 = 9_360_899_976_047_131_303;
    const PINNED_SHARD: Shard = Shard(110);
    const PINNED_RECORD_SHARD: Shard = Shard(79);
}
