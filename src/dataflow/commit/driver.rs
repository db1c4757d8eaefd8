//! Drives a writer from a thread of its own, so that a slow ledger does not keep the worker from
//! reading.
//!
//! It decides when a writer steps, how long it waits after a failure, and when a ledger that does
//! not answer is reported. What a step does is the writer's own business.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use sessionizer_core::fault::Fault;
use sessionizer_core::time::Epoch;
use timely::scheduling::SyncActivator;

use crate::dataflow::commit::writer::{StepOutcome, Writer, WriterEpoch};
use crate::dataflow::messages::Change;
use crate::dataflow::ports::WhySilent;
use crate::dataflow::run_state::RunState;
use crate::ui::text;
use crate::ui::trouble::RepeatedFailure;
use crate::ui::waiting::{Awaited, WaitGuard};

/// How long a writer waits between attempts, at least and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// A ledger that has not answered for this long is reported.
const REPORT_AFTER: Duration = Duration::from_secs(10);
/// How often it is found out anew why it does not answer.
const ASK_AGAIN: Duration = Duration::from_secs(15);

/// Drives a writer on its own thread: takes epochs as they come, commits them, and acknowledges
/// them, until the operator is gone or the run ends.
pub fn run(
    mut writer: Writer,
    inbox: &Receiver<WriterEpoch>,
    acknowledge: &Sender<(Epoch, Vec<Change>)>,
    waker: &SyncActivator,
) -> Result<(), Fault> {
    let mut backoff = BACKOFF.0;
    let steps = listen(writer.number(), writer.why_silent());
    loop {
        inbox.try_iter().for_each(|part| writer.submit(part));
        // A writer that is failing has reported it already.
        let failing = writer.is_failing();
        if !failing {
            let _ = steps.send(Step::Began);
        }
        let stepped = writer.step()?;
        if !failing {
            let _ =
                steps.send(Step::Ended { durable: matches!(stepped, StepOutcome::Durable(..)) });
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

/// What a writer tells whoever watches it.
enum Step {
    Began,
    Ended { durable: bool },
}

/// Watches a writer from a thread of its own. While the ledger does not answer, the writer itself
/// cannot report anything.
fn listen(writer: u32, why_silent: Arc<Mutex<Option<WhySilent>>>) -> Sender<Step> {
    let (sender, steps) = channel();
    let listen = move || {
        while let Ok(step) = steps.recv() {
            if !matches!(step, Step::Began) {
                continue;
            }
            let began = Instant::now();
            if !matches!(steps.recv_timeout(REPORT_AFTER), Err(RecvTimeoutError::Timeout)) {
                continue;
            }
            let ended = wait_for_answer(writer, began, &steps, &why_silent);
            if let Ok(Step::Ended { durable: true }) = ended {
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

/// Reports for as long as it takes that a step does not end, and why. Returns its end.
fn wait_for_answer(
    writer: u32,
    began: Instant,
    steps: &Receiver<Step>,
    why_silent: &Mutex<Option<WhySilent>>,
) -> Result<Step, RecvTimeoutError> {
    const UNKNOWN: &str = "a lock, a slow disk, or the network";
    let waiting = WaitGuard::for_answer(Awaited::Postgres(None), began);
    waiting.because(&format!("it has not answered a commit: {UNKNOWN}"));
    let mut repeated = RepeatedFailure::default();
    let mut lasts = REPORT_AFTER;
    loop {
        let mut asked = why_silent.lock().unwrap_or_else(PoisonError::into_inner).take();
        let why = match asked.as_mut().and_then(|why_silent| why_silent()) {
            Some(lock) => format!("it waits for {lock}"),
            None => UNKNOWN.to_owned(),
        };
        // Unless the writer has got another connection meanwhile, this may be asked again.
        let mut slot = why_silent.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = slot.take().or(asked);
        drop(slot);
        // The answer may have come while this was found out.
        match steps.try_recv() {
            Err(TryRecvError::Empty) => {}
            ended => return ended.map_err(|_| RecvTimeoutError::Disconnected),
        }
        waiting.because(&format!("it has not answered a commit: {why}"));
        if repeated.record(lasts).is_some() {
            let lasts = text::duration(lasts);
            log::warn!(
                writer = writer;
                "writer {writer}: Postgres has not answered for {lasts}: {why}; waiting, and \
                 reading stops meanwhile"
            );
        }
        match steps.recv_timeout(ASK_AGAIN) {
            Err(RecvTimeoutError::Timeout) => lasts = began.elapsed(),
            ended => return ended,
        }
    }
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
