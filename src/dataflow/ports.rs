//! How the operators see the world: where records come from, and where commits go.

use std::collections::BTreeMap;
use std::fmt;

use sessionizer_core::binding::{Offset, Partition};
use sessionizer_core::fault::Fault;
use sessionizer_core::key::Shard;
use sessionizer_core::plan::ShardProgress;
use sessionizer_core::session::Closed;
use sessionizer_core::session::correction::Correction;
use sessionizer_core::time::Epoch;

use crate::dataflow::messages::{DeadLetter, EpochMeta};

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

/// The books of one epoch, as one writer adds to them (I8).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EpochTotals {
    pub epoch: Epoch,
    pub summary: EpochMeta,
    /// How many shards of this writer pass the epoch with this commit.
    pub shards: u32,
    /// Sums over those shards, at this epoch.
    pub closed: u64,
    pub open: u64,
    pub dead: u64,
}

/// A run of epochs of one writer: what goes into one transaction (I4).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    pub steps: Vec<ShardStep>,
    pub totals: Vec<EpochTotals>,
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

/// Where commits go: one writer, with a connection of its own.
pub trait Ledger: Send {
    /// Writes a batch in one transaction, or nothing at all. A session that the table refuses is
    /// written as a dead letter, and its events move from the closed to the dead. The outcome is
    /// complete before the transaction ends, for nobody can ask later if the reply is lost.
    fn commit(&mut self, batch: &Batch, outcome: &mut Outcome) -> Result<(), LedgerError>;

    /// Reads how far the shards of this writer are, on a connection that is new if need be.
    fn progress(&mut self, shards: &[Shard]) -> Result<Vec<Epoch>, LedgerError>;
}
