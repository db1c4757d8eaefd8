//! The clocks as a source sees them: the current epoch, and the clock that events are checked
//! against.

use sessionizer_core::epoch_clock::{ClockReport, EpochClock, WallClockWatch, explain};
use sessionizer_core::time::Epoch;

use crate::dataflow::source::WorldClocks;

/// The clocks of one source.
pub struct Clocks {
    world: WorldClocks,
    epochs: EpochClock,
    /// Reports how far the clocks are apart; only one source of a process does.
    watch: Option<WallClockWatch>,
    max_future_ms: i64,
}

impl Clocks {
    /// Starts the epochs at `first`. `watched` is the length of an epoch if this source is the one
    /// of its process that reports how far the clocks are apart.
    pub fn new(world: WorldClocks, first: Epoch, watched: Option<u64>, max_future_ms: i64) -> Self {
        let (epochs, watch) = (EpochClock::new(first), watched.map(WallClockWatch::new));
        Clocks { world, epochs, watch, max_future_ms }
    }

    /// Milliseconds since the plan was made.
    pub fn elapsed_ms(&self) -> u64 {
        (self.world.elapsed_ms)()
    }

    /// The clock of the epochs, given the latest epoch that any worker has cut.
    pub fn epoch_ms(&mut self, latest_cut: Epoch) -> u64 {
        let elapsed_ms = self.elapsed_ms();
        self.epochs.follow(latest_cut, elapsed_ms);
        self.epochs.at(elapsed_ms)
    }

    /// The clock that the events read from now on are checked against: the wall clock. After it
    /// was set back it is behind the epochs, and so the stricter of the two; after it was set
    /// forward it is nearly always right: the machine slept, or a wrong clock was corrected.
    pub fn wall_ms(&mut self) -> u64 {
        let wall_ms = (self.world.wall_ms)();
        let elapsed_ms = self.elapsed_ms();
        let epoch_ms = self.epochs.at(elapsed_ms);
        let report = self.watch.as_mut().and_then(|it| it.check(wall_ms, epoch_ms, elapsed_ms));
        match report {
            Some(ClockReport::Apart(ahead_ms)) => {
                log::warn!("{}", explain(ahead_ms, wall_ms, self.max_future_ms));
            }
            Some(ClockReport::Together) => {
                log::info!("the clock of this machine agrees with the job's epochs again");
            }
            None => {}
        }
        wall_ms
    }
}
