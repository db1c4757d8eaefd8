//! The records that travel between operators. Plain data.

use serde::{Deserialize, Serialize};
use sessionizer_core::binding::{Binding, Offset, Partition, RecordRules};
use sessionizer_core::event::Reason;
use sessionizer_core::key::{Key, Shard};
use sessionizer_core::session::{Closed, Span};
use sessionizer_core::time::{Epoch, EventTime};

/// What one source has bound at an epoch, broadcast to every worker.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SourceBindings {
    /// The worker of the source.
    pub worker: usize,
    /// The bindings of the partitions that changed.
    pub bindings: Vec<Binding>,
    /// The partitions that had more to read than was read: others wait for them. This describes the
    /// moment, not the epoch, so it is not bound.
    pub lagging: Vec<Partition>,
    /// Whether the epoch was cut before its time because memory is used up: then the others cut as
    /// well.
    pub early: bool,
    /// How a replayed epoch differs from what was bound.
    pub differences: Vec<ReplayDifference>,
}

/// A bound epoch returned other records when it was replayed, for example because the topic was
/// compacted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ReplayDifference {
    pub epoch: Epoch,
    pub partition: Partition,
    /// The range of offsets: from here on, up to and excluding `to`.
    pub from: Offset,
    pub to: Offset,
    /// How many records it had originally, and how many the replay found.
    pub recorded: u64,
    pub found: u64,
}

/// A record that is not an event, on its way to `dead_letters`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The shard that commits it and counts it.
    pub shard: Shard,
    pub partition: Partition,
    pub offset: Offset,
    pub reason: Reason,
    pub detail: String,
    /// The beginning of the payload; `None` for a tombstone.
    pub payload: Option<Vec<u8>>,
    /// The length of the whole payload, in bytes.
    pub payload_bytes: u64,
}

impl DeadLetter {
    /// The memory it takes: here, and in the batch that it will be part of.
    pub fn bytes(&self) -> u64 {
        let payload = self.payload.as_ref().map_or(0, |bytes| heap(bytes.capacity()));
        (2 * size_of::<DeadLetter>() + payload + heap(self.detail.capacity())) as u64
    }
}

/// The memory that an allocation of this many bytes takes in all.
fn heap(bytes: usize) -> usize {
    if bytes > 0 { bytes + 16 } else { 0 }
}

/// An event that may turn out to be late, sent in addition to its arrival. Only `--late drop` sends
/// them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Suspect {
    /// [`sessionizer_core::key::stable_hash`] of the key.
    pub hash: u64,
    pub key: Key,
    pub time: EventTime,
    /// The dead letter that replaces it if it is late.
    pub letter: DeadLetter,
}

impl Suspect {
    /// The memory it takes.
    pub fn bytes(&self) -> u64 {
        let own = size_of::<Suspect>() - size_of::<DeadLetter>() + heap(self.key.bytes().len());
        own as u64 + self.letter.bytes()
    }
}

/// What an epoch changed in one shard.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ShardOutput {
    pub shard: Shard,
    /// The sessions that closed.
    pub closed: Vec<Closed>,
    /// Events that were too late, with `--late drop`.
    pub dropped: Vec<DeadLetter>,
    /// Records in sessions that are open at the end of the epoch.
    pub open_records: u64,
    /// A snapshot of the shard at the end of the epoch, if one was due.
    pub snapshot: Option<Vec<u8>>,
}

impl ShardOutput {
    /// The memory its rows take: here, in the batch that they will be part of, and while that is
    /// sorted.
    pub fn row_bytes(&self) -> u64 {
        let row = |closed: &Closed| 3 * size_of::<Closed>() + heap(closed.key.bytes().len());
        self.closed.iter().map(row).sum::<usize>() as u64
    }

    /// The memory its dead letters take.
    pub fn dead_letter_bytes(&self) -> u64 {
        self.dropped.iter().map(DeadLetter::bytes).sum()
    }

    /// The memory its snapshot takes: here, and in the message to the ledger.
    pub fn snapshot_bytes(&self) -> u64 {
        self.snapshot.as_ref().map_or(0, |bytes| 2 * heap(bytes.capacity())) as u64
    }
}

/// What every writer needs to know about an epoch: its bindings and its watermark.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EpochMeta {
    pub watermark: EventTime,
    pub rules: RecordRules,
    pub bindings: Vec<Binding>,
    /// See [`SourceBindings::lagging`].
    pub lagging: Vec<Partition>,
    /// In the first new epoch: how the replay before it differs from what was bound.
    pub differences: Vec<ReplayDifference>,
}

/// A row that a commit has added to the table or removed from it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    pub key: Key,
    pub span: Span,
    /// `+1` or `-1`.
    pub diff: i64,
}

/// A writer has made everything durable up to this watermark.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Committed {
    pub writer: u32,
    /// That of the last epoch of its transaction.
    pub watermark: EventTime,
}
