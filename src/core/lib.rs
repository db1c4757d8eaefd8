//! What a session is, when it closes, and what makes up an epoch: the part of sessionizer that does
//! no I/O, reads no clock, and knows nothing of timely, Kafka or Postgres.
//!
//! Read [`session`] and [`watermark`] first, then [`binding`] and [`plan`] for how a restart
//! arrives at the same result.
//!
//! # Invariants
//!
//! Assertions cite them by number.
//!
//! - **I1** A session depends on event times only; merging is associative and commutative.
//! - **I2** An epoch's content is a function of its binding. A bound epoch replays identically.
//! - **I3** Anything durable that depends on an epoch is durable with its binding.
//! - **I4** Rows, corrections, dead letters, snapshots and progress of an epoch commit together.
//! - **I5** A shard's output passes once: its epoch only moves forward, under its generation.
//! - **I6** No two rows of a key touch, at any commit.
//! - **I7** The durable probe never runs ahead of Postgres.
//! - **I8** `records = closed + open + dead`, per commit; records lost with consent are counted
//!   too.

pub mod alignment;
pub mod anomaly;
pub mod audit;
pub mod binding;
pub mod epoch_clock;
pub mod event;
pub mod fault;
pub mod key;
pub mod moves;
pub mod partition_end;
pub mod plan;
pub mod rfc3339;
pub mod secret;
pub mod session;
pub mod statistics;
pub mod time;
pub mod visitor;
pub mod watchdog;
pub mod watermark;

// The name by which files that the tests of all crates share know this crate.
#[cfg(test)]
extern crate self as sessionizer_core;

/// What the tests of all crates share: random numbers, input that is almost right, and the batch answer.
#[cfg(test)]
#[path = "../../tests/shared"]
mod shared {
    pub mod mutate;
    pub mod oracle;
    pub mod rng;
    pub mod thresholds;
}
