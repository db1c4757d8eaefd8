//! The charts of the page: plain HTML and SVG, no script. Labels are HTML, so they keep their size
//! on any screen; only what is drawn stretches.

use std::fmt::Write;

use crate::commands::report::data::seconds;
use crate::commands::report::html::{cell_text, escape, foreign};
use crate::commands::report::parts::Chart;
use crate::commands::report::tables::{ALL_HOSTS, NOTHING_KNOWN, shown_as, title};
use crate::ledger::report::{ColumnType, QueryResult};

/// How many bars and lines a chart has; the table below has them all.
const BARS: usize = 12;
const LINES: usize = 5;
/// How many shades a cell of a heat map can have.
const SHADES: u64 = 10;

/// The chart of some rows; empty if there is none to draw.
pub fn chart(chart: Chart, answer: &QueryResult) -> String {
    if answer.rows.is_empty() {
        return String::new();
    }
    match chart {
        Chart::Bars(label, value) => bars(answer, label, value),
        Chart::Lines(at, height) => lines(answer, at, height),
        Chart::Nothing | Chart::Heat => String::new(),
    }
}

/// The index of a column.
fn column(answer: &QueryResult, name: &str) -> usize {
    let place = answer.columns.iter().position(|(column, _)| column == name);
    place.expect("a chart names a column of its query")
}

/// A value as a number; lengths in seconds.
fn number(answer: &QueryResult, at: usize, row: &[Option<String>]) -> Option<f64> {
    let text = row[at].as_deref()?;
    match answer.columns[at].1 {
        ColumnType::Length => seconds(text)?.parse().ok(),
        _ => text.parse().ok(),
    }
}

fn bars(answer: &QueryResult, label: &str, value: &str) -> String {
    let (label, value) = (column(answer, label), column(answer, value));
    let shown = answer.rows.iter().take(BARS).filter(|row| row[value].is_some());
    let shown: Vec<&Vec<Option<String>>> = shown.collect();
    let most = shown.iter().filter_map(|row| number(answer, value, row)).map(f64::abs);
    let most = most.fold(f64::MIN_POSITIVE, f64::max);
    let mut html = format!(
        "<figure><figcaption><h3>{}</h3></figcaption><div class=\"bars\" aria-hidden=\"true\">",
        escape(&title(&answer.columns[value].0))
    );
    for row in shown {
        let height = number(answer, value, row).unwrap_or(0.0);
        let tone = if height < 0.0 { "less" } else { "more" };
        let label = match row[label].as_deref() {
            Some(label) => foreign(label),
            None => ALL_HOSTS.to_owned(),
        };
        write!(
            html,
            "<div class=\"bar\"><span class=\"name\">{label}</span><span>{}</span><svg \
             class=\"track\"><rect class=\"{tone}\" width=\"{:.2}%\" height=\"100%\"/></svg></div>",
            cell_text(answer.columns[value].1, row[value].as_deref()),
            100.0 * height.abs() / most
        )
        .expect("writing to a string cannot fail");
    }
    html.push_str("</div></figure>");
    html
}

/// The lines of a chart.
struct Lines<'a> {
    /// All positions, in order.
    places: Vec<&'a str>,
    /// A line for each host.
    series: Vec<(&'a str, Points)>,
    /// The largest height of all.
    most: f64,
}

/// The points of a line: its position among all positions, and its height.
type Points = Vec<(usize, f64)>;

fn lines(answer: &QueryResult, at: &str, height: &str) -> String {
    let (at, height) = (column(answer, at), column(answer, height));
    let lines = Lines::of(answer, at, height);
    let (name, holds) = &answer.columns[height];
    let top = match holds {
        ColumnType::Length => shown_as(ColumnType::Length, &as_interval(lines.most)),
        _ => cell_text(ColumnType::Number, Some(&format!("{}", lines.most))),
    };
    let ends = [lines.places.first(), lines.places.last()].map(|place| {
        let place = place.copied().unwrap_or(NOTHING_KNOWN);
        escape(place.get(..16).unwrap_or(place))
    });
    format!(
        "<figure><figcaption><h3>{}</h3>{}</figcaption><div class=\"plotted\" aria-hidden=\"true\">\
         <div class=\"scale\"><span>{top}</span><span>0</span></div><svg viewBox=\"0 0 1000 100\" \
         preserveAspectRatio=\"none\">{}</svg></div><div class=\"ends\" aria-hidden=\"true\">\
         <span>{}</span><span>{}</span></div></figure>",
        escape(&title(name)),
        lines.legend(),
        lines.drawn(),
        ends[0],
        ends[1]
    )
}

