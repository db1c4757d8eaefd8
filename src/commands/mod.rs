//! The commands besides the job itself: what asks, checks, fills and removes.

mod ask;
pub mod audit;
pub mod demo;
pub mod health;
pub mod produce;
pub mod report;
pub mod reset;
pub mod status;
