//! What a session is, when it closes, and what makes an epoch: the part of sessionizer that does
//! no I/O, reads no clock, and knows of neither timely nor Kafka nor Postgres.
//!
//! Read [`session`] and [`watermark`] first, then [`binding`] and [`plan`] for how a restart comes
//! to the same result.
//!
//! # Invariants
//!
//! They are cited by number where they are asserted.
//!
//! - **I1** A session depends on event times only; merging is associative and commutative.
//! - **I2** An epoch's content is a function of its binding. A bound epoch replays identically.
//! - **I3** Anything durable that depends on an epoch is durable with its binding.
//! - **I4** Rows, corrections, dead letters, snapshots and progress of an epoch commit together.
//! - **I5** A shard's output passes once: its epoch only moves forward, under its generation.
//! - **I6** No two rows of a key touch, at any commit.
//! - **I7** The durable probe never runs ahead of Postgres.
//! - **I8** `records = closed + open + dead`, per commit; what was lost and accepted is counted.

pub mod alignment;
pub mod binding;
pub mod epoch_clock;
pub mod event;
pub mod fault;
pub mod key;
pub mod partition_end;
pub mod plan;
pub mod rfc3339;
pub mod secret;
pub mod session;
pub mod time;
pub mod watchdog;
pub mod watermark;
