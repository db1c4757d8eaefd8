//! How large the windows of the statistics are, for display.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::dataflow::anomalies::figures::DetectorFigures;

/// The windows of the workers of a process.
#[derive(Debug, Default)]
pub struct WindowFigures {
    /// Hosts that are counted individually.
    pub hosts: AtomicU64,
    /// Sums by host, hour and bin, and by host and minute.
    pub cells: AtomicU64,
    /// Visitors, counted by host and hour.
    pub visitors: AtomicU64,
    /// Rows whose sessions ended before the window.
    pub too_old: AtomicU64,
    /// Rows that were read from the table at the start.
    pub past_rows: AtomicU64,
    /// The detectors of anomalies, which see the same rows.
    pub detectors: DetectorFigures,
}

impl WindowFigures {
    /// Records the sizes of a worker's window, given those that it recorded before.
    pub fn show(&self, shown: &mut [usize; 3], sizes: [usize; 3], too_old: u64) {
        for ((figure, shown), size) in
            [&self.hosts, &self.cells, &self.visitors].into_iter().zip(shown).zip(sizes)
        {
            // The difference wraps around if the size fell; the sum is right all the same.
            figure.fetch_add((size as u64).wrapping_sub(*shown as u64), Relaxed);
            *shown = size;
        }
        self.too_old.fetch_add(too_old, Relaxed);
    }
}
