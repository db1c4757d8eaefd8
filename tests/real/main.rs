//! Tests against a real Kafka and a real PostgreSQL, with the built binary as its user runs it.
//!
//! `scripts/test` brings both up and says where they are. Each test has a database and topics of
//! its own, so they run side by side.

mod alignment;
mod audit;
mod brokers;
mod clock;
mod cluster;
mod cluster_secret;
mod connect;
mod demo;
mod events;
mod faults;
mod faults_at_start;
mod first_start;
mod jobs;
mod kafka;
mod late;
mod lifecycle;
mod loss;
mod messages;
mod network;
mod oracle;
mod outage;
mod past;
mod pooler;
mod postgres;
mod produce;
mod queries;
mod reset;
mod secured;
mod settings;
#[path = "../shared/skipped.rs"]
mod skipped;
mod state;
mod stuck;
mod world;
