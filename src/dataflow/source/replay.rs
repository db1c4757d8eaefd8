//! The replay: reads the bound epochs of the plan again, each exactly as it was bound.
//!
//! If an epoch returns other records than before, the replay reports that and does not repair it.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use sessionizer_core::binding::{Binding, BoundEpoch};
use sessionizer_core::fault::Fault;
use sessionizer_core::time::Epoch;
use sessionizer_core::watermark::WatermarkGenerator;

use crate::dataflow::messages::{ReplayDifference, SourceBindings};
use crate::dataflow::ports::{Feed, Stopped};
use crate::dataflow::source::emit::{Emit, NextActivation};
use crate::dataflow::source::partition::Part;
use crate::dataflow::source::reader::{
    InFlight, Phase, RECORDS_PER_ACTIVATION, Reader, WAIT_INTERVAL,
};

impl<F: Feed> Reader<F> {
    /// Reads the oldest bound epoch again. Once it is complete, cuts it as it was cut before.
    pub(super) fn replay(&mut self, emit: &mut Emit) -> Result<NextActivation, Fault> {
        if self.run_state.stopping() {
            // The current epoch is half read and cannot be cut. Nothing new was read, so leaving
            // everything as it is loses nothing: the next start begins where this one did.
            self.run_state.abandon();
            return Ok(NextActivation::After(Duration::from_millis(100)));
        }
        let Phase::Replay(replay) = &mut self.phase else { unreachable!("replaying") };
        let bound = replay.front().expect("a replay ends with its last epoch").clone();
        debug_assert_eq!(bound.epoch, self.epoch, "the replay goes in order");
        self.service_feed()?;
        // Once everything before it is durable, an epoch is read whole, however much memory it
        // takes.
        if !self.pause.may_read(self.clocks.elapsed_ms()) && !self.in_flight.is_empty() {
            return Ok(NextActivation::After(WAIT_INTERVAL));
        }
        let mut limit = RECORDS_PER_ACTIVATION;
        let mut next = None;
        for binding in &bound.bindings {
            let at = self.part(binding.partition);
            if !self.parts[at].assigned {
                continue;
            }
            let clock_ms = binding.clock_in(bound.epoch);
            match self.read(at, Some(binding.end), clock_ms, (&mut limit, u64::MAX), emit)? {
                Stopped::AtEnd => {}
                Stopped::AtLimit => next = Some(NextActivation::Now),
                Stopped::Waiting => {
                    next = next.or(Some(NextActivation::After(Duration::from_millis(100))));
                    let position = self.feed.position(binding.partition);
                    let now_ms = self.clocks.elapsed_ms();
                    if let Some(ms) = self.parts[at].watchdog.look(Some(position), now_ms) {
                        self.warn_stuck(&[(binding.partition, position, ms)]);
                    }
                }
            }
        }
        if let Some(next) = next {
            return Ok(next);
        }
        self.cut_replayed(bound, emit)?;
        Ok(NextActivation::Now)
    }

    /// Cuts a bound epoch that has been replayed, and moves on to the next one or to new input.
    fn cut_replayed(&mut self, bound: BoundEpoch, emit: &mut Emit) -> Result<(), Fault> {
        let mut differences = Vec::new();
        for binding in &bound.bindings {
            differences.extend(self.check_replayed(bound.epoch, binding));
            let at = self.part(binding.partition);
            let part = &mut self.parts[at];
            part.generator =
                WatermarkGenerator::resume(self.config.watermark, *binding, self.plan.first_epoch);
        }
        self.flush(emit);
        self.watermark.set(bound.watermark);
        Emit::at(&mut emit.bindings, bound.epoch).push(SourceBindings {
            worker: self.worker,
            bindings: bound.bindings,
            lagging: Vec::new(),
            early: false,
            differences,
        });
        self.in_flight.push_back(InFlight { epoch: bound.epoch, ends: Vec::new() });
        log::debug!(epoch = bound.epoch, worker = self.worker; "replayed");
        self.run_state.metrics.replayed_epochs.fetch_add(1, Relaxed);
        let Phase::Replay(replay) = &mut self.phase else { unreachable!("replaying") };
        replay.pop_front();
        match replay.front() {
            Some(next) => self.epoch = next.epoch,
            None => self.go_live()?,
        }
        Ok(())
    }

    /// Compares a replayed epoch with its binding: they agree (I2) unless the topic has lost
    /// records since.
    fn check_replayed(&self, epoch: Epoch, binding: &Binding) -> Option<ReplayDifference> {
        let Part { generator, assigned, .. } = &self.parts[self.part(binding.partition)];
        let (before, (records, dead)) = (generator.bound(), generator.counts());
        if !assigned || (records, dead) == (binding.records, binding.dead) {
            return None;
        }
        let difference = ReplayDifference {
            epoch,
            partition: binding.partition,
            from: before.end,
            to: binding.end,
            recorded: binding.records.saturating_sub(before.records),
            found: records - before.records,
        };
        log::warn!(
            epoch = epoch,
            topic = self.plan.topic(binding.partition),
            partition = binding.partition.number,
            offset = difference.from.get();
            "{}[{}]: reading offsets {} to {} again returned {} records ({} of them dead letters), \
             not {} ({}) as before: the topic has changed (compaction, deletion). Rows that are \
             written stay; sessionizer.replay_differences says where, and `lost` in \
             sessionizer.balance counts what is missing",
            self.plan.topic(binding.partition),
            binding.partition.number,
            difference.from,
            difference.to,
            difference.found,
            dead - before.dead,
            difference.recorded,
            binding.dead.saturating_sub(before.dead),
        );
        Some(difference)
    }
}
