//! What the statistics show people: the last that was published, and how large their windows are.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// The windows of the workers of a process.
#[derive(Debug, Default)]
pub struct WindowFigures {
    /// Hosts with a place of their own.
    pub hosts: AtomicU64,
    /// Sums by host, hour and bin, and by host and minute.
    pub cells: AtomicU64,
    /// Visitors of an hour each.
    pub visitors: AtomicU64,
    /// Rows whose sessions ended before the window.
    pub too_old: AtomicU64,
    /// Rows that were read from the table at the start.
    pub past_rows: AtomicU64,
}

impl WindowFigures {
    /// Shows the sizes of a worker's window, given what it has shown before.
    pub fn show(&self, shown: &mut [usize; 3], sizes: [usize; 3], too_old: u64) {
        for ((figure, shown), size) in
            [&self.hosts, &self.cells, &self.visitors].into_iter().zip(shown).zip(sizes)
        {
            // Wraps around when it falls, and the sum is right.
            figure.fetch_add((size as u64).wrapping_sub(*shown as u64), Relaxed);
            *shown = size;
        }
        self.too_old.fetch_add(too_old, Relaxed);
    }
}
