//! The source: reads the partitions of a worker, cuts epochs and binds them, and replays bound
//! ones.
//!
//! [`operator`] is the timely side: capabilities and outputs. [`reader`] holds the state and
//! decides what an activation does; `replay` and `live` are its two phases, `settle` notes what has
//! become durable, and `warnings` reports a standstill. [`route`] turns a record into an arrival or
//! a dead letter, [`pause`] keeps the source within its memory, and [`clocks`] knows the current
//! epoch.
//!
//! The source knows nothing of the session table, and knows Kafka only through the port [`Feed`].
//!
//! [`Feed`]: crate::dataflow::ports::Feed

pub mod clocks;
pub mod emit;
mod live;
pub mod operator;
mod partition;
pub mod pause;
pub mod reader;
mod replay;
pub mod route;
mod settle;
mod warnings;

use std::sync::Arc;

use sessionizer_core::time::{EpochLength, Gap};
use sessionizer_core::watermark::WatermarkConfig;

/// The configuration of a source.
#[derive(Clone)]
pub struct SourceConfig {
    /// The number of processes that the workers belong to.
    pub processes: usize,
    pub epochs: EpochLength,
    pub watermark: WatermarkConfig,
    pub gap: Gap,
    pub dead_letter_bytes: usize,
    /// Bounded run: end at the plan's `until` offsets.
    pub until_end: bool,
    pub clocks: WorldClocks,
    /// Whether the source wakes itself by the real clock. A test with a clock of its own wakes it
    /// instead.
    pub alarm: bool,
}

/// The clocks of a process. Nothing downstream of the source uses them.
#[derive(Clone)]
pub struct WorldClocks {
    /// Milliseconds since the plan was made, by a clock that only goes forward: decides when epochs
    /// end.
    pub elapsed_ms: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// The wall clock, in milliseconds since 1970: decides which events are too far in the future.
    pub wall_ms: Arc<dyn Fn() -> u64 + Send + Sync>,
}
