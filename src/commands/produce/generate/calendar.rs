//! A calendar queue (Brown, 1988), for many items of which most are due within a known span.
//!
//! A binary heap of a million items misses the cache at every step. Here the span is cut into days.
//! An item is added to its day unsorted, and a day is sorted only when it comes. Items beyond the
//! span wait in a heap. The order is that of a plain heap over `(due_ns, item)`, so the
//! implementation never shows in what is generated.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

const ITEMS_A_DAY: u64 = 64;
const MAX_DAYS: u64 = 1 << 16;

type Heap<T> = BinaryHeap<Reverse<(u64, T)>>;

/// Items by the time when they are due, in nanoseconds.
pub struct Calendar<T> {
    day_ns: u64,
    /// The current day: `today` holds what is due until its end.
    day: u64,
    today: Heap<T>,
    /// Day `d` of `day + 1 .. day + days.len()` is at `d % days.len()`.
    days: Vec<Vec<Reverse<(u64, T)>>>,
    in_days: usize,
    /// Everything after those.
    later: Heap<T>,
}

impl<T: Ord> Calendar<T> {
    /// An empty calendar, designed for about `items` items at a time that come due within `span_ns`
    /// of each other. Any other use is slower but equally correct.
    pub fn new(span_ns: u64, items: u64) -> Self {
        let days = (items / ITEMS_A_DAY).clamp(1, MAX_DAYS);
        Calendar {
            day_ns: (span_ns / days).max(1),
            day: 0,
            today: Heap::new(),
            days: (0..days).map(|_| Vec::new()).collect(),
            in_days: 0,
            later: Heap::new(),
        }
    }

    /// Adds an item that is due at `due_ns`, which may be in the past.
    pub fn push(&mut self, due_ns: u64, item: T) {
        let day = due_ns / self.day_ns;
        let entry = Reverse((due_ns, item));
        if day <= self.day {
            self.today.push(entry);
        } else if day - self.day < self.days.len() as u64 {
            let at = self.at(day);
            if self.days[at].capacity() == 0 {
                self.days[at].reserve(ITEMS_A_DAY as usize);
            }
            self.days[at].push(entry);
            self.in_days += 1;
        } else {
            self.later.push(entry);
        }
    }

    /// Removes the first item if it is due by `limit_ns`, and returns it with its time.
    pub fn pop_until(&mut self, limit_ns: u64) -> Option<(u64, T)> {
        loop {
            if let Some(Reverse((due_ns, _))) = self.today.peek() {
                let is_due = *due_ns <= limit_ns;
                return is_due.then(|| self.today.pop().expect("just peeked").0);
            }
            let next_day = match self.in_days {
                0 => self.later.peek()?.0.0 / self.day_ns,
                _ => self.day + 1,
            };
            if next_day > limit_ns / self.day_ns {
                return None;
            }
            self.turn_to(next_day);
        }
    }

    /// The number of items.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.today.len() + self.in_days + self.later.len()
    }

    /// Makes `day` the current day. No items of earlier days may be left.
    fn turn_to(&mut self, day: u64) {
        self.day = day;
        let at = self.at(day);
        // Frees the old day's memory; otherwise every day would end up with the capacity of the
        // fullest.
        self.today = Heap::from(std::mem::take(&mut self.days[at]));
        self.in_days -= self.today.len();
        while let Some(Reverse((due_ns, _))) = self.later.peek()
            && due_ns / self.day_ns - day < self.days.len() as u64
        {
            let Reverse((due_ns, item)) = self.later.pop().expect("just peeked");
            self.push(due_ns, item);
        }
    }

    fn at(&self, day: u64) -> usize {
        (day % self.days.len() as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::produce::generate::random::Random;

    #[test]
    fn the_order_is_that_of_a_plain_heap() {
        for seed in 0..200 {
            let mut random = Random::new(seed, 9);
            let span = 1 + random.below(2_000);
            let items = random.below(2_000);
            let mut calendar = Calendar::new(span, items);
            let mut heap = Heap::new();
            let mut now = 0;
            for item in 0..2_000 {
                for _ in 0..random.below(3) {
                    let reach = random.pick(&[10, span, 3 * span, 50 * span]);
                    let due = now + random.below(reach);
                    calendar.push(due, item % 5);
                    heap.push(Reverse((due, item % 5)));
                }
                let limit = random.pick(&[now, now + span, u64::MAX]);
                let want = match heap.peek() {
                    Some(Reverse((due, _))) if *due <= limit => heap.pop().map(|first| first.0),
                    _ => None,
                };
                assert_eq!(calendar.pop_until(limit), want, "seed {seed}");
                assert_eq!(calendar.len(), heap.len(), "seed {seed}");
                now = want.map_or(now, |(due, _)| due);
            }
        }
    }

    #[test]
    fn the_end_of_time_is_a_day_like_any_other() {
        let mut calendar = Calendar::new(1, 1_000);
        for due in [u64::MAX, 0, u64::MAX, u64::MAX - 1] {
            calendar.push(due, ());
        }
        let order: Vec<u64> =
            (0..4).filter_map(|_| calendar.pop_until(u64::MAX)).map(|p| p.0).collect();
        assert_eq!(order, [0, u64::MAX - 1, u64::MAX, u64::MAX]);
        calendar.push(u64::MAX, ());
        assert_eq!(calendar.pop_until(u64::MAX), Some((u64::MAX, ())));
        assert_eq!(calendar.pop_until(u64::MAX), None);
    }
}
