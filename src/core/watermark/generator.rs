//! What a source promises for a partition that it reads, and when the partition is idle.

use crate::binding::{Binding, Offset, Status};
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binding::Partition;

    const CONFIG: WatermarkConfig =
        WatermarkConfig { out_of_orderness_ms: 15_000, idle_timeout_ms: 30_000 };

    fn at(millis: i64) -> EventTime {
        EventTime::from_millis(millis)
    }

    fn offset(offset: i64) -> Offset {
        Offset::new(offset)
    }

    fn source() -> WatermarkGenerator {
        WatermarkGenerator::resume(
            CONFIG,
            Binding::initial(Partition { topic: 0, number: 0 }, Offset::ZERO),
            1_000,
        )
    }

    #[test]
    fn a_partition_has_ended_since_the_first_epoch_in_which_it_had() {
        let mut source = source();
        assert_eq!(source.cut(2_000, offset(3), None, false).quiet_since, 0);
        assert_eq!(source.cut(3_000, offset(3), None, true).quiet_since, 3_000);
        assert_eq!(source.cut(4_000, offset(3), None, true).quiet_since, 3_000);
    }

    #[test]
    fn records_and_dead_letters_are_counted_from_what_was_bound() {
        let mut source = source();
        source.event(at(100_000), 1_000);
        source.event(at(100_001), 1_000);
        source.dead_letter(1_000);
        assert_eq!(source.counts(), (3, 1));
        let bound = source.cut(1_000, offset(3), None, false);
        assert_eq!(WatermarkGenerator::resume(CONFIG, bound, 2_000).counts(), (3, 1));
    }

    #[test]
    fn a_promise_is_the_newest_event_less_the_out_of_orderness_and_never_falls() {
        let mut source = source();
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
        let mut source = source();
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
            let mut source = source();
            source.event(at(5), 1_000);
            let bound = source.cut(epoch, offset(1), caught_up.then_some(epoch), false);
            assert_eq!(bound.status, want, "{epoch} {caught_up}");
            assert_eq!(bound.quiet_since, if want == Status::Idle { epoch } else { 0 });
        }
    }

    #[test]
    fn idleness_ends_with_a_record_and_keeps_its_beginning_until_then() {
        let mut source = source();
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
        let mut source = source();
        let ended = source.cut(2_000, offset(0), None, true);
        assert_eq!((ended.status, ended.quiet_since), (Status::Ended, 2_000));
        let mut resumed = WatermarkGenerator::resume(CONFIG, ended, 3_000);
        assert_eq!(resumed.cut(3_000, offset(0), Some(3_000), false).status, Status::Active);
    }
}
