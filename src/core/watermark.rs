//! Promises, idleness and the watermark. Pure: small state machines without a clock.
//!
//! [`WatermarkGenerator`] runs at the source and turns the records read into a [`Binding`].
//! [`WatermarkTracker`] runs at every worker and turns the bindings of an epoch into its watermark.
//! All workers see the same bindings, so all agree on `W(e)`, live and in a replay (I2).

use std::collections::BTreeMap;

use crate::binding::{Binding, Offset, Partition, Status};
use crate::time::{Epoch, EventTime};

/// The durations that determine promises, in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WatermarkConfig {
    /// How much older than the newest event of its partition an on-time event may be.
    pub out_of_orderness_ms: i64,
    /// How long a partition must be silent, after it was read to its end, before it is idle.
    pub idle_timeout_ms: u64,
}

/// What a source knows about one partition that it reads.
#[derive(Clone, Debug)]
pub struct WatermarkGenerator {
    config: WatermarkConfig,
    bound: Binding,
    newest: EventTime,
    records: u64,
    dead: u64,
    /// The epoch of the last record, or the epoch since which there can have been none.
    silent_since: Epoch,
    /// The epoch since which the partition has been idle, if no record has come since. It survives
    /// doubt: when the broker's statement expires and is renewed, the silence still began when it
    /// began.
    idle_since: Option<Epoch>,
}

impl WatermarkGenerator {
    /// Resumes from a binding; `epoch` is the first epoch it may bind.
    pub fn resume(config: WatermarkConfig, bound: Binding, epoch: Epoch) -> Self {
        let silent_since = match bound.status {
            // It was silent before: it is idle again as soon as it is known to be at its end.
            Status::Idle => bound.quiet_since.saturating_sub(config.idle_timeout_ms),
            Status::Active | Status::Ended => epoch,
        };
        WatermarkGenerator {
            config,
            bound,
            newest: EventTime::NEVER,
            records: bound.records,
            dead: bound.dead,
            silent_since,
            idle_since: (bound.status == Status::Idle).then_some(bound.quiet_since),
        }
    }

    /// Notes that an event was read in `epoch`.
    pub fn event(&mut self, time: EventTime, epoch: Epoch) {
        self.records += 1;
        self.newest = self.newest.max(time);
        self.note_record(epoch);
    }

    /// Notes that a record that is not an event was read in `epoch`. It never moves the promise,
    /// but a partition with bad input is not silent.
    pub fn dead_letter(&mut self, epoch: Epoch) {
        self.records += 1;
        self.dead += 1;
        self.note_record(epoch);
    }

    /// Notes that the partition was not silent in `epoch`.
    fn note_record(&mut self, epoch: Epoch) {
        self.silent_since = epoch;
        self.idle_since = None;
    }

    /// Whether the partition has been silent for the idle timeout at `epoch`.
    pub fn is_silent(&self, epoch: Epoch) -> bool {
        epoch.saturating_sub(self.silent_since) >= self.config.idle_timeout_ms
    }

    /// Binds the partition at the end of `epoch`. `end` is the position reached. `quiet` is the
    /// latest epoch at which the broker is known to have had nothing more to read: silence counts
    /// only up to then, since nobody knows what has arrived later. `ended` says that the job reads
    /// no further.
    pub fn cut(&mut self, epoch: Epoch, end: Offset, quiet: Option<Epoch>, ended: bool) -> Binding {
        assert!(end >= self.bound.end, "an epoch ends at {end}, before {}", self.bound.end);
        let silent = quiet.is_some_and(|quiet| self.is_silent(quiet.min(epoch)));
        let status = match (ended, silent) {
            (true, _) => Status::Ended,
            (false, true) => Status::Idle,
            (false, false) => Status::Active,
        };
        let quiet_since = match status {
            Status::Active => 0,
            Status::Idle => *self.idle_since.get_or_insert(epoch),
            Status::Ended if self.bound.status == Status::Ended => self.bound.quiet_since,
            Status::Ended => epoch,
        };
        let promise = self.newest.plus(-self.config.out_of_orderness_ms);
        self.bound = Binding {
            partition: self.bound.partition,
            topic_id: self.bound.topic_id,
            start: self.bound.start,
            end,
            promise: self.bound.promise.max(promise),
            status,
            quiet_since,
            records: self.records,
            dead: self.dead,
            clock_ms: self.bound.clock_ms,
        };
        self.bound
    }

