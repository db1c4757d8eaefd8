//! The commands besides the job itself.

pub mod audit;
pub mod compare;
pub mod completions;
pub mod demo;
pub mod health;
mod http;
pub mod man;
pub mod produce;
pub mod reset;
pub mod schema;
pub mod status;
