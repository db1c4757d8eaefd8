//! What the statistics are made of: logarithmic bins, and counts by bin.

mod bins;
mod histogram;

pub use bins::Bin;
pub use histogram::Histogram;
