//! The source as a timely operator: activates the reader and sends what it has produced.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sessionizer_core::fault::Fault;
use sessionizer_core::plan::RecoveryPlan;
use sessionizer_core::time::Epoch;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::probe;
use timely::dataflow::{Scope, StreamVec};
use timely::scheduling::{Activator, SyncActivator};

use crate::dataflow::feedback::Feedback;
use crate::dataflow::messages::{DeadLetter, SourceBindings, Suspect};
use crate::dataflow::ports::Feed;
use crate::dataflow::run_state::RunState;
use crate::dataflow::source::SourceConfig;
use crate::dataflow::source::emit::{Emit, NextActivation};
use crate::dataflow::source::reader::Reader;
use crate::dataflow::span_batch::SpanBatch;

/// The outputs of a source.
pub struct SourceStreams<'scope> {
    /// To the shards.
    pub arrivals: StreamVec<'scope, Epoch, SpanBatch>,
    /// To the shards, in addition to the arrivals.
    pub suspects: StreamVec<'scope, Epoch, Suspect>,
    /// To every worker.
    pub bindings: StreamVec<'scope, Epoch, SourceBindings>,
    /// To the commit writers.
    pub dead_letters: StreamVec<'scope, Epoch, DeadLetter>,
    /// Wakes the source of this worker, for a clean stop.
    pub activator: Activator,
    /// Pauses partitions of this worker.
    pub feedback: Rc<Feedback>,
}

/// Builds the source of this worker. `open` creates the feed, given what wakes the source when
/// records have arrived; `durable` is the probe after the commits.
pub fn render_source<'scope, F: Feed + 'static>(
    scope: Scope<'scope, Epoch>,
    plan: &Arc<RecoveryPlan>,
    config: SourceConfig,
    run_state: Arc<RunState>,
    durable: probe::Handle<Epoch>,
    open: impl FnOnce(SyncActivator) -> Result<F, Fault>,
) -> SourceStreams<'scope> {
    let mut builder = OperatorBuilder::new("Source".to_owned(), scope);
    let (arrivals_out, arrivals) = builder.new_output();
    let (suspects_out, suspects) = builder.new_output();
    let (bindings_out, bindings) = builder.new_output();
    let (dead_out, dead_letters) = builder.new_output();
    let mut arrivals_out = OutputBuilder::from(arrivals_out);
    let mut suspects_out = OutputBuilder::from(suspects_out);
    let mut bindings_out = OutputBuilder::from(bindings_out);
    let mut dead_out = OutputBuilder::from(dead_out);
    let info = builder.operator_info();
    let activator = scope.activator_for(Rc::clone(&info.address));
    let waker = scope.worker().sync_activator_for(info.address.to_vec());
    let mut alarm = Alarm { set: config.alarm, activator: activator.clone(), rings_at: None };
    let feedback = Rc::new(Feedback::new(activator.clone()));
    let feed = open(waker);
    let mut reader = None;
    match feed.and_then(|feed| {
        let place = (scope.index(), scope.peers());
        let feedback = Rc::clone(&feedback);
        Reader::new(plan, config, Arc::clone(&run_state), durable, feed, place, feedback)
    }) {
        Ok(made) => reader = Some(made),
        Err(fault) => run_state.fail(fault),
    }
    builder.build_reschedule(move |capabilities| {
        let mut capabilities = Some(capabilities);
        move |_frontiers| {
            // 1. Do nothing once the run has failed. The capabilities stay: dropping them would
            //    claim progress that was never made.
            let Some(reader) = reader.as_mut() else { return true };
            if run_state.failed() {
                return true;
            }

            // 2. Let the reader read, cut epochs and bind them.
            let mut emit = Emit::default();
            let next = match reader.activate(&mut emit) {
                Ok(next) => next,
                Err(fault) => {
                    run_state.fail(fault);
                    return true;
                }
            };

            // 3. Send what it produced, each epoch under a capability of that epoch. Then
            //    downgrade the capabilities to the epoch that is being read, or drop them after
            //    the last one.
            if let Some(caps) = capabilities.as_mut() {
                send(&mut arrivals_out, &mut caps[0], emit.arrivals);
                send(&mut suspects_out, &mut caps[1], emit.suspects);
                send(&mut bindings_out, &mut caps[2], emit.bindings);
                send(&mut dead_out, &mut caps[3], emit.dead);
                match reader.frontier() {
                    Some(epoch) => caps.iter_mut().for_each(|cap| cap.downgrade(&epoch)),
                    None => capabilities = None,
                }
            }

            // 4. Arrange the next activation.
            match next {
                NextActivation::Now => alarm.activator.activate(),
                NextActivation::After(delay) => alarm.ring_after(delay),
                NextActivation::Done => return false,
            }
            true
        }
    });
    SourceStreams { arrivals, suspects, bindings, dead_letters, activator, feedback }
}

/// Activates the source later. Each alarm is set once: records wake the source as well, and if
/// every activation set an alarm, they would multiply without end.
struct Alarm {
    set: bool,
    activator: Activator,
    rings_at: Option<Instant>,
}

impl Alarm {
    fn ring_after(&mut self, delay: Duration) {
        let now = Instant::now();
        if self.set && self.rings_at.is_none_or(|at| at <= now || at > now + delay) {
            self.rings_at = Some(now + delay);
            self.activator.activate_after(delay);
        }
    }
}

/// Sends what was produced for each epoch under a capability of that epoch.
fn send<D: timely::ExchangeData>(
    output: &mut OutputBuilder<Epoch, timely::container::CapacityContainerBuilder<Vec<D>>>,
    capability: &mut Capability<Epoch>,
    batches: Vec<(Epoch, Vec<D>)>,
) {
    let mut output = output.activate();
    for (epoch, batch) in batches {
        let capability = capability.delayed(&epoch);
        output.session(&capability).give_iterator(batch.into_iter());
    }
}
