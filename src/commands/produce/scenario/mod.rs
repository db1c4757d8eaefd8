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
            let (outages, others): (Vec<Scenario>, Vec<Scenario>) =
                request.scenarios.iter().partition(|scenario| **scenario == Scenario::Outage);
            for scenario in outages.into_iter().chain(others) {
                for number in 0..request.incidents {
                    let mut mine = visits.split_off(from);
                    let site = incident::IncidentSite { request, host: host as u16, name, number };
                    incidents.push(scenario.happen(&site, &mut mine));
                    visits.append(&mut mine);
                }
            }
        }
        visits.sort_unstable();
        incidents.sort_by_key(|incident| incident.from_ms);
        Plan { hosts: request.hosts.clone(), visits, incidents }
    }

    /// The sessions of the plan: for each host and visitor, visits that touch are merged.
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
