//! What an audit has verified, and how the next one continues from it. Pure.
//!
//! An audit compares the table with the batch answer: the sessions of every event that the job has
//! read. It keeps that answer as a [`Proof`], so that the next audit reads only newer events:
//!
//! ```text
//!                 sealed_before                       watermark      event time ->
//!   sealed: sums by day │ kept: each closed session      │ open sessions
//! ```
//!
//! - **Kept** are the sessions that are open, and those that ended within `--keep` of the
//!   watermark, so that late events can be merged with them. Their rows are compared individually.
//! - **Sealed** is everything older: of each day, by the end of the session, the number of rows and
//!   of events, and the sum of the hashes of all rows. A row that is changed, removed or added
//!   changes the sum of its day. Only a session whose row was found is sealed.
//!
//! The proof holds what the table *should* hold. So every later audit reports a difference again,
//! until the row is as it should be.
//!
//! # Late events
//!
//! A session that is sealed ends before `sealed_before`, so an event that joins it is at most a gap
//! later than that. A key with such an event is *late*: its sealed sessions have to be known before
//! it can be compared. [`Comparison::finish`] gets them from one of three sources:
//!
//! 1. If the sums agree although the rows of late keys are counted as they are, no sealed session
//!    has changed. Then those rows are the sealed sessions.
//! 2. Otherwise the older part of the topic is reread, for late keys only.
//! 3. If Kafka no longer has it, rows that hold both a late event and older ones are unverifiable.
//!    They are counted, and the days that they may affect are sealed anew, as the table has them.
//!    The number of events of the shard is still checked.
//!
//! # Retention of the table
//!
//! If all rows of a day are gone, and those of all older days, they count as removed on purpose.
//! Once days have gone like that, the oldest day that is left may lack rows, too.

mod comparison;
mod findings;
mod state;
mod sums;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use self::comparison::Comparison;
pub use self::findings::{Difference, Findings, OldEvents, Rules};
pub use self::sums::{DayDifference, Sums};
use crate::binding::Offset;
use crate::key::Key;
use crate::plan::ShardProgress;
use crate::session::Span;
pub use crate::time::Day;
use crate::time::{Epoch, EventTime};

/// What audits have verified so far.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proof {
    /// Sessions whose last event is before this are sealed, if their row was found.
    pub sealed_before: EventTime,
    /// The sums of sealed sessions, by the day of their end.
    pub days: BTreeMap<Day, Sums>,
    /// The newest day of which rows were removed from the table on purpose.
    pub removed_to: Option<Day>,
    /// All other sessions, ordered.
    pub kept: Vec<(Key, Span)>,
    /// By shard.
    pub shards: Vec<Counted>,
    /// By topic and partition, and then by shard: the offset after the last record that counts.
    pub ends: BTreeMap<(String, i32), Vec<Offset>>,
    /// The changes that there had been.
    pub history: JobHistory,
}

/// The records of a shard that were read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counted {
    /// The epoch that the shard had reached.
    pub epoch: Epoch,
    pub events: u64,
    /// Records that are not events.
    pub dead: u64,
}

/// Changes to what the job had already read. After any of them, an audit cannot continue.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct JobHistory {
    /// When the job was created, as text.
    pub created_at: String,
    /// How many losses of records were accepted.
    pub losses: u64,
    /// How many records were lost.
    pub lost: u64,
    /// In how many epochs a replay read other records than before.
    pub replays: u64,
}

impl Proof {
    /// The proof of a job that has read nothing.
    pub fn of_nothing(shards: usize) -> Self {
        Proof {
            sealed_before: EventTime::NEVER,
            days: BTreeMap::new(),
            removed_to: None,
            kept: Vec::new(),
            shards: vec![Counted::default(); shards],
            ends: BTreeMap::new(),
            history: JobHistory::default(),
        }
    }

    /// Why an audit cannot continue from this proof; `None` if it can.
    pub fn why_outdated(&self, history: &JobHistory, shards: &[ShardProgress]) -> Option<String> {
        if self.history.created_at != history.created_at || self.shards.len() != shards.len() {
            return Some("the job was created anew after the last audit".to_owned());
        }
        if self.history.losses != history.losses || self.history.lost != history.lost {
            return Some("the loss of records was accepted after the last audit".to_owned());
        }
        if self.history.replays != history.replays {
            return Some(
                "a replay read other records than before, after the last audit".to_owned(),
            );
        }
        let back = |(at, verified): (usize, &Counted)| {
            let now = shards[at].epoch;
            (now < verified.epoch).then(|| {
                format!(
                    "the database has gone back: shard {at} was verified up to epoch {}, and has \
                     reached {now}",
                    verified.epoch
                )
            })
        };
        self.shards.iter().enumerate().find_map(back)
    }

    /// The offset up to which the whole partition was verified.
    pub fn verified_to(&self, topic: &str, partition: i32) -> Option<Offset> {
        self.ends.get(&(topic.to_owned(), partition))?.iter().min().copied()
    }

    /// The kept sessions of a key.
    fn kept_of<'a>(&'a self, key: &Key) -> impl Iterator<Item = Span> + use<'a> {
        let from = self.kept.partition_point(|(other, _)| other < key);
        let upto = self.kept.partition_point(|(other, _)| other <= key);
        self.kept[from..upto].iter().map(|(_, span)| *span)
    }
}
