//! sessionizer: a Kafka topic of web events into sessions in PostgreSQL, exactly once.
//!
//! ```text
//!   Kafka ──> source ──> sessions ──> commit ──> Postgres          -n processes, -w workers each
//!             decode     one table    one transaction a lane
//!             bind       a shard      and run of epochs
//! ```
//!
//! Read [`dataflow`] for the graph, [`session`] and [`watermark`] for what a session is and when
//! it closes, [`operators`] for who does it, [`ledger`] and [`kafka`] for the world outside.
//! Imports point one way: `main -> run -> {kafka, ledger} -> ports in operators -> pure core`.
//! [`cluster`] is how several processes become one job.
//! Nothing pure knows of timely; rdkafka is named in `kafka` only, postgres in `ledger` only.
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

// The pure core: no I/O, no clock, no timely.
pub mod alignment;
pub mod answer;
pub mod binding;
pub mod correction;
pub mod epoch_clock;
pub mod event;
pub mod key;
pub mod partition_end;
pub mod plan;
pub mod scan;
pub mod secret;
pub mod session;
pub mod snapshot;
pub mod time;
pub mod watchdog;
pub mod watermark;

// The dataflow.
pub mod budget;
pub mod control;
pub mod dataflow;
pub mod operators;

// The world outside.
pub mod cluster;
pub mod kafka;
pub mod ledger;

// What a user runs.
pub mod audit;
pub mod cli;
pub mod config;
pub mod demo;
pub mod logging;
pub mod produce;
pub mod progress;
pub mod reset;
pub mod run;
pub mod savepoint;
pub mod start;
pub mod system;
pub mod text;
pub mod tls;
pub mod version;
pub mod waiting;
