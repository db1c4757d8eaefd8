//! Feedback from the sessions of a worker to its source, against the direction of the graph.
//!
//! It decides only which records are read in which epoch. That is chance, captured in the bindings,
//! so nothing in the result depends on when the source sees it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use sessionizer_core::binding::Partition;
use sessionizer_core::time::Epoch;
use timely::scheduling::Activator;

/// Feedback from the sessions of a worker to its source: which partitions have to wait for others,
/// and which epochs other workers have reached.
pub struct Feedback {
    paused: RefCell<BTreeSet<Partition>>,
    cut: Cell<Epoch>,
    cut_early: Cell<Epoch>,
    source: Activator,
}

impl Feedback {
    /// Starts with no partition paused.
    pub fn new(source: Activator) -> Self {
        let (cut, cut_early) = (Cell::new(0), Cell::new(0));
        Feedback { paused: RefCell::default(), cut, cut_early, source }
    }

    /// Notes that some worker has cut this epoch, perhaps before its time.
    pub fn learn(&self, cut: Epoch, early: bool) {
        self.cut.set(self.cut.get().max(cut));
        if early && cut > self.cut_early.get() {
            self.cut_early.set(cut);
            self.source.activate();
        }
    }

    /// The latest epoch that any worker is known to have cut before its time.
    pub fn latest_early_cut(&self) -> Epoch {
        self.cut_early.get()
    }

    /// The latest epoch that any worker is known to have cut.
    pub fn latest_cut(&self) -> Epoch {
        self.cut.get()
    }

    /// Pauses these partitions from now on, and no others.
    pub fn pause(&self, paused: BTreeSet<Partition>) {
        let before = self.paused.replace(paused);
        if !before.is_subset(&self.paused.borrow()) {
            // A partition may continue, and the source may be asleep.
            self.source.activate();
        }
    }

    /// Whether a partition is paused.
    pub fn is_paused(&self, partition: Partition) -> bool {
        self.paused.borrow().contains(&partition)
    }
}
