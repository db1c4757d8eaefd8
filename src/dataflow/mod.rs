//! The dataflow: sources that read and bind, sessions that close, commits that make it durable.
//!
//! [`graph`] draws it. The ports ([`ports::Feed`], [`ports::Ledger`]) keep Kafka and Postgres out:
//! whatever implements them can be read and written, the real ones and those of the tests.
//! [`messages`] are the records between operators.

pub mod budget;
pub mod commit;
pub mod feedback;
pub mod graph;
pub mod messages;
pub mod metrics;
pub mod ports;
pub mod run_state;
pub mod sessions;
pub mod source;
pub mod span_batch;

/// How many epochs may be cut and not yet durable.
const EPOCHS_IN_FLIGHT: usize = 8;
