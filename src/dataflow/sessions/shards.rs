//! What a complete epoch does to the shards of a worker: it applies the events, computes the
//! watermark, closes what is due, and takes the snapshots that are due.
//!
//! Nothing here depends on the order in which the events of an epoch have arrived (I2).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use sessionizer_core::alignment::Alignment;
use sessionizer_core::anomaly::OpenReport;
use sessionizer_core::binding::{Late, RecordRules};
use sessionizer_core::key::{Key, Shard};
use sessionizer_core::plan::RecoveryPlan;
use sessionizer_core::session::snapshot;
use sessionizer_core::session::{Closed, SessionTable, Span};
use sessionizer_core::time::{Epoch, EventTime};
use sessionizer_core::watermark::{WatermarkAdvance, WatermarkTracker};

use crate::dataflow::budget::ChargeKind;
use crate::dataflow::messages::{
    DeadLetter, EpochMeta, ReplayDifference, ShardOutput, SourceBindings, Suspect,
};
use crate::dataflow::run_state::RunState;
use crate::dataflow::sessions::long::LongSessions;
use crate::dataflow::sessions::{LoadedShard, SessionConfig};
use crate::dataflow::span_batch::{SpanBatch, SpanUpdate};

/// The input of an epoch for the shards of a worker.
#[derive(Default)]
pub(super) struct Input {
    pub arrivals: Vec<Vec<SpanBatch>>,
    pub suspects: Vec<Suspect>,
    pub bindings: Vec<SourceBindings>,
}

/// The shards of one worker, and the watermark they share.
pub(super) struct Sessions {
    tracker: WatermarkTracker,
    shards: Vec<OwnShard>,
    count: u32,
    worker: usize,
    peers: usize,
    config: SessionConfig,
    alignment: Alignment,
    /// The recorded watermarks and rules of the epochs to replay, to check the replay (I2).
    recorded: BTreeMap<Epoch, (EventTime, RecordRules)>,
    /// The rules that new epochs are bound with.
    rules: RecordRules,
    /// The first new epoch after a loss. Snapshots taken in it record what is left in the totals,
    /// and spare the next start the same loss.
    after_loss: Option<Epoch>,
    /// How the replay has differed from the bindings so far.
    differences: Vec<ReplayDifference>,
    /// No session that the replayed epochs can have closed ends later than this.
    replay_horizon: EventTime,
    /// What the detectors of anomalies know of its open sessions, if they look for marathons.
    long: Option<LongSessions>,
    run_state: Arc<RunState>,
    /// What this worker has contributed to the metrics.
    open_sessions: i64,
    state_bytes: i64,
}

struct OwnShard {
    shard: Shard,
    table: SessionTable,
    /// The epoch of its snapshot, which contains everything up to then.
    loaded: Epoch,
    /// When the last snapshot was taken, or might have been.
    snapshot: Epoch,
    /// `open_records` as the writer knows it.
    sent_open: u64,
}

impl Sessions {
    pub(super) fn new(
        plan: &RecoveryPlan,
        shards: Vec<LoadedShard>,
        (worker, peers): (usize, usize),
        config: SessionConfig,
        run_state: Arc<RunState>,
    ) -> Self {
        // No event is later than the clock allows, and a session ends a gap after its last event.
        let gap = shards.first().map(|loaded| loaded.table.gap());
        let latest = plan.replay.iter().flat_map(|bound| {
            bound.bindings.iter().map(|b| bound.rules.latest(b.clock_in(bound.epoch)))
        });
        let latest = latest.max().unwrap_or(EventTime::NEVER);
        let replay_horizon = gap.map_or(latest, |gap| gap.end_after(latest));
        let own = |mut loaded: LoadedShard| {
            if let Some(horizon) = plan.lost_before {
                // The replay does not bring back what has closed since the snapshot.
                loaded.table.raise_horizon(horizon);
            }
            if let Some(above_ms) = config.long_above_ms {
                loaded.table.watch_long(above_ms);
            }
            OwnShard {
                shard: loaded.shard,
                sent_open: u64::MAX,
                loaded: loaded.epoch,
                snapshot: loaded.epoch.max(plan.first_epoch),
                table: loaded.table,
            }
        };
        Sessions {
            tracker: WatermarkTracker::new(
                plan.base_epoch,
                plan.base_watermark,
                plan.base_bindings(),
            ),
            shards: shards.into_iter().map(own).collect(),
            count: plan.shards(),
            worker,
            peers,
            alignment: Alignment::new(config.drift),
            long: config.long_above_ms.map(|_| LongSessions::default()),
            config,
            recorded: plan
                .replay
                .iter()
                .map(|bound| (bound.epoch, (bound.watermark, bound.rules)))
                .collect(),
            rules: plan.rules,
            after_loss: plan.lost_before.map(|_| plan.first_epoch),
            differences: Vec::new(),
            replay_horizon,
            run_state,
            open_sessions: 0,
            state_bytes: 0,
        }
    }

