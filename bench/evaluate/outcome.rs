//! Compares what was found with what happened.

use std::collections::BTreeMap;

use sessionizer::commands::produce::scenario::{DAY_MS, Incident, MINUTE_MS, Scenario};
use sessionizer_core::anomaly::Kind;

/// An anomaly, as far as it is scored.
#[derive(Clone, Debug)]
pub struct Found {
    pub kind: Kind,
    pub host: String,
    pub subject: String,
    pub at_ms: i64,
    /// When it could be known: the event time that the watermark had to pass.
    pub known_ms: Option<i64>,
}

/// The counts of a kind.
#[derive(Clone, Debug, Default)]
pub struct Score {
    /// Anomalies that were found, and how many of them belong to an incident.
    pub raised: u64,
    pub right: u64,
    /// Incidents that should be found as this kind, and how many were.
    pub incidents: u64,
    pub found: u64,
    /// From the beginning of an incident until it was found, in minutes.
    pub delays: Vec<f64>,
}

/// Scores by kind; and by scenario, how many incidents there were and how many were found.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    pub kinds: BTreeMap<Kind, Score>,
    pub scenarios: BTreeMap<String, (u64, u64)>,
}

/// How long after and before an incident an anomaly may still belong to it: a session ends a gap
/// after its last event, and a host is judged by buckets of sessions that have ended.
const AFTER_MS: i64 = 40 * MINUTE_MS;
const BEFORE_MS: i64 = 15 * MINUTE_MS;

/// Whether this anomaly is (a part of) that incident.
pub fn belongs(found: &Found, incident: &Incident) -> bool {
    if found.host != incident.host || !incident.kinds.contains(&found.kind) {
        return false;
    }
    let Incident { from_ms, to_ms, .. } = *incident;
    match found.kind {
        Kind::Repeat | Kind::Network => {
            let day = found.at_ms.div_euclid(DAY_MS);
            let days = from_ms.div_euclid(DAY_MS)..=(to_ms + AFTER_MS).div_euclid(DAY_MS);
            found.subject == incident.subject && days.contains(&day)
        }
        Kind::Clock => {
            // Afterwards its promise stays where it is until time has caught up.
            let until_ms = to_ms + incident.size as i64 * MINUTE_MS;
            let days = from_ms.div_euclid(DAY_MS)..=until_ms.div_euclid(DAY_MS);
            found.subject == incident.subject && days.contains(&found.at_ms.div_euclid(DAY_MS))
        }
        Kind::Burst | Kind::Marathon => {
            let near = from_ms - BEFORE_MS..=to_ms + AFTER_MS;
            found.subject == incident.subject && near.contains(&found.at_ms)
        }
        _ => (from_ms - BEFORE_MS..=to_ms + AFTER_MS).contains(&found.at_ms),
    }
}

impl Scores {
    /// Adds a run: what was found, and what happened.
    pub fn add(&mut self, found: &[Found], incidents: &[Incident]) {
        for anomaly in found {
            let score = self.kinds.entry(anomaly.kind).or_default();
            score.raised += 1;
            score.right += u64::from(incidents.iter().any(|i| belongs(anomaly, i)));
        }
        for incident in incidents {
            let wanted = incident.kinds[0];
            let of_it = found.iter().filter(|f| f.kind == wanted && belongs(f, incident));
            let first = of_it.min_by_key(|found| found.known_ms);
            let score = self.kinds.entry(wanted).or_default();
            score.incidents += 1;
            score.found += u64::from(first.is_some());
            let known_ms = first.and_then(|first| first.known_ms);
            score.delays.extend(known_ms.map(|at| (at - incident.from_ms) as f64 / 60_000.0));
            let (all, right) = self.scenarios.entry(name(incident.scenario)).or_default();
            *all += 1;
            *right += u64::from(first.is_some());
        }
    }
}

fn name(scenario: Scenario) -> String {
    scenario.name()
}

impl Score {
    /// The share of what was raised that is right.
    pub fn precision(&self) -> String {
        ratio(self.right, self.raised)
    }

    /// The share of the incidents that were found.
    pub fn recall(&self) -> String {
        ratio(self.found, self.incidents)
    }

    /// The median delay.
    pub fn delay(&self) -> String {
        let mut delays = self.delays.clone();
        delays.sort_unstable_by(f64::total_cmp);
        match delays.get(delays.len() / 2) {
            None => "–".to_owned(),
            Some(minutes) if *minutes < 120.0 => format!("{minutes:.0} min"),
            Some(minutes) => format!("{:.1} h", minutes / 60.0),
        }
    }
}

/// A ratio with two digits.
pub fn ratio(part: u64, of: u64) -> String {
    match of {
        0 => "–".to_owned(),
        _ => format!("{:.2}", part as f64 / of as f64),
    }
}
