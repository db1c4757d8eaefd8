//! sessionizer: a Kafka topic of web events into sessions in PostgreSQL, exactly once.
//!
//! Read [`dataflow`] first: its graph is the whole job on one screen. What a session is, when it
//! closes and what always holds is in `sessionizer_core`, which knows of no clock, no timely, no
//! Kafka and no Postgres. [`kafka`] and [`ledger`] are the world outside, behind the ports of the
//! dataflow. [`job`] starts a run and ends it, [`cluster`] makes several processes one job, and
//! [`commands`] holds what else the program can do.
//!
//! Imports point one way: `commands -> job -> {kafka, ledger, cluster} -> dataflow -> core`.
//! rdkafka is named in `kafka` only, postgres in `ledger` only.

pub mod cli;
pub mod cluster;
pub mod commands;
pub mod config;
pub mod dataflow;
pub mod job;
pub mod kafka;
pub mod ledger;
pub mod ui;
