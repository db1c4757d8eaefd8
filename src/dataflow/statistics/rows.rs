//! The rows that the statistics are computed from: the changes of the commits, and what the table
//! had at the start.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sessionizer_core::anomaly::OpenReport;
use sessionizer_core::time::{Epoch, EventTime};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::{OutputBuilder, OutputBuilderSession};
use timely::scheduling::{Activator, SyncActivator};

use crate::dataflow::graph::OnChanges;
use crate::dataflow::messages::Change;
use crate::dataflow::statistics::sums::{Host, Row};

/// How many batches of the past one activation reads, so that a start does not hold up the rest.
const BATCHES: usize = 4;

/// How long a bounded run waits before it looks again whether it is to stop.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A message to the window of a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum WindowInput {
    Row(Row),
    /// What has become of a long session of this host.
    Open(Host, OpenReport),
    /// To this worker: no session that closed before the start ended after `horizon`.
    Horizon {
        worker: usize,
        horizon: EventTime,
    },
    /// To this worker: all rows that the table had at the start have been sent, or could not be
    /// read.
    Past {
        worker: usize,
        whole: bool,
    },
}

impl WindowInput {
    /// A report on a long session.
    pub fn open(report: OpenReport) -> Self {
        let (_, host) = report.key.parts();
        WindowInput::Open(Host::named(host), report)
    }

    /// The worker that it goes to, modulo the number of workers.
    pub fn route(&self) -> u64 {
        match self {
            WindowInput::Row(row) => row.host.0,
            WindowInput::Open(host, _) => host.0,
            WindowInput::Horizon { worker, .. } | WindowInput::Past { worker, .. } => {
                *worker as u64
            }
        }
    }
}

/// The next of the rows that the table had at the start.
pub enum Past {
    /// These, each as a change that adds it.
    Rows(Vec<Change>),
    /// More will come; whoever reads them wakes the operator then.
    Waiting,
    /// That was all of it.
    Whole,
    /// The rest cannot be read.
    Failed,
}

/// Begins to read what the table had at the start, given what wakes the operator.
pub type OpenPast = Arc<dyn Fn(SyncActivator) -> Box<dyn FnMut() -> Past> + Send + Sync>;

/// What is known of the time before the start.
#[derive(Clone, Copy, Debug)]
pub struct Before {
    /// The latest end of the sessions that the shards of this worker had closed.
    pub horizon: EventTime,
    /// The first epoch that is not replayed.
    pub first_epoch: Epoch,
    /// The watermark of the epoch before it.
    pub watermark: EventTime,
    /// How many writers there are.
    pub writers: u32,
}

/// Turns the changes of this worker's commits into rows. The second output has no data: its
/// frontier is that of the changes, and does not wait for anything that happens here. `waits` says
/// whether the end of the changes waits for the past.
pub fn render_rows<'scope>(
    changes: StreamVec<'scope, Epoch, Change>,
    end_after_ms: i64,
    before: Before,
    on_changes: OnChanges,
    past: Option<OpenPast>,
    waits: impl Fn() -> bool + 'static,
) -> (StreamVec<'scope, Epoch, WindowInput>, StreamVec<'scope, Epoch, ()>) {
    let scope = changes.scope();
    let mut builder = OperatorBuilder::new("Rows".to_owned(), scope);
    let mut changes = builder.new_input(changes, Pipeline);
    let (inputs_out, inputs) = builder.new_output();
    let (_durable_out, durable) = builder.new_output();
    let mut inputs_out = OutputBuilder::from(inputs_out);
    let info = builder.operator_info();
    let peers = scope.peers();
    // Worker 0 reads the past for all workers.
    let past = past.filter(|_| scope.index() == 0);
    let mut past = past.map(|open| PastSender {
        read: open(scope.worker().sync_activator_for(info.address.to_vec())),
        again: scope.activator_for(std::rc::Rc::clone(&info.address)),
        peers,
        end_after_ms,
    });
    builder.build(move |mut capabilities| {
        capabilities.truncate(1);
        let mut held: Option<Capability<Epoch>> = capabilities.pop();
        let mut horizon = Some(before.horizon);
        move |frontiers| {
            let mut inputs_out = inputs_out.activate();
            if let (Some(horizon), Some(cap)) = (horizon.take(), &held) {
                let to = |worker| WindowInput::Horizon { worker, horizon };
                inputs_out.session(cap).give_iterator((0..peers).map(to));
            }
            changes.for_each_stamp(|cap, batches| {
                let epoch = *cap.least().expect("changes travel under an epoch");
                let cap = cap.retain_least(0).expect("a message's stamp holds its epoch");
                let mut session = inputs_out.session(&cap);
                for batch in batches {
                    on_changes(epoch, batch);
                    session.give_iterator(batch.drain(..).map(|row| row_input(row, end_after_ms)));
                }
            });
            // What the table had at the start is sent at the current epoch, once the replay is
            // over: what a replay closes may be in that table already.
            let present = frontiers[0].frontier().first().copied();
            let ended = present.is_none();
            // At its end a bounded run waits for them, because nothing else would look for the
            // anomalies of its rows. A stop does not wait.
            let (Some(sender), Some(cap)) =
                (&mut past, held.as_mut().filter(|_| !ended || waits()))
            else {
                (past, held) = (None, None);
                return;
            };
            let present = present.unwrap_or(before.first_epoch.max(*cap.time()));
            cap.downgrade(&present);
            if present >= before.first_epoch && sender.send(&mut inputs_out, cap, ended) {
                (past, held) = (None, None);
            }
        }
    });
    (inputs, durable)
}

/// Sends what the table had at the start.
struct PastSender {
    read: Box<dyn FnMut() -> Past>,
    /// Activates the operator that sends.
    again: Activator,
    peers: usize,
    end_after_ms: i64,
}

impl PastSender {
    /// Sends the next few batches, and arranges the next activation. Returns whether that was all.
    /// If the changes have ended, nothing else wakes the operator.
    fn send(
        &mut self,
        output: &mut OutputBuilderSession<'_, Epoch, CapacityContainerBuilder<Vec<WindowInput>>>,
        cap: &Capability<Epoch>,
        ended: bool,
    ) -> bool {
        let mut session = output.session(cap);
        for _ in 0..BATCHES {
            let whole = match (self.read)() {
                Past::Rows(rows) => {
                    let end_after_ms = self.end_after_ms;
                    let rows = rows.into_iter().map(|row| row_input(row, end_after_ms));
                    session.give_iterator(rows);
                    continue;
                }
                Past::Waiting => {
                    if ended {
                        self.again.activate_after(LOOK_AGAIN);
                    }
                    return false;
                }
                Past::Whole => true,
                Past::Failed => false,
            };
            let to = |worker| WindowInput::Past { worker, whole };
            session.give_iterator((0..self.peers).map(to));
            return true;
        }
        self.again.activate();
        false
    }
}

fn row_input(change: Change, end_after_ms: i64) -> WindowInput {
    let Change { key, span, diff } = change;
    WindowInput::Row(Row::new(key, span, span.last.plus(end_after_ms).millis(), diff))
}
