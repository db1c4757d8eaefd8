//! What a run shows people beyond the counters of [`Metrics`]: partitions, writers, hosts, dead
//! letters.
//!
//! The operators write it a few times a second, or once a batch or a commit, never for an event.
//! The monitor copies it once a second. Nothing that decides the content of a row reads it.
//!
//! [`Metrics`]: crate::dataflow::metrics::Metrics

mod letters;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use sessionizer_core::binding::{Binding, Offset, Partition};
use sessionizer_core::key::Shard;
use sessionizer_core::time::{Epoch, EventTime};

use self::letters::Letters;
pub use self::letters::{Example, LetterFigures};
use crate::dataflow::anomalies::figures::AnomalyFigures;
use crate::dataflow::buckets::Buckets;
use crate::dataflow::changes::ChangeFigures;
use crate::dataflow::messages::DeadLetter;
use crate::dataflow::peers::PeerReports;
use crate::dataflow::statistics::board::Board;
use crate::dataflow::statistics::figures::WindowFigures;

/// How many watermarks of epochs that are not durable are remembered.
const WATERMARKS: usize = 1_024;
/// The figures of a process.
#[derive(Default)]
pub struct Figures {
    topics: OnceLock<Vec<String>>,
    parts: Mutex<BTreeMap<Partition, PartFigures>>,
    bound: Mutex<LatestBindings>,
    writers: Mutex<BTreeMap<u32, WriterFigures>>,
    letters: Mutex<Letters>,
    workers: Mutex<BTreeMap<usize, Arc<WorkerFigures>>>,
    snapshots: Mutex<BTreeMap<Shard, (Epoch, u64)>>,
    /// What the processes of the job report to each other.
    pub peers: PeerReports,
    /// What the commits have changed in the table.
    pub changes: Mutex<ChangeFigures>,
    /// Whether there are statistics.
    pub has_statistics: AtomicBool,
    /// How large their windows are.
    pub window: Arc<WindowFigures>,
    /// The statistics as of the last complete epoch, on process 0.
    statistics: Mutex<Option<Arc<Board>>>,
    /// The anomalies as of the last complete epoch, on process 0.
    anomalies: Mutex<Option<Arc<AnomalyFigures>>>,
    /// The epochs that are cut and not committed, and when they were cut.
    cuts: Mutex<VecDeque<(Epoch, Instant)>>,
    /// From the end of an epoch until the writers of this process have committed it, in seconds.
    pub durable_delay: Buckets,
    /// The last of these, in milliseconds plus one; 0: none yet.
    last_delay: AtomicU64,
}

/// One partition, as its source sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PartFigures {
    pub position: Offset,
    /// Records after the position, if that is known.
    pub waiting: Option<u64>,
    /// No unread record arrived in Kafka before this time, by Kafka's timestamps.
    pub unread_since_ms: Option<i64>,
    /// When everything that was there had been read.
    pub caught_up: Option<Instant>,
    pub paused: bool,
    pub retired: bool,
    pub replaying: bool,
    /// The end of the log, if an open transaction holds records back.
    pub held_by_transaction: Option<Offset>,
    /// Records read in this run, and how many of them became dead letters.
    pub records: u64,
    pub dead: u64,
}

/// The latest bindings of all partitions of the job.
#[derive(Clone, Debug, Default)]
pub struct LatestBindings {
    pub epoch: Epoch,
    pub bindings: BTreeMap<Partition, Binding>,
    /// The watermarks of epochs that may not be durable yet.
    watermarks: VecDeque<(Epoch, EventTime)>,
    pub durable_watermark: Option<EventTime>,
}

/// One writer.
#[derive(Clone, Debug, Default)]
pub struct WriterFigures {
    pub waiting_epochs: u64,
    pub waiting_rows: u64,
    pub committing_since: Option<Instant>,
    pub failing_since: Option<Instant>,
    pub error: Option<String>,
    /// Failed attempts.
    pub failures: u64,
    pub durable_epoch: Epoch,
    pub commits: u64,
    pub rows: u64,
    pub last_commit: Option<Duration>,
    /// How long commits took, in seconds.
    pub took: Arc<Buckets>,
}

/// One worker.
#[derive(Debug, Default)]
pub struct WorkerFigures {
    /// When it last stepped, in milliseconds of [`running_ms`]; 0: it has ended.
    pub stepped_ms: AtomicU64,
    /// The epoch that it reads into.
    pub epoch: AtomicU64,
    /// Epochs that are cut and not yet durable.
    pub in_flight: AtomicU64,
}