    /// Tells the source of this worker how far another one is.
    pub(super) fn learn(&self, epoch: Epoch, source: &SourceBindings) {
        self.config.feedback.learn(epoch, source.early);
    }

    /// Processes a complete epoch: applies its events, computes its watermark, and closes what is
    /// due.
    pub(super) fn step(
        &mut self,
        epoch: Epoch,
        input: Input,
        last: bool,
    ) -> (EpochMeta, Vec<ShardOutput>, Vec<OpenReport>) {
        let Input { arrivals, suspects, bindings: sources } = input;
        assert!(!sources.is_empty(), "I2: epoch {epoch} has events and no binding");
        let (mut bindings, mut lagging) = (Vec::new(), Vec::new());
        for source in sources {
            bindings.extend(source.bindings);
            lagging.extend_from_slice(&source.lagging);
            self.differences.extend(source.differences);
            self.alignment.learn(source.worker, source.lagging);
        }
        bindings.sort_unstable_by_key(|binding| binding.partition);
        let before = self.tracker.watermark();
        let advance = self.tracker.advance(epoch, bindings.iter().copied());
        let recorded = self.recorded.remove(&epoch);
        let differences = self.learn_differences(epoch, recorded.is_none());
        let (watermark, rules) = recorded.unwrap_or((advance.watermark, self.rules));
        assert_eq!(watermark, advance.watermark, "I2: epoch {epoch} has another watermark");
        for batch in arrivals.into_iter().flatten() {
            batch.arrivals().for_each(|arrival| self.apply(epoch, arrival));
        }
        self.run_state.memory.release_events(self.worker, epoch);
        let dropped = match rules.late {
            Late::Merge => BTreeMap::new(),
            Late::Drop => self.drop_late(epoch, before, suspects),
        };
        let outputs = self.close(epoch, advance, dropped, last);
        let tables = self.shards.iter_mut().map(|own| &mut own.table);
        let long = self.long.as_mut().map(|long| long.report(tables, watermark));
        log::debug!(
            epoch = epoch,
            worker = self.worker,
            watermark:% = watermark,
            drained = advance.drained,
            closed = outputs.iter().map(|output| output.closed.len()).sum::<usize>(),
            dropped = outputs.iter().map(|output| output.dropped.len()).sum::<usize>();
            "applied"
        );
        self.charge(epoch, &outputs);
        self.report(advance);
        self.run_state.metrics.figures.bind(epoch, watermark, &bindings);
        let open = self.run_state.metrics.open_sessions.load(Relaxed).max(0) as u64;
        let paused = self.alignment.paused(self.tracker.bindings(), open);
        if !paused.is_empty() {
            log::debug!(epoch = epoch, worker = self.worker, partitions:? = paused; "paused");
        }
        self.config.feedback.pause(paused);
        let meta = EpochMeta { watermark, rules, bindings, lagging, differences };
        (meta, outputs, long.unwrap_or_default())
    }

    /// A replay that returns other records than before must not close what has closed before, so
    /// everything that can have closed counts as closed. The first new epoch carries the
    /// differences to the writers, and takes a snapshot, so that the next start does not find the
    /// same ones again.
    fn learn_differences(&mut self, epoch: Epoch, is_new: bool) -> Vec<ReplayDifference> {
        if self.differences.is_empty() {
            return Vec::new();
        }
        for own in &mut self.shards {
            own.table.raise_horizon(self.replay_horizon);
        }
        if !is_new {
            return Vec::new();
        }
        self.after_loss = Some(epoch);
        let mut differences = std::mem::take(&mut self.differences);
        differences.sort_unstable();
        differences
    }

    /// Removes the events that came too late: the sessions that would have closed before this
    /// epoch. All their events came in this epoch, because a session that was open and ended before
    /// that watermark has closed. So the order in which they came does not matter (I2).
    fn drop_late(
        &mut self,
        epoch: Epoch,
        watermark: EventTime,
        suspects: Vec<Suspect>,
    ) -> BTreeMap<Shard, Vec<DeadLetter>> {
        let mut late: HashMap<Key, Vec<Span>> = HashMap::new();
        let mut events = 0;
        for own in self.shards.iter_mut().filter(|own| epoch > own.loaded) {
            let mut due = Vec::new();
            own.table.take_due(watermark, &mut due);
            for Closed { key, span, .. } in due {
                events += span.count;
                late.entry(key).or_default().push(span);
            }
        }
        let mut dropped: BTreeMap<Shard, Vec<DeadLetter>> = BTreeMap::new();
        for Suspect { key, time, mut letter, .. } in suspects {
            let spans = late.get(&key).map_or(&[][..], Vec::as_slice);
            if let Some(span) = spans.iter().find(|span| span.first <= time && time <= span.last) {
                events -= 1;
                letter.detail = format!(
                    "event_time {time}: its session ends less than a gap after {}, the watermark \
                     was {watermark} already, and --late is drop",
                    span.last
                );
                dropped.entry(letter.shard).or_default().push(letter);
            }
        }
        assert_eq!(events, 0, "I8: epoch {epoch} drops events that nobody suspected");
        let letters = dropped.values().map(Vec::len).sum::<usize>();
        self.run_state.metrics.dead.fetch_add(letters as u64, Relaxed);
        for letters in dropped.values() {
            self.run_state.metrics.figures.dead(letters, epoch);
        }
        dropped
    }

