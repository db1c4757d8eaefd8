//! Where a start begins: what is durable, what has to be read again, and where reading goes on.
//!
//! Worker 0 makes the plan after it has taken the fence, and broadcasts it; every worker acts on
//! its own part of the same plan. Pure data: how it is read from Postgres and completed from
//! Kafka is written elsewhere.

use serde::{Deserialize, Serialize};

use crate::binding::{Binding, BoundEpoch, Offset, Partition, Rules, TopicId};
use crate::key::Shard;
use crate::time::{Epoch, EventTime};

/// How far the output of a shard is in the table, and what it consists of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ShardProgress {
    /// Everything up to and with this epoch is committed.
    pub epoch: Epoch,
    /// Records in closed sessions, since the job was created.
    pub closed: u64,
    /// Records in open sessions, at `epoch`.
    pub open: u64,
    /// Records in `dead_letters`, since the job was created.
    pub dead: u64,
}

/// A partition and where reading it begins in this run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PartitionPlan {
    /// Its binding at the base of the plan; for a partition that is new, where it starts.
    pub start: Binding,
    /// Whether the plan's base knows it; if not, its first binding in the replay, or the first
    /// live epoch, tells the clock of it.
    pub known: bool,
    /// Where a bounded run stops reading it.
    pub until: Option<Offset>,
    /// Whether its topic is no longer among the job's: it is replayed and then ended.
    pub retired: bool,
    /// Its topic was deleted and made again, or has lost its end, and that was accepted: nothing
    /// of it is replayed, and reading goes on here.
    pub restart: Option<Offset>,
    /// The first record that there is; what lies before, and is needed, was given up.
    pub oldest: Offset,
}

/// By which run the shards are held. A database that goes back to an earlier state gives the same
/// generation again, to another run: so each has a number of its own as well, at random.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Fence {
    /// How many starts the job has had.
    pub generation: i64,
    pub run: i64,
}

/// The whole plan.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RecoveryPlan {
    /// The fence: commits of this run carry it, those of another run fail.
    pub fence: Fence,
    /// Names of the topics; a [`Partition`] holds an index into them.
    pub topics: Vec<String>,
    /// What the brokers call them, where they say.
    pub topic_ids: Vec<Option<TopicId>>,
    /// What new epochs are bound with.
    pub rules: Rules,
    /// Records that the replay needs are gone, and that was accepted. No session has ever closed
    /// that ends later than this.
    pub lost_before: Option<EventTime>,
    /// By shard.
    pub progress: Vec<ShardProgress>,
    /// The epoch of the oldest snapshot: everything before it is in snapshots and in the table.
    pub base_epoch: Epoch,
    /// The watermark at the base.
    pub base_watermark: EventTime,
    /// Bound epochs after the base, in order: they are read again, each to the identical result.
    pub replay: Vec<BoundEpoch>,
    /// The first epoch of new input; later than every bound and every committed one.
    pub first_epoch: Epoch,
    /// How long ago that was the present, when the plan was sent, in milliseconds.
    pub age_ms: u64,
    /// In order of partition.
    pub partitions: Vec<PartitionPlan>,
}

impl RecoveryPlan {
    /// How many shards the job has.
    pub fn shards(&self) -> u32 {
        self.progress.len() as u32
    }

    /// The partitions that `worker` reads.
    pub fn partitions_of(
        &self,
        worker: usize,
        (peers, processes): (usize, usize),
    ) -> impl Iterator<Item = &PartitionPlan> {
        let mine = move |partition: Partition| partition.worker(peers, processes) == worker;
        self.partitions.iter().filter(move |plan| mine(plan.start.partition))
    }

    /// The shards that `worker` keeps.
    pub fn shards_of(&self, worker: usize, peers: usize) -> impl Iterator<Item = Shard> {
        (0..self.shards()).map(Shard).filter(move |shard| shard.worker(peers) == worker)
    }

    /// The name of a partition's topic.
    pub fn topic(&self, partition: Partition) -> &str {
        &self.topics[usize::from(partition.topic)]
    }

    /// What the clock knows at the base.
    pub fn base_bindings(&self) -> impl Iterator<Item = Binding> {
        self.partitions.iter().filter(|plan| plan.known).map(|plan| plan.start)
    }
}
