//! The open sessions that last long, at no cost for an event: a session that has grown is visited
//! about once per gap anyway, and its length is looked at then.

use std::collections::BTreeSet;

use super::SessionTable;
use crate::session::span::{Open, Span};

/// How many are watched at most. With a gap of many hours, most sessions may be long. Those beyond
/// it are looked at again when they are visited next.
pub(super) const MOST: usize = 256;

/// The slots of long sessions.
#[derive(Debug)]
pub(super) struct Long {
    /// Sessions that last longer are long.
    above_ms: u64,
    slots: BTreeSet<u32>,
    /// Whether `slots` has changed since that was last asked.
    changed: bool,
}

impl Default for Long {
    /// No session is long.
    fn default() -> Self {
        Long { above_ms: u64::MAX, slots: BTreeSet::new(), changed: false }
    }
}

impl Long {
    /// Looks at the length of the session in a slot.
    pub(super) fn visit(&mut self, at: u32, span: &Span) {
        if span.duration_ms() > self.above_ms && self.slots.len() < MOST {
            self.changed |= self.slots.insert(at);
        }
    }

    /// Forgets the session in a slot.
    pub(super) fn forget(&mut self, at: u32) {
        self.changed |= !self.slots.is_empty() && self.slots.remove(&at);
    }

    /// The session in `from` is part of the one in `into` now, which has this span.
    pub(super) fn merge(&mut self, into: u32, span: &Span, from: u32) {
        self.forget(from);
        self.visit(into, span);
    }
}

impl SessionTable {
    /// From now on, keeps track of the sessions that last longer than this from the first event to
    /// the last.
    pub fn watch_long(&mut self, above_ms: u64) {
        self.long = Long { above_ms, ..Long::default() };
        let Self { index, sorted, slots, long, .. } = self;
        let mut visit = |at: u32| long.visit(at, &slots[at as usize].span);
        for head in index.iter() {
            let next = |at: &u32| Some(slots[*at as usize].next).filter(|at| *at < super::SORTED);
            std::iter::successors(Some(*head), next).for_each(&mut visit);
        }
        sorted.values().flat_map(|of_key| of_key.values()).for_each(|at| visit(*at));
    }

    /// The open sessions that last long. One that becomes long is among them, at the latest, when
    /// the watermark has passed the end that it has then.
    pub fn long(&self) -> impl Iterator<Item = Open<'_>> {
        let slots = self.long.slots.iter().map(|at| &self.slots[*at as usize]);
        slots.map(|slot| Open { key: self.keys.get(slot.key), span: slot.span, late: slot.late })
    }

    /// Whether long sessions have come or gone since this was last asked.
    pub fn take_long_changed(&mut self) -> bool {
        std::mem::take(&mut self.long.changed)
    }
}
