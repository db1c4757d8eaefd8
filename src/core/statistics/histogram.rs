//! Counts by bin, from which quantiles and ranks are read.

use super::Bin;

/// How many values are in each bin. Counts may be negative while changes are coming in, and those
/// that are zero take no space.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Histogram {
    /// Sorted by bin.
    counts: Vec<(Bin, i64)>,
}

impl Histogram {
    /// Adds `n` values to a bin, or removes them if `n` is negative.
    pub fn add(&mut self, bin: Bin, n: i64) {
        match self.counts.binary_search_by_key(&bin, |(bin, _)| *bin) {
            Ok(at) => {
                self.counts[at].1 += n;
                if self.counts[at].1 == 0 {
                    self.counts.remove(at);
                }
            }
            Err(at) if n != 0 => self.counts.insert(at, (bin, n)),
            Err(_) => {}
        }
    }

    /// Adds all counts of another histogram.
    pub fn plus(&mut self, other: &Histogram) {
        other.bins().for_each(|(bin, n)| self.add(bin, n));
    }

    /// How many values there are.
    pub fn count(&self) -> i64 {
        self.counts.iter().map(|(_, n)| n).sum()
    }

    /// The bins that have values, in order, with their counts.
    pub fn bins(&self) -> impl DoubleEndedIterator<Item = (Bin, i64)> + '_ {
        self.counts.iter().copied()
    }

    /// The smallest bin such that at least `percent` of all values are in it or below.
    ///
    /// ```
    /// use sessionizer_core::statistics::{Bin, Histogram};
    ///
    /// let mut events = Histogram::default();
    /// [1, 1, 1, 2, 9].iter().for_each(|n| events.add(Bin::of(*n), 1));
    /// assert_eq!(events.quantile(50), Some(Bin::of(1)));
    /// assert_eq!(events.quantile(80), Some(Bin::of(2)));
    /// assert_eq!(events.quantile(95), Some(Bin::of(9)));
    /// assert_eq!(Histogram::default().quantile(50), None);
    /// ```
    pub fn quantile(&self, percent: u8) -> Option<Bin> {
        let wanted = i128::from(self.count()) * i128::from(percent);
        let mut below = 0_i128;
        let reached = self.counts.iter().find(|(_, n)| {
            below += i128::from(*n) * 100;
            below >= wanted
        });
        reached.map(|(bin, _)| *bin)
    }

    /// The bin of the value at this rank from the top: 1 is the largest, 10 the tenth largest.
    /// `None` if there are fewer values.
    pub fn largest(&self, rank: u64) -> Option<Bin> {
        let mut above = 0_i64;
        let reached = self.counts.iter().rev().find(|(_, n)| {
            above += n;
            above >= 0 && above as u64 >= rank
        });
        reached.map(|(bin, _)| *bin)
    }
}

impl FromIterator<(Bin, i64)> for Histogram {
    fn from_iter<I: IntoIterator<Item = (Bin, i64)>>(counts: I) -> Self {
        let mut histogram = Histogram::default();
        counts.into_iter().for_each(|(bin, n)| histogram.add(bin, n));
        histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::rng::Rng;

    #[test]
    fn what_is_added_and_removed_leaves_nothing() {
        let mut histogram = Histogram::default();
        histogram.add(Bin::of(3), -2);
        histogram.add(Bin::of(9), 1);
        assert_eq!(histogram.count(), -1);
        histogram.add(Bin::of(3), 2);
        histogram.add(Bin::of(9), -1);
        assert_eq!(histogram, Histogram::default());
        let other: Histogram = [(Bin::of(1), 4), (Bin::of(2), 0)].into_iter().collect();
        assert_eq!(other.bins().collect::<Vec<_>>(), [(Bin::of(1), 4)]);
        histogram.plus(&other);
        assert_eq!(histogram, other);
        other.bins().for_each(|(bin, n)| histogram.add(bin, -n));
        assert_eq!(histogram, Histogram::default());
    }

    #[test]
    fn ranks_are_those_of_the_sorted_values() {
        let mut rng = Rng::new(5);
        for _ in 0..300 {
            let mut values: Vec<u64> = (0..1 + rng.below(60)).map(|_| rng.below(1 << 12)).collect();
            values.sort_unstable();
            let histogram: Histogram = values.iter().map(|v| (Bin::of(*v), 1)).collect();
            for percent in [0, 1, 25, 50, 95, 99, 100] {
                let at = (values.len() * usize::from(percent)).div_ceil(100).max(1) - 1;
                assert_eq!(histogram.quantile(percent), Some(Bin::of(values[at])), "{percent}");
            }
            for rank in 1..=values.len() {
                let bin = Bin::of(values[values.len() - rank]);
                assert_eq!(histogram.largest(rank as u64), Some(bin));
            }
            assert_eq!(histogram.largest(values.len() as u64 + 1), None);
        }
    }
}
