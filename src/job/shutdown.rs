//! How a run ends: workers finish, peers are told, and a process that hangs is ended.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, error};
use sessionizer_core::fault::Fault;
use timely::communication::WorkerGuards;

use crate::cluster::Cluster;
use crate::dataflow::run_state::RunState;

/// The longest that a worker sleeps before it looks at the flags of the run.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How long a failed process of a cluster may take to end by itself. Then it is ended: the others
/// are to be started again, and must not wait for a hang here.
const FAILED_EXIT_TIMEOUT: Duration = Duration::from_millis(1_500);

/// How long the end of a run waits for the peers to close their connections.
const PEER_CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn join_workers(guards: WorkerGuards<()>, run_state: &RunState) {
    for result in guards.join() {
        if let Err(why) = result {
            run_state.fail(Fault::environment(format!("a worker thread ended abnormally: {why}")));
        }
    }
}

/// Ends a process of a cluster. After a clean end, timely sends what it still has to send, and the
/// peers report that they are done. After any other end, nobody waits for anybody.
pub(super) fn end_cluster_process(
    cluster: &Cluster,
    guards: WorkerGuards<()>,
    ends: &Receiver<()>,
    workers: usize,
    run_state: &Arc<RunState>,
) {
    let mut running = workers;
    let mut failed_since = None;
    while running > 0 {
        match ends.recv_timeout(POLL_INTERVAL) {
            Ok(()) => running -= 1,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if run_state.failed()
            && failed_since.get_or_insert_with(Instant::now).elapsed() >= FAILED_EXIT_TIMEOUT
        {
            break;
        }
    }
    if run_state.failed() || run_state.abandoned() {
        // Its threads wait for peers that may be gone. They end with the process.
        std::mem::forget(guards);
        return;
    }
    cluster.finished();
    let (joined, all) = channel();
    let run_state = Arc::clone(run_state);
    thread::spawn(move || {
        join_workers(guards, &run_state);
        let _ = joined.send(());
    });
    if all.recv_timeout(PEER_CLOSE_TIMEOUT).is_err() {
        debug!("a peer has not closed its connection within {PEER_CLOSE_TIMEOUT:?}");
    }
}

/// Ends the process if it has failed and does not end by itself. Dropping the returned sender stops
/// the watch.
pub(super) fn watch_end(run_state: &Arc<RunState>) -> std::sync::mpsc::Sender<()> {
    let (running, over) = channel::<()>();
    let run_state = Arc::clone(run_state);
    let work = move || {
        while !run_state.failed() {
            if over.recv_timeout(POLL_INTERVAL) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
        if over.recv_timeout(FAILED_EXIT_TIMEOUT) == Err(RecvTimeoutError::Timeout)
            && let Some(fault) = run_state.fault()
        {
            error!("{fault}");
            signal_hook::low_level::exit(i32::from(fault.exit_code()));
        }
    };
    let thread = thread::Builder::new().name("watchdog".to_owned());
    thread.spawn(work).expect("a thread can be started");
    running
}
