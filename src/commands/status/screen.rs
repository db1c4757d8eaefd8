//! The screen of `sessionizer status`, as a pure function of the document and the size.

mod live;

use std::time::Duration;

use serde_json::Value;

use crate::commands::http::printable;
use crate::monitor::sentence::clock;
use crate::ui::text::{bytes, count, duration, plural};

/// How many partitions and writers are shown.
const PARTS: usize = 12;
const WRITERS: usize = 8;

/// The most that is shown of each table, and whether there are empty lines in between, in steps
/// until the screen fits.
const STEPS: [(usize, bool); 7] =
    [(usize::MAX, true), (8, true), (5, true), (3, true), (3, false), (2, false), (1, false)];

/// The screen. If it has a height, less is shown of each table until all of them fit.
pub fn screen(document: &Value, width: usize, height: Option<usize>) -> String {
    let mut lines = Vec::new();
    for (most, is_loose) in STEPS {
        lines = all_lines(document, width, most);
        lines.retain(|line| is_loose || !line.is_empty());
        if height.is_none_or(|height| lines.len() <= height) {
            break;
        }
    }
    let cut = |line: String| match line.char_indices().nth(width) {
        Some((at, _)) => line[..at].trim_end().to_owned() + "\n",
        None => line.trim_end().to_owned() + "\n",
    };
    lines.into_iter().map(cut).collect()
}

