//! The plan of a start: what is durable, what has to be replayed, and where reading continues.
//!
//! Worker 0 makes the plan after it has taken the fence, and broadcasts it. Every worker acts on
//! its own part of the same plan. Pure data: reading it from Postgres and completing it from Kafka
//! happen elsewhere.

use serde::{Deserialize, Serialize};

use crate::binding::{Binding, BoundEpoch, Offset, Partition, RecordRules, TopicId};
use crate::key::Shard;
use crate::time::{Epoch, EventTime};

/// How far the output of a shard is committed, and its totals.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ShardProgress {
    /// Everything up to and including this epoch is committed.
    pub epoch: Epoch,
    /// Records in closed sessions, since the job was created.
    pub closed: u64,
    /// Records in open sessions, at `epoch`.
    pub open: u64,
    /// Records in `dead_letters`, since the job was created.
    pub dead: u64,
}

/// A partition, and where this run begins to read it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PartitionPlan {
    /// Its binding at the base of the plan; for a new partition, where it starts.
    pub start: Binding,
    /// Whether the base of the plan knows the partition. If not, the watermark tracker learns of it
    /// from its first binding, in the replay or in the first live epoch.
    pub known: bool,
    /// The offset at which a bounded run stops reading it.
    pub until: Option<Offset>,
    /// Whether its topic is no longer one of the job's: the partition is replayed and then ended.
    pub retired: bool,
    /// Its topic was deleted and created again, or has lost its end, and that was accepted: nothing
    /// of it is replayed, and reading continues here.
    pub restart: Option<Offset>,
    /// The offset of the oldest record that still exists. Records before it that are needed were
    /// given up.
    pub oldest: Offset,
}

/// Identifies the run that owns the shards. A database that goes back to an earlier state gives the
/// same generation to another run, so each run also has a random number of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Fence {
    /// How many starts the job has had.
    pub generation: i64,
    pub run: i64,
}

/// From where a run reads, and what it replays; every worker gets the same.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RecoveryPlan {
    /// The fence: commits of this run carry it, and commits of any other run fail.
    pub fence: Fence,
    /// Names of the topics; a [`Partition`] holds an index into them.
    pub topics: Vec<String>,
    /// Their topic ids, where the brokers report them.
    pub topic_ids: Vec<Option<TopicId>>,
    /// The rules that new epochs are bound with.
    pub rules: RecordRules,
    /// Records that the replay needs are gone, and that was accepted. No session that ends later
    /// than this has ever closed.
    pub lost_before: Option<EventTime>,
    /// By shard.
    pub progress: Vec<ShardProgress>,
    /// The epoch of the oldest snapshot: everything before it is in snapshots and in the table.
    pub base_epoch: Epoch,
    /// The watermark at the base.
    pub base_watermark: EventTime,
    /// Bound epochs after the base, in order. Each is replayed to the identical result.
    pub replay: Vec<BoundEpoch>,
    /// The first epoch of new input, after every bound and every committed epoch.
    pub first_epoch: Epoch,
    /// For how many milliseconds that epoch had been the current one when the plan was sent.
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

    /// The shards that `worker` owns.
    pub fn shards_of(&self, worker: usize, peers: usize) -> impl Iterator<Item = Shard> {
        (0..self.shards()).map(Shard).filter(move |shard| shard.worker(peers) == worker)
    }

    /// The watermark of the last bound epoch.
    pub fn bound_watermark(&self) -> EventTime {
        self.replay.last().map_or(self.base_watermark, |last| last.watermark)
    }

    /// The watermark of the last epoch that every shard has committed.
    pub fn committed_watermark(&self) -> EventTime {
        let committed = self.progress.iter().map(|shard| shard.epoch).min().unwrap_or(0);
        let last = self.replay.iter().rev().find(|bound| bound.epoch <= committed);
        last.map_or(self.base_watermark, |last| last.watermark)
    }

    /// The name of a partition's topic.
    pub fn topic(&self, partition: Partition) -> &str {
        &self.topics[usize::from(partition.topic)]
    }

    /// The bindings that the watermark tracker knows at the base.
    pub fn base_bindings(&self) -> impl Iterator<Item = Binding> {
        self.partitions.iter().filter(|plan| plan.known).map(|plan| plan.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binding::Late;

    /// A plan of 8 shards, and of two topics with three partitions each, the last of which is new.
    fn plan() -> RecoveryPlan {
        let partition = |at: u16| {
            let start = Partition { topic: at / 3, number: i32::from(at % 3) };
            PartitionPlan {
                start: Binding::initial(start, Offset::ZERO),
                known: at < 5,
                until: None,
                retired: false,
                restart: None,
                oldest: Offset::ZERO,
            }
        };
        RecoveryPlan {
            fence: Fence::default(),
            topics: vec!["events".to_owned(), "more".to_owned()],
            topic_ids: vec![None; 2],
            rules: RecordRules { max_future_ms: 0, late: Late::Merge },
            lost_before: None,
            progress: vec![ShardProgress::default(); 8],
            base_epoch: 0,
            base_watermark: EventTime::NEVER,
            replay: Vec::new(),
            first_epoch: 1,
            age_ms: 0,
            partitions: (0..6).map(partition).collect(),
        }
    }

    #[test]
    fn each_partition_and_each_shard_has_one_worker() {
        let plan = plan();
        for (peers, processes) in [(1, 1), (4, 1), (4, 2)] {
            let workers = 0..peers;
            let partitions =
                workers.clone().flat_map(|w| plan.partitions_of(w, (peers, processes)));
            let mut partitions: Vec<Partition> = partitions.map(|p| p.start.partition).collect();
            partitions.sort_unstable();
            let all: Vec<Partition> = plan.partitions.iter().map(|p| p.start.partition).collect();
            assert_eq!(partitions, all);
            let mut shards: Vec<Shard> = workers.flat_map(|w| plan.shards_of(w, peers)).collect();
            shards.sort_unstable();
            assert_eq!(shards, (0..plan.shards()).map(Shard).collect::<Vec<_>>());
        }
        assert_eq!(plan.shards(), 8);
    }

    #[test]
    fn a_partition_has_the_name_of_its_topic_and_the_clock_knows_those_that_are_not_new() {
        let plan = plan();
        let at = |at: usize| plan.partitions[at].start.partition;
        assert_eq!([plan.topic(at(2)), plan.topic(at(3))], ["events", "more"]);
        let known: Vec<Partition> = plan.base_bindings().map(|b| b.partition).collect();
        assert_eq!(known, (0..5).map(at).collect::<Vec<_>>());
    }

    #[test]
    fn what_every_shard_has_committed_is_less_than_what_was_bound() {
        let bound = |epoch: Epoch| BoundEpoch {
            epoch,
            watermark: EventTime::from_millis(100 * epoch as i64),
            rules: RecordRules { max_future_ms: 0, late: Late::Merge },
            bindings: Vec::new(),
        };
        let mut plan = plan();
        plan.base_watermark = EventTime::from_millis(50);
        let watermarks = |plan: &RecoveryPlan| {
            (plan.committed_watermark().millis(), plan.bound_watermark().millis())
        };
        assert_eq!(watermarks(&plan), (50, 50));
        plan.replay = vec![bound(1), bound(2), bound(4)];
        assert_eq!(watermarks(&plan), (50, 400));
        plan.progress.iter_mut().for_each(|shard| shard.epoch = 4);
        plan.progress[3].epoch = 3;
        assert_eq!(watermarks(&plan), (200, 400));
    }
}
