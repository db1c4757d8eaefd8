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
/// And of how many reasons of dead letters.
const LETTERS: usize = 4;

/// With fewer lines of each table, it is better to have no empty lines in between.
const LOOSE: usize = 3;

/// The screen. If it has a height, less is shown of each table until all of them fit.
pub fn screen(document: &Value, width: usize, height: Option<usize>) -> String {
    let mut lines = Vec::new();
    let loose = (LOOSE..=PARTS).rev().map(|most| (most, true));
    for (most, is_loose) in loose.chain((1..=PARTS).rev().map(|most| (most, false))) {
        lines = all_lines(document, width, most);
        lines.retain(|line| is_loose || !line.is_empty());
        if height.is_none_or(|height| lines.len() <= height) {
            break;
        }
    }
    lines.into_iter().map(|line| cut(line.trim_end(), width) + "\n").collect()
}

/// What fits into a width; an ellipsis says that there is more.
pub fn cut(line: &str, width: usize) -> String {
    match line.chars().count() > width {
        true => line.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
        false => line.to_owned(),
    }
}

/// How many of a table's rows are shown. The last one is not left out for a line that says so.
fn rows_shown(all: usize, most: usize) -> usize {
    if all == most + 1 { all } else { all.min(most) }
}

fn all_lines(document: &Value, width: usize, most: usize) -> Vec<String> {
    let mut last_day = live::hosts(document, width, most);
    last_day.extend(live::visitors(document, width));
    let mut anomalies = live::anomalies(document, width, most);
    let mut end: Vec<String> =
        ends(document).iter().flat_map(|line| live::continued(line, width)).collect();
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

/// A rate: below 10, the decimal says something.
fn rate(value: &Value) -> String {
    match value.as_f64() {
        Some(rate) if rate > 0.0 && rate < 0.05 => "< 0.1".to_owned(),
        Some(rate) if (0.0..9.95).contains(&rate) => format!("{}", (rate * 10.0).round() / 10.0),
        _ => number(value),
    }
}

fn seconds(value: &Value) -> String {
    if value.as_f64().is_some_and(|seconds| seconds > 0.0 && seconds < 0.05) {
        return "< 0.1 s".to_owned();
    }
    let time = value.as_f64().map(|seconds| Duration::from_secs_f64(seconds.clamp(0.0, 1e9)));
    time.map_or("–".to_owned(), duration)
}

/// When the document was made.
fn as_of(document: &Value) -> String {
    let at = document["at"].as_u64();
    at.map_or("–".to_owned(), |at| format!("{}:{:02} UTC", clock(at), at / 1_000 % 60))
}

/// How long ago a time was.
fn ago(document: &Value, at: &Value) -> String {
    match at.is_number() {
        true => format!("{} ago", age(document, at)),
        false => "–".to_owned(),
    }
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
        "job {} into {}{process}; as of {}, running for {}; {} ({})",
        text(&job["name"]),
        text(&job["table"]),
        as_of(document),
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
            ("events/s", rate(&tiles["events_per_s"])),
            ("lag", seconds(&tiles["lag_s"])),
            ("records to read", number(&tiles["lag_records"])),
        ]),
        row([
            ("sessions/s", rate(&tiles["sessions_per_s"])),
            ("durable in", seconds(&tiles["durable_delay_s"])),
            ("open sessions", number(&tiles["open_sessions"])),
        ]),
        row([
            ("rows", number(&tiles["rows"])),
            ("watermark", ago(document, &tiles["watermark"])),
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
    let block = &document["partitions"];
    let all = rows(block);
    let total = (block["total"].as_u64().unwrap_or(0) as usize).max(all.len());
    let most = rows_shown(total, PARTS.min(most));
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
            rate(&part["rate"]),
            age(document, &part["promise"]),
            state.replace('_', " "),
        ]);
    }
    let mut lines = table(&lines);
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
    let all = rows(&document["writers"]);
    let most = rows_shown(all.len(), WRITERS.min(most));
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
            (None, None) => "ready".to_owned(),
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
        let most = rows_shown(letters.len(), LETTERS);
        let mut shown: Vec<String> = letters.iter().take(most).map(of).collect();
        if letters.len() > most {
            shown.push(format!("and {} more", letters.len() - most));
        }
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
        1 => "1 DIFFERENCE, `sessionizer audit` shows it".to_owned(),
        more => {
            let more = count(more.unsigned_abs());
            format!("{more} DIFFERENCES, `sessionizer audit` shows them")
        }
    };
    let through = match proof["verified_through"].as_i64() {
        Some(_) => format!(", up to {} ago", age(document, &proof["verified_through"])),
        None => String::new(),
    };
    let unverifiable = match proof["unverifiable"].as_i64() {
        Some(1..) => format!(", {} cannot be verified", number(&proof["unverifiable"])),
        _ => String::new(),
    };
    let ago = age(document, &proof["audited_at"]);
    let rows = number(&proof["rows"]);
    format!("audited {ago} ago{through}: {verdict}; {rows} rows{unverifiable}")
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
job web into public.s; as of 12:03:05 UTC, running for 1 min; 0.1.0 (abc)
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
audited 12 min ago, up to 13 min ago: equal; 1,203 rows
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
        let said = "\naudited 12 min ago, up to 13 min ago: 2 DIFFERENCES, `sessionizer audit` shows them; \
                    1,203 rows, 7\n  cannot be verified\n";
        assert!(screen(&off, 100, None).contains(said), "{}", screen(&off, 100, None));
        off["proof"]["differences"] = 1.into();
        assert!(screen(&off, 100, None).contains("1 DIFFERENCE, `sessionizer audit` shows it;"));
    }

    #[test]
    fn what_is_cut_ends_in_an_ellipsis_and_without_a_terminal_nothing_is() {
        let mut long = document();
        long["job"]["name"] = "j".repeat(100).into();
        long["balance"]["records"] = 123_456_789_012_u64.into();
        let narrow = screen(&long, 80, None);
        assert!(narrow.contains(&format!("\njob {}…\n", "j".repeat(75))), "{narrow}");
        // A sum goes on in the next line.
        assert!(
            narrow.contains("123,456,789,012 records = 5 closed + 4 open + 1\n  dead\n"),
            "{narrow}"
        );
        let piped = screen(&long, usize::MAX, None);
        assert!(!piped.contains('…') && piped.contains("; 0.1.0 (abc)\n"), "{piped}");
        assert!(piped.contains("5 closed + 4 open + 1 dead\n"), "{piped}");
    }

    #[test]
    fn no_single_row_is_replaced_by_a_line_that_says_so() {
        let mut many = document();
        let partition = many["partitions"]["rows"][0].clone();
        let letter = many["dead_letters"]["rows"][0].clone();
        for (all, said) in [(12, None), (13, None), (14, Some("\nand 2 more partitions\n"))] {
            many["partitions"] = json!({"total": all, "rows": vec![partition.clone(); all]});
            let shown = screen(&many, 80, None);
            assert_eq!(shown.contains("\nand "), said.is_some(), "{all}: {shown}");
            assert!(said.is_none_or(|said| shown.contains(said)), "{all}: {shown}");
        }
        for (all, ends) in [(5, "3 bad_json, 3 bad_json\n"), (7, "3 bad_json, and 3 more\n")] {
            many["dead_letters"]["rows"] = vec![letter.clone(); all].into();
            assert!(screen(&many, 80, None).ends_with(ends), "{}", screen(&many, 80, None));
        }
        // Whatever the height is, at most as much is empty as one more row of each table needs.
        for height in 22..40 {
            let lines = screen(&many, 80, Some(height)).lines().count();
            assert!(lines <= height && lines + 4 > height.min(37), "{lines} of {height}");
        }
    }

    #[test]
    fn what_is_small_is_not_shown_as_nothing() {
        let rates = [0.0, 0.01, 0.44, 1.0, 9.94, 9.96, 1_234.5].map(|n| rate(&json!(n)));
        assert_eq!(rates, ["0", "< 0.1", "0.4", "1", "9.9", "10", "1,235"]);
        let times = [0.0, 0.01, 0.05, 12.0].map(|n| seconds(&json!(n)));
        assert_eq!(times, ["0 s", "< 0.1 s", "0.1 s", "12 s"]);
        assert_eq!(rate(&Value::Null), "–");
        let mut empty = document();
        empty["tiles"]["watermark"] = Value::Null;
        empty["writers"]["rows"][0]["failing_since"] = Value::Null;
        let shown = screen(&empty, 80, None);
        assert!(shown.contains(" watermark –  ") && shown.contains("  ready\n"), "{shown}");
    }
}
