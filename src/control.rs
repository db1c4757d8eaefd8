//! What threads and workers of one process tell each other: stop, fail, and how it goes.
//!
//! Nothing here takes part in the result: the numbers are for people, the flags end the run.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::budget::Budget;
use crate::time::EventTime;

/// Why a run cannot go on. Retrying is over when one of these exists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// What was typed or set is wrong, or something else that waiting does not mend: a right that
    /// is missing, records that are gone. Somebody has to act before the next start.
    Config(String),
    /// Another instance of the job has taken over.
    Fenced(String),
    /// Another process of the cluster is lost.
    Peer(String),
    /// The database is as it was earlier: a start goes on from there.
    GoneBack(String),
    /// Something outside has failed and may heal: another start may succeed.
    World(String),
}

impl Fault {
    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Fault::World(_) | Fault::GoneBack(_) => 1,
            Fault::Config(_) => 2,
            Fault::Fenced(_) => 3,
            Fault::Peer(_) => 4,
        }
    }

    /// The fault with this exit code; any other code counts as 1.
    pub fn with_code(code: u8, why: String) -> Self {
        match code {
            2 => Fault::Config(why),
            3 => Fault::Fenced(why),
            4 => Fault::Peer(why),
            _ => Fault::World(why),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Config(why)
            | Fault::Fenced(why)
            | Fault::World(why)
            | Fault::GoneBack(why)
            | Fault::Peer(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Fault {}

/// Shared by all threads of a process.
#[derive(Default)]
pub struct Control {
    /// Shared with the control of a run that goes on after this one.
    stop: Arc<AtomicBool>,
    fault: Mutex<Option<Fault>>,
    failed: AtomicBool,
    abandoned: AtomicBool,
    /// The numbers of this process.
    pub gauges: Gauges,
    /// The memory for what is in flight in this process.
    pub memory: Budget,
}

/// How it goes, for the status line. Counters count this run; gauges say how it is now.
#[derive(Default)]
pub struct Gauges {
    /// Records read.
    pub records: AtomicU64,
    /// Records that became dead letters.
    pub dead: AtomicU64,
    /// Sessions now open.
    pub open_sessions: AtomicI64,
    /// Rows written for sessions that closed.
    pub rows: AtomicU64,
    /// Late sessions that were merged with the table.
    pub late: AtomicU64,
    /// Transactions committed.
    pub commits: AtomicU64,
    /// The watermark in milliseconds; [`EventTime::NEVER`] is told by `has_watermark`.
    watermark_ms: AtomicI64,
    has_watermark: AtomicBool,
    /// Lanes that have something to commit and have not yet done it.
    pub lanes_committing: AtomicU64,
    /// The last epoch that is durable everywhere.
    pub durable_epoch: AtomicU64,
    /// Shards whose open sessions are to be loaded at the start, and how many are.
    pub shards_to_load: AtomicU64,
    pub shards_loaded: AtomicU64,
    /// Epochs that are to be read again at the start, and how many are; each counts once a worker.
    pub replay_epochs: AtomicU64,
    pub replayed_epochs: AtomicU64,
    /// Offsets behind open transactions that a bounded run does not read.
    pub held_back: AtomicU64,
    /// Records that a bounded run has before it, when that is known.
    pub records_ahead: AtomicU64,
    /// Readers that have begun.
    pub readers: AtomicU64,
    /// Records of all partitions that are there to be read.
    pub records_behind: AtomicI64,
    /// Partitions of which nobody has said yet where they end.
    pub ends_unknown: AtomicI64,
}

impl Gauges {
    /// Sets the watermark.
    pub fn set_watermark(&self, watermark: EventTime) {
        if watermark > EventTime::NEVER {
            self.watermark_ms.store(watermark.millis(), Relaxed);
            self.has_watermark.store(true, Relaxed);
        }
    }

    /// How many records are there to be read; `None` as long as that is not known of all
    /// partitions.
    pub fn lag(&self) -> Option<u64> {
        let known = self.readers.load(Relaxed) > 0 && self.ends_unknown.load(Relaxed) <= 0;
        known.then(|| self.records_behind.load(Relaxed).max(0) as u64)
    }

    /// The watermark; `None` while no event has moved it.
    pub fn watermark(&self) -> Option<EventTime> {
        let millis = self.watermark_ms.load(Relaxed);
        self.has_watermark.load(Relaxed).then(|| EventTime::from_millis(millis))
    }
}

impl Control {
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
        Control { stop: Arc::clone(&self.stop), ..Control::default() }
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
