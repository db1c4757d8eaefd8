//! What every worker derives from the bindings of an epoch: the watermark.

use std::collections::BTreeMap;

use crate::binding::{Binding, Partition, Status};
use crate::time::{Epoch, EventTime};

/// What every worker derives from the bindings: the latest of each partition, and the watermark.
///
/// ```
/// use sessionizer_core::binding::{Binding, Offset, Partition};
/// use sessionizer_core::time::EventTime;
/// use sessionizer_core::watermark::{WatermarkConfig, WatermarkGenerator, WatermarkTracker};
///
/// let config = WatermarkConfig { out_of_orderness_ms: 15_000, idle_timeout_ms: 30_000 };
/// let start = Binding::initial(Partition { topic: 0, number: 0 }, Offset::ZERO);
///
/// // At the source: one event is read in epoch 1000, and the epoch ends before offset 1.
/// let mut partition = WatermarkGenerator::resume(config, start, 1_000);
/// partition.event(EventTime::from_millis(100_000), 1_000);
/// let binding = partition.cut(1_000, Offset::new(1), None, false);
///
/// // At every worker: the watermark is the least promise.
/// let mut tracker = WatermarkTracker::new(0, EventTime::NEVER, [start]);
/// let advance = tracker.advance(1_000, [binding]);
/// assert_eq!(advance.watermark, EventTime::from_millis(85_000));
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WatermarkTracker {
    bindings: BTreeMap<Partition, Binding>,
    epoch: Epoch,
    watermark: EventTime,
}

/// What an epoch means for the sessions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WatermarkAdvance {
    /// `W(e)`: no on-time event is older. It never falls.
    pub watermark: EventTime,
    /// Whether every partition has ended: then every session closes, whatever the watermark.
    pub drained: bool,
}

impl WatermarkAdvance {
    /// Sessions that end before this time close.
    pub fn close_before(self) -> EventTime {
        if self.drained { EventTime::FOREVER } else { self.watermark }
    }
}

impl WatermarkTracker {
    /// Starts at `epoch`, with the latest bindings at or before it.
    pub fn new(
        epoch: Epoch,
        watermark: EventTime,
        bindings: impl IntoIterator<Item = Binding>,
    ) -> Self {
        let bindings = bindings.into_iter().map(|binding| (binding.partition, binding)).collect();
        WatermarkTracker { bindings, epoch, watermark }
    }

    /// Advances to `epoch` with its bindings; a partition without one keeps its last.
    pub fn advance(
        &mut self,
        epoch: Epoch,
        bindings: impl IntoIterator<Item = Binding>,
    ) -> WatermarkAdvance {
        assert!(epoch > self.epoch, "epoch {epoch} comes after {}", self.epoch);
        self.epoch = epoch;
        for binding in bindings {
            let before = self.bindings.insert(binding.partition, binding);
            debug_assert!(
                before.is_none_or(|before| before.promise <= binding.promise),
                "I2: a promise never falls: {binding:?} comes after {before:?}"
            );
        }
        self.watermark = self.watermark.max(self.candidate());
        WatermarkAdvance { watermark: self.watermark, drained: self.drained() }
    }

    /// The current epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The current watermark.
    pub fn watermark(&self) -> EventTime {
        self.watermark
    }

    /// The latest binding of every partition.
    pub fn bindings(&self) -> impl Iterator<Item = &Binding> + Clone {
        self.bindings.values()
    }

    fn drained(&self) -> bool {
        !self.bindings.is_empty() && self.bindings.values().all(|b| b.status == Status::Ended)
    }

