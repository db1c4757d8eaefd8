//! The screen of `sessionizer status`, as a pure function of the document and the size.

mod live;
#[cfg(test)]
mod tests;

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

/// How wide the columns of the figures are, unless one of them needs more.
const FIGURE_WIDTH: usize = 26;

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
        figures(document, width),
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

fn figures(document: &Value, width: usize) -> Vec<String> {
    let tiles = &document["tiles"];
    let memory = |value: &Value| value.as_u64().map_or("–".to_owned(), bytes);
    let figures = [
        ("events/s", rate(&tiles["events_per_s"])),
        ("lag", seconds(&tiles["lag_s"])),
        ("records to read", number(&tiles["lag_records"])),
        ("sessions/s", rate(&tiles["sessions_per_s"])),
        ("durable in", seconds(&tiles["durable_delay_s"])),
        ("open sessions", number(&tiles["open_sessions"])),
        ("rows", number(&tiles["rows"])),
        ("watermark", ago(document, &tiles["watermark"])),
        ("dead letters", number(&tiles["dead_letters"])),
        ("records", number(&tiles["records"])),
        ("late merged", number(&tiles["late_sessions"])),
        ("in flight", memory(&tiles["memory_used"])),
    ];
    in_columns(&figures.map(|(name, value)| format!("{name} {value}")), width)
}

/// Cells in at most three columns, or as many as fit, with at least one blank between them.
fn in_columns(cells: &[String], width: usize) -> Vec<String> {
    let layouts = [3, 2, 1].into_iter().flat_map(|columns| {
        [(FIGURE_WIDTH, 2), (0, 2), (0, 1)].map(|(least, gap)| (columns, least, gap))
    });
    let mut lines = Vec::new();
    for (columns, least, gap) in layouts {
        let widest = |column: usize| {
            let cells = cells.iter().skip(column).step_by(columns);
            (cells.map(|cell| cell.chars().count()).max().unwrap_or(0) + gap).max(least)
        };
        let widths: Vec<usize> = (0..columns).map(widest).collect();
        let line = |row: &[String]| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            cells.collect::<String>().trim_end().to_owned()
        };
        lines = cells.chunks(columns).map(line).collect();
        if lines.iter().all(|line| line.chars().count() <= width) {
            break;
        }
    }
    lines
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
