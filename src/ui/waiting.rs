//! What this process waits for, for the status line.
//!
//! Code that waits holds a [`WaitGuard`] for as long as it does. There is one list for the process,
//! as there is one log and one terminal.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What is waited for. Displayed as `Kafka at broker:9092`, `Postgres` or `memory`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Awaited {
    /// With the addresses of the brokers.
    Kafka(String),
    /// With its address, unless it has been reached before.
    Postgres(Option<String>),
    Memory,
    /// Another process of the cluster, by its name.
    Process(String),
}

impl Awaited {
    pub fn is_kafka(&self) -> bool {
        matches!(self, Awaited::Kafka(_))
    }

    pub fn is_postgres(&self) -> bool {
        matches!(self, Awaited::Postgres(_))
    }
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Awaited::Kafka(brokers) => write!(f, "Kafka at {brokers}"),
            Awaited::Postgres(Some(url)) => write!(f, "Postgres at {url}"),
            Awaited::Postgres(None) => f.write_str("Postgres"),
            Awaited::Memory => f.write_str("memory"),
            Awaited::Process(name) => f.write_str(name),
        }
    }
}

/// Something outside that does not answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wait {
    pub what: Awaited,
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
    pub fn new(what: Awaited, timeout: Option<Duration>) -> Self {
        let since = Instant::now();
        let until = timeout.and_then(|timeout| since.checked_add(timeout));
        Self::add(Wait { what, why: None, since, until, retries: true })
    }

    /// Notes that an answer of `what` has been outstanding since some time ago.
    pub fn for_answer(what: Awaited, since: Instant) -> Self {
        Self::add(Wait { what, why: None, since, until: None, retries: false })
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

/// Whether Kafka is waited for.
pub fn waits_for_kafka() -> bool {
    list().waits.values().any(|wait| wait.what.is_kafka())
}

/// All waits, the longest first.
pub fn all() -> Vec<Wait> {
    list().waits.values().cloned().collect()
}

/// The wait that has lasted longest.
pub fn longest() -> Option<Wait> {
    list().waits.values().next().cloned()
}
