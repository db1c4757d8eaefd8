//! What people see: log lines, progress bars, numbers and durations, and what the job waits for.

pub mod bars;
pub mod logging;
pub mod text;
pub mod tls;
pub mod trouble;
pub mod waiting;