fn all_lines(document: &Value, width: usize, most: usize) -> Vec<String> {
    let mut last_day = live::hosts(document, width, most);
    last_day.extend(live::visitors(document, width));
    let mut anomalies = live::anomalies(document, width, most);
    let mut end = ends(document);
    // A single line needs no block of its own.
    if anomalies.len() == 1 {
        end.splice(..0, anomalies.drain(..));
    }
    let blocks = [
        head(document),
        figures(document),
        partitions(document, most),
        writers(document, most),
        last_day,
        anomalies,
        end,
    ];
    let blocks: Vec<Vec<String>> = blocks.into_iter().filter(|block| !block.is_empty()).collect();
    blocks.join(&String::new())
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

fn partitions(document: &Value, most: usize) -> Vec<String> {
    let most = PARTS.min(most);
    let block = &document["partitions"];
    let all = rows(block);
    let mut lines =
        vec![words(["partition", "offset", "to read", "lag", "/s", "promise", "state"])];
    for part in all.iter().take(most) {
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
    let more = total.saturating_sub(all.len().min(most));
    if more > 0 {
        lines.push(format!("and {}", plural(more, "more partition")));
    }
    lines
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn writers(document: &Value, most: usize) -> Vec<String> {
    let most = WRITERS.min(most);
    let all = rows(&document["writers"]);
    let mut lines = vec![words(["writer", "commits", "sessions", "took", "waiting", "state"])];
    for writer in all.iter().take(most) {
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
    if all.len() > most {
        lines.push(format!("and {}", plural(all.len() - most, "more writer")));
    }
    lines
}

fn ends(document: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let balance = &document["balance"];
    match balance["difference"].as_i64() {
        None => lines.push(format!("balance: – ({})", text(&balance["why"]["difference"]))),
        Some(difference) => {
            let further = |what: &str| match balance[what].as_i64() {
                Some(0) | None => String::new(),
                Some(_) => format!(" + {} {what}", number(&balance[what])),
            };
            let (lost, forgotten) = (further("lost"), further("forgotten"));
            let verdict = match difference {
                0 => "it adds up".to_owned(),
                off => format!("IT IS OFF BY {off}"),
            };
            lines.push(format!(
                "balance of {}: {verdict}: {} records = {} closed + {} open + {} \
                 dead{lost}{forgotten}",
                balance["as_of"].as_u64().map_or("–".to_owned(), clock),
                number(&balance["records"]),
                number(&balance["closed"]),
                number(&balance["open"]),
                number(&balance["dead"]),
            ));
        }
    }
    lines.push(proof(document));
    let letters = rows(&document["dead_letters"]);
    if !letters.is_empty() {
        let of = |row: &Value| format!("{} {}", number(&row["count"]), text(&row["reason"]));
        let shown: Vec<String> = letters.iter().take(4).map(of).collect();
        lines.push(format!("dead letters: {}", shown.join(", ")));
    }
    lines
}

fn proof(document: &Value) -> String {
    let proof = &document["proof"];
    let Some(differences) = proof["differences"].as_i64() else {
        return format!("audit: – ({})", text(&proof["why"]["differences"]));
    };
    let verdict = match differences {
        0 => "equal".to_owned(),
        1 => "1 DIFFERENCE".to_owned(),
        more => format!("{} DIFFERENCES", count(more.unsigned_abs())),
    };
    let through = match proof["verified_through"].as_i64() {
        Some(_) => format!(", through {} ago", age(document, &proof["verified_through"])),
        None => String::new(),
    };
    let unverifiable = match proof["unverifiable"].as_i64() {
        Some(1..) => format!(", {} cannot be verified", number(&proof["unverifiable"])),
        _ => String::new(),
    };
    let ago = age(document, &proof["audited_at"]);
    let rows = number(&proof["rows"]);
    format!("audited {ago} ago{through}: {verdict}, {rows} rows{unverifiable}")
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
            "proof": {"verified_through": 1_790_250_605_000_u64, "audited_at": 1_790_250_665_000_u64,
                      "differences": 0, "unverifiable": 0, "rows": 1_203, "kind": "incremental"},
            "dead_letters": {"rows": [{"reason": "bad_json", "count": 3}]},
            "statistics": {"state": "counting", "hosts": 1, "hosts_limit": 10_000},
            "statistics_all": {"rows": []},
            "statistics_hosts": {"rows": [
                {"host": "www.example", "hour": {"sessions": 1_020}, "visitors": null,
                 "day": {"sessions": 20_412, "events": 81_648, "singles": 10_206,
                         "duration_ms": 4_082_400_000_u64}}], "other": {"hosts": 0}},
            "statistics_visitors": {"rows": null},
            "anomalies": {"live": 1, "rows": [
                {"kind": "burst", "host": "www.example", "subject": "192.0.2.1",
                 "at": 1_790_251_200_000_u64, "reason": "412 events in 31 s"}]},
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
and 12 more partitions

writer  commits  sessions   took  waiting  state
0           812     1,203  12 ms        2  failing for 12 s: refused

sessions by host  last hour  last day  events each      length  one event
www.example           1,020    20,412          4.0  3 min 20 s       50 %

anomalies: 1
  2026-09-24 12:00 burst of 192.0.2.1 at www.example
    412 events in 31 s

balance of 12:03: it adds up: 10 records = 5 closed + 4 open + 1 dead
audited 12 min ago, through 13 min ago: equal, 1,203 rows
dead letters: 3 bad_json
";
        assert_eq!(screen(&document(), 80, None), want);
    }

    #[test]
    fn a_screen_that_is_too_low_shows_less_of_each_table() {
        let mut many = document();
        let partition = many["partitions"]["rows"][0].clone();
        many["partitions"]["rows"] = vec![partition; 14].into();
        let lines = |height| screen(&many, 80, height).lines().count();
        assert_eq!(lines(None), 37);
        assert!(lines(Some(30)) <= 30 && lines(Some(30)) > 24);
        assert!(lines(Some(23)) <= 23, "{}", screen(&many, 80, Some(23)));
        let low = screen(&many, 80, Some(1));
        assert!(low.contains("\nand 13 more partitions\n"), "{low}");
        assert!(low.contains("audited 12 min ago"), "nothing is left out entirely: {low}");
    }

    #[test]
    fn a_document_of_which_nothing_is_known_is_shown_and_no_line_is_too_wide() {
        assert!(screen(&json!({}), 80, None).starts_with("–\n"));
        for line in screen(&document(), 40, None).lines() {
            assert!(line.chars().count() <= 40, "{line}");
        }
        let mut off = document();
        off["balance"]["difference"] = 7.into();
        assert!(screen(&off, 100, None).contains("IT IS OFF BY 7"));
        off["proof"]["differences"] = 2.into();
        off["proof"]["unverifiable"] = 7.into();
        let said = "through 13 min ago: 2 DIFFERENCES, 1,203 rows, 7 cannot be verified";
        assert!(screen(&off, 100, None).contains(said), "{}", screen(&off, 100, None));
    }
}
