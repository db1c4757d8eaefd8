//! The session operator: takes events and bindings; produces closed sessions, snapshots, the meta
//! of each epoch and, for the detectors of anomalies, reports on open sessions that last long.
//!
//! It processes an epoch once the frontiers of all inputs have passed it. Then every event and
//! every binding of the epoch has arrived, all workers see the same bindings, and so all close the
//! same sessions. It stores open sessions only, never events of completed epochs. It knows nothing
//! of records and offsets, nor of what becomes of its output. What an epoch does to the shards of a
//! worker is in `shards.rs`.

mod long;
mod shards;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use sessionizer_core::alignment::Drift;
use sessionizer_core::anomaly::OpenReport;
use sessionizer_core::key::Shard;
use sessionizer_core::plan::RecoveryPlan;
use sessionizer_core::session::SessionTable;
use sessionizer_core::time::Epoch;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::{Capability, InputCapability};

use self::shards::{Input, Sessions};
use crate::dataflow::feedback::Feedback;
use crate::dataflow::messages::{EpochMeta, ShardOutput, SourceBindings, Suspect};
use crate::dataflow::run_state::RunState;
use crate::dataflow::span_batch::SpanBatch;

/// A shard as it was loaded: the content of its snapshot, and the snapshot's epoch.
pub struct LoadedShard {
    pub shard: Shard,
    pub epoch: Epoch,
    pub table: SessionTable,
}

/// The configuration of the session operator.
pub struct SessionConfig {
    pub snapshot_interval_ms: u64,
    /// How far a partition may be ahead of the slowest.
    pub drift: Drift,
    /// Pauses partitions of this worker's source.
    pub feedback: Rc<Feedback>,
    /// Open sessions that last longer are reported to the detectors of anomalies, if these look
    /// for marathons.
    pub long_above_ms: Option<u64>,
}

/// The outputs of the session operator.
pub struct SessionStreams<'scope> {
    /// To the writer of each shard; a shard in which nothing happened sends nothing.
    pub outputs: StreamVec<'scope, Epoch, ShardOutput>,
    /// One per epoch, to the writers of this worker.
    pub metas: StreamVec<'scope, Epoch, EpochMeta>,
    /// What becomes of the long sessions that are open.
    pub long: StreamVec<'scope, Epoch, OpenReport>,
}

/// Builds the session operator of this worker over its `shards`.
pub fn render_sessions<'scope>(
    arrivals: StreamVec<'scope, Epoch, SpanBatch>,
    suspects: StreamVec<'scope, Epoch, Suspect>,
    bindings: StreamVec<'scope, Epoch, SourceBindings>,
    plan: &Arc<RecoveryPlan>,
    shards: Vec<LoadedShard>,
    config: SessionConfig,
    run_state: Arc<RunState>,
) -> SessionStreams<'scope> {
    let scope = arrivals.scope();
    let peers = scope.peers();
    let count = plan.shards();
    let mut builder = OperatorBuilder::new("Sessions".to_owned(), scope);
    let route = |batch: &SpanBatch| u64::from(batch.worker);
    let mut arrivals = builder.new_input(arrivals, Exchange::new(route));
    let route = move |suspect: &Suspect| Shard::of(suspect.hash, count).0 as u64;
    let mut suspects = builder.new_input(suspects, Exchange::new(route));
    let mut bindings = builder.new_input(bindings, Pipeline);
    let (outputs_out, outputs) = builder.new_output();
    let (metas_out, metas) = builder.new_output();
    let (long_out, long) = builder.new_output();
    let mut outputs_out = OutputBuilder::from(outputs_out);
    let mut metas_out = OutputBuilder::from(metas_out);
    let mut long_out = OutputBuilder::from(long_out);
    let place = (scope.index(), peers);
    let mut worker = Sessions::new(plan, shards, place, config, run_state);
    builder.build(move |_capabilities| {
        let mut stash = Stash::default();
        move |frontiers| {
            // 1. Drain the inputs into the stash, by epoch, with a capability for each output.
            //    Bindings also tell the source of this worker, at once, how far the others are.
            arrivals.for_each_stamp(|cap, batches| {
                stash.of_epoch(&cap).input.arrivals.extend(batches.map(std::mem::take));
            });
            suspects.for_each_stamp(|cap, batches| {
                stash.of_epoch(&cap).input.suspects.extend(batches.flat_map(std::mem::take));
            });
            bindings.for_each_stamp(|cap, batches| {
                let epoch = *cap.least().expect("bindings travel under an epoch");
                let arrived = stash.of_epoch(&cap);
                for source in batches.flat_map(std::mem::take) {
                    worker.learn(epoch, &source);
                    arrived.input.bindings.push(source);
                }
            });

            // 2. Find out which epochs are complete: those that no input can still send for. If
            //    every input is closed, the last of them is the last epoch of the run.
            let open = |epoch: &Epoch| frontiers.iter().any(|f| f.less_equal(epoch));
            let last = frontiers.iter().all(|f| f.frontier().is_empty());

            // 3. Step through the complete epochs in order. Send what each produced under its own
            //    capability, and drop the capability.
            let mut outputs_out = outputs_out.activate();
            let mut metas_out = metas_out.activate();
            let mut long_out = long_out.activate();
            while let Some(entry) = stash.epochs.first_entry() {
                let epoch = *entry.key();
                if open(&epoch) {
                    break;
                }
                let complete = entry.remove();
                let last = last && stash.epochs.is_empty();
                let (meta, outputs, long) = worker.step(epoch, complete.input, last);
                let caps = complete.caps.expect("a stash begins with a message");
                let [outputs_cap, metas_cap, long_cap] = caps;
                outputs_out.session(&outputs_cap).give_iterator(outputs.into_iter());
                metas_out.session(&metas_cap).give(meta);
                long_out.session(&long_cap).give_iterator(long.into_iter());
            }
        }
    });
    SessionStreams { outputs, metas, long }
}

/// What has arrived, by epoch, of those that are incomplete.
#[derive(Default)]
struct Stash {
    epochs: BTreeMap<Epoch, EpochStash>,
}

#[derive(Default)]
struct EpochStash {
    /// One for each output.
    caps: Option<[Capability<Epoch>; 3]>,
    input: Input,
}

impl Stash {
    /// The entry of a message's epoch. It keeps the capabilities of the first message.
    fn of_epoch(&mut self, cap: &InputCapability<Epoch>) -> &mut EpochStash {
        let epoch = *cap.least().expect("messages travel under an epoch");
        let of_epoch = self.epochs.entry(epoch).or_default();
        let retain = |port| cap.retain_least(port).expect("a message's stamp holds its epoch");
        of_epoch.caps.get_or_insert_with(|| [0, 1, 2].map(retain));
        of_epoch
    }
}
