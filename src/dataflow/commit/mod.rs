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
mod totals;
pub mod writer;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use sessionizer_core::key::Shard;
use sessionizer_core::plan::RecoveryPlan;
use sessionizer_core::time::{Epoch, EventTime, tick};
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::scheduling::{Activator, SyncActivator};

use crate::dataflow::EPOCHS_IN_FLIGHT;
use crate::dataflow::commit::writer::{OpenLedger, StepOutcome, Writer, WriterEpoch};
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
    let CommitConfig { writers, driver, tick_ms, gather_from_rows, open } = config;
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

    let info = builder.operator_info();
    let mut hosted: Vec<HostedWriter> = (0..writers)
        .filter(|number| *number as usize % scope.peers() == scope.index())
        .map(|number| {
            let writer =
                Writer::new(number, writers, plan, Arc::clone(&open), Arc::clone(&run_state));
            match driver {
                WriterDriver::Threads => {
                    let waker = scope.worker().sync_activator_for(info.address.to_vec());
                    HostedWriter::on_a_thread(writer, number, waker, Arc::clone(&run_state))
                }
                WriterDriver::Inline => HostedWriter {
                    writer: number,
                    driven: Driven::Inline {
                        writer: Box::new(writer),
                        again: scope.activator_for(Rc::clone(&info.address)),
                    },
                    pending: BTreeMap::new(),
                    run_state: Arc::clone(&run_state),
                },
            }
        })
        .collect();

    builder.build(move |_capabilities| {
        let mut stash: BTreeMap<Epoch, Stash> = BTreeMap::new();
        move |frontiers| {
            // 1. Drain the inputs into the stash, by epoch, with a capability for the output.
            outputs.for_each_stamp(|cap, batches| {
                let epoch = *cap.least().expect("outputs travel under an epoch");
                let stash = stash.entry(epoch).or_default();
                stash.keep(|port| cap.retain_least(port));
                stash.outputs.extend(batches.flat_map(std::mem::take));
            });
            metas.for_each_stamp(|cap, batches| {
                let epoch = *cap.least().expect("metas travel under an epoch");
                let stash = stash.entry(epoch).or_default();
                stash.keep(|port| cap.retain_least(port));
                stash.meta = batches.flat_map(std::mem::take).next().or(stash.meta.take());
            });
            dead_letters.for_each_stamp(|cap, batches| {
                let epoch = *cap.least().expect("dead letters travel under an epoch");
                let stash = stash.entry(epoch).or_default();
                stash.keep(|port| cap.retain_least(port));
                stash.dead_letters.extend(batches.flat_map(std::mem::take));
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
            if !gathers || !waits(stash.range(..frontier), frontier, tick_ms) {
                let incomplete = stash.split_off(&frontier);
                for (epoch, complete) in std::mem::replace(&mut stash, incomplete) {
                    for (writer, capabilities, part) in complete.split(epoch, writers, &hosted) {
                        hosted[writer].submit(capabilities, part);
                    }
                }
            }

            // 4. Collect what the writers have made durable. Send the changes under the capability
            //    of the last epoch of their transaction, and drop it: this moves the durable
            //    frontier (I7).
            let (mut changes_out, mut committed_out) =
                (changes_out.activate(), committed_out.activate());
            for writer in &mut hosted {
                for (Pending { capabilities: [first, second], watermark }, mut changes) in
                    writer.acknowledged()
                {
                    changes_out.session(&first).give_container(&mut changes);
                    let writer = writer.writer;
                    committed_out.session(&second).give(Committed { writer, watermark });
                }
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

/// Whether complete epochs wait for later ones of the same tick.
fn waits<'a>(
    complete: impl Iterator<Item = (&'a Epoch, &'a Stash)> + Clone,
    frontier: Epoch,
    tick_ms: u64,
) -> bool {
    let mut epochs = complete.clone().map(|(epoch, _)| *epoch);
    let same_tick = |first| tick(first, tick_ms) == tick(frontier, tick_ms);
    epochs.next().is_some_and(same_tick)
        && epochs.count() + 1 < EPOCHS_IN_FLIGHT / 2
        && complete.into_iter().any(|(_, stash)| stash.has_rows())
}

/// One for each output.
type Capabilities = [Capability<Epoch>; 2];

/// What has arrived of an epoch that is incomplete, or that waits for others.
#[derive(Default)]
struct Stash {
    capabilities: Option<Capabilities>,
    outputs: Vec<ShardOutput>,
    meta: Option<EpochMeta>,
    dead_letters: Vec<DeadLetter>,
}

impl Stash {
    /// Keeps the capabilities of the first message.
    fn keep(&mut self, retain: impl Fn(usize) -> Option<Capability<Epoch>>) {
        let retain = |port| retain(port).expect("a message's stamp holds its epoch");
        self.capabilities.get_or_insert_with(|| [0, 1].map(retain));
    }

    fn has_rows(&self) -> bool {
        self.outputs.iter().any(|output| !output.closed.is_empty())
    }

    /// The part of each hosted writer, by its index among them.
    fn split(
        self,
        epoch: Epoch,
        writers: u32,
        hosted: &[HostedWriter],
    ) -> Vec<(usize, Capabilities, WriterEpoch)> {
        let meta = self.meta.expect("every epoch has its meta on every worker");
        let capabilities = self.capabilities.expect("a stash begins with a message");
        let mut parts: BTreeMap<u32, WriterEpoch> = hosted
            .iter()
            .map(|writer| {
                let meta = meta.clone();
                let (outputs, dead_letters) = (Vec::new(), Vec::new());
                (writer.writer, WriterEpoch { epoch, meta, outputs, dead_letters })
            })
            .collect();
        for output in self.outputs {
            let part = parts.get_mut(&output.shard.writer(writers)).expect("routed to its writer");
            part.outputs.push(output);
        }
        for letter in self.dead_letters {
            let part = parts.get_mut(&letter.shard.writer(writers)).expect("routed to its writer");
            part.dead_letters.push(letter);
        }
        let parts = parts.into_values().enumerate();
        parts.map(|(at, part)| (at, capabilities.clone(), part)).collect()
    }
}

/// Who drives the writers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriterDriver {
    /// Each on a thread of its own, so that the ledger and computation overlap.
    Threads,
    /// The operator, one step per activation: for tests that control every step.
    Inline,
}

/// The operator's end of a writer.
struct HostedWriter {
    writer: u32,
    driven: Driven,
    /// Epochs handed over; their capabilities hold the durable frontier back (I7).
    pending: BTreeMap<Epoch, Pending>,
    run_state: Arc<RunState>,
}

/// An epoch that was handed over.
struct Pending {
    capabilities: Capabilities,
    watermark: EventTime,
}

enum Driven {
    Thread { work: Sender<WriterEpoch>, done: Receiver<(Epoch, Vec<Change>)> },
    Inline { writer: Box<Writer>, again: Activator },
}

impl HostedWriter {
    fn on_a_thread(
        writer: Writer,
        number: u32,
        waker: SyncActivator,
        run_state: Arc<RunState>,
    ) -> Self {
        let (work, inbox) = channel();
        let (acknowledge, done) = channel();
        let fail = Arc::clone(&run_state);
        thread::Builder::new()
            .name(format!("writer-{number}"))
            .spawn(move || {
                if let Err(fault) = driver::run(writer, &inbox, &acknowledge, &waker) {
                    fail.fail(fault);
                }
            })
            .expect("a thread can be started");
        let driven = Driven::Thread { work, done };
        HostedWriter { writer: number, driven, pending: BTreeMap::new(), run_state }
    }

    /// Hands an epoch over to the writer.
    fn submit(&mut self, capabilities: Capabilities, part: WriterEpoch) {
        let watermark = part.meta.watermark;
        self.pending.insert(part.epoch, Pending { capabilities, watermark });
        match &mut self.driven {
            // A writer that is gone has failed: the run ends, and the capability stays until then.
            Driven::Thread { work, .. } => drop(work.send(part)),
            Driven::Inline { writer, .. } => writer.submit(part),
        }
    }

    /// Returns the last epoch of each transaction that has become durable, and what that changed.
    /// The capabilities of the epochs before it are dropped.
    fn acknowledged(&mut self) -> Vec<(Pending, Vec<Change>)> {
        let mut durable = Vec::new();
        match &mut self.driven {
            Driven::Thread { done, .. } => durable.extend(done.try_iter()),
            Driven::Inline { writer, again } => match writer.step() {
                Ok(StepOutcome::Idle) => {}
                Ok(StepOutcome::Failed) => again.activate(),
                Ok(StepOutcome::Durable(upto, changes)) => {
                    durable.push((upto, changes));
                    again.activate();
                }
                Err(fault) => self.run_state.fail(fault),
            },
        }
        let mut acknowledged = Vec::with_capacity(durable.len());
        for (upto, changes) in durable {
            let later = self.pending.split_off(&(upto + 1));
            let done = std::mem::replace(&mut self.pending, later);
            let (_, last) = done.into_iter().next_back().expect("it was handed over");
            acknowledged.push((last, changes));
        }
        acknowledged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sessionizer_core::key::Key;
    use sessionizer_core::session::{Closed, Span};
    use sessionizer_core::time::EventTime;

    const TICK_MS: u64 = 1_000;

    /// Whether these complete epochs wait; each comes with whether it has rows.
    fn wait(complete: &[(Epoch, bool)], frontier: Epoch) -> bool {
        let stash = |rows: &bool| {
            let span = Span::event(EventTime::from_millis(0));
            let closed = Closed { key: Key::new("ip", "host"), span, late: false };
            let closed = rows.then_some(closed).into_iter().collect();
            let output = ShardOutput {
                shard: Shard(0),
                closed,
                dropped: Vec::new(),
                open_records: 1,
                snapshot: None,
            };
            Stash { outputs: vec![output], ..Stash::default() }
        };
        let stashes: BTreeMap<Epoch, Stash> =
            complete.iter().map(|(epoch, rows)| (*epoch, stash(rows))).collect();
        waits(stashes.iter(), frontier, TICK_MS)
    }

    #[test]
    fn short_epochs_wait_until_their_tick_has_passed() {
        assert!(wait(&[(5_000, true)], 5_250));
        assert!(wait(&[(5_000, true), (5_250, true), (5_500, false)], 5_750));
        assert!(!wait(&[(5_000, true), (5_250, true)], 6_000));
        assert!(!wait(&[(5_750, true)], 6_000));
        assert!(!wait(&[(5_000, true)], Epoch::MAX), "nothing comes after the last");
        assert!(!wait(&[], 5_000));
    }

    #[test]
    fn epochs_without_rows_do_not_wait_for_rows() {
        assert!(!wait(&[(5_000, false), (5_250, false)], 5_500));
        assert!(wait(&[(5_000, false), (5_250, true)], 5_500));
    }

    #[test]
    fn those_that_wait_are_fewer_than_half_of_what_may_be_in_flight() {
        let epochs = |count: u64| (0..count).map(|at| (5_000 + at, true)).collect::<Vec<_>>();
        let half = EPOCHS_IN_FLIGHT as u64 / 2;
        assert!(wait(&epochs(half - 1), 5_900));
        assert!(!wait(&epochs(half), 5_900));
    }
}
