//! The memory for data in flight: one budget of bytes for the process (`--memory`).
//!
//! Whoever creates data charges its bytes to the epoch that it belongs to. Events are released when
//! the sessions have absorbed them; dead letters, rows and snapshots when their epoch is durable.
//! While the budget is used up, readers pause and everything else continues, so the data in flight
//! becomes durable and is released. A charge is never refused: an epoch that has begun can always
//! end, however large it is.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sessionizer_core::time::Epoch;

use crate::ui::text;

/// The kinds of data in flight.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ChargeKind {
    /// Events on their way to the sessions.
    Events,
    DeadLetters,
    Rows,
    Snapshots,
}

const KINDS: [(ChargeKind, &str); 4] = [
    (ChargeKind::Events, "events"),
    (ChargeKind::DeadLetters, "dead letters"),
    (ChargeKind::Rows, "rows"),
    (ChargeKind::Snapshots, "snapshots of open sessions"),
];

/// A budget of bytes that all workers of a process share.
#[derive(Debug)]
pub struct Budget {
    limit: AtomicU64,
    /// The number of readers that share it.
    readers: AtomicU64,
    /// The sum of all charges.
    used: AtomicU64,
    /// How often a reader had to pause.
    pauses: AtomicU64,
    charges: Mutex<Charges>,
}

/// Charges by epoch and worker.
type Charges = BTreeMap<(Epoch, usize), [u64; KINDS.len()]>;

impl Default for Budget {
    /// A budget without a limit.
    fn default() -> Self {
        Budget {
            limit: AtomicU64::new(u64::MAX),
            readers: AtomicU64::new(1),
            used: AtomicU64::default(),
            pauses: AtomicU64::default(),
            charges: Mutex::default(),
        }
    }
}

impl Budget {
    /// Sets the limit in bytes, shared by this many readers.
    pub fn set(&self, limit: u64, readers: usize) {
        self.limit.store(limit.max(1), Relaxed);
        self.readers.store(readers.max(1) as u64, Relaxed);
    }

    fn charges(&self) -> MutexGuard<'_, Charges> {
        self.charges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Charges data that a worker has created to its epoch.
    pub fn charge(&self, kind: ChargeKind, worker: usize, epoch: Epoch, bytes: u64) {
        if bytes > 0 {
            self.charges().entry((epoch, worker)).or_default()[kind as usize] += bytes;
            self.used.fetch_add(bytes, Relaxed);
        }
    }

    /// Releases the events that a worker has read up to the end of an epoch: the sessions have
    /// absorbed them.
    pub fn release_events(&self, worker: usize, epoch: Epoch) {
        let mut charges = self.charges();
        let of_worker =
            charges.range_mut(..=(epoch, worker)).filter(|((_, maker), _)| *maker == worker);
        let events =
            of_worker.map(|(_, bytes)| std::mem::take(&mut bytes[ChargeKind::Events as usize]));
        let bytes = events.sum();
        self.used.fetch_sub(bytes, Relaxed);
    }

    /// Releases everything before `epoch`, which is durable (`None`: everything). Returns whether
    /// that released anything.
    pub fn release_durable(&self, epoch: Option<Epoch>) -> bool {
        let mut charges = self.charges();
        let open = epoch.map_or_else(BTreeMap::new, |epoch| charges.split_off(&(epoch, 0)));
        let durable = std::mem::replace(&mut *charges, open);
        let bytes = durable.values().flatten().sum();
        self.used.fetch_sub(bytes, Relaxed);
        !durable.is_empty()
    }

    /// How many bytes are in use, and the limit.
    pub fn usage(&self) -> (u64, u64) {
        (self.used.load(Relaxed), self.limit.load(Relaxed))
    }

    /// Whether the budget is used up.
    pub fn is_used_up(&self) -> bool {
        self.used.load(Relaxed) >= self.limit.load(Relaxed)
    }

    /// How many bytes the reader of a worker may take next; zero means that it has to pause.
    ///
    /// Once half of the budget is used, a reader with its fair share in flight waits for the
    /// others.
    pub fn allowance(&self, worker: usize) -> u64 {
        let (used, limit) = (self.used.load(Relaxed), self.limit.load(Relaxed));
        let readers = self.readers.load(Relaxed);
        let left = limit.saturating_sub(used);
        let fair = || {
            let charges = self.charges();
            let mine = charges.iter().filter(|((_, maker), _)| *maker == worker);
            // Rows and snapshots come from the input of all readers.
            let read = |bytes: &[u64; KINDS.len()]| {
                bytes[ChargeKind::Events as usize] + bytes[ChargeKind::DeadLetters as usize]
            };
            mine.map(|(_, bytes)| read(bytes)).sum::<u64>() < (limit / readers).max(1)
        };
        if left == 0 || readers > 1 && used >= limit / 2 && !fair() {
            self.pauses.fetch_add(1, Relaxed);
            return 0;
        }
        // Other readers may get the same allowance at this moment.
        (left / readers).max(1)
    }

