//! Live epochs: decides when an epoch ends, binds what was read in it, and reads partitions in
//! turn.

use std::time::Duration;

use sessionizer_core::binding::{Binding, Offset, Partition, Status};
use sessionizer_core::fault::Fault;
use sessionizer_core::watermark::WatermarkGenerator;

use crate::dataflow::EPOCHS_IN_FLIGHT;
use crate::dataflow::messages::SourceBindings;
use crate::dataflow::ports::{Feed, Stopped};
use crate::dataflow::source::emit::{Emit, NextActivation};
use crate::dataflow::source::partition::{Part, ReadProgress};
use crate::dataflow::source::reader::{
    InFlight, Phase, RECORDS_PER_ACTIVATION, Reader, WAIT_INTERVAL,
};
use crate::dataflow::source::warnings::Standstill;

/// How many records of one partition are read before it is the next one's turn.
const RECORDS_PER_TURN: usize = 4_096;

/// What a cut binds.
#[derive(Default)]
struct EpochBindings {
    /// Those that have changed.
    bindings: Vec<Binding>,
    /// Their ends.
    ends: Vec<(Partition, Offset)>,
    /// Partitions that had more to read all the time.
    lagging: Vec<Partition>,
}

impl<F: Feed> Reader<F> {
    /// Ends the replay: everything from here on is new.
    pub(super) fn go_live(&mut self) -> Result<(), Fault> {
        self.begin(self.plan.first_epoch);
        self.phase = Phase::Live;
        for part in &mut self.parts {
            let mut bound = *part.generator.bound();
            let topic_id = self.plan.topic_ids[usize::from(bound.partition.topic)];
            bound.topic_id = topic_id.or(bound.topic_id);
            if let Some(start) = part.restart {
                // Another topic with the same name: offsets start anew, while counts and promise
                // carry on.
                (bound.start, bound.end, bound.status) = (start, start, Status::Active);
                // A partition that the new topic does not have is ended by the first cut.
                if !part.retired {
                    self.feed.assign(bound.partition, start)?;
                    part.assigned = true;
                }
            }
            part.generator = WatermarkGenerator::resume(self.config.watermark, bound, self.epoch);
        }
        Ok(())
    }

    /// One activation: ends the epoch if it is due, then continues reading.
    pub(super) fn live(&mut self, emit: &mut Emit) -> Result<NextActivation, Fault> {
        let now_ms = self.clocks.epoch_ms(self.feedback.latest_cut());
        let may_read = self.pause.may_read(self.clocks.elapsed_ms());
        let early = !may_read && (self.records > 0 || self.in_flight.len() < EPOCHS_IN_FLIGHT / 2)
            || self.feedback.latest_early_cut() >= self.epoch;
        let full = early || self.records >= self.config.epochs.full_records;
        let current = self.config.epochs.tick(now_ms, full);
        let first =
            self.parts.iter().any(|part| part.never_bound) || self.epoch == self.plan.first_epoch;
        if self.run_state.stopping() {
            return self.stop(emit);
        }
        if first || current > self.epoch {
            self.service_feed()?;
            self.cut(emit, early);
            if self.config.until_end && self.parts.iter().all(Part::has_ended) {
                self.phase = Phase::Stopped;
                return Ok(NextActivation::Now);
            }
            self.begin(current.max(self.epoch + 1));
            for (partition, start) in std::mem::take(&mut self.found) {
                self.discover(partition, start)?;
            }
        }
        let at_limit = self.read_in_turn(emit)?;
        if self.config.until_end && (0..self.parts.len()).all(|at| self.at_until(at)) {
            // There is nothing left to wait for: end with this epoch, not with its tick.
            return self.stop(emit);
        }
        if at_limit {
            return Ok(if may_read {
                NextActivation::Now
            } else {
                NextActivation::After(WAIT_INTERVAL)
            });
        }
        let end_ms = self.epoch + self.config.epochs.ms;
        Ok(NextActivation::After(Duration::from_millis(
            end_ms.saturating_sub(now_ms).clamp(1, 1_000),
        )))
    }

    /// Reads every partition for at most one turn; returns whether any of them may have more.
    fn read_in_turn(&mut self, emit: &mut Emit) -> Result<bool, Fault> {
        let mut limit = RECORDS_PER_ACTIVATION;
        let mut at_limit = false;
        for _ in 0..self.parts.len() {
            if limit == 0 {
                // The next activation begins with the partitions that have had no turn.
                at_limit = true;
                break;
            }
            self.turn = (self.turn + 1) % self.parts.len();
            let part = &mut self.parts[self.turn];
            if part.never_bound || part.retired {
                continue;
            }
            let partition = part.generator.bound().partition;
            part.was_paused = self.feedback.is_paused(partition);
            if part.was_paused {
                continue;
            }
            // Without memory to read, at least check: a partition at its end may be idle.
            let left = self.pause.left();
            let before = if left > 0 { limit.min(RECORDS_PER_TURN) } else { 0 };
            let mut turn = before;
            let until = part.until;
            let most = (&mut turn, left);
            let stopped = self.read(self.turn, until, self.wall_ms, most, emit)?;
            limit -= before - turn;
            at_limit |= stopped == Stopped::AtLimit;
            let caught_up_once = stopped != Stopped::AtLimit && self.feed.keeps_up(partition);
            self.parts[self.turn].caught_up_once |= caught_up_once;
            self.parts[self.turn].reached_until |= until.is_some() && stopped == Stopped::AtEnd;
        }
        Ok(at_limit)
    }

