//! Live statistics: sessions by host and minute, hour and day, and by visitor, over a window that
//! moves with the watermark.
//!
//! ```text
//!   commit --- changes ---> rows --- exchange by host ---> window ---> collections ---> publisher
//!     |        (+1, -1)       ^          |                   ^        (differential)   (worker 0)
//!     |               the table at the start                 |
//!     `--- how far each writer has come ---> watermarks -----'
//!   sessions --- open and long sessions --- exchange by host ---> window
//! ```
//!
//! They are a function of the table and of the watermark: what the table had at the start, plus the
//! changes that every commit makes, less what has left the window. [`rows`] turns both into rows,
//! [`watermarks`] says up to where the table is complete, [`window`] decides what counts and what
//! no longer does, [`collections`] sums and ranks, and [`publish`] publishes complete epochs only.
//! The durable frontier does not wait for any of this, and without statistics none of it is built.

pub mod board;
pub mod collections;
pub mod epochs;
pub mod figures;
pub mod operator;
pub mod publish;
pub mod quota;
pub mod rows;
pub mod sums;
pub mod watermarks;
pub mod window;

use std::sync::Arc;

use sessionizer_core::anomaly::{Kind, OpenReport, needed_from};
use sessionizer_core::binding::Partition;
use sessionizer_core::time::{Epoch, EventTime};
use timely::dataflow::StreamVec;
use timely::dataflow::operators::Concat;
use timely::dataflow::operators::vec::Map;

use crate::dataflow::anomalies::{AnomaliesConfig, render_anomalies, render_clock_anomalies};
use crate::dataflow::graph::OnChanges;
use crate::dataflow::messages::{Change, Committed, EpochMeta};
use crate::dataflow::run_state::RunState;
use crate::dataflow::statistics::collections::render_collections;
use crate::dataflow::statistics::operator::render_window;
use crate::dataflow::statistics::publish::{OnStatistics, render_publisher};
use crate::dataflow::statistics::quota::{Quotas, Share};
use crate::dataflow::statistics::rows::{Before, OpenPast, WindowInput, render_rows};
use crate::dataflow::statistics::watermarks::render_watermarks;
use crate::dataflow::statistics::window::Bounds;

/// What is kept of the changes, and who gets to see it.
#[derive(Clone)]
pub struct StatisticsConfig {
    /// For all workers together.
    pub bounds: Bounds,
    /// How many visitors the workers of this process keep together.
    pub quotas: Quotas,
    /// How often the statistics are published, in milliseconds.
    pub every_ms: u64,
    /// How long after its last event a session ends, in milliseconds.
    pub end_after_ms: i64,
    /// How long after its end a session closes, in milliseconds of the watermark.
    pub closes_after_ms: i64,
    /// Reads what the table had at the start. `None` in tests that begin with nothing.
    pub past: Option<OpenPast>,
    pub on_statistics: OnStatistics,
    /// The anomalies to look for in the same rows, if any.
    pub anomalies: Option<AnomaliesConfig>,
}

impl StatisticsConfig {
    /// Which open sessions the detectors are told of, if they look for marathons: those that last
    /// longer than this.
    pub fn long_above_ms(&self) -> Option<u64> {
        let anomalies = self.anomalies.as_ref()?;
        anomalies.kinds.contains(&Kind::Marathon).then_some(anomalies.thresholds.marathon.min)
    }
}

/// What the statistics, and the anomalies that are looked for, need of the table at a start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NeededPast {
    pub window: Bounds,
    pub anomalies: bool,
    /// Whether visitors and networks are judged.
    pub visitors: bool,
}

impl NeededPast {
    /// Rows of sessions that ended earlier are not needed if the watermark is here.
    pub fn from(&self, watermark: EventTime) -> EventTime {
        let Bounds { hour_ms, .. } = self.window;
        let window = self.window.first_hour(watermark).saturating_mul(hour_ms);
        let window = EventTime::from_millis(window);
        match self.anomalies {
            true => needed_from(watermark, self.visitors).start().min(window),
            false => window,
        }
    }
}

/// What the statistics follow.
pub struct StatisticsInputs<'scope> {
    /// The rows that the commits add and remove.
    pub changes: StreamVec<'scope, Epoch, Change>,
    /// How far each writer has come.
    pub committed: StreamVec<'scope, Epoch, Committed>,
    pub metas: StreamVec<'scope, Epoch, EpochMeta>,
    /// The long sessions that are open.
    pub long: StreamVec<'scope, Epoch, OpenReport>,
}

/// Builds the statistics. The result has no data: its frontier is that of the changes, and does not
/// wait for the statistics.
pub fn render_statistics<'scope>(
    inputs: StatisticsInputs<'scope>,
    (config, before): (StatisticsConfig, Before),
    on_changes: OnChanges,
    run_state: &Arc<RunState>,
) -> StreamVec<'scope, Epoch, ()> {
    let StatisticsInputs { changes, committed, metas, long } = inputs;
    let StatisticsConfig {
        mut bounds,
        quotas,
        every_ms,
        end_after_ms,
        closes_after_ms,
        past,
        on_statistics,
        anomalies,
    } = config;
    let peers = changes.scope().peers();
    let worker = (changes.scope().index(), peers);
    let visitors = Share::new(&quotas.window, bounds.visitors, peers);
    bounds.hosts = bounds.hosts.div_ceil(peers);
    let watermarks = render_watermarks(committed, before, closes_after_ms);
    let reads_past = past.is_some();
    let of_run = Arc::clone(run_state);
    let waits = move || !of_run.stopping();
    let (inputs, durable) = render_rows(changes, end_after_ms, before, on_changes, past, waits);
    let inputs = inputs.concat(long.map(WindowInput::open));
    let figures = Arc::clone(&run_state.metrics.figures.window);
    let detectors = anomalies
        .as_ref()
        .map(|config| config.detectors(worker, &quotas.detectors, before.first_epoch, reads_past));
    let window = (bounds, visitors, every_ms);
    let (windowed, detected) =
        render_window(inputs, watermarks.clone(), window, reads_past, detectors, figures);
    if let Some(anomalies) = anomalies {
        let of_run = Arc::clone(run_state);
        let name = move |partition: Partition| {
            let topic = of_run.metrics.figures.topic(partition).unwrap_or("?");
            format!("{topic}/{}", partition.number)
        };
        let clocks = render_clock_anomalies(metas, &anomalies, name, before.first_epoch);
        let lengths = (every_ms, end_after_ms);
        render_anomalies(detected, clocks, watermarks.clone(), anomalies, lengths);
    }
    let entries = render_collections(windowed, bounds.visitors > 0);
    render_publisher(entries, watermarks, every_ms, on_statistics);
    durable
}
