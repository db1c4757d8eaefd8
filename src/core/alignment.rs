//! Watermark alignment: decides which partitions wait for the slowest one. Pure.
//!
//! In a backlog, partitions are read at different speeds, and the slowest one determines the
//! watermark. Events of the others that lie beyond the watermark stay in open sessions, so without
//! a bound, memory grows with how far those partitions run ahead. This module is the bound: a
//! partition whose promise exceeds the least promise of the partitions that *lag* by more
//! than the *drift* is *paused*, that is, not read for a while.
//!
//! Promises are compared once an epoch. Where events are sparse, one epoch of a backlog spans hours
//! of event time, and a drift of minutes would make the partitions wait for each other most of the
//! time. So the drift is at least what the slowest partition advances in a few epochs: that much is
//! in flight anyway.
//!
//! A partition lags if in its last epoch there was more to read than was read. No partition is
//! paused for one with nothing to read, however old its promise: live traffic never waits for live
//! traffic. Nor does any wait for a partition that has been silent for the idle timeout, for
//! example because it has no leader.
//!
//! Pausing costs time: a worker that has nothing else to do could have read the paused partition.
//! What it saves is memory, so no partition is paused while few sessions are open.
//!
//! No partition waits for ever. Among the partitions that lag, the one with the least
//! promise is never paused, because its promise is not beyond itself. It is read, so in every epoch
//! its promise moves, or it reaches its end, or it is silent and stops counting after the idle
//! timeout: the bound moves or disappears. Epochs are cut by the clock, whichever partitions are
//! paused.
//!
//! Pausing decides only which records are read in which epoch. That is chance, and it is bound like
//! all chance: it cannot affect the result, and a replay does not consult it.

use std::collections::{BTreeMap, BTreeSet};

use crate::binding::{Binding, Partition, Status};
use crate::time::EventTime;

/// How far partitions may drift apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Drift {
    /// In milliseconds of event time.
    pub most_ms: i64,
    /// The drift is not enforced while at most this many sessions are open.
    pub sessions: u64,
}

/// What one worker knows of the distances between all partitions. Every worker learns the same.
#[derive(Clone, Debug)]
pub struct Alignment {
    drift: Drift,
    /// The partitions that lag, by the worker that reads them, as of its last cut.
    lagging: BTreeMap<usize, Vec<Partition>>,
    /// The promises of the previous epoch.
    before: BTreeMap<Partition, EventTime>,
    /// How far the slowest partition advances in an epoch, in milliseconds of event time: a maximum
    /// that decays.
    pace_ms: i64,
}

/// By how many epochs of the slowest partition the others may be ahead, whatever the drift.
const EPOCHS_AHEAD: i64 = 4;

impl Alignment {
    /// Starts with no partition known to lag.
    pub fn new(drift: Drift) -> Self {
        let (lagging, before) = (BTreeMap::new(), BTreeMap::new());
        Alignment { drift, lagging, before, pace_ms: 0 }
    }

    /// Records which partitions of a worker lagged at its last cut.
    pub fn learn(&mut self, worker: usize, lagging: Vec<Partition>) {
        self.lagging.insert(worker, lagging);
    }

