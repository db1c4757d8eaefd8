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

use std::collections::hash_map::{Entry, RandomState};
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::OnceLock;

use differential_dataflow::difference::{Abelian, IsZero, Semigroup};
use sessionizer_core::time::EventTime;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::dataflow::statistics::sums::{Host, Item, Row, Sums, Visitor};

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
pub struct Changed {
    pub hours: Vec<(HourItem, Sums)>,
    pub minutes: Vec<((Host, i64), Sums)>,
    pub visits: Vec<((Host, Visitor), i64)>,
    /// Hosts that got or lost a place.
    pub hosts: Vec<((Host, String), i64)>,
    /// Since which hour visitors are counted, if not in the whole window.
    pub visitors_from: Vec<(i64, i64)>,
}

type Map<K, V> = HashMap<K, V, Mixing>;

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
    visits: BTreeMap<i64, Map<(Host, Visitor), i64>>,
    visits_kept: usize,
    /// Visitors are counted in this hour and later.
    visitors_from: i64,
    /// What was last emitted of it.
    visitors_said: Option<i64>,
    hosts: Map<Host, Place>,
    /// How many rows of hosts without a place are in the window, by hour and slot.
    slots: BTreeMap<i64, Map<u64, i64>>,
    changed: Changed,
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
            visitors_said: None,
            hosts: Map::default(),
            slots: BTreeMap::new(),
            changed: Changed::default(),
            too_old: 0,
        }
    }

    /// Takes in rows and moves the window to a watermark. Returns what that has changed.
    pub fn advance(&mut self, rows: impl Iterator<Item = Row>, watermark: EventTime) -> Changed {
        self.watermark = self.watermark.max(watermark);
        self.expire();
        self.add(rows);
        self.limit_visitors();
        let changed = std::mem::take(&mut self.changed);
        if self.incomplete { Changed::default() } else { changed }
    }

    /// Declares that everything the table had at the start is in: from now on, changes are emitted.
    pub fn complete(&mut self) {
        self.incomplete = false;
        self.say_all();
    }

    /// Notes that sessions that end up to `horizon` may have closed before the start.
    pub fn closed_before(&mut self, horizon: EventTime) {
        self.horizon = self.horizon.max(horizon);
    }

    /// Gives up what the table had at the start, because it could not be read. Only rows that
    /// nothing earlier can have changed count from now on: those of sessions that end after all
    /// that have closed so far. Returns since when rows count.
    pub fn begin_empty(&mut self, watermark: EventTime) -> EventTime {
        let since = self.horizon.max(self.watermark).max(watermark);
        let empty = Window::new(self.bounds, false);
        let (watermark, too_old) = (self.watermark.max(watermark), self.too_old);
        *self = Window { watermark, since, too_old, ..empty };
        since
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
        let mut visits: Map<(i64, Host, Visitor), i64> = Map::default();
        for row in rows {
            let hour = row.end_ms.div_euclid(bounds.hour_ms);
            if hour < first_hour || row.end_ms <= self.since.millis() {
                self.too_old += 1;
                continue;
            }
            let host = self.place(&row, hour);
            for (item, sums) in row.items() {
                hours.entry((hour, host, item)).or_default().plus_equals(&sums);
                hours.entry((hour, Host::ALL, item)).or_default().plus_equals(&sums);
            }
            let minute = row.end_ms.div_euclid(bounds.minute_ms);
            if minute >= first_minute {
                minutes.entry((minute, host)).or_default().plus_equals(&row.sums());
                minutes.entry((minute, Host::ALL)).or_default().plus_equals(&row.sums());
            }
            if bounds.visitors > 0 && hour >= self.visitors_from {
                let (ip, _) = row.key.parts();
                *visits.entry((hour, host, Visitor::at(ip))).or_default() += row.diff;
            }
        }
        for ((hour, host, item), sums) in hours.into_iter().filter(|(_, sums)| !sums.is_zero()) {
            plus(self.hours.entry(hour).or_default(), (host, item), &sums);
            self.changed.hours.push((((host, hour), item), sums));
        }
        for ((minute, host), sums) in minutes.into_iter().filter(|(_, sums)| !sums.is_zero()) {
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

    fn forget_visits(&mut self, visits: Map<(Host, Visitor), i64>) {
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
        let say = (self.visitors_from > first_hour).then_some(self.visitors_from);
        if say != self.visitors_said && !self.incomplete {
            let say_of = |from: Option<i64>, diff| from.map(|from| (from, diff));
            self.changed.visitors_from.extend(say_of(self.visitors_said, -1));
            self.changed.visitors_from.extend(say_of(say, 1));
            self.visitors_said = say;
        }
    }

    /// Emits everything that is in the window.
    fn say_all(&mut self) {
        self.slots.values_mut().for_each(|slots| slots.retain(|_, rows| *rows != 0));
        let hours = self.hours.iter().flat_map(|(hour, cells)| {
            cells.iter().map(|((host, item), sums)| (((*host, *hour), *item), *sums))
        });
        let minutes = self
            .minutes
            .iter()
            .flat_map(|(minute, hosts)| hosts.iter().map(|(host, sums)| ((*host, *minute), *sums)));
        let visits = self.visits.values().flatten();
        self.changed = Changed {
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

/// Hashes the keys of a window, with a seed that nobody outside can know.
#[derive(Clone)]
struct Mixing(u64);

impl Default for Mixing {
    fn default() -> Self {
        static SEED: OnceLock<u64> = OnceLock::new();
        Mixing(*SEED.get_or_init(|| RandomState::new().build_hasher().finish()))
    }
}

impl BuildHasher for Mixing {
    type Hasher = Mixed;

    fn build_hasher(&self) -> Mixed {
        Mixed { seed: self.0, mixed: self.0 }
    }
}

/// Mixes the parts of a key. It is faster than the standard library's hasher, which matters in a
/// backlog.
struct Mixed {
    seed: u64,
    mixed: u64,
}

impl Mixed {
    fn mix(&mut self, part: u64) {
        self.mixed = (self.mixed.rotate_left(5) ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.mixed ^ (self.mixed >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        self.mix(xxh3_64_with_seed(bytes, self.seed));
    }

    fn write_u16(&mut self, part: u16) {
        self.mix(u64::from(part));
    }

    fn write_u64(&mut self, part: u64) {
        self.mix(part);
    }

    fn write_i64(&mut self, part: i64) {
        self.mix(part as u64);
    }

    fn write_usize(&mut self, part: usize) {
        self.mix(part as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sessionizer_core::key::Key;
    use sessionizer_core::session::Span;

    const BOUNDS: Bounds =
        Bounds { minute_ms: 10, minutes: 2, hour_ms: 100, hours: 3, hosts: 2, visitors: 3 };

    fn at(ms: i64) -> EventTime {
        EventTime::from_millis(ms)
    }

    /// A row of two events that ended at `end_ms`.
    fn row(ip: &str, host: &str, end_ms: i64, diff: i64) -> Row {
        let span = Span { first: at(end_ms - 5), last: at(end_ms), count: 2 };
        Row { key: Key::new(ip, host), host: Host::named(host), span, end_ms, diff }
    }

    /// Advances the window, and adds what it emits to what it emitted before.
    fn advance(window: &mut Window, said: &mut BTreeMap<String, i64>, rows: &[Row], to: i64) {
        let changed = window.advance(rows.iter().cloned(), at(to));
        let mut say = |what: String, n: i64| {
            let sum = said.entry(what.clone()).or_default();
            *sum += n;
            if *sum == 0 {
                said.remove(&what);
            }
        };
        let name = |host: Host| match host {
            Host::ALL => "all",
            Host::OTHER => "other",
            host if host == Host::named("a") => "a",
            host if host == Host::named("b") => "b",
            _ => "c",
        };
        for (((host, hour), item), sums) in changed.hours {
            if item.bin().0 {
                say(format!("{} in hour {hour}", name(host)), sums.sessions);
            }
        }
        for ((host, minute), sums) in changed.minutes {
            say(format!("{} in minute {minute}", name(host)), sums.sessions);
        }
        for ((host, visitor), n) in changed.visits {
            let address = visitor.address().expect("it is short");
            say(format!("{address} on {}", name(host)), n);
        }
        for ((_, name), n) in changed.hosts {
            say(format!("{name} is told apart"), n);
        }
        for (from, n) in changed.visitors_from {
            say(format!("visitors from {from}"), n);
        }
    }

    fn said(lines: &[(&str, i64)]) -> BTreeMap<String, i64> {
        lines.iter().map(|(line, n)| ((*line).to_owned(), *n)).collect()
    }

    #[test]
    fn what_has_left_the_window_is_taken_back_and_what_is_older_never_enters() {
        let (mut window, mut all) = (Window::new(BOUNDS, false), BTreeMap::new());
        let rows = [row("x", "a", 1_005, 1), row("y", "a", 1_025, 1), row("x", "a", 699, 1)];
        advance(&mut window, &mut all, &rows, 1_030);
        let hour = [("a in hour 10", 2), ("all in hour 10", 2), ("a is told apart", 1)];
        let visits = [("x on a", 1), ("y on a", 1)];
        let minute = [("a in minute 102", 1), ("all in minute 102", 1)];
        assert_eq!(all, said(&[&hour[..], &visits, &minute].concat()));
        assert_eq!(window.too_old, 1);
        // A correction after its minutes have left the window.
        advance(&mut window, &mut all, &[row("y", "a", 1_025, -1)], 1_300);
        let hour = [("a in hour 10", 1), ("all in hour 10", 1), ("a is told apart", 1)];
        assert_eq!(all, said(&[&hour[..], &[("x on a", 1)]].concat()));
        advance(&mut window, &mut all, &[row("x", "a", 1_005, -1)], 1_400);
        assert_eq!((all, window.too_old), (said(&[]), 2));
        assert_eq!(window.sizes(), [0, 0, 0]);
    }

    #[test]
    fn a_row_is_taken_from_where_it_was_added() {
        let (mut window, mut all) = (Window::new(BOUNDS, false), BTreeMap::new());
        let rows = [row("x", "a", 1_005, 1), row("x", "b", 1_005, 1), row("x", "c", 1_105, 1)];
        advance(&mut window, &mut all, &rows, 1_000);
        assert_eq!(all["other in hour 11"], 1);
        // There is room again, but one of its rows is among the others.
        advance(&mut window, &mut all, &[row("x", "c", 1_205, 1)], 1_400);
        assert_eq!(window.sizes()[0], 0);
        assert_eq!((all["other in hour 11"], all["other in hour 12"]), (1, 1));
        let gone = [row("x", "c", 1_105, -1), row("x", "c", 1_205, -1), row("x", "c", 1_405, 1)];
        advance(&mut window, &mut all, &gone, 1_400);
        let c = [("c in hour 14", 1), ("all in hour 14", 1), ("c is told apart", 1)];
        let minute = [("c in minute 140", 1), ("all in minute 140", 1), ("x on c", 1)];
        assert_eq!(all, said(&[&c[..], &minute].concat()));
    }

    #[test]
    fn beyond_their_limit_visitors_count_again_from_the_next_hour_on() {
        let (mut window, mut all) = (Window::new(BOUNDS, false), BTreeMap::new());
        let visitors = ["w", "x", "y", "z"].map(|ip| row(ip, "a", 1_005, 1));
        advance(&mut window, &mut all, &visitors, 1_010);
        assert_eq!((window.sizes()[2], all["visitors from 11"]), (0, 1));
        assert!(!all.contains_key("w on a"), "{all:?}");
        let rows = [row("w", "a", 1_105, 1), row("w", "a", 1_005, -1)];
        advance(&mut window, &mut all, &rows, 1_110);
        assert_eq!((all["w on a"], all["a in hour 10"]), (1, 3));
        // The hours in which they were not counted have left the window.
        advance(&mut window, &mut all, &[], 1_400);
        assert!(!all.contains_key("visitors from 11"), "{all:?}");
    }

    #[test]
    fn nothing_is_said_until_the_past_is_in_or_given_up() {
        let (mut window, mut all) = (Window::new(BOUNDS, true), BTreeMap::new());
        window.closed_before(at(1_050));
        // A correction of a row that has not been read yet.
        advance(&mut window, &mut all, &[row("x", "a", 1_005, -1)], 1_010);
        assert_eq!(all, said(&[]));
        advance(&mut window, &mut all, &[row("x", "a", 1_005, 1), row("x", "a", 905, 1)], 1_020);
        window.complete();
        advance(&mut window, &mut all, &[], 1_020);
        assert_eq!((all["a in hour 9"], all.get("a in hour 10")), (1, None));

        let (mut window, mut all) = (Window::new(BOUNDS, true), BTreeMap::new());
        window.closed_before(at(1_050));
        advance(&mut window, &mut all, &[row("x", "a", 1_005, -1)], 1_010);
        assert_eq!(window.begin_empty(at(1_020)), at(1_050));
        let rows = [row("x", "a", 1_045, -1), row("x", "a", 1_055, 1)];
        advance(&mut window, &mut all, &rows, 1_060);
        assert_eq!((all["a in hour 10"], all["x on a"]), (1, 1));
    }
}
