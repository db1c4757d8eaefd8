//! The records that travel between operators.

use serde::{Deserialize, Serialize};
use sessionizer_core::binding::{Binding, Offset, Partition, Rules};
use sessionizer_core::event::Reason;
use sessionizer_core::key::{Key, Shard};
use sessionizer_core::session::{Closed, Span};
use sessionizer_core::time::{Epoch, EventTime};

/// What one source has bound at an epoch. It goes to every worker.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SourceBindings {
    /// The worker of the source.
    pub worker: usize,
    /// Of the partitions for which something has changed.
    pub bindings: Vec<Binding>,
    /// The partitions that had more to read than was read: others wait for them. A matter of this
    /// moment, not of the epoch: it is not bound.
    pub behind: Vec<Partition>,
    /// Whether it was cut before its time, because memory is used up: the others are to cut as well.
    pub early: bool,
    /// What an epoch of the replay has brought otherwise than it was bound.
    pub differences: Vec<ReplayDifference>,
}

/// A bound epoch has brought other records when it was read again: the topic was compacted, say.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ReplayDifference {
    pub epoch: Epoch,
    pub partition: Partition,
    /// Its offsets: from here on, up to and without `to`.
    pub from: Offset,
    pub to: Offset,
    /// How many records it had brought, and how many it has brought now.
    pub recorded: u64,
    pub found: u64,
}

/// A record that is no event, on its way to `dead_letters`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The shard in whose commit it goes and in whose books it counts.
    pub shard: Shard,
    pub partition: Partition,
    pub offset: Offset,
    pub reason: Reason,
    pub detail: String,
    /// The beginning of the payload; `None` for a tombstone.
    pub payload: Option<Vec<u8>>,
    /// How long the whole payload was, in bytes.
    pub payload_bytes: u64,
}

impl DeadLetter {
    /// What it takes in memory: here, and in the batch that it will be a part of.
    pub fn bytes(&self) -> u64 {
        let payload = self.payload.as_ref().map_or(0, |bytes| heap(bytes.capacity()));
        (2 * size_of::<DeadLetter>() + payload + heap(self.detail.capacity())) as u64
    }
}

/// What an allocation of so many bytes takes in all.
fn heap(bytes: usize) -> usize {
    if bytes > 0 { bytes + 16 } else { 0 }
}

/// An event that may turn out to be too late, beside its arrival. Only `--late drop`
/// sends them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Suspect {
    /// [`sessionizer_core::key::stable_hash`] of the key.
    pub hash: u64,
    pub key: Key,
    pub time: EventTime,
    /// What becomes of it if it is.
    pub letter: DeadLetter,
}

impl Suspect {
    /// What it takes in memory.
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
    /// Events that were too late, by `--late drop`.
    pub dropped: Vec<DeadLetter>,
    /// Records in sessions that are open at the end of the epoch.
    pub open_records: u64,
    /// The shard at the end of the epoch, if a snapshot was due.
    pub snapshot: Option<Vec<u8>>,
}

impl ShardOutput {
    /// What its rows take in memory: here, in the batch that they will be a part of, and while that
    /// is put in order.
    pub fn row_bytes(&self) -> u64 {
        let row = |closed: &Closed| 3 * size_of::<Closed>() + heap(closed.key.bytes().len());
        self.closed.iter().map(row).sum::<usize>() as u64
    }

    /// What its dead letters take in memory.
    pub fn dead_letter_bytes(&self) -> u64 {
        self.dropped.iter().map(DeadLetter::bytes).sum()
    }

    /// What its snapshot takes in memory: here, and in the message to the ledger.
    pub fn snapshot_bytes(&self) -> u64 {
        self.snapshot.as_ref().map_or(0, |bytes| 2 * heap(bytes.capacity())) as u64
    }
}

/// What an epoch is to everybody: its bindings and its watermark.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EpochMeta {
    pub watermark: EventTime,
    pub rules: Rules,
    pub bindings: Vec<Binding>,
    /// Of the first new epoch: what the replay before it has brought otherwise than it was bound.
    pub differences: Vec<ReplayDifference>,
}

/// A row that a commit has brought into the table, or taken out of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    pub key: Key,
    pub span: Span,
    /// `+1` or `-1`.
    pub diff: i64,
}