    /// The watermark of this epoch alone.
    fn candidate(&self) -> EventTime {
        let active = self.bindings.values().filter(|b| b.status == Status::Active);
        if let Some(promise) = active.map(|b| b.promise).min() {
            return promise;
        }
        // No partition is active: the watermark advances from the newest promise with the epochs,
        // which follow elapsed time, so that the last sessions close as well.
        let newest = self.bindings.values().map(|b| b.promise).max().unwrap_or(EventTime::NEVER);
        if newest == EventTime::NEVER {
            return newest;
        }
        let since = self.bindings.values().map(|b| b.quiet_since).max().unwrap_or(self.epoch);
        newest.plus(self.epoch.saturating_sub(since) as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binding::Offset;

    fn at(millis: i64) -> EventTime {
        EventTime::from_millis(millis)
    }

    fn partition(number: i32) -> Partition {
        Partition { topic: 0, number }
    }

    fn binding(number: i32, promise: i64, status: Status, quiet_since: Epoch) -> Binding {
        let initial = Binding::initial(partition(number), Offset::ZERO);
        Binding { promise: at(promise), status, quiet_since, ..initial }
    }

    #[test]
    fn a_tracker_knows_its_epoch() {
        let mut tracker = WatermarkTracker::new(7, at(0), []);
        tracker.advance(9, []);
        assert_eq!(tracker.epoch(), 9);
    }

    #[test]
    fn the_watermark_is_the_least_promise_of_those_that_are_not_idle() {
        let mut tracker = WatermarkTracker::new(0, EventTime::NEVER, []);
        let first = [binding(0, 50, Status::Active, 0), binding(1, 90, Status::Active, 0)];
        assert_eq!(tracker.advance(1, first).watermark, at(50));
        assert_eq!(tracker.advance(2, [binding(0, 50, Status::Idle, 2)]).watermark, at(90));
        // A partition that becomes active with an old promise stops the watermark: it never falls.
        assert_eq!(tracker.advance(3, [binding(0, 60, Status::Active, 0)]).watermark, at(90));
        assert_eq!(tracker.advance(4, []).watermark, at(90));
    }

    #[test]
    fn a_partition_without_a_promise_holds_everything() {
        let mut tracker = WatermarkTracker::new(0, EventTime::NEVER, []);
        let both =
            [Binding::initial(partition(0), Offset::ZERO), binding(1, 90, Status::Active, 0)];
        assert_eq!(tracker.advance(1, both).watermark, EventTime::NEVER);
    }

    #[test]
    fn when_all_are_silent_time_goes_on_with_the_epochs() {
        let mut tracker = WatermarkTracker::new(0, EventTime::NEVER, []);
        let idle = [binding(0, 50, Status::Idle, 31_000), binding(1, 90, Status::Idle, 40_000)];
        assert_eq!(tracker.advance(40_000, idle).watermark, at(90));
        assert_eq!(tracker.advance(41_000, []).watermark, at(1_090));
        // The same holds for a tracker that learns this from a trimmed history.
        let mut resumed =
            WatermarkTracker::new(41_000, tracker.watermark(), tracker.bindings().copied());
        assert_eq!(resumed.advance(45_000, []).watermark, at(5_090));
        assert_eq!(tracker.advance(45_000, []).watermark, at(5_090));
    }

    #[test]
    fn silence_without_any_event_ever_stays_before_all_time() {
        let mut tracker = WatermarkTracker::new(0, EventTime::NEVER, []);
        let never = Binding {
            status: Status::Idle,
            quiet_since: 1,
            ..Binding::initial(partition(0), Offset::ZERO)
        };
        assert_eq!(tracker.advance(1_000_000, [never]).watermark, EventTime::NEVER);
        assert_eq!(
            WatermarkTracker::new(0, EventTime::NEVER, []).advance(5, []).watermark,
            EventTime::NEVER
        );
    }

    #[test]
    fn draining_closes_everything_and_leaves_the_watermark_alone() {
        let mut tracker = WatermarkTracker::new(0, EventTime::NEVER, []);
        let half = [binding(0, 50, Status::Ended, 1), binding(1, 90, Status::Active, 0)];
        assert!(!tracker.advance(1, half).drained);
        let reading = tracker.advance(2, [binding(1, 95, Status::Ended, 2)]);
        assert_eq!((reading.drained, reading.watermark), (true, at(95)));
        assert_eq!(reading.close_before(), EventTime::FOREVER);
        let reading = tracker.advance(3, [binding(1, 95, Status::Active, 0)]);
        assert_eq!((reading.drained, reading.close_before()), (false, at(95)));
    }

    #[test]
    #[should_panic(expected = "epoch 5 comes after 5")]
    fn epochs_only_go_forward() {
        WatermarkTracker::new(5, EventTime::NEVER, []).advance(5, []);
    }
}
