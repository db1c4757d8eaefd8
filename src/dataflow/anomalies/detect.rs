//! The memory of the detectors as a timely operator: rows enter it once their epoch is complete,
//! and what that changes is emitted at once, never at a future time. It groups epochs by ticks, as
//! the window of the statistics does.

use std::collections::BTreeMap;

use differential_dataflow::{AsCollection, VecCollection};
use sessionizer_core::anomaly::{
    Anomaly, Changed, HostHour, Hour, Limits, RowChange, Rules, Watch,
};
use sessionizer_core::session::Span;
use sessionizer_core::time::{Epoch, EventTime, tick};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::dataflow::statistics::operator::complete_before;
use crate::dataflow::statistics::rows::Told;
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
    pub crowd: VecCollection<'scope, Epoch, Anomaly, i64>,
}

#[derive(Default)]
struct Stash {
    capabilities: Vec<Capability<Epoch>>,
    rows: Vec<Row>,
    past: Option<bool>,
    watermark: Option<EventTime>,
}

type Output<D> = OutputBuilder<Epoch, CapacityContainerBuilder<Vec<(D, Epoch, i64)>>>;

/// Builds the detectors of this worker, for the hosts that are exchanged to it. With `reads_past`,
/// they emit nothing until they have received what the table had at the start.
pub fn render_detect<'scope>(
    told: StreamVec<'scope, Epoch, Told>,
    watermarks: StreamVec<'scope, Epoch, EventTime>,
    (rules, hosts): (Rules, usize),
    (every_ms, first_epoch): (u64, Epoch),
    reads_past: bool,
) -> Detected<'scope> {
    let scope = told.scope();
    let mut builder = OperatorBuilder::new("Detect".to_owned(), scope);
    let mut told = builder.new_input(told, Exchange::new(Told::route));
    let mut watermarks = builder.new_input(watermarks, Pipeline);
    let (large_out, large) = builder.new_output();
    let (limits_out, limits) = builder.new_output();
    let (crowd_out, crowd) = builder.new_output();
    let mut large_out: Output<(HostHour, (String, Span))> = OutputBuilder::from(large_out);
    let mut limits_out: Output<(HostHour, Limits)> = OutputBuilder::from(limits_out);
    let mut crowd_out: Output<Anomaly> = OutputBuilder::from(crowd_out);
    let mut detectors = Detectors {
        watch: Watch::new(rules.clone(), hosts, EVER),
        rules,
        hosts,
        horizon: EventTime::NEVER,
        first_epoch,
        start: None,
        incomplete: reads_past,
    };
    builder.build(move |_capabilities| {
        let mut stash: BTreeMap<Epoch, Stash> = BTreeMap::new();
        move |frontiers| {
            told.for_each_stamp(|cap, batches| {
                let epoch = *cap.least().expect("rows travel under an epoch");
                let stash = stash.entry(epoch).or_default();
                stash.keep(|port| cap.retain_least(port));
                for told in batches.flat_map(|batch| batch.drain(..)) {
                    match told {
                        Told::Row(row) => stash.rows.push(row),
                        Told::Horizon { horizon, .. } => {
                            detectors.horizon = detectors.horizon.max(horizon);
                        }
                        Told::Past { whole, .. } => stash.past = Some(whole),
                    }
                }
            });
            watermarks.for_each_stamp(|cap, batches| {
                let epoch = *cap.least().expect("watermarks travel under an epoch");
                let stash = stash.entry(epoch).or_default();
                stash.keep(|port| cap.retain_least(port));
                stash.watermark =
                    batches.flat_map(|batch| batch.drain(..)).max().or(stash.watermark);
            });
            let ahead = frontiers.iter().filter_map(|f| f.frontier().first().copied()).min();
            let incomplete = stash.split_off(&complete_before(ahead, every_ms));
            let mut complete = std::mem::replace(&mut stash, incomplete);
            while let Some((first, _)) = complete.first_key_value() {
                let later = complete.split_off(&(tick(*first, every_ms) + every_ms));
                let group = std::mem::replace(&mut complete, later);
                let (epoch, capabilities, changed) = detectors.advance(group);
                let [large, limits, crowd] =
                    <[Capability<Epoch>; 3]>::try_from(capabilities).expect("one each");
                let at = |data, diff| (data, epoch, diff);
                let said = changed.large.into_iter().map(|(key, value, n)| at((key, value), n));
                large_out.activate().session(&large).give_iterator(said);
                let at = |data, diff| (data, epoch, diff);
                let said = changed.limits.into_iter().map(|(key, value, n)| at((key, value), n));
                limits_out.activate().session(&limits).give_iterator(said);
                let said = changed.crowd.into_iter().map(|(anomaly, n)| (anomaly, epoch, n));
                crowd_out.activate().session(&crowd).give_iterator(said);
            }
        }
    });
    Detected {
        large: large.as_collection(),
        limits: limits.as_collection(),
        crowd: crowd.as_collection(),
    }
}

struct Detectors {
    watch: Watch,
    rules: Rules,
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
    /// Takes in complete epochs. Returns the last of them with its capabilities, and what has
    /// changed.
    fn advance(
        &mut self,
        group: BTreeMap<Epoch, Stash>,
    ) -> (Epoch, Vec<Capability<Epoch>>, Changed) {
        let mut last = (0, Vec::new());
        let mut watermark = EventTime::NEVER;
        let mut past = None;
        let mut rows = Vec::new();
        for (epoch, stash) in group {
            watermark = watermark.max(stash.watermark.unwrap_or(EventTime::NEVER));
            if epoch >= self.first_epoch {
                self.start = self.start.or(stash.watermark);
            }
            last = (epoch, stash.capabilities);
            past = past.or(stash.past);
            rows.extend(stash.rows);
        }
        if past == Some(false) {
            // Nothing is known of what closed earlier.
            let since = self.horizon.max(self.watch.watermark()).max(watermark);
            let known_from = Hour(Hour::of(since).0 + 1);
            self.watch = Watch::new(self.rules.clone(), self.hosts, known_from);
            self.incomplete = false;
        }
        let changed = self.watch.advance(rows.iter().map(as_change), watermark);
        let changed = match past {
            Some(true) => {
                self.incomplete = false;
                let start = Hour::of(self.start.unwrap_or(self.watch.watermark()));
                // If nothing had ever closed, nothing is missing.
                let is_first = self.horizon <= EventTime::NEVER;
                self.watch.begin(if is_first { EVER } else { Hour(start.0 - PAST_HOURS) })
            }
            _ if self.incomplete => Changed::default(),
            _ => changed,
        };
        (last.0, last.1, changed)
    }
}

fn as_change(row: &Row) -> RowChange<'_> {
    let (ip, host) = row.key.parts();
    RowChange { ip, host, span: row.span, end: EventTime::from_millis(row.end_ms), diff: row.diff }
}

impl Stash {
    /// Keeps the capabilities of the first message, one for each output.
    fn keep(&mut self, retain: impl Fn(usize) -> Option<Capability<Epoch>>) {
        if self.capabilities.is_empty() {
            let retain = |port| retain(port).expect("a message's stamp holds its epoch");
            self.capabilities.extend((0..3).map(retain));
        }
    }
}
