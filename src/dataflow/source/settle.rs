//! What a reader learns after the fact: which epochs are durable, and how much is left to read. It
//! decides nothing about what is read.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use crate::dataflow::figures::PartFigures;
use crate::dataflow::ports::Feed;
use crate::dataflow::source::partition::Part;
use crate::dataflow::source::reader::{InFlight, Phase, Reader};

/// How often the group's offsets are committed to the broker, in milliseconds.
const GROUP_COMMIT_INTERVAL_MS: u64 = 1_000;

/// How often the records available to read are counted, in milliseconds.
pub(super) const COUNT_INTERVAL_MS: u64 = 250;

impl<F: Feed> Reader<F> {
    /// Takes note of what has become durable, and reports it to the broker from time to time.
    pub(super) fn settle(&mut self) {
        let metrics = &self.run_state.metrics;
        while let Some(InFlight { epoch, .. }) = self.in_flight.front()
            && !self.durable.less_equal(epoch)
        {
            let InFlight { epoch, ends } = self.in_flight.pop_front().expect("a front");
            log::debug!(epoch = epoch, worker = self.worker; "durable");
            metrics.durable_epoch.fetch_max(epoch, Relaxed);
            self.settled.extend(ends);
        }
        self.pause.release(self.durable.with_frontier(|frontier| frontier.first().copied()));
        // What is durable has passed the sessions of all workers, and so has its watermark.
        let open = self.in_flight.front().map(|cut| cut.epoch);
        self.watermark.learn(open, self.run_state.metrics.watermark());
        let last = matches!(self.phase, Phase::Stopped) && self.in_flight.is_empty();
        let now_ms = self.clocks.elapsed_ms();
        if let Some(ms) = self.watchdog.as_mut().and_then(|dog| dog.look(open, now_ms)) {
            self.warn_nothing_durable(ms);
        }
        let due = now_ms.saturating_sub(self.group_committed_ms) >= GROUP_COMMIT_INTERVAL_MS;
        if (last || due) && !self.settled.is_empty() {
            self.group_committed_ms = now_ms;
            self.feed.durable(&std::mem::take(&mut self.settled));
        }
    }

    /// Counts what is available to read, for display only.
    pub(super) fn count_available(&mut self, now_ms: u64) {
        let (mut records, mut unknown) = (0, 0);
        let mut figures = Vec::with_capacity(self.parts.len());
        let replaying = matches!(self.phase, Phase::Replay(_));
        for part in &mut self.parts {
            let partition = part.generator.bound().partition;
            let waiting = match part.assigned {
                true => self.feed.waiting(partition),
                false => None,
            };
            if waiting == Some(0) {
                part.caught_up = Some(Instant::now());
            }
            figures.push((partition, figures_of(&self.feed, part, waiting, replaying)));
            if part.retired {
                continue;
            }
            match waiting {
                Some(waiting) => records += waiting as i64,
                None => unknown += 1,
            }
        }
        self.figures.epoch.store(self.epoch, Relaxed);
        self.figures.in_flight.store(self.in_flight.len() as u64, Relaxed);
        let metrics = &self.run_state.metrics;
        metrics.figures.read(figures.into_iter());
        metrics.records_behind.fetch_add(records - self.counted.0, Relaxed);
        metrics.ends_unknown.fetch_add(unknown - self.counted.1, Relaxed);
        self.counted = (records, unknown, now_ms);
    }
}

/// The figures of a partition, for display.
fn figures_of<F: Feed>(
    feed: &F,
    part: &Part,
    waiting: Option<u64>,
    replaying: bool,
) -> PartFigures {
    let bound = part.generator.bound();
    let (partition, assigned) = (bound.partition, part.assigned);
    PartFigures {
        position: if assigned { feed.position(partition).max(bound.end) } else { bound.end },
        waiting,
        unread_since_ms: assigned.then(|| feed.read_up_to_ms(partition)).flatten(),
        caught_up: part.caught_up,
        paused: part.was_paused,
        retired: part.retired,
        replaying,
        held_by_transaction: assigned.then(|| feed.held_by_transaction(partition)).flatten(),
        records: part.read.0,
        dead: part.read.1,
    }
}
