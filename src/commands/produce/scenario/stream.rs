//! The events of a plan, in the order of their time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{Plan, Visit};
use crate::commands::produce::generate::random::mix;

/// An event: who, where and when.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PlannedEvent {
    pub at_ms: i64,
    pub visit: Visit,
    /// Its number within the visit, from 0.
    pub number: u64,
}

/// All events of a plan. Memory is bounded by the number of simultaneous visits.
pub fn events(plan: &Plan) -> impl Iterator<Item = PlannedEvent> + '_ {
    let mut running: BinaryHeap<Reverse<PlannedEvent>> = BinaryHeap::new();
    let mut visits = plan.visits.iter().peekable();
    std::iter::from_fn(move || {
        let next = running.peek().map(|Reverse(event)| event.at_ms);
        while let Some(visit) = visits.next_if(|visit| next.is_none_or(|at| visit.first_ms <= at)) {
            running.push(Reverse(PlannedEvent { at_ms: visit.first_ms, visit: *visit, number: 0 }));
            if next.is_none() {
                break;
            }
        }
        let Reverse(event) = running.pop()?;
        let number = event.number + 1;
        if number < event.visit.events {
            let at_ms = at_ms(&event.visit, number);
            running.push(Reverse(PlannedEvent { at_ms, number, ..event }));
        }
        Some(event)
    })
}

/// The first and the last event are where the visit begins and ends; the others are up to two
/// fifths of a pause later than if they were spaced evenly.
fn at_ms(visit: &Visit, number: u64) -> i64 {
    let pauses = visit.events - 1;
    let even_ms = (visit.span_ms as i128 * i128::from(number) / i128::from(pauses)) as i64;
    let jitter_ms = match number == pauses {
        true => 0,
        false => {
            let most = (visit.span_ms / pauses as i64 * 2 / 5).max(0) as u64;
            (mix(visit.visitor.0 ^ visit.first_ms as u64 ^ number) % (most + 1)) as i64
        }
    };
    visit.first_ms + even_ms + jitter_ms
}
