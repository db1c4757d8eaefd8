//! The commands besides the job itself: demo, audit, produce and reset.

mod ask;
pub mod audit;
pub mod demo;
pub mod forget;
pub mod health;
pub mod open;
pub mod produce;
pub mod redrive;
pub mod reset;
pub mod status;
