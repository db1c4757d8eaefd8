//! The screen of `sessionizer status`, as a pure function of the document and the width.

use std::time::Duration;

use serde_json::Value;

use crate::commands::http::printable;
use crate::monitor::sentence::clock;
use crate::ui::text::{bytes, count, duration};

/// How many partitions and writers are shown.
const PARTS: usize = 12;
const WRITERS: usize = 8;

/// The screen.
pub fn screen(document: &Value, width: usize) -> String {
    let mut lines = head(document);
    lines.push(String::new());
    lines.extend(figures(document));
    lines.push(String::new());
    lines.extend(partitions(document));
    lines.push(String::new());
    lines.extend(writers(document));
    lines.push(String::new());
    lines.extend(ends(document));
    let cut = |line: String| match line.char_indices().nth(width) {
        Some((at, _)) => line[..at].trim_end().to_owned() + "\n",
        None => line.trim_end().to_owned() + "\n",
    };
    lines.into_iter().map(cut).collect()
}

fn text(value: &Value) -> String {
    printable(value.as_str().unwrap_or("–"))
}

/// A count, or a dash.
fn number(value: &Value) -> String {
    value.as_f64().map_or("–".to_owned(), |n| count(n.max(0.0).round() as u64))
}

fn seconds(value: &Value) -> String {
    let time = value.as_f64().map(|seconds| Duration::from_secs_f64(seconds.clamp(0.0, 1e9)));
    time.map_or("–".to_owned(), duration)
}

/// How long before the document a time was.
fn age(document: &Value, at: &Value) -> String {
    let now = document["at"].as_i64().unwrap_or(0);
    match at.as_i64() {
        None => "–".to_owned(),
        Some(at) => duration(Duration::from_millis(now.saturating_sub(at).max(0) as u64)),
    }
}

fn head(document: &Value) -> Vec<String> {
    let (sentence, job) = (&document["sentence"], &document["job"]);
    let mut lines = vec![text(&sentence["text"])];
    if let Some(cause) = sentence["cause"].as_str() {
        let cause = printable(cause);
        if !lines[0].contains(&cause) {
            lines.push(format!("  {cause}"));
        }
    }
    let process = match (job["processes"].as_u64(), job["scope"].as_str()) {
        (Some(2..), Some("process")) => {
            format!(", the figures of process {} of {}", job["process"], job["processes"])
        }
        (Some(processes @ 2..), _) => format!(", {processes} processes"),
        _ => String::new(),
    };
    lines.push(format!(
        "job {} into {}{process}; running for {}; {} ({})",
        text(&job["name"]),
        text(&job["table"]),
        age(document, &job["started_at"]),
        text(&document["version"]),
        text(&document["revision"]),
    ));
    if let Some(why) = document["health"]["ready"]["text"].as_str() {
        lines.push(format!("not ready: {}", printable(why)));
    }
    lines
}

fn figures(document: &Value) -> Vec<String> {
    let tiles = &document["tiles"];
    let row = |cells: [(&str, String); 3]| {
        let cell = |(name, value): &(&str, String)| format!("{:<26}", format!("{name} {value}"));
        cells.iter().map(cell).collect::<String>()
    };
    let memory = |value: &Value| value.as_u64().map_or("–".to_owned(), bytes);
    vec![
        row([
            ("events/s", number(&tiles["events_per_s"])),
            ("lag", seconds(&tiles["lag_s"])),
            ("records to read", number(&tiles["lag_records"])),
        ]),
        row([
            ("sessions/s", number(&tiles["sessions_per_s"])),
            ("durable in", seconds(&tiles["durable_delay_s"])),
            ("open sessions", number(&tiles["open_sessions"])),
        ]),
        row([
            ("rows", number(&tiles["rows"])),
            ("watermark", format!("{} ago", age(document, &tiles["watermark"]))),
            ("dead letters", number(&tiles["dead_letters"])),
        ]),
        row([
            ("records", number(&tiles["records"])),
            ("late merged", number(&tiles["late_sessions"])),
            ("in flight", memory(&tiles["memory_used"])),
        ]),
    ]
}

fn rows(block: &Value) -> &[Value] {
    block["rows"].as_array().map_or(&[], Vec::as_slice)
}

