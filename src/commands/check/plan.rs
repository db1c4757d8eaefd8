//! What a start would do with what was found, or why it would be refused.

use std::time::Duration;

use serde_json::{Value, json};
use sessionizer_core::time::EventTime;

use super::codes::Code;
use super::report::{Finding, Outcome};
use super::{kafka, postgres};
use crate::config::Config;
use crate::job::clock::now_ms;
use crate::job::recover;
use crate::job::recover::Outlook;
use crate::kafka::StartAt;
use crate::ui::text::{count, duration, plural};

/// The records that a worker is assumed to read per second: about half of what docs/BENCHMARKS.md
/// reports for a backlog.
const RECORDS_PER_S: u64 = 400_000;

/// What is known of both servers. `None`: it could not be checked.
pub struct Known {
    pub config: Option<Config>,
    pub kafka: Option<kafka::Facts>,
    pub postgres: Option<postgres::Facts>,
}

/// Reports what a start would do. Returns the same for JSON.
pub fn check(known: &Known, report: &mut dyn FnMut(Finding)) -> Value {
    let plan = plan(known, report);
    if let Some(facts) = &known.postgres {
        instances(facts, report);
    }
    plan
}

fn plan(known: &Known, report: &mut dyn FnMut(Finding)) -> Value {
    let (Some(config), Some(kafka), Some(facts)) = (&known.config, &known.kafka, &known.postgres)
    else {
        return unknown("not known: fix the failures above first", report);
    };
    let Some(found) = &facts.found else {
        return unknown("a start would be refused for the failures above", report);
    };
    // Groups cannot be asked about yet, and this plan depends on them.
    let with_rows = found.first.as_ref().is_some_and(|first| first.rows.is_some());
    let asks_group = with_rows || matches!(config.from, Some(StartAt::Group(_)));
    if asks_group && !kafka.has_groups && config.from.is_some() {
        return unknown("not known before a consumer has used this Kafka (SZ-K06)", report);
    }
    match recover::outlook(config, found, &kafka.counts, kafka.has_groups, now_ms()) {
        Ok(outlook) => would(config, &outlook, report),
        Err(fault) => {
            let mut refusal = Finding::of_fault(Code::L01, &fault);
            refusal.text = format!("a start would be refused: {}", refusal.text);
            let why = refusal.text.clone();
            report(refusal.or_remedy("see docs/OPERATIONS.md, SZ-L01"));
            json!({ "kind": "refused", "why": why })
        }
    }
}

fn unknown(why: &str, report: &mut dyn FnMut(Finding)) -> Value {
    let remedies = Vec::new();
    report(Finding { code: Code::L01, outcome: Outcome::Warning, text: why.to_owned(), remedies });
    json!({ "kind": "unknown", "why": why })
}

/// Reports instances of the job that are running.
fn instances(facts: &postgres::Facts, report: &mut dyn FnMut(Finding)) {
    let Some((pid, from)) = facts.running.first() else {
        return report(Finding::good(Code::L04, "no instance of the job is running"));
    };
    let started = facts.started.as_ref();
    let started = started.map_or(String::new(), |(by, at)| format!(", started {at} by {by}"));
    let text = format!(
        "an instance of the job is running{started}: {} to Postgres, the first from {from} (pid \
         {pid})",
        plural(facts.running.len(), "connection")
    );
    report(Finding {
        code: Code::L04,
        outcome: Outcome::Failed(3),
        text,
        remedies: vec![
            "a start now would take over from it, and it would end with exit code 3. To look at \
             it: sessionizer status"
                .to_owned(),
        ],
    });
}

fn would(config: &Config, outlook: &Outlook, report: &mut dyn FnMut(Finding)) -> Value {
    let lost = outlook.lost.as_ref();
    let refused = lost.is_some_and(|(_, accepted)| !accepted);
    let seconds = seconds(config, outlook);
    let epoch = EventTime::from_millis(outlook.epoch as i64);
    if !refused {
        report(Finding::good(Code::L01, sentence(outlook, epoch, seconds)));
    }
    match lost {
        None => report(Finding::good(Code::L02, "Kafka still has every record that is needed")),
        Some((fault, false)) => report(Finding::of_fault(Code::L02, fault)),
        Some((fault, true)) => {
            let mut finding = Finding::of_fault(Code::L02, fault);
            finding.outcome = Outcome::Warning;
            finding.remedies =
                vec!["it would continue without them (--accept-lost-offsets)".to_owned()];
            report(finding);
        }
    }
    for advice in &outlook.advice {
        report(Finding::warning(Code::L03, advice, "is it what you meant?"));
    }
    let kind = match (refused, &outlook.from) {
        (true, _) => "refused",
        (false, Some(_)) => "first start",
        (false, None) => "go on",
    };
    json!({
        "kind": kind,
        "from": outlook.from,
        "epoch": outlook.from.is_none().then_some(outlook.epoch),
        "records": outlook.records,
        "records_again": outlook.records_again,
        "seconds": seconds,
    })
}

/// About how long reading would take.
fn seconds(config: &Config, outlook: &Outlook) -> f64 {
    let readers = (config.workers * config.processes).min(outlook.partitions).max(1) as u64;
    outlook.records as f64 / (RECORDS_PER_S * readers) as f64
}

fn sentence(outlook: &Outlook, epoch: EventTime, seconds: f64) -> String {
    let takes = duration(Duration::from_secs_f64(seconds.max(0.1)));
    let to_read = match outlook.records {
        0 => "nothing to read yet".to_owned(),
        records => format!("{} to read, about {takes}", plural(records, "record")),
    };
    match &outlook.from {
        Some(from) => format!("would begin at {from}: {to_read}"),
        None => {
            let again = match outlook.records_again {
                0 => String::new(),
                again => format!(" ({} of them again)", count(again)),
            };
            format!("would continue at epoch {epoch}: {to_read}{again}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlook() -> Outlook {
        Outlook {
            from: None,
            epoch: 1_700_000_000_000,
            epochs_again: 3,
            records_again: 1_000,
            records: 1_600_000,
            partitions: 4,
            lost: None,
            advice: Vec::new(),
        }
    }

    #[test]
    fn a_plan_is_a_sentence() {
        let epoch = EventTime::from_millis(1_700_000_000_000);
        assert_eq!(
            sentence(&outlook(), epoch, 4.0),
            "would continue at epoch 2023-11-14T22:13:20.000Z: 1,600,000 records to read, about 4 s \
             (1,000 of them again)"
        );
        let first = Outlook {
            from: Some("the earliest offsets".to_owned()),
            records: 0,
            records_again: 0,
            ..outlook()
        };
        let want = "would begin at the earliest offsets: nothing to read yet";
        assert_eq!(sentence(&first, epoch, 0.0), want);
    }
}