    /// Returns the partitions to pause, given the latest bindings of all partitions and the number
    /// of open sessions. Call it once an epoch. It compares promises as of one epoch, so progress
    /// that a partition has made since does not count against it.
    pub fn paused<'a>(
        &mut self,
        bindings: impl Iterator<Item = &'a Binding> + Clone,
        open_sessions: u64,
    ) -> BTreeSet<Partition> {
        let lagging: BTreeSet<Partition> = self.lagging.values().flatten().copied().collect();
        let is_lagging = |b: &&Binding| {
            b.status == Status::Active
                && b.promise > EventTime::NEVER
                && lagging.contains(&b.partition)
        };
        let slowest = bindings.clone().filter(is_lagging).min_by_key(|b| b.promise).copied();
        let made_ms = slowest.and_then(|slowest| {
            let before = self.before.get(&slowest.partition).filter(|at| **at > EventTime::NEVER);
            Some(slowest.promise.millis() - before?.millis())
        });
        self.pace_ms = made_ms.unwrap_or(0).max(self.pace_ms - self.pace_ms / 4);
        self.before = bindings.clone().map(|b| (b.partition, b.promise)).collect();
        // The pace of a partition that has just begun is unknown: the others need not wait an
        // epoch.
        let Some(Binding { promise: least, .. }) = slowest.filter(|_| made_ms.is_some()) else {
            return BTreeSet::new();
        };
        if open_sessions <= self.drift.sessions {
            return BTreeSet::new();
        }
        let limit = least.plus(self.drift.most_ms.max(EPOCHS_AHEAD * self.pace_ms));
        let beyond = bindings.filter(|b| b.status != Status::Ended && b.promise > limit);
        beyond.map(|b| b.partition).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binding::Offset;

    const DRIFT_MS: i64 = 100;
    const DRIFT: Drift = Drift { most_ms: DRIFT_MS, sessions: 1_000 };
    const MANY: u64 = 1_001;
    const NOBODY: [i32; 0] = [];

    fn partition(number: i32) -> Partition {
        Partition { topic: 0, number }
    }

    fn binding(number: i32, promise: i64, status: Status) -> Binding {
        let promise = EventTime::from_millis(promise);
        Binding { promise, status, ..Binding::initial(partition(number), Offset::ZERO) }
    }

    fn paused(lagging: &[i32], bindings: &[Binding]) -> Vec<i32> {
        let mut alignment = Alignment::new(DRIFT);
        for number in lagging {
            alignment.learn(*number as usize, vec![partition(*number)]);
        }
        // Call it twice, so that the pace is known: no partition has advanced in between.
        alignment.paused(bindings.iter(), MANY);
        alignment.paused(bindings.iter(), MANY).iter().map(|partition| partition.number).collect()
    }

    #[test]
    fn those_that_are_further_ahead_of_the_slowest_than_the_drift_are_paused() {
        let at = |promise| [binding(0, 50, Status::Active), binding(1, promise, Status::Active)];
        assert_eq!(paused(&[0], &at(150)), NOBODY);
        assert_eq!(paused(&[0], &at(151)), [1]);
        assert_eq!(paused(&[0, 1], &at(151)), [1]);
        // The slowest itself is never paused.
        assert_eq!(paused(&[1], &at(151)), NOBODY);
    }

    #[test]
    fn nobody_waits_while_few_sessions_are_open() {
        let mut alignment = Alignment::new(DRIFT);
        alignment.learn(0, vec![partition(0)]);
        let at = [binding(0, 50, Status::Active), binding(1, 10_000, Status::Active)];
        let mut paused = |open| alignment.paused(at.iter(), open).len();
        assert_eq!(paused(0), 0);
        assert_eq!([paused(MANY - 1), paused(MANY), paused(MANY - 1)], [0, 1, 0]);
    }

    #[test]
    fn who_is_ahead_by_a_few_epochs_of_the_slowest_is_not_paused() {
        let mut alignment = Alignment::new(DRIFT);
        alignment.learn(0, vec![partition(0)]);
        let mut paused = |slow, fast| {
            let at = [binding(0, slow, Status::Active), binding(1, fast, Status::Active)];
            alignment.paused(at.iter(), MANY).len()
        };
        assert_eq!([paused(0, 101), paused(0, 101)], [0, 1], "at first the pace is unknown");
        assert_eq!(paused(1_000, 5_000), 0);
        assert_eq!(paused(2_000, 6_001), 1);
        // The slowest stands still: its pace is forgotten, epoch by epoch.
        assert_eq!([paused(2_000, 5_000), paused(2_000, 5_000)], [0, 1]);
        for _ in 0..10 {
            paused(2_000, 2_000);
        }
        assert_eq!([paused(2_000, 2_100), paused(2_000, 2_401)], [0, 1]);
    }

    #[test]
    fn nobody_waits_for_one_that_has_nothing_to_read() {
        let far = binding(1, 10_000, Status::Active);
        assert_eq!(paused(&[], &[binding(0, 50, Status::Active), far]), NOBODY);
        assert_eq!(paused(&[0], &[binding(0, 50, Status::Idle), far]), NOBODY);
        assert_eq!(paused(&[0], &[binding(0, 50, Status::Ended), far]), NOBODY);
        let silent = Binding::initial(partition(0), Offset::ZERO);
        assert_eq!(paused(&[0], &[silent, far]), NOBODY, "its time is unknown");
    }

    #[test]
    fn one_whose_time_is_unknown_does_not_hide_the_slowest() {
        let silent = Binding::initial(partition(0), Offset::ZERO);
        let slow = binding(2, 50, Status::Active);
        let far = binding(1, 10_000, Status::Active);
        assert_eq!(paused(&[0, 2], &[silent, far, slow]), [1]);
    }

    #[test]
    fn the_others_do_not_wait_for_the_first_event_of_a_partition() {
        let mut alignment = Alignment::new(DRIFT);
        alignment.learn(0, vec![partition(0)]);
        let far = binding(1, 10_000, Status::Active);
        let mut paused = |first| alignment.paused([first, far].iter(), MANY).len();
        let silent = Binding::initial(partition(0), Offset::ZERO);
        let at_50 = binding(0, 50, Status::Active);
        assert_eq!([paused(silent), paused(at_50), paused(at_50)], [0, 0, 1]);
    }

    #[test]
    fn one_that_has_ended_is_not_paused_and_an_idle_one_is() {
        let slow = binding(0, 50, Status::Active);
        let far = |status| binding(1, 10_000, status);
        assert_eq!(paused(&[0], &[slow, far(Status::Ended)]), NOBODY);
        assert_eq!(paused(&[0], &[slow, far(Status::Idle)]), [1]);
    }

    #[test]
    fn the_last_report_of_a_worker_counts() {
        let bindings = [binding(0, 50, Status::Active), binding(1, 500, Status::Active)];
        let mut alignment = Alignment::new(DRIFT);
        alignment.learn(0, vec![partition(0)]);
        alignment.paused(bindings.iter(), MANY);
        assert_eq!(alignment.paused(bindings.iter(), MANY).len(), 1);
        alignment.learn(1, vec![]);
        assert_eq!(alignment.paused(bindings.iter(), MANY).len(), 1);
        alignment.learn(0, vec![]);
        assert_eq!(alignment.paused(bindings.iter(), MANY).len(), 0);
    }

    /// Partitions of any length and speed, some of which dry up: reading always continues, and no
    /// partition with something to read runs further ahead than the drift and one epoch's reading.
    #[test]
    fn reading_goes_on_to_the_end_whatever_the_speeds() {
        for seed in 1..500u64 {
            let mut state = seed;
            let mut below = |n: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) % n
            };
            let count = 2 + below(4) as usize;
            let ends: Vec<i64> = (0..count).map(|_| below(3_000) as i64).collect();
            let speeds: Vec<i64> = (0..count).map(|_| 1 + below(60) as i64).collect();
            let mut at = vec![0i64; count];
            let mut alignment = Alignment::new(DRIFT);
            let mut waiting = BTreeSet::new();
            let mut epochs = 0;
            while at != ends {
                epochs += 1;
                assert!(epochs < 20_000, "seed {seed}: stuck at {at:?} of {ends:?}");
                let slowest = (0..count).filter(|p| at[*p] < ends[*p]).map(|p| at[p]).min();
                for number in 0..count {
                    let paused = waiting.contains(&partition(number as i32));
                    let read = !paused && below(3) > 0;
                    at[number] =
                        (at[number] + if read { speeds[number] } else { 0 }).min(ends[number]);
                    let lagging = !paused && at[number] < ends[number];
                    alignment.learn(
                        number,
                        lagging.then(|| partition(number as i32)).into_iter().collect(),
                    );
                }
                let bindings: Vec<Binding> =
                    (0..count).map(|n| binding(n as i32, at[n], Status::Active)).collect();
                // In every other epoch the decision arrives late.
                if below(2) == 0 {
                    waiting = alignment.paused(bindings.iter(), MANY);
                }
                if let Some(slowest) = slowest {
                    let reading = (0..count).filter(|p| !waiting.contains(&partition(*p as i32)));
                    let furthest = reading.filter(|p| at[*p] < ends[*p]).map(|p| at[p]).max();
                    let most = slowest + DRIFT_MS + 60 * 20;
                    assert!(furthest.is_none_or(|at| at <= most), "seed {seed}: {at:?}");
                }
            }
        }
    }
}
