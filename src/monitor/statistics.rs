//! The statistics as blocks of the document. Rendering only. There are several blocks because a
//! page is sent the whole block again whenever anything in it changes.

use serde_json::{Value, json};
use sessionizer_core::statistics::Bin;
use sessionizer_core::time::EventTime;

use crate::dataflow::changes::HOSTS;
use crate::dataflow::statistics::board::{Board, Line};
use crate::dataflow::statistics::sums::{Quantiles, Summary, Sums};
use crate::monitor::document::{Document, unknown};
use crate::monitor::mask::mask;
use crate::monitor::sample::Sample;

/// The names of the blocks.
const BLOCKS: [&str; 5] = ["all", "hosts", "hours", "minutes", "visitors"];

/// The columns of an hour; a minute has the first four.
const COLUMNS: [&str; 9] = [
    "at",
    "sessions",
    "events",
    "duration_ms",
    "singles",
    "events_median",
    "events_p95",
    "duration_median_ms",
    "duration_p95_ms",
];

/// Adds the blocks of the statistics. Only process 0 has them.
pub fn add(document: &mut Document, samples: &[Sample], (process, masked): (usize, bool)) {
    let Some(board) = &samples[0].statistics else {
        let why = match (process, samples[0].counts) {
            (1.., true) => "the page of process 0 has them",
            (_, true) => "no epoch has become durable yet in this run",
            (_, false) => "they are switched off (--statistics none)",
        };
        document.insert("statistics".to_owned(), unknown(&["state", "as_of"], why));
        for block in BLOCKS {
            document.insert(name(block), unknown(&["rows"], why));
        }
        return;
    };
    let sum = |of: fn(&Sample) -> u64| samples.iter().map(of).sum::<u64>();
    let time = |at: Option<EventTime>| at.map(EventTime::millis);
    let head = json!({
        "state": if board.complete { "counting" } else { "reading" },
        "as_of": board.epoch, "watermark": time(board.watermark), "from": board.from_ms,
        "rows_read": sum(|s| s.window.past_rows), "rows_from": time(board.rows_from),
        "visitors_from": board.visitors_from_ms, "hosts": board.hosts_known, "hosts_limit": HOSTS,
        "cells": sum(|s| s.window.cells), "visitors_kept": sum(|s| s.window.visitors),
        "too_old": sum(|s| s.window.too_old), "broken": board.broken,
    });
    document.insert("statistics".to_owned(), head);
    if !board.complete {
        for block in BLOCKS {
            document.insert(
                name(block),
                unknown(&["rows"], "the rows of the last day are still being read"),
            );
        }
        return;
    }
    let hours = board.hours.iter().map(|(at, summary)| of_hour(*at, summary));
    let minutes = board
        .minutes
        .iter()
        .map(|(at, sums)| json!([at, sums.sessions, sums.events, sums.duration_ms]));
    for (block, value) in [
        ("all", json!({"rows": [line("", &board.all, board)]})),
        ("hosts", hosts(board)),
        ("hours", json!({"columns": COLUMNS, "rows": hours.collect::<Vec<_>>()})),
        ("minutes", json!({"columns": COLUMNS[..4], "rows": minutes.collect::<Vec<_>>()})),
        ("visitors", visitors(board, masked)),
    ] {
        document.insert(name(block), value);
    }
}

fn name(block: &str) -> String {
    format!("statistics_{block}")
}

fn hosts(board: &Board) -> Value {
    let rows: Vec<Value> = board.hosts.iter().map(|(host, of)| line(host, of, board)).collect();
    let (known, Sums { sessions, events, duration_ms }) = board.other;
    json!({
        "rows": rows,
        "other": {"hosts": known, "sessions": sessions, "events": events, "duration_ms": duration_ms},
    })
}

fn visitors(board: &Board, masked: bool) -> Value {
    if !board.counts_visitors {
        return unknown(&["rows"], "visitors are not counted (--statistics hosts)");
    }
    let shown = |address: &String| if masked { mask(address) } else { address.clone() };
    let rows = board.busy.iter().map(|busy| {
        let mut row = json!({
            "host": busy.host, "ip": busy.address.as_ref().map(shown), "sessions": busy.sessions,
        });
        let mut why = serde_json::Map::new();
        if busy.host.is_none() {
            why.insert("host".to_owned(), "one of the hosts that are counted together".into());
        }
        if busy.address.is_none() {
            why.insert("ip".to_owned(), "it is longer than an address".into());
        }
        if !why.is_empty() {
            row["why"] = why.into();
        }
        row
    });
    json!({"least": board.busy_from, "rows": rows.collect::<Vec<_>>()})
}

fn line(host: &str, line: &Line, board: &Board) -> Value {
    let Sums { sessions, events, duration_ms } = line.minute;
    json!({
        "host": host,
        "day": summary(&line.day), "hour": summary(&line.hour),
        "minute": {"sessions": sessions, "events": events, "duration_ms": duration_ms},
        "visitors": board.counts_visitors.then_some(line.visitors),
    })
}

fn summary(summary: &Summary) -> Value {
    let Sums { sessions, events, duration_ms } = summary.sums;
    let Summary { singles, events: of_events, duration_ms: of_durations, .. } = summary;
    json!({
        "sessions": sessions, "events": events, "duration_ms": duration_ms, "singles": singles,
        "events_median": bin(of_events.median), "events_p95": bin(of_events.p95),
        "duration_median_ms": bin(of_durations.median), "duration_p95_ms": bin(of_durations.p95),
    })
}

fn of_hour(at: i64, summary: &Summary) -> Value {
    let Sums { sessions, events, duration_ms } = summary.sums;
    let Quantiles { median: events_median, p95: events_p95 } = summary.events;
    let Quantiles { median, p95 } = summary.duration_ms;
    json!([
        at,
        sessions,
        events,
        duration_ms,
        summary.singles,
        bin(events_median),
        bin(events_p95),
        bin(median),
        bin(p95),
    ])
}

/// The lowest and the highest value of a bin.
fn bin(bin: Option<Bin>) -> Value {
    bin.map_or(Value::Null, |bin| json!([bin.lowest(), bin.highest()]))
}
