//! The commands besides the job itself: audit, compare, demo, health, produce, report, reset
//! and status.

pub mod audit;
pub mod compare;
pub mod demo;
pub mod health;
mod http;
pub mod produce;
pub mod report;
pub mod reset;
pub mod status;
