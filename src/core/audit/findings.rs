//! The input of a comparison besides events and rows, and its findings.

use crate::audit::{Day, DayDifference};
use crate::key::Key;
use crate::plan::ShardProgress;
use crate::session::Span;
use crate::time::{EventTime, Gap};

/// The rules of a comparison, whatever the proof.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules {
    pub gap: Gap,
    /// The time from the last event of a session to the `session_end` of its row.
    pub end_after_ms: i64,
    /// Whether the table had rows before the job. If so, nothing is ever sealed.
    pub found_rows: bool,
    /// The newest end of those rows, if it is known: a row that begins later is the job's own.
    pub found_rows_to: Option<EventTime>,
    /// How many differences of each kind are kept, to be shown.
    pub shown: usize,
    /// By shard: sessions that end before this must be in the table.
    pub closes_before: Vec<EventTime>,
}

/// How a row and the batch answer differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Difference {
    /// A session of the batch answer has no row.
    Missing,
    /// A row is not a session of the batch answer.
    Wrong,
}

/// Whether the older events of late keys are known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OldEvents {
    /// They are not needed.
    NotNeeded,
    /// All of them were passed to [`Comparison::old_event`](crate::audit::Comparison::old_event).
    Read,
    /// Kafka no longer has them.
    Gone,
}

/// What a comparison found.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Findings {
    /// Rows that are sessions of the batch answer, compared individually.
    pub right: u64,
    /// Rows of days whose sums are still those that were verified.
    pub sealed: u64,
    /// Rows that are part of a session that is open again.
    pub part_of_open: u64,
    /// Open sessions: their rows are written when they close.
    pub open: u64,
    /// If the table had rows before the job: rows that hold events from before and events of the
    /// job.
    pub joined: u64,
    /// If the table had rows before the job: rows that hold no event of the job.
    pub before: u64,
    /// Sessions that are dead letters, in whole or in part, because the table refused them.
    pub refused: u64,
    pub missing: u64,
    pub wrong: u64,
    /// Rows with late events and events that Kafka no longer has.
    pub unverifiable: u64,
    /// The first differences.
    pub shown: Vec<(Difference, Key, Span)>,
    /// Days of sealed sessions whose rows have changed since they were verified.
    pub days: Vec<DayDifference>,
    /// Days of which all rows were removed on purpose, and how many.
    pub removed: Vec<(Day, i64)>,
    /// The day of which some rows were removed together with those days.
    pub thinned: Option<DayDifference>,
    /// Days that were sealed anew, because they cannot be verified, and how many rows they have.
    pub sealed_anew: Vec<(Day, i64)>,
    /// By shard: what its progress should be, except for the epoch.
    pub progress: Vec<ShardProgress>,
}

impl Findings {
    /// The number of differences between the table and the batch answer.
    pub fn differences(&self) -> u64 {
        self.missing + self.wrong + self.days.len() as u64
    }
}
