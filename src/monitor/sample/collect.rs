//! Takes a [`Sample`]: copies the figures of this process, and chooses the hosts that are shown.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use sessionizer_core::binding::{Offset, Status};
use sessionizer_core::time::EventTime;

use crate::dataflow::anomalies::figures::DetectorFigures;
use crate::dataflow::changes::Latest;
use crate::dataflow::figures::{LatestBindings, PartFigures, WriterFigures, running_ms};
use crate::dataflow::run_state::RunState;
use crate::dataflow::statistics::figures::WindowFigures;
use crate::monitor::condition::{Stage, WaitStatus};
use crate::monitor::sample::{
    DetectorSample, ExampleSample, HostsSample, LatestSample, LetterSample, PartSample, PartState,
    Sample, WindowSample, WorkerSample, WriterSample,
};
use crate::ui::{trouble, waiting};

/// How many hosts are shown.
const HOSTS: usize = 100;

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
    let durable_epoch = metrics.durable_epoch.load(Relaxed);
    let bound = figures.bound(durable_epoch);
    let kafka_away = waiting::waits_for_kafka();
    let moment = Moment { run_state, process, at_ms, kafka_away };
    let mut sample = Sample {
        process,
        at_ms,
        stage: stage(run_state),
        wait: wait(),
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
        workers: workers(run_state),
        parts: moment.parts(&bound),
        writers: moment.writers(),
        letters: letters(run_state),
        troubles: trouble::counts(),
        counts: figures.has_statistics.load(Relaxed),
        window: window(&figures.window),
        statistics: figures.statistics(),
        anomalies: figures.anomalies(),
        ..Sample::default()
    };
    changes(run_state, &mut sample, metric_hosts);
    sample
}

fn workers(run_state: &RunState) -> Vec<WorkerSample> {
    let workers = run_state.metrics.figures.workers();
    let all = workers.iter().map(|(worker, shown)| WorkerSample {
        worker: *worker,
        still_ms: match shown.stepped_ms.load(Relaxed) {
            0 => None,
            stepped => Some(running_ms().saturating_sub(stepped)),
        },
        epoch: shown.epoch.load(Relaxed),
        in_flight: shown.in_flight.load(Relaxed),
    });
    all.collect()
}

/// What the process has been waiting for the longest.
fn wait() -> Option<WaitStatus> {
    let wait = waiting::longest()?;
    let left = wait.until.map(|until| until.saturating_duration_since(Instant::now()));
    Some(WaitStatus {
        what: wait.what,
        why: wait.why.as_deref().map(plain),
        lasts_ms: wait.since.elapsed().as_millis() as u64,
        left_ms: left.map(|left| left.as_millis() as u64),
        retries: wait.retries,
    })
}

fn window(window: &WindowFigures) -> WindowSample {
    let [hosts, cells, visitors, too_old, past_rows] =
        [&window.hosts, &window.cells, &window.visitors, &window.too_old, &window.past_rows]
            .map(|figure| figure.load(Relaxed));
    let detectors = detectors(&window.detectors);
    WindowSample { hosts, cells, visitors, too_old, past_rows, detectors }
}

fn detectors(detectors: &DetectorFigures) -> Option<DetectorSample> {
    let DetectorFigures { running, hosts, visitors, refused_rows, visitors_from } = detectors;
    let [hosts, visitors, refused_rows] = [hosts, visitors, refused_rows].map(|n| n.load(Relaxed));
    let from = *visitors_from.lock().expect("nobody panics while holding it");
    let visitors_from_ms = from.map(|day| day.start().millis());
    let sample = DetectorSample { hosts, visitors, refused_rows, visitors_from_ms };
    running.load(Relaxed).then_some(sample)
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

/// The process, and when it is looked at.
struct Moment<'a> {
    run_state: &'a RunState,
    process: usize,
    at_ms: u64,
    /// While Kafka does not answer, nobody knows what is there to read.
    kafka_away: bool,
}

impl Moment<'_> {
    fn parts(&self, bound: &LatestBindings) -> Vec<PartSample> {
        let figures = &self.run_state.metrics.figures;
        let own = figures.parts();
        let mut all = Vec::new();
        for (partition, part) in &own {
            let waiting = part.waiting.filter(|_| !self.kafka_away);
            let part = &PartFigures { waiting, ..*part };
            let binding = bound.bindings.get(partition);
            let status = binding.map_or(Status::Active, |binding| binding.status);
            all.push(PartSample {
                topic: figures.topic(*partition).unwrap_or_default().to_owned(),
                number: partition.number,
                process: self.process,
                offset: part.position.get(),
                end: part.waiting.map(|waiting| part.position.plus(waiting as i64).get()),
                waiting: part.waiting,
                lag_ms: lag_ms(part, self.at_ms),
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

    fn writers(&self) -> Vec<WriterSample> {
        let writers = self.run_state.metrics.figures.writers().into_iter();
        writers.map(|(writer, shown)| self.writer(writer, shown)).collect()
    }

    fn writer(&self, writer: u32, shown: WriterFigures) -> WriterSample {
        let ago = |since: Instant| self.at_ms.saturating_sub(since.elapsed().as_millis() as u64);
        WriterSample {
            writer,
            process: self.process,
            waiting_epochs: shown.waiting_epochs,
            waiting_rows: shown.waiting_rows,
            committing_since_ms: shown.committing_since.map(ago),
            failing_since_ms: shown.failing_since.map(ago),
            error: shown.error,
            failures: shown.failures,
            durable_epoch: shown.durable_epoch,
            commits: shown.commits,
            rows: shown.rows,
            last_commit_ms: shown.last_commit.map(milliseconds),
            took: shown.took.counted(),
        }
    }
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
}
