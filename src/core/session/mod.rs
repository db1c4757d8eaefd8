//! Sessions: the spans of a key, the table of the open ones, its snapshots, corrections of rows by
//! late events, and the batch answer that everything is checked against.

pub mod again;
pub mod batch;
pub mod correction;
mod end;
mod keys;
pub mod snapshot;
mod span;
mod table;

pub use self::end::SessionEnd;
pub use self::span::{Closed, Open, Span, merge_touching};
pub use self::table::SessionTable;
