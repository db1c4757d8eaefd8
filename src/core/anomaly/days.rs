//! The sessions of a host by day, visitor and network, in which repeat visitors and networks are
//! found.
//!
//! A visitor of day `d` is compared with the visitors of the day before, and with its own sessions
//! then if that day could be judged itself, which depends on the sessions of day `d − 2`. Two days
//! are *live*: that of the watermark and the one before. So the visitors of three days are kept, and
//! the number of sessions of a fourth. The output is what the caller joins: the visitors and
//! networks with enough sessions to stand out, and the limits of their days.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::history::{
    Day, Hour, NetworkSums, VisitorSums, day_is_known, judge_network, judge_visitor,
};
use super::network::{Network, Visitor};
use super::state::DetectorChanges;
use super::visits::{NetworkVisits, Visits};
use super::{Anomaly, Limit, Thresholds};
use crate::statistics::{Bin, Histogram};

/// For how many days anomalies are live, that of the watermark included.
pub const LIVE_DAYS: i64 = 2;
/// The visitors of how many days are kept: of the live ones, and of the one that the first of them
/// is compared with.
pub const VISITOR_DAYS: i64 = LIVE_DAYS + 1;
/// How many days are kept: those, and the number of sessions on the one before.
pub const KEPT_DAYS: i64 = VISITOR_DAYS + 1;

/// A host and a day: the key of the join.
pub type HostDay = (String, Day);

/// A visitor or a network that may stand out.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Frequent {
    Visitor(String, VisitorSums),
    Network(String, NetworkSums),
}

/// What the visitors and networks of a day are compared with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct DayLimits {
    pub visitor: Option<Limit>,
    pub network: Option<Limit>,
    /// Whether the day before could be judged, too.
    pub judged_before: bool,
}

impl DayLimits {
    /// The anomaly of a visitor or a network of that day, if it is one.
    pub fn judge(
        &self,
        (host, day): &HostDay,
        frequent: &Frequent,
        thresholds: &Thresholds,
    ) -> Option<Anomaly> {
        match frequent {
            Frequent::Visitor(ip, sums) => {
                let limit = (self.visitor.as_ref()?, self.judged_before);
                judge_visitor(host, ip, *day, *sums, limit, thresholds)
            }
            Frequent::Network(network, sums) => {
                judge_network(host, network, *day, *sums, self.network.as_ref()?, thresholds)
            }
        }
    }
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Subject {
    Visitor(Visitor),
    Network(Network),
}

/// The days of a host.
#[derive(Clone, Debug, Default)]
pub struct Days {
    days: BTreeMap<Day, DayCounts>,
    /// Visitors and networks that may have to be emitted.
    touched: BTreeSet<(Day, Subject)>,
    /// Visitors and networks that have been emitted and not retracted.
    frequent: BTreeMap<Day, BTreeMap<Subject, Frequent>>,
    limits: BTreeMap<Day, DayLimits>,
}

/// The sessions of a host that ended on a day. Counts may be negative while the rows of the start
/// are being read.
#[derive(Clone, Debug, Default)]
struct DayCounts {
    by_hour: [i64; 24],
    visits: Visits,
    /// How many visitors there are, by sessions.
    visitor_bins: Histogram,
    network_bins: Histogram,
}

impl Days {
    /// Adds `n` sessions of a visitor that ended in an hour, or removes them. Of a day whose visitors
    /// are not kept, there is no visitor. Returns by how much the number of visitors has grown.
    pub fn add(
        &mut self,
        visitor: Option<&Visitor>,
        hour: Hour,
        n: i64,
        thresholds: &Thresholds,
    ) -> isize {
        let day = hour.day();
        let counts = self.days.entry(day).or_default();
        counts.by_hour[hour.0.rem_euclid(24) as usize] += n;
        let Some(visitor) = visitor else { return 0 };
        let network = visitor.network();
        let visitors = counts.visits.visitors();
        let (of_visitor, of_network) = counts.add(visitor, n);
        let grown = counts.visits.visitors() as isize - visitors as isize;
        // The output of the day after says how often its frequent visitors came on this day.
        let after = self.frequent.get(&Day(day.0 + 1)).filter(|after| !after.is_empty());
        let is_after = |subject: &Subject| after.is_some_and(|of| of.contains_key(subject));
        let is_many = |(before, now): (i64, i64), min: u64| before.max(now) > min as i64;
        if is_many(of_visitor, thresholds.repeat.min) || after.is_some() {
            let subject = Subject::Visitor(visitor.clone());
            if is_many(of_visitor, thresholds.repeat.min) || is_after(&subject) {
                self.touched.insert((day, subject));
            }
        }
        if let Some(subject) = network.map(Subject::Network)
            && (is_many(of_network, thresholds.network.min) || is_after(&subject))
        {
            self.touched.insert((day, subject));
        }
        grown
    }

