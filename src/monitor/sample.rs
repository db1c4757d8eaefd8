//! The figures of one process at one moment, as plain data: what the page, the metrics and the
//! other processes of a cluster get to see.

mod collect;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::dataflow::anomalies::figures::AnomalyFigures;
use crate::dataflow::buckets::BucketCounts;
use crate::dataflow::changes::HostSums;
use crate::dataflow::statistics::board::Board;
use crate::monitor::condition::{Stage, WaitStatus};
pub use crate::monitor::sample::collect::{MetricHosts, sample, stage};

/// The figures of one process.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Sample {
    pub process: usize,
    pub at_ms: u64,
    pub stage: Stage,
    pub wait: Option<WaitStatus>,
    pub stopping: bool,
    pub records: u64,
    pub dead: u64,
    pub rows: u64,
    pub rows_added: u64,
    pub rows_removed: u64,
    pub late_sessions: u64,
    pub late_events: u64,
    pub commits: u64,
    pub open: u64,
    pub state_bytes: u64,
    pub lag: Option<u64>,
    /// What a bounded run has to read; 0 in any other run.
    pub ahead: u64,
    pub watermark_ms: Option<i64>,
    pub durable_watermark_ms: Option<i64>,
    pub epoch: u64,
    pub durable_epoch: u64,
    pub durable_delay_ms: Option<u64>,
    pub durable_delay: BucketCounts,
    pub memory: (u64, u64),
    /// The epoch of the oldest snapshot, and the size of all.
    pub snapshots: Option<(u64, u64)>,
    pub workers: Vec<WorkerSample>,
    /// Those that this process reads; in process 0 also those that no process has reported.
    pub parts: Vec<PartSample>,
    pub writers: Vec<WriterSample>,
    pub letters: Vec<LetterSample>,
    pub hosts: HostsSample,
    /// The newest first.
    pub latest: Vec<LatestSample>,
    /// Failures of servers: whose, of which kind, and how many.
    pub troubles: Vec<(String, String, u64)>,
    /// Whether there are statistics.
    pub counts: bool,
    /// How large the windows of this process are.
    pub window: WindowSample,
    /// The statistics of the job. Process 0 makes them, so they need not travel.
    #[serde(skip)]
    pub statistics: Option<Arc<Board>>,
    /// The anomalies of the job. Process 0 finds them, so they need not travel.
    #[serde(skip)]
    pub anomalies: Option<Arc<AnomalyFigures>>,
}

/// The longest text that is sent to process 0, as the link escapes it: below what a link carries at
/// once, because other notices may travel with it.
const MAX_BYTES: usize = 56 << 10;
/// How many hosts the second attempt to shorten a text keeps.
const FEW_HOSTS: usize = 20;
/// The longest error of a writer in a short text, in characters.
const SHORT_ERROR: usize = 200;

impl Sample {
    /// As a text for process 0. If it is too long, what matters least is left out. `None` if it is
    /// too long even then: the link would take it for garbage.
    pub fn write(&self) -> Option<String> {
        let mut sample = self.clone();
        let text = |sample: &Sample| serde_json::to_string(sample).expect("plain data");
        let shorter: [fn(&mut Sample); 6] = [
            |sample| sample.latest.truncate(10),
            |sample| sample.letters.iter_mut().for_each(|letters| letters.examples.clear()),
            |sample| sample.hosts.keep(FEW_HOSTS),
            |sample| {
                sample.latest.clear();
                sample.parts.truncate(60);
            },
            // A host may have a name of thousands of bytes.
            |sample| sample.hosts.keep(0),
            |sample| {
                sample.parts.truncate(20);
                sample.letters.truncate(20);
                sample.workers.truncate(64);
                sample.writers.truncate(16);
                for error in sample.writers.iter_mut().filter_map(|writer| writer.error.as_mut()) {
                    *error = error.chars().take(SHORT_ERROR).collect();
                }
            },
        ];
        // JSON has no control characters, so these two are all that is escaped.
        let fits = |text: &str| {
            let escapes = text.bytes().filter(|byte| matches!(byte, b'"' | b'\\')).count();
            text.len() + escapes <= MAX_BYTES
        };
        let mut written = text(&sample);
        for shorten in shorter {
            if fits(&written) {
                break;
            }
            shorten(&mut sample);
            written = text(&sample);
        }
        fits(&written).then_some(written)
    }

