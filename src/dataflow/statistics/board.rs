//! The part of the statistics that is shown: the hosts with the most sessions, all hosts together,
//! and the busiest visitors. It is made once a tick, and only read after that.

use std::collections::{BTreeMap, HashSet};

use sessionizer_core::time::{Epoch, EventTime};

use crate::dataflow::statistics::collections::BUSY;
use crate::dataflow::statistics::publish::Published;
use crate::dataflow::statistics::sums::{Host, Summary, Sums};
use crate::dataflow::statistics::window::Bounds;

/// How many hosts are shown individually.
pub const HOSTS_SHOWN: usize = 20;
/// How many of the busiest visitors are shown.
const BUSY_SHOWN: usize = 10;

/// What is shown. Times are in milliseconds since 1970.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Board {
    /// Everything that was committed up to and including this epoch is included.
    pub epoch: Epoch,
    pub watermark: Option<EventTime>,
    /// Whether the rows that the table had at the start are included, or were given up.
    pub complete: bool,
    /// The beginning of the window.
    pub from_ms: Option<i64>,
    /// Only sessions that ended after this count; `None` if the whole window counts.
    pub rows_from: Option<EventTime>,
    /// Visitors are counted since this hour; `None` if in the whole window.
    pub visitors_from_ms: Option<i64>,
    pub counts_visitors: bool,
    /// Visitors with fewer sessions are not among the busiest.
    pub busy_from: i64,
    /// How many hosts are counted individually.
    pub hosts_known: usize,
    pub all: Line,
    pub hosts: Vec<(String, Line)>,
    /// The hosts that are not shown individually: how many of them are counted individually, and
    /// the sums of all of them.
    pub other: (usize, Sums),
    /// Of all hosts together.
    pub hours: Vec<(i64, Summary)>,
    pub minutes: Vec<(i64, Sums)>,
    pub busy: Vec<Busy>,
    /// Entries that can exist only because more was removed than was added.
    pub broken: u64,
}

/// What is shown of a host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Line {
    /// In the window.
    pub day: Summary,
    /// In the last complete hour, and in the last complete minute.
    pub hour: Summary,
    pub minute: Sums,
    pub visitors: i64,
}

/// A visitor with many sessions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Busy {
    /// `None` for a host that is not counted individually.
    pub host: Option<String>,
    /// `None` if only the hash of the address is known.
    pub address: Option<String>,
    pub sessions: i64,
}

impl Board {
    /// Selects what is shown.
    pub fn of(published: &Published, bounds: Bounds) -> Self {
        let watermark = published.watermark.filter(|watermark| *watermark > EventTime::NEVER);
        let hour = watermark.map(|at| at.millis().div_euclid(bounds.hour_ms) - 1);
        let minute = watermark.map(|at| at.millis().div_euclid(bounds.minute_ms) - 1);
        let line = |host: Host| {
            let of = |times: Option<&BTreeMap<i64, Summary>>| Some(*times?.get(&hour?)?);
            let of_minute = |times: Option<&BTreeMap<i64, Sums>>| Some(*times?.get(&minute?)?);
            Line {
                day: published.days.get(&host).copied().unwrap_or_default(),
                hour: of(published.hours.get(&host)).unwrap_or_default(),
                minute: of_minute(published.minutes.get(&host)).unwrap_or_default(),
                visitors: published.visitors.get(&host).copied().unwrap_or(0),
            }
        };
        let mut all = line(Host::ALL);
        all.visitors = published.visitors.values().sum();
        let (hosts, other) = shown_hosts(published);
        let name = |host: &Host| published.hosts.get(host).cloned();
        let named = |host: Host| Some((name(&host)?, line(host)));
        let mut busy: Vec<_> = published.busy.iter().collect();
        busy.sort_by_key(|(host, visitor, sessions)| (-sessions, *host, *visitor));
        let busy = busy.into_iter().take(BUSY_SHOWN).map(|(host, visitor, sessions)| Busy {
            host: name(host),
            address: visitor.address(),
            sessions: *sessions,
        });
        let start = |time: i64, length: i64| time.saturating_mul(length);
        let hours = published.hours.get(&Host::ALL).into_iter().flatten();
        let minutes = published.minutes.get(&Host::ALL).into_iter().flatten();
        Board {
            epoch: published.epoch,
            watermark,
            complete: published.is_complete(),
            from_ms: watermark.map(|at| start(bounds.first_hour(at), bounds.hour_ms)),
            rows_from: published.rows_from(),
            visitors_from_ms: published.visitors_from().map(|hour| start(hour, bounds.hour_ms)),
            counts_visitors: bounds.visitors > 0,
            busy_from: BUSY,
            hosts_known: published.hosts.len(),
            all,
            hosts: hosts.into_iter().filter_map(named).collect(),
            other,
            hours: hours.map(|(hour, of)| (start(*hour, bounds.hour_ms), *of)).collect(),
            minutes: minutes.map(|(minute, of)| (start(*minute, bounds.minute_ms), *of)).collect(),
            busy: busy.collect(),
            broken: published.broken,
        }
    }
}

/// The hosts with the most sessions in the window, and how many others there are, with their sums.
fn shown_hosts(published: &Published) -> (Vec<Host>, (usize, Sums)) {
    let mut hosts: Vec<(Host, i64)> = published
        .days
        .iter()
        .filter(|(host, _)| published.hosts.contains_key(host))
        .map(|(host, summary)| (*host, summary.sums.sessions))
        .collect();
    let order = |a: &(Host, i64), b: &(Host, i64)| {
        let name = |host: Host| published.hosts.get(&host);
        b.1.cmp(&a.1).then_with(|| name(a.0).cmp(&name(b.0)))
    };
    if hosts.len() > HOSTS_SHOWN {
        hosts.select_nth_unstable_by(HOSTS_SHOWN, order);
        hosts.truncate(HOSTS_SHOWN);
    }
    hosts.sort_unstable_by(order);
    let shown: HashSet<Host> = hosts.iter().map(|(host, _)| *host).collect();
    let of_all = published.days.get(&Host::ALL).copied().unwrap_or_default().sums;
    let mut other = of_all;
    for summary in shown.iter().filter_map(|host| published.days.get(host)) {
        other.sessions -= summary.sums.sessions;
        other.events -= summary.sums.events;
        other.duration_ms -= summary.sums.duration_ms;
    }
    let rest = published.hosts.len().saturating_sub(shown.len());
    (hosts.into_iter().map(|(host, _)| host).collect(), (rest, other))
}
