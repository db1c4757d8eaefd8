//! Live statistics: sessions by host and minute, hour and day, and by visitor, over a window that
//! moves with the watermark.
//!
//! ```text
//!   commit --- changes ---> rows --- exchange by host ---> window ---> collections ---> publisher
//!              (+1, -1)       ^                              ^        (differential)   (worker 0)
//!                     the table at the start            watermarks
//! ```
//!
//! They are a function of the table and of the watermark: what the table had at the start, plus the
//! changes that every commit makes, less what has left the window. [`rows`] turns both into rows,
//! [`window`] decides what counts and what no longer does, [`collections`] sums and ranks, and
//! [`publish`] publishes complete epochs only. The durable frontier does not wait for any of this,
//! and without statistics none of it is built.

pub mod board;
pub mod collections;
pub mod epochs;
pub mod figures;
pub mod mixing;
pub mod operator;
pub mod publish;
pub mod rows;
pub mod sums;
pub mod window;

use std::sync::Arc;

use sessionizer_core::time::{Epoch, EventTime};
use timely::dataflow::StreamVec;
use timely::dataflow::operators::vec::Map;

use crate::dataflow::anomalies::{AnomaliesConfig, render_anomalies};
use crate::dataflow::graph::OnChanges;
use crate::dataflow::messages::{Change, EpochMeta};
use crate::dataflow::run_state::RunState;
use crate::dataflow::statistics::collections::render_collections;
use crate::dataflow::statistics::operator::render_window;
use crate::dataflow::statistics::publish::{OnStatistics, render_publisher};
use crate::dataflow::statistics::rows::{Before, OpenPast, render_rows};
use crate::dataflow::statistics::window::Bounds;

/// What is kept of the changes, and who gets to see it.
#[derive(Clone)]
pub struct StatisticsConfig {
    /// For all workers together.
    pub bounds: Bounds,
    /// How often the statistics are published, in milliseconds.
    pub every_ms: u64,
    /// How long after its last event a session ends, in milliseconds.
    pub end_after_ms: i64,
    /// Reads what the table had at the start. `None` if the table was empty.
    pub past: Option<OpenPast>,
    pub on_statistics: OnStatistics,
    /// The anomalies to look for in the same rows, if any.
    pub anomalies: Option<AnomaliesConfig>,
}

/// Builds the statistics. The result has no data: its frontier is that of the changes, and does not
/// wait for the statistics.
pub fn render_statistics<'scope>(
    changes: StreamVec<'scope, Epoch, Change>,
    summaries: StreamVec<'scope, Epoch, EpochMeta>,
    (config, before): (StatisticsConfig, Before),
    on_changes: OnChanges,
    run_state: &RunState,
) -> StreamVec<'scope, Epoch, ()> {
    let StatisticsConfig { mut bounds, every_ms, end_after_ms, past, on_statistics, anomalies } =
        config;
    let peers = changes.scope().peers();
    bounds.hosts = bounds.hosts.div_ceil(peers);
    bounds.visitors = bounds.visitors.div_ceil(peers);
    let watermarks: StreamVec<'scope, Epoch, EventTime> = summaries.map(|meta| meta.watermark);
    let reads_past = past.is_some();
    let (inputs, durable) = render_rows(changes, end_after_ms, before, on_changes, past);
    let figures = Arc::clone(&run_state.metrics.figures.window);
    if let Some(anomalies) = anomalies {
        let lengths = (every_ms, end_after_ms);
        let start = (before.first_epoch, reads_past);
        render_anomalies(inputs.clone(), watermarks.clone(), anomalies, lengths, start);
    }
    let windowed =
        render_window(inputs, watermarks.clone(), (bounds, every_ms), reads_past, figures);
    let entries = render_collections(windowed, bounds.visitors > 0);
    render_publisher(entries, watermarks, every_ms, on_statistics);
    durable
}