impl<'a> Lines<'a> {
    fn of(answer: &'a QueryResult, at: usize, height: usize) -> Self {
        let host = answer.columns.iter().position(|(name, _)| name == "host");
        // Rows come newest first. As text, days and hours sort by time.
        let mut places: Vec<&str> =
            answer.rows.iter().filter_map(|row| row[at].as_deref()).collect();
        places.sort_unstable();
        places.dedup();
        // The hosts of the newest rows come first, and among them those with most sessions.
        let mut series: Vec<(&str, Points)> = Vec::new();
        for row in &answer.rows {
            let (Some(place), Some(value)) = (row[at].as_deref(), number(answer, height, row))
            else {
                continue;
            };
            let host = host.and_then(|host| row[host].as_deref()).unwrap_or("");
            let place = places.binary_search(&place).expect("it was collected");
            match series.iter().position(|(known, _)| *known == host) {
                Some(known) => series[known].1.push((place, value)),
                None if series.len() < LINES => series.push((host, vec![(place, value)])),
                None => {}
            }
        }
        let most = series.iter().flat_map(|(_, points)| points).map(|(_, value)| *value);
        let most = most.fold(f64::MIN_POSITIVE, f64::max);
        Lines { places, series, most }
    }

    /// The colours of the hosts.
    fn legend(&self) -> String {
        let hosts = self.series.iter().enumerate().filter(|(_, (host, _))| !host.is_empty());
        let entry = |(n, (host, _)): (usize, &(&str, Points))| {
            format!(
                "<span class=\"legend\"><span class=\"swatch line-{}\"></span>{}</span>",
                n + 1,
                foreign(host)
            )
        };
        hosts.map(entry).collect()
    }

    fn drawn(&self) -> String {
        let last = self.places.len().saturating_sub(1).max(1) as f64;
        let line = |(n, (_, points)): (usize, &(&str, Points))| {
            let mut points = points.clone();
            points.sort_unstable_by_key(|(place, _)| *place);
            if let [only] = points[..] {
                points.push((only.0 + 1, only.1));
            }
            let points = points.iter().map(|(place, value)| {
                let (x, y) = (1_000.0 * *place as f64 / last, 100.0 - 100.0 * value / self.most);
                format!("{x:.1},{y:.2}")
            });
            let points = points.collect::<Vec<_>>().join(" ");
            format!("<polyline class=\"line-{}\" points=\"{points}\"/>", n + 1)
        };
        self.series.iter().enumerate().map(line).collect()
    }
}

fn as_interval(seconds: f64) -> String {
    let all = seconds as u64;
    format!("{}:{:02}:{:02}", all / 3_600, all / 60 % 60, all % 60)
}

/// The shade of a cell, 0 to [`SHADES`], among cells of which the largest is `most`.
pub fn shade(value: u64, most: u64) -> u64 {
    (value * SHADES).div_ceil(most.max(1))
}

/// A count in few characters: `999`, `1.2k`, `60k`, `1.2M`.
pub fn brief(n: u64) -> String {
    let (scaled, unit) = match n {
        0..1_000 => return n.to_string(),
        1_000..999_500 => (n as f64 / 1e3, "k"),
        _ => (n as f64 / 1e6, "M"),
    };
    if scaled < 9.95 { format!("{scaled:.1}{unit}") } else { format!("{scaled:.0}{unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_brief_and_cells_have_shades() {
        let brief = [0, 999, 1_234, 60_489, 999_499, 999_500, 12_000_000].map(brief);
        assert_eq!(brief, ["0", "999", "1.2k", "60k", "999k", "1.0M", "12M"]);
        assert_eq!([0, 1, 50, 100].map(|n| shade(n, 100)), [0, 1, 5, 10]);
        assert_eq!(shade(0, 0), 0);
    }
}
