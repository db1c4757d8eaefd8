//! `kill -USR1`: logs in detail what the job is doing. It changes nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use log::{info, warn};
use sessionizer_core::time::EventTime;
use signal_hook::consts::SIGUSR1;
use signal_hook::iterator::{Handle, Signals};

use crate::dataflow::run_state::RunState;
use crate::job::clock::now_ms;
use crate::monitor::condition::Stage;
use crate::monitor::sample::{
    MetricHosts, PartSample, PartState, Sample, WorkerSample, WriterSample, sample,
};
use crate::ui::text::{bytes, count, duration, plural};
use crate::ui::waiting;
use crate::ui::waiting::Wait;

/// How many partitions a report names.
const PARTS: usize = 100;

/// Reports at each SIGUSR1 until it is dropped.
pub(super) struct Reporter {
    current: Arc<Mutex<Arc<RunState>>>,
    handle: Option<Handle>,
}

impl Reporter {
    pub(super) fn start(process: usize, run_state: &Arc<RunState>) -> Self {
        let current = Arc::new(Mutex::new(Arc::clone(run_state)));
        let mut signals = match Signals::new([SIGUSR1]) {
            Ok(signals) => signals,
            Err(why) => {
                warn!("kill -USR1 reports nothing: {why}");
                return Reporter { current, handle: None };
            }
        };
        let handle = signals.handle();
        let of_thread = Arc::clone(&current);
        let work = move || {
            for _ in signals.forever() {
                let run_state = of_thread.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let sample = sample(&run_state, process, now_ms(), &mut MetricHosts::default());
                report(&sample, &run_state).iter().for_each(|line| info!("{line}"));
            }
        };
        // Without a thread, the signal is ignored.
        let _ = thread::Builder::new().name("report".to_owned()).spawn(work);
        Reporter { current, handle: Some(handle) }
    }

    /// Reports on another run from now on.
    pub(super) fn follow(&self, run_state: &Arc<RunState>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::clone(run_state);
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if let Some(handle) = &self.handle {
            handle.close();
        }
    }
}

/// What the job is doing, line by line.
fn report(sample: &Sample, run_state: &RunState) -> Vec<String> {
    let mut lines = vec![format!("where everything is: {}", stage(sample))];
    lines.extend(waiting::all().iter().map(wait));
    lines.extend(sample.workers.iter().map(worker));
    let (used, limit) = sample.memory;
    lines.push(match limit {
        u64::MAX => format!("  in flight: {}", bytes(used)),
        limit => format!("  in flight: {} of {} ({})", bytes(used), bytes(limit), run_state.memory),
    });
    let durable = match sample.durable_epoch {
        0 => "nothing yet in this run".to_owned(),
        durable => epoch(durable),
    };
    lines.push(format!("  complete: {}; durable: {durable}", epoch(sample.epoch)));
    lines.extend(sample.parts.iter().take(PARTS).map(partition));
    if sample.parts.len() > PARTS {
        lines.push(format!("  and {} more partitions", sample.parts.len() - PARTS));
    }
    lines.extend(sample.writers.iter().map(|of| writer(of, sample.at_ms)));
    for (process, report) in run_state.metrics.figures.peers.last_contacts() {
        lines.push(format!("  process {process}: {report}"));
    }
    lines
}

fn wait(wait: &Wait) -> String {
    let why = wait.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
    format!("  waiting for {}, {} so far{why}", wait.what, duration(wait.since.elapsed()))
}

fn worker(of: &WorkerSample) -> String {
    let stepped = of
        .still_ms
        .map_or("does not run".to_owned(), |still| format!("stepped {} ago", millis(still)));
    format!(
        "  worker {}: {stepped}, reads into {}, {} cut and not durable",
        of.worker,
        epoch(of.epoch),
        plural(of.in_flight, "epoch")
    )
}

