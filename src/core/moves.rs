//! How the counts of a stopped job change when `sessionizer forget` or `redrive` moves records from
//! one count to another: none vanishes (I8).

use std::collections::BTreeMap;

use crate::binding::Offset;
use crate::key::{Key, Shard, stable_hash};

/// How the counts of a shard change. The sum over all shards is zero, or the balance would not be.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Delta {
    pub closed: i64,
    pub open: i64,
    pub dead: i64,
    pub forgotten: i64,
}

/// How the counts of all shards change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Moves {
    shards: u32,
    deltas: BTreeMap<Shard, Delta>,
}

impl Moves {
    /// Nothing has moved yet.
    pub fn new(shards: u32) -> Self {
        Moves { shards, deltas: BTreeMap::new() }
    }

    /// The shards whose counts change.
    pub fn deltas(&self) -> Vec<(Shard, Delta)> {
        self.deltas.iter().map(|(shard, delta)| (*shard, *delta)).collect()
    }

    /// Records of a row are forgotten.
    pub fn forget_row(&mut self, key: &Key, records: i64) {
        let delta = self.at(self.shard_of(key));
        delta.closed -= records;
        delta.forgotten += records;
    }

    /// Records of open sessions of a shard are forgotten.
    pub fn forget_open(&mut self, shard: Shard, records: i64) {
        let delta = self.at(shard);
        delta.open -= records;
        delta.forgotten += records;
    }

    /// Records of a dead letter are forgotten. An audit counts them for the shard of their key, like
    /// any event of the visitor.
    pub fn forget_letter(&mut self, counted_in: Shard, key: &Key, records: i64) {
        self.at(counted_in).dead -= records;
        self.at(self.shard_of(key)).forgotten += records;
    }

    /// Records of dead letters are in sessions of a shard now.
    pub fn merge(&mut self, shard: Shard, open: i64, closed: i64) {
        let delta = self.at(shard);
        delta.open += open;
        delta.closed += closed;
    }

    /// A dead letter is gone, because its records are in sessions now.
    pub fn redrive_letter(&mut self, counted_in: Shard, records: i64) {
        self.at(counted_in).dead -= records;
    }

    fn shard_of(&self, key: &Key) -> Shard {
        Shard::of(stable_hash(key.bytes()), self.shards)
    }

    fn at(&mut self, shard: Shard) -> &mut Delta {
        self.deltas.entry(shard).or_default()
    }
}

/// The shard that counts a dead letter which is an event of `key`: that of its key if it had one
/// when it was counted (`by_key`), or else that of its position.
pub fn counted_in(
    by_key: bool,
    position: Option<(&str, i32, Offset)>,
    key: &Key,
    shards: u32,
) -> Shard {
    match position {
        Some((topic, partition, offset)) if !by_key => {
            Shard::of_record(topic, partition, offset, shards)
        }
        _ => Shard::of(stable_hash(key.bytes()), shards),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_that_change_add_up_to_zero() {
        let key = Key::new("192.0.2.1", "a");
        let own = Shard::of(stable_hash(key.bytes()), 1_000);
        let position = Some(("t", 1, Offset::new(7)));
        let by_position = counted_in(false, position, &key, 1_000);
        assert_eq!(by_position, Shard::of_record("t", 1, Offset::new(7), 1_000));
        assert_ne!(by_position, own);
        assert_eq!(counted_in(true, position, &key, 1_000), own);
        assert_eq!(counted_in(false, None, &key, 1_000), own);

        let mut moves = Moves::new(1_000);
        moves.forget_row(&key, 5);
        moves.forget_open(own, 2);
        moves.forget_letter(by_position, &key, 1);
        moves.redrive_letter(by_position, 4);
        moves.merge(own, 3, 1);
        let of_key = Delta { closed: -4, open: 1, dead: 0, forgotten: 8 };
        let of_position = Delta { dead: -5, ..Delta::default() };
        let deltas: BTreeMap<Shard, Delta> = moves.deltas().into_iter().collect();
        assert_eq!(deltas, BTreeMap::from([(own, of_key), (by_position, of_position)]));
        let sum = |delta: &Delta| delta.closed + delta.open + delta.dead + delta.forgotten;
        assert_eq!(deltas.values().map(sum).sum::<i64>(), 0);
    }
}
