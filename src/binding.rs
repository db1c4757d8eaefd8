//! What an epoch consists of. Pure data, durable with the first commit that depends on it (I3).
//!
//! A binding fixes, for every partition, up to which offset an epoch reaches and what the
//! partition promises at its end. Everything that was a matter of chance when the epoch was cut
//! (the wall clock, how much a fetch brought, who was silent) is in it, so a bound epoch can be
//! read again to the identical result (I2).

use serde::{Deserialize, Serialize};

use crate::time::{Epoch, EventTime};

/// A partition of one of the job's topics: the topic's index in the plan, and the number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Partition {
    pub topic: u16,
    pub number: i32,
}

impl Partition {
    /// The worker that reads it. It may be another one after a restart.
    pub fn worker(self, peers: usize) -> usize {
        (usize::from(self.topic) + self.number as usize) % peers
    }
}

/// A position in a partition: the offset of the next record to read. The record before it need
/// not exist (transactions and compaction leave holes), so it is never computed from a count.
pub type Offset = i64;

/// Whether a partition takes part in the watermark.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Status {
    /// It may bring on-time events: its promise holds the watermark back.
    Active,
    /// It was read to its end and has been silent for the idle timeout: it holds nothing back.
    Idle,
    /// A bounded run has read it to where it ended at the start, or the job reads it no more.
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

/// What one partition says at the end of an epoch. Each is complete in itself: behind the oldest
/// snapshot, only the latest of a partition has to stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Binding {
    pub partition: Partition,
    /// Where the job began to read the partition, ever.
    pub start: Offset,
    /// Where the epoch ends.
    pub end: Offset,
    /// "No on-time event of mine is older than this": the largest event time so far less the
    /// out-of-orderness, never falling; [`EventTime::NEVER`] before the first event.
    pub promise: EventTime,
    pub status: Status,
    /// The epoch since which it is idle or ended; 0 while it is active.
    pub quiet_since: Epoch,
    /// How many records it has brought since the job was created.
    pub records: u64,
    /// How many of those the source turned into dead letters.
    pub dead: u64,
}

impl Binding {
    /// A partition of which nothing is known but where reading begins.
    pub fn initial(partition: Partition, start: Offset) -> Self {
        Binding {
            partition,
            start,
            end: start,
            promise: EventTime::NEVER,
            status: Status::Active,
            quiet_since: 0,
            records: 0,
            dead: 0,
        }
    }
}

/// All that was bound at one epoch, in the order of the partitions; it may be empty.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BoundEpoch {
    pub epoch: Epoch,
    /// The watermark that every worker computed, kept to check the replay (I2).
    pub watermark: EventTime,
    pub bindings: Vec<Binding>,
}
