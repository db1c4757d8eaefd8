//! What an epoch consists of. Pure data, durable with the first commit that depends on it (I3).
//!
//! A binding fixes, for each partition, up to which offset an epoch reaches and what the partition
//! promises at its end. It captures everything that was left to chance when the epoch was cut (the
//! wall clock, how much a fetch returned, which partitions were silent), so a bound epoch can be
//! read again with the identical result (I2).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::time::{Epoch, EventTime};

/// A partition of one of the job's topics: the topic's index in the plan, and the number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Partition {
    pub topic: u16,
    pub number: i32,
}

impl Partition {
    /// The worker of `peers` that reads this partition; a restart may choose another one. Every
    /// process has the same number of workers, numbered consecutively. Partitions go around the
    /// processes first, so that each process gets its share even when there are fewer partitions
    /// than workers.
    pub fn worker(self, peers: usize, processes: usize) -> usize {
        let (at, threads) = (usize::from(self.topic) + self.number as usize, peers / processes);
        at % processes * threads + at / processes % threads
    }
}

/// Identifies a topic the way Kafka does: 16 bytes in URL-safe Base64, as Kafka's own tools spell
/// it. A topic that was deleted and created again has a new id.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicId([u8; TopicId::LENGTH]);

impl TopicId {
    const LENGTH: usize = 22;

    /// Parses an id; `None` if `text` is not one.
    pub fn named(text: &str) -> Option<Self> {
        let legal = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
        let bytes: [u8; TopicId::LENGTH] = text.as_bytes().try_into().ok()?;
        bytes.iter().all(legal).then_some(TopicId(bytes))
    }

    /// The id as text.
    pub fn name(&self) -> &str {
        std::str::from_utf8(&self.0).expect("letters, digits, - and _")
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A position in a partition: the offset of a record, or of the next one to read. Records need not
/// exist at every offset (transactions and compaction leave holes), so an offset is never computed
/// from a count of records.
///
/// ```
/// use sessionizer_core::binding::Offset;
///
/// let (oldest, read) = (Offset::new(100), Offset::new(104));
/// assert_eq!(read.next(), Offset::new(105));
/// assert_eq!(read.since(oldest), 4);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(i64);

impl Offset {
    /// The smallest offset, and the one that a new partition begins with.
    pub const ZERO: Offset = Offset(0);
    /// After every record.
    pub const MAX: Offset = Offset(i64::MAX);

    /// Creates an offset from the number that Kafka or the database has for it.
    pub const fn new(offset: i64) -> Self {
        Offset(offset)
    }

    /// The number.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// Where to go on reading after the record at this offset.
    pub const fn next(self) -> Self {
        Offset(self.0 + 1)
    }

    /// This offset, `offsets` later (earlier if negative).
    pub const fn plus(self, offsets: i64) -> Self {
        Offset(self.0.saturating_add(offsets))
    }

    /// How many offsets there are from `earlier` up to this one: at most that many records, and
    /// negative if `earlier` is later.
    pub const fn since(self, earlier: Offset) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether a partition takes part in the watermark.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Status {
    /// It may bring on-time events: its promise holds the watermark back.
    Active,
    /// It was read to its end and has been silent for the idle timeout: it does not hold the
    /// watermark back.
    Idle,
    /// A bounded run has read it to the offset where it ended at the start, or the job no longer
    /// reads it.
    Ended,
}

impl Status {
    /// The name in `bindings.status`.
    pub const fn name(self) -> &'static str {
        match self {
            Status::Active => "active",
            Status::Idle => "idle",
            Status::Ended => "ended",
        }
    }

    /// The status with this name.
    pub fn named(name: &str) -> Option<Self> {
        [Status::Active, Status::Idle, Status::Ended].into_iter().find(|s| s.name() == name)
    }
}

/// The state of one partition at the end of an epoch. Each binding is complete in itself: before
/// the oldest snapshot, only the latest binding of a partition has to be kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Binding {
    pub partition: Partition,
    /// The topic that the offsets belong to; `None` if the brokers do not report it.
    pub topic_id: Option<TopicId>,
    /// The offset at which the job first began to read the partition.
    pub start: Offset,
    /// Where the epoch ends.
    pub end: Offset,
    /// The promise that no on-time event of this partition is older: the largest event time so far
    /// minus the out-of-orderness. It never falls. [`EventTime::NEVER`] before the first event.
    pub promise: EventTime,
    pub status: Status,
    /// The epoch since which the partition has been idle or ended; 0 while it is active.
    pub quiet_since: Epoch,
    /// Records read since the job was created.
    pub records: u64,
    /// How many of those the source turned into dead letters.
    pub dead: u64,
    /// The wall clock of the worker that read the epoch, when the epoch began. An event later than
    /// this by more than [`RecordRules::max_future_ms`] is too far in the future. `None`: the epoch
    /// itself is the clock.
    pub clock_ms: Option<u64>,
}

impl Binding {
    /// A partition of which only the starting offset is known.
    pub fn initial(partition: Partition, start: Offset) -> Self {
        Binding {
            partition,
            topic_id: None,
            start,
            end: start,
            promise: EventTime::NEVER,
            status: Status::Active,
            quiet_since: 0,
            records: 0,
            dead: 0,
            clock_ms: None,
        }
    }

