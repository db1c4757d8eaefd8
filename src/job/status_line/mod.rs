//! Shows the status line: at the bottom of a terminal, or else now and then in the log, in the same
//! words.

mod ending;
mod line;

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use log::info;

pub use self::ending::{Done, Ending, ending};
use self::line::{Stage, State, Wait, line};
use crate::dataflow::run_state::RunState;
use crate::job::clock::now_ms;
use crate::ui::bars::{bars, style};
use crate::ui::text::duration;
use crate::ui::waiting;

/// How often the line is logged if there is no terminal.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// The same during a start, when there is nothing else to see.
const LOG_START_EVERY: Duration = Duration::from_secs(2);

const DRAW_EVERY: Duration = Duration::from_millis(250);

/// The period over which the rate is measured.
const RATE_OVER: Duration = Duration::from_secs(5);

/// The spinner and a space before the line.
const SPINNER_COLUMNS: usize = 2;

/// Shows progress until it is dropped.
pub struct Progress {
    stop: Option<Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Progress {
    /// Begins to show progress. `bounded` says that the run has an end to count down to.
    pub fn start(run_state: Arc<RunState>, bounded: bool) -> Self {
        let (stop, stopped) = channel::<()>();
        let terminal = std::io::stderr().is_terminal();
        let thread = thread::Builder::new().name("progress".to_owned()).spawn(move || {
            let mut view = View::new(run_state, bounded, terminal);
            while stopped.recv_timeout(DRAW_EVERY) == Err(RecvTimeoutError::Timeout) {
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

struct View {
    run_state: Arc<RunState>,
    bounded: bool,
    bar: Option<ProgressBar>,
    began: Instant,
    logged: Instant,
    /// Whether bound epochs were still being replayed at the last look.
    replaying: bool,
    /// How many records had been read at which time, over the last few seconds.
    samples: VecDeque<(Instant, u64)>,
    /// When the number of records last changed.
    moved: Instant,
}

impl View {
    fn new(run_state: Arc<RunState>, bounded: bool, terminal: bool) -> Self {
        let bar = terminal.then(|| {
            let bar = bars().add(ProgressBar::new_spinner());
            bar.set_style(style("{spinner} {wide_msg}"));
            bar
        });
        let now = Instant::now();
        View {
            run_state,
            bounded,
            bar,
            began: now,
            logged: now,
            replaying: false,
            samples: VecDeque::new(),
            moved: now,
        }
    }

    fn refresh(&mut self) {
        let state = self.state();
        let replaying = matches!(state.stage, Stage::Replaying { .. });
        if self.replaying && !replaying {
            info!("all is read again, {} after the start", duration(self.began.elapsed()));
        }
        self.replaying = replaying;
        let starts = matches!(state.stage, Stage::Loading { .. } | Stage::Replaying { .. });
        let log_every = if starts { LOG_START_EVERY } else { LOG_EVERY };
        if let Some(bar) = &self.bar {
            bar.set_message(line(&state, terminal_width().saturating_sub(SPINNER_COLUMNS)));
            bar.tick();
        } else if self.logged.elapsed() >= log_every {
            self.logged = Instant::now();
            info!("{}", line(&state, usize::MAX));
        }
    }

    fn state(&mut self) -> State {
        let now = Instant::now();
        let metrics = &self.run_state.metrics;
        let records = metrics.records.load(Relaxed);
        if self.samples.back().is_some_and(|(_, before)| *before != records) {
            self.moved = now;
        }
        self.samples.push_back((now, records));
        while self.samples.len() > 2 && now - self.samples[1].0 >= RATE_OVER {
            self.samples.pop_front();
        }
        let (since, before) = self.samples[0];
        let rate = (records - before) as f64 / (now - since).as_secs_f64().max(0.25);
        let age_ms = |at_ms: i64| (now_ms() as i64).saturating_sub(at_ms).max(0) as u64;
        let ahead = metrics.records_ahead.load(Relaxed);
        State {
            wait: waiting::longest().map(|wait| Wait {
                what: wait.what,
                why: wait.why,
                lasts: wait.since.elapsed(),
                left: wait.until.map(|until| until.saturating_duration_since(now)),
            }),
            stage: self.stage(),
            stopping: self.run_state.stopping(),
            records,
            rate: rate.round() as u64,
            rows: metrics.rows.load(Relaxed),
            open: metrics.open_sessions.load(Relaxed).max(0) as u64,
            late: metrics.late.load(Relaxed),
            dead: metrics.dead.load(Relaxed),
            lag: metrics.lag(),
            ahead: (self.bounded && ahead > 0).then_some(ahead),
            behind: metrics.watermark().map(|at| Duration::from_millis(age_ms(at.millis()))),
            quiet: now - self.moved,
            held_back: self.held_back(),
        }
    }

    /// A partition of this process whose last records an open transaction holds back.
    fn held_back(&self) -> Option<String> {
        let figures = &self.run_state.metrics.figures;
        let held = figures.parts().into_iter().find(|(_, part)| part.held_back.is_some());
        let (partition, _) = held?;
        Some(format!("{}[{}]", figures.topic(partition)?, partition.number))
    }

    fn stage(&self) -> Stage {
        let metrics = &self.run_state.metrics;
        let (all, loaded) =
            (metrics.shards_to_load.load(Relaxed), metrics.shards_loaded.load(Relaxed));
        let (replay, replayed) =
            (metrics.replay_epochs.load(Relaxed), metrics.replayed_epochs.load(Relaxed));
        if loaded < all {
            Stage::Loading { loaded, all }
        } else if replayed < replay {
            Stage::Replaying { percent: replayed * 100 / replay }
        } else if metrics.readers.load(Relaxed) == 0 {
            Stage::Starting
        } else {
            Stage::Running
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            self.bar = Some(bar.clone());
            self.refresh();
            bar.finish_and_clear();
        }
    }
}

fn terminal_width() -> usize {
    let size = terminal_size::terminal_size_of(std::io::stderr());
    size.map_or(80, |(width, _)| usize::from(width.0))
}
