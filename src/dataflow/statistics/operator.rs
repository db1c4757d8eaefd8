//! The window as a timely operator: rows enter it once their epoch is complete, and what that
//! changes is emitted at once, never at a future time.
//!
//! In a backlog epochs are short. All epochs of a tick enter together, and their changes are
//! emitted at the last of them, so what comes and goes within a tick costs nothing further
//! downstream.

use std::sync::Arc;

use differential_dataflow::{AsCollection, VecCollection};
use sessionizer_core::time::{Epoch, EventTime};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::dataflow::anomalies::detect::{Detected, DetectorOutputs, Detectors};
use crate::dataflow::statistics::epochs::{CompleteTick, EpochInput, PendingEpochs};
use crate::dataflow::statistics::figures::WindowFigures;
use crate::dataflow::statistics::quota::Share;
use crate::dataflow::statistics::rows::WindowInput;
use crate::dataflow::statistics::sums::{Host, Sums, VisitorAddress};
use crate::dataflow::statistics::watermarks::TableWatermark;
use crate::dataflow::statistics::window::{Bounds, HourItem, Window, WindowChanges};

/// What is in the window, as collections.
#[derive(Clone)]
pub struct Windowed<'scope> {
    /// Sessions by host and hour, in the bins of their events and durations.
    pub hours: VecCollection<'scope, Epoch, HourItem, Sums>,
    /// Sessions by host and minute.
    pub minutes: VecCollection<'scope, Epoch, (Host, i64), Sums>,
    /// Sessions by visitor.
    pub visits: VecCollection<'scope, Epoch, (Host, VisitorAddress), i64>,
    /// The hosts that are counted individually.
    pub hosts: VecCollection<'scope, Epoch, (Host, String), i64>,
    /// Since which hour a worker counts visitors, if not in the whole window; and since when it
    /// counts at all.
    pub from: VecCollection<'scope, Epoch, (usize, CountedSince), i64>,
}

/// Since when something is counted.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize,
)]
pub enum CountedSince {
    /// Visitors are counted since this hour, numbered since 1970.
    Visitors(i64),
    /// Rows are counted since this time: what the table had before could not be read.
    Rows(EventTime),
    /// All that the table had at the start has been read.
    Start,
}

/// An output of changes.
pub type Output<D, R> = OutputBuilder<Epoch, CapacityContainerBuilder<Vec<(D, Epoch, R)>>>;

/// How many outputs the window has.
const OUTPUTS: usize = 5;

