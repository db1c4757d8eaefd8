//! The commands besides the job itself.

pub mod audit;
pub mod check;
pub mod compare;
pub mod completions;
pub mod demo;
pub mod forget;
pub mod health;
mod http;
pub mod man;
pub mod open;
mod output;
pub mod produce;
pub mod redrive;
pub mod report;
mod reread;
pub mod reset;
pub mod schema;
pub mod status;