    /// Emits what has changed on the days from `live` on. Days before `known` are incomplete.
    pub fn emit(
        &mut self,
        host: &str,
        (live, known): (Day, Day),
        thresholds: &Thresholds,
        changed: &mut DetectorChanges,
    ) {
        for (day, subject) in std::mem::take(&mut self.touched) {
            for day in [day, Day(day.0 + 1)] {
                if day < live {
                    continue;
                }
                let now = self.frequent_now(day, &subject, thresholds);
                let of_day = self.frequent.entry(day).or_default();
                if of_day.get(&subject) == now.as_ref() {
                    continue;
                }
                let key = || (host.to_owned(), day);
                if let Some(before) = of_day.remove(&subject) {
                    changed.frequent.push((key(), before, -1));
                }
                if let Some(now) = now {
                    changed.frequent.push((key(), now.clone(), 1));
                    of_day.insert(subject.clone(), now);
                }
            }
        }
        self.emit_limits(host, (live, known), thresholds, changed);
    }

    /// Emits everything that is live, as if nothing had been emitted before.
    pub fn emit_all(
        &mut self,
        host: &str,
        (live, known): (Day, Day),
        thresholds: &Thresholds,
        changed: &mut DetectorChanges,
    ) {
        self.frequent.clear();
        self.limits.clear();
        for (day, counts) in self.days.range(live..) {
            let visitors = counts.visits.visitors_above(thresholds.repeat.min as i64);
            let networks = counts.visits.networks_above(thresholds.network.min as i64);
            self.touched.extend(visitors.map(|one| (*day, Subject::Visitor(one))));
            self.touched.extend(networks.map(|one| (*day, Subject::Network(one))));
        }
        self.emit(host, (live, known), thresholds, changed);
    }

    /// Forgets what is no longer live when the watermark is on this day, and retracts what was emitted
    /// of it. Returns by how much the number of visitors has grown.
    pub fn forget(&mut self, host: &str, today: Day, changed: &mut DetectorChanges) -> isize {
        let before = self.visitors();
        self.days = self.days.split_off(&Day(today.0 - KEPT_DAYS + 1));
        for (_, counts) in self.days.range_mut(..Day(today.0 - VISITOR_DAYS + 1)) {
            *counts = DayCounts { by_hour: counts.by_hour, ..DayCounts::default() };
        }
        self.retract_before(host, Day(today.0 - LIVE_DAYS + 1), changed);
        self.visitors() as isize - before as isize
    }

    /// Forgets everything, and retracts what was emitted.
    pub fn clear(&mut self, host: &str, changed: &mut DetectorChanges) {
        self.days.clear();
        self.touched.clear();
        self.retract_before(host, Day(i64::MAX), changed);
    }

    pub fn is_empty(&self) -> bool {
        self.days.is_empty()
    }

    /// The last day that has sessions.
    pub fn last(&self) -> Option<Day> {
        self.days.last_key_value().map(|(day, _)| *day)
    }

    fn visitors(&self) -> usize {
        self.days.values().map(|counts| counts.visits.visitors()).sum()
    }

    fn retract_before(&mut self, host: &str, first: Day, changed: &mut DetectorChanges) {
        let frequent = self.frequent.split_off(&first);
        for (day, all) in std::mem::replace(&mut self.frequent, frequent) {
            let gone = all.into_values().map(|one| ((host.to_owned(), day), one, -1));
            changed.frequent.extend(gone);
        }
        let limits = self.limits.split_off(&first);
        for (day, limits) in std::mem::replace(&mut self.limits, limits) {
            changed.day_limits.push(((host.to_owned(), day), limits, -1));
        }
    }

