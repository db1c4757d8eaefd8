//! What this process waits for, for the status line.
//!
//! Code that waits holds a [`WaitGuard`] for as long as it does. There is one list for the process,
//! as there is one log and one terminal.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Something outside that does not answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wait {
    /// What is waited for: `Kafka at broker:9092`.
    pub what: String,
    /// Why it takes so long, if known.
    pub why: Option<String>,
    pub since: Instant,
    /// When the wait is given up; `None` means never.
    pub until: Option<Instant>,
    /// Whether it is tried again and again; otherwise an answer is outstanding.
    pub retries: bool,
}

#[derive(Default)]
struct List {
    next: u64,
    waits: BTreeMap<u64, Wait>,
}

static LIST: Mutex<List> = Mutex::new(List { next: 0, waits: BTreeMap::new() });

fn list() -> MutexGuard<'static, List> {
    LIST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A wait in progress. Dropping this ends it.
#[derive(Debug)]
pub struct WaitGuard(u64);

impl WaitGuard {
    /// Begins to wait for `what`, for at most `timeout` from now.
    pub fn new(what: impl Into<String>, timeout: Option<Duration>) -> Self {
        let since = Instant::now();
        let until = timeout.and_then(|timeout| since.checked_add(timeout));
        Self::add(Wait { what: what.into(), why: None, since, until, retries: true })
    }

    /// Notes that an answer of `what` has been outstanding since some time ago.
    pub fn for_answer(what: impl Into<String>, since: Instant) -> Self {
        Self::add(Wait { what: what.into(), why: None, since, until: None, retries: false })
    }

    fn add(wait: Wait) -> Self {
        let mut list = list();
        let id = list.next;
        list.next += 1;
        list.waits.insert(id, wait);
        WaitGuard(id)
    }

    /// Says why it takes so long.
    pub fn because(&self, why: &str) {
        if let Some(wait) = list().waits.get_mut(&self.0) {
            wait.why = Some(why.to_owned());
        }
    }
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        list().waits.remove(&self.0);
    }
}

/// Whether something is waited for whose name begins like this.
pub fn waits_for(beginning: &str) -> bool {
    list().waits.values().any(|wait| wait.what.starts_with(beginning))
}

/// All waits, the longest first.
pub fn all() -> Vec<Wait> {
    list().waits.values().cloned().collect()
}

/// The wait that has lasted longest.
pub fn longest() -> Option<Wait> {
    list().waits.values().next().cloned()
}
