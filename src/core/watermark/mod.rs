//! Promises, idleness and the watermark. Pure: small state machines without a clock.
//!
//! [`WatermarkGenerator`] runs at the source and turns the records read into a [`Binding`].
//! [`WatermarkTracker`] runs at every worker and turns the bindings of an epoch into its watermark.
//! All workers see the same bindings, so all agree on `W(e)`, live and in a replay (I2).
//! [`WatermarkBound`] tells a source how far that watermark can be, before it is known.
//!
//! [`Binding`]: crate::binding::Binding

mod bound;
mod generator;
mod tracker;

pub use self::bound::WatermarkBound;
pub use self::generator::{WatermarkConfig, WatermarkGenerator};
pub use self::tracker::{WatermarkAdvance, WatermarkTracker};
