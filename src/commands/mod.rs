//! The commands besides the job itself: audit, compare, demo, forget, health, open, produce,
//! redrive, reset and status.

pub mod audit;
pub mod compare;
pub mod demo;
pub mod forget;
pub mod health;
mod http;
pub mod open;
pub mod produce;
pub mod redrive;
pub mod reset;
pub mod status;
