//! The session operator: events and bindings in; closed sessions, snapshots and summaries out.
//!
//! It acts on an epoch when the frontiers of both inputs have passed it: then every event of the
//! epoch and every binding is here, all workers see the same bindings, and so all close the same
//! sessions. It stores open sessions only, never events of epochs that are done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use super::{Arrival, Cut, ShardOutput, Summary};
use crate::control::Control;
use crate::key::Shard;
use crate::plan::Plan;
use crate::session::{Closed, SessionTable};
use crate::snapshot;
use crate::time::{Epoch, EventTime};
use crate::watermark::{Clock, Reading};

/// A shard as it was loaded: what its snapshot holds, and the epoch of that.
pub struct LoadedShard {
    pub shard: Shard,
    pub epoch: Epoch,
    pub table: SessionTable,
}

/// What comes out of the session operator.
pub struct SessionStreams<'scope> {
    /// To the lane of each shard; a shard in which nothing happened sends nothing.
    pub outputs: StreamVec<'scope, Epoch, ShardOutput>,
    /// One an epoch, to the lanes of this worker.
    pub summaries: StreamVec<'scope, Epoch, Summary>,
}

/// Builds the session operator of this worker over its `shards`.
pub fn render_sessions<'scope>(
    arrivals: StreamVec<'scope, Epoch, Arrival>,
    cuts: StreamVec<'scope, Epoch, Cut>,
    plan: &Arc<Plan>,
    shards: Vec<LoadedShard>,
    snapshot_interval_ms: u64,
    control: Arc<Control>,
) -> SessionStreams<'scope> {
    let scope = arrivals.scope();
    let peers = scope.peers();
    let count = plan.shards();
    let mut builder = OperatorBuilder::new("Sessions".to_owned(), scope);
    let route = move |arrival: &Arrival| Shard::of(arrival.hash, count).0 as u64;
    let mut arrivals = builder.new_input(arrivals, Exchange::new(route));
    let mut cuts = builder.new_input(cuts, Pipeline);
    let (outputs_out, outputs) = builder.new_output();
    let (summaries_out, summaries) = builder.new_output();
    let mut outputs_out = OutputBuilder::from(outputs_out);
    let mut summaries_out = OutputBuilder::from(summaries_out);
    let mut worker = Sessions::new(plan, shards, peers, snapshot_interval_ms, control);
    builder.build(move |_capabilities| {
        let mut stash: BTreeMap<Epoch, Stash> = BTreeMap::new();
        move |frontiers| {
            arrivals.for_each_stamp(|cap, batches| {
                let epoch = *cap.least().expect("arrivals travel under an epoch");
                let stash = stash.entry(epoch).or_default();
                stash.keep(|| [cap.retain_least(0), cap.retain_least(1)]);
                stash.arrivals.extend(batches.map(std::mem::take));
            });
            cuts.for_each_stamp(|cap, batches| {
                let epoch = *cap.least().expect("cuts travel under an epoch");
                let stash = stash.entry(epoch).or_default();
                stash.keep(|| [cap.retain_least(0), cap.retain_least(1)]);
                stash.cuts.extend(batches.flat_map(std::mem::take));
            });
            let open = |epoch: &Epoch| frontiers.iter().any(|f| f.less_equal(epoch));
            let last = frontiers.iter().all(|f| f.frontier().is_empty());
            let mut outputs_out = outputs_out.activate();
            let mut summaries_out = summaries_out.activate();
            while let Some(entry) = stash.first_entry() {
                let epoch = *entry.key();
                if open(&epoch) {
                    break;
                }
                let Stash { caps, arrivals, cuts } = entry.remove();
                let [outputs_cap, summaries_cap] = caps.expect("a stash begins with a message");
                let (summary, outputs) =
                    worker.step(epoch, arrivals, cuts, last && stash.is_empty());
                outputs_out.session(&outputs_cap).give_iterator(outputs.into_iter());
                summaries_out.session(&summaries_cap).give(summary);
            }
        }
    });
    SessionStreams { outputs, summaries }
}

/// What has come of an epoch that is not complete.
#[derive(Default)]
struct Stash {
    caps: Option<[Capability<Epoch>; 2]>,
    arrivals: Vec<Vec<Arrival>>,
    cuts: Vec<Cut>,
}

impl Stash {
    fn keep(&mut self, retain: impl FnOnce() -> [Option<Capability<Epoch>>; 2]) {
        self.caps.get_or_insert_with(|| {
            retain().map(|cap| cap.expect("a message's stamp holds its epoch"))
        });
    }
}

/// The shards of one worker, and the clock they all go by.
struct Sessions {
    clock: Clock,
    shards: Vec<OwnShard>,
    count: u32,
    peers: usize,
    snapshot_interval_ms: u64,
    /// Watermarks as they were recorded, to check the replay (I2).
    recorded: BTreeMap<Epoch, EventTime>,
    control: Arc<Control>,
    open_sessions: i64,
}

