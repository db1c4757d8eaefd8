//! The figures of one process at one moment, as plain data: what the page, the metrics and the
//! other processes of a cluster get to see.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sessionizer_core::binding::{Offset, Status};
use sessionizer_core::time::EventTime;

use crate::dataflow::anomalies::figures::Alarms;
use crate::dataflow::buckets::Counted;
use crate::dataflow::changes::{HostSums, Latest};
use crate::dataflow::figures::{LatestBindings, PartFigures, WriterFigures, running_ms};
use crate::dataflow::run_state::RunState;
use crate::dataflow::statistics::board::Board;
use crate::dataflow::statistics::figures::WindowFigures;
use crate::monitor::condition::{Stage, WaitStatus};
use crate::ui::{trouble, waiting};

/// How many hosts are shown.
const HOSTS: usize = 100;

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
    pub durable_delay: Counted,
    pub memory: (u64, u64),
    /// The epoch of the oldest snapshot, and the size of all.
    pub snapshots: Option<(u64, u64)>,
    pub workers: Vec<WorkerSample>,
    /// Those that this process reads, and in process 0 those that no process has told of.
    pub parts: Vec<PartSample>,
    pub writers: Vec<WriterSample>,
    pub letters: Vec<LetterSample>,
    pub hosts: HostsSample,
    /// The newest first.
    pub latest: Vec<LatestSample>,
    /// Failures of servers: whose, of which kind, and how many.
    pub troubles: Vec<(String, String, u64)>,
    /// Whether there are statistics, and how large the windows of this process are.
    pub counts: bool,
    pub window: WindowSample,
    /// The statistics of the job. Process 0 makes them, so they need not travel.
    #[serde(skip)]
    pub statistics: Option<Arc<Board>>,
    /// The anomalies of the job. Process 0 finds them, so they need not travel.
    #[serde(skip)]
    pub anomalies: Option<Arc<Alarms>>,
}

/// The most bytes that a link carries at once, less some for the envelope and what it escapes.
const MAX_BYTES: usize = 24 << 10;

