//! A partition whose clock is off: its promise is far from that of the others, epoch after epoch.

use std::collections::BTreeMap;

use super::{Anomaly, Day, Evidence, Kind, Thresholds};
use crate::time::EventTime;

/// What is known of a partition at an epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartitionClock<'a> {
    /// Topic and number, as people write them.
    pub name: &'a str,
    /// `None` if it is idle, has ended or lags: then its promise says nothing about its clock.
    pub promise: Option<EventTime>,
}

/// Judges partitions, epoch by epoch.
#[derive(Clone, Debug)]
pub struct ClockJudge {
    off_ms: u64,
    epochs: u64,
    partitions: u64,
    off: BTreeMap<String, Off>,
}

/// A partition that is off now.
#[derive(Clone, Copy, Debug)]
struct Off {
    ahead: bool,
    epochs: u64,
    /// The day for which it was last returned.
    returned: Option<Day>,
}

impl ClockJudge {
    pub fn new(thresholds: &Thresholds, out_of_orderness_ms: u64, idle_timeout_ms: u64) -> Self {
        ClockJudge {
            off_ms: thresholds.clock_off_ms(out_of_orderness_ms, idle_timeout_ms),
            epochs: thresholds.clock_epochs,
            partitions: thresholds.clock_partitions,
            off: BTreeMap::new(),
        }
    }

    /// Takes in the partitions at the next epoch, and returns those whose clock has now been off
    /// for long enough. Each is returned once a day (that of the median promise), and not again
    /// on that day until its clock has been right.
    pub fn epoch(&mut self, partitions: &[PartitionClock<'_>]) -> Vec<Anomaly> {
        let mut promises: Vec<EventTime> =
            partitions.iter().filter_map(|partition| partition.promise).collect();
        promises.sort_unstable();
        let known = promises.len() as u64 >= self.partitions;
        let Some(median) = promises.get(promises.len().saturating_sub(1) / 2) else {
            self.off.clear();
            return Vec::new();
        };
        let mut found = Vec::new();
        let mut off = BTreeMap::new();
        for PartitionClock { name, promise } in partitions {
            let Some(promise) = promise.filter(|_| known) else { continue };
            let by_ms = promise.millis().abs_diff(median.millis());
            if by_ms <= self.off_ms {
                continue;
            }
            let ahead = promise > *median;
            let before = self.off.get(*name).filter(|off| off.ahead == ahead);
            let epochs = before.map_or(1, |off| off.epochs + 1);
            let (day, returned) = (Day::of(*median), before.and_then(|off| off.returned));
            let is_due = epochs >= self.epochs && returned < Some(day);
            let returned = if is_due { Some(day) } else { returned };
            off.insert((*name).to_owned(), Off { ahead, epochs, returned });
            if is_due {
                found.push(Anomaly {
                    kind: Kind::Clock,
                    host: String::new(),
                    subject: (*name).to_owned(),
                    at: Day::of(*median).start(),
                    observed: by_ms / 1_000,
                    expected: 0,
                    threshold: self.off_ms / 1_000,
                    evidence: Evidence::Clock { ahead },
                });
            }
        }
        self.off = off;
        found
    }
}
