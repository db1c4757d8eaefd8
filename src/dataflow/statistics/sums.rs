//! What is counted, and of whom: hosts, visitors, and the sums that differential dataflow adds up.

use std::net::Ipv6Addr;

use differential_dataflow::difference::{Abelian, IsZero, Monoid, Semigroup};
use serde::{Deserialize, Serialize};
use sessionizer_core::anomaly;
use sessionizer_core::key::Key;
use sessionizer_core::session::Span;
use sessionizer_core::statistics::{Bin, Histogram};
use xxhash_rust::xxh3::xxh3_64;

/// A host, identified by the hash of its name. If two hosts had the same hash they would share a
/// line; with 64 bits, that does not happen in practice.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct Host(pub u64);

impl Host {
    /// All hosts together.
    pub const ALL: Host = Host(0);
    /// The hosts for which there was no room, together.
    pub const OTHER: Host = Host(1);

    /// The host with a name.
    pub fn named(name: &str) -> Self {
        Host(xxh3_64(name.as_bytes()).max(2))
    }
}

/// The address of a visitor, in a fixed number of bytes. A text of up to 15 bytes and an IPv6
/// address in its usual spelling are stored as they are, any other text as its hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct VisitorAddress([u8; 17]);

/// The values of the first byte of a [`VisitorAddress`] that are not the length of a text.
const IPV6: u8 = 16;
const HASH: u8 = 17;

impl VisitorAddress {
    /// The visitor with an address.
    pub fn at(ip: &str) -> Self {
        let mut bytes = [0; 17];
        let text = ip.as_bytes();
        if text.len() < usize::from(IPV6) {
            bytes[0] = text.len() as u8;
            bytes[1..=text.len()].copy_from_slice(text);
        } else if let Ok(address) = ip.parse::<Ipv6Addr>()
            && address.to_string() == ip
        {
            bytes[0] = IPV6;
            bytes[1..].copy_from_slice(&address.octets());
        } else {
            bytes[0] = HASH;
            bytes[1..9].copy_from_slice(&xxh3_64(text).to_be_bytes());
        }
        VisitorAddress(bytes)
    }

    /// The address; `None` if only its hash is known.
    pub fn address(&self) -> Option<String> {
        let (kind, rest) = (self.0[0], &self.0[1..]);
        match kind {
            HASH => None,
            IPV6 => {
                let octets: [u8; 16] = rest.try_into().expect("as many as there are");
                Some(Ipv6Addr::from(octets).to_string())
            }
            length => Some(String::from_utf8_lossy(&rest[..usize::from(length)]).into_owned()),
        }
    }
}

/// Sums over sessions, used as the difference of a collection: those of rows that were added, less
/// those of rows that were removed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Sums {
    pub sessions: i64,
    pub events: i64,
    /// From the first event to the last, in milliseconds.
    pub duration_ms: i64,
}

impl IsZero for Sums {
    fn is_zero(&self) -> bool {
        *self == Sums::default()
    }
}

impl Semigroup for Sums {
    fn plus_equals(&mut self, other: &Self) {
        self.sessions += other.sessions;
        self.events += other.events;
        self.duration_ms += other.duration_ms;
    }
}

impl Monoid for Sums {
    fn zero() -> Self {
        Sums::default()
    }
}

impl Abelian for Sums {
    fn negate(&mut self) {
        self.sessions = -self.sessions;
        self.events = -self.events;
        self.duration_ms = -self.duration_ms;
    }
}

/// A bin of events or of durations.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Item(u16);

/// Items from here on are bins of durations. Every bin number is lower than this.
const DURATIONS: u16 = 512;

impl Item {
    /// The bin of a number of events.
    pub fn events(events: u64) -> Self {
        Item(Bin::of(events).number())
    }

    /// The bin of a duration.
    pub fn duration(duration_ms: u64) -> Self {
        Item(DURATIONS + Bin::of(duration_ms).number())
    }

    /// Whether it is a bin of events, and which.
    pub fn bin(self) -> (bool, Bin) {
        let events = self.0 < DURATIONS;
        let number = if events { self.0 } else { self.0 - DURATIONS };
        (events, Bin::numbered(number).expect("made of a bin"))
    }
}

/// A row of the table, added or removed, as the statistics see it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Row {
    pub key: Key,
    /// The host and the visitor of the key, taken from it while it is in the cache.
    pub host: Host,
    pub visitor: anomaly::Visitor,
    pub span: Span,
    /// The `session_end` of the row, in milliseconds since 1970.
    pub end_ms: i64,
    /// `+1` or `-1`.
    pub diff: i64,
}

