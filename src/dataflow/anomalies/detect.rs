//! The memory of the detectors as a timely operator: rows enter it once their epoch is complete,
//! and what that changes is emitted at once, never at a future time. It groups epochs by ticks, as
//! the window of the statistics does.

use differential_dataflow::{AsCollection, VecCollection};
use sessionizer_core::anomaly::{
    Anomaly, DetectorChanges, DetectorState, HostHour, Hour, Limits, RowChange, Thresholds,
};
use sessionizer_core::session::Span;
use sessionizer_core::time::{Epoch, EventTime};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::dataflow::statistics::epochs::{CompleteTick, EpochInput, PendingEpochs};
use crate::dataflow::statistics::rows::WindowInput;
use crate::dataflow::statistics::sums::Row;

/// How many hours of the table before that of the watermark a start reads.
const PAST_HOURS: i64 = 24;
/// Every row is known.
const EVER: Hour = Hour(i64::MIN / 2);

/// What the detectors emit, as collections.
pub struct Detected<'scope> {
    /// Sessions that are large enough to stand out, by host and hour.
    pub large: VecCollection<'scope, Epoch, (HostHour, (String, Span)), i64>,
    /// What they are compared with.
    pub limits: VecCollection<'scope, Epoch, (HostHour, Limits), i64>,
    /// Anomalies of whole hosts.
    pub host_anomalies: VecCollection<'scope, Epoch, Anomaly, i64>,
}

type Output<D> = OutputBuilder<Epoch, CapacityContainerBuilder<Vec<(D, Epoch, i64)>>>;

/// Builds the detectors of this worker, for the hosts that are exchanged to it. With `reads_past`,
/// they emit nothing until they have received what the table had at the start.
pub fn render_detect<'scope>(
    inputs: StreamVec<'scope, Epoch, WindowInput>,
    watermarks: StreamVec<'scope, Epoch, EventTime>,
    (thresholds, hosts): (Thresholds, usize),
    (every_ms, first_epoch): (u64, Epoch),
    reads_past: bool,
) -> Detected<'scope> {
    let scope = inputs.scope();
    let mut builder = OperatorBuilder::new("Detect".to_owned(), scope);
    let mut inputs = builder.new_input(inputs, Exchange::new(WindowInput::route));
    let mut watermarks = builder.new_input(watermarks, Pipeline);
    let (large_out, large) = builder.new_output();
    let (limits_out, limits) = builder.new_output();
    let (host_anomalies_out, host_anomalies) = builder.new_output();
    let mut large_out: Output<(HostHour, (String, Span))> = OutputBuilder::from(large_out);
    let mut limits_out: Output<(HostHour, Limits)> = OutputBuilder::from(limits_out);
    let mut host_anomalies_out: Output<Anomaly> = OutputBuilder::from(host_anomalies_out);
    let mut detectors = Detectors {
        state: DetectorState::new(thresholds.clone(), hosts, EVER),
        thresholds,
        hosts,
        horizon: EventTime::NEVER,
        first_epoch,
        start: None,
        incomplete: reads_past,
    };
    builder.build(move |_capabilities| {
        let mut pending = PendingEpochs::<3>::new(every_ms);
        move |frontiers| {
            inputs.for_each_stamp(|cap, batches| pending.add_inputs(&cap, batches));
            watermarks.for_each_stamp(|cap, batches| pending.add_watermarks(&cap, batches));
            for CompleteTick { epoch, capabilities, epochs } in pending.complete(frontiers) {
                let changed = detectors.advance(epochs);
                let [large, limits, host_anomalies] = capabilities;
                let at = |(key, value, diff)| ((key, value), epoch, diff);
                let changes = changed.large.into_iter().map(at);
                large_out.activate().session(&large).give_iterator(changes);
                let at = |(key, value, diff)| ((key, value), epoch, diff);
                let changes = changed.limits.into_iter().map(at);
                limits_out.activate().session(&limits).give_iterator(changes);
                let at = |(anomaly, diff)| (anomaly, epoch, diff);
                let changes = changed.host_anomalies.into_iter().map(at);
                host_anomalies_out.activate().session(&host_anomalies).give_iterator(changes);
            }
        }
    });
    Detected {
        large: large.as_collection(),
        limits: limits.as_collection(),
        host_anomalies: host_anomalies.as_collection(),
    }
}

struct Detectors {
    state: DetectorState,
    thresholds: Thresholds,
    hosts: usize,
    /// No session that closed before the start ended later than this.
    horizon: EventTime,
    /// The first epoch that is not replayed, and its watermark: what closed earlier is in the table
    /// at the start.
    first_epoch: Epoch,
    start: Option<EventTime>,
    /// Whether what the table had at the start is still being read.
    incomplete: bool,
}

impl Detectors {
    /// Takes in complete epochs. Returns what has changed.
    fn advance(&mut self, epochs: Vec<(Epoch, EpochInput)>) -> DetectorChanges {
        let mut watermark = EventTime::NEVER;
        let mut past = None;
        let mut rows = Vec::new();
        for (epoch, input) in epochs {
            watermark = watermark.max(input.watermark.unwrap_or(EventTime::NEVER));
            self.horizon = self.horizon.max(input.horizon.unwrap_or(EventTime::NEVER));
            if epoch >= self.first_epoch {
                self.start = self.start.or(input.watermark);
            }
            past = past.or(input.past);
            rows.extend(input.rows);
        }
        if past == Some(false) {
            // Nothing is known of what closed earlier.
            let since = self.horizon.max(self.state.watermark()).max(watermark);
            let known_from = Hour(Hour::of(since).0 + 1);
            self.state = DetectorState::new(self.thresholds.clone(), self.hosts, known_from);
            self.incomplete = false;
        }
        let changed = self.state.advance(rows.iter().map(as_change), watermark);
        match past {
            Some(true) => {
                self.incomplete = false;
                let start = Hour::of(self.start.unwrap_or(self.state.watermark()));
                // If nothing had ever closed, nothing is missing.
                let is_first = self.horizon <= EventTime::NEVER;
                self.state.begin(if is_first { EVER } else { Hour(start.0 - PAST_HOURS) })
            }
            _ if self.incomplete => DetectorChanges::default(),
            _ => changed,
        }
    }
}

fn as_change(row: &Row) -> RowChange<'_> {
    let (ip, host) = row.key.parts();
    RowChange { ip, host, span: row.span, end: EventTime::from_millis(row.end_ms), diff: row.diff }
}
