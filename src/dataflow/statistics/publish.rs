//! The publisher: worker 0 of the job keeps the statistics as of the last complete epoch.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use differential_dataflow::consolidation::consolidate;
use serde::{Deserialize, Serialize};
use sessionizer_core::time::{Epoch, EventTime};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::Operator;

use crate::dataflow::statistics::epochs::complete_before;
use crate::dataflow::statistics::operator::CountedSince;
use crate::dataflow::statistics::sums::{Host, Summary, Sums, VisitorAddress};
use crate::dataflow::statistics::watermarks::TableWatermark;

/// An entry of the statistics.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Entry {
    /// The sessions of a host that ended in an hour.
    Hour(Host, i64, Summary),
    /// Those that ended in the window.
    Day(Host, Summary),
    /// Those that ended in a minute.
    Minute(Host, i64, Sums),
    /// The name of a host.
    Host(Host, String),
    /// How many visitors a host had in the window.
    Visitors(Host, i64),
    /// A visitor with many sessions on a host in the window.
    Busy(Host, VisitorAddress, i64),
    /// Since when a worker counts.
    Since(usize, CountedSince),
}

/// The statistics as of an epoch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Published {
    /// Everything that was committed up to and including this epoch is included.
    pub epoch: Epoch,
    pub watermark: Option<EventTime>,
    pub hours: HashMap<Host, BTreeMap<i64, Summary>>,
    pub days: HashMap<Host, Summary>,
    pub minutes: HashMap<Host, BTreeMap<i64, Sums>>,
    pub hosts: HashMap<Host, String>,
    pub visitors: HashMap<Host, i64>,
    pub busy: BTreeSet<(Host, VisitorAddress, i64)>,
    pub from: BTreeSet<(usize, CountedSince)>,
    /// How many entries can exist only because of an error: more was removed than was added.
    pub broken: u64,
}

impl Published {
    /// Adds an entry, or removes it.
    fn change(&mut self, entry: Entry, diff: i64) {
        match entry {
            Entry::Hour(host, hour, summary) => {
                self.broken += u64::from(diff > 0 && summary.broken);
                inner(&mut self.hours, host, hour, summary, diff);
            }
            Entry::Day(host, summary) => {
                self.broken += u64::from(diff > 0 && summary.broken);
                outer(&mut self.days, host, summary, diff);
            }
            Entry::Minute(host, minute, sums) => {
                let impossible = sums.sessions <= 0 || sums.events < sums.sessions;
                self.broken += u64::from(diff > 0 && impossible);
                inner(&mut self.minutes, host, minute, sums, diff);
            }
            Entry::Host(host, name) => outer(&mut self.hosts, host, name, diff),
            Entry::Visitors(host, visitors) => outer(&mut self.visitors, host, visitors, diff),
            Entry::Busy(host, visitor, sessions) => {
                member(&mut self.busy, (host, visitor, sessions), diff);
            }
            Entry::Since(worker, from) => member(&mut self.from, (worker, from), diff),
        }
    }

    /// Whether everything that the table had at the start is included, or was given up.
    pub fn is_complete(&self) -> bool {
        self.from.iter().any(|(_, from)| !matches!(from, CountedSince::Visitors(_)))
    }

    /// Since when sessions count, if not in the whole window.
    pub fn rows_from(&self) -> Option<EventTime> {
        self.from.iter().find_map(|(_, from)| match from {
            CountedSince::Rows(since) => Some(*since),
            _ => None,
        })
    }

    /// Since which hour all visitors are counted, if not in the whole window.
    pub fn visitors_from(&self) -> Option<i64> {
        let hours = self.from.iter().filter_map(|(_, from)| match from {
            CountedSince::Visitors(hour) => Some(*hour),
            _ => None,
        });
        hours.max()
    }
}

fn outer<K: Eq + Hash, V: PartialEq>(map: &mut HashMap<K, V>, key: K, value: V, diff: i64) {
    if diff > 0 {
        map.insert(key, value);
    } else if map.get(&key) == Some(&value) {
        map.remove(&key);
    }
}

fn inner<V: PartialEq>(
    map: &mut HashMap<Host, BTreeMap<i64, V>>,
    host: Host,
    time: i64,
    value: V,
    diff: i64,
) {
    let of_host = map.entry(host).or_default();
    if diff > 0 {
        of_host.insert(time, value);
    } else if of_host.get(&time) == Some(&value) {
        of_host.remove(&time);
        if of_host.is_empty() {
            map.remove(&host);
        }
    }
}

fn member<T: Ord>(set: &mut BTreeSet<T>, value: T, diff: i64) {
    if diff > 0 {
        set.insert(value);
    } else {
        set.remove(&value);
    }
}

/// What has arrived of an incomplete epoch.
#[derive(Default)]
struct Waiting {
    entries: Vec<(Entry, i64)>,
    watermark: Option<EventTime>,
}

/// Receives the statistics after each complete tick, on worker 0 of the job.
pub type OnStatistics = Arc<dyn Fn(&Published) + Send + Sync>;

/// Builds the publisher.
pub fn render_publisher<'scope>(
    entries: StreamVec<'scope, Epoch, (Entry, Epoch, i64)>,
    watermarks: StreamVec<'scope, Epoch, TableWatermark>,
    every_ms: u64,
    on_statistics: OnStatistics,
) {
    let publishes = entries.scope().index() == 0;
    entries.binary_frontier::<_, CapacityContainerBuilder<Vec<()>>, _, _, _, _>(
        watermarks,
        Exchange::new(|_| 0),
        Pipeline,
        "Publish",
        move |_, _| {
            let mut waiting: BTreeMap<Epoch, Waiting> = BTreeMap::new();
            let mut published = Published::default();
            move |(entries, entries_frontier), (watermarks, watermarks_frontier), _output| {
                entries.for_each_stamp(|_, batches| {
                    for (entry, epoch, diff) in batches.flat_map(|batch| batch.drain(..)) {
                        waiting.entry(epoch).or_default().entries.push((entry, diff));
                    }
                });
                watermarks.for_each_stamp(|cap, batches| {
                    let epoch = *cap.least().expect("watermarks travel under an epoch");
                    let all = batches.flat_map(|batch| batch.drain(..));
                    if let Some(watermark) = all.map(|watermark| watermark.complete).max()
                        && publishes
                    {
                        waiting.entry(epoch).or_default().watermark = Some(watermark);
                    }
                });
                let frontiers = [entries_frontier, watermarks_frontier];
                let frontier = frontiers.iter().filter_map(|f| f.frontier().first().copied()).min();
                let incomplete = waiting.split_off(&complete_before(frontier, every_ms));
                let complete = std::mem::replace(&mut waiting, incomplete);
                let Some((epoch, _)) = complete.last_key_value() else { return };
                published.epoch = *epoch;
                for Waiting { mut entries, watermark } in complete.into_values() {
                    published.watermark = published.watermark.max(watermark);
                    // What came and went cancels out. Removals come first.
                    consolidate(&mut entries);
                    entries.sort_unstable_by_key(|(_, diff)| *diff);
                    entries.into_iter().for_each(|(entry, diff)| published.change(entry, diff));
                }
                on_statistics(&published);
            }
        },
    );
}
