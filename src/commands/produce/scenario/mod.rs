//! Days of ordinary traffic with incidents in them, and the ground truth about these.
//!
//! ```text
//!   clean.rs             incident.rs            here: Plan        stream.rs
//!   days with a daily -> what happens to    ->  visits, sorted -> events in their order
//!   curve, long tails    them, and its truth                  `-> sessions, for an evaluation
//! ```
//!
//! A plan is a list of visits, from which both the events and the sessions follow. The same request
//! gives the same plan, for ever and on every machine. This module knows neither Kafka nor the
//! clock.

mod clean;
mod incident;
mod stream;

use std::net::{Ipv4Addr, Ipv6Addr};

use sessionizer_core::session::{Span, merge_touching};
use sessionizer_core::time::{EventTime, Gap};

use crate::commands::produce::generate::random::mix;

pub use clean::Tail;
pub use incident::{Incident, Scenario};
pub use stream::{PlannedEvent, events};

pub const MINUTE_MS: i64 = 60_000;
pub const HOUR_MS: i64 = 60 * MINUTE_MS;
pub const DAY_MS: i64 = 24 * HOUR_MS;
/// No pause within a visit is longer, so that a gap of five minutes never splits one.
const MAX_PAUSE_MS: i64 = 200_000;

/// What to plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The first day, in milliseconds since 1970.
    pub start_ms: i64,
    pub days: u64,
    pub hosts: Vec<String>,
    /// Visits to each host on a day, on average.
    pub visits: u64,
    pub tail: Tail,
    /// What happens; if empty, the traffic is clean.
    pub scenarios: Vec<Scenario>,
    /// How often each scenario happens to each host, from the second day on: detectors learn from
    /// the first.
    pub incidents: u64,
    pub seed: u64,
    /// The topic, and how many partitions it has.
    pub topic: String,
    pub partitions: u32,
}

/// A visit: `events` from `first_ms` on, evenly over `span_ms`, apart from a jitter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Visit {
    pub first_ms: i64,
    pub span_ms: i64,
    pub events: u64,
    pub host: u16,
    pub visitor: VisitorAddress,
}

/// A visitor: an address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VisitorAddress(pub u64);

impl VisitorAddress {
    /// The address: IPv4 if the number has 32 bits, IPv6 otherwise.
    pub fn address(self) -> String {
        match u32::try_from(self.0) {
            Ok(bits) => Ipv4Addr::from(bits).to_string(),
            Err(_) => {
                let [a, b, c, d] = [48, 32, 16, 0].map(|shift| (self.0 >> shift) as u16);
                Ipv6Addr::new(0x2001, 0xdb8, a, b, 0, c, 0, d).to_string()
            }
        }
    }
}

/// What happens in the requested days.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub hosts: Vec<String>,
    /// In the order of their first events.
    pub visits: Vec<Visit>,
    pub incidents: Vec<Incident>,
    pub partitions: u32,
    skews: Vec<Skew>,
}

/// The clock of those who write to a partition is ahead for a while.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Skew {
    partition: u32,
    from_ms: i64,
    to_ms: i64,
    ahead_ms: i64,
}

impl Plan {
    /// Plans what was requested.
    pub fn new(request: &Request) -> Plan {
        let mut visits = Vec::new();
        let mut incidents = Vec::new();
        for (host, name) in request.hosts.iter().enumerate() {
            let from = visits.len();
            clean::visits(request, host as u16, &mut visits);
            // Outages first: they remove visits, and must not remove those of other incidents.
            let of_hosts = request.scenarios.iter().filter(|one| **one != Scenario::Skew);
            let (outages, others): (Vec<Scenario>, Vec<Scenario>) =
                of_hosts.partition(|scenario| **scenario == Scenario::Outage);
            for scenario in outages.into_iter().chain(others) {
                for number in 0..request.incidents {
                    let mut mine = visits.split_off(from);
                    let site = incident::IncidentSite { request, host: host as u16, name, number };
                    incidents.push(scenario.happen(&site, &mut mine));
                    visits.append(&mut mine);
                }
            }
        }
        let mut skews = Vec::new();
        if request.scenarios.contains(&Scenario::Skew) {
            for number in 0..request.incidents {
                let (skew, incident) = incident::skew(request, number);
                skews.push(skew);
                incidents.push(incident);
            }
        }
        visits.sort_unstable();
        incidents.sort_by_key(|incident| incident.from_ms);
        let (hosts, partitions) = (request.hosts.clone(), request.partitions);
        Plan { hosts, visits, incidents, partitions, skews }
    }

    /// The partition to which the events of a visitor are written if that matters.
    pub fn partition(&self, visitor: VisitorAddress) -> u32 {
        (mix(visitor.0) % u64::from(self.partitions)) as u32
    }

    /// Whether the events have to be written to the partitions of the plan.
    pub fn is_skewed(&self) -> bool {
        !self.skews.is_empty()
    }

    /// The time that an event says it has: that of the clock of those who write to its partition.
    pub fn event_time_ms(&self, event: &PlannedEvent) -> i64 {
        let partition = self.partition(event.visit.visitor);
        let now = |skew: &&Skew| {
            skew.partition == partition && (skew.from_ms..skew.to_ms).contains(&event.at_ms)
        };
        let ahead_ms = self.skews.iter().filter(now).map(|skew| skew.ahead_ms).max();
        event.at_ms + ahead_ms.unwrap_or(0)
    }

    /// The sessions of the plan, by clocks that are right: for each host and visitor, visits that
    /// touch are merged.
    pub fn sessions(&self, gap: Gap) -> Vec<PlannedSession> {
        let mut visits = self.visits.clone();
        visits.sort_unstable_by_key(|visit| (visit.host, visit.visitor, visit.first_ms));
        let same = |a: &Visit, b: &Visit| (a.host, a.visitor) == (b.host, b.visitor);
        let mut sessions = Vec::with_capacity(visits.len());
        for visits in visits.chunk_by(same) {
            let Visit { host, visitor, .. } = visits[0];
            let spans = visits.iter().map(Visit::span).collect();
            let joined = merge_touching(spans, gap).into_iter();
            sessions.extend(joined.map(|span| PlannedSession {
                host,
                visitor,
                span,
                end: gap.end_after(span.last),
            }));
        }
        sessions
    }
}

/// A session of a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlannedSession {
    pub host: u16,
    pub visitor: VisitorAddress,
    pub span: Span,
    pub end: EventTime,
}

impl Visit {
    fn span(&self) -> Span {
        let first = EventTime::from_millis(self.first_ms);
        Span { first, last: first.plus(self.span_ms), count: self.events }
    }
}

#[cfg(test)]
mod tests;
