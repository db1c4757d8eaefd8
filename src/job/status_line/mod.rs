//! Shows the status line: at the bottom of a terminal, or otherwise from time to time in the log.

mod ending;
mod line;

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use log::info;

pub use self::ending::{Done, Ending, ending};
use self::line::{Numbers, line};
use crate::dataflow::run_state::RunState;
use crate::job::clock::now_ms;
use crate::monitor::JobFacts;
use crate::monitor::condition::Stage;
use crate::monitor::job_state::JobState;
use crate::monitor::sample::{MetricHosts, Sample, sample, stage};
use crate::ui::bars::{bars, style};
use crate::ui::can_redraw;
use crate::ui::text::duration;

/// How often the line is logged if there is no terminal.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The same during a start, when there is nothing else to see.
const START_LOG_INTERVAL: Duration = Duration::from_secs(2);

const DRAW_INTERVAL: Duration = Duration::from_millis(250);

/// How often the job is sampled: as often as for the page, so that both show the same.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// The spinner and a space before the line.
const SPINNER_COLUMNS: usize = 2;

/// Shows progress until it is dropped.
pub struct Progress {
    stop: Option<Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Progress {
    /// Begins to show progress.
    pub fn start(facts: JobFacts, run_state: Arc<RunState>) -> Self {
        let (stop, stopped) = channel::<()>();
        let terminal = can_redraw(&std::io::stderr());
        let thread = thread::Builder::new().name("progress".to_owned()).spawn(move || {
            let mut view = StatusView::new(facts, run_state, terminal);
            while stopped.recv_timeout(DRAW_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                view.refresh();
            }
            view.finish();
        });
        Progress { stop: Some(stop), thread: thread.ok() }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct StatusView {
    run_state: Arc<RunState>,
    job_state: JobState,
    numbers: Numbers,
    sampled: Option<Instant>,
    bar: Option<ProgressBar>,
    began: Instant,
    logged: Instant,
    /// Whether bound epochs were still being replayed at the last refresh.
    replaying: bool,
}

impl StatusView {
    fn new(facts: JobFacts, run_state: Arc<RunState>, terminal: bool) -> Self {
        let bar = terminal.then(|| {
            let bar = bars().add(ProgressBar::new_spinner());
            bar.set_style(style("{spinner} {wide_msg}"));
            bar
        });
        let now = Instant::now();
        StatusView {
            run_state,
            job_state: JobState::new(facts, now_ms()),
            numbers: Numbers::default(),
            sampled: None,
            bar,
            began: now,
            logged: now,
            replaying: false,
        }
    }

    fn refresh(&mut self) {
        let stage = stage(&self.run_state);
        let replaying = matches!(stage, Stage::Replaying { .. });
        if self.replaying && !replaying {
            info!("replay finished, {} after the start", duration(self.began.elapsed()));
        }
        self.replaying = replaying;
        if self.sampled.is_none_or(|sampled| sampled.elapsed() >= SAMPLE_INTERVAL) {
            self.look();
        }
        let starts = matches!(stage, Stage::Loading { .. } | Stage::Replaying { .. });
        let log_interval = if starts { START_LOG_INTERVAL } else { LOG_INTERVAL };
        if let Some(bar) = &self.bar {
            let width = terminal_width().saturating_sub(SPINNER_COLUMNS);
            bar.set_message(line(&self.job_state.condition, &self.numbers, width));
            bar.tick();
        } else if self.logged.elapsed() >= log_interval {
            self.logged = Instant::now();
            info!("{}", line(&self.job_state.condition, &self.numbers, usize::MAX));
        }
    }

    /// Samples the job. Process 0 of a cluster shows the whole job, as its page does.
    fn look(&mut self) {
        self.sampled = Some(Instant::now());
        let process = self.job_state.facts.process;
        let run_state = &self.run_state;
        let mut samples = vec![sample(run_state, process, now_ms(), &mut MetricHosts::default())];
        if process == 0 {
            let others = run_state.metrics.figures.peers.reports();
            samples.extend(others.iter().filter_map(|text| Sample::read(text)));
        }
        let totals = self.job_state.update(&samples);
        let sum = |of: fn(&Sample) -> u64| samples.iter().map(of).sum();
        self.numbers = Numbers {
            records: totals.records,
            rate: totals.record_rate.round() as u64,
            rows: sum(|sample| sample.rows + sample.late_sessions),
            open: sum(|sample| sample.open),
            late: sum(|sample| sample.late_sessions),
            dead: sum(|sample| sample.dead),
            to_read: totals.to_read,
        };
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            self.bar = Some(bar.clone());
            self.sampled = None;
            self.refresh();
            bar.finish_and_clear();
        }
    }
}

fn terminal_width() -> usize {
    let size = terminal_size::terminal_size_of(std::io::stderr());
    size.map_or(80, |(width, _)| usize::from(width.0))
}
