//! The stop request and the failure of a run: shared by all threads of a process.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sessionizer_core::fault::Fault;

use crate::dataflow::budget::Budget;
use crate::dataflow::metrics::Metrics;

/// What a stop request does to something that may be waiting and cannot notice it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Interruption {
    /// Nothing: the run notices the request and ends by itself.
    #[default]
    Noticed,
    /// It may be ended at any moment, with this message (unless it is empty) and exit code.
    Anywhere { message: &'static str, exit_code: u8 },
    /// A commit has begun: its outcome must be known before the process ends.
    Committing,
}

/// The state of a run, shared by all threads of a process.
#[derive(Default)]
pub struct RunState {
    /// Shared with the run that follows this one, if any.
    stop: Arc<AtomicBool>,
    fault: Mutex<Option<Fault>>,
    failed: AtomicBool,
    abandoned: AtomicBool,
    interruption: Mutex<Interruption>,
    /// The numbers of this process.
    pub metrics: Metrics,
    /// The memory for data in flight in this process.
    pub memory: Budget,
}

impl RunState {
    /// Asks for a clean stop: cut, snapshot, commit, end.
    pub fn request_stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Whether a clean stop was asked for.
    pub fn stopping(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// The state of a run that follows this one in the same process: only the stop request carries
    /// over.
    pub fn successor(&self) -> Self {
        RunState { stop: Arc::clone(&self.stop), ..RunState::default() }
    }

    /// Ends the run at once, and leaves everything uncommitted to the next start.
    pub fn abandon(&self) {
        self.abandoned.store(true, Relaxed);
    }

    /// Whether the run ends without a final commit.
    pub fn abandoned(&self) -> bool {
        self.abandoned.load(Relaxed)
    }

    /// Whether the run ends, for whatever reason.
    pub fn ending(&self) -> bool {
        self.stopping() || self.failed() || self.abandoned()
    }

    /// Ends the run; the first fault is the one that is reported.
    pub fn fail(&self, fault: Fault) {
        let mut slot = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(fault);
        self.failed.store(true, Relaxed);
    }

    /// Whether the run has failed.
    pub fn failed(&self) -> bool {
        self.failed.load(Relaxed)
    }

    /// The fault that ended the run.
    pub fn fault(&self) -> Option<Fault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says what a stop request may do from now on.
    pub fn set_interruption(&self, interruption: Interruption) {
        *self.interruption() = interruption;
    }

    /// Announces a commit, which is not interrupted. Refuses it if a stop was requested before.
    pub fn begin_commit(&self) -> bool {
        let mut interruption = self.interruption();
        let may_begin = !self.stopping();
        if may_begin {
            *interruption = Interruption::Committing;
        }
        may_begin
    }

    /// Calls `end` with what a stop request does now. No commit begins before it returns.
    pub fn interrupt<T>(&self, end: impl FnOnce(Interruption) -> T) -> T {
        let interruption = self.interruption();
        end(*interruption)
    }

    fn interruption(&self) -> MutexGuard<'_, Interruption> {
        self.interruption.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_begins_before_the_stop_or_not_at_all() {
        let run_state = RunState::default();
        let anywhere = Interruption::Anywhere { message: "stopped", exit_code: 1 };
        run_state.set_interruption(anywhere);
        assert!(run_state.begin_commit());
        run_state.request_stop();
        assert_eq!(run_state.interrupt(|now| now), Interruption::Committing);
        run_state.set_interruption(anywhere);
        assert!(!run_state.begin_commit(), "a stop was requested");
        assert_eq!(run_state.interrupt(|now| now), anywhere);
    }
}
