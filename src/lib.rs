//! sessionizer: turns a Kafka topic of web events into sessions in PostgreSQL, exactly once.
//!
//! Read [`dataflow`] first: its graph shows the whole job on one screen. `sessionizer_core` defines
//! what a session is, when it closes and which invariants hold; it knows nothing of clocks, timely,
//! Kafka or Postgres. [`kafka`] and [`ledger`] are the outside world, behind the ports of the
//! dataflow. [`job`] starts and ends a run, [`cluster`] makes several processes one job,
//! [`monitor`] shows what it is doing, and [`commands`] holds the other commands of the program.
//!
//! Imports point one way:
//! `commands -> job -> {kafka, ledger, cluster, monitor} -> dataflow -> core`. Only `kafka` names
//! rdkafka, only `ledger` names postgres, and only `monitor` names hyper.

pub mod cli;
pub mod cluster;
pub mod commands;
pub mod config;
pub mod dataflow;
pub mod job;
pub mod kafka;
pub mod ledger;
pub mod monitor;
mod random;
pub mod retry;
pub mod ui;

/// What the tests of all crates share.
#[cfg(test)]
#[allow(dead_code, reason = "other crates use all of it")]
#[path = "../tests/shared"]
mod shared {
    pub mod mutate;
    pub mod rng;
    pub mod thresholds;
}
