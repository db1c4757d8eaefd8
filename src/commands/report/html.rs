//! A report as one page that needs nothing else: no script, no network, and a policy that forbids
//! both. All text from outside is escaped, and isolated from the direction of the text around it.

use std::fmt::Write;

use openssl::base64::encode_block;
use openssl::sha::sha256;

use crate::commands::http::printable;
use crate::commands::report::chart::{brief, chart, shade};
use crate::commands::report::parts::Chart;
use crate::commands::report::tables::{ALL_HOSTS, NOTHING_KNOWN, shown_as, title};
use crate::commands::report::{Done, Head, Part};
use crate::ledger::report::{ColumnType, QueryResult};
use crate::ui::text::count;

/// The style of the live page, plus what only a report needs.
const STYLE: &str = concat!(include_str!("../../monitor/page/app.css"), include_str!("report.css"));
/// How many rows of a part the page shows.
const ROWS: usize = 500;

/// The whole page.
pub fn page(head: &Head, parts: &[Done]) -> String {
    let hash = encode_block(&sha256(STYLE.as_bytes()));
    let title = escape(&printable(&format!("report on {}", head.job)));
    let contents = parts.iter().map(|(part, _)| {
        format!("<a href=\"#{}\">{}</a>", part.name, escape(&part.name.replace('_', " ")))
    });
    let addresses = if head.addresses {
        "Addresses of visitors are shown in full."
    } else {
        "The ends of addresses are left out."
    };
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
         style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"referrer\" content=\"no-referrer\">\n<title>{title} · sessionizer</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<header id=\"head\" data-tone=\"busy\">\
         <div class=\"wide\"><p class=\"word\">Report</p><h1>{}</h1>\
         <p class=\"means\">{} {addresses}</p><nav class=\"facts\">{}</nav></div></header>\n\
         <main class=\"wide\">\n",
        foreign(&format!("Sessions of {}", head.job)),
        foreign(&head.sentence()),
        contents.collect::<String>()
    );
    for (part, answer) in parts {
        section(&mut html, part, answer);
    }
    write!(
        html,
        "</main>\n<footer class=\"wide\"><span>sessionizer {}</span></footer>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    )
    .expect("writing to a string cannot fail");
    html
}

fn section(html: &mut String, part: &Part, answer: &QueryResult) {
    let notes = part.notes().into_iter().map(|note| format!("<p>{}</p>", escape(&note)));
    let rows = match (part.chart, answer.rows.is_empty()) {
        (_, true) => "<p class=\"nothing\">Nothing.</p>".to_owned(),
        (Chart::Heat, false) => heat(answer),
        (_, false) => table(answer),
    };
    writeln!(
        html,
        "<section id=\"{}\"><div class=\"title\"><h2>{}</h2></div>{}<div class=\"card\">{rows}\
         </div><details class=\"about\"><summary>What is counted</summary>{}</details></section>",
        part.name,
        escape(part.question()),
        chart(part.chart, answer),
        notes.collect::<String>()
    )
    .expect("writing to a string cannot fail");
}

