//! The commands besides the job itself: demo, audit, produce and reset.

pub mod audit;
pub mod demo;
pub mod health;
mod http;
pub mod produce;
pub mod reset;
pub mod status;
