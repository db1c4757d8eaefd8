//! What a reader learns after the fact: which epochs are durable, and how much is left to read. It
//! decides nothing about what is read.

use std::sync::atomic::Ordering::Relaxed;

use crate::dataflow::ports::Feed;
use crate::dataflow::source::reader::{Phase, Reader};

/// How often the broker is told the group's offsets, in milliseconds.
const GROUP_COMMIT_EVERY_MS: u64 = 1_000;

/// How often the records available to read are counted, in milliseconds.
pub(super) const COUNT_EVERY_MS: u64 = 250;

impl<F: Feed> Reader<F> {
    /// Takes note of what has become durable, and tells the broker from time to time.
    pub(super) fn settle(&mut self) {
        while let Some((epoch, _)) = self.in_flight.front()
            && !self.durable.less_equal(epoch)
        {
            let (epoch, ends) = self.in_flight.pop_front().expect("there is a front");
            log::debug!(epoch = epoch, worker = self.worker; "durable");
            self.run_state.metrics.durable_epoch.fetch_max(epoch, Relaxed);
            self.settled.extend(ends);
        }
        self.pause.release(self.durable.with_frontier(|frontier| frontier.first().copied()));
        // What is durable has passed the sessions of all workers, and so has its watermark.
        let open = self.in_flight.front().map(|(epoch, _)| *epoch);
        self.watermark.learn(open, self.run_state.metrics.watermark());
        let last = matches!(self.phase, Phase::Stopped) && self.in_flight.is_empty();
        let now_ms = self.clocks.elapsed_ms();
        if let Some(ms) = self.watchdog.as_mut().and_then(|dog| dog.look(open, now_ms)) {
            self.warn_nothing_durable(ms);
        }
        let due = now_ms.saturating_sub(self.group_committed_ms) >= GROUP_COMMIT_EVERY_MS;
        if (last || due) && !self.settled.is_empty() {
            self.group_committed_ms = now_ms;
            self.feed.durable(&std::mem::take(&mut self.settled));
        }
    }

    /// Counts what is available to read, for people.
    pub(super) fn count_available(&mut self, now_ms: u64) {
        let (mut records, mut unknown) = (0, 0);
        for part in self.parts.iter().filter(|part| !part.retired) {
            let waiting = match part.assigned {
                true => self.feed.waiting(part.clock.bound().partition),
                false => None,
            };
            match waiting {
                Some(waiting) => records += waiting as i64,
                None => unknown += 1,
            }
        }
        let metrics = &self.run_state.metrics;
        metrics.records_behind.fetch_add(records - self.counted.0, Relaxed);
        metrics.ends_unknown.fetch_add(unknown - self.counted.1, Relaxed);
        self.counted = (records, unknown, now_ms);
    }
}
