//! Anomalies: sessions, visitors, networks, hosts and partition clocks that stand out from what is
//! usual.
//!
//! Except for clocks and for marathons that are still open, the anomalies are a function of the
//! table and the watermark ([`batch`] is that function). A session is compared with the sessions of
//! its host that ended in the 24 complete hours before its own, a visitor with the visitors of the
//! day before. So a restart finds the same anomalies again, a query can check them, and only a
//! correction of the table withdraws one. An anomaly is not a claim that a visitor is a robot.
//!
//! A marathon that is still open follows from the open sessions, and its row takes it over.
//!
//! `thresholds` holds the thresholds, `history` the data they are computed from, `reason` the
//! wording. A session belongs to the hour of its `session_end`, which is final once the watermark
//! has passed it.

mod batch;
mod clock;
mod days;
mod history;
mod host;
mod network;
mod open;
mod reason;
mod rows;
mod state;
#[cfg(test)]
mod tests;
mod thresholds;
mod visits;

use serde::{Deserialize, Serialize};

use crate::session::Span;
use crate::time::EventTime;

pub use batch::{batch, visitors};
pub use clock::{ClockJudge, PartitionClock};
pub use days::{DayLimits, Frequent, HostDay, KEPT_DAYS, LIVE_DAYS};
pub use history::{
    BUCKET_MS, DAY_MS, Day, HOUR_MS, Hour, HourSums, Limits, NetworkSums, QUARTER_MS, SINGLES_MS,
    VisitorSums, bucket, day_is_known, judge_bucket, judge_network, judge_visitor,
};
pub use network::{Visitor, network};
pub use open::{OpenNow, OpenReport};
pub use rows::{Identity, MORE, rows};
pub use state::{
    DetectorBounds, DetectorChanges, DetectorState, HostHour, LIVE, RowChange, needed_from,
};
pub use thresholds::{Limit, Outlier, SETTINGS, Thresholds};

/// The part of a table row that matters here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Session<'a> {
    pub ip: &'a str,
    pub host: &'a str,
    pub span: Span,
    /// Its `session_end`.
    pub end: EventTime,
}

impl Session<'_> {
    /// From the first event to the last, in milliseconds.
    pub fn duration_ms(&self) -> u64 {
        self.span.duration_ms()
    }
}

/// Events a minute. A session shorter than a minute counts as one minute: pages that load ten images
/// in a second are not fast.
pub fn pace(span: &Span) -> u64 {
    let events = u128::from(span.count) * 60_000;
    u64::try_from(events / u128::from(span.duration_ms().max(60_000))).unwrap_or(u64::MAX)
}

/// The kind of an anomaly. The names are stored, so they never change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A session of many events, or with many in a short time.
    Burst,
    /// A session that lasts long.
    Marathon,
    /// A visitor who comes back many times a day.
    Repeat,
    /// A network whose visitors come back many times a day.
    Network,
    /// Far more sessions of a host in five minutes than is usual in the hour before.
    Surge,
    /// Far fewer sessions of a host in five minutes than is usual in the hour before.
    Fall,
    /// An unusually large share of sessions with a single event.
    Singles,
    /// A partition whose clock is off.
    Clock,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 8] = [
        Kind::Burst,
        Kind::Marathon,
        Kind::Repeat,
        Kind::Network,
        Kind::Surge,
        Kind::Fall,
        Kind::Singles,
        Kind::Clock,
    ];

    /// The name that is stored.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Burst => "burst",
            Kind::Marathon => "marathon",
            Kind::Repeat => "repeat",
            Kind::Network => "network",
            Kind::Surge => "surge",
            Kind::Fall => "fall",
            Kind::Singles => "singles",
            Kind::Clock => "clock",
        }
    }

    /// Whether it is judged by the day (UTC), whose start is then its time.
    pub fn is_by_day(self) -> bool {
        matches!(self, Kind::Repeat | Kind::Network | Kind::Clock)
    }

    /// The kind with this name.
    pub fn named(name: &str) -> Option<Self> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Something that stands out, identified by kind, host, subject and time.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Anomaly {
    pub kind: Kind,
    /// Empty for a clock.
    pub host: String,
    /// An address, a network or a partition; empty for a host as a whole.
    pub subject: String,
    /// The start of the session, of the day (UTC) or of the bucket.
    pub at: EventTime,
    /// In events, sessions, seconds or percent, depending on the kind.
    pub observed: u64,
    /// The usual value, in the same unit.
    pub expected: u64,
    /// The threshold that was crossed, in the same unit.
    pub threshold: u64,
    pub evidence: Evidence,
}

impl Anomaly {
    /// The hour it belongs to; from then on it is live for [`LIVE`] hours. That is the hour in
    /// which its session ended, or would end if no event came, `end_after_ms` after the last event,
    /// or in which its bucket began; for kinds that are judged by the day, the hour after that day.
    pub fn hour(&self, end_after_ms: i64) -> Hour {
        if self.kind.is_by_day() {
            return Day(Day::of(self.at).0 + 1).first_hour();
        }
        match self.evidence {
            Evidence::Session { duration_ms, .. }
            | Evidence::Pace { duration_ms, .. }
            | Evidence::Open { duration_ms, .. } => {
                Hour::of(self.at.plus(duration_ms as i64).plus(end_after_ms))
            }
            _ => Hour::of(self.at),
        }
    }

    /// The event time that the watermark had to pass before the anomaly was known; `None` for kinds
    /// that are judged by the day, because that depends on many sessions, and for open sessions,
    /// because that depends on when it was looked at.
    pub fn known(&self, end_after_ms: i64) -> Option<EventTime> {
        if self.kind.is_by_day() || matches!(self.evidence, Evidence::Open { .. }) {
            return None;
        }
        Some(match (self.kind, self.evidence) {
            (_, Evidence::Session { duration_ms, .. } | Evidence::Pace { duration_ms, .. }) => {
                self.at.plus(duration_ms as i64).plus(end_after_ms)
            }
            (Kind::Surge | Kind::Fall, _) => self.at.plus(BUCKET_MS),
            (Kind::Singles, _) => self.at.plus(SINGLES_MS),
            _ => self.at,
        })
    }

    /// What identifies it: kind, host, subject and time.
    pub fn identity(&self) -> (Kind, &str, &str, EventTime) {
        (self.kind, &self.host, &self.subject, self.at)
    }
}

/// The details that its reason mentions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Evidence {
    /// A session, and how many it was compared with; `rank` of them reached the expected value.
    Session { events: u64, duration_ms: u64, sessions: u64, rank: u64 },
    /// A session by its pace, and how many sessions of more than `burst.min` events it was compared
    /// with; `rank` of them reached the expected pace.
    Pace { events: u64, duration_ms: u64, sessions: u64, rank: u64 },
    /// The same of a session that is still open, with its events so far.
    Open { events: u64, duration_ms: u64, sessions: u64, rank: u64 },
    /// A visitor: its sessions on the day before, and how many visitors there were then.
    Visitor { before: u64, visitors: u64 },
    /// A network: its sessions on the day before, its addresses, the most sessions of one of them,
    /// and how many networks there were the day before.
    Network { before: u64, addresses: u64, most: u64, networks: u64 },
    /// Five minutes of a host.
    Bucket,
    /// A quarter of an hour of a host that has few sessions; its last five minutes begin at the time
    /// of the anomaly.
    Quarter,
    /// A quarter of an hour of a host, and how many sessions ended in it.
    Singles { sessions: u64 },
    /// A partition that is ahead of the others, or lags.
    Clock { ahead: bool },
    /// A row that counts others of its kind, host and hour.
    More,
}
