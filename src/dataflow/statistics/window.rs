//! The window: the rows that the statistics cover, summed and kept so that they can be retracted
//! when the watermark has moved past them. Pure: no timely, no clock.
//!
//! A row belongs to the minute and to the hour in which its session ended (`session_end`), because
//! these are final once the watermark has passed their end. Hours are kept for a day and minutes
//! for an hour, plus the current ones. A row that ended earlier never enters.
//!
//! All of it is bounded. A limited number of hosts have a *place*, that is, they are counted
//! individually; the others are counted together, as [`Host::OTHER`]. A row must be removed from
//! where it was added, so a host for which there was no room gets a place only once no row of its
//! slot (a share of all hosts) is left among the others. Beyond a number of visitors, none are
//! counted until the next hour.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use differential_dataflow::difference::{Abelian, IsZero, Semigroup};
use foldhash::fast::RandomState;
use sessionizer_core::time::EventTime;

use crate::dataflow::statistics::sums::{Host, Item, Row, Sums, VisitorAddress};
use crate::dataflow::statistics::watermarks::TableWatermark;

#[cfg(test)]
mod tests;

/// How many slots the hosts without a place share.
const SLOTS: u64 = 4_096;

/// What is kept, and for how long. Event times in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    pub minute_ms: i64,
    /// How many complete minutes are kept.
    pub minutes: i64,
    pub hour_ms: i64,
    /// How many complete hours are kept.
    pub hours: i64,
    /// The most hosts with a place, in this part of the window.
    pub hosts: usize,
    /// The most visitors, counted by host and hour, in this part of the window. With zero, visitors
    /// are not counted.
    pub visitors: usize,
}

impl Bounds {
    /// An hour of minutes and a day of hours.
    pub fn day(hosts: usize, visitors: usize) -> Self {
        let (minute_ms, minutes) = (60_000, 60);
        Bounds { minute_ms, minutes, hour_ms: 3_600_000, hours: 24, hosts, visitors }
    }

    /// The first minute that is kept when the watermark is here, numbered since 1970.
    pub fn first_minute(&self, watermark: EventTime) -> i64 {
        watermark.millis().div_euclid(self.minute_ms) - self.minutes
    }

    /// The first hour that is kept.
    pub fn first_hour(&self, watermark: EventTime) -> i64 {
        watermark.millis().div_euclid(self.hour_ms) - self.hours
    }
}

/// A bin of the sessions of a host that ended in an hour.
pub type HourItem = ((Host, i64), Item);

/// What an advance of the window changes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WindowChanges {
    pub hours: Vec<(HourItem, Sums)>,
    pub minutes: Vec<((Host, i64), Sums)>,
    pub visits: Vec<((Host, VisitorAddress), i64)>,
    /// Hosts that got or lost a place.
    pub hosts: Vec<((Host, String), i64)>,
    /// Since which hour visitors are counted, if not in the whole window.
    pub visitors_from: Vec<(i64, i64)>,
}

type Map<K, V> = HashMap<K, V, RandomState>;

/// The window of one worker: that of its hosts.
pub struct Window {
    bounds: Bounds,
    watermark: EventTime,
    /// No session that closed before the start ended later than this.
    horizon: EventTime,
    /// Rows that ended at or before this are not counted: what the table had then is unknown.
    since: EventTime,
    /// Whether what the table had at the start is still being read. Until it is, nothing is
    /// emitted.
    incomplete: bool,
    hours: BTreeMap<i64, Map<(Host, Item), Sums>>,
    minutes: BTreeMap<i64, Map<Host, Sums>>,
    visits: BTreeMap<i64, Map<(Host, VisitorAddress), i64>>,
    visits_kept: usize,
    /// Visitors are counted in this hour and later.
    visitors_from: i64,
    /// What was last emitted of it.
    visitors_from_emitted: Option<i64>,
    hosts: Map<Host, Place>,
    /// How many rows of hosts without a place are in the window, by hour and slot.
    slots: BTreeMap<i64, Map<u64, i64>>,
    changed: WindowChanges,
    /// Rows that ended before the window.
    pub too_old: u64,
}

/// A host with a place.
struct Place {
    name: String,
    /// Its rows in the window.
    rows: i64,
}

impl Window {
    /// An empty window. If it is incomplete, nothing is emitted until [`Self::complete`].
    pub fn new(bounds: Bounds, incomplete: bool) -> Self {
        Window {
            bounds,
            watermark: EventTime::NEVER,
            horizon: EventTime::NEVER,
            since: EventTime::NEVER,
            incomplete,
            hours: BTreeMap::new(),
            minutes: BTreeMap::new(),
            visits: BTreeMap::new(),
            visits_kept: 0,
            visitors_from: i64::MIN,
            visitors_from_emitted: None,
            hosts: Map::default(),
            slots: BTreeMap::new(),
            changed: WindowChanges::default(),
            too_old: 0,
        }
    }