/// Builds the window of this worker, over the hosts that are exchanged to it, and the detectors of
/// anomalies in the same rows, if any. With `past`, it emits nothing until it has received what the
/// table had at the start.
pub fn render_window<'scope>(
    inputs: StreamVec<'scope, Epoch, WindowInput>,
    watermarks: StreamVec<'scope, Epoch, TableWatermark>,
    (bounds, mut visitors, every_ms): (Bounds, Share, u64),
    past: bool,
    mut detectors: Option<Detectors>,
    figures: Arc<WindowFigures>,
) -> (Windowed<'scope>, Detected<'scope>) {
    let scope = inputs.scope();
    let mut builder = OperatorBuilder::new("Window".to_owned(), scope);
    let mut inputs = builder.new_input(inputs, Exchange::new(WindowInput::route));
    let mut watermarks = builder.new_input(watermarks, Pipeline);
    let (hours_out, hours) = builder.new_output();
    let (minutes_out, minutes) = builder.new_output();
    let (visits_out, visits) = builder.new_output();
    let (hosts_out, hosts) = builder.new_output();
    let (from_out, from) = builder.new_output();
    let mut hours_out: Output<HourItem, Sums> = OutputBuilder::from(hours_out);
    let mut minutes_out: Output<(Host, i64), Sums> = OutputBuilder::from(minutes_out);
    let mut visits_out: Output<(Host, VisitorAddress), i64> = OutputBuilder::from(visits_out);
    let mut hosts_out: Output<(Host, String), i64> = OutputBuilder::from(hosts_out);
    let mut from_out: Output<(usize, CountedSince), i64> = OutputBuilder::from(from_out);
    let (mut detector_outputs, detected) = DetectorOutputs::add_to(&mut builder);
    let worker = scope.index();
    let mut window = Window::new(bounds, past);
    let (mut shown, mut shown_detectors) = ([0; 3], [0; 2]);
    builder.build(move |_capabilities| {
        let mut pending = PendingEpochs::<{ OUTPUTS + DetectorOutputs::COUNT }>::new(every_ms);
        let mut watermark = TableWatermark::NEVER;
        move |frontiers| {
            inputs.for_each_stamp(|cap, batches| pending.add_inputs(&cap, batches));
            watermarks.for_each_stamp(|cap, batches| pending.add_watermarks(&cap, batches));
            for CompleteTick { epoch, capabilities, epochs } in pending.complete(frontiers) {
                let found = detectors.as_mut().map(|detectors| detectors.advance(&epochs));
                window.allow_visitors(visitors.allowed());
                let (changed, from) = advance(&mut window, &mut watermark, epochs);
                visitors.uses(window.visitors());
                let counted = changed.visitors_from.into_iter();
                let from = from.into_iter().map(|from| ((worker, from), 1));
                let from = from
                    .chain(counted.map(|(from, n)| ((worker, CountedSince::Visitors(from)), n)));
                let [hours, minutes, visits, hosts, from_cap, for_detectors @ ..] = capabilities;
                give(&mut hours_out, &hours, epoch, changed.hours);
                give(&mut minutes_out, &minutes, epoch, changed.minutes);
                give(&mut visits_out, &visits, epoch, changed.visits);
                give(&mut hosts_out, &hosts, epoch, changed.hosts);
                give(&mut from_out, &from_cap, epoch, from);
                if let Some(found) = found {
                    detector_outputs.give(&for_detectors, epoch, found);
                }
            }
            figures.show(&mut shown, window.sizes(), std::mem::take(&mut window.too_old));
            if let Some(detectors) = &mut detectors {
                figures.detectors.show(&mut shown_detectors, detectors.state());
            }
        }
    });
    let windowed = Windowed {
        hours: hours.as_collection(),
        minutes: minutes.as_collection(),
        visits: visits.as_collection(),
        hosts: hosts.as_collection(),
        from: from.as_collection(),
    };
    (windowed, detected)
}

/// Moves the window over complete epochs. Returns what has changed.
fn advance(
    window: &mut Window,
    watermark: &mut TableWatermark,
    epochs: Vec<(Epoch, EpochInput)>,
) -> (WindowChanges, Vec<CountedSince>) {
    let (mut rows, mut from) = (Vec::new(), Vec::new());
    for (_, input) in epochs {
        *watermark = watermark.max(input.watermark.unwrap_or(TableWatermark::NEVER));
        input.horizon.into_iter().for_each(|horizon| window.closed_before(horizon));
        match input.past {
            None => rows.push(input.rows),
            Some(true) => {
                rows.push(input.rows);
                window.advance(rows.drain(..).flatten(), watermark.complete);
                window.complete();
                from.push(CountedSince::Start);
            }
            Some(false) => {
                // Of the sessions that have closed, only those of a drain can end after the latest
                // watermark.
                rows = vec![input.rows];
                from.push(CountedSince::Rows(window.begin_empty(*watermark)));
            }
        }
    }
    (window.advance(rows.into_iter().flatten(), watermark.complete), from)
}

/// Emits changes at an epoch.
pub fn give<D: Clone + 'static, R: Clone + 'static>(
    output: &mut Output<D, R>,
    capability: &Capability<Epoch>,
    epoch: Epoch,
    changed: impl IntoIterator<Item = (D, R)>,
) {
    let mut output = output.activate();
    let mut session = output.session(capability);
    session.give_iterator(changed.into_iter().map(|(data, diff)| (data, epoch, diff)));
}
