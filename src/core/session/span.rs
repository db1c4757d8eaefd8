//! Spans of events, and when two of them belong to one session.
//!
//! Invariant I1 lives here: a session depends on event times only. Merging two spans takes the
//! earlier start, the later end and the sum of the counts. So neither the order in which events
//! arrive, nor how they were combined on the way, affects the result.
//!
//! Two spans *touch* iff at most `gap` lies between them, inclusive.

use serde::{Deserialize, Serialize};

use crate::key::Key;
use crate::time::{EventTime, Gap};

/// One or more events of a key, from the first to the last of them.
///
/// ```
/// use sessionizer_core::session::Span;
/// use sessionizer_core::time::{EventTime, Gap};
///
/// let gap = Gap::from_millis(10).expect("valid");
/// let [a, b, c] = [0, 10, 21].map(|ms| Span::event(EventTime::from_millis(ms)));
/// assert!(a.touches(&b, gap)); // The gap itself still belongs to the session.
/// assert!(!b.touches(&c, gap));
/// assert_eq!(a.merge(b), b.merge(a)); // I1
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Span {
    /// Time of the first event.
    pub first: EventTime,
    /// Time of the last event.
    pub last: EventTime,
    /// The number of events, at least one.
    pub count: u64,
}

impl Span {
    /// A single event.
    pub fn event(time: EventTime) -> Self {
        Span { first: time, last: time, count: 1 }
    }

    /// Whether the two belong to one session: at most `gap` lies between them.
    pub fn touches(&self, other: &Span, gap: Gap) -> bool {
        self.first <= other.last + gap && other.first <= self.last + gap
    }

    /// From the first event to the last, in milliseconds.
    pub fn duration_ms(&self) -> u64 {
        u64::try_from(self.last.millis() - self.first.millis()).unwrap_or(0)
    }

    /// The span of both. Associative and commutative (I1).
    #[must_use]
    pub fn merge(self, other: Span) -> Span {
        Span {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
            count: self.count + other.count,
        }
    }
}

/// Merges the spans of one key into the fewest that do not touch each other, in order of time.
///
/// ```
/// use sessionizer_core::session::{Span, merge_touching};
/// use sessionizer_core::time::{EventTime, Gap};
///
/// let gap = Gap::from_millis(10).expect("valid");
/// let at = EventTime::from_millis;
/// let events = [20, 0, 10, 31].map(|ms| Span::event(at(ms)));
/// let sessions = merge_touching(events.to_vec(), gap);
/// assert_eq!(sessions, [
///     Span { first: at(0), last: at(20), count: 3 },
///     Span { first: at(31), last: at(31), count: 1 },
/// ]);
/// ```
pub fn merge_touching(mut spans: Vec<Span>, gap: Gap) -> Vec<Span> {
    spans.sort_unstable();
    let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        match merged.last_mut() {
            Some(before) if before.touches(&span, gap) => *before = before.merge(span),
            _ => merged.push(span),
        }
    }
    merged
}

/// A session that no on-time event can join any more.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Closed {
    /// Its key.
    pub key: Key,
    /// Its events.
    pub span: Span,
    /// Whether it may touch a session that closed before; then its commit merges it with the table.
    pub late: bool,
}

/// An open session as a snapshot holds it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Open<'a> {
    /// The encoded key.
    pub key: &'a [u8],
    pub span: Span,
    pub late: bool,
}