    /// How often a reader had to pause.
    pub fn pauses(&self) -> u64 {
        self.pauses.load(Relaxed)
    }
}

impl fmt::Display for Budget {
    /// What the budget is used for, the largest first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sums = KINDS.map(|(kind, name)| {
            let of_kind = |bytes: &[u64; KINDS.len()]| bytes[kind as usize];
            (self.charges().values().map(of_kind).sum::<u64>(), name)
        });
        sums.sort_unstable_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        let most = sums[0].0;
        let shown = sums.iter().filter(|(bytes, _)| *bytes > 0 && *bytes >= most / 10);
        let shown: Vec<String> =
            shown.map(|(bytes, name)| format!("{} of {name}", text::bytes(*bytes))).collect();
        f.write_str(&shown.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(limit: u64, readers: usize) -> Budget {
        let budget = Budget::default();
        budget.set(limit, readers);
        budget
    }

    #[test]
    fn without_a_limit_nobody_pauses() {
        let budget = Budget::default();
        budget.charge(ChargeKind::Events, 0, 1, u64::MAX / 2);
        assert!(budget.allowance(0) > 0 && !budget.is_used_up() && budget.pauses() == 0);
    }

    #[test]
    fn events_are_released_when_absorbed_and_the_rest_when_durable() {
        let budget = budget(100, 1);
        budget.charge(ChargeKind::Events, 0, 7, 30);
        budget.charge(ChargeKind::DeadLetters, 0, 7, 40);
        budget.charge(ChargeKind::Rows, 0, 8, 20);
        assert_eq!(budget.allowance(0), 10);
        budget.charge(ChargeKind::Events, 0, 9, 10);
        assert_eq!((budget.allowance(0), budget.is_used_up()), (0, true));
        budget.release_events(0, 8);
        assert_eq!(budget.allowance(0), 30);
        assert!(!budget.release_durable(Some(7)));
        assert!(budget.release_durable(Some(8)));
        assert_eq!(budget.allowance(0), 70);
        assert!(budget.release_durable(None));
        assert_eq!((budget.allowance(0), budget.pauses()), (100, 1));
    }

    #[test]
    fn events_of_another_worker_stay_until_its_own_sessions_have_taken_them_in() {
        let budget = budget(100, 2);
        budget.charge(ChargeKind::Events, 0, 5, 10);
        budget.charge(ChargeKind::Events, 1, 5, 10);
        budget.charge(ChargeKind::Events, 1, 4, 10);
        budget.release_events(0, 5);
        assert_eq!(budget.used.load(Relaxed), 20);
        budget.release_events(1, 4);
        assert_eq!(budget.used.load(Relaxed), 10);
        budget.release_events(1, 5);
        assert_eq!(budget.used.load(Relaxed), 0);
    }

    #[test]
    fn one_charge_larger_than_all_is_taken_and_released() {
        let budget = budget(100, 1);
        budget.charge(ChargeKind::DeadLetters, 0, 1, 1_000_000);
        assert_eq!(budget.allowance(0), 0);
        budget.release_durable(Some(2));
        assert_eq!(budget.allowance(0), 100);
    }

    #[test]
    fn who_has_its_part_waits_for_those_who_have_not() {
        let budget = budget(100, 2);
        budget.charge(ChargeKind::DeadLetters, 0, 1, 49);
        assert!(budget.allowance(0) > 0, "half of it is for anybody");
        budget.charge(ChargeKind::DeadLetters, 0, 1, 10);
        assert_eq!(budget.allowance(0), 0);
        assert_eq!(budget.allowance(1), 20, "the half of what is left");
        budget.charge(ChargeKind::Rows, 1, 1, 41);
        assert_eq!([0, 1].map(|worker| budget.allowance(worker)), [0, 0]);
    }

    #[test]
    fn however_small_it_is_everybody_gets_a_turn() {
        let budget = budget(1, 3);
        assert_eq!([0, 1, 2].map(|worker| budget.allowance(worker)), [1, 1, 1]);
        budget.charge(ChargeKind::Events, 1, 1, 500);
        assert_eq!([0, 1, 2].map(|worker| budget.allowance(worker)), [0, 0, 0]);
        budget.release_events(1, 1);
        assert_eq!(budget.allowance(0), 1);
    }

    #[test]
    fn it_shows_what_it_is_used_for_and_leaves_out_what_does_not_count() {
        let budget = budget(100, 1);
        budget.charge(ChargeKind::Rows, 0, 1, 5 << 20);
        budget.charge(ChargeKind::DeadLetters, 1, 1, 43 << 20);
        budget.charge(ChargeKind::Rows, 0, 2, 2 << 20);
        budget.charge(ChargeKind::Events, 0, 2, 1_000);
        assert_eq!(budget.to_string(), "43 MiB of dead letters, 7 MiB of rows");
    }
}