    /// Cuts the current epoch, the last one.
    fn stop(&mut self, emit: &mut Emit) -> Result<NextActivation, Fault> {
        self.service_feed()?;
        self.cut(emit, false);
        self.phase = Phase::Stopped;
        Ok(NextActivation::Now)
    }

    /// Lets the feed do its work. The partitions it finds wait until an epoch has been cut. A
    /// bounded run reads what was there at its start.
    pub(super) fn service_feed(&mut self) -> Result<(), Fault> {
        let found = self.feed.service()?;
        if !self.config.until_end {
            self.found.extend(found);
        }
        Ok(())
    }

    /// Binds what this worker has read of the current epoch; only bindings that changed are sent.
    fn cut(&mut self, emit: &mut Emit, early: bool) {
        self.flush(emit);
        let now_ms = self.clocks.elapsed_ms();
        let epoch_ms = self.clocks.epoch_ms(self.feedback.latest_cut());
        let away = crate::ui::waiting::waits_for_kafka();
        let mut bound = EpochBindings::default();
        let mut standstill = Standstill::default();
        for at in 0..self.parts.len() {
            let progress = self.progress(at);
            self.bind(at, &progress, epoch_ms, &mut bound);
            self.watch(at, &progress, (now_ms, away), &mut standstill);
        }
        self.warn_stuck(&standstill.stuck);
        self.warn_held_back(&standstill.held_back);
        log::debug!(
            epoch = self.epoch,
            worker = self.worker,
            records = self.records,
            early = early;
            "cut"
        );
        self.watermark.cut(self.epoch, self.parts.iter().map(|part| part.generator.bound()));
        let EpochBindings { bindings, ends, lagging } = bound;
        Emit::at(&mut emit.bindings, self.epoch).push(SourceBindings {
            worker: self.worker,
            bindings,
            lagging,
            early,
            differences: Vec::new(),
        });
        if self.watchdog.is_some() {
            self.run_state.metrics.figures.cut(self.epoch);
        }
        self.in_flight.push_back(InFlight { epoch: self.epoch, ends });
        self.records = 0;
    }

    /// How far a partition has been read.
    fn progress(&self, at: usize) -> ReadProgress {
        let ended = self.at_until(at);
        let part = &self.parts[at];
        let Binding { partition, end, .. } = *part.generator.bound();
        let position = match part.assigned {
            true => self.feed.position(partition).max(end),
            false => end,
        };
        let reads = part.assigned && !part.was_paused;
        let quiet_ms_ago = reads.then(|| self.feed.quiet_ms_ago(partition)).flatten();
        ReadProgress { position, ended, reads, quiet_ms_ago }
    }

    /// Binds what has been read of one partition.
    fn bind(
        &mut self,
        at: usize,
        progress: &ReadProgress,
        epoch_ms: u64,
        bindings: &mut EpochBindings,
    ) {
        let ReadProgress { position, ended, quiet_ms_ago, .. } = *progress;
        let part = &mut self.parts[at];
        let before = *part.generator.bound();
        let partition = before.partition;
        let quiet = quiet_ms_ago.filter(|_| !self.feed.may_be_held_back(partition));
        let quiet = quiet.map(|ago| epoch_ms.saturating_sub(ago));
        let caught_up_once = std::mem::take(&mut part.caught_up_once);
        let keeps_up = caught_up_once || quiet_ms_ago.is_some() || part.was_paused;
        if part.assigned && !ended && !keeps_up && !part.generator.is_silent(self.epoch) {
            bindings.lagging.push(partition);
        }
        let bound = part.generator.cut(self.epoch, position, quiet, ended);
        if bound != before || part.never_bound {
            log::debug!(
                epoch = self.epoch,
                topic = self.plan.topic(partition),
                partition = partition.number,
                offset = bound.end.get(),
                records = bound.records - before.records,
                promise:% = bound.promise,
                status = bound.status.name();
                "bound"
            );
            bindings.bindings.push(Binding { clock_ms: Some(self.wall_ms), ..bound });
            bindings.ends.push((partition, bound.end));
        }
        part.never_bound = false;
    }

    /// Whether a bounded run has read this partition to its end.
    fn at_until(&self, at: usize) -> bool {
        let part = &self.parts[at];
        let partition = part.generator.bound().partition;
        part.retired
            || part.reached_until
            || part.until.is_some_and(|until| {
                self.feed.position(partition) >= until
                    || self.feed.quiet_ms_ago(partition).is_some()
            })
    }

    /// Begins to read a partition that has appeared during the run.
    fn discover(&mut self, partition: Partition, start: Offset) -> Result<(), Fault> {
        let topic = self.plan.topic(partition);
        log::info!(
            topic = topic, partition = partition.number, offset = start.get();
            "found a new partition: {topic}[{}], reading it from offset {start}",
            partition.number
        );
        self.feed.assign(partition, start)?;
        let mut initial = Binding::initial(partition, start);
        initial.topic_id = self.plan.topic_ids[usize::from(partition.topic)];
        // An earlier topic may have had this partition: its counts carry on.
        let before =
            self.parts.iter().position(|part| part.generator.bound().partition == partition);
        if let Some(at) = before {
            let Binding { promise, records, dead, .. } = *self.parts.remove(at).generator.bound();
            initial = Binding { promise, records, dead, ..initial };
        }
        let generator = WatermarkGenerator::resume(self.config.watermark, initial, self.epoch);
        self.parts.push(Part { assigned: true, ..Part::new(generator) });
        Ok(())
    }
}
