//! Tests against a real Kafka and a real PostgreSQL, with the built binary as its user runs it.
//!
//! `scripts/test` brings both up and says where they are. Each test has a database and topics of
//! its own, so they run side by side.

// What happens to one job, step by step, reads best from top to bottom.
#![allow(clippy::too_many_lines)]

mod alignment;
mod analysis;
mod anomalies;
mod anomalies_open;
mod audit;
mod audit_every;
#[path = "../shared/oracle.rs"]
mod batch;
mod brokers;
mod check;
mod clock;
mod cluster;
mod cluster_secret;
mod compare;
mod connect;
mod demo;
mod differences;
mod documents;
mod events;
mod faults;
mod faults_at_start;
mod first_start;
mod forget;
mod interrupt;
mod jobs;
mod kafka;
mod kafka_rights;
mod kafka_topics;
mod late;
mod late_merge;
mod lifecycle;
mod locked;
mod loss;
mod memory;
mod messages;
mod network;
mod oidc;
mod open;
mod operations;
mod oracle;
mod outage;
mod partitioned;
mod past;
mod pooler;
mod postgres;
mod produce;
mod queries;
mod reading;
mod redrive;
mod refusal;
mod remedies;
mod replaced;
mod report;
mod reset;
#[path = "../shared/rng.rs"]
mod rng;
mod role;
mod savepoint;
mod secrets;
mod secured;
mod server;
mod settings;
mod silence;
#[path = "../shared/skipped.rs"]
mod skipped;
mod state;
mod statistics;
mod stuck;
mod surroundings;
mod unusual;
mod upgrade;
mod user_table;
mod watch;
mod watch_cluster;
mod watch_metrics;
mod watch_page;
mod world;
#[path = "../shared/savepoint.rs"]
mod written;
