//! Which anomalies become rows: only the first few of each kind, host and hour, plus a row that
//! counts the rest.

use std::collections::BTreeMap;

use super::{Anomaly, Evidence, Hour, Kind};
use crate::time::EventTime;

/// The subject of a row that counts others.
pub const MORE: &str = "(more)";

/// What identifies a row.
pub type Identity = (Kind, String, String, EventTime);

/// The rows of these anomalies: the earliest `most` of each kind, host and hour, and one row for the
/// rest. The hour is the one with which they expire ([`Anomaly::hour`]), so that no row changes when
/// others expire; a day is one group.
pub fn rows<'a>(
    anomalies: impl IntoIterator<Item = &'a Anomaly>,
    (most, end_after_ms): (usize, i64),
) -> BTreeMap<Identity, Anomaly> {
    let mut groups: BTreeMap<(Kind, &str, Hour), Vec<&Anomaly>> = BTreeMap::new();
    for anomaly in anomalies {
        let hour = match anomaly.kind.is_by_day() {
            true => Hour::of(anomaly.at),
            false => anomaly.hour(end_after_ms),
        };
        let group = (anomaly.kind, anomaly.host.as_str(), hour);
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

    const GAP_MS: i64 = 300_000;

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
        assert_eq!(rows(&all[..20], (20, GAP_MS)).len(), 20);
        let of_hour = rows(&all, (20, GAP_MS));
        assert_eq!(of_hour.len(), 21);
        assert!(of_hour.values().any(|row| row.subject == "29"), "the first twenty");
        assert!(!of_hour.values().any(|row| row.subject == "30"));
        let more = of_hour.values().find(|row| row.subject == MORE).expect("a row for the rest");
        assert_eq!((more.observed, more.at.millis()), (10, 7 * hour_ms));
        assert_eq!(more.reason(), "and 10 more in this hour");
        assert_eq!((more.unit(), all[0].unit()), ("anomalies", "events"));
        // Other hours, hosts and kinds are counted separately; the order does not matter.
        all.push(burst(8 * hour_ms, "a"));
        all.push(Anomaly { host: "b.example".to_owned(), ..burst(7 * hour_ms, "a") });
        all.push(Anomaly { kind: Kind::Marathon, ..burst(7 * hour_ms, "a") });
        all.reverse();
        assert_eq!(rows(&all, (20, GAP_MS)).len(), 24);
    }

    /// Sessions of one hour, half of which end in the next: what ended first expires first, and then
    /// the rows of the others are what they were.
    #[test]
    fn no_row_changes_when_others_expire() {
        let hour_ms = super::super::HOUR_MS;
        let begun = |minute: i64| burst(minute * 60_000, &format!("{minute:02}"));
        let mut all: Vec<Anomaly> =
            (10..60).flat_map(|minute| [begun(minute), begun(minute)]).collect();
        for (n, anomaly) in all.iter_mut().enumerate() {
            anomaly.subject = format!("{} {n}", anomaly.subject);
            let duration_ms = if n % 2 == 0 { 1_000 } else { hour_ms as u64 };
            anomaly.evidence =
                Evidence::Session { events: 90, duration_ms, sessions: 900, rank: 5 };
        }
        let before = rows(&all, (20, GAP_MS));
        all.retain(|anomaly| anomaly.hour(GAP_MS) > Hour(0));
        let after = rows(&all, (20, GAP_MS));
        assert!(!after.is_empty() && after.len() < before.len());
        assert!(after.iter().all(|(identity, row)| before.get(identity) == Some(row)));
    }
}