impl Row {
    /// The row of a session of `key` that ended at `end_ms`.
    pub fn new(key: Key, span: Span, end_ms: i64, diff: i64) -> Self {
        let (ip, host) = key.parts();
        let (host, visitor) = (Host::named(host), anomaly::Visitor::of(ip));
        Row { key, host, visitor, span, end_ms, diff }
    }

    /// From the first event to the last.
    pub fn duration_ms(&self) -> i64 {
        self.span.last.millis() - self.span.first.millis()
    }

    /// What the row adds to sums.
    pub fn sums(&self) -> Sums {
        Sums {
            sessions: self.diff,
            events: self.diff * self.span.count as i64,
            duration_ms: self.diff * self.duration_ms(),
        }
    }

    /// What it adds to the bins: the sums are counted with the events, and not again with the
    /// durations.
    pub fn items(&self) -> [(Item, Sums); 2] {
        let duration = Item::duration(self.duration_ms().max(0) as u64);
        let sessions = Sums { sessions: self.diff, ..Sums::default() };
        [(Item::events(self.span.count), self.sums()), (duration, sessions)]
    }
}

/// A summary of some sessions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    pub sums: Sums,
    /// Sessions of one event.
    pub singles: i64,
    pub events: Quantiles,
    pub duration_ms: Quantiles,
    /// Whether a count is negative, because more was removed than was added.
    pub broken: bool,
}

/// The bins with the median and with the 95th percentile.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Quantiles {
    pub median: Option<Bin>,
    pub p95: Option<Bin>,
}

impl Quantiles {
    fn of(histogram: &Histogram) -> Self {
        Quantiles { median: histogram.quantile(50), p95: histogram.quantile(95) }
    }
}

impl Summary {
    /// Summarises sessions that are counted by bin.
    pub fn of(items: impl IntoIterator<Item = (Item, Sums)>) -> Self {
        let mut summary = Summary::default();
        let (mut events, mut durations) = (Histogram::default(), Histogram::default());
        for (item, sums) in items {
            let (of_events, bin) = item.bin();
            if of_events {
                summary.sums.plus_equals(&sums);
                events.add(bin, sums.sessions);
            } else {
                durations.add(bin, sums.sessions);
            }
            summary.broken |= sums.sessions < 0;
        }
        let single = events.bins().find(|(bin, _)| *bin == Bin::of(1));
        summary.singles = single.map_or(0, |(_, sessions)| sessions);
        summary.broken |= events.count() != durations.count();
        (summary.events, summary.duration_ms) = (Quantiles::of(&events), Quantiles::of(&durations));
        summary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_were_written() {
        for ip in ["", "1.2.3.4", "255.255.255.255", "fifteen letters", "2001:db8::17", "münchen"]
        {
            assert_eq!(VisitorAddress::at(ip).address().as_deref(), Some(ip));
        }
        let long = "2001:db8:1:2:3:4:5:6";
        assert_eq!(VisitorAddress::at(long).address().as_deref(), Some(long));
        // Another spelling of an address is another visitor, as in the table.
        for odd in ["2001:DB8:1:2:3:4:5:6", "sixteen  letters", &"x".repeat(2_000)] {
            assert_eq!(VisitorAddress::at(odd).address(), None);
            assert_ne!(VisitorAddress::at(odd), VisitorAddress::at(long));
        }
    }

    #[test]
    fn a_summary_says_what_the_sessions_say() {
        let of = |events: u64, duration_ms: u64, diff: i64| {
            let sums = Sums {
                sessions: diff,
                events: diff * events as i64,
                duration_ms: diff * duration_ms as i64,
            };
            let sessions = Sums { sessions: diff, ..Sums::default() };
            [(Item::events(events), sums), (Item::duration(duration_ms), sessions)]
        };
        let sessions = [of(1, 0, 3), of(2, 90_000, 1), of(100, 3_600_000, 1)];
        let summary = Summary::of(sessions.into_iter().flatten());
        let sums = Sums { sessions: 5, events: 105, duration_ms: 3_690_000 };
        assert_eq!((summary.sums, summary.singles, summary.broken), (sums, 3, false));
        let bins = |events| [Bin::of(events)].map(Some);
        assert_eq!([summary.events.median], bins(1));
        assert_eq!([summary.events.p95], bins(100));
        assert_eq!([summary.duration_ms.p95], bins(3_600_000));
        assert!(Summary::of(of(1, 0, 1).into_iter().chain(of(2, 0, -1))).broken);
    }
}
