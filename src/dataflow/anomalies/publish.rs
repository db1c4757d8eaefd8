//! The publisher: worker 0 of the job keeps the live anomalies as of the last complete epoch, and
//! reports which were raised and which a correction has withdrawn.

use std::collections::{BTreeMap, BTreeSet};

use differential_dataflow::consolidation::consolidate;
use serde::{Deserialize, Serialize};
use sessionizer_core::anomaly::{Anomaly, Hour, Kind, LIVE};
use sessionizer_core::time::{Epoch, EventTime, tick};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::Operator;

use crate::dataflow::anomalies::OnAnomalies;
use crate::dataflow::anomalies::detect::{Begun, Notice};
use crate::dataflow::statistics::epochs::complete_before;
use crate::dataflow::statistics::watermarks::TableWatermark;

/// What the publisher receives.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Found {
    Anomaly(Anomaly),
    Notice(Notice),
}

/// The anomalies as of an epoch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Published {
    /// Everything that was committed up to and including this epoch is included.
    pub epoch: Epoch,
    pub watermark: Option<EventTime>,
    /// The anomalies that a correction may still withdraw, and those that have expired since the tick
    /// before.
    pub live: BTreeSet<Anomaly>,
    /// The first hour whose anomalies were live before.
    pub live_from: Option<Hour>,
    /// Whether the detectors have just begun, so that what was found before the start is among the
    /// raised ones; and then, whether everything that is live is.
    pub begins: Option<bool>,
    /// Whether visitors were forgotten, because there were too many: anomalies of visitors and
    /// networks that are gone are then no less true.
    pub forgot_visitors: bool,
    /// The anomalies that were not there before this epoch.
    pub raised: Vec<Anomaly>,
    /// The anomalies that a correction has withdrawn, without those that merely expired.
    pub withdrawn: Vec<Anomaly>,
}

impl Published {
    /// Takes in a complete tick.
    fn take(&mut self, tick: Waiting, end_after_ms: i64) {
        self.epoch = tick.epoch;
        self.live_from = self.watermark.map(|before| Hour(Hour::of(before).0 - LIVE + 1));
        self.watermark = self.watermark.max(tick.watermark);
        (self.begins, self.forgot_visitors) = (tick.begins, tick.forgot_visitors);
        let mut changes = tick.changes;
        consolidate(&mut changes);
        let (gone, new): (Vec<_>, Vec<_>) = changes.into_iter().partition(|(_, n)| *n < 0);
        let [gone, new] = [gone, new].map(|of| of.into_iter().map(|(a, _)| a).collect::<Vec<_>>());
        for anomaly in &gone {
            self.live.remove(anomaly);
        }
        self.live.extend(new.iter().cloned());
        let [gone_ones, new_ones] =
            [&gone, &new].map(|of| of.iter().map(Anomaly::identity).collect::<BTreeSet<_>>());
        // The same anomaly with other figures is not new.
        let raised = new.iter().filter(|one| !gone_ones.contains(&one.identity()));
        self.raised = raised.cloned().collect();
        let withdrawn = gone
            .iter()
            .filter(|one| !new_ones.contains(&one.identity()) && self.withdraws(one, end_after_ms));
        self.withdrawn = withdrawn.cloned().collect();
    }

    /// Whether an anomaly that is gone was withdrawn, and has not merely expired.
    pub fn withdraws(&self, gone: &Anomaly, end_after_ms: i64) -> bool {
        // A clock only expires.
        gone.kind != Kind::Clock
            && self.live_from.is_none_or(|from| gone.hour(end_after_ms) >= from)
            && !self.has_forgotten(gone.kind)
    }

    /// Whether anomalies of this kind are gone only because visitors were forgotten.
    fn has_forgotten(&self, kind: Kind) -> bool {
        self.forgot_visitors && matches!(kind, Kind::Repeat | Kind::Network)
    }
}

/// What has arrived of a tick.
#[derive(Default)]
struct Waiting {
    /// The last epoch of which something has arrived.
    epoch: Epoch,
    changes: Vec<(Anomaly, i64)>,
    watermark: Option<EventTime>,
    begins: Option<bool>,
    forgot_visitors: bool,
}