    /// Records read, and how many of them became dead letters, since the job was created.
    pub fn counts(&self) -> (u64, u64) {
        (self.records, self.dead)
    }

    /// The last binding, cut here or resumed from.
    pub fn bound(&self) -> &Binding {
        &self.bound
    }
}

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

/// An upper bound of the watermark, from what one source knows. Other sources contribute to it,
/// too.
///
/// `W(e)` is at most the promise of any partition that is active at `e`, unless it was already
/// higher. So while a source reads an active partition, its own promises bound `W`. While it reads
/// none, only what the sessions have computed since does.
#[derive(Clone, Debug)]
pub struct WatermarkBound {
    known: EventTime,
    /// The last epoch at which no partition of this source was active, until the watermark up to
    /// that epoch is known.
    blind_at: Option<Epoch>,
}

impl WatermarkBound {
    /// Starts with the known `watermark`.
    pub fn new(watermark: EventTime) -> Self {
        WatermarkBound { known: watermark, blind_at: None }
    }

    /// Notes the watermark of a replayed epoch that has just been cut.
    pub fn set(&mut self, watermark: EventTime) {
        self.known = watermark;
    }

    /// Notes that `epoch` is cut, with the last bindings of this source's partitions.
    pub fn cut<'a>(&mut self, epoch: Epoch, own: impl Iterator<Item = &'a Binding>) {
        let active = own.filter(|binding| binding.status == Status::Active);
        match active.map(|binding| binding.promise).min() {
            Some(promise) => self.known = self.known.max(promise),
            None => self.blind_at = Some(epoch),
        }
    }

    /// Notes that the watermark has reached `watermark` or further, in all epochs before `open`
    /// (`None`: in all epochs that are cut).
    pub fn learn(&mut self, open: Option<Epoch>, watermark: Option<EventTime>) {
        if self.blind_at.is_some_and(|blind| open.is_none_or(|open| blind < open)) {
            self.blind_at = None;
            self.known = self.known.max(watermark.unwrap_or(EventTime::NEVER));
        }
    }

    /// The watermark of the last cut epoch is not later than this.
    pub fn at_most(&self) -> EventTime {
        if self.blind_at.is_some() { EventTime::FOREVER } else { self.known }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: WatermarkConfig =
        WatermarkConfig { out_of_orderness_ms: 15_000, idle_timeout_ms: 30_000 };

    fn at(millis: i64) -> EventTime {
        EventTime::from_millis(millis)
    }

    fn partition(number: i32) -> Partition {
        Partition { topic: 0, number }
    }

    fn offset(offset: i64) -> Offset {
        Offset::new(offset)
    }

    fn source(number: i32) -> WatermarkGenerator {
        WatermarkGenerator::resume(CONFIG, Binding::initial(partition(number), Offset::ZERO), 1_000)
    }

    fn binding(number: i32, promise: i64, status: Status, quiet_since: Epoch) -> Binding {
        let initial = Binding::initial(partition(number), Offset::ZERO);
        Binding { promise: at(promise), status, quiet_since, ..initial }
    }

    #[test]
    fn a_partition_has_ended_since_the_first_epoch_in_which_it_had() {
        let mut source = source(0);
        assert_eq!(source.cut(2_000, offset(3), None, false).quiet_since, 0);
        assert_eq!(source.cut(3_000, offset(3), None, true).quiet_since, 3_000);
        assert_eq!(source.cut(4_000, offset(3), None, true).quiet_since, 3_000);
    }

    #[test]
    fn records_and_dead_letters_are_counted_from_what_was_bound() {
        let mut source = source(0);
        source.event(at(100_000), 1_000);
        source.event(at(100_001), 1_000);
        source.dead_letter(1_000);
        assert_eq!(source.counts(), (3, 1));
        let bound = source.cut(1_000, offset(3), None, false);
        assert_eq!(WatermarkGenerator::resume(CONFIG, bound, 2_000).counts(), (3, 1));
    }

    #[test]
    fn a_tracker_knows_its_epoch() {
        let mut tracker = WatermarkTracker::new(7, at(0), []);
        tracker.advance(9, []);
        assert_eq!(tracker.epoch(), 9);
    }

    #[test]
    fn a_source_bounds_the_watermark_by_its_own_promises_while_it_has_any() {
        let active = binding(0, 50, Status::Active, 0);
        let idle = binding(1, 900, Status::Idle, 7);
        let mut bound = WatermarkBound::new(at(10));
        assert_eq!(bound.at_most(), at(10));
        bound.cut(8, [&active, &idle].into_iter());
        assert_eq!(bound.at_most(), at(50), "an active partition holds it");
        bound.cut(9, [&idle].into_iter());
        assert_eq!(bound.at_most(), EventTime::FOREVER, "others move it, nobody knows how far");
        bound.cut(10, [&active].into_iter());
        bound.learn(Some(9), Some(at(700)));
        assert_eq!(bound.at_most(), EventTime::FOREVER, "what became of epoch 9 is not known yet");
        bound.learn(Some(10), Some(at(800)));
        assert_eq!(bound.at_most(), at(800));
        bound.cut(11, [&active].into_iter());
        assert_eq!(bound.at_most(), at(800), "the watermark never falls");
    }

    #[test]
    fn a_promise_is_the_newest_event_less_the_out_of_orderness_and_never_falls() {
        let mut source = source(0);
        assert_eq!(source.cut(1_000, offset(0), None, false).promise, EventTime::NEVER);
        source.event(at(100_000), 2_000);
        source.event(at(90_000), 2_000);
        assert_eq!(source.cut(2_000, offset(2), None, false).promise, at(85_000));
        source.event(at(99_000), 3_000);
        let bound = source.cut(3_000, offset(3), None, false);
        assert_eq!((bound.promise, bound.records, bound.dead), (at(85_000), 3, 0));
        let mut resumed = WatermarkGenerator::resume(CONFIG, bound, 4_000);
        resumed.event(at(50_000), 4_000);
        assert_eq!(resumed.cut(4_000, offset(4), None, false).promise, at(85_000));
    }

    #[test]
    fn bad_input_counts_but_never_moves_the_promise() {
        let mut source = source(0);
        source.dead_letter(1_000);
        let bound = source.cut(1_000, offset(1), Some(1_000), false);
        assert_eq!((bound.promise, bound.records, bound.dead), (EventTime::NEVER, 1, 1));
        assert_eq!(source.cut(31_000, offset(1), Some(31_000), false).status, Status::Idle);
        source.dead_letter(32_000);
        assert_eq!(source.cut(32_000, offset(2), Some(32_000), false).status, Status::Active);
    }

    #[test]
    fn a_partition_is_idle_when_it_is_caught_up_and_was_silent_for_the_timeout() {
        for (epoch, caught_up, want) in [
            (30_999, true, Status::Active),
            (31_000, true, Status::Idle),
            (31_000, false, Status::Active),
            (90_000, false, Status::Active),
        ] {
            let mut source = source(0);
            source.event(at(5), 1_000);
            let bound = source.cut(epoch, offset(1), caught_up.then_some(epoch), false);
            assert_eq!(bound.status, want, "{epoch} {caught_up}");
            assert_eq!(bound.quiet_since, if want == Status::Idle { epoch } else { 0 });
        }
    }

    #[test]
    fn idleness_ends_with_a_record_and_keeps_its_beginning_until_then() {
        let mut source = source(0);
        assert_eq!(source.cut(31_000, offset(0), Some(31_000), false).quiet_since, 31_000);
        let idle = source.cut(32_000, offset(0), Some(32_000), false);
        assert_eq!(idle.quiet_since, 31_000);
        // After a restart, or when the broker has to state again where the partition ends.
        let mut resumed = WatermarkGenerator::resume(CONFIG, idle, 90_000);
        for generator in [&mut source, &mut resumed] {
            assert_eq!(generator.cut(90_000, offset(0), None, false).status, Status::Active);
            let idle = generator.cut(91_000, offset(0), Some(91_000), false);
            assert_eq!((idle.status, idle.quiet_since), (Status::Idle, 31_000));
        }
        source.event(at(1), 92_000);
        assert_eq!(source.cut(92_000, offset(1), Some(92_000), false).status, Status::Active);
        assert_eq!(source.cut(122_000, offset(1), Some(122_000), false).quiet_since, 122_000);
    }

    #[test]
    fn an_ended_partition_stays_ended_only_while_the_caller_reports_it() {
        let mut source = source(0);
        let ended = source.cut(2_000, offset(0), None, true);
        assert_eq!((ended.status, ended.quiet_since), (Status::Ended, 2_000));
        let mut resumed = WatermarkGenerator::resume(CONFIG, ended, 3_000);
        assert_eq!(resumed.cut(3_000, offset(0), Some(3_000), false).status, Status::Active);
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
