//! The commands besides the job itself: audit, check, demo, health, produce, reset and status.

mod ask;
pub mod audit;
pub mod check;
pub mod demo;
pub mod health;
pub mod produce;
pub mod reset;
pub mod status;