    /// Takes in rows and moves the window to a watermark. Returns what that has changed.
    pub fn advance(
        &mut self,
        rows: impl Iterator<Item = Row>,
        watermark: EventTime,
    ) -> WindowChanges {
        self.watermark = self.watermark.max(watermark);
        self.expire();
        self.add(rows);
        self.limit_visitors();
        let changed = std::mem::take(&mut self.changed);
        if self.incomplete { WindowChanges::default() } else { changed }
    }

    /// Declares that everything the table had at the start is in: from now on, changes are emitted.
    pub fn complete(&mut self) {
        self.incomplete = false;
        self.emit_all();
    }

    /// Notes that sessions that end up to `horizon` may have closed before the start.
    pub fn closed_before(&mut self, horizon: EventTime) {
        self.horizon = self.horizon.max(horizon);
    }

    /// Gives up what the table had at the start, because it could not be read. Only rows that
    /// nothing earlier can have changed count from now on: those of sessions that end after all
    /// that have closed so far. Returns since when rows count.
    pub fn begin_empty(&mut self, watermark: TableWatermark) -> EventTime {
        let since = self.horizon.max(self.watermark).max(watermark.latest);
        let empty = Window::new(self.bounds, false);
        let (watermark, too_old) = (self.watermark.max(watermark.complete), self.too_old);
        *self = Window { watermark, since, too_old, ..empty };
        since
    }

    /// Sets how many visitors may be kept.
    pub fn allow_visitors(&mut self, visitors: usize) {
        self.bounds.visitors = visitors;
    }

    /// How many visitors are kept, counted by host and hour.
    pub fn visitors(&self) -> usize {
        self.visits_kept
    }

    /// How many hosts have a place, how many cells of hours and minutes are kept, and how many
    /// visitors, counted by host and hour.
    pub fn sizes(&self) -> [usize; 3] {
        let hours = self.hours.values().map(Map::len).sum::<usize>();
        let minutes = self.minutes.values().map(Map::len).sum::<usize>();
        [self.hosts.len(), hours + minutes, self.visits_kept]
    }

    fn add(&mut self, rows: impl Iterator<Item = Row>) {
        let bounds = self.bounds;
        let (first_hour, first_minute) =
            (bounds.first_hour(self.watermark), bounds.first_minute(self.watermark));
        // Sum first: most rows of a batch share their cells with others.
        let mut hours: Map<(i64, Host, Item), Sums> = Map::default();
        let mut minutes: Map<(i64, Host), Sums> = Map::default();
        let mut visits: Map<(i64, Host, VisitorAddress), i64> = Map::default();
        for row in rows {
            let hour = row.end_ms.div_euclid(bounds.hour_ms);
            if hour < first_hour || row.end_ms <= self.since.millis() {
                // The rows read at the start reach further back than the window, because the
                // anomalies need them: they are not too old.
                self.too_old += u64::from(!self.incomplete);
                continue;
            }
            let host = self.place(&row, hour);
            for (item, sums) in row.items() {
                hours.entry((hour, host, item)).or_default().plus_equals(&sums);
            }
            let minute = row.end_ms.div_euclid(bounds.minute_ms);
            if minute >= first_minute {
                minutes.entry((minute, host)).or_default().plus_equals(&row.sums());
            }
            if bounds.visitors > 0 && hour >= self.visitors_from {
                let (ip, _) = row.key.parts();
                *visits.entry((hour, host, VisitorAddress::at(ip))).or_default() += row.diff;
            }
        }
        let mut all_hours: Map<(i64, Host, Item), Sums> = Map::default();
        for ((hour, _, item), sums) in &hours {
            all_hours.entry((*hour, Host::ALL, *item)).or_default().plus_equals(sums);
        }
        let mut all_minutes: Map<(i64, Host), Sums> = Map::default();
        for ((minute, _), sums) in &minutes {
            all_minutes.entry((*minute, Host::ALL)).or_default().plus_equals(sums);
        }
        let (hours, minutes) =
            (hours.into_iter().chain(all_hours), minutes.into_iter().chain(all_minutes));
        for ((hour, host, item), sums) in hours.filter(|(_, sums)| !sums.is_zero()) {
            plus(self.hours.entry(hour).or_default(), (host, item), &sums);
            self.changed.hours.push((((host, hour), item), sums));
        }
        for ((minute, host), sums) in minutes.filter(|(_, sums)| !sums.is_zero()) {
            plus(self.minutes.entry(minute).or_default(), host, &sums);
            self.changed.minutes.push(((host, minute), sums));
        }
        for ((hour, host, visitor), visits) in visits.into_iter().filter(|(_, visits)| *visits != 0)
        {
            let of_hour = self.visits.entry(hour).or_default();
            let before = of_hour.len();
            plus(of_hour, (host, visitor), &visits);
            self.visits_kept = self.visits_kept + of_hour.len() - before;
            self.changed.visits.push(((host, visitor), visits));
        }
    }

