//! The line that says how it goes: a bar on a terminal, a log line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use log::info;

use crate::control::{Control, Gauges};

/// How often a log line is written where there is no terminal.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// The same while it starts: nothing else is to be seen then.
const LOG_START_EVERY: Duration = Duration::from_secs(2);
const DRAW_EVERY: Duration = Duration::from_millis(250);

/// Shows progress until it is dropped.
pub struct Progress {
    stop: Option<Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Progress {
    /// Begins; `bounded` says that the run has an end to count down to.
    pub fn start(control: Arc<Control>, bounded: bool) -> Self {
        let (stop, stopped) = channel::<()>();
        let terminal = std::io::stderr().is_terminal();
        let thread = thread::Builder::new().name("progress".to_owned()).spawn(move || {
            let mut view = View::new(control, bounded, terminal);
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
    control: Arc<Control>,
    bounded: bool,
    bar: Option<ProgressBar>,
    began: Instant,
    logged: Instant,
    /// Whether bound epochs were still being read again when last looked at.
    replaying: bool,
    /// Records and when, at the last log line.
    before: (u64, Instant),
}

impl View {
    fn new(control: Arc<Control>, bounded: bool, terminal: bool) -> Self {
        let bar = terminal.then(|| {
            let bar = bars().add(ProgressBar::new(0));
            bar.set_style(spinner());
            bar
        });
        let now = Instant::now();
        let replaying = false;
        View { control, bounded, bar, began: now, logged: now, replaying, before: (0, now) }
    }

    fn refresh(&mut self) {
        let gauges = &self.control.gauges;
        let records = gauges.records.load(Relaxed);
        let ahead = gauges.records_ahead.load(Relaxed);
        let replaying = gauges.replayed_epochs.load(Relaxed) < gauges.replay_epochs.load(Relaxed);
        if self.replaying && !replaying {
            info!("all is read again, {:.1} s after the start", self.began.elapsed().as_secs_f64());
        }
        self.replaying = replaying;
        let stage = self.stage();
        let log_every = if stage.is_some() { LOG_START_EVERY } else { LOG_EVERY };
        let stage = stage.map_or(String::new(), |stage| format!("{stage}; "));
        if let Some(bar) = &self.bar {
            if self.bounded && ahead > 0 && bar.length() != Some(ahead) {
                bar.set_length(ahead);
                bar.set_style(counted());
            }
            bar.set_position(records);
            bar.set_message(format!("{stage}{}", self.message()));
        } else if self.logged.elapsed() >= log_every {
            self.logged = Instant::now();
            let seconds = self.before.1.elapsed().as_secs_f64();
            let rate = (records - self.before.0) as f64 / seconds;
            self.before = (records, Instant::now());
            info!("{stage}{records} records ({rate:.0}/s), {}", self.message());
        }
    }

    /// What a start is at; `None` when it is done.
    fn stage(&self) -> Option<String> {
        let Gauges { shards_to_load, shards_loaded, replay_epochs, replayed_epochs, .. } =
            &self.control.gauges;
        let (load, loaded) = (shards_to_load.load(Relaxed), shards_loaded.load(Relaxed));
        if loaded < load {
            return Some(format!("loading open sessions, shard {loaded} of {load}"));
        }
        let (replay, replayed) = (replay_epochs.load(Relaxed), replayed_epochs.load(Relaxed));
        (replayed < replay).then(|| format!("reading again, {} %", replayed * 100 / replay))
    }

    fn message(&self) -> String {
        let gauges = &self.control.gauges;
        let watermark = gauges.watermark().map_or("none yet".to_owned(), |at| at.to_string());
        format!(
            "{} rows, {} open sessions, {} late, {} dead letters, watermark {watermark}",
            HumanCount(gauges.rows.load(Relaxed)),
            HumanCount(gauges.open_sessions.load(Relaxed).max(0) as u64),
            HumanCount(gauges.late.load(Relaxed)),
            HumanCount(gauges.dead.load(Relaxed)),
        )
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            self.bar = Some(bar.clone());
            self.refresh();
            bar.finish_and_clear();
        }
    }
}

/// A style with `{rate}`: records a second, whole.
pub fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("a valid template");
    style.with_key("rate", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let rate = HumanCount(state.per_sec() as u64);
        write!(out, "{rate}/s").expect("a line takes all");
    })
}

fn spinner() -> ProgressStyle {
    style("{spinner} {human_pos} records, {rate}; {wide_msg}")
}

fn counted() -> ProgressStyle {
    style("{bar:24} {percent}% of {human_len} records, {rate}, {eta} to go; {wide_msg}")
}

/// All bars of the process: log lines are written above them.
pub fn bars() -> &'static indicatif::MultiProgress {
    static BARS: std::sync::OnceLock<indicatif::MultiProgress> = std::sync::OnceLock::new();
    BARS.get_or_init(|| {
        indicatif::MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(4))
    })
}
