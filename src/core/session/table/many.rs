//! Keys with several open sessions: a list while they are few, sorted by first event when they are
//! many.

use std::collections::BTreeMap;

use super::{MAX_LIST, NONE, SORTED, SessionTable, Slot, spread};
use crate::session::span::Span;

impl SessionTable {
    /// Adds events of a key that has several open sessions, or is about to; `head` is the first.
    pub(super) fn put_in_list(&mut self, head: u32, hash: u32, span: Span, late: bool) {
        if self.slots[head as usize].next == SORTED {
            return self.put_sorted(head, hash, span, late);
        }
        let mut joined = None;
        let mut before = NONE;
        let mut at = head;
        let mut length = 0;
        while at != NONE {
            length += 1;
            let next = self.slots[at as usize].next;
            if !self.slots[at as usize].span.touches(&span, self.gap) {
                before = at;
            } else if let Some(into) = joined {
                // The span bridges two open sessions: the second is merged into the first. `before`
                // exists, because `into` comes earlier in the list.
                self.absorb(into, at);
                self.slots[before as usize].next = next;
            } else {
                let slot = &mut self.slots[at as usize];
                slot.span = slot.span.merge(span);
                slot.late |= late;
                joined = Some(at);
                before = at;
            }
            at = next;
        }
        if joined.is_none() {
            let key = self.slots[head as usize].key;
            let at = self.add(Slot { span, key, hash, next: head, late, absorbed: false });
            self.replace_head(head, hash, at);
            if length >= MAX_LIST {
                self.sort_sessions(at);
            }
        }
    }

    /// Keeps the sessions of a key sorted from now on; `head` is the first in its list.
    fn sort_sessions(&mut self, head: u32) {
        let mut sorted = BTreeMap::new();
        let mut at = head;
        while at != NONE {
            let slot = &mut self.slots[at as usize];
            sorted.insert(slot.span.first, at);
            at = std::mem::replace(&mut slot.next, SORTED);
        }
        self.sorted.insert(self.slots[head as usize].key, sorted);
    }

    /// Adds events of a key that has many open sessions; `head` is the one in the index. They do
    /// not touch each other, so the ones that `span` touches are adjacent.
    fn put_sorted(&mut self, head: u32, hash: u32, span: Span, late: bool) {
        let key = self.slots[head as usize].key;
        let sorted = self.sorted.get_mut(&key).expect("its sessions are sorted");
        let before_its_end = sorted.range(..=span.last + self.gap).rev().map(|(_, at)| *at);
        let touches = |at: &u32| self.slots[*at as usize].span.touches(&span, self.gap);
        let touched: Vec<u32> = before_its_end.take_while(touches).collect();
        for at in &touched {
            sorted.remove(&self.slots[*at as usize].span.first);
        }
        let Some((&into, others)) = touched.split_first() else {
            let at = self.add(Slot { span, key, hash, next: SORTED, late, absorbed: false });
            self.sorted.get_mut(&key).expect("its sessions are sorted").insert(span.first, at);
            return;
        };
        let slot = &mut self.slots[into as usize];
        slot.span = slot.span.merge(span);
        slot.late |= late;
        for from in others {
            self.absorb(into, *from);
        }
        let first = self.slots[into as usize].span.first;
        self.sorted.get_mut(&key).expect("its sessions are sorted").insert(first, into);
        if others.contains(&head) {
            self.replace_head(head, hash, into);
        }
    }

    /// Replaces `head` in the index by another session of its key.
    fn replace_head(&mut self, head: u32, hash: u32, at: u32) {
        let entry = self.index.find_mut(spread(hash), |at| *at == head);
        *entry.expect("the head is indexed") = at;
    }
}
