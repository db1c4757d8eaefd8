//! The commit operator: hands complete epochs to the writers, and holds the durable frontier.
//!
//! A *writer* is one connection to the ledger and the thread that owns it. Shard `s` belongs to
//! writer `s mod writers`, and writer `w` lives on worker `w mod workers`. The operator hands
//! complete epochs to the thread and keeps its capability until they are durable, so a probe after
//! it is the durable frontier (I7). The thread joins all epochs that wait for it into one
//! transaction: the slower the ledger, the larger and fewer the transactions.
//!
//! In a backlog, epochs are shorter, to take less memory. If the table is large, writing them one
//! by one makes the ledger visit the pages of its index several times as often. So once many rows
//! have been written, epochs with rows are *gathered*. They are handed over when the full-length
//! tick that they belong to has passed, as if they had never been cut short. They are also handed
//! over when half of the epochs that may be in flight are waiting, or when memory is used up:
//! whoever waits for them to become durable must not wait for itself.
//!
//! The changes of a commit leave as `+1` and `-1` per row, at the last of its epochs, once it is
//! durable. Each leaves at most once per run of the program, so whoever keeps sums has to start
//! from the table. The writers commit independently of each other, so with the changes each one
//! sends the watermark that it has reached: up to the least of them, the table is complete.
//!
//! A replay produces again what was committed before a restart. The output of a shard passes only
//! if its epoch is after the shard's progress (I5).

mod driver;
mod hosted;
mod stash;
mod table_changes;
mod totals;
pub mod writer;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use sessionizer_core::key::Shard;
use sessionizer_core::plan::RecoveryPlan;
use sessionizer_core::time::Epoch;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::dataflow::commit::hosted::{HostedWriters, Pending};
use crate::dataflow::commit::stash::Stash;
use crate::dataflow::commit::writer::OpenLedger;
use crate::dataflow::messages::{Change, Committed, DeadLetter, EpochMeta, ShardOutput};
use crate::dataflow::run_state::RunState;

/// Builds the commit operator of this worker, with the writers that live here.
pub fn render_commit<'scope>(
    outputs: StreamVec<'scope, Epoch, ShardOutput>,
    metas: StreamVec<'scope, Epoch, EpochMeta>,
    dead_letters: StreamVec<'scope, Epoch, DeadLetter>,
    plan: &Arc<RecoveryPlan>,
    config: CommitConfig,
    run_state: Arc<RunState>,
) -> (StreamVec<'scope, Epoch, Change>, StreamVec<'scope, Epoch, Committed>) {
    let CommitConfig { writers, tick_ms, gather_from_rows, .. } = config;
    let first_epoch = plan.first_epoch;
    let scope = outputs.scope();
    let mut builder = OperatorBuilder::new("Commit".to_owned(), scope);
    let by_writer = move |shard: Shard| u64::from(shard.writer(writers));
    let route = move |output: &ShardOutput| by_writer(output.shard);
    let mut outputs = builder.new_input(outputs, Exchange::new(route));
    let mut metas = builder.new_input(metas, Pipeline);
    let route = move |letter: &DeadLetter| by_writer(letter.shard);
    let mut dead_letters = builder.new_input(dead_letters, Exchange::new(route));
    let (changes_out, changes) = builder.new_output();
    let mut changes_out = OutputBuilder::from(changes_out);
    let (committed_out, committed) = builder.new_output();
    let mut committed_out = OutputBuilder::from(committed_out);

    let mut hosted = HostedWriters::new(scope, &builder.operator_info(), plan, &config, &run_state);

    builder.build(move |_capabilities| {
        let mut stash = Stash::default();
        move |frontiers| {
            // 1. Drain the inputs into the stash, by epoch, with a capability for each output.
            outputs.for_each_stamp(|cap, batches| {
                let arrived = stash.of_epoch(&cap);
                arrived.outputs.extend(batches.flat_map(std::mem::take));
            });
            metas.for_each_stamp(|cap, batches| {
                let arrived = stash.of_epoch(&cap);
                arrived.meta = batches.flat_map(std::mem::take).next().or(arrived.meta.take());
            });
            dead_letters.for_each_stamp(|cap, batches| {
                let arrived = stash.of_epoch(&cap);
                arrived.dead_letters.extend(batches.flat_map(std::mem::take));
            });

            // 2. Find the frontier of all inputs: every earlier epoch is complete. After the last
            //    epoch it is empty.
            let first = frontiers.iter().filter_map(|input| input.frontier().first().copied());
            let frontier = first.min().unwrap_or(Epoch::MAX);

            // 3. Hand the complete epochs to the writers, unless they are gathered. Do not gather
            //    while memory is used up, because reading waits for what would be gathered. Do not
            //    gather in a replay either: the reader that waits may be in another process, whose
            //    memory is not known here, and it would wait for ever.
            let gathers = run_state.metrics.rows.load(Relaxed) >= gather_from_rows
                && frontier >= first_epoch
                && !run_state.memory.is_used_up();
            if !gathers || !stash.waits(frontier, tick_ms) {
                for (epoch, complete) in stash.take_before(frontier) {
                    hosted.submit(epoch, complete);
                }
            }

            // 4. Collect what the writers have made durable. Send the changes under the capability
            //    of the last epoch of their transaction, and drop it: this moves the durable
            //    frontier (I7).
            let (mut changes_out, mut committed_out) =
                (changes_out.activate(), committed_out.activate());
            for (writer, Pending { capabilities: [first, second], watermark }, mut changes) in
                hosted.acknowledged()
            {
                changes_out.session(&first).give_container(&mut changes);
                committed_out.session(&second).give(Committed { writer, watermark });
            }
        }
    });
    (changes, committed)
}

/// The configuration of the commit operator.
pub struct CommitConfig {
    pub writers: u32,
    pub driver: WriterDriver,
    /// The length of an epoch that is not cut short.
    pub tick_ms: u64,
    /// Short epochs are gathered once this process has written this many rows.
    pub gather_from_rows: u64,
    pub open: OpenLedger,
}

/// Who drives the writers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriterDriver {
    /// Each on a thread of its own, so that the ledger and computation overlap.
    Threads,
    /// The operator, one step per activation: for tests that control every step.
    Inline,
}
