//! The detectors of a worker, for the hosts whose rows are exchanged to it. They share an operator
//! with the window of the statistics: a row is exchanged and kept once for both.

use differential_dataflow::{AsCollection, VecCollection};
use serde::{Deserialize, Serialize};
use sessionizer_core::anomaly::{
    Anomaly, DayLimits, DetectorBounds, DetectorChanges, DetectorState, Frequent, HostDay,
    HostHour, Hour, Limits, RowChange, Thresholds, needed_from,
};
use sessionizer_core::session::Span;
use sessionizer_core::time::{Epoch, EventTime};
use timely::dataflow::StreamVec;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::dataflow::statistics::epochs::EpochInput;
use crate::dataflow::statistics::operator::{Output, give};
use crate::dataflow::statistics::quota::Share;
use crate::dataflow::statistics::sums::Row;
use crate::dataflow::statistics::watermarks::TableWatermark;

/// A first hour so early that every row is known.
const EVER: Hour = Hour(i64::MIN / 2);

/// How many rows may wait for those that the table had at the start.
const WAITING_ROWS: usize = 200_000;

/// What the detectors emit, as collections.
pub struct Detected<'scope> {
    /// Sessions that are large enough to stand out, by host and hour.
    pub large: VecCollection<'scope, Epoch, (HostHour, (String, Span)), i64>,
    /// What they are compared with.
    pub limits: VecCollection<'scope, Epoch, (HostHour, Limits), i64>,
    /// Anomalies of whole hosts, and of sessions that are open.
    pub host_anomalies: VecCollection<'scope, Epoch, Anomaly, i64>,
    /// Visitors and networks with enough sessions to stand out, by host and day.
    pub frequent: VecCollection<'scope, Epoch, (HostDay, Frequent), i64>,
    /// What they are compared with.
    pub day_limits: VecCollection<'scope, Epoch, (HostDay, DayLimits), i64>,
    /// What has happened to the detectors of a worker, beside what they find.
    pub notices: VecCollection<'scope, Epoch, Notice, i64>,
}

/// What has happened to the detectors of a worker, beside what they find.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Notice {
    Begun(Begun),
    /// There were too many visitors: all of them were forgotten, and what was found of them is
    /// retracted.
    ForgotVisitors,
}

/// The detectors of a worker have received all rows that the table had at the start, or have given
/// up waiting for them. What they find at this epoch may have been found before the start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Begun {
    pub worker: usize,
    /// Whether they find everything that is live: all rows were read, and there was room for all.
    pub finds_all: bool,
}

/// The outputs of the operator that belong to the detectors.
pub struct DetectorOutputs {
    large: Output<(HostHour, (String, Span)), i64>,
    limits: Output<(HostHour, Limits), i64>,
    host_anomalies: Output<Anomaly, i64>,
    frequent: Output<(HostDay, Frequent), i64>,
    day_limits: Output<(HostDay, DayLimits), i64>,
    notices: Output<Notice, i64>,
}

impl DetectorOutputs {
    /// How many there are.
    pub const COUNT: usize = 6;

