//! How a run is told to stop, and why it failed: shared by all threads of a process.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use sessionizer_core::fault::Fault;

use crate::dataflow::budget::Budget;
use crate::dataflow::metrics::Metrics;

/// Shared by all threads of a process.
#[derive(Default)]
pub struct RunState {
    /// Shared with the control of a run that goes on after this one.
    stop: Arc<AtomicBool>,
    fault: Mutex<Option<Fault>>,
    failed: AtomicBool,
    abandoned: AtomicBool,
    /// The numbers of this process.
    pub metrics: Metrics,
    /// The memory for what is in flight in this process.
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

    /// For a run that goes on in this process after this one: only the wish to stop is the same.
    pub fn successor(&self) -> Self {
        RunState { stop: Arc::clone(&self.stop), ..RunState::default() }
    }

    /// Ends the run at once and leaves what is not committed to the next start.
    pub fn abandon(&self) {
        self.abandoned.store(true, Relaxed);
    }

    /// Whether the run ends without a last commit.
    pub fn abandoned(&self) -> bool {
        self.abandoned.load(Relaxed)
    }

    /// Whether the run ends, for whatever reason.
    pub fn ending(&self) -> bool {
        self.stopping() || self.failed() || self.abandoned()
    }

    /// Ends the run; the first fault is the one that is told.
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
