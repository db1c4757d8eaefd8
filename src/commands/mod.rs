//! The commands besides the job itself.

mod ask;
pub mod audit;
pub mod completions;
pub mod demo;
pub mod health;
pub mod man;
pub mod produce;
pub mod reset;
pub mod schema;
pub mod status;