    /// Adds them to an operator.
    pub fn add_to<'scope>(
        builder: &mut OperatorBuilder<'scope, Epoch>,
    ) -> (Self, Detected<'scope>) {
        let (large_out, large): (_, StreamVec<'scope, Epoch, _>) = builder.new_output();
        let (limits_out, limits): (_, StreamVec<'scope, Epoch, _>) = builder.new_output();
        let (hosts_out, host_anomalies): (_, StreamVec<'scope, Epoch, _>) = builder.new_output();
        let (frequent_out, frequent): (_, StreamVec<'scope, Epoch, _>) = builder.new_output();
        let (day_limits_out, day_limits): (_, StreamVec<'scope, Epoch, _>) = builder.new_output();
        let (notices_out, notices): (_, StreamVec<'scope, Epoch, _>) = builder.new_output();
        let outputs = DetectorOutputs {
            large: OutputBuilder::from(large_out),
            limits: OutputBuilder::from(limits_out),
            host_anomalies: OutputBuilder::from(hosts_out),
            frequent: OutputBuilder::from(frequent_out),
            day_limits: OutputBuilder::from(day_limits_out),
            notices: OutputBuilder::from(notices_out),
        };
        let detected = Detected {
            large: large.as_collection(),
            limits: limits.as_collection(),
            host_anomalies: host_anomalies.as_collection(),
            frequent: frequent.as_collection(),
            day_limits: day_limits.as_collection(),
            notices: notices.as_collection(),
        };
        (outputs, detected)
    }

    /// Emits changes at an epoch.
    pub fn give(
        &mut self,
        capabilities: &[Capability<Epoch>; Self::COUNT],
        epoch: Epoch,
        (changed, begun): (DetectorChanges, Option<Begun>),
    ) {
        let [large, limits, host_anomalies, frequent, day_limits, notices] = capabilities;
        let changes = changed.large.into_iter().map(|(key, value, n)| ((key, value), n));
        give(&mut self.large, large, epoch, changes);
        let changes = changed.limits.into_iter().map(|(key, value, n)| ((key, value), n));
        give(&mut self.limits, limits, epoch, changes);
        give(&mut self.host_anomalies, host_anomalies, epoch, changed.host_anomalies);
        let changes = changed.frequent.into_iter().map(|(key, value, n)| ((key, value), n));
        give(&mut self.frequent, frequent, epoch, changes);
        let changes = changed.day_limits.into_iter().map(|(key, value, n)| ((key, value), n));
        give(&mut self.day_limits, day_limits, epoch, changes);
        let forgot = changed.forgot_visitors.then_some(Notice::ForgotVisitors);
        let of_worker = begun.map(Notice::Begun).into_iter().chain(forgot);
        give(&mut self.notices, notices, epoch, of_worker.map(|one| (one, 1)));
    }
}

/// The detectors, and what is known of the time before the start.
pub struct Detectors {
    worker: usize,
    state: DetectorState,
    thresholds: Thresholds,
    bounds: DetectorBounds,
    visitors: Share,
    /// No session that closed before the start ended later than this.
    horizon: EventTime,
    /// Up to which event time the table is complete.
    watermark: TableWatermark,
    /// Rows of sessions that ended later: they wait for those of slower writers. And all that come
    /// before what the table had at the start, as long as there is room.
    ahead: Vec<Row>,
    /// The first epoch that is not replayed.
    first_epoch: Epoch,
    /// Up to when the table was complete at the first commit from then on: what ended earlier is in
    /// the table at the start.
    start: Option<EventTime>,
    /// Whether what the table had at the start is still being read.
    incomplete: bool,
    /// Whether all of it was read, if that has been said and nothing has followed from it yet.
    past: Option<bool>,
}

impl Detectors {
    /// With `reads_past`, they emit nothing until they have received what the table had at the
    /// start. What comes before that waits, so that nothing expires meanwhile.
    pub fn new(
        thresholds: Thresholds,
        (bounds, visitors): (DetectorBounds, Share),
        worker: usize,
        first_epoch: Epoch,
        reads_past: bool,
    ) -> Self {
        Detectors {
            worker,
            state: DetectorState::new(thresholds.clone(), bounds, EVER),
            thresholds,
            bounds,
            visitors,
            horizon: EventTime::NEVER,
            watermark: TableWatermark::NEVER,
            ahead: Vec::new(),
            first_epoch,
            start: None,
            incomplete: reads_past,
            past: None,
        }
    }

    /// What they remember.
    pub fn state(&mut self) -> &mut DetectorState {
        &mut self.state
    }

    /// Takes in complete epochs. Returns what has changed and, if the detectors begin with that,
    /// how.
    pub fn advance(&mut self, epochs: &[(Epoch, EpochInput)]) -> (DetectorChanges, Option<Begun>) {
        for (epoch, input) in epochs {
            self.watermark = self.watermark.max(input.watermark.unwrap_or(TableWatermark::NEVER));
            self.horizon = self.horizon.max(input.horizon.unwrap_or(EventTime::NEVER));
            if *epoch >= self.first_epoch {
                self.start = self.start.or(input.watermark.map(|watermark| watermark.complete));
            }
            self.past = self.past.or(input.past);
            for (host, report) in &input.open {
                self.state.report(host.0, report);
            }
        }
        // Every worker has reported its long sessions when the first epoch that is not replayed is
        // complete.
        let has_started = self.start.is_some() || self.past == Some(false);
        let past = if has_started { self.past.take() } else { None };
        if past == Some(false) {
            // Nothing is known of what closed earlier.
            let since = self.horizon.max(self.state.watermark()).max(self.watermark.latest);
            let known_from = Hour(Hour::of(since).0 + 1);
            let state = DetectorState::new(self.thresholds.clone(), self.bounds, known_from);
            self.state = state.with_open_of(&mut self.state);
            self.incomplete = false;
        }
        if past.is_none() && self.incomplete && self.can_wait(epochs) {
            return (DetectorChanges::default(), None);
        }
        // If nothing had ever closed, nothing is missing, and nothing had been found.
        let is_first = self.horizon <= EventTime::NEVER;
        // On a first start, nothing is missing of what has come since.
        let begins = past == Some(true) && (!is_first || self.state.watermark() > EventTime::NEVER);
        self.incomplete &= past != Some(true);
        let mut changed = DetectorChanges::default();
        if begins {
            changed = self.begin(epochs, is_first);
        }
        let found = self.take_rows(if begins { &[] } else { epochs });
        if !self.incomplete {
            changed.extend(found);
        }
        // Known only now: there may have been no room for some of the rows.
        let begun = past.filter(|_| !is_first).map(|whole| Begun {
            worker: self.worker,
            finds_all: whole && !self.state.has_refused(),
        });
        (changed, begun)
    }

    /// Whether the rows of these epochs can wait. If so, they do.
    fn can_wait(&mut self, epochs: &[(Epoch, EpochInput)]) -> bool {
        let rows = || epochs.iter().flat_map(|(_, input)| &input.rows);
        let can = self.ahead.len() + rows().count() <= WAITING_ROWS;
        if can {
            self.ahead.extend(rows().cloned());
        }
        can
    }

    /// Begins with what the table had at the start. Rows of sessions that ended later remain.
    fn begin(&mut self, epochs: &[(Epoch, EpochInput)], is_first: bool) -> DetectorChanges {
        let start = self.start.unwrap_or(self.state.watermark());
        let mut rows = std::mem::take(&mut self.ahead);
        rows.extend(epochs.iter().flat_map(|(_, input)| &input.rows).cloned());
        let (later, rows): (Vec<Row>, Vec<Row>) =
            rows.into_iter().partition(|row| row.end_ms > start.millis());
        self.ahead = later;
        self.state.allow_visitors(self.visitors.allowed());
        self.state.advance(rows.iter().map(as_change), start);
        let read_from = needed_from(start, self.bounds.visitors > 0);
        self.state.begin(if is_first { EVER } else { read_from })
    }

    /// Takes in the rows, and those that were ahead and no longer are. What is found in an hour
    /// depends on the hours before it, so rows that are ahead of others would be compared with too
    /// little.
    fn take_rows(&mut self, epochs: &[(Epoch, EpochInput)]) -> DetectorChanges {
        let watermark = self.watermark;
        let came = epochs.iter().flat_map(|(_, input)| &input.rows);
        let waited = std::mem::take(&mut self.ahead);
        let (ahead, rows): (Vec<&Row>, Vec<&Row>) = waited
            .iter()
            .chain(came)
            .partition(|row| watermark.is_ahead(EventTime::from_millis(row.end_ms)));
        self.ahead = ahead.into_iter().cloned().collect();
        let rows = rows.into_iter().map(as_change);
        self.state.allow_visitors(self.visitors.allowed());
        let changed = self.state.advance(rows, watermark.complete);
        self.visitors.uses(self.state.visitors());
        changed
    }
}

fn as_change(row: &Row) -> RowChange<'_> {
    RowChange {
        key: &row.key,
        visitor: &row.visitor,
        host_hash: row.host.0,
        span: row.span,
        end: EventTime::from_millis(row.end_ms),
        diff: row.diff,
    }
}
