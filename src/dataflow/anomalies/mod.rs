//! Live anomalies: sessions, visitors, networks and whole hosts that differ from what is usual for
//! the host, and partitions whose clock is off.
//!
//! ```text
//!   rows --- exchange by host ---> window of the statistics
//!                          `-----> detectors --- large sessions, limits ----- join --.
//!                                    |  |`------ frequent visitors, limits -- join --+--> publisher
//!                               watermarks `---- whole hosts ------------------------+    (worker 0)
//!   bindings of each epoch --------------------> clocks (worker 0) ------------------'
//! ```
//!
//! `detect` runs the pure [`DetectorState`](sessionizer_core::anomaly::DetectorState), and emits
//! its changes at the current epoch. Differential dataflow joins the sessions that may stand out
//! with the limits of their hours, and the visitors and networks with those of their days: if
//! either is corrected, what follows from it is withdrawn. [`publish`] distinguishes corrections
//! from mere expiry. After every tick, what is published is what
//! [`sessionizer_core::anomaly::batch`] finds, given the table and the watermark, in the hours and
//! days that were live after the tick before, and since.

mod clocks;
pub mod detect;
pub mod figures;
pub mod publish;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use differential_dataflow::VecCollection;
use sessionizer_core::anomaly::{Anomaly, ClockJudge, DetectorBounds, Kind, Thresholds};
use sessionizer_core::binding::Partition;
use sessionizer_core::time::Epoch;
use timely::dataflow::StreamVec;
use timely::dataflow::operators::vec::Filter;

use crate::dataflow::anomalies::clocks::render_clocks;
use crate::dataflow::anomalies::detect::{Detected, Detectors};
use crate::dataflow::anomalies::publish::{Found, Published, render_publisher};
use crate::dataflow::messages::EpochMeta;
use crate::dataflow::statistics::quota::{Quota, Share};
use crate::dataflow::statistics::watermarks::TableWatermark;

/// What is looked for, and who gets to see it.
#[derive(Clone)]
pub struct AnomaliesConfig {
    pub thresholds: Thresholds,
    pub kinds: Vec<Kind>,
    /// What is kept at most, by all workers together.
    pub bounds: DetectorBounds,
    pub out_of_orderness_ms: u64,
    pub idle_timeout_ms: u64,
    pub on_anomalies: OnAnomalies,
}

/// Receives the anomalies after each complete tick, on worker 0 of the job.
pub type OnAnomalies = Arc<dyn Fn(&Published) + Send + Sync>;

impl AnomaliesConfig {
    /// The detectors of one of this many workers.
    pub fn detectors(
        &self,
        (worker, peers): (usize, usize),
        quota: &Arc<Quota>,
        first_epoch: Epoch,
        reads_past: bool,
    ) -> Detectors {
        let DetectorBounds { hosts, visitors } = self.bounds;
        let share = Share::new(quota, visitors, peers);
        let bounds = DetectorBounds { hosts: hosts.div_ceil(peers), visitors: share.allowed() };
        Detectors::new(self.thresholds.clone(), (bounds, share), worker, first_epoch, reads_past)
    }
}

/// Builds the joins and the publisher that follow the detectors. A session ends `end_after_ms`
/// after its last event.
pub fn render_anomalies<'scope>(
    detected: Detected<'scope>,
    clocks: VecCollection<'scope, Epoch, Anomaly, i64>,
    watermarks: StreamVec<'scope, Epoch, TableWatermark>,
    config: AnomaliesConfig,
    (every_ms, end_after_ms): (u64, i64),
) {
    let AnomaliesConfig { thresholds, kinds, on_anomalies, .. } = config;
    let Detected { large, limits, host_anomalies, frequent, day_limits, notices } = detected;
    let of_sessions = large
        .join_map(limits, |(host, _hour), (ip, span), limits| {
            limits.judge(ip, host, span).collect::<Vec<Anomaly>>()
        })
        .flat_map(|found| found);
    let of_days = frequent
        .join_map(day_limits, move |day, frequent, limits| limits.judge(day, frequent, &thresholds))
        .flat_map(|found| found);
    let found = of_sessions.concat(of_days).concat(host_anomalies).concat(clocks);
    let found = found.filter(move |found| kinds.contains(&found.kind)).map(Found::Anomaly);
    let found = found.concat(notices.map(Found::Notice));
    render_publisher(found.inner, watermarks, (every_ms, end_after_ms), on_anomalies);
}

/// Builds the judge of the partitions' clocks, if they are to be judged.
pub fn render_clock_anomalies<'scope>(
    metas: StreamVec<'scope, Epoch, EpochMeta>,
    config: &AnomaliesConfig,
    name: impl Fn(Partition) -> String + 'static,
    first_epoch: Epoch,
) -> VecCollection<'scope, Epoch, Anomaly, i64> {
    let AnomaliesConfig { thresholds, out_of_orderness_ms, idle_timeout_ms, kinds, .. } = config;
    let judge = ClockJudge::new(thresholds, *out_of_orderness_ms, *idle_timeout_ms);
    let judges = kinds.contains(&Kind::Clock);
    let metas = metas.filter(move |_| judges);
    render_clocks(metas, judge, name, first_epoch + idle_timeout_ms)
}
