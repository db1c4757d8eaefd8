//! The commands besides the job itself: demo, audit, produce and reset.

mod ask;
pub mod audit;
pub mod demo;
pub mod health;
pub mod produce;
pub mod reset;
pub mod status;
