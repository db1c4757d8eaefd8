//! What one activation of a reader hands to its operator. Plain data.

use std::time::Duration;

use sessionizer_core::time::Epoch;

use crate::dataflow::messages::{DeadLetter, SourceBindings, Suspect};
use crate::dataflow::span_batch::SpanBatch;

/// The output of one activation, by epoch in order.
#[derive(Default)]
pub struct Emit {
    pub arrivals: Vec<(Epoch, Vec<SpanBatch>)>,
    pub suspects: Vec<(Epoch, Vec<Suspect>)>,
    pub bindings: Vec<(Epoch, Vec<SourceBindings>)>,
    pub dead: Vec<(Epoch, Vec<DeadLetter>)>,
}

impl Emit {
    /// The batch of `epoch`, which is new or the last one.
    pub(super) fn at<D>(batches: &mut Vec<(Epoch, Vec<D>)>, epoch: Epoch) -> &mut Vec<D> {
        if batches.last().is_none_or(|(last, _)| *last != epoch) {
            batches.push((epoch, Vec::new()));
        }
        &mut batches.last_mut().expect("just pushed").1
    }
}

/// When to wake the reader again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NextActivation {
    Now,
    After(Duration),
    Done,
}
