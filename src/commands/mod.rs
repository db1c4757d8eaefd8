//! The commands besides the job itself: audit, check, compare, demo, health, produce, reset
//! and status.

pub mod audit;
pub mod check;
pub mod compare;
pub mod demo;
pub mod health;
mod http;
pub mod produce;
pub mod reset;
pub mod status;
