//! The anomalies as a plain function of the table and the watermark: the dataflow has to agree with
//! it, and the evaluation runs it.

use std::collections::{BTreeMap, HashMap};

use super::history::{
    BUCKET_MS, Day, Hour, HourSums, Limits, NetworkSums, SINGLES_MS, VisitorSums, bucket,
    day_is_known, judge_bucket, judge_network, judge_visitor,
};
use super::{Anomaly, Limit, Session, Thresholds, network};
use crate::statistics::{Bin, Histogram};
use crate::time::EventTime;

/// All anomalies of the table, sorted. Every session must have ended before the watermark.
pub fn batch<'a>(
    sessions: impl IntoIterator<Item = Session<'a>>,
    watermark: EventTime,
    thresholds: &Thresholds,
) -> Vec<Anomaly> {
    let mut hosts: BTreeMap<&str, Vec<Session<'a>>> = BTreeMap::new();
    for session in sessions {
        hosts.entry(session.host).or_default().push(session);
    }
    let mut found = Vec::new();
    for (host, sessions) in hosts {
        let mut hours: BTreeMap<Hour, HourSums> = BTreeMap::new();
        for session in &sessions {
            hours.entry(Hour::of(session.end)).or_default().add(&session.span, 1, thresholds);
        }
        let of_hour = |hour: Hour| (hour, Limits::of(&hours, hour, thresholds));
        let limits: BTreeMap<Hour, Option<Limits>> = hours.keys().map(|at| of_hour(*at)).collect();
        for session in &sessions {
            if let Some(Some(limits)) = limits.get(&Hour::of(session.end)) {
                found.extend(limits.judge(session.ip, host, &session.span));
            }
        }
        of_days(host, &sessions, &hours, thresholds, &mut found);
        of_the_host(host, &sessions, &limits, watermark, thresholds, &mut found);
    }
    found.sort_unstable();
    found
}

/// How many sessions each visitor had on each day.
pub fn visitors<'a>(sessions: &[Session<'a>]) -> BTreeMap<Day, HashMap<&'a str, u64>> {
    let mut days: BTreeMap<Day, HashMap<&str, u64>> = BTreeMap::new();
    for session in sessions {
        *days.entry(Day::of(session.end)).or_default().entry(session.ip).or_default() += 1;
    }
    days
}

fn of_days(
    host: &str,
    sessions: &[Session<'_>],
    hours: &BTreeMap<Hour, HourSums>,
    thresholds: &Thresholds,
    found: &mut Vec<Anomaly>,
) {
    let days = visitors(sessions);
    let mut before: Option<Before<'_>> = None;
    for (day, visitors) in &days {
        let networks = networks(visitors);
        let from = Day(day.0 - 1).first_hour();
        let of_hour = |(at, sums): (&Hour, &HourSums)| (at.0 - from.0, sums.sessions());
        let known = day_is_known(hours.range(from..day.first_hour()).map(of_hour), thresholds);
        if let Some(before) = before.filter(|before| known && before.day.0 == day.0 - 1) {
            for (ip, n) in visitors {
                let Some(limit) = &before.visitor else { break };
                let n_before = before.visitors.get(ip).copied().unwrap_or(0);
                let sums = VisitorSums { sessions: *n, before: n_before };
                let limit = (limit, before.judged);
                found.extend(judge_visitor(host, ip, *day, sums, limit, thresholds));
            }
            for (network, sums) in &networks {
                let Some(limit) = &before.network else { break };
                let n_before = before.networks.get(network).map_or(0, |sums| sums.sessions);
                let sums = NetworkSums { before: n_before, ..*sums };
                found.extend(judge_network(host, network, *day, sums, limit, thresholds));
            }
        }
        let counts: Histogram = visitors.values().map(|n| (Bin::of(*n), 1)).collect();
        let of_networks: Histogram =
            networks.values().map(|sums| (Bin::of(sums.sessions), 1)).collect();
        before = Some(Before {
            day: *day,
            visitor: thresholds.repeat.limit(&counts),
            network: thresholds.network.limit(&of_networks),
            judged: known,
            visitors,
            networks,
        });
    }
}

/// The day before.
struct Before<'a> {
    day: Day,
    visitor: Option<Limit>,
    network: Option<Limit>,
    /// Whether it could be judged.
    judged: bool,
    visitors: &'a HashMap<&'a str, u64>,
    networks: HashMap<String, NetworkSums>,
}

fn networks(visitors: &HashMap<&str, u64>) -> HashMap<String, NetworkSums> {
    let mut networks: HashMap<String, NetworkSums> = HashMap::new();
    for (ip, sessions) in visitors {
        if let Some(network) = network(ip) {
            networks.entry(network).or_default().add(*sessions);
        }
    }
    networks
}

fn of_the_host(
    host: &str,
    sessions: &[Session<'_>],
    limits: &BTreeMap<Hour, Option<Limits>>,
    watermark: EventTime,
    thresholds: &Thresholds,
    found: &mut Vec<Anomaly>,
) {
    let mut counts: BTreeMap<i64, u64> = BTreeMap::new();
    let mut quarters: BTreeMap<i64, (u64, u64)> = BTreeMap::new();
    for session in sessions {
        *counts.entry(bucket(session.end, BUCKET_MS)).or_default() += 1;
        let (all, singles) = quarters.entry(bucket(session.end, SINGLES_MS)).or_default();
        *all += 1;
        *singles += u64::from(session.span.count == 1);
    }
    let Some(first) = counts.keys().next().copied() else { return };
    let count = |at: i64| counts.get(&at).copied().unwrap_or(0);
    for at in first..bucket(watermark, BUCKET_MS) {
        found.extend(judge_bucket(host, at, count, thresholds));
    }
    let singles = |at: i64| {
        let (sessions, singles) = quarters.get(&at).copied()?;
        let hour = Hour::of(EventTime::from_millis(at * SINGLES_MS));
        let limits = limits.get(&hour).copied().flatten()?;
        limits.judge_singles(host, at, sessions, singles, thresholds)
    };
    for at in quarters.keys().copied() {
        if at < bucket(watermark, SINGLES_MS) && singles(at - 1).is_none() {
            found.extend(singles(at));
        }
    }
}
