//! The metrics of a process, for the status line and the monitor. The operators and the start write
//! them.
//!
//! Three are read inside the dataflow: `open_sessions` decides whether partitions have to wait for
//! each other, and `rows` whether short epochs are committed together. Both affect only what is
//! read or committed at once, which is left to chance anyway; neither decides the content of a row.
//! `watermark` bounds which events may be late: a source reads it for durable epochs alone, for
//! which every worker has set it, so the bound is never too low.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64};

use sessionizer_core::time::EventTime;

use crate::dataflow::figures::Figures;

/// The metrics of a process. Counters cover this run; gauges show the current state.
#[derive(Default)]
pub struct Metrics {
    /// Records read.
    pub records: AtomicU64,
    /// Records that became dead letters.
    pub dead: AtomicU64,
    /// Sessions now open.
    pub open_sessions: AtomicI64,
    /// The memory of their tables, in bytes.
    pub state_bytes: AtomicI64,
    /// Rows written for sessions that closed.
    pub rows: AtomicU64,
    /// Late sessions that were merged with the table.
    pub late: AtomicU64,
    /// Transactions committed.
    pub commits: AtomicU64,
    /// The watermark in milliseconds; `has_watermark` stands for [`EventTime::NEVER`].
    watermark_ms: AtomicI64,
    has_watermark: AtomicBool,
    /// Writers that have something to commit and have not done so yet.
    pub writers_committing: AtomicU64,
    /// The last epoch that is durable everywhere.
    pub durable_epoch: AtomicU64,
    /// Shards whose open sessions have to be loaded at the start, and how many have been.
    pub shards_to_load: AtomicU64,
    pub shards_loaded: AtomicU64,
    /// Epochs that have to be replayed at the start, and how many have been; each counts once per
    /// worker.
    pub replay_epochs: AtomicU64,
    pub replayed_epochs: AtomicU64,
    /// Offsets held back by open transactions, which a bounded run does not read.
    pub held_offsets: AtomicU64,
    /// Records that a bounded run has to read, once that is known.
    pub records_ahead: AtomicU64,
    /// Readers that have begun.
    pub readers: AtomicU64,
    /// Records of all partitions that are available and not yet read.
    pub records_behind: AtomicI64,
    /// Partitions whose end is not known yet.
    pub ends_unknown: AtomicI64,
    /// Events of late sessions that were merged with the table.
    pub late_events: AtomicU64,
    /// What is not a single number.
    pub figures: Figures,
}

impl Metrics {
    /// Sets the watermark.
    pub fn set_watermark(&self, watermark: EventTime) {
        if watermark > EventTime::NEVER {
            self.watermark_ms.store(watermark.millis(), Relaxed);
            self.has_watermark.store(true, Relaxed);
        }
    }

    /// How many records are available and not yet read; `None` until that is known for all
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
