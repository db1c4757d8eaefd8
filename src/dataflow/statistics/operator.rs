//! The window as a timely operator: rows enter it once their epoch is complete, and what that
//! changes is emitted at once, never at a future time.
//!
//! In a backlog epochs are short. All epochs of a tick enter together, and their changes are
//! emitted at the last of them, so what comes and goes within a tick costs nothing further
//! downstream. Every worker uses the same ticks: what is complete is then complete everywhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use differential_dataflow::{AsCollection, VecCollection};
use sessionizer_core::time::{Epoch, EventTime, tick};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::dataflow::statistics::figures::WindowFigures;
use crate::dataflow::statistics::rows::Told;
use crate::dataflow::statistics::sums::{Host, Row, Sums, Visitor};
use crate::dataflow::statistics::window::{Bounds, Changed, HourItem, Window};

/// What is in the window, as collections.
#[derive(Clone)]
pub struct Windowed<'scope> {
    /// Sessions by host and hour, in the bins of their events and durations.
    pub hours: VecCollection<'scope, Epoch, HourItem, Sums>,
    /// Sessions by host and minute.
    pub minutes: VecCollection<'scope, Epoch, (Host, i64), Sums>,
    /// Sessions by visitor.
    pub visits: VecCollection<'scope, Epoch, (Host, Visitor), i64>,
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

/// All epochs before the one returned are complete, and so are their ticks.
pub fn complete_before(ahead: Option<Epoch>, every_ms: u64) -> Epoch {
    ahead.map_or(Epoch::MAX, |ahead| tick(ahead, every_ms))
}

/// What has arrived of an incomplete epoch.
#[derive(Default)]
struct Stash {
    capabilities: Vec<Capability<Epoch>>,
    rows: Vec<Row>,
    past: Option<bool>,
    watermark: Option<EventTime>,
}

type Output<D, R> = OutputBuilder<Epoch, CapacityContainerBuilder<Vec<(D, Epoch, R)>>>;

/// Builds the window of this worker, over the hosts that are exchanged to it. With `past`, it emits
/// nothing until it has received what the table had at the start.
pub fn render_window<'scope>(
    told: StreamVec<'scope, Epoch, Told>,
    watermarks: StreamVec<'scope, Epoch, EventTime>,
    (bounds, every_ms): (Bounds, u64),
    past: bool,
    figures: Arc<WindowFigures>,
) -> Windowed<'scope> {
    let scope = told.scope();
    let mut builder = OperatorBuilder::new("Window".to_owned(), scope);
    let mut told = builder.new_input(told, Exchange::new(Told::route));
    let mut watermarks = builder.new_input(watermarks, Pipeline);
    let (hours_out, hours) = builder.new_output();
    let (minutes_out, minutes) = builder.new_output();
    let (visits_out, visits) = builder.new_output();
    let (hosts_out, hosts) = builder.new_output();
    let (from_out, from) = builder.new_output();
    let mut hours_out: Output<HourItem, Sums> = OutputBuilder::from(hours_out);
    let mut minutes_out: Output<(Host, i64), Sums> = OutputBuilder::from(minutes_out);
    let mut visits_out: Output<(Host, Visitor), i64> = OutputBuilder::from(visits_out);
    let mut hosts_out: Output<(Host, String), i64> = OutputBuilder::from(hosts_out);
    let mut from_out: Output<(usize, CountedSince), i64> = OutputBuilder::from(from_out);
    let worker = scope.index();
    let mut window = Window::new(bounds, past);
    let mut shown = [0; 3];
    builder.build(move |_capabilities| {
        let mut stash: BTreeMap<Epoch, Stash> = BTreeMap::new();
        move |frontiers| {
            told.for_each_stamp(|cap, batches| {
                let stash =
                    stash.entry(*cap.least().expect("rows travel under an epoch")).or_default();
                stash.keep(|port| cap.retain_least(port));
                for told in batches.flat_map(|batch| batch.drain(..)) {
                    match told {
                        Told::Row(row) => stash.rows.push(row),
                        Told::Horizon { horizon, .. } => window.closed_before(horizon),
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
                let (epoch, capabilities, changed, from) = advance(&mut window, group);
                let visitors = changed.visitors_from.into_iter();
                let from = from.into_iter().map(|from| ((worker, from), 1));
                let from = from
                    .chain(visitors.map(|(from, n)| ((worker, CountedSince::Visitors(from)), n)));
                let caps = <[Capability<Epoch>; 5]>::try_from(capabilities).expect("one each");
                let [hours, minutes, visits, hosts, told_from] = caps;
                give(&mut hours_out, &hours, epoch, changed.hours);
                give(&mut minutes_out, &minutes, epoch, changed.minutes);
                give(&mut visits_out, &visits, epoch, changed.visits);
                give(&mut hosts_out, &hosts, epoch, changed.hosts);
                give(&mut from_out, &told_from, epoch, from);
            }
            figures.show(&mut shown, window.sizes(), std::mem::take(&mut window.too_old));
        }
    });
    Windowed {
        hours: hours.as_collection(),
        minutes: minutes.as_collection(),
        visits: visits.as_collection(),
        hosts: hosts.as_collection(),
        from: from.as_collection(),
    }
}

/// Moves the window over complete epochs. Returns the last of them with its capabilities, and what
/// has changed.
fn advance(
    window: &mut Window,
    group: BTreeMap<Epoch, Stash>,
) -> (Epoch, Vec<Capability<Epoch>>, Changed, Vec<CountedSince>) {
    let mut last = (0, Vec::new());
    let mut watermark = EventTime::NEVER;
    let (mut rows, mut from) = (Vec::new(), Vec::new());
    for (epoch, stash) in group {
        watermark = watermark.max(stash.watermark.unwrap_or(EventTime::NEVER));
        last = (epoch, stash.capabilities);
        match stash.past {
            None => rows.push(stash.rows),
            Some(true) => {
                rows.push(stash.rows);
                window.advance(rows.drain(..).flatten(), watermark);
                window.complete();
                from.push(CountedSince::Start);
            }
            Some(false) => {
                // Of the sessions that this epoch closes, only those of a drain can end after its
                // watermark.
                rows = vec![stash.rows];
                from.push(CountedSince::Rows(window.begin_empty(watermark)));
            }
        }
    }
    let changed = window.advance(rows.into_iter().flatten(), watermark);
    (last.0, last.1, changed, from)
}

fn give<D: Clone + 'static, R: Clone + 'static>(
    output: &mut Output<D, R>,
    capability: &Capability<Epoch>,
    epoch: Epoch,
    changed: impl IntoIterator<Item = (D, R)>,
) {
    let mut output = output.activate();
    let mut session = output.session(capability);
    session.give_iterator(changed.into_iter().map(|(data, diff)| (data, epoch, diff)));
}

impl Stash {
    /// Keeps the capabilities of the first message, one for each output.
    fn keep(&mut self, retain: impl Fn(usize) -> Option<Capability<Epoch>>) {
        if self.capabilities.is_empty() {
            let retain = |port| retain(port).expect("a message's stamp holds its epoch");
            self.capabilities.extend((0..5).map(retain));
        }
    }
}