/// Milliseconds since the first call, plus one.
pub fn running_ms() -> u64 {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed().as_millis() as u64 + 1
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Figures {
    /// Notes the names of the topics; the first call counts.
    pub fn name_topics(&self, topics: &[String]) {
        self.topics.get_or_init(|| topics.to_vec());
    }

    /// The name of a topic, if the plan is known.
    pub fn topic(&self, partition: Partition) -> Option<&str> {
        self.topics.get()?.get(usize::from(partition.topic)).map(String::as_str)
    }

    /// Notes how far a source has read its partitions.
    pub fn read(&self, parts: impl Iterator<Item = (Partition, PartFigures)>) {
        let mut all = lock(&self.parts);
        for (partition, part) in parts {
            all.insert(partition, part);
        }
    }

    /// The partitions that this process reads.
    pub fn parts(&self) -> BTreeMap<Partition, PartFigures> {
        lock(&self.parts).clone()
    }

    /// Notes what an epoch has bound. Every worker calls it; the first counts.
    pub fn bind(&self, epoch: Epoch, watermark: EventTime, bindings: &[Binding]) {
        let mut bound = lock(&self.bound);
        if epoch <= bound.epoch {
            return;
        }
        bound.epoch = epoch;
        bound.bindings.extend(bindings.iter().map(|binding| (binding.partition, *binding)));
        bound.watermarks.push_back((epoch, watermark));
        if bound.watermarks.len() > WATERMARKS {
            bound.watermarks.pop_front();
        }
    }

    /// What is bound, given the last durable epoch.
    pub fn bound(&self, durable: Epoch) -> LatestBindings {
        let mut bound = lock(&self.bound);
        while let Some((_, watermark)) =
            bound.watermarks.front().copied().filter(|(epoch, _)| *epoch <= durable)
        {
            bound.watermarks.pop_front();
            if watermark > EventTime::NEVER {
                bound.durable_watermark = Some(watermark);
            }
        }
        bound.clone()
    }

    /// Notes that an epoch is cut. One source of a process does: all cut the same epochs.
    pub fn cut(&self, epoch: Epoch) {
        let mut cuts = lock(&self.cuts);
        cuts.push_back((epoch, Instant::now()));
        if cuts.len() > WATERMARKS {
            cuts.pop_front();
        }
    }

    /// Notes how long the epochs took that all writers of this process have committed by now.
    pub fn committed(&self) {
        let upto = lock(&self.writers).values().map(|writer| writer.durable_epoch).min();
        let mut cuts = lock(&self.cuts);
        while let Some((_, cut)) = cuts.front().filter(|(epoch, _)| Some(*epoch) <= upto) {
            let after = cut.elapsed();
            self.durable_delay.observe(after.as_secs_f64());
            self.last_delay.store(after.as_millis() as u64 + 1, Relaxed);
            cuts.pop_front();
        }
    }

    /// How long the last durable epoch took to become so, in milliseconds.
    pub fn last_delay_ms(&self) -> Option<u64> {
        self.last_delay.load(Relaxed).checked_sub(1)
    }

    /// Changes the figures of a writer.
    pub fn writer(&self, writer: u32, change: impl FnOnce(&mut WriterFigures)) {
        change(lock(&self.writers).entry(writer).or_default());
    }

    /// The writers of this process.
    pub fn writers(&self) -> BTreeMap<u32, WriterFigures> {
        lock(&self.writers).clone()
    }

    /// Notes dead letters.
    pub fn dead(&self, letters: &[DeadLetter], at_ms: u64) {
        if !letters.is_empty() {
            lock(&self.letters).note(letters, at_ms);
        }
    }

    /// Notes a session that the table has refused, and how many records it stands for.
    pub fn refused(&self, reason: &str, records: u64, at_ms: u64, detail: String) {
        lock(&self.letters).note_refused(reason, records, at_ms, detail);
    }

    /// Dead letters by reason.
    pub fn letters(&self) -> BTreeMap<String, LetterFigures> {
        lock(&self.letters).by_reason().clone()
    }

    /// The figures of a worker, for it to keep.
    pub fn worker(&self, index: usize) -> Arc<WorkerFigures> {
        Arc::clone(lock(&self.workers).entry(index).or_default())
    }

    /// All workers of this process.
    pub fn workers(&self) -> BTreeMap<usize, Arc<WorkerFigures>> {
        lock(&self.workers).clone()
    }

    /// Shows the anomalies as of another epoch.
    pub fn show_anomalies(&self, anomalies: &AnomalyFigures) {
        *lock(&self.anomalies) = Some(Arc::new(anomalies.clone()));
    }

    /// The anomalies, if they are looked for.
    pub fn anomalies(&self) -> Option<Arc<AnomalyFigures>> {
        lock(&self.anomalies).clone()
    }

    /// Shows the statistics as of another epoch.
    pub fn publish(&self, board: Board) {
        *lock(&self.statistics) = Some(Arc::new(board));
    }

    /// The statistics, if there are any.
    pub fn statistics(&self) -> Option<Arc<Board>> {
        lock(&self.statistics).clone()
    }

    /// Notes a durable snapshot of a shard: its epoch, and how large it is.
    pub fn snapshot(&self, shard: Shard, epoch: Epoch, bytes: u64) {
        lock(&self.snapshots).insert(shard, (epoch, bytes));
    }

    /// The oldest durable snapshot, and the size of all.
    pub fn snapshots(&self) -> Option<(Epoch, u64)> {
        let all = lock(&self.snapshots);
        let oldest = all.values().map(|(epoch, _)| *epoch).min()?;
        Some((oldest, all.values().map(|(_, bytes)| *bytes).sum()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_counts_when_all_writers_have_committed_it() {
        let figures = Figures::default();
        [1, 2, 3].iter().for_each(|epoch| figures.cut(*epoch));
        let observed = || figures.durable_delay.counted().counts.iter().sum::<u64>();
        figures.committed();
        assert_eq!((observed(), figures.last_delay_ms()), (0, None));
        figures.writer(0, |writer| writer.durable_epoch = 3);
        figures.writer(1, |_| ());
        figures.committed();
        assert_eq!(observed(), 0);
        figures.writer(1, |writer| writer.durable_epoch = 2);
        figures.committed();
        assert_eq!(observed(), 2);
        assert!(figures.last_delay_ms().is_some());
    }

    #[test]
    fn the_durable_watermark_is_that_of_the_last_durable_epoch() {
        let figures = Figures::default();
        for epoch in 1..=5 {
            figures.bind(epoch, EventTime::from_millis(epoch as i64 * 10), &[]);
            figures.bind(epoch, EventTime::from_millis(0), &[]);
        }
        assert_eq!(figures.bound(0).durable_watermark, None);
        assert_eq!(figures.bound(3).durable_watermark, Some(EventTime::from_millis(30)));
        assert_eq!(figures.bound(3).durable_watermark, Some(EventTime::from_millis(30)));
    }
}
