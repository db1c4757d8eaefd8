//! The three operators of the dataflow, the ports through which they see the world, and the
//! records that travel between them.
//!
//! The ports ([`Feed`], [`Ledger`]) keep Kafka and Postgres out: whatever implements them can be
//! read and written, the real ones and those of the tests.

mod clocks;
pub mod commit;
pub mod intake;
pub mod lane;
pub mod parcel;
mod pause;
pub mod reader;
pub mod sessions;
pub mod source;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use timely::scheduling::Activator;

use crate::binding::{Binding, Offset, Partition, Rules};
use crate::control::Fault;
use crate::correction::Correction;
use crate::event::Reason;
use crate::key::{Key, Shard};
use crate::plan::ShardProgress;
use crate::session::{Closed, Span};
use crate::time::{Epoch, EventTime};

/// How many epochs may be cut and not yet durable.
const EPOCHS_IN_FLIGHT: usize = 8;

/// What one source has bound at an epoch. It goes to every worker.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cut {
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

/// What the sessions of a worker tell its source: the partitions that are to wait for others, and
/// how far the epochs of others are.
pub struct Brake {
    held: RefCell<BTreeSet<Partition>>,
    cut: Cell<Epoch>,
    cut_early: Cell<Epoch>,
    source: Activator,
}

impl Brake {
    /// Nobody waits.
    pub fn new(source: Activator) -> Self {
        let (cut, cut_early) = (Cell::new(0), Cell::new(0));
        Brake { held: RefCell::default(), cut, cut_early, source }
    }

    /// Some worker has cut this epoch, perhaps before its time.
    pub fn learn(&self, cut: Epoch, early: bool) {
        self.cut.set(self.cut.get().max(cut));
        if early && cut > self.cut_early.get() {
            self.cut_early.set(cut);
            self.source.activate();
        }
    }

    /// The latest epoch that any worker is known to have cut before its time.
    pub fn latest_early_cut(&self) -> Epoch {
        self.cut_early.get()
    }

    /// The latest epoch that any worker is known to have cut.
    pub fn latest_cut(&self) -> Epoch {
        self.cut.get()
    }

    /// These wait from now on, and no others.
    pub fn hold(&self, held: BTreeSet<Partition>) {
        let before = self.held.replace(held);
        if !before.is_subset(&self.held.borrow()) {
            // Somebody may go on, and the source may be asleep.
            self.source.activate();
        }
    }

    /// Whether a partition is to wait.
    pub fn holds(&self, partition: Partition) -> bool {
        self.held.borrow().contains(&partition)
    }
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
    /// [`crate::key::stable_hash`] of the key.
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
pub struct Summary {
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

/// A record as the broker gives it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    pub offset: Offset,
    /// `None` is a tombstone.
    pub payload: Option<&'a [u8]>,
}

/// Why [`Feed::read`] stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stopped {
    /// There may be more at once.
    AtLimit,
    /// Nothing has arrived yet; the feed wakes the source when it does.
    Waiting,
    /// Nothing before the wanted end is left.
    AtEnd,
}

/// Where records come from: the partitions of one worker.
pub trait Feed {
    /// Begins to read a partition; a feed reads only what it was told to.
    fn assign(&mut self, partition: Partition, start: Offset) -> Result<(), Fault>;

    /// Hands out the next records of a partition in order, until `take` says that it is enough: at
    /// most `limit`, and none at or behind `end`. With a limit of zero it only looks whether there
    /// are any.
    fn read(
        &mut self,
        partition: Partition,
        end: Option<Offset>,
        limit: usize,
        take: &mut dyn FnMut(Record<'_>) -> bool,
    ) -> Result<Stopped, Fault>;

    /// The offset behind everything handed out: never one that skips a record to come.
    fn position(&self, partition: Partition) -> Offset;

    /// How many milliseconds ago, at most, the broker had nothing behind the position; `None` if
    /// that is not known. What comes out of this is bound, so it is never a guess.
    fn quiet_ms_ago(&self, partition: Partition) -> Option<u64>;

    /// Where the partition ends, if its last records lie behind an open transaction: they are there,
    /// and nobody can read them yet.
    fn held_back(&self, _partition: Partition) -> Option<Offset> {
        None
    }

    /// Whether everything has been handed out that the broker was known to have, a moment ago. For
    /// what may be a guess; [`Self::quiet_ms_ago`] is for what may not.
    fn keeps_up(&self, partition: Partition) -> bool {
        self.quiet_ms_ago(partition).is_some()
    }

    /// How many records wait behind the position, as far as was known a moment ago; for people.
    fn waiting(&self, _partition: Partition) -> Option<u64> {
        None
    }

    /// Lets the connection do its work, once an epoch and before the positions are taken; gives
    /// the partitions of this worker that have appeared since the last call, with their start.
    fn service(&mut self) -> Result<Vec<(Partition, Offset)>, Fault>;

    /// Tells the broker what is durable, for lag tools only.
    fn durable(&mut self, ends: &BTreeMap<Partition, Offset>);
}

/// Why a ledger did not do what it was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LedgerError {
    /// It may work later, and it may even have worked now: ask [`Ledger::progress`] first.
    Retry(String),
    /// It will not work: fenced, refused, or broken.
    Fatal(Fault),
}

impl fmt::Display for LedgerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LedgerError::Retry(why) => f.write_str(why),
            LedgerError::Fatal(fault) => fault.fmt(f),
        }
    }
}

/// One shard in a [`Batch`]: what its row in `shard_progress` must say before, and says after.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShardStep {
    pub shard: Shard,
    pub from: Epoch,
    pub to: ShardProgress,
}

/// The books of one epoch, as one lane adds to them (I8).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EpochBooks {
    pub epoch: Epoch,
    pub summary: Summary,
    /// How many shards of this lane pass the epoch with this commit.
    pub shards: u32,
    /// Sums over those shards, at this epoch.
    pub closed: u64,
    pub open: u64,
    pub dead: u64,
}

/// A run of epochs of one lane: what goes into one transaction (I4).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    pub steps: Vec<ShardStep>,
    pub books: Vec<EpochBooks>,
    pub closed: Vec<Closed>,
    pub dead_letters: Vec<(Epoch, DeadLetter)>,
    /// The newest of each shard.
    pub snapshots: BTreeMap<Shard, (Epoch, Vec<u8>)>,
}

/// What a commit has made of the sessions of a batch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// What has become of the rows that late sessions touch.
    pub corrections: Vec<Correction>,
    /// Sessions that the table has refused.
    pub refused: Vec<Refused>,
}

/// A session that the table cannot hold: its events are dead letters instead.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Refused {
    pub shard: Shard,
    pub session: Closed,
}

/// Where commits go: one lane, with a connection of its own.
pub trait Ledger: Send {
    /// Writes a batch in one transaction, or nothing at all. A session that the table refuses is
    /// written as a dead letter, and its events move from the closed to the dead. The outcome is
    /// complete before the transaction ends, for nobody can ask later if the reply is lost.
    fn commit(&mut self, batch: &Batch, outcome: &mut Outcome) -> Result<(), LedgerError>;

    /// Reads how far the shards of this lane are, on a connection that is new if need be.
    fn progress(&mut self, shards: &[Shard]) -> Result<Vec<Epoch>, LedgerError>;
}
