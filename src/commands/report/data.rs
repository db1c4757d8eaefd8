//! A report as JSON and as CSV.

use serde_json::{Map, Value, json};

use crate::commands::report::{Done, Head};
use crate::ledger::report::{ColumnType, QueryResult};

/// What a spreadsheet takes for the beginning of a formula.
const FORMULA: [char; 7] = ['=', '+', '-', '@', '\t', '\r', '\n'];

/// The whole report.
pub fn json(head: &Head, parts: &[Done]) -> Value {
    let part = |(part, answer): &Done| {
        let columns = answer.columns.iter().map(|(name, holds)| {
            let holds = match holds {
                ColumnType::Text => "text",
                ColumnType::Number => "number",
                ColumnType::Day => "day",
                ColumnType::Time => "time",
                ColumnType::Length => "seconds",
            };
            json!({"name": name, "holds": holds})
        });
        let columns: Vec<Value> = columns.collect();
        json!({
            "name": part.name,
            "question": part.question(),
            "notes": part.notes(),
            "columns": columns,
            "rows": rows(answer),
        })
    };
    let parts: Vec<Value> = parts.iter().map(part).collect();
    json!({
        "job": head.job,
        "table": head.table,
        "as_of": head.as_of,
        "from": head.filter.from,
        "to": head.filter.to,
        "hosts": head.filter.hosts,
        "time_zone": head.filter.time_zone,
        "addresses": if head.addresses { "full" } else { "masked" },
        "parts": parts,
    })
}

fn rows(answer: &QueryResult) -> Vec<Map<String, Value>> {
    let row = |row: &Vec<Option<String>>| {
        let cells = answer.columns.iter().zip(row);
        cells.map(|((name, holds), cell)| (name.clone(), value(*holds, cell.as_deref()))).collect()
    };
    answer.rows.iter().map(row).collect()
}

fn value(holds: ColumnType, cell: Option<&str>) -> Value {
    let Some(cell) = cell else { return Value::Null };
    match holds {
        ColumnType::Number => number(cell),
        ColumnType::Length => seconds(cell).map_or(Value::Null, |seconds| number(&seconds)),
        ColumnType::Time => iso(cell).into(),
        ColumnType::Day | ColumnType::Text => cell.into(),
    }
}

fn number(text: &str) -> Value {
    match text.parse::<i64>() {
        Ok(whole) => whole.into(),
        Err(_) => text.parse::<f64>().map_or(Value::Null, Value::from),
    }
}

/// One part.
pub fn csv(answer: &QueryResult) -> String {
    let mut text = String::new();
    let names: Vec<String> = answer.columns.iter().map(|(name, _)| quoted(name)).collect();
    text.push_str(&names.join(","));
    text.push('\n');
    for row in &answer.rows {
        let cells = answer.columns.iter().zip(row).map(|((_, holds), cell)| {
            let Some(cell) = cell.as_deref() else { return String::new() };
            match holds {
                ColumnType::Number | ColumnType::Day => cell.to_owned(),
                ColumnType::Time => iso(cell),
                ColumnType::Length => seconds(cell).unwrap_or_default(),
                ColumnType::Text => quoted(&harmless(cell)),
            }
        });
        text.push_str(&cells.collect::<Vec<_>>().join(","));
        text.push('\n');
    }
    text
}

/// Text that no spreadsheet takes for a formula.
fn harmless(text: &str) -> String {
    if text.starts_with(FORMULA) { format!("'{text}") } else { text.to_owned() }
}

fn quoted(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

/// `2024-03-05 10:00:00.5+00` as `2024-03-05T10:00:00.5+00:00`.
fn iso(time: &str) -> String {
    let time = time.replacen(' ', "T", 1);
    let zone = time.rfind(['+', '-']).filter(|at| time.find('T').is_some_and(|t| *at > t));
    match zone {
        Some(at) if time.len() - at == 3 => format!("{time}:00"),
        _ => time,
    }
}

/// The seconds of an interval: of `1 day 00:06:20.5`, 86780.5. Parts of seconds stay as they are.
pub fn seconds(interval: &str) -> Option<String> {
    let (days, time) = match interval.split_once(" day") {
        Some((days, rest)) => {
            let time = rest.trim_start_matches('s').trim();
            (days.parse::<i64>().ok()?, if time.is_empty() { "00:00:00" } else { time })
        }
        None => (0, interval),
    };
    let (sign, time) = match time.strip_prefix('-') {
        Some(time) => (-1, time),
        None => (1, time),
    };
    let mut fields = time.split(':');
    let whole = |field: Option<&str>| field?.parse::<i64>().ok();
    let (hours, minutes) = (whole(fields.next())?, whole(fields.next())?);
    let last = fields.next()?;
    let (secs, part) = last.split_once('.').unwrap_or((last, ""));
    let all = days * 86_400 + sign * (hours * 3_600 + minutes * 60 + secs.parse::<i64>().ok()?);
    match part {
        "" => Some(all.to_string()),
        part if all == 0 && sign < 0 => Some(format!("-0.{part}")),
        part => Some(format!("{all}.{part}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_become_seconds() {
        for (interval, want) in [
            ("00:06:20", "380"),
            ("1 day 00:06:20.5", "86780.5"),
            ("2 days", "172800"),
            ("26:00:00", "93600"),
            ("-00:00:00.25", "-0.25"),
        ] {
            assert_eq!(seconds(interval).as_deref(), Some(want), "{interval}");
        }
        assert_eq!(seconds("1 mon"), None);
    }

    #[test]
    fn times_are_those_of_iso_8601() {
        for (time, want) in [
            ("2024-03-05 10:00:00.5+00", "2024-03-05T10:00:00.5+00:00"),
            ("2024-03-05 10:00:00-03:30", "2024-03-05T10:00:00-03:30"),
            ("2024-03-05 10:00:00", "2024-03-05T10:00:00"),
        ] {
            assert_eq!(iso(time), want);
        }
    }

    #[test]
    fn a_spreadsheet_finds_no_formula() {
        let columns =
            vec![("host".to_owned(), ColumnType::Text), ("change".to_owned(), ColumnType::Number)];
        let row = |host: &str, n: &str| vec![Some(host.to_owned()), Some(n.to_owned())];
        let rows = vec![
            row("=HYPERLINK(\"http://e\",\"x\")", "-1.5"),
            row("@SUM(A1)", "2"),
            row("+1", "3"),
            row("-1", "4"),
            row("\tx", "5"),
            row("a,b\nc", "6"),
            vec![None, None],
        ];
        assert_eq!(
            csv(&QueryResult { columns, rows }),
            "host,change\n\"'=HYPERLINK(\"\"http://e\"\",\"\"x\"\")\",-1.5\n'@SUM(A1),2\n'+1,3\n\
             '-1,4\n'\tx,5\n\"a,b\nc\",6\n,\n"
        );
    }
}
