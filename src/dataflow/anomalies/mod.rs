//! Live anomalies: sessions and whole hosts that differ from what is usual for the host.
//!
//! ```text
//!   rows --- exchange by host ---> detect --- large sessions --+
//!   (of the statistics)              ^     `- limits ----------+-- join --> concat --> publisher
//!                               watermarks `- whole hosts -----------------^           (worker 0)
//! ```
//!
//! `detect` runs the pure [`DetectorState`](sessionizer_core::anomaly::DetectorState), and emits its changes at the
//! current epoch. Differential dataflow joins the sessions that may stand out with the limits of
//! their hours: if either is corrected, what follows from it is withdrawn. [`publish`] tells a
//! correction from mere expiry. At every complete epoch, what is live is what
//! [`sessionizer_core::anomaly::batch`] finds in the live hours, given the table and the watermark.

mod detect;
pub mod figures;
pub mod publish;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use differential_dataflow::VecCollection;
use sessionizer_core::anomaly::{Anomaly, HostHour, Kind, Limits, Thresholds};
use sessionizer_core::session::Span;
use sessionizer_core::time::{Epoch, EventTime};
use timely::dataflow::StreamVec;

use crate::dataflow::anomalies::detect::render_detect;
use crate::dataflow::anomalies::publish::{Published, render_publisher};
use crate::dataflow::statistics::rows::WindowInput;

/// What is looked for, and who gets to see it.
#[derive(Clone)]
pub struct AnomaliesConfig {
    pub thresholds: Thresholds,
    pub kinds: Vec<Kind>,
    /// How many hosts are watched, by all workers together.
    pub hosts: usize,
    pub on_anomalies: OnAnomalies,
}

/// Receives the anomalies after each complete tick, on worker 0 of the job.
pub type OnAnomalies = Arc<dyn Fn(&Published) + Send + Sync>;

/// Builds the detectors. A session ends `end_after_ms` after its last event; epochs before
/// `first_epoch` are replayed.
pub fn render_anomalies<'scope>(
    inputs: StreamVec<'scope, Epoch, WindowInput>,
    watermarks: StreamVec<'scope, Epoch, EventTime>,
    config: AnomaliesConfig,
    (every_ms, end_after_ms): (u64, i64),
    (first_epoch, reads_past): (Epoch, bool),
) {
    let AnomaliesConfig { thresholds, kinds, mut hosts, on_anomalies } = config;
    hosts = hosts.div_ceil(inputs.scope().peers());
    let detected = render_detect(
        inputs,
        watermarks.clone(),
        (thresholds, hosts),
        (every_ms, first_epoch),
        reads_past,
    );
    let large: VecCollection<'scope, Epoch, (HostHour, (String, Span)), i64> = detected.large;
    let limits: VecCollection<'scope, Epoch, (HostHour, Limits), i64> = detected.limits;
    let of_sessions = large
        .join_map(limits, |(host, _hour), (ip, span), limits| {
            limits.judge(ip, host, span).collect::<Vec<Anomaly>>()
        })
        .flat_map(|found| found);
    let found = of_sessions
        .concat(detected.host_anomalies)
        .filter(move |found| kinds.contains(&found.kind));
    render_publisher(found.inner, watermarks, (every_ms, end_after_ms), on_anomalies);
}
