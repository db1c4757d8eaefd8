//! One HTTP port on which an operator can watch a running job: metrics, health, a JSON document and
//! a page.
//!
//! ```text
//!   operators -> Figures, Metrics     a few times a second, or once a batch
//!   sample    -> plain data           once a second, on the thread of the monitor
//!   job_state -> rates, the condition, health
//!   document  -> /status, /events     exposition -> /metrics
//! ```
//!
//! It runs on one thread of its own. Workers never wait for it. A figure that is not known is shown
//! as such. The monitor knows of Kafka and Postgres only what the operators report.

mod anomalies;
mod answer;
mod assets;
mod body;
pub mod condition;
mod connections;
mod document;
mod exposition;
mod health;
mod history;
mod host;
pub mod job_header;
pub mod job_state;
pub mod mask;
mod process;
pub mod sample;
pub mod sentence;
mod server;
mod statistics;

use std::net::SocketAddr;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

pub use self::job_state::{AuditRow, BalanceRow};
use crate::dataflow::run_state::RunState;
use crate::monitor::condition::Ended;

/// The settings of the HTTP port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpConfig {
    /// Where to listen; `None` means nowhere.
    pub address: Option<SocketAddr>,
    /// Names that requests may use, besides addresses and localhost.
    pub hosts: Vec<String>,
    /// Whether addresses of visitors and payloads are shown even beyond loopback.
    pub full: bool,
    /// How long a ready job may make no progress.
    pub ready_within: Duration,
    /// The hosts with a metric of their own; if empty, the first that appear.
    pub metrics_hosts: Vec<String>,
}

/// What does not change during a run.
#[derive(Clone, Debug)]
pub struct JobFacts {
    /// Identifies a start of the process.
    pub run: String,
    pub version: &'static str,
    pub revision: &'static str,
    pub job: String,
    pub table: String,
    pub topics: Vec<String>,
    pub gap_ms: u64,
    /// The time from the last event of a session to its end.
    pub end_after_ms: i64,
    pub out_of_orderness_ms: i64,
    pub idle_timeout_ms: u64,
    pub epoch_ms: u64,
    pub late: &'static str,
    pub until_end: bool,
    pub process: usize,
    pub processes: usize,
    pub workers: usize,
    pub writers: u32,
    pub masked: bool,
    pub started_ms: u64,
    pub ready_within: Duration,
}

/// What is read from Postgres while somebody looks.
pub struct Asked {
    pub balance: Result<BalanceRow, String>,
    /// The last audit, if there was any; `None` if that was not asked for this time, or failed.
    pub audit: Option<Option<AuditRow>>,
}

/// Reads the balance and the last audit from Postgres, which may be slow.
pub type AskBalance = Box<dyn FnMut() -> Asked + Send>;

/// What the thread of the monitor shares with the run.
pub(crate) struct Shared {
    run_state: Mutex<Arc<RunState>>,
    ended: Mutex<Option<Ended>>,
    now_ms: fn() -> u64,
}

impl Shared {
    fn run_state(&self) -> Arc<RunState> {
        Arc::clone(&self.run_state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn ended(&self) -> Option<Ended> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The monitor of a process.
pub struct Monitor {
    shared: Arc<Shared>,
    /// Dropping it asks the thread to end.
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    ended: std::sync::mpsc::Receiver<()>,
}

/// How long the end of a run waits until the last state has been sent to open pages.
const LAST_STATE_TIMEOUT: Duration = Duration::from_millis(500);

impl Monitor {
    /// Starts the monitor, unless it is switched off.
    pub fn start(
        config: &HttpConfig,
        facts: JobFacts,
        run_state: &Arc<RunState>,
        now_ms: fn() -> u64,
        balance: AskBalance,
    ) -> Option<Self> {
        let address = config.address?;
        let shared = Arc::new(Shared {
            run_state: Mutex::new(Arc::clone(run_state)),
            ended: Mutex::default(),
            now_ms,
        });
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (gone, ended): (Sender<()>, _) = std::sync::mpsc::channel();
        let (config, of_thread) = (config.clone(), Arc::clone(&shared));
        let thread = thread::Builder::new().name("monitor".to_owned());
        let work = move || {
            let _gone = gone;
            server::run(address, config, facts, of_thread, balance, stopped);
        };
        if let Err(why) = thread.spawn(work) {
            log::warn!("metrics, health and the page are off: no thread can be started: {why}");
            return None;
        }
        Some(Monitor { shared, stop: Some(stop), ended })
    }

    /// Shows another run from now on, when the job continues after its database has gone back.
    pub fn follow(&self, run_state: &Arc<RunState>) {
        let mut shown = self.shared.run_state.lock().unwrap_or_else(PoisonError::into_inner);
        *shown = Arc::clone(run_state);
    }

    /// Shows how the run has ended, and ends.
    pub fn end(mut self, how: Ended) {
        *self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(how);
        drop(self.stop.take());
        let _ = self.ended.recv_timeout(LAST_STATE_TIMEOUT);
    }
}