    /// Where a row is counted: its host if it has a place or gets one, or the others.
    fn place(&mut self, row: &Row, hour: i64) -> Host {
        if let Some(place) = self.hosts.get_mut(&row.host) {
            place.rows += row.diff;
            return row.host;
        }
        let slot = row.host.0 % SLOTS;
        let is_among_others = |slots: &Map<u64, i64>| slots.contains_key(&slot);
        if self.hosts.len() < self.bounds.hosts && !self.slots.values().any(is_among_others) {
            let name = row.key.parts().1.to_owned();
            self.changed.hosts.push(((row.host, name.clone()), 1));
            self.hosts.insert(row.host, Place { name, rows: row.diff });
            return row.host;
        }
        let of_hour = self.slots.entry(hour).or_default();
        let rows = of_hour.entry(slot).or_default();
        *rows += row.diff;
        // While rows of the start are missing, a sum of zero does not mean that there are none.
        if *rows == 0 && !self.incomplete {
            of_hour.remove(&slot);
        }
        Host::OTHER
    }

    /// Retracts what the watermark has moved out of the window.
    fn expire(&mut self) {
        let first_minute = self.bounds.first_minute(self.watermark);
        while let Some(minute) = self.minutes.first_entry().filter(|m| *m.key() < first_minute) {
            let (minute, hosts) = minute.remove_entry();
            for (host, mut sums) in hosts {
                sums.negate();
                self.changed.minutes.push(((host, minute), sums));
            }
        }
        let first_hour = self.bounds.first_hour(self.watermark);
        self.slots = self.slots.split_off(&first_hour);
        let mut expired = false;
        while let Some(hour) = self.hours.first_entry().filter(|h| *h.key() < first_hour) {
            let (hour, cells) = hour.remove_entry();
            expired = true;
            for ((host, item), mut sums) in cells {
                if item.bin().0
                    && let Some(place) = self.hosts.get_mut(&host)
                {
                    place.rows -= sums.sessions;
                }
                sums.negate();
                self.changed.hours.push((((host, hour), item), sums));
            }
        }
        let kept = self.visits.split_off(&first_hour);
        for visits in std::mem::replace(&mut self.visits, kept).into_values() {
            self.forget_visits(visits);
        }
        if expired && !self.incomplete {
            let changed = &mut self.changed;
            self.hosts.retain(|host, place| {
                if place.rows == 0 {
                    let name = std::mem::take(&mut place.name);
                    changed.hosts.push(((*host, name), -1));
                    return false;
                }
                true
            });
        }
    }

    fn forget_visits(&mut self, visits: Map<(Host, VisitorAddress), i64>) {
        self.visits_kept -= visits.len();
        self.changed.visits.extend(visits.into_iter().map(|(visitor, visits)| (visitor, -visits)));
    }

    /// If there are too many visitors, none are counted until the next hour. From then on the count
    /// is exact again, of the rows from that hour on.
    fn limit_visitors(&mut self) {
        if self.visits_kept > self.bounds.visitors {
            let last = self.visits.last_key_value().map_or(i64::MIN, |(hour, _)| *hour);
            self.visitors_from = last + 1;
            for (_, visits) in std::mem::take(&mut self.visits) {
                self.forget_visits(visits);
            }
        }
        let first_hour = self.bounds.first_hour(self.watermark);
        let from = (self.visitors_from > first_hour).then_some(self.visitors_from);
        if from != self.visitors_from_emitted && !self.incomplete {
            let change = |from: Option<i64>, diff| from.map(|from| (from, diff));
            self.changed.visitors_from.extend(change(self.visitors_from_emitted, -1));
            self.changed.visitors_from.extend(change(from, 1));
            self.visitors_from_emitted = from;
        }
    }

    /// Emits everything that is in the window.
    fn emit_all(&mut self) {
        self.slots.values_mut().for_each(|slots| slots.retain(|_, rows| *rows != 0));
        let hours = self.hours.iter().flat_map(|(hour, cells)| {
            cells.iter().map(|((host, item), sums)| (((*host, *hour), *item), *sums))
        });
        let minutes = self
            .minutes
            .iter()
            .flat_map(|(minute, hosts)| hosts.iter().map(|(host, sums)| ((*host, *minute), *sums)));
        let visits = self.visits.values().flatten();
        self.changed = WindowChanges {
            hours: hours.collect(),
            minutes: minutes.collect(),
            visits: visits.map(|(visitor, visits)| (*visitor, *visits)).collect(),
            hosts: self.hosts.iter().map(|(host, p)| ((*host, p.name.clone()), 1)).collect(),
            visitors_from: Vec::new(),
        };
    }
}

/// Adds to an entry, and removes it if the sum is zero.
fn plus<K: Hash + Eq, S: Semigroup + Clone>(map: &mut Map<K, S>, key: K, more: &S) {
    match map.entry(key) {
        Entry::Vacant(entry) if !more.is_zero() => {
            entry.insert(more.clone());
        }
        Entry::Vacant(_) => {}
        Entry::Occupied(mut entry) => {
            entry.get_mut().plus_equals(more);
            if entry.get().is_zero() {
                entry.remove();
            }
        }
    }
}
