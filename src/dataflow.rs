//! The graph, on one screen. No logic: that is in the operators and in what they call.
//!
//! ```text
//!        Kafka partition p  ->  worker (topic + p) mod workers
//!              |
//!   source ----+--- arrivals ---- exchange by shard ---> sessions --- outputs --> commit --> changes
//!   (decode,   +--- suspects ---- exchange by shard -------^   |   (exchange by lane)  ^     (probe)
//!    bind)     +--- cuts -------- broadcast ---------------+   +---- summaries --------+
//!              |                                                                       |
//!              +--- dead letters ------ exchange by lane ------------------------------+
//! ```
//!
//! The probe behind the commits is the durable frontier (I7); the source looks at it before it
//! reads on. The sessions tell the source of their worker which partitions are too far ahead.
//! Suspects are the events that `--late drop` may drop; otherwise there are none.

use std::sync::Arc;

use timely::dataflow::operators::Inspect;
use timely::dataflow::operators::probe::{Handle, Probe};
use timely::dataflow::operators::vec::Broadcast;
use timely::scheduling::{Activator, SyncActivator};
use timely::worker::Worker;

use crate::alignment::Drift;
use crate::control::{Control, Fault};
use crate::operators::commit::{CommitConfig, Drive, render_commit};
use crate::operators::lane::OpenLedger;
use crate::operators::sessions::{LoadedShard, SessionConfig, render_sessions};
use crate::operators::source::{SourceConfig, render_source};
use crate::operators::{Change, Feed};
use crate::plan::Plan;
use crate::time::Epoch;

/// What shapes the graph beside the plan.
pub struct Shape {
    pub source: SourceConfig,
    pub snapshot_interval_ms: u64,
    /// How far a partition may be ahead of the slowest.
    pub drift: Drift,
    pub lanes: u32,
    /// Short epochs are committed together once this process has written so many rows.
    pub gather_from_rows: u64,
    pub drive: Drive,
    pub on_changes: OnChanges,
}

/// Told of the rows that a commit of this worker's lanes has added or removed.
pub type OnChanges = Arc<dyn Fn(&[Change]) + Send + Sync>;

/// Builds the dataflow on this worker and gives what wakes its source and the durable frontier.
pub fn build<F: Feed + 'static>(
    worker: &mut Worker,
    plan: &Arc<Plan>,
    shape: &Shape,
    shards: Vec<LoadedShard>,
    open_feed: impl FnOnce(SyncActivator) -> Result<F, Fault>,
    open_ledger: OpenLedger,
    control: &Arc<Control>,
) -> (Activator, Handle<Epoch>) {
    let durable = Handle::new();
    let activator = worker.dataflow_named::<Epoch, _, _>("sessionizer", |scope| {
        let source = render_source(
            scope,
            plan,
            shape.source.clone(),
            Arc::clone(control),
            durable.clone(),
            open_feed,
        );
        let sessions = render_sessions(
            source.arrivals,
            source.suspects,
            source.cuts.broadcast(),
            plan,
            shards,
            SessionConfig {
                snapshot_interval_ms: shape.snapshot_interval_ms,
                drift: shape.drift,
                brake: source.brake,
            },
            Arc::clone(control),
        );
        let changes = render_commit(
            sessions.outputs,
            sessions.summaries,
            source.dead_letters,
            plan,
            CommitConfig {
                lanes: shape.lanes,
                drive: shape.drive,
                tick_ms: shape.source.epochs.ms,
                gather_from_rows: shape.gather_from_rows,
                open: open_ledger,
            },
            Arc::clone(control),
        );
        let on_changes = Arc::clone(&shape.on_changes);
        let changes = changes.inspect_core(move |event| {
            if let Ok((_epoch, changes)) = event {
                on_changes(changes);
            }
        });
        changes.probe_with(&durable);
        source.activator
    });
    (activator, durable)
}
