//! Sums of rows that do not depend on their order.

use std::ops::{AddAssign, SubAssign};

use xxhash_rust::xxh3::xxh3_128;

use crate::key::Key;
use crate::session::Span;
use crate::time::Day;

/// Rows and events, and the sum of the hashes of the rows, modulo 2^128. Two different sets of rows
/// have the same sums with a probability of about 1 in 2^128.
///
/// The counts are signed, because the difference of two sums is of this type, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sums {
    pub rows: i64,
    pub events: i64,
    pub hashes: u128,
}

impl Sums {
    /// The sums of a single row. It is part of the format of a proof: the hash never changes.
    pub fn of(key: &Key, row: &Span) -> Self {
        let mut bytes = Vec::with_capacity(key.bytes().len() + 24);
        bytes.extend_from_slice(key.bytes());
        bytes.extend_from_slice(&row.first.millis().to_le_bytes());
        bytes.extend_from_slice(&row.last.millis().to_le_bytes());
        bytes.extend_from_slice(&row.count.to_le_bytes());
        Sums { rows: 1, events: row.count as i64, hashes: xxh3_128(&bytes) }
    }
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Sums) {
        self.rows = self.rows.wrapping_add(other.rows);
        self.events = self.events.wrapping_add(other.events);
        self.hashes = self.hashes.wrapping_add(other.hashes);
    }
}

impl SubAssign for Sums {
    fn sub_assign(&mut self, other: Sums) {
        self.rows = self.rows.wrapping_sub(other.rows);
        self.events = self.events.wrapping_sub(other.events);
        self.hashes = self.hashes.wrapping_sub(other.hashes);
    }
}

/// A day whose rows have changed since they were verified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DayDifference {
    pub day: Day,
    pub verified: Sums,
    pub found: Sums,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::EventTime;

    /// These values are in the proofs of every user.
    #[test]
    fn the_hash_of_a_row_never_changes() {
        let at = EventTime::from_millis;
        let row = Span { first: at(1_700_000_000_000), last: at(1_700_000_060_000), count: 3 };
        let sums = Sums::of(&Key::new("83.149.9.216", "semicomplete.com"), &row);
        assert_eq!((sums.rows, sums.events), (1, 3));
        assert_eq!(sums.hashes, PINNED_HASH);
        for other in [
            Span { first: at(1_700_000_000_001), ..row },
            Span { last: at(1_700_000_060_001), ..row },
            Span { count: 4, ..row },
        ] {
            let hash = Sums::of(&Key::new("83.149.9.216", "semicomplete.com"), &other).hashes;
            assert_ne!(hash, PINNED_HASH);
        }
    }

    const PINNED_HASH: u128 = 124_310_380_411_113_037_004_032_141_729_612_710_153;

    #[test]
    fn sums_do_not_depend_on_the_order_and_can_be_taken_back() {
        let row = |n: i64| Sums::of(&Key::new("a", "h"), &Span::event(EventTime::from_millis(n)));
        let sum = |order: &[i64]| {
            order.iter().fold(Sums::default(), |mut sum, n| {
                sum += row(*n);
                sum
            })
        };
        assert_eq!(sum(&[1, 2, 3]), sum(&[3, 1, 2]));
        let mut all = sum(&[1, 2, 3]);
        all -= row(2);
        assert_eq!(all, sum(&[1, 3]));
        assert_ne!(sum(&[1, 1]), sum(&[2, 2]));
    }
}
