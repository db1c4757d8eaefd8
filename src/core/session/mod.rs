//! Sessions: the spans of a key, the table of those that are open, snapshots of it, corrections of
//! rows by late events, and the batch answer that all of it is held against.

pub mod batch;
pub mod correction;
mod keys;
pub mod snapshot;
mod span;
mod table;

pub use self::span::{Closed, Open, Span, merge_touching};
pub use self::table::SessionTable;