    /// The clock against which the records of `epoch` are checked for being in the future.
    pub fn clock_in(&self, epoch: Epoch) -> u64 {
        self.clock_ms.unwrap_or(epoch)
    }
}

/// What happens to an event that is so late that its session would have closed already.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Late {
    /// It is merged with the rows that it touches.
    Merge,
    /// It becomes a dead letter.
    Drop,
}

impl Late {
    /// The name in `epochs.late`, and of `--late`.
    pub const fn name(self) -> &'static str {
        match self {
            Late::Merge => "merge",
            Late::Drop => "drop",
        }
    }

    /// The variant with this name.
    pub fn named(name: &str) -> Option<Self> {
        [Late::Merge, Late::Drop].into_iter().find(|late| late.name() == name)
    }
}

/// The settings that decide what happens to a record. They may change at a restart; a replayed
/// epoch keeps the rules it was bound with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RecordRules {
    /// An event later than the clock by more than this becomes a dead letter.
    pub max_future_ms: i64,
    pub late: Late,
}

impl RecordRules {
    /// The latest time that an event may have, by a clock.
    pub fn latest(&self, clock_ms: u64) -> EventTime {
        EventTime::from_millis(clock_ms as i64).plus(self.max_future_ms)
    }
}

/// All bindings of one epoch, in order of partition; there may be none.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BoundEpoch {
    pub epoch: Epoch,
    /// The watermark that every worker computed, kept to check the replay (I2).
    pub watermark: EventTime,
    pub rules: RecordRules,
    pub bindings: Vec<Binding>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_go_around_the_processes_and_then_around_their_workers() {
        for (processes, threads) in [(1, 1), (1, 4), (3, 1), (3, 2), (2, 5), (2, 2), (4, 2)] {
            let peers = processes * threads;
            for topic in [0, 1, 7] {
                let mut read = vec![0; peers];
                for number in 0..3 * peers {
                    let partition = Partition { topic, number: number as i32 };
                    read[partition.worker(peers, processes)] += 1;
                    let of_process = |process| read[process * threads..][..threads].iter().sum();
                    let counts: Vec<i32> = (0..processes).map(of_process).collect();
                    let (most, least) = (counts.iter().max(), counts.iter().min());
                    assert!(most <= least.map(|least| least + 1).as_ref(), "{counts:?}");
                }
                assert_eq!(read, vec![3; peers], "{processes} of {threads}");
            }
        }
    }

    #[test]
    fn a_topic_id_is_22_letters_of_url_safe_base64_and_is_read_as_it_was_written() {
        let id = TopicId::named("bUyRmncSSsa7PGHFJ2AT-_").expect("it is one");
        assert_eq!((id.name(), format!("{id:?}")), ("bUyRmncSSsa7PGHFJ2AT-_", id.name().into()));
        for other in ["", "bUyRmncSSsa7PGHFJ2AT-", "bUyRmncSSsa7PGHFJ2AT-_A"] {
            assert_eq!(TopicId::named(other), None, "another length");
        }
        assert_eq!(TopicId::named("bUyRmncSSsa7PGHFJ2AT+/"), None, "another alphabet");
    }

    #[test]
    fn offsets_are_counted_from_each_other_and_shown_as_numbers() {
        let (oldest, read) = (Offset::new(100), Offset::new(104));
        assert_eq!([read.since(oldest), oldest.since(read)], [4, -4]);
        assert_eq!([read.next(), read.plus(-4)], [Offset::new(105), oldest]);
        assert_eq!((format!("{read}"), format!("{read:?}")), ("104".into(), "104".into()));
        assert_eq!(Offset::MAX.plus(1), Offset::MAX);
    }

    #[test]
    fn what_is_stored_by_name_keeps_its_name() {
        let names = [Status::Active, Status::Idle, Status::Ended].map(Status::name);
        assert_eq!(names, ["active", "idle", "ended"]);
        assert_eq!(
            names.map(Status::named).map(|status| status.map(Status::name)),
            names.map(Some)
        );
        let names = [Late::Merge, Late::Drop].map(Late::name);
        assert_eq!(names, ["merge", "drop"]);
        assert_eq!(names.map(Late::named).map(|late| late.map(Late::name)), names.map(Some));
        assert_eq!((Status::named("Active"), Late::named("")), (None, None));
    }

    #[test]
    fn the_future_begins_after_the_clock_that_was_bound() {
        let initial = Binding::initial(Partition { topic: 0, number: 0 }, Offset::ZERO);
        assert_eq!(initial.clock_in(7_000), 7_000, "older versions bound no clock");
        let bound = Binding { clock_ms: Some(6_500), ..initial };
        assert_eq!(bound.clock_in(7_000), 6_500);
        let rules = RecordRules { max_future_ms: 300, late: Late::Merge };
        assert_eq!(rules.latest(6_500), EventTime::from_millis(6_800));
    }
}
