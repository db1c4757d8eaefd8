//! The dataflow: sources read and bind, sessions close, and commits make the result durable.
//!
//! [`graph`] draws it. The ports ([`ports::Feed`], [`ports::Ledger`]) keep Kafka and Postgres out:
//! the operators read from and write to whatever implements them, the real thing or a test's.
//! [`messages`] holds the records that travel between operators.

pub mod anomalies;
pub mod buckets;
pub mod budget;
pub mod changes;
pub mod commit;
pub mod feedback;
pub mod figures;
pub mod graph;
pub mod messages;
pub mod metrics;
pub mod peers;
pub mod ports;
pub mod run_state;
pub mod sessions;
pub mod source;
pub mod span_batch;
pub mod statistics;

/// How many epochs may be cut and not yet durable.
const EPOCHS_IN_FLIGHT: usize = 8;
