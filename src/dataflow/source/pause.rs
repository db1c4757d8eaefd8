//! Keeps a source within the memory of its process: how many bytes it may read at a time, and what
//! is reported while it may read none.

use std::sync::Arc;

use sessionizer_core::time::Epoch;

use crate::dataflow::run_state::RunState;
use crate::ui::waiting::{Awaited, WaitGuard};

/// A pause is reported once nothing has been released for this many milliseconds.
const REPORT_AFTER_MS: u64 = 2_000;

/// What one source may take from the budget.
pub struct Pause {
    run_state: Arc<RunState>,
    worker: usize,
    /// Whether it reports that it waits; only one source of a process does.
    reports: bool,
    /// How many bytes may be read before the budget is asked again.
    left: u64,
    /// Everything before this epoch was durable when last checked; at first, nothing is.
    durable: Option<Epoch>,
    since_ms: Option<u64>,
    waiting: Option<WaitGuard>,
}

impl Pause {
    pub fn new(run_state: &Arc<RunState>, worker: usize, reports: bool) -> Self {
        Pause {
            run_state: Arc::clone(run_state),
            worker,
            reports,
            left: 0,
            durable: Some(0),
            since_ms: None,
            waiting: None,
        }
    }

    /// Releases everything before this epoch, which is durable; `None`: everything.
    pub fn release(&mut self, durable: Option<Epoch>) {
        if self.durable != durable {
            self.durable = durable;
            if self.run_state.memory.release_durable(durable) {
                self.resume();
            }
        }
    }

    /// Asks how much may be read now; returns whether it is anything.
    pub fn may_read(&mut self, now_ms: u64) -> bool {
        let memory = &self.run_state.memory;
        self.left = memory.allowance(self.worker);
        if self.left > 0 {
            self.resume();
            return true;
        }
        let since_ms = *self.since_ms.get_or_insert(now_ms);
        if self.reports && now_ms.saturating_sub(since_ms) >= REPORT_AFTER_MS {
            let waiting = self.waiting.get_or_insert_with(|| WaitGuard::new(Awaited::Memory, None));
            waiting.because(&format!("{memory} wait to be committed (--memory)"));
        }
        false
    }

    fn resume(&mut self) {
        (self.since_ms, self.waiting) = (None, None);
    }

    /// How many bytes may still be read.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Notes that this many bytes have been read.
    pub fn take(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
    }

    /// What to add to a warning that nothing becomes durable, if that is why nothing is read.
    pub fn explain(&self) -> String {
        let memory = &self.run_state.memory;
        match memory.is_used_up() {
            true => format!(". The memory for data in flight is used up (--memory): {memory}"),
            false => String::new(),
        }
    }
}
