//! One partition of a reader: its watermark generator, and how far the feed has read it.
//!
//! It knows nothing of the other partitions and does no I/O.

use std::time::Instant;

use sessionizer_core::binding::{Offset, Status};
use sessionizer_core::watchdog::Watchdog;
use sessionizer_core::watermark::WatermarkGenerator;

/// One partition of this worker.
pub(super) struct Part {
    pub(super) generator: WatermarkGenerator,
    pub(super) until: Option<Offset>,
    /// Whether the feed has reported that nothing is left before `until`. Its position may stay
    /// before `until` for ever, if there are holes in between and the next record is after it.
    pub(super) reached_until: bool,
    pub(super) retired: bool,
    /// Whether it is assigned to the feed.
    pub(super) assigned: bool,
    /// Where reading continues after the replay, if not where the replay ended.
    pub(super) restart: Option<Offset>,
    /// Whether its next binding is sent even if nothing has changed.
    pub(super) never_bound: bool,
    /// Whether at some moment of this epoch, everything available had been read.
    pub(super) caught_up_once: bool,
    /// Whether it was paused and has not been read since: what has arrived meanwhile is unknown.
    pub(super) was_paused: bool,
    /// Watches its position while there may be more to read.
    pub(super) watchdog: Watchdog<Offset>,
    /// Watches its position while an open transaction holds records back.
    pub(super) transaction: Watchdog<Offset>,
    /// Records read in this run, and how many of them became dead letters. For display only.
    pub(super) read: (u64, u64),
    /// When everything that was there had last been read. For display only.
    pub(super) caught_up: Option<Instant>,
}

/// How far the feed has read a partition, at the end of an epoch.
pub(super) struct ReadProgress {
    pub(super) position: Offset,
    /// Whether nothing is left that this run reads.
    pub(super) ended: bool,
    /// Whether it is assigned and not paused.
    pub(super) reads: bool,
    /// How many milliseconds ago, at most, the broker had nothing after the position; `None` if that
    /// is not known, or nobody reads.
    pub(super) quiet_ms_ago: Option<u64>,
}

impl Part {
    /// A partition that has not been bound in this run and is not assigned to the feed.
    pub(super) fn new(generator: WatermarkGenerator) -> Self {
        Part {
            generator,
            until: None,
            reached_until: false,
            retired: false,
            assigned: false,
            restart: None,
            never_bound: true,
            caught_up_once: false,
            was_paused: false,
            watchdog: Watchdog::default(),
            transaction: Watchdog::default(),
            read: (0, 0),
            caught_up: None,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.generator.bound().status == Status::Ended
    }
}
