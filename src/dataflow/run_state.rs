//! The stop request and the failure of a run: shared by all threads of a process.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use sessionizer_core::fault::Fault;

use crate::dataflow::budget::Budget;
use crate::dataflow::metrics::Metrics;

/// The state of a run, shared by all threads of a process.
#[derive(Default)]
pub struct RunState {
    /// Shared with the run that follows this one, if any.
    stop: Arc<AtomicBool>,
    fault: Mutex<Option<Fault>>,
    failed: AtomicBool,
    abandoned: AtomicBool,
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
}