/// Lines of cells, each column as wide as needed. The first and the last are left-aligned.
fn table(lines: &[Vec<String>]) -> Vec<String> {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| {
        let cells = lines.iter().filter_map(|line| line.get(at));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |cells: &Vec<String>| {
        let cells = cells.iter().enumerate().map(|(at, cell)| match at {
            at if at == 0 || at + 1 == columns => format!("{cell:<width$}", width = widths[at]),
            at => format!("{cell:>width$}", width = widths[at]),
        });
        cells.collect::<Vec<_>>().join("  ")
    };
    lines.iter().map(line).collect()
}

fn partitions(document: &Value) -> Vec<String> {
    let block = &document["partitions"];
    let all = rows(block);
    let mut lines =
        vec![words(["partition", "offset", "to read", "lag", "/s", "promise", "state"])];
    for part in all.iter().take(PARTS) {
        let state = match part["holds_back"].as_bool() {
            Some(true) => format!("{}, holds back", text(&part["state"])),
            _ => text(&part["state"]),
        };
        lines.push(vec![
            text(&part["id"]),
            number(&part["offset"]),
            number(&part["lag_records"]),
            seconds(&part["lag_s"]),
            number(&part["rate"]),
            age(document, &part["promise"]),
            state.replace('_', " "),
        ]);
    }
    let mut lines = table(&lines);
    let total = block["total"].as_u64().unwrap_or(0) as usize;
    if total > PARTS {
        lines.push(format!("and {} more partitions", count((total - PARTS) as u64)));
    }
    lines
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn writers(document: &Value) -> Vec<String> {
    let all = rows(&document["writers"]);
    let mut lines = vec![words(["writer", "commits", "sessions", "took", "waiting", "state"])];
    for writer in all.iter().take(WRITERS) {
        let state = match (writer["failing_since"].as_i64(), writer["committing_since"].as_i64()) {
            (Some(_), _) => format!(
                "failing for {}: {}",
                age(document, &writer["failing_since"]),
                text(&writer["error"])
            ),
            (None, Some(_)) => {
                format!("committing for {}", age(document, &writer["committing_since"]))
            }
            (None, None) => "idle".to_owned(),
        };
        let took = writer["last_commit_ms"].as_f64();
        lines.push(vec![
            writer["writer"].to_string(),
            number(&writer["commits"]),
            number(&writer["rows"]),
            took.map_or("–".to_owned(), |ms| format!("{ms:.0} ms")),
            number(&writer["waiting_epochs"]),
            state,
        ]);
    }
    let mut lines = table(&lines);
    if all.len() > WRITERS {
        lines.push(format!("and {} more writers", all.len() - WRITERS));
    }
    lines
}

fn ends(document: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let balance = &document["balance"];
    match balance["difference"].as_i64() {
        None => lines.push(format!("balance: – ({})", text(&balance["why"]["difference"]))),
        Some(difference) => {
            let lost = match balance["lost"].as_i64() {
                Some(0) | None => String::new(),
                Some(_) => format!(" + {} lost", number(&balance["lost"])),
            };
            let verdict = match difference {
                0 => "it adds up".to_owned(),
                off => format!("IT IS OFF BY {off}"),
            };
            lines.push(format!(
                "balance of {}: {verdict}: {} records = {} closed + {} open + {} dead{lost}",
                balance["as_of"].as_u64().map_or("–".to_owned(), clock),
                number(&balance["records"]),
                number(&balance["closed"]),
                number(&balance["open"]),
                number(&balance["dead"]),
            ));
        }
    }
    let letters = rows(&document["dead_letters"]);
    if !letters.is_empty() {
        let of = |row: &Value| format!("{} {}", number(&row["count"]), text(&row["reason"]));
        let shown: Vec<String> = letters.iter().take(4).map(of).collect();
        lines.push(format!("dead letters: {}", shown.join(", ")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document() -> Value {
        json!({
            "at": 1_790_251_385_000_u64, "version": "0.1.0", "revision": "abc",
            "job": {"name": "web", "table": "public.s", "processes": 1, "process": 0,
                    "scope": "job", "started_at": 1_790_251_325_000_u64},
            "sentence": {"text": "waiting for Postgres (12 s, retrying: refused)", "cause": "refused"},
            "health": {"ready": {"ok": false, "text": "waiting"}},
            "tiles": {"events_per_s": 10_012.4, "lag_s": 0.2, "lag_records": 34, "rows": 12,
                      "sessions_per_s": null, "durable_delay_s": 0.41, "open_sessions": 123_456,
                      "watermark": 1_790_251_370_000_u64, "dead_letters": 3, "records": 5,
                      "late_sessions": 0, "memory_used": 1_048_576},
            "partitions": {"total": 14, "rows": [
                {"id": "web/3", "offset": 123_456, "lag_records": 34, "lag_s": 0.2, "rate": 2_503.0,
                 "promise": 1_790_251_370_000_u64, "state": "held_up", "holds_back": true},
                {"id": "web/\u{1b}[2J", "offset": 0, "lag_records": null, "lag_s": null,
                 "rate": null, "promise": null, "state": "idle", "holds_back": false}]},
            "writers": {"rows": [
                {"writer": 0, "commits": 812, "rows": 1_203, "last_commit_ms": 12.1,
                 "waiting_epochs": 2, "failing_since": 1_790_251_373_000_u64, "error": "refused"}]},
            "balance": {"as_of": 1_790_251_380_000_u64, "records": 10, "closed": 5, "open": 4,
                        "dead": 1, "lost": 0, "difference": 0},
            "dead_letters": {"rows": [{"reason": "bad_json", "count": 3}]},
        })
    }

    #[test]
    fn one_screen_has_it_all() {
        let want = "\
waiting for Postgres (12 s, retrying: refused)
job web into public.s; running for 1 min; 0.1.0 (abc)
not ready: waiting

events/s 10,012           lag 0.2 s                 records to read 34
sessions/s –              durable in 0.4 s          open sessions 123,456
rows 12                   watermark 15 s ago        dead letters 3
records 5                 late merged 0             in flight 1 MiB

partition   offset  to read    lag     /s  promise  state
web/3      123,456       34  0.2 s  2,503     15 s  held up, holds back
web/\u{fffd}[2J         0        –      –      –        –  idle
and 2 more partitions

writer  commits  sessions   took  waiting  state
0           812     1,203  12 ms        2  failing for 12 s: refused

balance of 12:03: it adds up: 10 records = 5 closed + 4 open + 1 dead
dead letters: 3 bad_json
";
        assert_eq!(screen(&document(), 80), want);
    }

    #[test]
    fn a_document_of_which_nothing_is_known_is_shown_and_no_line_is_too_wide() {
        assert!(screen(&json!({}), 80).starts_with("–\n"));
        for line in screen(&document(), 40).lines() {
            assert!(line.chars().count() <= 40, "{line}");
        }
        let mut off = document();
        off["balance"]["difference"] = 7.into();
        assert!(screen(&off, 100).contains("IT IS OFF BY 7"));
    }
}
