//! The anomalies as a block of the document. Rendering only.

use serde_json::{Value, json};
use sessionizer_core::anomaly::{
    Anomaly, BUCKET_MS, DAY_MS, Day, Evidence, Kind, LIVE_DAYS, QUARTER_MS, SINGLES_MS,
};
use sessionizer_core::time::EventTime;

use crate::dataflow::changes::HOSTS;
use crate::monitor::JobFacts;
use crate::monitor::document::unknown;
use crate::monitor::mask::mask;
use crate::monitor::sample::{DetectorSample, Sample};

/// Why there are no anomalies to show.
pub fn why_none(sample: &Sample) -> &'static str {
    match (sample.process, sample.counts) {
        (1.., _) => "the page of process 0 has them",
        (_, false) => "they need the statistics (--statistics none)",
        (_, true) => {
            "none are looked for (--anomalies none), or nothing is durable yet in this run"
        }
    }
}

/// The newest anomalies of the last day, and what there was no room for.
pub fn block(facts: &JobFacts, samples: &[Sample]) -> Value {
    let Some(anomalies) = &samples[0].anomalies else {
        return unknown(&["rows"], why_none(&samples[0]));
    };
    let rows: Vec<Value> = anomalies.newest.iter().map(|anomaly| row(facts, anomaly)).collect();
    let detectors = || samples.iter().filter_map(|sample| sample.window.detectors);
    let sum = |of: fn(DetectorSample) -> u64| detectors().map(of).sum::<u64>();
    // A day is judged if its visitors and those of the day before are known.
    let live = anomalies.watermark.map(|watermark| Day(Day::of(watermark).0 - LIVE_DAYS + 1));
    let known = detectors().filter_map(|of| of.visitors_from_ms).max();
    let judged = known.map(|known| known + DAY_MS);
    json!({
        "as_of": anomalies.epoch, "live": anomalies.live(), "rows": rows,
        "hosts": sum(|of| of.hosts), "hosts_limit": HOSTS,
        "visitors_kept": sum(|of| of.visitors), "rows_refused": sum(|of| of.refused_rows),
        "visitors_from": judged.filter(|from| live.is_some_and(|live| *from > live.start().millis())),
    })
}

fn row(facts: &JobFacts, anomaly: &Anomaly) -> Value {
    let Anomaly { kind, host, subject, at, observed, expected, threshold, .. } = anomaly;
    // A network is what is left of a masked address, and a partition is nobody's.
    let names_visitor = !subject.is_empty() && !matches!(kind, Kind::Network | Kind::Clock);
    let subject = match facts.masked && names_visitor {
        true => mask(subject),
        false => subject.clone(),
    };
    json!({
        "kind": kind.name(), "host": host, "subject": subject, "at": at.millis(),
        "observed": observed, "expected": expected, "threshold": threshold,
        "unit": anomaly.unit(), "reason": anomaly.reason(),
        "sql": (!facts.masked).then(|| sql((&facts.table, &facts.job), anomaly)),
    })
}

/// The name of a table as SQL takes it. The default needs no quotes.
fn in_sql(table: &str) -> String {
    let part = |part: &str| match part {
        "sessionized_events" => part.to_owned(),
        other => format!("\"{other}\""), // It contains no quotes: the configuration refuses them.
    };
    table.split('.').map(part).collect::<Vec<_>>().join(".")
}

/// A query that shows the sessions in question, or the partitions.
fn sql((table, job): (&str, &str), anomaly: &Anomaly) -> String {
    let table = in_sql(table);
    let Anomaly { kind, host, subject, at, .. } = anomaly;
    let text = |value: &str| format!("'{}'", value.replace('\'', "''"));
    let between = |from: EventTime, to: EventTime| {
        format!(
            "select count(*), count(*) filter (where num_logs = 1) from {table} where host = {} and \
             session_end >= '{from}' and session_end < '{to}'",
            text(host)
        )
    };
    let bucket = |length_ms: i64| between(*at, at.plus(length_ms));
    let of_day = || {
        let end = EventTime::plus(*at, DAY_MS);
        format!("host = {} and session_end >= '{at}' and session_end < '{end}'", text(host))
    };
    match kind {
        Kind::Repeat => {
            format!("select * from {table} where ip = {} and {}", text(subject), of_day())
        }
        Kind::Network => {
            // 192.0.2.0/24 or 2001:db8:1::/48
            let (network, _) = subject.split_once('/').unwrap_or((subject, ""));
            let starts = match network.strip_suffix("::") {
                // The last of its three groups are zero, and an address may leave them out.
                Some(groups) if groups.split(':').count() < 3 => {
                    let zeros = ":0".repeat(3 - groups.split(':').count());
                    format!("{{{groups}::%,{groups}{zeros}:%}}")
                }
                Some(groups) => format!("{{{groups}:%}}"),
                None => format!("{{{}%}}", network.strip_suffix('0').unwrap_or(network)),
            };
            format!(
                "select ip, count(*) from {table} where ip::text like any ({}) and {} group by 1 \
                 order by 2 desc",
                text(&starts),
                of_day()
            )
        }
        Kind::Clock => {
            format!("select * from sessionizer.partitions where job = {}", text(job))
        }
        Kind::Fall if anomaly.evidence == Evidence::Quarter => {
            between(at.plus(BUCKET_MS - QUARTER_MS), at.plus(BUCKET_MS))
        }
        Kind::Surge | Kind::Fall => bucket(BUCKET_MS),
        Kind::Singles => bucket(SINGLES_MS),
        _ => format!(
            "select * from {table} where ip = {} and host = {} and session_start = '{at}'",
            text(subject),
            text(host)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_quotes_what_comes_from_outside() {
        let anomaly = Anomaly {
            kind: Kind::Burst,
            host: "o'hara.example".to_owned(),
            subject: "192.0.2.1".to_owned(),
            at: EventTime::from_millis(1_780_272_000_123),
            observed: 90,
            expected: 9,
            threshold: 40,
            evidence: Evidence::Session { events: 90, duration_ms: 1_000, sessions: 900, rank: 5 },
        };
        let want = "select * from \"public\".\"s\" where ip = '192.0.2.1' and host = 'o''hara.example' and \
                    session_start = '2026-06-01T00:00:00.123Z'";
        let names = ("public.s", "a job");
        assert_eq!(sql(names, &anomaly), want);
        let want = "select * from \"MyTable\" where ip = ";
        assert!(sql(("MyTable", "a job"), &anomaly).starts_with(want));
        let surge = Anomaly { kind: Kind::Surge, evidence: Evidence::Bucket, ..anomaly.clone() };
        let text = sql(names, &surge);
        assert!(text.ends_with("session_end < '2026-06-01T00:05:00.123Z'"), "{text}");
        let fall = Anomaly { kind: Kind::Fall, evidence: Evidence::Quarter, ..anomaly.clone() };
        let want = "session_end >= '2026-05-31T23:50:00.123Z' and session_end < \
                    '2026-06-01T00:05:00.123Z'";
        assert!(sql(names, &fall).ends_with(want), "{}", sql(names, &fall));
        for (network, starts) in [
            ("192.0.2.0/24", "{192.0.2.%}"),
            ("2001:db8:1::/48", "{2001:db8:1:%}"),
            ("2001:db8::/48", "{2001:db8::%,2001:db8:0:%}"),
        ] {
            let network =
                Anomaly { kind: Kind::Network, subject: network.to_owned(), ..anomaly.clone() };
            let text = sql(names, &network);
            assert!(
                text.contains(&format!("ip::text like any ('{starts}') and host = ")),
                "{text}"
            );
        }
    }
}