/// Builds the publisher.
pub fn render_publisher<'scope>(
    found: StreamVec<'scope, Epoch, (Found, Epoch, i64)>,
    watermarks: StreamVec<'scope, Epoch, TableWatermark>,
    (every_ms, end_after_ms): (u64, i64),
    on_anomalies: OnAnomalies,
) {
    let publishes = found.scope().index() == 0;
    found.binary_frontier::<_, CapacityContainerBuilder<Vec<()>>, _, _, _, _>(
        watermarks,
        Exchange::new(|_| 0),
        Pipeline,
        "Publish anomalies",
        move |_, _| {
            // By the start of the tick.
            let mut waiting: BTreeMap<Epoch, Waiting> = BTreeMap::new();
            let mut published = Published::default();
            move |(found, found_frontier), (watermarks, watermarks_frontier), _output| {
                found.for_each_stamp(|_, batches| {
                    for (found, epoch, diff) in batches.flat_map(|batch| batch.drain(..)) {
                        let of_tick = waiting.entry(tick(epoch, every_ms)).or_default();
                        of_tick.epoch = of_tick.epoch.max(epoch);
                        match found {
                            Found::Anomaly(anomaly) => of_tick.changes.push((anomaly, diff)),
                            Found::Notice(Notice::ForgotVisitors) => of_tick.forgot_visitors = true,
                            Found::Notice(Notice::Begun(Begun { finds_all, .. })) => {
                                of_tick.begins = Some(of_tick.begins.unwrap_or(true) && finds_all);
                            }
                        }
                    }
                });
                watermarks.for_each_stamp(|cap, batches| {
                    let epoch = *cap.least().expect("watermarks travel under an epoch");
                    let all = batches.flat_map(|batch| batch.drain(..));
                    if let Some(watermark) = all.map(|watermark| watermark.complete).max()
                        && publishes
                    {
                        let of_tick = waiting.entry(tick(epoch, every_ms)).or_default();
                        of_tick.epoch = of_tick.epoch.max(epoch);
                        of_tick.watermark = of_tick.watermark.max(Some(watermark));
                    }
                });
                let frontiers = [found_frontier, watermarks_frontier];
                let frontier = frontiers.iter().filter_map(|f| f.frontier().first().copied()).min();
                let incomplete = waiting.split_off(&complete_before(frontier, every_ms));
                let complete = std::mem::replace(&mut waiting, incomplete);
                // One after the other: what is found in a tick may expire in the next.
                for of_tick in complete.into_values() {
                    published.take(of_tick, end_after_ms);
                    on_anomalies(&published);
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use sessionizer_core::anomaly::Evidence;

    use super::*;

    #[test]
    fn what_is_forgotten_for_lack_of_room_is_not_withdrawn() {
        const DAY_MS: i64 = 86_400_000;
        let anomaly = |kind, at_ms| Anomaly {
            kind,
            host: "a.example".to_owned(),
            subject: "192.0.2.1".to_owned(),
            at: EventTime::from_millis(at_ms),
            observed: 90,
            expected: 9,
            threshold: 40,
            evidence: Evidence::Session { events: 90, duration_ms: 1_000, sessions: 900, rank: 5 },
        };
        let found =
            [anomaly(Kind::Repeat, 0), anomaly(Kind::Network, 0), anomaly(Kind::Burst, DAY_MS / 2)];
        let changes = |n| found.iter().map(|one| (one.clone(), n)).collect::<Vec<_>>();
        for forgot_visitors in [false, true] {
            let watermark = Some(EventTime::from_millis(DAY_MS - 1));
            let mut published = Published::default();
            let tick = |n| Waiting { watermark, changes: changes(n), ..Waiting::default() };
            published.take(tick(1), 300_000);
            assert_eq!((published.raised.len(), published.withdrawn.len()), (3, 0));
            published.take(Waiting { forgot_visitors, ..tick(-1) }, 300_000);
            let kinds: Vec<Kind> = published.withdrawn.iter().map(|one| one.kind).collect();
            match forgot_visitors {
                true => assert_eq!(kinds, [Kind::Burst]),
                false => assert_eq!(kinds.len(), 3),
            }
            assert!(published.live.is_empty());
        }
    }
}
