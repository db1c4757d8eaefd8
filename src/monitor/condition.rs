//! The condition of the job: the one judgement on which all displays rely.
//!
//! A pure function of the situation. The sentence of the page (`sentence.rs`) and the line in the
//! terminal (`job::status_line`) only put it into words, so they cannot contradict each other.
//!
//! The first of these that applies counts: the run has ended; it is stopping; it waits for
//! something; it is still starting; a backlog is left; a partition holds the output back; nothing
//! arrives; and otherwise the job is up to date.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ui::waiting::Awaited;

/// A backlog is worth mentioning if reading it takes longer than this.
const BACKLOG_THRESHOLD: Duration = Duration::from_secs(3);
/// Silence is worth mentioning after this long without a new record.
const QUIET_THRESHOLD: Duration = Duration::from_secs(10);

/// The facts to judge.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Situation {
    /// How the run has ended, if it has.
    pub ended: Option<Ended>,
    pub stopping: bool,
    /// Epochs that still have to be committed.
    pub commits_left: u64,
    pub wait: Option<WaitStatus>,
    pub stage: Stage,
    /// Records that are available and not yet read, if known.
    pub lag: Option<u64>,
    /// In a bounded run: how many records it reads in all.
    pub ahead: Option<u64>,
    /// Records a second.
    pub rate: f64,
    /// Records read in this run.
    pub records: u64,
    /// How long ago the last record was read.
    pub quiet: Duration,
    /// The partition that holds the output back.
    pub held_back: Option<HeldBack>,
    /// How long it takes from an event's arrival in Kafka until it is durable.
    pub behind: Option<Duration>,
    /// Whether there are partitions of which nobody knows where they end.
    pub unanswered: bool,
}

/// How a run has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    Stopped,
    /// It was asked to stop, and ended without its last commit.
    Uncommitted(String),
    Fenced,
    Failed(String),
}

/// Something outside that does not answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WaitStatus {
    pub what: Awaited,
    pub why: Option<String>,
    pub lasts_ms: u64,
    /// After how much longer the job gives up; `None` means never.
    pub left_ms: Option<u64>,
    /// Whether it is tried again and again; otherwise an answer is outstanding.
    pub retries: bool,
}

/// How far a run has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Stage {
    /// Nothing is known yet.
    #[default]
    Connecting,
    /// Open sessions are being loaded, shard by shard.
    Loading {
        loaded: u64,
        all: u64,
    },
    /// Epochs that were read before but are not in a snapshot are being replayed.
    Replaying {
        percent: u64,
    },
    Running,
}

/// A partition that holds the output back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HeldBack {
    pub topic: String,
    pub number: i32,
    pub since_ms: u64,
    /// The age of the watermark.
    pub watermark_age: Option<Duration>,
    /// Its next records belong to a transaction that is open.
    pub by_transaction: bool,
    pub why: Option<String>,
}

/// The condition of the job.
#[derive(Clone, PartialEq, Debug)]
pub enum Condition {
    Ended(Ended),
    Stopping {
        commits_left: u64,
        wait: Option<WaitStatus>,
    },
    Waiting(WaitStatus),
    Connecting,
    Loading {
        loaded: u64,
        all: u64,
    },
    Replaying {
        percent: u64,
    },
    /// A bounded run has read this much of what it has to read.
    ReadingToEnd {
        percent: u64,
        left: Option<Duration>,
        rate: f64,
    },
    CatchingUp {
        left: Duration,
        rate: f64,
    },
    HeldBack(HeldBack),
    /// Nothing is left to read, and nothing has arrived for a while.
    Quiet {
        lasts: Duration,
        /// Whether this run has read anything.
        read: bool,
    },
    UpToDate {
        behind: Option<Duration>,
        read: bool,
    },
}

/// Judges the condition of the job.
pub fn judge(at: &Situation) -> Condition {
    if let Some(ended) = &at.ended {
        return Condition::Ended(ended.clone());
    }
    if at.stopping {
        return Condition::Stopping { commits_left: at.commits_left, wait: at.wait.clone() };
    }
    if let Some(wait) = &at.wait {
        return Condition::Waiting(wait.clone());
    }
    match at.stage {
        Stage::Connecting => Condition::Connecting,
        Stage::Loading { loaded, all } => Condition::Loading { loaded, all },
        Stage::Replaying { percent } => Condition::Replaying { percent },
        Stage::Running => running(at),
    }
}