    /// What another process has written; `None` if it is not understood.
    pub fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct WorkerSample {
    pub worker: usize,
    /// For how long it has not stepped; `None`: it has ended, or has not begun.
    pub still_ms: Option<u64>,
    pub epoch: u64,
    pub in_flight: u64,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct PartSample {
    pub topic: String,
    pub number: i32,
    pub process: usize,
    pub offset: i64,
    pub end: Option<i64>,
    pub waiting: Option<u64>,
    pub lag_ms: Option<u64>,
    pub promise_ms: Option<i64>,
    pub state: PartState,
    pub held_to: Option<i64>,
    /// Records read in this run, and how many of them became dead letters.
    pub records: u64,
    pub dead: u64,
}

/// What a partition does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartState {
    #[default]
    Reading,
    Paused,
    Idle,
    Ended,
    Retired,
    Replaying,
    /// Its end is not known: nobody answers for it.
    Waiting,
    /// An open transaction holds records back.
    HeldUp,
}

impl PartState {
    /// Whether the watermark waits for it.
    pub fn is_active(self) -> bool {
        !matches!(self, PartState::Idle | PartState::Ended | PartState::Retired)
    }
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct WriterSample {
    pub writer: u32,
    pub process: usize,
    pub waiting_epochs: u64,
    pub waiting_rows: u64,
    pub committing_since_ms: Option<u64>,
    pub failing_since_ms: Option<u64>,
    pub error: Option<String>,
    pub failures: u64,
    pub durable_epoch: u64,
    pub commits: u64,
    pub rows: u64,
    pub last_commit_ms: Option<f64>,
    pub took: BucketCounts,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LetterSample {
    pub reason: String,
    pub count: u64,
    pub last_ms: u64,
    pub examples: Vec<ExampleSample>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ExampleSample {
    pub at_ms: u64,
    pub place: Option<(String, i32, i64)>,
    pub detail: String,
    pub payload: Option<String>,
    pub cut: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HostsSample {
    pub known: usize,
    pub rows: Vec<(String, HostSums)>,
    pub other: HostSums,
    /// The hosts that have a metric of their own, and all others together.
    pub metrics: Vec<(String, i64)>,
    pub metrics_other: i64,
}

impl HostsSample {
    /// Keeps so many hosts by name, and counts the rest together.
    fn keep(&mut self, most: usize) {
        let rest = self.rows.split_off(self.rows.len().min(most));
        rest.into_iter().for_each(|(_, sums)| self.other.plus(sums));
        let rest = self.metrics.split_off(self.metrics.len().min(most));
        self.metrics_other += rest.iter().map(|(_, sessions)| sessions).sum::<i64>();
    }
}

/// The windows of the statistics: see `WindowFigures`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct WindowSample {
    pub hosts: u64,
    pub cells: u64,
    pub visitors: u64,
    pub too_old: u64,
    pub past_rows: u64,
    /// `None` if no anomalies are looked for.
    pub detectors: Option<DetectorSample>,
}

/// The detectors of anomalies: see `DetectorFigures`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DetectorSample {
    pub hosts: u64,
    pub visitors: u64,
    pub refused_rows: u64,
    /// The start of the first day whose visitors are known, if there were too many before it.
    pub visitors_from_ms: Option<i64>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LatestSample {
    pub number: u64,
    pub at_ms: u64,
    pub ip: String,
    pub host: String,
    pub first_ms: i64,
    pub last_ms: i64,
    pub events: u64,
    pub removed: bool,
    pub merged: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_travels_and_fits_a_message_of_the_link() {
        let row = |n: usize| (format!("host-{n}-{}", "x".repeat(240)), HostSums::default());
        let part = |number| PartSample { topic: "t".repeat(200), number, ..PartSample::default() };
        let sample = Sample {
            records: 7,
            hosts: HostsSample { rows: (0..100).map(row).collect(), ..HostsSample::default() },
            parts: (0..300).map(part).collect(),
            ..Sample::default()
        };
        let text = sample.write().expect("it fits");
        assert!(text.len() < 60 << 10, "{}", text.len());
        let read = Sample::read(&text).expect("it is whole");
        assert_eq!((read.records, read.hosts.rows.len()), (7, 20));
        let small = Sample { records: 8, ..Sample::default() };
        assert_eq!(small.write().and_then(|text| Sample::read(&text)), Some(small));
        assert_eq!(Sample::read("{}"), None);
    }

    #[test]
    fn whatever_is_long_in_a_sample_it_fits_a_message_of_the_link() {
        let long = |n: usize| format!("{n}{}", "\\\"\u{1}".repeat(800));
        let sums = HostSums { sessions: 1, ..HostSums::default() };
        let writer = |n: u32| WriterSample {
            writer: n,
            error: Some(long(n as usize)),
            ..WriterSample::default()
        };
        let letter = |n| LetterSample { reason: format!("reason {n}"), ..LetterSample::default() };
        let sample = Sample {
            hosts: HostsSample {
                rows: (0..100).map(|n| (long(n), sums)).collect(),
                metrics: (0..1_300).map(|n| (long(n), 2)).collect(),
                ..HostsSample::default()
            },
            writers: (0..40).map(writer).collect(),
            workers: vec![WorkerSample::default(); 500],
            letters: (0..30).map(letter).collect(),
            parts: vec![PartSample { topic: "t".repeat(249), ..PartSample::default() }; 300],
            ..Sample::default()
        };
        let text = sample.write().expect("it fits");
        let escaped = serde_json::to_string(&text).expect("plain data");
        assert!(escaped.len() < 60 << 10, "{}", escaped.len());
        let HostsSample { rows, other, metrics, metrics_other, .. } =
            Sample::read(&text).expect("it is whole").hosts;
        assert_eq!((rows.len(), other.sessions), (0, 100), "all are counted");
        assert_eq!((metrics.len(), metrics_other), (0, 2_600));
    }
}