impl Sample {
    /// As a text for process 0. If it is too long, what matters least is left out.
    pub fn write(&self) -> String {
        let mut sample = self.clone();
        let text = |sample: &Sample| serde_json::to_string(sample).expect("plain data");
        let shorter: [fn(&mut Sample); 4] = [
            |sample| sample.latest.truncate(10),
            |sample| sample.letters.iter_mut().for_each(|letters| letters.examples.clear()),
            |sample| {
                let HostsSample { rows, other, .. } = &mut sample.hosts;
                let rest = rows.split_off(rows.len().min(20));
                rest.into_iter().for_each(|(_, sums)| other.plus(sums));
            },
            |sample| {
                sample.latest.clear();
                sample.parts.truncate(60);
            },
        ];
        let mut written = text(&sample);
        for shorten in shorter {
            if written.len() <= MAX_BYTES {
                break;
            }
            shorten(&mut sample);
            written = text(&sample);
        }
        written
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
    pub took: Counted,
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

/// The windows of the statistics: see `WindowFigures`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct WindowSample {
    pub hosts: u64,
    pub cells: u64,
    pub visitors: u64,
    pub too_old: u64,
    pub past_rows: u64,
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

/// The hosts with a metric of their own: a set that is fixed for the run once it is full.
#[derive(Clone, Debug, Default)]
pub struct MetricHosts {
    pub chosen: bool,
    pub hosts: Vec<String>,
}

/// How many hosts have a metric of their own if none are named.
const METRIC_HOSTS: usize = 20;

/// Takes the figures of this process. The workers wait for nothing but the copying.
pub fn sample(
    run_state: &RunState,
    process: usize,
    at_ms: u64,
    metric_hosts: &mut MetricHosts,
) -> Sample {
    let metrics = &run_state.metrics;
    let figures = &metrics.figures;
    let ago = |since: Instant| at_ms.saturating_sub(since.elapsed().as_millis() as u64);
    let durable_epoch = metrics.durable_epoch.load(Relaxed);
    let bound = figures.bound(durable_epoch);
    let workers: Vec<WorkerSample> = figures
        .workers()
        .iter()
        .map(|(worker, shown)| WorkerSample {
            worker: *worker,
            still_ms: match shown.stepped_ms.load(Relaxed) {
                0 => None,
                stepped => Some(running_ms().saturating_sub(stepped)),
            },
            epoch: shown.epoch.load(Relaxed),
            in_flight: shown.in_flight.load(Relaxed),
        })
        .collect();
    let kafka_away = waiting::waits_for("Kafka");
    let wait = waiting::longest().map(|wait| WaitStatus {
        what: wait.what,
        why: wait.why.as_deref().map(plain),
        lasts_ms: wait.since.elapsed().as_millis() as u64,
        left_ms: wait
            .until
            .map(|until| until.saturating_duration_since(Instant::now()).as_millis() as u64),
    });
    let mut sample = Sample {
        process,
        at_ms,
        stage: stage(run_state),
        wait,
        stopping: run_state.ending(),
        records: metrics.records.load(Relaxed),
        dead: metrics.dead.load(Relaxed),
        rows: metrics.rows.load(Relaxed),
        late_sessions: metrics.late.load(Relaxed),
        late_events: metrics.late_events.load(Relaxed),
        commits: metrics.commits.load(Relaxed),
        open: metrics.open_sessions.load(Relaxed).max(0) as u64,
        state_bytes: metrics.state_bytes.load(Relaxed).max(0) as u64,
        lag: metrics.lag().filter(|_| !kafka_away),
        ahead: metrics.records_ahead.load(Relaxed),
        watermark_ms: metrics.watermark().map(EventTime::millis),
        durable_watermark_ms: bound.durable_watermark.map(EventTime::millis),
        epoch: bound.epoch,
        durable_epoch,
        durable_delay_ms: figures.last_delay_ms(),
        durable_delay: figures.durable_delay.counted(),
        memory: run_state.memory.usage(),
        snapshots: figures.snapshots(),
        workers,
        parts: parts(run_state, &bound, process, at_ms, kafka_away),
        writers: figures
            .writers()
            .into_iter()
            .map(|(writer, shown)| writer_sample(writer, process, shown, ago))
            .collect(),
        letters: letters(run_state),
        troubles: trouble::counts(),
        counts: figures.counts.load(Relaxed),
        window: window(&figures.window),
        statistics: figures.statistics(),
        anomalies: figures.anomalies(),
        ..Sample::default()
    };
    changes(run_state, &mut sample, metric_hosts);
    sample
}

fn window(window: &WindowFigures) -> WindowSample {
    let [hosts, cells, visitors, too_old, past_rows] =
        [&window.hosts, &window.cells, &window.visitors, &window.too_old, &window.past_rows]
            .map(|figure| figure.load(Relaxed));
    WindowSample { hosts, cells, visitors, too_old, past_rows }
}

/// How far the run has come.
pub fn stage(run_state: &RunState) -> Stage {
    let metrics = &run_state.metrics;
    let [all, loaded, replay, replayed, readers] = [
        &metrics.shards_to_load,
        &metrics.shards_loaded,
        &metrics.replay_epochs,
        &metrics.replayed_epochs,
        &metrics.readers,
    ]
    .map(|number| number.load(Relaxed));
    match () {
        () if loaded < all => Stage::Loading { loaded, all },
        () if replayed < replay => Stage::Replaying { percent: replayed * 100 / replay },
        () if readers == 0 => Stage::Connecting,
        () => Stage::Running,
    }
}

/// A reason without the number that the operating system gives it.
fn plain(why: &str) -> String {
    let Some((before, rest)) = why.split_once(" (os error ") else { return why.to_owned() };
    let after = rest.split_once(')').map_or("", |(_, after)| after);
    format!("{before}{after}")
}

fn parts(
    run_state: &RunState,
    bound: &LatestBindings,
    process: usize,
    at_ms: u64,
    kafka_away: bool,
) -> Vec<PartSample> {
    let figures = &run_state.metrics.figures;
    let own = figures.parts();
    let mut all = Vec::new();
    for (partition, part) in &own {
        // While Kafka does not answer, nobody knows what is there to read.
        let part = &PartFigures { waiting: part.waiting.filter(|_| !kafka_away), ..*part };
        let binding = bound.bindings.get(partition);
        let status = binding.map_or(Status::Active, |binding| binding.status);
        all.push(PartSample {
            topic: figures.topic(*partition).unwrap_or_default().to_owned(),
            number: partition.number,
            process,
            offset: part.position.get(),
            end: part.waiting.map(|waiting| part.position.plus(waiting as i64).get()),
            waiting: part.waiting,
            lag_ms: lag_ms(part, at_ms),
            promise_ms: binding
                .map(|binding| binding.promise)
                .filter(|promise| *promise > EventTime::NEVER)
                .map(EventTime::millis),
            state: state(part, status),
            held_to: part.held_by_transaction.map(Offset::get),
            records: part.records,
            dead: part.dead,
        });
    }
    all
}

fn state(part: &PartFigures, status: Status) -> PartState {
    match status {
        _ if part.retired => PartState::Retired,
        _ if part.replaying => PartState::Replaying,
        Status::Ended => PartState::Ended,
        Status::Idle => PartState::Idle,
        Status::Active if part.held_by_transaction.is_some() => PartState::HeldUp,
        Status::Active if part.paused => PartState::Paused,
        Status::Active if part.waiting.is_none() => PartState::Waiting,
        Status::Active => PartState::Reading,
    }
}

/// For how long, at most, the oldest unread record has been in Kafka.
fn lag_ms(part: &PartFigures, at_ms: u64) -> Option<u64> {
    if part.waiting? == 0 {
        return Some(0);
    }
    let since_caught_up = part.caught_up.map(|since| since.elapsed().as_millis() as u64);
    let since_read = part.unread_since_ms.map(|since| at_ms.saturating_sub(since.max(0) as u64));
    match (since_caught_up, since_read) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn writer_sample(
    writer: u32,
    process: usize,
    shown: WriterFigures,
    ago: impl Fn(Instant) -> u64,
) -> WriterSample {
    WriterSample {
        writer,
        process,
        waiting_epochs: shown.waiting_epochs,
        waiting_rows: shown.waiting_rows,
        committing_since_ms: shown.committing_since.map(&ago),
        failing_since_ms: shown.failing_since.map(&ago),
        error: shown.error,
        failures: shown.failures,
        durable_epoch: shown.durable_epoch,
        commits: shown.commits,
        rows: shown.rows,
        last_commit_ms: shown.last_commit.map(milliseconds),
        took: shown.took.counted(),
    }
}

fn milliseconds(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e4).round() / 10.0
}

fn letters(run_state: &RunState) -> Vec<LetterSample> {
    let figures = &run_state.metrics.figures;
    let all = figures.letters().into_iter().map(|(reason, shown)| LetterSample {
        reason,
        count: shown.count,
        last_ms: shown.last_ms,
        examples: shown
            .examples
            .into_iter()
            .map(|example| ExampleSample {
                at_ms: example.at_ms,
                place: example.place.map(|(partition, offset)| {
                    let topic = figures.topic(partition).unwrap_or_default();
                    (topic.to_owned(), partition.number, offset.get())
                }),
                detail: example.detail,
                payload: example.payload,
                cut: example.cut,
            })
            .collect(),
    });
    all.collect()
}

fn changes(run_state: &RunState, sample: &mut Sample, metric_hosts: &mut MetricHosts) {
    let changes = &run_state.metrics.figures.changes;
    let shown = changes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    (sample.rows_added, sample.rows_removed) = (shown.added, shown.removed);
    let (rows, other) = shown.top_hosts(HOSTS);
    if !metric_hosts.chosen {
        for (host, _) in &rows {
            if metric_hosts.hosts.len() < METRIC_HOSTS && !metric_hosts.hosts.contains(host) {
                metric_hosts.hosts.push(host.clone());
            }
        }
    }
    let of_host = |host: &String| {
        let sums = shown.host(host).unwrap_or_default();
        (host.clone(), sums.added)
    };
    let metrics: Vec<(String, i64)> = metric_hosts.hosts.iter().map(of_host).collect();
    let named: i64 = metrics.iter().map(|(_, added)| *added).sum();
    sample.hosts = HostsSample {
        known: shown.hosts_known(),
        rows,
        other,
        metrics_other: shown.all_hosts().added - named,
        metrics,
    };
    sample.latest = shown.latest.iter().map(latest).collect();
}

fn latest(change: &Latest) -> LatestSample {
    LatestSample {
        number: change.number,
        at_ms: change.at_ms,
        ip: change.ip.clone(),
        host: change.host.clone(),
        first_ms: change.span.first.millis(),
        last_ms: change.span.last.millis(),
        events: change.span.count,
        removed: change.removed,
        merged: change.merged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_operating_system_are_left_out() {
        let shown = plain("connecting: Connection refused (os error 111); is it up?");
        assert_eq!(shown, "connecting: Connection refused; is it up?");
        assert_eq!(plain("no answer"), "no answer");
    }

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
        let text = sample.write();
        assert!(text.len() < 60 << 10, "{}", text.len());
        let read = Sample::read(&text).expect("it is whole");
        assert_eq!((read.records, read.hosts.rows.len()), (7, 20));
        let small = Sample { records: 8, ..Sample::default() };
        assert_eq!(Sample::read(&small.write()), Some(small));
        assert_eq!(Sample::read("{}"), None);
    }
}
