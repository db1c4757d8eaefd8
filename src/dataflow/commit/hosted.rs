//! The operator's end of its writers: hands them epochs, and keeps the capabilities of these until
//! they are durable (I7).

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use sessionizer_core::plan::RecoveryPlan;
use sessionizer_core::time::{Epoch, EventTime};
use timely::dataflow::Scope;
use timely::dataflow::operators::generic::OperatorInfo;
use timely::scheduling::{Activator, SyncActivator};

use crate::dataflow::commit::stash::{Capabilities, EpochStash};
use crate::dataflow::commit::writer::{StepOutcome, Writer, WriterEpoch};
use crate::dataflow::commit::{CommitConfig, WriterDriver, driver};
use crate::dataflow::messages::Change;
use crate::dataflow::run_state::RunState;

/// The writers that live on this worker.
pub(super) struct HostedWriters {
    /// In the order of their numbers.
    hosted: Vec<HostedWriter>,
    /// How many writers the job has.
    writers: u32,
}

impl HostedWriters {
    /// Starts the writers of this worker; `info` is that of the operator that they wake.
    pub(super) fn new(
        scope: Scope<'_, Epoch>,
        info: &OperatorInfo,
        plan: &RecoveryPlan,
        config: &CommitConfig,
        run_state: &Arc<RunState>,
    ) -> Self {
        let CommitConfig { writers, driver, open, .. } = config;
        let is_here = |number: &u32| *number as usize % scope.peers() == scope.index();
        let host = |number| {
            let open = Arc::clone(open);
            let writer = Writer::new(number, *writers, plan, open, Arc::clone(run_state));
            let driven = match driver {
                WriterDriver::Threads => {
                    let waker = scope.worker().sync_activator_for(info.address.to_vec());
                    Driven::by_a_thread(writer, waker, Arc::clone(run_state))
                }
                WriterDriver::Inline => Driven::Inline {
                    writer: Box::new(writer),
                    again: scope.activator_for(Rc::clone(&info.address)),
                },
            };
            let (pending, run_state) = (BTreeMap::new(), Arc::clone(run_state));
            HostedWriter { number, driven, pending, run_state }
        };
        let hosted = (0..*writers).filter(is_here).map(host).collect();
        HostedWriters { hosted, writers: *writers }
    }

    /// Hands a complete epoch over, to each writer its part.
    pub(super) fn submit(&mut self, epoch: Epoch, complete: EpochStash) {
        let numbers = self.hosted.iter().map(|writer| writer.number);
        let (capabilities, parts) = complete.split(epoch, numbers, self.writers);
        for (writer, part) in self.hosted.iter_mut().zip(parts.into_values()) {
            writer.submit(capabilities.clone(), part);
        }
    }

    /// The last epoch of each transaction that has become durable, with its writer, and what that
    /// changed.
    pub(super) fn acknowledged(&mut self) -> impl Iterator<Item = (u32, Pending, Vec<Change>)> {
        self.hosted.iter_mut().flat_map(|writer| {
            let number = writer.number;
            let acknowledged = writer.acknowledged().into_iter();
            acknowledged.map(move |(last, changes)| (number, last, changes))
        })
    }
}

/// The operator's end of a writer.
struct HostedWriter {
    number: u32,
    driven: Driven,
    /// Epochs handed over; their capabilities hold the durable frontier back (I7).
    pending: BTreeMap<Epoch, Pending>,
    run_state: Arc<RunState>,
}

/// An epoch that was handed over.
pub(super) struct Pending {
    pub(super) capabilities: Capabilities,
    pub(super) watermark: EventTime,
}

enum Driven {
    Thread { work: Sender<WriterEpoch>, done: Receiver<(Epoch, Vec<Change>)> },
    Inline { writer: Box<Writer>, again: Activator },
}

impl Driven {
    fn by_a_thread(writer: Writer, waker: SyncActivator, run_state: Arc<RunState>) -> Self {
        let (work, inbox) = channel();
        let (acknowledge, done) = channel();
        thread::Builder::new()
            .name(format!("writer-{}", writer.number()))
            .spawn(move || {
                if let Err(fault) = driver::run(writer, &inbox, &acknowledge, &waker) {
                    run_state.fail(fault);
                }
            })
            .expect("a thread can be started");
        Driven::Thread { work, done }
    }
}

impl HostedWriter {
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
