//! Reports the state of the process to systemd, by the protocol of `sd_notify`: datagrams to the
//! socket that NOTIFY_SOCKET names. Without that variable it does nothing.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use log::{debug, warn};

use crate::dataflow::run_state::RunState;
use crate::job::clock::now_ms;
use crate::monitor::JobFacts;
use crate::monitor::job_state::JobState;
use crate::monitor::sample::{MetricHosts, sample};

/// The interval between reports without a watchdog, or with a slow one.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// Reports to systemd until it is dropped.
pub(super) struct Notifier {
    current: Arc<Mutex<Arc<RunState>>>,
    running: Option<(Sender<()>, thread::JoinHandle<()>)>,
}

impl Notifier {
    pub(super) fn start(facts: JobFacts, run_state: &Arc<RunState>) -> Self {
        let current = Arc::new(Mutex::new(Arc::clone(run_state)));
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let Some(socket) = variable("NOTIFY_SOCKET") else {
            return Notifier { current, running: None };
        };
        let socket = match connect(&socket) {
            Ok(socket) => socket,
            Err(why) => {
                warn!("cannot report to systemd: NOTIFY_SOCKET: {why}");
                return Notifier { current, running: None };
            }
        };
        // The watchdog may be meant for another process.
        let mine = variable("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let limit = variable("WATCHDOG_USEC").and_then(|us| us.parse().ok()).filter(|_| mine);
        let limit = limit.map(Duration::from_micros);
        let every = limit.map_or(REPORT_INTERVAL, |limit| {
            (limit / 4).clamp(Duration::from_millis(20), REPORT_INTERVAL)
        });
        let (running, over) = channel::<()>();
        let of_thread = Arc::clone(&current);
        let work = move || {
            let mut job_state = JobState::new(facts, now_ms());
            let mut stops = false;
            notify(&socket, "READY=1\n");
            loop {
                let run_state = of_thread.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if run_state.ending() && !std::mem::replace(&mut stops, true) {
                    notify(&socket, "STOPPING=1\n");
                }
                notify(&socket, &state(&mut job_state, &run_state, limit.is_some()));
                if over.recv_timeout(every) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
            if !stops {
                notify(&socket, "STOPPING=1\n");
            }
        };
        let thread = thread::Builder::new().name("notify".to_owned()).spawn(work);
        Notifier { current, running: thread.ok().map(|thread| (running, thread)) }
    }

    /// Reports on another run from now on.
    pub(super) fn follow(&self, run_state: &Arc<RunState>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::clone(run_state);
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        if let Some((running, thread)) = self.running.take() {
            drop(running);
            let _ = thread.join();
        }
    }
}

/// The sentence; and that the process is alive, unless a restart would help.
fn state(job_state: &mut JobState, run_state: &RunState, watched: bool) -> String {
    let process = job_state.facts.process;
    job_state.update(&[sample(run_state, process, now_ms(), &mut MetricHosts::default())]);
    let text: String = job_state.sentence.text.chars().filter(|c| !c.is_control()).collect();
    let alive = if watched && job_state.live.is_ok() { "WATCHDOG=1\n" } else { "" };
    format!("STATUS={text}\n{alive}")
}

fn connect(name: &str) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match name.strip_prefix('@') {
        Some(hidden) => socket.connect_addr(&SocketAddr::from_abstract_name(hidden)?)?,
        None => socket.connect(name)?,
    }
    socket.set_write_timeout(Some(Duration::from_secs(1)))?;
    Ok(socket)
}

fn notify(socket: &UnixDatagram, what: &str) {
    if let Err(why) = socket.send(what.as_bytes()) {
        debug!("cannot report {:?} to systemd: {why}", what.lines().next());
    }
}
