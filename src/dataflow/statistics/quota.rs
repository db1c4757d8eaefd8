//! How many visitors the workers of a process may keep together.
//!
//! Rows are exchanged by host, so the visitors of a large host are all on one worker. If each worker
//! had a fixed part of the quota, that host could use no more than one part, however little the
//! others use. So a worker may use what the others leave, and has its own part in any case. Together
//! they may exceed the quota for a moment; then a worker above its part forgets its visitors.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

/// The quota of a process.
#[derive(Debug, Default)]
pub struct Quota {
    workers: AtomicUsize,
    /// By all of them.
    used: AtomicUsize,
}

/// The quotas of a process: one for the window, and one for the detectors.
#[derive(Clone, Debug, Default)]
pub struct Quotas {
    pub window: Arc<Quota>,
    pub detectors: Arc<Quota>,
}

/// The share of a worker in the quota of its process.
#[derive(Debug)]
pub struct Share {
    quota: Arc<Quota>,
    /// What this worker may use in any case.
    part: usize,
    /// What it uses.
    used: usize,
}

impl Share {
    /// Registers a worker. `total` is for all `peers` workers of the job.
    pub fn new(quota: &Arc<Quota>, total: usize, peers: usize) -> Self {
        quota.workers.fetch_add(1, Relaxed);
        Share { quota: Arc::clone(quota), part: total.div_ceil(peers), used: 0 }
    }

    /// What this worker may use.
    pub fn allowed(&self) -> usize {
        let of_process = self.part * self.quota.workers.load(Relaxed);
        let by_others = self.quota.used.load(Relaxed).saturating_sub(self.used);
        of_process.saturating_sub(by_others).max(self.part)
    }

    /// Records what this worker uses now.
    pub fn uses(&mut self, used: usize) {
        // The difference wraps around if it has become less; the sum is right all the same.
        self.quota.used.fetch_add(used.wrapping_sub(self.used), Relaxed);
        self.used = used;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_may_use_what_the_others_leave_and_always_its_part() {
        let quota = Arc::default();
        // Four workers in all, two of them here.
        let [mut a, mut b] = [(); 2].map(|()| Share::new(&quota, 400, 4));
        assert_eq!((a.allowed(), b.allowed()), (200, 200));
        a.uses(150);
        assert_eq!((a.allowed(), b.allowed()), (200, 100));
        b.uses(90);
        assert_eq!((a.allowed(), b.allowed()), (110, 100), "a is above what it may use now");
        a.uses(0);
        assert_eq!((a.allowed(), b.allowed()), (110, 200));
    }

    #[test]
    fn of_nothing_nobody_may_use_anything() {
        let share = Share::new(&Arc::default(), 0, 4);
        assert_eq!(share.allowed(), 0);
    }
}
