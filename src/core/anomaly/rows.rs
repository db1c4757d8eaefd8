//! Which anomalies become rows: only the first few of each kind, host and hour, plus a row that
//! counts the rest.

use std::collections::BTreeMap;

use super::{Anomaly, Evidence, Hour, Kind};
use crate::time::EventTime;

/// The subject of a row that counts others.
pub const MORE: &str = "(more)";

/// What identifies a row.
pub type Identity = (Kind, String, String, EventTime);

/// The rows of these anomalies: the earliest `most` of each kind, host and hour (the one in which
/// they begin), and one row for the rest.
pub fn rows<'a>(
    anomalies: impl IntoIterator<Item = &'a Anomaly>,
    most: usize,
) -> BTreeMap<Identity, Anomaly> {
    let mut groups: BTreeMap<(Kind, &str, Hour), Vec<&Anomaly>> = BTreeMap::new();
    for anomaly in anomalies {
        let group = (anomaly.kind, anomaly.host.as_str(), Hour::of(anomaly.at));
        groups.entry(group).or_default().push(anomaly);
    }
    let mut rows = BTreeMap::new();
    for ((kind, host, hour), mut group) in groups {
        group.sort_unstable_by_key(|anomaly| (anomaly.at, &anomaly.subject));
        for anomaly in group.iter().take(most) {
            let identity = (kind, host.to_owned(), anomaly.subject.clone(), anomaly.at);
            rows.insert(identity, (*anomaly).clone());
        }
        let rest = group.len().saturating_sub(most) as u64;
        if rest > 0 {
            let at = EventTime::from_millis(hour.0 * super::HOUR_MS);
            let more = Anomaly {
                kind,
                host: host.to_owned(),
                subject: MORE.to_owned(),
                at,
                observed: rest,
                expected: 0,
                threshold: 0,
                evidence: Evidence::More,
            };
            rows.insert((kind, host.to_owned(), MORE.to_owned(), at), more);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn burst(at_ms: i64, subject: &str) -> Anomaly {
        Anomaly {
            kind: Kind::Burst,
            host: "a.example".to_owned(),
            subject: subject.to_owned(),
            at: EventTime::from_millis(at_ms),
            observed: 90,
            expected: 9,
            threshold: 40,
            evidence: Evidence::Session { events: 90, duration_ms: 1_000, sessions: 900, rank: 5 },
        }
    }

    #[test]
    fn an_hour_has_so_many_rows_and_one_for_the_rest() {
        let hour_ms = super::super::HOUR_MS;
        let names: Vec<String> = (10..40).map(|n| n.to_string()).collect();
        let mut all: Vec<Anomaly> = names.iter().map(|name| burst(7 * hour_ms, name)).collect();
        assert_eq!(rows(&all[..20], 20).len(), 20);
        let of_hour = rows(&all, 20);
        assert_eq!(of_hour.len(), 21);
        assert!(of_hour.values().any(|row| row.subject == "29"), "the first twenty");
        assert!(!of_hour.values().any(|row| row.subject == "30"));
        let more = of_hour.values().find(|row| row.subject == MORE).expect("a row for the rest");
        assert_eq!((more.observed, more.at.millis()), (10, 7 * hour_ms));
        assert_eq!(more.reason(), "and 10 more in this hour");
        // Other hours, hosts and kinds are counted separately; the order does not matter.
        all.push(burst(8 * hour_ms, "a"));
        all.push(Anomaly { host: "b.example".to_owned(), ..burst(7 * hour_ms, "a") });
        all.push(Anomaly { kind: Kind::Marathon, ..burst(7 * hour_ms, "a") });
        all.reverse();
        assert_eq!(rows(&all, 20).len(), 24);
    }
}