    /// A visitor or a network as of now, if it has enough sessions to stand out.
    fn frequent_now(
        &self,
        day: Day,
        subject: &Subject,
        thresholds: &Thresholds,
    ) -> Option<Frequent> {
        let counts = self.days.get(&day)?;
        let day_before = self.days.get(&Day(day.0 - 1));
        let positive = |n: i64| u64::try_from(n).unwrap_or(0);
        match subject {
            Subject::Visitor(visitor) => {
                let of = |counts: &DayCounts| counts.visits.of_visitor(visitor);
                let (sessions, before) = (of(counts), day_before.map_or(0, of));
                let sums = VisitorSums { sessions: positive(sessions), before: positive(before) };
                (sums.sessions > thresholds.repeat.min)
                    .then(|| Frequent::Visitor(visitor.to_string(), sums))
            }
            Subject::Network(network) => {
                let NetworkVisits { sessions, addresses } = counts.visits.of_network(*network);
                let before = day_before.map_or(0, |day| day.visits.of_network(*network).sessions);
                let [addresses, sessions, before] = [addresses, sessions, before].map(positive);
                if sessions <= thresholds.network.min || addresses < thresholds.network_addresses {
                    return None;
                }
                let most = positive(counts.visits.most_of(*network));
                let sums = NetworkSums { addresses, sessions, most, before };
                Some(Frequent::Network(network.to_string(), sums))
            }
        }
    }

    fn emit_limits(
        &mut self,
        host: &str,
        (live, known): (Day, Day),
        thresholds: &Thresholds,
        changed: &mut DetectorChanges,
    ) {
        for (day, frequent) in self.frequent.range(live..) {
            let day_before = Day(day.0 - 1);
            let is_needed = !frequent.is_empty() && day_before >= known;
            let limits = is_needed
                .then(|| self.days.get(&day_before))
                .flatten()
                .and_then(|counts| counts.limits(thresholds))
                .map(|limits| {
                    let two_before = Day(day.0 - 2);
                    let is_known = |counts: &DayCounts| counts.is_known(thresholds);
                    let counts = self.days.get(&two_before).filter(|_| two_before >= known);
                    DayLimits { judged_before: counts.is_some_and(is_known), ..limits }
                });
            let emitted = self.limits.get(day).copied();
            if emitted == limits {
                continue;
            }
            let key = || (host.to_owned(), *day);
            changed.day_limits.extend(emitted.map(|emitted| (key(), emitted, -1)));
            changed.day_limits.extend(limits.map(|limits| (key(), limits, 1)));
            match limits {
                Some(limits) => self.limits.insert(*day, limits),
                None => self.limits.remove(day),
            };
        }
    }
}

impl DayCounts {
    /// Adds sessions of a visitor. Returns how many it had before, and how many it has now; and the
    /// same of its network, with zeros if it has none.
    fn add(&mut self, visitor: &Visitor, n: i64) -> ((i64, i64), (i64, i64)) {
        let (now, of_network) = self.visits.add(visitor, n);
        let before = now - n;
        move_bin(&mut self.visitor_bins, before, now);
        let of_network = of_network.map_or((0, 0), |sessions| (sessions - n, sessions));
        move_bin(&mut self.network_bins, of_network.0, of_network.1);
        ((before, now), of_network)
    }

    /// Whether the day after this one can be judged.
    fn is_known(&self, thresholds: &Thresholds) -> bool {
        let by_hour = self.by_hour.iter().copied().enumerate();
        day_is_known(by_hour.map(|(hour, n)| (hour as i64, n)), thresholds)
    }

    /// The limits of the day after this one.
    fn limits(&self, thresholds: &Thresholds) -> Option<DayLimits> {
        if !self.is_known(thresholds) {
            return None;
        }
        let visitor = thresholds.repeat.limit(&self.visitor_bins);
        let network = thresholds.network.limit(&self.network_bins);
        Some(DayLimits { visitor, network, judged_before: false })
    }
}

/// Moves a value to the bin of its new size. Only positive sizes have one.
fn move_bin(bins: &mut Histogram, before: i64, now: i64) {
    let bin = |n: i64| u64::try_from(n).ok().filter(|n| *n > 0).map(Bin::of);
    let (before, now) = (bin(before), bin(now));
    if before != now {
        before.into_iter().for_each(|bin| bins.add(bin, -1));
        now.into_iter().for_each(|bin| bins.add(bin, 1));
    }
}