struct OwnShard {
    shard: Shard,
    table: SessionTable,
    /// The epoch of its snapshot; what lies before it is in there.
    loaded: Epoch,
    /// When the last snapshot was taken, or might have been.
    snapshot: Epoch,
    /// `open_records` as the lane knows it.
    told_open: u64,
}

impl Sessions {
    fn new(
        plan: &Plan,
        shards: Vec<LoadedShard>,
        peers: usize,
        snapshot_interval_ms: u64,
        control: Arc<Control>,
    ) -> Self {
        let own = |loaded: LoadedShard| OwnShard {
            shard: loaded.shard,
            told_open: u64::MAX,
            loaded: loaded.epoch,
            snapshot: loaded.epoch.max(plan.first_epoch),
            table: loaded.table,
        };
        Sessions {
            clock: Clock::new(plan.base_epoch, plan.base_watermark, plan.base_bindings()),
            shards: shards.into_iter().map(own).collect(),
            count: plan.shards(),
            peers,
            snapshot_interval_ms,
            recorded: plan.replay.iter().map(|bound| (bound.epoch, bound.watermark)).collect(),
            control,
            open_sessions: 0,
        }
    }

    /// One epoch, complete: apply its events, learn its watermark, close what is due.
    fn step(
        &mut self,
        epoch: Epoch,
        arrivals: Vec<Vec<Arrival>>,
        cuts: Vec<Cut>,
        last: bool,
    ) -> (Summary, Vec<ShardOutput>) {
        assert!(!cuts.is_empty(), "I2: epoch {epoch} has events and no binding");
        let mut bindings: Vec<_> = cuts.into_iter().flat_map(|cut| cut.bindings).collect();
        bindings.sort_unstable_by_key(|binding| binding.partition);
        let reading = self.clock.advance(epoch, bindings.iter().copied());
        if let Some(recorded) = self.recorded.remove(&epoch) {
            assert_eq!(recorded, reading.watermark, "I2: epoch {epoch} has another watermark");
        }
        for arrival in arrivals.into_iter().flatten() {
            self.apply(epoch, &arrival);
        }
        let outputs = self.close(epoch, reading, last);
        self.report(reading);
        (Summary { watermark: reading.watermark, bindings }, outputs)
    }

    fn apply(&mut self, epoch: Epoch, arrival: &Arrival) {
        let at = Shard::of(arrival.hash, self.count).0 as usize / self.peers;
        let own = &mut self.shards[at];
        if epoch > own.loaded {
            own.table.insert(arrival.hash, arrival.key.bytes(), arrival.span);
        }
    }

    fn close(&mut self, epoch: Epoch, reading: Reading, last: bool) -> Vec<ShardOutput> {
        let mut outputs = Vec::new();
        for own in &mut self.shards {
            if epoch <= own.loaded {
                continue;
            }
            let mut closed: Vec<Closed> = Vec::new();
            own.table.close(reading.close_before(), &mut closed);
            let due = last || due(own, epoch, self.count, self.snapshot_interval_ms);
            let snapshot = due.then(|| {
                own.snapshot = epoch;
                snapshot::encode(&own.table)
            });
            let open_records = own.table.open_records();
            if !closed.is_empty() || snapshot.is_some() || open_records != own.told_open {
                own.told_open = open_records;
                outputs.push(ShardOutput { shard: own.shard, closed, open_records, snapshot });
            }
        }
        outputs
    }

    fn report(&mut self, reading: Reading) {
        let open = self.shards.iter().map(|own| own.table.len() as i64).sum::<i64>();
        self.control.gauges.open_sessions.fetch_add(open - self.open_sessions, Relaxed);
        self.open_sessions = open;
        self.control.gauges.set_watermark(reading.watermark);
    }
}

/// Whether a shard's turn for a snapshot has come: once an interval, each at its own phase.
fn due(own: &OwnShard, epoch: Epoch, shards: u32, interval_ms: u64) -> bool {
    let phase = interval_ms * u64::from(own.shard.0) / u64::from(shards);
    (epoch + phase) / interval_ms > (own.snapshot + phase) / interval_ms
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Gap;

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
                told_open: 0,
            };
            for second in 1..=60 {
                let epoch = 1_700_000_000_000 + second * 1_000;
                if due(&own, epoch, 128, 60_000) {
                    own.snapshot = epoch;
                    taken[second as usize - 1] += 1;
                }
            }
        }
        assert_eq!(taken.iter().sum::<i32>(), 128);
        assert!(taken.iter().all(|taken| (1..=4).contains(taken)), "{taken:?}");
    }
}
