//! The graph, on one screen. It contains no logic: that is in the operators and in what they call.
//!
//! ```text
//!      Kafka partition  ->  its worker (Partition::worker)
//!            |
//! source ----+--- arrivals -- exchange by shard ---> sessions --- outputs --> commit --> changes
//! (decode,   +--- suspects -- exchange by shard -------^   |   (exchange by writer)  ^     (probe)
//!  bind)     +--- bindings -- broadcast ---------------+   +------ metas ----------+
//!            |                                                                     |
//!            +--- dead letters ---- exchange by writer ----------------------------+
//! ```
//!
//! The changes go on to the statistics, if there are any (`statistics/mod.rs` draws them), and so
//! do the watermarks that the writers have reached and the reports on long sessions that are open.
//!
//! The probe after the commits is the durable frontier (I7); the source consults it before it reads
//! on. The sessions tell the source of their worker which partitions are too far ahead. Suspects
//! are the events that `--late drop` may drop; without it there are none.

use std::sync::Arc;

use sessionizer_core::alignment::Drift;
use sessionizer_core::fault::Fault;
use sessionizer_core::plan::RecoveryPlan;
use sessionizer_core::time::{Epoch, EventTime};
use timely::dataflow::StreamVec;
use timely::dataflow::operators::Inspect;
use timely::dataflow::operators::probe::{Handle, Probe};
use timely::dataflow::operators::vec::Broadcast;
use timely::scheduling::{Activator, SyncActivator};
use timely::worker::Worker;

use crate::dataflow::commit::writer::OpenLedger;
use crate::dataflow::commit::{CommitConfig, WriterDriver, render_commit};
use crate::dataflow::messages::Change;
use crate::dataflow::ports::Feed;
use crate::dataflow::run_state::RunState;
use crate::dataflow::sessions::{LoadedShard, SessionConfig, render_sessions};
use crate::dataflow::source::SourceConfig;
use crate::dataflow::source::operator::render_source;
use crate::dataflow::statistics::rows::Before;
use crate::dataflow::statistics::{StatisticsConfig, StatisticsInputs, render_statistics};

/// What shapes the graph, besides the plan.
pub struct DataflowConfig {
    pub source: SourceConfig,
    pub snapshot_interval_ms: u64,
    /// How far a partition may be ahead of the slowest.
    pub drift: Drift,
    pub writers: u32,
    /// Short epochs are committed together once this process has written this many rows.
    pub gather_from_rows: u64,
    pub driver: WriterDriver,
    pub on_changes: OnChanges,
    pub statistics: Option<StatisticsConfig>,
}

/// Receives the rows that a commit of this worker's writers has added or removed, with the last
/// epoch of the commit.
pub type OnChanges = Arc<dyn Fn(Epoch, &[Change]) + Send + Sync>;

/// Builds the dataflow on this worker. Returns the activator of its source, and the durable
/// frontier.
pub fn build<F: Feed + 'static>(
    worker: &mut Worker,
    plan: &Arc<RecoveryPlan>,
    config: &DataflowConfig,
    shards: Vec<LoadedShard>,
    open_feed: impl FnOnce(SyncActivator) -> Result<F, Fault>,
    open_ledger: OpenLedger,
    run_state: &Arc<RunState>,
) -> (Activator, Handle<Epoch>) {
    let durable = Handle::new();
    let before = before(plan, &shards, config.writers);
    let activator = worker.dataflow_named::<Epoch, _, _>("sessionizer", |scope| {
        let source = render_source(
            scope,
            plan,
            config.source.clone(),
            Arc::clone(run_state),
            durable.clone(),
            open_feed,
        );
        let sessions = render_sessions(
            source.arrivals,
            source.suspects,
            source.bindings.broadcast(),
            plan,
            shards,
            SessionConfig {
                snapshot_interval_ms: config.snapshot_interval_ms,
                drift: config.drift,
                feedback: source.feedback,
                long_above_ms: config.statistics.as_ref().and_then(StatisticsConfig::long_above_ms),
            },
            Arc::clone(run_state),
        );
        // The copies cost a commit some microseconds; without statistics there is none.
        let metas = config.statistics.as_ref().map(|_| sessions.metas.clone());
        let (changes, committed) = render_commit(
            sessions.outputs,
            sessions.metas,
            source.dead_letters,
            plan,
            CommitConfig {
                writers: config.writers,
                driver: config.driver,
                tick_ms: config.source.epochs.ms,
                gather_from_rows: config.gather_from_rows,
                open: open_ledger,
            },
            Arc::clone(run_state),
        );
        let on_changes = Arc::clone(&config.on_changes);
        match (config.statistics.clone(), metas) {
            (Some(statistics), Some(metas)) => {
                let long = sessions.long;
                let inputs = StatisticsInputs { changes, committed, metas, long };
                render_statistics(inputs, (statistics, before), on_changes, run_state)
                    .probe_with(&durable);
            }
            _ => {
                report_changes(changes, on_changes).probe_with(&durable);
            }
        }
        source.activator
    });
    (activator, durable)
}

/// What the statistics are told of the time before the start.
fn before(plan: &RecoveryPlan, shards: &[LoadedShard], writers: u32) -> Before {
    let horizon = shards.iter().map(|loaded| loaded.table.horizon()).max();
    Before {
        horizon: horizon.unwrap_or(EventTime::NEVER),
        first_epoch: plan.first_epoch,
        watermark: plan.bound_watermark(),
        writers,
    }
}

/// Passes the changes on as they are.
fn report_changes(
    changes: StreamVec<'_, Epoch, Change>,
    on_changes: OnChanges,
) -> StreamVec<'_, Epoch, Change> {
    changes.inspect_core(move |event| {
        if let Ok((epochs, changes)) = event {
            let epoch = *epochs.least().expect("changes travel under an epoch");
            on_changes(epoch, changes);
        }
    })
}
