//! A report as tables for people, and how it writes single values.

use comfy_table::{
    Cell, CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets::NOTHING,
};

use crate::commands::http::printable;
use crate::commands::report::data::seconds;
use crate::commands::report::{Done, Head};
use crate::ledger::report::{ColumnType, QueryResult};
use crate::ui::text::{count, plural};

/// What is shown where there is no value.
pub const NOTHING_KNOWN: &str = "–";
/// What is shown as the host of a row about all hosts.
pub const ALL_HOSTS: &str = "all hosts";
/// In a table with more columns than this, each word of a title is on its own line.
const FEW_COLUMNS: usize = 6;
/// The least width of a column of text.
const TEXT: u16 = 12;

/// The whole report, no wider than `width` columns where that is possible.
pub fn tables(head: &Head, parts: &[Done], most: usize, width: u16) -> String {
    let mut text = format!("{}\n", wrap(&head.sentence(), width));
    for (part, answer) in parts {
        text.push_str(&format!("\n{}\n", wrap(part.question(), width)));
        if answer.rows.is_empty() {
            text.push_str("  nothing\n");
            continue;
        }
        text.push_str(&table(answer, if width < 120 { part.wide } else { &[] }, most, width));
        if answer.rows.len() > most {
            let rest = plural(answer.rows.len() - most, "more row");
            let all =
                format!("{rest}: --rows {}, or --csv --only {}", answer.rows.len(), part.name);
            text.push_str(&format!("  and {all}\n"));
        }
    }
    text
}

fn table(answer: &QueryResult, left_out: &[&str], most: usize, width: u16) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    let shown: Vec<usize> = (0..answer.columns.len())
        .filter(|at| !left_out.contains(&answer.columns[*at].0.as_str()))
        .collect();
    let cell = |at: usize, text: String| match answer.columns[at].1 {
        ColumnType::Number | ColumnType::Length => {
            Cell::new(text).set_alignment(CellAlignment::Right)
        }
        _ => Cell::new(text),
    };
    let words = |name: &str| match shown.len() {
        ..=FEW_COLUMNS => title(name),
        _ => title(name).replace(' ', "\n"),
    };
    table.set_header(shown.iter().map(|at| cell(*at, words(&answer.columns[*at].0))));
    for row in answer.rows.iter().take(most) {
        table.add_row(shown.iter().map(|at| {
            let holds = answer.columns[*at].1;
            let text = match row[*at].as_deref() {
                Some(text) => shown_as(holds, text),
                None if answer.columns[*at].0 == "host" => ALL_HOSTS.to_owned(),
                None => NOTHING_KNOWN.to_owned(),
            };
            cell(*at, text)
        }));
    }
    for (column, at) in table.column_iter_mut().zip(&shown) {
        // Only text is broken into lines.
        column.set_padding((0, 1)).set_constraint(match answer.columns[*at].1 {
            ColumnType::Text => ColumnConstraint::LowerBoundary(Width::Fixed(TEXT)),
            _ => ColumnConstraint::ContentWidth,
        });
    }
    let lines: Vec<String> =
        table.to_string().lines().map(|line| format!("{}\n", line.trim_end())).collect();
    lines.concat()
}

/// The title of a column.
pub fn title(name: &str) -> String {
    name.replace("_percent", " %").replace("_change", " ±%").replace('_', " ")
}

/// A value for people.
pub fn shown_as(holds: ColumnType, text: &str) -> String {
    match holds {
        ColumnType::Number => match text.parse::<u64>() {
            Ok(whole) => count(whole),
            Err(_) => text.to_owned(),
        },
        ColumnType::Length => length(text),
        // To the second, and without the zone, which the head names.
        ColumnType::Time => text.get(..19).unwrap_or(text).to_owned(),
        ColumnType::Day => text.to_owned(),
        ColumnType::Text => printable(text),
    }
}

/// `6:20`, `1:02:05`, `2 d 1:00:00`; whole seconds.
fn length(interval: &str) -> String {
    let whole = seconds(interval).and_then(|all| all.split('.').next()?.parse::<u64>().ok());
    let Some(all) = whole else { return interval.to_owned() };
    let (days, hours, minutes, secs) = (all / 86_400, all / 3_600 % 24, all / 60 % 60, all % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes}:{secs:02}"),
        (0, hours) => format!("{hours}:{minutes:02}:{secs:02}"),
        (days, hours) => format!("{days} d {hours}:{minutes:02}:{secs:02}"),
    }
}

/// Breaks a text into lines.
fn wrap(text: &str, width: u16) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is a line");
        let needed = line.chars().count() + 1 + word.chars().count();
        if line.is_empty() {
            line.push_str(word);
        } else if needed <= usize::from(width) {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_for_people() {
        for (holds, text, want) in [
            (ColumnType::Number, "1234567", "1,234,567"),
            (ColumnType::Number, "-33.3", "-33.3"),
            (ColumnType::Length, "00:06:20.9", "6:20"),
            (ColumnType::Length, "01:02:05", "1:02:05"),
            (ColumnType::Length, "2 days 01:00:00", "2 d 1:00:00"),
            (ColumnType::Time, "2024-03-05 10:00:00.123+00", "2024-03-05 10:00:00"),
            (ColumnType::Text, "a\u{1b}[2Jb", "a\u{fffd}[2Jb"),
        ] {
            assert_eq!(shown_as(holds, text), want);
        }
        assert_eq!(title("one_event_percent"), "one event %");
    }
}