/// A writer, as of `now_ms`.
fn writer(of: &WriterSample, now_ms: u64) -> String {
    let since = |at: u64| millis(now_ms.saturating_sub(at));
    let does = match (of.failing_since_ms, of.committing_since_ms) {
        (Some(at), _) => {
            let why = of.error.as_deref().unwrap_or("no reason");
            format!("failing for {}, with {why}", since(at))
        }
        (None, Some(at)) => format!("committing for {}", since(at)),
        (None, None) => "idle".to_owned(),
    };
    format!(
        "  writer {}: {does}; {} wait with {}; durable up to {}",
        of.writer,
        plural(of.waiting_epochs, "epoch"),
        plural(of.waiting_rows, "row"),
        epoch(of.durable_epoch)
    )
}

fn millis(ms: u64) -> String {
    duration(Duration::from_millis(ms))
}

/// An epoch, with the time that it stands for.
fn epoch(epoch: u64) -> String {
    match epoch {
        0 => "no epoch yet".to_owned(),
        epoch => format!("epoch {epoch} ({})", EventTime::from_millis(epoch as i64)),
    }
}

fn stage(sample: &Sample) -> String {
    match sample.stage {
        _ if sample.stopping => "stopping".to_owned(),
        Stage::Connecting => "starting".to_owned(),
        Stage::Loading { loaded, all } => {
            format!("loading open sessions, shard {} of {}", count(loaded), count(all))
        }
        Stage::Replaying { percent } => format!("replaying {percent} %"),
        Stage::Running => "running".to_owned(),
    }
}

fn partition(part: &PartSample) -> String {
    let PartSample { topic, number, offset, .. } = part;
    let left = match part.waiting {
        None => "its end is not known".to_owned(),
        Some(waiting) => format!("{} to read", plural(waiting, "record")),
    };
    let state = match part.state {
        PartState::Reading => "reading",
        PartState::Paused => "paused, because others lag (--max-drift)",
        PartState::Idle => "idle",
        PartState::Ended => "ended",
        PartState::Retired => "retired: the topic no longer has it",
        PartState::Replaying => "replaying",
        PartState::Waiting => "waiting: its end is not known",
        PartState::HeldUp => "held up by an open transaction",
    };
    let promise = match part.promise_ms {
        None => "no event yet".to_owned(),
        Some(at) => format!("promises nothing older than {}", EventTime::from_millis(at)),
    };
    format!("  {topic}[{number}] at offset {offset}: {state}, {left}, {promise}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_names_workers_partitions_and_writers() {
        let run_state = RunState::default();
        let sample = Sample {
            at_ms: 20_000,
            stage: Stage::Running,
            epoch: 19_000,
            durable_epoch: 7_000,
            memory: (1 << 20, u64::MAX),
            workers: vec![WorkerSample {
                worker: 1,
                still_ms: Some(40),
                epoch: 20_000,
                in_flight: 8,
            }],
            parts: vec![PartSample {
                topic: "web".to_owned(),
                number: 3,
                offset: 12,
                waiting: Some(5),
                state: PartState::Paused,
                ..PartSample::default()
            }],
            writers: vec![WriterSample {
                writer: 0,
                waiting_epochs: 8,
                waiting_rows: 1,
                failing_since_ms: Some(8_000),
                error: Some("connection refused".to_owned()),
                durable_epoch: 7_000,
                ..WriterSample::default()
            }],
            ..Sample::default()
        };
        let lines = report(&sample, &run_state).join("\n");
        for part in [
            "where everything is: running",
            "  worker 1: stepped 0 s ago, reads into epoch 20000 (1970-01-01T00:00:20.000Z), 8 epochs cut and not durable",
            "  in flight: 1 MiB",
            "  web[3] at offset 12: paused, because others lag (--max-drift), 5 records to read",
            "  writer 0: failing for 12 s, with connection refused; 8 epochs wait with 1 row; \
             durable up to epoch 7000 (1970-01-01T00:00:07.000Z)",
        ] {
            assert!(lines.contains(part), "{part:?} is missing:\n{lines}");
        }
    }
}
