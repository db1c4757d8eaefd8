//! The operators' view of the world: where records come from, and where commits go.

use std::collections::BTreeMap;
use std::fmt;

use sessionizer_core::binding::{Offset, Partition};
use sessionizer_core::fault::{Fault, Message};
use sessionizer_core::key::Shard;
use sessionizer_core::plan::ShardProgress;
use sessionizer_core::session::Closed;
use sessionizer_core::session::correction::Correction;
use sessionizer_core::time::Epoch;

use crate::dataflow::messages::{DeadLetter, EpochMeta};

/// A record as the broker delivers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    pub offset: Offset,
    /// `None` is a tombstone.
    pub payload: Option<&'a [u8]>,
}

/// Why [`Feed::read`] stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stopped {
    /// There may be more right away.
    AtLimit,
    /// Nothing has arrived yet; the feed wakes the source when something does.
    Waiting,
    /// Nothing is left before the requested end.
    AtEnd,
}

/// The source of records: the partitions of one worker.
pub trait Feed {
    /// Begins to read a partition; a feed reads only the partitions assigned to it.
    fn assign(&mut self, partition: Partition, start: Offset) -> Result<(), Fault>;

    /// Hands out the next records of a partition in order, until `take` returns `false`: at most
    /// `limit`, and none at or after `end`. With a limit of zero it only checks whether there are
    /// any.
    fn read(
        &mut self,
        partition: Partition,
        end: Option<Offset>,
        limit: usize,
        take: &mut dyn FnMut(Record<'_>) -> bool,
    ) -> Result<Stopped, Fault>;

    /// The offset after everything delivered; it never skips a record to come.
    fn position(&self, partition: Partition) -> Offset;

    /// How many milliseconds ago, at most, the broker had nothing after the position; `None` if
    /// that is not known. The result is bound, so it is never a guess.
    fn quiet_ms_ago(&self, partition: Partition) -> Option<u64>;

    /// Fetches anew from the position on: nothing has come for a long time, but there may be more.
    fn fetch_again(&mut self, _partition: Partition) {}

    /// Whether there may be records after the position that nobody can read yet. Such a partition
    /// is not silent.
    fn may_be_held_back(&self, partition: Partition) -> bool {
        self.held_by_transaction(partition).is_some()
    }

    /// Where the partition ends, if an open transaction is known to hold its last records back:
    /// they exist, but nobody can read them yet.
    fn held_by_transaction(&self, _partition: Partition) -> Option<Offset> {
        None
    }

    /// Whether everything that the broker was known to have a moment ago has been delivered. Use
    /// this where a guess is good enough, and [`Self::quiet_ms_ago`] where it is not.
    fn keeps_up(&self, partition: Partition) -> bool {
        self.quiet_ms_ago(partition).is_some()
    }

    /// How many records wait after the position, as far as was known a moment ago. For display
    /// only.
    fn waiting(&self, _partition: Partition) -> Option<u64> {
        None
    }

    /// A time, by Kafka's timestamps in milliseconds since 1970, at or before which every record up
    /// to the position had arrived. For display only.
    fn read_up_to_ms(&self, _partition: Partition) -> Option<i64> {
        None
    }

    /// Lets the connection do its work; called once an epoch, before the positions are taken.
    /// Returns the partitions of this worker that have appeared since the last call, with their
    /// start.
    fn service(&mut self) -> Result<Vec<(Partition, Offset)>, Fault>;

    /// Tells the broker what is durable, for lag tools only.
    fn durable(&mut self, ends: &BTreeMap<Partition, Offset>);
}

/// Why a ledger did not do what it was asked to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LedgerError {
    /// It may work later, and it may even have worked this time: ask [`Ledger::progress`] first.
    Retry(Failure),
    /// It will never work: fenced, refused, or broken.
    Fatal(Fault),
}

/// A failure that may pass by itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// The step that has failed; empty if the message says so itself.
    pub doing: String,
    pub why: Message,
    pub cause: Cause,
}

/// The cause of a [`Failure`], where somebody does something about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// A statement took longer than it may, or has waited too long for a lock: nothing is wrong
    /// with what was asked for.
    Timeout,
    /// The server takes no writes, as a connection was to find out.
    ReadOnly,
    /// The server has answered with another error, so it can be reached.
    Answered,
    Other,
}

impl LedgerError {
    /// A failure that may pass by itself, for any other cause.
    pub fn retry(why: impl Into<Message>) -> Self {
        let (doing, why) = (String::new(), why.into());
        LedgerError::Retry(Failure { doing, why, cause: Cause::Other })
    }

    /// What is wrong, and what to do about it.
    pub fn message(&self) -> Message {
        match self {
            LedgerError::Retry(failure) => failure.message(),
            LedgerError::Fatal(fault) => fault.message().clone(),
        }
    }
}

impl Failure {
    pub fn message(&self) -> Message {
        match self.doing.as_str() {
            "" => self.why.clone(),
            doing => self.why.clone().context(doing),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.message().fmt(f)
    }
}

impl fmt::Display for LedgerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LedgerError::Retry(failure) => failure.fmt(f),
            LedgerError::Fatal(fault) => fault.fmt(f),
        }
    }
}

/// One shard in a [`Batch`]: the epoch that its row in `shard_progress` must hold before the
/// commit, and what the row holds after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShardStep {
    pub shard: Shard,
    pub from: Epoch,
    pub to: ShardProgress,
}

/// The totals of one epoch, as one writer contributes to them (I8).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EpochTotals {
    pub epoch: Epoch,
    pub meta: EpochMeta,
    /// How many shards of this writer pass the epoch with this commit.
    pub shards: u32,
    /// Sums over those shards, at this epoch.
    pub closed: u64,
    pub open: u64,
    pub dead: u64,
}

/// A run of epochs of one writer: the content of one transaction (I4).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    pub steps: Vec<ShardStep>,
    pub totals: Vec<EpochTotals>,
    pub closed: Vec<Closed>,
    pub dead_letters: Vec<(Epoch, DeadLetter)>,
    /// The newest snapshot of each shard.
    pub snapshots: BTreeMap<Shard, (Epoch, Vec<u8>)>,
}

/// What a commit did with the sessions of a batch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// How the rows that late sessions touch have changed.
    pub corrections: Vec<Correction>,
    /// Sessions that the table has refused.
    pub refused: Vec<Refused>,
}

/// A session that the table cannot hold: it becomes a dead letter instead.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Refused {
    pub shard: Shard,
    pub session: Closed,
}

/// Finds out why a ledger does not answer, if it can.
pub type WhySilent = Box<dyn FnMut() -> Option<String> + Send>;

/// The destination of commits: one writer, with a connection of its own.
pub trait Ledger: Send {
    /// Writes a batch in one transaction, or nothing at all. A session that the table refuses is
    /// written as a dead letter, and its events move from `closed` to `dead`. The outcome is
    /// complete before the transaction ends, because nobody can ask for it later if the reply is
    /// lost.
    fn commit(&mut self, batch: &Batch, outcome: &mut Outcome) -> Result<(), LedgerError>;

    /// Reads how far the shards of this writer have come, on a new connection if necessary.
    fn progress(&mut self, shards: &[Shard]) -> Result<Vec<Epoch>, LedgerError>;

    /// What another thread may ask while this one waits for an answer. Called once.
    fn why_silent(&self) -> Option<WhySilent> {
        None
    }
}
