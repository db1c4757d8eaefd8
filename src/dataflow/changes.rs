//! What the commits have changed in the table, for display: sessions by host, and the latest
//! changes. All of it counts since the start of the process, and all of it is bounded.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use sessionizer_core::session::Span;
use xxhash_rust::xxh3::xxh3_64;

use crate::dataflow::messages::Change;

/// How many hosts are counted on their own.
pub const HOSTS: usize = 10_000;
/// How many of the latest changes are kept, and how many of one commit at most.
pub const LATEST: usize = 50;
const LATEST_OF_ONE: usize = 10;

/// The sums of a host: of its rows that were added, less those that were removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct HostSums {
    pub sessions: i64,
    /// Rows that were added, without subtracting those that were removed.
    pub added: i64,
    pub events: i64,
    /// From the first event to the last.
    pub duration_ms: i64,
}

impl HostSums {
    fn add(&mut self, span: &Span, diff: i64) {
        self.sessions += diff;
        self.added += diff.max(0);
        self.events += diff * span.count as i64;
        self.duration_ms += diff * (span.last.millis() - span.first.millis());
    }

    /// The sums of both.
    pub fn plus(&mut self, other: HostSums) {
        self.sessions += other.sessions;
        self.added += other.added;
        self.events += other.events;
        self.duration_ms += other.duration_ms;
    }
}

/// A row that a commit has changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Latest {
    /// Numbers all changes that were kept, so that a reader knows which are new.
    pub number: u64,
    pub at_ms: u64,
    pub ip: String,
    pub host: String,
    pub span: Span,
    /// Whether the row was removed; otherwise it was added.
    pub removed: bool,
    /// Whether the commit has removed other rows of the same visitor: late events have changed
    /// them.
    pub merged: bool,
}

/// What the commits have changed.
#[derive(Default)]
pub struct ChangeFigures {
    pub added: u64,
    pub removed: u64,
    hosts: HashMap<u64, (Box<str>, HostSums), BuildHasherDefault<Hashed>>,
    pub other: HostSums,
    /// The newest first.
    pub latest: VecDeque<Latest>,
    number: u64,
}

impl ChangeFigures {
    /// Takes in the changes of a commit.
    pub fn take(&mut self, changes: &[Change], at_ms: u64) {
        for change in changes {
            match change.diff > 0 {
                true => self.added += 1,
                false => self.removed += 1,
            }
            let (_, host) = change.key.parts();
            // With 64 bits, no two hosts have the same hash in practice.
            let hash = xxh3_64(host.as_bytes());
            if let Some((_, sums)) = self.hosts.get_mut(&hash) {
                sums.add(&change.span, change.diff);
            } else if self.hosts.len() < HOSTS {
                let mut sums = HostSums::default();
                sums.add(&change.span, change.diff);
                self.hosts.insert(hash, (host.into(), sums));
            } else {
                self.other.add(&change.span, change.diff);
            }
        }
        let first = changes.len().saturating_sub(LATEST_OF_ONE);
        for (at, change) in changes.iter().enumerate().skip(first) {
            let (ip, host) = change.key.parts();
            // The rows that a late event removes come right before the row that replaces them.
            let before = at.checked_sub(1).map(|before| &changes[before]);
            let merged = before.is_some_and(|before| before.diff < 0 && before.key == change.key);
            self.number += 1;
            self.latest.push_front(Latest {
                number: self.number,
                at_ms,
                ip: ip.to_owned(),
                host: host.to_owned(),
                span: change.span,
                removed: change.diff < 0,
                merged: merged && change.diff > 0,
            });
        }
        self.latest.truncate(LATEST);
    }

    /// How many hosts are counted on their own.
    pub fn hosts_known(&self) -> usize {
        self.hosts.len()
    }

    /// The hosts with the most sessions, and the sums of the others.
    pub fn top_hosts(&self, most: usize) -> (Vec<(String, HostSums)>, HostSums) {
        let mut all: Vec<(&str, HostSums)> =
            self.hosts.values().map(|(host, sums)| (&**host, *sums)).collect();
        let order = |a: &(&str, HostSums), b: &(&str, HostSums)| {
            b.1.sessions.cmp(&a.1.sessions).then_with(|| a.0.cmp(b.0))
        };
        let mut other = self.other;
        if all.len() > most {
            all.select_nth_unstable_by(most, order);
            all.drain(most..).for_each(|(_, sums)| other.plus(sums));
        }
        all.sort_unstable_by(order);
        (all.into_iter().map(|(host, sums)| (host.to_owned(), sums)).collect(), other)
    }

    /// The sums of one host, if it is known.
    pub fn host(&self, host: &str) -> Option<HostSums> {
        self.hosts.get(&xxh3_64(host.as_bytes())).map(|(_, sums)| *sums)
    }

    /// The sums of all hosts.
    pub fn all_hosts(&self) -> HostSums {
        let mut all = self.other;
        self.hosts.values().for_each(|(_, sums)| all.plus(*sums));
        all
    }
}

/// The keys are hashes already.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("the keys are numbers");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sessionizer_core::key::Key;
    use sessionizer_core::time::EventTime;

    fn change(host: &str, from: i64, to: i64, diff: i64) -> Change {
        let [first, last] = [from, to].map(EventTime::from_millis);
        Change { key: Key::new("ip", host), span: Span { first, last, count: 2 }, diff }
    }

    #[test]
    fn hosts_are_summed_with_what_was_removed_and_the_rest_is_other() {
        let mut figures = ChangeFigures::default();
        figures.take(&[change("a", 0, 10, 1), change("b", 0, 10, 1), change("a", 20, 50, 1)], 1);
        figures.take(&[change("a", 0, 10, -1), change("a", 20, 50, -1), change("a", 0, 50, 1)], 2);
        let (top, other) = figures.top_hosts(1);
        let sums = |sessions, added, events, duration_ms| HostSums {
            sessions,
            added,
            events,
            duration_ms,
        };
        assert_eq!(top, [("a".to_owned(), sums(1, 3, 2, 50))]);
        assert_eq!(other, sums(1, 1, 2, 10));
        assert_eq!(figures.all_hosts(), sums(2, 4, 4, 60));
        assert_eq!((figures.added, figures.removed), (4, 2));
        let newest = &figures.latest[0];
        assert!(newest.merged && !newest.removed && figures.latest[1].removed);
    }

    #[test]
    fn neither_hosts_nor_sessions_grow_without_end() {
        let mut figures = ChangeFigures::default();
        for n in 0..HOSTS as i64 + 100 {
            figures.take(&[change(&n.to_string(), n, n + 1, 1)], 1);
        }
        assert_eq!((figures.hosts_known(), figures.other.sessions), (HOSTS, 100));
        assert_eq!(figures.latest.len(), LATEST);
        assert_eq!(figures.latest[0].number, HOSTS as u64 + 100);
    }
}