fn running(at: &Situation) -> Condition {
    let (lag, rate) = (at.to_read(), at.rate);
    let left = left(lag, rate);
    if let Some(ahead) = at.ahead.filter(|ahead| *ahead > 0) {
        let percent = (at.records.min(ahead) as u128 * 100 / u128::from(ahead)) as u64;
        let left = left.filter(|left| *left >= Duration::from_secs(1));
        return Condition::ReadingToEnd { percent, left, rate };
    }
    // Its records count as a backlog, and no reading makes it shorter.
    if let Some(held) = at.held_back.as_ref().filter(|held| held.by_transaction) {
        return Condition::HeldBack(held.clone());
    }
    if let Some(left) = left.filter(|left| *left > BACKLOG_THRESHOLD) {
        return Condition::CatchingUp { left, rate };
    }
    if let Some(held) = &at.held_back {
        return Condition::HeldBack(held.clone());
    }
    let read = at.records > 0;
    if lag.unwrap_or(0) == 0 && !at.unanswered && at.quiet >= QUIET_THRESHOLD {
        return Condition::Quiet { lasts: at.quiet, read };
    }
    Condition::UpToDate { behind: at.behind, read }
}

impl Situation {
    /// How much is left to read: to the end of a bounded run, otherwise everything that Kafka has.
    pub fn to_read(&self) -> Option<u64> {
        match self.ahead {
            Some(ahead) => Some(ahead.saturating_sub(self.records)),
            None => self.lag,
        }
    }
}

/// How long it takes to read what is left; `None` if nothing is, or if that is not known.
pub fn left(lag: Option<u64>, rate: f64) -> Option<Duration> {
    let lag = lag.filter(|lag| *lag > 0 && rate >= 0.5)?;
    Some(Duration::from_secs_f64((lag as f64 / rate).min(1e9)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live() -> Situation {
        Situation {
            stage: Stage::Running,
            records: 1_000,
            rate: 500.0,
            lag: Some(12),
            behind: Some(Duration::from_millis(440)),
            ..Situation::default()
        }
    }

    #[test]
    fn what_hinders_comes_before_what_progresses() {
        let mut at = Situation { lag: Some(1_000_000), ..live() };
        at.held_back = Some(HeldBack::default());
        assert!(matches!(judge(&at), Condition::CatchingUp { .. }));
        at.held_back = Some(HeldBack { by_transaction: true, ..HeldBack::default() });
        assert!(matches!(judge(&at), Condition::HeldBack(_)));
        let what = Awaited::Postgres(None);
        let wait = WaitStatus { what, why: None, lasts_ms: 0, left_ms: None, retries: false };
        at.wait = Some(wait);
        assert!(matches!(judge(&at), Condition::Waiting(_)));
        at.stopping = true;
        assert!(matches!(judge(&at), Condition::Stopping { wait: Some(_), .. }));
        at.ended = Some(Ended::Fenced);
        assert_eq!(judge(&at), Condition::Ended(Ended::Fenced));
    }

    #[test]
    fn a_backlog_is_named_only_if_it_takes_long() {
        let named = |lag, rate| {
            let at = Situation { lag: Some(lag), rate, ..live() };
            matches!(judge(&at), Condition::CatchingUp { .. })
        };
        assert!(!named(1_500, 500.0));
        assert!(named(1_600, 500.0));
        assert!(!named(1_600, 0.0));
    }

    #[test]
    fn a_bounded_run_counts_down_to_its_own_end() {
        let at = |records, lag| {
            let at = Situation { ahead: Some(2_000), records, lag, ..live() };
            (at.to_read(), judge(&at))
        };
        let reads = |percent, seconds: Option<u64>| Condition::ReadingToEnd {
            percent,
            left: seconds.map(Duration::from_secs),
            rate: 500.0,
        };
        // What has arrived since its start is not read.
        assert_eq!(at(500, Some(1_000_000)), (Some(1_500), reads(25, Some(3))));
        assert_eq!(at(1_999, None), (Some(1), reads(99, None)));
        assert_eq!(at(2_000, Some(7)), (Some(0), reads(100, None)));
        // Records that a replay rereads come on top.
        assert_eq!(at(2_500, None), (Some(0), reads(100, None)));
    }

    #[test]
    fn silence_is_named_after_ten_seconds_if_nothing_is_left() {
        let quiet = |seconds, lag| {
            let quiet = Duration::from_secs(seconds);
            judge(&Situation { quiet, lag, rate: 0.0, ..live() })
        };
        let up_to_date = Condition::UpToDate { behind: live().behind, read: true };
        assert_eq!(quiet(9, Some(0)), up_to_date);
        let lasts = Duration::from_secs(10);
        assert_eq!(quiet(10, Some(0)), Condition::Quiet { lasts, read: true });
        assert_eq!(quiet(10, Some(1)), up_to_date);
        let lasts = Duration::from_secs(10);
        let at = Situation { quiet: lasts, lag: Some(0), unanswered: true, ..live() };
        assert_eq!(judge(&at), up_to_date, "nobody knows whether there is more");
    }
}
