//! Logarithmic bins, computed with integers alone, so that a query in SQL puts a value into the
//! same bin.
//!
//! Values below 16 have bins of their own. Above that, a bin is given by the leading one bit of a
//! value and the three bits after it, so it is at most an eighth of its lowest value wide.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Values below this have bins of their own.
const EXACT: u64 = 16;
/// How many bits after the leading one are kept.
const KEPT: u32 = 3;
/// The position of the leading one bit of the first value whose bin is shared.
const FIRST: u32 = EXACT.ilog2();

/// The number of a bin. A larger value has the same bin or a later one.
///
/// ```
/// use sessionizer_core::statistics::Bin;
///
/// assert_eq!((Bin::of(15).lowest(), Bin::of(15).highest()), (15, 15));
/// assert_eq!((Bin::of(70).lowest(), Bin::of(70).highest()), (64, 71));
/// assert_eq!((Bin::of(600_000).lowest(), Bin::of(600_000).highest()), (589_824, 655_359));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Bin(u16);

impl Bin {
    /// The bin of a value.
    pub fn of(value: u64) -> Self {
        if value < EXACT {
            return Bin(value as u16);
        }
        let leading = value.ilog2();
        let kept = (value >> (leading - KEPT)) & ((1 << KEPT) - 1);
        Bin((EXACT as u32 + ((leading - FIRST) << KEPT)) as u16 + kept as u16)
    }

    /// The bin with a number; `None` if no value has it.
    pub fn numbered(number: u16) -> Option<Self> {
        (number <= Bin::of(u64::MAX).0).then_some(Bin(number))
    }

    /// Its number, which [`Self::numbered`] takes.
    pub fn number(self) -> u16 {
        self.0
    }

    /// The lowest value in this bin.
    pub fn lowest(self) -> u64 {
        self.place().map_or(u64::from(self.0), |(kept, shift)| kept << shift)
    }

    /// The highest value in this bin.
    pub fn highest(self) -> u64 {
        let rest = self.place().map_or(0, |(_, shift)| (1 << shift) - 1);
        self.lowest() + rest
    }

    /// The bits that a shared bin keeps, and how many it leaves out.
    fn place(self) -> Option<(u64, u32)> {
        let shared = u64::from(self.0).checked_sub(EXACT)?;
        let kept = (1 << KEPT) + (shared & ((1 << KEPT) - 1));
        Some((kept, FIRST - KEPT + (shared >> KEPT) as u32))
    }
}

impl fmt::Display for Bin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.lowest(), self.highest()) {
            (lowest, highest) if lowest == highest => lowest.fmt(f),
            (lowest, highest) => write!(f, "{lowest}–{highest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bins_cover_every_value_once_and_in_order() {
        let last = Bin::of(u64::MAX);
        let mut next = 0;
        for number in 0..=last.number() {
            let bin = Bin::numbered(number).expect("a value has it");
            assert_eq!(bin.lowest(), next, "{bin:?}");
            assert_eq!((Bin::of(bin.lowest()), Bin::of(bin.highest())), (bin, bin));
            next = bin.highest().wrapping_add(1);
        }
        assert_eq!((next, last.highest()), (0, u64::MAX));
        assert_eq!(Bin::numbered(last.number() + 1), None);
    }

    #[test]
    fn a_shared_bin_is_narrow() {
        for number in 16..=Bin::of(u64::MAX).number() {
            let bin = Bin(number);
            assert!(bin.highest() - bin.lowest() < bin.lowest().div_ceil(8), "{bin:?}");
        }
    }

    #[test]
    fn a_bin_prints_as_its_value_or_as_its_lowest_and_highest() {
        assert_eq!([15, 16, 70].map(|n| Bin::of(n).to_string()), ["15", "16–17", "64–71"]);
    }

    /// These numbers are in views of users' databases.
    #[test]
    fn the_numbers_do_not_change() {
        let numbers =
            [0, 1, 15, 16, 17, 18, 31, 32, 300_000, u64::MAX].map(|v| Bin::of(v).number());
        assert_eq!(numbers, [0, 1, 15, 16, 16, 17, 23, 24, 129, 495]);
    }
}
