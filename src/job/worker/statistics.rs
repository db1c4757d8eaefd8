//! What the live statistics and the search for anomalies of a run are to do, and where it goes:
//! they start from rows that the ledger reads, and what they publish is shown and kept.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use sessionizer_core::anomaly::DetectorBounds;
use sessionizer_core::plan::RecoveryPlan;
use sessionizer_core::time::EventTime;

use crate::config::Anomalies;
use crate::dataflow::anomalies::figures::AnomalyFigures;
use crate::dataflow::anomalies::{AnomaliesConfig, OnAnomalies};
use crate::dataflow::changes::HOSTS;
use crate::dataflow::graph::OnChanges;
use crate::dataflow::statistics::StatisticsConfig;
use crate::dataflow::statistics::board::Board;
use crate::dataflow::statistics::publish::OnStatistics;
use crate::dataflow::statistics::rows::{OpenPast, Past};
use crate::job::clock::now_ms;
use crate::job::worker::{Job, waker};
use crate::ledger::{AnomalyRows, InitialRows};

/// How often the statistics catch up with what was committed.
const STATISTICS_MS: u64 = 1_000;

impl Job {
    /// Configures the live statistics; `None` if they are off.
    pub(super) fn statistics(self: &Arc<Self>, plan: &RecoveryPlan) -> Option<StatisticsConfig> {
        let (session_end, gap) = (self.config.ledger.session_end, self.config.ledger.gap);
        let end_after_ms = session_end.after_ms(gap);
        let closes_after_ms = session_end.closes_after_ms(gap);
        let known = (end_after_ms, plan.committed_watermark().plus(-closes_after_ms));
        let (job, run_state) = (Arc::clone(self), Arc::clone(&self.run_state));
        let bounds = self.config.statistics?;
        self.run_state.metrics.figures.has_statistics.store(true, Relaxed);
        let past: OpenPast = Arc::new(move |wake| {
            let mut taken = job.initial_rows.lock().unwrap_or_else(PoisonError::into_inner).take();
            let figures = Arc::clone(&job.run_state.metrics.figures.window);
            if let Some(initial_rows) = &taken {
                initial_rows.wake_by(waker(wake));
            }
            Box::new(move || {
                let past = taken.as_mut().map_or(Past::Failed, InitialRows::read);
                if let Past::Rows(rows) = &past {
                    figures.past_rows.fetch_add(rows.len() as u64, Relaxed);
                }
                past
            })
        });
        let on_statistics: OnStatistics = Arc::new(move |published| {
            let figures = &run_state.metrics.figures;
            figures.publish(Board::of(published, bounds));
        });
        let past = Some(past);
        Some(StatisticsConfig {
            bounds,
            quotas: self.quotas.clone(),
            every_ms: STATISTICS_MS,
            end_after_ms,
            closes_after_ms,
            past,
            on_statistics,
            anomalies: self.anomalies(plan.fence.generation, known),
        })
    }

    /// Configures the live search for anomalies; `None` if it is off. Sessions that ended up to
    /// `found_to` were looked at before the start.
    fn anomalies(
        &self,
        generation: i64,
        (end_after_ms, found_to): (i64, EventTime),
    ) -> Option<AnomaliesConfig> {
        let Anomalies { kinds, thresholds } = self.config.anomalies.clone();
        if kinds.is_empty() {
            return None;
        }
        let run_state = Arc::clone(&self.run_state);
        let (ledger, keep) = (self.config.ledger.clone(), self.config.keep_anomalies);
        let marathon_ms = i64::try_from(thresholds.marathon.min).unwrap_or(i64::MAX);
        let figures = AnomalyFigures::of(&kinds, found_to, marathon_ms);
        let (state, looked_for) = (Mutex::new((figures, None)), kinds.clone());
        // Only worker 0 of the job calls this, so a thread is started only there.
        let on_anomalies: OnAnomalies = Arc::new(move |published| {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let (figures, rows) = &mut *state;
            let start =
                || AnomalyRows::keep(&ledger, (generation, end_after_ms), &looked_for, keep);
            rows.get_or_insert_with(start).take(published);
            figures.take(published, end_after_ms);
            run_state.metrics.figures.show_anomalies(figures);
        });
        let visitors = self.config.judged_visitors();
        Some(AnomaliesConfig {
            thresholds,
            kinds,
            bounds: DetectorBounds { hosts: HOSTS, visitors },
            out_of_orderness_ms: self.config.watermark.out_of_orderness_ms as u64,
            idle_timeout_ms: self.config.watermark.idle_timeout_ms,
            on_anomalies,
        })
    }

    /// Records what the commits change in the table, if the HTTP port is on.
    pub(super) fn on_changes(&self) -> OnChanges {
        if self.config.http.address.is_none() {
            return Arc::new(|_epoch, _changes| ());
        }
        let run_state = Arc::clone(&self.run_state);
        Arc::new(move |_epoch, changes| {
            let figures = &run_state.metrics.figures;
            let mut shown = figures.changes.lock().unwrap_or_else(PoisonError::into_inner);
            shown.take(changes, now_ms());
        })
    }
}