    /// Applies an arrival, unless the snapshot of its shard contains it already.
    fn apply(&mut self, epoch: Epoch, SpanUpdate { hash, span, key }: SpanUpdate<'_>) {
        let at = Shard::of(hash, self.count).0 as usize / self.peers;
        let own = &mut self.shards[at];
        if epoch > own.loaded {
            own.table.insert(hash, key, span);
        }
    }

    /// Closes the sessions that are due, takes the snapshots that are due, and returns the output
    /// of each shard in which something happened.
    fn close(
        &mut self,
        epoch: Epoch,
        advance: WatermarkAdvance,
        mut dropped: BTreeMap<Shard, Vec<DeadLetter>>,
        last: bool,
    ) -> Vec<ShardOutput> {
        let mut outputs = Vec::new();
        for own in &mut self.shards {
            if epoch <= own.loaded {
                continue;
            }
            let mut closed: Vec<Closed> = Vec::new();
            own.table.close(advance.close_before(), &mut closed);
            let due = last
                || self.after_loss == Some(epoch)
                || snapshot_due(own, epoch, self.count, self.config.snapshot_interval_ms);
            let snapshot = due.then(|| {
                own.snapshot = epoch;
                snapshot::encode(&own.table)
            });
            let open_records = own.table.open_records();
            let dropped = dropped.remove(&own.shard).unwrap_or_default();
            let changed = !closed.is_empty() || !dropped.is_empty() || snapshot.is_some();
            if changed || open_records != own.sent_open {
                own.sent_open = open_records;
                let shard = own.shard;
                outputs.push(ShardOutput { shard, closed, dropped, open_records, snapshot });
            }
        }
        outputs
    }

    /// Charges what goes to the writers, which is kept until it is durable.
    fn charge(&self, epoch: Epoch, outputs: &[ShardOutput]) {
        let sum = |of: fn(&ShardOutput) -> u64| outputs.iter().map(of).sum::<u64>();
        for (kind, bytes) in [
            (ChargeKind::Rows, sum(ShardOutput::row_bytes)),
            (ChargeKind::DeadLetters, sum(ShardOutput::dead_letter_bytes)),
            (ChargeKind::Snapshots, sum(ShardOutput::snapshot_bytes)),
        ] {
            self.run_state.memory.charge(kind, self.worker, epoch, bytes);
        }
    }

    /// Updates the metrics.
    fn report(&mut self, advance: WatermarkAdvance) {
        let metrics = &self.run_state.metrics;
        let sum = |of: fn(&SessionTable) -> usize| {
            self.shards.iter().map(|own| of(&own.table) as i64).sum::<i64>()
        };
        let (open, bytes) = (sum(SessionTable::len), sum(SessionTable::allocated_bytes));
        metrics.open_sessions.fetch_add(open - self.open_sessions, Relaxed);
        metrics.state_bytes.fetch_add(bytes - self.state_bytes, Relaxed);
        (self.open_sessions, self.state_bytes) = (open, bytes);
        metrics.set_watermark(advance.watermark);
    }
}

/// Whether a shard is due for a snapshot: once an interval, each shard at a phase of its own.
fn snapshot_due(own: &OwnShard, epoch: Epoch, shards: u32, interval_ms: u64) -> bool {
    let phase = interval_ms * u64::from(own.shard.0) / u64::from(shards);
    (epoch + phase) / interval_ms > (own.snapshot + phase) / interval_ms
}

#[cfg(test)]
mod tests {
    use super::*;
    use sessionizer_core::time::Gap;

    #[test]
    fn every_shard_has_its_snapshot_once_an_interval_and_not_all_at_once() {
        let gap = Gap::from_millis(300_000).expect("valid");
        let mut taken = vec![0; 60];
        for shard in 0..128 {
            let mut own = OwnShard {
                shard: Shard(shard),
                table: SessionTable::new(gap, EventTime::NEVER),
                loaded: 0,
                snapshot: 1_700_000_000_000,
                sent_open: 0,
            };
            for second in 1..=60 {
                let epoch = 1_700_000_000_000 + second * 1_000;
                if snapshot_due(&own, epoch, 128, 60_000) {
                    own.snapshot = epoch;
                    taken[second as usize - 1] += 1;
                }
            }
        }
        assert_eq!(taken.iter().sum::<i32>(), 128);
        assert!(taken.iter().all(|taken| (1..=4).contains(taken)), "{taken:?}");
    }
}
