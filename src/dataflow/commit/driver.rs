//! Drives a writer from a thread of its own, so that a slow ledger does not keep the worker from
//! reading.
//!
//! It decides when a writer steps, how long it waits after a failure, and when a ledger that does
//! not answer is reported. What a step does is the writer's own business.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use sessionizer_core::fault::Fault;
use sessionizer_core::time::Epoch;
use timely::scheduling::SyncActivator;

use crate::dataflow::commit::writer::{StepOutcome, Writer, WriterEpoch};
use crate::dataflow::messages::Change;
use crate::dataflow::run_state::RunState;
use crate::ui::text;
use crate::ui::waiting::{Awaited, WaitGuard};

/// How long a writer waits between attempts, at least and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// A ledger that has not answered for this long is reported.
const REPORT_AFTER: Duration = Duration::from_secs(10);

/// Drives a writer on its own thread: takes epochs as they come, commits them, and acknowledges
/// them, until the operator is gone or the run ends.
pub fn run(
    mut writer: Writer,
    inbox: &Receiver<WriterEpoch>,
    acknowledge: &Sender<(Epoch, Vec<Change>)>,
    waker: &SyncActivator,
) -> Result<(), Fault> {
    let mut backoff = BACKOFF.0;
    let steps = listen(writer.number());
    loop {
        inbox.try_iter().for_each(|part| writer.submit(part));
        // A writer that is failing has reported it already.
        let failing = writer.is_failing();
        if !failing {
            let _ = steps.send(None);
        }
        let stepped = writer.step()?;
        if !failing {
            let _ = steps.send(Some(matches!(stepped, StepOutcome::Durable(..))));
        }
        match stepped {
            StepOutcome::Durable(upto, changes) => {
                backoff = BACKOFF.0;
                if acknowledge.send((upto, changes)).is_err() {
                    return Ok(());
                }
                let _ = waker.activate(); // Fails only when the worker is gone.
            }
            StepOutcome::Idle => match inbox.recv() {
                Ok(part) => writer.submit(part),
                Err(_) => return Ok(()),
            },
            StepOutcome::Failed => {
                if !wait(backoff, writer.run_state()) {
                    return Ok(()); // The next start rereads what is not committed.
                }
                backoff = (backoff * 2).min(BACKOFF.1);
            }
        }
    }
}

/// Watches a writer from a thread of its own. The writer sends `None` when it begins a step, and
/// `Some` when it ends one (with or without a commit). While the ledger does not answer, the writer
/// itself cannot report anything.
fn listen(writer: u32) -> Sender<Option<bool>> {
    let (sender, steps) = channel();
    let listen = move || {
        while steps.recv().is_ok() {
            let began = Instant::now();
            if steps.recv_timeout(REPORT_AFTER) != Err(RecvTimeoutError::Timeout) {
                continue;
            }
            let waiting = WaitGuard::for_answer(Awaited::Postgres(None), began);
            waiting.because("it has not answered a commit: a lock, a slow disk, or the network");
            log::warn!(
                writer = writer;
                "writer {writer}: Postgres has not answered for 10 s: a lock, a slow disk, or \
                 the network; waiting, and reading stops meanwhile"
            );
            if let Ok(Some(true)) = steps.recv() {
                let lasted = text::duration(began.elapsed());
                log::info!(
                    writer = writer;
                    "writer {writer}: Postgres has answered, after {lasted}"
                );
            }
        }
    };
    let thread = thread::Builder::new().name(format!("writer-{writer}-silence"));
    thread.spawn(listen).expect("a thread can be started");
    sender
}

/// Waits; returns `false` if the run ends meanwhile.
fn wait(backoff: Duration, run_state: &RunState) -> bool {
    let until = Instant::now() + backoff;
    while Instant::now() < until {
        if run_state.failed() || run_state.abandoned() {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    true
}
