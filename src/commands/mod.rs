//! What the program can do besides the job: show it, check it, feed it, and begin again.

pub mod audit;
pub mod demo;
pub mod produce;
pub mod reset;