fn table(answer: &QueryResult) -> String {
    let class = |holds| match holds {
        ColumnType::Number | ColumnType::Length => " class=\"number\"",
        ColumnType::Text => " class=\"foreign\"",
        ColumnType::Day | ColumnType::Time => "",
    };
    let header = answer.columns.iter().map(|(name, holds)| {
        format!("<th scope=\"col\"{}>{}</th>", class(*holds), escape(&title(name)))
    });
    let row = |row: &Vec<Option<String>>| {
        let cells = answer.columns.iter().zip(row).map(|((name, holds), cell)| {
            let text = match cell.as_deref() {
                None if name == "host" => ALL_HOSTS.to_owned(),
                cell => cell_text(*holds, cell),
            };
            let name = escape(&title(name));
            format!("<td{} data-name=\"{name}\">{text}</td>", class(*holds))
        });
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let rest = match answer.rows.len().saturating_sub(ROWS) {
        0 => String::new(),
        rest => format!(
            "<p class=\"note\">And {} more rows: --csv has them all.</p>",
            count(rest as u64)
        ),
    };
    format!(
        "<div class=\"rows\" tabindex=\"0\"><table role=\"table\"><thead><tr>{}</tr></thead>\
         <tbody>{}</tbody></table></div>{rest}",
        header.collect::<String>(),
        answer.rows.iter().take(ROWS).map(row).collect::<String>()
    )
}

/// The first column as the head of each row, the others as cells that are darker for larger values.
fn heat(answer: &QueryResult) -> String {
    let value = |cell: &Option<String>| cell.as_deref().and_then(|n| n.parse::<u64>().ok());
    let cells = answer.rows.iter().flat_map(|row| row.iter().skip(1).filter_map(value));
    let most = cells.max().unwrap_or(0);
    let header = answer.columns.iter().map(|(name, _)| {
        let title = escape(&title(name));
        let short = escape(if name.len() > 4 { &name[..3] } else { name });
        format!("<th scope=\"col\"><abbr title=\"{title}\">{short}</abbr></th>")
    });
    let row = |row: &Vec<Option<String>>| {
        let name = cell_text(ColumnType::Number, row[0].as_deref());
        let cells = row.iter().skip(1).map(|cell| {
            let n = value(cell).unwrap_or(0);
            let (shade, all, short) = (shade(n, most), count(n), brief(n));
            format!("<td class=\"shade-{shade}\" title=\"{all}\">{short}</td>")
        });
        format!("<tr><th scope=\"row\">{name}</th>{}</tr>\n", cells.collect::<String>())
    };
    format!(
        "<table class=\"heat\"><thead><tr>{}</tr></thead><tbody>{}</tbody></table>",
        header.collect::<String>(),
        answer.rows.iter().map(row).collect::<String>()
    )
}

/// A value for people, as HTML.
pub fn cell_text(holds: ColumnType, cell: Option<&str>) -> String {
    match (holds, cell) {
        (_, None) => NOTHING_KNOWN.to_owned(),
        (ColumnType::Text, Some(text)) => foreign(text),
        (_, Some(text)) => escape(&shown_as(holds, text)),
    }
}

/// Text from outside.
pub fn foreign(text: &str) -> String {
    format!("<bdi>{}</bdi>", escape(&printable(text)))
}

/// Text as HTML, also within quotes.
pub fn escape(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c => html.push(c),
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::report::parts::PARTS;
    use crate::ledger::report::SessionFilter;

    #[test]
    fn a_hostile_text_stays_text() {
        let hostile = "</td><script>alert('1')</script>\" onload=\"&\u{1b}";
        let escaped = "&lt;/td&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot; \
                       onload=&quot;&amp;\u{fffd}";
        let columns = [
            ("day", ColumnType::Day),
            ("host", ColumnType::Text),
            ("visitors", ColumnType::Number),
        ]
        .map(|(name, holds)| (name.to_owned(), holds));
        let names = ["returning", "returning_percent", "average_days_away"];
        let more = names.map(|name| (name.to_owned(), ColumnType::Number));
        let cells = ["2024-03-05", hostile, "1", "1", "100.0", "7.0"];
        let rows = vec![cells.map(|cell| Some(cell.to_owned())).to_vec()];
        let answer = QueryResult { columns: [&columns[..], &more[..]].concat(), rows };
        let part = *PARTS.iter().find(|part| part.name == "returning_visitors").expect("there");
        let head = Head {
            job: hostile.to_owned(),
            table: hostile.to_owned(),
            as_of: "now".to_owned(),
            filter: SessionFilter { hosts: vec![hostile.to_owned()], ..SessionFilter::default() },
            addresses: false,
        };
        let page = page(&head, &[(part, answer)]);
        assert!(!page.contains("<script") && !page.contains("onload=\"&"), "{page}");
        // The cell, the legend, the title, the heading, and three times in the sentence.
        assert_eq!(page.matches(escaped).count(), 7);
        assert!(!page.contains("style=") && !page.contains("http:") && !page.contains("https:"));
    }
}
